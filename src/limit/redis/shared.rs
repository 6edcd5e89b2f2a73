//! A limit whose buckets are in Redis, as requests see it.

use std::cell::Cell;
use std::fmt;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::super::decision::{Decision, Limit};
use super::super::key::{KeyBytes, LimitKey};
use super::super::pauses::Pauses;
use super::super::quota::{Nanos, nanos};
use super::backend::Backend;
use super::courier::{Reply, Trouble};
use super::replica::Replica;
use super::script::{Answer, Digest, Kind, Question, Shape, Spent, digest_of};
use super::settings::Topology;
use super::state::Inner;
use super::views::{
    GivesBack, KNOWN_FOR, KNOWN_FOR_IF_GIVEN_BACK, Lease, Returned, States, Tally, Views, Word, judge,
};

/// How Redis is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Mode {
    /// Every request is decided by Redis.
    Exact,
    /// A replica decides by itself, and Redis hears of it afterwards. So many tokens of a key may be unheard of
    /// at a time; beyond them Redis is asked.
    Lease(NonZeroU64),
}

/// Who decides while Redis does not.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum OnFailure {
    /// This replica, by its share of the limit.
    Local,
    /// Nobody: everything is allowed.
    Open,
    /// Nobody: everything is refused.
    Closed,
}

impl OnFailure {
    /// The word in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

/// How a limit uses its Redis.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Use {
    /// How it is asked.
    pub mode: Mode,
    /// Who decides while it is away.
    pub on_failure: OnFailure,
    /// Replicas among which the limit is shared out then.
    pub replicas: NonZeroU64,
    /// Keys that this replica remembers something of.
    pub max_keys: NonZeroUsize,
    /// Whether what is taken may be given back.
    pub gives_back: GivesBack,
}

/// What is refused by `closed` may be tried again after so long: about as long as Redis is left alone.
const CLOSED_WAIT: Nanos = 1_000_000_000;

/// A limit whose buckets are in Redis.
#[derive(Debug)]
pub struct SharedLimit {
    backend: Arc<Backend>,
    replica: Arc<Replica>,
    how: Use,
}

/// A decision, and what goes with it.
#[derive(Debug)]
pub struct Settled {
    /// What it is.
    pub decision: Decision,
    /// Whether `onFailure` made it, because Redis did not.
    pub fallback: bool,
    /// What was taken.
    pub receipt: Receipt,
}

/// What was taken for a request, so that it can be given back.
#[derive(Debug, Default)]
pub enum Receipt {
    /// Nothing, or nothing that could be given back.
    #[default]
    Nothing,
    /// From Redis.
    Redis {
        /// Redis's time of its answer, in microseconds.
        since: u64,
        /// What it said was spent thereafter.
        spent: Spent,
    },
    /// From this replica's share: the states of its buckets thereafter.
    Share(SmallVec<[u128; 1]>),
    /// Nothing yet: its lease keeps them.
    Held(Hold),
}

/// Tokens that a lease keeps for a request until its answer says whether they are taken. Without a word they are, when
/// this is dropped.
#[derive(Debug)]
pub struct Hold {
    inner: Arc<Inner>,
    replica: Arc<Replica>,
    key: LimitKey,
    cost: u64,
    lease: u64,
    open: Cell<bool>,
}

impl Hold {
    /// They are taken, and Redis will be told.
    pub fn counts(&self) {
        if self.open.replace(false) {
            let now = nanos(Instant::now());
            let owed = self.replica.views.counted(&self.replica.limits(), self.key, self.cost, now);
            if owed.saturating_mul(2) > self.lease {
                self.inner.urgent.notify_one();
            }
        }
    }

    /// They are not.
    pub fn release(&self) {
        if self.open.replace(false) {
            self.replica.views.released(self.key, self.cost);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.counts();
    }
}

/// What a request comes to.
#[derive(Debug)]
pub enum Begun {
    /// It is decided.
    Decided(Settled),
    /// Redis is asked.
    Asked(Pending),
}

/// A question on its way. Holds nothing of the configuration.
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Reply>,
    key: LimitKey,
    digest: Digest,
    cost: u64,
    /// When it was asked.
    at: Nanos,
}

impl SharedLimit {
    /// The limit of this name in a Redis. `views` are those of the same name and the same windows, `pauses` those of
    /// the same name.
    pub fn new(
        backend: Arc<Backend>,
        name: &str,
        limit: Arc<Limit>,
        views: Arc<Views>,
        pauses: Arc<Pauses>,
        how: Use,
    ) -> Self {
        // It may be another Redis than before.
        pauses.tell_again();
        let shape = Shape::new(&backend.settings().prefix, name, &limit);
        let replica = Replica::new(limit, shape, (views, pauses), how.replicas, how.max_keys);
        let replica = Arc::new(replica);
        backend.join(&replica);
        Self { backend, replica, how }
    }

