-- refunds.refusals: how often the gateway has said no to making the refund, so that nothing was made. Stripe repeats such an
-- answer for a day under the same Idempotency-Key: the next try has another one.
ALTER TABLE refunds ADD COLUMN refusals INT NOT NULL DEFAULT 0;
