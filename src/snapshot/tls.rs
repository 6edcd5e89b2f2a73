//! TLS of a document: its certificates read, its options and transports built.
//!
//! What cannot be read on a reload stays as it was, with a warning: an expired or half-written file must take no
//! site down. On a cold start there is nothing to stay with, and it is an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, ServerName};

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::config::document::DocumentConfig;
use crate::config::tls::{ClientAuthType, FileOrContent, TlsOptionsConfig};
use crate::config::transport::ServersTransportConfig;
use crate::tls::client::{ClientOptions, ClientTls, Http2};
use crate::tls::pair::{self, Facts, Pair, PairError};
use crate::tls::server::{ClientAuth, DEFAULT, OptionSet, Options, SPOKEN};
use crate::tls::store::{CertStore, Unknown};
use crate::tls::words::{self, Refused, Version};

/// Everything of TLS that one configuration has.
#[derive(Debug, Default)]
pub struct Tls {
    /// Sets of options by name; `default` is always there, unless nothing speaks TLS.
    pub options: BTreeMap<String, Arc<OptionSet>>,
    /// Every certificate in use.
    pub certificates: Vec<CertificateState>,
    /// Files of authorities of which not what they hold now is in use: the first certificate that is.
    pub stale_authorities: Vec<CertificateState>,
    pairs: BTreeMap<PairKey, Arc<Pair>>,
    default: Option<Arc<Pair>>,
    transports: BTreeMap<Option<String>, Arc<ClientTls>>,
    /// By file.
    authorities: BTreeMap<String, Vec<CertificateDer<'static>>>,
}

impl Tls {
    /// How many files hold something that is not in use.
    pub fn stale(&self) -> usize {
        let pairs = self.certificates.iter().filter(|state| state.stale.is_some()).count();
        pairs + self.stale_authorities.len()
    }
}

/// A certificate in use, for operators.
#[derive(Clone, Debug, PartialEq)]
pub struct CertificateState {
    /// What it says of itself.
    pub facts: Facts,
    /// Why what its files hold now is not in use.
    pub stale: Option<String>,
}

/// Files of a pair, or their texts.
type PairKey = (String, String);

fn text(file: &FileOrContent) -> String {
    file.path().map_or_else(|| fingerprint(file), |path| path.display().to_string())
}

/// Of a text that is a secret.
fn fingerprint(file: &FileOrContent) -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    file.read().unwrap_or_default().hash(&mut hasher);
    format!("inline {:016x}", hasher.finish())
}

/// Reads and builds the TLS of a document.
pub(super) struct TlsCompiler<'a> {
    pub(super) tls: Tls,
    previous: Option<&'a Tls>,
    /// Seconds since 1970.
    now: i64,
}

impl<'a> TlsCompiler<'a> {
    pub(super) fn new(previous: Option<&'a Tls>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { tls: Tls::default(), previous, now: i64::try_from(now.as_secs()).unwrap_or(i64::MAX) }
    }

