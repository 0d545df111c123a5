//! The sandbox gateway's HTTP surface.

use std::sync::LazyLock;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::model::{BuyerAct, BuyerAction, No, Refunding, Request, SandboxAnswer, SandboxTrade, TradeNo, TradeStatus};
use super::store::StoredNotify;
use crate::app::App;
use crate::error::Result;
use crate::platform::extract::{Input, Inputs, Path, RawBody};
use crate::platform::money::Money;
use crate::platform::policy;

/// Everything under `/sandbox`.
pub fn routes() -> Router<App> {
    Router::new().route("/api", post(api)).route("/pay/{trade_no}", get(page).post(pay))
}

/// The merchant's requests: verified over the raw bytes before anything is read, answered signed.
async fn api(State(app): State<App>, headers: HeaderMap, Input(RawBody(body)): Input<RawBody>) -> Result<Response> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let verified = super::secret(&app).verify(
        header("x-sandbox-timestamp"),
        header("x-sandbox-signature"),
        &body,
        app.clock.now(),
    );
    if verified.is_err() {
        // Not signed: whoever cannot sign with the merchant's secret gets nothing signed with it.
        return Ok((StatusCode::UNAUTHORIZED, axum::Json(refusal(No::InvalidSignature))).into_response());
    }
    let answer = match serde_json::from_slice::<Request>(&body) {
        Err(_) => Err(No::InvalidRequest),
        Ok(Request::Create(wanted)) => super::create(&app, &wanted).await?,
        Ok(Request::Query { merchant_no }) => super::query(&app, &merchant_no).await?,
        Ok(Request::Close { merchant_no }) => super::close(&app, &merchant_no).await?,
        Ok(Request::Refund(wanted)) => super::refund(&app, &wanted).await?,
        Ok(Request::QueryRefund { refund_no }) => super::query_refund(&app, &refund_no).await?,
        Ok(Request::Bill(wanted)) => super::bill(&app, &wanted).await?,
    };
    signed(&app, StatusCode::OK, answer)
}

fn signed(app: &App, status: StatusCode, answer: Result<SandboxAnswer, No>) -> Result<Response> {
    let value = match answer {
        Ok(answer) => json!({ "code": super::model::SUCCESS, "message": "ok", "data": answer }),
        Err(no) => refusal(no),
    };
    let body = serde_json::to_vec(&value).context("writing an answer")?;
    let (timestamp, signature) = super::secret(app).sign(&body, app.clock.now());
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("x-sandbox-timestamp", timestamp),
        ("x-sandbox-signature", signature),
    ];
    Ok((status, headers, body).into_response())
}

fn refusal(no: No) -> Value {
    let (code, message) = no.words();
    json!({ "code": code, "message": message })
}

/// What the buyer's phone hears when something cannot be done.
fn declined(no: No) -> Response {
    let status = match no {
        No::TradeNotFound => StatusCode::NOT_FOUND,
        No::AlreadyPaid | No::TradeOver | No::Conflict => StatusCode::CONFLICT,
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    (status, axum::Json(refusal(no))).into_response()
}

/// The cashier's page.
async fn page(State(app): State<App>, Input(Path(trade_no)): Input<Path<TradeNo>>) -> Result<Response> {
    let Some((trade, notifies)) = super::shown(&app, trade_no).await? else { return Ok(declined(No::TradeNotFound)) };
    let expired = trade.status == TradeStatus::Waiting && trade.expires_at <= app.clock.now();
    static POLICY: LazyLock<String> = LazyLock::new(|| policy::of_page(PAGE, "form-action 'self'"));
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
    ];
    Ok((headers, render(&trade, &notifies, expired)).into_response())
}

/// A button of the cashier's page, or `curl -d action=pay`. No login: it is the buyer's phone.
async fn pay(
    State(app): State<App>,
    headers: HeaderMap,
    Inputs(Path(trade_no), RawBody(body)): Inputs<Path<TradeNo>, RawBody>,
) -> Result<Response> {
    let act = match BuyerAct::parse(&body) {
        Ok(act) => act,
        Err(no) => return Ok(declined(no)),
    };
    let trade = match super::act(&app, trade_no, &act).await? {
        Ok(trade) => trade,
        Err(no) => return Ok(declined(no)),
    };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("");
    if accept.contains("text/html") {
        return Ok((StatusCode::SEE_OTHER, [(header::LOCATION, format!("/sandbox/pay/{trade_no}"))]).into_response());
    }
    let answer = json!({
        "code": super::model::SUCCESS,
        "message": "ok",
        "data": { "trade_no": trade.trade_no, "status": trade.status, "paid_fen": trade.paid_fen },
    });
    Ok(axum::Json(answer).into_response())
}

const PAGE: &str = include_str!("page.html");

