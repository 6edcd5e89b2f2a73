//! Cookies as the balancer reads and writes them (RFC 6265).

use http::header::COOKIE;

use crate::http::fields::Fields;

/// The value of the first cookie of that name, without quotes. Names are compared with case.
///
/// HTTP/2 may spread the cookies of one request over several fields (RFC 9113 §8.2.3).
pub fn find<'h>(headers: &'h Fields, name: &str) -> Option<&'h str> {
    headers.get_all(COOKIE).filter_map(|line| line.to_str().ok()).find_map(|line| {
        line.split(';').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            let value = value.trim();
            let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
            (key.trim() == name).then_some(bare.unwrap_or(value))
        })
    })
}

/// Whether a byte may stand in a cookie's name (RFC 9110 §5.6.2).
pub fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether a byte may stand in an attribute's value (RFC 6265 §4.1.1).
pub fn is_attribute_byte(byte: u8) -> bool {
    (b' '..=b'~').contains(&byte) && byte != b';'
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_first_cookie_of_the_name_counts_on_whichever_line_it_is() {
        let mut headers = Fields::new();
        for line in ["a=1; aa=2;b = 3 ", "c=\"4\"; a=5; =6; d", "e=f=g"] {
            headers.append(COOKIE, HeaderValue::from_static(line));
        }
        for (name, value) in [("a", Some("1")), ("aa", Some("2")), ("b", Some("3")), ("c", Some("4"))] {
            assert_eq!(find(&headers, name), value, "{name}");
        }
        assert_eq!(find(&headers, "e"), Some("f=g"));
        assert_eq!(find(&headers, "A"), None);
        assert_eq!(find(&headers, "d"), None);
    }

    #[test]
    fn a_line_that_is_no_text_hides_no_other() {
        let mut headers = Fields::new();
        headers.append(COOKIE, HeaderValue::from_bytes(b"a=\xff").expect("a value"));
        headers.append(COOKIE, HeaderValue::from_static("a=1"));
        assert_eq!(find(&headers, "a"), Some("1"));
    }
}
