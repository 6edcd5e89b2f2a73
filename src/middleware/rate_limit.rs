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
    /// Not supported yet.
    pub redis: Option<NotYet>,
    /// Whether routers that use this middleware share its buckets. Default `router`.
    pub scope: Option<BucketScope>,
    /// Keys whose buckets are kept. Default 65536.
    pub max_keys: Option<i64>,
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::middleware::Edit;
    use crate::middleware::testing::{context, context_of, edit, problems, request};

    fn outcome(
        link: &Edit,
        context: &mut LinkContext,
        fields: &[(&str, &str)],
    ) -> Result<Duration, Duration> {
        match link.on_request(context, &mut request("/", fields)) {
            Ok(Flow::Next) => Ok(Duration::ZERO),
            Ok(Flow::NextAfter(delay)) => Ok(delay),
            Err(ProxyError::RateLimited { retry_after: Some(wait), .. }) => Err(wait),
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
            ("{average: -1}", "rateLimit.average"),
            ("{average: 1, burst: -1}", "rateLimit.burst"),
            ("{average: 1, maxKeys: 0}", "rateLimit.maxKeys"),
            ("{average: 1, redis: {endpoints: [a]}}", "rateLimit.redis"),
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
    fn the_largest_numbers_neither_overflow_nor_refuse() {
        let max = i64::MAX;
        let link = edit("rateLimit", &format!("{{average: {max}, burst: {max}, period: 1000000h}}"));
        let mut context = context();
        for _ in 0..3 {
            assert_eq!(outcome(&link, &mut context, &[]), Ok(Duration::ZERO));
            context.now += Duration::from_secs(1 << 30);
        }
    }
}
