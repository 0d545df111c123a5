-- Refunds of paid orders that a person asked for. A row says what was taken back and what is given back with it, in the
-- transaction that does it; the money of it, if any, is the row of `refunds` whose cause is this id in hex.
-- kind: 'whole' (all that is left), 'courses' (some of them), 'amount' (money, no course).
-- points_back: points that the order had earned and that were taken back; points_missing: those that had been spent.
CREATE TABLE order_refunds (
    id             BINARY(16)   NOT NULL,
    order_id       BINARY(16)   NOT NULL,
    kind           VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount_fen     BIGINT       NOT NULL,
    points_back    BIGINT       NOT NULL,
    points_missing BIGINT       NOT NULL,
    reason         VARCHAR(200) NOT NULL,
    asked_by       BINARY(16)   NOT NULL,
    created_at     DATETIME(3)  NOT NULL,
    CONSTRAINT pk_order_refunds PRIMARY KEY (id),
    CONSTRAINT ck_order_refunds_kind CHECK (kind IN ('whole', 'courses', 'amount')),
    CONSTRAINT ck_order_refunds_amounts CHECK (amount_fen >= 0 AND points_back >= 0 AND points_missing >= 0),
    KEY ix_order_refunds_order (order_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- refund_id: the row of order_refunds that took the course back.
ALTER TABLE order_items ADD COLUMN refund_id BINARY(16) NULL;

-- What a message said, as it was read when its signature was verified: it can be judged again.
ALTER TABLE payment_notifications ADD COLUMN message TEXT NULL;

-- A refund that failed may be replaced: status 'replaced', and replaced_by is sent in its place.
ALTER TABLE refunds
    ADD COLUMN replaced_by BINARY(16) NULL,
    ADD CONSTRAINT ck_refunds_known CHECK (status IN ('pending', 'confirmed', 'failed', 'replaced')),
    DROP CONSTRAINT ck_refunds_state;
