//! A day of the account's balance as our bill. <https://docs.stripe.com/api/balance_transactions/list>
//!
//! A balance may be kept in another currency than we sell in, so a line's amount is that of the charge or refund it is
//! about. Days are the shop's. Only money of buyers counts: fees, payouts and the like are between Stripe and the shop.
//! A refund that failed since moved nothing in the end and is left out.

use anyhow::{Context, anyhow};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::super::unavailable;
use super::api::{self, Answer, Form};
use super::objects::{Charge, Page, RefundObject};
use crate::app::App;
use crate::error::Result;
use crate::payments::model::{BillLine, DayBill, Gateway, RefundAnswer};
use crate::platform::clock::At;

/// Lines of a page: as many as Stripe gives.
const LINES: usize = 100;
/// Pages of a day that we read, at most.
const PAGES: usize = 5000;

#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    source: Value,
}

/// What moved on a day (`2026-11-20`).
pub(super) async fn of_day(app: &App, date: &str) -> Result<DayBill> {
    let (from, to) = bounds(date, &app.config.time_zone)?;
    let (mut bill, mut after) = (DayBill::default(), None);
    for _ in 0..PAGES {
        let mut form: Form = vec![
            ("created[gte]", from.to_string()),
            ("created[lt]", to.to_string()),
            ("limit", LINES.to_string()),
            ("expand[0]", "data.source".to_owned()),
        ];
        form.extend(after.take().map(|id| ("starting_after", id)));
        let page: Page<Line> = match api::get(app, "bill", "balance_transactions", form).await? {
            Answer::Done(page, _) => page,
            Answer::Declined(why) => return Err(unavailable(Gateway::Stripe, format!("bill: {why}"))),
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
    Err(anyhow!("Stripe's bill of {date} has more than {PAGES} pages").into())
}

fn put_down(bill: &mut DayBill, line: Line) -> Result<()> {
    let at = At::from_ms(line.created.saturating_mul(1000));
    match line.kind.as_str() {
        // `payment` is a charge that is no card's.
        "charge" | "payment" => {
            let charge: Charge = source(line.source)?;
            let number = charge.metadata.payment().map_or(charge.id, |payment| payment.to_string());
            bill.payments.push(BillLine { merchant_no: number.clone(), number, amount: charge.amount, at });
        }
        "refund" | "payment_refund" => {
            let refund: RefundObject = source(line.source)?;
            if !matches!(refund.answer(), RefundAnswer::Refused(_)) {
                let merchant_no = refund.metadata.payment().map(|payment| payment.to_string()).unwrap_or_default();
                let number = refund.metadata.refund().map_or(refund.id, |refund| refund.to_string());
                bill.refunds.push(BillLine { number, merchant_no, amount: refund.amount, at });
            }
        }
        _ => {}
    }
    Ok(())
}

fn source<T: DeserializeOwned>(source: Value) -> Result<T> {
    serde_json::from_value(source)
        .map_err(|error| unavailable(Gateway::Stripe, format!("bill: a line's source: {error}")))
}

/// The day's first second, and the next day's.
fn bounds(date: &str, zone: &str) -> Result<(i64, i64)> {
    let zone = TimeZone::get(zone).context("finding the shop's time zone")?;
    let day: Date = date.parse().context("reading the day of a bill")?;
    let next = day.tomorrow().context("finding the next day")?;
    let start = |day: Date| day.to_zoned(zone.clone()).map(|start| start.timestamp().as_second());
    Ok((start(day).context("finding a day's start")?, start(next).context("finding a day's end")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_the_shops() {
        let (from, to) = bounds("2026-11-20", "Asia/Shanghai").unwrap();
        assert_eq!((At::from_ms(from * 1000).to_string(), to - from), ("2026-11-19T16:00:00Z".to_owned(), 86_400));
        let (from, to) = bounds("2026-10-25", "Europe/Berlin").unwrap();
        assert_eq!(to - from, 25 * 3600);
        assert!(bounds("yesterday", "UTC").is_err());
    }
}
