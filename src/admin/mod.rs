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
use http::{Method, Response, StatusCode};

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

/// Service (`api@file`) to URL to status.
pub type ServerStatuses = BTreeMap<String, BTreeMap<String, ServerStatus>>;

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
    /// Which document runs.
    fn config(&self) -> ConfigStatus;
    /// What is switched on.
    fn options(&self) -> AdminOptions;
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
pub fn answer(view: &dyn AdminView, method: &Method, path: &str, query: Option<&str>) -> Response<Bytes> {
    let _ = (view, method, path, query);
    Response::new(Bytes::new())
}

/// Answers a request that a router sent to one of the proxy's own services.
pub fn answer_internal(
    view: &dyn AdminView,
    service: InternalService,
    method: &Method,
    path: &str,
    query: Option<&str>,
) -> Response<Bytes> {
    let _ = (view, service, method, path, query);
    Response::new(Bytes::new())
}
