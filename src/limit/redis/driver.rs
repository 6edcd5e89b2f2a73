//! The task that speaks with one Redis: connects, asks, notices trouble, and comes back.
//!
//! It runs on the control plane. Questions that wait together go in one call. When Redis fails, or is late
//! several times, it is left alone for a while and then tried with a question of the task's own, so that no
//! request ever pays for finding out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{RedisError, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::super::decision::{Limit, Window};
use super::super::key::LimitKey;
use super::super::pauses::Pause;
use super::super::quota::{Nanos, Quota, nanos};
use super::connect::Link;
use super::courier::{self, Trouble};
use super::replica::Replica;
use super::script::{self, By, CODE, Kind, Question, Shape, digest_of};
use super::state::{Ask, Inner};
use super::views::{Owed, Returned, Word};

/// Questions in one call. A call of so many keeps Redis busy for about 0.2 ms, in which it serves nobody else.
const PER_CALL: usize = 64;

/// Calls on their way at once.
const MAX_CALLS: usize = 128;

/// Calls on a connection that are neither answered nor late, beyond which questions wait to go together in one. A question
/// waits for the next of them to be answered, about a quarter of the time that an answer takes.
const PIPELINED: usize = 4;

/// How often Redis is told what leases gave away; sooner when half of one is spent.
const TELL: Duration = Duration::from_millis(20);

/// Without any question Redis is asked one by the task itself, so that its state is known before a request
/// needs it.
const PROBE: Duration = Duration::from_secs(1);

/// Late calls in a row that make Redis count as away.
const LATE_IN_A_ROW: usize = 5;

/// The last calls that are looked at, and how many late ones among them are too many.
const LOOK_BACK: usize = 32;
const LATE_OF_THEM: usize = 16;

/// Rests between tries, from and to. It is back within the longest of them.
const FIRST_REST: Duration = Duration::from_millis(100);
const LONGEST_REST: Duration = Duration::from_secs(1);

/// Up for so long, and the next rest is a short one again.
const STEADY: Duration = Duration::from_secs(10);

/// Speaks with Redis until nobody can ask any more.
pub(super) async fn run(inner: Arc<Inner>, mut asks: mpsc::Receiver<Ask>) {
    let hash = redis::Script::new(CODE).get_hash().to_owned();
    let hash: Arc<str> = hash.into();
    let mut rest = FIRST_REST;
    loop {
        let trouble = match connect(&inner, &hash).await {
            Ok(link) => {
                inner.back();
                // It may have forgotten.
                inner.replicas().iter().for_each(|replica| replica.pauses.tell_again());
                let since = Instant::now();
                let mut session = Session::new(&inner, Arc::new(link), Arc::clone(&hash));
                match session.run(&mut asks).await {
                    Some(trouble) => {
                        if since.elapsed() > STEADY {
                            rest = FIRST_REST;
                        }
                        trouble
                    }
                    None => return,
                }
            }
            Err(trouble) => trouble,
        };
        inner.away(&trouble);
        if !pause(&mut asks, rest).await {
            return;
        }
        rest = (rest * 2).min(LONGEST_REST);
    }
}

/// Lets Redis alone for a while; questions that were already on their way are turned down. `false` when
/// nobody can ask any more.
async fn pause(asks: &mut mpsc::Receiver<Ask>, rest: Duration) -> bool {
    let mut rest = std::pin::pin!(tokio::time::sleep(rest));
    loop {
        tokio::select! {
            () = &mut rest => return true,
            ask = asks.recv() => match ask {
                Some(ask) => turn_down(ask, Trouble::Away),
                None => return false,
            },
        }
    }
}

fn turn_down(ask: Ask, trouble: Trouble) {
    ask.reply.send(Err(trouble));
}

