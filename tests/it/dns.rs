//! Names among the servers that stand for all of their addresses. The process sees an `/etc/hosts` of the test, which
//! takes a mount namespace; where none may be made, the test says so and ends.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::{fs, process};

use crate::harness::{Origin, eventually, eventually_equal, origin, proxy, scratch};

/// How `unshare` is to be asked here, if at all.
fn namespace() -> Option<&'static [&'static str]> {
    const WAYS: [&[&str]; 2] = [&["-m"], &["-U", "-r", "-m"]];
    WAYS.into_iter().find(|way| {
        let tried = process::Command::new("unshare").args(*way).arg("true").output();
        tried.is_ok_and(|output| output.status.success())
    })
}

fn pod(text: &'static str, last: u8, port: u16) -> Origin {
    origin().always(text).start_on(SocketAddr::from(([127, 0, 0, last], port))).expect("a free port")
}

#[test]
fn a_name_stands_for_its_addresses_as_they_come_and_go() {
    let Some(way) = namespace() else {
        eprintln!("not tested: no mount namespace may be made here");
        return;
    };
    let directory = scratch();
    let hosts: PathBuf = directory.path().join("hosts");
    let say = |addresses: &[&str]| {
        let lines: String = addresses.iter().map(|ip| format!("{ip} pods.test\n")).collect();
        // In place: the mount is of this very file.
        fs::write(&hosts, format!("127.0.0.1 localhost\n{lines}")).expect("a writable directory");
    };
    let a = pod("a", 1, 0);
    let port = a.address().port();
    let b = pod("b", 2, port);
    say(&["127.0.0.1", "127.0.0.2"]);
    let document = r#"
http:
  routers: { all: { rule: "PathPrefix(`/`)", service: pods } }
  services:
    pods:
      loadBalancer:
        passHostHeader: false
        dnsDiscovery: { interval: 100ms }
        servers: [{ url: "http://pods.test:{port}" }]
"#;
    let proxy = proxy().hosts(way, &hosts).name("port", port.to_string()).config(document).start();
    let ask = || proxy.get("a.test", "/").expect(200).text();

    for text in ["a", "b"] {
        eventually("each address gets requests", || ask() == text);
    }
    assert_eq!(b.last().head.get("Host"), Some(&*format!("pods.test:{port}")), "asked by its name");
    let addresses = || {
        let servers = &proxy.admin_get("/api/http/services/pods@file").expect(200).json()["serverStatus"];
        servers.as_object().map(|servers| servers.len())
    };
    assert_eq!(addresses(), Some(2));

    let c = pod("c", 3, port);
    say(&["127.0.0.3", "127.0.0.2"]);
    eventually("a new address gets requests", || ask() == "c");
    eventually_equal("warm connections to the old one are closed", 0, || a.open_connections());
    a.forget();
    proxy.reload(&format!("{document}    other: {{ loadBalancer: {{}} }}\n"));
    for _ in 0..10 {
        ask();
    }
    assert_eq!((a.hits(), addresses()), (0, Some(2)), "nor does a reload bring it back");

    let failed = "sluicegate_dns_lookups_total{service=\"pods\",outcome=\"failed\"}";
    assert_eq!(proxy.metric(failed), 0.0);
    say(&[]);
    eventually("a look-up fails", || proxy.metric(failed) > 0.0);
    b.forget();
    c.forget();
    for _ in 0..10 {
        ask();
    }
    assert!(b.hits() > 0 && c.hits() > 0, "what was known stays");
}
