//! Schedules.

mod calendar;
mod crontab;

pub use crontab::{Crontab, Fault, NotACrontab};
