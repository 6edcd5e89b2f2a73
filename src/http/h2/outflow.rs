//! The content of a message on its way into a stream: as much as the other side has opened its window for.

use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use h2::SendStream;

use crate::http::body::{Body, BodyError};
use crate::http::fields::Fields;
use crate::http::h1::framing::{Length, Piece};

/// What of a request's content is kept until the pod has answered, so that it can be sent again.
const KEPT: usize = 64 * 1024;

/// Content on its way out.
pub(super) struct Outflow {
    /// The stream it goes to.
    pub stream: SendStream<Bytes>,
    /// What was announced and has not been taken from the body.
    left: Option<u64>,
    data: Bytes,
    next: Next,
    kept: Option<BytesMut>,
    /// A piece of the body was taken.
    touched: bool,
    /// Grows with every step forward.
    pub steps: u64,
    /// Bytes of content given to the codec.
    pub sent: u64,
}

/// What follows the piece at hand, as far as it is known: the last bytes and the end leave in one frame.
enum Next {
    Unknown,
    Data(Bytes),
    Trailers(Fields),
    End,
    Broken(BodyError),
}

/// Why content did not get out whole.
pub(super) enum OutError {
    /// The other side is gone, or has had enough.
    Closed(Option<h2::Error>),
    /// What was to be sent broke off, or is of another length than was announced.
    Body(BodyError),
}

/// What a pending outflow waits for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum WaitsFor {
    /// More of the body.
    Body,
    /// The other side's window, or the socket.
    Window,
}

/// Whether what was taken from a body is kept.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Keep {
    /// It may have to be sent again.
    Pieces,
    /// It is sent once.
    Nothing,
}

impl Outflow {
    pub(super) fn new(stream: SendStream<Bytes>, length: Length, keep: Keep) -> Self {
        let left = match length {
            Length::Empty => Some(0),
            Length::Exact(bytes) => Some(bytes),
            Length::Chunked | Length::UntilClose => None,
        };
        Self {
            stream,
            left,
            data: Bytes::new(),
            next: Next::Unknown,
            kept: (keep == Keep::Pieces).then(BytesMut::new),
            touched: false,
            steps: 0,
            sent: 0,
        }
    }

    /// Sends as much as can be sent now; ready when that was all.
    pub(super) fn poll(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Poll<Result<(), OutError>> {
        loop {
            if matches!(self.next, Next::Unknown) {
                self.look_ahead(body, cx);
            }
            if self.data.is_empty() {
                match std::mem::replace(&mut self.next, Next::Unknown) {
                    Next::Data(data) => {
                        self.stream.reserve_capacity(data.len());
                        self.data = data;
                    }
                    Next::Trailers(trailers) => {
                        return Poll::Ready(self.stream.send_trailers(trailers.into()).map_err(closed));
                    }
                    Next::End => {
                        return Poll::Ready(self.stream.send_data(Bytes::new(), true).map_err(closed));
                    }
                    Next::Broken(error) => return Poll::Ready(Err(OutError::Body(error))),
                    Next::Unknown => return self.poll_closed(cx),
                }
                continue;
            }
            let capacity = self.stream.capacity().min(self.data.len());
            if capacity > 0 {
                self.steps += 1;
                self.sent += capacity as u64;
                let part = self.data.split_to(capacity);
                let last = self.data.is_empty() && matches!(self.next, Next::End);
                if let Err(error) = self.stream.send_data(part, last) {
                    return Poll::Ready(Err(closed(error)));
                }
                if last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match self.stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(closed(error))),
                Poll::Ready(None) => return Poll::Ready(Err(OutError::Closed(None))),
                Poll::Pending => return self.poll_closed(cx),
            }
        }
    }

    /// What it waits for, after it was pending.
    pub(super) fn waits_for(&self) -> WaitsFor {
        if self.data.is_empty() { WaitsFor::Body } else { WaitsFor::Window }
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), OutError>> {
        match self.stream.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => Poll::Ready(Err(OutError::Closed(Some(reason.into())))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(closed(error))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn look_ahead(&mut self, body: &mut Body, cx: &mut Context<'_>) {
        let Poll::Ready(piece) = body.poll_piece(cx) else { return };
        self.touched = true;
        self.steps += 1;
        self.next = match piece {
            Some(Ok(Piece::Data(data))) => {
                self.keep(&data);
                match self.left.map(|left| left.checked_sub(data.len() as u64)) {
                    Some(None) => Next::Broken(BodyError::Pod("body is longer than its length")),
                    Some(left) => {
                        self.left = left;
                        Next::Data(data)
                    }
                    None => Next::Data(data),
                }
            }
            Some(Err(error)) => Next::Broken(error),
            Some(Ok(Piece::Trailers(_))) | None if self.left.is_some_and(|left| left > 0) => {
                Next::Broken(BodyError::Pod("body is shorter than its length"))
            }
            Some(Ok(Piece::Trailers(trailers))) => {
                self.kept = None;
                Next::Trailers(trailers)
            }
            None => Next::End,
        };
    }

    fn keep(&mut self, data: &Bytes) {
        if let Some(kept) = &mut self.kept {
            if kept.len() + data.len() > KEPT {
                self.kept = None;
            } else {
                kept.extend_from_slice(data);
            }
        }
    }

    /// The body as it was, if nothing of it is lost. `length` is what it announced.
    pub(super) fn into_body(self, body: Body, length: Length) -> Option<Body> {
        if !self.touched {
            return Some(body);
        }
        let kept = self.kept?;
        let rest = match self.next {
            Next::End => Body::Empty,
            Next::Unknown | Next::Data(_) => body,
            Next::Trailers(_) | Next::Broken(_) => return None,
        };
        Some(Body::again(kept.freeze(), rest, length))
    }
}

impl std::fmt::Debug for Outflow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outflow").field("sent", &self.sent).finish_non_exhaustive()
    }
}

fn closed(error: h2::Error) -> OutError {
    OutError::Closed(Some(error))
}
