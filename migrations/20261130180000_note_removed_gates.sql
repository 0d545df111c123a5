-- gate_removed_at: when the keys of an activity that is long over were removed from Redis, which are then owed by nobody. NULL
-- while there may be some. The index finds those that are over among them.
ALTER TABLE seckill_activities
    ADD COLUMN gate_removed_at DATETIME(3) NULL,
    ADD KEY ix_seckill_activities_over (gate_removed_at, ends_at);
