//! What one client's TLS connection agreed on, as routing and logs want it.

use std::sync::Arc;

use rustls::Connection;

use super::pair;
use super::server::OptionSet;
use super::words::{suite_name, version_name};
use crate::telemetry::access_log::TlsPart;

/// What was agreed on.
#[derive(Debug)]
pub struct TlsSession {
    /// The name the client asked for, in lower case.
    pub name: Option<Box<str>>,
    /// Name of the options that it got.
    pub options: Arc<str>,
    /// For the log.
    pub logged: Arc<TlsPart>,
    /// Whether it is the continuation of an earlier one.
    pub resumed: bool,
}

impl TlsSession {
    /// Reads it off a connection whose handshake is done.
    pub fn of(connection: &Connection, name: Option<Box<str>>, options: &OptionSet) -> Self {
        let client = connection.peer_certificates().and_then(|chain| chain.first());
        let logged = TlsPart {
            version: connection.protocol_version().map_or("unknown", version_name),
            cipher: connection
                .negotiated_cipher_suite()
                .map(|suite| suite_name(suite.suite()))
                .unwrap_or_default()
                .into(),
            client_subject: client.and_then(|client| pair::subject(client)).map(Into::into),
        };
        Self {
            name,
            options: Arc::clone(&options.name),
            logged: Arc::new(logged),
            resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        }
    }
}
