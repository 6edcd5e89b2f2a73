//! Which endpoint gets a request beyond plain shares: sticky cookies, hashing, latency, tiers, and services of
//! services.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::client::Response;
use crate::harness::proxy::ProxyBuilder;
use crate::harness::{Client, Origin, Proxy, Refused, eventually, origin, proxy, run, scratch};

fn routed(services: &str) -> String {
    format!(
        "http:\n  routers: {{ all: {{ rule: \"PathPrefix(`/`)\", service: pods }} }}\n  services:\n{services}\n"
    )
}

/// A document on three origins that answer with their names.
fn three(services: &str) -> (Proxy, [Origin; 3]) {
    let origins = [origin().always("a").start(), origin().always("b").start(), origin().always("c").start()];
    let proxy = on(&origins).config(&routed(services)).start();
    (proxy, origins)
}

fn on(origins: &[Origin; 3]) -> ProxyBuilder {
    proxy().origin("a", &origins[0]).origin("b", &origins[1]).origin("c", &origins[2])
}

const ALL: &str = r#"servers: [{ url: "{a}" }, { url: "{b}" }, { url: "{c}" }]"#;

fn balancer(keys: &str) -> String {
    format!("    pods: {{ loadBalancer: {{ {keys}, {ALL} }} }}")
}

/// The `name=value` of the only cookie that an answer sets.
fn cookie(response: &Response) -> Option<String> {
    let field = response.header("set-cookie")?;
    Some(field.split(';').next().expect("a pair").to_owned())
}

fn get(client: &mut Client, cookie: &str) -> Response {
    client.get_with("/", &[("Cookie", cookie)]).expect(200)
}

#[test]
fn a_client_with_a_sticky_cookie_stays_with_its_endpoint() {
    let (proxy, origins) = three(&balancer("sticky: { cookie: {} }"));
    let mut client = proxy.client("x");

    let first = client.get("/").expect(200);
    let home = first.text();
    let cookie = cookie(&first).expect("a cookie on the first answer");

    assert!(first.header("set-cookie").expect("a cookie").ends_with("; Path=/"), "as Traefik writes it");
    for _ in 0..9 {
        let next = client.get_with("/", &[("Cookie", &format!("other=1; {cookie}"))]).expect(200);
        assert_eq!(next.text(), home);
        assert!(!next.head.has("set-cookie"), "the client has it");
    }
    assert_eq!(origins.iter().filter(|origin| origin.hits() > 0).count(), 1);
    assert_eq!(proxy.metric("sluicegate_sticky_requests_total{outcome=\"kept\"}"), 9.0);
    assert_eq!(proxy.metric("sluicegate_sticky_requests_total{outcome=\"new\"}"), 1.0);
}

#[test]
fn the_attributes_of_a_cookie_are_as_written() {
    let (proxy, _origins) = three(&balancer(
        "sticky: { cookie: { name: home, secure: true, httpOnly: true, sameSite: Strict, maxAge: 60, path: /app, domain: x.test } }",
    ));

    let answer = proxy.get("x", "/").expect(200);

    let field = answer.header("set-cookie").expect("a cookie");
    let (pair, attributes) = field.split_once("; ").expect("attributes");
    assert!(pair.starts_with("home=") && pair.len() == "home=".len() + 16, "{pair}");
    assert_eq!(attributes, "Path=/app; Domain=x.test; Max-Age=60; HttpOnly; Secure; SameSite=Strict");
}

#[test]
fn a_cookie_of_a_pod_that_died_leads_to_another_pod_and_is_replaced() {
    let (proxy, mut origins) = three(&balancer("sticky: { cookie: {} }"));
    let mut client = proxy.client("x");
    let first = client.get("/").expect(200);
    let old = cookie(&first).expect("a cookie");
    let home = ["a", "b", "c"].iter().position(|name| *name == first.text()).expect("one of them");

    origins[home].kill();

    let second = get(&mut client, &old);
    assert_ne!(second.text(), first.text());
    let new = cookie(&second).expect("a new cookie");
    assert_ne!(new, old);
    let third = get(&mut client, &new);
    assert_eq!(third.text(), second.text());
    assert!(!third.head.has("set-cookie"));
}

