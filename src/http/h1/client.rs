//! One connection to a pod: a request out, its answer in.
//!
//! Everything runs in the task of the exchange: the request's body is sent while the answer is
//! awaited and read, without a task of its own.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::encode::{self, Encoding, Outgoing, RequestExtras};
use super::framing::{Decoder, Length, Piece};
use super::io::Io;
use super::memory::{SMALL_READ, Stream, next_read_size};
use super::parse::{self, HeadLimits, HeadScan, Leniency, LineEnds};
use super::splice::{self, Pipe};
use crate::common::clock::{self, Millis};
use crate::common::timer::Slot;
use crate::http::body::{Body, BodyError};
use crate::http::fields::Fields;
use crate::http::head::{RequestHead, ResponseHead};

/// What a pod's head may hold. Generous: a pod is the operator's own.
const HEAD_LIMITS: HeadLimits = HeadLimits { bytes: 256 * 1024, fields: 512 };
/// What an unused connection may keep of the buffer it was read into.
const KEPT: usize = 8 * 1024;
/// Interim answers before the final one. Each is passed on, so a pod must not send them for ever.
const MAX_INTERIM: usize = 16;
/// What surely goes out as one segment where it is written at once, in bytes: IPv6 allows links of 1280, less heads.
const SEGMENT: u64 = 1200;
/// How often, and how many milliseconds apart, a reset is waited for: a round trip within a cluster, and more.
const RESET_LOOKS: u32 = 9;
const RESET_PAUSE: Millis = 10;
/// After what time an answer is first asked about; milliseconds.
const FIRST_LOOK: Millis = 250;
/// How long a body waits for the pod's `100 Continue` before it goes anyway (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Millis = 1000;

/// A connection to a pod.
#[derive(Debug)]
pub struct ClientConn {
    io: Io,
    buf: BytesMut,
    /// Empty; kept for the next head.
    out: Outgoing,
    read_size: usize,
    /// Requests it has served.
    served: u64,
    /// When it was last given back.
    idle_since: Millis,
    place: Option<Box<dyn Place>>,
}

/// Where a connection goes when its answer has been read to the end and it can serve another.
pub trait Home: std::fmt::Debug {
    /// Takes it back.
    fn give_back(&self, conn: Box<ClientConn>);

    /// One that had served before ended instead of answering.
    fn was_stale(&self, unread: Unread);

    /// Nothing has come of an answer for a while.
    fn stands_still(&self);

    /// An answer has come whole, but its connection can serve no other.
    fn came_whole(&self);
}

/// Whether the other side has read a request that it did not answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unread {
    /// It had closed the connection before.
    Surely,
    /// It may have.
    Unknown,
}

/// A place among a limited number of connections, given back when the connection is dropped.
pub trait Place: std::fmt::Debug {
    /// Whether it is one of those that are wanted.
    fn is_wanted(&self, by: Wanted) -> bool;
}

/// Who would have the place of a connection that is idle.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// A request on this core, that waits for one of these and can use none of the connections here.
    Here {
        /// Which limit it is about.
        among: usize,
    },
    /// A request on another core, whose turn it is. One on this core uses the connection itself.
    Beyond {
        /// The number of this one.
        core: usize,
    },
}

/// What the exchange wants of the connection beside the request.
pub struct Wants<'a> {
    /// The protocol to switch to.
    pub upgrade: Option<&'a [u8]>,
    /// The client waits for `100 Continue`: ask the pod before the body goes.
    pub expect_continue: bool,
    /// Gets each interim answer.
    pub interim: &'a mut dyn FnMut(StatusCode, &Fields),
    /// For all waits.
    pub slot: &'a Slot,
    /// From the request's last byte to the head of the answer; 0 for none.
    pub header_timeout: Millis,
    /// While the pod takes nothing of the request; 0 for none.
    pub idle_timeout: Millis,
    /// For everything.
    pub deadline: Millis,
    /// Asked from time to time while the answer is awaited: whether that is in vain.
    pub in_vain: Option<&'a dyn Fn() -> bool>,
}

