//! The trades of the tests' Alipay and what may be done to them, by the document of each call.

use std::collections::{BTreeMap, HashMap};

use onrush::platform::clock::At;
use serde_json::{Value, json};

use super::{APP_ID, SELLER_ID, yuan};

/// What becomes of refunds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Refunding {
    /// The money is back at once.
    #[default]
    AtOnce,
    /// It takes a while: `fund_change` is `N`, and the query knows of nothing until it has happened.
    Slowly,
    /// It is taken and lost: it happens only when it is sent again.
    Forgotten,
    /// The account is short of money.
    NoMoney,
    /// It may not be.
    Never,
}

/// What a buyer is asked to pay, opened or not.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub fen: i64,
    pub subject: String,
    pub expires: String,
    pub method: String,
}

#[derive(Debug, Clone)]
pub struct Trade {
    pub trade_no: String,
    pub status: &'static str,
    pub wanted: Wanted,
}

#[derive(Debug, Clone)]
struct Refund {
    trade: String,
    fen: i64,
    /// Whether it has happened.
    done: bool,
    /// Whether it is known to queries at all.
    forgotten: bool,
}

#[derive(Default)]
pub struct Books {
    /// Codes that were given out, and trades that they become.
    codes: HashMap<String, (String, Wanted)>,
    trades: HashMap<String, Trade>,
    refunds: BTreeMap<String, Refund>,
    pub refunding: Refunding,
    notifies: u32,
}

/// An answer's members, or why it is declined.
pub type Answer = Result<Value, &'static str>;

impl Books {
    /// The trade as it is now: one that nobody paid in time is closed.
    pub fn trade(&mut self, number: &str, now: At) -> Option<&mut Trade> {
        let trade = self.trades.get_mut(number)?;
        if trade.status == "WAIT_BUYER_PAY" && trade.wanted.expires <= super::api::beijing(now) {
            trade.status = "TRADE_CLOSED";
        }
        Some(trade)
    }

    /// The buyer opens the page, or scans the code: the trade begins to be.
    pub fn open(&mut self, number: &str, wanted: Wanted, now: At) -> Answer {
        if wanted.expires <= super::api::beijing(now) {
            return Err("ACQ.TRADE_HAS_CLOSE");
        }
        match self.trade(number, now) {
            None => {
                let trade_no = format!("20261120220014243314{:08}", self.trades.len());
                self.trades.insert(number.to_owned(), Trade { trade_no, status: "WAIT_BUYER_PAY", wanted });
                Ok(json!({}))
            }
            Some(trade) if trade.wanted.fen != wanted.fen || trade.wanted.method != wanted.method => {
                Err("ACQ.CONTEXT_INCONSISTENT")
            }
            Some(trade) => match trade.status {
                "WAIT_BUYER_PAY" => Ok(json!({})),
                "TRADE_CLOSED" => Err("ACQ.TRADE_HAS_CLOSE"),
                _ => Err("ACQ.TRADE_HAS_SUCCESS"),
            },
        }
    }

    pub fn precreate(&mut self, number: &str, wanted: Wanted, now: At) -> Answer {
        match self.trade(number, now).map(|trade| trade.status) {
            None | Some("WAIT_BUYER_PAY") => {
                let code = format!("https://qr.alipay.com/{number}");
                self.codes.insert(code.clone(), (number.to_owned(), wanted));
                Ok(json!({ "out_trade_no": number, "qr_code": code }))
            }
            Some("TRADE_CLOSED") => Err("ACQ.TRADE_HAS_CLOSE"),
            Some(_) => Err("ACQ.TRADE_HAS_SUCCESS"),
        }
    }

    #[track_caller]
    pub fn scan(&mut self, code: &str, now: At) {
        let (number, wanted) = self.codes.get(code).cloned().expect("a code of ours");
        self.open(&number, wanted, now).expect("a trade that can be paid");
    }

    #[track_caller]
    pub fn pay(&mut self, number: &str, now: At) {
        let trade = self.trade(number, now).expect("a trade that was opened");
        assert_eq!(trade.status, "WAIT_BUYER_PAY", "only this can be paid");
        trade.status = "TRADE_SUCCESS";
    }

    pub fn query(&mut self, number: &str, now: At) -> Answer {
        let trade = self.trade(number, now).ok_or("ACQ.TRADE_NOT_EXIST")?;
        Ok(json!({
            "buyer_logon_id": "138****0000", "buyer_pay_amount": "0.00", "out_trade_no": number,
            "total_amount": yuan(trade.wanted.fen), "trade_no": trade.trade_no, "trade_status": trade.status,
            "subject": trade.wanted.subject, "store_name": "a/b \"}{\\",
        }))
    }

