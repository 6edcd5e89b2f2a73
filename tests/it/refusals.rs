//! What the proxy refuses as a whole connection, and what it cuts: one line of the access log for each, never more.

use serde_json::Value;

use crate::harness::frames::{END_HEADERS, END_STREAM, Frames, frame, kind, request};
use crate::harness::tls::{Authority, TlsClient, configured, trusting};
use crate::harness::{Client, Gate, Origin, Proxy, eventually, eventually_equal, origin, proxy, scratch};

fn records(proxy: &Proxy) -> Vec<Value> {
    let text = std::fs::read_to_string(proxy.dir().join("access.log")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

fn reasons(proxy: &Proxy) -> Vec<String> {
    let is_last = |record: &Value| record["RequestPath"] == "/last";
    let of = |record: &Value| record["EndReason"].as_str().unwrap_or_default().to_owned();
    records(proxy).iter().filter(|record| !is_last(record)).map(of).collect()
}

/// Waits for the lines with these reasons, and sees that no other one is there when a later request is logged.
#[track_caller]
fn assert_reasons(proxy: &Proxy, wanted: &[&str]) {
    eventually_equal("reasons", wanted.iter().map(|&reason| reason.to_owned()).collect(), || reasons(proxy));
    let so_far = records(proxy).len();
    proxy.get("a.test", "/last").expect(200);
    eventually("the last line", || records(proxy).len() > so_far);
    assert_eq!(reasons(proxy), wanted);
}

const LOG: &str = "accessLog: { filePath: access.log, format: json }";

fn logging(origin: &Origin, web: &str) -> Proxy {
    proxy().all_to(origin).web(web).with(LOG).start()
}

#[test]
fn a_connection_of_http2_that_is_ended_leaves_one_line() {
    let origin = origin().start();
    let goes_on = [frame(kind::HEADERS, 0, 1, [0x82]), frame(kind::DATA, 0, 1, [])].concat();
    let cases: [(&str, &str, Vec<u8>, &str, u16); 6] = [
        ("a flood", "maxPings: 3", frame(kind::PING, 0, 0, [0; 8]).repeat(50), "http2_flood", 429),
        ("content of no stream", "", frame(kind::DATA, 0, 0, [0; 8]).repeat(9), "bad_request", 400),
        ("fields that do not go on", "", goes_on, "bad_request", 400),
        ("a frame of a wrong size", "", frame(kind::PING, 0, 0, [0; 7]), "bad_request", 400),
        ("a window of nothing", "", frame(kind::WINDOW_UPDATE, 0, 0, [0; 4]), "bad_request", 400),
        (
            "an index that is not there",
            "",
            frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, [0xff, 0x20]),
            "bad_request",
            400,
        ),
    ];
    for (name, keys, bytes, code, status) in cases {
        let proxy = logging(&origin, &format!("http2: {{ {keys} }}"));
        let mut client = Frames::connect(proxy.address("web"));
        client.send(bytes);
        client.assert_ends();
        assert_reasons(&proxy, &[code]);
        let record = &records(&proxy)[0];
        assert_eq!(record["RequestMethod"], "-", "{name}: {record}");
        assert_eq!(record["DownstreamStatus"], status, "{name}: {record}");
        assert_eq!(record["Fault"], "client", "{name}: {record}");
        let selector = format!("sluicegate_refusals_total{{code=\"{code}\"}}");
        assert_eq!(proxy.metric(&selector), 1.0, "{name}");
    }
}

#[test]
fn a_client_that_never_gets_as_far_as_a_request_leaves_one_line() {
    let origin = origin().start();
    let proxy = logging(&origin, "transport: { respondingTimeouts: { headTimeout: 200ms } }");
    let address = proxy.address("web");

    let mut no_settings = Frames::bare(address);
    no_settings.send([crate::harness::frames::PREFACE, &frame(kind::PING, 0, 0, [0; 8])].concat());
    no_settings.assert_ends();
    assert_reasons(&proxy, &["bad_request"]);

    let mut half_a_preface = Frames::bare(address);
    half_a_preface.send(&crate::harness::frames::PREFACE[..20]);
    half_a_preface.assert_ends();
    assert_reasons(&proxy, &["bad_request", "client_head_timeout"]);

    let mut half_a_head = proxy.client("a.test");
    half_a_head.send(crate::harness::frames::PREFACE);
    half_a_head.send(frame(kind::SETTINGS, 0, 0, []));
    half_a_head.send(frame(kind::HEADERS, 0, 1, [0x82]));
    half_a_head.rest().expect("an end");
    assert_reasons(&proxy, &["bad_request", "client_head_timeout", "client_head_timeout"]);

    // Whoever goes away by itself, or says nothing, is not refused.
    drop(Frames::connect(address));
    Client::connect(address, "a.test").assert_closed();
    assert_reasons(&proxy, &["bad_request", "client_head_timeout", "client_head_timeout"]);
}

#[test]
fn a_handshake_that_fails_by_the_client_leaves_one_line() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    std::fs::write(dir.path().join("ca.crt"), authority.pem()).expect("written");
    let proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .web("transport: { respondingTimeouts: { handshakeTimeout: 400ms } }")
        .config(&format!(
            "{LOG}
http:
  routers:
    plain: {{ rule: 'PathPrefix(`/`)', service: s }}
    secure: {{ rule: 'PathPrefix(`/`)', service: s, tls: {{}} }}
  services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }} }}
