//! Middlewares end to end: what each does, in the order of the file, on refusals and errors too.

use std::time::Duration;

use crate::harness::{Gate, Origin, Proxy, Refused, eventually, origin, proxy};

/// One router on everything, through these links, to one origin.
fn through(links: &str, middlewares: &str, origin: &Origin) -> Proxy {
    proxy().origin("origin", origin).config(&document(links, middlewares)).start()
}

fn document(links: &str, middlewares: &str) -> String {
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods, middlewares: [{links}] }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
  middlewares:
{}
"#,
        middlewares
            .replace(",\n", ", ")
            .trim()
            .lines()
            .map(|line| format!("    {}\n", line.trim()))
            .collect::<String>()
    )
}

#[test]
fn headers_set_and_remove_fields_of_requests() {
    let origin = origin().start();
    let proxy = through(
        "h",
        r#"h: { headers: { customRequestHeaders: { X-Set: "1", X-Over: "new", X-Gone: "", Host: other.test } } }"#,
        &origin,
    );

    proxy
        .client("a.test")
        .get_with("/", &[("X-Over", "old"), ("X-Over", "older"), ("x-gone", "x")])
        .expect(200);

    let head = origin.last().head;
    assert_eq!(head.get("X-Set"), Some("1"));
    assert_eq!(head.get("X-Over"), Some("new"));
    assert!(!head.has("X-Gone"), "{:?}", head.raw);
    assert_eq!(head.get("Host"), Some("other.test"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("a.test"));
}

#[test]
fn headers_set_and_remove_fields_of_answers() {
    let origin = origin()
        .raw("/", "HTTP/1.1 200 OK\r\nServer: pod\r\nX-Over: a\r\nX-Over: b\r\nContent-Length: 0\r\n\r\n")
        .start();
    let proxy = through(
        "h",
        r#"h: { headers: { customResponseHeaders: { X-Set: "1", X-Over: "new", Server: "" } } }"#,
        &origin,
    );

    let answer = proxy.get("a.test", "/").expect(200);

    assert_eq!(answer.header("X-Set"), Some("1"));
    assert_eq!(answer.header("X-Over"), Some("new"));
    assert!(!answer.head.has("Server"), "{:?}", answer.head.raw);
}

#[test]
fn the_first_of_two_headers_links_has_the_last_word_on_answers() {
    let origin = origin().start();
    let proxy = through(
        "one, two",
        r#"one: { headers: { customResponseHeaders: { X-Who: one }, customRequestHeaders: { X-Who: one } } }
           two: { headers: { customResponseHeaders: { X-Who: two }, customRequestHeaders: { X-Who: two } } }"#,
        &origin,
    );

    let answer = proxy.get("a.test", "/").expect(200);

    assert_eq!(answer.header("X-Who"), Some("one"));
    assert_eq!(origin.last().head.get("X-Who"), Some("two"));
}

#[test]
fn headers_are_on_answers_that_the_proxy_itself_makes() {
    let dead = Refused::new();
    let proxy = proxy()
        .name("origin", dead.url())
        .config(&document(
            "h, deny",
            r#"h: { headers: { customResponseHeaders: { X-Set: "1" }, frameDeny: true } }
               deny: { ipAllowList: { sourceRange: ["127.0.0.0/8"] } }"#,
        ))
        .start();
    let answer = proxy.get("a.test", "/").expect(502);
    assert_eq!(answer.header("X-Set"), Some("1"), "on a 502");
    assert_eq!(answer.header("X-Frame-Options"), Some("DENY"), "on a 502");

    proxy.reload(&document(
        "h, deny",
        r#"h: { headers: { customResponseHeaders: { X-Set: "1" } } }
           deny: { ipAllowList: { sourceRange: ["10.0.0.0/8"] } }"#,
    ));
    assert_eq!(proxy.get("a.test", "/").expect(403).header("X-Set"), Some("1"), "on a refusal further in");
}

#[test]
fn headers_further_in_are_not_on_a_refusal_further_out() {
    let origin = origin().start();
    let proxy = through(
        "deny, h",
        r#"h: { headers: { customResponseHeaders: { X-Set: "1" } } }
           deny: { ipAllowList: { sourceRange: ["10.0.0.0/8"] } }"#,
        &origin,
    );

    assert!(!proxy.get("a.test", "/").expect(403).head.has("X-Set"));
}

#[test]
fn security_fields_are_added() {
    let origin = origin().start();
    let proxy = through(
        "h",
        r#"h: { headers: { frameDeny: true, contentTypeNosniff: true, referrerPolicy: same-origin,
                contentSecurityPolicy: "default-src 'self'", permissionsPolicy: "camera=()", browserXssFilter: true } }"#,
        &origin,
    );

    let answer = proxy.get("a.test", "/").expect(200);

    assert_eq!(answer.header("X-Frame-Options"), Some("DENY"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(answer.header("Referrer-Policy"), Some("same-origin"));
    assert_eq!(answer.header("Content-Security-Policy"), Some("default-src 'self'"));
    assert_eq!(answer.header("Permissions-Policy"), Some("camera=()"));
    assert_eq!(answer.header("X-XSS-Protection"), Some("1; mode=block"));
}

#[test]
fn a_cors_preflight_is_answered_by_the_proxy() {
    let origin = origin().start();
    let proxy = through(
        "cors",
        r#"cors: { headers: { accessControlAllowOriginList: ["https://app.test"], accessControlAllowMethods: [GET, PUT],
                   accessControlAllowHeaders: [X-A], accessControlMaxAge: 60, addVaryHeader: true } }"#,
        &origin,
    );
    let mut client = proxy.client("a.test");

    let preflight = [("Origin", "https://app.test"), ("Access-Control-Request-Method", "PUT")];
    let answer = client.request("OPTIONS", "/x", &preflight, b"").expect(200);
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://app.test"));
    assert_eq!(answer.header("Access-Control-Allow-Methods"), Some("GET,PUT"));
    assert_eq!(answer.header("Access-Control-Allow-Headers"), Some("X-A"));
    assert_eq!(answer.header("Access-Control-Max-Age"), Some("60"));
    assert_eq!(answer.header("Content-Length"), Some("0"));
    assert_eq!(origin.hits(), 0);

    let stranger = [("Origin", "https://evil.test"), ("Access-Control-Request-Method", "PUT")];
    let answer = client.request("OPTIONS", "/x", &stranger, b"").expect(200);
    assert!(!answer.head.has("Access-Control-Allow-Origin"), "{:?}", answer.head.raw);

    let answer = client.get_with("/x", &[("Origin", "https://app.test")]).expect(200);
    assert_eq!(answer.header("Access-Control-Allow-Origin"), Some("https://app.test"));
    assert!(answer.head.lists("Vary", "Origin"), "{:?}", answer.head.raw);
    assert_eq!(origin.hits(), 1);
}

