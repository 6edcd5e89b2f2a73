//! A raw client of HTTP/2: sends exactly the frames it is given and shows those that came back.
//!
//! Fields go out as literals without any compression. Of what comes back only the status is unpacked.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::wire::{Failure, Wire};

/// Frame types (RFC 9113 §6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub const END_STREAM: u8 = 0x1;
pub const ACK: u8 = 0x1;
pub const END_HEADERS: u8 = 0x4;
pub const PADDED: u8 = 0x8;
pub const PRIORITY_FLAG: u8 = 0x20;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// One frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The code of an RST_STREAM or a GOAWAY.
    pub fn code(&self) -> Option<u32> {
        let at = match self.kind {
            kind::RST_STREAM => 0,
            kind::GOAWAY => 4,
            _ => return None,
        };
        let bytes = self.payload.get(at..at + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    pub fn ends(&self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS) && self.flags & END_STREAM != 0
    }
}

/// The bytes of a frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A field as a literal, neither indexed nor compressed.
pub fn field(name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![0];
    for part in [name.as_ref(), value.as_ref()] {
        bytes.extend(integer(part.len()));
        bytes.extend(part);
    }
    bytes
}

/// An integer with a prefix of 7 bits (RFC 7541 §5.1).
fn integer(value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![value as u8];
    }
    let mut bytes = vec![127];
    let mut rest = value - 127;
    while rest >= 128 {
        bytes.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}

/// A block of fields.
pub fn fields(all: &[(&str, &str)]) -> Vec<u8> {
    all.iter().flat_map(|(name, value)| field(name, value)).collect()
}

/// The fields of a request to `a.test` with more after them.
pub fn request(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut block =
        fields(&[(":method", method), (":scheme", "http"), (":authority", "a.test"), (":path", path)]);
    block.extend(fields(more));
    block
}

/// A connection that has been opened with preface and SETTINGS.
pub struct Frames {
    wire: Wire,
    /// Everything that came.
    pub seen: Vec<Frame>,
}

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// A whole answer.
    Answer(u16, Vec<u8>),
    /// RST_STREAM with that code.
    Reset(u32),
    /// GOAWAY with that code, other than a graceful one.
    GoAway(u32),
    /// The connection ended without a word.
    Closed,
    /// Nothing came in time.
    Silent,
}

