//! Whatever fields a stranger sends, and whatever it names in `Connection`: the pod is told the truth.

#![no_main]

use std::net::SocketAddr;

use bytes::Bytes;
use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use sluicegate::http::client_ip::IpSet;
use sluicegate::http::fields::Fields;
use sluicegate::http::forwarded::{Forwarded, Kind, Peer};
use sluicegate::http::h1::parse::{self, HeadLimits, LineEnds};

const LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 200 };

fuzz_target!(|fields: &[u8]| {
    let mut head = b"GET / HTTP/1.1\r\nHost: a.test\r\n".to_vec();
    head.extend_from_slice(fields);
    head.extend_from_slice(b"\r\n\r\n");
    let Ok(parsed) = parse::request(Bytes::from(head), &LineEnds::default(), &LIMITS, None) else { return };
    let address: SocketAddr = "192.0.2.7:1234".parse().expect("an address");
    for trusted in [false, true] {
        let forwarded = Forwarded {
            insecure: trusted,
            trusted: IpSet::default(),
            append: true,
            connection: Vec::new(),
            server: HeaderValue::from_static("here"),
        };
        let peer = Peer::new(address, false);
        let mut head = parsed.head.clone();
        forwarded.receive(&mut head, parsed.authority.port, &peer, Kind::Plain, &parsed.named);
        forwarded.send(&mut head.headers, &peer, &parsed.named);
        assert_eq!(only(&head.headers, "x-forwarded-server"), b"here");
        let chain = only(&head.headers, "x-forwarded-for").to_vec();
        assert!(chain.ends_with(b"192.0.2.7"), "{chain:?}");
        if trusted {
            continue;
        }
        assert_eq!(chain, b"192.0.2.7");
        assert_eq!(only(&head.headers, "x-real-ip"), b"192.0.2.7");
        assert_eq!(only(&head.headers, "x-forwarded-host"), b"a.test");
        assert_eq!(only(&head.headers, "x-forwarded-proto"), b"http");
        assert_eq!(only(&head.headers, "x-forwarded-port"), b"80");
        for name in head.headers.keys() {
            let plain = name.as_str().replace('_', "-");
            let claims = plain == "forwarded" || plain == "x-real-ip" || plain.starts_with("x-forwarded-");
            let ours = ["for", "host", "port", "proto", "server"]
                .iter()
                .any(|word| name.as_str() == format!("x-forwarded-{word}"));
            assert!(!claims || ours || name.as_str() == "x-real-ip", "{name}");
            assert!(ours || name == "x-real-ip" || !parsed.named.contains(name), "{name} was named");
        }
    }
});

fn only<'a>(headers: &'a Fields, name: &'a str) -> &'a [u8] {
    let mut values = headers.get_all(name);
    let value = values.next().expect("is set");
    assert!(values.next().is_none(), "{name} twice");
    value.as_bytes()
}
