//! `sluicegate healthcheck`: a probe for containers that have neither a shell nor curl.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

use super::{Healthcheck, print, timeout};
use crate::config::entry_point::ListenAddress;
use crate::config::load::Loader;

/// More than any probe answers.
const MAX_ANSWER: u64 = 16 * 1024;

pub(super) fn run(args: &Healthcheck) -> Result<ExitCode, String> {
    let address = match args.address {
        Some(address) => address,
        None => configured(args)?,
    };
    let path = if args.ready { "/readyz" } else { "/livez" };
    let answer = ask(address, path, timeout(args.timeout), MAX_ANSWER)
        .map_err(|error| format!("{address} does not answer: {error}"))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    if head.starts_with("HTTP/1.1 200") {
        print(body.trim_end())
    } else {
        Err(format!("{address}{path}: {} {}", head.lines().next().unwrap_or("no answer"), body.trim_end()))
    }
}

/// Asks the admin listener at `address`, and gives its answer with its head, up to `max` bytes of it.
///
/// # Errors
/// It does not answer, or a step of it takes longer than `timeout`.
pub(super) fn ask(address: SocketAddr, path: &str, timeout: Duration, max: u64) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(max).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Where the admin listener of the configuration can be reached from here.
fn configured(args: &Healthcheck) -> Result<SocketAddr, String> {
    let default = ListenAddress { ip: Some(Ipv4Addr::LOCALHOST.into()), port: 9180 };
    let address = match args.run.find() {
        Err(_) => default,
        Ok(file) => match Loader::new(&file).load().document {
            None => default,
            Some(document) => document.config.admin.address.ok_or_else(|| {
                "the configuration has no admin listener; name an address with --address".to_owned()
            })?,
        },
    };
    Ok(reachable(address))
}

/// How a listener on this machine is reached from here.
pub(super) fn reachable(address: ListenAddress) -> SocketAddr {
    let ip = match address.ip {
        None => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(ip)) if ip.is_unspecified() => std::net::Ipv6Addr::LOCALHOST.into(),
        Some(ip) => ip,
    };
    SocketAddr::new(ip, address.port)
}
