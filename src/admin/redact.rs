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

/// Replaces every text and number under a key that names a secret, and the credentials in URLs; maps
/// and lists keep their shape.
pub fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                // The settings of a cookie (`sticky.cookie`) are no cookie.
                let settings = key == "cookie" && value.is_object();
                if is_secret(key) && !settings { blot(value) } else { redact(value) }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(redact),
        Value::String(text) => {
            if let Some(without) = without_credentials(text) {
                *text = without;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
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
        redact(&mut value);
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
}
