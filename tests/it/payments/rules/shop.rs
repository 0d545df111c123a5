//! A shop with one gateway, driven alike whichever it is: what the buyer, the gateway and the shop do.

use std::sync::Arc;

use onrush::payments::{BillLine, Gateway};
use onrush::platform::text::Text;

use super::super::crossing::{self, Between};
use super::super::{alipay, stripe, wechat, *};
use crate::support::gateways::alipay::{Alipay, Manner as AlipayManner, NEW_KEY, UNKNOWN_KEY, bill_line, yuan};
use crate::support::gateways::stripe::{Manner as StripeManner, Stripe};
use crate::support::gateways::wechat::{API_V3_KEY, Manner as WechatManner, PUBLIC_KEY, UNKNOWN, Wechat};

/// The gateway behind a shop.
enum Fake {
    Sandbox(Arc<Between>),
    Alipay(Alipay),
    Wechat(Wechat),
    Stripe(Stripe),
}

pub struct Shop {
    pub h: Harness,
    pub gateway: Gateway,
    pub alice: Person,
    pub admin: Person,
    fake: Fake,
}

/// An attempt to pay.
#[derive(Debug, Clone)]
pub struct Started {
    pub order: String,
    pub no: String,
    pub fen: i64,
    /// The trade, by the number that the gateway's buyer has: not every gateway gives one.
    trade: String,
}

/// What a message says of an attempt.
#[derive(Debug, Clone)]
pub enum Says {
    Paid,
    /// Paid, so much.
    Amount(i64),
    InDollars,
    OfAnotherMerchant,
    /// Paid, and this is the payment's number.
    Of(String),
    /// It failed, or is closed.
    NotPaid,
}

/// A message as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Wire {
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
}

impl Wire {
    pub fn without(&self, header: &str) -> Self {
        let headers = self.headers.iter().filter(|(name, _)| *name != header).cloned().collect();
        Self { headers, body: self.body.clone() }
    }

    pub fn altered(&self, at: usize) -> Self {
        let mut altered = self.clone();
        altered.body[at] ^= 1;
        altered
    }
}

/// Where nobody listens.
const NOWHERE: &str = "http://127.0.0.1:9";

impl Shop {
    pub async fn open(gateway: Gateway) -> Self {
        let (h, fake) = match gateway {
            Gateway::Sandbox => {
                let (h, between) = crossing::service_behind().await;
                between.gateway.set(h.base.clone()).unwrap();
                (h, Fake::Sandbox(between))
            }
            _ => Self::outside(gateway, Vec::new()).await,
        };
        Self::of(gateway, h, fake).await
    }

    /// One that was told that its gateway is where nobody is.
    pub async fn astray(gateway: Gateway) -> Self {
        let (h, fake) = match gateway {
            Gateway::Sandbox => {
                let h = service_with(vec![("payments.sandbox_url", NOWHERE.to_owned())]).await;
                (h, Fake::Sandbox(Arc::default()))
            }
            Gateway::Alipay => {
                Self::outside(gateway, vec![("payments.alipay.base_url", format!("{NOWHERE}/gateway.do"))]).await
            }
            Gateway::Wechat => Self::outside(gateway, vec![("payments.wechat.base_url", NOWHERE.to_owned())]).await,
            Gateway::Stripe => Self::outside(gateway, vec![("payments.stripe.base_url", NOWHERE.to_owned())]).await,
        };
        Self::of(gateway, h, fake).await
    }

