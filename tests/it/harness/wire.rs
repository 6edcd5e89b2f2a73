//! HTTP/1 messages on a socket, read byte for byte and kept as they came.
//!
//! Framing is read strictly: what a lenient reader would forgive is a [`Failure`] here.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use super::DEADLINE;

/// Why no whole message could be read; each carries what had come by then.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The peer closed in an orderly way.
    Closed(String),
    /// The peer reset the connection.
    Reset(String),
    /// Nothing more came in time.
    Silent(String),
    /// What came breaks the grammar.
    Malformed(&'static str, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(got) => write!(f, "closed after {got:?}"),
            Self::Reset(got) => write!(f, "reset after {got:?}"),
            Self::Silent(got) => write!(f, "silent after {got:?}"),
            Self::Malformed(what, got) => write!(f, "{what} in {got:?}"),
        }
    }
}

/// The start line and the fields of a message, in the order and the spelling in which they came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Head {
    /// Without its line end.
    pub start_line: String,
    /// Names as written, values without the whitespace around them.
    pub fields: Vec<(String, String)>,
    /// The bytes themselves, one character a byte.
    pub raw: String,
}

impl Head {
    fn parse(raw: &[u8]) -> Result<Self, Failure> {
        let raw = latin1(raw);
        let malformed = |what| Failure::Malformed(what, raw.clone());
        let block =
            raw.strip_suffix("\r\n\r\n").ok_or_else(|| malformed("no empty line at the end of a head"))?;
        let mut lines = block.split("\r\n");
        let start_line = lines.next().unwrap_or_default().to_owned();
        let fields = fields(lines).map_err(malformed)?;
        Ok(Self { start_line, fields, raw })
    }

    /// The value of the only field of that name.
    ///
    /// # Panics
    /// When there are several.
    #[track_caller]
    pub fn get(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} came {} times in {:?}", all.len(), self.raw);
        all.first().copied()
    }

    /// The values of all fields of that name, in order.
    pub fn all(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(key, _)| key.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// Whether a field of that name is there.
    pub fn has(&self, name: &str) -> bool {
        !self.all(name).is_empty()
    }

    /// Whether a list field has that member, without regard to case.
    pub fn lists(&self, name: &str, member: &str) -> bool {
        let values = self.all(name);
        values.iter().flat_map(|value| value.split(',')).any(|one| one.trim().eq_ignore_ascii_case(member))
    }

    /// The words of the start line.
    pub fn word(&self, index: usize) -> &str {
        self.start_line.splitn(3, ' ').nth(index).unwrap_or_default()
    }
}

/// A body as it was framed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Content {
    /// Its bytes, without framing.
    pub bytes: Vec<u8>,
    /// The fields after the last chunk.
    pub trailers: Vec<(String, String)>,
}

/// One connection, with what was read ahead and everything that ever came.
pub struct Wire {
    stream: TcpStream,
    ahead: Vec<u8>,
    seen: Vec<u8>,
}

