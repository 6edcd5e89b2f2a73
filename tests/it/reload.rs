//! Reloads: every way in which a file changes, what a refused document leaves alone, what an accepted one keeps.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::harness::client::await_refusal;
use crate::harness::{Client, Gate, Load, Origin, Proxy, eventually, origin, proxy, scratch, throughout};

/// A document that sends everything to the server named `{name}`.
fn to(name: &str) -> String {
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{{name}}}" }}] }} }} }}
"#
    )
}

fn two() -> (Origin, Origin) {
    (origin().always("a").start(), origin().always("b").start())
}

fn on_a(a: &Origin, b: &Origin) -> Proxy {
    proxy().origin("a", a).origin("b", b).config(&to("a")).start()
}

#[track_caller]
fn await_answer(proxy: &Proxy, text: &str) {
    eventually(&format!("{text} answers"), || proxy.get("x", "/").text() == text);
}

#[test]
fn a_file_written_in_place_is_picked_up() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);

    proxy.write_in_place(&to("b"));

    await_answer(&proxy, "b");
}

#[test]
fn a_renamed_file_is_picked_up() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);

    for name in ["b", "a", "b"] {
        proxy.write_config(&to(name));
        await_answer(&proxy, name);
    }
}

#[test]
fn a_change_is_in_force_within_a_second_or_so_with_the_defaults() {
    let (a, b) = two();
    let proxy =
        proxy().origin("a", &a).origin("b", &b).config(&format!("providers: {{}}\n{}", to("a"))).start();

    let since = Instant::now();
    proxy.write_config(&format!("providers: {{}}\n{}", to("b")));
    await_answer(&proxy, "b");

    assert!(since.elapsed() < Duration::from_secs(3), "after {:?}", since.elapsed());
}

#[test]
fn a_file_that_is_truncated_and_then_written_never_empties_the_routes() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let mut client = proxy.client("x");
    let text = proxy.complete(&to("b"));

    for _ in 0..3 {
        let mut file = fs::File::create(proxy.path()).expect("a writable file");
        throughout("routes stand while the file is empty", Duration::from_millis(150), || {
            client.get("/").status == 200
        });
        for part in text.as_bytes().chunks(text.len() / 3) {
            file.write_all(part).expect("a writable file");
            throughout("routes stand while the file is half written", Duration::from_millis(60), || {
                client.get("/").status == 200
            });
        }
    }

    await_answer(&proxy, "b");
}

#[test]
fn a_file_that_goes_away_changes_nothing_until_it_is_back() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);

    fs::remove_file(proxy.path()).expect("a file");
    throughout("routes stand without the file", Duration::from_millis(500), || {
        proxy.get("x", "/").text() == "a"
    });
    proxy.write_in_place(&to("b"));

    await_answer(&proxy, "b");
}

/// Lays a volume out as Kubernetes does: `file -> ..data/file`, `..data -> ..1`, and swaps `..data` by rename.
fn mount(volume: &Path, generation: u32, file: &str, text: &str) {
    let data = volume.join(format!("..{generation}"));
    fs::create_dir(&data).expect("a new directory");
    fs::write(data.join(file), text).expect("a writable directory");
    let next = volume.join("..data_tmp");
    symlink(format!("..{generation}"), &next).expect("a new link");
    fs::rename(&next, volume.join("..data")).expect("a rename within one directory");
    if generation > 1 {
        fs::remove_dir_all(volume.join(format!("..{}", generation - 1))).expect("the old directory");
    } else {
        symlink(format!("..data/{file}"), volume.join(file)).expect("a new link");
    }
}

