//! From a service to an answer: pick an endpoint, send, and try another where that is safe.
//!
//! What may be sent again: anything of which no byte was written; else only idempotent requests
//! (RFC 9110 §9.2.2) whose body was not touched. A try of which nothing reached a pod costs no budget,
//! because it cannot amplify; every other one does. One that met a connection which the pod has closed is made again
//! in any case; how often that may be is up to `upstream::reuse`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::SET_COOKIE;
use http::{Method, StatusCode};
use smallvec::SmallVec;

use super::admit::{self, Admission, Place};
use super::core::Suspicion;
use super::exchange::{Exchange, timeout_kind};
use super::failover;
use super::hedge;
use super::outcome::{Attempt, Outcome};
use super::pace;
use super::rehearse;
use super::resolve::{Aim, Leaf, Way, resolve};
use super::retry::client_error;
use crate::balance;
use crate::common::clock::{self, Millis};
use crate::common::jitter::full_jitter;
use crate::common::timer::{Slot, deadline, limit};
use crate::endpoint::lobby::Ticket;
use crate::endpoint::outlier::Passive;
use crate::endpoint::url::Scheme;
use crate::endpoint::{Endpoint, EndpointId};
use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::fields::Fields;
use crate::http::h1::client::{ClientConn, ExchangeCause, ExchangeError, Home, Wants};
use crate::http::h1::memory;
use crate::http::h2;
use crate::http::head::{Request, RequestHead, Response};
use crate::snapshot::{Balanced, Internal, Service, ServiceKind};
use crate::telemetry::metrics::{ConnectOutcome, RetryReason};
use crate::upstream::h2::{self as shared, Found, Fresh};
use crate::upstream::{Dial, Pool, PoolLimits, is_gone};