#[test]
fn prefixes_are_added_and_stripped_in_the_order_of_the_file() {
    let origin = origin().start();
    let middlewares = r#"strip: { stripPrefix: { prefixes: ["/api", "/v1"] } }
                         add: { addPrefix: { prefix: "/v2" } }"#;
    let proxy = through("strip, add", middlewares, &origin);
    let mut client = proxy.client("a.test");

    assert_eq!(client.get("/api/users?x=1").expect(200).text(), "GET /v2/users?x=1");
    assert_eq!(origin.last().head.get("X-Forwarded-Prefix"), Some("/api"));
    assert_eq!(client.get("/api").expect(200).text(), "GET /v2/");
    assert_eq!(client.get("/other").expect(200).text(), "GET /v2/other");
    assert!(!origin.last().head.has("X-Forwarded-Prefix"));

    proxy.reload(&document("add, strip", middlewares));
    assert_eq!(client.get("/users").expect(200).text(), "GET /v2/users");
    proxy.reload(&document("strip", middlewares));
    assert_eq!(client.get("/apix").expect(200).text(), "GET /x", "a plain string prefix, as in Traefik");
}

#[test]
fn a_strip_that_would_uncover_another_path_is_refused() {
    let origin = origin().start();
    let proxy = through("strip", r#"strip: { stripPrefix: { prefixes: ["/api"] } }"#, &origin);

    for target in ["/api../admin", "/api..%2fadmin"] {
        proxy.get("a.test", target).expect(400);
    }
    assert_eq!(origin.hits(), 0, "{:?}", origin.received());
}

const SLOW_LIMIT: &str = "limit: { rateLimit: { average: 1, period: 1m, burst: 3 } }";

#[test]
fn above_its_rate_a_client_gets_429_and_when_to_come_back() {
    let origin = origin().start();
    let proxy = through("limit", SLOW_LIMIT, &origin);
    let mut client = proxy.client("a.test");

    for _ in 0..3 {
        let answer = client.get("/").expect(200);
        assert!(!answer.head.has("Retry-After") && !answer.head.has("X-Retry-In"), "{:?}", answer.head.raw);
    }
    let answer = client.get("/").expect(429);

    assert_eq!(answer.text(), "Too Many Requests");
    let wait: u64 = answer.header("Retry-After").expect("Retry-After").parse().expect("whole seconds");
    assert!((55..=60).contains(&wait), "{wait} s");
    let exact = answer.header("X-Retry-In").expect("X-Retry-In");
    assert!(exact.ends_with('s') && exact.starts_with('5'), "{exact}");
    assert_eq!(origin.hits(), 3);
    // A refusal costs the client its request, not its connection.
    client.get("/").expect(429);
    proxy.await_metric("sluicegate_limiter_decisions_total{decision=\"refused\"}", 2.0);
}

#[test]
fn a_refused_request_with_a_body_leaves_the_connection_in_step() {
    let origin = origin().start();
    let proxy = through("limit", SLOW_LIMIT, &origin);
    let mut client = proxy.client("a.test");

    for status in [200, 200, 200, 429, 429] {
        client.post("/", "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n").expect(status);
    }
    assert!(origin.received().iter().all(|request| request.target == "/"), "{:?}", origin.received());
}

#[test]
fn each_source_has_a_bucket_of_its_own() {
    let origin = origin().start();
    let proxy = through(
        "limit",
        "limit: { rateLimit: { average: 1, period: 1m, burst: 1, sourceCriterion: { requestHeaderName: X-Key } } }",
        &origin,
    );
    let mut client = proxy.client("a.test");

    for key in ["one", "two", "three"] {
        client.get_with("/", &[("X-Key", key)]).expect(200);
        client.get_with("/", &[("X-Key", key)]).expect(429);
    }
}

#[test]
fn one_limit_on_two_routers_is_two_buckets() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
http:
  routers:
    a: { rule: "Host(`a.test`)", service: pods, middlewares: [limit] }
    b: { rule: "Host(`b.test`)", service: pods, middlewares: [limit] }
  middlewares: { limit: { rateLimit: { average: 1, period: 1m, burst: 1 } } }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    for host in ["a.test", "b.test"] {
        proxy.get(host, "/").expect(200);
        proxy.get(host, "/").expect(429);
    }
}

