//! TLS with clients and with pods: certificates, options, reloads, redirections, trust.

use std::net::TcpStream;
use std::sync::Arc;

use crate::harness::tls::{
    Authority, HalfOpen, TlsClient, TlsOrigin, Valid, configured, field, trusting, uri,
};
use crate::harness::{Client, eventually, eventually_equal, origin, proxy, run, scratch};

/// A proxy with one TLS router for everything, and certificates in a directory of the test's.
fn secure(dir: &std::path::Path, tls: &str, origin: &crate::harness::Origin) -> crate::harness::Proxy {
    proxy()
        .origin("pod", origin)
        .name("dir", dir.display().to_string())
        .config(&format!(
            "http:\n  routers:\n    r: {{ rule: 'PathPrefix(`/`)', service: s, tls: {{}} }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }}\n{tls}"
        ))
        .start()
}

const ONE: &str = "tls:\n  certificates: [{ certFile: '{dir}/a.crt', keyFile: '{dir}/a.key' }]\n";

#[test]
fn a_client_gets_the_certificate_for_its_name_and_the_pod_is_told_of_tls() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    authority.issue(&["*.wild.test", "b.test"]).write(dir.path(), "b");
    let proxy = secure(
        dir.path(),
        "tls:\n  certificates:\n  - { certFile: '{dir}/a.crt', keyFile: '{dir}/a.key' }\n  - { certFile: \
         '{dir}/b.crt', keyFile: '{dir}/b.key' }\naccessLog: { format: json }\n",
        &pod,
    );
    let config = trusting(&authority, None);

    for name in ["a.test", "b.test", "x.wild.test"] {
        let mut client = TlsClient::open(proxy.address("web"), name, &config);
        assert_eq!(client.get(name, "/").status, 200, "{name}");
        assert_eq!(client.get(name, "/").status, 200, "{name}, again");
    }

    let seen = &pod.received()[0];
    assert_eq!(seen.head.get("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.head.get("x-forwarded-port"), Some("443"));
    let unknown = TlsClient::connect(proxy.address("web"), "other.test", &config);
    assert!(
        unknown.is_err_and(|error| error.contains("invalid peer certificate")),
        "the default one is not trusted"
    );
    assert_eq!(proxy.metric("sluicegate_tls_handshakes_total{outcome=\"full\"}"), 3.0);
    eventually_equal("refusals by clients", 1.0, || {
        proxy.metric("sluicegate_tls_handshakes_total{outcome=\"refused_by_client\"}")
    });
    assert!(proxy.metric("sluicegate_tls_certs_not_after{sans=\"a.test\"}") > 1.7e9);
}

#[test]
fn plain_and_tls_share_a_port_and_each_has_its_own_routers() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);

    Client::connect(proxy.address("web"), "a.test").get("/").expect(404);

    let config = trusting(&authority, None);
    assert_eq!(TlsClient::open(proxy.address("web"), "a.test", &config).get("a.test", "/").status, 200);
}

#[test]
fn both_versions_and_both_protocols_are_spoken_and_a_stranger_protocol_is_refused() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let address = proxy.address("web");

    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = configured(&authority, None, &[version], &["http/1.1"]);
        let mut client = TlsClient::open(address, "a.test", &config);
        assert_eq!(client.session().protocol_version(), Some(version.version));
        assert_eq!(client.session().alpn_protocol(), Some(&b"http/1.1"[..]));
        assert_eq!(client.get("a.test", "/").status, 200);
    }
    let strange = configured(&authority, None, rustls::ALL_VERSIONS, &["spdy/1"]);
    assert!(TlsClient::connect(address, "a.test", &strange).is_err());
    eventually_equal("handshakes without a protocol", 1.0, || {
        proxy.metric("sluicegate_tls_handshakes_total{outcome=\"no_protocol\"}")
    });
}

