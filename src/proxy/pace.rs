//! Before each try: its turn, where what goes out to a service is limited; after it: what the answer asks for.

use std::time::{Duration, SystemTime};

use http::StatusCode;

use super::exchange::Exchange;
use crate::common::clock;
use crate::common::timer::{Slot, deadline};
use crate::endpoint::Endpoint;
use crate::http::error::ProxyError;
use crate::http::head::ResponseHead;
use crate::http::retry_after::retry_after;
use crate::limit::{Granted, KeyBytes, Pace, PaceScope, Turn, nanos};
use crate::snapshot::{Outbound, Service};
use crate::telemetry::metrics::LimitDecision;

/// Waits for a turn among all that goes to the service.
///
/// # Errors
/// [`ProxyError::OutboundLimited`] when there is none in time.
pub async fn service_turn(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    outbound: &Outbound,
) -> Result<(), ProxyError> {
    match outbound.pace.scope() {
        PaceScope::Service => turn(exchange, slot, service, outbound, &Pace::service_key()).await,
        PaceScope::Endpoint => Ok(()),
    }
}

/// Waits for a turn among all that goes to the endpoint.
///
/// # Errors
/// [`ProxyError::OutboundLimited`] when there is none in time.
pub async fn endpoint_turn(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    outbound: &Outbound,
    endpoint: &Endpoint,
) -> Result<(), ProxyError> {
    match outbound.pace.scope() {
        PaceScope::Service => Ok(()),
        PaceScope::Endpoint => {
            let key = outbound.pace.key(endpoint.url().as_str());
            turn(exchange, slot, service, outbound, &key).await
        }
    }
}

async fn turn(
    exchange: &Exchange<'_>,
    slot: &Slot,
    service: &Service,
    outbound: &Outbound,
    key: &KeyBytes,
) -> Result<(), ProxyError> {
    let (core, pace) = (exchange.core, &outbound.pace);
    let mut waited = false;
    let retry_after = loop {
        let Granted { wait, pauses, fallback } = match pace.turn(nanos(clock::instant()), key).await {
            Turn::Granted(granted) => granted,
            Turn::Refused { retry_after } => break retry_after,
        };
        if wait > 0 {
            waited = true;
            let at = deadline(clock::now(), Some(Duration::from_nanos(wait)));
            if at > exchange.deadline {
                return Err(ProxyError::ExchangeTimeout);
            }
            slot.until(at).await;
        }
        // Who was asked to pause meanwhile takes another turn after it.
        if pace.pauses() == pauses {
            let decision = match (fallback, waited) {
                (true, _) => LimitDecision::Fallback,
                (false, true) => LimitDecision::Delayed,
                (false, false) => LimitDecision::Allowed,
            };
            core.metrics.outbound_limited(service.label, decision);
            return Ok(());
        }
    };
    core.metrics.outbound_limited(service.label, LimitDecision::Refused);
    let status = outbound.status;
    Err(ProxyError::OutboundLimited { service: service.name.clone(), status, retry_after })
}

/// Looks whether an answer asks for a pause.
pub fn learn(
    exchange: &Exchange<'_>,
    service: &Service,
    outbound: &Outbound,
    endpoint: &Endpoint,
    head: &ResponseHead,
) {
    let too_many = head.status == StatusCode::TOO_MANY_REQUESTS;
    let unavailable = head.status == StatusCode::SERVICE_UNAVAILABLE;
    let retry_after =
        if too_many || unavailable { retry_after(&head.headers, SystemTime::now()) } else { None };
    let key = || outbound.pace.key(endpoint.url().as_str());
    let now = nanos(clock::instant());
    if let Some(pause) = outbound.pace.learn(now, key, too_many, retry_after) {
        exchange.core.metrics.outbound_paused(service.label);
        tracing::debug!(service = %service.name, pause_ms = pause / 1_000_000, "upstream asked for a pause");
    }
}
