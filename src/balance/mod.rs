//! Which endpoint gets the next attempt: THE LIST of strategies, one file each.
//!
//! Picks are pure: they read one [`EndpointSet`], a shared turn counter and a random number that the
//! caller gives. Never: clocks, sockets, tasks.

pub mod adaptive;
pub mod budget;
pub mod hedge;
mod p2c;
pub mod weighted;
mod wrr;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::endpoint::set::{EndpointSet, Member};
use crate::endpoint::{Endpoint, EndpointId};

/// How a service chooses among its endpoints (`loadBalancer.strategy`).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Strategy {
    /// Weighted round robin: exact shares over a cycle, over all cores together.
    #[default]
    Wrr,
    /// Power of two choices: of two endpoints drawn by weight, the one with fewer requests in
    /// flight for its weight.
    P2c,
}

impl Strategy {
    /// Every strategy there is, for messages and schemas.
    pub const ALL: [Self; 2] = [Self::Wrr, Self::P2c];

    /// The word for it in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wrr => "wrr",
            Self::P2c => "p2c",
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
    turn: Turn,
}

impl Balancer {
    /// Begins at the turn `start`: 0 for the first server of the list, or any random number so that
    /// many proxies do not all begin with the same server.
    pub fn new(strategy: Strategy, start: u64) -> Self {
        Self { strategy, turn: Turn::new(start) }
    }

    /// The strategy it follows.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// Whose turn it is, to carry over.
    pub fn turn(&self) -> u64 {
        self.turn.get()
    }

    /// Chooses an available endpoint for the next attempt.
    ///
    /// Never one of `tried` while another is available; when all available ones were tried, one of
    /// them; `None` only when none is available. `random` is evenly distributed over all of `u64`.
    /// Cost: O(1) when `tried` is empty; else at most one walk over the set's sequence for each pick.
    pub fn pick<'a>(
        &self,
        set: &'a EndpointSet,
        tried: &[EndpointId],
        random: u64,
    ) -> Option<&'a Arc<Endpoint>> {
        let tried = if leaves_one(set, tried) { tried } else { &[] };
        let member = match self.strategy {
            Strategy::Wrr => wrr::pick(set, &self.turn, tried),
            Strategy::P2c => p2c::pick(set, tried, random),
        };
        member.map(|member| &member.endpoint)
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

/// Whether an available endpoint is left that was not tried.
pub fn leaves_one(set: &EndpointSet, tried: &[EndpointId]) -> bool {
    // More available than tried: no need to look at each.
    set.available() > tried.len()
        || set.members().iter().any(|member| member.is_available() && !was_tried(member, tried))
}

fn was_tried(member: &Member, tried: &[EndpointId]) -> bool {
    tried.contains(&member.endpoint.id())
}

/// The first member from `position` on, in the order of turns, that `wanted` takes; and how many turns
/// were passed over.
///
/// At most one cycle.
fn next_turn(set: &EndpointSet, position: u64, wanted: impl Fn(&Member) -> bool) -> Option<(&Member, u64)> {
    let cycle = u64::try_from(set.sequence().len()).unwrap_or(u64::MAX);
    (0..cycle).find_map(|passed| {
        let member = set.members().get(set.sequence().at(position.wrapping_add(passed))?)?;
        wanted(member).then_some((member, passed))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Strategy, *};
    use crate::endpoint::set::tests::{down, set_of};

    #[test]
    fn names_are_traefiks() {
        assert_eq!(Strategy::parse("wrr"), Some(Strategy::Wrr));
        assert_eq!(Strategy::parse("p2c"), Some(Strategy::P2c));
        assert_eq!(Strategy::parse("hrw"), None);
    }

    #[test]
    fn nothing_available_picks_nothing() {
        let dead = down(&down(&set_of(&[1, 1]), 0), 1);
        for strategy in Strategy::ALL {
            let balancer = Balancer::new(strategy, 0);
            assert!(balancer.pick(&EndpointSet::default(), &[], 1).is_none());
            assert!(balancer.pick(&set_of(&[0, 0]), &[], 1).is_none());
            assert!(balancer.pick(&dead, &[], 1).is_none());
        }
    }

    #[test]
    fn the_only_available_endpoint_is_picked_again_after_it_was_tried() {
        let set = down(&set_of(&[1, 1, 0]), 0);
        let last = set.members()[1].endpoint.id();
        for strategy in Strategy::ALL {
            let picked = Balancer::new(strategy, 0).pick(&set, &[last], 9).map(|endpoint| endpoint.id());
            assert_eq!(picked, Some(last));
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
                let picked = Balancer::new(strategy, start).pick(&set, &tried, random);
                prop_assert_eq!(picked.is_some(), set.available() > 0);
                if let Some(endpoint) = picked {
                    prop_assert!(set.member(endpoint.id()).is_some_and(Member::is_available));
                    prop_assert!(!fresh || !tried.contains(&endpoint.id()));
                }
            }
        }
    }
}
