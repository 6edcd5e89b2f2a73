//! The access log: one line for each exchange, written by a thread of its own.
//!
//! Reads: records that the cores hand over. Writes: standard output, standard error or a file.
//! Never: waits for the disk on the way of a request; what does not fit the queue is dropped and counted.

mod format;
mod record;
mod settings;
mod writer;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION, REFERER, SET_COOKIE, USER_AGENT};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;

use crate::http::fields::Fields;
use crate::telemetry::access_log::writer::{Signals, Writer};

pub use crate::telemetry::access_log::record::{AccessRecord, End, OriginPart, PickedFields, TlsPart};
pub use crate::telemetry::access_log::settings::{
    AccessLogFields, AccessLogFilters, AccessLogFormat, AccessLogSettings, DEFAULT_QUEUE, FieldMode,
    HeaderMode, LogTarget,
};
pub(crate) use crate::telemetry::access_log::writer::open_file;

/// Least lines that may wait. The writer rests for up to 20 ms, in which 200,000 requests a second
/// make 4,000 lines.
const MIN_QUEUE: usize = 4_096;

/// What stands for a value that is not to be seen.
const REDACTED: HeaderValue = HeaderValue::from_static("REDACTED");

/// Fields that let whoever reads the log act as the client (RFC 9110 §11.6, RFC 6265 §4).
const CREDENTIALS: [HeaderName; 4] = [AUTHORIZATION, PROXY_AUTHORIZATION, COOKIE, SET_COOKIE];

/// What became of the lines of one access log.
#[derive(Debug, Default)]
pub struct AccessLogCounts {
    /// Written.
    pub written: AtomicU64,
    /// Dropped, because the queue was full or the log closed.
    pub dropped: AtomicU64,
    /// Lost, because writing failed.
    pub failed: AtomicU64,
}

/// An open access log; shared by the cores.
///
/// When the last owner lets go, the writer writes what is queued and ends: exchanges that began
/// under an older configuration are logged where that one said.
#[derive(Debug)]
pub struct AccessLog {
    settings: AccessLogSettings,
    header_modes: HashMap<HeaderName, HeaderMode>,
    counts: Arc<AccessLogCounts>,
    queue: SyncSender<Box<AccessRecord>>,
    signals: Arc<Signals>,
    thread: Thread,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl AccessLog {
    /// Opens the target and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn start(settings: AccessLogSettings) -> io::Result<Self> {
        let counts = Arc::<AccessLogCounts>::default();
        let signals = Arc::<Signals>::default();
        let (queue, records) = sync_channel(settings.queue.max(MIN_QUEUE));
        let writer = Writer::open(&settings, Arc::clone(&counts), Arc::clone(&signals), records)?;
        let writer = std::thread::Builder::new().name("access-log".to_owned()).spawn(|| writer.run())?;
        let header_modes = settings
            .fields
            .header_names
            .iter()
            // A name that is none never comes in a request either.
            .filter_map(|(name, mode)| Some((HeaderName::from_bytes(name.as_bytes()).ok()?, *mode)))
            .collect();
        let thread = writer.thread().clone();
        Ok(Self { settings, header_modes, counts, queue, signals, thread, writer: Mutex::new(Some(writer)) })
    }

    /// What it was started with; a reload keeps a log whose settings did not change.
    pub fn settings(&self) -> &AccessLogSettings {
        &self.settings
    }

    /// For [`Metrics::count_access_log`](crate::telemetry::metrics::Metrics::count_access_log).
    pub fn counts(&self) -> Arc<AccessLogCounts> {
        Arc::clone(&self.counts)
    }

    /// Whether an exchange is to be logged; ask before a record is made. Cost: a few comparisons.
    pub fn accepts(&self, status: u16, retries: u32, duration: Duration) -> bool {
        let AccessLogFilters { status_codes, retry_attempts, min_duration } = &self.settings.filters;
        if status_codes.is_empty() && !retry_attempts && min_duration.is_zero() {
            return true;
        }
        status_codes.iter().any(|codes| codes.contains(&status))
            || (*retry_attempts && retries > 0)
            || (!min_duration.is_zero() && duration > *min_duration)
    }

    /// Picks the header fields that a line shows; redacted ones lose their value here.
    ///
    /// Returns nothing, and costs next to nothing, when none is wanted. A line in common or generic
    /// format shows two fields of the request and none of the responses. Unlike in Traefik, a field of
    /// credentials is kept only if it is named: `defaultMode: keep` alone redacts it.
    pub fn pick(&self, headers: &Fields) -> PickedFields {
        let default = self.settings.fields.default_header_mode;
        let nothing =
            default == HeaderMode::Drop && self.header_modes.values().all(|mode| *mode == HeaderMode::Drop);
        if nothing {
            return PickedFields::new();
        }
        let in_format = |name: &HeaderName| match self.settings.format {
            AccessLogFormat::Json => true,
            AccessLogFormat::Common | AccessLogFormat::GenericClf => name == REFERER || name == USER_AGENT,
        };
        headers
            .iter()
            .filter(|(name, _)| in_format(name))
            .filter_map(|(name, value)| match self.header_modes.get(name).unwrap_or(&default) {
                HeaderMode::Keep if CREDENTIALS.contains(name) && !self.header_modes.contains_key(name) => {
                    Some((name.clone(), REDACTED))
                }
                HeaderMode::Keep => Some((name.clone(), value.clone())),
                HeaderMode::Redact => Some((name.clone(), REDACTED)),
                HeaderMode::Drop => None,
            })
            .collect()
    }

    /// Hands a record to the writer; drops and counts it when the queue is full or the log closed.
    pub fn log(&self, record: AccessRecord) {
        match self.queue.try_send(Box::new(record)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
                self.thread.unpark();
            }
            Err(TrySendError::Disconnected(_)) => {
                self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Opens the file again under its name, within a moment; for log rotation.
    ///
    /// If that fails, lines go on into the old file and the process log says so.
    pub fn reopen(&self) {
        self.signals.reopen.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// Writes what is queued and ends the writer; waits at most `limit`. Says whether all was written.
    ///
    /// Blocks the calling thread. Records that come later are dropped and counted.
    pub fn close(&self, limit: Duration) -> bool {
        let Some(writer) = self.writer.lock().take() else { return true };
        let deadline = Instant::now() + limit;
        self.signals.close.store(true, Ordering::Release);
        self.thread.unpark();
        let finished = self.signals.wait_until_ended(deadline);
        if finished {
            // The thread's last act was to say so.
            drop(writer.join());
        }
        finished
    }
}

#[cfg(test)]
mod tests;