#[test]
fn a_cookie_that_is_none_of_ours_is_replaced() {
    let (proxy, _origins) = three(&balancer("sticky: { cookie: { name: home } }"));
    let mut client = proxy.client("x");

    for forged in ["home=x", "home=", "home=0123456789abcdef", "home=\"'; DROP\""] {
        assert!(cookie(&get(&mut client, forged)).is_some(), "{forged}");
    }
    assert_eq!(proxy.metric("sluicegate_sticky_requests_total{outcome=\"refused\"}"), 3.0);
    assert_eq!(proxy.metric("sluicegate_sticky_requests_total{outcome=\"moved\"}"), 1.0);
}

#[test]
fn a_signed_cookie_cannot_be_forged_and_survives_a_change_of_keys() {
    let keys =
        |keys: &str| balancer(&format!("sticky: {{ cookie: {{ name: home, signingKeys: [{keys}] }} }}"));
    let (proxy, _origins) = three(&keys("first-key-0123456789"));
    let mut client = proxy.client("x");
    let first = client.get("/").expect(200);
    let good = cookie(&first).expect("a cookie");

    let (unsigned, _) = good.split_once('.').expect("a signature");
    assert!(cookie(&get(&mut client, unsigned)).is_some());
    assert!(cookie(&get(&mut client, &format!("{good}0"))).is_some());

    proxy.reload(&routed(&keys("second-key-0123456789, first-key-0123456789")));
    let kept = get(&mut client, &good);
    assert_eq!(kept.text(), first.text());
    assert!(!kept.head.has("set-cookie"));

    proxy.reload(&routed(&keys("second-key-0123456789")));
    assert!(cookie(&get(&mut client, &good)).is_some());
    let shown = proxy.admin_get("/api/http/services").expect(200).text();
    assert!(shown.contains("home") && !shown.contains("second-key"), "{shown}");
}

#[test]
fn a_pod_that_is_drained_keeps_its_sessions_and_gets_no_new_ones() {
    let (proxy, origins) = three(&balancer("sticky: { cookie: {} }"));
    let first = proxy.get("x", "/").expect(200);
    let cookie = cookie(&first).expect("a cookie");
    let home = first.text();
    let names = ["a", "b", "c"];
    let servers: Vec<String> =
        names.iter().map(|name| format!("{{ url: \"{{{name}}}\", drain: {} }}", *name == home)).collect();

    proxy.reload(&routed(&format!(
        "    pods: {{ loadBalancer: {{ sticky: {{ cookie: {{}} }}, servers: [{}] }} }}",
        servers.join(", ")
    )));

    let mut client = proxy.client("x");
    let home = names.iter().position(|name| *name == home).expect("one of them");
    origins[home].forget();
    for _ in 0..12 {
        assert_ne!(client.get("/").expect(200).text(), names[home], "a new session");
    }
    assert_eq!(origins[home].hits(), 0);
    assert_eq!(get(&mut client, &cookie).text(), names[home]);
}

