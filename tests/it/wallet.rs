//! Coupons and points as their owner sees them.

use std::time::Duration;

use futures_util::future::join_all;
use onrush::auth::UserId;
use onrush::wallet::{self, Credit, Reason};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Answer, Harness, Options, Person};

/// A service whose tokens outlive what its tests wait for.
pub async fn with_long_tokens() -> Harness {
    let settings = vec![("auth.access_token_s", "86400".to_owned())];
    Harness::with(Options { settings, ..Options::default() }).await
}

/// A coupon anybody may claim from now on for an hour.
pub fn coupon(h: &Harness) -> Value {
    let until = h.now().plus(Duration::from_secs(3600));
    json!({
        "title": "十元券", "kind": "amount", "amount_fen": 1000, "quantity": 1000,
        "valid_from": h.now().to_string(), "valid_until": until.to_string(),
    })
}

/// `base` with these members changed; null takes one away.
pub fn with(mut base: Value, changes: Value) -> Value {
    let Value::Object(changes) = changes else { panic!("changes are an object") };
    for (name, value) in changes {
        if value.is_null() {
            base.as_object_mut().unwrap().remove(&name);
        } else {
            base[name] = value;
        }
    }
    base
}

/// Creates a coupon and returns its id.
pub async fn create(h: &Harness, coupon: Value) -> String {
    let key = Uuid::now_v7().to_string();
    h.post_once("/admin/coupons", &h.admin().await, &key, coupon).await.expect(201).text_of("id")
}

/// Creates a coupon, claims it for `person` and returns the id it has in the wallet.
pub async fn claimed(h: &Harness, person: &Person, coupon: Value) -> String {
    let id = create(h, coupon).await;
    h.post(&format!("/coupons/{id}/claim"), person, json!({})).await.expect(201).text_of("id")
}

/// Gives points away.
pub async fn give_points(h: &Harness, person: &Person, points: i64) {
    let mut tx = h.app.db.begin().await.unwrap();
    let user = UserId::from_uuid(person.id);
    let credit = Credit { user, points, reason: Reason::Gift, reference: Uuid::now_v7() };
    wallet::give_points(&mut tx, &[credit], h.now()).await.unwrap();
    tx.commit().await.unwrap();
}

/// The person's points, as the API tells them.
pub async fn balance(h: &Harness, person: &Person) -> i64 {
    h.get("/me/points", person).await.expect(200)["balance"].as_i64().unwrap()
}

/// Every balance is the sum of its ledger (I4).
pub async fn assert_ledger_adds_up(h: &Harness) {
    let off = h
        .count(
            "SELECT COUNT(*) FROM (
                SELECT user_id, SUM(n) AS off FROM (
                    SELECT user_id, balance AS n FROM points_accounts
                    UNION ALL SELECT user_id, -delta FROM points_ledger) AS both_sides
                GROUP BY user_id HAVING off <> 0) AS differing",
        )
        .await;
    assert_eq!(off, 0, "balances that are not the sum of their ledger");
}

