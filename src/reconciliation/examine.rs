//! Numbers of one gateway, beside our books: a bounded handful at a time.
//!
//! Where the gateway's bill has money that our books do not, the gateway is asked, and what it says goes the one way that
//! all money goes ([`payments::ask_about_payment`], [`payments::ask_about_refund`]): a callback that was lost is found here. Only what is left after that
//! is a difference. What is known of the same numbers is looked at again with it: it stays, comes back or vanishes.

use crate::payments::{
    self, ASKED_AT_ONCE, BillSubject, BookEntry, Gateway, MoneyState, PaymentId, RefundId, SilentGateways,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::Context;
use futures_util::StreamExt;
use futures_util::stream;
use jiff::tz::TimeZone;
use uuid::Uuid;

use super::compare::{self, DifferenceFound, DifferenceKind, DifferenceStatus, Figures, Ours, Step};
use super::days;
use super::store::differences::{self, Facts, KnownDifference, Named};
use super::store::{self, Theirs, bills};
use crate::app::App;
use crate::error::{Error, Result, retrying};
use crate::platform::clock::At;
use crate::platform::day::Day;
use crate::platform::db::{self, Conn};
use crate::platform::id::Id;
use crate::platform::money::Money;

/// Longest number of a trade at a gateway that we keep.
const TRADE_NO_CHARS: usize = 64;

/// What came of looking.
#[derive(Debug, Default)]
pub(super) struct ExamineReport {
    /// Differences that are open now and were not.
    pub opened: BTreeMap<DifferenceKind, u64>,
    /// Open differences that came to fit.
    pub vanished: BTreeMap<DifferenceKind, u64>,
}

impl ExamineReport {
    /// Adds what came of another look.
    pub fn add(&mut self, other: Self) {
        for (mine, others) in [(&mut self.opened, other.opened), (&mut self.vanished, other.vanished)] {
            for (kind, count) in others {
                *mine.entry(kind).or_default() += count;
            }
        }
    }
}

/// Looks at numbers of one gateway.
pub(super) struct Examiner<'a> {
    app: &'a App,
    gateway: Gateway,
    /// Whose midnight the days of its bills have.
    zone: TimeZone,
    /// What was learned about whether it answers.
    answers: SilentGateways,
}

/// A number with all that is known of it.
struct Case<'a> {
    number: &'a str,
    theirs: Option<&'a Theirs>,
    ours: Option<&'a BookEntry>,
    found: Vec<DifferenceFound>,
    day: Day,
    /// Our payment.
    payment_no: String,
}

impl Case<'_> {
    fn facts(&self) -> Facts<'_> {
        Facts {
            day: self.day,
            payment_no: &self.payment_no,
            merchant_no: self.theirs.map_or("", |theirs| &theirs.merchant_no),
            figures: Figures {
                theirs: self.theirs.map(|theirs| theirs.amount),
                ours: self.ours.map(|entry| entry.amount),
            },
            ours_status: self.ours.map(|entry| entry.status.as_str()),
        }
    }
}

impl<'a> Examiner<'a> {
    pub fn new(app: &'a App, gateway: Gateway) -> Result<Self> {
        Ok(Self { app, gateway, zone: payments::bill_zone(app, gateway)?, answers: SilentGateways::default() })
    }

    /// Whose bills.
    pub fn gateway(&self) -> Gateway {
        self.gateway
    }

    /// Lays numbers beside our books, at most [`db::CHUNK`], and writes down what does not fit.
    pub async fn look(&self, what: BillSubject, numbers: &[String]) -> Result<ExamineReport> {
        if numbers.is_empty() {
            return Ok(ExamineReport::default());
        }
        let mut conn = self.app.db.acquire().await?;
        let theirs = store::theirs(&mut conn, self.gateway, what, numbers).await.context("reading lines of bills")?;
        let ids: Vec<Uuid> = numbers.iter().filter_map(|number| uuid_of(number)).collect();
        let mut ours = payments::book_entries(&mut conn, self.gateway, what, &ids).await?;
        let to_ask: Vec<Uuid> = ours
            .iter()
            .filter(|(number, entry)| {
                // Lines that come to nothing are money that did not move, or that is gone again: to settle it would be wrong.
                entry.state != MoneyState::Moved
                    && theirs.get(*number).is_some_and(|theirs| theirs.amount > Money::ZERO)
            })
            .map(|(_, entry)| entry.id)
            .collect();
        if !to_ask.is_empty() {
            drop(conn);
            stream::iter(to_ask).for_each_concurrent(ASKED_AT_ONCE, |id| self.ask(what, id)).await;
            conn = self.app.db.acquire().await?;
            ours = payments::book_entries(&mut conn, self.gateway, what, &ids).await?;
        }
        let there = self.days_there(&mut conn, &theirs, &ours).await?;
        let payments = self.payments_of(&mut conn, &theirs, &ours).await?;
        drop(conn);
        let now = self.app.clock.now();
        let mut cases: Vec<Case<'_>> =
            numbers.iter().map(|number| self.case(number, theirs.get(number), ours.get(number), &there, now)).collect();
        // Of a number that is ours, our books say whose it is, whatever the line has.
        for case in cases.iter_mut().filter(|case| case.ours.is_none()) {
            if let Some(payment) = case.theirs.and_then(|theirs| payments.get(&theirs.merchant_no)) {
                case.payment_no = payment.to_string();
            }
        }
        retrying(|| self.write(what, numbers, &cases)).await
    }