/// Connects, and has the script run once as it will for requests: reading is not enough.
async fn connect(inner: &Inner, hash: &str) -> Result<Link, String> {
    let dial = inner.settings.dial_timeout;
    let open = tokio::time::timeout(dial, Link::open(&inner.settings));
    let link = match open.await {
        Ok(Ok(link)) => link,
        Ok(Err(error)) => return Err(describe(&error)),
        Err(_) => return Err(format!("no connection within {dial:?}")),
    };
    let probe = probe(inner);
    // The first time the script has to be loaded, and the connection is cold.
    call(inner, &link, hash, &[&probe], dial).await.map_err(|error| error.text)?;
    let began = Instant::now();
    call(inner, &link, hash, &[&probe], dial).await.map_err(|error| error.text)?;
    let took = began.elapsed();
    if took > inner.settings.timeout {
        return Err(format!("answers only after {} ms", took.as_millis()));
    }
    Ok(link)
}

/// A question that changes a key of the task's own: at a token a microsecond there always is one.
fn probe(inner: &Inner) -> Question {
    let one = std::num::NonZeroU64::MIN;
    let window = Window { name: "probe".into(), quota: Quota::new(one, Duration::from_micros(1), one) };
    let shape = Shape::new(&inner.settings.prefix, "probe", &Limit::new([window]));
    Question { shape: Arc::new(shape), digest: [0; 16], cost: 1, kind: Kind::Ask, pause: 0 }
}

/// A call that came to nothing.
struct CallError {
    text: String,
}

/// Asks these questions in one call.
async fn call(
    inner: &Inner,
    link: &Link,
    hash: &str,
    questions: &[&Question],
    patience: Duration,
) -> Result<(u64, Vec<script::Answer>), CallError> {
    let mut line = link.line();
    let ask = |by| script::call(by, questions.iter().copied());
    let mut value = line.call(&ask(By::Hash(hash)), patience).await;
    if value.as_ref().is_err_and(|error| error.code() == Some("NOSCRIPT")) {
        value = line.call(&ask(By::Code(CODE)), patience).await;
    }
    let value: Value = value.map_err(|error| CallError { text: describe(&error) })?;
    script::read(&value, questions.iter().copied()).ok_or_else(|| {
        tracing::debug!(redis = %inner.label, "redis answered something else than the script does");
        CallError { text: "answers nonsense".to_owned() }
    })
}

/// What is told of an error: short, and nothing of what was sent.
fn describe(error: &RedisError) -> String {
    if error.is_timeout() {
        return "does not answer".to_owned();
    }
    if error.is_connection_refusal() {
        return "connection refused".to_owned();
    }
    let text = match error.code() {
        Some(code) => format!("{code} {}", error.detail().unwrap_or_default()),
        None => error.to_string(),
    };
    let line = text.lines().next().unwrap_or_default().trim();
    line.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// What became of a call.
enum Outcome {
    /// It was answered in time.
    Good,
    /// It was not answered in time; whether it will be is open.
    Late,
    /// It came to nothing.
    Bad(String),
}

/// While Redis answers.
struct Session<'a> {
    inner: &'a Arc<Inner>,
    link: Arc<Link>,
    hash: Arc<str>,
    calls: JoinSet<()>,
    /// Those of them that are neither answered nor late.
    pending: usize,
    outcomes: (mpsc::UnboundedSender<Outcome>, mpsc::UnboundedReceiver<Outcome>),
    /// Whether the last calls were late, the newest last.
    late: VecDeque<bool>,
    last_call: Instant,
}

impl<'a> Session<'a> {
    fn new(inner: &'a Arc<Inner>, link: Arc<Link>, hash: Arc<str>) -> Self {
        Self {
            inner,
            link,
            hash,
            calls: JoinSet::new(),
            pending: 0,
            // At most two for each call on its way, and their number is bounded.
            outcomes: mpsc::unbounded_channel(),
            late: VecDeque::with_capacity(LOOK_BACK),
            last_call: Instant::now(),
        }
    }

