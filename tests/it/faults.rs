//! Pods that do worse than their siblings: who is taken out, who is not, and how one comes back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::harness::{Client, Origin, Proxy, eventually, origin, proxy, run, scratch, throughout};

const WELL: u8 = 0;
const FAILS: u8 = 1;
const HANGS: u8 = 2;
const HANGS_LATE: u8 = 3;
const IS_ASKED_TOO_MUCH: u8 = 4;

/// A pod whose answers follow a switch.
fn switched(name: &'static str) -> (Origin, Arc<AtomicU8>) {
    let state = Arc::new(AtomicU8::new(WELL));
    let seen = Arc::clone(&state);
    let origin = origin()
        .otherwise(move |_, peer| match seen.load(Ordering::Acquire) {
            FAILS => peer.respond("500 No", &[], "no"),
            HANGS => peer.hang(),
            HANGS_LATE => {
                peer.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf");
                peer.hang();
            }
            IS_ASKED_TOO_MUCH => {
                peer.respond("429 Too Many Requests", &[("Retry-After", "1000")], "later");
            }
            _ => peer.respond("200 OK", &[], name),
        })
        .start();
    (origin, state)
}

/// A document on `{a}`, `{b}` and `{c}`, with keys for the load balancer.
fn three(keys: &str) -> String {
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods }} }}
  services:
    pods:
      loadBalancer:
        {keys}
        servers: [{{ url: "{{a}}" }}, {{ url: "{{b}}" }}, {{ url: "{{c}}" }}]
"#
    )
}

fn serving(origins: [&Origin; 3], keys: &str) -> Proxy {
    let [a, b, c] = origins;
    proxy().origin("a", a).origin("b", b).origin("c", c).config(&three(keys)).start()
}

const EJECTIONS: &str = "sluicegate_service_endpoint_ejections_total";
const EJECTED: &str = "sluicegate_service_endpoints_ejected{service=\"pods\"}";

/// Sends GETs until an endpoint is ejected, whatever they are answered with.
#[track_caller]
fn until_ejected(proxy: &Proxy) {
    eventually("an endpoint is ejected", || {
        let mut client = proxy.client("x");
        for _ in 0..12 {
            client.get("/");
        }
        proxy.metric(EJECTED) == 1.0
    });
}

#[test]
fn a_pod_that_hangs_after_accept_is_taken_out_without_any_key() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "");
    b_state.store(HANGS, Ordering::Release);

    // A third of the answers is late: those requests wait until it is known that they wait in vain.
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..24 {
        let mut client = proxy.client("x");
        client.send_request("GET", "/", &[], b"");
        waiting.push(client);
    }
    proxy.await_metric(&format!("{EJECTIONS}{{service=\"pods\",reason=\"stalled\"}}"), 1.0);
    for mut client in waiting {
        let answer = client.response().expect(200).text();
        assert!(answer == "a" || answer == "c", "{answer}");
    }
    assert!(proxy.metric("sluicegate_service_retries_total{service=\"pods\",reason=\"stalled\"}") >= 3.0);

    let mut client = proxy.client("x");
    for _ in 0..30 {
        let answer = client.get("/").expect(200).text();
        assert!(answer == "a" || answer == "c", "{answer}");
    }
    let line = proxy.await_log("endpoint ejected");
    assert!(line.text("reason").is_some_and(|reason| reason.contains("no answer for")), "{line:?}");
    let shown = proxy.admin_get("/api/http/services/pods@file").expect(200).json();
    assert_eq!(shown["serverStatus"][b.url()], "DOWN", "{shown}");
    assert_eq!(shown["serverStatus"][a.url()], "UP", "{shown}");
    let endpoints = shown["endpoints"].as_array().expect("a list");
    let of = |url: String| endpoints.iter().find(|endpoint| endpoint["url"] == url).expect("listed");
    assert_eq!(
        (&of(a.url())["answers"], &of(a.url())["tier"]),
        (&"admitted".into(), &"near".into()),
        "{shown}"
    );
    assert_eq!(of(b.url())["answers"], "ejected", "{shown}");
    assert_eq!(of(b.url())["ejection"]["reason"], "stalled", "{shown}");
    assert_eq!(of(b.url())["draining"], false, "{shown}");
}

