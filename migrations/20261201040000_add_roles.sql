-- Roles beside `user` and `admin`, and accounts that may not log in. Which roles there are the service knows: a new
-- constraint would copy the table, and nobody could order meanwhile.
ALTER TABLE users ADD COLUMN disabled_at DATETIME(3) NULL;
ALTER TABLE users DROP CONSTRAINT ck_users_role;
-- The few that have a role.
ALTER TABLE users ADD INDEX ix_users_role (role, id);
