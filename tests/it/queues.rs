//! Limits on what a service has under way: who waits, who is refused, and who goes first.

use crate::harness::{Client, Gate, Origin, Proxy, eventually, origin, proxy};

/// An origin that answers only once the gate is open.
fn gated(gate: &Gate) -> Origin {
    let gate = gate.clone();
    origin()
        .otherwise(move |request, peer| {
            gate.pass();
            peer.respond("200 OK", &[], request.target.clone());
        })
        .start()
}

fn document(balancer: &str, transport: &str) -> String {
    format!(
        r#"
http:
  routers:
    all: {{ rule: "PathPrefix(`/`)", service: pods }}
    high: {{ rule: "PathPrefix(`/high`)", service: pods, importance: high }}
    low: {{ rule: "PathPrefix(`/low`)", service: pods, importance: low }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{pod}}" }}] {balancer} }} }} }}
serversTransport: {{ maxIdleConnsPerHost: 200 {transport} }}
"#
    )
}

fn start(origin: &Origin, balancer: &str, transport: &str) -> Proxy {
    proxy().origin("pod", origin).config(&document(balancer, transport)).start()
}

/// Sends a request and leaves it there.
fn ask(proxy: &Proxy, target: &str) -> Client {
    let mut client = proxy.client("a.test");
    client.send_request("GET", target, &[], b"");
    client
}

fn await_waiting(proxy: &Proxy, count: f64) {
    proxy.await_metric("sluicegate_service_queue_waiting{service=\"pods\"}", count);
}

#[test]
fn a_full_queue_is_503_with_retry_after_and_the_rest_is_served() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1, queue: { size: 1 }", "");
    let mut served = ask(&proxy, "/1");
    eventually("the first is at the origin", || origin.hits() == 1);
    let mut waits = ask(&proxy, "/2");
    await_waiting(&proxy, 1.0);

    let refused = proxy.get("a.test", "/3").expect(503);
    let shown = proxy.admin_get("/api/resilience").expect(200).json();
    assert_eq!(shown["services"]["pods@file"]["waiting"], 1, "{shown}");
    assert_eq!(shown["services"]["pods@file"]["refused"], 1, "{shown}");

    assert_eq!(refused.header("Retry-After"), Some("1"));
    gate.open();
    assert_eq!(served.response().expect(200).text(), "/1");
    assert_eq!(waits.response().expect(200).text(), "/2");
    assert_eq!(origin.hits(), 2);
    await_waiting(&proxy, 0.0);
    assert_eq!(proxy.metric("sluicegate_service_queue_refused_total{service=\"pods\",reason=\"full\"}"), 1.0);
    assert_eq!(proxy.metric("sluicegate_service_queue_waited_total{service=\"pods\"}"), 1.0);
    assert!(proxy.metric("sluicegate_refusals_total{code=\"queue_full\",fault=\"policy\"}") >= 1.0);
}

#[test]
fn one_who_waits_too_long_is_503() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", queue: { timeout: 200ms }", ", maxRequestsPerHost: 1");
    let mut served = ask(&proxy, "/1");
    eventually("the first is at the origin", || origin.hits() == 1);

    proxy.get("a.test", "/2").expect(503);

    proxy.await_metric("sluicegate_refusals_total{code=\"queue_timeout\",fault=\"policy\"}", 1.0);
    gate.open();
    served.response().expect(200);
    assert_eq!(origin.hits(), 1, "one who was refused goes nowhere");
}

#[test]
fn a_client_that_gives_up_leaves_the_queue_and_reaches_no_pod() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1", "");
    let mut served = ask(&proxy, "/1");
    eventually("the first is at the origin", || origin.hits() == 1);
    let gone = ask(&proxy, "/2");
    await_waiting(&proxy, 1.0);
    let mut waits = ask(&proxy, "/3");
    await_waiting(&proxy, 2.0);

    drop(gone);

    await_waiting(&proxy, 1.0);
    gate.open();
    served.response().expect(200);
    waits.response().expect(200);
    assert_eq!(origin.received().iter().map(|one| one.target.as_str()).collect::<Vec<_>>(), ["/1", "/3"]);
}

#[test]
fn those_who_wait_are_served_in_order_and_the_important_first() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1", "");
    let mut clients = vec![ask(&proxy, "/0")];
    eventually("the first is at the origin", || origin.hits() == 1);
    for (number, target) in ["/low", "/1", "/2", "/high", "/3"].iter().enumerate() {
        clients.push(ask(&proxy, target));
        await_waiting(&proxy, number as f64 + 1.0);
    }

    gate.open();

    for client in &mut clients {
        client.response().expect(200);
    }
    let order: Vec<_> = origin.received().iter().map(|one| one.target.clone()).collect();
    assert_eq!(order, ["/0", "/high", "/1", "/2", "/3", "/low"]);
}

