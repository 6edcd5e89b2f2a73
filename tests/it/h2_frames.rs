//! Frames that break RFC 9113, or that two readers could read in two ways.
//!
//! Each case is exact bytes behind preface and SETTINGS. Whatever is refused leaves no request at the origin, and
//! a good client beside it is served.

use std::time::Duration;

use crate::harness::frames::{
    ACK, END_HEADERS, END_STREAM, Frames, Outcome, PADDED, PRIORITY_FLAG, field, fields, frame, kind, request,
};
use crate::harness::{Origin, Proxy, origin, proxy};

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const STREAM_CLOSED: u32 = 5;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const COMPRESSION_ERROR: u32 = 9;

/// What has to become of a case.
enum Want {
    /// GOAWAY with one of these codes (an end without a word is within the RFC), then the end.
    Connection(&'static [u32]),
    /// RST_STREAM with one of these codes, or GOAWAY; the origin sees nothing.
    Stream(&'static [u32]),
    /// An answer with one of these statuses, RST_STREAM, or GOAWAY; the origin sees nothing.
    Refused(&'static [u16]),
    /// 200 from the origin, which read this body.
    Served(&'static str),
    /// Nothing comes of it; the connection goes on.
    Ignored,
}

use Want::{Connection, Ignored, Refused, Served, Stream};

struct Case {
    name: &'static str,
    want: Want,
    bytes: Vec<u8>,
}

fn case(name: &'static str, want: Want, frames: &[Vec<u8>]) -> Case {
    Case { name, want, bytes: frames.concat() }
}

/// A GET whose fields are given in full.
fn head(name: &'static str, want: Want, all: &[(&str, &str)]) -> Case {
    case(name, want, &[frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, fields(all))])
}

/// A GET with more fields.
fn with(name: &'static str, want: Want, more: &[(&str, &str)]) -> Case {
    case(name, want, &[get(1, more)])
}

fn get(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, request("GET", "/x", more))
}

fn post(stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, request("POST", "/x", more))
}

fn data(flags: u8, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    frame(kind::DATA, flags, 1, bytes)
}

fn raw_field(name: &'static str, want: Want, field_name: &[u8], value: &[u8]) -> Case {
    let mut block = request("GET", "/x", &[]);
    block.extend(field(field_name, value));
    case(name, want, &[frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, block)])
}

#[test]
fn frames_of_the_connection_are_read_strictly() {
    let setting = |key: u16, value: u32| {
        frame(kind::SETTINGS, 0, 0, [&key.to_be_bytes()[..], &value.to_be_bytes()[..]].concat())
    };
    run_all(vec![
        case("SETTINGS on a stream", Connection(&[PROTOCOL_ERROR]), &[frame(kind::SETTINGS, 0, 1, [])]),
        case(
            "SETTINGS of a length that is no multiple of 6",
            Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::SETTINGS, 0, 0, [0; 5])],
        ),
        case(
            "an acknowledgement with content",
            Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::SETTINGS, ACK, 0, [0; 6])],
        ),
        case("ENABLE_PUSH of 2", Connection(&[PROTOCOL_ERROR]), &[setting(2, 2)]),
        case(
            "a window above 2^31-1",
            Connection(&[FLOW_CONTROL_ERROR, PROTOCOL_ERROR]),
            &[setting(4, 1 << 31)],
        ),
        case("a frame size below 16384", Connection(&[PROTOCOL_ERROR]), &[setting(5, 16_383)]),
        case("a frame size above 2^24-1", Connection(&[PROTOCOL_ERROR]), &[setting(5, 1 << 24)]),
        case("an unknown setting", Ignored, &[setting(0xff, 1)]),
        case("PING on a stream", Connection(&[PROTOCOL_ERROR]), &[frame(kind::PING, 0, 1, [0; 8])]),
        case(
            "PING of 7 bytes",
            Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::PING, 0, 0, [0; 7])],
        ),
        case("an answer to a PING that nobody sent", Ignored, &[frame(kind::PING, ACK, 0, [1; 8])]),
        case("GOAWAY on a stream", Connection(&[PROTOCOL_ERROR]), &[frame(kind::GOAWAY, 0, 1, [0; 8])]),
        case(
            "a window update of 0 for the connection",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::WINDOW_UPDATE, 0, 0, [0; 4])],
        ),
        case(
            "window updates beyond 2^31-1",
            Connection(&[FLOW_CONTROL_ERROR]),
            &[
                frame(kind::WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff]),
                frame(kind::WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff]),
            ],
        ),
        case(
            "a window update of 3 bytes",
            Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::WINDOW_UPDATE, 0, 0, [0, 0, 1])],
        ),
        case(
            "a window update for a stream that is idle",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::WINDOW_UPDATE, 0, 5, [0, 0, 0, 1])],
        ),
        case("a frame of an unknown type", Ignored, &[frame(0x42, 0xff, 0, b"whatever")]),
        case("a frame of an unknown type on a stream", Ignored, &[frame(0x42, 0xff, 7, b"whatever")]),
        case(
            "a promise from a client",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(
                kind::PUSH_PROMISE,
                END_HEADERS,
                1,
                [&[0, 0, 0, 2][..], &request("GET", "/x", &[])].concat(),
            )],
        ),
        case(
            "a frame beyond the size that was agreed",
            Connection(&[FRAME_SIZE_ERROR]),
            &[post(1, &[]), data(END_STREAM, [b'x'; 16_385])],
        ),
    ]);
}

