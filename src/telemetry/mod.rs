//! What operators see: every metric declared once, the access log, log set-up.
//!
//! Never: decisions. Nothing here slows or ends an exchange; what cannot be written is counted.

pub mod access_log;
pub mod log;
pub mod metrics;
pub(crate) mod time;