/// Answers a request from a service.
///
/// # Errors
/// Whatever kept the last try from an answer.
pub async fn forward<'a>(
    exchange: &mut Exchange<'a>,
    service: &'a Service,
    mut request: Request,
) -> Result<Response, ProxyError> {
    let Way { leaf, cookies } = resolve(exchange, service, &mut request)?;
    let (service, balanced) = match leaf {
        Leaf::Balanced(service, balanced) => (service, balanced),
        Leaf::Failover(service, failover, errors) => {
            let answer = Box::pin(failover::run(exchange, service, failover, errors, request)).await;
            return answer.map(|mut response| {
                response.head.headers.extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
                response
            });
        }
        Leaf::Internal(internal) => return internal_answer(exchange, internal, &request.head).await,
    };
    exchange.service = Some(service);
    let Request { mut head, mut body } = request;
    let aim = Aim::of(exchange, service, balanced, &head);
    if exchange.attempts == exchange.attempts_before {
        balanced.budget.record_request(clock::recent());
    }
    let route = exchange.route;
    if exchange.links.drop_forwarded_for {
        head.headers.remove(crate::http::forwarded::X_FORWARDED_FOR);
    } else {
        exchange.entry.settings.forwarded.send(&mut head.headers, exchange.peer, &exchange.named);
    }
    let times = route.map(|route| &route.timeouts);
    exchange.idle_timeout = times.and_then(|times| times.idle).unwrap_or(balanced.transport.idle_timeout);
    if balanced.transport.request_timeout > 0 && times.is_none_or(|times| times.request.is_none()) {
        let started = clock::to_millis(exchange.links.now);
        exchange.deadline = exchange.deadline.min(started + balanced.transport.request_timeout);
    }
    let limit = exchange.attempts_before + exchange.attempt_limit.unwrap_or(balanced.attempts);
    let plain = Plain { path: head.path.clone(), authority: head.authority.clone() };
    if balanced.endpoints.has_ejected() {
        rehearse::offer(exchange, service, balanced, &head, &body);
    }
    let mut fresh_only = false;
    loop {
        exchange.attempts += 1;
        if let Some(outbound) = &balanced.outbound {
            // Its future would make that of every exchange larger.
            Box::pin(pace::service_turn(exchange, exchange.slot, service, outbound)).await?;
        }
        let admission = admit::admit(exchange, exchange.slot, service, balanced, aim, fresh_only).await?;
        if let Some(outbound) = &balanced.outbound {
            Box::pin(pace::endpoint_turn(exchange, exchange.slot, service, outbound, &admission.endpoint))
                .await?;
        }
        exchange.tried.push(Arc::clone(&admission.endpoint));
        let outcome = match &balanced.hedge {
            Some(hedge) if limit > exchange.attempts && !fresh_only && may_hedge(exchange, &head, &body) => {
                // A rare thing whose future would make that of every exchange larger.
                Box::pin(hedge::run(exchange, service, balanced, hedge, aim, admission, &mut head, &plain))
                    .await
            }
            _ => {
                let slot = exchange.slot;
                attempt(exchange, slot, service, balanced, admission, &mut head, body, &plain, fresh_only)
                    .await
            }
        };
        let failure = match outcome {
            Ok(answered) => {
                learn(exchange.core.id, balanced, answered.took);
                let mut response = answered.take_over(exchange);
                if let Some(field) = &balanced.attempts_header {
                    response.head.headers.insert(field, exchange.attempts.into());
                }
                if let (Some(outbound), Some(endpoint)) = (&balanced.outbound, exchange.tried.last()) {
                    pace::learn(exchange, service, outbound, endpoint, &response.head);
                }
                memory::keep_head(head);
                if let Some(endpoint) = exchange.tried.last() {
                    aim.stick(exchange, service, balanced, endpoint, cookies, &mut response.head);
                }
                return Ok(response);
            }
            Err(failure) => failure,
        };
        let Some(untouched) = failure.body else { return Err(failure.error) };
        let mut written = failure.written;
        if written
            && failure.cut
            && !is_idempotent(&head.method)
            && let Some(endpoint) = exchange.tried.last()
        {
            // Rare, and its future would make that of every exchange larger.
            written = !Box::pin(is_gone(endpoint, exchange.slot, exchange.deadline)).await;
            if !written {
                exchange.core.suspect(endpoint.id(), Suspicion::Refused);
            }
        }
        if written && !is_idempotent(&head.method) {
            exchange.core.metrics.non_idempotent_lost(service.label);
            return Err(failure.error);
        }
        if failure.crowded {
            // Another took the place while the connection that was meant for this one died.
            exchange.attempts -= 1;
            exchange.tried.pop();
        } else if failure.stale && !fresh_only {
            // Not a try of its own: the request never had a connection that was alive.
            if written {
                balanced.budget.charge(clock::now());
            }
            exchange.core.metrics.retried(service.label, RetryReason::Stale);
            exchange.attempts -= 1;
            exchange.tried.pop();
            fresh_only = true;
        } else {
            if exchange.attempts >= limit || clock::now() >= exchange.deadline {
                return Err(failure.error);
            }
            let reason = match &failure.error {
                _ if failure.paid => RetryReason::Stalled,
                ProxyError::Connect { .. } => RetryReason::Connect,
                ProxyError::ConnectTimeout { .. } => RetryReason::ConnectTimeout,
                ProxyError::UpstreamTls { .. } => RetryReason::Tls,
                ProxyError::UpstreamClosed { .. } => RetryReason::Closed,
                ProxyError::BadResponse { .. } => RetryReason::BadResponse,
                ProxyError::AttemptTimeout { .. } => RetryReason::AttemptTimeout,
                _ => return Err(failure.error),
            };
            if written && !failure.paid {
                if !may_retry(exchange, reason) {
                    return Err(failure.error);
                }
            } else {
                exchange.core.metrics.retried(service.label, reason);
            }
            fresh_only = false;
            pause(exchange, balanced).await;
        }
        if let Some(kind) = timeout_kind(&failure.error).filter(|_| !failure.paid) {
            exchange.core.metrics.timed_out(kind);
        }
        tracing::debug!(service = %service.name, error = %failure.error, "trying again");
        body = untouched;
    }
}

/// Whether a second try beside the first can do no harm.
fn may_hedge(exchange: &Exchange<'_>, head: &RequestHead, body: &Body) -> bool {
    exchange.attempts == exchange.attempts_before + 1
        && exchange.upgrade.is_none()
        && matches!(body, Body::Empty)
        && is_idempotent(&head.method)
}

/// Tells hedging and adaptive concurrency, where a service has them, how long an answer took.
fn learn(core: usize, balanced: &Balanced, took: Duration) {
    if let Some(hedge) = &balanced.hedge {
        hedge.record(core, clock::recent(), took);
    }
    if let (Some(adaptive), Some(lobby)) = (&balanced.adaptive, &balanced.lobby)
        && let Some(limit) = adaptive.sample(clock::recent(), took, lobby.requests())
    {
        lobby.allow(limit);
    }
}

