//! `onrush check`: what must always hold, proved on a live system. One line for each invariant, with the
//! offending ids; `--repair` mends I8.
//!
//! Each statement reads one instant, so a system at work is not a violation: what is merely on its way (a paid order
//! not yet granted) counts only once it is older than the recovery window.

pub mod lost;
pub mod owed;

use std::time::Duration;

use anyhow::Context;

use crate::app::App;
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::output::{OutputClosed, say};
use crate::seckill::{self, ActivityId};

/// Ids told per invariant; there may be more.
const MAX_IDS: u32 = 20;
/// Work owed is driven again after `orders.owed_grace_s`; after this many times that, it is a violation.
const WINDOW_GRACES: u64 = 8;
/// The gate of one activity is looked at for at most this long before its difference counts as unconfirmed.
const PATIENCE: Duration = Duration::from_secs(8);
/// Activities looked at.
const MAX_ACTIVITIES: u32 = 1000;

/// One invariant as found.
#[derive(Debug, Clone)]
pub struct Finding {
    /// `I1` … `I9`.
    pub name: &'static str,
    /// What must hold.
    pub rule: &'static str,
    /// What does not: empty when all is well.
    pub violations: Vec<String>,
}

/// Checks everything. Prints a line for each invariant; true when all hold.
pub async fn run(app: &App, repair: bool) -> anyhow::Result<bool> {
    let findings = findings(app, repair).await?;
    let clean = findings.iter().all(|finding| finding.violations.is_empty());
    match print(&findings) {
        // Whoever has read enough still gets the exit code.
        Err(error) if !error.is::<OutputClosed>() => Err(error),
        _ => Ok(clean),
    }
}

fn print(findings: &[Finding]) -> anyhow::Result<()> {
    for Finding { name, rule, violations } in findings {
        let verdict = if violations.is_empty() { "ok      " } else { "VIOLATED" };
        say(format!("{name} {verdict}   {rule}"))?;
        for violation in violations {
            say(format!("              {violation}"))?;
        }
    }
    Ok(())
}

/// Every invariant, as found.
pub async fn findings(app: &App, repair: bool) -> anyhow::Result<Vec<Finding>> {
    let owed_before = app.clock.now().minus(Duration::from_secs(app.config.orders.owed_grace_s * WINDOW_GRACES));
    let mut findings = Vec::new();
    for (name, rule, queries) in RULES {
        let mut violations = Vec::new();
        for (what, sql) in *queries {
            violations
                .extend(offenders(app, what, sql, owed_before).await.with_context(|| format!("checking {name}"))?);
        }
        findings.push(Finding { name, rule, violations });
    }
    let (owed, differences) = gates(app, repair).await?;
    if let Some(i3) = findings.iter_mut().find(|finding| finding.name == "I3") {
        i3.violations.extend(owed);
        i3.violations.extend(lost::in_queues(app).await);
    }
    findings.push(Finding {
        name: "I8",
        rule: "Redis stock = MySQL stock less what is admitted and not placed",
        violations: differences,
    });
    findings.sort_by_key(|finding| finding.name);
    Ok(findings)
}

/// A rule may read whole tables, and nobody waits for it at a page.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(300);

/// Runs one query: ids of what violates a rule. A `?` in it is the end of the recovery window.
async fn offenders(app: &App, what: &str, sql: &'static str, owed_before: At) -> anyhow::Result<Vec<String>> {
    let mut query = sqlx::query_scalar::<_, Id<()>>(sql);
    for _ in sql.matches('?') {
        query = query.bind(owed_before);
    }
    let mut conn = app.db.acquire_for(STATEMENT_TIMEOUT).await?;
    let ids = query.fetch_all(&mut *conn).await.with_context(|| format!("looking for {what}"))?;
    let told = ids.iter().take(MAX_IDS as usize).map(|id| format!("{what}: {id}")).collect();
    Ok(told)
}

