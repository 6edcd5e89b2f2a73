//! What sticky cookies and rendezvous hashing know an endpoint by: a hash of its name that is the same in
//! every process and after every restart.
//!
//! Pure. The forms are Traefik's, so that a session survives a change of proxies.

use aws_lc_rs::digest::{SHA256, digest};

/// The hashes of one name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Tag {
    /// The first 64 bits of the name's SHA-256, as in cookies of today.
    current: u64,
    /// FNV-1 of the name and FNV-1 of that in hex, as in cookies of Traefik's earlier versions.
    old: [u64; 2],
}

impl Tag {
    /// Hashes a server's url, or a service's name. Costs about a microsecond.
    pub fn of(name: &str) -> Self {
        let current = digest(&SHA256, name.as_bytes());
        let current = current.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
        let once = fnv1(name.as_bytes());
        Self { current, old: [once, fnv1(format!("{once:x}").as_bytes())] }
    }

    /// As a number, evenly distributed.
    pub fn number(self) -> u64 {
        self.current
    }

    /// As it stands in a cookie: 16 hex digits.
    pub fn text(self) -> String {
        format!("{:016x}", self.current)
    }

    /// Whether a cookie's number means it, in any form there ever was.
    pub fn is(self, number: u64) -> bool {
        self.current == number || self.old.contains(&number)
    }
}

/// FNV-1 with 64 bits (multiplies first, unlike FNV-1a).
fn fnv1(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        hash.wrapping_mul(0x0000_0100_0000_01b3) ^ u64::from(*byte)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_has_the_same_value_as_in_traefik() {
        // Seen in a cookie of Traefik 3.7.15.
        assert_eq!(Tag::of("http://127.0.0.1:19102").text(), "8677392c7f553091");
    }

    #[test]
    fn values_of_earlier_versions_are_known() {
        let tag = Tag::of("a");
        // The published test vector of FNV-1 for "a".
        assert!(tag.is(0xaf63_bd4c_8601_b7be));
        assert!(tag.is(fnv1(b"af63bd4c8601b7be")));
        assert!(tag.is(tag.number()));
        assert!(!tag.is(0));
    }
}
