//! Large bodies from one socket to another through a pipe in the kernel: their bytes are never copied into
//! the process (`splice(2)`).

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

use super::memory;

/// Less than that is not worth the system calls.
pub(super) const WORTH: u64 = 64 * 1024;
/// What a pipe is made to hold, where the system allows it.
const SIZE: usize = 256 * 1024;
/// Pipes of one core; bodies beyond them are copied. Each takes two file descriptors.
const MOST: usize = 64;
/// Of them, kept while nobody needs them.
const KEPT: usize = 8;

thread_local! {
    static SPARE: RefCell<Vec<Ends>> = const { RefCell::new(Vec::new()) };
    static IN_USE: Cell<usize> = const { Cell::new(0) };
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

/// A pipe, and what is in it.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Only ever taken out when it is dropped.
    ends: Option<Ends>,
    held: usize,
}

impl Pipe {
    /// An empty pipe; `None` when there are too many, or the process has no more file descriptors.
    pub(super) fn take() -> Option<Self> {
        if IN_USE.get() >= MOST {
            return None;
        }
        let ends = SPARE.with_borrow_mut(Vec::pop).or_else(|| {
            let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
            // Beyond what the user may have it stays at its usual 64 KiB, which serves too.
            let _ = fcntl_setpipe_size(&write, SIZE);
            Some(Ends { read, write })
        })?;
        IN_USE.set(IN_USE.get() + 1);
        Some(Self { ends: Some(ends), held: 0 })
    }

    /// How much waits in it.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Takes up to `most` bytes from a socket; 0 means that the other side has closed. Only while it is
    /// empty: then `WouldBlock` speaks of the socket.
    pub(super) fn fill(&mut self, socket: impl AsFd, most: u64) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(memory::read_limit());
        self.held = splice(socket, None, &ends.write, None, most, FLAGS)?;
        Ok(self.held)
    }

    /// Gives what it holds, or some of it, to a socket.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let Some(ends) = &self.ends else { return Err(io::ErrorKind::BrokenPipe.into()) };
        let moved = splice(&ends.read, None, socket, None, self.held, FLAGS)?;
        self.held -= moved.min(self.held);
        Ok(moved)
    }
}

const FLAGS: SpliceFlags = SpliceFlags::NONBLOCK.union(SpliceFlags::MOVE);

impl Drop for Pipe {
    fn drop(&mut self) {
        IN_USE.set(IN_USE.get() - 1);
        // What is left in a pipe would go to the next client.
        if let Some(ends) = self.ends.take().filter(|_| self.held == 0) {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < KEPT {
                    spare.push(ends);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn bytes_go_through_in_order_and_a_pipe_with_a_rest_is_not_used_again() {
        let (mut pod, from) = UnixStream::pair().expect("a pair");
        let (to, mut client) = UnixStream::pair().expect("a pair");
        pod.write_all(b"hello world").expect("room");
        let mut pipe = Pipe::take().expect("a pipe");

        assert_eq!(pipe.fill(&from, 5).expect("bytes"), 5);
        assert_eq!(pipe.drain(&to).expect("room"), 5);
        assert_eq!((pipe.held(), IN_USE.get()), (0, 1));
        let mut got = [0; 5];
        client.read_exact(&mut got).expect("bytes");
        assert_eq!(&got, b"hello");

        drop(pipe);
        assert_eq!(SPARE.with_borrow(Vec::len), 1);
        let mut pipe = Pipe::take().expect("the same pipe");
        assert_eq!(pipe.fill(&from, 100).expect("bytes"), 6);
        drop(pipe);
        assert_eq!((SPARE.with_borrow(Vec::len), IN_USE.get()), (0, 0));
    }

    #[test]
    fn there_are_only_so_many() {
        let pipes: Vec<_> = (0..MOST).filter_map(|_| Pipe::take()).collect();
        assert_eq!(pipes.len(), MOST);
        assert!(Pipe::take().is_none());
        drop(pipes);
        assert_eq!(SPARE.with_borrow(Vec::len), KEPT);
        assert!(Pipe::take().is_some());
    }
}
