//! Towards pods: whom to trust, and as whom to come.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error,
    RootCertStore, SignatureScheme, SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::pair::{self, Pair};
use super::provider;
use super::words::Version;

/// Names of protocols in ALPN (RFC 9113 §3.2, RFC 7301 §6).
const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Sessions kept for resumption, by name of the pod.
const SESSIONS: usize = 256;

/// Files that systems keep their authorities in; the first that can be read counts.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What a transport says of TLS, ready to be built.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Instead of the host of the server's url; also sent as SNI.
    pub server_name: Option<ServerName<'static>>,
    /// Trusts everybody.
    pub insecure: bool,
    /// Who signs pods' certificates; the system's authorities when empty.
    pub roots: Vec<CertificateDer<'static>>,
    /// Who we are, if pods ask.
    pub own: Vec<Arc<Pair>>,
    /// Lowest version.
    pub min: Version,
    /// Highest version.
    pub max: Version,
    /// In the order of preference.
    pub suites: Vec<SupportedCipherSuite>,
    /// A pod's certificate must have this URI among its names.
    pub uri: Option<String>,
    /// Whether HTTP/2 is offered.
    pub http2: Http2,
}

/// Whether a transport speaks HTTP/2 with pods that can.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Http2 {
    /// By ALPN, before HTTP/1.1.
    #[default]
    Offered,
    /// HTTP/1.1 alone.
    Disabled,
}

/// What is put before a pod, to choose from by ALPN.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Offer {
    /// All that the transport speaks.
    All,
    /// What an `Upgrade` needs.
    Http1,
}

/// How TLS connections to pods are made. Its sessions are kept for resumption.
#[derive(Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// Where `config` offers HTTP/2: the same without.
    http1: Option<Arc<ClientConfig>>,
    server_name: Option<ServerName<'static>>,
    fingerprint: u64,
}

impl ClientTls {
    /// Builds it; `previous` stays in use if it says the same, and its connections and sessions with it.
    ///
    /// # Errors
    /// What does not go together, in rustls' words.
    pub fn build(options: &ClientOptions, previous: Option<&Arc<Self>>) -> Result<Arc<Self>, Error> {
        let fingerprint = fingerprint(options);
        if let Some(previous) = previous.filter(|previous| previous.fingerprint == fingerprint) {
            return Ok(Arc::clone(previous));
        }
        let crypto = Arc::new(CryptoProvider {
            cipher_suites: options.suites.clone(),
            ..CryptoProvider::clone(provider())
        });
        let verifier = Arc::new(Verifier::new(options, &crypto)?);
        let builder = ClientConfig::builder_with_provider(crypto)
            .with_protocol_versions(Version::range(options.min, options.max))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match options.own.first() {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(
                rustls::sign::CertifiedKey::clone(&own.key),
            ))),
        };
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        config.alpn_protocols = vec![HTTP1.to_vec()];
        let (config, http1) = match options.http2 {
            Http2::Disabled => (config, None),
            Http2::Offered => {
                // Both share their sessions.
                let http1 = config.clone();
                config.alpn_protocols.insert(0, H2.to_vec());
                (config, Some(Arc::new(http1)))
            }
        };
        let (config, server_name) = (Arc::new(config), options.server_name.clone());
        Ok(Arc::new(Self { config, http1, server_name, fingerprint }))
    }

    /// Whether a pod may choose HTTP/2.
    pub fn offers_http2(&self) -> bool {
        self.http1.is_some()
    }

    /// Begins a session with `host`, a name or an address.
    ///
    /// # Errors
    /// The host is neither.
    pub fn connect(&self, host: &str, offer: Offer) -> Result<ClientConnection, Error> {
        let config = match (offer, &self.http1) {
            (Offer::Http1, Some(http1)) => http1,
            (Offer::Http1, None) | (Offer::All, _) => &self.config,
        };
        ClientConnection::new(Arc::clone(config), self.name(host)?)
    }

    /// For streams of tokio's own, which speak one of `protocols`: how to connect, and as whom `host` has to show
    /// itself.
    ///
    /// # Errors
    /// The host is neither a name nor an address.
    pub fn connector(
        &self,
        host: &str,
        protocols: &[&[u8]],
    ) -> Result<(tokio_rustls::TlsConnector, ServerName<'static>), Error> {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok((tokio_rustls::TlsConnector::from(Arc::new(config)), self.name(host)?))
    }

    fn name(&self, host: &str) -> Result<ServerName<'static>, Error> {
        match &self.server_name {
            Some(name) => Ok(name.clone()),
            None => Ok(ServerName::try_from(host)
                .map_err(|_| Error::General(format!("{host:?} is no name to ask a certificate for")))?
                .to_owned()),
        }
    }
}

