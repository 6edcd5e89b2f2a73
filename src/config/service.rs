//! `http.services.NAME` as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::balancing::{
    FailoverConfig, HashConfig, HighestRandomWeightConfig, MirroringConfig, SpilloverConfig, StickyConfig,
};
use crate::common::units::HumanDuration;

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
    /// Sends the client's `Host` on; `false` sends the server's. Default true.
    pub pass_host_header: bool,
    /// How responses are written to the client.
    pub response_forwarding: ResponseForwardingConfig,
    /// Name of an entry of `http.serversTransports`. Default: the `serversTransport` block.
    pub servers_transport: Option<String>,
    /// The built-in retry.
    pub retry: ServiceRetryConfig,
}

impl Default for LoadBalancerConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            strategy: Strategy::default(),
            hash: None,
            sticky: None,
            spillover: SpilloverConfig::default(),
            health_check: None,
            pass_host_header: true,
            response_forwarding: ResponseForwardingConfig::default(),
            servers_transport: None,
            retry: ServiceRetryConfig::default(),
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
}

impl Default for ServiceRetryConfig {
    fn default() -> Self {
        Self { attempts: 3, budget_percent: 20, budget_min_per_second: 3 }
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
