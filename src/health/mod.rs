//! Health: tasks of the control plane that ask each endpoint whether it is well, and that watch how it answers.
//!
//! [`checker`] owns the tasks of active checks and their timing, [`probe`] asks once; [`outlier`] watches the
//! answers of requests. What that means for an endpoint is decided by the pure `endpoint::health` and
//! `endpoint::outlier`, and published through `endpoint::live`.

pub mod checker;
pub mod outlier;
pub mod probe;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::endpoint::health::Thresholds;
use crate::endpoint::url::Scheme;
use crate::tls::client::ClientTls;

/// Which statuses mean that an endpoint is well.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ExpectedStatus {
    /// 200 to 399 (`status: 0`).
    #[default]
    Success,
    /// Those of these ranges, each from its first to its last.
    OneOf(Arc<[(u16, u16)]>),
}

impl ExpectedStatus {
    /// Whether `status` is such a one.
    pub fn includes(&self, status: StatusCode) -> bool {
        match self {
            Self::Success => status.is_success() || status.is_redirection(),
            Self::OneOf(ranges) => {
                ranges.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()))
            }
        }
    }
}

impl fmt::Display for ExpectedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::OneOf(ranges) = self else { return f.write_str("200 to 399") };
        for (index, (first, last)) in ranges.iter().enumerate() {
            let or = if index == 0 { "" } else { " or " };
            match first == last {
                true => write!(f, "{or}{first}")?,
                false => write!(f, "{or}{first} to {last}")?,
            }
        }
        Ok(())
    }
}

/// What a check speaks.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// A request whose answer counts.
    #[default]
    Http,
    /// `grpc.health.v1.Health/Check` for this service; an empty name is the server as a whole.
    Grpc(Arc<str>),
    /// A connection is enough.
    Tcp,
}

/// What a redirection means.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Redirects {
    /// It is followed, on the same host only.
    #[default]
    Follow,
    /// It is the answer (`followRedirects: false`).
    Answer,
}

/// How the endpoints of a service are checked (`loadBalancer.healthCheck`).
///
/// Equal settings mean that a running checker may go on after a reload.
#[derive(Clone, PartialEq)]
pub struct HealthSettings {
    /// Default HTTP.
    pub mode: Mode,
    /// What is asked for, from the root of the server: the path of its url is not put in front.
    pub path: PathAndQuery,
    /// Default `GET`.
    pub method: Method,
    /// Default 200 to 399.
    pub expected: ExpectedStatus,
    /// What the beginning of the answer's body must hold.
    pub expected_body: Option<Arc<str>>,
    /// Instead of the scheme of the server's url.
    pub scheme: Option<Scheme>,
    /// How to speak TLS with servers, where the scheme says so.
    pub tls: Option<Arc<ClientTls>>,
    /// Instead of the server's own port.
    pub port: Option<u16>,
    /// The request's `Host`, instead of the server's host and port.
    pub hostname: Option<HeaderValue>,
    /// Sent with each request. `Host` and fields about framing and the connection are left out.
    pub headers: HeaderMap,
    /// From one check of an endpoint that is up to the next, and before the first. Default 30 s.
    pub interval: Duration,
    /// The same while it is down. Default: `interval`.
    pub unhealthy_interval: Duration,
    /// For the whole check, redirections included. Default 5 s.
    pub timeout: Duration,
    /// Default: followed.
    pub redirects: Redirects,
    /// Results in a row that change the status. Default 1 and 1, as in Traefik.
    pub thresholds: Thresholds,
}

impl HealthSettings {
    /// Traefik's defaults, with the only key that has none.
    pub fn new(path: PathAndQuery) -> Self {
        Self {
            mode: Mode::default(),
            path,
            method: Method::GET,
            expected: ExpectedStatus::default(),
            expected_body: None,
            scheme: None,
            tls: None,
            port: None,
            hostname: None,
            headers: HeaderMap::new(),
            interval: Duration::from_secs(30),
            unhealthy_interval: Duration::from_secs(30),
            timeout: Duration::from_secs(5),
            redirects: Redirects::default(),
            thresholds: Thresholds::default(),
        }
    }
}

impl fmt::Debug for HealthSettings {
    /// Shows the names of the headers only: their values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthSettings")
            .field("mode", &self.mode)
            .field("path", &self.path)
            .field("method", &self.method)
            .field("expected", &self.expected)
            .field("expected_body", &self.expected_body)
            .field("scheme", &self.scheme)
            .field("tls", &self.tls.is_some())
            .field("port", &self.port)
            .field("hostname", &self.hostname)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("interval", &self.interval)
            .field("unhealthy_interval", &self.unhealthy_interval)
            .field("timeout", &self.timeout)
            .field("redirects", &self.redirects)
            .field("thresholds", &self.thresholds)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_a_check_is_not_shown() {
        let mut settings = HealthSettings::new(PathAndQuery::from_static("/"));
        settings.headers.insert("authorization", HeaderValue::from_static("Bearer hunter2"));
        let shown = format!("{settings:?}");
        assert!(shown.contains("authorization") && !shown.contains("hunter2"), "{shown}");
    }

    #[test]
    fn success_ends_before_400() {
        let includes = |code| StatusCode::from_u16(code).is_ok_and(|s| ExpectedStatus::Success.includes(s));
        assert_eq!([199, 200, 399, 400].map(includes), [false, true, true, false]);
    }
}
