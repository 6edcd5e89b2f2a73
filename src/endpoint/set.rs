//! A service's endpoints at one moment: who they are, their weights, their health, and whose turn is when.
//!
//! Immutable: a change makes a new set, which is published by `live`. Never: locks, clocks.

use std::collections::HashMap;
use std::sync::Arc;

use crate::endpoint::health::{CheckResult, Health, Status, Thresholds, step};
use crate::endpoint::outlier::Passive;
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
    /// When it gets requests.
    pub tier: Tier,
}

/// When an endpoint gets requests, as far as that depends on others.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Tier {
    /// Always.
    #[default]
    Near,
    /// It stands in another zone than the proxy: when less than so many percent of the weight of the near
    /// ones is available, and then as much as they are short of that.
    OtherZone(u8),
    /// When none of the others is available, or less than so many percent of their weight.
    Backup(u8),
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

/// How a set treats its endpoints, beside their own state.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Care {
    /// Whether they are checked.
    pub watch: Watch,
    /// What a checked one is before its first check.
    pub initial: Status,
    /// The share of its weight, in percent, that one begins with that is new beside others or comes up again;
    /// 100 without `slowStart`.
    pub first_warmth: u8,
    /// While fewer percent of the endpoints with a weight are usable, all of them are used. 0 for never.
    pub panic_percent: u8,
}

impl Default for Care {
    fn default() -> Self {
        Watch::Unchecked.into()
    }
}

impl From<Watch> for Care {
    fn from(watch: Watch) -> Self {
        Self { watch, initial: Status::Up, first_warmth: WARM, panic_percent: 0 }
    }
}

/// Percent of its weight that an endpoint has which is not slowly started.
pub const WARM: u8 = 100;

/// An endpoint as it is in one set.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub endpoint: Arc<Endpoint>,
    /// Its share now, compared with the others of the same set; 0 gets no requests.
    pub weight: u32,
    /// Its weight as configured.
    pub configured: u32,
    /// What its checks say.
    pub health: Health,
    /// What its answers say.
    pub passive: Passive,
    /// How much of its weight it has, in percent.
    pub warmth: u8,
    /// When it gets requests.
    pub tier: Tier,
    /// Its share at this moment; 0 while it gets no requests.
    pub share: u32,
    available: bool,
}

impl Member {
    /// Whether it could be picked.
    pub fn is_available(&self) -> bool {
        self.available
    }

    /// Whether it is well, as far as checks and answers say.
    pub fn is_well(&self) -> bool {
        self.health.status() == Status::Up && self.passive != Passive::Ejected
    }

    /// Whether it serves those who hold a cookie of it. One with weight 0 does: it is being drained.
    pub fn keeps_sessions(&self) -> bool {
        self.share > 0 || self.is_well()
    }
}

/// Endpoints, weights and health of the same moment.
#[derive(Clone, Debug)]
pub struct EndpointSet {
    members: Box<[Member]>,
    care: Care,
    available: usize,
    on_trial: usize,
    ejected: usize,
    panics: bool,
    /// All shares together.
    total: u64,
    /// Whether all shares are the same.
    even: bool,
    /// Over the members that have a share, by their index in `members`.
    sequence: Arc<Sequence>,
    /// Over those that are available and have none.
    reserve: Arc<Sequence>,
}

impl Default for EndpointSet {
    fn default() -> Self {
        Self::of(Box::default(), Watch::default().into())
    }
}

