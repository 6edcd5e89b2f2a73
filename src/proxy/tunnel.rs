//! After a switch of protocols: bytes both ways until both sides are done.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderValue, header};

use super::bandwidth::TunnelPaces;
use crate::common::clock::Millis;
use crate::common::timer::{Slot, Wait};
use crate::http::fields::Fields;
use crate::http::h1::io::Io;
use crate::http::pace::Paces;

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
/// `idle` is in milliseconds; 0 for ever. `paces` say how fast.
pub async fn run(
    client: &Io,
    pod: &Io,
    client_first: BytesMut,
    pod_first: BytesMut,
    slot: &Slot,
    idle: Millis,
    paces: Option<Box<TunnelPaces>>,
) -> Tunnelled {
    let TunnelPaces { up, down } = paces.map(|paces| *paces).unwrap_or_default();
    let mut up = Direction { buf: client_first, eof: false, done: false, moved: 0, paces: up };
    let mut down = Direction { buf: pod_first, eof: false, done: false, moved: 0, paces: down };
    let end = watch(slot, idle, |cx| {
        up.poll(client, pod, cx)?;
        down.poll(pod, client, cx)?;
        Ok(Progress { moved: up.moved + down.moved, done: up.done && down.done })
    })
    .await;
    Tunnelled { up: up.moved, down: down.moved, end }
}

/// How far both directions of a tunnel are.
struct Progress {
    moved: u64,
    done: bool,
}

/// Lets both directions go on with `step` until they are done, one breaks, or nothing has moved for `idle`.
async fn watch(
    slot: &Slot,
    idle: Millis,
    mut step: impl FnMut(&mut Context<'_>) -> io::Result<Progress>,
) -> TunnelEnd {
    let mut moved = 0;
    let mut wait = Wait::default();
    let end = poll_fn(|cx| {
        let Ok(progress) = step(cx) else { return Poll::Ready(TunnelEnd::Broken) };
        if progress.done {
            return Poll::Ready(TunnelEnd::Closed);
        }
        if progress.moved != moved {
            moved = progress.moved;
            wait.progress();
        }
        slot.poll_at(cx, wait.at(idle)).map(|()| TunnelEnd::Idle)
    })
    .await;
    slot.clear();
    end
}

struct Direction {
    buf: BytesMut,
    eof: bool,
    done: bool,
    moved: u64,
    paces: Paces,
}

impl Direction {
    /// Moves as much as can be moved now.
    fn poll(&mut self, from: &Io, to: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.buf.is_empty() {
                let Poll::Ready(most) = self.paces.allow(cx, self.buf.len()) else { return Ok(()) };
                match to.poll_write(cx, &[IoSlice::new(&self.buf[..most])]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => {
                        self.buf.advance(written);
                        self.moved += written as u64;
                        self.paces.spend(written as u64);
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
pub fn websocket_fields(headers: &mut Fields, random: u64, more: u64) -> String {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&random.to_be_bytes());
    bytes[8..].copy_from_slice(&more.to_be_bytes());
    let key = BASE64_STANDARD.encode(bytes);
    if let Ok(value) = HeaderValue::try_from(&key) {
        headers.insert(header::SEC_WEBSOCKET_KEY, value);
    }
    if !headers.contains_key(header::SEC_WEBSOCKET_VERSION) {
        headers.append(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    key
}

/// Whether a pod has answered that key (RFC 6455 §4.1): else it has not understood what it was asked.
pub fn accepts(headers: &Fields, key: &str) -> bool {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let text = format!("{key}{GUID}");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    let expected = BASE64_STANDARD.encode(hash);
    headers.get(header::SEC_WEBSOCKET_ACCEPT).is_some_and(|accept| accept.as_bytes() == expected.as_bytes())
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
    paces: Option<Box<TunnelPaces>>,
) -> Tunnelled {
    let TunnelPaces { up, down } = paces.map(|paces| *paces).unwrap_or_default();
    let (piece, unreleased) = (Bytes::new(), 0);
    let mut up = Inward { receive, piece, unreleased, eof: false, done: false, moved: 0, paces: up };
    let mut down = Outward { send, buf: pod_first, eof: false, done: false, moved: 0, paces: down };
    let end = watch(slot, idle, |cx| {
        up.poll(pod, cx)?;
        down.poll(pod, cx)?;
        Ok(Progress { moved: up.moved + down.moved, done: up.done && down.done })
    })
    .await;
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
    paces: Paces,
}

impl Inward {
    fn poll(&mut self, pod: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.piece.is_empty() {
                let Poll::Ready(most) = self.paces.allow(cx, self.piece.len()) else { return Ok(()) };
                match pod.poll_write(cx, &[IoSlice::new(&self.piece[..most])]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(written)) => {
                        self.piece.advance(written);
                        self.moved += written as u64;
                        self.paces.spend(written as u64);
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
    paces: Paces,
}

impl Outward {
    fn poll(&mut self, pod: &Io, cx: &mut Context<'_>) -> io::Result<()> {
        loop {
            while !self.buf.is_empty() {
                let Poll::Ready(most) = self.paces.allow(cx, self.buf.len()) else { return Ok(()) };
                self.send.reserve_capacity(most);
                let capacity = self.send.capacity().min(most);
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
                self.paces.spend(capacity as u64);
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
        let mut headers = Fields::new();
        headers
            .insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert!(accepts(&headers, "dGhlIHNhbXBsZSBub25jZQ=="));
        assert!(!accepts(&headers, "AAAAAAAAAAAAAAAAAAAAAA=="));
        assert!(!accepts(&Fields::new(), "dGhlIHNhbXBsZSBub25jZQ=="));
    }
}
