//! What the running process says of itself: to probes, to Prometheus, to the API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use http::StatusCode;
use parking_lot::Mutex;
use serde_json::json;

use crate::admin::{
    AdminOptions, AdminView, ApiItem, ApiModel, ConfigStatus, ItemState, Readiness, Refused, ServerStatus,
    ServerStatuses, VersionInfo,
};
use crate::common::clock;
use crate::common::problem::{ConfigPath, Problems, Severity};
use crate::config::document::DocumentConfig;
use crate::config::render;
use crate::endpoint::health;
use crate::endpoint::lobby::QueueCounts;
use crate::middleware::{BreakerReport, BreakerState};
use crate::proxy::core::Shared;
use crate::snapshot::{ServiceKind, entries};
use crate::telemetry::metrics::{EndpointState, Metric, Metrics, Sample, declared};

/// The state that operators see.
pub struct Status {
    metrics: Arc<Metrics>,
    shared: Mutex<Option<Arc<Shared>>>,
    readiness: Mutex<Readiness>,
    model: Mutex<Arc<ApiModel>>,
    config: Mutex<ConfigStatus>,
    options: Mutex<AdminOptions>,
    started: SystemTime,
}

impl Status {
    /// Nothing is loaded yet.
    pub fn new(metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            metrics,
            shared: Mutex::new(None),
            readiness: Mutex::new(Readiness::NotYet { why: "no configuration is loaded".to_owned() }),
            model: Mutex::default(),
            config: Mutex::default(),
            options: Mutex::default(),
            started: SystemTime::now(),
        })
    }

    /// Cores run: endpoints can be asked for.
    pub fn attach(&self, shared: &Arc<Shared>) {
        *self.shared.lock() = Some(Arc::clone(shared));
        let shared = Arc::clone(shared);
        self.queue_figures(&shared);
        self.circuit_figures(&shared);
        self.adaptive_limits(&shared);
        self.guard_figures(&shared);
        self.metrics.endpoints_from(move || endpoint_states(&shared));
    }

    fn guard_figures(&self, shared: &Arc<Shared>) {
        let guard = Arc::clone(&shared.guard);
        self.metrics.samples_from(declared::OVERLOAD_LEVEL, move || {
            vec![Sample { labels: Vec::new(), value: guard.counts().level.into() }]
        });
        let guard = Arc::clone(&shared.guard);
        self.metrics.samples_from(declared::OVERLOAD_REFUSED, move || {
            let counts = guard.counts();
            let refused = [
                ("request", counts.requests),
                ("connection_told", counts.told),
                ("connection", counts.closed),
            ];
            let sample = |(what, count): (&str, u64)| Sample {
                labels: vec![("what", what.to_owned())],
                value: count as f64,
            };
            refused.map(sample).into()
        });
    }

    fn adaptive_limits(&self, shared: &Arc<Shared>) {
        let shared = Arc::clone(shared);
        self.metrics.samples_from(declared::ADAPTIVE_LIMIT, move || {
            let snapshot = shared.snapshot.load();
            let limits = snapshot.services.iter().filter_map(|(name, service)| match &service.kind {
                ServiceKind::Balanced(balanced) => balanced.adaptive.as_ref().map(|adaptive| Sample {
                    labels: vec![("service", name.to_string())],
                    value: adaptive.limit().into(),
                }),
                ServiceKind::Weighted(_) | ServiceKind::Internal(_) => None,
            });
            limits.collect()
        });
    }

    fn circuit_figures(&self, shared: &Arc<Shared>) {
        type Figure = fn(&BreakerReport) -> f64;
        let figures: [(Metric, Figure); 3] = [
            (declared::CIRCUIT_STATE, |report| f64::from(report.phase as u8)),
            (declared::CIRCUIT_OPENED, |report| report.opened as f64),
            (declared::CIRCUIT_REFUSED, |report| report.refused as f64),
        ];
        for (metric, figure) in figures {
            let shared = Arc::clone(shared);
            self.metrics.samples_from(metric, move || {
                let snapshot = shared.snapshot.load();
                let reports = snapshot.stores.kept::<BreakerState>().map(|state| state.report());
                let samples = reports.map(|report| Sample {
                    labels: vec![
                        ("middleware", report.middleware.to_string()),
                        ("router", report.router.to_string()),
                    ],
                    value: figure(&report),
                });
                samples.collect()
            });
        }
    }

    fn queue_figures(&self, shared: &Arc<Shared>) {
        type Figure = fn(&QueueCounts) -> f64;
        let single: [(Metric, Figure); 5] = [
            (declared::QUEUE_WAITING, |counts| counts.waiting.into()),
            (declared::QUEUE_UNDER_WAY, |counts| counts.requests.into()),
            (declared::QUEUE_CONNECTIONS, |counts| counts.connections.into()),
            (declared::QUEUE_WAITED, |counts| counts.waited as f64),
            (declared::QUEUE_WAIT_SECONDS, |counts| counts.waited_millis as f64 / 1000.0),
        ];
        for (metric, figure) in single {
            let shared = Arc::clone(shared);
            self.metrics.samples_from(metric, move || {
                let sample = |(service, counts): (String, QueueCounts)| Sample {
                    labels: vec![("service", service)],
                    value: figure(&counts),
                };
                queues(&shared).into_iter().map(sample).collect()
            });
        }
        let shared = Arc::clone(shared);
        self.metrics.samples_from(declared::QUEUE_REFUSED, move || {
            let samples = |(service, counts): (String, QueueCounts)| {
                [("full", counts.full), ("timeout", counts.timed_out), ("displaced", counts.displaced)].map(
                    |(reason, count)| Sample {
                        labels: vec![("service", service.clone()), ("reason", reason.to_owned())],
                        value: count as f64,
                    },
                )
            };
            queues(&shared).into_iter().flat_map(samples).collect()
        });
    }

    /// A document was accepted and its listeners are bound. `problems` are those of items that were left out, and
    /// warnings.
    pub fn accepted(&self, config: &DocumentConfig, problems: &Problems, generation: u64, hash: &str) {
        *self.model.lock() = Arc::new(model(config, problems));
        *self.options.lock() = options(config);
        let mut status = self.config.lock();
        *status = ConfigStatus {
            generation,
            hash: hash.to_owned(),
            accepted: Some(SystemTime::now()),
            refused: None,
        };
        let mut readiness = self.readiness.lock();
        if *readiness != Readiness::Draining {
            *readiness = Readiness::Ready;
        }
    }

    /// A document, or a file of it, was refused; what runs goes on.
    pub fn refused(&self, problems: &Problems) {
        let problems = problems.iter().filter(|problem| problem.severity == Severity::Error);
        let problems = problems.map(render::line).collect();
        self.config.lock().refused = Some(Refused { at: SystemTime::now(), problems });
    }

    /// The process is on its way out.
    pub fn drain(&self) {
        *self.readiness.lock() = Readiness::Draining;
    }
}

