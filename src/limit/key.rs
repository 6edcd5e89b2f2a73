//! What a limit counts by, made small and harmless.
//!
//! Keys come from clients, who may choose millions of them, of any length, and so that they collide
//! in a table. A key is therefore kept as 128 bits of SipHash under a secret drawn at start: every
//! key costs the same memory, and none can be chosen to land beside another.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

/// One part of what a limit counts by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part<'a> {
    /// A client's address, or a prefix with its host bits cleared.
    Addr(IpAddr),
    /// A header's value, a host, a claim, a router's name.
    Bytes(&'a [u8]),
}

/// A fingerprint of one or several parts, the same for the life of the process.
///
/// Two different keys share one with a chance of about 2^-128 a pair.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LimitKey([u64; 2]);

static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl LimitKey {
    /// The key of these parts in this order. Cost: two SipHash passes, no allocation.
    pub fn of(parts: &[Part<'_>]) -> Self {
        // The first byte keeps the two halves apart: one secret, two unrelated values.
        Self([digest(0, parts), digest(1, parts)])
    }

    /// The half that picks the shard.
    pub(super) fn high(self) -> u64 {
        self.0[0]
    }
}

fn digest(half: u8, parts: &[Part<'_>]) -> u64 {
    let mut hasher = SECRET.build_hasher();
    hasher.write_u8(half);
    for part in parts {
        // The kind and the length go in as well, so that no two lists of parts read the same.
        match part {
            Part::Addr(IpAddr::V4(addr)) => hasher.write_u64(4 << 32 | u64::from(u32::from(*addr))),
            Part::Addr(IpAddr::V6(addr)) => {
                hasher.write_u8(6);
                hasher.write(&addr.octets());
            }
            Part::Bytes(bytes) => {
                hasher.write_u8(1);
                hasher.write_usize(bytes.len());
                hasher.write(bytes);
            }
        }
    }
    hasher.finish()
}

/// Takes a part of the key for its hash, which it is already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fingerprint;

impl BuildHasher for Fingerprint {
    type Hasher = Taken;

    fn build_hasher(&self) -> Taken {
        Taken(0)
    }
}

/// The last word written.
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn write(&mut self, bytes: &[u8]) {
        // Arrays of u64 arrive here as their bytes; the tail is the half that picks the place.
        if let Some(tail) = bytes.last_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*tail);
        }
    }

    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_parts_give_the_same_key_and_others_another() {
        let addr = |text: &str| Part::Addr(text.parse().expect("an address"));
        let distinct = [
            LimitKey::of(&[]),
            LimitKey::of(&[addr("10.0.0.1")]),
            LimitKey::of(&[addr("10.0.0.2")]),
            LimitKey::of(&[addr("::ffff:10.0.0.1")]),
            LimitKey::of(&[Part::Bytes(b"10.0.0.1")]),
            LimitKey::of(&[Part::Bytes(b"")]),
            LimitKey::of(&[Part::Bytes(b"ab"), Part::Bytes(b"c")]),
            LimitKey::of(&[Part::Bytes(b"a"), Part::Bytes(b"bc")]),
            LimitKey::of(&[Part::Bytes(b"abc")]),
        ];
        for (i, a) in distinct.iter().enumerate() {
            for (j, b) in distinct.iter().enumerate() {
                assert_eq!(a == b, i == j, "{i} and {j}");
            }
        }
        assert_eq!(LimitKey::of(&[Part::Bytes(b"abc")]), distinct[8]);
    }

    #[test]
    fn the_table_places_a_key_by_its_own_bits() {
        let key = LimitKey::of(&[Part::Bytes(b"someone")]);
        assert_eq!(Fingerprint.hash_one(key), key.0[1]);
        assert_ne!(key.0[1], key.high());
    }
}
