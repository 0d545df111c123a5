//! The order of the middleware around the routes.

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

use super::edge::Edge;
use super::operator_pages::{self, Pages};
use super::paths::{API, SANDBOX};
use super::{landing, openapi, routes};
use crate::app::App;
use crate::error::{Error, Kind};
use crate::limits;
use crate::platform::db;
use crate::platform::in_flight::{InFlightLimit, InFlightPermit};
use crate::sandbox;

/// The API's description.
pub fn document() -> utoipa::openapi::OpenApi {
    let whole =
        OpenApiRouter::with_openapi(openapi::Document::openapi()).nest(API, routes::detached()).merge(routes::hot());
    let (_, api) = split(whole.merge(routes::operations()).merge(routes::operators()));
    openapi::finish(api)
}

fn split(router: OpenApiRouter<App>) -> (Router<App>, utoipa::openapi::OpenApi) {
    let (router, mut api) = router.split_for_parts();
    openapi::describe(&mut api);
    limits::describe(&mut api);
    (router, api)
}

/// The whole service.
pub fn router(app: &App) -> Router {
    limits::prepare_counters();
    let (detached, _) = split(routes::detached());
    let (hot, _) = split(routes::hot());
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
    let (mut operations, _) = split(routes::operations());
    operations = operations.route("/", get(landing::landing));
    if pages.are_there() {
        let (operators, _) = split(routes::operators());
        let swagger = utoipa_swagger_ui::SwaggerUi::new("/docs")
            .config(utoipa_swagger_ui::Config::from("/openapi.json").validator_url("none"));
        operations = operations.merge(
            operators.merge(swagger).layer(from_fn_with_state((app.clone(), pages.clone()), operator_pages::guard)),
        );
    }
    let operations = operations
        .layer(compression())
        .layer(Extension(in_flight.clone()))
        .layer(Extension(pages))
        .layer(Extension(openapi::Made(document)));
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

    /// No route panics that we know of, so the parts are put around one that does.
    #[tokio::test]
    async fn a_panic_is_a_fault_of_ours_and_the_next_request_is_served() {
        let detached = Router::new().route("/detached", get(|| async { panic!("on purpose") as &str }));
        let routes = Router::new()
            .merge(detached.layer(from_fn(|request: Request, next: Next| detach(None, request, next))))
            .route("/hot", get(|| async { panic!("on purpose") as &str }))
            .route("/well", get(|| async { "well" }))
            .layer(from_fn(async |request: Request, next: Next| {
                crate::error::problems(super::super::edge::run(next.run(request)).await, "id", None)
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
