//! Metrics: each core counts in cells of its own, a scrape adds them up.
//!
//! Reads: the cores' cells, the control plane's figures, `/proc/self`. Writes: one page of text.
//! Never: a lock or a read-modify-write on the way of a request whose labels were seen before.

mod cell;
mod core;
pub mod declared;
mod labels;
mod page;
mod process;
mod scrape;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::common::names::{EntryPointName, MiddlewareName, RouterName, ServiceName};
use crate::telemetry::access_log::AccessLogCounts;
use crate::telemetry::metrics::cell::Bounds;
use crate::telemetry::metrics::core::CoreCells;

pub use crate::telemetry::metrics::core::CoreMetrics;
pub use crate::telemetry::metrics::declared::{Kind, Metric};
pub use crate::telemetry::metrics::labels::{
    CloseReason, ConnectOutcome, EntryPointLabel, ExchangeKey, FailoverReason, Handshake, HashOutcome,
    HedgeWinner, Http2Flood, Http2Reset, LimitDecision, MethodLabel, MiddlewareLabel, MirrorOutcome,
    Protocol, RehearsalOutcome, RetryReason, Series, ServiceLabel, SpillTo, StickyOutcome, TimeoutKind,
};
pub use crate::telemetry::metrics::page::CONTENT_TYPE;
pub use crate::telemetry::metrics::process::resident_bytes;

/// Names and series remembered over all reloads. Removed routers keep theirs, so that a reload that
/// brings one back goes on counting; past this bound new ones are counted together as `other`.
/// Four per router of a document of 100,000, at about 100 bytes each.
const MAX_NAMES: usize = 400_000;

/// What Traefik calls `metrics.prometheus`, ready to use.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricsSettings {
    /// `addEntryPointsLabels`: figures by entry point.
    pub entry_points: bool,
    /// `addRoutersLabels`: figures by router.
    pub routers: bool,
    /// `addServicesLabels`: figures by service.
    pub services: bool,
    /// Upper ends of the duration buckets in seconds; order and repetitions do not matter.
    pub buckets: Vec<f64>,
    /// Shows the main figures under Traefik's names too.
    pub traefik_names: bool,
}

impl Default for MetricsSettings {
    fn default() -> Self {
        Self {
            entry_points: true,
            routers: false,
            services: true,
            buckets: vec![0.1, 0.3, 1.2, 5.0],
            traefik_names: false,
        }
    }
}

/// Whether one endpoint takes requests.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EndpointState {
    /// Its service.
    pub service: ServiceName,
    /// As configured or discovered: `http://10.0.0.1:8080`.
    pub url: String,
    /// Whether it takes requests.
    pub up: bool,
}

/// One figure of a metric that another part of the proxy keeps.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Names and values, from closed or bounded sets.
    pub labels: Vec<(&'static str, String)>,
    /// The figure.
    pub value: f64,
}

type EndpointSource = Box<dyn Fn() -> Vec<EndpointState> + Send + Sync>;
type SampleSource = Box<dyn Fn() -> Vec<Sample> + Send + Sync>;

/// All metrics of the process; shared, made once.
pub struct Metrics {
    shared: Arc<Shared>,
    settings: Mutex<MetricsSettings>,
    names: Mutex<Names>,
    cores: Mutex<Vec<Arc<CoreCells>>>,
    endpoints: Mutex<Option<EndpointSource>>,
    sources: Mutex<Vec<(Metric, SampleSource)>>,
    access_logs: Mutex<AccessLogs>,
    reloads_accepted: AtomicU64,
    reloads_refused: AtomicU64,
    last_reload_ok: AtomicBool,
    /// Seconds since 1970; 0 before the first.
    last_success: AtomicU64,
    generation: AtomicU64,
    disabled_items: AtomicU64,
    hash: Mutex<String>,
    version: &'static str,
}

/// What the cores read.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Grows when the buckets change.
    epoch: AtomicU64,
    bounds: Mutex<Bounds>,
}