/// Why no answer came.
#[derive(Debug)]
pub struct ExchangeError {
    /// What happened.
    pub cause: ExchangeCause,
    /// Whether a byte of the request may have reached the pod.
    pub written: bool,
    /// Whether the connection had served requests before.
    pub reused: bool,
    /// It went out whole and at once, and was met by a reset: whoever closes a connection sends one in place of an end
    /// when something unread has come. If that was the end of the pod, nobody has read the request.
    pub cut: bool,
    /// The request's body, if it can be sent again.
    pub body: Option<Body>,
}

/// What happened instead of an answer.
#[derive(Debug)]
pub enum ExchangeCause {
    /// The connection ended or broke.
    Closed(io::Error),
    /// What came is not HTTP/1.
    Malformed(&'static str),
    /// The request's body broke off.
    RequestBody(BodyError),
    /// No head in time.
    HeaderTimeout,
    /// The pod took nothing of the request for too long.
    IdleTimeout,
    /// [`Wants::deadline`] has come.
    Deadline,
    /// [`Wants::in_vain`] says so.
    InVain,
}

impl ClientConn {
    /// Takes a connected socket.
    pub fn new(io: Io) -> Box<Self> {
        Box::new(Self {
            io,
            buf: BytesMut::new(),
            out: Outgoing::default(),
            read_size: SMALL_READ,
            served: 0,
            idle_since: 0,
            place: None,
        })
    }

    /// Keeps its place until it is closed.
    pub fn hold(&mut self, place: Box<dyn Place>) {
        self.place = Some(place);
    }

    /// Whether its place is one of those that are wanted.
    pub fn is_wanted(&self, by: Wanted) -> bool {
        self.place.as_ref().is_some_and(|place| place.is_wanted(by))
    }

    /// The socket.
    pub fn io(&self) -> &Io {
        &self.io
    }

    /// Takes what was read beyond the answer's head, for a tunnel.
    pub fn take_buffered(&mut self) -> BytesMut {
        std::mem::take(&mut self.buf)
    }

    /// Whether it has served a request.
    pub fn is_reused(&self) -> bool {
        self.served > 0
    }

    /// Whether it has served another request after its first.
    pub fn has_served_again(&self) -> bool {
        self.served > 1
    }

    /// When it was last given back.
    pub fn idle_since(&self) -> Millis {
        self.idle_since
    }

    /// Whether it can still serve, as far as can be known; see [`Io::is_quiet`].
    pub fn is_usable(&self, ask_kernel: bool) -> bool {
        self.buf.is_empty() && self.io.is_quiet(ask_kernel)
    }

    /// Whether a new connection is as quiet as it should be. A pod that answers before it is asked would
    /// be one answer ahead from then on, and each client would get another's.
    fn listen_first(&self) -> Result<(), ExchangeCause> {
        match self.io.peek() {
            None => Ok(()),
            Some(Ok(0)) => Err(ExchangeCause::Closed(io::ErrorKind::UnexpectedEof.into())),
            Some(Ok(_)) => Err(ExchangeCause::Malformed("answered before it was asked")),
            Some(Err(error)) => Err(ExchangeCause::Closed(error)),
        }
    }