#[test]
fn a_swapped_config_map_is_picked_up_again_and_again() {
    let (a, b) = two();
    let volume = scratch();
    let base = proxy().origin("a", &a).origin("b", &b);
    // Any process knows how to complete a document; this one's template is the same.
    let text = |name: &str| {
        let urls = [("{a}", a.url()), ("{b}", b.url())];
        let mut text = format!(
            "entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }} }}\nadmin: {{ address: \"127.0.0.1:0\" }}\n\
             providers: {{ providersThrottleDuration: 10ms }}\nlog: {{ format: json, level: INFO }}\n{}",
            to(name)
        );
        for (placeholder, url) in urls {
            text = text.replace(placeholder, &url);
        }
        text
    };
    mount(volume.path(), 1, "sluicegate.yaml", &text("a"));
    let proxy = base.file(&volume.path().join("sluicegate.yaml")).start();
    assert_eq!(proxy.get("x", "/").text(), "a");

    for (generation, name) in [(2, "b"), (3, "a"), (4, "b")] {
        mount(volume.path(), generation, "sluicegate.yaml", &text(name));
        await_answer(&proxy, name);
    }
}

#[test]
fn sighup_reloads_though_nothing_seems_to_have_changed() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let read = || {
        proxy.metric("sluicegate_config_reloads_total{outcome=\"accepted\"}")
            + proxy.metric("sluicegate_config_reloads_total{outcome=\"refused\"}")
    };
    let before = read();

    proxy.signal("HUP");

    eventually("the document was read again", || read() > before);
    assert_eq!(proxy.get("x", "/").expect(200).text(), "a");
}

/// Documents that are refused, each for a reason of its own.
const REFUSED: &[(&str, &str)] = &[
    ("no YAML", "http: { routers: { broken: { rule: 'Host("),
    ("an unknown key", "http: { routres: {} }"),
    ("a duplicate key", "http: { services: {} }\nhttp: { services: {} }"),
    (
        "a bad rule",
        "http: { routers: { r: { rule: 'Hots(`a`)', service: s } }, services: { s: { loadBalancer: { servers: [] } } } }",
    ),
    ("an unknown service", "http: { routers: { r: { rule: 'Host(`a`)', service: nobody } } }"),
    (
        "an unknown middleware",
        "http: { routers: { r: { rule: 'Host(`a`)', service: s, middlewares: [nobody] } }, services: { s: { loadBalancer: { servers: [] } } } }",
    ),
    (
        "an unknown entry point",
        "http: { routers: { r: { rule: 'Host(`a`)', service: s, entryPoints: [nobody] } }, services: { s: { loadBalancer: { servers: [] } } } }",
    ),
    ("a bad duration", "http: { middlewares: { m: { rateLimit: { average: 1, period: soon } } } }"),
    ("a wrong type", "http: { middlewares: { m: { rateLimit: { average: many } } } }"),
    (
        "two kinds in one middleware",
        "http: { middlewares: { m: { addPrefix: { prefix: /a }, stripPrefix: { prefixes: [/a] } } } }",
    ),
    (
        "a chain that goes round",
        "http: { middlewares: { m: { chain: { middlewares: [n] } }, n: { chain: { middlewares: [m] } } } }",
    ),
    (
        "a service that goes round",
        "http: { services: { a: { weighted: { services: [{ name: b }] } }, b: { weighted: { services: [{ name: a }] } } } }",
    ),
    ("a bad address", "entryPoints: { web: { address: 'nonsense' } }"),
    ("a list instead of a map", "- http"),
    ("a scalar", "http"),
    (
        "an alias bomb",
        "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b]\nd: &d [*c, *c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d, *d, *d]\nf: &f [*e, *e, *e, *e, *e, *e, *e, *e, *e]\ng: [*f, *f, *f, *f, *f, *f, *f, *f, *f]",
    ),
    (
        "deep nesting",
        "a: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    ),
];

#[test]
fn a_refused_document_changes_nothing() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let mut client = proxy.client("x");
    assert_eq!(client.get("/").text(), "a");
    let generation = proxy.generation();

    for (name, text) in REFUSED {
        proxy.reload_refused(text);

        assert_eq!(client.get("/").expect(200).text(), "a", "on the open connection, after {name}");
        assert_eq!(proxy.get("x", "/").expect(200).text(), "a", "on a new connection, after {name}");
        assert_eq!(proxy.admin_get("/readyz").status, 200, "after {name}");
        assert_eq!(proxy.generation(), generation, "after {name}");
    }

    proxy.reload(&to("b"));
    assert_eq!(
        client.get("/").expect(200).text(),
        "b",
        "on the open connection, once the document is good again"
    );
}

