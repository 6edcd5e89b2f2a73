//! Calls of gRPC: their deadline, and what they get when the proxy answers by itself.
//!
//! A client of gRPC looks for `grpc-status`, and makes a guess of a bare HTTP status. So a refusal becomes a
//! "trailers-only" answer: status 200, the error in its fields, no content.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, StatusCode};

use super::exchange::Exchange;
use crate::common::clock::Millis;
use crate::common::timer::deadline;
use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::head::{RequestHead, Response};

/// What is known of a call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// When its client gives up (`grpc-timeout`).
    pub until: Millis,
    /// Why the proxy refused it, if it did.
    failure: Option<(Code, &'static str)>,
}

/// Whether a request is a call. `application/grpc-web` is not: its errors are in its content.
pub fn is_call(head: &RequestHead) -> bool {
    head.method == Method::POST
        && head
            .headers
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.as_bytes().strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
}

impl Call {
    /// Reads what a call says of itself.
    pub fn of(head: &RequestHead, now: Millis) -> Self {
        let timeout = head.headers.get("grpc-timeout").and_then(|value| parse_timeout(value.as_bytes()));
        Self { until: timeout.map_or(Millis::MAX, |timeout| deadline(now, Some(timeout))), failure: None }
    }

    /// Keeps why it was refused.
    pub fn note(&mut self, error: &ProxyError) {
        self.failure = Some((Code::of(error), error.code()));
    }
}

/// `1*8DIGIT` and a unit. What is malformed limits nothing, as the pod will say.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
    // At least a millisecond: a deadline of 0 would be none.
    let timeout = match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout.max(Duration::from_millis(1)))
}

/// Codes of gRPC that the proxy gives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Code {
    Cancelled,
    Unknown,
    DeadlineExceeded,
    PermissionDenied,
    ResourceExhausted,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    fn number(self) -> u8 {
        match self {
            Self::Cancelled => 1,
            Self::Unknown => 2,
            Self::DeadlineExceeded => 4,
            Self::PermissionDenied => 7,
            Self::ResourceExhausted => 8,
            Self::Unimplemented => 12,
            Self::Internal => 13,
            Self::Unavailable => 14,
            Self::Unauthenticated => 16,
        }
    }

    fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::ClientGone | ProxyError::ClientStalled => Self::Cancelled,
            ProxyError::ResponseHeaderTimeout { .. }
            | ProxyError::ExchangeTimeout
            | ProxyError::ClientDeadline
            | ProxyError::AttemptTimeout { .. }
            | ProxyError::QueueTimeout { .. }
            | ProxyError::IdleTimeout { .. }
            | ProxyError::ClientBodyTimeout => Self::DeadlineExceeded,
            ProxyError::RateLimited(_)
            | ProxyError::TooManyInFlight { .. }
            | ProxyError::HeadTooLarge { .. }
            | ProxyError::BodyTooLarge { .. } => Self::ResourceExhausted,
            ProxyError::BadRequest(_) | ProxyError::ClientBody(_) | ProxyError::BadPath(_) => Self::Internal,
            other => Self::of_status(other.status()),
        }
    }

    /// As clients read a status without `grpc-status` (doc/http-grpc-status-mapping.md of gRPC).
    fn of_status(status: StatusCode) -> Self {
        match status.as_u16() {
            400 | 500 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 | 501 => Self::Unimplemented,
            429 | 502 | 503 => Self::Unavailable,
            504 => Self::DeadlineExceeded,
            _ => Self::Unknown,
        }
    }
}

/// Makes of the proxy's own answer one that clients of gRPC understand; leaves a pod's as it is.
pub fn translate(exchange: &Exchange<'_>, response: &mut Response) {
    let Some(call) = &exchange.grpc else { return };
    let (code, message) = match call.failure {
        Some(failure) if exchange.failure.is_some() => failure,
        // A link has answered.
        _ if exchange.origin.is_none() => {
            let status = response.head.status;
            (Code::of_status(status), status.canonical_reason().unwrap_or("refused"))
        }
        _ => return,
    };
    response.head.status = StatusCode::OK;
    let headers = &mut response.head.headers;
    headers.remove(X_CONTENT_TYPE_OPTIONS);
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(u16::from(code.number())));
    headers.insert("grpc-message", HeaderValue::from_static(message));
    response.body = Body::Empty;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields::Fields;

    #[test]
    fn timeouts_are_read_in_all_their_units_and_in_no_other_way() {
        for (text, millis) in [
            ("1H", Some(3_600_000)),
            ("2M", Some(120_000)),
            ("3S", Some(3000)),
            ("100m", Some(100)),
            ("1500u", Some(1)),
            ("1n", Some(1)),
            ("0m", Some(1)),
            ("99999999H", Some(99_999_999 * 3_600_000)),
            ("100000000H", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("+1S", None),
            ("1s", None),
        ] {
            let read = parse_timeout(text.as_bytes()).map(|timeout| timeout.as_millis());
            assert_eq!(read, millis, "{text:?}");
        }
    }

    #[test]
    fn only_posts_with_a_type_of_grpc_are_calls() {
        for (method, kind, is) in [
            (Method::POST, "application/grpc", true),
            (Method::POST, "application/grpc+proto", true),
            (Method::POST, "application/grpc;charset=x", true),
            (Method::POST, "application/grpc-web", false),
            (Method::POST, "application/grpcx", false),
            (Method::GET, "application/grpc", false),
        ] {
            let mut headers = Fields::new();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            let text = crate::http::text::Text::from_static;
            let head = RequestHead {
                method,
                path: text("/"),
                query: None,
                authority: text("a.test"),
                version: http::Version::HTTP_2,
                headers,
            };
            assert_eq!(is_call(&head), is, "{kind}");
        }
    }
}