#[test]
fn a_pod_that_hangs_in_the_middle_of_its_answers_is_taken_out_and_stays_out_while_it_does() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "outlierDetection: { baseEjectionTime: 300ms }");
    let mut client = proxy.client("x");
    for _ in 0..60 {
        client.get("/").expect(200);
    }
    b_state.store(HANGS_LATE, Ordering::Release);

    // A third of the answers stops in the middle.
    let mut waiting: Vec<Client> = Vec::new();
    for _ in 0..24 {
        let mut client = proxy.client("x");
        client.send_request("GET", "/", &[], b"");
        waiting.push(client);
    }
    proxy.await_metric(&format!("{EJECTIONS}{{service=\"pods\",reason=\"stalled_bodies\"}}"), 1.0);

    // Heads are no proof that it is well again: the trial fails.
    eventually("it fails on trial", || {
        let mut client = proxy.client("x");
        client.send_request("GET", "/", &[], b"");
        waiting.push(client);
        proxy.metric(&format!("{EJECTIONS}{{service=\"pods\",reason=\"trial\"}}")) >= 1.0
    });
}

#[test]
fn a_pod_that_answers_500_is_taken_out_and_comes_back_when_it_is_well() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "outlierDetection: { baseEjectionTime: 300ms }");
    b_state.store(FAILS, Ordering::Release);
    until_ejected(&proxy);

    b_state.store(WELL, Ordering::Release);

    eventually("it has its share again", || {
        let mut client = proxy.client("x");
        let answers: Vec<String> = (0..12).map(|_| client.get("/").text()).collect();
        answers.iter().filter(|answer| *answer == "b").count() == 4
    });
    proxy.await_log("endpoint on trial after its ejection");
    proxy.await_log("endpoint is back after its ejection");
}

const REHEARSALS: &str = "sluicegate_service_rehearsals_total{service=\"pods\",outcome=";

/// A pod that was taken out while it did `fault` hurts nobody afterwards, and is back without its time being over.
fn comes_back_by_rehearsing(fault: u8) {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy =
        serving([&a, &b, &c], "outlierDetection: { baseEjectionTime: 600s, rehearsalInterval: 100ms }");
    let mut client = proxy.client("x");
    for _ in 0..60 {
        client.get("/").expect(200);
    }
    b_state.store(fault, Ordering::Release);
    let mut waiting: Vec<Client> = Vec::new();
    eventually("it is ejected", || {
        for _ in 0..9 {
            let mut client = proxy.client("x");
            client.send_request("GET", "/", &[], b"");
            waiting.push(client);
        }
        proxy.metric(EJECTED) == 1.0
    });
    drop(waiting);

    // Its rehearsals fail, and clients get nothing of it.
    eventually("it rehearses badly", || {
        for _ in 0..9 {
            let answer = client.get("/").expect(200).text();
            assert!(answer == "a" || answer == "c", "{answer}");
        }
        proxy.metric(&format!("{REHEARSALS}\"failed\"}}")) >= 2.0
    });
    // What is not safe is never copied.
    let before = b.hits();
    for _ in 0..30 {
        client.post("/", "once").expect(200);
    }
    assert!(b.hits() <= before + 1, "at most the copy of a GET from before");

    b_state.store(WELL, Ordering::Release);
    eventually("it has its share again", || {
        let answers: Vec<String> = (0..12).map(|_| client.get("/").expect(200).text()).collect();
        answers.iter().filter(|answer| *answer == "b").count() == 4
    });
    assert!(proxy.metric(&format!("{REHEARSALS}\"passed\"}}")) >= 3.0);
    assert_eq!(proxy.metric(EJECTIONS), 1.0, "no request was its trial while it was broken");
}

#[test]
fn a_pod_that_answered_500_comes_back_by_rehearsing() {
    comes_back_by_rehearsing(FAILS);
}

#[test]
fn a_pod_that_says_to_a_rehearsal_that_it_is_asked_too_much_is_left_alone() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving(
        [&a, &b, &c],
        "outlierDetection: { baseEjectionTime: 600s, rehearsalInterval: 100ms }
        outboundLimit: { average: 1000000, burst: 1000000, scope: server, maxPause: 1h }",
    );
    b_state.store(FAILS, Ordering::Release);
    until_ejected(&proxy);

    b_state.store(IS_ASKED_TOO_MUCH, Ordering::Release);

    let mut client = proxy.client("x");
    eventually("the pause is kept", || {
        client.get("/").expect(200);
        proxy.metric("sluicegate_outbound_limit_pauses_total{service=\"pods\"}") == 1.0
    });
    let hits = b.hits();
    let failed = || proxy.metric(&format!("{REHEARSALS}\"failed\"}}"));
    let before = failed();
    eventually("its rehearsals have no turn", || {
        client.get("/").expect(200);
        failed() >= before + 2.0
    });
    assert_eq!(b.hits(), hits);
}

#[test]
fn a_pod_that_hung_comes_back_by_rehearsing() {
    comes_back_by_rehearsing(HANGS);
}

#[test]
fn a_pod_that_hung_in_its_answers_comes_back_by_rehearsing() {
    comes_back_by_rehearsing(HANGS_LATE);
}

