//! What the tests speak with: a proxy process, raw origins behind it, raw clients in front of it.
//!
//! Everything blocks, and everything has a deadline. Nothing sleeps in the hope that something has happened:
//! [`eventually`] asks until it has.

pub mod client;
pub mod frames;
pub mod h2;
pub mod load;
pub mod origin;
pub mod proxy;
pub mod redis;
pub mod tls;
pub mod wire;

use std::fmt::Debug;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use self::redis::RedisServer;
pub use client::Client;
pub use load::Load;
pub use origin::{BlackHole, Origin, Refused, origin};
pub use proxy::{Proxy, proxy, run, scratch};
pub use wire::Failure;

/// How long anything may take before a test gives up: far above what a loaded machine needs.
pub const DEADLINE: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(5);

/// Asks until the answer is yes.
///
/// # Panics
/// When it is still no after [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Reads a value until it is the expected one; shows the last one read otherwise.
///
/// # Panics
/// When it is still another after [`DEADLINE`].
#[track_caller]
pub fn eventually_equal<T: Debug + PartialEq>(what: &str, expected: T, mut read: impl FnMut() -> T) {
    let since = Instant::now();
    loop {
        let value = read();
        if value == expected {
            return;
        }
        assert!(since.elapsed() < DEADLINE, "{what}: still {value:?} after {DEADLINE:?}, not {expected:?}");
        std::thread::sleep(POLL);
    }
}

/// Asks again and again for a while that the answer stays yes: for what must not happen.
#[track_caller]
pub fn throughout(what: &str, span: Duration, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while since.elapsed() < span {
        assert!(holds(), "no longer after {:?}: {what}", since.elapsed());
        std::thread::sleep(POLL);
    }
}

/// Holds one side until the other lets it go.
#[derive(Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// A closed gate.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Waits until the gate is open, at most twice the [`DEADLINE`], so that a failed test ends too.
    pub fn pass(&self) {
        let open = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.1.wait_timeout_while(open, DEADLINE * 2, |open| !*open));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_answers_and_remembers() {
        let origin = origin()
            .get("/a", "hello")
            .raw("/b", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n\r\n")
            .start();
        let mut client = Client::connect(origin.address(), "a.test");

        assert_eq!(client.get("/a").expect(200).text(), "hello");
        let chunked = client.post("/b", "body").expect(200);
        assert_eq!((chunked.text(), chunked.trailers.len()), ("hi".to_owned(), 1));
        assert_eq!(client.get("/c?d").expect(200).text(), "GET /c?d");
        assert_eq!((origin.hits(), origin.connections()), (3, 1));
        assert_eq!(origin.received()[1].text(), "body");
    }

    #[test]
    fn a_killed_origin_resets_and_refuses_until_it_is_revived() {
        let mut origin = origin().start();
        let mut client = Client::connect(origin.address(), "a.test");
        client.get("/").expect(200);

        origin.kill();

        assert!(matches!(client.try_get("/"), Err(Failure::Reset(_))));
        assert!(Client::try_connect(origin.address(), "a.test").is_err());
        origin.revive();
        Client::connect(origin.address(), "a.test").get("/").expect(200);
    }

    #[test]
    fn an_origin_that_is_gone_leaves_no_thread_behind() {
        let origin = origin().start();
        let mut client = Client::connect(origin.address(), "a.test");
        client.get("/").expect(200);

        drop(origin);

        client.assert_closed();
    }

    #[test]
    fn a_half_read_answer_is_a_failure_that_shows_what_came() {
        let origin = origin()
            .on("/", |_, peer| peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").close())
            .start();
        let mut client = Client::connect(origin.address(), "a.test");

        let outcome = client.try_get("/");

        assert!(matches!(&outcome, Err(Failure::Closed(got)) if got == "half"), "{outcome:?}");
    }

    #[test]
    fn the_unreachable_are_unreachable() {
        let refused = Refused::new();
        let hole = BlackHole::new();
        let connect = |url: String| {
            let address = url.trim_start_matches("http://").parse().expect("an address");
            std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300))
                .map_err(|error| error.kind())
        };

        assert_eq!(connect(refused.url()).err(), Some(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(connect(hole.url()).err(), Some(std::io::ErrorKind::TimedOut));
    }

    #[test]
    fn load_counts_answers_and_shows_failures() {
        let mut origin = origin().start();
        let load = Load::start(origin.address(), "a.test", "/", 2);
        load.await_more(50);
        let good = load.stop();
        assert!(good.answered >= 50 && good.failures.is_empty() && good.connections == 2, "{good:?}");

        let load = Load::start(origin.address(), "a.test", "/", 2);
        load.await_more(10);
        origin.kill();
        load.await_more(1_000_000);
        assert!(!load.stop().failures.is_empty());
    }
}
