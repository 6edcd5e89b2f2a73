//! A socket that is polled by reference, so that reading a body and writing an answer can share it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use socket2::SockRef;
use tokio::io::{AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

use super::splice::Pipe;

/// One connection's bytes. TLS will be a second kind of stream behind the same methods.
#[derive(Debug)]
pub struct Io {
    /// Borrowed for the length of one poll. Reads and writes go through the traits rather than
    /// `try_read`, because those know from a short read that the next one would find nothing.
    tcp: RefCell<TcpStream>,
}

impl Io {
    /// Takes the socket; `TCP_NODELAY` is set, because heads and bodies leave in one write.
    pub fn new(tcp: TcpStream) -> Self {
        // Refused only for a socket that is already dead, which the first read will tell.
        let _ = tcp.set_nodelay(true);
        Self { tcp: RefCell::new(tcp) }
    }

    /// Waits until there is, as far as is known, something to read, or the other side has closed.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.borrow().poll_read_ready(cx)
    }

    /// Appends what has come, at most the free room of `buf`; 0 means the other side has closed.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        poll_read_buf(Pin::new(&mut *self.tcp.borrow_mut()), cx, buf)
    }

    /// Moves what has come, at most `most` bytes, into an empty pipe; 0 means the other side has closed.
    pub(super) fn poll_fill(
        &self,
        cx: &mut Context<'_>,
        pipe: &mut Pipe,
        most: u64,
    ) -> Poll<io::Result<usize>> {
        let tcp = self.tcp.borrow();
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            match tcp.try_io(Interest::READABLE, || pipe.fill(&*tcp, most)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Moves what a pipe holds, or some of it, out.
    pub(super) fn poll_drain(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let tcp = self.tcp.borrow();
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            match tcp.try_io(Interest::WRITABLE, || pipe.drain(&*tcp)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Whether the kernel can move its bytes by itself.
    pub(super) fn can_splice(&self) -> bool {
        true
    }

    /// Writes some of `slices`.
    pub fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut tcp = self.tcp.borrow_mut();
        match slices {
            [only] => Pin::new(&mut *tcp).poll_write(cx, only),
            _ => Pin::new(&mut *tcp).poll_write_vectored(cx, slices),
        }
    }

    /// Whether an idle connection is still of use: neither closed nor holding bytes nobody asked for.
    ///
    /// Looks at what the reactor has already seen; with `ask_kernel` also at what it has not, for one
    /// system call.
    pub fn is_quiet(&self, ask_kernel: bool) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if !ask_kernel && self.tcp.borrow().poll_read_ready(&mut cx).is_pending() {
            return true;
        }
        self.peek().is_none()
    }

    /// Whether there is a byte to read (1), the other side has closed (0), or neither, by the kernel's word.
    pub fn peek(&self) -> Option<io::Result<usize>> {
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        match SockRef::from(&*self.tcp.borrow()).peek(&mut byte) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            result => Some(result),
        }
    }

    /// Whether the other side had closed before what was written last came to it: it then answers with a reset, which
    /// the kernel reports as a broken pipe because the end of its side was seen first. Takes the report.
    pub fn was_closed_before(&self) -> bool {
        let error = SockRef::from(&*self.tcp.borrow()).take_error();
        error.is_ok_and(|error| error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
    }

    /// Tells the other side that nothing more will come.
    pub fn shutdown_write(&self) {
        // Fails only when the connection is gone already.
        let _ = SockRef::from(&*self.tcp.borrow()).shutdown(Shutdown::Write);
    }

    /// Makes the close to come a reset, for answers that only a close would end.
    pub fn reset_on_close(&self) {
        // Fails only when the connection is gone already.
        let _ = self.tcp.borrow().set_zero_linger();
    }
}
