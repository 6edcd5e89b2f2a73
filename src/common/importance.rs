//! How much a request matters when not all can be served.

/// Who goes first in a queue, and last when load is shed. Ordered: what matters more is greater.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Importance {
    /// First to be refused.
    Low,
    /// What has no word of its own.
    #[default]
    Normal,
    /// Last to be refused.
    High,
}

impl Importance {
    /// The word for it in the document.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Normal => "normal",
            Self::High => "high",
        }
    }
}
