//! Who asked to be left alone, and until when, as this replica was told.
//!
//! What is decided by buckets of another quota, by a share of them or by a Redis that was not told yet asks here too, so
//! that a pause is kept whatever becomes of the buckets. Bounded; never: the clock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::key::{KeyBytes, LimitKey};
use super::quota::Nanos;

/// Pauses known at a time; as many servers of one service as a pace tells apart.
const MOST: usize = 1_024;

/// One of them, for Redis.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pause {
    /// Of whom.
    pub(super) bytes: KeyBytes,
    /// When it ends.
    pub(super) until: Nanos,
}

#[derive(Debug)]
struct Known {
    key: LimitKey,
    pause: Pause,
    /// When a bucket that was empty until then is full again, and nothing is left to be remembered.
    forgotten: Nanos,
    /// Redis has heard of it, or is being told.
    told: bool,
}

/// The pauses of one pace; a reload passes them on by its name.
#[derive(Debug, Default)]
pub struct Pauses {
    /// How often one was asked for.
    asked: AtomicU64,
    /// 429 without a time, one after the other.
    strikes: AtomicU32,
    /// When the last of those that are known ends.
    last: AtomicU64,
    /// When the last of them is forgotten.
    latest: AtomicU64,
    known: Mutex<Vec<Known>>,
}

impl Pauses {
    /// How often a pause was asked for. Who read another number before does not know of one of them.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Acquire)
    }

    /// One more complaint that does not say how long; gives those in a row before it.
    pub(super) fn strike(&self) -> u32 {
        self.strikes.fetch_add(1, Ordering::Relaxed)
    }

    /// An answer without complaint ends the row.
    pub(super) fn forgive(&self) {
        if self.strikes.load(Ordering::Relaxed) > 0 {
            self.strikes.store(0, Ordering::Relaxed);
        }
    }

    /// Keeps a pause, unless a longer one is known. `forgotten` is when a bucket that is empty until `until` is full.
    pub(super) fn note(&self, now: Nanos, bytes: KeyBytes, until: Nanos, forgotten: Nanos) {
        let key = LimitKey::of_bytes(&bytes);
        {
            let mut known = self.known.lock();
            known.retain(|known| known.forgotten > now);
            let new = Known { key, pause: Pause { bytes, until }, forgotten, told: false };
            match known.iter().position(|known| known.key == key) {
                Some(at) if known[at].pause.until < until => known[at] = new,
                Some(_) => {}
                None => {
                    if known.len() >= MOST {
                        let soonest = (0..known.len()).min_by_key(|at| known[*at].pause.until);
                        soonest.map(|at| known.swap_remove(at));
                    }
                    known.push(new);
                }
            }
            self.last.fetch_max(until, Ordering::Release);
            self.latest.fetch_max(forgotten, Ordering::Release);
        }
        self.asked.fetch_add(1, Ordering::Release);
    }

    /// Whether any of them lasts. Cost: a load.
    pub(super) fn any(&self, now: Nanos) -> bool {
        self.last.load(Ordering::Acquire) > now
    }

    /// Until when the bucket of a key is or was empty by the last pause; 0 when there is nothing to be remembered. Cost
    /// without pauses: a load.
    pub(super) fn end(&self, now: Nanos, key: LimitKey) -> Nanos {
        if self.latest.load(Ordering::Acquire) <= now {
            return 0;
        }
        let known = self.known.lock();
        let of_it = known.iter().find(|known| known.key == key && known.forgotten > now);
        of_it.map_or(0, |known| known.pause.until)
    }

    /// Takes those that Redis has not heard of and that last.
    pub(super) fn collect(&self, now: Nanos, most: usize, to: &mut Vec<Pause>) {
        if !self.any(now) {
            return;
        }
        for known in self.known.lock().iter_mut() {
            if to.len() < most && !known.told && known.pause.until > now {
                known.told = true;
                to.push(known.pause.clone());
            }
        }
    }

    /// Redis could not be told of it.
    pub(super) fn not_told(&self, pause: &Pause) {
        let mut known = self.known.lock();
        if let Some(known) = known.iter_mut().find(|known| known.pause == *pause) {
            known.told = false;
        }
    }

    /// Redis may have forgotten, or is another one.
    pub(super) fn tell_again(&self) {
        for known in self.known.lock().iter_mut() {
            known.told = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Part;

    fn server(name: &str) -> KeyBytes {
        KeyBytes::of(&[Part::Bytes(name.as_bytes())])
    }

    fn end(pauses: &Pauses, now: Nanos, name: &str) -> Nanos {
        pauses.end(now, LimitKey::of_bytes(&server(name)))
    }

    fn collect(pauses: &Pauses, now: Nanos) -> Vec<Pause> {
        let mut collected = Vec::new();
        pauses.collect(now, 10, &mut collected);
        collected
    }

    #[test]
    fn the_longest_pause_counts_and_is_remembered_until_its_bucket_would_be_full() {
        let pauses = Pauses::default();
        pauses.note(0, server("a"), 100, 150);
        pauses.note(0, server("a"), 50, 100);
        assert_eq!((end(&pauses, 0, "a"), end(&pauses, 0, "b"), pauses.asked()), (100, 0, 2));
        assert_eq!((end(&pauses, 149, "a"), end(&pauses, 150, "a")), (100, 0));
    }

    #[test]
    fn redis_is_told_of_a_pause_until_it_has_heard_and_only_while_it_lasts() {
        let pauses = Pauses::default();
        pauses.note(0, server("a"), 100, 150);
        let told = collect(&pauses, 10);
        assert_eq!(told, [Pause { bytes: server("a"), until: 100 }]);
        assert_eq!(collect(&pauses, 10), []);
        pauses.not_told(&told[0]);
        assert_eq!(collect(&pauses, 10), told);
        pauses.tell_again();
        assert_eq!(collect(&pauses, 100), [], "it is over");
        // A longer one is told in its stead, whatever becomes of the first.
        pauses.note(20, server("a"), 200, 250);
        pauses.not_told(&told[0]);
        assert_eq!(collect(&pauses, 20), [Pause { bytes: server("a"), until: 200 }]);
    }

    #[test]
    fn ten_thousand_servers_make_it_remember_no_more_than_a_thousand() {
        let pauses = Pauses::default();
        for number in 0..10_000 {
            pauses.note(0, server(&number.to_string()), 1 + number, 1 << 40);
        }
        assert_eq!(pauses.known.lock().len(), MOST);
        assert_eq!(end(&pauses, 0, "9999"), 10_000, "the longest stay");
    }
}
