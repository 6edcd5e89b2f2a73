//! What `rateLimit` counts by: any combination of what a request's head says.
//!
//! A claim is read from the token in `Authorization: Bearer` **without looking at its signature**: whoever
//! sends it may have made it up. Never: an allocation for addresses, fields, hosts and paths of usual length.

use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use http::HeaderName;
use http::header::{AUTHORIZATION, COOKIE};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::client_ip::{Found, IpStrategy};
use crate::http::head::RequestHead;
use crate::limit::{KeyBytes, Part};
use crate::middleware::source::{IpStrategyConfig, Source};
use crate::middleware::{CompileContext, LinkContext};

/// Parts of one key. More are a mistake.
const MAX_PARTS: usize = 8;

/// Bytes of a token that is looked into for a claim; larger ones count as having none.
const MAX_TOKEN: usize = 8 * 1024;

/// One part of a key: exactly one of these.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct KeyPartConfig {
    /// The client's address; `ipv6Subnet` makes it a prefix.
    pub ip_strategy: Option<IpStrategyConfig>,
    /// The value of this request header; empty for requests without it.
    pub request_header_name: Option<String>,
    /// The value of this cookie; empty for requests without it.
    pub cookie: Option<String>,
    /// This claim of the JWT in `Authorization: Bearer`, **unverified**: the signature is not looked at, and a
    /// client that makes up tokens makes up keys. Empty for requests without it.
    pub claim: Option<String>,
    /// The first so many segments of the path as it came; 0: the whole path.
    pub path_segments: Option<i64>,
    /// The host that is asked for.
    pub request_host: Option<bool>,
    /// The method.
    pub method: Option<bool>,
    /// The router, for `scope: middleware`.
    pub router: Option<bool>,
}

/// One part of a key, compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum KeyPart {
    /// Traefik's: address, field, host.
    Source(Source),
    /// A cookie's value.
    Cookie(Box<str>),
    /// A claim, unverified.
    Claim(Box<str>),
    /// Segments of the path; 0 for all of it.
    Path(usize),
    /// The method.
    Method,
    /// The router.
    Router(Box<str>),
}

impl KeyPartConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(&self, at: &ConfigPath, cx: &mut CompileContext<'_>) -> Option<KeyPart> {
        let on = |flag: Option<bool>| flag.unwrap_or(false);
        let mut found: Vec<Option<KeyPart>> = Vec::new();
        if let Some(strategy) = &self.ip_strategy {
            let strategy = strategy.compile(&at.key("ipStrategy"), cx.problems);
            found.push(strategy.map(|strategy| KeyPart::Source(Source::Client(strategy))));
        }
        if let Some(name) = &self.request_header_name {
            let name = header_name(name, &at.key("requestHeaderName"), cx.problems);
            found.push(name.map(|name| KeyPart::Source(Source::Header(name))));
        }
        for (key, name) in [("cookie", &self.cookie), ("claim", &self.claim)] {
            let Some(name) = name else { continue };
            if name.is_empty() {
                cx.problems.error(&at.key(key), format!("{key} needs a name"));
                found.push(None);
            } else if key == "cookie" {
                found.push(Some(KeyPart::Cookie(name.as_str().into())));
            } else {
                found.push(Some(KeyPart::Claim(name.as_str().into())));
            }
        }
        if let Some(segments) = self.path_segments {
            match usize::try_from(segments) {
                Ok(segments) => found.push(Some(KeyPart::Path(segments))),
                Err(_) => {
                    let problem =
                        Problem::error(&at.key("pathSegments"), "pathSegments must not be negative");
                    cx.problems.push(problem.hint("0 is the whole path"));
                    found.push(None);
                }
            }
        }
        if on(self.request_host) {
            found.push(Some(KeyPart::Source(Source::Host)));
        }
        if on(self.method) {
            found.push(Some(KeyPart::Method));
        }
        if on(self.router) {
            found.push(Some(KeyPart::Router(cx.router.as_str().into())));
        }
        match found.len() {
            1 => found.pop().flatten(),
            _ => {
                let problem = Problem::error(at, "a part of a key is exactly one thing");
                cx.problems.push(problem.hint(
                    "write one of ipStrategy, requestHeaderName, cookie, claim, pathSegments, requestHost, method, router to an item",
                ));
                None
            }
        }
    }
}

/// Compiles a list of parts; at least one.
pub fn compile_key(
    parts: &[KeyPartConfig],
    at: &ConfigPath,
    cx: &mut CompileContext<'_>,
) -> Option<Box<[KeyPart]>> {
    if parts.len() > MAX_PARTS {
        cx.problems.error(at, format!("more than {MAX_PARTS} parts of a key"));
        return None;
    }
    let compiled: Vec<_> =
        parts.iter().enumerate().map(|(index, part)| part.compile(&at.index(index), cx)).collect();
    compiled.into_iter().collect()
}

/// Parses the name of a header that a request may have.
pub fn header_name(name: &str, at: &ConfigPath, problems: &mut Problems) -> Option<HeaderName> {
    if name.eq_ignore_ascii_case("host") {
        problems.push(Problem::error(at, "Host is not among the headers").hint("use requestHost: true"));
        return None;
    }
    let parsed = HeaderName::try_from(name).ok();
    if parsed.is_none() {
        problems.error(at, format!("bad header name {name:?}"));
    }
    parsed
}

impl KeyPart {
    /// Whether it may hold what must not be shown: a key, a session.
    pub fn is_secret(&self) -> bool {
        match self {
            Self::Source(Source::Header(_)) | Self::Cookie(_) | Self::Claim(_) => true,
            Self::Source(Source::Client(_) | Source::Host)
            | Self::Path(_)
            | Self::Method
            | Self::Router(_) => false,
        }
    }