#[test]
fn a_session_goes_on_across_a_reload() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let config = trusting(&authority, None);
    TlsClient::open(proxy.address("web"), "a.test", &config).get("a.test", "/");

    let before = proxy.generation();
    authority.issue(&["a.test"]).write(dir.path(), "a");
    eventually("the new certificate is in use", || proxy.generation() > before);

    let mut again = TlsClient::open(proxy.address("web"), "a.test", &config);
    assert!(again.is_resumed());
    assert_eq!(again.get("a.test", "/").status, 200);
}

#[test]
fn a_renewed_certificate_is_taken_up_and_no_connection_is_dropped() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let mut old = TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None));
    let first = old.certificate();

    authority.issue(&["a.test"]).write(dir.path(), "a");

    eventually("new connections get the new certificate", || {
        TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None)).certificate() != first
    });
    assert_eq!(old.get("a.test", "/").status, 200);
}

#[test]
fn a_secret_that_kubernetes_swaps_is_taken_up() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    let put = |version: &str| {
        let data = dir.path().join(version);
        std::fs::create_dir(&data).expect("made");
        authority.issue(&["a.test"]).write(&data, "a");
        let next = dir.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &next).expect("a link");
        std::fs::rename(&next, dir.path().join("..data")).expect("a rename");
    };
    put("..1");
    for file in ["a.crt", "a.key"] {
        let target = std::path::Path::new("..data").join(file);
        std::os::unix::fs::symlink(target, dir.path().join(file)).expect("a link");
    }
    let proxy = secure(dir.path(), ONE, &pod);
    let shown = || TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None)).certificate();
    let first = shown();

    put("..2");
    std::fs::remove_dir_all(dir.path().join("..1")).expect("removed");

    eventually("the new certificate is shown", || shown() != first);
}

#[test]
fn files_that_cannot_be_used_leave_the_old_certificate_in_use() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let shown = || TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None)).certificate();
    let first = shown();
    let stale = |count: f64| {
        eventually_equal("stale certificates", count, || proxy.metric("sluicegate_tls_certs_stale"));
    };

    std::fs::write(dir.path().join("a.key"), authority.issue(&["a.test"]).key).expect("written");
    stale(1.0);
    assert_eq!(shown(), first, "a key of another certificate");

    authority.issue_with(&["a.test"], Valid::NoMore, |_| {}).write(dir.path(), "a");
    eventually("it is said in the log", || {
        proxy.log_lines().iter().any(|line| line.message().contains("certificate has expired"))
    });
    stale(1.0);
    assert_eq!(shown(), first, "an expired one");

    std::fs::remove_file(dir.path().join("a.crt")).expect("removed");
    eventually("it is said in the log", || {
        proxy.log_lines().iter().any(|line| line.message().contains("cannot read"))
    });
    stale(1.0);
    assert_eq!(shown(), first, "no file");

    authority.issue(&["a.test"]).write(dir.path(), "a");
    stale(0.0);
    assert_ne!(shown(), first);
}

