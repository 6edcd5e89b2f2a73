//! `tls`, the `tls` of routers and entry points, and the TLS of transports, as written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::document::DocumentConfig;

/// Certificates and how TLS is spoken with clients.
#[derive(Clone, Debug, Default, JsonSchema, PartialEq)]
#[schemars(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct TlsConfig {
    /// Certificates with their keys; a client gets the one for the name it asks for. Default none.
    pub certificates: Vec<CertificateConfig>,
    /// Sets of options, which routers and entry points name. `default` holds where none is named. Default none.
    pub options: BTreeMap<String, TlsOptionsConfig>,
    /// Only `default` is used: it has the certificate for all other names. Default none.
    pub stores: BTreeMap<String, TlsStoreConfig>,
}

/// A certificate with its key.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateConfig {
    /// File with the certificate and those that vouch for it, or their text, as PEM. Required.
    pub cert_file: FileOrContent,
    /// File with its private key, or its text, as PEM. Required.
    pub key_file: FileOrContent,
    /// File with an OCSP answer (DER) that is handed to clients with the certificate. Default none.
    #[serde(default)]
    pub ocsp_file: Option<FileOrContent>,
    /// Names of stores; only `default` is used, which is the default.
    #[serde(default)]
    pub stores: Vec<String>,
}

/// A store of certificates.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsStoreConfig {
    /// For clients that ask for no name there is a certificate for. Default: one that is made at each start and
    /// that nobody trusts.
    pub default_certificate: Option<PairConfig>,
}

/// A certificate and its key, no more.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PairConfig {
    /// File with the certificate and those that vouch for it, or their text, as PEM. Required.
    pub cert_file: FileOrContent,
    /// File with its private key, or its text, as PEM. Required.
    pub key_file: FileOrContent,
}

/// How TLS is spoken.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsOptionsConfig {
    /// Lowest version: `VersionTLS12` or `VersionTLS13`. Default `VersionTLS12`.
    pub min_version: Option<String>,
    /// Highest version: `VersionTLS12` or `VersionTLS13`. Default `VersionTLS13`.
    pub max_version: Option<String>,
    /// Suites of TLS 1.2 that are offered; those of TLS 1.3 always are. Default: all that are safe.
    pub cipher_suites: Vec<String>,
    /// Groups for the exchange of keys, the best first. Default: X25519MLKEM768, X25519, CurveP256, CurveP384.
    pub curve_preferences: Vec<String>,
    /// Whether clients show certificates, and whose.
    pub client_auth: ClientAuthConfig,
    /// Refuses clients that ask for no name there is a certificate for. Default false.
    pub sni_strict: bool,
    /// Protocols that are offered, the best first. Default: all that are spoken.
    pub alpn_protocols: Option<Vec<String>>,
    /// Gives out no tickets, so that no session can be resumed. Default false.
    pub disable_session_tickets: bool,
    /// Deprecated; has no effect. Default absent.
    pub prefer_server_cipher_suites: Option<bool>,
}

/// Whether clients show certificates, and whose.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientAuthConfig {
    /// Files with the certificates of authorities, or their texts, as PEM. Default none.
    pub ca_files: Vec<FileOrContent>,
    /// `NoClientCert`, `RequestClientCert`, `RequireAnyClientCert`, `VerifyClientCertIfGiven` or
    /// `RequireAndVerifyClientCert`. Default: the last with `caFiles`, the first without.
    pub client_auth_type: Option<ClientAuthType>,
}

/// Whether clients show certificates.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ClientAuthType {
    /// They are not asked.
    NoClientCert,
    /// They are asked; whatever they show is taken.
    RequestClientCert,
    /// They must show one; whatever it is.
    RequireAnyClientCert,
    /// What they show must be signed by a known authority.
    VerifyClientCertIfGiven,
    /// They must show one that is signed by a known authority.
    RequireAndVerifyClientCert,
}

/// TLS on a router, or on all routers of an entry point.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterTlsConfig {
    /// Name of an entry of `tls.options`. Default `default`.
    pub options: Option<String>,
    /// Names to order certificates for; nothing is ordered. Default none.
    pub domains: Vec<DomainConfig>,
}

/// Names of a certificate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DomainConfig {
    /// The first name. Default none.
    pub main: String,
    /// More names. Default none.
    pub sans: Vec<String>,
}

/// The name of a file, or what a file would hold.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(transparent)]
pub struct FileOrContent(String);

/// What stands for the text of a key or certificate where it is shown.
const INLINE: &str = "(inline)";

impl FileOrContent {
    /// A file.
    pub fn file(path: &Path) -> Self {
        Self(path.display().to_string())
    }

    /// The file, unless it is the text itself.
    pub fn path(&self) -> Option<&Path> {
        (!self.is_inline()).then(|| Path::new(&self.0))
    }

    fn is_inline(&self) -> bool {
        self.0.contains("-----BEGIN")
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What it holds.
    ///
    /// # Errors
    /// What the system says of the file; or it is far too large.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        let Some(path) = self.path() else { return Ok(self.0.clone().into_bytes()) };
        let shown = path.display();
        let found = std::fs::metadata(path).map_err(|error| format!("cannot read {shown}: {error}"))?;
        if !found.is_file() {
            return Err(format!("cannot read {shown}: it is not a regular file"));
        }
        if found.len() > MAX_BYTES {
            return Err(format!("cannot read {shown}: it is larger than {MAX_BYTES} bytes"));
        }
        std::fs::read(path).map_err(|error| format!("cannot read {shown}: {error}"))
    }
}

/// Of a file with certificates: all authorities of a system take a quarter of it.
const MAX_BYTES: u64 = 1024 * 1024;

impl Serialize for FileOrContent {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.is_inline() { INLINE } else { &self.0 })
    }
}

/// Makes names of files absolute that are relative to `base`, and gives all of them.
pub fn resolve(config: &mut DocumentConfig, base: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut one = |file: &mut FileOrContent| {
        if let Some(path) = file.path().filter(|path| !path.as_os_str().is_empty()) {
            let path = base.join(path);
            *file = FileOrContent::file(&path);
            files.push(path);
        }
    };
    let tls = &mut config.tls;
    for certificate in &mut tls.certificates {
        one(&mut certificate.cert_file);
        one(&mut certificate.key_file);
        certificate.ocsp_file.iter_mut().for_each(&mut one);
    }
    for pair in tls.stores.values_mut().filter_map(|store| store.default_certificate.as_mut()) {
        one(&mut pair.cert_file);
        one(&mut pair.key_file);
    }
    for options in tls.options.values_mut() {
        options.client_auth.ca_files.iter_mut().for_each(&mut one);
    }
    let transports = config.http.servers_transports.values_mut();
    for transport in transports.chain(std::iter::once(&mut config.servers_transport)) {
        transport.root_cas.iter_mut().for_each(&mut one);
        for pair in &mut transport.certificates {
            one(&mut pair.cert_file);
            one(&mut pair.key_file);
        }
    }
    files
}
