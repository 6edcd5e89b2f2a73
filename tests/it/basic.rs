//! Plain traffic: methods, bodies both ways, connections, streams, upgrades, targets.

use std::time::Duration;

use crate::harness::{Failure, Gate, eventually, origin, proxy};

const MIB: usize = 1 << 20;

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 251) as u8).collect()
}

#[test]
fn a_get_reaches_the_origin_and_its_answer_the_client() {
    let origin = origin().get("/", "hello").start();
    let proxy = proxy().route("Host(`a.test`)", &origin).start();

    let answer = proxy.get("a.test", "/").expect(200);

    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.header("Content-Length"), Some("5"));
    assert_eq!(origin.last().head.start_line, "GET / HTTP/1.1");
    assert_eq!(origin.last().head.get("Host"), Some("a.test"));
}

#[test]
fn methods_pass_as_they_are_written() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for method in
        ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND", "get", "M-SEARCH", "!#$%&'*+-.^_`|~"]
    {
        assert_eq!(client.request(method, "/x", &[], b"").expect(200).text(), format!("{method} /x"));
    }
}

#[test]
fn an_answer_to_head_keeps_its_length_and_has_no_body() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nX-Kind: head\r\n\r\n");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer = client.request("HEAD", "/", &[], b"").expect(200);
    assert_eq!(answer.header("Content-Length"), Some("12345"));
    assert_eq!(answer.header("X-Kind"), Some("head"));

    // The connection is in step: the next answer is where it should be.
    client.request("HEAD", "/", &[], b"").expect(200);
}

#[test]
fn an_answer_to_head_that_names_chunked_is_not_read_for_chunks() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.request("HEAD", "/", &[], b"").expect(200);
    client.request("HEAD", "/", &[], b"").expect(200);
}

#[test]
fn a_body_of_known_length_arrives_whole_with_its_length() {
    let origin = origin().on("/", |request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let proxy = proxy().all_to(&origin).start();

    let answer = proxy.client("a.test").post("/", "some words").expect(200);

    assert_eq!(answer.text(), "some words");
    assert_eq!(origin.last().head.get("Content-Length"), Some("10"));
    assert!(!origin.last().head.has("Transfer-Encoding"));
}

#[test]
fn a_chunked_body_arrives_whole_and_stays_chunked() {
    let origin = origin().on("/", |request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Transfer-Encoding", "chunked")]);
    client.send(head).send("4;name=value\r\nsome\r\n").send("6\r\n words\r\n0\r\n\r\n");

    assert_eq!(client.response().expect(200).text(), "some words");
    assert!(origin.last().head.lists("Transfer-Encoding", "chunked"), "{:?}", origin.last().head.raw);
    assert!(!origin.last().head.has("Content-Length"));
    assert_eq!(client.get("/next").expect(200).text(), "GET /next");
}

#[test]
fn a_chunked_answer_arrives_whole_with_its_trailers() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n");
            peer.chunk("some").chunk(" words").write("0\r\nX-Sum: 42\r\n\r\n");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer = client.get_with("/", &[("TE", "trailers")]).expect(200);

    assert_eq!(answer.text(), "some words");
    assert_eq!(answer.trailers, [("X-Sum".to_owned(), "42".to_owned())]);
    client.get("/next").expect(200);
}

#[test]
fn trailers_are_announced_as_the_sender_announced_them() {
    let origin = origin()
        .raw(
            "/",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n0\r\nX-Sum: 42\r\n\r\n",
        )
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Transfer-Encoding", "chunked"), ("Trailer", "X-Len")]);
    client.send(head).send("1\r\nx\r\n0\r\nX-Len: 1\r\n\r\n");

    let answer = client.response().expect(200);
    assert_eq!(answer.header("Trailer"), Some("X-Sum"));
    assert_eq!(answer.trailers, [("X-Sum".to_owned(), "42".to_owned())]);
    let seen = origin.last();
    assert_eq!(seen.head.get("Trailer"), Some("X-Len"));
    assert_eq!(seen.trailers, [("X-Len".to_owned(), "1".to_owned())]);
}

#[test]
fn trailers_of_a_request_never_reach_the_origin_as_header_fields() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Transfer-Encoding", "chunked"), ("Trailer", "X-Admin")]);
    let claims =
        "X-Forwarded-For: 6.6.6.6\r\nX_Forwarded_Proto: https\r\nx-real_ip: 6.6.6.6\r\nForwarded: for=x\r\n";
    client.send(head).send(format!("1\r\nx\r\n0\r\nX-Admin: yes\r\nContent-Length: 3\r\n{claims}\r\n"));

    client.response().expect(200);
    let seen = origin.last();
    assert!(!seen.head.has("X-Admin"), "{:?}", seen.head.raw);
    // Neither framing nor what only a trusted proxy may say, in whichever spelling.
    assert_eq!(seen.trailers, [("X-Admin".to_owned(), "yes".to_owned())]);
    client.get("/next").expect(200);
}