#[test]
fn files_of_authorities_that_cannot_be_used_leave_the_old_ones_in_use() {
    let (dir, authority, clients) = (scratch(), Authority::new(), Authority::new());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let pod = TlsOrigin::start(&authority.issue(&["pod.internal"]), None);
    let write = |file: &str, text: &str| std::fs::write(dir.path().join(file), text).expect("written");
    write("clients.crt", &clients.pem());
    write("pods.crt", &authority.pem());
    let proxy = proxy()
        .name("pod", pod.url())
        .name("dir", dir.path().display().to_string())
        .config(
            "http:
  routers: { r: { rule: 'PathPrefix(`/`)', service: s, tls: {} } }
  services: { s: { loadBalancer: { serversTransport: t, servers: [{ url: '{pod}' }] } } }
  serversTransports: { t: { serverName: pod.internal, rootCAs: ['{dir}/pods.crt'], maxIdleConnsPerHost: -1 } }
tls:
  certificates: [{ certFile: '{dir}/a.crt', keyFile: '{dir}/a.key' }]
  options: { default: { clientAuth: { caFiles: ['{dir}/clients.crt'] } } }
",
        )
        .start();
    let known = clients.issue(&["someone"]);
    let works = || {
        let config = trusting(&authority, Some(&known));
        TlsClient::open(proxy.address("web"), "a.test", &config).get("a.test", "/").status == 200
    };
    let stale = |count: f64| {
        eventually_equal("stale files", count, || proxy.metric("sluicegate_tls_certs_stale"));
    };
    assert!(works());

    for broken in ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        write("clients.crt", broken);
        stale(1.0);
        write("pods.crt", broken);
        stale(2.0);
        assert!(works(), "{broken:?}");
        write("clients.crt", &clients.pem());
        write("pods.crt", &authority.pem());
        stale(0.0);
    }
    std::fs::remove_file(dir.path().join("clients.crt")).expect("removed");
    stale(1.0);
    assert!(works());
    eventually("it is said in the log", || {
        proxy.log_lines().iter().any(|line| line.message().contains("clients.crt"))
    });
    let shown = proxy.admin_get("/api/certificates").expect(200).json();
    let errors: Vec<_> =
        shown.as_array().expect("a list").iter().filter_map(|one| one.get("error")).collect();
    assert!(errors.len() == 1 && errors[0].to_string().contains("cannot read"), "{shown}");

    let strangers = Authority::new();
    write("clients.crt", &strangers.pem());
    stale(0.0);
    let config = trusting(&authority, Some(&known));
    let refused = TlsClient::connect(proxy.address("web"), "a.test", &config)
        .is_ok_and(|mut client| client.request("a.test", "/").is_ok());
    assert!(!refused, "new authorities are taken up");
}

#[test]
fn a_cold_start_with_broken_authorities_says_where_they_are_written() {
    let dir = scratch();
    std::fs::write(dir.path().join("ca.crt"), "nothing").expect("written");
    let text = "http:\n  serversTransports:\n    t: { rootCAs: [ca.crt] }\n  services:\n    s: { loadBalancer: { \
                serversTransport: t, servers: [{ url: 'https://127.0.0.1:1' }] } }\ntls:\n  options:\n    default:\n      \
                clientAuth:\n        caFiles: [ca.crt, none.crt]\n";
    std::fs::write(dir.path().join("main.yaml"), text).expect("written");

    let report = run(dir.path(), ["check", "main.yaml"]).expect(1).stdout;

    for (place, what) in [
        ("main.yaml:3:", "ca.crt: there is no certificate in it"),
        ("main.yaml:10:", "ca.crt: there is no certificate in it"),
        ("main.yaml:10:", "none.crt"),
    ] {
        assert!(report.lines().any(|line| line.contains(place)) && report.contains(what), "{what}: {report}");
    }
}

#[test]
fn a_cold_start_with_a_broken_pair_says_where_it_is_written() {
    let (dir, authority) = (scratch(), Authority::new());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    std::fs::write(dir.path().join("a.key"), authority.issue(&["a.test"]).key).expect("written");

    let text = "tls:\n  certificates:\n  - { certFile: a.crt, keyFile: a.key }\n";
    std::fs::write(dir.path().join("main.yaml"), text).expect("written");

    let report = run(dir.path(), ["check", "main.yaml"]).expect(1).stdout;

    assert!(report.contains("the key does not belong to the certificate"), "{report}");
    assert!(report.contains("main.yaml:3:"), "{report}");
}

