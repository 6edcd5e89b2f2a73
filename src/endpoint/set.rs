//! A service's endpoints at one moment: who they are, their weights, their health, and whose turn is when.
//!
//! Immutable: a change makes a new set, which is published by `live`. Never: locks, clocks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::endpoint::health::{CheckResult, Health, Status, Thresholds, step};
use crate::endpoint::sequence::Sequence;
use crate::endpoint::url::ServerUrl;
use crate::endpoint::{Endpoint, EndpointId, PathUse};

/// One entry of `loadBalancer.servers`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerSpec {
    /// Where it is.
    pub url: ServerUrl,
    /// Its share. 0 gets no requests; Traefik's negative weights are 0 here.
    pub weight: u32,
    /// What becomes of the path in `url`.
    pub path_use: PathUse,
}

/// Whether somebody checks the endpoints, so that one that is down can come up again.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Watch {
    /// Nobody does: every endpoint counts as up, whatever was known before or is reported late.
    #[default]
    Unchecked,
    /// Active checks run: health is carried over.
    Checked,
}

/// An endpoint as it is in one set.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// Its share; 0 gets no requests.
    pub weight: u32,
    /// What its checks say.
    pub health: Health,
}

impl Member {
    /// Whether it may be picked.
    pub fn is_available(&self) -> bool {
        self.weight > 0 && self.health.status() == Status::Up
    }
}

/// Endpoints, weights and health of the same moment.
#[derive(Clone, Debug, Default)]
pub struct EndpointSet {
    members: Box<[Member]>,
    watch: Watch,
    available: usize,
    /// Over the available members only, by their index in `members`.
    sequence: Arc<Sequence>,
}

impl EndpointSet {
    /// Makes the set of `servers`, in their order.
    ///
    /// A server that `previous` has too (same url, same use of its path) keeps its [`Endpoint`], and
    /// with it its pools and load, whatever became of its weight; and its health, if `watch` is
    /// [`Watch::Checked`]. A server that is listed twice is one endpoint with the sum of the weights.
    pub fn build(servers: &[ServerSpec], previous: Option<&EndpointSet>, watch: Watch) -> Self {
        let known: HashMap<(&str, PathUse), &Member> = previous
            .map_or(&[][..], |set| &set.members)
            .iter()
            .map(|member| ((member.endpoint.url().as_str(), member.endpoint.path_use), member))
            .collect();
        let mut members: Vec<Member> = Vec::with_capacity(servers.len());
        let mut places: HashMap<(&str, PathUse), usize> = HashMap::with_capacity(servers.len());
        for server in servers {
            let key = (server.url.as_str(), server.path_use);
            if let Some(twin) = places.get(&key).and_then(|place| members.get_mut(*place)) {
                twin.weight = twin.weight.saturating_add(server.weight);
                continue;
            }
            places.insert(key, members.len());
            let old = known.get(&key);
            members.push(Member {
                endpoint: old.map_or_else(
                    || Endpoint::new(server.url.clone(), server.path_use),
                    |old| Arc::clone(&old.endpoint),
                ),
                weight: server.weight,
                health: match (watch, old) {
                    (Watch::Checked, Some(old)) => old.health,
                    (Watch::Checked, None) | (Watch::Unchecked, _) => Health::default(),
                },
            });
        }
        Self::of(members.into(), watch)
    }

    /// The set after one result of a check; `None` when that changes nothing, `id` is not in the set, or
    /// nobody is meant to check it: a late result must not take down what nobody would bring up again.
    pub fn checked(&self, id: EndpointId, result: CheckResult, thresholds: Thresholds) -> Option<Self> {
        if self.watch == Watch::Unchecked {
            return None;
        }
        let place = self.members.iter().position(|member| member.endpoint.id() == id)?;
        let before = self.members[place].health;
        let after = step(before, result, thresholds);
        if after == before {
            return None;
        }
        let mut members = self.members.clone();
        members[place].health = after;
        if after.status() == before.status() {
            return Some(Self { members, sequence: Arc::clone(&self.sequence), ..*self });
        }
        Some(Self::of(members, self.watch))
    }

    /// All of them, in the order of the document.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The one with that id.
    pub fn member(&self, id: EndpointId) -> Option<&Member> {
        self.members.iter().find(|member| member.endpoint.id() == id)
    }

    /// How many may be picked.
    pub fn available(&self) -> usize {
        self.available
    }

