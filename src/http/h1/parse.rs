//! Heads read strictly: RFC 9112 as a sender must write it, with none of the leniencies it allows readers.
//!
//! Pure: bytes in, heads or a refusal out. Field values share the buffer they came in.

use std::ops::Range;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};
use memchr::memchr;
use smallvec::SmallVec;

use super::framing::Length;
use super::memory;
use crate::http::authority::Checked;
use crate::http::error::ProxyError;
use crate::http::fields::{self, Fields};
use crate::http::forwarded::is_claim;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::text::Text;

/// How large a head may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HeadLimits {
    /// Bytes from the first of the start line to the last of the empty line.
    pub bytes: usize,
    /// Field lines.
    pub fields: usize,
}

/// Empty lines before a request that are skipped (RFC 9112 §2.2 asks for at least one).
const SKIPPED_EMPTY_LINES: usize = 2;

/// The longest registered method has 17 bytes.
const MAX_METHOD: usize = 64;

/// Where the search for the end of a head stands, so that no byte is looked at twice.
#[derive(Debug, Default)]
pub struct HeadScan {
    /// Bytes known to hold whole lines.
    lines_end: usize,
    /// Bytes without a line end after that.
    searched: usize,
    lines: usize,
}

/// Where the first lines of a head end, as the search for its end found them: they are not searched for again when it
/// is taken apart.
#[derive(Debug, Default)]
pub struct LineEnds {
    known: usize,
    at: [u16; 32],
}

impl LineEnds {
    /// Notes where a line ends, if all before it are known.
    fn note(&mut self, line: usize, end: usize) {
        if line == self.known
            && let Some(at) = self.at.get_mut(line)
            && let Ok(end) = u16::try_from(end)
        {
            *at = end;
            self.known += 1;
        }
    }

    fn get(&self, line: usize) -> Option<usize> {
        self.at[..self.known].get(line).copied().map(usize::from)
    }
}

impl HeadScan {
    /// Whether no line of this head has been seen.
    pub fn is_new(&self) -> bool {
        self.lines == 0
    }

    /// Looks for the empty line that ends the head; gives the head's length with it. The ends of a head that is found
    /// at once are noted in `ends`, which must be new.
    ///
    /// # Errors
    /// A head over the limits, and (unless `lenient`) a line that ends without CR.
    pub fn find_end(
        &mut self,
        buf: &[u8],
        limits: &HeadLimits,
        lenient: Leniency,
        ends: &mut LineEnds,
    ) -> Result<Option<usize>, ProxyError> {
        while let Some(offset) = memchr(b'\n', &buf[self.searched..]) {
            let at = self.searched + offset;
            let line = &buf[self.lines_end..at];
            let empty = match (line, lenient) {
                ([], Leniency::BareLineFeed) | ([b'\r'], _) => true,
                ([.., b'\r'], _) | (_, Leniency::BareLineFeed) => false,
                _ => return Err(ProxyError::BadRequest("a line ends without CR")),
            };
            ends.note(self.lines, at);
            self.searched = at + 1;
            self.lines_end = at + 1;
            if at + 1 > limits.bytes {
                return Err(ProxyError::HeadTooLarge { limit: limits.bytes, unit: "bytes" });
            }
            if empty {
                return Ok(Some(at + 1));
            }
            self.lines += 1;
            // The start line is no field.
            if self.lines > limits.fields + 1 {
                return Err(ProxyError::HeadTooLarge { limit: limits.fields, unit: "fields" });
            }
        }
        self.searched = buf.len();
        if buf.len() > limits.bytes {
            return Err(ProxyError::HeadTooLarge { limit: limits.bytes, unit: "bytes" });
        }
        Ok(None)
    }
}

/// What a reader may overlook.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Leniency {
    /// Nothing; for clients.
    None,
    /// Lines that end with LF alone (RFC 9112 §2.2 allows it); for pods, whose answers we write anew.
    BareLineFeed,
}

