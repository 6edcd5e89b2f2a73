//! What the connections of one core may hold in buffers, all together.
//!
//! A limit for each connection alone is none: ten thousand slow clients multiply it. So the size of a read
//! falls with the number of bodies under way, and large heads share one budget. Both figures belong to a
//! thread, because a connection lives and dies on its core's.

use std::cell::{Cell, RefCell};

use bytes::BytesMut;
use http::Method;

use crate::http::fields::Fields;
use crate::http::head::RequestHead;
use crate::http::text::Text;

/// First read of a head, and the smallest of a body; most heads fit.
pub(crate) const SMALL_READ: usize = 4 * 1024;
/// Largest read of a body. Bigger reads save system calls on big bodies.
const LARGEST_READ: usize = 256 * 1024;
/// A head that came whole is counted from here on: one with fair cookies may wait long for its answer.
const COMMON_HEAD: usize = 16 * 1024;

/// How much that is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Budgets {
    /// For large heads, in bytes: eight of the largest at once by default, or two thousand of 8 KiB that come
    /// slowly.
    pub heads: usize,
    /// What bodies read into, about, in bytes: each that is slow holds one read. By default 16 fast ones get
    /// the largest reads; thousands of slow ones, however they come, get to 4 MiB * (1 + ln(1024 / 16)) =
    /// 20 MiB and the smallest read for each after that.
    pub bodies: usize,
}

impl Budgets {
    const DEFAULT: Self = Self { heads: 8 * 1024 * 1024, bodies: 4 * 1024 * 1024 };
}

impl Default for Budgets {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// Empty buffers, maps and heads that a core keeps for its next requests: to allocate them anew costs a request a
/// tenth of its instructions.
const KEPT: usize = 32;
/// Fields for which a map has room from the start: a browser's, and ours.
const FIELDS: usize = 24;
/// A map with more room than that is not kept.
const MANY_FIELDS: usize = 128;

/// Where a request's head stays, and what its parts held is let go of.
struct Room(Box<RequestHead>);

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
    static MAPS: RefCell<Vec<Fields>> = const { RefCell::new(Vec::new()) };
    static ROOMS: RefCell<Vec<Room>> = const { RefCell::new(Vec::new()) };
    static BUDGETS: Cell<Budgets> = const { Cell::new(Budgets::DEFAULT) };
    static STREAMS: Cell<usize> = const { Cell::new(0) };
    static HEADS: Cell<usize> = const { Cell::new(0) };
}

/// Sets the budgets of the calling core; what is held already stays held.
pub fn set_budgets(budgets: Budgets) {
    BUDGETS.set(budgets);
}

/// A buffer for a head.
pub(super) fn buffer() -> BytesMut {
    BUFFERS.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(SMALL_READ))
}

/// Takes back a buffer that is not needed for now, if nothing else holds a part of it.
pub(super) fn keep_buffer(mut buffer: BytesMut) {
    buffer.clear();
    if buffer.try_reclaim(SMALL_READ) && buffer.capacity() <= 2 * SMALL_READ {
        BUFFERS.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(buffer);
            }
        });
    }
}

/// An empty map with room for the fields of most heads.
pub fn fields() -> Fields {
    MAPS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Fields::with_capacity(FIELDS))
}

/// Takes back the map of a head that is done with.
pub fn keep_fields(mut fields: Fields) {
    if (FIELDS..=MANY_FIELDS).contains(&fields.capacity()) {
        fields.clear();
        MAPS.with_borrow_mut(|kept| {
            if kept.len() < KEPT {
                kept.push(fields);
            }
        });
    }
}

/// A request's head where it stays.
pub(super) fn boxed(head: RequestHead) -> Box<RequestHead> {
    match ROOMS.with_borrow_mut(Vec::pop) {
        Some(Room(mut room)) => {
            *room = head;
            room
        }
        None => Box::new(head),
    }
}

/// Takes back the head of a request that is done with.
pub fn keep_head(mut head: Box<RequestHead>) {
    keep_fields(std::mem::take(&mut head.headers));
    // What it shares with the buffer that it was read into is let go of.
    (head.method, head.query) = (Method::GET, None);
    (head.path, head.authority) = (Text::default(), Text::default());
    ROOMS.with_borrow_mut(|kept| {
        if kept.len() < KEPT {
            kept.push(Room(head));
        }
    });
}

/// A body under way.
#[derive(Debug)]
pub(crate) struct Stream(());

impl Stream {
    /// One more.
    pub(crate) fn begin() -> Self {
        STREAMS.set(STREAMS.get() + 1);
        Self(())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        STREAMS.set(STREAMS.get() - 1);
    }
}

/// The largest read that a body is worth now.
pub(crate) fn read_limit() -> usize {
    (BUDGETS.get().bodies / STREAMS.get().max(1)).clamp(SMALL_READ, LARGEST_READ)
}

/// Doubles while reads fill what they were given, and shrinks again slowly.
pub(crate) fn next_read_size(size: usize, read: usize) -> usize {
    if read >= size {
        (size * 2).min(read_limit())
    } else if read < size / 4 {
        (size / 2).max(SMALL_READ)
    } else {
        size.min(read_limit())
    }
}

