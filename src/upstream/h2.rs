//! Connections of HTTP/2 to pods: a few for each endpoint and core, shared by many requests.
//!
//! With `h2c://` there is nothing else. With `https://` the pod chooses (ALPN), anew with every connection: the
//! first one to an endpoint shows what it speaks, and who comes meanwhile waits for that. From then on connections
//! are made one at a time while it speaks HTTP/2, and side by side while it speaks HTTP/1.1; what the newest one
//! has shown counts, so that a pod may change its mind.
//!
//! A connection is used until the pod says GOAWAY, dies, or does not answer a PING; what is under way on it may
//! end, new requests go to another one. Requests that come while one is being made wait for it rather than make
//! one each.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::Ping;
use h2::client::{ResponseFuture, SendRequest};

use crate::common::clock::{self, Millis};
use crate::common::timer::{Slot, Timers};
use crate::endpoint::Endpoint;
use crate::endpoint::lobby::Ticket;
use crate::endpoint::tally::{CallEnd, Verdict};
use crate::http::error::ProxyError;
use crate::http::fields::Fields;
use crate::http::h1::client::{Place as _, Wanted};
use crate::http::h1::io::Io;
use crate::http::h2::client::{self, Lease};
use crate::http::h2::limits::ClientLimits;
use crate::telemetry::metrics::{CoreMetrics, ServiceLabel};
use crate::tls::client::{ClientTls, Offer, chose_http2};

use super::{Complaints, Dial};

/// Largest head of an answer, in bytes, as with HTTP/1.
const MAX_HEAD: u32 = 256 * 1024;

/// How many requests a connection takes whose pod has not said so yet: no number that a pod can say. It is not used
/// before that, since what is too much for the pod would be refused one by one.
const UNSAID: usize = usize::MAX - 1;

/// Connections of one core to one endpoint.
#[derive(Debug)]
pub struct Pool {
    endpoint: Arc<Endpoint>,
    service: ServiceLabel,
    metrics: Rc<CoreMetrics>,
    timers: Rc<Timers>,
    conns: RefCell<Vec<Rc<Conn>>>,
    attempt: RefCell<Option<Rc<Attempt>>>,
    limits: Cell<ClientLimits>,
    retired: Cell<bool>,
    /// With which TLS its connections are made; `None` is prior knowledge.
    tls: Option<Arc<ClientTls>>,
    spoken: Cell<Spoken>,
    complaints: Complaints,
}

/// What the newest connection to an endpoint has shown that it speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Spoken {
    Unknown,
    Http1,
    Http2,
}

/// One connection.
struct Conn {
    send: RefCell<SendRequest<Bytes>>,
    state: Rc<ConnState>,
    active: Cell<u32>,
    served: Cell<u64>,
    idle_since: Cell<Millis>,
    /// It is among the idle ones of the gauge.
    counted: Cell<bool>,
    tls: bool,
    /// Its place among the connections that are allowed, where their number is limited.
    ticket: Option<Ticket>,
}

impl std::fmt::Debug for Conn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conn")
            .field("active", &self.active)
            .field("served", &self.served)
            .finish_non_exhaustive()
    }
}

/// What the connection's task tells.
#[derive(Debug, Default)]
struct ConnState {
    dead: Cell<bool>,
    /// Who is told when something has come, or it is dead.
    watcher: RefCell<Option<Waker>>,
}

impl ConnState {
    fn tell(&self) {
        if let Some(watcher) = self.watcher.take() {
            watcher.wake();
        }
    }
}

/// A connection that is being made.
#[derive(Debug, Default)]
struct Attempt {
    outcome: RefCell<Option<Outcome>>,
    waiting: RefCell<Vec<Waker>>,
}

/// How that ended, for those who waited.
#[derive(Clone, Debug)]
enum Outcome {
    /// There is one more, or the pod speaks HTTP/1.1, or nobody makes it any longer.
    LookAgain,
    Failed(io::ErrorKind),
    TimedOut,
    NoTls(String),
}

impl Outcome {
    fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::Connect { cause, .. } => Self::Failed(cause.kind()),
            ProxyError::UpstreamTls { reason, .. } => Self::NoTls(reason.clone()),
            _ => Self::TimedOut,
        }
    }
}

/// What a request is sent on.
#[derive(Debug)]
pub enum Found {
    /// A connection of HTTP/2.
    Shared(Place),
    /// A new connection on which the pod speaks HTTP/1.1, and its place where their number is limited.
    Own(Io, Option<Ticket>),
}

/// A place on a connection that was there, or on a new one.
#[derive(Debug)]
pub struct Place {
    conn: Rc<Conn>,
    pool: Rc<Pool>,
    reused: bool,
}