#[test]
fn each_level_of_nested_sticky_services_has_a_cookie_of_its_own() {
    let (proxy, _origins) = three(
        r#"    pods: { weighted: { sticky: { cookie: { name: version } }, services: [{ name: old }, { name: new }] } }
    old: { loadBalancer: { servers: [{ url: "{a}" }] } }
    new: { loadBalancer: { sticky: { cookie: { name: pod } }, servers: [{ url: "{b}" }, { url: "{c}" }] } }"#,
    );
    let mut client = proxy.client("x");
    let mut answers = (0..4).map(|_| client.get("/").expect(200));
    let new = answers.find(|answer| answer.text() != "a").expect("half of them");
    let cookies: Vec<&str> = new
        .head
        .all("set-cookie")
        .into_iter()
        .map(|field| field.split(';').next().expect("a pair"))
        .collect();
    assert!(cookies[0].starts_with("version=") && cookies[1].starts_with("pod="), "{cookies:?}");
    let (both, home) = (cookies.join("; "), new.text());

    for _ in 0..8 {
        let next = get(&mut client, &both);
        assert_eq!(next.text(), home);
        assert!(!next.head.has("set-cookie"));
    }
    // The version alone leaves the choice among its pods.
    let version = cookies[0];
    assert!((0..8).all(|_| get(&mut client, version).text() != "a"));
}

#[test]
fn a_refused_request_sets_no_cookie() {
    let refusing = Refused::new();
    let proxy = proxy()
        .name("a", refusing.url())
        .config(&routed(
            "    pods: { loadBalancer: { sticky: { cookie: {} }, servers: [{ url: \"{a}\" }] } }",
        ))
        .start();

    assert!(!proxy.get("x", "/").expect(502).head.has("set-cookie"));
}

#[test]
fn requests_are_hashed_by_what_the_operator_names() {
    for (keys, field, target) in [
        ("hash: { header: X-User }", Some("X-User"), "/"),
        ("hash: { cookie: user }", Some("Cookie"), "/"),
        ("hash: { query: user }", None, "/?n=1&user="),
        ("hash: { path: true }", None, "/"),
    ] {
        let (proxy, _origins) = three(&balancer(&format!("strategy: hash, {keys}")));
        let mut client = proxy.client("x");
        let mut ask = |user: usize| {
            let value = if field == Some("Cookie") { format!("user=u{user}") } else { format!("u{user}") };
            match field {
                Some(field) => client.get_with("/", &[(field, &value)]).expect(200).text(),
                None => client.get(&format!("{target}{value}")).expect(200).text(),
            }
        };
        let homes: Vec<String> = (0..24).map(&mut ask).collect();
        assert_eq!((0..24).map(&mut ask).collect::<Vec<_>>(), homes, "{keys}");
        for name in ["a", "b", "c"] {
            assert!(homes.iter().any(|home| home == name), "{keys}: {homes:?}");
        }
    }
}

#[test]
fn requests_without_a_key_take_turns() {
    let (proxy, origins) = three(&balancer("strategy: hash, hash: { header: X-User }"));
    let mut client = proxy.client("x");

    for _ in 0..9 {
        client.get("/").expect(200);
    }

    assert_eq!(origins.iter().map(Origin::hits).collect::<Vec<_>>(), [3, 3, 3]);
    assert_eq!(proxy.metric("sluicegate_hash_misses_total{reason=\"no_key\"}"), 9.0);
}

#[test]
fn a_client_address_always_leads_to_the_same_pod() {
    let (proxy, origins) = three(&balancer("strategy: hrw"));

    for _ in 0..6 {
        proxy.get("x", "/").expect(200);
    }

    let mut hits: Vec<usize> = origins.iter().map(Origin::hits).collect();
    hits.sort_unstable();
    assert_eq!(hits, [0, 0, 6]);
}

#[test]
fn keys_of_a_dead_pod_move_and_no_others() {
    let (proxy, mut origins) = three(&balancer("strategy: hash, hash: { header: X-User }"));
    let mut client = proxy.client("x");
    let mut homes = || -> Vec<String> {
        (0..30)
            .map(|user| client.get_with("/", &[("X-User", &format!("u{user}"))]).expect(200).text())
            .collect()
    };
    let before = homes();

    origins[1].kill();

    let after = homes();
    for (before, after) in before.iter().zip(&after) {
        assert!(before == after || before == "b", "{before} to {after}");
        assert_ne!(after, "b");
    }
}

