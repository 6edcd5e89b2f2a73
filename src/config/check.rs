//! Bounds of single values that their types do not keep.
//!
//! Never: whether names resolve, rules parse or chains end; that is the compiler's.

use super::document::DocumentConfig;
use super::observability::{AccessLogConfig, PrometheusConfig};
use super::router::{MAX_PRIORITY, RouterConfig};
use super::service::{HealthCheckConfig, HealthCheckMode, LoadBalancerConfig, ServiceConfig};
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::common::units::HumanDuration;

/// Threads that carry traffic; more than any machine has cores.
const MAX_WORKERS: u16 = 1024;

/// Attempts of the built-in retry.
const MAX_ATTEMPTS: u8 = 10;

/// Smallest `maxHeaderBytes`: a browser's request fits.
const MIN_HEADER_BYTES: usize = 1024;
/// Smallest `maxHeadMemory`: one head of the size that is taken by default.
const MIN_HEAD_MEMORY: usize = 1024 * 1024;
/// Smallest `maxBodyMemory`: one of the largest reads.
const MIN_BODY_MEMORY: usize = 256 * 1024;

/// Adds a problem for every value out of bounds.
pub fn check(document: &DocumentConfig, problems: &mut Problems) {
    let root = ConfigPath::root();
    if document.workers > MAX_WORKERS {
        problems.error(&root.key("workers"), format!("must be at most {MAX_WORKERS}"));
    }
    if let Some(ping) = &document.ping {
        status(&ConfigPath::of(&["ping", "terminatingStatusCode"]), ping.terminating_status_code, problems);
    }
    if let Some(api) = &document.api
        && !api.base_path.starts_with('/')
    {
        problems.error(&ConfigPath::of(&["api", "basePath"]), "must start with \"/\"");
    }
    if let Some(access_log) = &document.access_log {
        check_access_log(access_log, problems);
    }
    if let Some(prometheus) = &document.metrics.prometheus {
        check_prometheus(prometheus, problems);
    }
    let core = ConfigPath::of(&["core"]);
    if document.core.max_head_memory < MIN_HEAD_MEMORY {
        problems.error(&core.key("maxHeadMemory"), format!("must be at least {MIN_HEAD_MEMORY}"));
    }
    if document.core.max_body_memory < MIN_BODY_MEMORY {
        problems.error(&core.key("maxBodyMemory"), format!("must be at least {MIN_BODY_MEMORY}"));
    }
    for (name, entry_point) in &document.entry_points {
        let at = ConfigPath::of(&["entryPoints", name.as_str(), "http"]);
        if entry_point.http.max_header_bytes < MIN_HEADER_BYTES {
            problems.error(&at.key("maxHeaderBytes"), format!("must be at least {MIN_HEADER_BYTES}"));
        }
        if entry_point.http.max_header_fields == 0 {
            problems.error(&at.key("maxHeaderFields"), "must be at least 1");
        }
    }
    for (name, router) in &document.http.routers {
        check_router(&ConfigPath::of(&["http", "routers", name.as_str()]), router, problems);
    }
    for (name, service) in &document.http.services {
        check_service(&ConfigPath::of(&["http", "services", name.as_str()]), service, problems);
    }
}

fn check_router(at: &ConfigPath, router: &RouterConfig, problems: &mut Problems) {
    if router.rule.trim().is_empty() {
        problems.error(&at.key("rule"), "must not be empty");
    }
    if router.service.is_empty() {
        problems.error(&at.key("service"), "must not be empty");
    }
    if router.priority > MAX_PRIORITY {
        problems.error(&at.key("priority"), format!("must be at most {MAX_PRIORITY}"));
    }
}