#[test]
fn clients_are_asked_for_certificates_where_the_options_say_so() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    let (clients, strangers) = (Authority::new(), Authority::new());
    authority.issue(&["a.test", "b.test", "c.test", "d.test"]).write(dir.path(), "a");
    std::fs::write(dir.path().join("ca.crt"), clients.pem()).expect("written");
    let proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .config(
            "http:
  routers:
    a: { rule: 'Host(`a.test`)', service: s, tls: { options: must } }
    b: { rule: 'Host(`b.test`)', service: s, tls: { options: may } }
    c: { rule: 'Host(`c.test`)', service: s, tls: { options: any } }
    d: { rule: 'Host(`d.test`)', service: s, tls: {} }
  services:
    s: { loadBalancer: { servers: [{ url: '{pod}' }] } }
tls:
  certificates: [{ certFile: '{dir}/a.crt', keyFile: '{dir}/a.key' }]
  options:
    must: { clientAuth: { caFiles: ['{dir}/ca.crt'] } }
    may: { clientAuth: { caFiles: ['{dir}/ca.crt'], clientAuthType: VerifyClientCertIfGiven } }
    any: { clientAuth: { clientAuthType: RequireAnyClientCert } }
",
        )
        .start();
    let address = proxy.address("web");
    let (known, strange) = (clients.issue(&["someone"]), strangers.issue(&["someone"]));
    let reaches = |name: &str, own| {
        let config = trusting(&authority, own);
        let client = TlsClient::connect(address, name, &config);
        // With TLS 1.3 the client learns of its refusal only afterwards.
        client.is_ok_and(|mut client| client.request(name, "/").is_ok_and(|answer| answer.status == 200))
    };

    assert_eq!(
        [reaches("a.test", None), reaches("a.test", Some(&strange)), reaches("a.test", Some(&known))],
        [false, false, true]
    );
    assert_eq!(
        [reaches("b.test", None), reaches("b.test", Some(&strange)), reaches("b.test", Some(&known))],
        [true, false, true]
    );
    assert_eq!(
        [reaches("c.test", None), reaches("c.test", Some(&strange)), reaches("c.test", Some(&known))],
        [false, true, true]
    );
    assert!(reaches("d.test", None));
    let mut open = TlsClient::open(address, "d.test", &trusting(&authority, None));
    let answer = open.get("a.test", "/");
    assert_eq!((answer.status, answer.text()), (421, "Misdirected Request\n".to_owned()));
    assert_eq!(proxy.metric("sluicegate_tls_handshakes_total{outcome=\"no_client_certificate\"}"), 2.0);
    assert_eq!(proxy.metric("sluicegate_tls_handshakes_total{outcome=\"bad_client_certificate\"}"), 2.0);
}

#[test]
fn strict_names_and_versions_are_kept_to() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let options = format!("{ONE}  options: {{ default: {{ minVersion: VersionTLS13, sniStrict: true }} }}\n");
    let proxy = secure(dir.path(), &options, &pod);
    let address = proxy.address("web");

    let old = configured(&authority, None, &[&rustls::version::TLS12], &[]);
    assert!(TlsClient::connect(address, "a.test", &old).is_err());
    assert!(TlsClient::connect(address, "other.test", &trusting(&authority, None)).is_err());
    assert_eq!(
        TlsClient::open(address, "a.test", &trusting(&authority, None)).get("a.test", "/").status,
        200
    );
    for outcome in ["nothing_in_common", "unknown_name"] {
        let selector = format!("sluicegate_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        eventually_equal(outcome, 1.0, || proxy.metric(&selector));
    }
}

#[test]
fn an_entry_point_with_tls_makes_all_its_routers_tls_and_another_redirects_to_it() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .config(
            "entryPoints:
  web: { address: '127.0.0.1:0', http: { redirections: { entryPoint: { to: ':8443' } } } }
  websecure: { address: '127.0.0.1:0', http: { tls: {} } }
http:
  routers: { r: { rule: 'PathPrefix(`/`)', service: s } }
  services: { s: { loadBalancer: { servers: [{ url: '{pod}' }] } } }
tls: { certificates: [{ certFile: '{dir}/a.crt', keyFile: '{dir}/a.key' }] }
",
        )
        .start();

    let config = trusting(&authority, None);
    assert_eq!(TlsClient::open(proxy.address("websecure"), "a.test", &config).get("a.test", "/").status, 200);
    Client::connect(proxy.address("websecure"), "a.test").get("/").expect(404);
    let moved = Client::connect(proxy.address("web"), "a.test:80").get("/x?y=1").expect(301);
    assert_eq!(moved.header("location"), Some("https://a.test:8443/x?y=1"));
    let moved = Client::connect(proxy.address("web"), "a.test").post("/x", "body").expect(308);
    assert_eq!(moved.header("location"), Some("https://a.test:8443/x"));
    assert_eq!(pod.hits(), 1);
}

