//! The end of a process: what it still does, what it announces, what it cuts.

use std::time::{Duration, Instant};

use crate::harness::client::await_refusal;
use crate::harness::{Client, Gate, Load, Origin, Proxy, eventually, origin, proxy};

/// A proxy that goes on accepting for `accept` after SIGTERM and then waits `grace`.
fn lasting(origin: &Origin, accept: &str, grace: &str) -> Proxy {
    let keys = format!(
        "transport: {{ lifeCycle: {{ requestAcceptGraceTimeout: {accept}, graceTimeOut: {grace} }} }}"
    );
    proxy().all_to(origin).web(&keys).start()
}

/// An origin whose `/slow` waits for a gate.
fn gated() -> (Origin, Gate) {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/slow", move |_, peer| {
            hold.pass();
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    (origin, gate)
}

/// Sends a request for `/slow` and waits until the origin has it.
fn in_flight(proxy: &Proxy, origin: &Origin) -> Client {
    let mut client = proxy.client("a.test");
    let request = client.head("GET", "/slow", &[]);
    client.send(request);
    eventually("the slow request is in flight", || origin.hits() > 0);
    client
}

#[test]
fn on_sigterm_it_is_not_ready_at_once_and_still_accepts() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "1500ms", "5s");
    let mut kept = proxy.client("a.test");
    kept.get("/").expect(200);
    let since = Instant::now();

    proxy.signal("TERM");

    eventually("it is not ready", || proxy.admin_get("/readyz").status == 503);
    assert!(since.elapsed() < Duration::from_millis(1000), "after {:?}", since.elapsed());
    assert_eq!(proxy.admin_get("/ping").status, 503);
    assert_eq!(proxy.admin_get("/livez").status, 200);
    proxy.get("a.test", "/new").expect(200);
    let answer = kept.get("/kept").expect(200);
    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    kept.assert_closed();

    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(since.elapsed() >= Duration::from_millis(1400), "ended after {:?}", since.elapsed());
}

#[test]
fn on_sigint_it_stops_accepting_at_once() {
    let (origin, gate) = gated();
    let mut proxy = lasting(&origin, "60s", "10s");
    let mut slow = in_flight(&proxy, &origin);
    let mut idle = proxy.client("a.test");
    idle.get("/").expect(200);

    proxy.signal("INT");

    await_refusal(proxy.address("web"));
    idle.assert_closed();
    gate.open();
    let answer = slow.response().expect(200);
    assert_eq!(answer.text(), "slow");
    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_request_in_flight_finishes() {
    let (origin, gate) = gated();
    let mut proxy = lasting(&origin, "0s", "10s");
    let mut slow = in_flight(&proxy, &origin);

    proxy.signal("TERM");
    await_refusal(proxy.address("web"));
    gate.open();

    assert_eq!(slow.response().expect(200).text(), "slow");
    slow.assert_closed();
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_response_that_streams_finishes() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/", move |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").chunk("one");
            hold.pass();
            peer.chunk("two").chunk("");
        })
        .start();
    let mut proxy = lasting(&origin, "0s", "10s");
    let mut client = proxy.client("a.test");
    let request = client.head("GET", "/", &[]);
    client.send(request);
    client.read_head();
    assert_eq!(client.read_chunk(), b"one");

    proxy.signal("TERM");
    await_refusal(proxy.address("web"));
    gate.open();

    assert_eq!(client.read_chunk(), b"two");
    assert_eq!(client.read_chunk(), b"");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn an_upload_in_flight_finishes() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "0s", "10s");
    let mut client = proxy.client("a.test");
    let head = client.head("POST", "/", &[("Content-Length", "10")]);
    client.send(head).send("first");
    eventually("the upload has reached the origin", || origin.connections() == 1);

    proxy.signal("TERM");
    await_refusal(proxy.address("web"));
    client.send("later");

    client.response().expect(200);
    assert_eq!(origin.last().text(), "firstlater");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn what_lasts_longer_than_the_grace_is_cut() {
    let (origin, _gate) = gated();
    let mut proxy = lasting(&origin, "0s", "500ms");
    let mut slow = in_flight(&proxy, &origin);
    let since = Instant::now();

    proxy.signal("TERM");

    // Cut or answered by the proxy itself; but not later.
    let _ = slow.rest();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(since.elapsed() >= Duration::from_millis(450), "ended after {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(5), "ended after {:?}", since.elapsed());
}

#[test]
fn a_tunnel_does_not_outlast_the_grace() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.write(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            )
            .hang();
        })
        .start();
    let mut proxy = lasting(&origin, "0s", "500ms");
    let mut client = proxy.client("a.test");
    client.request("GET", "/", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"").expect(101);

    proxy.signal("TERM");

    assert_eq!(proxy.wait_exit().code(), Some(0));
    client.assert_closed();
}

#[test]
fn a_second_sigterm_ends_it_now() {
    let (origin, _gate) = gated();
    let mut proxy = lasting(&origin, "60s", "60s");
    let _slow = in_flight(&proxy, &origin);
    let since = Instant::now();

    proxy.signal("TERM");
    eventually("it is not ready", || proxy.admin_get("/readyz").status == 503);
    assert!(proxy.runs());
    proxy.signal("TERM");

    proxy.wait_exit();
    assert!(since.elapsed() < Duration::from_secs(8), "ended after {:?}", since.elapsed());
}

