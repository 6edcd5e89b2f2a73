//! The stores of one snapshot, by name, and how they pass to the next one.
//!
//! A document that is compiled may still be refused, so compiling reads the stores of the running
//! snapshot and shares them, and changes nothing in them.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::in_flight::InFlight;
use super::local::{Bound, Store};
use super::redis::Registry;

/// What a store belongs to: the middleware, and the router when each has its own.
pub type StoreName = Arc<str>;

/// Every store that a snapshot uses.
#[derive(Debug, Default)]
pub struct Stores {
    used: Table,
    offered: Table,
    /// Of the configuration that asks.
    generation: u32,
    /// What limits use of Redis.
    pub redis: Registry,
}

#[derive(Clone, Debug, Default)]
struct Table {
    rate: BTreeMap<StoreName, Arc<Store>>,
    in_flight: BTreeMap<StoreName, Arc<InFlight>>,
    kept: BTreeMap<StoreName, Arc<dyn Any + Send + Sync>>,
}

impl Stores {
    /// No stores, and none to carry over.
    pub fn new() -> Self {
        Self::default()
    }

    /// No stores yet, but those of `previous` are carried over when they are asked for by name.
    #[must_use]
    pub fn after(previous: &Self) -> Self {
        let redis = Registry::after(&previous.redis);
        let generation = previous.generation.wrapping_add(1);
        Self { used: Table::default(), offered: previous.used.clone(), generation, redis }
    }

    /// Lets go of what was not asked for. To be called once everything is compiled, so that a
    /// removed limit frees its memory with the snapshot it belonged to.
    #[must_use]
    pub fn settle(self) -> Self {
        let redis = self.redis.settle();
        Self { used: self.used, offered: Table::default(), generation: self.generation, redis }
    }

    /// The buckets of this name: those in use under it, else the previous snapshot's, else none yet, in a
    /// store with as many shards as suit `bound`.
    pub fn rate(&mut self, name: &str, bound: Bound) -> Arc<Store> {
        let store = pick(&mut self.used.rate, &self.offered.rate, name, || Store::new(bound));
        store.begin_generation(self.generation);
        store
    }

    /// The counts of this name, likewise.
    pub fn in_flight(&mut self, name: &str) -> Arc<InFlight> {
        pick(&mut self.used.in_flight, &self.offered.in_flight, name, InFlight::new)
    }

    /// What another feature keeps under this name: in use, else of the previous snapshot, else made anew. A name
    /// belongs to one type.
    pub fn keep<T: Any + Send + Sync>(&mut self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let known = self.used.kept.get(name).or_else(|| self.offered.kept.get(name));
        let kept = known.and_then(|known| Arc::clone(known).downcast().ok());
        let kept = kept.unwrap_or_else(|| Arc::new(make()));
        self.used.kept.insert(name.into(), Arc::clone(&kept) as Arc<dyn Any + Send + Sync>);
        kept
    }

    /// Everything of one type that is kept, for metrics and the admin API.
    pub fn kept<T: Any + Send + Sync>(&self) -> impl Iterator<Item = Arc<T>> {
        self.used.kept.values().filter_map(|kept| Arc::clone(kept).downcast().ok())
    }

    /// Every rate limit's store, for metrics and the admin API.
    pub fn rates(&self) -> impl Iterator<Item = (&str, &Arc<Store>)> {
        self.used.rate.iter().map(|(name, store)| (&**name, store))
    }
}

fn pick<T>(
    used: &mut BTreeMap<StoreName, Arc<T>>,
    offered: &BTreeMap<StoreName, Arc<T>>,
    name: &str,
    new: impl FnOnce() -> T,
) -> Arc<T> {
    if let Some(found) = used.get(name) {
        return Arc::clone(found);
    }
    let store = offered.get(name).cloned().unwrap_or_else(|| Arc::new(new()));
    used.insert(name.into(), Arc::clone(&store));
    store
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::DEFAULT_MAX_KEYS;

    fn bound() -> Bound {
        Bound::buckets(DEFAULT_MAX_KEYS)
    }

    #[test]
    fn a_store_passes_to_the_next_snapshot_by_its_name() {
        let mut first = Stores::new();
        let kept = first.rate("rateLimit/a/r", bound());
        let dropped = first.rate("rateLimit/b/r", bound());
        let flights = first.in_flight("inFlightReq/a/r");

        let mut second = Stores::after(&first);
        assert!(Arc::ptr_eq(&kept, &second.rate("rateLimit/a/r", bound())));
        assert!(Arc::ptr_eq(&flights, &second.in_flight("inFlightReq/a/r")));
        assert!(!Arc::ptr_eq(&kept, &second.rate("rateLimit/new/r", bound())));
        let second = second.settle();
        drop(first);
        assert_eq!(Arc::strong_count(&dropped), 1, "nobody asked for it");
        assert_eq!(second.rates().count(), 2);
    }

    #[test]
    fn what_other_features_keep_passes_on_by_its_name_and_type() {
        let mut first = Stores::new();
        let kept = first.keep("breaker/a", || 7_u32);
        let mut second = Stores::after(&first.settle());
        assert!(Arc::ptr_eq(&kept, &second.keep("breaker/a", || 8_u32)));
        assert_eq!(*second.keep("breaker/b", || 8_u32), 8);
        assert_eq!(second.kept::<u32>().map(|kept| *kept).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(second.kept::<u64>().count(), 0);
    }

    #[test]
    fn a_refused_document_leaves_the_running_stores_alone() {
        let mut running = Stores::new();
        let store = running.rate("rateLimit/a/r", bound());
        let mut refused = Stores::after(&running);
        refused.rate("rateLimit/a/r", bound());
        refused.rate("rateLimit/b/r", bound());
        drop(refused);
        assert_eq!(running.rates().count(), 1);
        assert_eq!(Arc::strong_count(&store), 2);
    }
}
