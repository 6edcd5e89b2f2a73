//! Which endpoint a service gives a request to: through the kinds of services down to one with endpoints,
//! and there by its cookie or its balancer.
//!
//! Never: connections, waits.

use std::sync::Arc;

use http::HeaderValue;
use http::header::SET_COOKIE;
use smallvec::SmallVec;

use super::exchange::Exchange;
use super::mirror;
use crate::balance::sticky::{Claim, Sticky};
use crate::balance::{self, Ask, key};
use crate::common::clock;
use crate::endpoint::outlier::Passive;
use crate::endpoint::set::{EndpointSet, Member, Tier};
use crate::endpoint::tag::Tag;
use crate::endpoint::{Endpoint, EndpointId};
use crate::http::error::ProxyError;
use crate::http::head::{Request, RequestHead, ResponseHead};
use crate::snapshot::{Balanced, Failover, FailoverErrors, Internal, Service, ServiceKind, Weighted};
use crate::telemetry::metrics::{FailoverReason, HashOutcome, ServiceLabel, SpillTo, StickyOutcome};

/// Where a request goes.
pub(super) struct Way<'a> {
    /// What is at its end.
    pub leaf: Leaf<'a>,
    /// What sticky services on it want the client to keep, if there is an answer.
    pub cookies: Vec<HeaderValue>,
}

/// What is at the end of the way.
pub(super) enum Leaf<'a> {
    /// Endpoints.
    Balanced(&'a Service, &'a Balanced),
    /// A service and another for when the answer of the first is bad.
    Failover(&'a Service, &'a Failover, &'a FailoverErrors),
    /// The proxy itself.
    Internal(Internal),
}

/// Follows services that have services down to one that has none.
///
/// # Errors
/// None of them has an endpoint.
pub(super) fn resolve<'a>(
    exchange: &Exchange<'a>,
    service: &'a Service,
    request: &mut Request,
) -> Result<Way<'a>, ProxyError> {
    let mut cookies = Vec::new();
    let mut current = service;
    let leaf = loop {
        let nobody = || ProxyError::NoEndpoint { service: current.name.clone() };
        match &current.kind {
            ServiceKind::Balanced(balanced) => break Leaf::Balanced(current, balanced),
            ServiceKind::Internal(internal) => break Leaf::Internal(*internal),
            ServiceKind::Weighted(weighted) => {
                let child = weighted_child(exchange, current, weighted, &request.head, &mut cookies);
                current = &weighted.children[child.ok_or_else(nobody)?];
            }
            ServiceKind::Hashed(hashed) => {
                let key = key::of_addr(exchange.peer.addr.ip());
                let child = hashed.choice.pick(key, |child| hashed.children[child].is_available());
                current = &hashed.children[child.ok_or_else(nobody)?];
            }
            ServiceKind::Failover(failover) => {
                if failover.service.is_available() {
                    match &failover.errors {
                        Some(errors) => break Leaf::Failover(current, failover, errors),
                        None => current = &failover.service,
                    }
                } else if failover.fallback.is_available() {
                    exchange.core.metrics.failed_over(current.label, FailoverReason::Unavailable);
                    current = &failover.fallback;
                } else {
                    return Err(nobody());
                }
            }
            ServiceKind::Mirroring(mirroring) => {
                mirror::start(exchange, mirroring, request);
                current = &mirroring.service;
            }
        }
    };
    Ok(Way { leaf, cookies })
}

fn weighted_child(
    exchange: &Exchange<'_>,
    service: &Service,
    weighted: &Weighted,
    head: &RequestHead,
    cookies: &mut Vec<HeaderValue>,
) -> Option<usize> {
    let usable = |child: usize| weighted.children[child].is_available();
    let Some(children) = &weighted.sticky else { return weighted.turns.pick(usable) };
    let claim = children.sticky.claim(&head.headers);
    let claimed = match claim {
        Claim::Means(number) => children.tags.iter().position(|tag| tag.is(number)),
        Claim::Nothing | Claim::Refused => None,
    };
    let child = claimed.filter(|child| usable(*child)).or_else(|| weighted.turns.pick(usable))?;
    cookies.extend(stick(exchange, service.label, &children.sticky, claim, *children.tags.get(child)?));
    Some(child)
}

/// Counts what became of a claim when `tag` serves the request, and gives the cookie if the client needs one.
fn stick(
    exchange: &Exchange<'_>,
    service: ServiceLabel,
    sticky: &Sticky,
    claim: Claim,
    tag: Tag,
) -> Option<HeaderValue> {
    let outcome = match claim {
        Claim::Nothing => StickyOutcome::New,
        Claim::Refused => StickyOutcome::Refused,
        Claim::Means(number) if tag.is(number) => StickyOutcome::Kept,
        Claim::Means(_) => StickyOutcome::Moved,
    };
    exchange.core.metrics.stuck(service, outcome);
    // One of an earlier version of Traefik is written anew.
    (claim != Claim::Means(tag.number())).then(|| sticky.set(tag))
}

