//! Paths of requests: what is refused, what goes upstream, what rules see.
//!
//! [`prepare`] does all of it, in one scan over a path that needs nothing. The router must never
//! decide on another path than the one that the pod will see: so there is one spelling for each path,
//! and what some servers read as a dot segment and others do not is refused.
//! Never: query and fragment, except that the former has its semicolons turned here.

use std::borrow::Cow;
use std::fmt::Write;

use crate::http::error::ProxyError;
use crate::http::text::Text;

/// How often a pod, and the servers behind it, are taken to decode: `%252e` is a dot for who does it
/// twice. A third time covers a pod that forwards to another that decodes twice.
const MAX_DECODINGS: usize = 3;

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

impl EncodedCharacters {
    /// Refuses all seven.
    pub const NONE: Self = Self {
        slash: false,
        backslash: false,
        null: false,
        semicolon: false,
        percent: false,
        question_mark: false,
        hash: false,
    };

    fn allow(&self, decoded: u8) -> Result<(), &'static str> {
        let (allowed, refusal) = match decoded {
            b'/' => (self.slash, "encoded slash"),
            b'\\' => (self.backslash, "encoded backslash"),
            0 => (self.null, "encoded null character"),
            b';' => (self.semicolon, "encoded semicolon"),
            b'%' => (self.percent, "encoded percent"),
            b'?' => (self.question_mark, "encoded question mark"),
            b'#' => (self.hash, "encoded hash"),
            _ => return Ok(()),
        };
        if allowed { Ok(()) } else { Err(refusal) }
    }
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
    /// Whether `//`, `/./` and `/../` are resolved (`sanitizePath`, on by default). Without it they
    /// go to the pod as they are.
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
    /// `None` when rules see the same.
    routing: Option<Text>,
}

impl Prepared {
    /// What rules see: `upstream` with the escapes of characters that mean nothing in a URL decoded.
    pub fn routing(&self) -> &Text {
        self.routing.as_ref().unwrap_or(&self.upstream)
    }
}

/// Does all that a path goes through before routing: [`check`], [`normalise`], [`sanitize`],
/// [`routing_form`].
///
/// Takes what stands before the first `?` of the target; `*` (of `OPTIONS *`) stays what it is.
/// Cost: one scan by table and no allocation when there is nothing to do, as in nearly every request.
///
/// # Errors
/// [`ProxyError::BadPath`], see [`check`].
pub fn prepare(path: &Text, options: &PathOptions) -> Result<Prepared, ProxyError> {
    let text = path.as_str();
    if text.starts_with('/') && is_plain(text.as_bytes()) || text == "*" {
        return Ok(Prepared { upstream: path.clone(), routing: None });
    }
    check(text, &options.encoded)?;
    let mut clean = normalise(text);
    if options.sanitize
        && let Cow::Owned(sanitized) = sanitize(&clean)
    {
        clean = Cow::Owned(sanitized);
    }
    let upstream = match clean {
        Cow::Borrowed(_) => path.clone(),
        Cow::Owned(changed) => Text::from(changed),
    };
    let routing = match routing_form(upstream.as_str()) {
        Cow::Borrowed(_) => None,
        Cow::Owned(decoded) => Some(Text::from(decoded)),
    };
    Ok(Prepared { upstream, routing })
}

/// Refuses what no path may have, and what two readers could take for two paths.
///
/// Refused are a path that does not begin with `/`; control bytes, spaces, `\`, `?` and `#` as they
/// are; broken escapes; escapes that `encoded` does not allow; and, whatever `encoded` says, segments
/// that some reader turns into `.` or `..` beyond a plain `/../`: by decoding separators (`..%2f`,
/// `%5c..`), decoding twice (`%252e`), or cutting parameters and ends off (`..;x`, `..%00`, `..%20`).
///
/// # Errors
/// [`ProxyError::BadPath`] with the reason.
pub fn check(path: &str, encoded: &EncodedCharacters) -> Result<(), ProxyError> {
    if !path.starts_with('/') {
        return Err(ProxyError::BadPath("it does not begin with a slash"));
    }
    let bytes = path.as_bytes();
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'%' => {
                let decoded = escaped(&bytes[at..]).ok_or(ProxyError::BadPath("broken escape"))?;
                encoded.allow(decoded).map_err(ProxyError::BadPath)?;
            }
            0..=b' ' | 0x7f => return Err(ProxyError::BadPath("control byte or space")),
            b'\\' => return Err(ProxyError::BadPath("backslash")),
            b'#' => return Err(ProxyError::BadPath("fragment")),
            b'?' => return Err(ProxyError::BadPath("question mark")),
            _ => {}
        }
    }
    if path.split('/').any(hides_dot_segment) {
        return Err(ProxyError::BadPath("hidden dot segment"));
    }
    Ok(())
}

