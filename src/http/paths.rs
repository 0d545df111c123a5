//! What the paths of this service begin with, for those that must know it before a route is found.

/// What every API route begins with.
pub const API: &str = "/api/v1";
/// What the sandbox gateway's paths begin with.
pub const SANDBOX: &str = "/sandbox";
/// Of the hot routes, those at which a whole crowd asks within seconds.
pub const CROWDED: [&str; 2] = ["/api/v1/seckill/activities/{id}/submissions", "/api/v1/tasks/{id}"];

/// Whether a crowd asks here.
pub fn is_crowded(route: &str) -> bool {
    CROWDED.contains(&route)
}
