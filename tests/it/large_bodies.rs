//! Large answers, which the kernel may move by itself: whole, in order, and cut where they break off.

use std::sync::LazyLock;
use std::time::Duration;

use crate::harness::{Failure, Origin, eventually, origin, proxy};

const LENGTH: usize = 3_000_000;

/// Bytes that tell where they belong.
fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LENGTH as u32 / 4).flat_map(u32::to_le_bytes).collect());
    &CONTENT
}

/// Answers `/whole` with all of it, in steps at `/steps`, and with a half before it closes at `/half`.
fn large() -> Origin {
    origin()
        .on("/whole", |_, peer| peer.respond("200 OK", &[], content()))
        .on("/steps", |_, peer| {
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            for part in content().chunks(LENGTH / 7 + 1) {
                peer.write(part);
                peer.pause(Duration::from_millis(10));
            }
        })
        .on("/half", |_, peer| {
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            peer.write(&content()[..LENGTH / 2]);
            peer.close();
        })
        .start()
}

#[test]
fn they_arrive_whole_one_after_the_other_on_the_same_connections() {
    let origin = large();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    for target in ["/whole", "/steps", "/whole"] {
        let answer = client.get(target).expect(200);
        assert!(answer.body == content(), "{target}");
    }

    assert_eq!(origin.connections(), 1, "the pooled connection served them all");
    let sent = proxy.metric("sluicegate_entrypoint_responses_bytes_total{entrypoint=\"web\"}");
    assert_eq!(sent, 3.0 * LENGTH as f64);
}

#[test]
fn pipelined_requests_behind_one_are_answered_in_turn() {
    let origin = large();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/whole", &[]);
    client.send(request.repeat(2));

    for _ in 0..2 {
        assert!(client.response().expect(200).body == content());
    }
}

#[test]
fn one_that_breaks_off_is_cut_with_what_came_before() {
    let origin = large();
    let proxy = proxy().all_to(&origin).start();
    let mut client = proxy.client("a.test");

    let request = client.head("GET", "/half", &[]);
    client.send(request);

    let head = client.read_head();
    assert_eq!(head.get("Content-Length"), Some(LENGTH.to_string().as_str()));
    assert!(client.read_exactly(LENGTH / 2) == content()[..LENGTH / 2]);
    assert!(matches!(client.rest(), Ok(rest) if rest.is_empty()) || client.rest().is_err());
    eventually("it is counted", || proxy.metric("sluicegate_refusals_total{code=\"upstream_body\"}") == 1.0);
    // The next client gets nothing of it.
    assert!(proxy.get("a.test", "/whole").expect(200).body == content());
}

#[test]
fn a_client_that_leaves_in_the_middle_takes_nothing_with_it() {
    let origin = large();
    let proxy = proxy().all_to(&origin).start();

    for _ in 0..20 {
        let mut client = proxy.client("a.test");
        let request = client.head("GET", "/whole", &[]);
        client.send(request);
        client.read_exactly(1000);
        client.reset();
    }

    assert!(proxy.get("a.test", "/whole").expect(200).body == content());
    eventually("their connections are let go", || {
        proxy.metric("sluicegate_connections_open{entrypoint=\"web\"}") == 0.0
    });
}

#[test]
fn many_at_once_come_through_though_pipes_are_few() {
    let origin = large();
    let proxy = proxy().all_to(&origin).start();

    let mut clients: Vec<_> = (0..150).map(|_| proxy.client("a.test")).collect();
    for client in &mut clients {
        let request = client.head("GET", "/whole", &[]);
        client.send(request);
    }
    for client in &mut clients {
        match client.try_response("GET") {
            Ok(answer) => assert!(answer.body == content()),
            Err(failure @ (Failure::Reset(_) | Failure::Closed(_))) => panic!("{failure}"),
            Err(other) => panic!("{other}"),
        }
    }
}
