//! What can be wrong with a rule, and what is merely doubtful about it.

use std::ops::Range;

/// Why a text is no rule.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct RuleError {
    /// Lower case, without a full stop.
    pub message: String,
    /// The bytes of the rule that are meant; empty at its end when something is missing there.
    pub at: Range<usize>,
    /// How to mend it.
    pub hint: Option<String>,
}

impl RuleError {
    pub(super) fn new(message: impl Into<String>, at: Range<usize>) -> Self {
        Self { message: message.into(), at, hint: None }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// What a [`Remark`] is about, so that a check can choose which to show.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RemarkKind {
    /// No request can ever satisfy the part.
    NeverMatches,
    /// A `PathPrefix` that also matches in the middle of a segment.
    CrossesSegment,
}

/// Something in a rule that is right but may not be what was meant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Remark {
    /// What it is about.
    pub kind: RemarkKind,
    /// Lower case, without a full stop.
    pub message: String,
    /// The bytes of the rule that are meant.
    pub at: Range<usize>,
    /// How to write what was probably meant.
    pub hint: Option<String>,
}
