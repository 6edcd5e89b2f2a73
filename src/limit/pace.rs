//! The pace at which requests go out to a service or to one of its endpoints.
//!
//! A bucket whose tokens may be taken in advance is a queue: each request is told when its turn is, in the
//! order in which they came, and nobody waits longer than the bound. A request that goes away leaves its turn
//! unused, so that the pace is never exceeded. Whoever is asked too much says so (429, `Retry-After`), and
//! the bucket stays empty until then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::decision::{Decision, Limit};
use super::key::{LimitKey, Part};
use super::local::{Bound, LocalLimit, Store};
use super::quota::Nanos;

/// First pause after a 429 that does not say how long; each that follows while it lasts doubles it.
const FIRST_PAUSE: Nanos = 1_000_000_000;

/// Doublings of it.
const MAX_DOUBLINGS: u32 = 5;

/// Whose pace it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PaceScope {
    /// All endpoints together.
    Service,
    /// Each on its own.
    Endpoint,
}

/// How requests go out.
#[derive(Debug)]
pub struct Pace {
    local: LocalLimit,
    scope: PaceScope,
    /// The longest that an upstream may ask to be left alone; 0: it is not obeyed.
    longest_pause: Nanos,
    /// How often somebody asked for a pause, so that those who have a turn already look again.
    pauses: AtomicU64,
    /// 429 without a time, one after the other.
    strikes: AtomicU32,
}

/// What becomes of a request that is to go out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// Now.
    Now,
    /// After so long, if nobody asked for a pause since `pauses`.
    After {
        /// Until then.
        wait: Nanos,
        /// See [`Pace::pauses`].
        pauses: u64,
    },
    /// Not within the bound.
    Refused {
        /// Until there would be a turn.
        retry_after: Option<Duration>,
    },
}

impl Pace {
    /// A pace by the first window of `limit`, whose delay is the longest wait.
    ///
    /// `None` when the store is used under too many quotas at once.
    pub fn new(
        store: Arc<Store>,
        limit: Limit,
        bound: Bound,
        scope: PaceScope,
        longest_pause: Duration,
        now: Nanos,
    ) -> Option<Self> {
        Some(Self {
            local: LocalLimit::new(store, Arc::new(limit), bound, now)?,
            scope,
            longest_pause: u64::try_from(longest_pause.as_nanos()).unwrap_or(u64::MAX),
            pauses: AtomicU64::new(0),
            strikes: AtomicU32::new(0),
        })
    }

    /// Whose pace it is.
    pub fn scope(&self) -> PaceScope {
        self.scope
    }

    /// Its limit.
    pub fn limit(&self) -> &Limit {
        self.local.limit()
    }

    /// The key of all endpoints together.
    pub fn service_key() -> LimitKey {
        LimitKey::of(&[])
    }

    /// The key of one endpoint.
    pub fn endpoint_key(url: &str) -> LimitKey {
        LimitKey::of(&[Part::Bytes(url.as_bytes())])
    }

    /// Asks for a turn.
    pub fn turn(&self, now: Nanos, key: LimitKey) -> Turn {
        let pauses = self.pauses();
        match self.local.decide(now, key, 1) {
            Decision { allowed: true, wait: 0, .. } => Turn::Now,
            Decision { allowed: true, wait, .. } => Turn::After { wait, pauses },
            Decision { wait, .. } => {
                let retry_after = (wait != Decision::NEVER).then(|| Duration::from_nanos(wait));
                Turn::Refused { retry_after }
            }
        }
    }

