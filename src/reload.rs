//! From changed files to a changed proxy, or to nothing at all: the only writer of the snapshot.
//!
//! Everything that can fail (reading, compiling, binding, opening the log) is done before anything is
//! changed. What is refused leaves no trace but the reason, in log, metrics and API.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::admin::{self, AdminView, InternalService};
use crate::common::live::Live;
use crate::common::names::{EntryPointName, ServiceName};
use crate::common::problem::{ConfigPath, Problem, Problems, Severity};
use crate::config::document::DocumentConfig;
use crate::config::entry_point::ListenAddress;
use crate::config::load::{Document, Instead, Loaded, Loader, Stale, Texts};
use crate::config::{observability, render};
use crate::discovery::dns::{DnsDiscovery, LookUpContext, LookUps};
use crate::endpoint::live::LiveEndpoints;
use crate::health::HealthSettings;
use crate::health::checker::{Checker, CheckerHandle};
use crate::health::outlier::OutlierWatch;
use crate::provider::file::Watcher;
use crate::proxy::core::Shared;
use crate::proxy::guard::{Guard, GuardLimits};
use crate::server::connection::Drain;
use crate::server::cores::Cores;
use crate::server::listener::{self, Admissions, Bound, TurnedAway};
use crate::snapshot::compile::{Discovered, Draft, Remarks, compile};
use crate::snapshot::{Internal, ListenerId, Snapshot};
use crate::status::Status;
use crate::telemetry::access_log::{AccessLog, AccessLogSettings};
use crate::telemetry::log::LogHandle;
use crate::telemetry::metrics::{Metrics, MetricsSettings, Sample, declared, resident_bytes};
use crate::telemetry::{access_log, log};

/// How long idle connections of an entry point that is gone may still send one more request, which is then
/// answered with `Connection: close`.
const REMOVED_GRACE: Duration = Duration::from_secs(10);
/// How long its last requests may take to come in; their routes are kept so long.
const REMOVED_KEPT: Duration = Duration::from_secs(30);
/// How long a socket that is closed waits for handshakes under way: a round trip to most clients.
const HANDSHAKES: Duration = Duration::from_millis(50);
/// How long connections that are cut may take to notice.
const CUT: Duration = Duration::from_secs(1);
/// How often old configurations are looked at for whether anybody still uses them.
const FORGET: Duration = Duration::from_secs(1);

/// Why there is no proxy.
#[derive(Debug)]
pub enum StartError {
    /// The document has mistakes.
    Problems(Problems, Texts),
    /// The system refused something.
    System(io::Error),
}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> Self {
        Self::System(error)
    }
}

/// Everything that a reload may change.
pub struct Reloader {
    loader: Loader,
    fingerprint: u64,
    watcher: Watcher,
    status: Arc<Status>,
    metrics: Arc<Metrics>,
    shared: Arc<Shared>,
    cores: Arc<Cores>,
    listeners: BTreeMap<EntryPointName, Listening>,
    next_listener: u32,
    admin: Option<AdminListening>,
    checkers: BTreeMap<ServiceName, (Arc<LiveEndpoints>, CheckerHandle)>,
    outliers: OutlierWatch,
    discoveries: BTreeMap<ServiceName, (Arc<LiveEndpoints>, DnsDiscovery)>,
    look_ups: LookUpContext,
    log: LogHandle,
    log_settings: log::LogSettings,
    /// The newest document as a whole is not in use.
    refused: bool,
    /// Provider files that are not in use as they stand, as was told.
    stale: Vec<Stale>,
    /// Which of them the compiler found fault with: the reader alone does not see it.
    compiled_stale: BTreeSet<PathBuf>,
    /// Old snapshots are freed here, and not on a core that should be answering requests.
    old: Vec<Arc<Snapshot>>,
    closing: Vec<Closing>,
    /// Entry points that have stopped for good while the process ends; a document that comes by then does not
    /// open them again.
    stopped: BTreeMap<EntryPointName, ListenerId>,
    turned_away: Arc<Mutex<BTreeMap<EntryPointName, Arc<TurnedAway>>>>,
}

struct Listening {
    id: ListenerId,
    address: ListenAddress,
    reuse_port: bool,
    socket: Arc<TcpListener>,
    admissions: Arc<Admissions>,
    task: JoinHandle<()>,
    /// Accept for so long after SIGTERM, and finish within so long after that.
    grace: (Duration, Duration),
}

/// A listener that is gone, whose connections may still be open.
struct Closing {
    name: EntryPointName,
    id: ListenerId,
    port: u16,
    socket: Weak<TcpListener>,
    admissions: Arc<Admissions>,
    since: Instant,
    /// How long requests may take when the process ends.
    grace: Duration,
}

