//! Bodies: nothing, a few bytes held whole, or a stream that is still on the wire.

use std::task::{Context, Poll};

use bytes::Bytes;

use super::copy::Copying;
use super::h1::client::{ClientConn, ResponseBody};
use super::h1::framing::{Length, Piece};
use super::h1::server::RequestBody;
use super::h2;
use super::pace::Paced;

/// The content of a message. One concrete type, so that what is passed through is never boxed.
#[derive(Debug, Default)]
pub enum Body {
    /// No content at all.
    #[default]
    Empty,
    /// Held whole.
    Full(Bytes),
    /// Still coming from a client.
    FromClient(RequestBody),
    /// Still coming from a pod.
    FromPod(Box<ResponseBody>),
    /// Still coming from a client, on a stream of HTTP/2.
    FromH2Client(Box<h2::server::RequestBody>),
    /// Still coming from a pod, on a stream of HTTP/2.
    FromH2Pod(Box<h2::client::ResponseBody>),
    /// Sent once in vain: what was taken from it, then the rest.
    Again(Box<Again>),
    /// Some bytes that were read ahead, then the rest, whose length is not known.
    After(Bytes, Box<Body>),
    /// Copied while it passes.
    Copying(Box<Copying>),
    /// No faster than it may be.
    Paced(Box<Paced>),
    /// The pod has switched protocols: from here on bytes flow both ways.
    Tunnel(Box<ClientConn>),
}

/// A body of which some was taken, put together again.
#[derive(Debug)]
pub struct Again {
    first: Bytes,
    rest: Body,
    length: Length,
}

/// Why a body broke off.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BodyError {
    /// The client closed or reset its connection.
    ClientGone,
    /// The client's framing is wrong.
    ClientMalformed(&'static str),
    /// The client took too long.
    ClientTimeout,
    /// The pod closed too early, or its framing is wrong.
    Pod(&'static str),
}

impl Body {
    /// A body held whole.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }

    /// `first`, then `rest`, which must be of unknown length.
    pub fn after(first: Bytes, rest: Self) -> Self {
        Self::After(first, Box::new(rest))
    }

    /// `first`, then `rest`: together what was announced as `length`.
    pub fn again(first: Bytes, rest: Self, length: Length) -> Self {
        Self::Again(Box::new(Again { first, rest, length }))
    }

    /// How much is still to come, as far as it is known.
    pub fn length(&self) -> Length {
        match self {
            Self::Empty | Self::Tunnel(_) => Length::Empty,
            Self::Full(bytes) => Length::exact(bytes.len() as u64),
            Self::FromClient(body) => body.length(),
            Self::FromPod(body) => body.length(),
            Self::FromH2Client(body) => body.length(),
            Self::FromH2Pod(body) => body.length(),
            Self::Again(again) => again.length,
            Self::After(_, rest) => rest.length(),
            Self::Copying(copying) => copying.length(),
            Self::Paced(paced) => paced.length(),
        }
    }

    /// The next piece; `None` at the end.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, BodyError>>> {
        match self {
            Self::Empty | Self::Tunnel(_) => Poll::Ready(None),
            Self::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *self = Self::Empty;
                Poll::Ready(Some(Ok(Piece::Data(bytes))))
            }
            Self::FromClient(body) => body.poll_piece(cx),
            Self::FromPod(body) => body.poll_piece(cx),
            Self::Copying(copying) => copying.poll_piece(cx),
            Self::Paced(paced) => paced.poll_piece(cx),
            Self::FromH2Client(body) => body.poll_piece(cx),
            Self::FromH2Pod(body) => body.poll_piece(cx),
            Self::Again(again) => {
                let first = std::mem::take(&mut again.first);
                if first.is_empty() {
                    again.rest.poll_piece(cx)
                } else {
                    Poll::Ready(Some(Ok(Piece::Data(first))))
                }
            }
            Self::After(first, rest) => {
                let first = std::mem::take(first);
                *self = std::mem::take(rest);
                Poll::Ready(Some(Ok(Piece::Data(first))))
            }
        }
    }

    /// Nothing has come of it for a while: whoever sends it shall know.
    pub fn stands_still(&mut self) {
        match self {
            Self::FromPod(body) => body.stands_still(),
            Self::FromH2Pod(body) => body.stands_still(),
            _ => {}
        }
    }

    /// Whether [`Self::stands_still`] was said of it.
    pub fn has_stood_still(&self) -> bool {
        match self {
            Self::FromPod(body) => body.has_stood_still(),
            Self::FromH2Pod(body) => body.has_stood_still(),
            _ => false,
        }
    }

    /// Lets what belongs to this body go on while nobody can take pieces of it: a pod may read the
    /// rest of the request only as its answer is read, and the other way round.
    pub fn poll_background(&mut self, cx: &mut Context<'_>) {
        match self {
            Self::FromPod(body) => body.poll_send(cx),
            Self::FromH2Pod(body) => body.poll_send(cx),
            Self::Paced(paced) => paced.poll_background(cx),
            _ => {}
        }
    }
}
