//! Timeouts of tries and clients, retries, hedging, circuit breakers, and the guard of the whole proxy.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::harness::{Client, Failure, Origin, Proxy, RedisServer, eventually, origin, proxy, run, scratch};

/// `a` and `b` behind one service, with these keys of its router and its balancer, and these middlewares.
fn pair(a: &Origin, b: &Origin, router: &str, balancer: &str, middlewares: &str) -> Proxy {
    proxy()
        .origin("a", a)
        .origin("b", b)
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods {router} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{a}}" }}, {{ url: "{{b}}" }}] {balancer} }} }} }}
  middlewares: {{ {middlewares} }}
"#
        ))
        .start()
}

fn alone(pod: &Origin, router: &str, balancer: &str, middlewares: &str) -> Proxy {
    proxy()
        .origin("pod", pod)
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods {router} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{pod}}" }}] {balancer} }} }} }}
  middlewares: {{ {middlewares} }}
"#
        ))
        .start()
}

fn silent() -> Origin {
    origin().otherwise(|_, peer| peer.hang()).start()
}

/// Answers the first `count` requests with `status` and these fields, the rest with 200.
fn failing_first(
    count: usize,
    status: &'static str,
    fields: &'static [(&'static str, &'static str)],
) -> Origin {
    let seen = AtomicUsize::new(0);
    origin()
        .otherwise(move |_, peer| {
            if seen.fetch_add(1, Ordering::SeqCst) < count {
                peer.respond(status, fields, "bad");
            } else {
                peer.respond("200 OK", &[], "good");
            }
        })
        .start()
}

#[test]
fn a_try_that_takes_too_long_moves_on_to_another_endpoint() {
    let (slow, fast) = (silent(), origin().always("fast").start());
    let proxy = pair(&slow, &fast, "", ", timeouts: { attempt: 200ms }", "");

    for _ in 0..4 {
        assert_eq!(proxy.get("a.test", "/").expect(200).text(), "fast");
    }

    assert!(slow.hits() > 0);
    assert!(proxy.metric("sluicegate_timeouts_total{kind=\"attempt\"}") >= 1.0);
    assert!(
        proxy.metric("sluicegate_service_retries_total{service=\"pods\",reason=\"attempt_timeout\"}") >= 1.0
    );
}

#[test]
fn a_post_that_takes_too_long_is_504_and_sent_once() {
    let (slow, other) = (silent(), silent());
    let proxy = pair(&slow, &other, ", timeouts: { attempt: 200ms }", "", "");

    proxy.client("a.test").post("/", "x").expect(504);

    assert_eq!(slow.hits() + other.hits(), 1);
    proxy.await_metric("sluicegate_refusals_total{code=\"attempt_timeout\",fault=\"upstream\"}", 1.0);
}

