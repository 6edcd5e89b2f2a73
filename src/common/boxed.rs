//! Futures on the heap that are made where they stay.
//!
//! `Box::pin` makes a future on the stack first and moves it: a copy of several kilobytes for each request, nearly
//! all of them not written yet.

use std::pin::Pin;

/// Boxes the future that `make` gives.
#[inline]
pub fn in_place<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    // With the room taken first, nothing can unwind between making and writing, so the compiler writes it there.
    let room = Box::new_uninit();
    Box::into_pin(Box::write(room, make()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::timer::Timers;

    #[test]
    fn what_is_made_in_place_runs_as_any_future() {
        let timers = Timers::new();
        let slot = timers.slot();
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let text = "seven".to_owned();
        let length = runtime.block_on(in_place(|| slot.within(u64::MAX, async move { text.len() })));
        assert_eq!(length, Ok(5));
    }
}
