//! After a switch of protocols: bytes both ways until both sides are done.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, header};

use crate::common::clock::{self, Millis};
use crate::common::timer::Slot;
use crate::http::h1::io::Io;

/// What one direction holds at most.
const BUFFER: usize = 16 * 1024;

/// How a tunnel ended, and what went through it.
#[derive(Debug)]
pub struct Tunnelled {
    /// From the client to the pod.
    pub up: u64,
    /// From the pod to the client.
    pub down: u64,
    /// Why it ended.
    pub end: TunnelEnd,
}

/// Why a tunnel ended.
#[derive(Debug)]
pub enum TunnelEnd {
    /// Both sides are done.
    Closed,
    /// One side broke.
    Broken,
    /// Nothing moved for the idle time.
    Idle,
}

/// Passes bytes between a client and a pod. `client_first` and `pod_first` were read ahead of the switch.
/// `idle` is in milliseconds; 0 for ever.
pub async fn run(
    client: &Io,
    pod: &Io,
    client_first: BytesMut,
    pod_first: BytesMut,
    slot: &Slot,
    idle: Millis,
) -> Tunnelled {
    let mut up = Direction { buf: client_first, eof: false, done: false, moved: 0 };
    let mut down = Direction { buf: pod_first, eof: false, done: false, moved: 0 };
    let mut moved = u64::MAX;
    let mut since = 0;
    let end = poll_fn(|cx| {
        let result = up.poll(client, pod, cx).and_then(|()| down.poll(pod, client, cx));
        if result.is_err() {
            return Poll::Ready(TunnelEnd::Broken);
        }
        if up.done && down.done {
            return Poll::Ready(TunnelEnd::Closed);
        }
        let total = up.moved + down.moved;
        if total != moved {
            moved = total;
            since = clock::now();
        }
        let at = if idle == 0 { Millis::MAX } else { since + idle };
        slot.poll_at(cx, at).map(|()| TunnelEnd::Idle)
    })
    .await;
    slot.clear();
    Tunnelled { up: up.moved, down: down.moved, end }
}

struct Direction {
    buf: BytesMut,
    eof: bool,
    done: bool,
    moved: u64,
}

impl Direction {
    /// Moves as much as can be moved now.
    fn poll(&mut self, from: &Io, to: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.buf.is_empty() {
                match to.poll_write(cx, &[IoSlice::new(&self.buf)]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => {
                        self.buf.advance(written);
                        self.moved += written as u64;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => return Ok(()),
                }
            }
            if self.eof {
                if !self.done {
                    self.done = true;
                    to.shutdown_write();
                }
                return Ok(());
            }
            self.buf.reserve(BUFFER);
            match from.poll_read(cx, &mut self.buf) {
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    // Idle tunnels hold no buffer.
                    self.buf = BytesMut::new();
                    return Ok(());
                }
            }
        }
    }
}

/// Makes a WebSocket handshake of HTTP/1 of an extended CONNECT, which has none of its fields (RFC 8441 §5.1).
/// Returns the key that the pod has to answer.
pub fn websocket_fields(headers: &mut HeaderMap, random: u64, more: u64) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random.to_be_bytes());
    bytes[8..].copy_from_slice(&more.to_be_bytes());
    let key = base64(&bytes);
    if let Ok(value) = HeaderValue::try_from(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, value);
    }
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    key
}

/// Whether a pod has answered that key (RFC 6455 §4.1): else it has not understood what it was asked.
pub fn accepts(headers: &HeaderMap, key: &str) -> bool {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let text = format!("{key}{GUID}");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let expected = base64(hash.as_ref());
    headers.get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| accept.as_bytes() == expected.as_bytes())
}

/// RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let word = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(ALPHABET[(word >> (18 - 6 * place) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Passes bytes between a client's stream of HTTP/2 and a pod. `pod_first` was read ahead of the switch.
/// `idle` is in milliseconds; 0 for ever.
pub async fn run_on_stream(
    receive: RecvStream,
    send: SendStream<Bytes>,
    pod: &Io,
    pod_first: BytesMut,
    slot: &Slot,
    idle: Millis,
) -> Tunnelled {
    let mut up = Inward { receive, piece: Bytes::new(), unreleased: 0, eof: false, done: false, moved: 0 };
    let mut down = Outward { send, buf: pod_first, eof: false, done: false, moved: 0 };
    let mut moved = u64::MAX;
    let mut since = 0;
    let end = poll_fn(|cx| {
        let result = up.poll(pod, cx).and_then(|()| down.poll(pod, cx));
        if result.is_err() {
            return Poll::Ready(TunnelEnd::Broken);
        }
        if up.done && down.done {
            return Poll::Ready(TunnelEnd::Closed);
        }
        let total = up.moved + down.moved;
        if total != moved {
            moved = total;
            since = clock::now();
        }
        let at = if idle == 0 { Millis::MAX } else { since + idle };
        slot.poll_at(cx, at).map(|()| TunnelEnd::Idle)
    })
    .await;
    slot.clear();
    if !matches!(end, TunnelEnd::Closed) {
        down.send.send_reset(h2::Reason::CANCEL);
    }
    Tunnelled { up: up.moved, down: down.moved, end }
}

/// From the client's stream to the pod.
struct Inward {
    receive: RecvStream,
    piece: Bytes,
    /// Of the piece at hand, to be given back to the client's window once it is written.
    unreleased: usize,
    eof: bool,
    done: bool,
    moved: u64,
}

impl Inward {
    fn poll(&mut self, pod: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.piece.is_empty() {
                match pod.poll_write(cx, &[IoSlice::new(&self.piece)]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => {
                        self.piece.advance(written);
                        self.moved += written as u64;
                    }
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => return Ok(()),
                }
            }
            let written = std::mem::take(&mut self.unreleased);
            if written > 0 {
                // Fails only for more than was given.
                let _ = self.receive.flow_control().release_capacity(written);
            }
            if self.eof {
                if !self.done {
                    self.done = true;
                    pod.shutdown_write();
                }
                return Ok(());
            }
            match self.receive.poll_data(cx) {
                Poll::Ready(Some(Ok(piece))) => {
                    self.unreleased = piece.len();
                    self.piece = piece;
                }
                Poll::Ready(Some(Err(error))) => return Err(io::Error::other(error)),
                Poll::Ready(None) => self.eof = true,
                Poll::Pending => return Ok(()),
            }
        }
    }
}

/// From the pod to the client's stream.
struct Outward {
    send: SendStream<Bytes>,
    buf: BytesMut,
    eof: bool,
    done: bool,
    moved: u64,
}

impl Outward {
    fn poll(&mut self, pod: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.buf.is_empty() {
                self.send.reserve_capacity(self.buf.len());
                let capacity = self.send.capacity().min(self.buf.len());
                if capacity == 0 {
                    match self.send.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => continue,
                        Poll::Ready(Some(Err(error))) => return Err(io::Error::other(error)),
                        Poll::Ready(None) => return Err(io::ErrorKind::BrokenPipe.into()),
                        Poll::Pending => return Ok(()),
                    }
                }
                let part = self.buf.split_to(capacity).freeze();
                self.moved += capacity as u64;
                self.send.send_data(part, false).map_err(io::Error::other)?;
            }
            if self.eof {
                if !self.done {
                    self.done = true;
                    self.send.send_data(Bytes::new(), true).map_err(io::Error::other)?;
                }
                return Ok(());
            }
            if let Poll::Ready(reset) = self.send.poll_reset(cx) {
                return Err(match reset {
                    Ok(reason) => io::Error::other(h2::Error::from(reason)),
                    Err(error) => io::Error::other(error),
                });
            }
            self.buf.reserve(BUFFER);
            match pod.poll_read(cx, &mut self.buf) {
                Poll::Ready(Ok(0)) => self.eof = true,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {
                    // Idle tunnels hold no buffer.
                    self.buf = BytesMut::new();
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_answers_another_key_has_not_accepted() {
        // The example of RFC 6455 §1.3.
        let mut headers = HeaderMap::new();
        headers
            .insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(accepts(&headers, "dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!accepts(&headers, "AAAAAAAAAAAAAAAAAAAAAA=="));
        assert!(!accepts(&HeaderMap::new(), "dGhlIHNhbXBsZSBub25jZQ=="));
    }

    #[test]
    fn base64_pads_what_is_no_multiple_of_three() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foob", "Zm9vYg==")]
        {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }
}
