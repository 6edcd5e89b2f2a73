//! The pace at which requests go out to a service or to one of its endpoints.
//!
//! A bucket whose tokens may be taken in advance is a queue: each request is told when its turn is, in the
//! order in which they came, and nobody waits longer than the bound. A request that goes away leaves its turn
//! unused, so that the pace is never exceeded. Whoever is asked too much says so (429, `Retry-After`), and
//! the bucket stays empty until then. The bucket is in memory, or in a Redis for all replicas together.

use std::sync::Arc;
use std::time::Duration;

use super::decision::{Decision, Limit};
use super::key::{KeyBytes, LimitKey, Part};
use super::local::LocalLimit;
use super::pauses::Pauses;
use super::quota::Nanos;
use super::redis::{Begun, SharedLimit};

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
    /// Where the buckets are instead, when replicas share them.
    shared: Option<Box<SharedLimit>>,
    pauses: Arc<Pauses>,
    scope: PaceScope,
    /// The longest that an upstream may ask to be left alone; 0: it is not obeyed.
    longest_pause: Nanos,
}

/// What becomes of a request that is to go out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turn {
    /// It goes, at its time.
    Granted(Granted),
    /// There is no turn within the bound.
    Refused {
        /// Until there would be one.
        retry_after: Option<Duration>,
    },
}

/// A turn, which counts unless somebody asks for a pause meanwhile.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Granted {
    /// Until then; mostly 0.
    pub wait: Nanos,
    /// See [`Pace::pauses`].
    pub pauses: u64,
    /// Whether `onFailure` gave it, because Redis did not.
    pub fallback: bool,
}

impl Pace {
    /// A pace by the first window of a limit, whose delay is the longest wait. `shared` is the same limit, for
    /// all replicas; `pauses` are those of the same name.
    pub fn new(
        local: LocalLimit,
        shared: Option<SharedLimit>,
        pauses: Arc<Pauses>,
        scope: PaceScope,
        longest_pause: Duration,
    ) -> Self {
        let longest_pause = u64::try_from(longest_pause.as_nanos()).unwrap_or(u64::MAX);
        Self { local, shared: shared.map(Box::new), pauses, scope, longest_pause }
    }

    /// Whose pace it is.
    pub fn scope(&self) -> PaceScope {
        self.scope
    }

    /// Its limit.
    pub fn limit(&self) -> &Limit {
        self.local.limit()
    }

    /// Where its buckets are, when replicas share them.
    pub fn shared(&self) -> Option<&SharedLimit> {
        self.shared.as_deref()
    }

    /// What a request to the endpoint with this url counts as: the same in every replica.
    pub fn key(&self, url: &str) -> KeyBytes {
        match self.scope {
            PaceScope::Service => Self::service_key(),
            PaceScope::Endpoint => KeyBytes::of(&[Part::Bytes(url.as_bytes())]),
        }
    }

    /// The key of all endpoints together.
    pub fn service_key() -> KeyBytes {
        KeyBytes::new()
    }

    /// Asks for a turn. Waits for nothing but Redis, where replicas share the pace, and no longer than its `timeout`.
    pub async fn turn(&self, now: Nanos, key: &KeyBytes) -> Turn {
        let pauses = self.pauses();
        let (decision, fallback) = match &self.shared {
            None => (self.decide(now, LimitKey::of_bytes(key)), false),
            Some(shared) => {
                let settled = match shared.begin(now, key, 1) {
                    Begun::Decided(settled) => settled,
                    Begun::Asked(pending) => shared.settle(pending).await,
                };
                (settled.decision, settled.fallback)
            }
        };
        let wait = decision.wait;
        if decision.allowed {
            return Turn::Granted(Granted { wait, pauses, fallback });
        }
        Turn::Refused { retry_after: (wait != Decision::NEVER).then(|| Duration::from_nanos(wait)) }
    }

    fn decide(&self, now: Nanos, key: LimitKey) -> Decision {
        if self.pauses.any(now) {
            // The buckets may be of another quota than when it was asked for, or were in Redis then.
            let until = self.pauses.end(now, key);
            if until > now {
                self.local.drain(now, key, until);
            }
        }
        self.local.decide(now, key, 1)
    }

    /// How often a pause was asked for, so that those who have a turn already look again.
    pub fn pauses(&self) -> u64 {
        self.pauses.asked()
    }

