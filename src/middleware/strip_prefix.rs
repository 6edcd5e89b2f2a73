//! `stripPrefix`: takes a prefix off the path and tells the pod so in `X-Forwarded-Prefix`.
//!
//! Works on the escaped path, so an escaped `/` in it never counts as one of the prefix's own.

use std::fmt::Write;

use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;
use crate::http::path::{self, EncodedCharacters};
use crate::http::text::Text;
use crate::matcher::PathMatching;

use super::{CompileContext, Flow};

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Options of `stripPrefix`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct StripPrefixConfig {
    /// The first of these that the path begins with is taken off. Required.
    pub prefixes: Vec<String>,
    /// Deprecated in Traefik. Default `false`.
    pub force_slash: Option<bool>,
}

impl StripPrefixConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        _name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<StripPrefix> {
        let before = cx.problems.len();
        let at_prefixes = at.key("prefixes");
        if self.prefixes.is_empty() {
            cx.problems.push(
                Problem::error(&at_prefixes, "stripPrefix needs prefixes").hint("write prefixes: [/api]"),
            );
        }
        let mut prefixes = Vec::with_capacity(self.prefixes.len());
        for (index, prefix) in self.prefixes.iter().enumerate() {
            let at = at_prefixes.index(index);
            // From Traefik: spaces around a prefix do not go into the field.
            let forwarded = HeaderValue::from_bytes(prefix.trim().as_bytes());
            match forwarded {
                _ if prefix.is_empty() => cx.problems.error(&at, "a prefix must not be empty"),
                Err(_) => cx.problems.error(&at, format!("bad prefix {prefix:?}")),
                Ok(_) if !prefix.starts_with('/') => {
                    let problem = Problem::error(&at, format!("prefix {prefix:?} does not begin with /"));
                    cx.problems.push(problem.hint("every path begins with /, so it would never match"));
                }
                Ok(forwarded) => prefixes.push((escaped(prefix).into(), forwarded)),
            }
        }
        if self.force_slash.is_some() {
            cx.problems.warn(&at.key("forceSlash"), "forceSlash is deprecated");
        }
        (!cx.problems.errors_since(before)).then(|| StripPrefix {
            prefixes: prefixes.into(),
            matching: cx.path_matching,
            slash: if self.force_slash == Some(true) { Slash::One } else { Slash::AsItIs },
        })
    }
}

#[derive(Clone, Copy, Debug)]
enum Slash {
    AsItIs,
    /// Two slashes after the prefix become one.
    One,
}

/// `stripPrefix`, compiled.
#[derive(Clone, Debug)]
pub struct StripPrefix {
    /// Escaped as paths are, with what the pod is told.
    prefixes: Box<[(Box<str>, HeaderValue)]>,
    matching: PathMatching,
    slash: Slash,
}

impl StripPrefix {
    /// Takes the first matching prefix off. No allocation unless the rest lacks its leading `/`.
    ///
    /// # Errors
    /// [`ProxyError::BadPath`] when what is left has dot segments, hidden ones too, or empty ones (`/api../admin`).
    pub fn on_request(&self, head: &mut RequestHead) -> Result<Flow, ProxyError> {
        let path = head.path.as_str();
        let Some((prefix, forwarded)) = self.prefixes.iter().find(|(prefix, _)| self.matches(path, prefix))
        else {
            return Ok(Flow::Next);
        };
        let mut from = prefix.len();
        if matches!(self.slash, Slash::One) && path[from..].starts_with("//") {
            from += 1;
        }
        let rest = &path[from..];
        let stripped = if rest.starts_with('/') {
            head.path.slice(from..)
        } else if rest.is_empty() {
            Text::from_static("/")
        } else if prefix.ends_with('/') {
            // The prefix's own slash serves.
            head.path.slice(from - 1..)
        } else {
            Text::from(format!("/{rest}"))
        };
        if !is_clean(stripped.as_str()) {
            return Err(ProxyError::BadPath("the path without its prefix has dot or empty segments"));
        }
        // `/api..%2Fadmin` was harmless as long as the prefix stood before it.
        if memchr::memchr2(b'%', b';', stripped.as_bytes()).is_some() {
            path::check(stripped.as_str(), &EncodedCharacters::default())?;
        }
        head.path = stripped;
        // A pod behind two strips sees both, in their order.
        head.headers.append(X_FORWARDED_PREFIX, forwarded.clone());
        Ok(Flow::Next)
    }

    fn matches(&self, path: &str, prefix: &str) -> bool {
        path.strip_prefix(prefix).is_some_and(|rest| match self.matching {
            PathMatching::Prefix => true,
            PathMatching::Segment => rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'),
        })
    }
}

