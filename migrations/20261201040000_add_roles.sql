-- Roles beside `user` and `admin`, and accounts that may not log in.
ALTER TABLE users
    ADD COLUMN disabled_at DATETIME(3) NULL,
    ADD CONSTRAINT ck_users_known_role CHECK (role IN ('user', 'auditor', 'support', 'finance', 'operator', 'admin')),
    DROP CONSTRAINT ck_users_role;
-- The few that have a role.
ALTER TABLE users ADD INDEX ix_users_role (role, id);
