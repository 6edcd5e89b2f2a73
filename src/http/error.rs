//! Every way in which the proxy itself ends an exchange, and the one table of what the client then sees.
//!
//! Never: building the response (that is `proxy::respond`), counting, logging.

use std::borrow::Cow;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;

use crate::common::names::{MiddlewareName, ServiceName};
use crate::http::limited::Limited;

/// Who has to mend it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// The client sent something that cannot be served.
    Client,
    /// A pod, or the way to it.
    Upstream,
    /// A limit or rule that the operator set.
    Policy,
    /// The proxy.
    Proxy,
}

impl Fault {
    /// The word for log and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Upstream => "upstream",
            Self::Policy => "policy",
            Self::Proxy => "proxy",
        }
    }
}

/// Why the proxy answered by itself or cut the exchange.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    // --- the client's head -----------------------------------------------------------------
    /// A head that breaks RFC 9112 or that two readers could read in two ways.
    #[error("bad request: {0}")]
    BadRequest(&'static str),
    /// A head larger than the entry point takes, in bytes or in fields.
    #[error("request head is larger than {limit} {unit}")]
    HeadTooLarge {
        /// What the entry point takes.
        limit: usize,
        /// `bytes` or `fields`.
        unit: &'static str,
    },
    /// A transfer coding other than `chunked` (RFC 9112 §6.1).
    #[error("transfer coding is not implemented")]
    UnknownTransferCoding,
    /// `CONNECT`, which a reverse proxy has no use for.
    #[error("method is not implemented")]
    MethodNotImplemented,
    /// A major version other than 1 (RFC 9110 §15.6.6).
    #[error("HTTP version is not supported")]
    VersionNotSupported,
    /// An `Expect` other than `100-continue` (RFC 9110 §10.1.1).
    #[error("expectation cannot be met")]
    ExpectationFailed,
    /// No whole head within the client head timeout.
    #[error("no complete request head in time")]
    ClientHeadTimeout,
    /// No whole body within `respondingTimeouts.readTimeout`, or none of it for the idle time.
    #[error("no complete request body in time")]
    ClientBodyTimeout,
    /// The client took nothing of its response for the stall timeout; it is cut.
    #[error("client took nothing of the response for too long")]
    ClientStalled,
    /// The client sent a malformed body, or closed in its middle.
    #[error("request body: {0}")]
    ClientBody(&'static str),
    /// Over HTTP/2 it sent more of something than a client with good intentions does; the connection is ended.
    #[error("flood of HTTP/2: {0}")]
    Http2Flood(&'static str),
    /// A TLS handshake that fails by what the client sent, or did not send.
    #[error("TLS handshake failed: {0}")]
    Handshake(&'static str),
    /// The client went away before its answer.
    #[error("client closed the connection")]
    ClientGone,
    /// The host asked for has other TLS options than the name in the handshake (RFC 9110 §15.5.20).
    #[error("host has other TLS options than the name in the handshake")]
    Misdirected,
    /// A body larger than a limit the operator set.
    #[error("request body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit.
        limit: u64,
    },
    // --- policy -----------------------------------------------------------------------------
    /// No router matches.
    #[error("no router matches")]
    NoRoute,
    /// `rateLimit` refused.
    #[error("{0}: rate limit exceeded")]
    RateLimited(Limited),
    /// The limit on what goes out to a service has no turn for it in time.
    #[error("{service}: outbound limit exceeded")]
    OutboundLimited {
        /// The service.
        service: ServiceName,
        /// What the limit answers; 503 by default.
        status: StatusCode,
        /// Until there would be a turn.
        retry_after: Option<std::time::Duration>,
    },
    /// `inFlightReq` refused.
    #[error("{middleware}: {amount} requests are in flight already")]
    TooManyInFlight {
        /// The limit's name.
        middleware: MiddlewareName,
        /// Its amount.
        amount: u64,
    },
    /// `ipAllowList` refused.
    #[error("{middleware}: client address is not allowed")]
    AddressNotAllowed {
        /// The list's name.
        middleware: MiddlewareName,
        /// What the list answers; 403 by default.
        status: StatusCode,
    },
    /// `circuitBreaker` refused.
    #[error("{middleware}: circuit is open")]
    CircuitOpen {
        /// The breaker's name.
        middleware: MiddlewareName,
        /// What it answers; 503 by default.
        status: StatusCode,
        /// Until it may be worth another try.
        retry_after: Duration,
    },
    /// A path in which escapes or prefixes hide another path, refused whatever the options say.
    #[error("path is not acceptable: {0}")]
    BadPath(&'static str),
    /// As many requests wait for the service as may.
    #[error("{service}: no place, and its queue is full")]
    QueueFull {
        /// The service.
        service: ServiceName,
    },
    /// It waited for a place at the service for as long as it may.
    #[error("{service}: no place in time")]
    QueueTimeout {
        /// The service.
        service: ServiceName,
    },
    /// A limit of the proxy on connections or memory is reached.
    #[error("overloaded: {0}")]
    Overloaded(&'static str),
    // --- the pods ---------------------------------------------------------------------------
    /// No endpoint of the service may be used now.
    #[error("{service}: no endpoint is available")]
    NoEndpoint {
        /// The service.
        service: ServiceName,
    },
    /// The endpoint's name or address could not be connected to.
    #[error("{endpoint}: connect failed: {cause}")]
    Connect {
        /// Where to.
        endpoint: EndpointText,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
    /// No connection within `dialTimeout`.
    #[error("{endpoint}: no connection in time")]
    ConnectTimeout {
        /// Where to.
        endpoint: EndpointText,
    },
    /// The TLS handshake with the endpoint failed.
    #[error("{endpoint}: {reason}")]
    UpstreamTls {
        /// Where to.
        endpoint: EndpointText,
        /// Who has to mend what.
        reason: String,
    },
    /// A WebSocket, which `h2c://` servers cannot be asked for.
    #[error(
        "{endpoint}: a WebSocket needs HTTP/1.1, and the server's url says h2c; write http:// or https://"
    )]
    NoWebSocket {
        /// Where to.
        endpoint: EndpointText,
    },
    /// The connection ended before a whole response head.
    #[error("{endpoint}: connection ended before a response: {cause}")]
    UpstreamClosed {
        /// Which.
        endpoint: EndpointText,
        /// What the system said; `UnexpectedEof` for a plain close.
        #[source]
        cause: io::Error,
    },
    /// No response head within `responseHeaderTimeout`.
    #[error("{endpoint}: no response head in time")]
    ResponseHeaderTimeout {
        /// Which.
        endpoint: EndpointText,
    },
    /// A response head that breaks RFC 9112.
    #[error("{endpoint}: bad response: {what}")]
    BadResponse {
        /// Which.
        endpoint: EndpointText,
        /// In which way.
        what: &'static str,
    },
    /// The response body broke off or was malformed; the client's connection is cut.
    #[error("{endpoint}: response body: {what}")]
    UpstreamBody {
        /// Which.
        endpoint: EndpointText,
        /// In which way.
        what: &'static str,
    },
    /// No byte of a body or tunnel either way for the idle time.
    #[error("{endpoint}: nothing moved for the idle time")]
    IdleTimeout {
        /// Which.
        endpoint: EndpointText,
    },
    /// No response head within the time of one try.
    #[error("{endpoint}: the try took longer than its limit")]
    AttemptTimeout {
        /// Which.
        endpoint: EndpointText,
    },
    /// The client would wait no longer, by its own word.
    #[error("exchange took longer than the client would wait")]
    ClientDeadline,
    /// The whole exchange took longer than its limit.
    #[error("exchange took longer than its limit")]
    ExchangeTimeout,
    /// It was still under way when the time for that was over: at a shutdown, or when its entry point went away.
    #[error("cut: no time was left for it")]
    Cut,
    // --- us -----------------------------------------------------------------------------------
    /// A bug or a missing resource of the proxy.
    #[error("internal error: {0}")]
    Internal(Cow<'static, str>),
}

/// An endpoint as errors and logs name it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum EndpointText {
    /// A resolved address.
    Addr(SocketAddr),
    /// `host:port` as configured.
    Name(std::sync::Arc<str>),
}

impl std::fmt::Display for EndpointText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The phrase of a status, in Traefik's words where those of the `http` crate differ.
pub fn reason(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::NON_AUTHORITATIVE_INFORMATION => Some("Non-Authoritative Information"),
        StatusCode::PAYLOAD_TOO_LARGE => Some("Request Entity Too Large"),
        StatusCode::RANGE_NOT_SATISFIABLE => Some("Requested Range Not Satisfiable"),
        other => other.canonical_reason(),
    }
}

impl ProxyError {
    /// What the client gets. No `_` arm: a new variant does not compile until it has a status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::ClientBody(_) | Self::BadPath(_) | Self::Handshake(_) => {
                StatusCode::BAD_REQUEST
            }
            Self::HeadTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::UnknownTransferCoding | Self::MethodNotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::VersionNotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::ClientHeadTimeout | Self::ClientBodyTimeout | Self::ClientStalled => {
                StatusCode::REQUEST_TIMEOUT
            }
            // nginx's number for it; it is only ever logged.
            Self::ClientGone => StatusCode::from_u16(499).expect("a number between 100 and 999"),
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::RateLimited(limited) => limited.answer.status,
            Self::TooManyInFlight { .. } | Self::Http2Flood(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::AddressNotAllowed { status, .. }
            | Self::OutboundLimited { status, .. }
            | Self::CircuitOpen { status, .. } => *status,
            Self::Overloaded(_)
            | Self::QueueFull { .. }
            | Self::QueueTimeout { .. }
            | Self::Cut
            | Self::NoEndpoint { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Connect { .. }
            | Self::UpstreamTls { .. }
            | Self::NoWebSocket { .. }
            | Self::UpstreamClosed { .. }
            | Self::BadResponse { .. }
            | Self::UpstreamBody { .. } => StatusCode::BAD_GATEWAY,
            Self::ConnectTimeout { .. }
            | Self::ResponseHeaderTimeout { .. }
            | Self::IdleTimeout { .. }
            | Self::AttemptTimeout { .. }
            | Self::ClientDeadline
            | Self::ExchangeTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Who has to mend it.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge { .. }
            | Self::UnknownTransferCoding
            | Self::MethodNotImplemented
            | Self::VersionNotSupported
            | Self::ExpectationFailed
            | Self::ClientHeadTimeout
            | Self::ClientBodyTimeout
            | Self::ClientStalled
            | Self::ClientBody(_)
            | Self::ClientGone
            | Self::Http2Flood(_)
            | Self::Handshake(_)
            | Self::BodyTooLarge { .. }
            | Self::BadPath(_)
            | Self::Misdirected
            | Self::NoRoute => Fault::Client,
            Self::RateLimited(_)
            | Self::TooManyInFlight { .. }
            | Self::AddressNotAllowed { .. }
            | Self::QueueFull { .. }
            | Self::QueueTimeout { .. }
            | Self::CircuitOpen { .. }
            | Self::OutboundLimited { .. }
            | Self::Cut
            | Self::Overloaded(_) => Fault::Policy,
            Self::NoEndpoint { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::UpstreamTls { .. }
            | Self::NoWebSocket { .. }
            | Self::UpstreamClosed { .. }
            | Self::ResponseHeaderTimeout { .. }
            | Self::BadResponse { .. }
            | Self::UpstreamBody { .. }
            | Self::IdleTimeout { .. }
            | Self::AttemptTimeout { .. }
            | Self::ClientDeadline
            | Self::ExchangeTimeout => Fault::Upstream,
            Self::Internal(_) => Fault::Proxy,
        }
    }

    /// Whether the client's connection ends with the answer, because the next byte on it may be anything.
    pub fn closes(&self) -> bool {
        match self {
            Self::BadRequest(_)
            | Self::HeadTooLarge { .. }
            | Self::UnknownTransferCoding
            | Self::MethodNotImplemented
            | Self::VersionNotSupported
            | Self::ExpectationFailed
            | Self::ClientHeadTimeout
            | Self::ClientBodyTimeout
            | Self::ClientStalled
            | Self::ClientBody(_)
            | Self::ClientGone
            | Self::Http2Flood(_)
            | Self::Handshake(_)
            | Self::Cut
            | Self::BodyTooLarge { .. }
            | Self::BadPath(_) => true,
            Self::NoRoute
            | Self::Misdirected
            | Self::UpstreamTls { .. }
            | Self::NoWebSocket { .. }
            | Self::RateLimited(_)
            | Self::TooManyInFlight { .. }
            | Self::AddressNotAllowed { .. }
            | Self::OutboundLimited { .. }
            | Self::Overloaded(_)
            | Self::QueueFull { .. }
            | Self::QueueTimeout { .. }
            | Self::CircuitOpen { .. }
            | Self::NoEndpoint { .. }
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::UpstreamClosed { .. }
            | Self::ResponseHeaderTimeout { .. }
            | Self::BadResponse { .. }
            | Self::UpstreamBody { .. }
            | Self::IdleTimeout { .. }
            | Self::AttemptTimeout { .. }
            | Self::ClientDeadline
            | Self::ExchangeTimeout
            | Self::Internal(_) => false,
        }
    }

    /// The word for access log and metrics; a closed set.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::HeadTooLarge { .. } => "head_too_large",
            Self::UnknownTransferCoding => "unknown_transfer_coding",
            Self::MethodNotImplemented => "method_not_implemented",
            Self::VersionNotSupported => "version_not_supported",
            Self::ExpectationFailed => "expectation_failed",
            Self::ClientHeadTimeout => "client_head_timeout",
            Self::ClientBodyTimeout => "client_body_timeout",
            Self::ClientStalled => "client_stalled",
            Self::ClientBody(_) => "client_body",
            Self::ClientGone => "client_gone",
            Self::Http2Flood(_) => "http2_flood",
            Self::Handshake(_) => "tls_handshake",
            Self::Cut => "cut",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::NoRoute => "no_route",
            Self::Misdirected => "misdirected",
            Self::UpstreamTls { .. } => "upstream_tls",
            Self::NoWebSocket { .. } => "no_websocket",
            Self::RateLimited(_) => "rate_limited",
            Self::OutboundLimited { .. } => "outbound_limited",
            Self::TooManyInFlight { .. } => "too_many_in_flight",
            Self::AddressNotAllowed { .. } => "address_not_allowed",
            Self::BadPath(_) => "bad_path",
            Self::Overloaded(_) => "overloaded",
            Self::CircuitOpen { .. } => "circuit_open",
            Self::QueueFull { .. } => "queue_full",
            Self::QueueTimeout { .. } => "queue_timeout",
            Self::NoEndpoint { .. } => "no_endpoint",
            Self::Connect { .. } => "connect_failed",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::UpstreamClosed { .. } => "upstream_closed",
            Self::ResponseHeaderTimeout { .. } => "response_header_timeout",
            Self::BadResponse { .. } => "bad_response",
            Self::UpstreamBody { .. } => "upstream_body",
            Self::IdleTimeout { .. } => "idle_timeout",
            Self::AttemptTimeout { .. } => "attempt_timeout",
            Self::ClientDeadline => "client_deadline",
            Self::ExchangeTimeout => "exchange_timeout",
            Self::Internal(_) => "internal",
        }
    }

    /// The body, as Traefik has it: mostly the bare reason phrase.
    pub fn body(&self) -> Cow<'static, str> {
        match self {
            Self::NoRoute => "404 page not found\n".into(),
            Self::Misdirected => "Misdirected Request\n".into(),
            Self::NoEndpoint { .. } => "no available server\n".into(),
            Self::TooManyInFlight { amount, .. } => format!("max connections reached: {amount}").into(),
            Self::BadPath(_) => "".into(),
            other => reason(other.status()).unwrap_or("").into(),
        }
    }
}