/// Waits before a try at an endpoint that has failed this request already, when there is no other.
async fn pause(exchange: &Exchange<'_>, balanced: &Balanced) {
    let interval = balanced.retry_interval;
    if interval == 0 || leaves_others(exchange, balanced) {
        return;
    }
    let longest = Duration::from_millis(interval) * 2_u32.pow(exchange.attempts.saturating_sub(1).min(5));
    let until = clock::now() + clock::millis(full_jitter(longest, exchange.core.random()));
    exchange.slot.until(until.min(exchange.deadline)).await;
}

/// Whether another try is within the budget of the service that the last one went to; counts it if so.
pub fn may_retry(exchange: &Exchange<'_>, reason: RetryReason) -> bool {
    let Some(service) = exchange.service else { return false };
    let ServiceKind::Balanced(balanced) = &service.kind else { return false };
    let allowed = balanced.budget.try_retry(clock::now());
    if allowed {
        exchange.core.metrics.retried(service.label, reason);
    } else {
        exchange.core.metrics.retry_budget_exhausted(service.label);
    }
    allowed
}

/// What the head had before an endpoint's own path and name were put into it.
pub(super) struct Plain {
    pub(super) path: crate::http::text::Text,
    pub(super) authority: crate::http::text::Text,
}

/// A try that gave no answer.
pub(super) struct Failure {
    error: ProxyError,
    /// The body, if it can be sent again.
    body: Option<Body>,
    written: bool,
    /// A connection that the pod closed while it was idle, which says nothing about the pod.
    stale: bool,
    /// See [`ExchangeError::cut`].
    cut: bool,
    /// Its endpoint was given up, and the next try is counted already.
    paid: bool,
    /// It had no place for a connection after all, and waits for one again.
    crowded: bool,
}

impl Failure {
    /// Nothing was sent, and another try would come to the same.
    pub(super) fn for_good(error: ProxyError) -> Self {
        Self { error, body: None, written: false, stale: false, cut: false, paid: false, crowded: false }
    }
}

/// A try that gave an answer.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) place: Place,
    pub(super) took: Duration,
}

impl Answered {
    /// The exchange has its answer.
    fn take_over(self, exchange: &mut Exchange<'_>) -> Response {
        exchange.origin = Some((self.response.head.status, self.took));
        exchange.in_flight = Some(self.place);
        self.response
    }
}

