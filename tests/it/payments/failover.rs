//! Redis fails over to a replica that missed the last writes: it goes on with an older state of itself. What MySQL owes
//! is driven again, all of it, and what Redis believes unsold is not sold twice.

use std::path::Path;

use futures_util::future::join_all;

use super::*;
use crate::seckill::{Sale, assert_clean, people};
use crate::support::PrivateServers;
use crate::wallet::{balance, claimed, coupon, give_points};

/// Units of the sale, and how many were sold in what the replica missed.
const STOCK: usize = 30;
const MISSED: usize = 12;

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// A placing worker for as long as `work` takes, and nothing else of a service.
async fn with_worker(h: &Harness, work: impl Future<Output = ()>) {
    let mut service = h.another().await;
    service.start_workers();
    work.await;
    assert!(service.stop().await);
}

/// Orders a new course with a coupon and points; the order's number.
async fn order_with_discounts(h: &Harness, who: &Person) -> String {
    let (course, coupon) = (h.course(9900).await, claimed(h, who, coupon(h)).await);
    give_points(h, who, 100).await;
    let key = Uuid::now_v7().as_simple().to_string();
    let body = json!({ "course_ids": [course.no()], "user_coupon_id": coupon, "points": 100 });
    h.post_once("/orders", who, &key, body).await.expect(201).text_of("order_no")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_stale_replica_missed_is_driven_again_from_mysql() {
    let mut servers = PrivateServers::start().await;
    let settings = vec![("orders.pay_deadline_s", "5".to_owned()), ("orders.owed_grace_s", "1".to_owned())];
    let h = Harness::with(Options { system_clock: true, settings, servers: Some(servers.addresses()) }).await;
    let sale = Sale::with(&h, json!({ "stock": STOCK, "pay_deadline_s": 600 })).await;
    let buyers = people(&h, STOCK + 20).await;
    let (early, late) = buyers.split_at(MISSED);
    // Two units are sold while the replica still follows.
    let quitter = &late[0];
    with_worker(&h, async {
        for buyer in [&early[0], quitter] {
            assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
        }
    })
    .await;
    let given_up = sale.submit(&h, quitter).await.expect(202).text_of("id");
    let (files, kept) = (servers.dir().join("redis/appendonlydir"), servers.dir().join("replica"));
    copy(&files, &kept);

    // All of this happens, and the replica hears nothing of it. The process with the workers dies as well.
    with_worker(&h, async {
        let won = join_all(early.iter().map(|buyer| sale.take_part(&h, buyer))).await;
        assert!(won.iter().all(|answer| answer["code"] == 100), "{won:?}");
        // And one gives his up. That is longer ago than an ordinary pass looks back.
        let order = sale.take_part(&h, quitter).await["result"]["order_no"].as_str().unwrap().to_owned();
        h.post(&format!("/orders/{order}/cancel"), quitter, json!({})).await.expect(200);
        h.eventually(async || h.count("SELECT COUNT(gate_returned_at) FROM seckill_entries").await == 1).await;
        let earlier = "UPDATE seckill_entries SET gate_returned_at = gate_returned_at - INTERVAL 60 SECOND";
        sqlx::query(earlier).execute(&h.app.db).await.unwrap();
    })
    .await;
    let mut people_of = people(&h, 15).await.into_iter();
    let (payers, cancellers, forgetful): (Vec<_>, Vec<_>, Vec<_>) =
        (people_of.by_ref().take(5).collect(), people_of.by_ref().take(5).collect(), people_of.collect());
    for payer in &payers {
        let number = order(&h, payer, 9900).await;
        buyer(&h, &start(&h, payer, &number).await.trade, "action=pay").await.expect(200);
    }
    while deliver(&h).await > 0 {}
    for canceller in &cancellers {
        let number = order_with_discounts(&h, canceller).await;
        h.post(&format!("/orders/{number}/cancel"), canceller, json!({})).await.expect(200);
    }
    for forgetful in &forgetful {
        order_with_discounts(&h, forgetful).await;
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM orders WHERE status = 1 AND granted_at IS NULL").await, 5);
    assert_eq!(
        h.count("SELECT COUNT(*) FROM orders WHERE status = 2 AND kind = 'course' AND released_at IS NULL").await,
        5
    );

    let dir = servers.dir().to_owned();
    servers
        .change(move |servers| {
            servers.redis.kill()?;
            std::fs::remove_dir_all(dir.join("redis/appendonlydir"))?;
            std::fs::rename(dir.join("replica"), dir.join("redis/appendonlydir"))?;
            servers.redis.start()
        })
        .await;
    h.start_workers();
    h.eventually(async || h.count("SELECT COUNT(*) FROM orders WHERE status = 1 AND granted_at IS NULL").await == 0)
        .await;
    h.eventually(async || {
        h.count("SELECT COUNT(*) FROM orders WHERE kind = 'course' AND status IN (2, 3) AND released_at IS NOT NULL")
            .await
            == 10
    })
    .await;
    for person in cancellers.iter().chain(&forgetful) {
        assert_eq!(balance(&h, person).await, 100);
    }
    for payer in &payers {
        assert_eq!(h.get("/me/courses", payer).await.expect(200)["items"].as_array().unwrap().len(), 1);
    }
    // The replica's gate believes that all but one unit are there.
    let sold = async || h.count("SELECT COUNT(*) FROM seckill_entries WHERE live = 1").await;
    h.eventually(async || {
        join_all(late.iter().map(|buyer| sale.submit(&h, buyer))).await;
        sold().await == STOCK as i64
    })
    .await;
    assert_eq!(h.count("SELECT stock_left FROM seckill_activities").await, 0);
    // Who had won before keeps it, and is told so (when he asks twice: the first answer may be from memory).
    for buyer in early {
        h.eventually(async || sale.submit(&h, buyer).await.status == 202).await;
        assert_eq!(sale.take_part(&h, buyer).await["code"], 100);
    }
    assert_eq!(sold().await, STOCK as i64);
    // Who had given his up may try again: the replica's gate no longer names what he gave up.
    let again = sale.submit(&h, quitter).await;
    assert!(again.status == 409 || again.body["id"] != given_up, "{again:?}");
    h.eventually(async || {
        onrush::check::findings(&h.app, false).await.unwrap().iter().all(|finding| finding.violations.is_empty())
    })
    .await;
    assert_clean(&h).await;
}
