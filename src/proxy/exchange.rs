//! One request with its answer, and what it carries along.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::header::HeaderName;
use http::{HeaderValue, Method, StatusCode};
use smallvec::SmallVec;

use super::admit::Place;
use super::bandwidth::TunnelPaces;
use super::core::Core;
use super::grpc::Call;
use super::outcome;
use crate::common::clock::{self, Millis};
use crate::common::names::{EntryPointName, RouterName};
use crate::common::timer::Slot;
use crate::endpoint::Endpoint;
use crate::endpoint::outlier::QUIET;
use crate::http::authority::Checked;
use crate::http::error::ProxyError;
use crate::http::fields::Fields;
use crate::http::forwarded::Peer;
use crate::http::h1::server::ServerConn;
use crate::http::h2::server::ServerStream;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::text::Text;
use crate::middleware::LinkContext;
use crate::snapshot::{EntryPoint, Route, Service};
use crate::telemetry::access_log::{AccessLog, AccessRecord, End, OriginPart};
use crate::telemetry::metrics::{ExchangeKey, MethodLabel, Protocol, Series, TimeoutKind};
use crate::tls::session::TlsSession;

/// What the path of one request reads and leaves behind.
pub struct Exchange<'a> {
    /// The core it runs on.
    pub core: &'a Rc<Core>,
    /// The entry point it came through.
    pub entry: &'a EntryPoint,
    /// Where its interim answers go.
    pub client: Downstream<'a>,
    /// Who sent it.
    pub peer: &'a Peer,
    /// What its connection agreed on, if it is TLS.
    pub tls: Option<&'a TlsSession>,
    /// Whom it is for, as it came.
    pub authority: &'a Checked,
    /// For its waits.
    pub slot: &'a Slot,
    /// What links know of it.
    pub links: LinkContext,
    /// Fields that `Connection` named.
    pub named: SmallVec<[HeaderName; 1]>,
    /// The protocol it asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// The router that took it.
    pub route: Option<&'a Route>,
    /// The service whose endpoints it was given to.
    pub service: Option<&'a Service>,
    /// When it must be over.
    pub deadline: Millis,
    /// Its connection came when the proxy had as many as it may.
    pub unwelcome: bool,
    /// When it must be over by the client's own word; part of `deadline`.
    pub client_deadline: Millis,
    /// For each try, where a `retry` link says so; milliseconds, 0 for none.
    pub attempt_timeout: Option<Millis>,
    /// How long nothing may move while its bodies flow; milliseconds, 0 for ever.
    pub idle_timeout: Millis,
    /// Tries so far, over all retries.
    pub attempts: u32,
    /// How many of them were of a service that another has taken over from (`failover`).
    pub attempts_before: u32,
    /// Tries allowed, where a `retry` link says so.
    pub attempt_limit: Option<u32>,
    /// The endpoints that were tried, in order.
    pub tried: SmallVec<[Arc<Endpoint>; 1]>,
    /// The load it puts on the endpoint that answers.
    pub in_flight: Option<Place>,
    /// What the pod answered, and how long that took.
    pub origin: Option<(StatusCode, Duration)>,
    /// How it ended, when it failed.
    pub failure: Option<End>,
    /// The limit that refused it.
    pub limit: Option<Arc<str>>,
    /// What the client sent is not to be trusted any further.
    pub closes: bool,
    /// It is a call of gRPC.
    pub grpc: Option<Call>,
    /// How fast a tunnel may be.
    pub paces: Option<Box<TunnelPaces>>,
    logged: Option<Box<Logged>>,
}

/// The client's end of one exchange, whichever protocol it speaks.
#[derive(Clone, Copy, Debug)]
pub enum Downstream<'a> {
    /// A connection of HTTP/1.
    H1(&'a ServerConn),
    /// Nobody waits for the answer: a mirror.
    Nobody,
    /// A stream of HTTP/2.
    H2(&'a ServerStream),
}

impl Downstream<'_> {
    /// Sends an interim answer (RFC 9110 §15.2) ahead of the final one.
    pub fn send_interim(self, status: StatusCode, headers: &Fields) {
        match self {
            Self::H1(conn) => conn.send_interim(status, headers),
            Self::Nobody => {}
            Self::H2(stream) => stream.send_interim(status, headers),
        }
    }
}

