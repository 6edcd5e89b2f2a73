//! Buckets by key: sharded, bounded, and never a cheap way to a fresh bucket.
//!
//! **What is kept.** A bucket that is full again says nothing and is dropped as new keys arrive. When
//! a shard is at its bound and all its buckets are in debt, the one that will be full soonest makes
//! room, and the newcomer **takes over its debt**, less one request. So
//! - a newcomer's first request passes, as it would in a store without a bound;
//! - pushing one's own bucket out takes a whole shard of other keys that are deeper in debt, and then
//!   gains one request, not a burst.
//!
//! Memory: about 110 bytes a key; nothing before the first. Never: the clock.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::num::NonZeroUsize;
use std::sync::LazyLock;

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::key::{Fingerprint, LimitKey};
use super::quota::{Bucket, Nanos, Quota, Verdict};

/// Keys that a store keeps unless told otherwise; Traefik's number.
pub const DEFAULT_MAX_KEYS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// Buckets looked at to make room in a full shard. More would hold the lock longer; the first is
/// nearly always the right one, because the order is by the time that was true when it was last seen.
const LOOKS_WHEN_FULL: usize = 32;

/// Buckets looked at for each new key otherwise: more than one, so that the dead are dropped faster
/// than they come.
const LOOKS: usize = 2;

/// Keeps a lock and what it guards off its neighbours' cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

/// Four shards a core keep the chance small that two cores want the same one; a power of two.
pub(super) fn shard_count() -> usize {
    static COUNT: LazyLock<usize> = LazyLock::new(|| {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        (4 * cores).next_power_of_two().clamp(8, 256)
    });
    *COUNT
}

/// What a store has decided since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Requests with a token at once.
    pub admitted: u64,
    /// Requests held back for their token.
    pub delayed: u64,
    /// Requests without.
    pub refused: u64,
    /// Buckets pushed out while they were in debt; more than a few mean that `maxKeys` is too small.
    pub evicted: u64,
    /// Keys held now.
    pub keys: u64,
}

/// Buckets by key.
#[derive(Debug)]
pub struct Store {
    shards: Box<[Padded<Mutex<Shard>>]>,
}

#[derive(Debug, Default)]
struct Shard {
    buckets: HashMap<LimitKey, Bucket, Fingerprint>,
    /// Each key once, by the time at which its bucket was going to be full when it was last looked at.
    due: BinaryHeap<Reverse<(Nanos, LimitKey)>>,
    counts: Counts,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self { shards: (0..shard_count()).map(|_| Padded::default()).collect() }
    }

    /// Takes `tokens` from the bucket of `key` if they are there, or nearly.
    ///
    /// `max_keys` bounds all shards together and is rounded up to a multiple of their number; it and
    /// `quota` may differ from call to call, see [`Bucket::take`]. `now` may step back: see there.
    /// Cost: one shard lock, one look-up; no allocation for a known key, nor for a refusal.
    pub fn admit(
        &self,
        key: LimitKey,
        quota: &Quota,
        tokens: u64,
        max_keys: NonZeroUsize,
        now: Nanos,
    ) -> Verdict {
        // The number of shards is a power of two.
        let mut shard = self.shards[key.high() as usize & (self.shards.len() - 1)].0.lock();
        let verdict = match shard.buckets.get_mut(&key) {
            Some(bucket) => bucket.take(quota, tokens, now),
            None => shard.first(key, quota, tokens, max_keys.get().div_ceil(self.shards.len()), now),
        };
        match verdict {
            Verdict::Admit => shard.counts.admitted += 1,
            Verdict::AdmitAfter(_) => shard.counts.delayed += 1,
            Verdict::Refuse { .. } => shard.counts.refused += 1,
        }
        verdict
    }

    /// What was decided so far. Cost: one lock a shard.
    pub fn counts(&self) -> Counts {
        self.shards.iter().fold(Counts::default(), |sum, shard| {
            let shard = shard.0.lock();
            Counts {
                admitted: sum.admitted + shard.counts.admitted,
                delayed: sum.delayed + shard.counts.delayed,
                refused: sum.refused + shard.counts.refused,
                evicted: sum.evicted + shard.counts.evicted,
                keys: sum.keys + shard.buckets.len() as u64,
            }
        })
    }
}

