//! What is known of an exchange when it has ended, held in clones that cost next to nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, HeaderValue, Method, Version};
use smallvec::SmallVec;

use crate::common::names::{EntryPointName, RouterName, ServiceName};
use crate::http::error::{EndpointText, Fault, ProxyError};
use crate::http::text::Text;

/// Why an exchange ended as it did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// The whole response, whatever its status, went out.
    Completed,
    /// The proxy answered by itself or cut the exchange.
    Failed {
        /// [`ProxyError::code`].
        code: &'static str,
        /// [`ProxyError::fault`].
        fault: Fault,
    },
}

impl From<&ProxyError> for End {
    fn from(error: &ProxyError) -> Self {
        Self::Failed { code: error.code(), fault: error.fault() }
    }
}

/// What the endpoint sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct OriginPart {
    /// Its status.
    pub status: u16,
    /// From the start of the last attempt to the end of the response.
    pub duration: Duration,
    /// Bytes of its body.
    pub bytes: u64,
}

/// What a TLS connection agreed on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TlsPart {
    /// `1.3`.
    pub version: &'static str,
    /// As Go names it.
    pub cipher: Box<str>,
    /// Of the certificate that the client showed.
    pub client_subject: Option<Box<str>>,
}

/// Header fields picked for the log by [`AccessLog::pick`](super::AccessLog::pick); secrets are
/// replaced already.
pub type PickedFields = SmallVec<[(HeaderName, HeaderValue); 2]>;

/// One exchange.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When the first byte of the head came.
    pub start: SystemTime,
    /// Until the last byte of the response went.
    pub duration: Duration,
    /// Where it came in.
    pub entry_point: EntryPointName,
    /// The router that matched.
    pub router: Option<RouterName>,
    /// Its service.
    pub service: Option<ServiceName>,
    /// The endpoint that answered, as configured: `http://10.0.0.1:8080`.
    pub service_url: Option<Arc<str>>,
    /// The address that was connected to.
    pub service_addr: Option<EndpointText>,
    /// The peer, after PROXY protocol.
    pub client: SocketAddr,
    /// The value of `X-Forwarded-For` that the client sent, if any.
    pub forwarded_for: Option<Text>,
    /// The name a client authenticated with.
    pub user: Option<Arc<str>>,
    /// As the client wrote it.
    pub method: Method,
    /// Host and port as the client wrote them.
    pub authority: Text,
    /// As the client wrote it.
    pub path: Text,
    /// As the client wrote it, without `?`.
    pub query: Option<Text>,
    /// Of the client's connection.
    pub version: Version,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// What the client's connection agreed on, if it is TLS.
    pub tls: Option<Arc<TlsPart>>,
    /// Bytes of the request's body.
    pub request_bytes: u64,
    /// What the endpoint sent; `None` if no response head came.
    pub origin: Option<OriginPart>,
    /// What the client got.
    pub status: u16,
    /// Bytes of the body that the client got.
    pub response_bytes: u64,
    /// How many attempts were made; 0 if none was.
    pub attempts: u32,
    /// The endpoints tried, in order.
    pub tried: SmallVec<[EndpointText; 2]>,
    /// Why it ended.
    pub end: End,
    /// The limit that refused it, and which of its windows.
    pub limit: Option<Arc<str>>,
    /// Of the configuration it ran under.
    pub generation: u64,
    /// Fields of the request.
    pub request_fields: PickedFields,
    /// Fields of the endpoint's response.
    pub origin_fields: PickedFields,
    /// Fields of the response that the client got.
    pub downstream_fields: PickedFields,
}

impl AccessRecord {
    /// Attempts beyond the first.
    pub fn retries(&self) -> u32 {
        self.attempts.saturating_sub(1)
    }
}