/// What is known of a request before anything is done with it.
pub struct Beginning<'a> {
    /// The core it runs on.
    pub core: &'a Rc<Core>,
    /// The entry point it came through.
    pub entry: &'a EntryPoint,
    /// Where its interim answers go.
    pub client: Downstream<'a>,
    /// Who sent it.
    pub peer: &'a Peer,
    /// What its connection agreed on, if it is TLS.
    pub tls: Option<&'a TlsSession>,
    /// Whom it is for, as it came.
    pub authority: &'a Checked,
    /// For its waits.
    pub slot: &'a Slot,
    /// When its head had come.
    pub started: Instant,
    /// Fields that `Connection` named.
    pub named: SmallVec<[HeaderName; 1]>,
    /// The protocol it asks to switch to.
    pub upgrade: Option<HeaderValue>,
    /// The client waits for `100 Continue`.
    pub expects_continue: bool,
    /// What of it the log may want.
    pub logged: Option<Box<Logged>>,
}

impl<'a> Beginning<'a> {
    /// Of the copy of a request, whose answer no client waits for. `named` are fields that `Connection` named.
    pub fn of_copy(
        core: &'a Rc<Core>,
        entry: &'a EntryPoint,
        peer: &'a Peer,
        authority: &'a Checked,
        slot: &'a Slot,
        named: SmallVec<[HeaderName; 1]>,
    ) -> Self {
        Self {
            core,
            entry,
            client: Downstream::Nobody,
            peer,
            tls: None,
            authority,
            slot,
            started: clock::instant(),
            named,
            upgrade: None,
            expects_continue: false,
            logged: None,
        }
    }
}

impl<'a> Exchange<'a> {
    /// Begins an exchange.
    pub fn new(beginning: Beginning<'a>) -> Self {
        let Beginning {
            core,
            entry,
            client,
            peer,
            tls,
            authority,
            slot,
            started,
            named,
            upgrade,
            expects_continue,
            logged,
        } = beginning;
        Self {
            core,
            entry,
            client,
            peer,
            tls,
            authority,
            slot,
            links: LinkContext::new(peer.addr, peer.tls, started),
            named,
            upgrade,
            expects_continue,
            route: None,
            service: None,
            deadline: Millis::MAX,
            idle_timeout: 0,
            attempts: 0,
            attempts_before: 0,
            attempt_limit: None,
            tried: SmallVec::new(),
            in_flight: None,
            origin: None,
            failure: None,
            limit: None,
            closes: false,
            grpc: None,
            paces: None,
            unwelcome: false,
            client_deadline: Millis::MAX,
            attempt_timeout: None,
            logged,
        }
    }

    /// A router has taken it.
    pub fn taken_by(&mut self, route: &'a Route) {
        self.route = Some(route);
        match &mut self.logged {
            Some(logged) if route.access_log => logged.router = Some(route.name.clone()),
            Some(_) => self.forget_logged(),
            None => {}
        }
    }

    /// The log wants nothing of it.
    fn forget_logged(&mut self) {
        if let Some(mut logged) = self.logged.take() {
            logged.head = None;
        }
    }

    /// What it is that has come with `deadline`.
    pub fn overdue(&self) -> ProxyError {
        overdue(self.deadline, self.client_deadline)
    }

    /// Counts a refusal and keeps it for the log.
    pub fn note(&mut self, error: &ProxyError) {
        note_failure(self.core, error);
        self.closes |= error.closes();
        self.failure = Some(End::from(error));
        if let Some(call) = &mut self.grpc {
            call.note(error);
        }
        if let ProxyError::RateLimited(limited) = error {
            self.limit = Some(limited.name());
        }
    }
}

