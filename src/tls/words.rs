//! The words of Traefik (and Go) for versions, cipher suites and groups, and what of them there is here.

use rustls::crypto::{SupportedKxGroup, aws_lc_rs};
use rustls::{CipherSuite, NamedGroup, ProtocolVersion, SupportedCipherSuite, SupportedProtocolVersion};

/// Why a word cannot be used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub hint: String,
}

fn refused(message: String, hint: impl Into<String>) -> Refused {
    Refused { message, hint: hint.into() }
}

/// A version that can be spoken.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

impl Version {
    /// Reads `VersionTLS12`.
    ///
    /// # Errors
    /// No such version, or one that nobody should speak any more.
    pub fn parse(word: &str) -> Result<Self, Refused> {
        match word {
            "VersionTLS12" => Ok(Self::Tls12),
            "VersionTLS13" => Ok(Self::Tls13),
            "VersionTLS10" | "VersionTLS11" | "VersionSSL30" => Err(refused(
                format!("{word} is not offered: it is broken (RFC 8996)"),
                "write VersionTLS12; clients that speak only older versions cannot be served",
            )),
            _ => Err(refused(format!("unknown TLS version {word:?}"), "VersionTLS12 or VersionTLS13")),
        }
    }

    /// As rustls wants them: all from `min` to `max`.
    pub fn range(min: Self, max: Self) -> &'static [&'static SupportedProtocolVersion] {
        const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
        match (min, max) {
            (Self::Tls12, Self::Tls12) => &BOTH[1..],
            (Self::Tls13, _) => &BOTH[..1],
            (Self::Tls12, Self::Tls13) => BOTH,
        }
    }
}

/// The suites of TLS 1.2 that a list of names leaves, with all of TLS 1.3, which cannot be chosen from (as in
/// Go). An empty list leaves everything.
///
/// # Errors
/// Each name that is none, or none that is offered here, by its place in the list.
pub fn cipher_suites(names: &[String]) -> Result<Vec<SupportedCipherSuite>, Vec<(usize, Refused)>> {
    let all = aws_lc_rs::DEFAULT_CIPHER_SUITES;
    if names.is_empty() {
        return Ok(all.to_vec());
    }
    let mut wanted = Vec::new();
    let mut bad = Vec::new();
    for (index, name) in names.iter().enumerate() {
        match all.iter().find(|suite| suite_matches(suite.suite(), name)) {
            Some(suite) => wanted.push(suite.suite()),
            None if name.starts_with("TLS_") || name.starts_with("SSL_") => bad.push((
                index,
                refused(
                    format!("cipher suite {name} is not offered"),
                    format!("only suites with forward secrecy and AEAD are: {}", suite_names()),
                ),
            )),
            None => {
                bad.push((index, refused(format!("unknown cipher suite {name:?}"), suite_names())));
            }
        }
    }
    if !bad.is_empty() {
        return Err(bad);
    }
    let is_kept = |suite: &&SupportedCipherSuite| suite.tls13().is_some() || wanted.contains(&suite.suite());
    Ok(all.iter().filter(is_kept).copied().collect())
}

fn suite_names() -> String {
    let names: Vec<_> = aws_lc_rs::DEFAULT_CIPHER_SUITES
        .iter()
        .filter(|suite| suite.tls13().is_none())
        .map(|suite| suite_name(suite.suite()))
        .collect();
    names.join(", ")
}

/// Go knows the two ChaCha suites under two names each.
fn suite_matches(suite: CipherSuite, name: &str) -> bool {
    let own = suite_name(suite);
    own == name
        || own.strip_suffix("_SHA256").is_some_and(|short| short == name && short.ends_with("POLY1305"))
}

/// A suite as Traefik writes it: `TLS_AES_128_GCM_SHA256`.
pub fn suite_name(suite: CipherSuite) -> String {
    let own = format!("{suite:?}");
    match own.strip_prefix("TLS13_") {
        Some(rest) => format!("TLS_{rest}"),
        None => own,
    }
}

/// A version as Traefik's access log writes it: `1.3`.
pub fn version_name(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_2 => "1.2",
        ProtocolVersion::TLSv1_3 => "1.3",
        _ => "unknown",
    }
}

/// The groups that a list of names leaves, in its order. An empty list leaves everything.
///
/// # Errors
/// Each name that is none, or none that is offered here, by its place in the list.
pub fn groups(names: &[String]) -> Result<Vec<&'static dyn SupportedKxGroup>, Vec<(usize, Refused)>> {
    if names.is_empty() {
        return Ok(aws_lc_rs::DEFAULT_KX_GROUPS.to_vec());
    }
    let mut wanted = Vec::new();
    let mut bad = Vec::new();
    const KNOWN: &str = "X25519MLKEM768, SecP256r1MLKEM768, X25519, CurveP256, CurveP384";
    for (index, name) in names.iter().enumerate() {
        let group = match name.as_str() {
            "CurveP256" | "secp256r1" => Some(NamedGroup::secp256r1),
            "CurveP384" | "secp384r1" => Some(NamedGroup::secp384r1),
            "X25519" | "x25519" => Some(NamedGroup::X25519),
            "X25519MLKEM768" => Some(NamedGroup::X25519MLKEM768),
            "SecP256r1MLKEM768" => Some(NamedGroup::secp256r1MLKEM768),
            _ => None,
        };
        let group = group
            .and_then(|wanted| aws_lc_rs::ALL_KX_GROUPS.iter().find(|group| group.name() == wanted).copied());
        match group {
            Some(group) => wanted.push(group),
            None => {
                let message = match name.as_str() {
                    "CurveP521" | "secp521r1" | "SecP384r1MLKEM1024" => {
                        format!("curve {name} is not offered")
                    }
                    _ => format!("unknown curve {name:?}"),
                };
                bad.push((index, refused(message, format!("use some of {KNOWN}"))));
            }
        }
    }
    if bad.is_empty() { Ok(wanted) } else { Err(bad) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_not_offered_is_refused_by_its_name() {
        assert!(Version::parse("VersionTLS11").unwrap_err().message.contains("VersionTLS11"));
        let bad = cipher_suites(&names(&[
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "TLS_RSA_WITH_AES_128_CBC_SHA",
            "nonsense",
        ]));
        let bad = bad.unwrap_err();
        assert_eq!(bad.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2]);
        assert!(bad[0].1.message.contains("TLS_RSA_WITH_AES_128_CBC_SHA is not offered"));
        assert!(groups(&names(&["CurveP521"])).unwrap_err()[0].1.message.contains("is not offered"));
    }

    #[test]
    fn a_list_of_suites_chooses_among_those_of_tls_1_2_alone() {
        let suites =
            cipher_suites(&names(&["TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"])).expect("Go's short name");
        let names: Vec<_> = suites.iter().map(|suite| suite_name(suite.suite())).collect();
        assert_eq!(names.iter().filter(|name| name.starts_with("TLS_ECDHE")).count(), 1);
        assert!(names.contains(&"TLS_AES_128_GCM_SHA256".to_owned()));
    }

    #[test]
    fn curves_keep_the_order_of_the_list() {
        let groups = groups(&names(&["CurveP384", "X25519", "SecP256r1MLKEM768"])).expect("all there");
        let names: Vec<_> = groups.iter().map(|group| group.name()).collect();
        assert_eq!(names, [NamedGroup::secp384r1, NamedGroup::X25519, NamedGroup::secp256r1MLKEM768]);
    }
}
