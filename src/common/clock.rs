//! Time as the data path counts it: milliseconds since the process began, in one `u64`.
//!
//! Deadlines are compared far more often than they are shown, and an integer in a `Cell` or an
//! atomic is cheaper to keep than an `Instant`.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Milliseconds since [`start`] was first asked for. Never goes backwards.
pub type Millis = u64;

/// The instant that [`Millis`] counts from.
pub fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

thread_local! {
    /// What this thread last read.
    static LAST: Cell<Millis> = const { Cell::new(0) };
}

/// Reads the clock; costs one `clock_gettime`.
pub fn now() -> Millis {
    to_millis(instant())
}

/// Reads the clock for an [`Instant`], and keeps it for [`recent`].
pub fn instant() -> Instant {
    let instant = Instant::now();
    LAST.set(to_millis(instant));
    instant
}

/// What this thread last read; free. For code that runs without waiting right after somebody has read
/// the clock: after a wait it may be as old as the wait was long.
pub fn recent() -> Millis {
    match LAST.get() {
        0 => now(),
        millis => millis,
    }
}

/// Converts an instant; one before [`start`] becomes 0.
pub fn to_millis(at: Instant) -> Millis {
    millis(at.saturating_duration_since(start()))
}

/// A duration in whole milliseconds, rounded up so that a deadline is never early.
pub fn millis(duration: Duration) -> Millis {
    let part = duration.subsec_nanos().div_ceil(1_000_000);
    duration.as_secs().saturating_mul(1000).saturating_add(part.into())
}
