//! Which endpoint gets the next attempt: THE LIST of strategies, one file each.
//!
//! Picks are pure: they read one [`EndpointSet`], a shared turn counter, and what the caller gives: the time,
//! a random number, the request's key. Never: clocks, sockets, tasks.

pub mod adaptive;
pub mod budget;
pub mod children;
pub mod cookie;
pub mod hedge;
pub mod key;
mod least;
mod p2c;
pub mod percent;
mod rendezvous;
pub mod sticky;
pub mod weighted;
mod wrr;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::clock::Millis;
use crate::endpoint::EndpointId;
use crate::endpoint::sequence::Sequence;
use crate::endpoint::set::{EndpointSet, Member};

/// How a service chooses among its endpoints (`loadBalancer.strategy`).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Strategy {
    /// Weighted round robin: exact shares over a cycle, over all cores together.
    #[default]
    Wrr,
    /// Power of two choices: of two endpoints drawn by weight, the one with fewer requests in
    /// flight for its weight.
    P2c,
    /// The endpoint with the fewest requests in flight for its weight.
    LeastRequests,
    /// The endpoint with the shortest time to the first byte, times the requests in flight, for its weight.
    LeastTime,
    /// Rendezvous hashing by the client's address.
    Hrw,
    /// Rendezvous hashing by what the operator chose, with a bound on each endpoint's load.
    Hash,
}

impl Strategy {
    /// Every strategy there is, for messages and schemas.
    pub const ALL: [Self; 6] =
        [Self::Wrr, Self::P2c, Self::LeastRequests, Self::LeastTime, Self::Hrw, Self::Hash];

    /// The word for it in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrr => "wrr",
            Self::P2c => "p2c",
            Self::LeastRequests => "leastrequests",
            Self::LeastTime => "leasttime",
            Self::Hrw => "hrw",
            Self::Hash => "hash",
        }
    }

    /// The strategy of that name, compared with case as Traefik does.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|strategy| strategy.as_str() == name)
    }
}

/// The choice of one service: its strategy, and whose turn it is.
///
/// One a service, shared by all cores. Set it up again from [`turn`](Self::turn) to keep the turn when the
/// strategy changes.
#[derive(Debug)]
pub struct Balancer {
    strategy: Strategy,
    max_load: Option<MaxLoad>,
    turn: Turn,
}

/// Requests in flight that an endpoint may have, in percent of its fair share of all of them. Over 100.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MaxLoad(u16);

impl MaxLoad {
    /// Anything from 101 percent on.
    pub fn percent(percent: u16) -> Option<Self> {
        (percent > 100).then_some(Self(percent))
    }

    /// The percentage.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// What a pick depends on beside the endpoints.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// Endpoints to be passed over while another is available.
    pub tried: &'a [EndpointId],
    /// Evenly distributed over all of `u64`.
    pub random: u64,
    /// For [`Strategy::LeastTime`].
    pub now: Millis,
    /// What hashing strategies hash, where the request has it.
    pub key: Option<u64>,
}

/// An endpoint that was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Picked<'a> {
    /// Which.
    pub member: &'a Member,
    /// The endpoint that the key belongs to had as much as it may.
    pub over_bound: bool,
}

impl Balancer {
    /// Begins at the turn `start`: 0 for the first server of the list, or any random number so that
    /// many proxies do not all begin with the same server.
    pub fn new(strategy: Strategy, start: u64) -> Self {
        Self { strategy, max_load: None, turn: Turn::new(start) }
    }

    /// Bounds the load of each endpoint; for [`Strategy::Hrw`] and [`Strategy::Hash`].
    #[must_use]
    pub fn bounded(self, max_load: Option<MaxLoad>) -> Self {
        Self { max_load, ..self }
    }

    /// The bound on each endpoint's load.
    pub fn max_load(&self) -> Option<MaxLoad> {
        self.max_load
    }

    /// Whether it has to be told how long answers take.
    pub fn wants_latency(&self) -> bool {
        self.strategy == Strategy::LeastTime
    }

    /// The strategy it follows.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Whose turn it is, to carry over.
    pub fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Chooses an endpoint for the next attempt.
    ///
    /// One that has a share and was not tried; else one of the reserve that was not tried; else one that has a
    /// share. `None` only when none has. Cost: O(1) for `wrr` and `p2c` when `tried` is empty; else one walk over
    /// the endpoints at most.
    pub fn pick<'a>(&self, set: &'a EndpointSet, ask: &Ask<'_>) -> Option<Picked<'a>> {
        let mut tried = ask.tried;
        if !tried.is_empty() && !leaves_one(set, tried) {
            if let Some(member) = self.pick_reserve(set, tried) {
                return Some(Picked { member, over_bound: false });
            }
            tried = &[];
        }
        let member = match self.strategy {
            Strategy::Wrr => wrr::pick(set, &self.turn, tried),
            Strategy::P2c => p2c::pick(set, tried, ask.random),
            Strategy::LeastRequests => least::requests(set, &self.turn, tried),
            Strategy::LeastTime => least::time(set, &self.turn, tried, ask.now),
            Strategy::Hrw | Strategy::Hash => match ask.key {
                Some(key) => return rendezvous::pick(set, tried, key, self.max_load),
                // Nothing to go by: everyone in turn.
                None => wrr::pick(set, &self.turn, tried),
            },
        };
        member.map(|member| Picked { member, over_bound: false })
    }

    /// One that gets nothing as long as others do, by its weight.
    fn pick_reserve<'a>(&self, set: &'a EndpointSet, tried: &[EndpointId]) -> Option<&'a Member> {
        if set.reserve().is_empty() {
            return None;
        }
        let position = self.turn.take(1);
        next_turn(set, set.reserve(), position, |member| !was_tried(member, tried)).map(|(member, _)| member)
    }
}

