//! Where the newest endpoints of a service are found, and how checks and reloads change them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::common::live::Live;
use crate::endpoint::EndpointId;
use crate::endpoint::health::{CheckResult, Status, Thresholds};
use crate::endpoint::outlier::Passive;
use crate::endpoint::set::{Care, EndpointSet, ServerSpec};

/// The newest [`EndpointSet`] of one service.
#[derive(Debug)]
pub struct LiveEndpoints {
    live: Live<EndpointSet>,
    /// Whether some are ejected, for who asks with each request.
    ejected: AtomicBool,
    /// Where names stand for all of their addresses.
    source: Mutex<Option<Box<Source>>>,
}

/// What a set is made of whose names stand for all of their addresses.
#[derive(Debug, Default)]
struct Source {
    servers: Vec<ServerSpec>,
    care: Care,
    /// By name; a name that is not in it has not been looked up yet.
    addresses: BTreeMap<String, Vec<IpAddr>>,
}

impl Source {
    /// The servers with each name replaced by the addresses that are known of it.
    fn expanded(&self) -> Vec<ServerSpec> {
        let mut expanded = Vec::with_capacity(self.servers.len());
        for server in &self.servers {
            let named = server.url.address().is_none();
            match self.addresses.get(server.url.host()).filter(|_| named) {
                Some(addresses) => expanded.extend(
                    addresses.iter().map(|ip| ServerSpec { url: server.url.at(*ip), ..server.clone() }),
                ),
                None => expanded.push(server.clone()),
            }
        }
        expanded
    }
}

/// What a check's result changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StatusChange {
    /// What the endpoint now is.
    pub status: Status,
    /// How many endpoints of the service may be picked now.
    pub available: usize,
}

impl LiveEndpoints {
    /// Begins with `set`.
    pub fn new(set: EndpointSet) -> Self {
        Self { ejected: AtomicBool::new(set.ejected() > 0), live: Live::new(set), source: Mutex::default() }
    }

    /// The value itself: to load, to cache, to wait for.
    pub fn live(&self) -> &Live<EndpointSet> {
        &self.live
    }

    /// The newest set.
    pub fn load(&self) -> Arc<EndpointSet> {
        self.live.load()
    }

    /// Whether an endpoint is ejected. Costs one load of what seldom changes.
    pub fn has_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    fn update(
        &self,
        next: impl FnOnce(&Arc<EndpointSet>) -> Option<EndpointSet>,
    ) -> Option<Arc<EndpointSet>> {
        self.live.update(|newest| {
            let set = next(newest)?;
            self.ejected.store(set.ejected() > 0, Ordering::Relaxed);
            Some(set)
        })
    }

    /// Publishes the set of `servers`, carried over from the newest as [`EndpointSet::build`] does.
    ///
    /// Where names are [discovered](Self::discover), those that are known stand for their addresses. No result of a
    /// check that comes at the same time is lost. A set that would be the same is not published. Returns the newest set.
    pub fn rebuild(&self, servers: &[ServerSpec], care: impl Into<Care>) -> Arc<EndpointSet> {
        let care = care.into();
        match &mut *self.source.lock() {
            None => self.publish(servers, care),
            Some(source) => {
                source.servers = servers.to_vec();
                source.care = care;
                let hosts: BTreeSet<&str> = servers.iter().map(|server| server.url.host()).collect();
                source.addresses.retain(|host, _| hosts.contains(host.as_str()));
                self.publish(&source.expanded(), care)
            }
        }
    }

    /// Says whether names among the servers stand for all of their addresses. Takes effect with the next
    /// [`rebuild`](Self::rebuild); what is known of names is kept while it is on.
    pub fn discover(&self, on: bool) {
        let mut source = self.source.lock();
        if on {
            source.get_or_insert_default();
        } else {
            *source = None;
        }
    }

    /// Whether names among the servers stand for all of their addresses.
    pub fn discovers(&self) -> bool {
        self.source.lock().is_some()
    }

    /// A name has been looked up. Its servers are where it says from here on, if there is any address. Gives how many
    /// addresses came and how many went; `None` when none did, or names are not discovered.
    pub fn found(&self, host: &str, mut addresses: Vec<IpAddr>) -> Option<(usize, usize)> {
        addresses.sort_unstable();
        addresses.dedup();
        let mut source = self.source.lock();
        let source = source.as_mut()?;
        if addresses.is_empty() {
            return None;
        }
        let before = source.addresses.insert(host.to_owned(), addresses).unwrap_or_default();
        let now = &source.addresses[host];
        let came = now.iter().filter(|ip| !before.contains(ip)).count();
        let went = before.iter().filter(|ip| !now.contains(ip)).count();
        if came + went == 0 {
            return None;
        }
        self.publish(&source.expanded(), source.care);
        Some((came, went))
    }

    fn publish(&self, servers: &[ServerSpec], care: Care) -> Arc<EndpointSet> {
        let published = self.update(|newest| {
            let set = EndpointSet::build(servers, Some(newest), care);
            (!set.is_same(newest)).then_some(set)
        });
        published.unwrap_or_else(|| self.load())
    }

    /// Ejects, tries or admits an endpoint. Publishes a new set if that changed anything, and gives it; see
    /// [`EndpointSet::with_passive`].
    pub fn set_passive(
        &self,
        id: EndpointId,
        passive: Passive,
        max_percent: u32,
    ) -> Option<Arc<EndpointSet>> {
        self.update(|newest| newest.with_passive(id, passive, max_percent))
    }

    /// Gives an endpoint another part of its weight, in percent.
    pub fn set_warmth(&self, id: EndpointId, percent: u8) {
        self.update(|newest| newest.with_warmth(id, percent));
    }

