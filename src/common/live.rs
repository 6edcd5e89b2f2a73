//! Where the newest of something is found: many readers, writers one at a time.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// A value that is replaced as a whole, with a number that tells that it was.
///
/// A reader keeps what it loaded (see [`Cached`]) and asks for the value again only when the generation
/// has moved: one atomic load a look. Readers never wait for writers.
#[derive(Debug)]
pub struct Live<T> {
    current: ArcSwap<T>,
    generation: AtomicU64,
    writer: Mutex<()>,
    changed: Notify,
}

impl<T> Live<T> {
    /// Begins with `value`, at generation 1.
    pub fn new(value: T) -> Self {
        Self {
            current: ArcSwap::from_pointee(value),
            generation: AtomicU64::new(1),
            writer: Mutex::new(()),
            changed: Notify::new(),
        }
    }

    /// The newest value. On the data path ask [`generation`](Self::generation) first.
    pub fn load(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Grows with every value that is stored. Costs one atomic load.
    ///
    /// Read it before [`load`](Self::load): then what was loaded is at least as new as the number.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Makes the next value from the newest and stores it, unless `next` gives `None`.
    ///
    /// Writers wait for each other, so no change is lost; `next` must not write to the same value.
    /// Returns what was stored.
    pub fn update(&self, next: impl FnOnce(&Arc<T>) -> Option<T>) -> Option<Arc<T>> {
        let _one_at_a_time = self.writer.lock();
        let value = Arc::new(next(&self.load())?);
        self.current.store(Arc::clone(&value));
        self.generation.fetch_add(1, Ordering::Release);
        self.changed.notify_waiters();
        Some(value)
    }

    /// Completes after a later [`update`](Self::update) than the call. For tasks of the control plane.
    pub fn changed(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

/// A value that one core holds.
///
/// Clones are counted in memory of the core's own, so that taking one touches no other core's.
#[derive(Debug)]
pub struct OnCore<T>(Rc<Held<T>>);

#[derive(Debug)]
struct Held<T>(Arc<T>);

impl<T> Clone for OnCore<T> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<T> Deref for OnCore<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

/// One core's copy of a [`Live`] value.
#[derive(Debug)]
pub struct Cached<T>(RefCell<(u64, OnCore<T>)>);

impl<T> Cached<T> {
    /// Loads the value.
    pub fn new(live: &Live<T>) -> Self {
        Self(RefCell::new(Self::loaded(live)))
    }

    /// The newest value, loaded again only if it was replaced: one atomic load while it was not. `live` must be
    /// the one it was made from.
    pub fn get(&self, live: &Live<T>) -> OnCore<T> {
        let mut cached = self.0.borrow_mut();
        if cached.0 != live.generation() {
            *cached = Self::loaded(live);
        }
        cached.1.clone()
    }

    fn loaded(live: &Live<T>) -> (u64, OnCore<T>) {
        // In this order: a value stored in between is loaded again next time, and never missed.
        let generation = live.generation();
        (generation, OnCore(Rc::new(Held(live.load()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_value_is_loaded_again_only_when_it_was_replaced() {
        let live = Live::new(1);
        let cached = Cached::new(&live);
        let first = cached.get(&live);
        assert!(std::ptr::eq(&*first, &*cached.get(&live)));
        assert!(live.update(|_| None).is_none());
        assert!(std::ptr::eq(&*first, &*cached.get(&live)));
        live.update(|value| Some(**value + 1));
        assert_eq!(*cached.get(&live), 2);
    }

    #[test]
    fn no_update_is_lost_and_no_reader_goes_back_in_time() {
        let live = Live::new(0_u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2_000 {
                        live.update(|value| Some(**value + 1));
                    }
                });
            }
            scope.spawn(|| {
                let cached = Cached::new(&live);
                let mut last = 0;
                while last < 8_000 {
                    let value = *cached.get(&live);
                    assert!(value >= last, "{value} after {last}");
                    last = value;
                    std::thread::yield_now();
                }
            });
        });
        assert_eq!(*live.load(), 8_000);
        assert_eq!(live.generation(), 8_001);
    }
}
