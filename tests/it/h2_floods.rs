//! Floods of frames: each ends its own connection, is counted by its name, and is noticed by no good client.

use std::time::Duration;

use crate::harness::frames::{END_HEADERS, END_STREAM, Frames, field, frame, kind, request};
use crate::harness::{Load, h2, origin, proxy};

const ENHANCE_YOUR_CALM: u32 = 11;

/// Sends bytes made by `next` until the proxy has had enough or `most` were sent; gives the code of its GOAWAY.
fn flood(client: &mut Frames, most: u32, next: &dyn Fn(u32) -> Vec<u8>) -> Option<u32> {
    for number in 0..most {
        if !client.send(next(number)) {
            break;
        }
    }
    client.assert_ends()
}

/// The odd streams, one after the other.
fn stream(number: u32) -> u32 {
    number * 2 + 1
}

fn get(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS | END_STREAM, stream, request("GET", "/flooded", &[]))
}

fn post(stream: u32) -> Vec<u8> {
    frame(kind::HEADERS, END_HEADERS, stream, request("POST", "/flooded", &[]))
}

#[test]
fn every_flood_ends_its_connection_and_good_clients_are_served_meanwhile() {
    let origin = origin()
        .on("/flooded", |_, peer| {
            peer.pause(Duration::from_millis(50));
            peer.respond("200 OK", &[], "late");
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    let before = proxy.resident();
    let load = Load::start(proxy.address("web"), "a.test", "/good", 2);
    load.await_more(5);
    let reset = |stream| frame(kind::RST_STREAM, 0, stream, [0, 0, 0, 8]);
    let bomb = || {
        // One field of 4000 bytes is remembered, and then named again and again.
        let mut block = request("GET", "/flooded", &[]);
        let mut first = field("x", "y".repeat(4000));
        first[0] = 0x40;
        block.extend(first);
        block.extend([0xbe; 12_000]);
        block
    };
    type Next<'a> = &'a dyn Fn(u32) -> Vec<u8>;
    let floods: &[(&str, u32, Next<'_>)] = &[
        ("resets", 20_000, &|n| [get(stream(n)), reset(stream(n))].concat()),
        ("local_resets", 20_000, &|n| {
            [post(stream(n)), frame(kind::WINDOW_UPDATE, 0, stream(n), [0x7f, 0xff, 0xff, 0xff])].concat()
        }),
        ("settings", 20_000, &|_| frame(kind::SETTINGS, 0, 0, [])),
        ("pings", 50_000, &|_| frame(kind::PING, 0, 0, [0; 8])),
        ("priorities", 20_000, &|n| frame(kind::PRIORITY, 0, stream(n), [0, 0, 0, 0, 1])),
        ("empty_frames", 20_000, &|n| if n == 0 { post(1) } else { frame(kind::DATA, 0, 1, []) }),
        ("window_updates", 50_000, &|_| frame(kind::WINDOW_UPDATE, 0, 0, [0, 0, 0, 1])),
        ("continuations", 20_000, &|n| match n {
            0 => frame(kind::HEADERS, END_STREAM, 1, request("GET", "/flooded", &[])),
            _ => frame(kind::CONTINUATION, 0, 1, []),
        }),
        ("header_list", 100, &|n| frame(kind::HEADERS, END_HEADERS | END_STREAM, stream(n), bomb())),
    ];
    for (name, most, next) in floods {
        let mut client = Frames::connect(proxy.address("web"));
        let code = flood(&mut client, *most, next);
        assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{name}: GOAWAY {code:?}");
        let kinds: &[&str] = match *name {
            "resets" => &["resets", "pending_resets", "local_resets"],
            "empty_frames" => &["empty_frames", "small_data"],
            name => &[name],
        };
        let counted: f64 = kinds
            .iter()
            .map(|kind| proxy.metric(&format!("sluicegate_http2_floods_total{{kind=\"{kind}\"}}")))
            .sum();
        assert!(counted >= 1.0, "{name} is not counted:\n{}", proxy.admin_get("/metrics").text());
        load.await_more(5);
    }
    let report = load.stop();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} kB more");
}

#[test]
fn content_of_single_bytes_is_not_for_ever() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    let mut client = Frames::connect(proxy.address("web"));
    let before = proxy.resident();
    client.send(post(1));
    for _ in 0..2_000 {
        if !client.send(frame(kind::DATA, 0, 1, b"x").repeat(100)) {
            break;
        }
    }
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown < 32 * 1024, "{grown} kB more");
    assert_eq!(proxy.get("a.test", "/good").status, 200);
}

