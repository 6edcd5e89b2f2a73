//! A request of HTTP/2 turned into the head that everything behind it works on, as strictly as one of HTTP/1.
//!
//! The codec has refused upper-case names, control bytes, pseudo-fields that are missing, repeated or late, and
//! fields about the connection. What it lets pass and two readers could read in two ways is refused here.

use std::rc::Rc;

use http::header::{self, HeaderValue};
use http::{Method, Version};

use crate::http::authority::Checked;
use crate::http::error::ProxyError;
use crate::http::fields::Fields;
use crate::http::h1::framing::Length;
use crate::http::h1::parse::{HeadLimits, content_length};
use crate::http::head::RequestHead;
use crate::http::text::Text;

/// A request as it came, with what only its stream needs to know.
#[derive(Debug)]
pub struct ParsedRequest {
    /// Free of framing fields.
    pub head: Box<RequestHead>,
    /// Its authority, taken apart.
    pub authority: Rc<Checked>,
    /// How much content it announces.
    pub length: Length,
    /// Whether it waits for `100 Continue`.
    pub expects_continue: bool,
    /// An extended CONNECT (RFC 8441); its method is `GET` from here on.
    pub websocket: bool,
}

/// Whether anything follows the fields.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Content {
    /// The stream has ended with them.
    None,
    /// DATA or trailers are to come.
    Follows,
}