#[test]
fn an_idle_proxy_ends_as_soon_as_it_accepts_no_more() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "0s", "60s");
    let mut idle = proxy.client("a.test");
    idle.get("/").expect(200);
    let since = Instant::now();

    proxy.signal("TERM");

    idle.assert_closed();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(since.elapsed() < Duration::from_secs(5), "ended after {:?}", since.elapsed());
}

#[test]
fn clients_that_heed_the_announcement_see_no_failure() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "800ms", "5s");
    let load = Load::start(proxy.address("web"), "a.test", "/", 3);
    load.await_more(100);

    proxy.signal("TERM");
    load.await_more(100);
    // While it still accepts, nobody may fail; what comes after, the load balancer in front no longer sends.
    let report = load.stop();

    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_connection_accepted_at_the_last_moment_is_served() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "0s", "10s");
    let mut late = proxy.client("a.test");

    proxy.signal("TERM");
    proxy.await_log("draining: no longer accepting");

    let answer = late.get("/").expect(200);
    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn pods_that_are_replaced_while_it_still_accepts_are_followed() {
    let (mut old, new) = (origin().always("old").start(), origin().always("new").start());
    let document = |pod: &Origin| {
        format!(
            "entryPoints: {{ web: {{ address: \"127.0.0.1:0\", transport: {{ lifeCycle: {{ \
             requestAcceptGraceTimeout: 6s }} }} }} }}\nhttp:\n  routers: {{ all: {{ rule: \
             \"PathPrefix(`/`)\", service: pods }} }}\n  services: {{ pods: {{ loadBalancer: {{ servers: [{{ \
             url: \"{}\" }}] }} }} }}\n",
            pod.url()
        )
    };
    let mut proxy = proxy().config(&document(&old)).start();
    assert_eq!(proxy.get("x", "/").expect(200).text(), "old");

    proxy.signal("TERM");
    eventually("it is not ready", || proxy.admin_get("/readyz").status == 503);
    proxy.write_config(&document(&new));
    old.kill();

    eventually("the new pod answers", || proxy.get("x", "/").text() == "new");
    assert_eq!(proxy.admin_get("/readyz").status, 503);
    proxy.signal("TERM");
    proxy.wait_exit();
}

#[test]
fn a_reload_after_sigterm_does_not_bring_it_back() {
    let origin = origin().start();
    let mut proxy = lasting(&origin, "1s", "5s");
    proxy.signal("TERM");
    eventually("it is not ready", || proxy.admin_get("/readyz").status == 503);

    proxy.signal("HUP");
    proxy.write_config("http: {}");

    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// Two entry points on one slow origin, each with a life cycle of its own.
fn two(origin: &Origin, web: &str, other: &str) -> Proxy {
    proxy()
        .origin("origin", origin)
        .config(&format!(
            r#"
entryPoints:
  web: {{ address: "127.0.0.1:0", transport: {{ lifeCycle: {{ {web} }} }} }}
  other: {{ address: "127.0.0.1:0", transport: {{ lifeCycle: {{ {other} }} }} }}
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
"#
        ))
        .start()
}

/// Like [`in_flight`], through any entry point.
fn in_flight_at(proxy: &Proxy, entry_point: &str, origin: &Origin) -> Client {
    let before = origin.hits();
    let mut client = Client::connect(proxy.address(entry_point), "a.test");
    let request = client.head("GET", "/slow", &[]);
    client.send(request);
    eventually("the slow request is in flight", || origin.hits() > before);
    client
}

#[test]
fn each_entry_point_finishes_within_its_own_grace() {
    let (origin, gate) = gated();
    let accept = "requestAcceptGraceTimeout: 0s";
    let mut proxy =
        two(&origin, &format!("{accept}, graceTimeOut: 200ms"), &format!("{accept}, graceTimeOut: 60s"));
    let mut cut = in_flight_at(&proxy, "web", &origin);
    let mut finishes = in_flight_at(&proxy, "other", &origin);

    proxy.signal("TERM");

    cut.assert_closed();
    let line = proxy.await_log("connections cut");
    assert_eq!(line.text("entry_point").as_deref(), Some("web"));
    proxy.await_metric("sluicegate_connections_closed_total{entrypoint=\"web\",reason=\"cut\"}", 1.0);
    gate.open();
    assert_eq!(finishes.response().expect(200).text(), "slow");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn each_entry_point_accepts_for_its_own_time() {
    let origin = origin().start();
    let mut proxy =
        two(&origin, "requestAcceptGraceTimeout: 0s", "requestAcceptGraceTimeout: 60s, graceTimeOut: 60s");

    proxy.signal("TERM");

    await_refusal(proxy.address("web"));
    Client::connect(proxy.address("other"), "a.test").get("/").expect(200);
    // What has stopped stays so, whatever the files say by now.
    let (generation, text) = (proxy.generation(), std::fs::read_to_string(proxy.path()).expect("its file"));
    proxy.write_config(&format!("{text}\n# as before\n"));
    proxy.await_generation(generation + 1);
    await_refusal(proxy.address("web"));
    Client::connect(proxy.address("other"), "a.test").get("/").expect(200);
    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
