//! The bytes under the codec: read ahead or from the socket, and looked at on the way.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::limits::FrameLimits;
use super::watch::{Flood, Inbound, Outbound, Overrun, Sent};
use crate::common::clock::{self, Millis};
use crate::http::h1::io::Io;

/// What the connection's task knows of its bytes while the codec owns them.
#[derive(Debug)]
pub struct Watch {
    inbound: RefCell<Inbound>,
    outbound: RefCell<Outbound>,
    /// Codes of streams that were reset by us, until they are taken.
    resets: RefCell<Vec<u32>>,
    /// Streams that the codec has refused by itself, until they are taken.
    refused: RefCell<Vec<Refused>>,
    blocked_since: Cell<Option<Millis>>,
}

/// How the codec has refused a stream by itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// With 431.
    TooLarge,
    /// With a reset for that reason.
    Reset(u32),
}

impl Watch {
    /// A stream has been handed over by the codec.
    pub fn accepted(&self, stream: u32) {
        self.inbound.borrow_mut().accepted(stream);
    }

    /// Bytes of the fields of a request that have come so far, if they have not all come.
    pub fn block_bytes(&self) -> usize {
        self.inbound.borrow().block_bytes()
    }

    /// Tells how the codec has refused streams since it was last asked.
    pub fn take_refused(&self, each: impl FnMut(Refused)) {
        if !self.refused.borrow().is_empty() {
            self.refused.take().into_iter().for_each(each);
        }
    }

    /// The limit that the other side went over: from then on nothing more is read.
    pub fn flood(&self) -> Option<Flood> {
        self.inbound.borrow().flood()
    }

    /// Since when the fields of a request have been coming.
    pub fn block_since(&self) -> Option<Millis> {
        self.inbound.borrow().block_since()
    }

    /// When something last came.
    pub fn last_at(&self) -> Millis {
        self.inbound.borrow().last_at()
    }

    /// Which limit the codec ended the connection for.
    pub fn overrun(&self, local_resets: usize) -> Overrun {
        self.inbound.borrow().overrun(local_resets)
    }

    /// Since when the socket takes nothing of what waits.
    pub fn blocked_since(&self) -> Option<Millis> {
        self.blocked_since.get()
    }

    /// Gives the codes of resets that went out since it was last asked.
    pub fn take_resets(&self, each: impl FnMut(u32)) {
        if !self.resets.borrow().is_empty() {
            self.resets.borrow_mut().drain(..).for_each(each);
        }
    }

    fn wrote(&self, result: &Poll<io::Result<usize>>, slices: &[IoSlice<'_>]) {
        match result {
            Poll::Ready(Ok(written)) => {
                self.blocked_since.set(None);
                let mut inbound = self.inbound.borrow_mut();
                inbound.sent(*written as u64);
                let mut left = *written;
                let mut outbound = self.outbound.borrow_mut();
                for slice in slices {
                    let part = left.min(slice.len());
                    outbound.feed(&slice[..part], |sent| match sent {
                        Sent::Fields { stream } => {
                            if inbound.accepted(stream) {
                                self.refused.borrow_mut().push(Refused::TooLarge);
                            }
                        }
                        Sent::Reset { stream, code } => {
                            self.resets.borrow_mut().push(code);
                            if inbound.accepted(stream) {
                                self.refused.borrow_mut().push(Refused::Reset(code));
                            }
                        }
                    });
                    left -= part;
                    if left == 0 {
                        break;
                    }
                }
            }
            Poll::Pending if self.blocked_since.get().is_none() => {
                self.blocked_since.set(Some(clock::now()));
            }
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
    }
}

/// A client's socket as the codec sees it.
#[derive(Debug)]
pub struct Wire {
    io: Io,
    /// Read before it was known that this is HTTP/2.
    ahead: BytesMut,
    watch: Rc<Watch>,
}

impl Wire {
    /// Takes the socket, what was read of it already, and the limits on what comes.
    pub fn new(io: Io, ahead: BytesMut, limits: FrameLimits) -> (Self, Rc<Watch>) {
        let watch = Rc::new(Watch {
            inbound: RefCell::new(Inbound::new(limits, clock::now())),
            outbound: RefCell::default(),
            resets: RefCell::default(),
            refused: RefCell::default(),
            blocked_since: Cell::new(None),
        });
        (Self { io, ahead, watch: Rc::clone(&watch) }, watch)
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.watch.flood().is_some() {
            // The connection's task looks before it sleeps, and ends it.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(Ok(())) => {}
                other => return other,
            }
        } else {
            let taken = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..taken]);
            this.ahead.advance(taken);
            if this.ahead.is_empty() {
                this.ahead = BytesMut::new();
            }
        }
        this.watch.inbound.borrow_mut().feed(&buf.filled()[before..], clock::recent());
        if this.watch.flood().is_some() {
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch.wrote(&result, &[IoSlice::new(buf)]);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.watch.wrote(&result, slices);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
