//! The endpoint with the least to do: by requests in flight, or by those times its time to the first byte.

use crate::balance::{Turn, next_turn, was_tried};
use crate::common::clock::Millis;
use crate::endpoint::EndpointId;
use crate::endpoint::set::{EndpointSet, Member};

/// Endpoints that are compared for one pick, at most. Among more than that, which ones goes on from pick to
/// pick: the best of 128 is as good as the best of all, and a pick costs some microseconds at most.
const MAX_COMPARED: usize = 128;

/// The one with the fewest requests in flight for its share; among equals everyone in turn.
pub(super) fn requests<'a>(set: &'a EndpointSet, turn: &Turn, tried: &[EndpointId]) -> Option<&'a Member> {
    least(set, turn, tried, |member| Score::of(member.endpoint.in_flight().into(), member))
}

/// The one with the least time to the first byte, times one more than its requests in flight, for its share;
/// among equals everyone in turn.
///
/// One whose time is not known gets a request at once, and no second one before that is answered.
pub(super) fn time<'a>(
    set: &'a EndpointSet,
    turn: &Turn,
    tried: &[EndpointId],
    now: Millis,
) -> Option<&'a Member> {
    least(set, turn, tried, |member| {
        let in_flight = u128::from(member.endpoint.in_flight());
        match member.endpoint.latency().micros(now) {
            Some(micros) => Score::of(u128::from(micros) * (in_flight + 1), member),
            None if in_flight == 0 => Score::of(0, member),
            None => Score::of(UNKNOWN_MICROS * in_flight, member),
        }
    })
}

/// An endpoint that has requests and has answered none yet counts as this slow: slower than any that has.
const UNKNOWN_MICROS: u128 = 1 << 33;

/// What an endpoint has to do, for its share. Compared without a division.
#[derive(Clone, Copy, Debug)]
struct Score {
    load: u128,
    share: u128,
}

impl Score {
    fn of(load: u128, member: &Member) -> Self {
        Self { load, share: member.share.into() }
    }

    fn is_below(self, other: Self) -> bool {
        self.load * other.share < other.load * self.share
    }
}

