//! What every test is given: servers, a service of its own, a client, people and courses.

pub mod client;
pub mod cluster;
pub mod collector;
pub mod delay;
pub mod galera;
pub mod gateways;
pub mod harness;
pub mod logs;
pub mod process;
pub mod proxy;
pub mod servers;

pub use client::{Answer, Client};
pub use cluster::Cluster;
pub use galera::Galera;
pub use harness::{Course, Harness, Options, Person};
pub use process::Process;
pub use proxy::{Direction, LostAt, Proxy, Verb};
pub use servers::{PrivateRedis, PrivateServers};