tls:
  certificates: [{{ certFile: '{{dir}}/a.crt', keyFile: '{{dir}}/a.key' }}]
  options: {{ default: {{ minVersion: VersionTLS13, sniStrict: true, clientAuth: {{ caFiles: ['{{dir}}/ca.crt'] }} }} }}
"
        ))
        .start();
    let address = proxy.address("web");
    let own = authority.issue(&["someone"]);
    let good = trusting(&authority, Some(&own));

    let mut garbage = Client::connect(address, "a.test");
    garbage.send([22, 3, 1, 0, 5, 99, 99, 99, 99, 99]);
    let _ = garbage.rest();
    assert_reasons(&proxy, &["tls_handshake"]);
    let record = &records(&proxy)[0];
    for (key, value) in [("RequestMethod", "-"), ("RequestScheme", "https"), ("Fault", "client")] {
        assert_eq!(record[key], value, "{record}");
    }
    assert_eq!(record["DownstreamStatus"], 400, "{record}");

    let old = configured(&authority, Some(&own), &[&rustls::version::TLS12], &[]);
    assert!(TlsClient::connect(address, "a.test", &old).is_err());
    assert_reasons(&proxy, &["tls_handshake"; 2]); // no version in common

    assert!(TlsClient::connect(address, "b.test", &good).is_err());
    assert_reasons(&proxy, &["tls_handshake"; 3]); // no certificate for the name

    let strange = configured(&authority, Some(&own), rustls::ALL_VERSIONS, &["unheard-of"]);
    assert!(TlsClient::connect(address, "a.test", &strange).is_err());
    assert_reasons(&proxy, &["tls_handshake"; 4]); // no protocol in common

    let mut slow = Client::connect(address, "a.test");
    slow.send([22, 3, 1]);
    slow.assert_closed();
    assert_reasons(&proxy, &["tls_handshake"; 5]); // not in time

    // With TLS 1.3 the client learns of its refusal only when it reads.
    if let Ok(mut nobody) = TlsClient::connect(address, "a.test", &trusting(&authority, None)) {
        assert!(nobody.request("a.test", "/").is_err());
    }
    assert_reasons(&proxy, &["tls_handshake"; 6]); // no certificate of the client

    // One who goes away, or does not trust us, is not refused.
    let mut gone = Client::connect(address, "a.test");
    gone.send([22, 3, 1]);
    drop(gone);
    assert!(TlsClient::connect(address, "a.test", &trusting(&Authority::new(), Some(&own))).is_err());
    assert_eq!(TlsClient::open(address, "a.test", &good).get("a.test", "/x").status, 200);
    eventually("the good one's line", || reasons(&proxy).iter().any(|reason| reason == "completed"));
    assert_eq!(reasons(&proxy).iter().filter(|reason| *reason == "tls_handshake").count(), 6);
    assert_eq!(proxy.metric("sluicegate_refusals_total{code=\"tls_handshake\"}"), 6.0);
}

