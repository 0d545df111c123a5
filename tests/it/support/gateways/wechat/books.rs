//! The fake WeChat Pay's books: trades, refunds, the bill of a day.

use std::collections::BTreeMap;

use aws_lc_rs::digest;
use jiff::tz::{TimeZone, offset};
use onrush::platform::clock::At;
use onrush::platform::money::Money;
use serde_json::{Value, json};

use super::{APPID, MCHID};

/// What becomes of refunds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Refunding {
    #[default]
    AtOnce,
    /// They are under way until the test ends them.
    Slowly,
    /// The buyer's account takes no money.
    Abnormally,
    /// The merchant's balance is empty.
    NotNow,
}

#[derive(Debug)]
pub(super) struct Trade {
    pub request: Value,
    pub way: String,
    pub state: &'static str,
    pub transaction_id: String,
    pub paid_at: Option<At>,
}

#[derive(Debug)]
pub struct Refund {
    pub request: Value,
    pub status: String,
    transaction_id: String,
    at: At,
}

#[derive(Debug, Default)]
pub(super) struct Books {
    pub trades: BTreeMap<String, Trade>,
    pub refunds: BTreeMap<String, Refund>,
    pub refunding: Refunding,
    /// Numbers of which the bill has another amount, or no line at all.
    pub wrong: BTreeMap<String, Option<i64>>,
}

impl Trade {
    pub fn view(&self) -> Value {
        let mut view = json!({
            "mchid": MCHID, "appid": APPID, "out_trade_no": self.request["out_trade_no"],
            "trade_state": self.state, "trade_state_desc": "状态",
            "amount": { "total": self.request["amount"]["total"], "currency": "CNY" },
        });
        if let Some(at) = self.paid_at {
            view["transaction_id"] = self.transaction_id.clone().into();
            view["trade_type"] = self.way.to_uppercase().into();
            view["success_time"] = beijing(at, "%Y-%m-%dT%H:%M:%S%:z").into();
            view["payer"] = json!({ "openid": "oUpF8uMuAJO_M2pxb1Q9zNjWeS6o" });
            view["amount"]["payer_total"] = self.request["amount"]["total"].clone();
        }
        view
    }

    fn total(&self) -> i64 {
        self.request["amount"]["total"].as_i64().expect("an amount")
    }
}

impl Refund {
    pub fn view(&self) -> Value {
        json!({
            "refund_id": format!("503{}", &self.transaction_id[3..]), "out_refund_no": self.request["out_refund_no"],
            "transaction_id": self.transaction_id, "out_trade_no": self.request["out_trade_no"],
            "channel": "ORIGINAL", "user_received_account": "支付用户零钱", "status": self.status,
            "create_time": beijing(self.at, "%Y-%m-%dT%H:%M:%S%:z"),
            "amount": {
                "total": self.request["amount"]["total"], "refund": self.amount(), "payer_total": self.request["amount"]["total"],
                "payer_refund": self.amount(), "currency": "CNY",
            },
        })
    }

    fn amount(&self) -> i64 {
        self.request["amount"]["refund"].as_i64().expect("an amount")
    }
}

/// What an operation says: a status, and a body.
pub(super) type Said = (u16, Value);

fn refuse(status: u16, code: &str) -> Said {
    (status, json!({ "code": code, "message": "不可以" }))
}

impl Books {
    #[track_caller]
    pub fn pay(&mut self, no: &str, now: At) {
        let trade = self.trades.get_mut(no).expect("a trade");
        assert_eq!(trade.state, "NOTPAY", "nobody can pay it");
        let until: jiff::Timestamp = trade.request["time_expire"].as_str().expect("a time").parse().expect("a time");
        assert!(now.timestamp() <= until, "its time is over");
        (trade.state, trade.paid_at) = ("SUCCESS", Some(now));
    }

