//! The API in Traefik's shape: raw data, overview, and lists with search, filters, order and pages.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::admin::model::{ApiItem, ItemState};
use crate::admin::{
    AdminView, LimitStatus, RedisStatus, ServerState, ServerStatus, ServerStatuses, json_response, message,
};
use crate::telemetry::time::Utc;

/// Items on a page when the client does not say; Traefik's.
const PER_PAGE: usize = 100;

/// The number of the next page, or 1 after the last.
const NEXT_PAGE: HeaderName = HeaderName::from_static("x-next-page");

/// The three kinds of item under `http`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Router,
    Service,
    Middleware,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Service => "service",
            Self::Middleware => "middleware",
        }
    }
}

/// Answers a path under `/api`, which is taken off already.
pub(super) fn answer(view: &dyn AdminView, path: &str, query: Option<&str>) -> Response<Bytes> {
    let query = Query::parse(query.unwrap_or_default());
    let model = view.model();
    let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
    match segments.as_slice() {
        ["rawdata"] => json_response(StatusCode::OK, &raw_data(view)),
        ["overview"] => json_response(StatusCode::OK, &overview(view)),
        ["version"] => {
            let version = view.version();
            let started = Utc::of(version.started).rfc3339();
            json_response(
                StatusCode::OK,
                &json!({ "Version": version.version, "Codename": "sluicegate", "startDate": started }),
            )
        }
        ["resilience"] => json_response(StatusCode::OK, &view.resilience()),
        ["certificates"] => page(view.certificates(), &query),
        ["config"] => json_response(StatusCode::OK, &config(view)),
        ["limits"] => page(view.limits().iter().map(limit).collect(), &query),
        ["redis"] => page(view.redis().iter().map(redis).collect(), &query),
        ["entrypoints"] => {
            let items = model.entry_points.iter().map(|(name, item)| entry_point(name, item)).collect();
            page(items, &query)
        }
        ["entrypoints", name] => {
            let name = decode(name);
            match model.entry_points.get(&name) {
                Some(item) => json_response(StatusCode::OK, &entry_point(&name, item)),
                None => message(StatusCode::NOT_FOUND, &format!("entry point not found: {name}")),
            }
        }
        ["http", kind, rest @ ..] => {
            let (kind, items) = match *kind {
                "routers" => (Kind::Router, &model.routers),
                "services" => (Kind::Service, &model.services),
                "middlewares" => (Kind::Middleware, &model.middlewares),
                _ => return message(StatusCode::NOT_FOUND, "not found"),
            };
            let statuses = if kind == Kind::Service { view.server_status() } else { ServerStatuses::new() };
            match rest {
                [] => list(kind, items, &statuses, &query),
                [name] => {
                    let name = decode(name);
                    match items.get(&name) {
                        Some(item) => json_response(StatusCode::OK, &named(kind, &name, item, &statuses)),
                        None => message(StatusCode::NOT_FOUND, &format!("{} not found: {name}", kind.word())),
                    }
                }
                _ => message(StatusCode::NOT_FOUND, "not found"),
            }
        }
        // There are none yet; a client that asks for all gets an empty list, as from Traefik.
        ["tcp", "routers" | "services" | "middlewares"] | ["udp", "routers" | "services"] => {
            page(Vec::new(), &query)
        }
        _ => message(StatusCode::NOT_FOUND, "not found"),
    }
}

/// An item without its name, as in the raw data.
fn bare(kind: Kind, name: &str, item: &ApiItem, statuses: &ServerStatuses) -> Map<String, Value> {
    let mut shown = item.config.clone();
    if !item.errors.is_empty() {
        shown.insert("error".to_owned(), item.errors.clone().into());
    }
    shown.insert("status".to_owned(), item.state.as_str().into());
    if !item.used.is_empty() {
        let key = if kind == Kind::Router { "using" } else { "usedBy" };
        shown.insert(key.to_owned(), item.used.clone().into());
    }
    if let Some(states) = statuses.get(name).filter(|_| kind == Kind::Service) {
        let servers: Map<String, Value> =
            states.iter().map(|(url, state)| (url.clone(), server_status(state.status).into())).collect();
        shown.insert("serverStatus".to_owned(), servers.into());
        let known = |(url, state): (&String, &ServerState)| {
            let mut details = state.details.clone();
            details.insert("url".to_owned(), url.as_str().into());
            Value::from(details)
        };
        if states.values().any(|state| !state.details.is_empty()) {
            shown.insert("endpoints".to_owned(), states.iter().map(known).collect());
        }
    }
    shown
}

