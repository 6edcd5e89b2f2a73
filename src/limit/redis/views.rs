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

use super::super::decision::{Decision, Limit, Window};
use super::super::key::{Fingerprint, LimitKey};
use super::super::local::{Padded, shard_count};
use super::super::quota::Nanos;
use super::script::{Digest, Spent};

/// For how long a refusal is repeated without asking. An operator who deletes a key in Redis waits no longer.
pub(super) const KNOWN_FOR: Nanos = 1_000_000_000;
/// The same where another replica may give tokens back meanwhile.
pub(super) const KNOWN_FOR_IF_GIVEN_BACK: Nanos = 50_000_000;

/// Tokens on their way back to Redis. More than these are not given back: their clients wait for time to do so.
const MOST_RETURNED: usize = 4_096;

/// A word that is older than the last one by so many microseconds comes from another clock, and counts.
const CLOCK_STEP: u64 = 1_000_000;

/// Views looked at to make room for another.
const LOOKS: usize = 16;

/// Whether what is taken may be given back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum GivesBack {
    /// Never.
    No,
    /// When the answer turns out not to count.
    Perhaps,
}

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
    /// Tokens of requests whose answers will say whether they are taken. They are not part of `states`.
    held: u64,
    queued: bool,
    digest: Digest,
}

#[derive(Debug, Default)]
struct Shard {
    /// Each in a block of its own: a table has up to twice as many places as it needs, and they are small then.
    views: HashMap<LimitKey, Box<View>, Fingerprint>,
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
    /// Keys that may be known at a time.
    pub(super) room: NonZeroUsize,
}

/// What may be given away of a key before Redis has heard of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    pub(super) tokens: u64,
    /// Whether a token is only taken once the answer is there and counts.
    pub(super) gives_back: GivesBack,
    /// Until when the key's buckets are empty whatever Redis has said; 0: no such time.
    pub(super) paused: Nanos,
}

/// Tokens given away that Redis is to be told of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owed {
    pub(super) key: LimitKey,
    pub(super) digest: Digest,
    pub(super) tokens: u64,
}

/// Tokens that Redis gave away and gets back.
#[derive(Clone, Debug)]
pub(super) struct Returned {
    pub(super) key: LimitKey,
    pub(super) digest: Digest,
    pub(super) tokens: u64,
    /// When it did, by its own clock, in microseconds.
    pub(super) since: u64,
    /// What was spent then, in its own units.
    pub(super) spent: Spent,
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
    returned: Mutex<VecDeque<Returned>>,
    /// Figures for operators.
    pub tally: Tally,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            shards: (0..shard_count()).map(|_| Padded::default()).collect(),
            queued: AtomicUsize::new(0),
            returned: Mutex::default(),
            tally: Tally::default(),
        }
    }
}

