//! `http.services.NAME` as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::balancing::{
    FailoverConfig, HashConfig, HighestRandomWeightConfig, MirroringConfig, SpilloverConfig, StickyConfig,
};
use crate::common::units::HumanDuration;
use crate::middleware::RedisConfig;

/// Where requests are sent: exactly one of the kinds.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceConfig {
    /// Servers, one of which is picked for each request.
    pub load_balancer: Option<LoadBalancerConfig>,
    /// Other services, one of which is picked for each request by weight.
    pub weighted: Option<WeightedConfig>,
    /// Other services, one of which each client belongs to.
    pub highest_random_weight: Option<HighestRandomWeightConfig>,
    /// A service, and another for when it is down.
    pub failover: Option<FailoverConfig>,
    /// A service, and others that get copies of its requests.
    pub mirroring: Option<MirroringConfig>,
}

impl ServiceConfig {
    /// Every kind there is, for messages.
    pub const KINDS: [&str; 5] = ["loadBalancer", "weighted", "highestRandomWeight", "failover", "mirroring"];

    /// The kinds that are written.
    pub fn kinds(&self) -> Vec<&'static str> {
        let written = [
            self.load_balancer.is_some(),
            self.weighted.is_some(),
            self.highest_random_weight.is_some(),
            self.failover.is_some(),
            self.mirroring.is_some(),
        ];
        Self::KINDS.into_iter().zip(written).filter(|(_, written)| *written).map(|(kind, _)| kind).collect()
    }
}

/// Servers and how one of them is picked.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerConfig {
    /// The servers. Default none: every request is answered with 503.
    pub servers: Vec<ServerConfig>,
    /// Each name among the servers stands for all of its addresses, looked up again and again. Default off: a name is
    /// one server, looked up for each connection; `{}` turns it on.
    pub dns_discovery: Option<DnsDiscoveryConfig>,
    /// How one is picked: `wrr` (weighted round robin), `p2c` (the less busy of two), `leastrequests`,
    /// `leasttime`, `hrw` (by the client's address) or `hash` (by what `hash` names). Default `wrr`.
    pub strategy: Strategy,
    /// What the strategy `hash` hashes.
    pub hash: Option<HashConfig>,
    /// Keeps a client with the server that answered it first. Default off.
    pub sticky: Option<StickyConfig>,
    /// When servers of other zones and backups get requests.
    pub spillover: SpilloverConfig,
    /// Asks the servers for their health. Default off.
    pub health_check: Option<HealthCheckConfig>,
    /// Takes a server out after some failures, whatever the others do. Default off; `{}` turns it on.
    pub passive_health_check: Option<PassiveHealthCheckConfig>,
    /// Takes servers out that do worse than the others.
    pub outlier_detection: OutlierDetectionConfig,
    /// Gives new and recovered servers their share little by little. Default off; `{}` turns it on.
    pub slow_start: Option<SlowStartConfig>,
    /// While fewer percent of the servers are well, all are used. Default 0: never; at most 100.
    #[schemars(range(max = 100))]
    pub panic_threshold: u8,
    /// Sends the client's `Host` on; `false` sends the server's. Default true.
    pub pass_host_header: bool,
    /// How responses are written to the client.
    pub response_forwarding: ResponseForwardingConfig,
    /// Name of an entry of `http.serversTransports`. Default: the `serversTransport` block.
    pub servers_transport: Option<String>,
    /// The built-in retry.
    pub retry: ServiceRetryConfig,
    /// Requests under way at once to all servers together; those beyond wait in `queue`. Default 0: no limit.
    pub max_requests: u32,
    /// Connections open at once to all servers together; requests beyond wait in `queue`. Default 0: no limit.
    pub max_connections: u32,
    /// Where requests wait that have no place yet.
    pub queue: QueueConfig,
    /// Timeouts of exchanges with its servers, where no router says otherwise.
    pub timeouts: ServiceTimeouts,
    /// Sends a second try of an idempotent request to another server when the first takes long. Default off.
    pub hedge: Option<HedgeConfig>,
    /// Learns how many requests may be under way at once, beside `maxRequests`. Default off.
    pub adaptive_concurrency: Option<AdaptiveConcurrencyConfig>,
    /// So many requests in so much time to the service or to each server. Default: no limit.
    pub outbound_limit: Option<OutboundLimitConfig>,
}