impl Place {
    /// Whether the connection was there before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let conn = &self.conn;
        conn.active.set(conn.active.get() - 1);
        if conn.active.get() == 0 {
            conn.idle_since.set(clock::recent());
            if !self.pool.retired.get() && !conn.is_dead() {
                conn.counted.set(true);
                self.pool.metrics.pool_idle_added(self.pool.service);
            }
        }
    }
}

impl Lease for Place {
    fn open(
        &self,
        request: http::Request<()>,
        ends: bool,
    ) -> Result<(ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let opened = client::open(&mut self.conn.send.borrow_mut(), request, ends);
        match &opened {
            Ok(_) => self.conn.served.set(self.conn.served.get() + 1),
            Err(_) => self.conn.state.dead.set(true),
        }
        opened
    }

    fn is_reused(&self) -> bool {
        self.reused
    }

    fn is_tls(&self) -> bool {
        self.conn.tls
    }

    fn stands_still(&self) {
        self.pool.endpoint.tally().ended(Verdict::StoodStill);
    }

    fn came_whole(&self, trailers: Option<&Fields>) {
        let tally = self.pool.endpoint.tally();
        tally.came_whole();
        if let Some(end) = trailers.and_then(CallEnd::of) {
            tally.ended(Verdict::Closed(end));
        }
    }
}

impl Conn {
    /// Whether it takes no more requests: gone, or told to go.
    fn is_dead(&self) -> bool {
        if self.state.dead.get() {
            return true;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let dead = matches!(self.send.borrow_mut().poll_ready(&mut cx), Poll::Ready(Err(_)));
        if dead {
            self.state.dead.set(true);
        }
        dead
    }

    /// Whether nothing is under way on it and the pod takes nothing: kept, there would be one more with each request.
    fn is_of_no_use(&self) -> bool {
        self.active.get() == 0 && self.send.borrow().current_max_send_streams() == 0
    }

    fn has_room(&self, limits: &ClientLimits) -> bool {
        let theirs = u32::try_from(self.send.borrow().current_max_send_streams()).unwrap_or(u32::MAX);
        self.active.get() < theirs.min(limits.max_concurrent_streams)
    }
}

impl Pool {
    /// No connections yet.
    pub fn new(
        endpoint: &Arc<Endpoint>,
        service: ServiceLabel,
        metrics: &Rc<CoreMetrics>,
        timers: &Rc<Timers>,
        limits: ClientLimits,
        tls: Option<&Arc<ClientTls>>,
    ) -> Rc<Self> {
        Rc::new(Self {
            endpoint: Arc::clone(endpoint),
            service,
            metrics: Rc::clone(metrics),
            timers: Rc::clone(timers),
            conns: RefCell::default(),
            attempt: RefCell::default(),
            limits: Cell::new(limits),
            retired: Cell::new(false),
            tls: tls.cloned(),
            spoken: Cell::new(if tls.is_some() { Spoken::Unknown } else { Spoken::Http2 }),
            complaints: Complaints::default(),
        })
    }

    /// Whether its connections are made with `tls`, this very one.
    pub(super) fn is_made_with(&self, tls: Option<&Arc<ClientTls>>) -> bool {
        self.tls.as_ref().map(Arc::as_ptr) == tls.map(Arc::as_ptr)
    }

    /// Takes other limits, for connections to come.
    pub fn set_limits(&self, limits: ClientLimits) {
        self.limits.set(limits);
    }

    /// Whether a request finds a place here without a connection of its own, as far as is known.
    pub fn has_room(&self) -> bool {
        let limits = self.limits.get();
        self.attempt.borrow().is_some()
            || self.conns.borrow().iter().any(|conn| !conn.is_dead() && conn.has_room(&limits))
    }

