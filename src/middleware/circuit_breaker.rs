//! `circuitBreaker`: refuses requests for a while when the answers of the last ten seconds were bad enough.
//!
//! Closed: everything passes and is counted. Open: everything is refused for `fallbackDuration`. Half-open: for
//! `recoveryDuration` a growing share passes, up to half and up to `maxProbes` at once; then it is closed again,
//! or open at once when the expression holds of what passed. One state a router, carried over reloads.
//! `proxy` runs it; this file decides. Never: the clock, sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::clock::{self, Millis};
use crate::common::figures::{Figures, Sum};
use crate::common::names::{MiddlewareName, RouterName};
use crate::common::problem::{ConfigPath, Problem};
use crate::common::units::HumanDuration;
use crate::http::error::ProxyError;

use super::CompileContext;
use super::breaker_expression::{self, Expression};

/// Options of `circuitBreaker`.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct CircuitBreakerConfig {
    /// When it opens: `NetworkErrorRatio()`, `ResponseCodeRatio(from, to, dividedByFrom, dividedByTo)` and
    /// `LatencyAtQuantileMS(quantile)`, compared with numbers by `>`, `>=`, `<`, `<=`, `==`, `!=`, joined by `&&`
    /// and `||`. Required.
    pub expression: Option<String>,
    /// How often the expression is looked at, at most. Default 100ms.
    pub check_period: HumanDuration,
    /// How long everything is refused. Default 10s.
    pub fallback_duration: HumanDuration,
    /// How long only a share passes, afterwards. Default 10s.
    pub recovery_duration: HumanDuration,
    /// What refused requests are answered with. Default 503.
    pub response_code: i64,
    /// Requests of the last 10 s without which it never opens, so that one failure at night is none.
    /// Default 10; Traefik has no such bound, which is 1.
    pub min_requests: u32,
    /// Requests that may be under way at once while it is half-open. Default 10; at least 1.
    pub max_probes: u32,
}

impl Default for CircuitBreakerConfig {
    fn default() -> Self {
        Self {
            expression: None,
            check_period: HumanDuration::millis(100),
            fallback_duration: HumanDuration::secs(10),
            recovery_duration: HumanDuration::secs(10),
            response_code: 503,
            min_requests: 10,
            max_probes: 10,
        }
    }
}

impl CircuitBreakerConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<CircuitBreaker> {
        let before = cx.problems.len();
        let text = self.expression.as_deref().unwrap_or_default();
        let expression = if text.trim().is_empty() {
            let problem = Problem::error(&at.key("expression"), "circuitBreaker needs an expression");
            cx.problems.push(problem.hint("write expression: NetworkErrorRatio() > 0.30"));
            None
        } else {
            match breaker_expression::parse(text) {
                Ok(expression) => Some(expression),
                Err(error) => {
                    let problem = Problem::error(&at.key("expression"), error.message).within(error.at);
                    cx.problems.push(match error.hint {
                        Some(hint) => problem.hint(hint),
                        None => problem,
                    });
                    None
                }
            }
        };
        let code = u16::try_from(self.response_code).ok().filter(|code| (200..=599).contains(code));
        let code = code.and_then(|code| StatusCode::from_u16(code).ok());
        if code.is_none() {
            let message = format!("bad responseCode {}: expected 200 to 599", self.response_code);
            cx.problems.error(&at.key("responseCode"), message);
        }
        if self.max_probes == 0 {
            let problem = Problem::error(&at.key("maxProbes"), "maxProbes must be at least 1");
            cx.problems.push(problem.hint("without a probe it would never close again"));
        }
        for (key, value) in
            [("fallbackDuration", self.fallback_duration), ("recoveryDuration", self.recovery_duration)]
        {
            if value.0.is_zero() {
                cx.problems.error(&at.key(key), format!("{key} must be longer than 0"));
            }
        }
        if cx.problems.errors_since(before) {
            return None;
        }
        let expression = expression?;
        // From Traefik: each router that uses the middleware has a state of its own.
        let key = format!("circuitBreaker/{name}/{}", cx.router);
        let (counters, latencies) = (expression.counters(), expression.latencies());
        let figures = cx.stores.keep(&format!("{key}/{text}"), || Figures::new(counters, latencies));
        let (of, router) = (name.clone(), cx.router.clone());
        let state = cx.stores.keep(&key, move || BreakerState::new(of, router));
        Some(CircuitBreaker {
            expression,
            text: text.trim().into(),
            check_period: clock::millis(self.check_period.0),
            fallback: clock::millis(self.fallback_duration.0),
            recovery: clock::millis(self.recovery_duration.0),
            code: code?,
            min_requests: self.min_requests.max(1).into(),
            max_probes: self.max_probes,
            figures,
            state,
        })
    }
}