#[test]
fn frames_of_streams_come_only_where_they_may() {
    let block = request("GET", "/x", &[]);
    let headers = |flags: u8, stream: u32, payload: &[u8]| frame(kind::HEADERS, flags, stream, payload);
    let all = END_HEADERS | END_STREAM;
    run_all(vec![
        case(
            "DATA without a stream",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::DATA, END_STREAM, 0, b"x")],
        ),
        case("DATA on a stream that is idle", Connection(&[PROTOCOL_ERROR]), &[data(END_STREAM, b"x")]),
        case("HEADERS without a stream", Connection(&[PROTOCOL_ERROR]), &[headers(all, 0, &block)]),
        case("HEADERS on an even stream", Connection(&[PROTOCOL_ERROR]), &[headers(all, 2, &block)]),
        case(
            "HEADERS on a stream below the last one",
            Connection(&[PROTOCOL_ERROR, STREAM_CLOSED]),
            &[headers(all, 5, b"\x82"), headers(all, 3, &block)],
        ),
        case(
            "HEADERS whose padding is longer than they are",
            Connection(&[PROTOCOL_ERROR]),
            &[headers(all | PADDED, 1, b"\xff\x82")],
        ),
        case(
            "HEADERS that depend on their own stream",
            Stream(&[PROTOCOL_ERROR]),
            &[headers(all | PRIORITY_FLAG, 1, &[&[0, 0, 0, 1, 16][..], &block].concat())],
        ),
        case(
            "HEADERS with a priority",
            Served(""),
            &[headers(all | PRIORITY_FLAG, 1, &[&[0, 0, 0, 0, 16][..], &block].concat())],
        ),
        case(
            "HEADERS with padding",
            Served(""),
            &[headers(all | PADDED, 1, &[&[3][..], &block, &[0; 3]].concat())],
        ),
        case(
            "DATA whose padding is longer than it is",
            Connection(&[PROTOCOL_ERROR]),
            &[post(1, &[]), data(END_STREAM | PADDED, [9, b'x'])],
        ),
        case(
            "DATA with padding",
            Served("hello"),
            &[post(1, &[]), data(END_STREAM | PADDED, b"\x04hello\0\0\0\0")],
        ),
        case(
            "fields in three frames",
            Served(""),
            &[
                headers(END_STREAM, 1, &block[..5]),
                frame(kind::CONTINUATION, 0, 1, &block[5..20]),
                frame(kind::CONTINUATION, END_HEADERS, 1, &block[20..]),
            ],
        ),
        case(
            "fields that go on behind their end",
            Connection(&[PROTOCOL_ERROR]),
            &[headers(END_HEADERS, 1, &block), frame(kind::CONTINUATION, END_HEADERS, 1, b"\x82")],
        ),
        case(
            "fields that go on without a beginning",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::CONTINUATION, END_HEADERS, 1, &block)],
        ),
        case(
            "fields that go on on another stream",
            Connection(&[PROTOCOL_ERROR]),
            &[headers(END_STREAM, 1, &block[..5]), frame(kind::CONTINUATION, END_HEADERS, 3, &block[5..])],
        ),
        case(
            "DATA in the middle of fields",
            Connection(&[PROTOCOL_ERROR]),
            &[headers(0, 1, &block[..5]), data(END_STREAM, b"x")],
        ),
        case(
            "an unknown frame in the middle of fields",
            Connection(&[PROTOCOL_ERROR]),
            &[headers(END_STREAM, 1, &block[..5]), frame(0x42, 0, 0, b"x")],
        ),
        case(
            "PRIORITY without a stream",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::PRIORITY, 0, 0, [0; 5])],
        ),
        case(
            "PRIORITY of 4 bytes",
            Stream(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::PRIORITY, 0, 1, [0; 4])],
        ),
        case("PRIORITY of a stream that is idle", Ignored, &[frame(kind::PRIORITY, 0, 5, [0; 5])]),
        case(
            "RST_STREAM without a stream",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::RST_STREAM, 0, 0, [0; 4])],
        ),
        case(
            "RST_STREAM of a stream that is idle",
            Connection(&[PROTOCOL_ERROR]),
            &[frame(kind::RST_STREAM, 0, 1, [0; 4])],
        ),
        case(
            "RST_STREAM of 3 bytes",
            Connection(&[FRAME_SIZE_ERROR, PROTOCOL_ERROR]),
            &[post(1, &[]), frame(kind::RST_STREAM, 0, 1, [0; 3])],
        ),
        case(
            "a window update of 0 for a stream",
            Stream(&[PROTOCOL_ERROR]),
            &[post(1, &[]), frame(kind::WINDOW_UPDATE, 0, 1, [0; 4])],
        ),
        case(
            "a window of a stream beyond 2^31-1",
            Stream(&[FLOW_CONTROL_ERROR]),
            &[post(1, &[]), frame(kind::WINDOW_UPDATE, 0, 1, [0x7f, 0xff, 0xff, 0xff])],
        ),
    ]);
}

