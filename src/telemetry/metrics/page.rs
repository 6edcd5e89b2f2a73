//! The text exposition format of Prometheus, version 0.0.4.

use std::fmt::Write as _;

use crate::telemetry::metrics::declared::{Kind, Metric};

/// What `Content-Type` says of the page.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page being written, one family after the other.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// The labels of one sample.
pub(super) type Labels<'a> = [(&'a str, &'a str)];

impl Page {
    /// Opens a family; its samples follow at once.
    pub(super) fn family(&mut self, metric: &Metric) {
        self.0.push_str("# HELP ");
        self.0.push_str(metric.name);
        self.0.push(' ');
        escape(&mut self.0, metric.help, Quotes::Bare);
        self.0.push_str("\n# TYPE ");
        self.0.push_str(metric.name);
        self.0.push(' ');
        self.0.push_str(metric.kind.as_str());
        self.0.push('\n');
    }

    /// Writes one sample of the open family.
    pub(super) fn sample(&mut self, metric: &Metric, labels: &Labels<'_>, value: impl Into<Value>) {
        debug_assert!(metric.kind != Kind::Histogram, "a histogram has buckets");
        self.line(metric.name, "", labels, None, value.into());
    }

    /// Writes the buckets, the sum and the count of the open family. `buckets` are not cumulative and
    /// one more than `bounds`, which are in nanoseconds.
    pub(super) fn histogram(
        &mut self,
        metric: &Metric,
        labels: &Labels<'_>,
        bounds: &[u64],
        buckets: &[u64],
        nanos: u128,
    ) {
        let mut below = 0_u64;
        for (position, count) in buckets.iter().enumerate() {
            below = below.wrapping_add(*count);
            let le = bounds
                .get(position)
                .map_or("+Inf".to_owned(), |nanos| seconds(u128::from(*nanos)).to_string());
            self.line(metric.name, "_bucket", labels, Some(&le), Value::Whole(below));
        }
        self.line(metric.name, "_sum", labels, None, Value::Float(seconds(nanos)));
        self.line(metric.name, "_count", labels, None, Value::Whole(below));
    }

    /// The whole text.
    pub(super) fn finish(self) -> String {
        self.0
    }

    fn line(&mut self, name: &str, suffix: &str, labels: &Labels<'_>, le: Option<&str>, value: Value) {
        self.0.push_str(name);
        self.0.push_str(suffix);
        let mut separator = '{';
        for (label, text) in labels.iter().copied().chain(le.map(|le| ("le", le))) {
            self.0.push(separator);
            self.0.push_str(label);
            self.0.push_str("=\"");
            escape(&mut self.0, text, Quotes::Escaped);
            self.0.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.0.push('}');
        }
        self.0.push(' ');
        match value {
            Value::Whole(value) => write!(self.0, "{value}"),
            Value::Float(value) if value == f64::INFINITY => write!(self.0, "+Inf"),
            Value::Float(value) if value == f64::NEG_INFINITY => write!(self.0, "-Inf"),
            Value::Float(value) => write!(self.0, "{value}"),
        }
        .expect("a String takes every text");
        self.0.push('\n');
    }
}

/// A figure; whole ones keep all their digits.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Whole(u64),
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Quotes {
    Bare,
    Escaped,
}

fn escape(out: &mut String, text: &str, quotes: Quotes) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes == Quotes::Escaped => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

fn seconds(nanos: u128) -> f64 {
    nanos as f64 / 1e9
}
