//! Whole exchanges over HTTP/2: from clients, to pods, and between the two protocols.

use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};

use crate::harness::frames::{Frames, Outcome, kind};
use crate::harness::h2::{
    H2Origin, ask, connect, echo, h2_origin, h2_origin_with, read, request, run, send_all,
};
use crate::harness::{Gate, Load, Proxy, origin, proxy};

/// A proxy in front of an `h2c` origin.
fn before(pod: &H2Origin) -> Proxy {
    before_with(pod, "", "")
}

fn before_with(pod: &H2Origin, router: &str, service: &str) -> Proxy {
    proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s{router} }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{}' }}]{service} }} }} }}\n",
            pod.url()
        ))
        .start()
}

fn map(name: &'static str, value: &'static str) -> HeaderMap {
    let mut map = HeaderMap::new();
    map.insert(name, http::HeaderValue::from_static(value));
    map
}

#[test]
fn a_request_of_http2_reaches_a_pod_of_http1_and_its_answer_comes_back() {
    let origin =
        origin().otherwise(|request, peer| peer.respond("200 OK", &[("X-Pod", "1")], &request.body)).start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let got = ask(&mut send, request("GET", "/a?b=c").header("x-a", "1"), "").await.unwrap();
        assert_eq!((got.status, got.header("x-pod")), (200, Some("1")));
        assert!(got.header("date").is_some());
        assert_eq!(got.header("content-length"), Some("0"));
        let big = Bytes::from(vec![b'x'; 1 << 20]);
        let got = ask(&mut send, request("POST", "/big"), big.clone()).await.unwrap();
        assert_eq!(got.body, big);
        let got =
            ask(&mut send, request("POST", "/known").header("content-length", "5"), "hello").await.unwrap();
        assert_eq!(got.text(), "hello");
    });
    let [first, big, known] = &origin.received()[..] else { panic!("{:?}", origin.received()) };
    assert_eq!((first.method.as_str(), first.target.as_str()), ("GET", "/a?b=c"));
    assert_eq!(first.head.all("Host"), ["a.test"]);
    assert_eq!(first.head.get("X-A"), Some("1"));
    assert_eq!(first.head.get("X-Forwarded-Proto"), Some("http"));
    assert!(big.head.lists("Transfer-Encoding", "chunked"));
    assert_eq!(known.head.get("Content-Length"), Some("5"));
    assert_eq!(origin.connections(), 1, "one connection to the pod serves one request after the other");
    assert_eq!(proxy.metric("sluicegate_connections_accepted_total{entrypoint=\"web\"}"), 1.0);
    assert_eq!(proxy.metric("sluicegate_entrypoint_requests_total{code=\"200\"}"), 3.0);
}

#[test]
fn answers_without_content_end_with_their_head() {
    let origin = origin()
        .raw("/204", "HTTP/1.1 204 No Content\r\nX: y\r\n\r\n")
        .raw("/304", "HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n")
        .raw("/head", "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
        .start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let got = ask(&mut send, request("GET", "/204"), "").await.unwrap();
        assert_eq!((got.status, got.body.len(), got.header("content-length")), (204, 0, None));
        let got = ask(&mut send, request("GET", "/304"), "").await.unwrap();
        assert_eq!((got.status, got.body.len()), (304, 0));
        let got = ask(&mut send, request("HEAD", "/head"), "").await.unwrap();
        assert_eq!((got.status, got.body.len(), got.header("content-length")), (200, 0, Some("17")));
    });
}

#[test]
fn trailers_and_interim_answers_pass_from_http1_to_http2() {
    let origin = origin()
        .on("/x", |request, peer| {
            assert_eq!(request.trailers, [("X-Sum".to_owned(), "7".to_owned())]);
            peer.write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            peer.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n");
            peer.chunk("hello").write("0\r\nX-End: z\r\n\r\n");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let send = connect(proxy.address("web")).await;
        let mut send = send.ready().await.unwrap();
        let head = request("POST", "/x").body(()).unwrap();
        let (mut response, mut body) = send.send_request(head, false).unwrap();
        send_all(&mut body, Bytes::from("up"), false).await.unwrap();
        body.send_trailers(map("x-sum", "7")).unwrap();
        let early = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!((early.status().as_u16(), &early.headers()["link"]), (103, &"</a.css>".parse().unwrap()));
        let got = read(response.await.unwrap()).await.unwrap();
        assert_eq!((got.text().as_str(), got.trailer("x-end")), ("hello", Some("z")));
    });
}

