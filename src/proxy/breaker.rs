//! The `circuitBreaker` link: runs the rest of the chain, or refuses; what it decides by is its own.

use super::exchange::Exchange;
use super::respond;
use super::serve::run_chain;
use crate::common::clock;
use crate::http::head::{Request, Response};
use crate::middleware::CircuitBreaker;
use crate::snapshot::{ChainLink, Service};

/// Runs the rest of the chain if the circuit lets it, and tells the circuit how that went: by the status of the
/// answer, and the time until its head. A request that its client gives up tells nothing.
pub async fn run<'a>(
    exchange: &mut Exchange<'a>,
    link: &CircuitBreaker,
    rest: &'a [ChainLink],
    service: &'a Service,
    request: Request,
) -> Response {
    let core = exchange.core;
    let passed = match link.admit(clock::now(), core.random()) {
        Ok(passed) => passed,
        Err(error) => {
            exchange.note(&error);
            return respond::refusal(&error);
        }
    };
    let started = clock::instant();
    let response = run_chain(exchange, rest, service, request).await;
    let took = clock::instant() - started;
    link.record(core.id, clock::recent(), &passed, response.head.status, took);
    response
}
