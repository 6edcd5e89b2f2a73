//! What pods of HTTP/2 answer, frame by frame: never passed on as it came when it is wrong, never at another's cost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::frames::{END_HEADERS, END_STREAM, field, fields, frame, kind};
use crate::harness::origin::Peer;
use crate::harness::{Origin, Proxy, origin, proxy};

/// What the client gets.
#[derive(Clone, Copy, Debug)]
enum Want {
    /// The answer of the proxy's own.
    BadGateway,
    /// A beginning of the answer, and then the end of its connection.
    Cut,
    /// This status and this content.
    Answer(u16, &'static str),
}

use Want::{Answer, BadGateway, Cut};

/// An answer on a stream.
type Bytes = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync>;

struct Case {
    name: &'static str,
    want: Want,
    bytes: Bytes,
}

fn case(name: &'static str, want: Want, bytes: impl Fn(u32) -> Vec<u8> + Send + Sync + 'static) -> Case {
    Case { name, want, bytes: Box::new(bytes) }
}

/// A head with these fields, and `pod!` as content.
fn with(name: &'static str, want: Want, more: &'static [(&str, &str)]) -> Case {
    case(name, want, move |stream| [head(stream, more), end(stream, "pod!")].concat())
}

fn head(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, [field(":status", "200"), fields(more)].concat())
}

fn end(stream: u32, content: &str) -> Vec<u8> {
    frame(kind::DATA, END_STREAM, stream, content)
}

fn part(stream: u32, content: &str) -> Vec<u8> {
    frame(kind::DATA, 0, stream, content)
}

fn reset(stream: u32, code: u8) -> Vec<u8> {
    frame(kind::RST_STREAM, 0, stream, [0, 0, 0, code])
}

fn only(stream: u32, block: Vec<u8>) -> Vec<u8> {
    [frame(kind::HEADERS, END_HEADERS, stream, block), end(stream, "pod!")].concat()
}

const PUSH_PROMISE: u8 = 5;

/// Serves a connection with SETTINGS of the pod's choice; each whole request gets what `answer` says.
fn speak(peer: &mut Peer, settings: &[u8], answer: &dyn Fn(u32) -> Vec<u8>) {
    let Ok(_) = peer.read_exactly(24) else { return };
    peer.write(frame(kind::SETTINGS, 0, 0, settings));
    while let Ok(begin) = peer.read_exactly(9) {
        let length = u32::from_be_bytes([0, begin[0], begin[1], begin[2]]);
        let Ok(_) = peer.read_exactly(length as usize) else { return };
        let stream = u32::from_be_bytes([begin[5], begin[6], begin[7], begin[8]]);
        match begin[3] {
            kind::SETTINGS if begin[4] & 1 == 0 => {
                peer.write(frame(kind::SETTINGS, 1, 0, []));
            }
            kind::HEADERS | kind::DATA if begin[4] & END_STREAM != 0 => {
                peer.write(answer(stream));
            }
            _ => {}
        }
    }
}

fn before(pod: &Origin) -> Proxy {
    let url = format!("h2c://{}", pod.address());
    proxy()
        .name("pod", url)
        .config(
            "http:\n  routers: { r: { rule: 'PathPrefix(`/`)', service: s } }\n  services: { s: { loadBalancer: { \
             servers: [{ url: '{pod}' }] } } }\n",
        )
        .start()
}

