//! One token bucket, exact, as a pure function of its state, a quota and the time.
//!
//! Tokens are counted in units so small that both a token and what a nanosecond brings are whole
//! numbers of them: `average` requests a `period` of P ns give `average` units a nanosecond at P
//! units a token, both divided by what they have in common. A bucket is one number: the time at which
//! it will be full again, in those units (GCRA's theoretical arrival time). Nothing is ever rounded, so
//! nothing drifts, however odd the rate.

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

/// The longest a request may be held back for its token, unless the operator says otherwise. From
/// Traefik, where slow rates would otherwise hold requests for half of a long period.
pub const MAX_DELAY: Duration = Duration::from_millis(500);

/// Units a nanosecond at most. 281 tera-requests a period are more than any machine sends, and above it the
/// rate is rounded up, so that a time in units fits 112 bits.
const MAX_PER_NANO: u64 = 1 << 48;

/// Units of a full bucket at most, so that with the time they fit [`FULL_AT_BITS`].
const MAX_SIZE: u128 = 1 << 118;

/// Bits that the state of a bucket takes.
pub(super) const FULL_AT_BITS: u32 = 120;

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
    average: NonZeroU64,
    period: Nanos,
}

impl Quota {
    /// `average` requests a `period` in the long run, and `burst` at once after a rest.
    ///
    /// A period of zero counts as one nanosecond, one beyond 292 years as 292 years. A request that
    /// lacks at most half a token, and at most 500 ms of time, is delayed rather than refused.
    pub fn new(average: NonZeroU64, period: Duration, burst: NonZeroU64) -> Self {
        let period = to_nanos(period).clamp(1, i64::MAX as u64);
        let common = gcd(average.get(), period);
        let (mut per_nano, mut token) = (average.get() / common, period / common);
        while per_nano > MAX_PER_NANO {
            (per_nano, token) = (per_nano / 2, (token / 2).max(1));
        }
        let burst = u128::from(burst.get()).min(MAX_SIZE / u128::from(token));
        let quota = Self { per_nano, token, size: u128::from(token) * burst, slack: 0, average, period };
        let half = u128::from(token / 2);
        Self { slack: half.min(MAX_DELAY.as_nanos() * u128::from(per_nano)), ..quota }
    }

    /// The same without delays: what has no token is refused.
    #[must_use]
    pub fn without_delay(self) -> Self {
        Self { slack: 0, ..self }
    }

    /// The same, but a request is held back as long as this for its tokens rather than refused, in a
    /// queue of one kind with those before it.
    #[must_use]
    pub fn delayed_by(self, most: Duration) -> Self {
        let units = u128::from(to_nanos(most)) * u128::from(self.per_nano);
        Self { slack: units.min(MAX_SIZE), ..self }
    }

    /// The same, but up to `requests` wait for their tokens, none longer than `most`.
    #[must_use]
    pub fn queueing(self, most: Duration, requests: u64) -> Self {
        let delayed = self.delayed_by(most);
        let queue = u128::from(requests).saturating_mul(u128::from(self.token));
        Self { slack: delayed.slack.min(queue), ..delayed }
    }

    /// Requests a period.
    pub fn average(&self) -> u64 {
        self.average.get()
    }

    /// The period in nanoseconds.
    pub fn period(&self) -> Nanos {
        self.period
    }

    /// Most tokens a bucket holds.
    pub fn burst(&self) -> u64 {
        u64::try_from(self.size / u128::from(self.token)).unwrap_or(u64::MAX)
    }

    /// The longest a request is held back rather than refused.
    pub fn max_delay(&self) -> Nanos {
        self.refill_time(self.slack)
    }

    /// Until an empty bucket is full.
    pub fn full_after(&self) -> Nanos {
        self.refill_time(self.size)
    }

    /// How long so many tokens take to come.
    pub fn time_of(&self, tokens: u64) -> Nanos {
        self.refill_time(u128::from(tokens).saturating_mul(u128::from(self.token)))
    }

    /// Units a nanosecond, units a token: all that another implementation needs to count exactly the same.
    pub fn units(&self) -> (u64, u64) {
        (self.per_nano, self.token)
    }

