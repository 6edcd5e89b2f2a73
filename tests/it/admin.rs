//! The admin listener: probes, metrics, and the API in Traefik's shape.

use std::fs;

use serde_json::Value;

use crate::harness::{Client, Gate, Origin, Proxy, eventually, origin, proxy, scratch};

const DOCUMENT: &str = r#"
http:
  routers:
    api: { rule: "Host(`a.test`) && PathPrefix(`/api`)", service: pods, middlewares: [strip, limit] }
    low: { rule: "PathPrefix(`/`)", service: both, priority: -1 }
  middlewares:
    strip: { stripPrefix: { prefixes: ["/api"] } }
    limit: { rateLimit: { average: 1, period: 1h, burst: 2 } }
    unused: { addPrefix: { prefix: /x } }
  services:
    pods: { loadBalancer: { servers: [{ url: "{origin}" }] } }
    both: { weighted: { services: [{ name: pods, weight: 2 }] } }
"#;

fn running() -> (Origin, Proxy) {
    let origin = origin().start();
    let proxy = proxy().origin("origin", &origin).config(DOCUMENT).start();
    (origin, proxy)
}

#[track_caller]
fn json(proxy: &Proxy, target: &str) -> Value {
    let answer = proxy.admin_get(target).expect(200);
    let kind = answer.header("Content-Type").unwrap_or_default();
    assert!(kind.starts_with("application/json"), "{target}: {:?}", answer.head.raw);
    answer.json()
}

/// The item of a list whose name, without its provider, is this.
#[track_caller]
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let items = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    let found = items
        .iter()
        .find(|item| item["name"].as_str().is_some_and(|full| full.split('@').next() == Some(name)));
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}

#[test]
fn probes_say_alive_and_ready() {
    let (_origin, proxy) = running();

    proxy.admin_get("/livez").expect(200);
    proxy.admin_get("/readyz").expect(200);
    let ping = proxy.admin_get("/ping").expect(200);
    assert_eq!(ping.text(), "OK");
    Client::connect(proxy.admin(), "admin").request("HEAD", "/ping", &[], b"").expect(200);
    Client::connect(proxy.admin(), "admin").request("HEAD", "/readyz", &[], b"").expect(200);
}

#[test]
fn the_admin_listener_answers_nothing_else() {
    let (origin, proxy) = running();

    proxy.admin_get("/nothing").expect(404);
    proxy.admin_get("/api/nothing").expect(404);
    Client::connect(proxy.admin(), "admin").post("/api/rawdata", "x").expect(405);
    assert_eq!(origin.hits(), 0);
    // And the entry points answer nothing of the admin listener.
    assert_eq!(proxy.get("b.test", "/metrics").expect(200).text(), "GET /metrics");
}

#[test]
fn the_admin_listener_keeps_its_connections() {
    let (_origin, proxy) = running();
    let mut client = Client::connect(proxy.admin(), "admin");

    for target in ["/readyz", "/metrics", "/api/overview", "/ping", "/nothing"] {
        client.get(target);
    }
}

#[test]
fn metrics_are_well_formed() {
    let (_origin, proxy) = running();
    proxy.get("b.test", "/").expect(200);
    // A client may have its answer before the exchange is over and counted.
    proxy.await_metric("sluicegate_service_requests_total", 1.0);

    let answer = proxy.admin_get("/metrics").expect(200);

    let kind = answer.header("Content-Type").unwrap_or_default().to_owned();
    assert!(kind.starts_with("text/plain") || kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.text();
    let mut series = std::collections::HashSet::new();
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        assert!(value.parse::<f64>().is_ok() || value == "+Inf", "{line}");
        assert!(series.insert(name.to_owned()), "twice: {name}");
    }
    for family in [
        "sluicegate_config_generation",
        "sluicegate_config_info",
        "sluicegate_entrypoint_requests_total",
        "sluicegate_entrypoint_request_duration_seconds_bucket",
        "sluicegate_service_requests_total",
        "sluicegate_connections_open",
        "sluicegate_upstream_connects_total",
        "sluicegate_service_endpoint_up",
        "process_resident_memory_bytes",
        "process_open_fds",
    ] {
        assert!(text.lines().any(|line| line.starts_with(family)), "no {family} in\n{text}");
    }
}