#[test]
fn a_file_of_bytes_or_of_nothing_is_refused() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    for bytes in [&b"\xff\xff\x00\x01"[..], &b"http:\0"[..]] {
        let before = proxy.refusals();
        fs::write(proxy.path(), bytes).expect("a writable file");
        proxy.await_refusals(before + 1);
        assert_eq!(proxy.get("x", "/").expect(200).text(), "a");
    }

    fs::write(proxy.path(), b"").expect("a writable file");
    throughout("routes stand on an empty file", Duration::from_millis(700), || {
        proxy.get("x", "/").text() == "a"
    });
}

#[test]
fn why_a_document_was_refused_is_in_the_log() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);

    proxy.reload_refused("http: { routres: {} }");

    let line = proxy.await_log("configuration refused");
    let shown = format!("{line:?}");
    assert!(shown.contains("routres"), "{shown}");
}

#[test]
fn an_entry_point_that_cannot_be_bound_refuses_the_document() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let taken = origin().start();
    let address = taken.address();

    proxy.reload_refused(&format!(
        "entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }}, other: {{ address: \"{address}\" }} }}\n{}",
        to("b")
    ));

    assert_eq!(proxy.get("x", "/").expect(200).text(), "a");
}

#[test]
fn an_added_entry_point_listens_and_a_removed_one_does_not() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let mut kept = proxy.client("x");
    kept.get("/").expect(200);

    let web = "web: { address: \"127.0.0.1:0\" }";
    proxy.reload(&format!("entryPoints: {{ {web}, more: {{ address: \"127.0.0.2:0\" }} }}\n{}", to("a")));
    let more = proxy.address("more");
    let mut other = Client::connect(more, "x");
    assert_eq!(other.get("/").expect(200).text(), "a");

    proxy.reload(&format!("entryPoints: {{ {web} }}\n{}", to("a")));
    await_refusal(more);
    assert_eq!(kept.get("/").expect(200).text(), "a", "on the connection of the entry point that stayed");
}

#[test]
fn a_request_in_flight_on_a_removed_entry_point_ends_in_peace() {
    let gate = Gate::new();
    let hold = gate.clone();
    let slow = origin()
        .otherwise(move |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            hold.pass();
            peer.write("half");
        })
        .start();
    let both = "entryPoints: { web: { address: \"127.0.0.1:0\" }, old: { address: \"127.0.0.2:0\" } }\n";
    let one = "entryPoints: { web: { address: \"127.0.0.1:0\" } }\n";
    let proxy = proxy().origin("slow", &slow).config(&(both.to_owned() + &to("slow"))).start();
    let old = proxy.address("old");
    let mut client = Client::connect(old, "x");
    let mut idle = Client::connect(old, "x");
    let request = client.head("GET", "/", &[]);
    client.send(request);
    client.read_head();

    proxy.reload(&(one.to_owned() + &to("slow")));
    await_refusal(old);
    idle.assert_closed();
    gate.open();

    assert_eq!(client.read_exactly(8), b"halfhalf");
    client.assert_closed();
}

#[test]
fn a_readdressed_entry_point_moves() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let before = proxy.address("web");

    proxy.reload(&format!("entryPoints: {{ web: {{ address: \"127.0.0.3:0\" }} }}\n{}", to("b")));

    eventually("the new address is announced", || proxy.address("web") != before);
    assert_eq!(proxy.get("x", "/").expect(200).text(), "b");
    await_refusal(before);
}

#[test]
fn an_address_that_overlaps_the_old_one_takes_over_without_a_gap() {
    let (a, b) = two();
    let port = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("a bound socket").port()
    };
    let narrow = format!("entryPoints: {{ web: {{ address: \"127.0.0.1:{port}\" }} }}\n");
    let wide = format!("entryPoints: {{ web: {{ address: \"0.0.0.0:{port}\" }} }}\n");
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&(narrow.clone() + &to("a"))).start();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));

    for document in [wide + &to("b"), narrow + &to("a")] {
        proxy.reload(&document);
        for _ in 0..20 {
            Client::connect(address, "x").get("/").expect(200);
        }
    }
}