/// A limit on what is sent out: too early requests wait for their turn, in the order in which they came.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OutboundLimitConfig {
    /// Requests a period, every try counted. Required, at least 1.
    pub average: u64,
    /// Length of the period. Default `1s`.
    #[serde(default = "one_second")]
    pub period: HumanDuration,
    /// Requests at once after a rest. Default 1.
    #[serde(default = "one_request")]
    pub burst: u64,
    /// Whether all servers are limited together (`service`) or each on its own (`server`). Default `service`.
    #[serde(default)]
    pub scope: OutboundScope,
    /// The longest that a request waits for its turn; 0: it is refused at once. Default `1s`.
    #[serde(default = "one_second")]
    pub max_wait: HumanDuration,
    /// Requests that wait together. Default 1000.
    #[serde(default = "thousand")]
    pub max_queue: u64,
    /// The longest pause that a server may ask for by 429 or `Retry-After`; 0: it is not obeyed. Default `1m`.
    #[serde(default = "one_minute")]
    pub max_pause: HumanDuration,
    /// What a request is answered with that has no turn in time; 400 to 599. Default 503.
    #[serde(default = "unavailable")]
    pub status: u16,
    /// Where replicas share the pace, instead of each having its own in memory. Default: none.
    #[serde(default)]
    pub redis: Option<RedisConfig>,
}

/// Who is limited together.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OutboundScope {
    /// All servers of the service.
    #[default]
    Service,
    /// Each server.
    Server,
}

fn one_second() -> HumanDuration {
    HumanDuration::secs(1)
}

fn one_minute() -> HumanDuration {
    HumanDuration::secs(60)
}

fn one_request() -> u64 {
    1
}

fn thousand() -> u64 {
    1000
}

fn unavailable() -> u16 {
    503
}

impl Default for LoadBalancerConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            dns_discovery: None,
            strategy: Strategy::default(),
            hash: None,
            sticky: None,
            spillover: SpilloverConfig::default(),
            health_check: None,
            passive_health_check: None,
            outlier_detection: OutlierDetectionConfig::default(),
            slow_start: None,
            panic_threshold: 0,
            pass_host_header: true,
            response_forwarding: ResponseForwardingConfig::default(),
            servers_transport: None,
            retry: ServiceRetryConfig::default(),
            max_requests: 0,
            max_connections: 0,
            queue: QueueConfig::default(),
            timeouts: ServiceTimeouts::default(),
            hedge: None,
            adaptive_concurrency: None,
            outbound_limit: None,
        }
    }
}

/// One server.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerConfig {
    /// `http://host[:port][/path]`; the path is used with `preservePath` only. Required.
    pub url: String,
    /// Share of the requests. Default 1; 0 or less: none but of those who hold its cookie.
    #[serde(default = "one")]
    pub weight: i64,
    /// Lets it finish: as `weight: 0`, without forgetting the weight. Default false.
    #[serde(default)]
    pub drain: bool,
    /// Gets requests only when the others are not available. Default false.
    #[serde(default)]
    pub backup: bool,
    /// Where it is; the proxy's own `zone` is preferred. Default: nowhere in particular.
    #[serde(default)]
    pub zone: String,
    /// Puts the path of `url` before the request's. Default false.
    #[serde(default)]
    pub preserve_path: bool,
}

/// How one of several servers is picked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Strategy {
    /// Weighted round robin.
    #[default]
    Wrr,
    /// The one with fewer requests in flight of two picked at random.
    P2c,
    /// The one with the fewest requests in flight.
    #[serde(rename = "leastrequests")]
    LeastRequests,
    /// The one with the shortest time to the first byte times the requests in flight.
    #[serde(rename = "leasttime")]
    LeastTime,
    /// The one that the client's address belongs to.
    Hrw,
    /// The one that the key of `hash` belongs to.
    Hash,
}

