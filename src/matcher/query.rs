//! Parameters of a raw query, compared without being decoded first.
//!
//! Follows Go's `url.ParseQuery`: `+` is a space, a pair with a broken escape does not exist. `;`
//! separates like `&`, because that is what it becomes on its way upstream.

use std::borrow::Cow;

/// Whether `pick` takes any value of the parameter `name`. Values come decoded, as bytes.
///
/// Allocates only for a value with an escape or a `+` in it.
pub(super) fn any_value(query: Option<&str>, name: &str, pick: impl Fn(&[u8]) -> bool) -> bool {
    pairs(query)
        .filter(|(key, _)| equals(key, name))
        .any(|(_, value)| decode(value).is_some_and(|value| pick(&value)))
}

/// Whether any value of the parameter `name` is `wanted`; a parameter without `=` has the empty value.
pub(super) fn has(query: Option<&str>, name: &str, wanted: &str) -> bool {
    pairs(query).any(|(key, value)| equals(key, name) && equals(value, wanted))
}

/// Every value of the parameter `name`, decoded, to show it.
pub(super) fn values(query: Option<&str>, name: &str) -> Vec<String> {
    pairs(query)
        .filter(|(key, _)| equals(key, name))
        .filter_map(|(_, value)| decode(value))
        .map(|value| String::from_utf8_lossy(&value).into_owned())
        .collect()
}

fn pairs(query: Option<&str>) -> impl Iterator<Item = (&[u8], &[u8])> {
    query
        .unwrap_or("")
        .as_bytes()
        .split(|byte| matches!(byte, b'&' | b';'))
        .filter(|pair| !pair.is_empty())
        .map(|pair| match memchr::memchr(b'=', pair) {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        })
}

/// Compares without decoding into a buffer.
fn equals(raw: &[u8], wanted: &str) -> bool {
    let mut raw = Bytes { rest: raw };
    let same = wanted.bytes().all(|byte| raw.next() == Some(Ok(byte)));
    same && raw.next().is_none()
}

fn decode(raw: &[u8]) -> Option<Cow<'_, [u8]>> {
    if memchr::memchr2(b'%', b'+', raw).is_none() {
        return Some(raw.into());
    }
    Bytes { rest: raw }.collect::<Result<Vec<u8>, BadEscape>>().ok().map(Cow::Owned)
}

#[derive(Debug, PartialEq)]
struct BadEscape;

struct Bytes<'a> {
    rest: &'a [u8],
}

impl Iterator for Bytes<'_> {
    type Item = Result<u8, BadEscape>;

    fn next(&mut self) -> Option<Self::Item> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(match first {
            b'+' => Ok(b' '),
            b'%' => match rest {
                [high, low, after @ ..] => {
                    self.rest = after;
                    let digit = |byte: u8| char::from(byte).to_digit(16);
                    match (digit(*high), digit(*low)) {
                        (Some(high), Some(low)) => u8::try_from(high * 16 + low).map_err(|_| BadEscape),
                        _ => Err(BadEscape),
                    }
                }
                _ => Err(BadEscape),
            },
            byte => Ok(byte),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_as_go_finds_them() {
        for (query, name, wanted, found) in [
            ("q=a", "q", "a", true),
            ("x=1&q=b&q=a", "q", "a", true),
            ("x=1;q=a", "q", "a", true),
            ("&&;q=a&", "q", "a", true),
            ("%71=%61", "q", "a", true),
            ("q=a+b%20c", "q", "a b c", true),
            ("q=a%2Bb", "q", "a+b", true),
            ("q=a%26x=1", "q", "a&x=1", true),
            ("q=a=b", "q", "a=b", true),
            ("q=caf%C3%A9", "q", "café", true),
            ("q", "q", "", true),
            ("q=", "q", "", true),
            ("q=a", "q", "", false),
            ("Q=a", "q", "a", false),
            ("q=A", "q", "a", false),
            ("q=ab", "q", "a", false),
            ("qq=a", "q", "a", false),
            ("q=a%zz", "q", "a", false),
            ("q=a%6", "q", "a", false),
            ("q=%zz&q=a", "q", "a", true),
            ("q%zz=a", "q", "a", false),
            ("", "q", "", false),
        ] {
            assert_eq!(has(Some(query), name, wanted), found, "{query:?} {name:?} {wanted:?}");
        }
        assert!(!has(None, "q", ""));
    }

    #[test]
    fn a_pair_with_a_broken_escape_does_not_exist() {
        assert!(!any_value(Some("q=%zz"), "q", |_| true));
        assert!(any_value(Some("q=%zz&q=%41+"), "q", |value| value == b"A "));
        assert_eq!(values(Some("q=%zz&q=1&q=2+3"), "q"), ["1", "2 3"]);
    }
}
