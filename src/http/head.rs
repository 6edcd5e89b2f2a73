//! Heads of requests and responses, free of the protocol that carried them.

use http::{Method, StatusCode, Version};

use crate::http::body::Body;
use crate::http::fields::Fields;
use crate::http::text::Text;

/// A request's head, after the codec has checked its framing and its authority.
#[derive(Clone, Debug)]
pub struct RequestHead {
    /// As the client wrote it; names are compared with case (RFC 9110 §9.1).
    pub method: Method,
    /// The escaped path, beginning with `/`; or `*` for `OPTIONS *`. ASCII.
    pub path: Text,
    /// What follows the first `?`, without it; `Some("")` for a bare trailing `?`.
    pub query: Option<Text>,
    /// Host and port as the client wrote them (`Host`, or the authority of the target).
    pub authority: Text,
    /// Of the connection it came on.
    pub version: Version,
    /// Every field but `Host`, which is `authority`. Framing fields (`Content-Length`,
    /// `Transfer-Encoding`) and hop-by-hop fields are not in it: the body knows its own length.
    pub headers: Fields,
}

/// A response's head.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    /// 200 to 999; interim answers never get this far.
    pub status: StatusCode,
    /// Without framing and hop-by-hop fields, as in [`RequestHead::headers`].
    pub headers: Fields,
}

/// A request on its way to an endpoint.
#[derive(Debug)]
pub struct Request {
    /// Its head; boxed, because a request is moved from hand to hand.
    pub head: Box<RequestHead>,
    /// Its body, which may still be on the wire.
    pub body: Body,
}

/// A response on its way to the client.
#[derive(Debug)]
pub struct Response {
    /// Its head.
    pub head: ResponseHead,
    /// Its body, which may still be on the wire.
    pub body: Body,
}

impl Response {
    /// A response without fields.
    pub fn new(status: StatusCode, body: Body) -> Self {
        Self { head: ResponseHead { status, headers: Fields::new() }, body }
    }
}