    /// How often a pause was asked for.
    pub fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Acquire)
    }

    /// An answer has come: 429, or any other with `Retry-After`, asks for a pause. Gives how long it is.
    pub fn learn(
        &self,
        now: Nanos,
        key: LimitKey,
        too_many: bool,
        retry_after: Option<Duration>,
    ) -> Option<Nanos> {
        if !too_many && retry_after.is_none() {
            if self.strikes.load(Ordering::Relaxed) > 0 {
                self.strikes.store(0, Ordering::Relaxed);
            }
            return None;
        }
        if self.longest_pause == 0 {
            return None;
        }
        let asked = match retry_after {
            Some(time) => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            None => {
                let strikes = self.strikes.fetch_add(1, Ordering::Relaxed).min(MAX_DOUBLINGS);
                FIRST_PAUSE << strikes
            }
        };
        let pause = asked.min(self.longest_pause);
        self.local.drain(now, key, now.saturating_add(pause));
        self.pauses.fetch_add(1, Ordering::Release);
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU64, NonZeroUsize};

    use super::*;
    use crate::limit::{Quota, Window};

    const MILLI: Nanos = 1_000_000;

    /// Ten a second, one at once, and half a second of waiting.
    fn pace() -> Pace {
        let quota = Quota::new(NonZeroU64::new(10).expect("not 0"), Duration::from_secs(1), NonZeroU64::MIN);
        let limit =
            Limit::new([Window { name: "out".into(), quota: quota.queueing(Duration::from_millis(500), 3) }]);
        let bound = Bound::buckets(NonZeroUsize::MIN);
        Pace::new(Arc::new(Store::new(bound)), limit, bound, PaceScope::Service, Duration::from_secs(10), 0)
            .expect("one quota")
    }

    fn waits(pace: &Pace, now: Nanos, count: usize) -> Vec<Option<Nanos>> {
        let key = Pace::service_key();
        (0..count)
            .map(|_| match pace.turn(now, key) {
                Turn::Now => Some(0),
                Turn::After { wait, .. } => Some(wait / MILLI),
                Turn::Refused { .. } => None,
            })
            .collect()
    }

    #[test]
    fn turns_come_in_order_and_as_many_wait_as_may() {
        let pace = pace();
        assert_eq!(waits(&pace, 0, 5), [Some(0), Some(100), Some(200), Some(300), None]);
        assert_eq!(waits(&pace, 100 * MILLI, 2), [Some(300), None], "one has gone");
        assert_eq!(waits(&pace, 1_000 * MILLI, 1), [Some(0)]);
    }

    #[test]
    fn a_pause_that_is_asked_for_is_kept_and_ends_without_a_burst() {
        let pace = pace();
        let key = Pace::service_key();
        assert_eq!(waits(&pace, 0, 1), [Some(0)]);
        let before = pace.pauses();
        assert_eq!(pace.learn(0, key, true, Some(Duration::from_secs(2))), Some(2_000 * MILLI));
        assert_eq!(pace.pauses(), before + 1, "those who wait look again");
        let refused = Turn::Refused { retry_after: Some(Duration::from_millis(2_100)) };
        assert_eq!(pace.turn(0, key), refused);
        assert_eq!(waits(&pace, 2_100 * MILLI, 2), [Some(0), Some(100)]);
    }

    #[test]
    fn pauses_without_a_time_grow_while_they_are_asked_for_and_have_a_bound() {
        let pace = pace();
        let key = Pace::service_key();
        let asked: Vec<_> =
            (0..6).map(|_| pace.learn(0, key, true, None).map(|pause| pause / MILLI)).collect();
        assert_eq!(asked, [1_000, 2_000, 4_000, 8_000, 10_000, 10_000].map(Some));
        assert_eq!(pace.learn(0, key, false, None), None);
        assert_eq!(
            pace.learn(0, key, true, None),
            Some(1_000 * MILLI),
            "an answer without complaint ends it"
        );
        assert_eq!(pace.learn(0, key, false, Some(Duration::from_secs(3_600))), Some(10_000 * MILLI));
    }

    #[test]
    fn endpoints_have_paces_of_their_own() {
        let pace = pace();
        let (a, b) = (Pace::endpoint_key("http://a"), Pace::endpoint_key("http://b"));
        assert_eq!((pace.turn(0, a), pace.turn(0, b)), (Turn::Now, Turn::Now));
        assert!(matches!(pace.turn(0, a), Turn::After { .. }));
    }
}
