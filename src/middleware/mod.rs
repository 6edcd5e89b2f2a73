//! THE LIST of middlewares. One file each: config, compile, behaviour, tests.
//!
//! Two kinds of link. An **edit** link looks at heads only and runs inline, in the order of the
//! chain on the way in and in reverse on the way out. An **around** link (`retry`) gets the request
//! and the rest of the chain; `proxy` runs those.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::http::head::Response;

/// What an edit link says about a request.
#[derive(Debug)]
pub enum Flow {
    /// Goes on to the next link.
    Next,
    /// Goes on after a pause (`rateLimit` delays instead of refusing, within its bound).
    NextAfter(Duration),
    /// Ends here with this answer, which is no refusal (a CORS preflight).
    Answer(Box<Response>),
}

/// What links may know of the exchange beside the heads, and what they leave there for later.
#[derive(Debug)]
pub struct LinkContext {
    /// The client's address, after PROXY protocol; IPv4 never in its IPv6-mapped form.
    pub client: SocketAddr,
    /// Whether the client's connection is TLS.
    pub tls: bool,
    /// When the head was complete.
    pub now: Instant,
    /// The request's `Origin`, left by a `headers` link that adds CORS fields to the response.
    pub origin: Option<HeaderValue>,
}

/// Stand-in until the list of middlewares is merged.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum MiddlewareConfig {
    /// Puts a prefix before the path.
    AddPrefix(AddPrefixConfig),
    /// Limits the rate of requests.
    RateLimit(RateLimitConfig),
}

/// Stand-in.
#[derive(Clone, Debug, serde::Deserialize, schemars::JsonSchema, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AddPrefixConfig {
    /// The prefix. Required.
    pub prefix: String,
}

/// Stand-in.
#[derive(Clone, Debug, Default, serde::Deserialize, schemars::JsonSchema, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct RateLimitConfig {
    /// Requests admitted per period and key.
    pub average: u32,
    /// Length of the period.
    pub period: crate::common::units::HumanDuration,
}
