//! Weighted round robin: everyone in turn, as often as its weight says.

use crate::balance::{Turn, next_turn, was_tried};
use crate::endpoint::EndpointId;
use crate::endpoint::set::{EndpointSet, Member};

/// Takes the next turn, and with it those of tried endpoints that come before another's.
///
/// So the shares of the others stay exact over a cycle, whoever is passed over.
pub(super) fn pick<'a>(set: &'a EndpointSet, turn: &Turn, tried: &[EndpointId]) -> Option<&'a Member> {
    let position = turn.take(1);
    if tried.is_empty() {
        return set.members().get(set.sequence().at(position)?);
    }
    let (member, passed) = next_turn(set, set.sequence(), position, |member| !was_tried(member, tried))?;
    if passed > 0 {
        turn.take(passed);
    }
    Some(member)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::set::tests::{down, set_of};

    fn index_of(set: &EndpointSet, member: &Member) -> usize {
        let same = |other: &Member| other.endpoint.id() == member.endpoint.id();
        set.members().iter().position(same).expect("a member of the set")
    }

    fn run(set: &EndpointSet, turn: &Turn, tried: &[EndpointId], picks: usize) -> Vec<usize> {
        let pick = |_| pick(set, turn, tried).map(|member| index_of(set, member));
        (0..picks).filter_map(pick).collect()
    }

    #[test]
    fn four_to_two_runs_a_b_a_a_b_a() {
        assert_eq!(run(&set_of(&[4, 2]), &Turn::new(0), &[], 6), [0, 1, 0, 0, 1, 0]);
    }

    #[test]
    fn a_start_is_only_an_offset() {
        assert_eq!(run(&set_of(&[1, 1, 1]), &Turn::new(2), &[], 4), [2, 0, 1, 2]);
        // The counter may wrap in the middle of a cycle without harm.
        assert_eq!(run(&set_of(&[1, 1]), &Turn::new(u64::MAX), &[], 3).len(), 3);
    }

    #[test]
    fn many_cores_together_keep_the_exact_shares() {
        let set = set_of(&[5, 3, 0, 2]);
        let turn = Turn::new(17);
        let count = |_| run(&set, &turn, &[], 2_500);
        let picks: Vec<usize> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|core| scope.spawn(move || count(core))).collect();
            threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
        });
        let shares = [0, 1, 2, 3].map(|index| picks.iter().filter(|pick| **pick == index).count());
        assert_eq!(shares, [5_000, 3_000, 0, 2_000]);
    }

    proptest! {
        #[test]
        fn shares_are_exact_over_a_cycle_whoever_is_down_or_was_tried(
            weights in prop::collection::vec(0_u32..12, 1..9),
            down_mask: u8, tried_mask: u8, start in 0_u64..1_000,
        ) {
            let mut set = set_of(&weights);
            for index in (0..weights.len()).filter(|index| down_mask & (1 << index) != 0) {
                set = down(&set, index);
            }
            let in_mask = |index: &usize| tried_mask & (1 << index) != 0;
            let id = |index: usize| set.members()[index].endpoint.id();
            let tried: Vec<EndpointId> = (0..weights.len()).filter(in_mask).map(id).collect();
            let left: Vec<bool> =
                set.members().iter().map(|m| m.is_available() && !was_tried(m, &tried)).collect();
            let cycle = (0..set.sequence().len() as u64)
                .filter_map(|at| set.sequence().at(at)).filter(|index| left[*index]).count();
            let picks = run(&set, &Turn::new(start), &tried, 3 * cycle);
            prop_assert_eq!(picks.len(), 3 * cycle);
            let count = |index: usize| picks.iter().filter(|pick| **pick == index).count() as u64;
            for (a, b) in (0..weights.len()).flat_map(|a| (0..a).map(move |b| (a, b))) {
                if left[a] && left[b] {
                    prop_assert_eq!(count(a) * u64::from(weights[b]), count(b) * u64::from(weights[a]));
                }
            }
            prop_assert!((0..weights.len()).all(|index| left[index] || count(index) == 0));
        }
    }
}
