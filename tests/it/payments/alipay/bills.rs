//! The bill of a day.

use super::*;
use onrush::error::Kind;
use onrush::payments::BillLine;

#[tokio::test(flavor = "multi_thread")]
async fn a_bill_is_read_line_by_line() {
    let (h, alipay) = shop().await;
    let at = "2026-11-20 00:00:07";
    alipay.make_bill(
        "2026-11-20",
        &[
            bill_line("p1", 1999, "", at),
            bill_line("p2", 5, "", at),
            bill_line("p1", 1000, "r1", "2026-11-20 23:59:59"),
        ],
    );
    let bill = payments::bill(&h.app, Gateway::Alipay, "2026-11-20").await.unwrap();
    let told = |lines: &[BillLine]| -> Vec<(String, String, i64, String)> {
        let told = |line: &BillLine| {
            (line.number.clone(), line.merchant_no.clone(), line.amount.as_fen(), line.at.to_string())
        };
        lines.iter().map(told).collect()
    };
    let line = |number: &str, payment: &str, fen, at: &str| (number.to_owned(), payment.to_owned(), fen, at.to_owned());
    let midnight = "2026-11-19T16:00:07.000Z";
    assert_eq!(told(&bill.payments), [line("p1", "p1", 1999, midnight), line("p2", "p2", 5, midnight)]);
    assert_eq!(told(&bill.refunds), [line("r1", "p1", 1000, "2026-11-20T15:59:59.000Z")]);
    all_is_well(&h, &alipay).await;
}

/// Taken for an empty one, everything of the day would look as if it were missing there.
#[tokio::test(flavor = "multi_thread")]
async fn a_bill_that_is_not_made_yet_is_not_an_empty_one() {
    let (h, alipay) = shop().await;
    let today = jiff::tz::offset(8).to_datetime(h.now().timestamp()).date();
    let bill = async || payments::bill(&h.app, Gateway::Alipay, &today.to_string()).await;
    assert_eq!(bill().await.unwrap_err().kind(), Kind::GatewayUnavailable);
    let noon = jiff::tz::offset(8).to_timestamp(today.tomorrow().unwrap().at(12, 0, 0, 0)).unwrap();
    h.advance(onrush::platform::clock::At::from(noon).since(h.now()).saturating_sub(Duration::from_secs(1)));
    assert_eq!(bill().await.unwrap_err().kind(), Kind::GatewayUnavailable);
    h.advance(Duration::from_secs(1));
    let empty = bill().await.unwrap();
    assert!(empty.payments.is_empty() && empty.refunds.is_empty());
    for manner in [Manner::Unsigned, Manner::Altered, Manner::UnknownKey, Manner::Busy] {
        alipay.behave(manner);
        assert_eq!(bill().await.unwrap_err().kind(), Kind::GatewayUnavailable, "{manner:?}");
    }
    all_is_well(&h, &alipay).await;
}
