//! TLS for tests: an authority, certificates, a client and an origin that speak it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::DEADLINE;

/// Somebody who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub chain: String,
    pub key: String,
}

/// For how long a certificate is good.
#[derive(Clone, Copy, PartialEq)]
pub enum Valid {
    Now,
    NoMore,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    /// Its own certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    pub fn issue(&self, names: &[&str]) -> Pair {
        self.issue_with(names, Valid::Now, |_| {})
    }

    pub fn issue_with(
        &self,
        names: &[&str],
        valid: Valid,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("names");
        params.distinguished_name.push(DnType::CommonName, "leaf");
        if valid == Valid::NoMore {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("signed");
        Pair { chain: certificate.pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem().as_bytes()).expect("PEM")).expect("a root");
        Arc::new(roots)
    }
}

/// A URI among a certificate's names.
pub fn uri(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("ASCII"))
}

impl Pair {
    /// Writes `NAME.crt` and `NAME.key`, each by renaming a new file over the old one.
    pub fn write(&self, dir: &Path, name: &str) -> (PathBuf, PathBuf) {
        let put = |file: String, text: &str| {
            let (next, path) = (dir.join(format!("{file}.next")), dir.join(file));
            std::fs::write(&next, text).expect("a writable directory");
            std::fs::rename(&next, &path).expect("a rename within one directory");
            path
        };
        // The key first, so that the two do not fit for a moment.
        let key = put(format!("{name}.key"), &self.key);
        (put(format!("{name}.crt"), &self.chain), key)
    }

