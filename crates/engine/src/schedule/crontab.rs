//! Crontab expressions with Celery's meaning of the fields.
//!
//! Five fields in the classic order, which is also that of Celery's `crontab.from_string`:
//! `minute hour day_of_month month_of_year day_of_week`. A field is a list (`,`) of numbers, names, ranges (`a-b`,
//! with a step `a-b/n`) and `*` (with a step `*/n`).
//!
//! * `day_of_week` is 0..6 from Sunday. Celery knows no 7, so 7 is refused here too.
//! * A range whose end is below its start goes over the top: `fri-mon`, `50-10` as minutes. A step counts along the
//!   range: `50-10/10` is 50, 0, 10.
//! * `day_of_month` **and** `day_of_week` must both match, unlike in Vixie's cron, where one is enough.
//! * What no calendar has (`30 2`, the 30th of February) is refused.
//!
//! Stricter than Celery, which reads a name in any field and passes over what follows a good beginning: here a name
//! stands in its own field only, and every character counts.
//!
//! Fields and next runs are compared with Celery's own by `script/crontab-against-celery`.

use std::fmt;
use std::str::FromStr;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrontabFault {
    /// Its name, by Celery's word: `minute` … `day_of_week`; `expression` when there are not five.
    pub field: &'static str,
    /// Why, for a person.
    pub reason: String,
}

/// The text is not a crontab expression: every bad field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotACrontab(pub Vec<CrontabFault>);

impl fmt::Display for NotACrontab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            write!(f, "{}{}: {}", if at == 0 { "" } else { "; " }, fault.field, fault.reason)?;
        }
        Ok(())
    }
}
impl std::error::Error for NotACrontab {}

/// One field: its bounds and the names of its values, the first of which is the lowest.
struct Field {
    name: &'static str,
    min: u8,
    max: u8,
    names: &'static [&'static str],
}

const MONTHS: &[&str] = &[
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: &[&str] = &["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];
/// A name may be cut off after so many letters.
const SHORTEST_NAME: usize = 3;

const FIELDS: [Field; 5] = [
    Field { name: "minute", min: 0, max: 59, names: &[] },
    Field { name: "hour", min: 0, max: 23, names: &[] },
    Field { name: "day_of_month", min: 1, max: 31, names: &[] },
    Field { name: "month_of_year", min: 1, max: 12, names: MONTHS },
    Field { name: "day_of_week", min: 0, max: 6, names: WEEKDAYS },
];

/// The longest that each month, from January, can be.
const DAYS_IN_MONTH: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// The values of one field: bit n is set when n matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Values(u64);

impl Values {
    pub(super) fn has(self, value: u8) -> bool {
        self.0 & (1 << value) != 0
    }
    /// The lowest value that is not below `from`.
    pub(super) fn first_from(self, from: u8) -> Option<u8> {
        (from..64).find(|value| self.has(*value))
    }
    /// All values, ascending.
    pub(super) fn all(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |value| self.has(*value))
    }
}

/// A crontab expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crontab {
    text: String,
    pub(super) minutes: Values,
    pub(super) hours: Values,
    pub(super) days: Values,
    pub(super) months: Values,
    pub(super) weekdays: Values,
}

impl Crontab {
    /// The values of each field, in the order of the expression.
    pub fn values(&self) -> [Vec<u8>; 5] {
        [self.minutes, self.hours, self.days, self.months, self.weekdays].map(|values| values.all().collect())
    }

    /// Whether every hour of the day is among its hours.
    pub(super) fn is_hourly(&self) -> bool {
        (0..24).all(|hour| self.hours.has(hour))
    }
}

impl fmt::Display for Crontab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Crontab {
    type Err = NotACrontab;

    fn from_str(text: &str) -> Result<Self, NotACrontab> {
        let parts: Vec<&str> = text.split_ascii_whitespace().collect();
        if parts.len() != FIELDS.len() {
            let names = FIELDS.map(|field| field.name).join(" ");
            let reason = format!("must have the five fields `{names}`, and has {}", parts.len());
            return Err(NotACrontab(vec![CrontabFault { field: "expression", reason }]));
        }
        let (mut faults, mut values) = (Vec::new(), [Values(0); 5]);
        for ((field, part), slot) in FIELDS.iter().zip(&parts).zip(&mut values) {
            match field.parse(part) {
                Ok(found) => *slot = found,
                Err(reason) => faults.push(CrontabFault { field: field.name, reason }),
            }
        }
        let [minutes, hours, days, months, weekdays] = values;
        if faults.is_empty() && !some_month_has(days, months) {
            let reason = format!("`{}` never occurs in month_of_year `{}`", parts[2], parts[3]);
            faults.push(CrontabFault { field: "day_of_month", reason });
        }
        if faults.is_empty() {
            Ok(Self { text: parts.join(" "), minutes, hours, days, months, weekdays })
        } else {
            Err(NotACrontab(faults))
        }
    }
}

fn some_month_has(days: Values, months: Values) -> bool {
    (1..).zip(DAYS_IN_MONTH).any(|(month, length)| months.has(month) && days.all().any(|day| day <= length))
}

impl Field {
    fn parse(&self, text: &str) -> Result<Values, String> {
        let mut bits = 0;
        for part in text.split(',') {
            for value in self.part(part)? {
                bits |= 1 << value;
            }
        }
        Ok(Values(bits))
    }