#[test]
fn timeouts_are_inherited_from_the_entry_point_and_a_router_may_lift_them() {
    let slow = origin()
        .otherwise(|_, peer| {
            peer.pause(Duration::from_millis(500));
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let proxy = proxy()
        .origin("pod", &slow)
        .web("http: { timeouts: { responseHeader: 100ms } }")
        .config(
            r#"
http:
  routers:
    short: { rule: "PathPrefix(`/`)", service: pods }
    long: { rule: "PathPrefix(`/long`)", service: pods, timeouts: { responseHeader: 0 } }
  services: { pods: { loadBalancer: { servers: [{ url: "{pod}" }], timeouts: { responseHeader: 10s } } } }
"#,
        )
        .start();

    proxy.get("a.test", "/").expect(504);
    proxy.get("a.test", "/long").expect(200);
}

#[test]
fn a_service_may_limit_the_whole_exchange() {
    let slow = silent();
    let proxy = alone(&slow, "", ", timeouts: { request: 200ms }", "");
    proxy.client("a.test").post("/", "x").expect(504);
    proxy.await_metric("sluicegate_timeouts_total{kind=\"exchange\"}", 1.0);
}

#[test]
fn what_a_client_says_it_will_wait_shortens_the_exchange_and_never_lengthens_it() {
    let slow = silent();
    let proxy = alone(&slow, ", timeouts: { request: 700ms, deadlineHeader: X-Wait }", "", "");
    let timed = |wait: &str| {
        let since = Instant::now();
        proxy.client("a.test").request("POST", "/", &[("X-Wait", wait)], b"x").expect(504);
        since.elapsed()
    };

    assert!(timed("150") < Duration::from_millis(690));
    assert!(timed("0.15s") < Duration::from_millis(690));
    proxy.await_metric("sluicegate_timeouts_total{kind=\"client_deadline\"}", 2.0);
    for wait in ["1h", "soon", "0", "-5"] {
        assert!(timed(wait) >= Duration::from_millis(690), "{wait}");
    }
    assert_eq!(proxy.metric("sluicegate_timeouts_total{kind=\"client_deadline\"}"), 2.0);
    eventually("the pod is let go of", || slow.open_connections() == 0);
}

#[test]
fn event_streams_outlast_the_limit_on_the_exchange() {
    let origin = origin()
        .otherwise(|_, peer| {
            peer.write(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            );
            for _ in 0..10 {
                peer.chunk("data: x\n\n");
                peer.pause(Duration::from_millis(60));
            }
            peer.chunk("");
        })
        .start();
    let proxy = alone(&origin, ", timeouts: { request: 250ms, deadlineHeader: X-Wait }", "", "");

    assert_eq!(proxy.get("a.test", "/").expect(200).body.len(), 90);

    let cut = {
        let mut client = proxy.client("a.test");
        client.send_request("GET", "/", &[("X-Wait", "250")], b"");
        client.try_response("GET")
    };
    assert!(matches!(cut, Err(Failure::Closed(_) | Failure::Reset(_))), "by the client's own word: {cut:?}");
}

#[test]
fn how_many_tries_an_answer_took_is_said_where_it_is_wanted() {
    let (refusing, good) = (crate::harness::Refused::new(), origin().start());
    let proxy = proxy()
        .name("a", refusing.url())
        .origin("b", &good)
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services:
    pods: { loadBalancer: { servers: [{ url: "{a}" }, { url: "{b}" }], retry: { attemptsHeader: X-Tries } } }
"#,
        )
        .start();

    let tries: Vec<_> = (0..2)
        .map(|_| proxy.get("a.test", "/").expect(200).header("X-Tries").expect("a number").to_owned())
        .collect();

    assert!(tries.contains(&"2".to_owned()), "{tries:?}");
}

#[test]
fn a_pods_retry_after_is_waited_for_within_its_bound() {
    let pod = failing_first(1, "503 Service Unavailable", &[("Retry-After", "1")]);
    let again = "again: { retry: { attempts: 2, status: ['503'] } }";
    let proxy = alone(&pod, ", middlewares: [again]", "", again);

    let since = Instant::now();
    assert_eq!(proxy.get("a.test", "/").expect(200).text(), "good");

    assert!(since.elapsed() >= Duration::from_millis(990), "{:?}", since.elapsed());
}

#[test]
fn an_answer_that_wants_to_be_left_alone_for_long_goes_to_the_client() {
    let pod = failing_first(1, "503 Service Unavailable", &[("Retry-After", "60")]);
    let again = "again: { retry: { attempts: 2, status: ['503'] } }";
    let proxy = alone(&pod, ", middlewares: [again]", "", again);

    assert_eq!(proxy.get("a.test", "/").expect(503).header("Retry-After"), Some("60"));

    assert_eq!(pod.hits(), 1);
}

#[test]
fn a_retry_link_has_its_own_time_for_each_try() {
    let (slow, fast) = (silent(), origin().always("fast").start());
    let again = "again: { retry: { attempts: 2, attemptTimeout: 200ms } }";
    let proxy = pair(&slow, &fast, ", middlewares: [again]", "", again);

    for _ in 0..3 {
        assert_eq!(proxy.get("a.test", "/").expect(200).text(), "fast");
    }
    assert!(slow.hits() > 0);
}

#[test]
fn the_proxys_own_refusal_is_not_retried() {
    let pod = silent();
    let again = "again: { retry: { attempts: 3, status: ['503'] } }";
    let proxy = alone(&pod, ", middlewares: [again]", ", maxRequests: 1, queue: { size: 0 }", again);
    let mut first = proxy.client("a.test");
    first.send_request("GET", "/", &[], b"");
    eventually("the first is at the pod", || pod.hits() == 1);

    proxy.get("a.test", "/").expect(503);

    assert_eq!(proxy.metric("sluicegate_service_queue_refused_total{service=\"pods\",reason=\"full\"}"), 1.0);
}

#[test]
fn a_slow_first_try_is_overtaken_by_a_second_one() {
    let (slow, fast) = (silent(), origin().always("fast").start());
    let proxy = pair(&slow, &fast, "", ", hedge: { delay: 50ms }", "");

    for _ in 0..4 {
        assert_eq!(proxy.get("a.test", "/").expect(200).text(), "fast");
    }

    assert!(slow.hits() >= 1, "the first try of some went to the slow one");
    eventually("the loser is cut", || slow.open_connections() == 0);
    let won = proxy.metric("sluicegate_service_hedges_total{service=\"pods\",winner=\"second\"}");
    assert!(won >= 1.0, "{won}");
}

#[test]
fn a_second_try_takes_its_turn_where_what_goes_out_is_limited() {
    let server = RedisServer::start();
    for redis in [String::new(), format!("redis: {{ endpoints: ['{}'], timeout: 5s }}", server.address())] {
        let (slow, fast) = (silent(), origin().always("fast").start());
        // Four turns, and none comes back within the test.
        let paced = format!(
            ", hedge: {{ delay: 50ms }}, outboundLimit: {{ average: 1, period: 1h, burst: 4, maxWait: 0, {redis} }}"
        );
        let proxy = pair(&slow, &fast, "", &paced, "");
        if !redis.is_empty() {
            proxy.await_log("redis answers, limits are shared");
        }

        for _ in 0..2 {
            assert_eq!(proxy.get("a.test", "/").expect(200).text(), "fast");
        }

        let allowed = "sluicegate_outbound_limit_decisions_total{service=\"pods\",decision=\"allowed\"}";
        assert_eq!(proxy.metric(allowed), (slow.hits() + fast.hits()) as f64);
        assert!(slow.hits() >= 1, "one of them was hedged");
    }
}

#[test]
fn what_is_not_idempotent_is_never_sent_twice() {
    let slow = || {
        origin()
            .otherwise(|_, peer| {
                peer.pause(Duration::from_millis(200));
                peer.respond("200 OK", &[], "slow");
            })
            .start()
    };
    let (a, b) = (slow(), slow());
    let proxy = pair(&a, &b, "", ", hedge: { delay: 20ms }", "");

    proxy.client("a.test").post("/", "x").expect(200);
    proxy.client("a.test").request("POST", "/", &[], b"").expect(200);
    proxy.client("a.test").request("PUT", "/", &[], b"body").expect(200);

    assert_eq!(a.hits() + b.hits(), 3);
}

#[test]
fn hedging_stays_within_the_retry_budget() {
    let slow = || {
        origin()
            .otherwise(|_, peer| {
                peer.pause(Duration::from_millis(100));
                peer.respond("200 OK", &[], "slow");
            })
            .start()
    };
    let (a, b) = (slow(), slow());
    let budget = ", hedge: { delay: 10ms }, retry: { budgetPercent: 0, budgetMinPerSecond: 0 }";
    let proxy = pair(&a, &b, "", budget, "");

    for _ in 0..4 {
        proxy.get("a.test", "/").expect(200);
    }

    assert_eq!(a.hits() + b.hits(), 4);
    assert!(proxy.metric("sluicegate_retry_budget_exhausted_total{service=\"pods\"}") >= 1.0);
}

#[test]
fn two_tries_that_fail_are_one_failure() {
    let reset = || {
        origin()
            .otherwise(|_, peer| {
                peer.pause(Duration::from_millis(100));
                peer.reset();
            })
            .start()
    };
    let (a, b) = (reset(), reset());
    let proxy = pair(&a, &b, "", ", hedge: { delay: 20ms }, retry: { attempts: 2 }", "");

    proxy.get("a.test", "/").expect(502);

    assert_eq!(a.hits() + b.hits(), 2);
}

const FUSE: &str = "fuse: { circuitBreaker: { expression: 'ResponseCodeRatio(500, 600, 0, 600) > 0.5', checkPeriod: 1ms, \
                    fallbackDuration: 1s, recoveryDuration: 1s, responseCode: 529, minRequests: 5 } }";

#[test]
fn a_circuit_opens_recovers_and_shows_its_state() {
    let broken = Arc::new(AtomicBool::new(true));
    let pod = {
        let broken = Arc::clone(&broken);
        origin()
            .otherwise(move |_, peer| {
                let status = if broken.load(Ordering::SeqCst) { "500 Oops" } else { "200 OK" };
                peer.respond(status, &[], "pod");
            })
            .start()
    };
    let proxy = alone(&pod, ", middlewares: [fuse]", "", FUSE);
    let state = "sluicegate_circuit_breaker_state{middleware=\"fuse\",router=\"all\"}";
    let mut client = proxy.client("a.test");
    for _ in 0..4 {
        client.get("/").expect(500);
        std::thread::sleep(Duration::from_millis(3));
    }
    assert_eq!(proxy.metric(state), 0.0, "too few to tell");

    // One opens it; should it come within the check period, the next does.
    eventually("it opens", || client.get("/").status == 529);

    let refused = client.get("/").expect(529);
    assert!(refused.header("Retry-After").is_some());
    assert_eq!(proxy.metric(state), 1.0);
    let shown = proxy.admin_get("/api/resilience").expect(200).json();
    assert_eq!(shown["circuits"][0]["state"], "open", "{shown}");
    assert_eq!(shown["circuits"][0]["router"], "all@file", "{shown}");
    proxy.await_log("circuit opened");
    let (config, admin) = (proxy.path().display().to_string(), proxy.admin().to_string());
    let dir = scratch();
    let explained = run(dir.path(), ["explain", "--config", &config, "--admin", &admin, "http://a.test/"])
        .expect(0)
        .stdout;
    for said in [
        "when ResponseCodeRatio(500, 600, 0, 600) > 0.5 over the last 10 s",
        "now open for ",
        "opened 1 times",
    ] {
        assert!(explained.contains(said), "no {said} in\n{explained}");
    }
    let hits = pod.hits();
    proxy.get("a.test", "/").expect(529);
    assert_eq!(pod.hits(), hits, "nothing reaches the pod");

    broken.store(false, Ordering::SeqCst);
    eventually("it closes", || {
        client.get("/");
        proxy.metric(state) == 0.0
    });
    client.get("/").expect(200);
    assert_eq!(
        proxy.metric("sluicegate_circuit_breaker_opened_total{middleware=\"fuse\",router=\"all\"}"),
        1.0
    );
}

#[test]
fn an_open_circuit_stays_open_over_a_reload() {
    let pod = origin().otherwise(|_, peer| peer.respond("500 Oops", &[], "")).start();
    let text = |more: &str| {
        format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods, middlewares: [fuse] }} {more} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{pod}}" }}] }} }} }}
  middlewares:
    fuse:
      circuitBreaker: {{ expression: NetworkErrorRatio() < 0.5, checkPeriod: 0, minRequests: 1, fallbackDuration: 1h }}
