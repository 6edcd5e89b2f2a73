//! Pods that lie, die, or never answer: what the client sees, and that the next request does not suffer.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::harness::client::Response;
use crate::harness::{BlackHole, Failure, Gate, Origin, Proxy, Refused, eventually, origin, proxy};

/// A service of two endpoints, `{a}` and `{b}`, with keys for its load balancer.
fn pair(a: &str, b: &str, keys: &str) -> Proxy {
    proxy()
        .name("a", a)
        .name("b", b)
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ {keys} servers: [{{ url: "{{a}}" }}, {{ url: "{{b}}" }}] }} }} }}
"#
        ))
        .start()
}

/// A service of one endpoint whose transport has these timeouts.
fn with_timeouts(url: &str, timeouts: &str) -> Proxy {
    proxy()
        .name("pod", url)
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ serversTransport: short, servers: [{{ url: "{{pod}}" }}] }} }} }}
  serversTransports: {{ short: {{ forwardingTimeouts: {{ {timeouts} }} }} }}
"#
        ))
        .start()
}

/// A service of one endpoint, `{pod}`.
const ONE: &str = r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { servers: [{ url: "{pod}" }] } } }
"#;

fn assert_bad_gateway(answer: &Response) {
    assert_eq!((answer.status, answer.text().as_str()), (502, "Bad Gateway"), "{:?}", answer.head.raw);
    assert!(!answer.head.has("Content-Type"), "{:?}", answer.head.raw);
}

