//! From the document to what the data path reads.
//!
//! Compiling changes nothing that runs: what a reload takes over is only named here, and changed by
//! [`Draft::commit`] once the document is accepted. All mistakes are found in one run.

use std::collections::btree_map::Entry as MapEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode};

use super::balancing;
use super::entries::{self, InternalRouter};
use super::tls::{Tls, TlsCompiler};
use super::{
    Balanced, ChainLink, EntryPoint, EntrySettings, EntryTls, Failover, Hashed, Internal, ListenerId, Mirror,
    MirrorPlaces, Mirroring, Outbound, Route, RouteTimeouts, Service, ServiceKind, Snapshot, StickyChildren,
    Transport, Underscores, Weighted,
};
use crate::balance::Balancer;
use crate::balance::adaptive::{Adaptive, AdaptiveSettings};
use crate::balance::budget::{RetryBudget, RetryBudgetSettings};
use crate::balance::children::HashedChildren;
use crate::balance::hedge::{Hedge, HedgeSettings};
use crate::balance::percent::Percent;
use crate::balance::weighted::WeightedChildren;
use crate::common::clock::{self, Millis};
use crate::common::importance::Importance;
use crate::common::names::{EntryPointName, MiddlewareName, RouterName, ServiceName};
use crate::common::problem::{ConfigPath, Problem, Problems, Step, nearest};
use crate::common::units::HumanDuration;
use crate::config::balancing::{FailoverConfig, HighestRandomWeightConfig, MirroringConfig};
use crate::config::document::{DocumentConfig, local_name};
use crate::config::entry_point::{
    self, EntryPointConfig, EntryPointHttp2, ForwardedHeadersConfig, ListenAddress,
};
use crate::config::router::{RouterConfig, RouterTimeouts};
use crate::config::service::{
    AdaptiveConcurrencyConfig, DnsDiscoveryConfig, HealthCheckConfig, HealthCheckMode, HedgeConfig,
    InitialState, LoadBalancerConfig, OutboundLimitConfig, OutboundScope, ServiceConfig, WeightedConfig,
    WeightedServiceConfig,
};
use crate::config::tls::RouterTlsConfig;
use crate::config::transport::ServersTransportConfig;
use crate::discovery::dns::DnsSettings;
use crate::endpoint::PathUse;
use crate::endpoint::health::{Status, Thresholds};
use crate::endpoint::live::LiveEndpoints;
use crate::endpoint::lobby::{Limits, Lobby};
use crate::endpoint::outlier::OutlierSettings;
use crate::endpoint::set::{Care, EndpointSet, ServerSpec, WARM, Watch};
use crate::endpoint::tag::Tag;
use crate::endpoint::url::{Scheme, ServerUrl};
use crate::health::outlier::{SlowStart, WatchSettings, Watched};
use crate::health::{ExpectedStatus, HealthSettings, Mode, Redirects};
use crate::http::copy::Room;
use crate::http::forwarded::Forwarded;
use crate::http::h1::memory::Budgets;
use crate::http::h1::parse::HeadLimits;
use crate::http::h2::limits::{ClientLimits, FrameLimits, ServerLimits};
use crate::http::path::{EncodedCharacters, PathOptions, QuerySemicolons};
use crate::limit::redis::GivesBack;
use crate::limit::{Bound, Limit, LocalLimit, Pace, PaceScope, Pauses, Quota, Stores, Window, nanos};
use crate::matcher::{PathMatching, Remark, RemarkKind, RouterTable, Rule};
use crate::middleware::{self, CompileContext, Edit, Lasts, Link, RedirectScheme};
use crate::telemetry::metrics::{EntryPointLabel, Metrics, Series};
use crate::tls::server::{ByName, DEFAULT};

/// Buckets of a limit on what goes out: one a server at most.
const OUTBOUND_BUCKETS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");

/// A resolver that is asked more often has nothing new to say.
const LEAST_LOOKUP_INTERVAL: Duration = Duration::from_millis(100);

/// Above every router of a user.
const INTERNAL_PRIORITY: i64 = i64::MAX;

/// A document, compiled but not in use.
#[derive(Debug)]
pub struct Draft {
    /// What will listen.
    pub entry_points: Vec<EntryDraft>,
    /// Which services are checked, and how.
    pub health: BTreeMap<ServiceName, (Arc<LiveEndpoints>, HealthSettings)>,
    /// Which services' answers are watched, and how.
    pub watched: Watched,
    /// Which services' names are looked up, and how often.
    pub discovered: Discovered,
    services: BTreeMap<ServiceName, Arc<Service>>,
    memory: Budgets,
    stores: Stores,
    tls: Tls,
    endpoints: Vec<Renewal>,
    budgets: Vec<(Arc<RetryBudget>, RetryBudgetSettings)>,
    lobbies: Vec<(Arc<Lobby>, Limits, u32)>,
}

/// A service's endpoints that go on with other servers.
#[derive(Debug)]
struct Renewal {
    live: Arc<LiveEndpoints>,
    servers: Vec<ServerSpec>,
    care: Care,
    discovers: bool,
}

/// Services with names among their servers that are looked up, and how.
pub type Discovered = BTreeMap<ServiceName, (Arc<LiveEndpoints>, DnsSettings)>;

/// An entry point without its socket.
#[derive(Debug)]
pub struct EntryDraft {
    /// Its name.
    pub name: EntryPointName,
    /// Where it listens.
    pub address: ListenAddress,
    /// Whether other processes may listen there too.
    pub reuse_port: bool,
    /// Connections it may have, and how many of one client; 0 for no limit.
    pub max_connections: (u32, u32),
    /// How long it accepts after SIGTERM, and how long requests may then take.
    pub grace: (std::time::Duration, std::time::Duration),
    label: EntryPointLabel,
    series: Series,
    settings: EntrySettings,
    routers: RouterTable<Arc<Route>>,
    tls: Option<Box<EntryTls>>,
    access_log: bool,
}

impl Draft {
    /// Puts the document in use, as far as that is not the caller's: gives the snapshot to be stored.
    ///
    /// `listeners` has the sockets of all entry points, by name. Entry points of `previous` that are gone
    /// go on serving their open connections; those that were gone before, while `drains` says so.
    pub fn commit(
        self,
        listeners: &BTreeMap<EntryPointName, ListenerId>,
        previous: Option<&Snapshot>,
        drains: impl Fn(ListenerId) -> bool,
        hash: &str,
    ) -> Snapshot {
        for Renewal { live, servers, care, discovers } in &self.endpoints {
            live.discover(*discovers);
            live.rebuild(servers, *care);
        }
        for (budget, settings) in self.budgets {
            budget.set(settings);
        }
        for (lobby, limits, allowed) in self.lobbies {
            lobby.set(limits);
            lobby.allow(allowed);
        }
        let entry_points: Vec<_> = self
            .entry_points
            .into_iter()
            .filter_map(|draft| {
                let listener = *listeners.get(&draft.name)?;
                Some(Arc::new(draft.with_listener(listener)))
            })
            .collect();
        let draining = previous
            .into_iter()
            .flat_map(|previous| {
                let gone_before = previous.draining.iter().filter(|old| drains(old.listener));
                previous.entry_points.iter().chain(gone_before)
            })
            .filter(|old| entry_points.iter().all(|new| new.listener != old.listener))
            .cloned()
            .collect();
        Snapshot {
            generation: previous.map_or(1, |previous| previous.generation + 1),
            hash: hash.to_owned(),
            entry_points,
            draining,
            services: Arc::new(self.services),
            memory: self.memory,
            stores: Arc::new(self.stores.settle()),
            tls: Arc::new(self.tls),
        }
    }

    /// The routers of an entry point and what they lead to, for `explain`.
    pub fn entry(&self, name: &str) -> Option<&EntryDraft> {
        self.entry_points.iter().find(|entry| entry.name.as_str() == name)
    }
}

