//! What the data path reads: one compiled, immutable configuration.
//!
//! A request loads it once and passes it by reference; a reload replaces it whole. Nothing in it is
//! `Deserialize`: [`compile`] is the only bridge from what was written.

mod balancing;
pub mod compile;
pub mod entries;
pub mod tls;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;

use http::HeaderName;

use crate::balance::Balancer;
use crate::balance::adaptive::Adaptive;
use crate::balance::budget::RetryBudget;
use crate::balance::children::HashedChildren;
use crate::balance::hedge::Hedge;
use crate::balance::key::HashBy;
use crate::balance::percent::Percent;
use crate::balance::sticky::Sticky;
use crate::balance::weighted::WeightedChildren;
use crate::common::clock::Millis;
use crate::common::importance::Importance;
use crate::common::names::{EntryPointName, MiddlewareName, RouterName, ServiceName};
use crate::endpoint::EndpointId;
use crate::endpoint::live::LiveEndpoints;
use crate::endpoint::lobby::Lobby;
use crate::endpoint::tag::Tag;
use crate::http::copy::Room;
use crate::http::forwarded::Forwarded;
use crate::http::h1::memory::Budgets;
use crate::http::h1::parse::HeadLimits;
use crate::http::h2::limits::{ClientLimits, ServerLimits};
use crate::http::path::{PathOptions, QuerySemicolons};
use crate::limit::{Pace, Stores};
use crate::matcher::RouterTable;
use crate::middleware::Link;
use crate::telemetry::metrics::{EntryPointLabel, MiddlewareLabel, Series, ServiceLabel};
use crate::tls::client::ClientTls;
use crate::tls::server::ByName;

/// Names a listening socket for as long as the process lives.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ListenerId(pub u32);

/// One accepted configuration. A clone shares all that is large.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Grows by one with each accepted document.
    pub generation: u64,
    /// Of the files it was read from.
    pub hash: String,
    /// A handful; searched in order.
    pub entry_points: Vec<Arc<EntryPoint>>,
    /// No longer configured; they serve the connections that are still open.
    pub draining: Vec<Arc<EntryPoint>>,
    /// By name.
    pub services: Arc<BTreeMap<ServiceName, Arc<Service>>>,
    /// What the buffers of one core may hold.
    pub memory: Budgets,
    /// Buckets of limits, to be carried over to the next.
    pub stores: Arc<Stores>,
    /// Certificates and options.
    pub tls: Arc<tls::Tls>,
}

impl Snapshot {
    /// The entry point that a listener serves, or served until the last reload.
    pub fn entry_point(&self, listener: ListenerId) -> Option<&Arc<EntryPoint>> {
        self.entry_points.iter().chain(&self.draining).find(|entry| entry.listener == listener)
    }

    /// The same without the entry points that are gone and for which `drains` does not speak any more; `None`
    /// when all of them stay.
    pub fn without_gone(&self, drains: impl Fn(ListenerId) -> bool) -> Option<Self> {
        let draining: Vec<_> = self.draining.iter().filter(|old| drains(old.listener)).cloned().collect();
        (draining.len() < self.draining.len()).then(|| Self { draining, ..self.clone() })
    }

    /// Every endpoint of every service.
    pub fn endpoints(&self) -> HashSet<EndpointId> {
        self.services
            .values()
            .filter_map(|service| match &service.kind {
                ServiceKind::Balanced(balanced) => Some(balanced.endpoints.load()),
                ServiceKind::Weighted(_)
                | ServiceKind::Hashed(_)
                | ServiceKind::Failover(_)
                | ServiceKind::Mirroring(_)
                | ServiceKind::Internal(_) => None,
            })
            .flat_map(|set| set.members().iter().map(|member| member.endpoint.id()).collect::<Vec<_>>())
            .collect()
    }
}

/// What happens to connections of one listener.
#[derive(Debug)]
pub struct EntryPoint {
    /// Its name.
    pub name: EntryPointName,
    /// The socket it is served on.
    pub listener: ListenerId,
    /// For metrics.
    pub label: EntryPointLabel,
    /// For requests that no router takes.
    pub series: Series,
    /// Limits and times.
    pub settings: EntrySettings,
    /// Which router takes a request on a plain connection.
    pub routers: RouterTable<Arc<Route>>,
    /// What holds for TLS connections; `None` where none is taken.
    pub tls: Option<Box<EntryTls>>,
    /// Whether its requests are logged, where no router says otherwise.
    pub access_log: bool,
}

