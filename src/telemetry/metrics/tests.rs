//! The page, read back by a parser that takes nothing but the text format.

use std::collections::{BTreeMap, HashSet};
use std::io;

use super::*;
use crate::http::error::{EndpointText, ProxyError};

/// Samples by name and labels, as they stand on the page.
type Samples = BTreeMap<(String, BTreeMap<String, String>), f64>;

/// Reads a page of the text format 0.0.4; panics at the first byte that breaks it.
fn parse(page: &str) -> Samples {
    assert!(page.ends_with('\n'), "the last line must end");
    let mut samples = Samples::new();
    let mut types = BTreeMap::<String, String>::new();
    let mut helped = HashSet::new();
    let mut family = String::new();
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a name and a text");
            assert!(!help.is_empty());
            assert!(helped.insert(name.to_owned()), "{name}: HELP twice");
            family = name.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name, family, "TYPE must follow its HELP");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name}: TYPE twice");
        } else {
            let (name, labels, value) = parse_sample(line);
            let kind = &types[&family];
            if kind == "histogram" {
                let suffix = name.strip_prefix(family.as_str()).expect("of the open family");
                assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}");
                assert_eq!(suffix == "_bucket", labels.contains_key("le"), "{line}");
            } else {
                assert_eq!(name, family, "a sample outside its family");
                assert!(kind != "counter" || value >= 0.0);
            }
            assert!(samples.insert((name, labels), value).is_none(), "twice: {line}");
        }
    }
    samples
}

fn parse_sample(line: &str) -> (String, BTreeMap<String, String>, f64) {
    let name_end = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(name_end);
    let valid = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    assert!(name.chars().all(valid) && !name.starts_with(|c: char| c.is_ascii_digit()), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, after) = rest.split_once("=\"").expect("a label and its value");
            assert!(!label.is_empty() && label.chars().all(valid), "{line}");
            let mut value = String::new();
            let mut chars = after.char_indices();
            let end = loop {
                match chars.next().expect("a closing quote") {
                    (at, '"') => break at,
                    (_, '\\') => value.push(match chars.next().expect("an escaped character").1 {
                        'n' => '\n',
                        c @ ('\\' | '"') => c,
                        c => panic!("bad escape {c:?} in {line}"),
                    }),
                    (_, c) => value.push(c),
                }
            };
            assert!(labels.insert(label.to_owned(), value).is_none(), "label twice: {line}");
            rest = &after[end + 1..];
            match rest.strip_prefix(',') {
                Some(next) => rest = next,
                None => break,
            }
        }
        rest = rest.strip_prefix('}').expect("a closing brace");
    }
    let value = rest.strip_prefix(' ').expect("one space");
    let value = match value {
        "+Inf" => f64::INFINITY,
        value => value.parse().expect("a number"),
    };
    (name.to_owned(), labels, value)
}

fn get(samples: &Samples, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    samples.get(&(name.to_owned(), labels)).copied()
}

fn all_labels() -> MetricsSettings {
    MetricsSettings { routers: true, traefik_names: true, ..MetricsSettings::default() }
}

fn web() -> EntryPointName {
    EntryPointName::new("web")
}

fn key(series: Series, status: u16) -> ExchangeKey {
    ExchangeKey { series, status, method: MethodLabel::Get, protocol: Protocol::Http }
}