/// How the servers of a service are asked for their health.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckConfig {
    /// Path, with query if need be. Required, unless `mode` is `grpc` or `tcp`.
    #[serde(default)]
    pub path: String,
    /// `http` (HTTP/1.1) or `https`, the latter as the service's `serversTransport` has it, with HTTP/2 where the
    /// server chooses that. Default: the server's.
    #[serde(default)]
    pub scheme: Option<String>,
    /// Protocol of the check: `http`, `grpc` (its health protocol) or `tcp` (a connection is enough). Default
    /// `http`.
    #[serde(default)]
    pub mode: HealthCheckMode,
    /// Method. Default `GET`.
    #[serde(default = "get")]
    pub method: String,
    /// Statuses that mean healthy: one, or several and ranges of them (`200-299,404`). Default 0: any of 200 to
    /// 399.
    #[serde(default)]
    pub status: StatusesConfig,
    /// What the first 64 KiB of the answer's body must hold. Default: anything will do.
    #[serde(default)]
    pub expected_body: Option<String>,
    /// The service that `mode: grpc` asks for. Default: the server as a whole.
    #[serde(default)]
    pub grpc_service: String,
    /// Checks in a row that must pass before a server that is down gets requests. Default 1; at least 1.
    #[serde(default = "one_result")]
    #[schemars(range(min = 1))]
    pub rise: u32,
    /// Checks in a row that must fail before a server that is up gets none. Default 1; at least 1.
    #[serde(default = "one_result")]
    #[schemars(range(min = 1))]
    pub fall: u32,
    /// What a server is before its first check: `up`, or `down`, which checks it at once. Default `up`.
    #[serde(default)]
    pub initial_state: InitialState,
    /// Port. Default 0: the server's.
    #[serde(default)]
    pub port: u16,
    /// Time between two checks of a server. Default 30s.
    #[serde(default = "thirty_seconds")]
    pub interval: HumanDuration,
    /// Time between two checks of a server that failed. Default: `interval`.
    #[serde(default)]
    pub unhealthy_interval: Option<HumanDuration>,
    /// How long a check may take. Default 5s.
    #[serde(default = "five_seconds")]
    pub timeout: HumanDuration,
    /// `Host` of the check. Default: the server's.
    #[serde(default)]
    pub hostname: Option<String>,
    /// Follows redirects. Default true.
    #[serde(default = "yes")]
    pub follow_redirects: bool,
    /// Fields of the check. Default none.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
}

/// Protocol of a health check.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthCheckMode {
    /// A request whose status counts.
    #[default]
    Http,
    /// The health protocol of gRPC.
    Grpc,
    /// A connection is enough.
    Tcp,
}

/// What a server is before its first check.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum InitialState {
    /// It gets requests.
    #[default]
    Up,
    /// It gets none.
    Down,
}

/// Statuses, as pairs of the first and the last of each range; none is 200 to 399.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct StatusesConfig(pub Vec<(u16, u16)>);

impl std::fmt::Display for StatusesConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, (first, last)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl Serialize for StatusesConfig {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // As Traefik's API has it where Traefik could have it.
        match self.0[..] {
            [] => serializer.serialize_u16(0),
            [(first, last)] if first == last => serializer.serialize_u16(first),
            _ => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for StatusesConfig {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if matches!(text.trim(), "" | "0") {
            return Ok(Self::default());
        }
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let code = |text: &str| text.trim().parse().ok().filter(|code| (100..=599).contains(code));
            code(first).zip(code(last)).filter(|(first, last)| first <= last)
        };
        let ranges: Option<Vec<_>> = text.split(',').map(range).collect();
        ranges.map(Self).ok_or_else(|| {
            let bad =
                format!("{text:?} is no status from 100 to 599, nor ranges of them such as 200-299,404");
            serde::de::Error::custom(bad)
        })
    }
}

impl JsonSchema for StatusesConfig {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Statuses".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "a status, or statuses and ranges of them: 200-299,404",
            "anyOf": [{ "type": "string" }, { "type": "integer" }]
        })
    }
}

/// Failures that take a server out, whatever the others do.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PassiveHealthCheckConfig {
    /// How far back failures count, and how long a server is taken out at first. Default 10s.
    pub failure_window: HumanDuration,
    /// 5xx answers and requests without an answer that take a server out. Default 1; 0: none does.
    pub max_failed_attempts: u32,
}

impl Default for PassiveHealthCheckConfig {
    fn default() -> Self {
        Self { failure_window: HumanDuration::secs(10), max_failed_attempts: 1 }
    }
}

