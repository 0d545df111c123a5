-- Orders of a kind and in a status, newest first: what administrators look for. Those of a user are found by ix_orders_user.
--
-- The kind stands first so that the index serves nothing else. An index that began with (status, id) would be taken for
-- `UPDATE orders … WHERE id = ? AND status = ?` too, in place of the primary key, and rows would be locked the other way
-- round than by those who lock an order by its id.
CREATE INDEX ix_orders_kind ON orders (kind, status, id);
