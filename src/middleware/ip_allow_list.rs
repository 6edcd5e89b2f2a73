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
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
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
