//! The access log: its formats, its filters, why a request ended as it did, and files that move away.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::{Gate, Origin, Proxy, Refused, eventually, origin, proxy};

/// The lines of a file once there are so many.
#[track_caller]
fn lines(path: &Path, count: usize) -> Vec<String> {
    let read = || -> Vec<String> {
        fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
    };
    eventually(&format!("{count} lines in {}", path.display()), || read().len() >= count);
    let lines = read();
    assert_eq!(lines.len(), count, "{lines:?}");
    lines
}

#[track_caller]
fn records(proxy: &Proxy, count: usize) -> Vec<Value> {
    let parse = |line: &String| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    lines(&proxy.dir().join("access.log"), count).iter().map(parse).collect()
}

/// One router on `a.test` and a log of these keys in `access.log`.
fn logging(origin: &Origin, keys: &str) -> Proxy {
    proxy()
        .route("Host(`a.test`)", origin)
        .with(&format!("accessLog: {{ filePath: access.log, {keys} }}"))
        .start()
}

#[test]
fn a_json_line_has_traefiks_fields() {
    let origin = origin().get("/x", "hello").start();
    let proxy = logging(&origin, "format: json");
    let mut client = proxy.client("a.test");

    client.post("/x?y=z", "12345678").expect(200);

    let record = &records(&proxy, 1)[0];
    for (key, value) in [
        ("RequestMethod", Value::from("POST")),
        ("RequestPath", "/x?y=z".into()),
        ("RequestHost", "a.test".into()),
        ("RequestAddr", "a.test".into()),
        ("RequestPort", "-".into()),
        ("RequestProtocol", "HTTP/1.1".into()),
        ("RequestScheme", "http".into()),
        ("RequestContentSize", 8.into()),
        ("DownstreamStatus", 200.into()),
        ("DownstreamContentSize", 5.into()),
        ("OriginStatus", 200.into()),
        ("ClientHost", "127.0.0.1".into()),
        ("ClientPort", client.local_address().port().to_string().into()),
        ("ClientAddr", client.local_address().to_string().into()),
        ("ServiceAddr", origin.address().to_string().into()),
        ("ServiceURL", origin.url().into()),
        ("RetryAttempts", 0.into()),
        ("entryPointName", "web".into()),
    ] {
        assert_eq!(record[key], value, "{key} in {record}");
    }
    for key in ["RouterName", "ServiceName", "StartUTC", "time"] {
        assert!(record[key].is_string(), "{key} in {record}");
    }
    for key in ["Duration", "OriginDuration", "Overhead", "RequestCount"] {
        assert!(record[key].is_number(), "{key} in {record}");
    }
}

#[test]
fn a_common_line_is_traefiks() {
    let origin = origin().get("/x", "hello").start();
    let proxy = logging(&origin, "format: common, fields: { headers: { names: { Referer: keep } } }");

    proxy
        .client("a.test")
        .get_with("/x", &[("Referer", "http://r/"), ("User-Agent", "it \"1\"")])
        .expect(200);

    let line = &lines(&proxy.dir().join("access.log"), 1)[0];
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains("] \"GET /x HTTP/1.1\" 200 5 "), "{line}");
    assert!(line.contains("http://r/"), "{line}");
    assert!(line.contains(&format!("\"{}\"", origin.url())), "{line}");
    assert!(line.ends_with("ms"), "{line}");
}

#[test]
fn a_generic_line_ends_with_the_user_agent() {
    let origin = origin().get("/x", "hello").start();
    let proxy = logging(&origin, "format: genericCLF, fields: { headers: { defaultMode: keep } }");

    proxy.client("a.test").get_with("/x", &[("User-Agent", "it")]).expect(200);

    let line = &lines(&proxy.dir().join("access.log"), 1)[0];
    assert!(line.ends_with("\"it\""), "{line}");
}

#[test]
fn without_a_path_lines_go_to_standard_output() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).with("accessLog: { format: json }").start();

    proxy.get("a.test", "/seen").expect(200);

    eventually("the line is there", || proxy.stdout().iter().any(|line| line.contains("\"/seen\"")));
}

