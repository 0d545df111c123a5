//! A gateway's bill as it is kept: lines of one number are one line, in order, with a digest of them all.
//!
//! A number twice on one bill is money that moved twice under it, so the lines are added up: their sum is then not what
//! our books have, and that is told. What a gateway writes in the place of our number may be anything, also nothing.

use crate::payments::{BillLine, BillSubject, DayBill};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use aws_lc_rs::digest;

use crate::error::Result;
use crate::platform::clock::At;
use crate::platform::money::Money;

/// Of a number so many characters are kept. Ours have 32.
const NUMBER_CHARS: usize = 128;

/// What a bill says of one number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CheckedLine {
    pub merchant_no: String,
    pub amount: Money,
    /// Lines of the gateway that came to this one.
    pub count: u32,
    /// When the first of them was.
    pub at: At,
}

/// A bill of a day.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Bill {
    pub lines: BTreeMap<(BillSubject, String), CheckedLine>,
}

/// Lines of one kind, and what they come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    pub count: u32,
    pub amount: Money,
}

impl Bill {
    /// Takes a gateway's bill.
    pub fn of(bill: DayBill) -> Result<Self> {
        let mut whole = Self::default();
        for (what, lines) in [(BillSubject::Payment, bill.payments), (BillSubject::Refund, bill.refunds)] {
            for line in lines {
                whole.add(what, line)?;
            }
        }
        Ok(whole)
    }

    fn add(&mut self, what: BillSubject, line: BillLine) -> Result<()> {
        let BillLine { number, merchant_no, amount, at } = line;
        let new = CheckedLine { merchant_no: kept(&merchant_no), amount, count: 1, at };
        match self.lines.entry((what, kept(&number))) {
            Entry::Vacant(place) => drop(place.insert(new)),
            Entry::Occupied(mut place) => {
                let known = place.get_mut();
                known.amount = known.amount.plus(amount)?;
                known.count = known.count.saturating_add(1);
                known.at = known.at.min(at);
                // Whichever comes first in the bill: a bill is the same in any order.
                if new.merchant_no < known.merchant_no {
                    known.merchant_no = new.merchant_no;
                }
            }
        }
        Ok(())
    }

    /// What the lines of one kind come to.
    pub fn sum(&self, of: BillSubject) -> Result<Sum> {
        let lines = || self.lines.iter().filter(|((what, _), _)| *what == of).map(|(_, line)| line);
        let amount = Money::sum(lines().map(|line| line.amount))?;
        Ok(Sum { count: u32::try_from(lines().count()).unwrap_or(u32::MAX), amount })
    }

    /// The same for two bills that say the same, in whatever order.
    pub fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&digest::SHA256);
        for ((what, number), line) in &self.lines {
            for text in [what.as_str(), number, &line.merchant_no] {
                context.update(&(text.len() as u64).to_be_bytes());
                context.update(text.as_bytes());
            }
            for figure in [line.amount.as_fen(), i64::from(line.count), line.at.ms()] {
                context.update(&figure.to_be_bytes());
            }
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        hash
    }
}

/// A number as it is kept: without blanks around it, since the database compares as if there were none behind it.
fn kept(number: &str) -> String {
    number.trim().chars().take(NUMBER_CHARS).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(number: &str, fen: i64, ms: i64) -> BillLine {
        BillLine {
            number: number.to_owned(),
            merchant_no: number.to_owned(),
            amount: Money::fen(fen),
            at: At::from_ms(ms),
        }
    }

    fn lines() -> impl Strategy<Value = Vec<BillLine>> {
        let number = prop_oneof!["[ab]{0,2}", " [ab] ", "课程", "[a-f0-9]{32}"];
        proptest::collection::vec((number, 1i64..1000, 0i64..1000), 0..12)
            .prop_map(|all| all.into_iter().map(|(number, fen, ms)| line(&number, fen, ms)).collect())
    }

    fn total(lines: &[BillLine]) -> i64 {
        lines.iter().map(|line| line.amount.as_fen()).sum()
    }

    proptest! {
        /// Nothing of what a gateway lists is lost or counted twice.
        #[test]
        fn the_sums_are_those_of_the_gateways_lines(payments in lines(), refunds in lines()) {
            let bill = Bill::of(DayBill { payments: payments.clone(), refunds: refunds.clone() }).unwrap();
            prop_assert_eq!(bill.sum(BillSubject::Payment).unwrap().amount.as_fen(), total(&payments));
            prop_assert_eq!(bill.sum(BillSubject::Refund).unwrap().amount.as_fen(), total(&refunds));
            let count: u32 = bill.lines.values().map(|line| line.count).sum();
            prop_assert_eq!(count as usize, payments.len() + refunds.len());
        }

        /// A bill is the same in whatever order its lines come, and no other when one amount differs.
        #[test]
        fn a_digest_is_of_what_is_said(payments in lines(), seed in any::<u64>()) {
            let bill = Bill::of(DayBill { payments: payments.clone(), refunds: Vec::new() }).unwrap();
            let mut turned = payments.clone();
            if !turned.is_empty() {
                let by = usize::try_from(seed % turned.len() as u64).unwrap();
                turned.rotate_left(by);
            }
            let again = Bill::of(DayBill { payments: turned.clone(), refunds: Vec::new() }).unwrap();
            prop_assert_eq!(bill.digest(), again.digest());
            if let Some(last) = turned.last_mut() {
                last.amount = last.amount.plus(Money::fen(1)).unwrap();
                let other = Bill::of(DayBill { payments: turned, refunds: Vec::new() }).unwrap();
                prop_assert_ne!(bill.digest(), other.digest());
            }
        }
    }

    #[test]
    fn a_number_twice_is_one_line_with_both_amounts() {
        let bill =
            Bill::of(DayBill { payments: vec![line("a", 5, 9), line("a ", 7, 3)], refunds: vec![line("a", 2, 1)] });
        let bill = bill.unwrap();
        let expected =
            CheckedLine { merchant_no: "a".to_owned(), amount: Money::fen(12), count: 2, at: At::from_ms(3) };
        assert_eq!(bill.lines[&(BillSubject::Payment, "a".to_owned())], expected);
        assert_eq!(bill.lines.len(), 2);
        let mixed = Bill::of(DayBill { payments: vec![line("a", 2, 1)], refunds: Vec::new() }).unwrap();
        let back = Bill::of(DayBill { payments: Vec::new(), refunds: vec![line("a", 2, 1)] }).unwrap();
        assert_ne!(mixed.digest(), back.digest());
    }

    #[test]
    fn what_does_not_fit_is_cut() {
        let bill = Bill::of(DayBill { payments: vec![line(&"课".repeat(500), 1, 0)], refunds: Vec::new() }).unwrap();
        assert!(bill.lines.keys().all(|(_, number)| number.chars().count() == NUMBER_CHARS));
    }
}