    /// The limit.
    pub fn limit(&self) -> &Arc<Limit> {
        &self.replica.whole
    }

    /// Its Redis.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    /// How it uses it.
    pub fn how(&self) -> Use {
        self.how
    }

    /// Figures for operators.
    pub fn tally(&self) -> &Tally {
        &self.replica.views.tally
    }

    /// A pause was noted: Redis is told at once, or when it is back if it lasts as long.
    pub fn paused(&self) {
        self.backend.inner.urgent.notify_one();
    }

    /// Takes `cost` tokens from every window's bucket of `key`, or asks Redis to. Never waits.
    pub fn begin(&self, now: Nanos, key: &KeyBytes, cost: u64) -> Begun {
        let views = &self.replica.views;
        let limits = self.replica.limits();
        if limits.whole.never(cost).is_some() {
            let states: SmallVec<[u128; 1]> = SmallVec::new();
            return Begun::Decided(by_us(judge(limits.whole, &states, cost, now).0));
        }
        let bytes = key.as_bytes();
        let key = LimitKey::of_bytes(key);
        if !self.backend.is_up() {
            return Begun::Decided(self.fall_back(now, key, || digest_of(bytes), cost, Trouble::Away));
        }
        let paused = self.replica.pauses.end(now, key);
        match self.how.mode {
            Mode::Exact => {
                let known_for = match self.how.gives_back {
                    GivesBack::No => KNOWN_FOR,
                    GivesBack::Perhaps => KNOWN_FOR_IF_GIVEN_BACK,
                };
                if let Some(refusal) = views.refusal(&limits, key, cost, now, known_for) {
                    count(&views.tally.known);
                    return Begun::Decided(by_us(refusal));
                }
            }
            Mode::Lease(tokens) => {
                let lease = Lease { tokens: tokens.get(), gives_back: self.how.gives_back, paused };
                if let Some((decision, urgent)) =
                    views.lease(&limits, key, || digest_of(bytes), cost, lease, now)
                {
                    count(&views.tally.leased);
                    if urgent {
                        self.backend.inner.urgent.notify_one();
                    }
                    return Begun::Decided(self.by_lease(decision, key, cost, lease));
                }
            }
        }
        let digest = digest_of(bytes);
        let shape = Arc::clone(&self.replica.shape);
        // Redis may not have been told yet, or may have forgotten.
        let pause = paused.saturating_sub(now).div_ceil(1_000);
        match self.backend.ask(Question { shape, digest, cost, kind: Kind::Ask, pause }) {
            Ok(answer) => Begun::Asked(Pending { answer, key, digest, cost, at: now }),
            Err(trouble) => Begun::Decided(self.fall_back(now, key, || digest, cost, trouble)),
        }
    }

    /// Waits for Redis, no longer than `timeout`, and decides without it otherwise. `now` is asked for the time.
    pub async fn settle(&self, mut pending: Pending) -> Settled {
        let patience = self.backend.settings().timeout;
        let trouble = match tokio::time::timeout(patience, &mut pending.answer).await {
            Ok(Ok(Ok((time, answer)))) => {
                let decision = self.learn(&pending, time, &answer);
                let receipt = match answer.taken {
                    true => Receipt::Redis { since: time, spent: answer.spent },
                    false => Receipt::Nothing,
                };
                return Settled { decision, fallback: false, receipt };
            }
            Ok(Ok(Err(trouble))) => trouble,
            // The task gave up what was on its way.
            Ok(Err(_)) => Trouble::Failed,
            Err(_) => Trouble::Late,
        };
        let now = nanos(Instant::now());
        self.fall_back(now, pending.key, || pending.digest, pending.cost, trouble)
    }

    /// Gives back what was taken, less what time has brought back meanwhile. Never waits: Redis is told in a moment,
    /// and where it cannot be told time gives it back.
    pub fn give_back(&self, now: Nanos, key: &KeyBytes, cost: u64, receipt: &Receipt) {
        let views = &self.replica.views;
        match receipt {
            Receipt::Nothing => {}
            Receipt::Redis { since, spent } => {
                let digest = digest_of(key.as_bytes());
                let (key, spent) = (LimitKey::of_bytes(key), spent.clone());
                if views.return_to_redis(Returned { key, digest, tokens: cost, since: *since, spent }) {
                    self.backend.inner.urgent.notify_one();
                }
            }
            Receipt::Share(until) => {
                views.give_back(&self.replica.limits(), LimitKey::of_bytes(key), cost, until, now);
            }
            Receipt::Held(hold) => hold.release(),
        }
    }

