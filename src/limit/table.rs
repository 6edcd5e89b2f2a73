//! States of buckets by key, in fixed memory.
//!
//! Sets of eight places; a key may be in either of two sets that its bits name, so that a table is nearly
//! full before a key finds no place. A table grows by doubling up to its bound; a bucket that is full
//! again says nothing, and its place is taken by the next key that needs it. At the bound, the one of
//! sixteen that will be full soonest makes room. No chains and no probing: a look-up reads two sets at
//! most, whatever keys are in it.

use super::quota::{FULL_AT_BITS, Nanos};

/// Places of a set: their tags are one cache line.
pub(super) const WAYS: usize = 8;

/// Bytes of a set.
pub(super) const SET_BYTES: usize = size_of::<Set>();

/// A bucket as it is kept: when it will be full, in units of the quota of this number.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct State {
    pub(super) full_at: u128,
    pub(super) quota: u8,
}

impl State {
    fn pack(self) -> [u64; 2] {
        let all = u128::from(self.quota) << FULL_AT_BITS | self.full_at & ((1 << FULL_AT_BITS) - 1);
        [(all >> 64) as u64, all as u64]
    }

    fn unpack([high, low]: [u64; 2]) -> Self {
        let all = u128::from(high) << 64 | u128::from(low);
        Self { full_at: all & ((1 << FULL_AT_BITS) - 1), quota: (all >> FULL_AT_BITS) as u8 }
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Set {
    /// 0: the place is free.
    tags: [u64; WAYS],
    states: [[u64; 2]; WAYS],
}

const EMPTY: Set = Set { tags: [0; WAYS], states: [[0; 2]; WAYS] };

/// Where a bucket is, until the table is changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Place {
    set: usize,
    way: usize,
}

/// Buckets by tag.
#[derive(Debug, Default)]
pub(super) struct Table {
    sets: Vec<Set>,
    held: usize,
    evicted: u64,
}

impl Table {
    /// Where this tag is, if it is.
    pub(super) fn find(&self, tag: u64) -> Option<Place> {
        let tag = tag.max(1);
        let (first, second) = self.addresses(tag)?;
        [first, second].into_iter().find_map(|set| {
            let way = self.sets[set].tags.iter().position(|held| *held == tag)?;
            Some(Place { set, way })
        })
    }

    pub(super) fn state(&self, place: Place) -> State {
        State::unpack(self.sets[place.set].states[place.way])
    }

    pub(super) fn set(&mut self, place: Place, state: State) {
        self.sets[place.set].states[place.way] = state.pack();
    }

    /// Makes a place for a tag that has none, within `most` sets. Gives the state that had to make room, if
    /// one had to.
    ///
    /// `forgets_at` says when a bucket will be full again. What stands in the place is to be overwritten.
    pub(super) fn insert(
        &mut self,
        tag: u64,
        most: usize,
        now: Nanos,
        forgets_at: impl Fn(State) -> Nanos + Copy,
    ) -> (Place, Option<State>) {
        let tag = tag.max(1);
        let most = most.max(1);
        if self.sets.len() > most {
            self.rebuild(most, most, now, forgets_at);
        }
        loop {
            let Some((first, second)) = self.addresses(tag) else {
                self.rebuild(next_size(0, most), most, now, forgets_at);
                continue;
            };
            if let Some(place) = self.free(first, second) {
                self.held += 1;
                self.sets[place.set].tags[place.way] = tag;
                return (place, None);
            }
            let (place, soonest) = self.soonest(first, second, forgets_at);
            if soonest <= now {
                self.sets[place.set].tags[place.way] = tag;
                return (place, None);
            }
            if let Some(place) = self.make_way(first, second, |_| false) {
                self.sets[place.set].tags[place.way] = tag;
                return (place, None);
            }
            if self.sets.len() < most {
                self.rebuild(next_size(self.sets.len(), most), most, now, forgets_at);
                continue;
            }
            if let Some(place) = self.make_way(first, second, |state| forgets_at(state) <= now) {
                self.sets[place.set].tags[place.way] = tag;
                return (place, None);
            }
            let evicted = self.state(place);
            self.evicted += 1;
            self.sets[place.set].tags[place.way] = tag;
            return (place, Some(evicted));
        }
    }

