//! `entryPoints.NAME` as written.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::observability::TraceVerbosity;
use super::router::RouterTimeouts;
use super::tls::RouterTlsConfig;
use crate::common::units::HumanDuration;
use crate::matcher::PathMatching;

/// An address that accepts connections, with its protocol settings.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EntryPointConfig {
    /// Where to listen: `[host]:port[/tcp]`. Without a host: every address, IPv4 and IPv6. Required.
    pub address: ListenAddress,
    /// Routers without `entryPoints` attach to the entry points that have this set; to all when none has.
    /// Default false.
    #[serde(default)]
    pub as_default: bool,
    /// Sets SO_REUSEPORT, so that another process may listen on the same address. Default false.
    #[serde(default)]
    pub reuse_port: bool,
    /// Connections open at once. 0 means no limit, which is the default.
    #[serde(default)]
    pub max_connections: u32,
    /// Connections open at once from one client: an IPv4 address, or a /64 of IPv6. It is the address that connects:
    /// behind another proxy all clients are one. 0 means no limit, which is the default.
    #[serde(default)]
    pub max_connections_per_client: u32,
    /// TLS handshakes under way at once; more are turned away. 0 means no limit. Default 4096.
    #[serde(default = "max_handshakes")]
    pub max_handshakes: u32,
    /// Timeouts and life cycle of connections.
    #[serde(default)]
    pub transport: EntryPointTransport,
    /// Which forwarding fields of a client are believed.
    #[serde(default)]
    pub forwarded_headers: ForwardedHeadersConfig,
    /// How HTTP requests are read.
    #[serde(default)]
    pub http: EntryPointHttp,
    /// What a connection of HTTP/2 may cost. HTTP/2 is spoken with whoever begins with it.
    #[serde(default)]
    pub http2: EntryPointHttp2,
    /// What is recorded of requests that arrive here; a router may override it.
    #[serde(default)]
    pub observability: EntryPointObservability,
}

impl EntryPointConfig {
    /// An entry point with the default of every other key.
    pub fn at(address: ListenAddress) -> Self {
        Self {
            address,
            as_default: false,
            reuse_port: false,
            max_connections: 0,
            max_connections_per_client: 0,
            max_handshakes: max_handshakes(),
            transport: EntryPointTransport::default(),
            forwarded_headers: ForwardedHeadersConfig::default(),
            http: EntryPointHttp::default(),
            http2: EntryPointHttp2::default(),
            observability: EntryPointObservability::default(),
        }
    }
}

/// About 80 MiB of half-made connections.
fn max_handshakes() -> u32 {
    4096
}

/// Timeouts and life cycle of an entry point's connections.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPointTransport {
    /// How long a client may take.
    pub responding_timeouts: RespondingTimeouts,
    /// What happens between SIGTERM and the end.
    pub life_cycle: LifeCycle,
    /// Age after which the next response closes its connection. Default 0: never.
    pub keep_alive_max_time: HumanDuration,
    /// Requests after which a connection is closed. Default 0: never.
    pub keep_alive_max_requests: u32,
}

/// How long a client may take.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RespondingTimeouts {
    /// For the whole head of a request, from its first byte. Default 10s; 0 means no limit.
    pub head_timeout: HumanDuration,
    /// For a TLS handshake. Default 10s; 0 means no limit.
    pub handshake_timeout: HumanDuration,
    /// For the whole body of a request. Default 60s; 0 means no limit.
    pub read_timeout: HumanDuration,
    /// For writing the whole response. Default 0: no limit.
    pub write_timeout: HumanDuration,
    /// How long a client may take nothing of its response, or send nothing of its body. Default 60s; 0 means
    /// no limit.
    pub stall_timeout: HumanDuration,
    /// How long a connection may wait for its next request. Default 180s; 0 means no limit.
    pub idle_timeout: HumanDuration,
}

impl Default for RespondingTimeouts {
    fn default() -> Self {
        Self {
            head_timeout: HumanDuration::secs(10),
            handshake_timeout: HumanDuration::secs(10),
            read_timeout: HumanDuration::secs(60),
            write_timeout: HumanDuration::secs(0),
            stall_timeout: HumanDuration::secs(60),
            idle_timeout: HumanDuration::secs(180),
        }
    }
}

