//! How many requests of each kind an account and an address may make in a minute.
//!
//! A step of the edge, not a layer of its own, which the hot routes would pay for. It knows by the route what is to be
//! counted ([`ROUTES`]), counts it before anything else is done, refuses one too many with 429, and says with every answer how much is left (`RateLimit`, `RateLimit-Policy`:
//! draft-ietf-httpapi-ratelimit-headers-10).
//!
//! Where it is counted: in **Redis**, for all processes together, on routes that touch MySQL anyway; in this process's
//! **memory** on the hot routes, which keep their one round trip. A request that one of its limits refuses is counted by
//! none; how many an account has under way ([`in_flight`]) is looked at after that. While Redis is away, requests pass:
//! orders and payments do not depend on it. Only registrations then wait, as logins do (those have counts of their own, of failures: [`crate::auth`]).

mod describe;
pub mod in_flight;
mod memory;
mod rate;
mod redis;

pub use describe::describe;

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use smallvec::SmallVec;

use crate::app::App;
use crate::auth::CurrentUser;
use crate::config::Limits;
use crate::error::{Error, Kind, RATE_LIMIT, RATE_LIMIT_POLICY, Result, refuse};
use crate::platform::address::subscriber;
use rate::{Rate, WINDOW_S};

/// What is left of two limits fits.
const HEADER_SIZE: usize = 96;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Register,
    Refresh,
    Quote,
    Order,
    Pay,
    Claim,
    Submit,
    Poll,
}

/// The routes whose requests are counted. What is not here costs little, or has a limit of its own.
const ROUTES: &[(&Method, &str, Action)] = &[
    (&Method::POST, "/api/v1/auth/register", Action::Register),
    (&Method::POST, "/api/v1/auth/refresh", Action::Refresh),
    (&Method::POST, "/api/v1/orders/quote", Action::Quote),
    (&Method::POST, "/api/v1/orders", Action::Order),
    (&Method::POST, "/api/v1/orders/{no}/pay", Action::Pay),
    (&Method::POST, "/api/v1/orders/{no}/cancel", Action::Pay),
    (&Method::POST, "/api/v1/coupons/{id}/claim", Action::Claim),
    (&Method::POST, "/api/v1/seckill/activities/{id}/submissions", Action::Submit),
    (&Method::GET, "/api/v1/tasks/{id}", Action::Poll),
];

impl Action {
    fn of(method: &Method, path: &str) -> Option<Self> {
        let method = if *method == Method::HEAD { &Method::GET } else { method };
        ROUTES.iter().find(|(known, route, _)| *route == path && *known == method).map(|(_, _, action)| *action)
    }

    /// As settings, headers and metrics call it.
    const fn name(self) -> &'static str {
        match self {
            Self::Register => "register",
            Self::Refresh => "refresh",
            Self::Quote => "quote",
            Self::Order => "order",
            Self::Pay => "pay",
            Self::Claim => "claim",
            Self::Submit => "submit",
            Self::Poll => "poll",
        }
    }

    /// What clients call its limits: an account's, an address's.
    const fn titles(self) -> [&'static str; 2] {
        match self {
            Self::Register => ["\"register\"", "\"register-address\""],
            Self::Refresh => ["\"refresh\"", "\"refresh-address\""],
            Self::Quote => ["\"quote\"", "\"quote-address\""],
            Self::Order => ["\"order\"", "\"order-address\""],
            Self::Pay => ["\"pay\"", "\"pay-address\""],
            Self::Claim => ["\"claim\"", "\"claim-address\""],
            Self::Submit => ["\"submit\"", "\"submit-address\""],
            Self::Poll => ["\"poll\"", "\"poll-address\""],
        }
    }

    /// What an account and an address may do; `None`: as much as they like, or counted elsewhere (submissions of an
    /// account: by the gate; refreshes: by their token, which works once).
    fn rates(self, limits: &Limits) -> (Option<Rate>, Option<Rate>) {
        let (account, address) = match self {
            Self::Register => (0, limits.register_per_address),
            Self::Refresh => (0, limits.refresh_per_address),
            Self::Quote => (limits.quote_per_account, limits.quote_per_address),
            Self::Order => (limits.order_per_account, limits.order_per_address),
            Self::Pay => (limits.pay_per_account, limits.pay_per_address),
            Self::Claim => (limits.claim_per_account, limits.claim_per_address),
            Self::Submit => (0, limits.submit_per_address),
            Self::Poll => (limits.poll_per_account, limits.poll_per_address),
        };
        (Rate::of(account), Rate::of(address))
    }

    /// Whether it is counted in memory: the hot routes.
    const fn is_hot(self) -> bool {
        matches!(self, Self::Submit | Self::Poll)
    }

    /// Whether it waits while nobody can count, and is not counted when it could not be done.
    const fn is_strict(self) -> bool {
        matches!(self, Self::Register)
    }
}

