-- The whole first schema. It runs unchanged on MySQL 8.0+ and MariaDB 10.6+.
--
-- Conventions
--   * ids are UUIDv7 made in the process, stored as BINARY(16): time-ordered, no coordination between copies.
--   * money is BIGINT fen, times are UTC DATETIME(3).
--   * every constraint is named; the code turns a violated name into a refusal (src/error.rs).
--   * no foreign keys: rows are written once by code that has just read what they refer to, `onrush check` proves
--     the rest, and distributed MySQL-compatible databases need not support them.
--   * ASCII columns (states, keys, hashes) are ascii_bin: compared byte for byte, one byte a character in an index.

CREATE TABLE users (
    id            BINARY(16)   NOT NULL,
    phone         VARCHAR(20)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    password_hash VARCHAR(255) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    nickname      VARCHAR(64)  NOT NULL,
    role          VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    created_at    DATETIME(3)  NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (id),
    CONSTRAINT uq_users_phone UNIQUE (phone),
    CONSTRAINT ck_users_role CHECK (role IN ('user', 'admin'))
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A refresh token is used once. `family_id` is the login it descends from: using a token twice revokes the family.
CREATE TABLE refresh_tokens (
    id         BINARY(16)  NOT NULL,
    user_id    BINARY(16)  NOT NULL,
    family_id  BINARY(16)  NOT NULL,
    token_hash BINARY(32)  NOT NULL,
    created_at DATETIME(3) NOT NULL,
    expires_at DATETIME(3) NOT NULL,
    used_at    DATETIME(3) NULL,
    revoked_at DATETIME(3) NULL,
    CONSTRAINT pk_refresh_tokens PRIMARY KEY (id),
    CONSTRAINT uq_refresh_tokens_hash UNIQUE (token_hash),
    KEY ix_refresh_tokens_family (family_id),
    KEY ix_refresh_tokens_user (user_id),
    KEY ix_refresh_tokens_expires (expires_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE courses (
    id         BINARY(16)    NOT NULL,
    title      VARCHAR(200)  NOT NULL,
    summary    VARCHAR(2000) NOT NULL,
    cover_url  VARCHAR(500)  NOT NULL DEFAULT '',
    price_fen  BIGINT        NOT NULL,
    published  TINYINT       NOT NULL DEFAULT 1,
    created_at DATETIME(3)   NOT NULL,
    CONSTRAINT pk_courses PRIMARY KEY (id),
    CONSTRAINT ck_courses_price CHECK (price_fen >= 0),
    KEY ix_courses_published (published, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE chapters (
    id        BINARY(16)   NOT NULL,
    course_id BINARY(16)   NOT NULL,
    position  INT          NOT NULL,
    title     VARCHAR(200) NOT NULL,
    CONSTRAINT pk_chapters PRIMARY KEY (id),
    CONSTRAINT uq_chapters_position UNIQUE (course_id, position),
    CONSTRAINT ck_chapters_position CHECK (position >= 1)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A coupon people may claim. Either `amount_fen`, or `percent_off` with `cap_fen`.
CREATE TABLE coupons (
    id             BINARY(16)   NOT NULL,
    title          VARCHAR(100) NOT NULL,
    kind           VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount_fen     BIGINT       NOT NULL DEFAULT 0,
    percent_off    INT          NOT NULL DEFAULT 0,
    cap_fen        BIGINT       NOT NULL DEFAULT 0,
    min_spend_fen  BIGINT       NOT NULL DEFAULT 0,
    quantity       BIGINT       NOT NULL,
    quantity_left  BIGINT       NOT NULL,
    valid_from     DATETIME(3)  NOT NULL,
    valid_until    DATETIME(3)  NOT NULL,
    created_at     DATETIME(3)  NOT NULL,
    CONSTRAINT pk_coupons PRIMARY KEY (id),
    CONSTRAINT ck_coupons_kind CHECK (kind IN ('amount', 'percent')),
    CONSTRAINT ck_coupons_amounts CHECK (amount_fen >= 0 AND cap_fen >= 0 AND min_spend_fen >= 0),
    CONSTRAINT ck_coupons_percent CHECK (percent_off BETWEEN 0 AND 100),
    CONSTRAINT ck_coupons_left CHECK (quantity_left >= 0 AND quantity_left <= quantity)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A coupon in somebody's wallet. `order_id` is the live order that holds it; NULL means free.
CREATE TABLE user_coupons (
    id         BINARY(16)  NOT NULL,
    user_id    BINARY(16)  NOT NULL,
    coupon_id  BINARY(16)  NOT NULL,
    order_id   BINARY(16)  NULL,
    claimed_at DATETIME(3) NOT NULL,
    used_at    DATETIME(3) NULL,
    CONSTRAINT pk_user_coupons PRIMARY KEY (id),
    CONSTRAINT uq_user_coupons_claim UNIQUE (user_id, coupon_id),
    CONSTRAINT uq_user_coupons_order UNIQUE (order_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A user without a row has no points.
CREATE TABLE points_accounts (
    user_id BINARY(16) NOT NULL,
    balance BIGINT     NOT NULL,
    CONSTRAINT pk_points_accounts PRIMARY KEY (user_id),
    CONSTRAINT ck_points_accounts_balance CHECK (balance >= 0)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- points_accounts.balance is the sum of this. One row per (user, reason, ref): an effect on the points happens once.
CREATE TABLE points_ledger (
    id         BINARY(16)  NOT NULL,
    user_id    BINARY(16)  NOT NULL,
    delta      BIGINT      NOT NULL,
    reason     VARCHAR(32) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    ref_id     BINARY(16)  NOT NULL,
    created_at DATETIME(3) NOT NULL,
    CONSTRAINT pk_points_ledger PRIMARY KEY (id),
    CONSTRAINT uq_points_ledger_once UNIQUE (user_id, reason, ref_id),
    KEY ix_points_ledger_user (user_id, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- status: 0 unpaid, 1 paid, 2 cancelled, 3 timed_out, 4 refunding, 5 refunded.
-- The row is the outbox: paid without granted_at, or cancelled/timed_out without released_at, is work owed.
-- hold_no counts how often the order has taken its coupon, points and unit (a re-opened order takes them again):
-- it makes the reference of each taking and giving back distinct in the points ledger.
CREATE TABLE orders (
    id                  BINARY(16)  NOT NULL,
    user_id             BINARY(16)  NOT NULL,
    kind                VARCHAR(16) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status              TINYINT     NOT NULL,
    total_fen           BIGINT      NOT NULL,
    coupon_discount_fen BIGINT      NOT NULL,
    points_discount_fen BIGINT      NOT NULL,
    payable_fen         BIGINT      NOT NULL,
    points_used         BIGINT      NOT NULL,
    points_earned       BIGINT      NOT NULL,
    currency            CHAR(3)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    user_coupon_id      BINARY(16)  NULL,
    hold_no             INT         NOT NULL DEFAULT 1,
    created_at          DATETIME(3) NOT NULL,
    expires_at          DATETIME(3) NOT NULL,
    pay_started_at      DATETIME(3) NULL,
    paid_at             DATETIME(3) NULL,
    closed_at           DATETIME(3) NULL,
    granted_at          DATETIME(3) NULL,
    released_at         DATETIME(3) NULL,
    CONSTRAINT pk_orders PRIMARY KEY (id),
    CONSTRAINT ck_orders_kind CHECK (kind IN ('course', 'seckill')),
    CONSTRAINT ck_orders_status CHECK (status BETWEEN 0 AND 5),
    CONSTRAINT ck_orders_amounts CHECK (total_fen >= 0 AND coupon_discount_fen >= 0 AND points_discount_fen >= 0
        AND payable_fen >= 0 AND points_used >= 0 AND points_earned >= 0
        AND payable_fen = total_fen - coupon_discount_fen - points_discount_fen),
    KEY ix_orders_user (user_id, id),
    KEY ix_orders_due (status, expires_at),
    KEY ix_orders_grant_owed (status, granted_at, paid_at),
    KEY ix_orders_release_owed (status, released_at, closed_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE order_items (
    order_id            BINARY(16)   NOT NULL,
    position            INT          NOT NULL,
    course_id           BINARY(16)   NOT NULL,
    title               VARCHAR(200) NOT NULL,
    price_fen           BIGINT       NOT NULL,
    coupon_discount_fen BIGINT       NOT NULL,
    points_discount_fen BIGINT       NOT NULL,
    payable_fen         BIGINT       NOT NULL,
    CONSTRAINT pk_order_items PRIMARY KEY (order_id, position),
    CONSTRAINT uq_order_items_course UNIQUE (order_id, course_id),
    CONSTRAINT ck_order_items_amounts CHECK (price_fen >= 0 AND coupon_discount_fen >= 0 AND points_discount_fen >= 0
        AND payable_fen >= 0 AND payable_fen = price_fen - coupon_discount_fen - points_discount_fen)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The first answer to a request, kept byte for byte with the effect it reports, in the same transaction.
CREATE TABLE idempotency_keys (
    user_id      BINARY(16)   NOT NULL,
    idem_key     VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    request_hash BINARY(32)   NOT NULL,
    status       SMALLINT     NOT NULL,
    response     MEDIUMBLOB   NOT NULL,
    created_at   DATETIME(3)  NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (user_id, idem_key),
    KEY ix_idempotency_keys_created (created_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE seckill_activities (
    id             BINARY(16)   NOT NULL,
    course_id      BINARY(16)   NOT NULL,
    title          VARCHAR(200) NOT NULL,
    price_fen      BIGINT       NOT NULL,
    stock          BIGINT       NOT NULL,
    stock_left     BIGINT       NOT NULL,
    returns        INT UNSIGNED NOT NULL DEFAULT 0, -- grows when units come back: what was read of the entries is out of date
    per_user_limit INT          NOT NULL,
    pay_deadline_s INT          NOT NULL,
    starts_at      DATETIME(3)  NOT NULL,
    ends_at        DATETIME(3)  NOT NULL,
    closed_at      DATETIME(3)  NULL,
    created_at     DATETIME(3)  NOT NULL,
    CONSTRAINT pk_seckill_activities PRIMARY KEY (id),
    CONSTRAINT ck_seckill_activities_stock CHECK (stock >= 0 AND stock_left >= 0 AND stock_left <= stock),
    CONSTRAINT ck_seckill_activities_price CHECK (price_fen >= 0),
    CONSTRAINT ck_seckill_activities_window CHECK (starts_at < ends_at),
    CONSTRAINT ck_seckill_activities_limit CHECK (per_user_limit >= 1),
    KEY ix_seckill_activities_ends (ends_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One unit taken by one submission; `id` is the submission's task. `live` is 1 while the unit is held or bought and
-- NULL once it was given back, so one live entry per (activity, user) is the unique key's word, not the code's.
-- gate_returned_at: when the unit went back on sale in Redis too; released_at without it is work owed.
CREATE TABLE seckill_entries (
    id               BINARY(16)  NOT NULL,
    activity_id      BINARY(16)  NOT NULL,
    user_id          BINARY(16)  NOT NULL,
    order_id         BINARY(16)  NOT NULL,
    live             TINYINT     NULL,
    created_at       DATETIME(3) NOT NULL,
    released_at      DATETIME(3) NULL,
    gate_returned_at DATETIME(3) NULL,
    CONSTRAINT pk_seckill_entries PRIMARY KEY (id),
    CONSTRAINT uq_seckill_entries_live UNIQUE (activity_id, user_id, live),
    CONSTRAINT uq_seckill_entries_order UNIQUE (order_id),
    CONSTRAINT ck_seckill_entries_live CHECK (live = 1),
    KEY ix_seckill_entries_return_owed (gate_returned_at, released_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- One attempt to pay one order at one gateway. `id` is our merchant number there (32 hex digits).
-- status: 'started', 'paid', 'closed'. resolution: what became of paid money: 'order' (it paid the order),
-- 'owed' (its order was dead or already paid: to be decided), 'refund' (a refund row exists).
CREATE TABLE payments (
    id               BINARY(16)   NOT NULL,
    order_id         BINARY(16)   NOT NULL,
    gateway          VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    channel          VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount_fen       BIGINT       NOT NULL,
    currency         CHAR(3)      CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status           VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    resolution       VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    gateway_trade_no VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    created_at       DATETIME(3)  NOT NULL,
    expires_at       DATETIME(3)  NOT NULL,
    paid_at          DATETIME(3)  NULL,
    closed_at        DATETIME(3)  NULL,
    next_query_at    DATETIME(3)  NULL,
    query_count      INT          NOT NULL DEFAULT 0,
    CONSTRAINT pk_payments PRIMARY KEY (id),
    CONSTRAINT uq_payments_trade UNIQUE (gateway, gateway_trade_no),
    CONSTRAINT ck_payments_amount CHECK (amount_fen > 0),
    CONSTRAINT ck_payments_status CHECK (status IN ('started', 'paid', 'closed')),
    CONSTRAINT ck_payments_resolution CHECK (resolution IN ('order', 'owed', 'refund')),
    KEY ix_payments_order (order_id),
    KEY ix_payments_query_due (status, next_query_at),
    KEY ix_payments_owed (resolution, paid_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Every message a gateway sent that verified. outcome: what it did ('settled', 'late', 'repeated', 'ignored', 'flagged').
CREATE TABLE payment_notifications (
    id          BINARY(16)   NOT NULL,
    gateway     VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    notify_id   VARCHAR(128) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    payment_id  BINARY(16)   NULL,
    outcome     VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    detail      VARCHAR(500) NOT NULL DEFAULT '',
    body        MEDIUMBLOB   NOT NULL,
    received_at DATETIME(3)  NOT NULL,
    CONSTRAINT pk_payment_notifications PRIMARY KEY (id),
    CONSTRAINT uq_payment_notifications_id UNIQUE (gateway, notify_id),
    KEY ix_payment_notifications_payment (payment_id),
    KEY ix_payment_notifications_outcome (outcome, received_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- Money we owe back. `id` is the idempotent refund number at the gateway. One refund per payment so far.
CREATE TABLE refunds (
    id              BINARY(16)   NOT NULL,
    payment_id      BINARY(16)   NOT NULL,
    order_id        BINARY(16)   NOT NULL,
    amount_fen      BIGINT       NOT NULL,
    reason          VARCHAR(32)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    status          VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    attempts        INT          NOT NULL DEFAULT 0,
    next_attempt_at DATETIME(3)  NULL,
    last_error      VARCHAR(500) NOT NULL DEFAULT '',
    created_at      DATETIME(3)  NOT NULL,
    confirmed_at    DATETIME(3)  NULL,
    CONSTRAINT pk_refunds PRIMARY KEY (id),
    CONSTRAINT uq_refunds_payment UNIQUE (payment_id),
    CONSTRAINT ck_refunds_amount CHECK (amount_fen > 0),
    CONSTRAINT ck_refunds_status CHECK (status IN ('pending', 'confirmed')),
    KEY ix_refunds_due (status, next_attempt_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- What a user may study. `order_id` is the order that gave it, and is part of the key: a course that two orders gave is
-- there until both are undone.
CREATE TABLE user_courses (
    user_id    BINARY(16)  NOT NULL,
    course_id  BINARY(16)  NOT NULL,
    order_id   BINARY(16)  NOT NULL,
    granted_at DATETIME(3) NOT NULL,
    CONSTRAINT pk_user_courses PRIMARY KEY (user_id, course_id, order_id),
    KEY ix_user_courses_order (order_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE user_course_chapters (
    user_id      BINARY(16)  NOT NULL,
    chapter_id   BINARY(16)  NOT NULL,
    course_id    BINARY(16)  NOT NULL,
    completed_at DATETIME(3) NULL,
    CONSTRAINT pk_user_course_chapters PRIMARY KEY (user_id, chapter_id),
    KEY ix_user_course_chapters_course (user_id, course_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The sandbox gateway's own books (only written when it is switched on). It stands for a company outside: nothing in
-- the service reads these tables but the sandbox itself.
CREATE TABLE sandbox_trades (
    trade_no        BINARY(16)   NOT NULL,
    merchant_no     VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    amount_fen      BIGINT       NOT NULL,
    paid_fen        BIGINT       NOT NULL DEFAULT 0,
    status          VARCHAR(16)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    subject         VARCHAR(200) NOT NULL,
    notify_url      VARCHAR(500) NOT NULL,
    return_url      VARCHAR(500) NOT NULL DEFAULT '',
    created_at      DATETIME(3)  NOT NULL,
    expires_at      DATETIME(3)  NOT NULL,
    paid_at         DATETIME(3)  NULL,
    CONSTRAINT pk_sandbox_trades PRIMARY KEY (trade_no),
    CONSTRAINT uq_sandbox_trades_merchant UNIQUE (merchant_no),
    CONSTRAINT ck_sandbox_trades_status CHECK (status IN ('waiting', 'paid', 'failed', 'closed', 'refunded'))
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE sandbox_notifies (
    id           BINARY(16)   NOT NULL,
    trade_no     BINARY(16)   NOT NULL,
    notify_url   VARCHAR(500) NOT NULL,
    body         TEXT         NOT NULL,
    attempts     INT          NOT NULL DEFAULT 0,
    next_at      DATETIME(3)  NULL,
    last_answer  VARCHAR(500) NOT NULL DEFAULT '',
    confirmed_at DATETIME(3)  NULL,
    CONSTRAINT pk_sandbox_notifies PRIMARY KEY (id),
    KEY ix_sandbox_notifies_due (next_at),
    KEY ix_sandbox_notifies_trade (trade_no)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE sandbox_refunds (
    refund_no  VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    trade_no   BINARY(16)  NOT NULL,
    amount_fen BIGINT      NOT NULL,
    created_at DATETIME(3) NOT NULL,
    CONSTRAINT pk_sandbox_refunds PRIMARY KEY (refund_no),
    KEY ix_sandbox_refunds_trade (trade_no)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
