//! Keys and values that Traefik has and this version has not, each with what it does to a document.
//!
//! Nothing of it is ignored silently. To support one: give its type the field (or the variant) and
//! delete its line here. Kinds of middlewares are not here: `crate::middleware` lists its own.

use crate::common::problem::{ConfigPath, Problem, Step};

/// What a key or value that is not supported yet does to the document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Effect {
    /// Without it traffic would go another way, or be less protected, than the file says.
    Refuse,
    /// Without it traffic is the same.
    Warn,
}

use Effect::{Refuse, Warn};

struct Row {
    /// Keys from the document down; `*` stands for any name or list position.
    path: &'static str,
    effect: Effect,
    /// How to mend it, or what happens instead.
    hint: &'static str,
}

/// A written value that changes nothing, so that the key may stay.
struct Harmless {
    path: &'static str,
    values: &'static [&'static str],
}

const REMOVE: &str = "remove it; this version does not have it";
const ACME: &str = "no certificates are ordered; name their files in tls.certificates";
const SPIFFE: &str = "name authorities in rootCAs and the pods' identity in peerCertURI";

#[rustfmt::skip]
const KEYS: &[Row] = &[
    // --- what changes traffic -----------------------------------------------------------------
    Row { path: "tcp", effect: Refuse, hint: "only http routers are supported" },
    Row { path: "udp", effect: Refuse, hint: "only http routers are supported" },
    Row { path: "certificatesResolvers", effect: Refuse, hint: ACME },
    Row { path: "hostResolver.cnameFlattening", effect: Refuse, hint: "name every host in the rule" },
    Row { path: "entryPoints.*.http3", effect: Refuse, hint: REMOVE },
    Row { path: "entryPoints.*.udp", effect: Refuse, hint: REMOVE },
    Row { path: "entryPoints.*.proxyProtocol", effect: Refuse, hint: "without it the client's address is that of the load balancer" },
    Row { path: "entryPoints.*.allowACMEByPass", effect: Warn, hint: "no certificates are ordered, so every router may take that path" },
    Row { path: "entryPoints.*.http.tls.certResolver", effect: Refuse, hint: ACME },
    Row { path: "http.routers.*.tls.certResolver", effect: Refuse, hint: ACME },
    Row { path: "tls.stores.*.defaultGeneratedCert", effect: Refuse, hint: ACME },
    Row { path: "http.routers.*.parentRefs", effect: Refuse, hint: "write the parent's rule and middlewares into the router" },
    Row { path: "http.services.*.middlewares", effect: Refuse, hint: "name them in the routers that use the service" },
    // --- what does not ------------------------------------------------------------------------
    Row { path: "global.checkNewVersion", effect: Warn, hint: "Sluicegate never asks for new versions" },
    Row { path: "global.sendAnonymousUsage", effect: Warn, hint: "Sluicegate never sends usage figures" },
    Row { path: "hostResolver.resolvConfig", effect: Warn, hint: REMOVE },
    Row { path: "hostResolver.resolvDepth", effect: Warn, hint: REMOVE },
    Row { path: "experimental", effect: Warn, hint: REMOVE },
    Row { path: "ocsp", effect: Warn, hint: "name an OCSP answer in the certificate's ocspFile" },
    Row { path: "spiffe", effect: Warn, hint: REMOVE },
    Row { path: "tracing", effect: Warn, hint: "no traces are sent" },
    Row { path: "tcpServersTransport", effect: Warn, hint: "only http routers are supported" },
    Row { path: "entryPoints.*.http2.maxEncoderHeaderTableSize", effect: Warn, hint: "the table is as large as the client allows, and never more than 4096 bytes" },
    Row { path: "log.maxSize", effect: Warn, hint: "rotate from outside and send SIGUSR1" },
    Row { path: "log.maxAge", effect: Warn, hint: "rotate from outside and send SIGUSR1" },
    Row { path: "log.maxBackups", effect: Warn, hint: "rotate from outside and send SIGUSR1" },
    Row { path: "log.compress", effect: Warn, hint: "rotate from outside and send SIGUSR1" },
    Row { path: "log.otlp", effect: Warn, hint: "the log goes to standard output or a file" },
    Row { path: "accessLog.otlp", effect: Warn, hint: "the access log goes to standard output or a file" },
    Row { path: "accessLog.dualOutput", effect: Warn, hint: "the access log goes to filePath alone" },
    Row { path: "metrics.prometheus.headerLabels", effect: Warn, hint: "labels come from closed sets, never from requests" },
    Row { path: "metrics.otlp", effect: Warn, hint: "use prometheus" },
    Row { path: "metrics.datadog", effect: Warn, hint: "use prometheus" },
    Row { path: "metrics.statsd", effect: Warn, hint: "use prometheus" },
    Row { path: "metrics.influxDB2", effect: Warn, hint: "use prometheus" },
    Row { path: "serversTransport.spiffe", effect: Warn, hint: SPIFFE },
    Row { path: "http.serversTransports.*.spiffe", effect: Warn, hint: SPIFFE },
    Row { path: "providers.precedence", effect: Warn, hint: "there is one provider" },
    Row { path: "providers.file.debugLogGeneratedTemplate", effect: Warn, hint: "Go templates are not supported" },
    Row { path: "providers.http", effect: Warn, hint: PROVIDER },
    Row { path: "providers.redis", effect: Warn, hint: PROVIDER },
    Row { path: "providers.consul", effect: Warn, hint: PROVIDER },
    Row { path: "providers.etcd", effect: Warn, hint: PROVIDER },
    Row { path: "providers.zooKeeper", effect: Warn, hint: PROVIDER },
    Row { path: "providers.docker", effect: Warn, hint: PROVIDER },
    Row { path: "providers.swarm", effect: Warn, hint: PROVIDER },
    Row { path: "providers.consulCatalog", effect: Warn, hint: PROVIDER },
    Row { path: "providers.nomad", effect: Warn, hint: PROVIDER },
    Row { path: "providers.ecs", effect: Warn, hint: PROVIDER },
    Row { path: "providers.kubernetesIngress", effect: Warn, hint: PROVIDER },
    Row { path: "providers.kubernetesIngressNGINX", effect: Warn, hint: PROVIDER },
    Row { path: "providers.kubernetesCRD", effect: Warn, hint: PROVIDER },
    Row { path: "providers.kubernetesGateway", effect: Warn, hint: PROVIDER },
    Row { path: "providers.knative", effect: Warn, hint: PROVIDER },
    Row { path: "providers.rest", effect: Warn, hint: PROVIDER },
    Row { path: "providers.plugin", effect: Warn, hint: PROVIDER },
];

