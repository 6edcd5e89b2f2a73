//! What one core counts while it serves: look-ups in its own maps, stores into its own cells.
//!
//! A set of labels that the core has not seen yet takes a lock once; after that nothing is shared
//! but the cells that a scrape reads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use foldhash::fast::RandomState;
use parking_lot::Mutex;

use crate::http::error::{Fault, ProxyError};
use crate::telemetry::metrics::Shared;
use crate::telemetry::metrics::cell::{Bounds, Cell, ExchangeCell, Totals};
use crate::telemetry::metrics::labels::{
    CloseReason, ConnectOutcome, EntryPointLabel, ExchangeKey, FailoverReason, Handshake, HashOutcome,
    HedgeWinner, Http2Flood, Http2Reset, LimitDecision, MethodLabel, MiddlewareLabel, MirrorOutcome,
    Protocol, RehearsalOutcome, RetryReason, Series, ServiceLabel, SpillTo, StickyOutcome, TimeoutKind,
};

/// Label sets of exchanges a core keeps apart; one takes about 200 bytes, so 26 MB in all. Series,
/// methods and protocols are bounded, but statuses come from upstreams. What comes later is counted
/// together.
const MAX_EXCHANGE_CELLS: usize = 131_072;

/// Where exchanges beyond [`MAX_EXCHANGE_CELLS`] are counted.
const OVERFLOW: ExchangeKey =
    ExchangeKey { series: Series(0), status: 0, method: MethodLabel::Extension, protocol: Protocol::Http };

/// Which figure a small counter belongs to.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
pub(super) enum Figure {
    Accepted,
    Closed,
    Handshake,
    Handshaking,
    UpstreamConnect,
    PoolIdle,
    Retry,
    BudgetExhausted,
    LostNonIdempotent,
    Limit,
    Outbound,
    Pause,
    Timeout,
    Hedge,
    Sticky,
    Hash,
    Spill,
    Failover,
    Mirror,
    Rehearsal,
    Http2Flood,
    Http2Reset,
}

/// Figure, number of the name, number of the enum's value.
pub(super) type SmallKey = (Figure, u32, u8);

/// The cells of one core as a scrape sees them.
#[derive(Debug, Default)]
pub(super) struct CoreCells {
    pub(super) exchanges: Mutex<Exchanges>,
    pub(super) small: Mutex<Vec<(SmallKey, Arc<Cell>)>>,
    pub(super) refusals: Mutex<Vec<(&'static str, Fault, Arc<Cell>)>>,
}

#[derive(Debug, Default)]
pub(super) struct Exchanges {
    pub(super) live: Vec<Arc<ExchangeCell>>,
    /// Figures of cells given up because the buckets changed; without durations.
    pub(super) retired: HashMap<u64, Totals, RandomState>,
}

/// One core's end of the metrics; stays on its core.
///
/// Cost of each call: one look-up and a few plain stores.
#[derive(Debug)]
pub struct CoreMetrics {
    shared: Arc<Shared>,
    cells: Arc<CoreCells>,
    exchanges: RefCell<LocalExchanges>,
    small: RefCell<HashMap<SmallKey, Arc<Cell>, RandomState>>,
    refusals: RefCell<HashMap<&'static str, Arc<Cell>, RandomState>>,
}

#[derive(Debug)]
struct LocalExchanges {
    epoch: u64,
    bounds: Bounds,
    cells: HashMap<u64, Arc<ExchangeCell>, RandomState>,
}

impl CoreMetrics {
    pub(super) fn new(shared: Arc<Shared>, cells: Arc<CoreCells>) -> Self {
        let (epoch, bounds) = shared.bounds();
        let exchanges = RefCell::new(LocalExchanges {
            epoch,
            bounds,
            cells: HashMap::with_hasher(RandomState::default()),
        });
        Self { shared, cells, exchanges, small: RefCell::default(), refusals: RefCell::default() }
    }