#[test]
fn megabytes_pass_both_ways_in_both_framings() {
    let origin = origin()
        .on("/length", |request, peer| peer.respond("200 OK", &[], &request.body))
        .on("/chunked", |request, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for part in request.body.chunks(100_000) {
                peer.chunk(part);
            }
            peer.chunk("");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");
    let body = pattern(3 * MIB + 17);

    let answer = client.post("/length", &body).expect(200);
    assert!(answer.body == body, "{} of {} bytes came back, or others", answer.body.len(), body.len());

    let head = client.head("POST", "/chunked", &[("Transfer-Encoding", "chunked")]);
    client.send(head);
    for part in body.chunks(70_001) {
        client.send(format!("{:X}\r\n", part.len())).send(part).send("\r\n");
    }
    client.send("0\r\n\r\n");
    let answer = client.response().expect(200);
    assert!(answer.body == body, "{} of {} bytes came back, or others", answer.body.len(), body.len());
}

#[test]
fn one_connection_carries_many_requests_on_both_sides() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for index in 0..50 {
        assert_eq!(client.get(&format!("/{index}")).expect(200).text(), format!("GET /{index}"));
    }

    assert_eq!(origin.connections(), 1, "connections to the origin");
    assert!(origin.received().iter().all(|request| request.connection == 1));
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let origin = origin()
        .on("/slow", |_, peer| {
            peer.pause(Duration::from_millis(100));
            peer.respond("200 OK", &[], "slow");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let slow = client.head("GET", "/slow", &[]);
    let post = client.head("POST", "/post", &[("Content-Length", "3")]) + "abc";
    let last = client.head("GET", "/last", &[]);
    client.send(slow + &post + &last);

    assert_eq!(client.response().expect(200).text(), "slow");
    assert_eq!(client.response().expect(200).text(), "POST /post");
    assert_eq!(client.response().expect(200).text(), "GET /last");
    assert_eq!(origin.received()[1].text(), "abc");
}

#[test]
fn a_request_that_arrives_byte_by_byte_is_read() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("POST", "/drip", &[("Content-Length", "2")]) + "ok";
    for byte in request.bytes() {
        client.send([byte]);
    }

    assert_eq!(client.response().expect(200).text(), "POST /drip");
    assert_eq!(origin.last().text(), "ok");
}

#[test]
fn empty_lines_before_a_request_line_are_skipped() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.send("\r\n\r\nGET /a HTTP/1.1\r\nHost: a.test\r\n\r\n");

    assert_eq!(client.response().expect(200).text(), "GET /a");
}

#[test]
fn a_client_that_wants_to_close_is_told_so_and_closed() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer = client.get_with("/", &[("Connection", "close")]).expect(200);

    assert!(answer.head.lists("Connection", "close"), "{:?}", answer.head.raw);
    client.assert_closed();
    assert!(!origin.last().head.lists("Connection", "close"), "{:?}", origin.last().head.raw);
}

#[test]
fn a_client_that_closes_its_direction_after_the_request_still_gets_the_answer() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.pause(Duration::from_millis(50));
            peer.respond("200 OK", &[], "still here");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/", &[]);
    client.send(request).half_close();

    assert_eq!(client.response().expect(200).text(), "still here");
    client.assert_closed();
}

#[test]
fn an_http_1_0_client_is_closed_after_its_answer() {
    let origin = origin().get("/", "old").start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n");

    assert_eq!(client.response().expect(200).text(), "old");
    client.assert_closed();
    assert_eq!(origin.last().head.word(2), "HTTP/1.1");
}

#[test]
fn an_http_1_0_client_that_asks_for_keep_alive_gets_it() {
    let origin = origin().get("/", "old").start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.response().expect(200);
        assert_eq!(answer.text(), "old");
        assert!(answer.head.lists("Connection", "keep-alive"), "{:?}", answer.head.raw);
    }
}