impl EntryDraft {
    /// Its routers of plain connections.
    pub fn routers(&self) -> &RouterTable<Arc<Route>> {
        &self.routers
    }

    /// What holds for TLS connections; `None` where none is taken.
    pub fn tls(&self) -> Option<&EntryTls> {
        self.tls.as_deref()
    }

    /// Its limits and times.
    pub fn settings(&self) -> &EntrySettings {
        &self.settings
    }

    fn with_listener(self, listener: ListenerId) -> EntryPoint {
        EntryPoint {
            name: self.name,
            listener,
            label: self.label,
            series: self.series,
            settings: self.settings,
            routers: self.routers,
            tls: self.tls,
            access_log: self.access_log,
        }
    }
}

/// How much is said of rules that are right but may not mean what they seem to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Remarks {
    /// Everything, Traefik's own habits included; for whoever asks (`check`). A dynamic file on its own may
    /// then name entry points that it does not define.
    All,
    /// Only what can never match.
    NeverMatches,
}

/// Compiles a document. Items with errors are left out of the draft; whether that refuses the document is
/// the caller's to say.
pub fn compile(
    config: &DocumentConfig,
    previous: Option<&Snapshot>,
    metrics: &Metrics,
    remarks: Remarks,
    problems: &mut Problems,
) -> Draft {
    let stores = previous.map_or_else(Stores::new, |previous| Stores::after(&previous.stores));
    let mut compiler = Compiler {
        config,
        previous,
        metrics,
        remarks,
        // Entry points with mistakes are missing from `config`, but are meant to be here.
        entry_points_elsewhere: remarks == Remarks::All
            && config.is_dynamic()
            && !problems.iter().any(|problem| problem.path.starts_with(&ConfigPath::of(&["entryPoints"]))),
        said_so: false,
        tls: TlsCompiler::new(previous.map(|previous| &*previous.tls)),
        tls_hosts: BTreeMap::new(),
        problems,
        stores,
        services: BTreeMap::new(),
        under_way: Vec::new(),
        endpoints: Vec::new(),
        budgets: Vec::new(),
        lobbies: Vec::new(),
        health: BTreeMap::new(),
        watched: BTreeMap::new(),
        discovered: BTreeMap::new(),
    };
    compiler.run()
}

struct Compiler<'a> {
    config: &'a DocumentConfig,
    previous: Option<&'a Snapshot>,
    metrics: &'a Metrics,
    remarks: Remarks,
    /// It is a dynamic file, whose entry points are defined in another one.
    entry_points_elsewhere: bool,
    said_so: bool,
    tls: TlsCompiler<'a>,
    /// What each host's routers say of options, by entry point.
    tls_hosts: BTreeMap<EntryPointName, BTreeMap<String, (String, ConfigPath)>>,
    problems: &'a mut Problems,
    stores: Stores,
    /// `None` for one with errors.
    services: BTreeMap<ServiceName, Option<Arc<Service>>>,
    /// Weighted services on the way to the one that is being compiled.
    under_way: Vec<ServiceName>,
    endpoints: Vec<Renewal>,
    budgets: Vec<(Arc<RetryBudget>, RetryBudgetSettings)>,
    /// With what adaptive concurrency lets in.
    lobbies: Vec<(Arc<Lobby>, Limits, u32)>,
    health: BTreeMap<ServiceName, (Arc<LiveEndpoints>, HealthSettings)>,
    watched: Watched,
    discovered: Discovered,
}

/// A router on one entry point.
type Entry = (Rule, i64, String, Arc<Route>);

impl<'a> Compiler<'a> {
    /// The running service of that name.
    fn previous_service(&self, name: &ServiceName) -> Option<&'a Arc<Service>> {
        self.previous?.services.get(name)
    }
}

/// Routers of one entry point.
#[derive(Default)]
struct Routers {
    plain: Vec<Entry>,
    tls: Vec<Entry>,
}

