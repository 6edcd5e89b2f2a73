//! Frames of a client, and raw bytes, through the server half of HTTP/2.
//!
//! What is accepted must be a request that HTTP/1 can say as well, in one reading; content must be as long as it
//! was announced; no client keeps more streams than it may, and whatever it sends, the connection comes to its
//! end with whole frames.

#![no_main]

mod sockets;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderValue, Method, StatusCode};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sluicegate::common::timer::Timers;
use sluicegate::http::authority::Checked;
use sluicegate::http::body::{Body, BodyError};
use sluicegate::http::fields::Fields;
use sluicegate::http::h1::encode::{self, RequestExtras};
use sluicegate::http::h1::framing::{Length, Piece};
use sluicegate::http::h1::parse::{self, HeadLimits, HeadScan, Leniency, LineEnds, is_allowed_trailer};
use sluicegate::http::h1::server::SendPatience;
use sluicegate::http::h2::PREFACE;
use sluicegate::http::h2::limits::{FrameLimits, ServerLimits};
use sluicegate::http::h2::request::{self, Content, ParsedRequest};
use sluicegate::http::h2::server::{Answer, ServerStream, builder};
use sluicegate::http::h2::wire::{Watch, Wire};
use sluicegate::http::head::{RequestHead, ResponseHead};

use sockets::{pair, talk};

const HEAD: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 100 };
/// What we write is somewhat larger than what came.
const HEAD_OF_OURS: HeadLimits = HeadLimits { bytes: 256 * 1024, fields: 110 };
const STREAMS: u32 = 8;
/// Small, so that few bytes reach them.
const LIMITS: ServerLimits = ServerLimits {
    max_concurrent_streams: STREAMS,
    decoder_table: 4096,
    header_list: 16 * 1024,
    stream_window: 4096,
    connection_window: 64 * 1024,
    send_buffer: 4096,
    read_idle_timeout: 0,
    ping_timeout: 0,
    pending_resets: 4,
    local_resets: 8,
    frames: FrameLimits {
        resets: 8,
        settings: 8,
        pings: 8,
        priorities: 8,
        empty: 8,
        window_updates: 16,
        continuations: 4,
    },
};
/// Far above what anything in here takes.
const PATIENCE: u64 = 5_000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    answer: With,
    start: Start,
    steps: Vec<Step<'a>>,
    /// Follows the steps.
    raw: &'a [u8],
}

/// How requests are answered.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum With {
    /// Their own content, as it comes.
    Echo,
    /// So many kilobytes; nothing of the content is read.
    Bytes(u8),
    /// An interim answer, then an empty one.
    Early,
    /// After all content was read and dropped.
    Late,
}

#[derive(Arbitrary, Debug)]
enum Start {
    Good,
    /// What comes is all there is.
    Bare,
}

