//! The proxy's own answers: one place turns every refusal into what the client sees.

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};

use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::head::Response;

/// Builds the answer to a refusal.
pub fn refusal(error: &ProxyError) -> Response {
    let body = match error.body() {
        std::borrow::Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    };
    let mut response = Response::new(error.status(), Body::full(body));
    let headers = &mut response.head.headers;
    match error {
        ProxyError::NoRoute | ProxyError::NoEndpoint { .. } => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        ProxyError::RateLimited { retry_after: Some(wait), .. } => {
            // Whole seconds, rounded up (RFC 9110 §10.2.3); and Traefik's own field beside it.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            if let Ok(exact) = HeaderValue::try_from(go_duration(wait.as_nanos())) {
                headers.insert("x-retry-in", exact);
            }
        }
        ProxyError::CircuitOpen { retry_after, .. } => {
            let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        ProxyError::Overloaded(_) | ProxyError::QueueFull { .. } | ProxyError::QueueTimeout { .. } => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}

/// Writes a duration as Go does: `1m0.5s`, `876.301749ms`.
fn go_duration(nanos: u128) -> String {
    let decimal = |value: u128, unit: u128, name: &str| {
        let (whole, rest) = (value / unit, value % unit);
        let digits = unit.ilog10() as usize;
        let fraction = format!("{rest:0digits$}");
        match fraction.trim_end_matches('0') {
            "" => format!("{whole}{name}"),
            fraction => format!("{whole}.{fraction}{name}"),
        }
    };
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => decimal(nanos, 1_000, "µs"),
        1_000_000..1_000_000_000 => decimal(nanos, 1_000_000, "ms"),
        _ => {
            let seconds = nanos / 1_000_000_000;
            let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
            let rest = decimal(nanos - (seconds - seconds % 60) * 1_000_000_000, 1_000_000_000, "s");
            match (hours, minutes) {
                (0, 0) => rest,
                (0, minutes) => format!("{minutes}m{rest}"),
                (hours, minutes) => format!("{hours}h{minutes}m{rest}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::common::names::MiddlewareName;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (876_301_749, "876.301749ms"),
            (59_900_000_000, "59.9s"),
            (60_000_000_000, "1m0s"),
            (3_661_500_000_000, "1h1m1.5s"),
            (1_500, "1.5µs"),
        ] {
            assert_eq!(go_duration(nanos), text);
        }
    }

    #[test]
    fn a_rate_limit_says_when_to_come_back_in_whole_seconds_rounded_up() {
        let response = refusal(&ProxyError::RateLimited {
            middleware: MiddlewareName::new("limit"),
            retry_after: Some(Duration::from_millis(1200)),
        });
        assert_eq!(response.head.status, 429);
        assert_eq!(response.head.headers["retry-after"], "2");
        assert_eq!(response.head.headers["x-retry-in"], "1.2s");
    }

    #[test]
    fn no_route_looks_as_traefik_has_it() {
        let response = refusal(&ProxyError::NoRoute);
        assert_eq!(response.head.headers["x-content-type-options"], "nosniff");
        assert!(matches!(response.body, Body::Full(body) if body == "404 page not found\n"));
    }
}
