//! Where the newest of something is found: many readers, writers one at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::endpoint::EndpointId;
use crate::endpoint::health::{CheckResult, Status, Thresholds};
use crate::endpoint::set::{EndpointSet, ServerSpec, Watch};

/// A value that is replaced as a whole, with a number that tells that it was.
///
/// A reader keeps the [`Arc`] (see [`Cached`]) and asks for the value again only when the generation
/// has moved: one atomic load a look. Readers never wait for writers.
#[derive(Debug)]
pub struct Live<T> {
    current: ArcSwap<T>,
    generation: AtomicU64,
    writer: Mutex<()>,
    changed: Notify,
}

impl<T> Live<T> {
    /// Begins with `value`, at generation 1.
    pub fn new(value: T) -> Self {
        Self {
            current: ArcSwap::from_pointee(value),
            generation: AtomicU64::new(1),
            writer: Mutex::new(()),
            changed: Notify::new(),
        }
    }

    /// The newest value. On the data path ask [`generation`](Self::generation) first.
    pub fn load(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Grows with every value that is stored. Costs one atomic load.
    ///
    /// Read it before [`load`](Self::load): then what was loaded is at least as new as the number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes the next value from the newest and stores it, unless `next` gives `None`.
    ///
    /// Writers wait for each other, so no change is lost; `next` must not write to the same value.
    /// Returns what was stored.
    pub fn update(&self, next: impl FnOnce(&Arc<T>) -> Option<T>) -> Option<Arc<T>> {
        let _one_at_a_time = self.writer.lock();
        let value = Arc::new(next(&self.load())?);
        self.current.store(Arc::clone(&value));
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
        Some(value)
    }

    /// Completes after a later [`update`](Self::update) than the call. For tasks of the control plane.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// A reader's copy of a [`Live`] value.
#[derive(Debug)]
pub struct Cached<T> {
    generation: u64,
    value: Arc<T>,
}

impl<T> Cached<T> {
    /// Loads the value.
    pub fn new(live: &Live<T>) -> Self {
        // In this order: a value stored in between is loaded again next time, and never missed.
        let generation = live.generation();
        Self { generation, value: live.load() }
    }

    /// The newest value, loaded again only if it was replaced. `live` must be the one it was made from.
    pub fn get(&mut self, live: &Live<T>) -> &Arc<T> {
        if self.generation != live.generation() {
            *self = Self::new(live);
        }
        &self.value
    }
}

/// The newest [`EndpointSet`] of one service.
#[derive(Debug)]
pub struct LiveEndpoints(Live<EndpointSet>);

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
        Self(Live::new(set))
    }

    /// The value itself: to load, to cache, to wait for.
    pub fn live(&self) -> &Live<EndpointSet> {
        &self.0
    }

    /// The newest set.
    pub fn load(&self) -> Arc<EndpointSet> {
        self.0.load()
    }

    /// Publishes the set of `servers`, carried over from the newest as [`EndpointSet::build`] does.
    ///
    /// No result of a check that comes at the same time is lost. A set that would be the same is not
    /// published. Returns the newest set.
    pub fn rebuild(&self, servers: &[ServerSpec], watch: Watch) -> Arc<EndpointSet> {
        let published = self.0.update(|newest| {
            let set = EndpointSet::build(servers, Some(newest), watch);
            (!set.is_same(newest)).then_some(set)
        });
        published.unwrap_or_else(|| self.load())
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
        let set = self.0.update(|newest| {
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
    use crate::endpoint::set::tests::{servers, set_of};

    #[test]
    fn a_cached_value_is_loaded_again_only_when_it_was_replaced() {
        let live = Live::new(1);
        let mut cached = Cached::new(&live);
        let first = Arc::clone(cached.get(&live));
        assert!(Arc::ptr_eq(&first, cached.get(&live)));
        assert!(live.update(|_| None).is_none());
        assert!(Arc::ptr_eq(&first, cached.get(&live)));
        live.update(|value| Some(**value + 1));
        assert_eq!(**cached.get(&live), 2);
    }

    #[test]
    fn no_update_is_lost_and_no_reader_goes_back_in_time() {
        let live = Live::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        live.update(|value| Some(**value + 1));
                    }
                });
            }
            scope.spawn(|| {
                let mut cached = Cached::new(&live);
                let mut last = 0;
                while last < 8_000 {
                    let value = **cached.get(&live);
                    assert!(value >= last, "{value} after {last}");
                    last = value;
                    std::thread::yield_now();
                }
            });
        });
        assert_eq!(*live.load(), 8_000);
        assert_eq!(live.generation(), 8_001);
    }

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