/// Its routes used to be forgotten with the next document, and its idle connections were closed unanswered.
#[test]
fn idle_connections_of_a_removed_entry_point_are_served_after_further_reloads() {
    let (a, b) = two();
    let with_extra = |name: &str| {
        let entries = "web: { address: \"127.0.0.1:0\" }, extra: { address: \"127.0.0.5:0\" }";
        format!("entryPoints: {{ {entries} }}\n{}", to(name))
    };
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&with_extra("a")).start();
    let mut idle = Client::connect(proxy.address("extra"), "x");
    idle.get("/").expect(200);

    for name in ["a", "b", "a"] {
        proxy.reload(&to(name));
    }

    let answer = idle.get("/").expect(200);
    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    idle.assert_closed();
}

#[test]
fn an_entry_point_that_moves_to_and_fro_under_load_fails_no_request() {
    let (a, b) = two();
    let port = {
        let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a free port");
        listener.local_addr().expect("a bound socket").port()
    };
    let on = |ip: &str, name: &str| {
        format!("entryPoints: {{ web: {{ address: \"{ip}:{port}\" }} }}\n{}", to(name))
    };
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&on("127.0.0.1", "a")).start();
    let load = Load::start(std::net::SocketAddr::from(([127, 0, 0, 1], port)), "x", "/", 3);
    load.await_more(50);

    for round in 0..12 {
        let ip = if round % 2 == 0 { "0.0.0.0" } else { "127.0.0.1" };
        proxy.reload(&on(ip, if round % 3 == 0 { "b" } else { "a" }));
        load.await_more(5);
    }

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
}

#[test]
fn a_rolling_update_fails_no_request() {
    let mut pods: Vec<_> = (0..3).map(|_| origin().start()).collect();
    let document = |pods: &[Origin]| {
        let servers: Vec<_> = pods.iter().map(|pod| format!("{{ url: \"{}\" }}", pod.url())).collect();
        format!(
            "http:\n  routers: {{ all: {{ rule: \"PathPrefix(`/`)\", service: pods }} }}\n  services: {{ \
             pods: {{ loadBalancer: {{ servers: [{}] }} }} }}\n",
            servers.join(", ")
        )
    };
    let proxy = proxy().config(&document(&pods)).start();
    let load = Load::start(proxy.address("web"), "x", "/", 4);
    load.await_more(50);

    for round in 0..12 {
        let mut old = std::mem::replace(&mut pods[round % 3], origin().start());
        // Every other pod is gone before the document knows.
        if round % 2 == 0 {
            old.kill();
            load.await_more(20);
            proxy.reload(&document(&pods));
        } else {
            proxy.reload(&document(&pods));
            old.kill();
        }
        load.await_more(20);
    }

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
    assert!(pods.iter().all(|pod| pod.hits() > 0));
}

#[test]
fn settings_of_an_entry_point_change_on_its_open_connections() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let mut client = proxy.client("x");
    client.get("/").expect(200);

    proxy.reload(&format!(
        "entryPoints: {{ web: {{ address: \"127.0.0.1:0\", forwardedHeaders: {{ insecure: true }} }} }}\n{}",
        to("a")
    ));
    client.get_with("/", &[("X-Forwarded-For", "1.2.3.4")]).expect(200);

    assert_eq!(a.last().head.get("X-Forwarded-For"), Some("1.2.3.4, 127.0.0.1"));
}

#[test]
fn the_admin_listener_moves_with_the_document() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let before = proxy.admin();

    proxy.write_config(&format!("admin: {{ address: \"127.0.0.4:0\" }}\n{}", to("b")));

    await_answer(&proxy, "b");
    eventually("the admin listener has moved", || proxy.admin() != before);
    assert_eq!(proxy.admin_get("/readyz").status, 200);
}