    /// Asks until there is trouble, which is given; `None` when nobody can ask any more.
    async fn run(&mut self, asks: &mut mpsc::Receiver<Ask>) -> Option<String> {
        let inner = self.inner;
        let mut tick = tokio::time::interval(TELL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting = Vec::with_capacity(PER_CALL);
        let pipelined = if self.link.mixes() { PIPELINED * inner.settings.connections } else { MAX_CALLS };
        let trouble = loop {
            let free = self.calls.len() < MAX_CALLS;
            tokio::select! {
                biased;
                Some(outcome) = self.outcomes.1.recv() => {
                    if let Some(trouble) = self.weigh(outcome) {
                        break trouble;
                    }
                }
                Some(_) = self.calls.join_next(), if !self.calls.is_empty() => {}
                () = inner.urgent.notified(), if free => self.tell(),
                _ = tick.tick(), if free => {
                    self.tell();
                    if self.last_call.elapsed() >= PROBE {
                        self.spawn(Batch { asks: Vec::new(), told: Vec::new(), probe: Some(probe(inner)) });
                    }
                }
                count = asks.recv_many(&mut waiting, PER_CALL), if free && self.pending < pipelined => {
                    if count == 0 {
                        return None;
                    }
                    // Nobody waits for these any more.
                    waiting.retain(|ask| !ask.reply.is_closed());
                    self.ask(&mut waiting);
                }
            }
        };
        // What is on its way is given up: those who wait are told by their channels closing.
        self.calls.abort_all();
        Some(trouble)
    }

    fn weigh(&mut self, outcome: Outcome) -> Option<String> {
        let late = match outcome {
            Outcome::Bad(trouble) => return Some(trouble),
            Outcome::Good => false,
            Outcome::Late => true,
        };
        self.pending -= 1;
        if self.late.len() == LOOK_BACK {
            self.late.pop_front();
        }
        self.late.push_back(late);
        let in_a_row = self.late.iter().rev().take_while(|late| **late).count();
        let altogether = self.late.iter().filter(|late| **late).count();
        (in_a_row >= LATE_IN_A_ROW || altogether >= LATE_OF_THEM).then(|| {
            format!("too many answers take longer than {} ms", self.inner.settings.timeout.as_millis())
        })
    }

    fn ask(&mut self, waiting: &mut Vec<Ask>) {
        if self.link.mixes() {
            if !waiting.is_empty() {
                let asks = std::mem::replace(waiting, Vec::with_capacity(PER_CALL));
                self.spawn(Batch { asks, told: Vec::new(), probe: None });
            }
        } else {
            for ask in waiting.drain(..) {
                self.spawn(Batch { asks: vec![ask], told: Vec::new(), probe: None });
            }
        }
    }

    /// Tells Redis what was given away without it, what is given back, and for how long nothing is to be given.
    fn tell(&mut self) {
        let most = if self.link.mixes() { PER_CALL } else { 1 };
        let now = nanos(Instant::now());
        for replica in self.inner.replicas() {
            while self.calls.len() < MAX_CALLS {
                let mut pauses = Vec::new();
                replica.pauses.collect(now, most, &mut pauses);
                if pauses.is_empty() {
                    break;
                }
                let told = pauses.into_iter().map(|pause| Telling::pause(&replica, pause, now)).collect();
                self.spawn(Batch { asks: Vec::new(), told, probe: None });
            }
            while replica.views.queued() > 0 && self.calls.len() < MAX_CALLS {
                let (mut owed, mut returned) = (Vec::new(), Vec::new());
                replica.views.collect(most, &mut owed);
                replica.views.collect_returned(most - owed.len(), &mut returned);
                if owed.is_empty() && returned.is_empty() {
                    break;
                }
                let owed = owed.into_iter().map(|owed| Telling::owed(&replica, owed));
                let returned = returned.into_iter().map(|returned| Telling::returned(&replica, returned));
                let told = owed.chain(returned).collect();
                self.spawn(Batch { asks: Vec::new(), told, probe: None });
            }
        }
    }

    fn spawn(&mut self, batch: Batch) {
        self.last_call = Instant::now();
        self.pending += 1;
        let (inner, link) = (Arc::clone(self.inner), Arc::clone(&self.link));
        let (hash, outcomes) = (Arc::clone(&self.hash), self.outcomes.0.clone());
        self.calls.spawn(async move {
            // The session may have ended.
            let say = |outcome| {
                let _ = outcomes.send(outcome);
            };
            batch.run(&inner, &link, &hash, say).await;
        });
    }
}

/// What one call carries.
struct Batch {
    asks: Vec<Ask>,
    told: Vec<Telling>,
    probe: Option<Question>,
}

/// Tokens, or a pause, that Redis is being told of.
struct Telling {
    replica: Arc<Replica>,
    about: About,
    question: Question,
    done: bool,
}

/// What Redis is told.
enum About {
    /// They were given away: told again if nothing comes of it.
    Owed(Owed),
    /// They are given back: not twice, so that it is lost rather than told again.
    Returned(LimitKey),
    /// Nothing was given away, and nothing is to be for a while: told again.
    Pause(Pause),
}

impl Telling {
    fn owed(replica: &Arc<Replica>, owed: Owed) -> Self {
        let shape = Arc::clone(&replica.shape);
        let question = Question { shape, digest: owed.digest, cost: owed.tokens, kind: Kind::Owed, pause: 0 };
        Self { replica: Arc::clone(replica), about: About::Owed(owed), question, done: false }
    }

