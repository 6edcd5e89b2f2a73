//! Wiring: a runtime for the control plane, signals, start and stop. Nothing is decided here.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::reload::{Reloader, StartError};

/// Why the proxy ends by itself, beside signals.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Until {
    /// Only a signal ends it.
    Signal,
    /// It ends after so long, as on SIGINT; for demonstrations.
    Elapsed(Duration),
}

/// Runs the proxy until it is told to stop. `ready` is called once it listens.
///
/// # Errors
/// It could not start; see [`StartError`].
pub fn run(config: &Path, until: Until, ready: impl FnOnce()) -> Result<(), StartError> {
    raise_file_limit();
    // Two threads: a slow file system or resolver must not keep probes from being answered.
    let runtime =
        Builder::new_multi_thread().worker_threads(2).thread_name("control").enable_all().build()?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut reloader = Reloader::start(config)?;
        ready();
        let elapsed = async {
            match until {
                Until::Signal => std::future::pending().await,
                Until::Elapsed(duration) => tokio::time::sleep(duration).await,
            }
        };
        let mut elapsed = std::pin::pin!(elapsed);
        let at_once = loop {
            tokio::select! {
                () = reloader.changed() => reloader.reload(false),
                _ = signals.hangup.recv() => reloader.reload(true),
                _ = signals.user_1.recv() => reloader.reopen_logs(),
                _ = signals.terminate.recv() => break false,
                _ = signals.interrupt.recv() => break true,
                () = &mut elapsed => break true,
            }
        };
        tokio::select! {
            () = reloader.shut_down(at_once) => {}
            // A second word: now.
            _ = signals.terminate.recv() => tracing::warn!("told to stop at once"),
            _ = signals.interrupt.recv() => tracing::warn!("told to stop at once"),
        }
        reloader.stop().await;
        Ok(())
    })
}

/// Takes as many file descriptors as may be had: each connection is one on either side, and the usual soft
/// limit of 1,024 was made for programs that use `select`.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Refused, the limit stays as it is; `process_max_fds` shows it.
    let _ = setrlimit(Resource::Nofile, wanted);
}

struct Signals {
    hangup: Signal,
    user_1: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            user_1: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_on_files_becomes_the_hard_one() {
        raise_file_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
