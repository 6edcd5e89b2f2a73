//! The process log: lines of text or JSON about what an operator did or must know.
//!
//! Reads: `tracing` events. Writes: standard error, standard output or a file, one line an event,
//! whatever a value holds. Everything changes while it runs. Never: exchanges; those are in the access log.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write as _};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::telemetry::access_log::open_file;
use crate::telemetry::time::Utc;

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
    /// As `Error`: the lines that an exit leaves are of that level.
    Fatal,
    /// As `Error`.
    Panic,
}

impl LogLevel {
    fn filter(self) -> LevelFilter {
        match self {
            Self::Trace => LevelFilter::TRACE,
            Self::Debug => LevelFilter::DEBUG,
            Self::Info => LevelFilter::INFO,
            Self::Warn => LevelFilter::WARN,
            Self::Error | Self::Fatal | Self::Panic => LevelFilter::ERROR,
        }
    }
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
pub struct LogHandle {
    lines: Arc<Lines>,
    level: reload::Handle<LevelFilter, Registry>,
}

/// Sets the process log up; once.
///
/// # Errors
/// When the file cannot be opened, or the process has a log already.
pub fn init(settings: &LogSettings) -> io::Result<LogHandle> {
    let (subscriber, handle) = build(settings)?;
    subscriber.try_init().map_err(io::Error::other)?;
    Ok(handle)
}

fn build(settings: &LogSettings) -> io::Result<(impl Subscriber + Send + Sync, LogHandle)> {
    let lines = Arc::new(Lines(Mutex::new(Sink::open(settings)?)));
    let (filter, level) = reload::Layer::new(settings.level.filter());
    let subscriber = tracing_subscriber::registry().with(filter).with(LineLayer(Arc::clone(&lines)));
    Ok((subscriber, LogHandle { lines, level }))
}

impl LogHandle {
    /// Takes other settings.
    ///
    /// # Errors
    /// When the file cannot be opened; nothing changes then.
    pub fn set(&self, settings: &LogSettings) -> io::Result<()> {
        let sink = Sink::open(settings)?;
        *self.lines.0.lock() = sink;
        self.level.reload(settings.level.filter()).map_err(io::Error::other)
    }

    /// Opens the file again under its name; for log rotation.
    ///
    /// # Errors
    /// When the file cannot be opened; lines go on into the old one.
    pub fn reopen(&self) -> io::Result<()> {
        let target = self.lines.0.lock().target.clone();
        let output = Output::open(&target)?;
        let mut sink = self.lines.0.lock();
        // A reload may have come in between; its file is new enough.
        if sink.target == target {
            sink.output = output;
        }
        Ok(())
    }
}

/// Where lines go now, and how they look.
#[derive(Debug)]
struct Sink {
    target: LogTarget,
    output: Output,
    format: LogFormat,
    colors: Colors,
}

#[derive(Debug)]
enum Output {
    Stdout,
    Stderr,
    File(File),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Colors {
    On,
    Off,
}

impl Output {
    fn open(target: &LogTarget) -> io::Result<Self> {
        Ok(match target {
            LogTarget::Stdout => Self::Stdout,
            LogTarget::Stderr => Self::Stderr,
            LogTarget::File(path) => Self::File(open_file(path)?),
        })
    }
}

impl Sink {
    fn open(settings: &LogSettings) -> io::Result<Self> {
        let terminal = match &settings.target {
            LogTarget::Stdout => io::stdout().is_terminal(),
            LogTarget::Stderr => io::stderr().is_terminal(),
            LogTarget::File(_) => false,
        };
        Ok(Self {
            target: settings.target.clone(),
            output: Output::open(&settings.target)?,
            format: settings.format,
            colors: if terminal && !settings.no_color { Colors::On } else { Colors::Off },
        })
    }

    /// Writes a whole line at once; a log that cannot be written has nowhere to say so.
    fn write(&mut self, line: &str) {
        let result = match &mut self.output {
            Output::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Output::Stderr => io::stderr().lock().write_all(line.as_bytes()),
            Output::File(file) => file.write_all(line.as_bytes()),
        };
        drop(result);
    }
}

#[derive(Debug)]
struct Lines(Mutex<Sink>);

/// Turns events into lines.
struct LineLayer(Arc<Lines>);

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = Utc::of(SystemTime::now()).rfc3339_millis();
        let meta = event.metadata();
        let mut sink = self.0.0.lock();
        let line = match sink.format {
            LogFormat::Common => text_line(&time, *meta.level(), &fields, sink.colors),
            LogFormat::Json => json_line(&time, *meta.level(), meta.target(), fields),
        };
        sink.write(&line);
    }
}

/// The fields of an event, the message apart.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, Value)>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => self.others.push((name, value)),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, Value::String(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::from(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, Value::from(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, Value::from(value));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let more = error.to_string();
            // Many errors repeat their cause.
            if !text.ends_with(&more) {
                write!(text, ": {more}").expect("a String takes every text");
            }
            cause = error.source();
        }
        self.add(field, Value::String(text));
    }
}

