//! TLS on one socket, polled: ciphertext in and out of a [`rustls`] session.
//!
//! An idle connection holds the session alone: what is read goes through a buffer that all connections of the
//! core share. Never: certificates, settings, policy.

use std::cell::RefCell;
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use rustls::Connection;
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::io::peek;
use super::memory::{SMALL_READ, next_read_size};

/// What is read from a socket at once, at most: four records of the largest size.
const LARGEST_READ: usize = 64 * 1024 + 1024;
/// Plaintext that rustls holds for us; beyond it takes no more ciphertext (its own limit is the same).
const PLAIN_LIMIT: usize = 16 * 1024;

thread_local! {
    /// Ciphertext on its way from a socket to a session.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A socket and the session on it.
#[derive(Debug)]
pub(super) struct TlsStream {
    tcp: TcpStream,
    session: Connection,
    /// Bytes that can be read.
    plain: usize,
    /// Ciphertext that was read while the session had no room for it; empty in general.
    behind: BytesMut,
    read_size: usize,
    /// Plaintext that the session has taken, but of which the caller has not been told.
    ahead: usize,
    end: Option<End>,
    notified: bool,
}

/// How the other side's direction ended.
#[derive(Clone, Debug)]
enum End {
    /// It said so.
    Clean,
    /// It did not, and anybody could have cut it.
    Cut,
    /// The socket broke.
    Broken(io::ErrorKind),
    /// What came is not right.
    Refused(rustls::Error),
}

impl End {
    fn result(&self) -> io::Result<usize> {
        match self {
            Self::Clean => Ok(0),
            Self::Cut => {
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, "TLS connection ended without close_notify"))
            }
            Self::Broken(kind) => Err((*kind).into()),
            Self::Refused(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error.clone())),
        }
    }
}

impl TlsStream {
    pub(super) fn new(tcp: TcpStream, session: Connection) -> Self {
        Self {
            tcp,
            session,
            plain: 0,
            behind: BytesMut::new(),
            read_size: SMALL_READ,
            ahead: 0,
            end: None,
            notified: false,
        }
    }

    pub(super) fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    pub(super) fn session(&self) -> &Connection {
        &self.session
    }