/// An item with its name, provider and type, as in lists.
fn named(kind: Kind, name: &str, item: &ApiItem, statuses: &ServerStatuses) -> Value {
    let mut shown = bare(kind, name, item, statuses);
    shown.insert("name".to_owned(), name.into());
    let provider = name.rsplit_once('@').map_or("file", |(_, provider)| provider);
    shown.insert("provider".to_owned(), provider.into());
    if kind != Kind::Router
        && let Some(key) = item.config.keys().next()
    {
        shown.insert("type".to_owned(), key.to_ascii_lowercase().into());
    }
    shown.into()
}

fn entry_point(name: &str, item: &ApiItem) -> Value {
    let mut shown = item.config.clone();
    shown.insert("name".to_owned(), name.into());
    shown.into()
}

fn limit(status: &LimitStatus) -> Value {
    let counts = &status.counts;
    let top =
        status.top.iter().map(|top| json!({ "key": top.key, "refused": top.refused, "error": top.error }));
    let mut shown = json!({
        "name": status.name,
        "admitted": counts.admitted,
        "delayed": counts.delayed,
        "refused": counts.refused,
        "buckets": counts.buckets,
        "bytes": counts.bytes,
        "evicted": counts.evicted,
        "topKeys": top.collect::<Vec<_>>(),
    });
    if !status.shared.is_empty() {
        shown["decidedBy"] = json!(status.shared);
    }
    shown
}

fn redis(status: &RedisStatus) -> Value {
    let health = &status.health;
    json!({
        "name": status.name,
        "topology": status.topology,
        "status": if health.up { "up" } else { "away" },
        "since": health.since.map(|since| Utc::of(since).rfc3339()),
        "lastTrouble": health.trouble,
    })
}

fn server_status(status: ServerStatus) -> &'static str {
    match status {
        ServerStatus::Up => "UP",
        ServerStatus::Down => "DOWN",
    }
}

fn raw_data(view: &dyn AdminView) -> Value {
    let (model, statuses) = (view.model(), view.server_status());
    let all = |kind, items: &BTreeMap<String, ApiItem>| -> Map<String, Value> {
        items.iter().map(|(name, item)| (name.clone(), bare(kind, name, item, &statuses).into())).collect()
    };
    json!({
        "routers": all(Kind::Router, &model.routers),
        "middlewares": all(Kind::Middleware, &model.middlewares),
        "services": all(Kind::Service, &model.services),
    })
}

fn overview(view: &dyn AdminView) -> Value {
    let (model, options) = (view.model(), view.options());
    let count = |items: &BTreeMap<String, ApiItem>| {
        let of = |state| items.values().filter(|item| item.state == state).count();
        json!({ "total": items.len(), "warnings": of(ItemState::Warning), "errors": of(ItemState::Disabled) })
    };
    let none = || json!({ "total": 0, "warnings": 0, "errors": 0 });
    json!({
        "http": {
            "routers": count(&model.routers),
            "services": count(&model.services),
            "middlewares": count(&model.middlewares),
        },
        "tcp": { "routers": none(), "services": none(), "middlewares": none() },
        "udp": { "routers": none(), "services": none() },
        "features": {
            "tracing": "",
            "metrics": if options.metrics { "Prometheus" } else { "" },
            "accessLog": options.access_log,
        },
        "providers": ["File"],
    })
}

fn config(view: &dyn AdminView) -> Value {
    let status = view.config();
    json!({
        "generation": status.generation,
        "hash": status.hash,
        "accepted": status.accepted.map(|at| Utc::of(at).rfc3339()),
        "refused": status.refused.map(|refused| json!({
            "at": Utc::of(refused.at).rfc3339(),
            "problems": refused.problems,
        })),
    })
}

