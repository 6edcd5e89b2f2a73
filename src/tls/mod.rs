//! TLS: certificates and who gets which, what is offered to clients, whom of the pods to trust.
//!
//! Everything here is compiled once, when a document is loaded, from bytes that the caller has read; the data
//! path only looks up. The provider of cryptography is named here and nowhere else.
//! Never: reading files, sockets.

pub mod client;
pub mod pair;
pub mod server;
pub mod session;
pub mod store;
pub mod words;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The one provider, with everything it has.
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
    &PROVIDER
}