    fn returned(replica: &Arc<Replica>, returned: Returned) -> Self {
        let Returned { key, digest, tokens, since, spent } = returned;
        let (shape, kind) = (Arc::clone(&replica.shape), Kind::Back { since, spent });
        let question = Question { shape, digest, cost: tokens, kind, pause: 0 };
        Self { replica: Arc::clone(replica), about: About::Returned(key), question, done: false }
    }

    fn pause(replica: &Arc<Replica>, pause: Pause, now: Nanos) -> Self {
        let (shape, digest) = (Arc::clone(&replica.shape), digest_of(pause.bytes.as_bytes()));
        let micros = pause.until.saturating_sub(now).div_ceil(1_000);
        let question = Question { shape, digest, cost: 0, kind: Kind::Owed, pause: micros };
        Self { replica: Arc::clone(replica), about: About::Pause(pause), question, done: false }
    }

    fn done(&mut self, word: &Word<'_>) {
        self.done = true;
        let (views, limits) = (&self.replica.views, self.replica.limits());
        match &self.about {
            About::Owed(owed) => views.told(&limits, owed, word),
            About::Returned(key) => views.learn(&limits, *key, self.question.digest, word),
            About::Pause(_) => {}
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        match &self.about {
            _ if self.done => {}
            About::Owed(owed) => self.replica.views.not_told(owed),
            About::Returned(_) => {}
            About::Pause(pause) => self.replica.pauses.not_told(pause),
        }
    }
}

impl Batch {
    async fn run(self, inner: &Inner, link: &Link, hash: &str, say: impl Fn(Outcome)) {
        let Self { asks, mut told, probe } = self;
        let settings = &inner.settings;
        let began = Instant::now();
        let (result, late, count) = {
            let asked = asks.iter().map(|ask| &ask.question);
            let telling = told.iter().map(|telling| &telling.question);
            let questions: Vec<_> = asked.chain(telling).chain(&probe).collect();
            let mut answer = std::pin::pin!(call(inner, link, hash, &questions, settings.read_timeout));
            let in_time = tokio::time::timeout(settings.timeout, answer.as_mut()).await;
            let late = in_time.is_err();
            let result = match in_time {
                Ok(result) => result,
                Err(_) => {
                    inner.figures.late.fetch_add(1, Ordering::Relaxed);
                    say(Outcome::Late);
                    answer.await
                }
            };
            (result, late, questions.len() as u64)
        };
        match result {
            Ok((time, answers)) => {
                if !late {
                    let took = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
                    inner.figures.calls.fetch_add(1, Ordering::Relaxed);
                    inner.figures.questions.fetch_add(count, Ordering::Relaxed);
                    inner.figures.nanos.fetch_add(took, Ordering::Relaxed);
                    say(Outcome::Good);
                }
                let mut answers = answers.into_iter();
                let replies = asks.into_iter().zip(answers.by_ref());
                courier::send_all(replies.map(|(ask, answer)| (ask.reply, Ok((time, answer)))));
                let at = nanos(Instant::now());
                for (telling, answer) in told.iter_mut().zip(answers) {
                    let spent = telling.replica.units(&answer.spent);
                    telling.done(&Word { spent: &spent, at, order: time });
                }
            }
            Err(error) => {
                inner.figures.failed.fetch_add(1, Ordering::Relaxed);
                for ask in asks {
                    turn_down(ask, Trouble::Failed);
                }
                say(Outcome::Bad(error.text));
            }
        }
    }
}