impl EndpointSet {
    /// Makes the set of `servers`, in their order.
    ///
    /// A server that `previous` has too (same url, same use of its path) keeps its [`Endpoint`], and
    /// with it its pools and load, whatever became of its weight; and its health, if `watch` is
    /// [`Watch::Checked`]. What its answers said of it is kept in any case. A server that is listed twice is one
    /// endpoint with the sum of the weights.
    pub fn build(servers: &[ServerSpec], previous: Option<&EndpointSet>, care: impl Into<Care>) -> Self {
        let care = care.into();
        // All that begin together begin whole.
        let first_warmth = match previous {
            Some(set) if set.available > 0 => care.first_warmth,
            _ => WARM,
        };
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
                twin.configured = twin.configured.saturating_add(server.weight);
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
                configured: server.weight,
                health: match (care.watch, old) {
                    (Watch::Checked, Some(old)) => old.health,
                    (Watch::Checked, None) => Health::starting(care.initial),
                    (Watch::Unchecked, _) => Health::default(),
                },
                tier: server.tier,
                share: 0,
                passive: old.map_or(Passive::Admitted, |old| old.passive),
                warmth: match old {
                    Some(old) if care.first_warmth < WARM => old.warmth,
                    Some(_) => WARM,
                    None => first_warmth,
                },
                available: false,
            });
        }
        Self::of(members.into(), care)
    }

    /// The set after one result of a check; `None` when that changes nothing, `id` is not in the set, or
    /// nobody is meant to check it: a late result must not take down what nobody would bring up again.
    pub fn checked(&self, id: EndpointId, result: CheckResult, thresholds: Thresholds) -> Option<Self> {
        if self.care.watch == Watch::Unchecked {
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
            let (sequence, reserve) = (Arc::clone(&self.sequence), Arc::clone(&self.reserve));
            return Some(Self { members, sequence, reserve, ..*self });
        }
        if after.status() == Status::Up {
            members[place].warmth = self.care.first_warmth;
        }
        Some(Self::of(members, self.care))
    }

    /// The set with an endpoint ejected, tried or admitted; `None` when it is that already, is not in the set, or may
    /// not be ejected: because more than `max_percent` would be, or no other one is admitted.
    pub fn with_passive(&self, id: EndpointId, passive: Passive, max_percent: u32) -> Option<Self> {
        let place = self.members.iter().position(|member| member.endpoint.id() == id)?;
        if self.members[place].passive == passive {
            return None;
        }
        if passive == Passive::Ejected {
            let counted = |member: &&Member| member.configured > 0 && member.health.status() == Status::Up;
            let others = self.members.iter().filter(counted).filter(|member| member.endpoint.id() != id);
            let (mut all, mut ejected, mut admitted) = (1_u64, 1_u64, 0_u64);
            for member in others {
                all += 1;
                match member.passive {
                    Passive::Ejected => ejected += 1,
                    Passive::Admitted => admitted += 1,
                    Passive::OnTrial => {}
                }
            }
            let too_many = ejected > 1 && ejected * 100 > all * u64::from(max_percent);
            if admitted == 0 || too_many || max_percent == 0 {
                return None;
            }
        }
        let mut members = self.members.clone();
        members[place].passive = passive;
        if passive == Passive::Admitted {
            members[place].warmth = self.care.first_warmth;
        }
        Some(Self::of(members, self.care))
    }

    /// The set with an endpoint at another part of its weight; `None` when it is there already.
    pub fn with_warmth(&self, id: EndpointId, percent: u8) -> Option<Self> {
        let place = self.members.iter().position(|member| member.endpoint.id() == id)?;
        if self.members[place].warmth == percent {
            return None;
        }
        let mut members = self.members.clone();
        members[place].warmth = percent;
        Some(Self::of(members, self.care))
    }

    /// All of them, in the order of the document.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The one with that id.
    pub fn member(&self, id: EndpointId) -> Option<&Member> {
        self.members.iter().find(|member| member.endpoint.id() == id)
    }

    /// How many have a share, and so may be picked.
    pub fn available(&self) -> usize {
        self.available
    }

    /// How many are on trial.
    pub fn on_trial(&self) -> usize {
        self.on_trial
    }

    /// How many are ejected.
    pub fn ejected(&self) -> usize {
        self.ejected
    }

    /// Whether so few are well that all are used.
    pub fn panics(&self) -> bool {
        self.panics
    }

    /// All shares together.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Whether all that have a share have the same.
    pub fn is_even(&self) -> bool {
        self.even
    }

    /// Whose turn is when, by their index in [`members`](Self::members): those that have a share only.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// The same for those that are available but have no share: backups and other zones while they are not
    /// needed.
    pub fn reserve(&self) -> &Sequence {
        &self.reserve
    }

    /// Whether a reader could not tell it from `other`.
    pub fn is_same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Member, &Member)| {
            a.endpoint.id() == b.endpoint.id()
                && a.configured == b.configured
                && a.weight == b.weight
                && a.health == b.health
                && a.passive == b.passive
                && a.warmth == b.warmth
                && a.available == b.available
                && a.tier == b.tier
        };
        self.care == other.care
            && self.members.len() == other.members.len()
            && self.members.iter().zip(&other.members).all(same)
    }

    fn of(mut members: Box<[Member]>, care: Care) -> Self {
        // Exact while nobody warms up; then in hundredths, of which there is at least one.
        let all_warm = members.iter().all(|member| member.warmth >= WARM);
        for member in &mut members {
            member.weight = match (all_warm, member.configured) {
                (true, configured) => configured,
                (false, 0) => 0,
                (false, configured) => configured.saturating_mul(member.warmth.clamp(1, WARM).into()),
            };
        }
        let with_weight = members.iter().filter(|member| member.configured > 0).count();
        let well = members.iter().filter(|member| member.configured > 0 && member.is_well()).count();
        let panics = well * 100 < with_weight * usize::from(care.panic_percent);
        let ejected = members.iter().filter(|member| member.passive == Passive::Ejected).count();
        let mut on_trial = 0;
        for member in &mut members {
            let usable = match (panics, well) {
                (true, _) => true,
                // What is ejected is still better than nothing.
                (false, 0) => member.health.status() == Status::Up,
                (false, _) => member.is_well(),
            };
            member.available = member.configured > 0 && usable;
            on_trial += usize::from(member.available && member.passive == Passive::OnTrial);
        }
        let shares = shares(&members);
        for (member, share) in members.iter_mut().zip(&shares) {
            member.share = *share;
        }
        let mut some = shares.iter().filter(|share| **share > 0);
        let first = some.clone().next();
        let left =
            |member: &Member| if member.is_available() && member.share == 0 { member.weight } else { 0 };
        let reserve: Vec<u32> = members.iter().map(left).collect();
        Self {
            care,
            on_trial,
            ejected,
            panics,
            available: some.clone().count(),
            total: some.clone().map(|share| u64::from(*share)).sum(),
            even: some.all(|share| Some(share) == first),
            sequence: Arc::new(Sequence::new(&shares)),
            reserve: Arc::new(Sequence::new(&reserve)),
            members,
        }
    }
}

