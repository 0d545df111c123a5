//! The demo data of `onrush dev` and `onrush seed`, and what is printed about them. Ids are fixed, so that lines to
//! paste work on every machine; loading twice changes nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use uuid::Uuid;

use crate::app::App;
use crate::auth::{self, Role, UserId};
use crate::catalogue::{self, CourseId, NewCourse};
use crate::error::{Error, Kind};
use crate::platform::db;
use crate::platform::money::Money;
use crate::seckill::{self, ActivityId, NewActivity};
use crate::wallet::{self, CouponId, CouponKind, Credit, NewCoupon, Reason, Terms};

/// Time to pay an order in the playground: long enough to paste a line, short enough to see it run out.
pub const PAY_DEADLINE_S: u64 = 60;

/// Where the lines to paste expect the service.
const DEFAULT_BASE: &str = "http://127.0.0.1:8080";

/// (phone, password, nickname, role) of the people.
const PEOPLE: [(&str, &str, &str, Role); 2] =
    [("13800000001", "onrush-demo", "小明", Role::User), ("13800000000", "onrush-admin", "管理员", Role::Admin)];

/// (title, summary, price in fen, chapters) of the courses; their ids are 1, 2, 3 …
const COURSES: [(&str, &str, i64, [&str; 3]); 3] = [
    ("Rust 从入门到上线", "从所有权到异步，做出一个能上线的服务。", 19_900, ["所有权与借用", "错误处理", "异步与并发"]),
    ("MySQL 深入浅出", "索引、事务与锁，看懂一条语句的代价。", 9_900, ["索引", "事务", "锁"]),
    ("Redis 实战", "缓存、队列与秒杀。", 12_900, ["数据结构", "脚本", "流与消费者组"]),
];

/// The demo user's points.
const POINTS: i64 = 5_000;
/// The demo coupon's name, by which it is known.
const COUPON: &str = "新人立减 20 元";
/// How long the coupon holds and the seckill runs.
const YEARS: Duration = Duration::from_secs(5 * 366 * 24 * 3600);

fn course_id(number: usize) -> CourseId {
    CourseId::from_uuid(Uuid::from_u128(number as u128))
}

/// Whether somebody has an account here who is none of the demo's people: then it is no database for them.
pub async fn has_other_people(app: &App) -> anyhow::Result<bool> {
    let phones = PEOPLE.map(|(phone, ..)| phone);
    auth::has_others(app, &phones).await.map_err(|error| anyhow::Error::from(error).context("looking for other people"))
}

/// The phone numbers of the demo's people to whom their published passwords give entry.
pub async fn open_accounts(app: &App) -> anyhow::Result<Vec<&'static str>> {
    let mut open = Vec::new();
    for (phone, password, ..) in PEOPLE {
        if auth::has_password(app, phone, password).await.map_err(anyhow::Error::from)? {
            open.push(phone);
        }
    }
    Ok(open)
}

/// Loads what is not there yet.
pub async fn load(app: &App) -> anyhow::Result<()> {
    for (phone, password, nickname, role) in PEOPLE {
        let user = person(app, phone, password, nickname, role).await?;
        if role == Role::User {
            fill_wallet(app, user).await?;
        }
    }
    for (number, course) in (1..).zip(COURSES) {
        put_on_sale(app, course_id(number), course).await?;
    }
    start_seckill(app).await
}

/// Makes an account unless the phone number has one; gives its id.
async fn person(app: &App, phone: &str, password: &str, nickname: &str, role: Role) -> anyhow::Result<UserId> {
    match auth::create_user(app, phone, password, nickname, role).await {
        Ok(id) => Ok(id),
        Err(Error::Refused(refusal)) if refusal.kind == Kind::PhoneTaken => {
            let known = sqlx::query_scalar("SELECT id FROM users WHERE phone = ?").bind(phone);
            known.fetch_one(&app.db).await.context("finding a demo account")
        }
        Err(error) => Err(anyhow::Error::from(error).context("making a demo account")),
    }
}

/// Points and a coupon.
async fn fill_wallet(app: &App, user: UserId) -> anyhow::Result<()> {
    let coupon = db::retrying(|| give(app, user)).await?;
    wallet::claim(app, user, coupon).await?;
    Ok(())
}

