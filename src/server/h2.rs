//! One client's connection of HTTP/2: its streams each in a task of their own, its life in one loop.
//!
//! The loop accepts streams, watches for floods, tells the client to go when the connection shall end, and ends
//! it when its time is over. A stream runs the same way as a request of HTTP/1: one [`Exchange`].

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use h2::server::{Connection, SendResponse};
use h2::{Ping, Reason, RecvStream};
use http::{HeaderValue, Method, StatusCode};

use super::connection::{Control, Drain, LINGER, send_failure};
use crate::common::boxed::in_place;
use crate::common::clock::{self, Millis};
use crate::common::live::OnCore;
use crate::common::timer::{Slot, deadline, limit};
use crate::http::authority::Checked;
use crate::http::body::Body;
use crate::http::error::{EndpointText, ProxyError};
use crate::http::forwarded::Peer;
use crate::http::h1::io::Io;
use crate::http::h1::memory::HeadShare;
use crate::http::h1::server::{SendError, SendPatience};
use crate::http::h2::request::{self, Content, ParsedRequest};
use crate::http::h2::server::{Answer, ServerStream, builder};
use crate::http::h2::watch::{Flood, Overrun};
use crate::http::h2::wire::{Refused, Watch, Wire};
use crate::http::head::Response;
use crate::proxy::core::Core;
use crate::proxy::exchange::{Beginning, Downstream, Ending, Exchange, Logged, note_failure};
use crate::proxy::grpc;
use crate::proxy::{respond, serve, tunnel};
use crate::snapshot::{ListenerId, Snapshot};
use crate::telemetry::access_log::End;
use crate::telemetry::metrics::{CloseReason, EntryPointLabel, Http2Flood, Http2Reset};
use crate::tls::session::TlsSession;

/// What a connection is refused for that breaks the rules as a whole.
const NOT_HTTP2: &str = "breaks RFC 9113";
/// Why a request is refused although nothing is wrong with it.
const TOO_MANY_HEADS: &str = "too many large heads at once";

/// What a connection is before it speaks HTTP/2.
pub struct Handover<'a> {
    /// The core it stays on.
    pub core: &'a Rc<Core>,
    /// Through which it is told things.
    pub control: &'a Control,
    /// Who has connected.
    pub peer: Peer,
    /// What the connection agreed on, if it is TLS.
    pub tls: Option<Box<TlsSession>>,
    /// Through which listener.
    pub listener: ListenerId,
    /// For figures.
    pub label: EntryPointLabel,
    /// When it was accepted.
    pub opened: Millis,
    /// The bytes.
    pub io: Io,
    /// What was read of them already.
    pub ahead: BytesMut,
}

/// What the streams of a connection share.
struct Shared {
    core: Rc<Core>,
    peer: Peer,
    tls: Option<Box<TlsSession>>,
    listener: ListenerId,
    /// Streams whose exchange is not over.
    active: Cell<u32>,
    /// The last time it was anything else but idle.
    busy_at: Cell<Millis>,
    /// Its task was ended in its middle.
    cut: Cell<bool>,
    /// The connection's task, to be told that nothing is left to do.
    waker: RefCell<Option<Waker>>,
    /// Of the last request; most connections know only one.
    authority: RefCell<Option<Rc<Checked>>>,
}

impl Shared {
    /// Why the client's end of a stream is not there any more.
    fn gone(&self) -> ProxyError {
        if self.cut.get() { ProxyError::Cut } else { ProxyError::ClientGone }
    }
}

/// One exchange under way on a connection.
struct Active(Rc<Shared>);

