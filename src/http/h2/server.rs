//! One stream of a client: its request's content in, its answer out.
//!
//! The window opens only as the other side takes what came, and nothing is given to the codec for which the
//! client has not opened its own: so what a stream holds is bounded both ways.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderValue, StatusCode, header};

use super::limits::ServerLimits;
use super::outflow::{Keep, OutError, Outflow, WaitsFor};
use super::{allowed_trailers, strip_connection_fields};
use crate::common::clock::{self, Millis};
use crate::common::timer::{Slot, Wait};
use crate::http::body::{Body, BodyError};
use crate::http::fields::Fields;
use crate::http::h1::framing::{Length, Piece};
use crate::http::h1::memory::Stream;
use crate::http::h1::server::{SendError, SendPatience};
use crate::http::head::ResponseHead;

/// A client's stream, shared by the task that serves it and the body of its request.
pub struct ServerStream {
    respond: RefCell<SendResponse<Bytes>>,
    /// The client waits for `100 Continue`.
    owes_continue: Cell<bool>,
    /// Content of the request, and of its answer.
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    /// For the waits of the request's body.
    body_slot: Slot,
}

impl std::fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerStream").field("bytes_in", &self.bytes_in).finish_non_exhaustive()
    }
}

/// How an answer is written.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The request was `HEAD`: fields as for `GET`, but no content.
    pub head_only: bool,
    /// For answers without `Date` (RFC 9110 §6.6.1).
    pub date: &'a [u8],
    /// Calls of gRPC learn from trailers what went wrong in the middle.
    pub grpc: bool,
}

/// The codec of a connection with its limits.
pub fn builder(limits: &ServerLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.max_concurrent_streams)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_header_list_size(limits.header_list)
        .header_table_size(limits.decoder_table)
        .max_send_buffer_size(limits.send_buffer)
        .max_pending_accept_reset_streams(limits.pending_resets)
        .max_local_error_reset_streams(Some(limits.local_resets))
        .enable_connect_protocol();
    builder
}

impl ServerStream {
    /// Takes a stream whose request's fields have come.
    pub fn new(respond: SendResponse<Bytes>, body_slot: Slot, expects_continue: bool) -> Rc<Self> {
        Rc::new(Self {
            respond: RefCell::new(respond),
            owes_continue: Cell::new(expects_continue),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            body_slot,
        })
    }

    /// Sends an interim answer (RFC 9110 §15.2) ahead of the final one.
    pub fn send_interim(&self, status: StatusCode, headers: &Fields) {
        if status == StatusCode::CONTINUE && !self.owes_continue.take() {
            return;
        }
        let mut headers = headers.clone();
        strip_connection_fields(&mut headers);
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers.into();
        // Fails only for a stream that is gone, of which its task learns by itself.
        let _ = self.respond.borrow_mut().send_informational(response);
    }

