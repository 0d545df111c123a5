//! The fake Stripe's API: who asks, under which key, with which parameters.

use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::extract::State as Shared;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::books::{Books, Form, Kept};
use super::{Manner, Seen, State, error};

const INVALID: &str = "invalid_request_error";

/// What may be said when a session is created.
const SESSION: &[&str] = &[
    "mode",
    "client_reference_id",
    "metadata[payment_no]",
    "payment_intent_data[metadata][payment_no]",
    "line_items[0][quantity]",
    "line_items[0][price_data][currency]",
    "line_items[0][price_data][unit_amount]",
    "line_items[0][price_data][product_data][name]",
    "adaptive_pricing[enabled]",
    "success_url",
    "cancel_url",
    "expires_at",
];
const REFUND: &[&str] = &["payment_intent", "amount", "metadata[payment_no]", "metadata[refund_no]"];
const REFUNDS: &[&str] = &["payment_intent", "limit", "starting_after"];
const BALANCE: &[&str] = &["created[gte]", "created[lt]", "limit", "starting_after", "expand[0]"];

pub(super) async fn answer(
    Shared(state): Shared<Arc<Mutex<State>>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let (manner, (status, value), hold) = {
        let mut state = state.lock().expect("nobody panicked");
        let answer = state.handle(&method, &uri, &headers, &body);
        (state.manner, answer, state.hold.take_if(|(path, ..)| *path == uri.path()))
    };
    if let Some((_, done, may_go)) = hold {
        let _ = done.send(());
        let _ = may_go.await;
    }
    if manner == Manner::Hangs {
        std::future::pending::<()>().await;
    }
    let text = serde_json::to_string_pretty(&value).expect("JSON");
    let response = Response::builder()
        .status(if manner == Manner::Proxied { 400 } else { status })
        .header("content-type", "application/json")
        .header("request-id", "req_of_the_fake");
    let body = match manner {
        Manner::CutsOff => {
            let half = Bytes::from(text[..text.len() / 2].to_owned());
            Body::from_stream(futures_util::stream::iter([Ok(half), Err(std::io::Error::other("cut off"))]))
        }
        Manner::Babbles | Manner::Proxied => Body::from("<html>Something went wrong</html>"),
        _ => Body::from(text),
    };
    response.body(body).expect("a response").into_response()
}

impl State {
    fn handle(&mut self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &[u8]) -> (u16, Value) {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let parameters = if *method == Method::GET { uri.query().unwrap_or_default().as_bytes() } else { body };
        let pairs: Vec<(String, String)> = serde_urlencoded::from_bytes(parameters).unwrap_or_default();
        let form: Form = pairs.iter().cloned().collect();
        let key = header("idempotency-key").map(str::to_owned);
        let version = header("stripe-version").map(str::to_owned);
        let (method_name, path) = (method.to_string(), uri.path().to_owned());
        self.seen.push(Seen {
            method: method_name,
            path: path.clone(),
            form: form.clone(),
            idempotency_key: key.clone(),
            version: version.clone(),
        });
        if let Some(refused) = self.out_of_sorts() {
            return refused;
        }
        if self.manner == Manner::Deaf || header("authorization") != Some(&format!("Bearer {}", self.key)) {
            return error(401, INVALID, None, None, "Invalid API Key provided: sk_test_****");
        }
        if form.len() != pairs.len() {
            return error(400, INVALID, None, None, "Invalid string: a parameter was given twice");
        }
        // The real one takes the account's own version when none is named: what it means may then change under us.
        if !version.is_some_and(|version| version.starts_with("20")) {
            return error(400, INVALID, None, None, "Invalid Stripe API version");
        }
        if *method == Method::GET {
            return if body.is_empty() { self.get(&path, &form) } else { error(400, INVALID, None, None, "No body") };
        }
        if header("content-type") != Some("application/x-www-form-urlencoded") {
            return error(400, INVALID, None, None, "Invalid request: please use form encoding");
        }
        let Some(key) = key.filter(|key| (1..=255).contains(&key.len())) else {
            return error(400, INVALID, None, None, "Every request that changes something has its idempotency key");
        };
        self.post_once(&path, form, &key)
    }

    fn out_of_sorts(&self) -> Option<(u16, Value)> {
        match self.manner {
            Manner::Broken | Manner::Hangs => Some(error(500, "api_error", None, None, "An unknown error occurred")),
            Manner::RateLimited => Some(error(429, INVALID, Some("rate_limit"), None, "Request rate limit exceeded.")),
            Manner::Busy => Some(error(
                409,
                "idempotency_error",
                Some("idempotency_key_in_use"),
                None,
                "There is currently another in-progress request using this Idempotent Key",
            )),
            _ => None,
        }
    }

