//! The process log: lines of text or JSON about what an operator did or must know.

use std::io;

pub use crate::telemetry::access_log::LogTarget;

/// Traefik's levels.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a mistake.
    Debug,
    /// What an operator did.
    Info,
    /// What an operator should look at.
    Warn,
    /// What failed.
    Error,
    /// Shown as `Error`.
    Fatal,
    /// Shown as `Error`.
    Panic,
}

/// How a line looks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogFormat {
    /// Text for people.
    Common,
    /// One JSON object.
    Json,
}

/// What Traefik calls `log`, ready to use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogSettings {
    /// Lines below it are left out.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
    /// Never colours, not even on a terminal.
    pub no_color: bool,
    /// Where lines go.
    pub target: LogTarget,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Common, no_color: false, target: LogTarget::Stderr }
    }
}

/// Changes the log while it runs.
#[derive(Clone, Debug)]
pub struct LogHandle {}

/// Sets the process log up; once.
///
/// # Errors
/// When the file cannot be opened, or the process has a log already.
pub fn init(settings: &LogSettings) -> io::Result<LogHandle> {
    let _ = settings;
    Ok(LogHandle {})
}

impl LogHandle {
    /// Takes other settings.
    ///
    /// # Errors
    /// When the file cannot be opened; nothing changes then.
    pub fn set(&self, settings: &LogSettings) -> io::Result<()> {
        let _ = settings;
        Ok(())
    }

    /// Opens the file again under its name; for log rotation.
    ///
    /// # Errors
    /// When the file cannot be opened; lines go on into the old one.
    pub fn reopen(&self) -> io::Result<()> {
        Ok(())
    }
}
