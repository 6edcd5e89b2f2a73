//! `headers`: sets and removes fields, answers CORS preflights, adds security fields, checks the host.
//!
//! Everything that does not depend on the request is a name and a value made at compile time.

use std::collections::BTreeMap;
use std::collections::HashSet;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_METHOD, CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY_REPORT_ONLY,
    CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY, VARY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use http::{HeaderMap, Method, StatusCode};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::body::Body;
use crate::http::client_ip::X_FORWARDED_FOR;
use crate::http::head::{RequestHead, Response, ResponseHead};
use crate::http::text::Text;

use super::{CompileContext, Flow, LinkContext};

/// Fields that say how a message is framed or sent over one connection; the proxy writes them itself
/// (RFC 9110 §7.6.1, RFC 9112 §6).
const OWN_FIELDS: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Options of `headers`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HeadersConfig {
    /// Fields set in the request; an empty value removes the field. `Host` can be set.
    pub custom_request_headers: BTreeMap<String, String>,
    /// Fields set in the response; an empty value removes the field.
    pub custom_response_headers: BTreeMap<String, String>,
    /// Sends `Access-Control-Allow-Credentials: true`. Default `false`.
    pub access_control_allow_credentials: bool,
    /// `Access-Control-Allow-Headers` of a preflight's answer.
    pub access_control_allow_headers: Vec<String>,
    /// `Access-Control-Allow-Methods` of a preflight's answer.
    pub access_control_allow_methods: Vec<String>,
    /// Origins that are allowed, compared with case; `*` allows all.
    pub access_control_allow_origin_list: Vec<String>,
    /// Regular expressions of origins that are allowed; not anchored.
    pub access_control_allow_origin_list_regex: Vec<String>,
    /// `Access-Control-Expose-Headers` of responses.
    pub access_control_expose_headers: Vec<String>,
    /// `Access-Control-Max-Age` of a preflight's answer, in seconds. Default: not sent.
    pub access_control_max_age: Option<i64>,
    /// Adds `Vary: Origin` to responses. Default `false`.
    pub add_vary_header: bool,
    /// Hosts, with their ports, that are served; others get 500. Default: all.
    pub allowed_hosts: Vec<String>,
    /// Request headers that hold the host for `allowedHosts`; the first that is there counts.
    pub hosts_proxy_headers: Vec<String>,
    /// Request headers whose value shows that the client's connection was secure.
    pub ssl_proxy_headers: BTreeMap<String, String>,
    /// `max-age` of `Strict-Transport-Security`; 0, the default, sends none.
    pub sts_seconds: i64,
    /// Adds `includeSubDomains` to it. Default `false`.
    pub sts_include_subdomains: bool,
    /// Adds `preload` to it. Default `false`.
    pub sts_preload: bool,
    /// Sends it over plain connections too. Default `false`.
    #[serde(rename = "forceSTSHeader")]
    pub force_sts_header: bool,
    /// Sends `X-Frame-Options: DENY`. Default `false`.
    pub frame_deny: bool,
    /// Sends `X-Frame-Options` with this value instead.
    pub custom_frame_options_value: String,
    /// Sends `X-Content-Type-Options: nosniff`. Default `false`.
    pub content_type_nosniff: bool,
    /// Sends `X-XSS-Protection: 1; mode=block`. Default `false`.
    pub browser_xss_filter: bool,
    /// Sends `X-XSS-Protection` with this value instead.
    #[serde(rename = "customBrowserXSSValue")]
    pub custom_browser_xss_value: String,
    /// `Content-Security-Policy`.
    pub content_security_policy: String,
    /// `Content-Security-Policy-Report-Only`.
    pub content_security_policy_report_only: String,
    /// Obsolete: does nothing.
    pub public_key: String,
    /// `Referrer-Policy`.
    pub referrer_policy: String,
    /// `Permissions-Policy`.
    pub permissions_policy: String,
    /// Switches `allowedHosts` and `Strict-Transport-Security` off. Default `false`.
    pub is_development: bool,
    /// Deprecated: does nothing.
    pub feature_policy: Option<String>,
    /// Deprecated: does nothing.
    pub ssl_redirect: Option<bool>,
    /// Deprecated: does nothing.
    pub ssl_temporary_redirect: Option<bool>,
    /// Deprecated: does nothing.
    pub ssl_host: Option<String>,
    /// Deprecated: does nothing.
    pub ssl_force_host: Option<bool>,
}