type Rule = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Each query gives the ids of what violates the rule.
const RULES: &[Rule] = &[
    (
        "I1",
        "an activity's live orders fit its stock, and stock_left is what they leave",
        &[(
            "activity whose stock_left is not stock less live entries",
            "SELECT a.id FROM seckill_activities a WHERE a.stock_left <> a.stock - \
             (SELECT COUNT(*) FROM seckill_entries e WHERE e.activity_id = a.id AND e.live = 1) LIMIT 20",
        )],
    ),
    (
        "I2",
        "one live entry per activity and user, up to the activity's limit",
        &[
            (
                "user with two live entries in one activity",
                "SELECT user_id FROM seckill_entries WHERE live = 1 GROUP BY activity_id, user_id HAVING COUNT(*) > 1 LIMIT 20",
            ),
            (
                "user with more entries than the activity allows",
                "SELECT e.user_id FROM seckill_entries e JOIN seckill_activities a ON a.id = e.activity_id \
                 GROUP BY e.activity_id, e.user_id, a.per_user_limit HAVING COUNT(*) > a.per_user_limit LIMIT 20",
            ),
        ],
    ),
    (
        "I3",
        "every admitted submission reaches a final state",
        &[
            (
                "entry without its order",
                "SELECT e.id FROM seckill_entries e LEFT JOIN orders o ON o.id = e.order_id WHERE o.id IS NULL LIMIT 20",
            ),
            (
                "entry whose order is released while it is live",
                "SELECT e.id FROM seckill_entries e JOIN orders o ON o.id = e.order_id \
                 WHERE e.live = 1 AND o.status IN (2, 3) AND o.released_at IS NOT NULL LIMIT 20",
            ),
            (
                "released unit not back on sale in Redis for too long",
                "SELECT id FROM seckill_entries WHERE gate_returned_at IS NULL AND released_at IS NOT NULL AND released_at < ? LIMIT 20",
            ),
        ],
    ),
    (
        "I4",
        "a user's points are the sum of their ledger, and what an order spent comes back once",
        &[
            (
                "user whose points differ from the ledger",
                "SELECT p.user_id FROM points_accounts p LEFT JOIN points_ledger l ON l.user_id = p.user_id \
                 GROUP BY p.user_id, p.balance HAVING p.balance <> CAST(COALESCE(SUM(l.delta), 0) AS SIGNED) OR p.balance < 0 LIMIT 20",
            ),
            (
                "user who owes other points than refunds left owed and credits paid",
                "SELECT p.user_id FROM points_accounts p \
                 LEFT JOIN (SELECT o.user_id, SUM(r.points_owed) AS owed FROM order_refunds r JOIN orders o ON o.id = r.order_id \
                 WHERE r.points_owed > 0 GROUP BY o.user_id) r ON r.user_id = p.user_id \
                 LEFT JOIN (SELECT user_id, SUM(delta) AS paid FROM points_ledger WHERE reason = 'owed_paid' GROUP BY user_id) l \
                 ON l.user_id = p.user_id WHERE p.owed <> COALESCE(r.owed, 0) + COALESCE(l.paid, 0) LIMIT 20",
            ),
            (
                "user with a ledger and no account",
                "SELECT DISTINCT l.user_id FROM points_ledger l LEFT JOIN points_accounts p ON p.user_id = l.user_id \
                 WHERE p.user_id IS NULL LIMIT 20",
            ),
            (
                "refund of which other points came back than it says, or points of no course",
                "SELECT r.id FROM order_refunds r JOIN orders o ON o.id = r.order_id LEFT JOIN points_ledger l \
                 ON l.user_id = o.user_id AND l.reason = 'order_spend_back' AND l.ref_id = r.id WHERE r.points_returned > 0 \
                 AND (l.id IS NULL OR l.delta <> r.points_returned OR NOT EXISTS \
                 (SELECT 1 FROM order_items i WHERE i.order_id = r.order_id AND i.refund_id = r.id)) LIMIT 20",
            ),
            (
                "points that came back of a refund which says nothing of it",
                "SELECT l.ref_id FROM points_ledger l LEFT JOIN order_refunds r ON r.id = l.ref_id \
                 WHERE l.reason = 'order_spend_back' AND (r.id IS NULL OR r.points_returned = 0) LIMIT 20",
            ),
            (
                "refunded order of which other points came back than it had spent",
                "SELECT o.id FROM orders o LEFT JOIN (SELECT order_id, SUM(points_missing) AS kept FROM order_refunds \
                 GROUP BY order_id) r ON r.order_id = o.id LEFT JOIN points_ledger l ON l.user_id = o.user_id \
                 AND l.reason = 'order_refunded' AND l.ref_id = o.id WHERE o.status = 5 \
                 AND COALESCE(l.delta, 0) <> GREATEST(o.points_used - COALESCE(r.kept, 0), 0) LIMIT 20",
            ),
        ],
    ),
    (
        "I5",
        "a coupon is used if and only if one live order holds it",
        &[
            (
                "coupon held by an order that is not its, or holds nothing any more",
                "SELECT c.id FROM user_coupons c LEFT JOIN orders o ON o.id = c.order_id WHERE c.order_id IS NOT NULL \
                 AND (o.id IS NULL OR o.user_coupon_id IS NULL OR o.user_coupon_id <> c.id OR o.released_at IS NOT NULL) LIMIT 20",
            ),
            (
                "live order whose coupon is not held by it",
                "SELECT o.id FROM orders o LEFT JOIN user_coupons c ON c.id = o.user_coupon_id WHERE o.user_coupon_id IS NOT NULL \
                 AND o.status IN (0, 1, 4) AND (c.id IS NULL OR c.order_id IS NULL OR c.order_id <> o.id) LIMIT 20",
            ),
        ],
    ),
    (
        "I6",
        "every verified payment pays its order once and exactly, or is refunded",
        &[
            (
                "paid payment that is nobody's",
                "SELECT id FROM payments WHERE status = 'paid' AND (resolution IS NULL OR (resolution = 'owed' AND paid_at < ?)) LIMIT 20",
            ),
            (
                "payment that pays an order that is not paid, or not for its amount",
                "SELECT p.id FROM payments p LEFT JOIN orders o ON o.id = p.order_id WHERE p.resolution = 'order' \
                 AND (o.id IS NULL OR o.status NOT IN (1, 4, 5) OR o.payable_fen <> p.amount_fen OR p.status <> 'paid') LIMIT 20",
            ),
            (
                "order paid twice",
                "SELECT order_id FROM payments WHERE resolution = 'order' GROUP BY order_id HAVING COUNT(*) > 1 LIMIT 20",
            ),
            (
                "paid order without its payment",
                "SELECT o.id FROM orders o WHERE o.status IN (1, 4, 5) AND o.payable_fen > 0 AND NOT EXISTS \
                 (SELECT 1 FROM payments p WHERE p.order_id = o.id AND p.resolution = 'order') LIMIT 20",
            ),
            (
                "payment to be refunded without a refund",
                "SELECT p.id FROM payments p LEFT JOIN refunds r ON r.payment_id = p.id WHERE p.resolution = 'refund' \
                 AND (r.id IS NULL OR r.amount_fen > p.amount_fen) LIMIT 20",
            ),
            (
                "payment of which more goes back than was paid, or other than is set aside",
                "SELECT p.id FROM payments p LEFT JOIN (SELECT payment_id, CAST(SUM(amount_fen) AS SIGNED) AS owed_fen FROM refunds \
                 WHERE status <> 'replaced' GROUP BY payment_id) r ON r.payment_id = p.id WHERE r.owed_fen > p.amount_fen \
                 OR (p.resolution = 'order' AND p.refunded_fen <> COALESCE(r.owed_fen, 0)) LIMIT 20",
            ),
            (
                "refunded order whose money is not all back",
                "SELECT DISTINCT o.id FROM orders o JOIN payments p ON p.order_id = o.id AND p.resolution = 'order' \
                 LEFT JOIN refunds r ON r.payment_id = p.id AND r.status IN ('pending', 'failed') \
                 WHERE o.status = 5 AND (p.refunded_fen <> p.amount_fen OR r.id IS NOT NULL) LIMIT 20",
            ),
            (
                "order being refunded although its money has been back for too long",
                "SELECT o.id FROM orders o JOIN payments p ON p.order_id = o.id AND p.resolution = 'order' \
                 JOIN refunds r ON r.payment_id = p.id WHERE o.status = 4 GROUP BY o.id \
                 HAVING SUM(r.status IN ('pending', 'failed')) = 0 AND MAX(r.confirmed_at) < ? LIMIT 20",
            ),
            (
                "settled notification whose payment is not paid",
                "SELECT n.id FROM payment_notifications n LEFT JOIN payments p ON p.id = n.payment_id \
                 WHERE n.outcome IN ('settled', 'late') AND (p.id IS NULL OR p.status <> 'paid') LIMIT 20",
            ),
        ],
    ),
    (
        "I7",
        "a paid order has every course granted that was not refunded; a dead order holds nothing",
        &[
            (
                "paid order not granted for too long",
                "SELECT id FROM orders WHERE status = 1 AND granted_at IS NULL AND paid_at < ? LIMIT 20",
            ),
            (
                "granted order without one of its courses",
                "SELECT DISTINCT o.id FROM orders o JOIN order_items i ON i.order_id = o.id LEFT JOIN user_courses c \
                 ON c.user_id = o.user_id AND c.course_id = i.course_id \
                 WHERE o.status = 1 AND o.granted_at IS NOT NULL AND i.refund_id IS NULL AND c.user_id IS NULL LIMIT 20",
            ),
            (
                "order that still gives a course which a refund has taken back",
                "SELECT DISTINCT i.order_id FROM order_items i JOIN user_courses c ON c.order_id = i.order_id \
                 AND c.course_id = i.course_id WHERE i.refund_id IS NOT NULL LIMIT 20",
            ),
            (
                "refunded order of which a course was not taken back",
                "SELECT DISTINCT o.id FROM orders o JOIN order_items i ON i.order_id = o.id \
                 WHERE o.status IN (4, 5) AND i.refund_id IS NULL LIMIT 20",
            ),
            (
                "dead order not released for too long",
                "SELECT id FROM orders WHERE status IN (2, 3) AND released_at IS NULL AND closed_at < ? LIMIT 20",
            ),
            (
                "dead order that still holds points",
                "SELECT o.id FROM orders o JOIN points_ledger l ON l.user_id = o.user_id AND l.ref_id = o.id \
                 WHERE o.status IN (2, 3) AND o.released_at IS NOT NULL GROUP BY o.id HAVING SUM(l.delta) <> 0 LIMIT 20",
            ),
            (
                "dead order whose courses were granted",
                "SELECT DISTINCT o.id FROM orders o JOIN user_courses c ON c.order_id = o.id WHERE o.status IN (2, 3) LIMIT 20",
            ),
        ],
    ),
    (
        "I9",
        "no course stands in two paid orders of one buyer, unless what was paid for one of them is owed back",
        &[(
            "order for a course that another paid order of its buyer is for",
            "SELECT MAX(o.id) FROM orders o JOIN order_items i ON i.order_id = o.id WHERE o.status = 1 AND i.refund_id IS NULL \
             AND i.price_fen > 0 GROUP BY o.user_id, i.course_id HAVING COUNT(*) > 1 LIMIT 20",
        )],
    ),
];

