//! What is offered to clients: sets of options, each a rustls configuration, and which one a name gets.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use foldhash::fast::RandomState;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::provider;
use super::store::{CertStore, Resolver, Unknown};
use super::words::Version;

/// Name of the options that hold where none are named.
pub const DEFAULT: &str = "default";

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum ClientAuth {
    /// They are not asked.
    #[default]
    None,
    /// They are asked; whatever they show is taken.
    Request,
    /// They must show one; whatever it is.
    RequireAny,
    /// What they show must be signed by a known authority.
    VerifyIfGiven,
    /// They must show one that is signed by a known authority.
    RequireAndVerify,
}

impl ClientAuth {
    /// Whether the authorities matter.
    pub fn verifies(self) -> bool {
        matches!(self, Self::VerifyIfGiven | Self::RequireAndVerify)
    }
}

/// Options of one name, ready to be built.
#[derive(Clone, Debug)]
pub struct Options {
    /// Lowest version.
    pub min: Version,
    /// Highest version.
    pub max: Version,
    /// In the order of preference.
    pub suites: Vec<SupportedCipherSuite>,
    /// In the order of preference.
    pub groups: Vec<&'static dyn SupportedKxGroup>,
    /// Whether clients show certificates.
    pub client_auth: ClientAuth,
    /// Who signs them.
    pub client_roots: Vec<CertificateDer<'static>>,
    /// What is done about other names.
    pub unknown: Unknown,
    /// In the order of preference.
    pub alpn: Vec<Vec<u8>>,
    /// Whether sessions can be resumed.
    pub tickets: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            min: Version::Tls12,
            max: Version::Tls13,
            suites: aws_lc_rs::DEFAULT_CIPHER_SUITES.to_vec(),
            groups: aws_lc_rs::DEFAULT_KX_GROUPS.to_vec(),
            client_auth: ClientAuth::None,
            client_roots: Vec::new(),
            unknown: Unknown::Default,
            alpn: SPOKEN.iter().map(|protocol| protocol.to_vec()).collect(),
            tickets: true,
        }
    }
}

/// Protocols that can be agreed on, in the order of preference.
pub const SPOKEN: &[&[u8]] = &[b"h2", b"http/1.1"];

/// Keys of session tickets. They outlive reloads, so that these end no session; they are never shared between
/// options that ask different things of clients, because a resumed session is not asked again.
#[derive(Clone, Debug)]
pub struct Ticketer {
    /// Of what clients are asked.
    asks: u64,
    /// Rotates its keys by itself.
    keys: Arc<dyn ProducesTickets>,
}

/// A set of options in use.
#[derive(Debug)]
pub struct OptionSet {
    /// Its name.
    pub name: Arc<str>,
    /// For handshakes.
    pub config: Arc<ServerConfig>,
    ticketer: Option<Ticketer>,
}

impl OptionSet {
    /// Builds it; `previous` is the set of the same name until now.
    ///
    /// # Errors
    /// What does not go together, in rustls' words.
    pub fn build(
        name: &str,
        options: &Options,
        store: &Arc<CertStore>,
        previous: Option<&Self>,
    ) -> Result<Self, Error> {
        let crypto = Arc::new(CryptoProvider {
            cipher_suites: options.suites.clone(),
            kx_groups: options.groups.clone(),
            ..CryptoProvider::clone(provider())
        });
        let versions = Version::range(options.min, options.max);
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&crypto)).with_protocol_versions(versions)?;
        let resolver = Arc::new(Resolver { store: Arc::clone(store), unknown: options.unknown });
        let verifier = client_verifier(options, &crypto)?;
        let mut config = match verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(verifier),
        }
        .with_cert_resolver(resolver);
        config.alpn_protocols.clone_from(&options.alpn);
        // Without tickets nothing is resumed: a cache would have to be shared by cores and bounded.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        let ticketer = if options.tickets {
            let asks = asks(options);
            let kept = previous.and_then(|previous| previous.ticketer.clone()).filter(|old| old.asks == asks);
            let ticketer = match kept {
                Some(kept) => kept,
                None => Ticketer { asks, keys: aws_lc_rs::Ticketer::new()? },
            };
            config.ticketer = Arc::clone(&ticketer.keys);
            // Each costs an encryption and 250 bytes; a client that opens several connections at once may use one
            // twice.
            config.send_tls13_tickets = 1;
            Some(ticketer)
        } else {
            config.send_tls13_tickets = 0;
            None
        };
        Ok(Self { name: name.into(), config: Arc::new(config), ticketer })
    }
}

