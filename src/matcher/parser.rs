//! Tokens of a rule -> expression, by precedence: `!` before `&&` before `||`.
//!
//! Knows nothing of matchers: a call is a name with strings. Chains are flat lists, so what nests is
//! what the author nested, and that has a limit.

use std::ops::Range;

use super::error::RuleError;
use super::lexer::{Lexer, Token};

/// How deep parentheses and `!` may nest. People write three; the limit keeps the stack of the parser
/// and of the look-up small.
const MAX_DEPTH: usize = 64;

/// What one call was written with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call<'a> {
    pub(super) name: &'a str,
    pub(super) name_at: Range<usize>,
    pub(super) args: Vec<(String, Range<usize>)>,
    /// The whole call.
    pub(super) at: Range<usize>,
}

/// A rule as written.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Ast<'a> {
    Call(Call<'a>),
    Not(Box<Ast<'a>>),
    All(Vec<Ast<'a>>),
    Any(Vec<Ast<'a>>),
}

/// Reads a whole rule.
pub(super) fn parse(text: &str) -> Result<Ast<'_>, RuleError> {
    let mut parser = Parser { lexer: Lexer::new(text), next: None, end: text.trim_end().len() };
    parser.advance()?;
    if parser.next.is_none() {
        return Err(RuleError::new("rule is empty", 0..0));
    }
    let ast = parser.expression(0, 0)?;
    match parser.next {
        None => Ok(ast),
        Some((Token::Close, at)) => Err(RuleError::new("`)` without its `(`", at)),
        Some((Token::Comma, at)) => {
            Err(RuleError::new("unexpected `,` between matchers", at).hint("join them with `&&` or `||`"))
        }
        Some((token, at)) => {
            let error = RuleError::new(format!("expected `&&` or `||` before {}", token.describe()), at);
            Err(match token {
                Token::Name(name) if name.eq_ignore_ascii_case("and") => error.hint("and is written `&&`"),
                Token::Name(name) if name.eq_ignore_ascii_case("or") => error.hint("or is written `||`"),
                _ => error,
            })
        }
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    next: Option<(Token<'a>, Range<usize>)>,
    /// Where the text ends, for what is missing there.
    end: usize,
}

impl<'a> Parser<'a> {
    fn advance(&mut self) -> Result<Option<(Token<'a>, Range<usize>)>, RuleError> {
        let next = self.lexer.next()?;
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// Everything that binds tighter than `floor`: 0 takes all, 1 stops at `||`, 2 at `&&` too.
    fn expression(&mut self, floor: u8, depth: usize) -> Result<Ast<'a>, RuleError> {
        let mut left = self.operand(depth)?;
        loop {
            let power = match &self.next {
                Some((Token::Or, _)) => 1,
                Some((Token::And, _)) => 2,
                _ => return Ok(left),
            };
            if power <= floor {
                return Ok(left);
            }
            self.advance()?;
            let right = self.expression(power, depth)?;
            left = if power == 1 { join(left, right, Chain::Any) } else { join(left, right, Chain::All) };
        }
    }

    fn operand(&mut self, depth: usize) -> Result<Ast<'a>, RuleError> {
        let Some((token, at)) = self.advance()? else {
            return Err(RuleError::new("a matcher is missing at the end", self.end..self.end));
        };
        if depth > MAX_DEPTH {
            return Err(RuleError::new(format!("nested deeper than {MAX_DEPTH}"), at));
        }
        match token {
            Token::Not => Ok(Ast::Not(Box::new(self.operand(depth + 1)?))),
            Token::Open => {
                let inner = self.expression(0, depth + 1)?;
                match self.advance()? {
                    Some((Token::Close, _)) => Ok(inner),
                    Some((other, found)) => Err(RuleError::new(
                        format!("expected `&&`, `||` or `)` before {}", other.describe()),
                        found,
                    )),
                    None => Err(RuleError::new("`(` without its `)`", at)),
                }
            }
            Token::Name(name) => self.call(name, at),
            Token::Text(_) => Err(RuleError::new("a string stands where a matcher should", at)
                .hint("name what it is compared with: Host(`a.test`), PathPrefix(`/api`)")),
            other => Err(RuleError::new(format!("expected a matcher before {}", other.describe()), at)),
        }
    }

    fn call(&mut self, name: &'a str, name_at: Range<usize>) -> Result<Ast<'a>, RuleError> {
        let open = match self.advance()? {
            Some((Token::Open, at)) => at,
            Some((_, at)) => {
                return Err(RuleError::new(format!("expected `(` after {name}"), at)
                    .hint(format!("a matcher is called with strings: {name}(`...`)")));
            }
            None => {
                return Err(RuleError::new(format!("expected `(` after {name}"), self.end..self.end)
                    .hint(format!("a matcher is called with strings: {name}(`...`)")));
            }
        };
        let unclosed = || RuleError::new(format!("{name}( is not closed"), open.clone()).hint("add a `)`");
        let mut args = Vec::new();
        let end = loop {
            // A comma before the `)` is allowed, as in Go.
            match self.advance()? {
                Some((Token::Close, at)) => break at.end,
                Some((Token::Text(value), at)) => args.push((value, at)),
                Some((other, at)) => {
                    let error = RuleError::new(
                        format!("expected a string as parameter of {name}, found {}", other.describe()),
                        at,
                    );
                    return Err(error.hint(format!("put it between backquotes: {name}(`...`)")));
                }
                None => return Err(unclosed()),
            }
            match self.advance()? {
                Some((Token::Close, at)) => break at.end,
                Some((Token::Comma, _)) => {}
                // Most often the `)` was forgotten: `Host(`a` && ...`.
                Some((other @ (Token::And | Token::Or), at)) => {
                    return Err(RuleError::new(
                        format!("expected `)` after the parameters of {name}, found {}", other.describe()),
                        at,
                    ));
                }
                Some((other, at)) => {
                    return Err(RuleError::new(
                        format!(
                            "expected `,` or `)` in the parameters of {name}, found {}",
                            other.describe()
                        ),
                        at,
                    ));
                }
                None => return Err(unclosed()),
            }
        };
        let at = name_at.start..end;
        Ok(Ast::Call(Call { name, name_at, args, at }))
    }
}

#[derive(Clone, Copy)]
enum Chain {
    All,
    Any,
}

/// `a && b && c`, however it was put in parentheses, is one list: it means the same.
fn join<'a>(left: Ast<'a>, right: Ast<'a>, chain: Chain) -> Ast<'a> {
    let parts = |ast| match (ast, chain) {
        (Ast::All(parts), Chain::All) | (Ast::Any(parts), Chain::Any) => parts,
        (other, _) => vec![other],
    };
    let mut list = parts(left);
    list.extend(parts(right));
    match chain {
        Chain::All => Ast::All(list),
        Chain::Any => Ast::Any(list),
    }
}