#[test]
fn a_pod_that_refused_comes_back_where_only_posts_come_in_and_a_broken_one_gets_no_copies() {
    let ((a, _), (mut b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy =
        serving([&a, &b, &c], "outlierDetection: { baseEjectionTime: 600s, rehearsalInterval: 100ms }");
    let mut client = proxy.client("x");
    b.kill();
    eventually("it is ejected", || {
        client.post("/", "x").expect(200);
        proxy.metric(EJECTED) == 1.0
    });
    b.revive();
    eventually("it has its share again", || {
        let answers: Vec<String> = (0..12).map(|_| client.post("/", "x").expect(200).text()).collect();
        answers.iter().filter(|answer| *answer == "b").count() == 4
    });

    b_state.store(FAILS, Ordering::Release);
    eventually("it is ejected", || {
        client.post("/", "x");
        proxy.metric(EJECTED) == 1.0
    });
    b.forget();
    throughout("it stays out", Duration::from_millis(700), || client.post("/", "x").status == 200);
    assert_eq!(b.hits(), 0);
}

#[test]
fn where_nothing_is_tried_twice_nothing_is_copied() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let keys = "retry: { attempts: 1 }\n        outlierDetection: { rehearsalInterval: 100ms }";
    let proxy = serving([&a, &b, &c], keys);
    b_state.store(FAILS, Ordering::Release);
    until_ejected(&proxy);
    b.forget();

    let mut client = proxy.client("x");
    throughout("it stays out", Duration::from_millis(700), || client.get("/").status == 200);
    assert_eq!(b.hits(), 0);
}

#[test]
fn without_rehearsals_an_ejected_pod_gets_nothing_until_its_time_is_over() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "outlierDetection: { baseEjectionTime: 600s, rehearsalInterval: 0s }");
    b_state.store(FAILS, Ordering::Release);
    until_ejected(&proxy);
    b.forget();

    let mut client = proxy.client("x");
    throughout("it stays out", Duration::from_millis(1_300), || {
        client.get("/").expect(200);
        proxy.metric(EJECTED) == 1.0
    });
    assert_eq!(b.hits(), 0);
}

#[test]
fn when_all_pods_hang_at_once_none_is_taken_out_and_all_serve_as_soon_as_they_answer() {
    let pods = [switched("a"), switched("b"), switched("c")];
    let proxy = serving([&pods[0].0, &pods[1].0, &pods[2].0], "");
    let mut client = proxy.client("x");
    for _ in 0..60 {
        client.get("/").expect(200);
    }
    for (_, state) in &pods {
        state.store(HANGS, Ordering::Release);
    }
    let mut waiting: Vec<Client> = Vec::new();
    throughout("all stay", Duration::from_millis(2_500), || {
        let mut client = proxy.client("x");
        client.send_request("GET", "/", &[], b"");
        waiting.push(client);
        std::thread::sleep(Duration::from_millis(20));
        proxy.metric(EJECTIONS) == 0.0
    });
    for (_, state) in &pods {
        state.store(WELL, Ordering::Release);
    }
    drop(waiting);

    throughout("each has its share", Duration::from_millis(1_500), || {
        let answers: Vec<String> = (0..12).map(|_| client.get("/").expect(200).text()).collect();
        ["a", "b", "c"].iter().all(|name| answers.iter().filter(|answer| answer == name).count() == 4)
    });
}

#[test]
fn pods_that_all_fail_alike_all_stay() {
    let pods = [switched("a"), switched("b"), switched("c")];
    for (_, state) in &pods {
        state.store(FAILS, Ordering::Release);
    }
    let proxy = serving([&pods[0].0, &pods[1].0, &pods[2].0], "");

    let mut client = proxy.client("x");
    throughout("all stay", Duration::from_millis(600), || {
        for _ in 0..9 {
            client.get("/").expect(500);
        }
        proxy.metric(EJECTIONS) == 0.0
    });
}

#[test]
fn a_lone_pod_stays_whatever_it_answers() {
    let (pod, state) = switched("a");
    state.store(FAILS, Ordering::Release);
    let proxy = proxy()
        .origin("a", &pod)
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { passiveHealthCheck: {}, servers: [{ url: "{a}" }] } } }
"#,
        )
        .start();

    let mut client = proxy.client("x");
    throughout("it answers", Duration::from_millis(400), || client.get("/").status == 500);
}

#[test]
fn one_failure_is_enough_for_traefiks_passive_check() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "passiveHealthCheck: { failureWindow: 60s }");
    b_state.store(FAILS, Ordering::Release);

    let mut client = proxy.client("x");
    let failed = (0..3).filter(|_| client.get("/").status == 500).count();

    assert_eq!(failed, 1);
    proxy.await_metric(&format!("{EJECTIONS}{{service=\"pods\",reason=\"failures\"}}"), 1.0);
}

