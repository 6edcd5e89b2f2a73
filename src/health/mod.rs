//! Active health checks: tasks of the control plane that ask each endpoint whether it is well.
//!
//! [`checker`] owns the tasks and their timing, [`probe`] asks once. What an answer means for an
//! endpoint is decided by the pure `endpoint::health`, and published through `endpoint::live`.

pub mod checker;
pub mod probe;

use std::fmt;
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use crate::endpoint::health::Thresholds;

/// Which statuses mean that an endpoint is well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ExpectedStatus {
    /// 200 to 399 (`status: 0`).
    #[default]
    Success,
    /// This one only.
    Exactly(StatusCode),
}

impl ExpectedStatus {
    /// Whether `status` is such a one.
    pub fn includes(self, status: StatusCode) -> bool {
        match self {
            Self::Success => status.is_success() || status.is_redirection(),
            Self::Exactly(expected) => status == expected,
        }
    }
}

impl fmt::Display for ExpectedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Success => f.write_str("200 to 399"),
            Self::Exactly(status) => write!(f, "{}", status.as_u16()),
        }
    }
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
    /// What is asked for, from the root of the server: the path of its url is not put in front.
    pub path: PathAndQuery,
    /// Default `GET`.
    pub method: Method,
    /// Default 200 to 399.
    pub expected: ExpectedStatus,
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
            path,
            method: Method::GET,
            expected: ExpectedStatus::default(),
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
            .field("path", &self.path)
            .field("method", &self.method)
            .field("expected", &self.expected)
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
