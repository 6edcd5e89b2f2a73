//! Field values that are made for one message.
//!
//! They are cut from one buffer a core, which is written anew once nobody holds a part of it, so that they cost no
//! memory of their own. Whoever keeps one for long keeps the whole buffer, 4 KiB, with it.

use std::cell::RefCell;
use std::fmt::{self, Write};

use bytes::BytesMut;
use http::HeaderValue;

/// Room for some hundred values: those of the messages that a core has under way.
const SIZE: usize = 4096;
/// Most values are no longer.
const USUAL: usize = 64;

thread_local! {
    static ROOM: RefCell<BytesMut> = RefCell::new(BytesMut::with_capacity(SIZE));
}

/// These bytes; empty when no value may have them.
pub fn copied(bytes: &[u8]) -> HeaderValue {
    make(|room| room.extend_from_slice(bytes))
}

/// This text; empty when no value may have its characters.
pub fn written(text: fmt::Arguments<'_>) -> HeaderValue {
    // The buffer grows, so there is nothing to go wrong.
    make(|room| room.write_fmt(text).unwrap_or_default())
}

/// A number.
pub fn number(number: u64) -> HeaderValue {
    copied(itoa::Buffer::new().format(number).as_bytes())
}

fn make(write: impl FnOnce(&mut BytesMut)) -> HeaderValue {
    let bytes = ROOM.with_borrow_mut(|room| {
        // Goes back to the start when all that was cut from it is gone.
        room.reserve(USUAL);
        write(room);
        room.split().freeze()
    });
    HeaderValue::from_maybe_shared(bytes).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_say_what_was_written_also_when_many_are_held() {
        let held: Vec<_> = (0..2_000).map(|at| written(format_args!("\"day\";r={at};t=7"))).collect();
        for (at, value) in held.iter().enumerate() {
            assert_eq!(value, &format!("\"day\";r={at};t=7"));
        }
        for value in [0, 9, 10, 65_535, u64::MAX] {
            assert_eq!(number(value), value.to_string());
        }
        assert_eq!(copied("1.5\u{b5}s".as_bytes()).as_bytes(), "1.5\u{b5}s".as_bytes());
        assert_eq!(copied(b"a\nb"), "");
        let long = "x".repeat(3 * SIZE);
        assert_eq!(written(format_args!("{long}")), long);
    }
}