#[test]
fn figures_of_two_cores_on_two_threads_add_up_while_they_are_scraped() {
    const EACH: u64 = 20_000;
    let metrics = Metrics::new(all_labels(), "0.1.0");
    let series = metrics.series(&web(), Some(&RouterName::new("api")), Some(&ServiceName::new("pods")));
    let service = metrics.service(&ServiceName::new("pods"));
    let entry_point = metrics.entry_point(&web());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let core = metrics.core();
            scope.spawn(move || {
                for round in 0..EACH {
                    core.connection_opened(entry_point);
                    let status = if round % 4 == 0 { 502 } else { 200 };
                    core.exchange(key(series, status), Duration::from_millis(200), 3, 5);
                    core.upstream_connect(service, ConnectOutcome::Reused);
                    core.retried(service, RetryReason::Connect);
                    core.connection_closed(entry_point, CloseReason::Client);
                }
                core.connection_opened(entry_point);
            });
        }
        for _ in 0..20 {
            let samples = parse(&metrics.render());
            let open = get(&samples, "sluicegate_connections_open", &[("entrypoint", "web")]);
            assert!(open.is_none_or(|open| open <= 2.0 * EACH as f64), "{open:?}");
        }
    });

    let samples = parse(&metrics.render());
    let total = 2.0 * EACH as f64;
    let ok = [("code", "200"), ("method", "GET"), ("protocol", "http")];
    let of = |first: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> { [first, &ok].concat() };
    for (name, labels) in [
        ("sluicegate_entrypoint_requests_total", of(&[("entrypoint", "web")])),
        ("sluicegate_router_requests_total", of(&[("router", "api"), ("service", "pods")])),
        ("sluicegate_service_requests_total", of(&[("service", "pods")])),
        ("traefik_entrypoint_requests_total", of(&[("entrypoint", "web")])),
        ("traefik_router_requests_total", of(&[("router", "api@file"), ("service", "pods@file")])),
        ("traefik_service_requests_total", of(&[("service", "pods@file")])),
    ] {
        assert_eq!(get(&samples, name, &labels), Some(total * 0.75), "{name}");
    }
    let labels = of(&[("service", "pods")]);
    assert_eq!(get(&samples, "sluicegate_service_requests_bytes_total", &labels), Some(total * 0.75 * 3.0));
    assert_eq!(get(&samples, "sluicegate_service_responses_bytes_total", &labels), Some(total * 0.75 * 5.0));
    let duration = "sluicegate_service_request_duration_seconds";
    for (le, count) in [("0.1", 0.0), ("0.3", 0.75), ("1.2", 0.75), ("5", 0.75), ("+Inf", 0.75)] {
        let labels = [labels.as_slice(), &[("le", le)]].concat();
        assert_eq!(get(&samples, &format!("{duration}_bucket"), &labels), Some(total * count), "{le}");
    }
    assert_eq!(get(&samples, &format!("{duration}_count"), &labels), Some(total * 0.75));
    assert_eq!(get(&samples, &format!("{duration}_sum"), &labels), Some(total * 0.75 * 0.2));
    let open = |name: &str, labels: &[(&str, &str)]| get(&samples, name, labels);
    assert_eq!(open("sluicegate_connections_open", &[("entrypoint", "web")]), Some(2.0));
    assert_eq!(open("traefik_open_connections", &[("entrypoint", "web"), ("protocol", "TCP")]), Some(2.0));
    let reused = [("service", "pods"), ("outcome", "reused")];
    assert_eq!(get(&samples, "sluicegate_upstream_connects_total", &reused), Some(total));
    assert_eq!(get(&samples, "traefik_service_retries_total", &[("service", "pods@file")]), Some(total));
    assert_eq!(get(&samples, "sluicegate_cores", &[]), Some(2.0));
}

#[test]
fn the_settings_say_which_labels_there_are() {
    let metrics = Metrics::new(
        MetricsSettings { entry_points: false, services: false, ..MetricsSettings::default() },
        "0.1.0",
    );
    let series = metrics.series(&web(), Some(&RouterName::new("api")), Some(&ServiceName::new("pods")));
    metrics.core().exchange(key(series, 200), Duration::ZERO, 0, 0);
    let page = metrics.render();
    for absent in ["_entrypoint_", "_router_", "service_requests", "traefik_"] {
        assert!(!page.contains(absent), "{absent}");
    }
    metrics.configure(MetricsSettings { routers: true, ..MetricsSettings::default() });
    let page = metrics.render();
    for present in ["_entrypoint_requests_total{", "_router_requests_total{", "_service_requests_total{"] {
        assert!(page.contains(present), "{present}");
    }
}

#[test]
fn an_exchange_without_a_router_counts_for_its_entry_point_alone() {
    let metrics = Metrics::new(all_labels(), "0.1.0");
    let series = metrics.series(&web(), None, None);
    let core = metrics.core();
    core.exchange(key(series, 404), Duration::ZERO, 0, 19);
    let samples = parse(&metrics.render());
    let labels = [("entrypoint", "web"), ("code", "404"), ("method", "GET"), ("protocol", "http")];
    assert_eq!(get(&samples, "sluicegate_entrypoint_requests_total", &labels), Some(1.0));
    assert!(!samples.keys().any(|(name, _)| name.starts_with("sluicegate_router_requests")));
    assert!(!samples.keys().any(|(name, _)| name.starts_with("sluicegate_service_requests")));
}

