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
use crate::http::text::Text;

use super::{CompileContext, Flow};

const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

/// Options of `stripPrefix`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct StripPrefixConfig {
    /// The first of these that the path begins with is taken off. Required.
    pub prefixes: Vec<String>,
    /// Deprecated in Traefik. Default `false`.
    pub force_slash: Option<bool>,
}

/// What a prefix may be followed by.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum PathMatching {
    /// Anything, as in Traefik: `/api` is a prefix of `/apix`.
    #[default]
    Prefix,
    /// The end of a segment: `/api` is a prefix of `/api` and `/api/x` only.
    Segment,
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
            let forwarded = HeaderValue::try_from(escaped(prefix.trim()));
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
    /// [`ProxyError::BadPath`] when what is left has dot segments or empty ones (`/api../admin`).
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
