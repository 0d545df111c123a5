//! Time comes only from here: the system clock, or one that a test moves by hand.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::StdFmtWrite;
use jiff::fmt::temporal::DateTimePrinter;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::mysql::{MySql, MySqlTypeInfo, MySqlValueRef};

/// An instant in UTC, whole milliseconds: what MySQL's `DATETIME(3)` holds. As text and in JSON it is RFC 3339 with exactly
/// three decimals: who compares or cuts such texts finds all of them alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At(Timestamp);

impl At {
    /// The instant `ms` milliseconds after 1970; outside the years 1..9999 it is held at the nearest end.
    pub fn from_ms(ms: i64) -> Self {
        let edge = if ms < 0 { Timestamp::MIN } else { Timestamp::MAX };
        Self(Timestamp::from_millisecond(ms).unwrap_or(edge))
    }

    /// Milliseconds since 1970.
    pub fn ms(self) -> i64 {
        self.0.as_millisecond()
    }

    /// This instant plus a length of time.
    pub fn plus(self, length: Duration) -> Self {
        Self::from_ms(self.ms().saturating_add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX)))
    }

    /// This instant minus a length of time.
    pub fn minus(self, length: Duration) -> Self {
        Self::from_ms(self.ms().saturating_sub(i64::try_from(length.as_millis()).unwrap_or(i64::MAX)))
    }

    /// How long from `earlier` to this instant; zero when it is not earlier.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.ms().saturating_sub(earlier.ms())).unwrap_or(0))
    }

    /// Whole seconds until `self`, rounded up and at least 1: the value of a `Retry-After` header.
    pub fn retry_after_s(self, now: Self) -> u64 {
        self.since(now).as_millis().div_ceil(1000).max(1).try_into().unwrap_or(u64::MAX)
    }

    /// As jiff's own type, for calendars and zones.
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

/// The text is not an instant.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be an instant with its zone, such as 2026-11-11T00:00:00Z")]
pub struct NotAnInstant;

/// Longest text of an instant.
const MAX_TEXT: usize = 40;

impl FromStr for At {
    type Err = NotAnInstant;
    fn from_str(text: &str) -> Result<Self, NotAnInstant> {
        let short = Some(text).filter(|text| text.len() <= MAX_TEXT).ok_or(NotAnInstant)?;
        short.parse::<Timestamp>().map(Self::from).map_err(|_| NotAnInstant)
    }
}

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl From<Timestamp> for At {
    fn from(value: Timestamp) -> Self {
        Self::from_ms(value.as_millisecond())
    }
}

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
        PRINTER.print_timestamp(&self.0, StdFmtWrite(f)).map_err(|_| std::fmt::Error)
    }
}

impl Serialize for At {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for At {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::DateTime)))
            .into()
    }
}
#[cfg(feature = "openapi")]
impl utoipa::ToSchema for At {}

impl sqlx::Type<MySql> for At {
    fn type_info() -> MySqlTypeInfo {
        <time::PrimitiveDateTime as sqlx::Type<MySql>>::type_info()
    }
    fn compatible(ty: &MySqlTypeInfo) -> bool {
        <time::PrimitiveDateTime as sqlx::Type<MySql>>::compatible(ty)
    }
}

impl sqlx::Encode<'_, MySql> for At {
    fn encode_by_ref(&self, buf: &mut Vec<u8>) -> Result<IsNull, BoxDynError> {
        let utc = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.ms()) * 1_000_000)?;
        let plain = time::PrimitiveDateTime::new(utc.date(), utc.time());
        <time::PrimitiveDateTime as sqlx::Encode<'_, MySql>>::encode_by_ref(&plain, buf)
    }
    fn size_hint(&self) -> usize {
        // length byte, date, time, microseconds
        12
    }
}

impl<'r> sqlx::Decode<'r, MySql> for At {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        let plain = <time::PrimitiveDateTime as sqlx::Decode<'r, MySql>>::decode(value)?;
        let ms = plain.assume_utc().unix_timestamp_nanos() / 1_000_000;
        Ok(Self::from_ms(i64::try_from(ms)?))
    }
}

