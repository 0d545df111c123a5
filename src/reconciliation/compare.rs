//! What a gateway's bill says of a number beside what our books say: the four kinds of difference, and what becomes of
//! one that was found before. Pure.
//!
//! Money moved, or it did not, on each side, and so much of it. Whatever is not told as a difference balances: that is
//! the property that the tests hold.

use crate::payments::MoneyState;
use crate::platform::text_enum;
use serde::{Deserialize, Serialize};

use crate::platform::money::Money;

/// How the two books differ.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DifferenceKind {
    /// The gateway has a number that our books have not.
    MissingHere,
    /// Our books say that money moved, and no bill of the gateway has it.
    MissingThere,
    /// Both have it, with other amounts.
    AmountDiffers,
    /// The gateway says that money moved, our books say that it did not.
    StateDiffers,
}

impl DifferenceKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::MissingHere, Self::MissingThere, Self::AmountDiffers, Self::StateDiffers];
}

text_enum!(DifferenceKind);

/// What our books say of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ours {
    pub amount: Money,
    pub state: MoneyState,
    /// Whether what does not fit will not come to fit by itself any more: every bill that could have the line is there,
    /// or too much time has passed. Only asked where waiting can help.
    pub is_sure: bool,
}

/// One way in which the two differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DifferenceFound {
    pub kind: DifferenceKind,
    /// False: it may come to fit by itself.
    pub is_sure: bool,
}

/// How the two differ: `theirs` is what the gateway's bills come to for the number, if they have it.
pub(super) fn compare(theirs: Option<Money>, ours: Option<&Ours>) -> Vec<DifferenceFound> {
    let sure = |kind| DifferenceFound { kind, is_sure: true };
    match (theirs, ours) {
        (None, None) => Vec::new(),
        // What came and was taken back has not moved.
        (Some(Money::ZERO), ours) if ours.is_none_or(|ours| ours.state != MoneyState::Moved) => Vec::new(),
        (Some(_), None) => vec![sure(DifferenceKind::MissingHere)],
        (None, Some(ours)) if ours.state == MoneyState::Moved => {
            vec![DifferenceFound { kind: DifferenceKind::MissingThere, is_sure: ours.is_sure }]
        }
        (None, Some(_)) => Vec::new(),
        (Some(theirs), Some(ours)) => {
            let mut found = Vec::new();
            if theirs != ours.amount {
                found.push(sure(DifferenceKind::AmountDiffers));
            }
            match ours.state {
                MoneyState::Moved => {}
                MoneyState::NotMoved => found.push(sure(DifferenceKind::StateDiffers)),
                MoneyState::UnderWay => {
                    found.push(DifferenceFound { kind: DifferenceKind::StateDiffers, is_sure: ours.is_sure });
                }
            }
            found
        }
    }
}

/// Where a difference stands.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, strum::EnumString, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum DifferenceStatus {
    /// It may still come to fit: a neighbouring day's bill is not there yet, or the refund is under way.
    Waiting,
    /// A person must look.
    Open,
    /// A person has, and left a note.
    Resolved,
    /// It came to fit by itself.
    Vanished,
}

text_enum!(DifferenceStatus);

/// The amounts that differ, or of which one is missing. A person who resolved a difference resolved these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    pub theirs: Option<Money>,
    pub ours: Option<Money>,
}

/// What becomes of a difference that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// It stays where it is.
    Stay,
    /// It is put down as found now.
    Find(DifferenceStatus),
    /// It came to fit.
    Vanish,
}

/// What becomes of a known difference, now that `found` was found, or nothing was.
pub(super) fn step(status: DifferenceStatus, known: Figures, found: Option<DifferenceFound>, figures: Figures) -> Step {
    let Some(found) = found else {
        return match status {
            DifferenceStatus::Waiting | DifferenceStatus::Open => Step::Vanish,
            DifferenceStatus::Resolved | DifferenceStatus::Vanished => Step::Stay,
        };
    };
    match status {
        DifferenceStatus::Open => Step::Stay,
        DifferenceStatus::Waiting if found.is_sure => Step::Find(DifferenceStatus::Open),
        DifferenceStatus::Waiting => Step::Stay,
        DifferenceStatus::Vanished => Step::Find(first(found)),
        // What was resolved were other amounts.
        DifferenceStatus::Resolved if found.is_sure && known != figures => Step::Find(DifferenceStatus::Open),
        DifferenceStatus::Resolved => Step::Stay,
    }
}

