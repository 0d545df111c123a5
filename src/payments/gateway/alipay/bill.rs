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
//!
//! The zip is unpacked and read as a stream, one line at a time: beside the zip itself only what is kept of the lines is
//! held. In GBK the second byte of a sign is never one that ends a line, parts fields or begins a comment, so that each
//! line is decoded for itself.

use std::io::{BufRead, BufReader, Cursor, Read};

use anyhow::{Context, bail, ensure};
use csv::StringRecord;
use jiff::civil::DateTime;
use jiff::tz;
use zip::ZipArchive;

use crate::payments::model::{BILL_LINES_MAX, BillLine, DayBill};
use crate::platform::clock::At;
use crate::platform::money::Money;

/// Longest zip that is read, in bytes. It is held whole: its index is at its end.
pub(super) const ZIP_LIMIT: usize = 32 << 20;
/// What is unpacked of a zip at most, in bytes. Nothing of it is held: this bounds the time that a zip can take.
const TEXT_LIMIT: u64 = 512 << 20;
/// Longest line, in bytes.
const LINE_LIMIT: u64 = 64 << 10;
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
    read_within(zip, TEXT_LIMIT, BILL_LINES_MAX)
}

fn read_within(zip: &[u8], bytes_max: u64, lines_max: usize) -> anyhow::Result<DayBill> {
    let mut archive = ZipArchive::new(Cursor::new(zip)).context("opening the bill's zip")?;
    ensure!(archive.len() <= FILES_MAX, "the bill's zip has {} files, more than {FILES_MAX}", archive.len());
    let (mut left, mut bill) = (bytes_max, None);
    for index in 0..archive.len() {
        let file = archive.by_index(index).context("opening a file of the bill's zip")?;
        // What a zip says about the size of its files is not believed.
        let mut text = Text(BufReader::new(file.take(left + 1)));
        let lines = text.lines(lines_max)?;
        let unpacked = left + 1 - text.0.get_ref().limit();
        let too_long = || format!("the bill's files come to more than {bytes_max} bytes");
        left = left.checked_sub(unpacked).with_context(too_long)?;
        if let Some(lines) = lines {
            ensure!(bill.replace(lines).is_none(), "the bill's zip has two lists of lines");
        }
    }
    bill.context("the bill's zip has no list of lines")
}

/// A file in GBK.
struct Text<R>(BufReader<R>);

impl<R: Read> Text<R> {
    /// The next line, without its end.
    fn next(&mut self) -> anyhow::Result<Option<String>> {
        let mut bytes = Vec::new();
        let length =
            self.0.by_ref().take(LINE_LIMIT + 1).read_until(b'\n', &mut bytes).context("unpacking the bill")?;
        ensure!(length as u64 <= LINE_LIMIT, "the bill has a line of more than {LINE_LIMIT} bytes");
        // Not an error where a name of a product cannot be read: what is compared are numbers.
        let (text, _) = encoding_rs::GBK.decode_without_bom_handling(&bytes);
        Ok((length > 0).then(|| text.trim_end_matches(['\r', '\n']).to_owned()))
    }

    /// The bill's lines, at most `max`; `None` when it is another file, the sums for instance, of which no more is read.
    fn lines(&mut self, max: usize) -> anyhow::Result<Option<DayBill>> {
        let is_row = |line: &str| !line.is_empty() && !line.starts_with('#');
        let head = loop {
            match self.next()? {
                Some(line) if is_row(&line) => break fields(&line)?,
                Some(_) => {}
                None => return Ok(None),
            }
        };
        let Some(columns) = Columns::of(&head) else { return Ok(None) };
        let (mut bill, mut count, mut others, mut ended) = (DayBill::default(), 0_usize, 0_usize, false);
        while let Some(line) = self.next()? {
            if !is_row(&line) {
                ended |= line.contains(END);
                continue;
            }
            count += 1;
            ensure!(count <= max, "the bill has more than {max} lines");
            let row = fields(&line)?;
            ensure!(row.len() == head.len(), "a line of the bill is not as long as its head");
            match columns.line(&row)? {
                (PAYMENT, line) => bill.payments.push(line),
                (REFUND, line) => bill.refunds.push(line),
                _ => others += 1,
            }
        }
        ensure!(ended, "the bill is cut off");
        if others > 0 {
            tracing::info!(gateway = "alipay", lines = others, "bill has lines that are neither payments nor refunds");
        }
        Ok(Some(bill))
    }
}

