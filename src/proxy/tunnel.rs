//! After a switch of protocols: bytes both ways until both sides are done.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};

use crate::common::clock::{self, Millis};
use crate::common::timer::Slot;
use crate::http::h1::io::Io;

/// What one direction holds at most.
const BUFFER: usize = 16 * 1024;

/// How a tunnel ended, and what went through it.
#[derive(Debug)]
pub struct Tunnelled {
    /// From the client to the pod.
    pub up: u64,
    /// From the pod to the client.
    pub down: u64,
    /// Why it ended.
    pub end: TunnelEnd,
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum TunnelEnd {
    /// Both sides are done.
    Closed,
    /// One side broke.
    Broken,
    /// Nothing moved for the idle time.
    Idle,
}

/// Passes bytes between a client and a pod. `client_first` and `pod_first` were read ahead of the switch.
/// `idle` is in milliseconds; 0 for ever.
pub async fn run(
    client: &Io,
    pod: &Io,
    client_first: BytesMut,
    pod_first: BytesMut,
    slot: &Slot,
    idle: Millis,
) -> Tunnelled {
    let mut up = Direction { buf: client_first, eof: false, done: false, moved: 0 };
    let mut down = Direction { buf: pod_first, eof: false, done: false, moved: 0 };
    let mut moved = u64::MAX;
    let mut since = 0;
    let end = poll_fn(|cx| {
        let result = up.poll(client, pod, cx).and_then(|()| down.poll(pod, client, cx));
        if result.is_err() {
            return Poll::Ready(TunnelEnd::Broken);
        }
        if up.done && down.done {
            return Poll::Ready(TunnelEnd::Closed);
        }
        let total = up.moved + down.moved;
        if total != moved {
            moved = total;
            since = clock::now();
        }
        let at = if idle == 0 { Millis::MAX } else { since + idle };
        slot.poll_at(cx, at).map(|()| TunnelEnd::Idle)
    })
    .await;
    slot.clear();
    Tunnelled { up: up.moved, down: down.moved, end }
}

struct Direction {
    buf: BytesMut,
    eof: bool,
    done: bool,
    moved: u64,
}

impl Direction {
    /// Moves as much as can be moved now.
    fn poll(&mut self, from: &Io, to: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.buf.is_empty() {
                match to.poll_write(cx, &[IoSlice::new(&self.buf)]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => {
                        self.buf.advance(written);
                        self.moved += written as u64;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => return Ok(()),
                }
            }
            if self.eof {
                if !self.done {
                    self.done = true;
                    to.shutdown_write();
                }
                return Ok(());
            }
            self.buf.reserve(BUFFER);
            match from.poll_read(cx, &mut self.buf) {
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    // Idle tunnels hold no buffer.
                    self.buf = BytesMut::new();
                    return Ok(());
                }
            }
        }
    }
}
