//! Where a body ends (RFC 9112 §6, §7.1): a decoder of what comes, an encoder of what goes.

use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

use super::parse::{self, HeadLimits};
use crate::http::fields::Fields;

/// How a body is delimited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Length {
    /// There is none.
    Empty,
    /// So many bytes, at least one.
    Exact(u64),
    /// In chunks.
    Chunked,
    /// Until the connection ends; only responses.
    UntilClose,
}

impl Length {
    /// A known number of bytes, which may be 0.
    pub fn exact(bytes: u64) -> Self {
        if bytes == 0 { Self::Empty } else { Self::Exact(bytes) }
    }
}

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    /// Content; never empty.
    Data(Bytes),
    /// What follows the last chunk; the end.
    Trailers(Fields),
}

/// A chunk's size line with its extensions, in bytes. Extensions have no use that anybody knows of.
const MAX_CHUNK_LINE: usize = 256;
/// All extensions of one body: a byte of content must not cost kilobytes of them.
const MAX_EXTENSION_BYTES: usize = 16 * 1024;
/// All trailer fields of one body.
const TRAILER_LIMITS: HeadLimits = HeadLimits { bytes: 16 * 1024, fields: 64 };

/// Takes a body out of the bytes of its connection.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    extensions: usize,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Done,
    Exact(u64),
    UntilClose,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

impl Decoder {
    /// Begins a body.
    pub fn new(length: Length) -> Self {
        let state = match length {
            Length::Empty => State::Done,
            Length::Exact(bytes) => State::Exact(bytes),
            Length::Chunked => State::ChunkSize,
            Length::UntilClose => State::UntilClose,
        };
        Self { state, extensions: 0 }
    }

    /// Whether the whole body has been taken.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// How many bytes are left, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.state {
            State::Done => Some(0),
            State::Exact(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// So many bytes have been taken on another way; only of a body of known length.
    pub fn advance(&mut self, bytes: u64) {
        if let State::Exact(left) = self.state {
            let left = left.saturating_sub(bytes);
            self.state = if left == 0 { State::Done } else { State::Exact(left) };
        }
    }

    /// Takes the next piece; `None` when more bytes are needed or the body is done.
    ///
    /// # Errors
    /// Chunks that break RFC 9112 §7.1, in words for the log.
    pub fn decode(&mut self, buf: &mut BytesMut) -> Result<Option<Piece>, &'static str> {
        loop {
            match self.state {
                State::Done => return Ok(None),
                State::UntilClose => {
                    return Ok((!buf.is_empty()).then(|| Piece::Data(buf.split().freeze())));
                }
                State::Exact(left) => {
                    let Some(data) = take(buf, left) else { return Ok(None) };
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Exact(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::ChunkSize => {
                    let Some(end) = memchr(b'\n', buf) else {
                        return if buf.len() > MAX_CHUNK_LINE {
                            Err("chunk size line too long")
                        } else {
                            Ok(None)
                        };
                    };
                    if end > MAX_CHUNK_LINE {
                        return Err("chunk size line too long");
                    }
                    let (size, extensions) = chunk_size(&buf[..end])?;
                    self.extensions += extensions;
                    if self.extensions > MAX_EXTENSION_BYTES {
                        return Err("too many chunk extensions");
                    }
                    buf.advance(end + 1);
                    self.state = if size == 0 { State::Trailers } else { State::ChunkData(size) };
                }
                State::ChunkData(left) => {
                    let Some(data) = take(buf, left) else { return Ok(None) };
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::ChunkData(left) };
                    return Ok(Some(Piece::Data(data)));
                }
                State::ChunkEnd => match buf.as_ref() {
                    [] => return Ok(None),
                    [b'\r'] => return Ok(None),
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.state = State::ChunkSize;
                    }
                    _ => return Err("chunk is longer than its size"),
                },
                State::Trailers => {
                    if buf.starts_with(b"\r\n") {
                        buf.advance(2);
                        self.state = State::Done;
                        return Ok(None);
                    }
                    let mut scan = parse::HeadScan::default();
                    let mut ends = parse::LineEnds::default();
                    let end = scan.find_end(buf, &TRAILER_LIMITS, parse::Leniency::None, &mut ends).map_err(
                        |error| match error {
                            crate::http::error::ProxyError::BadRequest(what) => what,
                            _ => "trailer fields too large",
                        },
                    )?;
                    let Some(end) = end else { return Ok(None) };
                    let trailers = parse::trailers(buf.split_to(end).freeze(), &ends, &TRAILER_LIMITS)?;
                    self.state = State::Done;
                    return Ok((!trailers.is_empty()).then_some(Piece::Trailers(trailers)));
                }
            }
        }
    }

