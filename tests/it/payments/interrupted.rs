//! What people, administrators, workers and passes do with accounts, courses, orders, money and sales, while MySQL lets
//! them down in every statement once: as the victim of a deadlock, or by an answer that is lost with its connection.
//!
//! Nothing is chosen by hand: the same things are first done undisturbed, and a proxy notes each statement that writes and
//! each transaction that commits. So what comes later is tried as well, if only [`Desk::everything`] comes by it.

use std::collections::BTreeSet;

use onrush::auth::UserId;
use onrush::{auth, idempotency, jobs, reports, seckill};

use super::refunds::refund_once;
use super::*;
use crate::seckill::assert_clean;
use crate::support::proxy::Command;
use crate::support::{LostAt, Proxy, Verb};
use crate::wallet::{assert_ledger_adds_up, coupon, give_points};

/// How often a client asks again that hears 503, and a task or a pass runs again that failed.
const PATIENCE: usize = 20;
/// A transaction begins again a bounded number of times, so not all that it does fails in one run.
const PARTS: usize = 4;

/// All that is counted twice when something is done twice, and is missing when something is lost. Messages that changed
/// nothing are not: who asks again is told again.
const CENSUS: &str = "SELECT CONVERT(CONCAT_WS(' ',
    CONCAT('users:', (SELECT COUNT(*) FROM users)),
    CONCAT('courses:', (SELECT COUNT(*) FROM courses), '/', (SELECT COUNT(*) FROM chapters)),
    CONCAT('owned:', (SELECT COUNT(*) FROM user_courses), '/', (SELECT COUNT(*) FROM user_course_chapters)),
    CONCAT('orders:', (SELECT GROUP_CONCAT(n ORDER BY n) FROM
        (SELECT CONCAT(status, ungranted, unreleased, '*', COUNT(*)) AS n FROM
            (SELECT status, granted_at IS NULL AS ungranted, released_at IS NULL AS unreleased FROM orders) s
         GROUP BY status, ungranted, unreleased) o)),
    CONCAT('items:', (SELECT COUNT(*) FROM order_items), '/', (SELECT COUNT(refund_id) FROM order_items)),
    CONCAT('answers:', (SELECT COUNT(*) FROM idempotency_keys)),
    CONCAT('coupons:', (SELECT CONCAT(COUNT(*), '/', SUM(quantity_left)) FROM coupons), '/',
        (SELECT CONCAT(COUNT(*), '/', COUNT(order_id)) FROM user_coupons)),
    CONCAT('points:', (SELECT SUM(balance) FROM points_accounts), '/', (SELECT COUNT(*) FROM points_ledger)),
    CONCAT('payments:', (SELECT GROUP_CONCAT(n ORDER BY n) FROM
        (SELECT CONCAT(status, COALESCE(resolution, ''), '*', COUNT(*), '=', SUM(refunded_fen)) AS n FROM payments
         GROUP BY status, resolution) p)),
    CONCAT('told:', (SELECT GROUP_CONCAT(n ORDER BY n) FROM
        (SELECT CONCAT(outcome, '*', COUNT(*)) AS n FROM payment_notifications WHERE outcome <> 'repeated'
         GROUP BY outcome) t)),
    CONCAT('refunds:', (SELECT GROUP_CONCAT(n ORDER BY n) FROM
        (SELECT CONCAT(status, '*', COUNT(*), '=', SUM(amount_fen)) AS n FROM refunds GROUP BY status) r), '/',
        (SELECT COUNT(*) FROM order_refunds)),
    CONCAT('sales:', (SELECT GROUP_CONCAT(stock, '-', stock_left, '-', returns) FROM seckill_activities), '/',
        (SELECT CONCAT(COUNT(*), '/', COUNT(live), '/', COUNT(gate_returned_at)) FROM seckill_entries)),
    CONCAT('trades:', (SELECT COUNT(*) FROM sandbox_trades), '/', (SELECT SUM(paid_fen) FROM sandbox_trades), '/',
        (SELECT COALESCE(SUM(amount_fen), 0) FROM sandbox_refunds)),
    CONCAT('reports:', (SELECT COUNT(*) FROM daily_reports)),
    CONCAT('bills:', (SELECT COUNT(believed) FROM payment_bills), '/', (SELECT COUNT(*) FROM payment_bill_lines l
        JOIN payment_bills b ON b.id = l.bill_id WHERE b.believed = 1)),
    CONCAT('schedules:', (SELECT COUNT(*) FROM schedules)),
    CONCAT('audit:', (SELECT GROUP_CONCAT(n ORDER BY n) FROM
        (SELECT CONCAT(action, '*', COUNT(*)) AS n FROM audit GROUP BY action) a))) USING utf8mb4)";

