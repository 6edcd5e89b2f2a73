//! Power of two choices: of two endpoints drawn by weight, the less loaded one.

use crate::balance::{next_turn, was_tried};
use crate::endpoint::EndpointId;
use crate::endpoint::set::{EndpointSet, Member};

/// Draws two different endpoints and gives the one with fewer requests in flight for its weight.
///
/// On a tie the first drawn: so an idle service sees shares by weight.
pub(super) fn pick<'a>(set: &'a EndpointSet, tried: &[EndpointId], random: u64) -> Option<&'a Member> {
    let (first_random, second_random) = (random as u32, (random >> 32) as u32);
    let first = draw(set, first_random, |member| !was_tried(member, tried))?;
    let different =
        |member: &Member| member.endpoint.id() != first.endpoint.id() && !was_tried(member, tried);
    let Some(second) = draw(set, second_random, different) else {
        return Some(first);
    };
    // load / share compared without a division.
    let load =
        |member: &Member, other: &Member| u64::from(member.endpoint.in_flight()) * u64::from(other.share);
    Some(if load(second, first) < load(first, second) { second } else { first })
}

/// A member drawn by weight from those that `wanted` takes.
fn draw(set: &EndpointSet, mut random: u32, wanted: impl Fn(&Member) -> bool) -> Option<&Member> {
    for _ in 0..DRAWS {
        let member = set.members().get(set.sequence().draw(random)?)?;
        if wanted(member) {
            return Some(member);
        }
        random = scramble(random);
    }
    next_turn(set, set.sequence(), u64::from(random), wanted).map(|(member, _)| member)
}

/// Another number that has nothing to do with the first: the finalizer of MurmurHash3, which maps `u32`
/// onto itself one to one; the constant before it keeps 0 from staying 0.
fn scramble(random: u32) -> u32 {
    let mut x = random.wrapping_add(0x9e37_79b9);
    x = (x ^ (x >> 16)).wrapping_mul(0x85eb_ca6b);
    x = (x ^ (x >> 13)).wrapping_mul(0xc2b2_ae35);
    x ^ (x >> 16)
}

/// Draws before the rest is walked through in the order of turns. Each draw misses at most as often as the
/// unwanted members' share says: with a half of all weight unwanted, one pick in 16 walks.
const DRAWS: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::InFlight;
    use crate::endpoint::set::tests::set_of;

    /// SplitMix64: evenly distributed, and the same in every run.
    fn randoms(mut seed: u64) -> impl FnMut() -> u64 {
        move || {
            seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = seed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    fn shares(set: &EndpointSet, tried: &[EndpointId], picks: usize) -> Vec<f64> {
        let mut random = randoms(42);
        let mut counts = vec![0_u32; set.members().len()];
        for _ in 0..picks {
            let picked = pick(set, tried, random()).expect("one is available").endpoint.id();
            let index = set.members().iter().position(|member| member.endpoint.id() == picked);
            counts[index.expect("a member")] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / picks as f64).collect()
    }

    #[track_caller]
    fn assert_near(shares: &[f64], expected: &[f64]) {
        for (share, expected) in shares.iter().zip(expected) {
            // Five standard deviations of a share near 0.5 over 100,000 picks: 5 * 0.5 / 316.
            assert!((share - expected).abs() < 0.008, "{shares:?}");
        }
    }

    #[test]
    fn an_idle_service_sees_shares_by_weight() {
        assert_near(&shares(&set_of(&[5, 3, 0, 2]), &[], 100_000), &[0.5, 0.3, 0.0, 0.2]);
        assert_near(&shares(&set_of(&[99, 1]), &[], 100_000), &[0.99, 0.01]);
    }

    #[test]
    fn shares_by_weight_hold_among_those_that_were_not_tried() {
        let set = set_of(&[4, 3, 2, 1]);
        let tried = [set.members()[0].endpoint.id()];
        assert_near(&shares(&set, &tried, 100_000), &[0.0, 0.5, 0.333, 0.167]);
    }

    #[test]
    fn of_two_the_one_with_fewer_in_flight_for_its_weight_wins() {
        let set = set_of(&[1, 3]);
        let [light, heavy] = [0, 1].map(|index| &set.members()[index].endpoint);
        let _one_for_light = InFlight::new(light.clone());
        let two_for_heavy = [(); 2].map(|()| InFlight::new(heavy.clone()));
        // 1/1 against 2/3.
        assert_near(&shares(&set, &[], 1_000), &[0.0, 1.0]);
        let _four_for_heavy = ([(); 2].map(|()| InFlight::new(heavy.clone())), two_for_heavy);
        // 1/1 against 4/3.
        assert_near(&shares(&set, &[], 1_000), &[1.0, 0.0]);
    }

    #[test]
    fn a_slow_endpoint_among_many_gets_almost_nothing() {
        let set = set_of(&[1; 10]);
        let slow = &set.members()[3].endpoint;
        let _stuck: Vec<InFlight> = (0..50).map(|_| InFlight::new(slow.clone())).collect();
        let shares = shares(&set, &[], 10_000);
        assert!(shares[3] < 0.001, "{shares:?}");
    }
}