    fn der(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.chain.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("PEM");
        (chain.collect::<Result<_, _>>().expect("PEM"), key)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A client's configuration that trusts one authority, with a certificate to show or without.
pub fn trusting(authority: &Authority, own: Option<&Pair>) -> Arc<ClientConfig> {
    configured(authority, own, rustls::ALL_VERSIONS, &[])
}

pub fn configured(
    authority: &Authority,
    own: Option<&Pair>,
    versions: &[&'static rustls::SupportedProtocolVersion],
    alpn: &[&str],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(authority.roots());
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = own.der();
            builder.with_client_auth_cert(chain, key).expect("a pair")
        }
    };
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A server's configuration with one certificate.
pub fn serving(pair: &Pair, alpn: &[&str]) -> Arc<ServerConfig> {
    let (chain, key) = pair.der();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(rustls::ALL_VERSIONS)
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a pair");
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// A TLS connection to the proxy.
pub struct TlsClient {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl TlsClient {
    /// Connects and makes the handshake; the error is what rustls or the system says.
    pub fn connect(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Result<Self, String> {
        let tcp = TcpStream::connect_timeout(&address, DEADLINE).map_err(|error| error.to_string())?;
        tcp.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let session = ClientConnection::new(Arc::clone(config), name).expect("a session");
        let mut stream = StreamOwned::new(session, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|error| error.to_string())?;
        }
        Ok(Self { stream })
    }

    #[track_caller]
    pub fn open(address: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Self {
        Self::connect(address, name, config).unwrap_or_else(|error| panic!("no TLS with {name}: {error}"))
    }

    pub fn session(&self) -> &ClientConnection {
        &self.stream.conn
    }

    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// The first certificate that the proxy showed.
    pub fn certificate(&self) -> Vec<u8> {
        let shown = self.stream.conn.peer_certificates().and_then(|chain| chain.first());
        shown.expect("a certificate").to_vec()
    }

    /// Asks and reads the answer, whose length must be told.
    #[track_caller]
    pub fn get(&mut self, host: &str, target: &str) -> Answer {
        self.request(host, target).unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    pub fn request(&mut self, host: &str, target: &str) -> std::io::Result<Answer> {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
        self.answer()
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    pub fn answer(&mut self) -> std::io::Result<Answer> {
        let head = read_head(&mut self.stream)?;
        let length = field(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok(Answer { status, body })
    }

    /// Everything until the end; an error when it is no clean one.
    pub fn rest(&mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).map(|_| rest)
    }
}

/// A handshake of which the proxy has seen only the beginning.
pub struct HalfOpen {
    session: ClientConnection,
    tcp: TcpStream,
    left: Vec<u8>,
}

impl HalfOpen {
    /// Sends the first bytes of a handshake.
    pub fn begin(address: SocketAddr, name: &str, config: &Arc<ClientConfig>, bytes: usize) -> Self {
        let mut tcp = TcpStream::connect_timeout(&address, DEADLINE).expect("a listener");
        tcp.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        let mut session = ClientConnection::new(Arc::clone(config), name).expect("a session");
        let mut hello = Vec::new();
        session.write_tls(&mut hello).expect("a first message");
        let left = hello.split_off(bytes);
        tcp.write_all(&hello).expect("taken");
        Self { session, tcp, left }
    }

    /// Sends the rest and goes through with it.
    #[track_caller]
    pub fn go_on(mut self) -> TlsClient {
        self.tcp.write_all(&self.left).expect("taken");
        let mut stream = StreamOwned::new(self.session, self.tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        }
        TlsClient { stream }
    }
}

fn read_head(stream: &mut impl Read) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The value of a field in a head.
pub fn field(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
    })
}

/// How a [`TlsOrigin`] ends an answer that has no length.
#[derive(Clone, Copy, PartialEq)]
pub enum Finish {
    /// With `close_notify`.
    Clean,
    /// Without.
    Cut,
}

/// A pod with TLS. It answers every request with the head it got; `/close` and `/cut` without a length.
pub struct TlsOrigin {
    address: SocketAddr,
    full: Arc<AtomicUsize>,
    resumed: Arc<AtomicUsize>,
    _accepting: JoinHandle<()>,
}

impl TlsOrigin {
    /// Starts with a certificate; with `clients`, only for clients whose certificates that authority signed.
    pub fn start(pair: &Pair, clients: Option<&Authority>) -> Self {
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(authority) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(authority.roots(), provider())
                    .build()
                    .expect("a verifier"),
            ),
        };
        let (chain, key) = pair.der();
        let config = Arc::new(builder.with_single_cert(chain, key).expect("a pair"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (full, resumed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counts = (Arc::clone(&full), Arc::clone(&resumed));
        let accepting = std::thread::spawn(move || {
            for tcp in listener.incoming().flatten() {
                let (config, counts) = (Arc::clone(&config), counts.clone());
                std::thread::spawn(move || {
                    // A client that goes away, or that is not liked, is no failure of the test's.
                    let _ = serve(tcp, config, &counts);
                });
            }
        });
        Self { address, full, resumed, _accepting: accepting }
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Handshakes: new sessions, and those that went on.
    pub fn handshakes(&self) -> (usize, usize) {
        (self.full.load(Ordering::Relaxed), self.resumed.load(Ordering::Relaxed))
    }
}

fn serve(
    tcp: TcpStream,
    config: Arc<ServerConfig>,
    (full, resumed): &(Arc<AtomicUsize>, Arc<AtomicUsize>),
) -> std::io::Result<()> {
    tcp.set_read_timeout(Some(DEADLINE * 3))?;
    let session = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(session, tcp);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    let counted = if stream.conn.handshake_kind() == Some(HandshakeKind::Resumed) { resumed } else { full };
    counted.fetch_add(1, Ordering::Relaxed);
    loop {
        let head = read_head(&mut stream)?;
        let finish = match head.split(' ').nth(1) {
            Some("/close") => Some(Finish::Clean),
            Some("/cut") => Some(Finish::Cut),
            _ => None,
        };
        let name = stream.conn.server_name().unwrap_or("-").to_owned();
        match finish {
            None => {
                let body = format!("sni {name}\n{head}");
                let close = field(&head, "connection").is_some_and(|value| value == "close");
                write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
                stream.flush()?;
                if close {
                    return Ok(());
                }
            }
            Some(finish) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")?;
                if finish == Finish::Clean {
                    stream.conn.send_close_notify();
                }
                stream.flush()?;
                return Ok(());
            }
        }
    }
}
