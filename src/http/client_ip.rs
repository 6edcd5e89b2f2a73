//! Which address a request counts as coming from, and whether an address is in a list.
//!
//! Follows Traefik's `ipStrategy`. `X-Forwarded-For` is read as it came from the client: the entry
//! point has removed it unless the peer is trusted, and the peer's own address is appended later.

use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU8, NonZeroUsize};

use ipnet::IpNet;

use super::forwarded::X_FORWARDED_FOR;
use crate::http::fields::Fields;

/// A set of addresses. A look-up costs a binary search, however many ranges were written.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IpSet {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl IpSet {
    /// The addresses of these ranges.
    pub fn new(ranges: impl IntoIterator<Item = IpNet>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for range in ranges {
            match range {
                IpNet::V4(net) => v4.push((u32::from(net.network()), u32::from(net.broadcast()))),
                IpNet::V6(net) => v6.push((u128::from(net.network()), u128::from(net.broadcast()))),
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// Whether it has this address. An IPv4 address in IPv6 form counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match addr.to_canonical() {
            IpAddr::V4(addr) => contains(&self.v4, u32::from(addr)),
            IpAddr::V6(addr) => contains(&self.v6, u128::from(addr)),
        }
    }

    /// Whether it has none at all.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

fn merged<T: Copy + Ord>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged.into()
}

fn contains<T: Copy + Ord>(ranges: &[(T, T)], addr: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= addr);
    after.checked_sub(1).is_some_and(|index| addr <= ranges[index].1)
}

/// Parses an address or a range (`10.0.0.1`, `10.0.0.0/8`, `2001:db8::/32`).
///
/// Host bits may be set and are ignored, as in Traefik.
///
/// # Errors
/// The text, with what was expected.
pub fn parse_range(text: &str) -> Result<IpNet, String> {
    let net = match text.parse::<IpAddr>() {
        Ok(addr) => Some(IpNet::from(addr.to_canonical())),
        Err(_) => text.parse::<IpNet>().ok().map(|net| canonical(net).trunc()),
    };
    net.ok_or_else(|| {
        format!("bad address or range {text:?}: expected such as 10.0.0.1, 10.0.0.0/8 or 2001:db8::/32")
    })
}

