//! The frames of one connection as they pass, counted by kind. Pure: bytes in, a verdict out.
//!
//! The codec answers each PING and SETTINGS and forgets each PRIORITY, whatever their number; it says nothing of
//! the streams that it resets by itself. Nine bytes of every frame tell both.

use smallvec::SmallVec;

use crate::common::clock::Millis;
use crate::http::h2::limits::{BYTES_PER_UPDATE, FrameLimits, WINDOW};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

/// Which limit a connection went over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flood {
    /// [`FrameLimits::resets`].
    Resets,
    /// [`FrameLimits::settings`].
    Settings,
    /// [`FrameLimits::pings`].
    Pings,
    /// [`FrameLimits::priorities`].
    Priorities,
    /// [`FrameLimits::empty`].
    EmptyFrames,
    /// [`FrameLimits::window_updates`].
    WindowUpdates,
    /// [`FrameLimits::continuations`].
    Continuations,
    /// No flood, but a client that does not begin with SETTINGS (RFC 9113 §3.4), which the codec overlooks.
    NoSettings,
}

/// Which limit that the codec keeps a connection went over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Overrun {
    /// Streams reset before they were looked at.
    PendingResets,
    /// Mistakes answered with a reset.
    LocalResets,
    /// DATA frames that are small beyond reason.
    SmallData,
    /// Fields that unpack to far more than is allowed.
    HeaderList,
    /// CONTINUATION frames.
    Continuations,
}

/// The first bytes of a frame (RFC 9113 §4.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct FrameHead {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Finds the frames in a stream of bytes, however it is cut.
#[derive(Debug, Default)]
struct Scanner {
    head: [u8; 9],
    have: usize,
    /// Bytes of the frame's content that are still to come.
    left: u32,
    /// The error code of an RST_STREAM, as far as it has come.
    code: u32,
    kind: u8,
    stream: u32,
}

/// What a scanner found.
enum Found {
    /// A frame begins.
    Frame(FrameHead),
    /// A stream is reset for a reason.
    Reset {
        /// Which.
        stream: u32,
        /// Why.
        code: u32,
    },
}

impl Scanner {
    fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Found)) {
        while !bytes.is_empty() {
            if self.left > 0 {
                let taken = (self.left as usize).min(bytes.len());
                if self.kind == RST_STREAM {
                    for byte in &bytes[..taken] {
                        self.code = self.code << 8 | u32::from(*byte);
                    }
                }
                self.left -= u32::try_from(taken).unwrap_or(self.left);
                if self.left == 0 && self.kind == RST_STREAM {
                    found(Found::Reset { stream: self.stream, code: self.code });
                }
                bytes = &bytes[taken..];
                continue;
            }
            let taken = (9 - self.have).min(bytes.len());
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == 9 {
                let [a, b, c, kind, flags, d, e, f, g] = self.head;
                let length = u32::from_be_bytes([0, a, b, c]);
                self.have = 0;
                self.left = length;
                self.kind = kind;
                self.code = 0;
                self.stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
                found(Found::Frame(FrameHead { length, kind, flags, stream: self.stream }));
            }
        }
    }
}

/// What a client sends.
#[derive(Debug)]
pub struct Inbound {
    limits: FrameLimits,
    scanner: Scanner,
    preface_left: usize,
    counts: Counts,
    begun: bool,
    /// A field block has begun and not ended.
    in_block: bool,
    block_since: Option<Millis>,
    /// Bytes of the field block that has begun and not ended.
    block_bytes: usize,
    /// The newest stream.
    newest: u32,
    /// Streams that the codec has not handed over yet: what it sends on them are refusals of its own.
    unaccepted: SmallVec<[u32; 4]>,
    window_began: Millis,
    flood: Option<Flood>,
    /// When a frame last came.
    last_at: Millis,
}

/// Streams remembered that the codec has not handed over: more than may come in what is read at once.
const UNACCEPTED: usize = 1024;