/// Heads that no client may see; each is written as it stands, and the connection left open.
const BROKEN_HEADS: &[(&str, &[u8])] = &[
    ("no HTTP at all", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ("no status", b"HTTP/1.1\r\n\r\n"),
    ("a status of two digits", b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n"),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a status of letters", b"HTTP/1.1 OK 200\r\nContent-Length: 0\r\n\r\n"),
    ("a status with a sign", b"HTTP/1.1 +20 OK\r\nContent-Length: 0\r\n\r\n"),
    ("a version of letters", b"HTTP/x.y 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("version 2", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("version 0.9", b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("version in small letters", b"http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("space before the version", b" HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    ("two lengths that differ", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
    ("a list of lengths that differ", b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabcd"),
    ("a length below zero", b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n\r\nabc"),
    ("a length of letters", b"HTTP/1.1 200 OK\r\nContent-Length: abc\r\n\r\nabc"),
    ("a length with a plus", b"HTTP/1.1 200 OK\r\nContent-Length: +3\r\n\r\nabc"),
    ("a length beyond 64 bits", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nabc"),
    ("an unknown coding", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: foo\r\n\r\nabc"),
    ("chunked twice", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("a field without a colon", b"HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n"),
    ("a field without a name", b"HTTP/1.1 200 OK\r\n: x\r\nContent-Length: 0\r\n\r\n"),
    ("space in a name", b"HTTP/1.1 200 OK\r\nX Y: x\r\nContent-Length: 0\r\n\r\n"),
    ("NUL in a value", b"HTTP/1.1 200 OK\r\nX-A: a\0b\r\nContent-Length: 0\r\n\r\n"),
    ("a carriage return in a value", b"HTTP/1.1 200 OK\r\nX-A: a\rb\r\nContent-Length: 0\r\n\r\n"),
    ("a control character in a value", b"HTTP/1.1 200 OK\r\nX-A: a\x01b\r\nContent-Length: 0\r\n\r\n"),
    ("NUL in the reason", b"HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n"),
    (
        "an upgrade that nobody asked for",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n",
    ),
];

#[test]
fn broken_answer_heads_become_502_and_never_reach_the_client() {
    let mut builder = origin();
    for (index, (_, bytes)) in BROKEN_HEADS.iter().enumerate() {
        builder = builder.raw(&format!("/{index}"), *bytes);
    }
    let origin = builder.get("/good", "good").start();
    let proxy = proxy().all_to(&origin).start();

    let mut wrong = Vec::new();
    for (index, (name, _)) in BROKEN_HEADS.iter().enumerate() {
        let mut client = proxy.client("a.test");
        // POST, so that a repetition cannot hide anything.
        let answer = client.post(&format!("/{index}"), "x");
        if answer.status != 502 || answer.text() != "Bad Gateway" {
            wrong.push(format!("{name}: {:?} {:?}", answer.head.raw, answer.text()));
            continue;
        }
        let next = client.get("/good");
        if next.text() != "good" {
            wrong.push(format!("after {name}: {:?} {:?}", next.head.raw, next.text()));
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// Bodies that break off or break the grammar; the client must not take them for whole.
const BROKEN_BODIES: &[(&str, &[u8])] = &[
    ("a short body", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"),
    ("chunks without an end", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"),
    ("half a chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    (
        "a chunk size of letters",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk size below zero",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a chunk longer than its size",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    ),
    (
        "a last chunk without an empty line",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
    ),
];

#[test]
fn an_answer_body_that_breaks_off_cuts_the_client_connection() {
    let mut builder = origin();
    for (index, (_, bytes)) in BROKEN_BODIES.iter().enumerate() {
        builder = builder.on(&format!("/{index}"), move |_, peer| peer.write(bytes).close());
    }
    let origin = builder.start();
    let proxy = proxy().all_to(&origin).start();

    let mut wrong = Vec::new();
    for (index, (name, _)) in BROKEN_BODIES.iter().enumerate() {
        let mut client = proxy.client("a.test");
        let request = client.head("GET", &format!("/{index}"), &[]);
        client.send(request);
        match client.try_response("GET") {
            Err(Failure::Closed(_) | Failure::Reset(_)) => {}
            // Nothing had been sent yet, so that the proxy could still say what happened.
            Ok(answer) if answer.status == 502 => {}
            other => wrong.push(format!("{name}: {other:?}; all that came: {}", client.shown())),
        }
    }
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
    proxy.get("a.test", "/good").expect(200);
}

#[test]
fn a_reset_in_the_middle_of_a_body_cuts_the_client_connection() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nthe first part");
            peer.pause(Duration::from_millis(50));
            peer.reset();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let outcome = client.try_get("/");

    assert!(matches!(outcome, Err(Failure::Closed(_) | Failure::Reset(_))), "{outcome:?}");
}

#[test]
fn a_storm_of_interim_answers_ends_with_502() {
    let origin = origin()
        .on("/", |_, peer| {
            for _ in 0..100_000 {
                peer.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(10));
            }
            peer.close();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    match client.try_get("/") {
        Ok(answer) => {
            assert_eq!(answer.status, 502);
            assert!(answer.interim.len() < 1000, "{} interim answers", answer.interim.len());
        }
        Err(Failure::Closed(_) | Failure::Reset(_)) => {}
        Err(other) => panic!("{other}"),
    }
    proxy.get("a.test", "/good").expect(200);
}

#[test]
fn an_answer_head_without_a_bound_is_cut_off() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\n");
            for _ in 0..3000 {
                peer.write(format!("X-A: {}\r\n", "b".repeat(10_000)));
            }
            peer.hang();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();

    assert_bad_gateway(&proxy.client("a.test").post("/", "x"));
}

#[test]
fn a_refused_connection_is_502_when_there_is_no_other_endpoint() {
    let dead = Refused::new();
    let proxy = proxy().name("pod", dead.url()).config(ONE).start();

    assert_bad_gateway(&proxy.get("a.test", "/"));
    assert_bad_gateway(&proxy.client("a.test").post("/", "x"));
}

#[test]
fn a_refused_connection_moves_on_to_another_endpoint_whatever_the_method() {
    let live = origin().start();
    let dead = Refused::new();
    let proxy = pair(&dead.url(), &live.url(), "");
    let mut client = proxy.client("a.test");

    for index in 0..10 {
        client.get(&format!("/{index}")).expect(200);
        client.post(&format!("/{index}"), "body").expect(200);
    }

    assert_eq!(live.hits(), 20);
    assert!(
        live.received().iter().filter(|request| request.method == "POST").all(|post| post.text() == "body")
    );
    assert!(proxy.metric("sluicegate_service_retries_total") > 0.0, "retries are visible");
}

#[test]
fn a_chunked_upload_moves_on_whole_when_the_first_endpoint_refuses() {
    let live = origin().start();
    let dead = Refused::new();
    let proxy = pair(&dead.url(), &live.url(), "");
    let mut client = proxy.client("a.test");

    for _ in 0..4 {
        let head = client.head("POST", "/", &[("Transfer-Encoding", "chunked")]);
        client.send(head).send("5\r\nhello\r\n").send("6\r\n world\r\n0\r\n\r\n");
        client.response().expect(200);
        assert_eq!(live.last().text(), "hello world");
    }
}

/// Reads each request whole and closes without a byte.
fn closer() -> Origin {
    origin().otherwise(|_, peer| peer.close()).start()
}

/// Reads each request whole and resets.
fn resetter() -> Origin {
    origin().otherwise(|_, peer| peer.reset()).start()
}

#[test]
fn a_get_whose_endpoint_closes_before_its_answer_is_repeated_on_another() {
    for failing in [closer(), resetter()] {
        let live = origin().start();
        let proxy = pair(&failing.url(), &live.url(), "");
        let mut client = proxy.client("a.test");

        for index in 0..10 {
            client.get(&format!("/{index}")).expect(200);
        }

        assert_eq!(live.hits(), 10);
        assert!(failing.hits() > 0, "the failing endpoint was never tried");
    }
}

/// Each try there costs a retry of the budget: half of all requests would soon use it up.
#[test]
fn an_endpoint_that_closes_every_new_connection_is_passed_over_for_a_second() {
    let (broken, live) = (closer(), origin().start());
    let keys = "retry: { budgetPercent: 0, budgetMinPerSecond: 2 },";
    let proxy = pair(&broken.url(), &live.url(), keys);
    let mut client = proxy.client("a.test");
    let since = Instant::now();

    for _ in 0..100 {
        client.get("/").expect(200);
    }

    // One for each core and second.
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let most = (since.elapsed().as_secs() + 1) * cores;
    assert!(broken.hits() as u64 <= most, "{} in {:?}", broken.hits(), since.elapsed());
    assert!(broken.hits() > 0);
}

/// Each try of it holds a request up for the whole connect timeout.
#[test]
fn an_unreachable_endpoint_is_passed_over_for_longer() {
    let (lost, live) = (BlackHole::new(), origin().start());
    let proxy = proxy()
        .name("lost", lost.url())
        .name("live", live.url())
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services:
    pods:
      loadBalancer: { serversTransport: short, servers: [{ url: "{lost}" }, { url: "{live}" }] }
  serversTransports: { short: { forwardingTimeouts: { dialTimeout: 200ms } } }
"#,
        )
        .start();
    let mut client = proxy.client("a.test");
    let since = Instant::now();

    while since.elapsed() < Duration::from_millis(2500) {
        client.get("/").expect(200);
    }

    // One connection is served by one core.
    let timeouts =
        proxy.metric("sluicegate_service_retries_total{service=\"pods\",reason=\"connect_timeout\"}");
    assert_eq!(timeouts, 1.0);
}

#[test]
fn a_post_that_was_written_is_never_repeated() {
    for failing in [closer(), resetter()] {
        let live = origin().start();
        let proxy = pair(&failing.url(), &live.url(), "");

        let answers: Vec<_> = (0..10)
            .map(|index| proxy.client("a.test").post(&format!("/{index}"), "charge the card"))
            .collect();

        let mut tried: Vec<_> =
            failing.received().into_iter().chain(live.received()).map(|request| request.target).collect();
        tried.sort();
        let count = tried.len();
        tried.dedup();
        assert_eq!(tried.len(), count, "a POST reached two endpoints");
        assert_eq!(answers.iter().filter(|answer| answer.status == 502).count(), failing.hits());
        assert!(failing.hits() > 0, "the failing endpoint was never tried");
        assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), live.hits());
    }
}

#[test]
fn a_get_is_not_repeated_once_its_answer_has_begun() {
    let broken = origin()
        .otherwise(|_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart");
            peer.pause(Duration::from_millis(20));
            peer.reset();
        })
        .start();
    let dead = Refused::new();
    let proxy = pair(&broken.url(), &dead.url(), "");

    for _ in 0..4 {
        let outcome = proxy.client("a.test").try_get("/");
        assert!(matches!(outcome, Err(Failure::Closed(_) | Failure::Reset(_))), "{outcome:?}");
    }
    assert_eq!(broken.hits(), 4);
}

#[test]
fn a_failing_only_endpoint_is_not_hammered() {
    let failing = closer();
    let proxy = proxy().all_to(&failing).start();

    for _ in 0..200 {
        assert_bad_gateway(&proxy.get("a.test", "/"));
    }

    // A fifth of the requests, and three for each second of the budget's ten; a few more on a slow machine.
    assert!(failing.hits() <= 200 + 40 + 30 + 10, "{} attempts for 200 requests", failing.hits());
}

#[test]
fn no_answer_head_in_time_is_504() {
    let silent = origin().otherwise(|_, peer| peer.hang()).start();
    let proxy = with_timeouts(&silent.url(), "responseHeaderTimeout: 300ms");

    let since = Instant::now();
    let answer = proxy.client("a.test").post("/", "x").expect(504);

    assert_eq!(answer.text(), "Gateway Timeout");
    assert!(since.elapsed() >= Duration::from_millis(300), "after {:?}", since.elapsed());
    eventually("the connection to the origin is closed", || silent.open_connections() == 0);
}

#[test]
fn half_an_answer_head_counts_as_none() {
    let silent = origin()
        .otherwise(|_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-").hang();
        })
        .start();
    let proxy = with_timeouts(&silent.url(), "responseHeaderTimeout: 300ms");

    proxy.client("a.test").post("/", "x").expect(504);
}

#[test]
fn no_connection_in_time_is_504() {
    let hole = BlackHole::new();
    let proxy = with_timeouts(&hole.url(), "dialTimeout: 300ms");

    let since = Instant::now();
    let answer = proxy.get("a.test", "/").expect(504);

    assert_eq!(answer.text(), "Gateway Timeout");
    assert!(since.elapsed() >= Duration::from_millis(300), "after {:?}", since.elapsed());
}

#[test]
fn a_service_without_servers_is_503() {
    let proxy = proxy()
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { servers: [] } } }
"#,
        )
        .start();

    let answer = proxy.get("a.test", "/").expect(503);

    assert_eq!(answer.text(), "no available server\n");
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
}

#[test]
fn a_pooled_connection_that_the_origin_closed_costs_nobody_an_error() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for round in 1..=10 {
        client.get("/").expect(200);
        origin.close_connections();
        eventually("the origin's side is closed", || origin.open_connections() == 0);
        client.post("/", format!("round {round}")).expect(200);
    }

    let posts: Vec<_> = origin.received().into_iter().filter(|request| request.method == "POST").collect();
    assert_eq!(posts.len(), 10, "each POST reached the origin once");
}

#[test]
fn a_get_survives_an_origin_that_closes_as_it_is_written() {
    // The first request of each connection is answered, the second is read and dropped.
    let origin = origin()
        .connection(|peer| {
            if peer.read_request().is_ok() {
                peer.respond("200 OK", &[], "first");
                let _ = peer.read_request();
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    // Slowly enough for the budget of retries: three a second.
    for _ in 0..3 {
        assert_eq!(client.get("/").expect(200).text(), "first");
        assert_eq!(client.get("/").expect(200).text(), "first");
    }
}

#[test]
fn a_pod_that_breaks_each_connection_at_its_second_request_gets_requests_once_and_costs_no_error() {
    let read = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&read);
    let origin = origin()
        .connection(move |peer| {
            if peer.read_request().is_ok() {
                counted.fetch_add(1, Ordering::SeqCst);
                peer.respond("200 OK", &[], "first");
                if peer.read_request().is_ok() {
                    counted.fetch_add(1, Ordering::SeqCst);
                    peer.reset();
                }
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    // One connection is served by one core.
    let mut client = proxy.client("a.test");

    // More than the budget of retries.
    for _ in 0..60 {
        assert_eq!(client.get("/").expect(200).text(), "first");
    }

    // Three break, and one more each ten seconds.
    let read = read.load(Ordering::SeqCst);
    assert!((60..=66).contains(&read), "{read} for 60");
}

#[test]
fn a_post_that_nobody_has_read_when_its_pod_ends_is_sent_to_another() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let live = origin().start();
    let proxy = pair(&url, &live.url(), "");
    let pod = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 4096];
        let read = stream.read(&mut request).expect("a request");
        assert!(read > 0);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").expect("an answer");
        // The next one lies unread in the socket when the pod ends.
        assert!(stream.peek(&mut request).expect("a request") > 0);
        drop(listener);
    });
    let mut client = proxy.client("a.test");

    for index in 0..4 {
        client.post(&format!("/{index}"), "charge the card").expect(200);
    }

    pod.join().expect("no panic");
    assert_eq!(live.hits(), 3);
}

#[test]
fn bytes_behind_an_answer_poison_no_other_request() {
    const ROUNDS: usize = 10;
    // Open once the client has read the round's answer: what follows it comes when the connection is at rest.
    let answered: Arc<[Gate; ROUNDS]> = Arc::default();
    let count = Arc::new(AtomicUsize::new(0));
    let poisoned = Arc::new(AtomicUsize::new(0));
    let (gates, written) = (Arc::clone(&answered), Arc::clone(&poisoned));
    let origin = origin()
        .on("/poison", move |_, peer| {
            let number = count.fetch_add(1, Ordering::AcqRel);
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            if number % 2 == 1 {
                gates[number].pass();
            }
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison");
            written.fetch_add(1, Ordering::AcqRel);
        })
        .get("/clean", "clean")
        .start();
    let proxy = proxy().all_to(&origin).start();

    for round in 0..ROUNDS {
        assert_eq!(proxy.get("a.test", "/poison").expect(200).text(), "ok");
        answered[round].open();
        eventually("the poison is on its way", || poisoned.load(Ordering::Acquire) == round + 1);
        assert_eq!(proxy.get("a.test", "/clean").expect(200).text(), "clean");
    }
}

#[test]
fn a_body_behind_an_answer_that_has_none_poisons_no_other_request() {
    let origin = origin()
        .raw("/204", "HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison")
        .raw("/304", "HTTP/1.1 304 Not Modified\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        .on("/head", |_, peer| {
            peer.respond("200 OK", &[], "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        })
        .get("/clean", "clean")
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for _ in 0..5 {
        let answer = client.get("/204").expect(204);
        assert!(!answer.head.has("Content-Length"), "{:?}", answer.head.raw);
        assert_eq!(client.get("/clean").expect(200).text(), "clean");
        client.get("/304").expect(304);
        assert_eq!(client.get("/clean").expect(200).text(), "clean");
        client.request("HEAD", "/head", &[], b"").expect(200);
        assert_eq!(client.get("/clean").expect(200).text(), "clean");
    }
}

#[test]
fn an_answer_with_length_and_chunked_is_framed_anew_and_its_connection_not_reused() {
    let origin = origin()
        .raw(
            "/",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for _ in 0..3 {
        let answer = client.get("/");
        match answer.status {
            200 => {
                assert_eq!(answer.text(), "hello");
                assert!(!answer.head.has("Content-Length"), "{:?}", answer.head.raw);
            }
            _ => assert_bad_gateway(&answer),
        }
        client.get("/good").expect(200);
    }
}

#[test]
fn a_connection_that_the_origin_wants_closed_is_not_reused() {
    let origin =
        origin().otherwise(|_, peer| peer.respond("200 OK", &[("Connection", "close")], "ok")).start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for _ in 0..3 {
        let answer = client.get("/").expect(200);
        assert!(!answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    }

    assert_eq!(origin.connections(), 3);
}

#[test]
fn a_client_that_goes_away_takes_its_request_to_the_origin_with_it() {
    let origin = origin().on("/", |_, peer| peer.hang()).start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/", &[]);
    client.send(request);
    eventually("the origin has the request", || origin.hits() == 1);
    client.reset();

    eventually("the origin is let go", || origin.open_connections() == 0);
    assert_eq!(origin.hits(), 1, "a request of a client that went away is not repeated");
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_its_body_leaves_no_whole_request() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    for framing in [("Content-Length", "100"), ("Transfer-Encoding", "chunked")] {
        let mut client = proxy.client("a.test");
        let head = client.head("POST", "/", &[framing]);
        client.send(head).send("5\r\nhello\r\n");
        drop(client);
    }

    eventually("the origin's connections end", || origin.open_connections() == 0);
    assert_eq!(origin.hits(), 0, "{:?}", origin.received());
    proxy.get("a.test", "/good").expect(200);
}

#[test]
fn an_end_at_any_moment_is_502_or_a_cut_and_hurts_nobody_else() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789";
    for reset in [false, true] {
        let mut builder = origin();
        for cut in 0..ANSWER.len() {
            builder = builder.on(&format!("/{cut}"), move |_, peer| {
                peer.write(&ANSWER[..cut]);
                if reset { peer.reset() } else { peer.close() }
            });
        }
        let origin = builder.get("/good", "good").start();
        let proxy = proxy().all_to(&origin).start();
        for cut in 0..ANSWER.len() {
            let mut client = proxy.client("a.test");
            client.send_request("POST", &format!("/{cut}"), &[], b"x");
            match client.try_response("POST") {
                Ok(answer) => assert_eq!(answer.status, 502, "cut at {cut}, reset {reset}"),
                Err(Failure::Closed(_) | Failure::Reset(_)) => {}
                Err(other) => panic!("cut at {cut}, reset {reset}: {other}"),
            }
            if cut % 8 == 0 {
                assert_eq!(proxy.get("a.test", "/good").expect(200).text(), "good");
            }
        }
    }
}

#[test]
fn an_answer_that_came_before_its_request_reaches_no_second_client() {
    let origin = origin()
        .connection(|peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nearly");
            while let Ok(request) = peer.read_request() {
                peer.respond("200 OK", &[], request.target);
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();

    for index in 0..20 {
        let answer = proxy.client("a.test").post(&format!("/{index}"), "x");
        if answer.status == 200 {
            // The pod was slow enough for its first word to look like an answer; it has had its one use.
            assert_eq!(answer.text(), "early");
        } else {
            assert_bad_gateway(&answer);
        }
        // Its true answer finds the connection in the pool.
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_answer_that_comes_byte_by_byte_arrives_whole() {
    let origin = origin()
        .on("/", |_, peer| {
            for byte in
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n"
            {
                peer.write([*byte]);
                peer.pause(Duration::from_millis(2));
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for _ in 0..2 {
        let answer = client.get("/").expect(200);
        assert_eq!((answer.text().as_str(), answer.trailers.len()), ("hello", 1));
    }
    assert_eq!(origin.connections(), 1);
}

#[test]
fn an_answer_in_the_middle_of_an_upload_reaches_the_client() {
    for (fields, close) in [("", false), ("Connection: close\r\n", true)] {
        let origin = origin()
            .connection(move |peer| {
                if peer.read_head().is_ok() {
                    peer.write(format!(
                        "HTTP/1.1 413 Content Too Large\r\n{fields}Content-Length: 3\r\n\r\nbig"
                    ));
                    if close {
                        peer.pause(Duration::from_millis(50));
                    } else {
                        peer.hang();
                    }
                }
            })
            .start();
        let proxy = proxy().all_to(&origin).start();
        let mut client = proxy.client("a.test");
        let head = client.head("POST", "/", &[("Content-Length", "50000000")]);
        client.send(head);
        client.try_send(vec![b'x'; 100_000]);

        let answer = client.response().expect(413);

        assert_eq!(answer.text(), "big");
        assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
        eventually("the upload is let go", || origin.open_connections() == 0);
    }
}

#[test]
fn a_big_body_flows_both_ways_at_once() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 160;
    let origin = origin()
        .connection(|peer| {
            while peer.read_head().is_ok() {
                peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                // Each piece is sent back before the next is read.
                for _ in 0..CHUNKS * CHUNK / 1024 {
                    let Ok(piece) = peer.read_exactly(1024) else { return };
                    peer.chunk(piece);
                }
                peer.chunk("");
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();

    for _ in 0..2 {
        // An answer that begins before the request has ended says that it closes.
        let mut client = proxy.client("a.test");
        let length = (CHUNK * CHUNKS).to_string();
        let head = client.head("POST", "/", &[("Content-Length", &length)]);
        client.send(head);
        let mut writer = client.twin();
        let writing = std::thread::spawn(move || {
            for number in 0..CHUNKS {
                std::io::Write::write_all(&mut writer, &vec![number as u8; CHUNK]).expect("taken");
            }
        });
        let answer = client.response().expect(200);
        writing.join().expect("no panic");
        assert_eq!(answer.body.len(), CHUNK * CHUNKS);
        assert!(answer.body.chunks(CHUNK).enumerate().all(|(n, part)| part.iter().all(|b| *b == n as u8)));
    }
}

#[test]
fn the_body_waits_for_100_and_for_nothing_else() {
    let origin = origin()
        .connection(|peer| {
            while let Ok(head) = peer.read_head() {
                match head.word(1) {
                    "/refused" => peer.respond("417 Expectation Failed", &[("Connection", "close")], ""),
                    "/hints" => {
                        peer.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
                        peer.pause(Duration::from_millis(100));
                        peer.respond("403 Forbidden", &[("Connection", "close")], "");
                    }
                    _ => {
                        peer.write("HTTP/1.1 100 Continue\r\n\r\n");
                        let Ok(content) = peer.read_content(&head) else { return };
                        peer.respond("200 OK", &[], content.bytes);
                        continue;
                    }
                }
                return;
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let ask = |target: &str| {
        let mut client = proxy.client("a.test");
        let fields = [("Content-Length", "5"), ("Expect", "100-continue")];
        let head = client.head("POST", target, &fields);
        client.send(head);
        client
    };

    let answer = ask("/refused").response().expect(417);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
    let answer = ask("/hints").response().expect(403);
    let words: Vec<_> = answer.interim.iter().map(|head| head.word(1).to_owned()).collect();
    assert_eq!(words, ["103"], "the body was asked for before the pod had asked");
    let mut client = ask("/");
    client.send("hello");
    let answer = client.response().expect(200);
    assert_eq!((answer.text().as_str(), answer.interim.len()), ("hello", 1));
}
