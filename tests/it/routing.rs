//! Which router gets a request: rules, precedence, entry points, and the answer when none does.

use crate::harness::{Client, Proxy, origin, proxy};

/// One origin, and a router for each rule that names itself in `X-Router`.
fn routers(rules: &[(&str, &str)]) -> (crate::harness::Origin, Proxy) {
    let origin = origin()
        .otherwise(|request, peer| {
            let router = request.head.get("X-Router").unwrap_or("none").to_owned();
            peer.respond("200 OK", &[], router);
        })
        .start();
    let mut text = "http:\n  routers:\n".to_owned();
    for (name, keys) in rules {
        text.push_str(&format!("    {name}: {{ {keys}, service: pods, middlewares: [m-{name}] }}\n"));
    }
    text.push_str("  middlewares:\n");
    for (name, _) in rules {
        text.push_str(&format!(
            "    m-{name}: {{ headers: {{ customRequestHeaders: {{ X-Router: {name} }} }} }}\n"
        ));
    }
    text.push_str("  services: { pods: { loadBalancer: { servers: [{ url: \"{origin}\" }] } } }\n");
    let proxy = proxy().origin("origin", &origin).config(&text).start();
    (origin, proxy)
}

/// The router that took a GET, or the status when none did.
fn taken(client: &mut Client, host: &str, target: &str) -> String {
    taken_with(client, host, target, "GET", "")
}

fn taken_with(client: &mut Client, host: &str, target: &str, method: &str, fields: &str) -> String {
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n"));
    let answer = client.response();
    if answer.status == 200 { answer.text() } else { answer.status.to_string() }
}

