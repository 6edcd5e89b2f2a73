//! Pods with TLS that choose between HTTP/2 and HTTP/1.1 by ALPN.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio_tungstenite::tungstenite;

use crate::harness::h2::{
    H2Origin, Speaks, ask, connect, echo, echo_call, h2_origin, h2_origin_tls, h2_origin_with, request, run,
};
use crate::harness::tls::{Authority, Pair};
use crate::harness::{Load, Proxy, eventually, eventually_equal, proxy, scratch};

/// A certificate for pods, and a proxy's words that trust it.
struct Trust {
    dir: tempfile::TempDir,
    pair: Pair,
}

impl Trust {
    fn new() -> Self {
        let (dir, authority) = (scratch(), Authority::new());
        std::fs::write(dir.path().join("ca.crt"), authority.pem()).expect("written");
        Self { pair: authority.issue(&["pod.internal"]), dir }
    }

    fn before(&self, pod: &H2Origin, transport: &str, service: &str) -> Proxy {
        proxy()
            .name("dir", self.dir.path().display().to_string())
            .name("pod", pod.url())
            .config(&format!(
                "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  services: {{ s: {{ \
                 loadBalancer: {{ serversTransport: t, servers: [{{ url: '{{pod}}' }}]{service} }} }} }}\n  \
                 serversTransports: {{ t: {{ serverName: pod.internal, rootCAs: ['{{dir}}/ca.crt']{transport} }} }}\n"
            ))
            .start()
    }
}

/// Sends so many requests at once over one connection, and says how many were answered with 200.
async fn at_once(send: &SendRequest<Bytes>, count: usize) -> usize {
    let mut under_way = Vec::new();
    for _ in 0..count {
        let mut send = send.clone();
        under_way.push(tokio::spawn(async move { ask(&mut send, request("GET", "/x"), "").await }));
    }
    let mut good = 0;
    for one in under_way {
        good += usize::from(one.await.expect("no panic").is_ok_and(|answer| answer.status == 200));
    }
    good
}

#[test]
fn a_pod_that_chooses_http2_gets_one_connection_for_many_requests() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, "", "");
    run(async {
        let send = connect(proxy.address("web")).await;
        assert_eq!(at_once(&send, 50).await, 50);
    });
    assert_eq!((pod.hits(), pod.http1_hits(), pod.connections()), (50, 0, 1));
    let mut client = proxy.client("a.test");
    assert_eq!(client.post("/x", "hello").expect(200).text(), "hello");
    let seen = pod.requests();
    assert!(seen.iter().all(|request| request.uri().scheme_str() == Some("https")), "{seen:?}");
}

#[test]
fn a_pod_that_does_not_know_http2_gets_http1() {
    for speaks in [Speaks::Http1, Speaks::Nothing] {
        let trust = Trust::new();
        let pod = h2_origin_tls(&trust.pair, speaks, echo);
        let proxy = trust.before(&pod, "", "");
        run(async {
            let send = connect(proxy.address("web")).await;
            assert_eq!(at_once(&send, 20).await, 20, "{speaks:?}");
            let connections = pod.connections();
            assert_eq!(at_once(&send, 1).await, 1, "{speaks:?}");
            assert_eq!(pod.connections(), connections, "{speaks:?}: connections are kept");
        });
        assert_eq!((pod.hits(), pod.http1_hits()), (0, 21), "{speaks:?}");
    }
}

#[test]
fn http2_is_not_offered_where_it_is_disabled() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, ", disableHTTP2: true", "");
    assert_eq!(proxy.get("a.test", "/x").expect(200).text(), "HTTP/1.1 /x");
    assert_eq!(pod.hits(), 0);
}

#[test]
fn what_a_reload_says_of_http2_holds_from_then_on() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, "", "");
    let mut client = proxy.client("a.test");
    client.get("/x").expect(200);
    assert_eq!(pod.hits(), 1);
    let text = std::fs::read_to_string(proxy.path()).expect("readable");
    proxy.reload(&text.replace("rootCAs:", "disableHTTP2: true, rootCAs:"));
    assert_eq!(client.get("/x").expect(200).text(), "HTTP/1.1 /x");
}

#[test]
fn a_pod_may_change_its_mind() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, "", "");
    let load = Load::start(proxy.address("web"), "a.test", "/x", 4);
    for speaks in [Speaks::Http1, Speaks::Http2, Speaks::Nothing, Speaks::Both] {
        load.await_more(20);
        pod.speak(speaks);
        pod.go_away();
        let before = (pod.hits(), pod.http1_hits());
        eventually(&format!("requests of the new kind for {speaks:?}"), || match speaks {
            Speaks::Http1 | Speaks::Nothing => pod.http1_hits() > before.1,
            Speaks::Http2 | Speaks::Both => pod.hits() > before.0,
        });
    }
    load.await_more(20);
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
}