#[test]
fn a_request_without_a_router_names_none() {
    let origin = origin().start();
    let proxy = logging(&origin, "format: json");

    proxy.get("b.test", "/").expect(404);

    let record = &records(&proxy, 1)[0];
    assert_eq!(record["DownstreamStatus"], 404);
    assert!(record.get("RouterName").is_none() && record.get("ServiceName").is_none(), "{record}");
    assert_eq!(record["EndReason"], "no_route");
    assert_eq!(record["Fault"], "client");
}

#[test]
fn a_line_says_whose_fault_and_after_how_many_attempts() {
    let live = origin().start();
    let dead = [Refused::new(), Refused::new()];
    let proxy = proxy()
        .origin("live", &live)
        .name("dead0", dead[0].url())
        .name("dead1", dead[1].url())
        .config(
            r#"
accessLog: { filePath: access.log, format: json }
http:
  routers:
    none: { rule: "Host(`none`)", service: none }
    some: { rule: "Host(`some`)", service: some }
  services:
    none: { loadBalancer: { servers: [{ url: "{dead0}" }] } }
    some: { loadBalancer: { servers: [{ url: "{dead1}" }, { url: "{live}" }] } }
"#,
        )
        .start();

    proxy.get("none", "/").expect(502);
    let mut client = proxy.client("some");
    for _ in 0..4 {
        client.get("/").expect(200);
    }

    // Lines of different cores come in any order.
    let (some, none): (Vec<_>, Vec<_>) =
        records(&proxy, 5).into_iter().partition(|record| record["RequestHost"] == "some");
    assert_eq!(none.len(), 1, "{none:?}");
    assert_eq!(none[0]["EndReason"], "connect_failed", "{}", none[0]);
    assert_eq!(none[0]["Fault"], "upstream", "{}", none[0]);
    let retried = some.iter().find(|record| record["RetryAttempts"] == 1);
    let retried = retried.unwrap_or_else(|| panic!("nothing was retried: {some:?}"));
    assert_eq!(retried["Attempts"], 2, "{retried}");
    assert!(retried["Endpoints"].to_string().contains(&live.address().to_string()), "{retried}");
}

#[test]
fn requests_that_were_no_requests_are_logged_too() {
    let origin = origin().start();
    let proxy = logging(&origin, "format: json");
    let mut client = proxy.client("a.test");

    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n");
    client.response().expect(400);

    let record = &records(&proxy, 1)[0];
    assert_eq!(record["DownstreamStatus"], 400, "{record}");
    assert_eq!(record["EndReason"], "bad_request", "{record}");
}

#[test]
fn a_client_that_went_away_is_logged_as_499() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin().on("/", move |_, _| hold.pass()).start();
    let proxy = logging(&origin, "format: json");
    let mut client = proxy.client("a.test");
    let request = client.head("GET", "/", &[]);
    client.send(request);
    eventually("the request is in flight", || origin.hits() == 1);

    client.reset();

    let record = &records(&proxy, 1)[0];
    assert_eq!(record["DownstreamStatus"], 499, "{record}");
    assert_eq!(record["Fault"], "client", "{record}");
    gate.open();
}

#[test]
fn filters_choose_by_status() {
    let origin = origin()
        .on("/500", |_, peer| peer.respond("500 No", &[], ""))
        .on("/404", |_, peer| peer.respond("404 No", &[], ""))
        .start();
    let proxy = logging(&origin, "format: json, filters: { statusCodes: [\"404\", \"500-599\"] }");
    let mut client = proxy.client("a.test");

    for target in ["/", "/404", "/", "/500", "/"] {
        client.get(target);
    }

    let statuses: Vec<_> =
        records(&proxy, 2).iter().map(|record| record["DownstreamStatus"].clone()).collect();
    assert_eq!(statuses, [404, 500]);
}