/// What one connection's head takes of the budget.
#[derive(Debug, Default)]
pub(crate) struct HeadShare(usize);

impl HeadShare {
    /// Lets a head that is still coming grow to `bytes`; `false` when too many others are that large.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        self.set(if bytes > SMALL_READ { bytes } else { 0 })
    }

    /// Takes a whole head of so many bytes, at once; `false` when too many others are that large.
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        bytes <= COMMON_HEAD || self.set(bytes)
    }

    /// A head of so many bytes is whole, and kept until its answer is sent.
    pub(crate) fn settle(&mut self, bytes: usize) {
        // Never more than it had while it grew.
        let _ = self.set(if bytes > COMMON_HEAD { bytes.min(self.0) } else { 0 });
    }

    /// The head is gone.
    pub(crate) fn release(&mut self) {
        let _ = self.set(0);
    }

    fn set(&mut self, bytes: usize) -> bool {
        if bytes == self.0 {
            return true;
        }
        let held = HEADS.get() - self.0;
        if bytes > self.0 && held + bytes > BUDGETS.get().heads {
            return false;
        }
        HEADS.set(held + bytes);
        self.0 = bytes;
        true
    }
}

impl Drop for HeadShare {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_for_a_few_bodies_and_stay_small_for_many() {
        let one = Stream::begin();
        let mut size = SMALL_READ;
        for _ in 0..10 {
            size = next_read_size(size, size);
        }
        assert_eq!(size, LARGEST_READ);
        set_budgets(Budgets { bodies: LARGEST_READ / 2, ..Budgets::default() });
        assert_eq!(next_read_size(size, size), LARGEST_READ / 2);
        set_budgets(Budgets::default());
        let many: Vec<_> = (0..10_000).map(|_| Stream::begin()).collect();
        assert_eq!(read_limit(), SMALL_READ);
        assert_eq!(next_read_size(size, size), SMALL_READ);
        drop(many);
        assert_eq!(next_read_size(size, size), LARGEST_READ);
        drop(one);
        assert_eq!(STREAMS.get(), 0);
    }

    #[test]
    fn buffers_and_maps_come_back_empty_and_only_when_nobody_holds_a_part() {
        let mut buffer = buffer();
        buffer.extend_from_slice(b"GET / HTTP/1.1\r\n");
        let held = buffer.split_to(3).freeze();
        keep_buffer(buffer);
        assert_eq!(BUFFERS.with_borrow(Vec::len), 0, "a part of it is in use");
        assert_eq!(held, "GET");
        keep_buffer(BytesMut::with_capacity(SMALL_READ));
        let buffer = super::buffer();
        assert!(buffer.is_empty() && buffer.capacity() >= SMALL_READ);
        keep_buffer(BytesMut::with_capacity(1 << 20));
        assert_eq!(BUFFERS.with_borrow(Vec::len), 0, "too large");

        let mut map = fields();
        map.insert("x-secret", http::HeaderValue::from_static("1"));
        keep_fields(map);
        assert!(fields().is_empty());
        keep_fields(Fields::with_capacity(1000));
        keep_fields(Fields::new());
        assert_eq!(MAPS.with_borrow(Vec::len), 0);
        for _ in 0..2 * KEPT {
            keep_fields(Fields::with_capacity(FIELDS));
        }
        assert_eq!(MAPS.with_borrow(Vec::len), KEPT);
    }

    #[test]
    fn heads_come_back_without_what_they_held() {
        let text = Text::copy_from("/a-path-of-its-own");
        let head = || RequestHead {
            method: Method::POST,
            path: text.clone(),
            query: Some(text.clone()),
            authority: text.clone(),
            version: http::Version::HTTP_11,
            headers: fields(),
        };
        for _ in 0..2 * KEPT {
            keep_head(Box::new(head()));
        }
        assert_eq!(ROOMS.with_borrow(Vec::len), KEPT);
        let Room(kept) = ROOMS.with_borrow_mut(Vec::pop).expect("just kept");
        assert_eq!((&kept.method, kept.path.as_str(), &kept.query), (&Method::GET, "", &None));
        assert_eq!(boxed(head()).path, *"/a-path-of-its-own");
    }

    #[test]
    fn large_heads_share_one_budget_and_give_it_back() {
        set_budgets(Budgets { heads: 4 << 20, ..Budgets::default() });
        let mut heads: Vec<HeadShare> = Vec::new();
        let fits = BUDGETS.get().heads / (1 << 20);
        for _ in 0..fits {
            let mut head = HeadShare::default();
            assert!(head.grow(1 << 19) && head.grow(1 << 20));
            heads.push(head);
        }
        let mut late = HeadShare::default();
        assert!(late.grow(SMALL_READ), "a small head is always welcome");
        assert!(!late.grow(1 << 20));
        heads.pop();
        assert!(late.grow(1 << 20));
        late.settle(8 * 1024);
        assert_eq!(HEADS.get(), (fits - 1) << 20);
        late.grow(1 << 20);
        late.release();
        heads.clear();
        assert_eq!(HEADS.get(), 0);
    }
}