impl Active {
    fn new(shared: &Rc<Shared>) -> Self {
        shared.active.set(shared.active.get() + 1);
        Self(Rc::clone(shared))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let left = self.0.active.get() - 1;
        self.0.active.set(left);
        if left == 0 {
            self.0.busy_at.set(clock::recent());
            if let Some(waker) = &*self.0.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }
}

/// Serves a connection to its end.
pub async fn run(handover: Handover<'_>) -> CloseReason {
    let Handover { core, control, peer, tls, listener, label, opened, io, ahead } = handover;
    let (limits, times) = {
        let snapshot = core.snapshot();
        let Some(entry) = snapshot.entry_point(listener) else { return CloseReason::Drained };
        let settings = &entry.settings;
        let times = Times {
            head: settings.head_timeout,
            idle: settings.idle_timeout,
            max_time: settings.keep_alive_max_time,
            max_requests: settings.keep_alive_max_requests,
            stall: settings.stall_timeout,
            ping_after: settings.http2.read_idle_timeout,
            ping: settings.http2.ping_timeout,
        };
        (settings.http2, times)
    };
    let (wire, watch) = Wire::new(io, ahead, limits.frames);
    let slot = core.timers.slot();
    let handshake = builder(&limits).handshake::<_, Bytes>(wire);
    let connection = match slot.within_for(times.head, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) if error.is_io() => return CloseReason::Client,
        Ok(Err(_)) => {
            refuse(core, listener, &peer, &ProxyError::BadRequest(NOT_HTTP2));
            return CloseReason::Malformed;
        }
        Err(_) => {
            refuse(core, listener, &peer, &ProxyError::ClientHeadTimeout);
            return CloseReason::Timeout;
        }
    };
    let shared = Rc::new(Shared {
        core: Rc::clone(core),
        peer,
        tls,
        listener,
        active: Cell::new(0),
        busy_at: Cell::new(clock::recent()),
        cut: Cell::new(false),
        waker: RefCell::default(),
        authority: RefCell::default(),
    });
    let driver = Driver {
        connection,
        watch,
        shared,
        control,
        label,
        times,
        local_resets: limits.local_resets,
        header_list: limits.header_list as usize,
        opened,
        served: 0,
        leaving: None,
        told_at: 0,
        ping: PingState::Quiet,
        pings: None,
        coming: HeadShare::default(),
        ended: false,
    };
    driver.run(&slot).await
}

/// Of the entry point, when the connection began. Milliseconds; 0 for none.
#[derive(Clone, Copy)]
struct Times {
    head: Millis,
    idle: Millis,
    max_time: Millis,
    max_requests: u32,
    stall: Millis,
    ping_after: Millis,
    ping: Millis,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum PingState {
    Quiet,
    /// Asked at that time.
    Asked(Millis),
}

struct Driver<'a> {
    connection: Connection<Wire, Bytes>,
    watch: Rc<Watch>,
    shared: Rc<Shared>,
    control: &'a Control,
    label: EntryPointLabel,
    times: Times,
    local_resets: usize,
    header_list: usize,
    opened: Millis,
    served: u32,
    /// It has been told to go, and why.
    leaving: Option<CloseReason>,
    /// When it was told so.
    told_at: Millis,
    ping: PingState,
    pings: Option<h2::PingPong>,
    /// What fields that have not all come take of the core's memory for heads.
    coming: HeadShare,
    /// It has come to its end by itself.
    ended: bool,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        // Before the codec goes and its streams learn that.
        self.shared.cut.set(!self.ended);
    }
}

