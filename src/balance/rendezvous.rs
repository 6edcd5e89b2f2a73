//! Rendezvous hashing: each key belongs to the endpoint that scores highest with it.
//!
//! When an endpoint goes, only its keys move, and they spread over the others by weight; when one comes, it
//! takes its share evenly from all. The same in every process, because scores come from urls alone.

use crate::balance::{MaxLoad, Picked, was_tried};
use crate::endpoint::EndpointId;
use crate::endpoint::set::{EndpointSet, Member};

/// The endpoint that `key` belongs to among those that were not tried; with a bound, the first in the order of
/// its scores that has not as much as it may.
///
/// Cost: one multiplication for each endpoint, and a logarithm where weights differ.
pub(super) fn pick<'a>(
    set: &'a EndpointSet,
    tried: &[EndpointId],
    key: u64,
    bound: Option<MaxLoad>,
) -> Option<Picked<'a>> {
    let wanted = |member: &&Member| member.share > 0 && !was_tried(member, tried);
    let best = best(set, key, set.members().iter().filter(wanted))?;
    let Some(bound) = bound else { return Some(Picked { member: best, over_bound: false }) };
    let in_flight: u64 = set.members().iter().map(|member| u64::from(member.endpoint.in_flight())).sum();
    let has_room = |member: &&Member| {
        // One more than there are now, because this one comes too; rounded up, so that each may have one.
        let due = u128::from(in_flight + 1) * u128::from(bound.get()) * u128::from(member.share);
        u128::from(member.endpoint.in_flight()) < due.div_ceil(u128::from(set.total().max(1)) * 100)
    };
    if has_room(&best) {
        return Some(Picked { member: best, over_bound: false });
    }
    let with_room = set.members().iter().filter(wanted).filter(has_room);
    // All have as much as they may when the others were tried.
    let member = self::best(set, key, with_room).unwrap_or(best);
    Some(Picked { member, over_bound: true })
}

fn best<'a>(set: &EndpointSet, key: u64, members: impl Iterator<Item = &'a Member>) -> Option<&'a Member> {
    if set.is_even() {
        return members.max_by_key(|member| score(key, member.endpoint.tag().number()));
    }
    let weighted = |member: &Member| weighted(score(key, member.endpoint.tag().number()), member.share);
    members.max_by(|a, b| weighted(a).total_cmp(&weighted(b)))
}

/// Of many with weights, the place of the one that `key` belongs to; 0 leaves one out.
pub(super) fn place(key: u64, names: impl Iterator<Item = (usize, u64, u32)>) -> Option<usize> {
    names
        .filter(|(_, _, weight)| *weight > 0)
        .map(|(place, name, weight)| (place, weighted(score(key, name), weight)))
        .max_by(|(_, a), (_, b)| a.total_cmp(b))
        .map(|(place, _)| place)
}

