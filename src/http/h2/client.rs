//! One request on a stream to a pod: out, and its answer in.
//!
//! As with HTTP/1, everything runs in the task of the exchange; only the connection under all streams has a
//! task of its own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream};
use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri};

use super::outflow::{Keep, OutError, Outflow};
use super::server::{Part, poll_receive};
use super::{has_space_around, strip_connection_fields};
use crate::common::clock::{self, Millis};
use crate::http::body::{Body, BodyError};
use crate::http::fields::Fields;
use crate::http::h1::client::{ExchangeCause, ExchangeError, Wants, look_at};
use crate::http::h1::framing::{Length, Piece};
use crate::http::h1::memory::Stream;
use crate::http::h1::parse::content_length;
use crate::http::head::{RequestHead, ResponseHead};

/// Interim answers before the final one. Each is passed on, so a pod must not send them for ever.
const MAX_INTERIM: usize = 16;
/// How long a body waits for the pod's `100 Continue` before it goes anyway (RFC 9110 §10.1.1).
const CONTINUE_WAIT: Millis = 1000;
/// Fields of a pod's answer.
const MAX_FIELDS: usize = 512;

/// A place on a connection: counted there until it is dropped.
pub trait Lease: std::fmt::Debug {
    /// Opens a stream.
    ///
    /// # Errors
    /// The connection takes no more.
    fn open(
        &self,
        request: http::Request<()>,
        ends: bool,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error>;

    /// Whether the connection has served requests before.
    fn is_reused(&self) -> bool;

    /// Whether it is encrypted.
    fn is_tls(&self) -> bool;

    /// Nothing has come of the answer for a while.
    fn stands_still(&self);

    /// The answer has come whole, with these trailers.
    fn came_whole(&self, trailers: Option<&Fields>);
}

/// Opens a stream on a connection that may be shared.
///
/// # Errors
/// As `h2` has them.
pub fn open(
    send: &mut SendRequest<Bytes>,
    request: http::Request<()>,
    ends: bool,
) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
    let mut cx = Context::from_waker(std::task::Waker::noop());
    match send.poll_ready(&mut cx) {
        Poll::Ready(Ok(())) | Poll::Pending => send.send_request(request, ends),
        Poll::Ready(Err(error)) => Err(error),
    }
}