/// The service's only clock.
#[derive(Debug, Clone)]
pub enum Clock {
    /// The machine's.
    System,
    /// One that stands still until a test moves it; milliseconds since 1970.
    Manual(Arc<AtomicI64>),
    /// That of a machine which is wrong: so many milliseconds ahead. For tests.
    Ahead(i64),
}

impl Clock {
    /// A clock that starts at the present and moves only by [`Clock::advance`].
    pub fn manual() -> Self {
        Self::Manual(Arc::new(AtomicI64::new(Self::System.now().ms())))
    }

    /// The present instant.
    pub fn now(&self) -> At {
        match self {
            #[expect(clippy::disallowed_methods, reason = "the one place that reads the system clock")]
            Self::System => Timestamp::now().into(),
            Self::Manual(ms) => At::from_ms(ms.load(Ordering::SeqCst)),
            Self::Ahead(ms) => At::from_ms(Self::System.now().ms().saturating_add(*ms)),
        }
    }

    /// How far the time that is meant is from that of the servers, in milliseconds: nothing, but where a test moves it. What
    /// a server decides by its own clock is told this, and never what time it is here.
    pub fn shift_ms(&self) -> i64 {
        match self {
            Self::System | Self::Ahead(_) => 0,
            Self::Manual(ms) => ms.load(Ordering::SeqCst) - Self::System.now().ms(),
        }
    }

    /// Moves a manual clock forward. The system's clock is nobody's to move: it stays.
    pub fn advance(&self, length: Duration) {
        if let Self::Manual(ms) = self {
            ms.fetch_add(i64::try_from(length.as_millis()).unwrap_or(i64::MAX), Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn retry_after_rounds_up_and_is_never_zero() {
        let now = At::from_ms(10_000);
        assert_eq!(At::from_ms(11_001).retry_after_s(now), 2);
        assert_eq!(At::from_ms(9_000).retry_after_s(now), 1);
    }

    #[test]
    fn an_instant_is_rfc_3339_in_json() {
        let json = serde_json::to_string(&At::from_ms(1_763_667_000_123)).unwrap();
        assert_eq!(json, "\"2025-11-20T19:30:00.123Z\"");
        assert_eq!(serde_json::from_str::<At>(&json).unwrap(), At::from_ms(1_763_667_000_123));
    }

    #[test]
    fn an_instant_has_three_decimals_whatever_they_are() {
        for (ms, text) in [
            (1_763_667_000_000, "2025-11-20T19:30:00.000Z"),
            (1_763_667_000_120, "2025-11-20T19:30:00.120Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(At::from_ms(ms).to_string(), text);
            assert_eq!(serde_json::to_value(At::from_ms(ms)).unwrap(), text);
        }
    }

    #[test]
    fn a_manual_clock_moves_only_by_hand() {
        let clock = Clock::manual();
        let before = clock.now();
        clock.advance(Duration::from_secs(5));
        assert_eq!(clock.now().since(before), Duration::from_secs(5));
    }

    #[test]
    fn a_manual_clock_says_how_far_it_is_from_the_machines() {
        assert_eq!(Clock::System.shift_ms(), 0);
        let clock = Clock::manual();
        let before = clock.shift_ms();
        clock.advance(Duration::from_secs(3600));
        let moved = clock.shift_ms() - before;
        // It stands still, and the machine's goes on.
        assert!(moved <= 3_600_000 && moved > 3_500_000, "{moved}");
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_an_instant_panic(text in "[0-9TtZz:.+-]{0,40}|\\PC{0,40}", ms in -62_135_596_800_000i64..253_402_000_000_000) {
            if let Ok(at) = text.parse::<At>() {
                prop_assert_eq!(at.to_string().parse::<At>().unwrap(), at);
            }
            prop_assert_eq!(At::from_ms(ms).to_string().parse::<At>().unwrap(), At::from_ms(ms));
        }
    }
}
