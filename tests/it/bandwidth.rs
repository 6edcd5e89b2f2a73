//! `bandwidth`: bodies and tunnels no faster than they may be, over both protocols, both ways.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::harness::h2::{ask, connect, request, run as block_on};
use crate::harness::{Origin, Proxy, eventually, origin, proxy, run, scratch};

const LENGTH: usize = 60_000;

/// What `{ ...: 100KB }` takes for all of it: the first 10 KB pass at once. Nothing may be faster.
const LEAST: Duration = Duration::from_millis(500);

/// Bytes that tell where they belong.
fn content() -> &'static [u8] {
    static CONTENT: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LENGTH as u32 / 4).flat_map(u32::to_le_bytes).collect());
    &CONTENT
}

/// Gives `/down` at once, and says `got it` to whoever sends it all.
fn pod() -> Origin {
    origin()
        .on("/down", |_, peer| peer.respond("200 OK", &[], content()))
        .on("/up", |request, peer| {
            let said = if request.body == content() { "got it" } else { "something else" };
            peer.respond("200 OK", &[], said);
        })
        .on("/chat", |_, peer| {
            peer.write("HTTP/1.1 101 Switching Protocols\r\nUpgrade: chat\r\nConnection: Upgrade\r\n\r\n");
            while let Ok(bytes) = peer.read_exactly(1_000) {
                peer.write(bytes);
            }
            peer.close();
        })
        .start()
}

fn document(middlewares: &str, more: &str) -> String {
    format!(
        r#"
http:
  routers: {{ all: {{ rule: "PathPrefix(`/`)", service: pods, middlewares: [slow] {more} }} }}
  middlewares: {{ {middlewares} }}
  services: {{ pods: {{ loadBalancer: {{ servers: [{{ url: "{{origin}}" }}] }} }} }}
serversTransport: {{ forwardingTimeouts: {{ idleTimeout: 300ms, responseHeaderTimeout: 30s }} }}
"#
    )
}

/// A proxy whose patience with streams that stand still is shorter than what these take.
fn slowed(options: &str, origin: &Origin) -> Proxy {
    proxy()
        .origin("origin", origin)
        .web("transport: { respondingTimeouts: { stallTimeout: 300ms } }")
        .config(&document(&format!("slow: {{ bandwidth: {options} }}"), ""))
        .start()
}

fn slowed_streams(proxy: &Proxy, direction: &str) -> f64 {
    let labels = format!("{{middleware=\"slow\",direction=\"{direction}\"}}");
    proxy.metric(&format!("sluicegate_bandwidth_slowed_total{labels}"))
}

#[test]
fn an_answer_takes_its_time_and_is_no_stalled_one() {
    let pod = pod();
    let proxy = slowed("{ download: 100KB }", &pod);
    let mut client = proxy.client("a.test");
    let since = Instant::now();

    let answer = client.get("/down").expect(200);

    assert!(answer.body == content());
    assert!(since.elapsed() >= LEAST, "after {:?}", since.elapsed());
    eventually("it is counted", || slowed_streams(&proxy, "download") == 1.0);
    let waited = "sluicegate_bandwidth_wait_seconds_total{middleware=\"slow\",direction=\"download\"}";
    assert!(proxy.metric(waited) >= 0.4, "{}", proxy.metric(waited));
    // The other way there is no limit, and small answers pass at once.
    client.post("/up", content()).expect(200);
    assert_eq!(slowed_streams(&proxy, "download"), 1.0);
}

#[test]
fn each_stream_has_a_rate_of_its_own_over_http2_too() {
    let pod = pod();
    let proxy = slowed("{ download: 100KB, upload: 100KB }", &pod);
    block_on(async {
        let send = connect(proxy.address("web")).await;
        let since = Instant::now();
        let (mut one, mut two, mut three) = (send.clone(), send.clone(), send);
        let (first, second, third) = tokio::join!(
            ask(&mut one, request("GET", "/down"), ""),
            ask(&mut two, request("GET", "/down"), ""),
            ask(&mut three, request("POST", "/up"), Bytes::from_static(content())),
        );
        assert!(first.unwrap().body == content() && second.unwrap().body == content());
        assert_eq!(third.unwrap().text(), "got it");
        assert!(since.elapsed() >= LEAST, "after {:?}", since.elapsed());
    });
    eventually("they are counted", || slowed_streams(&proxy, "download") == 2.0);
    assert_eq!(slowed_streams(&proxy, "upload"), 1.0);
}