/// Makes the counters of what is refused, so that the first refusal is an increase and not a beginning.
pub fn prepare_counters() {
    let names = ROUTES.iter().map(|(_, _, action)| action.name());
    for name in names.chain([in_flight::NAME]) {
        count_refused(name, 0);
    }
}

fn count_refused(limit: &'static str, requests: u64) {
    metrics::counter!("onrush_limited_total", "limit" => limit).increment(requests);
}

/// Whose requests are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    /// A user's id.
    Account(u128),
    /// A subscriber's address, as one of IPv6.
    Address(u128),
}

impl Who {
    fn address(address: IpAddr) -> Self {
        Self::Address(match subscriber(address) {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
            IpAddr::V6(v6) => v6.into(),
        })
    }
}

impl std::fmt::Display for Who {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Account(id) => write!(f, "account:{id:032x}"),
            Self::Address(address) => write!(f, "address:{address:032x}"),
        }
    }
}

/// Requests of one kind by one account or address.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    action: Action,
    who: Who,
    rate: Rate,
}

/// Those of one request: its account's and its address's.
type Buckets = SmallVec<[Bucket; 2]>;

impl Bucket {
    /// What clients call its limit.
    const fn title(&self) -> &'static str {
        let [account, address] = self.action.titles();
        match self.who {
            Who::Account(_) => account,
            Who::Address(_) => address,
        }
    }
}

/// Runs the rest of a request of this route, unless its account or its address has asked too often.
pub async fn limit<F>(
    app: &App,
    route: &str,
    address: Option<IpAddr>,
    mut request: Request,
    rest: impl FnOnce(Request) -> F,
) -> Response
where
    F: Future<Output = Response>,
{
    let action = Action::of(request.method(), route);
    let buckets = action.map_or_else(Buckets::new, |action| buckets_of(app, action, address, &mut request));
    let Some(action) = action.filter(|_| !buckets.is_empty()) else { return rest(request).await };
    let counted = if action.is_hot() {
        Ok(Some(count_here(app, &buckets)))
    } else {
        // Boxed, as all that the hot routes seldom or never come to: each request moves the room of everything that it
        // may wait for.
        Box::pin(count_together(app, action, &buckets)).await
    };
    let counted = match counted {
        Ok(counted) => counted,
        Err(error) => return error.into_response(),
    };
    let refusal = counted.as_ref().and_then(|counted| counted.refusal(action, &buckets));
    let was_refused = refusal.is_some();
    let mut response = match refusal {
        Some(error) => error.into_response(),
        None => rest(request).await,
    };
    if action.is_strict() && !was_refused && response.status() == StatusCode::SERVICE_UNAVAILABLE {
        // It was not done. What cannot be taken back comes back by itself.
        if let Err(error) = Box::pin(redis::take_back(app, &buckets)).await {
            tracing::debug!(error = format!("{error:#}"), "a request could not be taken back");
        }
    }
    if let Some(counted) = counted {
        counted.tell(&buckets, response.headers_mut());
    }
    response
}

/// Where the request is counted: by account, where a valid token names one, and by address.
fn buckets_of(app: &App, action: Action, client: Option<IpAddr>, request: &mut Request) -> Buckets {
    let (account, address) = action.rates(&app.config.limits);
    let mut buckets = Buckets::new();
    if let Some(rate) = account {
        let mut extensions = std::mem::take(request.extensions_mut());
        // A token that is not valid is the handler's to refuse.
        if let Ok(user) = CurrentUser::of(app, &mut extensions, request.headers()) {
            buckets.push(Bucket { action, who: Who::Account(user.id.uuid().as_u128()), rate });
        }
        *request.extensions_mut() = extensions;
    }
    if let (Some(rate), Some(client)) = (address, client) {
        buckets.push(Bucket { action, who: Who::address(client), rate });
    }
    buckets
}

