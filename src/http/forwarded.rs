//! Who the client says it is, and who it is: `X-Forwarded-*`, `X-Real-Ip`, `Forwarded`.
//!
//! Fields of strangers are dropped, in every spelling a pod might read; what is true is set, as
//! Traefik sets it (`X-Forwarded-For` grows by the peer only when the request leaves).

use std::net::{IpAddr, SocketAddr};

use bytes::BytesMut;
use http::header::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::client_ip::IpSet;
use super::head::RequestHead;
use crate::http::fields::Fields;
use crate::http::value;

/// `X-Forwarded-For`.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_SERVER: HeaderName = HeaderName::from_static("x-forwarded-server");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

const HTTP: HeaderValue = HeaderValue::from_static("http");
const HTTPS: HeaderValue = HeaderValue::from_static("https");
const WS: HeaderValue = HeaderValue::from_static("ws");
const WSS: HeaderValue = HeaderValue::from_static("wss");
const PORT_80: HeaderValue = HeaderValue::from_static("80");
const PORT_443: HeaderValue = HeaderValue::from_static("443");

/// Whom an entry point believes.
#[derive(Clone, Debug, PartialEq)]
pub struct Forwarded {
    /// Everybody (`forwardedHeaders.insecure`).
    pub insecure: bool,
    /// Peers that are believed.
    pub trusted: IpSet,
    /// Whether the peer is appended to `X-Forwarded-For`.
    pub append: bool,
    /// Fields named in `Connection` that middlewares may still see.
    pub connection: Vec<HeaderName>,
    /// The name of this host, for `X-Forwarded-Server`.
    pub server: HeaderValue,
}

/// What the fields say of one connection; made once for it.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address, an IPv4 one never in its IPv6-mapped form.
    pub addr: SocketAddr,
    /// Its address as a field value.
    pub ip: HeaderValue,
    /// Whether its connection is TLS.
    pub tls: bool,
}

impl Peer {
    /// Takes an accepted connection's address.
    pub fn new(addr: SocketAddr, tls: bool) -> Self {
        let addr = SocketAddr::new(addr.ip().to_canonical(), addr.port());
        let ip = HeaderValue::try_from(addr.ip().to_string()).expect("an address is visible ASCII");
        Self { addr, ip, tls }
    }
}

/// How the request will go on, as `X-Forwarded-Proto` says it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A request with one answer.
    Plain,
    /// A WebSocket.
    WebSocket,
}

impl Forwarded {
    /// Whether the peer's own forwarding fields are believed.
    pub fn trusts(&self, ip: IpAddr) -> bool {
        self.insecure || self.trusted.contains(ip)
    }

    /// Sorts out what came: before routing and before any middleware.
    ///
    /// `port` is the one in the authority. `named` are the fields that `Connection` named. They are dropped, except the ones set here and
    /// those that `connection` lets middlewares see.
    pub fn receive(
        &self,
        head: &mut RequestHead,
        port: Option<u16>,
        peer: &Peer,
        kind: Kind,
        named: &[HeaderName],
    ) {
        let headers = &mut head.headers;
        let trusted = self.trusts(peer.addr.ip());
        for name in named {
            if !is_managed(name) && !self.connection.contains(name) {
                headers.remove(name);
            }
        }
        if !trusted {
            drop_claims(headers);
        }
        set_if_absent(headers, trusted, X_REAL_IP, || peer.ip.clone());
        set_if_absent(headers, trusted, X_FORWARDED_PROTO, || match (kind, peer.tls) {
            (Kind::Plain, false) => HTTP,
            (Kind::Plain, true) => HTTPS,
            (Kind::WebSocket, false) => WS,
            (Kind::WebSocket, true) => WSS,
        });
        let secure = peer.tls
            || trusted && headers.get(X_FORWARDED_PROTO).is_some_and(|proto| proto == HTTPS || proto == WSS);
        set_if_absent(headers, trusted, X_FORWARDED_PORT, || port_value(port, secure));
        set_if_absent(headers, trusted, X_FORWARDED_HOST, || {
            HeaderValue::from_maybe_shared(head.authority.clone().into_bytes())
                .unwrap_or_else(|_| HeaderValue::from_static(""))
        });
        if trusted {
            headers.insert(X_FORWARDED_SERVER, self.server.clone());
        } else {
            headers.append(X_FORWARDED_SERVER, self.server.clone());
        }
    }

    /// Makes `X-Forwarded-For` one line, adds the peer to it and drops the last of what `Connection` named: just before
    /// the request leaves.
    pub fn send(&self, headers: &mut Fields, peer: &Peer, named: &[HeaderName]) {
        for name in named {
            if !is_managed(name) {
                headers.remove(name);
            }
        }
        let own = self.append.then_some(&peer.ip);
        if !headers.contains_key(X_FORWARDED_FOR) {
            if let Some(own) = own {
                headers.append(X_FORWARDED_FOR, own.clone());
            }
            return;
        }
        // One line, also when nothing is appended: a pod may look at one line only.
        let mut joined = BytesMut::new();
        for (index, value) in headers.get_all(X_FORWARDED_FOR).chain(own).enumerate() {
            if index > 0 {
                joined.extend_from_slice(b", ");
            }
            joined.extend_from_slice(value.as_bytes());
        }
        if let Ok(value) = HeaderValue::from_maybe_shared(joined.freeze()) {
            headers.insert(X_FORWARDED_FOR, value);
        }
    }
}

fn set_if_absent(headers: &mut Fields, look: bool, name: HeaderName, value: impl FnOnce() -> HeaderValue) {
    if !look {
        // Without trust the claims are gone already, and look-ups are saved.
        headers.append(name, value());
    } else if headers.get(&name).is_none_or(HeaderValue::is_empty) {
        headers.insert(name, value());
    }
}

