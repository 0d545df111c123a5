//! Which priority is read next: the most urgent that waits, but now and then another one, so that none waits for ever.

use super::super::priority::{Levels, Priority};

/// Of so many reads one goes round the less urgent priorities.
const ROUND: u32 = 16;

/// In which order the streams of a queue are tried. Of every [`ROUND`] reads that find something all but the last take
/// from the most urgent priority that waits, and the last from another one that waits, each in its turn.
///
/// A read takes from one stream alone, so that a batch is of one priority. When nothing waits the count begins anew.
#[derive(Debug, Default)]
pub(super) struct PriorityOrder {
    reads: u32,
    /// Which was read from last, out of turn.
    turned: Option<Priority>,
    /// Which was read from last, in the order of urgency.
    urgent: Option<Priority>,
}

impl PriorityOrder {
    fn is_turn(&self) -> bool {
        self.reads % ROUND == ROUND - 1
    }

    /// The priorities in the order in which the next read tries their streams.
    pub(super) fn order(&self, levels: Levels) -> Vec<Priority> {
        let mut order: Vec<Priority> = levels.iter().collect();
        if self.is_turn() {
            // From the one after the last turn on, towards the more urgent; what was urgent all along comes last.
            let below = |level: &Priority| self.turned.is_some_and(|turned| *level >= turned);
            order.sort_by_key(|level| (self.urgent == Some(*level), below(level), std::cmp::Reverse(*level)));
        }
        order
    }

    /// What was read came from this one.
    pub(super) fn took(&mut self, level: Priority) {
        let last = if self.is_turn() { &mut self.turned } else { &mut self.urgent };
        *last = Some(level);
        self.reads = self.reads.wrapping_add(1);
    }

    /// Nothing waits.
    pub(super) fn rest(&mut self) {
        self.reads = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Which priorities so many reads take from, when these always wait.
    fn taken(waiting: &[u8], reads: usize) -> Vec<u8> {
        let (mut turns, all) = (PriorityOrder::default(), Levels::of(&[0, 1, 2, 3, 4, 6, 7, 8, 9]));
        let mut read = || {
            let order = turns.order(all);
            let level = order.into_iter().find(|level| waiting.contains(&level.number())).unwrap();
            turns.took(level);
            level.number()
        };
        (0..reads).map(|_| read()).collect()
    }

    #[test]
    fn of_every_sixteen_reads_one_is_shared_evenly_by_the_less_urgent() {
        let mut counts = BTreeMap::new();
        taken(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 16 * 90).into_iter().for_each(|n| *counts.entry(n).or_insert(0) += 1);
        let expected = BTreeMap::from_iter((0..=9).map(|n| (n, if n == 0 { 15 * 90 } else { 10 })));
        assert_eq!(counts, expected);
    }

    #[test]
    fn priorities_that_do_not_wait_take_no_turn() {
        let found = taken(&[2, 7, 9], 64);
        let turns: Vec<u8> = found.iter().copied().skip(15).step_by(16).collect();
        assert_eq!(turns, [9, 7, 9, 7]);
        assert_eq!(found.iter().filter(|n| **n == 2).count(), 60);
        assert_eq!(taken(&[7], 32), [7; 32]);
    }

    #[test]
    fn a_few_tasks_go_strictly_by_their_priority() {
        let mut turns = PriorityOrder::default();
        let all = Levels::of(&[0, 9]);
        for _ in 0..100 {
            // One read that finds something, then one that does not.
            assert_eq!(turns.order(all).first(), Some(&Priority::MOST_URGENT));
            turns.took(Priority::MOST_URGENT);
            turns.rest();
        }
    }
}
