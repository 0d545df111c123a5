//! Settlement under load: every notification several times, over many connections, half of them against the sweep.

#[path = "../../../bench/support/settlement.rs"]
mod load;

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::seckill::assert_clean;

/// Orders, unless the environment asks for another number (5,000 is the full size). Its name is none of a setting: the
/// service refuses settings that it does not know.
const ORDERS: usize = 500;
const ORDERS_VARIABLE: &str = "SETTLEMENT_ORDERS";

#[tokio::test(flavor = "multi_thread")]
async fn every_order_ends_once_under_a_load_of_copies_and_sweeps() {
    let orders = std::env::var(ORDERS_VARIABLE).map_or(ORDERS, |count| count.parse().unwrap());
    let h = service().await;
    let all = load::fill(&h.app.db, h.now(), orders).await;
    let over = AtomicBool::new(false);
    let sending = async {
        let sent = load::send(&h.base, &secret(), &h.app.clock, &all).await;
        over.store(true, Ordering::SeqCst);
        sent
    };
    let sweeping = async {
        let mut swept = 0;
        while !over.load(Ordering::SeqCst) {
            swept += payments::sweep_due(&h.app).await.unwrap();
        }
        swept
    };
    let (sent, swept) = tokio::join!(sending, sweeping);
    assert_eq!(sent.latencies.len(), load::COPIES * orders + sent.refused);
    let found = h.count("SELECT COUNT(*) FROM payment_notifications WHERE notify_id LIKE 'query:%'").await;
    let late = h.count("SELECT COUNT(*) FROM payment_notifications WHERE outcome = 'late'").await;
    println!(
        "{orders} orders told in {:?}: {swept} met a sweep, {found} were found paid by it, {late} were told too late, {} \
         answers were not yes",
        sent.took, sent.refused
    );
    assert!(found > 0 && late > 0, "the sweep was never first: {found}, {late}");
    // The rest is the workers': late money is decided and courses are given, a page at a time.
    h.start_workers();
    loop {
        let left = h.count(load::UNFINISHED).await;
        if left == 0 {
            break;
        }
        h.eventually(async || h.count(load::UNFINISHED).await < left).await;
    }
    assert_eq!(h.count(load::NOT_ONCE).await, 0);
    assert_eq!(h.count("SELECT COUNT(*) FROM user_courses").await, i64::try_from(orders).unwrap());
    assert_eq!(h.count("SELECT COUNT(*) FROM refunds").await, 0);
    assert_clean(&h).await;
}