/// The points, and the coupon to claim.
async fn give(app: &App, user: UserId) -> anyhow::Result<CouponId> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await.context("beginning to fill a demo wallet")?;
    let gift = Credit { user, points: POINTS, reason: Reason::Gift, reference: course_id(1).uuid() };
    wallet::give_points(&mut tx, &[gift], now).await?;
    let known = sqlx::query_scalar("SELECT id FROM coupons WHERE title = ? LIMIT 1").bind(COUPON);
    let coupon: Option<CouponId> = known.fetch_optional(&mut *tx).await.context("finding the demo coupon")?;
    let coupon = match coupon {
        Some(coupon) => coupon,
        None => {
            let terms = Terms {
                kind: CouponKind::Amount,
                amount: Money::fen(2_000),
                percent_off: 0,
                cap: Money::fen(0),
                min_spend: Money::fen(5_000),
                valid_from: now,
                valid_until: now.plus(YEARS),
            };
            let coupon = NewCoupon { title: COUPON.to_owned(), terms, quantity: 1_000 };
            wallet::create_coupon(&mut tx, &coupon, now).await?
        }
    };
    tx.commit().await.context("filling a demo wallet")?;
    Ok(coupon)
}

/// A seckill that has begun and goes on for years.
async fn start_seckill(app: &App) -> anyhow::Result<()> {
    let now = app.clock.now();
    let activity = NewActivity {
        id: ActivityId::from_uuid(Uuid::from_u128(1)),
        course: course_id(1),
        title: "限时秒杀：Rust 从入门到上线".to_owned(),
        price: Money::fen(990),
        stock: 100,
        per_user_limit: 1_000,
        pay_deadline_s: i32::try_from(app.config.orders.pay_deadline_s).unwrap_or(i32::MAX),
        starts_at: now,
        ends_at: now.plus(YEARS),
    };
    match seckill::create_activity(app, None, activity).await {
        // It began when the demo data were loaded first.
        Err(error) if error.kind() == Kind::ActivityExists => {}
        made => drop(made.map_err(anyhow::Error::from).context("starting the demo seckill")?),
    }
    Ok(())
}

async fn put_on_sale(app: &App, id: CourseId, course: (&str, &str, i64, [&str; 3])) -> anyhow::Result<()> {
    let (title, summary, price_fen, chapters) = course;
    let course = NewCourse {
        id,
        title: title.to_owned(),
        summary: summary.to_owned(),
        price: Money::fen(price_fen),
        published: true,
        chapters: chapters.map(str::to_owned).to_vec(),
    };
    db::retrying(|| async {
        let mut tx = app.db.begin().await.context("beginning a demo course")?;
        match catalogue::create_course(&mut tx, course.clone(), app.clock.now()).await {
            Ok(()) => tx.commit().await.context("committing a demo course"),
            Err(Error::Internal(error)) if is_there(&error) => Ok(()),
            Err(error) => Err(anyhow::Error::from(error).context("making a demo course")),
        }
    })
    .await
}

fn is_there(error: &anyhow::Error) -> bool {
    let database = error.chain().find_map(|cause| cause.downcast_ref::<sqlx::Error>());
    database.and_then(db::violated).is_some_and(|constraint| constraint == "PRIMARY")
}

/// The accounts, a line each.
pub fn logins() -> String {
    let line = |(phone, password, nickname, role): (&str, &str, &str, Role)| {
        let role = if role == Role::Admin { "admin" } else { "user" };
        format!("  {role:<6} {phone}  {password}  ({nickname})")
    };
    PEOPLE.map(line).join("\n")
}

/// Lines to paste that carry a person through the service at `base`. They need curl, sed and sh;
/// docs/GETTING_STARTED.md has them, and a test compares.
pub fn flows(base: &str) -> String {
    include_str!("flows.sh").replace(DEFAULT_BASE, base)
}

/// What `onrush dev` prints when it is up.
pub fn welcome(base: &str, dir: &Path, pay_deadline_s: u64) -> String {
    format!(
        "\nonrush is up.\n\n  API    {base}/api/v1\n  docs   {base}/docs\n  ready  {base}/readyz\n\nLogins\n{}\n\n\
         Lines to paste into another terminal\n\n{}\n\
         Data and settings are in {}. Orders have {pay_deadline_s} s to be paid here. Ctrl-C stops everything.\n",
        logins(),
        flows(base),
        dir.display(),
    )
}
