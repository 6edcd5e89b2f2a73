//! One Redis as the data path sees it: a queue of questions, and whether it is worth asking.
//!
//! Questions go to a task of the control plane, which owns the sockets. A core never waits on a socket of
//! another runtime, and never longer than the time it gives itself.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use super::courier::{Reply, Return, Trouble};
use super::driver;
use super::replica::Replica;
use super::script::Question;
use super::settings::Settings;
use super::state::{Ask, Figures, Health, Inner};

/// Questions that wait to be sent. At 100,000 a second that is 40 ms, far longer than anybody waits.
const QUEUE: usize = 4_096;

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
        let inner = Inner::new(settings);
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
        self.inner.health()
    }

    /// Its figures.
    pub fn figures(&self) -> &Figures {
        &self.inner.figures
    }

    pub(super) fn join(&self, replica: &Arc<Replica>) {
        self.inner.join(replica);
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