    /// Sends a request and reads the head of its answer.
    ///
    /// # Errors
    /// No answer came; the connection is closed.
    pub async fn exchange(
        mut self: Box<Self>,
        head: &RequestHead,
        body: Body,
        wants: Wants<'_>,
        home: &Rc<dyn Home>,
    ) -> Result<(ResponseHead, Body), ExchangeError> {
        if self.served == 0
            && let Err(cause) = self.listen_first()
        {
            return Err(ExchangeError { cause, written: false, reused: false, cut: false, body: Some(body) });
        }
        let length = body.length();
        let out = std::mem::take(&mut self.out);
        let mut sender = Sender::new(body, out, wants.expect_continue && length != Length::Empty);
        let extras = RequestExtras { expect_continue: sender.waits_for_continue, upgrade: wants.upgrade };
        encode::request_head(sender.out.text(), head, length, extras);
        let mut scan = HeadScan::default();
        let mut interim_left = MAX_INTERIM;
        let mut wait = Wait::default();
        let mut looked = 0;
        let result = poll_fn(|cx| {
            sender.poll(&self.io, cx);
            if let Some(error) = sender.body_error.take() {
                return Poll::Ready(Err(ExchangeCause::RequestBody(error)));
            }
            loop {
                let mut ends = LineEnds::default();
                let end = match scan.find_end(&self.buf, &HEAD_LIMITS, Leniency::BareLineFeed, &mut ends) {
                    Ok(end) => end,
                    Err(_) => return Poll::Ready(Err(ExchangeCause::Malformed("head too large"))),
                };
                if let Some(end) = end {
                    scan = HeadScan::default();
                    let parsed = match parse::response(self.buf.split_to(end).freeze(), &ends, &HEAD_LIMITS) {
                        Ok(parsed) => parsed,
                        Err(what) => return Poll::Ready(Err(ExchangeCause::Malformed(what))),
                    };
                    let status = parsed.head.status;
                    if !status.is_informational() || status == StatusCode::SWITCHING_PROTOCOLS {
                        return Poll::Ready(Ok(parsed));
                    }
                    interim_left -= 1;
                    if interim_left == 0 {
                        return Poll::Ready(Err(ExchangeCause::Malformed("too many interim answers")));
                    }
                    (wants.interim)(status, &parsed.head.headers);
                    // Other interim answers say nothing about the body (RFC 9110 §10.1.1).
                    if sender.waits_for_continue && status == StatusCode::CONTINUE {
                        sender.waits_for_continue = false;
                        sender.poll(&self.io, cx);
                    }
                    continue;
                }
                // Not a status line at all: no reason to wait for a whole head of it.
                let known = self.buf.len().min(5);
                if self.buf[..known] != b"HTTP/"[..known] {
                    return Poll::Ready(Err(ExchangeCause::Malformed("malformed status line")));
                }
                let read = match self.io.poll_readable(cx) {
                    Poll::Ready(_) => {
                        let room = self.read_size.max(self.buf.len());
                        self.buf.reserve(room);
                        self.io.poll_read(cx, &mut self.buf)
                    }
                    // Until something comes no buffer is held for it.
                    Poll::Pending => Poll::Pending,
                };
                let Poll::Ready(read) = read else {
                    let phase = sender.phase();
                    let since = wait.since(phase, sender.written);
                    let at = match (phase, wants.header_timeout, wants.idle_timeout) {
                        (Phase::Continue, _, _) => since + CONTINUE_WAIT,
                        (Phase::Sending, _, 0) | (Phase::Sent, 0, _) => Millis::MAX,
                        (Phase::Sending, _, idle) => since.saturating_add(idle),
                        (Phase::Sent, timeout, _) => since.saturating_add(timeout),
                    };
                    let look = match (phase, wants.in_vain) {
                        (Phase::Sent, Some(_)) => look_at(since, looked),
                        _ => Millis::MAX,
                    };
                    ready!(wants.slot.poll_at(cx, at.min(wants.deadline).min(look)));
                    if look < at.min(wants.deadline) {
                        if wants.in_vain.is_some_and(|is_in_vain| is_in_vain()) {
                            return Poll::Ready(Err(ExchangeCause::InVain));
                        }
                        looked = look;
                        continue;
                    }
                    return match phase {
                        _ if wants.deadline <= at => Poll::Ready(Err(ExchangeCause::Deadline)),
                        Phase::Sending => Poll::Ready(Err(ExchangeCause::IdleTimeout)),
                        Phase::Sent => Poll::Ready(Err(ExchangeCause::HeaderTimeout)),
                        Phase::Continue => {
                            sender.waits_for_continue = false;
                            (wants.interim)(StatusCode::CONTINUE, &Fields::new());
                            sender.poll(&self.io, cx);
                            continue;
                        }
                    };
                };
                match read {
                    Ok(0) => {
                        let kind = if self.buf.is_empty() {
                            io::Error::from(io::ErrorKind::UnexpectedEof)
                        } else {
                            io::Error::new(io::ErrorKind::UnexpectedEof, "in the middle of a head")
                        };
                        return Poll::Ready(Err(ExchangeCause::Closed(kind)));
                    }
                    Ok(read) => self.read_size = next_read_size(self.read_size, read),
                    Err(error) => return Poll::Ready(Err(ExchangeCause::Closed(error))),
                }
            }
        })
        .await;
        if wait.is_set() {
            wants.slot.clear();
        }
        let parsed = match result {
            Ok(parsed) => parsed,
            Err(cause) => {
                let reused = self.served > 0;
                let closed = matches!(cause, ExchangeCause::Closed(_)) && self.buf.is_empty();
                let whole = closed && sender.fits_a_segment();
                // What is sent again anyway is worth one look, but no wait.
                let looks = if head.method.is_idempotent() { 1 } else { RESET_LOOKS };
                let unread = whole && self.was_closed_before(&cause, wants.slot, wants.deadline, looks).await;
                let is_reset = matches!(&cause, ExchangeCause::Closed(error)
                    if error.kind() == io::ErrorKind::ConnectionReset);
                let cut = whole && !unread && is_reset && self.io.is_plain();
                if reused && closed {
                    home.was_stale(if unread { Unread::Surely } else { Unread::Unknown });
                }
                return Err(ExchangeError {
                    cause,
                    written: sender.written > 0 && !unread,
                    reused,
                    cut,
                    body: if unread || cut { sender.into_body() } else { sender.untouched_body() },
                });
            }
        };
        let status = parsed.head.status;
        if status == StatusCode::SWITCHING_PROTOCOLS {
            let agreed = match (wants.upgrade, &parsed.upgrade) {
                (Some(asked), Some(given)) => asked.eq_ignore_ascii_case(given.as_bytes()),
                _ => false,
            };
            if !agreed {
                return Err(ExchangeError {
                    cause: ExchangeCause::Malformed("switched protocols without being asked"),
                    written: true,
                    reused: self.served > 0,
                    cut: false,
                    body: None,
                });
            }
            return Ok((parsed.head, Body::Tunnel(self)));
        }
        let never_has_content = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let bodiless = never_has_content || head.method == Method::HEAD;
        let length = if bodiless { Length::Empty } else { parsed.length };
        if sender.is_done() && sender.out.is_small() {
            self.out = std::mem::take(&mut sender.out);
        }
        let mut response = ResponseBody {
            keep: parsed.keep_alive && length != Length::UntilClose,
            conn: Some(self),
            decoder: Decoder::new(length),
            length,
            sender: (!sender.is_done()).then(|| Box::new(sender)),
            home: Rc::clone(home),
            still: false,
            _stream: Stream::begin(),
        };
        // What a `HEAD` would have had is told by its fields alone; a 204 has no length at all (RFC 9110 §8.6).
        let announced = (bodiless && !never_has_content).then_some(parsed.length);
        let mut head = parsed.head;
        if let Some(Length::Exact(bytes)) = announced {
            head.headers.insert(http::header::CONTENT_LENGTH, bytes.into());
        }
        if length == Length::Empty {
            response.finish();
            return Ok((head, Body::Empty));
        }
        Ok((head, Body::FromPod(Box::new(response))))
    }
}

impl ClientConn {
    /// Whether the pod had closed the connection before the request came to it, so that nobody has read it. Its
    /// reset may still be under way: that takes a round trip.
    async fn was_closed_before(
        &self,
        cause: &ExchangeCause,
        slot: &Slot,
        deadline: Millis,
        looks: u32,
    ) -> bool {
        if let ExchangeCause::Closed(error) = cause
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            // Of a read, which takes the report itself.
            return error.kind() == io::ErrorKind::BrokenPipe && self.io.is_plain();
        }
        for _ in 1..looks {
            if self.io.was_closed_before() {
                return true;
            }
            slot.until((clock::now() + RESET_PAUSE).min(deadline)).await;
        }
        self.io.was_closed_before()
    }
}

