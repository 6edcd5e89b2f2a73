//! Windows of a limit, and which plan a request is on.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::common::units::HumanDuration;
use crate::http::client_ip::IpSet;
use crate::http::head::RequestHead;
use crate::http::limited::ToldWindow;
use crate::limit::{Limit, MAX_WINDOWS, Quota, Window};
use crate::middleware::source::compile_ranges;
use crate::middleware::{CompileContext, LinkContext};

use super::DEFAULT_WINDOW;
use super::key::{KeyPart, KeyPartConfig};

/// Plans of one limit. A store tells 255 quotas apart, those of the configuration before included.
const MAX_PLANS: usize = 15;

/// A window beside the first.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct WindowConfig {
    /// As answers, logs and `explain` name it: letters, digits, `-` and `_`. Required.
    pub name: String,
    /// Requests admitted per `period` and key in the long run. Required, at least 1.
    pub average: Option<i64>,
    /// Length of the period. Default `1s`.
    pub period: Option<HumanDuration>,
    /// Requests admitted at once after a rest. Default: `average`.
    pub burst: Option<i64>,
}

/// The limit of a plan.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PlanConfig {
    /// Requests admitted per `period` and key in the long run. 0, the default: no limit but `limits`.
    pub average: Option<i64>,
    /// Length of the period. Default `1s`.
    pub period: Option<HumanDuration>,
    /// Requests admitted at once after a rest. Default 1.
    pub burst: Option<i64>,
    /// More windows.
    pub limits: Vec<WindowConfig>,
}

/// Other limits for some.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct PlansConfig {
    /// What says the plan: its value is the plan's name, or, with `members`, is looked up there. Required.
    pub by: Option<KeyPartConfig>,
    /// Values of each plan; addresses and ranges when `by` is `ipStrategy`.
    pub members: BTreeMap<String, Vec<String>>,
    /// The limits of each plan, by its name. Who is on none has the limit that stands beside `plans`.
    pub limits: BTreeMap<String, PlanConfig>,
}

/// Windows as they are compiled.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Windows(pub Vec<Window>);

/// Who is on which plan.
#[derive(Clone, Debug)]
pub struct Plans {
    by: KeyPart,
    names: Vec<String>,
    windows: Vec<Windows>,
    members: Members,
}

#[derive(Clone, Debug)]
enum Members {
    /// The value is the plan's name.
    Named,
    Listed(HashMap<String, usize>),
    Ranges(Vec<(IpSet, usize)>),
}

impl Windows {
    /// The limit of these windows.
    pub fn limit(&self) -> Arc<Limit> {
        Arc::new(Limit::new(self.0.iter().cloned()))
    }

    /// As clients are told of them.
    pub fn told(&self) -> Vec<ToldWindow> {
        self.0
            .iter()
            .map(|window| {
                let quota = &window.quota;
                // A bucket of more than a period's requests is told as what it is: so many in the time that
                // fills it.
                let (number, nanos) = if quota.burst() > quota.average() {
                    (quota.burst(), quota.full_after())
                } else {
                    (quota.average(), quota.period())
                };
                let seconds = Duration::from_nanos(nanos);
                let whole = seconds.as_secs().saturating_add(u64::from(seconds.subsec_nanos() > 0)).max(1);
                let number = match 1_000_000_000_u64.checked_div(nanos) {
                    // Periods of less than a second are told as what they allow in one.
                    Some(times) if times > 1 => number.saturating_mul(times),
                    Some(_) | None => number,
                };
                ToldWindow { name: Arc::clone(&window.name), quota: number, seconds: whole }
            })
            .collect()
    }
}

fn number(key: &str, value: Option<i64>, default: u64, at: &ConfigPath, problems: &mut Problems) -> u64 {
    value.map_or(default, |value| {
        u64::try_from(value).unwrap_or_else(|_| {
            problems.error(&at.key(key), format!("{key} must not be negative"));
            default
        })
    })
}

/// The same for Traefik's own keys, where a negative number counts as none.
fn number_or_none(
    key: &str,
    value: Option<i64>,
    default: u64,
    means: &str,
    at: &ConfigPath,
    problems: &mut Problems,
) -> u64 {
    let value = value.map(|value| {
        u64::try_from(value).unwrap_or_else(|_| {
            let problem = Problem::warning(&at.key(key), format!("{key} is negative, which counts as 0"));
            problems.push(problem.hint(format!("write {key}: 0, {means}")));
            0
        })
    });
    value.unwrap_or(default)
}

fn quota(
    average: NonZeroU64,
    period: Option<HumanDuration>,
    burst: u64,
    delay: Option<HumanDuration>,
) -> Quota {
    // From Traefik: a period of 0 is the default, and a bucket holds at least one token.
    let period = period.and_then(HumanDuration::non_zero).unwrap_or(HumanDuration::secs(1).0);
    let quota = Quota::new(average, period, NonZeroU64::new(burst).unwrap_or(NonZeroU64::MIN));
    match delay {
        Some(delay) => quota.delayed_by(delay.0),
        None => quota,
    }
}

