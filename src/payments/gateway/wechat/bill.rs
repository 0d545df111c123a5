//! WeChat Pay's bill of a day: the file of all trades and refunds.
//!
//! CSV in UTF-8, by <https://pay.weixin.qq.com/doc/v3/merchant/4012791887>: a line of titles, the trades, a
//! second line of titles and one of totals. Every value has a backquote before it, and a name of goods may hold commas.
//! Amounts are decimal yuan, times those of Beijing.

use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest;
use jiff::civil::DateTime;
use jiff::tz::{TimeZone, offset};

use crate::payments::model::{BILL_LINES_MAX, BillLine, DayBill};
use crate::platform::clock::At;
use crate::platform::money::Money;

/// Checks a file against its announced digest: of SHA-1, of the file as it is unpacked.
pub(super) fn check(file: &[u8], hash_type: &str, hash_value: &str) -> anyhow::Result<()> {
    ensure!(hash_type == "SHA1", "WeChat Pay's bill has a digest of {hash_type:.16}, not of SHA1");
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, file);
    let digest = hex::encode(digest);
    ensure!(digest.eq_ignore_ascii_case(hash_value), "WeChat Pay's bill is not the file that was announced");
    Ok(())
}

/// Where the values that we need are in a line.
struct Columns {
    count: usize,
    at: usize,
    mchid: usize,
    trade: usize,
    state: usize,
    amount: usize,
    refund: usize,
    refunded: usize,
    refund_state: usize,
}

impl Columns {
    /// Found by their titles: their order is nobody's promise.
    fn of(titles: &str) -> anyhow::Result<Self> {
        let titles: Vec<&str> = titles.split(',').map(str::trim).collect();
        let find = |title: &str| {
            titles
                .iter()
                .position(|it| *it == title)
                .with_context(|| format!("WeChat Pay's bill has no column {title}"))
        };
        Ok(Self {
            count: titles.len(),
            at: find("交易时间")?,
            mchid: find("商户号")?,
            trade: find("商户订单号")?,
            state: find("交易状态")?,
            // Both as they were asked for, before coupons that WeChat Pay or the shop paid.
            amount: find("订单金额")?,
            refund: find("商户退款单号")?,
            refunded: find("申请退款金额")?,
            refund_state: find("退款状态")?,
        })
    }
}

/// The lines of a bill that are ours.
pub(super) fn parse(file: &[u8], mchid: &str) -> anyhow::Result<DayBill> {
    let text = std::str::from_utf8(file).context("reading WeChat Pay's bill")?;
    let mut lines = text.trim_start_matches('\u{feff}').lines().filter(|line| !line.trim().is_empty());
    let columns = Columns::of(lines.next().context("WeChat Pay's bill is empty")?)?;
    let (mut bill, mut trades) = (DayBill::default(), 0_u64);
    for line in lines.by_ref() {
        let Some(values) = line.strip_prefix('`') else { break };
        let values: Vec<&str> = values.split(",`").map(str::trim_end).collect();
        ensure!(values.len() == columns.count, "a line of WeChat Pay's bill has {} values", values.len());
        trades += 1;
        ensure!(trades <= BILL_LINES_MAX as u64, "WeChat Pay's bill has more than {BILL_LINES_MAX} lines");
        if values[columns.mchid] != mchid {
            bail!("WeChat Pay's bill is another merchant's");
        }
        add(&mut bill, &columns, &values)
            .with_context(|| format!("reading line {} of WeChat Pay's bill", trades + 1))?;
    }
    // The totals end the file: without them it was cut.
    let totals = lines.next().and_then(|line| line.strip_prefix('`')).context("WeChat Pay's bill has no end")?;
    let count: u64 = totals.split(",`").next().unwrap_or_default().parse().context("reading the totals of the bill")?;
    ensure!(count == trades, "WeChat Pay's bill counts {count} lines and has {trades}");
    Ok(bill)
}

fn add(bill: &mut DayBill, columns: &Columns, values: &[&str]) -> anyhow::Result<()> {
    let (merchant_no, at) = (values[columns.trade].to_owned(), beijing(values[columns.at])?);
    match values[columns.state] {
        "SUCCESS" => {
            let amount = yuan(values[columns.amount])?;
            bill.payments.push(BillLine { number: merchant_no.clone(), merchant_no, amount, at });
        }
        "REFUND" if stands(values[columns.refund_state]) => {
            let (number, amount) = (values[columns.refund].to_owned(), yuan(values[columns.refunded])?);
            bill.refunds.push(BillLine { number, merchant_no, amount, at });
        }
        // Of a payment by a code at a till, taken back before it was final: none of ours, and no money moved.
        "REFUND" | "REVOKED" => {}
        other => bail!("a trade in state {other:.16}"),
    }
    Ok(())
}

/// Whether a refund of this state took the money from us, or is about to. What is none of the known ends is taken to be:
/// were it not, the comparison tells.
fn stands(state: &str) -> bool {
    !matches!(state, "FAIL" | "FAILED" | "CLOSED")
}

/// An exact amount from decimal yuan, such as `1.05`.
fn yuan(text: &str) -> anyhow::Result<Money> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "00"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    ensure!(digits(whole) && digits(part) && part.len() <= 2, "{text:.24} is no amount");
    let fen: i64 = format!("{whole}{part:0<2}").parse().with_context(|| format!("{text:.24} is too much"))?;
    Ok(Money::fen(fen))
}

/// `2026-11-20 16:33:45`, in Beijing.
fn beijing(text: &str) -> anyhow::Result<At> {
    let time = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).with_context(|| format!("{text:.24} is no time"))?;
    let at = time.to_zoned(TimeZone::fixed(offset(8))).context("a time that is none")?;
    Ok(at.timestamp().into())
}
