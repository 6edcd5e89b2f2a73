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

/// No deadline.
const NEVER: Millis = Millis::MAX;

/// All deadlines of one core.
#[derive(Debug, Default)]
pub struct Timers {
    cells: RefCell<Cells>,
    /// No slot is due before this; may be too early, never too late.
    earliest: Cell<Millis>,
    driver: RefCell<Option<Waker>>,
}

#[derive(Debug, Default)]
struct Cells {
    slots: Vec<Entry>,
    free: Vec<usize>,
}

#[derive(Debug)]
struct Entry {
    at: Millis,
    /// The driver has seen `at` pass.
    due: bool,
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
        Rc::new(timers)
    }

    /// Takes a slot; it is given back on drop.
    pub fn slot(self: &Rc<Self>) -> Slot {
        let mut cells = self.cells.borrow_mut();
        let entry = Entry { at: NEVER, due: false, waker: None };
        let index = match cells.free.pop() {
            Some(index) => {
                cells.slots[index] = entry;
                index
            }
            None => {
                cells.slots.push(entry);
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
                if earliest <= now {
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
            let mut earliest = NEVER;
            for entry in &mut cells.slots {
                if entry.at > now {
                    earliest = earliest.min(entry.at);
                } else if !entry.due {
                    entry.due = true;
                    due.extend(entry.waker.take());
                }
            }
            self.earliest.set(earliest);
        }
        for waker in due {
            waker.wake();
        }
    }

    fn expect_at(&self, at: Millis) {
        if at < self.earliest.get() {
            self.earliest.set(at);
            if let Some(driver) = &*self.driver.borrow() {
                driver.wake_by_ref();
            }
        }
    }
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
        self.timers.expect_at(at);
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
        cells.slots[self.index] = Entry { at: NEVER, due: false, waker: None };
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
}