impl Closing {
    fn of(name: EntryPointName, old: &Listening) -> Self {
        Self {
            name,
            id: old.id,
            port: old.address.port,
            socket: Arc::downgrade(&old.socket),
            admissions: Arc::clone(&old.admissions),
            since: Instant::now(),
            grace: old.grace.1,
        }
    }

    /// Lets its connections end for as long as it may, then cuts them.
    async fn finish(self, cores: Arc<Cores>) {
        cores.drain(Some(self.id), Drain::Close);
        if self.ends_within(self.grace).await {
            return;
        }
        let (entry_point, connections) = (&self.name, self.admissions.open());
        let seconds = self.grace.as_secs_f64();
        tracing::warn!(%entry_point, connections, seconds, "connections cut, graceTimeOut is over");
        cores.cut(self.id);
        self.ends_within(CUT).await;
    }

    async fn ends_within(&self, span: Duration) -> bool {
        let deadline = tokio::time::Instant::now() + span;
        while self.admissions.open() > 0 {
            if tokio::time::Instant::now() >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        true
    }

    fn is_over(&self) -> bool {
        let is_open = self.socket.strong_count() > 0 || self.admissions.open() > 0;
        !is_open || self.since.elapsed() > REMOVED_KEPT
    }
}

struct AdminListening {
    address: ListenAddress,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

/// A document that may come into use.
struct Candidate {
    loaded: Loaded,
    document: Document,
    draft: Draft,
    problems: Problems,
}

/// Sockets and files that were opened for a candidate.
struct Opened {
    entries: BTreeMap<EntryPointName, TcpListener>,
    admin: Option<Option<TcpListener>>,
    access_log: Option<Option<Arc<AccessLog>>>,
}

impl Reloader {
    /// Starts a proxy from its first document.
    ///
    /// # Errors
    /// Every mistake in the document, or what the system said.
    pub fn start(path: &Path) -> Result<Self, StartError> {
        let loader = Loader::new(path);
        let metrics = Arc::new(Metrics::new(MetricsSettings::default(), env!("CARGO_PKG_VERSION")));
        let status = Status::new(Arc::clone(&metrics));
        let loaded = loader.load();
        let candidate = match candidate(loaded, None, &metrics) {
            Ok(candidate) => candidate,
            Err((problems, texts)) => return Err(StartError::Problems(problems, texts)),
        };
        let config = &candidate.document.config;
        let log_settings = log_settings(config);
        let log = log::init(&log_settings)?;
        let watcher = Watcher::new(candidate.loaded.watch.iter().cloned().collect())?;
        let internal = {
            let status = Arc::clone(&status);
            move |service: Internal, method: &http::Method, path: &str, query: Option<&str>| {
                internal_answer(&*status, service, method, path, query)
            }
        };
        let turned_away = Arc::new(Mutex::new(BTreeMap::new()));
        metrics.samples_from(declared::CONNECTIONS_REFUSED, {
            let turned_away = Arc::clone(&turned_away);
            move || refused_connections(&turned_away.lock())
        });
        let empty = Snapshot {
            generation: 0,
            hash: String::new(),
            entry_points: Vec::new(),
            draining: Vec::new(),
            services: Arc::default(),
            memory: crate::http::h1::memory::Budgets::default(),
            stores: Arc::default(),
            tls: Arc::default(),
        };
        let shared = Arc::new(Shared {
            snapshot: Live::new(empty),
            access_log: Live::new(None),
            internal: Box::new(internal),
            guard: Arc::default(),
            reclaim: tokio::sync::Notify::new(),
        });
        let workers = match config.workers {
            0 => std::thread::available_parallelism()?.get(),
            workers => workers.into(),
        };
        let outliers = OutlierWatch::start(&tokio::runtime::Handle::current());
        let look_ups = Arc::new(LookUps::default());
        status.attach(&shared, outliers.counts(), Arc::clone(&look_ups));
        // Ends with the runtime.
        tokio::spawn(watch_memory(Arc::clone(&shared.guard)));
        let cores = Cores::start(workers, &shared, &metrics)?;
        let (its_cores, its_shared) = (Arc::downgrade(&cores), Arc::clone(&shared));
        // Warm connections to what is gone are of no use to anybody.
        let changed = Arc::new(move || {
            if let Some(cores) = its_cores.upgrade() {
                cores.adopt(its_shared.snapshot.load().endpoints());
            }
        });
        let fingerprint = candidate.loaded.fingerprint;
        let mut reloader = Self {
            loader,
            fingerprint,
            watcher,
            status,
            metrics,
            shared,
            cores,
            listeners: BTreeMap::new(),
            next_listener: 0,
            admin: None,
            checkers: BTreeMap::new(),
            outliers,
            discoveries: BTreeMap::new(),
            look_ups: LookUpContext { counts: look_ups, changed },
            log,
            log_settings,
            refused: false,
            stale: Vec::new(),
            compiled_stale: BTreeSet::new(),
            old: Vec::new(),
            closing: Vec::new(),
            stopped: BTreeMap::new(),
            turned_away,
        };
        match reloader.open(&candidate) {
            Ok(opened) => reloader.commit(candidate, opened)?,
            Err(mut problems) => {
                candidate.document.place(&mut problems);
                reloader.cores.stop();
                return Err(StartError::Problems(problems, candidate.loaded.texts));
            }
        }
        Ok(reloader)
    }

