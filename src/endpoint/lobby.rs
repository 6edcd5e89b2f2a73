//! Limits on what a service has under way, and the queue before them: first come, first served, the more
//! important ahead of all others.
//!
//! One [`Lobby`] a service, shared by all cores. Counters are atomics; the queue's lock is taken only by those
//! who wait, and by whoever gives up a place while somebody waits. A service without limits has no lobby.
//! Never: clocks, sockets, tasks.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::{Endpoint, InFlight};
use crate::common::clock::Millis;
use crate::common::importance::Importance;
use crate::http::h1::client::{Place, Wanted};

/// What a service and each of its endpoints may have at once, over all cores. 0: no limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Limits {
    /// Requests under way to the whole service.
    pub requests: u32,
    /// Open connections to the whole service.
    pub connections: u32,
    /// Requests under way to one endpoint.
    pub requests_each: u32,
    /// Open connections to one endpoint.
    pub connections_each: u32,
    /// Requests that may wait; 0: none waits.
    pub waiting: u32,
    /// How long one may wait; 0: none waits.
    pub patience: Millis,
}

impl Limits {
    /// Whether anything is limited.
    pub fn any(&self) -> bool {
        self.requests > 0 || self.connections > 0 || self.requests_each > 0 || self.connections_each > 0
    }
}

/// Why a request got no place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// As many wait as may.
    Full,
    /// It waited for as long as it may.
    TimedOut,
    /// It waited at the end of a full queue, and one that matters more came.
    Displaced,
}

/// What a queue has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct QueueCounts {
    /// Requests that wait now.
    pub waiting: u32,
    /// Requests under way, as far as they were counted.
    pub requests: u32,
    /// Connections that are open, likewise.
    pub connections: u32,
    /// Requests that have waited and are let in.
    pub waited: u64,
    /// How long all of them waited, together; milliseconds.
    pub waited_millis: u64,
    /// Refused because the queue was full.
    pub full: u64,
    /// Refused because they had waited long enough.
    pub timed_out: u64,
    /// Refused in favour of one that matters more.
    pub displaced: u64,
}

/// The places of one service, and who waits for one.
#[derive(Debug, Default)]
pub struct Lobby {
    max_requests: AtomicU32,
    max_connections: AtomicU32,
    max_requests_each: AtomicU32,
    max_connections_each: AtomicU32,
    max_waiting: AtomicU32,
    patience: AtomicU64,
    /// What adaptive concurrency allows; 0: anything.
    adaptive: AtomicU32,
    requests: AtomicU32,
    connections: AtomicU32,
    /// Length of `queue`, to be read without its lock.
    waiting: AtomicU32,
    queue: Mutex<Queue>,
    waited: AtomicU64,
    waited_millis: AtomicU64,
    full: AtomicU64,
    timed_out: AtomicU64,
    displaced: AtomicU64,
}

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiters: BTreeMap<Turn, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    /// The number of its core.
    core: usize,
    waker: Option<Waker>,
}

/// Less is sooner: the more important, then the older.
type Turn = (Reverse<Importance>, u64);

impl Lobby {
    /// Nobody is inside.
    pub fn new(limits: Limits) -> Arc<Self> {
        let lobby = Self::default();
        lobby.set(limits);
        Arc::new(lobby)
    }

    /// Changes the limits; those who wait are looked at again.
    pub fn set(&self, limits: Limits) {
        self.max_requests.store(limits.requests, Ordering::SeqCst);
        self.max_connections.store(limits.connections, Ordering::SeqCst);
        self.max_requests_each.store(limits.requests_each, Ordering::SeqCst);
        self.max_connections_each.store(limits.connections_each, Ordering::SeqCst);
        self.max_waiting.store(limits.waiting, Ordering::SeqCst);
        self.patience.store(limits.patience, Ordering::SeqCst);
        self.wake();
    }

    /// The limits, as they were set.
    pub fn limits(&self) -> Limits {
        Limits {
            requests: self.max_requests.load(Ordering::Relaxed),
            connections: self.max_connections.load(Ordering::Relaxed),
            requests_each: self.max_requests_each.load(Ordering::Relaxed),
            connections_each: self.max_connections_each.load(Ordering::Relaxed),
            waiting: self.max_waiting.load(Ordering::Relaxed),
            patience: self.patience.load(Ordering::Relaxed),
        }
    }

