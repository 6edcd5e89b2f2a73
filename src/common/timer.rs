//! Deadlines of one core, cheap enough to set for every wait of every exchange.
//!
//! A `tokio` timer for each phase costs hundreds of instructions; here a deadline is one number in a
//! cell, and one task per core wakes those that are due. A [`Slot`] belongs to whatever waits
//! (a connection, an exchange) and is set again and again. Never fires early; late by at most
//! `GRAIN` when the core is not overloaded.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::clock::{self, Millis};

/// Deadlines closer together than this are served by one wake-up.
const GRAIN: Millis = 5;
/// Slots due within so long are looked at on each wake-up; all of them only so often: thirty thousand of ten
/// thousand idle connections take 50 us to look through, those due within half a second no time at all.
const HORIZON: Millis = 500;

/// No deadline.
const NEVER: Millis = Millis::MAX;

/// All deadlines of one core.
#[derive(Debug, Default)]
pub struct Timers {
    cells: RefCell<Cells>,
    /// No slot is due before this; may be too early, never too late.
    earliest: Cell<Millis>,
    /// Every slot that is due before this is among `Cells::soon`. Not before `earliest`.
    horizon: Cell<Millis>,
    driver: RefCell<Option<Waker>>,
}

#[derive(Debug, Default)]
struct Cells {
    slots: Vec<Entry>,
    free: Vec<usize>,
    /// Each at most once; some may have been set to a later time, or be free.
    soon: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    /// The driver has seen `at` pass.
    due: bool,
    /// It is among `Cells::soon`, also while it is free.
    soon: bool,
    waker: Option<Waker>,
}

/// The time allowed has passed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Elapsed;

impl Timers {
    /// No deadlines yet.
    pub fn new() -> Rc<Self> {
        let timers = Self::default();
        timers.earliest.set(NEVER);
        timers.horizon.set(NEVER);
        Rc::new(timers)
    }

    /// Takes a slot; it is given back on drop.
    pub fn slot(self: &Rc<Self>) -> Slot {
        let mut cells = self.cells.borrow_mut();
        let index = match cells.free.pop() {
            Some(index) => index,
            None => {
                cells.slots.push(Entry { at: NEVER, due: false, soon: false, waker: None });
                cells.slots.len() - 1
            }
        };
        Slot { timers: Rc::clone(self), index }
    }

    /// Wakes what is due, for ever. One task per core runs this.
    pub async fn drive(self: Rc<Self>) {
        let mut sleep = pin!(tokio::time::sleep(Duration::ZERO));
        let mut armed = NEVER;
        std::future::poll_fn(move |cx| -> Poll<()> {
            match &mut *self.driver.borrow_mut() {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                slot => *slot = Some(cx.waker().clone()),
            }
            loop {
                let earliest = self.earliest.get();
                if earliest == NEVER {
                    armed = NEVER;
                    return Poll::Pending;
                }
                let now = clock::now();
                // After a time without deadlines nobody knows which of them are soon.
                if earliest <= now || self.horizon.get() == NEVER {
                    self.fire(now);
                    continue;
                }
                if armed != earliest {
                    armed = earliest;
                    let at = clock::start() + Duration::from_millis(earliest.max(now + GRAIN));
                    sleep.as_mut().reset(at.into());
                }
                if sleep.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                armed = NEVER;
            }
        })
        .await;
    }

    fn fire(&self, now: Millis) {
        let mut due = Vec::new();
        {
            let mut cells = self.cells.borrow_mut();
            let Cells { slots, soon, .. } = &mut *cells;
            let horizon = self.horizon.get();
            if horizon <= now || horizon == NEVER {
                self.horizon.set(look_through(slots, soon, now));
            }
            let horizon = self.horizon.get();
            let mut earliest = horizon;
            soon.retain(|index| {
                let entry = &mut slots[*index];
                if entry.at <= now && !entry.due {
                    entry.due = true;
                    due.extend(entry.waker.take());
                }
                entry.soon = entry.at > now && entry.at < horizon;
                if entry.soon {
                    earliest = earliest.min(entry.at);
                }
                entry.soon
            });
            self.earliest.set(earliest);
        }
        for waker in due {
            waker.wake();
        }
    }

    fn expect_at(&self, index: usize, at: Millis) {
        // Most deadlines are seconds away and end here.
        if at < self.horizon.get() {
            self.expect_soon(index, at);
        }
    }

    fn expect_soon(&self, index: usize, at: Millis) {
        let mut cells = self.cells.borrow_mut();
        if !std::mem::replace(&mut cells.slots[index].soon, true) {
            cells.soon.push(index);
        }
        if at < self.earliest.get() {
            self.earliest.set(at);
            if let Some(driver) = &*self.driver.borrow() {
                driver.wake_by_ref();
            }
        }
    }
}