    /// What one request is sent on: a place on a connection with room, or (also for `Fresh::Only`) a new
    /// connection. `ticket` is asked before one is made.
    ///
    /// # Errors
    /// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`], [`ProxyError::UpstreamTls`], and what `ticket` says.
    pub async fn find(
        self: &Rc<Self>,
        fresh: Fresh,
        slot: &Slot,
        dial: Dial,
        mut ticket: impl FnMut() -> Result<Option<Ticket>, ProxyError>,
    ) -> Result<Found, ProxyError> {
        let mut fresh = fresh;
        // Others' handshakes may take as long as our own.
        let until = if self.tls.is_some() { dial.handshake_until(dial.until) } else { dial.until };
        loop {
            if fresh == Fresh::No
                && let Some(place) = self.take()
            {
                return Ok(Found::Shared(place));
            }
            let under_way = self.attempt.borrow().clone().filter(|_| self.spoken.get() != Spoken::Http1);
            let Some(attempt) = under_way else { return self.connect(slot, dial, ticket()?).await };
            // Whatever comes of it is new.
            fresh = Fresh::No;
            let outcome = poll_fn(|cx| match &*attempt.outcome.borrow() {
                Some(outcome) => Poll::Ready(Some(outcome.clone())),
                None => {
                    attempt.waiting.borrow_mut().push(cx.waker().clone());
                    slot.poll_at(cx, until).map(|()| None)
                }
            })
            .await;
            slot.clear();
            let endpoint = self.endpoint.text();
            match outcome {
                Some(Outcome::LookAgain) => {}
                Some(Outcome::Failed(kind)) => {
                    return Err(ProxyError::Connect { endpoint, cause: kind.into() });
                }
                Some(Outcome::NoTls(reason)) => return Err(ProxyError::UpstreamTls { endpoint, reason }),
                Some(Outcome::TimedOut) | None => return Err(ProxyError::ConnectTimeout { endpoint }),
            }
        }
    }

    /// A place on a connection that is there.
    pub fn take(self: &Rc<Self>) -> Option<Place> {
        self.drop_dead();
        let limits = self.limits.get();
        let conns = self.conns.borrow();
        let conn = conns.iter().find(|conn| conn.has_room(&limits))?;
        let reused = conn.served.get() > 0;
        Some(self.place_on(conn, reused))
    }

    fn place_on(self: &Rc<Self>, conn: &Rc<Conn>, reused: bool) -> Place {
        if conn.counted.replace(false) {
            self.metrics.pool_idle_removed(self.service);
        }
        conn.active.set(conn.active.get() + 1);
        Place { conn: Rc::clone(conn), pool: Rc::clone(self), reused }
    }

    fn drop_dead(&self) {
        self.conns.borrow_mut().retain(|conn| {
            let dead = conn.is_dead() || conn.is_of_no_use();
            if dead {
                self.forget(conn);
            }
            !dead
        });
    }

    fn forget(&self, conn: &Conn) {
        if conn.counted.replace(false) {
            self.metrics.pool_idle_removed(self.service);
        }
    }

    async fn connect(
        self: &Rc<Self>,
        slot: &Slot,
        dial: Dial,
        ticket: Option<Ticket>,
    ) -> Result<Found, ProxyError> {
        let attempt = Rc::new(Attempt::default());
        // Who is known to speak HTTP/1.1 gets connections side by side, and nobody waits for them.
        let awaited = self.spoken.get() != Spoken::Http1;
        if awaited {
            *self.attempt.borrow_mut() = Some(Rc::clone(&attempt));
        }
        // Whoever makes it may be cancelled; then another one does.
        let _end = awaited.then(|| EndOfAttempt { pool: self, attempt: &attempt });
        self.dial(slot, dial, ticket).await.inspect_err(|error| {
            *attempt.outcome.borrow_mut() = Some(Outcome::of(error));
            if matches!(error, ProxyError::UpstreamTls { .. }) {
                self.complaints.say(&self.endpoint, error);
            }
        })
    }

    async fn dial(
        self: &Rc<Self>,
        slot: &Slot,
        dial: Dial,
        ticket: Option<Ticket>,
    ) -> Result<Found, ProxyError> {
        let stream = super::connect(&self.endpoint, slot, dial.until).await?;
        let (io, until) = match &self.tls {
            None => (Io::new(stream), dial.until),
            Some(tls) => {
                let until = dial.handshake_until(clock::now());
                let io = super::handshake(&self.endpoint, tls, stream, slot, until, Offer::All).await?;
                if !io.session(chose_http2).unwrap_or(false) {
                    self.spoken.set(Spoken::Http1);
                    return Ok(Found::Own(io, ticket));
                }
                self.spoken.set(Spoken::Http2);
                (io, until)
            }
        };
        let limits = self.limits.get();
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(limits.stream_window)
            .initial_connection_window_size(limits.connection_window)
            .max_concurrent_streams(0)
            .initial_max_send_streams(UNSAID)
            .enable_push(false)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(256 * 1024);
        let (send, connection) = match slot.within(until, builder.handshake::<_, Bytes>(io)).await {
            Ok(Ok(made)) => made,
            Ok(Err(error)) => {
                let cause = error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
                return Err(ProxyError::Connect { endpoint: self.endpoint.text(), cause });
            }
            Err(_) => return Err(ProxyError::ConnectTimeout { endpoint: self.endpoint.text() }),
        };
        let state = Rc::new(ConnState::default());
        tokio::task::spawn_local(drive(connection, Rc::clone(&state), self.timers.slot(), limits));
        let said = poll_fn(|cx| {
            if state.dead.get() || send.current_max_send_streams() != UNSAID {
                return Poll::Ready(());
            }
            *state.watcher.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        });
        if slot.within(until, said).await.is_err() {
            return Err(ProxyError::ConnectTimeout { endpoint: self.endpoint.text() });
        }
        let failed = |cause| Err(ProxyError::Connect { endpoint: self.endpoint.text(), cause });
        if state.dead.get() {
            return failed(io::ErrorKind::ConnectionReset.into());
        }
        if send.current_max_send_streams() == 0 {
            let why = "the pod takes no requests (MAX_CONCURRENT_STREAMS is 0)";
            return failed(io::Error::new(io::ErrorKind::ConnectionRefused, why));
        }
        let conn = Rc::new(Conn {
            send: RefCell::new(send),
            state,
            active: Cell::new(0),
            served: Cell::new(0),
            idle_since: Cell::new(clock::recent()),
            counted: Cell::new(false),
            tls: self.tls.is_some(),
            ticket,
        });
        let place = self.place_on(&conn, false);
        if !self.retired.get() {
            self.conns.borrow_mut().push(conn);
        }
        Ok(Found::Shared(place))
    }