#[test]
fn compressed_fields_that_cannot_be_unpacked_end_the_connection() {
    let broken = |name, bytes: &[u8]| {
        case(
            name,
            Connection(&[COMPRESSION_ERROR, PROTOCOL_ERROR]),
            &[frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, bytes)],
        )
    };
    run_all(vec![
        broken("index 0", &[0x80]),
        broken("an index that the table has not", &[0xff, 0x80, 0x01]),
        broken("a table larger than was agreed", &[0x3f, 0xe1, 0xff, 0x03, 0x82]),
        broken("a change of the table behind a field", &[0x82, 0x20, 0x84, 0x86]),
        broken("a literal that ends in its middle", &[0x82, 0x00, 0x05, b'a']),
        broken("an integer without end", &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
        broken("padding of a Huffman code that is longer than 7 bits", &[0x00, 0x81, 0xff, 0x00]),
    ]);
}

#[test]
fn pseudo_fields_are_there_once_and_first() {
    let (method, scheme, authority, path) =
        ((":method", "GET"), (":scheme", "http"), (":authority", "a.test"), (":path", "/x"));
    let bad = || Refused(&[400]);
    run_all(vec![
        head("all that is needed", Served(""), &[method, scheme, authority, path]),
        head("in another order", Served(""), &[path, authority, scheme, method]),
        head("no method", bad(), &[scheme, authority, path]),
        head("no scheme", bad(), &[method, authority, path]),
        head("no path", bad(), &[method, scheme, authority]),
        head("an empty path", bad(), &[method, scheme, authority, (":path", "")]),
        head("two methods", bad(), &[method, method, scheme, authority, path]),
        head("two schemes", bad(), &[method, scheme, scheme, authority, path]),
        head("two paths", bad(), &[method, scheme, authority, path, (":path", "/y")]),
        head("two authorities", bad(), &[method, scheme, authority, authority, path]),
        head("an unknown one", bad(), &[method, scheme, authority, path, (":x", "y")]),
        head("a status", bad(), &[method, scheme, authority, path, (":status", "200")]),
        head("one behind a field", bad(), &[method, scheme, authority, ("x", "y"), path]),
        head("a method that is no token", bad(), &[(":method", "G T"), scheme, authority, path]),
        head("an empty method", bad(), &[(":method", ""), scheme, authority, path]),
        head("a scheme that is no web", bad(), &[method, (":scheme", "ftp"), authority, path]),
        head("a path without its slash", bad(), &[method, scheme, authority, (":path", "x")]),
        head("an asterisk without OPTIONS", bad(), &[method, scheme, authority, (":path", "*")]),
        head("a space in the path", bad(), &[method, scheme, authority, (":path", "/x y")]),
        head("a line end in the path", bad(), &[method, scheme, authority, (":path", "/x\r\nX: y")]),
        head("NUL in the path", bad(), &[method, scheme, authority, (":path", "/x\0")]),
        head("a path that hides another", bad(), &[method, scheme, authority, (":path", "/x%2f..%2fadmin")]),
        head("a user in the authority", bad(), &[method, scheme, (":authority", "u:p@a.test"), path]),
        head("a space in the authority", bad(), &[method, scheme, (":authority", "a .test"), path]),
        head("an empty authority", bad(), &[method, scheme, (":authority", ""), path]),
        head("a port that is none", bad(), &[method, scheme, (":authority", "a.test:x"), path]),
        head("neither authority nor Host", bad(), &[method, scheme, path]),
        head("Host alone", Served(""), &[method, scheme, path, ("host", "a.test")]),
        head("Host that agrees", Served(""), &[method, scheme, authority, path, ("host", "a.test")]),
        head("Host that does not", bad(), &[method, scheme, authority, path, ("host", "b.test")]),
        head("two Hosts", bad(), &[method, scheme, path, ("host", "a.test"), ("host", "a.test")]),
        head("CONNECT", Refused(&[501]), &[(":method", "CONNECT"), (":authority", "a.test:443")]),
        head("CONNECT with a path", bad(), &[(":method", "CONNECT"), scheme, authority, path]),
        head(
            "a protocol that nobody speaks",
            Refused(&[501]),
            &[(":method", "CONNECT"), (":protocol", "connect-udp"), scheme, authority, path],
        ),
        head(
            "a protocol without CONNECT",
            bad(),
            &[method, (":protocol", "websocket"), scheme, authority, path],
        ),
    ]);
}