/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`: addresses are compared in their IPv4 form.
fn canonical(net: IpNet) -> IpNet {
    match net {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => IpNet::new(v4.into(), v6.prefix_len() - 96).unwrap_or(net),
            None => net,
        },
        IpNet::V4(_) | IpNet::V6(_) => net,
    }
}

/// How to find the client's address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct IpStrategy {
    from: From,
    ipv6_prefix: Option<NonZeroU8>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum From {
    #[default]
    Peer,
    Depth(NonZeroUsize),
    Excluding(IpSet),
}

/// What a strategy found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Found<'a> {
    /// An address.
    Addr(IpAddr),
    /// An entry of `X-Forwarded-For` that is no address.
    Text(&'a str),
    /// The list is too short, or every entry is excluded.
    Nothing,
}

impl IpStrategy {
    /// The peer's address.
    pub fn peer() -> Self {
        Self::default()
    }

    /// The n-th entry of `X-Forwarded-For` from the right, 1 being the last.
    pub fn depth(depth: NonZeroUsize) -> Self {
        Self { from: From::Depth(depth), ipv6_prefix: None }
    }

    /// The first entry of `X-Forwarded-For` from the right that is not in `excluded`.
    pub fn excluding(excluded: IpSet) -> Self {
        Self { from: From::Excluding(excluded), ipv6_prefix: None }
    }

    /// Clears the host bits of IPv6 addresses; a prefix of 128 or more keeps them.
    #[must_use]
    pub fn ipv6_prefix(self, prefix: Option<NonZeroU8>) -> Self {
        Self { ipv6_prefix: prefix, ..self }
    }

    /// Finds the client's address. Several field lines count as one list (RFC 9110 §5.3).
    pub fn find<'a>(&self, peer: IpAddr, headers: &'a Fields) -> Found<'a> {
        let found = match &self.from {
            From::Peer => Found::Addr(peer),
            From::Depth(depth) => {
                entries(headers).nth(depth.get() - 1).map_or(Found::Nothing, |entry| read(entry))
            }
            From::Excluding(excluded) => entries(headers)
                .filter(|entry| !entry.is_empty())
                .map(|entry| read(entry))
                .find(|found| !matches!(found, Found::Addr(addr) if excluded.contains(*addr)))
                .unwrap_or(Found::Nothing),
        };
        match (found, self.ipv6_prefix) {
            (Found::Addr(IpAddr::V6(addr)), Some(prefix)) => Found::Addr(mask(addr, prefix).into()),
            (found, _) => found,
        }
    }
}

/// Entries of every `X-Forwarded-For` line, from the right.
fn entries(headers: &Fields) -> impl Iterator<Item = &str> {
    headers
        .get_all(X_FORWARDED_FOR)
        .rev()
        // A value that is no text is one entry that is no address.
        .flat_map(|value| value.to_str().unwrap_or("?").rsplit(','))
        .map(str::trim)
}

/// An entry as an address: ports are cut (`10.0.0.1:80`, `[2001:db8::1]:80`), zones too.
fn read(entry: &str) -> Found<'_> {
    if entry.is_empty() {
        return Found::Nothing;
    }
    let host = match entry.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").map_or(entry, |(host, _)| host),
        None => match entry.split_once(':') {
            Some((host, port)) if !port.contains(':') => host,
            Some(_) | None => entry,
        },
    };
    let host = host.split_once('%').map_or(host, |(host, _)| host);
    host.parse::<IpAddr>().map_or(Found::Text(entry), |addr| Found::Addr(addr.to_canonical()))
}

fn mask(addr: Ipv6Addr, prefix: NonZeroU8) -> Ipv6Addr {
    let host_bits = 128_u32.saturating_sub(u32::from(prefix.get()));
    // The shift is below 128, because the prefix is not 0.
    Ipv6Addr::from(u128::from(addr) >> host_bits << host_bits)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn set(ranges: &[&str]) -> IpSet {
        IpSet::new(ranges.iter().map(|text| parse_range(text).expect("a range")))
    }

    fn addr(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn found(strategy: &IpStrategy, lines: &[&str]) -> String {
        let mut headers = Fields::new();
        for line in lines {
            headers.append(X_FORWARDED_FOR, HeaderValue::try_from(*line).expect("a value"));
        }
        match strategy.find(addr("192.0.2.9"), &headers) {
            Found::Addr(addr) => addr.to_string(),
            Found::Text(text) => format!("text {text}"),
            Found::Nothing => "nothing".to_owned(),
        }
    }

    fn depth(depth: usize) -> IpStrategy {
        IpStrategy::depth(NonZeroUsize::new(depth).expect("not zero"))
    }

    #[test]
    fn ranges_have_their_ends_and_nothing_beyond() {
        let set = set(&["10.0.0.0/8", "10.1.0.0/16", "192.168.1.7", "2001:db8::/32", "0.0.0.0/32"]);
        for text in
            ["10.0.0.0", "10.255.255.255", "192.168.1.7", "2001:db8:ffff::1", "::ffff:10.0.0.1", "0.0.0.0"]
        {
            assert!(set.contains(addr(text)), "{text}");
        }
        for text in
            ["9.255.255.255", "11.0.0.0", "192.168.1.6", "192.168.1.8", "2001:db9::", "::1", "0.0.0.1"]
        {
            assert!(!set.contains(addr(text)), "{text}");
        }
        assert!(IpSet::default().is_empty() && !IpSet::default().contains(addr("::")));
    }

    #[test]
    fn ranges_are_read_as_people_write_them() {
        for (text, expected) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(parse_range(text).map(|net| net.to_string()).as_deref(), Ok(expected), "{text}");
        }
        for text in ["", "10.0.0", "10.0.0.0/33", "10.0.0.1-10.0.0.5", "localhost", "::/129", "10.0.0.1/"] {
            assert!(parse_range(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_peer_is_believed_and_not_the_field() {
        assert_eq!(found(&IpStrategy::peer(), &["1.1.1.1"]), "192.0.2.9");
    }

    #[test]
    fn depth_counts_from_the_right_over_all_lines() {
        let lines = ["1.1.1.1, 2.2.2.2", "3.3.3.3:8080"];
        assert_eq!(found(&depth(1), &lines), "3.3.3.3");
        assert_eq!(found(&depth(2), &lines), "2.2.2.2");
        assert_eq!(found(&depth(3), &lines), "1.1.1.1");
        assert_eq!(found(&depth(4), &lines), "nothing");
        assert_eq!(found(&depth(1), &[]), "nothing");
    }

    #[test]
    fn entries_are_read_without_port_and_zone() {
        for (entry, expected) in [
            ("1.1.1.1", "1.1.1.1"),
            (" 1.1.1.1:80 ", "1.1.1.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:80", "2001:db8::1"),
            ("fe80::1%eth0", "fe80::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("[2001:db8::1]", "text [2001:db8::1]"),
            ("unknown", "text unknown"),
            ("1.1.1", "text 1.1.1"),
            ("", "nothing"),
        ] {
            assert_eq!(found(&depth(1), &[entry]), expected, "{entry:?}");
        }
    }

    #[test]
    fn excluded_addresses_and_gaps_are_skipped_from_the_right() {
        let strategy = IpStrategy::excluding(set(&["10.0.0.0/8"]));
        assert_eq!(found(&strategy, &["1.1.1.1, 2.2.2.2, 10.0.0.1", "10.0.0.2, ,"]), "2.2.2.2");
        assert_eq!(found(&strategy, &["1.1.1.1, x, 10.0.0.1"]), "text x");
        assert_eq!(found(&strategy, &["10.0.0.1"]), "nothing");
        assert_eq!(found(&strategy, &[]), "nothing");
    }

    #[test]
    fn a_prefix_masks_ipv6_and_leaves_ipv4() {
        let by = |bits| depth(1).ipv6_prefix(NonZeroU8::new(bits));
        assert_eq!(found(&by(64), &["2001:db8:1:2:3:4:5:6"]), "2001:db8:1:2::");
        assert_eq!(found(&by(1), &["ffff::1"]), "8000::");
        assert_eq!(found(&by(128), &["2001:db8::1"]), "2001:db8::1");
        assert_eq!(found(&by(64), &["1.2.3.4"]), "1.2.3.4");
    }

    proptest! {
        #[test]
        fn a_set_has_what_one_of_its_ranges_has(
            ranges in prop::collection::vec((any::<u32>(), 0..=32_u8), 0..20), probes in prop::collection::vec(any::<u32>(), 20),
        ) {
            let nets: Vec<IpNet> = ranges
                .iter()
                .map(|(addr, bits)| IpNet::new(IpAddr::from(addr.to_be_bytes()), *bits).expect("a prefix").trunc())
                .collect();
            let set = IpSet::new(nets.iter().copied());
            let ends = nets.iter().flat_map(|net| [net.network(), net.broadcast()]);
            for addr in probes.into_iter().map(|addr| IpAddr::from(addr.to_be_bytes())).chain(ends) {
                prop_assert_eq!(set.contains(addr), nets.iter().any(|net| net.contains(&addr)), "{}", addr);
            }
        }
    }
}
