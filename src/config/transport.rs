//! `serversTransport` and `http.serversTransports.NAME` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::units::HumanDuration;

/// How servers are connected to.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServersTransportConfig {
    /// Idle connections kept per endpoint, over all cores. Default 200; negative: none.
    pub max_idle_conns_per_host: i32,
    /// Connections open at once per endpoint, over all cores; requests beyond wait in the service's `queue`.
    /// Default 0: no limit.
    pub max_conns_per_host: u32,
    /// Requests under way at once per endpoint, over all cores; those beyond wait in the service's `queue`.
    /// Default 0: no limit.
    pub max_requests_per_host: u32,
    /// How long a server may take.
    pub forwarding_timeouts: ForwardingTimeouts,
}

impl Default for ServersTransportConfig {
    fn default() -> Self {
        Self {
            max_idle_conns_per_host: 200,
            max_conns_per_host: 0,
            max_requests_per_host: 0,
            forwarding_timeouts: ForwardingTimeouts::default(),
        }
    }
}

/// How long a server may take.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardingTimeouts {
    /// For a connection to be established. Default 5s; 0 means no limit.
    pub dial_timeout: HumanDuration,
    /// From the request's end to the response's head. Default 60s; 0 means no limit.
    pub response_header_timeout: HumanDuration,
    /// How long an idle connection is kept. Default 90s; 0 means no limit.
    pub idle_conn_timeout: HumanDuration,
    /// How long a body may pause, in either direction. Default 60s; 0 means no limit.
    pub idle_timeout: HumanDuration,
}

impl Default for ForwardingTimeouts {
    fn default() -> Self {
        Self {
            dial_timeout: HumanDuration::secs(5),
            response_header_timeout: HumanDuration::secs(60),
            idle_conn_timeout: HumanDuration::secs(90),
            idle_timeout: HumanDuration::secs(60),
        }
    }
}
