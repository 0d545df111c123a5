//! Every route, in one list, and the order of the middleware.
//!
//! Three groups, by what a handler may do:
//!
//! * **hot**: touches Redis only (a MySQL fallback runs in a task of its own), has its own bound on waiting;
//! * **detached**: may touch MySQL, so it runs to its end in a task of its own even when the client goes away or the
//!   timeout strikes (a sqlx future must never be dropped half way, see `platform::db`);
//! * **operations**: health, readiness, metrics and the documentation, outside `/api/v1` and outside load shedding.

use std::sync::{Arc, OnceLock};

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router};
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::timeout::TimeoutLayer;
use tracing::Instrument;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin;
use crate::app::App;
use crate::auth;
use crate::catalogue;
use crate::dev::sandbox;
use crate::edge::Edge;
use crate::error::{self, Error, Kind};
use crate::limits;
use crate::ops;
use crate::ops::pages::{self, Pages};
use crate::orders;
use crate::payments;
use crate::platform::db;
use crate::platform::in_flight::{InFlightLimit, InFlightPermit};
use crate::reports;
use crate::seckill;
use crate::wallet;

/// What every API route begins with.
pub const API: &str = "/api/v1";
/// What the sandbox gateway's paths begin with.
pub const SANDBOX: &str = "/sandbox";

#[derive(OpenApi)]
#[openapi(
    info(
        title = "onrush",
        description = "Orders and seckill for an online-course platform.\n\nA refusal is `application/problem+json`; \
            whatever is wrong with the path, the query, the headers and the body of a request is told at once, by field, \
            in `errors`. Only what HTTP itself refuses has no body: a malformed head, a line that ends \
            with LF alone or two content lengths (400), a head that is too large (431)."
    ),
    servers((url = "/", description = "Where this document is, unless that is a listener of the operators' own")),
    // Those of parameters are not found by themselves.
    components(schemas(
        error::Problem,
        payments::NotificationOutcome,
        payments::PaymentState,
        payments::Resolution,
    )),
    tags(
        (name = "auth"), (name = "catalogue"), (name = "wallet"), (name = "orders"), (name = "payments"),
        (name = "seckill"), (name = "tasks"), (name = "admin"), (name = "ops"),
    )
)]
struct Document;

/// Routes whose handlers may touch MySQL.
fn detached() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(auth::http::register))
        .routes(routes!(auth::http::login))
        .routes(routes!(auth::http::refresh))
        .routes(routes!(auth::http::logout))
        .routes(routes!(auth::http::me))
        .routes(routes!(auth::http::logout_user))
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
        .routes(routes!(payments::http::bills::list))
        .routes(routes!(payments::http::bills::show))
        .routes(routes!(payments::http::bills::fetch))
        .routes(routes!(payments::http::bills::differences))
        .routes(routes!(payments::http::bills::resolve))
        .routes(routes!(seckill::http::list_activities))
        .routes(routes!(seckill::http::show_activity))
        .routes(routes!(seckill::http::create_activity))
        .routes(routes!(seckill::http::change_activity))
        .routes(routes!(seckill::http::close_activity))
        .routes(routes!(admin::schedules::list, admin::schedules::create))
        .routes(routes!(admin::schedules::show, admin::schedules::change, admin::schedules::delete))
        .routes(routes!(admin::queues::list))
        .routes(routes!(admin::queues::show))
        .routes(routes!(admin::queues::pause))
        .routes(routes!(admin::queues::resume))
        .routes(routes!(admin::queues::purge))
        .routes(routes!(admin::queues::set_concurrency))
        .routes(routes!(admin::dead_letters::list, admin::dead_letters::delete_all))
        .routes(routes!(admin::dead_letters::retry_many))
        .routes(routes!(admin::dead_letters::delete))
        .routes(routes!(admin::dead_letters::retry_one))
        .routes(routes!(admin::tasks::list))
        .routes(routes!(admin::tasks::show))
        .routes(routes!(admin::tasks::revoke))
        .routes(routes!(admin::tasks::retry))
        .routes(routes!(admin::workers::list))
        .routes(routes!(admin::audit::list))
        .routes(routes!(reports::http::list))
        .routes(routes!(reports::http::show))
}

/// Routes whose handlers touch Redis only. Each names its whole path: a nested router takes the path apart once more
/// for every request.
fn hot() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(seckill::http::submit))
        .routes(routes!(seckill::tasks::poll_task))
        .routes(routes!(seckill::tasks::task_events))
}

/// Where a in_flight asks, of the hot routes.
const CROWD: [&str; 2] = ["/api/v1/seckill/activities/{id}/submissions", "/api/v1/tasks/{id}"];

/// Whether a in_flight asks here.
pub fn is_crowd(route: &str) -> bool {
    CROWD.contains(&route)
}

/// What everybody may ask: health, readiness, what the refusals mean.
fn operations() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(ops::health::healthz))
        .routes(routes!(ops::health::readyz))
        .routes(routes!(ops::errors))
}

/// What only operators may see.
fn operators() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(ops::metrics)).routes(routes!(ops::openapi))
}

/// The API's description.
pub fn document() -> utoipa::openapi::OpenApi {
    let whole = OpenApiRouter::with_openapi(Document::openapi()).nest(API, detached()).merge(hot());
    let (_, api) = split(whole.merge(operations()).merge(operators()));
    api
}

fn split(router: OpenApiRouter<App>) -> (Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut api) = router.split_for_parts();
    ops::describe::describe(&mut api);
    limits::describe(&mut api);
    (router, api)
}

