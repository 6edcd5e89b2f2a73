//! Heads and bodies as they go onto the wire.
//!
//! Names are written as people spell them (`Content-Length`): some old clients compare with case.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http::{Method, StatusCode, Version};

use super::framing::{Length, Piece};
use super::io::Io;
use crate::http::error::reason;
use crate::http::fields::Fields;
use crate::http::head::RequestHead;

/// Pieces up to this size are copied behind what waits already, so that they leave in one write.
const COPY_UP_TO: usize = 2048;
/// What an idle connection may keep for its next head.
const KEPT: usize = 1024;
/// When so much waits, it is written before more is taken.
const ENOUGH: usize = 16 * 1024;

/// Bytes on their way out: text of heads and chunk sizes, one shared piece, and its end.
#[derive(Debug, Default)]
pub struct Outgoing {
    text: BytesMut,
    data: Bytes,
    tail: &'static [u8],
}

impl Outgoing {
    /// Where heads are written. Only while [`Self::takes_more`].
    pub fn text(&mut self) -> &mut BytesMut {
        &mut self.text
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether another piece may be added before a write.
    pub fn takes_more(&self) -> bool {
        self.data.is_empty() && self.tail.is_empty() && self.text.len() < ENOUGH
    }

    /// Whether it is empty and so small that an idle connection may keep it for the next head.
    pub fn is_small(&self) -> bool {
        self.is_empty() && self.text.capacity() <= KEPT
    }

    /// Adds a piece of content; only while [`Self::takes_more`].
    pub fn push(&mut self, data: Bytes, chunked: bool) {
        if chunked {
            put_hex(&mut self.text, data.len());
            self.text.extend_from_slice(b"\r\n");
        }
        let tail: &'static [u8] = if chunked { b"\r\n" } else { b"" };
        if data.len() <= COPY_UP_TO {
            self.text.extend_from_slice(&data);
            self.text.extend_from_slice(tail);
        } else {
            self.data = data;
            self.tail = tail;
        }
    }

    /// Ends a chunked body.
    pub fn finish_chunked(&mut self, trailers: Option<&Fields>) {
        self.text.extend_from_slice(b"0\r\n");
        if let Some(trailers) = trailers {
            put_fields(&mut self.text, trailers);
        }
        self.text.extend_from_slice(b"\r\n");
    }

    /// Writes everything that waits; gives back how many bytes went out this time through `written`.
    pub fn poll_flush(&mut self, io: &Io, cx: &mut Context<'_>, written: &mut u64) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let slices = [IoSlice::new(&self.text), IoSlice::new(&self.data), IoSlice::new(self.tail)];
            let slices =
                if self.data.is_empty() && self.tail.is_empty() { &slices[..1] } else { &slices[..] };
            let mut taken = ready!(io.poll_write(cx, slices))?;
            if taken == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            *written += taken as u64;
            let text = taken.min(self.text.len());
            self.text.advance(text);
            taken -= text;
            let data = taken.min(self.data.len());
            self.data.advance(data);
            taken -= data;
            self.tail = &self.tail[taken..];
        }
        // The piece is let go of, so that the buffer it was read into can be used again.
        self.data = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

/// What a body's pieces are wrapped into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Encoding {
    /// So many bytes are still to come.
    Exact(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends.
    UntilClose,
}

impl Encoding {
    /// Adds a piece; `Err` when the body is longer than was announced.
    pub fn push(&mut self, piece: Piece, out: &mut Outgoing, end: &mut bool) -> Result<(), &'static str> {
        match (self, piece) {
            (Self::Exact(left), Piece::Data(data)) => {
                *left = left.checked_sub(data.len() as u64).ok_or("body is longer than its length")?;
                out.push(data, false);
            }
            (Self::UntilClose, Piece::Data(data)) => out.push(data, false),
            (Self::Chunked, Piece::Data(data)) => out.push(data, true),
            (Self::Chunked, Piece::Trailers(trailers)) => {
                out.finish_chunked(Some(&trailers));
                *end = true;
            }
            // There is no place for trailer fields without chunks.
            (Self::Exact(_) | Self::UntilClose, Piece::Trailers(_)) => {}
        }
        Ok(())
    }

    /// The body has ended; `Err` when it is shorter than was announced.
    pub fn finish(&self, out: &mut Outgoing) -> Result<(), &'static str> {
        match self {
            Self::Exact(0) | Self::UntilClose => Ok(()),
            Self::Exact(_) => Err("body is shorter than its length"),
            Self::Chunked => {
                out.finish_chunked(None);
                Ok(())
            }
        }
    }
}

