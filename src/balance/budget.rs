//! How many retries a service may get: a share of its requests, so that retries never make a bad day worse.
//!
//! Pure but for its atomics: `now` is passed in. Never: locks, clocks.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::common::clock::Millis;

/// Length of the sliding window, in seconds.
const WINDOW: u32 = 10;

/// One slot more than the window has seconds: a window that begins in the middle of a second touches
/// that many.
const SLOTS: usize = WINDOW as usize + 1;

/// How many retries a service may get.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RetryBudgetSettings {
    /// Retries for each 100 requests of the last 10 s. Default 20.
    pub percent: u32,
    /// Retries a second in addition, counted over the same 10 s, so that a quiet service may retry too.
    /// Default 3.
    pub min_per_second: u32,
}

impl Default for RetryBudgetSettings {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 3 }
    }
}

/// The retries of one service, counted for all cores and for every kind of retry.
///
/// Holds over any 10 s, however they are laid: retries <= percent of requests + 10 x min per second.
/// Retries of up to 11 s and requests of at most 10 s are counted, so whole-second slots err on the
/// careful side.
#[derive(Debug)]
pub struct RetryBudget {
    percent: AtomicU32,
    min_per_second: AtomicU32,
    slots: [Slot; SLOTS],
}

/// One second: its number in the upper half of each word, the count in the lower.
#[derive(Debug, Default)]
struct Slot {
    requests: AtomicU64,
    retries: AtomicU64,
}

impl RetryBudget {
    /// Begins with nothing counted.
    pub fn new(settings: RetryBudgetSettings) -> Self {
        Self {
            percent: AtomicU32::new(settings.percent),
            min_per_second: AtomicU32::new(settings.min_per_second),
            slots: Default::default(),
        }
    }

    /// Changes the limits; what was counted stays.
    pub fn set(&self, settings: RetryBudgetSettings) {
        self.percent.store(settings.percent, Ordering::Relaxed);
        self.min_per_second.store(settings.min_per_second, Ordering::Relaxed);
    }

    /// Counts a client's request (not its retries). Cost: one atomic exchange.
    pub fn record_request(&self, now: Millis) {
        let second = second(now);
        add(&self.slot(second).requests, second);
    }

    /// Takes one retry from the budget if there is one.
    ///
    /// Cost: about 25 atomic operations. Cores that ask at the same moment may all be refused the last
    /// one; more than the budget is never given.
    pub fn try_retry(&self, now: Millis) -> bool {
        let second = second(now);
        let slot = self.slot(second);
        // Counted first, so that two cores cannot both see room for one.
        let counted_in = add(&slot.retries, second);
        let (requests, retries) = self.counted(second);
        if retries <= self.allowance(requests) {
            return true;
        }
        take_back(&slot.retries, counted_in);
        false
    }

    /// Takes one retry for what no client waits for: only while more than half of the budget is left to those that do.
    pub fn try_spare(&self, now: Millis) -> bool {
        let (requests, retries) = self.counted(second(now));
        (retries + 1) * 2 <= self.allowance(requests) && self.try_retry(now)
    }

    /// Counts a retry that was not asked for here, so that there are fewer others.
    pub fn charge(&self, now: Millis) {
        let second = second(now);
        add(&self.slot(second).retries, second);
    }

    /// Retries that are left at this moment, for metrics.
    pub fn left(&self, now: Millis) -> u64 {
        let (requests, retries) = self.counted(second(now));
        self.allowance(requests).saturating_sub(retries)
    }

    fn slot(&self, second: u32) -> &Slot {
        &self.slots[second as usize % SLOTS]
    }

    /// Requests of the window and retries of the window and the second before it.
    fn counted(&self, now: u32) -> (u64, u64) {
        let count = |word: &AtomicU64, reach: u32| {
            let (second, count) = parts(word.load(Ordering::SeqCst));
            // A slot of the future is another core's, which has read the clock later.
            if now.saturating_sub(second) < reach { u64::from(count) } else { 0 }
        };
        self.slots.iter().fold((0, 0), |(requests, retries), slot| {
            (requests + count(&slot.requests, WINDOW), retries + count(&slot.retries, WINDOW + 1))
        })
    }

    fn allowance(&self, requests: u64) -> u64 {
        let percent = u64::from(self.percent.load(Ordering::Relaxed));
        let steady = u64::from(self.min_per_second.load(Ordering::Relaxed)) * u64::from(WINDOW);
        requests * percent / 100 + steady
    }
}

fn second(now: Millis) -> u32 {
    // 2^32 seconds are 136 years.
    u32::try_from(Duration::from_millis(now).as_secs()).unwrap_or(u32::MAX)
}

