//! Every deadline: what fires it, what the client then sees, which metric counts it, and what must not fire it.

use std::time::{Duration, Instant};

use crate::harness::{BlackHole, Failure, Proxy, eventually, origin, proxy};

/// One service on `{pod}` with these timeouts of its transport and these keys of its router.
fn upstream(url: &str, timeouts: &str, router: &str) -> Proxy {
    proxy()
        .name("pod", url)
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods {router} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{pod}}" }}] }} }} }}
serversTransport: {{ forwardingTimeouts: {{ {timeouts} }} }}
"#
        ))
        .start()
}

/// `web` with these `respondingTimeouts`.
fn responding(timeouts: &str) -> String {
    format!("transport: {{ respondingTimeouts: {{ {timeouts} }} }}")
}

#[track_caller]
fn assert_counted(proxy: &Proxy, kind: &str) {
    let selector = format!("sluicegate_timeouts_total{{kind=\"{kind}\"}}");
    eventually(&selector, || proxy.metric(&selector) >= 1.0);
}

#[test]
fn a_head_that_does_not_end_is_408() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("headTimeout: 300ms")).start();
    let mut client = proxy.client("a.test");

    let since = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: a.te");
    let answer = client.response().expect(408);

    assert_eq!(answer.text(), "Request Timeout");
    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    client.assert_closed();
    assert!(since.elapsed() >= Duration::from_millis(280), "after {:?}", since.elapsed());
    assert_counted(&proxy, "client_head");
}

#[test]
fn a_head_that_drips_is_408_all_the_same() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("headTimeout: 400ms")).start();
    let mut client = proxy.client("a.test");

    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n");
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) && client.try_send("X-A: 1\r\n") {
        std::thread::sleep(Duration::from_millis(50));
    }

    // Its last bytes may have met a closed socket, and the reset may have overtaken the answer.
    match client.try_response("GET") {
        Ok(answer) => assert_eq!(answer.status, 408),
        Err(Failure::Reset(_) | Failure::Closed(_)) => {}
        Err(other) => panic!("{other}"),
    }
    assert_eq!(origin.hits(), 0);
    assert_counted(&proxy, "client_head");
}

#[test]
fn a_second_head_on_a_connection_has_the_same_deadline() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("headTimeout: 300ms")).start();
    let mut client = proxy.client("a.test");
    client.get("/").expect(200);

    client.send("GET / HTTP/1.1\r\n");

    client.response().expect(408);
    client.assert_closed();
}

#[test]
fn a_body_that_does_not_end_is_408() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("readTimeout: 400ms")).start();
    for framing in [("Content-Length", "100"), ("Transfer-Encoding", "chunked")] {
        let mut client = proxy.client("a.test");
        let head = client.head("POST", "/", &[framing]);
        client.send(head).send("5\r\nhello\r\n");

        let answer = client.response().expect(408);

        assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
        client.assert_closed();
    }
    assert_eq!(origin.hits(), 0, "{:?}", origin.received());
    assert_counted(&proxy, "client_body");
}

#[test]
fn a_body_that_drips_is_cut_all_the_same() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("readTimeout: 400ms")).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "1000")]);
    client.send(head);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(5) && client.try_send("x") {
        std::thread::sleep(Duration::from_millis(50));
    }

    assert!(since.elapsed() < Duration::from_secs(5), "still read after {:?}", since.elapsed());
    assert_counted(&proxy, "client_body");
}

#[test]
fn a_body_of_which_nothing_more_comes_is_408() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("stallTimeout: 300ms")).start();
    let mut client = proxy.client("a.test");

    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nhalf");

    client.response().expect(408);
    client.assert_closed();
    assert_counted(&proxy, "client_body");
}

#[test]
fn a_client_that_takes_nothing_of_its_answer_is_cut_and_counted() {
    let origin = origin()
        .on("/big", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            let part = vec![b'x'; 1_000_000];
            for _ in 0..100 {
                peer.write(&part);
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).web(&responding("stallTimeout: 300ms")).start();
    let mut client = proxy.client("a.test");

    client.send("GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n");

    assert_counted(&proxy, "client_stall");
    proxy.get("a.test", "/").expect(200);
    assert!(client.try_response("GET").is_err(), "the answer cannot be whole");
}

#[test]
fn an_idle_client_connection_is_closed_without_a_word() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("idleTimeout: 400ms")).start();
    let mut client = proxy.client("a.test");
    for _ in 0..3 {
        client.get("/").expect(200);
        std::thread::sleep(Duration::from_millis(150));
    }

    let since = Instant::now();
    client.assert_closed();

    assert!(since.elapsed() < Duration::from_secs(5), "after {:?}", since.elapsed());
}

#[test]
fn a_connection_that_never_says_a_word_is_closed() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&responding("idleTimeout: 400ms, headTimeout: 400ms")).start();
    let mut client = proxy.client("a.test");

    let rest = client.rest().expect("an end");

    assert!(
        rest.is_empty() || rest.starts_with(b"HTTP/1.1 408 "),
        "{:?}",
        crate::harness::wire::latin1(&rest)
    );
}

#[test]
fn a_slow_answer_is_no_idle_connection() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.pause(Duration::from_millis(700));
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let proxy = proxy()
        .all_to(&origin)
        .web(&responding("idleTimeout: 200ms, headTimeout: 200ms, readTimeout: 200ms"))
        .start();

    assert_eq!(proxy.get("a.test", "/").expect(200).text(), "slow");
}

