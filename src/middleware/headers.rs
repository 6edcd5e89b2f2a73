//! `headers`: sets and removes fields, answers CORS preflights, adds security fields, checks the host.
//!
//! Everything that does not depend on the request is a name and a value made at compile time.

use std::collections::BTreeMap;
use std::collections::HashSet;

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONTENT_SECURITY_POLICY,
    CONTENT_SECURITY_POLICY_REPORT_ONLY, CONTENT_TYPE, HeaderName, HeaderValue, ORIGIN, REFERRER_POLICY,
    STRICT_TRANSPORT_SECURITY, VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS, X_XSS_PROTECTION,
};
use http::{Method, StatusCode};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::forwarded::X_FORWARDED_FOR;
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
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct HeadersConfig {
    /// Fields set in the request; an empty value removes the field. `Host` can be set.
    pub custom_request_headers: BTreeMap<String, String>,
    /// Fields set in the response; an empty value removes the field.
    pub custom_response_headers: BTreeMap<String, String>,
    /// Sends `Access-Control-Allow-Credentials: true`. Default `false`.
    pub access_control_allow_credentials: bool,
    /// `Access-Control-Allow-Headers` of a preflight's answer. With credentials `*` grants what is asked for.
    pub access_control_allow_headers: Vec<String>,
    /// `Access-Control-Allow-Methods` of a preflight's answer. With credentials `*` grants what is asked for.
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
        // Together with credentials a `*` is an ordinary name to browsers (Fetch, CORS-preflight fetch).
        let means_all =
            |texts: &[String]| self.access_control_allow_credentials && texts.iter().any(|text| text == "*");
        let mut granted = |texts: &[String], key: &str| match means_all(texts) {
            true => Granted::WhatIsAsked,
            false => Granted::Listed(list(texts, key)),
        };
        let allow_headers = granted(&self.access_control_allow_headers, "accessControlAllowHeaders");
        let allow_methods = granted(&self.access_control_allow_methods, "accessControlAllowMethods");
        let expose_headers = match granted(&self.access_control_expose_headers, "accessControlExposeHeaders")
        {
            // Nobody asks for these.
            Granted::WhatIsAsked => None,
            Granted::Listed(value) => value,
        };
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
    allow_headers: Granted,
    allow_methods: Granted,
    expose_headers: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
    vary: bool,
}

/// What a preflight is granted of what it asks for.
#[derive(Clone, Debug)]
enum Granted {
    WhatIsAsked,
    Listed(Option<HeaderValue>),
}

impl Granted {
    fn value<'a>(&'a self, asked: Option<&'a HeaderValue>) -> Option<&'a HeaderValue> {
        match self {
            Self::WhatIsAsked => asked,
            Self::Listed(value) => value.as_ref(),
        }
    }
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
        let method = not_empty(ACCESS_CONTROL_REQUEST_METHOD)?;
        let names = not_empty(ACCESS_CONTROL_REQUEST_HEADERS);
        let origin = not_empty(ORIGIN)?;
        let mut response = Response::new(StatusCode::OK, Body::Empty);
        let headers = &mut response.head.headers;
        if self.credentials {
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        let fields = [
            (ACCESS_CONTROL_ALLOW_HEADERS, self.allow_headers.value(names)),
            (ACCESS_CONTROL_ALLOW_METHODS, self.allow_methods.value(Some(method))),
            (ACCESS_CONTROL_EXPOSE_HEADERS, self.expose_headers.as_ref()),
            (ACCESS_CONTROL_MAX_AGE, self.max_age.as_ref()),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                headers.insert(name, value.clone());
            }
        }
        if let Some(allowed) = self.allowed(Some(origin)) {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
        Some(response)
    }

    fn on_response(&self, context: &LinkContext, headers: &mut Fields) {
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
            vary_by_origin(headers);
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

/// Adds `Origin` to the one line of `Vary`, as Traefik does.
fn vary_by_origin(headers: &mut Fields) {
    let mut joined = BytesMut::new();
    for line in headers.get_all(VARY) {
        joined.extend_from_slice(line.as_bytes());
        joined.extend_from_slice(b",");
    }
    joined.extend_from_slice(b"Origin");
    if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
        headers.insert(VARY, value);
    }
}

fn names_origin(headers: &Fields) -> bool {
    headers.get_all(VARY).any(|line| {
        line.as_bytes()
            .split(|byte| *byte == b',')
            .any(|name| name.trim_ascii().eq_ignore_ascii_case(b"origin"))
    })
}

impl Sts {
    fn is_secure(&self, headers: &Fields) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::Edit;
    use crate::middleware::testing::{Compiled, context, edit, problems, request, response};

