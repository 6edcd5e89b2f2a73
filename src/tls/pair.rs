//! A certificate with its key, as rustls wants it, and what people want to know of it.

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::provider;

/// A certificate chain and its key.
#[derive(Clone, Debug)]
pub struct Pair {
    /// For handshakes.
    pub key: Arc<CertifiedKey>,
    /// What it says of itself.
    pub facts: Facts,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// The names it is for, in lower case, `*.a.test` among them; addresses too.
    pub names: Vec<String>,
    /// `CN` of its subject, if it has one.
    pub common_name: String,
    /// In hexadecimal digits.
    pub serial: String,
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970.
    pub not_after: i64,
}

impl Facts {
    /// Whether it holds no more at `now` (seconds since 1970).
    pub fn is_expired(&self, now: i64) -> bool {
        self.not_after < now
    }
}

/// Why there is no pair. Never says anything of the key itself.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// No `CERTIFICATE` block.
    #[error("there is no certificate in it")]
    NoCertificate,
    /// No block with a private key.
    #[error("there is no private key in it")]
    NoKey,
    /// Base64 or its frame is broken.
    #[error("it is not PEM: {0}")]
    Pem(pem::Error),
    /// Not X.509.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// A kind of key that cannot sign here.
    #[error("the key cannot be used: {0}")]
    Key(Error),
    /// It is the key of another certificate.
    #[error("the key does not belong to the certificate")]
    Mismatch,
}

impl PairError {
    /// Whether the key file is at fault rather than the certificate's.
    pub fn is_about_key(&self) -> bool {
        match self {
            Self::NoKey | Self::Key(_) | Self::Mismatch => true,
            Self::NoCertificate | Self::Pem(_) | Self::Certificate(_) => false,
        }
    }
}

impl Pair {
    /// Reads a chain, its key and perhaps an OCSP answer (DER), and checks that they belong together.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_pem(chain: &[u8], key: &[u8], ocsp: Option<Vec<u8>>) -> Result<Self, PairError> {
        let chain = certificates(chain)?;
        let first = chain.first().ok_or(PairError::NoCertificate)?;
        let facts = facts(first)?;
        let key = match PrivateKeyDer::from_pem_slice(key) {
            Ok(key) => key,
            Err(pem::Error::NoItemsFound) => return Err(PairError::NoKey),
            Err(error) => return Err(PairError::Pem(error)),
        };
        let mut key = CertifiedKey::from_der(chain, key, provider()).map_err(|error| match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => PairError::Mismatch,
            error => PairError::Key(error),
        })?;
        key.ocsp = ocsp;
        Ok(Self { key: Arc::new(key), facts })
    }

    /// Makes one that nobody trusts, for clients that ask for no name we have.
    ///
    /// # Errors
    /// The library could not; there is no reason why it should not.
    pub fn self_signed() -> Result<Self, PairError> {
        let made = || -> Result<(String, String), rcgen::Error> {
            let mut params = rcgen::CertificateParams::new(Vec::<String>::new())?;
            params.distinguished_name.push(rcgen::DnType::CommonName, DEFAULT_NAME);
            let now = std::time::SystemTime::now();
            params.not_before = now.into();
            params.not_after = (now + DEFAULT_LIFE).into();
            let key = rcgen::KeyPair::generate()?;
            Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
        };
        let (chain, key) = made().map_err(|error| PairError::Certificate(error.to_string()))?;
        Self::from_pem(chain.as_bytes(), key.as_bytes(), None)
    }
}

/// Subject of the certificate that is made when none is configured.
const DEFAULT_NAME: &str = "SLUICEGATE DEFAULT CERT";
/// A year: it is made anew with each start.
const DEFAULT_LIFE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 60 * 60);

/// Every certificate of a PEM text, in its order.
///
/// # Errors
/// It is not PEM, or has none.
pub fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(PairError::Pem)?;
    if chain.is_empty() { Err(PairError::NoCertificate) } else { Ok(chain) }
}

/// The certificates of a PEM text, each of which can vouch for others.
///
/// # Errors
/// There is none, or one is not what it should be.
pub fn authorities(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let all = certificates(text)?;
    let mut store = rustls::RootCertStore::empty();
    for certificate in &all {
        facts(certificate)?;
        store.add(certificate.clone()).map_err(|error| PairError::Certificate(error.to_string()))?;
    }
    Ok(all)
}

/// What a certificate says of itself.
///
/// # Errors
/// It is not X.509.
pub fn facts(der: &[u8]) -> Result<Facts, PairError> {
    let (_, parsed) =
        X509Certificate::from_der(der).map_err(|error| PairError::Certificate(error.to_string()))?;
    let common_name = parsed
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .unwrap_or_default()
        .to_owned();
    let mut names = Vec::new();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes)),
                _ => {}
            }
        }
    }
    // As in Traefik, the old place of the name counts where there is no new one.
    if names.is_empty() && !common_name.is_empty() && !common_name.contains(' ') {
        names.push(common_name.to_ascii_lowercase());
    }
    names.sort();
    names.dedup();
    let validity = parsed.validity();
    Ok(Facts {
        names,
        common_name,
        serial: parsed.serial.to_str_radix(16),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
    })
}

/// The subject of a certificate in the order and words of RFC 2253, as Traefik's access log has it.
pub fn subject(der: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let mut parts: Vec<_> = parsed.subject().to_string().split(", ").map(str::to_owned).collect();
    parts.reverse();
    Some(parts.join(","))
}

/// The URIs among a certificate's names.
pub fn uris(der: &[u8]) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    alternatives.value.general_names.iter().filter_map(uri).collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A self-signed certificate for `names` and its key, as PEM.
    pub(crate) fn pem(names: &[&str]) -> (String, String) {
        let made = rcgen::generate_simple_self_signed(
            names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(),
        )
        .expect("made");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_tells_its_names() {
        let (chain, key) = pem(&["B.test", "*.a.test"]);
        let pair = Pair::from_pem(chain.as_bytes(), key.as_bytes(), None).expect("a pair");
        assert_eq!(pair.facts.names, ["*.a.test", "b.test"]);
    }

    #[test]
    fn what_does_not_belong_together_is_no_pair() {
        let (chain, key) = pem(&["a.test"]);
        let (_, other) = pem(&["a.test"]);
        let error = |chain: &str, key: &str| {
            Pair::from_pem(chain.as_bytes(), key.as_bytes(), None).expect_err("no pair").to_string()
        };
        assert_eq!(error(&chain, &other), "the key does not belong to the certificate");
        assert_eq!(error(&key, &key), "there is no certificate in it");
        assert_eq!(error(&chain, &chain), "there is no private key in it");
        assert_eq!(error("", ""), "there is no certificate in it");
    }

    #[test]
    fn the_default_one_is_made_and_valid() {
        let pair = Pair::self_signed().expect("made");
        assert_eq!(pair.facts.common_name, DEFAULT_NAME);
        assert!(pair.facts.names.is_empty());
    }
}