/// What a connection is asked for beside the head.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestExtras<'a> {
    /// The pod shall answer `100 Continue` before the body goes.
    pub expect_continue: bool,
    /// The protocol to switch to.
    pub upgrade: Option<&'a [u8]>,
}

/// Writes a request head.
pub fn request_head(out: &mut BytesMut, head: &RequestHead, length: Length, extras: RequestExtras<'_>) {
    out.reserve(512);
    out.extend_from_slice(head.method.as_str().as_bytes());
    out.extend_from_slice(b" ");
    out.extend_from_slice(head.path.as_bytes());
    if let Some(query) = &head.query {
        out.extend_from_slice(b"?");
        out.extend_from_slice(query.as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(head.authority.as_bytes());
    out.extend_from_slice(b"\r\n");
    put_fields(out, &head.headers);
    match length {
        // Methods that usually carry content say that they carry none (RFC 9110 §8.6).
        Length::Empty if matches!(head.method, Method::POST | Method::PUT | Method::PATCH) => {
            out.extend_from_slice(b"Content-Length: 0\r\n");
        }
        Length::Empty => {}
        Length::Exact(bytes) => put_content_length(out, bytes),
        Length::Chunked | Length::UntilClose => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
    if extras.expect_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    if let Some(protocol) = extras.upgrade {
        out.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
        out.extend_from_slice(protocol);
        out.extend_from_slice(b"\r\n");
    } else if head.headers.contains_key(http::header::TE) {
        out.extend_from_slice(b"Connection: TE\r\n");
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes a status line and fields, without the empty line.
pub fn response_start(out: &mut BytesMut, version: Version, status: StatusCode, headers: &Fields) {
    out.reserve(512);
    match (version, status) {
        (Version::HTTP_11, StatusCode::OK) => out.extend_from_slice(b"HTTP/1.1 200 OK\r\n"),
        _ => {
            out.extend_from_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
            out.extend_from_slice(status.as_str().as_bytes());
            out.extend_from_slice(b" ");
            match reason(status) {
                Some(reason) => out.extend_from_slice(reason.as_bytes()),
                None => {
                    // As Go, and so Traefik, names a code that it does not know.
                    out.extend_from_slice(b"status code ");
                    out.extend_from_slice(status.as_str().as_bytes());
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }
    put_fields(out, headers);
}

/// Writes `Content-Length`.
pub fn put_content_length(out: &mut BytesMut, bytes: u64) {
    out.extend_from_slice(b"Content-Length: ");
    out.extend_from_slice(itoa::Buffer::new().format(bytes).as_bytes());
    out.extend_from_slice(b"\r\n");
}

/// Writes each field on a line of its own.
pub fn put_fields(out: &mut BytesMut, headers: &Fields) {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let start = out.len();
    // Room is made once for all of them.
    out.resize(start + bytes, 0);
    let mut room = &mut out[start..];
    for (name, value) in headers {
        let name = name.as_str().as_bytes();
        let (line, rest) = std::mem::take(&mut room).split_at_mut(name.len() + value.len() + 4);
        let (left, right) = line.split_at_mut(name.len());
        put_name(left, name);
        let (colon, right) = right.split_at_mut(2);
        colon.copy_from_slice(b": ");
        let (text, end) = right.split_at_mut(value.len());
        text.copy_from_slice(value.as_bytes());
        end.copy_from_slice(b"\r\n");
        room = rest;
    }
}

fn put_name(out: &mut [u8], name: &[u8]) {
    let Some(whole) = name.len().checked_sub(8) else {
        let mut capital = true;
        for (to, byte) in out.iter_mut().zip(name) {
            *to = if capital { byte.to_ascii_uppercase() } else { *byte };
            capital = *byte == b'-';
        }
        return;
    };
    let mut capital = true;
    for at in (0..whole).step_by(8) {
        capital = put_eight(out, name, at, capital);
    }
    // The last eight again, in part.
    put_eight(out, name, whole, whole == 0 || name[whole - 1] == b'-');
}

/// Eight letters of a name at once; whether the one after them is a capital.
fn put_eight(out: &mut [u8], name: &[u8], at: usize, capital: bool) -> bool {
    const HIGH: u64 = 0x8080_8080_8080_8080;
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    let (Some(from), Some(to)) = (name[at..].first_chunk(), out[at..].first_chunk_mut()) else {
        return capital;
    };
    // Names are ASCII: adding less than 0x80 to a byte of one never carries into the next.
    let letters = u64::from_le_bytes(*from);
    let dashes = !((letters ^ each(b'-')) + each(0x7f)) & HIGH;
    let small = (letters + each(0x80 - b'a')) & !(letters + each(0x7f - b'z')) & HIGH;
    let capitals = dashes << 8 | if capital { 0x80 } else { 0 };
    *to = (letters ^ (capitals & small) >> 2).to_le_bytes();
    dashes >> 63 == 1
}

fn put_hex(out: &mut BytesMut, number: usize) {
    let digits = (usize::BITS - number.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (number >> (place * 4) & 0xf) as u8;
        out.extend_from_slice(&[if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }]);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::http::text::Text;

    #[test]
    fn a_request_head_is_written_with_its_framing() {
        let mut headers = Fields::new();
        headers.insert("x-forwarded-for", HeaderValue::from_static("1.2.3.4"));
        let head = RequestHead {
            method: Method::POST,
            path: Text::from_static("/a"),
            query: Some(Text::from_static("b")),
            authority: Text::from_static("a.test"),
            version: Version::HTTP_11,
            headers,
        };
        let mut out = BytesMut::new();
        request_head(&mut out, &head, Length::Exact(12_345), RequestExtras::default());
        assert_eq!(
            out,
            "POST /a?b HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 1.2.3.4\r\nContent-Length: 12345\r\n\r\n"
        );
        out.clear();
        request_head(
            &mut out,
            &head,
            Length::Empty,
            RequestExtras { expect_continue: false, upgrade: Some(b"websocket") },
        );
        assert!(out.ends_with(b"Content-Length: 0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"));
    }

    #[test]
    fn chunks_are_written_with_their_sizes_in_hex() {
        let mut out = Outgoing::default();
        let mut encoding = Encoding::Chunked;
        let mut end = false;
        encoding.push(Piece::Data(Bytes::from_static(b"hello world, hi")), &mut out, &mut end).unwrap();
        encoding.push(Piece::Data(Bytes::from(vec![b'x'; 4096])), &mut out, &mut end).unwrap();
        assert_eq!(&out.text[..], b"f\r\nhello world, hi\r\n1000\r\n");
        assert_eq!((out.data.len(), out.tail, out.takes_more()), (4096, &b"\r\n"[..], false));
    }

    #[test]
    fn a_body_that_breaks_its_announced_length_is_an_error() {
        let mut out = Outgoing::default();
        let mut encoding = Encoding::Exact(2);
        assert!(encoding.finish(&mut out).is_err());
        assert!(encoding.push(Piece::Data(Bytes::from_static(b"abc")), &mut out, &mut false).is_err());
    }
}
