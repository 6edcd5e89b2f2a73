//! What a request is hashed by. Pure.

use std::net::IpAddr;

use http::HeaderName;

use crate::balance::cookie;
use crate::http::client_ip::{Found, IpStrategy};
use crate::http::head::RequestHead;

/// Where the key of a request is found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HashBy {
    /// The first value of a field.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(Box<str>),
    /// The first value of a parameter of the query, as it is written.
    Query(Box<str>),
    /// The path, after the links of the router, without the query.
    Path,
    /// The client's address.
    Client(IpStrategy),
}

impl HashBy {
    /// The key; `None` when the request has not what it is made of, or it is empty. Cost: O(length), no
    /// allocation.
    pub fn key(&self, head: &RequestHead, peer: IpAddr) -> Option<u64> {
        let bytes = match self {
            Self::Header(name) => head.headers.get(name)?.as_bytes(),
            Self::Cookie(name) => cookie::find(&head.headers, name)?.as_bytes(),
            Self::Query(name) => parameter(head.query.as_ref()?.as_str(), name)?.as_bytes(),
            Self::Path => head.path.as_bytes(),
            Self::Client(strategy) => match strategy.find(peer, &head.headers) {
                Found::Addr(addr) => return Some(of_addr(addr)),
                Found::Text(text) => text.as_bytes(),
                Found::Nothing => return Some(of_addr(peer)),
            },
        };
        (!bytes.is_empty()).then(|| hash(bytes))
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Header(name) => format!("header {name}"),
            Self::Cookie(name) => format!("cookie {name}"),
            Self::Query(name) => format!("query parameter {name}"),
            Self::Path => "path".to_owned(),
            Self::Client(_) => "client address".to_owned(),
        }
    }
}

/// The key of an address; IPv4 in IPv6 form is IPv4.
pub fn of_addr(addr: IpAddr) -> u64 {
    match addr.to_canonical() {
        IpAddr::V4(addr) => hash(&addr.octets()),
        IpAddr::V6(addr) => hash(&addr.octets()),
    }
}

/// The same in every process and version: FNV-1a with 64 bits, then mixed, because its low bits are poor.
pub fn hash(bytes: &[u8]) -> u64 {
    let mut x = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    x = (x ^ (x >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    x = (x ^ (x >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ (x >> 33)
}

/// The first value of a parameter.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, Method, Version};

    use super::*;
    use crate::http::fields::Fields;
    use crate::http::text::Text;

    fn head(query: Option<&'static str>, fields: &[(&'static str, &'static str)]) -> RequestHead {
        let mut headers = Fields::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        RequestHead {
            method: Method::GET,
            path: Text::from_static("/a/b"),
            query: query.map(Text::from_static),
            authority: Text::from_static("x"),
            version: Version::HTTP_11,
            headers,
        }
    }

    fn key(by: &HashBy, head: &RequestHead) -> Option<u64> {
        by.key(head, IpAddr::from([192, 0, 2, 1]))
    }

    #[test]
    fn each_kind_takes_its_own_part_of_the_request() {
        let head = head(Some("q=1&user=ann&user=bob"), &[("x-user", "ann"), ("cookie", "a=b; session=ann")]);
        let ann = Some(hash(b"ann"));
        assert_eq!(key(&HashBy::Header(HeaderName::from_static("x-user")), &head), ann);
        assert_eq!(key(&HashBy::Cookie("session".into()), &head), ann);
        assert_eq!(key(&HashBy::Query("user".into()), &head), ann);
        assert_eq!(key(&HashBy::Path, &head), Some(hash(b"/a/b")));
        let client = key(&HashBy::Client(IpStrategy::peer()), &head);
        assert_eq!(client, Some(of_addr(IpAddr::from([192, 0, 2, 1]))));
    }

    #[test]
    fn what_is_missing_or_empty_is_no_key() {
        let head = head(Some("user=&x"), &[("x-user", "")]);
        for by in [
            HashBy::Header(HeaderName::from_static("x-user")),
            HashBy::Header(HeaderName::from_static("x-other")),
            HashBy::Cookie("session".into()),
            HashBy::Query("user".into()),
            HashBy::Query("x".into()),
            HashBy::Query("y".into()),
        ] {
            assert_eq!(key(&by, &head), None, "{by:?}");
        }
    }
}
