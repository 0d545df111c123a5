//! How long a gate takes that many people hold units of, from nothing to the first buyer. `script/bench gates` runs it.

use std::time::{Duration, Instant};

use onrush::app::App;
use onrush::catalogue::CourseId;
use onrush::platform::id::Id;
use onrush::platform::money::Money;
use onrush::seckill::{self, ActivityId, NewActivity};
use sqlx::QueryBuilder;

use super::support::{ROUNDS, median};

/// People who hold a unit.
const HOLDERS: usize = 200_000;

/// Builds the gate, several times.
pub async fn measure(app: &App) {
    let activity = open(app).await;
    hold(app, activity).await;
    let meta = app.engine.keys(&seckill::queue(activity)).meta();
    let (mut times, mut scripts) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let _: i64 = redis::cmd("UNLINK").arg(&meta).query_async(&mut app.redis.commands()).await.unwrap();
        let _: () = redis::cmd("CONFIG").arg("RESETSTAT").query_async(&mut app.redis.commands()).await.unwrap();
        let began = Instant::now();
        seckill::open_gate(app, activity).await.unwrap();
        times.push(began.elapsed().as_secs_f64());
        let fields: usize = redis::cmd("HLEN").arg(&meta).query_async(&mut app.redis.commands()).await.unwrap();
        assert!(fields >= HOLDERS);
        scripts.push(script_ms(app).await);
    }
    println!(
        "\n| people who hold a unit | seconds until the gate is open | a script of it in Redis, ms |\n|---|---|---|"
    );
    println!("| {HOLDERS} | {:.2} | {:.2} |", median(times), median(scripts));
}

async fn script_ms(app: &App) -> f64 {
    let mut asked = redis::cmd("INFO");
    let stats: redis::InfoDict = asked.arg("commandstats").query_async(&mut app.redis.commands()).await.unwrap();
    let scripts: String = stats.get("cmdstat_evalsha").unwrap();
    let per_call = scripts.split(',').find_map(|part| part.strip_prefix("usec_per_call=")).unwrap();
    per_call.parse::<f64>().unwrap() / 1000.0
}

async fn open(app: &App) -> ActivityId {
    let course: Id<()> = Id::new();
    sqlx::query("INSERT INTO courses (id, title, summary, price_fen, published, created_at) VALUES (?, 'bench', '', 100, 1, NOW(3))")
        .bind(course)
        .execute(&app.db)
        .await
        .unwrap();
    let now = app.clock.now();
    let new = NewActivity {
        id: ActivityId::new(),
        course: CourseId::from_uuid(course.uuid()),
        title: "bench".to_owned(),
        price: Money::fen(100),
        stock: 1_000_000,
        per_user_limit: 1,
        pay_deadline_s: 3600,
        starts_at: now,
        ends_at: now.plus(Duration::from_secs(7200)),
    };
    seckill::create_activity(app, None, new).await.unwrap().id
}

/// A live entry of each, straight into the table.
async fn hold(app: &App, activity: ActivityId) {
    let (now, all) = (app.clock.now(), (0..HOLDERS).collect::<Vec<_>>());
    for part in all.chunks(1000) {
        let mut insert =
            QueryBuilder::new("INSERT INTO seckill_entries (id, activity_id, user_id, order_id, live, created_at) ");
        insert.push_values(part, |mut row, _| {
            let [id, user, order]: [Id<()>; 3] = std::array::from_fn(|_| Id::new());
            row.push_bind(id).push_bind(activity).push_bind(user).push_bind(order).push_bind(1i8).push_bind(now);
        });
        insert.build().persistent(false).execute(&app.db).await.unwrap();
    }
}