impl HeadersConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        _name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<Headers> {
        let problems = &mut *cx.problems;
        let before = problems.len();
        if *self == Self::default() {
            let problem = Problem::error(at, "headers has no options");
            problems.push(
                problem.hint("write customRequestHeaders, customResponseHeaders or another of its keys"),
            );
        }
        let request = self.request_edits(&at.key("customRequestHeaders"), problems);
        let mut response = self.security_fields(at, problems);
        let at_response = at.key("customResponseHeaders");
        for (name, value) in fields(&self.custom_response_headers, &at_response, problems) {
            response.push((name, value));
        }
        let cors = self.has_cors().then(|| self.cors(at, problems));
        let sts = self.sts(at, problems);
        let hosts = self.hosts(at, problems);
        self.warn_of_dead_keys(at, problems);
        (!problems.errors_since(before)).then(|| Headers {
            request: request.into(),
            response: response.into(),
            cors: cors.map(Box::new),
            sts,
            hosts,
            number: 0,
        })
    }

    fn request_edits(&self, at: &ConfigPath, problems: &mut Problems) -> Vec<RequestEdit> {
        let mut edits = Vec::with_capacity(self.custom_request_headers.len());
        for (name, value) in fields(&self.custom_request_headers, at, problems) {
            match value {
                _ if name == http::header::HOST => match value.as_ref().map(|host| host.to_str()) {
                    // From Traefik: the host cannot be removed, and trying does nothing.
                    None => {}
                    Some(Ok(host)) => edits.push(RequestEdit::Host(Text::copy_from(host))),
                    Some(Err(_)) => problems.error(&at.key("Host"), "a host must be ASCII"),
                },
                None if name == X_FORWARDED_FOR => edits.push(RequestEdit::RemoveForwardedFor),
                Some(value) if name == X_FORWARDED_FOR => edits.push(RequestEdit::SetForwardedFor(value)),
                None => edits.push(RequestEdit::Remove(name)),
                Some(value) => edits.push(RequestEdit::Set(name, value)),
            }
        }
        edits
    }

    fn security_fields(
        &self,
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Vec<(HeaderName, Option<HeaderValue>)> {
        let first = |custom: &str, on: bool, usual: &str| {
            if custom.is_empty() && on { usual.to_owned() } else { custom.to_owned() }
        };
        let nosniff = first("", self.content_type_nosniff, "nosniff");
        let frame = first(&self.custom_frame_options_value, self.frame_deny, "DENY");
        let xss = first(&self.custom_browser_xss_value, self.browser_xss_filter, "1; mode=block");
        let permissions = HeaderName::from_static("permissions-policy");
        [
            (X_FRAME_OPTIONS, "customFrameOptionsValue", &frame),
            (X_CONTENT_TYPE_OPTIONS, "contentTypeNosniff", &nosniff),
            (X_XSS_PROTECTION, "customBrowserXSSValue", &xss),
            (CONTENT_SECURITY_POLICY, "contentSecurityPolicy", &self.content_security_policy),
            (
                CONTENT_SECURITY_POLICY_REPORT_ONLY,
                "contentSecurityPolicyReportOnly",
                &self.content_security_policy_report_only,
            ),
            (REFERRER_POLICY, "referrerPolicy", &self.referrer_policy),
            (permissions, "permissionsPolicy", &self.permissions_policy),
        ]
        .into_iter()
        .filter(|(_, _, text)| !text.is_empty())
        .filter_map(|(name, key, text)| Some((name, Some(header_value(text, &at.key(key), problems)?))))
        .collect()
    }

    fn has_cors(&self) -> bool {
        self.access_control_allow_credentials
            || !self.access_control_allow_headers.is_empty()
            || !self.access_control_allow_methods.is_empty()
            || !self.access_control_allow_origin_list.is_empty()
            || !self.access_control_allow_origin_list_regex.is_empty()
            || !self.access_control_expose_headers.is_empty()
            || self.access_control_max_age.is_some()
            || self.add_vary_header
    }

    fn cors(&self, at: &ConfigPath, problems: &mut Problems) -> Cors {
        let mut list = |texts: &[String], key: &str| {
            let text = texts.join(",");
            (!text.is_empty()).then(|| header_value(&text, &at.key(key), problems)).flatten()
        };
        let allow_headers = list(&self.access_control_allow_headers, "accessControlAllowHeaders");
        let allow_methods = list(&self.access_control_allow_methods, "accessControlAllowMethods");
        let expose_headers = list(&self.access_control_expose_headers, "accessControlExposeHeaders");
        let at_regexes = at.key("accessControlAllowOriginListRegex");
        let mut regexes = Vec::new();
        for (index, text) in self.access_control_allow_origin_list_regex.iter().enumerate() {
            match Regex::new(text) {
                Ok(regex) => regexes.push(regex),
                Err(error) => {
                    problems.error(&at_regexes.index(index), format!("bad regular expression: {error}"))
                }
            }
        }
        let origins: Box<[Box<str>]> = self
            .access_control_allow_origin_list
            .iter()
            // What follows a `*` is never looked at.
            .take_while(|origin| *origin != "*")
            .map(|origin| origin.as_str().into())
            .collect();
        Cors {
            any: origins.len() < self.access_control_allow_origin_list.len(),
            origins,
            regexes: regexes.into(),
            credentials: self.access_control_allow_credentials,
            allow_headers,
            allow_methods,
            expose_headers,
            max_age: self.access_control_max_age.map(HeaderValue::from),
            vary: self.add_vary_header,
        }
    }

    fn sts(&self, at: &ConfigPath, problems: &mut Problems) -> Option<Box<Sts>> {
        if self.sts_seconds < 0 {
            problems.error(&at.key("stsSeconds"), "stsSeconds must not be negative");
        }
        let at_headers = at.key("sslProxyHeaders");
        let secure_by = fields(&self.ssl_proxy_headers, &at_headers, problems)
            .into_iter()
            // From Traefik: an empty value would be equal to that of a field that is not there.
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        if self.sts_seconds == 0 || self.is_development {
            return None;
        }
        let mut text = format!("max-age={}", self.sts_seconds);
        if self.sts_include_subdomains {
            text.push_str("; includeSubDomains");
        }
        if self.sts_preload {
            text.push_str("; preload");
        }
        let value = header_value(&text, at, problems)?;
        Some(Box::new(Sts { value, always: self.force_sts_header, secure_by }))
    }

    fn hosts(&self, at: &ConfigPath, problems: &mut Problems) -> Option<Box<Hosts>> {
        let mut from = Vec::new();
        for (index, name) in self.hosts_proxy_headers.iter().enumerate() {
            match HeaderName::try_from(name) {
                Ok(name) => from.push(name),
                Err(_) => problems
                    .error(&at.key("hostsProxyHeaders").index(index), format!("bad header name {name:?}")),
            }
        }
        if self.allowed_hosts.is_empty() || self.is_development {
            return None;
        }
        let allowed = self.allowed_hosts.iter().map(|host| host.as_str().into()).collect();
        Some(Box::new(Hosts { allowed, from: from.into() }))
    }

    fn warn_of_dead_keys(&self, at: &ConfigPath, problems: &mut Problems) {
        let dead = [
            ("publicKey", !self.public_key.is_empty(), ""),
            ("featurePolicy", self.feature_policy.is_some(), "use permissionsPolicy"),
            ("sslRedirect", self.ssl_redirect.is_some(), "use the redirectScheme middleware"),
            (
                "sslTemporaryRedirect",
                self.ssl_temporary_redirect.is_some(),
                "use the redirectScheme middleware",
            ),
            ("sslHost", self.ssl_host.is_some(), "use the redirectRegex middleware"),
            ("sslForceHost", self.ssl_force_host.is_some(), "use the redirectRegex middleware"),
        ];
        for (key, used, hint) in dead {
            if used {
                let problem = Problem::warning(&at.key(key), format!("{key} does nothing"));
                problems.push(if hint.is_empty() { problem } else { problem.hint(hint) });
            }
        }
    }
}

