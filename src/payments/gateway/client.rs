//! The one way to call a gateway over HTTP: bounded in time and in size, tried again only where that is harmless, and
//! not at all while the gateway is known not to answer.
//!
//! * A **call** takes at most [`GatewayCall::patience`] with all its tries, and its answer has at most [`GatewayCall::limit_bytes`].
//! * **Tries**: at most [`TRIES`]. A request that may be sent twice ([`GatewayCall::idempotent`]) is tried again when no whole
//!   answer came; any other one only when no connection was made, so that it was never sent.
//! * The **breaker** of a gateway opens after `payments.gateway_failures_max` calls in a row without an answer. For
//!   `payments.gateway_pause_ms` every call is then refused at once, so that a dead gateway holds no workers; after it
//!   one call goes through, and what becomes of that one decides.
//!
//! An answer below 500 is an answer, whatever it says: the protocols give their refusals a meaning. So is 429, as far as
//! the breaker is concerned: the gateway lives, and calls of other kinds may go through. What it refused is not called
//! before the time that it names (`Retry-After`): it is tried again within the same call when there is time for that, and
//! else calls of this kind, and of no other, are left alone until then.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use reqwest::RequestBuilder;
use tracing::{Instrument, Span};

use super::{Gateway, RETRY_AFTER_S, held, left_alone, unavailable};
use crate::app::App;
use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::traces;

/// Tries of one call.
const TRIES: u32 = 3;
/// The pause before the second try; it doubles.
const PAUSE: Duration = Duration::from_millis(100);
/// A gateway that wants to be left alone is believed up to this long.
const HELD_MAX: Duration = Duration::from_secs(60);
/// Longest answer that is read where a call does not say otherwise, in bytes.
const LIMIT_BYTES: usize = 1 << 20;

/// How a gateway is called.
#[derive(Debug, Clone, Copy)]
pub(super) struct GatewayCall {
    pub gateway: Gateway,
    /// What is asked, for the metrics: `create`, `query`, …
    pub operation: &'static str,
    /// The same request twice is the same as once.
    pub idempotent: bool,
    /// Longest answer that is read.
    pub limit_bytes: usize,
    /// Longest time that all tries together take.
    pub patience: Duration,
}

impl GatewayCall {
    /// As most calls are: harmless to repeat, with an answer of moderate size.
    pub fn new(app: &App, gateway: Gateway, operation: &'static str) -> Self {
        let patience = Duration::from_millis(app.config.payments.gateway_timeout_ms);
        Self { gateway, operation, idempotent: true, limit_bytes: LIMIT_BYTES, patience }
    }
}

