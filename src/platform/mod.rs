//! What every room stands on and no business word enters: clock, days, ids, money, database, Redis, extractors, keys, loops.
//!
//! Nothing in here imports anything else of the crate.

pub mod address;
pub mod certificate;
pub mod clock;
pub mod coalesce;
pub mod day;
pub mod db;
pub mod described;
pub mod extract;
pub mod hmac;
pub mod id;
pub mod in_flight;
pub mod jwt;
pub mod lang;
pub mod loops;
pub mod money;
pub mod output;
pub mod page;
pub mod policy;
pub mod redis;
pub mod rsa;
pub mod seldom;
pub mod spelling;
pub mod telemetry;
pub mod text;
pub mod ticket;
pub mod traces;
pub mod validators;
