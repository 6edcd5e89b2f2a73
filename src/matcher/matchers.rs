//! THE LIST of matchers: one condition each, as compiled and as a request is held against it.
//!
//! Meanings are those of Traefik v3 (`pkg/muxer/http/matcher.go`).

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use http::HeaderName;
use ipnet::IpNet;
use regex::bytes::Regex;

use super::error::{Remark, RemarkKind, RuleError};
use super::lexer::write_string;
use super::parser::Call;
use super::regexp::{self, Case};
use super::{PathMatching, Subject, query};
use crate::common::problem::nearest;
use crate::http::authority::host_for_matching;
use crate::http::client_ip::parse_range;

/// One compiled condition.
#[derive(Clone, Debug)]
pub(super) enum Matcher {
    /// As [`Subject::host`] is written.
    Host(HostPattern),
    HostRegexp(Pattern),
    Path(String),
    PathPrefix(String, PathMatching),
    PathRegexp(Pattern),
    Header(HeaderName, String),
    HeaderRegexp(HeaderName, Pattern),
    /// In capitals.
    Method(String),
    /// The value is empty for the form with one parameter.
    Query(String, String),
    QueryRegexp(String, Pattern),
    ClientIp(IpNet),
}

/// What `Host` compares with.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum HostPattern {
    /// `*`: every request, one without a host too.
    All,
    /// `*.a.test`: one label before this parent.
    Child(String),
    /// One host.
    Exact(String),
}

/// A regular expression with its text.
#[derive(Clone, Debug)]
pub(super) struct Pattern {
    text: String,
    regex: Regex,
}

/// A name, and how many parameters it takes.
struct Form {
    name: &'static str,
    params: &'static [usize],
}

const FORMS: [Form; 11] = [
    Form { name: "ClientIP", params: &[1] },
    Form { name: "Method", params: &[1] },
    Form { name: "Host", params: &[1] },
    Form { name: "HostRegexp", params: &[1] },
    Form { name: "Path", params: &[1] },
    Form { name: "PathRegexp", params: &[1] },
    Form { name: "PathPrefix", params: &[1] },
    Form { name: "Header", params: &[2] },
    Form { name: "HeaderRegexp", params: &[2] },
    Form { name: "Query", params: &[1, 2] },
    Form { name: "QueryRegexp", params: &[1, 2] },
];

/// Names of Traefik v2 that are gone, and what does their work now.
const FORMER: [(&str, &str); 3] =
    [("Headers", "Header"), ("HeadersRegexp", "HeaderRegexp"), ("HostHeader", "Host")];

