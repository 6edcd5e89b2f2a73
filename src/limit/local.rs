//! Buckets in memory: sharded, of fixed size, and never a cheap way to a fresh bucket.
//!
//! **What is kept.** A bucket that is full again says nothing, and the next key that needs its place has it.
//! When every place that a newcomer may have is in debt, the one that will be full soonest makes room,
//! and the newcomer **takes over its debt**, less one request. So
//! - a newcomer's first request passes, as it would in a store without a bound;
//! - pushing one's own bucket out takes a table of other keys that are deeper in debt, and then gains one
//!   request, not a burst.
//!
//! Memory: [`BYTES_PER_BUCKET`] at the bound; nothing before the first key. Never: the clock.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::decision::{Decision, Limit, MAX_WINDOWS, Taken};
use super::key::{KeyBytes, LimitKey};
use super::quota::{Nanos, Quota, Take};
use super::table::{Place, SET_BYTES, State, Table, WAYS};
use super::top::{Show, Top, TopKey};

/// Keys that a store keeps unless told otherwise; Traefik's number.
pub const DEFAULT_MAX_KEYS: NonZeroUsize = NonZeroUsize::new(65_536).expect("not zero");

/// Memory of one bucket in a store at its bound: a place of 24 bytes, and an eighth more places than buckets,
/// so that nearly all of them find one.
pub const BYTES_PER_BUCKET: usize = SET_BYTES / WAYS * 9 / 8;

/// Different quotas that a store tells apart at once; the number stands in one byte of each bucket.
const MAX_QUOTAS: usize = 255;

/// Buckets of a shard; more shards instead, so that none holds a core up when it grows (about 0.2 ms).
const SHARD_BUCKETS: usize = 16_384;

/// Keeps a lock and what it guards off its neighbours' cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Padded<T>(pub(super) T);

/// Four shards a core keep the chance small that two cores want the same one; a power of two.
pub(super) fn shard_count() -> usize {
    static COUNT: LazyLock<usize> = LazyLock::new(|| {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        (4 * cores).next_power_of_two().clamp(8, 256)
    });
    *COUNT
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Bound {
    sets: usize,
}

impl Bound {
    /// Room for so many buckets: keys times windows.
    pub fn buckets(buckets: NonZeroUsize) -> Self {
        Self { sets: buckets.get().saturating_add(buckets.get() / 8).div_ceil(WAYS) }
    }

    /// So much memory, rounded to what can be used of it; at least one set a shard.
    pub fn bytes(bytes: usize) -> Self {
        Self { sets: (bytes / SET_BYTES).max(1) }
    }

    /// Bytes of all its places.
    pub fn to_bytes(self) -> usize {
        self.sets.saturating_mul(SET_BYTES)
    }

    fn shards(self) -> usize {
        let wanted = self.sets.saturating_mul(WAYS) / SHARD_BUCKETS;
        wanted.clamp(shard_count(), 1 << 14).next_power_of_two()
    }
}

/// What a store has decided since it was made.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Requests with a token at once.
    pub admitted: u64,
    /// Requests held back for their token.
    pub delayed: u64,
    /// Requests without.
    pub refused: u64,
    /// Buckets pushed out while they were in debt; more than a few mean that the bound is too small.
    pub evicted: u64,
    /// Buckets held now.
    pub buckets: u64,
    /// Memory of their tables.
    pub bytes: u64,
}

/// Buckets by key.
pub struct Store {
    /// A power of two; made when the first key comes.
    shards: OnceLock<Box<[Padded<Mutex<Shard>>]>>,
    shard_count: usize,
    /// What the numbers in the buckets mean.
    quotas: ArcSwap<Vec<Quota>>,
    /// How many limits use each of them.
    users: Mutex<Vec<usize>>,
    /// The newest generation whose limits have converted buckets to each of them; made when the first does.
    converted: OnceLock<Box<[AtomicU32]>>,
    /// Of the limits that are bound from now on.
    generation: AtomicU32,
    top: Mutex<Top>,
}

