//! What MySQL's errors mean for who may try again. The numbers are those of MySQL's and MariaDB's error references, of
//! Galera, ProxySQL and TiDB.

use sqlx::mysql::MySqlDatabaseError;

use super::writer;

/// What a failed statement says about trying again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Another transaction was in the way (deadlock, lock wait). The server has rolled back: the whole transaction may be
    /// tried again, also when it was its COMMIT that failed so, as on a cluster that certifies transactions there.
    Contention,
    /// The server or the pool cannot serve now.
    Unavailable,
    /// The statement took longer than it may: the server is too busy, or it would always.
    TooSlow,
    /// Anything else: trying again gives the same.
    Fault,
}

/// Lock wait, deadlock, MariaDB's "record has changed since last read", a COMMIT that group replication rolls back; of TiDB
/// a write conflict, a commit that was rolled back, and a schema that changed meanwhile.
const CONTENTION: &[u16] = &[1205, 1213, 1020, 3101, 9007, 8022, 8028];

/// The server takes no writes (any more); another one does by now, or will soon.
const NO_WRITER: &[&[u16]] = &[
    // Read-only: the server, by an option or in another mode, its InnoDB, its transactions.
    &[1290, 1836, 1874, 1792],
    // A node that is not in its cluster: Galera, group replication.
    &[1047, 3100],
    // A proxy that reaches no server in time (ProxySQL); the same number of TiDB, and a region without a leader.
    &[9001, 9004, 9005],
];

/// The server cannot serve now. None of these is said of a statement that would always fail.
const AWAY: &[&[u16]] = &[
    // Too many connections: of all, of a user, in an hour. A password that is being changed.
    &[1040, 1203, 1226, 1045],
    // It stops, or has ended the connection or the statement.
    &[1053, 1077, 1079, 1927, 3168, 3169, 1317, 1152, 1184, 4031],
    // Disk, memory, threads, locks or prepared statements (OPERATIONS.md says what to set) are used up.
    &[1021, 1037, 1038, 1041, 1114, 1135, 1206, 1461],
    // The network failed it.
    &[1158, 1159, 1160, 1161],
    // TiDB: its stores do not answer in time, or are busy.
    &[9002, 9003],
];

/// The statement took longer than the server lets it: MariaDB, MySQL.
const TOO_SLOW: &[u16] = &[1969, 3024];

/// Sorts a database error.
pub fn trouble(error: &sqlx::Error) -> Trouble {
    match error {
        sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::WorkerCrashed => Trouble::Unavailable,
        // On Galera, a transaction that lost its beginning (`galera`).
        sqlx::Error::Database(database) if database.message().contains("SAVEPOINT beginning") => Trouble::Contention,
        sqlx::Error::Database(database) => {
            of_number(database.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number))
        }
        _ => Trouble::Fault,
    }
}

fn of_number(number: u16) -> Trouble {
    if CONTENTION.contains(&number) {
        return Trouble::Contention;
    }
    if is_in(NO_WRITER, number) {
        writer::left();
        return Trouble::Unavailable;
    }
    if TOO_SLOW.contains(&number) {
        return Trouble::TooSlow;
    }
    if is_in(AWAY, number) { Trouble::Unavailable } else { Trouble::Fault }
}

fn is_in(kinds: &[&[u16]], number: u16) -> bool {
    kinds.iter().any(|kind| kind.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_away_is_told_from_a_statement_that_always_fails() {
        for number in
            [1040, 1203, 1226, 1053, 1317, 1114, 1021, 1152, 1184, 4031, 1290, 1836, 1792, 1874, 1047, 3100, 9001]
        {
            assert_eq!(of_number(number), Trouble::Unavailable, "{number}");
        }
        for number in [1205, 1213, 1020, 3101, 8022, 8028, 9007] {
            assert_eq!(of_number(number), Trouble::Contention, "{number}");
        }
        // Duplicates, other constraints, values that do not fit, and what no such table or syntax has.
        for number in [1062, 1048, 3819, 4025, 1406, 1264, 1366, 1451, 1452, 1054, 1064, 1146, 0] {
            assert_eq!(of_number(number), Trouble::Fault, "{number}");
        }
    }
}
