//! Activities, submissions and what can become of them. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use crate::auth::UserId;
use crate::engine::Task;
use crate::error::{Error, Kind, refuse};
use crate::orders::{OrderId, Status};
use crate::platform::clock::At;
use crate::platform::id::Id;
use crate::platform::lang::Lang;
use crate::platform::money::Money;
use crate::platform::text::Text;
use crate::texts;

/// Marks the ids of activities.
pub struct ActivityMark;
/// An activity's id.
pub type ActivityId = Id<ActivityMark>;
/// Marks the ids of entries.
pub struct EntryMark;
/// An entry's id: the key of the submission's task.
pub type EntryId = Id<EntryMark>;

/// The queue of submissions; each activity is a partition of it.
pub const QUEUE: &str = "seckill";

/// A seckill as MySQL has it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Activity {
    /// Its id.
    pub id: ActivityId,
    /// What is sold.
    pub course_id: crate::catalogue::CourseId,
    /// Its title.
    #[sqlx(try_from = "Text")]
    pub title: String,
    /// The price of one unit.
    pub price_fen: Money,
    /// Units in all.
    pub stock: i64,
    /// Units not held by a live entry.
    pub stock_left: i64,
    /// Grows when units come back.
    pub returns: u32,
    /// How often one user may be given a unit, those given back included.
    pub per_user_limit: i32,
    /// Seconds to pay an order of it.
    pub pay_deadline_s: i32,
    /// When the sale begins.
    pub starts_at: At,
    /// When it ends.
    pub ends_at: At,
    /// When it was closed early.
    pub closed_at: Option<At>,
    /// When it was made.
    pub created_at: At,
}

impl Activity {
    /// Whether `other` asked for the same activity; its stock may have been changed since.
    pub fn is_as_made(&self, other: &Self) -> bool {
        (self.id, self.course_id, &self.title, self.price_fen, self.per_user_limit)
            == (other.id, other.course_id, &other.title, other.price_fen, other.per_user_limit)
            && (self.pay_deadline_s, self.starts_at, self.ends_at)
                == (other.pay_deadline_s, other.starts_at, other.ends_at)
    }
}

/// Where an activity is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Before its start.
    Upcoming,
    /// On sale.
    Open,
    /// Past its end, or closed early.
    Ended,
}

impl Activity {
    /// Where it is in its life at `now`.
    pub fn phase(&self, now: At) -> Phase {
        if self.closed_at.is_some() || now >= self.ends_at {
            Phase::Ended
        } else if now < self.starts_at {
            Phase::Upcoming
        } else {
            Phase::Open
        }
    }

    /// The time by which an order made at `now` must be paid.
    pub fn pay_by(&self, now: At) -> At {
        now.plus(Duration::from_secs(u64::try_from(self.pay_deadline_s).unwrap_or(0)))
    }
}

/// The task that places an admitted submission. Its queue's partition names the activity, its key the entry.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct PlaceSubmission {
    /// Whose submission.
    pub user: UserId,
}

/// Of the default priority for ever: the gate counts what is admitted in the stream of that one.
impl Task for PlaceSubmission {
    const NAME: &'static str = "seckill.place";
    const QUEUE: &'static str = QUEUE;
    // Its buyer polls.
    const KEEP_RESULT: Option<Duration> = None;
}

/// A submission that has an order.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    /// In which sale.
    pub activity: ActivityId,
    /// Whose.
    pub user: UserId,
    /// Which.
    pub order: OrderId,
    /// Its unit is on sale again: it holds nobody's place any more.
    pub returned: bool,
    /// Where the order is.
    pub status: Status,
}

/// What a user's place in the gate holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Nothing: it only counts the user's tries.
    Nothing,
    /// A unit, for this submission.
    Entry(EntryId),
    /// The course, by whatever order: they are refused without a unit being taken.
    Owned,
    /// A unit whose order was refunded. It is not sold again, and the user has had it.
    Refunded,
}

/// As the gate's scripts read it.
impl std::fmt::Display for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => Ok(()),
            Self::Entry(entry) => entry.fmt(f),
            Self::Owned => f.write_str("owned"),
            Self::Refunded => f.write_str("refunded"),
        }
    }
}

impl From<Option<EntryId>> for Held {
    fn from(entry: Option<EntryId>) -> Self {
        entry.map_or(Self::Nothing, Self::Entry)
    }
}

/// What the gate says to a submission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A unit is reserved; the task's key.
    Admitted(EntryId),
    /// The user is in already; the key of that task.
    InAlready(EntryId),
    /// The user is in already, by a task that Redis has forgotten.
    Lost(EntryId),
    /// Too early.
    NotStarted(At),
    /// Too late.
    Ended,
    /// Nothing left.
    SoldOut,
    /// The user has had as many tries as the activity allows.
    LimitReached(i64),
    /// The user has the course.
    Owned,
    /// The order of the user's unit was refunded.
    Refunded,
    /// Redis knows no such gate.
    NoGate,
}

