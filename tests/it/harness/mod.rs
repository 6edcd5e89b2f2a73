//! What the tests speak with: a proxy process, raw origins behind it, raw clients in front of it.
//!
//! Everything blocks, and everything has a deadline. Nothing sleeps in the hope that something has happened:
//! [`eventually`] asks until it has.

pub mod client;
pub mod load;
pub mod origin;
pub mod proxy;
pub mod wire;

use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use client::{Client, Response};
pub use load::Load;
pub use origin::{BlackHole, Origin, Refused, origin};
pub use proxy::{Finished, Proxy, proxy, run, scratch};
pub use wire::Failure;

/// How long anything may take before a test gives up: far above what a loaded machine needs.
pub const DEADLINE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(5);

/// Asks until the answer is yes.
///
/// # Panics
/// When it is still no after [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Reads a value until it is the expected one; shows the last one read otherwise.
///
/// # Panics
/// When it is still another after [`DEADLINE`].
#[track_caller]
pub fn eventually_equal<T: Debug + PartialEq>(what: &str, expected: T, mut read: impl FnMut() -> T) {
    let since = Instant::now();
    loop {
        let value = read();
        if value == expected {
            return;
        }
        assert!(since.elapsed() < DEADLINE, "{what}: still {value:?} after {DEADLINE:?}, not {expected:?}");
        std::thread::sleep(POLL);
    }
}

/// Asks again and again for a while that the answer stays yes: for what must not happen.
#[track_caller]
pub fn throughout(what: &str, span: Duration, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while since.elapsed() < span {
        assert!(holds(), "no longer after {:?}: {what}", since.elapsed());
        std::thread::sleep(POLL);
    }
}

/// Holds one side until the other lets it go.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open, at most twice the [`DEADLINE`], so that a failed test ends too.
    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_timeout_while(open, DEADLINE * 2, |open| !*open));
    }
}
