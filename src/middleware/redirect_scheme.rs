//! `redirectScheme`: sends a request to the same address with another scheme.

use http::header::LOCATION;
use http::{HeaderValue, Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::body::Body;
use crate::http::error::reason;
use crate::http::head::{RequestHead, Response};

use super::{CompileContext, Flow, LinkContext};

/// Options of `redirectScheme`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RedirectSchemeConfig {
    /// The new scheme: `https`. Required.
    pub scheme: String,
    /// The new port. Default: that of the scheme.
    pub port: Option<String>,
    /// Answers with 301 and 308, which clients remember, instead of 302 and 307. Default false.
    pub permanent: bool,
}

impl RedirectSchemeConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        _name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<RedirectScheme> {
        let before = cx.problems.len();
        let scheme = &self.scheme;
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        if scheme.is_empty() || !scheme.bytes().all(is_scheme) {
            let problem = Problem::error(&at.key("scheme"), format!("bad scheme {scheme:?}"));
            cx.problems.push(problem.hint("write https"));
        }
        let port = self.port.as_deref().filter(|port| !port.is_empty());
        if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            cx.problems.error(&at.key("port"), "must be a port from 1 to 65535");
        }
        if cx.problems.errors_since(before) {
            return None;
        }
        let port = port.and_then(|port| port.parse().ok());
        Some(RedirectScheme::new(scheme, port, if self.permanent { Lasts::ForEver } else { Lasts::Once }))
    }
}

/// Whether clients may remember a redirection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lasts {
    /// 302 or 307.
    Once,
    /// 301 or 308.
    ForEver,
}

/// `redirectScheme`, compiled.
#[derive(Clone, Debug)]
pub struct RedirectScheme {
    scheme: Box<str>,
    /// Where it is not the scheme's own: `:8443`.
    port: Box<str>,
    lasts: Lasts,
}

impl RedirectScheme {
    /// To `scheme`, at its own port or another.
    pub fn new(scheme: &str, port: Option<u16>, lasts: Lasts) -> Self {
        let own = match scheme {
            "http" => Some(80),
            "https" => Some(443),
            _ => None,
        };
        let port = port.filter(|port| Some(*port) != own);
        Self {
            scheme: scheme.into(),
            port: port.map(|port| format!(":{port}")).unwrap_or_default().into(),
            lasts,
        }
    }

    /// Answers with the new address, unless the request has come there already. Cost: two allocations.
    pub fn on_request(&self, context: &LinkContext, head: &RequestHead) -> Flow {
        let authority = head.authority.as_str();
        let host_end = match authority.rfind(']') {
            Some(bracket) => bracket + 1,
            None => authority.find(':').unwrap_or(authority.len()),
        };
        let (host, port) = authority.split_at(host_end);
        let scheme = scheme(context, head);
        let port = match (scheme, port) {
            ("http", ":80") | ("https", ":443") => "",
            (_, port) => port,
        };
        if scheme == &*self.scheme && port == &*self.port {
            return Flow::Next;
        }
        let mut target = format!("{}://{host}{}{}", self.scheme, self.port, head.path);
        if let Some(query) = &head.query {
            target.push('?');
            target.push_str(query.as_str());
        }
        // Other methods keep theirs (RFC 9110 §15.4.8); HEAD too, as in Traefik.
        let status = match (self.lasts, head.method == Method::GET) {
            (Lasts::Once, true) => StatusCode::FOUND,
            (Lasts::Once, false) => StatusCode::TEMPORARY_REDIRECT,
            (Lasts::ForEver, true) => StatusCode::MOVED_PERMANENTLY,
            (Lasts::ForEver, false) => StatusCode::PERMANENT_REDIRECT,
        };
        let Ok(target) = HeaderValue::try_from(target) else { return Flow::Next };
        let text = reason(status).unwrap_or_default();
        let mut response = Response::new(status, Body::full(bytes::Bytes::from_static(text.as_bytes())));
        response.head.headers.insert(LOCATION, target);
        Flow::Answer(Box::new(response))
    }
}

/// How the client came, as far as is known; a trusted proxy's word has been sorted out before.
fn scheme<'a>(context: &LinkContext, head: &'a RequestHead) -> &'a str {
    let own = if context.tls { "https" } else { "http" };
    let said = head.headers.get("x-forwarded-proto").and_then(|value| value.to_str().ok());
    match said {
        None | Some("") => own,
        Some("ws") => "http",
        Some("wss") => "https",
        Some(said) => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{context, edit, problems, request};

    fn answer(options: &str, method: Method, authority: &str, fields: &[(&'static str, &str)]) -> String {
        let mut head = request("/a%20b", fields);
        head.method = method;
        head.authority = authority.to_owned().into();
        head.query = Some("x=1".to_owned().into());
        match edit("redirectScheme", options).on_request(&mut context(), &mut head).expect("no refusal") {
            Flow::Answer(answer) => format!(
                "{} {}",
                answer.head.status.as_u16(),
                answer.head.headers["location"].to_str().expect("ASCII")
            ),
            _ => "next".to_owned(),
        }
    }

    #[test]
    fn the_old_port_and_a_default_port_are_dropped() {
        let get = |options, authority| answer(options, Method::GET, authority, &[]);
        assert_eq!(get("{scheme: https}", "a.test"), "302 https://a.test/a%20b?x=1");
        assert_eq!(get("{scheme: https}", "a.test:8080"), "302 https://a.test/a%20b?x=1");
        assert_eq!(get("{scheme: https, port: '443'}", "[::1]:80"), "302 https://[::1]/a%20b?x=1");
        assert_eq!(get("{scheme: https, port: 8443}", "a.test"), "302 https://a.test:8443/a%20b?x=1");
    }

    #[test]
    fn a_method_other_than_get_is_kept() {
        let to = |options, method| answer(options, method, "a.test", &[])[..3].to_owned();
        assert_eq!(to("{scheme: https}", Method::POST), "307");
        assert_eq!(to("{scheme: https}", Method::HEAD), "307");
        assert_eq!(to("{scheme: https, permanent: true}", Method::GET), "301");
        assert_eq!(to("{scheme: https, permanent: true}", Method::PUT), "308");
    }

    #[test]
    fn who_is_there_already_passes() {
        let secure = [("x-forwarded-proto", "https")];
        assert_eq!(answer("{scheme: https}", Method::GET, "a.test", &secure), "next");
        assert_eq!(answer("{scheme: http}", Method::GET, "a.test:80", &[]), "next");
        let secure = [("x-forwarded-proto", "wss")];
        assert_eq!(answer("{scheme: https}", Method::GET, "a.test:443", &secure), "next");
    }

    #[test]
    fn what_is_no_scheme_or_port_is_a_problem() {
        assert_eq!(problems("redirectScheme", "{}").errors(), ["redirectScheme.scheme"]);
        assert_eq!(
            problems("redirectScheme", "{scheme: 'a b', port: '0'}").errors(),
            ["redirectScheme.scheme", "redirectScheme.port"]
        );
    }
}
