//! Cookies, hashing, tiers and bad answers: from what was written to what the balancer reads.

use http::HeaderName;

use super::FailoverErrors;
use crate::balance::cookie::{is_attribute_byte, is_name_byte};
use crate::balance::key::HashBy;
use crate::balance::sticky::{Attributes, SameSite, Sticky};
use crate::balance::{MaxLoad, Strategy};
use crate::common::names::ServiceName;
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::config::balancing::{
    FailoverErrorsConfig, HashConfig, SameSiteConfig, SpilloverConfig, StickyConfig, StickyCookieConfig,
};
use crate::config::service::{self, ServerConfig};
use crate::endpoint::set::Tier;
use crate::http::client_ip::IpStrategy;

/// Bytes of a key that signs cookies: 128 bits of chance, if they are that.
const MIN_SIGNING_KEY: usize = 16;

/// The cookie of a service, if it has one.
pub(super) fn sticky(
    config: Option<&StickyConfig>,
    service: &ServiceName,
    at: &ConfigPath,
    problems: &mut Problems,
) -> Option<Sticky> {
    let config = config?;
    let at = at.key("sticky");
    let Some(cookie) = &config.cookie else {
        problems.push(Problem::warning(&at, "sticky does nothing without cookie").hint("write cookie: {}"));
        return None;
    };
    let at = at.key("cookie");
    let before = problems.len();
    check_cookie(cookie, &at, problems);
    if problems.errors_since(before) {
        return None;
    }
    let name = match cookie.name.as_str() {
        "" => Sticky::default_name(&format!("{service}@file")),
        name => name.to_owned(),
    };
    let attributes = Attributes {
        path: cookie.path.clone().unwrap_or_default(),
        domain: cookie.domain.clone(),
        max_age: cookie.max_age,
        secure: cookie.secure,
        http_only: cookie.http_only,
        same_site: cookie.same_site.map(|same_site| match same_site {
            SameSiteConfig::None => SameSite::None,
            SameSiteConfig::Lax => SameSite::Lax,
            SameSiteConfig::Strict => SameSite::Strict,
        }),
    };
    Some(Sticky::new(&name, &attributes, &cookie.signing_keys))
}

fn check_cookie(cookie: &StickyCookieConfig, at: &ConfigPath, problems: &mut Problems) {
    if !cookie.name.bytes().all(is_name_byte) {
        problems.warn(&at.key("name"), "what cannot stand in a cookie's name becomes _, as in Traefik");
    }
    for (key, value) in [("path", cookie.path.as_deref().unwrap_or("")), ("domain", &cookie.domain)] {
        if !value.bytes().all(is_attribute_byte) {
            problems.error(&at.key(key), format!("a cookie's {key} is visible ASCII without a semicolon"));
        }
    }
    if cookie.same_site == Some(SameSiteConfig::None) && !cookie.secure {
        let problem = Problem::warning(&at.key("sameSite"), "browsers drop a cookie of sameSite none");
        problems.push(problem.hint("add secure: true"));
    }
    for (index, key) in cookie.signing_keys.iter().enumerate() {
        if key.len() < MIN_SIGNING_KEY {
            let at = at.key("signingKeys").index(index);
            let problem = Problem::error(&at, format!("a signing key has at least {MIN_SIGNING_KEY} bytes"));
            problems.push(problem.hint("openssl rand -base64 24 makes a good one"));
        }
    }
}

/// The strategy of that name.
pub(super) fn strategy(config: service::Strategy) -> Strategy {
    match config {
        service::Strategy::Wrr => Strategy::Wrr,
        service::Strategy::P2c => Strategy::P2c,
        service::Strategy::LeastRequests => Strategy::LeastRequests,
        service::Strategy::LeastTime => Strategy::LeastTime,
        service::Strategy::Hrw => Strategy::Hrw,
        service::Strategy::Hash => Strategy::Hash,
    }
}

/// What is hashed, and the bound on an endpoint's load.
pub(super) fn hash(
    config: Option<&HashConfig>,
    strategy: Strategy,
    at: &ConfigPath,
    problems: &mut Problems,
) -> (Option<HashBy>, Option<MaxLoad>) {
    let Some(config) = config else {
        return match strategy {
            Strategy::Hrw => (Some(HashBy::Client(IpStrategy::peer())), None),
            Strategy::Hash => {
                let problem =
                    Problem::error(&at.key("strategy"), "the strategy hash needs to know what to hash");
                problems.push(problem.hint("add hash: { header: X-User }, or cookie, query, path, clientIP"));
                (None, None)
            }
            Strategy::Wrr | Strategy::P2c | Strategy::LeastRequests | Strategy::LeastTime => (None, None),
        };
    };
    let block = at.key("hash");
    if strategy != Strategy::Hash {
        let problem =
            Problem::error(&block, format!("the strategy {} does not read hash", strategy.as_str()));
        problems.push(problem.hint("write strategy: hash beside it"));
        return (None, None);
    }
    let max_load = MaxLoad::percent(config.max_load);
    if max_load.is_none() && config.max_load != 0 {
        let problem = Problem::error(&block.key("maxLoad"), "maxLoad is over 100 percent, or 0 for no bound");
        problems.push(problem.hint("125 lets an endpoint have a quarter more than its share"));
    }
    (hash_by(config, &block, problems), max_load)
}

