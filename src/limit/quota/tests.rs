//! A bucket beside models that count every window, and beside governor's.

use governor::clock::FakeRelativeClock;
use proptest::prelude::*;

use super::*;

/// A bucket with the quota it was last kept under.
#[derive(Clone, Copy)]
struct Bucket {
    full_at: u128,
    of: Quota,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Verdict {
    Admit,
    AdmitAfter(Duration),
    Refuse { retry_after: Option<Duration> },
}

impl Bucket {
    fn full(quota: &Quota) -> Self {
        Self { full_at: 0, of: *quota }
    }

    fn take(&mut self, quota: &Quota, tokens: u64, now: Nanos) -> Verdict {
        // As a store does it: what is kept under another quota is converted where it is touched.
        if self.of != *quota {
            *self = Self { full_at: quota.convert(self.full_at, &self.of, now), of: *quota };
        }
        let full_at = self.full_at;
        let take = quota.take(full_at, tokens, now);
        let wait = Duration::from_nanos(quota.refill_time(take.lacking));
        if take.lacking == u128::MAX {
            return Verdict::Refuse { retry_after: None };
        }
        if !quota.bears(take.lacking) {
            return Verdict::Refuse { retry_after: Some(wait) };
        }
        *self = Self { full_at: take.full_at, of: *quota };
        if take.lacking == 0 { Verdict::Admit } else { Verdict::AdmitAfter(wait) }
    }
}

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
    let mut bucket = Bucket::full(&quota);
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
    let mut bucket = Bucket::full(&fast);
    assert_eq!(bucket.take(&fast, 1, 0), Verdict::Admit);
    assert_eq!(
        bucket.take(&fast, 1, 4_999_999),
        Verdict::Refuse { retry_after: Some(Duration::from_nanos(5_000_001)) }
    );
    assert_eq!(bucket.take(&fast, 1, 5_000_000), Verdict::AdmitAfter(millis(5)));

    let slow = quota(1, Duration::from_secs(60), 1);
    let mut bucket = Bucket::full(&slow);
    assert_eq!(bucket.take(&slow, 1, 0), Verdict::Admit);
    assert_eq!(bucket.take(&slow, 1, 59 * SECOND), Verdict::Refuse { retry_after: Some(millis(1_000)) });
    assert_eq!(bucket.take(&slow, 1, 59 * SECOND + SECOND / 2), Verdict::AdmitAfter(millis(500)));
}

#[test]
fn a_refusal_costs_nothing() {
    let quota = per_second(1, 1).without_delay();
    let mut bucket = Bucket::full(&quota);
    assert_eq!(bucket.take(&quota, 1, 0), Verdict::Admit);
    for now in 0..1_000 {
        assert!(matches!(bucket.take(&quota, 1, now), Verdict::Refuse { .. }));
    }
    assert_eq!(bucket.take(&quota, 1, SECOND), Verdict::Admit);
}

#[test]
fn a_request_that_costs_more_than_the_bucket_holds_never_passes() {
    let quota = per_second(10, 3);
    let mut bucket = Bucket::full(&quota);
    assert_eq!(bucket.take(&quota, 4, 0), Verdict::Refuse { retry_after: None });
    assert_eq!(bucket.take(&quota, 3, 0), Verdict::Admit);
    assert_eq!(bucket.take(&quota, 2, 0), Verdict::Refuse { retry_after: Some(millis(200)) });
}

#[test]
fn an_odd_rate_does_not_drift() {
    // A third of a second is no whole number of nanoseconds: rounded up it would refuse the
    // second of these requests already, rounded down it would admit one early in the end.
    let quota = per_second(3, 2).without_delay();
    let mut bucket = Bucket::full(&quota);
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
    let mut bucket = Bucket::full(&quota);
    assert_eq!(bucket.take(&quota, 1, 10 * SECOND), Verdict::Admit);
    assert_eq!(bucket.take(&quota, 1, 5 * SECOND), Verdict::Refuse { retry_after: Some(millis(6_000)) });
    assert_eq!(bucket.take(&quota, 1, 11 * SECOND), Verdict::Admit);
}

