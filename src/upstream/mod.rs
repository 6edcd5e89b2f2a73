//! The way to the pods: connections kept per core and endpoint, and how new ones are made.

pub mod h2;
pub mod reuse;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::HashSet;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use foldhash::fast::RandomState;
use tokio::net::TcpStream;

use crate::common::clock::{self, Millis};
use crate::common::timer::{Slot, Timers};
use crate::endpoint::tally::Verdict;
use crate::endpoint::url::Scheme;
use crate::endpoint::{Endpoint, EndpointId};
use crate::http::error::ProxyError;
use crate::http::h1::client::{ClientConn, Home, Unread, Wanted};
use crate::http::h1::io::Io;
use crate::http::h2::limits::ClientLimits;
use crate::telemetry::metrics::{CoreMetrics, ServiceLabel};
use crate::tls::client::{ClientTls, Offer, reason};
use crate::upstream::reuse::Reuse;

/// Between two looks whether somebody listens, and how long one may take; milliseconds.
const GONE_PAUSE: Millis = 30;
const GONE_PATIENCE: Millis = 250;
/// While TLS with an endpoint fails, it is said so often on each core.
const WARNING: Millis = 10_000;

/// Idle connections of one core, by endpoint.
#[derive(Debug)]
pub struct Pools {
    pools: RefCell<HashMap<EndpointId, Rc<Pool>, RandomState>>,
    shared: RefCell<HashMap<EndpointId, SharedPool, RandomState>>,
    timers: Rc<Timers>,
    metrics: Rc<CoreMetrics>,
}

/// Connections of HTTP/2, and how long they are kept without use.
#[derive(Debug)]
struct SharedPool {
    pool: Rc<h2::Pool>,
    idle_timeout: Millis,
}

/// Idle connections of one core to one endpoint. The one used last is used next, so that those that are
/// not needed grow old and go.
#[derive(Debug)]
pub struct Pool {
    endpoint: Arc<Endpoint>,
    service: ServiceLabel,
    metrics: Rc<CoreMetrics>,
    #[expect(clippy::vec_box, reason = "a connection comes and goes in its box, which is made once")]
    idle: RefCell<Vec<Box<ClientConn>>>,
    limits: Cell<PoolLimits>,
    /// With which TLS its connections were made.
    tls: Option<Arc<ClientTls>>,
    complaints: Complaints,
    /// The endpoint is no longer configured: what comes back is closed.
    retired: Cell<bool>,
    reuse: Reuse,
}

/// How many connections are kept, and for how long.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PoolLimits {
    /// For each endpoint, over all cores.
    pub max_idle: u32,
    /// Milliseconds; 0 for ever.
    pub idle_timeout: Millis,
}

/// How long making a connection may take.
#[derive(Clone, Copy, Debug)]
pub struct Dial {
    /// When it must be connected.
    pub until: Millis,
    /// For the TLS handshake, from then on; 0 is no limit.
    pub handshake: Millis,
    /// When all must be over.
    pub overall: Millis,
}

impl Dial {
    fn handshake_until(&self, connected: Millis) -> Millis {
        match self.handshake {
            0 => self.overall,
            timeout => self.overall.min(connected.saturating_add(timeout)),
        }
    }
}

/// Says in the log why TLS with an endpoint does not work, now and then.
#[derive(Debug, Default)]
struct Complaints {
    last: Cell<Option<Millis>>,
}

impl Complaints {
    fn say(&self, endpoint: &Endpoint, error: &ProxyError) {
        let now = clock::now();
        if self.last.get().is_none_or(|last| now >= last + WARNING) {
            self.last.set(Some(now));
            tracing::warn!(endpoint = %endpoint.text(), %error, "no TLS with an endpoint");
        }
    }
}

impl Pools {
    /// No connections yet.
    pub fn new(metrics: Rc<CoreMetrics>, timers: Rc<Timers>) -> Self {
        Self { pools: RefCell::default(), shared: RefCell::default(), timers, metrics }
    }

    /// The connections of HTTP/2 to `endpoint`: by prior knowledge, or where it chooses it with `tls`. Those that
    /// were made otherwise are let go of.
    pub fn shared_of(
        &self,
        endpoint: &Arc<Endpoint>,
        service: ServiceLabel,
        limits: ClientLimits,
        idle_timeout: Millis,
        tls: Option<&Arc<ClientTls>>,
    ) -> Rc<h2::Pool> {
        let mut pools = self.shared.borrow_mut();
        let new = || SharedPool {
            pool: h2::Pool::new(endpoint, service, &self.metrics, &self.timers, limits, tls),
            idle_timeout,
        };
        let entry = pools.entry(endpoint.id()).or_insert_with(new);
        if !entry.pool.is_made_with(tls) {
            entry.pool.clear();
            *entry = new();
        }
        entry.idle_timeout = idle_timeout;
        entry.pool.set_limits(limits);
        Rc::clone(&entry.pool)
    }