/// When to look next whether it is in vain to wait `since` then: soon, and then after half as long again each time.
pub(in crate::http) fn look_at(since: Millis, looked: Millis) -> Millis {
    match looked {
        0 => since + FIRST_LOOK,
        _ => looked + (looked.saturating_sub(since) / 2).max(FIRST_LOOK / 2),
    }
}

/// The request on its way out.
#[derive(Debug)]
struct Sender {
    out: Outgoing,
    body: Body,
    encoding: Encoding,
    /// The body has been handed over whole.
    finished: bool,
    /// A piece of the body was taken.
    touched: bool,
    waits_for_continue: bool,
    written: u64,
    /// System calls that wrote some of it.
    writes: u32,
    /// The pieces of the body that were taken, while they are few.
    kept: Option<SmallVec<[Bytes; 1]>>,
    /// The pod takes nothing more; its answer may still come.
    refused: bool,
    body_error: Option<BodyError>,
}

impl Sender {
    fn new(body: Body, out: Outgoing, waits_for_continue: bool) -> Self {
        let (encoding, finished) = match body.length() {
            Length::Empty => (Encoding::Exact(0), true),
            Length::Exact(bytes) => (Encoding::Exact(bytes), false),
            Length::Chunked | Length::UntilClose => (Encoding::Chunked, false),
        };
        Self {
            out,
            body,
            encoding,
            finished,
            touched: false,
            waits_for_continue,
            written: 0,
            writes: 0,
            kept: Some(SmallVec::new()),
            refused: false,
            body_error: None,
        }
    }