#[test]
fn what_a_shutdown_cuts_is_logged_once_each() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/half", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            peer.hang();
        })
        .otherwise(move |_, _| hold.pass())
        .start();
    let mut proxy = proxy()
        .origin("pod", &origin)
        .web("transport: { lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 300ms } }")
        .config(&format!(
            "{LOG}
http:
  routers:
    logged: {{ rule: 'PathPrefix(`/`)', service: s }}
    silent: {{ rule: 'PathPrefix(`/silent`)', service: s, observability: {{ accessLogs: false }} }}
  services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }} }}
"
        ))
        .start();
    let mut clients: Vec<_> = ["/waits?a=b", "/half", "/silent"]
        .into_iter()
        .map(|target| {
            let mut client = proxy.client("a.test");
            let head = client.head("GET", target, &[]);
            client.send(head);
            client
        })
        .collect();
    clients[1].read_head();
    let mut frames = Frames::connect(proxy.address("web"));
    frames.send(frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, request("GET", "/stream", &[])));
    eventually("all are under way", || origin.hits() == 4);
    let idle = proxy.client("a.test");

    proxy.signal("TERM");

    assert!(proxy.wait_exit().success());
    let mut lines: Vec<_> = records(&proxy)
        .iter()
        .map(|record| {
            assert_eq!(record["EndReason"], "cut", "{record}");
            assert_eq!(record["RouterName"], "logged", "{record}");
            let target = record["RequestPath"].as_str().unwrap_or_default().to_owned();
            (target, record["DownstreamStatus"].as_u64().unwrap_or_default())
        })
        .collect();
    lines.sort();
    let wanted = [("/half", 200), ("/stream", 503), ("/waits?a=b", 503)];
    assert_eq!(lines, wanted.map(|(target, status)| (target.to_owned(), status)));
    gate.open();
    drop((clients, idle));
}

#[test]
fn what_one_entry_point_cuts_while_another_goes_on_is_logged_as_cut() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/hang", |_, peer| peer.hang())
        .otherwise(move |_, peer| {
            hold.pass();
            peer.respond("200 OK", &[], "late");
        })
        .start();
    let life = |grace| {
        format!("transport: {{ lifeCycle: {{ requestAcceptGraceTimeout: 0s, graceTimeOut: {grace} }} }}")
    };
    let mut proxy = proxy()
        .origin("pod", &origin)
        .config(&format!(
            "{LOG}
entryPoints:
  web: {{ address: '127.0.0.1:0', {} }}
  hasty: {{ address: '127.0.0.2:0', {} }}
http:
  routers: {{ all: {{ rule: 'PathPrefix(`/`)', service: s }} }}
  services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }} }}
",
            life("60s"),
            life("200ms")
        ))
        .start();
    let mut frames = Frames::connect(proxy.address("hasty"));
    frames.get(1, "/hang");
    let mut client = Client::connect(proxy.address("hasty"), "a.test");
    let mut patient = proxy.client("a.test");
    for (client, target) in [(&mut client, "/hang"), (&mut patient, "/last")] {
        let head = client.head("GET", target, &[]);
        client.send(head);
    }
    eventually("all are under way", || origin.hits() == 3);

    proxy.signal("TERM");

    frames.assert_ends();
    client.assert_closed();
    eventually_equal("reasons", vec!["cut".to_owned(); 2], || reasons(&proxy));
    gate.open();
    patient.response().expect(200);
    assert!(proxy.wait_exit().success());
    assert_eq!(reasons(&proxy), ["cut", "cut"]);
}