#[test]
fn label_values_cannot_break_the_page() {
    let metrics = Metrics::new(all_labels(), "0.1.0");
    let evil = "a\"} 1\nforged{x=\"\\";
    let series = metrics.series(&EntryPointName::new(evil), None, None);
    metrics.core().exchange(key(series, 200), Duration::ZERO, 0, 0);
    metrics.endpoints_from(move || {
        vec![EndpointState { service: ServiceName::new("s"), url: evil.to_owned(), up: false }]
    });
    let samples = parse(&metrics.render());
    assert_eq!(
        get(&samples, "sluicegate_service_endpoint_up", &[("service", "s"), ("url", evil)]),
        Some(0.0)
    );
    assert!(!samples.keys().any(|(name, _)| name == "forged"));
}

#[test]
fn new_buckets_restart_the_histograms_and_nothing_else() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let series = metrics.series(&web(), None, None);
    let core = metrics.core();
    let idle = metrics.core();
    core.exchange(key(series, 200), Duration::from_millis(50), 1, 1);
    idle.exchange(key(series, 200), Duration::from_millis(50), 1, 1);
    metrics
        .configure(MetricsSettings { buckets: vec![1.0, 0.01, 1.0, f64::NAN, -1.0], ..Default::default() });
    core.exchange(key(series, 200), Duration::from_millis(50), 1, 1);

    let samples = parse(&metrics.render());
    let labels = [("entrypoint", "web"), ("code", "200"), ("method", "GET"), ("protocol", "http")];
    assert_eq!(get(&samples, "sluicegate_entrypoint_requests_total", &labels), Some(3.0));
    let duration = "sluicegate_entrypoint_request_duration_seconds";
    assert_eq!(get(&samples, &format!("{duration}_count"), &labels), Some(1.0));
    for (le, count) in [("0.01", Some(0.0)), ("1", Some(1.0)), ("+Inf", Some(1.0)), ("0.1", None)] {
        let labels = [labels.as_slice(), &[("le", le)]].concat();
        assert_eq!(get(&samples, &format!("{duration}_bucket"), &labels), count, "{le}");
    }
}

#[test]
fn refusals_name_the_reason_and_whose_fault_it_was() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let (one, two) = (metrics.core(), metrics.core());
    one.refused(&ProxyError::NoRoute);
    one.refused(&ProxyError::NoRoute);
    two.refused(&ProxyError::NoRoute);
    two.refused(&ProxyError::Connect {
        endpoint: EndpointText::Name("pod:80".into()),
        cause: io::Error::from(io::ErrorKind::ConnectionRefused),
    });
    two.timed_out(TimeoutKind::ResponseHeader);
    let samples = parse(&metrics.render());
    let refused =
        |code, fault| get(&samples, "sluicegate_refusals_total", &[("code", code), ("fault", fault)]);
    assert_eq!(refused("no_route", "client"), Some(3.0));
    assert_eq!(refused("connect_failed", "upstream"), Some(1.0));
    assert_eq!(get(&samples, "sluicegate_timeouts_total", &[("kind", "response_header")]), Some(1.0));
}

#[test]
fn the_small_figures_stand_under_their_names() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let service = metrics.service(&ServiceName::new("pods"));
    let limit = metrics.middleware(&MiddlewareName::new("slow-down"));
    let core = metrics.core();
    core.pool_idle_added(service);
    core.pool_idle_added(service);
    core.pool_idle_removed(service);
    core.retry_budget_exhausted(service);
    core.non_idempotent_lost(service);
    core.limited(limit, LimitDecision::Refused);
    let samples = parse(&metrics.render());
    let pods = [("service", "pods")];
    assert_eq!(get(&samples, "sluicegate_upstream_idle_connections", &pods), Some(1.0));
    assert_eq!(get(&samples, "sluicegate_retry_budget_exhausted_total", &pods), Some(1.0));
    assert_eq!(get(&samples, "sluicegate_non_idempotent_lost_total", &pods), Some(1.0));
    let refused = [("middleware", "slow-down"), ("decision", "refused")];
    assert_eq!(get(&samples, "sluicegate_limiter_decisions_total", &refused), Some(1.0));
}