#[test]
fn requests_are_counted_once_by_entry_point_and_service() {
    let (_origin, proxy) = running();
    let mut client = proxy.client("b.test");
    for _ in 0..5 {
        client.get("/x").expect(200);
    }
    client.post("/x", "12345678").expect(200);

    let by_entry_point = "sluicegate_entrypoint_requests_total{entrypoint=\"web\",code=\"200\"}";
    proxy.await_metric(by_entry_point, 6.0);
    proxy.await_metric("sluicegate_entrypoint_requests_total{method=\"POST\"}", 1.0);
    assert_eq!(proxy.metric("sluicegate_entrypoint_request_duration_seconds_count"), 6.0);
    assert_eq!(proxy.metric("sluicegate_entrypoint_requests_bytes_total"), 8.0);
    assert!(proxy.metric("sluicegate_service_requests_total{code=\"200\"}") >= 6.0);
    assert_eq!(proxy.metric("sluicegate_upstream_connects_total{outcome=\"opened\"}"), 1.0);
    assert_eq!(proxy.metric("sluicegate_upstream_connects_total{outcome=\"reused\"}"), 5.0);
}

#[test]
fn open_connections_are_shown_and_go_away() {
    let (_origin, proxy) = running();
    let open = "sluicegate_connections_open{entrypoint=\"web\"}";
    let mut clients: Vec<_> = (0..4).map(|_| proxy.client("b.test")).collect();
    for client in &mut clients {
        client.get("/").expect(200);
    }

    proxy.await_metric(open, 4.0);
    drop(clients);
    proxy.await_metric(open, 0.0);
}

#[test]
fn what_the_limiter_said_is_counted() {
    let (_origin, proxy) = running();
    for _ in 0..5 {
        proxy.get("a.test", "/api");
    }

    proxy.await_metric("sluicegate_limiter_decisions_total{decision=\"allowed\"}", 2.0);
    proxy.await_metric("sluicegate_limiter_decisions_total{decision=\"refused\"}", 3.0);
}

#[test]
fn a_404_is_counted_against_the_client() {
    let origin = origin().start();
    let proxy = proxy().route("Host(`a.test`)", &origin).start();

    proxy.get("b.test", "/").expect(404);

    proxy.await_metric("sluicegate_refusals_total{code=\"no_route\",fault=\"client\"}", 1.0);
}

#[test]
fn strangers_cannot_make_labels() {
    let (_origin, proxy) = running();
    let mut client = proxy.client("b.test");
    for index in 0..50 {
        client.request(&format!("METHOD{index}"), "/", &[("X-Forwarded-Host", "evil")], b"").expect(200);
    }

    let text = proxy.admin_get("/metrics").expect(200).text();

    assert!(!text.contains("METHOD7"), "{text}");
    assert!(!text.contains("evil"), "{text}");
}

#[test]
fn routers_are_listed_in_traefiks_shape() {
    let (_origin, proxy) = running();

    let routers = json(&proxy, "/api/http/routers");

    let api = named(&routers, "api");
    assert_eq!(api["rule"], "Host(`a.test`) && PathPrefix(`/api`)");
    assert_eq!(api["status"], "enabled");
    assert_eq!(api["priority"], "Host(`a.test`) && PathPrefix(`/api`)".len());
    assert_eq!(api["entryPoints"], serde_json::json!(["web"]));
    assert_eq!(api["using"], serde_json::json!(["web"]));
    assert!(api["service"].as_str().is_some_and(|name| name.starts_with("pods")), "{api}");
    assert_eq!(api["middlewares"].as_array().map(Vec::len), Some(2), "{api}");
    assert_eq!(named(&routers, "low")["priority"], -1);
    assert_eq!(named(&routers, "low")["priorityStr"], "-1");
    let all = api["middlewares"].as_array().into_iter().flatten();
    assert!(all.clone().all(|name| name.as_str().is_some_and(|name| name.ends_with("@file"))), "{api}");
    assert!(api.as_object().is_some_and(|api| api.values().all(|value| !value.is_null())), "{api}");

    let name = api["name"].as_str().expect("a name").to_owned();
    assert_eq!(json(&proxy, &format!("/api/http/routers/{name}"))["rule"], api["rule"]);
}