impl Compiler<'_> {
    fn run(&mut self) -> Draft {
        let config = self.config;
        let http = ConfigPath::of(&["http"]);
        middleware::check(&config.http.middlewares, &http.key("middlewares"), self.problems);
        for (name, transport) in &config.http.servers_transports {
            check_transport(transport, &http.key("serversTransports").key(name), self.problems);
        }
        check_transport(&config.servers_transport, &ConfigPath::of(&["serversTransport"]), self.problems);
        let entry_configs = entries::entry_points(config);
        let speaks_tls = entry_configs.values().any(|entry| entry.http.tls.is_some())
            || config.http.routers.values().any(|router| router.tls.is_some());
        self.tls.run(config, speaks_tls, self.problems);
        for name in config.http.services.keys() {
            self.service(name);
        }
        let mut entries: BTreeMap<&EntryPointName, Routers> =
            entry_configs.keys().map(|name| (name, Routers::default())).collect();
        for (name, router) in &config.http.routers {
            self.router(name, router, &entry_configs, &mut entries);
        }
        self.redirections(&entry_configs, &mut entries);
        self.internal_routers(&entry_configs, &mut entries);
        let mut routers: BTreeMap<EntryPointName, Routers> =
            entries.into_iter().map(|(name, entries)| (name.clone(), entries)).collect();
        let entry_points = entry_configs
            .iter()
            .map(|(name, entry)| {
                let routers = routers.remove(name).unwrap_or_default();
                self.entry_point(name, entry, routers)
            })
            .collect();
        Draft {
            entry_points,
            health: std::mem::take(&mut self.health),
            watched: std::mem::take(&mut self.watched),
            discovered: std::mem::take(&mut self.discovered),
            memory: Budgets { heads: config.core.max_head_memory, bodies: config.core.max_body_memory },
            services: std::mem::take(&mut self.services)
                .into_iter()
                .filter_map(|(name, service)| Some((name, service?)))
                .collect(),
            stores: std::mem::take(&mut self.stores),
            tls: std::mem::take(&mut self.tls.tls),
            endpoints: std::mem::take(&mut self.endpoints),
            budgets: std::mem::take(&mut self.budgets),
            lobbies: std::mem::take(&mut self.lobbies),
        }
    }

    fn internal_routers(
        &mut self,
        entry_configs: &BTreeMap<EntryPointName, EntryPointConfig>,
        entries: &mut BTreeMap<&EntryPointName, Routers>,
    ) {
        for internal in entries::internal_routers(self.config) {
            let InternalRouter { entry_point: entry, name, rule, service, at } = internal;
            let Some(routers) = entries.get_mut(&entry) else {
                self.problems.push(unknown(
                    "entry point",
                    entry.as_str(),
                    &at,
                    entry_configs.keys().map(|name| name.as_str()),
                ));
                continue;
            };
            let Ok(rule) = Rule::parse(rule) else { continue };
            let route = Route {
                name: RouterName::new(name),
                chain: Box::default(),
                service: self.internal(service),
                timeouts: RouteTimeouts::default(),
                importance: Importance::High,
                series: self.metrics.series(&entry, None, None),
                access_log: false,
                metrics: false,
            };
            let route = Arc::new(route);
            if entry_configs.get(entry.as_str()).is_some_and(|entry| entry.http.tls.is_some()) {
                routers.tls.push((rule.clone(), INTERNAL_PRIORITY, name.to_owned(), Arc::clone(&route)));
            }
            routers.plain.push((rule, INTERNAL_PRIORITY, name.to_owned(), route));
        }
    }

    fn entry_point(
        &mut self,
        name: &EntryPointName,
        entry: &EntryPointConfig,
        routers: Routers,
    ) -> EntryDraft {
        let at = ConfigPath::of(&["entryPoints"]).key(name.as_str());
        let times = &entry.transport.responding_timeouts;
        let http = &entry.http;
        let head = HeadLimits { bytes: http.max_header_bytes, fields: http.max_header_fields };
        let encoded = &http.encoded_characters;
        EntryDraft {
            name: name.clone(),
            address: entry.address,
            reuse_port: entry.reuse_port,
            max_connections: (entry.max_connections, entry.max_connections_per_client),
            grace: (
                entry.transport.life_cycle.request_accept_grace_timeout.0,
                entry.transport.life_cycle.grace_time_out.0,
            ),
            label: self.metrics.entry_point(name),
            series: self.metrics.series(name, None, None),
            settings: EntrySettings {
                head,
                head_timeout: millis(times.head_timeout),
                read_timeout: millis(times.read_timeout),
                stall_timeout: millis(times.stall_timeout),
                write_timeout: millis(times.write_timeout),
                idle_timeout: millis(times.idle_timeout),
                keep_alive_max_time: millis(entry.transport.keep_alive_max_time),
                keep_alive_max_requests: entry.transport.keep_alive_max_requests,
                http2: self.http2(&entry.http2, http.max_header_bytes, &at.key("http2")),
                forwarded: self.forwarded(&entry.forwarded_headers, &at.key("forwardedHeaders")),
                path: PathOptions {
                    encoded: EncodedCharacters {
                        slash: encoded.allow_encoded_slash,
                        backslash: encoded.allow_encoded_back_slash,
                        null: encoded.allow_encoded_null_character,
                        semicolon: encoded.allow_encoded_semicolon,
                        percent: encoded.allow_encoded_percent,
                        question_mark: encoded.allow_encoded_question_mark,
                        hash: encoded.allow_encoded_hash,
                    },
                    sanitize: http.sanitize_path,
                },
                semicolons: if http.encode_query_semicolons {
                    QuerySemicolons::Encode
                } else {
                    QuerySemicolons::Ampersand
                },
                underscores: match http.underscore_headers_strategy {
                    entry_point::UnderscoreHeadersStrategy::Keep => Underscores::Keep,
                    entry_point::UnderscoreHeadersStrategy::Delete => Underscores::Delete,
                    entry_point::UnderscoreHeadersStrategy::Reject => Underscores::Reject,
                },
            },
            tls: self.entry_tls(name, entry, routers.tls),
            routers: RouterTable::new(routers.plain),
            access_log: entry.observability.access_logs,
        }
    }

    fn http2(&mut self, config: &EntryPointHttp2, head_bytes: usize, at: &ConfigPath) -> ServerLimits {
        // RFC 9113 §6.5.2 and §6.9.1: a window is at most 2^31-1.
        for (key, value, least) in [
            ("maxConcurrentStreams", config.max_concurrent_streams, 1),
            ("streamWindow", config.stream_window, 1),
            ("connectionWindow", config.connection_window, 65_535),
            ("maxHeaderListSize", config.max_header_list_size, 1),
            ("maxSendBuffer", config.max_send_buffer, 1),
        ] {
            if value < least || value > i32::MAX as u32 {
                let message = format!("bad {key} {value}: expected {least} to {}", i32::MAX);
                self.problems.error(&at.key(key), message);
            }
        }
        ServerLimits {
            max_concurrent_streams: config.max_concurrent_streams,
            decoder_table: config.max_decoder_header_table_size,
            header_list: config.max_header_list_size.min(u32::try_from(head_bytes).unwrap_or(u32::MAX)),
            stream_window: config.stream_window,
            connection_window: config.connection_window,
            send_buffer: config.max_send_buffer as usize,
            read_idle_timeout: millis(config.read_idle_timeout),
            ping_timeout: millis(config.ping_timeout),
            pending_resets: config.max_pending_resets as usize,
            local_resets: config.max_local_resets as usize,
            frames: FrameLimits {
                resets: config.max_resets,
                settings: config.max_settings,
                pings: config.max_pings,
                priorities: config.max_priorities,
                empty: config.max_empty_frames,
                window_updates: config.max_window_updates,
                continuations: config.max_continuations,
            },
        }
    }

    fn entry_tls(
        &mut self,
        name: &EntryPointName,
        entry: &EntryPointConfig,
        routers: Vec<Entry>,
    ) -> Option<Box<EntryTls>> {
        if routers.is_empty() && entry.http.tls.is_none() {
            return None;
        }
        // Without them it has been said why, and the document is refused.
        let default = Arc::clone(self.tls.tls.options.get(DEFAULT)?);
        let hosts = self.tls_hosts.remove(name).unwrap_or_default();
        let options = &self.tls.tls.options;
        let hosts: Vec<_> = hosts
            .into_iter()
            .filter_map(|(host, (wanted, _))| Some((host, Arc::clone(options.get(&wanted)?))))
            .collect();
        let before = self.previous.and_then(|previous| {
            let entry = previous.entry_points.iter().find(|entry| entry.name == *name)?;
            entry.tls.as_ref().map(|tls| Arc::clone(&tls.handshakes))
        });
        Some(Box::new(EntryTls {
            routers: RouterTable::new(routers),
            options: ByName::new(hosts, default),
            handshake_timeout: millis(entry.transport.responding_timeouts.handshake_timeout),
            handshakes: before.unwrap_or_default(),
            max_handshakes: entry.max_handshakes,
        }))
    }

    /// The name of the options that a router, or its entry point, asks for.
    fn tls_options(&mut self, config: &RouterTlsConfig, at: &ConfigPath) -> Option<String> {
        let name = match config.options.as_deref().filter(|name| !name.is_empty()) {
            None => DEFAULT,
            Some(written) => local_name(written),
        };
        if name == DEFAULT || self.config.tls.options.contains_key(name) {
            return Some(name.to_owned());
        }
        if !self.is_broken(&ConfigPath::of(&["tls", "options"]).key(name)) {
            let known = self.config.tls.options.keys().map(String::as_str);
            self.problems.push(unknown("set of TLS options", name, &at.key("options"), known));
        }
        None
    }

    /// Notes which options the hosts of a router shall have. Two routers that disagree both get the default
    /// ones, as in Traefik.
    fn note_hosts(&mut self, entry: &EntryPointName, rule: &Rule, options: &str, at: &ConfigPath) {
        let hosts = rule.hosts();
        if hosts.is_empty() && options != DEFAULT {
            let problem =
                Problem::warning(at, format!("options {options:?} hold for no name: the rule has no Host"));
            self.problems
                .push(problem.hint("options are chosen by the name in the handshake; add Host(...)"));
        }
        for host in hosts {
            let known = self.tls_hosts.entry(entry.clone()).or_default();
            match known.entry(host.to_ascii_lowercase()) {
                MapEntry::Vacant(vacant) => drop(vacant.insert((options.to_owned(), at.clone()))),
                MapEntry::Occupied(mut other) if other.get().0 != options => {
                    let message = format!(
                        "host {host:?} has other TLS options in another router ({}): it gets the default ones",
                        other.get().1
                    );
                    other.get_mut().0 = DEFAULT.to_owned();
                    self.problems.push(Problem::warning(at, message).hint("name the same options in both"));
                }
                MapEntry::Occupied(_) => {}
            }
        }
    }

    /// `http.redirections`: a router before all others that sends plain requests elsewhere.
    fn redirections(
        &mut self,
        entry_configs: &BTreeMap<EntryPointName, EntryPointConfig>,
        entries: &mut BTreeMap<&EntryPointName, Routers>,
    ) {
        for (name, entry) in entry_configs {
            let Some(to) = entry.http.redirections.as_ref().and_then(|to| to.entry_point.as_ref()) else {
                continue;
            };
            let at = ConfigPath::of(&["entryPoints"]).key(name.as_str());
            let at = at.key("http").key("redirections").key("entryPoint");
            let port = match to.to.strip_prefix(':') {
                Some(port) => port.parse().ok().filter(|port| *port > 0).or_else(|| {
                    self.problems.error(&at.key("to"), format!("bad port {port:?}"));
                    None
                }),
                None => match entry_configs.get(to.to.as_str()) {
                    Some(target) => Some(target.address.port),
                    None => {
                        let known = entry_configs.keys().map(|name| name.as_str());
                        self.problems.push(unknown("entry point", &to.to, &at.key("to"), known));
                        None
                    }
                },
            };
            let Some(port) = port else { continue };
            if !matches!(to.scheme.as_str(), "http" | "https") {
                self.problems.error(&at.key("scheme"), "must be http or https");
                continue;
            }
            let lasts = if to.permanent { Lasts::ForEver } else { Lasts::Once };
            let target = to.to.strip_prefix(':').unwrap_or(&to.to);
            let middleware = MiddlewareName::new(&format!("redirect-{name}-to-{target}@internal"));
            let link = Link::Edit(Edit::RedirectScheme(RedirectScheme::new(&to.scheme, Some(port), lasts)));
            let label = self.metrics.middleware(&middleware);
            let router = format!("{name}-to-{target}@internal");
            let Ok(rule) = Rule::parse("HostRegexp(`^.+$`)") else { continue };
            let route = Arc::new(Route {
                name: RouterName::new(&router),
                chain: Box::new([ChainLink { name: middleware, label, link }]),
                service: self.internal(Internal::Noop),
                timeouts: RouteTimeouts::default(),
                importance: Importance::High,
                series: self.metrics.series(name, None, None),
                access_log: entry.observability.access_logs,
                metrics: entry.observability.metrics,
            });
            if let Some(routers) = entries.get_mut(name) {
                routers.plain.push((rule, to.priority, router, route));
            }
        }
    }

    fn forwarded(&mut self, config: &ForwardedHeadersConfig, at: &ConfigPath) -> Forwarded {
        let trusted = middleware::compile_ranges(&config.trusted_ips, &at.key("trustedIPs"), self.problems);
        let mut connection = Vec::with_capacity(config.connection.len());
        for (index, text) in config.connection.iter().enumerate() {
            match HeaderName::try_from(text) {
                Ok(name) => connection.push(name),
                Err(_) => {
                    self.problems
                        .error(&at.key("connection").index(index), format!("bad header name {text:?}"));
                }
            }
        }
        let append = !config.not_append_x_forwarded_for && !self.config.global.not_append_x_forwarded_for;
        Forwarded { insecure: config.insecure, trusted, append, connection, server: host_name() }
    }

    fn router(
        &mut self,
        name: &RouterName,
        router: &RouterConfig,
        entry_configs: &BTreeMap<EntryPointName, EntryPointConfig>,
        entries: &mut BTreeMap<&EntryPointName, Routers>,
    ) {
        let at = ConfigPath::of(&["http", "routers"]).key(name.as_str());
        let before = self.problems.len();
        let service = self.find_service(&router.service, &at.key("service"));
        let chosen = self.chosen_entries(router, &at.key("entryPoints"), entry_configs);
        let mut routes = Vec::with_capacity(chosen.len());
        for (turn, entry_name) in chosen.iter().enumerate() {
            let entry = &entry_configs[entry_name.as_str()];
            let timeouts = self.timeouts(&router.timeouts, &at.key("timeouts"), turn == 0, entry_name, entry);
            // What is wrong with a router is said once, not once an entry point.
            let mut others = Problems::new();
            let problems = if turn == 0 { &mut *self.problems } else { &mut others };
            let matching = router.path_matching.unwrap_or(entry.http.path_matching).into();
            let rule = parse_rule(router, &at.key("rule"), matching, self.remarks, problems);
            let mut context =
                CompileContext { problems, stores: &mut self.stores, router: name, path_matching: matching };
            let defs = &self.config.http.middlewares;
            let entry_at =
                ConfigPath::of(&["entryPoints"]).key(entry_name.as_str()).key("http").key("middlewares");
            let outer = middleware::compile_chain(&entry.http.middlewares, &entry_at, defs, &mut context);
            let own =
                middleware::compile_chain(&router.middlewares, &at.key("middlewares"), defs, &mut context);
            let (Some(rule), Some(outer), Some(own), Some(service)) = (rule, outer, own, &service) else {
                continue;
            };
            let metrics = self.metrics;
            let chain = middleware::join(outer, own)
                .into_iter()
                .map(|(name, link)| ChainLink { label: metrics.middleware(&name), name, link })
                .collect();
            let tls_at = match &router.tls {
                Some(_) => at.key("tls"),
                None => entry_at_of(entry_name).key("http").key("tls"),
            };
            let options = match router.tls.as_ref().or(entry.http.tls.as_ref()) {
                None => None,
                Some(tls) => match self.tls_options(tls, &tls_at) {
                    Some(options) => Some(options),
                    None => continue,
                },
            };
            let seen = &router.observability;
            let route = Arc::new(Route {
                name: name.clone(),
                chain,
                service: Arc::clone(service),
                timeouts: timeouts.clone(),
                // Probes are served when nothing else is.
                importance: if matches!(service.kind, ServiceKind::Internal(_)) {
                    Importance::High
                } else {
                    router.importance.into()
                },
                series: metrics.series(entry_name, Some(name), Some(&service.name)),
                access_log: seen.access_logs.unwrap_or(entry.observability.access_logs),
                metrics: seen.metrics.unwrap_or(entry.observability.metrics),
            });
            if let Some(options) = &options {
                self.note_hosts(entry_name, &rule, options, &at.key("tls"));
            }
            let of = (rule, router.priority, name.as_str().to_owned(), route);
            routes.push((*entry_name, options.is_some(), of));
        }
        if self.problems.errors_since(before) {
            return;
        }
        for (entry_name, is_tls, route) in routes {
            if let Some(routers) = entries.get_mut(entry_name) {
                if is_tls { routers.tls.push(route) } else { routers.plain.push(route) }
            }
        }
    }

    /// The times of a router on one entry point.
    fn timeouts(
        &mut self,
        own: &RouterTimeouts,
        at: &ConfigPath,
        says: bool,
        entry_name: &EntryPointName,
        entry: &EntryPointConfig,
    ) -> RouteTimeouts {
        let outer = &entry.http.timeouts;
        let outer_at = ConfigPath::of(&["entryPoints"]).key(entry_name.as_str()).key("http").key("timeouts");
        let (field, at) = match &own.deadline_header {
            Some(field) => (Some(field), at),
            None => (outer.deadline_header.as_ref(), &outer_at),
        };
        let field = field.filter(|field| !field.is_empty());
        let mut others = Problems::new();
        let problems = if says { &mut *self.problems } else { &mut others };
        let or = |own: Option<HumanDuration>, outer: Option<HumanDuration>| own.or(outer).map(millis);
        RouteTimeouts {
            request: or(own.request, outer.request),
            attempt: or(own.attempt, outer.attempt),
            connect: or(own.connect, outer.connect),
            response_header: or(own.response_header, outer.response_header),
            idle: or(own.idle, outer.idle),
            deadline_header: field.and_then(|field| header_name(field, &at.key("deadlineHeader"), problems)),
        }
    }

    fn chosen_entries<'e>(
        &mut self,
        router: &RouterConfig,
        at: &ConfigPath,
        entries: &'e BTreeMap<EntryPointName, EntryPointConfig>,
    ) -> Vec<&'e EntryPointName> {
        if router.entry_points.is_empty() {
            return entries::default_entry_points(entries);
        }
        if self.entry_points_elsewhere {
            // Said once: it is the same for every router.
            if !std::mem::replace(&mut self.said_so, true) {
                let problem = Problem::warning(
                    at,
                    "names of entry points are not checked, because this file defines none",
                );
                let hint = "check the main file, which names this one under providers.file, to check both";
                self.problems.push(problem.hint(hint));
            }
            return entries::default_entry_points(entries);
        }
        let mut chosen = Vec::new();
        for (index, name) in router.entry_points.iter().enumerate() {
            match entries.get_key_value(name.as_str()) {
                Some((name, _)) if chosen.contains(&name) => {}
                Some((name, _)) => chosen.push(name),
                // It has been said what is wrong with that entry point.
                None if self.is_broken(&ConfigPath::of(&["entryPoints", name])) => {}
                None => {
                    let known = entries.keys().map(|name| name.as_str());
                    self.problems.push(unknown("entry point", name, &at.index(index), known));
                }
            }
        }
        chosen
    }

    /// The service a router or a weighted service names.
    fn find_service(&mut self, text: &str, at: &ConfigPath) -> Option<Arc<Service>> {
        let (name, provider) = text.split_once('@').unwrap_or((text, "file"));
        if provider == "internal" {
            let internal = match name {
                "api" => Internal::Api,
                "ping" => Internal::Ping,
                "prometheus" => Internal::Prometheus,
                "noop" => Internal::Noop,
                "dashboard" | "rest" | "acme-http" => {
                    self.problems.error(at, format!("{text} is not supported yet"));
                    return None;
                }
                _ => {
                    let known = ["api@internal", "ping@internal", "prometheus@internal", "noop@internal"];
                    self.problems.push(unknown("service", text, at, known));
                    return None;
                }
            };
            return Some(self.internal(internal));
        }
        if provider != "file" {
            let problem = Problem::error(at, format!("service {text:?} is of a provider that is not there"));
            self.problems.push(problem.hint(format!("write {name:?} or \"{name}@file\"")));
            return None;
        }
        let name = ServiceName::new(name);
        if !self.config.http.services.contains_key(&name) {
            let name = name.as_str();
            if self.is_broken(&ConfigPath::of(&["http", "services"]).key(name)) {
                self.problems.error(at, format!("service {name:?} has errors"));
            } else {
                let broken = self.broken_names("services");
                let known = self.config.http.services.keys().map(|name| name.as_str());
                let known = known.chain(broken.iter().map(String::as_str));
                let problem = unknown("service", name, at, known);
                self.problems.push(problem);
            }
            return None;
        }
        let service = self.service(&name);
        if service.is_none() {
            self.problems.error(at, format!("service {:?} has errors", name.as_str()));
        }
        service
    }

    /// Whether an item was left out because it could not even be read.
    fn is_broken(&self, path: &ConfigPath) -> bool {
        self.problems.iter().any(|problem| problem.path.starts_with(path))
    }

    /// The names of items of a block that could not even be read.
    fn broken_names(&self, block: &str) -> BTreeSet<String> {
        let of_block = ConfigPath::of(&["http", block]);
        let paths = self.problems.iter().map(|problem| &problem.path);
        paths
            .filter(|path| path.starts_with(&of_block))
            .filter_map(|path| match path.steps().get(2) {
                Some(Step::Key(name)) => Some(name.to_string()),
                Some(Step::Index(_)) | None => None,
            })
            .collect()
    }

    fn internal(&self, internal: Internal) -> Arc<Service> {
        let name = ServiceName::new(match internal {
            Internal::Api => "api@internal",
            Internal::Ping => "ping@internal",
            Internal::Prometheus => "prometheus@internal",
            Internal::Noop => "noop@internal",
        });
        Arc::new(Service { label: self.metrics.service(&name), name, kind: ServiceKind::Internal(internal) })
    }

    fn service(&mut self, name: &ServiceName) -> Option<Arc<Service>> {
        if let Some(known) = self.services.get(name) {
            return known.clone();
        }
        let config = self.config.http.services.get(name)?;
        let at = ConfigPath::of(&["http", "services"]).key(name.as_str());
        let before = self.problems.len();
        let kind = match config.kinds().as_slice() {
            [_] => self.kind(name, config, &at),
            [] => {
                if !self.is_broken(&at) {
                    let problem = Problem::error(&at, "a service needs a type");
                    self.problems.push(problem.hint(ServiceConfig::KINDS.join(", ")));
                }
                None
            }
            [..] => {
                let problem = Problem::error(&at, "a service has exactly one type, and this one has more");
                self.problems.push(problem.hint("make several services of it"));
                None
            }
        };
        let service = kind
            .filter(|_| !self.problems.errors_since(before))
            .map(|kind| Arc::new(Service { name: name.clone(), label: self.metrics.service(name), kind }));
        self.services.insert(name.clone(), service.clone());
        service
    }

    fn kind(&mut self, name: &ServiceName, config: &ServiceConfig, at: &ConfigPath) -> Option<ServiceKind> {
        self.under_way.push(name.clone());
        let kind = if let Some(balancer) = &config.load_balancer {
            self.balanced(name, balancer, &at.key("loadBalancer"))
        } else if let Some(weighted) = &config.weighted {
            self.weighted(name, weighted, &at.key("weighted"))
        } else if let Some(hashed) = &config.highest_random_weight {
            self.hashed(hashed, &at.key("highestRandomWeight"))
        } else if let Some(failover) = &config.failover {
            self.failover(failover, &at.key("failover"))
        } else if let Some(mirroring) = &config.mirroring {
            self.mirroring(name, mirroring, &at.key("mirroring"))
        } else {
            None
        };
        self.under_way.pop();
        kind
    }

    /// A service that another one leads to.
    fn child(&mut self, name: &str, at: &ConfigPath) -> Option<Arc<Service>> {
        let plain = name.strip_suffix("@file").unwrap_or(name);
        if self.under_way.iter().any(|name| name.as_str() == plain) {
            let round = self.under_way.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" -> ");
            self.problems.error(at, format!("services lead in a circle: {round} -> {plain}"));
            return None;
        }
        self.find_service(name, at)
    }

    /// Services by weight, with the names they are written by.
    fn children<'c>(
        &mut self,
        services: &'c [WeightedServiceConfig],
        at: &ConfigPath,
    ) -> Vec<(&'c str, u32, Arc<Service>)> {
        let mut children = Vec::with_capacity(services.len());
        for (index, child) in services.iter().enumerate() {
            let at = at.key("services").index(index).key("name");
            if let Some(service) = self.child(&child.name, &at) {
                let weight = u32::try_from(child.weight.max(0)).unwrap_or(u32::MAX);
                children.push((child.name.as_str(), weight, service));
            }
        }
        children
    }

    fn weighted(
        &mut self,
        name: &ServiceName,
        config: &WeightedConfig,
        at: &ConfigPath,
    ) -> Option<ServiceKind> {
        let children = self.children(&config.services, at);
        let weights: Vec<u32> = children.iter().map(|(_, weight, _)| *weight).collect();
        let sticky = balancing::sticky(config.sticky.as_ref(), name, at, self.problems).map(|sticky| {
            let tags = children.iter().map(|(name, ..)| Tag::of(name)).collect();
            Box::new(StickyChildren { sticky, tags })
        });
        let children: Box<[_]> = children.into_iter().map(|(.., service)| service).collect();
        self.warn_of_unchecked(config.health_check.is_some(), &children, at);
        let start = self.previous_service(name).and_then(|service| {
            if let ServiceKind::Weighted(weighted) = &service.kind {
                Some(weighted.turns.turn())
            } else {
                None
            }
        });
        let turns = WeightedChildren::new(&weights, start.unwrap_or(0));
        Some(ServiceKind::Weighted(Weighted { turns, children, sticky }))
    }

    fn hashed(&mut self, config: &HighestRandomWeightConfig, at: &ConfigPath) -> Option<ServiceKind> {
        let children = self.children(&config.services, at);
        let choice = HashedChildren::new(children.iter().map(|(name, weight, _)| (*name, *weight)));
        let children: Box<[_]> = children.into_iter().map(|(.., service)| service).collect();
        self.warn_of_unchecked(config.health_check.is_some(), &children, at);
        Some(ServiceKind::Hashed(Hashed { choice, children }))
    }

    fn failover(&mut self, config: &FailoverConfig, at: &ConfigPath) -> Option<ServiceKind> {
        let service = self.child(&config.service, &at.key("service"));
        let fallback = self.child(&config.fallback, &at.key("fallback"));
        let errors = match &config.errors {
            None => None,
            Some(errors) => Some(balancing::failover_errors(errors, &at.key("errors"), self.problems)?),
        };
        let (service, fallback) = (service?, fallback?);
        self.warn_of_unchecked(config.health_check.is_some(), std::slice::from_ref(&service), at);
        Some(ServiceKind::Failover(Failover { service, fallback, errors }))
    }

    fn mirroring(
        &mut self,
        name: &ServiceName,
        config: &MirroringConfig,
        at: &ConfigPath,
    ) -> Option<ServiceKind> {
        let service = self.child(&config.service, &at.key("service"));
        let mut mirrors = Vec::with_capacity(config.mirrors.len());
        for (index, mirror) in config.mirrors.iter().enumerate() {
            if let Some(service) = self.child(&mirror.name, &at.key("mirrors").index(index).key("name")) {
                mirrors.push(Mirror { service, percent: Percent::new(mirror.percent) });
            }
        }
        let service = service?;
        self.warn_of_unchecked(config.health_check.is_some(), std::slice::from_ref(&service), at);
        let limit = u64::try_from(config.max_body_size).unwrap_or(u64::MAX).min(config.max_held_bytes);
        // Copies under way count against the same bounds after a reload.
        let previous = self.previous_service(name).and_then(|service| {
            if let ServiceKind::Mirroring(mirroring) = &service.kind { Some(mirroring) } else { None }
        });
        let places = previous.map(|old| &old.places).filter(|places| places.max() == config.max_concurrent);
        let room = previous.map(|old| &old.room).filter(|room| room.max() == config.max_held_bytes);
        Some(ServiceKind::Mirroring(Mirroring {
            service,
            mirrors: mirrors.into(),
            body_limit: config.mirror_body.then_some(limit),
            timeout: config.timeout.non_zero(),
            places: places.map_or_else(|| MirrorPlaces::new(config.max_concurrent), Arc::clone),
            room: room.map_or_else(|| Room::new(config.max_held_bytes), Arc::clone),
        }))
    }

    /// `healthCheck: {}` passes on what checks find; where nobody checks, that is nothing.
    fn warn_of_unchecked(&mut self, passes: bool, children: &[Arc<Service>], at: &ConfigPath) {
        let unchecked = children.iter().find(|child| {
            let balancer = self.config.http.services.get(&child.name).and_then(|s| s.load_balancer.as_ref());
            balancer.is_some_and(|balancer| balancer.health_check.is_none())
        });
        if let Some(child) = unchecked.filter(|_| passes) {
            let problem = Problem::warning(
                &at.key("healthCheck"),
                format!("nobody checks the health of {:?}, so it counts as healthy", child.name.as_str()),
            );
            self.problems.push(problem.hint("give its loadBalancer a healthCheck"));
        }
    }

    fn balanced(
        &mut self,
        name: &ServiceName,
        config: &LoadBalancerConfig,
        at: &ConfigPath,
    ) -> Option<ServiceKind> {
        let mut servers = Vec::with_capacity(config.servers.len());
        let mut seen = BTreeSet::new();
        for (index, server) in config.servers.iter().enumerate() {
            let at = at.key("servers").index(index).key("url");
            match ServerUrl::parse(&server.url) {
                Ok(url) => {
                    if !seen.insert(url.as_str().to_owned()) {
                        self.problems.warn(&at, format!("server {url} is listed twice", url = server.url));
                    }
                    servers.push(ServerSpec {
                        url,
                        weight: if server.drain {
                            0
                        } else {
                            u32::try_from(server.weight.max(0)).unwrap_or(u32::MAX)
                        },
                        tier: balancing::tier(server, &self.config.zone, &config.spillover),
                        path_use: if server.preserve_path { PathUse::Prefix } else { PathUse::Ignored },
                    });
                }
                Err(error) => self.problems.error(&at, error.to_string()),
            }
        }
        if servers.is_empty() && config.servers.is_empty() {
            self.problems.warn(at, "no servers: every request will be answered with 503");
        }
        let health = config.health_check.as_ref().map(|check| self.health(check, &at.key("healthCheck")));
        let scheme = config.health_check.as_ref().and_then(|check| match check.scheme.as_deref() {
            Some("http") => Some(Scheme::Http),
            Some("https") => Some(Scheme::Https),
            Some(_) | None => None,
        });
        let uses_tls = scheme == Some(Scheme::Https)
            || servers.iter().any(|server| server.url.scheme() == Scheme::Https);
        let transport = self.transport(config, uses_tls, at)?;
        let outbound = match &config.outbound_limit {
            Some(limit) => Some(Box::new(self.outbound(name, limit, &at.key("outboundLimit"))?)),
            None => None,
        };
        let attempts_header = config
            .retry
            .attempts_header
            .as_ref()
            .and_then(|field| header_name(field, &at.key("retry").key("attemptsHeader"), self.problems));
        let strategy = balancing::strategy(config.strategy);
        let (hash_by, max_load) = balancing::hash(config.hash.as_ref(), strategy, at, self.problems);
        let sticky = balancing::sticky(config.sticky.as_ref(), name, at, self.problems).map(Box::new);
        let care = care(config);
        let discovery = config
            .dns_discovery
            .as_ref()
            .and_then(|discovery| self.discovery(discovery, &servers, &at.key("dnsDiscovery")));
        let budget_settings = RetryBudgetSettings {
            percent: config.retry.budget_percent.into(),
            min_per_second: config.retry.budget_min_per_second,
        };
        let previous = self.previous_service(name).and_then(|service| {
            if let ServiceKind::Balanced(balanced) = &service.kind { Some(&**balanced) } else { None }
        });
        let (endpoints, balancer, budget) = match previous {
            Some(old) => {
                let same = old.balancer.strategy() == strategy && old.balancer.max_load() == max_load;
                let balancer = if same {
                    Arc::clone(&old.balancer)
                } else {
                    Arc::new(Balancer::new(strategy, old.balancer.turn()).bounded(max_load))
                };
                let (endpoints, budget) = (Arc::clone(&old.endpoints), Arc::clone(&old.budget));
                let live = Arc::clone(&endpoints);
                self.endpoints.push(Renewal { live, servers, care, discovers: discovery.is_some() });
                self.budgets.push((Arc::clone(&budget), budget_settings));
                (endpoints, balancer, budget)
            }
            None => {
                let endpoints = Arc::new(LiveEndpoints::new(EndpointSet::build(&servers, None, care)));
                if discovery.is_some() {
                    endpoints.discover(true);
                    endpoints.rebuild(&servers, care);
                }
                (
                    endpoints,
                    Arc::new(Balancer::new(strategy, 0).bounded(max_load)),
                    Arc::new(RetryBudget::new(budget_settings)),
                )
            }
        };
        let limits = Limits {
            requests: config.max_requests,
            connections: config.max_connections,
            requests_each: transport.max_requests,
            connections_each: transport.max_connections,
            waiting: config.queue.size,
            patience: millis(config.queue.timeout),
        };
        let hedge = config.hedge.as_ref().and_then(|hedge| self.hedge(hedge, &at.key("hedge"), previous));
        let adaptive = config
            .adaptive_concurrency
            .as_ref()
            .and_then(|adaptive| self.adaptive(adaptive, &at.key("adaptiveConcurrency"), previous));
        let allowed = adaptive.as_ref().map_or(0, |adaptive| adaptive.limit());
        let wanted = limits.any() || adaptive.is_some();
        let lobby = match previous.and_then(|old| old.lobby.as_ref()) {
            Some(old) => {
                self.lobbies.push((Arc::clone(old), limits, allowed));
                wanted.then(|| Arc::clone(old))
            }
            None => wanted.then(|| {
                let lobby = Lobby::new(limits);
                lobby.allow(allowed);
                lobby
            }),
        };
        self.watched.insert(name.clone(), (Arc::clone(&endpoints), watch_settings(config)));
        if let Some(discovery) = discovery {
            self.discovered.insert(name.clone(), (Arc::clone(&endpoints), discovery));
        }
        if let Some(Some(settings)) = health {
            let settings = HealthSettings { scheme, tls: transport.tls.clone(), ..settings };
            self.health.insert(name.clone(), (Arc::clone(&endpoints), settings));
        }
        Some(ServiceKind::Balanced(Box::new(Balanced {
            endpoints,
            balancer,
            sticky,
            hash_by,
            pass_host_header: config.pass_host_header,
            transport,
            attempts: config.retry.attempts.into(),
            retry_interval: millis(config.retry.initial_interval),
            attempts_header,
            budget,
            lobby,
            hedge,
            adaptive,
            outbound,
        })))
    }

    fn outbound(
        &mut self,
        name: &ServiceName,
        config: &OutboundLimitConfig,
        at: &ConfigPath,
    ) -> Option<Outbound> {
        let before = self.problems.len();
        let average = NonZeroU64::new(config.average);
        if average.is_none() {
            let problem = Problem::error(&at.key("average"), "average must be at least 1");
            self.problems.push(problem.hint("leave outboundLimit out for no limit"));
        }
        let burst = NonZeroU64::new(config.burst);
        if burst.is_none() {
            self.problems.error(&at.key("burst"), "burst must be at least 1");
        }
        let period = config.period.non_zero();
        if period.is_none() {
            self.problems.error(&at.key("period"), "period must be more than 0");
        }
        let status = StatusCode::from_u16(config.status).ok().filter(|status| status.as_u16() >= 400);
        if status.is_none_or(|status| status.as_u16() > 599) {
            self.problems.error(&at.key("status"), "the status of a refusal must be 400 to 599");
        }
        let redis = config.redis.as_ref();
        let redis = redis.and_then(|redis| redis.compile(OUTBOUND_BUCKETS, &at.key("redis"), self.problems));
        if self.problems.errors_since(before) {
            return None;
        }
        let quota = Quota::new(average?, period?, burst?).queueing(config.max_wait.0, config.max_queue);
        let scope = match config.scope {
            OutboundScope::Service => PaceScope::Service,
            OutboundScope::Server => PaceScope::Endpoint,
        };
        let bound = Bound::buckets(OUTBOUND_BUCKETS);
        let store_name = format!("outbound/{name}");
        let store = self.stores.rate(&store_name, bound);
        let limit = Arc::new(Limit::new([Window { name: "outbound".into(), quota }]));
        let pauses = self.stores.keep(&store_name, Pauses::default);
        let shared = redis.map(|redis| {
            let (limit, pauses) = (Arc::clone(&limit), Arc::clone(&pauses));
            redis.bind(&store_name, limit, GivesBack::No, pauses, &mut self.stores.redis)
        });
        let local = LocalLimit::new(store, limit, bound, nanos(clock::instant()));
        let pace = local.map(|local| Pace::new(local, shared, pauses, scope, config.max_pause.0));
        if pace.is_none() {
            let problem = Problem::error(at, "the limit was changed too often while requests ran");
            self.problems.push(problem.hint("try again when older requests have ended"));
        }
        Some(Outbound { pace: pace?, status: status? })
    }

    fn hedge(
        &mut self,
        config: &HedgeConfig,
        at: &ConfigPath,
        previous: Option<&Balanced>,
    ) -> Option<Arc<Hedge>> {
        if !(0.0..100.0).contains(&config.quantile) {
            let problem = Problem::error(&at.key("quantile"), "a quantile is at least 0 and less than 100");
            self.problems.push(problem.hint("95: when an answer is later than 95 of 100 are"));
            return None;
        }
        if config.quantile == 0.0 && config.delay.0.is_zero() {
            let problem = Problem::error(&at.key("delay"), "every request would be sent twice");
            self.problems.push(problem.hint("write delay: 100ms, or quantile: 95"));
            return None;
        }
        let settings = HedgeSettings { delay: millis(config.delay), percent: config.quantile };
        let old = previous.and_then(|old| old.hedge.as_ref()).filter(|old| old.settings() == settings);
        Some(old.map_or_else(|| Arc::new(Hedge::new(settings)), Arc::clone))
    }

    fn adaptive(
        &mut self,
        config: &AdaptiveConcurrencyConfig,
        at: &ConfigPath,
        previous: Option<&Balanced>,
    ) -> Option<Arc<Adaptive>> {
        let before = self.problems.len();
        if config.min == 0 {
            self.problems.error(&at.key("min"), "min must be at least 1");
        }
        if config.max < config.min {
            let message = format!("max {} is less than min {}", config.max, config.min);
            self.problems.error(&at.key("max"), message);
        }
        if !(1.0..=100.0).contains(&config.tolerance) {
            let problem = Problem::error(&at.key("tolerance"), "tolerance is from 1 to 100");
            self.problems.push(problem.hint("1.5: half as much again as the least latency is still good"));
        }
        if self.problems.errors_since(before) {
            return None;
        }
        let settings = AdaptiveSettings {
            initial: config.initial,
            min: config.min,
            max: config.max,
            tolerance: config.tolerance,
        };
        let old = previous.and_then(|old| old.adaptive.as_ref()).filter(|old| old.settings() == settings);
        Some(old.map_or_else(|| Arc::new(Adaptive::new(settings)), Arc::clone))
    }

    fn transport(
        &mut self,
        config: &LoadBalancerConfig,
        uses_tls: bool,
        at: &ConfigPath,
    ) -> Option<Transport> {
        let mut named = None;
        let settings = match &config.servers_transport {
            None => &self.config.servers_transport,
            Some(text) => {
                let name = text.strip_suffix("@file").unwrap_or(text);
                match self.config.http.servers_transports.get(name) {
                    Some(settings) => {
                        named = Some(name);
                        settings
                    }
                    None if text == "default@internal" => &self.config.servers_transport,
                    None => {
                        let known = self.config.http.servers_transports.keys().map(String::as_str);
                        let problem = unknown("serversTransport", name, &at.key("serversTransport"), known);
                        self.problems.push(problem);
                        return None;
                    }
                }
            }
        };
        let tls = if uses_tls { Some(self.tls.transport(named, settings, self.problems)?) } else { None };
        let times = &settings.forwarding_timeouts;
        let own = &config.timeouts;
        Some(Transport {
            request_timeout: millis(own.request),
            attempt_timeout: millis(own.attempt),
            tls_handshake_timeout: millis(times.tls_handshake_timeout),
            tls,
            dial_timeout: millis(own.connect.unwrap_or(times.dial_timeout)),
            response_header_timeout: millis(own.response_header.unwrap_or(times.response_header_timeout)),
            idle_timeout: millis(own.idle.unwrap_or(times.idle_timeout)),
            idle_conn_timeout: millis(times.idle_conn_timeout),
            // Traefik's negative number keeps no connection.
            max_idle: u32::try_from(settings.max_idle_conns_per_host).unwrap_or(0),
            http2: ClientLimits {
                read_idle_timeout: millis(times.read_idle_timeout),
                ping_timeout: millis(times.ping_timeout),
                max_concurrent_streams: settings.http2.max_concurrent_streams,
                stream_window: settings.http2.stream_window,
                connection_window: settings.http2.connection_window,
            },
            max_connections: settings.max_conns_per_host,
            max_requests: settings.max_requests_per_host,
        })
    }

    fn discovery(
        &mut self,
        config: &DnsDiscoveryConfig,
        servers: &[ServerSpec],
        at: &ConfigPath,
    ) -> Option<DnsSettings> {
        let interval = config.interval.0;
        if interval < LEAST_LOOKUP_INTERVAL {
            let message = format!("too short: at least {}", HumanDuration(LEAST_LOOKUP_INTERVAL));
            self.problems.error(&at.key("interval"), message);
        }
        let named = servers.iter().filter(|server| server.url.address().is_none());
        let names: BTreeSet<_> = named.map(|server| server.url.host().to_owned()).collect();
        if names.is_empty() {
            let problem = Problem::warning(at, "no server has a name that could be looked up");
            self.problems.push(problem.hint("write the name of a headless Service in place of an address"));
            return None;
        }
        Some(DnsSettings { names: names.into_iter().collect(), interval })
    }

    fn health(&mut self, config: &HealthCheckConfig, at: &ConfigPath) -> Option<HealthSettings> {
        let before = self.problems.len();
        let mode = match config.mode {
            HealthCheckMode::Http => Mode::Http,
            HealthCheckMode::Grpc => Mode::Grpc(config.grpc_service.as_str().into()),
            HealthCheckMode::Tcp => Mode::Tcp,
        };
        let path = match &mode {
            Mode::Http => {
                PathAndQuery::try_from(config.path.as_str()).ok().filter(|_| config.path.starts_with('/'))
            }
            Mode::Grpc(_) | Mode::Tcp => Some(PathAndQuery::from_static("/")),
        };
        if path.is_none() {
            self.problems.error(&at.key("path"), format!("bad path {:?}: it must begin with /", config.path));
        }
        let method = Method::try_from(config.method.as_str());
        if method.is_err() {
            self.problems.error(&at.key("method"), format!("bad method {:?}", config.method));
        }
        let expected = match &config.status.0[..] {
            [] => ExpectedStatus::Success,
            ranges => ExpectedStatus::OneOf(ranges.into()),
        };
        let hostname = config.hostname.as_ref().map(|hostname| HeaderValue::try_from(hostname.as_str()));
        if let Some(Err(_)) = hostname {
            self.problems.error(&at.key("hostname"), "bad host name");
        }
        let mut headers = http::HeaderMap::new();
        for (name, value) in &config.headers {
            match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
                (Ok(name), Ok(value)) => {
                    headers.append(name, value);
                }
                _ => self.problems.error(&at.key("headers").key(name), "bad header"),
            }
        }
        if self.problems.errors_since(before) {
            return None;
        }
        let mut settings = HealthSettings::new(path?);
        settings.method = method.ok()?;
        settings.mode = mode;
        settings.expected = expected;
        settings.expected_body = config.expected_body.as_deref().map(Into::into);
        settings.thresholds = Thresholds {
            rise: NonZeroU32::new(config.rise).unwrap_or(NonZeroU32::MIN),
            fall: NonZeroU32::new(config.fall).unwrap_or(NonZeroU32::MIN),
        };
        settings.port = (config.port != 0).then_some(config.port);
        settings.hostname = hostname.and_then(Result::ok);
        settings.headers = headers;
        settings.interval = config.interval.0;
        settings.unhealthy_interval = config.unhealthy_interval.unwrap_or(config.interval).0;
        settings.timeout = config.timeout.0;
        settings.redirects = if config.follow_redirects { Redirects::Follow } else { Redirects::Answer };
        Some(settings)
    }
}

