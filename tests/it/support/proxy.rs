//! A way over TCP to a Redis or a MySQL that a test can break: connections that are reset, that go silent as when the
//! machine behind them is gone without a word, that are slow, in pieces, or cut after some bytes, either way or in one direction
//! alone, and an address that comes to lead elsewhere. It follows what is said to MySQL ([`mysql`]), without TLS: it counts statements, holds one, fails one, or loses a COMMIT.
//!
//! ```ignore
//! let h = Harness::new().await;
//! // A second service on the database of `h`, whose every word to MySQL goes through the proxy.
//! let (way, through) = h.through_mysql_proxy().await;
//! way.forget_commands();
//! through.post("/orders", &alice, body).await.expect(201);
//! assert_eq!(way.commands().len(), 9, "{:#?}", way.commands());
//!
//! let held = way.hold("INSERT INTO user_courses");          // the next statement with this text waits
//! let lost = way.lose_commit(LostAt::Answer, "INSERT INTO orders"); // COMMIT is done, and nobody hears of it
//! let failed = way.deadlock("UPDATE payments");             // rolled back, and error 1213
//! held.sprung().await;
//! held.let_go();
//! ```

pub mod mysql;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use onrush::dev::servers::database_url;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

pub use self::mysql::{Command, LostAt, Verb};
use self::mysql::{Conversation, Deed, Follower, Said, To, Trap};

/// What becomes of a connection.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Flows,
    Silent,
    Reset,
}

struct Link {
    fate: watch::Sender<Fate>,
    /// By direction, whether what is said there gets lost.
    mute: Arc<[AtomicBool; 2]>,
    talk: Arc<Talk>,
}

/// Who hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What the client says.
    ToServer,
    /// What the server answers.
    ToClient,
}

/// What went over a connection to Redis.
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