/// Sends a request and waits for the head of its answer.
///
/// # Errors
/// No answer came. `written` is false where the pod has said that it did nothing with the request.
pub async fn exchange(
    lease: Box<dyn Lease>,
    head: &RequestHead,
    mut body: Body,
    wants: Wants<'_>,
) -> Result<(ResponseHead, Body), ExchangeError> {
    let reused = lease.is_reused();
    let length = body.length();
    let expects = wants.expect_continue && length != Length::Empty;
    let request = match request_of(head, length, expects, lease.is_tls()) {
        Ok(request) => request,
        Err(what) => {
            let cause = ExchangeCause::RequestBody(BodyError::ClientMalformed(what));
            return Err(ExchangeError { cause, written: false, reused, cut: false, body: None });
        }
    };
    let (mut response, stream) = match lease.open(request, length == Length::Empty) {
        Ok(opened) => opened,
        Err(error) => {
            let cause = ExchangeCause::Closed(io::Error::other(error));
            return Err(ExchangeError { cause, written: false, reused, cut: false, body: Some(body) });
        }
    };
    let mut out = (length != Length::Empty).then(|| Outflow::new(stream, length, Keep::Pieces));
    let mut waits_for_continue = expects;
    let mut interim_left = MAX_INTERIM;
    let mut wait = Wait::default();
    let mut looked = 0;
    let result = poll_fn(|cx| {
        loop {
            if !waits_for_continue
                && !wait.done
                && let Some(flow) = &mut out
            {
                match flow.poll(&mut body, cx) {
                    Poll::Ready(Ok(())) => wait.sent(),
                    Poll::Ready(Err(OutError::Body(error))) => {
                        flow.stream.send_reset(Reason::CANCEL);
                        return Poll::Ready(Err(ExchangeCause::RequestBody(error).into()));
                    }
                    // The answer says why, if there is one.
                    Poll::Ready(Err(OutError::Closed(_))) => wait.sent(),
                    Poll::Pending => wait.moved(flow.steps),
                }
            }
            while let Poll::Ready(Some(Ok(interim))) = response.poll_informational(cx) {
                let status = interim.status();
                interim_left -= 1;
                if interim_left == 0 || status == StatusCode::SWITCHING_PROTOCOLS {
                    return Poll::Ready(Err(ExchangeCause::Malformed("too many interim answers").into()));
                }
                (wants.interim)(status, &interim.into_parts().0.headers.into());
                waits_for_continue &= status != StatusCode::CONTINUE;
            }
            if expects && !waits_for_continue && !wait.started {
                wait.started = true;
                continue;
            }
            if let Poll::Ready(result) = Pin::new(&mut response).poll(cx) {
                return Poll::Ready(result.map_err(Broken::from));
            }
            let since = wait.since();
            let (at, cause) = if waits_for_continue {
                (since + CONTINUE_WAIT, None)
            } else if wait.done || out.is_none() {
                (after(since, wants.header_timeout), Some(ExchangeCause::HeaderTimeout))
            } else {
                (after(since, wants.idle_timeout), Some(ExchangeCause::IdleTimeout))
            };
            let look = match wants.in_vain {
                Some(_) if wait.done || out.is_none() => look_at(since, looked),
                _ => Millis::MAX,
            };
            ready!(wants.slot.poll_at(cx, at.min(wants.deadline).min(look)));
            if look < at.min(wants.deadline) {
                if wants.in_vain.is_some_and(|is_in_vain| is_in_vain()) {
                    return Poll::Ready(Err(ExchangeCause::InVain.into()));
                }
                looked = look;
                continue;
            }
            if wants.deadline <= at {
                return Poll::Ready(Err(ExchangeCause::Deadline.into()));
            }
            match cause {
                Some(cause) => return Poll::Ready(Err(cause.into())),
                None => {
                    waits_for_continue = false;
                    (wants.interim)(StatusCode::CONTINUE, &Fields::new());
                }
            }
        }
    })
    .await;
    wants.slot.clear();
    let finished = wait.done || out.is_none();
    let response = match result {
        Ok(response) => response,
        Err(Broken { cause, written }) => {
            let untouched = match out {
                Some(out) => out.into_body(body, length),
                None => Some(body),
            };
            return Err(ExchangeError { cause, written, reused, cut: false, body: untouched });
        }
    };
    let malformed = |what| ExchangeError {
        cause: ExchangeCause::Malformed(what),
        written: true,
        reused,
        cut: false,
        body: None,
    };
    let (parts, receive) = response.into_parts();
    let mut headers = Fields::from(parts.headers);
    if headers.len() > MAX_FIELDS {
        return Err(malformed("too many fields"));
    }
    if headers.iter().any(|(_, value)| has_space_around(value)) {
        return Err(malformed("whitespace around a field value"));
    }
    let announced = match headers.get(header::CONTENT_LENGTH).map(HeaderValue::as_bytes) {
        Some(text) => Some(content_length(text).ok_or_else(|| malformed("malformed Content-Length"))?),
        None => None,
    };
    let never_has_content = matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let bodiless = never_has_content || head.method == Method::HEAD;
    // What a `HEAD` would have had is told by its fields alone.
    if !bodiless || never_has_content {
        headers.remove(header::CONTENT_LENGTH);
    }
    headers.remove(header::PROXY_AUTHENTICATE);
    strip_connection_fields(&mut headers);
    let head = ResponseHead { status: parts.status, headers };
    if receive.is_end_stream() && announced.is_some_and(|bytes| bytes > 0) && !bodiless {
        return Err(malformed("ended before its Content-Length"));
    }
    let sender = out.filter(|_| !finished).map(|out| Box::new((out, body)));
    if bodiless || (receive.is_end_stream() && sender.is_none()) {
        return Ok((head, Body::Empty));
    }
    let length = match announced {
        _ if receive.is_end_stream() => Length::Empty,
        Some(bytes) => Length::exact(bytes),
        None => Length::Chunked,
    };
    if length == Length::Empty {
        // What the pod has not taken of the request by now it does not want.
        return Ok((head, Body::Empty));
    }
    Ok((
        head,
        Body::FromH2Pod(Box::new(ResponseBody {
            receive,
            part: Part::Content,
            unreleased: 0,
            length,
            sender,
            lease,
            still: false,
            _stream: Stream::begin(),
        })),
    ))
}

fn after(since: Millis, timeout: Millis) -> Millis {
    if timeout == 0 { Millis::MAX } else { since.saturating_add(timeout) }
}

/// No answer, and whether the pod may have done something.
struct Broken {
    cause: ExchangeCause,
    written: bool,
}

