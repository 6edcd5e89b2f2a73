//! `addPrefix`: puts a prefix in front of the path.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::MiddlewareName;
use crate::common::problem::{ConfigPath, Problem};
use crate::http::head::RequestHead;
use crate::http::text::Text;

use super::strip_prefix::escaped;
use super::{CompileContext, Flow};

/// Options of `addPrefix`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct AddPrefixConfig {
    /// What is put in front of the path. Required; begins with `/`.
    pub prefix: String,
}

impl AddPrefixConfig {
    /// Adds one [`Problem`] per bad value and then returns `None`.
    pub fn compile(
        &self,
        _name: &MiddlewareName,
        at: &ConfigPath,
        cx: &mut CompileContext<'_>,
    ) -> Option<AddPrefix> {
        if !self.prefix.starts_with('/') {
            let message = if self.prefix.is_empty() {
                "addPrefix needs a prefix".to_owned()
            } else {
                format!("prefix {:?} does not begin with /", self.prefix)
            };
            let hint =
                format!("write prefix: /{}", if self.prefix.is_empty() { "api" } else { &self.prefix });
            cx.problems.push(Problem::error(&at.key("prefix"), message).hint(hint));
            return None;
        }
        Some(AddPrefix { prefix: escaped(&self.prefix).into() })
    }
}

/// `addPrefix`, compiled.
#[derive(Clone, Debug)]
pub struct AddPrefix {
    /// Escaped as paths are.
    prefix: Box<str>,
}

impl AddPrefix {
    /// Puts the prefix in front of the path. Leaves `*` alone. Cost: one allocation.
    pub fn on_request(&self, head: &mut RequestHead) -> Flow {
        let path = head.path.as_str();
        if path.starts_with('/') {
            let mut whole = String::with_capacity(self.prefix.len() + path.len());
            whole.push_str(&self.prefix);
            whole.push_str(path);
            head.path = Text::from(whole);
        }
        Flow::Next
    }
}
