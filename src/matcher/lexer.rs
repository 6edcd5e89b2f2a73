//! Text of a rule -> tokens, each with the bytes it came from.
//!
//! String literals are Go's: raw between backquotes, with escapes between double quotes.

use std::ops::Range;

use super::error::RuleError;

/// What the grammar is made of.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    And,
    Or,
    Not,
    Open,
    Close,
    Comma,
    Name(&'a str),
    Text(String),
}

impl Token<'_> {
    /// The token as an error names it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::And => "`&&`".into(),
            Self::Or => "`||`".into(),
            Self::Not => "`!`".into(),
            Self::Open => "`(`".into(),
            Self::Close => "`)`".into(),
            Self::Comma => "`,`".into(),
            Self::Name(name) => format!("`{name}`"),
            Self::Text(_) => "a string".into(),
        }
    }
}

/// Reads one token after the other.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// The next token, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(Token<'a>, Range<usize>)>, RuleError> {
        let rest = &self.text[self.at..];
        let trimmed = rest.trim_start_matches([' ', '\t', '\r', '\n']);
        self.at += rest.len() - trimmed.len();
        let start = self.at;
        let Some(first) = trimmed.chars().next() else { return Ok(None) };
        let token = match first {
            '(' => self.take(1, Token::Open),
            ')' => self.take(1, Token::Close),
            ',' => self.take(1, Token::Comma),
            '!' => self.take(1, Token::Not),
            '&' if trimmed.starts_with("&&") => self.take(2, Token::And),
            '|' if trimmed.starts_with("||") => self.take(2, Token::Or),
            '`' => self.raw()?,
            '"' => self.quoted()?,
            first if first == '_' || first.is_alphabetic() => {
                let len = trimmed.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(trimmed.len());
                self.take(len, Token::Name(&trimmed[..len]))
            }
            other => {
                let error = RuleError::new(
                    format!("unexpected character {other:?}"),
                    start..start + other.len_utf8(),
                );
                return Err(match other {
                    '&' => error.hint("and is written `&&`"),
                    '|' => error.hint("or is written `||`"),
                    '\'' | '‘' | '’' | '“' | '”' | '´' => {
                        error.hint("strings stand between backquotes or double quotes: Host(`a.test`)")
                    }
                    _ => error,
                });
            }
        };
        Ok(Some((token, start..self.at)))
    }

    fn take(&mut self, len: usize, token: Token<'a>) -> Token<'a> {
        self.at += len;
        token
    }

    /// A raw string: everything up to the next backquote, without carriage returns.
    fn raw(&mut self) -> Result<Token<'a>, RuleError> {
        let start = self.at;
        let body = &self.text[start + 1..];
        let end = body
            .find('`')
            .ok_or_else(|| RuleError::new("string without its closing backquote", start..self.text.len()))?;
        self.at = start + end + 2;
        Ok(Token::Text(body[..end].replace('\r', "")))
    }

    /// A string with Go's escapes.
    fn quoted(&mut self) -> Result<Token<'a>, RuleError> {
        let start = self.at;
        let mut bytes = Vec::new();
        let mut rest = self.text[start + 1..].char_indices().map(|(at, c)| (start + 1 + at, c));
        let open = || RuleError::new("string without its closing double quote", start..self.text.len());
        loop {
            let (at, c) = rest.next().ok_or_else(open)?;
            match c {
                '"' => {
                    self.at = at + 1;
                    let text = String::from_utf8(bytes)
                        .map_err(|_| RuleError::new("string is not UTF-8", start..self.at))?;
                    return Ok(Token::Text(text));
                }
                '\n' => return Err(open()),
                '\\' => {
                    let (_, kind) = rest.next().ok_or_else(open)?;
                    let (digits, radix) = match kind {
                        'x' => (2, 16),
                        'u' => (4, 16),
                        'U' => (8, 16),
                        '0'..='7' => (3, 8),
                        simple => {
                            bytes.push(simple_escape(simple).ok_or_else(|| {
                                RuleError::new(
                                    format!("unknown escape \\{simple}"),
                                    at..at + 1 + simple.len_utf8(),
                                )
                                .hint("between backquotes nothing is escaped")
                            })?);
                            continue;
                        }
                    };
                    let mut value = if radix == 8 { kind.to_digit(8).unwrap_or(0) } else { 0 };
                    let mut end = at + 2;
                    for _ in 0..if radix == 8 { digits - 1 } else { digits } {
                        let (digit_at, digit) = rest.next().ok_or_else(open)?;
                        end = digit_at + digit.len_utf8();
                        let digit = digit.to_digit(radix).ok_or_else(|| {
                            RuleError::new(format!("escape \\{kind} wants {digits} digits"), at..end)
                        })?;
                        value = value * radix + digit;
                    }
                    if matches!(kind, 'u' | 'U') {
                        let c = char::from_u32(value)
                            .ok_or_else(|| RuleError::new("escape is no character", at..end))?;
                        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    } else {
                        bytes.push(
                            u8::try_from(value)
                                .map_err(|_| RuleError::new("escape is above 255", at..end))?,
                        );
                    }
                }
                other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    }
}

fn simple_escape(kind: char) -> Option<u8> {
    Some(match kind {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '"' => b'"',
        _ => return None,
    })
}

/// Writes a string so that [`Lexer`] reads it back: raw where it can be.
pub(super) fn write_string(f: &mut std::fmt::Formatter<'_>, text: &str) -> std::fmt::Result {
    use std::fmt::Write;

    if !text.contains(['`', '\r']) && !text.chars().any(char::is_control) {
        return write!(f, "`{text}`");
    }
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' | '\\' => write!(f, "\\{c}")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            c if c.is_control() => write!(f, "\\u{:04x}", u32::from(c))?,
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(text: &str) -> Result<Token<'_>, RuleError> {
        Lexer::new(text).next().map(|token| token.expect("one token").0)
    }

    #[test]
    fn strings_are_read_as_go_reads_them() {
        for (text, value) in [
            (r"`a\n`", "a\\n"),
            ("`a\r\nb`", "a\nb"),
            (r#""a\n\t\\\"b""#, "a\n\t\\\"b"),
            (r#""\x41\101\u00e9\U0001F600""#, "AAé😀"),
            (r#""\xc3\xa9""#, "é"),
            ("``", ""),
        ] {
            assert_eq!(only(text), Ok(Token::Text(value.into())), "{text}");
        }
    }

    #[test]
    fn a_broken_string_says_where_and_why() {
        for (text, message, at) in [
            ("`abc", "string without its closing backquote", 0..4),
            ("\"abc", "string without its closing double quote", 0..4),
            ("\"a\nb\"", "string without its closing double quote", 0..5),
            ("\"abc\\", "string without its closing double quote", 0..5),
            (r#""a\d""#, "unknown escape \\d", 2..4),
            (r#""\'""#, "unknown escape \\'", 1..3),
            (r#""\x4""#, "escape \\x wants 2 digits", 1..5),
            (r#""\ud800""#, "escape is no character", 1..7),
            (r#""\777""#, "escape is above 255", 1..5),
            (r#""\xff""#, "string is not UTF-8", 0..6),
        ] {
            let error = only(text).expect_err(text);
            assert_eq!((error.message.as_str(), error.at), (message, at), "{text}");
        }
    }
}
