//! Host and port of a request (`Host`, `:authority`), checked and made ready to compare.
//!
//! Never: allocation for a host that is lower case already, DNS, internationalised names.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use super::text::Text;

/// Bytes of a host: a DNS name has 253 and a dot.
const MAX_HOST_BYTES: usize = 255;

/// A checked `host[:port]` (RFC 9110 §7.2, RFC 3986 §3.2.2).
///
/// Invariant: built only by [`Authority::parse`], so host and port are well formed ASCII.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Authority<'a> {
    /// A name or an IPv4 address, or an IPv6 address in brackets.
    host: &'a str,
    port: Option<u16>,
}

impl<'a> Authority<'a> {
    /// Checks the value of a `Host` field or `:authority`.
    ///
    /// An empty port (`a.test:`) is no port, as RFC 3986 §3.2.3 has it. An empty value is refused: a
    /// caller for whom a request may have no host (HTTP/1.0) asks before. Stricter than RFC 3986:
    /// no escapes and no `IPvFuture`, which no name a router could have contains.
    ///
    /// # Errors
    /// What is wrong with it, for `ProxyError::BadRequest`.
    pub fn parse(text: &'a str) -> Result<Self, &'static str> {
        let (host, rest) = match text.strip_prefix('[') {
            Some(inner) => {
                let end = inner.find(']').ok_or("authority has a bracket without end")?;
                inner[..end].parse::<Ipv6Addr>().map_err(|_| "authority has a bad IPv6 address")?;
                text.split_at(end + 2)
            }
            None => {
                let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                if host.is_empty() {
                    return Err("authority has no host");
                }
                if host.contains('@') || rest.contains('@') {
                    return Err("authority has a user");
                }
                if !host.bytes().all(is_reg_name) {
                    return Err("authority has a byte that no host may have");
                }
                (host, rest)
            }
        };
        if host.len() > MAX_HOST_BYTES {
            return Err("authority has a host longer than 255 bytes");
        }
        let port = match rest.strip_prefix(':') {
            Some("") => None,
            // `parse` alone would take a `+`.
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| "authority has a port above 65535")?)
            }
            Some(_) => return Err("authority has a bad port"),
            None if rest.is_empty() => None,
            None => return Err("authority has something after its bracket"),
        };
        Ok(Self { host, port })
    }

    /// The host as written, an IPv6 address in its brackets.
    pub fn host(&self) -> &'a str {
        self.host
    }

    /// The port, if one is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The host as rules compare it; see [`host_for_matching`].
    pub fn host_for_matching(&self) -> Cow<'a, str> {
        match self.host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => canonical_v6(inner),
            None => {
                let host = self.host.strip_suffix('.').unwrap_or(self.host);
                if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    host.to_ascii_lowercase().into()
                } else {
                    host.into()
                }
            }
        }
    }
}

/// A checked authority with what is asked of it for each request; made once for a connection whose
/// requests are all for the same one.
#[derive(Clone, Debug, Default)]
pub struct Checked {
    /// As written.
    pub text: Text,
    /// As rules compare it; see [`host_for_matching`].
    pub host: Text,
    /// The port, if one is written.
    pub port: Option<u16>,
}

impl Checked {
    /// Checks it.
    ///
    /// # Errors
    /// As [`Authority::parse`].
    pub fn parse(text: Text) -> Result<Self, &'static str> {
        let authority = Authority::parse(text.as_str())?;
        let host = Text::copy_from(&authority.host_for_matching());
        let port = authority.port();
        Ok(Self { host, port, text })
    }
}

/// The host of a checked authority as rules compare it: lower case, without port, without one
/// trailing dot; an IPv6 address without brackets in its shortest form (RFC 5952).
///
/// What is no authority gives the empty host, which only `*` matches. Cost: one pass over the host;
/// allocates only when something has to change.
pub fn host_for_matching(authority: &str) -> Cow<'_, str> {
    Authority::parse(authority).map_or(Cow::Borrowed(""), |authority| authority.host_for_matching())
}

/// The port of a checked authority, if one is written.
pub fn port(authority: &str) -> Option<u16> {
    Authority::parse(authority).ok()?.port
}