#[test]
fn a_request_takes_its_time_and_is_no_stalled_one() {
    let pod = pod();
    let proxy = slowed("{ upload: 100KB }", &pod);
    let mut client = proxy.client("a.test");
    let since = Instant::now();

    let answer = client.post("/up", content()).expect(200);

    assert_eq!(answer.text(), "got it");
    assert!(since.elapsed() >= LEAST, "after {:?}", since.elapsed());
    eventually("it is counted", || slowed_streams(&proxy, "upload") == 1.0);
    assert!(client.get("/down").expect(200).body == content(), "the connection serves on");
}

#[test]
fn after_a_switch_of_protocols_both_ways_keep_to_it() {
    let pod = pod();
    let proxy = slowed("{ upload: 100KB, download: 80KB }", &pod);
    let mut client = proxy.client("a.test");
    let head = client.head("GET", "/chat", &[("Connection", "Upgrade"), ("Upgrade", "chat")]);
    client.send(head);
    assert_eq!(client.read_head().word(1), "101");
    let since = Instant::now();

    client.send(content());
    let echo = client.read_exactly(LENGTH);

    assert!(echo == content());
    assert!(since.elapsed() >= LEAST, "after {:?}", since.elapsed());
    client.half_close();
    eventually("both ways are counted", || {
        slowed_streams(&proxy, "upload") == 1.0 && slowed_streams(&proxy, "download") == 1.0
    });
}

#[test]
fn the_time_for_the_whole_exchange_counts_on() {
    let pod = pod();
    let text = document("slow: { bandwidth: { download: 10KB } }", ", timeouts: { request: 600ms }");
    let proxy = proxy().origin("origin", &pod).config(&text).start();
    let mut client = proxy.client("a.test");
    let head = client.head("GET", "/down", &[]);
    client.send(head);

    client.read_head();
    let rest = client.rest().unwrap_or_default();

    assert!(rest.len() < LENGTH, "{} bytes", rest.len());
    proxy.await_metric("sluicegate_timeouts_total{kind=\"exchange\"}", 1.0);
}

#[test]
fn the_slower_of_two_counts_and_a_larger_burst_passes_at_once() {
    let pod = pod();
    let both = "slow: { chain: { middlewares: [fast, slower] } }, fast: { bandwidth: { download: 1GiB } }, \
                slower: { bandwidth: { download: 100KB, burst: 30KB } }";
    let proxy = proxy().origin("origin", &pod).config(&document(both, "")).start();
    let since = Instant::now();
    assert!(proxy.get("a.test", "/down").expect(200).body == content());
    assert!(since.elapsed() >= Duration::from_millis(300), "after {:?}", since.elapsed());
}

#[test]
fn a_pod_that_breaks_off_in_between_is_seen() {
    let half = origin()
        .on("/half", |_, peer| {
            peer.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n"));
            peer.write(&content()[..LENGTH / 2]);
            peer.close();
        })
        .start();
    let proxy = slowed("{ download: 100KB }", &half);
    let mut client = proxy.client("a.test");
    let head = client.head("GET", "/half", &[]);
    client.send(head);
    client.read_head();
    assert!(client.read_exactly(LENGTH / 2) == content()[..LENGTH / 2]);
    assert!(client.rest().map_or(true, |rest| rest.is_empty()));
    proxy.await_metric("sluicegate_refusals_total{code=\"upstream_body\"}", 1.0);
}

#[test]
fn a_reload_is_for_streams_that_begin_after_it() {
    let pod = pod();
    let proxy = slowed("{ download: 100KB }", &pod);
    let mut client = proxy.client("a.test");
    let head = client.head("GET", "/down", &[]);
    client.send(head);
    client.read_head();
    proxy.reload(&document("slow: { bandwidth: { download: 1GiB } }", ""));
    assert!(client.read_exactly(LENGTH) == content());
    assert!(proxy.get("a.test", "/down").expect(200).body == content());
    eventually("the figures go on", || slowed_streams(&proxy, "download") == 1.0);
}

#[test]
fn explain_says_how_fast_a_stream_may_be() {
    let dir = scratch();
    let file = dir.path().join("sluicegate.yaml");
    let text = document("slow: { bandwidth: { download: 1MiB, upload: 2MiB, burst: 4MiB } }", "");
    let text = text.replace("{origin}", "http://127.0.0.1:1");
    std::fs::write(&file, format!("entryPoints: {{ web: {{ address: \"127.0.0.1:0\" }} }}\n{text}"))
        .expect("written");
    let file = file.to_str().expect("text");
    let shown = run(dir.path(), ["explain", "--config", file, "http://a.test/"]).expect(0).stdout;
    assert!(shown.contains("-> bandwidth slow"), "{shown}");
    assert!(shown.contains("down: 1MiB a second of each stream, 4MiB at once"), "{shown}");
    assert!(shown.contains("up: 2MiB a second of each stream, 4MiB at once"), "{shown}");
}
