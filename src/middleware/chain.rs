//! `chain`, and how a router's list of names becomes its links.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::Deserialize;

use crate::common::names::{MiddlewareName, RouterName};
use crate::common::problem::{ConfigPath, Problem, Problems, nearest};
use crate::limit::Stores;
use crate::matcher::PathMatching;

use super::{CompileContext, Edit, Link, MiddlewareConfig};

/// Links of one router, chains flattened. More is a mistake, and each costs every request.
pub const MAX_LINKS: usize = 64;

/// Chains inside chains. Nobody reads deeper ones, and the walk over them recurses.
const MAX_DEPTH: usize = 16;

/// Names followed for one router. Chains of chains that lead to nothing would multiply otherwise.
const MAX_STEPS: usize = 1_024;

/// Options of `chain`.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, serde::Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct ChainConfig {
    /// Names of other middlewares, in the order in which they see a request. Required.
    pub middlewares: Vec<String>,
}

/// Checks every definition once, used or not, so that a mistake is reported where it is, and not
/// again for each router that uses it. `at` is the path of the map: `http.middlewares`.
pub fn check(defs: &BTreeMap<MiddlewareName, MiddlewareConfig>, at: &ConfigPath, problems: &mut Problems) {
    let router = RouterName::new("");
    for (name, config) in defs {
        let at = at.key(name.as_str()).key(config.kind());
        let mut stores = Stores::new();
        let mut cx = CompileContext {
            problems,
            stores: &mut stores,
            router: &router,
            path_matching: PathMatching::default(),
        };
        if let MiddlewareConfig::Chain(chain) = config {
            chain.check(name.as_str(), &at.key("middlewares"), defs, cx.problems);
        } else {
            config.compile(name, &at, &mut cx);
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
        defs: &BTreeMap<MiddlewareName, MiddlewareConfig>,
        problems: &mut Problems,
    ) {
        if self.middlewares.is_empty() {
            problems.error(at, "chain needs middlewares");
        }
        for (index, text) in self.middlewares.iter().enumerate() {
            let at = at.index(index);
            let Some(inner) = resolve(text, &at, defs, problems) else { continue };
            if let Some(path) = path_back(name, inner, defs, &mut vec![name, inner], &mut BTreeSet::new()) {
                problems.error(&at, format!("chain contains itself: {}", path.join(" -> ")));
            }
        }
    }
}

/// How `from` leads back to `to`, over chains.
fn path_back<'a>(
    to: &str,
    from: &'a str,
    defs: &'a BTreeMap<MiddlewareName, MiddlewareConfig>,
    path: &mut Vec<&'a str>,
    seen: &mut BTreeSet<&'a str>,
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
        if !seen.insert(inner) {
            return None;
        }
        path.push(inner);
        let found = path_back(to, inner, defs, path, seen);
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
    defs: &BTreeMap<MiddlewareName, MiddlewareConfig>,
    cx: &mut CompileContext<'_>,
) -> Option<Vec<(MiddlewareName, Link)>> {
    let mut links = Vec::with_capacity(names.len());
    let (mut whole, mut steps) = (true, 0);
    for (index, text) in names.iter().enumerate() {
        let at = at.index(index);
        match resolve(text, &at, defs, cx.problems) {
            Some(name) => {
                whole &= flatten(name, &at, defs, cx, Walk { depth: 0, steps: &mut steps }, &mut links)
            }
            None => whole = false,
        }
    }
    whole.then_some(links)
}

/// The links of an entry point and those of a router as one chain.
///
/// From Traefik, where each mention of a limit has a count of its own: what stands on the way twice, here and there or
/// in two chains, counts a request once.
pub fn join(
    outer: Vec<(MiddlewareName, Link)>,
    own: Vec<(MiddlewareName, Link)>,
) -> Vec<(MiddlewareName, Link)> {
    let mut counting = BTreeSet::new();
    let all = outer.into_iter().chain(own);
    let mut links: Vec<_> =
        all.filter(|(name, link)| !link.counts() || counting.insert(name.clone())).collect();
    let headers = links.iter_mut().filter_map(|(_, link)| match link {
        Link::Edit(Edit::Headers(headers)) => Some(headers),
        _ => None,
    });
    headers.enumerate().for_each(|(number, headers)| headers.set_number(number));
    links
}

/// How far the names have been followed.
struct Walk<'a> {
    depth: usize,
    steps: &'a mut usize,
}

