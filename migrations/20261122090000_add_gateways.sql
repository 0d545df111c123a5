-- Room for gateways beside the sandbox, and several refunds of one payment.
--
-- payments.gateway_ref: what the gateway needs to find the trade again and is not ours (Stripe's session id).
-- payments.payer_openid, payer_address: whom WeChat's JSAPI and H5 channels let pay; asking again must say the same.
-- payments.refunded_fen: the sum of its refunds, confirmed or not: never more than was paid, whoever asks.
ALTER TABLE payments
    ADD COLUMN gateway_ref   VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN payer_openid  VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN payer_address VARCHAR(45)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN refunded_fen  BIGINT NOT NULL DEFAULT 0,
    ADD CONSTRAINT ck_payments_refunded CHECK (refunded_fen >= 0 AND refunded_fen <= amount_fen);

-- Refunds that the version before has owed or made.
UPDATE payments p JOIN refunds r ON r.payment_id = p.id SET p.refunded_fen = r.amount_fen WHERE p.refunded_fen = 0;

-- refunds.status: 'pending', 'confirmed', 'failed' (the gateway refused it: a person must look).
-- cause: what it is for, once per payment. 'late' is money that came too late or twice; a refund that a person asked for
-- has its own number here. Rows of the version before are all of the first kind, as the default says.
-- asked_at: the gateway has taken it and is at it: from then on it is asked about and not sent again.
-- note: a person's reason.
ALTER TABLE refunds
    ADD COLUMN cause     VARCHAR(32)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'late',
    ADD COLUMN note      VARCHAR(200) NOT NULL DEFAULT '',
    ADD COLUMN asked_at  DATETIME(3)  NULL,
    ADD COLUMN failed_at DATETIME(3)  NULL,
    ADD CONSTRAINT uq_refunds_cause UNIQUE (payment_id, cause),
    DROP INDEX uq_refunds_payment,
    ADD CONSTRAINT ck_refunds_state CHECK (status IN ('pending', 'confirmed', 'failed')),
    DROP CONSTRAINT ck_refunds_status,
    ADD KEY ix_refunds_order (order_id);

-- The sandbox's own books: how it treats the refunds of a trade ('at_once', 'slowly', 'never'), and how far each is.
ALTER TABLE sandbox_trades
    ADD COLUMN refunding VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'at_once';
ALTER TABLE sandbox_refunds
    ADD COLUMN status VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'done',
    ADD CONSTRAINT ck_sandbox_refunds_status CHECK (status IN ('pending', 'done', 'declined'));
