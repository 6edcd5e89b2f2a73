//! `inFlightReq`: so many requests of a key at once.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::error::ProxyError;
use crate::http::head::RequestHead;
use crate::limit::{InFlight, KeyBytes};

use super::rate_limit::KeyPart;
use super::source::{Source, SourceCriterionConfig};
use super::{CompileContext, Flow, LinkContext};

/// Options of `inFlightReq`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct InFlightReqConfig {
    /// Requests of one key that may be in flight together; 0 refuses all. Required.
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
        let amount = match self.amount {
            Some(amount) if amount > 0 => u64::try_from(amount).ok(),
            // From Traefik.
            Some(_) => {
                let problem = Problem::warning(&at.key("amount"), "an amount below 1 refuses every request");
                cx.problems.push(problem.hint("write amount: 100"));
                Some(0)
            }
            None => {
                let problem = Problem::error(&at.key("amount"), "inFlightReq needs an amount");
                cx.problems.push(problem.hint("write amount: 100"));
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
    /// What it counts by and how many it lets through, for people.
    pub fn describe(&self, context: &LinkContext, head: &RequestHead) -> String {
        let mut key = KeyBytes::new();
        self.source.add(context, head, &mut key);
        let by = KeyPart::Source(self.source.clone());
        format!("counts by {by}: {:?}, at most {} at once", key.text(64), self.amount)
    }

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

#[cfg(test)]
mod tests {
    use crate::http::text::Text;
    use crate::middleware::testing::{context, edit, problems, request};

    #[test]
    fn as_many_requests_of_a_host_as_the_amount_are_in_flight_together() {
        let link = edit("inFlightReq", "{amount: 1}");
        let mut first = context();
        link.on_request(&mut first, &mut request("/", &[])).expect("the first");
        let error = link.on_request(&mut context(), &mut request("/", &[])).expect_err("one is in flight");
        assert_eq!(error.body(), "max connections reached: 1");
        let mut other_host = request("/", &[]);
        other_host.authority = Text::from_static("b.test");
        link.on_request(&mut context(), &mut other_host).expect("another host");
        drop(first);
        link.on_request(&mut context(), &mut request("/", &[])).expect("the first is over");
    }

    #[test]
    fn capitals_do_not_make_another_host() {
        let link = edit("inFlightReq", "{amount: 1}");
        let mut first = context();
        link.on_request(&mut first, &mut request("/", &[])).expect("the first");
        let mut head = request("/", &[]);
        head.authority = Text::from_static("A.TEST");
        link.on_request(&mut context(), &mut head).expect_err("the same host");
    }

    #[test]
    fn an_amount_of_none_refuses_everything_and_is_told_of() {
        // It refused the document, which Traefik takes.
        for options in ["{amount: 0}", "{amount: -1}"] {
            assert_eq!(problems("inFlightReq", options).warnings, ["inFlightReq.amount"]);
            let link = edit("inFlightReq", options);
            link.on_request(&mut context(), &mut request("/", &[])).expect_err("none is allowed");
        }
    }

    #[test]
    fn bad_values_are_named_by_their_key() {
        for (options, path) in [
            ("{}", "inFlightReq.amount"),
            (
                "{amount: 1, sourceCriterion: {requestHost: true, requestHeaderName: A}}",
                "inFlightReq.sourceCriterion",
            ),
            (
                "{amount: 1, sourceCriterion: {requestHeaderName: 'a b'}}",
                "inFlightReq.sourceCriterion.requestHeaderName",
            ),
        ] {
            assert_eq!(problems("inFlightReq", options).errors(), [path], "{options}");
        }
    }
}
