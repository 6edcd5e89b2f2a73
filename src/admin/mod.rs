//! The admin listener: probes, metrics, API.
//!
//! Reads: an [`AdminView`]. Writes: answers. Never: changes anything; there is no request that does.

mod api;
mod model;
mod redact;
mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use http::{HeaderValue, Method, Response, StatusCode};

use crate::limit::redis::Health;
use crate::limit::{Counts, TopKey};
use crate::telemetry::metrics;

pub use crate::admin::model::{ApiItem, ApiModel, ItemState};
pub use crate::admin::redact::redact;
pub use crate::admin::serve::serve;

/// Whether the proxy should get traffic.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Readiness {
    /// Not yet: no valid configuration is running, or a listener is not bound.
    NotYet {
        /// What is missing.
        why: String,
    },
    /// A configuration is running and its listeners are bound.
    Ready,
    /// Shutting down.
    Draining,
}

/// Whether an endpoint takes requests, in Traefik's words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServerStatus {
    /// It does.
    Up,
    /// It does not.
    Down,
}

/// A server at this moment.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerState {
    /// Whether it takes requests.
    pub status: ServerStatus,
    /// What else is known of it, by the names of the API.
    pub details: serde_json::Map<String, serde_json::Value>,
}

impl From<ServerStatus> for ServerState {
    fn from(status: ServerStatus) -> Self {
        Self { status, details: serde_json::Map::new() }
    }
}

/// Service (`api@file`) to URL to state.
pub type ServerStatuses = BTreeMap<String, BTreeMap<String, ServerState>>;

/// What `/api/version` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VersionInfo {
    /// `0.1.0`
    pub version: String,
    /// When the process began.
    pub started: SystemTime,
}

/// What `/api/config` says: which document runs, and why a newer one does not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct ConfigStatus {
    /// Of the running document.
    pub generation: u64,
    /// Of the running document.
    pub hash: String,
    /// When it was accepted.
    pub accepted: Option<SystemTime>,
    /// The newest document, if it was refused.
    pub refused: Option<Refused>,
}

/// A rate limit's buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LimitStatus {
    /// Middleware, and router where each has its own.
    pub name: String,
    /// Since the buckets were first used.
    pub counts: Counts,
    /// The keys that are refused most.
    pub top: Vec<TopKey>,
    /// Where replicas share the limit: how many requests were decided by whom.
    pub shared: BTreeMap<&'static str, u64>,
}

/// A Redis that limits are shared through.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RedisStatus {
    /// Its endpoints, without user and password.
    pub name: String,
    /// What stands there: `single`, `cluster` or `sentinel`.
    pub topology: &'static str,
    /// Whether it answers, since when, and what was wrong last.
    pub health: Health,
}

/// A document that was not taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// When.
    pub at: SystemTime,
    /// Its problems, one a line, without secrets.
    pub problems: Vec<String>,
}

/// What Traefik calls `api` and `ping`, ready to use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct AdminOptions {
    /// Whether the admin listener answers under `/api`.
    pub api: bool,
    /// `api.basePath`: what stands before `/api`; `/` for nothing.
    pub base_path: String,
    /// `ping.terminatingStatusCode`.
    pub terminating_status: StatusCode,
    /// Whether the admin listener answers at `/metrics`.
    pub metrics: bool,
    /// Whether an access log is kept; the overview shows it.
    pub access_log: bool,
}

impl Default for AdminOptions {
    fn default() -> Self {
        Self {
            api: true,
            base_path: "/".to_owned(),
            terminating_status: StatusCode::SERVICE_UNAVAILABLE,
            metrics: true,
            access_log: false,
        }
    }
}

/// What the admin listener looks at; each call must be quick and never wait for the data plane.
pub trait AdminView: Send + Sync {
    /// Whether the proxy should get traffic.
    fn readiness(&self) -> Readiness;
    /// The page of metrics.
    fn metrics(&self) -> String;
    /// The running configuration.
    fn model(&self) -> Arc<ApiModel>;
    /// Which endpoints take requests.
    fn server_status(&self) -> ServerStatuses;
    /// What runs.
    fn version(&self) -> VersionInfo;
    /// Rate limits, with the keys that they refuse most.
    fn limits(&self) -> Vec<LimitStatus> {
        Vec::new()
    }
    /// Redis servers in use.
    fn redis(&self) -> Vec<RedisStatus> {
        Vec::new()
    }
    /// Which document runs.
    fn config(&self) -> ConfigStatus;
    /// What is switched on.
    fn options(&self) -> AdminOptions;
    /// Queues, learned limits, circuits and the guard of the process, as they are now.
    fn resilience(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    /// The certificates in use, without their keys.
    fn certificates(&self) -> Vec<serde_json::Value> {
        Vec::new()
    }
}

/// The services that the proxy itself is: `api@internal`, `ping@internal`, `prometheus@internal`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum InternalService {
    /// Everything under `/api`.
    Api,
    /// `OK`, on every path.
    Ping,
    /// The page of metrics, on every path.
    Prometheus,
}

