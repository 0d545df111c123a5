//! Everything that can fail, in random order, under load: two processes serve buyers while MySQL, Redis and the processes
//! themselves are frozen, killed, filled, emptied, made read-only and meddled with. Each fault is told while it lasts, by a signal
//! of its own ([`signals`]), and after it the service is ready again unaided, and nothing says otherwise; at
//! the end everything that a client was told is held against the database.
//!
//! The suite runs it for a short while; `script/torture --seed N --minutes M` for as long as one likes. The seed decides the
//! order of the faults and what buyers do, not how the machine divides its time.

mod buyers;
mod faults;
mod signals;
mod ways;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use onrush::check;
use serde_json::json;
use uuid::Uuid;

use self::buyers::{Told, buy, take_part};
use self::faults::{Fault, Town};
use crate::seckill::Sale;
use crate::support::{Client, Harness};

/// When nothing else is said.
const SECONDS: u64 = 25;
const SEED: u64 = 1;
/// Buyers at once, of each kind.
const BUYERS: usize = 6;
/// Courses that orders are for, and units of the sale.
const COURSES: usize = 400;
const STOCK: i64 = 150;
/// What must come true once all is well again does so within this.
const PATIENCE: Duration = Duration::from_secs(90);

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers for the same seed on every machine.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    pub fn pause(&mut self, from_ms: usize, to_ms: usize) -> Duration {
        Duration::from_millis((from_ms + self.below(to_ms - from_ms)) as u64)
    }
}

/// Where the processes are now: a client tries one of them, and another when it gets no answer.
pub type Addresses = Arc<Mutex<Vec<Client>>>;

fn from_env(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_fails_in_whatever_order_nobody_is_told_what_is_not_so() {
    let (seed, seconds) = (from_env("TORTURE_SEED", SEED), from_env("TORTURE_SECONDS", SECONDS));
    println!("torture: seed {seed}, {seconds} s");
    let mut random = Random(seed);
    let mut town = Town::new().await;
    let sale = Sale::with(&town.h, json!({ "stock": STOCK, "pay_deadline_s": 5 })).await;
    let mut courses = Vec::new();
    for _ in 0..COURSES {
        courses.push(town.h.course(1000).await.no());
    }
    let (courses, told) = (Arc::new(courses), Arc::new(Told::default()));
    let stop = tokio_util::sync::CancellationToken::new();
    let mut clients = Vec::new();
    for n in 0..BUYERS as u64 {
        let (people, sellers) = (town.h.people(200).await, town.h.people(200).await);
        let random = Random(seed ^ (n + 1));
        clients.push(tokio::spawn(buy(
            town.addresses(),
            people,
            courses.clone(),
            random.clone(),
            told.clone(),
            stop.clone(),
        )));
        clients.push(tokio::spawn(take_part(
            town.addresses(),
            sellers,
            sale.submissions(),
            random,
            told.clone(),
            stop.clone(),
        )));
    }

    let (began, mut struck, mut next) = (Instant::now(), 0, Vec::new());
    while began.elapsed() < Duration::from_secs(seconds) || struck < 3 {
        let fault = match next.pop() {
            Some(fault) => fault,
            // Each once, before any comes again.
            None => {
                next = Fault::all_in_random_order(&mut random);
                continue;
            }
        };
        println!("torture: {:6.1} s  {fault:?}", began.elapsed().as_secs_f64());
        let told = town.strike(fault, &mut random, PATIENCE).await;
        let ended = began.elapsed().as_secs_f64();
        town.heals(fault, PATIENCE).await;
        println!("torture: {ended:6.1} s  told: {told:?}; well at {:.1} s", began.elapsed().as_secs_f64());
        struck += 1;
        tokio::time::sleep(random.pause(200, 1500)).await;
    }
    stop.cancel();
    for client in clients {
        tokio::time::timeout(PATIENCE, client).await.expect("a buyer gets an answer once all is well").unwrap();
    }
    println!("torture: {struck} faults; {}", told.summary());
    settles(&town.h).await;
    told.hold_against(&town.h).await;
}

/// Waits until nothing is owed any more and every invariant holds.
async fn settles(h: &Harness) {
    let began = Instant::now();
    loop {
        let findings = check::findings(&h.app, false).await.unwrap();
        let violated: Vec<_> = findings.iter().filter(|finding| !finding.violations.is_empty()).collect();
        if violated.is_empty() {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{violated:#?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// An id as orders have it.
pub fn uuid_of(no: &str) -> Uuid {
    Uuid::try_parse(no).unwrap()
}
