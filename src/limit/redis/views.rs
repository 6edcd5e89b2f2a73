//! What this replica knows of each key: Redis's last word, and what Redis has not heard of yet.
//!
//! A view is good for three things. In lease mode it decides, as long as no more than the lease is
//! unheard of. In exact mode it refuses a flood that Redis has just refused, without asking again. And while
//! Redis is away it decides by this replica's share of the limit. Bounded; never: sockets, the clock.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use smallvec::SmallVec;

use super::super::decision::{Decision, Limit};
use super::super::key::{Fingerprint, LimitKey};
use super::super::local::{Padded, shard_count};
use super::super::quota::Nanos;

/// For how long a refusal is repeated without asking. An operator who deletes a key in Redis waits no longer.
const KNOWN_FOR: Nanos = 1_000_000_000;

/// A word that is older than the last one by so many microseconds comes from another clock, and counts.
const CLOCK_STEP: u64 = 1_000_000;

/// Views looked at to make room for another.
const LOOKS: usize = 16;

/// A key as Redis has it: half of a SHA-256, the same in every replica.
pub(super) type Digest = [u8; 16];

/// States of buckets, one a window.
pub(super) type States = SmallVec<[u128; 1]>;

/// What became of requests that were not simply decided by Redis.
#[derive(Debug, Default)]
pub struct Tally {
    /// Decided by Redis.
    pub asked: AtomicU64,
    /// Decided here, within the lease.
    pub leased: AtomicU64,
    /// Refused here, because Redis had just said so.
    pub known: AtomicU64,
    /// Decided by `onFailure`, because Redis was known to be away.
    pub away: AtomicU64,
    /// The same, because it did not answer in time.
    pub late: AtomicU64,
    /// The same, because it answered with an error or nonsense, or the connection broke.
    pub failed: AtomicU64,
    /// The same, because too many questions were waiting.
    pub crowded: AtomicU64,
}

impl Tally {
    /// Each figure with its word.
    pub fn by(&self) -> [(&'static str, u64); 7] {
        [
            ("redis", &self.asked),
            ("lease", &self.leased),
            ("known", &self.known),
            ("away", &self.away),
            ("late", &self.late),
            ("failed", &self.failed),
            ("crowded", &self.crowded),
        ]
        .map(|(word, figure)| (word, figure.load(Ordering::Relaxed)))
    }
}

#[derive(Debug)]
struct View {
    states: States,
    /// The states are in the units of the share, not of the whole limit.
    by_share: bool,
    /// When Redis last spoke of it.
    heard: Option<Nanos>,
    /// The same by Redis's clock, in microseconds.
    order: u64,
    /// Tokens that were given away and that Redis has not been told of.
    unheard: u64,
    /// Tokens that Redis is being told of.
    telling: u64,
    queued: bool,
    digest: Digest,
}

#[derive(Debug, Default)]
struct Shard {
    views: HashMap<LimitKey, View, Fingerprint>,
    /// Every key of `views` once, and some that are gone.
    ring: VecDeque<LimitKey>,
    /// Keys with something unheard of, each once.
    queue: Vec<LimitKey>,
}

/// The limit as a whole and as this replica's share of it.
#[derive(Debug)]
pub(super) struct Limits<'a> {
    pub(super) whole: &'a Limit,
    pub(super) share: &'a Limit,
}

/// Tokens given away that Redis is to be told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    pub(super) key: LimitKey,
    pub(super) digest: Digest,
    pub(super) tokens: u64,
}

/// What Redis said of a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word<'a> {
    /// Units spent in each window's bucket, in those of its quota.
    pub(super) spent: &'a [u128],
    /// From when on time fills them.
    pub(super) at: Nanos,
    /// When Redis said it, by its own clock, in microseconds.
    pub(super) order: u64,
}

/// All views of a limit.
#[derive(Debug)]
pub struct Views {
    shards: Box<[Padded<Mutex<Shard>>]>,
    queued: AtomicUsize,
    /// Figures for operators.
    pub tally: Tally,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            shards: (0..shard_count()).map(|_| Padded::default()).collect(),
            queued: AtomicUsize::new(0),
            tally: Tally::default(),
        }
    }
}