#[test]
fn header_fields_are_dropped_unless_kept_and_secrets_stay_out() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.respond("200 OK", &[("X-Answer", "yes"), ("Set-Cookie", "session=s3cret")], "")
        })
        .start();
    let proxy = logging(
        &origin,
        "format: json, fields: { headers: { names: { X-Kept: keep, X-Answer: keep, Authorization: redact } } }",
    );

    let fields =
        [("X-Kept", "kept"), ("X-Other", "other"), ("Authorization", "Bearer s3cret"), ("Cookie", "s3cret")];
    proxy.client("a.test").get_with("/", &fields).expect(200);

    let record = &records(&proxy, 1)[0];
    assert_eq!(record["request_X-Kept"], "kept", "{record}");
    assert_eq!(record["downstream_X-Answer"], "yes", "{record}");
    assert_eq!(record["origin_X-Answer"], "yes", "{record}");
    assert_eq!(record["request_Authorization"], "REDACTED", "{record}");
    assert!(!record.to_string().contains("s3cret") && !record.to_string().contains("other"), "{record}");
}

#[test]
fn fields_and_queries_are_dropped_where_asked() {
    let origin = origin().start();
    let proxy = logging(
        &origin,
        "format: json, fields: { names: { ClientHost: drop }, queryParameters: { defaultMode: drop } }",
    );

    proxy.get("a.test", "/x?token=s3cret").expect(200);

    let record = &records(&proxy, 1)[0];
    assert!(record.get("ClientHost").is_none(), "{record}");
    assert_eq!(record["RequestPath"], "/x", "{record}");
    assert!(!record.to_string().contains("s3cret"), "{record}");
}

#[test]
fn nobody_can_forge_a_line() {
    let origin = origin().start();
    for format in ["json", "common"] {
        let proxy =
            logging(&origin, &format!("format: {format}, fields: {{ headers: {{ defaultMode: keep }} }}"));

        proxy
            .client("a.test")
            .get_with("/%0a%22x", &[("User-Agent", "\" 200 \\\"\t\u{e9}"), ("Referer", "\"-\" \"")])
            .expect(200);

        let line = &lines(&proxy.dir().join("access.log"), 1)[0];
        assert!(!line.contains('\t'), "{line:?}");
        if format == "json" {
            serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
    }
}

#[test]
fn a_router_may_be_left_out() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
accessLog: { filePath: access.log, format: json }
http:
  routers:
    quiet: { rule: "Host(`quiet`)", service: pods, observability: { accessLogs: false } }
    loud: { rule: "Host(`loud`)", service: pods }
  services: { pods: { loadBalancer: { servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    proxy.get("quiet", "/").expect(200);
    proxy.get("loud", "/").expect(200);

    assert_eq!(records(&proxy, 1)[0]["RequestHost"], "loud");
}

#[test]
fn after_sigusr1_lines_go_to_a_new_file() {
    let origin = origin().start();
    let proxy = logging(&origin, "format: json");
    let path = proxy.dir().join("access.log");
    let moved = proxy.dir().join("access.log.1");
    proxy.get("a.test", "/before").expect(200);
    lines(&path, 1);

    fs::rename(&path, &moved).expect("a rename within one directory");
    proxy.get("a.test", "/between").expect(200);
    lines(&moved, 2);
    proxy.signal("USR1");
    eventually("the new file is there", || path.exists());
    proxy.get("a.test", "/after").expect(200);

    assert!(lines(&path, 1)[0].contains("/after"));
    assert_eq!(lines(&moved, 2).len(), 2);
}

#[test]
fn every_request_of_a_burst_is_logged_and_nothing_is_lost_at_the_end() {
    let origin = origin().start();
    let keys = "transport: { lifeCycle: { requestAcceptGraceTimeout: 0s } }";
    let mut proxy = proxy()
        .all_to(&origin)
        .web(keys)
        .with("accessLog: { filePath: access.log, format: json, bufferingSize: 1000 }")
        .start();
    let mut client = proxy.client("a.test");
    for index in 0..200 {
        client.get(&format!("/{index}")).expect(200);
    }

    proxy.signal("TERM");
    assert_eq!(proxy.wait_exit().code(), Some(0));

    let records = records(&proxy, 200);
    assert!(records.iter().enumerate().all(|(index, record)| record["RequestPath"] == format!("/{index}")));
}