    /// The same request under the same key is answered the same; another one is refused.
    fn post_once(&mut self, path: &str, form: Form, key: &str) -> (u16, Value) {
        let now = self.now();
        self.books.forget_old(now);
        if let Some(kept) = self.books.kept.get(key) {
            return if kept.request == (path.to_owned(), form) {
                kept.answer.clone()
            } else {
                let message = "Keys for idempotent requests can only be used with the same parameters they were first \
                               used with.";
                error(400, "idempotency_error", None, None, message)
            };
        }
        match self.books.post(path, &form, now) {
            // Nothing began, so nothing is kept.
            Err(refused) => refused,
            Ok(answer) => {
                let kept = Kept { request: (path.to_owned(), form), answer: answer.clone(), at: now };
                self.books.kept.insert(key.to_owned(), kept);
                answer
            }
        }
    }

    fn get(&self, path: &str, form: &Form) -> (u16, Value) {
        let books = &self.books;
        match path.strip_prefix("/v1/").unwrap_or_default() {
            "refunds" => match unknown(form, REFUNDS) {
                Some(refused) => refused,
                None => page(&books.refunds, form, |refund| {
                    form.get("payment_intent").is_none_or(|intent| refund["payment_intent"] == intent.as_str())
                }),
            },
            "balance_transactions" => match unknown(form, BALANCE) {
                Some(refused) => refused,
                None => {
                    let bound = |name: &str| form.get(name).and_then(|bound| bound.parse().ok());
                    let (from, to) = (bound("created[gte]").unwrap_or(0), bound("created[lt]").unwrap_or(i64::MAX));
                    let lines: Vec<Value> = books.balance.iter().map(|line| books.expanded(line, form)).collect();
                    page(&lines, form, |line| line["created"].as_i64().is_some_and(|at| (from..to).contains(&at)))
                }
            },
            other => match other.strip_prefix("checkout/sessions/") {
                Some(id) => books.retrieve(id, form),
                None => error(404, INVALID, None, None, "Unrecognized request URL"),
            },
        }
    }
}

/// A parameter that the real one would not know.
fn unknown(form: &Form, known: &[&str]) -> Option<(u16, Value)> {
    let name = form.keys().find(|name| !known.contains(&name.as_str()))?;
    Some(error(400, INVALID, Some("parameter_unknown"), Some(name), &format!("Received unknown parameter: {name}")))
}

fn missing(id: &str) -> (u16, Value) {
    error(404, INVALID, Some("resource_missing"), Some("id"), &format!("No such object: '{id}'"))
}

fn invalid(param: &str, message: &str) -> (u16, Value) {
    error(400, INVALID, None, Some(param), message)
}

/// Newest first, at most `limit`, behind `starting_after`.
fn page(all: &[Value], form: &Form, fits: impl Fn(&Value) -> bool) -> (u16, Value) {
    let limit = form.get("limit").map_or(Ok(10), |limit| limit.parse::<usize>());
    let Some(limit) = limit.ok().filter(|limit| (1..=100).contains(limit)) else {
        return invalid("limit", "This value must be between 1 and 100");
    };
    let mut fitting: Vec<&Value> = all.iter().filter(|object| fits(object)).collect();
    if let Some(after) = form.get("starting_after") {
        let Some(at) = fitting.iter().position(|object| object["id"] == after.as_str()) else { return missing(after) };
        fitting.drain(..=at);
    }
    let has_more = fitting.len() > limit;
    fitting.truncate(limit);
    (200, json!({"object": "list", "data": fitting, "has_more": has_more, "url": "/v1/…"}))
}

type Begun = Result<(u16, Value), (u16, Value)>;

impl Books {
    fn post(&mut self, path: &str, form: &Form, now: i64) -> Begun {
        match path {
            "/v1/checkout/sessions" => self.create(form, now),
            "/v1/refunds" => self.refund(form, now),
            _ => {
                let id = path.strip_prefix("/v1/checkout/sessions/").and_then(|rest| rest.strip_suffix("/expire"));
                self.expire_now(id.ok_or_else(|| error(404, INVALID, None, None, "Unrecognized request URL"))?, now)
            }
        }
    }

