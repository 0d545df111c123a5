//! Placing admitted submissions in MySQL, and giving their units back.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use super::model::{Activity, ActivityId, EntryId, Placement, undone};
use super::store::{self, Entry};
use crate::app::App;
use crate::auth::UserId;
use crate::error::{Error, Kind, Result, retrying};
use crate::orders::{self, Order, OrderId, SeckillOrder, Status};
use crate::platform::clock::At;
use crate::platform::db::{self, Conn};

/// What became of each submission, and the orders made for them.
type Placed = (Vec<Placement>, Vec<SeckillOrder>);

/// Places submissions of one activity, in the order given, in one transaction. What each became.
///
/// Safe to run again, and twice at once. An entry's id is its submission's task key, and the unique keys of the entries
/// say that nobody is placed twice. Batches of one activity are placed side by side, each taking its units with its last
/// statement ([`ahead`]); one that met another there, or finds too few units, goes [`in_turn`].
pub async fn place(app: &App, activity: ActivityId, submissions: &[(EntryId, UserId)]) -> Result<Vec<Placement>> {
    let (placements, created) = match ahead(app, activity, submissions).await {
        Ok(Some(placed)) => placed,
        Ok(None) => retrying(|| in_turn(app, activity, submissions)).await?,
        Err(error) if met_another(&error) => retrying(|| in_turn(app, activity, submissions)).await?,
        Err(error) => return Err(error),
    };
    let created = created.iter().map(|order| (order.id, order.expires_at, order.price.as_fen() == 0));
    orders::announce_created(app, created.collect());
    Ok(placements)
}

/// Whether a batch was in the way of another: a key that both wrote, or a lock that both wanted.
fn met_another(error: &Error) -> bool {
    let Error::Internal(error) = error else { return false };
    let found = error.chain().find_map(|cause| cause.downcast_ref::<sqlx::Error>());
    found.is_some_and(|error| db::violated(error).is_some() || db::trouble(error) == db::Trouble::Contention)
}

/// Places without holding up other batches: everything is read and written first, and the units are taken last, if
/// nothing that was read has changed since. `None` when it has, or when somebody would hear that nothing is left: only
/// [`in_turn`] says that.
async fn ahead(app: &App, activity: ActivityId, submissions: &[(EntryId, UserId)]) -> Result<Option<Placed>> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let Some(found) = store::find_activity(&mut tx, activity).await? else { return Ok(None) };
    let owners = owners(&mut tx, &found, submissions).await?;
    let entries = entries(&mut tx, activity, submissions).await?;
    let plan = plan(&found, submissions, &entries, &owners, &refunded(&mut tx, &entries).await?);
    if plan.iter().any(|step| step.placement == Placement::SoldOut) {
        return Ok(None);
    }
    let created = insert(app, &mut tx, &found, &plan, now).await?;
    if !created.is_empty() {
        let units = i64::try_from(created.len()).unwrap_or(i64::MAX);
        if !store::take_stock_since(&mut tx, activity, units, found.returns).await? {
            return Ok(None);
        }
    }
    tx.commit().await.context("committing")?;
    Ok(Some((plan.into_iter().map(|step| step.placement).collect(), created)))
}

/// Places under the lock of the activity's row: batches run one after the other, each sees what the one before
/// committed.
async fn in_turn(app: &App, activity: ActivityId, submissions: &[(EntryId, UserId)]) -> Result<Placed> {
    let now = app.clock.now();
    let mut tx = app.db.begin().await?;
    let Some(found) = store::lock_activity(&mut tx, activity).await? else {
        return Ok((vec![Placement::NoActivity; submissions.len()], Vec::new()));
    };
    let owners = owners(&mut tx, &found, submissions).await?;
    let entries = entries(&mut tx, activity, submissions).await?;
    let plan = plan(&found, submissions, &entries, &owners, &refunded(&mut tx, &entries).await?);
    let created = insert(app, &mut tx, &found, &plan, now).await?;
    if !created.is_empty() {
        let units = i64::try_from(created.len()).unwrap_or(i64::MAX);
        if !store::take_stock(&mut tx, activity, units).await? {
            return Err(Error::Internal(anyhow::anyhow!("the stock of {activity} changed under its lock")));
        }
    }
    tx.commit().await.context("committing")?;
    Ok((plan.into_iter().map(|step| step.placement).collect(), created))
}

/// Which of the submissions' users own the course.
async fn owners(conn: &mut Conn, activity: &Activity, submissions: &[(EntryId, UserId)]) -> Result<HashSet<UserId>> {
    let mut owners = HashSet::new();
    for chunk in users(submissions).chunks(db::CHUNK) {
        owners.extend(crate::catalogue::owners(conn, activity.course_id, chunk).await?);
    }
    Ok(owners)
}

