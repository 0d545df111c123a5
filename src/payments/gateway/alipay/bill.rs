//! Alipay's bill of a day: a zip with two files in GBK, of which the one with the lines is read
//! (<https://docs.open.alipay.com/api_15/alipay.data.dataservice.bill.downloadurl.query>, `bill_type` = `trade`).
//!
//! ```text
//! #支付宝业务明细查询
//! #-----------------------------------------业务明细列表----------------------------------------
//! 支付宝交易号,商户订单号,业务类型,…,完成时间,…,订单金额（元）,…,退款批次号/请求号,…
//! 2026…\t,019a…\t,交易\t,…
//! #-----------------------------------------业务明细列表结束------------------------------------
//! #交易合计：1笔，…
//! ```
//!
//! Columns are found by their names, since Alipay has added some over the years. A bill that is cut off, or in which a
//! line is not as long as the first, is refused as a whole: a line that is passed over would look like money missing.

use std::io::{Cursor, Read};

use anyhow::{Context, bail, ensure};
use jiff::civil::DateTime;
use jiff::tz;
use zip::ZipArchive;

use crate::payments::model::{BillLine, DayBill};
use crate::platform::clock::At;
use crate::platform::money::Money;

/// Longest zip that is read, in bytes: some million lines.
pub(super) const ZIP_LIMIT: usize = 64 << 20;
/// What the files of a zip may come to, in bytes.
const TEXT_LIMIT: u64 = 512 << 20;
/// Files of a zip; Alipay sends two.
const FILES_MAX: usize = 16;

/// The columns that are read.
const TRADE: &str = "支付宝交易号";
const NUMBER: &str = "商户订单号";
const KIND: &str = "业务类型";
const FINISHED: &str = "完成时间";
const AMOUNT: &str = "订单金额";
const REFUND_NUMBER: &str = "退款批次号/请求号";
/// Of [`KIND`].
const PAYMENT: &str = "交易";
const REFUND: &str = "退款";
/// In the line below the last one.
const END: &str = "业务明细列表结束";

/// Reads the zip.
pub(super) fn read(zip: &[u8]) -> anyhow::Result<DayBill> {
    read_within(zip, TEXT_LIMIT)
}

fn read_within(zip: &[u8], limit: u64) -> anyhow::Result<DayBill> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).context("opening the bill's zip")?;
    ensure!(archive.len() <= FILES_MAX, "the bill's zip has {} files", archive.len());
    let (mut left, mut bill) = (limit, None);
    for index in 0..archive.len() {
        let file = archive.by_index(index).context("opening a file of the bill's zip")?;
        let mut bytes = Vec::new();
        // What a zip says about the size of its files is not believed.
        file.take(left + 1).read_to_end(&mut bytes).context("unpacking the bill")?;
        left = left.checked_sub(bytes.len() as u64).context("the bill is too long")?;
        // Not an error where a name of a product cannot be read: what is compared are numbers.
        let (text, _) = encoding_rs::GBK.decode_without_bom_handling(&bytes);
        if let Some(lines) = lines(&text)? {
            ensure!(bill.replace(lines).is_none(), "the bill's zip has two lists of lines");
        }
    }
    bill.context("the bill's zip has no list of lines")
}

/// The lines of a file; `None` when it is another one, the sums for instance.
fn lines(text: &str) -> anyhow::Result<Option<DayBill>> {
    let mut rows = csv::ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes())
        .into_records();
    let Some(head) = rows.next().transpose().context("reading the bill")? else { return Ok(None) };
    let Some(columns) = Columns::of(&head) else { return Ok(None) };
    ensure!(text.lines().any(|line| line.starts_with('#') && line.contains(END)), "the bill is cut off");
    let (mut bill, mut others) = (DayBill::default(), 0_usize);
    for row in rows {
        let row = row.context("reading the bill")?;
        // A field with several lines is one whose quotation mark was never closed.
        let whole = row.len() == head.len() && !row.iter().any(|field| field.contains(['\n', '\r']));
        ensure!(whole, "a line of the bill is not as long as its head");
        match columns.line(&row)? {
            (PAYMENT, line) => bill.payments.push(line),
            (REFUND, line) => bill.refunds.push(line),
            _ => others += 1,
        }
    }
    if others > 0 {
        tracing::info!(gateway = "alipay", lines = others, "bill has lines that are neither payments nor refunds");
    }
    Ok(Some(bill))
}

/// Where the columns are.
struct Columns {
    number: usize,
    kind: usize,
    finished: usize,
    amount: usize,
    refund_number: usize,
}

impl Columns {
    /// `None` when this is not the head of the list of lines.
    fn of(head: &csv::StringRecord) -> Option<Self> {
        // `订单金额（元）`: what is in brackets is the unit.
        let name = |field: &str| field.split(['（', '(']).next().unwrap_or_default().trim().to_owned();
        let at = |wanted: &str| head.iter().position(|field| name(field) == wanted);
        at(TRADE)?;
        Some(Self {
            number: at(NUMBER)?,
            kind: at(KIND)?,
            finished: at(FINISHED)?,
            amount: at(AMOUNT)?,
            refund_number: at(REFUND_NUMBER)?,
        })
    }

    /// A line, and its kind. Numbers stand with a tab behind them, so that spreadsheets take them for text.
    fn line<'a>(&self, row: &'a csv::StringRecord) -> anyhow::Result<(&'a str, BillLine)> {
        let field = |at: usize| row.get(at).unwrap_or_default().trim();
        let (kind, amount) = (field(self.kind), Money::from_yuan(field(self.amount)));
        let amount = amount.with_context(|| format!("no amount: {:.32}", field(self.amount)))?;
        // Refunds are below zero.
        let (number, amount) = match kind {
            REFUND => (field(self.refund_number), Money::ZERO.minus(amount)?),
            _ => (field(self.number), amount),
        };
        if amount < Money::ZERO {
            bail!("a {kind} of {amount} yuan in the bill");
        }
        let line = BillLine {
            number: number.to_owned(),
            merchant_no: field(self.number).to_owned(),
            amount,
            at: instant(field(self.finished))?,
        };
        Ok((kind, line))
    }
}