/// What happens between SIGTERM and the end.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LifeCycle {
    /// How long new requests are still accepted after SIGTERM, while readiness already fails.
    /// Default 10s (Traefik: 0); none on SIGINT.
    pub request_accept_grace_timeout: HumanDuration,
    /// How long requests in flight may then take to end. Default 10s.
    #[serde(rename = "graceTimeOut")]
    pub grace_time_out: HumanDuration,
}

impl Default for LifeCycle {
    fn default() -> Self {
        Self {
            request_accept_grace_timeout: HumanDuration::secs(10),
            grace_time_out: HumanDuration::secs(10),
        }
    }
}

/// Which forwarding fields (`X-Forwarded-*` and their like) of a client are believed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardedHeadersConfig {
    /// Believes them from everybody. Default false.
    pub insecure: bool,
    /// Addresses and CIDR ranges of proxies that are believed. Default none.
    #[serde(rename = "trustedIPs")]
    pub trusted_ips: Vec<String>,
    /// Fields named in `Connection` that middlewares may still see. Default none.
    pub connection: Vec<String>,
    /// Does not append the client's address to `X-Forwarded-For`. Default false.
    #[serde(rename = "notAppendXForwardedFor")]
    pub not_append_x_forwarded_for: bool,
}

/// How HTTP requests are read.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPointHttp {
    /// Middlewares that run before those of every router of this entry point. Default none.
    pub middlewares: Vec<String>,
    /// Timeouts for its routers, where they do not say otherwise.
    pub timeouts: RouterTimeouts,
    /// TLS for every router here that has no `tls` of its own; `{}` is enough. Default absent.
    pub tls: Option<RouterTlsConfig>,
    /// Sends every plain request elsewhere. Default absent.
    pub redirections: Option<RedirectionsConfig>,
    /// Which percent-encoded characters a path may hold.
    pub encoded_characters: EncodedCharactersConfig,
    /// Sends `;` in a query on as `%3B` instead of turning it into `&`. Default false.
    pub encode_query_semicolons: bool,
    /// Resolves `//`, `/./` and `/../` in the path before routing. Default true.
    pub sanitize_path: bool,
    /// Bytes of the request line and all fields together; more is answered with 431. Default 1048576.
    pub max_header_bytes: usize,
    /// Fields of a request, never more than 24,000; more is answered with 431. Default 200.
    pub max_header_fields: usize,
    /// What happens to fields with `_` in their name: `keep`, `delete` or `reject`. Default `keep`.
    pub underscore_headers_strategy: UnderscoreHeadersStrategy,
    /// Whether `PathPrefix` and `stripPrefix` compare plain strings (`prefix`) or whole segments
    /// (`segment`). Default `prefix`; a router may override it.
    pub path_matching: PathMatchingConfig,
}

impl Default for EntryPointHttp {
    fn default() -> Self {
        Self {
            middlewares: Vec::new(),
            timeouts: RouterTimeouts::default(),
            tls: None,
            redirections: None,
            encoded_characters: EncodedCharactersConfig::default(),
            encode_query_semicolons: false,
            sanitize_path: true,
            max_header_bytes: 1_048_576,
            max_header_fields: 200,
            underscore_headers_strategy: UnderscoreHeadersStrategy::default(),
            path_matching: PathMatchingConfig::default(),
        }
    }
}

/// Sends every plain request of an entry point elsewhere.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RedirectionsConfig {
    /// To another entry point. Default absent.
    pub entry_point: Option<RedirectEntryPoint>,
}

/// To another entry point.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RedirectEntryPoint {
    /// Name of an entry point, or a port as `:443`. Required.
    pub to: String,
    /// Scheme of the new address. Default `https`.
    #[serde(default = "https")]
    pub scheme: String,
    /// Answers with 301 and 308, which clients remember, instead of 302 and 307. Default true.
    #[serde(default = "yes")]
    pub permanent: bool,
    /// Of the router that does it. Default 9223372036854775806: above every other.
    #[serde(default = "above_all")]
    pub priority: i64,
}

fn https() -> String {
    "https".to_owned()
}

fn yes() -> bool {
    true
}

fn above_all() -> i64 {
    i64::MAX - 1
}

