//! Before each attempt: which endpoint gets it, and whether it may go there now, waits for a place, or is refused.
//!
//! The one place where limits on what goes out to pods are kept. A service without limits pays one branch.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use smallvec::SmallVec;

use super::exchange::Exchange;
use super::forward::has_connection;
use super::resolve::Aim;
use crate::balance;
use crate::common::clock::{self, Millis};
use crate::common::importance::Importance;
use crate::common::timer::Slot;
use crate::endpoint::lobby::{Admitted, Lobby, Refusal, Ticket};
use crate::endpoint::set::Member;
use crate::endpoint::{Endpoint, EndpointId, InFlight};
use crate::http::error::ProxyError;
use crate::http::h1::client::Wanted;
use crate::snapshot::{Balanced, Service};

/// Whoever is first in a queue looks again so often, although nobody has said that a place is free: an
/// endpoint may have come up.
const LOOK_AGAIN: Millis = 100;

/// An attempt that may go.
#[derive(Debug)]
pub struct Admission {
    /// Where to.
    pub endpoint: Arc<Endpoint>,
    /// Held until the answer has gone out.
    pub place: Place,
    /// For the connection, if it will need a new one and their number is limited.
    pub ticket: Option<Ticket>,
}

/// One request under way to an endpoint, counted until this is dropped.
#[derive(Debug)]
pub enum Place {
    /// Of a service without limits.
    Free(InFlight),
    /// Of one with limits.
    Limited(Admitted),
}

impl Place {
    /// Whose it is.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        match self {
            Self::Free(in_flight) => Some(in_flight.endpoint()),
            Self::Limited(admitted) => admitted.endpoint(),
        }
    }
}

/// Picks an endpoint and takes a place there; waits for one where the service has a queue. `fresh` asks for a
/// connection that was not used before.
///
/// # Errors
/// [`ProxyError::NoEndpoint`], [`ProxyError::QueueFull`], [`ProxyError::QueueTimeout`],
/// [`ProxyError::ExchangeTimeout`], [`ProxyError::ClientDeadline`].
pub(super) async fn admit(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    balanced: &Balanced,
    aim: Aim,
    fresh: bool,
) -> Result<Admission, ProxyError> {
    match &balanced.lobby {
        None => {
            let endpoint = aim.pick(exchange, service, balanced, &[])?;
            let endpoint =
                endpoint.ok_or_else(|| ProxyError::NoEndpoint { service: service.name.clone() })?;
            let place = Place::Free(InFlight::new(Arc::clone(&endpoint)));
            Ok(Admission { endpoint, place, ticket: None })
        }
        Some(lobby) => {
            if !lobby.is_busy()
                && let Some(admission) = enter(exchange, service, balanced, aim, lobby, fresh)?
            {
                return Ok(admission);
            }
            // Its future would make that of every exchange larger.
            Box::pin(queue(exchange, slot, service, balanced, aim, lobby, fresh)).await
        }
    }
}

/// A place at an endpoint that was not tried yet, if there is one this moment.
pub(super) fn at_once(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    aim: Aim,
) -> Option<Admission> {
    let tried: SmallVec<[EndpointId; 4]> = exchange.tried.iter().map(|endpoint| endpoint.id()).collect();
    if !balance::leaves_any(&balanced.endpoints.load(), &tried) {
        return None;
    }
    let admission = match &balanced.lobby {
        None => {
            let endpoint = aim.pick(exchange, service, balanced, &[]).ok()??;
            let place = Place::Free(InFlight::new(Arc::clone(&endpoint)));
            Admission { endpoint, place, ticket: None }
        }
        Some(lobby) if lobby.is_busy() => return None,
        Some(lobby) => enter(exchange, service, balanced, aim, lobby, false).ok()??,
    };
    Some(admission).filter(|admission| !tried.contains(&admission.endpoint.id()))
}

/// Waits for a turn, and at its turn for a place.
async fn queue(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    balanced: &Balanced,
    aim: Aim,
    lobby: &Arc<Lobby>,
    fresh: bool,
) -> Result<Admission, ProxyError> {
    let refused = |why| match why {
        Refusal::Full | Refusal::Displaced => ProxyError::QueueFull { service: service.name.clone() },
        Refusal::TimedOut => ProxyError::QueueTimeout { service: service.name.clone() },
    };
    let importance = exchange.route.map_or(Importance::default(), |route| route.importance);
    let waiting = lobby.wait(importance, exchange.core.id).map_err(refused)?;
    let since = clock::now();
    let until = exchange.deadline.min(since.saturating_add(lobby.limits().patience));
    let mut now = since;
    let outcome = loop {
        let turn = poll_fn(|cx| match waiting.poll_turn(cx) {
            Poll::Ready(Err(why)) => Poll::Ready(Err(why)),
            Poll::Ready(Ok(())) => match enter(exchange, service, balanced, aim, lobby, fresh) {
                Ok(None) => Poll::Pending,
                Ok(Some(admission)) => Poll::Ready(Ok(Ok(admission))),
                Err(error) => Poll::Ready(Ok(Err(error))),
            },
            Poll::Pending => Poll::Pending,
        });
        if let Ok(outcome) = slot.within(until.min(now + LOOK_AGAIN), turn).await {
            break outcome;
        }
        now = clock::now();
        if now >= until {
            break Err(Refusal::TimedOut);
        }
    };
    match outcome {
        Ok(outcome) => {
            if outcome.is_ok() {
                waiting.admitted(clock::now().saturating_sub(since));
            }
            outcome
        }
        Err(why) => {
            waiting.refused(why);
            let overdue = why == Refusal::TimedOut && until >= exchange.deadline;
            Err(if overdue { exchange.overdue() } else { refused(why) })
        }
    }
}

/// A place at an endpoint that has one; `None` when all that are available are full.
fn enter(
    exchange: &Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    aim: Aim,
    lobby: &Arc<Lobby>,
    fresh: bool,
) -> Result<Option<Admission>, ProxyError> {
    let limits = lobby.limits();
    let counted = limits.connections > 0 || limits.connections_each > 0;
    let needs_connection = |endpoint: &Arc<Endpoint>| {
        counted && (fresh || !has_connection(exchange, service, balanced, endpoint))
    };
    let lacks_connection =
        |member: &Member| needs_connection(&member.endpoint) && lobby.lacks_connection(&member.endpoint);
    let mut full: SmallVec<[EndpointId; 4]> = SmallVec::new();
    if limits.requests_each > 0 || limits.connections_each > 0 {
        for member in balanced.endpoints.load().members() {
            if lobby.is_full(&member.endpoint, needs_connection(&member.endpoint)) {
                full.push(member.endpoint.id());
            }
        }
    }
    let entered = aim.pick(exchange, service, balanced, &full)?.and_then(|endpoint| {
        let (admitted, ticket) = lobby.try_enter(&endpoint, needs_connection(&endpoint))?;
        Some(Admission { endpoint, place: Place::Limited(admitted), ticket })
    });
    if entered.is_none() && counted && balanced.endpoints.load().members().iter().any(lacks_connection) {
        // What keeps the place may be an idle connection: of this core, to where this request does not go, or of
        // another core.
        exchange.core.pools.reclaim(Wanted::Here { among: lobby.number() });
        exchange.core.shared.reclaim.notify_waiters();
    }
    Ok(entered)
}