impl AdminView for Status {
    fn readiness(&self) -> Readiness {
        self.readiness.lock().clone()
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }

    fn model(&self) -> Arc<ApiModel> {
        Arc::clone(&self.model.lock())
    }

    fn server_status(&self) -> ServerStatuses {
        let shared = self.shared.lock().clone();
        let mut statuses = ServerStatuses::new();
        for state in shared.iter().flat_map(|shared| endpoint_states(shared)) {
            let status = if state.up { ServerStatus::Up } else { ServerStatus::Down };
            statuses.entry(qualified(state.service.as_str())).or_default().insert(state.url, status);
        }
        statuses
    }

    fn version(&self) -> VersionInfo {
        VersionInfo { version: env!("CARGO_PKG_VERSION").to_owned(), started: self.started }
    }

    fn config(&self) -> ConfigStatus {
        self.config.lock().clone()
    }

    fn options(&self) -> AdminOptions {
        self.options.lock().clone()
    }

    fn resilience(&self) -> serde_json::Value {
        let shared = self.shared.lock().clone();
        shared.map_or(serde_json::Value::Null, |shared| resilience(&shared))
    }
}

fn endpoint_states(shared: &Shared) -> Vec<EndpointState> {
    let snapshot = shared.snapshot.load();
    let mut states = Vec::new();
    for (name, service) in &snapshot.services {
        if let ServiceKind::Balanced(balanced) = &service.kind {
            for member in balanced.endpoints.load().members() {
                states.push(EndpointState {
                    service: name.clone(),
                    url: member.endpoint.url().as_str().to_owned(),
                    up: member.health.status() == health::Status::Up,
                });
            }
        }
    }
    states
}

/// What `/api/resilience` shows.
fn resilience(shared: &Shared) -> serde_json::Value {
    let snapshot = shared.snapshot.load();
    let mut services = serde_json::Map::new();
    for (name, service) in &snapshot.services {
        let ServiceKind::Balanced(balanced) = &service.kind else { continue };
        let mut shown = serde_json::Map::new();
        shown.insert("retriesLeft".to_owned(), json!(balanced.budget.left(clock::now())));
        if let Some(adaptive) = &balanced.adaptive {
            shown.insert("adaptiveLimit".to_owned(), json!(adaptive.limit()));
        }
        if let Some(lobby) = &balanced.lobby {
            let counts = lobby.counts();
            shown.insert("waiting".to_owned(), json!(counts.waiting));
            shown.insert("requests".to_owned(), json!(counts.requests));
            shown.insert("connections".to_owned(), json!(counts.connections));
            let refused = counts.full + counts.timed_out + counts.displaced;
            shown.insert("refused".to_owned(), json!(refused));
        }
        services.insert(qualified(name.as_str()), shown.into());
    }
    let now = clock::now();
    let circuit = |state: Arc<BreakerState>| {
        let report = state.report();
        json!({
            "middleware": qualified(report.middleware.as_str()),
            "router": qualified(report.router.as_str()),
            "state": report.phase.as_str(),
            "forSeconds": now.saturating_sub(report.since) / 1000,
            "opened": report.opened,
            "refused": report.refused,
        })
    };
    let circuits: Vec<_> = snapshot.stores.kept::<BreakerState>().map(circuit).collect();
    let (limits, counts) = (shared.guard.limits(), shared.guard.counts());
    json!({
        "services": services,
        "circuits": circuits,
        "overload": {
            "level": counts.level,
            "connections": counts.open,
            "maxConnections": limits.connections,
            "maxMemory": limits.memory,
            "refusedRequests": counts.requests,
            "refusedConnections": counts.told + counts.closed,
        },
    })
}