#[test]
fn the_log_level_changes_with_the_document() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    proxy.reload(&format!("log: {{ format: json, level: ERROR }}\n{}", to("a")));
    let before = proxy.log_lines().len();

    proxy.reload(&format!("log: {{ format: json, level: ERROR }}\n{}", to("b")));

    let after: Vec<_> = proxy.log_lines().into_iter().skip(before).collect();
    let informative = |line: &&crate::harness::proxy::LogLine| {
        line.text("level").is_some_and(|level| level.eq_ignore_ascii_case("info"))
    };
    assert!(after.iter().find(informative).is_none(), "{after:?}");
}

const LIMITED: &str = r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods, middlewares: [limit] } }
  middlewares: { limit: { rateLimit: { average: 1, period: 1h, burst: 3 } } }
  services: { pods: { loadBalancer: { servers: [{ url: "{a}" }] } } }
"#;

#[test]
fn buckets_of_a_limiter_survive_an_unrelated_change() {
    let (a, b) = two();
    let proxy = proxy().origin("a", &a).origin("b", &b).config(LIMITED).start();
    for _ in 0..3 {
        proxy.get("x", "/").expect(200);
    }
    proxy.get("x", "/").expect(429);

    proxy.reload(&LIMITED.replace("{a}", "{b}"));

    proxy.get("x", "/").expect(429);
}

#[test]
fn a_changed_limit_takes_what_was_spent_along() {
    let (a, b) = two();
    let proxy = proxy().origin("a", &a).origin("b", &b).config(LIMITED).start();
    for _ in 0..3 {
        proxy.get("x", "/").expect(200);
    }

    proxy.reload(&LIMITED.replace("burst: 3", "burst: 5"));

    let passed = (0..10).filter(|_| proxy.get("x", "/").status == 200).count();
    assert!(passed <= 2, "{passed} more passed after three of five");
}

#[test]
fn health_survives_an_unrelated_change() {
    let sick = origin().on("/health", |_, peer| peer.respond("500 No", &[], "")).always("sick").start();
    let well = origin().always("well").start();
    let document = |extra: &str| {
        format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`){extra}", service: pods }} }}
  services:
    pods:
      loadBalancer:
        healthCheck: {{ path: /health, interval: 150ms, timeout: 1s }}
        servers: [{{ url: "{{sick}}" }}, {{ url: "{{well}}" }}]
"#
        )
    };
    let proxy = proxy().origin("sick", &sick).origin("well", &well).config(&document("")).start();
    let mut client = proxy.client("x");
    eventually("the sick one is out", || (0..6).all(|_| client.get("/").text() == "well"));

    for change in [" || Path(`/1`)", " || Path(`/2`)", " || Path(`/3`)"] {
        proxy.reload(&document(change));
        for _ in 0..10 {
            assert_eq!(client.get("/").expect(200).text(), "well");
        }
    }
}

#[test]
fn requests_in_flight_count_on_after_a_reload() {
    let gate = Gate::new();
    let hold = gate.clone();
    let slow = origin()
        .on("/slow", move |_, peer| {
            hold.pass();
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let document = |extra: &str| {
        format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`){extra}", service: pods, middlewares: [few] }} }}
  middlewares: {{ few: {{ inFlightReq: {{ amount: 1 }} }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{slow}}" }}] }} }} }}
"#
        )
    };
    let proxy = proxy().origin("slow", &slow).config(&document("")).start();
    let mut first = proxy.client("x");
    let request = first.head("GET", "/slow", &[]);
    first.send(request);
    eventually("the slow request is in flight", || slow.hits() == 1);

    proxy.reload(&document(" || Path(`/other`)"));

    proxy.get("x", "/").expect(429);
    gate.open();
    first.response().expect(200);
    eventually("there is room again", || proxy.get("x", "/").status == 200);
}

