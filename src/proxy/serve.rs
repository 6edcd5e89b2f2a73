//! The whole path of a request: routed, through its chain, to a pod, and back through the chain.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, StatusCode};

use super::exchange::Exchange;
use super::{bandwidth, breaker, forward, limit, respond, retry};
use crate::common::clock;
use crate::common::importance::Importance;
use crate::common::timer::{deadline, limit};
use crate::common::units::HumanDuration;
use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::forwarded::{Kind, Peer};
use crate::http::h1::memory;
use crate::http::head::{Request, RequestHead, Response};
use crate::http::path::{self, Prepared};
use crate::http::text::Text;
use crate::matcher::Subject;
use crate::middleware::{Around, Edit, Flow, Link};
use crate::snapshot::{ChainLink, EntrySettings, EntryTls, Route, Service, Underscores};
use crate::tls::session::TlsSession;

/// Serves one request. There is always an answer; what went wrong is in [`Exchange::failure`].
pub async fn serve<'a>(exchange: &mut Exchange<'a>, mut head: Box<RequestHead>, body: Body) -> Response {
    if head.path.as_bytes() == b"*" {
        // `OPTIONS *` asks the server itself (RFC 9110 §9.3.7).
        return Response::new(StatusCode::OK, Body::Empty);
    }
    match route(exchange, &mut head) {
        Ok(route) => {
            exchange.taken_by(route);
            if let Err(error) = guard(exchange, route) {
                exchange.note(&error);
                return respond::refusal(&error);
            }
            set_deadlines(exchange, route, &head);
            run_chain(exchange, &route.chain, &route.service, Request { head, body }).await
        }
        Err(error) => {
            exchange.note(&error);
            respond::refusal(&error)
        }
    }
}

/// Refuses what matters least while the whole proxy has too much to do.
fn guard(exchange: &mut Exchange<'_>, route: &Route) -> Result<(), ProxyError> {
    if exchange.unwelcome {
        // One answer, whichever: the next connection may be welcome.
        exchange.closes = true;
        if route.importance < Importance::High {
            return Err(ProxyError::Overloaded("as many connections as there may be"));
        }
    }
    if exchange.core.shared.guard.serves(route.importance) {
        Ok(())
    } else {
        Err(ProxyError::Overloaded("memory is scarce"))
    }
}

/// When the exchange must be over, by the router's word and the client's.
fn set_deadlines(exchange: &mut Exchange<'_>, route: &Route, head: &RequestHead) {
    let timeouts = &route.timeouts;
    // Nobody has waited since the head was complete.
    let started = clock::recent();
    exchange.deadline = deadline(started, timeouts.request.and_then(limit));
    if let Some(field) = &timeouts.deadline_header
        && let Some(patience) = head.headers.get(field).and_then(patience)
    {
        exchange.client_deadline = started.saturating_add(patience);
    }
    if let Some(call) = &exchange.grpc {
        exchange.client_deadline = exchange.client_deadline.min(call.until);
    }
    exchange.deadline = exchange.deadline.min(exchange.client_deadline);
}

/// How long a client will wait: milliseconds, or a duration with its unit. What is neither, or 0, says nothing.
fn patience(value: &HeaderValue) -> Option<clock::Millis> {
    let text = value.to_str().ok()?.trim();
    let patience = match text.parse::<u64>() {
        Ok(millis) => millis,
        Err(_) => clock::millis(text.parse::<HumanDuration>().ok()?.0),
    };
    (patience > 0).then_some(patience)
}

/// Brings the head into the one form that both the router and the pod see, and finds its router.
fn route<'a>(exchange: &mut Exchange<'a>, head: &mut RequestHead) -> Result<&'a Route, ProxyError> {
    let entry = exchange.entry;
    let kind = match &exchange.upgrade {
        Some(protocol) if protocol.as_bytes().eq_ignore_ascii_case(b"websocket") => Kind::WebSocket,
        _ => Kind::Plain,
    };
    let port = exchange.authority.port;
    let prepared = receive(&entry.settings, head, port, exchange.peer, kind, &exchange.named)?;
    let subject = Subject {
        host: exchange.authority.host.as_str(),
        path: prepared.routing().as_str(),
        query: head.query.as_ref().map(Text::as_str),
        method: head.method.as_str(),
        headers: &head.headers,
        client_ip: exchange.peer.addr.ip(),
    };
    let routers = match (exchange.tls, &entry.tls) {
        (Some(session), Some(tls)) => {
            is_directed(session, tls, subject.host)?;
            &tls.routers
        }
        (None, _) => &entry.routers,
        // TLS has been taken out of the configuration, the connection is still there.
        (Some(_), None) => return Err(ProxyError::NoRoute),
    };
    let route = routers.lookup(&subject).ok_or(ProxyError::NoRoute)?;
    head.path = prepared.upstream;
    Ok(route)
}