    /// Completes when files have changed; until then, sees to it that old configurations go.
    pub async fn changed(&mut self) {
        while !(self.old.is_empty() && self.closing.is_empty()) {
            tokio::select! {
                () = self.watcher.changed() => return,
                () = tokio::time::sleep(FORGET) => self.forget(),
            }
        }
        self.watcher.changed().await;
    }

    /// Reads the files again; whatever comes of it, requests go on being served. With `force`, although
    /// nothing seems to have changed.
    pub fn reload(&mut self, force: bool) {
        self.forget();
        let mut loaded = self.loader.load();
        let mut stale = std::mem::take(&mut loaded.stale);
        if loaded.fingerprint == self.fingerprint && !force {
            // What the compiler said of these same files still holds.
            let compiled = self.stale.iter().filter(|stale| self.compiled_stale.contains(&stale.file));
            stale.extend(compiled.cloned());
            return self.report_stale(stale, false);
        }
        self.fingerprint = loaded.fingerprint;
        self.watcher.set_paths(loaded.watch.iter().cloned().collect());
        let previous = self.shared.snapshot.load();
        let opened = match candidate(loaded, Some((&self.loader, &previous)), &self.metrics) {
            Ok(candidate) => match self.open(&candidate) {
                Ok(opened) => Ok((candidate, opened)),
                Err(mut problems) => {
                    candidate.document.place(&mut problems);
                    Err(problems)
                }
            },
            Err((problems, _)) => Err(problems),
        };
        self.compiled_stale.clear();
        let (mut candidate, opened) = match opened {
            Ok(opened) => opened,
            Err(problems) => {
                self.refuse(&problems);
                return self.report_stale(stale, false);
            }
        };
        for compiled in std::mem::take(&mut candidate.loaded.stale) {
            if stale.iter().all(|read| read.file != compiled.file) {
                self.compiled_stale.insert(compiled.file.clone());
                stale.push(compiled);
            }
        }
        if let Err(error) = self.commit(candidate, opened) {
            // Nothing that a request needs is left undone: what fails here is told and tried again next time.
            tracing::error!(%error, "configuration is in use, but not all of it");
        }
        self.report_stale(stale, true);
    }

    /// Tells of provider files that are not in use as they stand; once for each of their states. `committed`: a
    /// document has just come into use.
    fn report_stale(&mut self, stale: Vec<Stale>, committed: bool) {
        let told = std::mem::replace(&mut self.stale, stale);
        if self.stale.is_empty() {
            if !told.is_empty() && !self.refused {
                self.metrics.config_is_whole(true);
                self.status.none_refused();
            }
            return;
        }
        let mut problems = Problems::new();
        let mut news = committed;
        for stale in &self.stale {
            let lines = |stale: &Stale| stale.problems.iter().map(render::line).collect::<Vec<_>>();
            for problem in stale.problems.iter() {
                problems.push(problem.clone());
            }
            if told.iter().any(|told| told.file == stale.file && lines(told) == lines(stale)) {
                continue;
            }
            news = true;
            self.metrics.config_refused();
            let file = stale.file.display();
            match stale.instead {
                Instead::LastGood => {
                    tracing::error!(%file, "configuration refused in one file, its last good version stays");
                }
                Instead::Nothing => {
                    tracing::error!(%file, "configuration refused in one file, which is left out");
                }
            }
            for line in lines(stale) {
                tracing::error!("{line}");
            }
        }
        if news && !self.refused {
            self.metrics.config_is_whole(false);
            self.status.refused(&problems);
        }
    }

    /// Opens log files again, after somebody has moved them away.
    pub fn reopen_logs(&self) {
        if let Some(log) = &*self.shared.access_log.load() {
            log.reopen();
        }
        match self.log.reopen() {
            Ok(()) => tracing::info!("log files opened again"),
            Err(error) => tracing::error!(%error, "log file cannot be opened again"),
        }
    }

    fn refuse(&mut self, problems: &Problems) {
        self.refused = true;
        self.metrics.config_refused();
        self.status.refused(problems);
        let errors: Vec<_> =
            problems.iter().filter(|problem| problem.severity == Severity::Error).map(render::line).collect();
        tracing::error!(
            problems = errors.len(),
            generation = self.shared.snapshot.load().generation,
            first = errors.first().map(String::as_str).unwrap_or(""),
            "configuration refused, the running one stays"
        );
        for error in errors {
            tracing::error!("{error}");
        }
    }

