//! HTTP/2 on the wire (RFC 9113), both sides: streams of clients and streams to pods.
//!
//! Frames, HPACK and flow control are the `h2` crate's. What stands here is what an edge adds to it: requests read
//! as strictly as those of HTTP/1, windows that open only as the other side takes the bytes, and a watch over
//! every frame, so that each kind of flood has a limit and a name.

pub mod client;
pub mod limits;
mod outflow;
pub mod request;
pub mod server;
pub mod watch;
pub mod wire;

use http::header::{self, HeaderValue};

use crate::http::fields::Fields;
use crate::http::h1::parse::is_allowed_trailer;

/// What a client that knows it speaks HTTP/2 begins with (RFC 9113 §3.4).
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether a value begins or ends with whitespace, which makes a message malformed (RFC 9113 §8.2.1).
fn has_space_around(value: &HeaderValue) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.as_bytes().first()) || is_space(value.as_bytes().last())
}

/// Whether a trailer section has nothing that this hop keeps; see [`crate::http::h1::parse::is_allowed_trailer`].
fn allowed_trailers(trailers: http::HeaderMap) -> Fields {
    let mut trailers = Fields::from(trailers);
    trailers.retain(|name, value| is_allowed_trailer(name) && !has_space_around(value));
    trailers
}

/// Takes out what is about a connection and not about a message (RFC 9113 §8.2.2).
fn strip_connection_fields(fields: &mut Fields) {
    fields.retain(|name, value| match *name {
        header::CONNECTION | header::TRANSFER_ENCODING | header::UPGRADE => false,
        header::TE => value == "trailers",
        ref name => name != "keep-alive" && name != "proxy-connection",
    });
}
