//! What a client is told about a limit: status, body and fields, made once when the limit is compiled.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER};

use crate::common::names::MiddlewareName;
use crate::http::fields::Fields;
use crate::http::value;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const X_RATE_LIMIT_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_RATE_LIMIT_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RATE_LIMIT_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// Traefik's own.
const X_RETRY_IN: HeaderName = HeaderName::from_static("x-retry-in");

/// The largest number that a structured field may hold (RFC 9651 §3.3.1): a larger one would spoil the whole field.
const MOST_TOLD: u64 = 999_999_999_999_999;

/// A window as clients are told of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ToldWindow {
    /// Its name.
    pub name: Arc<str>,
    /// Requests in `seconds`.
    pub quota: u64,
    /// Whole seconds, at least 1.
    pub seconds: u64,
}

/// Which fields answers carry.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct LimitFields {
    /// `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    pub standard: bool,
    /// `X-RateLimit-Limit`, `-Remaining`, `-Reset` (seconds from now).
    pub legacy: bool,
}

/// How a limit answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LimitAnswer {
    /// The limit.
    pub middleware: MiddlewareName,
    /// Of a refusal; 429 by default.
    pub status: StatusCode,
    /// Of a refusal, when it is not the status' own phrase.
    pub body: Option<Bytes>,
    /// More fields of a refusal.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// On every answer.
    pub fields: LimitFields,
    /// In the order of the limit.
    pub windows: Vec<ToldWindow>,
    /// What the log calls each window.
    labels: Vec<Arc<str>>,
    /// `RateLimit-Policy`, ready.
    policy: HeaderValue,
}

/// Where a client stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// The tightest window.
    pub window: usize,
    /// Requests left in it.
    pub remaining: u64,
    /// Until it is full again.
    pub reset: Duration,
}

/// A request that a limit refused.
#[derive(Clone, Debug)]
pub struct Limited {
    /// How to say it.
    pub answer: Arc<LimitAnswer>,
    /// Until one request would be admitted; `None` if none ever will.
    pub retry_after: Option<Duration>,
    /// What else to say.
    pub standing: Standing,
}

impl std::fmt::Display for Limited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Limited {
    /// The limit and, where it has several, the window: `per-client (day)`.
    pub fn name(&self) -> Arc<str> {
        match self.answer.labels.get(self.standing.window) {
            Some(label) => Arc::clone(label),
            None => self.answer.middleware.as_str().into(),
        }
    }
}

impl LimitAnswer {
    /// An answer as Traefik has it.
    pub fn plain(middleware: MiddlewareName, windows: Vec<ToldWindow>) -> Self {
        let policy: Vec<_> = windows
            .iter()
            .map(|window| {
                let (quota, seconds) = (window.quota.min(MOST_TOLD), window.seconds.min(MOST_TOLD));
                format!("{:?};q={quota};w={seconds}", &*window.name)
            })
            .collect();
        let several = windows.len() > 1;
        let label = |window: &ToldWindow| match several {
            true => format!("{middleware} ({})", window.name).into(),
            false => middleware.as_str().into(),
        };
        Self {
            labels: windows.iter().map(label).collect(),
            middleware,
            status: StatusCode::TOO_MANY_REQUESTS,
            body: None,
            headers: Vec::new(),
            fields: LimitFields::default(),
            // Names are checked to be plain when they are read.
            policy: HeaderValue::try_from(policy.join(", ")).unwrap_or(HeaderValue::from_static("")),
            windows,
        }
    }

    /// Tells the client where it stands.
    pub fn tell(&self, standing: &Standing, headers: &mut Fields) {
        let Some(window) = self.windows.get(standing.window) else { return };
        let reset = whole_seconds(standing.reset);
        if self.fields.standard {
            let (remaining, reset) = (standing.remaining.min(MOST_TOLD), reset.min(MOST_TOLD));
            let told = value::written(format_args!("{:?};r={remaining};t={reset}", &*window.name));
            headers.insert(RATE_LIMIT, told);
            headers.insert(RATE_LIMIT_POLICY, self.policy.clone());
        }
        if self.fields.legacy {
            headers.insert(X_RATE_LIMIT_LIMIT, value::number(window.quota));
            headers.insert(X_RATE_LIMIT_REMAINING, value::number(standing.remaining));
            headers.insert(X_RATE_LIMIT_RESET, value::number(reset));
        }
    }

    /// Adds the fields of a refusal.
    pub fn refuse(&self, limited: &Limited, headers: &mut Fields) {
        if let Some(wait) = limited.retry_after {
            // Whole seconds, rounded up (RFC 9110 §10.2.3); and Traefik's own field beside it.
            headers.insert(RETRY_AFTER, seconds_value(whole_seconds(wait)));
            let mut text = GoDuration::default();
            text.write(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX));
            headers.insert(X_RETRY_IN, value::copied(text.as_bytes()));
        }
        if self.fields != LimitFields::default() {
            self.tell(&limited.standing, headers);
        }
        for (name, value) in &self.headers {
            headers.insert(name.clone(), value.clone());
        }
    }
}

fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0))
}

/// The waits that nearly every refusal has need no memory of their own.
fn seconds_value(seconds: u64) -> HeaderValue {
    const SMALL: [&str; 11] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];
    match usize::try_from(seconds).ok().and_then(|seconds| SMALL.get(seconds)) {
        Some(text) => HeaderValue::from_static(text),
        None => value::number(seconds),
    }
}

