//! The cores: one thread with a runtime of its own for each, and the words they are told.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;
use tokio::task::spawn_local;

use super::connection::{self, Accepted, Control, Drain};
use crate::endpoint::EndpointId;
use crate::http::h1::client::Wanted;
use crate::limit::redis;
use crate::proxy::core::{Core, Shared};
use crate::proxy::guard::Guard;
use crate::snapshot::ListenerId;
use crate::telemetry::metrics::Metrics;

/// How often a core looks through its idle connections to pods.
const SWEEP: Duration = Duration::from_secs(1);

/// What a core is told.
enum Command {
    /// A connection to serve.
    Serve(Box<Accepted>),
    /// There is a new configuration, with these endpoints.
    Adopt(Arc<HashSet<EndpointId>>),
    /// Connections of one listener, or all, shall end.
    Drain(Option<ListenerId>, Drain),
    /// Connections of one listener end now.
    Cut(ListenerId),
    /// Everything ends now.
    Stop,
}

/// All cores.
pub struct Cores {
    handles: Box<[Handle]>,
    /// Where the search for the least loaded begins, so that equals take turns.
    next: AtomicUsize,
    guard: Arc<Guard>,
}

struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    live: Arc<AtomicUsize>,
    thread: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Cores {
    /// Starts `count` cores.
    ///
    /// # Errors
    /// No thread or runtime could be made.
    pub fn start(count: usize, shared: &Arc<Shared>, metrics: &Metrics) -> io::Result<Arc<Self>> {
        let handles = (0..count)
            .map(|id| {
                let (commands, received) = mpsc::unbounded_channel();
                let live = Arc::new(AtomicUsize::new(0));
                let shared = Arc::clone(shared);
                let metrics = metrics.core();
                let (started, starting) = std::sync::mpsc::sync_channel(1);
                let thread = std::thread::Builder::new().name(format!("core-{id}")).spawn(move || {
                    // A local runtime stays on the thread that made it.
                    let runtime =
                        Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                    let (runtime, result) = match runtime {
                        Ok(runtime) => (Some(runtime), Ok(())),
                        Err(error) => (None, Err(error)),
                    };
                    // Whoever starts the cores is waiting for this.
                    let _ = started.send(result);
                    if let Some(runtime) = runtime {
                        runtime.block_on(async move { run(Core::new(id, shared, metrics), received).await });
                    }
                })?;
                starting.recv().map_err(io::Error::other)??;
                Ok(Handle { commands, live, thread: parking_lot::Mutex::new(Some(thread)) })
            })
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self { handles, next: AtomicUsize::new(0), guard: Arc::clone(&shared.guard) }))
    }

    /// Gives a connection to the core that has the fewest.
    pub fn hand_out(&self, accepted: impl FnOnce(Arc<AtomicUsize>) -> Accepted) {
        let start = self.next.fetch_add(1, Ordering::Relaxed);
        let least = (0..self.handles.len())
            .map(|offset| &self.handles[(start + offset) % self.handles.len()])
            .min_by_key(|handle| handle.live.load(Ordering::Relaxed));
        if let Some(handle) = least {
            let accepted = accepted(Arc::clone(&handle.live));
            // Fails only when the core has stopped, and then the connection may end with it.
            let _ = handle.commands.send(Command::Serve(Box::new(accepted)));
        }
    }

    /// The guard of the process.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Connections that are open on all cores.
    pub fn live(&self) -> usize {
        self.handles.iter().map(|handle| handle.live.load(Ordering::Relaxed)).sum()
    }

    /// Tells every core that there is a new configuration, and which endpoints it has: to gather thousands of
    /// them is no work for a core.
    pub fn adopt(&self, endpoints: HashSet<EndpointId>) {
        let endpoints = Arc::new(endpoints);
        self.tell(|| Command::Adopt(Arc::clone(&endpoints)));
    }

    /// Tells connections of one listener, or all, to end.
    pub fn drain(&self, listener: Option<ListenerId>, drain: Drain) {
        self.tell(|| Command::Drain(listener, drain));
    }

    /// Ends the connections of one listener now, whatever they do.
    pub fn cut(&self, listener: ListenerId) {
        self.tell(|| Command::Cut(listener));
    }

    /// Ends everything at once, and waits for the threads.
    pub fn stop(&self) {
        self.tell(|| Command::Stop);
        for handle in &self.handles {
            if let Some(thread) = handle.thread.lock().take() {
                // A core that panicked has said so already.
                let _ = thread.join();
            }
        }
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for handle in &self.handles {
            // Fails only when the core has stopped.
            let _ = handle.commands.send(command());
        }
    }
}

/// The connections of one core, to be told things.
#[derive(Default)]
struct Connections {
    controls: RefCell<HashMap<u64, (ListenerId, Rc<Control>), foldhash::fast::RandomState>>,
    next: Cell<u64>,
}

/// A connection's place in the list, left when its task ends in whatever way.
struct Listed {
    id: u64,
    connections: Rc<Connections>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.controls.borrow_mut().remove(&self.id);
    }
}

async fn run(core: Rc<Core>, mut commands: mpsc::UnboundedReceiver<Command>) {
    spawn_local(Rc::clone(&core.timers).drive());
    spawn_local(sweep(Rc::clone(&core)));
    spawn_local(redis::deliver());
    let connections = Rc::new(Connections::default());
    // What all connections were told, those still to come included.
    let mut told = Drain::No;
    while let Some(command) = commands.recv().await {
        match command {
            Command::Serve(accepted) => {
                let control = Rc::new(Control::default());
                control.drain(told.min(Drain::Announce));
                let id = connections.next.get();
                connections.next.set(id + 1);
                connections.controls.borrow_mut().insert(id, (accepted.listener, Rc::clone(&control)));
                let listed = Listed { id, connections: Rc::clone(&connections) };
                let core = Rc::clone(&core);
                let told = Rc::clone(&control);
                let task = spawn_local(async move {
                    // Also when the connection's task panics.
                    let _listed = listed;
                    connection::run(core, *accepted, told).await;
                });
                control.runs_as(task.abort_handle());
            }
            Command::Adopt(endpoints) => core.adopt(&endpoints),
            Command::Drain(listener, drain) => {
                if listener.is_none() {
                    told = drain;
                }
                for (of, control) in connections.controls.borrow().values() {
                    if listener.is_none_or(|listener| listener == *of) {
                        control.drain(drain);
                    }
                }
            }
            Command::Cut(listener) => {
                for (of, control) in connections.controls.borrow().values() {
                    if listener == *of {
                        control.cut();
                    }
                }
            }
            Command::Stop => break,
        }
    }
}

async fn sweep(core: Rc<Core>) {
    let mut interval = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = interval.tick() => core.pools.sweep(),
            () = core.shared.reclaim.notified() => core.pools.reclaim(Wanted::Beyond { core: core.id }),
        }
    }
}
