//! What the origin is told of the client, and which fields die at the proxy.

use crate::harness::wire::Head;
use crate::harness::{Origin, Proxy, origin, proxy};

/// Sends one GET with these fields and gives the head that the origin saw.
fn seen(proxy: &Proxy, origin: &Origin, fields: &[(&str, &str)]) -> Head {
    proxy.client("a.test").get_with("/", fields).expect(200);
    origin.last().head
}

fn untrusting() -> (Origin, Proxy) {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    (origin, proxy)
}

fn trusting(keys: &str) -> (Origin, Proxy) {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web(&format!("forwardedHeaders: {{ {keys} }}")).start();
    (origin, proxy)
}

#[test]
fn the_origin_learns_who_asked_for_what() {
    let (origin, proxy) = untrusting();

    let head = seen(&proxy, &origin, &[]);

    assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(head.get("X-Real-Ip"), Some("127.0.0.1"));
    assert_eq!(head.get("X-Forwarded-Proto"), Some("http"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("a.test"));
    assert_eq!(head.get("X-Forwarded-Port"), Some("80"));
    assert!(head.get("X-Forwarded-Server").is_some_and(|name| !name.is_empty()), "{:?}", head.raw);
}

#[test]
fn the_forwarded_port_is_the_one_in_host() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    proxy.get("a.test:8443", "/").expect(200);

    let head = origin.last().head;
    assert_eq!(head.get("X-Forwarded-Port"), Some("8443"));
    assert_eq!(head.get("X-Forwarded-Host"), Some("a.test:8443"));
}

const CLAIMS: &[(&str, &str)] = &[
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Proto", "https"),
    ("X-Forwarded-Host", "evil.test"),
    ("X-Forwarded-Port", "60666"),
    ("X-Forwarded-Server", "evil"),
    ("X-Forwarded-Uri", "/evil"),
    ("X-Forwarded-Method", "EVIL"),
    ("X-Forwarded-Prefix", "/evil"),
    ("X-Forwarded-Tls-Client-Cert", "evil"),
    ("X-Forwarded-Tls-Client-Cert-Info", "evil"),
    ("X-Real-Ip", "6.6.6.6"),
];

fn assert_no_claim(head: &Head) {
    let raw = head.raw.to_lowercase();
    for lie in ["evil", "6.6.6.6", "60666", "https"] {
        assert!(!raw.contains(lie), "{lie} reached the origin: {:?}", head.raw);
    }
}

#[test]
fn a_stranger_is_believed_nothing() {
    let (origin, proxy) = untrusting();

    let head = seen(&proxy, &origin, CLAIMS);

    assert_no_claim(&head);
    assert_eq!(head.get("X-Forwarded-For"), Some("127.0.0.1"));
    assert_eq!(head.get("X-Forwarded-Proto"), Some("http"));
}

#[test]
fn a_stranger_is_believed_nothing_in_any_spelling() {
    let (origin, proxy) = untrusting();

    for respell in [
        |name: &str| name.replace('-', "_"),
        |name: &str| name.replacen('-', "_", 1),
        |name: &str| name.to_uppercase().replace('-', "_"),
        |name: &str| name.to_lowercase(),
    ] {
        let claims: Vec<_> = CLAIMS.iter().map(|(name, value)| (respell(name), *value)).collect();
        let fields: Vec<_> = claims.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_no_claim(&seen(&proxy, &origin, &fields));
    }
}

#[test]
fn a_stranger_is_believed_nothing_however_often_it_says_it() {
    let (origin, proxy) = untrusting();

    let twice: Vec<_> = CLAIMS.iter().chain(CLAIMS).copied().collect();

    assert_no_claim(&seen(&proxy, &origin, &twice));
}

#[test]
fn rfc_7239_and_its_cousins_from_a_stranger_are_dropped() {
    let (origin, proxy) = untrusting();

    let head = seen(&proxy, &origin, &[("Forwarded", "for=6.6.6.6;host=evil.test;proto=https")]);

    assert!(!head.has("Forwarded"), "{:?}", head.raw);
    assert_no_claim(&head);
}

#[test]
fn a_trusted_peer_is_believed_and_the_peer_is_appended() {
    for keys in ["insecure: true", "trustedIPs: [\"127.0.0.0/8\"]", "trustedIPs: [\"127.0.0.1\"]"] {
        let (origin, proxy) = trusting(keys);

        let head = seen(
            &proxy,
            &origin,
            &[
                ("X-Forwarded-For", "1.2.3.4"),
                ("X-Forwarded-For", "5.6.7.8"),
                ("X-Forwarded-Proto", "https"),
                ("X-Forwarded-Host", "shop.test"),
                ("X-Forwarded-Prefix", "/shop"),
                ("X-Real-Ip", "1.2.3.4"),
                ("X-Forwarded-Server", "other"),
            ],
        );

        assert_eq!(head.get("X-Forwarded-For"), Some("1.2.3.4, 5.6.7.8, 127.0.0.1"), "{keys}");
        assert_eq!(head.get("X-Forwarded-Proto"), Some("https"), "{keys}");
        assert_eq!(head.get("X-Forwarded-Port"), Some("443"), "{keys}");
        assert_eq!(head.get("X-Forwarded-Host"), Some("shop.test"), "{keys}");
        assert_eq!(head.get("X-Forwarded-Prefix"), Some("/shop"), "{keys}");
        assert_eq!(head.get("X-Real-Ip"), Some("1.2.3.4"), "{keys}");
        assert_ne!(head.get("X-Forwarded-Server"), Some("other"), "always our own");
    }
}

#[test]
fn a_peer_outside_the_trusted_ranges_is_a_stranger() {
    let (origin, proxy) = trusting("trustedIPs: [\"10.0.0.0/8\", \"::1\"]");

    assert_no_claim(&seen(&proxy, &origin, CLAIMS));
}

