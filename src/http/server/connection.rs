//! One connection, HTTP/1 or 2, from its first byte to its end. None lasts for ever without a request under way, and none
//! holds an answer that its client does not take.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::response::Response;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::Watcher;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::head::ConnectionState;
use super::stream::{Guarded, Version, WRITE_TIMEOUT};

/// The longest until a connection's first request has begun, and to send the head of a later one.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request, in bytes.
pub const HEAD_MAX_BYTES: usize = 64 * 1024;
/// An HTTP/2 connection without a stream for this long is closed, and at the latest after twice as long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// The longest life of an HTTP/2 stream: an event stream's, the longest there is, and time to take its end. A client may
/// leave its window shut: nothing is written then, and no deadline of a write strikes.
const STREAM_LIFE: Duration = Duration::from_secs(360);

/// Serves one connection to its end.
pub async fn serve(stream: TcpStream, peer: SocketAddr, router: Router, watcher: Watcher, stop: CancellationToken) {
    // Only a hint to the system; a connection without it works.
    let _ = stream.set_nodelay(true);
    let known = Arc::new(ConnectionState::default());
    let mut stream = Guarded::new(stream, known.clone(), WRITE_TIMEOUT);
    let serving = async {
        let version = tokio::select! {
            version = stream.version() => version?,
            // Nothing was asked yet.
            () = stop.cancelled() => return Ok(()),
        };
        match version {
            Version::Http1 => http_1(stream, peer, router, watcher, known.clone()).await?,
            Version::Http2 => http_2(stream, peer, router, watcher, known.clone()).await?,
        }
        anyhow::Ok(())
    };
    tokio::select! {
        served = serving => if let Err(error) = served {
            tracing::trace!(%error, "connection ended early");
        },
        () = abandoned(&known) => tracing::trace!("connection without a request is closed"),
    }
}

/// Ends when nobody asks anything on the connection. Between the requests of HTTP/1 the bound on their heads does that.
async fn abandoned(known: &ConnectionState) {
    tokio::time::sleep(HEAD_TIMEOUT).await;
    if !known.has_begun() {
        return;
    }
    let (_, mut before) = known.streams();
    if before == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(IDLE_TIMEOUT).await;
        let (open, started) = known.streams();
        if open == 0 && started == before {
            return;
        }
        before = started;
    }
}

async fn http_1(
    stream: Guarded<TcpStream>,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
    known: Arc<ConnectionState>,
) -> hyper::Result<()> {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        // Before anything else is read of the connection.
        known.begins(request.body().size_hint().exact());
        answer(router.clone(), peer, request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_header_size(HEAD_MAX_BYTES);
    watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await
}

async fn http_2(
    stream: Guarded<TcpStream>,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
    known: Arc<ConnectionState>,
) -> hyper::Result<()> {
    let streams = Streams(known.clone());
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        known.begins(None);
        answer(router.clone(), peer, request)
    });
    let mut builder = http2::Builder::new(streams);
    builder.timer(TokioTimer::new()).keep_alive_interval(HEAD_TIMEOUT);
    builder.max_header_list_size(u32::try_from(HEAD_MAX_BYTES).unwrap_or(u32::MAX));
    watcher.watch(builder.serve_connection(TokioIo::new(stream), service)).await
}

async fn answer(router: Router, peer: SocketAddr, request: hyper::Request<Incoming>) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    router.oneshot(request).await
}

/// Runs the streams of an HTTP/2 connection, each for as long as one may last.
#[derive(Clone)]
struct Streams(Arc<ConnectionState>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let open = self.0.clone().stream();
        tokio::spawn(async move {
            // Given up like one whose client went away.
            let _ = tokio::time::timeout(STREAM_LIFE, stream).await;
            drop(open);
        });
    }
}
