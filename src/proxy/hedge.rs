//! Hedging: when the first try of an idempotent request takes long, a second one goes to another endpoint; the
//! first answer wins, and the other try is cut.
//!
//! Only where the service asks for it. A second try costs the retry budget like any other, and never waits for a
//! place: where there is none, there is too much load for hedging.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use super::admit::{self, Admission};
use super::exchange::Exchange;
use super::forward::{Answered, Failure, Plain, attempt, may_retry};
use super::pace;
use super::resolve::Aim;
use crate::balance::hedge::Hedge;
use crate::common::clock;
use crate::common::timer::Slot;
use crate::http::body::Body;
use crate::http::head::RequestHead;
use crate::snapshot::{Balanced, Service};
use crate::telemetry::metrics::{HedgeWinner, RetryReason};

/// Tries `first`, and a second endpoint when it takes longer than the service says.
#[expect(clippy::too_many_arguments, reason = "one step of the loop of forward, and of nothing else")]
pub(super) async fn run(
    exchange: &mut Exchange<'_>,
    service: &Service,
    balanced: &Balanced,
    hedge: &Hedge,
    aim: Aim,
    first: Admission,
    head: &mut RequestHead,
    plain: &Plain,
) -> Result<Answered, Failure> {
    let timers = &exchange.core.timers;
    let (delay_slot, second_slot) = (timers.slot(), timers.slot());
    let Some(delay) = hedge.delay(clock::now()) else {
        let slot = exchange.slot;
        return attempt(exchange, slot, service, balanced, first, head, Body::Empty, plain, false).await;
    };
    let at = clock::now().saturating_add(delay);
    let mut twin = head.clone();
    let mut second_endpoint = None;
    let (outcome, second_won) = {
        let exchange = &*exchange;
        let mut first =
            pin!(attempt(exchange, exchange.slot, service, balanced, first, head, Body::Empty, plain, false));
        match early(first.as_mut(), &delay_slot, at).await {
            Some(outcome) => (outcome, false),
            None => match second(exchange, service, balanced, aim) {
                None => (first.await, false),
                Some(admission) => {
                    second_endpoint = Some(Arc::clone(&admission.endpoint));
                    let slot = &second_slot;
                    let second = pin!(async {
                        if let Some(outbound) = &balanced.outbound {
                            // It waits for its turn like any other try, beside the first.
                            let service_turn = pace::service_turn(exchange, slot, service, outbound);
                            service_turn.await.map_err(Failure::for_good)?;
                            let endpoint = &admission.endpoint;
                            let turn = pace::endpoint_turn(exchange, slot, service, outbound, endpoint);
                            turn.await.map_err(Failure::for_good)?;
                        }
                        let (head, body) = (&mut twin, Body::Empty);
                        attempt(exchange, slot, service, balanced, admission, head, body, plain, false).await
                    });
                    race(first, second).await
                }
            },
        }
    };
    if let Some(endpoint) = second_endpoint {
        exchange.attempts += 1;
        // The log has the one that answered last.
        let place = if second_won { exchange.tried.len() } else { exchange.tried.len().saturating_sub(1) };
        exchange.tried.insert(place, endpoint);
        let winner = if second_won { HedgeWinner::Second } else { HedgeWinner::First };
        exchange.core.metrics.hedged(service.label, winner);
    }
    outcome
}

/// What the first try comes to before it is time for a second one.
async fn early<F: Future>(mut first: Pin<&mut F>, slot: &Slot, at: clock::Millis) -> Option<F::Output> {
    slot.within(at, poll_fn(|cx| first.as_mut().poll(cx))).await.ok()
}

/// Where a second try may go at once: to an endpoint that was not tried, within the budget.
fn second(exchange: &Exchange<'_>, service: &Service, balanced: &Balanced, aim: Aim) -> Option<Admission> {
    let admission = admit::at_once(exchange, service, balanced, aim)?;
    may_retry(exchange, RetryReason::Hedge).then_some(admission)
}

/// The first answer of two tries, and whether it is the second one's; a failure only when both have failed, and
/// then the first one's.
async fn race(
    mut first: Pin<&mut impl Future<Output = Result<Answered, Failure>>>,
    mut second: Pin<&mut impl Future<Output = Result<Answered, Failure>>>,
) -> (Result<Answered, Failure>, bool) {
    let (mut first_failed, mut second_failed) = (None, false);
    poll_fn(|cx| {
        if first_failed.is_none() {
            match first.as_mut().poll(cx) {
                Poll::Ready(Ok(answered)) => return Poll::Ready((Ok(answered), false)),
                Poll::Ready(Err(failure)) => first_failed = Some(failure),
                Poll::Pending => {}
            }
        }
        if !second_failed {
            match second.as_mut().poll(cx) {
                Poll::Ready(Ok(answered)) => return Poll::Ready((Ok(answered), true)),
                Poll::Ready(Err(_)) => second_failed = true,
                Poll::Pending => {}
            }
        }
        match first_failed.take_if(|_| second_failed) {
            Some(failure) => Poll::Ready((Err(failure), false)),
            None => Poll::Pending,
        }
    })
    .await
}
