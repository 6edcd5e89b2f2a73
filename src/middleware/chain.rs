//! `chain`, and how a router's list of names becomes its links.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::{MiddlewareName, RouterName};
use crate::common::problem::{ConfigPath, Problem, Problems, nearest};
use crate::limit::Stores;

use super::{CompileContext, Edit, Link, MiddlewareConfig, PathMatching};

/// Links of one router, chains flattened. More is a mistake, and each costs every request.
pub const MAX_LINKS: usize = 64;

/// Chains inside chains. Nobody reads deeper ones, and the walk over them recurses.
const MAX_DEPTH: usize = 16;

/// Options of `chain`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ChainConfig {
    /// Names of other middlewares, in the order in which they see a request. Required.
    pub middlewares: Vec<String>,
}

/// Checks every definition once, used or not, so that a mistake is reported where it is, and not
/// again for each router that uses it. `at` is the path of the map: `http.middlewares`.
pub fn check(defs: &BTreeMap<String, MiddlewareConfig>, at: &ConfigPath, problems: &mut Problems) {
    let router = RouterName::new("");
    for (name, config) in defs {
        let at = at.key(name).key(config.kind());
        let mut stores = Stores::new();
        let mut cx = CompileContext {
            problems,
            stores: &mut stores,
            router: &router,
            path_matching: PathMatching::default(),
        };
        if let MiddlewareConfig::Chain(chain) = config {
            chain.check(name, &at.key("middlewares"), defs, cx.problems);
        } else {
            config.compile(&MiddlewareName::new(name), &at, &mut cx);
        }
        if let MiddlewareConfig::IpWhiteList(_) = config {
            problems.push(Problem::warning(&at, "ipWhiteList is deprecated").hint("use ipAllowList"));
        }
    }
}

impl ChainConfig {
    fn check(
        &self,
        name: &str,
        at: &ConfigPath,
        defs: &BTreeMap<String, MiddlewareConfig>,
        problems: &mut Problems,
    ) {
        if self.middlewares.is_empty() {
            problems.error(at, "chain needs middlewares");
        }
        for (index, text) in self.middlewares.iter().enumerate() {
            let at = at.index(index);
            let Some(inner) = resolve(text, &at, defs, problems) else { continue };
            if let Some(path) = path_back(name, inner, defs, &mut vec![name, inner]) {
                problems.error(&at, format!("chain contains itself: {}", path.join(" -> ")));
            }
        }
    }
}

/// How `from` leads back to `to`, over chains.
fn path_back<'a>(
    to: &str,
    from: &'a str,
    defs: &'a BTreeMap<String, MiddlewareConfig>,
    path: &mut Vec<&'a str>,
) -> Option<Vec<&'a str>> {
    if from == to {
        return Some(path.clone());
    }
    let Some(MiddlewareConfig::Chain(chain)) = defs.get(from) else { return None };
    if path.len() > MAX_DEPTH {
        return None;
    }
    chain.middlewares.iter().find_map(|text| {
        let inner = local_name(text);
        // A cycle that does not pass through `to` is reported at its own chains.
        if inner != to && path.contains(&inner) {
            return None;
        }
        path.push(inner);
        let found = path_back(to, inner, defs, path);
        path.pop();
        found
    })
}

/// Compiles a router's list of names, chains flattened. `at` is the path of the list.
///
/// Adds problems for the names in the list alone: those of the definitions come from [`check`], which
/// must have run. `None` when a link is missing for whatever reason. A middleware that is switched off
/// (`rateLimit` with `average: 0`) is left out.
pub fn compile_chain(
    names: &[String],
    at: &ConfigPath,
    defs: &BTreeMap<String, MiddlewareConfig>,
    cx: &mut CompileContext<'_>,
) -> Option<Vec<(MiddlewareName, Link)>> {
    let mut links = Vec::with_capacity(names.len());
    let mut whole = true;
    for (index, text) in names.iter().enumerate() {
        let at = at.index(index);
        match resolve(text, &at, defs, cx.problems) {
            Some(name) => whole &= flatten(name, &at, defs, cx, 0, &mut links),
            None => whole = false,
        }
    }
    for (number, (_, link)) in links.iter_mut().enumerate() {
        if let Link::Edit(Edit::Headers(headers)) = link {
            headers.set_number(number);
        }
    }
    whole.then_some(links)
}

/// Adds the links of one middleware; `false` when one of them is missing.
fn flatten(
    name: &str,
    at: &ConfigPath,
    defs: &BTreeMap<String, MiddlewareConfig>,
    cx: &mut CompileContext<'_>,
    depth: usize,
    links: &mut Vec<(MiddlewareName, Link)>,
) -> bool {
    // A name that a chain cannot resolve was reported there.
    let Some(config) = defs.get(name) else { return false };
    if let MiddlewareConfig::Chain(chain) = config {
        if depth == MAX_DEPTH {
            cx.problems.error(at, format!("chains nest deeper than {MAX_DEPTH}"));
            return false;
        }
        // Stops at the first failure, so that chains of chains cannot multiply the work.
        return !chain.middlewares.is_empty()
            && chain
                .middlewares
                .iter()
                .all(|inner| flatten(local_name(inner), at, defs, cx, depth + 1, links));
    }
    if links.len() == MAX_LINKS {
        cx.problems.error(at, format!("more than {MAX_LINKS} middlewares on one router"));
        return false;
    }
    let name = MiddlewareName::new(name);
    let mut known = Problems::new();
    let mut inner = CompileContext {
        problems: &mut known,
        stores: &mut *cx.stores,
        router: cx.router,
        path_matching: cx.path_matching,
    };
    match config.compile(&name, &ConfigPath::root(), &mut inner) {
        Some(link) => {
            links.push((name, link));
            true
        }
        None => !known.has_errors(),
    }
}

/// Finds a middleware by the name that a list has for it.
fn resolve<'a>(
    text: &'a str,
    at: &ConfigPath,
    defs: &BTreeMap<String, MiddlewareConfig>,
    problems: &mut Problems,
) -> Option<&'a str> {
    let name = local_name(text);
    if defs.contains_key(name) {
        return Some(name);
    }
    let problem = Problem::error(at, format!("middleware {text:?} does not exist"));
    problems.push(match (name.split_once('@'), nearest(name, defs.keys().map(String::as_str))) {
        (Some((_, provider)), _) => problem.hint(format!("no provider named {provider:?} is supported")),
        (None, Some(near)) => problem.hint(format!("did you mean {near:?}?")),
        (None, None) => problem,
    });
    None
}

/// `name@file` and `name` are the same: there is one document.
fn local_name(text: &str) -> &str {
    text.strip_suffix("@file").unwrap_or(text)
}