    /// Opens what a candidate needs and is not open yet.
    fn open(&self, candidate: &Candidate) -> Result<Opened, Problems> {
        let mut problems = Problems::new();
        let mut entries = BTreeMap::new();
        for draft in &candidate.draft.entry_points {
            let kept = self
                .listeners
                .get(&draft.name)
                .is_some_and(|old| old.address == draft.address && old.reuse_port == draft.reuse_port);
            if kept || self.stopped.contains_key(&draft.name) {
                continue;
            }
            match self.bind(draft.address, draft.reuse_port) {
                Ok(socket) => {
                    entries.insert(draft.name.clone(), socket);
                }
                Err(error) => {
                    let at = ConfigPath::of(&["entryPoints"]).key(draft.name.as_str()).key("address");
                    problems.push(bind_problem(&at, draft.address, &error));
                }
            }
        }
        let config = &candidate.document.config;
        let wanted = config.admin.address;
        let mut admin = None;
        if self.admin.as_ref().map(|admin| admin.address) != wanted {
            let bound = wanted.map(|address| self.bind(address, false));
            match bound.transpose() {
                Ok(socket) => admin = Some(socket),
                Err(error) => {
                    let at = ConfigPath::of(&["admin", "address"]);
                    let address = wanted.expect("there is an address that could not be bound");
                    problems.push(bind_problem(&at, address, &error));
                }
            }
        }
        let access_log = match self.open_access_log(config) {
            Ok(access_log) => access_log,
            Err(problem) => {
                problems.push(*problem);
                None
            }
        };
        if problems.has_errors() {
            return Err(problems);
        }
        // Last, when nothing else can fail: whoever connects from now on must be served.
        let admin = match admin.map(|socket| socket.map(Bound::listen).transpose()).transpose() {
            Ok(admin) => admin,
            Err(error) => {
                let address = wanted.expect("there is an address where nobody can listen");
                problems.push(bind_problem(&ConfigPath::of(&["admin", "address"]), address, &error));
                None
            }
        };
        let mut listening = BTreeMap::new();
        for draft in &candidate.draft.entry_points {
            match entries.remove(&draft.name).map(Bound::listen).transpose() {
                Ok(socket) => {
                    listening.extend(socket.map(|socket| (draft.name.clone(), socket)));
                }
                Err(error) => {
                    let at = ConfigPath::of(&["entryPoints"]).key(draft.name.as_str()).key("address");
                    problems.push(bind_problem(&at, draft.address, &error));
                }
            }
        }
        if problems.has_errors() {
            return Err(problems);
        }
        Ok(Opened { entries: listening, admin, access_log })
    }

    /// Binds an address, also one that overlaps a socket of ours that it will replace.
    fn bind(&self, address: ListenAddress, reuse_port: bool) -> io::Result<Bound> {
        match listener::bind(address, reuse_port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && address.port != 0 => {
                let mut ours = false;
                let open = self.listeners.values().filter(|old| old.address.port == address.port);
                let open = open.map(|old| Arc::clone(&old.socket));
                let closing = self.closing.iter().filter(|old| old.port == address.port);
                for socket in open.chain(closing.filter_map(|old| old.socket.upgrade())) {
                    listener::allow_overlap(&socket)?;
                    ours = true;
                }
                if ours { listener::bind(address, true) } else { Err(error) }
            }
            result => result,
        }
    }

    /// `None` when the log stays as it is.
    fn open_access_log(
        &self,
        config: &DocumentConfig,
    ) -> Result<Option<Option<Arc<AccessLog>>>, Box<Problem>> {
        let at = ConfigPath::of(&["accessLog"]);
        let wanted = match &config.access_log {
            Some(config) => Some(access_log_settings(config, &at)?),
            None => None,
        };
        let current = self.shared.access_log.load();
        if current.as_ref().as_ref().map(|log| log.settings()) == wanted.as_ref() {
            return Ok(None);
        }
        match wanted.map(AccessLog::start).transpose() {
            Ok(log) => Ok(Some(log.map(Arc::new))),
            Err(error) => {
                let message = format!("access log cannot be opened: {error}");
                Err(Box::new(Problem::error(&at.key("filePath"), message)))
            }
        }
    }