#[derive(Debug, Default)]
struct Counts {
    resets: u32,
    settings: u32,
    pings: u32,
    priorities: u32,
    empty: u32,
    window_updates: u32,
    continuations: u32,
    headers: u32,
    data: u32,
    /// Bytes sent to the client in this window.
    sent: u64,
}

impl Inbound {
    /// Begins to watch, before the first byte.
    pub fn new(limits: FrameLimits, now: Millis) -> Self {
        Self {
            limits,
            scanner: Scanner::default(),
            preface_left: super::PREFACE.len(),
            counts: Counts::default(),
            begun: false,
            in_block: false,
            block_since: None,
            block_bytes: 0,
            newest: 0,
            unaccepted: SmallVec::new(),
            window_began: now,
            flood: None,
            last_at: now,
        }
    }

    /// Looks at bytes that have come.
    pub fn feed(&mut self, bytes: &[u8], now: Millis) {
        let preface = self.preface_left.min(bytes.len());
        self.preface_left -= preface;
        self.last_at = now;
        if now >= self.window_began + WINDOW {
            self.window_began = now;
            self.counts = Counts { continuations: self.counts.continuations, ..Counts::default() };
        }
        let Self { limits, scanner, counts, begun, in_block, block_bytes, newest, unaccepted, flood, .. } =
            self;
        scanner.feed(&bytes[preface..], |found| {
            let Found::Frame(frame) = found else { return };
            let first = !std::mem::replace(begun, true);
            let over = match frame.kind {
                SETTINGS if first && frame.flags & ACK == 0 => None,
                _ if first => Some(Flood::NoSettings),
                _ => counts.take(frame, limits, in_block),
            };
            *flood = flood.or(over);
            match frame.kind {
                HEADERS => *block_bytes = frame.length as usize,
                CONTINUATION => *block_bytes += frame.length as usize,
                _ => {}
            }
            if frame.kind == HEADERS && frame.stream > *newest {
                *newest = frame.stream;
                if unaccepted.len() < UNACCEPTED {
                    unaccepted.push(frame.stream);
                }
            }
        });
        let open = self.in_block || (self.scanner.left > 0 && self.scanner.kind == HEADERS);
        self.block_since = open.then(|| self.block_since.unwrap_or(now));
    }

    /// The client was sent so many bytes.
    pub fn sent(&mut self, bytes: u64) {
        self.counts.sent += bytes;
    }

    /// The limit that was gone over.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// Since when the fields of a request have been coming.
    pub fn block_since(&self) -> Option<Millis> {
        self.block_since
    }

    /// Bytes of the fields that have been coming.
    pub fn block_bytes(&self) -> usize {
        if self.in_block { self.block_bytes } else { 0 }
    }

    /// The codec has handed a stream over, or has answered it by itself; whether it was among those that it had not.
    pub fn accepted(&mut self, stream: u32) -> bool {
        match self.unaccepted.iter().position(|other| *other == stream) {
            Some(place) => {
                self.unaccepted.swap_remove(place);
                true
            }
            None => false,
        }
    }

    /// Which limit of its own the codec ended the connection for. It does not tell, but a flood is mostly of one
    /// kind.
    pub fn overrun(&self, local_resets: usize) -> Overrun {
        let Counts { resets, headers, data, continuations, .. } = self.counts;
        if resets > headers / 2 {
            Overrun::PendingResets
        } else if self.in_block || continuations > 0 {
            Overrun::Continuations
        } else if data > headers {
            Overrun::SmallData
        } else if headers as usize >= local_resets {
            Overrun::LocalResets
        } else {
            Overrun::HeaderList
        }
    }

    /// When something last came.
    pub fn last_at(&self) -> Millis {
        self.last_at
    }
}