fn check_service(at: &ConfigPath, service: &ServiceConfig, problems: &mut Problems) {
    match service.kinds().as_slice() {
        [] => problems.push(
            Problem::error(at, "service has no kind")
                .hint(format!("give it one of {}", ServiceConfig::KINDS.join(", "))),
        ),
        [_] => {}
        [first, second, ..] => problems.push(
            Problem::error(&at.key(second), format!("{first} and {second} are two kinds of service"))
                .hint("give each a name of its own"),
        ),
    }
    if let Some(balancer) = &service.load_balancer {
        check_load_balancer(&at.key("loadBalancer"), balancer, problems);
    }
    for (index, mirror) in service.mirroring.iter().flat_map(|mirroring| &mirroring.mirrors).enumerate() {
        if mirror.percent > 100 {
            let at = at.key("mirroring").key("mirrors").index(index);
            problems.error(&at.key("percent"), "must be at most 100");
        }
    }
    let weighted = service.weighted.as_ref().map(|weighted| ("weighted", &weighted.services));
    let hashed = service.highest_random_weight.as_ref();
    let hashed = hashed.map(|hashed| ("highestRandomWeight", &hashed.services));
    for (kind, services) in weighted.into_iter().chain(hashed) {
        if services.is_empty() {
            problems.error(&at.key(kind).key("services"), "must not be empty");
        }
    }
}

fn check_load_balancer(at: &ConfigPath, balancer: &LoadBalancerConfig, problems: &mut Problems) {
    for (index, server) in balancer.servers.iter().enumerate() {
        check_url(&at.key("servers").index(index).key("url"), &server.url, problems);
    }
    if let Some(health_check) = &balancer.health_check {
        check_health(&at.key("healthCheck"), health_check, problems);
    }
    let spillover = at.key("spillover");
    for (key, percent) in [
        ("zonePercent", balancer.spillover.zone_percent),
        ("backupPercent", balancer.spillover.backup_percent),
    ] {
        if percent > 100 {
            problems.error(&spillover.key(key), "must be at most 100");
        }
    }
    check_outliers(at, balancer, problems);
    let retry = at.key("retry");
    if !(1..=MAX_ATTEMPTS).contains(&balancer.retry.attempts) {
        problems.error(&retry.key("attempts"), format!("must be from 1 (no retry) to {MAX_ATTEMPTS}"));
    }
    if balancer.retry.budget_percent > 100 {
        problems.error(&retry.key("budgetPercent"), "must be at most 100");
    }
}

fn check_url(at: &ConfigPath, url: &str, problems: &mut Problems) {
    let scheme = url.split_once("://").map_or("", |(scheme, _)| scheme);
    if !["http", "https", "h2c"].iter().any(|known| known.eq_ignore_ascii_case(scheme)) {
        let problem = Problem::error(at, "server url must begin with http://, https:// or h2c://");
        // A url without a scheme has no part that is to blame.
        problems.push(if scheme.is_empty() { problem } else { problem.within(0..scheme.len() + 3) });
    }
}

fn check_health(at: &ConfigPath, health_check: &HealthCheckConfig, problems: &mut Problems) {
    let needs_path = health_check.mode == HealthCheckMode::Http;
    if needs_path && !health_check.path.starts_with('/') {
        problems.error(&at.key("path"), "must start with \"/\"");
    }
    match health_check.scheme.as_deref() {
        None | Some("http" | "https" | "") => {}
        Some(_) => problems.error(&at.key("scheme"), "must be http or https"),
    }
    let positive = [("interval", Some(health_check.interval)), ("timeout", Some(health_check.timeout))];
    for (key, value) in positive.into_iter().chain([("unhealthyInterval", health_check.unhealthy_interval)]) {
        if value == Some(HumanDuration::secs(0)) {
            problems.error(&at.key(key), "must be longer than 0");
        }
    }
    if health_check.method.is_empty() || !health_check.method.bytes().all(|b| b.is_ascii_alphabetic()) {
        problems.error(&at.key("method"), "must be a method such as GET");
    }
    for (key, value) in [("rise", health_check.rise), ("fall", health_check.fall)] {
        if value == 0 {
            problems.error(&at.key(key), "must be at least 1");
        }
    }
    if let Some(hostname) = &health_check.hostname
        && !is_host(hostname)
    {
        problems.push(
            Problem::error(&at.key("hostname"), format!("{hostname:?} is no host name")).hint(
                "write a name or an address, with a port if need be: api.internal or api.internal:8080",
            ),
        );
    }
    if health_check.expected_body.is_some() && !needs_path {
        problems.error(&at.key("expectedBody"), "only mode http reads a body");
    }
}