#[test]
fn an_http_1_0_client_never_sees_chunks() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            peer.chunk("some").chunk(" words").chunk("");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n");

    let answer = client.response().expect(200);
    assert!(!answer.head.has("Transfer-Encoding"), "{:?}", answer.head.raw);
    assert_eq!(answer.text(), "some words");
}

#[test]
fn answers_that_never_have_a_body_have_none() {
    let origin = origin()
        .raw("/204", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n")
        .raw("/304", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 99\r\n\r\n")
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer = client.get("/204").expect(204);
    assert!(
        !answer.head.has("Content-Length") && !answer.head.has("Transfer-Encoding"),
        "{:?}",
        answer.head.raw
    );
    let answer = client.get("/304").expect(304);
    assert_eq!(answer.header("ETag"), Some("\"x\""));
    assert!(!answer.head.has("Transfer-Encoding"), "{:?}", answer.head.raw);
    client.get("/next").expect(200);
}

#[test]
fn an_answer_to_head_that_never_has_a_body_has_no_length() {
    let origin = origin()
        .raw("/204", "HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\n")
        .raw("/304", "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 2\r\n\r\n")
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for (path, status) in [("/204", 204), ("/304", 304)] {
        let answer = client.request("HEAD", path, &[], b"").expect(status);
        assert!(!answer.head.has("Content-Length"), "{:?}", answer.head.raw);
    }
    client.get("/next").expect(200);
}

#[test]
fn an_answer_that_ends_with_its_connection_becomes_chunked() {
    let origin = origin()
        .on("/", |_, peer| {
            peer.write("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end").close();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer = client.get("/").expect(200);

    assert!(answer.head.lists("Transfer-Encoding", "chunked"), "{:?}", answer.head.raw);
    assert_eq!(answer.text(), "until the end");
    client.get("/next").expect(200);
}

#[test]
fn fields_of_an_answer_pass_in_order_and_repeated() {
    let origin = origin()
        .raw(
            "/",
            "HTTP/1.1 299 Whatever\r\nServer: pod\r\nSet-Cookie: a=1\r\nX-Empty:\r\nSet-Cookie: b=2\r\n\
             Date: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n",
        )
        .start();
    let proxy = proxy().all_to(&origin).start();

    let answer = proxy.get("a.test", "/").expect(299);

    assert_eq!(answer.head.all("Set-Cookie"), ["a=1", "b=2"]);
    assert_eq!(answer.header("Server"), Some("pod"));
    assert_eq!(answer.header("X-Empty"), Some(""));
    assert_eq!(answer.header("Date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
}

#[test]
fn a_missing_date_is_added_and_a_missing_type_is_not() {
    let origin = origin().get("/", "hello").start();
    let proxy = proxy().all_to(&origin).start();

    let answer = proxy.get("a.test", "/").expect(200);

    assert!(answer.header("Date").is_some_and(|date| date.ends_with("GMT")), "{:?}", answer.head.raw);
    assert!(!answer.head.has("Content-Type") && !answer.head.has("Via"), "{:?}", answer.head.raw);
}

#[test]
fn a_status_without_a_reason_passes() {
    let origin = origin().raw("/", "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\nok").start();
    let proxy = proxy().all_to(&origin).start();

    assert_eq!(proxy.get("a.test", "/").expect(200).text(), "ok");
}

#[test]
fn phrases_are_those_of_the_status_in_the_words_of_traefik() {
    let origin = origin()
        .raw("/413", "HTTP/1.1 413 Nope\r\nContent-Length: 0\r\n\r\n")
        .raw("/416", "HTTP/1.1 416 Nope\r\nContent-Length: 0\r\n\r\n")
        .raw("/600", "HTTP/1.1 600 Nope\r\nContent-Length: 0\r\n\r\n")
        .start();
    let proxy = proxy().all_to(&origin).start();

    for (path, line) in [
        ("/413", "HTTP/1.1 413 Request Entity Too Large\r\n"),
        ("/416", "HTTP/1.1 416 Requested Range Not Satisfiable\r\n"),
        ("/600", "HTTP/1.1 600 status code 600\r\n"),
    ] {
        let head = proxy.get("a.test", path).head;
        assert!(head.raw.starts_with(line), "{:?}", head.raw);
    }
}

#[test]
fn an_empty_expectation_expects_nothing() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    proxy.client("a.test").request("POST", "/", &[("Expect", "")], b"x").expect(200);

    assert_eq!(origin.last().body, b"x");
}

#[test]
fn a_client_that_expects_100_gets_it_before_it_sends_its_body() {
    let origin = origin()
        .connection(|peer| {
            let Ok(head) = peer.read_head() else { return };
            peer.write("HTTP/1.1 100 Continue\r\n\r\n");
            let Ok(content) = peer.read_content(&head) else { return };
            peer.respond("200 OK", &[], content.bytes);
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "4"), ("Expect", "100-continue")]);
    client.send(head);
    assert_eq!(client.read_head().word(1), "100");
    client.send("body");

    assert_eq!(client.response().expect(200).text(), "body");
}

#[test]
fn a_refusal_instead_of_100_reaches_the_client_that_waits() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.respond("413 Content Too Large", &[("Connection", "close")], "too large");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "4"), ("Expect", "100-continue")]);
    client.send(head);

    assert_eq!(client.response().expect(413).text(), "too large");
}