fn key() -> String {
    Uuid::now_v7().as_simple().to_string()
}

/// Two services on one database: this one's words to MySQL go through the proxy.
struct Desk {
    h: Harness,
    s: Harness,
    way: Proxy,
    /// Whether 503 may be heard, and is asked again.
    fails: bool,
}

impl Desk {
    async fn new(fails: bool) -> Self {
        let h = service().await;
        // Retries take some of the clock's time. Bills and reports are made by the day: from whatever hour the test is run at,
        // one run would come past the hour of another bill, and another run not.
        let day = Duration::from_secs(24 * 3600);
        h.advance(day - Duration::from_millis(u64::try_from(h.now().ms()).unwrap() % 86_400_000));
        let (way, s) = h.through_mysql_proxy().await;
        way.forget_commands();
        Self { h, s, way, fails }
    }

    /// Asks until the answer is another one than 503.
    async fn ask(&self, wanted: &[u16], call: impl AsyncFn() -> Answer) -> Answer {
        for _ in 0..PATIENCE {
            let answer = call().await;
            if answer.status == 503 && self.fails {
                continue;
            }
            assert!(wanted.contains(&answer.status), "{}", answer.text());
            return answer;
        }
        panic!("it is never done");
    }

    /// Runs a pass until it comes to its end.
    async fn pass<T>(&self, pass: impl AsyncFn() -> anyhow::Result<T>) -> T {
        for _ in 0..PATIENCE {
            match pass().await {
                Ok(done) => return done,
                Err(error) => assert!(self.fails, "{error:#}"),
            }
        }
        panic!("it never comes to its end");
    }

    /// Delivers a task until it ends well.
    async fn task(&self, task: impl AsyncFn() -> Vec<Outcome>) {
        for _ in 0..PATIENCE {
            let outcomes = task().await;
            if outcomes.iter().all(|outcome| matches!(outcome, Outcome::Success(_))) {
                return;
            }
            assert!(self.fails, "{outcomes:?}");
        }
        panic!("it never ends well");
    }

    async fn order(&self, who: &Person, price_fen: i64, more: Value) -> String {
        let course = self.h.course(price_fen).await;
        self.order_of(who, &course.no(), more).await
    }

    async fn order_of(&self, who: &Person, course: &str, more: Value) -> String {
        let (key, body) = (key(), crate::wallet::with(json!({ "course_ids": [course] }), more));
        let made = self.ask(&[201], async || self.s.post_once("/orders", who, &key, body.clone()).await).await;
        made.text_of("order_no")
    }

    async fn start(&self, who: &Person, order: &str) -> Attempt {
        let path = format!("/orders/{order}/pay");
        let answer = self.ask(&[200], async || self.s.post(&path, who, json!({ "gateway": "sandbox" })).await).await;
        Attempt { payment_no: answer.text_of("payment_no"), trade: trade_of(&answer) }
    }

    async fn buyer(&self, attempt: &Attempt, form: &'static str) {
        self.ask(&[200, 409], async || buyer(&self.s, &attempt.trade, form).await).await;
    }

    /// The gateway tells of what is due, until it hears yes.
    async fn deliver(&self) {
        for _ in 0..PATIENCE {
            self.pass(async || onrush::sandbox::deliver(&self.s.app).await).await;
            if self.h.count("SELECT COUNT(*) FROM sandbox_notifies WHERE confirmed_at IS NULL").await == 0 {
                return;
            }
            assert!(self.fails, "a callback was answered with no");
            self.h.advance(Duration::from_secs(30));
        }
        panic!("the gateway never hears yes");
    }

