//! THE LIST of middlewares. One file each: config, compile, behaviour, tests.
//!
//! Two kinds of link. An **edit** link looks at heads only and runs inline, in the order of the
//! chain on the way in and in reverse on the way out. An **around** link (`retry`) gets the request
//! and the rest of the chain; `proxy` runs those.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use schemars::JsonSchema;
use serde::de::{Deserialize, Deserializer, IgnoredAny};
use smallvec::SmallVec;

use crate::common::names::{MiddlewareName, RouterName};
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::error::ProxyError;
use crate::http::head::{RequestHead, Response, ResponseHead};
use crate::limit::{InFlightGuard, Stores};
use crate::matcher::PathMatching;

mod add_prefix;
mod bandwidth;
mod breaker_expression;
mod chain;
mod circuit_breaker;
mod headers;
mod in_flight_req;
mod ip_allow_list;
mod rate_limit;
mod redirect_scheme;
mod redis;
mod retry;
mod source;
mod strip_prefix;
#[cfg(test)]
mod testing;

pub use self::redis::{FailurePolicy, RedisConfig, RedisMode, RedisTlsConfig, SentinelConfig};
pub use add_prefix::{AddPrefix, AddPrefixConfig};
pub use bandwidth::{Bandwidth, BandwidthConfig, BandwidthCounts, Lane};
pub use chain::{ChainConfig, MAX_LINKS, check, compile_chain, join};
pub use circuit_breaker::{BreakerReport, BreakerState, CircuitBreaker, CircuitBreakerConfig, Passed, Phase};
pub use headers::{Headers, HeadersConfig};
pub use in_flight_req::{InFlightReq, InFlightReqConfig};
pub use ip_allow_list::{IpAllowList, IpAllowListConfig};
pub use rate_limit::{Admission, BucketScope, LimitNote, Question, RateLimit, RateLimitConfig, TakenFrom};
pub use redirect_scheme::{Lasts, RedirectScheme, RedirectSchemeConfig};
pub use retry::{Retry, RetryConfig, StatusText};
pub use source::{IpStrategyConfig, Source, SourceCriterionConfig, compile_ranges};
pub use strip_prefix::{StripPrefix, StripPrefixConfig};

/// An entry of `http.middlewares`: exactly one type, with its options.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, JsonSchema, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum MiddlewareConfig {
    /// Puts a prefix in front of the path.
    AddPrefix(AddPrefixConfig),
    /// Takes a prefix off the path.
    StripPrefix(StripPrefixConfig),
    /// Other middlewares, in this order.
    Chain(ChainConfig),
    /// Lets only listed addresses through.
    IpAllowList(IpAllowListConfig),
    /// The old name of `ipAllowList`.
    IpWhiteList(IpAllowListConfig),
    /// Sets and removes header fields, answers CORS preflights, adds security fields.
    Headers(Box<HeadersConfig>),
    /// So many requests in so much time.
    RateLimit(Box<RateLimitConfig>),
    /// So many requests at once.
    InFlightReq(InFlightReqConfig),
    /// So many bytes a second of each stream. Not one of Traefik's.
    Bandwidth(BandwidthConfig),
    /// Sends a request to the same address with another scheme.
    RedirectScheme(RedirectSchemeConfig),
    /// Sends a request again when it failed.
    Retry(RetryConfig),
    /// Refuses requests for a while when too many of them went wrong.
    CircuitBreaker(CircuitBreakerConfig),
    /// Not supported yet.
    StripPrefixRegex(NotYet),
    /// Not supported yet.
    ReplacePath(NotYet),
    /// Not supported yet.
    ReplacePathRegex(NotYet),
    /// Not supported yet.
    EncodedCharacters(NotYet),
    /// Not supported yet.
    Errors(NotYet),
    /// Not supported yet.
    RedirectRegex(NotYet),
    /// Not supported yet.
    BasicAuth(NotYet),
    /// Not supported yet.
    DigestAuth(NotYet),
    /// Not supported yet.
    ForwardAuth(NotYet),
    /// Not supported yet.
    Buffering(NotYet),
    /// Not supported yet.
    Compress(NotYet),
    /// Not supported yet.
    #[serde(rename = "passTLSClientCert")]
    PassTlsClientCert(NotYet),
    /// Not supported yet.
    ContentType(NotYet),
    /// Not supported yet.
    GrpcWeb(NotYet),
    /// Not supported yet.
    Plugin(NotYet),
}

/// Options of a middleware that is not built yet: anything.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NotYet;

impl<'de> Deserialize<'de> for NotYet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Self)
    }
}

impl serde::Serialize for NotYet {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde::ser::SerializeMap::end(serializer.serialize_map(Some(0))?)
    }
}

impl JsonSchema for NotYet {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "NotYet".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "description": "Not supported yet." })
    }
}

