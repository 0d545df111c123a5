//! Stripe's protocol: Checkout Sessions, refunds, the balance, and events. <https://docs.stripe.com/payments/checkout>
//!
//! * A payment is one session. Its id is kept ([`Payment::gateway_ref`]), because Stripe finds a session by nothing else;
//!   a session whose id was lost on the way was never shown to anybody, so nobody can pay it.
//! * The trade's number is its payment intent: refunds and the lines of the bill go by it.
//! * A session lives for half an hour at least and a day at most. An order that has less time than that left gets a
//!   session that outlives it: closing the order expires the session ([`close`]).

mod api;
mod bill;
mod event;
mod objects;
mod signature;

use anyhow::{Context, anyhow};
use axum::http::HeaderMap;
use std::time::Duration;

use self::api::{Ask, Form, StripeAnswer};
use self::objects::{Progress, RefundObject, StripePage, StripeSession};
use super::{CloseAnswer, PaymentOutcome, switched_off, unavailable};
use crate::app::App;
use crate::config::Stripe;
use crate::error::{Error, Kind, Result, refuse, retrying};
use crate::payments::model::{DayBill, Gateway, Message, PayWith, Payment, Refund, RefundAnswer};
use crate::payments::store::{self, refunds};
use crate::platform::clock::At;

/// Where our handlers are (`routes.rs`), below `http.public_url`.
const CALLBACKS: &str = "/api/v1/payments/stripe";
/// A session is given an end of its own when that is so far away, with some minutes to spare for other clocks than ours.
const EXPIRY_MIN: Duration = Duration::from_secs(35 * 60);
const EXPIRY_MAX: Duration = Duration::from_secs(23 * 3600);
/// Refunds of one payment that we look through, in pages of a hundred.
const REFUND_PAGES: usize = 20;

/// The settings; a gateway without them is switched off.
fn settings(app: &App) -> Result<&Stripe> {
    app.config.payments.stripe.as_deref().ok_or_else(|| switched_off(Gateway::Stripe))
}

/// Stripe's name for us: whether our key moves real money.
pub(super) fn merchant(app: &App) -> Result<&'static str> {
    Ok(event::mode(settings(app)?.is_live))
}

/// Checks an event over its raw bytes, and only then reads it.
pub(super) fn verify(app: &App, headers: &HeaderMap, body: &[u8]) -> Result<Message> {
    // Two headers would leave open which of them counts.
    let mut all = headers.get_all("stripe-signature").iter();
    let header = all.next().filter(|_| all.next().is_none()).and_then(|value| value.to_str().ok());
    if let Err(error) = signature::check(header, body, &settings(app)?.webhook_secrets, app.clock.now()) {
        tracing::warn!(gateway = "stripe", %error, "callback could not be verified");
        return Err(Kind::CallbackInvalid.into());
    }
    event::read(body).map_err(|error| {
        tracing::error!(gateway = "stripe", error = format!("{error:#}"), "callback verified and cannot be read");
        Error::from(Kind::CallbackInvalid)
    })
}

pub(super) async fn create(app: &App, payment: &Payment, subject: &str) -> Result<(PayWith, PaymentOutcome)> {
    let (session, kept) = match &payment.gateway_ref {
        Some(id) => retrieve(app, payment, id).await?.ok_or_else(|| lost(id))?,
        None => open(app, payment, subject).await?,
    };
    let asked = match session.progress()? {
        Progress::UnderWay => {
            return Err(refuse(Kind::OrderState, "it has been paid, and the bank has not confirmed it yet").into());
        }
        progress => asked(payment, &session, progress, kept),
    };
    match (session.url, &asked) {
        (Some(url), _) => Ok((PayWith::Url(url), asked)),
        (None, PaymentOutcome::Waiting) => Err(unavailable(Gateway::Stripe, "it has an open session without a page")),
        (None, _) => Ok((PayWith::Url(String::new()), asked)),
    }
}

