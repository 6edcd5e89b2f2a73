//! `weighted` services: which child gets the next request.

use crate::balance::Turn;
use crate::endpoint::sequence::Sequence;

/// The children of a `weighted` service, by their place in its list. They may themselves be `weighted`.
///
/// One a service, shared by all cores: together they keep exact shares over a cycle.
#[derive(Debug)]
pub struct WeightedChildren {
    sequence: Sequence,
    turn: Turn,
}

impl WeightedChildren {
    /// Lays out children by weight; one with 0 gets nothing. `start` as for
    /// [`Balancer::new`](super::Balancer::new).
    pub fn new(weights: &[u32], start: u64) -> Self {
        Self { sequence: Sequence::new(weights), turn: Turn::new(start) }
    }

    /// Whose turn it is, to carry over.
    pub fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Chooses the next child, by its place in the list, of those that are `usable`.
    ///
    /// `None` when none is. Cost: O(1) while every child is usable, else at most one walk over a cycle.
    pub fn pick(&self, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let position = self.turn.take(1);
        let cycle = u64::try_from(self.sequence.len()).unwrap_or(u64::MAX);
        let (child, passed) = (0..cycle).find_map(|passed| {
            let child = self.sequence.at(position.wrapping_add(passed))?;
            usable(child).then_some((child, passed))
        })?;
        if passed > 0 {
            // Passed turns are used up, so that the others' shares stay exact.
            self.turn.take(passed);
        }
        Some(child)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(children: &WeightedChildren, usable: impl Fn(usize) -> bool, picks: usize) -> [usize; 3] {
        let mut counts = [0; 3];
        for child in (0..picks).filter_map(|_| children.pick(&usable)) {
            counts[child] += 1;
        }
        counts
    }

    #[test]
    fn children_get_exact_shares() {
        assert_eq!(shares(&WeightedChildren::new(&[3, 1, 2], 5), |_| true, 60), [30, 10, 20]);
    }

    #[test]
    fn a_child_that_is_not_usable_leaves_its_share_to_the_others_by_their_weights() {
        assert_eq!(shares(&WeightedChildren::new(&[3, 1, 2], 0), |child| child != 0, 60), [0, 20, 40]);
    }

    #[test]
    fn nested_shares_multiply_exactly() {
        let outer = WeightedChildren::new(&[3, 1], 0);
        let inner = WeightedChildren::new(&[1, 2], 0);
        let leaf = |_| match outer.pick(|_| true) {
            Some(0) => inner.pick(|_| true),
            other => other.map(|_| 2),
        };
        let leaves: Vec<usize> = (0..120).filter_map(leaf).collect();
        let count = |leaf| leaves.iter().filter(|picked| **picked == leaf).count();
        assert_eq!([count(0), count(1), count(2)], [30, 60, 30]);
    }

    #[test]
    fn no_usable_child_gives_none() {
        assert_eq!(WeightedChildren::new(&[1, 1], 0).pick(|_| false), None);
        assert_eq!(WeightedChildren::new(&[0, 0], 0).pick(|_| true), None);
        assert_eq!(WeightedChildren::new(&[], 0).pick(|_| true), None);
    }
}