impl Shared {
    fn bounds(&self) -> (u64, Bounds) {
        let bounds = self.bounds.lock();
        (self.epoch.load(Ordering::Acquire), Arc::clone(&bounds))
    }
}

/// Names of one kind, numbered.
#[derive(Debug)]
struct Table<K> {
    numbers: HashMap<K, u32, RandomState>,
    names: Vec<K>,
}

impl<K: Clone + Eq + std::hash::Hash> Table<K> {
    fn new(other: K) -> Self {
        Self { numbers: HashMap::from_iter([(other.clone(), 0)]), names: vec![other] }
    }

    /// The number of `name`, or 0 when there are too many.
    fn number(&mut self, name: K) -> u32 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        if self.names.len() >= MAX_NAMES {
            return 0;
        }
        let number = u32::try_from(self.names.len()).expect("MAX_NAMES fits");
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }
}

/// What an exchange is counted under.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct SeriesNames {
    entry_point: EntryPointName,
    router: Option<RouterName>,
    service: Option<ServiceName>,
}

#[derive(Debug)]
struct Names {
    series: Table<SeriesNames>,
    entry_points: Table<EntryPointName>,
    services: Table<ServiceName>,
    middlewares: Table<MiddlewareName>,
}

impl Metrics {
    /// Begins to count; `version` is shown as the build's.
    pub fn new(settings: MetricsSettings, version: &'static str) -> Self {
        let other = SeriesNames { entry_point: EntryPointName::new("other"), router: None, service: None };
        Self {
            shared: Arc::new(Shared {
                epoch: AtomicU64::new(0),
                bounds: Mutex::new(compile_buckets(&settings.buckets)),
            }),
            settings: Mutex::new(settings),
            names: Mutex::new(Names {
                series: Table::new(other),
                entry_points: Table::new(EntryPointName::new("other")),
                services: Table::new(ServiceName::new("other")),
                middlewares: Table::new(MiddlewareName::new("other")),
            }),
            cores: Mutex::default(),
            endpoints: Mutex::default(),
            sources: Mutex::default(),
            access_logs: Mutex::default(),
            reloads_accepted: AtomicU64::new(0),
            reloads_refused: AtomicU64::new(0),
            last_reload_ok: AtomicBool::new(false),
            last_success: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            disabled_items: AtomicU64::new(0),
            hash: Mutex::default(),
            version,
        }
    }

    /// Takes other settings; new buckets start the duration histograms anew, all other figures go on.
    pub fn configure(&self, settings: MetricsSettings) {
        let bounds = compile_buckets(&settings.buckets);
        {
            let mut current = self.shared.bounds.lock();
            if **current != *bounds {
                *current = bounds;
                self.shared.epoch.fetch_add(1, Ordering::Release);
            }
        }
        *self.settings.lock() = settings;
    }

    /// Makes the end of one more core.
    pub fn core(&self) -> CoreMetrics {
        let cells = Arc::new(CoreCells::default());
        self.cores.lock().push(Arc::clone(&cells));
        CoreMetrics::new(Arc::clone(&self.shared), cells)
    }

    /// Gives the series of exchanges on this entry point that took this router to this service.
    ///
    /// Without a router they count for the entry point alone. The same names give the same series.
    /// Cost: a lock and a look-up; call it when routes are compiled.
    pub fn series(
        &self,
        entry_point: &EntryPointName,
        router: Option<&RouterName>,
        service: Option<&ServiceName>,
    ) -> Series {
        let names = SeriesNames {
            entry_point: entry_point.clone(),
            router: router.cloned(),
            service: service.cloned(),
        };
        Series(self.names.lock().series.number(names))
    }

    /// Gives the label of an entry point.
    pub fn entry_point(&self, name: &EntryPointName) -> EntryPointLabel {
        EntryPointLabel(self.names.lock().entry_points.number(name.clone()))
    }

    /// Gives the label of a service.
    pub fn service(&self, name: &ServiceName) -> ServiceLabel {
        ServiceLabel(self.names.lock().services.number(name.clone()))
    }

