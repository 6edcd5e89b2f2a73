//! The whole document as written: every block, static and dynamic, of all files together.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::admin::{AdminConfig, ApiConfig, PingConfig};
use super::entry_point::EntryPointConfig;
use super::observability::{AccessLogConfig, LogConfig, MetricsConfig};
use super::overload::OverloadConfig;
use super::providers::ProvidersConfig;
use super::router::{RouterConfig, RuleSyntax};
use super::service::ServiceConfig;
use super::tls::TlsConfig;
use super::transport::ServersTransportConfig;
use crate::common::names::{EntryPointName, MiddlewareName, RouterName, ServiceName};
use crate::middleware::MiddlewareConfig;

/// Everything that the files say, with defaults filled in.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq)]
#[schemars(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct DocumentConfig {
    /// Addresses that accept connections. Default: one named `http` at `:80`.
    #[schemars(with = "BTreeMap<String, EntryPointConfig>")]
    pub entry_points: BTreeMap<EntryPointName, EntryPointConfig>,
    /// Routers, services, middlewares and transports.
    pub http: HttpConfig,
    /// Certificates, and how TLS is spoken with clients.
    pub tls: TlsConfig,
    /// How servers are connected to, unless a service names an entry of `http.serversTransports`.
    pub servers_transport: ServersTransportConfig,
    /// The log of the proxy itself.
    pub log: LogConfig,
    /// The log of requests. Default off; `{}` turns it on.
    pub access_log: Option<AccessLogConfig>,
    /// Metrics.
    pub metrics: MetricsConfig,
    /// The listener for operators.
    pub admin: AdminConfig,
    /// The read-only API.
    pub api: Option<ApiConfig>,
    /// Traefik's `/ping`.
    pub ping: Option<PingConfig>,
    /// Where dynamic configuration comes from, beside the main file.
    pub providers: ProvidersConfig,
    /// What holds for all entry points.
    pub global: GlobalConfig,
    /// The rule language.
    pub core: CoreConfig,
    /// What a problem inside one item does: `refuse` the document or `dropItem`. Default `refuse`.
    pub on_problem: OnProblem,
    /// The whole proxy's own limits.
    pub overload: OverloadConfig,
    /// Threads that carry traffic. Default 0: one for each core that the process may use. At most 1024.
    #[schemars(range(max = 1024))]
    pub workers: u16,
    /// Where this proxy runs: servers of the same `zone` are preferred. Default: nowhere in particular.
    pub zone: String,
}

impl DocumentConfig {
    /// Whether it has nothing but `http` and `tls`: a dynamic file, made to be named by the `providers.file` of another.
    pub fn is_dynamic(&self) -> bool {
        let Self { http, tls, .. } = self;
        *http != HttpConfig::default()
            && Self { http: http.clone(), tls: tls.clone(), ..Self::default() } == *self
    }
}

/// Routers, services, middlewares and transports.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq)]
#[schemars(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Which requests go where. Default none.
    #[schemars(with = "BTreeMap<String, RouterConfig>")]
    pub routers: BTreeMap<RouterName, RouterConfig>,
    /// Where requests are sent. Default none.
    #[schemars(with = "BTreeMap<String, ServiceConfig>")]
    pub services: BTreeMap<ServiceName, ServiceConfig>,
    /// What is done with requests and responses on the way. Default none.
    #[schemars(with = "BTreeMap<String, MiddlewareConfig>")]
    pub middlewares: BTreeMap<MiddlewareName, MiddlewareConfig>,
    /// How servers are connected to, by name. Default none.
    pub servers_transports: BTreeMap<String, ServersTransportConfig>,
}

/// The name that a reference means here: `auth@file` is `auth`. Other providers' names keep their suffix.
pub fn local_name(reference: &str) -> &str {
    reference.strip_suffix("@file").unwrap_or(reference)
}

/// What holds for all entry points.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GlobalConfig {
    /// Does not append the client's address to `X-Forwarded-For`, at no entry point. Default false.
    #[serde(rename = "notAppendXForwardedFor")]
    pub not_append_x_forwarded_for: bool,
}

/// The rule language, and what the whole proxy may hold in memory.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CoreConfig {
    /// Language of rules whose router does not say; only `v3`. Default `v3`.
    pub default_rule_syntax: RuleSyntax,
    /// Bytes that the large request heads of one core may take together; what comes beyond is answered with 503.
    /// Heads of up to 4096 bytes do not count. At least 1048576. Default 8388608.
    pub max_head_memory: usize,
    /// Bytes that the bodies under way on one core are read into, about: the more there are, the smaller the
    /// reads, down to 4096 bytes each. At least 262144. Default 4194304.
    pub max_body_memory: usize,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            default_rule_syntax: RuleSyntax::default(),
            max_head_memory: 8 * 1024 * 1024,
            max_body_memory: 4 * 1024 * 1024,
        }
    }
}

/// What a problem inside one item does.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum OnProblem {
    /// Refuses the document: on reload the old one stays, on a cold start the process ends.
    #[default]
    Refuse,
    /// Leaves that item out, as Traefik does.
    DropItem,
}