/// A request as it came, with what only the connection needs to know.
#[derive(Debug)]
pub struct ParsedRequest {
    /// Free of framing and hop-by-hop fields, except those that `Connection` merely named.
    pub head: Box<RequestHead>,
    /// Its authority, taken apart.
    pub authority: Rc<Checked>,
    /// How its body is delimited.
    pub length: Length,
    /// Whether the client wants the connection kept.
    pub keep_alive: bool,
    /// Whether it waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The protocol asked for, when `Connection` names `upgrade` too.
    pub upgrade: Option<HeaderValue>,
    /// Fields that `Connection` named: they die here (RFC 9110 §7.6.1).
    pub named: SmallVec<[HeaderName; 1]>,
}

/// Drops empty lines before a request; `false` when there are more than a client has reason to send.
pub fn skip_empty_lines(buf: &mut BytesMut, skipped: &mut usize) -> bool {
    while buf.starts_with(b"\r\n") {
        *skipped += 1;
        if *skipped > SKIPPED_EMPTY_LINES {
            return false;
        }
        let _ = buf.split_to(2);
    }
    true
}

/// Whether `byte` can begin a request; what cannot is refused without waiting for a line.
pub fn begins_request(byte: u8) -> bool {
    is_token_byte(byte) || byte == b'\r'
}