    /// Counts an exchange that has ended, whichever way.
    ///
    /// `duration` runs from the first byte of the request's head to the last byte of the response;
    /// the byte counts are of bodies.
    pub fn exchange(&self, key: ExchangeKey, duration: Duration, bytes_in: u64, bytes_out: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let mut local = self.exchanges.borrow_mut();
        if local.epoch != self.shared.epoch.load(Ordering::Acquire) {
            self.take_new_bounds(&mut local);
        }
        let packed = key.pack();
        if let Some(cell) = local.cells.get(&packed) {
            cell.record(nanos, bytes_in, bytes_out);
        } else {
            self.new_exchange_cell(&mut local, packed).record(nanos, bytes_in, bytes_out);
        }
    }

    /// Counts an answer of the proxy's own, or an exchange that it cut.
    pub fn refused(&self, error: &ProxyError) {
        let (code, fault) = (error.code(), error.fault());
        let mut refusals = self.refusals.borrow_mut();
        let cell = refusals.entry(code).or_insert_with(|| {
            let cell = Arc::new(Cell::default());
            self.cells.refusals.lock().push((code, fault, Arc::clone(&cell)));
            cell
        });
        cell.add(1);
    }

    /// Counts a connection that came in; every one must be closed by [`Self::connection_closed`].
    pub fn connection_opened(&self, entry_point: EntryPointLabel) {
        self.small((Figure::Accepted, entry_point.0, 0), |cell| cell.add(1));
    }

    /// Counts the end of a connection.
    pub fn connection_closed(&self, entry_point: EntryPointLabel, reason: CloseReason) {
        self.small((Figure::Closed, entry_point.0, reason as u8), |cell| cell.add(1));
    }

    /// Counts a TLS handshake that began; every one must be ended by [`Self::handshake_ended`].
    pub fn handshake_begun(&self, entry_point: EntryPointLabel) {
        self.small((Figure::Handshaking, entry_point.0, 0), |cell| cell.add(1));
    }

    /// Counts the end of a TLS handshake that had begun.
    pub fn handshake_ended(&self, entry_point: EntryPointLabel, outcome: Handshake) {
        self.small((Figure::Handshaking, entry_point.0, 0), |cell| cell.sub(1));
        self.handshake_refused(entry_point, outcome);
    }