    /// The connections to `endpoint`. Those that were made with another `tls` are let go of.
    pub fn of(
        &self,
        endpoint: &Arc<Endpoint>,
        service: ServiceLabel,
        limits: PoolLimits,
        tls: Option<&Arc<ClientTls>>,
    ) -> Rc<Pool> {
        let mut pools = self.pools.borrow_mut();
        let new = || {
            Rc::new(Pool {
                endpoint: Arc::clone(endpoint),
                service,
                metrics: Rc::clone(&self.metrics),
                idle: RefCell::default(),
                limits: Cell::new(limits),
                tls: tls.cloned(),
                complaints: Complaints::default(),
                retired: Cell::new(false),
                reuse: Reuse::default(),
            })
        };
        let pool = pools.entry(endpoint.id()).or_insert_with(new);
        if pool.tls.as_ref().map(Arc::as_ptr) != tls.map(Arc::as_ptr) {
            pool.retired.set(true);
            pool.clear();
            *pool = new();
        }
        pool.limits.set(limits);
        Rc::clone(pool)
    }

    /// Lets go of connections to endpoints that `wanted` does not hold.
    pub fn retain(&self, wanted: &HashSet<EndpointId>) {
        self.pools.borrow_mut().retain(|id, pool| {
            let keep = wanted.contains(id);
            if !keep {
                pool.retired.set(true);
                pool.clear();
            }
            keep
        });
        self.shared.borrow_mut().retain(|id, entry| {
            let keep = wanted.contains(id);
            if !keep {
                entry.pool.clear();
            }
            keep
        });
    }

    /// Closes an idle connection to each endpoint whose place is wanted.
    pub fn reclaim(&self, by: Wanted) {
        for pool in self.pools.borrow().values() {
            pool.reclaim(by);
        }
        for entry in self.shared.borrow().values() {
            entry.pool.reclaim(by);
        }
    }

    /// Closes connections that have been idle for too long or that the pod has closed.
    pub fn sweep(&self) {
        let now = clock::now();
        for pool in self.pools.borrow().values() {
            pool.sweep(now);
        }
        for entry in self.shared.borrow().values() {
            entry.pool.sweep(now, entry.idle_timeout);
        }
    }
}

impl Pool {
    /// Takes a connection that can be used, as far as is known; with `ask_kernel`, as far as can be known.
    pub fn take(&self, ask_kernel: bool) -> Option<Box<ClientConn>> {
        if !self.reuse.is_wise(clock::recent()) {
            return None;
        }
        let idle_timeout = self.limits.get().idle_timeout;
        loop {
            let conn = self.idle.borrow_mut().pop()?;
            self.forget(1);
            let fresh = idle_timeout == 0 || clock::recent() < conn.idle_since() + idle_timeout;
            if fresh && conn.is_usable(ask_kernel) {
                return Some(conn);
            }
        }
    }

    /// Whether a connection waits for a request.
    pub fn has_idle(&self) -> bool {
        !self.idle.borrow().is_empty()
    }

    fn reclaim(&self, by: Wanted) {
        let mut idle = self.idle.borrow_mut();
        // The one that was not used for longest.
        let Some(place) = idle.iter().position(|conn| conn.is_wanted(by)) else { return };
        let conn = idle.remove(place);
        drop(idle);
        self.forget(1);
        drop(conn);
    }

    /// Connects, and makes the TLS handshake for HTTP/1.1 where the endpoint's url says `https`.
    ///
    /// # Errors
    /// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`], [`ProxyError::UpstreamTls`].
    pub async fn connect(&self, slot: &Slot, dial: Dial) -> Result<Box<ClientConn>, ProxyError> {
        let stream = connect(&self.endpoint, slot, dial.until).await?;
        let tls = self.tls.as_ref().filter(|_| self.endpoint.url().scheme() == Scheme::Https);
        let io = match tls {
            None => Io::new(stream),
            Some(tls) => {
                let until = dial.handshake_until(clock::now());
                Box::pin(handshake(&self.endpoint, tls, stream, slot, until, Offer::Http1))
                    .await
                    .inspect_err(|error| self.complaints.say(&self.endpoint, error))?
            }
        };
        Ok(ClientConn::new(io))
    }

