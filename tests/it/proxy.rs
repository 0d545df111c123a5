//! The proxy of the tests itself: what it says of MySQL is so.

use std::time::Duration;

use onrush::platform::db::{self, Trouble};

use crate::support::{Harness, LostAt, Verb};

const INSERT: &str = "INSERT INTO points_accounts (user_id, balance) VALUES (?, ?)";
const UPDATE: &str = "UPDATE points_accounts SET balance = balance + ? WHERE user_id = ?";
/// As a column of ids has it, 16 bytes.
const USER: &str = "0123456789abcdef";

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_counts_holds_fails_and_loses_what_is_said_to_mysql() {
    let h = Harness::new().await;
    let (way, s) = h.through_mysql_proxy().await;
    let pool = &s.app.db;
    way.slow_down(Duration::from_millis(1));
    let balance = async || h.count("SELECT CAST(COALESCE(SUM(balance), 0) AS SIGNED) FROM points_accounts").await;
    let transaction = async |statement: &'static str, first: &'static str, second: &'static str| {
        let mut tx = pool.begin().await?;
        sqlx::query(statement).bind(first).bind(second).execute(&mut *tx).await?;
        tx.commit().await
    };
    transaction(INSERT, USER, "1").await.unwrap();

    // Each command with its text, which a statement that is prepared already does not say again.
    let mut conn = pool.acquire().await.unwrap();
    for (run, trips) in [(1, 2), (2, 1)] {
        way.forget_commands();
        sqlx::query(UPDATE).bind("1").bind(USER).execute(&mut *conn).await.unwrap();
        // A connection that is given back is asked whether it is well, when that may be.
        let commands: Vec<_> = way.commands().into_iter().filter(|command| command.verb != Verb::Ping).collect();
        assert!(commands.iter().all(|command| command.text == UPDATE), "{commands:?}");
        assert_eq!(commands.last().map(|command| command.verb), Some(Verb::Execute));
        let answered = commands.iter().filter(|command| command.verb.is_answered()).count();
        assert_eq!(answered, trips, "run {run}: {commands:?}");
    }

    drop(conn);

    // What is held has not happened, and does when it is let go.
    let held = way.hold("balance + ?");
    let own = pool.clone();
    let waits = tokio::spawn(async move { sqlx::query(UPDATE).bind("10").bind(USER).execute(&own).await });
    held.sprung().await;
    assert_eq!(balance().await, 3);
    held.let_go();
    waits.await.unwrap().unwrap();
    assert_eq!(balance().await, 13);

    // A deadlock undoes the transaction, in a statement or at COMMIT.
    for trap in [way.deadlock("balance + ?"), way.deadlock_at_commit("balance + ?")] {
        let error = transaction(UPDATE, "100", USER).await.unwrap_err();
        assert_eq!(db::trouble(&error), Trouble::Contention, "{error}");
        assert!(trap.has_sprung());
    }
    assert_eq!(balance().await, 13);

    // A COMMIT that is lost is done, or not, as is said; and a statement that is a transaction of its own.
    for (at, then) in [(LostAt::Answer, 1013), (LostAt::Request, 1013)] {
        let lost = way.lose_commit(at, "balance + ?");
        let error = transaction(UPDATE, "1000", USER).await.unwrap_err();
        assert_eq!(db::trouble(&error), Trouble::Unavailable, "{error}");
        assert!(lost.has_sprung());
        assert_eq!(balance().await, then);
    }
    let _lost = way.lose(LostAt::Answer, "balance + ?");
    sqlx::query(UPDATE).bind("1000").bind(USER).execute(pool).await.unwrap_err();
    assert_eq!(balance().await, 2013);
    transaction(UPDATE, "1", USER).await.unwrap();
}