#[test]
fn a_slow_handshake_and_one_too_many_are_ended() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .web("maxHandshakes: 1, transport: { respondingTimeouts: { handshakeTimeout: 700ms } }")
        .config(&format!(
            "http:\n  routers:\n    r: {{ rule: 'PathPrefix(`/`)', service: s, tls: {{}} }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }}\n{ONE}"
        ))
        .start();
    let address = proxy.address("web");
    let mut slow = Client::connect(address, "a.test");
    slow.send([22, 3, 1]);
    eventually_equal("handshakes under way", 1.0, || proxy.metric("sluicegate_tls_handshakes_in_progress"));

    let config = trusting(&authority, None);
    let second = TlsClient::connect(address, "a.test", &config);
    // On a slow machine the first one may be over by now.
    let busy = proxy.metric("sluicegate_tls_handshakes_total{outcome=\"busy\"}");
    assert!(second.is_ok() || busy == 1.0);

    slow.assert_closed();
    eventually_equal("timeouts", 1.0, || {
        proxy.metric("sluicegate_tls_handshakes_total{outcome=\"timeout\"}")
    });
    assert_eq!(TlsClient::open(address, "a.test", &config).get("a.test", "/").status, 200);
}

#[test]
fn large_bodies_pass_both_ways() {
    let (dir, authority) = (scratch(), Authority::new());
    let body = "0123456789abcdef".repeat(64 * 1024);
    let large = body.clone();
    let pod = origin().on("/large", move |_, peer| peer.respond("200 OK", &[], &large)).start();
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let mut client = TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None));

    let answer = client.get("a.test", "/large");
    assert!(answer.body == body.as_bytes());
    let head = format!("POST /up HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
    client.send(head.as_bytes()).expect("taken");
    client.send(body.as_bytes()).expect("taken");
    assert_eq!(client.answer().expect("an answer").status, 200);

    assert!(pod.received()[1].text() == body);
}

