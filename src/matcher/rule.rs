//! A compiled rule: parsed once, then held against requests.

use std::fmt;

use super::error::{Remark, RuleError};
use super::explain::{Explained, Part};
use super::matchers::Matcher;
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
            Self::Matcher(Matcher::Host(pattern)) => hosts.push(pattern.to_string()),
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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;
    use crate::http::fields::Fields;
    use crate::matcher::RemarkKind;

    /// `METHOD host/path?query`, then header lines.
    fn with_subject<T>(request: &str, lines: &[(&str, &str)], look: impl FnOnce(&Subject<'_>) -> T) -> T {
        let (method, rest) = request.split_once(' ').expect("a method");
        let (target, query) = match rest.split_once('?') {
            Some((target, query)) => (target, Some(query)),
            None => (rest, None),
        };
        let (host, path) = target.split_at(target.find('/').expect("a path"));
        let mut headers = Fields::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_str(value).expect("a value"));
        }
        let client_ip: IpAddr = "10.1.2.3".parse().expect("an address");
        look(&Subject { host, path, query, method, headers: &headers, client_ip })
    }

    fn matches(rule: &str, request: &str, lines: &[(&str, &str)]) -> bool {
        let rule = Rule::parse(rule).unwrap_or_else(|error| panic!("{rule}: {error:?}"));
        with_subject(request, lines, |subject| rule.matches(subject))
    }

    #[test]
    fn a_broken_rule_says_where_and_how_to_mend_it() {
        for (text, message, at, hint) in [
            ("", "rule is empty", 0..0, None),
            (" \n", "rule is empty", 0..0, None),
            ("Host(`a`", "Host( is not closed", 4..5, Some("add a `)`")),
            ("Host(", "Host( is not closed", 4..5, Some("add a `)`")),
            ("Host(`a`) && ", "a matcher is missing at the end", 12..12, None),
            ("&& Host(`a`)", "expected a matcher before `&&`", 0..2, None),
            ("Host(`a`) || && Host(`b`)", "expected a matcher before `&&`", 13..15, None),
            ("Host(`a`) Host(`b`)", "expected `&&` or `||` before `Host`", 10..14, None),
            (
                "Host(`a`) and Host(`b`)",
                "expected `&&` or `||` before `and`",
                10..13,
                Some("and is written `&&`"),
            ),
            ("Host(`a`) & Host(`b`)", "unexpected character '&'", 10..11, Some("and is written `&&`")),
            ("Host(`a`) | Host(`b`)", "unexpected character '|'", 10..11, Some("or is written `||`")),
            (
                "Host(`a`), Host(`b`)",
                "unexpected `,` between matchers",
                9..10,
                Some("join them with `&&` or `||`"),
            ),
            ("Host(`a`))", "`)` without its `(`", 9..10, None),
            ("(Host(`a`)", "`(` without its `)`", 0..1, None),
            ("(Host(`a`) Host(`b`))", "expected `&&`, `||` or `)` before `Host`", 11..15, None),
            ("()", "expected a matcher before `)`", 1..2, None),
            ("!", "a matcher is missing at the end", 1..1, None),
            ("Host", "expected `(` after Host", 4..4, Some("a matcher is called with strings: Host(`...`)")),
            (
                "Host `a`",
                "expected `(` after Host",
                5..8,
                Some("a matcher is called with strings: Host(`...`)"),
            ),
            (
                "`a`",
                "a string stands where a matcher should",
                0..3,
                Some("name what it is compared with: Host(`a.test`), PathPrefix(`/api`)"),
            ),
            (
                "Host('a')",
                "unexpected character '\\''",
                5..6,
                Some("strings stand between backquotes or double quotes: Host(`a.test`)"),
            ),
            (
                "Host(a)",
                "expected a string as parameter of Host, found `a`",
                5..6,
                Some("put it between backquotes: Host(`...`)"),
            ),
            ("Host(`a` && Host(`b`)", "expected `)` after the parameters of Host, found `&&`", 9..11, None),
            ("Host(`a` `b`)", "expected `,` or `)` in the parameters of Host, found a string", 9..12, None),
            ("Host(`a.test", "string without its closing backquote", 5..12, None),
            ("Host()", "unexpected number of parameters of Host: got 0, expected 1", 0..6, None),
            (
                "Host(`a`, `b`)",
                "unexpected number of parameters of Host: got 2, expected 1",
                0..14,
                Some("Host(`a`) || Host(`b`)"),
            ),
            ("Header(`a`)", "unexpected number of parameters of Header: got 1, expected 2", 0..11, None),
            (
                "Query(`a`, `b`, `c`)",
                "unexpected number of parameters of Query: got 3, expected 1 or 2",
                0..20,
                None,
            ),
            ("Host(``)", "empty parameter of Host", 5..7, None),
            ("Query(`a`, ``)", "empty parameter of Query", 11..13, None),
            ("Hots(`a`)", "unknown matcher Hots", 0..4, Some("did you mean Host?")),
            ("hOST(`a`)", "unknown matcher hOST", 0..4, Some("did you mean Host?")),
            ("pathprefx(`/`)", "unknown matcher pathprefx", 0..9, Some("did you mean PathPrefix?")),
            (
                "HeadersRegexp(`a`, `b`)",
                "unknown matcher HeadersRegexp",
                0..13,
                Some("HeadersRegexp of Traefik v2 is HeaderRegexp in v3"),
            ),
            (
                "Host(`bücher.test`)",
                "Host takes ASCII only, not \"bücher.test\"",
                5..19,
                Some("write an international name in its xn-- form"),
            ),
            (
                "HostRegexp(`ü`)",
                "HostRegexp takes ASCII only, not \"ü\"",
                11..15,
                Some("write an international name in its xn-- form"),
            ),
            ("Path(`a`)", "path \"a\" does not start with a `/`", 5..8, Some("Path(`/a`)")),
            ("PathPrefix(`a/`)", "path \"a/\" does not start with a `/`", 11..15, Some("PathPrefix(`/a/`)")),
            ("PathRegexp(`(a`)", "bad regular expression: unclosed group", 11..15, None),
            ("HeaderRegexp(`X-A`, `[`)", "bad regular expression: unclosed character class", 20..23, None),
            ("Header(`X A`, `b`)", "\"X A\" is not the name of a header field", 7..12, None),
            (
                "ClientIP(`10.0.0.300`)",
                "\"10.0.0.300\" is neither an IP address nor a range",
                9..21,
                Some("such as ClientIP(`10.0.0.1`) or ClientIP(`10.0.0.0/8`)"),
            ),
        ] {
            let error = Rule::parse(text).expect_err(text);
            assert_eq!(
                (error.message.as_str(), error.at, error.hint.as_deref()),
                (message, at, hint),
                "{text}"
            );
        }
    }

    #[test]
    fn a_rule_that_nests_or_goes_on_without_end_is_refused() {
        let nested = |depth: usize| format!("{}Path(`/`){}", "(".repeat(depth), ")".repeat(depth));
        assert!(Rule::parse(&nested(64)).is_ok());
        assert_eq!(Rule::parse(&nested(65)).expect_err("too deep").message, "nested deeper than 64");
        let negated = format!("{}Path(`/`)", "!".repeat(60_000));
        assert_eq!(Rule::parse(&negated).expect_err("too deep").message, "nested deeper than 64");

        let long = vec!["Path(`/`)"; 5_000].join(" || ");
        assert!(Rule::parse(&long).is_ok());
        let longer = vec!["Path(`/`)"; 6_000].join(" || ");
        assert_eq!(Rule::parse(&longer).expect_err("too long").message, "rule is longer than 65536 bytes");
    }

    #[test]
    fn matchers_mean_what_they_mean_in_traefik() {
        for (rule, request, matched) in [
            ("Host(`a.test`)", "GET a.test/", true),
            ("Host(`A.Test.:8080`)", "GET a.test/", true),
            ("Host(`a.test`)", "GET b.test/", false),
            ("Host(`a.test`)", "GET /", false),
            ("Host(`*.a.test`)", "GET x.a.test/", true),
            ("Host(`*.a.test`)", "GET a.test/", false),
            ("Host(`*.a.test`)", "GET y.x.a.test/", false),
            ("Host(`*.a.test`)", "GET .a.test/", false),
            ("Host(`*`)", "GET /", true),
            ("Host(`[::1]:80`)", "GET ::1/", true),
            ("Host(`.`)", "GET /", false),
            ("HostRegexp(`^[A-Z]+\\.test$`)", "GET a.test/", true),
            ("HostRegexp(`test`)", "GET a.test/", true),
            ("HostRegexp(`^.+$`)", "GET /", false),
            ("Path(`/x`)", "GET a.test/x", true),
            ("Path(`/x`)", "GET a.test/x/", false),
            ("PathPrefix(`/pre`)", "GET a.test/prefix", true),
            ("PathPrefix(`/pre/`)", "GET a.test/pre", false),
            ("PathRegexp(`^/API`)", "GET a.test/api", false),
            ("PathRegexp(`v[0-9]+$`)", "GET a.test/api/v2", true),
            ("Method(`put`)", "PUT a.test/", true),
            ("Method(`PUT`)", "put a.test/", false),
            ("Query(`mobile`)", "GET a.test/?mobile", true),
            ("Query(`mobile`)", "GET a.test/?mobile=", true),
            ("Query(`mobile`)", "GET a.test/?mobile=true", false),
            ("Query(`q`, `a b`)", "GET a.test/?x=1&q=a+b", true),
            ("Query(`q`, `a`)", "GET a.test/?x;q=a", true),
            ("QueryRegexp(`q`, `^(a|b)$`)", "GET a.test/?q=c&q=b", true),
            ("QueryRegexp(`q`, `^é$`)", "GET a.test/?q=%C3%A9", true),
            ("QueryRegexp(`q`)", "GET a.test/?q=c", false),
            ("ClientIP(`10.1.2.3`)", "GET a.test/", true),
            ("ClientIP(`10.9.9.9/8`)", "GET a.test/", true),
            ("ClientIP(`::ffff:10.0.0.0/104`)", "GET a.test/", true),
            ("ClientIP(`192.168.0.0/16`)", "GET a.test/", false),
            ("ClientIP(`::/0`)", "GET a.test/", false),
        ] {
            assert_eq!(matches(rule, request, &[]), matched, "{rule} {request}");
        }
        let lines = [("X-A", "one"), ("x-a", "Two"), ("Host", "a.test")];
        for (rule, matched) in [
            ("Header(`x-a`, `one`)", true),
            ("Header(`X-A`, `Two`)", true),
            ("Header(`X-A`, `two`)", false),
            ("Header(`X-A`, `one, Two`)", false),
            ("Header(`X-B`, `one`)", false),
            ("HeaderRegexp(`X-A`, `^[A-Z]`)", true),
            ("HeaderRegexp(`X-A`, `^[0-9]`)", false),
        ] {
            assert_eq!(matches(rule, "GET a.test/", &lines), matched, "{rule}");
        }
    }

    #[test]
    fn whole_segments_only_where_it_was_asked_for() {
        let rule = Rule::parse_with("PathPrefix(`/api`) || PathPrefix(`/v/`)", PathMatching::Segment)
            .expect("a rule");
        for (path, matched) in [
            ("/api", true),
            ("/api/", true),
            ("/api/x", true),
            ("/apix", false),
            ("/v/x", true),
            ("/v", false),
        ] {
            let request = format!("GET a.test{path}");
            assert_eq!(with_subject(&request, &[], |subject| rule.matches(subject)), matched, "{path}");
        }
    }

    #[test]
    fn not_binds_tighter_than_and_and_and_tighter_than_or() {
        for (rule, path, matched) in [
            ("Path(`/a`) || Path(`/b`) && Path(`/c`)", "/a", true),
            ("(Path(`/a`) || Path(`/b`)) && Path(`/c`)", "/a", false),
            ("!Path(`/a`) && Path(`/b`)", "/b", true),
            ("!(Path(`/a`) && Path(`/b`))", "/b", true),
            ("!Path(`/a`) || Path(`/a`)", "/a", true),
            ("!!Path(`/a`)", "/a", true),
        ] {
            assert_eq!(matches(rule, &format!("GET a.test{path}"), &[]), matched, "{rule} {path}");
        }
    }

    #[test]
    fn names_are_taken_as_traefik_spells_them() {
        for name in ["PathPrefix", "pathprefix", "PATHPREFIX", "Pathprefix"] {
            assert!(matches(&format!("{name}(\"/\",)"), "GET a.test/", &[]), "{name}");
        }
        assert!(Rule::parse("pathPrefix(`/`)").is_err());
    }

    #[test]
    fn every_part_is_explained_even_those_a_look_up_skips() {
        let rule = Rule::parse(
            "Host(`a.test`) && (PathPrefix(`/api`) || !Method(`GET`)) && Header(`Authorization`, `x`)",
        )
        .expect("a rule");
        let explained = with_subject("GET b.test/x", &[("Authorization", "Bearer secret")], |subject| {
            rule.explain(subject)
        });
        let mut lines = Vec::new();
        flatten(&explained, 0, &mut lines);
        assert_eq!(
            lines,
            [
                "no All",
                " no Host(`a.test`): host is \"b.test\"",
                " no Any",
                "  no PathPrefix(`/api`): path is \"/x\"",
                "  no Not",
                "   yes Method(`GET`): method is \"GET\"",
                " no Header(`authorization`, `x`): authorization is there 1 times, not shown",
            ]
        );
    }

    fn flatten(explained: &Explained, depth: usize, lines: &mut Vec<String>) {
        let matched = if explained.matched { "yes" } else { "no" };
        let what = match (&explained.part, &explained.had) {
            (Part::Matcher, Some(had)) => format!("{}: {had}", explained.text),
            (part, _) => format!("{part:?}"),
        };
        lines.push(format!("{}{matched} {what}", " ".repeat(depth)));
        explained.parts.iter().for_each(|part| flatten(part, depth + 1, lines));
    }

    #[test]
    fn what_can_never_match_is_remarked() {
        for (rule, at, hint) in [
            ("Header(`Host`, `a.test`)", 7..13, Some("use Host or HostRegexp")),
            ("Host(`a.*.test`)", 5..15, Some("a star stands for one whole first label: *.a.test")),
            (
                "Host(`a.test,b.test`)",
                5..20,
                Some("several hosts are written Host(`a.test`) || Host(`b.test`)"),
            ),
            ("HostRegexp(`{sub:[a-z]+}.test`)", 11..30, Some("a v3 pattern is a regular expression: [a-z]+")),
            ("Path(`/items/{id}`)", 5..18, Some("a v3 pattern is a regular expression: [a-z]+")),
            ("Path(`/a%20b`)", 5..13, Some("Path(`/a b`)")),
            ("Path(`/a%2fb`)", 5..13, Some("Path(`/a%2Fb`)")),
            ("Path(`/a?b=c`)", 5..13, Some("use Query")),
        ] {
            let rule_read = Rule::parse(rule).expect(rule);
            let [remark] = rule_read.remarks() else { panic!("{rule}: {:?}", rule_read.remarks()) };
            assert_eq!(remark.kind, RemarkKind::NeverMatches, "{rule}");
            assert_eq!((remark.at.clone(), remark.hint.as_deref()), (at, hint), "{rule}");
        }
        for rule in
            ["Path(`/a%2Fb`)", "HostRegexp(`^a{2}$`)", "PathRegexp(`\\p{Greek}`)", "PathPrefix(`/a/`)"]
        {
            assert_eq!(Rule::parse(rule).expect(rule).remarks(), [], "{rule}");
        }
    }

    #[test]
    fn a_prefix_that_crosses_a_segment_is_remarked_unless_segments_are_whole() {
        let rule = Rule::parse("PathPrefix(`/api`)").expect("a rule");
        assert_eq!(rule.remarks()[0].kind, RemarkKind::CrossesSegment);
        let rule = Rule::parse_with("PathPrefix(`/api`)", PathMatching::Segment).expect("a rule");
        assert_eq!(rule.remarks(), []);
    }

    #[test]
    fn hosts_are_those_outside_of_negations() {
        let rule = Rule::parse("(Host(`A.test`) || Host(`*.b.test`)) && !Host(`c.test`)").expect("a rule");
        assert_eq!(rule.hosts(), ["a.test", "*.b.test"]);
    }

    fn any_rule() -> impl Strategy<Value = String> {
        let text = prop_oneof![
            "[ -~]{1,8}".prop_map(|text| format!("`{}`", text.replace('`', ""))),
            "[a-z*.:\\[\\]]{1,6}".prop_map(|text| format!("`{text}`")),
            "[ !#-Z^-~é\t]{1,6}".prop_map(|text| format!("\"{text}\"")),
            Just(r#""\x41\n\u00e9\"`""#.to_owned()),
        ];
        let leaf = (
            proptest::sample::select(vec![
                "Host",
                "HOSTREGEXP",
                "path",
                "PathPrefix",
                "Method",
                "Query",
                "Header",
            ]),
            text.clone(),
            text,
            any::<bool>(),
        )
            .prop_map(|(name, first, second, two)| match name {
                "path" | "PathPrefix" => format!("{name}({}/{})", &first[..1], &first[1..]),
                "HOSTREGEXP" => format!("{name}(`^{}`)", regex::escape(&first.replace(['`', 'é', '\\'], ""))),
                "Header" => format!("{name}(`X-Y`,{second})"),
                "Query" if two => format!("{name}( {first} , {second} )"),
                _ => format!("{name}({first})"),
            });
        leaf.prop_recursive(5, 16, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|rule| format!("! ({rule})")),
                inner.clone().prop_map(|rule| format!("!{rule}")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})&&{b}")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a} || ({b})")),
                (inner.clone(), inner).prop_map(|(a, b)| format!("{a}\n&& {b}")),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_canonical_text_says_the_same(text in any_rule()) {
            if let Ok(rule) = Rule::parse(&text) {
                let canonical = rule.to_string();
                let again = Rule::parse(&canonical).map_err(|error| TestCaseError::fail(format!("{canonical}: {error}")))?;
                prop_assert_eq!(again.to_string(), canonical);
                prop_assert_eq!(again, rule);
            }
        }

        #[test]
        fn no_text_at_all_makes_it_panic(text in "[A-Za-z()&|!,`\"'\\\\é/ .]{0,40}") {
            if let Err(error) = Rule::parse(&text) {
                prop_assert!(error.at.start <= error.at.end && error.at.end <= text.len());
                prop_assert!(text.is_char_boundary(error.at.start) && text.is_char_boundary(error.at.end));
            }
        }
    }
}