    async fn release(&self) {
        let dead = "SELECT id FROM orders WHERE status IN (2, 3) AND released_at IS NULL";
        let dead: Vec<Uuid> = sqlx::query_scalar(dead).fetch_all(&self.h.app.db).await.unwrap();
        let jobs = || {
            let job = |id: &Uuid| {
                let order_id = OrderId::from_uuid(*id);
                Job::new(TaskId { key: *id, queue: "release".parse().unwrap() }, orders::Release { order_id })
            };
            dead.iter().map(job).collect()
        };
        self.task(async || orders::jobs::release(self.s.app.clone(), jobs(), seckill::give_back).await).await;
    }

    async fn grant(&self) {
        let paid = "SELECT id FROM orders WHERE status = 1 AND granted_at IS NULL";
        let paid: Vec<Uuid> = sqlx::query_scalar(paid).fetch_all(&self.h.app.db).await.unwrap();
        let jobs = || {
            let job = |id: &Uuid| {
                let order_id = OrderId::from_uuid(*id);
                Job::new(TaskId { key: *id, queue: "grant".parse().unwrap() }, orders::Grant { order_id })
            };
            paid.iter().map(job).collect()
        };
        self.task(async || orders::jobs::grant(self.s.app.clone(), jobs()).await).await;
    }

    async fn resolve_late(&self) {
        let owed = "SELECT id FROM payments WHERE resolution = 'owed'";
        let owed: Vec<Uuid> = sqlx::query_scalar(owed).fetch_all(&self.h.app.db).await.unwrap();
        let jobs = || {
            let job = |id: &Uuid| {
                let payment_id = payments::PaymentId::from_uuid(*id);
                Job::new(TaskId { key: *id, queue: "late".parse().unwrap() }, ResolveLate { payment_id })
            };
            owed.iter().map(job).collect()
        };
        self.task(async || payments::resolve_late(self.s.app.clone(), jobs(), seckill::retake).await).await;
    }

    async fn accounts(&self) {
        let me = json!({ "phone": "13900000001", "password": "a long password" });
        self.ask(&[201], async || self.s.post("/auth/register", (), me.clone()).await).await;
        let login = self.ask(&[200], async || self.s.post("/auth/login", (), me.clone()).await).await;
        let old = json!({ "refresh_token": login.text_of("refresh_token") });
        let new = self.ask(&[200], async || self.s.post("/auth/refresh", (), old.clone()).await).await;
        let new = json!({ "refresh_token": new.text_of("refresh_token") });
        self.ask(&[204], async || self.s.post("/auth/logout", (), new.clone()).await).await;
        // A stolen token ends its login.
        let login = self.ask(&[200], async || self.s.post("/auth/login", (), me.clone()).await).await;
        let old = json!({ "refresh_token": login.text_of("refresh_token") });
        self.ask(&[200], async || self.s.post("/auth/refresh", (), old.clone()).await).await;
        self.ask(&[401], async || self.s.post("/auth/refresh", (), old.clone()).await).await;
    }

    async fn catalogue(&self, admin: &Person) {
        let course = json!({ "id": key(), "title": "课", "summary": "", "price_fen": 100, "chapters": ["一", "二"] });
        self.ask(&[201], async || self.s.post("/admin/courses", admin, course.clone()).await).await;
    }

    /// A coupon and points of `who`; the coupon's id.
    async fn wallet(&self, who: &Person, admin: &Person) -> String {
        let (key, body) = (key(), coupon(&self.h));
        let made = self.ask(&[201], async || self.s.post_once("/admin/coupons", admin, &key, body.clone()).await).await;
        let path = format!("/coupons/{}/claim", made.text_of("id"));
        let claimed = self.ask(&[201, 200], async || self.s.post(&path, who, json!({})).await).await;
        give_points(&self.h, who, 5000).await;
        claimed.text_of("id")
    }