    fn commit(&mut self, candidate: Candidate, opened: Opened) -> io::Result<()> {
        let Candidate { loaded, document, draft, problems } = candidate;
        let config = &document.config;
        let previous = self.shared.snapshot.load();
        let before: Vec<_> = draft
            .entry_points
            .iter()
            .map(|entry| Planned {
                name: entry.name.clone(),
                address: entry.address,
                reuse_port: entry.reuse_port,
                max_connections: entry.max_connections,
                grace: entry.grace,
            })
            .collect();
        let Opened { mut entries, admin, access_log } = opened;
        let mut ids = BTreeMap::new();
        let mut fresh = Vec::new();
        for plan in before {
            match entries.remove(&plan.name) {
                Some(socket) => {
                    let id = ListenerId(self.next_listener);
                    self.next_listener += 1;
                    ids.insert(plan.name.clone(), id);
                    fresh.push((plan, id, socket));
                }
                None => {
                    if let Some(listening) = self.listeners.get_mut(&plan.name) {
                        ids.insert(plan.name, listening.id);
                        listening.grace = plan.grace;
                        set_limits(&listening.admissions, plan.max_connections);
                    } else if let Some(id) = self.stopped.get(&plan.name) {
                        ids.insert(plan.name, *id);
                    }
                }
            }
        }
        let health = draft.health.clone();
        let watched = draft.watched.clone();
        let discovered = draft.discovered.clone();
        let first = (previous.generation > 0).then_some(&*previous);
        let drains = |id| self.closing.iter().any(|closing| closing.id == id && !closing.is_over());
        let snapshot = draft.commit(&ids, first, drains, &loaded.hash);
        self.shared.guard.set(GuardLimits {
            connections: config.overload.max_connections,
            memory: config.overload.max_memory.bytes(),
        });
        let generation = snapshot.generation;
        for redis in snapshot.stores.redis.backends() {
            redis.start();
        }
        let endpoints = snapshot.endpoints();
        self.shared.snapshot.update(|_| Some(snapshot));
        if let Some(log) = access_log {
            if let Some(log) = &log {
                self.metrics.count_access_log(log.counts());
            }
            self.shared.access_log.update(|_| Some(log));
        }
        self.cores.adopt(endpoints);
        self.old.push(previous);

        let gone: Vec<EntryPointName> = self
            .listeners
            .iter()
            .filter(|(name, old)| ids.get(*name) != Some(&old.id))
            .map(|(name, _)| name.clone())
            .collect();
        let gone: Vec<_> = gone.iter().filter_map(|name| self.listeners.remove_entry(name)).collect();
        for (plan, id, socket) in fresh {
            self.listen(plan, id, socket);
        }
        for (name, old) in gone {
            self.close(&name, old);
        }
        self.check_health(health);
        self.outliers.set(watched);
        self.look_up(discovered);
        self.metrics.configure(metrics_settings(config));
        let new_log = log_settings(config);
        if new_log != self.log_settings {
            self.log.set(&new_log)?;
            self.log_settings = new_log;
        }
        if let Some(socket) = admin {
            self.serve_admin(config.admin.address, socket);
        }
        self.refused = false;
        self.loader.accept(&loaded);
        self.report(&loaded, &problems, &document, generation);
        Ok(())
    }

    fn report(&self, loaded: &Loaded, problems: &Problems, document: &Document, generation: u64) {
        let config = &document.config;
        let disabled = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
        self.status.accepted(document, problems, generation, &loaded.hash);
        self.metrics.config_accepted(generation, &loaded.hash, disabled as u64);
        for problem in problems.iter() {
            match problem.severity {
                Severity::Error => tracing::error!("left out: {}", render::line(problem)),
                Severity::Warning => tracing::warn!("{}", render::line(problem)),
            }
        }
        tracing::info!(
            generation,
            hash = %loaded.hash,
            routers = config.http.routers.len(),
            services = config.http.services.len(),
            "configuration loaded"
        );
    }

    fn listen(&mut self, plan: Planned, id: ListenerId, socket: TcpListener) {
        let socket = Arc::new(socket);
        let turned_away = Arc::clone(self.turned_away.lock().entry(plan.name.clone()).or_default());
        let admissions = Arc::new(Admissions::new(turned_away));
        set_limits(&admissions, plan.max_connections);
        match socket.local_addr() {
            Ok(address) => tracing::info!(entry_point = %plan.name, %address, "listening"),
            Err(error) => tracing::warn!(entry_point = %plan.name, %error, "listening somewhere"),
        }
        let task = tokio::spawn(listener::accept(
            Arc::clone(&socket),
            id,
            Arc::clone(&admissions),
            Arc::clone(&self.cores),
        ));
        let Planned { name, address, reuse_port, grace, .. } = plan;
        self.listeners.insert(name, Listening { id, address, reuse_port, socket, admissions, task, grace });
    }

    /// Stops listening; what waits to be accepted is, and open connections finish what they do.
    fn close(&mut self, name: &EntryPointName, old: Listening) {
        tracing::info!(entry_point = %name, address = %old.address, "no longer listening");
        self.closing.push(Closing::of(name.clone(), &old));
        let cores = Arc::clone(&self.cores);
        tokio::spawn(async move {
            let id = old.id;
            cores.drain(Some(id), Drain::Announce);
            old.stop(&cores).await;
            // And to those that have come in the meantime.
            cores.drain(Some(id), Drain::Announce);
            tokio::time::sleep(REMOVED_GRACE).await;
            cores.drain(Some(id), Drain::Close);
        });
    }