    fn is_done(&self) -> bool {
        self.refused || (self.finished && self.out.is_empty())
    }

    /// Whether the request went out whole, in one segment: a pod has then read all of it or nothing.
    fn fits_a_segment(&self) -> bool {
        let whole = self.finished && self.out.is_empty() && self.body_error.is_none();
        whole && self.writes == 1 && self.written <= SEGMENT && self.kept.is_some()
    }

    /// The body, if no piece of it was taken.
    fn untouched_body(self) -> Option<Body> {
        (!self.touched).then_some(self.body)
    }

    /// The body as it was, if all that was taken of it is still there.
    fn into_body(self) -> Option<Body> {
        if !self.touched {
            return Some(self.body);
        }
        Some(match &self.kept?[..] {
            [only] => Body::full(only.clone()),
            pieces => Body::full(pieces.concat()),
        })
    }

    /// Remembers a piece, so that it can be sent again.
    fn keep(&mut self, piece: &Piece) {
        let Some(kept) = &mut self.kept else { return };
        match piece {
            Piece::Data(data)
                if kept.iter().map(Bytes::len).sum::<usize>() + data.len() <= SEGMENT as usize =>
            {
                kept.push(data.clone());
            }
            Piece::Data(_) | Piece::Trailers(_) => self.kept = None,
        }
    }

    fn phase(&self) -> Phase {
        if self.is_done() {
            Phase::Sent
        } else if self.waits_for_continue && self.out.is_empty() {
            Phase::Continue
        } else {
            Phase::Sending
        }
    }

    /// Sends as much as can be sent now.
    fn poll(&mut self, io: &Io, cx: &mut Context<'_>) {
        while !self.is_done() && self.body_error.is_none() {
            let mut starved = false;
            while !self.finished && !self.waits_for_continue && self.out.takes_more() {
                match self.body.poll_piece(cx) {
                    Poll::Ready(Some(Ok(piece))) => {
                        self.touched = true;
                        self.keep(&piece);
                        if let Err(what) = self.encoding.push(piece, &mut self.out, &mut self.finished) {
                            self.body_error = Some(BodyError::ClientMalformed(what));
                            return;
                        }
                    }
                    Poll::Ready(None) => {
                        self.touched = true;
                        self.finished = true;
                        if let Err(what) = self.encoding.finish(&mut self.out) {
                            self.body_error = Some(BodyError::ClientMalformed(what));
                            return;
                        }
                    }
                    Poll::Ready(Some(Err(error))) => {
                        self.touched = true;
                        self.body_error = Some(error);
                        return;
                    }
                    Poll::Pending => {
                        starved = true;
                        break;
                    }
                }
            }
            let idle = self.out.is_empty();
            let before = self.written;
            let flushed = self.out.poll_flush(io, cx, &mut self.written);
            self.writes += u32::from(self.written > before);
            match flushed {
                Poll::Ready(Ok(())) if starved || self.waits_for_continue => return,
                Poll::Ready(Ok(())) if idle && !self.finished => return,
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => self.refused = true,
                Poll::Pending => return,
            }
        }
    }
}