/// What counting came to: for how long each bucket is not empty.
struct Counted {
    used_us: SmallVec<[i64; 2]>,
    /// Whether the request is one too many.
    full: bool,
}

/// With all processes; `None` while nobody can count, and the request may pass.
async fn count_together(app: &App, action: Action, buckets: &[Bucket]) -> Result<Option<Counted>> {
    let added = if action.is_strict() {
        Some(redis::add(app, buckets).await?)
    } else {
        redis::add_if_it_answers(app, buckets).await
    };
    Ok(added.map(|added| Counted { used_us: added.used_us.into(), full: !added.yes }))
}

/// In this process.
fn count_here(app: &App, buckets: &[Bucket]) -> Counted {
    let (table, now_us) = (app.local::<memory::Table>(), app.clock.now().ms() * 1000);
    let mut used_us = SmallVec::new();
    for (at, bucket) in buckets.iter().enumerate() {
        match table.add(bucket.action, bucket.who, bucket.rate, now_us) {
            memory::AddedInMemory::Yes(used) => used_us.push(used),
            memory::AddedInMemory::Full(used) => {
                for before in &buckets[..at] {
                    table.take_back(before.action, before.who, before.rate);
                }
                used_us.push(used);
                return Counted { used_us, full: true };
            }
        }
    }
    Counted { used_us, full: false }
}

impl Counted {
    /// The refusal of one too many.
    fn refusal(&self, action: Action, buckets: &[Bucket]) -> Option<Error> {
        if !self.full {
            return None;
        }
        let full = buckets.iter().zip(&self.used_us).filter(|(bucket, used)| bucket.rate.remaining(**used) == 0);
        let wait = full.map(|(bucket, used)| bucket.rate.retry_after_s(*used)).max().unwrap_or(1);
        count_refused(action.name(), 1);
        Some(refuse(Kind::TooManyAttempts, "too many requests of this kind in a minute").retry_after(wait).into())
    }

    /// Says what is left.
    fn tell(&self, buckets: &[Bucket], headers: &mut HeaderMap) {
        let (mut policies, mut left) = (List::default(), List::default());
        for (bucket, used_us) in buckets.iter().zip(&self.used_us) {
            policies.item(bucket, [(";q=", bucket.rate.quota.into()), (";w=", WINDOW_S.into())]);
            let reset_s = (used_us.max(&0) + 999_999) / 1_000_000;
            left.item(bucket, [(";r=", bucket.rate.remaining(*used_us)), (";t=", reset_s)]);
        }
        for (name, List(text)) in [(RATE_LIMIT_POLICY, policies), (RATE_LIMIT, left)] {
            if let Ok(value) = HeaderValue::from_bytes(&text) {
                headers.insert(name, value);
            }
        }
    }
}

/// A header's value, without a heap until it is whole: every answer of the hot routes has two.
#[derive(Default)]
struct List(SmallVec<[u8; HEADER_SIZE]>);

impl List {
    fn item(&mut self, bucket: &Bucket, parameters: [(&str, i64); 2]) {
        if !self.0.is_empty() {
            self.0.extend_from_slice(b", ");
        }
        self.0.extend_from_slice(bucket.title().as_bytes());
        for (name, value) in parameters {
            self.0.extend_from_slice(name.as_bytes());
            self.0.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_called_as_its_action_is() {
        for (_, _, action) in ROUTES {
            let name = action.name();
            assert_eq!(action.titles(), [format!("\"{name}\""), format!("\"{name}-address\"")]);
        }
    }

    #[test]
    fn a_subscriber_has_one_bucket() {
        let who = |text: &str| Who::address(text.parse().unwrap());
        assert_eq!(who("192.0.2.1"), who("::ffff:192.0.2.1"));
        assert_ne!(who("192.0.2.1"), who("192.0.2.2"));
        assert_eq!(who("2001:db8::1"), who("2001:db8::ffff"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
    }
}