    fn check_health(&mut self, wanted: BTreeMap<ServiceName, (Arc<LiveEndpoints>, HealthSettings)>) {
        let runtime = tokio::runtime::Handle::current();
        carry_on(&mut self.checkers, wanted, CheckerHandle::settings, |name, endpoints, settings| {
            Checker::start(&runtime, name.clone(), Arc::clone(endpoints), settings)
        });
    }

    fn look_up(&mut self, wanted: Discovered) {
        let runtime = tokio::runtime::Handle::current();
        carry_on(&mut self.discoveries, wanted, DnsDiscovery::settings, |name, endpoints, settings| {
            DnsDiscovery::start(&runtime, name, endpoints, settings, &self.look_ups)
        });
    }

    fn serve_admin(&mut self, address: Option<ListenAddress>, socket: Option<TcpListener>) {
        if let Some(mut old) = self.admin.take() {
            // Dropping the sender would do; the word is clearer.
            if let Some(stop) = old.stop.take() {
                let _ = stop.send(());
            }
        }
        if let (Some(address), Some(socket)) = (address, socket) {
            let local = socket.local_addr();
            let (stop, stopped) = oneshot::channel();
            let view: Arc<dyn AdminView> = Arc::clone(&self.status) as Arc<dyn AdminView>;
            let task = tokio::spawn(async move {
                let stopped = async {
                    let _ = stopped.await;
                };
                if let Err(error) = admin::serve(socket, view, stopped).await {
                    tracing::error!(%error, "admin listener ended");
                }
            });
            match local {
                Ok(address) => tracing::info!(%address, "admin listening"),
                Err(error) => tracing::warn!(%error, "admin listening somewhere"),
            }
            self.admin = Some(AdminListening { address, stop: Some(stop), task });
        }
    }

    /// Lets go of what nobody uses any more: old snapshots, and routes of entry points that are gone.
    fn forget(&mut self) {
        self.old.retain(|snapshot| Arc::strong_count(snapshot) > 1);
        let before = self.closing.len();
        self.closing.retain(|closing| !closing.is_over());
        if self.closing.len() == before {
            return;
        }
        let current = self.shared.snapshot.load();
        let drains = |id| self.closing.iter().any(|closing| closing.id == id);
        if self.shared.snapshot.update(|snapshot| snapshot.without_gone(drains)).is_some() {
            // Idle cores hold the snapshot as well.
            self.cores.adopt(current.endpoints());
            self.old.push(current);
        }
    }

    /// Ends the process's work: not ready at once; then each entry point by its own life cycle: it accepts for a
    /// while (unless `at_once`), then no more, then what is still open is cut. Completes early when nothing is
    /// open any more.
    pub async fn shut_down(&mut self, at_once: bool) {
        let since = tokio::time::Instant::now();
        self.status.drain();
        self.cores.drain(None, Drain::Announce);
        // Dropped with this future: who says it twice does not want to wait.
        let mut finishing = JoinSet::new();
        for closing in self.closing.drain(..) {
            finishing.spawn(closing.finish(Arc::clone(&self.cores)));
        }
        loop {
            let due = |listening: &Listening| at_once || since.elapsed() >= listening.grace.0;
            let over: Vec<_> =
                self.listeners.iter().filter(|(_, old)| due(old)).map(|(name, _)| name.clone()).collect();
            for (name, old) in over.iter().filter_map(|name| self.listeners.remove_entry(name)) {
                self.stopped.insert(name.clone(), old.id);
                let (cores, (_, finish)) = (Arc::clone(&self.cores), old.grace);
                let closing = Closing::of(name, &old);
                finishing.spawn(async move {
                    old.stop(&cores).await;
                    let (entry_point, open) = (&closing.name, closing.admissions.open());
                    tracing::info!(%entry_point, open, seconds = finish.as_secs_f64(), "draining: no longer accepting");
                    closing.finish(cores).await;
                });
            }
            let Some(accept) = self.listeners.values().map(|listening| listening.grace.0).min() else {
                break;
            };
            let left = accept.saturating_sub(since.elapsed());
            tracing::info!(seconds = accept.as_secs_f64(), "draining: still accepting");
            self.go_on_for(left).await;
        }
        while finishing.join_next().await.is_some() {}
    }

    /// Pods come and go while the last requests are served.
    async fn go_on_for(&mut self, span: Duration) {
        let mut end = std::pin::pin!(tokio::time::sleep(span));
        loop {
            tokio::select! {
                () = &mut end => return,
                () = self.changed() => self.reload(false),
            }
        }
    }

