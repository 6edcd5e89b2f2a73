//! Answers on their way back to the core that asked, many in one wake-up.
//!
//! To wake a task of another thread takes a system call, and on a busy machine a switch of threads. All answers of one
//! call to one core go in one parcel, and are handed out there.

use std::cell::RefCell;

use tokio::sync::{mpsc, oneshot};

use super::script::Answer;

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

/// Answers for one core, each with whoever waits for it.
type Parcel = Vec<(oneshot::Sender<Reply>, Reply)>;

thread_local! {
    /// The way to this thread.
    static HERE: RefCell<Option<mpsc::UnboundedSender<Parcel>>> = const { RefCell::new(None) };
}

/// Hands out for ever what comes for this thread. Each core runs one; on a thread without, each answer wakes its
/// own task.
pub async fn deliver() {
    // No more is on its way than questions are.
    let (way, mut parcels) = mpsc::unbounded_channel::<Parcel>();
    HERE.set(Some(way));
    while let Some(parcel) = parcels.recv().await {
        for (to, reply) in parcel {
            hand(to, reply);
        }
    }
}

fn hand(to: oneshot::Sender<Reply>, reply: Reply) {
    // The request may have stopped waiting.
    let _ = to.send(reply);
}

/// Where an answer is to go.
#[derive(Debug)]
pub(super) struct Return {
    to: oneshot::Sender<Reply>,
    home: Option<mpsc::UnboundedSender<Parcel>>,
}

impl Return {
    /// To this thread, with what will come there.
    pub(super) fn here() -> (Self, oneshot::Receiver<Reply>) {
        let (to, answer) = oneshot::channel();
        (Self { to, home: HERE.with_borrow(Clone::clone) }, answer)
    }

    /// Whether nobody waits any more.
    pub(super) fn is_closed(&self) -> bool {
        self.to.is_closed()
    }

    /// Sends one answer.
    pub(super) fn send(self, reply: Reply) {
        hand(self.to, reply);
    }
}

/// Sends the answers of one call.
pub(super) fn send_all(answers: impl Iterator<Item = (Return, Reply)>) {
    let mut parcels: Vec<(_, Parcel)> = Vec::new();
    for (Return { to, home }, reply) in answers {
        let Some(home) = home else {
            hand(to, reply);
            continue;
        };
        match parcels.iter_mut().find(|(other, _)| home.same_channel(other)) {
            Some((_, parcel)) => parcel.push((to, reply)),
            None => parcels.push((home, vec![(to, reply)])),
        }
    }
    for (home, parcel) in parcels {
        // On a core that has ended nobody waits.
        let _ = home.send(parcel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::redis::script::{Answer, Spent};

    fn reply(time: u64) -> Reply {
        Ok((time, Answer { taken: true, spent: Spent::new() }))
    }

    #[tokio::test]
    async fn answers_come_home_with_a_courier_and_without() {
        let (early, early_answer) = Return::here();
        let local = tokio::task::LocalSet::new();
        let asked = local.run_until(async move {
            tokio::task::spawn_local(deliver());
            tokio::task::yield_now().await;
            let (one, first) = Return::here();
            let (two, second) = Return::here();
            let (gone, answer) = Return::here();
            drop(answer);
            assert!(gone.is_closed() && !one.is_closed());
            std::thread::spawn(move || {
                let all = [(early, reply(0)), (one, reply(1)), (gone, reply(9)), (two, reply(2))];
                send_all(all.into_iter());
            });
            (first.await, second.await)
        });
        let (first, second) = asked.await;
        let time = |answer: Result<Reply, _>| answer.expect("an answer").expect("no trouble").0;
        assert_eq!([time(early_answer.await), time(first), time(second)], [0, 1, 2]);
    }
}
