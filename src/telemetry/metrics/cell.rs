//! Cells with one writer: a relaxed load and a relaxed store, no read-modify-write, no lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A figure that one core alone writes and anybody may read.
///
/// A read sees some value that was true a moment ago; two figures read one after the other are
/// not of the same moment.
#[derive(Debug, Default)]
pub(super) struct Cell(AtomicU64);

impl Cell {
    /// Adds; only the core that owns the cell may.
    pub(super) fn add(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(amount), Relaxed);
    }

    /// Takes away; only the core that owns the cell may.
    pub(super) fn sub(&self, amount: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_sub(amount), Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Upper ends of histogram buckets in nanoseconds, ascending, without the infinite one.
pub(super) type Bounds = std::sync::Arc<[u64]>;

/// What one core counted for exchanges with the same labels.
#[derive(Debug)]
pub(super) struct ExchangeCell {
    pub(super) key: u64,
    pub(super) bounds: Bounds,
    requests: Cell,
    bytes_in: Cell,
    bytes_out: Cell,
    nanos: Cell,
    /// One for each bound and one for what is longer than all.
    buckets: Box<[Cell]>,
}

impl ExchangeCell {
    pub(super) fn new(key: u64, bounds: Bounds) -> Self {
        let buckets = (0..=bounds.len()).map(|_| Cell::default()).collect();
        Self {
            key,
            bounds,
            requests: Cell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            nanos: Cell::default(),
            buckets,
        }
    }

    pub(super) fn record(&self, nanos: u64, bytes_in: u64, bytes_out: u64) {
        self.requests.add(1);
        self.bytes_in.add(bytes_in);
        self.bytes_out.add(bytes_out);
        self.nanos.add(nanos);
        // A linear walk: lists are short, and most exchanges end in the first bucket.
        let bucket = self.bounds.iter().position(|&bound| nanos <= bound).unwrap_or(self.bounds.len());
        self.buckets[bucket].add(1);
    }

    /// What was counted; without durations if they were sorted into other buckets than `bounds`.
    pub(super) fn totals(&self, bounds: &Bounds) -> Totals {
        let mut totals = Totals {
            requests: self.requests.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            ..Totals::default()
        };
        if std::sync::Arc::ptr_eq(&self.bounds, bounds) {
            totals.nanos = u128::from(self.nanos.get());
            totals.buckets = self.buckets.iter().map(Cell::get).collect();
        }
        totals
    }
}

/// Figures of exchanges, added up.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    pub(super) requests: u64,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
    pub(super) nanos: u128,
    /// Not cumulative; empty when no duration is known.
    pub(super) buckets: Vec<u64>,
}

impl Totals {
    pub(super) fn add(&mut self, other: &Self) {
        self.requests = self.requests.wrapping_add(other.requests);
        self.bytes_in = self.bytes_in.wrapping_add(other.bytes_in);
        self.bytes_out = self.bytes_out.wrapping_add(other.bytes_out);
        self.nanos += other.nanos;
        if self.buckets.len() < other.buckets.len() {
            self.buckets.resize(other.buckets.len(), 0);
        }
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.wrapping_add(*theirs);
        }
    }
}