    /// Ends everything that is still open, and says what that was.
    pub async fn stop(mut self) {
        let cut = self.cores.live();
        if cut > 0 {
            tracing::warn!(connections = cut, "connections cut");
        }
        self.cores.stop();
        if let Some(log) = &*self.shared.access_log.load() {
            log.close(Duration::from_secs(5));
        }
        if let Some(admin) = self.admin.take() {
            admin.task.abort();
        }
        tracing::info!("stopped");
    }
}

impl Listening {
    /// Accepts what is on its way, then closes the socket.
    async fn stop(self, cores: &Cores) {
        match listener::turn_away(&self.socket) {
            Ok(()) => tokio::time::sleep(HANDSHAKES).await,
            Err(error) => tracing::debug!(%error, "no filter on a socket that is to be closed"),
        }
        self.task.abort();
        // Its hold on the socket ends with it; only then does dropping ours close it.
        let _ = self.task.await;
        listener::accept_waiting(&self.socket, self.id, &self.admissions, cores);
    }
}

/// Of what runs for services: goes on where endpoints and settings are the same, begins where they are not, and ends
/// where nothing is wanted.
fn carry_on<S: PartialEq, R>(
    running: &mut BTreeMap<ServiceName, (Arc<LiveEndpoints>, R)>,
    wanted: BTreeMap<ServiceName, (Arc<LiveEndpoints>, S)>,
    settings_of: impl Fn(&R) -> &S,
    start: impl Fn(&ServiceName, &Arc<LiveEndpoints>, S) -> R,
) {
    let mut old = std::mem::take(running);
    for (name, (endpoints, settings)) in wanted {
        let kept = old
            .remove(&name)
            .filter(|(before, runs)| Arc::ptr_eq(before, &endpoints) && *settings_of(runs) == settings);
        let runs = kept.unwrap_or_else(|| {
            let begun = start(&name, &endpoints, settings);
            (endpoints, begun)
        });
        running.insert(name, runs);
    }
}

/// What an entry point needs besides its routes.
struct Planned {
    name: EntryPointName,
    address: ListenAddress,
    reuse_port: bool,
    max_connections: (u32, u32),
    grace: (Duration, Duration),
}

/// Compiles what was read; if a provider file is at fault, with its last good version.
fn candidate(
    loaded: Loaded,
    running: Option<(&Loader, &Snapshot)>,
    metrics: &Metrics,
) -> Result<Candidate, (Problems, Texts)> {
    let mut loaded = loaded;
    // Falling back happens at most once: the second time there is nothing else to fall back to.
    let mut fallen_back = false;
    loop {
        let mut problems = std::mem::take(&mut loaded.problems);
        let Some(document) = loaded.document.take() else { return Err((problems, loaded.texts)) };
        let previous = running.map(|(_, snapshot)| snapshot);
        let draft = compile(&document.config, previous, metrics, Remarks::NeverMatches, &mut problems);
        document.place(&mut problems);
        if !document.refuses(&problems) {
            return Ok(Candidate { loaded, document, draft, problems });
        }
        let other =
            running.filter(|_| !fallen_back).and_then(|(loader, _)| loader.fall_back(&loaded, &problems));
        match other {
            Some(other) => {
                fallen_back = true;
                loaded = other;
            }
            None => return Err((problems, loaded.texts)),
        }
    }
}

fn bind_problem(at: &ConfigPath, address: ListenAddress, error: &io::Error) -> Problem {
    let problem = Problem::error(at, format!("cannot listen on {address}: {error}"));
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            problem.hint("another process listens there; choose another port or end it")
        }
        io::ErrorKind::PermissionDenied => {
            problem.hint("ports below 1024 need CAP_NET_BIND_SERVICE, or a higher port")
        }
        io::ErrorKind::AddrNotAvailable => problem.hint("this host has no such address"),
        _ => problem,
    }
}

/// Tells the guard how much memory is used, for ever.
async fn watch_memory(guard: Arc<Guard>) {
    let mut interval = tokio::time::interval(MEMORY_CHECK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if guard.limits().memory == 0 {
            continue;
        }
        let Some(resident) = resident_bytes() else { continue };
        match guard.memory(resident) {
            Some(0) => tracing::info!(resident, "memory is no longer scarce"),
            Some(level) => tracing::warn!(resident, level, "memory is scarce, requests are refused"),
            None => {}
        }
    }
}

/// How often the memory is looked at.
const MEMORY_CHECK: Duration = Duration::from_millis(250);

/// How many connections each entry point has turned away, and why.
fn refused_connections(turned_away: &BTreeMap<EntryPointName, Arc<TurnedAway>>) -> Vec<Sample> {
    let sample = |name: &EntryPointName, reason: &str, count: &AtomicU64| Sample {
        labels: vec![("entrypoint", name.to_string()), ("reason", reason.to_owned())],
        value: count.load(Ordering::Relaxed) as f64,
    };
    turned_away
        .iter()
        .flat_map(|(name, away)| {
            [
                sample(name, "max_connections", &away.max),
                sample(name, "max_connections_per_client", &away.max_per_client),
            ]
        })
        .collect()
}