/// The entries that the submissions' users have.
async fn entries(conn: &mut Conn, activity: ActivityId, submissions: &[(EntryId, UserId)]) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for chunk in users(submissions).chunks(db::CHUNK) {
        entries.extend(store::entries_of(conn, activity, chunk).await?);
    }
    Ok(entries)
}

/// The orders of these entries whose money went back, or is on its way. As a rule nobody has an entry yet.
async fn refunded(conn: &mut Conn, entries: &[Entry]) -> Result<HashSet<OrderId>> {
    let orders: Vec<OrderId> =
        entries.iter().filter(|entry| entry.live.is_some()).map(|entry| entry.order_id).collect();
    let statuses = orders::statuses(conn, &orders).await?;
    let refunded = |status: &Status| undone(*status) == Some(Kind::OrderRefunded);
    Ok(statuses.into_iter().filter(|(_, status)| refunded(status)).map(|(order, _)| order).collect())
}

fn users(submissions: &[(EntryId, UserId)]) -> Vec<UserId> {
    submissions.iter().map(|(_, user)| *user).collect()
}

/// Inserts the orders of a plan and their entries.
async fn insert(app: &App, conn: &mut Conn, activity: &Activity, plan: &[Step], now: At) -> Result<Vec<SeckillOrder>> {
    let points_earned = orders::points_earned(&app.config.orders, activity.price_fen)?;
    let created: Vec<SeckillOrder> =
        plan.iter().filter_map(|step| step.new_order(activity, points_earned, now)).collect();
    if created.is_empty() {
        return Ok(created);
    }
    orders::insert_seckill(conn, &created, now).await?;
    let rows: Vec<_> = plan.iter().filter_map(Step::new_entry).collect();
    for chunk in rows.chunks(db::CHUNK) {
        store::insert_entries(conn, activity.id, chunk, now).await?;
    }
    Ok(created)
}

/// What one submission becomes, and whether an order must be inserted for it.
struct Step {
    entry: EntryId,
    user: UserId,
    is_new: bool,
    placement: Placement,
}

impl Step {
    fn new_order(&self, activity: &Activity, points_earned: i64, now: At) -> Option<SeckillOrder> {
        let Placement::Won { order, .. } = self.placement else { return None };
        self.is_new.then(|| SeckillOrder {
            id: order,
            user: self.user,
            course: activity.course_id,
            title: activity.title.clone(),
            price: activity.price_fen,
            points_earned,
            expires_at: activity.pay_by(now),
        })
    }

    fn new_entry(&self) -> Option<(EntryId, UserId, OrderId)> {
        match self.placement {
            Placement::Won { order, .. } if self.is_new => Some((self.entry, self.user, order)),
            _ => None,
        }
    }
}

/// Decides each submission in turn. Pure, but for the new orders' ids.
fn plan(
    activity: &Activity,
    submissions: &[(EntryId, UserId)],
    entries: &[Entry],
    owners: &HashSet<UserId>,
    refunded: &HashSet<OrderId>,
) -> Vec<Step> {
    let by_id: HashMap<EntryId, &Entry> = entries.iter().map(|entry| (entry.id, entry)).collect();
    let mut live: HashMap<UserId, (EntryId, OrderId)> = HashMap::new();
    let mut tries: HashMap<UserId, i32> = HashMap::new();
    for entry in entries {
        *tries.entry(entry.user_id).or_default() += 1;
        if entry.live.is_some() {
            live.insert(entry.user_id, (entry.id, entry.order_id));
        }
    }
    let mut left = activity.stock_left;
    let mut decide = |entry: EntryId, user: UserId| {
        // A delivery that was placed before (its worker died after the commit) keeps what it got.
        if let Some(placed) = by_id.get(&entry) {
            return (false, Placement::Won { order: placed.order_id, surplus: None });
        }
        if let Some((holder, order)) = live.get(&user) {
            if refunded.contains(order) {
                return (false, Placement::Refunded);
            }
            return (false, Placement::Won { order: *order, surplus: (*holder != entry).then_some(*holder) });
        }
        if owners.contains(&user) {
            return (false, Placement::AlreadyOwned);
        }
        let tried = tries.entry(user).or_default();
        if *tried >= activity.per_user_limit {
            return (false, Placement::LimitReached);
        }
        if left <= 0 {
            return (false, Placement::SoldOut);
        }
        left -= 1;
        *tried += 1;
        let order = OrderId::new();
        live.insert(user, (entry, order));
        (true, Placement::Won { order, surplus: None })
    };
    submissions
        .iter()
        .map(|(entry, user)| {
            let (is_new, placement) = decide(*entry, *user);
            Step { entry: *entry, user: *user, is_new, placement }
        })
        .collect()
}