/// (submissions owed for too long, gates that differ or cannot be read), over every activity whose keys are kept, those on
/// sale first. Each by itself: one that cannot be read is a finding, and the others are looked at.
async fn gates(app: &App, repair: bool) -> anyhow::Result<(Vec<String>, Vec<String>)> {
    let activities = seckill::kept(app, MAX_ACTIVITIES + 1).await.map_err(anyhow::Error::from)?;
    let (mut owed, mut differences, mut unreadable) = (Vec::new(), Vec::new(), 0);
    for (at, activity) in activities.iter().enumerate() {
        if at >= MAX_ACTIVITIES as usize {
            tracing::warn!(
                limit = MAX_ACTIVITIES,
                "more activities than are checked: those over first, or that begin last, are not"
            );
            break;
        }
        if unreadable >= MAX_IDS {
            differences
                .push(format!("activity {activity} and those after it: not looked at, since so many cannot be read"));
            break;
        }
        match gate(app, *activity, repair).await {
            Ok((waiting, difference)) => {
                owed.extend(waiting);
                differences.extend(difference);
            }
            Err(error) => {
                unreadable += 1;
                differences.push(format!("activity {activity}: its gate or queue cannot be read: {error:#}"));
            }
        }
    }
    Ok((owed, differences))
}

/// (submissions owed for too long or lost, how the gate differs) of one activity.
async fn gate(app: &App, activity: ActivityId, repair: bool) -> anyhow::Result<(Vec<String>, Option<String>)> {
    let window = Duration::from_secs(app.config.orders.owed_grace_s * WINDOW_GRACES);
    let queue = seckill::queue(activity);
    let depth = app.engine.depth(&queue).await?;
    let (waiting, oldest_s) = (depth.depth, depth.oldest_ms / 1000);
    let late = waiting > 0 && u128::from(depth.oldest_ms) > window.as_millis();
    let owed = late.then(|| format!("activity {activity}: {waiting} submissions wait, the oldest for {oldest_s} s"));
    let owed = owed.into_iter().chain(lost::in_queue(app, &queue).await?).collect();
    let found = seckill::confirmed_difference(app, activity, repair, PATIENCE).await.map_err(anyhow::Error::from)?;
    let difference = found.map(|found| {
        let (look, repaired) = (found.look, if found.made { " (repaired)" } else { "" });
        format!(
            "activity {activity}: Redis has {}, MySQL has {} left, {} of them returning, {} in flight{repaired}",
            look.gate, look.left, look.returning, look.in_flight
        )
    });
    Ok((owed, difference))
}
