//! What a connection of HTTP/2 may cost: windows, tables, and the bounds on every kind of flood. Pure values.

use crate::common::clock::Millis;

/// Limits of clients' connections. Times in milliseconds; 0 means none.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ServerLimits {
    /// Streams of one connection at once.
    pub max_concurrent_streams: u32,
    /// Bytes of the table that a client may fill to compress its fields.
    pub decoder_table: u32,
    /// Bytes of a request's fields, unpacked, each with 32 more (RFC 9113 §10.5.1).
    pub header_list: u32,
    /// Bytes of one request's content that may be under way.
    pub stream_window: u32,
    /// Bytes of the content of all requests of a connection that may be under way.
    pub connection_window: u32,
    /// Bytes of one answer that wait for the socket.
    pub send_buffer: usize,
    /// After so long without a frame a connection with open streams is asked whether it lives.
    pub read_idle_timeout: Millis,
    /// How long the answer to that may take.
    pub ping_timeout: Millis,
    /// Streams reset by the client that have not been looked at yet (CVE-2023-44487).
    pub pending_resets: usize,
    /// Streams that a client made us reset by its mistakes (CVE-2025-8671).
    pub local_resets: usize,
    /// Bounds on frames.
    pub frames: FrameLimits,
}

/// How many frames of each kind a peer may send in [`WINDOW`]; 0 means no limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FrameLimits {
    /// RST_STREAM.
    pub resets: u32,
    /// SETTINGS.
    pub settings: u32,
    /// PING.
    pub pings: u32,
    /// PRIORITY and kinds that nobody knows.
    pub priorities: u32,
    /// DATA and field blocks without a byte that end nothing.
    pub empty: u32,
    /// WINDOW_UPDATE, beyond one for each [`BYTES_PER_UPDATE`] that were sent.
    pub window_updates: u32,
    /// CONTINUATION of one field block.
    pub continuations: u32,
}

/// Frames are counted anew so often.
pub const WINDOW: Millis = 10_000;

/// A client that takes what it is sent may open the window so finely without being a flood.
pub const BYTES_PER_UPDATE: u64 = 512;

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 250,
            decoder_table: 4096,
            header_list: 64 * 1024,
            stream_window: 256 * 1024,
            connection_window: 1024 * 1024,
            send_buffer: 64 * 1024,
            read_idle_timeout: 30_000,
            ping_timeout: 15_000,
            pending_resets: 20,
            local_resets: 100,
            frames: FrameLimits::default(),
        }
    }
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self {
            resets: 1000,
            settings: 100,
            pings: 5000,
            priorities: 2000,
            empty: 1000,
            window_updates: 10_000,
            continuations: 32,
        }
    }
}

/// How connections to pods are used.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientLimits {
    /// Requests on one connection at once, if the pod takes as many.
    pub max_concurrent_streams: u32,
    /// Bytes of one answer that may be under way.
    pub stream_window: u32,
    /// Bytes of all answers of a connection that may be under way.
    pub connection_window: u32,
    /// After so long without a frame a connection is asked whether it lives; milliseconds, 0 for never.
    pub read_idle_timeout: Millis,
    /// How long the answer to that may take; milliseconds.
    pub ping_timeout: Millis,
}

impl Default for ClientLimits {
    fn default() -> Self {
        Self {
            max_concurrent_streams: 100,
            stream_window: 128 * 1024,
            connection_window: 16 * 1024 * 1024,
            read_idle_timeout: 0,
            ping_timeout: 15_000,
        }
    }
}
