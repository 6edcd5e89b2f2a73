//! Sticky cookies: a client stays with the endpoint, or the service, that answered it first.
//!
//! Name, value and attributes are Traefik's; a signature is an option. Pure.

use std::fmt::Write;

use aws_lc_rs::{constant_time, digest, hmac};
use http::HeaderValue;

use crate::balance::cookie;
use crate::endpoint::tag::Tag;
use crate::http::fields::Fields;

/// Bytes of the HMAC that a cookie carries: 128 bits cannot be guessed, and make a short cookie.
const SIGNATURE: usize = 16;

/// The cookie of one service.
#[derive(Debug)]
pub struct Sticky {
    name: Box<str>,
    /// From the first `;` on.
    attributes: Box<str>,
    /// The first signs; all are accepted. None: nothing is signed.
    keys: Box<[hmac::Key]>,
}

/// What a request's cookie says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Claim {
    /// There is none.
    Nothing,
    /// It cannot be one of ours, or its signature is wrong.
    Refused,
    /// It means whoever has this number.
    Means(u64),
}

/// `SameSite` of a cookie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SameSite {
    /// Sent from other sites too.
    None,
    /// Sent from other sites when the user follows a link.
    Lax,
    /// Not sent from other sites.
    Strict,
}

/// What a cookie carries beside its value.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// Empty: none.
    pub path: String,
    /// Empty: none.
    pub domain: String,
    /// Seconds; 0: until the browser is closed; less: the browser forgets it at once.
    pub max_age: i64,
    /// Only over TLS.
    pub secure: bool,
    /// Out of reach of scripts.
    pub http_only: bool,
    /// To which sites' requests it is attached.
    pub same_site: Option<SameSite>,
}

impl Attributes {
    /// In the order and spelling of Traefik.
    fn text(&self) -> String {
        let mut text = String::new();
        let mut add = |part: &str| text.push_str(part);
        if !self.path.is_empty() {
            add(&format!("; Path={}", self.path));
        }
        if !self.domain.is_empty() {
            // A dot in front means nothing any more (RFC 6265 §5.2.3).
            add(&format!("; Domain={}", self.domain.trim_start_matches('.')));
        }
        match self.max_age {
            0 => {}
            age => add(&format!("; Max-Age={}", age.max(0))),
        }
        if self.http_only {
            add("; HttpOnly");
        }
        if self.secure {
            add("; Secure");
        }
        match self.same_site {
            Some(SameSite::None) => add("; SameSite=None"),
            Some(SameSite::Lax) => add("; SameSite=Lax"),
            Some(SameSite::Strict) => add("; SameSite=Strict"),
            None => {}
        }
        text
    }
}

