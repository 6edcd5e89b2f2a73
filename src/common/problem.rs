//! Mistakes in a document: what is wrong, at which key, where in which file, and how to mend it.
//!
//! Checks collect problems instead of stopping at the first, so that one run shows all of them.
//! A check names the key by its [`ConfigPath`]; the place in the file is looked up afterwards by
//! whoever still holds the text (`config::load`).

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// One step from a key to the next.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Step {
    /// A key of a map, as it is usually spelled.
    Key(Arc<str>),
    /// A position in a list, from 0.
    Index(usize),
}

/// Where a key stands in the merged document: `http.routers.api.rule`.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct ConfigPath(Vec<Step>);

impl ConfigPath {
    /// The document itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// Builds a path from keys; for constants such as `["http", "routers"]`.
    pub fn of(keys: &[&str]) -> Self {
        Self(keys.iter().map(|key| Step::Key((*key).into())).collect())
    }

    /// The path of `key` under this one.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.into()));
        Self(steps)
    }

    /// The path of the list item `index` under this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// The steps from the document down.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// Whether this path is `other` or stands under it.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for ConfigPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// A stretch of one line in one file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// The file as the user named it.
    pub file: Arc<PathBuf>,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// How many characters are meant; at least 1.
    pub width: usize,
}

/// Whether a problem refuses the document.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Severity {
    /// The document is refused (or the item left out, with `onProblem: dropItem`).
    Error,
    /// The document is taken; the operator should know.
    Warning,
}

/// One mistake in a document.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// Whether it refuses the document.
    pub severity: Severity,
    /// The key it is about.
    pub path: ConfigPath,
    /// Bytes of the scalar at `path` that are meant; the whole scalar when absent.
    pub within: Option<Range<usize>>,
    /// Set by the reader of the file itself, or looked up from `path` later.
    pub place: Option<Place>,
    /// Lower case, without a full stop.
    pub message: String,
    /// How to mend it: `did you mean "service"?`.
    pub hint: Option<String>,
}

impl Problem {
    /// An error at `path`.
    pub fn error(path: &ConfigPath, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, path, message.into())
    }

    /// A warning at `path`.
    pub fn warning(path: &ConfigPath, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, path, message.into())
    }

    fn new(severity: Severity, path: &ConfigPath, message: String) -> Self {
        Self { severity, path: path.clone(), within: None, place: None, message, hint: None }
    }

    /// Says how to mend it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Narrows it to some bytes of the scalar.
    #[must_use]
    pub fn within(mut self, bytes: Range<usize>) -> Self {
        self.within = Some(bytes);
        self
    }
}

/// Every mistake found so far.
#[derive(Clone, Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn push(&mut self, problem: Problem) {
        self.0.push(problem);
    }

    /// Adds an error at `path`.
    pub fn error(&mut self, path: &ConfigPath, message: impl Into<String>) {
        self.push(Problem::error(path, message));
    }

    /// Adds a warning at `path`.
    pub fn warn(&mut self, path: &ConfigPath, message: impl Into<String>) {
        self.push(Problem::warning(path, message));
    }

    /// How many there are, warnings included. A check compares it before and after a step.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of them refuses the document.
    pub fn has_errors(&self) -> bool {
        self.errors_since(0)
    }

    /// Whether one added after the first `count` refuses the document.
    pub fn errors_since(&self, count: usize) -> bool {
        self.0[count..].iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All of them, in the order found.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.0.iter()
    }

    /// All of them, to add places.
    pub fn iter_mut(&mut self) -> std::slice::IterMut<'_, Problem> {
        self.0.iter_mut()
    }

    /// Takes them out.
    pub fn into_vec(self) -> Vec<Problem> {
        self.0
    }
}

/// The known word nearest to `word`, if it is near enough to have been meant.
///
/// Distance counts insertions, deletions, substitutions and swaps of neighbours, without regard to
/// case; at most a third of the word's length may differ, and something must be left of it.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    let limit = (length / 3).max(1).min(length.saturating_sub(1));
    known
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= limit && *distance < candidate.chars().count())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = substitution.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_like_the_document() {
        let path = ConfigPath::of(&["http", "services", "api"]).key("servers").index(1).key("url");
        assert_eq!(path.to_string(), "http.services.api.servers[1].url");
    }

    #[test]
    fn a_near_word_is_suggested_and_a_far_one_is_not() {
        let known = ["service", "rule", "middlewares"];
        assert_eq!(nearest("servcie", known), Some("service"));
        assert_eq!(nearest("Middleware", known), Some("middlewares"));
        assert_eq!(nearest("priority", known), None);
        // Any letter is one step from any other.
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("ab", ["abc", "b"]), Some("abc"));
        assert_eq!(nearest("", ["y"]), None);
    }
}