/// A whole answer, of which nothing has been verified.
#[derive(Debug)]
pub(super) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Reply {
    /// A header's text; `None` when it is missing or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

/// Calls a gateway. `request` makes the request, for each try anew: what is signed may hold the time.
pub(super) async fn send(app: &App, call: &GatewayCall, request: impl Fn() -> Result<RequestBuilder>) -> Result<Reply> {
    let breakers = app.local::<Breakers>();
    if let Some(left_s) = breakers.held_s(call, app.clock.now()) {
        count(call, "left_alone");
        return Err(held(call.gateway, left_s));
    }
    let Some(pass) = Pass::take(app, &breakers, call.gateway) else {
        count(call, "left_alone");
        return Err(left_alone(call.gateway));
    };
    let started = Instant::now();
    let mut tries = 1;
    let fault = loop {
        let left = call.patience.saturating_sub(started.elapsed());
        let span = try_span(call, tries);
        let try_ = once(request()?.headers(traces::headers_of(&span)).timeout(left), call.limit_bytes);
        let answer = try_.instrument(span.clone()).await;
        note_answer(&span, &answer);
        let fault = match answer {
            Ok(reply) => {
                pass.answered();
                count(call, "answered");
                metrics::histogram!("onrush_gateway_request_duration_seconds",
                    "gateway" => call.gateway.as_str(), "operation" => call.operation)
                .record(started.elapsed().as_secs_f64());
                return Ok(reply);
            }
            Err(fault) => fault,
        };
        let pause = fault.held.unwrap_or(PAUSE * 2u32.pow(tries - 1));
        let harmless = fault.unsent || (call.idempotent && fault.may_pass);
        if !harmless || tries == TRIES || started.elapsed() + pause >= call.patience {
            break fault;
        }
        tries += 1;
        tracing::debug!(gateway = call.gateway.as_str(), operation = call.operation, error = fault.why, "trying again");
        tokio::time::sleep(pause).await;
    };
    if fault.is_busy {
        pass.answered();
        count(call, "busy");
        breakers.hold(call, fault.held, app.clock.now());
        let left_s = fault.held.map_or(RETRY_AFTER_S, |held| held.as_secs().max(1));
        tracing::warn!(
            gateway = call.gateway.as_str(),
            operation = call.operation,
            left_s,
            "payment gateway wants fewer calls"
        );
        return Err(held(call.gateway, left_s));
    }
    pass.failed();
    count(call, "failed");
    Err(unavailable(call.gateway, format!("{}: {} (try {tries})", call.operation, fault.why)))
}

/// The span of one try; none while traces are off.
fn try_span(call: &GatewayCall, tries: u32) -> Span {
    if !traces::is_on() {
        return Span::none();
    }
    let name = format!("gateway {} {}", call.gateway.as_str(), call.operation);
    let span = tracing::info_span!(
        "gateway",
        otel.name = name,
        otel.kind = "client",
        gateway = call.gateway.as_str(),
        operation = call.operation
    );
    traces::note(&span, "http.request.resend_count", i64::from(tries - 1));
    span
}

fn note_answer(span: &Span, answer: &Result<Reply, Fault>) {
    match answer {
        _ if !traces::is_on() => {}
        Ok(reply) => traces::note(span, "http.response.status_code", i64::from(reply.status.as_u16())),
        Err(fault) => traces::failed(span, fault.why.clone()),
    }
}

fn count(call: &GatewayCall, outcome: &'static str) {
    metrics::counter!("onrush_gateway_requests_total",
        "gateway" => call.gateway.as_str(), "operation" => call.operation, "outcome" => outcome)
    .increment(1);
}

/// Why a try brought no answer.
struct Fault {
    why: String,
    /// The gateway has not seen the request.
    unsent: bool,
    /// Another try may bring an answer.
    may_pass: bool,
    /// It was 429: the gateway lives, and wants fewer calls.
    is_busy: bool,
    /// For how long, where it says so.
    held: Option<Duration>,
}

impl Fault {
    fn new(why: String, may_pass: bool) -> Self {
        Self { why, unsent: false, may_pass, is_busy: false, held: None }
    }
}

impl From<reqwest::Error> for Fault {
    fn from(error: reqwest::Error) -> Self {
        let unsent = error.is_connect();
        // Without the address: what a URL carries may be signed or secret.
        Self { unsent, ..Self::new(format!("{:#}", anyhow::Error::from(error.without_url())), true) }
    }
}

/// One try: its whole answer, or why there is none.
async fn once(request: RequestBuilder, limit_bytes: usize) -> Result<Reply, Fault> {
    let mut response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let why = || format!("HTTP {}", status.as_u16());
    if status == StatusCode::TOO_MANY_REQUESTS {
        let held = retry_after(&headers);
        // Without a time of its own it is not asked again at once.
        return Err(Fault { is_busy: true, held, ..Fault::new(why(), held.is_some()) });
    }
    if status.is_server_error() {
        return Err(Fault::new(why(), true));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        body.extend_from_slice(&chunk);
        if body.len() > limit_bytes {
            let why = format!("its answer is longer than {limit_bytes} bytes");
            return Err(Fault::new(why, false));
        }
    }
    Ok(Reply { status, headers, body })
}

/// For how long a gateway wants to be left alone: the seconds of `Retry-After`, within reason. (None of them sends a date.)
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(HELD_MAX))
}

/// What this process knows of each gateway.
#[derive(Default)]
struct Breakers {
    each: Mutex<HashMap<Gateway, Breaker>>,
    /// Calls of a kind that the gateway wants none of before this.
    held: Mutex<HashMap<(Gateway, &'static str), At>>,
}

/// Whether a gateway is called.
#[derive(Debug, Default)]
struct Breaker {
    /// Calls in a row without an answer.
    failures: u32,
    /// Nobody calls before this.
    open_until: Option<At>,
    /// The one call that goes through after it is under way: its number.
    probing: Option<u64>,
    /// Such calls so far. By its number, one is told from a call that began before it.
    probes: u64,
}

/// Why a call may go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ticket {
    /// The breaker is closed.
    Usual,
    /// This one finds out.
    Probe(u64),
}

impl Breaker {
    /// Whether a call may go through now.
    fn lets_pass(&mut self, now: At) -> Option<Ticket> {
        match self.open_until {
            None => Some(Ticket::Usual),
            Some(until) if now < until || self.probing.is_some() => None,
            Some(_) => {
                self.probes += 1;
                self.probing = Some(self.probes);
                Some(Ticket::Probe(self.probes))
            }
        }
    }

    /// A call ended; whether it was the one that finds out. Calls that began before it end in vain for it.
    fn end(&mut self, ticket: Ticket) -> bool {
        let probed = matches!(ticket, Ticket::Probe(number) if self.probing == Some(number));
        if probed {
            self.probing = None;
        }
        probed
    }

    /// A call brought an answer; whether that closes it.
    fn answered(&mut self) -> bool {
        let closes = self.open_until.is_some();
        *self = Self { probes: self.probes, ..Self::default() };
        closes
    }