/// What holds for TLS connections of an entry point.
#[derive(Debug)]
pub struct EntryTls {
    /// Which router takes a request.
    pub routers: RouterTable<Arc<Route>>,
    /// How a client is met, by the name it asks for.
    pub options: ByName,
    /// For a handshake; milliseconds, 0 for none.
    pub handshake_timeout: Millis,
    /// Handshakes under way; shared with the configuration before and after this one.
    pub handshakes: Arc<AtomicU32>,
    /// How many there may be; 0 for no limit.
    pub max_handshakes: u32,
}

/// Limits and times of an entry point. Times in milliseconds; 0 means none.
#[derive(Clone, Debug, PartialEq)]
pub struct EntrySettings {
    /// What a head may hold.
    pub head: HeadLimits,
    /// For a whole head, from its first byte.
    pub head_timeout: Millis,
    /// For a whole body.
    pub read_timeout: Millis,
    /// For a client to take or send anything of a body; milliseconds, 0 for ever.
    pub stall_timeout: Millis,
    /// While the client takes nothing of an answer.
    pub write_timeout: Millis,
    /// Between requests.
    pub idle_timeout: Millis,
    /// Age after which a connection ends with its next answer.
    pub keep_alive_max_time: Millis,
    /// Requests after which a connection ends.
    pub keep_alive_max_requests: u32,
    /// What connections of HTTP/2 may cost.
    pub http2: ServerLimits,
    /// Whom to believe.
    pub forwarded: Forwarded,
    /// What to do with paths.
    pub path: PathOptions,
    /// What to do with `;` in queries.
    pub semicolons: QuerySemicolons,
    /// What to do with fields that have `_` in their names.
    pub underscores: Underscores,
}

/// What happens to fields with `_` in their names, which some servers read as `-`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Underscores {
    /// Passed on.
    Keep,
    /// Dropped.
    Delete,
    /// The request is refused with 400.
    Reject,
}

/// A router, compiled.
#[derive(Debug)]
pub struct Route {
    /// Its name.
    pub name: RouterName,
    /// The entry point's links, then its own, in the order of the file.
    pub chain: Box<[ChainLink]>,
    /// Where it leads.
    pub service: Arc<Service>,
    /// Instead of the service's.
    pub timeouts: RouteTimeouts,
    /// Who goes first in a queue, and is refused last.
    pub importance: Importance,
    /// For metrics.
    pub series: Series,
    /// Whether its requests are logged.
    pub access_log: bool,
    /// Whether its requests are counted.
    pub metrics: bool,
}

/// Times that a router sets in place of the service's. Milliseconds; 0 for none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouteTimeouts {
    /// For the whole exchange.
    pub request: Option<Millis>,
    /// For one try.
    pub attempt: Option<Millis>,
    /// For a connection.
    pub connect: Option<Millis>,
    /// From the request's last byte to the head of the answer.
    pub response_header: Option<Millis>,
    /// While no byte moves either way.
    pub idle: Option<Millis>,
    /// Where a client says how long it will wait.
    pub deadline_header: Option<HeaderName>,
}

/// A link with the name it is configured under.
#[derive(Debug)]
pub struct ChainLink {
    /// Its name.
    pub name: MiddlewareName,
    /// For metrics.
    pub label: MiddlewareLabel,
    /// What it does.
    pub link: Link,
}

/// A named target of routers.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// For metrics.
    pub label: ServiceLabel,
    /// What is behind it.
    pub kind: ServiceKind,
}

/// What is behind a service.
#[derive(Debug)]
pub enum ServiceKind {
    /// Endpoints.
    Balanced(Box<Balanced>),
    /// Other services, by weight.
    Weighted(Weighted),
    /// Other services, by the client's address.
    Hashed(Hashed),
    /// A service, and another for when it is down.
    Failover(Failover),
    /// A service, and others that get copies.
    Mirroring(Mirroring),
    /// The proxy itself: `api@internal` and its like.
    Internal(Internal),
}

/// What the proxy answers itself (`api@internal`, `ping@internal`, `prometheus@internal`, `noop@internal`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Internal {
    /// The API.
    Api,
    /// `/ping`.
    Ping,
    /// Metrics.
    Prometheus,
    /// 418, nothing else.
    Noop,
}

