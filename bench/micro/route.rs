//! Route look-up by the number of host routes, of paths under one host, and the path work before it.
//!
//! `cargo bench --bench route`. What matters is that the first three rows are alike.

use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use sluicegate::http::authority::host_for_matching;
use sluicegate::http::fields::Fields;
use sluicegate::http::path::{PathOptions, prepare};
use sluicegate::http::text::Text;
use sluicegate::matcher::{RouterTable, Rule, Subject};

fn main() {
    divan::main();
}

fn table(rules: impl Iterator<Item = String>) -> RouterTable<usize> {
    let routers = rules
        .enumerate()
        .map(|(at, rule)| (Rule::parse(&rule).expect("a rule"), 0, format!("router-{at}"), at))
        .collect();
    RouterTable::new(routers)
}

fn subject<'a>(host: &'a str, path: &'a str, headers: &'a Fields) -> Subject<'a> {
    let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    Subject { host, path, query: None, method: "GET", headers, client_ip }
}

#[divan::bench(args = [10, 1_000, 100_000])]
fn hosts(bencher: Bencher<'_, '_>, count: usize) {
    let table = table((0..count).map(|n| format!("Host(`tenant-{n}.example.test`)")));
    let (host, headers) = (format!("tenant-{}.example.test", count / 2), Fields::new());
    let subject = subject(&host, "/api/v1/invoices/42", &headers);
    bencher.bench_local(|| table.lookup(black_box(&subject)).expect("a route"));
}

#[divan::bench(args = [10, 1_000, 100_000])]
fn hosts_with_a_path_and_a_last_resort(bencher: Bencher<'_, '_>, count: usize) {
    let table = table(
        (0..count)
            .map(|n| format!("Host(`tenant-{n}.example.test`) && PathPrefix(`/api`)"))
            .chain(["PathPrefix(`/`)".to_owned(), "Host(`*.example.test`) && Path(`/healthz`)".to_owned()]),
    );
    let (host, headers) = (format!("tenant-{}.example.test", count / 2), Fields::new());
    let subject = subject(&host, "/api/v1/invoices/42", &headers);
    bencher.bench_local(|| table.lookup(black_box(&subject)).expect("a route"));
}

#[divan::bench(args = [10, 1_000])]
fn prefixes_of_one_host(bencher: Bencher<'_, '_>, count: usize) {
    let table = table((0..count).map(|n| format!("Host(`api.example.test`) && PathPrefix(`/service-{n}`)")));
    let (path, headers) = (format!("/service-{}/invoices/42", count / 2), Fields::new());
    let subject = subject("api.example.test", &path, &headers);
    bencher.bench_local(|| table.lookup(black_box(&subject)).expect("a route"));
}

#[divan::bench(args = ["/api/v1/invoices/42", "/api/v1/../v2/%7Euser//caf%c3%a9"])]
fn path(bencher: Bencher<'_, '_>, path: &str) {
    let (path, options) = (Text::copy_from(path), PathOptions::default());
    bencher.bench_local(|| prepare(black_box(&path), &options).expect("a path"));
}

#[divan::bench(args = ["tenant-1.example.test", "Tenant-1.Example.Test.:8080"])]
fn host(authority: &str) -> usize {
    host_for_matching(black_box(authority)).len()
}