fn overdue(deadline: Millis, client_deadline: Millis) -> ProxyError {
    if client_deadline <= deadline && client_deadline != Millis::MAX {
        ProxyError::ClientDeadline
    } else {
        ProxyError::ExchangeTimeout
    }
}

/// Counts what the proxy answered or cut by itself.
pub fn note_failure(core: &Core, error: &ProxyError) {
    core.metrics.refused(error);
    if let Some(kind) = timeout_kind(error) {
        core.metrics.timed_out(kind);
    }
    tracing::debug!(code = error.code(), fault = error.fault().as_str(), %error, "exchange failed");
}

/// Which deadline fired, if one did.
pub fn timeout_kind(error: &ProxyError) -> Option<TimeoutKind> {
    match error {
        ProxyError::ConnectTimeout { .. } => Some(TimeoutKind::Connect),
        ProxyError::ResponseHeaderTimeout { .. } => Some(TimeoutKind::ResponseHeader),
        ProxyError::IdleTimeout { .. } => Some(TimeoutKind::Idle),
        ProxyError::ClientHeadTimeout => Some(TimeoutKind::ClientHead),
        ProxyError::ClientBodyTimeout => Some(TimeoutKind::ClientBody),
        ProxyError::ClientStalled => Some(TimeoutKind::ClientStall),
        ProxyError::ExchangeTimeout => Some(TimeoutKind::Exchange),
        ProxyError::AttemptTimeout { .. } => Some(TimeoutKind::Attempt),
        ProxyError::ClientDeadline => Some(TimeoutKind::ClientDeadline),
        ProxyError::QueueTimeout { .. } => Some(TimeoutKind::Queue),
        _ => None,
    }
}

/// What is left of an exchange while its answer flows. It holds nothing of the configuration, so that a
/// long stream does not keep an old one alive.
pub struct Ending {
    /// When its head had come.
    pub started: Instant,
    /// How long nothing may move; milliseconds, 0 for ever.
    pub idle_timeout: Millis,
    /// After how long without a byte its answer stands still; milliseconds, 0 for never.
    pub quiet: Millis,
    /// When it must be over.
    pub deadline: Millis,
    client_deadline: Millis,
    /// How it ended, when it failed.
    pub failure: Option<End>,
    /// How fast a tunnel may be.
    pub paces: Option<Box<TunnelPaces>>,
    counted: Option<(Series, MethodLabel, Protocol)>,
    log: Option<Box<PendingRecord>>,
    in_flight: Option<Place>,
    _links: LinkContext,
}

/// The line of an answer that flows. Dropped before that is over, because the task was, it says so.
struct PendingRecord {
    log: Arc<AccessLog>,
    /// Until it is written.
    record: Option<AccessRecord>,
    started: Instant,
    origin: Option<(StatusCode, Duration)>,
}

impl Drop for PendingRecord {
    fn drop(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.end = End::from(&cut());
            record.duration = self.started.elapsed();
            write(&self.log, record);
        }
    }
}

/// What of a request the log may want, kept before links change it. Dropped before there was an answer, because
/// the task was, it is logged as cut.
pub struct Logged {
    log: Arc<AccessLog>,
    /// Until it is used.
    head: Option<RequestHead>,
    entry_point: EntryPointName,
    router: Option<RouterName>,
    client: SocketAddr,
    scheme: &'static str,
    started: Instant,
    generation: u64,
}

impl Logged {
    /// Keeps it, if there is a log.
    pub fn of(core: &Core, entry: &EntryPoint, peer: &Peer, head: &RequestHead) -> Option<Box<Self>> {
        if !entry.access_log {
            return None;
        }
        let log = core.access_log();
        let log = Option::as_ref(&log)?;
        Some(Box::new(Self {
            log: Arc::clone(log),
            head: Some(head.clone()),
            entry_point: entry.name.clone(),
            router: None,
            client: peer.addr,
            scheme: scheme(peer),
            started: clock::instant(),
            generation: core.snapshot().generation,
        }))
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Some(head) = self.head.take() else { return };
        let error = cut();
        let bare = bare(self.entry_point.clone(), self.client, self.scheme, head.method, self.generation);
        let record = AccessRecord {
            duration: self.started.elapsed(),
            router: self.router.take(),
            authority: head.authority,
            path: head.path,
            query: head.query,
            version: head.version,
            status: error.status().as_u16(),
            end: End::from(&error),
            request_fields: self.log.pick(&head.headers),
            ..bare
        };
        write(&self.log, record);
    }
}