/// What of a request decides which endpoint it gets.
#[derive(Clone, Copy)]
pub(super) struct Aim {
    key: Option<u64>,
    claim: Claim,
}

impl Aim {
    /// Reads it from the head, before that is changed for the way to the pod.
    pub fn of(exchange: &Exchange<'_>, service: &Service, balanced: &Balanced, head: &RequestHead) -> Self {
        let mut aim = Self { key: None, claim: Claim::Nothing };
        if let Some(by) = &balanced.hash_by {
            aim.key = by.key(head, exchange.peer.addr.ip());
            if aim.key.is_none() {
                exchange.core.metrics.hashed(service.label, HashOutcome::NoKey);
            }
        }
        if let Some(sticky) = &balanced.sticky {
            aim.claim = sticky.claim(&head.headers);
        }
        aim
    }

    /// Picks the endpoint for the next try, none of those that are `full`; `None` when all that are available are.
    ///
    /// # Errors
    /// The service has none.
    pub fn pick(
        self,
        exchange: &Exchange<'_>,
        service: &Service,
        balanced: &Balanced,
        full: &[EndpointId],
    ) -> Result<Option<Arc<Endpoint>>, ProxyError> {
        let set = balanced.endpoints.load();
        let mut avoid: SmallVec<[EndpointId; 4]> = SmallVec::from_slice(full);
        avoid.extend(exchange.tried.iter().map(|endpoint| endpoint.id()));
        let tried = avoid.len();
        exchange.core.add_suspects(&mut avoid);
        if set.on_trial() > 0 {
            // After an ejection one request at a time shows whether it is well again.
            let waits =
                |member: &&Member| member.passive == Passive::OnTrial && !member.endpoint.tally().has_trial();
            avoid.extend(set.members().iter().filter(waits).map(|member| member.endpoint.id()));
        }
        if !avoid.is_empty() && !balance::leaves_any(&set, &avoid) {
            // Rather one that is suspected than one that has failed this very request.
            avoid.truncate(tried);
        }
        if !full.is_empty() && !balance::leaves_any(&set, &avoid) {
            avoid.truncate(full.len());
            if set.available() > 0 && !balance::leaves_any(&set, &avoid) {
                return Ok(None);
            }
        }
        let claimed = match self.claim {
            Claim::Nothing | Claim::Refused => None,
            Claim::Means(number) => claimed(&set, number, &avoid),
        };
        let member = match claimed {
            Some(member) => member,
            None => {
                let ask = Ask {
                    tried: &avoid,
                    random: exchange.core.random(),
                    now: clock::recent(),
                    key: self.key,
                };
                let Some(picked) = balanced.balancer.pick(&set, &ask) else {
                    return Err(ProxyError::NoEndpoint { service: service.name.clone() });
                };
                if picked.over_bound {
                    exchange.core.metrics.hashed(service.label, HashOutcome::OverBound);
                }
                picked.member
            }
        };
        match member.tier {
            Tier::Near => {}
            Tier::OtherZone(_) => exchange.core.metrics.spilled(service.label, SpillTo::OtherZone),
            Tier::Backup(_) => exchange.core.metrics.spilled(service.label, SpillTo::Backup),
        }
        exchange.core.try_out(member.endpoint.id());
        if member.passive == Passive::OnTrial {
            // Another core may have been faster; then there are two.
            member.endpoint.tally().take_trial();
        }
        Ok(Some(Arc::clone(&member.endpoint)))
    }

    /// Puts into an answer of `endpoint` what the client is to keep.
    pub fn stick(
        self,
        exchange: &Exchange<'_>,
        service: &Service,
        balanced: &Balanced,
        endpoint: &Endpoint,
        cookies: Vec<HeaderValue>,
        response: &mut ResponseHead,
    ) {
        for cookie in cookies {
            response.headers.append(SET_COOKIE, cookie);
        }
        if let Some(sticky) = &balanced.sticky
            && let Some(cookie) = stick(exchange, service.label, sticky, self.claim, endpoint.tag())
        {
            response.headers.append(SET_COOKIE, cookie);
        }
    }
}

/// The endpoint that a cookie means, if it still serves those who hold its cookie.
fn claimed<'s>(set: &'s EndpointSet, number: u64, avoid: &[EndpointId]) -> Option<&'s Member> {
    let member = set.members().iter().find(|member| member.endpoint.tag().is(number))?;
    (member.keeps_sessions() && !avoid.contains(&member.endpoint.id())).then_some(member)
}
