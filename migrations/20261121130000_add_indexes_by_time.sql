-- What happened in a stretch of time (the daily report) is found by an index, however large a table has grown. What is
-- not here is found by indexes that are there: paid, granted and closed orders by those of what they owe, kept messages by
-- outcome, entries by their return.

CREATE INDEX ix_orders_created ON orders (created_at, kind);
CREATE INDEX ix_refunds_confirmed ON refunds (confirmed_at, amount_fen);
CREATE INDEX ix_users_created ON users (created_at);