"#
        )
    };
    let proxy = proxy().origin("pod", &pod).config(&text("")).start();
    let mut client = proxy.client("a.test");
    client.get("/").expect(500);
    client.get("/").expect(503);

    proxy.reload(&text(", other: { rule: \"Path(`/other-one`)\", service: pods }"));

    client.get("/").expect(503);
    client.get("/other-one").expect(500);
    assert_eq!(pod.hits(), 2);
}

#[test]
fn a_circuit_counts_what_did_not_come_in_time() {
    let slow = silent();
    let proxy = alone(
        &slow,
        ", middlewares: [fuse], timeouts: { responseHeader: 50ms }",
        "",
        "fuse: { circuitBreaker: { expression: NetworkErrorRatio() > 0.5, checkPeriod: 0, minRequests: 2 } }",
    );
    proxy.client("a.test").post("/", "x").expect(504);
    proxy.client("a.test").post("/", "x").expect(504);
    proxy.client("a.test").post("/", "x").expect(503);
}

fn guarded(pod: &Origin, overload: &str) -> Proxy {
    proxy()
        .origin("pod", pod)
        .config(&format!(
            r#"
http:
  routers:
    all: {{ rule: "PathPrefix(`/`)", service: pods }}
    high: {{ rule: "PathPrefix(`/high`)", service: pods, importance: high }}
    low: {{ rule: "PathPrefix(`/low`)", service: pods, importance: low }}
    ping: {{ rule: "PathPrefix(`/ping`)", service: ping@internal }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{pod}}" }}] }} }} }}
overload: {{ {overload} }}
"#
        ))
        .start()
}