impl From<ExchangeCause> for Broken {
    fn from(cause: ExchangeCause) -> Self {
        Self { cause, written: true }
    }
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        // RFC 9113 §8.7: refused streams, and those beyond the last one of a GOAWAY, were not processed.
        let refused = error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM);
        let beyond = error.is_go_away() && error.is_remote();
        let cause = if error.is_library() {
            ExchangeCause::Malformed("breaks RFC 9113")
        } else {
            ExchangeCause::Closed(io::Error::other(error))
        };
        Self { cause, written: !(refused || beyond) }
    }
}

/// Since when the present wait lasts.
#[derive(Default)]
struct Wait {
    since: Option<Millis>,
    steps: u64,
    /// The request is out.
    done: bool,
    /// The body may go.
    started: bool,
}

impl Wait {
    fn moved(&mut self, steps: u64) {
        if self.steps != steps {
            self.steps = steps;
            self.since = None;
        }
    }

    fn sent(&mut self) {
        if !self.done {
            self.done = true;
            self.since = None;
        }
    }

    fn since(&mut self) -> Millis {
        *self.since.get_or_insert_with(clock::now)
    }
}

fn request_of(
    head: &RequestHead,
    length: Length,
    expects_continue: bool,
    tls: bool,
) -> Result<http::Request<()>, &'static str> {
    let mut request = http::Request::new(());
    *request.method_mut() = head.method.clone();
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
    let authority = Authority::from_maybe_shared(head.authority.clone().into_bytes());
    parts.authority = Some(authority.map_err(|_| "an authority that HTTP/2 does not have")?);
    parts.path_and_query = Some(target(head)?);
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| "a target that HTTP/2 does not have")?;
    let mut headers = head.headers.clone();
    strip_connection_fields(&mut headers);
    match length {
        // Methods that usually carry content say that they carry none (RFC 9110 §8.6).
        Length::Empty if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        Length::Exact(bytes) => {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
        }
        Length::Empty | Length::Chunked | Length::UntilClose => {}
    }
    if expects_continue {
        headers.insert(header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    *request.headers_mut() = headers.into();
    Ok(request)
}

/// What a target may have that the type for it has not.
const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'<')
    .add(b'>')
    .add(b'`')
    .add(b'{')
    .add(b'}')
    .add(b'#');

fn target(head: &RequestHead) -> Result<PathAndQuery, &'static str> {
    let text = match &head.query {
        None => head.path.clone().into_bytes(),
        Some(query) => Bytes::from([head.path.as_bytes(), b"?", query.as_bytes()].concat()),
    };
    PathAndQuery::from_maybe_shared(text.clone())
        .or_else(|_| {
            let escaped = percent_encoding::percent_encode(&text, ESCAPED).to_string();
            PathAndQuery::from_maybe_shared(Bytes::from(escaped))
        })
        .map_err(|_| "a path that HTTP/2 does not have")
}

/// The content of an answer, still on the wire.
#[derive(Debug)]
pub struct ResponseBody {
    receive: RecvStream,
    part: Part,
    unreleased: usize,
    length: Length,
    /// The rest of the request, where the pod answers before it has all of it.
    sender: Option<Box<(Outflow, Body)>>,
    lease: Box<dyn Lease>,
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
        let piece = ready!(poll_receive(&mut self.receive, &mut self.part, &mut self.unreleased, cx));
        match &piece {
            Some(Ok(Piece::Trailers(trailers))) => self.lease.came_whole(Some(trailers)),
            Some(Ok(Piece::Data(_))) if self.receive.is_end_stream() => self.lease.came_whole(None),
            _ => {}
        }
        Poll::Ready(match piece {
            Some(Ok(piece)) => Some(Ok(piece)),
            Some(Err(error)) => Some(Err(BodyError::Pod(if error.is_library() {
                "breaks RFC 9113"
            } else if error.is_reset() {
                "stream reset"
            } else {
                "connection reset"
            }))),
            None => None,
        })
    }

    /// Nothing has come of it for a while.
    pub fn stands_still(&mut self) {
        self.still = true;
        self.lease.stands_still();
    }

    /// Whether it was said to stand still.
    pub fn has_stood_still(&self) -> bool {
        self.still
    }

    /// Sends more of the request, if there is more.
    pub fn poll_send(&mut self, cx: &mut Context<'_>) {
        if let Some(sender) = &mut self.sender {
            let (out, body) = &mut **sender;
            if let Poll::Ready(result) = out.poll(body, cx) {
                if let Err(OutError::Body(_)) = result {
                    out.stream.send_reset(Reason::CANCEL);
                }
                self.sender = None;
            }
        }
    }
}
