//! What a limit counts by: bytes that say it, and for memory a fingerprint of them.
//!
//! Keys come from clients, who may choose millions of them, of any length, and so that they collide
//! in a table. In memory a key is therefore kept as 64 bits of SipHash under a secret drawn at start:
//! every key costs the same memory, and none can be chosen to land beside another. A store outside the
//! process gets the bytes themselves, which are the same in every replica.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::LazyLock;

use smallvec::SmallVec;

/// One part of what a limit counts by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part<'a> {
    /// A client's address, or a prefix with its host bits cleared.
    Addr(IpAddr),
    /// A header's value, a host, a claim, a router's name.
    Bytes(&'a [u8]),
}

/// The parts of a key in their order, so encoded that no two lists of parts read the same.
///
/// The same parts give the same bytes in every process. Up to 64 bytes cost no allocation.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct KeyBytes(SmallVec<[u8; 64]>);

impl KeyBytes {
    /// No parts yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes of these parts.
    pub fn of(parts: &[Part<'_>]) -> Self {
        let mut key = Self::new();
        for part in parts {
            key.push(*part);
        }
        key
    }

    /// Adds one part.
    pub fn push(&mut self, part: Part<'_>) {
        match part {
            Part::Addr(IpAddr::V4(addr)) => {
                self.0.push(4);
                self.0.extend_from_slice(&addr.octets());
            }
            Part::Addr(IpAddr::V6(addr)) => {
                self.0.push(6);
                self.0.extend_from_slice(&addr.octets());
            }
            Part::Bytes(bytes) => {
                self.0.push(1);
                // A head is never as large as this could count.
                let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                self.0.extend_from_slice(&length.to_le_bytes());
                self.0.extend_from_slice(bytes);
            }
        }
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The parts as people read them: addresses in their usual form, the rest as text, joined by ` | `.
    ///
    /// What is no printable ASCII is shown as `?`, and no more than `most` bytes of each part are shown.
    pub fn text(&self, most: usize) -> String {
        let mut text = String::new();
        let mut rest = &self.0[..];
        while let Some((kind, after)) = rest.split_first() {
            if !text.is_empty() {
                text.push_str(" | ");
            }
            let taken = match kind {
                4 => after.first_chunk::<4>().map(|octets| {
                    text.push_str(&IpAddr::from(*octets).to_string());
                    4
                }),
                6 => after.first_chunk::<16>().map(|octets| {
                    text.push_str(&IpAddr::from(*octets).to_string());
                    16
                }),
                _ => after.first_chunk::<4>().and_then(|length| {
                    let length = u32::from_le_bytes(*length) as usize;
                    let bytes = after.get(4..4 + length)?;
                    let shown = bytes.iter().take(most);
                    text.extend(shown.map(|byte| {
                        if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' }
                    }));
                    if bytes.len() > most {
                        text.push_str("...");
                    }
                    Some(4 + length)
                }),
            };
            let Some(taken) = taken else { break };
            rest = &after[taken..];
        }
        text
    }
}

/// A fingerprint of a key, the same for the life of the process.
///
/// Two different keys share one with a chance of 2^-64 a pair: among ten million clients there is
/// a pair that counts together with a chance of about one in 400,000.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct LimitKey(u64);

static SECRET: LazyLock<RandomState> = LazyLock::new(RandomState::new);

impl LimitKey {
    /// The key of these parts in this order. Cost: one SipHash pass.
    pub fn of(parts: &[Part<'_>]) -> Self {
        Self::of_bytes(&KeyBytes::of(parts))
    }

    /// The key of what these bytes say. Cost: one SipHash pass.
    pub fn of_bytes(bytes: &KeyBytes) -> Self {
        let mut hasher = SECRET.build_hasher();
        hasher.write(bytes.as_bytes());
        Self(hasher.finish())
    }

    /// All of it, for tables; evenly distributed, and unknown to clients.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// Takes the key for its hash, which it is already.
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
        if let Some(tail) = bytes.last_chunk::<8>() {
            self.0 = u64::from_ne_bytes(*tail);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Part<'static> {
        Part::Addr(text.parse().expect("an address"))
    }

    #[test]
    fn the_same_parts_give_the_same_key_and_others_another() {
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
        assert_eq!(Fingerprint.hash_one(key), key.bits());
    }

    #[test]
    fn a_key_is_shown_as_people_read_it() {
        let key = KeyBytes::of(&[
            addr("10.0.0.1"),
            Part::Bytes(b"a\nb"),
            addr("2001:db8::"),
            Part::Bytes(b"long one"),
        ]);
        assert_eq!(key.text(4), "10.0.0.1 | a?b | 2001:db8:: | long...");
        assert_eq!(KeyBytes::new().text(4), "");
    }
}