#[test]
fn without_a_router_the_answer_is_traefiks_404_to_the_byte() {
    let (origin, proxy) = routers(&[("a", r#"rule: "Host(`a.test`)""#)]);

    let answer = proxy.get("b.test", "/").expect(404);

    assert_eq!(answer.text(), "404 page not found\n");
    assert_eq!(answer.header("Content-Type"), Some("text/plain; charset=utf-8"));
    assert_eq!(answer.header("X-Content-Type-Options"), Some("nosniff"));
    assert_eq!(answer.header("Content-Length"), Some("19"));
    assert_eq!(origin.hits(), 0);
}

#[test]
fn a_404_keeps_the_connection() {
    let (_origin, proxy) = routers(&[("a", r#"rule: "Host(`a.test`)""#)]);
    let mut client = proxy.client("b.test");

    client.get("/").expect(404);
    client.post("/", "with a body").expect(404);

    assert_eq!(taken(&mut client, "a.test", "/"), "a");
}

#[test]
fn hosts_are_compared_without_case_port_and_trailing_dot() {
    let (_origin, proxy) =
        routers(&[("a", r#"rule: "Host(`A.test`)""#), ("dot", r#"rule: "Host(`dot.test.`)""#)]);
    let mut client = proxy.client("");

    for host in ["a.test", "A.TEST", "a.test:8080", "a.test.", "a.test.:80", "a.test:"] {
        assert_eq!(taken(&mut client, host, "/"), "a", "{host}");
    }
    assert_eq!(taken(&mut client, "dot.test", "/"), "dot");
    for host in ["b.a.test", "xa.test", "a.tes", "a.test.x"] {
        assert_eq!(taken(&mut client, host, "/"), "404", "{host}");
    }
}

#[test]
fn a_wildcard_host_is_exactly_one_label() {
    let (_origin, proxy) =
        routers(&[("any", r#"rule: "Host(`*.test`)""#), ("exact", r#"rule: "Host(`exact.test`)""#)]);
    let mut client = proxy.client("");

    assert_eq!(taken(&mut client, "a.test", "/"), "any");
    assert_eq!(taken(&mut client, "exact.test", "/"), "exact", "the longer rule");
    assert_eq!(taken(&mut client, "b.a.test", "/"), "404");
    assert_eq!(taken(&mut client, "test", "/"), "404");
}

#[test]
fn every_matcher_works_end_to_end() {
    let (_origin, proxy) = routers(&[
        ("path", r#"rule: "Host(`h`) && Path(`/path`)""#),
        ("prefix", r#"rule: "Host(`h`) && PathPrefix(`/pre`)""#),
        ("pathre", r#"rule: "Host(`h`) && PathRegexp(`^/re/[0-9]+$`)""#),
        ("hostre", r#"rule: "HostRegexp(`^[a-z]+\\.re\\.test$`)""#),
        ("header", r#"rule: "Host(`h`) && Header(`X-A`, `one`)""#),
        ("headerre", r#"rule: "Host(`h`) && HeaderRegexp(`X-B`, `^t..$`)""#),
        ("method", r#"rule: "Host(`h`) && Method(`put`)""#),
        ("query", r#"rule: "Host(`h`) && Query(`q`, `v`)""#),
        ("queryre", r#"rule: "Host(`h`) && QueryRegexp(`r`, `^[0-9]+$`)""#),
        ("ip", r#"rule: "Host(`ip`) && ClientIP(`127.0.0.0/8`)""#),
        ("noip", r#"rule: "Host(`noip`) && ClientIP(`10.0.0.0/8`)""#),
        ("not", r#"rule: "Host(`not`) && !Path(`/x`) && (Method(`GET`) || Method(`HEAD`))""#),
    ]);
    let mut client = proxy.client("");

    for (host, target, method, fields, router) in [
        ("h", "/path", "GET", "", "path"),
        ("h", "/path/", "GET", "", "404"),
        ("h", "/path?x", "GET", "", "path"),
        ("h", "/%70ath", "GET", "", "path"),
        ("h", "/pre", "GET", "", "prefix"),
        ("h", "/prefix/x", "GET", "", "prefix"),
        ("h", "/re/42", "GET", "", "pathre"),
        ("h", "/re/x", "GET", "", "404"),
        ("A.Re.Test", "/", "GET", "", "hostre"),
        ("h", "/", "GET", "X-A: one\r\n", "header"),
        ("h", "/", "GET", "x-a: zero\r\nX-A: one\r\n", "header"),
        ("h", "/", "GET", "X-A: ONE\r\n", "404"),
        ("h", "/", "GET", "X-B: two\r\n", "headerre"),
        ("h", "/", "PUT", "", "method"),
        ("h", "/?q=v", "GET", "", "query"),
        ("h", "/?q=w&q=v", "GET", "", "query"),
        ("h", "/?q=w", "GET", "", "404"),
        ("h", "/?r=123", "GET", "", "queryre"),
        ("ip", "/", "GET", "X-Forwarded-For: 10.0.0.1\r\n", "ip"),
        ("noip", "/", "GET", "X-Forwarded-For: 10.0.0.1\r\n", "404"),
        ("not", "/", "GET", "", "not"),
        ("not", "/x", "GET", "", "404"),
        ("not", "/", "POST", "", "404"),
    ] {
        assert_eq!(
            taken_with(&mut client, host, target, method, fields),
            router,
            "{method} {host} {target} {fields:?}"
        );
    }
}

#[test]
fn rules_see_the_cleaned_path_and_keep_reserved_escapes() {
    let (_origin, proxy) = routers(&[
        ("admin", r#"rule: "PathPrefix(`/admin`)""#),
        ("ab", r#"rule: "Path(`/a/b`)""#),
        ("escaped", r#"rule: "Path(`/a%2Fb`)""#),
    ]);
    let mut client = proxy.client("a.test");

    for target in ["/admin", "//admin", "/./admin", "/x/../admin", "/x/%2e%2e/admin", "/%61dmin"] {
        assert_eq!(taken(&mut client, "a.test", target), "admin", "{target}");
    }
    assert_eq!(taken(&mut client, "a.test", "/a/b"), "ab");
    assert_eq!(taken(&mut client, "a.test", "/a%2fb"), "escaped");
    assert_eq!(taken(&mut client, "a.test", "/a%2Fb"), "escaped");
}

#[test]
fn the_longer_rule_wins_and_a_priority_wins_over_it() {
    let (_origin, proxy) = routers(&[
        ("short", r#"rule: "PathPrefix(`/a`)""#),
        ("long", r#"rule: "PathPrefix(`/a/b`)""#),
        ("high", r#"rule: "PathPrefix(`/a/b/c`)", priority: 1000"#),
        ("low", r#"rule: "PathPrefix(`/a/b/c/d/e/f/g`)", priority: 1"#),
        ("negative", r#"rule: "PathPrefix(`/`)", priority: -5"#),
    ]);
    let mut client = proxy.client("a.test");

    for (target, router) in [
        ("/a", "short"),
        ("/a/b", "long"),
        ("/a/b/c", "high"),
        ("/a/b/c/d/e/f/g", "high"),
        ("/z", "negative"),
    ] {
        assert_eq!(taken(&mut client, "a.test", target), router, "{target}");
    }
}

#[test]
fn equal_priorities_are_resolved_the_same_way_on_every_start_and_reload() {
    let rules = |order: &[&str]| {
        let routers: String = order
            .iter()
            .map(|name| {
                format!(
                    "    {name}: {{ rule: \"Host(`{name}`) || Path(`/`)\", service: {name}, priority: 7 }}\n"
                )
            })
            .collect();
        let services: String = order
            .iter()
            .map(|name| {
                format!("    {name}: {{ loadBalancer: {{ servers: [{{ url: \"{{{name}}}\" }}] }} }}\n")
            })
            .collect();
        format!("http:\n  routers:\n{routers}  services:\n{services}")
    };
    let (a, b, c) =
        (origin().always("a").start(), origin().always("b").start(), origin().always("c").start());
    let mut winners = Vec::new();
    for order in [["a", "b", "c"], ["c", "b", "a"], ["b", "c", "a"]] {
        let proxy = proxy().origin("a", &a).origin("b", &b).origin("c", &c).config(&rules(&order)).start();
        winners.push(proxy.get("x", "/").expect(200).text());
        proxy.reload(&rules(&["b", "a", "c"]));
        winners.push(proxy.get("x", "/").expect(200).text());
    }

    winners.dedup();
    assert_eq!(winners.len(), 1, "{winners:?}");
}

const TWO_ENTRY_POINTS: &str = r#"
entryPoints:
  web: { address: "127.0.0.1:0" }
  other: { address: "127.0.0.2:0"{default} }
http:
  routers:
    web: { rule: "Path(`/web`)", service: pods, entryPoints: [web] }
    other: { rule: "Path(`/other`)", service: pods, entryPoints: [other] }
    both: { rule: "Path(`/both`)", service: pods, entryPoints: [web, other] }
    unsaid: { rule: "Path(`/unsaid`)", service: pods }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#;

fn statuses(proxy: &Proxy, entry_point: &str) -> Vec<u16> {
    let mut client = Client::connect(proxy.address(entry_point), "a.test");
    ["/web", "/other", "/both", "/unsaid"].iter().map(|target| client.get(target).status).collect()
}

#[test]
fn a_router_serves_its_entry_points_and_all_of_them_by_default() {
    let origin = origin().start();
    let proxy = proxy().origin("origin", &origin).name("default", "").config(TWO_ENTRY_POINTS).start();

    assert_eq!(statuses(&proxy, "web"), [200, 404, 200, 200]);
    assert_eq!(statuses(&proxy, "other"), [404, 200, 200, 200]);
}

#[test]
fn as_default_takes_the_routers_that_name_no_entry_point() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .name("default", ", asDefault: true")
        .config(TWO_ENTRY_POINTS)
        .start();

    assert_eq!(statuses(&proxy, "web"), [200, 404, 200, 404]);
    assert_eq!(statuses(&proxy, "other"), [404, 200, 200, 200]);
}

#[test]
fn middlewares_of_an_entry_point_run_before_those_of_the_router() {
    let origin =
        origin().otherwise(|request, peer| peer.respond("200 OK", &[], request.target.clone())).start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
entryPoints: { web: { address: "127.0.0.1:0", http: { middlewares: [outer] } } }
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods, middlewares: [inner] } }
  middlewares:
    outer: { addPrefix: { prefix: /outer } }
    inner: { addPrefix: { prefix: /inner } }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    assert_eq!(proxy.get("a.test", "/x").expect(200).text(), "/inner/outer/x");
}

#[test]
fn a_refused_escape_of_the_entry_point_is_an_empty_400() {
    let origin = origin().start();
    let proxy = proxy()
        .all_to(&origin)
        .web("http: { encodedCharacters: { allowEncodedSlash: false, allowEncodedHash: false } }")
        .start();
    let mut client = proxy.client("a.test");

    for target in ["/a%2fb", "/a%2Fb", "/a%23b"] {
        let answer = client.get(target).expect(400);
        assert_eq!(answer.text(), "", "{target}");
        client = proxy.client("a.test");
    }
    client.get("/a%3Fb").expect(200);
}
