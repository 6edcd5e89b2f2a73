//! Adding up the cores' cells and writing the page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foldhash::fast::RandomState;

use crate::telemetry::metrics::cell::{Bounds, Totals};
use crate::telemetry::metrics::core::{Figure, SmallKey};
use crate::telemetry::metrics::labels::{
    CloseReason, ConnectOutcome, ExchangeKey, FailoverReason, Handshake, HashOutcome, HedgeWinner,
    Http2Flood, Http2Reset, LimitDecision, MirrorOutcome, RehearsalOutcome, RetryReason, SpillTo,
    StickyOutcome, TimeoutKind,
};
use crate::telemetry::metrics::page::{Labels, Page, Value};
use crate::telemetry::metrics::{
    EndpointState, Kind, Metric, Metrics, MetricsSettings, Names, declared, process,
};

/// What all cores counted, added up.
#[derive(Debug, Default)]
struct Sums {
    exchanges: HashMap<u64, Totals, RandomState>,
    small: HashMap<SmallKey, u64, RandomState>,
    refusals: BTreeMap<(&'static str, &'static str), u64>,
}

/// Names, code, method, protocol; names are one (entry point, service) or two (router and service).
type ExchangeLabels = (String, String, String, &'static str, &'static str);

/// The four metrics of one way to group exchanges.
struct ExchangeFamilies {
    names: &'static [&'static str],
    requests: Metric,
    duration: Metric,
    bytes_in: Metric,
    bytes_out: Metric,
}