#[test]
fn an_answer_before_the_end_of_the_body_reaches_the_client() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.respond("403 Forbidden", &[("Connection", "close")], "no thanks");
            peer.half_close();
            let _ = peer.rest();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "1000000")]);
    client.send(head).send("the first part");

    assert_eq!(client.response().expect(403).text(), "no thanks");
}

#[test]
fn early_hints_arrive_before_the_answer_exists() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/", move |_, peer| {
            peer.write("HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n");
            hold.pass();
            peer.respond("200 OK", &[], "page");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/", &[]);
    client.send(request);
    let hints = client.read_head();
    assert_eq!(hints.word(1), "103");
    assert_eq!(hints.get("Link"), Some("</style.css>; rel=preload"));

    gate.open();
    assert_eq!(client.response().expect(200).text(), "page");
}

#[test]
fn interim_answers_are_not_sent_to_http_1_0() {
    let origin = origin()
        .raw(
            "/",
            "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        )
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n");

    let answer = client.response().expect(200);
    assert!(answer.interim.is_empty(), "{:?}", answer.interim);
}

#[test]
fn each_event_of_a_stream_arrives_before_the_next_is_sent() {
    let gates = [Gate::new(), Gate::new()];
    let holds = gates.clone();
    let origin = origin()
        .on("/events", move |_, peer| {
            peer.write(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            );
            peer.chunk("data: 0\n\n");
            holds[0].pass();
            peer.chunk("data: 1\n\n");
            holds[1].pass();
            peer.chunk("");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/events", &[]);
    client.send(request);
    assert_eq!(client.read_head().word(1), "200");
    assert_eq!(client.read_chunk(), b"data: 0\n\n");
    client.assert_quiet(Duration::from_millis(50));
    gates[0].open();
    assert_eq!(client.read_chunk(), b"data: 1\n\n");
    gates[1].open();
    assert_eq!(client.read_chunk(), b"");
}

#[test]
fn each_part_of_an_upload_arrives_before_the_next_is_sent() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            // An answer that begins before the request has ended, and echoes it chunk by chunk.
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            for _ in 0..3 {
                let Ok(part) = peer.read_exactly(4) else { return };
                peer.chunk(part);
            }
            peer.chunk("");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("POST", "/", &[("Content-Length", "12")]);
    client.send(head);
    assert_eq!(client.read_head().word(1), "200");
    for part in ["one.", "two.", "end."] {
        client.send(part);
        assert_eq!(client.read_chunk(), part.as_bytes());
    }
    assert_eq!(client.read_chunk(), b"");
}

#[test]
fn a_slow_answer_of_known_length_is_not_held_back() {
    let gate = Gate::new();
    let hold = gate.clone();
    let origin = origin()
        .on("/", move |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
            hold.pass();
            peer.write("half");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/", &[]);
    client.send(request);
    client.read_head();
    assert_eq!(client.read_exactly(4), b"half");
    gate.open();
    assert_eq!(client.read_exactly(4), b"half");
}

#[test]
fn a_client_that_reads_slowly_gets_everything() {
    let body = pattern(8 * MIB);
    let served = body.clone();
    let origin = origin().on("/", move |_, peer| peer.respond("200 OK", &[], &served)).start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/", &[]);
    client.send(request);
    client.read_head();
    let mut got = Vec::new();
    while got.len() < body.len() {
        let part = (body.len() - got.len()).min(300_000);
        got.extend(client.read_exactly(part));
        std::thread::sleep(Duration::from_millis(2));
    }

    assert!(got == body, "other bytes than were sent");
}

fn echoing_upgrade() -> crate::harness::Origin {
    origin()
        .connection(|peer| {
            let Ok(head) = peer.read_head() else { return };
            if !head.lists("Connection", "upgrade") {
                return peer.respond("200 OK", &[("Connection", "close")], "no upgrade");
            }
            let protocol = head.get("Upgrade").unwrap_or("none").to_owned();
            peer.write(format!(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\nfirst"
            ));
            while let Ok(part) = peer.read_exactly(4) {
                peer.write(part);
            }
        })
        .start()
}

#[test]
fn after_an_upgrade_raw_bytes_pass_both_ways() {
    let origin = echoing_upgrade();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let fields = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Key", "x"),
        ("Sec-WebSocket-Version", "13"),
    ];
    let answer = client.request("GET", "/ws", &fields, b"").expect(101);

    assert!(answer.head.lists("Connection", "upgrade"), "{:?}", answer.head.raw);
    assert_eq!(answer.header("Upgrade"), Some("websocket"));
    assert_eq!(client.read_exactly(5), b"first");
    for part in [&b"\x81\x02hi"[..], b"\r\n\r\n", b"\0\xff\0\xff"] {
        client.send(part);
        assert_eq!(client.read_exactly(4), part);
    }
    assert_eq!(origin.last().head.get("X-Forwarded-Proto"), Some("ws"));
    assert_eq!(origin.last().head.get("Sec-WebSocket-Key"), Some("x"));
}

#[test]
fn bytes_sent_right_behind_an_upgrade_request_are_not_lost() {
    let origin = echoing_upgrade();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let head = client.head("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket")]);
    client.send(head + "ping");

    client.response().expect(101);
    assert_eq!(client.read_exactly(9), b"firstping");
}

