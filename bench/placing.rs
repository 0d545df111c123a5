//! Flows that the worker and the scheduler drive: orders placed from a full queue, and the sweep of due orders.

use std::path::Path;
use std::time::{Duration, Instant};

use onrush::platform::id::Id;
use onrush::{http, payments, seckill};

use super::support::{ROUNDS, median};
use super::{Bench, Process};

/// Orders placed by the worker in its scenario.
const PLACED: usize = 200_000;
/// Orders due in the sweep's scenario.
const SWEPT: usize = 100_000;

impl Bench {
    /// The worker empties a full queue, and a plain client inserts the same rows in batches of the same size, in turn.
    pub async fn placed(&mut self) {
        println!(
            "\n| orders placed by the worker per second | plain multi-row inserts of the same rows | ratio (all rounds) | aim |\n|---|---|---|---|"
        );
        let (mut placed, mut plain) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let activity = self.activity(PLACED as i64).await;
            placed.push(self.place(activity).await);
            plain.push(self.plain_inserts(activity).await);
            self.forget(activity).await;
        }
        let ratios: Vec<f64> = placed.iter().zip(&plain).map(|(placed, plain)| placed / plain).collect();
        let all: Vec<String> = ratios.iter().map(|ratio| format!("{ratio:.2}")).collect();
        let (placed, plain, ratio) = (median(placed), median(plain), median(ratios));
        println!("| {placed:.0} | {plain:.0} | **{ratio:.2}** ({}) | ≥ 0.5 |", all.join(", "));
    }

    /// Orders per second that a worker places from a full queue.
    async fn place(&self, activity: seckill::ActivityId) -> f64 {
        let path = format!("{}/seckill/activities/{activity}/submissions", http::API);
        while self.app.engine.depth(&seckill::queue(activity)).await.unwrap().depth < PLACED as u64 {
            self.wrk(&self.api, &path, "POST", "", None);
        }
        let settings: Vec<(&'static str, String)> = vec![
            ("database_url", secrecy::ExposeSecret::expose_secret(&self.app.config.database_url).to_owned()),
            ("redis_url", secrecy::ExposeSecret::expose_secret(&self.app.config.redis_url).to_owned()),
            ("auth.jwt_secret", "a-secret-of-the-benchmark-with-32-bytes".to_owned()),
            ("log.filter", "warn".to_owned()),
        ];
        let count = async || -> i64 {
            sqlx::query_scalar("SELECT stock - stock_left FROM seckill_activities WHERE id = ?")
                .bind(activity)
                .fetch_one(&self.app.db)
                .await
                .unwrap()
        };
        let worker = Process::start(
            Path::new(env!("CARGO_BIN_EXE_onrush")),
            &["serve", "--roles", "worker"],
            &settings,
            "/healthz",
        );
        let (began, before) = loop {
            let n = count().await;
            if n > 0 {
                break (Instant::now(), n);
            }
        };
        while count().await < PLACED as i64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let rate = (PLACED as i64 - before) as f64 / began.elapsed().as_secs_f64();
        drop(worker);
        rate
    }

    /// Copies the rows the worker made (under new ids) with multi-row inserts, a transaction per batch, two connections.
    async fn plain_inserts(&self, activity: seckill::ActivityId) -> f64 {
        let batch = self.app.config.seckill.batch_size;
        let copies: Vec<Vec<[Id<()>; 3]>> =
            (0..PLACED / batch).map(|_| (0..batch).map(|_| [Id::new(), Id::new(), Id::new()]).collect()).collect();
        let began = Instant::now();
        let halves = copies.chunks(copies.len().div_ceil(2)).map(|half| self.insert_half(activity, half));
        futures_util::future::join_all(halves).await;
        (copies.len() * batch) as f64 / began.elapsed().as_secs_f64()
    }

    async fn insert_half(&self, activity: seckill::ActivityId, batches: &[Vec<[Id<()>; 3]>]) {
        let now = self.app.clock.now();
        for batch in batches {
            let mut tx = self.app.db.begin().await.unwrap();
            let mut orders = sqlx::QueryBuilder::<sqlx::MySql>::new(
                "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, points_used, points_earned, currency, created_at, expires_at) ",
            );
            orders.push_values(batch, |mut row, [order, user, _]| {
                row.push_bind(*order)
                    .push_bind(*user)
                    .push("'seckill', 0, 100, 0, 0, 100, 0, 1, 'CNY'")
                    .push_bind(now)
                    .push_bind(now);
            });
            orders.build().persistent(true).execute(&mut *tx).await.unwrap();
            let mut items = sqlx::QueryBuilder::<sqlx::MySql>::new(
                "INSERT INTO order_items (order_id, position, course_id, title, price_fen, coupon_discount_fen, points_discount_fen, payable_fen) ",
            );
            items.push_values(batch, |mut row, [order, _, _]| {
                row.push_bind(*order).push("1").push_bind(activity).push("'bench', 100, 0, 0, 100");
            });
            items.build().persistent(true).execute(&mut *tx).await.unwrap();
            let mut entries = sqlx::QueryBuilder::<sqlx::MySql>::new(
                "INSERT INTO seckill_entries (id, activity_id, user_id, order_id, live, created_at) ",
            );
            entries.push_values(batch, |mut row, [order, user, entry]| {
                row.push_bind(*entry)
                    .push_bind(activity)
                    .push_bind(*user)
                    .push_bind(*order)
                    .push("NULL")
                    .push_bind(now);
            });
            entries.build().persistent(true).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    }

    /// One process sweeps orders that are all due, from MySQL alone.
    pub async fn swept(&mut self) {
        println!("\n| sweep of {SWEPT} due orders | orders per second |\n|---|---|");
        let mut times = Vec::new();
        for _ in 0..ROUNDS {
            self.fill_with_due().await;
            let began = Instant::now();
            payments::sweep_due(&self.app).await.unwrap();
            times.push(began.elapsed().as_secs_f64());
            let left = sqlx::query_scalar("SELECT COUNT(*) FROM orders WHERE status = 0");
            let left: i64 = left.fetch_one(&self.app.db).await.unwrap();
            assert_eq!(left, 0, "the sweep left due orders");
        }
        let took = median(times);
        println!("| {took:.1} s | {:.0} |", SWEPT as f64 / took);
    }

    async fn fill_with_due(&self) {
        sqlx::query("DELETE FROM orders").execute(&self.app.db).await.unwrap();
        let now = self.app.clock.now();
        for _ in 0..SWEPT / 1000 {
            let mut orders = sqlx::QueryBuilder::<sqlx::MySql>::new(
                "INSERT INTO orders (id, user_id, kind, status, total_fen, coupon_discount_fen, points_discount_fen, payable_fen, points_used, points_earned, currency, created_at, expires_at) ",
            );
            orders.push_values(0..1000, |mut row, _| {
                row.push_bind(Id::<()>::new())
                    .push_bind(Id::<()>::new())
                    .push("'course', 0, 100, 0, 0, 100, 0, 1, 'CNY'")
                    .push_bind(now)
                    .push_bind(now);
            });
            orders.build().persistent(false).execute(&self.app.db).await.unwrap();
        }
    }
}
