//! An event of a webhook endpoint, and what it says to us. <https://docs.stripe.com/api/events/types>
//!
//! Events come more than once, in any order, and for days; each has an id that stays. An event of a kind that we do not
//! know, or about something of the same account that is not ours, says nothing to us and is acknowledged: Stripe
//! switches off an endpoint that refuses for long.

use anyhow::Context;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::objects::{Charge, Progress, RefundObject, StripeSession};
use crate::payments::model::{Message, RefundAnswer, Said};

/// The name of an account's own events with real money, and with play money. That they are this account's is the word of
/// the signature: each endpoint has a secret of its own.
pub(super) const LIVE: &str = "live";
pub(super) const TEST: &str = "test";
/// Longest id of an event that we keep.
const ID_LENGTH: usize = 64;

#[derive(Deserialize)]
struct Event<'a> {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    livemode: bool,
    /// The connected account that it is about; an account's own events have none.
    account: Option<String>,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    #[serde(borrow)]
    object: &'a RawValue,
}

/// Reads an event whose signature held.
pub(super) fn read(body: &[u8]) -> anyhow::Result<Message> {
    let event: Event = serde_json::from_slice(body).context("reading an event")?;
    if !(1..=ID_LENGTH).contains(&event.id.len()) || !event.id.bytes().all(|b| b.is_ascii_graphic()) {
        anyhow::bail!("an event has an id that cannot be kept");
    }
    let merchant = event.account.unwrap_or_else(|| mode(event.livemode).to_owned());
    let nothing = Message { notify_id: event.id, merchant, payment: None, said: Said::Nothing };
    let object = event.data.object.get();
    let (payment, said) = match event.kind.as_str() {
        "checkout.session.completed"
        | "checkout.session.async_payment_succeeded"
        | "checkout.session.async_payment_failed"
        | "checkout.session.expired" => {
            let session: StripeSession = serde_json::from_str(object).context("reading an event's session")?;
            let Some(payment) = session.metadata.payment() else { return Ok(nothing) };
            let said = match session.progress()? {
                Progress::Paid(said) => said,
                // Not yet, or not any more: what became of it is asked.
                Progress::Open | Progress::UnderWay | Progress::Over => Said::NotPaid,
            };
            (payment, said)
        }
        "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => {
            let refund: RefundObject = serde_json::from_str(object).context("reading an event's refund")?;
            let Some(payment) = refund.metadata.payment() else { return Ok(nothing) };
            (payment, Said::Refunded { refund: refund.metadata.refund(), answer: refund.answer() })
        }
        "charge.refunded" => {
            let charge: Charge = serde_json::from_str(object).context("reading an event's charge")?;
            let Some(payment) = charge.metadata.payment() else { return Ok(nothing) };
            (payment, Said::Refunded { refund: None, answer: RefundAnswer::Confirmed })
        }
        _ => return Ok(nothing),
    };
    Ok(Message { payment: Some(payment), said, ..nothing })
}

