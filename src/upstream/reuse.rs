//! Whether connections to an endpoint are used again: not while that keeps failing.
//!
//! A request that meets a connection which the pod has just closed is sent again on a new one, whatever the retry
//! budget says, because no client shall pay for it. A pod that resets every connection instead of answering a second
//! request on it would so get each request twice. Here such failures are weighed against what went well: beyond one
//! in ten, and three, connections serve one request each for a while. Pure: `now` is passed in.

use std::cell::Cell;

use crate::common::clock::Millis;

/// What one failure costs; each use that goes well earns 1.
const COST: u8 = 10;
/// Three failures in a row are chance: the pod has ended a few connections at once.
const MOST: u8 = 30;
/// How long connections then serve one request each; milliseconds.
const PAUSE: Millis = 10_000;

/// What is known of the connections of one core to one endpoint.
#[derive(Debug)]
pub struct Reuse {
    credit: Cell<u8>,
    paused_until: Cell<Millis>,
}

impl Default for Reuse {
    fn default() -> Self {
        Self { credit: Cell::new(MOST), paused_until: Cell::new(0) }
    }
}

impl Reuse {
    /// Whether a connection may be kept and used again.
    pub fn is_wise(&self, now: Millis) -> bool {
        now >= self.paused_until.get()
    }

    /// A connection that was used again has answered.
    pub fn went_well(&self) {
        if self.credit.get() < MOST {
            self.credit.set(self.credit.get() + 1);
        }
    }

    /// One broke instead, and the pod may have read the request.
    pub fn failed(&self, now: Millis) {
        let left = self.credit.get().saturating_sub(COST);
        if left < COST {
            self.paused_until.set(now + PAUSE);
            // One more is tried after it.
            self.credit.set(COST);
        } else {
            self.credit.set(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_breaks_every_second_request_gets_each_once_but_for_three_and_one_more_every_ten_seconds() {
        let reuse = Reuse::default();
        let mut failures = 0;
        for now in (0..60_000).step_by(10) {
            if reuse.is_wise(now) {
                failures += 1;
                reuse.failed(now);
            }
        }
        assert_eq!(failures, 3 + 5);
    }

    #[test]
    fn a_failure_now_and_then_changes_nothing() {
        let reuse = Reuse::default();
        for now in 0..10_000 {
            if now % 20 == 0 {
                reuse.failed(now);
            } else {
                reuse.went_well();
            }
            assert!(reuse.is_wise(now));
        }
    }

    #[test]
    fn of_those_that_break_more_often_at_most_one_in_ten_is_met() {
        let reuse = Reuse::default();
        let (mut failures, mut uses) = (0_u32, 0_u32);
        for now in (0..100_000).step_by(10) {
            if reuse.is_wise(now) {
                uses += 1;
                if uses.is_multiple_of(2) {
                    failures += 1;
                    reuse.failed(now);
                } else {
                    reuse.went_well();
                }
            }
        }
        assert!(failures <= 10_000 / 10 + 3, "{failures}");
        assert!(failures >= 3, "{failures}");
    }
}