/// The fields of a line. A quotation mark that is never closed takes the rest of it: it is then too short.
fn fields(line: &str) -> anyhow::Result<StringRecord> {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).buffer_capacity(line.len());
    let mut row = StringRecord::new();
    builder.from_reader(line.as_bytes()).read_record(&mut row).context("reading a line of the bill")?;
    Ok(row)
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
    fn of(head: &StringRecord) -> Option<Self> {
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
    fn line<'a>(&self, row: &'a StringRecord) -> anyhow::Result<(&'a str, BillLine)> {
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
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
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
        assert_eq!(bill.payments[0].at.to_string(), "2026-11-20T13:01:02.000Z");
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
    fn what_is_more_than_may_be_is_refused_by_the_name_of_the_bound() {
        let good = list(&[row("p1", "交易", "12.30", ""), row("p2", "交易", "0.01", "")]);
        let length = encoding_rs::GBK.encode(&good).0.len() as u64;
        let zip = zipped(&[&good]);
        let why = |zip: &[u8], bytes, lines| read_within(zip, bytes, lines).map(drop).unwrap_err().to_string();
        assert!(read_within(&zip, length, 2).is_ok());
        assert_eq!(why(&zip, length - 1, 2), format!("the bill's files come to more than {} bytes", length - 1));
        assert_eq!(why(&zip, length, 1), "the bill has more than 1 lines");
        // All files together.
        let remarks = "#\n".repeat(1 << 19);
        let bomb = zipped(&[&good, &remarks]);
        assert!(bomb.len() < 1 << 13, "{} bytes", bomb.len());
        assert!(why(&bomb, length + 1000, 2).contains("come to more than"));
        // A line is never held longer than it may be, also when the file goes on for ever.
        let zeros = zipped(&[&good, &"0".repeat(1 << 20)]);
        assert_eq!(why(&zeros, u64::MAX - 1, 2), "the bill has a line of more than 65536 bytes");
    }

    proptest! {
        /// What is in a list is read, whatever its goods are called and however they are written in GBK.
        #[test]
        fn every_line_of_a_list_is_read(fen in proptest::collection::vec((1i64..10_000_000, any::<bool>()), 0..20), name in "[^\"\\r\\n\\u{0}]{0,20}") {
            let named = |text: String| text.replacen("课程, A", &name, 1);
            let yuan = |fen: i64| format!("{}.{:02}", fen / 100, fen % 100);
            let rows: Vec<String> = fen.iter().enumerate().map(|(at, (fen, back))| named(match back {
                false => row(&format!("p{at}"), "交易", &yuan(*fen), ""),
                true => row(&format!("p{at}"), "退款", &format!("-{}", yuan(*fen)), &format!("r{at}")),
            })).collect();
            let bill = read(&zipped(&[SUMS, &list(&rows)])).unwrap();
            let all = |back: bool| fen.iter().filter(|it| it.1 == back).map(|it| it.0).collect::<Vec<_>>();
            let told = |lines: &[BillLine]| lines.iter().map(|line| line.amount.as_fen()).collect::<Vec<_>>();
            prop_assert_eq!((told(&bill.payments), told(&bill.refunds)), (all(false), all(true)));
        }

        /// A zip of any bytes, and a real one of which one byte is another: no panic, and never more lines than there were.
        #[test]
        fn no_bytes_make_reading_a_bill_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..400), text in proptest::collection::vec(any::<u8>(), 0..400),
            at: prop::sample::Index, byte in any::<u8>(),
        ) {
            prop_assert!(read(&bytes).is_err());
            let _ = Text(BufReader::new(&text[..])).lines(10);
            let good = list(&[row("p1", "交易", "12.30", ""), row("p1", "退款", "-2.30", "r1")]);
            let mut altered = encoding_rs::GBK.encode(&good).0.into_owned();
            let place = at.index(altered.len());
            altered[place] = byte;
            if let Ok(Some(bill)) = Text(BufReader::new(&altered[..])).lines(10) {
                prop_assert!(bill.payments.len() + bill.refunds.len() <= 2);
            }
            let mut zip = zipped(&[&good]);
            let place = at.index(zip.len());
            zip[place] = byte;
            if let Ok(bill) = read(&zip) {
                prop_assert!(bill.payments.len() + bill.refunds.len() <= 2);
            }
        }
    }
}
