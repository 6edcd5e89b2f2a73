//! `retry`: when and after which pause a request is sent again. `proxy` does the sending.

use std::time::Duration;

use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::common::units::HumanDuration;

use super::CompileContext;

/// Body that is kept for another try unless told otherwise, in bytes; Traefik's number.
const DEFAULT_MAX_REQUEST_BODY_BYTES: i64 = 2 * 1024 * 1024;

/// Options of `retry`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryConfig {
    /// Tries in all, the first included. Required, at least 1; 1 means no retry.
    pub attempts: Option<i64>,
    /// Pause before the first retry; later ones grow to twice it, each made longer or shorter by up to
    /// half at random. Default 0: no pause.
    pub initial_interval: Option<HumanDuration>,
    /// No new try begins later than this after the first. Default 0: no limit.
    pub timeout: Option<HumanDuration>,
    /// Statuses of a response that are retried: `"503"`, `"500-599"`. Default: none.
    pub status: Vec<StatusText>,
    /// A request with a larger body is sent once only. -1: no limit. Default 2097152.
    pub max_request_body_bytes: Option<i64>,
    /// Retries POST, PATCH and LOCK for a status too. Default `false`.
    pub retry_non_idempotent_method: Option<bool>,
    /// Does not retry when no connection could be made. Default `false`.
    pub disable_retry_on_network_error: Option<bool>,
}

/// A status or a range of them, as text or as a bare number.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(untagged)]
pub enum StatusText {
    /// `503`
    Number(i64),
    /// `"503"` or `"500-599"`
    Text(String),
}

impl StatusText {
    /// The first and the last status that it means.
    pub fn parse(&self) -> Option<(u16, u16)> {
        let code = |text: &str| {
            let digits = text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| text.parse::<u16>().ok()).flatten().filter(|code| (100..=599).contains(code))
        };
        let text = match self {
            Self::Number(number) => &number.to_string(),
            Self::Text(text) => text,
        };
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((code(first.trim())?, code(last.trim())?)).filter(|(first, last)| first <= last)
    }
}

impl RetryConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        _name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<Retry> {
        let before = cx.problems.len();
        let attempts = match self.attempts.map(u32::try_from) {
            Some(Ok(attempts)) if attempts > 0 => attempts,
            None => {
                let problem = Problem::error(&at.key("attempts"), "retry needs attempts");
                cx.problems.push(problem.hint("write attempts: 3 (the first try counts)"));
                0
            }
            Some(_) => {
                let problem = Problem::error(&at.key("attempts"), "attempts must be at least 1");
                cx.problems.push(problem.hint("the first try counts"));
                0
            }
        };
        let mut status = Vec::with_capacity(self.status.len());
        for (index, text) in self.status.iter().enumerate() {
            match text.parse() {
                Some(range) => status.push(range),
                None => {
                    let problem = Problem::error(&at.key("status").index(index), "bad status or range");
                    cx.problems.push(problem.hint("write \"503\" or \"500-599\", one to an item"));
                }
            }
        }
        let max_body = self.max_request_body_bytes.unwrap_or(DEFAULT_MAX_REQUEST_BODY_BYTES);
        if max_body < -1 {
            let problem =
                Problem::error(&at.key("maxRequestBodyBytes"), "maxRequestBodyBytes must not be negative");
            cx.problems.push(problem.hint("-1 means no limit"));
        }
        let on_network_error = !self.disable_retry_on_network_error.unwrap_or(false);
        if !on_network_error && self.status.is_empty() {
            let problem = Problem::error(at, "retry would retry nothing");
            cx.problems.push(problem.hint("name a status, or leave disableRetryOnNetworkError out"));
        }
        (!cx.problems.errors_since(before)).then(|| Retry {
            attempts,
            initial_interval: self.initial_interval.unwrap_or_default().0,
            timeout: self.timeout.and_then(HumanDuration::non_zero),
            status: status.into(),
            max_request_body_bytes: u64::try_from(max_body).ok(),
            retry_non_idempotent_method: self.retry_non_idempotent_method.unwrap_or(false),
            on_network_error,
        })
    }
}

/// `retry`, compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Tries in all, the first included; at least 1.
    pub attempts: u32,
    /// Pause before the first retry; see [`Retry::backoff`].
    pub initial_interval: Duration,
    /// No new try begins later than this after the first.
    pub timeout: Option<Duration>,
    /// Ranges of statuses that are retried, both ends included.
    pub status: Box<[(u16, u16)]>,
    /// A request with a larger body is sent once only; `None`: no limit.
    pub max_request_body_bytes: Option<u64>,
    /// Retries non-idempotent methods for a status too.
    pub retry_non_idempotent_method: bool,
    /// Retries any method when nothing was written to an endpoint.
    pub on_network_error: bool,
}