#[test]
fn readers_that_open_no_window_hold_little() {
    let big: &'static [u8] = vec![b'x'; 2 << 20].leak();
    let origin = origin().on("/big", move |_, peer| peer.respond("200 OK", &[], big)).start();
    let proxy = proxy().all_to(&origin).start();
    let before = proxy.resident();
    let clients: Vec<_> = (0..10)
        .map(|_| {
            // SETTINGS_INITIAL_WINDOW_SIZE of one byte.
            let mut client = Frames::connect_with(proxy.address("web"), &[(4, 1)]);
            for number in 0..5 {
                client.get(stream(number), "/big");
            }
            client
        })
        .collect();
    crate::harness::eventually("all are under way", || origin.hits() >= 50);
    assert_eq!(proxy.get("a.test", "/good").status, 200);
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown < 64 * 1024, "{grown} kB more");
    drop(clients);
    crate::harness::eventually("nothing is left at the pod", || origin.open_connections() <= 1);
}

#[test]
fn a_limit_of_an_operators_own_is_kept() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).web("http2: { maxPings: 3 }").start();
    let mut client = Frames::connect(proxy.address("web"));
    for _ in 0..4 {
        client.send(frame(kind::PING, 0, 0, [0; 8]));
    }
    assert_eq!(client.assert_ends(), Some(ENHANCE_YOUR_CALM));
    assert_eq!(proxy.metric("sluicegate_http2_floods_total{kind=\"pings\"}"), 1.0);
}

#[test]
fn large_heads_of_many_requests_share_one_budget() {
    let origin = origin().on("/hang", |_, peer| peer.hang()).start();
    let proxy = proxy().all_to(&origin).with("workers: 1\ncore: { maxHeadMemory: 1048576 }").start();
    h2::run(async {
        let send = h2::connect(proxy.address("web")).await;
        let large = |path: &str| {
            let mut request = h2::request("GET", path);
            for _ in 0..7 {
                request = request.header("x", "y".repeat(8000));
            }
            request
        };
        let mut under_way = tokio::task::JoinSet::new();
        for _ in 0..30 {
            let (mut send, request) = (send.clone(), large("/hang"));
            under_way.spawn(async move { h2::ask(&mut send, request, "").await.expect("an answer").status });
        }
        // Those that have a place wait for the pod.
        for _ in 0..12 {
            assert_eq!(under_way.join_next().await.expect("one of thirty").expect("no panic"), 503);
        }
        assert_eq!(
            h2::ask(&mut send.clone(), h2::request("GET", "/x"), "").await.unwrap().status,
            200,
            "a small one"
        );
        under_way.shutdown().await;
        while h2::ask(&mut send.clone(), large("/x"), "").await.unwrap().status != 200 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(proxy.metric("sluicegate_refusals_total{code=\"overloaded\"}") >= 12.0);
}

#[test]
fn large_heads_that_do_not_end_share_it_too() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).with("workers: 1\ncore: { maxHeadMemory: 1048576 }").start();
    let block = crate::harness::frames::request("GET", "/x", &[("x", &"y".repeat(50_000))]);
    let mut bytes = Vec::new();
    for (number, part) in block[..49_152].chunks(16_384).enumerate() {
        let kind = if number == 0 { kind::HEADERS } else { kind::CONTINUATION };
        bytes.extend(frame(kind, 0, 1, part));
    }
    let clients: Vec<_> = (0..30)
        .map(|_| {
            let mut client = Frames::connect(proxy.address("web"));
            client.await_kind(kind::SETTINGS);
            client.send(&bytes);
            client
        })
        .collect();
    proxy.await_metric("sluicegate_refusals_total{code=\"overloaded\"}", 9.0);
    assert_eq!(proxy.get("a.test", "/x").status, 200);
    drop(clients);
}
