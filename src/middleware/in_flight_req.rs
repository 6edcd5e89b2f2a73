//! `inFlightReq`: so many requests of a key at once.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;
use crate::limit::InFlight;

use super::source::{Source, SourceCriterionConfig};
use super::{CompileContext, Flow, LinkContext};

/// Options of `inFlightReq`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct InFlightReqConfig {
    /// Requests of one key that may be in flight together. Required, at least 1.
    pub amount: Option<i64>,
    /// What requests are counted by. Default: the host that is asked for.
    pub source_criterion: Option<SourceCriterionConfig>,
}

impl InFlightReqConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<InFlightReq> {
        let amount = match self.amount.map(u64::try_from) {
            Some(Ok(amount)) if amount > 0 => Some(amount),
            None => {
                let problem = Problem::error(&at.key("amount"), "inFlightReq needs an amount");
                cx.problems.push(problem.hint("write amount: 100"));
                None
            }
            Some(_) => {
                cx.problems.push(Problem::error(&at.key("amount"), "amount must be at least 1"));
                None
            }
        };
        let criterion = self.source_criterion.clone().unwrap_or_default();
        let source = criterion.compile(&at.key("sourceCriterion"), Source::Host, cx.problems);
        let (amount, source) = (amount?, source?);
        // From Traefik: each router that uses the middleware counts on its own.
        let counts = cx.stores.in_flight(&format!("inFlightReq/{name}/{}", cx.router));
        Some(InFlightReq { name: name.clone(), amount, source, counts })
    }
}

/// `inFlightReq`, compiled.
#[derive(Clone, Debug)]
pub struct InFlightReq {
    name: MiddlewareName,
    amount: u64,
    source: Source,
    counts: Arc<InFlight>,
}

impl InFlightReq {
    /// Counts a request until `context` is dropped.
    ///
    /// # Errors
    /// [`ProxyError::TooManyInFlight`] when as many as may be are in flight.
    pub fn on_request(&self, context: &mut LinkContext, head: &RequestHead) -> Result<Flow, ProxyError> {
        match self.counts.enter(self.source.key(context, head), self.amount) {
            Some(guard) => {
                context.held.push(guard);
                Ok(Flow::Next)
            }
            None => Err(ProxyError::TooManyInFlight { middleware: self.name.clone(), amount: self.amount }),
        }
    }
}
