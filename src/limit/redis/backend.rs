//! One Redis as the data path sees it: a queue of questions, and whether it is worth asking.
//!
//! Questions go to a task of the control plane, which owns the sockets. A core never waits on a socket of
//! another runtime, and never longer than the time it gives itself.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};

use super::courier::Return;
use super::driver;
use super::remedy;
use super::script::{Answer, Question};
use super::settings::Settings;
use super::shared::Replica;

/// Questions that wait to be sent. At 100,000 a second that is 40 ms, far longer than anybody waits.
const QUEUE: usize = 4_096;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Trouble {
    /// Redis is known to be away; it was not asked.
    Away,
    /// It did not answer in time.
    Late,
    /// It answered with an error or nonsense, or the connection broke.
    Failed,
    /// Too many questions were waiting.
    Crowded,
}

/// An answer with the time at which Redis gave it, by its own clock in microseconds.
pub(super) type Reply = Result<(u64, Answer), Trouble>;

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

/// A Redis.
#[derive(Debug)]
pub struct Backend {
    pub(super) inner: Arc<Inner>,
    asks: mpsc::Sender<Ask>,
    /// Until the task is started.
    waiting: Mutex<Option<mpsc::Receiver<Ask>>>,
}

impl Backend {
    /// A Redis that nobody has connected to yet; see [`Backend::start`].
    pub fn new(settings: Settings) -> Self {
        let (asks, waiting) = mpsc::channel(QUEUE);
        let inner = Inner {
            label: settings.label(),
            settings,
            up: AtomicBool::new(false),
            state: Mutex::default(),
            figures: Figures::default(),
            replicas: Mutex::default(),
            urgent: Notify::new(),
        };
        Self { inner: Arc::new(inner), asks, waiting: Mutex::new(Some(waiting)) }
    }

    /// Connects and stays connected until this is dropped. To be called on the control plane's runtime, when
    /// the configuration is in use; again and again does no harm.
    pub fn start(&self) {
        if let Some(asks) = self.waiting.lock().take() {
            tokio::spawn(driver::run(Arc::clone(&self.inner), asks));
        }
    }

    /// How it is reached.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// How it is called, without secrets.
    pub fn label(&self) -> &str {
        &self.inner.label
    }

    /// Whether it is asked.
    pub fn is_up(&self) -> bool {
        self.inner.is_up()
    }

    /// What operators see of it.
    pub fn health(&self) -> Health {
        self.inner.state.lock().health.clone()
    }

    /// Its figures.
    pub fn figures(&self) -> &Figures {
        &self.inner.figures
    }

    pub(super) fn join(&self, replica: &Arc<Replica>) {
        self.inner.replicas.lock().push(Arc::downgrade(replica));
    }

    /// Sends a question on its way.
    pub(super) fn ask(&self, question: Question) -> Result<oneshot::Receiver<Reply>, Trouble> {
        if !self.is_up() {
            return Err(Trouble::Away);
        }
        let (reply, answer) = Return::here();
        match self.asks.try_send(Ask { question, reply }) {
            Ok(()) => Ok(answer),
            Err(_) => Err(Trouble::Crowded),
        }
    }
}