    /// The values of one part of a list.
    fn part(&self, part: &str) -> Result<Vec<u8>, String> {
        if part.is_empty() {
            return Err("has an empty part in its list".to_owned());
        }
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(parse_step(step)?)),
            None => (part, None),
        };
        let values: Vec<u8> = match range.split_once('-') {
            _ if range == "*" => (self.min..=self.max).collect(),
            Some((from, to)) => self.range(self.value(from)?, self.value(to)?),
            None if step.is_some() => return Err(format!("`{part}`: a step needs `*` or a range before it")),
            None => vec![self.value(range)?],
        };
        Ok(values.into_iter().step_by(step.unwrap_or(1)).collect())
    }

    fn range(&self, from: u8, to: u8) -> Vec<u8> {
        if from <= to { (from..=to).collect() } else { (from..=self.max).chain(self.min..=to).collect() }
    }

    fn value(&self, text: &str) -> Result<u8, String> {
        if text.is_empty() {
            return Err("has a range without its start or its end".to_owned());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            // More digits than fit are out of range, too.
            let number = text.parse().unwrap_or(u8::MAX);
            return if (self.min..=self.max).contains(&number) {
                Ok(number)
            } else {
                Err(format!("`{text}` is not in {}..{}", self.min, self.max))
            };
        }
        let lower = text.to_ascii_lowercase();
        let named = |name: &&str| lower.len() >= SHORTEST_NAME && name.starts_with(&lower);
        match (self.min..).zip(self.names).find(|(_, name)| named(name)) {
            Some((value, _)) => Ok(value),
            None if self.names.is_empty() => Err(format!("`{text}` is not a number in {}..{}", self.min, self.max)),
            None => Err(format!(
                "`{text}` is neither a number in {}..{} nor a name such as `{}`",
                self.min,
                self.max,
                &self.names[1][..SHORTEST_NAME]
            )),
        }
    }
}

fn parse_step(text: &str) -> Result<usize, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse() {
        // A step beyond the range leaves its first value, as in Celery.
        Ok(step) if digits && step > 0 => Ok(step),
        _ => Err(format!("the step `{text}` is not a whole number above 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(text: &str, field: usize) -> Vec<u8> {
        text.parse::<Crontab>().unwrap_or_else(|e| panic!("{text}: {e}")).values()[field].clone()
    }

    fn fault(text: &str) -> (&'static str, String) {
        let faults = text.parse::<Crontab>().expect_err(text).0;
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        (faults[0].field, faults[0].reason.clone())
    }

    #[test]
    fn lists_ranges_and_steps_are_celerys() {
        assert_eq!(values("*/15 * * * *", 0), [0, 15, 30, 45]);
        assert_eq!(values("1,13,30-33,50-59/4 * * * *", 0), [1, 13, 30, 31, 32, 33, 50, 54, 58]);
        assert_eq!(values("50-10/10 * * * *", 0), [0, 10, 50]);
        assert_eq!(values("0 0,8-17/2 * * *", 1), [0, 8, 10, 12, 14, 16]);
        assert_eq!(values("0 0 */3 * *", 2), [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31]);
        assert_eq!(values("0 0 1 2-12/2 *", 3), [2, 4, 6, 8, 10, 12]);
        assert_eq!(values("0 0 1 JAN,december,Sept *", 3), [1, 9, 12]);
        assert_eq!(values("0 0 * * fri-mon", 4), [0, 1, 5, 6]);
        assert_eq!(values("0 0 * * sun,tues-thu", 4), [0, 2, 3, 4]);
        assert_eq!(values("0 0 * * */100", 4), [0]);
    }

    #[test]
    fn a_wrong_field_is_named_with_the_reason() {
        assert_eq!(fault("60 * * * *"), ("minute", "`60` is not in 0..59".to_owned()));
        assert_eq!(fault("* 24 * * *").0, "hour");
        assert_eq!(fault("* * 0 * *").0, "day_of_month");
        assert_eq!(fault("* * * 13 *").0, "month_of_year");
        assert_eq!(fault("* * * * 7"), ("day_of_week", "`7` is not in 0..6".to_owned()));
        assert_eq!(fault("mon * * * *").0, "minute");
        assert_eq!(fault("* * * * jan").0, "day_of_week");
        assert_eq!(fault("* * 30 2 *"), ("day_of_month", "`30` never occurs in month_of_year `2`".to_owned()));
        assert_eq!(fault("* * * *").0, "expression");
        for bad in ["1,,2", "", "*/0", "*/x", "*/", "5/2", "1-", "-1", "1-2-3", "*/2-5", "1-5/2/3", "+1", "é"] {
            let text = format!("0 {} * * *", if bad.is_empty() { "," } else { bad });
            assert_eq!(fault(&text).0, "hour", "{text}");
        }
    }

    #[test]
    fn every_wrong_field_is_told_at_once() {
        let faults = "60 x * 0 9".parse::<Crontab>().expect_err("faults").0;
        let fields: Vec<&str> = faults.iter().map(|fault| fault.field).collect();
        assert_eq!(fields, ["minute", "hour", "month_of_year", "day_of_week"]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9a-z*/, -]{0,40}") {
            let _ = text.parse::<Crontab>();
        }

        #[test]
        fn a_field_holds_only_what_its_bounds_allow(from in 0u8..60, to in 0u8..60, step in 1usize..70) {
            let minutes = values(&format!("{from}-{to}/{step} * * * *"), 0);
            prop_assert!(minutes.contains(&from));
            let within = |m: &u8| if from <= to { (from..=to).contains(m) } else { *m >= from || *m <= to };
            prop_assert!(minutes.iter().all(within));
        }
    }
}