#[test]
fn a_tunnel_ends_for_the_client_when_the_origin_ends_it() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.write(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nbye",
            );
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    client.request("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"").expect(101);

    assert_eq!(client.rest().expect("an end"), b"bye");
}

#[test]
fn a_tunnel_ends_for_the_origin_when_the_client_ends_it() {
    let origin = echoing_upgrade();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");
    client.request("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"").expect(101);
    eventually("the tunnel is open", || origin.open_connections() == 1);

    drop(client);

    eventually("the tunnel is closed", || origin.open_connections() == 0);
}

#[test]
fn an_upgrade_that_the_origin_declines_is_an_ordinary_answer() {
    let origin = origin().get("/ws", "not here").start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let answer =
        client.request("GET", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "websocket")], b"").expect(200);

    assert_eq!(answer.text(), "not here");
    client.get("/next").expect(200);
}

#[test]
fn an_upgrade_to_http_2_is_not_passed_on() {
    let origin = echoing_upgrade();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let fields = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
    ];
    let answer = client.request("GET", "/", &fields, b"").expect(200);

    assert_eq!(answer.text(), "no upgrade");
    let seen = origin.last().head;
    assert!(!seen.has("Upgrade") && !seen.has("HTTP2-Settings"), "{:?}", seen.raw);
}

#[test]
fn the_host_passes_as_the_client_wrote_it() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    proxy.get("A.Test:8080", "/").expect(200);

    assert_eq!(origin.last().head.all("Host"), ["A.Test:8080"]);
}

#[test]
fn without_pass_host_header_the_origin_sees_its_own_address() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services: { pods: { loadBalancer: { passHostHeader: false, servers: [{ url: "{origin}" }] } } }
"#,
        )
        .start();

    proxy.get("a.test", "/").expect(200);

    let seen = origin.last().head;
    assert_eq!(seen.get("Host"), Some(origin.address().to_string().as_str()));
    assert_eq!(seen.get("X-Forwarded-Host"), Some("a.test"));
}

#[test]
fn the_path_of_a_server_counts_only_with_preserve_path() {
    let origin = origin().start();
    let proxy = proxy()
        .origin("origin", &origin)
        .config(
            r#"
http:
  routers:
    with: { rule: "Host(`with.test`)", service: with }
    without: { rule: "Host(`without.test`)", service: without }
  services:
    with: { loadBalancer: { servers: [{ url: "{origin}/base", preservePath: true }] } }
    without: { loadBalancer: { servers: [{ url: "{origin}/base" }] } }
"#,
        )
        .start();

    assert_eq!(proxy.get("with.test", "/x?y").text(), "GET /base/x?y");
    assert_eq!(proxy.get("without.test", "/x?y").text(), "GET /x?y");
}

