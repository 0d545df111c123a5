-- What each business day came to, written once when the day is over and never changed. starts_at and ends_at say which
-- instants were the day's, in the business time zone of then.
CREATE TABLE daily_reports (
    day                    DATE        NOT NULL,
    starts_at              DATETIME(3) NOT NULL,
    ends_at                DATETIME(3) NOT NULL,
    course_orders_created  BIGINT      NOT NULL,
    seckill_orders_created BIGINT      NOT NULL,
    course_orders_paid     BIGINT      NOT NULL,
    seckill_orders_paid    BIGINT      NOT NULL,
    paid_fen               BIGINT      NOT NULL,
    coupon_discount_fen    BIGINT      NOT NULL,
    points_discount_fen    BIGINT      NOT NULL,
    points_used            BIGINT      NOT NULL,
    points_earned          BIGINT      NOT NULL,
    orders_cancelled       BIGINT      NOT NULL,
    orders_timed_out       BIGINT      NOT NULL,
    courses_granted        BIGINT      NOT NULL,
    seckill_units_returned BIGINT      NOT NULL,
    payments_late          BIGINT      NOT NULL,
    notifications_flagged  BIGINT      NOT NULL,
    refunds_confirmed      BIGINT      NOT NULL,
    refunded_fen           BIGINT      NOT NULL,
    users_registered       BIGINT      NOT NULL,
    made_at                DATETIME(3) NOT NULL,
    CONSTRAINT pk_daily_reports PRIMARY KEY (day),
    CONSTRAINT ck_daily_reports_times CHECK (starts_at <= ends_at AND ends_at <= made_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
