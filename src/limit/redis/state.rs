//! What a Redis's handle and its task share: whether it is worth asking, and what operators see of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::courier::Return;
use super::remedy;
use super::replica::Replica;
use super::script::Question;
use super::settings::Settings;

/// A question on its way.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) question: Question,
    pub(super) reply: Return,
}

/// What operators see of a Redis.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// Whether it is asked.
    pub up: bool,
    /// Since when.
    pub since: Option<SystemTime>,
    /// What was wrong when it was last away, without secrets.
    pub trouble: Option<String>,
}

/// Figures for operators, since the connection settings came into use.
#[derive(Debug, Default)]
pub struct Figures {
    /// Calls that were answered in time; each holds one question or many.
    pub calls: AtomicU64,
    /// Questions in them.
    pub questions: AtomicU64,
    /// Calls that were answered late or not at all.
    pub late: AtomicU64,
    /// Calls that ended with an error or nonsense.
    pub failed: AtomicU64,
    /// Nanoseconds that answered calls took together.
    pub nanos: AtomicU64,
    /// How often it was found to be away.
    pub outages: AtomicU64,
}

/// Reasons that are said at once while it is away: what it began with, and what then stands in the way.
const SAID_AT_ONCE: u32 = 3;
/// Further ones are said no more often than this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
struct State {
    health: Health,
    /// What the log was last told of, and when.
    said: Option<(String, Instant)>,
    /// How often it was told since it is away.
    times: u32,
}

/// What the handle and its task share. The task lives as long as the handle does.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) label: String,
    up: AtomicBool,
    state: Mutex<State>,
    pub(super) figures: Figures,
    /// Limits that have something to tell.
    replicas: Mutex<Vec<Weak<Replica>>>,
    /// Somebody has much to tell.
    pub(super) urgent: Notify,
}

impl Inner {
    /// Not asked yet.
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            label: settings.label(),
            settings,
            up: AtomicBool::new(false),
            state: Mutex::default(),
            figures: Figures::default(),
            replicas: Mutex::default(),
            urgent: Notify::new(),
        }
    }

    pub(super) fn health(&self) -> Health {
        self.state.lock().health.clone()
    }

    pub(super) fn join(&self, replica: &Arc<Replica>) {
        self.replicas.lock().push(Arc::downgrade(replica));
    }

    pub(super) fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Notes that it answers again.
    pub(super) fn back(&self) {
        self.up.store(true, Ordering::Relaxed);
        let mut state = self.state.lock();
        if !state.health.up {
            state.health.up = true;
            state.health.since = Some(SystemTime::now());
            tracing::info!(redis = %self.label, "redis answers, limits are shared");
        }
    }

    /// Notes that it is away. Said once for each time, and again when the reason is another one than was said.
    pub(super) fn away(&self, trouble: &str) {
        self.up.store(false, Ordering::Relaxed);
        let trouble = remedy::told(trouble, &self.settings);
        let mut state = self.state.lock();
        let first = state.health.up || state.health.since.is_none();
        if state.health.up {
            self.figures.outages.fetch_add(1, Ordering::Relaxed);
        }
        if first {
            state.health.since = Some(SystemTime::now());
            state.times = 0;
        }
        state.health.up = false;
        state.health.trouble = Some(trouble.clone());
        let other = state.said.as_ref().is_none_or(|(said, at)| {
            *said != trouble && (state.times < SAID_AT_ONCE || at.elapsed() > SAY_AGAIN)
        });
        if first || other {
            tracing::warn!(redis = %self.label, trouble, "redis is away, limits are decided by onFailure");
            state.said = Some((trouble, Instant::now()));
            state.times = state.times.saturating_add(1);
        }
    }

    /// Limits that are in use; those that are gone are forgotten.
    pub(super) fn replicas(&self) -> Vec<Arc<Replica>> {
        let mut replicas = self.replicas.lock();
        replicas.retain(|replica| replica.strong_count() > 0);
        replicas.iter().filter_map(Weak::upgrade).collect()
    }
}