/// Whether the host may be asked for on this connection: another name was in the handshake, and with it
/// perhaps other options (whose clients must show a certificate, say).
fn is_directed(session: &TlsSession, tls: &EntryTls, host: &str) -> Result<(), ProxyError> {
    // Asked even when the names are the same: a reload may have given the name other options since.
    if tls.options.find(Some(host)).name == session.options { Ok(()) } else { Err(ProxyError::Misdirected) }
}

/// What an entry point does to a head before its routers see it. `port` is the one written in its authority. The
/// path is given back, not yet put into the head.
///
/// # Errors
/// What this entry point refuses of fields and paths.
pub fn receive(
    settings: &EntrySettings,
    head: &mut RequestHead,
    port: Option<u16>,
    peer: &Peer,
    kind: Kind,
    named: &[HeaderName],
) -> Result<Prepared, ProxyError> {
    underscores(head, settings.underscores)?;
    let prepared = path::prepare(&head.path, &settings.path)?;
    if let Some(query) = &head.query
        && let Cow::Owned(changed) = path::query_semicolons(query.as_str(), settings.semicolons)
    {
        head.query = Some(Text::from(changed));
    }
    settings.forwarded.receive(head, port, peer, kind, named);
    Ok(prepared)
}

fn underscores(head: &mut RequestHead, strategy: Underscores) -> Result<(), ProxyError> {
    if strategy == Underscores::Keep {
        return Ok(());
    }
    let named: Vec<_> = head.headers.keys().filter(|name| name.as_str().contains('_')).cloned().collect();
    if strategy == Underscores::Reject && !named.is_empty() {
        return Err(ProxyError::BadRequest("a field has an underscore in its name"));
    }
    for name in named {
        head.headers.remove(name);
    }
    Ok(())
}

/// Runs the links of a chain around the way to the service: in the order of the file on the way in, in
/// reverse on the way out.
pub async fn run_chain<'a>(
    exchange: &mut Exchange<'a>,
    chain: &'a [ChainLink],
    service: &'a Service,
    request: Request,
) -> Response {
    let (passed, outcome) = go_in(exchange, chain, service, request).await;
    let mut response = match outcome {
        Ok(response) => response,
        Err(request) => match forward::forward(exchange, service, request).await {
            Ok(response) => response,
            Err(error) => {
                exchange.note(&error);
                respond::refusal(&error)
            }
        },
    };
    for entry in chain[..passed].iter().rev() {
        match &entry.link {
            Link::Edit(Edit::Bandwidth(link)) => bandwidth::download(exchange, link, &mut response.body),
            Link::Edit(edit) => edit.on_response(&exchange.links, &mut response.head),
            Link::Around(_) => {}
        }
    }
    response
}

/// The way in: how many links let the request through, and either an answer or the request for the service.
async fn go_in<'a>(
    exchange: &mut Exchange<'a>,
    chain: &'a [ChainLink],
    service: &'a Service,
    mut request: Request,
) -> (usize, Result<Response, Request>) {
    for (passed, entry) in chain.iter().enumerate() {
        match &entry.link {
            Link::Edit(Edit::RateLimit(link)) => {
                if let Err(error) = limit::admit(exchange, entry.label, link, &request.head).await {
                    exchange.note(&error);
                    memory::keep_head(request.head);
                    return (passed, Ok(respond::refusal(&error)));
                }
            }
            Link::Edit(Edit::Bandwidth(link)) => {
                request.body = bandwidth::upload(exchange, link, request.body);
            }
            Link::Edit(edit) => match edit.on_request(&mut exchange.links, &mut request.head) {
                Ok(Flow::Next) => {}
                Ok(Flow::NextAfter(wait)) => {
                    exchange.slot.until(deadline(clock::now(), Some(wait))).await;
                }
                Ok(Flow::Answer(answer)) => return (passed, Ok(*answer)),
                Err(error) => {
                    exchange.note(&error);
                    memory::keep_head(request.head);
                    return (passed, Ok(respond::refusal(&error)));
                }
            },
            Link::Around(Around::CircuitBreaker(link)) => {
                let rest = &chain[passed + 1..];
                let response = Box::pin(breaker::run(exchange, link, rest, service, request)).await;
                return (passed, Ok(response));
            }
            Link::Around(Around::Retry(link)) => {
                let rest = &chain[passed + 1..];
                // The one place where a chain costs an allocation for a future.
                let response = Box::pin(retry::run(exchange, link, rest, service, request)).await;
                return (passed, Ok(response));
            }
        }
    }
    (chain.len(), Err(request))
}
