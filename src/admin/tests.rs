//! Answers of a small configuration, and the listener on real sockets.

use std::time::{Duration, UNIX_EPOCH};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::*;

struct View {
    readiness: Mutex<Readiness>,
    model: Arc<ApiModel>,
    options: AdminOptions,
}

impl AdminView for View {
    fn readiness(&self) -> Readiness {
        self.readiness.lock().clone()
    }

    fn metrics(&self) -> String {
        "# the page\n".to_owned()
    }

    fn model(&self) -> Arc<ApiModel> {
        Arc::clone(&self.model)
    }

    fn server_status(&self) -> ServerStatuses {
        let servers = [
            ("http://10.0.0.1".to_owned(), ServerStatus::Up.into()),
            ("http://10.0.0.2".to_owned(), ServerStatus::Down.into()),
        ];
        BTreeMap::from([("pods@file".to_owned(), BTreeMap::from(servers))])
    }

    fn version(&self) -> VersionInfo {
        VersionInfo { version: "0.1.0".to_owned(), started: UNIX_EPOCH }
    }

    fn config(&self) -> ConfigStatus {
        ConfigStatus {
            generation: 3,
            hash: "cafe".to_owned(),
            accepted: Some(UNIX_EPOCH),
            refused: Some(Refused {
                at: UNIX_EPOCH + Duration::from_secs(60),
                problems: vec!["a.yaml:1:2: bad".to_owned()],
            }),
        }
    }

    fn options(&self) -> AdminOptions {
        self.options.clone()
    }
}

fn router(rule: &str, priority: u64) -> ApiItem {
    let config = json!({ "entryPoints": ["web"], "rule": rule, "service": "pods", "priority": priority, "middlewares": ["auth@file"] });
    ApiItem::new(config, &[]).used(vec!["web".to_owned()])
}

fn view() -> View {
    let pods = json!({ "loadBalancer": { "servers": [{ "url": "http://ann:secret@10.0.0.1" }] } });
    let auth = json!({ "basicAuth": { "users": ["ann:secret"] } });
    let model = ApiModel {
        entry_points: BTreeMap::from([("web".to_owned(), ApiItem::new(json!({ "address": ":80" }), &[]))]),
        routers: BTreeMap::from([
            ("a@file".to_owned(), router("Host(`a.test`)", 9)),
            (
                "b@file".to_owned(),
                router("Host(", 100).state(ItemState::Disabled, vec!["rule: expected a string".to_owned()]),
            ),
            (
                "ping@internal".to_owned(),
                ApiItem::new(
                    json!({ "rule": "Path(`/ping`)", "service": "ping@internal", "priority": 20 }),
                    &[],
                ),
            ),
        ]),
        services: BTreeMap::from([(
            "pods@file".to_owned(),
            ApiItem::new(pods, &[]).used(vec!["a@file".to_owned()]),
        )]),
        middlewares: BTreeMap::from([("auth@file".to_owned(), ApiItem::new(auth, &[]))]),
    };
    View { readiness: Mutex::new(Readiness::Ready), model: Arc::new(model), options: AdminOptions::default() }
}

fn get(view: &View, target: &str) -> Response<Bytes> {
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    answer(view, &Method::GET, path, query)
}

