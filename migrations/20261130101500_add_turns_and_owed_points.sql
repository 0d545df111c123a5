-- users.turns: grows whenever a transaction takes its turn behind the others of the user. On a cluster that takes writes on
-- every node a lock is known to its own node alone; of two transactions that write the same row one is rolled back.
ALTER TABLE users ADD COLUMN turns BIGINT NOT NULL DEFAULT 0;

-- orders.pay_turns: grows with each attempt to pay the order, for the same reason: an attempt meets whoever closes it.
ALTER TABLE orders ADD COLUMN pay_turns BIGINT NOT NULL DEFAULT 0;

-- points_accounts.owed: points that refunds were to take back and that had been spent. The next credits pay them.
-- order_refunds.points_owed: those of one refund. points_missing is of the version before, which kept them back from the
-- points that the end of the same order's refund gives back, and let the others go.
ALTER TABLE points_accounts
    ADD COLUMN owed BIGINT NOT NULL DEFAULT 0,
    ADD CONSTRAINT ck_points_accounts_owed CHECK (owed >= 0);
ALTER TABLE order_refunds
    ADD COLUMN points_owed BIGINT NOT NULL DEFAULT 0,
    ADD CONSTRAINT ck_order_refunds_owed CHECK (points_owed >= 0);
