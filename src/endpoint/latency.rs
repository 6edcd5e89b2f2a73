//! How long an endpoint takes to answer, as one number that rises at once and falls slowly.
//!
//! Pure but for its atomic: `now` is passed in. Never: clocks, locks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::clock::Millis;

/// A peak EWMA: a sample above the estimate replaces it, others pull it down by their age, and without
/// samples it falls by half each 7 s.
///
/// So an endpoint that was slow is asked again after a while, and one slow answer is enough to be left alone
/// meanwhile. Shared by all cores; microseconds in the upper half of the word, milliseconds of the clock in
/// the lower. 0: no sample yet.
#[derive(Debug, Default)]
pub struct PeakEwma(AtomicU64);

/// Time in which what was known loses half of its weight.
const HALF_LIFE: u32 = 7_000;

impl PeakEwma {
    /// Takes one answer's time into account. Cost: one atomic exchange.
    pub fn observe(&self, now: Millis, latency: Duration) {
        let sample = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX).max(1);
        let now = now as u32;
        // An error says that there is nothing to change.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| next(word, now, sample));
    }

    /// The estimate in microseconds; `None` before the first sample. Cost: one atomic load.
    pub fn micros(&self, now: Millis) -> Option<u32> {
        let word = self.0.load(Ordering::Relaxed);
        let (micros, stamp) = parts(word);
        (word != 0).then(|| decayed(micros, age(now as u32, stamp)).max(1))
    }
}

fn parts(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// The milliseconds between two stamps, which wrap after 49 days. Other cores may have read the clock later:
/// what seems to lie in the future is of now.
fn age(now: u32, stamp: u32) -> u32 {
    let age = now.wrapping_sub(stamp);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// Halved each half life; in between by the parabola through the curve's ends, within 1 % of it.
fn decayed(micros: u32, age: u32) -> u32 {
    let whole = micros.checked_shr(age / HALF_LIFE).unwrap_or(0);
    // 2^-t is about 1 - 0.6931 t + 0.1931 t², in parts of 65,536.
    let t = u64::from(age % HALF_LIFE) * 65_536 / u64::from(HALF_LIFE);
    let lost = t * (45_426 - 12_658 * t / 65_536) / 65_536;
    whole - u32::try_from(u64::from(whole) * lost / 65_536).unwrap_or(0)
}

/// The word after a sample, or `None` when too little time has passed for it to make a difference.
fn next(word: u64, now: u32, sample: u32) -> Option<u64> {
    let (micros, stamp) = parts(word);
    let age = age(now, stamp);
    let left = decayed(micros, age);
    let micros = if word == 0 || sample >= left {
        sample
    } else {
        // What is left of the old estimate, and the sample in place of what has gone.
        let gone = u64::from(micros - left) * u64::from(sample) / u64::from(micros.max(1));
        let next = left.saturating_add(u32::try_from(gone).unwrap_or(u32::MAX));
        // The stamp stays, so that the next sample counts for both.
        (next < micros).then_some(next)?
    };
    Some(u64::from(micros) << 32 | u64::from(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(ewma: &PeakEwma, now: Millis, micros: u64) {
        ewma.observe(now, Duration::from_micros(micros));
    }

    #[test]
    fn one_slow_answer_raises_it_at_once() {
        let ewma = PeakEwma::default();
        assert_eq!(ewma.micros(0), None);
        observe(&ewma, 10, 1_000);
        observe(&ewma, 11, 500_000);
        assert_eq!(ewma.micros(11), Some(500_000));
    }

    #[test]
    fn fast_answers_bring_it_down_in_seconds_however_many_there_are() {
        for gap in [1, 10, 500] {
            let ewma = PeakEwma::default();
            observe(&ewma, 0, 100_000);
            for now in (0..7_000).step_by(gap) {
                observe(&ewma, now, 1_000);
            }
            let after = ewma.micros(7_000).expect("samples");
            // Half of the way to 1 ms, within the error of whole microseconds.
            assert!((38_000..62_000).contains(&after), "{after} with a sample each {gap} ms");
        }
    }

    #[test]
    fn without_samples_it_falls_by_half_each_half_life_and_never_to_nothing() {
        let ewma = PeakEwma::default();
        observe(&ewma, 0, 80_000);
        assert_eq!(ewma.micros(7_000), Some(40_000));
        assert_eq!(ewma.micros(14_000), Some(20_000));
        assert_eq!(ewma.micros(10_000_000), Some(1));
    }

    #[test]
    fn a_clock_that_another_core_has_read_earlier_does_no_harm() {
        let ewma = PeakEwma::default();
        observe(&ewma, 1_000, 5_000);
        assert_eq!(ewma.micros(999), Some(5_000));
        // The stamp wraps.
        observe(&ewma, Millis::from(u32::MAX), 5_000);
        assert_eq!(ewma.micros(Millis::from(u32::MAX) + 7_001), Some(2_500));
    }
}
