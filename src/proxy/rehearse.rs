//! Rehearsals: copies of requests for endpoints that are ejected, so that one that is well again is known to be before
//! a client depends on it.
//!
//! Copied are GET and HEAD without content alone, one at a time for each endpoint, when `endpoint::outlier` lets one
//! begin and half of the retry budget is left, and never where the service tries nothing twice. An endpoint that was
//! ejected because it took no connections is also connected to when another request comes by. Nobody waits for the
//! answer: it is looked at and dropped. Never: delays or fails the request that it copies; the task ends by its own
//! deadline.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::header::{ACCEPT, CONTENT_TYPE};
use smallvec::SmallVec;

use super::admit::{Admission, Place};
use super::core::Core;
use super::exchange::{Beginning, Exchange};
use super::forward::{Answered, Plain, attempt};
use super::pace;
use crate::common::clock::{self, Millis};
use crate::common::names::ServiceName;
use crate::endpoint::outlier::Passive;
use crate::endpoint::tally::Proof;
use crate::endpoint::{Endpoint, InFlight};
use crate::http::authority::Checked;
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::forwarded::Peer;
use crate::http::h1::framing::Piece;
use crate::http::head::{RequestHead, Response};
use crate::snapshot::{Balanced, ListenerId, Service, ServiceKind};
use crate::telemetry::metrics::RehearsalOutcome;
use crate::upstream::takes_connections;

/// Content of an answer that is read. More of it says nothing new; it has flowed so far.
const ENOUGH: usize = 64 * 1024;

/// Begins the rehearsal of each ejected endpoint whose turn it is, if this request may be copied. `head` is as the pod
/// is to get it, but for what each endpoint changes.
#[cold]
pub(super) fn offer(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    head: &RequestHead,
    body: &Body,
) {
    let safe = matches!(head.method, Method::GET | Method::HEAD) && matches!(body, Body::Empty);
    let copied = safe
        && balanced.attempts > 1
        && exchange.attempts == exchange.attempts_before
        && exchange.upgrade.is_none()
        && !is_events(&head.headers, ACCEPT);
    for member in balanced.endpoints.load().members() {
        let tally = member.endpoint.tally();
        let Some(offer) = tally.offered_rehearsal().filter(|_| member.passive == Passive::Ejected) else {
            continue;
        };
        let copied = copied && balanced.budget.try_spare(clock::now());
        if (!copied && offer.proof == Proof::Answer) || tally.take_rehearsal() != Some(offer) {
            continue;
        }
        let until = clock::now().saturating_add(offer.patience.into());
        if !copied {
            connect(exchange, service, &member.endpoint, until);
            continue;
        }
        let rehearsal = Rehearsal {
            core: Rc::clone(exchange.core),
            listener: exchange.entry.listener,
            service: service.name.clone(),
            endpoint: Arc::clone(&member.endpoint),
            peer: exchange.peer.clone(),
            authority: exchange.authority.clone(),
            head: Box::new(head.clone()),
            until,
        };
        let (metrics, label) = (Rc::clone(&exchange.core.metrics), service.label);
        tokio::task::spawn_local(async move {
            let endpoint = Arc::clone(&rehearsal.endpoint);
            let outcome = rehearsal.run().await;
            let (latency, outcome) = match outcome {
                Ok(latency) => (Some(latency), RehearsalOutcome::Passed),
                Err(outcome) => (None, outcome),
            };
            endpoint.tally().rehearsal_ended(latency);
            metrics.rehearsed(label, outcome);
        });
    }
}

/// Begins a rehearsal that is a connection and nothing more.
fn connect(exchange: &Exchange<'_>, service: &Service, endpoint: &Arc<Endpoint>, until: Millis) {
    let (core, endpoint, label) = (Rc::clone(exchange.core), Arc::clone(endpoint), service.label);
    tokio::task::spawn_local(async move {
        let well = takes_connections(&endpoint, &core.timers.slot(), until).await;
        endpoint.tally().rehearsal_ended(well.then_some(Duration::ZERO));
        let outcome = if well { RehearsalOutcome::Passed } else { RehearsalOutcome::Failed };
        core.metrics.rehearsed(label, outcome);
    });
}

