//! Which endpoint gets a request: weights, policies, health, and pods that die under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Client, Load, Origin, Proxy, eventually, origin, proxy, throughout};

/// How many of `count` GETs on one connection each origin got.
fn shares(client: &mut Client, count: usize, origins: &[&Origin]) -> Vec<usize> {
    for origin in origins {
        origin.forget();
    }
    for _ in 0..count {
        client.get("/").expect(200);
    }
    origins.iter().map(|origin| origin.hits()).collect()
}

fn three() -> [Origin; 3] {
    [origin().always("a").start(), origin().always("b").start(), origin().always("c").start()]
}

/// A document on three origins; `services` is the text of `http.services`, in which `pods` is used.
fn serving(origins: &[Origin; 3], services: &str) -> Proxy {
    proxy()
        .origin("a", &origins[0])
        .origin("b", &origins[1])
        .origin("c", &origins[2])
        .config(&routed(services))
        .start()
}

fn routed(services: &str) -> String {
    format!(
        "http:\n  routers: {{ all: {{ rule: \"PathPrefix(`/`)\", service: pods }} }}\n  services:\n{services}\n"
    )
}

#[test]
fn equal_servers_get_equal_shares() {
    let origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\" }, { url: \"{b}\" }, { url: \"{c}\" }] } }",
    );
    let [a, b, c] = &origins;

    assert_eq!(shares(&mut proxy.client("x"), 30, &[a, b, c]), [10, 10, 10]);
}

#[test]
fn weights_are_exact_shares_and_zero_is_none() {
    let origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\", weight: 3 }, { url: \"{b}\", weight: 1 }, { url: \"{c}\", weight: 0 }] } }",
    );
    let [a, b, c] = &origins;

    assert_eq!(shares(&mut proxy.client("x"), 40, &[a, b, c]), [30, 10, 0]);
}

#[test]
fn weights_are_spread_and_not_sent_in_bursts() {
    let origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\", weight: 4 }, { url: \"{b}\", weight: 2 }] } }",
    );
    let mut client = proxy.client("x");

    let order: String = (0..12).map(|_| client.get("/").expect(200).text()).collect();

    assert!(!order.contains("bb") && !order.contains("aaa"), "{order}");
}

#[test]
fn shares_hold_over_many_connections() {
    let origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\", weight: 3 }, { url: \"{b}\", weight: 1 }] } }",
    );

    for _ in 0..80 {
        proxy.get("x", "/").expect(200);
    }

    let got = origins[0].hits();
    assert!((50..=70).contains(&got), "{got} of 80, with a weight of 3 in 4");
}

#[test]
fn power_of_two_choices_avoids_the_busy_one() {
    let slow = origin().otherwise(|_, peer| peer.hang()).start();
    let fast = origin().always("fast").start();
    let proxy = proxy()
        .origin("slow", &slow)
        .origin("fast", &fast)
        .config(&routed(
            "    pods: { loadBalancer: { strategy: p2c, servers: [{ url: \"{slow}\" }, { url: \"{fast}\" }] } }",
        ))
        .start();
    // Requests that hang until one of them stands at the slow endpoint.
    let mut waiting = Vec::new();
    eventually("a request hangs at the slow endpoint", || {
        let mut client = proxy.client("x");
        let request = client.head("GET", "/", &[]);
        client.send(request);
        waiting.push(client);
        std::thread::sleep(Duration::from_millis(20));
        slow.hits() > 0
    });
    let before = slow.hits();

    let mut client = proxy.client("x");
    for _ in 0..50 {
        assert_eq!(client.get("/").expect(200).text(), "fast");
    }
    assert_eq!(slow.hits(), before);
}