impl Driver<'_> {
    async fn run(mut self, slot: &Slot) -> CloseReason {
        self.pings = self.connection.ping_pong();
        let reason = poll_fn(|cx| self.poll(slot, cx)).await;
        self.ended = true;
        slot.clear();
        self.count_resets();
        reason
    }

    fn poll(&mut self, slot: &Slot, cx: &mut Context<'_>) -> Poll<CloseReason> {
        for waker in [&self.control.waker, &self.shared.waker] {
            match &mut *waker.borrow_mut() {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                waker => *waker = Some(cx.waker().clone()),
            }
        }
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.accept(request, respond);
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.failed(&error)),
                Poll::Ready(None) => return Poll::Ready(self.leaving.unwrap_or(CloseReason::Client)),
                Poll::Pending => {}
            }
            if let Some(flood) = self.watch.flood().filter(|_| self.leaving != Some(CloseReason::Malformed)) {
                let reason = match label_of(flood) {
                    Some(label) => {
                        self.flooded(label);
                        Reason::ENHANCE_YOUR_CALM
                    }
                    None => {
                        self.refuse(&ProxyError::BadRequest("no SETTINGS first"));
                        Reason::PROTOCOL_ERROR
                    }
                };
                self.connection.abrupt_shutdown(reason);
                self.leave(CloseReason::Malformed);
                continue;
            }
            break;
        }
        if !self.coming.grow(self.watch.block_bytes()) && self.leaving != Some(CloseReason::Malformed) {
            self.refuse(&ProxyError::Overloaded(TOO_MANY_HEADS));
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.leave(CloseReason::Malformed);
            cx.waker().wake_by_ref();
        }
        self.count_resets();
        self.poll_life(slot, cx)
    }

    /// Looks at everything that is about time; ready when the connection is over.
    fn poll_life(&mut self, slot: &Slot, cx: &mut Context<'_>) -> Poll<CloseReason> {
        loop {
            let active = self.shared.active.get();
            let (mut at, mut due) = (Millis::MAX, CloseReason::Timeout);
            let mut consider = |when: Millis, reason: CloseReason| {
                if when < at {
                    (at, due) = (when, reason);
                }
            };
            if let Some(since) = self.watch.blocked_since().filter(|_| self.times.stall > 0) {
                consider(since + self.times.stall, CloseReason::Timeout);
            }
            if let Some(since) = self.watch.block_since().filter(|_| self.times.head > 0) {
                consider(since + self.times.head, CloseReason::Timeout);
            }
            if let Some(reason) = self.leaving {
                // A client that never answers would hold a connection on which nothing happens.
                if active == 0 || reason == CloseReason::Malformed {
                    consider(self.told_at.max(self.shared.busy_at.get()) + LINGER, reason);
                }
            } else {
                if self.control.drain.get() == Drain::Close {
                    self.go_away(CloseReason::Drained);
                    return self.again(cx);
                }
                if active == 0 && self.times.idle > 0 {
                    consider(self.shared.busy_at.get() + self.times.idle, CloseReason::Idle);
                }
                if self.times.max_time > 0 {
                    consider(self.opened + self.times.max_time, CloseReason::Aged);
                }
            }
            match self.ping {
                PingState::Asked(since) => {
                    let answered = self.pings.as_mut().is_some_and(|pings| pings.poll_pong(cx).is_ready());
                    if answered {
                        self.ping = PingState::Quiet;
                        continue;
                    }
                    if self.times.ping > 0 {
                        consider(since + self.times.ping, CloseReason::Timeout);
                    }
                }
                PingState::Quiet if active > 0 && self.times.ping_after > 0 => {
                    let ask = self.watch.last_at() + self.times.ping_after;
                    if ask < at {
                        if slot.poll_at(cx, ask).is_pending() {
                            return Poll::Pending;
                        }
                        let sent =
                            self.pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok());
                        self.ping = if sent { PingState::Asked(clock::now()) } else { PingState::Quiet };
                        if !sent {
                            self.times.ping_after = 0;
                        }
                        return self.again(cx);
                    }
                }
                PingState::Quiet => {}
            }
            if at == Millis::MAX || slot.poll_at(cx, at).is_pending() {
                return Poll::Pending;
            }
            match due {
                // Nothing is asked of it any more: it may go in peace.
                CloseReason::Idle | CloseReason::Aged if self.leaving.is_none() => {
                    self.go_away(due);
                    return self.again(cx);
                }
                CloseReason::Timeout if self.stopped_in_a_head() => {
                    self.refuse(&ProxyError::ClientHeadTimeout);
                    return Poll::Ready(due);
                }
                _ => return Poll::Ready(due),
            }
        }
    }

    /// Whether the client takes longer for the fields of a request than it may.
    fn stopped_in_a_head(&self) -> bool {
        let late = |since| clock::now() >= since + self.times.head;
        self.times.head > 0 && self.leaving.is_none() && self.watch.block_since().is_some_and(late)
    }

    /// The codec has been told something: it has to be asked again before the task sleeps.
    fn again(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Says GOAWAY; what is under way may end (RFC 9113 §6.8).
    fn go_away(&mut self, reason: CloseReason) {
        self.connection.graceful_shutdown();
        self.leave(reason);
    }

    fn leave(&mut self, reason: CloseReason) {
        self.leaving = Some(reason);
        self.told_at = clock::now();
    }

    fn accept(&mut self, request: http::Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.served += 1;
        self.watch.accepted(respond.stream_id().as_u32());
        begin(&self.shared, request, respond);
        if self.leaving.is_some() {
            return;
        }
        if self.control.drain.get() != Drain::No {
            self.go_away(CloseReason::Drained);
        } else if self.times.max_requests > 0 && self.served >= self.times.max_requests {
            self.go_away(CloseReason::Aged);
        }
    }

    fn failed(&mut self, error: &h2::Error) -> CloseReason {
        if self.leaving == Some(CloseReason::Malformed) {
            return CloseReason::Malformed;
        }
        if error.is_library() {
            tracing::debug!(%error, peer = %self.shared.peer.addr, "connection of HTTP/2 ended");
            if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
                self.flooded(match self.watch.overrun(self.local_resets) {
                    Overrun::PendingResets => Http2Flood::PendingResets,
                    Overrun::LocalResets => Http2Flood::LocalResets,
                    Overrun::SmallData => Http2Flood::SmallData,
                    Overrun::HeaderList => Http2Flood::HeaderList,
                    Overrun::Continuations => Http2Flood::Continuations,
                });
            } else {
                self.refuse(&ProxyError::BadRequest(NOT_HTTP2));
            }
            return CloseReason::Malformed;
        }
        self.leaving.unwrap_or(CloseReason::Client)
    }

    fn flooded(&self, flood: Http2Flood) {
        self.shared.core.metrics.http2_flood(self.label, flood);
        self.refuse(&ProxyError::Http2Flood(flood.as_str()));
        tracing::debug!(peer = %self.shared.peer.addr, flood = flood.as_str(), "flood of HTTP/2 frames");
    }

    fn count_resets(&self) {
        let metrics = &self.shared.core.metrics;
        self.watch.take_resets(|code| metrics.http2_reset(self.label, Http2Reset::of(code)));
        self.watch.take_refused(|refused| self.refused(refused));
    }

    /// The codec has refused a stream that nobody here has seen.
    fn refused(&self, refused: Refused) {
        let error = match refused {
            Refused::TooLarge => ProxyError::HeadTooLarge { limit: self.header_list, unit: "bytes" },
            Refused::Reset(code) if Reason::from(code) == Reason::REFUSED_STREAM => {
                ProxyError::Overloaded("more streams than a connection may have")
            }
            Refused::Reset(_) => ProxyError::BadRequest(NOT_HTTP2),
        };
        self.refuse(&error);
    }

    fn refuse(&self, error: &ProxyError) {
        refuse(&self.shared.core, self.shared.listener, &self.shared.peer, error);
    }
}

