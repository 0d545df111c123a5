-- Periodic and one-off tasks, and leases: who among the processes does what only one should.

-- What is run when. `next_run_at` is the next occurrence: NULL when there is none (disabled, or over). `version` counts
-- edits; a run that began before an edit does not move what the edit has set.
CREATE TABLE schedules (
    id           BINARY(16)    NOT NULL,
    name         VARCHAR(100)  NOT NULL,
    task         VARCHAR(100)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    args         TEXT          NOT NULL,
    kind         VARCHAR(16)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    every_s      BIGINT        NULL,
    crontab      VARCHAR(255)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    run_at       DATETIME(3)   NULL,
    time_zone    VARCHAR(64)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    starts_at    DATETIME(3)   NOT NULL,
    enabled      BOOLEAN       NOT NULL,
    catch_up     VARCHAR(16)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    catch_up_max INT           NOT NULL,
    overlap      BOOLEAN       NOT NULL,
    next_run_at  DATETIME(3)   NULL,
    last_run_at  DATETIME(3)   NULL,
    total_runs   BIGINT        NOT NULL DEFAULT 0,
    last_task    VARCHAR(140)  CHARACTER SET ascii COLLATE ascii_bin NULL,
    last_error   VARCHAR(500)  NULL,
    version      BIGINT        NOT NULL DEFAULT 1,
    created_at   DATETIME(3)   NOT NULL,
    updated_at   DATETIME(3)   NOT NULL,
    CONSTRAINT pk_schedules PRIMARY KEY (id),
    CONSTRAINT uq_schedules_name UNIQUE (name),
    CONSTRAINT ck_schedules_kind CHECK (
        (kind = 'interval' AND every_s IS NOT NULL AND every_s >= 1)
        OR (kind = 'crontab' AND crontab IS NOT NULL)
        OR (kind = 'once' AND run_at IS NOT NULL)
    ),
    CONSTRAINT ck_schedules_catch_up CHECK (catch_up IN ('skip', 'once', 'each') AND catch_up_max >= 1),
    KEY ix_schedules_due (next_run_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- A lease is held until `expires_at` by the database's own clock. `term` grows with each new holder.
CREATE TABLE leases (
    name       VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    holder     VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    term       BIGINT       NOT NULL,
    expires_at DATETIME(3)  NOT NULL,
    CONSTRAINT pk_leases PRIMARY KEY (name)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