    /// Certificates and options. `wanted`: something of the document speaks TLS with clients.
    pub(super) fn run(&mut self, config: &DocumentConfig, wanted: bool, problems: &mut Problems) {
        let at = ConfigPath::of(&["tls"]);
        let tls = &config.tls;
        let mut pairs = Vec::with_capacity(tls.certificates.len());
        for (index, certificate) in tls.certificates.iter().enumerate() {
            let at = at.key("certificates").index(index);
            for (turn, store) in certificate.stores.iter().enumerate() {
                if store != DEFAULT {
                    let at = at.key("stores").index(turn);
                    let problem = Problem::warning(&at, format!("store {store:?} is used by nobody"));
                    problems.push(problem.hint("only the store named default is, as in Traefik"));
                }
            }
            let ocsp = certificate.ocsp_file.as_ref();
            pairs.extend(self.pair(&certificate.cert_file, &certificate.key_file, ocsp, &at, problems));
        }
        let mut default = None;
        for (name, store) in &tls.stores {
            let at = at.key("stores").key(name);
            if name != DEFAULT {
                let problem = Problem::warning(&at, format!("store {name:?} is used by nobody"));
                problems.push(problem.hint("only the store named default is, as in Traefik"));
                continue;
            }
            if let Some(pair) = &store.default_certificate {
                let at = at.key("defaultCertificate");
                default = self.pair(&pair.cert_file, &pair.key_file, None, &at, problems);
            }
        }
        if !wanted && tls.options.is_empty() {
            return;
        }
        let made = self.previous.and_then(|previous| previous.default.clone());
        let default = match default {
            Some(default) => default,
            None => match made.map_or_else(|| Pair::self_signed().map(Arc::new), Ok) {
                Ok(made) => {
                    self.tls.default = Some(Arc::clone(&made));
                    made
                }
                Err(error) => {
                    return problems.error(&at, format!("no default certificate can be made: {error}"));
                }
            },
        };
        let store = Arc::new(CertStore::new(&pairs, &default));
        let own = TlsOptionsConfig::default();
        let implied = (!tls.options.contains_key(DEFAULT)).then_some((DEFAULT, &own));
        for (name, config) in tls.options.iter().map(|(name, config)| (name.as_str(), config)).chain(implied)
        {
            let at = at.key("options").key(name);
            let Some(options) = self.options(config, &at, problems) else { continue };
            let previous = self.previous.and_then(|previous| previous.options.get(name));
            match OptionSet::build(name, &options, &store, previous.map(|set| &**set)) {
                Ok(set) => drop(self.tls.options.insert(name.to_owned(), Arc::new(set))),
                Err(error) => problems.error(&at, format!("options do not go together: {error}")),
            }
        }
    }

