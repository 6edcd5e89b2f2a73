//! Why a rule matched or did not, part by part: what `sluicegate explain` prints.

/// What a part of a rule is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// One matcher: ``Host(`a.test`)``.
    Matcher,
    /// `!`, with one part below.
    Not,
    /// `&&`, with two or more parts below.
    All,
    /// `||`, with two or more parts below.
    Any,
}

/// One part of a rule, held against a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Explained {
    /// What it is made of.
    pub part: Part,
    /// Its canonical text.
    pub text: String,
    /// Whether it holds for the request.
    pub matched: bool,
    /// What the request had: `host is "b.test"`. Only for [`Part::Matcher`].
    pub had: Option<String>,
    /// Its parts, in order, those that a look-up would skip included.
    pub parts: Vec<Explained>,
}