    /// Closes a connection without requests whose place is wanted.
    pub(super) fn reclaim(&self, by: Wanted) {
        let mut conns = self.conns.borrow_mut();
        let wanted = |conn: &Rc<Conn>| {
            conn.active.get() == 0 && conn.ticket.as_ref().is_some_and(|ticket| ticket.is_wanted(by))
        };
        let Some(place) = conns.iter().position(wanted) else { return };
        let conn = conns.remove(place);
        drop(conns);
        self.forget(&conn);
    }

    /// Closes connections that nobody has used for so long, and those that are dead.
    pub fn sweep(&self, now: Millis, idle_timeout: Millis) {
        self.drop_dead();
        self.conns.borrow_mut().retain(|conn| {
            let old =
                conn.active.get() == 0 && idle_timeout > 0 && now >= conn.idle_since.get() + idle_timeout;
            if old {
                self.forget(conn);
            }
            !old
        });
    }

    /// Lets go of every connection; what is under way on them may end.
    pub fn clear(&self) {
        self.retired.set(true);
        for conn in self.conns.take() {
            self.forget(&conn);
        }
    }
}

/// Whether a connection that was there may be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fresh {
    /// Any.
    No,
    /// The last one turned out to be dead.
    Only,
}

impl Fresh {
    /// `Only`, where that is so.
    pub fn only_if(fresh_only: bool) -> Self {
        if fresh_only { Self::Only } else { Self::No }
    }
}

struct EndOfAttempt<'a> {
    pool: &'a Pool,
    attempt: &'a Attempt,
}

impl Drop for EndOfAttempt<'_> {
    fn drop(&mut self) {
        *self.pool.attempt.borrow_mut() = None;
        self.attempt.outcome.borrow_mut().get_or_insert(Outcome::LookAgain);
        for waker in self.attempt.waiting.take() {
            waker.wake();
        }
    }
}

/// Runs a connection until it ends; asks from time to time whether it lives, if it shall.
async fn drive(
    mut connection: h2::client::Connection<Io, Bytes>,
    state: Rc<ConnState>,
    slot: Slot,
    limits: ClientLimits,
) {
    let mut pings = connection.ping_pong().filter(|_| limits.read_idle_timeout > 0);
    let mut asked: Option<Millis> = None;
    let mut quiet_since = clock::recent();
    poll_fn(|cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        state.tell();
        if let Poll::Ready(result) = polled {
            if let Err(error) = result {
                tracing::debug!(%error, "connection of HTTP/2 to a pod ended");
            }
            return Poll::Ready(());
        }
        let Some(pings) = &mut pings else { return Poll::Pending };
        loop {
            match asked {
                Some(since) => {
                    if pings.poll_pong(cx).is_ready() {
                        asked = None;
                        quiet_since = clock::now();
                        continue;
                    }
                    let at = since + limits.ping_timeout;
                    if limits.ping_timeout == 0 || slot.poll_at(cx, at).is_pending() {
                        return Poll::Pending;
                    }
                    tracing::debug!("a pod does not answer a PING");
                    return Poll::Ready(());
                }
                None => {
                    if slot.poll_at(cx, quiet_since + limits.read_idle_timeout).is_pending() {
                        return Poll::Pending;
                    }
                    if pings.send_ping(Ping::opaque()).is_err() {
                        return Poll::Ready(());
                    }
                    asked = Some(clock::now());
                    // The codec writes it when it is asked again.
                    cx.waker().wake_by_ref();
                }
            }
        }
    })
    .await;
    state.dead.set(true);
    state.tell();
}