    async fn outside(gateway: Gateway, more: Vec<(&'static str, String)>) -> (Harness, Fake) {
        match gateway {
            Gateway::Sandbox => unreachable!("it is inside"),
            Gateway::Alipay => {
                let (h, alipay) = alipay::shop_with(more).await;
                (h, Fake::Alipay(alipay))
            }
            Gateway::Wechat => {
                let (h, wechat) = wechat::shop_with(more).await;
                (h, Fake::Wechat(wechat))
            }
            Gateway::Stripe => {
                let shop = stripe::shop_with(more).await;
                (shop.h, Fake::Stripe(shop.stripe))
            }
        }
    }

    async fn of(gateway: Gateway, h: Harness, fake: Fake) -> Self {
        let (alice, admin) = (h.register().await, h.admin().await);
        Self { h, gateway, alice, admin, fake }
    }

    /// Asks to pay, the way that asks the gateway for a trade at once where there is one.
    pub async fn pay_asking(&self, order: &str) -> Answer {
        let mut body = json!({ "gateway": self.gateway.as_str() });
        if self.gateway == Gateway::Alipay {
            body["channel"] = "qr".into();
        }
        self.h.post(&format!("/orders/{order}/pay"), &self.alice, body).await
    }

    /// Starts to pay this order; the gateway knows the trade, and the buyer can pay it.
    pub async fn start(&self, order: String) -> Started {
        let body = json!({ "gateway": self.gateway.as_str() });
        let answer = self.h.post(&format!("/orders/{order}/pay"), &self.alice, body).await.expect(200);
        let no = answer.text_of("payment_no");
        let trade = match &self.fake {
            Fake::Sandbox(_) => trade_of(&answer),
            Fake::Alipay(_) => {
                // A trade begins when the page is opened.
                send(self.h.client.http.get(answer.text_of("pay_url"))).await.expect(200);
                no.clone()
            }
            Fake::Wechat(_) => no.clone(),
            Fake::Stripe(stripe) => stripe.session_of(&no),
        };
        let fen = "SELECT amount_fen FROM payments WHERE id = ?";
        let fen = sqlx::query_scalar(fen).bind(id(&no)).fetch_one(&self.h.app.db).await.unwrap();
        Started { order, no, fen, trade }
    }

    pub async fn started(&self, price_fen: i64) -> Started {
        self.start(order(&self.h, &self.alice, price_fen).await).await
    }

    /// An order that is paid.
    pub async fn paid(&self, price_fen: i64) -> Started {
        let started = self.started(price_fen).await;
        self.moves(&started).await;
        self.yes(self.tell(&started, Says::Paid).await);
        assert_eq!(self.status(&started).await, "paid");
        started
    }

    /// The buyer's money moves, and nobody is told.
    pub async fn moves(&self, of: &Started) {
        match &self.fake {
            Fake::Sandbox(_) => drop(buyer(&self.h, &of.trade, "action=pay").await.expect(200)),
            Fake::Alipay(alipay) => drop(alipay.pay(&of.no)),
            Fake::Wechat(wechat) => drop(wechat.pay(&of.no)),
            Fake::Stripe(stripe) => drop(stripe.pay(&of.trade)),
        }
    }

    /// A message, under an id of its own.
    pub fn says(&self, of: &Started, says: Says) -> Vec<u8> {
        match &self.fake {
            Fake::Sandbox(_) => {
                let id = Uuid::now_v7().as_simple().to_string();
                let mut body = paid_body(&id, &of.no, &of.trade, of.fen);
                match says {
                    Says::Paid => {}
                    Says::Amount(fen) => body["amount_fen"] = fen.into(),
                    Says::InDollars => body["currency"] = "USD".into(),
                    Says::OfAnotherMerchant => body["merchant_id"] = "somebody-else".into(),
                    Says::Of(number) => body["merchant_no"] = number.into(),
                    Says::NotPaid => body["code"] = "200000".into(),
                }
                serde_json::to_vec(&body).unwrap()
            }
            Fake::Alipay(alipay) => {
                let mut notify = alipay.notify(&of.no);
                match says {
                    Says::Paid => &mut notify,
                    Says::Amount(fen) => notify.set("total_amount", &yuan(fen)),
                    Says::InDollars => notify.set("trans_currency", "USD"),
                    Says::OfAnotherMerchant => notify.set("seller_id", "2088000000000009"),
                    Says::Of(number) => notify.set("out_trade_no", &number),
                    Says::NotPaid => notify.set("trade_status", "TRADE_CLOSED"),
                };
                alipay.body(&notify).into_bytes()
            }
            Fake::Wechat(wechat) => {
                let change = |trade: &mut Value| match says {
                    Says::Paid => {}
                    Says::Amount(fen) => trade["amount"]["total"] = fen.into(),
                    Says::InDollars => trade["amount"]["currency"] = "USD".into(),
                    Says::OfAnotherMerchant => trade["mchid"] = "1900000108".into(),
                    Says::Of(number) => trade["out_trade_no"] = number.into(),
                    Says::NotPaid => trade["trade_state"] = "CLOSED".into(),
                };
                wechat.paid(&of.no, change).body
            }
            Fake::Stripe(stripe) => {
                let (mut session, mut kind, mut live) = (stripe.object(&of.trade), "checkout.session.completed", false);
                match says {
                    Says::Paid => {}
                    Says::Amount(fen) => session["amount_total"] = fen.into(),
                    Says::InDollars => session["currency"] = "usd".into(),
                    Says::OfAnotherMerchant => live = true,
                    Says::Of(number) => session["metadata"]["payment_no"] = number.into(),
                    Says::NotPaid => {
                        kind = "checkout.session.async_payment_failed";
                        session["payment_status"] = "unpaid".into();
                    }
                }
                let mut event = stripe.event(kind, session);
                event["livemode"] = live.into();
                serde_json::to_vec(&event).unwrap()
            }
        }
    }

    /// Signs a message as the gateway does now. (Alipay's signature is in its body, and has no time.)
    pub fn sign(&self, body: Vec<u8>) -> Wire {
        let headers = match &self.fake {
            Fake::Sandbox(_) => sandbox_headers(&secret(), &body, &self.h),
            Fake::Alipay(_) => Vec::new(),
            Fake::Wechat(wechat) => {
                let notify = wechat.sign(body.clone(), Duration::ZERO);
                notify.headers().into_iter().map(|(name, value)| (name, value.to_owned())).collect()
            }
            Fake::Stripe(stripe) => {
                vec![("Stripe-Signature", stripe.signature(&stripe.secrets, &body, &self.h))]
            }
        };
        Wire { headers, body }
    }

    /// The same message, by somebody who has a key of the right kind and not the right one.
    pub fn signed_by_another(&self, of: &Started) -> Wire {
        match &self.fake {
            Fake::Sandbox(_) => {
                let body = self.says(of, Says::Paid);
                let headers = sandbox_headers(&SharedSecret::new(b"another-secret-of-16"), &body, &self.h);
                Wire { headers, body }
            }
            Fake::Alipay(alipay) => {
                alipay.sign_with(UNKNOWN_KEY);
                let wire = self.sign(self.says(of, Says::Paid));
                alipay.sign_with(NEW_KEY);
                wire
            }
            Fake::Wechat(wechat) => {
                wechat.sign_with(UNKNOWN);
                let wire = self.sign(self.says(of, Says::Paid));
                wechat.sign_with(PUBLIC_KEY);
                wire
            }
            Fake::Stripe(stripe) => {
                let body = self.says(of, Says::Paid);
                let header = stripe.signature(&["whsec_unknown".to_owned()], &body, &self.h);
                Wire { headers: vec![("Stripe-Signature", header)], body }
            }
        }
    }

    /// What no signature is complete without.
    pub fn signature_headers(&self) -> &'static [&'static str] {
        match self.gateway {
            Gateway::Sandbox => &["X-Sandbox-Timestamp", "X-Sandbox-Signature"],
            Gateway::Alipay => &[],
            Gateway::Wechat => &["Wechatpay-Timestamp", "Wechatpay-Nonce", "Wechatpay-Serial", "Wechatpay-Signature"],
            Gateway::Stripe => &["Stripe-Signature"],
        }
    }