#[test]
fn connections_beyond_the_limit_are_told_and_the_important_ones_served() {
    let pod = origin().start();
    let proxy = guarded(&pod, "maxConnections: 3");
    let mut held: Vec<Client> = (0..3).map(|_| proxy.client("a.test")).collect();
    for client in &mut held {
        client.get("/").expect(200);
    }

    let mut beyond = proxy.client("a.test");
    let refused = beyond.get("/").expect(503);

    assert_eq!(refused.header("Retry-After"), Some("1"));
    assert!(refused.head.lists("Connection", "close"), "{:?}", refused.head.raw);
    beyond.assert_closed();
    proxy.get("a.test", "/high").expect(200);
    proxy.get("a.test", "/ping").expect(200);
    for client in &mut held {
        client.get("/").expect(200);
    }
    assert_eq!(proxy.admin_get("/readyz").status, 200);
    assert!(proxy.metric("sluicegate_overload_refused_total{what=\"connection_told\"}") >= 1.0);
    drop(held);
    eventually("there is room again", || proxy.get("a.test", "/").status == 200);
}

#[test]
fn when_memory_is_scarce_only_the_important_and_the_probes_are_served() {
    let pod = origin().start();
    // Any process has more than that.
    let proxy = guarded(&pod, "maxMemory: 1MiB");
    let level = "sluicegate_overload_level";
    proxy.await_metric(level, 2.0);

    let refused = proxy.get("a.test", "/").expect(503);

    assert_eq!(refused.header("Retry-After"), Some("1"));
    proxy.get("a.test", "/low").expect(503);
    proxy.get("a.test", "/high").expect(200);
    proxy.get("a.test", "/ping").expect(200);
    assert_eq!(proxy.admin_get("/readyz").status, 200);
    proxy.await_metric("sluicegate_refusals_total{code=\"overloaded\",fault=\"policy\"}", 2.0);
}