    /// Adds what a request has of it.
    pub fn add(&self, context: &LinkContext, head: &RequestHead, key: &mut KeyBytes) {
        match self {
            Self::Source(source) => source.add(context, head, key),
            Self::Cookie(name) => key.push(Part::Bytes(cookie(head, name).unwrap_or(b""))),
            Self::Claim(name) => {
                let value = claim(head, name).unwrap_or_default();
                key.push(Part::Bytes(value.as_bytes()));
            }
            Self::Path(segments) => {
                key.push(Part::Bytes(first_segments(head.path.as_str(), *segments).as_bytes()))
            }
            Self::Method => key.push(Part::Bytes(head.method.as_str().as_bytes())),
            Self::Router(name) => key.push(Part::Bytes(name.as_bytes())),
        }
    }

    /// What a request has of it, as text.
    pub fn text(&self, context: &LinkContext, head: &RequestHead) -> Option<String> {
        match self {
            Self::Source(Source::Header(name)) => {
                head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
            }
            Self::Source(Source::Client(strategy)) => address(strategy, context, head),
            Self::Source(Source::Host) => Some(head.authority.as_str().to_ascii_lowercase()),
            Self::Cookie(name) => {
                cookie(head, name).and_then(|value| std::str::from_utf8(value).ok()).map(str::to_owned)
            }
            Self::Claim(name) => claim(head, name),
            Self::Path(segments) => Some(first_segments(head.path.as_str(), *segments).to_owned()),
            Self::Method => Some(head.method.as_str().to_owned()),
            Self::Router(name) => Some(name.to_string()),
        }
    }
}

impl std::fmt::Display for KeyPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Source(Source::Client(_)) => f.write_str("client address"),
            Self::Source(Source::Header(name)) => write!(f, "header {name}"),
            Self::Source(Source::Host) => f.write_str("host"),
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Claim(name) => write!(f, "unverified claim {name}"),
            Self::Path(0) => f.write_str("path"),
            Self::Path(segments) => write!(f, "first {segments} segments of the path"),
            Self::Method => f.write_str("method"),
            Self::Router(name) => write!(f, "router {name}"),
        }
    }
}

fn address(strategy: &IpStrategy, context: &LinkContext, head: &RequestHead) -> Option<String> {
    match strategy.find(context.client.ip(), &head.headers) {
        Found::Addr(addr) => Some(addr.to_string()),
        Found::Text(text) => Some(text.to_owned()),
        Found::Nothing => None,
    }
}

/// The value of the first cookie of this name (RFC 6265 §5.4), without quotes.
fn cookie<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    head.headers.get_all(COOKIE).flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).find_map(
        |pair| {
            let pair = pair.trim_ascii();
            let value = pair.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            let inner = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
            Some(inner.unwrap_or(value))
        },
    )
}

/// A claim of the bearer token, as text. The signature is not looked at.
fn claim(head: &RequestHead, name: &str) -> Option<String> {
    let value = head.headers.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    if !scheme.eq_ignore_ascii_case(b"bearer ") || token.len() > MAX_TOKEN {
        return None;
    }
    let mut parts = token.trim_ascii().split(|byte| *byte == b'.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    let claims: serde_json::Value = serde_json::from_slice(&BASE64URL.decode(payload).ok()?).ok()?;
    match claims.get(name)? {
        serde_json::Value::String(text) => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// base64url without padding (RFC 7515 §2); senders that leave bits in the last character are borne with.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

fn first_segments(path: &str, segments: usize) -> &str {
    if segments == 0 {
        return path;
    }
    let end = path.bytes().enumerate().filter(|(_, byte)| *byte == b'/').nth(segments).map(|(at, _)| at);
    &path[..end.unwrap_or(path.len())]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::request;

    #[test]
    fn a_cookie_is_found_among_others_and_on_any_line() {
        let head = request("/", &[("cookie", "a=1; session2=x; session=\"abc\""), ("cookie", "b=2")]);
        assert_eq!(cookie(&head, "session"), Some(&b"abc"[..]));
        assert_eq!(cookie(&head, "b"), Some(&b"2"[..]));
        assert_eq!(cookie(&head, "sess"), None);
        assert_eq!(cookie(&request("/", &[]), "a"), None);
    }

    #[test]
    fn a_claim_is_read_from_whatever_token_comes() {
        // {"alg":"HS256"} . {"sub":"user-7","n":12,"list":[1]} . a signature that nobody checks
        let token = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ1c2VyLTciLCJuIjoxMiwibGlzdCI6WzFdfQ.c2ln";
        let head = request("/", &[("authorization", &format!("bearer {token}"))]);
        assert_eq!(claim(&head, "sub").as_deref(), Some("user-7"));
        assert_eq!(claim(&head, "n").as_deref(), Some("12"));
        assert_eq!(claim(&head, "list"), None);
        assert_eq!(claim(&head, "none"), None);
        for bad in
            ["Basic abc", "Bearer", "Bearer a.b", "Bearer a.!.c", "Bearer a.bm9qc29u.c", "B\u{e9}arer x.y.z"]
        {
            let head = request("/", &[("authorization", bad)]);
            assert_eq!(claim(&head, "sub"), None, "{bad}");
        }
    }

    #[test]
    fn segments_are_counted_from_the_start() {
        for (segments, expected) in [(0, "/a/b/c"), (1, "/a"), (2, "/a/b"), (3, "/a/b/c"), (9, "/a/b/c")] {
            assert_eq!(first_segments("/a/b/c", segments), expected);
        }
        assert_eq!(first_segments("/", 1), "/");
        assert_eq!(first_segments("/a/", 1), "/a");
    }
}
