//! The whole proxy's own limits: connections, and memory. What is refused first is what is newest and cheapest to
//! refuse.
//!
//! Requests read one atomic; connections count in another. A task of the control plane looks at the memory. The
//! admin listener does not come by here, and neither do the proxy's own services (`ping@internal`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::common::importance::Importance;

/// Share of the memory, in percent, from which requests of low importance and new connections are refused.
const LOW: u64 = 90;
/// From which only those of high importance are served.
const NORMAL: u64 = 95;
/// Connections beyond the limit that are still told so with 503, in one of so many of the limit; the rest is
/// closed without a word.
const TOLD: u32 = 20;
/// But at least so many.
const TOLD_AT_LEAST: u32 = 32;

/// Limits; 0 is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GuardLimits {
    /// Client connections at all entry points together.
    pub connections: u32,
    /// Resident memory in bytes.
    pub memory: u64,
}

/// The guard of the process.
#[derive(Debug, Default)]
pub struct Guard {
    connections: AtomicU32,
    memory: AtomicU64,
    open: AtomicU32,
    /// 0: nothing is refused; 1: low importance; 2: normal importance, too.
    level: AtomicU8,
    refused_requests: AtomicU64,
    told_connections: AtomicU64,
    closed_connections: AtomicU64,
}

/// What becomes of a new connection.
#[derive(Debug)]
pub enum Welcome {
    /// It is served.
    Served(Seat),
    /// Its first request is answered with 503, unless it is of high importance, and it ends.
    Told(Seat),
    /// It is closed at once.
    Closed,
}

/// A connection's place; given back on drop.
#[derive(Debug)]
pub struct Seat(Arc<Guard>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the guard shows.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct GuardCounts {
    /// 0: nothing is refused; 1: requests of low importance; 2: all but those of high importance.
    pub level: u8,
    /// Connections now.
    pub open: u32,
    /// Requests refused for want of memory.
    pub requests: u64,
    /// Connections told to come back later.
    pub told: u64,
    /// Connections closed without a word.
    pub closed: u64,
}

impl Guard {
    /// Changes the limits.
    pub fn set(&self, limits: GuardLimits) {
        self.connections.store(limits.connections, Ordering::Relaxed);
        self.memory.store(limits.memory, Ordering::Relaxed);
        if limits.memory == 0 {
            self.level.store(0, Ordering::Relaxed);
        }
    }

    /// The limits.
    pub fn limits(&self) -> GuardLimits {
        GuardLimits {
            connections: self.connections.load(Ordering::Relaxed),
            memory: self.memory.load(Ordering::Relaxed),
        }
    }

    /// What it has and has done.
    pub fn counts(&self) -> GuardCounts {
        GuardCounts {
            level: self.level.load(Ordering::Relaxed),
            open: self.open.load(Ordering::Relaxed),
            requests: self.refused_requests.load(Ordering::Relaxed),
            told: self.told_connections.load(Ordering::Relaxed),
            closed: self.closed_connections.load(Ordering::Relaxed),
        }
    }

    /// A connection has come.
    pub fn welcome(self: &Arc<Self>) -> Welcome {
        let seat = Seat(Arc::clone(self));
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let max = self.connections.load(Ordering::Relaxed);
        let crowded = max > 0 && before >= max;
        if !crowded && self.level.load(Ordering::Relaxed) == 0 {
            return Welcome::Served(seat);
        }
        let beyond = if crowded { before - max } else { 0 };
        if beyond >= (max / TOLD).max(TOLD_AT_LEAST) {
            self.closed_connections.fetch_add(1, Ordering::Relaxed);
            return Welcome::Closed;
        }
        self.told_connections.fetch_add(1, Ordering::Relaxed);
        Welcome::Told(seat)
    }

    /// Whether a request of this importance may be served. Costs one atomic load while all is well.
    pub fn serves(&self, importance: Importance) -> bool {
        let refused = match self.level.load(Ordering::Relaxed) {
            0 => return true,
            1 => importance == Importance::Low,
            _ => importance < Importance::High,
        };
        if refused {
            self.refused_requests.fetch_add(1, Ordering::Relaxed);
        }
        !refused
    }

    /// Takes the resident memory into account; says the level when it changed.
    pub fn memory(&self, resident: u64) -> Option<u8> {
        let max = self.memory.load(Ordering::Relaxed);
        let level = match max {
            0 => 0,
            max if resident >= max / 100 * NORMAL => 2,
            max if resident >= max / 100 * LOW => 1,
            _ => 0,
        };
        (self.level.swap(level, Ordering::Relaxed) != level).then_some(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(connections: u32, memory: u64) -> Arc<Guard> {
        let guard = Guard::default();
        guard.set(GuardLimits { connections, memory });
        Arc::new(guard)
    }

    #[test]
    fn without_limits_everything_is_served() {
        let guard = guard(0, 0);
        let seats: Vec<_> = (0..10_000).map(|_| guard.welcome()).collect();
        assert!(seats.iter().all(|welcome| matches!(welcome, Welcome::Served(_))));
        assert_eq!(guard.memory(u64::MAX), None);
        assert!(guard.serves(Importance::Low));
    }

    #[test]
    fn connections_beyond_the_limit_are_told_and_far_beyond_it_closed() {
        let guard = guard(100, 0);
        let seats: Vec<_> = (0..200).map(|_| guard.welcome()).collect();
        let count = |wanted: fn(&Welcome) -> bool| seats.iter().filter(|seat| wanted(seat)).count();
        assert_eq!(count(|seat| matches!(seat, Welcome::Served(_))), 100);
        assert_eq!(count(|seat| matches!(seat, Welcome::Told(_))), 32);
        assert_eq!(count(|seat| matches!(seat, Welcome::Closed)), 68);
        drop(seats);
        assert_eq!(guard.counts().open, 0);
        assert!(matches!(guard.welcome(), Welcome::Served(_)));
    }

    #[test]
    fn as_memory_fills_low_importance_goes_first_and_high_last() {
        let guard = guard(0, 1_000);
        let served = || {
            [Importance::Low, Importance::Normal, Importance::High].map(|importance| guard.serves(importance))
        };
        assert_eq!((guard.memory(899), served()), (None, [true, true, true]));
        assert_eq!((guard.memory(900), served()), (Some(1), [false, true, true]));
        assert!(matches!(guard.welcome(), Welcome::Told(_)), "the newest first");
        assert_eq!((guard.memory(950), served()), (Some(2), [false, false, true]));
        assert_eq!((guard.memory(2_000), served()), (None, [false, false, true]));
        assert_eq!((guard.memory(100), served()), (Some(0), [true, true, true]));
        guard.memory(950);
        guard.set(GuardLimits::default());
        assert_eq!(served(), [true, true, true]);
    }
}