#[expect(clippy::too_many_arguments, reason = "one step of the loop above, and of nothing else")]
pub(super) async fn attempt(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    balanced: &Balanced,
    admission: Admission,
    head: &mut RequestHead,
    body: Body,
    plain: &Plain,
    fresh_only: bool,
) -> Result<Answered, Failure> {
    let core = exchange.core;
    let transport = &balanced.transport;
    let Admission { endpoint, place, ticket } = admission;
    let endpoint = &endpoint;
    if let Some(protocol) = &exchange.upgrade
        && endpoint.url().scheme() == Scheme::H2c
        && protocol.as_bytes().eq_ignore_ascii_case(b"websocket")
    {
        return Err(Failure::for_good(ProxyError::NoWebSocket { endpoint: endpoint.text() }));
    }
    let times = exchange.route.map(|route| &route.timeouts);
    let own = exchange.attempt_timeout.or_else(|| times.and_then(|times| times.attempt));
    let over = match own.unwrap_or(transport.attempt_timeout) {
        0 => Millis::MAX,
        limit => clock::now().saturating_add(limit),
    };
    let attempt = Attempt::begin(endpoint);
    head.path = match endpoint.path_prefix() {
        Some(prefix) => format!("{prefix}{}", plain.path).into(),
        None => plain.path.clone(),
    };
    head.authority = if balanced.pass_host_header && !plain.authority.as_bytes().is_empty() {
        plain.authority.clone()
    } else {
        endpoint.url().authority().clone()
    };
    let repeatable = is_idempotent(&head.method) && matches!(body, Body::Empty);
    let dial = times.and_then(|times| times.connect).unwrap_or(transport.dial_timeout);
    let terms = Terms { slot, over, dial, ticket, repeatable, fresh_only };
    let way = match way_to(exchange, service, balanced, endpoint, terms).await {
        Ok(way) => way,
        Err(error) => {
            let crowded = matches!(error, ProxyError::QueueFull { .. });
            if !crowded {
                attempt.end(Outcome::of(&error));
            }
            return Err(Failure { body: Some(body), crowded, ..Failure::for_good(error) });
        }
    };
    let header_timeout =
        times.and_then(|times| times.response_header).unwrap_or(transport.response_header_timeout);
    let client = exchange.client;
    let interim_wanted = head.version != http::Version::HTTP_10;
    let mut interim = |status: StatusCode, headers: &Fields| {
        // A client of HTTP/1.0 does not know interim answers (RFC 9110 §15.2).
        if interim_wanted {
            client.send_interim(status, headers);
        }
    };
    // What has waited for a silent endpoint goes to another one.
    let in_vain = || is_in_vain(exchange, balanced, endpoint);
    let again = repeatable && may_try_again(exchange, balanced);
    let wants = Wants {
        in_vain: again.then_some(&in_vain),
        upgrade: exchange.upgrade.as_ref().map(http::HeaderValue::as_bytes),
        expect_continue: exchange.expects_continue,
        interim: &mut interim,
        slot,
        header_timeout,
        idle_timeout: exchange.idle_timeout,
        deadline: exchange.deadline.min(over),
    };
    // The first try on a connection that was there begins with the request.
    let started =
        if way.is_reused() && exchange.attempts == 1 { exchange.links.now } else { clock::instant() };
    let shared = matches!(way, Road::Shared(_));
    let result = match way {
        Road::Own(conn, home) => conn.exchange(head, body, wants, &home).await,
        // In a box, so that requests over HTTP/1 do not carry its size.
        Road::Shared(place) => Box::pin(h2::client::exchange(place, head, body, wants)).await,
    };
    match result {
        Ok((head, body)) => {
            let took = clock::instant() - started;
            if balanced.balancer.wants_latency() {
                observe(endpoint, head.status, took);
            }
            attempt.end(Outcome::of_answer(&head, &body, exchange.grpc.is_some(), took));
            // Also on a connection that was there: who answers is there.
            core.trust(endpoint.id());
            Ok(Answered { response: Response { head, body }, place, took })
        }
        Err(ExchangeError { cause, written, reused, cut, body }) => {
            if matches!(cause, ExchangeCause::Closed(_)) && !reused {
                // As a pod does that is being stopped, and whatever stands before one that is gone.
                core.suspect(endpoint.id(), Suspicion::Refused);
            }
            let paid = matches!(cause, ExchangeCause::InVain);
            let endpoint = endpoint.text();
            let error = match cause {
                ExchangeCause::Closed(cause) => ProxyError::UpstreamClosed { endpoint, cause },
                ExchangeCause::Malformed(what) => ProxyError::BadResponse { endpoint, what },
                ExchangeCause::RequestBody(error) => client_error(error),
                ExchangeCause::HeaderTimeout => ProxyError::ResponseHeaderTimeout { endpoint },
                ExchangeCause::IdleTimeout => ProxyError::IdleTimeout { endpoint },
                ExchangeCause::InVain => ProxyError::AttemptTimeout { endpoint },
                ExchangeCause::Deadline if over < exchange.deadline => {
                    ProxyError::AttemptTimeout { endpoint }
                }
                ExchangeCause::Deadline => exchange.overdue(),
            };
            let closed = matches!(error, ProxyError::UpstreamClosed { .. });
            // One that others share was not idle, and what was sent on it was sent.
            let stale = reused && closed && !(shared && written);
            attempt.end(if stale { Outcome::Stale } else { Outcome::of(&error) });
            let again = closed || matches!(error, ProxyError::AttemptTimeout { .. });
            Err(Failure { error, body: body.filter(|_| again), written, stale, cut, paid, crowded: false })
        }
    }
}

/// Whether there may be one more try.
fn may_try_again(exchange: &Exchange<'_>, balanced: &Balanced) -> bool {
    let limit = exchange.attempts_before + exchange.attempt_limit.unwrap_or(balanced.attempts);
    exchange.attempts < limit
}

/// Whether another endpoint could be tried.
fn leaves_others(exchange: &Exchange<'_>, balanced: &Balanced) -> bool {
    let tried: SmallVec<[EndpointId; 4]> = exchange.tried.iter().map(|endpoint| endpoint.id()).collect();
    balance::leaves_any(&balanced.endpoints.load(), &tried)
}

/// Whether an endpoint has been ejected because it is silent, while another one could answer, within the retry budget.
fn is_in_vain(exchange: &Exchange<'_>, balanced: &Balanced, endpoint: &Endpoint) -> bool {
    let set = balanced.endpoints.load();
    set.member(endpoint.id()).is_some_and(|member| member.passive == Passive::Ejected)
        && endpoint.ejection().is_some_and(|ejection| ejection.why.is_silence())
        && leaves_others(exchange, balanced)
        && balanced.budget.try_retry(clock::now())
}