/// Reads a whole request head, the empty line included, whose lines end where `ends` says. `known` is an authority that
/// was checked before.
///
/// # Errors
/// Everything that RFC 9112 forbids senders; see [`ProxyError::status`] for what each becomes.
pub fn request(
    head: Bytes,
    ends: &LineEnds,
    limits: &HeadLimits,
    known: Option<&Rc<Checked>>,
) -> Result<ParsedRequest, ProxyError> {
    let mut lines = Lines::new(&head, ends);
    let line = lines.next_line().ok_or(ProxyError::BadRequest("empty head"))?;
    let start = request_line(&head, line)?;
    let mut fields = Reading { headers: memory::fields(), ..Reading::default() };
    fields.read(&head, &mut lines, limits)?;
    let Reading {
        headers,
        hosts,
        host,
        length,
        coding,
        connection,
        expect,
        upgrade,
        trailers_accepted,
        announced,
    } = fields;

    if hosts > 1 {
        return Err(ProxyError::BadRequest("more than one Host field"));
    }
    let http_11 = start.version == Version::HTTP_11;
    if hosts == 0 && http_11 {
        return Err(ProxyError::BadRequest("missing Host field"));
    }
    let host = host.unwrap_or_default();
    let authority = match start.authority {
        // The target decides, whatever `Host` says (RFC 9112 §3.2.2).
        Some(target) => {
            // It must be right all the same.
            check_authority(host, http_11, known)?;
            check_authority(target, true, known)?
        }
        None => check_authority(host, http_11, known)?,
    };

    let length = match (coding, length) {
        (Coding::None, None) => Length::Empty,
        (Coding::None, Some(bytes)) => Length::exact(bytes),
        (_, Some(_)) => {
            return Err(ProxyError::BadRequest("both Content-Length and Transfer-Encoding"));
        }
        (Coding::Chunked, None) if http_11 => Length::Chunked,
        (Coding::Chunked, None) => return Err(ProxyError::BadRequest("Transfer-Encoding in HTTP/1.0")),
        (Coding::Malformed, None) => return Err(ProxyError::BadRequest("malformed Transfer-Encoding")),
        (Coding::Unknown, None) => return Err(ProxyError::UnknownTransferCoding),
    };
    let expects_continue = match expect {
        Expect::None => false,
        Expect::Continue => http_11,
        Expect::Other => return Err(ProxyError::ExpectationFailed),
    };
    let keep_alive = !connection.close && (http_11 || connection.keep_alive);
    let mut headers = headers;
    if trailers_accepted {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    announce(announced, length, &mut headers);
    Ok(ParsedRequest {
        head: memory::boxed(RequestHead {
            method: start.method,
            path: start.path,
            query: start.query,
            authority: authority.text.clone(),
            version: start.version,
            headers,
        }),
        authority,
        length,
        keep_alive,
        expects_continue: expects_continue && length != Length::Empty,
        upgrade: upgrade.filter(|_| connection.upgrade && http_11),
        named: connection.named,
    })
}

fn check_authority(
    text: Text,
    required: bool,
    known: Option<&Rc<Checked>>,
) -> Result<Rc<Checked>, ProxyError> {
    if let Some(known) = known.filter(|known| known.text == text) {
        return Ok(Rc::clone(known));
    }
    if text.as_bytes().is_empty() && !required {
        return Ok(Rc::default());
    }
    // The connection keeps it beyond this request, whose whole head a slice would keep too.
    Checked::parse(Text::copy_from(text.as_str())).map(Rc::new).map_err(ProxyError::BadRequest)
}

fn announce(trailers: Vec<HeaderValue>, length: Length, headers: &mut Fields) {
    if length == Length::Chunked {
        for value in trailers {
            headers.append(header::TRAILER, value);
        }
    }
}

/// A response as it came, with what only the connection needs to know.
#[derive(Debug)]
pub struct ParsedResponse {
    /// Free of framing and hop-by-hop fields.
    pub head: ResponseHead,
    /// How its body is delimited, before the request's method is taken into account.
    pub length: Length,
    /// Whether the pod keeps the connection.
    pub keep_alive: bool,
    /// The protocol switched to, on a 101.
    pub upgrade: Option<HeaderValue>,
}

/// Reads a whole response head, the empty line included, whose lines end where `ends` says.
///
/// # Errors
/// What is wrong, in words for the log.
pub fn response(head: Bytes, ends: &LineEnds, limits: &HeadLimits) -> Result<ParsedResponse, &'static str> {
    let mut lines = Lines::new(&head, ends);
    let line = lines.next_line().ok_or("empty head")?;
    let (version, status) = status_line(&head[line])?;
    let mut fields = Reading { headers: memory::fields(), ..Reading::default() };
    fields.read(&head, &mut lines, limits).map_err(|error| match error {
        ProxyError::BadRequest(what) => what,
        _ => "head too large",
    })?;
    let http_11 = version == Version::HTTP_11;
    let mut keep_alive = !fields.connection.close && (http_11 || fields.connection.keep_alive);
    let length = match (fields.coding, fields.length) {
        (Coding::None, None) => Length::UntilClose,
        (Coding::None, Some(bytes)) => Length::exact(bytes),
        (Coding::Chunked, length) if http_11 => {
            // The coding wins, and what follows such an answer is not trusted (RFC 9112 §6.3).
            keep_alive &= length.is_none();
            Length::Chunked
        }
        (Coding::Chunked, _) => return Err("Transfer-Encoding in HTTP/1.0"),
        (Coding::Malformed, _) => return Err("malformed Transfer-Encoding"),
        (Coding::Unknown, _) => return Err("unknown Transfer-Encoding"),
    };
    let mut headers = fields.headers;
    announce(fields.announced, length, &mut headers);
    for name in &fields.connection.named {
        headers.remove(name);
    }
    if let Some(value) = fields.host {
        // A pod's `Host` means nothing, but it is a field like any other.
        if let Ok(value) = HeaderValue::from_maybe_shared(value.into_bytes()) {
            headers.append(header::HOST, value);
        }
    }
    Ok(ParsedResponse {
        head: ResponseHead { status, headers },
        length,
        keep_alive,
        upgrade: fields.upgrade.filter(|_| fields.connection.upgrade),
    })
}

/// Reads trailer fields; forbidden ones (framing, routing, authentication: RFC 9110 §6.5.1) are dropped.
///
/// # Errors
/// What is wrong, in words for the log.
pub fn trailers(block: Bytes, ends: &LineEnds, limits: &HeadLimits) -> Result<Fields, &'static str> {
    let mut lines = Lines::new(&block, ends);
    let mut headers = Fields::new();
    while let Some(line) = lines.next_line() {
        let (name, value) = split_field(&block, line)?;
        let value = field_value(block.slice(value))?;
        if headers.len() >= limits.fields {
            return Err("too many trailer fields");
        }
        if is_allowed_trailer(&name) {
            headers.append(name, value);
        }
    }
    Ok(headers)
}

