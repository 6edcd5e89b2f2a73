//! A socket that is polled by reference, so that reading a body and writing an answer can share it.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::net::TcpStream;

/// One connection's bytes. TLS will be a second kind of stream behind the same methods.
#[derive(Debug)]
pub struct Io {
    tcp: TcpStream,
}

impl Io {
    /// Takes the socket; `TCP_NODELAY` is set, because heads and bodies leave in one write.
    pub fn new(tcp: TcpStream) -> Self {
        // Refused only for a socket that is already dead, which the first read will tell.
        let _ = tcp.set_nodelay(true);
        Self { tcp }
    }

    /// The socket itself.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Waits until there is something to read or the other side has closed.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_read_ready(cx)
    }

    /// Appends what has come, at most the free room of `buf`; 0 means the other side has closed.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut BytesMut) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_read_ready(cx))?;
            match self.tcp.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Writes some of `slices`.
    pub fn poll_write(&self, cx: &mut Context<'_>, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp.poll_write_ready(cx))?;
            match self.tcp.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Writes what the socket takes at once; 0 when it takes nothing now.
    pub fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.tcp.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }

    /// Whether an idle connection is still of use: neither closed nor holding bytes nobody asked for.
    ///
    /// Looks at what the reactor has already seen; with `ask_kernel` also at what it has not, for one
    /// system call.
    pub fn is_quiet(&self, ask_kernel: bool) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if !ask_kernel && self.tcp.poll_read_ready(&mut cx).is_pending() {
            return true;
        }
        let mut byte = [std::mem::MaybeUninit::uninit(); 1];
        matches!(
            socket2::SockRef::from(&self.tcp).peek(&mut byte),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock
        )
    }

    /// Tells the other side that nothing more will come.
    pub fn shutdown_write(&self) {
        // Fails only when the connection is gone already.
        let _ = socket2::SockRef::from(&self.tcp).shutdown(Shutdown::Write);
    }
}
