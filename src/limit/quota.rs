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

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    fn quota(average: u64, period: Duration, burst: u64) -> Quota {
        let not_zero = |number| NonZeroU64::new(number).expect("not zero");
        Quota::new(not_zero(average), period, not_zero(burst))
    }

    fn per_second(average: u64, burst: u64) -> Quota {
        quota(average, Duration::from_secs(1), burst)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn a_bucket_starts_full_and_refills_to_its_size_only() {
        let quota = per_second(10, 3);
        let mut bucket = Bucket::full(&quota, 0);
        for _ in 0..3 {
            assert_eq!(bucket.take(&quota, 1, 0), Verdict::Admit);
        }
        assert_eq!(bucket.take(&quota, 1, 0), Verdict::Refuse { retry_after: Some(millis(100)) });
        for _ in 0..3 {
            assert_eq!(bucket.take(&quota, 1, 3_600 * SECOND), Verdict::Admit);
        }
        assert!(matches!(bucket.take(&quota, 1, 3_600 * SECOND), Verdict::Refuse { .. }));
    }

    #[test]
    fn half_a_token_may_be_lacking_but_never_more_than_500_ms() {
        let fast = per_second(100, 1);
        let mut bucket = Bucket::full(&fast, 0);
        assert_eq!(bucket.take(&fast, 1, 0), Verdict::Admit);
        assert_eq!(
            bucket.take(&fast, 1, 4_999_999),
            Verdict::Refuse { retry_after: Some(Duration::from_nanos(5_000_001)) }
        );
        assert_eq!(bucket.take(&fast, 1, 5_000_000), Verdict::AdmitAfter(millis(5)));

        let slow = quota(1, Duration::from_secs(60), 1);
        let mut bucket = Bucket::full(&slow, 0);
        assert_eq!(bucket.take(&slow, 1, 0), Verdict::Admit);
        assert_eq!(bucket.take(&slow, 1, 59 * SECOND), Verdict::Refuse { retry_after: Some(millis(1_000)) });
        assert_eq!(bucket.take(&slow, 1, 59 * SECOND + SECOND / 2), Verdict::AdmitAfter(millis(500)));
    }

    #[test]
    fn a_refusal_costs_nothing() {
        let quota = per_second(1, 1).without_delay();
        let mut bucket = Bucket::full(&quota, 0);
        assert_eq!(bucket.take(&quota, 1, 0), Verdict::Admit);
        for now in 0..1_000 {
            assert!(matches!(bucket.take(&quota, 1, now), Verdict::Refuse { .. }));
        }
        assert_eq!(bucket.take(&quota, 1, SECOND), Verdict::Admit);
    }

    #[test]
    fn a_request_that_costs_more_than_the_bucket_holds_never_passes() {
        let quota = per_second(10, 3);
        let mut bucket = Bucket::full(&quota, 0);
        assert_eq!(bucket.take(&quota, 4, 0), Verdict::Refuse { retry_after: None });
        assert_eq!(bucket.take(&quota, 3, 0), Verdict::Admit);
        assert_eq!(bucket.take(&quota, 2, 0), Verdict::Refuse { retry_after: Some(millis(200)) });
    }

    #[test]
    fn an_odd_rate_does_not_drift() {
        // A third of a second is no whole number of nanoseconds: rounded up it would refuse the
        // second of these requests already, rounded down it would admit one early in the end.
        let quota = per_second(3, 2).without_delay();
        let mut bucket = Bucket::full(&quota, 0);
        assert_eq!(bucket.take(&quota, 2, 0), Verdict::Admit);
        for third in 1..200_000_u64 {
            let due = (third * SECOND).div_ceil(3);
            assert!(matches!(bucket.take(&quota, 1, due - 1), Verdict::Refuse { .. }), "{third}");
            assert_eq!(bucket.take(&quota, 1, due), Verdict::Admit, "{third}");
        }
    }

    #[test]
    fn a_clock_that_steps_back_refills_nothing() {
        let quota = per_second(1, 1).without_delay();
        let mut bucket = Bucket::full(&quota, 10 * SECOND);
        assert_eq!(bucket.take(&quota, 1, 10 * SECOND), Verdict::Admit);
        assert_eq!(bucket.take(&quota, 1, 5 * SECOND), Verdict::Refuse { retry_after: Some(millis(6_000)) });
        assert_eq!(bucket.take(&quota, 1, 11 * SECOND), Verdict::Admit);
    }

    #[test]
    fn spent_tokens_stay_spent_under_another_quota_up_to_its_size() {
        let old = per_second(1, 10);
        let mut bucket = Bucket::full(&old, 0);
        for _ in 0..4 {
            assert_eq!(bucket.take(&old, 1, 0), Verdict::Admit);
        }
        let admitted = |quota: &Quota, mut bucket: Bucket| {
            (0..100).take_while(|_| bucket.take(quota, 1, 0) == Verdict::Admit).count()
        };
        assert_eq!(admitted(&old, bucket), 6);
        assert_eq!(admitted(&quota(7, Duration::from_secs(60), 10), bucket), 6, "another rate");
        assert_eq!(admitted(&per_second(1, 20), bucket), 16, "a larger bucket");
        let smaller = per_second(1, 3).without_delay();
        assert_eq!(admitted(&smaller, bucket), 0, "a smaller bucket is empty");
        assert_eq!(bucket.take(&smaller, 1, SECOND), Verdict::Admit, "but owes no more than its size");
    }

    #[test]
    fn a_bucket_is_full_when_it_says_so() {
        let quota = per_second(3, 5);
        let mut bucket = Bucket::full(&quota, 7);
        assert_eq!(bucket.full_at(&quota), 7);
        bucket.take(&quota, 2, 7);
        let full_at = bucket.full_at(&quota);
        assert_eq!(full_at, 7 + (2 * SECOND).div_ceil(3));
        assert_eq!(bucket.take(&quota, 5, full_at), Verdict::Admit);
    }

    /// Numbers around those people write, with and without common factors.
    fn quotas() -> impl Strategy<Value = (u64, u64, u64)> {
        let average = prop_oneof![1..20_u64, 1..5_000_000_u64];
        let period = prop_oneof![Just(SECOND), Just(60 * SECOND), 1..100_000_u64, 1..86_400 * SECOND];
        (average, period, 1..20_u64)
    }

    /// Gaps between requests, in hundredths of what one token takes.
    fn gaps() -> impl Strategy<Value = Vec<u64>> {
        let gap = prop_oneof![3 => Just(0), 3 => 0..100_u64, 2 => 0..300_u64, 1 => 0..5_000_u64];
        prop::collection::vec(gap, 1..120)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        /// The model knows only what was admitted and when, and counts it anew for each request: what
        /// is owed is the worst over all stretches that end now.
        #[test]
        fn verdicts_are_those_of_a_model_that_counts_every_window(
            (average, period, burst) in quotas(), gaps in gaps(),
        ) {
            let quota = quota(average, Duration::from_nanos(period), burst);
            let (a, p) = (i128::from(average), i128::from(period));
            let mut bucket = Bucket::full(&quota, 0);
            let (mut now, mut admitted) = (0_u64, Vec::<Nanos>::new());
            let mut released = Vec::new();
            for gap in gaps {
                now += u64::try_from(u128::from(period) * u128::from(gap) / (100 * u128::from(average)))
                    .expect("short");
                let owed = admitted.iter().rev().zip(1..).map(|(at, count)| count * p - a * i128::from(now - at));
                let lacking = owed.max().unwrap_or(0).max(0) + p - i128::from(burst) * p;
                // Half a token, or what 500 ms bring; both doubled, to stay whole.
                let slack = p.min(a * i128::from(SECOND));
                match bucket.take(&quota, 1, now) {
                    Verdict::Admit => {
                        prop_assert!(lacking <= 0, "admitted too early at {now}");
                        released.push(now);
                        admitted.push(now);
                    }
                    Verdict::AdmitAfter(delay) => {
                        prop_assert!(lacking > 0 && 2 * lacking <= slack, "delayed wrongly at {now}");
                        let delay = i128::try_from(delay.as_nanos()).expect("short");
                        prop_assert!(delay * a >= lacking && (delay - 1) * a < lacking, "a wrong delay at {now}");
                        released.push(now + u64::try_from(delay).expect("short"));
                        admitted.push(now);
                    }
                    Verdict::Refuse { retry_after } => {
                        prop_assert!(2 * lacking > slack, "refused below the limit at {now}");
                        let wait = i128::try_from(retry_after.expect("one token fits").as_nanos()).expect("short");
                        prop_assert!(wait * a >= lacking && (wait - 1) * a < lacking, "a wrong wait at {now}");
                    }
                }
            }
            for (first, start) in released.iter().enumerate() {
                for (last, end) in released.iter().enumerate().skip(first) {
                    let count = i128::try_from(last - first + 1).expect("few");
                    // A delay is rounded up to a whole nanosecond, so the next one may seem that much early.
                    let most = i128::from(burst) * p + a * (i128::from(end - start) + 1);
                    prop_assert!(count * p <= most, "{count} requests between {start} and {end}");
                }
            }
        }

        #[test]
        fn verdicts_without_delay_are_governors(
            nanos in 1..10_000_000_u64, burst in 1..50_u32, gaps in gaps(),
        ) {
            let burst_not_zero = std::num::NonZeroU32::new(burst).expect("from 1");
            let clock = FakeRelativeClock::default();
            let oracle = governor::RateLimiter::direct_with_clock(
                governor::Quota::with_period(Duration::from_nanos(nanos)).expect("not zero").allow_burst(burst_not_zero),
                clock.clone(),
            );
            let quota = quota(1, Duration::from_nanos(nanos), u64::from(burst)).without_delay();
            let mut bucket = Bucket::full(&quota, 0);
            let mut now = 0;
            for gap in gaps {
                let gap = nanos * gap / 100;
                now += gap;
                clock.advance(Duration::from_nanos(gap));
                let verdict = bucket.take(&quota, 1, now);
                prop_assert_eq!(verdict == Verdict::Admit, oracle.check().is_ok(), "at {}", now);
            }
        }

        #[test]
        fn a_reload_in_the_middle_never_gives_more_than_the_larger_limits(
            (a1, p1, b1) in quotas(), (a2, p2, b2) in quotas(), gaps in gaps(), change in 0..120_usize,
        ) {
            let quotas = [
                quota(a1, Duration::from_nanos(p1), b1).without_delay(),
                quota(a2, Duration::from_nanos(p2), b2).without_delay(),
            ];
            let mut bucket = Bucket::full(&quotas[0], 0);
            let (mut now, mut admitted) = (0_u64, Vec::new());
            for (index, gap) in gaps.into_iter().enumerate() {
                now += u64::try_from(u128::from(p1) * u128::from(gap) / (100 * u128::from(a1))).expect("short");
                if bucket.take(&quotas[usize::from(index >= change)], 1, now) == Verdict::Admit {
                    admitted.push(now);
                }
            }
            // Within each limit, and all of it within the larger bucket at the faster rate.
            let burst = i128::from(b1.max(b2));
            let (a, p) = if u128::from(a1) * u128::from(p2) > u128::from(a2) * u128::from(p1) { (a1, p1) } else { (a2, p2) };
            for (first, start) in admitted.iter().enumerate() {
                for (last, end) in admitted.iter().enumerate().skip(first) {
                    let count = i128::try_from(last - first + 1).expect("few");
                    let most = burst * i128::from(p) + i128::from(a) * i128::from(end - start);
                    prop_assert!(count * i128::from(p) <= most, "{} requests between {} and {}", count, start, end);
                }
            }
        }
    }
}
