//! Clients that keep asking, each in a thread and on a kept-alive connection, and remember every failure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::client::Client;
use super::eventually;

/// Failures that are remembered for each client; the first ones tell.
const REMEMBERED: usize = 5;

/// Running load.
pub struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Report>>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Report {
    /// Answers with 200.
    pub answered: usize,
    /// Connections that were made.
    pub connections: usize,
    /// Everything else, the first few for each client.
    pub failures: Vec<String>,
}

impl Load {
    /// Starts clients that GET one target.
    pub fn start(address: SocketAddr, host: &str, target: &str, clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients = (0..clients)
            .map(|_| {
                let (stop, answered) = (Arc::clone(&stop), Arc::clone(&answered));
                let (host, target) = (host.to_owned(), target.to_owned());
                std::thread::spawn(move || ask(address, &host, &target, &stop, &answered))
            })
            .collect();
        Self { stop, answered, clients }
    }

    /// Waits until so many more requests were answered.
    #[track_caller]
    pub fn await_more(&self, count: usize) {
        let goal = self.answered.load(Ordering::Acquire) + count;
        eventually(&format!("{count} more answers under load"), || {
            self.answered.load(Ordering::Acquire) >= goal || self.clients.iter().all(JoinHandle::is_finished)
        });
    }

    /// Lets each client finish its request.
    #[track_caller]
    pub fn stop(self) -> Report {
        self.stop.store(true, Ordering::Release);
        let mut total = Report::default();
        for client in self.clients {
            let report = client.join().expect("a client that does not panic");
            total.answered += report.answered;
            total.connections += report.connections;
            total.failures.extend(report.failures);
        }
        total
    }
}

fn ask(address: SocketAddr, host: &str, target: &str, stop: &AtomicBool, answered: &AtomicUsize) -> Report {
    let mut report = Report::default();
    while !stop.load(Ordering::Acquire) && report.failures.len() < REMEMBERED {
        let mut client = match Client::try_connect(address, host) {
            Ok(client) => client,
            Err(error) => {
                report.failures.push(format!("connect: {error}"));
                continue;
            }
        };
        report.connections += 1;
        while !stop.load(Ordering::Acquire) {
            let closing = match client.try_get(target) {
                Ok(answer) if answer.status == 200 => {
                    report.answered += 1;
                    answered.fetch_add(1, Ordering::AcqRel);
                    answer.head.lists("Connection", "close")
                }
                Ok(answer) => {
                    report.failures.push(format!("{:?} {:?}", answer.head.start_line, answer.text()));
                    answer.head.lists("Connection", "close")
                }
                Err(failure) => {
                    report.failures.push(failure.to_string());
                    true
                }
            };
            if closing || report.failures.len() >= REMEMBERED {
                break;
            }
        }
    }
    report
}