#[test]
fn requests_that_wait_for_a_handshake_that_fails_all_hear_of_it() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&Authority::new().issue(&["pod.internal"]), Speaks::Both, echo);
    let proxy = trust.before(&pod, "", "");
    run(async {
        let send = connect(proxy.address("web")).await;
        let mut under_way = Vec::new();
        for _ in 0..20 {
            let mut send = send.clone();
            under_way
                .push(tokio::spawn(async move { ask(&mut send, request("GET", "/x"), "").await.unwrap() }));
        }
        for one in under_way {
            assert_eq!(one.await.unwrap().status, 502);
        }
    });
    eventually("the log names the reason", || {
        proxy
            .log_lines()
            .iter()
            .any(|line| line.text("error").is_some_and(|why| why.contains("unknown issuer")))
    });
}

#[test]
fn a_websocket_goes_over_http1() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, "", "");
    assert_eq!(proxy.get("a.test", "/x").status, 200);
    assert_eq!(pod.hits(), 1, "over HTTP/2");
    let request = "GET /chat HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut client = proxy.client("a.test");
    client.send(request);
    assert_eq!(client.read_head().word(1), "101");
    client.send("hello");
    assert_eq!(client.read_exactly(5), b"hello");
    assert_eq!((pod.hits(), pod.http1_hits()), (1, 1));
}

#[test]
fn a_websocket_to_a_pod_of_http2_alone_is_a_502_that_names_the_reason() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Http2, echo);
    let proxy = trust.before(&pod, "", "");
    let stream = std::net::TcpStream::connect(proxy.address("web")).expect("a listener");
    stream.set_read_timeout(Some(crate::harness::DEADLINE)).expect("a span");
    let refused = tungstenite::client("ws://a.test/chat", stream).expect_err("no switch");
    assert!(format!("{refused:?}").contains("502"), "{refused:?}");
    eventually("the log names the reason", || {
        proxy.log_lines().iter().any(|line| line.text("error").is_some_and(|why| why.contains("ALPN")))
    });
    assert_eq!(proxy.get("a.test", "/x").status, 200);
}

#[test]
fn a_call_of_grpc_reaches_a_pod_with_tls() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Http2, echo_call);
    let proxy = trust.before(&pod, "", "");
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let call = request("POST", "/test.Echo/Unary")
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let got = ask(&mut send, call, &b"\0\0\0\0\x02hi"[..]).await.unwrap();
        assert_eq!((&got.body[..], got.trailer("grpc-status")), (&b"\0\0\0\0\x02hi"[..], Some("0")));
    });
    assert_eq!(pod.requests()[0].headers()["te"], "trailers");
}

const CHECK: &str = ", healthCheck: { path: /health, interval: 100ms, unhealthyInterval: 100ms }";
const UP: &str = "sluicegate_service_endpoint_up";

#[test]
fn pods_with_tls_are_checked_by_what_they_choose() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Http1, echo);
    let proxy = trust.before(&pod, "", CHECK);
    eventually("it is asked over HTTP/1.1", || pod.http1_hits() > 2);
    eventually_equal("and well", 1.0, || proxy.metric(UP));
    for (what, name) in [(Speaks::Http2, "HTTP/2 alone"), (Speaks::Both, "both")] {
        pod.speak(what);
        let before = pod.hits();
        eventually(&format!("it is asked over HTTP/2 when it speaks {name}"), || pod.hits() > before + 2);
        assert_eq!(proxy.metric(UP), 1.0, "{name}");
    }
    let asked = pod.requests().pop().expect("a check");
    assert_eq!((asked.method().as_str(), asked.uri().path()), ("GET", "/health"));
    assert_eq!(asked.uri().scheme_str(), Some("https"));
    assert_eq!(asked.headers()["user-agent"], "sluicegate-health-check");
    assert_eq!(proxy.get("a.test", "/x").status, 200);
}

#[test]
fn pods_are_not_checked_by_what_their_transport_does_not_speak() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Http2, echo);
    let proxy = trust.before(&pod, ", disableHTTP2: true", CHECK);
    eventually_equal("no protocol in common", 0.0, || proxy.metric(UP));
    assert_eq!(pod.hits(), 0);
}

fn checked(pod: &H2Origin, check: &str) -> Proxy {
    proxy()
        .name("pod", pod.url())
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  services: {{ s: {{ \
             loadBalancer: {{ servers: [{{ url: '{{pod}}' }}], healthCheck: {{ interval: 50ms, \
             unhealthyInterval: 50ms, {check} }} }} }} }}\n"
        ))
        .start()
}