/// Finds the slots that are due soon; gives the time before which that are all.
fn look_through(slots: &mut [Entry], soon: &mut Vec<usize>, now: Millis) -> Millis {
    let until = now.saturating_add(HORIZON);
    let mut later = NEVER;
    soon.clear();
    for (index, entry) in slots.iter_mut().enumerate() {
        entry.soon = entry.at < until && !entry.due;
        if entry.soon {
            soon.push(index);
        } else if !entry.due {
            later = later.min(entry.at);
        }
    }
    // With nothing in sight the core need not wake up in between.
    if soon.is_empty() { later } else { until }
}

/// One deadline at a time.
#[derive(Debug)]
pub struct Slot {
    timers: Rc<Timers>,
    index: usize,
}

impl Slot {
    /// Whether `at` has come; if not, `cx` is woken when it does.
    ///
    /// Does not read the clock: the driver says what is due.
    pub fn poll_at(&self, cx: &mut Context<'_>, at: Millis) -> Poll<()> {
        if at == NEVER {
            return Poll::Pending;
        }
        {
            let mut cells = self.timers.cells.borrow_mut();
            let entry = &mut cells.slots[self.index];
            if entry.at != at {
                entry.at = at;
                entry.due = false;
            } else if entry.due {
                return Poll::Ready(());
            }
            match &mut entry.waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                waker => *waker = Some(cx.waker().clone()),
            }
        }
        self.timers.expect_at(self.index, at);
        Poll::Pending
    }

    /// Forgets the deadline.
    pub fn clear(&self) {
        let mut cells = self.timers.cells.borrow_mut();
        let entry = &mut cells.slots[self.index];
        entry.at = NEVER;
        entry.due = false;
        entry.waker = None;
    }

    /// Runs `future` until `at`. The future is asked first, so that what is ready in time counts.
    ///
    /// # Errors
    /// [`Elapsed`] when `at` came first.
    pub async fn within<F: Future>(&self, at: Millis, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut armed = false;
        let result = std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            armed = true;
            self.poll_at(cx, at).map(|()| Err(Elapsed))
        })
        .await;
        if armed {
            self.clear();
        }
        result
    }

    /// Runs `future` for at most `patience` milliseconds (0 for ever), counted from its first wait: what is
    /// ready at once costs no reading of the clock.
    ///
    /// # Errors
    /// [`Elapsed`] when the time was over first.
    pub async fn within_for<F: Future>(&self, patience: Millis, future: F) -> Result<F::Output, Elapsed> {
        let mut future = pin!(future);
        let mut at = None;
        let result = std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            let at = *at.get_or_insert_with(|| match patience {
                0 => NEVER,
                patience => clock::now().saturating_add(patience),
            });
            self.poll_at(cx, at).map(|()| Err(Elapsed))
        })
        .await;
        if at.is_some() {
            self.clear();
        }
        result
    }

    /// Waits until `at`.
    pub async fn until(&self, at: Millis) {
        std::future::poll_fn(|cx| self.poll_at(cx, at)).await;
        self.clear();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut cells = self.timers.cells.borrow_mut();
        let entry = &mut cells.slots[self.index];
        (entry.at, entry.due, entry.waker) = (NEVER, false, None);
        cells.free.push(self.index);
    }
}

/// The moment `duration` from now; `None` and 0 mean never.
pub fn deadline(now: Millis, duration: Option<Duration>) -> Millis {
    match duration {
        Some(duration) if !duration.is_zero() => now.saturating_add(clock::millis(duration)),
        _ => NEVER,
    }
}

/// Polls both; what the first gives wins when both are ready.
pub async fn either<A: Future, B: Future<Output = A::Output>>(first: A, second: B) -> A::Output {
    let mut first = pin!(first);
    let mut second = pin!(second);
    std::future::poll_fn(|cx| match Pin::as_mut(&mut first).poll(cx) {
        Poll::Ready(output) => Poll::Ready(output),
        Poll::Pending => Pin::as_mut(&mut second).poll(cx),
    })
    .await
}

/// A time limit of so many milliseconds; 0 is none.
pub fn limit(millis: Millis) -> Option<Duration> {
    (millis != 0).then(|| Duration::from_millis(millis))
}

/// Since when a wait lasts that progress ends. The clock is read once a wait.
#[derive(Debug, Default)]
pub struct Wait {
    since: Option<Millis>,
}

impl Wait {
    /// Something has moved.
    pub fn progress(&mut self) {
        self.since = None;
    }