/// Gives the units of dead orders back, inside the transaction that releases the orders: entries no longer live, stock
/// up. Orders that hold no unit are passed over. (`orders::ReleasePart`)
pub fn give_back<'a>(conn: &'a mut Conn, dead: &'a [OrderId], now: At) -> BoxFuture<'a, Result<()>> {
    async move {
        if dead.is_empty() {
            return Ok(());
        }
        let mut by_activity: BTreeMap<ActivityId, Vec<EntryId>> = BTreeMap::new();
        for entry in store::live_entries_of_orders(conn, dead).await? {
            by_activity.entry(entry.activity_id).or_default().push(entry.id);
        }
        for (activity, entries) in by_activity {
            // The activity's row first, as in placing, so that the two never wait for each other.
            store::lock_activity(conn, activity).await?;
            let mut units = 0;
            for entry in entries {
                units += i64::from(store::release_entry(conn, entry, now).await?);
            }
            store::give_stock(conn, activity, units).await?;
        }
        Ok(())
    }
    .boxed()
}

/// Takes the unit of a dead order again, inside the transaction that re-opens it; false when it cannot be had. An
/// order that never held a unit is no obstacle. The gate then offers one unit more than there is, until reconciliation
/// takes it off; MySQL does not sell it. (`payments::RetakePart`)
pub fn retake<'a>(conn: &'a mut Conn, order: &'a Order, _now: At) -> BoxFuture<'a, Result<bool>> {
    async move {
        let Some(entry) = store::find_entry_by_order(conn, order.id).await? else { return Ok(true) };
        store::lock_activity(conn, entry.activity_id).await?;
        if !store::take_stock(conn, entry.activity_id, 1).await? {
            return Ok(false);
        }
        match store::revive_entry(conn, entry.id).await {
            Ok(revived) => Ok(revived),
            // The user has another live entry: the unique key says so.
            Err(error) if db::violated(&error).as_deref() == Some("uq_seckill_entries_live") => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::money::Money;

    fn activity(left: i64, limit: i32) -> Activity {
        let at = At::from_ms(0);
        Activity {
            id: ActivityId::new(),
            course_id: crate::catalogue::CourseId::new(),
            title: String::new(),
            price_fen: Money::fen(1),
            stock: 10,
            stock_left: left,
            returns: 0,
            per_user_limit: limit,
            pay_deadline_s: 60,
            starts_at: at,
            ends_at: at,
            closed_at: None,
            created_at: at,
        }
    }

    #[test]
    fn the_first_come_win_and_one_user_wins_once() {
        let (a, b, c) = (UserId::new(), UserId::new(), UserId::new());
        let submissions = [a, a, b, c].map(|user| (EntryId::new(), user));
        let steps = plan(&activity(2, 1), &submissions, &[], &HashSet::new(), &HashSet::new());
        let won: Vec<bool> = steps.iter().map(|s| s.is_new).collect();
        assert_eq!(won, [true, false, true, false]);
        assert!(
            matches!(steps[1].placement, Placement::Won { surplus: Some(holder), .. } if holder == submissions[0].0)
        );
        assert_eq!(steps[3].placement, Placement::SoldOut);
    }

    #[test]
    fn a_submission_placed_before_keeps_its_order_and_takes_no_unit() {
        let activity = activity(5, 1);
        let (entry, user, order) = (EntryId::new(), UserId::new(), OrderId::new());
        let placed = Entry { id: entry, activity_id: activity.id, user_id: user, order_id: order, live: Some(1) };
        let steps = plan(&activity, &[(entry, user)], &[placed], &HashSet::new(), &HashSet::new());
        assert!(!steps[0].is_new);
        assert_eq!(steps[0].placement, Placement::Won { order, surplus: None });
    }

    #[test]
    fn released_tries_count_and_owners_are_refused() {
        let activity = activity(5, 1);
        let user = UserId::new();
        let released =
            Entry { id: EntryId::new(), activity_id: activity.id, user_id: user, order_id: OrderId::new(), live: None };
        let steps = plan(&activity, &[(EntryId::new(), user)], &[released], &HashSet::new(), &HashSet::new());
        assert_eq!(steps[0].placement, Placement::LimitReached);
        let steps = plan(&activity, &[(EntryId::new(), user)], &[], &HashSet::from([user]), &HashSet::new());
        assert_eq!(steps[0].placement, Placement::AlreadyOwned);
    }

    #[test]
    fn who_won_and_was_refunded_wins_nothing_by_another_submission() {
        let activity = activity(5, 3);
        let (user, order) = (UserId::new(), OrderId::new());
        let held =
            Entry { id: EntryId::new(), activity_id: activity.id, user_id: user, order_id: order, live: Some(1) };
        let steps = plan(&activity, &[(EntryId::new(), user)], &[held], &HashSet::new(), &HashSet::from([order]));
        assert_eq!(steps[0].placement, Placement::Refunded);
    }
}