/// Why an exchange is dropped in its middle.
fn cut() -> ProxyError {
    if std::thread::panicking() { ProxyError::Internal("panic".into()) } else { ProxyError::Cut }
}

fn scheme(peer: &Peer) -> &'static str {
    if peer.tls { "https" } else { "http" }
}

fn write(log: &AccessLog, record: AccessRecord) {
    if log.accepts(record.status, record.retries(), record.duration) {
        log.log(record);
    }
}

impl Ending {
    /// Lets go of the configuration.
    pub fn new(
        mut exchange: Exchange<'_>,
        started: Instant,
        method: &Method,
        response: &ResponseHead,
        generation: u64,
    ) -> Self {
        let metrics = exchange.route.is_none_or(|route| route.metrics);
        let series = exchange.route.map_or(exchange.entry.series, |route| route.series);
        let protocol = protocol(&exchange, &response.headers);
        let logged = exchange.logged.take();
        let log = logged.and_then(|logged| record(&exchange, *logged, (started, response), generation));
        let log = log.map(Box::new);
        Self {
            started,
            idle_timeout: exchange.idle_timeout,
            // Streams are quiet at times.
            quiet: if is_stream(protocol) { 0 } else { QUIET },
            // Streams are long; only their client may say how long.
            deadline: if is_stream(protocol) { exchange.client_deadline } else { exchange.deadline },
            client_deadline: exchange.client_deadline,
            failure: exchange.failure,
            paces: exchange.paces,
            counted: metrics.then(|| (series, MethodLabel::of(method), protocol)),
            log,
            in_flight: exchange.in_flight,
            _links: exchange.links,
        }
    }

    /// The ending of a request whose head could not be read.
    pub fn of_refusal(
        core: &Core,
        entry: &EntryPoint,
        peer: &Peer,
        started: Instant,
        method: Method,
        error: &ProxyError,
    ) -> Self {
        let log = core.access_log();
        let log = Option::as_ref(&log).filter(|_| entry.access_log).map(|log| {
            Box::new(PendingRecord {
                log: Arc::clone(log),
                record: Some(bare(
                    entry.name.clone(),
                    peer.addr,
                    scheme(peer),
                    method.clone(),
                    core.snapshot().generation,
                )),
                started,
                origin: None,
            })
        });
        Self {
            started,
            idle_timeout: 0,
            quiet: 0,
            deadline: Millis::MAX,
            client_deadline: Millis::MAX,
            failure: Some(End::from(error)),
            paces: None,
            counted: Some((entry.series, MethodLabel::of(&method), Protocol::Http)),
            log,
            in_flight: None,
            _links: LinkContext::new(peer.addr, peer.tls, started),
        }
    }

    /// What it is that has come with `deadline`.
    pub fn overdue(&self) -> ProxyError {
        overdue(self.deadline, self.client_deadline)
    }

    /// The pod's answer broke off or stood still.
    pub fn broke_off(&self) {
        if let Some(endpoint) = self.in_flight.as_ref().and_then(Place::endpoint) {
            outcome::broke_off(endpoint);
        }
    }

    /// The exchange is over: it is counted and logged.
    pub fn finish(self, core: &Core, status: StatusCode, bytes_in: u64, bytes_out: u64) {
        let duration = clock::instant() - self.started;
        if let Some((series, method, protocol)) = self.counted {
            let key = ExchangeKey { series, status: status.as_u16(), method, protocol };
            core.metrics.exchange(key, duration, bytes_in, bytes_out);
        }
        if let Some(mut pending) = self.log
            && let Some(mut record) = pending.record.take()
        {
            record.duration = duration;
            record.status = status.as_u16();
            record.request_bytes = bytes_in;
            record.response_bytes = bytes_out;
            record.end = self.failure.unwrap_or(End::Completed);
            record.origin = pending.origin.map(|(status, duration)| OriginPart {
                status: status.as_u16(),
                duration,
                bytes: bytes_out,
            });
            write(&pending.log, record);
        }
    }
}