    /// A pair, as its files have it or as they had it before.
    fn pair(
        &mut self,
        cert: &FileOrContent,
        key: &FileOrContent,
        ocsp: Option<&FileOrContent>,
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Option<Arc<Pair>> {
        let name = (text(cert), text(key));
        let kept = self.previous.and_then(|previous| previous.pairs.get(&name)).cloned();
        let (pair, stale) = match read_pair(cert, key, ocsp) {
            Ok(pair) if pair.facts.is_expired(self.now) => {
                let why = "certificate has expired";
                match kept.filter(|kept| kept.facts.not_after > pair.facts.not_after) {
                    Some(kept) => (kept, Some(why.to_owned())),
                    None => {
                        problems.push(Problem::warning(&at.key("certFile"), why).hint("renew it"));
                        (Arc::new(pair), None)
                    }
                }
            }
            Ok(pair) => (Arc::new(pair), None),
            Err((field, why)) => match kept {
                Some(kept) => (kept, Some(why)),
                None => {
                    problems.error(&at.key(field), why);
                    return None;
                }
            },
        };
        if let Some(why) = &stale {
            let problem = Problem::warning(&at.key("certFile"), why.clone());
            problems.push(problem.hint("the certificate that was loaded before stays in use"));
        }
        let state = CertificateState { facts: pair.facts.clone(), stale };
        self.tls.certificates.push(state);
        self.tls.pairs.insert(name, Arc::clone(&pair));
        Some(pair)
    }

    /// Whom files vouch for: as they have it, or as they had it before.
    fn authorities(
        &mut self,
        files: &[FileOrContent],
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Vec<CertificateDer<'static>> {
        let mut all = Vec::new();
        for (index, file) in files.iter().enumerate() {
            let at = at.index(index);
            let name = text(file);
            let read =
                file.read().and_then(|bytes| pair::authorities(&bytes).map_err(|error| named(file, &error)));
            let kept = self.previous.and_then(|previous| previous.authorities.get(&name));
            let certificates = match (read, kept) {
                (Ok(certificates), _) => certificates,
                (Err(why), Some(kept)) => {
                    let problem = Problem::warning(&at, why.clone());
                    problems.push(problem.hint("the authorities that were loaded before stay in use"));
                    // One file may be named in several places.
                    let known = self.tls.authorities.contains_key(&name);
                    if let Some(facts) =
                        kept.first().and_then(|first| pair::facts(first).ok()).filter(|_| !known)
                    {
                        self.tls.stale_authorities.push(CertificateState { facts, stale: Some(why) });
                    }
                    kept.clone()
                }
                (Err(why), None) => {
                    problems.error(&at, why);
                    continue;
                }
            };
            all.extend(certificates.iter().cloned());
            self.tls.authorities.insert(name, certificates);
        }
        all
    }

    fn options(
        &mut self,
        config: &TlsOptionsConfig,
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Option<Options> {
        let before = problems.len();
        let mut options = Options::default();
        (options.min, options.max) =
            versions(config.min_version.as_deref(), config.max_version.as_deref(), at, problems);
        if let Some(suites) =
            words(words::cipher_suites(&config.cipher_suites), &at.key("cipherSuites"), problems)
        {
            options.suites = suites;
        }
        if let Some(groups) =
            words(words::groups(&config.curve_preferences), &at.key("curvePreferences"), problems)
        {
            options.groups = groups;
        }
        let auth = &config.client_auth;
        let auth_at = at.key("clientAuth");
        options.client_auth = match auth.client_auth_type {
            None if auth.ca_files.is_empty() => ClientAuth::None,
            None | Some(ClientAuthType::RequireAndVerifyClientCert) => ClientAuth::RequireAndVerify,
            Some(ClientAuthType::NoClientCert) => ClientAuth::None,
            Some(ClientAuthType::RequestClientCert) => ClientAuth::Request,
            Some(ClientAuthType::RequireAnyClientCert) => ClientAuth::RequireAny,
            Some(ClientAuthType::VerifyClientCertIfGiven) => ClientAuth::VerifyIfGiven,
        };
        if options.client_auth.verifies() && auth.ca_files.is_empty() {
            let at = auth_at.key("clientAuthType");
            let problem = Problem::error(&at, "clients cannot be verified without caFiles");
            problems.push(problem.hint("name the certificates of those who sign them"));
        }
        options.client_roots = self.authorities(&auth.ca_files, &auth_at.key("caFiles"), problems);
        if config.sni_strict {
            options.unknown = Unknown::Refuse;
        }
        if let Some(protocols) = &config.alpn_protocols {
            // Others (`acme-tls/1`) can be named and are never agreed on.
            let spoken = protocols.iter().filter(|protocol| SPOKEN.contains(&protocol.as_bytes()));
            options.alpn = spoken.map(|protocol| protocol.clone().into_bytes()).collect();
            if options.alpn.is_empty() && !protocols.is_empty() {
                let known: Vec<_> = SPOKEN.iter().map(|word| String::from_utf8_lossy(word)).collect();
                let problem = Problem::error(&at.key("alpnProtocols"), "none of these protocols is spoken");
                problems.push(problem.hint(format!("name one of {}", known.join(", "))));
            }
        }
        if config.prefer_server_cipher_suites.is_some() {
            let at = at.key("preferServerCipherSuites");
            problems.push(
                Problem::warning(&at, "preferServerCipherSuites is deprecated and has no effect")
                    .hint("remove it"),
            );
        }
        options.tickets = !config.disable_session_tickets;
        (!problems.errors_since(before)).then_some(options)
    }

    /// The TLS of a transport; `name` is absent for the one that holds where none is named.
    pub(super) fn transport(
        &mut self,
        name: Option<&str>,
        config: &ServersTransportConfig,
        problems: &mut Problems,
    ) -> Option<Arc<ClientTls>> {
        let name = name.map(str::to_owned);
        if let Some(known) = self.tls.transports.get(&name) {
            return Some(Arc::clone(known));
        }
        let at = match &name {
            None => ConfigPath::of(&["serversTransport"]),
            Some(name) => ConfigPath::of(&["http", "serversTransports"]).key(name),
        };
        let before = problems.len();
        let (min, max) =
            versions(config.min_version.as_deref(), config.max_version.as_deref(), &at, problems);
        let suites = words(words::cipher_suites(&config.cipher_suites), &at.key("cipherSuites"), problems);
        let roots = self.authorities(&config.root_cas, &at.key("rootCAs"), problems);
        let mut own = Vec::new();
        for (index, pair) in config.certificates.iter().enumerate() {
            let at = at.key("certificates").index(index);
            own.extend(self.pair(&pair.cert_file, &pair.key_file, None, &at, problems));
        }
        let server_name = match config.server_name.as_deref().filter(|name| !name.is_empty()) {
            None => None,
            Some(name) => match ServerName::try_from(name.to_owned()) {
                Ok(name) => Some(name),
                Err(_) => {
                    problems.error(&at.key("serverName"), format!("bad name {name:?}"));
                    None
                }
            },
        };
        if problems.errors_since(before) {
            return None;
        }
        let options = ClientOptions {
            server_name,
            insecure: config.insecure_skip_verify,
            roots,
            own,
            min,
            max,
            suites: suites?,
            uri: config.peer_cert_uri.clone().filter(|uri| !uri.is_empty()),
            http2: if config.disable_http2 { Http2::Disabled } else { Http2::Offered },
        };
        let previous = self.previous.and_then(|previous| previous.transports.get(&name));
        match ClientTls::build(&options, previous) {
            Ok(tls) => {
                self.tls.transports.insert(name, Arc::clone(&tls));
                Some(tls)
            }
            Err(error) => {
                problems.error(&at, format!("TLS options do not go together: {error}"));
                None
            }
        }
    }
}

/// The pair, or the key at fault with what is wrong.
fn read_pair(
    cert: &FileOrContent,
    key: &FileOrContent,
    ocsp: Option<&FileOrContent>,
) -> Result<Pair, (&'static str, String)> {
    for (field, file) in [("certFile", cert), ("keyFile", key)] {
        if file.is_empty() {
            return Err((field, "must not be empty".to_owned()));
        }
    }
    let chain = cert.read().map_err(|error| ("certFile", error))?;
    let secret = key.read().map_err(|error| ("keyFile", error))?;
    let staple = match ocsp {
        None => None,
        Some(file) => Some(file.read().map_err(|error| ("ocspFile", error))?),
    };
    Pair::from_pem(&chain, &secret, staple).map_err(|error| {
        let (field, file) = if error.is_about_key() { ("keyFile", key) } else { ("certFile", cert) };
        (field, named(file, &error))
    })
}

fn named(file: &FileOrContent, error: &PairError) -> String {
    match file.path() {
        Some(path) => format!("{}: {error}", path.display()),
        None => error.to_string(),
    }
}

fn versions(
    min: Option<&str>,
    max: Option<&str>,
    at: &ConfigPath,
    problems: &mut Problems,
) -> (Version, Version) {
    let mut one = |key: &str, word: Option<&str>, default: Version| match word
        .filter(|word| !word.is_empty())
        .map(Version::parse)
    {
        None => default,
        Some(Ok(version)) => version,
        Some(Err(Refused { message, hint })) => {
            problems.push(Problem::error(&at.key(key), message).hint(hint));
            default
        }
    };
    let min = one("minVersion", min, Version::Tls12);
    let max = one("maxVersion", max, Version::Tls13);
    if min > max {
        problems.error(&at.key("maxVersion"), "maxVersion is lower than minVersion");
    }
    (min, max)
}

/// What a list of words means, or a problem for each that means nothing.
fn words<T>(read: Result<T, Vec<(usize, Refused)>>, at: &ConfigPath, problems: &mut Problems) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(bad) => {
            for (index, Refused { message, hint }) in bad {
                problems.push(Problem::error(&at.index(index), message).hint(hint));
            }
            None
        }
    }
}