/// Parses a map of fields; an empty value becomes `None`. Adds one problem per bad name or value.
fn fields(
    map: &BTreeMap<String, String>,
    at: &ConfigPath,
    problems: &mut Problems,
) -> Vec<(HeaderName, Option<HeaderValue>)> {
    let mut seen = HashSet::new();
    let mut parsed = Vec::with_capacity(map.len());
    for (text, value) in map {
        let at = at.key(text);
        let Ok(name) = HeaderName::try_from(text) else {
            problems.error(&at, format!("bad header name {text:?}"));
            continue;
        };
        if !seen.insert(name.clone()) {
            problems.push(
                Problem::error(&at, format!("header {text:?} is there twice"))
                    .hint("names are compared without case"),
            );
            continue;
        }
        if OWN_FIELDS.contains(&name.as_str()) {
            problems.warn(&at, format!("{text} has no effect here: the proxy writes it itself"));
            continue;
        }
        if value.is_empty() {
            parsed.push((name, None));
        } else if let Some(value) = header_value(value, &at, problems) {
            parsed.push((name, Some(value)));
        }
    }
    parsed
}

fn header_value(text: &str, at: &ConfigPath, problems: &mut Problems) -> Option<HeaderValue> {
    let value = HeaderValue::from_bytes(text.as_bytes()).ok();
    if value.is_none() {
        problems.push(
            Problem::error(at, "bad header value")
                .hint("line breaks and other control characters cannot be sent"),
        );
    }
    value
}