#[test]
fn queries_pass_byte_for_byte() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for target in
        ["/?", "/?a=%zz", "/?a=b&a=c", "/??", "/?a=%2F/%2f", "/?q=a+b%20c", "/?x=/../y", "/?'()*!~[]"]
    {
        assert_eq!(client.get(target).expect(200).text(), format!("GET {target}"), "{target}");
    }
}

#[test]
fn a_semicolon_in_a_query_becomes_an_ampersand_unless_it_is_to_be_escaped() {
    let origin = origin().start();
    let plain = proxy().all_to(&origin).start();
    let escaping = proxy().all_to(&origin).web("http: { encodeQuerySemicolons: true }").start();

    assert_eq!(plain.get("a.test", "/?a=1;b=2").expect(200).text(), "GET /?a=1&b=2");
    assert_eq!(escaping.get("a.test", "/?a=1;b=2").expect(200).text(), "GET /?a=1%3Bb=2");
}

#[test]
fn paths_are_cleaned_and_reserved_escapes_stay() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for (sent, seen) in [
        ("/a/b", "/a/b"),
        ("/a/", "/a/"),
        ("//a", "/a"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/%2e%2e/b", "/b"),
        ("/../a", "/a"),
        ("/a%2fb", "/a%2Fb"),
        ("/a%20b", "/a%20b"),
        ("/%61", "/a"),
        ("/a;b=c", "/a;b=c"),
        ("/a:b@c", "/a:b@c"),
        ("/%C3%A9", "/%C3%A9"),
    ] {
        assert_eq!(client.get(sent).expect(200).text(), format!("GET {seen}"), "{sent}");
    }
}

#[test]
fn a_path_that_hides_a_dot_segment_behind_an_escape_is_refused() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    for target in ["/x%2f..%2fadmin", "/x%2F../admin", "/..%2fadmin", "/x/..%5cadmin", "/x%5c..%5cadmin"] {
        proxy.get("a.test", target).expect(400);
    }
    assert_eq!(origin.hits(), 0, "{:?}", origin.received());
}

#[test]
fn an_absolute_target_decides_the_host_and_goes_on_in_origin_form() {
    let origin = origin().start();
    let proxy = proxy().route("Host(`a.test`)", &origin).start();
    let mut client = proxy.client("b.test");

    assert_eq!(client.get("http://a.test/x?y").expect(200).text(), "GET /x?y");
    assert_eq!(origin.last().head.get("Host"), Some("a.test"));
}

#[test]
fn options_asterisk_is_answered_by_the_proxy() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    let answer = proxy.client("a.test").request("OPTIONS", "*", &[], b"").expect(200);

    assert_eq!(answer.body, b"");
    assert_eq!(origin.hits(), 0);
}

#[test]
fn a_hundred_connections_at_once_are_served() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();

    let mut clients: Vec<_> = (0..100).map(|_| proxy.client("a.test")).collect();
    for client in &mut clients {
        let request = client.head("GET", "/many", &[]);
        client.send(request);
    }

    for client in &mut clients {
        client.response().expect(200);
    }
}

#[test]
fn connections_above_the_limit_are_turned_away_until_there_is_room() {
    let origin = origin().start();
    for (keys, reason) in [
        ("maxConnections: 2", "max_connections"),
        ("maxConnectionsPerClient: 2", "max_connections_per_client"),
    ] {
        let proxy = proxy().all_to(&origin).web(keys).start();
        let mut first = proxy.client("a.test");
        let mut second = proxy.client("a.test");
        first.get("/").expect(200);
        second.get("/").expect(200);

        match proxy.client("a.test").try_get("/") {
            Ok(answer) => assert_eq!(answer.status, 503, "{keys}"),
            Err(Failure::Closed(_) | Failure::Reset(_)) => {}
            Err(other) => panic!("{keys}: {other}"),
        }
        let selector =
            format!("sluicegate_connections_refused_total{{entrypoint=\"web\",reason=\"{reason}\"}}");
        assert_eq!(proxy.metric(&selector), 1.0);
        drop(first);

        eventually("there is room again", || {
            proxy.client("a.test").try_get("/").is_ok_and(|answer| answer.status == 200)
        });
        second.get("/").expect(200);
    }
}