#[test]
fn a_client_of_http1_is_served_by_a_pod_of_http2() {
    let pod = h2_origin(|request, mut respond| async move {
        match request.uri().path() {
            "/early" => {
                let mut early = Response::new(());
                *early.status_mut() = http::StatusCode::EARLY_HINTS;
                *early.headers_mut() = map("link", "</a.css>");
                respond.send_informational(early)?;
                echo(request, respond).await
            }
            "/head" => {
                let answer = Response::builder().header("content-length", "17").body(()).unwrap();
                respond.send_response(answer, true).map(|_| ())
            }
            _ => echo(request, respond).await,
        }
    });
    let proxy = before(&pod);
    let mut client = proxy.client("a.test");
    assert_eq!(client.post("/known", "hello").expect(200).text(), "hello");
    let chunked = "5\r\nhello\r\n0\r\nX-Sum: 7\r\n\r\n";
    let head = client.head("POST", "/chunked", &[("Transfer-Encoding", "chunked"), ("TE", "trailers")]);
    client.send(head + chunked);
    let answer = client.response().expect(200);
    assert_eq!(
        (answer.text().as_str(), &answer.trailers[..]),
        ("hello", &[("X-Sum".to_owned(), "7".to_owned())][..])
    );
    let answer = client.get("/early").expect(200);
    assert_eq!(answer.interim[0].word(1), "103");
    let answer = client.request("HEAD", "/head", &[], b"").expect(200);
    assert_eq!(answer.header("Content-Length"), Some("17"));
    let requests = pod.requests();
    assert_eq!(requests[0].uri().authority().map(|authority| authority.as_str()), Some("a.test"));
    assert_eq!(requests[0].headers()["content-length"], "5");
    assert!(!requests[1].headers().contains_key("transfer-encoding"));
    assert!(requests.iter().all(|request| !request.headers().contains_key("connection")));
    assert_eq!(pod.connections(), 1);
}

#[test]
fn many_requests_at_once_share_one_connection_to_the_pod() {
    let pod = h2_origin(echo);
    let proxy = before(&pod);
    run(async {
        let send = connect(proxy.address("web")).await;
        let mut under_way = Vec::new();
        for number in 0..50 {
            let mut send = send.clone();
            under_way.push(tokio::spawn(async move {
                let body = Bytes::from(vec![b'a' + number % 26; 10_000]);
                let got = ask(&mut send, request("POST", "/x"), body.clone()).await.unwrap();
                assert_eq!(got.body, body);
            }));
        }
        for one in under_way {
            one.await.unwrap();
        }
    });
    assert_eq!((pod.hits(), pod.connections()), (50, 1));
}

#[test]
fn a_pod_that_takes_few_streams_gets_more_connections() {
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(4);
    let pod = h2_origin_with(builder, |request, respond| async move {
        tokio::time::sleep(Duration::from_millis(50)).await;
        echo(request, respond).await
    });
    let proxy = before(&pod);
    run(async {
        let send = connect(proxy.address("web")).await;
        for _ in 0..3 {
            let mut under_way = Vec::new();
            for _ in 0..20 {
                let mut send = send.clone();
                under_way.push(tokio::spawn(async move {
                    ask(&mut send, request("POST", "/x"), "hello").await.unwrap().status
                }));
            }
            for one in under_way {
                assert_eq!(one.await.unwrap(), 200);
            }
        }
    });
    assert_eq!(pod.hits(), 60);
}

