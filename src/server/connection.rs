//! One client's connection from its first byte to its last: request after request.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use http::{Method, StatusCode, Version};
use tokio::task::AbortHandle;

use crate::common::boxed::in_place;
use crate::common::clock::{self, Millis};
use crate::common::live::OnCore;
use crate::common::timer::{Slot, deadline, limit};
use crate::http::body::{Body, BodyError};
use crate::http::error::{EndpointText, ProxyError};
use crate::http::forwarded::Peer;
use crate::http::h1::io::Io;
use crate::http::h1::memory;
use crate::http::h1::parse::ParsedRequest;
use crate::http::h1::server::{Answer, Incoming, MustClose, SendError, SendPatience, ServerConn};
use crate::http::h2::PREFACE;
use crate::http::head::Response;
use crate::proxy::core::Core;
use crate::proxy::exchange::{Beginning, Downstream, Ending, Exchange, Logged, note_failure};
use crate::proxy::{respond, serve, tunnel};
use crate::snapshot::{EntryPoint, ListenerId, Snapshot};
use crate::telemetry::access_log::End;
use crate::telemetry::metrics::{CloseReason, EntryPointLabel};
use crate::tls::session::TlsSession;

use super::h2::{self, Handover};
use super::listener::Admission;
use super::secure;

/// A client that has closed its side may still be waiting for its answer (`nc`), or be gone. It gets this
/// long before what is done for it is given up.
const HALF_CLOSE_GRACE: Millis = 1000;
/// What is left of a request after its answer is read, so that the connection can be kept, up to here.
const DRAIN_LIMIT: u64 = 64 * 1024;
/// For that, and for what a client still sends while it is being told to stop.
pub(super) const LINGER: Millis = 1000;
/// A connection that has waited so long for its next request gives back what only those need that serve one.
const REST: Millis = 1000;
/// Connections of a core that keep it until then; others make it anew for each request.
const MOST_ROOMS: u32 = 128;
/// A connection that is told to end before its first request has come may wait so long for that request: it
/// was accepted, so the request is likely under way.
pub(super) const FIRST_REQUEST: Millis = 1000;

/// A socket on its way to its core.
#[derive(Debug)]
pub struct Accepted {
    /// Not blocking.
    pub stream: std::net::TcpStream,
    /// Where from.
    pub peer: SocketAddr,
    /// Through which listener.
    pub listener: ListenerId,
    /// Its place among the connections that are allowed; given back on drop.
    pub admission: Admission,
    /// It came when the proxy had as much as it may: what it asks for is refused unless it is important.
    pub unwelcome: bool,
}

/// What the outside tells a connection.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Drain {
    /// Go on.
    #[default]
    No,
    /// Say `Connection: close` with the next answer.
    Announce,
    /// End as soon as no request is being served.
    Close,
}

/// Through which a connection is told.
#[derive(Debug, Default)]
pub struct Control {
    pub(super) drain: Cell<Drain>,
    pub(super) waker: RefCell<Option<Waker>>,
    task: OnceCell<AbortHandle>,
}

