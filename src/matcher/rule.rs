//! A compiled rule: parsed once, then held against requests.

use std::fmt;

use super::error::{Remark, RuleError};
use super::explain::{Explained, Part};
use super::matchers::{HostPattern, Matcher};
use super::parser::{self, Ast};
use super::{PathMatching, Subject};

/// Bytes of a rule's text. Generated rules with a thousand hosts have some 30 KB.
pub const MAX_RULE_BYTES: usize = 64 * 1024;

/// A rule in Traefik v3's language, compiled.
///
/// Equal to another when both say the same in the same order, however they are spaced and bracketed.
#[derive(Clone, Debug)]
pub struct Rule {
    text: String,
    expr: Expr,
    remarks: Vec<Remark>,
}

/// A condition. Depth is bounded by the parser.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    Matcher(Matcher),
    Not(Box<Expr>),
    All(Vec<Expr>),
    Any(Vec<Expr>),
}

impl Rule {
    /// Parses and compiles a rule whose `PathPrefix` is Traefik's: a plain prefix.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        Self::parse_with(text, PathMatching::Prefix)
    }

    /// Parses and compiles a rule.
    ///
    /// # Errors
    /// The first mistake, with its place in `text`.
    pub fn parse_with(text: &str, path_matching: PathMatching) -> Result<Self, RuleError> {
        if text.len() > MAX_RULE_BYTES {
            return Err(RuleError::new(format!("rule is longer than {MAX_RULE_BYTES} bytes"), 0..0));
        }
        let ast = parser::parse(text)?;
        let mut remarks = Vec::new();
        let expr = Expr::compile(&ast, path_matching, &mut remarks)?;
        Ok(Self { text: text.to_owned(), expr, remarks })
    }

    /// The text as it was written; its length in bytes is the default priority.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the request fulfils the rule.
    ///
    /// Cost: no allocation, except for `QueryRegexp` on values with escapes.
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        self.expr.matches(subject)
    }

    /// Holds every part of the rule against a request, those too that [`Rule::matches`] would skip.
    pub fn explain(&self, subject: &Subject<'_>) -> Explained {
        self.expr.explain(subject)
    }

    /// What is right but may not be what was meant.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
    }

    /// The hosts that `Host` names outside of any `!`, `*.a.test` among them, in order.
    pub fn hosts(&self) -> Vec<String> {
        let mut hosts = Vec::new();
        self.expr.collect_hosts(&mut hosts);
        hosts
    }

    pub(super) fn expr(&self) -> &Expr {
        &self.expr
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr
    }
}

/// Writes the canonical text: names as documented, one space around operators, no idle parentheses.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.expr.fmt(f)
    }
}

impl Expr {
    fn compile(
        ast: &Ast<'_>,
        path_matching: PathMatching,
        remarks: &mut Vec<Remark>,
    ) -> Result<Self, RuleError> {
        let mut list = |parts: &[Ast<'_>]| {
            parts
                .iter()
                .map(|part| Self::compile(part, path_matching, remarks))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(match ast {
            Ast::All(parts) => Self::All(list(parts)?),
            Ast::Any(parts) => Self::Any(list(parts)?),
            Ast::Not(inner) => Self::Not(Box::new(Self::compile(inner, path_matching, remarks)?)),
            Ast::Call(call) => Self::Matcher(Matcher::compile(call, path_matching, remarks)?),
        })
    }

    fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Matcher(matcher) => matcher.matches(subject),
            Self::Not(inner) => !inner.matches(subject),
            Self::All(parts) => parts.iter().all(|part| part.matches(subject)),
            Self::Any(parts) => parts.iter().any(|part| part.matches(subject)),
        }
    }

    fn explain(&self, subject: &Subject<'_>) -> Explained {
        let (part, had, parts) = match self {
            Self::Matcher(matcher) => (Part::Matcher, Some(matcher.had(subject)), Vec::new()),
            Self::Not(inner) => (Part::Not, None, vec![inner.explain(subject)]),
            Self::All(parts) => (Part::All, None, parts.iter().map(|part| part.explain(subject)).collect()),
            Self::Any(parts) => (Part::Any, None, parts.iter().map(|part| part.explain(subject)).collect()),
        };
        Explained { part, text: self.to_string(), matched: self.matches(subject), had, parts }
    }

    fn collect_hosts(&self, hosts: &mut Vec<String>) {
        match self {
            Self::Matcher(Matcher::Host(pattern)) => hosts.push(match pattern {
                HostPattern::All => "*".to_owned(),
                HostPattern::Child(parent) => format!("*.{parent}"),
                HostPattern::Exact(host) => host.clone(),
            }),
            Self::Matcher(_) | Self::Not(_) => {}
            Self::All(parts) | Self::Any(parts) => parts.iter().for_each(|part| part.collect_hosts(hosts)),
        }
    }

    /// How tightly it binds, as in the grammar.
    fn power(&self) -> u8 {
        match self {
            Self::Any(_) => 1,
            Self::All(_) => 2,
            Self::Matcher(_) | Self::Not(_) => 3,
        }
    }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let write = |f: &mut fmt::Formatter<'_>, inner: &Self, floor: u8| {
            if inner.power() < floor { write!(f, "({inner})") } else { write!(f, "{inner}") }
        };
        match self {
            Self::Matcher(matcher) => matcher.fmt(f),
            Self::Not(inner) => {
                f.write_str("!")?;
                write(f, inner, 3)
            }
            Self::All(parts) | Self::Any(parts) => {
                let operator = if self.power() == 1 { " || " } else { " && " };
                for (index, part) in parts.iter().enumerate() {
                    if index > 0 {
                        f.write_str(operator)?;
                    }
                    write(f, part, self.power() + 1)?;
                }
                Ok(())
            }
        }
    }
}
