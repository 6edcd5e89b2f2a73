//! When a second try is sent beside the first: after a fixed time, or after one that only few answers exceed.
//!
//! Pure but for its atomics: `now` is passed in.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::common::clock::{self, Millis};
use crate::common::figures::{Figures, Latencies};

/// Answers of the last ten seconds without which a quantile says nothing.
const ENOUGH: u64 = 20;
/// How long a quantile is used before it is looked up again.
const KEPT: Millis = 1000;

/// When to hedge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HedgeSettings {
    /// Never sooner than this; milliseconds.
    pub delay: Millis,
    /// Not before an answer is later than so many percent of those of the last ten seconds; 0: only `delay` counts.
    pub percent: f64,
}

/// The hedging of one service, shared by all cores.
#[derive(Debug)]
pub struct Hedge {
    settings: HedgeSettings,
    figures: Figures,
    /// What the quantile was; `u64::MAX` while too little is known.
    quantile: AtomicU64,
    looked_up: AtomicU64,
}

impl Hedge {
    /// Knows no latencies yet.
    pub fn new(settings: HedgeSettings) -> Self {
        Self {
            settings,
            figures: Figures::new(0, Latencies::Kept),
            quantile: AtomicU64::new(u64::MAX),
            looked_up: AtomicU64::new(0),
        }
    }

    /// When it hedges.
    pub fn settings(&self) -> HedgeSettings {
        self.settings
    }

    /// Takes an answer's latency into account.
    pub fn record(&self, core: usize, now: Millis, latency: Duration) {
        if self.settings.percent > 0.0 {
            self.figures.record(core, now, [], latency);
        }
    }

    /// How long the first try is waited for; `None` while that is not known.
    pub fn delay(&self, now: Millis) -> Option<Millis> {
        if self.settings.percent == 0.0 {
            return Some(self.settings.delay);
        }
        let looked_up = self.looked_up.load(Ordering::Relaxed);
        let old = now >= looked_up + KEPT || looked_up == 0;
        // One core looks it up, the others use what is there.
        if old
            && self
                .looked_up
                .compare_exchange(looked_up, now.max(1), Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        {
            let sum = self.figures.sum(now);
            let quantile = match sum.latencies() {
                ENOUGH.. => clock::millis(sum.quantile(self.settings.percent)),
                _ => u64::MAX,
            };
            self.quantile.store(quantile, Ordering::Relaxed);
        }
        match self.quantile.load(Ordering::Relaxed) {
            u64::MAX => None,
            quantile => Some(quantile.max(self.settings.delay)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_delay_is_a_fixed_delay() {
        let hedge = Hedge::new(HedgeSettings { delay: 70, percent: 0.0 });
        hedge.record(0, 1_000, Duration::from_secs(9));
        assert_eq!(hedge.delay(1_000), Some(70));
    }

    #[test]
    fn a_quantile_follows_the_latencies_once_there_are_enough() {
        let hedge = Hedge::new(HedgeSettings { delay: 10, percent: 90.0 });
        let record = |now, count, millis| {
            for _ in 0..count {
                hedge.record(0, now, Duration::from_millis(millis));
            }
        };
        record(5_000, 19, 100);
        assert_eq!(hedge.delay(5_000), None);
        record(5_000, 1, 100);
        assert_eq!(hedge.delay(5_500), None, "looked up a moment ago");
        let delay = hedge.delay(6_000).expect("enough");
        assert!((91..=109).contains(&delay), "{delay}");
        record(16_000, 100, 1);
        assert_eq!(hedge.delay(16_000), Some(10), "never sooner than the delay");
    }
}