    /// Sends what is on the wire.
    pub async fn send(&self, wire: &Wire) -> Answer {
        let path = format!("/payments/{}/notify", self.gateway.as_str());
        let kind = match self.gateway {
            Gateway::Alipay => "application/x-www-form-urlencoded; charset=utf-8",
            _ => "application/json",
        };
        let request = self.h.request(Method::POST, &path, ()).header("content-type", kind).body(wire.body.clone());
        send(wire.headers.iter().fold(request, |request, (name, value)| request.header(*name, value))).await
    }

    pub async fn tell(&self, of: &Started, says: Says) -> Answer {
        self.send(&self.sign(self.says(of, says))).await
    }

    /// Tells of the last refund of a payment.
    pub async fn tell_refund(&self, of: &Started) -> Answer {
        let (refund, fen) = self.refund(of).await;
        let body = match &self.fake {
            Fake::Sandbox(_) => {
                let mut body = paid_body(&Uuid::now_v7().as_simple().to_string(), &of.no, &of.trade, fen);
                body["code"] = "100001".into();
                body["refund_no"] = refund.into();
                serde_json::to_vec(&body).unwrap()
            }
            Fake::Alipay(alipay) => alipay.body(&alipay.notify_refund(&of.no)).into_bytes(),
            Fake::Wechat(wechat) => wechat.end_refund(&refund, "SUCCESS").body,
            Fake::Stripe(stripe) => {
                serde_json::to_vec(&stripe.event("refund.updated", stripe.refunds()[0].clone())).unwrap()
            }
        };
        self.send(&self.sign(body)).await
    }