/// Who gets how much: a member's weight, unless its tier has something to say.
fn shares(members: &[Member]) -> Vec<u32> {
    let by_weight = |wanted: &dyn Fn(Tier) -> bool| {
        let share = |member: &Member| {
            if member.is_available() && wanted(member.tier) { member.weight } else { 0 }
        };
        members.iter().map(share).collect::<Vec<u32>>()
    };
    let (mut near, mut other, mut backup) = (Weights::default(), Weights::default(), Weights::default());
    let (mut near_percent, mut backup_percent) = (0, 0);
    for member in members {
        match member.tier {
            Tier::Near => near.add(member),
            Tier::OtherZone(percent) => {
                near_percent = percent;
                other.add(member);
            }
            Tier::Backup(percent) => {
                backup_percent = percent;
                backup.add(member);
            }
        }
    }
    let primary = Weights { all: near.all + other.all, available: near.available + other.available };
    if backup.available > 0 && (primary.available == 0 || primary.falls_short_of(backup_percent)) {
        // There is too little of everything: everything is used, zones or not.
        return by_weight(&|_| true);
    }
    if near.available == 0 || other.available == 0 {
        return by_weight(&|tier| !matches!(tier, Tier::Backup(_)));
    }
    if !near.falls_short_of(near_percent) {
        return by_weight(&|tier| tier == Tier::Near);
    }
    // `near_percent` of the near ones would have carried everything; what is available of them carries as
    // much of it as it is of that.
    let carried = near.available * 10_000 / (near.all * u64::from(near_percent)).max(1);
    let exact = |member: &Member| match member.tier {
        _ if !member.is_available() => 0,
        Tier::Near => u128::from(member.weight) * u128::from(carried) * u128::from(other.available),
        Tier::OtherZone(_) => {
            u128::from(member.weight) * u128::from(100 - carried.min(100)) * u128::from(near.available)
        }
        Tier::Backup(_) => 0,
    };
    // So large that nobody with a share is rounded down to none by much, so small that it fits.
    let largest = members.iter().map(exact).max().unwrap_or(0).max(1);
    let scaled = |member: &Member| match exact(member) {
        0 => 0,
        exact => u32::try_from((exact * 1_000_000 / largest).max(1)).unwrap_or(u32::MAX),
    };
    members.iter().map(scaled).collect()
}

/// The weights of one tier.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    all: u64,
    available: u64,
}

impl Weights {
    fn add(&mut self, member: &Member) {
        self.all += u64::from(member.weight);
        if member.is_available() {
            self.available += u64::from(member.weight);
        }
    }