#[test]
fn a_hot_key_spills_over_where_there_is_a_bound() {
    let [a, b] = [(); 2].map(|()| origin().otherwise(|_, peer| peer.hang()).start());
    let proxy = proxy()
        .origin("a", &a)
        .origin("b", &b)
        .config(&routed(
            "    pods: { loadBalancer: { strategy: hash, hash: { header: X-User, maxLoad: 125 }, servers: [{ url: \"{a}\" }, { url: \"{b}\" }] } }",
        ))
        .start();

    let _waiting: Vec<Client> = (1..=10)
        .map(|count| {
            let mut client = proxy.client("x");
            client.send_request("GET", "/", &[("X-User", "ann")], b"");
            eventually("it is under way", || a.hits() + b.hits() == count);
            client
        })
        .collect();

    // At most 125 % of a half of 10, rounded up.
    assert_eq!(a.hits().max(b.hits()), 7);
    assert!(proxy.metric("sluicegate_hash_misses_total{reason=\"over_bound\"}") >= 1.0);
}

#[test]
fn the_one_with_the_fewest_requests_gets_the_next() {
    let slow = origin().otherwise(|_, peer| peer.hang()).start();
    let fast = origin().always("fast").start();
    let proxy = proxy()
        .origin("slow", &slow)
        .origin("fast", &fast)
        .config(&routed(
            "    pods: { loadBalancer: { strategy: leastrequests, servers: [{ url: \"{slow}\" }, { url: \"{fast}\" }] } }",
        ))
        .start();
    let mut stuck = proxy.client("x");
    stuck.send_request("GET", "/", &[], b"");
    eventually("a request hangs at the slow endpoint", || slow.hits() == 1);

    let mut client = proxy.client("x");
    for _ in 0..20 {
        assert_eq!(client.get("/").expect(200).text(), "fast");
    }
    assert_eq!(slow.hits(), 1);
}

