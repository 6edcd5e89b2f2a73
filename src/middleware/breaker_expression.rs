//! The language of `circuitBreaker.expression`: Traefik's functions, comparisons, `&&`, `||` and brackets.
//!
//! Pure: text in, an expression over the figures of ten seconds out.

use std::ops::Range;

use http::StatusCode;
use smallvec::SmallVec;

use crate::common::figures::{Latencies, Sum};
use crate::common::problem::nearest;

/// The counter of all requests.
pub(super) const ALL: usize = 0;
/// The counter of those that came to no answer of a pod.
const NETWORK_ERRORS: usize = 1;
/// Brackets within brackets.
const MAX_DEPTH: usize = 32;
/// Comparisons in one expression.
const MAX_TERMS: usize = 32;

/// A compiled expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expression {
    root: Node,
    /// Ranges of statuses, the end not included; each has a counter, from 2 on.
    ranges: Vec<Range<u16>>,
    latencies: Latencies,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    And(Box<Node>, Box<Node>),
    Or(Box<Node>, Box<Node>),
    Compare { figure: Figure, operator: Operator, number: f64 },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Figure {
    /// Of two counters.
    Ratio(usize, usize),
    /// In milliseconds.
    Latency { percent: f64 },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Operator {
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    Equal,
    NotEqual,
}

/// Why a text is no expression.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct ExpressionError {
    pub(super) message: String,
    /// The bytes that are meant.
    pub(super) at: Range<usize>,
    pub(super) hint: Option<String>,
}

impl Expression {
    /// How many counters it needs.
    pub(super) fn counters(&self) -> usize {
        2 + self.ranges.len()
    }

    /// Whether it asks for latencies.
    pub(super) fn latencies(&self) -> Latencies {
        self.latencies
    }

    /// The counters that an answer of this status counts in. From Traefik: 502 and 504 are failures of the
    /// network, whoever says so.
    pub(super) fn counters_of(&self, status: StatusCode) -> SmallVec<[usize; 4]> {
        let mut counters = SmallVec::from_slice(&[ALL]);
        if matches!(status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT) {
            counters.push(NETWORK_ERRORS);
        }
        let ranges = self.ranges.iter().enumerate();
        counters
            .extend(ranges.filter(|(_, range)| range.contains(&status.as_u16())).map(|(index, _)| index + 2));
        counters
    }

    /// Whether it is true of these figures.
    pub(super) fn holds(&self, sum: &Sum) -> bool {
        self.root.holds(sum)
    }
}

impl Node {
    fn holds(&self, sum: &Sum) -> bool {
        match self {
            Self::And(left, right) => left.holds(sum) && right.holds(sum),
            Self::Or(left, right) => left.holds(sum) || right.holds(sum),
            Self::Compare { figure, operator, number } => {
                let value = figure.value(sum);
                match operator {
                    Operator::Greater => value > *number,
                    Operator::GreaterOrEqual => value >= *number,
                    Operator::Less => value < *number,
                    Operator::LessOrEqual => value <= *number,
                    Operator::Equal => value == *number,
                    Operator::NotEqual => value != *number,
                }
            }
        }
    }
}

impl Figure {
    fn value(self, sum: &Sum) -> f64 {
        match self {
            Self::Ratio(_, of) if sum.count(of) == 0 => 0.0,
            Self::Ratio(part, of) => sum.count(part) as f64 / sum.count(of) as f64,
            Self::Latency { percent } => sum.quantile(percent).as_secs_f64() * 1000.0,
        }
    }
}

/// Reads an expression.
pub(super) fn parse(text: &str) -> Result<Expression, ExpressionError> {
    let mut parser =
        Parser { text, at: 0, depth: 0, terms: 0, ranges: Vec::new(), latencies: Latencies::Dropped };
    let root = parser.any()?;
    parser.skip_space();
    if parser.at < text.len() {
        let rest = parser.at..text.len();
        return Err(error("expected && or || or the end", rest));
    }
    Ok(Expression { root, ranges: parser.ranges, latencies: parser.latencies })
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    terms: usize,
    ranges: Vec<Range<u16>>,
    latencies: Latencies,
}