#[test]
fn a_pod_that_says_goaway_again_and_again_is_noticed_by_nobody() {
    let pod = h2_origin(echo);
    let proxy = before(&pod);
    let load = Load::start(proxy.address("web"), "a.test", "/x", 4);
    for _ in 0..20 {
        load.await_more(20);
        pod.go_away();
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert!(pod.connections() >= 20, "{}", pod.connections());
}

#[test]
fn a_pod_whose_connections_are_cut_is_asked_again_where_that_is_safe() {
    let pod = h2_origin(echo);
    let proxy = before(&pod);
    let mut client = proxy.client("a.test");
    for _ in 0..10 {
        client.get("/x").expect(200);
        pod.cut();
        assert_eq!(client.get("/x").status, 200);
    }
}

#[test]
fn a_refused_stream_is_sent_again_with_its_content() {
    let refused = std::sync::atomic::AtomicUsize::new(0);
    let pod = h2_origin(move |request, mut respond| {
        let refuse = refused.fetch_add(1, std::sync::atomic::Ordering::AcqRel).is_multiple_of(2);
        async move {
            if refuse {
                tokio::time::sleep(Duration::from_millis(50)).await;
                respond.send_reset(Reason::REFUSED_STREAM);
                return Ok(());
            }
            echo(request, respond).await
        }
    });
    let proxy = before(&pod);
    let mut client = proxy.client("a.test");
    for _ in 0..5 {
        assert_eq!(client.post("/x", "hello").expect(200).text(), "hello");
    }
    assert_eq!(pod.hits(), 10);
}

#[test]
fn a_stream_that_the_pod_resets_is_a_502_and_harms_no_other() {
    let pod = h2_origin(|request, mut respond| async move {
        if request.uri().path() == "/bad" {
            respond.send_reset(Reason::INTERNAL_ERROR);
            return Ok(());
        }
        echo(request, respond).await
    });
    let proxy = before(&pod);
    let mut client = proxy.client("a.test");
    assert_eq!(client.post("/bad", "x").status, 502);
    assert_eq!(client.post("/good", "x").status, 200);
    assert_eq!(proxy.client("a.test").get("/good").status, 200);
}

#[test]
fn a_pod_of_http1_behind_h2c_is_a_502() {
    let origin = origin().connection(|peer| {
        peer.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").close();
    });
    let origin = origin.start();
    let proxy = proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: 'h2c://{}' }}] }} }} }}\n",
            origin.address()
        ))
        .start();
    assert_eq!(proxy.get("a.test", "/x").status, 502);
}

#[test]
fn a_cut_answer_resets_its_stream_and_no_other() {
    let origin = origin()
        .on("/cut", |_, peer| peer.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf").close())
        .start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await;
        let error = ask(&mut send, request("GET", "/cut"), "").await.unwrap_err();
        assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR), "{error:?}");
        assert_eq!(ask(&mut send, request("GET", "/x"), "").await.unwrap().status, 200);
    });
}

#[test]
fn a_client_that_resets_its_stream_ends_the_work_for_it() {
    let origin = origin().on("/hang", |_, peer| peer.hang()).start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (response, mut stream) =
            send.send_request(request("GET", "/hang").body(()).unwrap(), true).unwrap();
        while origin.hits() == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stream.send_reset(Reason::CANCEL);
        drop(response);
        while origin.open_connections() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(ask(&mut send, request("GET", "/x"), "").await.unwrap().status, 200);
    });
    proxy.await_metric("sluicegate_refusals_total{code=\"client_gone\"}", 1.0);
}

#[test]
fn a_client_that_takes_nothing_holds_up_nobody_else() {
    let big: &'static [u8] = vec![b'x'; 4 << 20].leak();
    let origin = origin().on("/big", move |_, peer| peer.respond("200 OK", &[], big)).start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (slow, _) = send.send_request(request("GET", "/big").body(()).unwrap(), true).unwrap();
        let slow = slow.await.unwrap();
        for _ in 0..20 {
            assert_eq!(ask(&mut send, request("GET", "/x"), "").await.unwrap().status, 200);
        }
        assert_eq!(read(slow).await.unwrap().body.len(), big.len());
    });
}

#[test]
fn content_that_a_pod_does_not_take_stays_with_the_client() {
    let gate = Gate::new();
    let opened = gate.clone();
    let pod = h2_origin(move |request, respond| {
        let gate = opened.clone();
        async move {
            tokio::task::spawn_blocking(move || gate.pass()).await.expect("no panic");
            echo(request, respond).await
        }
    });
    let proxy = proxy()
        .web("http2: { streamWindow: 70000, connectionWindow: 100000 }")
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  \
             services: {{ s: {{ loadBalancer: {{ servers: [{{ url: '{}' }}] }} }} }}\n",
            pod.url()
        ))
        .start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (response, mut stream) =
            send.send_request(request("POST", "/x").body(()).unwrap(), false).unwrap();
        let body = Bytes::from(vec![b'x'; 1 << 20]);
        let mut sent = 0;
        let stuck = tokio::time::timeout(Duration::from_millis(300), async {
            loop {
                stream.reserve_capacity(16_384);
                let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
                let room = room.min(16_384);
                stream.send_data(body.slice(..room), false).unwrap();
                sent += room;
            }
        });
        assert!(stuck.await.is_err());
        // One window of the client's, one of the pod's, and what is in hand between them.
        assert!(sent < 70_000 + 65_535 + 300_000, "{sent}");
        gate.open();
        stream.send_data(Bytes::new(), true).unwrap();
        assert_eq!(read(response.await.unwrap()).await.unwrap().body.len(), sent);
    });
}