/// Remembers how long an answer took. Errors are fast, and must not make an endpoint look so.
fn observe(endpoint: &Endpoint, status: StatusCode, latency: Duration) {
    let now = clock::recent();
    let known = endpoint.latency().micros(now).filter(|_| status.is_server_error()).unwrap_or(0);
    endpoint.latency().observe(now, latency.max(Duration::from_micros(known.into())));
}

/// How long connecting to one endpoint may take while another one could be tried, which costs nothing: longer than it
/// takes when one packet is lost (RFC 6298 §2.1); milliseconds.
const IMPATIENT_DIAL: Millis = 1_250;

/// What an attempt is made on.
enum Road {
    /// A connection of HTTP/1 and where it goes back to.
    Own(Box<ClientConn>, Rc<dyn Home>),
    /// A place on a connection of HTTP/2.
    Shared(Box<shared::Place>),
}

impl Road {
    fn own(mut conn: Box<ClientConn>, ticket: Option<Ticket>, home: Rc<Pool>) -> Self {
        if let Some(ticket) = ticket {
            conn.hold(Box::new(ticket));
        }
        Self::Own(conn, home)
    }

    fn shared(exchange: &Exchange<'_>, service: &Service, place: shared::Place) -> Self {
        if place.is_reused() {
            exchange.core.metrics.upstream_connect(service.label, ConnectOutcome::Reused);
        }
        Self::Shared(Box::new(place))
    }

    fn is_reused(&self) -> bool {
        match self {
            Self::Own(conn, _) => conn.is_reused(),
            Self::Shared(place) => place.is_reused(),
        }
    }
}

/// What an attempt asks of its connection.
struct Terms<'a> {
    slot: &'a Slot,
    /// When the attempt must be over.
    over: Millis,
    /// How long connecting may take; milliseconds, 0 for ever.
    dial: Millis,
    /// Its place among the endpoint's connections, if it has one already.
    ticket: Option<Ticket>,
    /// It can be sent again.
    repeatable: bool,
    /// No connection that was there.
    fresh_only: bool,
}

impl Terms<'_> {
    /// As from now.
    fn dial(&self, exchange: &Exchange<'_>, balanced: &Balanced) -> Dial {
        let overall = exchange.deadline.min(self.over);
        let dial = match self.dial {
            _ if !may_try_again(exchange, balanced) || !leaves_others(exchange, balanced) => self.dial,
            0 => IMPATIENT_DIAL,
            dial => dial.min(IMPATIENT_DIAL),
        };
        let until = overall.min(deadline(clock::now(), limit(dial)));
        Dial { until, handshake: balanced.transport.tls_handshake_timeout, overall }
    }
}

/// A connection that was there, or a new one.
async fn way_to(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
    terms: Terms<'_>,
) -> Result<Road, ProxyError> {
    let core = exchange.core;
    let transport = &balanced.transport;
    let made = match endpoint.url().scheme() {
        Scheme::H2c => Box::pin(multiplexed(exchange, service, balanced, endpoint, terms)).await,
        // Its future would make that of every exchange larger.
        Scheme::Https if transport.offers_http2() && exchange.upgrade.is_none() => {
            Box::pin(multiplexed(exchange, service, balanced, endpoint, terms)).await
        }
        Scheme::Http | Scheme::Https => {
            let pool = own_pool(exchange, service, balanced, endpoint);
            // What cannot be sent again deserves a look at the socket itself.
            let pooled = if terms.fresh_only { None } else { pool.take(!terms.repeatable) };
            if let Some(conn) = pooled {
                core.metrics.upstream_connect(service.label, ConnectOutcome::Reused);
                return Ok(Road::Own(conn, pool));
            }
            let dial = terms.dial(exchange, balanced);
            let ticket = ticket_for(service, balanced, endpoint, terms.ticket)?;
            let conn = Box::pin(pool.connect(terms.slot, dial)).await;
            conn.map(|conn| Road::own(conn, ticket, pool))
        }
    };
    match &made {
        Ok(way) if way.is_reused() => {}
        Ok(_) => {
            core.metrics.upstream_connect(service.label, ConnectOutcome::Opened);
            core.trust(endpoint.id());
        }
        // Nobody has tried.
        Err(ProxyError::QueueFull { .. }) => {}
        Err(error) => {
            let (outcome, why) = match error {
                ProxyError::ConnectTimeout { .. } => (ConnectOutcome::TimedOut, Suspicion::Unreachable),
                ProxyError::UpstreamTls { .. } => (ConnectOutcome::Tls, Suspicion::Refused),
                _ => (ConnectOutcome::Failed, Suspicion::Refused),
            };
            core.metrics.upstream_connect(service.label, outcome);
            core.suspect(endpoint.id(), why);
        }
    }
    made
}