#[test]
fn the_faster_one_gets_the_requests() {
    let slow = origin()
        .otherwise(|_, peer| {
            peer.pause(Duration::from_millis(300));
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let fast = origin().always("fast").start();
    let proxy = proxy()
        .origin("slow", &slow)
        .origin("fast", &fast)
        .config(&routed(
            "    pods: { loadBalancer: { strategy: leasttime, servers: [{ url: \"{slow}\" }, { url: \"{fast}\" }] } }",
        ))
        .start();
    let mut client = proxy.client("x");
    // Each is asked once before its time is known.
    eventually("both are known", || {
        client.get("/").expect(200);
        slow.hits() == 1 && fast.hits() >= 1
    });

    let answers: Vec<String> = (0..10).map(|_| client.get("/").expect(200).text()).collect();

    assert!(answers.iter().all(|answer| answer == "fast"), "{answers:?}");
}

#[test]
fn a_backup_is_used_when_the_others_are_down_and_only_then() {
    let origins = [origin().always("a").start(), origin().always("b").start(), origin().always("c").start()];
    let healthy = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&healthy);
    let checked = origin()
        .on("/health", move |_, peer| {
            let status = if state.load(Ordering::Acquire) { "200 OK" } else { "500 Internal Server Error" };
            peer.respond(status, &[], "");
        })
        .always("main")
        .start();
    let proxy = on(&origins)
        .origin("main", &checked)
        .config(&routed(
            r#"    pods:
      loadBalancer:
        healthCheck: { path: /health, interval: 100ms, timeout: 1s }
        servers: [{ url: "{main}" }, { url: "{c}", backup: true }]"#,
        ))
        .start();
    let mut client = proxy.client("x");
    assert!((0..10).all(|_| client.get("/").expect(200).text() == "main"));

    healthy.store(false, Ordering::Release);
    eventually("the backup has taken over", || client.get("/").expect(200).text() == "c");
    assert!(proxy.metric("sluicegate_spilled_attempts_total{to=\"backup\"}") >= 1.0);

    healthy.store(true, Ordering::Release);
    eventually("the main one is back", || client.get("/").expect(200).text() == "main");
}

#[test]
fn a_backup_answers_at_once_where_nobody_checks_and_the_main_one_refuses() {
    let refusing = Refused::new();
    let backup = origin().always("backup").start();
    let proxy = proxy()
        .name("a", refusing.url())
        .origin("b", &backup)
        .config(&routed(
            "    pods: { loadBalancer: { servers: [{ url: \"{a}\" }, { url: \"{b}\", backup: true }] } }",
        ))
        .start();

    for _ in 0..4 {
        assert_eq!(proxy.get("x", "/").expect(200).text(), "backup");
    }
}

#[test]
fn the_own_zone_is_preferred_and_another_steps_in() {
    let mut origins =
        [origin().always("a").start(), origin().always("b").start(), origin().always("c").start()];
    let proxy = on(&origins)
        .config(&format!("zone: here\n{}", routed(
            "    pods: { loadBalancer: { servers: [{ url: \"{a}\", zone: here }, { url: \"{b}\", zone: there }, { url: \"{c}\", zone: there }] } }",
        )))
        .start();
    let mut client = proxy.client("x");
    assert!((0..10).all(|_| client.get("/").expect(200).text() == "a"));

    origins[0].kill();

    assert!((0..10).all(|_| client.get("/").expect(200).text() != "a"));
    assert!(proxy.metric("sluicegate_spilled_attempts_total{to=\"other_zone\"}") >= 10.0);
}

const FAILOVER: &str = r#"    pods: { failover: { service: main, fallback: other } }
    main: { loadBalancer: { healthCheck: { path: /health, interval: 100ms, timeout: 1s }, servers: [{ url: "{main}" }] } }
    other: { loadBalancer: { servers: [{ url: "{other}" }] } }"#;

#[test]
fn the_fallback_answers_while_the_main_service_is_down() {
    let healthy = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&healthy);
    let main = origin()
        .on("/health", move |_, peer| {
            let status = if state.load(Ordering::Acquire) { "200 OK" } else { "500 Internal Server Error" };
            peer.respond(status, &[], "");
        })
        .always("main")
        .start();
    let other = origin().always("other").start();
    let proxy = proxy().origin("main", &main).origin("other", &other).config(&routed(FAILOVER)).start();
    let mut client = proxy.client("x");
    assert!((0..5).all(|_| client.get("/").expect(200).text() == "main"));

    healthy.store(false, Ordering::Release);
    eventually("the fallback answers", || client.get("/").expect(200).text() == "other");
    assert!(proxy.metric("sluicegate_failovers_total{reason=\"unavailable\"}") >= 1.0);

    healthy.store(true, Ordering::Release);
    eventually("the main service is back", || client.get("/").expect(200).text() == "main");
}

fn failing(limit: &str) -> (Proxy, Origin, Origin) {
    let main = origin()
        .on("/bad", |_, peer| peer.respond("503 Service Unavailable", &[], "bad"))
        .on("/cut", |_, peer| peer.reset())
        .always("main")
        .start();
    let other = origin()
        .otherwise(|request, peer| peer.respond("200 OK", &[], format!("other {}", request.text())))
        .start();
    let proxy = proxy()
        .origin("main", &main)
        .origin("other", &other)
        .config(&routed(&format!(
            r#"    pods: {{ failover: {{ service: main, fallback: other, errors: {{ status: ["502-504"]{limit} }} }} }}
    main: {{ loadBalancer: {{ retry: {{ attempts: 1 }}, servers: [{{ url: "{{main}}" }}] }} }}
    other: {{ loadBalancer: {{ servers: [{{ url: "{{other}}" }}] }} }}"#
        )))
        .start();
    (proxy, main, other)
}