/// Opens the payment's session. The first one whose id was kept is it, whoever opened it.
async fn open(app: &App, payment: &Payment, subject: &str) -> Result<(StripeSession, Vec<u8>)> {
    let number = payment.id.to_string();
    let form = session_form(app, payment, subject);
    let ask =
        |key| Ask { operation: "create", path: "checkout/sessions", form: form.clone(), idempotency_key: Some(key) };
    let mut answer = api::post::<StripeSession>(app, ask(&number)).await?;
    if matches!(&answer, StripeAnswer::Declined(why) if why.is_key_taken()) {
        // An answer was lost, and what we say has changed since: the time that is left, or the title. Nobody has seen
        // that session.
        let key = format!("{number}-{}", app.clock.now().ms());
        answer = api::post(app, ask(&key)).await?;
    }
    let (session, kept) = match answer {
        StripeAnswer::Done(session, kept) => (ours(session, payment)?, kept),
        StripeAnswer::Declined(why) => return Err(declined("create", &why)),
    };
    let kept_ref = retrying(|| async {
        let mut conn = app.db.acquire().await?;
        Ok(store::keep_ref(&mut conn, payment.id, &session.id).await.context("keeping a session's id")?)
    });
    kept_ref.await?;
    match reference(app, payment).await? {
        Some(first) if first != session.id => retrieve(app, payment, &first).await?.ok_or_else(|| lost(&first)),
        _ => Ok((session, kept)),
    }
}

fn session_form(app: &App, payment: &Payment, subject: &str) -> Form {
    let number = payment.id.to_string();
    let back = format!("{}{CALLBACKS}/return?payment_no={number}", app.config.http.public_url);
    let mut form: Form = vec![
        ("mode", "payment".to_owned()),
        ("client_reference_id", number.clone()),
        ("metadata[payment_no]", number.clone()),
        ("payment_intent_data[metadata][payment_no]", number),
        ("line_items[0][quantity]", "1".to_owned()),
        ("line_items[0][price_data][currency]", payment.currency.to_ascii_lowercase()),
        ("line_items[0][price_data][unit_amount]", payment.amount.as_fen().to_string()),
        ("line_items[0][price_data][product_data][name]", subject.to_owned()),
        // Else the buyer may pay another amount in another currency.
        ("adaptive_pricing[enabled]", "false".to_owned()),
        ("success_url", back.clone()),
        ("cancel_url", back),
    ];
    form.extend(own_end(payment.expires_at, app.clock.now()).map(|at| ("expires_at", at.to_string())));
    form
}

/// When the session ends by itself, in seconds since 1970; none: after a day.
fn own_end(deadline: At, now: At) -> Option<i64> {
    (EXPIRY_MIN..=EXPIRY_MAX).contains(&deadline.since(now)).then(|| deadline.timestamp().as_second())
}

pub(super) async fn query(app: &App, payment: &Payment) -> Result<PaymentOutcome> {
    // Nobody has seen a session that we know nothing of.
    let Some(id) = reference(app, payment).await? else { return Ok(PaymentOutcome::Waiting) };
    match retrieve(app, payment, &id).await? {
        Some((session, kept)) => Ok(asked(payment, &session, session.progress()?, kept)),
        None => Ok(PaymentOutcome::Waiting),
    }
}