#[test]
fn a_body_that_does_not_come_is_a_408() {
    let origin = origin().start();
    let proxy =
        proxy().all_to(&origin).web("transport: { respondingTimeouts: { readTimeout: 300ms } }").start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (response, mut stream) =
            send.send_request(request("POST", "/x").body(()).unwrap(), false).unwrap();
        send_all(&mut stream, Bytes::from("half"), false).await.unwrap();
        assert_eq!(response.await.unwrap().status(), 408);
    });
    assert_eq!(origin.hits(), 0);
}

#[test]
fn an_idle_connection_is_told_to_go() {
    let origin = origin().start();
    let proxy =
        proxy().all_to(&origin).web("transport: { respondingTimeouts: { idleTimeout: 300ms } }").start();
    let mut client = Frames::connect(proxy.address("web"));
    client.get(1, "/x");
    assert!(matches!(client.outcome(1), Outcome::Answer(200, _)));
    assert_eq!(client.assert_ends(), Some(0));
    proxy.await_metric("sluicegate_connections_closed_total{reason=\"idle\"}", 1.0);
}

#[test]
fn a_client_that_stops_in_the_middle_of_its_fields_loses_its_connection() {
    let origin = origin().start();
    let proxy =
        proxy().all_to(&origin).web("transport: { respondingTimeouts: { headTimeout: 300ms } }").start();
    // Raw, because an acknowledgement of SETTINGS in the middle of fields would be a mistake of its own.
    let mut client = proxy.client("a.test");
    client.send(crate::harness::frames::PREFACE);
    client.send(crate::harness::frames::frame(kind::SETTINGS, 0, 0, []));
    client.send(crate::harness::frames::frame(kind::HEADERS, 0, 1, [0x82]));
    client.rest().expect("an end");
    proxy.await_metric("sluicegate_connections_closed_total{reason=\"timeout\"}", 1.0);
    let mut client = Frames::bare(proxy.address("web"));
    client.send(&crate::harness::frames::PREFACE[..20]);
    client.assert_ends();
}

#[test]
fn a_dead_client_is_found_by_a_ping() {
    let origin = origin().on("/hang", |_, peer| peer.hang()).start();
    let proxy = proxy().all_to(&origin).web("http2: { readIdleTimeout: 200ms, pingTimeout: 200ms }").start();
    let mut client = Frames::connect(proxy.address("web"));
    client.get(1, "/hang");
    // It reads, and answers no PING.
    client.await_kind(kind::PING);
    client.assert_ends();
    crate::harness::eventually("the pod's request is given up", || origin.open_connections() == 0);
}

#[test]
fn a_connection_that_has_had_its_requests_is_told_to_go_and_all_are_answered() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web("transport: { keepAliveMaxRequests: 3 }").start();
    let mut client = Frames::connect(proxy.address("web"));
    for stream in [1, 3, 5] {
        client.get(stream, "/x");
    }
    assert_eq!(client.assert_ends(), Some(0));
    for stream in [1, 3, 5] {
        assert!(client.seen.iter().any(|frame| frame.stream == stream && frame.ends()), "{stream}");
    }
    proxy.await_metric("sluicegate_connections_closed_total{reason=\"aged\"}", 1.0);
}

#[test]
fn a_shutdown_lets_what_is_under_way_end() {
    let gate = Gate::new();
    let opened = gate.clone();
    let origin = origin()
        .on("/slow", move |_, peer| {
            opened.pass();
            peer.respond("200 OK", &[], "late");
        })
        .start();
    let mut proxy = proxy()
        .all_to(&origin)
        .web("transport: { lifeCycle: { requestAcceptGraceTimeout: 0s, graceTimeOut: 9s } }")
        .start();
    let mut client = Frames::connect(proxy.address("web"));
    client.get(1, "/slow");
    crate::harness::eventually("the request is under way", || origin.hits() == 1);
    proxy.signal("TERM");
    client.await_kind(kind::GOAWAY);
    gate.open();
    assert_eq!(client.outcome(1), Outcome::Answer(200, b"late".to_vec()));
    client.assert_ends();
    assert!(proxy.wait_exit().success());
}

#[test]
fn the_access_log_names_the_protocol() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).with("accessLog: { format: json }").start();
    run(async {
        let mut send = connect(proxy.address("web")).await;
        ask(&mut send, request("GET", "/x"), "").await.unwrap();
    });
    crate::harness::eventually("a line", || {
        proxy.stdout().iter().any(|line| line.contains("\"/x\"") && line.contains("HTTP/2.0"))
    });
}