    fn run(link: &Edit, context: &mut LinkContext, head: &mut RequestHead) -> ResponseHead {
        let flow = link.on_request(context, head).expect("no refusal");
        assert!(matches!(flow, Flow::Next), "{flow:?}");
        let mut head = response(&[("Server", "pod"), ("Access-Control-Allow-Origin", "pod")]);
        link.on_response(context, &mut head);
        head
    }

    fn text<'a>(headers: &'a Fields, name: &str) -> Option<&'a str> {
        headers.get(name).map(|value| value.to_str().expect("ASCII"))
    }

    #[test]
    fn request_fields_are_set_replaced_and_removed() {
        let link =
            edit("headers", "{customRequestHeaders: {X-New: a, X-Old: b, X-Gone: '', Host: other.test}}");
        let mut head = request("/", &[("X-Old", "1"), ("X-Old", "2"), ("X-Gone", "1")]);
        run(&link, &mut context(), &mut head);
        assert_eq!(text(&head.headers, "x-new"), Some("a"));
        assert_eq!(head.headers.get_all("x-old").collect::<Vec<_>>(), ["b"]);
        assert_eq!(text(&head.headers, "x-gone"), None);
        assert_eq!(head.authority.as_str(), "other.test");
        assert_eq!(text(&head.headers, "host"), None, "Host never stands among the fields");
    }

    #[test]
    fn the_host_cannot_be_removed() {
        let link = edit("headers", "{customRequestHeaders: {Host: ''}}");
        let mut head = request("/", &[]);
        run(&link, &mut context(), &mut head);
        assert_eq!(head.authority.as_str(), "a.test");
    }

    #[test]
    fn forwarded_for_is_removed_for_good_until_a_later_link_sets_it() {
        let remove = edit("headers", "{customRequestHeaders: {x-forwarded-for: ''}}");
        let set = edit("headers", "{customRequestHeaders: {X-Forwarded-For: 1.2.3.4}}");
        let mut context = context();
        let mut head = request("/", &[("X-Forwarded-For", "9.9.9.9")]);
        run(&remove, &mut context, &mut head);
        assert!(context.drop_forwarded_for);
        assert_eq!(text(&head.headers, "x-forwarded-for"), None);
        run(&set, &mut context, &mut head);
        assert!(!context.drop_forwarded_for);
        assert_eq!(text(&head.headers, "x-forwarded-for"), Some("1.2.3.4"));
    }

    #[test]
    fn response_fields_are_set_and_removed_and_beat_the_security_fields() {
        let link = edit(
            "headers",
            "{customResponseHeaders: {Server: '', X-Frame-Options: mine}, frameDeny: true, contentTypeNosniff: true}",
        );
        let head = run(&link, &mut context(), &mut request("/", &[]));
        assert_eq!(text(&head.headers, "server"), None);
        assert_eq!(text(&head.headers, "x-frame-options"), Some("mine"));
        assert_eq!(text(&head.headers, "x-content-type-options"), Some("nosniff"));
    }

    #[test]
    fn security_fields_have_their_usual_values_and_custom_ones_win() {
        let link = edit(
            "headers",
            "{frameDeny: true, browserXssFilter: true, contentSecurityPolicy: a, \
             contentSecurityPolicyReportOnly: b, referrerPolicy: c, permissionsPolicy: d, isDevelopment: true}",
        );
        let head = run(&link, &mut context(), &mut request("/", &[]));
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-xss-protection", "1; mode=block"),
            ("content-security-policy", "a"),
            ("content-security-policy-report-only", "b"),
            ("referrer-policy", "c"),
            ("permissions-policy", "d"),
        ] {
            assert_eq!(text(&head.headers, name), Some(value));
        }
        let link = edit(
            "headers",
            "{frameDeny: true, customFrameOptionsValue: SAMEORIGIN, browserXssFilter: true, customBrowserXSSValue: '0'}",
        );
        let head = run(&link, &mut context(), &mut request("/", &[]));
        assert_eq!(text(&head.headers, "x-frame-options"), Some("SAMEORIGIN"));
        assert_eq!(text(&head.headers, "x-xss-protection"), Some("0"));
    }

    #[test]
    fn transport_security_is_sent_over_tls_or_behind_a_proxy_that_says_so_or_when_forced() {
        const NAME: &str = "strict-transport-security";
        let options = "stsSeconds: 10, stsIncludeSubdomains: true, stsPreload: true";
        let plain = edit("headers", &format!("{{{options}}}"));
        let by_proxy =
            edit("headers", &format!("{{{options}, sslProxyHeaders: {{X-Forwarded-Proto: https}}}}"));
        let forced = edit("headers", &format!("{{{options}, forceSTSHeader: true}}"));
        let development =
            edit("headers", &format!("{{{options}, forceSTSHeader: true, isDevelopment: true}}"));
        let value = Some("max-age=10; includeSubDomains; preload");

        let https = [("X-Forwarded-Proto", "https")];
        let mut tls = context();
        tls.tls = true;
        assert_eq!(text(&run(&plain, &mut tls, &mut request("/", &[])).headers, NAME), value);
        assert_eq!(text(&run(&plain, &mut context(), &mut request("/", &https)).headers, NAME), None);
        assert_eq!(text(&run(&by_proxy, &mut context(), &mut request("/", &https)).headers, NAME), value);
        assert_eq!(text(&run(&by_proxy, &mut context(), &mut request("/", &[])).headers, NAME), None);
        assert_eq!(text(&run(&forced, &mut context(), &mut request("/", &[])).headers, NAME), value);
        assert_eq!(text(&run(&development, &mut tls, &mut request("/", &[])).headers, NAME), None);
    }

    fn preflight(link: &Edit, origin: &str) -> Fields {
        let mut head = request("/", &[("Origin", origin), ("Access-Control-Request-Method", "PUT")]);
        head.method = Method::OPTIONS;
        match link.on_request(&mut context(), &mut head) {
            Ok(Flow::Answer(answer)) => {
                assert_eq!(answer.head.status, StatusCode::OK);
                assert!(matches!(answer.body, Body::Empty));
                answer.head.headers
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_preflight_is_answered_even_for_a_wrong_origin() {
        let link = edit(
            "headers",
            "{accessControlAllowOriginList: ['https://a.test'], accessControlAllowMethods: [GET, PUT], \
             accessControlAllowHeaders: [X-A, X-B], accessControlMaxAge: 0, accessControlExposeHeaders: [X-C]}",
        );
        let headers = preflight(&link, "https://a.test");
        assert_eq!(text(&headers, "access-control-allow-origin"), Some("https://a.test"));
        assert_eq!(text(&headers, "access-control-allow-methods"), Some("GET,PUT"));
        assert_eq!(text(&headers, "access-control-allow-headers"), Some("X-A,X-B"));
        assert_eq!(text(&headers, "access-control-expose-headers"), Some("X-C"));
        assert_eq!(text(&headers, "access-control-max-age"), Some("0"));
        for wrong in ["https://A.test", "https://a.test.evil"] {
            let headers = preflight(&link, wrong);
            assert_eq!(text(&headers, "access-control-allow-origin"), None, "{wrong}");
            assert_eq!(text(&headers, "access-control-allow-methods"), Some("GET,PUT"));
        }
    }

    #[test]
    fn what_is_no_preflight_goes_on() {
        let link = edit("headers", "{accessControlAllowOriginList: ['*']}");
        for fields in [&[("Origin", "o")][..], &[("Access-Control-Request-Method", "PUT")]] {
            let mut head = request("/", fields);
            head.method = Method::OPTIONS;
            run(&link, &mut context(), &mut head);
        }
        let mut head = request("/", &[("Origin", "o"), ("Access-Control-Request-Method", "PUT")]);
        run(&link, &mut context(), &mut head);
        // Without any CORS key, a preflight is the pod's business.
        let link = edit("headers", "{frameDeny: true}");
        head.method = Method::OPTIONS;
        run(&link, &mut context(), &mut head);
    }

    #[test]
    fn any_origin_is_a_star_but_with_credentials_the_origin_itself() {
        const NAME: &str = "access-control-allow-origin";
        let star = edit("headers", "{accessControlAllowOriginList: ['*']}");
        let credentials =
            edit("headers", "{accessControlAllowOriginList: ['*'], accessControlAllowCredentials: true}");
        let origin = [("Origin", "https://o.test")];
        assert_eq!(text(&run(&star, &mut context(), &mut request("/", &origin)).headers, NAME), Some("*"));
        assert_eq!(text(&run(&star, &mut context(), &mut request("/", &[])).headers, NAME), Some("*"));
        let head = run(&credentials, &mut context(), &mut request("/", &origin));
        assert_eq!(text(&head.headers, NAME), Some("https://o.test"));
        assert_eq!(text(&head.headers, "access-control-allow-credentials"), Some("true"));
        assert_eq!(text(&preflight(&credentials, "https://o.test"), NAME), Some("https://o.test"));
    }

    #[test]
    fn a_wrong_origin_leaves_the_pods_own_answer() {
        let link = edit("headers", "{accessControlAllowOriginListRegex: ['^https://[a-z]+[.]test$']}");
        let of = |origin: &str| {
            let head = run(&link, &mut context(), &mut request("/", &[("Origin", origin)]));
            text(&head.headers, "access-control-allow-origin").map(str::to_owned)
        };
        assert_eq!(of("https://b.test").as_deref(), Some("https://b.test"));
        assert_eq!(of("https://b.test.evil").as_deref(), Some("pod"));
    }

    #[test]
    fn with_credentials_a_star_grants_a_preflight_what_it_asks_for() {
        // Sent as it is, browsers would take it for a method and a field of the name `*`.
        let lists = "accessControlAllowOriginList: ['*'], accessControlAllowMethods: [GET, '*'], \
                     accessControlAllowHeaders: ['*'], accessControlExposeHeaders: ['*']";
        let granted = |options: &str, fields: &[(&str, &str)]| {
            let link = edit("headers", &format!("{{{lists}{options}}}"));
            let mut head = request("/", fields);
            head.method = Method::OPTIONS;
            let flow = link.on_request(&mut context(), &mut head).expect("no refusal");
            let Flow::Answer(answer) = flow else { panic!("{flow:?}") };
            ["access-control-allow-methods", "access-control-allow-headers", "access-control-expose-headers"]
                .map(|name| text(&answer.head.headers, name).map(str::to_owned))
        };
        let some = |texts: [&str; 3]| texts.map(|text| (!text.is_empty()).then(|| text.to_owned()));
        let asks = [("Origin", "https://a.test"), ("Access-Control-Request-Method", "PUT")];
        let asks_more = [asks[0], asks[1], ("Access-Control-Request-Headers", "X-A, X-B")];
        let credentials = ", accessControlAllowCredentials: true";
        assert_eq!(granted(credentials, &asks_more), some(["PUT", "X-A, X-B", ""]));
        assert_eq!(granted(credentials, &asks), some(["PUT", "", ""]));
        assert_eq!(granted("", &asks_more), some(["GET,*", "*", "*"]));
    }

    #[test]
    fn vary_names_the_origin_once_and_keeps_what_the_pod_said() {
        let Edit::Headers(link) = edit("headers", "{addVaryHeader: true}") else { panic!("headers") };
        let vary = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("Vary", *line)).collect();
            let mut head = response(&fields);
            link.on_response(&context(), &mut head);
            let lines: Vec<_> =
                head.headers.get_all(VARY).map(|line| line.to_str().expect("ASCII")).collect();
            lines.join(", ")
        };
        assert_eq!(vary(&[]), "Origin");
        assert_eq!(vary(&["Origin"]), "Origin");
        assert_eq!(vary(&["Accept-Encoding, origin"]), "Accept-Encoding, origin");
        assert_eq!(vary(&["Accept-Encoding", "Cookie"]), "Accept-Encoding,Cookie,Origin");
    }

    #[test]
    fn only_allowed_hosts_are_served() {
        let link = edit("headers", "{allowedHosts: [A.test], hostsProxyHeaders: [X-Forwarded-Host]}");
        let refused = |head: &mut RequestHead| match link.on_request(&mut context(), head) {
            Ok(Flow::Next) => false,
            Ok(Flow::Answer(answer)) => {
                assert_eq!(answer.head.status, StatusCode::INTERNAL_SERVER_ERROR);
                assert!(matches!(answer.body, Body::Full(body) if body == "Bad Host\n"));
                true
            }
            other => panic!("{other:?}"),
        };
        assert!(!refused(&mut request("/", &[])));
        assert!(refused(&mut request("/", &[("X-Forwarded-Host", "b.test")])));
        let mut with_port = request("/", &[]);
        with_port.authority = Text::from_static("a.test:80");
        assert!(refused(&mut with_port));
        let development = edit("headers", "{allowedHosts: [b.test], isDevelopment: true}");
        assert!(matches!(development.on_request(&mut context(), &mut request("/", &[])), Ok(Flow::Next)));
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "headers"),
            ("{customRequestHeaders: {'bad name': a}}", "headers.customRequestHeaders.bad name"),
            ("{customResponseHeaders: {A: \"a\\nb\"}}", "headers.customResponseHeaders.A"),
            ("{customRequestHeaders: {X-A: a, x-a: b}}", "headers.customRequestHeaders.x-a"),
            (
                "{accessControlAllowOriginListRegex: ['a', '(']}",
                "headers.accessControlAllowOriginListRegex[1]",
            ),
            ("{stsSeconds: -1}", "headers.stsSeconds"),
            ("{hostsProxyHeaders: ['']}", "headers.hostsProxyHeaders[0]"),
            ("{contentSecurityPolicy: \"a\\nb\"}", "headers.contentSecurityPolicy"),
        ] {
            assert_eq!(problems("headers", options).errors(), [path], "{options}");
        }
    }

    #[test]
    fn keys_that_do_nothing_are_warned_of() {
        let Compiled { warnings, .. } = problems(
            "headers",
            "{sslRedirect: true, publicKey: a, customRequestHeaders: {Connection: close, Content-Length: '3'}}",
        );
        assert_eq!(
            warnings,
            [
                "headers.customRequestHeaders.Connection",
                "headers.customRequestHeaders.Content-Length",
                "headers.publicKey",
                "headers.sslRedirect"
            ]
        );
    }
}
