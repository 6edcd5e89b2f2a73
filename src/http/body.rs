//! Bodies: nothing, a few bytes held whole, or a stream that is still on the wire.

use bytes::Bytes;

/// The content of a message.
#[derive(Debug, Default)]
pub enum Body {
    /// No content at all.
    #[default]
    Empty,
    /// Held whole.
    Full(Bytes),
}
