//! `sourceCriterion`: what a limit counts by.

use std::num::{NonZeroU8, NonZeroUsize};

use http::HeaderName;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::client_ip::{Found, IpSet, IpStrategy, parse_range};
use crate::http::head::RequestHead;
use crate::limit::{KeyBytes, LimitKey, Part};

use super::LinkContext;

/// How to find the client's address. Default: the peer's, after PROXY protocol.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct IpStrategyConfig {
    /// Take the n-th entry of `X-Forwarded-For` from the right, as the client sent it. 0: off.
    pub depth: Option<i64>,
    /// Take the first entry of `X-Forwarded-For` from the right that is in none of these addresses and
    /// ranges. Not looked at with `depth`.
    #[serde(rename = "excludedIPs")]
    pub excluded_ips: Vec<String>,
    /// Count IPv6 clients by a prefix of so many bits, 1 to 128. Default: by the whole address.
    pub ipv6_subnet: Option<i64>,
}

impl IpStrategyConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(&self, at: &ConfigPath, problems: &mut Problems) -> Option<IpStrategy> {
        let before = problems.len();
        let depth = usize::try_from(self.depth.unwrap_or(0)).unwrap_or_else(|_| {
            // From Traefik.
            let problem = Problem::warning(&at.key("depth"), "depth is negative, which counts as 0: off");
            problems.push(problem.hint("1 is the last entry"));
            0
        });
        let excluded = compile_ranges(&self.excluded_ips, &at.key("excludedIPs"), problems);
        let prefix = self.ipv6_subnet.and_then(|bits| {
            let prefix = u8::try_from(bits).ok().and_then(NonZeroU8::new).filter(|bits| bits.get() <= 128);
            if prefix.is_none() {
                let problem = Problem::error(&at.key("ipv6Subnet"), format!("bad prefix length {bits}"));
                problems.push(problem.hint("it must be 1 to 128; 64 is usually one customer"));
            }
            prefix
        });
        if problems.errors_since(before) {
            return None;
        }
        let strategy = match NonZeroUsize::new(depth) {
            Some(depth) => IpStrategy::depth(depth),
            None if !self.excluded_ips.is_empty() => IpStrategy::excluding(excluded),
            None => IpStrategy::peer(),
        };
        Some(strategy.ipv6_prefix(prefix))
    }
}

/// Parses a list of addresses and ranges; adds one problem per bad one.
pub fn compile_ranges(texts: &[String], at: &ConfigPath, problems: &mut Problems) -> IpSet {
    let mut ranges = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match parse_range(text) {
            Ok(range) => ranges.push(range),
            Err(message) => problems.push(Problem::error(&at.index(index), message)),
        }
    }
    IpSet::new(ranges)
}

/// What a limit counts by: exactly one of these.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SourceCriterionConfig {
    /// The client's address.
    pub ip_strategy: Option<IpStrategyConfig>,
    /// The value of this request header. Requests without it count together.
    pub request_header_name: Option<String>,
    /// The host that is asked for.
    pub request_host: Option<bool>,
}

impl SourceCriterionConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`. `default` is for when nothing is chosen.
    pub fn compile(&self, at: &ConfigPath, default: Source, problems: &mut Problems) -> Option<Source> {
        let header = self.request_header_name.as_deref().filter(|name| !name.is_empty());
        let host = self.request_host.unwrap_or(false);
        let chosen =
            usize::from(self.ip_strategy.is_some()) + usize::from(header.is_some()) + usize::from(host);
        if chosen > 1 {
            let problem = Problem::error(at, "more than one source to count by");
            problems.push(problem.hint("keep one of ipStrategy, requestHeaderName, requestHost"));
            return None;
        }
        if let Some(strategy) = &self.ip_strategy {
            return strategy.compile(&at.key("ipStrategy"), problems).map(Source::Client);
        }
        if let Some(name) = header {
            if name.eq_ignore_ascii_case("host") {
                let problem = Problem::error(&at.key("requestHeaderName"), "Host is not among the headers");
                problems.push(problem.hint("use requestHost: true"));
                return None;
            }
            return match HeaderName::try_from(name) {
                Ok(name) => Some(Source::Header(name)),
                Err(_) => {
                    problems.error(&at.key("requestHeaderName"), format!("bad header name {name:?}"));
                    None
                }
            };
        }
        Some(if host { Source::Host } else { default })
    }
}

/// Finds what a request counts as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// The client's address.
    Client(IpStrategy),
    /// A header's value.
    Header(HeaderName),
    /// Host and port as the client wrote them, in lower case.
    Host,
}

impl Source {
    /// The key of a request. Cost: no allocation, but for a host in capitals.
    pub fn key(&self, context: &LinkContext, head: &RequestHead) -> LimitKey {
        let mut key = KeyBytes::new();
        self.add(context, head, &mut key);
        LimitKey::of_bytes(&key)
    }

    /// Adds it to a key of several parts.
    pub fn add(&self, context: &LinkContext, head: &RequestHead, key: &mut KeyBytes) {
        match self {
            Self::Client(strategy) => match strategy.find(context.client.ip(), &head.headers) {
                Found::Addr(addr) => key.push(Part::Addr(addr)),
                Found::Text(text) => key.push(Part::Bytes(text.as_bytes())),
                Found::Nothing => key.push(Part::Bytes(b"")),
            },
            Self::Header(name) => {
                key.push(Part::Bytes(head.headers.get(name).map_or(&b""[..], |value| value.as_bytes())));
            }
            Self::Host => {
                let host = head.authority.as_str();
                if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    key.push(Part::Bytes(host.to_ascii_lowercase().as_bytes()));
                } else {
                    key.push(Part::Bytes(host.as_bytes()));
                }
            }
        }
    }
}
