//! Counts and latencies of the last ten seconds, gathered by each core for itself and added up by whoever asks.
//!
//! A core writes to a shard of its own, whose lock nobody else wants but the few who add up. Bounded: a shard is
//! made when its core first counts something, and never grows. Pure: `now` is passed in.

use std::time::Duration;

use parking_lot::Mutex;

use super::clock::Millis;

/// Length of the window, in seconds and in slots.
const SECONDS: usize = 10;
/// Below this all latencies are one; in powers of two of a microsecond: 128 µs.
const FIRST: u32 = 7;
/// From here on, too: 134 s.
const LAST: u32 = 27;
/// Buckets for each doubling, so that a quantile is at most 9 % too high or too low.
const STEPS: u32 = 8;
const BUCKETS: usize = ((LAST - FIRST) * STEPS) as usize + 2;

/// What is kept of latencies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Latencies {
    /// Nothing: 100 bytes a core.
    Dropped,
    /// A histogram: 7 kB a core.
    Kept,
}

/// Figures of the last ten seconds.
#[derive(Debug)]
pub struct Figures {
    shards: Box<[Mutex<Option<Window>>]>,
    counters: usize,
    latencies: Latencies,
}

#[derive(Debug)]
struct Window {
    slots: Box<[Slot]>,
}

#[derive(Debug)]
struct Slot {
    second: u64,
    counts: Box<[u32]>,
    latencies: Box<[u32]>,
}

/// What was counted in a window.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sum {
    counts: Vec<u64>,
    latencies: Vec<u64>,
}

impl Figures {
    /// Nothing is counted yet; there will be so many counters.
    pub fn new(counters: usize, latencies: Latencies) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get()).min(MAX_SHARDS);
        Self { shards: (0..cores).map(|_| Mutex::default()).collect(), counters, latencies }
    }

    /// Counts one in each of the `counters`, and a latency if those are kept. Cost: one lock that nobody else
    /// wants, a few additions.
    pub fn record(
        &self,
        core: usize,
        now: Millis,
        counters: impl IntoIterator<Item = usize>,
        latency: Duration,
    ) {
        let mut shard = self.shards[core % self.shards.len()].lock();
        let window = shard.get_or_insert_with(|| Window::new(self.counters, self.latencies));
        let second = now / 1000;
        let slot = &mut window.slots[second as usize % SECONDS];
        if slot.second != second {
            slot.second = second;
            slot.counts.fill(0);
            slot.latencies.fill(0);
        }
        for counter in counters {
            if let Some(count) = slot.counts.get_mut(counter) {
                *count = count.saturating_add(1);
            }
        }
        if let Some(count) = slot.latencies.get_mut(bucket(latency)) {
            *count = count.saturating_add(1);
        }
    }

    /// Adds up what the cores counted in the ten seconds before `now`.
    pub fn sum(&self, now: Millis) -> Sum {
        let mut sum = Sum {
            counts: vec![0; self.counters],
            latencies: vec![0; if self.latencies == Latencies::Kept { BUCKETS } else { 0 }],
        };
        let second = now / 1000;
        for shard in &self.shards {
            let shard = shard.lock();
            let slots = shard.iter().flat_map(|window| &window.slots);
            for slot in slots.filter(|slot| second.saturating_sub(slot.second) < SECONDS as u64) {
                add(&mut sum.counts, &slot.counts);
                add(&mut sum.latencies, &slot.latencies);
            }
        }
        sum
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.lock() = None;
        }
    }
}

impl Sum {
    /// A counter.
    pub fn count(&self, counter: usize) -> u64 {
        self.counts.get(counter).copied().unwrap_or(0)
    }

    /// How many latencies were counted.
    pub fn latencies(&self) -> u64 {
        self.latencies.iter().sum()
    }

    /// The latency that so many percent were no longer than; 0 when none was counted.
    pub fn quantile(&self, percent: f64) -> Duration {
        let wanted = (self.latencies() as f64 * percent.clamp(0.0, 100.0) / 100.0).ceil().max(1.0);
        let mut seen = 0;
        for (bucket, count) in self.latencies.iter().enumerate() {
            seen += count;
            if *count > 0 && seen as f64 >= wanted {
                return middle(bucket);
            }
        }
        Duration::ZERO
    }
}

impl Window {
    fn new(counters: usize, latencies: Latencies) -> Self {
        let buckets = if latencies == Latencies::Kept { BUCKETS } else { 0 };
        let slot =
            |_| Slot { second: 0, counts: vec![0; counters].into(), latencies: vec![0; buckets].into() };
        Self { slots: (0..SECONDS).map(slot).collect() }
    }
}

fn add(to: &mut [u64], from: &[u32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += u64::from(*from);
    }
}

fn bucket(latency: Duration) -> usize {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    let Some(power) = micros.checked_ilog2().filter(|power| *power >= FIRST) else { return 0 };
    if power >= LAST {
        return BUCKETS - 1;
    }
    // The three bits below the highest one.
    let step = (micros >> (power - STEPS.ilog2())) as u32 % STEPS;
    ((power - FIRST) * STEPS + step) as usize + 1
}

fn middle(bucket: usize) -> Duration {
    let Some(index) = bucket.checked_sub(1) else { return Duration::from_micros(1 << (FIRST - 1)) };
    let (power, step) = (FIRST + index as u32 / STEPS, index as u64 % u64::from(STEPS));
    let width = (1_u64 << power) / u64::from(STEPS);
    Duration::from_micros((1 << power) + step * width + width / 2)
}

/// Cores beyond it share shards.
const MAX_SHARDS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn what_every_core_counted_is_added_up_and_leaves_after_ten_seconds() {
        let figures = Figures::new(3, Latencies::Dropped);
        for core in 0..4 {
            figures.record(core, 20_500, [0, 2], Duration::ZERO);
        }
        figures.record(0, 25_000, [0], Duration::ZERO);
        let counts = |now| [0, 1, 2].map(|counter| figures.sum(now).count(counter));
        assert_eq!(counts(29_999), [5, 0, 4]);
        assert_eq!(counts(30_000), [1, 0, 0]);
        assert_eq!(counts(35_000), [0, 0, 0]);
        figures.record(0, 40_500, [1], Duration::ZERO);
        assert_eq!(counts(40_500), [0, 1, 0], "a slot begins again");
        figures.clear();
        assert_eq!(counts(40_500), [0, 0, 0]);
        assert_eq!(figures.sum(40_500).quantile(50.0), Duration::ZERO);
    }

    #[test]
    fn quantiles_are_right_within_their_resolution() {
        let figures = Figures::new(0, Latencies::Kept);
        for latency in 1..=1_000 {
            figures.record(latency as usize % 3, 1_000, [], millis(latency));
        }
        let sum = figures.sum(1_000);
        assert_eq!(sum.latencies(), 1_000);
        for (percent, exact) in [(0.1, 1.0), (50.0, 500.0), (95.0, 950.0), (100.0, 1_000.0)] {
            let found = sum.quantile(percent).as_secs_f64() * 1000.0;
            assert!((found / exact - 1.0).abs() < 0.09, "{percent} %: {found} ms, not {exact}");
        }
    }

    #[test]
    fn the_shortest_and_the_longest_have_buckets_too() {
        let figures = Figures::new(0, Latencies::Kept);
        figures.record(0, 1_000, [], Duration::ZERO);
        assert!(figures.sum(1_000).quantile(50.0) < Duration::from_micros(128));
        figures.record(0, 1_000, [], Duration::MAX);
        assert!(figures.sum(1_000).quantile(100.0) > Duration::from_secs(120));
    }
}