    fn by_lease(&self, decision: Decision, key: LimitKey, cost: u64, lease: Lease) -> Settled {
        let receipt = match lease.gives_back {
            GivesBack::Perhaps if decision.allowed => Receipt::Held(Hold {
                inner: Arc::clone(&self.backend.inner),
                replica: Arc::clone(&self.replica),
                key,
                cost,
                lease: lease.tokens,
                open: Cell::new(true),
            }),
            GivesBack::Perhaps | GivesBack::No => Receipt::Nothing,
        };
        Settled { decision, fallback: false, receipt }
    }

    fn learn(&self, pending: &Pending, time: u64, answer: &Answer) -> Decision {
        let views = &self.replica.views;
        let limits = self.replica.limits();
        count(&views.tally.asked);
        let now = nanos(Instant::now());
        let spent = self.replica.units(&answer.spent);
        let at = match self.how.mode {
            // Counted from before Redis looked, time fills the bucket here no later than there: nobody is
            // refused here who would not be refused there.
            Mode::Exact => pending.at,
            // Counted from after, it does so no sooner: nobody is allowed too early.
            Mode::Lease(_) => now,
        };
        let word = Word { spent: &spent, at, order: time };
        views.learn(&limits, pending.key, pending.digest, &word);
        // The buckets as they were before, to say what we would have said.
        let windows = limits.whole.windows();
        let before: SmallVec<[u128; 1]> = windows
            .iter()
            .zip(&spent)
            .map(|(window, spent)| {
                let (_, token) = window.quota.units();
                let cost = if answer.taken { u128::from(pending.cost) * u128::from(token) } else { 0 };
                window.quota.state(spent.saturating_sub(cost), now)
            })
            .collect();
        let (decision, _) = judge(limits.whole, &before, pending.cost, now);
        if decision.allowed == answer.taken {
            return decision;
        }
        // Only where a quota does not fit Redis's numbers exactly; then Redis's word counts.
        Decision {
            allowed: answer.taken,
            wait: if answer.taken { 0 } else { decision.wait.max(1) },
            ..decision
        }
    }

    fn fall_back(
        &self,
        now: Nanos,
        key: LimitKey,
        digest: impl FnOnce() -> Digest,
        cost: u64,
        trouble: Trouble,
    ) -> Settled {
        let views = &self.replica.views;
        count(match trouble {
            Trouble::Away => &views.tally.away,
            Trouble::Late => &views.tally.late,
            Trouble::Failed => &views.tally.failed,
            Trouble::Crowded => &views.tally.crowded,
        });
        let paused = self.replica.pauses.end(now, key);
        let (decision, states): (_, Option<States>) = match self.how.on_failure {
            OnFailure::Local => views.fall_back(&self.replica.limits(), key, digest, cost, paused, now),
            OnFailure::Open if paused > now => {
                let longest =
                    self.replica.whole.windows().iter().map(|window| window.quota.max_delay()).min();
                let wait = paused - now;
                let allowed = longest.is_some_and(|longest| wait <= longest);
                (Decision { allowed, wait, remaining: 0, reset: wait, window: 0 }, None)
            }
            OnFailure::Open => {
                let remaining = self.replica.whole.windows().iter().map(|window| window.quota.burst()).min();
                let remaining = remaining.unwrap_or(0);
                (Decision { allowed: true, wait: 0, remaining, reset: 0, window: 0 }, None)
            }
            OnFailure::Closed => {
                let (wait, reset) = (CLOSED_WAIT, CLOSED_WAIT);
                (Decision { allowed: false, wait, remaining: 0, reset, window: 0 }, None)
            }
        };
        Settled { decision, fallback: true, receipt: states.map_or(Receipt::Nothing, Receipt::Share) }
    }
}

impl fmt::Display for SharedLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.backend.settings();
        write!(f, "redis {}", self.backend.label())?;
        match settings.topology {
            Topology::Single => {}
            Topology::Cluster | Topology::Sentinel { .. } => write!(f, " ({})", settings.topology.as_str())?,
        }
        match self.how.mode {
            Mode::Exact => write!(f, ", asked for each request")?,
            Mode::Lease(lease) => write!(f, ", hears of requests afterwards (lease {lease})")?,
        }
        write!(f, "; without an answer in {:?}: {}", settings.timeout, self.how.on_failure.as_str())?;
        match self.how.on_failure {
            OnFailure::Local => write!(f, ", a share of 1 in {}", self.how.replicas),
            OnFailure::Open | OnFailure::Closed => Ok(()),
        }
    }
}

/// Decided here, and nothing of it can be given back.
fn by_us(decision: Decision) -> Settled {
    Settled { decision, fallback: false, receipt: Receipt::Nothing }
}

fn count(figure: &AtomicU64) {
    figure.fetch_add(1, Ordering::Relaxed);
}