    /// The answer is this gateway's yes.
    #[track_caller]
    pub fn yes(&self, answer: Answer) {
        let yes = match self.gateway {
            Gateway::Sandbox | Gateway::Alipay => (200, "success"),
            Gateway::Wechat => (204, ""),
            Gateway::Stripe => (200, ""),
        };
        assert_eq!((answer.status, answer.text().as_str()), yes);
    }

    /// The answer has this status and is nothing that this gateway takes for yes.
    #[track_caller]
    pub fn no(&self, answer: Answer, status: u16) {
        assert_eq!(answer.status, status, "{}", answer.text());
        match self.gateway {
            Gateway::Sandbox | Gateway::Alipay => assert_eq!(answer.text(), "failure"),
            Gateway::Wechat => assert_eq!(answer["code"], "FAIL"),
            Gateway::Stripe => assert_eq!(answer.text(), ""),
        }
    }

    /// The answer is a failure of ours: whatever it says, nobody takes it for yes.
    #[track_caller]
    pub fn no_of_any_kind(&self, answer: Answer) {
        assert!(answer.status >= 500 && answer.text() != "success", "{} {}", answer.status, answer.text());
    }

    pub async fn status(&self, of: &Started) -> String {
        status(&self.h, &self.alice, &of.order).await
    }

    pub async fn cancel(&self, of: &Started) -> Answer {
        self.h.post(&format!("/orders/{}/cancel", of.order), &self.alice, json!({})).await
    }

    /// The order is cancelled, and the buyer pays after the gateway was asked and before it closes the trade.
    pub async fn cancel_crossed_by_money(&self, of: &Started) -> Answer {
        match &self.fake {
            Fake::Sandbox(between) => {
                let (there, go) = between.hold("close", false);
                let meanwhile = async {
                    there.await.unwrap();
                    self.moves(of).await;
                    go.send(()).unwrap();
                };
                return tokio::join!(self.cancel(of), meanwhile).0;
            }
            Fake::Alipay(alipay) => alipay.before_close("TRADE_SUCCESS"),
            Fake::Wechat(wechat) => wechat.pays_at_close(),
            Fake::Stripe(stripe) => stripe.pay_at_expiry(),
        }
        self.cancel(of).await
    }

    /// Whether the buyer can pay the trade at the gateway.
    pub async fn can_be_paid(&self, of: &Started) -> bool {
        match &self.fake {
            Fake::Sandbox(_) => {
                let status = "SELECT status FROM sandbox_trades WHERE merchant_no = ?";
                let Text(status) = sqlx::query_scalar(status).bind(&of.no).fetch_one(&self.h.app.db).await.unwrap();
                status == "waiting"
            }
            Fake::Alipay(alipay) => alipay.status(&of.no) == Some("WAIT_BUYER_PAY"),
            Fake::Wechat(wechat) => wechat.trade(&of.no)["trade_state"] == "NOTPAY",
            Fake::Stripe(stripe) => stripe.object(&of.trade)["status"] == "open",
        }
    }

