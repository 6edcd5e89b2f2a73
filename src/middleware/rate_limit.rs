//! `rateLimit`: so many requests of a key in so much time, by token buckets.
//!
//! Traefik's keys and answers are kept as they are; everything else is a key of its own that is off unless it
//! is written.

mod key;
mod plan;
mod rules;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue, TRAILER, TRANSFER_ENCODING,
    UPGRADE,
};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::clock;
use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem, Problems};
use crate::common::units::{HumanBytes, HumanDuration};
use crate::http::client_ip::IpStrategy;
use crate::http::error::ProxyError;
use crate::http::head::{RequestHead, ResponseHead};
use crate::http::limited::{LimitAnswer, LimitFields, Limited, Standing};
use crate::limit::redis::{GivesBack, Receipt, SharedLimit};
use crate::limit::{
    Bound, DEFAULT_MAX_KEYS, Decision, KeyBytes, LimitKey, LocalLimit, Nanos, Part, Show, Taken, nanos,
};

use super::redis::RedisConfig;
use super::retry::StatusText;
use super::source::{Source, SourceCriterionConfig};
use super::{CompileContext, Flow, LinkContext};

pub use key::{KeyPart, KeyPartConfig};
pub use plan::{PlanConfig, PlansConfig, WindowConfig};
pub use rules::{CostConfig, ExemptConfig};

use key::compile_key;
use plan::{Plans, Windows};
use rules::{Cost, CountStatus, Exempt};

/// The name of the window that `average`, `period` and `burst` make.
const DEFAULT_WINDOW: &str = "default";

/// Options of `rateLimit`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimitConfig {
    /// Requests admitted per `period` and key in the long run. 0, the default, turns the limit off.
    pub average: Option<i64>,
    /// Length of the period. Default `1s`.
    pub period: Option<HumanDuration>,
    /// Requests admitted at once after a rest; the size of the bucket. Default 1.
    pub burst: Option<i64>,
    /// What requests are counted by. Default: the peer's address.
    pub source_criterion: Option<SourceCriterionConfig>,
    /// Buckets that all replicas share. Default: each replica has its own, in memory.
    pub redis: Option<RedisConfig>,
    /// Whether routers that use this middleware share its buckets. Default `router`, and with `redis`
    /// `middleware`.
    pub scope: Option<BucketScope>,
    /// Keys whose buckets are kept, about 27 bytes each and window. Default 65536.
    pub max_keys: Option<i64>,
    /// Memory for buckets (`2MiB`, or bytes), instead of `maxKeys`.
    pub max_memory: Option<HumanBytes>,
    /// What requests are counted by, all of these together, instead of `sourceCriterion`.
    pub key: Vec<KeyPartConfig>,
    /// The longest that a request which is too early is held back rather than refused; 0: never. Default:
    /// half the time that a token takes, and at most `500ms`, as in Traefik.
    pub max_delay: Option<HumanDuration>,
    /// More windows that a request must pass too, such as one a day. What one refuses, none counts.
    pub limits: Vec<WindowConfig>,
    /// Other limits for some.
    pub plans: Option<PlansConfig>,
    /// Requests that are not limited.
    pub exempt: Option<ExemptConfig>,
    /// What requests of a kind cost; the first rule that is for a request counts. Default: 1.
    pub cost: Vec<CostConfig>,
    /// Only answers of these statuses count (`"401"`, `"400-499"`): a request takes its token and gets it back
    /// when its answer has another one. Default: every request counts.
    pub count_status: Vec<StatusText>,
    /// Counts, and refuses and delays nobody. Default `false`.
    pub shadow: Option<bool>,
    /// What refusals look like.
    pub refusal: Option<RefusalConfig>,
    /// Fields that tell clients where they stand, on every answer. Default `none`.
    pub response_fields: Option<ResponseFields>,
    /// How the keys that are refused most are shown in the API. Default: `plain` for addresses, hosts and
    /// paths, `hashed` when a header, a cookie or a claim is among the key's parts.
    pub top_keys: Option<TopKeys>,
}

/// Who shares buckets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum BucketScope {
    /// Each router that uses the middleware has its own, as in Traefik.
    #[default]
    Router,
    /// All routers that use the middleware count together.
    Middleware,
}

/// Fields that tell clients where they stand.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum ResponseFields {
    /// None, as in Traefik; refusals have `Retry-After` and `X-Retry-In` all the same.
    #[default]
    None,
    /// `RateLimit` and `RateLimit-Policy`, the IETF draft.
    Standard,
    /// `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset`, in seconds from now.
    Legacy,
    /// Both.
    Both,
}

/// How keys are shown to operators.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TopKeys {
    /// As they are.
    Plain,
    /// As numbers that stand for them until the process ends.
    Hashed,
    /// Not at all.
    Off,
}

/// What a refusal looks like.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RefusalConfig {
    /// 400 to 599. Default 429.
    pub status: Option<i64>,
    /// Default: the status' own phrase.
    pub body: Option<String>,
    /// Of the body. Default: none, as in Traefik.
    pub content_type: Option<String>,
    /// More fields.
    pub headers: BTreeMap<String, String>,
}