/// Servers that do worse than the others are taken out for a while. What all do alike takes out none, and the last
/// one always stays.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutlierDetectionConfig {
    /// Whether that is done. Default true.
    pub enabled: bool,
    /// How far back shares and latencies are looked at. Default 10s, or the `failureWindow` of
    /// `passiveHealthCheck`.
    pub window: Option<HumanDuration>,
    /// 5xx answers in a row. Default 5; 0 turns it off, as for all that follow.
    pub consecutive_5xx: u32,
    /// Answers in a row with 502, 503 or 504. Default 3.
    pub consecutive_gateway_errors: u32,
    /// Requests in a row without an answer: connect failed, reset, timeout. Default 5.
    pub consecutive_local_errors: u32,
    /// Percentage points by which more of its requests fail than of the others'. Default 20; at most 100.
    #[schemars(range(max = 100))]
    pub failure_share_deviation: u32,
    /// How many times as long as the others it usually takes for an answer. Default 10.
    pub latency_factor: u32,
    /// A server that usually answers faster than this is never too slow. Default 500ms.
    pub latency_floor: HumanDuration,
    /// No answer for so long while three requests or more wait and the others answer. Default 1s.
    pub stall_timeout: HumanDuration,
    /// Requests within `window` below which shares and latencies say nothing. Default 20.
    pub minimum_requests: u32,
    /// A server that is taken out gets the copy of a GET or HEAD so long after the last that failed, so that it is back
    /// soon after it is well; less often when that takes long. Default 1s; 0: none, and it comes back when its time
    /// is over.
    pub rehearsal_interval: HumanDuration,
    /// How long a server is taken out; n times as long for the n-th time in a row. Default 10s, or the
    /// `failureWindow` of `passiveHealthCheck`.
    pub base_ejection_time: Option<HumanDuration>,
    /// No longer than this. Default 300s.
    pub max_ejection_time: HumanDuration,
    /// Share of the servers that may be out at once; one may always be. Default 67; 0: none; at most 100.
    #[schemars(range(max = 100))]
    pub max_ejection_percent: u32,
}

impl Default for OutlierDetectionConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            window: None,
            consecutive_5xx: 5,
            consecutive_gateway_errors: 3,
            consecutive_local_errors: 5,
            failure_share_deviation: 20,
            latency_factor: 10,
            latency_floor: HumanDuration::millis(500),
            stall_timeout: HumanDuration::secs(1),
            minimum_requests: 20,
            rehearsal_interval: HumanDuration::secs(1),
            base_ejection_time: None,
            max_ejection_time: HumanDuration::secs(300),
            max_ejection_percent: 67,
        }
    }
}

/// How the addresses of names among the servers are found.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DnsDiscoveryConfig {
    /// Between two look-ups of a name. Default 5s; at least 100ms.
    pub interval: HumanDuration,
}

impl Default for DnsDiscoveryConfig {
    fn default() -> Self {
        Self { interval: HumanDuration::secs(5) }
    }
}

/// How new and recovered servers get their share little by little.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SlowStartConfig {
    /// Until a server has its whole share. Default 30s.
    pub duration: HumanDuration,
    /// What it begins with, in percent. Default 10; from 1 to 100.
    #[schemars(range(min = 1, max = 100))]
    pub min_weight_percent: u8,
    /// 1.0 grows in a straight line, more grows faster at first. Default 1.0; more than 0.
    pub aggression: f64,
}

impl Default for SlowStartConfig {
    fn default() -> Self {
        Self { duration: HumanDuration::secs(30), min_weight_percent: 10, aggression: 1.0 }
    }
}

/// How responses are written to the client.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResponseForwardingConfig {
    /// Longest time that part of a response is held back. Default 100ms; Sluicegate writes at once and
    /// so keeps any bound.
    pub flush_interval: FlushInterval,
}

impl Default for ResponseForwardingConfig {
    fn default() -> Self {
        Self { flush_interval: FlushInterval(Some(HumanDuration::millis(100))) }
    }
}

/// A duration, or a negative one, which means after every write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FlushInterval(pub Option<HumanDuration>);

impl Serialize for FlushInterval {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(interval) => interval.serialize(serializer),
            None => serializer.serialize_str("-1s"),
        }
    }
}

impl<'de> Deserialize<'de> for FlushInterval {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.strip_prefix('-') {
            Some(positive) => positive.parse::<HumanDuration>().map(|_| Self(None)),
            None => text.parse().map(|interval| Self(Some(interval))),
        }
        .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for FlushInterval {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FlushInterval".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "a duration; a negative one means after every write",
            "anyOf": [{ "type": "string" }, { "type": "integer" }]
        })
    }
}