    /// The connection has ended: whether that ends the body too.
    ///
    /// # Errors
    /// When some of the body is missing.
    pub fn end_of_input(&mut self) -> Result<(), &'static str> {
        match self.state {
            State::Done => Ok(()),
            State::UntilClose => {
                self.state = State::Done;
                Ok(())
            }
            State::Exact(_) => Err("ended before its Content-Length"),
            State::ChunkSize | State::ChunkData(_) | State::ChunkEnd | State::Trailers => {
                Err("ended before its last chunk")
            }
        }
    }
}

fn take(buf: &mut BytesMut, left: u64) -> Option<Bytes> {
    if buf.is_empty() {
        return None;
    }
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
    Some(buf.split_to(len).freeze())
}

/// Reads `1*HEXDIG [ chunk-ext ] CR`; gives the size and how many bytes of extensions there were.
fn chunk_size(line: &[u8]) -> Result<(u64, usize), &'static str> {
    let Some((b'\r', line)) = line.split_last() else { return Err("chunk size line ends without CR") };
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // 15 digits always fit into 63 bits; nobody sends leading zeros in earnest.
    if digits == 0 || digits > 15 {
        return Err("malformed chunk size");
    }
    let size = line[..digits].iter().fold(0_u64, |size, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => digit - b'A' + 10,
        };
        size << 4 | u64::from(digit)
    });
    let extensions = &line[digits..];
    match extensions {
        [] => {}
        [b';', rest @ ..]
            if !rest.is_empty() && rest.iter().all(|byte| matches!(byte, b'\t' | b' '..=0x7e)) => {}
        _ => return Err("malformed chunk extension"),
    }
    Ok((size, extensions.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(
        length: Length,
        wire: &str,
        step: usize,
    ) -> Result<(String, Option<Fields>, bool), &'static str> {
        let mut decoder = Decoder::new(length);
        let (mut buf, mut content, mut trailers) = (BytesMut::new(), String::new(), None);
        for bytes in wire.as_bytes().chunks(step) {
            buf.extend_from_slice(bytes);
            while let Some(piece) = decoder.decode(&mut buf)? {
                match piece {
                    Piece::Data(data) => content.push_str(std::str::from_utf8(&data).unwrap()),
                    Piece::Trailers(fields) => trailers = Some(fields),
                }
            }
        }
        Ok((content, trailers, decoder.is_done()))
    }

    #[test]
    fn chunks_are_put_together_however_they_are_cut() {
        let wire = "4\r\nwiki\r\n5;a=b\r\npedia\r\nE\r\n in\r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\nContent-Length: 3\r\n\r\n";
        for step in 1..wire.len() {
            let (content, trailers, done) = decode(Length::Chunked, wire, step).unwrap();
            assert_eq!(content, "wikipedia in\r\n\r\nchunks.", "step {step}");
            assert!(done, "step {step}");
            let trailers = trailers.unwrap();
            assert_eq!(trailers["x-sum"], "1");
            assert!(!trailers.contains_key("content-length"), "a trailer must not reframe");
        }
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            "\r\n",
            "g\r\n",
            "0x4\r\nwiki\r\n",
            "+4\r\nwiki\r\n",
            " 4\r\nwiki\r\n",
            "4 \r\nwiki\r\n",
            "4\nwiki\r\n",
            "4\r\nwikiX\r\n",
            "4\r\nwiki\n0\r\n\r\n",
            "-1\r\n",
            "ffffffffffffffff\r\n",
            "4;\r\nwiki\r\n",
            "4;a\x00\r\nwiki\r\n",
            "4;a\rb\r\nwiki\r\n",
            "0\r\nX : 1\r\n\r\n",
            "0\r\n X: 1\r\n\r\n",
            "0\r\nX: 1\n\r\n",
        ] {
            assert!(decode(Length::Chunked, wire, wire.len()).is_err(), "{wire:?}");
        }
        let long = format!("4;{}\r\nwiki\r\n", "a".repeat(300));
        assert!(decode(Length::Chunked, &long, 7).is_err());
    }

    #[test]
    fn a_known_length_takes_its_bytes_and_leaves_the_rest() {
        let mut decoder = Decoder::new(Length::Exact(3));
        let mut buf = BytesMut::from("abcGET /");
        assert!(matches!(decoder.decode(&mut buf), Ok(Some(Piece::Data(data))) if data == "abc"));
        assert!(decoder.is_done());
        assert_eq!(buf, "GET /");
    }

    #[test]
    fn an_end_before_the_body_is_whole_is_an_error() {
        assert!(Decoder::new(Length::Exact(1)).end_of_input().is_err());
        assert!(Decoder::new(Length::Chunked).end_of_input().is_err());
        assert!(Decoder::new(Length::UntilClose).end_of_input().is_ok());
    }
}