/// `2006-01-02T15:04:05.000Z WARN endpoint ejected service=api failures=3`
fn text_line(time: &str, level: Level, fields: &Fields, colors: Colors) -> String {
    let (color, plain) = match (colors, level) {
        (Colors::Off, _) => ("", ""),
        (Colors::On, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
        (Colors::On, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
        (Colors::On, Level::INFO) => ("\x1b[32m", "\x1b[0m"),
        (Colors::On, _) => ("\x1b[34m", "\x1b[0m"),
    };
    let mut line = format!("{time} {color}{level:<5}{plain} ");
    push_printable(&mut line, &fields.message);
    for (name, value) in &fields.others {
        line.push(' ');
        line.push_str(name);
        line.push('=');
        match value {
            Value::String(text) if is_bare(text) => line.push_str(text),
            Value::String(text) => write!(line, "{text:?}").expect("a String takes every text"),
            other => write!(line, "{other}").expect("a String takes every text"),
        }
    }
    line.push('\n');
    line
}

/// One flat object. A field named like one of ours gets a `_` behind it.
fn json_line(time: &str, level: Level, target: &str, fields: Fields) -> String {
    let mut line = Map::new();
    for (name, value) in fields.others {
        let taken = matches!(name, "time" | "level" | "target");
        line.insert(if taken { format!("{name}_") } else { name.to_owned() }, value);
    }
    line.insert("time".to_owned(), time.into());
    line.insert("level".to_owned(), level.as_str().to_ascii_lowercase().into());
    line.insert("target".to_owned(), target.into());
    line.insert("message".to_owned(), fields.message.into());
    let mut line = Value::Object(line).to_string();
    line.push('\n');
    line
}

/// Whether a value reads unmistakably without quotes.
fn is_bare(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'))
}

fn push_printable(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn to(path: &Path) -> LogSettings {
        LogSettings { target: LogTarget::File(path.to_owned()), ..LogSettings::default() }
    }

    /// What the lines say, without their times.
    fn lines(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).expect("the log");
        text.lines().map(|line| line.split_once(' ').expect("a time").1.to_owned()).collect()
    }

    #[test]
    fn a_line_is_one_line_whatever_a_value_holds() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("made/on/demand.log");
        let (subscriber, _handle) = build(&to(&path)).expect("a log");
        tracing::subscriber::with_default(subscriber, || {
            let evil = "x\nERROR forged \x1b[31m\"";
            tracing::warn!(service = %"api", failures = 3, evil, "endpoint ejected");
            tracing::info!("evil message {evil}");
        });
        assert_eq!(
            lines(&path),
            [
                r#"WARN  endpoint ejected service=api failures=3 evil="x\nERROR forged \u{1b}[31m\"""#,
                r#"INFO  evil message x\nERROR forged \u{1b}[31m""#,
            ]
        );
    }

    #[test]
    fn level_format_and_file_change_while_it_runs() {
        let dir = tempfile::tempdir().expect("a directory");
        let (first, second) = (dir.path().join("a.log"), dir.path().join("b.log"));
        let (subscriber, handle) = build(&to(&first)).expect("a log");
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("not yet");
            let json = LogSettings { level: LogLevel::Debug, format: LogFormat::Json, ..to(&second) };
            handle.set(&json).expect("the second file");
            tracing::debug!(level = "taken", count = 2, ok = true, "now");
            handle.set(&LogSettings { level: LogLevel::Fatal, ..to(&first) }).expect("the first file");
            tracing::warn!("too little");
            tracing::error!("enough");
        });
        assert_eq!(lines(&first), ["ERROR enough"]);
        let text = std::fs::read_to_string(&second).expect("the log");
        let mut line: Value = serde_json::from_str(text.trim_end()).expect("one JSON object on one line");
        let time = line.as_object_mut().and_then(|line| line.remove("time")).expect("a time");
        assert!(time.as_str().is_some_and(|time| time.ends_with('Z') && time.len() == 24), "{time}");
        let expected = serde_json::json!({
            "level": "debug", "message": "now", "level_": "taken", "count": 2, "ok": true,
            "target": module_path!(),
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn a_file_that_cannot_be_opened_changes_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        let (subscriber, handle) = build(&to(&path)).expect("a log");
        tracing::subscriber::with_default(subscriber, || {
            assert!(handle.set(&to(&path.join("below/a/file"))).is_err());
            tracing::info!("still here");
        });
        assert_eq!(lines(&path), ["INFO  still here"]);
    }

    #[test]
    fn a_rotated_file_is_left_alone_after_reopen() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, old) = (dir.path().join("a.log"), dir.path().join("a.log.1"));
        let (subscriber, handle) = build(&to(&path)).expect("a log");
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!("before");
            std::fs::rename(&path, &old).expect("a rename");
            handle.reopen().expect("the new file");
            tracing::info!("after");
        });
        assert_eq!((lines(&old), lines(&path)), (vec!["INFO  before".into()], vec!["INFO  after".into()]));
    }

    #[test]
    fn an_error_is_shown_with_its_causes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.log");
        let (subscriber, _handle) = build(&to(&path)).expect("a log");
        let error = io::Error::other("refused");
        tracing::subscriber::with_default(subscriber, || {
            tracing::error!(error = &error as &(dyn std::error::Error + 'static), "failed");
        });
        assert_eq!(lines(&path), ["ERROR failed error=refused"]);
    }
}