/// What a connection of HTTP/2 may cost. Limits on frames are counted over 10 s; a client that goes over one loses
/// its connection.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPointHttp2 {
    /// Requests of one connection at once. Default 250.
    pub max_concurrent_streams: u32,
    /// Bytes of the table by which a client compresses its fields. Default 4096.
    pub max_decoder_header_table_size: u32,
    /// Bytes of a request's fields when unpacked, with 32 more for each; more is answered with 431. Default 65536, and
    /// never more than `http.maxHeaderBytes`.
    pub max_header_list_size: u32,
    /// Bytes of one request's content that a client may send ahead. Default 262144.
    pub stream_window: u32,
    /// Bytes of content that a client may send ahead on all streams of a connection. Default 1048576.
    pub connection_window: u32,
    /// Bytes of one response that may wait for the client's socket. Default 65536.
    pub max_send_buffer: u32,
    /// After so long without a frame a connection with open streams is sent a PING. Default 30s; 0 means never.
    pub read_idle_timeout: HumanDuration,
    /// How long the answer to that PING may take. Default 15s; 0 means no limit.
    pub ping_timeout: HumanDuration,
    /// Streams that a client has opened and reset and that have not been looked at yet. Default 20.
    pub max_pending_resets: u32,
    /// Streams that a client's mistakes made the proxy reset. Default 100.
    pub max_local_resets: u32,
    /// RST_STREAM frames. Default 1000; 0 means no limit.
    pub max_resets: u32,
    /// SETTINGS frames. Default 100; 0 means no limit.
    pub max_settings: u32,
    /// PING frames. Default 5000; 0 means no limit.
    pub max_pings: u32,
    /// PRIORITY frames and frames of unknown types. Default 2000; 0 means no limit.
    pub max_priorities: u32,
    /// Frames without a byte that end nothing. Default 1000; 0 means no limit.
    pub max_empty_frames: u32,
    /// WINDOW_UPDATE frames beyond one for each 512 bytes sent. Default 10000; 0 means no limit.
    pub max_window_updates: u32,
    /// CONTINUATION frames of one request. Default 32; 0 means no limit.
    pub max_continuations: u32,
}

impl Default for EntryPointHttp2 {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 250,
            max_decoder_header_table_size: 4096,
            max_header_list_size: 65_536,
            stream_window: 262_144,
            connection_window: 1_048_576,
            max_send_buffer: 65_536,
            read_idle_timeout: HumanDuration::secs(30),
            ping_timeout: HumanDuration::secs(15),
            max_pending_resets: 20,
            max_local_resets: 100,
            max_resets: 1000,
            max_settings: 100,
            max_pings: 5000,
            max_priorities: 2000,
            max_empty_frames: 1000,
            max_window_updates: 10_000,
            max_continuations: 32,
        }
    }
}

/// Which percent-encoded characters a path may hold; a path with another is answered with 400.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EncodedCharactersConfig {
    /// `%2F`. Default true.
    pub allow_encoded_slash: bool,
    /// `%5C`. Default true.
    pub allow_encoded_back_slash: bool,
    /// `%00`. Default true.
    pub allow_encoded_null_character: bool,
    /// `%3B`. Default true.
    pub allow_encoded_semicolon: bool,
    /// `%25`. Default true.
    pub allow_encoded_percent: bool,
    /// `%3F`. Default true.
    pub allow_encoded_question_mark: bool,
    /// `%23`. Default true.
    pub allow_encoded_hash: bool,
}

impl Default for EncodedCharactersConfig {
    fn default() -> Self {
        Self {
            allow_encoded_slash: true,
            allow_encoded_back_slash: true,
            allow_encoded_null_character: true,
            allow_encoded_semicolon: true,
            allow_encoded_percent: true,
            allow_encoded_question_mark: true,
            allow_encoded_hash: true,
        }
    }
}

/// What happens to fields with `_` in their name, which some servers take for `-`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum UnderscoreHeadersStrategy {
    /// They pass.
    #[default]
    Keep,
    /// They are removed.
    Delete,
    /// The request is answered with 400.
    Reject,
}

/// How a path prefix is compared.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatchingConfig {
    /// As a plain string, as in Traefik: `/api` also matches `/apix`.
    #[default]
    Prefix,
    /// By whole segments: `/api` matches `/api` and `/api/x`, not `/apix`.
    Segment,
}

