//! What requests cost in allocations, counted on real connections, and what limits keep in memory: the one global
//! allocator of the unit tests counts what its own thread asks for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::connection::{self, Accepted, Control};
use super::listener::Admission;
use crate::common::live::Live;
use crate::common::names::EntryPointName;
use crate::common::problem::Problems;
use crate::config::load::Loader;
use crate::limit::redis::{Backend, GivesBack, Mode, OnFailure, Settings, SharedLimit, Use, Views};
use crate::limit::{
    BYTES_PER_BUCKET, Bound, DEFAULT_MAX_KEYS, KeyBytes, Limit, LimitKey, LocalLimit, Part, Quota, Store,
    Window,
};
use crate::proxy::core::{Core, Shared};
use crate::snapshot::ListenerId;
use crate::snapshot::compile::{Remarks, compile};
use crate::telemetry::metrics::{Metrics, MetricsSettings};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread holds: what it asked for, less what it gave back.
    static HELD: Cell<i64> = const { Cell::new(0) };
}

fn count(size: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    HELD.set(HELD.get() + size as i64);
}

fn uncount(size: usize) {
    HELD.set(HELD.get() - size as i64);
}

// SAFETY: all is left to the allocator of the system; the counter neither allocates nor has a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's word is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's word is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        uncount(layout.size());
        count(size);
        // SAFETY: the caller's word is passed on.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        uncount(layout.size());
        // SAFETY: the caller's word is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What making something takes and keeps.
fn held<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD.get();
    let made = make();
    (made, usize::try_from(HELD.get() - before).expect("nothing older is given back"))
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Requests that are counted together. The least of some rounds counts: once a second the date is written anew.
const REQUESTS: usize = 20;
const ROUNDS: usize = 5;

/// Allocations that a core makes for each of these requests, once it has served some, on one connection.
fn allocations(limit: &str, request: &'static str, status: &'static str) -> f64 {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.expect("a runtime").block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (mut reports, mut turns) = (Vec::new(), Vec::new());
        let mut steps = Vec::new();
        for _ in 0..=ROUNDS {
            let (report, reported) = oneshot::channel();
            let (go, may_go) = std::sync::mpsc::sync_channel::<()>(1);
            reports.push(reported);
            turns.push(go);
            steps.push((report, may_go));
        }
        let client = std::thread::spawn(move || {
            let mut stream = TcpStream::connect(address).expect("a listener");
            // One passes, to a pod that is not there.
            ask(&mut stream, request, "502");
            for (report, may_go) in steps {
                for _ in 0..REQUESTS {
                    ask(&mut stream, request, status);
                }
                report.send(()).expect("the test waits");
                may_go.recv().expect("the test goes on");
            }
        });
        let (stream, peer) = listener.accept().expect("a client");
        stream.set_nonblocking(true).expect("a socket");
        let core = core(limit);
        spawn_local(Rc::clone(&core.timers).drive());
        let admission = Admission::of_a_test();
        let accepted = Accepted { stream, peer, listener: LISTENER, admission, unwelcome: false };
        spawn_local(connection::run(core, accepted, Rc::new(Control::default())));
        let mut counts = Vec::with_capacity(ROUNDS + 1);
        for (reported, go) in reports.into_iter().zip(turns) {
            reported.await.expect("the client has not failed");
            counts.push(ALLOCATIONS.get());
            go.send(()).expect("the client waits");
        }
        client.join().expect("the client has not failed");
        let least = counts.windows(2).map(|pair| pair[1] - pair[0]).min().expect("some rounds");
        least as f64 / REQUESTS as f64
    })
}

fn ask(stream: &mut TcpStream, request: &str, status: &str) {
    stream.write_all(request.as_bytes()).expect("an open connection");
    let (mut buffer, mut length) = ([0; 4096], 0);
    loop {
        length += stream.read(&mut buffer[length..]).expect("an answer");
        let text = String::from_utf8_lossy(&buffer[..length]);
        // Refusals end with the status' own phrase.
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
            let rest = head.split("Content-Length: ").nth(1).and_then(|rest| rest.lines().next());
            if body.len() == rest.and_then(|length| length.parse().ok()).unwrap_or(0) {
                return;
            }
        }
        assert!(length > 0, "closed");
    }
}

const LISTENER: ListenerId = ListenerId(1);

/// A core with one router, which has this limit.
fn core(limit: &str) -> Rc<Core> {
    let text = format!(
        r#"
entryPoints: {{ web: {{ address: "127.0.0.1:0" }} }}
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods, middlewares: [limit] }} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "http://127.0.0.1:1" }}] }} }} }}
  middlewares: {{ limit: {{ rateLimit: {{ {limit} }} }} }}