/// Counts and logs what is refused before anybody knows what was asked for: a stream by the codec, or the whole
/// connection, which happens once to each.
pub(super) fn refuse(core: &Core, listener: ListenerId, peer: &Peer, error: &ProxyError) {
    note_failure(core, error);
    if let Some(entry) = core.snapshot().entry_point(listener) {
        let method = Method::from_bytes(b"-").expect("a token");
        Ending::of_refusal(core, entry, peer, clock::instant(), method, error).finish(
            core,
            error.status(),
            0,
            0,
        );
    }
}

fn label_of(flood: Flood) -> Option<Http2Flood> {
    match flood {
        Flood::Resets => Some(Http2Flood::Resets),
        Flood::Settings => Some(Http2Flood::Settings),
        Flood::Pings => Some(Http2Flood::Pings),
        Flood::Priorities => Some(Http2Flood::Priorities),
        Flood::EmptyFrames => Some(Http2Flood::EmptyFrames),
        Flood::WindowUpdates => Some(Http2Flood::WindowUpdates),
        Flood::Continuations => Some(Http2Flood::Continuations),
        Flood::NoSettings => None,
    }
}

/// Reads a request and has it answered, in a task of its own.
fn begin(shared: &Rc<Shared>, request: http::Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let core = &shared.core;
    let started = clock::instant();
    let (parts, receive) = request.into_parts();
    let snapshot = core.snapshot();
    let Some(entry) = snapshot.entry_point(shared.listener) else {
        return respond.send_reset(Reason::REFUSED_STREAM);
    };
    let content = if receive.is_end_stream() { Content::None } else { Content::Follows };
    let method = parts.method.clone();
    let mut share = HeadShare::default();
    let parsed = if share.take(request::weight(&parts.headers)) {
        request::request(parts, content, &entry.settings.head, shared.authority.borrow().as_ref())
    } else {
        Err(ProxyError::Overloaded(TOO_MANY_HEADS))
    };
    let expects_continue = parsed.as_ref().is_ok_and(|parsed| parsed.expects_continue);
    let stream = ServerStream::new(respond, core.timers.slot(), expects_continue);
    let stream = Stream { active: Active::new(shared), stream, receive, started, _share: share };
    // In a box each, because a task is moved to where it stays.
    match parsed {
        Ok(parsed) => tokio::task::spawn_local(in_place(|| stream.exchange(snapshot, parsed))),
        Err(error) => tokio::task::spawn_local(in_place(|| stream.refuse(snapshot, method, error))),
    };
}

