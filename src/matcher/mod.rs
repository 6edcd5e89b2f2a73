//! Rules: text -> expression -> compiled matcher -> table of routers. Pure.
//!
//! `lexer` and `parser` read the text, `matchers` holds one compiled condition each, `rule` evaluates
//! and explains, `table` finds the best router without asking all of them.

mod error;
mod explain;
mod lexer;
mod matchers;
mod parser;
mod query;
mod regexp;
mod rule;
mod table;

use std::net::IpAddr;

use crate::http::fields::Fields;

pub use error::{Remark, RemarkKind, RuleError};
pub use explain::{Explained, Part};
pub use rule::{MAX_RULE_BYTES, Rule};
pub use table::{Considered, RouterTable};

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
    pub headers: &'a Fields,
    /// The peer's address, after PROXY protocol; IPv4 never in its IPv6-mapped form.
    pub client_ip: IpAddr,
}

/// What a `PathPrefix` matches.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum PathMatching {
    /// Every path that begins with the text, as in Traefik: `/api` matches `/apix`.
    #[default]
    Prefix,
    /// Only at the border of a segment: `/api` matches `/api` and `/api/x`, not `/apix`.
    Segment,
}