/// Whether traffic flows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Phase {
    /// It does.
    Closed = 0,
    /// It is refused.
    Open = 1,
    /// A share of it does.
    HalfOpen = 2,
}

impl Phase {
    /// The word in log and API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }

    fn of(number: u8) -> Self {
        match number {
            1 => Self::Open,
            2 => Self::HalfOpen,
            _ => Self::Closed,
        }
    }
}

/// The state of one breaker on one router, which outlives reloads.
#[derive(Debug)]
pub struct BreakerState {
    middleware: MiddlewareName,
    router: RouterName,
    phase: AtomicU8,
    /// When the phase began.
    since: AtomicU64,
    next_check: AtomicU64,
    /// Under way while half-open.
    probes: AtomicU32,
    /// One was let in since it is half-open.
    probed: AtomicBool,
    /// Changes of phase, one at a time.
    change: Mutex<()>,
    opened: AtomicU64,
    refused: AtomicU64,
}

/// What a breaker shows.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BreakerReport {
    /// Its middleware.
    pub middleware: MiddlewareName,
    /// Whose traffic it sees.
    pub router: RouterName,
    /// Whether that flows.
    pub phase: Phase,
    /// When the phase began.
    pub since: Millis,
    /// How often it opened.
    pub opened: u64,
    /// Requests it refused.
    pub refused: u64,
}

impl BreakerState {
    fn new(middleware: MiddlewareName, router: RouterName) -> Self {
        Self {
            middleware,
            router,
            phase: AtomicU8::new(Phase::Closed as u8),
            since: AtomicU64::new(0),
            next_check: AtomicU64::new(0),
            probes: AtomicU32::new(0),
            probed: AtomicBool::new(false),
            change: Mutex::new(()),
            opened: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// What it shows to operators.
    pub fn report(&self) -> BreakerReport {
        BreakerReport {
            middleware: self.middleware.clone(),
            router: self.router.clone(),
            phase: self.phase(),
            since: self.since.load(Ordering::Relaxed),
            opened: self.opened.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }

    fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Ordering::Acquire))
    }

    /// Changes the phase, if it is still `from`.
    fn change(&self, from: Phase, to: Phase, now: Millis) -> bool {
        let _one_at_a_time = self.change.lock();
        if self.phase() != from {
            return false;
        }
        self.since.store(now, Ordering::Release);
        self.probed.store(false, Ordering::Release);
        self.phase.store(to as u8, Ordering::Release);
        let (middleware, router) = (&self.middleware, &self.router);
        match to {
            Phase::Open => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(%middleware, %router, "circuit opened");
            }
            Phase::HalfOpen => tracing::info!(%middleware, %router, "circuit half-open"),
            Phase::Closed => tracing::info!(%middleware, %router, "circuit closed"),
        }
        true
    }
}

/// `circuitBreaker`, compiled.
#[derive(Clone, Debug)]
pub struct CircuitBreaker {
    expression: Expression,
    /// The expression as it is written.
    text: Arc<str>,
    check_period: Millis,
    fallback: Millis,
    recovery: Millis,
    code: StatusCode,
    min_requests: u64,
    max_probes: u32,
    figures: Arc<Figures>,
    state: Arc<BreakerState>,
}

/// A request that was let through; while half-open, one of a bounded number.
#[derive(Debug)]
pub struct Passed {
    /// Which phase it was let through in, by its beginning.
    since: Millis,
    probe: Option<Arc<BreakerState>>,
}