    pub fn open(&mut self, way: &str, request: Value) -> Said {
        let no = request["out_trade_no"].as_str().expect("a number").to_owned();
        match self.trades.get(&no) {
            Some(trade) if trade.state == "CLOSED" => return refuse(400, "ORDER_CLOSED"),
            Some(trade) if trade.state != "NOTPAY" => return refuse(400, "ORDERPAID"),
            Some(trade) if trade.request != request || trade.way != way => return refuse(403, "OUT_TRADE_NO_USED"),
            _ => {}
        }
        let transaction_id = format!("42000{:023}", self.trades.len());
        let trade = Trade { request, way: way.to_owned(), state: "NOTPAY", transaction_id, paid_at: None };
        self.trades.entry(no.clone()).or_insert(trade);
        let answer = match way {
            "native" => json!({ "code_url": format!("weixin://wxpay/bizpayurl?pr={}", &no[..9]) }),
            "h5" => {
                json!({ "h5_url": format!("https://wx.tenpay.com/cgi-bin/mmpayweb-bin/checkmweb?prepay_id=wx{no}") })
            }
            _ => json!({ "prepay_id": format!("wx{no}") }),
        };
        (200, answer)
    }

    pub fn close(&mut self, no: &str) -> Said {
        match self.trades.get_mut(no) {
            None => refuse(404, "ORDER_NOT_EXIST"),
            Some(trade) if trade.state == "CLOSED" => refuse(400, "ORDER_CLOSED"),
            Some(trade) if trade.state != "NOTPAY" => refuse(400, "ORDERPAID"),
            Some(trade) => {
                trade.state = "CLOSED";
                (204, Value::Null)
            }
        }
    }

    pub fn query(&self, no: &str) -> Said {
        self.trades.get(no).map_or_else(|| refuse(404, "ORDER_NOT_EXIST"), |trade| (200, trade.view()))
    }

    pub fn refund(&mut self, request: Value, now: At) -> Said {
        let no = request["out_refund_no"].as_str().expect("a number").to_owned();
        if let Some(refund) = self.refunds.get(&no) {
            return if refund.request == request { (200, refund.view()) } else { refuse(400, "INVALID_REQUEST") };
        }
        if self.refunding == Refunding::NotNow {
            return refuse(403, "NOT_ENOUGH");
        }
        let paid_no = request["out_trade_no"].as_str().expect("a number");
        let before: i64 =
            self.refunds.values().filter(|r| r.request["out_trade_no"] == paid_no).map(Refund::amount).sum();
        let Some(trade) = self.trades.get_mut(paid_no).filter(|trade| trade.paid_at.is_some()) else {
            return refuse(404, "RESOURCE_NOT_EXISTS");
        };
        let amount = request["amount"]["refund"].as_i64().expect("an amount");
        if request["amount"]["total"] != trade.total() || amount <= 0 || before + amount > trade.total() {
            return refuse(400, "INVALID_REQUEST");
        }
        trade.state = "REFUND";
        let status = match self.refunding {
            Refunding::AtOnce => "SUCCESS",
            Refunding::Abnormally => "ABNORMAL",
            _ => "PROCESSING",
        };
        let transaction_id = trade.transaction_id.clone();
        let refund = Refund { request, status: status.to_owned(), transaction_id, at: now };
        let view = refund.view();
        self.refunds.insert(no, refund);
        (200, view)
    }

    pub fn query_refund(&self, no: &str) -> Said {
        self.refunds.get(no).map_or_else(|| refuse(404, "RESOURCE_NOT_EXISTS"), |refund| (200, refund.view()))
    }

    /// A trade of which no request of ours knows, and a refund of a trade that somebody made by hand.
    pub fn foreign_trade(&mut self, no: &str, fen: i64, now: At) {
        let request = json!({ "out_trade_no": no, "amount": { "total": fen } });
        let transaction_id = format!("42000{:023}", self.trades.len());
        let trade = Trade { request, way: "native".to_owned(), state: "SUCCESS", transaction_id, paid_at: Some(now) };
        self.trades.insert(no.to_owned(), trade);
    }