/// One request with its answer.
struct Stream {
    active: Active,
    stream: Rc<ServerStream>,
    receive: RecvStream,
    started: Instant,
    /// Held until the answer has gone out.
    _share: HeadShare,
}

impl Stream {
    /// Answers a request that could not be read.
    async fn refuse(self, snapshot: OnCore<Snapshot>, method: Method, error: ProxyError) {
        let Self { active, stream, receive: _receive, started, _share } = self;
        let shared = &*active.0;
        let core = &shared.core;
        note_failure(core, &error);
        let Response { head, mut body } = respond::refusal(&error);
        let status = head.status;
        let date = core.date();
        let answer = Answer { head_only: method == Method::HEAD, date: &date, grpc: false };
        let slot = core.timers.slot();
        let patience = SendPatience {
            body_idle: 0,
            quiet: 0,
            client_idle: LINGER,
            deadline: clock::now() + LINGER,
            half_closed: 0,
        };
        // Whether it still gets out makes no difference to what follows.
        let _ = stream.send(head, &mut body, answer, &slot, patience).await;
        let (bytes_in, bytes_out) = stream.counts();
        let entry =
            snapshot.entry_point(shared.listener).expect("it was there a moment ago, in this very snapshot");
        Ending::of_refusal(core, entry, &shared.peer, started, method, &error)
            .finish(core, status, bytes_in, bytes_out);
    }

    async fn exchange(self, snapshot: OnCore<Snapshot>, parsed: ParsedRequest) {
        let Self { active, stream, receive, started, _share } = self;
        let shared = &*active.0;
        let core = &shared.core;
        let entry =
            snapshot.entry_point(shared.listener).expect("it was there a moment ago, in this very snapshot");
        let settings = &entry.settings;
        let ParsedRequest { mut head, authority, length, expects_continue, websocket } = parsed;
        let now = clock::recent();
        let method = head.method.clone();
        // What the client has taken back, or broken, by now is not begun.
        if poll_fn(|cx| Poll::Ready(stream.poll_gone(cx).is_ready())).await {
            note_failure(core, &ProxyError::ClientGone);
            return Ending::of_refusal(core, entry, &shared.peer, started, method, &ProxyError::ClientGone)
                .finish(core, ProxyError::ClientGone.status(), 0, 0);
        }
        let logged = Logged::of(core, entry, &shared.peer, &head);
        let is_grpc = grpc::is_call(&head);
        let whole = if is_grpc { Millis::MAX } else { deadline(now, limit(settings.read_timeout)) };
        let mut tunnel_in = None;
        let body = if websocket {
            tunnel_in = Some(receive);
            Body::Empty
        } else {
            // A call of gRPC streams for as long as it likes; only its pauses are limited.
            stream.request_body(receive, length, whole, settings.stall_timeout)
        };
        let key =
            websocket.then(|| tunnel::websocket_fields(&mut head.headers, core.random(), core.random()));
        let slot = core.timers.slot();
        let mut exchange = Exchange::new(Beginning {
            core,
            entry,
            client: Downstream::H2(&stream),
            peer: &shared.peer,
            tls: shared.tls.as_deref(),
            authority: &authority,
            slot: &slot,
            started,
            named: smallvec::SmallVec::new(),
            upgrade: websocket.then(|| HeaderValue::from_static("websocket")),
            expects_continue,
            logged,
        });
        if is_grpc {
            exchange.grpc = Some(grpc::Call::of(&head, now));
        }
        let served = unless_gone(&stream, pin!(serve::serve(&mut exchange, head, body))).await;
        *shared.authority.borrow_mut() = Some(Rc::clone(&authority));
        let Some(mut response) = served else {
            let error = shared.gone();
            exchange.note(&error);
            let response = respond::refusal(&error);
            let ending = Ending::new(exchange, started, &method, &response.head, snapshot.generation);
            ending.finish(core, response.head.status, stream.counts().0, 0);
            stream.reset(Reason::CANCEL);
            return;
        };
        grpc::translate(&exchange, &mut response);
        if websocket {
            check_switch(&mut exchange, &mut response, key.as_deref());
        }
        let switched = matches!(response.body, Body::Tunnel(_));
        let write_deadline = deadline(clock::recent(), limit(settings.write_timeout));
        let stall_timeout = settings.stall_timeout;
        if !switched {
            exchange.upgrade = None;
        }
        let endpoint = exchange.tried.last().map(|endpoint| endpoint.text());
        let mut ending = Ending::new(exchange, started, &method, &response.head, snapshot.generation);
        // The configuration is let go of before what may be a long stream.
        drop(snapshot);
        let Response { head, mut body } = response;
        let status = head.status;
        if let Body::Tunnel(pod) = body {
            let Some(receive) = tunnel_in else { return stream.reset(Reason::INTERNAL_ERROR) };
            match stream.start_tunnel(head) {
                Ok(send) => tunnelled(core, &slot, receive, send, pod, ending).await,
                Err(_) => ending.finish(core, StatusCode::OK, 0, 0),
            }
            return;
        }
        let date = core.date();
        let answer = Answer { head_only: method == Method::HEAD, date: &date, grpc: is_grpc };
        let patience = SendPatience {
            body_idle: ending.idle_timeout,
            quiet: ending.quiet,
            client_idle: stall_timeout,
            deadline: ending.deadline.min(write_deadline),
            half_closed: 0,
        };
        if let Err(error) = stream.send(head, &mut body, answer, &slot, patience).await {
            if error.is_pods_or_clients() && !body.has_stood_still() {
                ending.broke_off();
            }
            let error = match error {
                SendError::Deadline => ending.overdue(),
                SendError::Client(_) => shared.gone(),
                error => send_failure(error, endpoint).0,
            };
            note_failure(core, &error);
            ending.failure = Some(End::from(&error));
        }
        let (bytes_in, bytes_out) = stream.counts();
        ending.finish(core, status, bytes_in, bytes_out);
    }
}