impl Drop for Passed {
    fn drop(&mut self) {
        if let Some(state) = &self.probe {
            state.probes.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl CircuitBreaker {
    /// What it does when, for people.
    pub fn describe(&self) -> [String; 2] {
        let time = |millis| HumanDuration(Duration::from_millis(millis));
        [
            format!(
                "open for {} when {} over the last 10 s with {} requests or more: {}",
                time(self.fallback),
                self.text,
                self.min_requests,
                self.code
            ),
            format!("then for {} a growing share, {} at once", time(self.recovery), self.max_probes),
        ]
    }

    /// What it is called in the API, by middleware and router.
    pub fn names(&self) -> (&MiddlewareName, &RouterName) {
        (&self.state.middleware, &self.state.router)
    }

    /// Lets a request through or refuses it. `random` is evenly distributed over all of `u64`.
    ///
    /// # Errors
    /// [`ProxyError::CircuitOpen`].
    pub fn admit(&self, now: Millis, random: u64) -> Result<Passed, ProxyError> {
        let state = &self.state;
        if state.phase() == Phase::Open {
            let left = (state.since.load(Ordering::Acquire) + self.fallback).saturating_sub(now);
            if left > 0 {
                return Err(self.refuse(left));
            }
            // What was counted before says nothing about what comes.
            self.figures.clear();
            state.change(Phase::Open, Phase::HalfOpen, now);
        }
        if state.phase() == Phase::HalfOpen {
            let elapsed = now.saturating_sub(state.since.load(Ordering::Acquire));
            if elapsed < self.recovery {
                return self.probe(elapsed, random);
            }
            state.change(Phase::HalfOpen, Phase::Closed, now);
        }
        Ok(Passed { since: state.since.load(Ordering::Acquire), probe: None })
    }

    fn probe(&self, elapsed: Millis, random: u64) -> Result<Passed, ProxyError> {
        let state = &self.state;
        // From nothing to half of all requests, in the course of the recovery; the first goes at once.
        let share = elapsed as f64 / self.recovery as f64 / 2.0;
        let drawn = (random >> 11) as f64 / (1_u64 << 53) as f64;
        let wanted = !state.probed.swap(true, Ordering::AcqRel) || drawn < share;
        let room = |probes: u32| (probes < self.max_probes).then_some(probes + 1);
        if wanted && state.probes.fetch_update(Ordering::AcqRel, Ordering::Acquire, room).is_ok() {
            let since = state.since.load(Ordering::Acquire);
            return Ok(Passed { since, probe: Some(Arc::clone(state)) });
        }
        // Nobody can tell when; soon.
        Err(self.refuse(1000))
    }

    fn refuse(&self, left: Millis) -> ProxyError {
        self.state.refused.fetch_add(1, Ordering::Relaxed);
        ProxyError::CircuitOpen {
            middleware: self.state.middleware.clone(),
            status: self.code,
            retry_after: Duration::from_millis(left),
        }
    }

    /// Takes an answer into account, and opens if it is time to look and the expression holds.
    ///
    /// An answer to a request of an earlier phase says nothing about this one.
    pub fn record(&self, core: usize, now: Millis, passed: &Passed, status: StatusCode, latency: Duration) {
        if passed.since != self.state.since.load(Ordering::Acquire) {
            return;
        }
        self.figures.record(core, now, self.expression.counters_of(status), latency);
        let next = self.state.next_check.load(Ordering::Relaxed);
        let due = now >= next
            && self
                .state
                .next_check
                .compare_exchange(next, now + self.check_period, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok();
        if due {
            self.look(now);
        }
    }

    fn look(&self, now: Millis) {
        let phase = self.state.phase();
        let sum = self.figures.sum(now);
        let enough = match phase {
            Phase::Open => return,
            Phase::Closed => self.min_requests,
            // Few pass, and they were let through for nothing but this.
            Phase::HalfOpen => 1,
        };
        if self.is_bad(&sum, enough) && self.state.change(phase, Phase::Open, now) {
            self.figures.clear();
        }
    }

    fn is_bad(&self, sum: &Sum, enough: u64) -> bool {
        sum.count(breaker_expression::ALL) >= enough && self.expression.holds(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::{circuit_breaker, problems};

    const OK: StatusCode = StatusCode::OK;
    const BAD: StatusCode = StatusCode::BAD_GATEWAY;

    fn record(link: &CircuitBreaker, now: Millis, status: StatusCode, count: usize) {
        record_in(link, now, status, count, Duration::from_millis(1));
    }

    fn record_in(link: &CircuitBreaker, now: Millis, status: StatusCode, count: usize, took: Duration) {
        for _ in 0..count {
            let passed = Passed { since: link.state.since.load(Ordering::Relaxed), probe: None };
            link.record(0, now, &passed, status, took);
        }
    }

    fn breaker(more: &str) -> CircuitBreaker {
        circuit_breaker(&format!("{{expression: NetworkErrorRatio() > 0.5, checkPeriod: 0 {more}}}"))
    }

    fn phase(link: &CircuitBreaker) -> Phase {
        link.state.phase()
    }

    #[test]
    fn it_opens_when_enough_requests_were_bad_and_not_before() {
        let link = breaker("");
        record(&link, 1_000, BAD, 9);
        assert_eq!(phase(&link), Phase::Closed, "one failure at night is none");
        record(&link, 1_001, BAD, 1);
        assert_eq!(phase(&link), Phase::Open);
        let error = link.admit(1_500, 0).expect_err("open");
        assert_eq!((error.status().as_u16(), error.code()), (503, "circuit_open"));
        assert_eq!((link.state.report().opened, link.state.report().refused), (1, 1));
    }

    #[test]
    fn good_answers_keep_it_closed() {
        let link = breaker("");
        record(&link, 1_000, OK, 20);
        record(&link, 1_000, BAD, 20);
        assert_eq!(phase(&link), Phase::Closed);
        record(&link, 1_000, BAD, 1);
        assert_eq!(phase(&link), Phase::Open);
    }

    #[test]
    fn what_is_older_than_ten_seconds_counts_no_more() {
        let link = breaker("");
        record(&link, 1_000, BAD, 9);
        record(&link, 11_500, BAD, 9);
        assert_eq!(phase(&link), Phase::Closed);
    }

    #[test]
    fn it_looks_only_so_often() {
        let link =
            circuit_breaker("{expression: NetworkErrorRatio() > 0.5, minRequests: 1, checkPeriod: 100ms}");
        record(&link, 1_000, OK, 1);
        record(&link, 1_050, BAD, 5);
        assert_eq!(phase(&link), Phase::Closed);
        record(&link, 1_100, BAD, 1);
        assert_eq!(phase(&link), Phase::Open);
    }

    #[test]
    fn after_a_while_a_growing_and_bounded_share_passes() {
        let link = breaker(", fallbackDuration: 5s, recoveryDuration: 10s, maxProbes: 2");
        record(&link, 1_000, BAD, 10);
        link.admit(5_999, 0).expect_err("still open");
        let never = u64::MAX;
        let first = link.admit(6_000, never).expect("one probe at once");
        assert_eq!(phase(&link), Phase::HalfOpen);
        link.admit(6_000, never).expect_err("the share is nothing yet");
        // Half of the time is over: one in four passes.
        let second = link.admit(11_000, u64::MAX / 5).expect("within the share");
        link.admit(11_000, u64::MAX / 3).expect_err("beyond the share");
        link.admit(11_000, 0).expect_err("two are under way");
        drop((first, second));
        link.admit(11_000, 0).expect("they are done");
        record(&link, 12_000, OK, 5);
        link.admit(16_000, never).expect("closed again");
        assert_eq!(phase(&link), Phase::Closed);
    }

    #[test]
    fn a_bad_probe_opens_it_again() {
        let link = breaker(", fallbackDuration: 5s");
        record(&link, 1_000, BAD, 10);
        let _probe = link.admit(6_000, 0).expect("half-open");
        record(&link, 6_100, BAD, 1);
        assert_eq!(phase(&link), Phase::Open);
        link.admit(11_000, 0).expect_err("for the whole time again");
        link.admit(11_100, 0).expect("half-open");
        assert_eq!(link.state.report().opened, 2);
    }

    #[test]
    fn requests_under_way_when_it_opened_do_not_prolong_it() {
        let link = breaker(", fallbackDuration: 5s");
        let late = link.admit(500, 0).expect("closed");
        record(&link, 1_000, BAD, 10);
        record(&link, 4_000, BAD, 10);
        link.admit(6_000, 0).expect("half-open");
        link.record(0, 6_001, &late, BAD, Duration::from_secs(5));
        assert_eq!(phase(&link), Phase::HalfOpen);
    }

    #[test]
    fn latency_and_status_open_it_too() {
        let link = circuit_breaker("{expression: LatencyAtQuantileMS(50.0) > 100, checkPeriod: 0}");
        record_in(&link, 1_000, OK, 10, Duration::from_millis(200));
        assert_eq!(phase(&link), Phase::Open);
        let link =
            circuit_breaker("{expression: 'ResponseCodeRatio(500, 600, 0, 600) > 0.25', checkPeriod: 0}");
        record(&link, 1_000, OK, 9);
        record(&link, 1_000, StatusCode::INTERNAL_SERVER_ERROR, 2);
        assert_eq!(phase(&link), Phase::Closed);
        record(&link, 1_000, StatusCode::INTERNAL_SERVER_ERROR, 2);
        assert_eq!(phase(&link), Phase::Open);
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "circuitBreaker.expression"),
            ("{expression: ''}", "circuitBreaker.expression"),
            ("{expression: 'Nope() > 1'}", "circuitBreaker.expression"),
            ("{expression: NetworkErrorRatio() > 1, responseCode: 99}", "circuitBreaker.responseCode"),
            ("{expression: NetworkErrorRatio() > 1, maxProbes: 0}", "circuitBreaker.maxProbes"),
            ("{expression: NetworkErrorRatio() > 1, fallbackDuration: 0}", "circuitBreaker.fallbackDuration"),
        ] {
            assert_eq!(problems("circuitBreaker", options).errors(), [path], "{options}");
        }
    }
}