/// Endpoints and how to reach them.
#[derive(Debug)]
pub struct Balanced {
    /// The newest set.
    pub endpoints: Arc<LiveEndpoints>,
    /// Whose turn it is.
    pub balancer: Arc<Balancer>,
    /// The cookie that keeps clients with their endpoint.
    pub sticky: Option<Box<Sticky>>,
    /// What hashing strategies hash.
    pub hash_by: Option<HashBy>,
    /// The client's `Host` goes on; otherwise the endpoint's own.
    pub pass_host_header: bool,
    /// How to connect, and for how long.
    pub transport: Transport,
    /// Tries for one request, the first included.
    pub attempts: u32,
    /// Longest pause before the second try at an endpoint; milliseconds.
    pub retry_interval: Millis,
    /// The field of the answer that says how many tries it took.
    pub attempts_header: Option<HeaderName>,
    /// Shared by every kind of retry.
    pub budget: Arc<RetryBudget>,
    /// Limits on what is under way, and the queue before them; `None` without limits.
    pub lobby: Option<Arc<Lobby>>,
    /// Second tries beside the first.
    pub hedge: Option<Arc<Hedge>>,
    /// Learns a limit for the lobby.
    pub adaptive: Option<Arc<Adaptive>>,
    /// How fast requests go out.
    pub outbound: Option<Box<Outbound>>,
}

/// A limit on what goes out.
#[derive(Debug)]
pub struct Outbound {
    /// Whose turn it is when.
    pub pace: Pace,
    /// What a request is answered with that has none in time.
    pub status: StatusCode,
}

/// How connections to endpoints are made and kept. Times in milliseconds; 0 means none.
#[derive(Clone, Debug)]
pub struct Transport {
    /// For the whole exchange.
    pub request_timeout: Millis,
    /// For one try.
    pub attempt_timeout: Millis,
    /// For a connection.
    pub dial_timeout: Millis,
    /// For the TLS handshake on it.
    pub tls_handshake_timeout: Millis,
    /// How TLS is spoken; `None` where no endpoint does.
    pub tls: Option<Arc<ClientTls>>,
    /// From the request's last byte to the head of the answer.
    pub response_header_timeout: Millis,
    /// While no byte moves either way.
    pub idle_timeout: Millis,
    /// How long an unused connection is kept.
    pub idle_conn_timeout: Millis,
    /// Unused connections kept for each endpoint, over all cores.
    pub max_idle: u32,
    /// How connections of HTTP/2 are used.
    pub http2: ClientLimits,
    /// Open connections to each endpoint, over all cores; 0 for no limit.
    pub max_connections: u32,
    /// Requests under way to each endpoint, over all cores; 0 for no limit.
    pub max_requests: u32,
}

impl Transport {
    /// Whether pods with TLS may choose HTTP/2.
    pub fn offers_http2(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.offers_http2())
    }
}

/// Services by weight.
#[derive(Debug)]
pub struct Weighted {
    /// Whose turn it is.
    pub turns: WeightedChildren,
    /// The services, which may be weighted themselves.
    pub children: Box<[Arc<Service>]>,
    /// The cookie that keeps clients with their service.
    pub sticky: Option<Box<StickyChildren>>,
}

/// A cookie, and what it knows the services by.
#[derive(Debug)]
pub struct StickyChildren {
    /// The cookie.
    pub sticky: Sticky,
    /// One for each child.
    pub tags: Box<[Tag]>,
}

/// Services by the client's address.
#[derive(Debug)]
pub struct Hashed {
    /// Which client belongs where.
    pub choice: HashedChildren,
    /// The services.
    pub children: Box<[Arc<Service>]>,
}

/// A service, and another for when it is down.
#[derive(Debug)]
pub struct Failover {
    /// The main one.
    pub service: Arc<Service>,
    /// The other one.
    pub fallback: Arc<Service>,
    /// Which answers of the main one make the other answer instead.
    pub errors: Option<FailoverErrors>,
}

