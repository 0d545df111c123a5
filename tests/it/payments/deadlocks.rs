//! Deadlocks that the server itself finds. That every statement bears one is tried in [`super::interrupted`].

use super::*;
use crate::seckill::assert_clean;

/// InnoDB rolls back whoever has changed fewer rows: with these, not the test.
const WEIGHT: &str = "INSERT INTO points_accounts (user_id, balance) WITH RECURSIVE n (n) AS \
    (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 200) SELECT LPAD(n, 16, '0'), 0 FROM n";

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_is_the_victim_of_a_deadlock_is_done_all_the_same() {
    let h = service().await;
    let alice = h.register().await;
    let no = order(&h, &alice, 500).await;
    let attempt = start(&h, &alice, &no).await;
    let mut other = h.app.db.begin().await.unwrap();
    sqlx::query(WEIGHT).execute(&mut *other).await.unwrap();
    // As a message does that settles the payment: its row, and then its entry in the index by status. Where the server
    // finds a started payment by that index (MariaDB does), closing it takes the entry before the row.
    let id = payments::PaymentId::from_uuid(attempt.payment_no.parse().unwrap());
    sqlx::query("SELECT id FROM payments WHERE id = ? FOR UPDATE").bind(id).execute(&mut *other).await.unwrap();
    let cancel = {
        let request = h.request(Method::POST, &format!("/orders/{no}/cancel"), &alice);
        tokio::spawn(send(request))
    };
    h.eventually(async || h.held_up(1).await).await;
    let moved =
        sqlx::query("UPDATE payments SET next_query_at = NULL WHERE id = ?").bind(id).execute(&mut *other).await;
    moved.expect("the cancel is the victim");
    other.rollback().await.unwrap();
    cancel.await.unwrap().expect(200);
    assert_eq!(status(&h, &alice, &no).await, "cancelled");
    assert_eq!(h.count("SELECT COUNT(*) FROM payments WHERE status = 'closed'").await, 1);
    release(&h).await;
    assert_clean(&h).await;
}