impl Parser<'_> {
    fn any(&mut self) -> Result<Node, ExpressionError> {
        let mut node = self.all()?;
        while self.eat("||") {
            node = Node::Or(Box::new(node), Box::new(self.all()?));
        }
        Ok(node)
    }

    fn all(&mut self) -> Result<Node, ExpressionError> {
        let mut node = self.term()?;
        while self.eat("&&") {
            node = Node::And(Box::new(node), Box::new(self.term()?));
        }
        Ok(node)
    }

    fn term(&mut self) -> Result<Node, ExpressionError> {
        self.skip_space();
        let start = self.at;
        if self.eat("(") {
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(error("brackets are nested too deeply", start..self.at));
            }
            let node = self.any()?;
            self.expect(")")?;
            self.depth -= 1;
            return Ok(node);
        }
        if self.text[self.at..].starts_with('!') {
            let error = error("there is no !", start..start + 1);
            return Err(error.hint("turn the comparison round: < for >="));
        }
        self.terms += 1;
        if self.terms > MAX_TERMS {
            return Err(error("more than 32 comparisons", start..self.text.len()));
        }
        let figure = self.figure()?;
        let operator = self.operator()?;
        let (number, _) = self.number()?;
        Ok(Node::Compare { figure, operator, number })
    }

    fn figure(&mut self) -> Result<Figure, ExpressionError> {
        const NAMES: [&str; 3] = ["NetworkErrorRatio", "ResponseCodeRatio", "LatencyAtQuantileMS"];
        self.skip_space();
        let start = self.at;
        let rest = &self.text[start..];
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let name = &rest[..length];
        self.at += length;
        let first = rest.chars().next().map_or(0, char::len_utf8);
        let span = start..start + if name.is_empty() { first } else { length };
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            let error = error("expected a function", span);
            return Err(error.hint("write the function first: NetworkErrorRatio() > 0.30"));
        }
        let wanted = match name {
            "NetworkErrorRatio" => 0,
            "LatencyAtQuantileMS" => 1,
            "ResponseCodeRatio" => 4,
            _ => {
                let error = error(format!("unknown function {name:?}"), span);
                return Err(match nearest(name, NAMES) {
                    Some(near) => error.hint(format!("did you mean {near}?")),
                    None => error.hint(format!("there is {}", NAMES.join(", "))),
                });
            }
        };
        self.expect("(")?;
        let mut arguments = Vec::with_capacity(wanted);
        while arguments.len() < wanted {
            if !arguments.is_empty() {
                self.expect(",")?;
            }
            arguments.push(self.number()?);
        }
        self.expect(")")?;
        match (name, arguments.as_slice()) {
            ("LatencyAtQuantileMS", [(percent, at)]) => {
                if !(0.0..=100.0).contains(percent) {
                    return Err(error("a quantile is between 0 and 100", at.clone()));
                }
                self.latencies = Latencies::Kept;
                Ok(Figure::Latency { percent: *percent })
            }
            ("ResponseCodeRatio", [from, to, of_from, of_to]) => {
                Ok(Figure::Ratio(self.range(from, to)?, self.range(of_from, of_to)?))
            }
            _ => Ok(Figure::Ratio(NETWORK_ERRORS, ALL)),
        }
    }

    /// The counter of a range of statuses.
    fn range(
        &mut self,
        (from, from_at): &(f64, Range<usize>),
        (to, to_at): &(f64, Range<usize>),
    ) -> Result<usize, ExpressionError> {
        let code = |number: f64, at: &Range<usize>| {
            let whole = number.fract() == 0.0 && (0.0..=1000.0).contains(&number);
            if whole { Ok(number as u16) } else { Err(error("expected a status", at.clone())) }
        };
        let range = code(*from, from_at)?..code(*to, to_at)?;
        if range.is_empty() {
            let error = error("the range holds no status", from_at.start..to_at.end);
            return Err(error.hint("its end does not belong to it: 500, 600 are all from 500 to 599"));
        }
        let index = self.ranges.iter().position(|known| *known == range).unwrap_or_else(|| {
            self.ranges.push(range);
            self.ranges.len() - 1
        });
        Ok(index + 2)
    }

    fn operator(&mut self) -> Result<Operator, ExpressionError> {
        for (text, operator) in [
            (">=", Operator::GreaterOrEqual),
            ("<=", Operator::LessOrEqual),
            ("==", Operator::Equal),
            ("!=", Operator::NotEqual),
            (">", Operator::Greater),
            ("<", Operator::Less),
        ] {
            if self.eat(text) {
                return Ok(operator);
            }
        }
        Err(error("expected a comparison", self.here()).hint("one of > >= < <= == !="))
    }

    fn number(&mut self) -> Result<(f64, Range<usize>), ExpressionError> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let length = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let at = self.at..self.at + length;
        let Ok(number) = rest[..length].parse::<f64>() else {
            return Err(error("expected a number", if length > 0 { at } else { self.here() }));
        };
        self.at += length;
        Ok((number, at))
    }

    fn expect(&mut self, token: &str) -> Result<(), ExpressionError> {
        if self.eat(token) { Ok(()) } else { Err(error(format!("expected {token}"), self.here())) }
    }

    fn eat(&mut self, token: &str) -> bool {
        self.skip_space();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    /// The next character; nothing at the end.
    fn here(&self) -> Range<usize> {
        let width = self.text[self.at..].chars().next().map_or(0, char::len_utf8);
        self.at..self.at + width
    }
}

