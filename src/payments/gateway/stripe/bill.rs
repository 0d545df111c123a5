//! A day of the account's balance as our bill. <https://docs.stripe.com/api/balance_transactions/list>
//!
//! A balance may be kept in another currency than we sell in, so a line's amount is that of the charge, refund or dispute
//! it is about. Days are the shop's. Only money of buyers counts: fees, payouts and the like are between Stripe and the
//! shop.
//!
//! The balance is a ledger: what is taken back is a line of its own, on the day on which it happened, and here one below
//! zero, so that the lines of a number come to what moved in the end. By
//! <https://docs.stripe.com/reports/balance-transaction-types> and <https://docs.stripe.com/reports/reporting-categories>:
//!
//! * `charge`, `payment`: money came in. `payment_failure_refund`, `payment_reversal`: it was taken back, since the
//!   buyer's bank said no after all.
//! * `refund`, `payment_refund`: money went back. `refund_failure`: it came again, since the buyer's bank did not take it.
//! * `adjustment`: of a refund, it failed; of a dispute, the bank took the money, or gave it again when the shop had won.
//!   A dispute is listed as money that went back under a number that nobody here knows: a person sees it. Adjustments of
//!   anything else are no buyer's.

use anyhow::{Context, anyhow};
use jiff::civil::Date;
use serde::Deserialize;
use serde_json::Value;

use super::super::unavailable;
use super::api::{self, Form, StripeAnswer};
use super::objects::{Charge, Dispute, Metadata, RefundObject, StripePage};
use crate::app::App;
use crate::error::{Kind, Result, refuse};
use crate::payments::model::{BILL_LINES_MAX, BillLine, DayBill, Gateway};
use crate::platform::clock::At;
use crate::platform::day;
use crate::platform::money::Money;

/// Lines of a page: as many as Stripe gives.
const LINES: usize = 100;
/// Pages of a day that we read, at most.
const PAGES: usize = BILL_LINES_MAX / LINES;

#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    /// In the currency of the balance: of this, only the sign is of use.
    amount: i64,
    source: Value,
}

/// What moved on a day (`2026-11-20`).
pub(super) async fn of_day(app: &App, date: &str) -> Result<DayBill> {
    let (from, to) = bounds(date, &app.config.time_zone)?;
    let (mut bill, mut after) = (DayBill::default(), None);
    for _ in 0..PAGES {
        // A long day has thousands of pages: who stops does not read to the end of them.
        if app.loops.stop_signal().is_cancelled() {
            return Err(
                refuse(Kind::Unavailable, format!("stopping; Stripe's bill of {date} is read another time")).into()
            );
        }
        let mut form: Form = vec![
            ("created[gte]", from.to_string()),
            ("created[lt]", to.to_string()),
            ("limit", LINES.to_string()),
            ("expand[0]", "data.source".to_owned()),
        ];
        form.extend(after.take().map(|id| ("starting_after", id)));
        let page: StripePage<Line> = match api::get(app, "bill", "balance_transactions", form).await? {
            StripeAnswer::Done(page, _) => page,
            StripeAnswer::Declined(why) => return Err(unavailable(Gateway::Stripe, format!("bill: {why}"))),
        };
        after = page.data.last().map(|line| line.id.clone());
        for line in page.data {
            put_down(&mut bill, line)?;
        }
        if !page.has_more {
            return Ok(bill);
        }
        if after.is_none() {
            return Err(unavailable(Gateway::Stripe, "bill: an empty page and more behind it"));
        }
    }
    Err(anyhow!("Stripe's bill of {date} has more than {BILL_LINES_MAX} lines").into())
}

/// What a line is about.
#[derive(Deserialize)]
#[serde(tag = "object", rename_all = "snake_case")]
enum Source {
    Charge(Charge),
    Refund(RefundObject),
    Dispute(Dispute),
}

fn put_down(bill: &mut DayBill, line: Line) -> Result<()> {
    let at = At::from_ms(line.created.saturating_mul(1000));
    let source = |line: Line| -> Result<Source> {
        serde_json::from_value(line.source)
            .map_err(|error| unavailable(Gateway::Stripe, format!("bill: the source of {}: {error}", line.id)))
    };
    // Whether it takes back what another line did.
    let (source, is_back) = match line.kind.as_str() {
        // `payment` is a charge that is no card's.
        "charge" | "payment" | "refund" | "payment_refund" => (source(line)?, false),
        "payment_failure_refund" | "payment_reversal" | "refund_failure" => (source(line)?, true),
        // Of a refund or a dispute, money goes out first.
        "adjustment" => match (line.source["object"].as_str(), line.amount > 0) {
            (Some("refund" | "dispute"), is_back) => (source(line)?, is_back),
            _ => return Ok(()),
        },
        _ => return Ok(()),
    };
    let amount = |amount: Money| if is_back { Money::ZERO.minus(amount) } else { Ok(amount) };
    let payment_of = |metadata: &Metadata| metadata.payment().map(|payment| payment.to_string());
    match source {
        Source::Charge(charge) => {
            let number = payment_of(&charge.metadata).unwrap_or(charge.id);
            let amount = amount(charge.amount)?;
            bill.payments.push(BillLine { merchant_no: number.clone(), number, amount, at });
        }
        Source::Refund(refund) => {
            let merchant_no = payment_of(&refund.metadata).unwrap_or_default();
            let number = refund.metadata.refund().map_or(refund.id, |refund| refund.to_string());
            bill.refunds.push(BillLine { number, merchant_no, amount: amount(refund.amount)?, at });
        }
        // It carries nothing of ours: the trade is what leads to the payment.
        Source::Dispute(dispute) => {
            let merchant_no = dispute.payment_intent.unwrap_or_default();
            bill.refunds.push(BillLine { number: dispute.id, merchant_no, amount: amount(dispute.amount)?, at });
        }
    }
    Ok(())
}