#[test]
fn pods_with_tls_are_reached_under_the_terms_of_the_transport() {
    let (dir, authority, ours) = (scratch(), Authority::new(), Authority::new());
    let pair = authority.issue_with(&["pod.internal"], Valid::Now, |params| {
        params.subject_alt_names.push(uri("spiffe://x/api"))
    });
    let pod = TlsOrigin::start(&pair, Some(&ours));
    std::fs::write(dir.path().join("ca.crt"), authority.pem()).expect("written");
    ours.issue(&["edge"]).write(dir.path(), "edge");
    let expired = TlsOrigin::start(&authority.issue_with(&["pod.internal"], Valid::NoMore, |_| {}), None);
    let proxy = proxy()
        .name("pod", pod.url())
        .name("expired", expired.url())
        .name("dir", dir.path().display().to_string())
        .config(
            "http:
  routers:
    good: { rule: 'Host(`good`)', service: good }
    skip: { rule: 'Host(`skip`)', service: skip }
    issuer: { rule: 'Host(`issuer`)', service: issuer }
    name: { rule: 'Host(`name`)', service: name }
    uri: { rule: 'Host(`uri`)', service: uri }
    expired: { rule: 'Host(`expired`)', service: expired }
    nobody: { rule: 'Host(`nobody`)', service: nobody }
  services:
    good: { loadBalancer: { serversTransport: good, servers: [{ url: '{pod}' }] } }
    skip: { loadBalancer: { serversTransport: skip, servers: [{ url: '{pod}' }] } }
    issuer: { loadBalancer: { serversTransport: issuer, servers: [{ url: '{pod}' }] } }
    name: { loadBalancer: { serversTransport: name, servers: [{ url: '{pod}' }] } }
    uri: { loadBalancer: { serversTransport: uri, servers: [{ url: '{pod}' }] } }
    expired: { loadBalancer: { serversTransport: good, servers: [{ url: '{expired}' }] } }
    nobody: { loadBalancer: { serversTransport: nobody, servers: [{ url: '{pod}' }] } }
  serversTransports:
    good: { serverName: pod.internal, rootCAs: ['{dir}/ca.crt'], peerCertURI: 'spiffe://x/api',
            certificates: [{ certFile: '{dir}/edge.crt', keyFile: '{dir}/edge.key' }], minVersion: VersionTLS13 }
    skip: { insecureSkipVerify: true, certificates: [{ certFile: '{dir}/edge.crt', keyFile: '{dir}/edge.key' }] }
    issuer: { serverName: pod.internal }
    name: { rootCAs: ['{dir}/ca.crt'] }
    uri: { serverName: pod.internal, rootCAs: ['{dir}/ca.crt'], peerCertURI: 'spiffe://x/other' }
    nobody: { serverName: pod.internal, rootCAs: ['{dir}/ca.crt'], maxVersion: VersionTLS12 }
",
        )
        .start();

    let good = proxy.get("good", "/x").expect(200).text();
    assert!(good.starts_with("sni pod.internal\nGET /x HTTP/1.1\r\n"), "{good}");
    assert_eq!(field(&good, "x-forwarded-proto").as_deref(), Some("http"));
    proxy.get("skip", "/").expect(200);
    for (host, reason) in [
        ("issuer", "unknown issuer"),
        ("name", "wrong name"),
        ("expired", "expired"),
        ("uri", "does not have the URI"),
        ("nobody", "ended the TLS handshake"),
    ] {
        proxy.get(host, "/").expect(502);
        eventually(&format!("{host}: the log names the reason"), || {
            proxy
                .log_lines()
                .iter()
                .any(|line| line.text("error").is_some_and(|error| error.contains(reason)))
        });
    }
    assert!(proxy.metric("sluicegate_upstream_connects_total{outcome=\"tls_failed\"}") >= 5.0);
}

#[test]
fn a_pods_answer_that_is_cut_is_not_passed_on_as_whole() {
    let (dir, authority) = (scratch(), Authority::new());
    let pod = TlsOrigin::start(&authority.issue(&["127.0.0.1"]), None);
    std::fs::write(dir.path().join("ca.crt"), authority.pem()).expect("written");
    let proxy = proxy()
        .name("pod", pod.url())
        .name("dir", dir.path().display().to_string())
        .config(
            "serversTransport: { rootCAs: ['{dir}/ca.crt'] }
http:
  routers: { r: { rule: 'PathPrefix(`/`)', service: s } }
  services: { s: { loadBalancer: { servers: [{ url: '{pod}' }] } } }
",
        )
        .start();

    assert_eq!(proxy.get("a.test", "/close").expect(200).text(), "all of it");
    assert!(proxy.client("a.test").try_get("/cut").is_err());
    for _ in 0..3 {
        proxy.get("a.test", "/").expect(200);
    }
    let (full, resumed) = pod.handshakes();
    assert!(full <= 2 && resumed >= 1, "sessions are resumed: {full} full, {resumed} resumed");
}

#[test]
fn a_client_is_told_that_an_answer_is_whole() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().get("/", "hello").start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);
    let mut client = TlsClient::open(proxy.address("web"), "a.test", &trusting(&authority, None));

    client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").expect("taken");

    let all = client.rest().expect("a clean end");
    assert!(all.ends_with(b"hello"));
}