fn set_limits(admissions: &Admissions, (max, per_client): (u32, u32)) {
    admissions.max.store(max, Ordering::Relaxed);
    admissions.max_per_client.store(per_client, Ordering::Relaxed);
}

fn internal_answer(
    view: &dyn AdminView,
    service: Internal,
    method: &http::Method,
    path: &str,
    query: Option<&str>,
) -> http::Response<bytes::Bytes> {
    let service = match service {
        Internal::Api => InternalService::Api,
        Internal::Ping => InternalService::Ping,
        Internal::Prometheus => InternalService::Prometheus,
        Internal::Noop => {
            let mut response = http::Response::new(bytes::Bytes::new());
            *response.status_mut() = http::StatusCode::IM_A_TEAPOT;
            return response;
        }
    };
    admin::answer_internal(view, service, method, path, query)
}

fn log_settings(config: &DocumentConfig) -> log::LogSettings {
    let config = &config.log;
    log::LogSettings {
        level: match config.level {
            observability::LogLevel::Trace => log::LogLevel::Trace,
            observability::LogLevel::Debug => log::LogLevel::Debug,
            observability::LogLevel::Info => log::LogLevel::Info,
            observability::LogLevel::Warn => log::LogLevel::Warn,
            observability::LogLevel::Error => log::LogLevel::Error,
            observability::LogLevel::Fatal => log::LogLevel::Fatal,
            observability::LogLevel::Panic => log::LogLevel::Panic,
        },
        format: match config.format {
            observability::LogFormat::Common => log::LogFormat::Common,
            observability::LogFormat::Json => log::LogFormat::Json,
        },
        no_color: config.no_color,
        target: match &config.file_path {
            Some(path) => access_log::LogTarget::File(path.into()),
            None => access_log::LogTarget::Stderr,
        },
    }
}

fn metrics_settings(config: &DocumentConfig) -> MetricsSettings {
    match &config.metrics.prometheus {
        None => MetricsSettings::default(),
        Some(prometheus) => MetricsSettings {
            entry_points: prometheus.add_entry_points_labels,
            routers: prometheus.add_routers_labels,
            services: prometheus.add_services_labels,
            buckets: prometheus.buckets.clone(),
            // Whoever writes Traefik's block has dashboards that know Traefik's names.
            traefik_names: true,
        },
    }
}

fn access_log_settings(
    config: &observability::AccessLogConfig,
    at: &ConfigPath,
) -> Result<AccessLogSettings, Box<Problem>> {
    let mut status_codes = Vec::with_capacity(config.filters.status_codes.len());
    for (index, text) in config.filters.status_codes.iter().enumerate() {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            (Ok(first), Ok(last)) if (100..=999).contains(&first) && first <= last => {
                status_codes.push(first..=last)
            }
            _ => {
                let at = at.key("filters").key("statusCodes").index(index);
                let problem = Problem::error(&at, format!("bad status or range {text:?}"));
                return Err(Box::new(problem.hint("write \"404\" or \"500-599\"")));
            }
        }
    }
    let field_mode = |mode: observability::FieldMode| match mode {
        observability::FieldMode::Keep => access_log::FieldMode::Keep,
        observability::FieldMode::Drop => access_log::FieldMode::Drop,
    };
    let header_mode = |mode: observability::HeaderMode| match mode {
        observability::HeaderMode::Keep => access_log::HeaderMode::Keep,
        observability::HeaderMode::Drop => access_log::HeaderMode::Drop,
        observability::HeaderMode::Redact => access_log::HeaderMode::Redact,
    };
    let fields = &config.fields;
    Ok(AccessLogSettings {
        target: match &config.file_path {
            Some(path) => access_log::LogTarget::File(path.into()),
            None => access_log::LogTarget::Stdout,
        },
        format: match config.format {
            observability::AccessLogFormat::Common => access_log::AccessLogFormat::Common,
            observability::AccessLogFormat::Json => access_log::AccessLogFormat::Json,
            observability::AccessLogFormat::GenericClf => access_log::AccessLogFormat::GenericClf,
        },
        filters: access_log::AccessLogFilters {
            status_codes,
            retry_attempts: config.filters.retry_attempts,
            min_duration: config.filters.min_duration.0,
        },
        fields: access_log::AccessLogFields {
            default_mode: field_mode(fields.default_mode),
            names: fields.names.iter().map(|(name, mode)| (name.clone(), field_mode(*mode))).collect(),
            default_header_mode: header_mode(fields.headers.default_mode),
            header_names: fields
                .headers
                .names
                .iter()
                .map(|(name, mode)| (name.clone(), header_mode(*mode)))
                .collect(),
            query: field_mode(fields.query_parameters.default_mode),
        },
        queue: match config.buffering_size {
            0 => access_log::DEFAULT_QUEUE,
            lines => usize::try_from(lines).unwrap_or(access_log::DEFAULT_QUEUE),
        },
    })
}