/// Each answer to a POST, so that no repetition hides anything, and a good request after it.
fn run_all(cases: Vec<Case>) {
    let (cases, at) = (Arc::new(cases), Arc::new(AtomicUsize::new(usize::MAX)));
    let (script, which) = (Arc::clone(&cases), Arc::clone(&at));
    let pod = origin()
        .connection(move |peer| {
            speak(peer, &[], &|stream| match script.get(which.load(Ordering::SeqCst)) {
                Some(case) => (case.bytes)(stream),
                None => [head(stream, &[]), end(stream, "good")].concat(),
            });
        })
        .start();
    let proxy = before(&pod);
    let mut wrong = Vec::new();
    for (index, Case { name, want, .. }) in cases.iter().enumerate() {
        at.store(index, Ordering::SeqCst);
        let mut client = proxy.client("a.test");
        client.send_request("POST", "/x", &[], b"hello");
        let answer = client.try_response("POST");
        let right = match (want, &answer) {
            (BadGateway, Ok(answer)) => answer.status == 502 && answer.text() == "Bad Gateway",
            (Cut, answer) => answer.is_err(),
            (Answer(status, text), Ok(answer)) => answer.status == *status && answer.text() == *text,
            (BadGateway | Answer(..), Err(_)) => false,
        };
        if !right {
            wrong.push(format!("{name}: {answer:?}"));
        }
        at.store(usize::MAX, Ordering::SeqCst);
        let good = proxy.get("a.test", "/good");
        if (good.status, good.text().as_str()) != (200, "good") {
            wrong.push(format!("after {name}: {:?} {:?}", good.status, good.text()));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn heads_are_read_strictly() {
    let status = |value: &'static str| move |stream| only(stream, field(":status", value));
    run_all(vec![
        with("nothing special", Answer(200, "pod!"), &[("x", "y")]),
        with("bytes above ASCII in a value", Answer(200, "pod!"), &[("x", "\u{e4}")]),
        with("a capital letter", BadGateway, &[("X-Upper", "y")]),
        with("an empty name", BadGateway, &[("", "y")]),
        with("a colon in a name", BadGateway, &[("x:y", "z")]),
        with("a whole field in a value", BadGateway, &[("x", "y\r\nset-cookie: evil")]),
        with("NUL in a value", BadGateway, &[("x", "y\0")]),
        with("a control byte in a value", BadGateway, &[("x", "y\u{1}")]),
        with("a space before a value", BadGateway, &[("x", " y")]),
        with("a tab behind a value", BadGateway, &[("x", "y\t")]),
        with("connection", BadGateway, &[("connection", "close")]),
        with("keep-alive", BadGateway, &[("keep-alive", "timeout=5")]),
        with("transfer-encoding", BadGateway, &[("transfer-encoding", "chunked")]),
        with("upgrade", BadGateway, &[("upgrade", "h2c")]),
        with("two statuses", BadGateway, &[(":status", "200")]),
        case("no status", BadGateway, |stream| only(stream, field("x", "y"))),
        case("a status behind a field", BadGateway, |stream| {
            only(stream, [field("x", "y"), field(":status", "200")].concat())
        }),
        case("a status of two digits", BadGateway, status("99")),
        case("a status with a sign", BadGateway, status("+20")),
        case("a switch of protocols", BadGateway, status("101")),
        case("a head that is too large", BadGateway, |stream| {
            let field = field("x", "y".repeat(15_000));
            let mut bytes = frame(kind::HEADERS, 0, stream, self::field(":status", "200"));
            for _ in 0..20 {
                bytes.extend(frame(kind::CONTINUATION, 0, stream, &field));
            }
            bytes.extend(frame(kind::CONTINUATION, END_HEADERS, stream, []));
            bytes.extend(end(stream, "pod!"));
            bytes
        }),
        case("a head that never ends", BadGateway, |stream| {
            let mut bytes = frame(kind::HEADERS, 0, stream, field(":status", "200"));
            bytes.extend(frame(kind::CONTINUATION, 0, stream, []).repeat(5_000));
            bytes
        }),
        case("a field that is not in the table", BadGateway, |stream| only(stream, vec![0xff, 0x20])),
    ]);
}

#[test]
fn content_is_as_long_as_it_says_or_cut() {
    let to = |length: &'static str| [("content-length", length)];
    run_all(vec![
        with("as long as it says", Answer(200, "pod!"), &[("content-length", "4")]),
        with("shorter than it says", Cut, &[("content-length", "5")]),
        with("longer than it says", Cut, &[("content-length", "3")]),
        with("a length with a plus", BadGateway, &[("content-length", "+4")]),
        with("a list of lengths", BadGateway, &[("content-length", "4, 4")]),
        with("two lengths", BadGateway, &[("content-length", "4"), ("content-length", "5")]),
        case("a length and no content", BadGateway, move |stream| {
            let block = [field(":status", "200"), fields(&to("4"))].concat();
            frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, block)
        }),
        case("content where there is none", Answer(204, ""), |stream| only(stream, field(":status", "204"))),
        case("content of what did not change", Answer(304, ""), |stream| {
            only(stream, [field(":status", "304"), field("content-length", "4")].concat())
        }),
        case("a reset behind the end", Answer(200, "pod!"), |stream| {
            [head(stream, &[]), end(stream, "pod!"), reset(stream, 0)].concat()
        }),
        case("a reset for a reason behind the end", Answer(200, "pod!"), |stream| {
            [head(stream, &[]), end(stream, "pod!"), reset(stream, 8)].concat()
        }),
        case("a reset before the end", Cut, |stream| {
            [head(stream, &[]), part(stream, "po"), reset(stream, 8)].concat()
        }),
        case("a reset without an error before the end", Cut, |stream| {
            [head(stream, &[]), part(stream, "po"), reset(stream, 0)].concat()
        }),
        case("a reset before the head", BadGateway, |stream| reset(stream, 2)),
        case("content before the head", BadGateway, |stream| {
            [part(stream, "po"), head(stream, &[])].concat()
        }),
        case("content of another stream", BadGateway, |stream| {
            [part(stream + 2, "evil"), head(stream, &[]), end(stream, "pod!")].concat()
        }),
        case("a second head", Cut, |stream| [head(stream, &[]), head(stream, &[])].concat()),
        case("trailers that end nothing", Cut, |stream| {
            [
                head(stream, &[]),
                part(stream, "po"),
                frame(kind::HEADERS, END_HEADERS, stream, field("x", "y")),
            ]
            .concat()
        }),
        case("padding beyond its frame", Cut, |stream| {
            [head(stream, &[]), frame(kind::DATA, 8 | END_STREAM, stream, b"\xffpod!")].concat()
        }),
    ]);
}

#[test]
fn what_a_connection_does_besides_hurts_nobody() {
    run_all(vec![
        case("a frame that nobody knows", Answer(200, "pod!"), |stream| {
            [frame(0xbb, 0, stream, "zzz"), head(stream, &[]), end(stream, "pod!")].concat()
        }),
        case("a promise", BadGateway, |stream| {
            let promised = [&[0, 0, 0, 2][..], &fields(&[(":method", "GET"), (":path", "/")])].concat();
            [frame(PUSH_PROMISE, END_HEADERS, stream, promised), head(stream, &[]), end(stream, "pod!")]
                .concat()
        }),
        case("a goodbye in the middle", Answer(200, "pod!"), |stream| {
            let goaway = [&stream.to_be_bytes()[..], &[0; 4]].concat();
            [head(stream, &[]), part(stream, "po"), frame(kind::GOAWAY, 0, 0, goaway), end(stream, "d!")]
                .concat()
        }),
        case("a goodbye that names no stream", BadGateway, |stream| {
            [frame(kind::GOAWAY, 0, 0, [0, 0, 0, 0, 0, 0, 0, 2]), reset(stream, 2)].concat()
        }),
        case("a window beyond all bounds", BadGateway, |_| {
            frame(kind::WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff])
        }),
        case("SETTINGS and PINGs in numbers", Answer(200, "pod!"), |stream| {
            let mut bytes = frame(kind::PING, 0, 0, [0; 8]).repeat(2_000);
            bytes.extend(frame(kind::SETTINGS, 0, 0, []).repeat(2_000));
            bytes.extend([head(stream, &[]), end(stream, "pod!")].concat());
            bytes
        }),
        case("interim answers without end", BadGateway, |stream| {
            let one = frame(kind::HEADERS, END_HEADERS, stream, field(":status", "103"));
            [one.repeat(500), head(stream, &[]), end(stream, "pod!")].concat()
        }),
        case("an interim answer that ends its stream", BadGateway, |stream| {
            frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, field(":status", "103"))
        }),
    ]);
}