#[test]
fn what_is_no_tls_at_all_is_counted_and_ended() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let proxy = secure(dir.path(), ONE, &pod);

    let mut client = Client::connect(proxy.address("web"), "a.test");
    client.send([22, 3, 1, 0, 5, 99, 99, 99, 99, 99]);
    let _ = client.rest();
    drop(TcpStream::connect(proxy.address("web")).expect("accepted"));

    eventually_equal("malformed handshakes", 1.0, || {
        proxy.metric("sluicegate_tls_handshakes_total{outcome=\"malformed\"}")
    });
    let config: Arc<rustls::ClientConfig> = trusting(&authority, None);
    assert_eq!(TlsClient::open(proxy.address("web"), "a.test", &config).get("a.test", "/").status, 200);
}

#[test]
fn connections_that_have_not_begun_do_not_hold_up_a_shutdown() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let mut proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .web(
            "transport: { respondingTimeouts: { headTimeout: 60s, handshakeTimeout: 60s }, \
             lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 60s } }",
        )
        .config(&format!(
            "http:\n  routers:\n    r: {{ rule: 'PathPrefix(`/`)', service: s, tls: {{}} }}\n  services:\n    \
             s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }}\n{ONE}"
        ))
        .start();
    let silent = Client::connect(proxy.address("web"), "a.test");
    let mut halfway = Client::connect(proxy.address("web"), "a.test");
    halfway.send([22, 3, 1]);
    eventually_equal("handshakes under way", 1.0, || proxy.metric("sluicegate_tls_handshakes_in_progress"));
    eventually_equal("connections", 2.0, || proxy.metric("sluicegate_connections_open"));

    proxy.signal("TERM");

    assert!(proxy.wait_exit().success());
    drop((silent, halfway));
}

#[test]
fn handshakes_under_way_end_when_their_entry_point_goes() {
    let (dir, authority, pod) = (scratch(), Authority::new(), origin().start());
    authority.issue(&["a.test"]).write(dir.path(), "a");
    let config = |more: &str| {
        format!(
            "entryPoints:
  web: {{ address: '127.0.0.1:0' }}{more}
http:
  routers:
    r: {{ rule: 'PathPrefix(`/`)', service: s, tls: {{}} }}
  services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{{pod}}' }}] }} }} }}
{ONE}"
        )
    };
    let times =
        "respondingTimeouts: { headTimeout: 60s, handshakeTimeout: 60s }, lifeCycle: { graceTimeOut: 60s }";
    let old = format!("\n  old: {{ address: '127.0.0.2:0', transport: {{ {times} }} }}");
    let proxy = proxy()
        .origin("pod", &pod)
        .name("dir", dir.path().display().to_string())
        .config(&config(&old))
        .start();
    let (web, gone) = (proxy.address("web"), proxy.address("old"));
    let trusts = trusting(&authority, None);
    let mut kept = TlsClient::open(web, "a.test", &trusts);
    assert_eq!(kept.get("a.test", "/").status, 200);
    let mut idle = TlsClient::open(gone, "a.test", &trusts);
    assert_eq!(idle.get("a.test", "/").status, 200);
    // One in the middle of its first message, one that has sent nothing but a beginning and goes on never, and
    // one whose handshake is done but whose request is still to come.
    let halfway = HalfOpen::begin(gone, "a.test", &trusts, 40);
    let mut stuck = Client::connect(gone, "a.test");
    stuck.send([22, 3, 1]);
    let mut done = TlsClient::open(gone, "a.test", &trusts);
    let under_way = "sluicegate_tls_handshakes_in_progress";
    eventually_equal("handshakes under way", 2.0, || proxy.metric(under_way));

    proxy.reload(&config(""));

    assert_eq!(done.get("a.test", "/done").status, 200);
    let mut halfway = halfway.go_on();
    assert_eq!(halfway.get("a.test", "/halfway").status, 200);
    assert!(halfway.rest().expect("a clean end").is_empty());
    assert!(idle.rest().expect("a clean end").is_empty());
    stuck.assert_closed();
    eventually_equal("handshakes under way", 0.0, || proxy.metric(under_way));
    crate::harness::client::await_refusal(gone);
    assert_eq!(kept.get("a.test", "/").status, 200, "on the connection that was there");
}