#[test]
fn no_response_head_in_time_is_504_and_counted() {
    let silent = origin().otherwise(|_, peer| peer.hang()).start();
    let proxy = upstream(&silent.url(), "responseHeaderTimeout: 200ms", "");

    assert_eq!(proxy.client("a.test").post("/", "x").expect(504).text(), "Gateway Timeout");

    assert_counted(&proxy, "response_header");
}

#[test]
fn a_router_may_have_a_shorter_response_head_deadline() {
    let silent = origin().otherwise(|_, peer| peer.hang()).start();
    let proxy =
        upstream(&silent.url(), "responseHeaderTimeout: 60s", ", timeouts: { responseHeader: 200ms }");

    proxy.client("a.test").post("/", "x").expect(504);

    assert_counted(&proxy, "response_header");
}

#[test]
fn a_slow_upload_does_not_count_against_the_response_head() {
    let origin = origin().start();
    let proxy = upstream(&origin.url(), "responseHeaderTimeout: 400ms", "");
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "8")]);
    client.send(head);
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("x");
    }

    client.response().expect(200);
}

#[test]
fn no_connection_in_time_is_504_and_counted() {
    let hole = BlackHole::new();
    let proxy = upstream(&hole.url(), "dialTimeout: 200ms", "");

    proxy.get("a.test", "/").expect(504);

    assert_counted(&proxy, "connect");
}

#[test]
fn a_body_that_pauses_too_long_is_cut_and_counted() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart").hang();
        })
        .start();
    let proxy = upstream(&origin.url(), "idleTimeout: 300ms", "");
    let mut client = proxy.client("a.test");

    let outcome = client.try_get("/");

    assert!(matches!(outcome, Err(Failure::Closed(_) | Failure::Reset(_))), "{outcome:?}");
    assert_counted(&proxy, "idle");
    eventually("the origin is let go", || origin.open_connections() == 0);
}

#[test]
fn a_body_that_never_pauses_too_long_may_last() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for _ in 0..10 {
                peer.pause(Duration::from_millis(100));
                peer.chunk("tick.");
            }
            peer.chunk("");
        })
        .start();
    let proxy = upstream(&origin.url(), "idleTimeout: 600ms, responseHeaderTimeout: 600ms", "");

    assert_eq!(proxy.get("a.test", "/").expect(200).body.len(), 50);
}

#[test]
fn a_tunnel_in_which_nothing_moves_is_closed() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.write(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            );
            while let Ok(part) = peer.read_exactly(4) {
                peer.write(part);
            }
        })
        .start();
    let proxy = upstream(&origin.url(), "idleTimeout: 500ms", "");
    let mut client = proxy.client("a.test");
    client.request("GET", "/", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"").expect(101);

    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        client.send("ping");
        assert_eq!(client.read_exactly(4), b"ping");
    }

    client.assert_closed();
    eventually("the origin is let go", || origin.open_connections() == 0);
}

#[test]
fn the_whole_exchange_may_have_a_deadline() {
    let origin = origin()
        .on("/silent", |_, peer| peer.hang())
        .on("/dripping", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for _ in 0..100 {
                peer.chunk("drip");
                peer.pause(Duration::from_millis(50));
            }
        })
        .start();
    let proxy = upstream(&origin.url(), "", ", timeouts: { request: 400ms }");

    proxy.client("a.test").post("/silent", "x").expect(504);
    let since = Instant::now();
    let outcome = proxy.client("a.test").try_get("/dripping");
    assert!(matches!(outcome, Err(Failure::Closed(_) | Failure::Reset(_))), "{outcome:?}");
    assert!(since.elapsed() < Duration::from_secs(3), "after {:?}", since.elapsed());
    assert_counted(&proxy, "exchange");
}

#[test]
fn an_idle_pooled_connection_is_closed_in_time() {
    let origin = origin().start();
    let proxy = upstream(&origin.url(), "idleConnTimeout: 300ms", "");
    let mut client = proxy.client("a.test");

    client.get("/").expect(200);
    assert_eq!(origin.open_connections(), 1);

    eventually("the pooled connection is closed", || origin.open_connections() == 0);
    client.get("/").expect(200);
    assert_eq!(origin.connections(), 2);
}

#[test]
fn a_connection_is_closed_after_its_number_of_requests() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web("transport: { keepAliveMaxRequests: 3 }").start();
    let mut client = proxy.client("a.test");

    for number in 1..=3 {
        let answer = client.get("/").expect(200);
        assert_eq!(
            answer.head.lists("Connection", "close"),
            number == 3,
            "answer {number}: {:?}",
            answer.head.raw
        );
    }

    client.assert_closed();
}

#[test]
fn a_connection_is_closed_with_the_first_answer_after_its_age() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web("transport: { keepAliveMaxTime: 300ms }").start();
    let mut client = proxy.client("a.test");
    let since = Instant::now();

    loop {
        let answer = client.get("/").expect(200);
        if answer.head.lists("Connection", "close") {
            break;
        }
        assert!(since.elapsed() < Duration::from_secs(5), "still kept after {:?}", since.elapsed());
        std::thread::sleep(Duration::from_millis(20));
    }

    assert!(since.elapsed() >= Duration::from_millis(280), "after {:?}", since.elapsed());
    client.assert_closed();
}
