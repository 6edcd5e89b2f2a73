//! A body that is copied while it passes: for mirrors, which must neither delay nor fail what they copy.
//!
//! Bytes are copied, not shared, so that a copy holds what it has and not the buffers that it came in.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot;

use super::body::{Body, BodyError};
use super::h1::framing::{Length, Piece};

/// Bytes that copies may hold together.
#[derive(Debug)]
pub struct Room {
    held: AtomicU64,
    max: u64,
}

impl Room {
    /// Room for `max` bytes.
    pub fn new(max: u64) -> Arc<Self> {
        Arc::new(Self { held: AtomicU64::new(0), max })
    }

    /// How many there may be.
    pub fn max(&self) -> u64 {
        self.max
    }

    fn take(self: &Arc<Self>, bytes: u64) -> bool {
        let more = |held: u64| held.checked_add(bytes).filter(|held| *held <= self.max);
        self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }
}

/// Bytes taken of a room, given back on drop.
#[derive(Debug)]
struct Taken {
    room: Arc<Room>,
    bytes: u64,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A whole copy; its room is taken until it is dropped.
#[derive(Debug)]
pub struct Copied {
    bytes: Bytes,
    _taken: Taken,
}

impl Copied {
    /// The body, to send.
    pub fn body(&self) -> Body {
        Body::full(self.bytes.clone())
    }
}

/// Why there is no copy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotCopied {
    /// It is larger than a copy may be.
    TooLarge,
    /// There is no room left.
    NoRoom,
}

/// A body on its way, and the copy so far.
#[derive(Debug)]
pub struct Copying {
    inner: Body,
    copy: Option<Copy>,
}

#[derive(Debug)]
struct Copy {
    so_far: BytesMut,
    limit: u64,
    /// What was announced.
    exact: Option<u64>,
    taken: Taken,
    done: oneshot::Sender<Result<Copied, NotCopied>>,
}

impl Copying {
    /// Copies `inner` while it is read, up to `limit` bytes. The receiver has the copy when all of it has been
    /// read; it is closed without one when that will not happen.
    pub fn begin(
        inner: Body,
        limit: u64,
        room: &Arc<Room>,
    ) -> (Body, oneshot::Receiver<Result<Copied, NotCopied>>) {
        let (done, copied) = oneshot::channel();
        let exact = if let Length::Exact(bytes) = inner.length() { Some(bytes) } else { None };
        let taken = Taken { room: Arc::clone(room), bytes: 0 };
        let copy = Copy { so_far: BytesMut::new(), limit, exact, taken, done };
        let copy = if exact.is_some_and(|bytes| bytes > limit) {
            copy.give_up(NotCopied::TooLarge);
            None
        } else {
            Some(copy)
        };
        (Body::Copying(Box::new(Self { inner, copy })), copied)
    }

    /// How much is still to come.
    pub fn length(&self) -> Length {
        self.inner.length()
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        let piece = ready!(self.inner.poll_piece(cx));
        match &piece {
            Some(Ok(Piece::Data(data))) => self.copy = self.copy.take().and_then(|copy| copy.push(data)),
            // Trailer fields are not copied.
            Some(Ok(Piece::Trailers(_))) => {}
            Some(Err(_)) => self.copy = None,
            None => {
                if let Some(copy) = self.copy.take() {
                    copy.finish();
                }
            }
        }
        Poll::Ready(piece)
    }
}

impl Copy {
    /// `None` when the copy is whole, or there will be none.
    fn push(mut self, data: &Bytes) -> Option<Self> {
        let bytes = data.len() as u64;
        if self.taken.bytes + bytes > self.limit {
            self.give_up(NotCopied::TooLarge);
            return None;
        }
        if !self.taken.room.take(bytes) {
            self.give_up(NotCopied::NoRoom);
            return None;
        }
        self.taken.bytes += bytes;
        self.so_far.extend_from_slice(data);
        if self.exact == Some(self.taken.bytes) {
            // Whoever reads it may not ask once more.
            self.finish();
            return None;
        }
        Some(self)
    }

    fn finish(self) {
        // Whoever waited for it may have gone.
        let _ = self.done.send(Ok(Copied { bytes: self.so_far.freeze(), _taken: self.taken }));
    }

    fn give_up(self, why: NotCopied) {
        let _ = self.done.send(Err(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &mut Body) {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(_)) = body.poll_piece(&mut cx) {}
    }

    fn copied(body: Body, limit: u64, room: &Arc<Room>) -> Option<Result<Copied, NotCopied>> {
        let (mut body, mut copied) = Copying::begin(body, limit, room);
        read(&mut body);
        copied.try_recv().ok()
    }

    fn pieces() -> Body {
        Body::after(Bytes::from_static(b"one "), Body::full("two"))
    }

    #[test]
    fn what_passes_is_copied_and_its_room_given_back() {
        let room = Room::new(10);
        let copy = copied(pieces(), 7, &room).expect("it is done").expect("it fits");
        assert!(matches!(copy.body(), Body::Full(bytes) if bytes == "one two"));
        assert_eq!(room.held.load(Ordering::Relaxed), 7);
        assert_eq!(copied(pieces(), 7, &room).map(|copy| copy.err()), Some(Some(NotCopied::NoRoom)));
        drop(copy);
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_too_large_is_not_copied_at_all() {
        let room = Room::new(100);
        for body in [pieces(), Body::full("1234567")] {
            assert_eq!(copied(body, 6, &room).map(|copy| copy.err()), Some(Some(NotCopied::TooLarge)));
        }
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_body_that_is_not_read_to_its_end_leaves_no_copy_and_no_room() {
        let room = Room::new(100);
        let (mut body, mut copied) = Copying::begin(pieces(), 100, &room);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(body.poll_piece(&mut cx).is_ready());
        assert_eq!(room.held.load(Ordering::Relaxed), 4);
        drop(body);
        assert!(copied.try_recv().is_err());
        assert_eq!(room.held.load(Ordering::Relaxed), 0);
    }
}
