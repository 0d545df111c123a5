//! A function of a feature returns [`Error`]: `Refused` (the caller is told why, by a stable name of the table in [`kinds`]) or `Internal` (the
//! caller is told nothing, the cause is logged once, by [`problems`], which also writes the body).

mod kinds;
mod members;
mod problem;

use std::future::Future;

use serde::Serialize;
use serde_json::Value;

pub use self::kinds::Kind;
pub use self::members::describe as describe_members;
pub use self::problem::{Plain, Problem, RATE_LIMIT, RATE_LIMIT_POLICY, REQUEST_ID, Words, problems};
use crate::platform::db;
use crate::platform::extract::{FaultClass, Faults, FieldFault};

/// A refusal with what the caller needs to act on it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// Which one.
    pub kind: Kind,
    /// What happened, for a person; the title when empty.
    pub detail: String,
    /// Seconds for the `Retry-After` header.
    pub retry_after_s: Option<u64>,
    /// Faults by field.
    pub errors: Vec<FieldFault>,
    /// More members of the body, such as `starts_at`.
    pub extra: Vec<(&'static str, Value)>,
    /// Why, for the log, the books and administrators (a bill's `error`): what another system said, and no other
    /// caller is told.
    pub cause: String,
}

impl Refusal {
    /// When to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }
    /// One more member of the body, as the views have it: a number is a number. Each is in the list of `members`.
    pub fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        debug_assert!(members::is_described(name), "clients are not told of {name}");
        // What is named here is text or a number, which always can be written.
        self.extra.push((name, serde_json::to_value(value).unwrap_or_default()));
        self
    }
    /// Why, for those who run the service.
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = cause.to_string();
        self
    }
}

/// As the log and the books have it.
impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.name())?;
        [&self.detail, &self.cause]
            .into_iter()
            .filter(|said| !said.is_empty())
            .try_for_each(|said| write!(f, ": {said}"))
    }
}

/// What a function of a feature fails with.
#[derive(Debug)]
pub enum Error {
    /// The caller's to know.
    Refused(Box<Refusal>),
    /// Ours to know.
    Internal(anyhow::Error),
}

/// The result of a function of a feature.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A refusal of `kind`, explained by `detail`.
pub fn refuse(kind: Kind, detail: impl Into<String>) -> Refusal {
    Refusal {
        kind,
        detail: detail.into(),
        retry_after_s: None,
        errors: Vec::new(),
        extra: Vec::new(),
        cause: String::new(),
    }
}

/// A refusal of one field.
pub fn invalid(field: impl Into<String>, message: impl Into<String>) -> Error {
    vec![FieldFault::new(field, message)].into()
}

impl Error {
    /// The kind as the caller sees it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused(refusal) => refusal.kind,
            // Contention that outlasted its attempts is not the caller's fault, nor a fault of the code.
            Self::Internal(error) if is_unavailable(error) || db::is_contention(error) => Kind::Unavailable,
            Self::Internal(_) => Kind::Internal,
        }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Internal(error) => write!(f, "{error:#}"),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(Box::new(refusal))
    }
}
impl From<Vec<FieldFault>> for Error {
    fn from(errors: Vec<FieldFault>) -> Self {
        Refusal { errors, ..refuse(Kind::Invalid, "") }.into()
    }
}
impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        refuse(kind, "").into()
    }
}
impl From<anyhow::Error> for Error {
    fn from(error: anyhow::Error) -> Self {
        Self::Internal(error)
    }
}
impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Internal(error.into())
    }
}
impl From<redis::RedisError> for Error {
    fn from(error: redis::RedisError) -> Self {
        Self::Internal(error.into())
    }
}
impl From<crate::platform::money::OutOfRange> for Error {
    fn from(_: crate::platform::money::OutOfRange) -> Self {
        refuse(Kind::Invalid, "an amount is out of range").into()
    }
}

/// As an internal error, for jobs: a refusal there is an outcome to log, not an answer.
impl From<Error> for anyhow::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => anyhow::anyhow!("{refusal}"),
            Error::Internal(error) => error,
        }
    }
}

fn is_unavailable(error: &anyhow::Error) -> bool {
    db::is_unavailable(error)
        || error
            .chain()
            .any(|cause| cause.downcast_ref::<redis::RedisError>().is_some_and(crate::platform::redis::is_unavailable))
}

/// As [`db::retrying`], for what may also refuse: a refusal is an answer, and is not run again.
#[track_caller]
pub fn retrying<T, F, Fut>(transaction: F) -> impl Future<Output = Result<T>>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    // The refusal goes round the runs, as what came of the last of them.
    let answered = db::retrying(move || {
        let run = transaction();
        async move {
            match run.await {
                Ok(done) => Ok(Ok(done)),
                Err(Error::Refused(refusal)) => Ok(Err(refusal)),
                Err(Error::Internal(error)) => Err(error),
            }
        }
    });
    async move { answered.await?.map_err(Error::Refused) }
}

impl From<Faults> for Refusal {
    fn from(faults: Faults) -> Self {
        let (why, detail, errors) = faults.into_told();
        let kind = match why {
            None | Some(FaultClass::Invalid) => Kind::Invalid,
            Some(FaultClass::KeyMissing) => Kind::IdempotencyKeyMissing,
            Some(FaultClass::KeyInvalid) => Kind::IdempotencyKeyInvalid,
            Some(FaultClass::Malformed) => Kind::MalformedJson,
            Some(FaultClass::Incomplete) => Kind::BodyIncomplete,
            Some(FaultClass::TooSlow) => Kind::RequestTimeout,
            Some(FaultClass::NotJson) => Kind::NotJson,
            Some(FaultClass::TooLarge) => Kind::BodyTooLarge,
        };
        Self { errors, ..refuse(kind, detail) }
    }
}
