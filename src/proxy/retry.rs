//! The `retry` link: sends a request again when its answer is one of those that the operator named.
//!
//! Failures of the network are retried by [`super::forward`], which this link allows more or fewer
//! tries; both share one counter and one budget.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::BytesMut;

use super::exchange::Exchange;
use super::serve::run_chain;
use super::{forward, respond};
use crate::common::clock;
use crate::common::timer::deadline;
use crate::http::body::{Body, BodyError};
use crate::http::error::{Fault, ProxyError};
use crate::http::h1::framing::{Length, Piece};
use crate::http::head::{Request, Response};
use crate::middleware::Retry;
use crate::snapshot::{ChainLink, Service};
use crate::telemetry::access_log::End;
use crate::telemetry::metrics::RetryReason;

/// Runs the rest of the chain until its answer is good or the tries are used up; the last answer counts.
pub async fn run<'a>(
    exchange: &mut Exchange<'a>,
    link: &Arc<Retry>,
    rest: &'a [ChainLink],
    service: &'a Service,
    mut request: Request,
) -> Response {
    exchange.attempt_limit = Some(if link.on_network_error { link.attempts } else { 1 });
    if link.attempt_timeout.is_some() {
        exchange.attempt_timeout = link.attempt_timeout;
    }
    let method = request.head.method.clone();
    if !link.holds_body(&method) {
        return run_chain(exchange, rest, service, request).await;
    }
    let body = match hold(&mut request.body, link.max_request_body_bytes).await {
        Ok(Hold::Whole(body)) => body,
        // Too large to be held: it streams, and is sent once.
        Ok(Hold::TooLarge) => return run_chain(exchange, rest, service, request).await,
        Err(error) => {
            exchange.note(&error);
            return respond::refusal(&error);
        }
    };
    exchange.expects_continue = false;
    let started = clock::now();
    let give_up = deadline(started, link.timeout);
    let held = exchange.links.held.len();
    loop {
        let copy = Request { head: request.head.clone(), body: body.copy() };
        let response = run_chain(exchange, rest, service, copy).await;
        let status = response.head.status;
        if !link.retries_status(&method, status) || exchange.attempts >= link.attempts {
            return response;
        }
        // The proxy's own refusal: another try would only meet the same limit.
        if matches!(exchange.failure, Some(End::Failed { fault: Fault::Policy, .. })) {
            return response;
        }
        let Ok(asked) = link.asked_for(&response.head.headers, SystemTime::now()) else {
            return response;
        };
        let pause = link.backoff(exchange.attempts, exchange.core.random()).max(asked);
        let resume = clock::now() + clock::millis(pause);
        if resume >= give_up || resume >= exchange.deadline {
            return response;
        }
        if !forward::may_retry(exchange, RetryReason::Status) {
            return response;
        }
        // The answer is not wanted; its connection is closed rather than read to the end.
        drop(response);
        exchange.in_flight = None;
        exchange.failure = None;
        // What links inside this one counted for the try before is over.
        exchange.links.held.truncate(held);
        if !pause.is_zero() {
            exchange.slot.until(resume).await;
        }
    }
}

/// What became of a body that was to be held.
pub(super) enum Hold {
    /// It is held whole.
    Whole(Held),
    /// It is larger than that, and as it was.
    TooLarge,
}

/// Reads a body whole, up to `limit` bytes.
///
/// # Errors
/// The client did not send it whole.
pub(super) async fn hold(body: &mut Body, limit: Option<u64>) -> Result<Hold, ProxyError> {
    let limit = limit.unwrap_or(u64::MAX);
    match body.length() {
        Length::Empty => return Ok(Hold::Whole(Held(Body::Empty))),
        Length::Exact(bytes) if bytes > limit => return Ok(Hold::TooLarge),
        _ => {}
    }
    let mut held = BytesMut::new();
    loop {
        match poll_fn(|cx| body.poll_piece(cx)).await {
            None => return Ok(Hold::Whole(Held(Body::full(held.freeze())))),
            Some(Ok(Piece::Data(data))) => {
                held.extend_from_slice(&data);
                if held.len() as u64 > limit {
                    // Of unknown length and too large: what was read goes ahead of what comes.
                    let rest = std::mem::take(body);
                    *body = Body::after(held.freeze(), rest);
                    return Ok(Hold::TooLarge);
                }
            }
            // Trailer fields of a request that is held are let go of.
            Some(Ok(Piece::Trailers(_))) => {}
            Some(Err(error)) => return Err(client_error(error)),
        }
    }
}

/// A body that can be sent again.
pub(super) struct Held(Body);

impl Held {
    /// The body, to send.
    pub(super) fn copy(&self) -> Body {
        match &self.0 {
            Body::Full(bytes) => Body::Full(bytes.clone()),
            _ => Body::Empty,
        }
    }
}

/// What the client did to its body, as a refusal.
pub fn client_error(error: BodyError) -> ProxyError {
    match error {
        BodyError::ClientGone => ProxyError::ClientGone,
        BodyError::ClientMalformed(what) => ProxyError::ClientBody(what),
        BodyError::ClientTimeout => ProxyError::ClientBodyTimeout,
        BodyError::Pod(what) => ProxyError::Internal(what.into()),
    }
}
