//! Which entry points there are, and which of them a router attaches to.
//!
//! Reads the document; adds what Traefik makes by itself. Never: compiles, binds.

use std::collections::BTreeMap;

use super::Internal;
use crate::common::names::EntryPointName;
use crate::common::problem::ConfigPath;
use crate::config::document::DocumentConfig;
use crate::config::entry_point::{EntryPointConfig, ListenAddress};

/// Name of the entry point that Traefik makes for its own services.
const INTERNAL_ENTRY_POINT: &str = "traefik";

/// What one of Traefik's own blocks (`ping`, `api`, `metrics.prometheus`) puts on an entry point.
pub(super) struct InternalRouter {
    pub(super) entry_point: EntryPointName,
    pub(super) name: &'static str,
    pub(super) rule: &'static str,
    pub(super) service: Internal,
    /// The key that names the entry point, or makes it.
    pub(super) at: ConfigPath,
}

/// The entry points of the document, and those that Traefik would make: `http` at `:80` when there is
/// none, and `traefik` at `:8080` for its own services.
pub fn entry_points(config: &DocumentConfig) -> BTreeMap<EntryPointName, EntryPointConfig> {
    let mut entries = config.entry_points.clone();
    let makes = |port| EntryPointConfig::at(ListenAddress { ip: None, port });
    let internal = EntryPointName::new(INTERNAL_ENTRY_POINT);
    if entries.keys().all(|name| *name == internal) {
        entries.insert(EntryPointName::new("http"), makes(80));
    }
    if internal_routers(config).iter().any(|router| router.entry_point == internal) {
        entries.entry(internal).or_insert_with(|| makes(8080));
    }
    entries
}

/// Where a router listens that names no entry point: at those with `asDefault`; when none has it, at all
/// but `traefik`.
pub fn default_entry_points(entries: &BTreeMap<EntryPointName, EntryPointConfig>) -> Vec<&EntryPointName> {
    let defaults: Vec<_> =
        entries.iter().filter(|(_, entry)| entry.as_default).map(|(name, _)| name).collect();
    if defaults.is_empty() {
        return entries.keys().filter(|name| name.as_str() != INTERNAL_ENTRY_POINT).collect();
    }
    defaults
}

pub(super) fn internal_routers(config: &DocumentConfig) -> Vec<InternalRouter> {
    let ping = config.ping.as_ref().filter(|ping| !ping.manual_routing).map(|ping| InternalRouter {
        entry_point: EntryPointName::new(&ping.entry_point),
        name: "ping@internal",
        rule: "PathPrefix(`/ping`)",
        service: Internal::Ping,
        at: ConfigPath::of(&["ping", "entryPoint"]),
    });
    let api = config.api.as_ref().filter(|api| api.insecure).map(|_| InternalRouter {
        entry_point: EntryPointName::new(INTERNAL_ENTRY_POINT),
        name: "api@internal",
        rule: "PathPrefix(`/api`)",
        service: Internal::Api,
        at: ConfigPath::of(&["api", "insecure"]),
    });
    let prometheus = config.metrics.prometheus.as_ref().filter(|metrics| !metrics.manual_routing);
    let prometheus = prometheus.map(|metrics| InternalRouter {
        entry_point: EntryPointName::new(&metrics.entry_point),
        name: "prometheus@internal",
        rule: "PathPrefix(`/metrics`)",
        service: Internal::Prometheus,
        at: ConfigPath::of(&["metrics", "prometheus", "entryPoint"]),
    });
    [ping, api, prometheus].into_iter().flatten().collect()
}
