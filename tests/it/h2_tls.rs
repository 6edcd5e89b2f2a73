//! HTTP/2 from clients with TLS: agreed on by ALPN, under the options of the name, told to go by GOAWAY.

use std::sync::Arc;

use bytes::Bytes;
use h2::Reason;
use rustls::ClientConfig;

use crate::harness::h2::{ask, connect_tls, read, request, run};
use crate::harness::tls::{Authority, TlsClient, configured};
use crate::harness::{Gate, Origin, Proxy, eventually, eventually_equal, origin, proxy, scratch};

/// An authority whose certificate for some names stands in a directory as `a.crt` and `a.key`.
struct Site {
    dir: tempfile::TempDir,
    authority: Authority,
}

impl Site {
    fn new() -> Self {
        let (dir, authority) = (scratch(), Authority::new());
        authority.issue(&["a.test", "b.test"]).write(dir.path(), "a");
        Self { dir, authority }
    }

    /// A proxy with a TLS router for each of the two names, and `options` in its `tls`.
    fn before(&self, pod: &Origin, b: &str, options: &str, web: &str) -> Proxy {
        let proxy = if web.is_empty() { proxy() } else { proxy().web(web) };
        proxy
            .origin("pod", pod)
            .name("dir", self.dir.path().display().to_string())
            .config(&format!(
                "http:\n  routers:\n    a: {{ rule: 'Host(`a.test`)', service: s, tls: {{}} }}\n    b: {{ rule: \
                 'Host(`b.test`)', service: s, tls: {{ {b} }} }}\n  services:\n    s: {{ loadBalancer: {{ \
                 servers: [{{ url: '{{pod}}' }}] }} }}\ntls:\n  certificates: [{{ certFile: '{{dir}}/a.crt', \
                 keyFile: '{{dir}}/a.key' }}]\n  options: {{ {options} }}\n"
            ))
            .start()
    }

    fn client(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        configured(&self.authority, None, rustls::ALL_VERSIONS, alpn)
    }
}

const BOTH: &[&str] = &["h2", "http/1.1"];

fn to(host: &str, method: &str, path: &str) -> http::request::Builder {
    http::Request::builder().method(method).uri(format!("https://{host}{path}"))
}

#[test]
fn http2_is_agreed_on_with_both_versions_of_tls() {
    let (site, pod) = (Site::new(), origin().start());
    let proxy = site.before(&pod, "", "", "");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = configured(&site.authority, None, &[version], BOTH);
        run(async {
            let mut send = connect_tls(proxy.address("web"), "a.test", &config).await;
            for number in 0..3 {
                let got = ask(&mut send, to("a.test", "GET", "/x"), "").await.unwrap();
                assert_eq!(got.status, 200, "{number}");
            }
            let body = Bytes::from(vec![b'x'; 300_000]);
            assert_eq!(ask(&mut send, to("a.test", "POST", "/x"), body).await.unwrap().status, 200);
        });
    }
    let last = pod.last();
    assert_eq!((last.body.len(), last.head.get("X-Forwarded-Proto")), (300_000, Some("https")));
    assert_eq!(proxy.metric("sluicegate_entrypoint_requests_total{protocol=\"http\"}"), 8.0);
}

#[test]
fn clients_that_do_not_offer_http2_get_http1() {
    let (site, pod) = (Site::new(), origin().start());
    let proxy = site.before(&pod, "", "", "");
    for alpn in [&["http/1.1"][..], &[]] {
        let mut client = TlsClient::open(proxy.address("web"), "a.test", &site.client(alpn));
        assert_eq!(client.session().alpn_protocol(), alpn.first().map(|name| name.as_bytes()));
        assert_eq!(client.get("a.test", "/x").status, 200);
    }
}