    /// The gateway answers nothing of use to the next question, with all its tries.
    pub fn is_silent(&self) {
        match &self.fake {
            Fake::Sandbox(between) => *between.fail.lock().unwrap() = Some(("query", 3)),
            Fake::Alipay(alipay) => alipay.behave(AlipayManner::Broken),
            Fake::Wechat(wechat) => wechat.behave(WechatManner::Broken),
            Fake::Stripe(stripe) => stripe.behave(StripeManner::Broken),
        }
    }

    /// The answers to the next refund are lost, with all its tries. (The sandbox does not even hear of it.)
    pub fn loses_answers(&self) {
        match &self.fake {
            Fake::Sandbox(between) => *between.fail.lock().unwrap() = Some(("refund", 3)),
            Fake::Alipay(alipay) => alipay.behave(AlipayManner::CutsOff),
            Fake::Wechat(wechat) => wechat.behave(WechatManner::CutsOff),
            Fake::Stripe(stripe) => stripe.behave(StripeManner::CutsOff),
        }
    }

    pub fn is_well(&self) {
        match &self.fake {
            Fake::Sandbox(between) => *between.fail.lock().unwrap() = None,
            Fake::Alipay(alipay) => alipay.behave(AlipayManner::Well),
            Fake::Wechat(wechat) => wechat.behave(WechatManner::Well),
            Fake::Stripe(stripe) => stripe.behave(StripeManner::Well),
        }
    }

    /// An administrator gives so much of an order back.
    pub async fn give_back(&self, of: &Started, fen: i64) {
        let key = Uuid::now_v7().as_simple().to_string();
        let body = json!({ "reason": "the buyer asked", "amount_fen": fen });
        self.h.post_once(&format!("/admin/orders/{}/refund", of.order), &self.admin, &key, body).await.expect(201);
    }

    /// Sends the refunds that are due, or asks about them.
    pub async fn drive_refunds(&self) {
        self.h.advance(Duration::from_secs(3600));
        payments::drive_refunds(&self.h.app).await.unwrap();
    }

    /// The number and amount of the last refund of a payment in our books.
    pub async fn refund(&self, of: &Started) -> (String, i64) {
        let refund = "SELECT id, amount_fen FROM refunds WHERE payment_id = ? ORDER BY id DESC LIMIT 1";
        let (number, fen): (Uuid, i64) =
            sqlx::query_as(refund).bind(id(&of.no)).fetch_one(&self.h.app.db).await.unwrap();
        (number.as_simple().to_string(), fen)
    }

    /// What went back of a payment by the gateway's books.
    pub async fn given_back(&self, of: &Started) -> Vec<i64> {
        match &self.fake {
            Fake::Sandbox(_) => {
                let amounts = "SELECT r.amount_fen FROM sandbox_refunds r JOIN sandbox_trades t ON t.trade_no = r.trade_no \
                               WHERE t.merchant_no = ?";
                sqlx::query_scalar(amounts).bind(&of.no).fetch_all(&self.h.app.db).await.unwrap()
            }
            Fake::Alipay(alipay) => alipay.refunds(&of.no).into_iter().map(|(_, fen)| fen).collect(),
            Fake::Wechat(wechat) => {
                let of_it = |refund: &Value| refund["out_trade_no"] == of.no;
                let refunds = wechat.refunds().into_iter().filter(of_it);
                refunds.map(|refund| refund["amount"]["refund"].as_i64().unwrap()).collect()
            }
            Fake::Stripe(stripe) => {
                let intent = stripe.object(&of.trade)["payment_intent"].clone();
                let refunds = stripe.refunds().into_iter().filter(|refund| refund["payment_intent"] == intent);
                refunds.map(|refund| refund["amount"].as_i64().unwrap()).collect()
            }
        }
    }