fn least<'a>(
    set: &'a EndpointSet,
    turn: &Turn,
    tried: &[EndpointId],
    score: impl Fn(&Member) -> Score,
) -> Option<&'a Member> {
    let position = turn.take(1);
    // Whose turn it is keeps it unless another has strictly less: so an idle service sees shares by weight.
    let (mut best, _) = next_turn(set, set.sequence(), position, |member| !was_tried(member, tried))?;
    let mut lowest = score(best);
    let count = set.members().len();
    let first = usize::try_from(position % count.max(1) as u64).unwrap_or(0);
    let (before, from) = set.members().split_at(first);
    for member in from.iter().chain(before).take(MAX_COMPARED) {
        if member.share > 0 && !was_tried(member, tried) {
            let own = score(member);
            if own.is_below(lowest) {
                (best, lowest) = (member, own);
            }
        }
    }
    Some(best)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::endpoint::InFlight;
    use crate::endpoint::set::tests::{down, set_of};

    fn index_of(set: &EndpointSet, member: &Member) -> usize {
        let same = |other: &Member| other.endpoint.id() == member.endpoint.id();
        set.members().iter().position(same).expect("a member of the set")
    }

    fn busy(set: &EndpointSet, index: usize, requests: usize) -> Vec<InFlight> {
        (0..requests).map(|_| InFlight::new(set.members()[index].endpoint.clone())).collect()
    }

    fn answered(set: &EndpointSet, index: usize, millis: u64) {
        set.members()[index].endpoint.latency().observe(0, Duration::from_millis(millis));
    }

    fn counts(set: &EndpointSet, picks: usize, pick: impl Fn(&Turn) -> Option<usize>) -> Vec<usize> {
        let turn = Turn::new(0);
        let mut counts = vec![0; set.members().len()];
        for index in (0..picks).filter_map(|_| pick(&turn)) {
            counts[index] += 1;
        }
        counts
    }

    #[test]
    fn an_idle_service_sees_shares_by_weight() {
        let set = set_of(&[3, 1, 0, 2]);
        let by_requests = counts(&set, 60, |turn| requests(&set, turn, &[]).map(|m| index_of(&set, m)));
        assert_eq!(by_requests, [30, 10, 0, 20]);
        let by_time = counts(&set, 60, |turn| time(&set, turn, &[], 0).map(|m| index_of(&set, m)));
        assert_eq!(by_time, [30, 10, 0, 20], "nobody's time is known");
    }

    #[test]
    fn the_one_with_the_fewest_for_its_weight_gets_it() {
        let set = set_of(&[1, 3, 1]);
        let _load = (busy(&set, 0, 1), busy(&set, 1, 2), busy(&set, 2, 2));
        let pick = || requests(&set, &Turn::new(7), &[]).map(|member| index_of(&set, member));
        // 1/1, 2/3, 2/1.
        assert_eq!(pick(), Some(1));
        let _more = busy(&set, 1, 2);
        assert_eq!(pick(), Some(0));
    }

    #[test]
    fn the_fastest_gets_requests_until_it_has_as_much_to_do_as_the_others() {
        let set = set_of(&[1, 1]);
        answered(&set, 0, 10);
        answered(&set, 1, 40);
        let mut load = Vec::new();
        let mut order = Vec::new();
        for _ in 0..5 {
            let member = time(&set, &Turn::new(0), &[], 0).expect("one is available");
            order.push(index_of(&set, member));
            load.push(InFlight::new(member.endpoint.clone()));
        }
        // 10 ms times 1, 2, 3, 4 in flight, then 40 ms times 1: a tie, and the turn is the first one's.
        assert_eq!(order, [0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_weight_divides_the_time() {
        let set = set_of(&[1, 8]);
        answered(&set, 0, 10);
        answered(&set, 1, 40);
        let picked = time(&set, &Turn::new(0), &[], 0).map(|member| index_of(&set, member));
        assert_eq!(picked, Some(1));
    }

    #[test]
    fn a_new_endpoint_gets_one_request_and_no_second_one_before_it_has_answered() {
        let set = set_of(&[1, 1]);
        answered(&set, 0, 10);
        let pick = || time(&set, &Turn::new(0), &[], 0).map(|member| index_of(&set, member));
        assert_eq!(pick(), Some(1));
        let _first = busy(&set, 1, 1);
        assert_eq!(pick(), Some(0));
    }

    #[test]
    fn a_slow_endpoint_is_asked_again_after_a_while() {
        let set = set_of(&[1, 1]);
        answered(&set, 0, 10);
        answered(&set, 1, 160);
        let pick = |now| {
            set.members()[0].endpoint.latency().observe(now, Duration::from_millis(10));
            time(&set, &Turn::new(0), &[], now).map(|member| index_of(&set, member))
        };
        assert_eq!(pick(1_000), Some(0));
        // Four half lives bring 160 ms down to 10.
        assert_eq!(pick(29_000), Some(1));
    }

    #[test]
    fn who_was_tried_or_is_down_is_passed_over() {
        let set = down(&set_of(&[1, 1, 1]), 0);
        let tried = [set.members()[1].endpoint.id()];
        let picked = requests(&set, &Turn::new(0), &tried).map(|member| index_of(&set, member));
        assert_eq!(picked, Some(2));
    }

    #[test]
    fn among_very_many_only_some_are_compared_and_all_of_them_over_time() {
        let set = set_of(&[1; 1_000]);
        let _load: Vec<_> =
            (0..1_000).flat_map(|index| busy(&set, index, usize::from(index != 500))).collect();
        let turn = Turn::new(0);
        let found = (0..1_000)
            .filter_map(|_| requests(&set, &turn, &[]))
            .filter(|member| index_of(&set, member) == 500)
            .count();
        assert!((100..=130).contains(&found), "{found}");
    }
}
