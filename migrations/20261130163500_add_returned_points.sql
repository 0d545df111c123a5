-- order_refunds.points_returned: points that the order had spent on the courses of this refund and that came back with it, while
-- the order goes on. They are counted in points_missing too, which the end of the order's refund keeps back: the version before
-- knows that column alone, and must not give them back a second time.
ALTER TABLE order_refunds
    ADD COLUMN points_returned BIGINT NOT NULL DEFAULT 0,
    ADD CONSTRAINT ck_order_refunds_returned CHECK (points_returned >= 0 AND points_returned <= points_missing);