pub(super) async fn close(app: &App, payment: &Payment) -> Result<CloseAnswer> {
    let Some(id) = reference(app, payment).await? else { return Ok(CloseAnswer::Unknown) };
    let path = format!("checkout/sessions/{id}/expire");
    // A key of this call alone: Stripe would repeat the failure of an earlier one for a day.
    let key = format!("{}-expire-{}", payment.id, app.clock.now().ms());
    let ask = Ask { operation: "close", path: &path, form: Form::new(), idempotency_key: Some(&key) };
    let session = match api::post::<StripeSession>(app, ask).await? {
        StripeAnswer::Done(session, _) => session,
        StripeAnswer::Declined(why) if why.is_missing() => return Ok(CloseAnswer::Unknown),
        // It is not open any more: its state says why.
        StripeAnswer::Declined(_) => match retrieve(app, payment, &id).await? {
            Some((session, _)) => session,
            None => return Ok(CloseAnswer::Unknown),
        },
    };
    match ours(session, payment)?.progress()? {
        Progress::Paid(_) => Ok(CloseAnswer::AlreadyPaid),
        // Money under way cannot be called back: nobody can begin to pay any more, and what arrives is late money.
        Progress::Over | Progress::UnderWay => Ok(CloseAnswer::Closed),
        Progress::Open => Err(unavailable(Gateway::Stripe, "it confirms a close and leaves the session open")),
    }
}

pub(super) async fn refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    // The key is worth nothing after a day: whether an earlier try arrived is looked up.
    if refund.attempts > 0
        && let Some(answer) = find_refund(app, refund).await?
    {
        return Ok(answer);
    }
    let number = refund.id.to_string();
    let form: Form = vec![
        ("payment_intent", intent(refund)?.to_owned()),
        ("amount", refund.amount.as_fen().to_string()),
        ("metadata[payment_no]", refund.payment_id.to_string()),
        ("metadata[refund_no]", number.clone()),
    ];
    let key = refund_key(refund);
    let ask = Ask { operation: "refund", path: "refunds", form, idempotency_key: Some(&key) };
    let why = match api::post(app, ask).await? {
        StripeAnswer::Done(object, _) => return answer_of(&object, refund),
        StripeAnswer::Declined(why) => why,
    };
    // What another request did under the key is not known: that is no refusal of this one.
    if !why.is_key_taken() {
        let counted = retrying(|| async {
            let mut conn = app.db.acquire().await?;
            let counted = refunds::count_refusal(&mut conn, refund.id, refund.refusals).await;
            Ok(counted.context("counting a refusal")?)
        });
        counted.await?;
    }
    // More money will come in, or a person will send some.
    if why.code.as_deref() == Some("balance_insufficient") {
        Err(declined("refund", &why))
    } else {
        Ok(RefundAnswer::Refused(why.to_string()))
    }
}

/// The key under which a refund is made. Stripe repeats its first answer to a key for a day, a refusal too
/// (<https://docs.stripe.com/error-low-level#content-errors>): under the same one nothing would be tried, whoever has put
/// money into the account. So it is the refund's number, and another one after each refusal. That makes no second refund:
/// under a key that was refused none was made, and none can be, since whatever still comes in under it hears the same
/// refusal. After anything but a refusal (no answer, HTTP 500) the key stays.
fn refund_key(refund: &Refund) -> String {
    match refund.refusals {
        0 => refund.id.to_string(),
        refusals => format!("{}-{refusals}", refund.id),
    }
}

pub(super) async fn query_refund(app: &App, refund: &Refund) -> Result<RefundAnswer> {
    let found = find_refund(app, refund).await?;
    found.ok_or_else(|| unavailable(Gateway::Stripe, "it does not know a refund that it was at"))
}

pub(super) async fn bill(app: &App, date: &str) -> Result<DayBill> {
    bill::of_day(app, date).await
}

/// What became of a refund, looked up among those of its payment; `None` when it is not there.
async fn find_refund(app: &App, refund: &Refund) -> Result<Option<RefundAnswer>> {
    let mut after = None;
    for _ in 0..REFUND_PAGES {
        let mut form: Form = vec![("payment_intent", intent(refund)?.to_owned()), ("limit", "100".to_owned())];
        form.extend(after.take().map(|id| ("starting_after", id)));
        let page: StripePage<RefundObject> = match api::get(app, "query_refund", "refunds", form).await? {
            StripeAnswer::Done(page, _) => page,
            StripeAnswer::Declined(why) => return Err(declined("query_refund", &why)),
        };
        if let Some(object) = page.data.iter().find(|object| object.metadata.refund() == Some(refund.id)) {
            return answer_of(object, refund).map(Some);
        }
        after = page.data.last().map(|object| object.id.clone());
        if !page.has_more || after.is_none() {
            return Ok(None);
        }
    }
    Err(anyhow!("a payment has more refunds than {REFUND_PAGES} pages").into())
}

