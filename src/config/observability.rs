//! `log`, `accessLog` and `metrics` as written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::units::HumanDuration;

/// How much a trace tells.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TraceVerbosity {
    /// One span a request and one an attempt.
    #[default]
    Minimal,
    /// A span a middleware, too.
    Detailed,
}

/// The log of the proxy itself (requests are in the access log alone).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogConfig {
    /// `TRACE`, `DEBUG`, `INFO`, `WARN`, `ERROR`, `FATAL` or `PANIC`; the last two mean `ERROR` here.
    /// Default `INFO` (Traefik: `ERROR`).
    pub level: LogLevel,
    /// `common` or `json`. Default `common`.
    pub format: LogFormat,
    /// File to append to. Default: standard error, so that it stays apart from the access log.
    pub file_path: Option<String>,
    /// Leaves colours out even on a terminal. Default false.
    pub no_color: bool,
}

/// The least important level that is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum LogLevel {
    /// Everything.
    Trace,
    /// What helps to find a fault.
    Debug,
    /// What an operator did or must know.
    #[default]
    Info,
    /// What may need a look.
    Warn,
    /// What failed.
    Error,
    /// As `ERROR`.
    Fatal,
    /// As `ERROR`.
    Panic,
}

/// How lines of the log are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// Text.
    #[default]
    Common,
    /// One JSON object a line.
    Json,
}

/// The log of requests; absent means off, `{}` turns it on.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogConfig {
    /// File to append to. Default: standard output.
    pub file_path: Option<String>,
    /// `common`, `json` or `genericCLF`. Default `common`.
    pub format: AccessLogFormat,
    /// Lines that may wait to be written; more are dropped and counted. Default 0: 8192.
    pub buffering_size: u32,
    /// Logs requests to the proxy's own services, too. Default false.
    pub add_internals: bool,
    /// Which requests are logged: those that meet any of the filters that are set. Default all.
    pub filters: AccessLogFilters,
    /// Which fields a JSON line has.
    pub fields: AccessLogFields,
}

/// How lines of the access log are written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AccessLogFormat {
    /// The common log format with what Traefik appends.
    #[default]
    Common,
    /// One JSON object a line.
    Json,
    /// The combined log format without more.
    #[serde(rename = "genericCLF")]
    GenericClf,
}

/// Which requests are logged.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogFilters {
    /// Those with one of these statuses: `"404"` or `"500-599"`. Default none.
    pub status_codes: Vec<String>,
    /// Those that took more than one attempt. Default false.
    pub retry_attempts: bool,
    /// Those that took at least this long. Default 0: no such filter.
    pub min_duration: HumanDuration,
}

/// Which fields a JSON line has.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogFields {
    /// What happens to fields that `names` does not list: `keep` or `drop`. Default `keep`.
    pub default_mode: FieldMode,
    /// What happens to single fields: `keep` or `drop`. Default none.
    pub names: BTreeMap<String, FieldMode>,
    /// Which header fields are logged.
    pub headers: AccessLogHeaders,
    /// What happens to the query in `RequestPath`.
    pub query_parameters: AccessLogQuery,
}

/// What happens to a field of the access log.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum FieldMode {
    /// It is written.
    #[default]
    Keep,
    /// It is left out.
    Drop,
}

/// Which header fields are logged.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogHeaders {
    /// What happens to fields that `names` does not list: `keep`, `drop` or `redact`. Default `drop`.
    pub default_mode: HeaderMode,
    /// What happens to single fields: `keep`, `drop` or `redact`. Default none.
    pub names: BTreeMap<String, HeaderMode>,
}

/// What happens to a header field in the access log.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum HeaderMode {
    /// It is written.
    Keep,
    /// It is left out.
    #[default]
    Drop,
    /// `REDACTED` is written instead of its value.
    Redact,
}

/// What happens to the query in `RequestPath`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogQuery {
    /// `keep` or `drop`. Default `keep`.
    pub default_mode: FieldMode,
}

/// Who may read the metrics, and how.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MetricsConfig {
    /// Counts requests to the proxy's own services, too. Default false.
    pub add_internals: bool,
    /// Metrics to be fetched by Prometheus. The admin listener has them in any case.
    pub prometheus: Option<PrometheusConfig>,
}

/// Metrics to be fetched by Prometheus.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PrometheusConfig {
    /// Counts by entry point. Default true.
    pub add_entry_points_labels: bool,
    /// Counts by router. Default false.
    pub add_routers_labels: bool,
    /// Counts by service. Default true.
    pub add_services_labels: bool,
    /// Upper bounds of the buckets of durations, in seconds, ascending. Default 0.1, 0.3, 1.2, 5.
    pub buckets: Vec<f64>,
    /// Entry point that `/metrics` is at, beside the admin listener. Default `traefik`, which is made at `:8080` unless
    /// it is configured.
    pub entry_point: String,
    /// Makes no route; a router names the service `prometheus@internal` instead. Default false.
    pub manual_routing: bool,
}

impl Default for PrometheusConfig {
    fn default() -> Self {
        Self {
            add_entry_points_labels: true,
            add_routers_labels: false,
            add_services_labels: true,
            buckets: vec![0.1, 0.3, 1.2, 5.0],
            entry_point: "traefik".to_owned(),
            manual_routing: false,
        }
    }
}