    /// The bill of this day, read when the day is over: its payments and its refunds, as (number, fen).
    pub async fn bill(&self, of: &Started) -> [Vec<(String, i64)>; 2] {
        let day = jiff::tz::offset(8).to_datetime(self.h.now().timestamp()).date().to_string();
        if let Fake::Alipay(alipay) = &self.fake {
            let ((refund, back), noon) = (self.refund(of).await, format!("{day} 12:00:00"));
            alipay.make_bill(&day, &[bill_line(&of.no, of.fen, "", &noon), bill_line(&of.no, back, &refund, &noon)]);
        }
        self.h.advance(Duration::from_secs(36 * 3600));
        let bill = payments::bill(&self.h.app, self.gateway, &day).await.unwrap();
        let lines = |lines: &[BillLine]| lines.iter().map(|line| (line.number.clone(), line.amount.as_fen())).collect();
        [lines(&bill.payments), lines(&bill.refunds)]
    }

    /// What must be read nowhere: keys, secrets, and the signature of this message.
    pub fn secrets(&self, wire: &Wire) -> Vec<String> {
        // A line from the middle: the first ones are alike for all keys.
        let middle_of = |pem: String| pem.lines().nth(9).unwrap().to_owned();
        let mut secrets: Vec<String> = wire
            .headers
            .iter()
            .filter(|(name, _)| name.ends_with("-Signature"))
            .map(|(_, value)| value.clone())
            .collect();
        match &self.fake {
            Fake::Sandbox(_) => secrets.push(crate::support::harness::SANDBOX_SECRET.to_owned()),
            Fake::Alipay(alipay) => {
                let form: Vec<(String, String)> = serde_urlencoded::from_bytes(&wire.body).unwrap();
                secrets.extend(form.into_iter().filter(|(name, _)| name == "sign").map(|(_, sign)| sign));
                secrets.push(middle_of(alipay.merchant.private_pem()));
            }
            Fake::Wechat(wechat) => {
                secrets.push(String::from_utf8(API_V3_KEY.to_vec()).unwrap());
                secrets.push(middle_of(wechat.keys.merchant.private_pem()));
            }
            Fake::Stripe(stripe) => {
                secrets.push(stripe.key.clone());
                secrets.extend(stripe.secrets.iter().cloned());
            }
        }
        secrets
    }

    /// How many messages did this.
    pub async fn messages(&self, outcome: &str) -> i64 {
        let count = "SELECT COUNT(*) FROM payment_notifications WHERE gateway = ? AND outcome = ?";
        let count = sqlx::query_scalar(count).bind(self.gateway.as_str()).bind(outcome);
        count.fetch_one(&self.h.app.db).await.unwrap()
    }

    /// The books of the shop hold together, and the gateway refused nothing that we asked.
    pub async fn ends_well(&self) {
        // What the workers would have done by now.
        let owed = sqlx::query_scalar("SELECT id FROM orders WHERE status = 1 AND granted_at IS NULL");
        let owed: Vec<Uuid> = owed.fetch_all(&self.h.app.db).await.unwrap();
        for order in owed {
            orders::grant_now(&self.h.app, OrderId::from_uuid(order)).await.unwrap();
        }
        release(&self.h).await;
        crate::seckill::assert_clean(&self.h).await;
        if let Fake::Alipay(alipay) = &self.fake {
            alipay::all_is_well(&self.h, alipay).await;
        }
    }
}

/// A number of ours as the database has it.
pub fn id(no: &str) -> OrderId {
    no.parse().unwrap()
}

fn sandbox_headers(secret: &SharedSecret, body: &[u8], h: &Harness) -> Vec<(&'static str, String)> {
    let (timestamp, signature) = secret.sign(body, h.now());
    vec![("X-Sandbox-Timestamp", timestamp), ("X-Sandbox-Signature", signature)]
}