    /// The believed days on which lines that are missing could be.
    async fn days_there(
        &self,
        conn: &mut Conn,
        theirs: &HashMap<String, Theirs>,
        ours: &HashMap<String, BookEntry>,
    ) -> Result<BTreeSet<Day>> {
        let missing = ours.iter().filter(|(number, _)| !theirs.contains_key(*number)).map(|(_, entry)| entry);
        let spans = missing.filter_map(|entry| Some(days::span(entry.started_at, entry.heard_at?, &self.zone)));
        let Some(first) = spans.map(|(first, _)| first).min() else { return Ok(BTreeSet::new()) };
        let there = bills::days_since(conn, self.gateway, first).await.context("reading the days of bills")?;
        Ok(there.into_iter().collect())
    }

    /// Our payments that lines name whose own numbers are not ours: by our number, or by the gateway's of the trade.
    async fn payments_of(
        &self,
        conn: &mut Conn,
        theirs: &HashMap<String, Theirs>,
        ours: &HashMap<String, BookEntry>,
    ) -> Result<HashMap<String, PaymentId>> {
        let unknown = theirs.values().filter(|line| !ours.contains_key(&line.number)).map(|line| &*line.merchant_no);
        let (ids, trades): (Vec<&str>, Vec<&str>) = unknown
            .filter(|number| (1..=TRADE_NO_CHARS).contains(&number.len()) && number.is_ascii())
            .partition(|number| uuid_of(number).is_some());
        let ids: Vec<Uuid> = ids.into_iter().filter_map(uuid_of).collect();
        let named = payments::book_entries(conn, self.gateway, BillSubject::Payment, &ids).await?;
        let mut all = payments::payments_of_trades(conn, self.gateway, &trades).await?;
        all.extend(named.into_iter().map(|(number, entry)| (number, entry.payment)));
        Ok(all)
    }

    fn case<'n>(
        &self,
        number: &'n str,
        theirs: Option<&'n Theirs>,
        ours: Option<&'n BookEntry>,
        there: &BTreeSet<Day>,
        now: At,
    ) -> Case<'n> {
        let is_sure = |entry: &BookEntry| {
            let bills_there = |heard| days::are_there(days::span(entry.started_at, heard, &self.zone), there);
            let moved = entry.heard_at.filter(|_| entry.state == MoneyState::Moved);
            moved.is_some_and(bills_there) || days::has_waited(waits_since(entry), now)
        };
        let side = ours.map(|entry| Ours { amount: entry.amount, state: entry.state, is_sure: is_sure(entry) });
        let heard = || Day::of(ours.and_then(|entry| entry.heard_at).unwrap_or(now), &self.zone);
        Case {
            number,
            theirs,
            ours,
            found: compare::compare(theirs.map(|theirs| theirs.amount), side.as_ref()),
            day: theirs.map_or_else(heard, |theirs| theirs.day),
            payment_no: ours.map(|entry| entry.payment.to_string()).unwrap_or_default(),
        }
    }

    /// Asks the gateway about money that its bill has and our books have not. What it says is acted on; what it does not
    /// say now, it may the next time.
    async fn ask(&self, what: BillSubject, id: Uuid) {
        if self.answers.is_silent(self.gateway) || !payments::gateway_is_on(self.app, self.gateway) {
            return;
        }
        let asked = match what {
            BillSubject::Payment => payments::ask_about_payment(self.app, PaymentId::from_uuid(id)).await,
            BillSubject::Refund => payments::ask_about_refund(self.app, RefundId::from_uuid(id)).await,
        };
        self.answers.heard(self.gateway, asked.is_ok());
        if let Err(error) = asked {
            tracing::warn!(
                gateway = self.gateway.as_str(),
                what = what.as_str(),
                number = %id.as_simple(),
                %error,
                "what a bill has and our books have not could not be asked about"
            );
        }
    }

    async fn write(&self, what: BillSubject, numbers: &[String], cases: &[Case<'_>]) -> Result<ExamineReport> {
        let now = self.app.clock.now();
        let mut told = ExamineReport::default();
        let mut tx = self.app.db.begin().await?;
        let known = differences::lock(&mut tx, self.gateway, what, numbers).await.context("locking differences")?;
        let mut by_number: HashMap<&str, Vec<&KnownDifference>> = HashMap::new();
        for difference in &known {
            by_number.entry(&difference.number).or_default().push(difference);
        }
        for case in cases {
            let known = by_number.remove(case.number).unwrap_or_default();
            for difference in &known {
                again(&mut tx, case, difference, &mut told, now).await?;
            }
            let is_new = |finding: &&DifferenceFound| !known.iter().any(|difference| difference.kind == finding.kind);
            for finding in case.found.iter().filter(is_new) {
                let named = Named { gateway: self.gateway, what, number: case.number, kind: finding.kind };
                insert(&mut tx, &named, *finding, case, &mut told, now).await?;
            }
        }
        tx.commit().await.context("committing")?;
        count(self.gateway, &told);
        Ok(told)
    }
}