/// Whether a trailer section may have that field.
pub fn is_allowed_trailer(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
            | header::HOST
            | header::CONNECTION
            | header::UPGRADE
            | header::TE
            | header::TRAILER
            | header::EXPECT
            | header::AUTHORIZATION
            | header::PROXY_AUTHORIZATION
            | header::PROXY_AUTHENTICATE
            | header::WWW_AUTHENTICATE
            | header::COOKIE
            | header::SET_COOKIE
            | header::CACHE_CONTROL
            | header::CONTENT_TYPE
            | header::CONTENT_ENCODING
            | header::CONTENT_RANGE
            | header::RANGE
            | header::LOCATION
            | header::VARY
            | header::FORWARDED
    ) && !is_claim(name.as_str())
        && name != "keep-alive"
        && name != "proxy-connection"
}

struct StartLine {
    method: Method,
    path: Text,
    query: Option<Text>,
    authority: Option<Text>,
    version: Version,
}

fn request_line(head: &Bytes, line: Range<usize>) -> Result<StartLine, ProxyError> {
    let bytes = &head[line.clone()];
    let bad = ProxyError::BadRequest;
    let method_end = memchr(b' ', bytes).ok_or(bad("malformed request line"))?;
    if method_end > MAX_METHOD {
        return Err(ProxyError::MethodNotImplemented);
    }
    let method = Method::from_bytes(&bytes[..method_end]).map_err(|_| bad("malformed method"))?;
    let rest = &bytes[method_end + 1..];
    let target_len = memchr(b' ', rest).ok_or(bad("malformed request line"))?;
    let version = match &rest[target_len + 1..] {
        b"HTTP/1.1" => Version::HTTP_11,
        b"HTTP/1.0" => Version::HTTP_10,
        // A later minor version is read as the one we speak (RFC 9110 §2.5).
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => Version::HTTP_11,
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            return Err(ProxyError::VersionNotSupported);
        }
        _ => return Err(bad("malformed HTTP version")),
    };
    if method == Method::CONNECT {
        return Err(ProxyError::MethodNotImplemented);
    }
    let start = line.start + method_end + 1;
    let target = target(head.slice(start..start + target_len))?;
    let raw = target.as_str();
    let (authority, path_at) = match raw.as_bytes().first() {
        Some(b'/') => (None, 0),
        Some(b'*') if raw.len() == 1 && method == Method::OPTIONS => {
            return Ok(StartLine { method, path: target, query: None, authority: None, version });
        }
        _ => {
            let scheme = raw.find("://").ok_or(bad("malformed request target"))?;
            if !raw[..scheme].eq_ignore_ascii_case("http") && !raw[..scheme].eq_ignore_ascii_case("https") {
                return Err(bad("malformed request target"));
            }
            let from = scheme + 3;
            let end = raw[from..].find(['/', '?']).map_or(raw.len(), |offset| from + offset);
            if end == from {
                return Err(bad("request target without a host"));
            }
            (Some(target.slice(from..end)), end)
        }
    };
    let raw = target.as_str();
    let (path_end, query) = match memchr(b'?', &raw.as_bytes()[path_at..]) {
        Some(offset) => (path_at + offset, Some(target.slice(path_at + offset + 1..))),
        None => (raw.len(), None),
    };
    let path = if path_end == path_at { Text::from_static("/") } else { target.slice(path_at..path_end) };
    Ok(StartLine { method, path, query, authority, version })
}

/// Takes the target as it is, unless it holds bytes above ASCII, which are escaped.
fn target(bytes: Bytes) -> Result<Text, ProxyError> {
    let mut ascii = true;
    for byte in &bytes {
        match byte {
            0..=b' ' | 0x7f => return Err(ProxyError::BadRequest("control byte in the request target")),
            b'#' => return Err(ProxyError::BadRequest("fragment in the request target")),
            0x80.. => ascii = false,
            _ => {}
        }
    }
    if bytes.is_empty() {
        return Err(ProxyError::BadRequest("empty request target"));
    }
    if !ascii {
        return Ok(Text::from(percent_encoding::percent_encode(&bytes, ABOVE_ASCII).to_string()));
    }
    Text::from_bytes(bytes).ok_or(ProxyError::BadRequest("malformed request target"))
}

/// `percent_encode` always escapes what is above ASCII; nothing else is touched here.
const ABOVE_ASCII: &percent_encoding::AsciiSet = &percent_encoding::AsciiSet::EMPTY;