    /// Looks whether `tokens` are in a bucket that will be full at `full_at`. Takes nothing.
    ///
    /// An earlier `now` than before refills nothing. `tokens` that no bucket holds lack for ever.
    pub(super) fn take(&self, full_at: u128, tokens: u64, now: Nanos) -> Take {
        let now = self.at(now);
        let cost = u128::from(tokens).saturating_mul(u128::from(self.token));
        let before = full_at.saturating_sub(now);
        if cost > self.size {
            return Take { full_at, lacking: u128::MAX, spent: before };
        }
        let spent = before + cost;
        Take { full_at: now + spent, lacking: spent.saturating_sub(self.size), spent }
    }

    /// Units that a request may lack.
    pub(super) fn slack(&self) -> u128 {
        self.slack
    }

    /// Whether a request that lacks so much may go on after a delay.
    pub(super) fn bears(&self, lacking: u128) -> bool {
        lacking <= self.slack
    }

    /// Tokens left when so many units are spent.
    pub(super) fn left(&self, spent: u128) -> u64 {
        u64::try_from(divide(self.size.saturating_sub(spent), self.token)).unwrap_or(u64::MAX)
    }

    /// Units spent at `now`.
    pub(super) fn spent(&self, full_at: u128, now: Nanos) -> u128 {
        full_at.saturating_sub(self.at(now))
    }

    /// When nothing is left to be remembered, in nanoseconds.
    pub(super) fn forgets_at(&self, full_at: u128) -> Nanos {
        self.refill_time(full_at)
    }

    /// The state of a bucket with so many units spent at `now`.
    pub(super) fn state(&self, spent: u128, now: Nanos) -> u128 {
        self.at(now) + spent
    }

    /// The state of a bucket that is empty at `now`.
    pub(super) fn empty(&self, now: Nanos) -> u128 {
        self.state(self.size, now)
    }

    /// The state under this quota of a bucket that was kept under another one: the tokens that are spent stay
    /// spent, up to the new size.
    pub(super) fn convert(&self, full_at: u128, from: &Self, now: Nanos) -> u128 {
        if (self.per_nano, self.token) == (from.per_nano, from.token) {
            // The same units: only the size differs, and what does not fit into it is forgiven.
            let most = self.at(now) + self.size + self.slack;
            return full_at.min(most);
        }
        let spent = from.spent(full_at, now);
        let (old, new) = (u128::from(from.token), u128::from(self.token));
        let (whole, part) = (spent / old, spent % old);
        // Each factor of the second product is below 2^64.
        let spent = whole.saturating_mul(new).saturating_add((part * new).div_ceil(old));
        self.state(spent.min(self.size + self.slack), now)
    }

    /// The state of a newcomer that takes over what another has spent, but has still `tokens` left.
    pub(super) fn inherit(&self, full_at: u128, from: &Self, tokens: u64, now: Nanos) -> u128 {
        let spent = self.spent(self.convert(full_at, from, now), now);
        let left = u128::from(tokens).saturating_mul(u128::from(self.token));
        self.state(spent.min(self.size.saturating_sub(left)), now)
    }

    /// Gives back what of `tokens` is not refilled yet: those that made the bucket full no sooner than `until`.
    ///
    /// What time has brought back meanwhile is not given twice, so that the bucket is never better off
    /// than if they had not been taken.
    pub(super) fn give_back(&self, full_at: u128, tokens: u64, until: u128, now: Nanos) -> u128 {
        let cost = u128::from(tokens).saturating_mul(u128::from(self.token));
        full_at.saturating_sub(until.saturating_sub(self.at(now)).min(cost))
    }

    /// Nanoseconds that bring so many units, rounded up.
    pub(super) fn refill_time(&self, units: u128) -> Nanos {
        let up = u128::from(self.per_nano - 1);
        u64::try_from(divide(units.saturating_add(up), self.per_nano)).unwrap_or(u64::MAX)
    }

    fn at(&self, now: Nanos) -> u128 {
        u128::from(now) * u128::from(self.per_nano)
    }
}

/// What taking tokens from a bucket would do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Take {
    /// When the bucket would be full again.
    pub(super) full_at: u128,
    /// Units that are missing.
    pub(super) lacking: u128,
    /// Units that would be spent; for what never fits, those that are.
    pub(super) spent: u128,
}

/// Mostly the number fits a register, and then the division costs a tenth.
fn divide(number: u128, by: u64) -> u128 {
    match u64::try_from(number) {
        Ok(number) => u128::from(number / by),
        Err(_) => number / u128::from(by),
    }
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests;
