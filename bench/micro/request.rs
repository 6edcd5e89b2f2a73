//! What each request pays on its way to a router: forwarded fields rewritten, the snapshot looked at.

use divan::{Bencher, black_box};
use http::header::HeaderValue;
use http::{Method, Version};
use sluicegate::common::live::{Cached, Live};
use sluicegate::http::client_ip::IpSet;
use sluicegate::http::fields::Fields;
use sluicegate::http::forwarded::{Forwarded, Kind, Peer};
use sluicegate::http::head::RequestHead;
use sluicegate::http::text::Text;

fn main() {
    divan::main();
}

fn head() -> RequestHead {
    let mut headers = Fields::with_capacity(16);
    headers.insert("user-agent", HeaderValue::from_static("bench"));
    headers.insert("accept", HeaderValue::from_static("*/*"));
    RequestHead {
        method: Method::GET,
        path: Text::from_static("/api/v1/invoices/42"),
        query: None,
        authority: Text::from_static("api.example.test"),
        version: Version::HTTP_11,
        headers,
    }
}

/// The whole of what `X-Forwarded-*` costs, for a client that is not trusted.
#[divan::bench]
fn header_rewrite(bencher: Bencher<'_, '_>) {
    let rules = Forwarded {
        insecure: false,
        trusted: IpSet::default(),
        append: true,
        connection: Vec::new(),
        server: HeaderValue::from_static("edge-1"),
    };
    let peer = Peer::new(([10, 1, 2, 3], 5000).into(), false);
    bencher.with_inputs(head).bench_local_refs(|head| {
        rules.receive(head, None, &peer, Kind::Plain, &[]);
        rules.send(&mut head.headers, &peer, &[]);
    });
}

/// A look at the snapshot while nothing changes.
#[divan::bench]
fn snapshot_load(bencher: Bencher<'_, '_>) {
    let live = Live::new([0_u64; 64]);
    let cached = Cached::new(&live);
    bencher.bench_local(|| black_box(cached.get(black_box(&live))));
}