/// By HTTP/2, unless the pod chooses otherwise with its TLS: whatever is there already, or a new connection that shows
/// it.
async fn multiplexed(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
    mut terms: Terms<'_>,
) -> Result<Road, ProxyError> {
    let metrics = &exchange.core.metrics;
    let shared = shared_pool(exchange, service, balanced, endpoint);
    let own = own_pool(exchange, service, balanced, endpoint);
    if !terms.fresh_only {
        let place = shared.take();
        if let Some(place) = place {
            return Ok(Road::shared(exchange, service, place));
        }
        if let Some(conn) = own.take(!terms.repeatable) {
            metrics.upstream_connect(service.label, ConnectOutcome::Reused);
            return Ok(Road::Own(conn, own));
        }
    }
    let (dial, slot) = (terms.dial(exchange, balanced), terms.slot);
    let ticket = || ticket_for(service, balanced, endpoint, terms.ticket.take());
    Ok(match shared.find(Fresh::only_if(terms.fresh_only), slot, dial, ticket).await? {
        Found::Shared(place) => Road::shared(exchange, service, place),
        Found::Own(io, ticket) => Road::own(ClientConn::new(io), ticket, own),
    })
}

/// Connections that serve one request at a time.
fn own_pool(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
) -> Rc<Pool> {
    let transport = &balanced.transport;
    let limits = PoolLimits { max_idle: transport.max_idle, idle_timeout: transport.idle_conn_timeout };
    exchange.core.pools.of(endpoint, service.label, limits, transport.tls.as_ref())
}

/// Connections that serve many.
fn shared_pool(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
) -> Rc<shared::Pool> {
    let transport = &balanced.transport;
    let tls = transport.tls.as_ref().filter(|_| endpoint.url().scheme() == Scheme::Https);
    let idle_timeout = transport.idle_conn_timeout;
    exchange.core.pools.shared_of(endpoint, service.label, transport.http2, idle_timeout, tls)
}

/// A place for a new connection, where their number is limited and there is none yet.
fn ticket_for(
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
    ticket: Option<Ticket>,
) -> Result<Option<Ticket>, ProxyError> {
    match &balanced.lobby {
        Some(lobby) if ticket.is_none() && lobby.limits_connections() => match lobby.try_connect(endpoint) {
            Some(ticket) => Ok(Some(ticket)),
            None => Err(ProxyError::QueueFull { service: service.name.clone() }),
        },
        _ => Ok(ticket),
    }
}

/// Whether a request to an endpoint finds a connection, as far as is known, and needs no new one.
pub(super) fn has_connection(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    endpoint: &Arc<Endpoint>,
) -> bool {
    let by_alpn = balanced.transport.offers_http2() && exchange.upgrade.is_none();
    match endpoint.url().scheme() {
        // Many requests share a connection.
        Scheme::H2c => return shared_pool(exchange, service, balanced, endpoint).has_room(),
        Scheme::Https if by_alpn && shared_pool(exchange, service, balanced, endpoint).has_room() => {
            return true;
        }
        Scheme::Http | Scheme::Https => {}
    }
    own_pool(exchange, service, balanced, endpoint).has_idle()
}

/// RFC 9110 §9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE | Method::TRACE
    )
}

/// Asks the proxy itself, off the core: a page of metrics takes longer than a request may wait.
async fn internal_answer(
    exchange: &Exchange<'_>,
    internal: Internal,
    head: &RequestHead,
) -> Result<Response, ProxyError> {
    let shared = Arc::clone(&exchange.core.shared);
    let (method, path, query) = (head.method.clone(), head.path.clone(), head.query.clone());
    let answer = tokio::task::spawn_blocking(move || {
        (shared.internal)(internal, &method, path.as_str(), query.as_ref().map(|query| query.as_str()))
    })
    .await
    .map_err(|_| ProxyError::Internal("the answer of an internal service broke off".into()))?;
    let (parts, body) = answer.into_parts();
    let mut response = Response::new(parts.status, Body::full(body));
    response.head.headers = parts.headers.into();
    Ok(response)
}