fn entry_at_of(name: &EntryPointName) -> ConfigPath {
    ConfigPath::of(&["entryPoints"]).key(name.as_str())
}

/// How a service's set treats its endpoints.
fn care(config: &LoadBalancerConfig) -> Care {
    let checks = config.health_check.as_ref();
    Care {
        watch: if checks.is_some() { Watch::Checked } else { Watch::Unchecked },
        initial: match checks.map(|check| check.initial_state) {
            Some(InitialState::Down) => Status::Down,
            Some(InitialState::Up) | None => Status::Up,
        },
        first_warmth: config.slow_start.as_ref().map_or(WARM, |slow_start| slow_start.min_weight_percent),
        panic_percent: config.panic_threshold,
    }
}

/// How the answers of a service's endpoints are watched.
fn watch_settings(config: &LoadBalancerConfig) -> WatchSettings {
    let outliers = &config.outlier_detection;
    let passive = config.passive_health_check.as_ref();
    let window = passive.map_or(HumanDuration::secs(10), |passive| passive.failure_window);
    WatchSettings {
        outliers: outliers.enabled.then(|| OutlierSettings {
            window: millis(outliers.window.unwrap_or(window)),
            max_failed_attempts: passive.map_or(0, |passive| passive.max_failed_attempts),
            consecutive_5xx: outliers.consecutive_5xx,
            consecutive_gateway_errors: outliers.consecutive_gateway_errors,
            consecutive_local_errors: outliers.consecutive_local_errors,
            failure_share_deviation: outliers.failure_share_deviation,
            latency_factor: outliers.latency_factor,
            latency_floor: millis(outliers.latency_floor),
            stall_timeout: millis(outliers.stall_timeout),
            minimum_requests: outliers.minimum_requests,
            rehearsal_interval: millis(outliers.rehearsal_interval),
            base_ejection_time: millis(outliers.base_ejection_time.unwrap_or(window)),
            max_ejection_time: millis(outliers.max_ejection_time),
            max_ejection_percent: outliers.max_ejection_percent,
        }),
        slow_start: config.slow_start.as_ref().map(|slow_start| SlowStart {
            duration: millis(slow_start.duration),
            min_percent: slow_start.min_weight_percent,
            aggression: slow_start.aggression,
        }),
    }
}