#[test]
fn an_average_of_zero_is_no_limit() {
    let origin = origin().start();
    let proxy = through("limit", "limit: { rateLimit: { average: 0, burst: 1 } }", &origin);
    let mut client = proxy.client("a.test");

    for _ in 0..50 {
        client.get("/").expect(200);
    }
}

#[test]
fn a_bucket_fills_again() {
    let origin = origin().start();
    let proxy = through("limit", "limit: { rateLimit: { average: 10, period: 4s, burst: 1 } }", &origin);
    let mut client = proxy.client("a.test");
    client.get("/").expect(200);

    eventually("the bucket has a token again", || client.get("/").status == 200);
}

#[test]
fn requests_in_flight_are_limited_and_their_end_makes_room() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/slow", move |_, peer| {
            hold.pass();
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let proxy = through("flight", "flight: { inFlightReq: { amount: 1 } }", &origin);
    let mut slow = proxy.client("a.test");
    let request = slow.head("GET", "/slow", &[]);
    slow.send(request);
    eventually("the slow request is in flight", || origin.hits() == 1);

    let answer = proxy.get("a.test", "/").expect(429);
    assert_eq!(answer.text(), "max connections reached: 1");
    proxy.get("b.test", "/").expect(200);

    gate.open();
    slow.response().expect(200);
    eventually("there is room again", || proxy.get("a.test", "/").status == 200);
}