#[test]
fn an_unknown_item_is_404_with_its_name() {
    let (_origin, proxy) = running();

    let answer = proxy.admin_get("/api/http/routers/zz@file").expect(404);

    assert_eq!(answer.json()["message"], "router not found: zz@file");
}

#[test]
fn services_and_middlewares_are_listed_with_who_uses_them() {
    let (origin, proxy) = running();

    let services = json(&proxy, "/api/http/services");
    let pods = named(&services, "pods");
    assert_eq!(pods["status"], "enabled");
    assert_eq!(pods["loadBalancer"]["servers"][0]["url"], origin.url());
    assert_eq!(pods["serverStatus"][origin.url()], "UP");
    assert!(pods["usedBy"].to_string().contains("api"), "{pods}");

    let middlewares = json(&proxy, "/api/http/middlewares");
    let strip = named(&middlewares, "strip");
    assert_eq!(strip["stripPrefix"]["prefixes"], serde_json::json!(["/api"]));
    assert!(strip["usedBy"].to_string().contains("api"), "{strip}");
    named(&middlewares, "unused");
}

#[test]
fn lists_have_pages() {
    let (_origin, proxy) = running();

    let first = proxy.admin_get("/api/http/middlewares?page=1&per_page=2").expect(200);
    assert_eq!(first.json().as_array().map(Vec::len), Some(2));
    assert_eq!(first.header("X-Next-Page"), Some("2"));
    let second = proxy.admin_get("/api/http/middlewares?page=2&per_page=2").expect(200);
    assert_eq!(second.header("X-Next-Page"), Some("1"));
    proxy.admin_get("/api/http/middlewares?page=9&per_page=2").expect(400);
    let found = json(&proxy, "/api/http/middlewares?search=stri");
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
}

#[test]
fn the_overview_counts() {
    let (_origin, proxy) = running();

    let overview = json(&proxy, "/api/overview");

    let routers = &overview["http"]["routers"];
    assert!(routers["total"].as_u64().is_some_and(|total| total >= 2), "{overview}");
    assert_eq!((&routers["errors"], &routers["warnings"]), (&Value::from(0), &Value::from(0)), "{overview}");
    assert!(overview["http"]["middlewares"]["total"].as_u64().is_some_and(|total| total >= 3), "{overview}");
    for key in ["services", "middlewares"] {
        assert!(overview["http"][key].is_object(), "{overview}");
    }
    assert!(overview["tcp"].is_object() && overview["features"].is_object(), "{overview}");
}

#[test]
fn entry_points_are_listed() {
    let (_origin, proxy) = running();

    let entry_points = json(&proxy, "/api/entrypoints");
    assert!(named(&entry_points, "web")["address"].is_string(), "{entry_points}");
    assert_eq!(json(&proxy, "/api/entrypoints/web")["name"], "web");
    proxy.admin_get("/api/entrypoints/nobody").expect(404);
}

#[test]
fn rawdata_holds_everything_and_follows_a_reload() {
    let (_origin, proxy) = running();
    let keys = |part: &Value| -> Vec<String> {
        let items = part.as_object().unwrap_or_else(|| panic!("no map: {part}"));
        items.keys().map(|name| name.split('@').next().unwrap_or_default().to_owned()).collect()
    };
    let raw = json(&proxy, "/api/rawdata");
    assert!(keys(&raw["routers"]).contains(&"api".to_owned()), "{raw}");
    assert!(keys(&raw["services"]).contains(&"pods".to_owned()), "{raw}");
    assert!(keys(&raw["middlewares"]).contains(&"strip".to_owned()), "{raw}");

    proxy.reload(&DOCUMENT.replace("    low:", "    renamed:"));

    let raw = json(&proxy, "/api/rawdata");
    assert!(keys(&raw["routers"]).contains(&"renamed".to_owned()), "{raw}");
    assert!(!keys(&raw["routers"]).contains(&"low".to_owned()), "{raw}");
}