/// Alipay's times are Beijing's.
fn instant(text: &str) -> anyhow::Result<At> {
    let local = DateTime::strptime("%Y-%m-%d %H:%M:%S", text).with_context(|| format!("no time: {text:.32}"))?;
    Ok(tz::offset(super::BEIJING_H).to_timestamp(local)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use zip::write::{SimpleFileOptions, ZipWriter};

    const HEAD: &str = "支付宝交易号,商户订单号,业务类型,商品名称,创建时间,完成时间,门店编号,门店名称,操作员,终端号,对方账户,\
        订单金额（元）,商家实收（元）,支付宝红包（元）,集分宝（元）,支付宝优惠（元）,商家优惠（元）,券核销金额（元）,券名称,\
        商家红包消费金额（元）,卡消费金额（元）,退款批次号/请求号,服务费（元）,分润（元）,备注";

    fn row(number: &str, kind: &str, amount: &str, refund: &str) -> String {
        format!(
            "2026112022001424331431234567\t,{number}\t,{kind} ,\"课程, A\",2026-11-20 21:00:00,2026-11-20 21:01:02,\t,\t,\t,\t,\
             张*(138****0000)\t,{amount},{amount},0.00,0.00,0.00,0.00,0.00,,0.00\t,0.00,{refund}\t,-0.01,0.00,"
        )
    }

    fn list(rows: &[String]) -> String {
        let start = "#支付宝业务明细查询\r\n#账号：[20880000000000000156]\r\n#---业务明细列表---\r\n";
        format!("{start}{HEAD}\r\n{}\r\n#---业务明细列表结束---\r\n#交易合计：2笔\r\n", rows.join("\r\n"))
    }

    fn zipped(files: &[&str]) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        for (index, text) in files.iter().enumerate() {
            zip.start_file(format!("{index}.csv"), SimpleFileOptions::default()).unwrap();
            zip.write_all(&encoding_rs::GBK.encode(text).0).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    const SUMS: &str = "#支付宝业务汇总查询\r\n门店编号,门店名称,交易订单总笔数,退款订单总笔数\r\n合计,,2,1\r\n#---业务汇总列表结束---\r\n";

    #[test]
    fn payments_and_refunds_are_read_from_the_list_beside_the_sums() {
        let rows = [
            row("p1", "交易", "12.30", ""),
            row("p1", "退款", "-2.30", "r1"),
            row("p2", "交易", "0.01", ""),
            row("p3", "其他", "5.00", ""),
        ];
        let bill = read(&zipped(&[SUMS, &list(&rows)])).unwrap();
        let told = |lines: &[BillLine]| -> Vec<(String, String, i64)> {
            lines.iter().map(|line| (line.number.clone(), line.merchant_no.clone(), line.amount.as_fen())).collect()
        };
        let of = |number: &str, merchant: &str, fen| (number.to_owned(), merchant.to_owned(), fen);
        assert_eq!(told(&bill.payments), [of("p1", "p1", 1230), of("p2", "p2", 1)]);
        assert_eq!(told(&bill.refunds), [of("r1", "p1", 230)]);
        assert_eq!(bill.payments[0].at.to_string(), "2026-11-20T13:01:02Z");
        let empty = read(&zipped(&[&list(&[]), SUMS])).unwrap();
        assert!(empty.payments.is_empty() && empty.refunds.is_empty());
    }

    #[test]
    fn a_bill_that_is_not_whole_is_refused() {
        let good = list(&[row("p1", "交易", "12.30", ""), row("p2", "交易", "0.01", "")]);
        assert!(read(&zipped(&[&good])).is_ok());
        let cut = good.split("#---业务明细列表结束").next().unwrap().to_owned();
        for bad in [
            cut.clone(),
            cut[..cut.len() - 60].to_owned(),
            good.replacen(",0.00,", ",", 1),
            good.replacen("\"课程, A\"", "\"课程", 1),
            good.replacen("12.30", "12.3x", 1),
            good.replacen("12.30", "-12.30", 1),
            good.replacen("2026-11-20 21:01:02", "yesterday", 1),
            good.replacen("交易 ", "退款 ", 1),
            good.replace("退款批次号/请求号", "什么"),
        ] {
            assert!(read(&zipped(&[&bad])).is_err(), "{bad}");
        }
        assert!(read(&zipped(&[&good, &good])).is_err(), "two lists");
        assert!(read(&zipped(&[SUMS])).is_err(), "none");
        let zip = zipped(&[&good]);
        for bad in [&b""[..], b"no zip", &zip[..zip.len() - 1], &zip[1..]] {
            assert!(read(bad).is_err());
        }
        assert!(read(&zipped(&[""; FILES_MAX + 1])).is_err(), "too many files");
    }

    #[test]
    fn what_unpacks_to_more_than_it_may_is_refused() {
        let good = list(&[row("p1", "交易", "12.30", "")]);
        let length = encoding_rs::GBK.encode(&good).0.len() as u64;
        let zip = zipped(&[&good]);
        assert!(read_within(&zip, length).is_ok());
        assert!(read_within(&zip, length - 1).is_err());
        // All files together.
        let zeros = "0".repeat(1 << 20);
        let bomb = zipped(&[&good, &zeros]);
        assert!(bomb.len() < 1 << 13, "{} bytes", bomb.len());
        assert!(read_within(&bomb, length + 1000).is_err());
    }
}
