//! What the running process says of itself: to probes, to Prometheus, to the API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::StatusCode;
use parking_lot::Mutex;
use serde_json::json;

use crate::admin::{
    AdminOptions, AdminView, ApiItem, ApiModel, ConfigStatus, ItemState, LimitStatus, Readiness, RedisStatus,
    Refused, ServerState, ServerStatus, ServerStatuses, VersionInfo,
};
use crate::common::clock;
use crate::common::names::ServiceName;
use crate::common::problem::{ConfigPath, Problems, Severity};
use crate::config::document::DocumentConfig;
use crate::config::load::Document;
use crate::config::render;
use crate::discovery::dns::LookUps;
use crate::endpoint::lobby::QueueCounts;
use crate::endpoint::outlier::Passive;
use crate::endpoint::set::{EndpointSet, Member, Tier, WARM};
use crate::health::outlier::Ejections;
use crate::http::pace::PaceCounts;
use crate::limit::redis::Backend;
use crate::limit::{Counts, Store};
use crate::middleware::{BandwidthCounts, BreakerReport, BreakerState};
use crate::proxy::core::Shared;
use crate::snapshot::{ServiceKind, entries};
use crate::telemetry::metrics::{EndpointState, Metric, Metrics, Sample, declared};
use crate::telemetry::time::Utc;

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
    pub fn attach(&self, shared: &Arc<Shared>, ejections: Arc<Ejections>, look_ups: Arc<LookUps>) {
        *self.shared.lock() = Some(Arc::clone(shared));
        self.queue_figures(shared);
        self.circuit_figures(shared);
        self.adaptive_limits(shared);
        self.guard_figures(shared);
        let [ours, traefiks, stale] = std::array::from_fn(|_| Arc::clone(shared));
        self.metrics.samples_from(declared::TLS_CERTS_NOT_AFTER, move || expiries(&ours));
        self.metrics.samples_from(declared::TRAEFIK_TLS_CERTS, move || expiries(&traefiks));
        self.metrics.samples_from(declared::TLS_CERTS_STALE, move || {
            let count = stale.snapshot.load().tls.stale();
            vec![Sample { labels: Vec::new(), value: count as f64 }]
        });
        let of_states = Arc::clone(shared);
        self.metrics.endpoints_from(move || endpoint_states(&of_states));
        self.metrics.samples_from(declared::ENDPOINT_EJECTIONS, move || {
            let sample = |(service, reason, count): (ServiceName, &str, u64)| Sample {
                labels: vec![("service", service.to_string()), ("reason", reason.to_owned())],
                value: count as f64,
            };
            ejections.all().into_iter().map(sample).collect()
        });
        self.metrics.samples_from(declared::DNS_LOOKUPS, move || {
            let sample = |(service, outcome, count): (ServiceName, &str, u64)| Sample {
                labels: vec![("service", service.to_string()), ("outcome", outcome.to_owned())],
                value: count as f64,
            };
            look_ups.all().into_iter().map(sample).collect()
        });
        let of_sets = Arc::clone(shared);
        self.metrics.samples_from(declared::ENDPOINTS_EJECTED, move || {
            of_each_set(&of_sets, |set| {
                set.members().iter().filter(|member| member.passive == Passive::Ejected).count()
            })
        });
        let of_sets = Arc::clone(shared);
        self.metrics
            .samples_from(declared::SERVICE_PANIC, move || of_each_set(&of_sets, |set| set.panics().into()));
        self.count_limits();
        self.count_bandwidth(shared);
        self.count_redis();
    }

    fn count_redis(&self) {
        let Some(shared) = self.shared.lock().clone() else { return };
        let figures: [(Metric, ReadFigures); 5] = [
            (declared::REDIS_UP, |redis| vec![("", f64::from(u8::from(redis.is_up())))]),
            (declared::REDIS_OUTAGES, |redis| vec![("", count(&redis.figures().outages))]),
            (declared::REDIS_CALLS, |redis| {
                let figures = redis.figures();
                vec![
                    ("answered", count(&figures.calls)),
                    ("late", count(&figures.late)),
                    ("failed", count(&figures.failed)),
                ]
            }),
            (declared::REDIS_QUESTIONS, |redis| vec![("", count(&redis.figures().questions))]),
            (declared::REDIS_SECONDS, |redis| vec![("", count(&redis.figures().nanos) / 1e9)]),
        ];
        for (metric, figure) in figures {
            let shared = Arc::clone(&shared);
            self.metrics.samples_from(metric, move || {
                let snapshot = shared.snapshot.load();
                let mut sums = BTreeMap::new();
                for redis in snapshot.stores.redis.backends() {
                    for (outcome, value) in figure(redis) {
                        // Two with other users or timeouts are one to whoever looks: both must be up.
                        let up = metric == declared::REDIS_UP;
                        let add = |sum: &mut f64| *sum = if up { sum.min(value) } else { *sum + value };
                        sums.entry((redis.label().to_owned(), outcome)).and_modify(add).or_insert(value);
                    }
                }
                samples("redis", "outcome", sums)
            });
        }
        self.metrics.samples_from(declared::LIMIT_SHARED, {
            let shared = Arc::clone(&shared);
            move || {
                let snapshot = shared.snapshot.load();
                let mut sums = BTreeMap::new();
                for (limit, views) in snapshot.stores.redis.all_views() {
                    for (by, value) in views.tally.by() {
                        *sums.entry((limit.to_owned(), by)).or_insert(0.0) += value as f64;
                    }
                }
                samples("limit", "by", sums)
            }
        });
        self.metrics.samples_from(declared::LIMIT_VIEWS, move || {
            let snapshot = shared.snapshot.load();
            let mut sums = BTreeMap::new();
            for (limit, views) in snapshot.stores.redis.all_views() {
                *sums.entry((limit.to_owned(), "")).or_insert(0.0) += views.keys() as f64;
            }
            samples("limit", "", sums)
        });
    }

    fn count_limits(&self) {
        let figures: [(Metric, ReadCount); 3] = [
            (declared::LIMIT_BUCKETS, |counts| counts.buckets),
            (declared::LIMIT_BYTES, |counts| counts.bytes),
            (declared::LIMIT_EVICTED, |counts| counts.evicted),
        ];
        for (metric, figure) in figures {
            let Some(shared) = self.shared.lock().clone() else { return };
            self.metrics.samples_from(metric, move || {
                let snapshot = shared.snapshot.load();
                let sample = |(name, store): (&str, &Arc<Store>)| Sample {
                    labels: vec![("limit", name.to_owned())],
                    value: figure(&store.counts()) as f64,
                };
                snapshot.stores.rates().map(sample).collect()
            });
        }
    }

    fn count_bandwidth(&self, shared: &Arc<Shared>) {
        for metric in [declared::BANDWIDTH_SLOWED, declared::BANDWIDTH_WAITED] {
            let figure = move |counts: &PaceCounts| match metric == declared::BANDWIDTH_SLOWED {
                true => count(&counts.slowed),
                false => count(&counts.waited) / 1e3,
            };
            let shared = Arc::clone(shared);
            self.metrics.samples_from(metric, move || {
                let snapshot = shared.snapshot.load();
                let sample = |of: Arc<BandwidthCounts>| Sample {
                    labels: vec![("middleware", of.name.to_string()), ("direction", of.direction.to_owned())],
                    value: figure(&of.counts),
                };
                snapshot.stores.kept().map(sample).collect()
            });
        }
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
            let limits = snapshot.services.iter().filter_map(|(name, service)| {
                let ServiceKind::Balanced(balanced) = &service.kind else { return None };
                balanced.adaptive.as_ref().map(|adaptive| Sample {
                    labels: vec![("service", name.to_string())],
                    value: adaptive.limit().into(),
                })
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
    pub fn accepted(&self, document: &Document, problems: &Problems, generation: u64, hash: &str) {
        let config = &document.config;
        *self.model.lock() = Arc::new(model(config, problems, &document.secrets()));
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

    /// What was refused is mended, and what runs is the newest.
    pub fn none_refused(&self) {
        self.config.lock().refused = None;
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
        let Some(shared) = shared else { return statuses };
        let snapshot = shared.snapshot.load();
        for (name, service) in snapshot.services.iter() {
            let ServiceKind::Balanced(balanced) = &service.kind else { continue };
            let states = statuses.entry(qualified(name.as_str())).or_default();
            for member in balanced.endpoints.load().members() {
                let status = if member.is_well() { ServerStatus::Up } else { ServerStatus::Down };
                let state = ServerState { status, details: details(member) };
                states.insert(member.endpoint.url().as_str().to_owned(), state);
            }
        }
        statuses
    }

    fn limits(&self) -> Vec<LimitStatus> {
        let Some(shared) = self.shared.lock().clone() else { return Vec::new() };
        let snapshot = shared.snapshot.load();
        let status = |(name, store): (&str, &Arc<Store>)| {
            let mut shared = BTreeMap::new();
            // A limit with several plans has several views.
            for (_, views) in snapshot.stores.redis.all_views().filter(|(limit, _)| *limit == name) {
                for (by, decided) in views.tally.by() {
                    *shared.entry(by).or_insert(0) += decided;
                }
            }
            LimitStatus { name: name.to_owned(), counts: store.counts(), top: store.top(), shared }
        };
        snapshot.stores.rates().map(status).collect()
    }

    fn redis(&self) -> Vec<RedisStatus> {
        let Some(shared) = self.shared.lock().clone() else { return Vec::new() };
        let snapshot = shared.snapshot.load();
        let status = |redis: &Arc<Backend>| RedisStatus {
            name: redis.label().to_owned(),
            topology: redis.settings().topology.as_str(),
            health: redis.health(),
        };
        snapshot.stores.redis.backends().iter().map(status).collect()
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

    fn certificates(&self) -> Vec<serde_json::Value> {
        let Some(shared) = self.shared.lock().clone() else { return Vec::new() };
        let snapshot = shared.snapshot.load();
        let time = |seconds: i64| {
            let since = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
            Utc::of(SystemTime::UNIX_EPOCH + since).rfc3339()
        };
        let states = snapshot.tls.certificates.iter().chain(&snapshot.tls.stale_authorities);
        let shown = states.map(|state| {
            let facts = &state.facts;
            let name = facts.names.first().unwrap_or(&facts.common_name);
            let mut shown = json!({
                "name": name,
                "commonName": facts.common_name,
                "sans": facts.names,
                "serialNumber": facts.serial,
                "notBefore": time(facts.not_before),
                "notAfter": time(facts.not_after),
                "status": if state.stale.is_some() { "warning" } else { "enabled" },
            });
            if let Some(why) = &state.stale {
                shown["error"] = json!([why]);
            }
            shown
        });
        shown.collect()
    }
}

/// When each certificate in use expires, by what Traefik calls it.
fn expiries(shared: &Shared) -> Vec<Sample> {
    let snapshot = shared.snapshot.load();
    let mut seen = std::collections::BTreeSet::new();
    let states = snapshot.tls.certificates.iter().map(|state| &state.facts);
    states
        .filter(|facts| seen.insert((facts.serial.clone(), facts.names.join(","))))
        .map(|facts| Sample {
            labels: vec![
                ("cn", facts.common_name.clone()),
                ("serial", facts.serial.clone()),
                ("sans", facts.names.join(",")),
            ],
            value: facts.not_after as f64,
        })
        .collect()
}

/// Reads the values of a metric by outcome; an empty outcome is no label.
type ReadFigures = fn(&Backend) -> Vec<(&'static str, f64)>;

/// Reads one figure of a store of buckets.
type ReadCount = fn(&Counts) -> u64;

fn count(figure: &AtomicU64) -> f64 {
    figure.load(Ordering::Relaxed) as f64
}

fn samples(
    first: &'static str,
    second: &'static str,
    sums: BTreeMap<(String, &'static str), f64>,
) -> Vec<Sample> {
    let sample = |((name, word), value): ((String, &str), f64)| {
        let mut labels = vec![(first, name)];
        if !word.is_empty() {
            labels.push((second, word.to_owned()));
        }
        Sample { labels, value }
    };
    sums.into_iter().map(sample).collect()
}

fn endpoint_states(shared: &Shared) -> Vec<EndpointState> {
    let snapshot = shared.snapshot.load();
    let mut states = Vec::new();
    for (name, service) in snapshot.services.iter() {
        if let ServiceKind::Balanced(balanced) = &service.kind {
            for member in balanced.endpoints.load().members() {
                states.push(EndpointState {
                    service: name.clone(),
                    url: member.endpoint.url().as_str().to_owned(),
                    up: member.is_well(),
                });
            }
        }
    }
    states
}

/// What the API shows of an endpoint beside its url and its status.
fn details(member: &Member) -> serde_json::Map<String, serde_json::Value> {
    let (endpoint, now) = (&member.endpoint, clock::now());
    let mut shown = serde_json::Map::new();
    let mut show = |name: &str, value: serde_json::Value| shown.insert(name.to_owned(), value);
    show(
        "tier",
        match member.tier {
            Tier::Near => "near",
            Tier::OtherZone(_) => "otherZone",
            Tier::Backup(_) => "backup",
        }
        .into(),
    );
    show("weight", member.configured.into());
    show("draining", (member.configured == 0).into());
    show("inUse", (member.share > 0).into());
    show("checks", member.health.status().as_str().into());
    show(
        "answers",
        match member.passive {
            Passive::Admitted => "admitted",
            Passive::Ejected => "ejected",
            Passive::OnTrial => "onTrial",
        }
        .into(),
    );
    if member.warmth < WARM {
        show("warmthPercent", member.warmth.into());
    }
    show("inFlight", endpoint.in_flight().into());
    // Kept where the strategy wants to know.
    if let Some(micros) = endpoint.latency().micros(clock::recent()) {
        show("latencyMs", (f64::from(micros) / 1000.0).into());
    }
    if let Some(ejection) = endpoint.ejection().filter(|_| member.passive != Passive::Admitted) {
        let left = ejection.until.saturating_sub(now);
        let until = Utc::of(SystemTime::now() + Duration::from_millis(left)).rfc3339();
        show(
            "ejection",
            json!({
                "reason": ejection.why.as_str(),
                "detail": ejection.why.to_string(),
                "until": until,
                "inARow": ejection.ejections,
            }),
        );
    }
    shown
}

/// What `/api/resilience` shows.
fn resilience(shared: &Shared) -> serde_json::Value {
    let snapshot = shared.snapshot.load();
    let mut services = serde_json::Map::new();
    for (name, service) in snapshot.services.iter() {
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
    let queues = snapshot.services.iter().filter_map(|(name, service)| {
        let ServiceKind::Balanced(balanced) = &service.kind else { return None };
        balanced.lobby.as_ref().map(|lobby| (name.to_string(), lobby.counts()))
    });
    queues.collect()
}

/// A figure of the newest endpoints of each service.
fn of_each_set(shared: &Shared, figure: impl Fn(&EndpointSet) -> usize) -> Vec<Sample> {
    let snapshot = shared.snapshot.load();
    let services = snapshot.services.iter().filter_map(|(name, service)| {
        let ServiceKind::Balanced(balanced) = &service.kind else { return None };
        Some((name, figure(&balanced.endpoints.load())))
    });
    let sample = |(name, value): (&ServiceName, usize)| Sample {
        labels: vec![("service", name.to_string())],
        value: value as f64,
    };
    services.map(sample).collect()
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

fn model(config: &DocumentConfig, problems: &Problems, secrets: &[String]) -> ApiModel {
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
        let item = item(value, &http.key("routers").key(name.as_str()), problems, secrets).used(using);
        routers.insert(full, item);
    }
    let services = config.http.services.iter().map(|(name, service)| {
        let full = qualified(name.as_str());
        let value = serde_json::to_value(service).unwrap_or_default();
        let used = used_services.remove(&full).unwrap_or_default();
        (full, item(value, &http.key("services").key(name.as_str()), problems, secrets).used(used))
    });
    let services = services.collect();
    let middlewares = config.http.middlewares.iter().map(|(name, middleware)| {
        let full = qualified(name.as_str());
        let value = serde_json::to_value(middleware).unwrap_or_default();
        let used = used_middlewares.remove(&full).unwrap_or_default();
        (full, item(value, &http.key("middlewares").key(name.as_str()), problems, secrets).used(used))
    });
    let middlewares = middlewares.collect();
    let entry_points = entry_points.iter().map(|(name, entry)| {
        let value = serde_json::to_value(entry).unwrap_or_default();
        let at = ConfigPath::of(&["entryPoints"]).key(name.as_str());
        (name.to_string(), item(value, &at, problems, secrets))
    });
    ApiModel { entry_points: entry_points.collect(), routers, services, middlewares }
}

fn item(value: serde_json::Value, at: &ConfigPath, problems: &Problems, secrets: &[String]) -> ApiItem {
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
    ApiItem::new(strip_nulls(value), secrets).state(state, errors)
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