    pub fn foreign_refund(&mut self, no: &str, trade_no: &str, fen: i64, now: At) {
        let trade = &self.trades[trade_no];
        let request = json!({
            "out_trade_no": trade_no, "out_refund_no": no, "amount": { "refund": fen, "total": trade.total() },
        });
        let transaction_id = trade.transaction_id.clone();
        self.refunds.insert(no.to_owned(), Refund { request, status: "SUCCESS".to_owned(), transaction_id, at: now });
    }

    /// Where the bill of a day is.
    pub fn announce(&self, date: &str, url: &str) -> Said {
        let Some(file) = self.bill(date) else { return refuse(400, "NO_STATEMENT_EXIST") };
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, file.as_bytes());
        let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let download = format!("{url}/v3/billdownload/file?token={date}%2F{}", file.len());
        (200, json!({ "hash_type": "SHA1", "hash_value": digest, "download_url": download }))
    }

    /// The bill of a day, if anything moved on it.
    pub fn bill(&self, date: &str) -> Option<String> {
        let mut lines = Vec::new();
        let line = |at: At, trade: &Trade, refund: Option<&Refund>| {
            let no = |value: &Value| value.as_str().expect("a number").to_owned();
            let (state, refund_no, refund_status) = match refund {
                None => ("SUCCESS", "0".to_owned(), ""),
                Some(refund) => ("REFUND", no(&refund.request["out_refund_no"]), &*refund.status),
            };
            let number = if refund.is_some() { refund_no.clone() } else { no(&trade.request["out_trade_no"]) };
            let wrong = self.wrong.get(&number).copied();
            let said = |amount: i64| wrong.flatten().unwrap_or(amount);
            let paid = if refund.is_some() { 0 } else { said(trade.total()) };
            let back = refund.map_or(0, |refund| said(refund.amount()));
            format!(
                "`{},`{APPID},`{MCHID},`0,`,`{},`{},`oX,`{},`{state},`OTHERS,`CNY,`{},`0.00,`0,`{refund_no},`{},`0.00,`,\
                 `{refund_status},`课程, 第一册,`,`0.00000,`0.60%,`{},`{},`",
                beijing(at, "%Y-%m-%d %H:%M:%S"),
                trade.transaction_id,
                no(&trade.request["out_trade_no"]),
                trade.way.to_uppercase(),
                Money::fen(paid),
                Money::fen(back),
                Money::fen(paid),
                Money::fen(back),
            )
        };
        let of_the_day = |at: At| beijing(at, "%Y-%m-%d") == date;
        let listed = |no: &str| self.wrong.get(no) != Some(&None);
        for (_, trade) in self.trades.iter().filter(|(no, _)| listed(no)) {
            lines.extend(trade.paid_at.filter(|at| of_the_day(*at)).map(|at| line(at, trade, None)));
        }
        for (_, refund) in self.refunds.iter().filter(|(no, refund)| listed(no) && of_the_day(refund.at)) {
            let trade = &self.trades[refund.request["out_trade_no"].as_str().expect("a number")];
            lines.push(line(refund.at, trade, Some(refund)));
        }
        let titles = "交易时间,公众账号ID,商户号,特约商户号,设备号,微信订单号,商户订单号,用户标识,交易类型,交易状态,付款银行,货币种类,\
                      应结订单金额,代金券金额,微信退款单号,商户退款单号,退款金额,充值券退款金额,退款类型,退款状态,商品名称,商户数据包,\
                      手续费,费率,订单金额,申请退款金额,费率备注";
        let totals = "总交易单数,应结订单总金额,退款总金额,充值券退款总金额,手续费总金额,订单总金额,申请退款总金额";
        let end = format!("`{},`0.00,`0.00,`0.00,`0.00000,`0.00,`0.00", lines.len());
        (!lines.is_empty()).then(|| format!("{titles}\r\n{}\r\n{totals}\r\n{end}\r\n", lines.join("\r\n")))
    }
}

fn beijing(at: At, form: &str) -> String {
    at.timestamp().to_zoned(TimeZone::fixed(offset(8))).strftime(form).to_string()
}