#[test]
fn the_version_is_told() {
    let (_origin, proxy) = running();

    let version = json(&proxy, "/api/version");

    assert!(version.to_string().contains(env!("CARGO_PKG_VERSION")), "{version}");
}

#[test]
fn why_the_newest_document_was_refused_is_told() {
    let (_origin, proxy) = running();
    proxy.reload_refused("http: { routres: {} }");

    let config = proxy.admin_get("/api/config").expect(200).text();

    assert!(config.contains("routres"), "{config}");
    assert_eq!(proxy.metric("sluicegate_config_last_reload_successful"), 0.0);
}

#[test]
fn the_admin_listener_answers_while_the_entry_points_are_busy() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin().otherwise(move |_, peer| {
        hold.pass();
        peer.respond("200 OK", &[], "");
    });
    let origin = origin.start();
    let proxy = proxy().all_to(&origin).start();
    let mut clients: Vec<_> = (0..20).map(|_| proxy.client("a.test")).collect();
    for client in &mut clients {
        let request = client.head("GET", "/", &[]);
        client.send(request);
    }
    eventually("all are in flight", || origin.hits() == 20);

    proxy.admin_get("/readyz").expect(200);
    proxy.admin_get("/metrics").expect(200);

    gate.open();
    for client in &mut clients {
        client.response().expect(200);
    }
}

#[test]
fn traefiks_internal_services_may_stand_behind_a_router() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
api: {}
ping: { manualRouting: true }
http:
  routers:
    api: { rule: "Host(`ops.test`) && PathPrefix(`/api`)", service: api@internal }
    ping: { rule: "Host(`ops.test`) && Path(`/ping`)", service: ping@internal }
"#,
        )
        .start();

    assert_eq!(proxy.get("ops.test", "/ping").expect(200).text(), "OK");
    assert!(proxy.get("ops.test", "/api/overview").expect(200).json()["http"].is_object());
}

#[test]
fn what_was_put_in_from_a_file_is_shown_nowhere() {
    const SECRET: &str = "s3cr3t-of-a-partner";
    let directory = scratch();
    let file = directory.path().join("tag");
    fs::write(&file, format!("{SECRET}\n")).expect("a writable directory");
    let origin = origin().start();
    let document = r#"
http:
  routers:
    api: { rule: "Header(`X-Tag`, `{tag}`)", service: pods, middlewares: [tag] }
  middlewares:
    tag: { headers: { customRequestHeaders: { X-Note: "id={tag}" } } }
    path: { addPrefix: { prefix: "/{tag}" } }
  services:
    pods: { loadBalancer: { servers: [{ url: "{origin}" }], healthCheck: { path: "/?k={tag}", interval: 1h } } }
"#;
    let tag = format!("${{file:{}}}", file.display());
    let proxy = proxy().origin("origin", &origin).config(&document.replace("{tag}", &tag)).start();
    let answer = proxy.client("a.test").request("GET", "/", &[("X-Tag", SECRET)], b"");
    answer.expect(200);
    let seen = origin.last().head;
    assert_eq!(seen.get("X-Note"), Some(&*format!("id={SECRET}")));

    proxy.reload_refused(&document.replace("{tag}", &tag).replace("Header(`X-Tag`, ", "Header(`X-Tag`, !"));
    for page in [
        "/api/rawdata",
        "/api/overview",
        "/api/entrypoints",
        "/api/http/routers",
        "/api/http/services",
        "/api/http/middlewares",
        "/metrics",
    ] {
        let text = proxy.admin_get(page).expect(200).text();
        assert!(!text.contains(SECRET), "{page}: {text}");
    }
    let middleware = &json(&proxy, "/api/http/middlewares/tag@file")["headers"];
    assert_eq!(middleware["customRequestHeaders"]["X-Note"], "id=REDACTED");
    let logged = format!("{:?} {:?}", proxy.log_lines(), proxy.stdout());
    assert!(!logged.contains(SECRET), "{logged}");
}