/// A duration as Go writes it, without memory of its own: `1m0.5s`, `876.301749ms`.
#[derive(Debug)]
struct GoDuration {
    text: [u8; 48],
    length: usize,
}

impl Default for GoDuration {
    fn default() -> Self {
        Self { text: [0; 48], length: 0 }
    }
}

impl GoDuration {
    fn as_bytes(&self) -> &[u8] {
        &self.text[..self.length]
    }

    fn push(&mut self, bytes: &[u8]) {
        // The longest, of 292 years, has 24 bytes.
        if let Some(to) = self.text.get_mut(self.length..self.length + bytes.len()) {
            to.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }

    fn number(&mut self, number: u64) {
        self.push(itoa::Buffer::new().format(number).as_bytes());
    }

    /// `unit` is a power of ten.
    fn decimal(&mut self, value: u64, unit: u64, name: &str) {
        self.number(value / unit);
        let rest = value % unit;
        if rest > 0 {
            let point = self.length;
            // One digit more than the rest may have keeps its zeros.
            self.number(rest + unit);
            self.text[point] = b'.';
            while self.as_bytes().last() == Some(&b'0') {
                self.length -= 1;
            }
        }
        self.push(name.as_bytes());
    }

    /// 64 bits: 584 years, and divisions that cost a tenth of those of 128.
    fn write(&mut self, nanos: u64) {
        match nanos {
            0 => self.push(b"0s"),
            1..1_000 => self.decimal(nanos, 1, "ns"),
            1_000..1_000_000 => self.decimal(nanos, 1_000, "\u{b5}s"),
            1_000_000..1_000_000_000 => self.decimal(nanos, 1_000_000, "ms"),
            _ => {
                let seconds = nanos / 1_000_000_000;
                let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
                if hours > 0 {
                    self.number(hours);
                    self.push(b"h");
                }
                if hours > 0 || minutes > 0 {
                    self.number(minutes);
                    self.push(b"m");
                }
                self.decimal(nanos - (seconds - seconds % 60) * 1_000_000_000, 1_000_000_000, "s");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(fields: LimitFields) -> LimitAnswer {
        let window = |name: &str, quota, seconds| ToldWindow { name: name.into(), quota, seconds };
        let windows = vec![window("default", 100, 1), window("day", 5_000, 86_400)];
        LimitAnswer { fields, ..LimitAnswer::plain(MiddlewareName::new("m"), windows) }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (999, "999ns"),
            (876_301_749, "876.301749ms"),
            (5_000_000, "5ms"),
            (59_900_000_000, "59.9s"),
            (60_000_000_000, "1m0s"),
            (3_600_000_000_000, "1h0m0s"),
            (3_661_500_000_000, "1h1m1.5s"),
            (1_500, "1.5\u{b5}s"),
        ] {
            let mut written = GoDuration::default();
            written.write(nanos);
            assert_eq!(written.as_bytes(), text.as_bytes());
        }
        let mut longest = GoDuration::default();
        longest.write(u64::MAX);
        assert_eq!(longest.as_bytes(), b"5124095h34m33.709551615s");
    }

    #[test]
    fn clients_are_told_where_they_stand_in_the_tightest_window() {
        let mut headers = Fields::new();
        let standing = Standing { window: 1, remaining: 17, reset: Duration::from_millis(61_200) };
        answer(LimitFields { standard: true, legacy: true }).tell(&standing, &mut headers);
        let mut told: Vec<_> = headers
            .iter()
            .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
            .collect();
        told.sort();
        assert_eq!(
            told,
            [
                "ratelimit-policy: \"default\";q=100;w=1, \"day\";q=5000;w=86400",
                "ratelimit: \"day\";r=17;t=62",
                "x-ratelimit-limit: 5000",
                "x-ratelimit-remaining: 17",
                "x-ratelimit-reset: 62",
            ]
        );
    }

    #[test]
    fn no_number_is_larger_than_a_structured_field_may_hold() {
        // A larger one is an error of syntax, for which clients drop the whole field.
        let window = ToldWindow { name: "default".into(), quota: u64::MAX, seconds: u64::MAX };
        let fields = LimitFields { standard: true, legacy: true };
        let answer = LimitAnswer { fields, ..LimitAnswer::plain(MiddlewareName::new("m"), vec![window]) };
        let mut headers = Fields::new();
        answer.tell(&Standing { window: 0, remaining: u64::MAX, reset: Duration::MAX }, &mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=999999999999999;w=999999999999999");
        assert_eq!(headers["ratelimit"], "\"default\";r=999999999999999;t=999999999999999");
        assert_eq!(headers["x-ratelimit-remaining"], u64::MAX.to_string());
    }

    #[test]
    fn a_refusal_names_the_limit_and_the_window() {
        let standing = Standing { window: 1, remaining: 0, reset: Duration::ZERO };
        let mut limited =
            Limited { answer: Arc::new(answer(LimitFields::default())), retry_after: None, standing };
        assert_eq!(limited.to_string(), "m (day)");
        let mut headers = Fields::new();
        limited.answer.refuse(&limited, &mut headers);
        assert!(headers.is_empty(), "what never passes is not told to wait");
        limited.retry_after = Some(Duration::from_millis(12_000));
        limited.answer.refuse(&limited, &mut headers);
        assert_eq!(
            (&headers["retry-after"], &headers["x-retry-in"]),
            (&HeaderValue::from(12), &HeaderValue::from_static("12s"))
        );
    }
}