/// Whether no segment is empty, `.` or `..`, plain or escaped; the last may be empty.
fn is_clean(path: &str) -> bool {
    // Nearly every path is settled by this: only a segment that begins so can be wrong.
    let suspect = |pair: &[u8]| pair[0] == b'/' && matches!(pair[1], b'/' | b'.' | b'%');
    if !path.as_bytes().windows(2).any(suspect) {
        return true;
    }
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        if (segment.is_empty() && !last) || is_dots(segment) {
            return false;
        }
    }
    true
}

fn is_dots(segment: &str) -> bool {
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', after @ ..] | [b'%', b'2', b'e' | b'E', after @ ..] => after,
            _ => return false,
        };
        dots += 1;
    }
    dots == 1 || dots == 2
}

/// A path as the wire has it: what must be escaped is, and existing escapes stay.
pub(super) fn escaped(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        // RFC 3986 §3.3: pchar, `/`, and `%` of an escape that is there already.
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{compile, context, edit, problems, request};
    use crate::middleware::{Edit, Link};

    fn strip(link: &Edit, path: &str) -> Option<(String, Vec<String>)> {
        let mut head = request(path, &[]);
        match link.on_request(&mut context(), &mut head) {
            Ok(Flow::Next) => {
                let lines = head.headers.get_all(X_FORWARDED_PREFIX);
                Some((
                    head.path.as_str().to_owned(),
                    lines.map(|line| String::from_utf8_lossy(line.as_bytes()).into_owned()).collect(),
                ))
            }
            Err(ProxyError::BadPath(_)) => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_prefix_in_the_list_is_taken_off_and_named() {
        let link = edit("stripPrefix", "{prefixes: [/api, /api/v2, /other/]}");
        for (path, stripped, prefix) in [
            ("/api", "/", "/api"),
            ("/api/", "/", "/api"),
            ("/api/x/", "/x/", "/api"),
            ("/api/v2/x", "/v2/x", "/api"),
            ("/apix", "/x", "/api"),
            ("/other/x", "/x", "/other/"),
            ("/other/", "/", "/other/"),
            ("/api/%2Fx", "/%2Fx", "/api"),
        ] {
            assert_eq!(strip(&link, path), Some((stripped.to_owned(), vec![prefix.to_owned()])), "{path}");
        }
        for path in ["/ap", "/x/api", "*", "/API", "/other"] {
            assert_eq!(strip(&link, path), Some((path.to_owned(), vec![])), "{path}");
        }
    }

    #[test]
    fn what_would_climb_out_of_the_prefix_is_refused() {
        let link = edit("stripPrefix", "{prefixes: [/api]}");
        for path in [
            "/api../x",
            "/api./x",
            "/api..",
            "/api%2e%2E/x",
            "/api.%2e/x",
            "/api//x",
            "/api/x/../y",
            "/api..%2Fx",
        ] {
            assert_eq!(strip(&link, path), None, "{path}");
        }
        for path in ["/api/...", "/api/.x", "/api/x..", "/api/%20"] {
            assert!(strip(&link, path).is_some(), "{path}");
        }
    }

    #[test]
    fn two_strips_give_two_lines() {
        let (outer, inner) =
            (edit("stripPrefix", "{prefixes: [/a]}"), edit("stripPrefix", "{prefixes: [/b]}"));
        let mut head = request("/a/b/c", &[]);
        for link in [outer, inner] {
            link.on_request(&mut context(), &mut head).expect("both strip");
        }
        assert_eq!(head.path.as_str(), "/c");
        assert_eq!(head.headers.get_all(X_FORWARDED_PREFIX).collect::<Vec<_>>(), ["/a", "/b"]);
    }

    #[test]
    fn a_prefix_is_written_as_people_read_it() {
        let link = edit("stripPrefix", "{prefixes: ['/a b']}");
        assert_eq!(strip(&link, "/a%20b/c"), Some(("/c".to_owned(), vec!["/a b".to_owned()])));
    }

    #[test]
    fn a_forced_slash_is_one() {
        let link = edit("stripPrefix", "{prefixes: [/api], forceSlash: true}");
        assert_eq!(strip(&link, "/api//x").map(|(path, _)| path).as_deref(), Some("/x"));
    }

    #[test]
    fn by_segments_a_prefix_ends_where_a_segment_ends() {
        let compiled = compile("stripPrefix", "{prefixes: [/api, /x/]}", PathMatching::Segment);
        let Some(Link::Edit(link)) = compiled.link else { panic!("an edit link") };
        for (path, stripped) in
            [("/api", "/"), ("/api/x", "/x"), ("/apix", "/apix"), ("/x/y", "/y"), ("/api%2Fx", "/api%2Fx")]
        {
            assert_eq!(strip(&link, path).map(|(path, _)| path).as_deref(), Some(stripped), "{path}");
        }
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "stripPrefix.prefixes"),
            ("{prefixes: [/a, b]}", "stripPrefix.prefixes[1]"),
            ("{prefixes: ['']}", "stripPrefix.prefixes[0]"),
        ] {
            assert_eq!(problems("stripPrefix", options).errors(), [path], "{options}");
        }
    }
}