/// Brings escapes into the one form that goes upstream: those of unreserved characters decoded, the
/// rest in capitals, and everything escaped that may not stand in a path (RFC 3986 §2.3, §3.3).
///
/// `[` and `]` stay, as in Traefik. A broken escape becomes `%25`. Idempotent.
pub fn normalise(path: &str) -> Cow<'_, str> {
    rewrite(path, |rest, out| {
        let byte = rest[0];
        if byte != b'%' {
            if CLASS[usize::from(byte)] != Class::Other {
                return Step::Keep(1);
            }
            // All bytes of a character that is no ASCII: a text is cut between characters only.
            let more = rest[1..].iter().take_while(|next| !byte.is_ascii() && !next.is_ascii()).count();
            rest[..=more].iter().for_each(|byte| push_escape(out, *byte));
            return Step::Replaced(1 + more);
        }
        match escaped(rest) {
            Some(decoded) if is_unreserved(decoded) => {
                out.push(char::from(decoded));
                Step::Replaced(3)
            }
            Some(_) if !rest[1..3].iter().any(u8::is_ascii_lowercase) => Step::Keep(3),
            Some(decoded) => {
                push_escape(out, decoded);
                Step::Replaced(3)
            }
            None => {
                out.push_str("%25");
                Step::Replaced(1)
            }
        }
    })
}

/// Resolves `//`, `/./` and `/../`, never above the root; a slash at the end stays.
///
/// As Go's `path.Clean`, on a path that [`normalise`] went over (so `%2e` is a dot already). Idempotent.
pub fn sanitize(path: &str) -> Cow<'_, str> {
    let mut rest = path.split('/');
    // What stands before the first slash: nothing.
    rest.next();
    let last = rest.clone().count().saturating_sub(1);
    let clean = |(at, segment): (usize, &str)| match segment {
        "." | ".." => false,
        "" => at == last,
        _ => true,
    };
    if rest.clone().enumerate().all(clean) {
        return path.into();
    }
    let mut out = String::with_capacity(path.len());
    for segment in rest {
        match segment {
            "" | "." => {}
            ".." => out.truncate(out.rfind('/').unwrap_or(0)),
            segment => {
                out.push('/');
                out.push_str(segment);
            }
        }
    }
    if path.ends_with('/') || out.is_empty() {
        out.push('/');
    }
    out.into()
}

/// What rules see of an escaped path: escapes decoded, except those of characters that are reserved in
/// URLs (RFC 3986 §2.2) and of `%`, which stay, in capitals, because decoded they would mean
/// something else. What decodes to no UTF-8 stays as well.
///
/// Two paths that differ after [`normalise`] differ here too.
pub fn routing_form(path: &str) -> Cow<'_, str> {
    rewrite(path, |rest, out| {
        if rest[0] != b'%' {
            return Step::Keep(1);
        }
        match escaped(rest) {
            Some(decoded) if !decoded.is_ascii() => {
                // All escapes in a row that are no ASCII, because a character has several.
                let mut run = Vec::new();
                while let Some(byte) = escaped(&rest[run.len() * 3..])
                    && !byte.is_ascii()
                {
                    run.push(byte);
                }
                for chunk in run.utf8_chunks() {
                    out.push_str(chunk.valid());
                    chunk.invalid().iter().for_each(|byte| push_escape(out, *byte));
                }
                Step::Replaced(run.len() * 3)
            }
            Some(decoded) if is_reserved(decoded) => {
                if !rest[1..3].iter().any(u8::is_ascii_lowercase) {
                    return Step::Keep(3);
                }
                push_escape(out, decoded);
                Step::Replaced(3)
            }
            Some(decoded) => {
                out.push(char::from(decoded));
                Step::Replaced(3)
            }
            None => Step::Keep(1),
        }
    })
}