    /// Sets how many requests adaptive concurrency lets in; 0 for any number.
    pub fn allow(&self, requests: u32) {
        if self.adaptive.swap(requests, Ordering::SeqCst) != requests {
            self.wake();
        }
    }

    /// Requests under way to the service, as far as they went through here.
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// What it has and has done, for metrics and API.
    pub fn counts(&self) -> QueueCounts {
        QueueCounts {
            waiting: self.waiting.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            waited: self.waited.load(Ordering::Relaxed),
            waited_millis: self.waited_millis.load(Ordering::Relaxed),
            full: self.full.load(Ordering::Relaxed),
            timed_out: self.timed_out.load(Ordering::Relaxed),
            displaced: self.displaced.load(Ordering::Relaxed),
        }
    }

    /// Whether somebody waits, so that newcomers may not go ahead.
    pub fn is_busy(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Tells it from all others.
    pub fn number(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Whether each connection needs a [`Ticket`].
    pub fn limits_connections(&self) -> bool {
        self.max_connections.load(Ordering::Relaxed) > 0
            || self.max_connections_each.load(Ordering::Relaxed) > 0
    }

    /// Whether an endpoint has as many requests as it may, or has none of its connections left for one
    /// that `needs_connection`.
    pub fn is_full(&self, endpoint: &Endpoint, needs_connection: bool) -> bool {
        reached(endpoint.in_flight(), self.max_requests_each.load(Ordering::SeqCst))
            || (needs_connection
                && reached(
                    endpoint.open().load(Ordering::SeqCst),
                    self.max_connections_each.load(Ordering::SeqCst),
                ))
    }

    /// Whether a request to the endpoint that needs a connection would find all it needs but that.
    pub fn lacks_connection(&self, endpoint: &Endpoint) -> bool {
        !self.is_full(endpoint, false)
            && (self.is_full(endpoint, true)
                || reached(
                    self.connections.load(Ordering::SeqCst),
                    self.max_connections.load(Ordering::SeqCst),
                ))
    }

    /// Whether the one whose turn it is waits on another core than this.
    fn is_wanted_beyond(&self, core: usize) -> bool {
        self.is_busy()
            && self.queue.lock().waiters.first_key_value().is_some_and(|(_, waiter)| waiter.core != core)
    }

    /// Takes a place for a request to `endpoint`, and one for a connection if it needs one; both or none.
    ///
    /// Cost: three or four atomic operations.
    pub fn try_enter(
        self: &Arc<Self>,
        endpoint: &Arc<Endpoint>,
        needs_connection: bool,
    ) -> Option<(Admitted, Option<Ticket>)> {
        let configured = self.max_requests.load(Ordering::SeqCst);
        let adaptive = self.adaptive.load(Ordering::SeqCst);
        let max = match (configured, adaptive) {
            (0, max) | (max, 0) => max,
            (configured, adaptive) => configured.min(adaptive),
        };
        if !take(&self.requests, max) {
            return None;
        }
        // From here on, a drop gives back what was taken, and wakes who missed it meanwhile.
        let mut admitted = Admitted { lobby: Arc::clone(self), in_flight: None };
        let max_each = self.max_requests_each.load(Ordering::SeqCst);
        admitted.in_flight = Some(InFlight::enter(Arc::clone(endpoint), max_each)?);
        let ticket = if needs_connection { Some(self.try_connect(endpoint)?) } else { None };
        Some((admitted, ticket))
    }

    /// Takes a place for a connection alone.
    pub fn try_connect(self: &Arc<Self>, endpoint: &Arc<Endpoint>) -> Option<Ticket> {
        if !take(&self.connections, self.max_connections.load(Ordering::SeqCst)) {
            return None;
        }
        let mut ticket = Ticket { lobby: Arc::clone(self), endpoint: None };
        if !take(endpoint.open(), self.max_connections_each.load(Ordering::SeqCst)) {
            return None;
        }
        ticket.endpoint = Some(Arc::clone(endpoint));
        Some(ticket)
    }

    /// Begins to wait, on the core of this number.
    ///
    /// # Errors
    /// [`Refusal::Full`]: as many as may wait already, and none of them matters less.
    pub fn wait(self: &Arc<Self>, importance: Importance, core: usize) -> Result<Waiting, Refusal> {
        let limits = self.limits();
        let max = if limits.patience == 0 { 0 } else { limits.waiting as usize };
        let mut queue = self.queue.lock();
        let turn = (Reverse(importance), queue.next);
        if queue.waiters.len() >= max {
            let last = queue.waiters.last_key_value().map(|(turn, _)| *turn);
            // The newest of those that matter least makes room.
            let Some(last) = last.filter(|last| max > 0 && turn < *last) else {
                self.full.fetch_add(1, Ordering::Relaxed);
                return Err(Refusal::Full);
            };
            if let Some(waker) = queue.waiters.remove(&last).and_then(|waiter| waiter.waker) {
                waker.wake();
            }
        }
        queue.next += 1;
        queue.waiters.insert(turn, Waiter { core, waker: None });
        self.count(&queue);
        Ok(Waiting { lobby: Arc::clone(self), turn })
    }

    /// Something has become free, or may have.
    pub fn wake(&self) {
        // Pairs with the store in `count`: either the one who waits sees what was given back, or this
        // sees the one who waits.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.queue.lock().wake_first();
        }
    }

    fn count(&self, queue: &Queue) {
        let length = u32::try_from(queue.waiters.len()).unwrap_or(u32::MAX);
        self.waiting.store(length, Ordering::SeqCst);
    }
}

impl Queue {
    fn wake_first(&mut self) {
        if let Some(mut first) = self.waiters.first_entry()
            && let Some(waker) = first.get_mut().waker.take()
        {
            waker.wake();
        }
    }
}

/// Whether no more than `count` may be; 0 is no limit.
fn reached(count: u32, max: u32) -> bool {
    max > 0 && count >= max
}

/// Counts one more unless there are `max` already; 0 is no limit.
fn take(count: &AtomicU32, max: u32) -> bool {
    if max == 0 {
        count.fetch_add(1, Ordering::SeqCst);
        return true;
    }
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count < max).then_some(count + 1)).is_ok()
}