impl From<PathMatchingConfig> for PathMatching {
    fn from(config: PathMatchingConfig) -> Self {
        match config {
            PathMatchingConfig::Prefix => Self::Prefix,
            PathMatchingConfig::Segment => Self::Segment,
        }
    }
}

/// What is recorded of requests that arrive at an entry point.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EntryPointObservability {
    /// Writes them to the access log. Default true.
    pub access_logs: bool,
    /// Counts them in the metrics of router and service. Default true.
    pub metrics: bool,
    /// Traces them; no traces are sent yet. Default true.
    pub tracing: bool,
    /// How much a trace tells: `minimal` or `detailed`. Default `minimal`.
    pub trace_verbosity: TraceVerbosity,
}

impl Default for EntryPointObservability {
    fn default() -> Self {
        Self { access_logs: true, metrics: true, tracing: true, trace_verbosity: TraceVerbosity::default() }
    }
}

/// A TCP address to listen on, written `[host]:port[/tcp]`.
///
/// The host is an IP address (IPv6 in brackets), `localhost`, or nothing.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ListenAddress {
    /// The one address; every address of the machine when absent.
    pub ip: Option<IpAddr>,
    /// 0 lets the system choose.
    pub port: u16,
}

impl ListenAddress {
    /// The address to bind. Without a host that is `[::]`, whose socket takes IPv4 too.
    pub fn socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), self.port)
    }
}

impl FromStr for ListenAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let bad = || {
            format!("bad address {text:?}: expected \"[host]:port\", such as \":80\" or \"127.0.0.1:8080\"")
        };
        let (address, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
        match protocol.to_ascii_lowercase().as_str() {
            "tcp" => {}
            "udp" => return Err("udp is not supported yet".to_owned()),
            _ => return Err(format!("unknown protocol {protocol:?} in address {text:?}: expected tcp")),
        }
        let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
        if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad());
        }
        let port =
            port.parse::<u16>().map_err(|_| format!("bad port {port} in address {text:?}: at most 65535"))?;
        let ip = match host {
            "" => None,
            "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            _ => Some(match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
                Some(v6) => v6.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| bad())?,
                None => host.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| {
                    format!(
                        "bad host {host:?} in address {text:?}: expected an IP address (IPv6 in brackets) or nothing"
                    )
                })?,
            }),
        };
        Ok(Self { ip, port })
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            Some(ip) => SocketAddr::new(ip, self.port).fmt(f),
            None => write!(f, ":{}", self.port),
        }
    }
}

impl Serialize for ListenAddress {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ListenAddress {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ListenAddress".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "description": "[host]:port[/tcp]", "type": "string" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_host_takes_every_address() {
        let address: ListenAddress = ":80".parse().expect("is an address");
        assert_eq!(address, ListenAddress { ip: None, port: 80 });
        assert_eq!(address.socket_addr().to_string(), "[::]:80");
        assert_eq!(":80/tcp".parse(), Ok(address));
    }

    #[test]
    fn an_address_keeps_its_host_and_reads_back_as_written() {
        for text in ["127.0.0.1:8080", "[::1]:443", "0.0.0.0:0", ":9000"] {
            let address: ListenAddress = text.parse().expect(text);
            assert_eq!(address.to_string(), text);
        }
        assert_eq!(
            "localhost:80".parse::<ListenAddress>().map(|a| a.to_string()),
            Ok("127.0.0.1:80".to_owned())
        );
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        for (text, message) in [
            ("", "expected \"[host]:port\""),
            ("80", "expected \"[host]:port\""),
            (":", "expected \"[host]:port\""),
            (":+80", "expected \"[host]:port\""),
            (":http", "expected \"[host]:port\""),
            (":65536", "at most 65535"),
            ("::1:80", "IPv6 in brackets"),
            ("[::1:80", "IPv6 in brackets"),
            ("[zz]:80", "expected \"[host]:port\""),
            ("edge.test:80", "expected an IP address"),
            (":80/udp", "udp is not supported yet"),
            (":80/sctp", "unknown protocol"),
        ] {
            let error = text.parse::<ListenAddress>().expect_err(text);
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
