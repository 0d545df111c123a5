//! A way to a server that takes longer, as over a network: every piece of what is said arrives so much later, in order.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Pieces under way in one direction, at most. A sender with more waits, as on a network.
const UNDER_WAY: usize = 1024;

/// The URL of a server on 127.0.0.1 with the port of a way to it that takes `each_way` longer in either direction. The way
/// is there until the process ends, on a thread of its own.
pub fn slow_way(url: &str, each_way: Duration) -> String {
    let server = server_of(url);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || runtime.block_on(listen(listener, server, each_way)));
    url.replace(&server.to_string(), &format!("127.0.0.1:{port}"))
}

/// The address in `scheme://user@127.0.0.1:port/…`.
fn server_of(url: &str) -> SocketAddr {
    let place = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = place.split(['/', '?']).next().unwrap_or(place);
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    host.parse().unwrap_or_else(|_| panic!("{host} is not an address with a port"))
}

async fn listen(listener: TcpListener, server: SocketAddr, each_way: Duration) {
    loop {
        let (client, _) = listener.accept().await.expect("a connection");
        tokio::spawn(async move {
            // A server that is away: the client sees the connection end.
            let Ok(server) = TcpStream::connect(server).await else { return };
            for end in [&client, &server] {
                end.set_nodelay(true).expect("a socket that delays nothing");
            }
            let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
            tokio::spawn(carry(from_client, to_server, each_way));
            carry(from_server, to_client, each_way).await;
        });
    }
}

/// Carries one direction to its end.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (pieces, mut arrive) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(read) = from.read(&mut buffer).await
            && read > 0
            && pieces.send((Instant::now() + delay, buffer[..read].to_vec())).await.is_ok()
        {}
    };
    let writing = async move {
        while let Some((at, piece)) = arrive.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&piece).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
