//! Adaptive concurrency: how many requests a service can have under way before they only wait for one another.
//!
//! A gradient: while answers are about as fast as they are at best, the limit grows; as they get slower it
//! shrinks in proportion. Pure: `now`, latencies and load are passed in; the driver sets the limit.

use std::time::Duration;

use parking_lot::Mutex;

use crate::common::clock::Millis;

/// A window of samples is closed when it has so many of them and is as long as [`WINDOW`].
const SAMPLES: u32 = 10;
/// Shortest window, in milliseconds.
const WINDOW: Millis = 100;
/// The least latency is forgotten slowly, in case the service has become slower for good: in so many windows,
/// 30 s at the shortest, it moves two thirds of the way to what is seen.
const FORGET: f64 = 300.0;

/// Bounds and temper of the limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdaptiveSettings {
    /// Where it begins.
    pub initial: u32,
    /// Never less.
    pub min: u32,
    /// Never more.
    pub max: u32,
    /// How many times the least latency is still good: 1.5 tolerates half as much again.
    pub tolerance: f64,
}

/// The limit of one service, learned by all cores together.
#[derive(Debug)]
pub struct Adaptive {
    settings: AdaptiveSettings,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    limit: f64,
    /// Seconds, as good as known; 0 before the first window.
    least: f64,
    window: Window,
}

#[derive(Clone, Copy, Debug, Default)]
struct Window {
    began: Millis,
    count: u32,
    seconds: f64,
    /// Most requests under way that a sample saw.
    most: u32,
}

impl Adaptive {
    /// Knows nothing yet.
    pub fn new(settings: AdaptiveSettings) -> Self {
        let limit = f64::from(settings.initial.clamp(settings.min, settings.max));
        Self { settings, state: Mutex::new(State { limit, least: 0.0, window: Window::default() }) }
    }

    /// Bounds and temper.
    pub fn settings(&self) -> AdaptiveSettings {
        self.settings
    }

    /// The limit at this moment.
    pub fn limit(&self) -> u32 {
        whole(self.state.lock().limit)
    }

    /// Takes one answer into account: its latency, and how many requests were under way. The new limit, if this
    /// closed a window. While another core has the lock the sample is dropped: there are more.
    pub fn sample(&self, now: Millis, latency: Duration, under_way: u32) -> Option<u32> {
        let mut state = self.state.try_lock()?;
        let window = &mut state.window;
        if window.count == 0 {
            window.began = now;
        }
        window.count += 1;
        window.seconds += latency.as_secs_f64();
        window.most = window.most.max(under_way);
        if window.count < SAMPLES || now < window.began + WINDOW {
            return None;
        }
        let seen = window.seconds / f64::from(window.count);
        let most = window.most;
        state.window = Window::default();
        state.step(&self.settings, seen, most);
        Some(whole(state.limit))
    }
}

impl State {
    fn step(&mut self, settings: &AdaptiveSettings, seen: f64, most: u32) {
        // A limit that nobody comes near does not make answers slow, and neither does the least there may be:
        // then it is the service that has become slower. Else it may be the load itself, which must not be
        // taken for normal.
        let unused = f64::from(most) * 2.0 < self.limit;
        let least_limit = self.limit <= f64::from(settings.min);
        if self.least == 0.0 || seen < self.least {
            self.least = seen;
        } else if unused || least_limit {
            self.least += (seen - self.least) / FORGET;
        }
        let gradient = (settings.tolerance * self.least / seen.max(1e-6)).clamp(0.5, 1.0);
        // Room to try more, the less of it the smaller the limit is.
        let room = self.limit.sqrt();
        let wanted = self.limit * gradient + room;
        // A limit that nobody comes near is not tested, so it does not grow.
        let next = if unused { wanted.min(self.limit) } else { wanted };
        // One window alone may be odd.
        let smoothed = self.limit * 0.8 + next * 0.2;
        self.limit = smoothed.clamp(f64::from(settings.min), f64::from(settings.max));
    }
}

fn whole(limit: f64) -> u32 {
    // Clamped to the bounds, which are `u32`.
    (limit.round() as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AdaptiveSettings = AdaptiveSettings { initial: 20, min: 2, max: 200, tolerance: 1.5 };

    /// A service that serves `capacity` at once in 10 ms each, with as many as the limit allows under way.
    fn after(adaptive: &Adaptive, windows: u64, from: Millis, capacity: u32, demand: u32) -> u32 {
        for window in 0..windows {
            let under_way = adaptive.limit().min(demand);
            let millis = 10.0 * (f64::from(under_way) / f64::from(capacity)).max(1.0);
            for sample in 0..u64::from(SAMPLES) {
                let now = from + window * 100 + sample * 100 / (u64::from(SAMPLES) - 1);
                adaptive.sample(now, Duration::from_secs_f64(millis / 1000.0), under_way);
            }
        }
        adaptive.limit()
    }

    #[test]
    fn it_finds_what_a_service_can_do() {
        for capacity in [5, 50, 100] {
            let adaptive = Adaptive::new(SETTINGS);
            // The least latency is seen while there is little to do.
            after(&adaptive, 20, 0, capacity, 1);
            let limit = after(&adaptive, 500, 10_000, capacity, 1_000);
            assert!((capacity..=capacity * 3).contains(&limit), "{limit} for a capacity of {capacity}");
        }
    }

    #[test]
    fn it_shrinks_when_a_service_becomes_slow_and_recovers_with_it() {
        let adaptive = Adaptive::new(SETTINGS);
        let before = after(&adaptive, 300, 0, 100, 1_000);
        let slow = after(&adaptive, 100, 100_000, 10, 1_000);
        assert!(slow * 2 < before, "{slow} after {before}");
        let recovered = after(&adaptive, 300, 200_000, 100, 1_000);
        assert!(recovered * 3 > before * 2, "{recovered} after {before}");
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let adaptive = Adaptive::new(AdaptiveSettings { max: 30, ..SETTINGS });
        assert_eq!(after(&adaptive, 500, 0, 1_000, 1_000), 30);
        let adaptive = Adaptive::new(AdaptiveSettings { min: 8, ..SETTINGS });
        after(&adaptive, 20, 0, 100, 1);
        for window in 0..50 {
            for sample in 0..10 {
                adaptive.sample(10_000 + window * 100 + sample * 12, Duration::from_secs(5), 20);
            }
        }
        assert_eq!(adaptive.limit(), 8);
    }

    #[test]
    fn what_nobody_uses_does_not_grow() {
        let adaptive = Adaptive::new(SETTINGS);
        assert_eq!(after(&adaptive, 300, 0, 1_000, 3), 20);
    }
}