impl Matcher {
    /// Checks a call and compiles it; what is right but doubtful goes to `remarks`.
    pub(super) fn compile(
        call: &Call<'_>,
        path_matching: PathMatching,
        remarks: &mut Vec<Remark>,
    ) -> Result<Self, RuleError> {
        let form = find(call)?;
        let args: Vec<&str> = call.args.iter().map(|(value, _)| value.as_str()).collect();
        if !form.params.contains(&args.len()) {
            return Err(wrong_count(form, call));
        }
        if let Some((_, at)) = call.args.iter().find(|(value, _)| value.is_empty()) {
            return Err(RuleError::new(format!("empty parameter of {}", form.name), at.clone()));
        }
        let at = |index: usize| call.args[index].1.clone();
        let pattern = |index: usize, case| {
            Pattern::compile(args[index], case)
                .map_err(|reason| RuleError::new(format!("bad regular expression: {reason}"), at(index)))
        };
        let mut remark = |kind, message: String, at, hint: Option<String>| {
            remarks.push(Remark { kind, message, at, hint });
        };
        Ok(match (form.name, args.as_slice()) {
            ("Host", [host]) => {
                ascii(form, host, at(0))?;
                let pattern = HostPattern::parse(host);
                if let HostPattern::Exact(host) | HostPattern::Child(host) = &pattern
                    && let Some(bad) = host.find(|c: char| !is_host_char(c))
                {
                    let bad = host[bad..].chars().next().unwrap_or_default();
                    let hint = match bad {
                        '*' => "a star stands for one whole first label: *.a.test".to_owned(),
                        '{' => "patterns are for HostRegexp".to_owned(),
                        ',' | ' ' => "several hosts are written Host(`a.test`) || Host(`b.test`)".to_owned(),
                        '/' => "a path is matched by Path or PathPrefix".to_owned(),
                        _ => "no host has such a character".to_owned(),
                    };
                    remark(RemarkKind::NeverMatches, format!("no host has {bad:?} in it"), at(0), Some(hint));
                }
                Self::Host(pattern)
            }
            ("HostRegexp", [host]) => {
                ascii(form, host, at(0))?;
                former_pattern(host, at(0), &mut remark);
                Self::HostRegexp(pattern(0, Case::Insensitive)?)
            }
            ("Path" | "PathPrefix", [path]) => {
                if !path.starts_with('/') {
                    return Err(RuleError::new(format!("path {path:?} does not start with a `/`"), at(0))
                        .hint(format!("{}(`/{path}`)", form.name)));
                }
                doubtful_path(form, path, at(0), &mut remark);
                if form.name == "Path" {
                    Self::Path((*path).to_owned())
                } else {
                    if path_matching == PathMatching::Prefix && !path.ends_with('/') {
                        remark(
                            RemarkKind::CrossesSegment,
                            format!("matches {path}x as well as {path}/x"),
                            at(0),
                            Some("`pathMatching: segment` matches whole segments only".into()),
                        );
                    }
                    Self::PathPrefix((*path).to_owned(), path_matching)
                }
            }
            ("PathRegexp", [path]) => {
                former_pattern(path, at(0), &mut remark);
                Self::PathRegexp(pattern(0, Case::Sensitive)?)
            }
            ("Header", [name, value]) => {
                Self::Header(header_name(name, at(0), &mut remark)?, (*value).to_owned())
            }
            ("HeaderRegexp", [name, _]) => {
                Self::HeaderRegexp(header_name(name, at(0), &mut remark)?, pattern(1, Case::Sensitive)?)
            }
            ("Method", [method]) => Self::Method(method.to_uppercase()),
            ("Query" | "QueryRegexp", [name]) => Self::Query((*name).to_owned(), String::new()),
            ("Query", [name, value]) => Self::Query((*name).to_owned(), (*value).to_owned()),
            ("QueryRegexp", [name, _]) => Self::QueryRegexp((*name).to_owned(), pattern(1, Case::Sensitive)?),
            ("ClientIP", [range]) => Self::ClientIp(parse_range(range).map_err(|_| {
                RuleError::new(format!("{range:?} is neither an IP address nor a range"), at(0))
                    .hint("such as ClientIP(`10.0.0.1`) or ClientIP(`10.0.0.0/8`)")
            })?),
            // `FORMS` and the arms above name the same forms: a test compiles each.
            _ => return Err(wrong_count(form, call)),
        })
    }

    /// Whether the request fulfils it. Allocates only for query values with escapes in them, and then
    /// only for `QueryRegexp`.
    pub(super) fn matches(&self, subject: &Subject<'_>) -> bool {
        match self {
            Self::Host(pattern) => pattern.matches(subject.host),
            Self::HostRegexp(pattern) => pattern.matches(subject.host.as_bytes()),
            Self::Path(path) => subject.path == path,
            Self::PathPrefix(prefix, PathMatching::Prefix) => subject.path.starts_with(prefix.as_str()),
            Self::PathPrefix(prefix, PathMatching::Segment) => subject
                .path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/')),
            Self::PathRegexp(pattern) => pattern.matches(subject.path.as_bytes()),
            Self::Header(name, value) => {
                subject.headers.get_all(name).any(|line| line.as_bytes() == value.as_bytes())
            }
            Self::HeaderRegexp(name, pattern) => {
                subject.headers.get_all(name).any(|line| pattern.matches(line.as_bytes()))
            }
            Self::Method(method) => subject.method == method,
            Self::Query(name, value) => query::has(subject.query, name, value),
            Self::QueryRegexp(name, pattern) => {
                query::any_value(subject.query, name, |value| pattern.matches(value))
            }
            Self::ClientIp(range) => range.contains(&subject.client_ip),
        }
    }