#[test]
fn whose_turn_it_is_survives_a_reload() {
    let (a, b) = two();
    let document = |extra: &str| {
        format!(
            r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`){extra}", service: pods }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{a}}" }}, {{ url: "{{b}}" }}] }} }} }}
"#
        )
    };
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&document("")).start();
    let mut client = proxy.client("x");
    let mut last = client.get("/").expect(200).text();

    for extra in [" || Path(`/1`)", " || Path(`/2`)", " || Path(`/3`)", ""] {
        proxy.reload(&document(extra));
        let next = client.get("/").expect(200).text();
        assert_ne!(next, last);
        last = next;
    }
}

#[test]
fn warm_connections_to_an_unchanged_service_survive() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let mut client = proxy.client("x");
    client.get("/").expect(200);
    assert_eq!(a.connections(), 1);

    proxy.reload(&to("a").replace("`/`", "`/x` ) || PathPrefix(`/`"));
    client.get("/").expect(200);

    assert_eq!(a.connections(), 1, "connections to the origin");
}

#[test]
fn a_request_finishes_under_the_routes_it_began_with() {
    let gate = Gate::new();
    let hold = gate.clone();
    let a = origin()
        .otherwise(move |_, peer| {
            hold.pass();
            peer.respond("200 OK", &[], "a");
        })
        .start();
    let b = origin().always("b").start();
    let proxy = on_a(&a, &b);
    let mut slow = proxy.client("x");
    let request = slow.head("GET", "/", &[]);
    slow.send(request);
    eventually("the slow request is in flight", || a.hits() == 1);

    proxy.reload(&to("b"));
    assert_eq!(proxy.get("x", "/").expect(200).text(), "b");
    gate.open();

    assert_eq!(slow.response().expect(200).text(), "a");
    assert_eq!(slow.get("/").expect(200).text(), "b");
}

#[test]
fn fifty_reloads_under_load_fail_no_request_and_close_no_connection() {
    let (a, b) = two();
    let proxy = on_a(&a, &b);
    let load = Load::start(proxy.address("web"), "x", "/", 4);
    load.await_more(100);

    for round in 0..50 {
        proxy.reload(&to(if round % 2 == 0 { "b" } else { "a" }));
        load.await_more(20);
    }

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(report.connections, 4, "{report:?}");
    assert!(a.hits() > 0 && b.hits() > 0);
}

/// A document of so many host routers.
fn many(count: usize, service: &str) -> String {
    let routers: String = (0..count)
        .map(|index| {
            format!(
                "    r{index}: {{ rule: \"Host(`h{index}.test`) && PathPrefix(`/`)\", service: s{index} }}\n"
            )
        })
        .collect();
    let services: String = (0..count)
        .map(|index| {
            format!("    s{index}: {{ loadBalancer: {{ servers: [{{ url: \"{{{service}}}\" }}] }} }}\n")
        })
        .collect();
    format!("http:\n  routers:\n{routers}  services:\n{services}")
}

#[test]
fn a_thousand_routers_reload_under_load_without_a_failed_request() {
    let (a, b) = two();
    let proxy = proxy().origin("a", &a).origin("b", &b).config(&many(1000, "a")).start();
    let load = Load::start(proxy.address("web"), "h999.test", "/", 3);
    load.await_more(100);

    for service in ["b", "a", "b"] {
        proxy.reload(&many(1000, service));
        load.await_more(50);
    }

    let report = load.stop();
    assert!(report.failures.is_empty(), "{report:?}");
    assert_eq!(report.connections, 3, "{report:?}");
    assert_eq!(proxy.get("h0.test", "/").expect(200).text(), "b");
    assert_eq!(proxy.get("h1000.test", "/").status, 404);
}

/// A main file that includes a directory of dynamic files.
fn with_directory(directory: &Path) -> String {
    format!(
        "providers: {{ providersThrottleDuration: 10ms, file: {{ directory: \"{}\" }} }}\n",
        directory.display()
    )
}

fn dynamic(name: &str, origin: &Origin) -> String {
    format!(
        "http:\n  routers: {{ {name}: {{ rule: \"Host(`{name}`)\", service: {name} }} }}\n  \
         services: {{ {name}: {{ loadBalancer: {{ servers: [{{ url: \"{}\" }}] }} }} }}\n",
        origin.url()
    )
}

#[test]
fn one_bad_file_of_a_directory_never_freezes_the_others() {
    let (a, b) = two();
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    fs::write(file("b.yaml"), dynamic("b", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a");
    assert_eq!(proxy.get("b", "/").expect(200).text(), "a");

    fs::write(file("a.yml"), "http: { routres: {} }").expect("a writable directory");
    eventually("the bad file is reported", || proxy.refusals() > 0);
    fs::write(file("b.yaml"), dynamic("b", &b)).expect("a writable directory");

    eventually("the good file is in force", || proxy.get("b", "/").text() == "b");
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a", "the last good version of the bad file");
    let lines = format!("{:?}", proxy.log_lines());
    assert!(lines.contains("a.yml"), "{lines}");
}

/// Whether everything on disk is in use, as the metric for alerts has it.
fn is_whole(proxy: &Proxy) -> bool {
    proxy.metric("sluicegate_config_last_reload_successful") == 1.0
}

#[test]
fn a_file_that_reads_well_and_compiles_badly_is_reported_until_it_is_mended() {
    let (a, b) = two();
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    fs::write(file("b.yml"), dynamic("b", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();
    assert!(is_whole(&proxy));

    fs::write(file("a.yml"), dynamic("a", &b).replace("Host(", "Hots(")).expect("a writable directory");
    eventually("the bad file is reported", || proxy.refusals() == 1 && !is_whole(&proxy));
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a", "the last good version of the bad file");
    let lines = format!("{:?}", proxy.log_lines());
    assert!(lines.contains("a.yml:2:") && lines.contains("unknown matcher Hots"), "{lines}");

    fs::write(file("b.yml"), dynamic("b", &b)).expect("a writable directory");
    eventually("the good file is in force", || proxy.get("b", "/").text() == "b");
    eventually("the bad one is still seen", || !is_whole(&proxy));
    assert_eq!(proxy.refusals(), 1, "told once");

    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    eventually("it is mended", || is_whole(&proxy));
}

#[test]
fn a_new_file_that_is_bad_is_left_out_and_holds_nobody_up() {
    let (a, b) = two();
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();

    fs::write(file("new.yml"), dynamic("new", &b).replace("Host(", "Hots(")).expect("a writable directory");
    eventually("the bad file is reported", || proxy.refusals() == 1 && !is_whole(&proxy));
    fs::write(file("a.yml"), dynamic("a", &b)).expect("a writable directory");
    eventually("the good file is in force", || proxy.get("a", "/").text() == "b");
    let lines = format!("{:?}", proxy.log_lines());
    assert!(lines.contains("which is left out") && lines.contains("new.yml:2:"), "{lines}");
    fs::write(file("new.yml"), dynamic("new", &b)).expect("a writable directory");
    eventually("it is mended", || is_whole(&proxy) && proxy.get("new", "/").text() == "b");
}

#[test]
fn a_file_that_cannot_be_read_is_reported_until_it_is_as_before() {
    let (a, _) = two();
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();

    fs::write(file("a.yml"), "http: { routres: {} }").expect("a writable directory");
    eventually("the bad file is reported", || proxy.refusals() == 1 && !is_whole(&proxy));
    fs::write(file("a.yml"), dynamic("a", &a)).expect("a writable directory");
    eventually("it is mended", || is_whole(&proxy));
    fs::write(file("a.yml"), "http: { routres: {} }").expect("a writable directory");
    eventually("it is reported again", || proxy.refusals() == 2 && !is_whole(&proxy));
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a", "the last good version of the bad file");
}

#[test]
fn a_link_that_leads_nowhere_is_a_bad_file_and_not_a_removed_one() {
    let (a, b) = two();
    let directory = scratch();
    let file = |name: &str| directory.path().join(name);
    for (version, origin) in [("..1", &a), ("..2", &b)] {
        fs::create_dir(file(version)).expect("a writable directory");
        fs::write(file(version).join("a.yml"), dynamic("a", origin)).expect("a writable directory");
    }
    symlink("..1", file("..data")).expect("a link");
    symlink("..data/a.yml", file("a.yml")).expect("a link");
    let proxy = proxy().config(&with_directory(directory.path())).start();
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a");

    fs::remove_file(file("..data")).expect("a link");
    eventually("the link is reported", || proxy.refusals() == 1);
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a");
    symlink("..2", file("..data")).expect("a link");
    eventually("the new version is in force", || proxy.get("a", "/").text() == "b");
    assert!(is_whole(&proxy));
}

#[test]
fn files_of_a_directory_come_and_go() {
    let (a, b) = two();
    let directory = scratch();
    fs::write(directory.path().join("a.yml"), dynamic("a", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();
    proxy.get("b", "/").expect(404);

    fs::write(directory.path().join("b.yml"), dynamic("b", &b)).expect("a writable directory");
    eventually("the new file is in force", || proxy.get("b", "/").status == 200);
    fs::remove_file(directory.path().join("b.yml")).expect("a file");
    eventually("the removed file is out of force", || proxy.get("b", "/").status == 404);
    assert_eq!(proxy.get("a", "/").expect(200).text(), "a");
}

#[test]
fn files_of_subdirectories_come_and_go() {
    let (a, b) = two();
    let directory = scratch();
    fs::write(directory.path().join("a.yml"), dynamic("a", &a)).expect("a writable directory");
    let proxy = proxy().config(&with_directory(directory.path())).start();
    let below = directory.path().join("team/east");

    fs::create_dir_all(&below).expect("a writable directory");
    fs::write(below.join("b.yml"), dynamic("b", &b)).expect("a writable directory");
    eventually("the new file is in force", || proxy.get("b", "/").status == 200);
    fs::remove_dir_all(directory.path().join("team")).expect("a directory");
    eventually("it is out of force with its directory", || proxy.get("b", "/").status == 404);

    assert_eq!(proxy.get("a", "/").expect(200).text(), "a");
    assert_eq!(proxy.refusals(), 0);
}

#[test]
fn a_config_map_mounted_as_a_directory_is_followed_and_read_once() {
    let (a, b) = two();
    let volume = scratch();
    mount(volume.path(), 1, "routes.yml", &dynamic("x", &a));
    let proxy = proxy().config(&with_directory(volume.path())).start();
    assert_eq!(proxy.get("x", "/").expect(200).text(), "a");

    for (generation, origin, text) in [(2, &b, "b"), (3, &a, "a"), (4, &b, "b")] {
        mount(volume.path(), generation, "routes.yml", &dynamic("x", origin));
        eventually("the new version is in force", || proxy.get("x", "/").expect(200).text() == text);
    }
    assert_eq!(proxy.refusals(), 0);
}

#[test]
fn drop_item_leaves_out_only_what_is_wrong() {
    let (a, b) = two();
    let document = |on_problem: &str| {
        format!(
            r#"
onProblem: {on_problem}
http:
  routers:
    good: {{ rule: "Host(`good`)", service: pods }}
    bad: {{ rule: "Hots(`bad`)", service: pods }}
    lost: {{ rule: "Host(`lost`)", service: nobody }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{a}}" }}] }} }} }}
"#
        )
    };
    let proxy = on_a(&a, &b);
    proxy.reload_refused(&document("refuse"));

    proxy.reload(&document("dropItem"));

    proxy.get("good", "/").expect(200);
    proxy.get("bad", "/").expect(404);
    proxy.get("lost", "/").expect(404);
    let routers = proxy.admin_get("/api/http/routers?per_page=100").expect(200).json();
    let status = |name: &str| {
        let routers = routers.as_array().expect("a list");
        let router = routers
            .iter()
            .find(|router| router["name"].as_str().is_some_and(|full| full.split('@').next() == Some(name)));
        router.map(|router| (router["status"].clone(), router["error"].clone()))
    };
    assert_eq!(status("good").expect("good").0, "enabled");
    let (bad, error) = status("bad").expect("bad");
    assert_eq!(bad, "disabled", "{routers}");
    assert!(error.to_string().contains("Hots"), "{error}");
    assert_eq!(status("lost").expect("lost").0, "disabled");
    assert!(proxy.metric("sluicegate_config_disabled_items") >= 2.0);
}