    /// An order that is cancelled while it is being paid; one that is paid, granted, and refunded in two steps.
    async fn orders(&self, who: &Person, admin: &Person, coupon: &str) {
        let discounts = json!({ "user_coupon_id": coupon, "points": 300 });
        let cancelled = self.order(who, 5000, discounts.clone()).await;
        self.start(who, &cancelled).await;
        let cancel = format!("/orders/{cancelled}/cancel");
        self.ask(&[200], async || self.s.post(&cancel, who, Value::Null).await).await;
        self.release().await;

        let paid = self.order(who, 5000, discounts).await;
        let attempt = self.start(who, &paid).await;
        self.buyer(&attempt, "action=pay").await;
        self.deliver().await;
        self.grant().await;
        for what in [json!({ "amount_fen": 500 }), json!({})] {
            let key = key();
            let owed = async || refund_once(&self.s, admin, &paid, &key, what.clone()).await;
            self.ask(&[201], owed).await;
        }
        self.refunds().await;
        self.order(who, 0, json!({})).await;
        self.grant().await;
    }

    /// Sends what is to go back, whatever tries it takes.
    async fn refunds(&self) {
        for _ in 0..PATIENCE {
            self.pass(async || payments::drive_refunds(&self.s.app).await).await;
            if self.h.count("SELECT COUNT(*) FROM refunds WHERE status = 'pending'").await == 0
                && self.h.count("SELECT COUNT(*) FROM orders WHERE status = 4").await == 0
            {
                return;
            }
            self.h.advance(Duration::from_secs(300));
        }
        panic!("the money never goes back");
    }

    /// Money that comes late: for an order that is opened again, and for one whose course was bought otherwise.
    async fn late(&self, who: &Person) {
        let course = self.h.course(700).await.no();
        for order in [self.order(who, 600, json!({})).await, self.order_of(who, &course, json!({})).await] {
            let attempt = self.start(who, &order).await;
            self.buyer(&attempt, "action=pay_late&delay_s=900").await;
        }
        self.order(who, 100, json!({})).await;
        self.h.advance(DEADLINE);
        // One that was not started, and two that were. What fails is due again.
        for _ in 0..PATIENCE {
            self.pass(async || payments::sweep_due(&self.s.app).await).await;
            if self.h.count("SELECT COUNT(*) FROM orders WHERE status = 0").await == 0 {
                break;
            }
        }
        self.release().await;
        let bought = self.order_of(who, &course, json!({})).await;
        let attempt = self.start(who, &bought).await;
        self.buyer(&attempt, "action=pay").await;
        // Its callback is lost: it is asked about.
        self.h.advance(Duration::from_secs(400));
        for _ in 0..PATIENCE {
            self.pass(async || payments::query_started(&self.s.app).await).await;
            if self.h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await == 0 {
                break;
            }
            self.h.advance(Duration::from_secs(300));
        }
        self.grant().await;
        self.h.advance(Duration::from_secs(600));
        self.deliver().await;
        self.resolve_late().await;
        self.grant().await;
        self.refunds().await;
    }

    /// An order that points pay a part of, and of which a course was bought by another one before it is paid.
    async fn twice(&self, who: &Person) {
        let (new, old) = (self.h.course(800).await.no(), self.h.course(800).await.no());
        let both = self.order_of(who, &old, json!({ "course_ids": [new, old], "points": 400 })).await;
        let later = self.start(who, &both).await;
        let first = self.order_of(who, &old, json!({})).await;
        let first = self.start(who, &first).await;
        for attempt in [first, later] {
            self.buyer(&attempt, "action=pay").await;
            self.deliver().await;
        }
        self.grant().await;
        self.refunds().await;
    }