/// What the wait for an answer is a wait for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// The request is still going out.
    Sending,
    /// The pod shall say that it wants the body.
    Continue,
    /// The pod has it all.
    Sent,
}

/// Since when the present wait lasts; the clock is read only when there is something new to wait for.
#[derive(Default)]
struct Wait(Option<(Phase, u64, Millis)>);

impl Wait {
    fn since(&mut self, phase: Phase, written: u64) -> Millis {
        match self.0 {
            Some((same, so_far, since)) if same == phase && so_far == written => since,
            _ => {
                // The first wait begins right after the clock was read.
                let now = if self.0.is_none() { clock::recent() } else { clock::now() };
                self.0 = Some((phase, written, now));
                now
            }
        }
    }

    fn is_set(&self) -> bool {
        self.0.is_some()
    }
}

/// The content of an answer, still on the wire.
#[derive(Debug)]
pub struct ResponseBody {
    /// Gone once the answer is read and the connection given back.
    conn: Option<Box<ClientConn>>,
    decoder: Decoder,
    length: Length,
    /// The rest of the request, where the pod answers before it has all of it.
    sender: Option<Box<Sender>>,
    keep: bool,
    home: Rc<dyn Home>,
    /// It was said to stand still.
    still: bool,
    _stream: Stream,
}

