//! `serversTransport` and `http.serversTransports.NAME` as written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::tls::{FileOrContent, PairConfig};
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
    /// The name to ask a server's certificate for, instead of the host of its url. Default absent.
    pub server_name: Option<String>,
    /// Takes every certificate. Default false.
    pub insecure_skip_verify: bool,
    /// Files with the certificates of authorities, or their texts, as PEM, instead of the system's. Default none.
    #[serde(rename = "rootCAs")]
    pub root_cas: Vec<FileOrContent>,
    /// What is shown to servers that ask for a certificate; the first is used. Default none.
    pub certificates: Vec<PairConfig>,
    /// Suites of TLS 1.2 that are offered; those of TLS 1.3 always are. Default: all that are safe.
    pub cipher_suites: Vec<String>,
    /// Lowest TLS version: `VersionTLS12` or `VersionTLS13`. Default `VersionTLS12`.
    pub min_version: Option<String>,
    /// Highest TLS version: `VersionTLS12` or `VersionTLS13`. Default `VersionTLS13`.
    pub max_version: Option<String>,
    /// A URI that a server's certificate must have among its names. Default absent.
    #[serde(rename = "peerCertURI")]
    pub peer_cert_uri: Option<String>,
    /// Speaks HTTP/1.1 alone with `https://` servers, also with those that can HTTP/2. Default false.
    #[serde(rename = "disableHTTP2")]
    pub disable_http2: bool,
    /// How connections of HTTP/2 are used: `h2c://`, and `https://` where the server chooses it (ALPN).
    pub http2: TransportHttp2,
}

impl Default for ServersTransportConfig {
    fn default() -> Self {
        Self {
            max_idle_conns_per_host: 200,
            max_conns_per_host: 0,
            max_requests_per_host: 0,
            forwarding_timeouts: ForwardingTimeouts::default(),
            server_name: None,
            insecure_skip_verify: false,
            root_cas: Vec::new(),
            certificates: Vec::new(),
            cipher_suites: Vec::new(),
            min_version: None,
            max_version: None,
            peer_cert_uri: None,
            disable_http2: false,
            http2: TransportHttp2::default(),
        }
    }
}

/// How long a server may take.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardingTimeouts {
    /// For a connection to be established. Default 5s; 0 means no limit.
    pub dial_timeout: HumanDuration,
    /// For the TLS handshake with a server. Default 10s; 0 means no limit.
    pub tls_handshake_timeout: HumanDuration,
    /// From the request's end to the response's head. Default 60s; 0 means no limit.
    pub response_header_timeout: HumanDuration,
    /// How long an idle connection is kept. Default 90s; 0 means no limit.
    pub idle_conn_timeout: HumanDuration,
    /// After so long without a frame an HTTP/2 connection is sent a PING. Default 0: never.
    pub read_idle_timeout: HumanDuration,
    /// How long the answer to that PING may take. Default 15s.
    pub ping_timeout: HumanDuration,
    /// How long a body may pause, in either direction. Default 60s; 0 means no limit.
    pub idle_timeout: HumanDuration,
}

impl Default for ForwardingTimeouts {
    fn default() -> Self {
        Self {
            dial_timeout: HumanDuration::secs(5),
            tls_handshake_timeout: HumanDuration::secs(10),
            response_header_timeout: HumanDuration::secs(60),
            idle_conn_timeout: HumanDuration::secs(90),
            read_idle_timeout: HumanDuration::secs(0),
            ping_timeout: HumanDuration::secs(15),
            idle_timeout: HumanDuration::secs(60),
        }
    }
}

/// How connections of HTTP/2 to servers are used.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TransportHttp2 {
    /// Requests on one connection at once, if the server takes as many. Default 100.
    pub max_concurrent_streams: u32,
    /// Bytes of one response that a server may send ahead. Default 131072.
    pub stream_window: u32,
    /// Bytes of all responses of a connection that a server may send ahead. Default 16777216.
    pub connection_window: u32,
}

impl Default for TransportHttp2 {
    fn default() -> Self {
        Self { max_concurrent_streams: 100, stream_window: 131_072, connection_window: 16_777_216 }
    }
}