    /// What the request has in the place that this matcher looks at.
    pub(super) fn had(&self, subject: &Subject<'_>) -> String {
        match self {
            Self::Host(_) | Self::HostRegexp(_) if subject.host.is_empty() => "there is no host".into(),
            Self::Host(_) | Self::HostRegexp(_) => format!("host is {:?}", subject.host),
            Self::Path(_) | Self::PathPrefix(..) | Self::PathRegexp(_) => {
                format!("path is {:?}", subject.path)
            }
            Self::Header(name, _) | Self::HeaderRegexp(name, _) => {
                let lines: Vec<Cow<'_, str>> = subject
                    .headers
                    .get_all(name)
                    .map(|line| String::from_utf8_lossy(line.as_bytes()))
                    .collect();
                match lines.len() {
                    0 => format!("there is no {name} field"),
                    count if holds_secrets(name) => format!("{name} is there {count} times, not shown"),
                    _ => format!("{name} is {}", list(&lines)),
                }
            }
            Self::Method(_) => format!("method is {:?}", subject.method),
            Self::Query(name, _) | Self::QueryRegexp(name, _) => {
                let values = query::values(subject.query, name);
                if values.is_empty() {
                    format!("there is no parameter {name:?}")
                } else {
                    format!("parameter {name:?} is {}", list(&values))
                }
            }
            Self::ClientIp(_) => format!("client is {}", subject.client_ip),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut call = |name: &str, args: &[&str]| {
            write!(f, "{name}(")?;
            for (index, arg) in args.iter().enumerate() {
                if index > 0 {
                    f.write_str(", ")?;
                }
                write_string(f, arg)?;
            }
            f.write_str(")")
        };
        match self {
            Self::Host(pattern) => call("Host", &[&pattern.to_string()]),
            Self::HostRegexp(pattern) => call("HostRegexp", &[&pattern.text]),
            Self::Path(path) => call("Path", &[path]),
            Self::PathPrefix(prefix, _) => call("PathPrefix", &[prefix]),
            Self::PathRegexp(pattern) => call("PathRegexp", &[&pattern.text]),
            Self::Header(name, value) => call("Header", &[name.as_str(), value]),
            Self::HeaderRegexp(name, pattern) => call("HeaderRegexp", &[name.as_str(), &pattern.text]),
            Self::Method(method) => call("Method", &[method]),
            Self::Query(name, value) if value.is_empty() => call("Query", &[name]),
            Self::Query(name, value) => call("Query", &[name, value]),
            Self::QueryRegexp(name, pattern) => call("QueryRegexp", &[name, &pattern.text]),
            Self::ClientIp(range) if range.prefix_len() == range.max_prefix_len() => {
                call("ClientIP", &[&range.addr().to_string()])
            }
            Self::ClientIp(range) => call("ClientIP", &[&range.to_string()]),
        }
    }
}

impl HostPattern {
    fn parse(text: &str) -> Self {
        // Of a host in a rule a port and one trailing dot count as little as of one in a request.
        if let Ok(address) = text.parse::<std::net::Ipv6Addr>() {
            return Self::Exact(address.to_string());
        }
        let canonical = match host_for_matching(text) {
            // No authority at all, so no request has it. Never the empty host: some requests have that.
            host if host.is_empty() => text.to_ascii_lowercase(),
            host => host.into_owned(),
        };
        match canonical.strip_prefix("*.") {
            _ if canonical == "*" => Self::All,
            Some(parent) => Self::Child(parent.to_owned()),
            None => Self::Exact(canonical),
        }
    }

    fn matches(&self, host: &str) -> bool {
        match self {
            Self::All => true,
            Self::Exact(exact) => host == exact,
            Self::Child(parent) => split_label(host).is_some_and(|rest| rest == parent),
        }
    }
}

/// Writes what parses to the same pattern.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::All => "*".to_owned(),
            Self::Child(parent) => format!("*.{parent}"),
            Self::Exact(host) => host.clone(),
        };
        // The last dot of a host does not count, so one that counts needs another.
        let dot = if Self::parse(&text) == *self { "" } else { "." };
        write!(f, "{text}{dot}")
    }
}

impl PartialEq for Matcher {
    fn eq(&self, other: &Self) -> bool {
        // A matcher says all that it is in its text, but for the way prefixes are matched.
        let prefixes = |matcher: &Self| match matcher {
            Self::PathPrefix(_, path_matching) => Some(*path_matching),
            _ => None,
        };
        prefixes(self) == prefixes(other) && self.to_string() == other.to_string()
    }
}

impl Pattern {
    fn compile(text: &str, case: Case) -> Result<Self, String> {
        Ok(Self { text: text.to_owned(), regex: regexp::compile(text, case)? })
    }

    fn matches(&self, bytes: &[u8]) -> bool {
        self.regex.is_match(bytes)
    }
}

/// What follows the first label of a host, if there is a label and something follows it.
pub(super) fn split_label(host: &str) -> Option<&str> {
    let dot = memchr::memchr(b'.', host.as_bytes())?;
    (dot > 0 && dot + 1 < host.len()).then(|| &host[dot + 1..])
}