#[test]
fn the_same_names_are_the_same_series_after_a_reload() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let (api, pods) = (RouterName::new("api"), ServiceName::new("pods"));
    let first = metrics.series(&web(), Some(&api), Some(&pods));
    assert_eq!(metrics.series(&web(), Some(&api), Some(&pods)), first);
    assert_ne!(metrics.series(&web(), Some(&api), None), first);
}

#[test]
fn names_beyond_the_bound_are_counted_together() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    for number in 1..MAX_NAMES {
        metrics.middleware(&MiddlewareName::new(&number.to_string()));
    }
    let (one, two) = (MiddlewareName::new("one too many"), MiddlewareName::new("two too many"));
    assert_eq!(metrics.middleware(&one), metrics.middleware(&two));
    metrics.core().limited(metrics.middleware(&one), LimitDecision::Allowed);
    let samples = parse(&metrics.render());
    let labels = [("middleware", "other"), ("decision", "allowed")];
    assert_eq!(get(&samples, "sluicegate_limiter_decisions_total", &labels), Some(1.0));
}

#[test]
fn a_refused_reload_shows_and_leaves_the_generation_alone() {
    let metrics = Metrics::new(all_labels(), "0.1.0");
    metrics.config_accepted(7, "cafe", 2);
    metrics.config_refused();
    let samples = parse(&metrics.render());
    let reloads = |outcome| get(&samples, "sluicegate_config_reloads_total", &[("outcome", outcome)]);
    assert_eq!((reloads("accepted"), reloads("refused")), (Some(1.0), Some(1.0)));
    assert_eq!(get(&samples, "sluicegate_config_generation", &[]), Some(7.0));
    assert_eq!(get(&samples, "sluicegate_config_info", &[("hash", "cafe")]), Some(1.0));
    assert_eq!(get(&samples, "sluicegate_config_disabled_items", &[]), Some(2.0));
    assert_eq!(get(&samples, "sluicegate_config_last_reload_successful", &[]), Some(0.0));
    assert_eq!(get(&samples, "traefik_config_reloads_total", &[]), Some(1.0));
}

#[test]
fn lines_of_an_access_log_that_ended_stay_in_the_sum() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let counts = Arc::new(AccessLogCounts::default());
    metrics.count_access_log(Arc::clone(&counts));
    metrics.count_access_log(Arc::clone(&counts));
    counts.written.fetch_add(3, Ordering::Relaxed);
    let written = |metrics: &Metrics| {
        let samples = parse(&metrics.render());
        get(&samples, "sluicegate_access_log_lines_total", &[("outcome", "written")])
    };
    assert_eq!(written(&metrics), Some(3.0));
    drop(counts);
    assert_eq!(written(&metrics), Some(3.0));
    assert_eq!(written(&metrics), Some(3.0));
}

