//! A way over TCP to a private Redis that a test can break: connections that are reset, that go silent as when the
//! machine behind them is gone without a word, and an address that comes to lead elsewhere.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Flows,
    Silent,
    Reset,
}

struct Link {
    fate: watch::Sender<Fate>,
    talk: Arc<Talk>,
}

/// What went over a connection.
#[derive(Default)]
struct Talk {
    said: Mutex<Vec<u8>>,
    heard: Mutex<Vec<u8>>,
}

impl Talk {
    fn is_subscription(&self) -> bool {
        contains(&self.said.lock().unwrap(), "PSUBSCRIBE")
    }
}

/// The way. It is gone when this is dropped.
pub struct Proxy {
    port: u16,
    target: Arc<Mutex<PathBuf>>,
    links: Arc<Mutex<Vec<Link>>>,
    listening: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// To the server of this URL, which has a unix socket.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (target, links) = (Arc::new(Mutex::new(socket(url))), Arc::new(Mutex::new(Vec::new())));
        let (to, all) = (target.clone(), links.clone());
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let path = to.lock().unwrap().clone();
                // A server that is away: the client sees the connection end.
                let Ok(server) = UnixStream::connect(path).await else { continue };
                let (fate, follows) = watch::channel(Fate::Flows);
                let talk = Arc::new(Talk::default());
                all.lock().unwrap().push(Link { fate, talk: talk.clone() });
                tokio::spawn(carry(client, server, follows, talk));
            }
        });
        Self { port, target, links, listening }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// New connections go to another server; those that are open stay.
    pub fn lead_to(&self, url: &str) {
        *self.target.lock().unwrap() = socket(url);
    }

    /// Nothing comes through the connections of now any more, and nobody is told.
    pub fn silence(&self) {
        self.end_all(Fate::Silent);
    }

    /// As [`Proxy::silence`], for subscriptions alone; how many there were.
    pub fn silence_subscriptions(&self) -> usize {
        let links = self.links.lock().unwrap();
        let subscriptions = links.iter().filter(|link| link.talk.is_subscription());
        subscriptions.filter(|link| link.fate.send_replace(Fate::Silent) == Fate::Flows).count()
    }

    /// The connections of now are reset.
    pub fn reset(&self) {
        self.end_all(Fate::Reset);
    }

    fn end_all(&self, fate: Fate) {
        for link in self.links.lock().unwrap().iter() {
            link.fate.send_replace(fate);
        }
    }

    /// Whether a subscription has brought this.
    pub fn announced(&self, text: &str) -> bool {
        let links = self.links.lock().unwrap();
        links.iter().any(|link| link.talk.is_subscription() && contains(&link.talk.heard.lock().unwrap(), text))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

async fn carry(mut client: TcpStream, mut server: UnixStream, mut fate: watch::Receiver<Fate>, talk: Arc<Talk>) {
    let (mut up, mut down) = ([0; 16 << 10], [0; 16 << 10]);
    loop {
        let goes_on = tokio::select! {
            biased;
            changed = fate.changed() => {
                if changed.is_ok() && *fate.borrow() == Fate::Silent {
                    let _ = fate.wait_for(|fate| *fate == Fate::Reset).await;
                }
                let _ = client.set_zero_linger();
                false
            }
            read = client.read(&mut up) => pass(read, &up, &mut server, &talk.said).await,
            read = server.read(&mut down) => pass(read, &down, &mut client, &talk.heard).await,
        };
        if !goes_on {
            return;
        }
    }
}

/// Passes on what was read; false at the end.
async fn pass(
    read: std::io::Result<usize>,
    buffer: &[u8],
    to: &mut (impl AsyncWriteExt + Unpin),
    kept: &Mutex<Vec<u8>>,
) -> bool {
    let Some(read) = read.ok().filter(|read| *read > 0) else { return false };
    kept.lock().unwrap().extend_from_slice(&buffer[..read]);
    to.write_all(&buffer[..read]).await.is_ok()
}

fn socket(url: &str) -> PathBuf {
    url.strip_prefix("redis+unix://").expect("a private Redis").into()
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
