//! A limit as one replica has it: what it knows of clients, and how Redis counts them.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::super::decision::{Limit, Window};
use super::super::pauses::Pauses;
use super::super::quota::Quota;
use super::script::Shape;
use super::views::{Limits, Views};

/// A limit as this replica has it; its task tells Redis of it.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) views: Arc<Views>,
    pub(super) shape: Arc<Shape>,
    /// What its upstreams asked for; those of a limit on clients ask for nothing.
    pub(super) pauses: Arc<Pauses>,
    pub(super) whole: Arc<Limit>,
    share: Limit,
    room: NonZeroUsize,
}

impl Replica {
    /// One of so many replicas; it knows no more than `room` clients.
    pub(super) fn new(
        whole: Arc<Limit>,
        shape: Shape,
        (views, pauses): (Arc<Views>, Arc<Pauses>),
        replicas: NonZeroU64,
        room: NonZeroUsize,
    ) -> Self {
        let share = share(&whole, replicas);
        Self { views, shape: Arc::new(shape), pauses, whole, share, room }
    }

    /// The limit as a whole and as this replica's share of it.
    pub(super) fn limits(&self) -> Limits<'_> {
        Limits { whole: &self.whole, share: &self.share, room: self.room }
    }

    /// Redis's numbers in the units of the quotas.
    pub(super) fn units(&self, spent: &[u64]) -> SmallVec<[u128; 1]> {
        let windows = self.whole.windows().iter().zip(self.shape.terms());
        windows.zip(spent).map(|((window, terms), spent)| terms.units(&window.quota, *spent)).collect()
    }
}

/// What one of so many replicas may allow by itself: the rate divided exactly, and the burst rounded down, but
/// at least one token.
fn share(limit: &Limit, replicas: NonZeroU64) -> Limit {
    Limit::new(limit.windows().iter().map(|window| {
        let quota = &window.quota;
        let period = quota.period().saturating_mul(replicas.get());
        let burst = NonZeroU64::new(quota.burst() / replicas.get()).unwrap_or(NonZeroU64::MIN);
        let average = NonZeroU64::new(quota.average()).unwrap_or(NonZeroU64::MIN);
        let quota = Quota::new(average, Duration::from_nanos(period), burst)
            .delayed_by(Duration::from_nanos(quota.max_delay()));
        Window { name: Arc::clone(&window.name), quota }
    }))
}