async fn claim(h: &Harness, person: &Person, coupon: &str) -> Answer {
    h.post(&format!("/coupons/{coupon}/claim"), person, json!({})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_is_claimed_once_and_a_repeat_answers_the_first_claim() {
    let h = with_long_tokens().await;
    let (alice, id) = (h.register().await, create(&h, coupon(&h)).await);
    let first = claim(&h, &alice, &id).await.expect(201);
    assert_eq!(
        (&first["coupon_id"], &first["state"], &first["amount_fen"]),
        (&json!(id), &json!("free"), &json!(1000))
    );
    assert_eq!(claim(&h, &alice, &id).await.expect(200).body, first.body);
    assert_eq!(h.count("SELECT quantity - quantity_left FROM coupons").await, 1);
    // also when it has expired meanwhile
    h.advance(Duration::from_secs(3600));
    assert_eq!(claim(&h, &alice, &id).await.expect(200)["state"], "expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_claiming_many_times_at_once_gets_one_coupon() {
    let h = Harness::new().await;
    let (alice, id) = (h.register().await, create(&h, coupon(&h)).await);
    let answers = join_all((0..20).map(|_| claim(&h, &alice, &id))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 1);
    assert!(answers.iter().all(|a| [200, 201].contains(&a.status) && a.body == answers[0].body));
    assert_eq!(h.count("SELECT quantity - quantity_left FROM coupons").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_person_claiming_the_last_coupon_many_times_at_once_gets_it_each_time() {
    let h = Harness::new().await;
    let alice = h.register().await;
    // Several times: the claims must meet between their first look and the coupon's row.
    for _ in 0..5 {
        let id = create(&h, with(coupon(&h), json!({"quantity": 1}))).await;
        let answers = join_all((0..20).map(|_| claim(&h, &alice, &id))).await;
        assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 1);
        for answer in &answers {
            assert!([200, 201].contains(&answer.status) && answer.body == answers[0].body, "{answer:?}");
        }
        claim(&h, &h.register().await, &id).await.problem(409, "coupon_exhausted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_coupons_are_claimed_than_there_are() {
    let h = Harness::new().await;
    let (people, id) = (h.people(20).await, create(&h, with(coupon(&h), json!({"quantity": 7}))).await);
    let answers = join_all(people.iter().map(|person| claim(&h, person, &id))).await;
    assert_eq!(answers.iter().filter(|a| a.status == 201).count(), 7);
    for refused in answers.into_iter().filter(|a| a.status != 201) {
        refused.problem(409, "coupon_exhausted");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM user_coupons").await, 7);
    assert_eq!(h.count("SELECT quantity_left FROM coupons").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_of_nothing_or_of_something_past_is_refused() {
    let h = with_long_tokens().await;
    let (alice, id) = (h.register().await, create(&h, coupon(&h)).await);
    claim(&h, &alice, &Uuid::now_v7().as_simple().to_string()).await.problem(404, "not_found");
    claim(&h, &alice, "not-an-id").await.problem(422, "validation_failed");
    h.post(&format!("/coupons/{id}/claim"), (), json!({})).await.problem(401, "unauthenticated");
    h.advance(Duration::from_secs(3600));
    claim(&h, &alice, &id).await.problem(409, "coupon_unusable");
    assert_eq!(h.count("SELECT COUNT(*) FROM user_coupons").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn coupons_are_listed_newest_first_in_pages() {
    let h = Harness::new().await;
    let (alice, bob) = (h.register().await, h.register().await);
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(claimed(&h, &alice, coupon(&h)).await);
    }
    claimed(&h, &bob, coupon(&h)).await;
    let first = h.get("/me/coupons?limit=2", &alice).await.expect(200);
    let cursor = first.text_of("next_cursor");
    let second = h.get(&format!("/me/coupons?limit=2&cursor={cursor}"), &alice).await.expect(200);
    assert_eq!(second["next_cursor"], Value::Null);
    let all = first["items"].as_array().unwrap().iter().chain(second["items"].as_array().unwrap());
    let told: Vec<&str> = all.map(|item| item["id"].as_str().unwrap()).collect();
    ids.reverse();
    assert_eq!(told, ids);
    for bad in ["limit=0", "limit=101", "limit=x", "cursor=abc", "page=1"] {
        h.get(&format!("/me/coupons?{bad}"), &alice).await.problem(422, "validation_failed");
        h.get(&format!("/me/points?{bad}"), &alice).await.problem(422, "validation_failed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn points_are_the_sum_of_a_ledger_in_which_each_effect_stands_once() {
    let h = Harness::new().await;
    let (alice, bob) = (h.register().await, h.register().await);
    assert_eq!(balance(&h, &alice).await, 0);
    let (a, b) = (UserId::from_uuid(alice.id), UserId::from_uuid(bob.id));
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let gift = |user, points, reference| Credit { user, points, reason: Reason::Gift, reference };
    // twice the same, and two for one person, in one call and again in another
    let credits = [gift(a, 10, first), gift(a, 10, first), gift(a, 5, second), gift(b, 7, first), gift(b, 0, second)];
    for _ in 0..2 {
        let mut tx = h.app.db.begin().await.unwrap();
        wallet::give_points(&mut tx, &credits, h.now()).await.unwrap();
        tx.commit().await.unwrap();
    }
    assert_eq!((balance(&h, &alice).await, balance(&h, &bob).await), (15, 7));
    let page = h.get("/me/points?limit=1", &alice).await.expect(200);
    assert_eq!((&page["items"][0]["delta"], &page["items"][0]["reason"]), (&json!(5), &json!("gift")));
    let rest = h.get(&format!("/me/points?cursor={}", page.text_of("next_cursor")), &alice).await.expect(200);
    assert_eq!((rest["items"].as_array().unwrap().len(), &rest["items"][0]["delta"]), (1, &json!(10)));
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn points_taken_at_the_same_time_never_go_below_zero() {
    let h = Harness::new().await;
    let alice = h.register().await;
    give_points(&h, &alice, 500).await;
    let take = || async {
        let mut tx = h.app.db.begin().await.unwrap();
        let user = UserId::from_uuid(alice.id);
        let reason = Reason::OrderSpend(1);
        let taken = wallet::take_points(&mut tx, user, 70, reason, Uuid::now_v7(), h.now()).await.unwrap();
        tx.commit().await.unwrap();
        taken
    };
    let taken = join_all((0..20).map(|_| take())).await;
    assert_eq!(taken.into_iter().filter(|taken| *taken).count(), 7);
    assert_eq!(balance(&h, &alice).await, 10);
    assert_ledger_adds_up(&h).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_is_created_by_an_administrator_once_per_key() {
    let h = Harness::new().await;
    let (admin, alice) = (h.admin().await, h.register().await);
    let make = coupon(&h);
    h.post_once("/admin/coupons", &alice, "k", make.clone()).await.problem(403, "forbidden");
    h.post("/admin/coupons", &admin, make.clone()).await.problem(400, "idempotency_key_missing");
    let first = h.post_once("/admin/coupons", &admin, "k", make.clone()).await.expect(201);
    assert_eq!(h.post_once("/admin/coupons", &admin, "k", make.clone()).await.expect(201).bytes, first.bytes);
    let other = with(make, json!({"quantity": 1}));
    h.post_once("/admin/coupons", &admin, "k", other).await.problem(422, "idempotency_key_reused");
    assert_eq!(h.count("SELECT COUNT(*) FROM coupons").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coupon_that_is_over_is_not_created_and_a_repeat_is_answered_all_the_same() {
    let h = with_long_tokens().await;
    let (admin, make) = (h.admin().await, coupon(&h));
    let first = h.post_once("/admin/coupons", &admin, "k", make.clone()).await.expect(201);
    h.advance(Duration::from_secs(3600));
    let refused = h.post_once("/admin/coupons", &admin, "other", make.clone()).await.problem(422, "validation_failed");
    assert_eq!(refused["errors"], json!([{"field": "valid_until", "message": "must be in the future"}]));
    assert_eq!(h.post_once("/admin/coupons", &admin, "k", make.clone()).await.expect(201).bytes, first.bytes);
    assert_eq!(h.count("SELECT COUNT(*) FROM coupons").await, 1);
    assert_eq!(h.count("SELECT COUNT(*) FROM idempotency_keys").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_of_a_coupon_is_told() {
    let h = Harness::new().await;
    let admin = h.admin().await;
    let percent = json!({"kind": "percent", "amount_fen": null, "percent_off": 20, "cap_fen": 500});
    create(&h, with(coupon(&h), percent.clone())).await;
    let cases = [
        (json!({"title": "", "quantity": 0, "extra": 1}), vec!["extra", "quantity", "title"]),
        (json!({"kind": "gift"}), vec!["kind"]),
        (json!({"amount_fen": -1, "min_spend_fen": -1}), vec!["amount_fen", "min_spend_fen"]),
        (json!({"amount_fen": 1e300, "quantity": u64::MAX}), vec!["amount_fen", "quantity"]),
        (json!({"amount_fen": null}), vec!["amount_fen"]),
        (json!({"percent_off": 10, "cap_fen": 10}), vec!["cap_fen", "percent_off"]),
        (json!({"kind": "percent"}), vec!["amount_fen", "cap_fen", "percent_off"]),
        (with(percent.clone(), json!({"percent_off": 101, "cap_fen": 0})), vec!["cap_fen", "percent_off"]),
        (json!({"valid_from": "tomorrow", "valid_until": "2026-01-01"}), vec!["valid_from", "valid_until"]),
        (json!({"valid_until": "0001-01-01T00:00:00Z"}), vec!["valid_until"]),
        (json!({"valid_until": "2000-01-01T00:00:00Z"}), vec!["valid_until"]),
        (json!({"title": "x".repeat(101)}), vec!["title"]),
    ];
    for (changes, wanted) in cases {
        let answer = h.post_once("/admin/coupons", &admin, "k", with(coupon(&h), changes.clone())).await;
        let answer = answer.problem(422, "validation_failed");
        let errors = answer["errors"].as_array().unwrap();
        let mut fields: Vec<&str> = errors.iter().map(|e| e["field"].as_str().unwrap()).collect();
        fields.sort_unstable();
        assert_eq!(fields, wanted, "{changes}");
    }
    assert_eq!(h.count("SELECT COUNT(*) FROM coupons").await, 1);
}