fn find(call: &Call<'_>) -> Result<&'static Form, RuleError> {
    // Canonical, lower, UPPER and Title case; nothing in between.
    let spelled = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let title = format!("{}{}", &name[..1], &lower[1..]);
        [name.to_owned(), name.to_ascii_uppercase(), lower, title].iter().any(|form| form == call.name)
    };
    if let Some(form) = FORMS.iter().find(|form| spelled(form.name)) {
        return Ok(form);
    }
    let error = RuleError::new(format!("unknown matcher {}", call.name), call.name_at.clone());
    if let Some((name, now)) = FORMER.iter().find(|(name, _)| name.eq_ignore_ascii_case(call.name)) {
        return Err(error.hint(format!("{name} of Traefik v2 is {now} in v3")));
    }
    Err(match nearest(call.name, FORMS.iter().map(|form| form.name)) {
        Some(name) => error.hint(format!("did you mean {name}?")),
        None => {
            let names: Vec<&str> = FORMS.iter().map(|form| form.name).collect();
            error.hint(format!("there are {}", names.join(", ")))
        }
    })
}

fn wrong_count(form: &Form, call: &Call<'_>) -> RuleError {
    let expected: Vec<String> = form.params.iter().map(usize::to_string).collect();
    let error = RuleError::new(
        format!(
            "unexpected number of parameters of {}: got {}, expected {}",
            form.name,
            call.args.len(),
            expected.join(" or ")
        ),
        call.at.clone(),
    );
    match (form.params, call.args.as_slice()) {
        ([1], [(first, _), (second, _), ..]) => {
            error.hint(format!("{0}(`{first}`) || {0}(`{second}`)", form.name))
        }
        _ => error,
    }
}

fn ascii(form: &Form, host: &str, at: Range<usize>) -> Result<(), RuleError> {
    if host.is_ascii() {
        return Ok(());
    }
    Err(RuleError::new(format!("{} takes ASCII only, not {host:?}", form.name), at)
        .hint("write an international name in its xn-- form"))
}

fn is_host_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~!$&'()+;=:".contains(c)
}

fn header_name(
    name: &str,
    at: Range<usize>,
    remark: &mut impl FnMut(RemarkKind, String, Range<usize>, Option<String>),
) -> Result<HeaderName, RuleError> {
    let parsed = HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| RuleError::new(format!("{name:?} is not the name of a header field"), at.clone()))?;
    if parsed == http::header::HOST {
        let hint = Some("use Host or HostRegexp".to_owned());
        remark(RemarkKind::NeverMatches, "Host is not among the header fields".into(), at, hint);
    }
    Ok(parsed)
}

/// `{name:pattern}` was Traefik v2's; v3 takes it letter by letter.
fn former_pattern(
    text: &str,
    at: Range<usize>,
    remark: &mut impl FnMut(RemarkKind, String, Range<usize>, Option<String>),
) {
    let named = |part: &str| {
        let end = part.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(part.len());
        end > 0 && !part.starts_with(|c: char| c.is_ascii_digit()) && part[end..].starts_with([':', '}'])
    };
    if text.match_indices('{').any(|(at, _)| named(&text[at + 1..]) && !text[..at].ends_with(['p', 'P', 'x']))
    {
        let hint = Some("a v3 pattern is a regular expression: [a-z]+".to_owned());
        remark(RemarkKind::NeverMatches, "{name} is Traefik v2's way to write a pattern".into(), at, hint);
    }
}

/// Paths that the routing path can never be equal to or begin with.
fn doubtful_path(
    form: &Form,
    path: &str,
    at: Range<usize>,
    remark: &mut impl FnMut(RemarkKind, String, Range<usize>, Option<String>),
) {
    if path.contains('?') {
        let message = "a path has no `?`: the query is not part of it".to_owned();
        remark(RemarkKind::NeverMatches, message, at, Some("use Query".into()));
    } else if path.contains('{') {
        former_pattern(path, at, remark);
    } else {
        let seen = crate::http::path::routing_form(path);
        if seen != path {
            let message = format!("{} compares with the decoded path", form.name);
            remark(RemarkKind::NeverMatches, message, at, Some(format!("{}(`{seen}`)", form.name)));
        }
    }
}

/// Fields whose values may not be shown.
fn holds_secrets(name: &HeaderName) -> bool {
    [http::header::AUTHORIZATION, http::header::PROXY_AUTHORIZATION, http::header::COOKIE].contains(name)
}

fn list(values: &[impl AsRef<str>]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{:?}", value.as_ref())).collect();
    quoted.join(", ")
}