fn get_json(view: &View, target: &str) -> Value {
    let response = get(view, target);
    assert_eq!(response.status(), StatusCode::OK, "{target}");
    assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
    serde_json::from_slice(response.body()).expect("JSON")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("a list").iter().filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn probes_follow_the_readiness() {
    let view = view();
    for (readiness, livez, readyz, ping, why) in [
        (
            Readiness::NotYet { why: "no configuration".to_owned() },
            200,
            503,
            200,
            "not ready: no configuration\n",
        ),
        (Readiness::Ready, 200, 200, 200, "ready\n"),
        (Readiness::Draining, 200, 503, 503, "draining\n"),
    ] {
        *view.readiness.lock() = readiness;
        assert_eq!(get(&view, "/livez").status(), livez);
        let ready = get(&view, "/readyz");
        assert_eq!((ready.status().as_u16(), ready.body().as_ref()), (readyz, why.as_bytes()));
        assert_eq!(get(&view, "/ping").status(), ping);
    }
}

#[test]
fn ping_takes_any_method_and_the_rest_reads_only() {
    let view = view();
    let post = |path| answer(&view, &Method::POST, path, None);
    assert_eq!((post("/ping").status(), post("/ping").body().as_ref()), (StatusCode::OK, b"OK".as_slice()));
    for path in ["/", "/livez", "/readyz", "/metrics", "/api/rawdata", "/nowhere"] {
        let response = post(path);
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert_eq!(response.headers()[ALLOW], "GET, HEAD");
    }
}

#[test]
fn raw_data_has_traefiks_shape() {
    let expected = json!({
        "routers": {
            "a@file": {
                "entryPoints": ["web"], "rule": "Host(`a.test`)", "service": "pods", "priority": 9,
                "middlewares": ["auth@file"], "status": "enabled", "using": ["web"],
            },
            "b@file": {
                "entryPoints": ["web"], "rule": "Host(", "service": "pods", "priority": 100,
                "middlewares": ["auth@file"], "status": "disabled", "using": ["web"],
                "error": ["rule: expected a string"],
            },
            "ping@internal": {
                "rule": "Path(`/ping`)", "service": "ping@internal", "priority": 20, "status": "enabled",
            },
        },
        "middlewares": {
            "auth@file": { "basicAuth": { "users": ["REDACTED"] }, "status": "enabled" },
        },
        "services": {
            "pods@file": {
                "loadBalancer": { "servers": [{ "url": "http://REDACTED@10.0.0.1" }] },
                "status": "enabled", "usedBy": ["a@file"],
                "serverStatus": { "http://10.0.0.1": "UP", "http://10.0.0.2": "DOWN" },
            },
        },
    });
    assert_eq!(get_json(&view(), "/api/rawdata"), expected);
}

#[test]
fn no_answer_shows_a_secret() {
    let view = view();
    for path in [
        "/",
        "/api/rawdata",
        "/api/http/services",
        "/api/http/services/pods@file",
        "/api/http/middlewares",
        "/api/http/middlewares/auth@file",
    ] {
        let response = get(&view, path);
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert!(!String::from_utf8_lossy(response.body()).contains("secret"), "{path}");
    }
}

#[test]
fn lists_and_details_name_the_item_its_provider_and_type() {
    let view = view();
    let service = json!({
        "loadBalancer": { "servers": [{ "url": "http://REDACTED@10.0.0.1" }] },
        "status": "enabled", "usedBy": ["a@file"], "name": "pods@file", "provider": "file", "type": "loadbalancer",
        "serverStatus": { "http://10.0.0.1": "UP", "http://10.0.0.2": "DOWN" },
    });
    assert_eq!(get_json(&view, "/api/http/services/pods@file"), service);
    assert_eq!(get_json(&view, "/api/http/services/pods%40file"), service);
    assert_eq!(get_json(&view, "/api/http/services"), json!([service]));
    assert_eq!(get_json(&view, "/api/http/middlewares/auth@file")["type"], "basicauth");
    assert_eq!(get_json(&view, "/api/http/routers/ping@internal")["provider"], "internal");
    assert_eq!(get_json(&view, "/api/entrypoints"), json!([{ "address": ":80", "name": "web" }]));
    assert_eq!(get_json(&view, "/api/entrypoints/web"), json!({ "address": ":80", "name": "web" }));
}

#[test]
fn unknown_names_are_404_with_a_message() {
    let view = view();
    for (path, expected) in [
        ("/api/http/routers/zz@file", "router not found: zz@file"),
        ("/api/http/services/zz@file", "service not found: zz@file"),
        ("/api/http/middlewares/zz@file", "middleware not found: zz@file"),
        ("/api/entrypoints/zz", "entry point not found: zz"),
        ("/api/http/nonsense", "not found"),
        ("/api", "not found"),
        ("/apix/rawdata", "not found"),
        ("/nowhere", "not found"),
    ] {
        let response = get(&view, path);
        assert_eq!(response.status(), StatusCode::NOT_FOUND, "{path}");
        let body: Value = serde_json::from_slice(response.body()).expect("JSON");
        assert_eq!(body, json!({ "message": expected }), "{path}");
    }
}

#[test]
fn lists_are_searched_filtered_and_sorted() {
    let view = view();
    for (query, expected) in [
        ("", vec!["a@file", "b@file", "ping@internal"]),
        ("search=A.TEST", vec!["a@file"]),
        ("search=Path%28", vec!["ping@internal"]),
        ("status=disabled", vec!["b@file"]),
        ("serviceName=pods@file", vec!["a@file", "b@file"]),
        ("middlewareName=auth@file&status=enabled", vec!["a@file"]),
        ("sortBy=priority", vec!["a@file", "ping@internal", "b@file"]),
        ("sortBy=priority&direction=desc", vec!["b@file", "ping@internal", "a@file"]),
        ("direction=desc", vec!["ping@internal", "b@file", "a@file"]),
        ("sortBy=nonsense", vec!["a@file", "b@file", "ping@internal"]),
    ] {
        let list = get_json(&view, &format!("/api/http/routers?{query}"));
        assert_eq!(names(&list), expected, "{query}");
    }
}

#[test]
fn lists_come_in_pages() {
    let view = view();
    for (query, next, expected) in [
        ("per_page=2", "2", vec!["a@file", "b@file"]),
        ("page=2&per_page=2", "1", vec!["ping@internal"]),
        ("per_page=3", "1", vec!["a@file", "b@file", "ping@internal"]),
        ("search=nothing", "1", vec![]),
    ] {
        let target = format!("/api/http/routers?{query}");
        assert_eq!(get(&view, &target).headers()["x-next-page"], next, "{query}");
        assert_eq!(names(&get_json(&view, &target)), expected, "{query}");
    }
    for (query, expected) in [
        ("page=2", "invalid request: page: 2, per_page: 100"),
        ("page=0", "invalid request: page: 0"),
        ("per_page=x", "invalid request: per_page: x"),
        (
            "page=18446744073709551615&per_page=18446744073709551615",
            "invalid request: page: 18446744073709551615, per_page: 18446744073709551615",
        ),
    ] {
        let response = get(&view, &format!("/api/http/routers?{query}"));
        assert_eq!(response.status(), StatusCode::BAD_REQUEST, "{query}");
        let body: Value = serde_json::from_slice(response.body()).expect("JSON");
        assert_eq!(body["message"], expected);
    }
}

#[test]
fn the_overview_counts_and_the_config_says_what_runs() {
    let view = view();
    let overview = get_json(&view, "/api/overview");
    assert_eq!(overview["http"]["routers"], json!({ "total": 3, "warnings": 0, "errors": 1 }));
    assert_eq!(overview["features"]["metrics"], "Prometheus");
    let expected = json!({
        "generation": 3, "hash": "cafe", "accepted": "1970-01-01T00:00:00Z",
        "refused": { "at": "1970-01-01T00:01:00Z", "problems": ["a.yaml:1:2: bad"] },
    });
    assert_eq!(get_json(&view, "/api/config"), expected);
    assert_eq!(get_json(&view, "/api/version")["Version"], "0.1.0");
}

#[test]
fn what_is_switched_off_is_not_there() {
    let mut view = view();
    view.options = AdminOptions { api: false, metrics: false, ..AdminOptions::default() };
    assert_eq!(get(&view, "/api/rawdata").status(), StatusCode::NOT_FOUND);
    assert_eq!(get(&view, "/metrics").status(), StatusCode::NOT_FOUND);
    // A router that names the service asks for it.
    let internal = |service, path| answer_internal(&view, service, &Method::GET, path, None).status();
    assert_eq!(internal(InternalService::Api, "/api/rawdata"), StatusCode::OK);
    assert_eq!(internal(InternalService::Api, "/metrics"), StatusCode::NOT_FOUND);
    assert_eq!(internal(InternalService::Prometheus, "/anything"), StatusCode::OK);
    assert_eq!(internal(InternalService::Ping, "/anything"), StatusCode::OK);
}

#[test]
fn the_api_stands_under_its_base_path() {
    let mut view = view();
    view.options.base_path = "/gate/".to_owned();
    assert_eq!(get(&view, "/gate/api/version").status(), StatusCode::OK);
    assert_eq!(get(&view, "/api/version").status(), StatusCode::NOT_FOUND);
}

/// A running listener, its address, and how to stop it.
async fn started(
    view: View,
) -> (std::net::SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<std::io::Result<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, Arc::new(view), async move { drop(stopped.await) }));
    (address, stop, task)
}