/// Adds the links of one middleware; `false` when one of them is missing.
fn flatten(
    name: &str,
    at: &ConfigPath,
    defs: &BTreeMap<MiddlewareName, MiddlewareConfig>,
    cx: &mut CompileContext<'_>,
    walk: Walk<'_>,
    links: &mut Vec<(MiddlewareName, Link)>,
) -> bool {
    // A name that a chain cannot resolve was reported there.
    let Some((name, config)) = defs.get_key_value(name) else { return false };
    let Walk { depth, steps } = walk;
    *steps += 1;
    if let MiddlewareConfig::Chain(chain) = config {
        if depth == MAX_DEPTH {
            cx.problems.error(at, format!("chains nest deeper than {MAX_DEPTH}"));
            return false;
        }
        // Stops at the first failure, so that chains of chains cannot multiply the problems.
        return !chain.middlewares.is_empty()
            && chain.middlewares.iter().all(|inner| {
                let walk = Walk { depth: depth + 1, steps: &mut *steps };
                flatten(local_name(inner), at, defs, cx, walk, links)
            });
    }
    if links.len() == MAX_LINKS || *steps > MAX_STEPS {
        cx.problems.error(at, format!("more than {MAX_LINKS} middlewares on one router"));
        return false;
    }
    let mut known = Problems::new();
    let mut inner = CompileContext {
        problems: &mut known,
        stores: &mut *cx.stores,
        router: cx.router,
        path_matching: cx.path_matching,
    };
    match config.compile(name, &ConfigPath::root(), &mut inner) {
        Some(link) => {
            links.push((name.clone(), link));
            true
        }
        None => !known.has_errors(),
    }
}