fn status_line(line: &[u8]) -> Result<(Version, StatusCode), &'static str> {
    let version = match line.get(..8) {
        Some(b"HTTP/1.1") => Version::HTTP_11,
        Some(b"HTTP/1.0") => Version::HTTP_10,
        Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']) => Version::HTTP_11,
        _ => return Err("malformed status line"),
    };
    let (status, reason) = match &line[8..] {
        [b' ', a, b, c] => ([*a, *b, *c], &[][..]),
        [b' ', a, b, c, b' ', reason @ ..] => ([*a, *b, *c], reason),
        _ => return Err("malformed status line"),
    };
    if reason.iter().any(|byte| !is_value_byte(*byte)) {
        return Err("control byte in the status line");
    }
    let status = StatusCode::from_bytes(&status).map_err(|_| "malformed status code")?;
    Ok((version, status))
}

/// The lines of a head, without their ends; stops at the empty one.
struct Lines<'a> {
    bytes: &'a [u8],
    ends: &'a LineEnds,
    at: usize,
    taken: usize,
}

impl<'a> Lines<'a> {
    fn new(bytes: &'a [u8], ends: &'a LineEnds) -> Self {
        Self { bytes, ends, at: 0, taken: 0 }
    }

    fn next_line(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        let end = match self.ends.get(self.taken) {
            Some(end) => end,
            None => start + memchr(b'\n', self.bytes.get(start..)?)?,
        };
        debug_assert_eq!(self.bytes.get(end), Some(&b'\n'), "the ends are those of another head");
        self.taken += 1;
        self.at = end + 1;
        let end = if end > start && self.bytes[end - 1] == b'\r' { end - 1 } else { end };
        (end > start).then_some(start..end)
    }
}

#[derive(Default)]
struct Reading {
    headers: Fields,
    hosts: usize,
    host: Option<Text>,
    length: Option<u64>,
    coding: Coding,
    connection: Connection,
    expect: Expect,
    upgrade: Option<HeaderValue>,
    trailers_accepted: bool,
    /// Values of `Trailer`: they go on where trailer fields can follow (RFC 9110 §6.6.2).
    announced: Vec<HeaderValue>,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Coding {
    #[default]
    None,
    Chunked,
    Malformed,
    Unknown,
}

#[derive(Clone, Copy, Default, Eq, PartialEq)]
enum Expect {
    #[default]
    None,
    Continue,
    Other,
}

#[derive(Default)]
struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    named: SmallVec<[HeaderName; 1]>,
}

impl Reading {
    fn read(&mut self, head: &Bytes, lines: &mut Lines<'_>, limits: &HeadLimits) -> Result<(), ProxyError> {
        let mut count = 0;
        while let Some(line) = lines.next_line() {
            count += 1;
            if count > limits.fields {
                return Err(ProxyError::HeadTooLarge { limit: limits.fields, unit: "fields" });
            }
            let (name, value) = split_field(head, line).map_err(ProxyError::BadRequest)?;
            let value = head.slice(value);
            if name == header::HOST {
                self.hosts += 1;
                self.host = Some(Text::from_bytes(value).ok_or(ProxyError::BadRequest("malformed Host"))?);
                continue;
            }
            self.take(name, field_value(value).map_err(ProxyError::BadRequest)?)?;
        }
        Ok(())
    }