/// What may go on for any time.
fn is_stream(protocol: Protocol) -> bool {
    match protocol {
        Protocol::WebSocket | Protocol::Sse | Protocol::Grpc | Protocol::GrpcWeb => true,
        Protocol::Http => false,
    }
}

fn protocol(exchange: &Exchange<'_>, headers: &Fields) -> Protocol {
    if exchange.upgrade.is_some() {
        return Protocol::WebSocket;
    }
    match headers.get(http::header::CONTENT_TYPE).map(HeaderValue::as_bytes) {
        Some(kind) if kind.starts_with(b"text/event-stream") => Protocol::Sse,
        Some(kind) if kind.starts_with(b"application/grpc-web") => Protocol::GrpcWeb,
        Some(kind) if kind.starts_with(b"application/grpc") => Protocol::Grpc,
        _ => Protocol::Http,
    }
}

/// What the log says of a request that could not be read.
fn bare(
    entry_point: EntryPointName,
    client: SocketAddr,
    scheme: &'static str,
    method: Method,
    generation: u64,
) -> AccessRecord {
    AccessRecord {
        start: SystemTime::now(),
        duration: Duration::ZERO,
        entry_point,
        router: None,
        service: None,
        service_url: None,
        service_addr: None,
        client,
        forwarded_for: None,
        user: None,
        method,
        authority: Text::from_static(""),
        path: Text::from_static("-"),
        query: None,
        version: http::Version::HTTP_11,
        scheme,
        tls: None,
        request_bytes: 0,
        origin: None,
        status: 0,
        response_bytes: 0,
        attempts: 0,
        tried: SmallVec::new(),
        end: End::Completed,
        limit: None,
        generation,
        request_fields: SmallVec::new(),
        origin_fields: SmallVec::new(),
        downstream_fields: SmallVec::new(),
    }
}

fn record(
    exchange: &Exchange<'_>,
    mut logged: Logged,
    (started, response): (Instant, &ResponseHead),
    generation: u64,
) -> Option<PendingRecord> {
    let head = logged.head.take()?;
    let log = Arc::clone(&logged.log);
    let last = exchange.tried.last();
    let forwarded_for = head.headers.get(&crate::http::forwarded::X_FORWARDED_FOR);
    let downstream_fields = log.pick(&response.headers);
    let record = AccessRecord {
        start: SystemTime::now() - exchange.links.now.elapsed(),
        duration: Duration::ZERO,
        entry_point: logged.entry_point.clone(),
        router: logged.router.take(),
        service: exchange.service.map(|service| service.name.clone()),
        service_url: last.map(|endpoint| Arc::clone(endpoint.url().written())),
        service_addr: last.map(|endpoint| endpoint.text()),
        client: exchange.peer.addr,
        forwarded_for: forwarded_for.and_then(|value| value.to_str().ok()).map(Text::copy_from),
        user: None,
        method: head.method,
        authority: head.authority,
        path: head.path,
        query: head.query,
        version: head.version,
        scheme: logged.scheme,
        tls: exchange.tls.map(|session| Arc::clone(&session.logged)),
        request_bytes: 0,
        origin: None,
        status: response.status.as_u16(),
        response_bytes: 0,
        attempts: exchange.attempts,
        tried: exchange.tried.iter().map(|endpoint| endpoint.text()).collect(),
        end: End::Completed,
        limit: exchange.limit.clone(),
        generation,
        request_fields: log.pick(&head.headers),
        origin_fields: if exchange.origin.is_some() { downstream_fields.clone() } else { SmallVec::new() },
        downstream_fields,
    };
    Some(PendingRecord { log, record: Some(record), started, origin: exchange.origin })
}
