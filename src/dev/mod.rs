//! What `onrush dev` and the tests need beside the service: private servers, demo data, the sandbox payment gateway.

pub mod demo;
pub mod playground;
pub mod sandbox;
pub mod servers;
pub mod supervised;