impl PlanConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        at: &ConfigPath,
        delay: Option<HumanDuration>,
        problems: &mut Problems,
    ) -> Option<Windows> {
        let before = problems.len();
        let average = number_or_none("average", self.average, 0, "which is no limit", at, problems);
        let burst = number_or_none("burst", self.burst, 1, "which is 1", at, problems);
        let mut windows = Vec::with_capacity(1 + self.limits.len());
        if let Some(average) = NonZeroU64::new(average) {
            let quota = quota(average, self.period, burst, delay);
            windows.push(Window { name: DEFAULT_WINDOW.into(), quota });
        }
        if self.limits.len() >= MAX_WINDOWS {
            problems
                .error(&at.key("limits"), format!("more than {} windows beside the first", MAX_WINDOWS - 1));
        }
        for (index, config) in self.limits.iter().enumerate() {
            let at = at.key("limits").index(index);
            let window = config.compile(&at, delay, problems);
            let taken = config.name == DEFAULT_WINDOW
                || self.limits[..index].iter().any(|other| other.name == config.name);
            if taken && !config.name.is_empty() {
                problems.error(&at.key("name"), format!("there is a window {:?} already", config.name));
            }
            windows.extend(window);
        }
        (!problems.errors_since(before)).then_some(Windows(windows))
    }
}

impl WindowConfig {
    fn compile(
        &self,
        at: &ConfigPath,
        delay: Option<HumanDuration>,
        problems: &mut Problems,
    ) -> Option<Window> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if self.name.is_empty() {
            problems.push(Problem::error(&at.key("name"), "a window needs a name").hint("write name: day"));
        } else if !self.name.bytes().all(plain) {
            let problem = Problem::error(&at.key("name"), format!("bad name {:?}", self.name));
            problems.push(problem.hint("letters, digits, - and _ are allowed"));
        }
        let average = number("average", self.average, 0, at, problems);
        if average == 0 && self.average.is_none_or(|average| average == 0) {
            let problem = Problem::error(&at.key("average"), "a window needs an average of at least 1");
            problems.push(problem.hint("write average: 1000, and period: 24h for a day"));
        }
        let burst = number("burst", self.burst, average, at, problems);
        let average = NonZeroU64::new(average)?;
        Some(Window { name: self.name.as_str().into(), quota: quota(average, self.period, burst, delay) })
    }
}

impl PlansConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        at: &ConfigPath,
        delay: Option<HumanDuration>,
        cx: &mut CompileContext<'_>,
    ) -> Option<Plans> {
        let before = cx.problems.len();
        let by = match &self.by {
            Some(by) => by.compile(&at.key("by"), cx),
            None => {
                let problem = Problem::error(&at.key("by"), "plans need to know what says the plan");
                cx.problems.push(problem.hint("write by: { requestHeaderName: X-Plan }"));
                None
            }
        };
        if self.limits.is_empty() {
            cx.problems.error(&at.key("limits"), "plans need limits");
        }
        if self.limits.len() > MAX_PLANS {
            cx.problems.error(&at.key("limits"), format!("more than {MAX_PLANS} plans"));
        }
        let mut windows = Vec::with_capacity(self.limits.len());
        for (name, plan) in &self.limits {
            windows.extend(plan.compile(&at.key("limits").key(name), delay, cx.problems));
        }
        let names: Vec<String> = self.limits.keys().cloned().collect();
        let members = self.members(by.as_ref(), &names, &at.key("members"), cx.problems);
        (!cx.problems.errors_since(before)).then_some(Plans { by: by?, names, windows, members })
    }

    fn members(
        &self,
        by: Option<&KeyPart>,
        names: &[String],
        at: &ConfigPath,
        problems: &mut Problems,
    ) -> Members {
        if self.members.is_empty() {
            return Members::Named;
        }
        let by_address = matches!(by, Some(KeyPart::Source(super::Source::Client(_))));
        let (mut listed, mut ranges) = (HashMap::new(), Vec::new());
        for (plan, values) in &self.members {
            let at = at.key(plan);
            let Some(number) = names.iter().position(|name| name == plan) else {
                let problem = Problem::error(&at, format!("there is no plan {plan:?}"));
                problems.push(problem.hint(format!("plans are {}", names.join(", "))));
                continue;
            };
            if by_address {
                ranges.push((compile_ranges(values, &at, problems), number));
            } else {
                for (index, value) in values.iter().enumerate() {
                    if listed.insert(value.clone(), number).is_some_and(|other| other != number) {
                        problems.error(&at.index(index), format!("{value:?} is on another plan already"));
                    }
                }
            }
        }
        if by_address { Members::Ranges(ranges) } else { Members::Listed(listed) }
    }
}

impl Plans {
    /// The windows of each plan.
    pub fn all(&self) -> impl Iterator<Item = &Windows> {
        self.windows.iter()
    }

    /// The same with their plans' names.
    pub fn named(&self) -> impl Iterator<Item = (&str, &Windows)> {
        self.names.iter().map(String::as_str).zip(&self.windows)
    }

    /// The name of a plan.
    pub fn name(&self, plan: usize) -> &str {
        &self.names[plan]
    }

    /// The plan of a request.
    pub fn find(&self, context: &LinkContext, head: &RequestHead) -> Option<usize> {
        let value = self.by.text(context, head)?;
        match &self.members {
            Members::Named => self.names.iter().position(|name| *name == value),
            Members::Listed(listed) => listed.get(&value).copied(),
            Members::Ranges(ranges) => {
                let addr = value.parse().ok()?;
                ranges.iter().find(|(set, _)| set.contains(addr)).map(|(_, plan)| *plan)
            }
        }
    }
}
