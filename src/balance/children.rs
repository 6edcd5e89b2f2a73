//! `highestRandomWeight` services: which child a client belongs to.

use crate::balance::rendezvous;
use crate::endpoint::tag::Tag;

/// The children of a `highestRandomWeight` service, by their place in its list.
#[derive(Debug)]
pub struct HashedChildren(Box<[(Tag, u32)]>);

impl HashedChildren {
    /// Names and weights of the children; one with 0 gets nothing.
    pub fn new<'n>(children: impl Iterator<Item = (&'n str, u32)>) -> Self {
        Self(children.map(|(name, weight)| (Tag::of(name), weight)).collect())
    }

    /// The child that `key` belongs to, of those that are `usable`: only the clients of one that is not
    /// go elsewhere.
    pub fn pick(&self, key: u64, usable: impl Fn(usize) -> bool) -> Option<usize> {
        let children = self.0.iter().enumerate().filter(|(place, _)| usable(*place));
        rendezvous::place(key, children.map(|(place, (tag, weight))| (place, tag.number(), *weight)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::key::hash;

    #[test]
    fn clients_are_shared_by_weight_and_stay_when_another_child_is_away() {
        let children = HashedChildren::new([("a", 3), ("b", 1), ("none", 0)].into_iter());
        let keys: Vec<u64> = (0..4_000_u32).map(|number| hash(&number.to_be_bytes())).collect();
        let homes: Vec<_> = keys.iter().filter_map(|key| children.pick(*key, |_| true)).collect();
        let first = homes.iter().filter(|home| **home == 0).count();
        assert!((2_850..3_150).contains(&first), "{first} of 4,000, with a weight of 3 in 4");
        assert!(!homes.contains(&2));
        for key in keys {
            assert_eq!(children.pick(key, |child| child != 0), Some(1));
            assert_eq!(children.pick(key, |_| false), None);
        }
    }
}