    pub(super) fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if let Err(error) = ready!(self.poll_flush(cx)) {
                // The other side may have said why before it closed.
                if let Some(End::Refused(said)) = &self.end {
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, said.clone())));
                }
                return Poll::Ready(Err(error));
            }
            if !self.session.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            match &self.end {
                Some(End::Clean | End::Cut) => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                Some(end) => return Poll::Ready(end.result().map(|_| ())),
                None => ready!(self.poll_receive(cx)),
            }
        }
    }

    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.plain > 0 || self.end.is_some() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx));
        }
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        let room = buf.capacity() - buf.len();
        self.poll_read_with(cx, room, |bytes| buf.extend_from_slice(bytes))
    }

    /// As [`Self::poll_read`], for buffers of tokio's kind.
    pub(super) fn poll_read_buf(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, buf.remaining(), |bytes| buf.put_slice(bytes))
    }

    /// Gives `put` what has come, at most `room` bytes.
    fn poll_read_with(
        &mut self,
        cx: &mut Context<'_>,
        mut room: usize,
        mut put: impl FnMut(&[u8]),
    ) -> Poll<io::Result<usize>> {
        let mut given = 0;
        loop {
            if room == 0 {
                return Poll::Ready(Ok(given));
            }
            if self.plain > 0 {
                let mut reader = self.session.reader();
                let bytes = reader.fill_buf()?;
                let read = bytes.len().min(room);
                put(&bytes[..read]);
                reader.consume(read);
                self.plain -= read;
                room -= read;
                given += read;
                continue;
            }
            if !self.behind.is_empty() {
                self.feed_behind();
                continue;
            }
            if given > 0 {
                return Poll::Ready(Ok(given));
            }
            if let Some(end) = &self.end {
                return Poll::Ready(end.result());
            }
            ready!(self.poll_receive(cx));
        }
    }

    /// Encrypts what there is room for and writes; says that bytes were written when the socket has their
    /// ciphertext, so that who waits for a slow reader sees how far it is.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut skip = self.ahead;
        let rest: SmallVec<[IoSlice<'_>; 4]> = slices
            .iter()
            .filter_map(|slice| {
                let skipped = skip.min(slice.len());
                skip -= skipped;
                let rest = &slice[skipped..];
                (!rest.is_empty()).then(|| IoSlice::new(rest))
            })
            .collect();
        if !rest.is_empty() {
            self.ahead += match &rest[..] {
                [only] => self.session.writer().write(only)?,
                several => self.session.writer().write_vectored(several)?,
            };
        }
        let before = self.ahead;
        let mut sent = 0;
        while self.session.wants_write() {
            match self.poll_write_once(cx) {
                Poll::Ready(Ok(written)) => sent += written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    // The last byte is only told of when everything is out. Ciphertext is longer than what is
                    // in it, by little.
                    let told = sent.min(before.saturating_sub(1));
                    self.ahead -= told;
                    return if told > 0 { Poll::Ready(Ok(told)) } else { Poll::Pending };
                }
            }
        }
        self.ahead = 0;
        Poll::Ready(Ok(before))
    }

    pub(super) fn is_quiet(&mut self, ask_kernel: bool) -> bool {
        if self.plain > 0 || self.end.is_some() || !self.behind.is_empty() {
            return false;
        }
        let mut cx = Context::from_waker(Waker::noop());
        if !ask_kernel && self.tcp.poll_read_ready(&mut cx).is_pending() {
            return true;
        }
        match self.session {
            // It may be a session ticket, which says nothing about the connection.
            Connection::Client(_) => {
                self.receive_now();
                self.plain == 0 && self.end.is_none()
            }
            // Taken now, nobody would be woken for it.
            Connection::Server(_) => peek(&self.tcp).is_none(),
        }
    }

    pub(super) fn peek(&mut self) -> Option<io::Result<usize>> {
        self.receive_now();
        if self.plain > 0 {
            return Some(Ok(1));
        }
        self.end.as_ref().map(End::result)
    }

    /// No [`Self::close_notify`] any more: what was sent is not whole.
    pub(super) fn cut(&mut self) {
        self.notified = true;
    }

    /// Ends our direction; whether the socket has taken that.
    pub(super) fn close_notify(&mut self) -> bool {
        if !self.notified {
            self.notified = true;
            self.session.send_close_notify();
        }
        let mut cx = Context::from_waker(Waker::noop());
        matches!(self.poll_flush(&mut cx), Poll::Ready(Ok(())))
    }

    /// Writes what the session wants to write.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            ready!(self.poll_write_once(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_once(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self.session.write_tls(&mut Writer { tcp: &mut self.tcp, cx }) {
            Ok(0) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    /// Reads from the socket once and gives it to the session.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.behind.is_empty() {
            self.feed_behind();
            return Poll::Ready(());
        }
        SCRATCH.with_borrow_mut(|scratch| {
            let scratch = sized(scratch, self.read_size);
            let mut buf = ReadBuf::new(scratch);
            match ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut buf)) {
                Ok(()) => {
                    let read = buf.filled().len();
                    self.read_size = next_read_size(self.read_size, read);
                    self.received(&scratch[..read]);
                }
                Err(error) => self.end = Some(End::Broken(error.kind())),
            }
            Poll::Ready(())
        })
    }

    /// Reads what the kernel holds, by its own word, as far as the session takes it. Nobody is woken for more.
    fn receive_now(&mut self) {
        while self.plain == 0 && self.end.is_none() {
            let mut buf = [0; SMALL_READ];
            let read = (&*SockRef::from(&self.tcp)).read(&mut buf);
            match read {
                Ok(read) => self.received(&buf[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.end = Some(End::Broken(error.kind())),
            }
        }
    }

    fn received(&mut self, mut bytes: &[u8]) {
        if bytes.is_empty() {
            self.end = Some(End::Cut);
            return;
        }
        self.feed(&mut bytes);
        if !bytes.is_empty() && self.end.is_none() {
            self.behind.extend_from_slice(bytes);
        }
    }

    fn feed_behind(&mut self) {
        let mut behind = std::mem::take(&mut self.behind);
        let mut rest = &behind[..];
        self.feed(&mut rest);
        let left = rest.len();
        if left > 0 && self.end.is_none() {
            behind.advance(behind.len() - left);
            self.behind = behind;
        }
    }

    /// Gives the session as much as it takes.
    fn feed(&mut self, bytes: &mut &[u8]) {
        while !bytes.is_empty() && self.plain < PLAIN_LIMIT && self.end.is_none() {
            if let Err(error) = self.session.read_tls(bytes) {
                self.end = Some(End::Broken(error.kind()));
                return;
            }
            match self.session.process_new_packets() {
                Ok(state) => {
                    self.plain = state.plaintext_bytes_to_read();
                    if state.peer_has_closed() {
                        self.end = Some(End::Clean);
                    }
                }
                Err(error) => {
                    self.end = Some(End::Refused(error));
                    // Tells the other side why, if the socket takes it.
                    let _ = self.poll_flush(&mut Context::from_waker(Waker::noop()));
                }
            }
        }
    }
}

impl Drop for TlsStream {
    fn drop(&mut self) {
        // A request always says how long it is, so a pod is not misled by this; a client might be, and is only
        // told by those who know that its answer is whole.
        if matches!(self.session, Connection::Client(_)) && self.ahead == 0 && self.end.is_none() {
            self.close_notify();
        }
    }
}

/// The first `size` bytes of the shared buffer.
fn sized(scratch: &mut Vec<u8>, size: usize) -> &mut [u8] {
    let size = size.min(LARGEST_READ);
    if scratch.len() < size {
        scratch.resize(size, 0);
    }
    &mut scratch[..size]
}

/// A socket as rustls wants it.
struct Writer<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

impl Write for Writer<'_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.tcp).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn blocking(polled: Poll<io::Result<usize>>) -> io::Result<usize> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