/// When a second try is sent beside the first; the first answer wins. Requests with a body, and those that are not
/// idempotent, are never sent twice. Second tries cost the retry budget.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HedgeConfig {
    /// How long the first try is waited for, at least. Default 100ms.
    pub delay: HumanDuration,
    /// Waits until the answer is later than so many percent of those of the last 10 s, too. Default 0: only
    /// `delay` counts.
    pub quantile: f64,
}

impl Default for HedgeConfig {
    fn default() -> Self {
        Self { delay: HumanDuration::millis(100), quantile: 0.0 }
    }
}

/// How many requests may be under way at once, learned from how long answers take: the limit grows while they are
/// about as fast as at best, and shrinks as they get slower. Requests beyond it wait in `queue`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AdaptiveConcurrencyConfig {
    /// Where the limit begins. Default 50.
    pub initial: u32,
    /// Never less. Default 5.
    pub min: u32,
    /// Never more. Default 1000.
    pub max: u32,
    /// How many times the least latency is still good. Default 1.5; from 1 to 100.
    pub tolerance: f64,
}

impl Default for AdaptiveConcurrencyConfig {
    fn default() -> Self {
        Self { initial: 50, min: 5, max: 1000, tolerance: 1.5 }
    }
}

/// Timeouts of exchanges with the servers of one service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceTimeouts {
    /// For the whole exchange, from the request's head to the response's last byte. Default 0: no limit,
    /// because streams are long.
    pub request: HumanDuration,
    /// For one try of several: from its beginning to the head of the response. Default 0: no limit.
    pub attempt: HumanDuration,
    /// In place of the transport's `dialTimeout`; 0 means no limit. Default: as the transport says.
    pub connect: Option<HumanDuration>,
    /// In place of the transport's `responseHeaderTimeout`; 0 means no limit. Default: as the transport says.
    pub response_header: Option<HumanDuration>,
    /// In place of the transport's `idleTimeout`; 0 means no limit. Default: as the transport says.
    pub idle: Option<HumanDuration>,
}

/// Where requests wait when a service, or all of its servers, have as many requests or connections as they may.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueConfig {
    /// Requests that may wait; more are answered with 503. Default 1024; 0: none waits.
    pub size: u32,
    /// How long one may wait before it is answered with 503. Default 5s; 0: none waits.
    pub timeout: HumanDuration,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { size: 1024, timeout: HumanDuration::secs(5) }
    }
}

/// The built-in retry: requests that failed before they can have had an effect.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceRetryConfig {
    /// Endpoints tried for one request, the first included. Default 3; 1 turns it off; at most 10.
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u8,
    /// Retries in percent of the requests of the last 10 s. Default 20; at most 100.
    #[schemars(range(max = 100))]
    pub budget_percent: u8,
    /// Retries a second that are allowed whatever the percentage. Default 3.
    pub budget_min_per_second: u32,
    /// Pause before a try at an endpoint that has failed the same request, when there is no other: up to this,
    /// at random; twice as long each time. Default 25ms; 0: none.
    pub initial_interval: HumanDuration,
    /// Field of the response that says how many tries it took. Default none.
    pub attempts_header: Option<String>,
}

impl Default for ServiceRetryConfig {
    fn default() -> Self {
        Self {
            attempts: 3,
            budget_percent: 20,
            budget_min_per_second: 3,
            initial_interval: HumanDuration::millis(25),
            attempts_header: None,
        }
    }
}

/// Other services, one of which is picked for each request by weight.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightedConfig {
    /// The services.
    pub services: Vec<WeightedServiceConfig>,
    /// Keeps a client with the service that answered it first. Default off.
    pub sticky: Option<StickyConfig>,
    /// Passes the health of the services on to the one that contains this. Default off; `{}` turns it on.
    pub health_check: Option<PassHealthConfig>,
}

/// One service of a weighted one.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WeightedServiceConfig {
    /// Name of the service. Required.
    pub name: String,
    /// Share of the requests. Default 1; 0 or less: none.
    #[serde(default = "one")]
    pub weight: i64,
}

/// `healthCheck: {}`; its presence is all it says.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PassHealthConfig {}

fn one_result() -> u32 {
    1
}

fn one() -> i64 {
    1
}

fn yes() -> bool {
    true
}

fn get() -> String {
    "GET".to_owned()
}

fn five_seconds() -> HumanDuration {
    HumanDuration::secs(5)
}

fn thirty_seconds() -> HumanDuration {
    HumanDuration::secs(30)
}