impl Shard {
    /// The first request of a key that is not held.
    fn first(&mut self, key: LimitKey, quota: &Quota, tokens: u64, bound: usize, now: Nanos) -> Verdict {
        if tokens > quota.burst() {
            return Verdict::Refuse { retry_after: None };
        }
        let mut bucket = match self.make_room(quota, bound, now) {
            Some(evicted) => Bucket::inherit(quota, &evicted, tokens, now),
            None => Bucket::full(quota, now),
        };
        let verdict = bucket.take(quota, tokens, now);
        self.due.push(Reverse((bucket.full_at(quota), key)));
        self.buckets.insert(key, bucket);
        verdict
    }

    /// Drops a few buckets that are full again; if the shard is still at its bound, pushes one out
    /// and returns it.
    fn make_room(&mut self, quota: &Quota, bound: usize, now: Nanos) -> Option<Bucket> {
        let mut live: SmallVec<[(Nanos, LimitKey); LOOKS_WHEN_FULL]> = SmallVec::new();
        let looks = if self.buckets.len() >= bound { LOOKS_WHEN_FULL } else { LOOKS };
        for _ in 0..looks {
            let at_bound = self.buckets.len() >= bound;
            let Some(&Reverse((due, key))) = self.due.peek() else { break };
            if due > now && !at_bound {
                break;
            }
            self.due.pop();
            let Entry::Occupied(entry) = self.buckets.entry(key) else { continue };
            let full_at = entry.get().full_at(quota);
            if full_at <= now {
                entry.remove();
                continue;
            }
            live.push((full_at, key));
            if self.buckets.len() == bound && full_at <= due {
                // Every other was due later than this one, and none is due earlier than it was.
                break;
            }
        }
        let mut evicted = None;
        // Two a time while a lowered bound is exceeded, so that it is reached.
        for _ in 0..2 {
            if self.buckets.len() < bound {
                break;
            }
            let Some(soonest) = (0..live.len()).min_by_key(|index| live[*index]) else { break };
            let (_, key) = live.swap_remove(soonest);
            evicted = self.buckets.remove(&key).or(evicted);
            self.counts.evicted += 1;
        }
        self.due.extend(live.into_iter().map(Reverse));
        evicted
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::limit::Part;

    const SECOND: Nanos = 1_000_000_000;

    fn quota(average: u64, burst: u64) -> Quota {
        let not_zero = |number| NonZeroU64::new(number).expect("not zero");
        Quota::new(not_zero(average), Duration::from_secs(1), not_zero(burst)).without_delay()
    }

    fn key(number: usize) -> LimitKey {
        LimitKey::of(&[Part::Bytes(&number.to_le_bytes())])
    }

    fn keys(number: usize) -> NonZeroUsize {
        NonZeroUsize::new(number).expect("not zero")
    }

    fn admits(store: &Store, key: LimitKey, quota: &Quota, max_keys: usize, now: Nanos) -> bool {
        store.admit(key, quota, 1, keys(max_keys), now) == Verdict::Admit
    }

    #[test]
    fn keys_have_their_own_buckets() {
        let (store, quota) = (Store::new(), quota(1, 2));
        for number in 0..100 {
            assert!(admits(&store, key(number), &quota, 1_000, 0));
            assert!(admits(&store, key(number), &quota, 1_000, 0));
            assert!(!admits(&store, key(number), &quota, 1_000, 0));
        }
        let counts = store.counts();
        assert_eq!((counts.admitted, counts.refused, counts.keys), (200, 100, 100));
    }

    #[test]
    fn a_million_keys_stay_within_the_bound_and_each_first_request_passes() {
        let (store, quota) = (Store::new(), quota(1, 2));
        let most = 1_024_usize.next_multiple_of(shard_count());
        for number in 0..1_000_000 {
            assert!(admits(&store, key(number), &quota, 1_024, number as u64), "{number}");
        }
        assert!(store.counts().keys <= most as u64, "{:?}", store.counts());
    }

    #[test]
    fn a_client_cannot_wash_its_debt_away_with_new_keys() {
        let (store, quota) = (Store::new(), quota(1, 5));
        let culprit = key(usize::MAX);
        while admits(&store, culprit, &quota, 1_024, 0) {}
        for number in 0..3_000 {
            admits(&store, key(number), &quota, 1_024, 0);
        }
        assert!(store.counts().evicted > 1_900);
        assert!(!admits(&store, culprit, &quota, 1_024, 0));
    }

    #[test]
    fn whoever_was_pushed_out_by_deeper_debts_gains_one_request_and_no_burst() {
        let (store, quota) = (Store::new(), quota(1, 5));
        let culprit = key(usize::MAX);
        while admits(&store, culprit, &quota, 1_024, 0) {}
        // Later and just as deep in debt, so theirs is paid later: the culprit goes first.
        for number in 0..20_000 {
            while admits(&store, key(number), &quota, 1_024, 1) {}
        }
        let again = (0..10).filter(|_| admits(&store, culprit, &quota, 1_024, 1)).count();
        assert_eq!(again, 1);
    }

    #[test]
    fn buckets_that_are_full_again_make_room_without_being_missed() {
        let (store, quota) = (Store::new(), quota(1, 5));
        for number in 0..1_000 {
            admits(&store, key(number), &quota, 4_096, 0);
        }
        for number in 1_000..2_000 {
            admits(&store, key(number), &quota, 4_096, 2 * SECOND);
        }
        let counts = store.counts();
        assert_eq!(counts.evicted, 0);
        assert!((1_000..1_100).contains(&counts.keys), "{counts:?}");
    }

    #[test]
    fn a_lowered_bound_is_reached_by_and_by() {
        let (store, quota) = (Store::new(), quota(1, 5));
        for number in 0..4_096 {
            admits(&store, key(number), &quota, 8_192, 0);
        }
        for number in 4_096..12_000 {
            admits(&store, key(number), &quota, 256, 0);
        }
        assert!(
            store.counts().keys <= 256_usize.next_multiple_of(shard_count()) as u64,
            "{:?}",
            store.counts()
        );
    }

    #[test]
    fn a_request_that_never_fits_leaves_no_bucket() {
        let (store, quota) = (Store::new(), quota(1, 5));
        assert_eq!(store.admit(key(1), &quota, 6, keys(10), 0), Verdict::Refuse { retry_after: None });
        assert_eq!(store.counts().keys, 0);
    }

    #[test]
    fn threads_together_get_the_burst_and_what_time_brings() {
        const REQUESTS: u64 = 50_000;
        let (store, quota) = (Store::new(), quota(1_000_000, 100));
        let (clock, admitted) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..REQUESTS {
                        // A token takes 1,000 ns: ten times as many ask as may pass.
                        let now = clock.fetch_add(100, Ordering::Relaxed);
                        if admits(&store, key(7), &quota, 1_024, now) {
                            admitted.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let (admitted, time) = (admitted.into_inner(), clock.into_inner());
        let most = 100 + time / 1_000;
        assert!(admitted <= most, "{admitted} of at most {most}");
        // Clocks that were read early and used late may cost a token here and there, not more.
        assert!(admitted + 4 >= most - 1, "{admitted} of {most}: somebody below the limit was refused");
        let counts = store.counts();
        assert_eq!((counts.admitted, counts.admitted + counts.refused), (admitted, 4 * REQUESTS));
    }
}
