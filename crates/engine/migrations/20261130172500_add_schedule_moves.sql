-- The version at which an edit last moved the next run. Together with the occurrence it names the task of a run: an edit that
-- leaves the times as they are (a name, arguments) while a run is under way must not make it another run.
ALTER TABLE schedules ADD COLUMN times_version BIGINT NOT NULL DEFAULT 1;