#[test]
fn a_connection_that_is_old_enough_is_told_to_go() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web("transport: { keepAliveMaxTime: 300ms }").start();
    let mut client = Frames::connect(proxy.address("web"));
    client.get(1, "/x");
    assert!(matches!(client.outcome(1), Outcome::Answer(200, _)));
    assert_eq!(client.assert_ends(), Some(0));
    proxy.await_metric("sluicegate_connections_closed_total{reason=\"aged\"}", 1.0);
}

#[test]
fn a_stream_that_the_client_does_not_take_is_cut_and_no_other() {
    let big: &'static [u8] = vec![b'x'; 4 << 20].leak();
    let origin = origin().on("/big", move |_, peer| peer.respond("200 OK", &[], big)).start();
    let proxy =
        proxy().all_to(&origin).web("transport: { respondingTimeouts: { stallTimeout: 300ms } }").start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let (slow, _) = send.send_request(request("GET", "/big").body(()).unwrap(), true).unwrap();
        let mut slow = slow.await.unwrap();
        // Its window stays shut from here on.
        let reset = loop {
            match slow.body_mut().data().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the answer cannot be whole"),
            }
        };
        assert!(reset.is_reset() && reset.is_remote(), "{reset:?}");
        assert_eq!(ask(&mut send, request("GET", "/x"), "").await.unwrap().status, 200);
    });
    proxy.await_metric("sluicegate_timeouts_total{kind=\"client_stall\"}", 1.0);
}

#[test]
fn a_client_that_expects_100_continue_gets_it_before_it_sends() {
    let http1 = origin().otherwise(|request, peer| peer.respond("200 OK", &[], &request.body)).start();
    let http2 = h2_origin(|request, mut respond| async move {
        if request.headers().get("expect").is_some() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = http::StatusCode::CONTINUE;
            respond.send_informational(go_on)?;
        }
        echo(request, respond).await
    });
    let before_http1 = proxy().all_to(&http1).start();
    let before_http2 = before(&http2);
    for proxy in [&before_http1, &before_http2] {
        run(async {
            let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
            let head = request("POST", "/x").header("expect", "100-continue").header("content-length", "5");
            let (mut response, mut body) = send.send_request(head.body(()).unwrap(), false).unwrap();
            let interim = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(interim.status(), 100);
            send_all(&mut body, Bytes::from("hello"), true).await.unwrap();
            assert_eq!(read(response.await.unwrap()).await.unwrap().text(), "hello");
        });
    }
}

#[test]
fn a_client_that_expects_100_continue_and_is_refused_sends_nothing() {
    let origin = origin()
        .connection(|peer| {
            let Ok(_) = peer.read_head() else { return };
            peer.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").close();
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    run(async {
        let mut send = connect(proxy.address("web")).await.ready().await.unwrap();
        let head = request("POST", "/x").header("expect", "100-continue").header("content-length", "5");
        let (response, _body) = send.send_request(head.body(()).unwrap(), false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 403);
    });
}

#[test]
fn a_dead_pod_is_found_by_a_ping() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    // It says SETTINGS and acknowledges ours, and then reads for ever.
    let dead = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.write_all(&crate::harness::frames::frame(kind::SETTINGS, 0, 0, [])).expect("sent");
        stream.write_all(&crate::harness::frames::frame(kind::SETTINGS, 1, 0, [])).expect("sent");
        let mut rest = Vec::new();
        // However it is closed.
        let _ = stream.read_to_end(&mut rest);
        rest
    });
    let proxy = proxy()
        .config(&format!(
            "http:\n  routers: {{ r: {{ rule: 'PathPrefix(`/`)', service: s }} }}\n  services: {{ s: {{ \
             loadBalancer: {{ serversTransport: t, servers: [{{ url: 'h2c://{address}' }}] }} }} }}\n  \
             serversTransports: {{ t: {{ forwardingTimeouts: {{ readIdleTimeout: 200ms, pingTimeout: 200ms }} }} }}\n"
        ))
        .start();
    // It may have had an effect, so it is not sent again.
    assert_eq!(proxy.client("a.test").post("/x", "hello").status, 502);
    let sent = dead.join().expect("no panic");
    // Length, kind and flags of a PING that asks.
    assert!(sent.windows(5).any(|bytes| bytes == [0, 0, 8, kind::PING, 0]), "no PING");
}