#[test]
fn the_fallback_gets_the_request_again_when_the_main_service_answers_badly() {
    let (proxy, main, other) = failing("");
    let mut client = proxy.client("x");

    assert_eq!(client.get("/").expect(200).text(), "main");
    assert_eq!(client.post("/bad", "the body").expect(200).text(), "other the body");
    assert_eq!(client.post("/cut", "more").expect(200).text(), "other more");
    assert_eq!((main.hits(), other.hits()), (3, 2));
    assert_eq!(proxy.metric("sluicegate_failovers_total{reason=\"status\"}"), 2.0);
}

#[test]
fn a_body_over_the_limit_of_a_failover_is_refused() {
    let (proxy, main, _other) = failing(", maxRequestBodyBytes: 4");
    let mut client = proxy.client("x");

    assert_eq!(client.post("/bad", "four").expect(200).text(), "other four");
    client.post("/", "fives").expect(413);
    assert_eq!(main.hits(), 1);
}

#[test]
fn each_client_belongs_to_one_of_several_services() {
    let (proxy, origins) = three(
        r#"    pods: { highestRandomWeight: { services: [{ name: a }, { name: b, weight: 2 }] } }
    a: { loadBalancer: { servers: [{ url: "{a}" }] } }
    b: { loadBalancer: { servers: [{ url: "{b}" }] } }"#,
    );

    for _ in 0..6 {
        proxy.get("x", "/").expect(200);
    }

    let hits = [origins[0].hits(), origins[1].hits()];
    assert!(hits == [6, 0] || hits == [0, 6], "{hits:?}");
}

const MIRRORED: &str = r#"    main: { loadBalancer: { servers: [{ url: "{main}" }] } }
    copy: { loadBalancer: { servers: [{ url: "{copy}" }] } }"#;

/// A service at `main` with a mirror at `copy`.
fn mirroring(main: &Origin, copy: &str, keys: &str) -> Proxy {
    proxy()
        .origin("main", main)
        .name("copy", copy)
        .config(&routed(&format!("    pods: {{ mirroring: {{ service: main, {keys} }} }}\n{MIRRORED}")))
        .start()
}

fn outcome(proxy: &Proxy, outcome: &str) -> f64 {
    proxy.metric(&format!("sluicegate_mirrored_requests_total{{outcome=\"{outcome}\"}}"))
}

#[test]
fn a_mirror_gets_its_exact_share_of_the_requests_with_their_bodies() {
    let (main, copy) = (origin().always("main").start(), origin().always("copy").start());
    let proxy = mirroring(&main, &copy.url(), "mirrors: [{ name: copy, percent: 25 }]");
    let mut client = proxy.client("x");

    for number in 0..40 {
        assert_eq!(client.post("/in?q=1", format!("body {number}")).expect(200).text(), "main");
    }

    eventually("ten copies were answered", || outcome(&proxy, "answered") == 10.0);
    assert_eq!((main.hits(), copy.hits()), (40, 10));
    let copied = copy.received();
    let texts: Vec<String> = copied.iter().map(|request| request.text()).collect();
    assert_eq!(texts.iter().filter(|text| text.starts_with("body ")).count(), 10, "{texts:?}");
    let one = &copied[0];
    assert_eq!((one.method.as_str(), one.target.as_str()), ("POST", "/in?q=1"));
    assert_eq!(one.head.get("Host"), Some("x"));
    assert!(one.head.has("X-Forwarded-For"));
}

#[test]
fn a_mirror_that_hangs_or_refuses_delays_and_fails_nothing() {
    let main = origin().always("main").start();
    let hanging = origin().otherwise(|_, peer| peer.hang()).start();
    let keys = "mirrors: [{ name: copy, percent: 100 }], maxConcurrent: 3";
    let proxy = mirroring(&main, &hanging.url(), keys);
    let mut client = proxy.client("x");
    for _ in 0..10 {
        assert_eq!(client.post("/", "x").expect(200).text(), "main");
    }
    eventually("what is over three is dropped", || outcome(&proxy, "dropped_busy") == 7.0);
    assert!(hanging.hits() <= 3);

    let refused = Refused::new();
    let proxy = mirroring(&main, &refused.url(), keys);
    assert_eq!(proxy.get("x", "/").expect(200).text(), "main");
    eventually("it is counted", || outcome(&proxy, "failed") == 1.0);
}

