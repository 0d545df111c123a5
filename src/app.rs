//! [`App`]: what every handler, job and loop is given. Cheap to clone.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use secrecy::ExposeSecret;

use crate::config::Config;
use crate::engine::{Engine, Outcome};
use crate::error::{Error, Kind};
use crate::platform::clock::{At, Clock};
use crate::platform::db::{self, Db};
use crate::platform::jwt::Tokens;
use crate::platform::loops::Loops;
use crate::platform::redis::Redis;
use crate::platform::seldom::Seldom;
use crate::platform::ticket::Tickets;

/// The process's connections, clock and settings.
#[derive(Clone)]
pub struct App(Arc<Inner>);

/// What [`App`] points to.
pub struct Inner {
    /// The settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
    /// MySQL: the truth.
    pub db: Db,
    /// Redis: the bell and the gate.
    pub redis: Redis,
    /// The task engine.
    pub engine: Engine,
    /// When this process connected.
    pub started: At,
    /// Signs and verifies access tokens.
    pub tokens: Tokens,
    /// Gives and checks tickets, for those who can send no access token.
    pub tickets: Tickets,
    /// Calls to payment gateways.
    pub http: reqwest::Client,
    /// The loops of this process.
    pub loops: Loops,
    locals: RwLock<HashMap<TypeId, Arc<dyn Any + Send + Sync>, BuildHasherDefault<TypeIdHasher>>>,
}

/// A type's id is a hash already.
#[derive(Default)]
struct TypeIdHasher(u64);

impl Hasher for TypeIdHasher {
    fn write(&mut self, bytes: &[u8]) {
        // Not what a type's id does today; any number is right, a good one is quick.
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl Deref for App {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl App {
    /// Connects to everything; fails with what is wrong.
    pub async fn connect(config: Config, clock: Clock) -> anyhow::Result<Self> {
        let bounds = db::Bounds {
            size: config.database.pool_size,
            acquire_timeout: Duration::from_millis(config.database.acquire_timeout_ms),
            statement_timeout: Duration::from_millis(config.database.statement_timeout_ms),
        };
        let db = db::connect(config.database_url.expose_secret(), bounds).await?;
        let redis = Redis::connect(config.redis_url.expose_secret(), &config.redis_prefix).await?;
        redis.require_safe_server().await?;
        let keys = config.auth.token_keys()?;
        let (tokens, tickets) = (config.auth.tokens(&keys)?, Tickets::new(&keys));
        let http = reqwest::Client::builder()
            .timeout(Duration::from_millis(config.payments.gateway_timeout_ms))
            .connect_timeout(Duration::from_millis(config.payments.gateway_timeout_ms.min(2000)))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .context("building the HTTP client")?;
        let engine = Engine::new(redis.clone(), clock.clone(), config.engine.settings());
        let inner = Inner {
            config,
            started: clock.now(),
            clock,
            db,
            redis,
            engine,
            tokens,
            tickets,
            http,
            loops: Loops::default(),
            locals: RwLock::default(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// What a feature keeps in this process's memory: one `T` of this app, made at first use. Never the truth.
    pub fn local<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        let key = TypeId::of::<T>();
        let found = self.locals.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let local = found.unwrap_or_else(|| {
            let mut locals = self.locals.write().unwrap_or_else(PoisonError::into_inner);
            locals.entry(key).or_insert_with(|| Arc::new(T::default())).clone()
        });
        // The map's key is the type's own id, so this holds; a fresh value would only forget a memory.
        local.downcast::<T>().unwrap_or_default()
    }
}

/// While a server is away, tasks wait this long before they are tried again.
const AWAY_PAUSE: Duration = Duration::from_secs(1);
/// That they wait is told once in so long.
const AWAY_TOLD: Duration = Duration::from_secs(10);

/// When it was told last that tasks wait for a server.
#[derive(Default)]
struct Away(Seldom);

/// As one whose statement took too long: that helps a server that is too busy, and costs one little on which it always does.
const SLOW_PAUSE: Duration = Duration::from_secs(30);

/// How a task goes on whose handler failed. While a server is away it waits: that is no failed attempt of its, and it does
/// not become a dead letter by it.
pub fn failed(app: &App, error: &Error) -> Outcome {
    if error.kind() != Kind::Unavailable {
        return Outcome::Retry(anyhow::anyhow!("{error}"));
    }
    if app.local::<Away>().0.may(app.clock.now(), AWAY_TOLD) {
        tracing::warn!(%error, "tasks wait for a server that is away");
    }
    let is_slow = matches!(error, Error::Internal(cause) if db::is_too_slow(cause));
    Outcome::Again(if is_slow { SLOW_PAUSE } else { AWAY_PAUSE })
}
