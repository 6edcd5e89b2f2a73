//! One client's connection: heads and bodies in, answers out.
//!
//! The connection is shared by reference counting between the loop that serves it and the body of
//! the request it is serving. It owns no buffer while it is idle.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use http::{StatusCode, Version};

use super::client::ResponseBody;
use super::encode::{self, Encoding, Outgoing};
use super::framing::{Decoder, Length, Piece};
use super::io::Io;
use super::memory::{self, HeadShare, SMALL_READ, Stream, next_read_size};
use super::parse::{self, HeadLimits, HeadScan, Leniency, LineEnds, ParsedRequest};
use super::splice::Pipe;
use crate::common::clock::{self, Millis};
use crate::common::timer::{Slot, Wait};
use crate::http::authority::Checked;
use crate::http::body::{Body, BodyError};
use crate::http::error::ProxyError;
use crate::http::fields::Fields;
use crate::http::head::ResponseHead;

/// What a client may have sent ahead (pipelining) while its request is being served and still be watched
/// for its end: one or two requests, so that a flood of them stays in the kernel's buffers.
const MAX_AHEAD: usize = 1024;
/// What one answer may move before others have their turn.
const FAIR_SHARE: u64 = 2 * 1024 * 1024;
/// Free room of a buffer that is not worth a copy to give back.
const SLACK: usize = 1024;

/// A client's connection.
#[derive(Debug)]
pub struct ServerConn {
    io: Io,
    state: RefCell<State>,
    /// For the waits of the request's body.
    body_slot: Slot,
}

#[derive(Debug)]
struct State {
    buf: BytesMut,
    scan: HeadScan,
    /// Of the request whose head is coming or being served.
    head: HeadShare,
    skipped: usize,
    decoder: Decoder,
    length: Length,
    /// Of the last request; most connections know only one.
    authority: Option<Rc<Checked>>,
    /// The client waits for `100 Continue`.
    owes_continue: bool,
    /// When the whole body must have come.
    body_deadline: Millis,
    /// How long nothing of the body may come, in milliseconds.
    body_idle: Millis,
    /// Since when nothing of it has come.
    body_waits_since: Option<Millis>,
    read_size: usize,
    half_closed: bool,
    /// The request's body cannot be read to its end.
    body_failed: bool,
    out: Outgoing,
    /// Content of the request being served, and of its answer.
    bytes_in: u64,
    bytes_out: u64,
}

/// What the wait for a head ended with.
#[derive(Debug)]
pub enum Incoming {
    /// A request.
    Request(ParsedRequest),
    /// The client closed before it sent a byte of another request.
    Closed,
}

/// Whether an answer ends only with its connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MustClose(pub bool);

/// How an answer is written.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// Of the request.
    pub version: Version,
    /// The request was `HEAD`: fields as for `GET`, but no content.
    pub head_only: bool,
    /// The connection ends after it, and the client is told.
    pub close: bool,
    /// For answers without `Date` (RFC 9110 §6.6.1).
    pub date: &'a [u8],
    /// The protocol switched to, on a 101.
    pub upgrade: Option<&'a [u8]>,
}

/// What became of a part of an answer that the kernel was to move.
enum Passed {
    /// So many bytes went out; 0 after the last.
    Bytes(u64),
    /// Nothing has come from the pod.
    BodyPending,
    /// The client takes nothing.
    ClientPending,
    Failed(SendError),
}

/// Why an answer did not get out whole. The connection is of no more use.
#[derive(Debug)]
pub enum SendError {
    /// The client is gone.
    Client(io::Error),
    /// The client takes nothing for too long.
    ClientStalled,
    /// What was to be sent broke off.
    Body(BodyError),
    /// Nothing came to be sent for too long.
    BodyStalled,
    /// [`SendPatience::deadline`] has come.
    Deadline,
}

impl SendError {
    /// Whether the pod did it, or the client, perhaps because it had waited for the pod.
    pub fn is_pods_or_clients(&self) -> bool {
        matches!(self, Self::Body(BodyError::Pod(_)) | Self::BodyStalled | Self::Client(_))
    }
}