impl Wire {
    /// Takes over a connection; reads and writes on it wait at most [`DEADLINE`].
    pub fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).expect("a TCP socket");
        stream.set_read_timeout(Some(DEADLINE)).expect("a deadline above zero");
        stream.set_write_timeout(Some(DEADLINE)).expect("a deadline above zero");
        Self { stream, ahead: Vec::new(), seen: Vec::new() }
    }

    /// The socket, for what this type does not offer.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Everything that came so far, framing included.
    pub fn seen(&self) -> &[u8] {
        &self.seen
    }

    /// Writes exactly these bytes.
    pub fn write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Ends our direction only.
    pub fn half_close(&self) {
        // The peer may have gone already; the reads that follow tell.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Makes the next close a reset.
    pub fn reset_on_close(&self) {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).expect("a TCP socket");
    }

    /// Changes how long reads wait.
    pub fn patience(&self, span: Duration) {
        self.stream.set_read_timeout(Some(span)).expect("a span above zero");
    }

    fn fill(&mut self) -> Result<(), Failure> {
        let mut block = [0; 64 * 1024];
        loop {
            return match self.stream.read(&mut block) {
                Ok(0) => Err(Failure::Closed(latin1(&self.ahead))),
                Ok(count) => {
                    self.ahead.extend_from_slice(&block[..count]);
                    self.seen.extend_from_slice(&block[..count]);
                    Ok(())
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    Err(Failure::Silent(latin1(&self.ahead)))
                }
                Err(_) => Err(Failure::Reset(latin1(&self.ahead))),
            };
        }
    }

    /// Reads up to and with the empty line after a head.
    pub fn read_head(&mut self) -> Result<Head, Failure> {
        let raw = self.read_through(b"\r\n\r\n")?;
        Head::parse(&raw)
    }

    /// Reads exactly so many bytes.
    pub fn read_exactly(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        while self.ahead.len() < count {
            self.fill()?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    fn read_through(&mut self, end: &[u8]) -> Result<Vec<u8>, Failure> {
        let mut from = 0;
        loop {
            if let Some(at) = memchr::memmem::find(&self.ahead[from..], end) {
                return Ok(self.ahead.drain(..from + at + end.len()).collect());
            }
            from = self.ahead.len().saturating_sub(end.len() - 1);
            self.fill()?;
        }
    }

    /// Reads one chunk; an empty one is the last, and its trailers are still to come.
    pub fn read_chunk(&mut self) -> Result<Vec<u8>, Failure> {
        let line = latin1(&self.read_through(b"\r\n")?);
        let size = line.trim_end().split(';').next().unwrap_or_default();
        let size =
            usize::from_str_radix(size, 16).map_err(|_| Failure::Malformed("chunk size", line.clone()))?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let mut chunk = self.read_exactly(size + 2)?;
        if !chunk.ends_with(b"\r\n") {
            return Err(Failure::Malformed("end of chunk", latin1(&chunk[size.saturating_sub(16)..])));
        }
        chunk.truncate(size);
        Ok(chunk)
    }

    /// Reads what follows the last chunk.
    pub fn read_trailers(&mut self) -> Result<Vec<(String, String)>, Failure> {
        let mut lines = Vec::new();
        loop {
            let line = latin1(&self.read_through(b"\r\n")?);
            let line = line.trim_end_matches("\r\n").to_owned();
            if line.is_empty() {
                return fields(lines.iter().map(String::as_str))
                    .map_err(|what| Failure::Malformed(what, lines.join("\r\n")));
            }
            lines.push(line);
        }
    }

    /// Reads a whole chunked body.
    pub fn read_chunked(&mut self) -> Result<Content, Failure> {
        let mut bytes = Vec::new();
        loop {
            let chunk = self.read_chunk()?;
            if chunk.is_empty() {
                return Ok(Content { bytes, trailers: self.read_trailers()? });
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    /// Reads the body that a head announces; without framing there is none, unless `to_end`.
    pub fn read_content(&mut self, head: &Head, to_end: bool) -> Result<Content, Failure> {
        if head.lists("Transfer-Encoding", "chunked") {
            return self.read_chunked();
        }
        let bytes = match head.all("Content-Length").first() {
            Some(length) => {
                let length =
                    length.parse().map_err(|_| Failure::Malformed("Content-Length", head.raw.clone()))?;
                self.read_exactly(length)?
            }
            None if to_end => self.read_to_end()?,
            None => Vec::new(),
        };
        Ok(Content { bytes, trailers: Vec::new() })
    }

    /// Reads until the peer closes in an orderly way.
    pub fn read_to_end(&mut self) -> Result<Vec<u8>, Failure> {
        loop {
            match self.fill() {
                Ok(()) => {}
                Err(Failure::Closed(_)) => return Ok(std::mem::take(&mut self.ahead)),
                Err(other) => return Err(other),
            }
        }
    }

    /// Waits for the end of the connection and gives what came before it.
    pub fn rest(&mut self) -> Result<Vec<u8>, Failure> {
        match self.read_to_end() {
            Err(Failure::Reset(_)) => Ok(std::mem::take(&mut self.ahead)),
            other => other,
        }
    }
}

fn fields<'a>(lines: impl Iterator<Item = &'a str>) -> Result<Vec<(String, String)>, &'static str> {
    lines
        .map(|line| {
            let (name, value) = line.split_once(':').ok_or("field without a colon")?;
            if name.is_empty() || name.contains([' ', '\t', '\n', '\r']) || value.contains(['\n', '\r', '\0'])
            {
                return Err("field with bytes that it may not have");
            }
            Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
        })
        .collect()
}

/// Shows bytes one character each, so that nothing is lost.
pub fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}
