//! Taking secrets out of what the API shows.

use serde_json::Value;

/// What stands for a secret.
pub(crate) const REDACTED: &str = "REDACTED";

/// Keys whose values are secrets, in lower case without `-` and `_`. `key` is a private key (`tls.key`) or
/// an encryption key; names of files (`keyFile`, `usersFile`) are no secrets.
const SECRET_KEYS: &[&str] = &[
    "authorization",
    "cookie",
    "credentials",
    "key",
    "keys",
    "privatekey",
    "proxyauthorization",
    "psk",
    "setcookie",
    "signingkeys",
    "users",
];

/// Ends of keys whose values are secrets: `clientSecret`, `X-Api-Key`, `bearer_token`.
const SECRET_ENDS: &[&str] =
    &["apikey", "hmac", "password", "passwords", "privatekey", "secret", "secrets", "token", "tokens"];

/// Keys whose values are names of items: a name is no secret, even when it came from the environment.
const NAMES: &[&str] = &["entryPoints", "middlewares", "service", "using"];

/// Replaces every text and number under a key that names a secret, the credentials in URLs, and `secrets` (what
/// `${env:..}` and `${file:..}` stood for, longest first) wherever they are; maps and lists keep their shape.
pub fn redact(value: &mut Value, secrets: &[String]) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                // The settings of a cookie (`sticky.cookie`) are no cookie.
                let settings = key == "cookie" && value.is_object();
                if is_secret(key) && !settings {
                    blot(value);
                } else {
                    redact(value, if NAMES.contains(&key.as_str()) { &[] } else { secrets });
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redact(value, secrets)),
        Value::String(text) => {
            if let Some(without) = without_credentials(text) {
                *text = without;
            }
            for secret in secrets {
                // What is this short stands in other words too, by chance.
                if text == secret || secret.len() > 2 && text.contains(secret) {
                    *text = text.replace(secret, REDACTED);
                }
            }
        }
        Value::Number(number) => {
            if secrets.contains(&number.to_string()) {
                *value = REDACTED.into();
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn is_secret(key: &str) -> bool {
    let key: String =
        key.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect();
    SECRET_KEYS.contains(&key.as_str()) || SECRET_ENDS.iter().any(|end| key.ends_with(end))
}

fn blot(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(blot),
        Value::Array(values) => values.iter_mut().for_each(blot),
        Value::String(_) | Value::Number(_) => *value = REDACTED.into(),
        Value::Null | Value::Bool(_) => {}
    }
}

/// `http://user:password@host/` without what is before the `@`, if there is such a thing.
fn without_credentials(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once("://")?;
    let authority = rest.find(['/', '?', '#']).map_or(rest, |end| &rest[..end]);
    let at = authority.rfind('@')?;
    Some(format!("{scheme}://{REDACTED}{}", &rest[at..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_replaced_and_all_else_stays() {
        let mut value = json!({
            "basicAuth": { "users": ["ann:$apr1$x"], "usersFile": "/etc/users", "realm": "r", "removeHeader": true },
            "headers": { "customRequestHeaders": { "Authorization": "Bearer x", "X-Api-Key": "x", "X-Tag": "t" } },
            "tls": { "cert": "pem", "key": "pem", "keyFile": "/etc/key" },
            "redis": { "endpoints": ["redis://ann:x@cache:6379/0"], "password": 7, "username": "ann" },
            "oidc": { "clientSecret": { "value": "x" }, "client_secret": "x", "sessionToken": "x" },
            "sticky": { "cookie": { "name": "n", "signingKeys": ["x"] } },
            "url": "http://pod/path@x",
            "secret": null,
        });
        redact(&mut value, &[]);
        let expected = json!({
            "basicAuth": { "users": ["REDACTED"], "usersFile": "/etc/users", "realm": "r", "removeHeader": true },
            "headers": { "customRequestHeaders": { "Authorization": "REDACTED", "X-Api-Key": "REDACTED", "X-Tag": "t" } },
            "tls": { "cert": "pem", "key": "REDACTED", "keyFile": "/etc/key" },
            "redis": { "endpoints": ["redis://REDACTED@cache:6379/0"], "password": "REDACTED", "username": "ann" },
            "oidc": { "clientSecret": { "value": "REDACTED" }, "client_secret": "REDACTED", "sessionToken": "REDACTED" },
            "sticky": { "cookie": { "name": "n", "signingKeys": ["REDACTED"] } },
            "url": "http://pod/path@x",
            "secret": null,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn what_stood_elsewhere_is_replaced_wherever_it_is_put() {
        let mut value = json!({
            "headers": { "customRequestHeaders": { "X-Tag": "id=tag-7", "X-Who": "me", "X-Me": "some" } },
            "rule": "Header(`X-Tag`, `tag-7`)", "entryPoints": ["web"], "service": "web", "burst": 12345, "note": "web",
        });
        redact(&mut value, &["tag-7".to_owned(), "12345".to_owned(), "web".to_owned(), "me".to_owned()]);
        let expected = json!({
            "headers": { "customRequestHeaders": { "X-Tag": "id=REDACTED", "X-Who": "REDACTED", "X-Me": "some" } },
            "rule": "Header(`X-Tag`, `REDACTED`)", "entryPoints": ["web"], "service": "web", "burst": "REDACTED",
            "note": "REDACTED",
        });
        assert_eq!(value, expected);
    }
}