/// Every small figure's place among the labels: which names it is counted by and which word it adds.
pub(super) struct SmallFamily {
    pub(super) metric: Metric,
    figure: Figure,
    pub(super) name: Option<(&'static str, Kindred)>,
    pub(super) word: Option<(&'static str, Word)>,
}

/// The label value of an enum's number.
pub(super) type Word = fn(u8) -> &'static str;

/// Which table a small figure's name is in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kindred {
    EntryPoint,
    Service,
    Middleware,
}

pub(super) const SMALL: &[SmallFamily] = &[
    SmallFamily {
        metric: declared::TIMEOUTS,
        figure: Figure::Timeout,
        name: None,
        word: Some(("kind", |value| TimeoutKind::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::CONNECTIONS_ACCEPTED,
        figure: Figure::Accepted,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: None,
    },
    SmallFamily {
        metric: declared::CONNECTIONS_CLOSED,
        figure: Figure::Closed,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: Some(("reason", |value| CloseReason::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::TLS_HANDSHAKES,
        figure: Figure::Handshake,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: Some(("outcome", |value| Handshake::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::TLS_HANDSHAKING,
        figure: Figure::Handshaking,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: None,
    },
    SmallFamily {
        metric: declared::HTTP2_FLOODS,
        figure: Figure::Http2Flood,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: Some(("kind", |value| Http2Flood::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::HTTP2_RESETS,
        figure: Figure::Http2Reset,
        name: Some(("entrypoint", Kindred::EntryPoint)),
        word: Some(("code", |value| Http2Reset::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::UPSTREAM_CONNECTS,
        figure: Figure::UpstreamConnect,
        name: Some(("service", Kindred::Service)),
        word: Some(("outcome", |value| ConnectOutcome::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::UPSTREAM_IDLE,
        figure: Figure::PoolIdle,
        name: Some(("service", Kindred::Service)),
        word: None,
    },
    SmallFamily {
        metric: declared::RETRIES,
        figure: Figure::Retry,
        name: Some(("service", Kindred::Service)),
        word: Some(("reason", |value| RetryReason::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::RETRY_BUDGET_EXHAUSTED,
        figure: Figure::BudgetExhausted,
        name: Some(("service", Kindred::Service)),
        word: None,
    },
    SmallFamily {
        metric: declared::NON_IDEMPOTENT_LOST,
        figure: Figure::LostNonIdempotent,
        name: Some(("service", Kindred::Service)),
        word: None,
    },
    SmallFamily {
        metric: declared::HEDGES,
        figure: Figure::Hedge,
        name: Some(("service", Kindred::Service)),
        word: Some(("winner", |value| HedgeWinner::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::STICKY,
        figure: Figure::Sticky,
        name: Some(("service", Kindred::Service)),
        word: Some(("outcome", |value| StickyOutcome::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::HASH_MISSES,
        figure: Figure::Hash,
        name: Some(("service", Kindred::Service)),
        word: Some(("reason", |value| HashOutcome::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::SPILLS,
        figure: Figure::Spill,
        name: Some(("service", Kindred::Service)),
        word: Some(("to", |value| SpillTo::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::FAILOVERS,
        figure: Figure::Failover,
        name: Some(("service", Kindred::Service)),
        word: Some(("reason", |value| FailoverReason::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::MIRRORED,
        figure: Figure::Mirror,
        name: Some(("service", Kindred::Service)),
        word: Some(("outcome", |value| MirrorOutcome::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::REHEARSALS,
        figure: Figure::Rehearsal,
        name: Some(("service", Kindred::Service)),
        word: Some(("outcome", |value| RehearsalOutcome::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::LIMIT_DECISIONS,
        figure: Figure::Limit,
        name: Some(("middleware", Kindred::Middleware)),
        word: Some(("decision", |value| LimitDecision::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::OUTBOUND_DECISIONS,
        figure: Figure::Outbound,
        name: Some(("service", Kindred::Service)),
        word: Some(("decision", |value| LimitDecision::ALL[usize::from(value)].as_str())),
    },
    SmallFamily {
        metric: declared::OUTBOUND_PAUSES,
        figure: Figure::Pause,
        name: Some(("service", Kindred::Service)),
        word: None,
    },
];

const BY_ENTRY_POINT: ExchangeFamilies = ExchangeFamilies {
    names: &["entrypoint"],
    requests: declared::ENTRYPOINT_REQUESTS,
    duration: declared::ENTRYPOINT_DURATION,
    bytes_in: declared::ENTRYPOINT_BYTES_IN,
    bytes_out: declared::ENTRYPOINT_BYTES_OUT,
};

const BY_ROUTER: ExchangeFamilies = ExchangeFamilies {
    names: &["router", "service"],
    requests: declared::ROUTER_REQUESTS,
    duration: declared::ROUTER_DURATION,
    bytes_in: declared::ROUTER_BYTES_IN,
    bytes_out: declared::ROUTER_BYTES_OUT,
};

const BY_SERVICE: ExchangeFamilies = ExchangeFamilies {
    names: &["service"],
    requests: declared::SERVICE_REQUESTS,
    duration: declared::SERVICE_DURATION,
    bytes_in: declared::SERVICE_BYTES_IN,
    bytes_out: declared::SERVICE_BYTES_OUT,
};

const TRAEFIK_BY_ENTRY_POINT: ExchangeFamilies = ExchangeFamilies {
    names: &["entrypoint"],
    requests: declared::TRAEFIK_ENTRYPOINT_REQUESTS,
    duration: declared::TRAEFIK_ENTRYPOINT_DURATION,
    bytes_in: declared::TRAEFIK_ENTRYPOINT_BYTES_IN,
    bytes_out: declared::TRAEFIK_ENTRYPOINT_BYTES_OUT,
};

const TRAEFIK_BY_ROUTER: ExchangeFamilies = ExchangeFamilies {
    names: &["router", "service"],
    requests: declared::TRAEFIK_ROUTER_REQUESTS,
    duration: declared::TRAEFIK_ROUTER_DURATION,
    bytes_in: declared::TRAEFIK_ROUTER_BYTES_IN,
    bytes_out: declared::TRAEFIK_ROUTER_BYTES_OUT,
};

const TRAEFIK_BY_SERVICE: ExchangeFamilies = ExchangeFamilies {
    names: &["service"],
    requests: declared::TRAEFIK_SERVICE_REQUESTS,
    duration: declared::TRAEFIK_SERVICE_DURATION,
    bytes_in: declared::TRAEFIK_SERVICE_BYTES_IN,
    bytes_out: declared::TRAEFIK_SERVICE_BYTES_OUT,
};

impl Metrics {
    /// Writes the whole page; for the control plane, as its cost grows with the number of series.
    pub fn render(&self) -> String {
        let settings = self.settings.lock().clone();
        let bounds = Arc::clone(&self.shared.bounds.lock());
        let sums = self.add_up(&bounds);
        let mut endpoints = self.endpoints.lock().as_ref().map(|source| source()).unwrap_or_default();
        endpoints.sort_by(|a, b| (&a.service, &a.url).cmp(&(&b.service, &b.url)));
        endpoints.dedup_by(|a, b| (&a.service, &a.url) == (&b.service, &b.url));

        let mut page = Page::default();
        {
            let names = self.names.lock();
            exchanges(&mut page, &settings, &sums, &names, &bounds);
            refusals(&mut page, &sums);
            for family in SMALL {
                small(&mut page, family, &sums, &names);
            }
            open_connections(&mut page, &settings, &sums, &names);
            if settings.traefik_names {
                traefik_retries(&mut page, &sums, &names);
            }
        }
        endpoint_states(&mut page, &settings, &endpoints);
        self.configuration(&mut page, &settings);
        self.access_log_lines(&mut page);
        for (metric, source) in self.sources.lock().iter() {
            if metric.name.starts_with("traefik_") && !settings.traefik_names {
                continue;
            }
            page.family(metric);
            for sample in source() {
                let labels: Vec<_> =
                    sample.labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
                page.sample(metric, &labels, sample.value);
            }
        }
        single(&mut page, &declared::BUILD_INFO, &[("version", self.version)], 1_u64);
        single(&mut page, &declared::CORES, &[], self.cores.lock().len() as u64);
        for (metric, value) in process::figures() {
            single(&mut page, &metric, &[], value);
        }
        page.finish()
    }

    fn add_up(&self, bounds: &Bounds) -> Sums {
        let mut sums = Sums::default();
        for core in self.cores.lock().iter() {
            // Copied, so that a core which meets new labels does not wait for the adding up.
            let (live, retired) = {
                let exchanges = core.exchanges.lock();
                (exchanges.live.clone(), exchanges.retired.clone())
            };
            for (key, totals) in &retired {
                sums.exchanges.entry(*key).or_default().add(totals);
            }
            for cell in &live {
                sums.exchanges.entry(cell.key).or_default().add(&cell.totals(bounds));
            }
            // Ends are read before beginnings, so that no more connections seem closed than came.
            let small = core.small.lock();
            let (ends, others): (Vec<_>, Vec<_>) =
                small.iter().partition(|((figure, ..), _)| *figure == Figure::Closed);
            for (key, cell) in ends.into_iter().chain(others) {
                let sum = sums.small.entry(*key).or_default();
                *sum = sum.wrapping_add(cell.get());
            }
            for (code, fault, cell) in core.refusals.lock().iter() {
                *sums.refusals.entry((code, fault.as_str())).or_default() += cell.get();
            }
        }
        sums
    }

    fn configuration(&self, page: &mut Page, settings: &MetricsSettings) {
        let accepted = self.reloads_accepted.load(Ordering::Relaxed);
        let refused = self.reloads_refused.load(Ordering::Relaxed);
        let last_success = self.last_success.load(Ordering::Relaxed);
        page.family(&declared::CONFIG_RELOADS);
        page.sample(&declared::CONFIG_RELOADS, &[("outcome", "accepted")], accepted);
        page.sample(&declared::CONFIG_RELOADS, &[("outcome", "refused")], refused);
        single(page, &declared::CONFIG_LAST_SUCCESS, &[], last_success);
        let last_ok = u64::from(self.last_reload_ok.load(Ordering::Relaxed));
        single(page, &declared::CONFIG_LAST_OK, &[], last_ok);
        single(page, &declared::CONFIG_GENERATION, &[], self.generation.load(Ordering::Relaxed));
        let hash = self.hash.lock().clone();
        if !hash.is_empty() {
            single(page, &declared::CONFIG_INFO, &[("hash", &hash)], 1_u64);
        }
        let disabled = self.disabled_items.load(Ordering::Relaxed);
        single(page, &declared::CONFIG_DISABLED_ITEMS, &[], disabled);
        if settings.traefik_names {
            single(page, &declared::TRAEFIK_CONFIG_RELOADS, &[], accepted);
            single(page, &declared::TRAEFIK_CONFIG_LAST_SUCCESS, &[], last_success);
        }
    }

    fn access_log_lines(&self, page: &mut Page) {
        let sums = self.access_log_sums();
        let metric = declared::ACCESS_LOG_LINES;
        page.family(&metric);
        page.sample(&metric, &[("outcome", "written")], sums.written);
        page.sample(&metric, &[("outcome", "dropped")], sums.dropped);
        page.sample(&metric, &[("outcome", "failed")], sums.failed);
    }
}

fn exchanges(page: &mut Page, settings: &MetricsSettings, sums: &Sums, names: &Names, bounds: &Bounds) {
    let mut by_entry_point = BTreeMap::<ExchangeLabels, Totals>::new();
    let mut by_router = BTreeMap::<ExchangeLabels, Totals>::new();
    let mut by_service = BTreeMap::<ExchangeLabels, Totals>::new();
    for (packed, totals) in &sums.exchanges {
        let key = ExchangeKey::unpack(*packed);
        let Some(series) = names.series.names.get(key.series.0 as usize) else { continue };
        let code = if key.status == 0 { "other".to_owned() } else { key.status.to_string() };
        let labels = |first: &str, second: &str| {
            (first.to_owned(), second.to_owned(), code.clone(), key.method.as_str(), key.protocol.as_str())
        };
        if settings.entry_points {
            by_entry_point.entry(labels(series.entry_point.as_str(), "")).or_default().add(totals);
        }
        let service = series.service.as_ref().map(|service| service.as_str());
        if settings.routers
            && let Some(router) = &series.router
        {
            let labels = labels(router.as_str(), service.unwrap_or_default());
            by_router.entry(labels).or_default().add(totals);
        }
        if settings.services
            && let Some(service) = service
        {
            by_service.entry(labels(service, "")).or_default().add(totals);
        }
    }
    let groups = [
        (BY_ENTRY_POINT, TRAEFIK_BY_ENTRY_POINT, by_entry_point),
        (BY_ROUTER, TRAEFIK_BY_ROUTER, by_router),
        (BY_SERVICE, TRAEFIK_BY_SERVICE, by_service),
    ];
    for (ours, traefik, totals) in groups {
        exchange_families(page, &ours, &totals, bounds);
        if settings.traefik_names {
            // Traefik says which provider a name came from.
            let qualified = totals
                .into_iter()
                .map(|((first, second, code, method, protocol), totals)| {
                    let entry_point = traefik.names == BY_ENTRY_POINT.names;
                    let first = if entry_point { first } else { qualify(&first) };
                    ((first, qualify(&second), code, method, protocol), totals)
                })
                .collect();
            exchange_families(page, &traefik, &qualified, bounds);
        }
    }
}

fn exchange_families(
    page: &mut Page,
    families: &ExchangeFamilies,
    totals: &BTreeMap<ExchangeLabels, Totals>,
    bounds: &Bounds,
) {
    if totals.is_empty() {
        return;
    }
    let rows: Vec<_> = totals
        .iter()
        .map(|((first, second, code, method, protocol), totals)| {
            let names = families.names.iter().copied().zip([first.as_str(), second.as_str()]);
            let mut labels: Vec<(&str, &str)> = names.collect();
            labels.extend([("code", code.as_str()), ("method", method), ("protocol", protocol)]);
            (labels, totals)
        })
        .collect();
    page.family(&families.requests);
    for (labels, totals) in &rows {
        page.sample(&families.requests, labels, totals.requests);
    }
    page.family(&families.duration);
    for (labels, totals) in rows.iter().filter(|(_, totals)| !totals.buckets.is_empty()) {
        page.histogram(&families.duration, labels, bounds, &totals.buckets, totals.nanos);
    }
    page.family(&families.bytes_in);
    for (labels, totals) in &rows {
        page.sample(&families.bytes_in, labels, totals.bytes_in);
    }
    page.family(&families.bytes_out);
    for (labels, totals) in &rows {
        page.sample(&families.bytes_out, labels, totals.bytes_out);
    }
}

fn refusals(page: &mut Page, sums: &Sums) {
    page.family(&declared::REFUSALS);
    for ((code, fault), count) in &sums.refusals {
        page.sample(&declared::REFUSALS, &[("code", code), ("fault", fault)], *count);
    }
}

fn small(page: &mut Page, family: &SmallFamily, sums: &Sums, names: &Names) {
    let mut rows = BTreeMap::<(&str, &str), u64>::new();
    for ((figure, name, value), count) in &sums.small {
        if *figure == family.figure {
            let name = family.name.map_or("", |(_, kindred)| names.name(kindred, *name));
            let word = family.word.map_or("", |(_, word)| word(*value));
            let row = rows.entry((name, word)).or_default();
            *row = row.wrapping_add(*count);
        }
    }
    page.family(&family.metric);
    for ((name, word), count) in rows {
        let mut labels = Vec::with_capacity(2);
        labels.extend(family.name.map(|(label, _)| (label, name)));
        labels.extend(family.word.map(|(label, _)| (label, word)));
        // A gauge read between two cores' stores may seem to be below 0 for a moment.
        let below_zero = family.metric.kind == Kind::Gauge && count > i64::MAX as u64;
        page.sample(&family.metric, &labels, if below_zero { 0 } else { count });
    }
}

fn open_connections(page: &mut Page, settings: &MetricsSettings, sums: &Sums, names: &Names) {
    let mut open = BTreeMap::<&str, u64>::new();
    for ((figure, name, _), count) in &sums.small {
        if *figure == Figure::Accepted {
            *open.entry(names.name(Kindred::EntryPoint, *name)).or_default() += count;
        }
    }
    for ((figure, name, _), count) in &sums.small {
        if *figure == Figure::Closed {
            let open = open.entry(names.name(Kindred::EntryPoint, *name)).or_default();
            *open = open.saturating_sub(*count);
        }
    }
    page.family(&declared::CONNECTIONS_OPEN);
    for (name, count) in &open {
        page.sample(&declared::CONNECTIONS_OPEN, &[("entrypoint", name)], *count);
    }
    if settings.traefik_names {
        let metric = declared::TRAEFIK_OPEN_CONNECTIONS;
        page.family(&metric);
        for (name, count) in &open {
            page.sample(&metric, &[("entrypoint", name), ("protocol", "TCP")], *count);
        }
    }
}

fn traefik_retries(page: &mut Page, sums: &Sums, names: &Names) {
    let mut retries = BTreeMap::<String, u64>::new();
    for ((figure, name, _), count) in &sums.small {
        if *figure == Figure::Retry {
            *retries.entry(qualify(names.name(Kindred::Service, *name))).or_default() += count;
        }
    }
    page.family(&declared::TRAEFIK_RETRIES);
    for (service, count) in &retries {
        page.sample(&declared::TRAEFIK_RETRIES, &[("service", service)], *count);
    }
}

fn endpoint_states(page: &mut Page, settings: &MetricsSettings, endpoints: &[EndpointState]) {
    page.family(&declared::ENDPOINT_UP);
    for state in endpoints {
        let labels = [("service", state.service.as_str()), ("url", state.url.as_str())];
        page.sample(&declared::ENDPOINT_UP, &labels, u64::from(state.up));
    }
    if settings.traefik_names {
        page.family(&declared::TRAEFIK_SERVER_UP);
        for state in endpoints {
            let service = qualify(state.service.as_str());
            let labels = [("service", service.as_str()), ("url", state.url.as_str())];
            page.sample(&declared::TRAEFIK_SERVER_UP, &labels, u64::from(state.up));
        }
    }
}

fn single(page: &mut Page, metric: &Metric, labels: &Labels<'_>, value: impl Into<Value>) {
    page.family(metric);
    page.sample(metric, labels, value);
}

/// Traefik's full name of an item: those of the document come from its provider `file`.
fn qualify(name: &str) -> String {
    if name.is_empty() || name.contains('@') { name.to_owned() } else { format!("{name}@file") }
}

impl Names {
    fn name(&self, kindred: Kindred, number: u32) -> &str {
        let number = number as usize;
        match kindred {
            Kindred::EntryPoint => self.entry_points.names.get(number).map(|name| name.as_str()),
            Kindred::Service => self.services.names.get(number).map(|name| name.as_str()),
            Kindred::Middleware => self.middlewares.names.get(number).map(|name| name.as_str()),
        }
        .unwrap_or("other")
    }
}