impl Admission {
    /// The task's key, or the refusal.
    pub fn into_entry(self, now: At) -> Result<EntryId, Error> {
        Err(match self {
            Self::Admitted(id) | Self::InAlready(id) | Self::Lost(id) => return Ok(id),
            Self::NotStarted(starts) => {
                let refusal = refuse(Kind::NotStarted, format!("the sale starts at {starts}"));
                refusal.retry_after(starts.retry_after_s(now)).with("starts_at", starts).into()
            }
            Self::Ended => Kind::Ended.into(),
            Self::SoldOut => refuse(Kind::SoldOut, "no unit is left; one may come back").into(),
            Self::LimitReached(limit) => refuse(Kind::LimitReached, format!("this sale allows {limit} tries")).into(),
            Self::Owned => Kind::AlreadyOwned.into(),
            Self::Refunded => refuse(Kind::OrderRefunded, "the order of this sale was refunded").into(),
            Self::NoGate => refuse(Kind::Unavailable, "the sale is being prepared").retry_after(1).into(),
        })
    }
}

/// What became of an admitted submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It has an order.
    Won {
        /// The order.
        order: OrderId,
        /// Another submission of the user holds the order: the unit reserved now goes back, and the user's place in
        /// the gate is that one's.
        surplus: Option<EntryId>,
    },
    /// MySQL has no unit left: Redis had sold more than there was.
    SoldOut,
    /// The user has the course.
    AlreadyOwned,
    /// The order of a unit that the user won before was refunded.
    Refunded,
    /// The user's tries are used up.
    LimitReached,
    /// The activity is gone.
    NoActivity,
}

impl Placement {
    /// As its record has it. The poller hears it in their own language.
    pub fn result(&self) -> Value {
        let lost = |kind: Kind| json!({ "error": kind.name(), "message": texts::refusal(kind, Lang::default()) });
        match self {
            Self::Won { order, .. } => json!({ "order_no": order }),
            Self::SoldOut => lost(Kind::SoldOut),
            Self::AlreadyOwned => lost(Kind::AlreadyOwned),
            Self::Refunded => lost(Kind::OrderRefunded),
            Self::LimitReached => lost(Kind::LimitReached),
            Self::NoActivity => lost(Kind::NotFound),
        }
    }
}

/// Why an order that was won is not worth going to any more; `None` while it is.
pub fn undone(status: Status) -> Option<Kind> {
    match status {
        Status::Unpaid | Status::Paid => None,
        Status::TimedOut => Some(Kind::OrderExpired),
        Status::Cancelled => Some(Kind::OrderCancelled),
        Status::Refunding | Status::Refunded => Some(Kind::OrderRefunded),
    }
}

/// How the gate's stock differs from what it must be.
///
/// With L units left in MySQL, P released there and not yet returned to the gate, and F admitted and not yet
/// acknowledged (of which some may be placed already), the gate must hold between L − P − F and L − P.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// The gate's stock.
    pub gate: i64,
    /// Tasks admitted so far: tells whether two looks saw the same.
    pub admitted: i64,
    /// F.
    pub in_flight: i64,
    /// L.
    pub left: i64,
    /// P.
    pub returning: i64,
}

impl Look {
    /// The change that mends it: negative when the gate would sell too many, positive when too few, 0 when right.
    pub fn correction(&self) -> i64 {
        let most = (self.left - self.returning).max(0);
        let least = (most - self.in_flight).max(0);
        most.min(self.gate) - self.gate + (least - self.gate).max(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_correction_brings_the_gate_into_its_bounds(gate in 0i64..100, in_flight in 0i64..50, left in 0i64..100, returning in 0i64..20) {
            let look = Look { gate, admitted: 0, in_flight, left, returning };
            let mended = Look { gate: gate + look.correction(), ..look };
            prop_assert_eq!(mended.correction(), 0);
            prop_assert!(mended.gate <= (left - returning).max(0));
            prop_assert!(mended.gate >= (left - returning - in_flight).max(0).min(mended.gate));
        }
    }

    #[test]
    fn what_is_in_flight_may_or_may_not_be_placed() {
        let look = |gate| Look { gate, admitted: 0, in_flight: 3, left: 10, returning: 1 };
        assert_eq!(look(10).correction(), -1);
        assert_eq!([9, 8, 7, 6].map(|gate| look(gate).correction()), [0, 0, 0, 0]);
        assert_eq!(look(4).correction(), 2);
    }
}
