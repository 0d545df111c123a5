//! What `onrush dev` and the tests need beside the service: private servers and demo data.

pub mod demo;
pub mod playground;
pub mod servers;
pub mod supervised;