impl Views {
    /// Keys that are known.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().views.len()).sum()
    }

    /// Keys of which Redis has not heard all.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// The refusal of a request of a key that was refused a moment ago, if it would surely be refused again:
    /// only time fills a bucket, and not enough of it has passed.
    pub(super) fn refusal(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        cost: u64,
        now: Nanos,
    ) -> Option<Decision> {
        let shard = self.shard(key).lock();
        let view = shard.views.get(&key)?;
        if view.by_share || view.heard.is_none_or(|heard| now.saturating_sub(heard) > KNOWN_FOR) {
            return None;
        }
        let (decision, _) = judge(limits.whole, &view.states, cost, now);
        (!decision.allowed).then_some(decision)
    }

    /// Decides within the lease of `lease` tokens. `None` when that is spent, or no room is left for another
    /// key: Redis must be asked.
    pub(super) fn lease(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        digest: impl FnOnce() -> Digest,
        cost: u64,
        lease: u64,
        room: NonZeroUsize,
        now: Nanos,
    ) -> Option<(Decision, bool)> {
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            if !shard.make_room(limits, room.get().div_ceil(self.shards.len()), now) {
                return None;
            }
            shard.insert(key, limits.whole, digest());
        }
        let view = shard.views.get_mut(&key)?;
        view.whole(limits, now);
        let (decision, states) = judge(limits.whole, &view.states, cost, now);
        if !decision.allowed {
            return Some((decision, false));
        }
        let owed = view.unheard + view.telling + cost;
        if owed > lease {
            return None;
        }
        view.states = states;
        view.unheard += cost;
        self.queue(&mut shard, key);
        Some((decision, owed.saturating_mul(2) > lease))
    }

    /// Keeps what Redis has said of a key, if there is room.
    pub(super) fn learn(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        digest: Digest,
        word: &Word<'_>,
        room: NonZeroUsize,
    ) {
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            if !shard.make_room(limits, room.get().div_ceil(self.shards.len()), word.at)
                && !shard.drop_oldest_heard()
            {
                return;
            }
            shard.insert(key, limits.whole, digest);
        }
        if let Some(view) = shard.views.get_mut(&key) {
            view.hear(limits.whole, word);
        }
    }

    /// Decides by this replica's share.
    pub(super) fn fall_back(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        digest: impl FnOnce() -> Digest,
        cost: u64,
        room: NonZeroUsize,
        now: Nanos,
    ) -> Decision {
        // A share may hold fewer tokens than one request costs; it is then worth a whole bucket.
        let cost_here =
            limits.share.windows().iter().fold(cost, |cost, window| cost.min(window.quota.burst()));
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            let bound = room.get().div_ceil(self.shards.len());
            let inherited = if shard.make_room(limits, bound, now) { None } else { shard.evict(limits, now) };
            shard.insert(key, limits.share, digest());
            if let (Some(view), Some(debts)) = (shard.views.get_mut(&key), inherited) {
                for ((state, debt), window) in view.states.iter_mut().zip(debts).zip(limits.share.windows()) {
                    *state = window.quota.inherit(debt, &window.quota, cost_here, now);
                }
            }
        }
        let Some(view) = shard.views.get_mut(&key) else {
            return judge(limits.share, &States::new(), cost_here, now).0;
        };
        view.share(limits, now);
        let (decision, states) = judge(limits.share, &view.states, cost_here, now);
        if decision.allowed {
            view.states = states;
            // What time has brought back need not be told.
            let spent = view.tokens_spent(limits.share, now);
            view.unheard = (view.unheard + cost_here).min(spent);
            self.queue(&mut shard, key);
        }
        decision
    }

    /// Takes at most `most` keys that Redis is to be told of.
    pub(super) fn collect(&self, most: usize, to: &mut Vec<Owed>) {
        if self.queued() == 0 {
            return;
        }
        for shard in &self.shards {
            let mut shard = shard.0.lock();
            while to.len() < most {
                let Some(key) = shard.queue.pop() else { break };
                self.queued.fetch_sub(1, Ordering::Relaxed);
                if let Some(view) = shard.views.get_mut(&key) {
                    view.queued = false;
                    if view.unheard > 0 {
                        to.push(Owed { key, digest: view.digest, tokens: view.unheard });
                        view.telling += view.unheard;
                        view.unheard = 0;
                    }
                }
            }
        }
    }

    /// Redis was told; it says what is spent altogether.
    pub(super) fn told(&self, limits: &Limits<'_>, owed: &Owed, word: &Word<'_>) {
        let mut shard = self.shard(owed.key).lock();
        if let Some(view) = shard.views.get_mut(&owed.key) {
            view.telling = view.telling.saturating_sub(owed.tokens);
            view.hear(limits.whole, word);
        }
    }

    /// Redis could not be told, or it is not known whether it was: it is told again.
    pub(super) fn not_told(&self, owed: &Owed) {
        let mut shard = self.shard(owed.key).lock();
        if let Some(view) = shard.views.get_mut(&owed.key) {
            view.telling = view.telling.saturating_sub(owed.tokens);
            view.unheard += owed.tokens;
            self.queue(&mut shard, owed.key);
        }
    }

    fn queue(&self, shard: &mut Shard, key: LimitKey) {
        if let Some(view) = shard.views.get_mut(&key)
            && !view.queued
        {
            view.queued = true;
            shard.queue.push(key);
            self.queued.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn shard(&self, key: LimitKey) -> &Mutex<Shard> {
        // The count is a power of two; the table takes the low and the high bits.
        &self.shards[(key.bits() >> 24) as usize & (self.shards.len() - 1)].0
    }
}

impl View {
    /// Takes Redis's word, unless a later one is known, and adds what Redis does not know.
    fn hear(&mut self, whole: &Limit, word: &Word<'_>) {
        if word.order < self.order && self.order - word.order < CLOCK_STEP {
            return;
        }
        self.order = word.order;
        let owed = u128::from(self.unheard) + u128::from(self.telling);
        self.by_share = false;
        self.heard = Some(word.at);
        self.states.clear();
        for (window, spent) in whole.windows().iter().zip(word.spent) {
            let (_, token) = window.quota.units();
            let own = owed.saturating_mul(u128::from(token));
            self.states.push(window.quota.state(spent.saturating_add(own), word.at));
        }
    }

    fn whole(&mut self, limits: &Limits<'_>, now: Nanos) {
        if self.by_share {
            self.convert(limits.share, limits.whole, now);
            self.by_share = false;
        }
    }

    fn share(&mut self, limits: &Limits<'_>, now: Nanos) {
        if !self.by_share {
            self.convert(limits.whole, limits.share, now);
            self.by_share = true;
        }
    }

    fn convert(&mut self, from: &Limit, to: &Limit, now: Nanos) {
        for ((state, from), to) in self.states.iter_mut().zip(from.windows()).zip(to.windows()) {
            *state = to.quota.convert(*state, &from.quota, now);
        }
    }

    fn tokens_spent(&self, limit: &Limit, now: Nanos) -> u64 {
        let tokens = self.states.iter().zip(limit.windows()).map(|(state, window)| {
            let (_, token) = window.quota.units();
            window.quota.spent(*state, now).div_ceil(u128::from(token))
        });
        u64::try_from(tokens.max().unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// Nothing is left to be remembered.
    fn is_idle(&self, limits: &Limits<'_>, now: Nanos) -> bool {
        let limit = if self.by_share { limits.share } else { limits.whole };
        let states = self.states.iter().zip(limit.windows());
        self.unheard + self.telling == 0
            && states.into_iter().all(|(state, window)| window.quota.spent(*state, now) == 0)
    }
}

impl Shard {
    fn insert(&mut self, key: LimitKey, limit: &Limit, digest: Digest) {
        let view = View {
            states: limit.windows().iter().map(|_| 0).collect(),
            by_share: false,
            heard: None,
            order: 0,
            unheard: 0,
            telling: 0,
            queued: false,
            digest,
        };
        self.views.insert(key, view);
        self.ring.push_back(key);
    }

    /// Whether there is room for one more, after looking at a few that may have gone idle.
    fn make_room(&mut self, limits: &Limits<'_>, bound: usize, now: Nanos) -> bool {
        for _ in 0..LOOKS {
            let Some(key) = self.ring.pop_front() else { break };
            if let Entry::Occupied(view) = self.views.entry(key) {
                if view.get().is_idle(limits, now) && !view.get().queued {
                    view.remove();
                } else {
                    self.ring.push_back(key);
                    if self.views.len() < bound {
                        break;
                    }
                }
            }
        }
        self.views.len() < bound.max(1)
    }

    /// Forgets one that Redis knows all of, and that is only kept so as not to ask.
    fn drop_oldest_heard(&mut self) -> bool {
        for _ in 0..LOOKS {
            let Some(key) = self.ring.pop_front() else { return false };
            match self.views.entry(key) {
                Entry::Occupied(view) if view.get().unheard + view.get().telling == 0 => {
                    view.remove();
                    return true;
                }
                Entry::Occupied(_) => self.ring.push_back(key),
                Entry::Vacant(_) => {}
            }
        }
        false
    }

    /// Forgets one and gives what it owed by the share.
    fn evict(&mut self, limits: &Limits<'_>, now: Nanos) -> Option<States> {
        let key = self.ring.pop_front()?;
        let mut view = self.views.remove(&key)?;
        view.share(limits, now);
        Some(view.states)
    }
}

/// What a limit says of a request when its buckets are in these states, and the states after it is allowed.
/// Missing states are those of full buckets.
pub(super) fn judge(limit: &Limit, states: &[u128], cost: u64, now: Nanos) -> (Decision, States) {
    let mut after = States::new();
    let mut decision = Decision { allowed: true, wait: 0, remaining: u64::MAX, reset: 0, window: 0 };
    for (index, window) in limit.windows().iter().enumerate() {
        let quota = &window.quota;
        let state = states.get(index).copied().unwrap_or(0);
        let take = quota.take(state, cost, now);
        let lacks = !quota.bears(take.lacking);
        if lacks && decision.allowed {
            decision = Decision { allowed: false, wait: 0, ..decision };
        }
        let wait = match take.lacking {
            0 => 0,
            u128::MAX => Decision::NEVER,
            lacking => quota.refill_time(lacking),
        };
        let spent = if decision.allowed { take.spent } else { quota.spent(state, now) };
        let remaining = quota.left(spent);
        let tighter = if decision.allowed {
            index == 0 || remaining < decision.remaining
        } else {
            lacks && (wait > decision.wait || decision.wait == 0)
        };
        if tighter {
            decision = Decision { remaining, reset: quota.refill_time(spent), window: index, ..decision };
        }
        if decision.allowed || lacks {
            decision.wait = decision.wait.max(wait);
        }
        after.push(take.full_at);
    }
    (decision, after)
}
