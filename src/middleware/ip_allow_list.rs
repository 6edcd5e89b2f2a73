//! `ipAllowList`: lets only listed addresses through.

use http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::client_ip::{Found, IpSet, IpStrategy};
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;

use super::source::{IpStrategyConfig, compile_ranges};
use super::{CompileContext, Flow, LinkContext};

/// Options of `ipAllowList`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct IpAllowListConfig {
    /// Addresses and ranges that are let through. Required.
    pub source_range: Vec<String>,
    /// How the client's address is found. Default: the peer's.
    pub ip_strategy: Option<IpStrategyConfig>,
    /// Status of the refusal. Default 403.
    pub reject_status_code: Option<i64>,
}

impl IpAllowListConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<IpAllowList> {
        let before = cx.problems.len();
        if self.source_range.is_empty() {
            let problem = Problem::error(&at.key("sourceRange"), "ipAllowList needs a sourceRange");
            cx.problems.push(problem.hint("write sourceRange: [10.0.0.0/8]"));
        }
        let allowed = compile_ranges(&self.source_range, &at.key("sourceRange"), cx.problems);
        let strategy = match &self.ip_strategy {
            Some(strategy) => strategy.compile(&at.key("ipStrategy"), cx.problems),
            None => Some(IpStrategy::peer()),
        };
        let status = match self.reject_status_code {
            // 0 is Go's word for "not set".
            None | Some(0) => Some(StatusCode::FORBIDDEN),
            Some(code) => {
                let status = u16::try_from(code)
                    .ok()
                    .and_then(|code| StatusCode::from_u16(code).ok())
                    .filter(|status| (200..=599).contains(&status.as_u16()));
                if status.is_none() {
                    let problem = Problem::error(&at.key("rejectStatusCode"), format!("bad status {code}"));
                    cx.problems.push(problem.hint("it must be 200 to 599"));
                }
                status
            }
        };
        if cx.problems.errors_since(before) {
            return None;
        }
        Some(IpAllowList { name: name.clone(), allowed, strategy: strategy?, status: status? })
    }
}

/// `ipAllowList`, compiled.
#[derive(Clone, Debug)]
pub struct IpAllowList {
    name: MiddlewareName,
    allowed: IpSet,
    strategy: IpStrategy,
    status: StatusCode,
}

impl IpAllowList {
    /// Lets listed addresses through.
    ///
    /// # Errors
    /// [`ProxyError::AddressNotAllowed`] for every other address, and when none can be found.
    pub fn on_request(&self, context: &LinkContext, head: &RequestHead) -> Result<Flow, ProxyError> {
        match self.strategy.find(context.client.ip(), &head.headers) {
            Found::Addr(addr) if self.allowed.contains(addr) => Ok(Flow::Next),
            Found::Addr(_) | Found::Text(_) | Found::Nothing => {
                Err(ProxyError::AddressNotAllowed { middleware: self.name.clone(), status: self.status })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::Edit;
    use crate::middleware::testing::{context_of, edit, problems, request};

    fn allows(link: &Edit, client: &str, forwarded: &[&str]) -> bool {
        let fields: Vec<_> = forwarded.iter().map(|line| ("X-Forwarded-For", *line)).collect();
        match link.on_request(&mut context_of(client), &mut request("/", &fields)) {
            Ok(Flow::Next) => true,
            Err(ProxyError::AddressNotAllowed { status, .. }) => {
                assert_eq!(status, StatusCode::FORBIDDEN);
                false
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn listed_peers_pass_and_nobody_can_claim_an_address() {
        let link = edit("ipAllowList", "{sourceRange: [10.0.0.0/8, 192.168.1.7, '2001:db8::/32']}");
        for client in ["10.1.2.3", "192.168.1.7", "2001:db8::1"] {
            assert!(allows(&link, client, &[]), "{client}");
        }
        for client in ["11.0.0.1", "192.168.1.8", "2001:db9::1"] {
            assert!(!allows(&link, client, &["10.1.2.3"]), "{client}");
        }
    }

    #[test]
    fn depth_counts_from_the_right_over_all_lines_and_a_short_list_is_refused() {
        let link = edit("ipAllowList", "{sourceRange: [10.0.0.0/8], ipStrategy: {depth: 2}}");
        assert!(allows(&link, "9.9.9.9", &["1.1.1.1, 10.0.0.1, 2.2.2.2"]));
        assert!(allows(&link, "9.9.9.9", &["10.0.0.1:80", "2.2.2.2"]));
        assert!(!allows(&link, "10.0.0.9", &["10.0.0.1"]));
        assert!(!allows(&link, "10.0.0.9", &[]));
        let everyone = edit("ipAllowList", "{sourceRange: [0.0.0.0/0], ipStrategy: {depth: 5}}");
        assert!(!allows(&everyone, "10.0.0.9", &["10.0.0.1"]));
    }

    #[test]
    fn excluded_addresses_are_skipped_and_what_is_no_address_is_refused() {
        let link = edit("ipAllowList", "{sourceRange: [10.0.0.0/8], ipStrategy: {excludedIPs: [10.9.9.9]}}");
        assert!(allows(&link, "9.9.9.9", &["10.0.0.1, , 10.9.9.9:99"]));
        assert!(!allows(&link, "9.9.9.9", &["10.9.9.9"]));
        assert!(!allows(&link, "9.9.9.9", &["garbage, 10.9.9.9"]));
    }

    #[test]
    fn the_refusal_has_the_status_that_was_set() {
        let link = edit("ipAllowList", "{sourceRange: [10.0.0.1], rejectStatusCode: 404}");
        let refused = link.on_request(&mut context_of("9.9.9.9"), &mut request("/", &[]));
        assert_eq!(refused.expect_err("not listed").status(), StatusCode::NOT_FOUND);
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "ipAllowList.sourceRange"),
            ("{sourceRange: [10.0.0.1, 10.0.0.0/33]}", "ipAllowList.sourceRange[1]"),
            ("{sourceRange: ['']}", "ipAllowList.sourceRange[0]"),
            ("{sourceRange: [10.0.0.1], rejectStatusCode: 99}", "ipAllowList.rejectStatusCode"),
            (
                "{sourceRange: [10.0.0.1], ipStrategy: {excludedIPs: [x]}}",
                "ipAllowList.ipStrategy.excludedIPs[0]",
            ),
            ("{sourceRange: [10.0.0.1], ipStrategy: {ipv6Subnet: 129}}", "ipAllowList.ipStrategy.ipv6Subnet"),
        ] {
            assert_eq!(problems("ipAllowList", options).errors(), [path], "{options}");
        }
    }
}