impl Retry {
    /// Whether a body has to be held for another try at all: only a status is retried after the body was sent.
    pub fn holds_body(&self, method: &Method) -> bool {
        self.attempts > 1 && !self.status.is_empty() && self.retries_method(method)
    }

    /// Whether a response of this status to this method is retried.
    ///
    /// The proxy's own 502 and 504 count as responses too.
    pub fn retries_status(&self, method: &Method, status: StatusCode) -> bool {
        let code = status.as_u16();
        self.retries_method(method)
            && self.status.iter().any(|(first, last)| (*first..=*last).contains(&code))
    }

    /// The pause before try number `attempt + 1`, `attempt` being the tries made so far, from 1.
    ///
    /// Grows geometrically from `initial_interval` to nearly twice it over the attempts; `random`, any
    /// number, spreads it evenly over 50 to 150 %.
    pub fn backoff(&self, attempt: u32, random: u64) -> Duration {
        if self.initial_interval.is_zero() || self.attempts < 2 {
            return Duration::ZERO;
        }
        let exponent = f64::from(attempt.saturating_sub(1)) / f64::from(self.attempts - 1);
        // 53 random bits, all that a float can hold.
        let spread = 0.5 + (random >> 11) as f64 / (1_u64 << 53) as f64;
        let seconds = self.initial_interval.as_secs_f64() * exponent.min(1.0).exp2() * spread;
        Duration::try_from_secs_f64(seconds).unwrap_or(self.initial_interval)
    }

    /// From Traefik: these three are taken to have an effect each time.
    fn retries_method(&self, method: &Method) -> bool {
        self.retry_non_idempotent_method || !matches!(method.as_str(), "POST" | "PATCH" | "LOCK")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{problems, retry};

    #[test]
    fn listed_statuses_of_idempotent_methods_are_retried() {
        let link = retry("{attempts: 3, status: ['503', 500-502]}");
        for (method, status, expected) in [
            (Method::GET, 503, true),
            (Method::GET, 500, true),
            (Method::GET, 502, true),
            (Method::GET, 504, false),
            (Method::DELETE, 503, true),
            (Method::POST, 503, false),
            (Method::PATCH, 503, false),
            (Method::from_bytes(b"LOCK").expect("a method"), 503, false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(link.retries_status(&method, status), expected, "{method} {status}");
        }
        let link = retry("{attempts: 3, status: [503], retryNonIdempotentMethod: true}");
        assert!(link.retries_status(&Method::POST, StatusCode::SERVICE_UNAVAILABLE));
    }

    #[test]
    fn a_body_is_held_only_where_a_status_may_be_retried() {
        assert!(retry("{attempts: 2, status: ['503']}").holds_body(&Method::PUT));
        assert!(!retry("{attempts: 2, status: ['503']}").holds_body(&Method::POST));
        assert!(!retry("{attempts: 2}").holds_body(&Method::PUT));
        assert!(!retry("{attempts: 1, status: ['503']}").holds_body(&Method::PUT));
    }

    #[test]
    fn defaults_are_traefiks() {
        let link = retry("{attempts: 4}");
        assert_eq!(link.attempts, 4);
        assert_eq!(link.max_request_body_bytes, Some(2_097_152));
        assert_eq!(link.timeout, None);
        assert!(link.on_network_error);
        assert_eq!(link.backoff(1, u64::MAX), Duration::ZERO);
        assert_eq!(retry("{attempts: 4, maxRequestBodyBytes: -1}").max_request_body_bytes, None);
    }

    #[test]
    fn pauses_grow_to_twice_the_first_and_spread_by_half() {
        let link = retry("{attempts: 5, initialInterval: 100ms}");
        let middle = u64::MAX / 2 + 1;
        assert_eq!(link.backoff(1, middle), Duration::from_millis(100));
        assert_eq!(link.backoff(5, middle), Duration::from_millis(200));
        assert_eq!(link.backoff(99, middle), Duration::from_millis(200));
        assert_eq!(link.backoff(1, 0), Duration::from_millis(50));
        let longest = link.backoff(1, u64::MAX);
        assert!(longest <= Duration::from_millis(150) && longest > Duration::from_millis(149), "{longest:?}");
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "retry.attempts"),
            ("{attempts: 0}", "retry.attempts"),
            ("{attempts: -2}", "retry.attempts"),
            ("{attempts: 2, status: ['503', 'x']}", "retry.status[1]"),
            ("{attempts: 2, status: [600]}", "retry.status[0]"),
            ("{attempts: 2, status: ['599-500']}", "retry.status[0]"),
            ("{attempts: 2, status: ['500,502']}", "retry.status[0]"),
            ("{attempts: 2, maxRequestBodyBytes: -2}", "retry.maxRequestBodyBytes"),
            ("{attempts: 2, disableRetryOnNetworkError: true}", "retry"),
        ] {
            assert_eq!(problems("retry", options).errors(), [path], "{options}");
        }
    }
}
