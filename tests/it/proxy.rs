//! The proxy of the tests itself: what it says of MySQL is so, and what it does to one direction is done to that alone.

use std::time::Duration;

use onrush::platform::db::{self, Trouble};

use crate::support::{Direction, Harness, LostAt, PrivateRedis, Proxy, Verb};

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

/// A statement that must not hang, and must not be given up either.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_loses_what_is_said_in_one_direction_alone() {
    let h = Harness::new().await;
    for direction in [Direction::ToServer, Direction::ToClient] {
        let few = [("database.pool_size", "2"), ("database.statement_timeout_ms", "300")];
        let (way, s) = h.through_mysql_proxy_with(&few).await;
        let user = uuid::Uuid::now_v7();
        let insert = "INSERT INTO points_accounts (user_id, balance) VALUES (?, 1)";
        // So that it is not asked first whether it is still there.
        let mut conn = s.app.db.acquire().await.unwrap();
        sqlx::query("SELECT 1").execute(&mut *conn).await.unwrap();
        way.forget_commands();
        way.one_way(direction).silence();
        let lost = sqlx::query(insert).bind(user).execute(&mut *conn);
        let error = tokio::time::timeout(PATIENCE, lost).await.expect("an end").unwrap_err();
        assert_eq!(db::trouble(&error), Trouble::Unavailable, "{error}");
        // What was said has come to the server, or has not.
        let asked = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM points_accounts WHERE user_id = ?").bind(user);
        assert_eq!(asked.fetch_one(&h.app.db).await.unwrap(), 0, "an insert is prepared first");
        let heard = way.commands().iter().filter(|command| command.text == insert).count();
        assert_eq!(heard, usize::from(direction == Direction::ToClient), "{direction:?}: {:?}", way.commands());
        drop(conn);
        // Those that are made now are good.
        sqlx::query(insert).bind(user).execute(&s.app.db).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_slows_down_divides_and_cuts_one_direction_alone() {
    let redis = PrivateRedis::start().await;
    let way = Proxy::to(redis.url()).await;
    let client = redis::Client::open(way.url()).unwrap();
    let long = "x".repeat(20_000);
    let ask = async |command: &[&str]| {
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let mut connection = client.get_multiplexed_async_connection_with_config(&patient).await?;
        redis::cmd(command[0]).arg(&command[1..]).query_async::<redis::Value>(&mut connection).await
    };
    way.one_way(Direction::ToServer).cut_after(Some(4_000));
    ask(&["SET", "long", &long]).await.unwrap_err();
    way.one_way(Direction::ToServer).cut_after(None);
    ask(&["SET", "long", &long]).await.unwrap();
    // Now it is the answer that is too long, and the question is not.
    way.one_way(Direction::ToClient).cut_after(Some(4_000));
    ask(&["GET", "long"]).await.unwrap_err();
    ask(&["STRLEN", "long"]).await.unwrap();
    way.one_way(Direction::ToClient).cut_after(None);
    way.one_way(Direction::ToClient).in_pieces_of(Some(1));
    assert_eq!(ask(&["GET", "long"]).await.unwrap(), redis::Value::BulkString(long.into_bytes()));
    // What is said in the direction that is held up is not answered; what the server says of itself is heard.
    way.one_way(Direction::ToClient).in_pieces_of(None);
    let mut listens = client.get_async_pubsub().await.unwrap();
    listens.subscribe("news").await.unwrap();
    way.one_way(Direction::ToServer).slow_down(Duration::from_secs(600));
    redis.tell(&["PUBLISH", "news", "heard"]).await;
    let mut news = listens.on_message();
    let heard = tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut news)).await.unwrap().unwrap();
    assert_eq!(heard.get_payload::<String>().unwrap(), "heard");
    assert!(client.get_multiplexed_async_connection().await.is_err(), "nobody hears the client");
}