fn render(trade: &SandboxTrade, notifies: &[StoredNotify], expired: bool) -> String {
    let (state, zh, en) = match trade.status {
        TradeStatus::Waiting if expired => ("over", "已过期", "expired"),
        TradeStatus::Waiting => ("open", "待支付", "waiting for payment"),
        TradeStatus::Paid => ("paid", "已支付", "paid"),
        TradeStatus::Failed => ("over", "支付失败", "failed"),
        TradeStatus::Closed => ("over", "已关闭", "closed"),
        TradeStatus::Refunded => ("done", "已退款", "refunded"),
    };
    let buttons: &[Button] = match state {
        "open" => &[PAY, FAIL, PAY_TWICE, PAY_WRONG_AMOUNT, PAY_LATE],
        "paid" | "done" => &[FAIL_AFTER_PAY, REFUNDS_SLOWLY, REFUNDS_NEVER, REFUNDS_AT_ONCE],
        _ => &[PAY_LATE],
    };
    let rows: String = notifies.iter().map(row).collect();
    PAGE.replace("{{state}}", &format!("{zh} · {en}"))
        .replace("{{amount}}", &Money::fen(trade.amount_fen).to_string())
        .replace("{{trade_no}}", &trade.trade_no.to_string())
        .replace("{{merchant_no}}", &escape(&trade.merchant_no))
        .replace("{{return_url}}", &escape(&trade.return_url))
        .replace("{{buttons}}", &buttons.iter().map(Button::html).collect::<String>())
        .replace("{{notifies}}", &rows)
        // Last, since it is text of the merchant's: what looks like a place to fill in it stays as it is.
        .replace("{{subject}}", &escape(&trade.subject))
}

/// One form of the page.
struct Button {
    action: BuyerAction,
    zh: &'static str,
    en: &'static str,
}

const PAY: Button = Button { action: BuyerAction::Pay, zh: "确认支付", en: "Pay" };
const FAIL: Button = Button { action: BuyerAction::Fail, zh: "支付失败", en: "Fail" };
const FAIL_AFTER_PAY: Button =
    Button {
        action: BuyerAction::Fail, zh: "支付后再发失败通知", en: "Send a failure message although it was paid"
    };
const PAY_TWICE: Button =
    Button { action: BuyerAction::PayTwice, zh: "支付并通知两次", en: "Pay, told twice (two notify ids)" };
const PAY_WRONG_AMOUNT: Button =
    Button { action: BuyerAction::PayWrongAmount, zh: "支付错误金额", en: "Pay a wrong amount" };
const PAY_LATE: Button = Button {
    action: BuyerAction::PayLate,
    zh: "延迟到账",
    en: "Pay late (the money comes even if the trade is closed)",
};

const REFUNDS_SLOWLY: Button =
    Button {
        action: BuyerAction::Refunds(Refunding::Slowly), zh: "退款处理中", en: "Let refunds take their time"
    };
const REFUNDS_NEVER: Button =
    Button { action: BuyerAction::Refunds(Refunding::Never), zh: "拒绝退款", en: "Decline refunds" };
const REFUNDS_AT_ONCE: Button =
    Button { action: BuyerAction::Refunds(Refunding::AtOnce), zh: "完成退款", en: "Make refunds, at once" };

impl Button {
    fn html(&self) -> String {
        let (name, field) = match self.action {
            BuyerAction::Pay => ("pay", ""),
            BuyerAction::Fail => ("fail", ""),
            BuyerAction::PayTwice => ("pay_twice", ""),
            BuyerAction::PayWrongAmount => (
                "pay_wrong_amount",
                "<label>金额（分） amount, fen <input name=\"amount_fen\" type=\"number\" min=\"1\" placeholder=\"-1\"></label>",
            ),
            BuyerAction::PayLate => (
                "pay_late",
                "<label>延迟（秒） delay, seconds <input name=\"delay_s\" type=\"number\" min=\"0\" value=\"60\"></label>",
            ),
            BuyerAction::Refunds(Refunding::AtOnce) => ("refunds_at_once", ""),
            BuyerAction::Refunds(Refunding::Slowly) => ("refunds_slowly", ""),
            BuyerAction::Refunds(Refunding::Never) => ("refunds_never", ""),
        };
        format!(
            "<form method=\"post\"><input type=\"hidden\" name=\"action\" value=\"{name}\">\
             <button class=\"{name}\">{} · {}</button>{field}</form>\n",
            self.zh, self.en
        )
    }
}

fn row(notify: &StoredNotify) -> String {
    let next = notify.next_at.map_or_else(|| "—".to_owned(), |at| at.to_string());
    format!(
        "<tr><td>{}</td><td>{}</td><td>{next}</td><td>{}</td></tr>\n",
        notify.id,
        notify.attempts,
        escape(&notify.last_answer)
    )
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::clock::At;

    #[test]
    fn the_page_shows_the_subject_as_text() {
        let trade = SandboxTrade {
            trade_no: TradeNo::new(),
            merchant_no: "m1".to_owned(),
            amount_fen: 1999,
            paid_fen: 0,
            status: TradeStatus::Waiting,
            subject: "<script>alert('x')</script> {{amount}}".to_owned(),
            notify_url: "http://localhost/n".to_owned(),
            return_url: "http://localhost/r?a=1&b=\"2\"".to_owned(),
            expires_at: At::from_ms(0),
            refunding: Refunding::AtOnce,
        };
        let page = render(&trade, &[], false);
        assert!(!page.contains("<script>") && page.contains("&lt;script&gt;"));
        assert!(page.contains("{{amount}}") && page.contains("19.99"));
        assert!(page.contains("a=1&amp;b=&quot;2&quot;"));
        for action in ["pay", "fail", "pay_twice", "pay_wrong_amount", "pay_late"] {
            assert!(page.contains(&format!("value=\"{action}\"")), "{action}");
        }
        assert!(!render(&trade, &[], true).contains("value=\"pay\""));
    }
}