/// What becomes of a `;` in a query (`http.encodeQuerySemicolons`).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum QuerySemicolons {
    /// `&`, as Traefik does by default.
    #[default]
    Ampersand,
    /// `%3B`.
    Encode,
}

/// A query as it goes upstream: byte for byte, but for its semicolons. Allocates only if it has one.
pub fn query_semicolons(query: &str, semicolons: QuerySemicolons) -> Cow<'_, str> {
    if memchr::memchr(b';', query.as_bytes()).is_none() {
        return query.into();
    }
    match semicolons {
        QuerySemicolons::Ampersand => query.replace(';', "&"),
        QuerySemicolons::Encode => query.replace(';', "%3B"),
    }
    .into()
}

/// What a byte means to the scan.
#[derive(Clone, Copy, PartialEq)]
enum Class {
    /// Stands for itself everywhere in a path (`pchar` of RFC 3986 §3.3, and brackets).
    Plain,
    Slash,
    Dot,
    Percent,
    /// May not stand in a path as it is.
    Other,
}

const CLASS: [Class; 256] = {
    let mut table = [Class::Other; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = match b {
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b'%' => Class::Percent,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Plain,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => Class::Plain,
            b':' | b'@' | b'[' | b']' => Class::Plain,
            _ => Class::Other,
        };
        byte += 1;
    }
    table
};

/// Whether a path can go on as it is: nothing to decode, to escape, to resolve or to refuse.
fn is_plain(path: &[u8]) -> bool {
    let mut after_slash = false;
    for (at, byte) in path.iter().enumerate() {
        match CLASS[usize::from(*byte)] {
            Class::Plain => after_slash = false,
            Class::Slash => {
                if after_slash {
                    return false;
                }
                after_slash = true;
            }
            Class::Dot => {
                if after_slash && is_dot_segment_ahead(&path[at..]) {
                    return false;
                }
                after_slash = false;
            }
            Class::Percent | Class::Other => return false,
        }
    }
    true
}

/// Whether a segment is `.` or `..`, perhaps with parameters, which some servers cut off first.
fn is_dot_segment_ahead(rest: &[u8]) -> bool {
    let rest = rest.strip_prefix(b"..").or_else(|| rest.strip_prefix(b".")).unwrap_or(rest);
    matches!(rest.first(), None | Some(b'/' | b';'))
}

/// Whether some reader of this raw segment finds a `.` or `..` that a plain reader does not.
fn hides_dot_segment(segment: &str) -> bool {
    if memchr::memchr2(b'%', b';', segment.as_bytes()).is_none() {
        return false;
    }
    // `%2e%2e` hides nothing: it becomes `..` here, and is resolved as such.
    if matches!(&*normalise(segment), "." | "..") {
        return false;
    }
    let mut bytes = segment.as_bytes().to_vec();
    for _ in 0..=MAX_DECODINGS {
        if bytes.split(|byte| matches!(byte, b'/' | b'\\')).any(reads_as_dots) {
            return true;
        }
        if memchr::memchr(b'%', &bytes).is_none() {
            return false;
        }
        bytes = shorten(&decode(&bytes));
    }
    false
}

fn reads_as_dots(part: &[u8]) -> bool {
    let end = part.iter().position(|byte| matches!(byte, b';' | b'?' | b'#' | 0)).unwrap_or(part.len());
    matches!(part[..end].trim_ascii(), b"." | b"..")
}

fn decode(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        match escaped(rest) {
            Some(decoded) => {
                out.push(decoded);
                rest = &rest[3..];
            }
            None => {
                out.push(*first);
                rest = after;
            }
        }
    }
    out
}

