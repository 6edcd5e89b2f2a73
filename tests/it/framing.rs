//! Heads and bodies that break RFC 9112, or that two readers could read in two ways.
//!
//! Each case is exact bytes. A refused one is answered once, closed, and leaves no request at the origin; a
//! served one leaves the connection in step.

use std::time::Duration;

use crate::harness::wire::latin1;
use crate::harness::{Origin, Proxy, origin, proxy};

/// What has to happen to the bytes of a case.
enum Want {
    /// One answer with one of these statuses, then the end.
    Refused(&'static [u16]),
    /// 200 from the origin, which read this body; then the connection goes on.
    Served(&'static str),
    /// Either is within the RFC.
    Either(&'static [u16], &'static str),
}

use Want::{Either, Refused, Served};

struct Case {
    name: String,
    bytes: Vec<u8>,
    want: Want,
}

fn case(name: &str, want: Want, bytes: impl AsRef<[u8]>) -> Case {
    Case { name: name.to_owned(), bytes: bytes.as_ref().to_vec(), want }
}

/// A GET with one more line in its head.
fn line(name: &str, want: Want, line: impl AsRef<[u8]>) -> Case {
    let bytes = [b"GET /x HTTP/1.1\r\nHost: a.test\r\n", line.as_ref(), b"\r\n\r\n"].concat();
    case(name, want, bytes)
}

/// A whole request line.
fn start(name: &str, want: Want, start: impl AsRef<[u8]>) -> Case {
    case(name, want, [start.as_ref(), b"\r\nHost: a.test\r\n\r\n"].concat())
}

/// A `Host` value.
fn host(name: &str, want: Want, host: impl AsRef<[u8]>) -> Case {
    case(name, want, [b"GET /x HTTP/1.1\r\nHost: ", host.as_ref(), b"\r\n\r\n"].concat())
}

/// A POST whose framing lines are given, with `hello` and a second request behind its head.
fn framed(name: &str, want: Want, lines: impl AsRef<[u8]>, body: impl AsRef<[u8]>) -> Case {
    let head = [b"POST /x HTTP/1.1\r\nHost: a.test\r\n", lines.as_ref(), b"\r\n\r\n"].concat();
    case(name, want, [&head, body.as_ref()].concat())
}

/// A chunked POST whose body is given as it stands on the wire.
fn chunked(name: &str, want: Want, body: impl AsRef<[u8]>) -> Case {
    framed(name, want, "Transfer-Encoding: chunked", body)
}

const SMUGGLED: &str = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

#[test]
fn ambiguous_lengths_are_refused() {
    run_all(vec![
        framed(
            "length and chunked",
            Refused(&[400]),
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            SMUGGLED,
        ),
        framed(
            "chunked and length",
            Refused(&[400]),
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            SMUGGLED,
        ),
        framed(
            "length 0 and chunked",
            Refused(&[400]),
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            SMUGGLED,
        ),
        framed(
            "two lengths that differ",
            Refused(&[400]),
            "Content-Length: 5\r\nContent-Length: 6",
            "hello!",
        ),
        framed("two lengths in a list that differ", Refused(&[400]), "Content-Length: 5, 6", "hello!"),
        framed(
            "two equal lengths",
            Either(&[400], "hello"),
            "Content-Length: 5\r\nContent-Length: 5",
            "hello",
        ),
        framed("two equal lengths in a list", Either(&[400], "hello"), "Content-Length: 5, 5", "hello"),
        framed("length with a plus", Refused(&[400]), "Content-Length: +5", "hello"),
        framed("length below zero", Refused(&[400]), "Content-Length: -1", ""),
        framed("length in hexadecimal", Refused(&[400]), "Content-Length: 0x5", "hello"),
        framed("length with a fraction", Refused(&[400]), "Content-Length: 5.0", "hello"),
        framed("length with an exponent", Refused(&[400]), "Content-Length: 5e0", "hello"),
        framed("length of two words", Refused(&[400]), "Content-Length: 5 5", "hello"),
        framed("length that is a word", Refused(&[400]), "Content-Length: five", "hello"),
        framed("empty length", Refused(&[400]), "Content-Length:", ""),
        framed("length with a comma at its end", Refused(&[400]), "Content-Length: 5,", "hello"),
        framed(
            "length beyond 64 bits",
            Refused(&[400, 413]),
            "Content-Length: 18446744073709551621",
            "hello",
        ),
        framed("length with underscores", Refused(&[400]), "Content-Length: 1_0", "hellohello"),
        framed("length in other digits", Refused(&[400]), "Content-Length: \u{0665}", "hello"),
        framed("length with whitespace around it", Served("hello"), "Content-Length: \t 5 \t", "hello"),
        framed("length with zeros before it", Served("hello"), "Content-Length: 005", "hello"),
        framed("length in small letters", Served("hello"), "content-length: 5", "hello"),
        framed("a name with an underscore is no length", Served(""), "Content_Length: 5", ""),
        line("no length at all", Served(""), "X-A: 1"),
    ]);
}

#[test]
fn transfer_codings_are_taken_literally() {
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    run_all(vec![
        framed("chunked", Served("hello"), "Transfer-Encoding: chunked", chunks),
        framed("chunked in capitals", Served("hello"), "Transfer-Encoding: CHUNKED", chunks),
        framed(
            "chunked twice in a list",
            Refused(&[400, 501]),
            "Transfer-Encoding: chunked, chunked",
            chunks,
        ),
        framed(
            "chunked twice in two lines",
            Refused(&[400, 501]),
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            chunks,
        ),
        framed("gzip", Refused(&[400, 501]), "Transfer-Encoding: gzip", chunks),
        framed("gzip before chunked", Refused(&[501]), "Transfer-Encoding: gzip, chunked", chunks),
        framed("gzip after chunked", Refused(&[400, 501]), "Transfer-Encoding: chunked, gzip", chunks),
        framed("identity", Refused(&[400, 501]), "Transfer-Encoding: identity", "hello"),
        framed(
            "identity before chunked",
            Refused(&[400, 501]),
            "Transfer-Encoding: identity, chunked",
            chunks,
        ),
        framed("an unknown coding", Refused(&[501]), "Transfer-Encoding: foo", chunks),
        framed(
            "a coding that begins like chunked",
            Refused(&[400, 501]),
            "Transfer-Encoding: chunkedd",
            chunks,
        ),
        framed(
            "a coding that ends like chunked",
            Refused(&[400, 501]),
            "Transfer-Encoding: xchunked",
            chunks,
        ),
        framed("chunked with a parameter", Refused(&[400, 501]), "Transfer-Encoding: chunked;q=1", chunks),
        framed("chunked in quotes", Refused(&[400, 501]), "Transfer-Encoding: \"chunked\"", chunks),
        framed("chunked behind a vertical tab", Refused(&[400]), b"Transfer-Encoding: \x0bchunked", chunks),
        framed("an empty coding", Refused(&[400, 501]), "Transfer-Encoding:", chunks),
        framed(
            "two lines, the second empty",
            Refused(&[400, 501]),
            "Transfer-Encoding: foo\r\nTransfer-Encoding:",
            "",
        ),
        framed("space before the colon", Refused(&[400]), "Transfer-Encoding : chunked", SMUGGLED),
        framed("a tab before the colon", Refused(&[400]), "Transfer-Encoding\t: chunked", SMUGGLED),
        framed("a folded value", Refused(&[400]), "Transfer-Encoding:\r\n chunked", SMUGGLED),
        case(
            "chunked in HTTP/1.0",
            Refused(&[400]),
            "POST /x HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        ),
    ]);
}

#[test]
fn malformed_chunks_are_refused() {
    let long_extension = [b"5;x=".to_vec(), vec![b'a'; 200_000], b"\r\nhello\r\n0\r\n\r\n".to_vec()].concat();
    let many_trailers = [b"0\r\n".to_vec(), b"X: y\r\n".repeat(50_000), b"\r\n".to_vec()].concat();
    run_all(vec![
        chunked("size that is no number", Refused(&[400]), "g\r\nhello\r\n0\r\n\r\n"),
        chunked("empty size", Refused(&[400]), "\r\nhello\r\n0\r\n\r\n"),
        chunked("size with 0x", Refused(&[400]), "0x5\r\nhello\r\n0\r\n\r\n"),
        chunked("size with a plus", Refused(&[400]), "+5\r\nhello\r\n0\r\n\r\n"),
        chunked("size with a minus", Refused(&[400]), "-5\r\nhello\r\n0\r\n\r\n"),
        chunked("size with an underscore", Refused(&[400]), "0_5\r\nhello\r\n0\r\n\r\n"),
        chunked("space before the size", Refused(&[400]), " 5\r\nhello\r\n0\r\n\r\n"),
        chunked("space after the size", Refused(&[400]), "5 \r\nhello\r\n0\r\n\r\n"),
        chunked("two sizes", Refused(&[400]), "5 5\r\nhello\r\n0\r\n\r\n"),
        chunked("size beyond 64 bits", Refused(&[400]), "10000000000000005\r\nhello\r\n0\r\n\r\n"),
        chunked("size of all ones", Refused(&[400]), "ffffffffffffffff0\r\nhello\r\n0\r\n\r\n"),
        chunked("line feed alone after the size", Refused(&[400]), "5\nhello\r\n0\r\n\r\n"),
        chunked("carriage return alone after the size", Refused(&[400]), "5\rhello\r\n0\r\n\r\n"),
        chunked("line feed alone after the data", Refused(&[400]), "5\r\nhello\n0\r\n\r\n"),
        chunked("data longer than its size", Refused(&[400]), "5\r\nhello!\r\n0\r\n\r\n"),
        chunked("data shorter than its size", Refused(&[400]), "5\r\nhell\r\n0\r\n\r\n"),
        chunked("no line end after the data", Refused(&[400]), "5\r\nhello0\r\n\r\n"),
        chunked("line feed alone in an extension", Refused(&[400]), "5;a\nb\r\nhello\r\n0\r\n\r\n"),
        chunked("NUL in an extension", Refused(&[400]), b"5;a\0b\r\nhello\r\n0\r\n\r\n"),
        chunked("an extension without a bound", Refused(&[400]), long_extension),
        chunked("trailer without a colon", Refused(&[400]), "0\r\nnonsense\r\n\r\n"),
        chunked("trailer with space before the colon", Refused(&[400]), "0\r\nX : y\r\n\r\n"),
        chunked("folded trailer", Refused(&[400]), "0\r\nX: y\r\n z\r\n\r\n"),
        chunked("NUL in a trailer", Refused(&[400]), b"0\r\nX: \0\r\n\r\n"),
        chunked("line feed alone after a trailer", Refused(&[400]), "0\r\nX: y\n\r\n\r\n"),
        chunked("trailers without a bound", Refused(&[400, 431]), many_trailers),
        chunked("an extension", Served("hello"), "5;a=b\r\nhello\r\n0\r\n\r\n"),
        chunked("a quoted extension", Served("hello"), "5;a=\"b;c\"\r\nhello\r\n0;z\r\n\r\n"),
        chunked("size in capitals with zeros", Served("hellohello"), "000A\r\nhellohello\r\n000\r\n\r\n"),
        chunked("a trailer", Served("hello"), "5\r\nhello\r\n0\r\nX: y\r\n\r\n"),
    ]);
}

#[test]
fn malformed_request_lines_are_refused() {
    run_all(vec![
        start("two spaces before the target", Refused(&[400]), "GET  /x HTTP/1.1"),
        start("two spaces before the version", Refused(&[400]), "GET /x  HTTP/1.1"),
        start("space after the version", Refused(&[400]), "GET /x HTTP/1.1 "),
        start("space before the method", Refused(&[400]), " GET /x HTTP/1.1"),
        start("tabs between the words", Refused(&[400]), "GET\t/x\tHTTP/1.1"),
        start("space in the target", Refused(&[400]), "GET /x y HTTP/1.1"),
        start("no version", Refused(&[400, 505]), "GET /x"),
        start("nothing but a method", Refused(&[400]), "GET"),
        start("no target", Refused(&[400]), "GET HTTP/1.1"),
        start("a method of a forbidden character", Refused(&[400]), "G(T /x HTTP/1.1"),
        start("a method with a colon", Refused(&[400]), "G:T /x HTTP/1.1"),
        start("a method beyond ASCII", Refused(&[400]), b"G\xc3\x89T /x HTTP/1.1"),
        start("a method with NUL", Refused(&[400]), b"GE\0T /x HTTP/1.1"),
        start("a method without a bound", Refused(&[400, 431, 501]), "G".repeat(100_000) + " /x HTTP/1.1"),
        start("version in small letters", Refused(&[400, 505]), "GET /x http/1.1"),
        start("version of another protocol", Refused(&[400, 505]), "GET /x ICAP/1.0"),
        start("version without a minor", Refused(&[400, 505]), "GET /x HTTP/1"),
        start("version with two digits", Refused(&[400, 505]), "GET /x HTTP/1.10"),
        start("version with words", Refused(&[400, 505]), "GET /x HTTP/1.x"),
        start("version with a comma", Refused(&[400, 505]), "GET /x HTTP/1,1"),
        start("version 2.5", Refused(&[505]), "GET /x HTTP/2.5"),
        start("version 3.0", Refused(&[505]), "GET /x HTTP/3.0"),
        start("version 0.9", Refused(&[400, 505]), "GET /x HTTP/0.9"),
        start("target without a slash", Refused(&[400]), "GET x HTTP/1.1"),
        start("target with a fragment", Refused(&[400]), "GET /x#y HTTP/1.1"),
        start("target with NUL", Refused(&[400]), b"GET /\0x HTTP/1.1"),
        start("target with a control character", Refused(&[400]), b"GET /\x01x HTTP/1.1"),
        start("target with DEL", Refused(&[400]), b"GET /\x7fx HTTP/1.1"),
        start("target beyond ASCII", Either(&[400], ""), b"GET /\xc3\xa9 HTTP/1.1"),
        start("a bad escape", Refused(&[400]), "GET /%zz HTTP/1.1"),
        start("half an escape", Refused(&[400]), "GET /%2 HTTP/1.1"),
        start("a quarter of an escape", Refused(&[400]), "GET /% HTTP/1.1"),
        start("an asterisk for another method", Refused(&[400]), "GET * HTTP/1.1"),
        start("an authority for another method", Refused(&[400]), "GET a.test:80 HTTP/1.1"),
        start("an absolute target without a host", Refused(&[400]), "GET http:///x HTTP/1.1"),
        start("an absolute target with a user", Refused(&[400]), "GET http://me@a.test/x HTTP/1.1"),
        start("an absolute target of another scheme", Refused(&[400]), "GET ftp://a.test/x HTTP/1.1"),
        start("an absolute target with a bad port", Refused(&[400]), "GET http://a.test:x/x HTTP/1.1"),
        start("CONNECT", Refused(&[501]), "CONNECT a.test:443 HTTP/1.1"),
        case("an absolute target without Host", Refused(&[400]), "GET http://a.test/x HTTP/1.1\r\n\r\n"),
        start("an absolute target", Served(""), "GET http://a.test/x HTTP/1.1"),
        start("an absolute target in capitals", Served(""), "GET HTTP://A.TEST/x HTTP/1.1"),
        start("an absolute target without a path", Served(""), "GET http://a.test HTTP/1.1"),
    ]);
}

#[test]
fn missing_repeated_and_malformed_hosts_are_refused() {
    run_all(vec![
        case("no Host", Refused(&[400]), "GET /x HTTP/1.1\r\n\r\n"),
        case("no Host, other fields", Refused(&[400]), "GET /x HTTP/1.1\r\nX-Host: a.test\r\n\r\n"),
        line("two Hosts", Refused(&[400]), "Host: b.test"),
        line("two equal Hosts", Refused(&[400]), "Host: a.test"),
        line("two Hosts, one in capitals", Refused(&[400]), "HOST: b.test"),
        host("space inside", Refused(&[400]), "a .test"),
        host("a list", Refused(&[400]), "a.test, b.test"),
        host("a path", Refused(&[400]), "a.test/x"),
        host("a query", Refused(&[400]), "a.test?x"),
        host("a fragment", Refused(&[400]), "a.test#x"),
        host("a user", Refused(&[400]), "me@a.test"),
        host("a URL", Refused(&[400]), "http://a.test"),
        host("a port that is no number", Refused(&[400]), "a.test:http"),
        host("a port out of range", Refused(&[400]), "a.test:65536"),
        host("a port below zero", Refused(&[400]), "a.test:-1"),
        host("two ports", Refused(&[400]), "a.test:80:80"),
        host("half a bracket", Refused(&[400]), "[::1"),
        host("brackets around a name", Refused(&[400]), "[a.test]"),
        host("text after a bracket", Refused(&[400]), "[::1]x"),
        host("an address without brackets", Refused(&[400]), "::1"),
        host("NUL", Refused(&[400]), b"a\0.test"),
        host("a tab", Refused(&[400]), b"a\t.test"),
        host("a backslash", Refused(&[400]), "a\\.test"),
        host("an angle bracket", Refused(&[400]), "a<.test"),
        host("beyond ASCII", Refused(&[400]), b"\xc3\xa4.test"),
        host("a bad escape", Refused(&[400]), "a%zz.test"),
        host("a name", Served(""), "a.test"),
        host("a name in capitals", Served(""), "A.TEST"),
        host("a trailing dot", Served(""), "a.test."),
        host("a port", Served(""), "a.test:8080"),
        host("an IPv4 address", Served(""), "127.0.0.1:80"),
        host("an IPv6 address", Served(""), "[::1]:80"),
        host("an underscore", Served(""), "a_b.test"),
    ]);
}

#[test]
fn malformed_fields_are_refused() {
    run_all(vec![
        line("no colon", Refused(&[400]), "nonsense"),
        line("no name", Refused(&[400]), ": value"),
        line("space before the colon", Refused(&[400]), "X-A : 1"),
        line("tab before the colon", Refused(&[400]), "X-A\t: 1"),
        line("space in the name", Refused(&[400]), "X A: 1"),
        line("a slash in the name", Refused(&[400]), "X/A: 1"),
        line("a bracket in the name", Refused(&[400]), "X(A): 1"),
        line("a quote in the name", Refused(&[400]), "X\"A: 1"),
        line("NUL in the name", Refused(&[400]), b"X\0A: 1"),
        line("the name beyond ASCII", Refused(&[400]), b"X\xc3\xa4: 1"),
        line("NUL in the value", Refused(&[400]), b"X-A: 1\x002"),
        line("a carriage return in the value", Refused(&[400]), b"X-A: 1\r2"),
        line("a line feed in the value", Refused(&[400]), b"X-A: 1\nX-B: 2"),
        line("a control character in the value", Refused(&[400]), b"X-A: 1\x012"),
        line("an escape character in the value", Refused(&[400]), b"X-A: \x1b[31m"),
        line("DEL in the value", Refused(&[400]), b"X-A: 1\x7f2"),
        line("a folded value", Refused(&[400]), "X-A: 1\r\n 2"),
        line("a value folded with a tab", Refused(&[400]), "X-A: 1\r\n\t2"),
        case(
            "whitespace before the first field",
            Refused(&[400]),
            "GET /x HTTP/1.1\r\n Host: a.test\r\n\r\n",
        ),
        case("an empty line with a space", Refused(&[400]), "GET /x HTTP/1.1\r\nHost: a.test\r\n \r\n\r\n"),
        case("line feeds alone", Refused(&[400]), "GET /x HTTP/1.1\nHost: a.test\n\n"),
        case(
            "a line feed alone after the request line",
            Refused(&[400]),
            "GET /x HTTP/1.1\nHost: a.test\r\n\r\n",
        ),
        case(
            "a line feed alone after a field",
            Refused(&[400]),
            "GET /x HTTP/1.1\r\nHost: a.test\nX: y\r\n\r\n",
        ),
        case("a line feed alone at the end", Refused(&[400]), "GET /x HTTP/1.1\r\nHost: a.test\r\n\n"),
        case("carriage returns alone", Refused(&[400]), "GET /x HTTP/1.1\rHost: a.test\r\r\n\r\n"),
        case("no protocol at all", Refused(&[400]), b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
        line("length with space before the colon", Refused(&[400]), "Content-Length : 5"),
        line("an expectation that nobody knows", Refused(&[417]), "Expect: foo"),
        line("bytes beyond ASCII in the value", Served(""), b"X-A: \xc3\xa4\xff"),
        line("tabs in the value", Served(""), "X-A: a\tb"),
        line("an empty value", Served(""), "X-A:"),
        line("no space after the colon", Served(""), "X-A:1"),
        line("every character that a name may have", Served(""), "!#$%&'*+-.^_`|~09azAZ: 1"),
    ]);
}

#[test]
fn heads_without_a_bound_are_refused() {
    let origin = origin().on("/x", |request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let proxy = proxy().all_to(&origin).web("http: { maxHeaderBytes: 16384 }").start();
    let big = "b".repeat(20_000);
    let cases = vec![
        line("one large field", Refused(&[431]), format!("X-A: {big}")),
        line("many fields", Refused(&[431]), "X-A: 1\r\n".repeat(3000) + "X-B: 2"),
        line("a field that never ends", Refused(&[431]), "X-A: ".to_owned() + &big.repeat(20)),
        line("a large name", Refused(&[400, 431]), format!("{big}: 1")),
        start("a large target", Refused(&[414, 431]), format!("GET /{big} HTTP/1.1")),
        line("a head below the limit", Served(""), format!("X-A: {}", "b".repeat(12_000))),
    ];
    check(&proxy, &origin, cases);
}

#[test]
fn too_many_fields_are_refused_however_small() {
    run_all(vec![line("ten thousand fields", Refused(&[431]), "a:b\r\n".repeat(10_000) + "c:d")]);
}

#[test]
fn what_follows_a_refused_request_is_never_served() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");
    let next = client.head("GET", "/smuggled", &[]);

    client.send(client_refused() + &next + &next);

    client.response().expect(400);
    client.assert_closed();
    assert_eq!(origin.hits(), 0, "{:?}", origin.received());
}

fn client_refused() -> String {
    "GET /x HTTP/1.1\r\nHost: a.test\r\nHost: b.test\r\n\r\n".to_owned()
}

#[test]
fn a_body_that_looks_like_a_request_is_only_a_body() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");
    let inner = client.head("GET", "/smuggled", &[]);

    client.post("/x", &inner).expect(200);
    client.request("GET", "/y", &[], inner.as_bytes()).expect(200);
    client.request("HEAD", "/z", &[], inner.as_bytes()).expect(200);
    client.request("OPTIONS", "/o", &[], inner.as_bytes()).expect(200);

    let targets: Vec<_> = origin.received().into_iter().map(|request| request.target).collect();
    assert_eq!(targets, ["/x", "/y", "/z", "/o"]);
    assert_eq!(origin.last().text(), inner);
}

#[test]
fn every_refusal_is_counted() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let before = proxy.metric("sluicegate_entrypoint_requests_total{code=\"400\"}");

    for _ in 0..3 {
        let mut client = proxy.client("a.test");
        client.send(client_refused());
        client.response().expect(400);
    }

    proxy.await_metric("sluicegate_entrypoint_requests_total{code=\"400\"}", before + 3.0);
}

fn run_all(cases: Vec<Case>) {
    let origin = origin().otherwise(|request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let proxy = proxy().all_to(&origin).start();
    check(&proxy, &origin, cases);
}

fn check(proxy: &Proxy, origin: &Origin, cases: Vec<Case>) {
    let count = cases.len();
    let wrong: Vec<String> = cases
        .into_iter()
        .filter_map(|case| {
            origin.forget();
            let outcome = attempt(proxy, &case.bytes);
            let seen: Vec<_> = origin
                .received()
                .into_iter()
                .map(|request| (request.target.clone(), request.text()))
                .collect();
            let right = match &case.want {
                Refused(statuses) => was_refused(&outcome, statuses, &seen),
                Served(body) => was_served(&outcome, body, &seen),
                Either(statuses, body) => {
                    was_refused(&outcome, statuses, &seen) || was_served(&outcome, body, &seen)
                }
            };
            (!right).then(|| format!("{}: got {outcome:?}; the origin saw {seen:?}", case.name))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// What came of the bytes.
#[derive(Debug)]
enum Outcome {
    /// An answer; whether it said `Connection: close`; what came of the connection then.
    Answered { status: u16, closing: bool, then: Then, body: String },
    /// No whole answer.
    Nothing(#[expect(dead_code, reason = "shown when a case is wrong")] String),
}

#[derive(Debug, PartialEq)]
enum Then {
    /// It ended without a byte more.
    Ended,
    /// It ended after more bytes.
    More(String),
    /// A second request was answered.
    WentOn,
}

fn attempt(proxy: &Proxy, bytes: &[u8]) -> Outcome {
    let mut client = proxy.client("a.test");
    client.patience(Duration::from_secs(4));
    // The proxy may have answered and gone before it took all of it.
    client.try_send(bytes);
    match client.try_response("GET") {
        Err(failure) => Outcome::Nothing(failure.to_string()),
        Ok(answer) => {
            let closing = answer.head.lists("Connection", "close");
            let then = if closing || answer.status != 200 {
                match client.rest() {
                    Ok(rest) if rest.is_empty() => Then::Ended,
                    Ok(rest) => Then::More(latin1(&rest)),
                    Err(failure) => Then::More(failure.to_string()),
                }
            } else {
                match client.try_get("/after") {
                    Ok(after) if after.status == 200 => Then::WentOn,
                    other => Then::More(format!("{other:?}")),
                }
            };
            Outcome::Answered { status: answer.status, closing, then, body: answer.text() }
        }
    }
}

fn was_refused(outcome: &Outcome, statuses: &[u16], seen: &[(String, String)]) -> bool {
    let refused = matches!(outcome,
        Outcome::Answered { status, closing: true, then: Then::Ended, .. } if statuses.contains(status));
    refused && seen.is_empty()
}

fn was_served(outcome: &Outcome, wanted: &str, seen: &[(String, String)]) -> bool {
    let served = matches!(outcome,
        Outcome::Answered { status: 200, closing: false, then: Then::WentOn, body } if body == wanted);
    served && seen.len() == 2 && seen[0].1 == wanted && seen[1].0 == "/after"
}