#[test]
fn nothing_is_appended_where_that_is_asked_for() {
    let (origin, proxy) = trusting("insecure: true, notAppendXForwardedFor: true");

    let head = seen(&proxy, &origin, &[("X-Forwarded-For", "1.2.3.4")]);

    assert_eq!(head.get("X-Forwarded-For"), Some("1.2.3.4"));
}

#[test]
fn hop_by_hop_fields_of_a_request_die_here() {
    let (origin, proxy) = untrusting();

    let head = seen(
        &proxy,
        &origin,
        &[
            ("Connection", "keep-alive"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Connection", "keep-alive"),
            ("Proxy-Authorization", "Basic eDp5"),
            ("Proxy-Authenticate", "Basic"),
            ("TE", "gzip"),
            ("Upgrade", "websocket"),
            ("Trailer", "X-Sum"),
            ("X-End-To-End", "stays"),
        ],
    );

    for dead in [
        "Keep-Alive",
        "Proxy-Connection",
        "Proxy-Authorization",
        "Proxy-Authenticate",
        "TE",
        "Upgrade",
        "Trailer",
    ] {
        assert!(!head.has(dead), "{dead} in {:?}", head.raw);
    }
    assert_eq!(head.get("X-End-To-End"), Some("stays"));
}

#[test]
fn te_passes_as_trailers_only() {
    let (origin, proxy) = untrusting();

    let head = seen(&proxy, &origin, &[("TE", "gzip;q=0.5, trailers"), ("Connection", "TE")]);

    assert!(matches!(head.get("TE"), None | Some("trailers")), "{:?}", head.raw);
}

// The bug it keeps away: only the first `Connection` line was read, so that fields named in a second one went on.
#[test]
fn fields_named_in_any_connection_line_die_here() {
    let (origin, proxy) = untrusting();

    let head = seen(
        &proxy,
        &origin,
        &[
            ("Connection", "X-One, x-two"),
            ("X-One", "1"),
            ("X-Two", "2"),
            ("X-Two", "2 again"),
            ("X-Three", "3"),
            ("Connection", " ,X-THREE,,"),
            ("X-Four", "4"),
        ],
    );

    for dead in ["X-One", "X-Two", "X-Three", "Connection"] {
        assert!(!head.has(dead), "{dead} in {:?}", head.raw);
    }
    assert_eq!(head.get("X-Four"), Some("4"));
}

#[test]
fn connection_cannot_strip_what_the_proxy_says_of_the_client() {
    let (origin, proxy) = untrusting();

    let named = "X-Real-Ip, X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, X-Forwarded-Port, Host, Content-Length";
    proxy.client("a.test").request("POST", "/", &[("Connection", named)], b"body").expect(200);

    let seen = origin.last();
    for kept in
        ["X-Real-Ip", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "Host"]
    {
        assert!(seen.head.has(kept), "{kept} not in {:?}", seen.head.raw);
    }
    assert_eq!(seen.text(), "body");
}

#[test]
fn hop_by_hop_fields_of_an_answer_die_here() {
    let origin = origin()
        .raw(
            "/",
            "HTTP/1.1 200 OK\r\nConnection: close, X-One\r\nX-One: 1\r\nConnection: x-two\r\nX-Two: 2\r\n\
             Keep-Alive: timeout=5\r\nProxy-Connection: close\r\nProxy-Authenticate: Basic\r\nUpgrade: h2c\r\n\
             X-Three: 3\r\nContent-Length: 2\r\n\r\nok",
        )
        .start();
    let proxy = proxy().all_to(&origin).start();

    let answer = proxy.get("a.test", "/").expect(200);

    for dead in ["X-One", "X-Two", "Keep-Alive", "Proxy-Connection", "Upgrade", "Connection"] {
        assert!(!answer.head.has(dead), "{dead} in {:?}", answer.head.raw);
    }
    assert_eq!(answer.header("X-Three"), Some("3"));
    assert_eq!(answer.text(), "ok");
}

#[test]
fn fields_of_a_request_pass_repeated_and_unchanged() {
    let (origin, proxy) = untrusting();

    let head = seen(
        &proxy,
        &origin,
        &[
            ("Cookie", "a=1; b=2"),
            ("X-Many", "1"),
            ("X-Many", "2"),
            ("Authorization", "Bearer x.y.z"),
            ("X-Empty", ""),
            ("Accept", "*/*, text/html;q=0.5"),
        ],
    );

    assert_eq!(head.get("Cookie"), Some("a=1; b=2"));
    assert_eq!(head.all("X-Many"), ["1", "2"]);
    assert_eq!(head.get("Authorization"), Some("Bearer x.y.z"));
    assert_eq!(head.get("X-Empty"), Some(""));
    assert_eq!(head.get("Accept"), Some("*/*, text/html;q=0.5"));
    for never in ["User-Agent", "Via", "Accept-Encoding", "Content-Length", "Transfer-Encoding"] {
        assert!(!head.has(never), "{never} in {:?}", head.raw);
    }
}

#[test]
fn names_with_underscores_pass_or_die_or_are_refused_as_configured() {
    let origin = origin().start();
    for (strategy, status, reaches) in [("keep", 200, true), ("delete", 200, false), ("reject", 400, false)] {
        let proxy = proxy()
            .all_to(&origin)
            .web(&format!("http: {{ underscoreHeadersStrategy: {strategy} }}"))
            .start();
        origin.forget();

        proxy.client("a.test").get_with("/", &[("X_Custom", "1")]).expect(status);

        assert_eq!(
            origin.received().iter().any(|request| request.head.has("X_Custom")),
            reaches,
            "{strategy}"
        );
    }
}