fn parts(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// Counts one more in `second`, and gives the second in which it was counted: a slot of an older
/// second begins again; one of a newer second is another core's, when this thread was held up for 11 s.
fn add(word: &AtomicU64, second: u32) -> u32 {
    let mut seen = word.load(Ordering::Relaxed);
    loop {
        let (stamp, count) = parts(seen);
        let next = if stamp >= second { (stamp, count.saturating_add(1)) } else { (second, 1) };
        let next_word = (u64::from(next.0) << 32) | u64::from(next.1);
        match word.compare_exchange_weak(seen, next_word, Ordering::SeqCst, Ordering::Relaxed) {
            Ok(_) => return next.0,
            Err(other) => seen = other,
        }
    }
}

/// Takes back what [`add`] counted in `second`, unless the slot has begun again since.
fn take_back(word: &AtomicU64, second: u32) {
    let less = |seen| {
        let (stamp, count) = parts(seen);
        (stamp == second && count > 0).then(|| seen - 1)
    };
    // An error means that there is nothing left to take back.
    let _ = word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, less);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget(percent: u32, min_per_second: u32) -> RetryBudget {
        RetryBudget::new(RetryBudgetSettings { percent, min_per_second })
    }

    fn retries(budget: &RetryBudget, now: Millis, asked: usize) -> usize {
        (0..asked).filter(|_| budget.try_retry(now)).count()
    }

    fn requests(budget: &RetryBudget, now: Millis, count: usize) {
        for _ in 0..count {
            budget.record_request(now);
        }
    }

    #[test]
    fn a_fifth_of_the_requests_may_be_repeated_and_three_a_second_besides() {
        let budget = RetryBudget::new(RetryBudgetSettings::default());
        requests(&budget, 500, 1_000);
        assert_eq!(budget.left(900), 230);
        assert_eq!(retries(&budget, 900, 1_000), 230);
        assert_eq!(budget.left(900), 0);
        assert!(!budget.try_retry(999));
    }

    #[test]
    fn a_quiet_service_has_its_minimum_from_the_first_moment() {
        let budget = budget(20, 3);
        assert_eq!(retries(&budget, 0, 100), 30);
    }

    #[test]
    fn a_budget_of_nothing_gives_nothing() {
        let budget = budget(0, 0);
        requests(&budget, 0, 100);
        assert!(!budget.try_retry(0));
    }

    #[test]
    fn what_has_left_the_window_counts_no_more() {
        let budget = budget(10, 0);
        requests(&budget, 0, 100);
        assert_eq!(retries(&budget, 9_999, 100), 10);
        assert_eq!(retries(&budget, 10_000, 100), 0, "the requests have left");
        requests(&budget, 19_999, 100);
        assert_eq!(retries(&budget, 19_999, 100), 0, "retries of 10.0 s ago still count");
        assert_eq!(retries(&budget, 20_000, 100), 10);
        // Long after, when every slot is of another time.
        assert_eq!(retries(&budget, 10_000_000, 100), 0);
        requests(&budget, 10_000_001, 10);
        assert_eq!(retries(&budget, 10_000_002, 100), 1);
    }

    #[test]
    fn refusals_use_nothing_up() {
        let budget = budget(50, 0);
        assert_eq!(retries(&budget, 0, 1_000), 0);
        requests(&budget, 0, 10);
        assert_eq!(retries(&budget, 0, 1_000), 5);
    }

    #[test]
    fn what_is_charged_is_taken_from_what_others_get() {
        let budget = budget(10, 0);
        requests(&budget, 0, 100);
        for _ in 0..7 {
            budget.charge(0);
        }
        assert_eq!(retries(&budget, 0, 100), 3);
        budget.charge(0);
        assert_eq!(budget.left(0), 0);
    }

    #[test]
    fn what_nobody_waits_for_leaves_half_of_it_to_others() {
        let budget = budget(10, 0);
        requests(&budget, 0, 100);
        assert_eq!((0..100).filter(|_| budget.try_spare(0)).count(), 5);
        assert_eq!(retries(&budget, 0, 100), 5);
    }

    #[test]
    fn changed_limits_keep_what_was_counted() {
        let budget = budget(10, 0);
        requests(&budget, 0, 100);
        assert_eq!(retries(&budget, 0, 100), 10);
        budget.set(RetryBudgetSettings { percent: 15, min_per_second: 0 });
        assert_eq!(retries(&budget, 0, 100), 5);
    }

    #[test]
    fn many_cores_together_get_no_more_than_the_budget() {
        let budget = budget(20, 0);
        requests(&budget, 5_000, 5_000);
        let granted: usize = std::thread::scope(|scope| {
            let ask = || scope.spawn(|| retries(&budget, 5_000, 2_000));
            let threads: Vec<_> = (0..4).map(|_| ask()).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert!(granted <= 1_000, "{granted}");
        assert!(granted >= 990, "{granted}");
        assert_eq!(
            granted + retries(&budget, 5_000, 20),
            1_000,
            "what cores refused each other is still there"
        );
    }

    proptest! {
        #[test]
        fn over_any_ten_seconds_retries_stay_within_the_budget(
            events in prop::collection::vec((0_u64..400, 0_usize..8, 0_usize..8), 1..300),
            percent in 0_u32..60, min_per_second in 0_u32..4,
        ) {
            let budget = budget(percent, min_per_second);
            let (mut now, mut asked, mut given) = (0, Vec::new(), Vec::new());
            for (pause, request_count, retry_count) in events {
                now += pause;
                requests(&budget, now, request_count);
                asked.push((now, request_count));
                given.push((now, retries(&budget, now, retry_count)));
            }
            // Any ten seconds that end with a retry; others hold no more of them.
            for (end, _) in given.iter().filter(|(_, count)| *count > 0) {
                let within = |rows: &[(u64, usize)]| rows.iter()
                    .filter(|(at, _)| *at <= *end && at + 10_000 > *end)
                    .map(|(_, count)| count).sum::<usize>();
                let allowed = within(&asked) * percent as usize / 100 + 10 * min_per_second as usize;
                prop_assert!(within(&given) <= allowed);
            }
        }
    }
}
