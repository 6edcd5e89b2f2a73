//! What of `http.services.NAME` decides which endpoint a request gets: cookies, hashing, zones, and services
//! of services.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::service::PassHealthConfig;
use crate::common::units::HumanDuration;
use crate::middleware::{IpStrategyConfig, StatusText};

/// Keeps a client with the endpoint or service that answered it first.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StickyConfig {
    /// By a cookie; `{}` is enough. Default off.
    pub cookie: Option<StickyCookieConfig>,
}

/// The cookie of a sticky service.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StickyCookieConfig {
    /// Its name. Default: `_` and five digits made of the service's name, as in Traefik.
    pub name: String,
    /// Sent over TLS only. Default false.
    pub secure: bool,
    /// Out of reach of scripts. Default false.
    pub http_only: bool,
    /// With requests from other sites: `none`, `lax` or `strict`. Default: not said.
    pub same_site: Option<SameSiteConfig>,
    /// Seconds that the browser keeps it; less than 0: it forgets it at once. Default 0: until it is closed.
    pub max_age: i64,
    /// Paths under which it is sent; empty: not said. Default `/`.
    pub path: Option<String>,
    /// Domain under which it is sent. Default: the host that was asked.
    pub domain: String,
    /// Signs it, so that clients cannot choose an endpoint: the first key signs, all are accepted. At least 16
    /// bytes each; best as `${file:...}`. Default: not signed, as in Traefik.
    pub signing_keys: Vec<String>,
}

impl Default for StickyCookieConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            secure: false,
            http_only: false,
            same_site: None,
            max_age: 0,
            path: Some("/".to_owned()),
            domain: String::new(),
            signing_keys: Vec::new(),
        }
    }
}

/// Whether a cookie goes with requests from other sites.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SameSiteConfig {
    /// With all of them.
    None,
    /// When the user follows a link.
    Lax,
    /// With none of them.
    Strict,
}

/// What the strategy `hash` hashes: exactly one of `header`, `cookie`, `query`, `path` and `clientIP`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HashConfig {
    /// The value of this field. Requests without it take turns.
    pub header: Option<String>,
    /// The value of this cookie. Requests without it take turns.
    pub cookie: Option<String>,
    /// The value of this parameter of the query. Requests without it take turns.
    pub query: Option<String>,
    /// The path, without the query. Default false.
    pub path: bool,
    /// The client's address. Default false.
    #[serde(rename = "clientIP")]
    pub client_ip: bool,
    /// How the client's address is found, with `clientIP`. Default: the address of the peer.
    pub ip_strategy: Option<IpStrategyConfig>,
    /// Requests in flight that an endpoint may have, in percent of its fair share; what is over goes to the next
    /// one of its key. From 101 on; such as 125. Default 0: no bound.
    pub max_load: u16,
}

/// When servers that stand back get requests.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SpilloverConfig {
    /// Servers of other zones get requests when less than so many percent of the weight of the own zone is
    /// available, and then as much as is missing. 0: only when none is available. Default 70; at most 100.
    #[schemars(range(max = 100))]
    pub zone_percent: u8,
    /// Backups get requests when less than so many percent of the weight of all others is available. Default 0:
    /// only when none is available; at most 100.
    #[schemars(range(max = 100))]
    pub backup_percent: u8,
}

impl Default for SpilloverConfig {
    fn default() -> Self {
        Self { zone_percent: 70, backup_percent: 0 }
    }
}

/// Other services, one of which each client belongs to.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HighestRandomWeightConfig {
    /// The services.
    pub services: Vec<super::service::WeightedServiceConfig>,
    /// Passes the health of the services on to the one that contains this. Default off; `{}` turns it on.
    pub health_check: Option<PassHealthConfig>,
}

/// A service, and another for when it is down.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FailoverConfig {
    /// Name of the main service. Required.
    pub service: String,
    /// Name of the service that answers while none of the main one's endpoints is available. Required.
    pub fallback: String,
    /// Passes the health of the services on to the one that contains this. Default off; `{}` turns it on.
    #[serde(default)]
    pub health_check: Option<PassHealthConfig>,
    /// Sends a request to the fallback too when the main service answers it badly. Default off.
    #[serde(default)]
    pub errors: Option<FailoverErrorsConfig>,
}

/// Which answers of the main service are not good enough.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FailoverErrorsConfig {
    /// Their statuses: `"503"`, `"500-599"`. Required.
    pub status: Vec<StatusText>,
    /// A request with a larger body is refused with 413. Default -1: it is sent to the main service alone, if it is
    /// larger than 2 MiB.
    pub max_request_body_bytes: i64,
}

impl Default for FailoverErrorsConfig {
    fn default() -> Self {
        Self { status: Vec::new(), max_request_body_bytes: -1 }
    }
}

/// A service, and others that get copies of its requests.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirroringConfig {
    /// Name of the service that answers. Required.
    pub service: String,
    /// Copies the body too. Default true.
    #[serde(default = "yes")]
    pub mirror_body: bool,
    /// Bytes of a body that is copied; a request with a larger one is not mirrored. Default -1: as `maxHeldBytes`
    /// allows.
    #[serde(default = "no_limit")]
    pub max_body_size: i64,
    /// The services that get copies. Default none.
    #[serde(default)]
    pub mirrors: Vec<MirrorConfig>,
    /// Passes the health of `service` on to the one that contains this. Default off; `{}` turns it on.
    #[serde(default)]
    pub health_check: Option<PassHealthConfig>,
    /// Copies under way at a time, over all mirrors; more are dropped. Default 256.
    #[serde(default = "places")]
    pub max_concurrent: u32,
    /// Bytes of bodies held at a time, over all mirrors; what does not fit is not mirrored. Default 67108864.
    #[serde(default = "room")]
    pub max_held_bytes: u64,
    /// How long a copy and its answer may take. Default 30s; 0: no limit.
    #[serde(default = "thirty_seconds")]
    pub timeout: HumanDuration,
}

/// A service that gets copies.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MirrorConfig {
    /// Name of the service. Required.
    pub name: String,
    /// Copies of each hundred requests. Default 0; at most 100.
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub percent: u8,
}

fn yes() -> bool {
    true
}

fn no_limit() -> i64 {
    -1
}

fn places() -> u32 {
    256
}

fn room() -> u64 {
    64 * 1024 * 1024
}

fn thirty_seconds() -> HumanDuration {
    HumanDuration::secs(30)
}