    /// Resolves when the client has reset the stream, or is gone as a whole, before its answer.
    pub fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.respond.borrow_mut().poll_reset(cx).map(|_| ())
    }

    /// Gives the stream up.
    pub fn reset(&self, reason: Reason) {
        self.respond.borrow_mut().send_reset(reason);
    }

    /// The body of the request. `deadline` is for all of it, `idle` for any wait.
    pub fn request_body(
        self: &Rc<Self>,
        receive: RecvStream,
        length: Length,
        deadline: Millis,
        idle: Millis,
    ) -> Body {
        if length == Length::Empty {
            return Body::Empty;
        }
        Body::FromH2Client(Box::new(RequestBody {
            stream: Rc::clone(self),
            receive,
            length,
            unreleased: 0,
            part: Part::Content,
            deadline,
            idle,
            waits_since: None,
            _stream: Stream::begin(),
        }))
    }

    /// Bytes of content read and written.
    pub fn counts(&self) -> (u64, u64) {
        (self.bytes_in.get(), self.bytes_out.get())
    }

    /// Begins a tunnel (RFC 8441 §5) with a 200.
    ///
    /// # Errors
    /// The client is gone.
    pub fn start_tunnel(&self, head: ResponseHead) -> Result<SendStream<Bytes>, SendError> {
        let mut headers = head.headers;
        strip_connection_fields(&mut headers);
        headers.remove(header::SEC_WEBSOCKET_ACCEPT);
        let mut response = http::Response::new(());
        *response.headers_mut() = headers.into();
        self.respond.borrow_mut().send_response(response, false).map_err(gone)
    }

    /// Writes an answer and its body.
    ///
    /// # Errors
    /// When it did not get out whole; the stream has been reset then, or ended with trailers that say so.
    pub async fn send(
        &self,
        head: ResponseHead,
        body: &mut Body,
        answer: Answer<'_>,
        slot: &Slot,
        patience: SendPatience,
    ) -> Result<(), SendError> {
        self.owes_continue.set(false);
        let status = head.status;
        let no_content = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = body.length();
        let mut headers = head.headers;
        if !headers.contains_key(header::DATE)
            && let Ok(date) = HeaderValue::from_bytes(answer.date)
        {
            headers.insert(header::DATE, date);
        }
        if !no_content {
            match length {
                Length::Empty if answer.head_only || answer.grpc => {}
                Length::Empty => {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                Length::Exact(bytes) => {
                    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
                }
                Length::Chunked | Length::UntilClose => {}
            }
        }
        // A link may have set what no message of HTTP/2 has.
        strip_connection_fields(&mut headers);
        let mut response = http::Response::new(());
        *response.status_mut() = status;
        *response.headers_mut() = headers.into();
        let ends = no_content || answer.head_only || length == Length::Empty;
        let stream = self.respond.borrow_mut().send_response(response, ends).map_err(gone)?;
        if ends {
            return Ok(());
        }
        let mut out = Outflow::new(stream, length, Keep::Nothing);
        let result = send_content(&mut out, body, self, slot, patience).await;
        if let Err(error) = &result {
            break_off(&mut out.stream, error, answer.grpc);
        }
        result
    }
}

fn gone(error: h2::Error) -> SendError {
    SendError::Client(error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()))
}

async fn send_content(
    out: &mut Outflow,
    body: &mut Body,
    stream: &ServerStream,
    slot: &Slot,
    patience: SendPatience,
) -> Result<(), SendError> {
    let mut wait = Wait::default();
    let mut moved = (0, 0);
    let mut quiet = patience.quiet;
    let result = poll_fn(|cx| {
        match out.poll(body, cx) {
            Poll::Ready(Ok(())) => return Poll::Ready(Ok(())),
            Poll::Ready(Err(OutError::Body(error))) => return Poll::Ready(Err(SendError::Body(error))),
            Poll::Ready(Err(OutError::Closed(error))) => {
                let reset = || io::ErrorKind::ConnectionReset.into();
                let error = error.and_then(h2::Error::into_io).unwrap_or_else(reset);
                return Poll::Ready(Err(SendError::Client(error)));
            }
            Poll::Pending => {}
        }
        body.poll_background(cx);
        let now = (out.steps, stream.bytes_in.get());
        if moved != now {
            moved = now;
            wait.progress();
        }
        // Who has nothing to send waits for the pod; who has, for the client.
        let (idle, stalled) = match out.waits_for() {
            WaitsFor::Body => (patience.body_idle, SendError::BodyStalled),
            WaitsFor::Window => (patience.client_idle, SendError::ClientStalled),
        };
        let at = wait.at(idle);
        let first = at.min(patience.deadline);
        if out.waits_for() == WaitsFor::Body {
            let quiet_at = wait.at(quiet);
            if quiet_at < first {
                ready!(slot.poll_at(cx, quiet_at));
                quiet = 0;
                body.stands_still();
            }
        }
        ready!(slot.poll_at(cx, first));
        Poll::Ready(Err(if patience.deadline <= at { SendError::Deadline } else { stalled }))
    })
    .await;
    slot.clear();
    stream.bytes_out.set(stream.bytes_out.get() + out.sent);
    result
}

