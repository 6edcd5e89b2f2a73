//! A connection that is polled by reference, so that reading a body and writing an answer can share it.
//! Plain TCP, or TLS on it; whoever reads and writes does not know which.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::splice::Pipe;
use super::tls::TlsStream;

/// One connection's bytes.
#[derive(Debug)]
pub struct Io {
    /// Borrowed for the length of one poll.
    stream: RefCell<Stream>,
}

#[derive(Debug)]
enum Stream {
    /// Reads and writes go through the traits rather than `try_read`, because those know from a short read
    /// that the next one would find nothing.
    Tcp(TcpStream),
    /// In a box: most idle connections may be plain ones, and those stay small.
    Tls(Box<TlsStream>),
}

impl Io {
    /// Takes the socket; `TCP_NODELAY` is set, because heads and bodies leave in one write.
    pub fn new(tcp: TcpStream) -> Self {
        // Refused only for a socket that is already dead, which the first read will tell.
        let _ = tcp.set_nodelay(true);
        Self { stream: RefCell::new(Stream::Tcp(tcp)) }
    }

    /// Takes the socket and what will be spoken on it; [`Self::poll_handshake`] comes first.
    pub fn tls(tcp: TcpStream, session: impl Into<rustls::Connection>) -> Self {
        // As above.
        let _ = tcp.set_nodelay(true);
        Self { stream: RefCell::new(Stream::Tls(Box::new(TlsStream::new(tcp, session.into())))) }
    }

    /// Goes on with the TLS handshake until it is done; nothing to do on a plain connection.
    ///
    /// # Errors
    /// The connection ended, or the two sides do not agree: then the source is a [`rustls::Error`], and the
    /// other side has been told.
    pub fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(_) => Poll::Ready(Ok(())),
            Stream::Tls(tls) => tls.poll_handshake(cx),
        }
    }

    /// What the TLS session knows; `None` on a plain connection.
    pub fn session<T>(&self, read: impl FnOnce(&rustls::Connection) -> T) -> Option<T> {
        match &*self.stream.borrow() {
            Stream::Tcp(_) => None,
            Stream::Tls(tls) => Some(read(tls.session())),
        }
    }

    /// Waits until there is, as far as is known, something to read, or the other side has closed.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => tcp.poll_read_ready(cx),
            Stream::Tls(tls) => tls.poll_readable(cx),
        }
    }

    /// Appends what has come, at most the free room of `buf`; 0 means the other side has closed. A TLS
    /// connection that ends without saying so is an [`io::ErrorKind::UnexpectedEof`]: anybody could have cut it.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => poll_read_buf(Pin::new(tcp), cx, buf),
            Stream::Tls(tls) => tls.poll_read(cx, buf),
        }
    }

    /// Moves what has come, at most `most` bytes, into an empty pipe; 0 means the other side has closed. Only
    /// where [`Self::can_splice`].
    pub(super) fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        most: u64,
    ) -> Poll<io::Result<usize>> {
        let Stream::Tcp(tcp) = &*self.stream.borrow() else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            match tcp.try_io(Interest::READABLE, || pipe.fill(tcp, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Moves what a pipe holds, or some of it, out. Only where [`Self::can_splice`].
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let Stream::Tcp(tcp) = &*self.stream.borrow() else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_io(Interest::WRITABLE, || pipe.drain(tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Whether the kernel can move its bytes by itself.
    pub(super) fn can_splice(&self) -> bool {
        matches!(&*self.stream.borrow(), Stream::Tcp(_))
    }

    /// Writes some of `slices`; what it says was written is with the kernel.
    ///
    /// After `Pending` the same bytes must be given again (more may follow them): TLS may have taken some.
    pub fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => match slices {
                [only] => Pin::new(tcp).poll_write(cx, only),
                _ => Pin::new(tcp).poll_write_vectored(cx, slices),
            },
            Stream::Tls(tls) => tls.poll_write(cx, slices),
        }
    }

    /// Whether an idle connection is still of use: neither closed nor holding bytes nobody asked for.
    ///
    /// Looks at what the reactor has already seen; with `ask_kernel` also at what it has not, for one
    /// system call.
    pub fn is_quiet(&self, ask_kernel: bool) -> bool {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                if !ask_kernel && tcp.poll_read_ready(&mut cx).is_pending() {
                    return true;
                }
                peek(tcp).is_none()
            }
            Stream::Tls(tls) => tls.is_quiet(ask_kernel),
        }
    }

    /// Whether there is something to read (1), the other side has closed (0), or neither, by the kernel's
    /// word.
    pub fn peek(&self) -> Option<io::Result<usize>> {
        match &mut *self.stream.borrow_mut() {
            Stream::Tcp(tcp) => peek(tcp),
            Stream::Tls(tls) => tls.peek(),
        }
    }

    /// Whether its bytes are those of the socket.
    pub fn is_plain(&self) -> bool {
        matches!(&*self.stream.borrow(), Stream::Tcp(_))
    }

    /// Whether the other side had closed before what was written last came to it: it then answers with a reset, which
    /// the kernel reports as a broken pipe because the end of its side was seen first. Takes the report. Not known
    /// of TLS, whose records need not be segments.
    pub fn was_closed_before(&self) -> bool {
        match &*self.stream.borrow() {
            Stream::Tcp(tcp) => {
                let error = SockRef::from(tcp).take_error();
                error.is_ok_and(|error| error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
            }
            Stream::Tls(_) => false,
        }
    }

    /// Tells the other side that nothing more will come.
    pub fn shutdown_write(&self) {
        let stream = &mut *self.stream.borrow_mut();
        let tcp = match stream {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls(tls) => {
                if !tls.close_notify() {
                    return;
                }
                tls.tcp()
            }
        };
        // Fails only when the connection is gone already.
        let _ = SockRef::from(tcp).shutdown(Shutdown::Write);
    }

    /// Tells the other side of a TLS connection that what it got is whole, before the connection is closed.
    /// Never after an answer that broke off.
    pub fn close_notify(&self) {
        if let Stream::Tls(tls) = &mut *self.stream.borrow_mut() {
            tls.close_notify();
        }
    }

    /// Makes the close to come a reset, for answers that only a close would end.
    pub fn reset_on_close(&self) {
        let mut stream = self.stream.borrow_mut();
        let tcp = match &mut *stream {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls(tls) => {
                tls.cut();
                tls.tcp()
            }
        };
        // Fails only when the connection is gone already.
        let _ = tcp.set_zero_linger();
    }
}

/// Whether there is a byte to read (1), the other side has closed (0), or neither.
pub(super) fn peek(tcp: &TcpStream) -> Option<io::Result<usize>> {
    let mut byte = [std::mem::MaybeUninit::uninit(); 1];
    match SockRef::from(tcp).peek(&mut byte) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        result => Some(result),
    }
}

/// For codecs that own their connection (HTTP/2).
impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut().stream.get_mut() {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => tls.poll_read_buf(cx, buf).map_ok(|_| ()),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Self::poll_write(&self, cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Self::poll_write(&self, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was written is with the kernel.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shutdown_write();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_does_not_make_a_plain_connection_larger() {
        assert_eq!(size_of::<Stream>(), size_of::<TcpStream>());
    }
}
