//! Days of a calendar: which day it is somewhere, and from when to when a day lasts there.

use std::str::FromStr;
use std::sync::LazyLock;

use jiff::civil::Date;
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Span, ToSpan};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::mysql::{MySql, MySqlTypeInfo, MySqlValueRef};

use super::clock::At;

/// The table of zones that is part of this program.
static BUNDLED: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// A zone by its IANA name. The machine's table comes first, which may be newer; a zone that it has not, or has lost by an
/// update, is in the program's own.
pub fn zone(name: &str) -> Result<TimeZone, jiff::Error> {
    TimeZone::get(name).or_else(|unknown| BUNDLED.get(name).map_err(|_| unknown))
}

/// A day: `DATE` in MySQL, `2026-11-20` in JSON and in paths. Its years have four digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Day(Date);

/// The text is not a day.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("must be a day, such as 2026-11-20")]
pub struct NotADay;

impl Day {
    /// The last day that can be written.
    pub const MAX: Self = Self(Date::MAX);

    /// The day that it is in `zone` at an instant.
    pub fn of(at: At, zone: &TimeZone) -> Self {
        Self(zone.to_datetime(at.timestamp()).date())
    }

    /// The day so many days before; the first that there is when there are not so many.
    pub fn days_before(self, days: u16) -> Self {
        Self(self.0.saturating_sub(Span::new().days(days)))
    }

    /// Its first instant in `zone` and that of the next day: 24 hours but where the wall clock jumps. Days that follow
    /// each other share no instant and leave none out.
    pub fn bounds(self, zone: &TimeZone) -> (At, At) {
        // The start of a day whose midnight the wall clock leaves out is the first instant after the gap.
        let start = |date: Date| zone.to_ambiguous_timestamp(date.to_datetime(jiff::civil::Time::midnight()));
        let start = |date: Date| start(date).compatible().map_or(At::from_ms(i64::MAX), At::from);
        (start(self.0), start(self.0.saturating_add(1.day())))
    }
}

impl FromStr for Day {
    type Err = NotADay;
    fn from_str(text: &str) -> Result<Self, NotADay> {
        // jiff reads more: signs, other calendars' dates, times behind it.
        let plain = text.len() == 10
            && text.bytes().enumerate().all(|(at, b)| if matches!(at, 4 | 7) { b == b'-' } else { b.is_ascii_digit() });
        let date = Some(text).filter(|_| plain).and_then(|text| text.parse().ok());
        date.map(Self).ok_or(NotADay)
    }
}

impl std::fmt::Display for Day {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Day {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Day {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::schema::Type::String)
            .format(Some(utoipa::openapi::SchemaFormat::KnownFormat(utoipa::openapi::KnownFormat::Date)))
            .into()
    }
}
#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Day {}

impl sqlx::Type<MySql> for Day {
    fn type_info() -> MySqlTypeInfo {
        <time::Date as sqlx::Type<MySql>>::type_info()
    }
    fn compatible(ty: &MySqlTypeInfo) -> bool {
        <time::Date as sqlx::Type<MySql>>::compatible(ty)
    }
}

impl sqlx::Encode<'_, MySql> for Day {
    fn encode_by_ref(&self, buf: &mut Vec<u8>) -> Result<IsNull, BoxDynError> {
        let month = time::Month::try_from(self.0.month().unsigned_abs())?;
        let date = time::Date::from_calendar_date(self.0.year().into(), month, self.0.day().unsigned_abs())?;
        <time::Date as sqlx::Encode<'_, MySql>>::encode_by_ref(&date, buf)
    }
    fn size_hint(&self) -> usize {
        // length byte, date
        5
    }
}

impl<'r> sqlx::Decode<'r, MySql> for Day {
    fn decode(value: MySqlValueRef<'r>) -> Result<Self, BoxDynError> {
        let date = <time::Date as sqlx::Decode<'r, MySql>>::decode(value)?;
        let (month, day) = (i8::try_from(u8::from(date.month()))?, i8::try_from(date.day())?);
        Ok(Self(Date::new(i16::try_from(date.year())?, month, day)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a zone")
    }

    fn hours(day: &str, name: &str) -> f64 {
        let (from, until) = day.parse::<Day>().expect("a day").bounds(&zone(name));
        until.since(from).as_secs_f64() / 3600.0
    }

    #[test]
    fn a_day_lasts_from_midnight_to_midnight_of_its_zone() {
        let (from, until) = "2026-11-20".parse::<Day>().unwrap().bounds(&zone("Asia/Shanghai"));
        assert_eq!(from.to_string(), "2026-11-19T16:00:00.000Z");
        assert_eq!(until.to_string(), "2026-11-20T16:00:00.000Z");
    }

    #[test]
    fn a_day_on_which_the_wall_clock_jumps_is_shorter_or_longer() {
        assert_eq!(hours("2026-03-29", "Europe/Berlin"), 23.0);
        assert_eq!(hours("2026-10-25", "Europe/Berlin"), 25.0);
        assert_eq!(hours("2026-10-26", "Europe/Berlin"), 24.0);
        assert_eq!(hours("2026-10-04", "Australia/Lord_Howe"), 23.5);
        // Its midnight was left out, and came twice.
        assert_eq!(hours("2018-11-04", "America/Sao_Paulo"), 23.0);
        assert_eq!(hours("2018-02-17", "America/Sao_Paulo"), 25.0);
        assert_eq!(hours("2026-11-01", "America/Havana"), 25.0);
        // Samoa had no such day.
        assert_eq!(hours("2011-12-30", "Pacific/Apia"), 0.0);
    }

    #[test]
    fn a_day_is_written_in_one_way() {
        assert_eq!("2026-11-20".parse::<Day>().unwrap().to_string(), "2026-11-20");
        assert_eq!("0001-01-01".parse::<Day>().unwrap().to_string(), "0001-01-01");
        for text in ["2026-11-31", "2026-13-01", "2026-1-01", "20261120", "2026-11-20T00", "+02026-1-1", "", "today"] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_ends_of_the_calendar_are_held() {
        let (first, last) = ("0000-01-01".parse::<Day>().unwrap(), Day::MAX);
        for day in [first.days_before(u16::MAX), first, last] {
            let (from, until) = day.bounds(&zone("Asia/Shanghai"));
            assert!(from <= until, "{day}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_a_day_panic(text in "[0-9]{4}-?[01][0-9]-?[0-3][0-9][Tt]?|[0-9-]{0,12}|\\PC{0,20}") {
            if let Ok(day) = text.parse::<Day>() {
                prop_assert_eq!(day.to_string(), text);
            }
        }

        /// Whatever the zone does, an instant lies in the day that it is there, and in no other.
        #[test]
        fn every_instant_is_of_one_day(
            name in prop_oneof![
                Just("Asia/Shanghai"), Just("Europe/Berlin"), Just("America/Havana"), Just("America/Sao_Paulo"),
                Just("Australia/Lord_Howe"), Just("Africa/Cairo"),
            ],
            ms in 946_684_800_000i64..2_000_000_000_000,
        ) {
            let (zone, at) = (zone(name), At::from_ms(ms));
            let day = Day::of(at, &zone);
            let (from, until) = day.bounds(&zone);
            prop_assert!(from <= at && at < until, "{at} in {day}: {from} to {until}");
            prop_assert_eq!(day.days_before(1).bounds(&zone).1, from);
        }
    }
}