fn answer_of(object: &RefundObject, refund: &Refund) -> Result<RefundAnswer> {
    let same = object.metadata.refund() == Some(refund.id)
        && object.amount == refund.amount
        && object.currency.eq_ignore_ascii_case(&refund.currency);
    if same { Ok(object.answer()) } else { Err(anyhow!("Stripe answered for another refund").into()) }
}

fn intent(refund: &Refund) -> Result<&str> {
    Ok(refund.gateway_trade_no.as_deref().context("a refund of a payment without a trade number")?)
}

/// The id of the payment's session, as it is kept by now.
async fn reference(app: &App, payment: &Payment) -> Result<Option<String>> {
    if payment.gateway_ref.is_some() {
        return Ok(payment.gateway_ref.clone());
    }
    let mut conn = app.db.acquire().await?;
    let now = store::payment(&mut conn, payment.id).await.context("reading a payment")?;
    Ok(now.and_then(|payment| payment.gateway_ref))
}

/// The session and its bytes; `None` when Stripe does not know it.
async fn retrieve(app: &App, payment: &Payment, id: &str) -> Result<Option<(StripeSession, Vec<u8>)>> {
    let form: Form = vec![("expand[0]", "payment_intent".to_owned())];
    match api::get::<StripeSession>(app, "query", &format!("checkout/sessions/{id}"), form).await? {
        StripeAnswer::Done(session, kept) => Ok(Some((ours(session, payment)?, kept))),
        StripeAnswer::Declined(why) if why.is_missing() => Ok(None),
        StripeAnswer::Declined(why) => Err(declined("query", &why)),
    }
}

/// An answer about another payment is not taken for ours.
fn ours(session: StripeSession, payment: &Payment) -> Result<StripeSession> {
    if session.metadata.payment() == Some(payment.id) {
        Ok(session)
    } else {
        Err(anyhow!("Stripe answered for another payment").into())
    }
}

fn asked(payment: &Payment, session: &StripeSession, progress: Progress, kept: Vec<u8>) -> PaymentOutcome {
    match progress {
        Progress::Open | Progress::UnderWay => PaymentOutcome::Waiting,
        Progress::Over => PaymentOutcome::Over,
        Progress::Paid(said) => {
            // The amount is part of the id: should Stripe come to correct it, that is another message.
            let amount = session.amount().map_or(0, |amount| amount.as_fen());
            let notify_id = format!("query:{}:{amount}", payment.id);
            let merchant = event::mode(session.livemode).to_owned();
            PaymentOutcome::Paid(Message { notify_id, merchant, payment: Some(payment.id), said }, kept)
        }
    }
}

fn declined(operation: &str, why: &api::Declined) -> Error {
    tracing::error!(gateway = "stripe", operation, error = %why, "Stripe declines a request; a person should look");
    unavailable(Gateway::Stripe, format!("{operation}: {why}"))
}

fn lost(id: &str) -> Error {
    unavailable(Gateway::Stripe, format!("it does not know its session {id:.80}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_with_its_order_where_stripe_lets_it() {
        let now = At::from_ms(1_700_000_000_000);
        let after = |minutes: u64| own_end(now.plus(Duration::from_secs(minutes * 60)), now);
        assert_eq!(after(60), Some(1_700_003_600));
        assert_eq!(after(24 * 60), None, "a day is what it has without being told");
        assert_eq!(after(30), None, "half an hour from a clock that is a little ahead would be refused");
        assert_eq!(own_end(now.minus(Duration::from_secs(60)), now), None);
    }
}