/// Where a server is.
#[derive(Clone)]
enum Target {
    Tcp(String),
    Unix(PathBuf),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Target {
    /// Of `redis://127.0.0.1:PORT`, `mysql://USER@127.0.0.1:PORT`, `redis+unix:///PATH` or `mysql://USER@localhost?socket=/PATH`.
    fn of(url: &str) -> Self {
        if let Some(path) = url.strip_prefix("redis+unix://") {
            return Self::Unix(path.into());
        }
        let (_, rest) = url.split_once("://").expect("a URL");
        let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
        if let Some(path) = options.split('&').find_map(|option| option.strip_prefix("socket=")) {
            return Self::Unix(path.into());
        }
        let host = place.rsplit_once('@').map_or(place, |(_, host)| host);
        Self::Tcp(host.split_once('/').map_or(host, |(host, _)| host).to_owned())
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        Ok(match self {
            Self::Tcp(host) => {
                let stream = TcpStream::connect(host).await?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Self::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

/// What the way does to all that goes over it in one direction.
#[derive(Clone, Copy, Default)]
struct Weather {
    /// Each piece takes so much longer.
    delay: Duration,
    /// Pieces have so many bytes at most.
    piece: Option<usize>,
    /// A connection is reset once so many bytes have gone over it, either way.
    cut_after: Option<u64>,
}

/// The way. It is gone when this is dropped.
pub struct Proxy {
    port: u16,
    /// Of the server that it was made for.
    url: String,
    target: Arc<Mutex<Target>>,
    links: Arc<Mutex<Vec<Link>>>,
    weather: [watch::Sender<Weather>; 2],
    follower: Arc<Follower>,
    listening: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// To the server of this URL.
    pub async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (target, links) = (Arc::new(Mutex::new(Target::of(url))), Arc::new(Mutex::new(Vec::new())));
        let weather = [(); 2].map(|()| watch::Sender::new(Weather::default()));
        let follower = Arc::new(Follower::default());
        let (to, all, weathered) = (target.clone(), links.clone(), weather.each_ref().map(watch::Sender::subscribe));
        let follows = url.starts_with("mysql").then(|| follower.clone());
        let listening = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let target = to.lock().unwrap().clone();
                // A server that is away: the client sees the connection end.
                let Ok(server) = target.connect().await else { continue };
                let _ = client.set_nodelay(true);
                let (fate, changes) = watch::channel(Fate::Flows);
                let talk = Arc::new(Talk::default());
                let mut links: std::sync::MutexGuard<'_, Vec<Link>> = all.lock().unwrap();
                let heard = match &follows {
                    Some(follower) => Heard::MySql(follower.clone().conversation(links.len())),
                    None => Heard::Redis(talk.clone()),
                };
                let mute: Arc<[AtomicBool; 2]> = Arc::default();
                links.push(Link { fate, mute: mute.clone(), talk });
                let carried = Arc::new(AtomicU64::new(0));
                let road = |direction: Direction| Road {
                    direction,
                    weather: weathered[direction as usize].clone(),
                    mute: mute.clone(),
                    carried: carried.clone(),
                };
                let roads = (road(Direction::ToServer), road(Direction::ToClient));
                tokio::spawn(carry(client, server, changes, roads, heard));
            }
        });
        Self { port, url: url.to_owned(), target, links, weather, follower, listening }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of the server by this way.
    pub fn url(&self) -> String {
        let Some(rest) = self.url.strip_prefix("mysql://") else { return format!("redis://127.0.0.1:{}", self.port) };
        let user = rest.split_once('@').map_or("root", |(user, _)| user);
        format!("mysql://{user}@127.0.0.1:{}?ssl-mode=disabled", self.port)
    }

    /// The URL of a database on MySQL by this way.
    pub fn database(&self, name: &str) -> String {
        database_url(&self.url(), name)
    }

    /// New connections go to another server; those that are open stay.
    pub fn lead_to(&self, url: &str) {
        *self.target.lock().unwrap() = Target::of(url);
    }

    /// From now on each piece of what is said takes so much longer, either way.
    pub fn slow_down(&self, each_way: Duration) {
        self.both_ways().for_each(|way| way.slow_down(each_way));
    }

    /// From now on what is said arrives in pieces of at most so many bytes; `None`: as it comes.
    pub fn in_pieces_of(&self, bytes: Option<usize>) {
        self.both_ways().for_each(|way| way.in_pieces_of(bytes));
    }

    /// From now on each connection is reset once so many bytes have gone over it, either way; `None`: none is.
    pub fn cut_after(&self, bytes: Option<u64>) {
        self.both_ways().for_each(|way| way.cut_after(bytes));
    }

    /// One direction alone.
    pub fn one_way(&self, direction: Direction) -> OneWay<'_> {
        OneWay { proxy: self, direction }
    }

    fn both_ways(&self) -> impl Iterator<Item = OneWay<'_>> {
        [Direction::ToServer, Direction::ToClient].into_iter().map(|direction| self.one_way(direction))
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

    /// What MySQL was told to do by this way, since the last [`Proxy::forget_commands`].
    pub fn commands(&self) -> Vec<Command> {
        self.follower.commands()
    }

    pub fn forget_commands(&self) {
        self.follower.forget_commands();
    }

    /// Holds the next statement whose text has this in it, before MySQL hears of it: until [`Trap::let_go`], or until
    /// what is returned here is dropped. Others go by.
    pub fn hold(&self, text: &str) -> Trap {
        self.follower.set(Deed::Hold, To::Itself, text)
    }

    /// Loses the next statement whose text has this in it, with its connection, once.
    pub fn lose(&self, at: LostAt, text: &str) -> Trap {
        self.follower.set(Deed::Lose(at), To::Itself, text)
    }

    /// Loses the next COMMIT of a transaction in which a statement had this in its text (any, when it is empty), with its
    /// connection, once.
    pub fn lose_commit(&self, at: LostAt, text: &str) -> Trap {
        self.follower.set(Deed::Lose(at), To::ItsCommit, text)
    }

    /// Makes the next statement whose text has this in it the victim of a deadlock, once: the server rolls its transaction
    /// back, and the client hears error 1213.
    pub fn deadlock(&self, text: &str) -> Trap {
        self.follower.set(Deed::Deadlock, To::Itself, text)
    }

    /// As [`Proxy::deadlock`], but the COMMIT of its transaction hears of it, as on a cluster that certifies transactions
    /// there.
    pub fn deadlock_at_commit(&self, text: &str) -> Trap {
        self.follower.set(Deed::Deadlock, To::ItsCommit, text)
    }
}

/// One direction of the way: what is done to it leaves the other as it is.
pub struct OneWay<'a> {
    proxy: &'a Proxy,
    direction: Direction,
}

impl OneWay<'_> {
    fn weather(&self, change: impl FnOnce(&mut Weather)) {
        self.proxy.weather[self.direction as usize].send_modify(change);
    }

    /// As [`Proxy::slow_down`].
    pub fn slow_down(&self, delay: Duration) {
        self.weather(|weather| weather.delay = delay);
    }