    /// Buckets held, those that are full again and were not yet dropped included.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Buckets that were pushed out while they were in debt.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Bytes in use.
    pub(super) fn bytes(&self) -> usize {
        self.sets.len() * SET_BYTES
    }

    /// Gives each state to `change` and keeps what it makes of it.
    pub(super) fn change(&mut self, change: impl Fn(State) -> State) {
        for set in &mut self.sets {
            for (tag, state) in set.tags.iter().zip(&mut set.states) {
                if *tag != 0 {
                    *state = change(State::unpack(*state)).pack();
                }
            }
        }
    }

    /// The two sets that a tag may be in; `None` before there is any.
    fn addresses(&self, tag: u64) -> Option<(usize, usize)> {
        let sets = self.sets.len() as u64;
        let place = |bits: u64| (((bits >> 32) * sets) >> 32) as usize;
        // An odd number near 2^64 divided by the golden ratio: the second place is unrelated to the first.
        (sets > 0).then(|| (place(tag), place(tag.wrapping_mul(0x9E37_79B9_7F4A_7C15))))
    }

    /// A free place: in the set with more of them.
    fn free(&self, first: usize, second: usize) -> Option<Place> {
        let free = |set: usize| self.sets[set].tags.iter().filter(|tag| **tag == 0).count();
        let set = if free(first) >= free(second) { first } else { second };
        let way = self.sets[set].tags.iter().position(|tag| *tag == 0)?;
        Some(Place { set, way })
    }

    /// Moves somebody whose other set has a free place, or one that is `over`, and gives its own.
    fn make_way(&mut self, first: usize, second: usize, over: impl Fn(State) -> bool) -> Option<Place> {
        for set in [first, second] {
            for way in 0..WAYS {
                let tag = self.sets[set].tags[way];
                let (one, other) = self.addresses(tag)?;
                let elsewhere = if set == one { other } else { one };
                if elsewhere == first || elsewhere == second {
                    continue;
                }
                let there = &self.sets[elsewhere];
                let free =
                    (0..WAYS).find(|way| there.tags[*way] == 0 || over(State::unpack(there.states[*way])));
                if let Some(free) = free {
                    self.held += usize::from(there.tags[free] == 0);
                    let state = self.sets[set].states[way];
                    self.sets[elsewhere].tags[free] = tag;
                    self.sets[elsewhere].states[free] = state;
                    return Some(Place { set, way });
                }
            }
        }
        None
    }

    /// The one in these two sets that will be full soonest.
    fn soonest(&self, first: usize, second: usize, forgets_at: impl Fn(State) -> Nanos) -> (Place, Nanos) {
        let mut best = (Place { set: first, way: 0 }, Nanos::MAX);
        for set in [first, second] {
            for way in 0..WAYS {
                let place = Place { set, way };
                let at = forgets_at(self.state(place));
                if at < best.1 {
                    best = (place, at);
                }
            }
        }
        best
    }

    /// Moves everything that is still in debt into so many sets, or, while `most` allows it, into as many more
    /// as all of it needs.
    #[cold]
    fn rebuild(
        &mut self,
        mut sets: usize,
        most: usize,
        now: Nanos,
        forgets_at: impl Fn(State) -> Nanos + Copy,
    ) {
        let before = self.evicted;
        loop {
            let new = self.moved(sets, now, forgets_at);
            if new.evicted == before || sets >= most {
                *self = new;
                return;
            }
            sets = next_size(sets, most);
        }
    }