/// Reads ASCII that is spelled in two to four bytes, as careless UTF-8 decoders do: C0 AE is a dot.
fn shorten(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, after)) = rest.split_first() {
        let (byte, after) = match rest {
            [0xc0, low @ 0x80..=0xbf, after @ ..]
            | [0xe0, 0x80, low @ 0x80..=0xbf, after @ ..]
            | [0xf0, 0x80, 0x80, low @ 0x80..=0xbf, after @ ..] => (low & 0x3f, after),
            [0xc1, low @ 0x80..=0xbf, after @ ..]
            | [0xe0, 0x81, low @ 0x80..=0xbf, after @ ..]
            | [0xf0, 0x80, 0x81, low @ 0x80..=0xbf, after @ ..] => (0x40 | low & 0x3f, after),
            _ => (*first, after),
        };
        out.push(byte);
        rest = after;
    }
    out
}

/// The byte that the escape at the start of `rest` stands for, if there is one.
fn escaped(rest: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = rest else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()
}

fn push_escape(out: &mut String, byte: u8) {
    // Writing into a String cannot fail.
    let _ = write!(out, "%{byte:02X}");
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `gen-delims` and `sub-delims`, and the percent sign itself.
fn is_reserved(byte: u8) -> bool {
    b":/?#[]@!$&'()*+,;=%".contains(&byte)
}

/// What a step of [`rewrite`] did with the bytes before it.
enum Step {
    /// So many bytes stay as they are.
    Keep(usize),
    /// So many bytes were replaced by what was written.
    Replaced(usize),
}

/// Rewrites a text from left to right; allocates at the first change only.
fn rewrite(text: &str, step: impl Fn(&[u8], &mut String) -> Step) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let mut out = String::new();
    // `out` stands for what came before `kept`; between `kept` and `at` nothing changed.
    let (mut kept, mut at) = (0, 0);
    let mut replacement = String::new();
    while at < bytes.len() {
        match step(&bytes[at..], &mut replacement) {
            Step::Keep(count) => at += count,
            Step::Replaced(count) => {
                if out.capacity() == 0 {
                    out.reserve(text.len() + replacement.len());
                }
                out.push_str(&text[kept..at]);
                out.push_str(&replacement);
                replacement.clear();
                at += count;
                kept = at;
            }
        }
    }
    if kept == 0 {
        return text.into();
    }
    out.push_str(&text[kept..]);
    out.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn prepared(path: &str) -> Result<(String, String), String> {
        prepare(&Text::copy_from(path), &PathOptions::default())
            .map(|prepared| (prepared.upstream.to_string(), prepared.routing().to_string()))
            .map_err(|error| match error {
                ProxyError::BadPath(reason) => reason.to_owned(),
                other => panic!("{other}"),
            })
    }

    #[test]
    fn what_no_path_may_have_is_refused() {
        for (path, reason) in [
            ("", "it does not begin with a slash"),
            ("a", "it does not begin with a slash"),
            ("**", "it does not begin with a slash"),
            ("/%", "broken escape"),
            ("/%4", "broken escape"),
            ("/%zz", "broken escape"),
            ("/%u002e", "broken escape"),
            ("/a\tb", "control byte or space"),
            ("/a b", "control byte or space"),
            ("/a\0", "control byte or space"),
            ("/a\x7f", "control byte or space"),
            ("/a\\b", "backslash"),
            ("/a#b", "fragment"),
            ("/a?b", "question mark"),
        ] {
            assert_eq!(prepared(path), Err(reason.to_owned()), "{path:?}");
        }
    }

    #[test]
    fn a_dot_segment_that_only_some_readers_see_is_refused() {
        for path in [
            "/..%2fadmin",
            "/a/..%2F..%2Fadmin",
            "/%2e%2e%2fadmin",
            "/%2E%2E%2Fadmin",
            "/a%2f..",
            "/a%2f../b",
            "/a%2f.%2fb",
            "/a%2f.",
            "/.%2fb",
            "/..%5cadmin",
            "/%5c..%5cadmin",
            "/a%5C..",
            "/a/..;/admin",
            "/..;x=1/admin",
            "/.;/admin",
            "/a/%2e%2e;/admin",
            "/a/..%3b/admin",
            "/a/..%3Bx/admin",
            "/a;%2f..%2f",
            "/..%00/admin",
            "/..%00x",
            "/..%20/admin",
            "/..%09",
            "/..%0d%0a/x",
            "/%20../x",
            "/..%3fx",
            "/..%23x",
            "/%252e%252e/admin",
            "/%252e%252e%252fadmin",
            "/..%252fadmin",
            "/.%252e/admin",
            "/%25252e%25252e/admin",
            "/..%255cadmin",
            "/%c0%ae%c0%ae/admin",
            "/..%c0%afadmin",
            "/..%c1%9cadmin",
            "/%e0%80%ae%e0%80%ae/x",
            "/..%f0%80%80%afx",
        ] {
            assert_eq!(prepared(path), Err("hidden dot segment".to_owned()), "{path:?}");
        }
    }

    #[test]
    fn encoded_characters_that_are_not_allowed_are_refused() {
        let options = PathOptions { encoded: EncodedCharacters::NONE, sanitize: true };
        for path in ["/a%2fb", "/a%5Cb", "/a%00", "/a%3b", "/a%25", "/a%3F", "/a%23"] {
            assert!(prepare(&Text::copy_from(path), &PathOptions::default()).is_ok(), "{path:?}");
            let refused = prepare(&Text::copy_from(path), &options);
            assert!(matches!(refused, Err(ProxyError::BadPath(_))), "{path:?}: {refused:?}");
        }
        for path in ["/a%20b", "/%C3%A9", "/%61", "/a;b"] {
            assert!(prepare(&Text::copy_from(path), &options).is_ok(), "{path:?}");
        }
        let only_slash = EncodedCharacters { slash: true, ..EncodedCharacters::NONE };
        assert!(check("/a%2Fb", &only_slash).is_ok());
        assert!(check("/a%2Fb%5C", &only_slash).is_err());
    }

    #[test]
    fn upstream_gets_the_clean_path_and_rules_the_decoded_one() {
        for (path, upstream, routing) in [
            ("/", "/", "/"),
            ("*", "*", "*"),
            ("/api/v1/invoices/42", "/api/v1/invoices/42", "/api/v1/invoices/42"),
            ("/.well-known/x", "/.well-known/x", "/.well-known/x"),
            ("/a/..b/...", "/a/..b/...", "/a/..b/..."),
            ("//a///b", "/a/b", "/a/b"),
            ("/a//", "/a/", "/a/"),
            ("/a/./b/.", "/a/b", "/a/b"),
            ("/a/b/../c", "/a/c", "/a/c"),
            ("/a/b/../", "/a/", "/a/"),
            ("/a/..", "/", "/"),
            ("/../../a", "/a", "/a"),
            ("/a/%2e%2E/b", "/b", "/b"),
            ("/a/.%2e/b", "/b", "/b"),
            ("/a/%2e/b", "/a/b", "/a/b"),
            ("/%77ith", "/with", "/with"),
            ("/a%2fb", "/a%2Fb", "/a%2Fb"),
            ("/a%20b", "/a%20b", "/a b"),
            ("/caf%c3%a9", "/caf%C3%A9", "/café"),
            ("/café", "/caf%C3%A9", "/café"),
            ("/%ff%C3x", "/%FF%C3x", "/%FF%C3x"),
            ("/%C3%A9%ff%C3%A9", "/%C3%A9%FF%C3%A9", "/é%FFé"),
            ("/a|b^c{d}\"<>`", "/a%7Cb%5Ec%7Bd%7D%22%3C%3E%60", "/a|b^c{d}\"<>`"),
            ("/[a]", "/[a]", "/[a]"),
            ("/%5ba%5d", "/%5Ba%5D", "/%5Ba%5D"),
            ("/100%25", "/100%25", "/100%25"),
            ("/a%3fb%23c", "/a%3Fb%23c", "/a%3Fb%23c"),
            ("/a;v=1/b", "/a;v=1/b", "/a;v=1/b"),
            ("/%2525", "/%2525", "/%2525"),
        ] {
            assert_eq!(prepared(path), Ok((upstream.to_owned(), routing.to_owned())), "{path:?}");
        }
    }

    #[test]
    fn without_sanitizing_dots_and_slashes_go_on() {
        let options = PathOptions { sanitize: false, ..PathOptions::default() };
        let prepared = prepare(&Text::from_static("//a/%2e%2e/./b"), &options).expect("a path");
        assert_eq!(prepared.upstream.as_str(), "//a/.././b");
        assert_eq!(prepared.routing(), &prepared.upstream);
    }

    #[test]
    fn a_path_that_needs_nothing_is_not_copied() {
        for path in ["/api/v1", "/a%2Fb", "/a;b", "/x/"] {
            let text = Text::copy_from(path);
            let prepared = prepare(&text, &PathOptions::default()).expect("a path");
            assert_eq!(prepared.upstream.as_str().as_ptr(), text.as_str().as_ptr(), "{path}");
            assert_eq!(prepared.routing().as_str().as_ptr(), text.as_str().as_ptr(), "{path}");
        }
    }

    #[test]
    fn semicolons_of_a_query_are_turned_and_nothing_else() {
        let query = "a=1;b=%zz;c?&;";
        assert_eq!(query_semicolons(query, QuerySemicolons::Ampersand), "a=1&b=%zz&c?&&");
        assert_eq!(query_semicolons(query, QuerySemicolons::Encode), "a=1%3Bb=%zz%3Bc?&%3B");
        assert!(matches!(query_semicolons("a=1&b", QuerySemicolons::Encode), Cow::Borrowed(_)));
    }

    fn any_path() -> impl Strategy<Value = String> {
        let piece = proptest::sample::select(vec![
            "/", "/", "/", ".", "..", "a", "Z", "%2e", "%2E", "%2f", "%5c", "%61", "%C3%A9", "%C3", "é",
            "%ff", "|", ";", "%3b", "%25", "%252e", "%00", "%3F", "[", "%5B", "+", "%20", "~", "%7e",
            "%c0%ae", "%zz",
        ]);
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
    }

    fn fully_decoded(path: &str) -> Vec<u8> {
        decode(path.as_bytes())
    }

    proptest! {
        #[test]
        fn preparing_twice_changes_nothing(path in any_path(), sanitize: bool) {
            let options = PathOptions { sanitize, ..PathOptions::default() };
            if let Ok(once) = prepare(&Text::copy_from(&path), &options) {
                let twice = prepare(&once.upstream, &options).expect("what was prepared is good");
                prop_assert_eq!(&twice, &once);
                prop_assert!(once.upstream.as_str().is_ascii());
                prop_assert!(once.upstream.as_str().starts_with('/'));
            }
        }

        #[test]
        fn the_router_and_the_pod_never_see_two_different_paths(path in any_path()) {
            if let Ok(prepared) = prepare(&Text::copy_from(&path), &PathOptions::default()) {
                let (upstream, routing) = (prepared.upstream.as_str(), prepared.routing().as_str());
                // A pod that decodes everything gets what decoding the router's path gives.
                prop_assert_eq!(fully_decoded(upstream), fully_decoded(routing));
                // The borders of segments are the same for both.
                prop_assert_eq!(upstream.split('/').count(), routing.split('/').count());
                // No reader finds a dot segment, however he separates, however often he decodes.
                let mut bytes = upstream.as_bytes().to_vec();
                for _ in 0..3 {
                    for part in bytes.split(|byte| matches!(byte, b'/' | b'\\')) {
                        prop_assert!(!reads_as_dots(part), "{} from {}", upstream, path);
                    }
                    bytes = shorten(&decode(&bytes));
                }
            }
        }

        #[test]
        fn different_paths_upstream_are_different_paths_to_rules(a in any_path(), b in any_path()) {
            let both = [a, b].map(|path| prepare(&Text::copy_from(&path), &PathOptions::default()));
            if let [Ok(a), Ok(b)] = both {
                prop_assert_eq!(a.upstream == b.upstream, a.routing() == b.routing());
            }
        }

        #[test]
        fn the_fast_path_agrees_with_the_pieces(path in any_path()) {
            if is_plain(path.as_bytes()) {
                prop_assert!(check(&path, &EncodedCharacters::NONE).is_ok());
                prop_assert_eq!(normalise(&path), path.as_str());
                prop_assert_eq!(sanitize(&path), path.as_str());
                prop_assert_eq!(routing_form(&path), path.as_str());
            }
        }

        #[test]
        fn no_text_at_all_makes_it_panic(path: String) {
            let _ = prepare(&Text::copy_from(&path), &PathOptions::default());
            let _ = (normalise(&path), sanitize(&path), routing_form(&path));
        }
    }
}
