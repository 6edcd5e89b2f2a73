//! The closed sets that label values come from, and the indices that stand for configured names.

use http::Method;

macro_rules! labels {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl $type {
            /// Every value, in the order of its number.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The word on the page.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

labels! {
    /// A request's method; those outside RFC 9110 and RFC 5789 are one, as clients can make up any number.
    MethodLabel {
        /// GET
        Get => "GET",
        /// HEAD
        Head => "HEAD",
        /// POST
        Post => "POST",
        /// PUT
        Put => "PUT",
        /// PATCH
        Patch => "PATCH",
        /// DELETE
        Delete => "DELETE",
        /// OPTIONS
        Options => "OPTIONS",
        /// CONNECT
        Connect => "CONNECT",
        /// TRACE
        Trace => "TRACE",
        /// Any other; Traefik's word for it.
        Extension => "EXTENSION_METHOD",
    }
}

impl MethodLabel {
    /// The label of a method.
    pub fn of(method: &Method) -> Self {
        match *method {
            Method::GET => Self::Get,
            Method::HEAD => Self::Head,
            Method::POST => Self::Post,
            Method::PUT => Self::Put,
            Method::PATCH => Self::Patch,
            Method::DELETE => Self::Delete,
            Method::OPTIONS => Self::Options,
            Method::CONNECT => Self::Connect,
            Method::TRACE => Self::Trace,
            _ => Self::Extension,
        }
    }
}

labels! {
    /// What an exchange carried, in Traefik's words.
    Protocol {
        /// A plain exchange.
        Http => "http",
        /// An upgrade to WebSocket.
        WebSocket => "websocket",
        /// A response of `text/event-stream`.
        Sse => "sse",
        /// A request of `application/grpc`.
        Grpc => "grpc",
        /// A request of `application/grpc-web`.
        GrpcWeb => "grpc-web",
    }
}

labels! {
    /// Why a client's connection ended.
    CloseReason {
        /// The client closed it, or asked for that with `Connection: close`.
        Client => "client",
        /// The proxy closed it after its answer: an error that leaves the framing unsure, or an HTTP/1.0 client.
        Answered => "answered",
        /// No next request within the keep-alive time.
        Idle => "idle",
        /// A head or body did not come in time.
        Timeout => "timeout",
        /// The entry point's limit on requests or age of a connection.
        Aged => "aged",
        /// The bytes were not HTTP.
        Malformed => "malformed",
        /// The listener drains: shutdown, or a reload that took the entry point away.
        Drained => "drained",
        /// Still busy when the grace period ended.
        Cut => "cut",
        /// Refused on arrival: a limit on connections.
        Refused => "refused",
        /// Reading or writing failed.
        Failed => "failed",
        /// The TLS handshake failed.
        Handshake => "handshake",
        /// The upstream's side ended it: a cut response, or the end of a tunnel.
        Upstream => "upstream",
    }
}

impl CloseReason {
    /// Whether everything that the client got is whole.
    pub fn is_clean(self) -> bool {
        match self {
            Self::Client | Self::Answered | Self::Idle | Self::Aged | Self::Malformed | Self::Drained => true,
            Self::Timeout | Self::Cut | Self::Refused | Self::Failed | Self::Handshake | Self::Upstream => {
                false
            }
        }
    }
}

labels! {
    /// How a client's TLS handshake ended.
    Handshake {
        /// A new session.
        Full => "full",
        /// An earlier session went on.
        Resumed => "resumed",
        /// Not done within `handshakeTimeout`.
        Timeout => "timeout",
        /// Turned away: as many are under way as may be.
        Busy => "busy",
        /// The client closed in its middle.
        Closed => "closed",
        /// What came is not TLS.
        Malformed => "malformed",
        /// No version, suite or group in common.
        NothingInCommon => "nothing_in_common",
        /// No protocol (ALPN) in common.
        NoProtocol => "no_protocol",
        /// There is no certificate for the name, and `sniStrict` is on.
        UnknownName => "unknown_name",
        /// The client showed no certificate.
        NoClientCertificate => "no_client_certificate",
        /// The client's certificate is not trusted.
        BadClientCertificate => "bad_client_certificate",
        /// The client did not like what it was shown.
        RefusedByClient => "refused_by_client",
        /// Anything else.
        Failed => "failed",
    }
}

labels! {
    /// How an attempt came by its upstream connection.
    ConnectOutcome {
        /// From the pool.
        Reused => "reused",
        /// Newly opened.
        Opened => "opened",
        /// Could not be opened.
        Failed => "failed",
        /// Not open within `dialTimeout`.
        TimedOut => "timed_out",
        /// The TLS handshake failed or took too long.
        Tls => "tls_failed",
    }
}

labels! {
    /// What made another attempt necessary.
    RetryReason {
        /// The pooled connection was dead before the request was written.
        Stale => "stale_connection",
        /// Connecting failed.
        Connect => "connect_failed",
        /// Connecting took too long.
        ConnectTimeout => "connect_timeout",
        /// The TLS handshake failed.
        Tls => "tls_failed",
        /// The connection ended before a response.
        Closed => "upstream_closed",
        /// No response head in time.
        ResponseHeaderTimeout => "response_header_timeout",
        /// One try took too long.
        AttemptTimeout => "attempt_timeout",
        /// The endpoint was silent and has been ejected.
        Stalled => "stalled",
        /// A response that is not HTTP.
        BadResponse => "bad_response",
        /// The first try took long, and a second one was sent beside it.
        Hedge => "hedge",
        /// A status that the `retry` middleware repeats.
        Status => "status",
    }
}

labels! {
    /// What became of a sticky cookie.
    StickyOutcome {
        /// There was none; one was set.
        New => "new",
        /// It was followed.
        Kept => "kept",
        /// Whom it means is gone, down or out of reach; another was set.
        Moved => "moved",
        /// It is not one of ours, or its signature is wrong; another was set.
        Refused => "refused",
    }
}

labels! {
    /// Why a request was not given to the endpoint that its key belongs to.
    HashOutcome {
        /// It has no key.
        NoKey => "no_key",
        /// The endpoint has as many requests as `maxLoad` allows.
        OverBound => "over_bound",
    }
}

labels! {
    /// Which endpoints stepped in for those that come first.
    SpillTo {
        /// Those of another zone.
        OtherZone => "other_zone",
        /// Backups.
        Backup => "backup",
    }
}

labels! {
    /// Why the fallback of a `failover` service got a request.
    FailoverReason {
        /// The main service has no endpoint available.
        Unavailable => "unavailable",
        /// The main service answered with one of the statuses that the operator named.
        Status => "status",
    }
}

labels! {
    /// What became of a copy of a request.
    MirrorOutcome {
        /// The mirror answered.
        Answered => "answered",
        /// It did not, or not in time.
        Failed => "failed",
        /// Dropped: as many copies as there may be were under way.
        Busy => "dropped_busy",
        /// Dropped: the body is larger than `maxBodySize`.
        TooLarge => "dropped_too_large",
        /// Dropped: the bodies of copies held as many bytes as they may.
        NoRoom => "dropped_no_room",
        /// Dropped: the request's body did not come whole, or was not wanted.
        Incomplete => "dropped_incomplete",
    }
}

labels! {
    /// What became of a copy of a request for an endpoint that is ejected.
    RehearsalOutcome {
        /// It answered, in time and with no 5xx.
        Passed => "passed",
        /// It did not.
        Failed => "failed",
        /// Dropped: it has as many requests or connections as it may.
        Full => "dropped_full",
    }
}

labels! {
    /// What a limiter said.
    LimitDecision {
        /// Goes on at once.
        Allowed => "allowed",
        /// Goes on after a pause.
        Delayed => "delayed",
        /// Ends with 429, or what the limit answers instead.
        Refused => "refused",
        /// Goes on, although it would have been refused: the limit is in shadow mode.
        Shadow => "shadow",
        /// Goes on by the word of `onFailure`, because the shared store gave no answer in time.
        Fallback => "fallback",
    }
}

labels! {
    /// Which of two tries was answered first.
    HedgeWinner {
        /// The first.
        First => "first",
        /// The second.
        Second => "second",
    }
}

labels! {
    /// Which deadline fired.
    TimeoutKind {
        /// `dialTimeout`.
        Connect => "connect",
        /// `responseHeaderTimeout`.
        ResponseHeader => "response_header",
        /// No byte either way.
        Idle => "idle",
        /// `handshakeTimeout`, of clients.
        Handshake => "handshake",
        /// The request's head.
        ClientHead => "client_head",
        /// The request's body.
        ClientBody => "client_body",
        /// [`ProxyError::ClientStalled`](crate::http::error::ProxyError::ClientStalled).
        ClientStall => "client_stall",
        /// The whole exchange.
        Exchange => "exchange",
        /// One try.
        Attempt => "attempt",
        /// What the client said it would wait.
        ClientDeadline => "client_deadline",
        /// The wait for a place at a service.
        Queue => "queue",
    }
}

labels! {
    /// Which bound on HTTP/2 a client went over; its connection was ended.
    Http2Flood {
        /// RST_STREAM frames.
        Resets => "resets",
        /// Streams reset before they were looked at (CVE-2023-44487).
        PendingResets => "pending_resets",
        /// Streams that the client made the proxy reset (CVE-2025-8671).
        LocalResets => "local_resets",
        /// SETTINGS frames.
        Settings => "settings",
        /// PING frames.
        Pings => "pings",
        /// PRIORITY frames and unknown ones.
        Priorities => "priorities",
        /// Frames without a byte that end nothing.
        EmptyFrames => "empty_frames",
        /// DATA frames that are small beyond reason.
        SmallData => "small_data",
        /// WINDOW_UPDATE frames.
        WindowUpdates => "window_updates",
        /// CONTINUATION frames of one field block.
        Continuations => "continuations",
        /// Fields that unpack to far more than is allowed.
        HeaderList => "header_list",
    }
}

labels! {
    /// The code of an RST_STREAM that the proxy sent to a client (RFC 9113 §7).
    Http2Reset {
        /// The answer is whole, the rest of the request is not wanted.
        NoError => "no_error",
        /// The client broke the protocol.
        ProtocolError => "protocol_error",
        /// The answer broke off.
        InternalError => "internal_error",
        /// The client went over a window.
        FlowControlError => "flow_control_error",
        /// The client sent on a stream that had ended.
        StreamClosed => "stream_closed",
        /// More streams than are allowed.
        RefusedStream => "refused_stream",
        /// The exchange was given up.
        Cancel => "cancel",
        /// Any other.
        Other => "other",
    }
}

impl Http2Reset {
    /// The label of a code.
    pub fn of(code: u32) -> Self {
        match code {
            0 => Self::NoError,
            1 => Self::ProtocolError,
            2 => Self::InternalError,
            3 => Self::FlowControlError,
            5 => Self::StreamClosed,
            7 => Self::RefusedStream,
            8 => Self::Cancel,
            _ => Self::Other,
        }
    }
}

macro_rules! index {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        ///
        /// Good for the life of the [`Metrics`](super::Metrics) that gave it; the same names get the same one again.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $type(pub(super) u32);
    };
}

index! {
    /// Stands for entry point, router and service of an exchange.
    Series
}
index! {
    /// Stands for an entry point.
    EntryPointLabel
}
index! {
    /// Stands for a service.
    ServiceLabel
}
index! {
    /// Stands for a middleware.
    MiddlewareLabel
}

/// The labels of one exchange.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ExchangeKey {
    /// Resolved when the route was compiled.
    pub series: Series,
    /// What the client got; at most 999.
    pub status: u16,
    /// Of the request.
    pub method: MethodLabel,
    /// What it carried.
    pub protocol: Protocol,
}

impl ExchangeKey {
    /// All labels in one word, which hashes in a few instructions.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.series.0) << 32
            | u64::from(self.status) << 16
            | u64::from(self.method as u8) << 8
            | u64::from(self.protocol as u8)
    }

    /// What [`Self::pack`] made a word of.
    pub(super) fn unpack(packed: u64) -> Self {
        let [_, _, _, _, status_high, status_low, method, protocol] = packed.to_be_bytes();
        Self {
            series: Series((packed >> 32) as u32),
            status: u16::from_be_bytes([status_high, status_low]),
            method: MethodLabel::ALL.get(usize::from(method)).copied().unwrap_or(MethodLabel::Extension),
            protocol: Protocol::ALL.get(usize::from(protocol)).copied().unwrap_or(Protocol::Http),
        }
    }
}