/// How long an answer's waits may last, in milliseconds; 0 for ever.
#[derive(Clone, Copy, Debug)]
pub struct SendPatience {
    /// Nothing comes from the pod.
    pub body_idle: Millis,
    /// The same, until it is told ([`Body::stands_still`]).
    pub quiet: Millis,
    /// The client takes nothing.
    pub client_idle: Millis,
    /// For everything.
    pub deadline: Millis,
    /// Nothing comes from the pod for a client that has closed its side, and so may be gone.
    pub half_closed: Millis,
}

impl ServerConn {
    /// Takes an accepted socket.
    pub fn new(io: Io, body_slot: Slot) -> Rc<Self> {
        Rc::new(Self {
            io,
            body_slot,
            state: RefCell::new(State {
                buf: BytesMut::new(),
                scan: HeadScan::default(),
                head: HeadShare::default(),
                skipped: 0,
                decoder: Decoder::new(Length::Empty),
                length: Length::Empty,
                authority: None,
                owes_continue: false,
                body_deadline: Millis::MAX,
                body_idle: 0,
                body_waits_since: None,
                read_size: SMALL_READ,
                half_closed: false,
                body_failed: false,
                out: Outgoing::default(),
                bytes_in: 0,
                bytes_out: 0,
            }),
        })
    }

