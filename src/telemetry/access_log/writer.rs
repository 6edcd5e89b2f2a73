//! The thread that formats and writes lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::telemetry::access_log::format::Formatter;
use crate::telemetry::access_log::{AccessLogCounts, AccessLogSettings, AccessRecord, LogTarget};

/// How long the writer rests when the queue is empty. It looks by itself, so that handing a record
/// over never costs a core the system call that wakes a thread.
const REST: Duration = Duration::from_millis(20);

/// Bytes gathered for one write.
const BATCH: usize = 64 * 1024;

/// Between two complaints about failing writes.
const COMPLAIN_EVERY: Duration = Duration::from_secs(60);

/// Readable for the owner and the group: lines name clients.
const FILE_MODE: u32 = 0o640;

/// What others ask of the writer, and what it says.
#[derive(Debug, Default)]
pub(super) struct Signals {
    pub(super) reopen: AtomicBool,
    pub(super) close: AtomicBool,
    ended: Mutex<bool>,
    on_end: Condvar,
}

impl Signals {
    /// Whether the writer ended by `deadline`.
    pub(super) fn wait_until_ended(&self, deadline: Instant) -> bool {
        let mut ended = self.ended.lock();
        while !*ended {
            if self.on_end.wait_until(&mut ended, deadline).timed_out() {
                return *ended;
            }
        }
        true
    }

    fn end(&self) {
        *self.ended.lock() = true;
        self.on_end.notify_all();
    }
}

#[derive(Debug)]
enum Output {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File },
}

#[derive(Debug)]
pub(super) struct Writer {
    formatter: Formatter,
    output: Output,
    counts: Arc<AccessLogCounts>,
    signals: Arc<Signals>,
    records: Receiver<Box<AccessRecord>>,
    batch: Vec<u8>,
    lines: u64,
    complained: Option<Instant>,
}

impl Writer {
    pub(super) fn open(
        settings: &AccessLogSettings,
        counts: Arc<AccessLogCounts>,
        signals: Arc<Signals>,
        records: Receiver<Box<AccessRecord>>,
    ) -> io::Result<Self> {
        let output = match &settings.target {
            LogTarget::Stdout => Output::Stdout,
            LogTarget::Stderr => Output::Stderr,
            LogTarget::File(path) => Output::File { path: path.clone(), file: open_file(path)? },
        };
        Ok(Self {
            formatter: Formatter::new(settings),
            output,
            counts,
            signals,
            records,
            batch: Vec::with_capacity(BATCH),
            lines: 0,
            complained: None,
        })
    }

    /// Writes until the log is closed or nobody owns it any more.
    pub(super) fn run(mut self) {
        loop {
            // Read before the queue is: what was handed over before `close` is written.
            let closing = self.signals.close.load(Ordering::Acquire);
            if self.signals.reopen.swap(false, Ordering::AcqRel) {
                self.reopen();
            }
            let state = self.drain();
            self.flush();
            match state {
                TryRecvError::Disconnected => break,
                TryRecvError::Empty if closing => break,
                TryRecvError::Empty => std::thread::park_timeout(REST),
            }
        }
        self.signals.end();
    }

    /// Takes records until there is none, or somebody wants the file reopened.
    fn drain(&mut self) -> TryRecvError {
        loop {
            match self.records.try_recv() {
                Ok(record) => {
                    self.formatter.line(&record, &mut self.batch);
                    self.lines += 1;
                    if self.batch.len() >= BATCH {
                        self.flush();
                        if self.signals.reopen.swap(false, Ordering::AcqRel) {
                            self.reopen();
                        }
                    }
                }
                Err(state) => return state,
            }
        }
    }

    fn flush(&mut self) {
        if self.lines == 0 {
            return;
        }
        let result = match &mut self.output {
            Output::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(&self.batch).and_then(|()| stdout.flush())
            }
            Output::Stderr => io::stderr().lock().write_all(&self.batch),
            Output::File { file, .. } => file.write_all(&self.batch),
        };
        match result {
            Ok(()) => _ = self.counts.written.fetch_add(self.lines, Ordering::Relaxed),
            Err(error) => {
                self.counts.failed.fetch_add(self.lines, Ordering::Relaxed);
                self.complain(&error, "access log lines are lost");
            }
        }
        self.lines = 0;
        self.batch.clear();
    }

    fn reopen(&mut self) {
        self.flush();
        let Output::File { path, file } = &mut self.output else { return };
        match open_file(path) {
            Ok(new) => *file = new,
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "access log cannot be reopened");
            }
        }
    }

    fn complain(&mut self, error: &io::Error, what: &str) {
        let now = Instant::now();
        if self.complained.is_none_or(|before| now.duration_since(before) >= COMPLAIN_EVERY) {
            self.complained = Some(now);
            tracing::error!(%error, "{what}");
        }
    }
}

/// Opens a log file to append to, with the directories it is in.
///
/// # Errors
/// As the system says.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().append(true).create(true).mode(FILE_MODE).open(path)
}