impl Views {
    /// Keys that are known.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.lock().views.len()).sum()
    }

    /// Keys of which Redis has not heard all, and tokens that it gets back.
    pub(super) fn queued(&self) -> usize {
        self.queued.load(Ordering::Relaxed)
    }

    /// The refusal of a request of a key that was refused a moment ago (no longer than `known_for`), if it would
    /// surely be refused again: only time fills a bucket, and not enough of it has passed.
    pub(super) fn refusal(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        cost: u64,
        now: Nanos,
        known_for: Nanos,
    ) -> Option<Decision> {
        let shard = self.shard(key).lock();
        let view = shard.views.get(&key)?;
        if view.by_share || view.heard.is_none_or(|heard| now.saturating_sub(heard) > known_for) {
            return None;
        }
        let (decision, _) = judge(limits.whole, &view.states, cost, now);
        (!decision.allowed).then_some(decision)
    }

    /// Decides within the lease, and says whether Redis should hear of it soon. `None` when the lease is spent, no room
    /// is left for another key, or another replica may have given back what is lacking: Redis must be asked.
    ///
    /// Where tokens may be given back, those of an allowed request are held until [`Self::counted`] or
    /// [`Self::released`].
    pub(super) fn lease(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        digest: impl FnOnce() -> Digest,
        cost: u64,
        lease: Lease,
        now: Nanos,
    ) -> Option<(Decision, bool)> {
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            if !shard.make_room(limits, self.bound(limits), now) {
                return None;
            }
            shard.insert(key, limits.whole, digest());
        }
        let view = shard.views.get_mut(&key)?;
        view.whole(limits, now);
        view.pause(limits.whole, lease.paused);
        let holds = lease.gives_back == GivesBack::Perhaps;
        let (decision, states) = match view.held {
            0 => judge(limits.whole, &view.states, cost, now),
            held => judge(limits.whole, &spend(limits.whole, &view.states, held, now), cost, now),
        };
        if !decision.allowed {
            let heard = view.heard.is_some_and(|at| now.saturating_sub(at) <= KNOWN_FOR_IF_GIVEN_BACK);
            return (heard || !holds).then_some((decision, false));
        }
        let owed = view.unheard + view.telling + view.held + cost;
        if owed > lease.tokens {
            return None;
        }
        if holds {
            view.held += cost;
            return Some((decision, false));
        }
        view.states = states;
        view.unheard += cost;
        self.queue(&mut shard, key);
        Some((decision, owed.saturating_mul(2) > lease.tokens))
    }

    /// What was held for a request is taken: Redis will be told. Gives the tokens that it has not heard of.
    pub(super) fn counted(&self, limits: &Limits<'_>, key: LimitKey, cost: u64, now: Nanos) -> u64 {
        let mut shard = self.shard(key).lock();
        // Without its view somebody else has taken over what it owed.
        let Some(view) = shard.views.get_mut(&key) else { return 0 };
        view.held = view.held.saturating_sub(cost);
        let limit = if view.by_share { limits.share } else { limits.whole };
        view.states = spend(limit, &view.states, cost, now);
        view.unheard += cost;
        let owed = view.unheard + view.telling;
        self.queue(&mut shard, key);
        owed
    }

    /// What was held for a request is free again.
    pub(super) fn released(&self, key: LimitKey, cost: u64) {
        if let Some(view) = self.shard(key).lock().views.get_mut(&key) {
            view.held = view.held.saturating_sub(cost);
        }
    }

    /// Keeps what Redis has said of a key, if there is room.
    pub(super) fn learn(&self, limits: &Limits<'_>, key: LimitKey, digest: Digest, word: &Word<'_>) {
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            if !shard.make_room(limits, self.bound(limits), word.at) && !shard.drop_oldest_heard() {
                return;
            }
            shard.insert(key, limits.whole, digest);
        }
        if let Some(view) = shard.views.get_mut(&key) {
            view.hear(limits.whole, word);
        }
    }

    /// Decides by this replica's share, whose buckets are empty until `paused`. With the states of its buckets
    /// thereafter, when something was taken.
    pub(super) fn fall_back(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        digest: impl FnOnce() -> Digest,
        cost: u64,
        paused: Nanos,
        now: Nanos,
    ) -> (Decision, Option<States>) {
        // A share may hold fewer tokens than one request costs; it is then worth a whole bucket.
        let cost_here =
            limits.share.windows().iter().fold(cost, |cost, window| cost.min(window.quota.burst()));
        let mut shard = self.shard(key).lock();
        if !shard.views.contains_key(&key) {
            let bound = self.bound(limits);
            let inherited = if shard.make_room(limits, bound, now) { None } else { shard.evict(limits, now) };
            shard.insert(key, limits.share, digest());
            if let (Some(view), Some(debts)) = (shard.views.get_mut(&key), inherited) {
                for ((state, debt), window) in view.states.iter_mut().zip(debts).zip(limits.share.windows()) {
                    *state = window.quota.inherit(debt, &window.quota, cost_here, now);
                }
            }
        }
        let Some(view) = shard.views.get_mut(&key) else {
            return (judge(limits.share, &States::new(), cost_here, now).0, None);
        };
        view.share(limits, now);
        view.pause(limits.share, paused);
        let (decision, states) = judge(limits.share, &view.states, cost_here, now);
        if decision.allowed {
            view.states.clone_from(&states);
            // What time has brought back need not be told.
            let spent = view.tokens_spent(limits.share, now);
            view.unheard = (view.unheard + cost_here).min(spent);
            self.queue(&mut shard, key);
            return (decision, Some(states));
        }
        (decision, None)
    }

    /// Gives back what was taken from a share: `until` are the states thereafter. Not once Redis is back and has been
    /// told of it: then only time gives it back.
    pub(super) fn give_back(
        &self,
        limits: &Limits<'_>,
        key: LimitKey,
        cost: u64,
        until: &[u128],
        now: Nanos,
    ) {
        let mut shard = self.shard(key).lock();
        let Some(view) = shard.views.get_mut(&key).filter(|view| view.by_share) else { return };
        let cost = limits.share.windows().iter().fold(cost, |cost, window| cost.min(window.quota.burst()));
        for ((state, until), window) in view.states.iter_mut().zip(until).zip(limits.share.windows()) {
            *state = window.quota.give_back(*state, cost, *until, now);
        }
        view.unheard = view.unheard.min(view.tokens_spent(limits.share, now));
    }

    /// Has Redis get back what it gave. `false` when too much is on its way back already.
    pub(super) fn return_to_redis(&self, returned: Returned) -> bool {
        let mut queue = self.returned.lock();
        let fits = queue.len() < MOST_RETURNED;
        if fits {
            queue.push_back(returned);
            self.queued.fetch_add(1, Ordering::Relaxed);
        }
        fits
    }

    /// Takes at most `most` of what Redis gets back.
    pub(super) fn collect_returned(&self, most: usize, to: &mut Vec<Returned>) {
        let mut queue = self.returned.lock();
        let count = most.min(queue.len());
        to.extend(queue.drain(..count));
        self.queued.fetch_sub(count, Ordering::Relaxed);
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

    /// Keys of one shard.
    fn bound(&self, limits: &Limits<'_>) -> usize {
        limits.room.get().div_ceil(self.shards.len())
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

    /// Empties the buckets until `until`.
    fn pause(&mut self, limit: &Limit, until: Nanos) {
        if until > 0 {
            for (state, window) in self.states.iter_mut().zip(limit.windows()) {
                *state = (*state).max(window.quota.empty(until));
            }
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

    /// Redis knows all of it.
    fn is_told(&self) -> bool {
        self.unheard + self.telling + self.held == 0
    }

    /// Nothing is left to be remembered.
    /// When its buckets are full again.
    fn owes_until(&self, limits: &Limits<'_>) -> Nanos {
        let limit = if self.by_share { limits.share } else { limits.whole };
        let states = self.states.iter().zip(limit.windows());
        states.map(|(state, window)| window.quota.forgets_at(*state)).max().unwrap_or(0)
    }

    fn is_idle(&self, limits: &Limits<'_>, now: Nanos) -> bool {
        let limit = if self.by_share { limits.share } else { limits.whole };
        let states = self.states.iter().zip(limit.windows());
        self.is_told() && states.into_iter().all(|(state, window)| window.quota.spent(*state, now) == 0)
    }
}

impl Shard {
    fn insert(&mut self, key: LimitKey, limit: &Limit, digest: Digest) {
        let view = Box::new(View {
            states: limit.windows().iter().map(|_| 0).collect(),
            by_share: false,
            heard: None,
            order: 0,
            unheard: 0,
            telling: 0,
            held: 0,
            queued: false,
            digest,
        });
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
                Entry::Occupied(view) if view.get().is_told() => {
                    view.remove();
                    return true;
                }
                Entry::Occupied(_) => self.ring.push_back(key),
                Entry::Vacant(_) => {}
            }
        }
        false
    }

    /// Forgets one of a few, that which owes nothing soonest, and gives what it owed by the share: keys that are made up
    /// push out one another, and not who is deeper in debt.
    fn evict(&mut self, limits: &Limits<'_>, now: Nanos) -> Option<States> {
        let mut soonest: Option<(Nanos, LimitKey)> = None;
        for _ in 0..LOOKS {
            let Some(key) = self.ring.pop_front() else { break };
            let Some(view) = self.views.get(&key) else { continue };
            let this = (view.owes_until(limits), key);
            match &mut soonest {
                Some(soonest) if this.0 < soonest.0 => {
                    self.ring.push_back(std::mem::replace(soonest, this).1);
                }
                Some(_) => self.ring.push_back(key),
                None => soonest = Some(this),
            }
        }
        let (_, key) = soonest?;
        let mut view = self.views.remove(&key)?;
        view.share(limits, now);
        Some(spend(limits.share, &view.states, view.held, now))
    }
}

/// The states of a limit's buckets once so many tokens more are taken, there or not.
fn spend(limit: &Limit, states: &[u128], tokens: u64, now: Nanos) -> States {
    let spend = |(window, state): (&Window, &u128)| {
        let (_, token) = window.quota.units();
        let more = u128::from(tokens).saturating_mul(u128::from(token));
        window.quota.state(window.quota.spent(*state, now).saturating_add(more), now)
    };
    limit.windows().iter().zip(states).map(spend).collect()
}

/// What a limit says of a request when its buckets are in these states, and the states after it is allowed.
/// Missing states are those of full buckets.
pub(super) fn judge(limit: &Limit, states: &[u128], cost: u64, now: Nanos) -> (Decision, States) {
    let mut after = States::new();
    let mut decision = Decision::OPEN;
    for (index, window) in limit.windows().iter().enumerate() {
        let quota = &window.quota;
        let state = states.get(index).copied().unwrap_or(0);
        let take = quota.take(state, cost, now);
        decision.weigh(index, quota, state, &take, now);
        after.push(take.full_at);
    }
    (decision, after)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::limit::{KeyBytes, Part, Quota};

    const SECOND: Nanos = 1_000_000_000;

    fn limit(average: u64, burst: u64) -> Limit {
        let not_zero = |number| NonZeroU64::new(number).expect("not zero");
        let quota = Quota::new(not_zero(average), Duration::from_secs(1), not_zero(burst)).without_delay();
        Limit::new([Window { name: "default".into(), quota }])
    }

    fn key(number: u64) -> LimitKey {
        LimitKey::of_bytes(&KeyBytes::of(&[Part::Bytes(&number.to_le_bytes())]))
    }

    struct Both {
        whole: Limit,
        share: Limit,
        room: usize,
    }

    impl Both {
        fn limits(&self) -> Limits<'_> {
            let room = NonZeroUsize::new(self.room).expect("not zero");
            Limits { whole: &self.whole, share: &self.share, room }
        }
    }

    fn both(average: u64, burst: u64) -> Both {
        Both { whole: limit(average, burst), share: limit(average, (burst / 3).max(1)), room: 1_000 }
    }

    fn lease(views: &Views, both: &Both, number: u64, tokens: u64, now: Nanos) -> Option<bool> {
        lease_as(views, both, number, Lease { tokens, gives_back: GivesBack::No, paused: 0 }, now)
    }

    fn lease_as(views: &Views, both: &Both, number: u64, lease: Lease, now: Nanos) -> Option<bool> {
        let (decision, _) = views.lease(&both.limits(), key(number), || [0; 16], 1, lease, now)?;
        Some(decision.allowed)
    }

    fn fall_back(views: &Views, both: &Both, number: u64, now: Nanos) -> bool {
        views.fall_back(&both.limits(), key(number), || [0; 16], 1, 0, now).0.allowed
    }

    #[test]
    fn a_lease_is_spent_until_redis_has_heard_of_it() {
        let (views, both) = (Views::default(), both(1, 10));
        assert_eq!(
            [(); 4].map(|()| lease(&views, &both, 1, 3, 0)),
            [Some(true), Some(true), Some(true), None]
        );

        let mut owed = Vec::new();
        views.collect(10, &mut owed);
        assert_eq!(owed.iter().map(|owed| owed.tokens).collect::<Vec<_>>(), [3]);
        assert_eq!(lease(&views, &both, 1, 3, 0), None, "it is on its way");
        // Others have taken six more.
        let (_, token) = both.whole.windows()[0].quota.units();
        let spent = [9 * u128::from(token)];
        views.told(&both.limits(), &owed[0], &Word { spent: &spent, at: 0, order: 1 });

        assert_eq!([(); 2].map(|()| lease(&views, &both, 1, 3, 0)), [Some(true), Some(false)]);
    }

    #[test]
    fn what_is_held_for_an_answer_is_told_only_once_it_counts() {
        let (views, both) = (Views::default(), both(1, 10));
        let held = Lease { tokens: 3, gives_back: GivesBack::Perhaps, paused: 0 };
        let take = |now| lease_as(&views, &both, 1, held, now);
        assert_eq!(
            [(); 4].map(|()| take(0)),
            [Some(true), Some(true), Some(true), None],
            "the lease is spent"
        );
        let mut owed = Vec::new();
        views.collect(10, &mut owed);
        assert!(owed.is_empty(), "nobody knows yet whether they count: {owed:?}");

        views.released(key(1), 1);
        assert_eq!([take(0), take(0)], [Some(true), None]);
        assert_eq!([(); 2].map(|()| views.counted(&both.limits(), key(1), 1, 0)), [1, 2]);
        views.released(key(1), 1);

        views.collect(10, &mut owed);
        assert_eq!(owed.iter().map(|owed| owed.tokens).collect::<Vec<_>>(), [2]);
        // Redis has heard of ten in all: no more of them are left for whoever holds some.
        let (_, token) = both.whole.windows()[0].quota.units();
        let word = |tokens: u64| [u128::from(tokens) * u128::from(token)];
        views.told(&both.limits(), &owed[0], &Word { spent: &word(9), at: 0, order: 1 });
        assert_eq!([take(0), take(0)], [Some(true), Some(false)]);
        // Another replica may have given some back since.
        assert_eq!(take(KNOWN_FOR_IF_GIVEN_BACK + 1), None);
    }

    #[test]
    fn a_view_that_holds_tokens_is_not_forgotten() {
        let (views, mut both) = (Views::default(), both(1, 9));
        both.room = 1;
        let held = Lease { tokens: 3, gives_back: GivesBack::Perhaps, paused: 0 };
        for number in 0..100 {
            lease_as(&views, &both, number, held, 0);
        }
        let known = views.keys();
        let (_, token) = both.whole.windows()[0].quota.units();
        let spent = [u128::from(token)];
        for number in 100..200 {
            let word = Word { spent: &spent, at: 3_600 * SECOND, order: 1 };
            views.learn(&both.limits(), key(number), [0; 16], &word);
        }
        assert_eq!(views.keys(), known, "none of them made room");
    }

    #[test]
    fn what_could_not_be_told_is_told_again() {
        let (views, both) = (Views::default(), both(1, 10));
        lease(&views, &both, 1, 3, 0);
        let mut owed = Vec::new();
        views.collect(10, &mut owed);
        views.not_told(&owed[0]);
        let mut again = Vec::new();
        views.collect(10, &mut again);
        assert_eq!(again.iter().map(|owed| owed.tokens).collect::<Vec<_>>(), [1]);
        assert_eq!(views.queued(), 0);
    }

    #[test]
    fn without_redis_a_share_is_allowed_and_what_is_not_refilled_is_told_afterwards() {
        let (views, both) = (Views::default(), both(1, 9));
        assert_eq!([(); 4].map(|()| fall_back(&views, &both, 1, 0)), [true, true, true, false]);
        assert!(fall_back(&views, &both, 1, 2 * SECOND));
        let mut owed = Vec::new();
        views.collect(10, &mut owed);
        assert_eq!(owed[0].tokens, 2, "of four, two are refilled");
    }

    #[test]
    fn what_a_share_gets_back_can_be_taken_again_and_is_not_told() {
        let (views, both) = (Views::default(), both(1, 9));
        let take = || views.fall_back(&both.limits(), key(1), || [0; 16], 1, 0, 0).1;
        let taken: Vec<_> = (0..3).map(|_| take().expect("a share of three")).collect();
        assert!(take().is_none());
        views.give_back(&both.limits(), key(1), 1, &taken[2], 0);
        assert!(take().is_some() && take().is_none());
        for until in &taken {
            views.give_back(&both.limits(), key(1), 1, until, 0);
        }
        let mut owed = Vec::new();
        views.collect(10, &mut owed);
        assert!(owed.is_empty(), "{owed:?}");
    }

    #[test]
    fn until_a_pause_is_over_neither_a_lease_nor_a_share_has_anything_and_then_no_burst() {
        let both = both(3, 9);
        let until = 5 * SECOND;
        let views = Views::default();
        let leased = |now| {
            let lease = Lease { tokens: 9, gives_back: GivesBack::No, paused: until };
            lease_as(&views, &both, 1, lease, now)
        };
        assert_eq!([leased(0), leased(until)], [Some(false); 2]);
        // A word of Redis that was not told of it changes nothing.
        views.learn(&both.limits(), key(1), [0; 16], &Word { spent: &[0], at: 0, order: 1 });
        assert_eq!([leased(0), leased(until)], [Some(false); 2]);
        assert_eq!(
            [leased(until + SECOND / 3 + 1), leased(until + SECOND / 3 + 1)],
            [Some(true), Some(false)]
        );

        let views = Views::default();
        let shared = |now| {
            let (decision, _) = views.fall_back(&both.limits(), key(1), || [0; 16], 1, until, now);
            decision.allowed
        };
        assert_eq!([shared(0), shared(until)], [false; 2]);
        // In this test a share has a smaller bucket, and the whole rate.
        assert_eq!([shared(until + SECOND / 3 + 1), shared(until + SECOND / 3 + 1)], [true, false]);
    }

    #[test]
    fn what_goes_back_to_redis_has_a_bound() {
        let views = Views::default();
        let returned = || Returned { key: key(1), digest: [0; 16], tokens: 1, since: 0, spent: Spent::new() };
        assert!((0..MOST_RETURNED).all(|_| views.return_to_redis(returned())));
        assert!(!views.return_to_redis(returned()));
        let mut collected = Vec::new();
        views.collect_returned(usize::MAX, &mut collected);
        assert_eq!((collected.len(), views.queued()), (MOST_RETURNED, 0));
    }

    #[test]
    fn a_share_counts_what_redis_has_said_before() {
        let (views, both) = (Views::default(), both(1, 9));
        let (_, token) = both.whole.windows()[0].quota.units();
        let spent = [8 * u128::from(token)];
        views.learn(&both.limits(), key(1), [0; 16], &Word { spent: &spent, at: 0, order: 1 });
        assert!(!fall_back(&views, &both, 1, 0));
    }

    #[test]
    fn made_up_keys_do_not_push_out_who_is_in_debt() {
        // They did, in the order in which they had come.
        let (views, mut both) = (Views::default(), both(1, 9));
        both.room = 256;
        let ask = |number| views.fall_back(&both.limits(), key(number), || [0; 16], 1, 0, 0).0.allowed;
        assert_eq!([ask(0), ask(0), ask(0), ask(0)], [true, true, true, false]);
        for number in 1..500 {
            ask(number);
        }
        assert!(!ask(0), "a fresh bucket");
        // When all are as deep in debt, it gains one request.
        for number in 500..20_000 {
            ask(number);
        }
        assert!([ask(0), ask(0), ask(0)].iter().filter(|allowed| **allowed).count() <= 1);
    }

    #[test]
    fn a_million_keys_stay_within_the_room_and_none_is_refused_its_first_request() {
        let (views, mut both) = (Views::default(), both(1, 9));
        both.room = 1_024;
        let most = 1_024_usize.next_multiple_of(shard_count());
        for number in 0..200_000 {
            assert!(fall_back(&views, &both, number, 0), "{number}");
        }
        assert!(views.keys() <= most, "{}", views.keys());
        let views = Views::default();
        let asked = (0..10_000).filter(|number| lease(&views, &both, *number, 3, 0).is_none()).count();
        assert!(views.keys() <= most && asked > 8_000, "{} known, {asked} asked", views.keys());
    }

    #[test]
    fn a_refusal_is_repeated_for_a_second_at_most_and_only_while_it_is_sure() {
        let (views, both) = (Views::default(), both(1, 1));
        let (_, token) = both.whole.windows()[0].quota.units();
        let spent = [5 * u128::from(token)];
        views.learn(&both.limits(), key(1), [0; 16], &Word { spent: &spent, at: 0, order: 1 });
        let refused = |now| views.refusal(&both.limits(), key(1), 1, now, KNOWN_FOR).is_some();
        assert!(refused(0) && refused(SECOND));
        assert!(!refused(SECOND + 1), "somebody may have deleted the key");
        let spent = [u128::from(token)];
        views.learn(&both.limits(), key(1), [0; 16], &Word { spent: &spent, at: 0, order: 2 });
        assert!(refused(SECOND - 1) && !refused(SECOND));
    }

    /// What happens to a replica.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        /// A request comes.
        Request,
        /// What is unheard of is put on its way.
        Send,
        /// Redis hears the oldest of it.
        Hear,
        /// The oldest answer arrives.
        Arrive,
        /// The oldest on its way is lost: perhaps before Redis heard it.
        Lose,
        /// The oldest request that a token is held for is answered, and counts or does not.
        Answer(bool),
    }

    fn events() -> impl Strategy<Value = Vec<(u64, usize, Event)>> {
        let event = prop_oneof![
            12 => Just(Event::Request),
            2 => Just(Event::Send),
            2 => Just(Event::Hear),
            2 => Just(Event::Arrive),
            1 => Just(Event::Lose),
            6 => any::<bool>().prop_map(Event::Answer),
        ];
        let gap = prop_oneof![6 => Just(0_u64), 3 => 0..20_000_000_u64, 1 => 0..900_000_000_u64];
        prop::collection::vec((gap, 0..REPLICAS, event), 1..400)
    }

    const REPLICAS: usize = 3;

    #[derive(Default)]
    struct Wire {
        sent: VecDeque<Owed>,
        answers: VecDeque<(Owed, u128, Nanos)>,
        /// When those were allowed that are not answered.
        held: VecDeque<Nanos>,
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

        /// Redis is a bucket here, and its answers take as long as they like.
        #[test]
        fn replicas_exceed_the_limit_by_no_more_than_their_leases(
            average in 1..50_u64, burst in 1..30_u64, tokens in 1..8_u64, holds in any::<bool>(),
            queue in 0..10_u64, events in events(),
        ) {
            // What may wait for its turn counts when that comes.
            let queue = if holds { 0 } else { queue };
            let mut both = both(average, burst);
            for limit in [&mut both.whole, &mut both.share] {
                *limit = Limit::new(limit.windows().iter().map(|window| Window {
                    quota: window.quota.queueing(Duration::from_secs(60), queue),
                    ..window.clone()
                }));
            }
            let gives_back = if holds { GivesBack::Perhaps } else { GivesBack::No };
            let lease = Lease { tokens, gives_back, paused: 0 };
            let quota = both.whole.windows()[0].quota;
            let views: Vec<Views> = (0..REPLICAS).map(|_| Views::default()).collect();
            let mut wires: Vec<Wire> = (0..REPLICAS).map(|_| Wire::default()).collect();
            let (mut now, mut redis, mut allowed) = (0_u64, 0_u128, Vec::<Nanos>::new());
            for (gap, replica, event) in events {
                // Redis does one thing at a time.
                now += gap + 1_000;
                let (views, wire) = (&views[replica], &mut wires[replica]);
                match event {
                    Event::Request => match views.lease(&both.limits(), key(1), || [0; 16], 1, lease, now) {
                        Some((decision, _)) if decision.allowed && holds => wire.held.push_back(now),
                        Some((decision, _)) if decision.allowed => allowed.push(now + decision.wait),
                        Some(_) => {}
                        None => {
                            // Asked and answered at once.
                            let take = quota.take(redis, 1, now);
                            if quota.bears(take.lacking) {
                                redis = take.full_at;
                                allowed.push(now + quota.refill_time(take.lacking));
                            }
                            let spent = [quota.spent(redis, now)];
                            let word = Word { spent: &spent, at: now, order: now / 1_000 };
                            views.learn(&both.limits(), key(1), [0; 16], &word);
                        }
                    },
                    Event::Send => {
                        let mut owed = Vec::new();
                        views.collect(1, &mut owed);
                        wire.sent.extend(owed);
                    }
                    Event::Hear => if let Some(owed) = wire.sent.pop_front() {
                        let (_, token) = quota.units();
                        let spent = quota.spent(redis, now) + u128::from(owed.tokens) * u128::from(token);
                        redis = quota.state(spent, now);
                        wire.answers.push_back((owed, spent, now));
                    },
                    Event::Arrive => if let Some((owed, spent, at)) = wire.answers.pop_front() {
                        let spent = [spent];
                        views.told(&both.limits(), &owed, &Word { spent: &spent, at: now, order: at / 1_000 });
                    },
                    Event::Lose => if let Some((owed, ..)) = wire.answers.pop_front() {
                        views.not_told(&owed);
                    } else if let Some(owed) = wire.sent.pop_front() {
                        views.not_told(&owed);
                    },
                    Event::Answer(counts) => if let Some(since) = wire.held.pop_front() {
                        if counts {
                            views.counted(&both.limits(), key(1), 1, now);
                            allowed.push(since);
                        } else {
                            views.released(key(1), 1);
                        }
                    },
                }
            }
            // Who is not answered may count yet.
            allowed.extend(wires.iter().flat_map(|wire| &wire.held));
            allowed.sort_unstable();
            for (first, start) in allowed.iter().enumerate() {
                for (last, end) in allowed.iter().enumerate().skip(first) {
                    let count = (last - first + 1) as u64;
                    let brought = u128::from(average) * u128::from(end - start);
                    let most = u128::from(burst + REPLICAS as u64 * tokens) * u128::from(SECOND) + brought;
                    prop_assert!(u128::from(count) * u128::from(SECOND) <= most, "{count} from {start} to {end}");
                }
            }
        }
    }
}