/// A service, and others that get copies of its requests.
#[derive(Debug)]
pub struct Mirroring {
    /// The one that answers.
    pub service: Arc<Service>,
    /// Those that get copies.
    pub mirrors: Box<[Mirror]>,
    /// Bytes of a body that is copied; `None`: copies have no body.
    pub body_limit: Option<u64>,
    /// For a whole copy and its answer.
    pub timeout: Option<Duration>,
    /// Copies at a time.
    pub places: Arc<MirrorPlaces>,
    /// Bytes of bodies at a time.
    pub room: Arc<Room>,
}

/// A service that gets copies.
#[derive(Debug)]
pub struct Mirror {
    /// Which.
    pub service: Arc<Service>,
    /// How many.
    pub percent: Percent,
}

/// How many copies may be under way at a time.
#[derive(Debug)]
pub struct MirrorPlaces {
    taken: AtomicU32,
    max: u32,
}

impl MirrorPlaces {
    /// So many places.
    pub fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU32::new(0), max })
    }

    /// How many there are.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// A place, if one is free.
    pub fn take(self: &Arc<Self>) -> Option<MirrorPlace> {
        let one_more = |taken: u32| (taken < self.max).then(|| taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(MirrorPlace(Arc::clone(self)))
    }
}

/// A copy under way: its place is free again when this is dropped.
#[derive(Debug)]
pub struct MirrorPlace(Arc<MirrorPlaces>);

impl Drop for MirrorPlace {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Answers that are not good enough.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FailoverErrors {
    /// Ranges of statuses, both ends included.
    pub status: Box<[(u16, u16)]>,
    /// A request with a larger body is refused with 413. `None`: it is sent once, to the main service.
    pub max_request_body_bytes: Option<u64>,
}

impl FailoverErrors {
    /// Bytes of a body that are held where the operator sets no limit.
    const HELD: u64 = 2 * 1024 * 1024;

    /// Whether a status is one of them.
    pub fn has(&self, status: StatusCode) -> bool {
        self.status.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()))
    }

    /// Bytes of a body that are held.
    pub fn held(&self) -> u64 {
        self.max_request_body_bytes.unwrap_or(Self::HELD)
    }
}

impl Service {
    /// Whether a request given to it could be served now.
    pub fn is_available(&self) -> bool {
        match &self.kind {
            ServiceKind::Balanced(balanced) => balanced.endpoints.load().available() > 0,
            ServiceKind::Weighted(weighted) => weighted.children.iter().any(|child| child.is_available()),
            ServiceKind::Hashed(hashed) => hashed.children.iter().any(|child| child.is_available()),
            ServiceKind::Mirroring(mirroring) => mirroring.service.is_available(),
            ServiceKind::Failover(failover) => {
                failover.service.is_available() || failover.fallback.is_available()
            }
            ServiceKind::Internal(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::compile::{Remarks, compile};
    use super::*;
    use crate::config::load::Loader;
    use crate::telemetry::metrics::{Metrics, MetricsSettings};

    /// What `text` compiles to, with a listener for each of its entry points in the order of their names.
    fn snapshot(text: &str, previous: Option<&Snapshot>, first_listener: u32) -> Snapshot {
        let mut loaded = Loader::of_text(Path::new("test.yaml"), text.as_bytes()).load();
        let document = loaded.document.take().expect("a good document");
        let metrics = Metrics::new(MetricsSettings::default(), "0");
        let draft =
            compile(&document.config, previous, &metrics, Remarks::NeverMatches, &mut loaded.problems);
        let names = draft.entry_points.iter().map(|entry| entry.name.clone());
        let listeners = names.zip((first_listener..).map(ListenerId)).collect();
        draft.commit(&listeners, previous, |_| true, "hash")
    }

    #[test]
    fn routes_of_an_entry_point_that_is_gone_are_let_go_of_when_its_connections_have_ended() {
        let before = snapshot("entryPoints: { a: { address: ':1' }, b: { address: ':2' } }", None, 0);
        let routes = Arc::downgrade(before.entry_point(ListenerId(0)).expect("a"));
        let after = snapshot("entryPoints: { b: { address: ':2' } }", Some(&before), 1);
        assert!(after.entry_point(ListenerId(0)).is_some(), "its connections are served");
        drop(before);

        assert!(after.without_gone(|_| true).is_none(), "nothing to let go of");
        let last = after.without_gone(|_| false).expect("without them");
        drop(after);

        assert_eq!(last.generation, 2);
        assert!(last.entry_point(ListenerId(1)).is_some());
        assert!(routes.upgrade().is_none());
    }
}