#[test]
fn a_client_that_goes_away_makes_room_too() {
    let origin = origin().on("/slow", |_, peer| peer.hang()).start();
    let proxy = through("flight", "flight: { inFlightReq: { amount: 1 } }", &origin);
    let mut slow = proxy.client("a.test");
    let request = slow.head("GET", "/slow", &[]);
    slow.send(request);
    eventually("the slow request is in flight", || origin.hits() == 1);

    slow.reset();

    eventually("there is room again", || proxy.get("a.test", "/").status == 200);
}

#[test]
fn addresses_outside_the_list_are_refused() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .web("forwardedHeaders: { insecure: true }")
        .config(
            r#"
http:
  routers:
    in: { rule: "Host(`in`)", service: pods, middlewares: [in] }
    out: { rule: "Host(`out`)", service: pods, middlewares: [out] }
    teapot: { rule: "Host(`teapot`)", service: pods, middlewares: [teapot] }
    depth: { rule: "Host(`depth`)", service: pods, middlewares: [depth] }
  middlewares:
    in: { ipAllowList: { sourceRange: ["10.0.0.0/8", "127.0.0.1"] } }
    out: { ipAllowList: { sourceRange: ["10.0.0.0/8"] } }
    teapot: { ipAllowList: { sourceRange: ["10.0.0.0/8"], rejectStatusCode: 418 } }
    depth: { ipAllowList: { sourceRange: ["10.0.0.0/8"], ipStrategy: { depth: 1 } } }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    proxy.get("in", "/").expect(200);
    assert_eq!(proxy.get("out", "/").expect(403).text(), "Forbidden");
    proxy.get("teapot", "/").expect(418);
    // X-Forwarded-For counts only where a strategy asks for it.
    proxy.client("out").get_with("/", &[("X-Forwarded-For", "10.0.0.1")]).expect(403);
    proxy.client("depth").get_with("/", &[("X-Forwarded-For", "6.6.6.6, 10.0.0.1")]).expect(200);
    proxy.client("depth").get_with("/", &[("X-Forwarded-For", "10.0.0.1, 6.6.6.6")]).expect(403);
    proxy.get("depth", "/").expect(403);
}

#[test]
fn a_chain_is_its_links_in_order() {
    let origin = origin().start();
    let proxy = through(
        "outer",
        r#"outer: { chain: { middlewares: [a, inner] } }
           inner: { chain: { middlewares: [b, c] } }
           a: { addPrefix: { prefix: /a } }
           b: { addPrefix: { prefix: /b } }
           c: { addPrefix: { prefix: /c } }"#,
        &origin,
    );

    assert_eq!(proxy.get("a.test", "/x").expect(200).text(), "GET /c/b/a/x");
}

/// Answers 503 until the given attempt of each target.
fn recovering(good: usize) -> Origin {
    let seen = std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new());
    origin()
        .otherwise(move |request, peer| {
            let mut seen = seen.lock().expect("no script panics");
            let attempt = seen.entry(request.target.clone()).or_default();
            *attempt += 1;
            let (status, body) = if *attempt < good { ("503 Nope", "nope") } else { ("200 OK", "yes") };
            peer.respond(status, &[("X-Attempt", &attempt.to_string())], body);
        })
        .start()
}

const RETRY: &str = r#"retry: { retry: { attempts: 3, status: ["503"] } }"#;

#[test]
fn a_status_in_the_list_is_tried_again_until_it_is_good() {
    let origin = recovering(3);
    let proxy = through("retry", RETRY, &origin);

    let answer = proxy.get("a.test", "/x").expect(200);

    assert_eq!(answer.text(), "yes");
    assert_eq!(origin.hits(), 3);
    assert!(proxy.metric("sluicegate_service_retries_total") >= 2.0, "retries are visible");
}

#[test]
fn after_the_last_attempt_its_answer_is_passed_on_whole() {
    let origin = recovering(100);
    let proxy = through("retry", RETRY, &origin);

    let answer = proxy.get("a.test", "/x").expect(503);

    assert_eq!(answer.text(), "nope");
    assert_eq!(answer.header("X-Attempt"), Some("3"));
    assert_eq!(origin.hits(), 3);
}