    pub fn close(&mut self, number: &str, now: At) -> Answer {
        let trade = self.trade(number, now).ok_or("ACQ.TRADE_NOT_EXIST")?;
        if trade.status != "WAIT_BUYER_PAY" {
            return Err("ACQ.TRADE_STATUS_ERROR");
        }
        trade.status = "TRADE_CLOSED";
        Ok(json!({ "trade_no": trade.trade_no, "out_trade_no": number }))
    }

    pub fn refund(&mut self, number: &str, request: &str, fen: i64, now: At) -> Answer {
        let (refunding, trade) = (self.refunding, self.trade(number, now).ok_or("ACQ.TRADE_NOT_EXIST")?.clone());
        if refunding == Refunding::Never {
            return Err("ACQ.TRADE_NOT_ALLOW_REFUND");
        }
        if refunding == Refunding::NoMoney {
            return Err("ACQ.SELLER_BALANCE_NOT_ENOUGH");
        }
        let mut changed = false;
        match self.refunds.get_mut(request) {
            Some(known) if known.fen != fen || known.trade != number => return Err("ACQ.DISCORDANT_REPEAT_REQUEST"),
            Some(known) => known.forgotten &= refunding == Refunding::Forgotten,
            None => {
                let left = trade.wanted.fen - self.refunds(number).iter().map(|(_, fen)| fen).sum::<i64>();
                match trade.status {
                    "TRADE_SUCCESS" if fen <= left => {}
                    "TRADE_SUCCESS" => return Err("ACQ.REASON_TRADE_REFUND_FEE_ERR"),
                    "TRADE_FINISHED" => return Err("ACQ.TRADE_HAS_FINISHED"),
                    _ => return Err("ACQ.TRADE_STATUS_ERROR"),
                }
                changed = refunding == Refunding::AtOnce;
                let forgotten = refunding == Refunding::Forgotten;
                let refund = Refund { trade: number.to_owned(), fen, done: changed, forgotten };
                self.refunds.insert(request.to_owned(), refund);
            }
        }
        if refunding == Refunding::AtOnce {
            self.end_refunds();
        }
        let sum: i64 = self.refunds(number).iter().map(|(_, fen)| fen).sum();
        Ok(json!({
            "out_trade_no": number, "trade_no": trade.trade_no, "refund_fee": yuan(sum),
            "fund_change": if changed { "Y" } else { "N" },
        }))
    }

    /// What was left waiting happens; a trade of which all went back is closed.
    pub fn end_refunds(&mut self) {
        for refund in self.refunds.values_mut().filter(|refund| !refund.forgotten) {
            refund.done = true;
        }
        for (number, trade) in &mut self.trades {
            let back: i64 = self.refunds.values().filter(|r| r.done && r.trade == *number).map(|r| r.fen).sum();
            if back == trade.wanted.fen {
                trade.status = "TRADE_CLOSED";
            }
        }
    }

    pub fn query_refund(&mut self, number: &str, request: &str, now: At) -> Answer {
        let trade = self.trade(number, now).ok_or("ACQ.TRADE_NOT_EXIST")?;
        let (fen, trade_no) = (trade.wanted.fen, trade.trade_no.clone());
        match self.refunds.get(request) {
            Some(refund) if refund.done && refund.trade == number => Ok(json!({
                "trade_no": trade_no, "out_trade_no": number, "out_request_no": request, "total_amount": yuan(fen),
                "refund_amount": yuan(refund.fen), "refund_status": "REFUND_SUCCESS",
            })),
            _ => Ok(json!({})),
        }
    }

    /// What went back of a trade, as (refund number, fen).
    pub fn refunds(&self, number: &str) -> Vec<(String, i64)> {
        let of_trade = self.refunds.iter().filter(|(_, refund)| refund.done && refund.trade == number);
        of_trade.map(|(request, refund)| (request.clone(), refund.fen)).collect()
    }

    /// The parameters of a notify of the trade as it is.
    #[track_caller]
    pub fn notify(&mut self, number: &str, now: At) -> Vec<(String, String)> {
        self.notifies += 1;
        let id = format!("20261120002222100110098110{:08}", self.notifies);
        let trade = self.trade(number, now).expect("a trade").clone();
        [
            ("gmt_create", "2026-11-20 21:00:00"),
            ("charset", "utf-8"),
            ("notify_time", "2026-11-20 21:00:01"),
            ("notify_type", "trade_status_sync"),
            ("notify_id", &id),
            ("version", "1.0"),
            ("app_id", APP_ID),
            ("auth_app_id", APP_ID),
            ("seller_id", SELLER_ID),
            ("buyer_id", "2088102122524333"),
            ("out_trade_no", number),
            ("trade_no", &trade.trade_no),
            ("trade_status", trade.status),
            ("total_amount", &yuan(trade.wanted.fen)),
            ("receipt_amount", &yuan(trade.wanted.fen)),
            ("subject", &trade.wanted.subject),
            ("fund_bill_list", r#"[{"amount":"1.00","fundChannel":"ALIPAYACCOUNT"}]"#),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
    }
}