#[test]
fn pods_of_h2c_are_checked_over_http2() {
    let well = Arc::new(AtomicBool::new(false));
    let says = Arc::clone(&well);
    let pod = h2_origin(move |request, mut respond| {
        let healthy = says.load(Ordering::SeqCst);
        async move {
            let head = |status| http::Response::builder().status(status).body(()).expect("an answer");
            if request.uri().path() != "/health" {
                return respond.send_response(head(404), true).map(drop);
            }
            let status = if healthy { 200 } else { 503 };
            let mut body = respond.send_response(head(status), false)?;
            body.send_data(Bytes::from_static(b"all is well"), true)
        }
    });
    let keys = "path: '/health?deep=1', method: POST, hostname: pod.internal, expectedBody: well, \
                headers: { x-check: '1', connection: close, te: gzip, user-agent: mine }";
    let proxy = checked(&pod, keys);
    eventually_equal("it says that it is ill", 0.0, || proxy.metric(UP));
    well.store(true, Ordering::SeqCst);
    eventually_equal("it says that it is well", 1.0, || proxy.metric(UP));
    let asked = pod.requests().pop().expect("a check");
    assert_eq!(asked.uri().to_string(), "http://pod.internal/health?deep=1");
    assert_eq!(asked.method(), "POST");
    assert_eq!(
        (&asked.headers()["x-check"], &asked.headers()["user-agent"]),
        (&"1".parse().unwrap(), &"mine".parse().unwrap())
    );
    assert!(asked.headers().get("te").is_none(), "{asked:?}");
}

#[test]
fn pods_of_h2c_are_checked_by_the_protocol_of_grpc_too() {
    let pod = h2_origin(|request, mut respond| async move {
        let mut content = request.into_body();
        while let Some(data) = content.data().await {
            data?;
        }
        let head = http::Response::builder().header("content-type", "application/grpc").body(());
        let mut body = respond.send_response(head.expect("an answer"), false)?;
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 8, 1]), false)?;
        let mut trailers = http::HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().expect("a value"));
        body.send_trailers(trailers)
    });
    let proxy = checked(&pod, "mode: grpc");
    eventually("it is asked", || pod.hits() > 3);
    assert_eq!(proxy.metric(UP), 1.0);
    assert_eq!(pod.requests()[0].uri().scheme_str(), Some("http"));
}

#[test]
fn pods_of_h2c_that_are_broken_are_found_by_their_checks() {
    let pod = h2_origin(|_, mut respond| async move {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
        Ok(())
    });
    let proxy = checked(&pod, "path: /health");
    eventually_equal("it resets each check", 0.0, || proxy.metric(UP));
    // A pod of HTTP/1.1 behind a url that says h2c gets no answer to its requests either.
    let other = crate::harness::origin().start();
    let text = format!("h2c://{}", other.address());
    let proxy = crate::harness::proxy()
        .name("pod", text)
        .config(
            "http:\n  routers: { r: { rule: 'PathPrefix(`/`)', service: s } }\n  services: { s: { loadBalancer: { \
             servers: [{ url: '{pod}' }], healthCheck: { path: /, interval: 50ms, unhealthyInterval: 50ms } } } }\n",
        )
        .start();
    eventually_equal("it speaks another protocol", 0.0, || proxy.metric(UP));
}

#[test]
fn limits_on_connections_hold_for_shared_ones() {
    let trust = Trust::new();
    let pod = h2_origin_tls(&trust.pair, Speaks::Both, echo);
    let proxy = trust.before(&pod, ", maxConnsPerHost: 1", ", queue: { size: 100, timeout: 10s }");
    run(async {
        let send = connect(proxy.address("web")).await;
        assert_eq!(at_once(&send, 30).await, 30);
        let another = connect(proxy.address("web")).await;
        assert_eq!(at_once(&another, 30).await, 30, "on another core, too");
    });
    // A core whose request waits gets the place of another's idle connection.
    assert!(pod.connections() <= 3, "{}", pod.connections());
}

/// A proxy before an `h2c` pod with limits on connections.
fn limited(pod: &H2Origin, transport: &str) -> Proxy {
    proxy()
        .name("pod", pod.url())
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  services: {{ s: {{ \
             loadBalancer: {{ serversTransport: t, servers: [{{ url: '{{pod}}' }}], queue: {{ size: 200, timeout: \
             10s }} }} }} }}\n  serversTransports: {{ t: {{ {transport} }} }}\n"
        ))
        .start()
}

#[test]
fn limits_on_connections_hold_for_pods_without_tls() {
    let pod = h2_origin(echo);
    let proxy = limited(&pod, "maxConnsPerHost: 1");
    run(async {
        for _ in 0..4 {
            let send = connect(proxy.address("web")).await;
            assert_eq!(at_once(&send, 30).await, 30, "whichever core it is on");
        }
    });
    assert_eq!(pod.hits(), 120);
    assert_eq!(proxy.metric("sluicegate_service_queue_connections{service=\"s\"}"), 1.0);
    // A core whose request waits gets the place of another's idle connection.
    assert!(pod.connections() <= 4, "{}", pod.connections());
}

#[test]
fn where_a_connection_takes_few_requests_the_rest_waits_for_it_within_the_limit() {
    let mut few = h2::server::Builder::new();
    few.max_concurrent_streams(2);
    let pod = h2_origin_with(few, echo);
    let proxy = limited(&pod, "maxConnsPerHost: 2");
    run(async {
        let send = connect(proxy.address("web")).await;
        assert_eq!(at_once(&send, 60).await, 60);
    });
    assert!((1..=2).contains(&pod.connections()), "{}", pod.connections());
    assert_eq!(pod.hits(), 60);
}
