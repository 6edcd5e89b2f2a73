//! A quota in numbers that Redis can count with, and its answers back into ours.
//!
//! Redis counts in microseconds and in doubles, which keep whole numbers below 2^53. Nearly every limit that
//! people write fits as it is, and its verdicts are then exactly those of memory mode; one that does not is made
//! a trifle slower, never faster.

use super::super::quota::Quota;

/// The largest number: half of what a double keeps, so that sums of two fit.
const MAX: u128 = 1 << 52;

/// The longest a bucket may take to fill, 10 years in microseconds; a larger one is cut to that.
const MAX_FILL: u128 = 10 * 366 * 86_400 * 1_000_000;

/// One limit in Redis's numbers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Terms {
    /// Units that a microsecond brings.
    pub(super) per_micro: u64,
    /// Units of a token.
    pub(super) token: u64,
    /// Units of a full bucket.
    pub(super) size: u64,
    /// Units that may be lacking.
    pub(super) slack: u64,
}

impl Terms {
    /// The numbers of a quota.
    pub fn of(quota: &Quota) -> Self {
        let (per_nano, token) = quota.units();
        let (per_nano, token) = (u128::from(per_nano), u128::from(token));
        // The two have nothing in common, so only the thousand may.
        let common = gcd(1_000, token);
        let (per_micro, token) = (per_nano * 1_000 / common, token / common);
        let burst = (MAX_FILL * per_micro / token).clamp(1, u128::from(quota.burst()).max(1));
        let slack = quota.slack() / common;
        let largest = (burst * token).saturating_add(slack).max(per_micro);
        // Halved until they fit: the token rounded up and the rate down, so never faster.
        let shift = (0..128).find(|shift| largest >> shift < MAX / 2).unwrap_or(127);
        let token = token.div_ceil(1 << shift);
        let per_micro = (per_micro >> shift).max(1);
        let burst = burst.min(MAX / 2 / token).max(1);
        let whole = |number: u128| u64::try_from(number.min(MAX)).unwrap_or(u64::MAX);
        Self {
            per_micro: whole(per_micro),
            token: whole(token),
            size: whole(burst * token),
            slack: whole(slack >> shift),
        }
    }

    /// Units of so many tokens; more than a bucket holds is as good as any more.
    pub(super) fn cost(&self, tokens: u64) -> u64 {
        self.token.saturating_mul(tokens).min(1 << 52)
    }

    /// So many of Redis's units in those of the quota, rounded up.
    pub(super) fn units(&self, quota: &Quota, spent: u64) -> u128 {
        let (_, token) = quota.units();
        (u128::from(spent) * u128::from(token)).div_ceil(u128::from(self.token))
    }
}

fn gcd(mut a: u128, mut b: u128) -> u128 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;

    fn quota(average: u64, period: Duration, burst: u64) -> Quota {
        let not_zero = |number| NonZeroU64::new(number).expect("not zero");
        Quota::new(not_zero(average), period, not_zero(burst))
    }

    #[test]
    fn what_people_write_fits_exactly() {
        for (average, secs, burst) in
            [(100, 1, 200), (1, 60, 1), (10_000, 86_400, 1_000), (7, 1, 3), (1_000_000, 1, 1_000_000)]
        {
            let quota = quota(average, Duration::from_secs(secs), burst);
            let terms = Terms::of(&quota);
            let (micros, period) =
                (u128::from(terms.token) * u128::from(average), u128::from(secs) * 1_000_000);
            assert_eq!(micros, period * u128::from(terms.per_micro), "{average} in {secs} s");
            assert_eq!(terms.size, terms.token * burst);
        }
    }

    #[test]
    fn no_limit_is_too_large_and_none_becomes_faster() {
        let max = i64::MAX as u64;
        for (average, period, burst) in [
            (max, Duration::from_secs(1), max),
            (1, Duration::MAX, 1),
            (1, Duration::MAX, max),
            (max, Duration::from_nanos(1), 1),
            (1_000_003, Duration::from_secs(86_400), 1_000_000),
            (999_999_937, Duration::from_nanos(999_999_929), 123_456_789),
        ] {
            let quota = quota(average, period, burst);
            let terms = Terms::of(&quota);
            assert!(terms.token >= 1 && terms.per_micro >= 1 && terms.size >= terms.token, "{terms:?}");
            assert!(u128::from(terms.size) + u128::from(terms.slack) <= MAX, "{terms:?}");
            assert!(u128::from(terms.per_micro) <= MAX, "{terms:?}");
        }
        let odd = quota(1_000_003, Duration::from_secs(86_400), 1_000_000);
        let terms = Terms::of(&odd);
        let (ours, exact) = (terms.per_micro as f64 / terms.token as f64, 1_000_003.0 / 86_400_000_000.0);
        assert!(ours <= exact && ours > exact * 0.9999, "{ours} of {exact}");
    }
}