    fn falls_short_of(self, percent: u8) -> bool {
        self.available * 100 < self.all * u64::from(percent)
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
                tier: Tier::Near,
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

    fn tiers(tiers: &[Tier]) -> EndpointSet {
        let mut servers = servers(&vec![10; tiers.len()]);
        for (server, tier) in servers.iter_mut().zip(tiers) {
            server.tier = *tier;
        }
        EndpointSet::build(&servers, None, Watch::Checked)
    }

    fn shares_of(set: &EndpointSet) -> Vec<u64> {
        let share =
            |member: &Member| (u64::from(member.share) * 1_000 + set.total() / 2) / set.total().max(1);
        set.members().iter().map(share).collect()
    }

    #[test]
    fn backups_get_requests_only_when_nobody_else_is_left() {
        let set = tiers(&[Tier::Near, Tier::Near, Tier::Backup(0), Tier::Backup(0)]);
        assert_eq!((shares_of(&set), set.available()), (vec![500, 500, 0, 0], 2));
        assert_eq!(set.reserve().len(), 2);
        let set = down(&set, 0);
        assert_eq!(shares_of(&set), [0, 1_000, 0, 0]);
        let set = down(&set, 1);
        assert_eq!((shares_of(&set), set.available()), (vec![0, 0, 500, 500], 2));
        assert!(set.reserve().is_empty());
    }

    #[test]
    fn backups_join_when_too_few_of_the_others_are_left() {
        let near = Tier::Near;
        let set = tiers(&[near, near, near, Tier::Backup(60)]);
        let set = down(&set, 0);
        assert_eq!(shares_of(&set), [0, 500, 500, 0]);
        assert_eq!(shares_of(&down(&set, 1)), [0, 0, 500, 500]);
    }

    #[test]
    fn the_own_zone_gets_everything_while_it_can_carry_it() {
        let (near, other) = (Tier::Near, Tier::OtherZone(70));
        let set = tiers(&[near, near, near, near, other, other]);
        assert_eq!(shares_of(&set), [250, 250, 250, 250, 0, 0]);
        let set = down(&set, 0);
        assert_eq!(shares_of(&set), [0, 333, 333, 333, 0, 0], "75 % are enough");
        let set = down(&set, 1);
        // 50 % of the near ones are 71 % of the 70 % that were asked for.
        assert_eq!(shares_of(&set), [0, 0, 355, 355, 145, 145]);
        let set = down(&down(&set, 2), 3);
        assert_eq!(shares_of(&set), [0, 0, 0, 0, 500, 500]);
    }

    #[test]
    fn a_zone_that_is_gone_elsewhere_takes_nothing_from_here() {
        let set = tiers(&[Tier::Near, Tier::Near, Tier::OtherZone(100)]);
        assert_eq!(shares_of(&down(&down(&set, 0), 2)), [0, 1_000, 0]);
    }

    #[test]
    fn an_endpoint_that_is_drained_keeps_its_sessions_and_one_that_is_down_does_not() {
        let set = down(&set_of(&[1, 0, 1]), 2);
        let keeps: Vec<bool> = set.members().iter().map(Member::keeps_sessions).collect();
        assert_eq!(keeps, [true, true, false]);
    }

    fn eject(set: &EndpointSet, index: usize) -> Option<EndpointSet> {
        set.with_passive(set.members()[index].endpoint.id(), Passive::Ejected, 100)
    }

    #[test]
    fn what_is_ejected_stays_so_over_a_rebuild_and_gets_nothing() {
        let set = eject(&set_of(&[1, 1]), 0).expect("it was admitted");
        let again = EndpointSet::build(&servers(&[1, 1, 1]), Some(&set), Watch::Unchecked);
        let passive: Vec<_> = again.members().iter().map(|member| member.passive).collect();
        assert_eq!(passive, [Passive::Ejected, Passive::Admitted, Passive::Admitted]);
        assert_eq!(again.available(), 2);
    }

    #[test]
    fn what_is_ejected_is_used_when_nothing_else_is_left() {
        let set = eject(&set_of(&[1, 1]), 0).expect("it was admitted");
        let set = down(&set, 1);
        let available: Vec<_> = set.members().iter().map(Member::is_available).collect();
        assert_eq!(available, [true, false]);
    }

    #[test]
    fn below_the_panic_threshold_all_are_used() {
        let care = Care { panic_percent: 50, ..Care::from(Watch::Checked) };
        let set = EndpointSet::build(&servers(&[1, 1, 1, 0]), None, care);
        let set = down(&set, 0);
        assert_eq!((set.available(), set.panics()), (2, false));
        let set = down(&set, 1);
        assert_eq!((set.available(), set.panics()), (3, true));
    }

    #[test]
    fn a_new_endpoint_beside_others_starts_slowly_and_so_does_one_that_comes_up_again() {
        let care = Care { first_warmth: 10, ..Care::from(Watch::Checked) };
        let first = EndpointSet::build(&servers(&[1, 1]), None, care);
        assert!(first.members().iter().all(|member| member.weight == 1), "all begin together");
        let second = EndpointSet::build(&servers(&[1, 1, 2]), Some(&first), care);
        let weights =
            |set: &EndpointSet| set.members().iter().map(|member| member.weight).collect::<Vec<_>>();
        assert_eq!(weights(&second), [100, 100, 20]);
        let id = second.members()[2].endpoint.id();
        let warm = second.with_warmth(id, WARM).expect("it was cold");
        assert_eq!(weights(&warm), [1, 1, 2]);
        let down = down(&warm, 0);
        let up = down.checked(down.members()[0].endpoint.id(), CheckResult::Pass, Thresholds::default());
        assert_eq!(weights(&up.expect("it was down")), [10, 100, 200]);
    }

    #[test]
    fn a_checked_endpoint_may_begin_down() {
        let care = Care { initial: Status::Down, ..Care::from(Watch::Checked) };
        assert_eq!(EndpointSet::build(&servers(&[1]), None, care).available(), 0);
    }
}