#[test]
fn fields_are_read_strictly() {
    let bad = || Refused(&[400]);
    let long = "y".repeat(100_000);
    let many: Vec<(String, String)> = (0..300).map(|at| (format!("x-{at}"), "y".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    run_all(vec![
        with("a capital letter", bad(), &[("X-Upper", "y")]),
        with("connection", bad(), &[("connection", "close")]),
        with("keep-alive", bad(), &[("keep-alive", "timeout=5")]),
        with("proxy-connection", bad(), &[("proxy-connection", "close")]),
        with("transfer-encoding", bad(), &[("transfer-encoding", "chunked")]),
        with("upgrade", bad(), &[("upgrade", "websocket")]),
        with("te with a coding", bad(), &[("te", "gzip")]),
        with("te with two members", bad(), &[("te", "trailers, gzip")]),
        with("te with trailers", Served(""), &[("te", "trailers")]),
        raw_field("an empty name", bad(), b"", b"y"),
        raw_field("a space in a name", bad(), b"x y", b"z"),
        raw_field("a colon in a name", bad(), b"x:y", b"z"),
        raw_field("a line end in a name", bad(), b"x\r\n", b"z"),
        raw_field("CR in a value", bad(), b"x", b"y\rz"),
        raw_field("LF in a value", bad(), b"x", b"y\nz"),
        raw_field("NUL in a value", bad(), b"x", b"y\0z"),
        raw_field("a whole field in a value", bad(), b"x", b"y\r\nEvil: 1"),
        raw_field("a space before a value", bad(), b"x", b" y"),
        raw_field("a tab behind a value", bad(), b"x", b"y\t"),
        raw_field("bytes above ASCII in a value", Served(""), b"x", b"\xc3\xa4"),
        with("an expectation that nobody meets", Refused(&[417]), &[("expect", "wonders")]),
        with("a field longer than all may be", Refused(&[431]), &[("x", &long)]),
        with("more fields than there may be", Refused(&[431]), &many),
    ]);
}

#[test]
fn content_is_as_long_as_it_says() {
    let bad = || Refused(&[400]);
    let length = |value| [("content-length", value)];
    run_all(vec![
        case("as long as it says", Served("hello"), &[post(1, &length("5")), data(END_STREAM, "hello")]),
        case("in pieces", Served("hello"), &[post(1, &length("5")), data(0, "hel"), data(END_STREAM, "lo")]),
        case("without a length", Served("hello"), &[post(1, &[]), data(0, "hello"), data(END_STREAM, "")]),
        case(
            "with frames that are empty",
            Served("hello"),
            &[post(1, &length("5")), data(0, ""), data(0, "hello"), data(0, ""), data(END_STREAM, "")],
        ),
        case("shorter than it says", bad(), &[post(1, &length("6")), data(END_STREAM, "hello")]),
        case("longer than it says", bad(), &[post(1, &length("4")), data(END_STREAM, "hello")]),
        case("longer than nothing", bad(), &[post(1, &length("0")), data(END_STREAM, "hello")]),
        case(
            "a length and no content",
            bad(),
            &[frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, request("POST", "/x", &length("5")))],
        ),
        case("a length that is no number", bad(), &[post(1, &length("five")), data(END_STREAM, "hello")]),
        case("a length with a plus", bad(), &[post(1, &length("+5")), data(END_STREAM, "hello")]),
        case(
            "two lengths",
            bad(),
            &[post(1, &[("content-length", "5"), ("content-length", "5")]), data(END_STREAM, "hello")],
        ),
        case(
            "trailers",
            Served("hello"),
            &[
                post(1, &[]),
                data(0, "hello"),
                frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, field("x-sum", "1")),
            ],
        ),
        case(
            "trailers with a pseudo-field",
            Stream(&[PROTOCOL_ERROR]),
            &[
                post(1, &length("9")),
                data(0, "hello"),
                frame(kind::HEADERS, END_HEADERS | END_STREAM, 1, field(":path", "/y")),
            ],
        ),
        case(
            "trailers that end nothing",
            Stream(&[PROTOCOL_ERROR]),
            &[
                post(1, &length("9")),
                data(0, "hello"),
                frame(kind::HEADERS, END_HEADERS, 1, field("x-sum", "1")),
            ],
        ),
    ]);
}

