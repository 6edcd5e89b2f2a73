//! What became of each attempt: the one place where it is told.
//!
//! [`Attempt::begin`] before anything is sent, [`Attempt::end`] once; an attempt that is dropped instead (the client
//! went away) ends as nobody's fault. What an answer did after its head is told by [`broke_off`].
//! Cost of a good answer: three writes to one cache line of the endpoint.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use crate::endpoint::Endpoint;
use crate::endpoint::tally::{CallEnd, Verdict};
use crate::http::body::Body;
use crate::http::error::ProxyError;
use crate::http::head::ResponseHead;

/// How one attempt ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A head came, after so long from the request's first byte.
    Answered {
        /// Its status.
        status: StatusCode,
        /// From the request to the head.
        latency: Duration,
    },
    /// A head came, and how the call went is said at its end.
    Opened {
        /// From the request to the head.
        latency: Duration,
    },
    /// No connection: refused, unreachable, not in time.
    NotConnected,
    /// The connection, or its handshake, ended, broke or stood still before a head came, or what came is no answer.
    NoAnswer,
    /// A connection that had been idle turned out to be closed. It says nothing about the pod.
    Stale,
    /// The client, or a limit on the whole exchange, ended it.
    Abandoned,
}

impl Outcome {
    /// What an attempt came to that failed with `error`.
    pub fn of(error: &ProxyError) -> Self {
        match error {
            ProxyError::Connect { .. } | ProxyError::ConnectTimeout { .. } => Self::NotConnected,
            ProxyError::UpstreamTls { .. }
            | ProxyError::UpstreamClosed { .. }
            | ProxyError::BadResponse { .. }
            | ProxyError::ResponseHeaderTimeout { .. }
            | ProxyError::AttemptTimeout { .. }
            | ProxyError::IdleTimeout { .. }
            | ProxyError::UpstreamBody { .. } => Self::NoAnswer,
            // Whatever else ended it was not the endpoint.
            _ => Self::Abandoned,
        }
    }

    /// What an answer comes to; that of a call of gRPC by its own status, which may still be on its way.
    pub fn of_answer(head: &ResponseHead, body: &Body, is_call: bool, latency: Duration) -> Self {
        let status = match CallEnd::of(&head.headers).filter(|_| is_call && head.status == StatusCode::OK) {
            Some(CallEnd::Well) => StatusCode::OK,
            Some(CallEnd::ServerError) => StatusCode::INTERNAL_SERVER_ERROR,
            Some(CallEnd::GatewayError) => StatusCode::SERVICE_UNAVAILABLE,
            None if is_call && head.status == StatusCode::OK && !matches!(body, Body::Empty) => {
                return Self::Opened { latency };
            }
            None => head.status,
        };
        Self::Answered { status, latency }
    }

    /// What it says of the endpoint.
    fn verdict(self) -> Verdict {
        match self {
            Self::Answered { status, latency } => match status.as_u16() {
                502..=504 => Verdict::GatewayError(latency),
                500.. => Verdict::ServerError(latency),
                _ => Verdict::Answered(latency),
            },
            Self::Opened { latency } => Verdict::Opened(latency),
            Self::NotConnected => Verdict::NotConnected,
            Self::NoAnswer => Verdict::NoAnswer,
            Self::Stale | Self::Abandoned => Verdict::Nothing,
        }
    }
}

/// One attempt under way at an endpoint.
#[derive(Debug)]
pub struct Attempt {
    endpoint: Arc<Endpoint>,
    ended: Ended,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    No,
    Yes,
}

impl Attempt {
    /// An attempt begins.
    pub fn begin(endpoint: &Arc<Endpoint>) -> Self {
        endpoint.tally().begin();
        Self { endpoint: Arc::clone(endpoint), ended: Ended::No }
    }

    /// It has ended.
    pub fn end(mut self, outcome: Outcome) {
        self.ended = Ended::Yes;
        self.endpoint.tally().ended(outcome.verdict());
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.ended == Ended::No {
            self.endpoint.tally().ended(Outcome::Abandoned.verdict());
        }
    }
}

/// An answer broke off, or stood still for too long, after its head had been passed on.
pub fn broke_off(endpoint: &Endpoint) {
    endpoint.tally().ended(Verdict::BrokeOff);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::tally::Seen;
    use crate::endpoint::url::ServerUrl;

    #[test]
    fn each_attempt_ends_once_also_when_it_is_dropped() {
        let url = ServerUrl::parse("http://a.test").expect("a good url");
        let endpoint = Endpoint::new(url, PathUse::Ignored);
        drop(Attempt::begin(&endpoint));
        Attempt::begin(&endpoint).end(Outcome::NoAnswer);
        let latency = Duration::from_millis(1);
        Attempt::begin(&endpoint).end(Outcome::Answered { status: StatusCode::OK, latency });
        let delta = Seen::default().advance(endpoint.tally());
        assert_eq!((delta.started, delta.unanswered, delta.answers, delta.no_answers), (3, 2, 1, 1));
    }

    #[test]
    fn a_fault_of_the_clients_is_not_the_endpoints() {
        for (error, outcome) in [
            (ProxyError::ClientGone, Outcome::Abandoned),
            (ProxyError::ClientBodyTimeout, Outcome::Abandoned),
            (ProxyError::ExchangeTimeout, Outcome::Abandoned),
        ] {
            assert_eq!(Outcome::of(&error), outcome, "{error}");
        }
    }
}