    /// As [`Proxy::in_pieces_of`].
    pub fn in_pieces_of(&self, bytes: Option<usize>) {
        self.weather(|weather| weather.piece = bytes);
    }

    /// As [`Proxy::cut_after`]: by what goes this way, and what went the other way counts.
    pub fn cut_after(&self, bytes: Option<u64>) {
        self.weather(|weather| weather.cut_after = bytes);
    }

    /// What is said this way over the connections of now gets lost, and nobody is told.
    pub fn silence(&self) {
        for link in self.proxy.links.lock().unwrap().iter() {
            link.mute[self.direction as usize].store(true, Ordering::SeqCst);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

/// What is kept of what goes by.
enum Heard {
    Redis(Arc<Talk>),
    MySql(Mutex<Conversation>),
}

/// How a direction of a connection ends.
enum End {
    Closed,
    Reset,
}

async fn carry(
    mut client: TcpStream,
    server: Box<dyn Stream>,
    mut fate: watch::Receiver<Fate>,
    (there, back): (Road, Road),
    heard: Heard,
) {
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let end = {
        let (mut from_client, mut to_client) = client.split();
        tokio::select! {
            biased;
            _ = fate.changed() => End::Reset,
            end = up(&mut from_client, &mut to_server, &there, &heard) => end,
            end = down(&mut from_server, &mut to_client, &back, &heard) => end,
        }
    };
    if *fate.borrow() == Fate::Silent {
        let _ = fate.wait_for(|fate| *fate == Fate::Reset).await;
    }
    if matches!(end, End::Reset) {
        let _ = client.set_zero_linger();
    }
}

/// What the client says.
async fn up(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    road: &Road,
    heard: &Heard,
) -> End {
    let mut buffer = [0; 16 << 10];
    loop {
        let Some(read) = from.read(&mut buffer).await.ok().filter(|read| *read > 0) else { return End::Closed };
        road.wait().await;
        if road.is_mute() {
            continue;
        }
        let said = match heard {
            Heard::Redis(talk) => {
                talk.said.lock().unwrap().extend_from_slice(&buffer[..read]);
                vec![Said::Pass(buffer[..read].to_vec())]
            }
            Heard::MySql(conversation) => conversation.lock().unwrap().said(&buffer[..read]),
        };
        for said in said {
            match said {
                Said::Pass(bytes) => {
                    if let Some(end) = road.write(to, &bytes).await {
                        return end;
                    }
                }
                Said::Wait(trap) => trap.is_let_go().await,
                Said::Lost => return End::Reset,
            }
        }
    }
}

/// What the server answers.
async fn down(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    road: &Road,
    heard: &Heard,
) -> End {
    let mut buffer = [0; 16 << 10];
    loop {
        let Some(read) = from.read(&mut buffer).await.ok().filter(|read| *read > 0) else { return End::Closed };
        road.wait().await;
        if road.is_mute() {
            continue;
        }
        let answer = match heard {
            Heard::Redis(talk) => {
                talk.heard.lock().unwrap().extend_from_slice(&buffer[..read]);
                Some(buffer[..read].to_vec())
            }
            Heard::MySql(conversation) => conversation.lock().unwrap().answered(&buffer[..read]),
        };
        let Some(answer) = answer else { return End::Reset };
        if let Some(end) = road.write(to, &answer).await {
            return end;
        }
    }
}

/// One connection's part of the way, in one direction.
struct Road {
    direction: Direction,
    weather: watch::Receiver<Weather>,
    mute: Arc<[AtomicBool; 2]>,
    /// Of the connection, either way.
    carried: Arc<AtomicU64>,
}

impl Road {
    async fn wait(&self) {
        let delay = self.weather.borrow().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn is_mute(&self) -> bool {
        self.mute[self.direction as usize].load(Ordering::SeqCst)
    }

    /// Passes bytes on; how the connection ends, where it does.
    async fn write(&self, to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Option<End> {
        let Weather { piece, cut_after, .. } = *self.weather.borrow();
        for piece in bytes.chunks(piece.unwrap_or(bytes.len()).max(1)) {
            let carried = self.carried.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if cut_after.is_some_and(|most| carried >= most) {
                return Some(End::Reset);
            }
            // A piece of its own: the other end may read it before the next is there.
            if to.write_all(piece).await.is_err() || to.flush().await.is_err() {
                return Some(End::Closed);
            }
            tokio::task::yield_now().await;
        }
        None
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