    /// A call brought none; whether that opens it.
    fn failed(&mut self, ticket: Ticket, now: At, max: u32, pause: Duration) -> bool {
        self.failures = self.failures.saturating_add(1);
        let probed = self.end(ticket);
        if !probed && self.failures < max {
            return false;
        }
        self.open_until.replace(now.plus(pause)).is_none()
    }
}

impl Breakers {
    fn all(&self) -> MutexGuard<'_, HashMap<Gateway, Breaker>> {
        self.each.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No call of this kind for so long.
    fn hold(&self, call: &GatewayCall, length: Option<Duration>, now: At) {
        if let Some(length) = length {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.insert((call.gateway, call.operation), now.plus(length));
        }
    }

    /// For how many seconds no call of this kind is made.
    fn held_s(&self, call: &GatewayCall, now: At) -> Option<u64> {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.get(&(call.gateway, call.operation)).filter(|until| **until > now).map(|until| until.retry_after_s(now))
    }
}

/// A call that goes through. One that is dropped without a word leaves the next one to find out.
struct Pass<'a> {
    app: &'a App,
    breakers: &'a Breakers,
    gateway: Gateway,
    ticket: Ticket,
}

impl<'a> Pass<'a> {
    fn take(app: &'a App, breakers: &'a Breakers, gateway: Gateway) -> Option<Self> {
        let ticket = breakers.all().entry(gateway).or_default().lets_pass(app.clock.now())?;
        Some(Self { app, breakers, gateway, ticket })
    }

    fn answered(&self) {
        if self.breakers.all().entry(self.gateway).or_default().answered() {
            tracing::info!(gateway = self.gateway.as_str(), "payment gateway answers again");
            self.show(false);
        }
    }

    fn failed(&self) {
        let settings = &self.app.config.payments;
        let (max, pause) = (settings.gateway_failures_max, Duration::from_millis(settings.gateway_pause_ms));
        if self.breakers.all().entry(self.gateway).or_default().failed(self.ticket, self.app.clock.now(), max, pause) {
            tracing::warn!(
                gateway = self.gateway.as_str(),
                pause_ms = settings.gateway_pause_ms,
                "payment gateway is left alone for a while"
            );
            self.show(true);
        }
    }

    fn show(&self, open: bool) {
        metrics::gauge!("onrush_gateway_left_alone", "gateway" => self.gateway.as_str()).set(f64::from(u8::from(open)));
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.breakers.all().entry(self.gateway).or_default().end(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_breaker_opens_after_failures_in_a_row_and_lets_one_call_find_out() {
        let (mut breaker, mut now) = (Breaker::default(), At::from_ms(0));
        let fails = |breaker: &mut Breaker, ticket, now| breaker.failed(ticket, now, 3, SECOND);
        for _ in 0..2 {
            assert!(!fails(&mut breaker, Ticket::Usual, now) && !fails(&mut breaker, Ticket::Usual, now));
            assert!(!breaker.answered(), "it was not open, and what fails next is not in a row with those before");
        }
        for opens in [false, false, true] {
            assert_eq!(breaker.lets_pass(now), Some(Ticket::Usual));
            assert_eq!(fails(&mut breaker, Ticket::Usual, now), opens);
        }
        assert_eq!(breaker.lets_pass(now), None);
        now = now.plus(SECOND);
        let probe = breaker.lets_pass(now).unwrap();
        assert_eq!(breaker.lets_pass(now), None, "one call at a time");
        assert!(!fails(&mut breaker, probe, now), "it is open already");
        assert_eq!(breaker.lets_pass(now), None, "and stays so");
        now = now.plus(SECOND);
        assert!(breaker.lets_pass(now).is_some() && breaker.answered());
        assert_eq!([breaker.lets_pass(now), breaker.lets_pass(now)], [Some(Ticket::Usual); 2]);
    }

    #[test]
    fn a_call_that_began_before_makes_no_room_for_a_second_one_that_finds_out() {
        let (mut breaker, mut now) = (Breaker::default(), At::from_ms(0));
        let early: Vec<Ticket> = (0..5).map(|_| breaker.lets_pass(now).unwrap()).collect();
        for ticket in &early[..3] {
            breaker.failed(*ticket, now, 3, SECOND);
        }
        now = now.plus(SECOND);
        let probe = breaker.lets_pass(now).unwrap();
        // One of those that were under way when it opened is given up, and one fails.
        breaker.end(early[3]);
        assert_eq!(breaker.lets_pass(now), None, "the call that finds out is still under way");
        breaker.failed(early[4], now, 3, SECOND);
        now = now.plus(SECOND);
        assert_eq!(breaker.lets_pass(now), None, "and still is");
        // The next one may go when that one has ended, and is not ended by it a second time.
        breaker.failed(probe, now, 3, SECOND);
        now = now.plus(SECOND);
        assert!(breaker.lets_pass(now).is_some());
        breaker.end(probe);
        assert_eq!(breaker.lets_pass(now), None);
    }
}