    /// When nothing has moved for `idle` milliseconds; 0 for ever.
    pub fn at(&mut self, idle: Millis) -> Millis {
        let since = *self.since.get_or_insert_with(clock::now);
        if idle == 0 { Millis::MAX } else { since.saturating_add(idle) }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::runtime::{Builder, LocalOptions};

    use super::*;

    fn on_a_core<F: Future>(future: impl FnOnce(Rc<Timers>) -> F) -> F::Output {
        let runtime =
            Builder::new_current_thread().enable_time().build_local(LocalOptions::default()).unwrap();
        runtime.block_on(async {
            let timers = Timers::new();
            tokio::task::spawn_local(Rc::clone(&timers).drive());
            future(timers).await
        })
    }

    #[test]
    fn a_wait_without_end_is_cut_at_its_deadline_and_not_before() {
        on_a_core(|timers| async move {
            let slot = timers.slot();
            let at = clock::now() + 30;
            assert_eq!(slot.within(at, pending::<()>()).await, Err(Elapsed));
            assert!(clock::now() >= at);
        });
    }

    #[test]
    fn what_is_ready_in_time_counts_and_the_slot_can_be_used_again() {
        on_a_core(|timers| async move {
            let slot = timers.slot();
            assert_eq!(slot.within(clock::now() + 60_000, async { 7 }).await, Ok(7));
            assert_eq!(slot.within(clock::now() + 10, pending::<()>()).await, Err(Elapsed));
            assert_eq!(slot.within(NEVER, async { 8 }).await, Ok(8));
        });
    }

    #[test]
    fn a_nearer_deadline_set_later_is_served_first() {
        on_a_core(|timers| async move {
            let (far, near) = (timers.slot(), timers.slot());
            let start = clock::now();
            let far = async { far.within(start + 60_000, pending::<()>()).await };
            let near = async { near.within(start + 20, pending::<()>()).await };
            assert_eq!(either(far, near).await, Err(Elapsed));
            assert!(clock::now() < start + 30_000);
        });
    }

    #[test]
    fn a_dropped_slot_is_given_to_the_next_who_asks() {
        let timers = Timers::new();
        let first = timers.slot();
        let index = first.index;
        drop(first);
        assert_eq!(timers.slot().index, index);
    }

    #[test]
    fn of_many_deadlines_near_and_far_none_is_early_lost_or_late_by_much() {
        on_a_core(|timers| async move {
            let start = clock::now();
            // Around the horizon, in the past, and far away; in no order.
            let waits = (0..400).map(|n| (n * 7919) % 1200).map(|wait| {
                let slot = timers.slot();
                tokio::task::spawn_local(async move {
                    let at = start + wait;
                    if wait % 3 == 0 {
                        // Put off twice before it is waited for.
                        assert!(slot.within(start + 5, std::future::ready(())).await.is_ok());
                        slot.within_for(1, std::future::pending::<()>()).await.expect_err("over");
                    }
                    slot.until(at).await;
                    assert!(clock::now() >= at, "early");
                })
            });
            let waits: Vec<_> = waits.collect();
            let far: Vec<_> = (0..100).map(|_| timers.slot()).collect();
            let held: Vec<_> = far
                .into_iter()
                .map(|slot| {
                    tokio::task::spawn_local(
                        async move { slot.within(start + 3_600_000, pending::<()>()).await },
                    )
                })
                .collect();
            for wait in waits {
                wait.await.expect("no panic");
            }
            assert!(clock::now() < start + 60_000, "late");
            held.iter().for_each(tokio::task::JoinHandle::abort);
        });
    }

    #[test]
    fn only_deadlines_in_sight_are_looked_at_between_looks_at_all() {
        let timers = Timers::new();
        let slots: Vec<_> = (0..100).map(|_| timers.slot()).collect();
        let mut cx = Context::from_waker(Waker::noop());
        for (n, slot) in slots.iter().enumerate() {
            assert!(slot.poll_at(&mut cx, 1000 + 100 * n as Millis).is_pending());
        }
        let due = |now| {
            timers.fire(now);
            let cells = timers.cells.borrow();
            (cells.slots.iter().filter(|entry| entry.due).count(), cells.soon.len(), timers.earliest.get())
        };
        // None in sight: the next look is at the first.
        assert_eq!(due(400), (0, 0, 1000));
        assert_eq!(due(1000), (1, 4, 1100));
        assert_eq!(due(1250), (3, 2, 1300));
        assert!(slots[99].poll_at(&mut cx, 1260).is_pending(), "a nearer one set later");
        assert_eq!(due(1260), (4, 2, 1300));
        assert!(slots[3].poll_at(&mut cx, 9_999_999).is_pending(), "one that is put off");
        assert_eq!(due(1310), (4, 1, 1400));
        // At the horizon all are looked at again.
        assert_eq!(due(1500), (6, 4, 1600));
        drop(slots);
        assert_eq!(due(2100), (0, 0, NEVER));
    }
}
