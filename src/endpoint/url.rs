//! The url of a server, as written under `loadBalancer.servers`, and its parts. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use crate::http::text::Text;

/// Longest url taken, in bytes: far more than a host name (253) and a sensible path prefix need.
const MAX_URL: usize = 2_048;

/// Longest host name, in characters (RFC 1035 §2.3.4, less the length octets).
const MAX_HOST: usize = 253;

/// What an endpoint speaks.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Scheme {
    /// HTTP/1.1 without TLS.
    Http,
    /// With TLS.
    Https,
    /// HTTP/2 without TLS, from the first byte on.
    H2c,
}

impl Scheme {
    /// The scheme as a url has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
        }
    }

    /// The port that a url without one means.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http | Self::H2c => 80,
            Self::Https => 443,
        }
    }
}

/// Why a server's url cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ServerUrlError {
    /// Too long to be meant.
    #[error("longer than {MAX_URL} bytes")]
    TooLong,
    /// `10.0.0.1:8080`, say.
    #[error("no scheme: expected http://host:port or https://host:port")]
    NoScheme,
    /// Nobody has it.
    #[error("unknown scheme {0:?}: expected http, https or h2c")]
    UnknownScheme(String),
    /// `http:///path`.
    #[error("no host: expected http://host:port")]
    NoHost,
    /// `user:password@`: it would be sent to nobody and shown in logs.
    #[error("user and password in the url are not supported")]
    UserInfo,
    /// Neither a name nor an address.
    #[error("bad host {0:?}: expected a name, an IPv4 address or an IPv6 address in brackets")]
    BadHost(String),
    /// Not 1 to 65535.
    #[error("bad port {0:?}: expected 1 to 65535")]
    BadPort(String),
    /// Bytes that a path cannot have unescaped.
    #[error("bad path {0:?}: only visible ASCII is allowed, anything else must be escaped as %XX")]
    BadPath(String),
}

/// Where a server is.
///
/// Invariant: built only by [`ServerUrl::parse`], so host, port and path can go on the wire as they are.
/// Cheap to clone.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ServerUrl {
    written: Arc<str>,
    scheme: Scheme,
    host: Text,
    port: u16,
    authority: Text,
    address: Option<SocketAddr>,
    path: Option<Text>,
}

impl ServerUrl {
    /// Reads `http://host[:port][/path]`.
    ///
    /// A query or a fragment is dropped, as in Traefik. Errors never repeat a user or password.
    pub fn parse(url: &str) -> Result<Self, ServerUrlError> {
        if url.len() > MAX_URL {
            return Err(ServerUrlError::TooLong);
        }
        let (scheme, rest) = url.split_once("://").ok_or(ServerUrlError::NoScheme)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "h2c" => Scheme::H2c,
            _ => return Err(ServerUrlError::UnknownScheme(scheme.to_owned())),
        };
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
        if authority.contains('@') {
            return Err(ServerUrlError::UserInfo);
        }
        let (host, port) = split_port(authority)?;
        if host.is_empty() {
            return Err(ServerUrlError::NoHost);
        }
        let ip = parse_host(host)?;
        let port = match port {
            None => scheme.default_port(),
            Some(digits) => parse_port(digits)?,
        };
        if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(ServerUrlError::BadPath(path.to_owned()));
        }
        let path = path.trim_end_matches('/');
        Ok(Self {
            written: url.into(),
            scheme,
            // Brackets are of the url, not of the host.
            host: Text::copy_from(host.trim_start_matches('[').trim_end_matches(']')),
            port,
            authority: Text::copy_from(authority.strip_suffix(':').unwrap_or(authority)),
            address: ip.map(|ip| SocketAddr::new(ip, port)),
            path: (!path.is_empty()).then(|| Text::copy_from(path)),
        })
    }

    /// The url as written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// The url as written, to keep.
    pub fn written(&self) -> &Arc<str> {
        &self.written
    }

    /// What the server speaks.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// A name or an address; without brackets.
    pub fn host(&self) -> &str {
        self.host.as_str()
    }

    /// 1 to 65535; the scheme's own when none is written.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Host and port as written: the `Host` of a request when `passHostHeader` is false.
    pub fn authority(&self) -> &Text {
        &self.authority
    }

    /// Where to connect to, when the host is an address; a name must be resolved first.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The same server at one of the addresses that its name stands for: it is known by the address, and still asked
    /// by its name (`Host`, server name of TLS).
    #[must_use]
    pub fn at(&self, ip: IpAddr) -> Self {
        let address = SocketAddr::new(ip, self.port);
        let path = self.path.as_ref().map_or("", Text::as_str);
        let written = format!("{}://{address}{path}", self.scheme.as_str()).into();
        Self { written, address: Some(address), ..self.clone() }
    }

    /// The escaped path without a slash at its end; none when it is empty or `/`.
    pub fn path(&self) -> Option<&Text> {
        self.path.as_ref()
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), ServerUrlError> {
    let bad = || ServerUrlError::BadHost(authority.to_owned());
    let (host, rest) = if authority.starts_with('[') {
        authority.split_at(authority.find(']').ok_or_else(bad)? + 1)
    } else {
        authority.split_at(authority.find(':').unwrap_or(authority.len()))
    };
    match rest.strip_prefix(':') {
        // An empty port means the default (RFC 3986 §3.2.3).
        None if rest.is_empty() => Ok((host, None)),
        Some("") => Ok((host, None)),
        // An IPv6 address without brackets, most likely.
        Some(port) if port.contains(':') => Err(bad()),
        Some(port) => Ok((host, Some(port))),
        None => Err(bad()),
    }
}

