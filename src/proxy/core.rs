//! What one core owns: its view of the configuration, its connections to pods, its deadlines and figures.
//!
//! Nothing in here is shared with another core, so nothing is locked; what is shared stands behind
//! [`Shared`].

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::Method;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::guard::Guard;
use crate::common::clock::{self, Millis};
use crate::common::live::{Cached, Live, OnCore};
use crate::common::timer::Timers;
use crate::endpoint::EndpointId;
use crate::http::h1::memory;
use crate::snapshot::{Internal, Snapshot};
use crate::telemetry::access_log::AccessLog;
use crate::telemetry::metrics::CoreMetrics;
use crate::upstream::Pools;

/// How long an endpoint that refused, or closed, a new connection is passed over while another is available.
/// Short, because it may be back at any moment; long enough that a pod that died costs each core one
/// failed connect a second, not one a request.
const SUSPICION: Millis = 1000;
/// The same for one that could not be reached at all: finding that out holds up a request for the whole
/// connect timeout, 5 s by default.
const SUSPICION_UNREACHABLE: Millis = 10_000;
/// A suspicion that nobody has put to the test for so long is dropped; the endpoint may be gone.
const SUSPICION_KEPT: Millis = 60_000;

/// An endpoint that failed.
#[derive(Debug)]
struct Suspect {
    endpoint: EndpointId,
    /// Passed over until then; after that, the next request that is given to it puts it to the test.
    until: Millis,
    pause: Millis,
}

/// How an endpoint failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Suspicion {
    /// It refused a connection, or closed one before it had answered anything on it.
    Refused,
    /// Nothing came back.
    Unreachable,
}

/// Answers for `api@internal` and its like.
pub type InternalAnswers =
    dyn Fn(Internal, &Method, &str, Option<&str>) -> http::Response<Bytes> + Send + Sync;

/// What all cores share.
pub struct Shared {
    /// The newest configuration.
    pub snapshot: Live<Snapshot>,
    /// Where exchanges are logged, if they are; replaced on reload.
    pub access_log: Live<Option<Arc<AccessLog>>>,
    /// For routers that lead to the proxy itself.
    pub internal: Box<InternalAnswers>,
    /// Refuses what is newest when the whole proxy has too much.
    pub guard: Arc<Guard>,
    /// Asks every core to close idle connections whose place somebody waits for.
    pub reclaim: Notify,
}

/// One core.
pub struct Core {
    /// Its number, from 0.
    pub id: usize,
    /// Its deadlines.
    pub timers: Rc<Timers>,
    /// Its figures.
    pub metrics: Rc<CoreMetrics>,
    /// Its connections to pods.
    pub pools: Pools,
    /// What it shares with others.
    pub shared: Arc<Shared>,
    /// Connections that keep the room of an exchange between their requests.
    pub rooms: Cell<u32>,
    snapshot: Cached<Snapshot>,
    access_log: Cached<Option<Arc<AccessLog>>>,
    suspects: RefCell<SmallVec<[Suspect; 4]>>,
    date: RefCell<(u64, [u8; 29])>,
    random: Cell<u64>,
}

impl Core {
    /// Sets up a core; to be called on its own thread.
    pub fn new(id: usize, shared: Arc<Shared>, metrics: CoreMetrics) -> Rc<Self> {
        let metrics = Rc::new(metrics);
        let timers = Timers::new();
        let snapshot = Cached::new(&shared.snapshot);
        memory::set_budgets(snapshot.get(&shared.snapshot).memory);
        let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), id);
        Rc::new(Self {
            id,
            pools: Pools::new(Rc::clone(&metrics), Rc::clone(&timers)),
            timers,
            metrics,
            snapshot,
            access_log: Cached::new(&shared.access_log),
            shared,
            rooms: Cell::new(0),
            suspects: RefCell::default(),
            date: RefCell::new((u64::MAX, [0; 29])),
            // Zero would stay zero.
            random: Cell::new(seed | 1),
        })
    }

    /// The newest configuration. Costs one atomic load while nothing has changed.
    pub fn snapshot(&self) -> OnCore<Snapshot> {
        self.snapshot.get(&self.shared.snapshot)
    }

    /// Takes up the newest configuration although no request asks for it, and lets go of connections to
    /// pods that are not among its `endpoints`.
    pub fn adopt(&self, endpoints: &HashSet<EndpointId>) {
        memory::set_budgets(self.snapshot().memory);
        self.pools.retain(endpoints);
        self.access_log();
    }

    /// Where to log, if anywhere.
    pub fn access_log(&self) -> OnCore<Option<Arc<AccessLog>>> {
        self.access_log.get(&self.shared.access_log)
    }

    /// An endpoint has failed, and probably not for this one request alone.
    pub fn suspect(&self, endpoint: EndpointId, why: Suspicion) {
        let pause = match why {
            Suspicion::Refused => SUSPICION,
            Suspicion::Unreachable => SUSPICION_UNREACHABLE,
        };
        self.trust(endpoint);
        self.suspects.borrow_mut().push(Suspect { endpoint, until: clock::now() + pause, pause });
    }

    /// A request is given to an endpoint. If that was suspected, others pass it over until it is known how this
    /// one fares.
    pub fn try_out(&self, endpoint: EndpointId) {
        let mut suspects = self.suspects.borrow_mut();
        if let Some(suspect) = suspects.iter_mut().find(|suspect| suspect.endpoint == endpoint) {
            suspect.until = clock::now() + suspect.pause;
        }
    }

    /// An endpoint has answered after all.
    pub fn trust(&self, endpoint: EndpointId) {
        if !self.suspects.borrow().is_empty() {
            self.suspects.borrow_mut().retain(|suspect| suspect.endpoint != endpoint);
        }
    }

    /// Adds the endpoints that should be passed over for now.
    pub fn add_suspects(&self, to: &mut SmallVec<[EndpointId; 4]>) {
        if self.suspects.borrow().is_empty() {
            return;
        }
        let now = clock::now();
        let mut suspects = self.suspects.borrow_mut();
        suspects.retain(|suspect| suspect.until + SUSPICION_KEPT > now);
        to.extend(suspects.iter().filter(|suspect| suspect.until > now).map(|suspect| suspect.endpoint));
    }

    /// A number evenly distributed over all of `u64` (xorshift64*); not for secrets.
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// The current date as a field value (RFC 9110 §5.6.7), formatted once a second.
    pub fn date(&self) -> [u8; 29] {
        let second = clock::recent() / 1000;
        let mut cached = self.date.borrow_mut();
        if cached.0 != second {
            let mut date = [b' '; 29];
            // As long as the text is, whatever the date.
            let _ = write!(&mut date[..], "{}", httpdate::HttpDate::from(SystemTime::now()));
            *cached = (second, date);
        }
        cached.1
    }
}