#[test]
fn a_full_queue_makes_room_for_what_matters_more() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1, queue: { size: 1 }", "");
    let _served = ask(&proxy, "/0");
    eventually("the first is at the origin", || origin.hits() == 1);
    let mut low = ask(&proxy, "/low");
    await_waiting(&proxy, 1.0);

    let mut high = ask(&proxy, "/high");

    low.response().expect(503);
    gate.open();
    high.response().expect(200);
}

#[test]
fn a_raised_limit_lets_in_those_who_wait() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1", "");
    let mut clients = [ask(&proxy, "/1"), ask(&proxy, "/2")];
    await_waiting(&proxy, 1.0);

    proxy.reload(&document(", maxRequests: 2", ""));

    eventually("both are at the origin", || origin.hits() == 2);
    gate.open();
    for client in &mut clients {
        client.response().expect(200);
    }
}

#[test]
fn a_lifted_limit_lets_in_those_who_wait() {
    let gate = Gate::new();
    let origin = gated(&gate);
    let proxy = start(&origin, ", maxRequests: 1", "");
    let mut clients = [ask(&proxy, "/1"), ask(&proxy, "/2")];
    await_waiting(&proxy, 1.0);

    proxy.reload(&document("", ""));

    eventually("both are at the origin", || origin.hits() == 2);
    gate.open();
    for client in &mut clients {
        client.response().expect(200);
    }
}

#[test]
fn connections_to_a_pod_stay_within_their_limit_over_all_cores() {
    let origin = origin().start();
    let proxy = start(&origin, "", ", maxConnsPerHost: 2");
    // Some on each core, so that one core's idle connections stand in another's way.
    let mut clients: Vec<_> = (0..8).map(|_| proxy.client("a.test")).collect();

    for _ in 0..20 {
        for client in &mut clients {
            client.send_request("GET", "/", &[], b"");
        }
        for client in &mut clients {
            client.response().expect(200);
        }
        let open = proxy.metric("sluicegate_service_queue_connections{service=\"pods\"}");
        assert!((1.0..=2.0).contains(&open), "{open}");
    }

    // The origin hears of a close a little later.
    eventually("no more than two are left", || origin.open_connections() <= 2);
}

#[test]
fn those_who_wait_use_the_connections_that_are_there() {
    let origin = origin().start();
    let one_core = format!("workers: 1\n{}", document("", ", maxConnsPerHost: 2"));
    let proxy = proxy().origin("pod", &origin).config(&one_core).start();
    let mut clients: Vec<_> = (0..16).map(|_| proxy.client("a.test")).collect();

    for _ in 0..20 {
        for client in &mut clients {
            client.send_request("GET", "/", &[], b"");
        }
        for client in &mut clients {
            client.response().expect(200);
        }
    }

    // A connection that had just become idle was closed for somebody who could have used it.
    assert!(origin.connections() <= 2, "{}", origin.connections());
}

#[test]
fn a_full_endpoint_is_passed_over_while_another_has_room() {
    let gate = Gate::new();
    let (busy, free) = (gated(&gate), origin().always("free").start());
    let proxy = proxy()
        .origin("busy", &busy)
        .origin("free", &free)
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { servers: [{ url: "{busy}" }, { url: "{free}" }] } } }
serversTransport: { maxRequestsPerHost: 1 }
"#,
        )
        .start();
    let mut first = ask(&proxy, "/");
    eventually("one of them has it", || busy.hits() + free.hits() == 1);
    let mut second = ask(&proxy, "/");
    eventually("the busy one has one", || busy.hits() == 1);

    for _ in 0..10 {
        assert_eq!(proxy.get("a.test", "/").expect(200).text(), "free");
    }

    assert_eq!(busy.hits(), 1);
    gate.open();
    first.response().expect(200);
    second.response().expect(200);
}

#[test]
fn explain_says_what_may_be_under_way() {
    let origin = origin().start();
    let proxy = start(&origin, ", maxRequests: 7, queue: { size: 3, timeout: 2s }", "");
    let finished = crate::harness::run(
        proxy.dir(),
        ["explain", "--config", proxy.path().to_str().expect("text"), "http://a.test/"],
    );
    let finished = finished.expect(0);
    assert!(
        finished.stdout.contains("at most 7 requests at once; 3 more wait up to 2s"),
        "{}",
        finished.stdout
    );
}
