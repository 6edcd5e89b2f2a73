//! What Traefik calls `accessLog`, ready to use.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// How a line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessLogFormat {
    /// One JSON object.
    Json,
    /// Traefik's: the combined log format with count, router, server and milliseconds.
    Common,
    /// The combined log format.
    GenericClf,
}

/// Where lines go.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum LogTarget {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; made with its directories if missing.
    File(PathBuf),
}

/// Which exchanges are logged: those that any filter wants, or all if there is none.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AccessLogFilters {
    /// Statuses that the client got.
    pub status_codes: Vec<RangeInclusive<u16>>,
    /// Those that took more than one attempt.
    pub retry_attempts: bool,
    /// Those that took longer; 0 is no filter.
    pub min_duration: Duration,
}

/// What becomes of a field.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum FieldMode {
    /// Shown.
    #[default]
    Keep,
    /// Left out.
    Drop,
}

/// What becomes of a header field.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum HeaderMode {
    /// Shown.
    Keep,
    /// Left out.
    #[default]
    Drop,
    /// Shown as `REDACTED`.
    Redact,
}

/// Which fields a line has.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AccessLogFields {
    /// For fields without an entry of their own.
    pub default_mode: FieldMode,
    /// By Traefik's field name, without regard to case.
    pub names: HashMap<String, FieldMode>,
    /// For header fields without an entry of their own.
    pub default_header_mode: HeaderMode,
    /// By header field name, without regard to case.
    pub header_names: HashMap<String, HeaderMode>,
    /// Whether `RequestPath` shows the query.
    pub query: FieldMode,
}

/// An access log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AccessLogSettings {
    /// Where lines go.
    pub target: LogTarget,
    /// How a line looks.
    pub format: AccessLogFormat,
    /// Which exchanges are logged.
    pub filters: AccessLogFilters,
    /// Which fields a line has.
    pub fields: AccessLogFields,
    /// Lines that may wait for the writer (Traefik's `bufferingSize`); fewer than 4,096 are taken as that. More are dropped and counted.
    pub queue: usize,
}

/// Lines that may wait when the operator does not say: about 4 MB, and a second of 8,000 requests
/// while the disk stalls.
pub const DEFAULT_QUEUE: usize = 8_192;

impl Default for AccessLogSettings {
    fn default() -> Self {
        Self {
            target: LogTarget::Stdout,
            format: AccessLogFormat::Common,
            filters: AccessLogFilters::default(),
            fields: AccessLogFields::default(),
            queue: DEFAULT_QUEUE,
        }
    }
}