fn hash_by(config: &HashConfig, at: &ConfigPath, problems: &mut Problems) -> Option<HashBy> {
    let written = [
        ("header", config.header.is_some()),
        ("cookie", config.cookie.is_some()),
        ("query", config.query.is_some()),
        ("path", config.path),
        ("clientIP", config.client_ip),
    ];
    let written: Vec<&str> = written.iter().filter(|(_, is)| *is).map(|(key, _)| *key).collect();
    let [one] = written.as_slice() else {
        let problem = Problem::error(
            at,
            match written.as_slice() {
                [] => "hash does not say what is hashed".to_owned(),
                several => format!("hash names {}, but one thing is hashed", several.join(" and ")),
            },
        );
        problems.push(problem.hint("keep one of header, cookie, query, path, clientIP"));
        return None;
    };
    if config.ip_strategy.is_some() && !config.client_ip {
        problems.error(&at.key("ipStrategy"), "ipStrategy goes with clientIP: true only");
        return None;
    }
    let at = at.key(one);
    if let Some(name) = &config.header {
        return match HeaderName::try_from(name.as_str()) {
            Ok(name) if name == http::header::COOKIE => {
                let problem = Problem::error(&at, "all cookies together change too often to be hashed");
                problems.push(problem.hint("name one: cookie: session"));
                None
            }
            Ok(name) if name == http::header::HOST => {
                problems.error(&at, "Host is not among the fields");
                None
            }
            Ok(name) => Some(HashBy::Header(name)),
            Err(_) => {
                problems.error(&at, format!("bad header name {name:?}"));
                None
            }
        };
    }
    if let Some(name) = &config.cookie {
        if name.is_empty() || !name.bytes().all(is_name_byte) {
            problems.error(&at, format!("bad cookie name {name:?}"));
            return None;
        }
        return Some(HashBy::Cookie(name.as_str().into()));
    }
    if let Some(name) = &config.query {
        if name.is_empty() {
            problems.error(&at, "must not be empty");
            return None;
        }
        return Some(HashBy::Query(name.as_str().into()));
    }
    if config.path {
        return Some(HashBy::Path);
    }
    match &config.ip_strategy {
        None => Some(HashBy::Client(IpStrategy::peer())),
        Some(strategy) => strategy.compile(&at, problems).map(HashBy::Client),
    }
}

/// When a server gets requests; `zone` is where the proxy is.
pub(super) fn tier(server: &ServerConfig, zone: &str, spillover: &SpilloverConfig) -> Tier {
    if server.backup {
        Tier::Backup(spillover.backup_percent)
    } else if zone.is_empty() || server.zone.is_empty() || server.zone == zone {
        Tier::Near
    } else {
        Tier::OtherZone(spillover.zone_percent)
    }
}

/// Which answers are not good enough.
pub(super) fn failover_errors(
    config: &FailoverErrorsConfig,
    at: &ConfigPath,
    problems: &mut Problems,
) -> Option<FailoverErrors> {
    let before = problems.len();
    let mut status = Vec::with_capacity(config.status.len());
    for (index, text) in config.status.iter().enumerate() {
        match text.parse() {
            Some(range) => status.push(range),
            None => {
                let problem = Problem::error(&at.key("status").index(index), "bad status or range");
                problems.push(problem.hint("write \"503\" or \"500-599\", one to an item"));
            }
        }
    }
    if config.status.is_empty() {
        let problem = Problem::error(at, "errors names no status");
        problems.push(problem.hint("add status: [\"500-599\"]"));
    }
    if config.max_request_body_bytes < -1 {
        let problem = Problem::error(&at.key("maxRequestBodyBytes"), "must not be negative");
        problems.push(problem.hint("-1 means no limit"));
    }
    let max_request_body_bytes = u64::try_from(config.max_request_body_bytes).ok();
    (!problems.errors_since(before)).then(|| FailoverErrors { status: status.into(), max_request_body_bytes })
}