    /// Counts a TLS handshake that was not begun.
    pub fn handshake_refused(&self, entry_point: EntryPointLabel, outcome: Handshake) {
        self.small((Figure::Handshake, entry_point.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts how an attempt came by its connection.
    pub fn upstream_connect(&self, service: ServiceLabel, outcome: ConnectOutcome) {
        self.small((Figure::UpstreamConnect, service.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts a connection that went to the pool.
    pub fn pool_idle_added(&self, service: ServiceLabel) {
        self.small((Figure::PoolIdle, service.0, 0), |cell| cell.add(1));
    }

    /// Counts a connection that left the pool, to be used or closed; on the core whose pool it was in.
    pub fn pool_idle_removed(&self, service: ServiceLabel) {
        self.small((Figure::PoolIdle, service.0, 0), |cell| cell.sub(1));
    }

    /// Counts another attempt and what made it necessary.
    pub fn retried(&self, service: ServiceLabel, reason: RetryReason) {
        self.small((Figure::Retry, service.0, reason as u8), |cell| cell.add(1));
    }

    /// Counts an attempt that was not made because the budget was spent.
    pub fn retry_budget_exhausted(&self, service: ServiceLabel) {
        self.small((Figure::BudgetExhausted, service.0, 0), |cell| cell.add(1));
    }

    /// Counts a request that was written, lost its connection and could not be repeated safely.
    pub fn non_idempotent_lost(&self, service: ServiceLabel) {
        self.small((Figure::LostNonIdempotent, service.0, 0), |cell| cell.add(1));
    }

    /// Counts a second try that was sent beside the first, by who was answered first.
    pub fn hedged(&self, service: ServiceLabel, winner: HedgeWinner) {
        self.small((Figure::Hedge, service.0, winner as u8), |cell| cell.add(1));
    }

    /// Counts what a limiter said.
    pub fn limited(&self, middleware: MiddlewareLabel, decision: LimitDecision) {
        self.small((Figure::Limit, middleware.0, decision as u8), |cell| cell.add(1));
    }

    /// Counts what the limit on what goes out to a service said.
    pub fn outbound_limited(&self, service: ServiceLabel, decision: LimitDecision) {
        self.small((Figure::Outbound, service.0, decision as u8), |cell| cell.add(1));
    }

    /// Counts a pause that an upstream asked for.
    pub fn outbound_paused(&self, service: ServiceLabel) {
        self.small((Figure::Pause, service.0, 0), |cell| cell.add(1));
    }

    /// Counts a deadline that fired; once, where it fires, whether or not another attempt follows.
    pub fn timed_out(&self, kind: TimeoutKind) {
        self.small((Figure::Timeout, 0, kind as u8), |cell| cell.add(1));
    }

    /// Counts what became of a sticky cookie.
    pub fn stuck(&self, service: ServiceLabel, outcome: StickyOutcome) {
        self.small((Figure::Sticky, service.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts a request that was not given to the endpoint that its key belongs to.
    pub fn hashed(&self, service: ServiceLabel, outcome: HashOutcome) {
        self.small((Figure::Hash, service.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts an attempt at an endpoint that stepped in for others.
    pub fn spilled(&self, service: ServiceLabel, to: SpillTo) {
        self.small((Figure::Spill, service.0, to as u8), |cell| cell.add(1));
    }

    /// Counts a request that the fallback of a `failover` service got.
    pub fn failed_over(&self, service: ServiceLabel, reason: FailoverReason) {
        self.small((Figure::Failover, service.0, reason as u8), |cell| cell.add(1));
    }

    /// Counts what became of a copy for a mirror.
    pub fn mirrored(&self, service: ServiceLabel, outcome: MirrorOutcome) {
        self.small((Figure::Mirror, service.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts what became of a copy for an endpoint that is ejected.
    pub fn rehearsed(&self, service: ServiceLabel, outcome: RehearsalOutcome) {
        self.small((Figure::Rehearsal, service.0, outcome as u8), |cell| cell.add(1));
    }

    /// Counts a connection of HTTP/2 that went over a bound and was ended.
    pub fn http2_flood(&self, entry_point: EntryPointLabel, flood: Http2Flood) {
        self.small((Figure::Http2Flood, entry_point.0, flood as u8), |cell| cell.add(1));
    }

    /// Counts a stream of HTTP/2 that was reset by the proxy.
    pub fn http2_reset(&self, entry_point: EntryPointLabel, code: Http2Reset) {
        self.small((Figure::Http2Reset, entry_point.0, code as u8), |cell| cell.add(1));
    }

    fn small(&self, key: SmallKey, write: impl FnOnce(&Cell)) {
        let mut small = self.small.borrow_mut();
        let cell = small.entry(key).or_insert_with(|| {
            let cell = Arc::new(Cell::default());
            self.cells.small.lock().push((key, Arc::clone(&cell)));
            cell
        });
        write(cell);
    }

    #[cold]
    fn new_exchange_cell(&self, local: &mut LocalExchanges, packed: u64) -> Arc<ExchangeCell> {
        let overflow = OVERFLOW.pack();
        let packed = if local.cells.len() < MAX_EXCHANGE_CELLS { packed } else { overflow };
        if let Some(cell) = local.cells.get(&packed) {
            return Arc::clone(cell);
        }
        let cell = Arc::new(ExchangeCell::new(packed, Arc::clone(&local.bounds)));
        self.cells.exchanges.lock().live.push(Arc::clone(&cell));
        local.cells.insert(packed, Arc::clone(&cell));
        cell
    }

    /// Starts new cells; the old ones' requests and bytes are kept, as counters must not fall.
    #[cold]
    fn take_new_bounds(&self, local: &mut LocalExchanges) {
        (local.epoch, local.bounds) = self.shared.bounds();
        local.cells.clear();
        let mut exchanges = self.cells.exchanges.lock();
        for cell in std::mem::take(&mut exchanges.live) {
            let totals = cell.totals(&local.bounds);
            exchanges.retired.entry(cell.key).or_default().add(&totals);
        }
    }
}