/// What a pod answered to the WebSocket handshake that was made of an extended CONNECT.
fn check_switch(exchange: &mut Exchange<'_>, response: &mut Response, key: Option<&str>) {
    let switched = matches!(response.body, Body::Tunnel(_));
    let accepted = key.is_some_and(|key| tunnel::accepts(&response.head.headers, key));
    // A 2xx without a switch would be read as a tunnel.
    let what = if switched && !accepted {
        "WebSocket handshake with a wrong Sec-WebSocket-Accept"
    } else if !switched && response.head.status.is_success() {
        "a success without the switch that was asked for"
    } else {
        return;
    };
    let endpoint = exchange.tried.last().map_or(EndpointText::Name("-".into()), |endpoint| endpoint.text());
    let error = ProxyError::BadResponse { endpoint, what };
    exchange.note(&error);
    *response = respond::refusal(&error);
}

async fn tunnelled(
    core: &Core,
    slot: &Slot,
    receive: RecvStream,
    send: h2::SendStream<Bytes>,
    mut pod: Box<crate::http::h1::client::ClientConn>,
    mut ending: Ending,
) {
    let behind = pod.take_buffered();
    let (idle, paces) = (ending.idle_timeout, ending.paces.take());
    let passed = tunnel::run_on_stream(receive, send, pod.io(), behind, slot, idle, paces).await;
    if let tunnel::TunnelEnd::Idle = passed.end {
        let error = ProxyError::IdleTimeout { endpoint: EndpointText::Name("tunnel".into()) };
        note_failure(core, &error);
        ending.failure = Some(End::from(&error));
    }
    ending.finish(core, StatusCode::OK, passed.up, passed.down);
}

/// Runs `serving` unless the client resets the stream first.
async fn unless_gone(
    stream: &ServerStream,
    mut serving: Pin<&mut impl Future<Output = Response>>,
) -> Option<Response> {
    poll_fn(|cx| {
        if let Poll::Ready(response) = serving.as_mut().poll(cx) {
            return Poll::Ready(Some(response));
        }
        stream.poll_gone(cx).map(|()| None)
    })
    .await
}