impl MiddlewareConfig {
    /// The key under the middleware's name, as it is usually spelled.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AddPrefix(_) => "addPrefix",
            Self::StripPrefix(_) => "stripPrefix",
            Self::Chain(_) => "chain",
            Self::IpAllowList(_) => "ipAllowList",
            Self::IpWhiteList(_) => "ipWhiteList",
            Self::Headers(_) => "headers",
            Self::RateLimit(_) => "rateLimit",
            Self::InFlightReq(_) => "inFlightReq",
            Self::Bandwidth(_) => "bandwidth",
            Self::Retry(_) => "retry",
            Self::StripPrefixRegex(_) => "stripPrefixRegex",
            Self::ReplacePath(_) => "replacePath",
            Self::ReplacePathRegex(_) => "replacePathRegex",
            Self::EncodedCharacters(_) => "encodedCharacters",
            Self::Errors(_) => "errors",
            Self::RedirectRegex(_) => "redirectRegex",
            Self::RedirectScheme(_) => "redirectScheme",
            Self::BasicAuth(_) => "basicAuth",
            Self::DigestAuth(_) => "digestAuth",
            Self::ForwardAuth(_) => "forwardAuth",
            Self::Buffering(_) => "buffering",
            Self::CircuitBreaker(_) => "circuitBreaker",
            Self::Compress(_) => "compress",
            Self::PassTlsClientCert(_) => "passTLSClientCert",
            Self::ContentType(_) => "contentType",
            Self::GrpcWeb(_) => "grpcWeb",
            Self::Plugin(_) => "plugin",
        }
    }

    /// Compiles one middleware. `at` is the path of its type: `http.middlewares.NAME.TYPE`.
    ///
    /// `None` after adding a problem; also for `rateLimit` with `average: 0`, which is off, and for
    /// `chain`, which [`compile_chain`] flattens.
    fn compile(&self, name: &MiddlewareName, at: &ConfigPath, cx: &mut CompileContext<'_>) -> Option<Link> {
        match self {
            Self::AddPrefix(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::AddPrefix(link)))
            }
            Self::StripPrefix(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::StripPrefix(link)))
            }
            Self::IpAllowList(config) | Self::IpWhiteList(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::IpAllowList(Box::new(link))))
            }
            Self::Headers(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::Headers(Box::new(link))))
            }
            Self::RateLimit(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::RateLimit(Box::new(link))))
            }
            Self::InFlightReq(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::InFlightReq(Box::new(link))))
            }
            Self::Bandwidth(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::Bandwidth(Box::new(link))))
            }
            Self::Retry(config) => {
                config.compile(name, at, cx).map(|link| Link::Around(Around::Retry(Arc::new(link))))
            }
            Self::CircuitBreaker(config) => {
                config.compile(name, at, cx).map(|link| Link::Around(Around::CircuitBreaker(Arc::new(link))))
            }
            Self::RedirectScheme(config) => {
                config.compile(name, at, cx).map(|link| Link::Edit(Edit::RedirectScheme(link)))
            }
            Self::Chain(_) => None,
            Self::StripPrefixRegex(_)
            | Self::ReplacePath(_)
            | Self::ReplacePathRegex(_)
            | Self::EncodedCharacters(_)
            | Self::Errors(_)
            | Self::RedirectRegex(_)
            | Self::BasicAuth(_)
            | Self::DigestAuth(_)
            | Self::ForwardAuth(_)
            | Self::Buffering(_)
            | Self::Compress(_)
            | Self::PassTlsClientCert(_)
            | Self::ContentType(_)
            | Self::GrpcWeb(_)
            | Self::Plugin(_) => {
                cx.problems.push(Problem::error(at, format!("{} is not supported yet", self.kind())));
                None
            }
        }
    }
}

/// What compiling a router's middlewares reads and writes.
#[derive(Debug)]
pub struct CompileContext<'a> {
    /// Where problems go.
    pub problems: &'a mut Problems,
    /// The new snapshot's stores, which know those of the running one.
    pub stores: &'a mut Stores,
    /// Whose chain it is.
    pub router: &'a RouterName,
    /// How `stripPrefix` reads its prefixes; Traefik's way is [`PathMatching::Prefix`].
    pub path_matching: PathMatching,
}

/// One compiled middleware of a chain.
#[derive(Clone, Debug)]
pub enum Link {
    /// Looks at heads only; runs inline.
    Edit(Edit),
    /// Gets the request and the rest of the chain.
    Around(Around),
}

impl Link {
    /// Whether it counts requests, so that to pass it twice would count one as two.
    pub fn counts(&self) -> bool {
        matches!(self, Self::Edit(Edit::RateLimit(_) | Edit::InFlightReq(_)))
    }
}

/// A link that looks at heads only.
#[derive(Clone, Debug)]
pub enum Edit {
    /// `headers`.
    Headers(Box<Headers>),
    /// `stripPrefix`.
    StripPrefix(StripPrefix),
    /// `addPrefix`.
    AddPrefix(AddPrefix),
    /// `ipAllowList`.
    IpAllowList(Box<IpAllowList>),
    /// `inFlightReq`.
    InFlightReq(Box<InFlightReq>),
    /// `rateLimit`.
    RateLimit(Box<RateLimit>),
    /// `bandwidth`. Bodies are not a link's to see: `proxy` holds them to their rate.
    Bandwidth(Box<Bandwidth>),
    /// `redirectScheme`.
    RedirectScheme(RedirectScheme),
}