/// One place in a queue; left when this is dropped.
#[derive(Debug)]
pub struct Waiting {
    lobby: Arc<Lobby>,
    turn: Turn,
}

impl Waiting {
    /// Ready with `Ok` when it is this one's turn to try [`Lobby::try_enter`], and each time it may try
    /// again; with an error when it has lost its place. Else `cx` is woken when that changes.
    ///
    /// # Errors
    /// [`Refusal::Displaced`].
    pub fn poll_turn(&self, cx: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        let mut queue = self.lobby.queue.lock();
        let Some(waiter) = queue.waiters.get_mut(&self.turn) else {
            return Poll::Ready(Err(Refusal::Displaced));
        };
        waiter.waker = Some(cx.waker().clone());
        let first = queue.waiters.first_key_value().map(|(turn, _)| *turn);
        if first == Some(self.turn) { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Leaves the queue for a place, after so many milliseconds.
    pub fn admitted(self, after: Millis) {
        self.lobby.waited.fetch_add(1, Ordering::Relaxed);
        self.lobby.waited_millis.fetch_add(after, Ordering::Relaxed);
    }

    /// Leaves the queue without one.
    pub fn refused(self, why: Refusal) {
        let count = match why {
            Refusal::Full => &self.lobby.full,
            Refusal::TimedOut => &self.lobby.timed_out,
            Refusal::Displaced => &self.lobby.displaced,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut queue = self.lobby.queue.lock();
        if queue.waiters.remove(&self.turn).is_some() {
            self.lobby.count(&queue);
        }
        // Whoever is first now may find what this one left.
        queue.wake_first();
    }
}

/// A request's place at a service and one of its endpoints; given back on drop.
#[derive(Debug)]
pub struct Admitted {
    lobby: Arc<Lobby>,
    in_flight: Option<InFlight>,
}

impl Admitted {
    /// Whose place it is.
    pub fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.in_flight.as_ref().map(InFlight::endpoint)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        drop(self.in_flight.take());
        self.lobby.requests.fetch_sub(1, Ordering::SeqCst);
        self.lobby.wake();
    }
}

/// A connection's place, likewise.
#[derive(Debug)]
pub struct Ticket {
    lobby: Arc<Lobby>,
    endpoint: Option<Arc<Endpoint>>,
}

impl Place for Ticket {
    fn is_wanted(&self, by: Wanted) -> bool {
        match by {
            Wanted::Here { among } => self.lobby.number() == among,
            Wanted::Beyond { core } => self.lobby.is_wanted_beyond(core),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.endpoint {
            endpoint.open().fetch_sub(1, Ordering::SeqCst);
        }
        self.lobby.connections.fetch_sub(1, Ordering::SeqCst);
        self.lobby.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;
    use crate::endpoint::PathUse;
    use crate::endpoint::url::ServerUrl;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new(ServerUrl::parse("http://127.0.0.1:8080").expect("a good url"), PathUse::Ignored)
    }

    fn lobby(limits: Limits) -> Arc<Lobby> {
        Lobby::new(Limits { waiting: 2, patience: 1000, ..limits })
    }

    /// Whether it is its turn, and how often it was woken since.
    fn poll(waiting: &Waiting) -> (Poll<Result<(), Refusal>>, Arc<Woken>) {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        (waiting.poll_turn(&mut Context::from_waker(&waker)), woken)
    }

    fn woken(by: &Woken) -> usize {
        by.0.load(Ordering::SeqCst)
    }

    #[test]
    fn each_limit_lets_in_as_many_as_it_says() {
        let limits = Limits::default();
        for limits in [
            Limits { requests: 1, ..limits },
            Limits { requests_each: 1, ..limits },
            Limits { connections: 1, ..limits },
            Limits { connections_each: 1, ..limits },
        ] {
            let (lobby, endpoint) = (lobby(limits), endpoint());
            let first = lobby.try_enter(&endpoint, true).expect("the first");
            assert!(lobby.try_enter(&endpoint, true).is_none(), "{limits:?}");
            drop(first);
            assert_eq!(lobby.counts(), QueueCounts::default(), "what was taken in vain is given back");
            assert_eq!((endpoint.in_flight(), endpoint.open().load(Ordering::SeqCst)), (0, 0));
            lobby.try_enter(&endpoint, true).expect("the place is free again");
        }
    }

    #[test]
    fn a_connection_outlives_its_request_and_keeps_its_place() {
        let (lobby, endpoint) = (lobby(Limits { connections_each: 1, ..Limits::default() }), endpoint());
        let (request, ticket) = lobby.try_enter(&endpoint, true).expect("the first");
        drop(request);
        assert!(lobby.is_full(&endpoint, true) && !lobby.is_full(&endpoint, false));
        assert!(lobby.try_enter(&endpoint, true).is_none());
        lobby.try_enter(&endpoint, false).expect("it has a connection already");
        drop(ticket);
        lobby.try_enter(&endpoint, true).expect("the connection is closed");
    }

    #[test]
    fn an_idle_connection_is_wanted_by_who_is_first_on_another_core_or_cannot_use_it() {
        let (lobby, endpoint) = (lobby(Limits { connections: 1, ..Limits::default() }), endpoint());
        let other = super::tests::lobby(Limits::default());
        assert!(!lobby.lacks_connection(&endpoint));
        let (request, ticket) = lobby.try_enter(&endpoint, true).expect("the first");
        let ticket = ticket.expect("it asked for one");
        assert!(lobby.lacks_connection(&endpoint));
        let beyond = |core| ticket.is_wanted(Wanted::Beyond { core });
        assert!(!beyond(0) && !beyond(1), "nobody waits");
        let first = lobby.wait(Importance::Normal, 1).expect("room");
        let second = lobby.wait(Importance::Normal, 0).expect("room");
        assert!(beyond(0) && !beyond(1), "the first uses it where it is");
        drop(first);
        assert!(!beyond(0) && beyond(1));
        assert!(ticket.is_wanted(Wanted::Here { among: lobby.number() }));
        assert!(!ticket.is_wanted(Wanted::Here { among: other.number() }));
        drop((second, request));
    }

    #[test]
    fn those_who_wait_are_served_in_the_order_in_which_they_came() {
        let (lobby, endpoint) = (lobby(Limits { requests: 1, ..Limits::default() }), endpoint());
        let place = lobby.try_enter(&endpoint, false).expect("the first");
        let first = lobby.wait(Importance::Normal, 0).expect("room");
        let second = lobby.wait(Importance::Normal, 0).expect("room");
        assert_eq!(lobby.wait(Importance::Normal, 0).expect_err("no room"), Refusal::Full);
        let (behind, woken_second) = poll(&second);
        let (turn, woken_first) = poll(&first);
        assert!(behind.is_pending() && turn.is_ready());

        drop(place);

        assert_eq!((woken(&woken_first), woken(&woken_second)), (1, 0));
        let place = lobby.try_enter(&endpoint, false).expect("free");
        first.admitted(5);
        assert_eq!(woken(&woken_second), 1, "the next is told that it is the first now");
        assert!(poll(&second).0.is_ready());
        drop((place, second));
        let counts = lobby.counts();
        assert_eq!((counts.waiting, counts.waited, counts.waited_millis, counts.full), (0, 1, 5, 1));
    }

    #[test]
    fn one_who_gives_up_leaves_no_gap() {
        let (lobby, endpoint) = (lobby(Limits { requests: 1, ..Limits::default() }), endpoint());
        let place = lobby.try_enter(&endpoint, false).expect("the first");
        let first = lobby.wait(Importance::Normal, 0).expect("room");
        let second = lobby.wait(Importance::Normal, 0).expect("room");
        let (_, woken_first) = poll(&first);
        let (_, woken_second) = poll(&second);
        drop(place);
        assert_eq!(woken(&woken_first), 1);

        drop(first);

        assert_eq!(woken(&woken_second), 1, "the wake-up is passed on");
        assert!(poll(&second).0.is_ready());
    }

    #[test]
    fn what_matters_more_goes_ahead_and_displaces_the_newest_of_what_matters_least() {
        let lobby = lobby(Limits { requests: 1, ..Limits::default() });
        let older = lobby.wait(Importance::Low, 0).expect("room");
        let newer = lobby.wait(Importance::Low, 0).expect("room");
        let (_, woken_newer) = poll(&newer);

        let high = lobby.wait(Importance::High, 0).expect("displaces one");

        assert_eq!(woken(&woken_newer), 1);
        assert_eq!(poll(&newer).0, Poll::Ready(Err(Refusal::Displaced)));
        assert!(poll(&high).0.is_ready());
        assert!(poll(&older).0.is_pending());
        drop(newer);
        assert_eq!(lobby.counts().waiting, 2, "one who was displaced takes nobody's place with it");
        lobby.wait(Importance::Low, 0).expect_err("nobody matters less");
    }

    #[test]
    fn a_raised_limit_is_told_to_those_who_wait() {
        let (lobby, endpoint) = (lobby(Limits { requests: 1, ..Limits::default() }), endpoint());
        let _place = lobby.try_enter(&endpoint, false).expect("the first");
        let waiting = lobby.wait(Importance::Normal, 0).expect("room");
        let (_, woken_up) = poll(&waiting);

        lobby.set(Limits { requests: 2, waiting: 2, patience: 1000, ..Limits::default() });

        assert_eq!(woken(&woken_up), 1);
        lobby.try_enter(&endpoint, false).expect("a second place");
    }

    #[test]
    fn adaptive_concurrency_holds_beside_the_fixed_limit() {
        let (lobby, endpoint) = (lobby(Limits { requests: 2, ..Limits::default() }), endpoint());
        lobby.allow(1);
        let _place = lobby.try_enter(&endpoint, false).expect("the first");
        assert!(lobby.try_enter(&endpoint, false).is_none());
        lobby.allow(5);
        let _second = lobby.try_enter(&endpoint, false).expect("the second");
        assert!(lobby.try_enter(&endpoint, false).is_none(), "the fixed limit");
    }

    #[test]
    fn cores_together_never_exceed_a_limit_and_nobody_waits_for_ever() {
        const MAX: u32 = 3;
        let lobby = Lobby::new(Limits { requests: MAX, waiting: 100, patience: 1000, ..Limits::default() });
        let (endpoint, most) = (endpoint(), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let place = match lobby.try_enter(&endpoint, false).filter(|_| !lobby.is_busy()) {
                            Some(place) => place,
                            None => wait_for_place(&lobby, &endpoint),
                        };
                        most.fetch_max(endpoint.in_flight(), Ordering::SeqCst);
                        drop(place);
                    }
                });
            }
        });
        assert!(most.into_inner() <= MAX);
        let counts = lobby.counts();
        assert_eq!((counts.waiting, counts.requests), (0, 0));
    }

    /// Waits as a task would, on this thread.
    fn wait_for_place(lobby: &Arc<Lobby>, endpoint: &Arc<Endpoint>) -> (Admitted, Option<Ticket>) {
        struct Unpark(std::thread::Thread);
        impl Wake for Unpark {
            fn wake(self: Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let waiting = lobby.wait(Importance::Normal, 0).expect("room");
        loop {
            if waiting.poll_turn(&mut Context::from_waker(&waker)).is_ready()
                && let Some(place) = lobby.try_enter(endpoint, false)
            {
                waiting.admitted(0);
                return place;
            }
            let since = std::time::Instant::now();
            std::thread::park_timeout(std::time::Duration::from_secs(10));
            assert!(since.elapsed().as_secs() < 10, "nobody said that there is a place");
        }
    }
}
