//! `retry`: when and after which pause a request is sent again. `proxy` does the sending.

use std::time::{Duration, SystemTime};

use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::clock::{self, Millis};
use crate::common::jitter::full_jitter;
use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::common::units::HumanDuration;
use crate::http::fields::Fields;
use crate::http::retry_after::retry_after;

use super::CompileContext;

/// Body that is kept for another try unless told otherwise, in bytes; Traefik's number.
const DEFAULT_MAX_REQUEST_BODY_BYTES: i64 = 2 * 1024 * 1024;
/// Longest `Retry-After` that is waited for unless told otherwise: much longer, and the client is better asked.
const DEFAULT_MAX_RETRY_AFTER: HumanDuration = HumanDuration::secs(5);

/// Options of `retry`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryConfig {
    /// Tries in all, the first included. Required, at least 1; 1 means no retry.
    pub attempts: Option<i64>,
    /// Pause before the first retry: up to this, at random (full jitter). It doubles with each try, up to
    /// `maxInterval`. Default 0: no pause.
    pub initial_interval: Option<HumanDuration>,
    /// What pauses grow to. Default 0: ten times `initialInterval`.
    pub max_interval: Option<HumanDuration>,
    /// For each try, until the head of the response; 0: no limit. Default: as router and service say.
    pub attempt_timeout: Option<HumanDuration>,
    /// A retried response's `Retry-After` is waited for up to this; one that asks for more is no retry, and goes
    /// to the client. Default 5s; 0: not looked at, as in Traefik.
    pub max_retry_after: Option<HumanDuration>,
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
            max_interval: match self.max_interval.and_then(HumanDuration::non_zero) {
                Some(interval) => interval,
                None => self.initial_interval.unwrap_or_default().0.saturating_mul(10),
            },
            attempt_timeout: self.attempt_timeout.map(|limit| clock::millis(limit.0)),
            max_retry_after: self.max_retry_after.unwrap_or(DEFAULT_MAX_RETRY_AFTER).non_zero(),
            timeout: self.timeout.and_then(HumanDuration::non_zero),
            status: status.into(),
            max_request_body_bytes: u64::try_from(max_body).ok(),
            retry_non_idempotent_method: self.retry_non_idempotent_method.unwrap_or(false),
            on_network_error,
        })
    }
}

/// A pod wants to be left alone for longer than a retry may wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TooLong;

/// `retry`, compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Retry {
    /// Tries in all, the first included; at least 1.
    pub attempts: u32,
    /// Pause before the first retry; see [`Retry::backoff`].
    pub initial_interval: Duration,
    /// What it grows to.
    pub max_interval: Duration,
    /// For each try, in milliseconds; 0 for none.
    pub attempt_timeout: Option<Millis>,
    /// How long a `Retry-After` may be that is waited for; `None`: it is not looked at.
    pub max_retry_after: Option<Duration>,
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
    /// Anything up to `initial_interval`, then up to twice it, and so on up to `max_interval`: full jitter, so
    /// that those who failed together do not come back together. `random` is evenly distributed.
    pub fn backoff(&self, attempt: u32, random: u64) -> Duration {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let longest = self.initial_interval.saturating_mul(doubled).min(self.max_interval);
        full_jitter(longest, random)
    }

    /// How long the pod wants to be left alone, by its `Retry-After` (RFC 9110 §10.2.3).
    ///
    /// # Errors
    /// Longer than a retry may wait.
    pub fn asked_for(&self, headers: &Fields, now: SystemTime) -> Result<Duration, TooLong> {
        let Some(max) = self.max_retry_after else { return Ok(Duration::ZERO) };
        let wait = retry_after(headers, now).unwrap_or(Duration::ZERO);
        if wait > max { Err(TooLong) } else { Ok(wait) }
    }

    /// From Traefik: these three are taken to have an effect each time.
    fn retries_method(&self, method: &Method) -> bool {
        self.retry_non_idempotent_method || !matches!(method.as_str(), "POST" | "PATCH" | "LOCK")
    }
}

#[cfg(test)]
mod tests {
    use http::header::RETRY_AFTER;

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
    fn pauses_double_up_to_their_bound_and_are_spread_from_nothing_to_all_of_it() {
        let link = retry("{attempts: 9, initialInterval: 100ms, maxInterval: 350ms}");
        let middle = u64::MAX / 2 + 1;
        for (attempt, half) in [(1, 50), (2, 100), (3, 175), (99, 175)] {
            assert_eq!(link.backoff(attempt, middle), Duration::from_millis(half), "after try {attempt}");
        }
        assert_eq!(link.backoff(1, 0), Duration::ZERO);
        let longest = link.backoff(1, u64::MAX);
        assert!(longest <= Duration::from_millis(100) && longest > Duration::from_millis(99), "{longest:?}");
        let unbounded = retry("{attempts: 9, initialInterval: 100ms}");
        assert_eq!(unbounded.backoff(99, middle), Duration::from_millis(500), "ten times the first");
    }

    #[test]
    fn a_pods_retry_after_is_kept_within_its_bound() {
        let asked = |options: &str, value: &'static str| {
            let headers = Fields::from_iter([(RETRY_AFTER, http::HeaderValue::from_static(value))]);
            // One minute before the date below.
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 60);
            retry(options).asked_for(&headers, now)
        };
        let secs = |secs| Ok(Duration::from_secs(secs));
        assert_eq!(asked("{attempts: 2}", "2"), secs(2));
        assert_eq!(asked("{attempts: 2}", "6"), Err(TooLong));
        assert_eq!(asked("{attempts: 2, maxRetryAfter: 2m}", "Sun, 06 Nov 1994 08:49:37 GMT"), secs(60));
        assert_eq!(asked("{attempts: 2}", "Sun, 06 Nov 1994 08:49:37 GMT"), Err(TooLong));
        assert_eq!(asked("{attempts: 2}", "soon"), secs(0));
        assert_eq!(asked("{attempts: 2, maxRetryAfter: 0}", "600"), secs(0));
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
