//! A limit, and what it says of a request: plain data that every kind of store can answer.

use std::sync::Arc;

use smallvec::SmallVec;

use super::quota::{Nanos, Quota, Take};

/// Windows of one limit. Each costs a look-up for every request; more than these are a mistake.
pub const MAX_WINDOWS: usize = 8;

/// A quota under the name that answers and logs give it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Window {
    /// Such as `default` or `day`.
    pub name: Arc<str>,
    /// How much of it.
    pub quota: Quota,
}

/// Windows that a request must pass all together (per second and per day). One that is refused by one of
/// them is counted by none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limit {
    windows: Box<[Window]>,
}

impl Limit {
    /// A limit of these windows; those beyond [`MAX_WINDOWS`] are left out.
    pub fn new(windows: impl IntoIterator<Item = Window>) -> Self {
        Self { windows: windows.into_iter().take(MAX_WINDOWS).collect() }
    }

    /// Its windows, in their order.
    pub fn windows(&self) -> &[Window] {
        &self.windows
    }

    /// Requests of this cost never pass: a bucket is too small for them.
    pub fn never(&self, cost: u64) -> Option<usize> {
        self.windows.iter().position(|window| cost > window.quota.burst())
    }
}

/// What a limit says of one request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Decision {
    /// Its tokens were there, or nearly, and were taken. A refusal takes nothing.
    pub allowed: bool,
    /// Allowed: hold the request back so long, mostly 0. Refused: until it would be allowed if nobody else
    /// took anything; [`Decision::NEVER`] if it never will be.
    pub wait: Nanos,
    /// Requests of cost 1 that would be allowed now at once, by the tightest window.
    pub remaining: u64,
    /// Until the tightest window is full again.
    pub reset: Nanos,
    /// The tightest window: the one that holds the request up longest, or else has least left.
    pub window: usize,
}

impl Decision {
    /// The wait of what costs more than a bucket holds.
    pub const NEVER: Nanos = Nanos::MAX;

    /// What is said before any window was looked at.
    pub(super) const OPEN: Self = Self { allowed: true, wait: 0, remaining: u64::MAX, reset: 0, window: 0 };

    /// Takes one more window into account: the bucket's state `full_at`, and what `take` would make of it.
    pub(super) fn weigh(&mut self, index: usize, quota: &Quota, full_at: u128, take: &Take, now: Nanos) {
        let lacks = !quota.bears(take.lacking);
        if lacks && self.allowed {
            // Only those that refuse count from now on.
            *self = Self { allowed: false, wait: 0, ..*self };
        }
        let wait = match take.lacking {
            0 => 0,
            u128::MAX => Self::NEVER,
            lacking => quota.refill_time(lacking),
        };
        let spent = if self.allowed { take.spent } else { quota.spent(full_at, now) };
        let remaining = quota.left(spent);
        let tighter = if self.allowed {
            index == 0 || remaining < self.remaining
        } else {
            lacks && (wait > self.wait || self.wait == 0)
        };
        if tighter {
            *self = Self { remaining, reset: quota.refill_time(spent), window: index, ..*self };
        }
        if self.allowed || lacks {
            self.wait = self.wait.max(wait);
        }
    }
}

/// What was taken from the buckets of a request, so that it can be given back.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Taken {
    /// For each window, when its last taken unit will have been refilled, in the quota's own units.
    pub(super) until: SmallVec<[u128; 1]>,
    /// Tokens.
    pub(super) cost: u64,
}

impl Taken {
    /// How many tokens.
    pub fn cost(&self) -> u64 {
        self.cost
    }
}
