-- Courses that refunds took back, until whoever keeps marks of owners has heard of them: a row is owed to the gates of
-- sales, and goes when it has been told for a while.
CREATE TABLE course_take_backs (
    order_id   BINARY(16)  NOT NULL,
    course_id  BINARY(16)  NOT NULL,
    user_id    BINARY(16)  NOT NULL,
    created_at DATETIME(3) NOT NULL,
    CONSTRAINT pk_course_take_backs PRIMARY KEY (order_id, course_id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

-- The owners of a course, by user: the gate of its sale is told of them.
CREATE INDEX ix_user_courses_course ON user_courses (course_id, user_id);
