//! The rules that hold for every gateway, each tried at each of them. What is a gateway's own is in its own tests.

mod shop;

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use onrush::payments::Gateway;
use onrush::platform::text::Text;
use tokio::task::JoinError;

use super::late::order_of;
use super::*;
use crate::wallet::{claimed, coupon};
use shop::{Says, Shop, Started, id};

struct Rule {
    number: u8,
    says: &'static str,
    holds: fn(Arc<Shop>) -> BoxFuture<'static, ()>,
    /// Where it cannot apply, and why.
    except: &'static [(Gateway, &'static str)],
}

const RULES: &[Rule] = &[
    Rule {
        number: 1,
        says: "what decides is signed, over the bytes as they came; a missing header is a failure",
        holds: |shop| Box::pin(what_is_not_signed_is_refused(shop)),
        except: &[],
    },
    Rule {
        number: 1,
        says: "a message that was recorded is worth nothing after the window",
        holds: |shop| Box::pin(what_was_recorded_is_refused_later(shop)),
        except: &[(
            Gateway::Alipay,
            "it signs no time that could be checked, and repeats the same bytes for a day: that it was handled guards",
        )],
    },
    Rule {
        number: 2,
        says: "what a message does is committed as a whole before it is acknowledged",
        holds: |shop| Box::pin(yes_comes_after_the_commit(shop)),
        except: &[],
    },
    Rule {
        number: 3,
        says: "an unknown payment and a database that fails are answered with failure, and the repeat is accepted",
        holds: |shop| Box::pin(what_cannot_be_handled_comes_again(shop)),
        except: &[],
    },
    Rule {
        number: 4,
        says: "copies are acknowledged and change nothing, at once and days later",
        holds: |shop| Box::pin(copies_change_nothing(shop)),
        except: &[],
    },
    Rule {
        number: 5,
        says: "a failure that is told first or late never overwrites paid",
        holds: |shop| Box::pin(failure_never_overwrites_paid(shop)),
        except: &[],
    },
    Rule {
        number: 5,
        says: "a partial refund never grants twice",
        holds: |shop| Box::pin(a_partial_refund_grants_nothing(shop)),
        except: &[],
    },
    Rule {
        number: 6,
        says: "money for a dead order opens it again when all it held can be held again",
        holds: |shop| Box::pin(late_money_opens_the_order_again(shop)),
        except: &[],
    },
    Rule {
        number: 6,
        says: "money for a dead order goes back once when not, however often the answer is lost",
        holds: |shop| Box::pin(late_money_goes_back_once(shop)),
        except: &[],
    },
    Rule {
        number: 6,
        says: "money for what another trade has paid goes back",
        holds: |shop| Box::pin(money_that_came_twice_goes_back(shop)),
        except: &[],
    },
    Rule {
        number: 7,
        says: "a wrong amount, currency or merchant changes nothing, is kept for a person and answered with failure",
        holds: |shop| Box::pin(what_does_not_fit_is_flagged(shop)),
        except: &[],
    },
    Rule {
        number: 8,
        says: "before an order is closed its gateway is asked, and closes the trade; money found on the way settles",
        holds: |shop| Box::pin(closing_asks_first(shop)),
        except: &[],
    },
    Rule {
        number: 9,
        says: "a lost message is found by asking, on a growing interval",
        holds: |shop| Box::pin(what_is_lost_is_found_by_asking(shop)),
        except: &[],
    },
    Rule {
        number: 10,
        says: "the day's bill is compared with our books line by line, and where all fits nothing differs",
        holds: |shop| Box::pin(a_bill_that_fits_has_no_differences(shop)),
        except: &[],
    },
    Rule {
        number: 10,
        says: "each difference is listed by its kind",
        holds: |shop| Box::pin(a_bill_that_differs_is_listed(shop)),
        except: &[],
    },
    Rule {
        number: 11,
        says: "keys, secrets and signatures are shown nowhere",
        holds: |shop| Box::pin(secrets_are_shown_nowhere(shop)),
        except: &[],
    },
    Rule {
        number: 12,
        says: "one settlement leaves the same traces whoever was paid",
        holds: |shop| Box::pin(traces_are_the_same(shop)),
        except: &[],
    },
    Rule {
        number: 13,
        says: "an attempt has a number of its own, and no closed number is used again",
        holds: |shop| Box::pin(each_attempt_has_its_number(shop)),
        except: &[],
    },
    Rule {
        number: 14,
        says: "where the gateway is, is a setting",
        holds: |shop| Box::pin(the_address_is_a_setting(shop)),
        except: &[],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_at_the_sandbox() {
    all_hold_at(Gateway::Sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_at_alipay() {
    all_hold_at(Gateway::Alipay).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_at_wechat_pay() {
    all_hold_at(Gateway::Wechat).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rule_holds_at_stripe() {
    all_hold_at(Gateway::Stripe).await;
}

#[test]
fn every_rule_is_in_the_table() {
    let numbers: Vec<u8> = RULES.iter().map(|rule| rule.number).collect();
    assert!(numbers.is_sorted() && (1..=14).all(|number| numbers.contains(&number)), "{numbers:?}");
    for rule in RULES {
        assert!(rule.except.len() < Gateway::ALL.len(), "rule {} is tried nowhere: {}", rule.number, rule.says);
    }
}

/// Tries every rule in a shop of its own, and tells all that are broken.
async fn all_hold_at(gateway: Gateway) {
    let mut broken = Vec::new();
    for rule in RULES {
        let name = format!("rule {} at {} ({})", rule.number, gateway.as_str(), rule.says);
        if let Some((_, why)) = rule.except.iter().find(|(other, _)| *other == gateway) {
            println!("{name}: does not apply: {why}");
            continue;
        }
        let tried = tokio::spawn(async move {
            let shop = Arc::new(Shop::open(gateway).await);
            (rule.holds)(shop.clone()).await;
            shop.ends_well().await;
        });
        match tried.await {
            Ok(()) => println!("{name}: holds"),
            Err(error) => broken.push(format!("{name}: {}", said(error))),
        }
    }
    assert!(broken.is_empty(), "broken:\n{}", broken.join("\n"));
}

/// What a panic said.
fn said(error: JoinError) -> String {
    let said = error.into_panic();
    let text = said.downcast_ref::<String>().cloned();
    text.or_else(|| said.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

async fn what_is_not_signed_is_refused(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let good = shop.sign(shop.says(&of, Says::Paid));
    let mut forged = vec![("signed by another".to_owned(), shop.signed_by_another(&of))];
    for header in shop.signature_headers() {
        forged.push((format!("without {header}"), good.without(header)));
    }
    // Which kind of signature it is said to be (Alipay) is not signed, and not believed either.
    let kind = b"sign_type=RSA2";
    let free = good.body.windows(kind.len()).position(|bytes| bytes == kind).map(|at| at..at + kind.len());
    for at in (0..good.body.len()).step_by(good.body.len() / 12) {
        if !free.as_ref().is_some_and(|free| free.contains(&at)) {
            forged.push((format!("byte {at} altered"), good.altered(at)));
        }
    }
    for (what, wire) in forged {
        let answer = shop.send(&wire).await;
        assert_eq!(answer.status, 400, "{what}");
        shop.no(answer, 400);
    }
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 0, "nothing is kept");
    assert_eq!(shop.status(&of).await, "unpaid");
    shop.yes(shop.send(&good).await);
    assert_eq!(shop.status(&of).await, "paid");
}

async fn what_was_recorded_is_refused_later(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let body = shop.says(&of, Says::Paid);
    let recorded = shop.sign(body.clone());
    shop.h.advance(Duration::from_secs(301));
    shop.no(shop.send(&recorded).await, 400);
    assert_eq!(shop.status(&of).await, "unpaid");
    shop.yes(shop.send(&shop.sign(body)).await);
    assert_eq!(shop.status(&of).await, "paid");
}

async fn yes_comes_after_the_commit(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let wire = shop.sign(shop.says(&of, Says::Paid));
    // All of it, or nothing: here the message cannot be kept.
    sqlx::query("RENAME TABLE payment_notifications TO elsewhere").execute(&shop.h.app.db).await.unwrap();
    shop.no_of_any_kind(shop.send(&wire).await);
    assert_eq!(shop.status(&of).await, "unpaid");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    sqlx::query("RENAME TABLE elsewhere TO payment_notifications").execute(&shop.h.app.db).await.unwrap();
    shop.yes(shop.send(&wire).await);
    let committed = "SELECT COUNT(*) FROM payment_notifications n JOIN payments p ON p.id = n.payment_id \
                     JOIN orders o ON o.id = p.order_id WHERE n.outcome = 'settled' AND p.status = 'paid' AND o.status = 1";
    assert_eq!(shop.h.count(committed).await, 1);
}

async fn what_cannot_be_handled_comes_again(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let nobodys = OrderId::new();
    shop.no(shop.tell(&of, Says::Of(nobodys.to_string())).await, 404);
    // The payment is not visible yet: its transaction has not been committed.
    let rename = "UPDATE payments SET id = ? WHERE id = ?";
    sqlx::query(rename).bind(nobodys).bind(id(&of.no)).execute(&shop.h.app.db).await.unwrap();
    let wire = shop.sign(shop.says(&of, Says::Paid));
    shop.no(shop.send(&wire).await, 404);
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 0, "it is not taken for handled");
    sqlx::query(rename).bind(id(&of.no)).bind(nobodys).execute(&shop.h.app.db).await.unwrap();
    shop.yes(shop.send(&wire).await);
    assert_eq!(shop.status(&of).await, "paid");
}

async fn copies_change_nothing(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let (body, other) = (shop.says(&of, Says::Paid), shop.says(&of, Says::Paid));
    let wires: Vec<_> = (0..12).map(|n| shop.sign(if n % 3 == 0 { other.clone() } else { body.clone() })).collect();
    for answer in join_all(wires.iter().map(|wire| shop.send(wire))).await {
        shop.yes(answer);
    }
    for pause_s in [1, 3600, 3 * 86_400] {
        shop.h.advance(Duration::from_secs(pause_s));
        shop.yes(shop.send(&shop.sign(body.clone())).await);
    }
    assert_eq!((shop.messages("settled").await, shop.messages("repeated").await), (1, 1), "each is kept once");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payment_notifications").await, 2);
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM orders WHERE status = 1").await, 1);
}

async fn failure_never_overwrites_paid(shop: Arc<Shop>) {
    let late = shop.paid(500).await;
    shop.yes(shop.tell(&late, Says::NotPaid).await);
    assert_eq!(shop.status(&late).await, "paid");
    // Before the money is told, nobody believes it: what became of the payment is asked.
    let first = shop.started(700).await;
    shop.moves(&first).await;
    shop.yes(shop.tell(&first, Says::NotPaid).await);
    assert_eq!(shop.status(&first).await, "unpaid");
    assert_eq!(payments::query_started(&shop.h.app).await.unwrap(), 1);
    assert_eq!(shop.status(&first).await, "paid");
    shop.yes(shop.tell(&first, Says::Paid).await);
    assert_eq!((shop.messages("settled").await, shop.messages("ignored").await), (2, 2));
}

async fn a_partial_refund_grants_nothing(shop: Arc<Shop>) {
    let of = shop.paid(500).await;
    orders::grant_now(&shop.h.app, of.order.parse().unwrap()).await.unwrap();
    let granted = "SELECT COUNT(*) FROM user_courses";
    assert_eq!(shop.h.count(granted).await, 1);
    shop.give_back(&of, 100).await;
    shop.drive_refunds().await;
    assert_eq!(shop.given_back(&of).await, [100]);
    for _ in 0..2 {
        shop.yes(shop.tell_refund(&of).await);
        shop.yes(shop.tell(&of, Says::Paid).await);
    }
    assert_eq!((shop.status(&of).await.as_str(), shop.h.count(granted).await), ("paid", 1));
    assert_eq!(shop.messages("settled").await, 1);
    assert_eq!(shop.h.count("SELECT refunded_fen FROM payments").await, 100);
}

/// The order dies at its time with the money on its way: every question and answer about it was lost.
async fn dies(shop: &Shop, of: &Started) {
    let closed = "UPDATE payments SET status = 'closed' WHERE id = ?";
    sqlx::query(closed).bind(id(&of.no)).execute(&shop.h.app.db).await.unwrap();
    shop.h.advance(DEADLINE);
    payments::sweep_due(&shop.h.app).await.unwrap();
    assert_eq!(shop.status(of).await, "timed_out");
    release(&shop.h).await;
}

async fn late_money_opens_the_order_again(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    dies(&shop, &of).await;
    let body = shop.says(&of, Says::Paid);
    shop.yes(shop.send(&shop.sign(body.clone())).await);
    assert_eq!(resolve_late(&shop.h).await, 1);
    assert_eq!(shop.status(&of).await, "paid");
    shop.yes(shop.send(&shop.sign(body)).await);
    assert_eq!(resolve_late(&shop.h).await, 0);
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM refunds").await, 0);
}

async fn late_money_goes_back_once(shop: Arc<Shop>) {
    let ticket = claimed(&shop.h, &shop.alice, coupon(&shop.h)).await;
    let discounted = async || {
        let course = shop.h.course(5000).await;
        let key = Uuid::now_v7().as_simple().to_string();
        let body = json!({ "course_ids": [course.no()], "user_coupon_id": ticket });
        shop.h.post_once("/orders", &shop.alice, &key, body).await.expect(201).text_of("order_no")
    };
    let of = shop.start(discounted().await).await;
    shop.moves(&of).await;
    dies(&shop, &of).await;
    // The coupon that it held is another order's by now.
    discounted().await;
    shop.yes(shop.tell(&of, Says::Paid).await);
    assert_eq!(resolve_late(&shop.h).await, 1);
    assert_eq!(shop.status(&of).await, "timed_out");
    shop.loses_answers();
    shop.drive_refunds().await;
    let ours = async |status: &str| {
        let count = "SELECT COUNT(*) FROM refunds WHERE reason = 'late' AND status = ? AND amount_fen = 4000";
        sqlx::query_scalar::<_, i64>(count).bind(status).fetch_one(&shop.h.app.db).await.unwrap()
    };
    assert_eq!(ours("pending").await, 1);
    shop.is_well();
    for _ in 0..2 {
        shop.drive_refunds().await;
        assert_eq!((ours("confirmed").await, shop.given_back(&of).await), (1, vec![4000]));
    }
    shop.yes(shop.tell_refund(&of).await);
    shop.yes(shop.tell(&of, Says::Paid).await);
    assert_eq!((resolve_late(&shop.h).await, shop.h.count("SELECT COUNT(*) FROM refunds").await), (0, 1));
}

async fn money_that_came_twice_goes_back(shop: Arc<Shop>) {
    let course = shop.h.course(1999).await;
    let mut both = Vec::new();
    for _ in 0..2 {
        both.push(shop.start(order_of(&shop.h, &shop.alice, &[&course]).await).await);
    }
    for of in &both {
        shop.moves(of).await;
        shop.yes(shop.tell(of, Says::Paid).await);
    }
    assert_eq!(resolve_late(&shop.h).await, 1);
    shop.drive_refunds().await;
    assert_eq!(shop.status(&both[0]).await, "paid");
    assert_eq!((shop.given_back(&both[0]).await, shop.given_back(&both[1]).await), (vec![], vec![1999]));
    let back = "SELECT COUNT(*) FROM refunds WHERE reason = 'paid_twice' AND status = 'confirmed'";
    assert_eq!(shop.h.count(back).await, 1);
}

async fn what_does_not_fit_is_flagged(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    for says in [Says::Amount(499), Says::Amount(501), Says::InDollars, Says::OfAnotherMerchant] {
        let body = shop.says(&of, says);
        shop.no(shop.send(&shop.sign(body.clone())).await, 422);
        shop.no(shop.send(&shop.sign(body)).await, 422);
    }
    assert_eq!(shop.messages("flagged").await, 4);
    assert_eq!(shop.status(&of).await, "unpaid");
    assert_eq!(shop.h.count("SELECT COUNT(*) FROM payments WHERE status = 'started'").await, 1);
    shop.yes(shop.tell(&of, Says::Paid).await);
    assert_eq!(shop.status(&of).await, "paid");
}

async fn closing_asks_first(shop: Arc<Shop>) {
    let paid = shop.started(500).await;
    shop.moves(&paid).await;
    shop.cancel(&paid).await.problem(409, "order_state");
    assert_eq!(shop.status(&paid).await, "paid");

    let crossed = shop.started(600).await;
    shop.cancel_crossed_by_money(&crossed).await.problem(409, "order_state");
    assert_eq!(shop.status(&crossed).await, "paid");

    let open = shop.started(700).await;
    assert!(shop.can_be_paid(&open).await);
    shop.is_silent();
    shop.cancel(&open).await.problem(503, "gateway_unavailable");
    assert_eq!(shop.status(&open).await, "unpaid");
    shop.is_well();
    shop.cancel(&open).await.expect(200);
    assert!(!shop.can_be_paid(&open).await, "the trade is closed first");

    let due = shop.started(800).await;
    shop.h.advance(DEADLINE);
    payments::sweep_due(&shop.h.app).await.unwrap();
    assert_eq!((shop.status(&due).await.as_str(), shop.can_be_paid(&due).await), ("timed_out", false));
}

async fn what_is_lost_is_found_by_asking(shop: Arc<Shop>) {
    let (paid, _open) = (shop.started(500).await, shop.started(700).await);
    shop.moves(&paid).await;
    let asked = async || payments::query_started(&shop.h.app).await.unwrap();
    assert_eq!(asked().await, 0, "not yet");
    shop.h.advance(Duration::from_secs(20));
    assert_eq!(asked().await, 2);
    assert_eq!(shop.status(&paid).await, "paid");
    // The other one at a growing interval: 20 s, 40 s, ...
    shop.h.advance(Duration::from_secs(20));
    assert_eq!(asked().await, 1);
    shop.h.advance(Duration::from_secs(20));
    assert_eq!(asked().await, 0);
    shop.yes(shop.tell(&paid, Says::Paid).await);
    assert_eq!(shop.messages("settled").await, 1);
}

/// A payment and a refund of a part of it, and the day's bill of both.
async fn billed(shop: &Shop) -> Started {
    let of = shop.paid(500).await;
    shop.give_back(&of, 100).await;
    payments::drive_refunds(&shop.h.app).await.unwrap();
    let (refund, _) = shop.refund(&of).await;
    assert_eq!(shop.bill(&of).await, [vec![(of.no.clone(), 500)], vec![(refund, 100)]]);
    of
}

/// The differences at the gateway, as (number, kind).
async fn differences(shop: &Shop) -> Vec<(String, String)> {
    onrush::reconciliation::reconcile(&shop.h.app).await.unwrap();
    let all = "SELECT number, kind FROM payment_differences WHERE gateway = ?";
    let all: Vec<(Text, Text)> =
        sqlx::query_as(all).bind(shop.gateway.as_str()).fetch_all(&shop.h.app.db).await.unwrap();
    all.into_iter().map(|(number, kind)| (number.into(), kind.into())).collect()
}

async fn a_bill_that_fits_has_no_differences(shop: Arc<Shop>) {
    billed(&shop).await;
    assert_eq!(differences(&shop).await, []);
    let bills = "SELECT COUNT(*) FROM payment_bills WHERE gateway = ? AND payments = 1 AND refunds = 1 \
                 AND compared_at IS NOT NULL";
    let bills = sqlx::query_scalar::<_, i64>(bills).bind(shop.gateway.as_str()).fetch_one(&shop.h.app.db).await;
    assert_eq!(bills.unwrap(), 1);
}

async fn a_bill_that_differs_is_listed(shop: Arc<Shop>) {
    let of = billed(&shop).await;
    let ours = async |fen: i64| {
        sqlx::query("UPDATE payments SET amount_fen = ?").bind(fen).execute(&shop.h.app.db).await.unwrap();
    };
    ours(501).await;
    assert_eq!(differences(&shop).await, [(of.no.clone(), "amount_differs".to_owned())]);
    ours(500).await;
}

async fn secrets_are_shown_nowhere(shop: Arc<Shop>) {
    let of = shop.started(500).await;
    shop.moves(&of).await;
    let wire = shop.sign(shop.says(&of, Says::Paid));
    shop.yes(shop.send(&wire).await);
    let list = shop.h.get("/admin/payments/notifications", &shop.admin).await.expect(200);
    let message = format!("/admin/payments/notifications/{}", list["items"][0]["id"].as_str().unwrap());
    let mut shown = vec![format!("{:?}", shop.h.app.config), list.text()];
    for path in [message, format!("/admin/payments/{}", of.no), format!("/orders/{}", of.order)] {
        let who = if path.starts_with("/admin") { &shop.admin } else { &shop.alice };
        shown.push(shop.h.get(&path, who).await.expect(200).text());
    }
    for secret in shop.secrets(&wire) {
        assert!(secret.len() >= 16, "a secret that anything may contain proves nothing");
        assert!(!shown.iter().any(|text| text.contains(&secret)), "a secret is shown");
    }
}

async fn traces_are_the_same(shop: Arc<Shop>) {
    let of = shop.paid(500).await;
    let traces = "SELECT p.status, p.resolution, p.amount_fen, p.currency, CAST(o.status AS SIGNED), n.outcome, \
                  p.gateway_trade_no IS NOT NULL AND p.next_query_at IS NULL AND o.paid_at = p.paid_at \
                  FROM payments p JOIN orders o ON o.id = p.order_id JOIN payment_notifications n ON n.payment_id = p.id";
    let traces: Vec<(Text, Text, i64, Text, i64, Text, bool)> =
        sqlx::query_as(traces).fetch_all(&shop.h.app.db).await.unwrap();
    let text = |text: &str| Text(text.to_owned());
    assert_eq!(traces, [(text("paid"), text("order"), of.fen, text("CNY"), 1, text("settled"), true)]);
}

async fn each_attempt_has_its_number(shop: Arc<Shop>) {
    let first = shop.started(500).await;
    assert_eq!(shop.start(first.order.clone()).await.no, first.no, "one attempt at a time");
    sqlx::query("UPDATE payments SET status = 'closed'").execute(&shop.h.app.db).await.unwrap();
    let second = shop.start(first.order.clone()).await;
    for no in [&first.no, &second.no] {
        assert_ne!(*no, first.order);
        assert_eq!((no.len(), no.parse::<Uuid>().unwrap().get_version_num()), (32, 7));
    }
    assert_ne!(first.no, second.no);
    shop.moves(&second).await;
    shop.yes(shop.tell(&second, Says::Paid).await);
    assert_eq!(shop.status(&first).await, "paid");
}

async fn the_address_is_a_setting(shop: Arc<Shop>) {
    shop.paid(500).await;
    let astray = Shop::astray(shop.gateway).await;
    let no = order(&astray.h, &astray.alice, 500).await;
    astray.pay_asking(&no).await.problem(503, "gateway_unavailable");
}