impl RateLimitConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`; also for `average: 0`, which is off.
    pub fn compile(
        &self,
        name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<RateLimit> {
        let before = cx.problems.len();
        if *self == Self::default() {
            let problem = Problem::error(at, "rateLimit has no options");
            cx.problems.push(problem.hint("write at least average: 100"));
        }
        let redis = self.redis.as_ref().map(|redis| {
            let keys = self.max_keys.and_then(|keys| usize::try_from(keys).ok()).and_then(NonZeroUsize::new);
            redis.compile(keys.unwrap_or(DEFAULT_MAX_KEYS), &at.key("redis"), cx.problems)
        });
        let own = PlanConfig {
            average: self.average,
            period: self.period,
            burst: self.burst,
            limits: self.limits.clone(),
        };
        let windows = own.compile(at, self.max_delay, cx.problems);
        let plans = self.plans.as_ref().map(|plans| plans.compile(&at.key("plans"), self.max_delay, cx));
        let key = self.compile_key(at, cx);
        let exempt = match &self.exempt {
            Some(exempt) => exempt.compile(&at.key("exempt"), cx.problems),
            None => Some(Exempt::default()),
        };
        let costs: Vec<_> = self
            .cost
            .iter()
            .enumerate()
            .filter_map(|(index, cost)| cost.compile(&at.key("cost").index(index), cx.problems))
            .collect();
        let count = CountStatus::compile(&self.count_status, &at.key("countStatus"), cx.problems);
        let refusal = self.refusal.clone().unwrap_or_default();
        let refusal = refusal.compile(&at.key("refusal"), cx.problems);
        let of_plans = plans.iter().flatten().flat_map(Plans::named);
        let of_plans = of_plans.map(|(plan, windows)| (windows, format!(" of plan {plan:?}")));
        for (windows, of) in windows.iter().map(|windows| (windows, String::new())).chain(of_plans) {
            check_costs(windows, &of, &costs, at, cx.problems);
        }
        let most = windows.iter().chain(plans.iter().flatten().flat_map(Plans::all)).map(|w| w.0.len()).max();
        let bound = self.bound(most.unwrap_or(1).max(1), at, cx.problems);
        if cx.problems.errors_since(before) {
            return None;
        }
        let (windows, key, exempt, count) = (windows?, key?, exempt?, count?);
        let plans = plans.flatten();
        if windows.0.is_empty() && plans.as_ref().is_none_or(|plans| plans.all().all(|w| w.0.is_empty())) {
            return None;
        }
        // From Traefik: routers share what is in Redis, and nothing in memory.
        let redis = redis.flatten();
        let scope = match (self.scope, &redis) {
            (Some(scope), _) => scope,
            (None, Some(_)) => BucketScope::Middleware,
            (None, None) => BucketScope::Router,
        };
        let store_name = match scope {
            BucketScope::Router => format!("rateLimit/{name}/{}", cx.router),
            BucketScope::Middleware => format!("rateLimit/{name}"),
        };
        let store = cx.stores.rate(&store_name, bound);
        let refusal = refusal?;
        let mut bind = |windows: &Windows| {
            let mut answer = LimitAnswer::plain(name.clone(), windows.told());
            answer.fields = self.fields();
            refusal.apply(&mut answer);
            let local = match windows.0.len() {
                0 => None,
                _ => {
                    let local =
                        LocalLimit::new(Arc::clone(&store), windows.limit(), bound, nanos(clock::instant()));
                    if local.is_none() {
                        let problem =
                            Problem::error(at, "the limit was changed too often while requests ran");
                        cx.problems.push(problem.hint("try again when older requests have ended"));
                    }
                    local
                }
            };
            let shared = redis.as_ref().filter(|_| local.is_some());
            let gives_back = if count.is_some() { GivesBack::Perhaps } else { GivesBack::No };
            let shared = shared.map(|redis| {
                let (limit, pauses) = (windows.limit(), Arc::default());
                Box::new(redis.bind(&store_name, limit, gives_back, pauses, &mut cx.stores.redis))
            });
            Bucket { local, shared, answer: Arc::new(answer) }
        };
        let base = bind(&windows);
        let plans = plans.map(|plans| {
            let buckets = plans.all().map(&mut bind).collect();
            (plans, buckets)
        });
        if cx.problems.errors_since(before) {
            return None;
        }
        let show = match self.top_keys {
            Some(TopKeys::Plain) => Some(Show::Plain),
            Some(TopKeys::Hashed) => Some(Show::Hashed),
            Some(TopKeys::Off) => None,
            None if key.iter().any(KeyPart::is_secret) => Some(Show::Hashed),
            None => Some(Show::Plain),
        };
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Some(RateLimit(Arc::new(Rules {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            key,
            base,
            plans,
            exempt: self.exempt.is_some().then_some(exempt),
            costs,
            count,
            shadow: self.shadow.unwrap_or(false),
            show,
        })))
    }

    fn compile_key(&self, at: &ConfigPath, cx: &mut CompileContext<'_>) -> Option<Box<[KeyPart]>> {
        if self.key.is_empty() {
            let criterion = self.source_criterion.clone().unwrap_or_default();
            let default = Source::Client(IpStrategy::peer());
            let source = criterion.compile(&at.key("sourceCriterion"), default, cx.problems)?;
            return Some([KeyPart::Source(source)].into());
        }
        if self.source_criterion.is_some() {
            let problem = Problem::error(&at.key("key"), "key and sourceCriterion both say what to count by");
            cx.problems.push(problem.hint("keep one of them"));
            return None;
        }
        compile_key(&self.key, &at.key("key"), cx)
    }

    fn bound(&self, windows: usize, at: &ConfigPath, problems: &mut Problems) -> Bound {
        let keys = self.max_keys.map(|keys| usize::try_from(keys).unwrap_or(0));
        // More than there are addresses for is no bound.
        let memory = self.max_memory.map(|bytes| usize::try_from(bytes.0).unwrap_or(usize::MAX));
        let mut not_zero = |key: &str, number: Option<usize>| {
            let not_zero = NonZeroUsize::new(number?);
            if not_zero.is_none() {
                problems.error(&at.key(key), format!("{key} must be at least 1"));
            }
            not_zero
        };
        let (keys, memory) = (not_zero("maxKeys", keys), not_zero("maxMemory", memory));
        if self.max_keys.is_some() && self.max_memory.is_some() {
            let problem = Problem::error(&at.key("maxMemory"), "maxMemory and maxKeys both bound the same");
            problems.push(problem.hint("keep one of them"));
        }
        match memory {
            Some(bytes) => Bound::bytes(bytes.get()),
            None => {
                let windows = NonZeroUsize::new(windows).unwrap_or(NonZeroUsize::MIN);
                Bound::buckets(keys.unwrap_or(DEFAULT_MAX_KEYS).saturating_mul(windows))
            }
        }
    }

    fn fields(&self) -> LimitFields {
        let fields = self.response_fields.unwrap_or_default();
        LimitFields {
            standard: matches!(fields, ResponseFields::Standard | ResponseFields::Both),
            legacy: matches!(fields, ResponseFields::Legacy | ResponseFields::Both),
        }
    }
}

/// A request that costs more than a bucket holds would never pass.
fn check_costs(windows: &Windows, of: &str, costs: &[Cost], at: &ConfigPath, problems: &mut Problems) {
    let most = Cost::most(costs);
    if let Some(small) = windows.0.iter().find(|window| window.quota.burst() < most) {
        let burst = small.quota.burst();
        let problem = format!(
            "a request that costs {most} never passes: window {:?}{of} has a burst of {burst}",
            small.name
        );
        problems.push(Problem::error(&at.key("cost"), problem).hint(format!("write burst: {most} or more")));
    }
}

/// Fields that the proxy itself writes, or that are about the connection (RFC 9110 §7.6.1): HTTP/2 knows none of these
/// (RFC 9113 §8.2.2), and clients would drop the answer.
const NOT_SETTABLE: [HeaderName; 8] = [
    CONNECTION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    DATE,
    UPGRADE,
    TRAILER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

impl RefusalConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    fn compile(&self, at: &ConfigPath, problems: &mut Problems) -> Option<Refusal> {
        let before = problems.len();
        let status = self.status.unwrap_or(429);
        let status = u16::try_from(status).ok().filter(|status| (400..600).contains(status));
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        if status.is_none() {
            problems.error(&at.key("status"), "the status of a refusal must be 400 to 599");
        }
        let mut headers = Vec::new();
        let content_type = self.content_type.as_ref().filter(|value| !value.is_empty());
        let content_type = content_type.map(|value| ("Content-Type", value, at.key("contentType")));
        let more =
            self.headers.iter().map(|(name, value)| (name.as_str(), value, at.key("headers").key(name)));
        for (name, value, at) in content_type.into_iter().chain(more) {
            match (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                (Ok(name), Ok(_)) if NOT_SETTABLE.contains(&name) => {
                    problems.error(&at, format!("{name} is the proxy's own to write"));
                }
                (Ok(name), Ok(value)) => headers.push((name, value)),
                (Err(_), _) => problems.error(&at, format!("bad header name {name:?}")),
                (_, Err(_)) => problems.error(&at, "the value has characters that no field may have"),
            }
        }
        let both = self.content_type.is_some()
            && headers.iter().filter(|(name, _)| name == CONTENT_TYPE).count() > 1;
        if both {
            problems.error(&at.key("contentType"), "Content-Type is written twice");
        }
        let body = self.body.clone().map(Bytes::from);
        (!problems.errors_since(before)).then_some(Refusal { status: status?, body, headers })
    }
}

struct Refusal {
    status: StatusCode,
    body: Option<Bytes>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn apply(&self, answer: &mut LimitAnswer) {
        answer.status = self.status;
        answer.body.clone_from(&self.body);
        answer.headers.clone_from(&self.headers);
    }
}

/// `rateLimit`, compiled.
#[derive(Clone, Debug)]
pub struct RateLimit(Arc<Rules>);

#[derive(Debug)]
struct Rules {
    /// Tells its notes from those of others.
    number: u64,
    key: Box<[KeyPart]>,
    base: Bucket,
    plans: Option<(Plans, Vec<Bucket>)>,
    exempt: Option<Exempt>,
    costs: Vec<Cost>,
    count: CountStatus,
    shadow: bool,
    show: Option<Show>,
}

/// The windows of a plan, and how it answers.
#[derive(Debug)]
pub struct Bucket {
    /// `None`: no limit.
    local: Option<LocalLimit>,
    /// Where the buckets are instead, when replicas share them.
    shared: Option<Box<SharedLimit>>,
    answer: Arc<LimitAnswer>,
}

/// What there is to be decided about a request.
#[derive(Debug)]
pub struct Question<'a> {
    /// What it counts as, in memory.
    pub key: LimitKey,
    /// What it counts as, anywhere.
    pub bytes: KeyBytes,
    /// Its cost, at least 1.
    pub cost: u64,
    /// Its limit.
    pub local: &'a LocalLimit,
    bucket: &'a Bucket,
}

impl Question<'_> {
    /// Whom to ask, when replicas share the buckets; else they are in memory.
    pub fn shared(&self) -> Option<&SharedLimit> {
        self.bucket.shared.as_deref()
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Admission {
    /// It is none of the limit's business.
    Exempt,
    /// It goes on.
    Pass,
    /// It goes on after a pause.
    Delay(Duration),
    /// It goes on, although it would have been refused were the limit not in shadow mode.
    Shadow,
    /// It ends here.
    Refuse(ProxyError),
}

/// What a limit keeps of a request until its answer is there.
#[derive(Debug)]
pub struct LimitNote {
    number: u64,
    answer: Arc<LimitAnswer>,
    standing: Standing,
    /// What may be given back.
    taken: Option<TakenFor>,
}

/// What was taken for a request.
#[derive(Debug)]
struct TakenFor {
    /// What it counts as.
    key: KeyBytes,
    cost: u64,
    from: TakenFrom,
}

/// Where it was taken from.
#[derive(Debug)]
pub enum TakenFrom {
    /// From nowhere that it could be given back to.
    Nowhere,
    /// From the buckets in memory.
    Memory(Taken),
    /// From those that replicas share.
    Shared(Receipt),
}

impl RateLimit {
    /// What there is to be decided; `None` when the request is exempt. Allocates nothing for keys of up to
    /// 64 bytes.
    pub fn question(&self, context: &LinkContext, head: &RequestHead) -> Option<Question<'_>> {
        let rules = &*self.0;
        if rules.exempt.as_ref().is_some_and(|exempt| exempt.reason(context, head).is_some()) {
            return None;
        }
        let (bucket, plan) = rules.bucket(context, head);
        let local = bucket.local.as_ref()?;
        let cost = if rules.costs.is_empty() { 1 } else { Cost::of(&rules.costs, head) };
        if cost == 0 {
            return None;
        }
        let mut bytes = KeyBytes::new();
        for part in &rules.key {
            part.add(context, head, &mut bytes);
        }
        if let Some(plan) = plan {
            // Each plan has buckets of its own: to go to and fro between two must not make one of them forget.
            bytes.push(Part::Bytes(plan.as_bytes()));
        }
        Some(Question { key: LimitKey::of_bytes(&bytes), bytes, cost, local, bucket })
    }

    /// Asks the buckets in memory.
    pub fn decide(&self, context: &mut LinkContext, question: &Question<'_>) -> Admission {
        let now = nanos(context.now);
        if self.0.count.is_some() {
            let (decision, taken) = question.local.take(now, question.key, question.cost);
            self.answer(context, question, decision, TakenFrom::Memory(taken), now)
        } else {
            let decision = question.local.decide(now, question.key, question.cost);
            self.answer(context, question, decision, TakenFrom::Nowhere, now)
        }
    }

    /// What follows from a decision, wherever it was made. `from` is where it can be given back to; `now` is when the
    /// request came.
    pub fn answer(
        &self,
        context: &mut LinkContext,
        question: &Question<'_>,
        decision: Decision,
        from: TakenFrom,
        now: Nanos,
    ) -> Admission {
        let rules = &*self.0;
        let answer = &question.bucket.answer;
        let standing = Standing {
            window: decision.window,
            remaining: decision.remaining,
            reset: Duration::from_nanos(decision.reset),
        };
        if !decision.allowed {
            if let Some(show) = rules.show {
                question.local.store().note_refused(now, question.key, &question.bytes, show);
            }
            if rules.shadow {
                return Admission::Shadow;
            }
            let retry_after = (decision.wait != Decision::NEVER).then(|| Duration::from_nanos(decision.wait));
            let limited = Limited { answer: Arc::clone(answer), retry_after, standing };
            return Admission::Refuse(ProxyError::RateLimited(limited));
        }
        let tells = answer.fields != LimitFields::default() && !rules.shadow;
        if tells || rules.count.is_some() {
            let taken = rules.count.is_some().then(|| {
                let (key, cost) = (question.bytes.clone(), question.cost);
                TakenFor { key, cost, from }
            });
            let answer = Arc::clone(answer);
            context.limits.push(LimitNote { number: rules.number, answer, standing, taken });
        }
        match decision.wait {
            0 => Admission::Pass,
            _ if rules.shadow => Admission::Delay(Duration::ZERO),
            wait => Admission::Delay(Duration::from_nanos(wait)),
        }
    }

    /// Takes a token for a request.
    ///
    /// # Errors
    /// [`ProxyError::RateLimited`] when there is none.
    pub fn on_request(&self, context: &mut LinkContext, head: &RequestHead) -> Result<Flow, ProxyError> {
        let Some(question) = self.question(context, head) else { return Ok(Flow::Next) };
        match self.decide(context, &question) {
            Admission::Exempt | Admission::Pass | Admission::Shadow => Ok(Flow::Next),
            Admission::Delay(delay) => Ok(Flow::NextAfter(delay)),
            Admission::Refuse(error) => Err(error),
        }
    }

    /// Tells the client where it stands, and gives back what its answer does not cost.
    pub fn on_response(&self, context: &LinkContext, head: &mut ResponseHead) {
        let rules = &*self.0;
        // A request that is sent again passes more than once; the last note is of this time.
        let Some(note) = context.limits.iter().rev().find(|note| note.number == rules.number) else { return };
        let mut standing = note.standing;
        match &note.taken {
            Some(taken) if !rules.count.contains(head.status) => {
                let bucket = rules.give_back(&note.answer, taken, nanos(clock::instant()));
                let back = bucket.and_then(|local| local.limit().windows().get(standing.window));
                let back = back.map_or(0, |window| window.quota.time_of(taken.cost));
                standing.remaining = standing.remaining.saturating_add(taken.cost);
                standing.reset = standing.reset.saturating_sub(Duration::from_nanos(back));
            }
            Some(TakenFor { from: TakenFrom::Shared(Receipt::Held(hold)), .. }) => hold.counts(),
            Some(_) | None => {}
        }
        if !rules.shadow {
            note.answer.tell(&standing, &mut head.headers);
        }
    }

    /// What it would look at and how much it allows, for people.
    pub fn describe(&self, context: &LinkContext, head: &RequestHead) -> Vec<String> {
        let rules = &*self.0;
        if let Some(reason) = rules.exempt.as_ref().and_then(|exempt| exempt.reason(context, head)) {
            return vec![format!("exempt {reason}")];
        }
        let mut lines = Vec::new();
        let (bucket, plan) = rules.bucket(context, head);
        if rules.plans.is_some() {
            lines.push(plan.map_or_else(|| "no plan".to_owned(), |plan| format!("plan {plan}")));
        }
        let Some(local) = &bucket.local else {
            lines.push("no limit".to_owned());
            return lines;
        };
        let parts: Vec<_> = rules.key.iter().map(ToString::to_string).collect();
        let mut bytes = KeyBytes::new();
        for part in &rules.key {
            part.add(context, head, &mut bytes);
        }
        lines.push(format!("counts by {}: {:?}", parts.join(" and "), bytes.text(64)));
        for window in local.limit().windows() {
            let quota = &window.quota;
            let period = HumanDuration(Duration::from_nanos(quota.period()));
            let delay = match quota.max_delay() {
                0 => String::new(),
                delay => format!(", or up to {:?} later", Duration::from_nanos(delay)),
            };
            lines.push(format!(
                "window {}: {} per {period}, {} at once{delay}",
                window.name,
                quota.average(),
                quota.burst()
            ));
        }
        match Cost::of(&rules.costs, head) {
            1 => {}
            0 => lines.push("costs nothing: not counted".to_owned()),
            cost => lines.push(format!("costs {cost}")),
        }
        if let Some(shared) = &bucket.shared {
            lines.push(format!("shared through {shared}"));
        }
        if rules.count.is_some() {
            lines.push("counts only by its answer's status".to_owned());
        }
        if rules.shadow {
            lines.push("shadow mode: nobody is refused".to_owned());
        }
        lines
    }
}

impl Rules {
    fn bucket(&self, context: &LinkContext, head: &RequestHead) -> (&Bucket, Option<&str>) {
        let Some((plans, buckets)) = &self.plans else { return (&self.base, None) };
        match plans.find(context, head) {
            Some(plan) => (&buckets[plan], Some(plans.name(plan))),
            None => (&self.base, None),
        }
    }

    /// Gives back what was taken; the limit that it was taken from.
    fn give_back(&self, answer: &Arc<LimitAnswer>, taken: &TakenFor, now: u64) -> Option<&LocalLimit> {
        let mut buckets = self.plans.iter().flat_map(|(_, buckets)| buckets).chain([&self.base]);
        let bucket = buckets.find(|bucket| Arc::ptr_eq(&bucket.answer, answer))?;
        match (&taken.from, &bucket.local, &bucket.shared) {
            (TakenFrom::Memory(from), Some(local), _) => {
                local.give_back(now, LimitKey::of_bytes(&taken.key), from);
            }
            (TakenFrom::Shared(receipt), _, Some(shared)) => {
                shared.give_back(now, &taken.key, taken.cost, receipt);
            }
            (TakenFrom::Nowhere | TakenFrom::Memory(_) | TakenFrom::Shared(_), _, _) => {}
        }
        bucket.local.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::fields::Fields;
    use crate::middleware::Edit;
    use crate::middleware::testing::{context, context_of, edit, problems, request, response};

    fn outcome(
        link: &Edit,
        context: &mut LinkContext,
        fields: &[(&str, &str)],
    ) -> Result<Duration, Duration> {
        match link.on_request(context, &mut request("/", fields)) {
            Ok(Flow::Next) => Ok(Duration::ZERO),
            Ok(Flow::NextAfter(delay)) => Ok(delay),
            Err(ProxyError::RateLimited(Limited { retry_after: Some(wait), .. })) => Err(wait),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_burst_passes_and_the_next_request_is_told_when_to_come_back() {
        let link = edit("rateLimit", "{average: 1, period: 1m, burst: 2}");
        let mut context = context();
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
        assert_eq!(outcome(&link, &mut context, &[]), Err(Duration::from_secs(60)));
        context.now += Duration::from_secs(60);
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
    }

    #[test]
    fn at_a_hundred_a_second_a_request_at_once_is_refused_and_one_half_way_is_delayed() {
        let link = edit("rateLimit", "{average: 100}");
        let mut context = context();
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
        assert_eq!(outcome(&link, &mut context, &[]), Err(Duration::from_millis(10)));
        context.now += Duration::from_millis(6);
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::from_millis(4)));
    }

    #[test]
    fn clients_count_by_their_own_address_whatever_they_claim() {
        let link = edit("rateLimit", "{average: 1, period: 1m}");
        assert!(outcome(&link, &mut context_of("10.0.0.1"), &[]).is_ok());
        assert!(outcome(&link, &mut context_of("10.0.0.1"), &[("X-Forwarded-For", "1.2.3.4")]).is_err());
        assert!(outcome(&link, &mut context_of("10.0.0.2"), &[]).is_ok());
    }

    #[test]
    fn a_prefix_counts_together_when_the_operator_says_so() {
        let whole = edit("rateLimit", "{average: 1, period: 1m}");
        let subnet =
            edit("rateLimit", "{average: 1, period: 1m, sourceCriterion: {ipStrategy: {ipv6Subnet: 64}}}");
        for (link, together) in [(whole, false), (subnet, true)] {
            assert!(outcome(&link, &mut context_of("2001:db8::1"), &[]).is_ok());
            assert_eq!(outcome(&link, &mut context_of("2001:db8::2"), &[]).is_err(), together);
            assert!(outcome(&link, &mut context_of("2001:db8:0:1::1"), &[]).is_ok());
        }
    }

    #[test]
    fn requests_without_the_header_count_together() {
        let link = edit("rateLimit", "{average: 1, period: 1m, sourceCriterion: {requestHeaderName: X-Key}}");
        assert!(outcome(&link, &mut context_of("10.0.0.1"), &[]).is_ok());
        assert!(outcome(&link, &mut context_of("10.0.0.2"), &[]).is_err());
        assert!(outcome(&link, &mut context_of("10.0.0.2"), &[("X-Key", "a")]).is_ok());
        assert!(outcome(&link, &mut context_of("10.0.0.1"), &[("X-Key", "a")]).is_err());
        assert!(outcome(&link, &mut context_of("10.0.0.1"), &[("X-Key", "b")]).is_ok());
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "rateLimit"),
            ("{average: 1, maxKeys: 0}", "rateLimit.maxKeys"),
            ("{average: 1, redis: {endpoints: ['']}}", "rateLimit.redis.endpoints[0]"),
            (
                "{average: 1, sourceCriterion: {requestHeaderName: Host}}",
                "rateLimit.sourceCriterion.requestHeaderName",
            ),
        ] {
            assert_eq!(problems("rateLimit", options).errors(), [path], "{options}");
        }
    }

    #[test]
    fn an_average_of_zero_is_off() {
        for options in ["{average: 0}", "{burst: 5}"] {
            let compiled = problems("rateLimit", options);
            assert!(compiled.link.is_none() && compiled.errors().is_empty(), "{options}");
        }
    }

    #[test]
    fn negative_numbers_count_as_none_and_are_told_of() {
        // They refused the document, which Traefik takes.
        let off = problems("rateLimit", "{average: -1}");
        assert!(off.link.is_none() && off.errors().is_empty());
        assert_eq!(off.warnings, ["rateLimit.average"]);
        let small = problems("rateLimit", "{average: 1, period: 1m, burst: -5}");
        assert_eq!(small.warnings, ["rateLimit.burst"]);
        let link = edit("rateLimit", "{average: 1, period: 1m, burst: -5}");
        let mut context = context();
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
        assert_eq!(outcome(&link, &mut context, &[]), Err(Duration::from_secs(60)));
        let depth =
            problems("rateLimit", "{average: 1, sourceCriterion: {ipStrategy: {depth: -1}}}").warnings;
        assert_eq!(depth, ["rateLimit.sourceCriterion.ipStrategy.depth"]);
    }

    #[test]
    fn the_largest_numbers_neither_overflow_nor_refuse() {
        let max = i64::MAX;
        let link = edit("rateLimit", &format!("{{average: {max}, burst: {max}, period: 1000000h}}"));
        let mut context = context();
        for _ in 0..3 {
            assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
            context.now += Duration::from_secs(1 << 30);
        }
    }

    const ALICE: (&str, &str) = ("x-key", "alice");
    const BOB: (&str, &str) = ("x-key", "bob");

    fn passes(link: &Edit, context: &mut LinkContext, path: &str, fields: &[(&str, &str)]) -> bool {
        link.on_request(context, &mut request(path, fields)).is_ok()
    }

    #[test]
    fn a_key_of_several_parts_counts_by_all_of_them_together() {
        let key = "[{requestHeaderName: X-Key}, {pathSegments: 1}, {ipStrategy: {}}]";
        let link = edit("rateLimit", &format!("{{average: 1, period: 1m, key: {key}}}"));
        let mut context = context_of("10.0.0.1");
        assert!(passes(&link, &mut context, "/a/1", &[ALICE]));
        assert!(!passes(&link, &mut context, "/a/2", &[ALICE]), "the same first segment");
        assert!(passes(&link, &mut context, "/b/1", &[ALICE]));
        assert!(passes(&link, &mut context, "/a/1", &[BOB]));
        assert!(passes(&link, &mut context_of("10.0.0.2"), "/a/1", &[ALICE]));
    }

    #[test]
    fn a_window_a_day_refuses_when_the_one_a_second_would_not_and_is_named() {
        let limits = "[{name: day, average: 3, period: 24h, burst: 3}]";
        let link = edit("rateLimit", &format!("{{average: 2, burst: 2, maxDelay: 0, limits: {limits}}}"));
        let mut context = context();
        for _ in 0..3 {
            assert!(passes(&link, &mut context, "/", &[]));
            context.now += Duration::from_secs(1);
        }
        let error = link.on_request(&mut context, &mut request("/", &[])).expect_err("three a day");
        assert_eq!(error.to_string(), "m (day): rate limit exceeded");
        let ProxyError::RateLimited(limited) = error else { panic!("{error:?}") };
        // A token of the day takes eight hours, of which three seconds are over.
        assert_eq!(limited.retry_after, Some(Duration::from_secs(8 * 3_600 - 3)));
    }

    #[test]
    fn plans_have_their_own_limits_and_whoever_has_none_gets_the_common_one() {
        let plans = "{by: {requestHeaderName: X-Plan}, limits: {gold: {average: 1, period: 1m, burst: 3}, free: {average: 0}}}";
        let link = edit("rateLimit", &format!("{{average: 1, period: 1m, plans: {plans}}}"));
        let of = |client: &str, plan: Option<&str>| {
            let fields: Vec<_> = plan.map(|plan| ("x-plan", plan)).into_iter().collect();
            let mut context = context_of(client);
            (0..9).take_while(|_| passes(&link, &mut context, "/", &fields)).count()
        };
        assert_eq!(of("10.0.0.1", Some("gold")), 3);
        assert_eq!(of("10.0.0.2", Some("free")), 9, "an average of 0 is no limit");
        assert_eq!(of("10.0.0.3", Some("made up")), 1);
        assert_eq!(of("10.0.0.4", None), 1);
        assert_eq!(of("10.0.0.4", Some("gold")), 3, "each plan has buckets of its own");
        assert_eq!(of("10.0.0.4", None), 0, "and none forgets");
    }

    #[test]
    fn a_list_says_who_has_which_plan() {
        for (by, members, client, field) in [
            ("{requestHeaderName: X-Key}", "{gold: [alice, carol]}", "10.0.0.1", ALICE),
            ("{ipStrategy: {}}", "{gold: [10.1.0.0/16]}", "10.1.2.3", BOB),
        ] {
            let plans = format!(
                "{{by: {by}, members: {members}, limits: {{gold: {{average: 1, period: 1m, burst: 5}}}}}}"
            );
            let link = edit("rateLimit", &format!("{{average: 1, period: 1m, plans: {plans}}}"));
            let mut context = context_of(client);
            assert_eq!((0..9).take_while(|_| passes(&link, &mut context, "/", &[field])).count(), 5, "{by}");
            let mut context = context_of("192.0.2.7");
            assert_eq!((0..9).take_while(|_| passes(&link, &mut context, "/", &[BOB])).count(), 1, "{by}");
        }
    }

    #[test]
    fn the_exempt_are_not_counted() {
        let exempt = "{sourceRange: [10.0.0.0/8], headers: {X-Probe: s3cret}, paths: [/health/]}";
        let link = edit("rateLimit", &format!("{{average: 1, period: 1h, exempt: {exempt}}}"));
        for _ in 0..3 {
            assert!(passes(&link, &mut context_of("10.9.9.9"), "/", &[]));
            assert!(passes(&link, &mut context(), "/", &[("x-probe", "s3cret")]));
            assert!(passes(&link, &mut context(), "/health", &[]));
            assert!(passes(&link, &mut context(), "/health/live", &[]));
        }
        assert!(passes(&link, &mut context(), "/healthy", &[]));
        assert!(!passes(&link, &mut context(), "/", &[("x-probe", "guess")]));
    }

    #[test]
    fn a_request_costs_what_the_first_rule_for_it_says() {
        let cost =
            "[{path: /search, methods: [POST], cost: 5}, {path: /search, cost: 2}, {path: /static, cost: 0}]";
        let link = edit("rateLimit", &format!("{{average: 1, period: 1h, burst: 10, cost: {cost}}}"));
        let mut context = context();
        let mut post = request("/search/x", &[]);
        post.method = http::Method::POST;
        assert!(link.on_request(&mut context, &mut post).is_ok());
        assert!(passes(&link, &mut context, "/search", &[]));
        assert!(passes(&link, &mut context, "/search", &[]));
        assert!(passes(&link, &mut context, "/", &[]));
        assert!(!passes(&link, &mut context, "/", &[]), "10 are spent");
        assert!(passes(&link, &mut context, "/static/a.css", &[]));
    }

    #[test]
    fn only_answers_of_the_counted_statuses_count() {
        let link = edit("rateLimit", "{average: 1, period: 1h, burst: 2, countStatus: ['401', '500-599']}");
        let mut context = context();
        let mut round = |status: u16| {
            let passed = passes(&link, &mut context, "/login", &[]);
            if passed {
                let mut answer = response(&[]);
                answer.status = StatusCode::from_u16(status).expect("a status");
                link.on_response(&context, &mut answer);
            }
            passed
        };
        for _ in 0..5 {
            assert!(round(200));
        }
        assert!(round(401));
        assert!(round(204));
        assert!(round(503));
        assert!(!round(200), "two that failed are all there are");
    }

    #[test]
    fn what_is_given_back_is_told_as_if_it_had_not_been_taken() {
        // The time told was that of the token which was given back.
        let options = "{average: 2, period: 1h, burst: 2, countStatus: ['401'], responseFields: standard}";
        let link = edit("rateLimit", options);
        let mut context = context();
        let mut told = |status: u16| {
            context.now = clock::instant();
            assert!(passes(&link, &mut context, "/login", &[]));
            let mut answer = response(&[]);
            answer.status = StatusCode::from_u16(status).expect("a status");
            link.on_response(&context, &mut answer);
            answer.headers["ratelimit"].to_str().expect("text").to_owned()
        };
        assert_eq!(told(200), "\"default\";r=2;t=0");
        assert_eq!(told(401), "\"default\";r=1;t=1800");
        assert_eq!(told(204), "\"default\";r=1;t=1800");
    }

    #[test]
    fn what_is_not_answered_yet_counts_so_that_guesses_at_once_are_no_way_round() {
        let link = edit("rateLimit", "{average: 1, period: 1h, burst: 2, countStatus: ['401']}");
        let mut contexts: Vec<_> = (0..5).map(|_| context()).collect();
        let passed = contexts
            .iter_mut()
            .filter_map(|context| passes(&link, context, "/login", &[]).then_some(()))
            .count();
        assert_eq!(passed, 2);
    }

    #[test]
    fn in_shadow_mode_nobody_is_refused_or_held_back() {
        let link = edit("rateLimit", "{average: 1, period: 1s, shadow: true, responseFields: both}");
        let Edit::RateLimit(limit) = &link else { panic!("{link:?}") };
        let mut context = context();
        let decide = |context: &mut LinkContext| {
            let question = limit.question(context, &request("/", &[])).expect("it is not exempt");
            limit.decide(context, &question)
        };
        assert!(matches!(decide(&mut context), Admission::Pass));
        assert!(matches!(decide(&mut context), Admission::Shadow));
        context.now += Duration::from_millis(900);
        assert!(matches!(decide(&mut context), Admission::Delay(Duration::ZERO)));
        let mut answer = response(&[]);
        link.on_response(&context, &mut answer);
        assert!(answer.headers.is_empty());
    }

    #[test]
    fn answers_say_where_the_client_stands_when_the_operator_wants_it() {
        let link = edit("rateLimit", "{average: 10, period: 1m, burst: 10, responseFields: both}");
        let mut context = context();
        assert!(passes(&link, &mut context, "/", &[]));
        let mut answer = response(&[]);
        link.on_response(&context, &mut answer);
        assert_eq!(answer.headers["ratelimit"], "\"default\";r=9;t=6");
        assert_eq!(answer.headers["ratelimit-policy"], "\"default\";q=10;w=60");
        assert_eq!(answer.headers["x-ratelimit-limit"], "10");
        assert_eq!(answer.headers["x-ratelimit-remaining"], "9");
        assert_eq!(answer.headers["x-ratelimit-reset"], "6");
    }

    #[test]
    fn a_refusal_looks_as_the_operator_wrote_it() {
        let refusal = "{status: 503, body: '{\"error\": \"slow down\"}', contentType: application/json, headers: {X-Why: limit}}";
        let link = edit("rateLimit", &format!("{{average: 1, period: 1m, refusal: {refusal}}}"));
        let mut context = context();
        assert!(passes(&link, &mut context, "/", &[]));
        let error = link.on_request(&mut context, &mut request("/", &[])).expect_err("too soon");
        let ProxyError::RateLimited(limited) = &error else { panic!("{error:?}") };
        let mut headers = Fields::new();
        limited.answer.refuse(limited, &mut headers);
        assert_eq!(error.status(), 503);
        assert_eq!(limited.answer.body.as_deref(), Some(&b"{\"error\": \"slow down\"}"[..]));
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["x-why"], "limit");
        assert_eq!(headers["retry-after"], "60");
    }

    #[test]
    fn a_longer_delay_or_none_is_the_operators_to_choose() {
        let none = edit("rateLimit", "{average: 100, maxDelay: 0}");
        let long = edit("rateLimit", "{average: 100, maxDelay: 25ms}");
        let mut context = context();
        assert_eq!(outcome(&none, &mut context, &[]), Ok(Duration::ZERO));
        context.now += Duration::from_millis(9);
        assert_eq!(outcome(&none, &mut context, &[]), Err(Duration::from_millis(1)));
        let waits: Vec<_> = (0..4).map(|_| outcome(&long, &mut context, &[])).collect();
        let millis = Duration::from_millis;
        assert_eq!(waits, [Ok(millis(0)), Ok(millis(10)), Ok(millis(20)), Err(millis(30))]);
    }

    #[test]
    fn methods_of_a_cost_are_compared_without_regard_to_case() {
        let link = edit(
            "rateLimit",
            "{average: 10, period: 1h, burst: 10, cost: [{methods: [get, Post], cost: 10}]}",
        );
        let mut context = context();
        assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
        assert_eq!(outcome(&link, &mut context, &[]), Err(Duration::from_secs(3600)));
    }

    #[test]
    fn more_bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{average: 1, maxMemory: 0}", "rateLimit.maxMemory"),
            ("{average: 1, maxMemory: 1KiB, maxKeys: 5}", "rateLimit.maxMemory"),
            ("{average: 1, key: [{}]}", "rateLimit.key[0]"),
            ("{average: 1, key: [{cookie: a, method: true}]}", "rateLimit.key[0]"),
            ("{average: 1, key: [{claim: ''}]}", "rateLimit.key[0].claim"),
            ("{average: 1, key: [{pathSegments: -1}]}", "rateLimit.key[0].pathSegments"),
            ("{average: 1, key: [{method: true}], sourceCriterion: {requestHost: true}}", "rateLimit.key"),
            ("{average: 1, limits: [{average: 5}]}", "rateLimit.limits[0].name"),
            ("{average: 1, limits: [{name: day, period: 1h}]}", "rateLimit.limits[0].average"),
            ("{average: 1, limits: [{name: default, average: 5}]}", "rateLimit.limits[0].name"),
            ("{average: 1, limits: [{name: 'a b', average: 5}]}", "rateLimit.limits[0].name"),
            ("{average: 1, plans: {limits: {a: {average: 1}}}}", "rateLimit.plans.by"),
            ("{average: 1, plans: {by: {claim: plan}}}", "rateLimit.plans.limits"),
            (
                "{average: 1, plans: {by: {claim: plan}, members: {b: [x]}, limits: {a: {average: 1}}}}",
                "rateLimit.plans.members.b",
            ),
            ("{average: 1, exempt: {}}", "rateLimit.exempt"),
            ("{average: 1, exempt: {paths: [health]}}", "rateLimit.exempt.paths[0]"),
            ("{average: 1, exempt: {sourceRange: [x]}}", "rateLimit.exempt.sourceRange[0]"),
            ("{average: 1, cost: [{path: /a}]}", "rateLimit.cost[0].cost"),
            ("{average: 1, cost: [{cost: 5}]}", "rateLimit.cost"),
            ("{average: 1, countStatus: [abc]}", "rateLimit.countStatus[0]"),
            ("{average: 1, refusal: {status: 200}}", "rateLimit.refusal.status"),
            (
                "{average: 1, refusal: {headers: {Content-Length: '5'}}}",
                "rateLimit.refusal.headers.Content-Length",
            ),
            ("{average: 1, refusal: {headers: {Keep-Alive: x}}}", "rateLimit.refusal.headers.Keep-Alive"),
            ("{average: 1, refusal: {headers: {upgrade: h2c}}}", "rateLimit.refusal.headers.upgrade"),
        ] {
            assert_eq!(problems("rateLimit", options).errors(), [path], "{options}");
        }
    }
}