/// `headers`, compiled.
#[derive(Clone, Debug)]
pub struct Headers {
    request: Box<[RequestEdit]>,
    /// Security fields, then the operator's own.
    response: Box<[(HeaderName, Option<HeaderValue>)]>,
    cors: Option<Box<Cors>>,
    sts: Option<Box<Sts>>,
    hosts: Option<Box<Hosts>>,
    /// Its place in the chain, below 64.
    number: u8,
}

#[derive(Clone, Debug)]
enum RequestEdit {
    Set(HeaderName, HeaderValue),
    Remove(HeaderName),
    Host(Text),
    SetForwardedFor(HeaderValue),
    RemoveForwardedFor,
}

#[derive(Clone, Debug)]
struct Cors {
    any: bool,
    origins: Box<[Box<str>]>,
    regexes: Box<[Regex]>,
    credentials: bool,
    allow_headers: Option<HeaderValue>,
    allow_methods: Option<HeaderValue>,
    expose_headers: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    vary: bool,
}

#[derive(Clone, Debug)]
struct Sts {
    value: HeaderValue,
    always: bool,
    secure_by: Box<[(HeaderName, HeaderValue)]>,
}

#[derive(Clone, Debug)]
struct Hosts {
    allowed: Box<[Box<str>]>,
    from: Box<[HeaderName]>,
}

impl Headers {
    /// Gives it its place in the chain.
    pub(super) fn set_number(&mut self, number: usize) {
        self.number = u8::try_from(number).unwrap_or(u8::MAX).min(63);
    }

    /// Answers a preflight or a host that is not allowed; else edits the request.
    pub fn on_request(&self, context: &mut LinkContext, head: &mut RequestHead) -> Flow {
        if let Some(cors) = &self.cors {
            if let Some(answer) = cors.preflight(head) {
                return Flow::Answer(Box::new(answer));
            }
            context.origin = head.headers.get(ORIGIN).cloned();
        }
        for edit in &self.request {
            match edit {
                RequestEdit::Set(name, value) => {
                    head.headers.insert(name.clone(), value.clone());
                }
                RequestEdit::Remove(name) => {
                    head.headers.remove(name);
                }
                RequestEdit::Host(host) => head.authority = host.clone(),
                RequestEdit::SetForwardedFor(value) => {
                    context.drop_forwarded_for = false;
                    head.headers.insert(X_FORWARDED_FOR, value.clone());
                }
                RequestEdit::RemoveForwardedFor => {
                    context.drop_forwarded_for = true;
                    head.headers.remove(X_FORWARDED_FOR);
                }
            }
        }
        if let Some(hosts) = &self.hosts
            && !hosts.allow(head)
        {
            return Flow::Answer(Box::new(bad_host()));
        }
        if let Some(sts) = &self.sts {
            let bit = 1_u64 << self.number;
            if context.tls || sts.always || sts.is_secure(&head.headers) {
                context.secure_for |= bit;
            } else {
                context.secure_for &= !bit;
            }
        }
        Flow::Next
    }