impl Control {
    /// Tells it; what was said before stays said.
    pub fn drain(&self, drain: Drain) {
        self.drain.set(self.drain.get().max(drain));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whom to wake when there is something to tell.
    pub(super) fn wake_with(&self, cx: &Context<'_>) {
        match &mut *self.waker.borrow_mut() {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            waker => *waker = Some(cx.waker().clone()),
        }
    }

    /// Says which task serves the connection.
    pub fn runs_as(&self, task: AbortHandle) {
        // Said once, by whoever has just begun it.
        let _ = self.task.set(task);
    }

    /// Ends it in the middle of whatever it does.
    pub fn cut(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }
}

/// Serves a connection to its end.
pub async fn run(core: Rc<Core>, accepted: Accepted, control: Rc<Control>) {
    let Accepted { stream, peer, listener, admission, unwelcome } = accepted;
    let Some(entry) = core.snapshot().entry_point(listener).cloned() else { return };
    let label = entry.label;
    let takes_tls = entry.tls.is_some();
    drop(entry);
    let stream = match tokio::net::TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, "a connection could not be taken over");
            return;
        }
    };
    let mut open = Open::new(&core, label);
    let slot = core.timers.slot();
    let (io, tls) = if takes_tls {
        match Box::pin(secure::meet(&core, label, listener, (stream, peer), &slot, &control)).await {
            Ok(met) => met,
            Err(reason) => {
                open.reason = reason;
                return;
            }
        }
    } else {
        (Io::new(stream), None)
    };
    let connection = Connection {
        conn: ServerConn::new(io, core.timers.slot()),
        slot,
        watch: core.timers.slot(),
        peer: Peer::new(peer, tls.is_some()),
        tls,
        opened: clock::now(),
        served: 0,
        unwelcome,
        listener,
        label,
        core: &core,
        control: &control,
    };
    open.reason = connection.serve().await;
    drop(admission);
}

/// A connection as it is counted: closed even when its task panics, or is cut.
struct Open<'a> {
    core: &'a Core,
    label: EntryPointLabel,
    reason: CloseReason,
}

impl<'a> Open<'a> {
    fn new(core: &'a Core, label: EntryPointLabel) -> Self {
        core.metrics.connection_opened(label);
        Self { core, label, reason: CloseReason::Cut }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() { CloseReason::Failed } else { self.reason };
        self.core.metrics.connection_closed(self.label, reason);
    }
}

struct Connection<'a> {
    conn: Rc<ServerConn>,
    slot: Slot,
    /// For the wait on a client that has closed its side.
    watch: Slot,
    peer: Peer,
    tls: Option<Box<TlsSession>>,
    opened: Millis,
    served: u32,
    unwelcome: bool,
    listener: ListenerId,
    label: EntryPointLabel,
    core: &'a Rc<Core>,
    control: &'a Control,
}

/// The room of an exchange that a connection may keep between requests, counted until this is dropped.
struct Room<'a>(&'a Cell<u32>);