impl Edit {
    /// Looks at a request on its way in.
    ///
    /// # Errors
    /// The refusal, when it does not let the request through.
    pub fn on_request(&self, context: &mut LinkContext, head: &mut RequestHead) -> Result<Flow, ProxyError> {
        match self {
            Self::Headers(link) => Ok(link.on_request(context, head)),
            Self::StripPrefix(link) => link.on_request(head),
            Self::AddPrefix(link) => Ok(link.on_request(head)),
            Self::IpAllowList(link) => link.on_request(context, head),
            Self::InFlightReq(link) => link.on_request(context, head),
            Self::RateLimit(link) => link.on_request(context, head),
            Self::Bandwidth(_) => Ok(Flow::Next),
            Self::RedirectScheme(link) => Ok(link.on_request(context, head)),
        }
    }

    /// Looks at a response on its way out, be it an upstream's or the proxy's own.
    ///
    /// To be called for the links whose [`Edit::on_request`] let the request through, in reverse.
    pub fn on_response(&self, context: &LinkContext, head: &mut ResponseHead) {
        match self {
            Self::Headers(link) => link.on_response(context, head),
            Self::RateLimit(link) => link.on_response(context, head),
            Self::StripPrefix(_)
            | Self::AddPrefix(_)
            | Self::IpAllowList(_)
            | Self::InFlightReq(_)
            | Self::Bandwidth(_)
            | Self::RedirectScheme(_) => {}
        }
    }
}

/// A link that gets the request and the rest of the chain.
#[derive(Clone, Debug)]
pub enum Around {
    /// `retry`.
    Retry(Arc<Retry>),
    /// `circuitBreaker`.
    CircuitBreaker(Arc<CircuitBreaker>),
}

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
    /// Set by a `headers` link that removes `X-Forwarded-For`: the proxy then sends none at all.
    pub drop_forwarded_for: bool,
    /// What `inFlightReq` counts, until the exchange is over and this is dropped.
    pub held: SmallVec<[InFlightGuard; 1]>,
    /// What `rateLimit` keeps until the answer is there; only where it needs to.
    pub limits: Vec<LimitNote>,
    /// Which `headers` links, by their number in the chain, saw a request that was secure by their
    /// own `sslProxyHeaders`.
    pub(crate) secure_for: u64,
}

impl LinkContext {
    /// The context of a new exchange.
    pub fn new(client: SocketAddr, tls: bool, now: Instant) -> Self {
        Self {
            client,
            tls,
            now,
            origin: None,
            drop_forwarded_for: false,
            held: SmallVec::new(),
            limits: Vec::new(),
            secure_for: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{context, definitions, edit, request};

    const NAMES: [&str; 26] = [
        "addPrefix",
        "basicAuth",
        "buffering",
        "chain",
        "circuitBreaker",
        "compress",
        "contentType",
        "digestAuth",
        "encodedCharacters",
        "errors",
        "forwardAuth",
        "grpcWeb",
        "headers",
        "inFlightReq",
        "ipAllowList",
        "ipWhiteList",
        "passTLSClientCert",
        "plugin",
        "rateLimit",
        "redirectRegex",
        "redirectScheme",
        "replacePath",
        "replacePathRegex",
        "retry",
        "stripPrefix",
        "stripPrefixRegex",
    ];

    #[test]
    fn every_middleware_of_traefik_is_known_by_its_name() {
        for name in NAMES {
            let defs = definitions(&format!("{{m: {{{name}: {{}}}}}}"));
            assert_eq!(defs["m"].kind(), name);
        }
        let schema = schemars::schema_for!(MiddlewareConfig).to_value().to_string();
        for name in NAMES {
            assert!(schema.contains(&format!("\"{name}\"")), "{name}");
        }
    }

    #[test]
    fn what_is_not_built_yet_takes_any_options() {
        for options in ["{}", "{a: {b: [1, c]}}", "null", "[1]"] {
            assert_eq!(
                definitions(&format!("{{m: {{plugin: {options}}}}}"))["m"],
                MiddlewareConfig::Plugin(NotYet)
            );
        }
    }

    #[test]
    fn an_unknown_option_or_middleware_is_refused() {
        for text in ["{m: {retry: {atempts: 3}}}", "{m: {rety: {attempts: 3}}}", "{m: {headers: {a: b}}}"] {
            assert!(
                serde_yaml::from_str::<std::collections::BTreeMap<String, MiddlewareConfig>>(text).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn a_later_link_sees_what_an_earlier_one_changed() {
        let links = [
            edit("stripPrefix", "{prefixes: [/api]}"),
            edit("addPrefix", "{prefix: /v1}"),
            edit("headers", "{customRequestHeaders: {X-Forwarded-Prefix: ''}}"),
        ];
        let mut head = request("/api/x", &[]);
        for link in &links {
            link.on_request(&mut context(), &mut head).expect("no refusal");
        }
        assert_eq!(head.path.as_str(), "/v1/x");
        assert!(!head.headers.contains_key("x-forwarded-prefix"));
    }
}