fn list(
    kind: Kind,
    items: &BTreeMap<String, ApiItem>,
    statuses: &ServerStatuses,
    query: &Query,
) -> Response<Bytes> {
    let mut shown: Vec<Value> = items
        .iter()
        .filter(|(name, item)| query.wants(kind, name, item))
        .map(|(name, item)| named(kind, name, item, statuses))
        .collect();
    // A stable order, and names are sorted already: equals stay in the order of their names.
    if let Some(key) = query.get("sortBy") {
        shown.sort_by(|a, b| compare(sort_value(kind, key, a), sort_value(kind, key, b)));
    }
    if query.get("direction") == Some("desc") {
        shown.reverse();
    }
    page(shown, query)
}

/// What an item is sorted by; the name when `key` is not one of Traefik's.
fn sort_value(kind: Kind, key: &str, item: &Value) -> Value {
    match (kind, key) {
        (_, "provider" | "status")
        | (Kind::Router, "priority" | "rule" | "service" | "entryPoints")
        | (Kind::Service | Kind::Middleware, "type") => item[key].clone(),
        (Kind::Service, "servers") => item["loadBalancer"]["servers"].as_array().map_or(0, Vec::len).into(),
        _ => item["name"].clone(),
    }
}

fn compare(a: Value, b: Value) -> Ordering {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a.cmp(&b),
            _ => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        },
        (Value::String(a), Value::String(b)) => a.cmp(&b),
        (a, b) => a.to_string().cmp(&b.to_string()),
    }
}

/// One page of a list.
fn page(items: Vec<Value>, query: &Query) -> Response<Bytes> {
    let (page, per_page) = match (query.number("page", 1), query.number("per_page", PER_PAGE)) {
        (Ok(page), Ok(per_page)) => (page, per_page),
        (Err(problem), _) | (_, Err(problem)) => return message(StatusCode::BAD_REQUEST, &problem),
    };
    let start = (page - 1).saturating_mul(per_page);
    if start != 0 && start >= items.len() {
        let problem = format!("invalid request: page: {page}, per_page: {per_page}");
        return message(StatusCode::BAD_REQUEST, &problem);
    }
    let end = start.saturating_add(per_page).min(items.len());
    let next = if end < items.len() { page + 1 } else { 1 };
    let mut response = json_response(StatusCode::OK, &items[start..end]);
    response.headers_mut().insert(NEXT_PAGE, HeaderValue::from(next));
    response
}

/// The parameters of a list.
#[derive(Debug)]
struct Query(Vec<(String, String)>);

impl Query {
    fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
        });
        Self(pairs.collect())
    }

    /// The first parameter of this name, unless it is empty.
    fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        value.filter(|value| !value.is_empty())
    }

    /// A number from 1.
    fn number(&self, name: &str, default: usize) -> Result<usize, String> {
        let Some(text) = self.get(name) else { return Ok(default) };
        match text.parse() {
            Ok(number) if number > 0 => Ok(number),
            Ok(_) | Err(_) => Err(format!("invalid request: {name}: {text}")),
        }
    }

    fn wants(&self, kind: Kind, name: &str, item: &ApiItem) -> bool {
        let field = |key: &str| item.config.get(key).and_then(Value::as_str).unwrap_or_default();
        let found = self.get("search").is_none_or(|search| {
            let search = search.to_lowercase();
            let in_rule = kind == Kind::Router && field("rule").to_lowercase().contains(&search);
            in_rule || name.to_lowercase().contains(&search)
        });
        let in_state =
            self.get("status").is_none_or(|status| status.eq_ignore_ascii_case(item.state.as_str()));
        let by_service =
            self.get("serviceName").is_none_or(|service| same_name(field("service"), service, name));
        let by_middleware = self.get("middlewareName").is_none_or(|middleware| {
            let chain = item.config.get("middlewares").and_then(Value::as_array);
            let mut links = chain.into_iter().flatten().filter_map(Value::as_str);
            links.any(|link| same_name(link, middleware, name))
        });
        found && in_state && (kind != Kind::Router || (by_service && by_middleware))
    }
}

/// Whether a name in an item means the wanted one; without `@` it is of the item's own provider.
fn same_name(written: &str, wanted: &str, item: &str) -> bool {
    let own_provider = |name: &str| match item.rsplit_once('@') {
        Some((_, provider)) if !name.contains('@') => format!("{name}@{provider}"),
        Some(_) | None => name.to_owned(),
    };
    own_provider(written) == own_provider(wanted)
}

fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}
