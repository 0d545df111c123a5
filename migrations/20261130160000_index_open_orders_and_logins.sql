-- How many orders of a user can still be paid is asked before each new one: dead ones, of which there may be any number, are
-- not read for it.
ALTER TABLE orders ADD INDEX ix_orders_user_open (user_id, status, expires_at);

-- Whether a login is revoked is asked by every request that touches money. A login that was refreshed often has many used
-- tokens, which neither that question nor the revocation reads.
ALTER TABLE refresh_tokens
    DROP INDEX ix_refresh_tokens_family,
    DROP INDEX ix_refresh_tokens_user,
    ADD INDEX ix_refresh_tokens_family (family_id, revoked_at, used_at),
    ADD INDEX ix_refresh_tokens_user (user_id, revoked_at, used_at);
