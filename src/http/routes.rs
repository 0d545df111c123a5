//! Every route, in one list.
//!
//! Three groups, by what a handler may do:
//!
//! * **hot**: touches Redis only (a MySQL fallback runs in a task of its own), has its own bound on waiting;
//! * **detached**: may touch MySQL, so it runs to its end in a task of its own even when the client goes away or the
//!   timeout strikes (a sqlx future must never be dropped half way, see `platform::db`);
//! * **operations**: health, readiness, metrics and the documentation, outside `/api/v1` and outside load shedding.

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{error_page, health, metrics, openapi};
use crate::access;
use crate::app::App;
use crate::audit;
use crate::auth;
use crate::catalogue;
use crate::operations;
use crate::orders;
use crate::payments;
use crate::reconciliation;
use crate::reports;
use crate::seckill;
use crate::wallet;

/// Routes whose handlers may touch MySQL.
pub fn detached() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth::http::register))
        .routes(routes!(auth::http::login))
        .routes(routes!(auth::http::refresh))
        .routes(routes!(auth::http::logout))
        .routes(routes!(auth::http::me))
        .routes(routes!(access::http::logout_user))
        .routes(routes!(catalogue::http::list))
        .routes(routes!(catalogue::http::detail))
        .routes(routes!(catalogue::http::mine))
        .routes(routes!(catalogue::http::create))
        .routes(routes!(wallet::http::claim))
        .routes(routes!(wallet::http::coupons))
        .routes(routes!(wallet::http::points))
        .routes(routes!(wallet::http::create_coupon))
        .routes(routes!(orders::http::quote))
        .routes(routes!(payments::http::orders::list, orders::http::create))
        .routes(routes!(payments::http::orders::detail))
        .routes(routes!(payments::http::pay))
        .routes(routes!(payments::http::cancel))
        .routes(routes!(payments::http::notify))
        .routes(routes!(payments::http::returned))
        .routes(routes!(payments::http::admin::orders::list))
        .routes(routes!(payments::http::admin::orders::detail))
        .routes(routes!(payments::http::admin::refund_order))
        .routes(routes!(payments::http::admin::payments))
        .routes(routes!(payments::http::admin::payment))
        .routes(routes!(payments::http::admin::abandon))
        .routes(routes!(payments::http::admin::notifications))
        .routes(routes!(payments::http::admin::notification))
        .routes(routes!(payments::http::admin::rerun))
        .routes(routes!(payments::http::admin::refunds))
        .routes(routes!(payments::http::admin::refund))
        .routes(routes!(payments::http::admin::retry_refund))
        .routes(routes!(reconciliation::http::list))
        .routes(routes!(reconciliation::http::show))
        .routes(routes!(reconciliation::http::fetch))
        .routes(routes!(reconciliation::http::differences))
        .routes(routes!(reconciliation::http::resolve))
        .routes(routes!(seckill::http::list_activities))
        .routes(routes!(seckill::http::show_activity))
        .routes(routes!(seckill::http::create_activity))
        .routes(routes!(seckill::http::change_activity))
        .routes(routes!(seckill::http::close_activity))
        .routes(routes!(operations::schedules::list, operations::schedules::create))
        .routes(routes!(operations::schedules::show, operations::schedules::change, operations::schedules::delete))
        .routes(routes!(operations::queues::list))
        .routes(routes!(operations::queues::show))
        .routes(routes!(operations::queues::pause))
        .routes(routes!(operations::queues::resume))
        .routes(routes!(operations::queues::purge))
        .routes(routes!(operations::queues::set_concurrency))
        .routes(routes!(operations::dead_letters::list, operations::dead_letters::delete_all))
        .routes(routes!(operations::dead_letters::retry_many))
        .routes(routes!(operations::dead_letters::delete))
        .routes(routes!(operations::dead_letters::retry_one))
        .routes(routes!(operations::tasks::list))
        .routes(routes!(operations::tasks::show))
        .routes(routes!(operations::tasks::revoke))
        .routes(routes!(operations::tasks::retry))
        .routes(routes!(operations::workers::list))
        .routes(routes!(audit::http::list))
        .routes(routes!(reports::http::list))
        .routes(routes!(reports::http::show))
}

/// Routes whose handlers touch Redis only. Each names its whole path: a nested router takes the path apart once more
/// for every request.
pub fn hot() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(seckill::http::submit))
        .routes(routes!(seckill::tasks::poll_task))
        .routes(routes!(seckill::tasks::task_events))
}

/// What everybody may ask: health, readiness, what the refusals mean.
pub fn operations() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
        .routes(routes!(error_page::errors))
}

/// What only operators may see.
pub fn operators() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(metrics::metrics)).routes(routes!(openapi::openapi))
}

#[cfg(test)]
mod tests {
    use super::super::paths::CROWDED;
    use super::*;

    #[test]
    fn crowded_routes_are_hot() {
        let paths = hot().into_openapi().paths.paths;
        assert!(CROWDED.iter().all(|route| paths.contains_key(*route)));
    }
}