impl Counts {
    fn take(&mut self, frame: FrameHead, limits: &FrameLimits, in_block: &mut bool) -> Option<Flood> {
        let over = |count: &mut u32, limit: u32| {
            *count += 1;
            limit > 0 && *count > limit
        };
        match frame.kind {
            DATA => {
                self.data += 1;
                let nothing = frame.length == 0 && frame.flags & END_STREAM == 0;
                (nothing && over(&mut self.empty, limits.empty)).then_some(Flood::EmptyFrames)
            }
            HEADERS => {
                *in_block = frame.flags & END_HEADERS == 0;
                self.continuations = 0;
                self.headers += 1;
                None
            }
            CONTINUATION => {
                *in_block &= frame.flags & END_HEADERS == 0;
                over(&mut self.continuations, limits.continuations).then_some(Flood::Continuations)
            }
            RST_STREAM => over(&mut self.resets, limits.resets).then_some(Flood::Resets),
            SETTINGS => (frame.flags & ACK == 0 && over(&mut self.settings, limits.settings))
                .then_some(Flood::Settings),
            PING => over(&mut self.pings, limits.pings).then_some(Flood::Pings),
            WINDOW_UPDATE => {
                self.window_updates += 1;
                let earned = self.sent / BYTES_PER_UPDATE;
                (limits.window_updates > 0
                    && u64::from(self.window_updates) > u64::from(limits.window_updates) + earned)
                    .then_some(Flood::WindowUpdates)
            }
            _ => over(&mut self.priorities, limits.priorities).then_some(Flood::Priorities),
        }
    }
}

/// What is sent to a client.
#[derive(Debug, Default)]
pub struct Outbound {
    scanner: Scanner,
}

/// What goes out to a client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sent {
    /// Fields on a stream: an answer, or trailers.
    Fields {
        /// Which stream.
        stream: u32,
    },
    /// A stream is reset.
    Reset {
        /// Which stream.
        stream: u32,
        /// Why.
        code: u32,
    },
}