    /// An answer has come: 429, or any other with `Retry-After`, asks for a pause. Gives how long it is. `key` is
    /// what the request counted as.
    pub fn learn(
        &self,
        now: Nanos,
        key: impl FnOnce() -> KeyBytes,
        too_many: bool,
        retry_after: Option<Duration>,
    ) -> Option<Nanos> {
        if !too_many && retry_after.is_none() {
            self.pauses.forgive();
            return None;
        }
        if self.longest_pause == 0 {
            return None;
        }
        let asked = match retry_after {
            Some(time) => u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            None => FIRST_PAUSE << self.pauses.strike().min(MAX_DOUBLINGS),
        };
        let pause = asked.min(self.longest_pause);
        let (key, until) = (key(), now.saturating_add(pause));
        if self.shared.is_none() {
            self.local.drain(now, LimitKey::of_bytes(&key), until);
        }
        let full_after = self.limit().windows().iter().map(|window| window.quota.full_after()).max();
        self.pauses.note(now, key, until, until.saturating_add(full_after.unwrap_or(0)));
        if let Some(shared) = &self.shared {
            shared.paused();
        }
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU64, NonZeroUsize};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::limit::{Bound, Quota, Store, Window};

    const MILLI: Nanos = 1_000_000;

    /// Ten a second, one at once, and half a second of waiting.
    fn pace() -> Pace {
        pace_of(10, &Arc::new(Store::new(Bound::buckets(NonZeroUsize::MIN))), &Arc::default())
    }

    fn pace_of(average: u64, store: &Arc<Store>, pauses: &Arc<Pauses>) -> Pace {
        let average = NonZeroU64::new(average).expect("not 0");
        let quota = Quota::new(average, Duration::from_secs(1), NonZeroU64::MIN);
        let limit =
            Limit::new([Window { name: "out".into(), quota: quota.queueing(Duration::from_millis(500), 3) }]);
        let bound = Bound::buckets(NonZeroUsize::MIN);
        let local = LocalLimit::new(Arc::clone(store), Arc::new(limit), bound, 0).expect("one quota");
        Pace::new(local, None, Arc::clone(pauses), PaceScope::Endpoint, Duration::from_secs(10))
    }

    /// In memory nobody waits for the answer.
    fn turn(pace: &Pace, now: Nanos, url: &str) -> Turn {
        let key = pace.key(url);
        match pin!(pace.turn(now, &key)).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => panic!("nothing is to be waited for"),
        }
    }

    fn waits(pace: &Pace, now: Nanos, count: usize) -> Vec<Option<Nanos>> {
        (0..count)
            .map(|_| match turn(pace, now, "a") {
                Turn::Granted(granted) => Some(granted.wait / MILLI),
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
        let key = || pace.key("a");
        assert_eq!(waits(&pace, 0, 1), [Some(0)]);
        let before = pace.pauses();
        assert_eq!(pace.learn(0, key, true, Some(Duration::from_secs(2))), Some(2_000 * MILLI));
        assert_eq!(pace.pauses(), before + 1, "those who wait look again");
        let refused = Turn::Refused { retry_after: Some(Duration::from_millis(2_100)) };
        assert_eq!(turn(&pace, 0, "a"), refused);
        assert_eq!(waits(&pace, 2_100 * MILLI, 2), [Some(0), Some(100)]);
    }

    #[test]
    fn pauses_without_a_time_grow_while_they_are_asked_for_and_have_a_bound() {
        let pace = pace();
        let key = || pace.key("a");
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
        let wait = |url| match turn(&pace, 0, url) {
            Turn::Granted(granted) => granted.wait / MILLI,
            Turn::Refused { .. } => u64::MAX,
        };
        assert_eq!([wait("a"), wait("b"), wait("a")], [0, 0, 100]);
    }

    #[test]
    fn a_pause_outlasts_a_changed_limit() {
        let (store, pauses) = (Arc::new(Store::new(Bound::buckets(NonZeroUsize::MIN))), Arc::default());
        let old = pace_of(10, &store, &pauses);
        old.learn(0, || old.key("a"), true, Some(Duration::from_secs(2)));

        let new = pace_of(20, &store, &pauses);
        assert_eq!((new.pauses(), waits(&new, 0, 1)), (1, vec![None]));
        assert_eq!(waits(&new, 1_900 * MILLI, 1), [Some(150)], "the first token after two seconds");
    }
}
