//! Rules: text -> expression -> compiled matcher -> table of routers. Pure.

use std::net::IpAddr;

use http::HeaderMap;

/// What a rule may ask of a request.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Lower case, without port and trailing dot; empty when the request has none.
    pub host: &'a str,
    /// The routing path: escapes of unreserved characters decoded, those of reserved ones kept in capitals.
    pub path: &'a str,
    /// The raw query, without `?`.
    pub query: Option<&'a str>,
    /// As the client wrote it.
    pub method: &'a str,
    /// Without `Host`.
    pub headers: &'a HeaderMap,
    /// The peer's address, after PROXY protocol; IPv4 never in its IPv6-mapped form.
    pub client_ip: IpAddr,
}