/// What clients are asked, as a number.
fn asks(options: &Options) -> u64 {
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write_u8(options.client_auth as u8);
    for root in &options.client_roots {
        hasher.write(root);
        hasher.write_u8(0);
    }
    hasher.finish()
}

fn client_verifier(
    options: &Options,
    crypto: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, Error> {
    let mandatory = match options.client_auth {
        ClientAuth::None => return Ok(None),
        ClientAuth::Request => {
            return Ok(Some(Arc::new(AnyClient { mandatory: false, crypto: Arc::clone(crypto) })));
        }
        ClientAuth::RequireAny => {
            return Ok(Some(Arc::new(AnyClient { mandatory: true, crypto: Arc::clone(crypto) })));
        }
        ClientAuth::VerifyIfGiven => false,
        ClientAuth::RequireAndVerify => true,
    };
    let mut roots = RootCertStore::empty();
    for root in &options.client_roots {
        roots.add(root.clone())?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(crypto));
    let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
    builder.build().map(Some).map_err(|error| Error::General(error.to_string()))
}

/// Takes every certificate whose key the client has.
#[derive(Debug)]
struct AnyClient {
    mandatory: bool,
    crypto: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
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

/// Which options a name gets on one entry point.
#[derive(Debug)]
pub struct ByName {
    exact: HashMap<Box<str>, Arc<OptionSet>, RandomState>,
    /// Of `*.a.test`, by what follows the first label.
    wildcard: HashMap<Box<str>, Arc<OptionSet>, RandomState>,
    default: Arc<OptionSet>,
}

impl ByName {
    /// `hosts` are those of routers, in lower case, with the options each shall have.
    pub fn new(hosts: impl IntoIterator<Item = (String, Arc<OptionSet>)>, default: Arc<OptionSet>) -> Self {
        let mut exact = HashMap::default();
        let mut wildcard = HashMap::default();
        for (host, options) in hosts {
            match host.strip_prefix("*.") {
                Some(parent) => wildcard.insert(parent.into(), options),
                None => exact.insert(host.into(), options),
            };
        }
        Self { exact, wildcard, default }
    }

    /// The options of a name in lower case; no name has the default ones.
    pub fn find(&self, name: Option<&str>) -> &Arc<OptionSet> {
        let Some(name) = name else { return &self.default };
        let name = name.strip_suffix('.').unwrap_or(name);
        if let Some(found) = self.exact.get(name) {
            return found;
        }
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        if self.wildcard.is_empty() { &self.default } else { wildcard().unwrap_or(&self.default) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pair::Pair;

    fn store() -> Arc<CertStore> {
        Arc::new(CertStore::new(&[], &Pair::self_signed().expect("made")))
    }

    #[test]
    fn tickets_outlive_a_reload_unless_clients_are_asked_something_else() {
        let store = store();
        let first = OptionSet::build("a", &Options::default(), &store, None).expect("built");
        let second = OptionSet::build("a", &Options::default(), &store, Some(&first)).expect("built");
        assert!(Arc::ptr_eq(&first.config.ticketer, &second.config.ticketer));
        let asking = Options { client_auth: ClientAuth::RequireAny, ..Options::default() };
        let third = OptionSet::build("a", &asking, &store, Some(&second)).expect("built");
        assert!(!Arc::ptr_eq(&second.config.ticketer, &third.config.ticketer));
    }

    #[test]
    fn a_name_gets_its_own_options_or_the_default_ones() {
        let store = store();
        let set = |name| Arc::new(OptionSet::build(name, &Options::default(), &store, None).expect("built"));
        let by_name = ByName::new(
            [("a.test".to_owned(), set("one")), ("*.b.test".to_owned(), set("two"))],
            set(DEFAULT),
        );
        let name = |host: Option<&str>| by_name.find(host).name.to_string();
        assert_eq!(name(Some("a.test")), "one");
        assert_eq!(name(Some("a.test.")), "one");
        assert_eq!(name(Some("x.b.test")), "two");
        assert_eq!(name(Some("y.x.b.test")), DEFAULT);
        assert_eq!(name(None), DEFAULT);
    }
}
