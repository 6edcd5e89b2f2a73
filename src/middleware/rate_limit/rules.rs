//! What `rateLimit` makes exceptions for: who is exempt, what costs more, which answers count.

use std::collections::BTreeMap;

use http::{HeaderName, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::http::client_ip::{Found, IpSet, IpStrategy};
use crate::http::head::RequestHead;
use crate::middleware::LinkContext;
use crate::middleware::retry::StatusText;
use crate::middleware::source::{IpStrategyConfig, compile_ranges};

use super::key::header_name;

/// Requests that a limit does not look at. One reason is enough.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ExemptConfig {
    /// Clients in these addresses and ranges.
    pub source_range: Vec<String>,
    /// How to find the client's address for `sourceRange`. Default: the peer's.
    pub ip_strategy: Option<IpStrategyConfig>,
    /// Requests whose field has exactly this value. Anybody who knows it is exempt: a secret, or one that a
    /// trusted proxy sets.
    pub headers: BTreeMap<String, String>,
    /// These paths and what is beneath them.
    pub paths: Vec<String>,
}

/// What requests of a kind cost.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CostConfig {
    /// This path and what is beneath it. Default: every path.
    pub path: Option<String>,
    /// These methods. Default: all.
    pub methods: Vec<String>,
    /// Tokens that a request takes; 0: it is not counted. Required.
    pub cost: Option<i64>,
}

/// Who is exempt, compiled.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Exempt {
    ranges: IpSet,
    strategy: IpStrategy,
    headers: Vec<(HeaderName, String)>,
    paths: Vec<String>,
}

/// What requests of a kind cost, compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cost {
    path: Option<String>,
    methods: Vec<String>,
    cost: u64,
}

/// Which answers count: ranges of statuses, both ends included.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CountStatus(Vec<(u16, u16)>);

impl ExemptConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(&self, at: &ConfigPath, problems: &mut Problems) -> Option<Exempt> {
        let before = problems.len();
        if *self == Self::default() {
            let problem = Problem::error(at, "exempt names nobody");
            problems.push(problem.hint("write sourceRange, headers or paths, or leave exempt out"));
        }
        let ranges = compile_ranges(&self.source_range, &at.key("sourceRange"), problems);
        let strategy = match &self.ip_strategy {
            Some(strategy) => strategy.compile(&at.key("ipStrategy"), problems),
            None => Some(IpStrategy::peer()),
        };
        let mut headers = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            if let Some(name) = header_name(name, &at.key("headers").key(name), problems) {
                headers.push((name, value.clone()));
            }
        }
        let mut paths = Vec::with_capacity(self.paths.len());
        for (index, text) in self.paths.iter().enumerate() {
            paths.extend(path(text, &at.key("paths").index(index), problems));
        }
        (!problems.errors_since(before)).then_some(Exempt { ranges, strategy: strategy?, headers, paths })
    }
}

impl Exempt {
    /// Why a request is exempt, if it is.
    pub fn reason(&self, context: &LinkContext, head: &RequestHead) -> Option<&'static str> {
        if !self.ranges.is_empty()
            && let Found::Addr(addr) = self.strategy.find(context.client.ip(), &head.headers)
            && self.ranges.contains(addr)
        {
            return Some("by its address");
        }
        let has = |(name, value): &(HeaderName, String)| {
            head.headers.get(name).is_some_and(|given| given.as_bytes() == value.as_bytes())
        };
        if self.headers.iter().any(has) {
            return Some("by a field");
        }
        self.paths.iter().any(|path| is_beneath(head.path.as_str(), path)).then_some("by its path")
    }
}

impl CostConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(&self, at: &ConfigPath, problems: &mut Problems) -> Option<Cost> {
        let before = problems.len();
        let cost = match self.cost.map(u64::try_from) {
            Some(Ok(cost)) => cost,
            Some(Err(_)) => {
                problems.error(&at.key("cost"), "cost must not be negative");
                0
            }
            None => {
                problems.push(Problem::error(&at.key("cost"), "a rule needs a cost").hint("write cost: 10"));
                0
            }
        };
        let path = self.path.as_deref().and_then(|text| path(text, &at.key("path"), problems));
        for (index, method) in self.methods.iter().enumerate() {
            if http::Method::try_from(method.as_str()).is_err() {
                problems.error(&at.key("methods").index(index), format!("bad method {method:?}"));
            }
        }
        // As in the rule `Method`: what is written in small letters means the same.
        let methods = self.methods.iter().map(|method| method.to_ascii_uppercase()).collect();
        (!problems.errors_since(before)).then_some(Cost { path, methods, cost })
    }
}

impl Cost {
    /// What a request costs by the first rule that is for it; otherwise 1.
    pub fn of(rules: &[Self], head: &RequestHead) -> u64 {
        let fits = |rule: &&Self| {
            rule.path.as_deref().is_none_or(|path| is_beneath(head.path.as_str(), path))
                && (rule.methods.is_empty()
                    || rule.methods.iter().any(|method| method == head.method.as_str()))
        };
        rules.iter().find(fits).map_or(1, |rule| rule.cost)
    }

    /// The most that one of these rules asks for.
    pub fn most(rules: &[Self]) -> u64 {
        rules.iter().map(|rule| rule.cost).max().unwrap_or(1)
    }
}

impl CountStatus {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(texts: &[StatusText], at: &ConfigPath, problems: &mut Problems) -> Option<Self> {
        let mut ranges = Vec::with_capacity(texts.len());
        for (index, text) in texts.iter().enumerate() {
            match text.parse() {
                Some(range) => ranges.push(range),
                None => {
                    let problem = Problem::error(&at.index(index), "bad status or range");
                    problems.push(problem.hint("write \"401\" or \"400-499\", one to an item"));
                }
            }
        }
        (ranges.len() == texts.len()).then_some(Self(ranges))
    }

    /// Whether only some answers count.
    pub fn is_some(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether an answer of this status counts.
    pub fn contains(&self, status: StatusCode) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&status.as_u16()))
    }
}

/// A path without the slash at its end; the empty one is all paths.
fn path(text: &str, at: &ConfigPath, problems: &mut Problems) -> Option<String> {
    if !text.starts_with('/') {
        problems.error(at, format!("path {text:?} must begin with /"));
        return None;
    }
    Some(text.trim_end_matches('/').to_owned())
}

fn is_beneath(path: &str, above: &str) -> bool {
    path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