    /// A sale of which a unit is bought and a unit comes back.
    async fn sale(&self, buyers: &[Person], admin: &Person) {
        let (id, course) = (key(), self.h.course(9900).await);
        let body = json!({
            "id": id, "course_id": course.no(), "title": "秒杀", "price_fen": 100, "stock": 5, "pay_deadline_s": 60,
            "starts_at": self.h.now(), "ends_at": self.h.now().plus(Duration::from_secs(3600)),
        });
        self.ask(&[201], async || self.s.post("/admin/seckill/activities", admin, body.clone()).await).await;
        let path = format!("/admin/seckill/activities/{id}");
        for stock in [4, 6] {
            let change = json!({ "stock": stock });
            self.ask(&[200], async || self.s.patch(&path, admin, change.clone()).await).await;
        }
        let batch: Vec<_> = buyers.iter().map(|who| (seckill::EntryId::new(), UserId::from_uuid(who.id))).collect();
        let place = async || Ok(seckill::place(&self.s.app, id.parse().unwrap(), &batch).await?);
        let placed = self.pass(place).await;
        let orders: Vec<OrderId> = placed
            .iter()
            .map(|placed| match placed {
                seckill::Placement::Won { order, .. } => *order,
                other => panic!("{other:?}"),
            })
            .collect();
        let (bought, left) = (orders[0].to_string(), orders[1].to_string());
        let attempt = self.start(&buyers[0], &bought).await;
        self.buyer(&attempt, "action=pay").await;
        self.deliver().await;
        self.grant().await;
        let cancel = format!("/orders/{left}/cancel");
        self.ask(&[200], async || self.s.post(&cancel, &buyers[1], Value::Null).await).await;
        self.release().await;
        self.pass(async || Ok(seckill::return_units(&self.s.app).await?)).await;
        self.ask(&[200], async || self.s.post(&format!("{path}/close"), admin, Value::Null).await).await;
    }

    async fn schedules(&self, admin: &Person) {
        let id = key();
        let new = json!({ "id": id, "name": "hourly", "task": "auth.prune", "kind": "interval", "every_s": 3600 });
        self.ask(&[201], async || self.s.post("/admin/schedules", admin, new.clone()).await).await;
        let path = format!("/admin/schedules/{id}");
        self.ask(&[200], async || self.s.patch(&path, admin, json!({ "every_s": 60 })).await).await;
        self.h.advance(Duration::from_secs(61));
        let scheduler = jobs::scheduler(&self.s.app);
        self.pass(async || scheduler.pass().await).await;
        self.ask(&[204], async || send(self.s.request(Method::DELETE, &path, admin)).await).await;
    }

    async fn passes(&self) {
        self.h.advance(Duration::from_secs(36 * 3600));
        self.pass(async || orders::redrive(&self.s.app).await).await;
        self.pass(async || reports::make_missing(&self.s.app).await).await;
        self.pass(async || onrush::reconciliation::reconcile(&self.s.app).await).await;
        self.h.advance(Duration::from_secs(60 * 24 * 3600));
        self.pass(async || auth::prune(&self.s.app).await).await;
        self.pass(async || idempotency::prune(&self.s.app).await).await;
    }

    /// Does all of it; what it came to.
    async fn everything(&self) -> String {
        let (admin, who) = (self.h.admin().await, self.h.register().await);
        self.accounts().await;
        self.catalogue(&admin).await;
        let coupon = self.wallet(&who, &admin).await;
        self.orders(&who, &admin, &coupon).await;
        self.late(&who).await;
        self.twice(&who).await;
        self.sale(&self.h.people(2).await, &admin).await;
        self.schedules(&admin).await;
        let census = "SELECT COUNT(*) FROM idempotency_keys";
        assert!(self.h.count(census).await > 0, "answers are kept");
        let come_to: String = sqlx::query_scalar(CENSUS).fetch_one(&self.h.app.db).await.unwrap();
        self.passes().await;
        let in_the_end: String = sqlx::query_scalar(CENSUS).fetch_one(&self.h.app.db).await.unwrap();
        assert_clean(&self.h).await;
        assert_ledger_adds_up(&self.h).await;
        self.s.no_connection_is_in_a_transaction().await;
        format!("{come_to}\n{in_the_end}")
    }
}

fn is_run(command: &&Command) -> bool {
    matches!(command.verb, Verb::Query | Verb::Execute)
}

/// Locking, too, may end in a deadlock.
fn writes(text: &str) -> bool {
    let text = text.trim_start();
    ["INSERT", "UPDATE", "DELETE"].iter().any(|verb| text.starts_with(verb)) || text.ends_with("FOR UPDATE")
}