#[test]
fn power_of_two_choices_honours_weights() {
    let origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { strategy: p2c, servers: [{ url: \"{a}\", weight: 9 }, { url: \"{b}\", weight: 1 }] } }",
    );
    let [a, b, _] = &origins;

    let shares = shares(&mut proxy.client("x"), 400, &[a, b]);

    assert!(shares[0] > 280 && shares[1] > 0, "{shares:?}, with weights of 9 and 1");
}

#[test]
fn weighted_services_share_exactly_nested_ones_too() {
    let origins = three();
    let proxy = serving(
        &origins,
        r#"    pods: { weighted: { services: [{ name: a, weight: 2 }, { name: rest, weight: 2 }] } }
    rest: { weighted: { services: [{ name: b, weight: 3 }, { name: c }] } }
    a: { loadBalancer: { servers: [{ url: "{a}" }] } }
    b: { loadBalancer: { servers: [{ url: "{b}" }] } }
    c: { loadBalancer: { servers: [{ url: "{c}" }] } }"#,
    );
    let [a, b, c] = &origins;

    assert_eq!(shares(&mut proxy.client("x"), 80, &[a, b, c]), [40, 30, 10]);
}

/// An origin whose `/health` follows a switch.
fn switched(text: &'static str) -> (Origin, Arc<AtomicBool>) {
    let healthy = Arc::new(AtomicBool::new(true));
    let state = Arc::clone(&healthy);
    let origin = origin()
        .on("/health", move |_, peer| {
            let status = if state.load(Ordering::Acquire) { "200 OK" } else { "500 Internal Server Error" };
            peer.respond(status, &[], "");
        })
        .always(text)
        .start();
    (origin, healthy)
}

const CHECKED: &str = r#"    pods:
      loadBalancer:
        healthCheck: { path: /health, interval: 100ms, timeout: 1s }
        servers: [{ url: "{a}" }, { url: "{b}" }]"#;

/// The answers to some GETs on one connection, each once.
fn answering(proxy: &Proxy) -> Vec<String> {
    let mut client = proxy.client("x");
    let mut names: Vec<String> = (0..8)
        .map(|_| {
            let answer = client.get("/");
            if answer.status == 200 { answer.text() } else { answer.status.to_string() }
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn an_endpoint_that_fails_its_check_gets_nothing_until_it_passes_again() {
    let ((a, a_healthy), (b, b_healthy)) = (switched("a"), switched("b"));
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&routed(CHECKED)).start();
    assert_eq!(answering(&proxy), ["a", "b"], "up until the first check says otherwise");

    a_healthy.store(false, Ordering::Release);
    eventually("a is out", || answering(&proxy) == ["b"]);
    throughout("a stays out", Duration::from_millis(300), || answering(&proxy) == ["b"]);

    b_healthy.store(false, Ordering::Release);
    eventually("nobody is left", || answering(&proxy) == ["503"]);
    assert_eq!(proxy.get("x", "/").expect(503).text(), "no available server\n");

    a_healthy.store(true, Ordering::Release);
    eventually("a is back", || answering(&proxy) == ["a"]);
}

#[test]
fn health_is_shown_in_metrics_and_api() {
    let ((a, a_healthy), (b, _b_healthy)) = (switched("a"), switched("b"));
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&routed(CHECKED)).start();
    a_healthy.store(false, Ordering::Release);

    eventually("the API says so", || {
        let rawdata = proxy.admin_get("/api/rawdata").expect(200).json();
        let services = rawdata["services"].as_object().expect("services").clone();
        let status = services
            .iter()
            .find(|(name, _)| name.starts_with("pods"))
            .map(|(_, pods)| pods["serverStatus"].clone());
        status.is_some_and(|status| status[&a.url()] == "DOWN" && status[&b.url()] == "UP")
    });
    eventually("the metric says so", || {
        let exposition = proxy.admin_get("/metrics").expect(200).text();
        let line = |origin: &Origin| {
            let address = origin.address().to_string();
            exposition
                .lines()
                .find(|line| line.starts_with("sluicegate_service_endpoint_up") && line.contains(&address))
                .and_then(|line| line.rsplit(' ').next())
                .map(str::to_owned)
        };
        line(&a).as_deref() == Some("0") && line(&b).as_deref() == Some("1")
    });
}

#[test]
fn a_check_is_asked_as_it_is_configured() {
    let checked = origin().start();
    let _proxy = proxy()
        .origin("a", &checked)
        .config(&routed(
            r#"    pods:
      loadBalancer:
        servers: [{ url: "{a}" }]
        healthCheck:
          path: "/health?deep=1"
          method: HEAD
          hostname: health.test
          headers: { X-Probe: "yes" }
          interval: 100ms"#,
        ))
        .start();

    eventually("a check comes", || checked.hits() > 0);
    let probe = checked.last();
    assert_eq!((probe.method.as_str(), probe.target.as_str()), ("HEAD", "/health?deep=1"));
    assert_eq!(probe.head.get("Host"), Some("health.test"));
    assert_eq!(probe.head.get("X-Probe"), Some("yes"));
    assert!(!probe.head.has("X-Forwarded-For"), "{:?}", probe.head.raw);
}

#[test]
fn a_check_may_ask_for_one_status_only() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("a", &origin)
        .config(&routed(
            "    pods: { loadBalancer: { healthCheck: { path: /, status: 204, interval: 100ms }, servers: [{ url: \"{a}\" }] } }",
        ))
        .start();

    eventually("200 is not 204", || proxy.get("x", "/").status == 503);
}

#[test]
fn a_check_that_hangs_fails_in_time() {
    let origin = origin().on("/health", |_, peer| peer.hang()).always("a").start();
    let proxy = proxy()
        .origin("a", &origin)
        .config(&routed(
            "    pods: { loadBalancer: { healthCheck: { path: /health, interval: 100ms, timeout: 200ms }, servers: [{ url: \"{a}\" }] } }",
        ))
        .start();

    eventually("the endpoint is out", || proxy.get("x", "/").status == 503);
}

#[test]
fn a_pod_killed_under_load_fails_no_get() {
    let mut origins = three();
    let proxy = serving(
        &origins,
        r#"    pods:
      loadBalancer:
        healthCheck: { path: /, interval: 200ms, timeout: 1s }
        servers: [{ url: "{a}" }, { url: "{b}" }, { url: "{c}" }]"#,
    );
    let load = Load::start(proxy.address("web"), "x", "/", 4);
    load.await_more(300);

    for index in [0, 2] {
        origins[index].kill();
        load.await_more(600);
        origins[index].revive();
        load.await_more(300);
    }

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
}

#[test]
fn a_pod_killed_without_any_health_check_fails_no_get() {
    let mut origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\" }, { url: \"{b}\" }, { url: \"{c}\" }] } }",
    );
    let load = Load::start(proxy.address("web"), "x", "/", 4);
    load.await_more(300);

    origins[1].kill();
    load.await_more(1000);

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
}

#[test]
fn a_pod_that_comes_back_gets_traffic_again() {
    let mut origins = three();
    let proxy = serving(
        &origins,
        "    pods: { loadBalancer: { servers: [{ url: \"{a}\" }, { url: \"{b}\" }, { url: \"{c}\" }] } }",
    );
    let mut client = proxy.client("x");
    origins[0].kill();
    for _ in 0..9 {
        client.get("/").expect(200);
    }
    let before = origins[0].hits();

    origins[0].revive();

    eventually("the revived pod is asked", || {
        client.get("/").expect(200);
        origins[0].hits() > before
    });
}

#[test]
fn a_server_may_be_named_instead_of_numbered() {
    let origin = origin().always("by name").start();
    let port = origin.address().port();
    let proxy = proxy()
        .name("named", format!("http://localhost:{port}"))
        .config(&routed("    pods: { loadBalancer: { servers: [{ url: \"{named}\" }] } }"))
        .start();

    assert_eq!(proxy.get("x", "/").expect(200).text(), "by name");
}
