//! On a Galera cluster: a transaction whose beginning is gone is not committed.
//!
//! A node rolls a transaction back when one of another node has overtaken it, and says so (1213) to the next statement.
//! MariaDB (10.11.19) forgets to, now and then, when it had to prepare that statement: it runs, and those after it, as
//! if there had never been a transaction. Each would be committed by itself, and two orders of one course be paid. So on
//! a cluster nothing is committed by itself in between (`autocommit = 0`), and the savepoint of the beginning has to be
//! there at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sqlx::{Executor, MySqlConnection, Row};

use super::Conn;

/// Whether the servers of a pool are the nodes of a cluster.
#[derive(Debug, Clone, Default)]
pub(super) struct Galera(Arc<AtomicBool>);

impl Galera {
    /// Asks the server of a new connection.
    pub(super) async fn look(&self, conn: &mut MySqlConnection) -> sqlx::Result<()> {
        let found = conn.fetch_optional("SHOW SESSION VARIABLES LIKE 'wsrep_on'").await?;
        let is_on = found.map(|row| row.try_get::<String, _>(1)).transpose()?.is_some_and(|value| value == "ON");
        // Never back: connections that are in a transaction now would come back as they are in it.
        if is_on {
            self.0.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// What a transaction that begins now has to do.
    pub(super) fn guard(&self) -> Guard {
        Guard { is_on: self.is_on() }
    }

    /// When a connection goes back into the pool: who takes it next may run a statement alone.
    pub(super) async fn after(&self, conn: &mut MySqlConnection) -> sqlx::Result<()> {
        if self.is_on() {
            conn.execute("SET autocommit = 1").await?;
        }
        Ok(())
    }
}

/// Of one transaction: the same from its beginning to its end, whatever is found meanwhile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guard {
    is_on: bool,
}

impl Guard {
    /// Before the BEGIN of a transaction.
    pub(super) async fn before(self, conn: &mut Conn) -> sqlx::Result<()> {
        self.run(conn, "SET autocommit = 0").await
    }

    /// After its BEGIN.
    pub(super) async fn begun(self, conn: &mut Conn) -> sqlx::Result<()> {
        self.run(conn, "SAVEPOINT beginning").await
    }

    /// Before its COMMIT. Fails (1305, [`Trouble::Contention`](super::Trouble)) when the beginning is gone.
    pub(super) async fn is_whole(self, conn: &mut Conn) -> sqlx::Result<()> {
        self.run(conn, "RELEASE SAVEPOINT beginning").await
    }

    async fn run(self, conn: &mut Conn, sql: &str) -> sqlx::Result<()> {
        if self.is_on {
            conn.execute(sql).await?;
        }
        Ok(())
    }
}