#[test]
fn adaptive_concurrency_shows_what_it_has_learned() {
    let pod = origin().start();
    let proxy = alone(&pod, "", ", adaptiveConcurrency: { initial: 10, min: 2, max: 20 }", "");
    assert_eq!(proxy.metric("sluicegate_service_adaptive_limit{service=\"pods\"}"), 10.0);
    for _ in 0..50 {
        proxy.get("a.test", "/").expect(200);
    }
    let limit = proxy.metric("sluicegate_service_adaptive_limit{service=\"pods\"}");
    assert!((2.0..=20.0).contains(&limit), "{limit}");
}

/// A pod that takes one connection and no other, and answers what comes on it with `a`; the first request when it is
/// told to.
fn pod_of_one_connection() -> (SocketAddr, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its port");
    let (asked, hears) = mpsc::channel();
    let (tells, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        drop(listener);
        let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
        for number in 0.. {
            let mut line = String::new();
            while line != "\r\n" {
                line.clear();
                if reader.read_line(&mut line).unwrap_or(0) == 0 {
                    return;
                }
            }
            if number == 0 && (asked.send(()).is_err() || told.recv().is_err()) {
                return;
            }
            if stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").is_err() {
                return;
            }
        }
    });
    (address, hears, tells)
}

#[test]
fn a_suspected_pod_that_answers_on_a_connection_it_has_gets_its_share_again() {
    let (address, asked, answer) = pod_of_one_connection();
    let b = origin().always("b").start();
    let proxy = proxy()
        .name("a", format!("http://{address}"))
        .origin("b", &b)
        .config(
            r#"
workers: 1
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { servers: [{ url: "{a}" }, { url: "{b}" }] } } }
"#,
        )
        .start();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| proxy.get("a.test", "/").expect(200));
        }
        asked.recv().expect("one of them is asked of it");
        let failed = "sluicegate_upstream_connects_total{service=\"pods\",outcome=\"failed\"}";
        eventually("it refuses a second connection", || {
            assert_eq!(proxy.get("a.test", "/").expect(200).text(), "b");
            proxy.metric(failed) > 0.0
        });
        answer.send(()).expect("it waits");
    });
    eventually("half of the requests are its own again", || {
        (0..10).filter(|_| proxy.get("a.test", "/").expect(200).text() == "a").count() >= 4
    });
}