/// From when on it is waited for what may come to fit by itself.
fn waits_since(entry: &BookEntry) -> At {
    entry.heard_at.filter(|_| entry.state == MoneyState::Moved).unwrap_or(entry.started_at)
}

/// Until when a difference that waits can wait at most; `None`: our books have the number no more.
pub(super) async fn waits_until(
    conn: &mut Conn,
    gateway: Gateway,
    what: BillSubject,
    number: &str,
) -> Result<Option<At>> {
    let ids: Vec<Uuid> = uuid_of(number).into_iter().collect();
    let ours = payments::book_entries(conn, gateway, what, &ids).await?;
    Ok(ours.get(number).map(|entry| days::waits_until(waits_since(entry))))
}

/// What becomes of a known difference.
async fn again(
    conn: &mut Conn,
    case: &Case<'_>,
    known: &KnownDifference,
    told: &mut ExamineReport,
    now: At,
) -> Result<()> {
    let (found, facts) = (case.found.iter().find(|finding| finding.kind == known.kind).copied(), case.facts());
    match compare::step(known.status, known.figures(), found, facts.figures) {
        Step::Stay => {
            differences::refresh(conn, known.id, &facts, now).await.context("noting a difference")?;
        }
        Step::Find(status) => {
            differences::find(conn, known.id, status, &facts, now).await.context("opening a difference")?;
            if status == DifferenceStatus::Open {
                *told.opened.entry(known.kind).or_default() += 1;
            }
        }
        Step::Vanish => {
            differences::vanish(conn, known.id, now).await.context("closing a difference")?;
            // What waited was told to nobody.
            if known.status == DifferenceStatus::Open {
                *told.vanished.entry(known.kind).or_default() += 1;
            }
        }
    }
    Ok(())
}

async fn insert(
    conn: &mut Conn,
    named: &Named<'_>,
    finding: DifferenceFound,
    case: &Case<'_>,
    told: &mut ExamineReport,
    now: At,
) -> Result<()> {
    let status = compare::first(finding);
    match differences::insert(conn, named, status, &case.facts(), now).await {
        Ok(()) if status == DifferenceStatus::Open => *told.opened.entry(named.kind).or_default() += 1,
        Ok(()) => {}
        // Another process found it in this moment.
        Err(error) if db::violated(&error).as_deref() == Some("uq_payment_differences_number") => {}
        Err(error) => return Err(Error::Internal(anyhow::Error::new(error).context("writing down a difference"))),
    }
    Ok(())
}

fn count(gateway: Gateway, told: &ExamineReport) {
    for (outcome, kinds) in [("opened", &told.opened), ("vanished", &told.vanished)] {
        for (kind, count) in kinds {
            metrics::counter!("onrush_payment_differences_total",
                "gateway" => gateway.as_str(), "kind" => kind.as_str(), "outcome" => outcome)
            .increment(*count);
        }
    }
}

/// A number that may be ours.
fn uuid_of(number: &str) -> Option<Uuid> {
    number.parse::<Id<()>>().ok().map(Id::uuid)
}
