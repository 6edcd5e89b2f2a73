//! `rateLimit` beyond Traefik's keys: several windows, plans, exemptions, counted answers, what clients and operators
//! are told, and what a reload keeps.

use crate::harness::{Origin, Proxy, eventually, origin, proxy, run, scratch};

fn limited(options: &str, origin: &Origin) -> Proxy {
    proxy().origin("origin", origin).config(&document(options)).start()
}

fn document(options: &str) -> String {
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "Host(`a.test`)", service: pods, middlewares: [limit] }} }}
  middlewares: {{ limit: {{ rateLimit: {options} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
"#
    )
}

fn statuses(proxy: &Proxy, target: &str, fields: &[(&str, &str)], count: usize) -> Vec<u16> {
    let mut client = proxy.client("a.test");
    (0..count).map(|_| client.get_with(target, fields).status).collect()
}

#[test]
fn the_tightest_of_several_windows_refuses_and_is_named() {
    let origin = origin().start();
    let proxy = limited(
        "{ average: 1000, burst: 1000, responseFields: both, limits: [{ name: day, average: 3, period: 24h }] }",
        &origin,
    );
    let mut client = proxy.client("a.test");
    client.get("/").expect(200);
    client.get("/").expect(200);
    let passed = client.get("/").expect(200);
    assert_eq!(passed.header("X-RateLimit-Limit"), Some("3"));
    assert_eq!(passed.header("X-RateLimit-Remaining"), Some("0"));
    let refused = client.get("/").expect(429);
    assert_eq!(refused.header("RateLimit-Policy"), Some("\"default\";q=1000;w=1, \"day\";q=3;w=86400"));
    let told = refused.header("RateLimit").expect("RateLimit");
    assert!(told.starts_with("\"day\";r=0;t=86"), "{told}");
    assert_eq!(origin.hits(), 3);
}

#[test]
fn plans_exemptions_and_costs_are_looked_up_in_the_request() {
    let origin = origin().start();
    let options = r#"{ average: 1, period: 1h, burst: 4,
        key: [{ requestHeaderName: X-Key }],
        plans: { by: { requestHeaderName: X-Key }, members: { gold: [carol] }, limits: { gold: { average: 1, period: 1h, burst: 8 } } },
        exempt: { paths: [/health] },
        cost: [{ path: /search, cost: 2 }] }"#;
    let proxy = limited(options, &origin);
    let passed =
        |target, key| statuses(&proxy, target, &[("X-Key", key)], 10).iter().filter(|s| **s == 200).count();
    assert_eq!(passed("/", "alice"), 4);
    assert_eq!(passed("/", "carol"), 8);
    assert_eq!(passed("/search", "bob"), 2);
    assert_eq!(passed("/health/live", "alice"), 10);
}

#[test]
fn routers_have_buckets_of_their_own_unless_the_middleware_is_the_scope() {
    let origin = origin().start();
    for (scope, second) in [("", 200), (", scope: router", 200), (", scope: middleware", 429)] {
        let text = format!(
            r#"
http:
  routers:
    shop: {{ rule: "Host(`a.test`) && PathPrefix(`/shop`)", service: pods, middlewares: [limit] }}
    help: {{ rule: "Host(`a.test`) && PathPrefix(`/help`)", service: pods, middlewares: [limit] }}
  middlewares: {{ limit: {{ rateLimit: {{ average: 1, period: 1h{scope} }} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
"#
        );
        let proxy = proxy().origin("origin", &origin).config(&text).start();
        assert_eq!(statuses(&proxy, "/shop", &[], 2), [200, 429], "{scope}");
        assert_eq!(statuses(&proxy, "/help", &[], 1), [second], "{scope}");
    }
}

#[test]
fn a_limit_that_stands_on_the_way_twice_counts_a_request_once() {
    // It counted for each mention: a limit of an entry point that a router or a chain named too was half of what
    // it said, and an `inFlightReq` of 1 let nobody in.
    let origin = origin().start();
    for limit in
        ["rateLimit: { average: 2, period: 1h, burst: 2, scope: SCOPE }", "inFlightReq: { amount: 1 }"]
    {
        for scope in ["router", "middleware"] {
            let text = format!(
                r#"
entryPoints: {{ web: {{ address: "127.0.0.1:0", http: {{ middlewares: [limit] }} }} }}
http:
  routers:
    all: {{ rule: "Host(`a.test`)", service: pods, middlewares: [limit, both] }}
  middlewares:
    limit: {{ {} }}
    both: {{ chain: {{ middlewares: [limit, limit@file] }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
"#,
                limit.replace("SCOPE", scope)
            );
            let proxy = proxy().origin("origin", &origin).config(&text).start();
            assert_eq!(statuses(&proxy, "/", &[], 2), [200; 2], "{limit}");
        }
    }
}

#[test]
fn what_is_too_early_is_held_back_as_long_as_may_be_and_not_refused() {
    let origin = origin().start();
    let proxy = limited("{ average: 4, burst: 1, maxDelay: 1m }", &origin);
    let began = std::time::Instant::now();
    assert_eq!(statuses(&proxy, "/", &[], 4), [200; 4]);
    // At four a second, the fourth comes 750 ms after the first and no sooner.
    assert!(began.elapsed() >= std::time::Duration::from_millis(750), "{:?}", began.elapsed());
    let decisions = |decision| {
        let labels = format!("middleware=\"limit\",decision=\"{decision}\"");
        proxy.metric(&format!("sluicegate_limiter_decisions_total{{{labels}}}"))
    };
    assert_eq!(decisions("delayed") + decisions("allowed"), 4.0);
    assert_eq!(origin.hits(), 4);
}

#[test]
fn only_failed_logins_count() {
    let origin = origin()
        .on("/bad", |_, peer| peer.respond("401 Unauthorized", &[], "no"))
        .otherwise(|_, peer| peer.respond("200 OK", &[], "yes"))
        .start();
    let proxy = limited("{ average: 1, period: 1h, burst: 2, countStatus: ['401'] }", &origin);
    assert_eq!(statuses(&proxy, "/good", &[], 5), [200; 5]);
    assert_eq!(statuses(&proxy, "/bad", &[], 3), [401, 401, 429]);
    assert_eq!(statuses(&proxy, "/good", &[], 1), [429], "whoever guesses does not learn what is right");
}

#[test]
fn a_shadow_limit_counts_and_refuses_nobody() {
    let origin = origin().start();
    let proxy = limited("{ average: 1, period: 1h, shadow: true }", &origin);
    assert_eq!(statuses(&proxy, "/", &[], 4), [200; 4]);
    proxy.await_metric("sluicegate_limiter_decisions_total{decision=\"shadow\"}", 3.0);
    proxy.await_metric("sluicegate_limiter_decisions_total{decision=\"allowed\"}", 1.0);
}

#[test]
fn a_refusal_has_the_status_body_and_fields_that_are_written() {
    let origin = origin().start();
    let proxy = limited(
        "{ average: 1, period: 1h, refusal: { status: 503, body: slow down, contentType: text/plain, headers: { X-Why: limit } } }",
        &origin,
    );
    let mut client = proxy.client("a.test");
    client.get("/").expect(200);
    let refused = client.get("/").expect(503);
    assert_eq!(refused.text(), "slow down");
    assert_eq!(
        (refused.header("Content-Type"), refused.header("X-Why")),
        (Some("text/plain"), Some("limit"))
    );
    assert!(refused.header("Retry-After").is_some());
}

#[test]
fn the_api_shows_who_is_refused_and_hides_keys_that_may_be_secrets() {
    let origin = origin().start();
    let proxy =
        limited("{ average: 1, period: 1h, key: [{ requestHeaderName: X-Key }, { method: true }] }", &origin);
    statuses(&proxy, "/", &[("X-Key", "s3cret")], 3);
    let shown = proxy.admin_get("/api/limits").expect(200);
    let limit = &shown.json()[0];
    assert_eq!((&limit["name"], &limit["refused"]), (&"rateLimit/limit/all".into(), &2.into()));
    assert_eq!(limit["topKeys"][0]["refused"], 2);
    assert!(!shown.text().contains("s3cret"));

    proxy.reload(&document("{ average: 1, period: 1h }"));
    statuses(&proxy, "/", &[], 3);
    let shown = proxy.admin_get("/api/limits").expect(200).json();
    let keys: Vec<_> =
        shown[0]["topKeys"].as_array().expect("a list").iter().map(|top| &top["key"]).collect();
    assert!(keys.contains(&&"127.0.0.1".into()), "{keys:?}");
    assert_eq!(proxy.metric("sluicegate_limiter_buckets"), 2.0);
}

#[test]
fn what_was_spent_stays_spent_over_a_reload_that_changes_the_limit() {
    let origin = origin().start();
    let proxy = limited("{ average: 1, period: 1h, burst: 3 }", &origin);
    assert_eq!(statuses(&proxy, "/", &[], 2), [200; 2]);
    proxy.reload(&document("{ average: 1, period: 24h, burst: 4, maxKeys: 1000 }"));
    assert_eq!(statuses(&proxy, "/", &[], 3), [200, 200, 429]);
    proxy.reload(&document("{ average: 1, period: 24h, burst: 4, shadow: true }"));
    proxy.reload(&document("{ average: 1, period: 24h, burst: 4 }"));
    assert_eq!(statuses(&proxy, "/", &[], 1), [429]);
}

#[test]
fn the_access_log_names_the_limit_that_refused() {
    let origin = origin().start();
    let limits = "[{ name: day, average: 1, period: 24h }]";
    let text = format!(
        "accessLog: {{ format: json }}\n{}",
        document(&format!("{{ average: 100, burst: 100, limits: {limits} }}"))
    );
    let proxy = proxy().origin("origin", &origin).config(&text).start();
    assert_eq!(statuses(&proxy, "/", &[], 2), [200, 429]);
    eventually("a line names it", || proxy.stdout().iter().any(|line| line.contains("limit (day)")));
}

#[test]
fn explain_says_which_limits_are_for_a_request() {
    let dir = scratch();
    let file = dir.path().join("sluicegate.yaml");
    let options = r#"{ average: 5, burst: 10, key: [{ requestHeaderName: X-Key }], exempt: { paths: [/health] },
        limits: [{ name: day, average: 100, period: 24h }] }"#;
    let text = document(options).replace("{origin}", "http://127.0.0.1:1");
    std::fs::write(&file, format!("entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }} }}\n{text}"))
        .expect("written");
    let file = file.to_str().expect("text");
    let explained = |arguments: &[&str]| {
        run(dir.path(), ["explain", "--config", file].iter().chain(arguments)).expect(0).stdout
    };
    let shown = explained(&["-H", "X-Key: alice", "http://a.test/"]);
    assert!(shown.contains("counts by header x-key: \"alice\""), "{shown}");
    assert!(shown.contains("window default: 5 per 1s, 10 at once"), "{shown}");
    assert!(shown.contains("window day: 100 per 24h, 100 at once"), "{shown}");
    let shown = explained(&["http://a.test/health"]);
    assert!(shown.contains("exempt by its path"), "{shown}");
}

#[test]
fn explain_names_every_kind_of_limit_on_the_way() {
    let dir = scratch();
    let file = dir.path().join("sluicegate.yaml");
    let text = r#"
entryPoints: { web: { address: "127.0.0.1:0" } }
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods, middlewares: [shared, planned, parallel, slow] } }
  middlewares:
    shared: { rateLimit: { average: 7, burst: 9, countStatus: ["401"], redis: { endpoints: ["127.0.0.1:1"], replicas: 3 } } }
    planned:
      rateLimit:
        average: 1
        cost: [{ path: /search, cost: 5 }]
        burst: 5
        plans: { by: { requestHeaderName: X-Plan }, limits: { gold: { average: 100, burst: 200 } } }
    parallel: { inFlightReq: { amount: 4, sourceCriterion: { requestHeaderName: X-Key } } }
    slow: { bandwidth: { upload: 1MiB } }
  services:
    pods:
      loadBalancer:
        servers: [{ url: "http://127.0.0.1:1" }]
        outboundLimit:
          { average: 50, burst: 5, maxWait: 2s, redis: { endpoints: ["127.0.0.1:1"], mode: lease, lease: 7, onFailure: open } }
"#;
    std::fs::write(&file, text).expect("written");
    let file = file.to_str().expect("text");
    let arguments = ["-H", "X-Plan: gold", "-H", "X-Key: k", "http://a.test/search/x"];
    let shown = run(dir.path(), ["explain", "--config", file].iter().chain(&arguments)).expect(0).stdout;
    for part in [
        "window default: 7 per 1s, 9 at once",
        "shared through redis 127.0.0.1:1, asked for each request; without an answer in 5ms: local, a share of 1 in 3",
        "counts only by its answer's status",
        "plan gold",
        "window default: 100 per 1s, 200 at once",
        "costs 5",
        "counts by header x-key: \"k\", at most 4 at once",
        "up: 1MiB a second of each stream",
        "50 requests out per 1s, 5 at once, waiting up to 2s",
        "shared through redis 127.0.0.1:1, hears of requests afterwards (lease 7); without an answer in 5ms: open",
    ] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

fn paced(options: &str, servers: &[&Origin]) -> Proxy {
    let urls: Vec<_> = servers.iter().map(|server| format!("{{ url: \"{}\" }}", server.url())).collect();
    proxy()
        .config(&format!(
            r#"
http:
  routers: {{ all: {{ rule: "Host(`a.test`)", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ passHostHeader: false, servers: [{}], outboundLimit: {options} }} }} }}
"#,
            urls.join(", ")
        ))
        .start()
}

#[test]
fn what_goes_out_is_refused_when_no_turn_comes_in_time() {
    let origin = origin().start();
    let proxy = paced("{ average: 1, period: 1h, burst: 2, maxWait: 0 }", &[&origin]);
    let mut client = proxy.client("a.test");
    client.get("/").expect(200);
    client.get("/").expect(200);
    let refused = client.get("/").expect(503);
    let wait: u64 = refused.header("Retry-After").expect("Retry-After").parse().expect("seconds");
    assert!((3_500..=3_600).contains(&wait), "{wait}");
    assert_eq!(origin.hits(), 2);
    proxy.await_metric(
        "sluicegate_outbound_limit_decisions_total{service=\"pods\",decision=\"refused\"}",
        1.0,
    );
}

#[test]
fn what_is_too_early_waits_for_its_turn() {
    let origin = origin().start();
    let proxy = paced("{ average: 1, period: 2s, maxWait: 1m }", &[&origin]);
    assert_eq!(statuses(&proxy, "/", &[], 2), [200, 200]);
    proxy.await_metric(
        "sluicegate_outbound_limit_decisions_total{service=\"pods\",decision=\"delayed\"}",
        1.0,
    );
}

#[test]
fn each_server_may_have_a_pace_of_its_own() {
    let (one, two) = (origin().start(), origin().start());
    let proxy = paced("{ average: 1, period: 1h, scope: server, maxWait: 0, status: 429 }", &[&one, &two]);
    assert_eq!(statuses(&proxy, "/", &[], 3), [200, 200, 429]);
    assert_eq!((one.hits(), two.hits()), (1, 1));
}

#[test]
fn a_server_that_asks_for_a_pause_gets_one() {
    let origin = origin()
        .otherwise(|_, peer| peer.respond("429 Too Many Requests", &[("Retry-After", "1000")], "later"))
        .start();
    let proxy = paced("{ average: 1000, burst: 1000, maxPause: 1h }", &[&origin]);
    let mut client = proxy.client("a.test");
    let passed_on = client.get("/").expect(429);
    assert_eq!((passed_on.header("Retry-After"), passed_on.text().as_str()), (Some("1000"), "later"));
    let refused = client.get("/").expect(503);
    let wait: u64 = refused.header("Retry-After").expect("Retry-After").parse().expect("seconds");
    assert!((900..=1_001).contains(&wait), "{wait}");
    assert_eq!(origin.hits(), 1);
    proxy.await_metric("sluicegate_outbound_limit_pauses_total{service=\"pods\"}", 1.0);
}

#[test]
fn a_time_beyond_every_number_is_the_longest_pause() {
    // It could not be read, and so it was a second.
    let origin = origin()
        .otherwise(|_, peer| {
            let field = ("Retry-After", "99999999999999999999");
            peer.respond("429 Too Many Requests", &[field], "never");
        })
        .start();
    let proxy = paced("{ average: 1000, burst: 1000, maxPause: 1h }", &[&origin]);
    let mut client = proxy.client("a.test");
    client.get("/").expect(429);
    let wait: u64 = client.get("/").expect(503).header("Retry-After").expect("it").parse().expect("seconds");
    assert!((3_500..=3_601).contains(&wait), "{wait}");
}

#[test]
fn pods_share_a_partners_quota_through_the_proxy() {
    let partner = origin().start();
    let proxy = proxy()
        .origin("partner", &partner)
        .config(
            r#"
http:
  routers:
    partner: { rule: "Host(`partner.egress.local`)", service: partner, middlewares: [per-team] }
  middlewares:
    per-team: { rateLimit: { average: 1, period: 1h, burst: 3, key: [{ requestHeaderName: X-Team }] } }
  services:
    partner:
      loadBalancer:
        servers: [{ url: "{partner}" }]
        passHostHeader: false
        outboundLimit: { average: 1, period: 1h, burst: 4, maxWait: 0 }
"#,
        )
        .start();
    let ask = |team: &str| {
        let mut client = proxy.client("partner.egress.local");
        (0..4).map(|_| client.get_with("/v1", &[("X-Team", team)]).status).collect::<Vec<_>>()
    };
    assert_eq!(ask("search"), [200, 200, 200, 429], "no team takes it all");
    assert_eq!(ask("billing"), [200, 503, 503, 429], "and all together keep to the partner's quota");
    assert_eq!(partner.hits(), 4);
    let address = partner.address().to_string();
    assert_eq!(partner.last().head.get("Host"), Some(address.as_str()));
}