/// The whole service.
pub fn router(app: &App) -> Router {
    limits::prepare_counters();
    let (detached, _) = split(detached());
    let (hot, _) = split(hot());
    let mut routes = Router::new().nest(API, bounded(app, detached)).merge(hot);
    if app.config.payments.sandbox {
        // A company outside that lives here: no part of the API or of its description.
        routes = routes.nest(SANDBOX, bounded(app, sandbox::routes()));
    }
    around(app, routes, Pages::of(&app.config.http))
}

/// What routes whose handlers may touch MySQL run in.
fn bounded(app: &App, routes: Router<App>) -> Router<App> {
    routes
        .layer(from_fn_with_state(app.clone(), run_detached))
        // When it is exceeded, not by the announced length: an answer before a client has sent its body may be lost on it.
        .layer(DefaultBodyLimit::max(app.config.http.body_limit_bytes))
        .layer(compression())
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, app.config.request_timeout()))
}

/// A process without the API: health, readiness, metrics.
pub fn operations_router(app: &App) -> Router {
    around(app, Router::new(), Pages::of(&app.config.http))
}

/// The operators' own listener: it shows everything to who reaches it.
pub fn own_operations_router(app: &App) -> Router {
    around(app, Router::new(), Pages::Open)
}

/// Puts the operations' routes beside `routes`, and around all of them what every request goes through.
fn around(app: &App, routes: Router<App>, pages: Pages) -> Router {
    let in_flight = app.local::<Shared>().0.get_or_init(|| InFlightLimit::new(app.config.http.max_in_flight)).clone();
    let (mut operations, _) = split(operations());
    operations = operations.route("/", get(ops::landing::landing));
    if pages.are_there() {
        let (operators, _) = split(operators());
        let swagger = utoipa_swagger_ui::SwaggerUi::new("/docs")
            .config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
        operations = operations
            .merge(operators.merge(swagger).layer(from_fn_with_state((app.clone(), pages.clone()), pages::guard)));
    }
    let operations = operations.layer(compression()).layer(Extension(in_flight.clone())).layer(Extension(pages));
    routes
        .merge(operations)
        .fallback(|| async { Error::from(Kind::NotFound) })
        .method_not_allowed_fallback(|| async { Error::from(Kind::MethodNotAllowed) })
        .layer(Edge::new(app, in_flight))
        .with_state(app.clone())
}

/// Requests under way at the process, whichever listener they came to.
#[derive(Default)]
struct Shared(OnceLock<InFlightLimit>);

/// Answers shorter than this are sent as they are: compressing them saves nothing.
const COMPRESS_ABOVE_BYTES: u64 = 1024;

fn compression() -> CompressionLayer<impl Predicate> {
    // An event stream must reach the client event by event.
    let worth = SizeAbove::new(COMPRESS_ABOVE_BYTES).and(NotForContentType::const_new("text/event-stream"));
    CompressionLayer::new().gzip(true).br(true).quality(CompressionLevel::Fastest).compress_when(worth)
}

/// Runs the rest of the request in a task of its own: when this future is dropped (the client went away, the timeout
/// struck), the handler still runs to its end.
async fn run_detached(State(app): State<App>, mut request: Request, next: Next) -> Response {
    match limits::in_flight::enter(&app, &mut request) {
        Ok(counted) => detach(counted, request, next).await,
        Err(error) => error.into_response(),
    }
}

async fn detach(counted: Option<limits::in_flight::InFlight>, request: Request, next: Next) -> Response {
    // It keeps its place among the requests under way, and among its account's, until then.
    let place = request.extensions().get::<Arc<InFlightPermit>>().cloned();
    let handler = async move {
        let _places = (place, counted);
        next.run(request).await
    };
    match tokio::spawn(db::for_requests(handler).in_current_span()).await {
        Ok(response) => response,
        Err(panic) => Error::Internal(anyhow::anyhow!("handler {panic}")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::middleware::from_fn;
    use tower::ServiceExt;

    use super::*;
    use crate::edge;

    #[test]
    fn a_crowd_asks_at_hot_routes() {
        let paths = hot().into_openapi().paths.paths;
        assert!(CROWD.iter().all(|route| paths.contains_key(*route)));
    }

    /// No route panics that we know of, so the parts are put around one that does.
    #[tokio::test]
    async fn a_panic_is_a_fault_of_ours_and_the_next_request_is_served() {
        let detached = Router::new().route("/detached", get(|| async { panic!("on purpose") as &str }));
        let routes = Router::new()
            .merge(detached.layer(from_fn(|request: Request, next: Next| detach(None, request, next))))
            .route("/hot", get(|| async { panic!("on purpose") as &str }))
            .route("/well", get(|| async { "well" }))
            .layer(from_fn(async |request: Request, next: Next| {
                error::problems(edge::run(next.run(request)).await, "id", None)
            }));
        let ask = async |path: &str| {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            routes.clone().oneshot(request).await.unwrap()
        };
        for path in ["/detached", "/hot"] {
            let answer = ask(path).await;
            assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
            let body = axum::body::to_bytes(answer.into_body(), 10_000).await.unwrap();
            let body = String::from_utf8(body.to_vec()).unwrap();
            assert!(body.contains(r#""error":"internal""#) && !body.contains("on purpose"), "{body}");
            assert_eq!(ask("/well").await.status(), StatusCode::OK);
        }
    }
}