/// One copy of a request, with all that it needs to outlive what it copies.
struct Rehearsal {
    core: Rc<Core>,
    listener: ListenerId,
    service: ServiceName,
    endpoint: Arc<Endpoint>,
    peer: Peer,
    authority: Checked,
    head: Box<RequestHead>,
    until: Millis,
}

impl Rehearsal {
    /// How long the answer took.
    async fn run(mut self) -> Result<Duration, RehearsalOutcome> {
        const FAILED: RehearsalOutcome = RehearsalOutcome::Failed;
        let snapshot = self.core.snapshot();
        let (Some(entry), Some(service)) =
            (snapshot.entry_point(self.listener), snapshot.services.get(&self.service))
        else {
            return Err(FAILED);
        };
        let ServiceKind::Balanced(balanced) = &service.kind else { return Err(FAILED) };
        let slot = self.core.timers.slot();
        let copy = Beginning::of_copy(&self.core, entry, &self.peer, &self.authority, &slot, SmallVec::new());
        let mut exchange = Exchange::new(copy);
        exchange.deadline = self.until;
        exchange.attempts = 1;
        // There is no other try.
        exchange.attempt_limit = Some(1);
        exchange.idle_timeout = balanced.transport.idle_timeout;
        if let Some(outbound) = &balanced.outbound {
            let turns = async {
                pace::service_turn(&exchange, &slot, service, outbound).await?;
                pace::endpoint_turn(&exchange, &slot, service, outbound, &self.endpoint).await
            };
            Box::pin(turns).await.map_err(|_| FAILED)?;
        }
        let endpoint = Arc::clone(&self.endpoint);
        let admission = match &balanced.lobby {
            None => {
                let place = Place::Free(InFlight::new(Arc::clone(&endpoint)));
                Admission { endpoint, place, ticket: None }
            }
            Some(lobby) => {
                let entered = lobby.try_enter(&endpoint, lobby.limits_connections());
                let (admitted, ticket) = entered.ok_or(RehearsalOutcome::Full)?;
                Admission { endpoint, place: Place::Limited(admitted), ticket }
            }
        };
        let plain = Plain { path: self.head.path.clone(), authority: self.head.authority.clone() };
        let (head, body) = (&mut self.head, Body::Empty);
        // A connection of before it was ejected would say nothing of how it is.
        let tried = attempt(&exchange, &slot, service, balanced, admission, head, body, &plain, true);
        let Ok(Answered { mut response, place: _place, took }) = Box::pin(tried).await else {
            return Err(FAILED);
        };
        if let Some(outbound) = &balanced.outbound {
            pace::learn(&exchange, service, outbound, &self.endpoint, &response.head);
        }
        if response.head.status.is_server_error() {
            return Err(FAILED);
        }
        let whole = slot.within(self.until, read(&mut response)).await;
        whole.ok().flatten().map(|()| took).ok_or(FAILED)
    }
}

/// Reads an answer, or enough of it; `None` when it breaks off.
async fn read(response: &mut Response) -> Option<()> {
    if is_events(&response.head.headers, CONTENT_TYPE) {
        return Some(());
    }
    let mut bytes = 0;
    while bytes < ENOUGH {
        match poll_fn(|cx| response.body.poll_piece(cx)).await {
            None => return Some(()),
            Some(Ok(Piece::Data(data))) => bytes += data.len(),
            Some(Ok(Piece::Trailers(_))) => {}
            Some(Err(_)) => return None,
        }
    }
    Some(())
}

/// Whether a field names a stream of events, which may stand still.
fn is_events(headers: &Fields, name: http::HeaderName) -> bool {
    headers.get(&name).is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}
