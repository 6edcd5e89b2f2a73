//! `rateLimit`: so many requests of a key in so much time, by a token bucket.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::common::units::HumanDuration;
use crate::http::client_ip::IpStrategy;
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;
use crate::limit::{DEFAULT_MAX_KEYS, Quota, Store, Verdict, nanos};

use super::source::{Source, SourceCriterionConfig};
use super::{CompileContext, Flow, LinkContext, NotYet};

/// Options of `rateLimit`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq)]
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
    /// Not supported yet.
    pub redis: Option<NotYet>,
    /// Whether routers that use this middleware share its buckets. Default `router`.
    pub scope: Option<BucketScope>,
    /// Keys whose buckets are kept. Default 65536.
    pub max_keys: Option<i64>,
}

/// Who shares buckets.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum BucketScope {
    /// Each router that uses the middleware has its own, as in Traefik.
    #[default]
    Router,
    /// All routers that use the middleware count together.
    Middleware,
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
        let average = self.number("average", self.average, 0, at, cx);
        let burst = self.number("burst", self.burst, 1, at, cx);
        let max_keys = match self.max_keys.map(|keys| usize::try_from(keys).ok().and_then(NonZeroUsize::new))
        {
            None => DEFAULT_MAX_KEYS,
            Some(Some(keys)) => keys,
            Some(None) => {
                cx.problems.error(&at.key("maxKeys"), "maxKeys must be at least 1");
                DEFAULT_MAX_KEYS
            }
        };
        if self.redis.is_some() {
            let problem = Problem::error(&at.key("redis"), "rateLimit.redis is not supported yet");
            cx.problems.push(problem.hint("without it each replica counts on its own, in memory"));
        }
        let criterion = self.source_criterion.clone().unwrap_or_default();
        let default = Source::Client(IpStrategy::peer());
        let source = criterion.compile(&at.key("sourceCriterion"), default, cx.problems);
        if cx.problems.errors_since(before) {
            return None;
        }
        // From Traefik: a period of 0 is the default, and a bucket holds at least one token.
        let period = self.period.and_then(HumanDuration::non_zero).unwrap_or(HumanDuration::secs(1).0);
        let quota =
            Quota::new(NonZeroU64::new(average)?, period, NonZeroU64::new(burst).unwrap_or(NonZeroU64::MIN));
        let store = cx.stores.rate(&match self.scope.unwrap_or_default() {
            BucketScope::Router => format!("rateLimit/{name}/{}", cx.router),
            BucketScope::Middleware => format!("rateLimit/{name}"),
        });
        Some(RateLimit { name: name.clone(), quota, max_keys, source: source?, store })
    }

    fn number(
        &self,
        key: &str,
        value: Option<i64>,
        default: u64,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> u64 {
        value.map_or(default, |value| {
            u64::try_from(value).unwrap_or_else(|_| {
                cx.problems.error(&at.key(key), format!("{key} must not be negative"));
                default
            })
        })
    }
}

/// `rateLimit`, compiled.
#[derive(Clone, Debug)]
pub struct RateLimit {
    name: MiddlewareName,
    quota: Quota,
    max_keys: NonZeroUsize,
    source: Source,
    store: Arc<Store>,
}

impl RateLimit {
    /// Takes a token for a request.
    ///
    /// # Errors
    /// [`ProxyError::RateLimited`] when there is none. Allocates nothing.
    pub fn on_request(&self, context: &LinkContext, head: &RequestHead) -> Result<Flow, ProxyError> {
        let key = self.source.key(context, head);
        match self.store.admit(key, &self.quota, 1, self.max_keys, nanos(context.now)) {
            Verdict::Admit => Ok(Flow::Next),
            Verdict::AdmitAfter(delay) => Ok(Flow::NextAfter(delay)),
            Verdict::Refuse { retry_after } => {
                Err(ProxyError::RateLimited { middleware: self.name.clone(), retry_after })
            }
        }
    }
}