#[test]
fn spent_tokens_stay_spent_under_another_quota_up_to_its_size() {
    let old = per_second(1, 10);
    let mut bucket = Bucket::full(&old);
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
    assert_eq!(
        bucket.take(&smaller, 1, 0),
        Verdict::Refuse { retry_after: Some(millis(1_000)) },
        "it is empty"
    );
    assert_eq!(bucket.take(&smaller, 1, SECOND), Verdict::Admit, "but owes no more than its size");
}

#[test]
fn a_bucket_is_full_when_it_says_so() {
    let quota = per_second(3, 5);
    let mut bucket = Bucket::full(&quota);
    bucket.take(&quota, 2, 7);
    let full_at = quota.forgets_at(bucket.full_at);
    assert_eq!(full_at, 7 + (2 * SECOND).div_ceil(3));
    assert_eq!(bucket.take(&quota, 5, full_at), Verdict::Admit);
}

#[test]
fn the_largest_numbers_fit_the_bits_of_a_state() {
    let max = u64::MAX;
    for (average, period, burst) in [(max, 1, max), (1, max, max), (max, max, max), (max - 58, max / 2, 1)] {
        let quota = quota(average, Duration::from_nanos(period), burst);
        let take = quota.take(0, quota.burst(), Nanos::MAX);
        assert_eq!(take.lacking, 0);
        assert!(take.full_at < 1 << FULL_AT_BITS);
        assert!(quota.burst() >= burst.min(1 << 54), "{average} {period}: {}", quota.burst());
    }
}

#[test]
fn a_longer_delay_queues_several_requests_one_behind_the_other() {
    let quota = per_second(10, 1).delayed_by(millis(250));
    let mut bucket = Bucket::full(&quota);
    let verdicts: Vec<_> = (0..4).map(|_| bucket.take(&quota, 1, 0)).collect();
    let after = |wait| Verdict::AdmitAfter(millis(wait));
    assert_eq!(
        verdicts,
        [Verdict::Admit, after(100), after(200), Verdict::Refuse { retry_after: Some(millis(300)) }]
    );
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
        let mut bucket = Bucket::full(&quota);
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

    /// Whoever gets tokens back is never better off than if they had not been taken, and gets all of them
    /// back at once.
    #[test]
    fn what_is_given_back_is_no_more_than_what_is_missing(
        (average, period, burst) in quotas(), gaps in gaps(), back in 0..40_usize, taken in 0..20_usize,
    ) {
        let quota = quota(average, Duration::from_nanos(period), burst).without_delay();
        let (mut with, mut without) = (Bucket::full(&quota), Bucket::full(&quota));
        let (mut now, mut until) = (0_u64, None);
        for (index, gap) in gaps.into_iter().enumerate() {
            now += u64::try_from(u128::from(period) * u128::from(gap) / (100 * u128::from(average))).expect("short");
            if index == taken {
                if with.take(&quota, 1, now) == Verdict::Admit {
                    until = Some(with.full_at);
                    if back == 0 {
                        with.full_at = quota.give_back(with.full_at, 1, with.full_at, now);
                        prop_assert_eq!(quota.spent(with.full_at, now), quota.spent(without.full_at, now));
                        until = None;
                    }
                }
            } else if with.take(&quota, 1, now) == Verdict::Admit {
                prop_assert_eq!(without.take(&quota, 1, now), Verdict::Admit);
            }
            if let Some(until) = until.take_if(|_| index >= taken + back) {
                with.full_at = quota.give_back(with.full_at, 1, until, now);
            }
            prop_assert!(quota.spent(with.full_at, now) >= quota.spent(without.full_at, now));
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
        let mut bucket = Bucket::full(&quota);
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
        let mut bucket = Bucket::full(&quotas[0]);
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