/// Whether money is real.
pub(super) const fn mode(live: bool) -> &'static str {
    if live { LIVE } else { TEST }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::payments::model::{PaymentId, RefundId};
    use crate::platform::money::Money;

    fn event(kind: &str, object: Value) -> Value {
        json!({
            "id": "evt_1", "object": "event", "api_version": "2026-10-28.endive", "created": 1_700_000_000,
            "data": {"object": object}, "livemode": false, "type": kind,
        })
    }

    fn said(event: &Value) -> anyhow::Result<Message> {
        read(&serde_json::to_vec_pretty(event).unwrap())
    }

    fn session(payment: PaymentId) -> Value {
        json!({
            "id": "cs_1", "object": "checkout.session", "livemode": false, "status": "complete", "payment_status": "paid",
            "amount_total": 1999, "currency": "cny", "client_reference_id": "anything", "payment_intent": "pi_1",
            "metadata": {"payment_no": payment}, "url": null, "customer_details": {"email": "a@example.com"},
        })
    }

    fn with(mut object: Value, changes: Value) -> Value {
        let Value::Object(changes) = changes else { unreachable!() };
        object.as_object_mut().unwrap().extend(changes);
        object
    }

    #[test]
    fn only_a_session_that_is_paid_brings_money() {
        let payment = PaymentId::new();
        let paid = Said::Paid { amount: Money::fen(1999), currency: "CNY".to_owned(), trade_no: "pi_1".to_owned() };
        let unpaid = json!({"payment_status": "unpaid"});
        let failed = json!({"payment_status": "unpaid", "payment_intent": {"id": "pi_1", "status": "canceled"}});
        let expired = json!({"payment_status": "unpaid", "status": "expired", "payment_intent": null});
        for (kind, changes, expected) in [
            ("checkout.session.completed", json!({}), paid.clone()),
            (
                "checkout.session.completed",
                json!({"payment_intent": {"id": "pi_1", "status": "succeeded"}}),
                paid.clone(),
            ),
            ("checkout.session.async_payment_succeeded", json!({}), paid),
            ("checkout.session.completed", unpaid.clone(), Said::NotPaid),
            ("checkout.session.async_payment_failed", unpaid, Said::NotPaid),
            ("checkout.session.async_payment_failed", failed, Said::NotPaid),
            ("checkout.session.expired", expired, Said::NotPaid),
        ] {
            let message = said(&event(kind, with(session(payment), changes.clone()))).unwrap();
            assert_eq!((message.payment, message.said), (Some(payment), expected), "{kind} {changes}");
            assert_eq!((message.notify_id.as_str(), message.merchant.as_str()), ("evt_1", TEST));
        }
    }

    #[test]
    fn a_refund_is_told_by_its_own_number() {
        let (payment, refund) = (PaymentId::new(), RefundId::new());
        let object = json!({
            "id": "re_1", "object": "refund", "amount": 500, "currency": "cny", "status": "succeeded",
            "failure_reason": null, "metadata": {"payment_no": payment, "refund_no": refund},
        });
        let refused = RefundAnswer::Refused("failed: expired_or_canceled_card".to_owned());
        let failed = json!({"status": "failed", "failure_reason": "expired_or_canceled_card"});
        for (kind, changes, answer) in [
            ("refund.updated", json!({}), RefundAnswer::Confirmed),
            ("charge.refund.updated", json!({}), RefundAnswer::Confirmed),
            ("refund.created", json!({"status": "pending"}), RefundAnswer::Pending),
            ("refund.updated", json!({"status": "requires_action"}), RefundAnswer::Pending),
            ("refund.updated", json!({"status": null}), RefundAnswer::Pending),
            ("refund.failed", failed, refused),
            (
                "refund.updated",
                json!({"status": "canceled"}),
                RefundAnswer::Refused("canceled: no reason given".to_owned()),
            ),
        ] {
            let message = said(&event(kind, with(object.clone(), changes))).unwrap();
            let expected = Said::Refunded { refund: Some(refund), answer };
            assert_eq!((message.payment, message.said), (Some(payment), expected), "{kind}");
        }
        // One that a person made at Stripe has no number of ours; its charge still names the payment.
        let charge = json!({"id": "ch_1", "amount": 1999, "metadata": {"payment_no": payment}, "refunded": true});
        let message = said(&event("charge.refunded", charge)).unwrap();
        let expected = Said::Refunded { refund: None, answer: RefundAnswer::Confirmed };
        assert_eq!((message.payment, message.said), (Some(payment), expected));
    }

    #[test]
    fn what_is_not_ours_says_nothing() {
        for (kind, object) in [
            ("invoice.paid", json!({"id": "in_1"})),
            ("checkout.session.completed", with(session(PaymentId::new()), json!({"metadata": {}}))),
            ("checkout.session.completed", with(session(PaymentId::new()), json!({"metadata": null}))),
            ("checkout.session.completed", with(session(PaymentId::new()), json!({"metadata": {"payment_no": "17"}}))),
            ("refund.updated", json!({"id": "re_1", "amount": 5, "currency": "cny", "status": "succeeded"})),
            ("charge.refunded", json!({"id": "ch_1", "amount": 5, "metadata": {}})),
        ] {
            let message = said(&event(kind, object)).unwrap();
            assert_eq!((message.payment, message.said), (None, Said::Nothing), "{kind}");
        }
    }

    #[test]
    fn whose_money_it_is_is_told() {
        let whole = event("checkout.session.completed", session(PaymentId::new()));
        let merchant = |changes| said(&with(whole.clone(), changes)).unwrap().merchant;
        assert_eq!(merchant(json!({"livemode": true})), LIVE);
        assert_eq!(merchant(json!({"account": "acct_1"})), "acct_1");
        assert_eq!(merchant(json!({"account": null})), TEST);
    }

    #[test]
    fn an_event_that_cannot_be_read_is_refused() {
        let whole = event("checkout.session.completed", session(PaymentId::new()));
        for bad in [
            json!({"id": ""}),
            json!({"id": "e".repeat(65)}),
            json!({"id": "evt 1"}),
            json!({"id": 1}),
            json!({"livemode": null}),
            json!({"data": {}}),
            json!({"type": null}),
        ] {
            assert!(said(&with(whole.clone(), bad.clone())).is_err(), "{bad}");
        }
        for bad in [
            json!({"amount_total": null}),
            json!({"amount_total": 19.99}),
            json!({"amount_total": "1999"}),
            json!({"currency": null}),
            json!({"payment_intent": null}),
            json!({"payment_status": "no_payment_required"}),
            json!({"payment_status": "unpaid", "status": null}),
        ] {
            let object = with(session(PaymentId::new()), bad.clone());
            assert!(said(&event("checkout.session.completed", object)).is_err(), "{bad}");
        }
        assert!(read(b"").is_err() && read(b"[]").is_err() && read(b"\xff\xfe").is_err());
    }

    proptest! {
        /// Whatever somebody signs, nothing panics.
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&bytes);
        }

        /// Nor does an event of which one byte was altered, and it never brings more money.
        #[test]
        fn no_altered_event_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut bytes = serde_json::to_vec(&event("checkout.session.completed", session(PaymentId::new()))).unwrap();
            let at = at.index(bytes.len());
            if cut { bytes.truncate(at) } else { bytes[at] = byte }
            if let Ok(message) = read(&bytes) && let Said::Paid { currency, .. } = message.said {
                prop_assert!(message.payment.is_some() && currency.to_ascii_uppercase() == currency);
            }
        }
    }
}