const PROVIDER: &str = "routers and services come from files only; what this one would find is missing";

/// Values of supported keys; the last step of the path is the value.
#[rustfmt::skip]
const VALUES: &[Row] = &[
    Row { path: "accessLog.addInternals.true", effect: Warn, hint: "requests to the proxy's own services are not logged" },
    Row { path: "metrics.addInternals.true", effect: Warn, hint: "requests to the proxy's own services are not counted" },
    Row { path: "api.debug.true", effect: Warn, hint: "there are no /debug paths" },
    Row { path: "http.routers.*.ruleSyntax.v2", effect: Refuse, hint: "write the rule in v3's language" },
    Row { path: "core.defaultRuleSyntax.v2", effect: Refuse, hint: "write rules in v3's language" },
];

/// Written this way, a key of [`KEYS`] says nothing.
const HARMLESS: &[Harmless] = &[
    Harmless { path: "tcp", values: &["{}", "null"] },
    Harmless { path: "udp", values: &["{}", "null"] },
    Harmless { path: "certificatesResolvers", values: &["{}", "null"] },
    Harmless { path: "hostResolver.cnameFlattening", values: &["false", "null"] },
    Harmless { path: "global.checkNewVersion", values: &["false", "null"] },
    Harmless { path: "global.sendAnonymousUsage", values: &["false", "null"] },
    Harmless { path: "entryPoints.*.http2.maxEncoderHeaderTableSize", values: &["4096", "null"] },
    Harmless { path: "log.compress", values: &["false", "null"] },
    Harmless { path: "accessLog.dualOutput", values: &["false", "null"] },
    Harmless { path: "metrics.prometheus.headerLabels", values: &["{}", "null"] },
    Harmless { path: "providers.file.debugLogGeneratedTemplate", values: &["false", "null"] },
];

