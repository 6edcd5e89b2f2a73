//! A request before a rate limit: asked, counted, held back or refused.

use super::exchange::Exchange;
use crate::common::clock;
use crate::common::timer::deadline;
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;
use crate::limit::nanos;
use crate::limit::redis::Begun;
use crate::middleware::{Admission, RateLimit, TakenFrom};
use crate::telemetry::metrics::{LimitDecision, MiddlewareLabel};

/// Lets a request through, now or in a while.
///
/// # Errors
/// [`ProxyError::RateLimited`] when it is refused.
pub async fn admit(
    exchange: &mut Exchange<'_>,
    label: MiddlewareLabel,
    limit: &RateLimit,
    head: &RequestHead,
) -> Result<(), ProxyError> {
    let mut fallback = false;
    let admission = match limit.question(&exchange.links, head) {
        None => Admission::Exempt,
        Some(question) => match question.shared() {
            None => limit.decide(&mut exchange.links, &question),
            Some(shared) => {
                let now = nanos(exchange.links.now);
                let settled = match shared.begin(now, &question.bytes, question.cost) {
                    Begun::Decided(settled) => settled,
                    Begun::Asked(pending) => shared.settle(pending).await,
                };
                fallback = settled.fallback;
                let from = TakenFrom::Shared(settled.receipt);
                limit.answer(&mut exchange.links, &question, settled.decision, from, now)
            }
        },
    };
    let decision = match &admission {
        Admission::Exempt => return Ok(()),
        Admission::Pass | Admission::Delay(_) if fallback => LimitDecision::Fallback,
        Admission::Pass => LimitDecision::Allowed,
        Admission::Delay(_) => LimitDecision::Delayed,
        Admission::Shadow => LimitDecision::Shadow,
        Admission::Refuse(_) => LimitDecision::Refused,
    };
    exchange.core.metrics.limited(label, decision);
    match admission {
        Admission::Refuse(error) => Err(error),
        Admission::Delay(wait) if !wait.is_zero() => {
            exchange.slot.until(deadline(clock::now(), Some(wait))).await;
            Ok(())
        }
        Admission::Exempt | Admission::Pass | Admission::Delay(_) | Admission::Shadow => Ok(()),
    }
}