impl<'a> Room<'a> {
    fn take(taken: &'a Cell<u32>) -> Option<Self> {
        let count = taken.get();
        (count < MOST_ROOMS).then(|| {
            taken.set(count + 1);
            Self(taken)
        })
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Why a connection is not busy any more.
enum Busy {
    /// No request has come for so long, or not all of its head with its first bytes, or it kept no room.
    Rests(Millis),
    Ended(CloseReason),
}

/// What becomes of the connection after an answer.
enum Next {
    Keep,
    Close(CloseReason),
}

impl Connection<'_> {
    async fn serve(mut self) -> CloseReason {
        match self.serve_http1().await {
            Some(reason) => {
                if reason.is_clean() {
                    self.conn.io().close_notify();
                }
                reason
            }
            None => Box::pin(self.hand_over()).await,
        }
    }

    /// Serves requests of HTTP/1; `None` when it turns out that the client speaks HTTP/2.
    async fn serve_http1(&mut self) -> Option<CloseReason> {
        let mut rested = 0;
        loop {
            if let Err(reason) = self.wait(rested, Millis::MAX).await {
                return Some(reason);
            }
            if self.served == 0 && self.conn.begins_with(b"PRI") {
                match self.speaks_http2().await {
                    Ok(true) => return None,
                    Ok(false) => {}
                    Err(reason) => return Some(reason),
                }
            }
            let snapshot = self.core.snapshot();
            let Some(entry) = snapshot.entry_point(self.listener) else { return Some(CloseReason::Drained) };
            let settings = &entry.settings;
            let head = self.conn.read_head(&settings.head);
            let incoming = self.slot.within_for(settings.head_timeout, head).await;
            let incoming = incoming.unwrap_or(Err(ProxyError::ClientHeadTimeout));
            let parsed = match incoming {
                Ok(Incoming::Request(parsed)) => parsed,
                Ok(Incoming::Closed) => return Some(CloseReason::Client),
                Err(error) => return Some(self.refuse(entry, &error).await),
            };
            // A connection that is idle, or slow to say what it wants, is not as large as one that serves.
            let room = Room::take(&self.core.rooms);
            match in_place(|| self.busy(snapshot, parsed, room.is_some())).await {
                Busy::Rests(time) => rested = time,
                Busy::Ended(reason) => return Some(reason),
            }
        }
    }

    /// Serves a request, and those that follow it closely if it keeps its room.
    async fn busy(
        &mut self,
        mut snapshot: OnCore<Snapshot>,
        mut parsed: ParsedRequest,
        keeps_room: bool,
    ) -> Busy {
        loop {
            self.served += 1;
            if let Next::Close(reason) = self.exchange(snapshot, parsed).await {
                return Busy::Ended(reason);
            }
            if !keeps_room {
                return Busy::Rests(0);
            }
            match self.wait(0, REST).await {
                Ok(true) => {}
                Ok(false) => return Busy::Rests(REST),
                Err(reason) => return Busy::Ended(reason),
            }
            snapshot = self.core.snapshot();
            let Some(entry) = snapshot.entry_point(self.listener) else {
                return Busy::Ended(CloseReason::Drained);
            };
            parsed = match at_once(pin!(self.conn.read_head(&entry.settings.head))).await {
                Some(Ok(Incoming::Request(parsed))) => parsed,
                Some(Ok(Incoming::Closed)) => return Busy::Ended(CloseReason::Client),
                Some(Err(error)) => return Busy::Ended(self.refuse(entry, &error).await),
                None => return Busy::Rests(0),
            };
        }
    }

    /// Waits for the first byte of a request, holding neither a buffer nor a configuration; `false` when it has not
    /// come after `most` milliseconds and more of the client's time is left. Of that time `over` has passed already.
    async fn wait(&self, over: Millis, most: Millis) -> Result<bool, CloseReason> {
        if self.conn.has_more() {
            return Ok(true);
        }
        let patience = {
            let snapshot = self.core.snapshot();
            let Some(entry) = snapshot.entry_point(self.listener) else { return Err(CloseReason::Drained) };
            if self.served == 0 { entry.settings.head_timeout } else { entry.settings.idle_timeout }
        };
        // 0 is for ever.
        let last = patience != 0 && patience <= over.saturating_add(most);
        let time = if last { patience.saturating_sub(over).max(1) } else { most };
        let mut at = None;
        let mut told = false;
        let mut request = pin!(self.conn.wait_for_request());
        let result = poll_fn(|cx| {
            if let Poll::Ready(open) = request.as_mut().poll(cx) {
                return Poll::Ready(if open { Ok(true) } else { Err(CloseReason::Client) });
            }
            let closes = self.control.drain.get() == Drain::Close;
            // A request may have come of which this core has not heard yet.
            if closes && self.served > 0 && self.conn.io().is_quiet(true) {
                return Poll::Ready(Err(CloseReason::Drained));
            }
            self.control.wake_with(cx);
            let at = at.get_or_insert_with(|| {
                // An answer that has just gone out has read the clock; a new connection has not.
                let now = if self.served == 0 { clock::now() } else { clock::recent() };
                now.saturating_add(time)
            });
            if closes && !told {
                told = true;
                *at = (*at).min(clock::now() + FIRST_REQUEST);
            }
            self.slot.poll_at(cx, *at).map(|()| match (closes, last) {
                (true, _) => Err(CloseReason::Drained),
                (false, true) => Err(CloseReason::Idle),
                (false, false) => Ok(false),
            })
        })
        .await;
        if at.is_some() {
            self.slot.clear();
        }
        result
    }

    /// Whether the client begins as one does that knows it speaks HTTP/2 (RFC 9113 §3.3).
    async fn speaks_http2(&self) -> Result<bool, CloseReason> {
        let patience = {
            let snapshot = self.core.snapshot();
            let Some(entry) = snapshot.entry_point(self.listener) else { return Err(CloseReason::Drained) };
            entry.settings.head_timeout
        };
        match self.slot.within_for(patience, self.conn.read_start(PREFACE)).await {
            Ok(begins) => Ok(begins),
            Err(_) => {
                h2::refuse(self.core, self.listener, &self.peer, &ProxyError::ClientHeadTimeout);
                Err(CloseReason::Timeout)
            }
        }
    }

    async fn hand_over(self) -> CloseReason {
        if self.unwelcome {
            // It may bring many requests, and none of them is told apart yet.
            return CloseReason::Refused;
        }
        let Self { conn, peer, tls, opened, listener, label, core, control, .. } = self;
        let Some((io, ahead)) = ServerConn::into_parts(conn) else { return CloseReason::Failed };
        h2::run(Handover { core, control, peer, tls, listener, label, opened, io, ahead }).await
    }

    async fn exchange(&self, snapshot: OnCore<Snapshot>, parsed: ParsedRequest) -> Next {
        let core = self.core;
        let entry =
            snapshot.entry_point(self.listener).expect("it was there a moment ago, in this very snapshot");
        let settings = &entry.settings;
        let ParsedRequest { head, authority, keep_alive, expects_continue, upgrade, named, .. } = parsed;
        let started = clock::instant();
        let now = clock::recent();
        let (method, version) = (head.method.clone(), head.version);
        let logged = Logged::of(core, entry, &self.peer, &head);
        let body_deadline = deadline(now, limit(settings.read_timeout));
        let body = self.conn.request_body(body_deadline, settings.stall_timeout);
        let mut exchange = Exchange::new(Beginning {
            core,
            entry,
            client: Downstream::H1(&self.conn),
            peer: &self.peer,
            tls: self.tls.as_deref(),
            authority: &authority,
            slot: &self.slot,
            started,
            named,
            upgrade: upgrade.filter(|protocol| may_switch_to(protocol.as_bytes())),
            expects_continue,
            logged,
        });
        exchange.unwelcome = self.unwelcome;
        let served = self.unless_gone(pin!(serve::serve(&mut exchange, head, body))).await;
        let mut response = match served {
            Some(response) => response,
            None => {
                exchange.note(&ProxyError::ClientGone);
                let response = respond::refusal(&ProxyError::ClientGone);
                let ending = Ending::new(exchange, started, &method, &response.head, snapshot.generation);
                ending.finish(core, response.head.status, self.conn.counts().0, 0);
                return Next::Close(CloseReason::Client);
            }
        };
        let reason =
            self.reason_to_close(keep_alive, settings.keep_alive_max_requests, settings.keep_alive_max_time);
        let stall_timeout = settings.stall_timeout;
        let write_deadline = deadline(clock::recent(), limit(settings.write_timeout));
        let switched = exchange.upgrade.take().filter(|_| matches!(response.body, Body::Tunnel(_)));
        exchange.upgrade = switched.clone();
        let closes = exchange.closes;
        let endpoint = exchange.tried.last().map(|endpoint| endpoint.text());
        let mut ending = Ending::new(exchange, started, &method, &response.head, snapshot.generation);
        // What is left of the request stands between this answer and the next one.
        let unreadable =
            !self.conn.request_is_done() && switched.is_none() && !self.conn.can_drain(DRAIN_LIMIT);
        let close = reason.is_some() || unreadable || closes;
        let answer = Answer {
            version,
            head_only: method == Method::HEAD,
            close,
            date: &core.date(),
            upgrade: switched.as_ref().map(http::HeaderValue::as_bytes),
        };
        // The configuration is let go of before what may be a long stream.
        drop(snapshot);
        let at = ending.deadline.min(write_deadline);
        let sent =
            self.send(&mut response, answer, (ending.idle_timeout, ending.quiet), stall_timeout, at).await;
        let status = response.head.status;
        let mut ended_by_close = false;
        let next = match sent {
            Ok(must_close) => {
                if let Body::Tunnel(pod) = response.body {
                    self.tunnel(pod, ending, status).await;
                    return Next::Close(CloseReason::Answered);
                }
                ended_by_close = must_close.0;
                None
            }
            Err(error) => {
                // A client that leaves may have waited for the pod. Clients leave all pods alike, and that is what
                // an endpoint is compared by.
                if error.is_pods_or_clients() && !response.body.has_stood_still() {
                    ending.broke_off();
                }
                let (error, reason) = match error {
                    SendError::Deadline => (ending.overdue(), CloseReason::Timeout),
                    error => send_failure(error, endpoint),
                };
                note_failure(core, &error);
                ending.failure = Some(End::from(&error));
                Some(reason)
            }
        };
        let (bytes_in, bytes_out) = self.conn.counts();
        ending.finish(core, status, bytes_in, bytes_out);
        memory::keep_fields(response.head.headers);
        if let Some(reason) = next {
            if version == Version::HTTP_10 {
                // Without a length, only a reset tells the client that something is missing.
                self.conn.io().reset_on_close();
            }
            return Next::Close(reason);
        }
        if close {
            // Bytes that nobody will read would turn the close into a reset.
            if unreadable || closes || self.conn.has_more() {
                self.conn.linger(&self.slot, clock::now() + LINGER).await;
            }
            return Next::Close(reason.unwrap_or(CloseReason::Answered));
        }
        if ended_by_close {
            return Next::Close(CloseReason::Answered);
        }
        if !self.conn.request_is_done() {
            let until = clock::now() + LINGER;
            if self.slot.within(until, self.conn.drain(DRAIN_LIMIT)).await != Ok(true) {
                self.conn.linger(&self.slot, until).await;
                return Next::Close(CloseReason::Answered);
            }
        }
        Next::Keep
    }

    async fn send(
        &self,
        response: &mut Response,
        answer: Answer<'_>,
        (body_idle, quiet): (Millis, Millis),
        client_idle: Millis,
        at: Millis,
    ) -> Result<MustClose, SendError> {
        let patience =
            SendPatience { body_idle, quiet, client_idle, deadline: at, half_closed: HALF_CLOSE_GRACE };
        self.conn.send(&response.head, &mut response.body, answer, &self.slot, patience).await
    }

    /// Answers a head that cannot be served, and ends the connection.
    async fn refuse(&self, entry: &Arc<EntryPoint>, error: &ProxyError) -> CloseReason {
        note_failure(self.core, error);
        if matches!(error, ProxyError::ClientGone) {
            return CloseReason::Client;
        }
        let mut response = respond::refusal(error);
        let date = self.core.date();
        let answer =
            Answer { version: Version::HTTP_11, head_only: false, close: true, date: &date, upgrade: None };
        let started = clock::instant();
        // An unreadable head names no method.
        let method = Method::from_bytes(b"-").expect("a token");
        // Whether it still gets out makes no difference to what follows.
        let _ = self.send(&mut response, answer, (0, 0), LINGER, clock::now() + LINGER).await;
        let (bytes_in, bytes_out) = self.conn.counts();
        Ending::of_refusal(self.core, entry, &self.peer, started, method, error).finish(
            self.core,
            response.head.status,
            bytes_in,
            bytes_out,
        );
        self.conn.linger(&self.slot, clock::now() + LINGER).await;
        match error {
            ProxyError::ClientHeadTimeout => CloseReason::Timeout,
            _ => CloseReason::Malformed,
        }
    }

    /// Runs `serving` unless the client goes away first. By reference, because a future that takes another
    /// is twice its size.
    async fn unless_gone(&self, mut serving: Pin<&mut impl Future<Output = Response>>) -> Option<Response> {
        let mut closed_at = None;
        let result = poll_fn(|cx| {
            if let Poll::Ready(response) = serving.as_mut().poll(cx) {
                return Poll::Ready(Some(response));
            }
            match self.conn.poll_gone(cx) {
                Poll::Ready(true) => return Poll::Ready(None),
                Poll::Ready(false) => closed_at = Some(clock::now()),
                Poll::Pending => {}
            }
            match closed_at {
                Some(at) => self.watch.poll_at(cx, at + HALF_CLOSE_GRACE).map(|()| None),
                None => Poll::Pending,
            }
        })
        .await;
        if closed_at.is_some() {
            self.watch.clear();
        }
        result
    }

    fn reason_to_close(&self, keep_alive: bool, max_requests: u32, max_time: Millis) -> Option<CloseReason> {
        if self.control.drain.get() != Drain::No {
            Some(CloseReason::Drained)
        } else if !keep_alive {
            Some(CloseReason::Answered)
        } else if (max_requests > 0 && self.served >= max_requests)
            || (max_time > 0 && clock::now() >= self.opened + max_time)
        {
            Some(CloseReason::Aged)
        } else {
            None
        }
    }

    async fn tunnel(
        &self,
        mut pod: Box<crate::http::h1::client::ClientConn>,
        mut ending: Ending,
        status: StatusCode,
    ) {
        let ahead = self.conn.take_buffered();
        let behind = pod.take_buffered();
        let idle = ending.idle_timeout;
        let paces = ending.paces.take();
        let passed = tunnel::run(self.conn.io(), pod.io(), ahead, behind, &self.slot, idle, paces).await;
        if let tunnel::TunnelEnd::Idle = passed.end {
            let error = ProxyError::IdleTimeout { endpoint: EndpointText::Name("tunnel".into()) };
            note_failure(self.core, &error);
            ending.failure = Some(End::from(&error));
        }
        let (bytes_in, bytes_out) = self.conn.counts();
        ending.finish(self.core, status, bytes_in + passed.up, bytes_out + passed.down);
    }
}

/// What the client, or the log, learns of an answer that broke off.
pub(super) fn send_failure(error: SendError, endpoint: Option<EndpointText>) -> (ProxyError, CloseReason) {
    let endpoint = endpoint.unwrap_or_else(|| EndpointText::Name("-".into()));
    match error {
        SendError::Client(_) => (ProxyError::ClientGone, CloseReason::Client),
        SendError::ClientStalled => (ProxyError::ClientStalled, CloseReason::Timeout),
        SendError::Body(BodyError::Pod(what)) => {
            (ProxyError::UpstreamBody { endpoint, what }, CloseReason::Upstream)
        }
        SendError::Body(BodyError::ClientGone) => (ProxyError::ClientGone, CloseReason::Client),
        SendError::Body(BodyError::ClientMalformed(what)) => {
            (ProxyError::ClientBody(what), CloseReason::Malformed)
        }
        SendError::Body(BodyError::ClientTimeout) => (ProxyError::ClientBodyTimeout, CloseReason::Timeout),
        SendError::BodyStalled => (ProxyError::IdleTimeout { endpoint }, CloseReason::Upstream),
        SendError::Deadline => (ProxyError::ExchangeTimeout, CloseReason::Timeout),
    }
}

/// What the future gives when it is asked for the first time.
async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Option<F::Output> {
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Protocols that could smuggle requests past us are not switched to; the request is served as it is.
fn may_switch_to(protocol: &[u8]) -> bool {
    let begins =
        |with: &[u8]| protocol.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with));
    !protocol.is_empty() && !begins(b"h2") && !begins(b"http") && !begins(b"tls")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of_future<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_is_small() {
        let size = size_of_future(run);
        assert!(size <= 2048, "{size} bytes");
    }
}
