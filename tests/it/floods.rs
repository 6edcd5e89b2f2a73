//! Clients that are many, slow or greedy: what they may cost, and that others do not notice.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::harness::{Proxy, eventually, origin, proxy};

/// What one attack may add, in kB.
const GROWTH: u64 = 64 * 1024;

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the proxy listens");
    stream.set_write_timeout(Some(Duration::from_millis(500))).expect("a live socket");
    stream
}

#[track_caller]
fn assert_grown_less(proxy: &Proxy, before: u64, limit: u64) {
    let grown = proxy.resident().saturating_sub(before);
    assert!(grown <= limit, "{grown} kB");
}

#[test]
fn many_giant_heads_at_once_are_refused_rather_than_held() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).start();
    proxy.get("a.test", "/").expect(200);
    let before = proxy.resident();

    let part = vec![b'a'; 1_000_000];
    let mut clients: Vec<_> = (0..150).map(|_| connect(proxy.address("web"))).collect();
    for client in &mut clients {
        // Refused in the middle, some of it cannot be sent.
        let _ = client
            .write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-A: ")
            .and_then(|()| client.write_all(&part));
    }

    assert_grown_less(&proxy, before, GROWTH);
    proxy.get("a.test", "/").expect(200);
    eventually("the refused are counted", || {
        proxy.metric("sluicegate_refusals_total{code=\"overloaded\"}") > 0.0
    });
    drop(clients);
    eventually("the room is free again", || {
        let mut client = proxy.client("a.test");
        let head = client.head("GET", "/", &[("X-A", &"a".repeat(500_000))]);
        client.send(head);
        client.try_response("GET").is_ok_and(|answer| answer.status == 200)
    });
}

#[test]
fn the_room_for_large_heads_is_the_operators_to_set() {
    let origin = origin().start();
    let proxy = proxy().all_to(&origin).with("core: { maxHeadMemory: 1048576 }").start();
    let half = "a".repeat(600_000);
    let big = |last: &str| format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-A: {half}{last}");

    // Each core has a budget of its own: among three, two share one.
    let mut clients: Vec<_> = (0..3).map(|_| proxy.client("a.test")).collect();
    for client in &mut clients {
        let _ = client.try_send(big(""));
    }

    eventually("one too many is refused", || {
        proxy.metric("sluicegate_refusals_total{code=\"overloaded\"}") > 0.0
    });
    proxy.get("a.test", "/").expect(200);
}

#[test]
fn slow_heads_and_idle_connections_cost_little_each() {
    let origin = origin().start();
    // However long it takes to open them all, the first must still be there at the end.
    let patient = "transport: { respondingTimeouts: { headTimeout: 10m, idleTimeout: 10m } }";
    let proxy = proxy().all_to(&origin).web(patient).start();
    proxy.get("a.test", "/").expect(200);
    let before = proxy.resident();

    let mut clients: Vec<_> = (0..1500).map(|_| connect(proxy.address("web"))).collect();
    let (slow, idle) = clients.split_at_mut(750);
    for client in slow {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n").expect("taken");
    }
    for client in idle {
        client.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").expect("taken");
        let mut answer = [0; 1024];
        assert!(client.read(&mut answer).expect("answered") > 0);
    }

    proxy.get("a.test", "/").expect(200);
    proxy.await_metric("sluicegate_connections_open{entrypoint=\"web\"}", 1500.0);
    // Those that are idle are small once they have been so for a second.
    eventually("they are small", || proxy.resident().saturating_sub(before) <= 1500 * 8 + 4096);
    drop(clients);
}

#[test]
fn slow_readers_of_big_answers_share_what_is_read_for_them() {
    let origin = origin()
        .on("/big", |_, peer| {
            peer.write("HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n");
            let part = vec![b'x'; 50_000];
            for _ in 0..200 {
                peer.write(&part);
            }
        })
        .start();
    let proxy = proxy().all_to(&origin).start();
    proxy.get("a.test", "/").expect(200);
    let before = proxy.resident();

    let clients: Vec<_> = (0..150)
        .map(|_| {
            let mut client = connect(proxy.address("web"));
            client.write_all(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n").expect("taken");
            client
        })
        .collect();

    eventually("all have begun", || origin.hits() > 150);
    proxy.get("a.test", "/").expect(200);
    assert_grown_less(&proxy, before, GROWTH);
    drop(clients);
}