"#
    );
    let loaded = Loader::of_text(Path::new("test.yaml"), text.as_bytes()).load();
    let metrics = Metrics::new(MetricsSettings::default(), "0.1.0");
    let mut problems = Problems::new();
    let document = loaded.document.expect("the test's own YAML");
    let draft = compile(&document.config, None, &metrics, Remarks::NeverMatches, &mut problems);
    assert!(!document.refuses(&problems), "{problems:?}");
    let listeners = BTreeMap::from([(EntryPointName::new("web"), LISTENER)]);
    let shared = Shared {
        snapshot: Live::new(draft.commit(&listeners, None, |_| false, "")),
        access_log: Live::new(None),
        internal: Box::new(|_, _, _, _| http::Response::new(Bytes::new())),
        guard: Arc::default(),
        reclaim: tokio::sync::Notify::new(),
    };
    Core::new(0, Arc::new(shared), metrics.core())
}

const BROWSER: &str = "GET /login?next=%2F HTTP/1.1\r\nHost: shop.test:8080\r\nUser-Agent: Mozilla/5.0\r\n\
    Accept: text/html\r\nAccept-Language: de\r\nAccept-Encoding: gzip\r\nCookie: a=b; c=d\r\n\r\n";

#[test]
fn a_refused_request_allocates_nothing() {
    for limit in [
        "average: 1, period: 1h, burst: 1",
        "average: 1, period: 1h, burst: 1, responseFields: both",
        "average: 1, period: 1h, burst: 1, limits: [{ name: day, average: 1, period: 24h }], responseFields: both, \
         sourceCriterion: { requestHost: true }, refusal: { status: 429, body: no, headers: { X-Why: limit } }",
    ] {
        assert_eq!(allocations(limit, BROWSER, "429"), 0.0, "{limit}");
    }
}

const SECOND: u64 = 1_000_000_000;

/// One an hour, so that nobody's bucket is full again while the test runs.
fn hourly(windows: &[&str]) -> Arc<Limit> {
    let (one, burst) = (NonZeroU64::MIN, NonZeroU64::new(10).expect("not zero"));
    let quota = Quota::new(one, Duration::from_secs(3600), burst);
    Arc::new(Limit::new(windows.iter().map(|name| Window { name: (*name).into(), quota })))
}

fn client(number: usize) -> KeyBytes {
    KeyBytes::of(&[Part::Bytes(format!("client {number}").as_bytes())])
}

#[test]
fn a_limit_keeps_27_bytes_a_client_and_window_and_no_more_however_many_come() {
    assert_eq!(BYTES_PER_BUCKET, 27);
    for windows in [&["default"][..], &["default", "day"]] {
        let keys = DEFAULT_MAX_KEYS.get();
        let bound = Bound::buckets(NonZeroUsize::new(keys * windows.len()).expect("not zero"));
        let (local, _) = held(|| {
            LocalLimit::new(Arc::new(Store::new(bound)), hourly(windows), bound, 0).expect("one quota")
        });
        let ((), bytes) = held(|| {
            for number in 0..2 * keys {
                local.decide(SECOND, LimitKey::of_bytes(&client(number)), 1);
            }
        });
        let counts = local.store().counts();
        // Each shard has a whole number of sets, of a cache line of tags and two of states, and a lock.
        let shards = 256;
        let locks = bytes - usize::try_from(counts.bytes).expect("it fits");
        assert!(locks <= shards * 128, "what operators are told is what it takes: {locks} more");
        assert!(counts.buckets >= (keys * windows.len()) as u64, "{counts:?}");
        assert!(counts.evicted > 0, "{counts:?}");
        let rounding = shards * 192;
        assert!(bytes - locks <= keys * windows.len() * BYTES_PER_BUCKET + rounding, "{bytes}");
    }
}

#[test]
fn a_replica_keeps_about_200_bytes_a_client_of_redis_and_no_more_clients_than_may_be() {
    let keys = DEFAULT_MAX_KEYS.get();
    for mode in [Mode::Exact, Mode::Lease(NonZeroU64::MIN)] {
        let how = Use {
            mode,
            on_failure: OnFailure::Local,
            replicas: NonZeroU64::MIN,
            max_keys: DEFAULT_MAX_KEYS,
            gives_back: GivesBack::No,
        };
        // Nobody connects to it: each client is decided by what this replica knows.
        let views = Arc::new(Views::default());
        let backend = Arc::new(Backend::new(Settings::of_a_test()));
        let shared =
            SharedLimit::new(backend, "limit", hourly(&["default"]), Arc::clone(&views), Arc::default(), how);
        let ((), bytes) = held(|| {
            for number in 0..2 * keys {
                shared.begin(SECOND, &client(number), 1);
            }
        });
        let known = views.keys();
        assert_eq!(known, keys);
        assert!(bytes <= known * 220, "{} each", bytes / known);
    }
}

#[test]
fn a_limit_that_nobody_has_met_yet_is_small() {
    let bound = Bound::buckets(DEFAULT_MAX_KEYS);
    let (_store, bytes) = held(|| Store::new(bound));
    // Thousands of routers may have one each: its shards are made when the first client comes.
    assert!(bytes <= 256, "{bytes}");
}
