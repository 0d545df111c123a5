//! HTTP: connections, what every request passes, every route, the API's description, and the pages that people and
//! machines of operators look at.

mod edge;
mod error_page;
pub mod health;
mod landing;
pub mod metrics;
mod openapi;
mod operator_pages;
mod paths;
mod router;
mod routes;
pub mod server;

pub use paths::API;
pub use router::{document, operations_router, own_operations_router, router};
