-- Who changed what, and when. A change of MySQL writes its row in its own transaction, with its outcome. A change of Redis
-- writes its row before it acts and the outcome after: without an outcome nobody knows whether it happened.
CREATE TABLE audit (
    id      BINARY(16)   NOT NULL,
    user_id BINARY(16)   NOT NULL,
    action  VARCHAR(64)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    target  VARCHAR(200) NOT NULL,
    details TEXT         NOT NULL,
    outcome TEXT         NULL,
    at      DATETIME(3)  NOT NULL,
    CONSTRAINT pk_audit PRIMARY KEY (id),
    CONSTRAINT ck_audit_action CHECK (action <> ''),
    KEY ix_audit_action (action, id),
    KEY ix_audit_user (user_id, id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
