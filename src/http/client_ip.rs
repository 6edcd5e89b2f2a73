//! Which address a request counts as coming from, and whether an address is in a list.
//!
//! Follows Traefik's `ipStrategy`. `X-Forwarded-For` is read as it came from the client: the entry
//! point has removed it unless the peer is trusted, and the peer's own address is appended later.

use std::net::{IpAddr, Ipv6Addr};
use std::num::{NonZeroU8, NonZeroUsize};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

/// The field that proxies append client addresses to.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

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
    pub fn find<'a>(&self, peer: IpAddr, headers: &'a HeaderMap) -> Found<'a> {
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
fn entries(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(X_FORWARDED_FOR)
        .iter()
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
