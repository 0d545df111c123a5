//! The service, tested from outside on real servers. One binary: the servers are started once, and every test takes a
//! database and a Redis prefix of its own, so that all run side by side.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod support;

mod access;
mod architecture;
mod auth;
mod browsers;
mod catalogue;
mod circles;
mod cluster;
mod commands;
mod crashes;
mod description;
mod doors;
mod engine;
mod galera;
mod healing;
mod input;
mod large;
mod limits;
mod logins;
mod operations;
mod operators;
mod ordering;
mod orders;
mod outages;
mod payments;
mod playground;
mod proxy;
mod reports;
mod round_trips;
mod schedules;
mod seckill;
mod security;
mod signals;
mod skeleton;
mod survival;
mod torture;
mod traces;
mod wallet;