#[test]
fn alpn_is_as_the_options_of_the_name_have_it() {
    let (site, pod) = (Site::new(), origin().start());
    let proxy = site.before(
        &pod,
        "options: one",
        "one: { alpnProtocols: [http/1.1] }, default: { alpnProtocols: [h2] }",
        "",
    );
    let address = proxy.address("web");
    let mut client = TlsClient::open(address, "b.test", &site.client(BOTH));
    assert_eq!(client.session().alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(client.get("b.test", "/x").status, 200);
    assert!(TlsClient::connect(address, "b.test", &site.client(&["h2"])).is_err());
    assert!(TlsClient::connect(address, "a.test", &site.client(&["http/1.1"])).is_err());
    run(async {
        let mut send = connect_tls(address, "a.test", &site.client(BOTH)).await;
        assert_eq!(ask(&mut send, to("a.test", "GET", "/x"), "").await.unwrap().status, 200);
    });
    eventually_equal("handshakes without a protocol", 2.0, || {
        proxy.metric("sluicegate_tls_handshakes_total{outcome=\"no_protocol\"}")
    });
}

#[test]
fn a_request_for_a_host_with_other_options_is_misdirected_and_only_that() {
    let (site, pod) = (Site::new(), origin().start());
    let must = Authority::new();
    std::fs::write(site.dir.path().join("ca.crt"), must.pem()).expect("written");
    let options = "must: { clientAuth: { caFiles: ['{dir}/ca.crt'] } }";
    let proxy = site.before(&pod, "options: must", options, "");
    run(async {
        let mut send = connect_tls(proxy.address("web"), "a.test", &site.client(BOTH)).await;
        let got = ask(&mut send, to("b.test", "GET", "/x"), "").await.unwrap();
        assert_eq!((got.status, got.text().as_str()), (421, "Misdirected Request\n"));
        let got = ask(&mut send, to("a.test", "GET", "/x"), "").await.unwrap();
        assert_eq!(got.status, 200, "the connection serves its own name");
    });
    assert_eq!(pod.hits(), 1);
    let own = configured(&site.authority, Some(&must.issue(&["someone"])), rustls::ALL_VERSIONS, BOTH);
    run(async {
        let mut send = connect_tls(proxy.address("web"), "b.test", &own).await;
        assert_eq!(ask(&mut send, to("b.test", "GET", "/x"), "").await.unwrap().status, 200);
    });
}

/// A pod that answers `/slow` once the gate is open.
fn waiting_pod(gate: &Gate) -> Origin {
    let opened = gate.clone();
    origin()
        .on("/slow", move |_, peer| {
            opened.pass();
            peer.respond("200 OK", &[], "late");
        })
        .start()
}

#[test]
fn a_renewed_certificate_leaves_connections_and_their_streams_alone() {
    let gate = Gate::new();
    let (site, pod) = (Site::new(), waiting_pod(&gate));
    let proxy = site.before(&pod, "", "", "");
    run(async {
        let send = connect_tls(proxy.address("web"), "a.test", &site.client(BOTH)).await;
        let mut send = send.ready().await.unwrap();
        let (slow, _) = send.send_request(to("a.test", "GET", "/slow").body(()).unwrap(), true).unwrap();
        while pod.hits() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let before = proxy.generation();
        site.authority.issue(&["a.test", "b.test"]).write(site.dir.path(), "a");
        eventually("the new certificate is in use", || proxy.generation() > before);
        gate.open();
        assert_eq!(read(slow.await.unwrap()).await.unwrap().text(), "late");
        assert_eq!(ask(&mut send, to("a.test", "GET", "/x"), "").await.unwrap().status, 200);
    });
}

#[test]
fn a_shutdown_says_goaway_and_lets_what_is_under_way_end() {
    let gate = Gate::new();
    let (site, pod) = (Site::new(), waiting_pod(&gate));
    let web = "transport: { lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 9s } }";
    let mut proxy = site.before(&pod, "", "", web);
    run(async {
        let send = connect_tls(proxy.address("web"), "a.test", &site.client(BOTH)).await;
        let mut send = send.ready().await.unwrap();
        let (slow, _) = send.send_request(to("a.test", "GET", "/slow").body(()).unwrap(), true).unwrap();
        while pod.hits() == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        proxy.signal("TERM");
        // Until the GOAWAY has come a stream may still be opened.
        let refused = loop {
            match send.clone().ready().await {
                Err(error) => break error,
                Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        };
        assert!(refused.is_go_away() && refused.reason() == Some(Reason::NO_ERROR), "{refused:?}");
        gate.open();
        assert_eq!(read(slow.await.unwrap()).await.unwrap().text(), "late");
    });
    assert!(proxy.wait_exit().success());
}

#[test]
fn requests_of_both_protocols_come_to_one_port() {
    let (site, pod) = (Site::new(), origin().start());
    let proxy = site.before(&pod, "", "", "");
    run(async {
        let mut plain = crate::harness::h2::connect(proxy.address("web")).await;
        let got = ask(&mut plain, request("GET", "/x"), "").await.unwrap();
        assert_eq!(got.status, 404, "routers with TLS see TLS alone");
        let mut secure = connect_tls(proxy.address("web"), "a.test", &site.client(BOTH)).await;
        assert_eq!(ask(&mut secure, to("a.test", "GET", "/x"), "").await.unwrap().status, 200);
    });
}