/// Evenly distributed and different for each pair: the finalizer of SplitMix64.
fn score(key: u64, name: u64) -> u64 {
    let mut x = key ^ name;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// With `weight / -ln(u)` for `u` between 0 and 1, each is the highest as often as its weight says. Negated
/// and turned over, so that the order is the same as that of the plain scores.
fn weighted(score: u64, weight: u32) -> f64 {
    // 53 bits and a half, so that it is neither 0 nor 1.
    let u = ((score >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    u.ln() / f64::from(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::key::hash;
    use crate::endpoint::InFlight;
    use crate::endpoint::set::Watch;
    use crate::endpoint::set::tests::{down, servers, set_of};

    const KEYS: u64 = 20_000;

    fn owner(set: &EndpointSet, key: u64) -> usize {
        let picked = pick(set, &[], key, None).expect("one is available").member;
        set.members()
            .iter()
            .position(|member| member.endpoint.id() == picked.endpoint.id())
            .expect("a member")
    }

    fn keys() -> impl Iterator<Item = u64> {
        (0..KEYS).map(|number| hash(format!("user-{number}").as_bytes()))
    }

    fn owners(set: &EndpointSet) -> Vec<usize> {
        keys().map(|key| owner(set, key)).collect()
    }

    #[track_caller]
    fn assert_shares(set: &EndpointSet, expected: &[f64]) {
        let owners = owners(set);
        for (index, expected) in expected.iter().enumerate() {
            let share = owners.iter().filter(|owner| **owner == index).count() as f64 / KEYS as f64;
            // Five standard deviations of a share near 0.5 over 20,000 keys: 5 * 0.5 / 141.
            assert!((share - expected).abs() < 0.018, "{share} of {index}, {expected} was due");
        }
    }

    #[test]
    fn keys_are_shared_by_weight() {
        assert_shares(&set_of(&[1, 1, 1, 1]), &[0.25; 4]);
        assert_shares(&set_of(&[5, 3, 0, 2]), &[0.5, 0.3, 0.0, 0.2]);
    }

    #[test]
    fn when_one_goes_only_its_keys_move_and_when_it_is_back_so_are_they() {
        for weights in [[1, 1, 1, 1, 1], [4, 3, 2, 2, 1]] {
            let set = set_of(&weights);
            let before = owners(&set);
            let after = owners(&down(&set, 2));
            for (before, after) in before.iter().zip(&after) {
                assert!(before == after || *before == 2, "{before} to {after}");
                assert_ne!(*after, 2);
            }
            let again = EndpointSet::build(&servers(&weights), Some(&set), Watch::Checked);
            assert_eq!(owners(&again), before);
        }
    }

    #[test]
    fn when_one_comes_it_takes_its_share_and_no_other_key_moves() {
        let (before, after) = (owners(&set_of(&[1; 9])), owners(&set_of(&[1; 10])));
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == 9));
        let share = moved as f64 / KEYS as f64;
        assert!((share - 0.1).abs() < 0.012, "{share} of the keys moved, a tenth was due");
    }

    #[test]
    fn a_changed_weight_moves_no_more_than_the_difference() {
        let (before, after) = (owners(&set_of(&[2, 2, 2])), owners(&set_of(&[2, 2, 4])));
        assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == 2));
        let share = before.iter().zip(&after).filter(|(a, b)| a != b).count() as f64 / KEYS as f64;
        // A third became a half.
        assert!((share - 1.0 / 6.0).abs() < 0.015, "{share}");
    }

    #[test]
    fn the_second_choice_of_a_key_is_where_it_goes_when_the_first_is_gone() {
        let set = set_of(&[1, 1, 1]);
        for key in keys().take(100) {
            let first = owner(&set, key);
            let tried = [set.members()[first].endpoint.id()];
            let second = pick(&set, &tried, key, None).expect("two are left").member.endpoint.id();
            let other = down(&set, first);
            assert_eq!(other.members()[owner(&other, key)].endpoint.id(), second);
        }
    }

    #[test]
    fn a_hot_key_spills_over_once_its_endpoint_has_more_than_its_bound() {
        let set = set_of(&[1, 1, 1, 1]);
        let bound = MaxLoad::percent(125);
        let key = hash(b"hot");
        let mut load = Vec::new();
        let mut over = 0;
        for _ in 0..100 {
            let picked = pick(&set, &[], key, bound).expect("one is available");
            over += usize::from(picked.over_bound);
            load.push(InFlight::new(picked.member.endpoint.clone()));
        }
        let most = set.members().iter().map(|member| member.endpoint.in_flight()).max();
        // 125 % of a quarter of 100, rounded up.
        assert_eq!(most, Some(32));
        assert!(over > 0);
        drop(load);
        assert!(!pick(&set, &[], key, bound).expect("one is available").over_bound);
    }

    #[test]
    fn a_bound_that_nobody_left_can_keep_is_no_reason_to_refuse() {
        let set = set_of(&[1, 1]);
        let [first, second] = [0, 1].map(|index| &set.members()[index].endpoint);
        let _load: Vec<InFlight> = (0..50).map(|_| InFlight::new(first.clone())).collect();
        let picked = pick(&set, &[second.id()], 7, MaxLoad::percent(101));
        assert_eq!(picked.map(|picked| picked.member.endpoint.id()), Some(first.id()));
    }
}
