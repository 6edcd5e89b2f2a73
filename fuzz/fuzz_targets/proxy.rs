//! Raw bytes of a client and raw bytes of pods, through both halves of the codec.
//!
//! What a pod gets must be whole requests by the strict reading, each answered once; what the client gets
//! must be whole answers, but for the last.

#![no_main]

mod sockets;

use std::cell::RefCell;
use std::rc::Rc;

use bytes::BytesMut;
use http::{Method, StatusCode, Version};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sluicegate::common::clock;
use sluicegate::common::timer::Timers;
use sluicegate::http::body::Body;
use sluicegate::http::h1::client::{ClientConn, Home, Unread, Wants};
use sluicegate::http::h1::framing::{Decoder, Length};
use sluicegate::http::h1::io::Io;
use sluicegate::http::h1::parse::{self, HeadLimits, HeadScan, Leniency, LineEnds};
use sluicegate::http::h1::server::{Answer, Incoming, SendPatience, ServerConn};
use sluicegate::http::head::{Response, ResponseHead};

use sockets::{pair, talk};

const LIMITS: HeadLimits = HeadLimits { bytes: 64 * 1024, fields: 200 };
/// Far above what anything in here takes.
const PATIENCE: u64 = 2_000;

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    /// What pods answer, each answer on whatever connection comes next.
    pods: Vec<&'a [u8]>,
    client: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime =
        builder.enable_all().build_local(tokio::runtime::LocalOptions::default()).expect("a runtime");
    runtime.block_on(run(input.client.to_vec(), input.pods.iter().map(|pod| pod.to_vec()).collect()));
});

/// Connections that were given back.
#[derive(Debug, Default)]
struct Shelf(RefCell<Vec<Box<ClientConn>>>);

impl Home for Shelf {
    fn give_back(&self, conn: Box<ClientConn>) {
        self.0.borrow_mut().push(conn);
    }

    fn was_stale(&self, _: Unread) {}

    fn stands_still(&self) {}

    fn came_whole(&self) {}
}

async fn run(client: Vec<u8>, pods: Vec<Vec<u8>>) {
    let timers = Timers::new();
    let driver = tokio::task::spawn_local(Rc::clone(&timers).drive());
    let (near, far) = pair();
    let got = tokio::task::spawn_local(talk(far, client));
    let (exchanges, recorded) = serve(near, &timers, pods).await;
    let got = got.await.expect("no panic");
    let mut requests = 0;
    for pod in recorded {
        requests += requests_of(&pod.await.expect("no panic"));
    }
    assert!(requests <= exchanges.len(), "{requests} requests out of {}", exchanges.len());
    answers_of(&got, &exchanges);
    driver.abort();
}

type Recording = tokio::task::JoinHandle<Vec<u8>>;