/// What the queues of services with limits have done.
fn queues(shared: &Shared) -> Vec<(String, QueueCounts)> {
    let snapshot = shared.snapshot.load();
    let queues = snapshot.services.iter().filter_map(|(name, service)| match &service.kind {
        ServiceKind::Balanced(balanced) => {
            balanced.lobby.as_ref().map(|lobby| (name.to_string(), lobby.counts()))
        }
        ServiceKind::Weighted(_) | ServiceKind::Internal(_) => None,
    });
    queues.collect()
}

fn options(config: &DocumentConfig) -> AdminOptions {
    let terminating = config.ping.as_ref().map_or(503, |ping| ping.terminating_status_code);
    AdminOptions {
        api: true,
        base_path: config.api.as_ref().map_or_else(|| "/".to_owned(), |api| api.base_path.clone()),
        terminating_status: StatusCode::from_u16(terminating).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        metrics: true,
        access_log: config.access_log.is_some(),
    }
}

/// The name as Traefik's API has it.
fn qualified(name: &str) -> String {
    if name.contains('@') { name.to_owned() } else { format!("{name}@file") }
}

fn model(config: &DocumentConfig, problems: &Problems) -> ApiModel {
    let http = ConfigPath::of(&["http"]);
    let entry_points = entries::entry_points(config);
    let defaults: Vec<String> =
        entries::default_entry_points(&entry_points).into_iter().map(ToString::to_string).collect();
    let mut used_services: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut used_middlewares: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut routers = BTreeMap::new();
    for (name, router) in &config.http.routers {
        let full = qualified(name.as_str());
        used_services.entry(qualified(&router.service)).or_default().push(full.clone());
        for middleware in &router.middlewares {
            used_middlewares.entry(qualified(middleware)).or_default().push(full.clone());
        }
        let mut value = serde_json::to_value(router).unwrap_or_default();
        let priority = match router.priority {
            0 => i64::try_from(router.rule.len()).unwrap_or(i64::MAX),
            written => written,
        };
        value["priority"] = json!(priority);
        value["priorityStr"] = json!(priority.to_string());
        let middlewares: Vec<_> = router.middlewares.iter().map(|name| qualified(name)).collect();
        value["middlewares"] = json!(middlewares);
        if router.entry_points.is_empty() {
            value["entryPoints"] = json!(defaults);
        }
        let using = if router.entry_points.is_empty() { &defaults } else { &router.entry_points };
        let mut using = using.clone();
        using.sort();
        let item = item(value, &http.key("routers").key(name.as_str()), problems).used(using);
        routers.insert(full, item);
    }
    let services = config.http.services.iter().map(|(name, service)| {
        let full = qualified(name.as_str());
        let value = serde_json::to_value(service).unwrap_or_default();
        let used = used_services.remove(&full).unwrap_or_default();
        (full, item(value, &http.key("services").key(name.as_str()), problems).used(used))
    });
    let services = services.collect();
    let middlewares = config.http.middlewares.iter().map(|(name, middleware)| {
        let full = qualified(name.as_str());
        let value = serde_json::to_value(middleware).unwrap_or_default();
        let used = used_middlewares.remove(&full).unwrap_or_default();
        (full, item(value, &http.key("middlewares").key(name.as_str()), problems).used(used))
    });
    let middlewares = middlewares.collect();
    let entry_points = entry_points.iter().map(|(name, entry)| {
        let value = serde_json::to_value(entry).unwrap_or_default();
        let at = ConfigPath::of(&["entryPoints"]).key(name.as_str());
        (name.to_string(), item(value, &at, problems))
    });
    ApiModel { entry_points: entry_points.collect(), routers, services, middlewares }
}

fn item(value: serde_json::Value, at: &ConfigPath, problems: &Problems) -> ApiItem {
    let mut state = ItemState::Enabled;
    let mut errors = Vec::new();
    for problem in problems.iter().filter(|problem| problem.path.starts_with(at)) {
        match problem.severity {
            Severity::Error => state = ItemState::Disabled,
            Severity::Warning if state == ItemState::Enabled => state = ItemState::Warning,
            Severity::Warning => {}
        }
        errors.push(problem.message.clone());
    }
    // As Traefik has it, what was not written is not there.
    ApiItem::new(strip_nulls(value)).state(state, errors)
}

fn strip_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => map
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, strip_nulls(value)))
            .collect(),
        other => other,
    }
}