fn parse_host(host: &str) -> Result<Option<IpAddr>, ServerUrlError> {
    let bad = || ServerUrlError::BadHost(host.to_owned());
    if let Some(inner) = host.strip_prefix('[') {
        let inner = inner.strip_suffix(']').ok_or_else(bad)?;
        return inner.parse::<Ipv6Addr>().map(|ip| Some(ip.into())).map_err(|_| bad());
    }
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Some(ip.into()));
    }
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    // The last label of a name has a letter, or else it is meant as an address (and is a wrong one).
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or("");
    let numeric = last.bytes().all(|byte| byte.is_ascii_digit());
    if host.len() > MAX_HOST || host.starts_with('.') || numeric || !host.bytes().all(is_name) {
        return Err(bad());
    }
    Ok(None)
}

fn parse_port(digits: &str) -> Result<u16, ServerUrlError> {
    // `u16::from_str` takes a leading `+`.
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    match digits.parse() {
        Ok(port) if plain && port > 0 => Ok(port),
        _ => Err(ServerUrlError::BadPort(digits.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> ServerUrl {
        ServerUrl::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn a_name_at_an_address_is_known_by_it_and_asked_by_name() {
        let url = ServerUrl::parse("https://pods.test:8443/v1/").unwrap();
        for (ip, known) in
            [("10.0.0.7", "https://10.0.0.7:8443/v1"), ("fd00::7", "https://[fd00::7]:8443/v1")]
        {
            let ip: IpAddr = ip.parse().unwrap();
            let at = url.at(ip);
            assert_eq!(at.as_str(), known);
            assert_eq!(at.address(), Some(SocketAddr::new(ip, 8443)));
            assert_eq!((at.host(), at.authority().as_str()), ("pods.test", "pods.test:8443"));
            assert_eq!(at.path().map(Text::as_str), Some("/v1"));
        }
    }

    #[test]
    fn a_url_falls_into_its_parts() {
        let url = parse("http://10.0.0.1:8080/base/?q#f");
        assert_eq!(url.as_str(), "http://10.0.0.1:8080/base/?q#f");
        assert_eq!((url.host(), url.port()), ("10.0.0.1", 8080));
        assert_eq!(url.authority().as_str(), "10.0.0.1:8080");
        assert_eq!(url.address(), Some(([10, 0, 0, 1], 8080).into()));
        assert_eq!(url.path().map(Text::as_str), Some("/base"));
    }

    #[test]
    fn the_port_defaults_to_80_and_the_authority_stays_as_written() {
        for (written, authority) in
            [("http://Pod-1.svc", "Pod-1.svc"), ("HTTP://Pod-1.svc/", "Pod-1.svc"), ("http://a:/", "a")]
        {
            let url = parse(written);
            assert_eq!(url.port(), 80, "{written}");
            assert_eq!(url.authority().as_str(), authority, "{written}");
            assert_eq!(url.address(), None, "{written}");
            assert_eq!(url.path(), None, "{written}");
        }
    }

    #[test]
    fn an_ipv6_address_loses_its_brackets_as_a_host_only() {
        let url = parse("http://[::1]:81");
        assert_eq!(url.host(), "::1");
        assert_eq!(url.authority().as_str(), "[::1]:81");
        assert_eq!(url.address(), "[::1]:81".parse().ok());
    }

    #[test]
    fn what_is_no_server_is_refused_by_its_own_reason() {
        use ServerUrlError as E;
        let long = format!("http://a/{}", "x".repeat(MAX_URL));
        for (url, error) in [
            ("", E::NoScheme),
            ("10.0.0.1:80", E::NoScheme),
            ("ftp://a", E::UnknownScheme("ftp".into())),
            ("http://", E::NoHost),
            ("http:///x", E::NoHost),
            ("http://:80", E::NoHost),
            ("http://user:secret@a/", E::UserInfo),
            ("http://a b/", E::BadHost("a b".into())),
            ("http://::1/", E::BadHost("::1".into())),
            ("http://[::1/", E::BadHost("[::1".into())),
            ("http://[::1]x/", E::BadHost("[::1]x".into())),
            ("http://[a]/", E::BadHost("[a]".into())),
            ("http://10.0.0.256/", E::BadHost("10.0.0.256".into())),
            ("http://a%2fb/", E::BadHost("a%2fb".into())),
            ("http://a:0", E::BadPort("0".into())),
            ("http://a:+80", E::BadPort("+80".into())),
            ("http://a:65536", E::BadPort("65536".into())),
            ("http://a/\r\nx", E::BadPath("/\r\nx".into())),
            ("http://a/ä", E::BadPath("/ä".into())),
            (long.as_str(), E::TooLong),
        ] {
            assert_eq!(ServerUrl::parse(url), Err(error), "{url}");
        }
    }

    #[test]
    fn no_error_repeats_a_password() {
        let error = ServerUrl::parse("http://user:hunter2@a/").expect_err("userinfo is refused");
        assert!(!error.to_string().contains("hunter2"));
    }
}
