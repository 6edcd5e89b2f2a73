//! `failover` by the answer: a request goes to the main service, and once more to the fallback when the answer is
//! one of those that the operator named.

use super::exchange::Exchange;
use super::forward::forward;
use super::retry::{Hold, hold};
use crate::http::error::{Fault, ProxyError};
use crate::http::head::{Request, Response};
use crate::snapshot::{Failover, FailoverErrors, Service};
use crate::telemetry::metrics::FailoverReason;

/// Answers a request from the main service or, if that answers badly or not at all, from the fallback.
///
/// # Errors
/// The body is larger than it may be; or what the last of the two services failed with.
pub(super) async fn run<'a>(
    exchange: &mut Exchange<'a>,
    service: &'a Service,
    failover: &'a Failover,
    errors: &'a FailoverErrors,
    mut request: Request,
) -> Result<Response, ProxyError> {
    let body = match hold(&mut request.body, Some(errors.held())).await? {
        Hold::Whole(body) => body,
        Hold::TooLarge => {
            return match errors.max_request_body_bytes {
                Some(limit) => Err(ProxyError::BodyTooLarge { limit }),
                // It streams, and is sent once.
                None => forward(exchange, &failover.service, request).await,
            };
        }
    };
    exchange.expects_continue = false;
    let copy = Request { head: request.head.clone(), body: body.copy() };
    let held = exchange.links.held.len();
    let first = forward(exchange, &failover.service, copy).await;
    let status = match &first {
        Ok(response) => response.head.status,
        Err(error) if error.fault() == Fault::Client => return first,
        Err(error) => error.status(),
    };
    if !errors.has(status) || !failover.fallback.is_available() {
        return first;
    }
    exchange.core.metrics.failed_over(service.label, FailoverReason::Status);
    // The answer is not wanted; its connection is closed rather than read to the end.
    drop(first);
    exchange.in_flight = None;
    exchange.origin = None;
    exchange.links.held.truncate(held);
    exchange.attempts_before = exchange.attempts;
    forward(exchange, &failover.fallback, Request { head: request.head, body: body.copy() }).await
}