fn canonical_v6(inner: &str) -> Cow<'_, str> {
    match inner.parse::<Ipv6Addr>() {
        Ok(address) => {
            let canonical = address.to_string();
            if canonical == inner { inner.into() } else { canonical.into() }
        }
        Err(_) => inner.into(),
    }
}

/// `unreserved` and `sub-delims` of RFC 3986 §2.
fn is_reg_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_authority_is_refused_with_its_reason() {
        let long = format!("{}.test", "a".repeat(251));
        for (text, reason) in [
            ("", "authority has no host"),
            (":80", "authority has no host"),
            ("user@a.test", "authority has a user"),
            ("user:secret@a.test", "authority has a user"),
            ("a.test:80@b.test", "authority has a user"),
            ("a test", "authority has a byte that no host may have"),
            (" a.test", "authority has a byte that no host may have"),
            ("a.test\t", "authority has a byte that no host may have"),
            ("a\0.test", "authority has a byte that no host may have"),
            ("a.test/x", "authority has a byte that no host may have"),
            ("a.test?x", "authority has a byte that no host may have"),
            ("a.test#x", "authority has a byte that no host may have"),
            ("a\\b", "authority has a byte that no host may have"),
            ("%61.test", "authority has a byte that no host may have"),
            ("bücher.test", "authority has a byte that no host may have"),
            ("a]", "authority has a byte that no host may have"),
            ("a[::1]", "authority has a byte that no host may have"),
            ("[::1", "authority has a bracket without end"),
            ("[]", "authority has a bad IPv6 address"),
            ("[a.test]", "authority has a bad IPv6 address"),
            ("[fe80::1%25eth0]", "authority has a bad IPv6 address"),
            ("[v1.x]", "authority has a bad IPv6 address"),
            ("[::1]80", "authority has something after its bracket"),
            ("[::1]:x", "authority has a bad port"),
            ("::1", "authority has no host"),
            ("a.test:65536", "authority has a port above 65535"),
            ("a.test:99999999999999999999", "authority has a port above 65535"),
            ("a.test:+80", "authority has a bad port"),
            ("a.test:-1", "authority has a bad port"),
            ("a.test:8o", "authority has a bad port"),
            ("a.test:80:80", "authority has a bad port"),
            ("a.test: 80", "authority has a bad port"),
            (long.as_str(), "authority has a host longer than 255 bytes"),
        ] {
            assert_eq!(Authority::parse(text), Err(reason), "{text:?}");
        }
    }

    #[test]
    fn host_and_port_are_told_apart() {
        for (text, host, number) in [
            ("a.test", "a.test", None),
            ("a.test:8080", "a.test", Some(8080)),
            ("a.test:", "a.test", None),
            ("a.test:0", "a.test", Some(0)),
            ("a.test:00080", "a.test", Some(80)),
            ("10.0.0.1:80", "10.0.0.1", Some(80)),
            ("[::1]", "[::1]", None),
            ("[::1]:443", "[::1]", Some(443)),
            ("[::1]:", "[::1]", None),
            ("my_host", "my_host", None),
        ] {
            let authority = Authority::parse(text).expect(text);
            assert_eq!((authority.host(), authority.port()), (host, number), "{text:?}");
            assert_eq!(port(text), number);
        }
    }

    #[test]
    fn hosts_are_compared_without_case_port_trailing_dot_and_brackets() {
        for (text, host) in [
            ("ECHO.test.:8080", "echo.test"),
            ("echo.test..", "echo.test."),
            ("a.test:", "a.test"),
            ("[::1]:80", "::1"),
            ("[0:0::1]", "::1"),
            ("[FE80::A]", "fe80::a"),
            ("", ""),
            ("no host at all", ""),
        ] {
            assert_eq!(host_for_matching(text), host, "{text:?}");
        }
    }

    #[test]
    fn a_host_in_lower_case_costs_no_allocation() {
        assert!(matches!(host_for_matching("a.test:80"), Cow::Borrowed("a.test")));
        assert!(matches!(host_for_matching("a.test."), Cow::Borrowed("a.test")));
    }
}