/// Sends a request and reads until the answer ends with `end`.
async fn exchange(stream: &mut TcpStream, request: &str, end: &str) -> String {
    stream.write_all(request.as_bytes()).await.expect("a write");
    let mut answer = Vec::new();
    while !answer.ends_with(end.as_bytes()) {
        let read = stream.read_buf(&mut answer).await.expect("a read");
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn the_listener_answers_on_one_connection_until_it_is_stopped() {
    let (address, stop, task) = started(view()).await;
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    for (path, end) in
        [("/livez", "\r\n\r\nok\n"), ("/metrics", "\r\n\r\n# the page\n"), ("/readyz", "\r\n\r\nready\n")]
    {
        let request = format!("GET {path} HTTP/1.1\r\nHost: admin\r\n\r\n");
        let answer = exchange(&mut stream, &request, end).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let answer = exchange(&mut stream, "HEAD /livez HTTP/1.1\r\nHost: admin\r\n\r\n", "\r\n\r\n").await;
    assert!(answer.to_ascii_lowercase().contains("content-length: 3\r\n"), "{answer}");
    // No content follows: the next answer begins at once.
    let answer = exchange(&mut stream, "POST /ping HTTP/1.1\r\nHost: admin\r\n\r\n", "OK").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");

    stop.send(()).expect("a listener");
    task.await.expect("no panic").expect("a clean end");
    assert_eq!(stream.read(&mut [0; 16]).await.expect("the end"), 0);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_whole_head_is_let_go() {
    let (address, _stop, _task) = started(view()).await;
    let began = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost").await.expect("a write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("the end");
    // Not only when it is too old.
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_and_are_served_when_one_ends() {
    let (address, _stop, _task) = started(view()).await;
    let mut held = Vec::new();
    for _ in 0..256 {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        exchange(&mut stream, "GET /livez HTTP/1.1\r\nHost: a\r\n\r\n", "ok\n").await;
        held.push(stream);
    }
    let mut late = TcpStream::connect(address).await.expect("a place in the queue");
    late.write_all(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("a write");
    let waits = tokio::time::timeout(Duration::from_millis(100), late.readable()).await;
    assert!(waits.is_err(), "answered beyond the cap");
    held.pop();
    exchange(&mut late, "", "ok\n").await;
}