#[test]
fn a_body_over_the_limit_is_not_mirrored_and_arrives_whole() {
    let main = origin().otherwise(|request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let copy = origin().start();
    let proxy = mirroring(&main, &copy.url(), "mirrors: [{ name: copy, percent: 100 }], maxBodySize: 10");
    let mut client = proxy.client("x");
    let large = "x".repeat(100_000);

    assert_eq!(client.post("/", &large).expect(200).text(), large);
    client.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nchunks\r\n5\r\nabove\r\n0\r\n\r\n");
    assert_eq!(client.response().expect(200).text(), "chunksabove");
    assert_eq!(client.post("/", "fits").expect(200).text(), "fits");

    eventually("two were too large", || outcome(&proxy, "dropped_too_large") == 2.0);
    eventually("one was copied", || outcome(&proxy, "answered") == 1.0);
    assert_eq!(copy.received().iter().map(|request| request.text()).collect::<Vec<_>>(), ["fits"]);
}

#[test]
fn a_mirror_without_bodies_gets_the_heads() {
    let (main, copy) = (origin().always("main").start(), origin().start());
    let proxy = mirroring(&main, &copy.url(), "mirrors: [{ name: copy, percent: 100 }], mirrorBody: false");

    proxy.client("x").post("/", "body").expect(200);

    eventually("the copy came", || copy.hits() == 1);
    assert_eq!(copy.last().text(), "");
}

#[test]
fn what_is_wrong_with_balancing_is_said_at_its_line() {
    for (services, message) in [
        ("pods: { loadBalancer: { strategy: hash } }", "needs to know what to hash"),
        ("pods: { loadBalancer: { hash: { path: true } } }", "does not read hash"),
        ("pods: { loadBalancer: { strategy: hash, hash: {} } }", "does not say what is hashed"),
        ("pods: { loadBalancer: { strategy: hash, hash: { path: true, query: q } } }", "query and path"),
        (
            "pods: { loadBalancer: { strategy: hash, hash: { path: true, maxLoad: 100 } } }",
            "over 100 percent",
        ),
        ("pods: { loadBalancer: { sticky: { cookie: { signingKeys: [short] } } } }", "at least 16 bytes"),
        ("pods: { loadBalancer: { sticky: { cookie: { path: \"/;x\" } } } }", "without a semicolon"),
        ("pods: { loadBalancer: { sticky: {} } }", "does nothing without cookie"),
        ("pods: { loadBalancer: { spillover: { zonePercent: 101 } } }", "at most 100"),
        ("pods: { failover: { service: pods, fallback: pods } }", "lead in a circle"),
        ("pods: { failover: { service: nope, fallback: pods } }", "unknown service"),
        (
            "pods: { failover: { service: x, fallback: x, errors: {} } }\n    x: { loadBalancer: {} }",
            "names no status",
        ),
        ("pods: { highestRandomWeight: { services: [] } }", "must not be empty"),
        (
            "pods: { mirroring: { service: x, mirrors: [{ name: x, percent: 101 }] } }\n    x: { loadBalancer: {} }",
            "at most 100",
        ),
        (
            "pods: { weighted: { services: [{ name: x }], healthCheck: {} } }\n    x: { loadBalancer: {} }",
            "nobody checks",
        ),
    ] {
        let dir = scratch();
        let file = dir.path().join("config.yaml");
        let text =
            format!("entryPoints: {{ web: {{ address: ':0' }} }}\n{}", routed(&format!("    {services}")));
        std::fs::write(&file, text).expect("written");
        let finished = run(dir.path(), ["check", "config.yaml"]);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(said.contains(message), "{services}: {said}");
    }
}
