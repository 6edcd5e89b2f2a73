//! `http.services.NAME` as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::units::HumanDuration;

/// Where requests are sent: exactly one of the kinds.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceConfig {
    /// Servers, one of which is picked for each request.
    pub load_balancer: Option<LoadBalancerConfig>,
    /// Other services, one of which is picked for each request by weight.
    pub weighted: Option<WeightedConfig>,
}

/// Servers and how one of them is picked.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LoadBalancerConfig {
    /// The servers. Default none: every request is answered with 503.
    pub servers: Vec<ServerConfig>,
    /// How one is picked: `wrr` (weighted round robin) or `p2c` (the less busy of two). Default `wrr`.
    pub strategy: Strategy,
    /// Asks the servers for their health. Default off.
    pub health_check: Option<HealthCheckConfig>,
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
}

impl Default for LoadBalancerConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            strategy: Strategy::default(),
            health_check: None,
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
        }
    }
}

/// One server.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerConfig {
    /// `http://host[:port][/path]`; the path is used with `preservePath` only. Required.
    pub url: String,
    /// Share of the requests. Default 1; 0 or less: none.
    #[serde(default = "one")]
    pub weight: i64,
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
}

/// How the servers of a service are asked for their health.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HealthCheckConfig {
    /// Path, with query if need be. Required.
    pub path: String,
    /// `http`. Default: the server's.
    #[serde(default)]
    pub scheme: Option<String>,
    /// Protocol of the check; only `http`. Default `http`.
    #[serde(default)]
    pub mode: HealthCheckMode,
    /// Method. Default `GET`.
    #[serde(default = "get")]
    pub method: String,
    /// The one status that means healthy. Default 0: any of 200 to 399.
    #[serde(default)]
    pub status: u16,
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
