-- When a person's request last had the gateway asked about a payment, and when it last had the trade opened; and what the
-- gateway answered to that, as JSON: for a few seconds the next one is answered the same without asking.
ALTER TABLE payments
    ADD COLUMN asked_at DATETIME(3) NULL,
    ADD COLUMN opening_at DATETIME(3) NULL,
    ADD COLUMN opened_at DATETIME(3) NULL,
    ADD COLUMN opened_with TEXT NULL;