impl ResponseBody {
    /// How it was announced.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        self.poll_send(cx);
        loop {
            let Some(conn) = &mut self.conn else { return Poll::Ready(None) };
            let decoded = match &mut self.decoder {
                decoder if decoder.is_done() => Ok(None),
                decoder => decoder.decode(&mut conn.buf),
            };
            match decoded {
                Ok(Some(piece)) => {
                    if self.decoder.is_done() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(piece)));
                }
                Ok(None) if self.decoder.is_done() => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Ok(None) => {}
                Err(what) => return self.fail(what),
            }
            // Until something comes no buffer is held for it.
            if conn.io.poll_readable(cx).is_pending() {
                if conn.buf.is_empty() {
                    conn.buf = BytesMut::new();
                }
                return Poll::Pending;
            }
            conn.buf.reserve(conn.read_size);
            match ready!(conn.io.poll_read(cx, &mut conn.buf)) {
                Ok(0) => match self.decoder.end_of_input() {
                    Ok(()) => {
                        self.conn = None;
                        return Poll::Ready(None);
                    }
                    Err(what) => return self.fail(what),
                },
                Ok(read) => conn.read_size = next_read_size(conn.read_size, read),
                Err(_) => return self.fail("connection reset"),
            }
        }
    }

    /// A pipe for what is left, where that is much and can go on without being looked at.
    pub(super) fn worth_a_pipe(&self) -> Option<Pipe> {
        let conn = self.conn.as_ref()?;
        let left = matches!(self.length, Length::Exact(_)).then(|| self.decoder.remaining()).flatten()?;
        let worth = left >= splice::WORTH && conn.buf.is_empty() && self.sender.is_none();
        if worth && conn.io.can_splice() { Pipe::take() } else { None }
    }

    /// Fills an empty pipe; 0 when nothing is left.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
    ) -> Poll<Result<usize, BodyError>> {
        let Some(conn) = &self.conn else { return Poll::Ready(Ok(0)) };
        let left = self.decoder.remaining().unwrap_or(0);
        let filled = match ready!(conn.io.poll_fill(cx, pipe, left)) {
            Ok(0) => Err(self.decoder.end_of_input().err().unwrap_or("ended early")),
            Ok(filled) => Ok(filled),
            Err(_) => Err("connection reset"),
        };
        Poll::Ready(match filled {
            Ok(filled) => {
                self.decoder.advance(filled as u64);
                if self.decoder.is_done() {
                    self.finish();
                }
                Ok(filled)
            }
            Err(what) => {
                self.conn = None;
                Err(BodyError::Pod(what))
            }
        })
    }

    /// Nothing has come of it for a while.
    pub fn stands_still(&mut self) {
        self.still = true;
        self.home.stands_still();
    }

    /// Whether it was said to stand still.
    pub fn has_stood_still(&self) -> bool {
        self.still
    }

    /// Sends more of the request, if there is more.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) {
        if let (Some(sender), Some(conn)) = (&mut self.sender, &self.conn) {
            sender.poll(&conn.io, cx);
            if sender.is_done() || sender.body_error.is_some() {
                // What was not sent whole leaves a connection nobody else can use.
                self.keep &= !sender.refused && sender.body_error.is_none();
                self.sender = None;
            }
        }
    }

    fn fail(&mut self, what: &'static str) -> Poll<Option<Result<Piece, BodyError>>> {
        self.conn = None;
        Poll::Ready(Some(Err(BodyError::Pod(what))))
    }

    /// The answer is whole: the connection goes home if it can serve another.
    fn finish(&mut self) {
        let Some(mut conn) = self.conn.take() else { return };
        if self.keep && self.sender.is_none() && conn.buf.is_empty() {
            conn.served += 1;
            conn.idle_since = clock::recent();
            if conn.buf.capacity() > KEPT {
                conn.buf = BytesMut::new();
            }
            self.home.give_back(conn);
        } else {
            self.home.came_whole();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::common::timer::Timers;
    use crate::http::text::Text;

    #[derive(Debug)]
    struct Nowhere;

    impl Home for Nowhere {
        fn give_back(&self, _: Box<ClientConn>) {}

        fn was_stale(&self, _: Unread) {}

        fn stands_still(&self) {}

        fn came_whole(&self) {}
    }

    /// A connection that has served a request, and the pod's end of it.
    async fn used() -> (Box<ClientConn>, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
        let mut conn = ClientConn::new(Io::new(near.expect("connected")));
        conn.served = 1;
        (conn, far.expect("accepted").0)
    }

    async fn post(conn: Box<ClientConn>, body: Body) -> ExchangeError {
        let timers = Timers::new();
        let slot = timers.slot();
        let head = RequestHead {
            method: Method::POST,
            path: Text::from_static("/"),
            query: None,
            authority: Text::from_static("a.test"),
            version: http::Version::HTTP_11,
            headers: Fields::new(),
        };
        let wants = Wants {
            upgrade: None,
            expect_continue: false,
            interim: &mut |_, _| {},
            slot: &slot,
            header_timeout: 0,
            idle_timeout: 0,
            deadline: Millis::MAX,
            in_vain: None,
        };
        let home: Rc<dyn Home> = Rc::new(Nowhere);
        let exchange = conn.exchange(&head, body, wants, &home);
        let local = tokio::task::LocalSet::new();
        local
            .run_until(async {
                tokio::task::spawn_local(Rc::clone(&timers).drive());
                exchange.await.expect_err("no answer comes")
            })
            .await
    }

    #[tokio::test]
    async fn a_request_that_came_to_a_closed_connection_can_be_sent_again_whole() {
        let (conn, far) = used().await;
        drop(far);
        while conn.io().peek().is_none() {
            tokio::task::yield_now().await;
        }

        let error = post(conn, Body::full("two words")).await;

        assert!(!error.written, "{error:?}");
        assert!(matches!(&error.body, Some(Body::Full(body)) if body == "two words"), "{error:?}");
    }

    #[tokio::test]
    async fn a_request_that_was_read_before_the_close_counts_as_written() {
        let (conn, mut far) = used().await;
        let pod = async {
            let mut request = vec![0; 4096];
            let read = far.read(&mut request).await.expect("a request");
            assert!(request[..read].ends_with(b"two words"));
            drop(far);
        };

        let (error, ()) = tokio::join!(post(conn, Body::full("two words")), pod);

        assert!(error.written && error.body.is_none(), "{error:?}");
    }

    #[tokio::test]
    async fn a_request_that_was_left_unread_may_have_been_read_in_part() {
        let (conn, mut far) = used().await;
        let pod = async {
            // Some of it, so that the close is a reset.
            far.read_exact(&mut [0; 5]).await.expect("a request");
            far.flush().await.expect("nothing to do");
            drop(far);
        };

        let (error, ()) = tokio::join!(post(conn, Body::full("two words")), pod);

        assert!(error.written, "{error:?}");
    }
}