#[test]
fn settings_at_the_edge_serve_all_the_same() {
    // Number and value: HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE,
    // MAX_HEADER_LIST_SIZE (RFC 9113 §6.5.2), and one that nobody knows.
    let cases = [(1, 0), (1, u32::MAX >> 1), (3, 1), (4, 1), (5, 16_384), (5, 0xff_ffff), (6, 10), (99, 7)];
    for (number, value) in cases {
        let settings = [&u16::to_be_bytes(number)[..], &u32::to_be_bytes(value)].concat();
        let pod = origin()
            .connection(move |peer| {
                speak(peer, &settings, &|stream| [head(stream, &[]), end(stream, "pod!")].concat());
            })
            .start();
        let proxy = before(&pod);
        for _ in 0..3 {
            let answer = proxy.get("a.test", "/x").expect(200);
            assert_eq!(answer.text(), "pod!", "{number}: {value}");
        }
    }
}

#[test]
fn a_pod_that_takes_no_streams_gets_none_and_gathers_no_connections() {
    // MAX_CONCURRENT_STREAMS of 0: requests go to another pod, or are told so.
    let pod = origin()
        .connection(|peer| {
            speak(peer, &[0, 3, 0, 0, 0, 0], &|stream| [head(stream, &[]), end(stream, "pod!")].concat());
        })
        .start();
    let proxy = before(&pod);
    for _ in 0..20 {
        proxy.get("a.test", "/x").expect(502);
    }
    assert!(proxy.metric("sluicegate_refusals_total{code=\"connect_failed\",fault=\"upstream\"}") >= 20.0);
    assert!(pod.open_connections() <= 4, "{} connections", pod.open_connections());
}