    fn sweep(&self, now: Millis) {
        let idle_timeout = self.limits.get().idle_timeout;
        let mut idle = self.idle.borrow_mut();
        let before = idle.len();
        idle.retain(|conn| {
            (idle_timeout == 0 || now < conn.idle_since() + idle_timeout) && conn.is_usable(false)
        });
        self.forget(before - idle.len());
    }

    fn clear(&self) {
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        self.forget(idle.len());
    }

    fn forget(&self, count: usize) {
        if count > 0 {
            self.endpoint.idle().fetch_sub(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
            for _ in 0..count {
                self.metrics.pool_idle_removed(self.service);
            }
        }
    }
}

impl Home for Pool {
    fn give_back(&self, conn: Box<ClientConn>) {
        self.endpoint.tally().came_whole();
        if conn.has_served_again() {
            self.reuse.went_well();
        }
        if self.retired.get() || !self.reuse.is_wise(clock::recent()) {
            return;
        }
        if self.endpoint.idle().fetch_add(1, Ordering::Relaxed) >= self.limits.get().max_idle {
            self.endpoint.idle().fetch_sub(1, Ordering::Relaxed);
            return;
        }
        self.metrics.pool_idle_added(self.service);
        self.idle.borrow_mut().push(conn);
    }

    fn was_stale(&self, unread: Unread) {
        // The others have been idle for longer.
        self.clear();
        if unread == Unread::Unknown {
            self.reuse.failed(clock::now());
        }
    }

    fn stands_still(&self) {
        self.endpoint.tally().ended(Verdict::StoodStill);
    }

    fn came_whole(&self) {
        self.endpoint.tally().came_whole();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Whether nobody listens at an endpoint any more, a moment after it has reset a connection.
///
/// Asked twice, as the end of a pod closes its connections before its listener, or the other way round. An endpoint
/// whose connections are not refused but lost is not known to be gone.
pub async fn is_gone(endpoint: &Endpoint, slot: &Slot, deadline: Millis) -> bool {
    for pause in [0, GONE_PAUSE] {
        if pause > 0 {
            slot.until((clock::now() + pause).min(deadline)).await;
        }
        let until = (clock::now() + GONE_PATIENCE).min(deadline);
        match connect(endpoint, slot, until).await {
            Ok(_) => {}
            Err(ProxyError::Connect { cause, .. }) => {
                return cause.kind() == io::ErrorKind::ConnectionRefused;
            }
            Err(_) => return false,
        }
    }
    false
}

/// Whether an endpoint takes a connection until then.
pub async fn takes_connections(endpoint: &Endpoint, slot: &Slot, until: Millis) -> bool {
    connect(endpoint, slot, until).await.is_ok()
}

/// Connects to an endpoint. A name is resolved anew each time and each of its addresses is tried.
///
/// # Errors
/// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`].
async fn connect(endpoint: &Endpoint, slot: &Slot, until: Millis) -> Result<TcpStream, ProxyError> {
    let connecting = async {
        match endpoint.url().address() {
            Some(address) => TcpStream::connect(address).await,
            None => {
                let mut last = io::Error::new(io::ErrorKind::NotFound, "name has no address");
                for address in tokio::net::lookup_host((endpoint.url().host(), endpoint.url().port())).await?
                {
                    match TcpStream::connect(address).await {
                        Ok(stream) => return Ok(stream),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    };
    match slot.within(until, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(cause)) => Err(ProxyError::Connect { endpoint: endpoint.text(), cause }),
        Err(_) => Err(ProxyError::ConnectTimeout { endpoint: endpoint.text() }),
    }
}

/// Makes the TLS handshake with an endpoint.
async fn handshake(
    endpoint: &Endpoint,
    tls: &ClientTls,
    stream: TcpStream,
    slot: &Slot,
    until: Millis,
    offer: Offer,
) -> Result<Io, ProxyError> {
    let session = tls
        .connect(endpoint.url().host(), offer)
        .map_err(|error| ProxyError::UpstreamTls { endpoint: endpoint.text(), reason: error.to_string() })?;
    let io = Io::tls(stream, session);
    match slot.within(until, poll_fn(|cx| io.poll_handshake(cx))).await {
        Ok(Ok(())) => Ok(io),
        Ok(Err(error)) => Err(ProxyError::UpstreamTls { endpoint: endpoint.text(), reason: reason(&error) }),
        Err(_) => Err(ProxyError::ConnectTimeout { endpoint: endpoint.text() }),
    }
}