/// Where a difference stands at first.
pub(super) fn first(found: DifferenceFound) -> DifferenceStatus {
    if found.is_sure { DifferenceStatus::Open } else { DifferenceStatus::Waiting }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn amounts() -> impl Strategy<Value = Money> {
        prop_oneof![Just(1i64), Just(100), Just(101), 1..i64::MAX].prop_map(Money::fen)
    }

    /// What a bill comes to: nothing, where what moved was taken back, and below that where a day is missing.
    fn sums() -> impl Strategy<Value = Option<Money>> {
        let sum = prop_oneof![4 => amounts(), 1 => Just(Money::ZERO), 1 => (-100i64..0).prop_map(Money::fen)];
        proptest::option::of(sum)
    }

    fn ours() -> impl Strategy<Value = Ours> {
        let states = prop_oneof![Just(MoneyState::Moved), Just(MoneyState::UnderWay), Just(MoneyState::NotMoved)];
        (amounts(), states, any::<bool>()).prop_map(|(amount, state, is_sure)| Ours { amount, state, is_sure })
    }

    fn statuses() -> impl Strategy<Value = DifferenceStatus> {
        prop_oneof![
            Just(DifferenceStatus::Waiting),
            Just(DifferenceStatus::Open),
            Just(DifferenceStatus::Resolved),
            Just(DifferenceStatus::Vanished),
        ]
    }

    fn findings() -> impl Strategy<Value = Option<DifferenceFound>> {
        let kind = proptest::sample::select(DifferenceKind::ALL.to_vec());
        proptest::option::of((kind, any::<bool>()).prop_map(|(kind, is_sure)| DifferenceFound { kind, is_sure }))
    }

    /// The money that moved by our books.
    fn moved(ours: Option<&Ours>) -> Option<Money> {
        ours.filter(|ours| ours.state == MoneyState::Moved).map(|ours| ours.amount)
    }

    proptest! {
        #[test]
        fn what_is_not_told_balances_and_what_balances_is_not_told(
            theirs in sums(),
            ours in proptest::option::of(ours()),
        ) {
            let found = compare(theirs, ours.as_ref());
            let came_to = |sum: Option<Money>| sum.unwrap_or(Money::ZERO);
            prop_assert_eq!(found.is_empty(), came_to(theirs) == came_to(moved(ours.as_ref())), "{:?}", found);
        }

        #[test]
        fn each_kind_means_what_it_says(
            theirs in sums(),
            ours in proptest::option::of(ours()),
        ) {
            let found = compare(theirs, ours.as_ref());
            let nothing = theirs == Some(Money::ZERO);
            let has = |kind| found.iter().any(|finding| finding.kind == kind);
            prop_assert_eq!(has(DifferenceKind::MissingHere), theirs.is_some() && !nothing && ours.is_none());
            prop_assert_eq!(has(DifferenceKind::MissingThere), theirs.is_none() && moved(ours.as_ref()).is_some());
            let both = theirs.zip(ours).filter(|(_, ours)| !nothing || ours.state == MoneyState::Moved);
            prop_assert_eq!(has(DifferenceKind::AmountDiffers), both.is_some_and(|(t, o)| t != o.amount));
            prop_assert_eq!(has(DifferenceKind::StateDiffers), both.is_some_and(|(_, o)| o.state != MoneyState::Moved));
            for finding in &found {
                prop_assert_eq!(found.iter().filter(|other| other.kind == finding.kind).count(), 1);
            }
        }

        #[test]
        fn nothing_is_said_too_early_that_waiting_could_change(theirs in sums(), ours in ours()) {
            let unsure = Ours { is_sure: false, ..ours };
            for finding in compare(theirs, Some(&unsure)) {
                let waits = finding.kind == DifferenceKind::MissingThere
                    || (finding.kind == DifferenceKind::StateDiffers && ours.state == MoneyState::UnderWay);
                prop_assert_eq!(finding.is_sure, !waits);
            }
            let sure = Ours { is_sure: true, ..ours };
            prop_assert!(compare(theirs, Some(&sure)).iter().all(|finding| finding.is_sure));
        }

        /// However it came to where it is, looking twice changes nothing more.
        #[test]
        fn a_second_look_changes_nothing(
            status in statuses(), found in findings(), theirs in sums(), same in any::<bool>(),
        ) {
            let figures = Figures { theirs, ours: Some(Money::fen(7)) };
            let known = if same { figures } else { Figures { ours: Some(Money::fen(8)), ..figures } };
            let (after, known) = match step(status, known, found, figures) {
                Step::Stay => (status, known),
                Step::Find(status) => (status, figures),
                Step::Vanish => (DifferenceStatus::Vanished, known),
            };
            prop_assert_eq!(step(after, known, found, figures), Step::Stay);
        }

        #[test]
        fn what_is_sure_and_not_resolved_is_open_and_what_fits_is_not(status in statuses(), found in findings()) {
            let figures = Figures { theirs: None, ours: None };
            let after = match step(status, figures, found, figures) {
                Step::Stay => status,
                Step::Find(status) => status,
                Step::Vanish => DifferenceStatus::Vanished,
            };
            match found {
                None => prop_assert!(!matches!(after, DifferenceStatus::Open | DifferenceStatus::Waiting)),
                Some(found) if found.is_sure => {
                    let expected = if status == DifferenceStatus::Resolved { status } else { DifferenceStatus::Open };
                    prop_assert_eq!(after, expected);
                }
                Some(_) => prop_assert_ne!(after, DifferenceStatus::Vanished),
            }
        }
    }

    #[test]
    fn a_resolved_difference_comes_back_only_with_other_amounts() {
        let found = Some(DifferenceFound { kind: DifferenceKind::AmountDiffers, is_sure: true });
        let known = Figures { theirs: Some(Money::fen(900)), ours: Some(Money::fen(1000)) };
        let other = Figures { theirs: Some(Money::fen(800)), ..known };
        assert_eq!(step(DifferenceStatus::Resolved, known, found, known), Step::Stay);
        assert_eq!(step(DifferenceStatus::Resolved, known, found, other), Step::Find(DifferenceStatus::Open));
    }

    #[test]
    fn words_of_the_database_are_those_of_the_api() {
        for kind in DifferenceKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
            assert_eq!(kind.as_str().parse(), Ok(kind));
        }
        for what in crate::payments::BillSubject::ALL {
            assert_eq!(serde_json::to_value(what).unwrap(), what.as_str());
        }
    }
}
