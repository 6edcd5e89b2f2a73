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
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
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

#[cfg(test)]
mod tests {
    use crate::middleware::testing::{context, edit, problems, request};

    #[test]
    fn the_prefix_stands_in_front_and_the_rest_stays_byte_for_byte() {
        for (prefix, path, expected) in [
            ("/a", "/", "/a/"),
            ("/a", "/x%2Fy", "/a/x%2Fy"),
            ("/p q/\u{e9}", "/x", "/p%20q/%C3%A9/x"),
            ("/a", "*", "*"),
        ] {
            let mut head = request(path, &[]);
            let link = edit("addPrefix", &format!("{{prefix: '{prefix}'}}"));
            link.on_request(&mut context(), &mut head).expect("no refusal");
            assert_eq!(head.path.as_str(), expected);
        }
    }

    #[test]
    fn a_prefix_without_its_slash_is_a_problem() {
        for options in ["{}", "{prefix: api}"] {
            assert_eq!(problems("addPrefix", options).errors(), ["addPrefix.prefix"]);
        }
    }
}