    /// Edits the response.
    pub fn on_response(&self, context: &LinkContext, head: &mut ResponseHead) {
        if let Some(sts) = &self.sts
            && context.secure_for & (1 << self.number) != 0
        {
            head.headers.insert(STRICT_TRANSPORT_SECURITY, sts.value.clone());
        }
        for (name, value) in &self.response {
            match value {
                Some(value) => {
                    head.headers.insert(name.clone(), value.clone());
                }
                None => {
                    head.headers.remove(name);
                }
            }
        }
        if let Some(cors) = &self.cors {
            cors.on_response(context, &mut head.headers);
        }
    }
}

impl Cors {
    /// The answer to a preflight; `None` for every other request. A wrong origin is answered too,
    /// only without being allowed.
    fn preflight(&self, head: &RequestHead) -> Option<Response> {
        if head.method != Method::OPTIONS {
            return None;
        }
        let not_empty = |name| head.headers.get(name).filter(|value: &&HeaderValue| !value.is_empty());
        not_empty(ACCESS_CONTROL_REQUEST_METHOD)?;
        let origin = not_empty(ORIGIN)?;
        let mut response = Response::new(StatusCode::OK, Body::Empty);
        let headers = &mut response.head.headers;
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let fixed = [
            (ACCESS_CONTROL_ALLOW_HEADERS, &self.allow_headers),
            (ACCESS_CONTROL_ALLOW_METHODS, &self.allow_methods),
            (ACCESS_CONTROL_MAX_AGE, &self.max_age),
        ];
        for (name, value) in fixed {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        if let Some(allowed) = self.allowed(Some(origin)) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        Some(response)
    }

    fn on_response(&self, context: &LinkContext, headers: &mut HeaderMap) {
        if let Some(allowed) = self.allowed(context.origin.as_ref()) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(exposed) = &self.expose_headers {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed.clone());
        }
        if self.vary && !names_origin(headers) {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
    }

    /// The value of `Access-Control-Allow-Origin` for this origin.
    fn allowed(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let text = origin.and_then(|origin| origin.to_str().ok()).unwrap_or("");
        if !text.is_empty() && self.origins.iter().any(|allowed| **allowed == *text) {
            return origin.cloned();
        }
        if self.any {
            // Browsers refuse `*` together with credentials (Fetch, CORS check).
            return if self.credentials { origin.cloned() } else { Some(HeaderValue::from_static("*")) };
        }
        let matches = !text.is_empty() && self.regexes.iter().any(|regex| regex.is_match(text));
        matches.then(|| origin.cloned()).flatten()
    }
}

const TRUE: HeaderValue = HeaderValue::from_static("true");

fn names_origin(headers: &HeaderMap) -> bool {
    headers.get_all(VARY).iter().any(|line| {
        line.as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"origin"))
    })
}

impl Sts {
    fn is_secure(&self, headers: &HeaderMap) -> bool {
        self.secure_by.iter().any(|(name, value)| headers.get(name) == Some(value))
    }
}

impl Hosts {
    fn allow(&self, head: &RequestHead) -> bool {
        let from_header = self.from.iter().find_map(|name| {
            head.headers.get(name).and_then(|value| value.to_str().ok()).filter(|host| !host.is_empty())
        });
        let host = from_header.unwrap_or(head.authority.as_str());
        self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(host))
    }
}

/// Traefik's answer to a host that is not in `allowedHosts`.
fn bad_host() -> Response {
    let body = Body::Full(Bytes::from_static(b"Bad Host\n"));
    let mut response = Response::new(StatusCode::INTERNAL_SERVER_ERROR, body);
    let headers = &mut response.head.headers;
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