    /// Takes one result of a check into account.
    ///
    /// Publishes a new set if anything changed, and says so if the status did. An endpoint that is not in
    /// the newest set is left alone.
    pub fn report(
        &self,
        id: EndpointId,
        result: CheckResult,
        thresholds: Thresholds,
    ) -> Option<StatusChange> {
        let mut before = Status::Up;
        let set = self.update(|newest| {
            before = newest.member(id)?.health.status();
            newest.checked(id, result, thresholds)
        })?;
        let status = set.member(id)?.health.status();
        (status != before).then(|| StatusChange { status, available: set.available() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::set::Watch;
    use crate::endpoint::set::tests::{servers, set_of};
    use crate::endpoint::url::ServerUrl;

    #[test]
    fn a_result_that_races_a_rebuild_is_never_lost() {
        for _ in 0..200 {
            let endpoints = LiveEndpoints::new(set_of(&[1, 1]));
            let id = endpoints.load().members()[0].endpoint.id();
            std::thread::scope(|scope| {
                scope.spawn(|| endpoints.report(id, CheckResult::Fail, Thresholds::default()));
                scope.spawn(|| endpoints.rebuild(&servers(&[1, 1, 1]), Watch::Checked));
            });
            let set = endpoints.load();
            assert_eq!(set.members().len(), 3);
            assert_eq!(set.member(id).map(|member| member.health.status()), Some(Status::Down));
        }
    }

    #[test]
    fn names_stand_for_their_addresses_and_what_stays_keeps_what_is_known_of_it() {
        let spec = |url: &str| ServerSpec { url: ServerUrl::parse(url).unwrap(), ..servers(&[1])[0].clone() };
        let specs = [spec("http://pods.test:81"), spec("http://10.9.9.9:80")];
        let ip = |last: u8| IpAddr::from([10, 0, 0, last]);
        let urls = |endpoints: &LiveEndpoints| -> Vec<String> {
            let set = endpoints.load();
            set.members().iter().map(|member| member.endpoint.url().as_str().to_owned()).collect()
        };
        let endpoints = LiveEndpoints::new(EndpointSet::build(&specs, None, Watch::Checked));
        assert_eq!(endpoints.found("pods.test", vec![ip(1)]), None, "nobody wants to know");
        endpoints.discover(true);
        endpoints.rebuild(&specs, Watch::Checked);
        assert_eq!(urls(&endpoints), ["http://pods.test:81", "http://10.9.9.9:80"], "not looked up yet");

        assert_eq!(endpoints.found("pods.test", vec![ip(2), ip(1), ip(2)]), Some((2, 0)));
        assert_eq!(urls(&endpoints), ["http://10.0.0.1:81", "http://10.0.0.2:81", "http://10.9.9.9:80"]);
        let second = endpoints.load().members()[1].endpoint.id();
        endpoints.report(second, CheckResult::Fail, Thresholds::default());
        assert_eq!(endpoints.found("pods.test", vec![ip(1), ip(2)]), None);
        assert_eq!(endpoints.found("pods.test", Vec::new()), None, "what is not there is no address");
        assert_eq!(endpoints.found("pods.test", vec![ip(3), ip(2)]), Some((1, 1)));
        let set = endpoints.load();
        assert_eq!(urls(&endpoints), ["http://10.0.0.2:81", "http://10.0.0.3:81", "http://10.9.9.9:80"]);
        assert_eq!(set.member(second).map(|member| member.health.status()), Some(Status::Down));

        endpoints.discover(true);
        endpoints.rebuild(&specs[..1], Watch::Checked);
        assert_eq!(
            urls(&endpoints),
            ["http://10.0.0.2:81", "http://10.0.0.3:81"],
            "a reload forgets nothing"
        );
        endpoints.discover(false);
        endpoints.rebuild(&specs[..1], Watch::Checked);
        assert_eq!(urls(&endpoints), ["http://pods.test:81"]);
    }

    #[test]
    fn a_report_says_what_changed_once() {
        let endpoints = LiveEndpoints::new(set_of(&[1, 1]));
        let id = endpoints.load().members()[1].endpoint.id();
        let report = |result| endpoints.report(id, result, Thresholds::default());
        assert_eq!(report(CheckResult::Pass), None);
        assert_eq!(report(CheckResult::Fail), Some(StatusChange { status: Status::Down, available: 1 }));
        assert_eq!(report(CheckResult::Fail), None);
        assert_eq!(report(CheckResult::Pass), Some(StatusChange { status: Status::Up, available: 2 }));
    }

    #[test]
    fn a_rebuild_that_changes_nothing_publishes_nothing() {
        let endpoints = LiveEndpoints::new(set_of(&[1, 2]));
        let generation = endpoints.live().generation();
        endpoints.rebuild(&servers(&[1, 2]), Watch::Checked);
        assert_eq!(endpoints.live().generation(), generation);
        for (weights, watch) in
            [(&[1, 3][..], Watch::Checked), (&[1, 3], Watch::Unchecked), (&[1], Watch::Checked)]
        {
            let before = endpoints.live().generation();
            endpoints.rebuild(&servers(weights), watch);
            assert_eq!(endpoints.live().generation(), before + 1, "{weights:?}");
        }
    }

    #[test]
    fn a_result_for_an_endpoint_that_left_changes_nothing() {
        let endpoints = LiveEndpoints::new(set_of(&[1, 1]));
        let id = endpoints.load().members()[1].endpoint.id();
        endpoints.rebuild(&servers(&[1]), Watch::Checked);
        let generation = endpoints.live().generation();
        assert_eq!(endpoints.report(id, CheckResult::Fail, Thresholds::default()), None);
        assert_eq!(endpoints.live().generation(), generation);
    }
}
