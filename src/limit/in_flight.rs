//! How many requests of a key are in flight, with a guard for each.
//!
//! Bounded by what is in flight: a key is forgotten with its last guard.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use parking_lot::Mutex;

use super::key::{Fingerprint, LimitKey};
use super::local::{Padded, shard_count};

type Shard = Padded<Mutex<HashMap<LimitKey, u64, Fingerprint>>>;

/// Counts by key. One lock of a shard to enter and one to leave.
#[derive(Debug)]
pub struct InFlight {
    shards: Box<[Shard]>,
}

impl Default for InFlight {
    fn default() -> Self {
        Self::new()
    }
}

impl InFlight {
    /// Nothing in flight.
    pub fn new() -> Self {
        Self { shards: (0..shard_count()).map(|_| Padded(Mutex::default())).collect() }
    }

    /// Enters if fewer than `amount` of this key are in flight. The guard leaves when dropped.
    pub fn enter(self: &Arc<Self>, key: LimitKey, amount: u64) -> Option<InFlightGuard> {
        let mut counts = self.shard(key).lock();
        match counts.entry(key) {
            Entry::Occupied(count) if *count.get() >= amount => return None,
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(_) if amount == 0 => return None,
            Entry::Vacant(place) => {
                place.insert(1);
            }
        }
        drop(counts);
        Some(InFlightGuard { counts: Arc::clone(self), key })
    }

    /// How many of this key are in flight now.
    pub fn count(&self, key: LimitKey) -> u64 {
        self.shard(key).lock().get(&key).copied().unwrap_or(0)
    }

    /// How many keys have something in flight.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().len()).sum()
    }

    fn leave(&self, key: LimitKey) {
        if let Entry::Occupied(mut count) = self.shard(key).lock().entry(key) {
            match count.get().checked_sub(1) {
                Some(rest) if rest > 0 => *count.get_mut() = rest,
                Some(_) | None => {
                    count.remove();
                }
            }
        }
    }

    fn shard(&self, key: LimitKey) -> &Mutex<HashMap<LimitKey, u64, Fingerprint>> {
        // The count is a power of two.
        // The table takes the low and the high bits.
        &self.shards[(key.bits() >> 24) as usize & (self.shards.len() - 1)].0
    }
}

/// One request in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlightGuard {
    counts: Arc<InFlight>,
    key: LimitKey,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.counts.leave(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Part;

    #[test]
    fn as_many_enter_as_the_amount_and_each_that_leaves_lets_one_in() {
        let counts = Arc::new(InFlight::new());
        let key = LimitKey::of(&[Part::Bytes(b"a")]);
        let first = counts.enter(key, 2).expect("the first of two");
        let _second = counts.enter(key, 2).expect("the second of two");
        assert!(counts.enter(key, 2).is_none());
        assert!(counts.enter(LimitKey::of(&[Part::Bytes(b"b")]), 2).is_some(), "another key");
        drop(first);
        assert!(counts.enter(key, 2).is_some());
    }

    #[test]
    fn a_key_with_nothing_in_flight_is_forgotten() {
        let counts = Arc::new(InFlight::new());
        for index in 0..1_000 {
            drop(counts.enter(LimitKey::of(&[Part::Bytes(index.to_string().as_bytes())]), 1));
        }
        assert_eq!(counts.keys(), 0);
    }

    #[test]
    fn threads_never_exceed_the_amount_together() {
        use std::sync::atomic::{AtomicU64, Ordering};

        const AMOUNT: u64 = 3;
        let counts = Arc::new(InFlight::new());
        let (inside, most) = (AtomicU64::new(0), AtomicU64::new(0));
        let key = LimitKey::of(&[Part::Bytes(b"shared")]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if let Some(guard) = counts.enter(key, AMOUNT) {
                            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            std::hint::spin_loop();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(guard);
                        }
                    }
                });
            }
        });
        let most = most.into_inner();
        assert!((1..=AMOUNT).contains(&most), "{most} at once");
        assert_eq!(counts.count(key), 0);
    }
}