#[test]
fn a_client_that_only_seems_to_speak_http2_is_not_served() {
    let (origin, proxy) = start();
    for start in [
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "PRI * HTTP/2.0\r\nHost: a.test\r\n\r\n",
        "PRI / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = proxy.client("a.test");
        client.send(start);
        let answer = client.response();
        assert!(matches!(answer.status, 400 | 505), "{start:?}: {}", answer.status);
        client.assert_closed();
    }
    let mut client = Frames::bare(proxy.address("web"));
    client.send(crate::harness::frames::PREFACE);
    client.get(1, "/x");
    assert!(
        matches!(client.outcome(1), Outcome::GoAway(PROTOCOL_ERROR) | Outcome::Closed),
        "no SETTINGS first: {:?}",
        client.seen
    );
    assert_eq!(origin.hits(), 0);
}

#[test]
fn cookies_in_crumbs_reach_the_origin_as_one() {
    let (origin, proxy) = start();
    let mut client = Frames::connect(proxy.address("web"));
    client.send(get(1, &[("cookie", "a=1"), ("x", "y"), ("cookie", "b=2"), ("cookie", "c=3")]));
    assert!(matches!(client.outcome(1), Outcome::Answer(200, _)));
    assert_eq!(origin.last().head.all("cookie"), ["a=1; b=2; c=3"]);
}