/// The day's first second, and the next day's.
fn bounds(date: &str, zone: &str) -> Result<(i64, i64)> {
    let zone = day::zone(zone).context("finding the shop's time zone")?;
    let day: Date = date.parse().context("reading the day of a bill")?;
    let next = day.tomorrow().context("finding the next day")?;
    let start = |day: Date| day.to_zoned(zone.clone()).map(|start| start.timestamp().as_second());
    Ok((start(day).context("finding a day's start")?, start(next).context("finding a day's end")?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;
    use crate::payments::model::{PaymentId, RefundId};

    #[test]
    fn a_day_is_the_shops() {
        let (from, to) = bounds("2026-11-20", "Asia/Shanghai").unwrap();
        assert_eq!((At::from_ms(from * 1000).to_string(), to - from), ("2026-11-19T16:00:00.000Z".to_owned(), 86_400));
        let (from, to) = bounds("2026-10-25", "Europe/Berlin").unwrap();
        assert_eq!(to - from, 25 * 3600);
        assert!(bounds("yesterday", "UTC").is_err());
    }

    /// A page of the balance with one line about this.
    fn page(kind: &str, created: i64, amount: i64, source: &Value) -> Value {
        let line = json!({"id": "txn_1", "type": kind, "created": created, "amount": amount, "source": source});
        json!({"object": "list", "data": [line], "has_more": false})
    }

    fn read(bytes: &[u8]) -> Option<DayBill> {
        let page: StripePage<Line> = serde_json::from_slice(bytes).ok()?;
        let mut bill = DayBill::default();
        for line in page.data {
            put_down(&mut bill, line).ok()?;
        }
        Some(bill)
    }

    proptest! {
        /// Whatever a line is about, it becomes at most one of ours, below zero when and only when it takes something back.
        #[test]
        fn a_line_of_any_kind_is_put_down_once_with_its_sign(
            kind in select(vec!["charge", "payment", "payment_failure_refund", "payment_reversal", "refund", "payment_refund",
                "refund_failure", "adjustment", "stripe_fee", "payout", "another"]),
            object in select(vec!["charge", "refund", "dispute", "fee", ""]),
            fen in 1i64.., amount in any::<i64>(), created in any::<i64>(), ours in any::<bool>(),
        ) {
            let (payment, refund) = (PaymentId::new(), RefundId::new());
            let metadata = if ours { json!({"payment_no": payment, "refund_no": refund}) } else { json!({}) };
            let source = json!({"object": object, "id": "x_1", "amount": fen, "currency": "cny", "status": "succeeded",
                "metadata": metadata, "payment_intent": "pi_1"});
            let bytes = serde_json::to_vec(&page(kind, created, amount, &source)).unwrap();
            let Some(bill) = read(&bytes) else {
                prop_assert!(!matches!(object, "charge" | "refund" | "dispute"), "only what is unknown cannot be read");
                return Ok(());
            };
            let is_back = match kind {
                "payment_failure_refund" | "payment_reversal" | "refund_failure" => true,
                "adjustment" => amount > 0,
                _ => false,
            };
            let counts = matches!(kind, "adjustment" if matches!(object, "refund" | "dispute"))
                || !matches!(kind, "adjustment" | "stripe_fee" | "payout" | "another");
            let lines: Vec<&BillLine> = bill.payments.iter().chain(&bill.refunds).collect();
            prop_assert_eq!(lines.len(), usize::from(counts));
            for line in lines {
                prop_assert_eq!(line.amount.as_fen(), if is_back { -fen } else { fen });
                let number = match object {
                    "charge" if ours => payment.to_string(),
                    "refund" if ours => refund.to_string(),
                    _ => "x_1".to_owned(),
                };
                prop_assert_eq!(&line.number, &number);
            }
        }

        #[test]
        fn no_bytes_make_reading_a_page_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), at: prop::sample::Index, byte in any::<u8>()) {
            let _ = read(&bytes);
            let source = json!({"object": "dispute", "id": "du_1", "amount": 500, "payment_intent": null});
            let mut altered = serde_json::to_vec(&page("adjustment", 1_763_700_000, -500, &source)).unwrap();
            let at = at.index(altered.len());
            altered[at] = byte;
            if let Some(bill) = read(&altered) {
                prop_assert!(bill.payments.len() + bill.refunds.len() <= 1);
            }
        }
    }
}