    /// Gives the label of a middleware.
    pub fn middleware(&self, name: &MiddlewareName) -> MiddlewareLabel {
        MiddlewareLabel(self.names.lock().middlewares.number(name.clone()))
    }

    /// Says where the endpoints' states come from; asked on each scrape.
    pub fn endpoints_from(&self, source: impl Fn() -> Vec<EndpointState> + Send + Sync + 'static) {
        *self.endpoints.lock() = Some(Box::new(source));
    }

    /// Adds a metric that another part keeps; asked on each scrape. `metric` is a constant of [`declared`]
    /// or one declared beside its owner; its name must not be on the page already.
    pub fn samples_from(&self, metric: Metric, source: impl Fn() -> Vec<Sample> + Send + Sync + 'static) {
        self.sources.lock().push((metric, Box::new(source)));
    }

    /// Shows an access log's lines; those of logs that ended stay in the sum.
    pub fn count_access_log(&self, counts: Arc<AccessLogCounts>) {
        let mut logs = self.access_logs.lock();
        if logs.open.iter().any(|known| Arc::ptr_eq(known, &counts)) {
            return;
        }
        logs.fold_ended();
        logs.open.push(counts);
    }

    fn access_log_sums(&self) -> AccessLogSums {
        let mut logs = self.access_logs.lock();
        logs.fold_ended();
        let mut sums = logs.ended;
        for counts in &logs.open {
            sums.add(counts);
        }
        sums
    }

    /// Notes that a document was accepted and is running as `generation`.
    pub fn config_accepted(&self, generation: u64, hash: &str, disabled_items: u64) {
        self.reloads_accepted.fetch_add(1, Ordering::Relaxed);
        self.last_reload_ok.store(true, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        self.last_success.store(now.as_secs(), Ordering::Relaxed);
        self.generation.store(generation, Ordering::Relaxed);
        self.disabled_items.store(disabled_items, Ordering::Relaxed);
        hash.clone_into(&mut self.hash.lock());
    }

    /// Notes that a document, or a file of it, was refused; what runs stays.
    pub fn config_refused(&self) {
        self.reloads_refused.fetch_add(1, Ordering::Relaxed);
        self.last_reload_ok.store(false, Ordering::Relaxed);
    }

    /// Notes whether each file of the running document is in use as it stands.
    pub fn config_is_whole(&self, whole: bool) {
        self.last_reload_ok.store(whole, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// Lines of all access logs there were.
#[derive(Debug, Default)]
struct AccessLogs {
    open: Vec<Arc<AccessLogCounts>>,
    ended: AccessLogSums,
}

#[derive(Clone, Copy, Debug, Default)]
struct AccessLogSums {
    written: u64,
    dropped: u64,
    failed: u64,
}

impl AccessLogs {
    /// Keeps the figures of logs that nobody writes to any more, without their cells.
    fn fold_ended(&mut self) {
        let ended = &mut self.ended;
        self.open.retain_mut(|counts| {
            let last = Arc::get_mut(counts);
            let ended_now = last.is_some();
            if let Some(counts) = last {
                ended.add(counts);
            }
            !ended_now
        });
    }
}

impl AccessLogSums {
    fn add(&mut self, counts: &AccessLogCounts) {
        self.written += counts.written.load(Ordering::Relaxed);
        self.dropped += counts.dropped.load(Ordering::Relaxed);
        self.failed += counts.failed.load(Ordering::Relaxed);
    }
}

/// Seconds to nanoseconds, ascending, once each; what is no positive number is left out.
fn compile_buckets(seconds: &[f64]) -> Bounds {
    let mut bounds: Vec<u64> = seconds
        .iter()
        .filter(|seconds| seconds.is_finite() && **seconds > 0.0)
        .map(|seconds| (seconds * 1e9).round() as u64)
        .collect();
    bounds.sort_unstable();
    bounds.dedup();
    bounds.into()
}

#[cfg(test)]
mod tests;
