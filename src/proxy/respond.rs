//! The proxy's own answers: one place turns every refusal into what the client sees.

use bytes::Bytes;
use http::HeaderValue;
use http::header::{CONTENT_TYPE, RETRY_AFTER, X_CONTENT_TYPE_OPTIONS};

use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::h1::memory;
use crate::http::head::{Response, ResponseHead};

/// Builds the answer to a refusal.
pub fn refusal(error: &ProxyError) -> Response {
    let own = match error {
        ProxyError::RateLimited(limited) => limited.answer.body.clone(),
        _ => None,
    };
    let body = own.unwrap_or_else(|| match error.body() {
        std::borrow::Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    });
    let head = ResponseHead { status: error.status(), headers: memory::fields() };
    let mut response = Response { head, body: Body::full(body) };
    let headers = &mut response.head.headers;
    match error {
        ProxyError::NoRoute | ProxyError::Misdirected | ProxyError::NoEndpoint { .. } => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        ProxyError::RateLimited(limited) => limited.answer.refuse(limited, headers),
        ProxyError::OutboundLimited { retry_after: Some(wait), .. } => {
            let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::common::names::MiddlewareName;
    use crate::http::limited::{LimitAnswer, Limited, Standing};

    #[test]
    fn a_rate_limit_says_when_to_come_back_in_whole_seconds_rounded_up() {
        let limited = Limited {
            answer: Arc::new(LimitAnswer::plain(MiddlewareName::new("limit"), Vec::new())),
            retry_after: Some(Duration::from_millis(1200)),
            standing: Standing { window: 0, remaining: 0, reset: Duration::ZERO },
        };
        let response = refusal(&ProxyError::RateLimited(limited));
        assert_eq!(response.head.status, 429);
        assert_eq!(response.head.headers.len(), 2);
        assert_eq!(response.head.headers["retry-after"], "2");
        assert_eq!(response.head.headers["x-retry-in"], "1.2s");
        assert!(matches!(response.body, Body::Full(body) if body == "Too Many Requests"));
    }

    #[test]
    fn no_route_looks_as_traefik_has_it() {
        let response = refusal(&ProxyError::NoRoute);
        assert_eq!(response.head.headers["x-content-type-options"], "nosniff");
        assert!(matches!(response.body, Body::Full(body) if body == "404 page not found\n"));
    }
}