#[test]
fn a_post_is_tried_again_for_its_status_only_when_the_operator_says_so() {
    let origin = recovering(2);
    let proxy = through("retry", RETRY, &origin);
    proxy.client("a.test").post("/no", "body").expect(503);
    proxy.client("a.test").request("PUT", "/put", &[], b"body").expect(200);

    proxy.reload(&document(
        "retry",
        r#"retry: { retry: { attempts: 3, status: ["500-599"], retryNonIdempotentMethod: true } }"#,
    ));
    proxy.client("a.test").post("/yes", "body").expect(200);

    let bodies: Vec<_> =
        origin.received().iter().map(|request| (request.target.clone(), request.text())).collect();
    let expected: Vec<_> =
        ["/no", "/put", "/put", "/yes", "/yes"].map(|target| (target.to_owned(), "body".to_owned())).into();
    assert_eq!(bodies, expected);
}

#[test]
fn a_body_above_the_limit_is_sent_once() {
    let origin = recovering(100);
    let proxy = through(
        "retry",
        r#"retry: { retry: { attempts: 3, status: ["503"], maxRequestBodyBytes: 10 } }"#,
        &origin,
    );

    proxy.client("a.test").request("PUT", "/large", &[], b"more than ten bytes").expect(503);
    assert_eq!(origin.hits(), 1);
    proxy.client("a.test").request("PUT", "/small", &[], b"ten bytes.").expect(503);
    assert_eq!(origin.hits(), 4);
}

#[test]
fn links_inside_a_retry_begin_anew_for_each_attempt() {
    let origin = origin().otherwise(|request, peer| peer.respond("503 Nope", &[], &request.target)).start();
    let proxy = through(
        "retry, strip, add, h",
        &format!(
            "{RETRY}\nadd: {{ addPrefix: {{ prefix: /p }} }}\nstrip: {{ stripPrefix: {{ prefixes: [/api] }} }}\n\
             h: {{ headers: {{ customResponseHeaders: {{ X-Once: \"1\" }} }} }}"
        ),
        &origin,
    );

    let answer = proxy.get("a.test", "/api/x").expect(503);

    let targets: Vec<_> = origin.received().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/p/x", "/p/x", "/p/x"]);
    assert_eq!(answer.head.all("X-Once"), ["1"]);
    assert_eq!(origin.last().head.all("X-Forwarded-Prefix"), ["/api"]);
    assert_eq!(origin.last().head.all("X-Forwarded-For"), ["127.0.0.1"]);
}

#[test]
fn a_retry_goes_to_another_endpoint() {
    let bad = origin().otherwise(|_, peer| peer.respond("503 Nope", &[], "bad")).start();
    let good = origin().always("good").start();
    let proxy = proxy()
        .origin("bad", &bad)
        .origin("good", &good)
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods, middlewares: [retry] } }
  services: { pods: { loadBalancer: { servers: [{ url: "{bad}" }, { url: "{good}" }] } } }
  middlewares: { retry: { retry: { attempts: 2, status: ["503"] } } }
"#,
        )
        .start();
    let mut client = proxy.client("a.test");

    for _ in 0..10 {
        assert_eq!(client.get("/").expect(200).text(), "good");
    }
    assert!(bad.hits() > 0, "the bad endpoint was never tried");
}

#[test]
fn intervals_lie_between_the_attempts() {
    let origin = origin().on("/x", |_, peer| peer.respond("503 Service Unavailable", &[], "")).start();
    let proxy = through(
        "retry",
        r#"retry: { retry: { attempts: 6, status: ["503"], initialInterval: 100ms } }"#,
        &origin,
    );

    let since = std::time::Instant::now();
    proxy.get("a.test", "/x").expect(503);

    // Each is drawn from 0 up to a bound that grows: five of them come to so little once in ten million times.
    assert!(since.elapsed() >= Duration::from_millis(20), "after {:?}", since.elapsed());
    assert_eq!(origin.hits(), 6);
}

#[test]
fn headers_of_an_entry_point_and_of_a_router_each_say_whether_the_request_was_secure() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
entryPoints: { web: { address: "127.0.0.1:0", http: { middlewares: [always] } } }
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods, middlewares: [secure] } }
  middlewares:
    always: { headers: { stsSeconds: 60, forceSTSHeader: true } }
    secure: { headers: { stsSeconds: 5 } }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    // The router's own link had the last word for both.
    assert_eq!(proxy.get("a.test", "/").header("Strict-Transport-Security"), Some("max-age=60"));
}