/// Built from the same options.
impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

/// Whether a pod has chosen HTTP/2.
pub fn chose_http2(session: &rustls::Connection) -> bool {
    session.alpn_protocol() == Some(H2)
}

/// What the options say, as a number.
fn fingerprint(options: &ClientOptions) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    let ClientOptions { server_name, insecure, roots, own, min, max, suites, uri, http2 } = options;
    hasher.write(format!("{server_name:?}{insecure}{min:?}{max:?}{suites:?}{uri:?}{http2:?}").as_bytes());
    for root in roots {
        hasher.write(root);
        hasher.write_u8(0);
    }
    for pair in own {
        for certificate in &pair.key.cert {
            hasher.write(certificate);
            hasher.write_u8(1);
        }
    }
    hasher.finish()
}

/// Judges pods' certificates.
#[derive(Debug)]
struct Verifier {
    /// `None`: everybody is trusted.
    chains: Option<Arc<WebPkiServerVerifier>>,
    /// As configured: a pod may show one of them itself, as self-signed ones are.
    roots: Vec<CertificateDer<'static>>,
    uri: Option<String>,
    crypto: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(options: &ClientOptions, crypto: &Arc<CryptoProvider>) -> Result<Self, Error> {
        let chains = if options.insecure {
            None
        } else {
            let mut store = RootCertStore::empty();
            if options.roots.is_empty() {
                store = system_roots();
            } else {
                for root in &options.roots {
                    store.add(root.clone())?;
                }
            }
            let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(crypto));
            Some(builder.build().map_err(|error| Error::General(error.to_string()))?)
        };
        Ok(Self {
            chains,
            roots: options.roots.clone(),
            uri: options.uri.clone(),
            crypto: Arc::clone(crypto),
        })
    }

    /// A certificate that the operator has listed needs nobody to vouch for it; its name and its dates count.
    fn verify_listed(
        &self,
        certificate: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Option<Result<(), Error>> {
        self.roots.iter().find(|root| root.as_ref() == certificate.as_ref())?;
        let facts = match pair::facts(certificate) {
            Ok(facts) => facts,
            Err(_) => return Some(Err(CertificateError::BadEncoding.into())),
        };
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if facts.not_after < now {
            return Some(Err(CertificateError::Expired.into()));
        }
        if facts.not_before > now {
            return Some(Err(CertificateError::NotValidYet.into()));
        }
        Some(ParsedCertificate::try_from(certificate).and_then(|parsed| verify_server_name(&parsed, name)))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(chains) = &self.chains {
            match self.verify_listed(end_entity, server_name, now) {
                Some(result) => result?,
                None => {
                    chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
                }
            }
        }
        if let Some(wanted) = &self.uri
            && !pair::uris(end_entity).contains(wanted)
        {
            return Err(Error::General(format!("the certificate does not have the URI {wanted}")));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.crypto.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.crypto.signature_verification_algorithms.supported_schemes()
    }
}

/// The authorities of this system; Mozilla's, as they were when this was built, where it has none.
fn system_roots() -> RootCertStore {
    let mut store = RootCertStore::empty();
    let file = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let files = file.into_iter().chain(SYSTEM_ROOTS.iter().map(std::path::PathBuf::from));
    if let Some(text) = files.filter_map(|file| std::fs::read(file).ok()).next()
        && let Ok(roots) = pair::certificates(&text)
    {
        // Old systems have some that nobody can read.
        store.add_parsable_certificates(roots);
    }
    if store.is_empty() {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    store
}

/// Why a handshake with a pod failed, for the log: who has to mend what.
pub fn reason(error: &std::io::Error) -> String {
    let Some(tls) = error.get_ref().and_then(|source| source.downcast_ref::<Error>()) else {
        return match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "the pod closed the connection in the TLS handshake".into(),
            _ => format!("TLS handshake failed: {error}"),
        };
    };
    match tls {
        // The latter: an authority of the same name, with another key.
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "certificate signed by unknown authority (unknown issuer); see rootCAs".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "certificate is for another name (wrong name); see serverName".into(),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "certificate has expired".into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        ) => "certificate is not valid yet".into(),
        Error::InvalidMessage(_) => "the pod does not speak TLS".into(),
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "the pod speaks none of the protocols that it was offered (ALPN); see disableHTTP2".into()
        }
        Error::AlertReceived(alert) => format!("the pod ended the TLS handshake: {alert:?}"),
        other => format!("TLS handshake failed: {other}"),
    }
}
