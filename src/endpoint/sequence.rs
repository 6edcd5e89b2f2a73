//! Weights laid out as a repeating sequence, so that a weighted choice is one look-up. Pure.

/// Slots of a sequence, at most, unless there are more members than that. 8192 slots keep every share
/// within 0.01 % of the whole, in 32 KiB.
const MAX_SLOTS: u64 = 8_192;

/// The order in which members take their turns, over one cycle.
///
/// Over a cycle each member has as many slots as its weight (all divided by their greatest common
/// divisor), spread evenly: 2 to 1 runs `a b a`. Members of equal weight take turns in their order.
///
/// When the weights add up to more than 8192 after that division, they are scaled down to about 8192
/// slots and rounded: each member is at most one slot off, and one whose due is less than a slot gets one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sequence(Box<[u32]>);

impl Sequence {
    /// Lays out members by their weights; the member at `index` has `weights[index]`, and 0 leaves it out.
    ///
    /// Cost: O(n log n) of the number of slots.
    pub fn new(weights: &[u32]) -> Self {
        let turns = reduce(weights);
        // Members with the same number of turns share one row of evenly spaced places, in their order.
        // Each on its own would have them all take their turn in the same place.
        let mut groups = std::collections::HashMap::<u64, (u64, u64)>::new();
        for &turn in &turns {
            groups.entry(turn).or_default().0 += 1;
        }
        let total = turns.iter().sum::<u64>();
        let mut slots = Vec::with_capacity(usize::try_from(total).unwrap_or(0));
        for (index, &turn) in turns.iter().enumerate() {
            let Some((members, seen)) = groups.get_mut(&turn).filter(|_| turn > 0) else { continue };
            for round in 0..turn {
                // The middle of its part of the cycle, as a fraction of 2^32. `turn * members` is at most
                // the number of slots, so nothing overflows.
                let numerator = u128::from(2 * (round * *members + *seen) + 1);
                let place = (numerator << 32) / u128::from(2 * *members * turn);
                slots.push((place, index));
            }
            *seen += 1;
        }
        slots.sort_unstable();
        let index = |(_, index)| u32::try_from(index).expect("fewer than 2^32 members fit in memory");
        Self(slots.into_iter().map(index).collect())
    }

    /// Slots in a cycle; 0 when no member has a weight.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no member has a weight.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whose turn it is at a position that only ever grows. None when the sequence is empty.
    pub fn at(&self, position: u64) -> Option<usize> {
        let len = u64::try_from(self.0.len()).unwrap_or(u64::MAX);
        let slot = usize::try_from(position.checked_rem(len)?).ok()?;
        self.0.get(slot).map(|index| *index as usize)
    }

    /// A member drawn by weight: `random` is evenly distributed over all of `u32`.
    pub fn draw(&self, random: u32) -> Option<usize> {
        let slot = (u64::from(random) * u64::try_from(self.0.len()).unwrap_or(u64::MAX)) >> 32;
        self.0.get(usize::try_from(slot).ok()?).map(|index| *index as usize)
    }
}

/// The weights in their lowest terms, and scaled down where they still are too many.
fn reduce(weights: &[u32]) -> Vec<u64> {
    let exact = lowest_terms(weights.iter().map(|weight| u64::from(*weight)).collect());
    let total = exact.iter().sum::<u64>();
    if total <= MAX_SLOTS {
        return exact;
    }
    // Weights are below 2^32 and MAX_SLOTS is 2^13, so the product fits.
    let scale = |weight: u64| match weight {
        0 => 0,
        weight => ((weight * MAX_SLOTS + total / 2) / total).max(1),
    };
    lowest_terms(exact.into_iter().map(scale).collect())
}

fn lowest_terms(weights: Vec<u64>) -> Vec<u64> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.into_iter().map(|weight| weight / divisor).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cycle(weights: &[u32]) -> String {
        let sequence = Sequence::new(weights);
        let letter = |position| sequence.at(position).map(|index| char::from(b'a' + index as u8));
        (0..sequence.len() as u64).filter_map(letter).collect()
    }

    fn counts(sequence: &Sequence, members: usize) -> Vec<u64> {
        let mut counts = vec![0; members];
        for position in 0..sequence.len() as u64 {
            counts[sequence.at(position).expect("not empty")] += 1;
        }
        counts
    }

    #[test]
    fn turns_are_spread_evenly() {
        assert_eq!(cycle(&[4, 2]), "aba");
        assert_eq!(cycle(&[1, 1, 1]), "abc");
        assert_eq!(cycle(&[5, 1, 1]), "abaaaca");
        assert_eq!(cycle(&[4, 1, 1, 1, 1]), "abacadae");
        assert_eq!(cycle(&[0, 3, 0]), "b");
    }

    #[test]
    fn nothing_to_choose_from_chooses_nothing() {
        for weights in [&[][..], &[0, 0][..]] {
            let sequence = Sequence::new(weights);
            assert!(sequence.is_empty());
            assert_eq!(sequence.at(7), None);
            assert_eq!(sequence.draw(7), None);
        }
    }

    #[test]
    fn enormous_weights_are_rounded_and_nobody_is_lost() {
        let sequence = Sequence::new(&[u32::MAX, u32::MAX / 2, 1]);
        assert!(sequence.len() <= 8_200, "{}", sequence.len());
        let counts = counts(&sequence, 3);
        assert_eq!(counts[2], 1);
        assert!(counts[0].abs_diff(2 * counts[1]) <= 2, "{counts:?}");
    }

    #[test]
    fn more_members_than_slots_still_get_one_each() {
        let sequence = Sequence::new(&vec![3; 10_000]);
        assert_eq!(sequence.len(), 10_000);
    }

    #[test]
    fn a_draw_covers_the_whole_sequence_and_no_more() {
        let sequence = Sequence::new(&[3, 1]);
        assert_eq!(sequence.draw(0), sequence.at(0));
        assert_eq!(sequence.draw(u32::MAX), sequence.at(3));
    }

    proptest! {
        #[test]
        fn shares_over_a_cycle_are_exact(weights in prop::collection::vec(0_u32..60, 1..40)) {
            let sequence = Sequence::new(&weights);
            let counts = counts(&sequence, weights.len());
            for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                prop_assert_eq!(counts[a] * u64::from(weights[b]), counts[b] * u64::from(weights[a]));
            }
        }

        #[test]
        fn rounded_shares_are_off_by_a_slot_each(weights in prop::collection::vec(1_u32..=u32::MAX, 1..40)) {
            let sequence = Sequence::new(&weights);
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            for (count, weight) in counts(&sequence, weights.len()).iter().zip(&weights) {
                let share = *count as f64 / sequence.len() as f64;
                let off = (share - f64::from(*weight) / total).abs();
                // One slot of its own, and all slots are more or fewer by up to one a member.
                prop_assert!(off <= (1.0 + share * weights.len() as f64) / 8_100.0, "{off}");
            }
        }

        #[test]
        fn nobody_waits_much_longer_than_its_share_says(weights in prop::collection::vec(1_u32..20, 1..12)) {
            let sequence = Sequence::new(&weights);
            let len = sequence.len();
            let counts = counts(&sequence, weights.len());
            for (member, count) in counts.iter().enumerate() {
                let turns: Vec<usize> =
                    (0..2 * len).filter(|at| sequence.at(*at as u64) == Some(member)).collect();
                let longest = turns.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
                let fair = len.div_ceil(*count as usize);
                prop_assert!(longest <= 2 * fair + weights.len(), "{longest} against {fair}");
            }
        }
    }
}