/// What an undisturbed service writes.
struct Written {
    /// Each statement.
    statements: BTreeSet<String>,
    /// Each kind of transaction: all its statements. The longest come first, since one may be a part of another.
    transactions: Vec<String>,
    /// Those that are transactions of their own.
    alone: BTreeSet<String>,
    come_to: String,
}

async fn undisturbed() -> Written {
    let desk = Desk::new(false).await;
    let come_to = desk.everything().await;
    let (mut statements, mut transactions, mut alone) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let commands = desk.way.commands();
    let links: BTreeSet<usize> = commands.iter().map(|command| command.link).collect();
    for link in links {
        let (mut open, mut within, mut has_written) = (false, Vec::new(), false);
        for Command { text, .. } in commands.iter().filter(|command| command.link == link).filter(is_run) {
            match text.as_str() {
                "BEGIN" => (open, within, has_written) = (true, Vec::new(), false),
                "COMMIT" => {
                    open = false;
                    if has_written {
                        transactions.insert(within.join("\n"));
                    }
                }
                "ROLLBACK" => open = false,
                text => {
                    within.push(text);
                    has_written |= writes(text);
                    if writes(text) {
                        statements.insert(text.to_owned());
                    }
                    if writes(text) && !open && !text.ends_with("FOR UPDATE") {
                        alone.insert(text.to_owned());
                    }
                }
            }
        }
    }
    assert!(statements.len() > 60 && transactions.len() > 15 && alone.len() > 10, "the proxy sees what is written");
    let mut transactions: Vec<String> = transactions.into_iter().collect();
    transactions.sort_by_key(|all| std::cmp::Reverse(all.len()));
    Written { statements, transactions, alone, come_to }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_may_be_the_victim_of_a_deadlock_and_nobody_hears_of_it() {
    let written = undisturbed().await;
    let all: Vec<&String> = written.statements.iter().collect();
    let mut missed = Vec::new();
    for part in 0..PARTS {
        missed.extend(deadlocked(all.iter().copied().skip(part).step_by(PARTS), &written.come_to).await);
    }
    // Another one of its transaction was in its way: what comes after a deadlock may be another statement.
    let missed = deadlocked(missed.into_iter(), &written.come_to).await;
    assert!(missed.is_empty(), "they did not come by: {missed:#?}");
}

/// Does everything while each of these is the victim of a deadlock once; those that did not come by.
async fn deadlocked<'a>(statements: impl Iterator<Item = &'a String>, come_to: &str) -> Vec<&'a String> {
    let desk = Desk::new(false).await;
    let traps: Vec<_> = statements.map(|text| (text, desk.way.deadlock(text))).collect();
    assert_eq!(desk.everything().await, come_to);
    traps.into_iter().filter(|(_, trap)| !trap.has_sprung()).map(|(text, _)| text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_commit_may_be_refused_for_another_transaction_and_nobody_hears_of_it() {
    let written = undisturbed().await;
    let desk = Desk::new(false).await;
    let traps: Vec<_> = written.transactions.iter().map(|text| (text, desk.way.deadlock_at_commit(text))).collect();
    assert_eq!(desk.everything().await, written.come_to);
    let missed: Vec<_> = traps.iter().filter(|(_, trap)| !trap.has_sprung()).map(|(text, _)| text).collect();
    assert!(missed.is_empty(), "they did not come by: {missed:#?}");
}

/// The answer of each kind of COMMIT is lost once, and of each statement that is a transaction of its own; the service
/// goes on, and whoever asked asks again.
async fn lost(at: LostAt) {
    let written = undisturbed().await;
    let desk = Desk::new(true).await;
    let mut traps: Vec<_> = written.transactions.iter().map(|text| (text, desk.way.lose_commit(at, text))).collect();
    traps.extend(written.alone.iter().map(|text| (text, desk.way.lose(at, text))));
    assert_eq!(desk.everything().await, written.come_to);
    let missed: Vec<_> = traps.iter().filter(|(_, trap)| !trap.has_sprung()).map(|(text, _)| text).collect();
    assert!(missed.is_empty(), "they did not come by: {missed:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_found_by_whoever_asks_again() {
    lost(LostAt::Answer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_never_arrived_is_done_by_whoever_asks_again() {
    lost(LostAt::Request).await;
}