fn port_value(port: Option<u16>, secure: bool) -> HeaderValue {
    match port {
        None if secure => PORT_443,
        None | Some(80) => PORT_80,
        Some(443) => PORT_443,
        Some(port) => value::number(port.into()),
    }
}

/// Fields that tell of the client and are set by us, so that nobody can have them removed.
fn is_managed(name: &HeaderName) -> bool {
    is_claim(name.as_str())
}

/// What only a trusted proxy may say, in the spellings of servers that read `_` as `-`.
pub(super) fn is_claim(name: &str) -> bool {
    const WITH_SUFFIX: &[u8] = b"x-forwarded-";
    let bytes = name.as_bytes();
    let same = |pattern: &[u8]| {
        bytes.len() >= pattern.len()
            && bytes
                .iter()
                .zip(pattern)
                .all(|(byte, wanted)| byte == wanted || (*byte == b'_' && *wanted == b'-'))
    };
    match bytes.first() {
        Some(b'f') => name == "forwarded",
        Some(b'x') => same(WITH_SUFFIX) || (bytes.len() == 9 && same(b"x-real-ip")) || name == "x-forwarded",
        _ => false,
    }
}

fn drop_claims(headers: &mut Fields) {
    let claims: SmallVec<[HeaderName; 4]> =
        headers.keys().filter(|name| is_claim(name.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, Version};

    use super::*;
    use crate::http::client_ip::parse_range;
    use crate::http::text::Text;

    /// Of `a.test:8080`.
    const PORT: Option<u16> = Some(8080);

    fn forwarded(trusted: &[&str]) -> Forwarded {
        Forwarded {
            insecure: false,
            trusted: IpSet::new(trusted.iter().map(|range| parse_range(range).expect("a range"))),
            append: true,
            connection: Vec::new(),
            server: HeaderValue::from_static("edge-1"),
        }
    }

    fn head(fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut headers = Fields::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        RequestHead {
            method: Method::GET,
            path: Text::from_static("/"),
            query: None,
            authority: Text::from_static("a.test:8080"),
            version: Version::HTTP_11,
            headers,
        }
    }

    fn peer() -> Peer {
        Peer::new("[::ffff:10.1.2.3]:5000".parse().unwrap(), false)
    }

    #[test]
    fn what_a_stranger_claims_is_replaced_by_what_is_true() {
        let mut head = head(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", "https"),
            ("x_forwarded_for", "6.6.6.6"),
            ("x-forwarded_host", "evil"),
            ("x_real_ip", "6.6.6.6"),
            ("x-forwarded-tls-client-cert", "x"),
            ("forwarded", "for=6.6.6.6"),
            ("x-custom", "kept"),
        ]);
        let rules = forwarded(&["192.168.0.0/16"]);
        rules.receive(&mut head, PORT, &peer(), Kind::Plain, &[]);
        rules.send(&mut head.headers, &peer(), &[]);
        let mut fields: Vec<_> =
            head.headers.iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        fields.sort();
        assert_eq!(
            fields,
            [
                "x-custom=kept",
                "x-forwarded-for=10.1.2.3",
                "x-forwarded-host=a.test:8080",
                "x-forwarded-port=8080",
                "x-forwarded-proto=http",
                "x-forwarded-server=edge-1",
                "x-real-ip=10.1.2.3",
            ]
        );
    }

    #[test]
    fn a_trusted_peer_is_believed_and_its_list_grows_by_it() {
        let mut head = head(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "1.2.3.4"),
        ]);
        head.authority = Text::from_static("a.test");
        let rules = forwarded(&["10.0.0.0/8"]);
        rules.receive(&mut head, None, &peer(), Kind::Plain, &[]);
        rules.send(&mut head.headers, &peer(), &[]);
        assert_eq!(head.headers["x-forwarded-for"], "1.2.3.4, 5.6.7.8, 10.1.2.3");
        assert_eq!(head.headers["x-forwarded-port"], "443");
        assert_eq!(head.headers["x-real-ip"], "1.2.3.4");
    }

    #[test]
    fn a_trusted_list_of_several_lines_goes_on_as_one_even_when_nothing_is_appended() {
        let mut head = head(&[("x-forwarded-for", "1.2.3.4"), ("x-forwarded-for", "5.6.7.8, 9.9.9.9")]);
        let mut rules = forwarded(&["10.0.0.0/8"]);
        rules.append = false;
        rules.receive(&mut head, PORT, &peer(), Kind::Plain, &[]);
        rules.send(&mut head.headers, &peer(), &[]);
        let lines: Vec<_> = head.headers.get_all("x-forwarded-for").collect();
        assert_eq!(lines, ["1.2.3.4, 5.6.7.8, 9.9.9.9"]);
    }

    #[test]
    fn a_field_named_in_connection_dies_but_ours_cannot_be_named_away() {
        let mut head = head(&[("x-a", "1"), ("x-b", "2")]);
        let named =
            [HeaderName::from_static("x-a"), HeaderName::from_static("x-b"), X_REAL_IP, X_FORWARDED_FOR];
        let mut rules = forwarded(&[]);
        rules.connection.push(HeaderName::from_static("x-b"));
        rules.receive(&mut head, PORT, &peer(), Kind::WebSocket, &named);
        assert!(!head.headers.contains_key("x-a"));
        assert!(head.headers.contains_key("x-b"), "middlewares may see it");
        rules.send(&mut head.headers, &peer(), &named);
        assert!(!head.headers.contains_key("x-b"));
        assert_eq!(head.headers["x-real-ip"], "10.1.2.3");
        assert_eq!(head.headers["x-forwarded-for"], "10.1.2.3");
        assert_eq!(head.headers["x-forwarded-proto"], "ws");
    }
}