/// Finds a middleware by the name that a list has for it.
fn resolve<'a>(
    text: &'a str,
    at: &ConfigPath,
    defs: &BTreeMap<MiddlewareName, MiddlewareConfig>,
    problems: &mut Problems,
) -> Option<&'a str> {
    let name = local_name(text);
    if defs.contains_key(name) {
        return Some(name);
    }
    let defined = ConfigPath::of(&["http", "middlewares"]).key(name);
    if problems.iter().any(|problem| problem.path.starts_with(&defined)) {
        // It could not even be read.
        problems.error(at, format!("middleware {text:?} has errors"));
        return None;
    }
    let problem = Problem::error(at, format!("middleware {text:?} does not exist"));
    problems.push(match (name.split_once('@'), nearest(name, defs.keys().map(MiddlewareName::as_str))) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::middleware::testing::definitions;

    fn run(text: &str, names: &[&str]) -> (Option<Vec<String>>, Vec<String>) {
        let defs = definitions(text);
        let mut problems = Problems::new();
        check(&defs, &ConfigPath::of(&["http", "middlewares"]), &mut problems);
        let mut stores = Stores::new();
        let router = RouterName::new("r");
        let mut cx = CompileContext {
            problems: &mut problems,
            stores: &mut stores,
            router: &router,
            path_matching: PathMatching::default(),
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let links = compile_chain(&names, &ConfigPath::of(&["list"]), &defs, &mut cx);
        let links = links.map(|links| links.iter().map(|(name, _)| name.to_string()).collect());
        let said = problems.iter().map(|problem| {
            let hint = problem.hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default();
            format!("{}: {}{hint}", problem.path, problem.message)
        });
        (links, said.collect())
    }

    #[test]
    fn chains_are_flattened_in_their_order() {
        let defs = "{a: {addPrefix: {prefix: /a}}, b: {addPrefix: {prefix: /b}}, off: {rateLimit: {average: 0}}, \
                    inner: {chain: {middlewares: [b, a@file, off]}}, outer: {chain: {middlewares: [a, inner]}}}";
        let (links, problems) = run(defs, &["b", "outer@file"]);
        assert_eq!(problems, [""; 0]);
        assert_eq!(links.expect("all are there"), ["b", "a", "b", "a"]);
    }

    #[test]
    fn an_unknown_name_is_reported_where_it_stands_with_a_suggestion() {
        let defs = "{auth: {addPrefix: {prefix: /a}}, c: {chain: {middlewares: [auht]}}}";
        let (links, problems) = run(defs, &["auth", "aut", "auth@docker", "c"]);
        assert!(links.is_none());
        assert_eq!(
            problems,
            [
                "http.middlewares.c.chain.middlewares[0]: middleware \"auht\" does not exist (did you mean \"auth\"?)",
                "list[1]: middleware \"aut\" does not exist (did you mean \"auth\"?)",
                "list[2]: middleware \"auth@docker\" does not exist (no provider named \"docker\" is supported)",
            ]
        );
    }

    #[test]
    fn one_that_could_not_be_read_is_not_said_to_be_missing() {
        let mut problems = Problems::new();
        problems.error(&ConfigPath::of(&["http", "middlewares", "auth", "addPrefix"]), "no prefix");
        assert!(resolve("auth@file", &ConfigPath::root(), &BTreeMap::new(), &mut problems).is_none());
        assert_eq!(problems.iter().last().expect("told").message, "middleware \"auth@file\" has errors");
    }

    #[test]
    fn a_chain_that_contains_itself_is_reported_with_its_way_round() {
        let defs = "{a: {chain: {middlewares: [b]}}, b: {chain: {middlewares: [c]}}, c: {chain: {middlewares: [b]}}}";
        let (links, problems) = run(defs, &["a"]);
        assert!(links.is_none());
        assert_eq!(
            problems[..2],
            [
                "http.middlewares.b.chain.middlewares[0]: chain contains itself: b -> c -> b",
                "http.middlewares.c.chain.middlewares[0]: chain contains itself: c -> b -> c",
            ]
        );
        let (_, problems) = run("{a: {chain: {middlewares: [a]}}}", &[]);
        assert_eq!(problems, ["http.middlewares.a.chain.middlewares[0]: chain contains itself: a -> a"]);
    }

    #[test]
    fn a_bad_definition_is_reported_once_however_many_use_it() {
        let (links, problems) = run("{a: {retry: {attempts: 0}}}", &["a", "a"]);
        assert!(links.is_none());
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].starts_with("http.middlewares.a.retry.attempts: "), "{problems:?}");
    }

    #[test]
    fn what_is_not_built_yet_is_said_by_name() {
        let (links, problems) =
            run("{a: {compress: {encodings: [gzip]}}, b: {passTLSClientCert: {pem: true}}}", &["a"]);
        assert!(links.is_none());
        assert_eq!(
            problems,
            [
                "http.middlewares.a.compress: compress is not supported yet",
                "http.middlewares.b.passTLSClientCert: passTLSClientCert is not supported yet",
            ]
        );
    }

    #[test]
    fn a_router_has_a_bound_on_its_links() {
        let names = vec!["a"; MAX_LINKS + 1];
        let (links, problems) = run("{a: {addPrefix: {prefix: /a}}}", &names);
        assert!(links.is_none());
        assert_eq!(problems, ["list[64]: more than 64 middlewares on one router"]);
        let (links, _) = run("{a: {addPrefix: {prefix: /a}}}", &names[1..]);
        assert_eq!(links.map(|links| links.len()), Some(MAX_LINKS));
    }

    #[test]
    fn chains_that_multiply_end_soon() {
        let mut defs = "{off: {rateLimit: {average: 0}}, c0: {chain: {middlewares: [off]}}".to_owned();
        for level in 1..MAX_DEPTH {
            let inner = vec![format!("c{}", level - 1); 50].join(", ");
            defs.push_str(&format!(", c{level}: {{chain: {{middlewares: [{inner}]}}}}"));
        }
        defs.push('}');
        let (links, problems) = run(&defs, &["c15"]);
        assert!(links.is_none());
        assert_eq!(problems, ["list[0]: more than 64 middlewares on one router"]);
    }

    #[test]
    fn routers_share_buckets_only_with_the_scope_of_the_middleware() {
        let defs = definitions(
            "{own: {rateLimit: {average: 1}}, shared: {rateLimit: {average: 1, scope: middleware}}}",
        );
        let mut stores = Stores::new();
        for router in ["r1", "r2"] {
            let mut problems = Problems::new();
            let mut cx = CompileContext {
                problems: &mut problems,
                stores: &mut stores,
                router: &RouterName::new(router),
                path_matching: PathMatching::default(),
            };
            compile_chain(&["own".to_owned(), "shared".to_owned()], &ConfigPath::root(), &defs, &mut cx)
                .expect("no problem");
        }
        let names: Vec<_> = stores.rates().map(|(name, _)| name).collect();
        assert_eq!(names, ["rateLimit/own/r1", "rateLimit/own/r2", "rateLimit/shared"]);
    }
}