impl Outbound {
    /// Looks at bytes that went out, and tells what is among them.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(Sent)) {
        self.scanner.feed(bytes, |found| match found {
            Found::Reset { stream, code } => each(Sent::Reset { stream, code }),
            Found::Frame(FrameHead { kind: HEADERS, stream, .. }) => each(Sent::Fields { stream }),
            Found::Frame(_) => {}
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, content: &[u8]) -> Vec<u8> {
        let length = u32::try_from(content.len()).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.extend_from_slice(content);
        bytes
    }

    fn begun(limits: FrameLimits) -> Inbound {
        let mut inbound = Inbound::new(limits, 0);
        inbound.feed(super::super::PREFACE, 0);
        inbound.feed(&frame(SETTINGS, 0, &[]), 0);
        inbound
    }

    fn flood_of(limits: FrameLimits, bytes: &[u8], step: usize) -> Option<Flood> {
        let mut inbound = begun(limits);
        for piece in bytes.chunks(step) {
            inbound.feed(piece, 1);
        }
        inbound.flood()
    }

    #[test]
    fn each_kind_of_flood_is_told_by_its_name_and_only_over_its_limit() {
        let limits = FrameLimits {
            resets: 3,
            settings: 3,
            pings: 3,
            priorities: 3,
            empty: 3,
            window_updates: 3,
            continuations: 3,
        };
        for (kind, flags, content, flood) in [
            (RST_STREAM, 0, &[0, 0, 0, 8][..], Flood::Resets),
            (SETTINGS, 0, &[], Flood::Settings),
            (PING, 0, &[0; 8], Flood::Pings),
            (2, 0, &[0; 5], Flood::Priorities),
            (0x20, 0, &[0; 5], Flood::Priorities),
            (DATA, 0, &[], Flood::EmptyFrames),
            (WINDOW_UPDATE, 0, &[0, 0, 0, 1], Flood::WindowUpdates),
            (CONTINUATION, 0, &[0x88], Flood::Continuations),
        ] {
            for step in [1, 7, 1000] {
                let few = frame(kind, flags, content).repeat(3);
                assert_eq!(flood_of(limits, &few, step), None, "{flood:?}");
                let many = frame(kind, flags, content).repeat(4);
                assert_eq!(flood_of(limits, &many, step), Some(flood), "{flood:?} by {step}");
            }
        }
        let acks = frame(SETTINGS, ACK, &[]).repeat(100);
        assert_eq!(flood_of(limits, &acks, 100), None);
        let ends = frame(DATA, END_STREAM, &[]).repeat(100);
        assert_eq!(flood_of(limits, &ends, 100), None);
        let content = frame(DATA, 0, b"x").repeat(100);
        assert_eq!(flood_of(limits, &content, 100), None);
    }

    #[test]
    fn a_client_begins_with_settings() {
        for bytes in [frame(PING, 0, &[0; 8]), frame(SETTINGS, ACK, &[])] {
            let mut inbound = Inbound::new(FrameLimits::default(), 0);
            inbound.feed(super::super::PREFACE, 0);
            inbound.feed(&bytes, 0);
            assert_eq!(inbound.flood(), Some(Flood::NoSettings));
        }
    }

    #[test]
    fn counts_begin_anew_with_each_window_of_time() {
        let mut inbound = begun(FrameLimits { pings: 3, ..FrameLimits::default() });
        for round in 0..10 {
            inbound.feed(&frame(PING, 0, &[0; 8]).repeat(3), round * WINDOW);
        }
        assert_eq!(inbound.flood(), None);
    }

    #[test]
    fn fine_window_updates_are_earned_by_bytes() {
        let limits = FrameLimits { window_updates: 1, ..FrameLimits::default() };
        let mut inbound = begun(limits);
        inbound.sent(BYTES_PER_UPDATE * 5);
        inbound.feed(&frame(WINDOW_UPDATE, 0, &[0, 0, 2, 0]).repeat(6), 1);
        assert_eq!(inbound.flood(), None);
        inbound.feed(&frame(WINDOW_UPDATE, 0, &[0, 0, 2, 0]), 1);
        assert_eq!(inbound.flood(), Some(Flood::WindowUpdates));
    }

    #[test]
    fn a_field_block_that_does_not_end_is_seen_from_its_first_byte() {
        let mut inbound = begun(FrameLimits::default());
        assert_eq!(inbound.block_since(), None);
        let headers = frame(HEADERS, 0, &[0x82]);
        inbound.feed(&headers[..9], 5);
        assert_eq!(inbound.block_since(), Some(5));
        inbound.feed(&headers[9..], 6);
        assert_eq!(inbound.block_since(), Some(5));
        inbound.feed(&frame(CONTINUATION, END_HEADERS, &[0x84]), 9);
        assert_eq!(inbound.block_since(), None);
    }

    #[test]
    fn resets_that_go_out_are_told_with_their_code() {
        let mut bytes = frame(DATA, 0, b"hello");
        bytes.extend(frame(RST_STREAM, 0, &[0, 0, 0, 1]));
        bytes.extend(frame(RST_STREAM, 0, &[0, 0, 0, 8]));
        for step in 1..bytes.len() {
            let (mut outbound, mut codes) = (Outbound::default(), Vec::new());
            for piece in bytes.chunks(step) {
                outbound.feed(piece, |sent| match sent {
                    Sent::Reset { stream: 1, code } => codes.push(code),
                    sent => panic!("{sent:?}"),
                });
            }
            assert_eq!(codes, [1, 8], "by {step}");
        }
    }

    #[test]
    fn a_stream_is_the_codecs_own_until_it_is_handed_over() {
        let mut inbound = begun(FrameLimits::default());
        inbound.feed(&frame(HEADERS, END_HEADERS, &[0x82]), 1);
        // Trailers open nothing.
        inbound.feed(&frame(HEADERS, END_HEADERS, &[0x82]), 1);
        assert!(!inbound.accepted(3));
        assert!(inbound.accepted(1));
        assert!(!inbound.accepted(1));
    }

    #[test]
    fn fields_under_way_are_measured() {
        let mut inbound = begun(FrameLimits::default());
        inbound.feed(&frame(HEADERS, 0, &[0x82; 10]), 1);
        inbound.feed(&frame(CONTINUATION, 0, &[0x82; 20]), 1);
        assert_eq!(inbound.block_bytes(), 30);
        inbound.feed(&frame(CONTINUATION, END_HEADERS, &[0x82; 5]), 1);
        assert_eq!(inbound.block_bytes(), 0);
    }
}