fn error(message: impl Into<String>, at: Range<usize>) -> ExpressionError {
    ExpressionError { message: message.into(), at, hint: None }
}

impl ExpressionError {
    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::common::figures::Figures;

    /// Whether an expression holds after these answers, each with its latency in milliseconds.
    fn holds(text: &str, answers: &[(u16, u64)]) -> bool {
        let expression = parse(text).expect("an expression");
        let figures = Figures::new(expression.counters(), expression.latencies());
        for (status, millis) in answers {
            let status = StatusCode::from_u16(*status).expect("a status");
            figures.record(0, 1_000, expression.counters_of(status), Duration::from_millis(*millis));
        }
        expression.holds(&figures.sum(1_000))
    }

    #[test]
    fn every_function_and_operator_means_what_it_means_in_traefik() {
        let answers = [(200, 10), (200, 10), (404, 10), (500, 400), (502, 400), (504, 400)];
        for (text, expected) in [
            ("NetworkErrorRatio() > 0.30", true),
            ("NetworkErrorRatio() > 0.34", false),
            ("NetworkErrorRatio()>=0.3&&NetworkErrorRatio()<=0.4", true),
            ("ResponseCodeRatio(500, 600, 0, 600) == 0.5", true),
            ("ResponseCodeRatio(500, 502, 0, 600) < 0.2", true),
            ("ResponseCodeRatio(500, 600, 200, 300) == 1.5", true),
            ("ResponseCodeRatio(500, 600, 100, 200) > 0", false),
            ("LatencyAtQuantileMS(50.0) < 50", true),
            ("LatencyAtQuantileMS(100) > 300", true),
            ("LatencyAtQuantileMS(50.0) != 0", true),
            // && binds closer than ||.
            ("NetworkErrorRatio() < 1 || NetworkErrorRatio() < 1 && NetworkErrorRatio() > 1", true),
            ("(NetworkErrorRatio() < 1 || NetworkErrorRatio() < 1) && NetworkErrorRatio() > 1", false),
        ] {
            assert_eq!(holds(text, &answers), expected, "{text}");
        }
    }

    #[test]
    fn nothing_counted_is_no_failure() {
        assert!(!holds("NetworkErrorRatio() > 0", &[]));
        assert!(!holds("LatencyAtQuantileMS(50) > 0", &[]));
    }

    #[test]
    fn latencies_are_kept_only_when_they_are_asked_for() {
        assert_eq!(parse("NetworkErrorRatio() > 0").map(|it| it.latencies()), Ok(Latencies::Dropped));
        assert_eq!(parse("LatencyAtQuantileMS(50) > 0").map(|it| it.latencies()), Ok(Latencies::Kept));
    }

    #[test]
    fn a_mistake_is_shown_at_its_bytes() {
        for (text, message, part) in [
            ("NetworkErrorRatios() > 1", "unknown function \"NetworkErrorRatios\"", "NetworkErrorRatios"),
            ("NetworkErrorRatio() >", "expected a number", ""),
            ("NetworkErrorRatio() 1", "expected a comparison", "1"),
            (
                "NetworkErrorRatio() > 1 NetworkErrorRatio",
                "expected && or || or the end",
                "NetworkErrorRatio",
            ),
            ("0.5 < NetworkErrorRatio()", "expected a function", "0"),
            ("!(NetworkErrorRatio() > 1)", "there is no !", "!"),
            ("(NetworkErrorRatio() > 1", "expected )", ""),
            ("ResponseCodeRatio(500, 600) > 1", "expected ,", ")"),
            ("ResponseCodeRatio(600, 500, 0, 600) > 1", "the range holds no status", "600, 500"),
            ("ResponseCodeRatio(5.5, 600, 0, 600) > 1", "expected a status", "5.5"),
            ("LatencyAtQuantileMS(101) > 1", "a quantile is between 0 and 100", "101"),
            ("LatencyAtQuantileMS(1.2.3) > 1", "expected a number", "1.2.3"),
            ("NetworkErrorRatio() > 0.5 && ä", "expected a function", "ä"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!((error.message.as_str(), text.get(error.at.clone())), (message, Some(part)), "{text}");
        }
        let deep = "(".repeat(1000);
        assert_eq!(parse(&deep).expect_err("too deep").message, "brackets are nested too deeply");
    }
}