#[test]
fn streams_beyond_the_limit_are_refused_and_may_be_sent_again() {
    let origin = origin()
        .otherwise(|_, peer| {
            peer.pause(Duration::from_millis(300));
            peer.respond("200 OK", &[], "late");
        })
        .start();
    let proxy = proxy().all_to(&origin).web("http2: { maxConcurrentStreams: 2 }").start();
    let mut client = Frames::connect(proxy.address("web"));
    client.await_kind(kind::SETTINGS);
    for stream in [1, 3, 5] {
        client.get(stream, "/x");
    }
    assert_eq!(client.outcome(5), Outcome::Reset(REFUSED_STREAM));
    assert_eq!(client.outcome(1), Outcome::Answer(200, b"late".to_vec()));
    assert!(client.is_alive());
    assert!(proxy.metric("sluicegate_http2_resets_sent_total{code=\"refused_stream\"}") >= 1.0);
    proxy.await_metric("sluicegate_refusals_total{code=\"overloaded\"}", 1.0);
}

#[test]
fn what_the_codec_refuses_by_itself_is_counted_and_logged_as_any_refusal() {
    let origin = origin().start();
    let proxy = proxy()
        .all_to(&origin)
        .web("http2: { maxHeaderListSize: 4096 }")
        .with("accessLog: { format: json }")
        .start();
    let mut client = Frames::connect(proxy.address("web"));
    let large = "y".repeat(6000);
    client.send(get(1, &[("x", &large)]));
    assert_eq!(client.outcome(1), Outcome::Answer(431, Vec::new()));
    client.send(get(3, &[("connection", "close")]));
    assert_eq!(client.outcome(3), Outcome::Reset(PROTOCOL_ERROR));
    client.get(5, "/x");
    assert!(matches!(client.outcome(5), Outcome::Answer(200, _)));
    proxy.await_metric("sluicegate_refusals_total{code=\"head_too_large\"}", 1.0);
    proxy.await_metric("sluicegate_refusals_total{code=\"bad_request\"}", 1.0);
    for code in ["\"head_too_large\"", "\"bad_request\""] {
        crate::harness::eventually(code, || proxy.stdout().iter().any(|line| line.contains(code)));
    }
    assert_eq!(origin.hits(), 1);
}

fn start() -> (Origin, Proxy) {
    let origin = origin().otherwise(|request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let proxy = proxy().all_to(&origin).start();
    (origin, proxy)
}

fn run_all(cases: Vec<Case>) {
    let (origin, proxy) = start();
    let mut wrong = Vec::new();
    for Case { name, want, bytes } in cases {
        origin.forget();
        let mut client = Frames::connect(proxy.address("web"));
        client.patience(Duration::from_secs(3));
        client.send(&bytes);
        let (outcome, right) = judge(&mut client, &origin, &want);
        if !right {
            wrong.push(format!("{name}: {outcome:?}, {} requests at the origin", origin.hits()));
        }
    }
    assert_eq!(proxy.get("a.test", "/good").status, 200, "a good client is served");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn judge(client: &mut Frames, origin: &Origin, want: &Want) -> (Outcome, bool) {
    if let Ignored = want {
        let alive = client.is_alive();
        return (Outcome::Silent, alive && origin.hits() == 0);
    }
    let outcome = client.outcome(1);
    let unseen = || origin.received().iter().all(|request| request.target != "/x" || request.body.is_empty());
    let right = match (want, &outcome) {
        (Connection(codes), Outcome::GoAway(code)) => codes.contains(code),
        (Connection(_), Outcome::Closed) => true,
        (Stream(codes), Outcome::Reset(code) | Outcome::GoAway(code)) => codes.contains(code) && unseen(),
        (Refused(_), Outcome::Reset(code) | Outcome::GoAway(code)) => *code != NO_ERROR && origin.hits() == 0,
        (Refused(statuses), Outcome::Answer(status, _)) => statuses.contains(status) && origin.hits() == 0,
        (Served(body), Outcome::Answer(200, echoed)) => {
            echoed == body.as_bytes()
                && origin.hits() == 1
                && origin.last().text() == *body
                && client.is_alive()
        }
        _ => false,
    };
    (outcome, right)
}