impl Sticky {
    /// A cookie of this name; `keys` sign it, if there are any.
    pub fn new(name: &str, attributes: &Attributes, keys: &[String]) -> Self {
        Self {
            name: clean(name).into(),
            attributes: attributes.text().into(),
            keys: keys.iter().map(|key| hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes())).collect(),
        }
    }

    /// The name that Traefik gives to the cookie of a service by default. `service` is its full name
    /// (`api@file`).
    pub fn default_name(service: &str) -> String {
        let hash = digest::digest(
            &digest::SHA1_FOR_LEGACY_USE_ONLY,
            format!("_TRAEFIK_BACKEND_{service}").as_bytes(),
        );
        let mut name = String::from("_");
        name.push_str(&hex(hash.as_ref())[..5]);
        name
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is signed.
    pub fn is_signed(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Reads the cookie of a request. Cost: a search in its `Cookie` fields, and one HMAC for each key.
    pub fn claim(&self, headers: &Fields) -> Claim {
        let Some(value) = cookie::find(headers, &self.name) else { return Claim::Nothing };
        let text = if self.keys.is_empty() {
            value
        } else {
            let Some((text, signature)) = value.split_once('.') else { return Claim::Refused };
            let good = |key| {
                let due = self.signature(key, text);
                constant_time::verify_slices_are_equal(due.as_bytes(), signature.as_bytes()).is_ok()
            };
            if !self.keys.iter().any(good) {
                return Claim::Refused;
            }
            text
        };
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match u64::from_str_radix(text, 16) {
            Ok(number) if text.bytes().all(is_hex) => Claim::Means(number),
            _ => Claim::Refused,
        }
    }

    /// The field that sticks a client to `tag`.
    pub fn set(&self, tag: Tag) -> HeaderValue {
        let text = tag.text();
        let field = match self.keys.first() {
            None => format!("{}={text}{}", self.name, self.attributes),
            Some(key) => format!("{}={text}.{}{}", self.name, self.signature(key, &text), self.attributes),
        };
        HeaderValue::try_from(field).expect("name and attributes were checked, the rest is hex")
    }

    /// Over name and value, so that a value is no good in another cookie.
    fn signature(&self, key: &hmac::Key, text: &str) -> String {
        let tag = hmac::sign(key, format!("{}={text}", self.name).as_bytes());
        hex(&tag.as_ref()[..SIGNATURE])
    }
}

/// What cannot stand in a cookie's name becomes `_`, as in Traefik.
fn clean(name: &str) -> String {
    name.chars().map(|c| if u8::try_from(c).is_ok_and(cookie::is_name_byte) { c } else { '_' }).collect()
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;

    use super::*;

    const URL: &str = "http://127.0.0.1:19102";

    fn claim(sticky: &Sticky, line: &str) -> Claim {
        let mut headers = Fields::new();
        headers.append(COOKIE, HeaderValue::try_from(line).expect("a value"));
        sticky.claim(&headers)
    }

    fn plain() -> Sticky {
        let attributes = Attributes { path: "/".into(), ..Attributes::default() };
        Sticky::new(&Sticky::default_name("sticky@file"), &attributes, &[])
    }

    fn signed(keys: &[&str]) -> Sticky {
        let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
        Sticky::new("s", &Attributes::default(), &keys)
    }

    /// The `name=value` that a client sends back.
    fn pair(sticky: &Sticky) -> String {
        let field = sticky.set(Tag::of(URL));
        field.to_str().expect("text").split(';').next().expect("a pair").to_owned()
    }

    #[test]
    fn the_cookie_is_traefiks_to_the_byte() {
        // Seen on Traefik 3.7.15.
        assert_eq!(plain().set(Tag::of(URL)), "_252c2=8677392c7f553091; Path=/");
        assert_eq!(Sticky::default_name("backend"), "_76eb3");
        assert_eq!(Sticky::default_name("/my/BACKEND-v1.0~rc1"), "_5f7bc");
        assert_eq!(clean("/my/BACKEND-v1.0~rc1"), "_my_BACKEND-v1.0~rc1");
        assert_eq!(clean("ä b"), "__b");
    }

    #[test]
    fn attributes_come_in_traefiks_order() {
        let all = Attributes {
            path: "/app".into(),
            domain: ".example.test".into(),
            max_age: 60,
            secure: true,
            http_only: true,
            same_site: Some(SameSite::None),
        };
        assert_eq!(
            all.text(),
            "; Path=/app; Domain=example.test; Max-Age=60; HttpOnly; Secure; SameSite=None"
        );
        assert_eq!(Attributes { max_age: -1, ..Attributes::default() }.text(), "; Max-Age=0");
        assert_eq!(Attributes::default().text(), "");
    }

    #[test]
    fn what_was_set_is_understood_and_what_is_not_hex_is_not() {
        let tag = Tag::of(URL);
        assert_eq!(claim(&plain(), &pair(&plain())), Claim::Means(tag.number()));
        assert_eq!(claim(&plain(), "other=1"), Claim::Nothing);
        for bad in ["", "xyz", "+1", "8677392C7F553091", "8677392c7f5530911", " "] {
            assert_eq!(claim(&plain(), &format!("_252c2={bad}")), Claim::Refused, "{bad:?}");
        }
    }

    #[test]
    fn a_signed_cookie_cannot_be_made_or_changed_by_the_client() {
        let sticky = signed(&["secret"]);
        let good = pair(&sticky);
        assert_eq!(claim(&sticky, &good), Claim::Means(Tag::of(URL).number()));
        let (head, signature) = good.split_once('.').expect("a signature");
        assert_eq!(signature.len(), 2 * SIGNATURE);
        let other = Tag::of("http://127.0.0.1:1").text();
        for bad in [head, &format!("{head}."), &format!("s={other}.{signature}"), &good[..good.len() - 1]] {
            assert_eq!(claim(&sticky, bad), Claim::Refused, "{bad}");
        }
        assert_eq!(claim(&signed(&["another"]), &good), Claim::Refused);
        let renamed = Sticky::new("t", &Attributes::default(), &["secret".to_owned()]);
        assert_eq!(claim(&renamed, &good.replacen('s', "t", 1)), Claim::Refused);
    }

    #[test]
    fn an_old_key_is_accepted_while_it_is_listed() {
        let old = pair(&signed(&["old"]));
        assert_ne!(claim(&signed(&["new", "old"]), &old), Claim::Refused);
        assert_eq!(claim(&signed(&["new"]), &old), Claim::Refused);
        assert_eq!(pair(&signed(&["new", "old"])), pair(&signed(&["new"])));
    }
}
