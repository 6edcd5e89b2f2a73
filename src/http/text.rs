//! A piece of text that is cheap to clone and to cut, because it shares the buffer it was read into.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;

/// Immutable UTF-8 over [`Bytes`].
#[derive(Clone, Default, Eq, Hash, PartialEq)]
pub struct Text(Bytes);

impl Text {
    /// Wraps a constant; no allocation.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// Copies a text; one allocation.
    pub fn copy_from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// Shares a buffer, if it is UTF-8.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        std::str::from_utf8(&bytes).is_ok().then_some(Self(bytes))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made, and cut only at character borders")
    }

    /// A part of it, sharing the buffer.
    ///
    /// # Panics
    /// When the range is outside the text or cuts a character; ranges come from searches in `as_str`.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        let text = self.as_str();
        for bound in [bounds.0, bounds.1] {
            if let Bound::Included(at) | Bound::Excluded(at) = bound {
                assert!(text.is_char_boundary(at), "a cut inside a character");
            }
        }
        Self(self.0.slice(bounds))
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes behind it.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(Bytes::from(text))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}