#[derive(Arbitrary, Debug)]
enum Step<'a> {
    Request { end: bool, fields: Vec<Field<'a>> },
    Data { stream: u8, end: bool, content: &'a [u8] },
    Trailers { stream: u8, fields: Vec<Field<'a>> },
    Reset { stream: u8, code: u8 },
    WindowUpdate { stream: u8, by: u16 },
    Setting { key: u8, value: u16 },
    Ping,
    Frame { kind: u8, flags: u8, stream: u8, content: &'a [u8] },
    Raw(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
enum Field<'a> {
    Method(Word),
    Path(&'a str),
    Authority(&'a str),
    Scheme(bool),
    Known { name: u8, value: &'a [u8] },
    Length(u8),
    Any { name: &'a [u8], value: &'a [u8] },
}

#[derive(Arbitrary, Debug)]
enum Word {
    Get,
    Head,
    Post,
    Options,
    Connect,
    Websocket,
}

const NAMES: [&[u8]; 20] = [
    b"host",
    b"content-length",
    b"transfer-encoding",
    b"connection",
    b"te",
    b"trailer",
    b"cookie",
    b"expect",
    b"upgrade",
    b"keep-alive",
    b"proxy-connection",
    b"proxy-authorization",
    b"http2-settings",
    b":protocol",
    b":path",
    b":status",
    b"x-forwarded-for",
    b"Host",
    b"content-type",
    b"x",
];

fuzz_target!(|input: Input<'_>| {
    let mut bytes = Vec::new();
    if matches!(input.start, Start::Good) {
        bytes.extend_from_slice(PREFACE);
        frame(&mut bytes, 4, 0, 0, &[]);
    }
    let mut next = 1;
    for step in &input.steps {
        write(&mut bytes, step, &mut next);
    }
    bytes.extend_from_slice(input.raw);
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime =
        runtime.enable_all().build_local(tokio::runtime::LocalOptions::default()).expect("a runtime");
    runtime.block_on(run(bytes, input.answer));
});

fn write(out: &mut Vec<u8>, step: &Step<'_>, next: &mut u32) {
    let of = |stream: u8| u32::from(stream % 16) * 2 + 1;
    match step {
        Step::Request { end, fields } => {
            frame(out, 1, 4 | u8::from(*end), *next, &block(fields));
            *next += 2;
        }
        Step::Data { stream, end, content } => frame(out, 0, u8::from(*end), of(*stream), content),
        Step::Trailers { stream, fields } => frame(out, 1, 5, of(*stream), &block(fields)),
        Step::Reset { stream, code } => frame(out, 3, 0, of(*stream), &[0, 0, 0, *code]),
        Step::WindowUpdate { stream, by } => {
            let [high, low] = by.to_be_bytes();
            frame(out, 8, 0, u32::from(*stream % 32), &[0, 0, high, low]);
        }
        Step::Setting { key, value } => {
            let [high, low] = value.to_be_bytes();
            frame(out, 4, 0, 0, &[0, key % 12, 0, 0, high, low]);
        }
        Step::Ping => frame(out, 6, 0, 0, &[7; 8]),
        Step::Frame { kind, flags, stream, content } => {
            frame(out, kind % 12, *flags, u32::from(*stream), content);
        }
        Step::Raw(bytes) => out.extend_from_slice(bytes),
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, content: &[u8]) {
    let [_, a, b, c] = u32::try_from(content.len()).expect("short").to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(content);
}

/// Fields as literals that nobody remembers (RFC 7541 §6.2.2).
fn block(fields: &[Field<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields {
        match field {
            Field::Method(Word::Get) => literal(&mut out, b":method", b"GET"),
            Field::Method(Word::Head) => literal(&mut out, b":method", b"HEAD"),
            Field::Method(Word::Post) => literal(&mut out, b":method", b"POST"),
            Field::Method(Word::Options) => literal(&mut out, b":method", b"OPTIONS"),
            Field::Method(Word::Connect) => literal(&mut out, b":method", b"CONNECT"),
            Field::Method(Word::Websocket) => {
                literal(&mut out, b":method", b"CONNECT");
                literal(&mut out, b":protocol", b"websocket");
            }
            Field::Path(path) => literal(&mut out, b":path", path.as_bytes()),
            Field::Authority(authority) => literal(&mut out, b":authority", authority.as_bytes()),
            Field::Scheme(tls) => literal(&mut out, b":scheme", if *tls { b"https" } else { b"http" }),
            Field::Known { name, value } => literal(&mut out, NAMES[usize::from(*name) % NAMES.len()], value),
            Field::Length(bytes) => literal(&mut out, b"content-length", bytes.to_string().as_bytes()),
            Field::Any { name, value } => literal(&mut out, name, value),
        }
    }
    out
}

fn literal(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    for text in [name, value] {
        let mut len = text.len();
        if len < 127 {
            out.push(u8::try_from(len).expect("short"));
        } else {
            out.push(127);
            len -= 127;
            while len >= 128 {
                out.push(u8::try_from(len % 128).expect("seven bits") | 128);
                len /= 128;
            }
            out.push(u8::try_from(len).expect("seven bits"));
        }
        out.extend_from_slice(text);
    }
}

async fn run(client: Vec<u8>, with: With) {
    let timers = Timers::new();
    let driver = tokio::task::spawn_local(Rc::clone(&timers).drive());
    let said = client.len() as u64;
    let (near, far) = pair();
    let got = tokio::task::spawn_local(talk(far, client));
    let (wire, watch) = Wire::new(near, BytesMut::new(), LIMITS.frames);
    let slot = timers.slot();
    let served = slot.within_for(PATIENCE, serve(wire, &watch, &timers, with)).await;
    let content = served.expect("a connection comes to its end");
    assert!(content <= said, "{content} bytes of content out of {said}");
    whole_frames(&got.await.expect("no panic"));
    driver.abort();
}

/// The connection loop without routing; gives the bytes of content that were read.
async fn serve(wire: Wire, watch: &Watch, timers: &Rc<Timers>, with: With) -> u64 {
    let Ok(mut connection) = builder(&LIMITS).handshake::<_, Bytes>(wire).await else { return 0 };
    let shared = Rc::new(Shared::default());
    let mut told = false;
    poll_fn(|cx| {
        loop {
            match connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    spawn(&shared, timers, with, request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if watch.flood().is_some() && !told {
                told = true;
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                continue;
            }
            watch.take_resets(|_| {});
            return Poll::Pending;
        }
    })
    .await;
    drop::<Connection<Wire, Bytes>>(connection);
    // Who served a stream learns that it is gone.
    for task in shared.tasks.take() {
        task.await.expect("no panic");
    }
    assert_eq!(shared.active.get(), 0);
    shared.content.get()
}

#[derive(Default)]
struct Shared {
    active: Cell<u32>,
    content: Cell<u64>,
    tasks: RefCell<Vec<tokio::task::JoinHandle<()>>>,
    authority: RefCell<Option<Rc<Checked>>>,
}

fn spawn(
    shared: &Rc<Shared>,
    timers: &Rc<Timers>,
    with: With,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    shared.active.set(shared.active.get() + 1);
    // Those that were reset are counted until their task has seen it.
    let most = STREAMS + LIMITS.frames.resets + u32::try_from(LIMITS.local_resets).expect("few") + 1;
    assert!(shared.active.get() <= most, "{} streams at once", shared.active.get());
    let (timers, inner) = (Rc::clone(timers), Rc::clone(shared));
    let task = tokio::task::spawn_local(async move {
        exchange(&inner, &timers, with, request, respond).await;
        inner.active.set(inner.active.get() - 1);
    });
    shared.tasks.borrow_mut().push(task);
}

async fn exchange(
    shared: &Shared,
    timers: &Rc<Timers>,
    with: With,
    request: http::Request<RecvStream>,
    respond: SendResponse<Bytes>,
) {
    let (parts, receive) = request.into_parts();
    let content = if receive.is_end_stream() { Content::None } else { Content::Follows };
    let known = shared.authority.borrow().clone();
    let method = parts.method.clone();
    let Ok(parsed) = request::request(parts, content, &HEAD, known.as_ref()) else {
        let stream = ServerStream::new(respond, timers.slot(), false);
        return answer(&stream, timers, &method, StatusCode::BAD_REQUEST, Body::full("no")).await;
    };
    says_the_same(&parsed);
    let ParsedRequest { authority, length, expects_continue, websocket, .. } = parsed;
    *shared.authority.borrow_mut() = Some(authority);
    let stream = ServerStream::new(respond, timers.slot(), expects_continue);
    if websocket {
        let head = ResponseHead { status: StatusCode::SWITCHING_PROTOCOLS, headers: Fields::new() };
        // The client may be gone.
        let _ = stream.start_tunnel(head);
        return stream.reset(Reason::CANCEL);
    }
    let mut body = stream.request_body(receive, length, u64::MAX, 0);
    let response = match with {
        With::Echo => body,
        With::Bytes(kilobytes) => Body::full(vec![b'x'; usize::from(kilobytes) * 1024]),
        With::Early => {
            let mut hints = Fields::new();
            hints.insert("connection", HeaderValue::from_static("close"));
            stream.send_interim(StatusCode::CONTINUE, &hints);
            stream.send_interim(StatusCode::EARLY_HINTS, &hints);
            Body::Empty
        }
        With::Late => {
            let read = drain(&mut body, length).await;
            shared.content.set(shared.content.get() + read);
            Body::full("ok")
        }
    };
    answer(&stream, timers, &method, StatusCode::OK, response).await;
    if let With::Echo = with {
        shared.content.set(shared.content.get() + stream.counts().0);
    }
}

async fn answer(
    stream: &ServerStream,
    timers: &Rc<Timers>,
    method: &Method,
    status: StatusCode,
    mut body: Body,
) {
    let patience =
        SendPatience { body_idle: 0, quiet: 0, client_idle: 0, deadline: u64::MAX, half_closed: 0 };
    let answer = Answer { head_only: *method == Method::HEAD, date: b"now", grpc: false };
    let head = ResponseHead { status, headers: Fields::new() };
    // What it said is looked at on the wire.
    let _ = stream.send(head, &mut body, answer, &timers.slot(), patience).await;
}

/// Reads a body to its end, which must be where it was announced.
async fn drain(body: &mut Body, length: Length) -> u64 {
    let mut read = 0;
    loop {
        match poll_fn(|cx| body.poll_piece(cx)).await {
            Some(Ok(Piece::Data(data))) => {
                assert!(!data.is_empty());
                read += data.len() as u64;
            }
            Some(Ok(Piece::Trailers(fields))) => {
                assert!(fields.keys().all(is_allowed_trailer), "{fields:?}");
            }
            Some(Err(BodyError::ClientTimeout | BodyError::Pod(_))) => panic!("nobody has said so"),
            Some(Err(_)) => return read,
            None => break,
        }
    }
    match length {
        Length::Exact(bytes) => assert_eq!(read, bytes, "as long as it was announced"),
        Length::Empty => assert_eq!(read, 0),
        Length::Chunked | Length::UntilClose => {}
    }
    read
}

/// What goes to a pod of HTTP/1 is one head by the strict reading, and says what the client said.
fn says_the_same(parsed: &ParsedRequest) {
    let ParsedRequest { head, length, expects_continue, .. } = parsed;
    let RequestHead { method, path, query, authority, headers, .. } = &**head;
    assert!(path.as_str().starts_with('/') || path.as_str() == "*", "{path:?}");
    assert_ne!(*method, Method::CONNECT);
    for name in ["host", "content-length", "transfer-encoding", "connection", "upgrade", "keep-alive"] {
        assert!(!headers.contains_key(name), "{name}");
    }
    let mut wire = BytesMut::new();
    let extras = RequestExtras { expect_continue: *expects_continue, upgrade: None };
    encode::request_head(&mut wire, head, *length, extras);
    let mut ends = LineEnds::default();
    let end =
        HeadScan::default().find_end(&wire, &HEAD_OF_OURS, Leniency::None, &mut ends).expect("strict lines");
    assert_eq!(end, Some(wire.len()), "what we write ends once");
    let again = parse::request(wire.freeze(), &ends, &HEAD_OF_OURS, None).expect("what we write is good");
    assert_eq!(again.head.method, method);
    assert_eq!(again.head.path, *path);
    assert_eq!(again.head.query, *query);
    assert_eq!(again.head.authority, *authority);
    assert_eq!(again.head.headers, *headers);
    assert_eq!(again.length, *length);
    assert_eq!(again.expects_continue, *expects_continue);
}

/// What the client got are frames, the last of which may be cut.
fn whole_frames(mut bytes: &[u8]) {
    while let [a, b, c, kind, _, s, ..] = bytes {
        assert!(*kind <= 9, "an unknown kind");
        assert_eq!(s & 0x80, 0, "the reserved bit");
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
}