/// A counter of turns that all cores share. It wraps after 2^64 turns, which nobody will see.
#[derive(Debug)]
struct Turn(AtomicU64);

impl Turn {
    fn new(start: u64) -> Self {
        Self(AtomicU64::new(start))
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes `count` turns and gives the first of them.
    fn take(&self, count: u64) -> u64 {
        self.0.fetch_add(count, Ordering::Relaxed)
    }
}

/// Whether an endpoint that has a share is left that was not tried.
fn leaves_one(set: &EndpointSet, tried: &[EndpointId]) -> bool {
    // More of them than were tried: no need to look at each.
    set.available() > tried.len()
        || set.members().iter().any(|member| member.share > 0 && !was_tried(member, tried))
}

/// Whether an endpoint is left that was not tried, be it of the reserve.
pub fn leaves_any(set: &EndpointSet, tried: &[EndpointId]) -> bool {
    leaves_one(set, tried)
        || (!set.reserve().is_empty()
            && set.members().iter().any(|member| member.is_available() && !was_tried(member, tried)))
}

fn was_tried(member: &Member, tried: &[EndpointId]) -> bool {
    tried.contains(&member.endpoint.id())
}

/// The first member from `position` on, in the order of turns, that `wanted` takes; and how many turns
/// were passed over.
///
/// At most one cycle.
fn next_turn<'a>(
    set: &'a EndpointSet,
    sequence: &Sequence,
    position: u64,
    wanted: impl Fn(&Member) -> bool,
) -> Option<(&'a Member, u64)> {
    let cycle = u64::try_from(sequence.len()).unwrap_or(u64::MAX);
    (0..cycle).find_map(|passed| {
        let member = set.members().get(sequence.at(position.wrapping_add(passed))?)?;
        wanted(member).then_some((member, passed))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Strategy, *};
    use crate::endpoint::set::Tier;
    use crate::endpoint::set::tests::{down, servers, set_of};
    use crate::endpoint::set::{ServerSpec, Watch};

    fn ask<'a>(tried: &'a [EndpointId], random: u64) -> Ask<'a> {
        Ask { tried, random, now: 1, key: Some(random) }
    }

    #[test]
    fn names_are_traefiks() {
        assert_eq!(Strategy::parse("wrr"), Some(Strategy::Wrr));
        assert_eq!(Strategy::parse("p2c"), Some(Strategy::P2c));
        assert_eq!(Strategy::parse("hrw"), Some(Strategy::Hrw));
        assert_eq!(Strategy::parse("leasttime"), Some(Strategy::LeastTime));
        assert_eq!(Strategy::parse("random"), None);
    }

    #[test]
    fn nothing_available_picks_nothing() {
        let dead = down(&down(&set_of(&[1, 1]), 0), 1);
        for strategy in Strategy::ALL {
            let balancer = Balancer::new(strategy, 0);
            assert!(balancer.pick(&EndpointSet::default(), &ask(&[], 1)).is_none());
            assert!(balancer.pick(&set_of(&[0, 0]), &ask(&[], 1)).is_none());
            assert!(balancer.pick(&dead, &ask(&[], 1)).is_none());
        }
    }

    #[test]
    fn the_only_available_endpoint_is_picked_again_after_it_was_tried() {
        let set = down(&set_of(&[1, 1, 0]), 0);
        let last = set.members()[1].endpoint.id();
        for strategy in Strategy::ALL {
            let picked = Balancer::new(strategy, 0).pick(&set, &ask(&[last], 9));
            assert_eq!(picked.map(|picked| picked.member.endpoint.id()), Some(last));
        }
    }

    #[test]
    fn a_backup_is_tried_before_the_one_that_has_failed_this_very_request() {
        let mut specs: Vec<ServerSpec> = servers(&[1, 1]);
        specs[1].tier = Tier::Backup(0);
        let set = EndpointSet::build(&specs, None, Watch::Unchecked);
        let [primary, backup] = [0, 1].map(|index| set.members()[index].endpoint.id());
        for strategy in Strategy::ALL {
            let balancer = Balancer::new(strategy, 0);
            let pick = |tried: &[EndpointId]| {
                balancer.pick(&set, &ask(tried, 3)).map(|picked| picked.member.endpoint.id())
            };
            assert_eq!(pick(&[]), Some(primary));
            assert_eq!(pick(&[primary]), Some(backup));
            assert_eq!(pick(&[primary, backup]), Some(primary));
        }
    }

    proptest! {
        #[test]
        fn a_pick_is_available_and_new_while_there_is_a_new_one(
            weights in prop::collection::vec(0_u32..20, 1..12),
            down_mask: u16, tried_mask: u16, start: u64, random: u64,
        ) {
            let mut set = set_of(&weights);
            for index in (0..weights.len()).filter(|index| down_mask & (1 << index) != 0) {
                set = down(&set, index);
            }
            let in_mask = |index: &usize| tried_mask & (1 << index) != 0;
            let id = |index: usize| set.members()[index].endpoint.id();
            let tried: Vec<EndpointId> = (0..weights.len()).filter(in_mask).map(id).collect();
            let fresh = set.members().iter().any(|m| m.is_available() && !was_tried(m, &tried));
            for strategy in Strategy::ALL {
                let picked = Balancer::new(strategy, start).pick(&set, &ask(&tried, random));
                prop_assert_eq!(picked.is_some(), set.available() > 0);
                if let Some(Picked { member, .. }) = picked {
                    prop_assert!(member.share > 0);
                    prop_assert!(!fresh || !tried.contains(&member.endpoint.id()));
                }
            }
        }
    }
}