    fn moved(&self, sets: usize, now: Nanos, forgets_at: impl Fn(State) -> Nanos + Copy) -> Self {
        let mut new = Self { sets: vec![EMPTY; sets], held: 0, evicted: self.evicted };
        for set in &self.sets {
            for (tag, packed) in set.tags.iter().zip(&set.states) {
                let state = State::unpack(*packed);
                let at = forgets_at(state);
                if *tag == 0 || at <= now {
                    continue;
                }
                let Some((first, second)) = new.addresses(*tag) else { continue };
                let place = match new.free(first, second) {
                    Some(place) => {
                        new.held += 1;
                        Some(place)
                    }
                    None => new.make_way(first, second, |_| false),
                };
                let place = match place {
                    Some(place) => place,
                    None => {
                        new.evicted += 1;
                        let (place, soonest) = new.soonest(first, second, forgets_at);
                        if soonest >= at {
                            continue;
                        }
                        place
                    }
                };
                new.sets[place.set].tags[place.way] = *tag;
                new.set(place, state);
            }
        }
        new
    }
}

/// The next larger size on the way to `most`, each about twice the one before.
fn next_size(size: usize, most: usize) -> usize {
    let mut next = most;
    while next.div_ceil(2) > size && next > 1 {
        next = next.div_ceil(2);
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(number: u64) -> u64 {
        crate::limit::LimitKey::of(&[crate::limit::Part::Bytes(&number.to_le_bytes())]).bits()
    }

    fn debt(at: Nanos) -> State {
        State { full_at: u128::from(at), quota: 0 }
    }

    fn at(state: State) -> Nanos {
        state.full_at as Nanos
    }

    #[test]
    fn a_state_comes_back_as_it_went_in() {
        for full_at in [0, 1, u128::from(u64::MAX) + 5, (1 << FULL_AT_BITS) - 1] {
            for quota in [0, 1, 254, 255] {
                let state = State { full_at, quota };
                assert_eq!(State::unpack(state.pack()), state);
            }
        }
    }

    #[test]
    fn what_is_put_is_found_through_all_growth() {
        let mut table = Table::default();
        for number in 0..5_000 {
            assert_eq!(table.find(tag(number)), None);
            let (place, evicted) = table.insert(tag(number), 1_000, 0, at);
            assert_eq!(evicted, None, "there is room");
            table.set(place, debt(1 + number));
        }
        for number in 0..5_000 {
            let place = table.find(tag(number)).expect("held");
            assert_eq!(table.state(place), debt(1 + number));
        }
        assert_eq!((table.held(), table.evicted()), (5_000, 0));
    }

    #[test]
    fn a_table_is_nearly_full_before_a_debt_is_lost() {
        const SETS: usize = 1_000;
        let mut table = Table::default();
        let lost_at = (0..).find(|number| {
            let (place, evicted) = table.insert(tag(*number), SETS, 0, at);
            table.set(place, debt(u64::MAX));
            evicted.is_some()
        });
        let filled = lost_at.expect("it ends") as usize * 100 / (SETS * WAYS);
        assert!(filled >= 90, "{filled} %");
        assert!(table.bytes() <= SETS * SET_BYTES);
    }

    #[test]
    fn whoever_is_full_again_makes_room_first_and_then_whoever_will_be_soonest() {
        let mut table = Table::default();
        // One set: all keys are in it.
        for number in 0..WAYS as u64 {
            let (place, _) = table.insert(tag(number), 1, 0, at);
            table.set(place, debt(100 + number));
        }
        let (place, evicted) = table.insert(tag(90), 1, 100, at);
        assert_eq!(evicted, None, "the first had nothing left to remember");
        table.set(place, debt(500));
        let (place, evicted) = table.insert(tag(91), 1, 100, at);
        assert_eq!(evicted, Some(debt(101)));
        table.set(place, debt(500));
        assert!(table.find(tag(0)).is_none() && table.find(tag(1)).is_none());
        assert!((2..WAYS as u64).all(|number| table.find(tag(number)).is_some()));
    }

    #[test]
    fn a_lowered_bound_keeps_the_deepest_debts() {
        let mut table = Table::default();
        for number in 0..4_000 {
            let (place, _) = table.insert(tag(number), 600, 0, at);
            table.set(place, debt(1 + number));
        }
        table.insert(tag(9_999), 300, 0, at);
        assert!(table.bytes() <= 300 * SET_BYTES);
        let kept = (2_000..4_000).filter(|number| table.find(tag(*number)).is_some()).count();
        assert!(kept > 1_700, "{kept} of the 2,000 deepest");
    }

    #[test]
    fn sizes_double_and_end_at_the_bound() {
        let sizes = |most| {
            let mut sizes = vec![next_size(0, most)];
            while *sizes.last().expect("one") < most {
                sizes.push(next_size(*sizes.last().expect("one"), most));
            }
            sizes
        };
        assert_eq!(sizes(1), [1]);
        assert_eq!(sizes(7), [1, 2, 4, 7]);
        assert_eq!(sizes(1_000), [1, 2, 4, 8, 16, 32, 63, 125, 250, 500, 1_000]);
    }
}