#[derive(Debug, Default)]
struct Shard {
    table: Table,
    admitted: u64,
    delayed: u64,
    refused: u64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl Store {
    /// An empty store, with as many shards as suit this bound.
    pub fn new(bound: Bound) -> Self {
        Self {
            shards: OnceLock::new(),
            shard_count: bound.shards(),
            quotas: ArcSwap::from_pointee(Vec::new()),
            users: Mutex::default(),
            converted: OnceLock::new(),
            generation: AtomicU32::new(0),
            top: Mutex::default(),
        }
    }

    /// Limits that are bound from now on belong to this generation of the configuration: where cores change over
    /// one after the other, the newer limit decides about a bucket that it has touched.
    pub fn begin_generation(&self, generation: u32) {
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Keeps a key that was refused for [`Store::top`]; not when another core is at it, rather than wait.
    pub fn note_refused(&self, now: Nanos, key: LimitKey, bytes: &KeyBytes, show: Show) {
        if let Some(mut top) = self.top.try_lock() {
            top.note(now, key, bytes, show);
        }
    }

    /// The keys that are refused most often, the most refused first; a bounded sketch.
    pub fn top(&self) -> Vec<TopKey> {
        self.top.lock().list()
    }

    /// What was decided so far. Cost: one lock a shard.
    pub fn counts(&self) -> Counts {
        self.shards.get().into_iter().flatten().fold(Counts::default(), |sum, shard| {
            let shard = shard.0.lock();
            Counts {
                admitted: sum.admitted + shard.admitted,
                delayed: sum.delayed + shard.delayed,
                refused: sum.refused + shard.refused,
                evicted: sum.evicted + shard.table.evicted(),
                buckets: sum.buckets + shard.table.held() as u64,
                bytes: sum.bytes + shard.table.bytes() as u64,
            }
        })
    }

    fn shard(&self, key: LimitKey) -> &Mutex<Shard> {
        // The number of shards is a power of two. A table places a key by its other bits.
        let shards = self.shards();
        &shards[key.bits() as usize & (shards.len() - 1)].0
    }

    fn shards(&self) -> &[Padded<Mutex<Shard>>] {
        self.shards.get_or_init(|| (0..self.shard_count).map(|_| Padded::default()).collect())
    }

    fn converted(&self) -> &[AtomicU32] {
        self.converted.get_or_init(|| (0..MAX_QUOTAS).map(|_| AtomicU32::new(0)).collect())
    }

    /// The number of a quota, which stays its own while somebody uses it. `None` when too many are in use.
    fn register(&self, quota: Quota, now: Nanos) -> Option<u8> {
        let mut users = self.users.lock();
        let mut quotas = Vec::clone(&self.quotas.load());
        let number = match quotas.iter().position(|known| *known == quota) {
            Some(known) => known,
            None if quotas.len() < MAX_QUOTAS => {
                quotas.push(quota);
                users.push(0);
                quotas.len() - 1
            }
            None => {
                let idle = users.iter().position(|users| *users == 0)?;
                users[idle] = 1;
                self.replace(idle, quota, quotas, now);
                return u8::try_from(idle).ok();
            }
        };
        users[number] += 1;
        self.quotas.store(Arc::new(quotas));
        u8::try_from(number).ok()
    }

    /// Gives the number of a quota that nobody uses to another, and converts what is left of it. Holds all
    /// shards meanwhile, so that nobody reads a bucket by the wrong one.
    #[cold]
    fn replace(&self, idle: usize, quota: Quota, mut quotas: Vec<Quota>, now: Nanos) {
        let old = std::mem::replace(&mut quotas[idle], quota);
        let mut shards: Vec<_> = self.shards().iter().map(|shard| shard.0.lock()).collect();
        for shard in &mut shards {
            shard.table.change(|state| match usize::from(state.quota) == idle {
                true => State { full_at: quota.convert(state.full_at, &old, now), ..state },
                false => state,
            });
        }
        self.converted()[idle].store(0, Ordering::Relaxed);
        self.quotas.store(Arc::new(quotas));
    }

    fn release(&self, number: u8) {
        if let Some(users) = self.users.lock().get_mut(usize::from(number)) {
            *users = users.saturating_sub(1);
        }
    }
}

/// A limit whose buckets are in memory.
#[derive(Debug)]
pub struct LocalLimit {
    store: Arc<Store>,
    limit: Arc<Limit>,
    /// The number of each window's quota.
    numbers: Box<[u8]>,
    generation: u32,
    /// Sets of one shard.
    most: usize,
}

impl Drop for LocalLimit {
    fn drop(&mut self) {
        for number in &self.numbers {
            self.store.release(*number);
        }
    }
}

impl LocalLimit {
    /// Binds a limit to the store of its buckets. What is in the store already under another quota is
    /// converted as it is asked for, see [`Quota`]; another bound is reached as keys come.
    ///
    /// `None` when the store is used under more than 255 different quotas at once.
    pub fn new(store: Arc<Store>, limit: Arc<Limit>, bound: Bound, now: Nanos) -> Option<Self> {
        let most = bound.sets.div_ceil(store.shard_count).max(1);
        let generation = store.generation.load(Ordering::Relaxed);
        let mut bound = Self { store, limit, numbers: Box::default(), generation, most };
        let mut numbers = Vec::with_capacity(bound.limit.windows().len());
        for window in bound.limit.windows() {
            match bound.store.register(window.quota, now) {
                Some(number) => numbers.push(number),
                None => {
                    // Dropping it gives back what was taken.
                    bound.numbers = numbers.into();
                    return None;
                }
            }
        }
        bound.numbers = numbers.into();
        Some(bound)
    }

    /// The limit.
    pub fn limit(&self) -> &Arc<Limit> {
        &self.limit
    }

    /// Where its buckets are.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Takes `cost` tokens from every window's bucket of `key`, if all have them, or nearly.
    ///
    /// An earlier `now` than before refills nothing. Cost: one shard lock, one look-up a window; no
    /// allocation but when a table grows.
    pub fn decide(&self, now: Nanos, key: LimitKey, cost: u64) -> Decision {
        self.run(now, key, cost, |_| {})
    }

    /// The same, with a receipt.
    pub fn take(&self, now: Nanos, key: LimitKey, cost: u64) -> (Decision, Taken) {
        let mut taken = Taken { cost, ..Taken::default() };
        let decision = self.run(now, key, cost, |until| taken.until.push(until));
        (decision, taken)
    }

    /// Gives back what was taken, less what time has brought back meanwhile.
    pub fn give_back(&self, now: Nanos, key: LimitKey, taken: &Taken) {
        let mut shard = self.store.shard(key).lock();
        for (index, until) in taken.until.iter().enumerate() {
            let Some(place) = shard.table.find(tag(key, index)) else { continue };
            let state = shard.table.state(place);
            // Under another quota the receipt's units mean nothing: better to keep the tokens than to guess.
            if state.quota == self.numbers[index] {
                let quota = &self.limit.windows()[index].quota;
                let full_at = quota.give_back(state.full_at, taken.cost, *until, now);
                shard.table.set(place, State { full_at, ..state });
            }
        }
    }

    /// Empties the buckets of `key` until `until`; from then on they refill.
    pub fn drain(&self, now: Nanos, key: LimitKey, until: Nanos) {
        let mut shard = self.store.shard(key).lock();
        for (index, window) in self.limit.windows().iter().enumerate() {
            let empty = window.quota.empty(until.max(now));
            let tag = tag(key, index);
            match shard.table.find(tag) {
                Some(place) => {
                    let full_at = self.full_at(shard.table.state(place), index, now).max(empty);
                    shard.table.set(place, State { full_at, quota: self.numbers[index] });
                }
                None => {
                    self.put(&mut shard.table, tag, index, empty, 0, now);
                }
            }
        }
    }

    fn run(&self, now: Nanos, key: LimitKey, cost: u64, mut note: impl FnMut(u128)) -> Decision {
        let windows = self.limit.windows();
        let mut takes = [None::<(Option<Place>, u8, Take)>; MAX_WINDOWS];
        let mut decision = Decision::OPEN;
        let mut shard = self.store.shard(key).lock();
        for (index, window) in windows.iter().enumerate() {
            let mut quota = &window.quota;
            let mut number = self.numbers[index];
            let adopted;
            let place = shard.table.find(tag(key, index));
            let mut full_at = 0;
            if let Some(place) = place {
                let state = shard.table.state(place);
                full_at = state.full_at;
                if state.quota != number {
                    if let Some(newer) = self.newer(state) {
                        adopted = newer;
                        (quota, number) = (&adopted, state.quota);
                    } else {
                        full_at = self.full_at(state, index, now);
                        // Kept although nothing may be taken: what did not fit is forgiven once, not each time.
                        shard.table.set(place, State { full_at, quota: number });
                        self.store.converted()[usize::from(number)]
                            .fetch_max(self.generation, Ordering::Relaxed);
                    }
                }
            }
            let take = quota.take(full_at, cost, now);
            decision.weigh(index, quota, full_at, &take, now);
            takes[index] = Some((place, number, take));
        }
        if !decision.allowed {
            shard.refused += 1;
            return decision;
        }
        if decision.wait == 0 {
            shard.admitted += 1;
        } else {
            shard.delayed += 1;
        }
        if cost == 0 {
            return decision;
        }
        let mut moved = false;
        for (index, take) in takes.iter().take(windows.len()).enumerate() {
            let Some((place, quota, take)) = take else { continue };
            let tag = tag(key, index);
            let place = if moved { shard.table.find(tag) } else { *place };
            let full_at = match place {
                Some(place) => {
                    shard.table.set(place, State { full_at: take.full_at, quota: *quota });
                    take.full_at
                }
                None => {
                    moved = true;
                    self.put(&mut shard.table, tag, index, take.full_at, cost, now)
                }
            };
            note(full_at);
        }
        decision
    }

    /// Puts the first bucket of a key; gives what it then holds.
    fn put(&self, table: &mut Table, tag: u64, index: usize, full_at: u128, cost: u64, now: Nanos) -> u128 {
        let quotas = self.store.quotas.load();
        let forgets_at = |state: State| {
            quotas.get(usize::from(state.quota)).map_or(0, |quota| quota.forgets_at(state.full_at))
        };
        let (place, evicted) = table.insert(tag, self.most, now, forgets_at);
        let own = &self.limit.windows()[index].quota;
        let full_at = match evicted {
            Some(state) => match quotas.get(usize::from(state.quota)) {
                Some(quota) => own.take(own.inherit(state.full_at, quota, cost, now), cost, now).full_at,
                None => full_at,
            },
            None => full_at,
        };
        table.set(place, State { full_at, quota: self.numbers[index] });
        full_at
    }

    /// The quota of a bucket that limits of a newer configuration have taken over already: until this core has
    /// it too, it counts as they do. To convert to and fro would forgive a debt each time.
    #[cold]
    fn newer(&self, state: State) -> Option<Quota> {
        let number = usize::from(state.quota);
        let newer = self.store.converted.get()?.get(number)?.load(Ordering::Relaxed) > self.generation;
        if newer { self.store.quotas.load().get(number).copied() } else { None }
    }

    /// The state under this limit's quota.
    fn full_at(&self, state: State, index: usize, now: Nanos) -> u128 {
        let quota = &self.limit.windows()[index].quota;
        if state.quota == self.numbers[index] {
            return state.full_at;
        }
        let quotas = self.store.quotas.load();
        quotas
            .get(usize::from(state.quota))
            .map_or(state.full_at, |old| quota.convert(state.full_at, old, now))
    }
}

/// Where a window's bucket is; all of a key's are in one shard, because the low bits are the same.
fn tag(key: LimitKey, index: usize) -> u64 {
    key.bits() ^ ((index as u64) << 61)
}

#[cfg(test)]
mod tests;