fn check_transport(config: &ServersTransportConfig, at: &ConfigPath, problems: &mut Problems) {
    if config.forwarding_timeouts.dial_timeout.0.is_zero() {
        let at = at.key("forwardingTimeouts").key("dialTimeout");
        problems.warn(&at, "dialTimeout 0 waits for a connection as long as the system does");
    }
}

fn parse_rule(
    router: &RouterConfig,
    at: &ConfigPath,
    matching: PathMatching,
    remarks: Remarks,
    problems: &mut Problems,
) -> Option<Rule> {
    match Rule::parse_with(&router.rule, matching) {
        Ok(rule) => {
            let wanted =
                |remark: &&Remark| remarks == Remarks::All || remark.kind == RemarkKind::NeverMatches;
            for remark in rule.remarks().iter().filter(wanted) {
                let mut problem = Problem::warning(at, remark.message.clone()).within(remark.at.clone());
                problem.hint.clone_from(&remark.hint);
                problems.push(problem);
            }
            Some(rule)
        }
        Err(error) => {
            let mut problem = Problem::error(at, error.message).within(error.at);
            problem.hint = error.hint;
            problems.push(problem);
            None
        }
    }
}

fn unknown<'a>(what: &str, name: &str, at: &ConfigPath, known: impl IntoIterator<Item = &'a str>) -> Problem {
    let known: Vec<&str> = known.into_iter().collect();
    let problem = Problem::error(at, format!("unknown {what} {name:?}"));
    match nearest(name, known.iter().copied()) {
        Some(near) => problem.hint(format!("did you mean {near:?}?")),
        None if known.is_empty() => problem.hint(format!("there is no {what} at all")),
        None if known.len() <= 8 => problem.hint(format!("there is {}", known.join(", "))),
        None => problem,
    }
}

fn header_name(field: &str, at: &ConfigPath, problems: &mut Problems) -> Option<HeaderName> {
    let name = HeaderName::try_from(field).ok();
    if name.is_none() {
        problems.error(at, format!("bad header name {field:?}"));
    }
    name
}

fn millis(duration: HumanDuration) -> Millis {
    clock::millis(duration.0)
}

/// The name of this host, for `X-Forwarded-Server`.
fn host_name() -> HeaderValue {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    HeaderValue::try_from(name.trim()).unwrap_or_else(|_| HeaderValue::from_static("sluicegate"))
}
