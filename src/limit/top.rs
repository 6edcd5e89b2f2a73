//! The keys that a limit refuses most often, in a bounded sketch.
//!
//! Space saving: when a key comes that has no place, it takes the place of the rarest one and its count, as
//! what it may have had at most. So a key that makes up more than a 64th of all refusals is always in it.
//! Counts are halved every few minutes: it shows who is refused now.

use super::key::{KeyBytes, LimitKey};
use super::quota::Nanos;

/// Keys kept.
const PLACES: usize = 64;

/// After so long a count is half of what it was.
const HALF_LIFE: Nanos = 300 * 1_000_000_000;

/// Bytes of a part that are shown; the rest is cut.
const SHOWN: usize = 64;

/// How a key is shown to operators.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Show {
    /// As it is.
    #[default]
    Plain,
    /// As a number that stands for it until the process ends.
    Hashed,
}

/// A key that was refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TopKey {
    /// As it is to be shown.
    pub key: String,
    /// Refusals, the older half as much; at most this many.
    pub refused: u64,
    /// And at least so many fewer.
    pub error: u64,
}

#[derive(Debug, Default)]
pub(super) struct Top {
    places: Vec<Place>,
    halved: Nanos,
}

#[derive(Debug)]
struct Place {
    key: LimitKey,
    count: u64,
    error: u64,
    text: String,
}

impl Top {
    /// Counts a refusal. Cost: a look at 64 places; memory only for a key that was not there.
    pub(super) fn note(&mut self, now: Nanos, key: LimitKey, bytes: &KeyBytes, show: Show) {
        let halvings = now.saturating_sub(self.halved) / HALF_LIFE;
        if halvings > 0 {
            self.halved = now;
            let shift = u32::try_from(halvings.min(63)).unwrap_or(63);
            for place in &mut self.places {
                (place.count, place.error) = (place.count >> shift, place.error >> shift);
            }
            self.places.retain(|place| place.count > 0);
        }
        if let Some(place) = self.places.iter_mut().find(|place| place.key == key) {
            place.count += 1;
            return;
        }
        let text = match show {
            Show::Plain => bytes.text(SHOWN),
            Show::Hashed => format!("#{:016x}", key.bits()),
        };
        if self.places.len() < PLACES {
            self.places.push(Place { key, count: 1, error: 0, text });
        } else if let Some(rarest) = self.places.iter_mut().min_by_key(|place| place.count) {
            *rarest = Place { key, count: rarest.count + 1, error: rarest.count, text };
        }
    }

    /// The keys, the most refused first.
    pub(super) fn list(&self) -> Vec<TopKey> {
        let mut list: Vec<_> = self
            .places
            .iter()
            .map(|place| TopKey { key: place.text.clone(), refused: place.count, error: place.error })
            .collect();
        list.sort_by(|a, b| b.refused.cmp(&a.refused).then_with(|| a.key.cmp(&b.key)));
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Part;

    fn note(top: &mut Top, now: Nanos, name: &str, show: Show) {
        let bytes = KeyBytes::of(&[Part::Bytes(name.as_bytes())]);
        top.note(now, LimitKey::of_bytes(&bytes), &bytes, show);
    }

    #[test]
    fn whoever_is_refused_most_is_seen_among_thousands() {
        let mut top = Top::default();
        for round in 0..10_000 {
            note(&mut top, 0, &format!("one of many {round}"), Show::Plain);
            if round % 10 == 0 {
                note(&mut top, 0, "the loudest", Show::Plain);
            }
        }
        let list = top.list();
        assert_eq!(list.len(), PLACES);
        assert_eq!(list[0].key, "the loudest");
        assert!(list[0].refused >= 1_000 && list[0].refused - list[0].error <= 1_000);
    }

    #[test]
    fn old_refusals_fade_and_vanish() {
        let mut top = Top::default();
        for _ in 0..8 {
            note(&mut top, 0, "yesterday", Show::Plain);
        }
        note(&mut top, 2 * HALF_LIFE, "today", Show::Plain);
        let counts: Vec<_> = top.list().into_iter().map(|top| (top.key, top.refused)).collect();
        assert_eq!(counts, [("yesterday".to_owned(), 2), ("today".to_owned(), 1)]);
        note(&mut top, u64::MAX, "the end", Show::Plain);
        assert_eq!(top.list().len(), 1);
    }

    #[test]
    fn a_hashed_key_does_not_show_what_it_is() {
        let mut top = Top::default();
        note(&mut top, 0, "secret", Show::Hashed);
        let list = top.list();
        assert!(list[0].key.starts_with('#') && !list[0].key.contains("secret"));
    }
}
