//! How urgent a task is. Tasks of each priority wait in a stream of their own; a queue whose tasks all have the default
//! one has one stream.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How urgent a task is: from 0, the most urgent, to 9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Priority(u8);

/// The number is no priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a priority is from 0 (the most urgent) to 9")]
pub struct NotAPriority;

impl Priority {
    /// Before all others: 0.
    pub const MOST_URGENT: Self = Self(0);
    /// Of a task that does not say: 5.
    pub const DEFAULT: Self = Self(5);
    /// After all others: 9.
    pub const LEAST_URGENT: Self = Self(9);

    /// The priority `N`. One out of range does not compile.
    pub const fn of<const N: u8>() -> Self {
        const { assert!(N <= Self::LEAST_URGENT.0, "a priority is from 0 (the most urgent) to 9") };
        Self(N)
    }

    /// From 0 to 9.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Whether it is the default one, of which nothing is written.
    pub(super) fn is_default(&self) -> bool {
        *self == Self::DEFAULT
    }
}

impl Default for Priority {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u8> for Priority {
    type Error = NotAPriority;
    fn try_from(number: u8) -> Result<Self, NotAPriority> {
        if number <= Self::LEAST_URGENT.0 { Ok(Self(number)) } else { Err(NotAPriority) }
    }
}

impl From<Priority> for u8 {
    fn from(priority: Priority) -> Self {
        priority.0
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The priorities for which a queue has a stream: the default one, and every other one that was ever used in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Levels(u16);

impl Default for Levels {
    fn default() -> Self {
        Self(1 << Priority::DEFAULT.0)
    }
}

impl Levels {
    /// The default one and these, as the queue's set of them has them.
    pub fn of(used: &[u8]) -> Self {
        let bits = used.iter().filter_map(|&number| Priority::try_from(number).ok()).map(|level| 1 << level.0);
        Self(bits.fold(Self::default().0, |all, bit| all | bit))
    }

    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    pub fn bits(self) -> u16 {
        self.0
    }

    /// Each, the most urgent first.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Priority> {
        (0..=Priority::LEAST_URGENT.0).filter(move |number| self.0 & (1 << number) != 0).map(Priority)
    }

    /// Whether there is the default one alone.
    pub fn is_one(self) -> bool {
        self == Self::default()
    }
}

/// An entry of one of a queue's streams, as its [`meta`](super::Keys::meta) names it: `<id>` of the stream of the default
/// priority, `<id>:<priority>` of another one's. (`lua/streams.lua` reads and writes the same.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StreamEntry {
    pub level: Priority,
    /// The stream's id of it.
    pub id: String,
}

impl StreamEntry {
    /// The entry of this name; `None` when its priority is none.
    pub fn named(name: &str) -> Option<Self> {
        let (id, level) = match name.split_once(':') {
            Some((id, number)) => (id, Priority::try_from(number.parse::<u8>().ok()?).ok()?),
            None => (name, Priority::DEFAULT),
        };
        Some(Self { level, id: id.to_owned() })
    }
}

impl fmt::Display for StreamEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.level.is_default() {
            true => f.write_str(&self.id),
            false => write!(f, "{}:{}", self.id, self.level),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_is_from_0_to_9() {
        for number in 0..=9 {
            assert_eq!(u8::from(serde_json::from_str::<Priority>(&number.to_string()).unwrap()), number);
        }
        for text in ["10", "255", "-1", "1.5", "\"1\"", "null"] {
            assert!(serde_json::from_str::<Priority>(text).is_err(), "{text}");
        }
        assert_eq!(Priority::try_from(10), Err(NotAPriority));
        assert!(Priority::of::<0>() < Priority::DEFAULT && Priority::DEFAULT < Priority::of::<9>());
    }

    #[test]
    fn a_queue_always_has_the_default_priority_and_lists_the_most_urgent_first() {
        assert!(Levels::of(&[]).is_one() && Levels::of(&[5]).is_one());
        let levels = Levels::of(&[9, 0, 77, 9]);
        assert_eq!(levels.iter().map(Priority::number).collect::<Vec<_>>(), [0, 5, 9]);
        assert_eq!(Levels::from_bits(levels.bits()), levels);
    }

    #[test]
    fn an_entry_survives_its_name() {
        for name in ["17-0", "17-0:0", "17-3:9", "-"] {
            assert_eq!(StreamEntry::named(name).unwrap().to_string(), name);
        }
        assert_eq!(StreamEntry::named("17-0:5").unwrap().to_string(), "17-0");
        for name in ["17-0:", "17-0:10", "17-0:x"] {
            assert_eq!(StreamEntry::named(name), None, "{name}");
        }
    }
}