impl Frames {
    /// Connects and sends nothing.
    pub fn bare(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, super::DEADLINE).expect("a listener");
        Self { wire: Wire::new(stream), seen: Vec::new() }
    }

    /// Connects and opens with no settings of its own.
    pub fn connect(address: SocketAddr) -> Self {
        Self::connect_with(address, &[])
    }

    /// Connects with settings.
    pub fn connect_with(address: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut client = Self::bare(address);
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(key, value)| [&key.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
            .collect();
        client.send(PREFACE);
        client.send(frame(kind::SETTINGS, 0, 0, payload));
        client
    }

    /// Sends exactly these bytes; the peer may have gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.wire.write(bytes).is_ok()
    }

    /// Changes how long reads wait.
    pub fn patience(&self, span: Duration) {
        self.wire.patience(span);
    }

    /// Sends a request without content.
    pub fn get(&mut self, stream: u32, path: &str) {
        self.send(frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, request("GET", path, &[])));
    }

    /// The next frame.
    pub fn next(&mut self) -> Result<Frame, Failure> {
        let head = self.wire.read_exactly(9)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let payload = self.wire.read_exactly(length)?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        self.seen.push(frame.clone());
        // SETTINGS are acknowledged as any client does.
        if frame.kind == kind::SETTINGS && frame.flags & ACK == 0 {
            self.send(self::frame(kind::SETTINGS, ACK, 0, []));
        }
        Ok(frame)
    }

    /// Reads until a frame is of that kind.
    #[track_caller]
    pub fn await_kind(&mut self, wanted: u8) -> Frame {
        loop {
            match self.next() {
                Ok(frame) if frame.kind == wanted => return frame,
                Ok(_) => {}
                Err(failure) => panic!("no frame of kind {wanted}: {failure:?}; came: {:?}", self.seen),
            }
        }
    }

    /// Reads what becomes of a stream. Interim answers are passed over.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            match self.next() {
                Ok(frame) => match frame.kind {
                    kind::HEADERS if frame.stream == stream => {
                        // Trailers have no status.
                        if status < 200 {
                            status = status_of(&frame.payload).unwrap_or(0);
                        }
                        if frame.ends() {
                            return Outcome::Answer(status, body);
                        }
                    }
                    kind::DATA if frame.stream == stream => {
                        body.extend_from_slice(&frame.payload);
                        if frame.ends() {
                            return Outcome::Answer(status, body);
                        }
                    }
                    kind::RST_STREAM if frame.stream == stream => {
                        return Outcome::Reset(frame.code().unwrap_or(u32::MAX));
                    }
                    kind::GOAWAY if frame.code() != Some(0) => {
                        return Outcome::GoAway(frame.code().unwrap_or(u32::MAX));
                    }
                    _ => {}
                },
                Err(Failure::Silent(_)) => return Outcome::Silent,
                Err(_) => return Outcome::Closed,
            }
        }
    }

    /// Whether the connection still answers a PING.
    pub fn is_alive(&mut self) -> bool {
        let mark = *b"is alive";
        self.send(frame(kind::PING, 0, 0, mark));
        loop {
            match self.next() {
                Ok(frame) if frame.kind == kind::PING && frame.payload == mark => return true,
                Ok(_) => {}
                Err(_) => return false,
            }
        }
    }

    /// Waits for the end of the connection; gives the code of the GOAWAY before it.
    #[track_caller]
    pub fn assert_ends(&mut self) -> Option<u32> {
        loop {
            match self.next() {
                Ok(_) => {}
                Err(Failure::Silent(got)) => panic!("the connection did not end: {got:?}; {:?}", self.seen),
                Err(_) => break,
            }
        }
        self.seen.iter().rev().find(|frame| frame.kind == kind::GOAWAY).and_then(Frame::code)
    }
}

/// The status of the first answer on a connection: as an index of the static table, or as a literal whose name is one.
pub fn status_of(block: &[u8]) -> Option<u16> {
    // A change of the table's size may come first.
    let mut block = block;
    while block.first().is_some_and(|byte| byte & 0xe0 == 0x20) {
        block = &block[1..];
    }
    match *block.first()? {
        0x88 => Some(200),
        0x89 => Some(204),
        0x8a => Some(206),
        0x8b => Some(304),
        0x8c => Some(400),
        0x8d => Some(404),
        0x8e => Some(500),
        byte if (byte & 0xc0 == 0x40 && (8..=14).contains(&(byte & 0x3f)))
            || (byte & 0xf0 == 0 && (8..=14).contains(&(byte & 0x0f))) =>
        {
            let length = usize::from(block.get(1)? & 0x7f);
            let text = block.get(2..2 + length)?;
            if block[1] & 0x80 == 0 {
                return std::str::from_utf8(text).ok()?.parse().ok();
            }
            digits(text)
        }
        _ => None,
    }
}

/// Digits as RFC 7541 Appendix B has them.
fn digits(packed: &[u8]) -> Option<u16> {
    let bits: Vec<u8> = packed.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let read = |from: usize, count: usize| -> Option<u8> {
        Some(bits.get(from..from + count)?.iter().fold(0, |value, bit| value << 1 | bit))
    };
    let (mut at, mut number) = (0, 0);
    for _ in 0..3 {
        let (digit, length) = match (read(at, 5)?, read(at, 6)) {
            (short @ 0..=2, _) => (short, 5),
            (_, Some(long @ 25..=31)) => (long - 25 + 3, 6),
            _ => return None,
        };
        number = number * 10 + u16::from(digit);
        at += length;
    }
    Some(number)
}
