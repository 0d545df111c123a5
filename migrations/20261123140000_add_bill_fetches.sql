-- How far the fetching of a gateway's bill of a day is, when anybody asked for it: the schedule, or a person.
--
-- status: 'fetching' (a task has it, or its task was lost: the schedule takes it up an hour after asked_at), 'fetched',
-- 'failed' (error says why, in words for a person). task_key: of whoever fetches it, the task of a person's request
-- (is_task = 1) or the schedule. asked_at: when it was asked for, or begun once more.
CREATE TABLE payment_bill_fetches (
    gateway  VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    day      DATE         NOT NULL,
    status   VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    task_key BINARY(16)   NOT NULL,
    is_task  TINYINT(1)   NOT NULL,
    asked_at DATETIME(3)  NOT NULL,
    ended_at DATETIME(3)  NULL,
    error    VARCHAR(500) NOT NULL DEFAULT '',
    CONSTRAINT pk_payment_bill_fetches PRIMARY KEY (gateway, day),
    CONSTRAINT ck_payment_bill_fetches_status CHECK (status IN ('fetching', 'fetched', 'failed')),
    KEY ix_payment_bill_fetches_status (status, asked_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- When the bill's lines were so old that they went. The bill itself stays, with its sums.
ALTER TABLE payment_bills ADD COLUMN pruned_at DATETIME(3) NULL;
CREATE INDEX ix_payment_bills_pruned ON payment_bills (pruned_at, day);

-- payment_no is from here on our payment alone, or nothing; merchant_no is what the bill has in its place. A number that is
-- a payment of ours stays where it is. Running the statement again changes nothing.
ALTER TABLE payment_differences ADD COLUMN merchant_no VARCHAR(128) NOT NULL DEFAULT '';
UPDATE payment_differences SET merchant_no = payment_no, payment_no = ''
WHERE ours_fen IS NULL AND payment_no <> '' AND NOT EXISTS (
    SELECT 1 FROM payments p WHERE p.gateway = payment_differences.gateway
    AND p.id = CASE WHEN payment_differences.payment_no REGEXP '^[0-9a-f]{32}$' THEN UNHEX(payment_differences.payment_no) END
);
