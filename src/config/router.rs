//! `http.routers.NAME` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::entry_point::PathMatchingConfig;
use super::observability::TraceVerbosity;
use super::tls::RouterTlsConfig;
use crate::common::importance::Importance;
use crate::common::units::HumanDuration;

/// Highest `priority` that a user may give; those above are for routers that the proxy makes itself.
pub const MAX_PRIORITY: i64 = i64::MAX - 1000;

/// Which requests go through which middlewares to which service.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterConfig {
    /// Which requests: ``Host(`a.test`) && PathPrefix(`/api`)``. Required.
    pub rule: String,
    /// Name of the service that answers. Required.
    pub service: String,
    /// Names of the entry points it listens at. Default: those with `asDefault`, or all when none has it.
    #[serde(default)]
    pub entry_points: Vec<String>,
    /// Names of middlewares, in the order of the way in, after those of the entry point. Default none.
    #[serde(default)]
    pub middlewares: Vec<String>,
    /// The higher goes first. Default 0: the length of the rule in bytes. At most 9223372036854774807.
    #[serde(default)]
    pub priority: i64,
    /// Language of the rule; only `v3`. Default `v3`.
    #[serde(default)]
    pub rule_syntax: RuleSyntax,
    /// How a path prefix is compared: `prefix` or `segment`. Default: as the entry point says.
    #[serde(default)]
    pub path_matching: Option<PathMatchingConfig>,
    /// Serves TLS connections, and no others; `{}` is enough. Default: only plain ones.
    #[serde(default)]
    pub tls: Option<RouterTlsConfig>,
    /// What is recorded, where it differs from the entry point.
    #[serde(default)]
    pub observability: RouterObservability,
    /// Timeouts of exchanges through this router.
    #[serde(default)]
    pub timeouts: RouterTimeouts,
    /// Who goes first where requests wait, and is refused last when the proxy is overloaded: `low`, `normal` or
    /// `high`. Default `normal`.
    #[serde(default)]
    pub importance: ImportanceConfig,
}

/// How much the requests of a router matter when not all can be served.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ImportanceConfig {
    /// First to be refused.
    Low,
    /// Between the others.
    #[default]
    Normal,
    /// Last to be refused.
    High,
}

impl From<ImportanceConfig> for Importance {
    fn from(config: ImportanceConfig) -> Self {
        match config {
            ImportanceConfig::Low => Self::Low,
            ImportanceConfig::Normal => Self::Normal,
            ImportanceConfig::High => Self::High,
        }
    }
}

/// Language of a rule.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum RuleSyntax {
    /// Traefik v3's.
    #[default]
    V3,
}

/// What is recorded of a router's requests; absent means as the entry point says.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterObservability {
    /// Writes them to the access log. Default: as the entry point says.
    pub access_logs: Option<bool>,
    /// Counts them in the metrics of router and service. Default: as the entry point says.
    pub metrics: Option<bool>,
    /// Traces them; no traces are sent yet. Default: as the entry point says.
    pub tracing: Option<bool>,
    /// How much a trace tells: `minimal` or `detailed`. Default: as the entry point says.
    pub trace_verbosity: Option<TraceVerbosity>,
}

/// Timeouts of exchanges through one router, or through those of one entry point.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterTimeouts {
    /// For the whole exchange, from the request's head to the response's last byte; 0 means no limit. WebSocket
    /// and event streams end at no such limit. Default: as the entry point says, then the service.
    pub request: Option<HumanDuration>,
    /// For one try of several: from its beginning to the head of the response; 0 means no limit. Default: as the
    /// entry point says, then the service.
    pub attempt: Option<HumanDuration>,
    /// For a connection to a server, in place of the transport's `dialTimeout`; 0 means no limit.
    /// Default: as the entry point says, then the service.
    pub connect: Option<HumanDuration>,
    /// For the response's head, in place of the transport's `responseHeaderTimeout`; 0 means no limit.
    /// Default: as the entry point says, then the service.
    pub response_header: Option<HumanDuration>,
    /// For a pause in either body, in place of the transport's `idleTimeout`; 0 means no limit.
    /// Default: as the entry point says, then the service.
    pub idle: Option<HumanDuration>,
    /// Field in which a client may say how long it will wait: milliseconds (`250`), or with a unit (`2s`). It
    /// shortens the limit on the whole exchange, and never lengthens it. Default: as the entry point says;
    /// there none. `""` turns it off.
    pub deadline_header: Option<String>,
}