    fn create(&mut self, form: &Form, now: i64) -> Begun {
        if let Some(refused) = unknown(form, SESSION) {
            return Err(refused);
        }
        let text = |name: &str| form.get(name).cloned().ok_or_else(|| invalid(name, "Missing required param"));
        let amount = text("line_items[0][price_data][unit_amount]")?;
        let amount: i64 = amount.parse().map_err(|_| invalid("unit_amount", "Invalid integer"))?;
        if amount <= 0 || text("line_items[0][quantity]")? != "1" || text("mode")? != "payment" {
            return Err(invalid("line_items", "This fake sells one thing at a time"));
        }
        if text("adaptive_pricing[enabled]")? != "false" {
            return Err(invalid("adaptive_pricing", "The buyer would see other amounts than ours"));
        }
        let currency = text("line_items[0][price_data][currency]")?;
        if currency.len() != 3 || currency != currency.to_lowercase() {
            return Err(invalid("currency", "Invalid currency"));
        }
        let name = text("line_items[0][price_data][product_data][name]")?;
        for url in ["success_url", "cancel_url"] {
            if reqwest::Url::parse(&text(url)?).is_err() {
                return Err(invalid(url, "Not a valid URL"));
            }
        }
        if name.is_empty() || text("client_reference_id")?.len() > 200 {
            return Err(invalid("name", "You passed an empty or a too long string"));
        }
        let expires_at = match form.get("expires_at") {
            Some(at) => at.parse().map_err(|_| invalid("expires_at", "Invalid integer"))?,
            None => now + 24 * 3600,
        };
        if expires_at < now + 1800 {
            let message = "The `expires_at` timestamp must be at least 30 minutes from Checkout Session creation.";
            return Err(invalid("expires_at", message));
        }
        if expires_at > now + 24 * 3600 {
            let message = "The `expires_at` timestamp must be less than 24 hours from Checkout Session creation.";
            return Err(invalid("expires_at", message));
        }
        let id = self.id("cs_test");
        let session = json!({
            "id": id, "object": "checkout.session", "amount_subtotal": amount, "amount_total": amount,
            "client_reference_id": text("client_reference_id")?, "created": now, "currency": currency,
            "customer_details": null, "expires_at": expires_at, "livemode": false,
            "metadata": {"payment_no": text("metadata[payment_no]")?},
            "intent_metadata": {"payment_no": text("payment_intent_data[metadata][payment_no]")?},
            "mode": "payment", "payment_intent": null, "payment_status": "unpaid", "status": "open",
            "success_url": text("success_url")?, "cancel_url": text("cancel_url")?,
            "url": format!("https://checkout.stripe.com/c/pay/{id}#fid"),
        });
        self.sessions.push(session.clone());
        Ok((200, session))
    }

    fn expire_now(&mut self, id: &str, now: i64) -> Begun {
        if !self.sessions.iter().any(|session| session["id"] == id) {
            return Err(missing(id));
        }
        if std::mem::take(&mut self.pays_at_expiry) {
            self.pay(id, now);
        }
        let status = self.session(id)["status"].as_str().unwrap_or_default().to_owned();
        if status != "open" {
            let message = format!(
                "Only Checkout Sessions with a status in [\"open\"] can be expired. This Checkout Session has a status \
                 of `{status}`."
            );
            return Ok(error(400, INVALID, None, None, &message));
        }
        self.expire(id, now);
        Ok((200, self.session(id).clone()))
    }

    fn refund(&mut self, form: &Form, now: i64) -> Begun {
        if let Some(refused) = unknown(form, REFUND) {
            return Err(refused);
        }
        let text = |name: &str| form.get(name).cloned().ok_or_else(|| invalid(name, "Missing required param"));
        let amount: i64 = text("amount")?.parse().map_err(|_| invalid("amount", "Invalid integer"))?;
        let intent = text("payment_intent")?;
        let metadata = json!({"payment_no": text("metadata[payment_no]")?, "refund_no": text("metadata[refund_no]")?});
        let Some(at) = self.charges.iter().position(|charge| charge["payment_intent"] == intent.as_str()) else {
            return Err(missing(&intent));
        };
        if let Some(code) = self.refuses_refunds {
            // It has begun, so this is what the key is answered from now on.
            return Ok(error(400, INVALID, Some(code), None, "No refund can be made now."));
        }
        let whole = self.charges[at]["amount"].as_i64().unwrap_or_default();
        let before = self.charges[at]["amount_refunded"].as_i64().unwrap_or_default();
        if before == whole {
            let message = "Charge has already been refunded.";
            return Ok(error(400, INVALID, Some("charge_already_refunded"), None, message));
        }
        if amount <= 0 || amount > whole - before {
            let message = "Refund amount is greater than unrefunded amount on charge";
            return Ok(error(400, INVALID, None, Some("amount"), message));
        }
        let refund = self.give_back(at, amount, metadata, now);
        Ok((200, refund))
    }

    fn retrieve(&self, id: &str, form: &Form) -> (u16, Value) {
        let Some(session) = self.sessions.iter().find(|session| session["id"] == id) else { return missing(id) };
        let mut session = session.clone();
        match form.get("expand[0]").map(String::as_str) {
            None => {}
            Some("payment_intent") => {
                if let Some(intent) = session["payment_intent"].as_str().and_then(|id| self.intents.get(id)) {
                    session["payment_intent"] = intent.clone();
                }
            }
            Some(_) => return invalid("expand", "This property cannot be expanded"),
        }
        (200, session)
    }

    /// A line of the balance, with what it is about where that is asked for.
    fn expanded(&self, line: &Value, form: &Form) -> Value {
        let mut line = line.clone();
        if form.get("expand[0]").is_some_and(|what| what == "data.source") {
            let all = self.charges.iter().chain(&self.refunds).chain(&self.disputes);
            let source = { all }.find(|object| object["id"] == line["source"]);
            line["source"] = source.cloned().unwrap_or(Value::Null);
        }
        line
    }
}
