//! Endpoints: addresses of pods, sets of them, and their health.
//!
//! [`Endpoint`] is what one server of a service is for as long as its address stays: its identity,
//! and the figures that all cores share. [`set::EndpointSet`] is a service's endpoints at one moment,
//! with weights and health; [`live::LiveEndpoints`] is where the newest set is found.
//! Never: sockets, timers, tasks.

pub mod health;
pub mod latency;
pub mod live;
pub mod lobby;
pub mod outlier;
pub mod sequence;
pub mod set;
pub mod tag;
pub mod tally;
pub mod url;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::endpoint::latency::PeakEwma;
use crate::endpoint::outlier::Ejection;
use crate::endpoint::tag::Tag;
use crate::endpoint::tally::Tally;
use crate::endpoint::url::ServerUrl;
use crate::http::error::EndpointText;
use crate::http::text::Text;

/// Names an endpoint for as long as the process lives; never used again for another one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct EndpointId(u64);

impl EndpointId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// The number, for logs and for keys of tables.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One server of one service.
///
/// Shared by [`Arc`] between the sets it is in, the pools and the requests under way. Weight and
/// health are not here: they belong to the set, so that a reader sees both of the same moment.
#[derive(Debug)]
pub struct Endpoint {
    id: EndpointId,
    url: ServerUrl,
    path_use: PathUse,
    text: EndpointText,
    tag: Tag,
    load: Load,
    tally: Tally,
    ejection: Mutex<Option<Ejection>>,
}

/// On a cache line of its own: every request writes it, while the identity is only read.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Load {
    in_flight: AtomicU32,
    idle: AtomicU32,
    open: AtomicU32,
    latency: PeakEwma,
}

/// What becomes of the path that a server's url has (`preservePath`).
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum PathUse {
    /// It is left out, as Traefik does by default.
    #[default]
    Ignored,
    /// It is put in front of the request's path (`preservePath: true`).
    Prefix,
}

impl Endpoint {
    /// Makes an endpoint that never was before. Sets make their own; this is for tests and tools.
    pub fn new(url: ServerUrl, path_use: PathUse) -> Arc<Self> {
        let text = match url.address() {
            Some(address) => EndpointText::Addr(address),
            None => EndpointText::Name(format!("{}:{}", url.host(), url.port()).into()),
        };
        let tag = Tag::of(url.as_str());
        Arc::new(Self {
            id: EndpointId::next(),
            url,
            path_use,
            text,
            tag,
            load: Load::default(),
            tally: Tally::default(),
            ejection: Mutex::default(),
        })
    }

    /// What pools are keyed by.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Where it is: as written, and in parts.
    pub fn url(&self) -> &ServerUrl {
        &self.url
    }

    /// Goes in front of the request's path; without a slash at its end.
    pub fn path_prefix(&self) -> Option<&Text> {
        match self.path_use {
            PathUse::Ignored => None,
            PathUse::Prefix => self.url.path(),
        }
    }

    /// How errors and logs name it.
    pub fn text(&self) -> EndpointText {
        self.text.clone()
    }

    /// What sticky cookies and rendezvous hashing know it by.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How long it takes to answer; kept only where a balancer wants to know.
    pub fn latency(&self) -> &PeakEwma {
        &self.load.latency
    }

    /// Requests under way to it, from all cores.
    pub fn in_flight(&self) -> u32 {
        self.load.in_flight.load(Ordering::Relaxed)
    }

    /// Open connections to it, over all cores, while their number is limited. Tickets of the lobby count here.
    pub fn open(&self) -> &AtomicU32 {
        &self.load.open
    }

    /// What attempts at it came to.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Its last ejection, until it is admitted again.
    pub fn ejection(&self) -> Option<Ejection> {
        *self.ejection.lock()
    }

    /// It is ejected, or (with `None`) admitted again.
    pub fn set_ejection(&self, ejection: Option<Ejection>) {
        *self.ejection.lock() = ejection;
    }

    /// Pooled connections to it that nobody uses, over all cores. The pools count here.
    pub fn idle(&self) -> &AtomicU32 {
        &self.load.idle
    }
}

/// One request under way to an endpoint: counted in [`Endpoint::in_flight`] until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Endpoint>);

impl InFlight {
    /// Counts one more.
    pub fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.load.in_flight.fetch_add(1, Ordering::Relaxed);
        Self(endpoint)
    }

    /// Counts one more unless there are `max` already; 0 is no limit.
    pub fn enter(endpoint: Arc<Endpoint>, max: u32) -> Option<Self> {
        if max == 0 {
            return Some(Self::new(endpoint));
        }
        let room = |count| (count < max).then_some(count + 1);
        endpoint.load.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, room).ok()?;
        Some(Self(endpoint))
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.0
    }
}

impl Deref for InFlight {
    type Target = Endpoint;

    fn deref(&self) -> &Endpoint {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.load.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_until_its_guard_is_dropped() {
        let url = ServerUrl::parse("http://127.0.0.1:8080").expect("a good url");
        let endpoint = Endpoint::new(url, PathUse::Ignored);
        let first = InFlight::new(Arc::clone(&endpoint));
        let second = InFlight::new(Arc::clone(&endpoint));
        assert_eq!(endpoint.in_flight(), 2);
        drop(first);
        assert_eq!(second.in_flight(), 1);
        drop(second);
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn the_path_of_the_url_counts_only_when_it_is_preserved() {
        let url = ServerUrl::parse("http://a.test/base/").expect("a good url");
        assert_eq!(Endpoint::new(url.clone(), PathUse::Ignored).path_prefix(), None);
        let kept = Endpoint::new(url, PathUse::Prefix);
        assert_eq!(kept.path_prefix().map(Text::as_str), Some("/base"));
    }

    #[test]
    fn no_two_endpoints_have_the_same_id() {
        let url = ServerUrl::parse("http://a.test").expect("a good url");
        let first = Endpoint::new(url.clone(), PathUse::Ignored).id();
        assert!(Endpoint::new(url, PathUse::Ignored).id() > first);
    }
}
