//! Where the newest endpoints of a service are found, and how checks and reloads change them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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
        Self { ejected: AtomicBool::new(set.ejected() > 0), live: Live::new(set) }
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
    /// No result of a check that comes at the same time is lost. A set that would be the same is not
    /// published. Returns the newest set.
    pub fn rebuild(&self, servers: &[ServerSpec], care: impl Into<Care>) -> Arc<EndpointSet> {
        let care = care.into();
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