    /// Sorts one field other than `Host`: what is about the connection or the framing stays here.
    fn take(&mut self, name: HeaderName, value: HeaderValue) -> Result<(), ProxyError> {
        match name {
            header::CONTENT_LENGTH => {
                if self.length.is_some() {
                    return Err(ProxyError::BadRequest("more than one Content-Length"));
                }
                self.length = Some(
                    content_length(value.as_bytes())
                        .ok_or(ProxyError::BadRequest("malformed Content-Length"))?,
                );
            }
            header::TRANSFER_ENCODING => {
                let coding = coding(value.as_bytes());
                self.coding = if self.coding == Coding::None { coding } else { Coding::Malformed };
            }
            header::CONNECTION => self.connection.read(value.as_bytes())?,
            // An empty list expects nothing (RFC 9110 §10.1.1).
            header::EXPECT if value.is_empty() => {}
            header::EXPECT => {
                let is_continue = value.as_bytes().eq_ignore_ascii_case(b"100-continue");
                self.expect = if is_continue && self.expect != Expect::Other {
                    Expect::Continue
                } else {
                    Expect::Other
                };
            }
            header::UPGRADE => self.upgrade = Some(value),
            header::TE => {
                self.trailers_accepted |= value
                    .as_bytes()
                    .split(|byte| *byte == b',')
                    .any(|member| member.trim_ascii().eq_ignore_ascii_case(b"trailers"));
            }
            header::TRAILER => self.announced.push(value),
            // They end at this hop.
            header::PROXY_AUTHENTICATE | header::PROXY_AUTHORIZATION => {}
            name if is_hop_by_hop(&name) => {}
            _ if self.headers.len() >= fields::MOST => {
                return Err(ProxyError::HeadTooLarge { limit: fields::MOST, unit: "fields" });
            }
            name => self.headers.append(name, value),
        }
        Ok(())
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    matches!(name.as_str(), "keep-alive" | "proxy-connection" | "http2-settings")
}

impl Connection {
    /// Any line may name fields, the second as well as the first (RFC 9110 §7.6.1).
    fn read(&mut self, value: &[u8]) -> Result<(), ProxyError> {
        for option in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if !option.is_empty() {
                let name = HeaderName::from_bytes(option)
                    .map_err(|_| ProxyError::BadRequest("malformed Connection"))?;
                self.named.push(name);
            }
        }
        Ok(())
    }
}

/// Digits and nothing else; a list, even of equal numbers, is refused.
pub(crate) fn content_length(value: &[u8]) -> Option<u64> {
    // 19 digits always fit into 64 bits.
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

fn coding(value: &[u8]) -> Coding {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Coding::Chunked;
    }
    let mut members = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    let all_tokens =
        members.clone().all(|member| !member.is_empty() && member.iter().all(|byte| is_token_byte(*byte)));
    let chunked = members.clone().filter(|member| member.eq_ignore_ascii_case(b"chunked")).count();
    let last_is_chunked = members.next_back().is_some_and(|member| member.eq_ignore_ascii_case(b"chunked"));
    // `chunked` twice, or not last, leaves the length open (RFC 9112 §6.1).
    if !all_tokens || chunked > 1 || (chunked == 1 && !last_is_chunked) {
        Coding::Malformed
    } else {
        Coding::Unknown
    }
}

fn split_field(head: &Bytes, line: Range<usize>) -> Result<(HeaderName, Range<usize>), &'static str> {
    let bytes = &head[line.clone()];
    if matches!(bytes[0], b' ' | b'\t') {
        return Err("folded field line");
    }
    let colon = memchr(b':', bytes).ok_or("field line without a colon")?;
    let name = &bytes[..colon];
    if matches!(name.last(), Some(b' ' | b'\t')) {
        return Err("space before the colon of a field");
    }
    let name = HeaderName::from_bytes(name).map_err(|_| "malformed field name")?;
    let mut start = colon + 1;
    let mut end = bytes.len();
    while start < end && matches!(bytes[start], b' ' | b'\t') {
        start += 1;
    }
    while end > start && matches!(bytes[end - 1], b' ' | b'\t') {
        end -= 1;
    }
    Ok((name, line.start + start..line.start + end))
}

/// Refuses every control byte but the tab, CR and NUL among them.
fn field_value(value: Bytes) -> Result<HeaderValue, &'static str> {
    HeaderValue::from_maybe_shared(value).map_err(|_| "control byte in a field value")
}