/// The connection loop without routing; gives the methods of the requests that it answered.
async fn serve(io: Io, timers: &Rc<Timers>, pods: Vec<Vec<u8>>) -> (Vec<Method>, Vec<Recording>) {
    let conn = ServerConn::new(io, timers.slot());
    let slot = timers.slot();
    let shelf = Rc::new(Shelf::default());
    let home: Rc<dyn Home> = Rc::clone(&shelf) as Rc<dyn Home>;
    let mut pods = pods.into_iter();
    let (mut exchanges, mut recorded) = (Vec::new(), Vec::new());
    let patience = SendPatience {
        body_idle: PATIENCE,
        quiet: 0,
        client_idle: PATIENCE,
        deadline: u64::MAX,
        half_closed: PATIENCE,
    };
    loop {
        let parsed = match conn.read_head(&LIMITS).await {
            Ok(Incoming::Request(parsed)) => parsed,
            Ok(Incoming::Closed) | Err(_) => break,
        };
        let (method, version) = (parsed.head.method.clone(), parsed.head.version);
        exchanges.push(method.clone());
        let body = conn.request_body(clock::now() + PATIENCE, PATIENCE);
        let pooled = loop {
            match shelf.0.borrow_mut().pop() {
                Some(conn) if conn.is_usable(true) => break Some(conn),
                Some(_) => {}
                None => break None,
            }
        };
        let pod = pooled.unwrap_or_else(|| {
            let (near, far) = pair();
            recorded.push(tokio::task::spawn_local(talk(far, pods.next().unwrap_or_default())));
            ClientConn::new(near)
        });
        let mut interim = |status: StatusCode, headers: &sluicegate::http::fields::Fields| {
            conn.send_interim(status, headers)
        };
        let wants = Wants {
            in_vain: None,
            upgrade: None,
            expect_continue: parsed.expects_continue,
            interim: &mut interim,
            slot: &slot,
            header_timeout: PATIENCE,
            idle_timeout: PATIENCE,
            deadline: u64::MAX,
        };
        let mut head = parsed.head;
        if head.authority.as_bytes().is_empty() {
            head.authority = "pod.test".to_owned().into();
        }
        let mut response = match pod.exchange(&head, body, wants, &home).await {
            Ok((head, body)) => Response { head, body },
            Err(_) => Response::new(StatusCode::BAD_GATEWAY, Body::Empty),
        };
        let close = !parsed.keep_alive || !conn.request_is_done();
        let answer =
            Answer { version, head_only: method == Method::HEAD, close, date: b"now", upgrade: None };
        let head = ResponseHead { status: response.head.status, headers: response.head.headers };
        match conn.send(&head, &mut response.body, answer, &slot, patience).await {
            Ok(must_close) if !close && !must_close.0 && conn.request_is_done() => {}
            Ok(_) | Err(_) => break,
        }
    }
    (exchanges, recorded)
}

/// How many whole requests these bytes are. Only the last may be cut.
fn requests_of(bytes: &[u8]) -> usize {
    let mut buf = BytesMut::from(bytes);
    let mut count = 0;
    loop {
        let mut ends = LineEnds::default();
        let end = HeadScan::default()
            .find_end(&buf, &LIMITS_OF_OURS, Leniency::None, &mut ends)
            .expect("strict lines");
        let Some(end) = end else { return count };
        count += 1;
        let parsed =
            parse::request(buf.split_to(end).freeze(), &ends, &LIMITS_OF_OURS, None).expect("a strict head");
        assert_eq!(parsed.head.version, Version::HTTP_11);
        if !body_of(parsed.length, &mut buf) {
            return count;
        }
    }
}

/// What we write is somewhat larger than what came.
const LIMITS_OF_OURS: HeadLimits = HeadLimits { bytes: 256 * 1024, fields: 300 };

/// Takes a body off; whether it was whole.
fn body_of(length: Length, buf: &mut BytesMut) -> bool {
    let mut decoder = Decoder::new(length);
    while decoder.decode(buf).expect("strict chunks").is_some() {}
    decoder.is_done() || decoder.end_of_input().is_ok()
}

fn answers_of(bytes: &[u8], methods: &[Method]) {
    let mut buf = BytesMut::from(bytes);
    let mut methods = methods.iter();
    loop {
        let mut ends = LineEnds::default();
        let end = HeadScan::default()
            .find_end(&buf, &LIMITS_OF_OURS, Leniency::None, &mut ends)
            .expect("strict lines");
        let Some(end) = end else { return };
        let parsed =
            parse::response(buf.split_to(end).freeze(), &ends, &LIMITS_OF_OURS).expect("a strict head");
        if parsed.head.status.is_informational() {
            assert_ne!(parsed.head.status, StatusCode::SWITCHING_PROTOCOLS, "nobody asked");
            continue;
        }
        let method = methods.next().expect("no more answers than requests");
        let bodiless = method == Method::HEAD
            || matches!(parsed.head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        if !body_of(if bodiless { Length::Empty } else { parsed.length }, &mut buf) {
            return;
        }
    }
}