/// Answers a request on the admin listener.
///
/// Reads only: there is no method that changes anything. Cost: `/metrics` and `/api` grow with the
/// configuration, so they belong off the data plane. HEAD gets the answer of GET: whoever sends it
/// leaves the content out and keeps its length (RFC 9110 §9.3.2).
pub fn answer(view: &dyn AdminView, method: &Method, path: &str, query: Option<&str>) -> Response<Bytes> {
    match path {
        // Traefik answers any method here.
        "/ping" => ping(view),
        _ if !is_read(method) => not_allowed(),
        "/livez" => text(StatusCode::OK, "ok\n"),
        "/readyz" => ready(view),
        "/metrics" if view.options().metrics => metrics_page(view),
        "/" => html(INDEX),
        _ => match under_api(view, path) {
            Some(rest) if view.options().api => api::answer(view, rest, query),
            Some(_) | None => message(StatusCode::NOT_FOUND, "not found"),
        },
    }
}

/// Answers a request that a router sent to one of the proxy's own services; HEAD as [`answer`] does.
pub fn answer_internal(
    view: &dyn AdminView,
    service: InternalService,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Response<Bytes> {
    match service {
        InternalService::Ping => ping(view),
        InternalService::Api | InternalService::Prometheus if !is_read(method) => not_allowed(),
        InternalService::Prometheus => metrics_page(view),
        InternalService::Api => match under_api(view, path) {
            Some(rest) => api::answer(view, rest, query),
            None => message(StatusCode::NOT_FOUND, "not found"),
        },
    }
}

/// What people see who come with a browser.
const INDEX: &str = "<!doctype html>
<html lang=\"en\">
<head><meta charset=\"utf-8\"><title>Sluicegate</title></head>
<body>
<h1>Sluicegate</h1>
<ul>
<li><a href=\"livez\">/livez</a>: the process runs</li>
<li><a href=\"readyz\">/readyz</a>: it should get traffic</li>
<li><a href=\"ping\">/ping</a>: as Traefik's</li>
<li><a href=\"metrics\">/metrics</a>: for Prometheus</li>
<li><a href=\"api/overview\">/api/overview</a>: how many of what</li>
<li><a href=\"api/config\">/api/config</a>: which configuration runs, and why a newer one does not</li>
<li><a href=\"api/rawdata\">/api/rawdata</a>: routers, services and middlewares at once</li>
<li><a href=\"api/entrypoints\">/api/entrypoints</a></li>
<li><a href=\"api/http/routers\">/api/http/routers</a></li>
<li><a href=\"api/http/services\">/api/http/services</a></li>
<li><a href=\"api/http/middlewares\">/api/http/middlewares</a></li>
<li><a href=\"api/version\">/api/version</a></li>
</ul>
</body>
</html>
";

fn is_read(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// What follows `/api` in the path, if it stands there whole and behind the base path.
fn under_api<'a>(view: &dyn AdminView, path: &'a str) -> Option<&'a str> {
    let base = view.options().base_path;
    let rest = path.strip_prefix(base.trim_end_matches('/'))?.strip_prefix("/api")?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

fn ping(view: &dyn AdminView) -> Response<Bytes> {
    match view.readiness() {
        Readiness::Draining => {
            let status = view.options().terminating_status;
            text(status, status.canonical_reason().unwrap_or_default())
        }
        Readiness::NotYet { .. } | Readiness::Ready => text(StatusCode::OK, "OK"),
    }
}

fn ready(view: &dyn AdminView) -> Response<Bytes> {
    match view.readiness() {
        Readiness::Ready => text(StatusCode::OK, "ready\n"),
        Readiness::Draining => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
        Readiness::NotYet { why } => text(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

fn metrics_page(view: &dyn AdminView) -> Response<Bytes> {
    response(StatusCode::OK, metrics::CONTENT_TYPE, view.metrics())
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    response(status, "text/plain; charset=utf-8", body)
}

fn html(body: &'static str) -> Response<Bytes> {
    response(StatusCode::OK, "text/html; charset=utf-8", body)
}

fn json_response(status: StatusCode, body: &(impl serde::Serialize + ?Sized)) -> Response<Bytes> {
    match serde_json::to_vec(body) {
        Ok(body) => response(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Traefik's shape of a mistake.
fn message(status: StatusCode, message: &str) -> Response<Bytes> {
    json_response(status, &serde_json::json!({ "message": message }))
}

fn not_allowed() -> Response<Bytes> {
    let mut response = message(StatusCode::METHOD_NOT_ALLOWED, "method not allowed");
    // RFC 9110 §15.5.6 wants it.
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    // Every answer is of this moment.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
