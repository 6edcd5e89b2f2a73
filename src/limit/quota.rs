//! One token bucket, exact, as a pure function of its state, a quota and the time.
//!
//! Tokens are counted in units so small that both a token and what a nanosecond brings are whole
//! numbers of them: `average` requests a `period` of P ns give `average` units a nanosecond at P
//! units a token, both divided by what they have in common. Nothing is ever rounded, so nothing
//! drifts, however odd the rate.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use crate::common::clock;

/// Nanoseconds since the process began; enough for 584 years.
pub type Nanos = u64;

/// Converts an instant; one before the process began becomes 0.
pub fn nanos(at: Instant) -> Nanos {
    to_nanos(at.saturating_duration_since(clock::start()))
}

fn to_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The longest a request may be held back for its token. From Traefik, where slow rates would
/// otherwise hold requests for half of a long period.
const MAX_DELAY: Duration = Duration::from_millis(500);

/// What a limiter says about one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// There was a token.
    Admit,
    /// The token was taken in advance: hold the request this long.
    AdmitAfter(Duration),
    /// There is none, and none was taken.
    Refuse {
        /// Until there is one, if nobody else takes it; `None` if there never will be enough.
        retry_after: Option<Duration>,
    },
}

/// How many requests in how much time, and how many at once.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Quota {
    /// Units that a nanosecond brings.
    per_nano: u64,
    /// Units of one token.
    token: u64,
    /// Units of a full bucket.
    size: u128,
    /// Units that a request may lack and still be admitted after a delay.
    slack: u128,
}

impl Quota {
    /// `average` requests a `period` in the long run, and `burst` at once after a rest.
    ///
    /// A period of zero counts as one nanosecond, one beyond 292 years as 292 years. A request that
    /// lacks at most half a token, and at most 500 ms of time, is delayed rather than refused.
    pub fn new(average: NonZeroU64, period: Duration, burst: NonZeroU64) -> Self {
        let (average, period) = (average.get(), to_nanos(period).clamp(1, i64::MAX as u64));
        let common = gcd(average, period);
        let (per_nano, token) = (average / common, period / common);
        let half = u128::from(token / 2);
        Self {
            per_nano,
            token,
            size: u128::from(token) * u128::from(burst.get()),
            slack: half.min(MAX_DELAY.as_nanos() * u128::from(per_nano)),
        }
    }

    /// The same without delays: what has no token is refused.
    #[must_use]
    pub fn without_delay(self) -> Self {
        Self { slack: 0, ..self }
    }

    /// Most tokens a bucket holds.
    pub fn burst(&self) -> u64 {
        u64::try_from(self.size / u128::from(self.token)).unwrap_or(u64::MAX)
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// What one key has spent. It knows the size of its tokens, so it can be read under another quota.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bucket {
    /// Units spent and not yet refilled, at `at`.
    spent: u128,
    /// When that was.
    at: Nanos,
    /// Units of one token when that was counted.
    token: u64,
}

impl Bucket {
    /// A full bucket.
    pub fn full(quota: &Quota, now: Nanos) -> Self {
        Self { spent: 0, at: now, token: quota.token }
    }

    /// A bucket that has spent what `other` has, but has still `tokens` left.
    pub(super) fn inherit(quota: &Quota, other: &Self, tokens: u64, now: Nanos) -> Self {
        let left = u128::from(tokens) * u128::from(quota.token);
        let spent = other.spent_at(quota, now.max(other.at)).min(quota.size.saturating_sub(left));
        Self { spent, at: now.max(other.at), token: quota.token }
    }

    /// Takes `tokens` if they are there, or nearly.
    ///
    /// An earlier `now` than at the last call refills nothing. Under another quota than before, the
    /// tokens already spent stay spent, up to the new size, and the time since the last request
    /// refills at the new rate. A refusal changes nothing. Cost: a few dozen instructions.
    pub fn take(&mut self, quota: &Quota, tokens: u64, now: Nanos) -> Verdict {
        let cost = u128::from(tokens) * u128::from(quota.token);
        if cost > quota.size {
            return Verdict::Refuse { retry_after: None };
        }
        let at = now.max(self.at);
        let spent = self.spent_at(quota, at) + cost;
        let lacking = spent.saturating_sub(quota.size);
        if lacking > quota.slack {
            let wait = refill_time(lacking, quota).saturating_add(at - now);
            return Verdict::Refuse { retry_after: Some(Duration::from_nanos(wait)) };
        }
        *self = Self { spent, at, token: quota.token };
        if lacking == 0 {
            Verdict::Admit
        } else {
            Verdict::AdmitAfter(Duration::from_nanos(refill_time(lacking, quota).saturating_add(at - now)))
        }
    }

    /// When nothing is left to be remembered.
    pub fn full_at(&self, quota: &Quota) -> Nanos {
        self.at.saturating_add(refill_time(self.spent_at(quota, self.at), quota))
    }

    /// Units of `quota` still spent at `at`, which must not be before `self.at`.
    fn spent_at(&self, quota: &Quota, at: Nanos) -> u128 {
        let spent = if self.token == quota.token { self.spent } else { self.converted(quota) };
        // A smaller bucket than before: what does not fit into it is forgiven.
        let spent = spent.min(quota.size + quota.slack);
        spent.saturating_sub(u128::from(at - self.at) * u128::from(quota.per_nano))
    }

    /// As many tokens in units of `quota`, rounded up.
    fn converted(&self, quota: &Quota) -> u128 {
        let (old, new) = (u128::from(self.token), u128::from(quota.token));
        let (whole, part) = (self.spent / old, self.spent % old);
        // Each factor is below 2^64, so neither product can overflow.
        whole.saturating_mul(new).saturating_add((part * new).div_ceil(old))
    }
}

/// Nanoseconds that bring so many units, rounded up.
fn refill_time(units: u128, quota: &Quota) -> Nanos {
    u64::try_from(units.div_ceil(u128::from(quota.per_nano))).unwrap_or(u64::MAX)
}
