-- Bills of gateways, as they were fetched: what moved on a day, by the gateway's own books.
--
-- A row is one fetch. status: 'storing' (its lines are being written; nobody reads them), 'believed' (the bill of its day:
-- at most one, by uq_payment_bills_believed), 'replaced' (a later fetch told something else), 'dropped' (replaced, and
-- its lines are gone), 'abandoned' (never believed: its lines are going, and then the row).
-- payments, refunds: lines of each kind after lines of one number were added up; …_fen: their sums.
-- digest: of all lines, so that a fetch which tells the same is known. compared_at: when all of it was laid beside our books.
CREATE TABLE payment_bills (
    id           BINARY(16)  NOT NULL,
    gateway      VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    day          DATE        NOT NULL,
    status       VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    believed     TINYINT     NULL,
    payments     INT         NOT NULL,
    payments_fen BIGINT      NOT NULL,
    refunds      INT         NOT NULL,
    refunds_fen  BIGINT      NOT NULL,
    digest       BINARY(32)  NOT NULL,
    fetched_at   DATETIME(3) NOT NULL,
    checked_at   DATETIME(3) NOT NULL,
    compared_at  DATETIME(3) NULL,
    replaced_at  DATETIME(3) NULL,
    CONSTRAINT pk_payment_bills PRIMARY KEY (id),
    CONSTRAINT uq_payment_bills_believed UNIQUE (gateway, day, believed),
    CONSTRAINT ck_payment_bills_believed CHECK (believed = 1),
    CONSTRAINT ck_payment_bills_status CHECK (status IN ('storing', 'believed', 'replaced', 'dropped', 'abandoned')),
    KEY ix_payment_bills_status (status, compared_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- number: ours of the payment or refund, or whatever the gateway has in its place. kind: 'payment', 'refund'.
-- line_count: lines of the gateway that came to this one, all of one number.
CREATE TABLE payment_bill_lines (
    bill_id     BINARY(16)   NOT NULL,
    kind        VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    number      VARCHAR(128) NOT NULL,
    merchant_no VARCHAR(128) NOT NULL,
    amount_fen  BIGINT       NOT NULL,
    line_count  INT          NOT NULL,
    at          DATETIME(3)  NOT NULL,
    CONSTRAINT pk_payment_bill_lines PRIMARY KEY (bill_id, kind, number),
    KEY ix_payment_bill_lines_number (number, kind)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Where a gateway's bills and our books differ. what: 'payment', 'refund'; day: that of the bill, or on which we heard.
-- kind: 'missing_here', 'missing_there', 'amount_differs', 'state_differs'.
-- status: 'waiting' (it may still come to fit: a neighbouring day's bill is not there yet, or the refund is under way),
-- 'open' (for a person), 'resolved' (by a person, with a note), 'vanished' (it came to fit).
CREATE TABLE payment_differences (
    id          BINARY(16)   NOT NULL,
    gateway     VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    what        VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    number      VARCHAR(128) NOT NULL,
    kind        VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status      VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    day         DATE         NOT NULL,
    payment_no  VARCHAR(128) NOT NULL,
    theirs_fen  BIGINT       NULL,
    ours_fen    BIGINT       NULL,
    ours_status VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    found_at    DATETIME(3)  NOT NULL,
    checked_at  DATETIME(3)  NOT NULL,
    vanished_at DATETIME(3)  NULL,
    resolved_at DATETIME(3)  NULL,
    resolved_by BINARY(16)   NULL,
    note        VARCHAR(500) NOT NULL DEFAULT '',
    CONSTRAINT pk_payment_differences PRIMARY KEY (id),
    CONSTRAINT uq_payment_differences_number UNIQUE (gateway, what, number, kind),
    CONSTRAINT ck_payment_differences_what CHECK (what IN ('payment', 'refund')),
    CONSTRAINT ck_payment_differences_kind
        CHECK (kind IN ('missing_here', 'missing_there', 'amount_differs', 'state_differs')),
    CONSTRAINT ck_payment_differences_status CHECK (status IN ('waiting', 'open', 'resolved', 'vanished')),
    KEY ix_payment_differences_status (status, checked_at),
    KEY ix_payment_differences_day (gateway, day, status)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Which payments we heard of on a day, at one gateway.
CREATE INDEX ix_payments_paid ON payments (gateway, paid_at);