    /// The socket.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Waits for the first bytes of the next request, holding no buffer meanwhile. `false` when the client
    /// has closed.
    pub async fn wait_for_request(&self) -> bool {
        std::future::poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            if !state.buf.is_empty() {
                return Poll::Ready(true);
            }
            if state.half_closed {
                return Poll::Ready(false);
            }
            state.head.release();
            if state.buf.capacity() > 0 {
                memory::keep_buffer(std::mem::take(&mut state.buf));
            }
            if ready!(self.io.poll_readable(cx)).is_err() {
                return Poll::Ready(false);
            }
            state.buf = memory::buffer();
            match self.io.poll_read(cx, &mut state.buf) {
                Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(false),
                Poll::Ready(Ok(_)) => Poll::Ready(true),
                Poll::Pending => {
                    memory::keep_buffer(std::mem::take(&mut state.buf));
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Whether what has come begins with `start`, or with a part of it.
    pub fn begins_with(&self, start: &[u8]) -> bool {
        let state = self.state.borrow();
        let known = state.buf.len().min(start.len());
        state.buf[..known] == start[..known]
    }

    /// Reads until it is known whether what comes begins with `start`.
    pub async fn read_start(&self, start: &[u8]) -> bool {
        std::future::poll_fn(|cx| {
            loop {
                if !self.begins_with(start) {
                    return Poll::Ready(false);
                }
                let state = &mut *self.state.borrow_mut();
                if state.buf.len() >= start.len() {
                    return Poll::Ready(true);
                }
                state.buf.reserve(SMALL_READ);
                match ready!(self.io.poll_read(cx, &mut state.buf)) {
                    Ok(0) | Err(_) => return Poll::Ready(false),
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    /// The socket and what was read of it, for another protocol; `None` while a body of this one is in use.
    pub fn into_parts(conn: Rc<Self>) -> Option<(Io, BytesMut)> {
        let Self { io, state, .. } = Rc::try_unwrap(conn).ok()?;
        Some((io, state.into_inner().buf))
    }

    /// Whether bytes of a next request are here already.
    pub fn has_more(&self) -> bool {
        !self.state.borrow().buf.is_empty()
    }

    /// Reads the next request's head.
    ///
    /// # Errors
    /// What is wrong with it; the answer must close the connection.
    pub async fn read_head(&self, limits: &HeadLimits) -> Result<Incoming, ProxyError> {
        std::future::poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            loop {
                if state.scan.is_new() && !parse::skip_empty_lines(&mut state.buf, &mut state.skipped) {
                    return Poll::Ready(Err(ProxyError::BadRequest("empty lines before the request")));
                }
                if let Some(first) = state.buf.first()
                    && !parse::begins_request(*first)
                {
                    return Poll::Ready(Err(ProxyError::BadRequest("not an HTTP request")));
                }
                let mut ends = LineEnds::default();
                if let Some(end) = state.scan.find_end(&state.buf, limits, Leniency::None, &mut ends)? {
                    let head = state.buf.split_to(end).freeze();
                    state.head.settle(end);
                    state.scan = HeadScan::default();
                    state.skipped = 0;
                    state.bytes_in = 0;
                    state.bytes_out = 0;
                    state.body_failed = false;
                    let parsed = parse::request(head, &ends, limits, state.authority.as_ref())?;
                    state.authority = Some(Rc::clone(&parsed.authority));
                    state.decoder = Decoder::new(parsed.length);
                    state.length = parsed.length;
                    state.owes_continue = parsed.expects_continue;
                    state.read_size = SMALL_READ;
                    return Poll::Ready(Ok(Incoming::Request(parsed)));
                }
                let len = state.buf.len();
                if self.io.poll_readable(cx).is_pending() {
                    // A head that comes slowly holds what it has and not what it may come to.
                    if state.buf.capacity() > 2 * len + SLACK {
                        state.buf = BytesMut::from(&state.buf[..]);
                    }
                    return Poll::Pending;
                }
                if len == state.buf.capacity() {
                    let room = len.max(SLACK);
                    if !state.head.grow(len + room) {
                        return Poll::Ready(Err(ProxyError::Overloaded("too many large heads at once")));
                    }
                    state.buf.reserve(room);
                }
                match ready!(self.io.poll_read(cx, &mut state.buf)) {
                    Ok(0) if state.buf.is_empty() => return Poll::Ready(Ok(Incoming::Closed)),
                    Ok(0) => return Poll::Ready(Err(ProxyError::ClientGone)),
                    Ok(_) => {}
                    Err(_) if state.buf.is_empty() => return Poll::Ready(Ok(Incoming::Closed)),
                    Err(_) => return Poll::Ready(Err(ProxyError::ClientGone)),
                }
            }
        })
        .await
    }

    /// The body of the request whose head was just read. `deadline` is for all of it, `idle` for any wait.
    pub fn request_body(self: &Rc<Self>, deadline: Millis, idle: Millis) -> Body {
        let mut state = self.state.borrow_mut();
        state.body_deadline = deadline;
        state.body_idle = idle;
        state.body_waits_since = None;
        match state.length {
            Length::Empty => Body::Empty,
            length => {
                Body::FromClient(RequestBody { conn: Rc::clone(self), length, _stream: Stream::begin() })
            }
        }
    }

    /// Whether the whole request has been taken off the wire.
    pub fn request_is_done(&self) -> bool {
        self.state.borrow().decoder.is_done()
    }

    /// Whether what is left of the request can be read and thrown away: it is on its way, and not more
    /// than `limit` bytes as far as is known.
    pub fn can_drain(&self, limit: u64) -> bool {
        let state = self.state.borrow();
        !state.owes_continue
            && !state.body_failed
            && !state.half_closed
            && state.decoder.remaining().is_none_or(|left| left <= limit)
    }

    /// Resolves when the client is gone, while its request is being served. Bytes that come meanwhile
    /// are the next request's and are kept, up to a bound.
    ///
    /// `Ready(true)`: reset; `Ready(false)`: it has closed its side, which may mean that it only has
    /// nothing more to say.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let state = &mut *self.state.borrow_mut();
        if !state.decoder.is_done() || state.half_closed {
            return Poll::Pending;
        }
        loop {
            if state.buf.len() >= MAX_AHEAD {
                return Poll::Pending;
            }
            if self.io.poll_readable(cx).is_pending() {
                return Poll::Pending;
            }
            state.buf.reserve(MAX_AHEAD);
            match ready!(self.io.poll_read(cx, &mut state.buf)) {
                Ok(0) => {
                    state.half_closed = true;
                    return Poll::Ready(false);
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(true),
            }
        }
    }

    /// Sends an interim answer (RFC 9110 §15.2) ahead of the final one.
    pub fn send_interim(&self, status: StatusCode, headers: &Fields) {
        let state = &mut *self.state.borrow_mut();
        if status == StatusCode::CONTINUE {
            if !state.owes_continue {
                return;
            }
            state.owes_continue = false;
        }
        let text = state.out.text();
        encode::response_start(text, Version::HTTP_11, status, headers);
        text.extend_from_slice(b"\r\n");
        // What the socket does not take now leaves with the answer.
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let _ = state.out.poll_flush(&self.io, &mut cx, &mut 0);
    }

    /// Writes an answer and its body; says whether the connection must end, because nothing else ends
    /// the body.
    ///
    /// # Errors
    /// When it did not get out whole: the connection must be closed.
    pub async fn send(
        &self,
        head: &ResponseHead,
        body: &mut Body,
        answer: Answer<'_>,
        slot: &Slot,
        patience: SendPatience,
    ) -> Result<MustClose, SendError> {
        let status = head.status;
        let no_content =
            status.is_informational() || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = body.length();
        let mut encoding = Encoding::Exact(0);
        // The body may be fed by the request's body, which is read through `self.state`: nothing of
        // it is borrowed while the body is asked.
        let mut out = {
            let mut state = self.state.borrow_mut();
            state.owes_continue = false;
            std::mem::take(&mut state.out)
        };
        {
            let text = out.text();
            encode::response_start(text, answer.version, status, &head.headers);
            if !head.headers.contains_key(http::header::DATE) && !status.is_informational() {
                text.extend_from_slice(b"Date: ");
                text.extend_from_slice(answer.date);
                text.extend_from_slice(b"\r\n");
            }
            let mut close = answer.close;
            if !no_content {
                match length {
                    Length::Empty if answer.head_only => {}
                    Length::Empty => text.extend_from_slice(b"Content-Length: 0\r\n"),
                    Length::Exact(bytes) => {
                        encode::put_content_length(text, bytes);
                        encoding = Encoding::Exact(bytes);
                    }
                    Length::Chunked | Length::UntilClose if answer.version == Version::HTTP_10 => {
                        encoding = Encoding::UntilClose;
                        close = true;
                    }
                    Length::Chunked | Length::UntilClose => {
                        text.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                        encoding = Encoding::Chunked;
                    }
                }
            }
            if let Some(protocol) = answer.upgrade {
                text.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
                text.extend_from_slice(protocol);
                text.extend_from_slice(b"\r\n");
            } else if close {
                text.extend_from_slice(b"Connection: close\r\n");
            } else if answer.version == Version::HTTP_10 {
                text.extend_from_slice(b"Connection: keep-alive\r\n");
            }
            text.extend_from_slice(b"\r\n");
        }
        let mut finished = no_content || answer.head_only || length == Length::Empty;
        let must_close = MustClose(encoding == Encoding::UntilClose);
        let mut wait = Wait::default();
        let mut written = 0;
        let mut content = 0;
        let mut half_closed = self.state.borrow().half_closed;
        let mut pipe = None;
        let mut quiet = patience.quiet;
        let result = std::future::poll_fn(|cx| {
            let mut passed = 0;
            loop {
                let mut body_pending = false;
                if let (Body::FromPod(pod), Encoding::Exact(left), true) =
                    (&mut *body, &mut encoding, !finished && out.is_empty())
                {
                    if pipe.is_none() && self.io.can_splice() {
                        pipe = pod.worth_a_pipe();
                    }
                    if let Some(pipe) = &mut pipe {
                        match self.poll_pass(cx, pod, pipe) {
                            Passed::Bytes(0) => return Poll::Ready(Ok(())),
                            Passed::Bytes(bytes) => {
                                wait.progress();
                                content += bytes;
                                *left = left.saturating_sub(bytes);
                                passed += bytes;
                                if passed >= FAIR_SHARE {
                                    cx.waker().wake_by_ref();
                                    return Poll::Pending;
                                }
                                continue;
                            }
                            Passed::Failed(error) => return Poll::Ready(Err(error)),
                            Passed::ClientPending => {
                                ready!(
                                    slot.poll_at(cx, wait.at(patience.client_idle).min(patience.deadline))
                                );
                                return Poll::Ready(Err(
                                    if patience.deadline <= wait.at(patience.client_idle) {
                                        SendError::Deadline
                                    } else {
                                        SendError::ClientStalled
                                    },
                                ));
                            }
                            Passed::BodyPending => body_pending = true,
                        }
                    }
                }
                while !finished && !body_pending && out.takes_more() {
                    match body.poll_piece(cx) {
                        Poll::Ready(Some(Ok(piece))) => {
                            wait.progress();
                            if let Piece::Data(data) = &piece {
                                content += data.len() as u64;
                            }
                            if let Err(what) = encoding.push(piece, &mut out, &mut finished) {
                                return Poll::Ready(Err(SendError::Body(BodyError::Pod(what))));
                            }
                        }
                        Poll::Ready(Some(Err(error))) => {
                            // What came before the break goes out first, as far as the socket takes it.
                            let _ = out.poll_flush(&self.io, cx, &mut written);
                            return Poll::Ready(Err(SendError::Body(error)));
                        }
                        Poll::Ready(None) => {
                            finished = true;
                            if let Err(what) = encoding.finish(&mut out) {
                                return Poll::Ready(Err(SendError::Body(BodyError::Pod(what))));
                            }
                        }
                        Poll::Pending => {
                            body_pending = true;
                            break;
                        }
                    }
                }
                let before = written;
                match out.poll_flush(&self.io, cx, &mut written) {
                    Poll::Ready(Ok(())) => {
                        if finished {
                            return Poll::Ready(Ok(()));
                        }
                        if written != before {
                            wait.progress();
                        }
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(SendError::Client(error))),
                    Poll::Pending => {
                        if written != before {
                            wait.progress();
                        }
                        if !body_pending {
                            body.poll_background(cx);
                        }
                        let at = wait.at(patience.client_idle);
                        ready!(slot.poll_at(cx, at.min(patience.deadline)));
                        return Poll::Ready(Err(if patience.deadline <= at {
                            SendError::Deadline
                        } else {
                            SendError::ClientStalled
                        }));
                    }
                }
                if body_pending {
                    match self.poll_gone(cx) {
                        Poll::Ready(true) => {
                            return Poll::Ready(Err(SendError::Client(
                                io::ErrorKind::ConnectionReset.into(),
                            )));
                        }
                        Poll::Ready(false) => half_closed = true,
                        Poll::Pending => {}
                    }
                    let at = wait.at(patience.body_idle);
                    let gone_at = if half_closed { wait.at(patience.half_closed) } else { Millis::MAX };
                    let quiet_at = wait.at(quiet);
                    let first = at.min(gone_at).min(patience.deadline);
                    ready!(slot.poll_at(cx, first.min(quiet_at)));
                    if quiet_at < first {
                        quiet = 0;
                        body.stands_still();
                        continue;
                    }
                    return Poll::Ready(Err(if gone_at < at.min(patience.deadline) {
                        SendError::Client(io::ErrorKind::ConnectionAborted.into())
                    } else if patience.deadline <= at {
                        SendError::Deadline
                    } else {
                        SendError::BodyStalled
                    }));
                }
            }
        })
        .await;
        slot.clear();
        let mut state = self.state.borrow_mut();
        state.bytes_out += content;
        if out.is_small() {
            state.out = out;
        }
        drop(state);
        result.map(|()| must_close)
    }

    /// Moves a part of a pod's answer through the kernel.
    fn poll_pass(&self, cx: &mut Context<'_>, pod: &mut ResponseBody, pipe: &mut Pipe) -> Passed {
        if pipe.held() == 0 {
            match pod.poll_fill(cx, pipe) {
                Poll::Ready(Ok(0)) => return Passed::Bytes(0),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Passed::Failed(SendError::Body(error)),
                Poll::Pending => return Passed::BodyPending,
            }
        }
        match self.io.poll_drain(cx, pipe) {
            Poll::Ready(Ok(0)) => Passed::Failed(SendError::Client(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(bytes)) => Passed::Bytes(bytes as u64),
            Poll::Ready(Err(error)) => Passed::Failed(SendError::Client(error)),
            Poll::Pending => Passed::ClientPending,
        }
    }

    /// Bytes of content read and written for the request being served.
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.borrow();
        (state.bytes_in, state.bytes_out)
    }

    /// Takes what was read ahead, for a tunnel.
    pub fn take_buffered(&self) -> BytesMut {
        std::mem::take(&mut self.state.borrow_mut().buf)
    }

    /// Reads and throws away the rest of the request, at most `limit` bytes of it; whether that was all.
    pub async fn drain(&self, limit: u64) -> bool {
        let mut taken = 0;
        loop {
            let piece = std::future::poll_fn(|cx| self.poll_body(cx)).await;
            match piece {
                None => return true,
                Some(Ok(Piece::Data(data))) => {
                    taken += data.len() as u64;
                    if taken > limit {
                        return false;
                    }
                }
                Some(Ok(Piece::Trailers(_))) => {}
                Some(Err(_)) => return false,
            }
        }
    }

    /// Says that nothing more will be sent, then reads for a moment what the client still sends: a
    /// socket closed over unread bytes is reset, and the reset can overtake the answer (RFC 9112 §9.6).
    pub async fn linger(&self, slot: &Slot, until: Millis) {
        self.io.shutdown_write();
        {
            let state = &mut *self.state.borrow_mut();
            state.buf = BytesMut::new();
            state.head.release();
        }
        let read = std::future::poll_fn(|cx| {
            let state = &mut *self.state.borrow_mut();
            loop {
                ready!(self.io.poll_readable(cx)).ok();
                state.buf.clear();
                state.buf.reserve(SMALL_READ);
                match ready!(self.io.poll_read(cx, &mut state.buf)) {
                    Ok(0) | Err(_) => return Poll::Ready(()),
                    Ok(_) => {}
                }
            }
        });
        // Whether the client closed or the time is over makes no difference.
        let _ = slot.within(until, read).await;
    }

    fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        let state = &mut *self.state.borrow_mut();
        let polled = self.poll_piece(state, cx);
        match &polled {
            Poll::Ready(Some(Ok(Piece::Data(data)))) => state.bytes_in += data.len() as u64,
            Poll::Ready(Some(Err(_))) => state.body_failed = true,
            Poll::Ready(None | Some(Ok(Piece::Trailers(_)))) | Poll::Pending => {}
        }
        polled
    }

    fn poll_piece(&self, state: &mut State, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        loop {
            match state.decoder.decode(&mut state.buf) {
                Ok(Some(piece)) => return Poll::Ready(Some(Ok(piece))),
                Ok(None) if state.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(what) => return Poll::Ready(Some(Err(BodyError::ClientMalformed(what)))),
            }
            if state.owes_continue {
                state.owes_continue = false;
                state.out.text().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
            }
            if !state.out.is_empty()
                && let Poll::Ready(Err(_)) = state.out.poll_flush(&self.io, cx, &mut 0)
            {
                return Poll::Ready(Some(Err(BodyError::ClientGone)));
            }
            let read = match self.io.poll_readable(cx) {
                Poll::Ready(_) => {
                    state.buf.reserve(state.read_size);
                    self.io.poll_read(cx, &mut state.buf)
                }
                // Until something comes no buffer is held for it.
                Poll::Pending => Poll::Pending,
            };
            match read {
                Poll::Ready(Ok(0)) => {
                    state.half_closed = true;
                    return Poll::Ready(Some(Err(BodyError::ClientGone)));
                }
                Poll::Ready(Ok(read)) => {
                    state.body_waits_since = None;
                    state.read_size = next_read_size(state.read_size, read);
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Some(Err(BodyError::ClientGone))),
                Poll::Pending => {
                    let idle = match state.body_idle {
                        0 => Millis::MAX,
                        idle => state.body_waits_since.get_or_insert_with(clock::now).saturating_add(idle),
                    };
                    ready!(self.body_slot.poll_at(cx, state.body_deadline.min(idle)));
                    return Poll::Ready(Some(Err(BodyError::ClientTimeout)));
                }
            }
        }
    }
}

/// The content of a request, still on the wire.
#[derive(Debug)]
pub struct RequestBody {
    conn: Rc<ServerConn>,
    length: Length,
    _stream: Stream,
}

impl RequestBody {
    /// How it was announced.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        self.conn.poll_body(cx)
    }
}
