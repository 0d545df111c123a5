//! How many requests of each kind one account, and one address, may make in a minute; and one account at once.

use serde::Deserialize;

/// `ONRUSH_LIMITS__*`: requests a minute where nothing else is said, 0: no limit. An address is one of IPv4, or one /64 of IPv6.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Requests of one account under way at once at one process, on routes that may touch the database.
    pub in_flight_per_account: u32,
    /// Registrations.
    pub register_per_address: u32,
    /// Exchanges of refresh tokens.
    pub refresh_per_address: u32,
    /// Quotes.
    pub quote_per_account: u32,
    /// Quotes.
    pub quote_per_address: u32,
    /// Orders.
    pub order_per_account: u32,
    /// Orders.
    pub order_per_address: u32,
    /// Payments that are started or gone on with, and orders that are cancelled: both may ask a gateway.
    pub pay_per_account: u32,
    /// As above.
    pub pay_per_address: u32,
    /// Coupons that are claimed.
    pub claim_per_account: u32,
    /// Coupons that are claimed.
    pub claim_per_address: u32,
    /// Submissions to a seckill.
    pub submit_per_address: u32,
    /// Polls of a task; a long poll is one.
    pub poll_per_account: u32,
    /// Polls of a task.
    pub poll_per_address: u32,
}
