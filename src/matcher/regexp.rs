//! Regular expressions in Go's syntax (RE2), run by the `regex` crate: linear time, bounded size.
//!
//! The two read most patterns alike. Where they do not, the pattern is rewritten to say here what it
//! says in Go: `\d \w \s \b` are ASCII, a `{` that begins no repetition is itself, `[` and `&&` mean
//! nothing inside a class, `\Q...\E` quotes.

use std::fmt::Write;

use regex::bytes::{Regex, RegexBuilder};

/// Bytes of one compiled expression. A big real one needs some 100 KB; `\w{1000}` stays outside.
const MAX_COMPILED_BYTES: usize = 1 << 20;

/// Whether capitals matter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Case {
    /// As written.
    Sensitive,
    /// Not at all.
    Insensitive,
}

/// Compiles a pattern that matches anywhere in a text, as in Go.
pub(super) fn compile(pattern: &str, case: Case) -> Result<Regex, String> {
    RegexBuilder::new(&translate(pattern))
        .case_insensitive(case == Case::Insensitive)
        .size_limit(MAX_COMPILED_BYTES)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(limit) => format!("it would take more than {limit} bytes"),
            other => reason(&other),
        })
}

/// The last line of the crate's multi-line report, which says what is wrong.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().next_back().unwrap_or_default();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

fn translate(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut rest = pattern;
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            '\\' => escape(after, Inside::Pattern, &mut out),
            '[' => class(after, &mut out),
            '{' if !is_repetition(after) => {
                out.push_str("\\{");
                after
            }
            c => {
                out.push(c);
                after
            }
        };
    }
    out
}

#[derive(Clone, Copy, PartialEq)]
enum Inside {
    Pattern,
    Class,
}

/// What follows a backslash; gives what comes after it.
fn escape<'a>(text: &'a str, inside: Inside, out: &mut String) -> &'a str {
    let Some(kind) = text.chars().next() else {
        out.push('\\');
        return text;
    };
    let after = &text[kind.len_utf8()..];
    let set = match kind {
        'd' | 'D' => "0-9",
        'w' | 'W' => "0-9A-Za-z_",
        's' | 'S' => "\\t\\n\\x0C\\r ",
        'b' | 'B' if inside == Inside::Pattern => {
            let _ = write!(out, "(?-u:\\{kind})");
            return after;
        }
        'Q' if inside == Inside::Pattern => {
            let (quoted, after) = after.split_once("\\E").unwrap_or((after, ""));
            out.push_str(&regex::escape(quoted));
            return after;
        }
        // `\p{Greek}` and `\x{10FFFF}`: these braces are no repetition.
        'p' | 'P' | 'x' if after.starts_with('{') => {
            let (braced, after) = after.split_at(after.find('}').map_or(after.len(), |end| end + 1));
            let _ = write!(out, "\\{kind}{braced}");
            return after;
        }
        other => {
            out.push('\\');
            out.push(other);
            return after;
        }
    };
    match (inside, kind.is_ascii_uppercase()) {
        (Inside::Class, false) => out.push_str(set),
        (_, true) => {
            let _ = write!(out, "[^{set}]");
        }
        (Inside::Pattern, false) => {
            let _ = write!(out, "[{set}]");
        }
    }
    after
}

/// What follows a `[`, up to its `]`; gives what comes after it.
fn class<'a>(text: &'a str, out: &mut String) -> &'a str {
    out.push('[');
    let mut rest = text;
    if let Some(after) = rest.strip_prefix('^') {
        out.push('^');
        rest = after;
    }
    // A `]` in first place is itself.
    if let Some(after) = rest.strip_prefix(']') {
        out.push_str("\\]");
        rest = after;
    }
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        rest = match c {
            ']' => {
                out.push(']');
                return after;
            }
            '\\' => escape(after, Inside::Class, out),
            '[' => match after.strip_prefix(':').and_then(|name| name.find(":]")) {
                Some(end) => {
                    let (name, after) = rest.split_at(end + 4);
                    out.push_str(name);
                    after
                }
                None => {
                    out.push_str("\\[");
                    after
                }
            },
            // Twice in a row they are set operators here.
            '&' | '~' => {
                out.push('\\');
                out.push(c);
                after
            }
            // `--` too: at the start a dash and perhaps a range from it, later a range up to a dash.
            '-' if after.starts_with('-') => {
                if out.ends_with(['[', '^']) {
                    out.push_str("\\-");
                    after
                } else {
                    out.push_str("-\\-");
                    &after[1..]
                }
            }
            c => {
                out.push(c);
                after
            }
        };
    }
    rest
}

/// Whether what follows a `{` is `n}`, `n,}` or `n,m}`.
fn is_repetition(text: &str) -> bool {
    let Some((inner, _)) = text.split_once('}') else { return false };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match inner.split_once(',') {
        None => digits(inner),
        Some((low, high)) => digits(low) && (high.is_empty() || digits(high)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern, Case::Sensitive).expect(pattern).is_match(text.as_bytes())
    }

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, text, found) in [
            (r"^/api/v\d+$", "/api/v12", true),
            (r"^\d$", "٣", false),
            (r"^\w+$", "é", false),
            (r"^[\w-]+$", "a-b_9", true),
            (r"^[^\d]$", "x", true),
            (r"^[\D]$", "7", false),
            (r"^[\s]$", "\x0b", false),
            (r"\bapi\b", "/api/", true),
            (r"{id:[0-9]+}", "{id:12}", true),
            (r"^a{2}$", "aa", true),
            (r"^a{2,}$", "aaa", true),
            (r"^a{,2}$", "a{,2}", true),
            (r"^[[]$", "[", true),
            (r"^[]a]$", "]", true),
            (r"^[^]a]$", "]", false),
            (r"^[a&&b]+$", "a&b", true),
            (r"^[!--]$", "%", true),
            (r"^[--a]$", "A", true),
            (r"^[[:alpha:]]+$", "abc", true),
            (r"^\Qa.b\E$", "a.b", true),
            (r"^\Qa.b\E$", "axb", false),
            (r"(?i)^ÀPI$", "àpi", true),
            (r"^\pL$", "é", true),
            (r"^\p{Greek}\x{3b2}[\x{3b3}]$", "αβγ", true),
            (r"^.$", "é", true),
            ("", "anything", true),
        ] {
            assert_eq!(matches(pattern, text), found, "{pattern} on {text:?}");
        }
    }

    #[test]
    fn a_pattern_that_is_none_says_why() {
        for (pattern, reason) in [
            ("(a", "unclosed group"),
            ("a)", "unopened group"),
            ("[a", "unclosed character class"),
            ("*a", "repetition operator missing expression"),
            ("a\\", "incomplete escape sequence, reached end of pattern prematurely"),
            ("(?=a)", "look-around, including look-ahead and look-behind, is not supported"),
            (r"\w{1000}{1000}", "it would take more than 1048576 bytes"),
        ] {
            assert_eq!(compile(pattern, Case::Sensitive).expect_err(pattern), reason);
        }
    }
}