#[test]
fn what_was_taken_out_stays_out_over_reloads() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let keys = "outlierDetection: { baseEjectionTime: 60s, rehearsalInterval: 0s }";
    let proxy = serving([&a, &b, &c], keys);
    b_state.store(FAILS, Ordering::Release);
    until_ejected(&proxy);
    b.forget();

    for weight in ["panicThreshold: 1\n        ", "passHostHeader: false\n        "] {
        proxy.reload(&three(&format!("{weight}{keys}")));
        let mut client = proxy.client("x");
        for _ in 0..6 {
            client.get("/").expect(200);
        }
    }

    assert_eq!(b.hits(), 0);
    assert_eq!(proxy.metric(EJECTED), 1.0);
}

#[test]
fn nobody_is_taken_out_when_that_is_turned_off() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let proxy = serving([&a, &b, &c], "outlierDetection: { enabled: false }");
    b_state.store(FAILS, Ordering::Release);

    let mut client = proxy.client("x");
    throughout("a third fails", Duration::from_millis(500), || {
        (0..9).filter(|_| client.get("/").status == 500).count() == 3
    });
}

#[test]
fn a_new_pod_starts_slowly() {
    let ((a, _), (b, _), (c, _)) = (switched("a"), switched("b"), switched("c"));
    let keys = "slowStart: { duration: 600s, minWeightPercent: 10 }";
    let document = three(keys);
    let proxy = proxy()
        .origin("a", &a)
        .origin("b", &b)
        .origin("c", &c)
        .config(&document.replace(", { url: \"{c}\" }", ""))
        .start();
    proxy.reload(&document);

    let mut client = proxy.client("x");
    for _ in 0..210 {
        client.get("/").expect(200);
    }

    // 100 to 100 to 10.
    assert_eq!((a.hits(), b.hits(), c.hits()), (100, 100, 10));
}

#[test]
fn a_pod_that_begins_down_gets_requests_once_its_checks_pass() {
    let ((a, _), (b, b_state), (c, _)) = (switched("a"), switched("b"), switched("c"));
    b_state.store(FAILS, Ordering::Release);
    let keys =
        "healthCheck: { path: /health, interval: 50ms, initialState: down, rise: 2, status: '200-299' }";
    let proxy = serving([&a, &b, &c], keys);

    let up = |proxy: &Proxy| proxy.metric("sluicegate_service_endpoint_up{service=\"pods\"");
    eventually("two are up", || up(&proxy) == 2.0);
    b_state.store(WELL, Ordering::Release);
    eventually("all are up", || up(&proxy) == 3.0);
}

#[test]
fn a_connection_is_enough_for_a_check_by_tcp() {
    let ((a, a_state), (mut b, _), (c, _)) = (switched("a"), switched("b"), switched("c"));
    a_state.store(FAILS, Ordering::Release);
    let proxy = serving([&a, &b, &c], "healthCheck: { mode: tcp, interval: 50ms, fall: 2 }");
    b.kill();

    let up = |proxy: &Proxy| proxy.metric("sluicegate_service_endpoint_up{service=\"pods\"");
    eventually("the one that refuses is down", || up(&proxy) == 2.0);
    b.revive();
    eventually("and up again", || up(&proxy) == 3.0);
}

#[test]
fn mistakes_in_the_keys_are_found_at_their_lines() {
    for (keys, key) in [
        ("healthCheck: { path: /x, hostname: \"a b\" }", "hostname"),
        ("healthCheck: { path: /x, status: 99 }", "status"),
        ("healthCheck: { path: /x, rise: 0 }", "rise"),
        ("healthCheck: { mode: http }", "path"),
        ("slowStart: { minWeightPercent: 0 }", "minWeightPercent"),
        ("outlierDetection: { maxEjectionPercent: 101 }", "maxEjectionPercent"),
        ("panicThreshold: 101", "panicThreshold"),
        ("passiveHealthCheck: { failureWindow: 0s }", "failureWindow"),
    ] {
        let dir = scratch();
        let path = dir.path().join("bad.yml");
        let text =
            three(keys).replace("{a}", "http://a").replace("{b}", "http://b").replace("{c}", "http://c");
        std::fs::write(&path, text).expect("written");
        let path = path.to_str().expect("text");
        let checked = run(dir.path(), ["check", path]).expect(1);
        let said = checked.stdout + &checked.stderr;
        assert!(said.contains(key) && said.contains("bad.yml:7:"), "{keys}: {said}");
    }
}