/// `tchar` of RFC 9110 §5.6.2.
const fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// `field-vchar`, space and tab of RFC 9110 §5.5.
const fn is_value_byte(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=0x7e | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 8192, fields: 100 };

    fn parse(head: &str) -> Result<ParsedRequest, ProxyError> {
        let bytes = Bytes::copy_from_slice(head.as_bytes());
        let mut ends = LineEnds::default();
        let end = HeadScan::default().find_end(&bytes, &LIMITS, Leniency::None, &mut ends)?;
        request(bytes.slice(..end.expect("a whole head")), &ends, &LIMITS, None)
    }

    fn refused(head: &str) -> u16 {
        match parse(head) {
            Ok(parsed) => panic!("accepted {head:?} as {parsed:?}"),
            Err(error) => error.status().as_u16(),
        }
    }

    #[test]
    fn a_request_is_taken_apart() {
        let parsed = parse(
            "POST /a/b?x=1?y HTTP/1.1\r\nHost: a.test:80\r\nContent-Length: 12\r\nX-A:  one \r\nConnection: X-B, close\r\nConnection: x-c\r\n\r\n",
        )
        .unwrap();
        assert_eq!(parsed.head.method, Method::POST);
        assert_eq!(parsed.head.path.as_str(), "/a/b");
        assert_eq!(parsed.head.query.as_ref().map(Text::as_str), Some("x=1?y"));
        assert_eq!(parsed.head.authority.as_str(), "a.test:80");
        assert_eq!(parsed.length, Length::Exact(12));
        assert_eq!(parsed.head.headers["x-a"], "one");
        assert_eq!(parsed.named.as_slice(), ["x-b", "x-c"]);
        assert!(!parsed.keep_alive);
        assert!(!parsed.head.headers.contains_key("connection"));
    }

    #[test]
    fn framing_that_can_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 1\r\nContent-Length: 1",
            "Content-Length: 1, 1",
            "Content-Length: +1",
            "Content-Length: 0x1",
            "Content-Length: ",
            "Content-Length: 99999999999999999999",
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked, chunked",
            "Transfer-Encoding: chunked, gzip",
            "Transfer-Encoding: ,chunked",
            "Transfer-Encoding: chun ked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding:\x0bchunked",
            "X-A: 1\r\n folded",
            "X-A\r\nX-B: 1",
            ": nameless",
            "X A: 1",
            "X-A: a\x00b",
            "X-A: a\rb",
        ] {
            assert_eq!(
                refused(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")),
                400,
                "{fields:?}"
            );
        }
        assert_eq!(refused("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"), 501);
        assert_eq!(refused("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
    }

    #[test]
    fn each_malformed_request_line_has_its_status() {
        for (line, status) in [
            ("GET / HTTP/2.5", 505),
            ("GET / HTTP/0.9", 505),
            ("GET / HTTP/1.", 400),
            ("GET / http/1.1", 400),
            ("GET /", 400),
            ("GET  / HTTP/1.1", 400),
            ("GET / HTTP/1.1 ", 400),
            ("GET /a b HTTP/1.1", 400),
            ("GET /a#b HTTP/1.1", 400),
            ("GET a HTTP/1.1", 400),
            ("GET * HTTP/1.1", 400),
            ("GET ftp://a/ HTTP/1.1", 400),
            ("GET http:///x HTTP/1.1", 400),
            ("G(T / HTTP/1.1", 400),
            (" GET / HTTP/1.1", 400),
            ("CONNECT a:443 HTTP/1.1", 501),
        ] {
            assert_eq!(refused(&format!("{line}\r\nHost: a\r\n\r\n")), status, "{line:?}");
        }
    }

    #[test]
    fn an_absolute_target_names_the_host_whatever_the_field_says() {
        let parsed = parse("GET http://A.test/x?y HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert_eq!((parsed.head.authority.as_str(), parsed.head.path.as_str()), ("A.test", "/x"));
        let other = parse("GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap();
        assert_eq!(other.head.authority.as_str(), "b.test");
        assert_eq!(
            parse("GET http://a.test HTTP/1.1\r\nHost: a.test\r\n\r\n").unwrap().head.path.as_str(),
            "/"
        );
    }

    #[test]
    fn a_line_feed_without_its_carriage_return_is_refused_before_the_head_is_whole() {
        let result = HeadScan::default().find_end(
            b"GET / HTTP/1.1\n",
            &LIMITS,
            Leniency::None,
            &mut LineEnds::default(),
        );
        assert!(matches!(result, Err(ProxyError::BadRequest(_))));
        let end = HeadScan::default().find_end(
            b"HTTP/1.1 200 OK\n\n",
            &LIMITS,
            Leniency::BareLineFeed,
            &mut LineEnds::default(),
        );
        assert_eq!(end.unwrap(), Some(17));
    }

    #[test]
    fn the_ends_of_lines_are_those_that_a_second_search_finds() {
        let field = "X-Field: 1\r\n";
        for (head, first_cut) in [
            (format!("GET / HTTP/1.1\r\n{}\r\n", field.repeat(7)), None),
            (format!("GET / HTTP/1.1\r\n{}\r\n", field.repeat(60)), None),
            (format!("GET /{} HTTP/1.1\r\n{}\r\n", "a".repeat(70_000), field.repeat(3)), None),
            (format!("GET / HTTP/1.1\r\n{}\r\n", field.repeat(7)), Some(40)),
        ] {
            let limits = HeadLimits { bytes: 100_000, fields: 100 };
            let mut scan = HeadScan::default();
            if let Some(cut) = first_cut {
                let found =
                    scan.find_end(&head.as_bytes()[..cut], &limits, Leniency::None, &mut LineEnds::default());
                assert_eq!(found.expect("a good head"), None);
            }
            let mut ends = LineEnds::default();
            let found = scan.find_end(head.as_bytes(), &limits, Leniency::None, &mut ends);
            assert_eq!(found.expect("a good head"), Some(head.len()));
            assert_eq!(ends.get(0).is_some(), head.len() < 70_000 && first_cut.is_none());
            let lines = |ends| {
                let mut lines = Lines::new(head.as_bytes(), ends);
                std::iter::from_fn(move || lines.next_line()).collect::<Vec<_>>()
            };
            assert_eq!(lines(&ends), lines(&LineEnds::default()));
        }
    }

    #[test]
    fn limits_on_bytes_and_fields_hold() {
        let limits = HeadLimits { bytes: 64, fields: 2 };
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(100));
        let many = "GET / HTTP/1.1\r\nA: 1\r\nB: 2\r\nC: 3\r\n";
        for head in [long.as_str(), many, &"a".repeat(65)] {
            let error = HeadScan::default()
                .find_end(head.as_bytes(), &limits, Leniency::None, &mut LineEnds::default())
                .unwrap_err();
            assert_eq!(error.status().as_u16(), 431, "{head:?}");
        }
    }

    #[test]
    fn more_fields_than_any_map_holds_are_refused_whatever_the_limit() {
        let limits = HeadLimits { bytes: 1 << 20, fields: 100_000 };
        let take = |fields| {
            let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "a: b\r\n".repeat(fields));
            request(Bytes::from(head), &LineEnds::default(), &limits, None)
        };
        let most = take(fields::MOST).expect("as many as there may be").head.headers;
        assert_eq!(http::HeaderMap::from(most).len(), fields::MOST);
        assert_eq!(take(fields::MOST + 1).expect_err("one more").status().as_u16(), 431);
    }

    #[test]
    fn bytes_above_ascii_in_the_target_are_escaped() {
        let mut head = b"GET /caf\xc3\xa9?\xff HTTP/1.1\r\nHost: a\r\n\r\n".to_vec();
        let parsed =
            request(Bytes::from(std::mem::take(&mut head)), &LineEnds::default(), &LIMITS, None).unwrap();
        assert_eq!(parsed.head.path.as_str(), "/caf%C3%A9");
        assert_eq!(parsed.head.query.unwrap().as_str(), "%FF");
    }

    #[test]
    fn a_response_with_a_doubtful_head_is_refused() {
        for head in [
            "HTTP/1.1 99 x\r\n\r\n",
            "HTTP/1.1 2000 OK\r\n\r\n",
            "HTTP/1.1200 OK\r\n\r\n",
            "HTTP/3.0 200 OK\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \x01\r\n\r\n",
        ] {
            assert!(
                response(Bytes::copy_from_slice(head.as_bytes()), &LineEnds::default(), &LIMITS).is_err(),
                "{head:?}"
            );
        }
        let both = "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let parsed =
            response(Bytes::copy_from_slice(both.as_bytes()), &LineEnds::default(), &LIMITS).unwrap();
        assert_eq!((parsed.length, parsed.keep_alive), (Length::Chunked, false));
    }
}
