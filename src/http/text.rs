//! A piece of text that is cheap to clone and to cut, because it shares the buffer it was read into.

use std::fmt;
use std::ops::{Bound, RangeBounds};

use bytes::Bytes;
use bytestring::ByteString;

/// Immutable UTF-8 over [`Bytes`].
#[derive(Clone, Default, Eq, Hash, PartialEq)]
pub struct Text(ByteString);

impl Text {
    /// Wraps a constant; no allocation.
    pub const fn from_static(text: &'static str) -> Self {
        Self(ByteString::from_static(text))
    }

    /// Copies a text; one allocation.
    pub fn copy_from(text: &str) -> Self {
        Self(text.into())
    }

    /// Shares a buffer, if it is UTF-8.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        ByteString::try_from(bytes).ok().map(Self)
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A part of it, sharing the buffer.
    ///
    /// # Panics
    /// When the range is outside the text or cuts a character; ranges come from searches in `as_str`.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let start = match range.start_bound() {
            Bound::Included(at) => *at,
            Bound::Excluded(at) => *at + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(at) => *at + 1,
            Bound::Excluded(at) => *at,
            Bound::Unbounded => self.0.len(),
        };
        Self(self.0.slice_ref(&self.0[start..end]))
    }

    /// The bytes of the text.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// The bytes behind it.
    pub fn into_bytes(self) -> Bytes {
        self.0.into_bytes()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
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
        self.as_str() == other
    }
}