/// What the table says about a key.
#[derive(Debug)]
pub enum Verdict {
    /// It is not in the table: a mistake.
    Unknown,
    /// It is, and says nothing as it is written.
    Harmless,
    /// It is not supported.
    Unsupported(Box<Problem>),
}

/// Looks up a key that no type has. `written` is its value where that is short: `false`, `{}`, `null`.
pub fn key(path: &ConfigPath, written: Option<&str>) -> Verdict {
    let Some(row) = KEYS.iter().find(|row| matches(row.path, path)) else { return Verdict::Unknown };
    let harmless = HARMLESS.iter().any(|row| {
        matches(row.path, path)
            && written.is_some_and(|written| row.values.iter().any(|v| v.eq_ignore_ascii_case(written)))
    });
    if harmless {
        return Verdict::Harmless;
    }
    let what = row.path.rsplit('.').next().unwrap_or(row.path);
    Verdict::Unsupported(Box::new(problem(row, path, what)))
}

/// Looks up a value that no type has, at the path of its key.
pub fn value(path: &ConfigPath, value: &str) -> Option<Problem> {
    let whole = path.key(value);
    let row = VALUES.iter().find(|row| matches(row.path, &whole))?;
    let (rest, value) = row.path.rsplit_once('.').unwrap_or(("", row.path));
    let key = rest.rsplit('.').next().unwrap_or(rest);
    Some(problem(row, path, &format!("{key} {value}")))
}

/// The usual spellings of keys that the table has under `path`, for suggestions.
pub fn keys_under(path: &ConfigPath) -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|row| {
        let (parent, key) = row.path.rsplit_once('.').unwrap_or(("", row.path));
        matches(parent, path).then_some(key)
    })
}

fn problem(row: &Row, path: &ConfigPath, what: &str) -> Problem {
    let message = format!("{what} is not supported yet");
    match row.effect {
        Refuse => Problem::error(path, message).hint(row.hint),
        Warn => Problem::warning(path, message).hint(row.hint),
    }
}

fn matches(pattern: &str, path: &ConfigPath) -> bool {
    if pattern.is_empty() {
        return path.steps().is_empty();
    }
    let mut steps = path.steps().iter();
    let all = pattern.split('.').all(|part| match steps.next() {
        Some(Step::Key(key)) => part == "*" || key.eq_ignore_ascii_case(part),
        Some(Step::Index(_)) => part == "*",
        None => false,
    });
    all && steps.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_in_any_case_and_under_any_name() {
        let path = ConfigPath::of(&["http", "routers", "a.b", "PARENTREFS"]);
        let Verdict::Unsupported(problem) = key(&path, Some("[]")) else { panic!("not found") };
        assert_eq!(problem.message, "parentRefs is not supported yet");
        assert!(matches!(key(&ConfigPath::of(&["http", "routers", "a"]), None), Verdict::Unknown));
        assert!(matches!(key(&ConfigPath::of(&["tcp", "routers"]), None), Verdict::Unknown));
    }

    #[test]
    fn a_key_that_says_nothing_is_harmless() {
        assert!(matches!(key(&ConfigPath::of(&["tcp"]), Some("{}")), Verdict::Harmless));
        assert!(matches!(key(&ConfigPath::of(&["tcp"]), None), Verdict::Unsupported(_)));
    }

    #[test]
    fn a_value_is_found_at_its_key() {
        let path = ConfigPath::of(&["http", "routers", "api", "ruleSyntax"]);
        assert_eq!(
            value(&path, "V2").map(|problem| problem.message),
            Some("ruleSyntax v2 is not supported yet".to_owned())
        );
        assert_eq!(value(&path, "v3"), None);
    }

    #[test]
    fn every_harmless_value_belongs_to_a_key_of_the_table() {
        for harmless in HARMLESS {
            assert!(KEYS.iter().any(|row| row.path == harmless.path), "{}", harmless.path);
        }
    }
}
