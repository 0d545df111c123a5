//! Takes connections and serves them, within bounds.

mod connection;
mod head;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::connection::HEAD_TIMEOUT;
use crate::app::App;

/// After a failed `accept` (no file descriptors left, say) the next one waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What is told to a client for whom there is no connection left.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Takes connections until the process stops; gives back those still open.
pub async fn accept(app: App, listener: TcpListener, router: Router) -> GracefulShutdown {
    let connections = GracefulShutdown::new();
    let stop = app.loops.stop_signal();
    let free = Arc::new(Semaphore::new(app.config.http.max_connections));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return connections,
        };
        match accepted {
            Ok((stream, peer)) => match free.clone().try_acquire_owned() {
                Ok(place) => {
                    let open = Open::new(place);
                    let serving = connection::serve(stream, peer, router.clone(), connections.watcher(), stop.clone());
                    tokio::spawn(async move {
                        serving.await;
                        drop(open);
                    });
                }
                Err(_) => {
                    metrics::counter!("onrush_http_connections_refused_total").increment(1);
                    // As good as it goes: it is closed whether or not the client hears why.
                    let _ = stream.try_write(FULL);
                }
            },
            Err(error) => {
                metrics::counter!("onrush_http_accept_failures_total").increment(1);
                tracing::warn!(%error, "connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that is open, of `http.max_connections`.
struct Open(#[expect(dead_code, reason = "held until the connection's end")] OwnedSemaphorePermit);

impl Open {
    fn new(place: OwnedSemaphorePermit) -> Self {
        metrics::gauge!("onrush_http_connections").increment(1.0);
        Self(place)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        metrics::gauge!("onrush_http_connections").decrement(1.0);
    }
}