#[test]
fn the_process_shows_what_it_costs() {
    let samples = parse(&Metrics::new(MetricsSettings::default(), "0.1.0").render());
    let figure = |name| get(&samples, name, &[]).expect(name);
    assert!(figure("process_resident_memory_bytes") > 1e6);
    assert!(figure("process_open_fds") >= 3.0);
    assert!(figure("process_max_fds") >= figure("process_open_fds"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64();
    let age = now - figure("process_start_time_seconds");
    assert!((-2.0..86_400.0).contains(&age), "{age}");
    assert!(figure("process_cpu_seconds_total") >= 0.0);
}

#[test]
fn no_metric_is_declared_twice_and_names_say_what_they_are() {
    let mut names = HashSet::new();
    for metric in declared::ALL {
        assert!(names.insert(metric.name), "{}", metric.name);
        assert_eq!(metric.name.ends_with("_total"), metric.kind == Kind::Counter, "{}", metric.name);
    }
}

#[test]
fn label_sets_beyond_the_bound_of_a_core_are_counted_together() {
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let core = metrics.core();
    for router in 0..150 {
        let series = metrics.series(&web(), Some(&RouterName::new(&router.to_string())), None);
        for status in 100..1_000 {
            core.exchange(key(series, status), Duration::ZERO, 0, 0);
        }
    }
    let samples = parse(&metrics.render());
    let total = |entry_point: &str| -> f64 {
        let of =
            |labels: &BTreeMap<String, String>| labels.get("entrypoint").is_some_and(|e| e == entry_point);
        let requests = "sluicegate_entrypoint_requests_total";
        samples.iter().filter(|((name, labels), _)| name == requests && of(labels)).map(|(_, n)| n).sum()
    };
    // 131,072 sets are kept apart.
    assert_eq!((total("web"), total("other")), (131_072.0, 135_000.0 - 131_072.0));
}

/// `docs/metrics.md`: the cells of each table's rows, without their backticks.
fn documented() -> Vec<Vec<String>> {
    let page = include_str!("../../../docs/metrics.md");
    page.lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect())
        .collect()
}

#[test]
fn the_documentation_has_every_metric_once_with_its_type_and_no_other() {
    let mut documented: Vec<_> = documented()
        .into_iter()
        .filter(|cells| cells.len() == 5)
        .map(|cells| (cells[0].clone(), cells[1].clone()))
        .collect();
    let mut declared: Vec<_> = declared::ALL
        .iter()
        .map(|metric| (metric.name.to_owned(), metric.kind.as_str().to_owned()))
        .collect();
    documented.sort();
    declared.sort();
    assert_eq!(documented, declared);
}

#[test]
fn the_documentation_has_the_labels_of_figures_and_all_their_values() {
    fn words<T: Copy + 'static>(all: &[T], word: fn(T) -> &'static str) -> Vec<&'static str> {
        all.iter().copied().map(word).collect()
    }
    let rows = documented();
    for family in scrape::SMALL {
        let labels = [family.name.map(|(label, _)| label), family.word.map(|(label, _)| label)];
        let labels: Vec<_> = labels.into_iter().flatten().collect();
        let row = rows.iter().find(|cells| cells.len() == 5 && cells[0] == family.metric.name);
        assert_eq!(row.expect("a row")[2], labels.join(" "), "{}", family.metric.name);
    }
    let closed = [
        (declared::TIMEOUTS, words(TimeoutKind::ALL, TimeoutKind::as_str)),
        (declared::CONNECTIONS_CLOSED, words(CloseReason::ALL, CloseReason::as_str)),
        (declared::TLS_HANDSHAKES, words(Handshake::ALL, Handshake::as_str)),
        (declared::HTTP2_FLOODS, words(Http2Flood::ALL, Http2Flood::as_str)),
        (declared::HTTP2_RESETS, words(Http2Reset::ALL, Http2Reset::as_str)),
        (declared::UPSTREAM_CONNECTS, words(ConnectOutcome::ALL, ConnectOutcome::as_str)),
        (declared::RETRIES, words(RetryReason::ALL, RetryReason::as_str)),
        (declared::HEDGES, words(HedgeWinner::ALL, HedgeWinner::as_str)),
        (declared::STICKY, words(StickyOutcome::ALL, StickyOutcome::as_str)),
        (declared::HASH_MISSES, words(HashOutcome::ALL, HashOutcome::as_str)),
        (declared::SPILLS, words(SpillTo::ALL, SpillTo::as_str)),
        (declared::FAILOVERS, words(FailoverReason::ALL, FailoverReason::as_str)),
        (declared::MIRRORED, words(MirrorOutcome::ALL, MirrorOutcome::as_str)),
        (declared::REHEARSALS, words(RehearsalOutcome::ALL, RehearsalOutcome::as_str)),
        (declared::LIMIT_DECISIONS, words(LimitDecision::ALL, LimitDecision::as_str)),
        (declared::OUTBOUND_DECISIONS, words(LimitDecision::ALL, LimitDecision::as_str)),
    ];
    for family in scrape::SMALL.iter().filter(|family| family.word.is_some()) {
        let (metric, words) =
            closed.iter().find(|(metric, _)| *metric == family.metric).expect("a set of words");
        let row = rows.iter().find(|cells| cells.len() == 3 && cells[0] == metric.name);
        assert_eq!(row.expect("a row of values")[2], words.join(", "), "{}", metric.name);
    }
}