const BAD: fn(&'static str) -> ProxyError = ProxyError::BadRequest;

/// Bytes that fields take while a request is served: as in RFC 9113 §10.5.1.
pub fn weight(headers: &http::HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// Reads a request. `known` is an authority that was checked before.
///
/// # Errors
/// What RFC 9113 §8 calls malformed, and what cannot be served.
pub fn request(
    parts: http::request::Parts,
    content: Content,
    limits: &HeadLimits,
    known: Option<&Rc<Checked>>,
) -> Result<ParsedRequest, ProxyError> {
    let http::request::Parts { mut method, uri, headers, extensions, .. } = parts;
    if headers.len() > limits.fields {
        return Err(ProxyError::HeadTooLarge { limit: limits.fields, unit: "fields" });
    }
    let mut websocket = false;
    if method == Method::CONNECT {
        websocket = extensions
            .get::<h2::ext::Protocol>()
            .is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"));
        if !websocket {
            return Err(ProxyError::MethodNotImplemented);
        }
        method = Method::GET;
    }
    if uri.scheme_str().is_some_and(|scheme| scheme != "http" && scheme != "https") {
        return Err(BAD("scheme is neither http nor https"));
    }
    let mut headers = Fields::from(headers);
    let fields = Reading::read(&mut headers)?;
    let host = fields.host;
    let text = match (uri.authority(), &host) {
        (Some(target), Some(host)) if !target.as_str().eq_ignore_ascii_case(host.as_str()) => {
            return Err(BAD("Host and :authority disagree"));
        }
        (Some(target), _) => target.as_str(),
        (None, Some(host)) => host.as_str(),
        (None, None) => return Err(BAD("neither :authority nor Host")),
    };
    let authority = match known.filter(|known| known.text == *text) {
        Some(known) => Rc::clone(known),
        None => Rc::new(Checked::parse(Text::copy_from(text)).map_err(BAD)?),
    };
    let (path, query) = target(&uri, &method)?;
    let length = match (fields.length, content) {
        (None | Some(0), Content::None) | (Some(0), Content::Follows) => Length::Empty,
        (Some(_), Content::None) => return Err(BAD("Content-Length without content")),
        (Some(bytes), Content::Follows) => Length::Exact(bytes),
        (None, Content::Follows) => Length::Chunked,
    };
    if websocket && fields.length.is_some() {
        return Err(BAD("Content-Length with extended CONNECT"));
    }
    if length != Length::Chunked {
        // Without chunks there is no place for trailer fields behind us.
        headers.remove(header::TRAILER);
    }
    Ok(ParsedRequest {
        head: Box::new(RequestHead {
            method,
            path,
            query,
            authority: authority.text.clone(),
            version: Version::HTTP_2,
            headers,
        }),
        authority,
        expects_continue: fields.expects_continue && length != Length::Empty,
        length: if websocket { Length::Empty } else { length },
        websocket,
    })
}

/// Path and query of the target.
fn target(uri: &http::Uri, method: &Method) -> Result<(Text, Option<Text>), ProxyError> {
    let raw = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    match raw.as_bytes().first() {
        Some(b'/') => {}
        Some(b'*') if raw.len() == 1 && *method == Method::OPTIONS => {
            return Ok((Text::from_static("*"), None));
        }
        _ => return Err(BAD("malformed :path")),
    }
    let mut ascii = true;
    for byte in raw.bytes() {
        match byte {
            0..=b' ' | 0x7f => return Err(BAD("control byte in :path")),
            b'#' => return Err(BAD("fragment in :path")),
            0x80.. => ascii = false,
            _ => {}
        }
    }
    let text = if ascii {
        Text::copy_from(raw)
    } else {
        let escaped = percent_encoding::percent_encode(raw.as_bytes(), &percent_encoding::AsciiSet::EMPTY);
        Text::from(escaped.to_string())
    };
    let mark = text.as_bytes().iter().position(|byte| *byte == b'?');
    Ok(match mark {
        Some(at) => (text.slice(..at), Some(text.slice(at + 1..))),
        None => (text, None),
    })
}

/// What is taken out of the fields.
struct Reading {
    host: Option<Text>,
    length: Option<u64>,
    expects_continue: bool,
}

impl Reading {
    fn read(headers: &mut Fields) -> Result<Self, ProxyError> {
        let mut fields = Self { host: None, length: None, expects_continue: false };
        let (mut hosts, mut lengths, mut cookies) = (0, 0, 0);
        let (mut expects, mut ends_here) = (false, false);
        for (name, value) in &*headers {
            let bytes = value.as_bytes();
            if super::has_space_around(value) {
                return Err(BAD("whitespace around a field value"));
            }
            match *name {
                header::HOST => {
                    hosts += 1;
                    let text = value.to_str().map_err(|_| BAD("malformed Host"))?;
                    fields.host = Some(Text::copy_from(text));
                }
                header::CONTENT_LENGTH => {
                    lengths += 1;
                    fields.length = Some(content_length(bytes).ok_or(BAD("malformed Content-Length"))?);
                }
                header::COOKIE => cookies += 1,
                header::EXPECT => {
                    expects = true;
                    match bytes {
                        // An empty list expects nothing (RFC 9110 §10.1.1).
                        [] => {}
                        value if value.eq_ignore_ascii_case(b"100-continue") => {
                            fields.expects_continue = true;
                        }
                        _ => return Err(ProxyError::ExpectationFailed),
                    }
                }
                header::PROXY_AUTHORIZATION | header::PROXY_AUTHENTICATE => ends_here = true,
                ref name if name == "http2-settings" => ends_here = true,
                _ => {}
            }
        }
        if hosts > 1 {
            return Err(BAD("more than one Host field"));
        }
        if lengths > 1 {
            return Err(BAD("more than one Content-Length"));
        }
        if hosts > 0 {
            headers.remove(header::HOST);
        }
        if lengths > 0 {
            headers.remove(header::CONTENT_LENGTH);
        }
        if expects {
            headers.remove(header::EXPECT);
        }
        if ends_here {
            headers.remove(header::PROXY_AUTHORIZATION);
            headers.remove(header::PROXY_AUTHENTICATE);
            headers.remove("http2-settings");
        }
        if cookies > 1 {
            join_cookies(headers);
        }
        Ok(fields)
    }
}

/// Crumbs become one field again, because others read only one (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut Fields) {
    let mut joined = Vec::new();
    for crumb in headers.get_all(header::COOKIE) {
        if !joined.is_empty() {
            joined.extend_from_slice(b"; ");
        }
        joined.extend_from_slice(crumb.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: HeadLimits = HeadLimits { bytes: 65_536, fields: 20 };

    fn read(
        method: &str,
        uri: &str,
        fields: &[(&str, &str)],
        content: Content,
    ) -> Result<ParsedRequest, ProxyError> {
        let mut builder = http::Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        request(parts, content, &LIMITS, None)
    }

    #[test]
    fn a_request_falls_into_the_parts_that_one_of_http_1_has() {
        let parsed = read(
            "POST",
            "http://A.test:80/p?q=1",
            &[("host", "a.test:80"), ("content-length", "3"), ("cookie", "a=1"), ("cookie", "b=2")],
            Content::Follows,
        )
        .unwrap();
        assert_eq!(parsed.head.path.as_str(), "/p");
        assert_eq!(parsed.head.query.as_ref().map(Text::as_str), Some("q=1"));
        assert_eq!(parsed.authority.host.as_str(), "a.test");
        assert_eq!(parsed.length, Length::Exact(3));
        assert_eq!(parsed.head.headers.len(), 1);
        assert_eq!(parsed.head.headers["cookie"], "a=1; b=2");
    }

    #[test]
    fn what_two_readers_could_read_in_two_ways_is_refused() {
        use Content::{Follows, None};
        for (method, uri, fields, content) in [
            ("GET", "http://a.test/", &[("host", "b.test")][..], None),
            ("GET", "http://a.test/", &[("host", "a.test"), ("host", "a.test")], None),
            ("GET", "/", &[], None),
            ("GET", "http://u@a.test/", &[], None),
            ("GET", "ftp://a.test/", &[], None),
            ("POST", "http://a.test/", &[("content-length", "1")], None),
            ("POST", "http://a.test/", &[("content-length", "+1")], Follows),
            ("POST", "http://a.test/", &[("content-length", "1,1")], Follows),
            ("POST", "http://a.test/", &[("content-length", "1"), ("content-length", "1")], Follows),
            ("GET", "http://a.test/", &[("x", " y")], None),
            ("GET", "http://a.test/", &[("x", "y\t")], None),
        ] {
            let result = read(method, uri, fields, content);
            assert!(
                matches!(result, Err(ProxyError::BadRequest(_))),
                "{method} {uri} {fields:?}: {result:?}"
            );
        }
        let result = read("CONNECT", "a.test:443", &[], Follows);
        assert!(matches!(result, Err(ProxyError::MethodNotImplemented)), "{result:?}");
        let result = read("PUT", "http://a.test/", &[("expect", "x")], Follows);
        assert!(matches!(result, Err(ProxyError::ExpectationFailed)), "{result:?}");
    }

    #[test]
    fn an_asterisk_is_for_options_alone() {
        let mut parts = http::uri::Parts::default();
        parts.authority = Some("a.test".parse().unwrap());
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.path_and_query = Some("*".parse().unwrap());
        let uri = http::Uri::from_parts(parts).unwrap();
        assert!(target(&uri, &Method::OPTIONS).is_ok());
        assert!(target(&uri, &Method::GET).is_err());
    }
}