    /// Whose turn is when, by their index in [`members`](Self::members): the available ones only.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// Whether a reader could not tell it from `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Member, &Member)| {
            a.endpoint.id() == b.endpoint.id() && a.weight == b.weight && a.health == b.health
        };
        self.watch == other.watch
            && self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(same)
    }

    fn of(members: Box<[Member]>, watch: Watch) -> Self {
        let weight = |member: &Member| if member.is_available() { member.weight } else { 0 };
        let weights: Vec<u32> = members.iter().map(weight).collect();
        let available = weights.iter().filter(|weight| **weight > 0).count();
        Self { members, watch, available, sequence: Arc::new(Sequence::new(&weights)) }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A set of servers `http://a.test`, `http://b.test`, ... with these weights.
    pub(crate) fn set_of(weights: &[u32]) -> EndpointSet {
        EndpointSet::build(&servers(weights), None, Watch::Checked)
    }

    pub(crate) fn servers(weights: &[u32]) -> Vec<ServerSpec> {
        let server = |(index, weight): (usize, &u32)| {
            let url = format!("http://s{index}.test");
            ServerSpec {
                url: ServerUrl::parse(&url).expect("a good url"),
                weight: *weight,
                path_use: PathUse::Ignored,
            }
        };
        weights.iter().enumerate().map(server).collect()
    }

    pub(crate) fn down(set: &EndpointSet, index: usize) -> EndpointSet {
        let id = set.members()[index].endpoint.id();
        set.checked(id, CheckResult::Fail, Thresholds::default()).expect("it was up")
    }

    #[test]
    fn a_server_keeps_its_endpoint_and_health_when_its_weight_changes() {
        let old = down(&set_of(&[1, 1]), 1);
        let new = EndpointSet::build(&servers(&[3, 5, 1]), Some(&old), Watch::Checked);
        for index in [0, 1] {
            let (old, new) = (&old.members()[index], &new.members()[index]);
            assert!(Arc::ptr_eq(&old.endpoint, &new.endpoint));
            assert_eq!(old.health, new.health);
        }
        assert_eq!(new.members()[1].weight, 5);
        assert_eq!(new.members()[2].health, Health::default());
        assert_eq!(new.available(), 2);
    }

    #[test]
    fn a_server_that_nobody_checks_any_more_is_up() {
        let old = down(&set_of(&[1, 1]), 0);
        let new = EndpointSet::build(&servers(&[1, 1]), Some(&old), Watch::Unchecked);
        let endpoint = &new.members()[0].endpoint;
        assert!(Arc::ptr_eq(&old.members()[0].endpoint, endpoint));
        assert_eq!(new.available(), 2);
        assert!(
            new.checked(endpoint.id(), CheckResult::Fail, Thresholds::default()).is_none(),
            "a late result"
        );
    }

    #[test]
    fn another_use_of_the_path_is_another_endpoint() {
        let old = set_of(&[1]);
        let mut servers = servers(&[1]);
        servers[0].path_use = PathUse::Prefix;
        let new = EndpointSet::build(&servers, Some(&old), Watch::Checked);
        assert_ne!(old.members()[0].endpoint.id(), new.members()[0].endpoint.id());
    }

    #[test]
    fn a_server_listed_twice_is_one_endpoint_with_both_weights() {
        let mut twice = servers(&[2, 1]);
        twice.push(twice[0].clone());
        let set = EndpointSet::build(&twice, None, Watch::Checked);
        assert_eq!(set.members().len(), 2);
        assert_eq!(set.members()[0].weight, 4);
    }

    #[test]
    fn a_result_that_changes_nothing_makes_no_new_set() {
        let set = set_of(&[1]);
        let id = set.members()[0].endpoint.id();
        assert!(set.checked(id, CheckResult::Pass, Thresholds::default()).is_none());
        let other = set_of(&[1]);
        assert!(other.checked(id, CheckResult::Fail, Thresholds::default()).is_none());
    }

    #[test]
    fn an_endpoint_that_is_down_has_no_turn_and_gets_it_back_when_it_is_up() {
        let whole = set_of(&[1, 2]);
        let half = down(&whole, 1);
        assert_eq!((half.available(), half.sequence().len()), (1, 1));
        let id = half.members()[1].endpoint.id();
        let again = half.checked(id, CheckResult::Pass, Thresholds::default()).expect("it was down");
        assert_eq!(again.sequence(), whole.sequence());
    }
}