/// Whether `text` may be sent as `Host`: a name or an address, and perhaps a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_v6 = |name: &str| {
        let inner = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        inner.is_some_and(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok())
    };
    (is_name(host) || is_v6(host)) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn check_outliers(at: &ConfigPath, balancer: &LoadBalancerConfig, problems: &mut Problems) {
    let positive = |at: ConfigPath, value: Option<HumanDuration>, problems: &mut Problems| {
        if value == Some(HumanDuration::secs(0)) {
            problems.error(&at, "must be longer than 0");
        }
    };
    let percent = |at: ConfigPath, value: u32, problems: &mut Problems| {
        if value > 100 {
            problems.error(&at, "must be at most 100");
        }
    };
    if let Some(passive) = &balancer.passive_health_check {
        let at = at.key("passiveHealthCheck").key("failureWindow");
        positive(at, Some(passive.failure_window), problems);
    }
    let outliers = &balancer.outlier_detection;
    let block = at.key("outlierDetection");
    positive(block.key("window"), outliers.window, problems);
    positive(block.key("baseEjectionTime"), outliers.base_ejection_time, problems);
    positive(block.key("maxEjectionTime"), Some(outliers.max_ejection_time), problems);
    percent(block.key("maxEjectionPercent"), outliers.max_ejection_percent, problems);
    percent(block.key("failureShareDeviation"), outliers.failure_share_deviation, problems);
    percent(at.key("panicThreshold"), balancer.panic_threshold.into(), problems);
    if balancer.passive_health_check.is_some() && !outliers.enabled {
        problems.push(
            Problem::error(&block.key("enabled"), "passiveHealthCheck is part of what this turns off")
                .hint("remove one of the two"),
        );
    }
    if let Some(slow_start) = &balancer.slow_start {
        let block = at.key("slowStart");
        positive(block.key("duration"), Some(slow_start.duration), problems);
        if !(1..=100).contains(&slow_start.min_weight_percent) {
            problems.error(&block.key("minWeightPercent"), "must be from 1 to 100");
        }
        if !(slow_start.aggression > 0.0 && slow_start.aggression.is_finite()) {
            problems.error(&block.key("aggression"), "must be more than 0");
        }
    }
}

fn check_access_log(access_log: &AccessLogConfig, problems: &mut Problems) {
    let at = ConfigPath::of(&["accessLog", "filters", "statusCodes"]);
    for (index, range) in access_log.filters.status_codes.iter().enumerate() {
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let valid = match (low.trim().parse::<u16>(), high.trim().parse::<u16>()) {
            (Ok(low), Ok(high)) => (100..=999).contains(&low) && low <= high && high <= 999,
            (Ok(_) | Err(_), _) => false,
        };
        if !valid {
            problems.push(
                Problem::error(&at.index(index), "must be a status or a range of statuses")
                    .hint("write \"404\" or \"500-599\""),
            );
        }
    }
}

fn check_prometheus(prometheus: &PrometheusConfig, problems: &mut Problems) {
    let at = ConfigPath::of(&["metrics", "prometheus", "buckets"]);
    let ascending = prometheus.buckets.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || prometheus.buckets.first().is_some_and(|first| *first <= 0.0) {
        problems.error(&at, "must be greater than 0 and ascending");
    }
}

fn status(at: &ConfigPath, code: u16, problems: &mut Problems) {
    if !(100..=599).contains(&code) {
        problems.error(at, "must be a status from 100 to 599");
    }
}