/// Ends a stream whose answer cannot be finished, so that nobody takes it for whole.
fn break_off(stream: &mut SendStream<Bytes>, error: &SendError, grpc: bool) {
    let status = match error {
        SendError::Deadline => "4",
        SendError::Body(BodyError::Pod(_)) | SendError::BodyStalled => "14",
        SendError::Client(_) | SendError::ClientStalled | SendError::Body(_) => "",
    };
    if grpc && !status.is_empty() {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(status));
        trailers.insert("grpc-message", HeaderValue::from_static("the answer broke off"));
        if stream.send_trailers(trailers).is_ok() {
            return;
        }
    }
    stream.send_reset(match error {
        SendError::Client(_) | SendError::ClientStalled | SendError::Deadline => Reason::CANCEL,
        SendError::Body(_) | SendError::BodyStalled => Reason::INTERNAL_ERROR,
    });
}

/// The content of a request, still on the wire.
#[derive(Debug)]
pub struct RequestBody {
    stream: Rc<ServerStream>,
    receive: RecvStream,
    length: Length,
    /// Of the piece that was last given away: whoever asks for the next one has taken it.
    unreleased: usize,
    part: Part,
    deadline: Millis,
    idle: Millis,
    waits_since: Option<Millis>,
    _stream: Stream,
}

/// What of a body is to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part {
    Content,
    Trailers,
    Nothing,
}

impl RequestBody {
    /// How it was announced.
    pub fn length(&self) -> Length {
        self.length
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        if self.stream.owes_continue.get() {
            self.stream.send_interim(StatusCode::CONTINUE, &Fields::new());
        }
        match poll_receive(&mut self.receive, &mut self.part, &mut self.unreleased, cx) {
            Poll::Ready(piece) => {
                self.waits_since = None;
                Poll::Ready(match piece {
                    Some(Ok(Piece::Data(data))) => {
                        self.stream.bytes_in.set(self.stream.bytes_in.get() + data.len() as u64);
                        Some(Ok(Piece::Data(data)))
                    }
                    Some(Ok(trailers)) => Some(Ok(trailers)),
                    Some(Err(error)) if error.is_library() => {
                        Some(Err(BodyError::ClientMalformed("content that its stream may not have")))
                    }
                    Some(Err(_)) => Some(Err(BodyError::ClientGone)),
                    None => None,
                })
            }
            Poll::Pending => {
                let idle = match self.idle {
                    0 => Millis::MAX,
                    idle => self.waits_since.get_or_insert_with(clock::now).saturating_add(idle),
                };
                ready!(self.stream.body_slot.poll_at(cx, self.deadline.min(idle)));
                Poll::Ready(Some(Err(BodyError::ClientTimeout)))
            }
        }
    }
}

/// The next piece of a stream's content, or its trailers; opens the window by what was taken before.
pub(super) fn poll_receive(
    receive: &mut RecvStream,
    part: &mut Part,
    unreleased: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Piece, h2::Error>>> {
    let taken = std::mem::take(unreleased);
    if taken > 0 {
        // Fails only for more than was given.
        let _ = receive.flow_control().release_capacity(taken);
    }
    loop {
        match part {
            Part::Content => match ready!(receive.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => {
                    *unreleased = data.len();
                    return Poll::Ready(Some(Ok(Piece::Data(data))));
                }
                Some(Err(error)) => {
                    *part = Part::Nothing;
                    return Poll::Ready(Some(Err(error)));
                }
                None => *part = Part::Trailers,
            },
            Part::Trailers => {
                let trailers = ready!(receive.poll_trailers(cx));
                *part = Part::Nothing;
                return Poll::Ready(match trailers {
                    Ok(Some(trailers)) => {
                        let trailers = allowed_trailers(trailers);
                        (!trailers.is_empty()).then_some(Ok(Piece::Trailers(trailers)))
                    }
                    Ok(None) => None,
                    Err(error) => Some(Err(error)),
                });
            }
            Part::Nothing => return Poll::Ready(None),
        }
    }
}
