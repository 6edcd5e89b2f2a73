//! The routers of one entry point, and the one that takes a request.
//!
//! Every router is filed under the hosts and paths that its rule demands; a look-up asks only those
//! filed where the request's host and path lead. The files say who is worth asking, never who
//! matches: the rule itself decides, so a rule that cannot be filed is only slower.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::matchers::{HostPattern, Matcher, split_label};
use super::rule::Expr;
use super::{Explained, Rule, Subject};

/// Places that one rule may be filed in. Beyond it, conditions are left to the rule: a thousand
/// hosts times a thousand paths in one rule must not become a million places.
const MAX_KEYS: usize = 4096;

/// Routers of one host that are asked one after the other: fewer are not worth a file by path.
const MAX_UNFILED: usize = 8;

/// No prefix above this one.
const NONE: usize = usize::MAX;

/// One router, held against a request.
#[derive(Debug)]
pub struct Considered<'a, T> {
    /// The router's name.
    pub name: &'a str,
    /// The priority that counted: as set, or the length of the rule.
    pub priority: i64,
    /// What the router leads to.
    pub target: &'a T,
    /// The rule, part by part.
    pub explained: Explained,
}

/// Routers in the order in which they are asked: by priority, then by name.
#[derive(Debug)]
pub struct RouterTable<T> {
    entries: Vec<Entry<T>>,
    /// By host.
    exact: Files,
    /// By what follows the first label of the host.
    child: Files,
    /// Of rules that demand no host.
    any: File,
}

type Files = HashMap<Box<str>, File, RandomState>;

#[derive(Debug)]
struct Entry<T> {
    rule: Rule,
    priority: i64,
    name: String,
    target: T,
}

impl<T> RouterTable<T> {
    /// Builds the table from rule, priority (0: the length of the rule's text in bytes), name and target.
    ///
    /// Of equal priorities the first by name wins, so every build of the same routers answers the same.
    pub fn new(routers: Vec<(Rule, i64, String, T)>) -> Self {
        let mut entries: Vec<Entry<T>> = routers
            .into_iter()
            .map(|(rule, priority, name, target)| {
                let priority = match priority {
                    0 => i64::try_from(rule.text().len()).unwrap_or(i64::MAX),
                    set => set,
                };
                Entry { rule, priority, name, target }
            })
            .collect();
        entries.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));

        let mut exact: HashMap<&str, Vec<(PathKey<'_>, usize)>> = HashMap::new();
        let mut child: HashMap<&str, Vec<(PathKey<'_>, usize)>> = HashMap::new();
        let mut any = Vec::new();
        for (rank, entry) in entries.iter().enumerate() {
            for key in demands(entry.rule.expr()) {
                match key.host {
                    HostKey::Exact(host) => exact.entry(host).or_default().push((key.path, rank)),
                    HostKey::Child(parent) => child.entry(parent).or_default().push((key.path, rank)),
                    HostKey::Any => any.push((key.path, rank)),
                }
            }
        }
        let files = |by_host: HashMap<&str, Vec<(PathKey<'_>, usize)>>| -> Files {
            by_host.into_iter().map(|(host, filed)| (host.into(), File::new(filed))).collect()
        };
        let (exact, child, any) = (files(exact), files(child), File::new(any));
        Self { entries, exact, child, any }
    }

    /// The matching router of the highest priority; of several, the first by name.
    ///
    /// Cost: no allocation; two hash look-ups, one binary search in the paths of the host and one in
    /// those of no host, and the rules found there. It does not grow with the number of hosts.
    pub fn lookup(&self, subject: &Subject<'_>) -> Option<&T> {
        let mut best = self.entries.len();
        let matches = |rank: usize| self.entries[rank].rule.matches(subject);
        if let Some(file) = self.exact.get(subject.host) {
            file.search(subject.path, &mut best, &matches);
        }
        if !self.child.is_empty()
            && let Some(file) = split_label(subject.host).and_then(|parent| self.child.get(parent))
        {
            file.search(subject.path, &mut best, &matches);
        }
        self.any.search(subject.path, &mut best, &matches);
        self.entries.get(best).map(|entry| &entry.target)
    }

    /// Every router in the order in which they are asked, with the reason why it matches or does not.
    pub fn explain(&self, subject: &Subject<'_>) -> Vec<Considered<'_, T>> {
        self.entries
            .iter()
            .map(|entry| Considered {
                name: &entry.name,
                priority: entry.priority,
                target: &entry.target,
                explained: entry.rule.explain(subject),
            })
            .collect()
    }

    /// How many routers there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Routers that demand the same of the host, by what they demand of the path.
#[derive(Debug, Default)]
struct File {
    /// Ranks, best first, of those that demand nothing, or that are too few to be told apart.
    all: Box<[usize]>,
    paths: Option<Box<Paths>>,
}

#[derive(Debug)]
struct Paths {
    exact: HashMap<Box<str>, Box<[usize]>, RandomState>,
    /// In the order of their bytes.
    prefixes: Box<[Prefix]>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    ranks: Box<[usize]>,
    /// The longest other prefix that this one begins with, or [`NONE`].
    parent: usize,
}

impl File {
    fn new(filed: Vec<(PathKey<'_>, usize)>) -> Self {
        if filed.len() <= MAX_UNFILED {
            return Self { all: in_order(filed.into_iter().map(|(_, rank)| rank).collect()), paths: None };
        }
        let mut all = Vec::new();
        let mut exact: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut prefixes: HashMap<&str, Vec<usize>> = HashMap::new();
        for (path, rank) in filed {
            match path {
                PathKey::Any => all.push(rank),
                PathKey::Exact(path) => exact.entry(path).or_default().push(rank),
                PathKey::Prefix(prefix) => prefixes.entry(prefix).or_default().push(rank),
            }
        }
        let paths = (!exact.is_empty() || !prefixes.is_empty()).then(|| {
            let exact = exact.into_iter().map(|(path, ranks)| (path.into(), in_order(ranks))).collect();
            Box::new(Paths { exact, prefixes: nest(prefixes.into_iter().collect()) })
        });
        Self { all: in_order(all), paths }
    }

    /// Improves `best` by the first of each list that is better and matches.
    fn search(&self, path: &str, best: &mut usize, matches: &impl Fn(usize) -> bool) {
        let mut ask = |ranks: &[usize]| {
            let better = ranks.iter().take_while(|rank| **rank < *best).find(|rank| matches(**rank));
            if let Some(rank) = better {
                *best = *rank;
            }
        };
        if let Some(paths) = &self.paths {
            if !paths.exact.is_empty()
                && let Some(ranks) = paths.exact.get(path)
            {
                ask(ranks);
            }
            // The last prefix that does not come after the path begins with every prefix that the
            // path begins with: all texts between a prefix and the path begin with that prefix.
            let mut at = paths.prefixes.partition_point(|prefix| *prefix.text <= *path).wrapping_sub(1);
            let common = paths.prefixes.get(at).map_or(0, |prefix| common_length(&prefix.text, path));
            while let Some(prefix) = paths.prefixes.get(at) {
                if prefix.text.len() <= common {
                    ask(&prefix.ranks);
                }
                at = prefix.parent;
            }
        }
        ask(&self.all);
    }
}

/// Sorts prefixes and links each to the longest one that it begins with.
fn nest(mut prefixes: Vec<(&str, Vec<usize>)>) -> Box<[Prefix]> {
    prefixes.sort_unstable_by_key(|(text, _)| *text);
    let mut open: Vec<usize> = Vec::new();
    let mut nested: Vec<Prefix> = Vec::with_capacity(prefixes.len());
    for (at, (text, ranks)) in prefixes.into_iter().enumerate() {
        while open.last().is_some_and(|above| !text.starts_with(&*nested[*above].text)) {
            open.pop();
        }
        let parent = open.last().copied().unwrap_or(NONE);
        open.push(at);
        nested.push(Prefix { text: text.into(), ranks: in_order(ranks), parent });
    }
    nested.into()
}

fn in_order(mut ranks: Vec<usize>) -> Box<[usize]> {
    ranks.sort_unstable();
    ranks.dedup();
    ranks.into()
}

fn common_length(a: &str, b: &str) -> usize {
    a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count()
}

/// What a request must have for a rule to match: necessary, not sufficient.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Key<'a> {
    host: HostKey<'a>,
    path: PathKey<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum HostKey<'a> {
    Any,
    /// One label before this parent.
    Child(&'a str),
    Exact(&'a str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum PathKey<'a> {
    Any,
    Prefix(&'a str),
    Exact(&'a str),
}

impl<'a> Key<'a> {
    const ANY: Self = Self { host: HostKey::Any, path: PathKey::Any };

    /// What both demand together, or `None` when no request has both.
    fn and(self, other: Self) -> Option<Self> {
        let host = match (self.host, other.host) {
            (HostKey::Any, host) | (host, HostKey::Any) => host,
            (HostKey::Exact(host), HostKey::Child(parent))
            | (HostKey::Child(parent), HostKey::Exact(host)) => {
                (split_label(host) == Some(parent)).then_some(HostKey::Exact(host))?
            }
            (a, b) => (a == b).then_some(a)?,
        };
        let path = match (self.path, other.path) {
            (PathKey::Any, path) | (path, PathKey::Any) => path,
            (PathKey::Exact(path), PathKey::Prefix(prefix))
            | (PathKey::Prefix(prefix), PathKey::Exact(path)) => {
                path.starts_with(prefix).then_some(PathKey::Exact(path))?
            }
            (PathKey::Prefix(a), PathKey::Prefix(b)) if a.starts_with(b) => PathKey::Prefix(a),
            (PathKey::Prefix(a), PathKey::Prefix(b)) if b.starts_with(a) => PathKey::Prefix(b),
            (a, b) => (a == b).then_some(a)?,
        };
        Some(Self { host, path })
    }
}

/// The places to file a rule in, so that each request that the rule matches leads to one of them.
/// None at all if it matches no request.
fn demands(expr: &Expr) -> Vec<Key<'_>> {
    match expr {
        Expr::Matcher(Matcher::Host(HostPattern::Exact(host))) => {
            vec![Key { host: HostKey::Exact(host), ..Key::ANY }]
        }
        Expr::Matcher(Matcher::Host(HostPattern::Child(parent))) => {
            vec![Key { host: HostKey::Child(parent), ..Key::ANY }]
        }
        Expr::Matcher(Matcher::Path(path)) => vec![Key { path: PathKey::Exact(path), ..Key::ANY }],
        Expr::Matcher(Matcher::PathPrefix(prefix, _)) => {
            vec![Key { path: PathKey::Prefix(prefix), ..Key::ANY }]
        }
        // A negation demands nothing that could be looked up.
        Expr::Matcher(_) | Expr::Not(_) => vec![Key::ANY],
        Expr::Any(parts) => {
            let mut keys = Vec::new();
            for part in parts {
                let more = demands(part);
                if keys.len() + more.len() > MAX_KEYS || more.contains(&Key::ANY) {
                    return vec![Key::ANY];
                }
                keys.extend(more);
            }
            keys
        }
        Expr::All(parts) => parts.iter().map(demands).fold(vec![Key::ANY], |keys, more| {
            if keys.len() * more.len() > MAX_KEYS {
                // Either is necessary by itself; hosts tell requests apart better than paths.
                let has_hosts = |keys: &[Key<'_>]| keys.iter().all(|key| key.host != HostKey::Any);
                return if has_hosts(&more) && !has_hosts(&keys) { more } else { keys };
            }
            keys.iter().flat_map(|key| more.iter().filter_map(|other| key.and(*other))).collect()
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Reverse;
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;
    use crate::http::fields::Fields;
    use crate::matcher::PathMatching;

    fn table(routers: &[(&str, i64, &str)]) -> RouterTable<String> {
        RouterTable::new(
            routers
                .iter()
                .map(|(rule, priority, name)| {
                    (Rule::parse(rule).expect(rule), *priority, (*name).to_owned(), (*name).to_owned())
                })
                .collect(),
        )
    }

    fn ask<'a>(table: &'a RouterTable<String>, host: &str, path: &str) -> Option<&'a str> {
        let headers = Fields::new();
        let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let subject = Subject { host, path, query: None, method: "GET", headers: &headers, client_ip };
        table.lookup(&subject).map(String::as_str)
    }

    #[test]
    fn the_longest_rule_wins_unless_a_priority_says_otherwise() {
        let table = table(&[
            ("Host(`a.test`)", 0, "host"),
            ("Host(`a.test`) && PathPrefix(`/api`)", 0, "api"),
            ("PathPrefix(`/`)", -1, "last"),
            ("HostRegexp(`.*`) && Path(`/top`)", 1000, "top"),
        ]);
        assert_eq!(ask(&table, "a.test", "/"), Some("host"));
        assert_eq!(ask(&table, "a.test", "/api/x"), Some("api"));
        assert_eq!(ask(&table, "b.test", "/api/x"), Some("last"));
        assert_eq!(ask(&table, "a.test", "/top"), Some("top"));
    }

    #[test]
    fn the_default_priority_counts_bytes_spaces_included() {
        let table = table(&[
            ("Host(`a.test`)      ", 0, "spaces"),
            ("Host(`a.test`)", 15, "set"),
            ("Host(`*.test`)||Path(`/é`)", 0, "bytes"),
        ]);
        assert_eq!(ask(&table, "a.test", "/"), Some("bytes"));
        let headers = Fields::new();
        let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let subject =
            Subject { host: "a.test", path: "/", query: None, method: "GET", headers: &headers, client_ip };
        let order: Vec<(&str, i64)> =
            table.explain(&subject).iter().map(|router| (router.name, router.priority)).collect();
        assert_eq!(order, [("bytes", 27), ("spaces", 20), ("set", 15)]);
    }

    #[test]
    fn of_equal_routers_the_first_by_name_wins_in_whatever_order_they_come() {
        let mut routers = vec![
            ("Host(`a.test`)", 0, "c"),
            ("Host(`*.test`)", 0, "a"),
            ("Host(`b.test`)", 0, "0"),
            ("Host(`a.test`)", 0, "b"),
        ];
        for _ in 0..routers.len() {
            routers.rotate_left(1);
            assert_eq!(ask(&table(&routers), "a.test", "/"), Some("a"));
        }
    }

    #[test]
    fn a_thousand_prefixes_of_one_host_are_found_by_path() {
        let rules: Vec<String> =
            (0..1000).map(|n| format!("Host(`a.test`) && PathPrefix(`/s{n}`)")).collect();
        let routers: Vec<(&str, i64, &str)> =
            rules.iter().map(|rule| (rule.as_str(), 0, rule.as_str())).collect();
        let table = table(&routers);
        assert_eq!(ask(&table, "a.test", "/s777/x"), Some(rules[777].as_str()));
        assert_eq!(ask(&table, "a.test", "/s7"), Some(rules[7].as_str()));
        assert_eq!(ask(&table, "a.test", "/x"), None);
        assert_eq!(ask(&table, "b.test", "/s7"), None);

        let asked = std::cell::Cell::new(0);
        let file = &table.exact["a.test"];
        file.search("/s777/x", &mut usize::MAX.clone(), &|_| {
            asked.set(asked.get() + 1);
            false
        });
        // `/s7`, `/s77` and `/s777`.
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn hosts_times_paths_in_one_rule_do_not_explode() {
        let list = |name: &str, count: usize, end: &str| {
            (0..count)
                .map(|n| format!("{name}(`{}{n}{end}`)", if end.is_empty() { "/p" } else { "h" }))
                .collect::<Vec<_>>()
                .join("||")
        };
        let rule = format!("({}) && ({})", list("Path", 500, ""), list("Host", 500, ".test"));
        let table = table(&[(&rule, 0, "big")]);
        assert_eq!(table.exact.len(), 500);
        assert!(table.any.all.is_empty());
        assert_eq!(ask(&table, "h499.test", "/p499"), Some("big"));
        assert_eq!(ask(&table, "h499.test", "/p500"), None);
        assert_eq!(ask(&table, "h500.test", "/p1"), None);
    }

    #[test]
    fn an_empty_table_answers_nobody() {
        let table = table(&[]);
        assert!(table.is_empty());
        assert_eq!(ask(&table, "a.test", "/"), None);
    }

    fn any_rule() -> impl Strategy<Value = String> {
        let leaf = proptest::sample::select(vec![
            "Host(`a.test`)",
            "Host(`b.test`)",
            "Host(`x.a.test`)",
            "Host(`*.test`)",
            "Host(`*.a.test`)",
            "Host(`*`)",
            "HostRegexp(`^a`)",
            "Path(`/`)",
            "Path(`/a`)",
            "Path(`/a/b`)",
            "PathPrefix(`/`)",
            "PathPrefix(`/a`)",
            "PathPrefix(`/a/`)",
            "PathPrefix(`/a/b`)",
            "PathPrefix(`/ab`)",
            "PathRegexp(`b$`)",
            "Method(`GET`)",
            "Method(`PUT`)",
        ])
        .prop_map(str::to_owned);
        leaf.prop_recursive(4, 12, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|rule| format!("!({rule})")),
                (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a}) && ({b})")),
                (inner.clone(), inner).prop_map(|(a, b)| format!("({a}) || ({b})")),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_look_up_finds_what_asking_every_router_finds(
            rules in proptest::collection::vec((any_rule(), -2_i64..4, "[a-c]{1,2}", any::<bool>()), 0..40),
            requests in proptest::collection::vec((
                proptest::sample::select(vec!["a.test", "b.test", "x.a.test", "y.a.test", "z.b.test", "test", ""]),
                proptest::sample::select(vec!["/", "/a", "/a/", "/a/b", "/a/b/c", "/ab", "/abc", "/b", "*"]),
                proptest::sample::select(vec!["GET", "PUT"]),
            ), 1..20),
        ) {
            let mut routers = Vec::new();
            let mut by_hand = Vec::new();
            for (at, (text, priority, name, segment)) in rules.into_iter().enumerate() {
                let matching = if segment { PathMatching::Segment } else { PathMatching::Prefix };
                let rule = Rule::parse_with(&text, matching).expect("a rule");
                let name = format!("{name}{at}");
                let counted = if priority == 0 { text.len() as i64 } else { priority };
                by_hand.push((rule.clone(), counted, name.clone()));
                routers.push((rule, priority, name.clone(), name));
            }
            let table = RouterTable::new(routers);
            let headers = Fields::new();
            for (host, path, method) in requests {
                let client_ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
                let subject = Subject { host, path, query: None, method, headers: &headers, client_ip };
                let expected = by_hand
                    .iter()
                    .filter(|(rule, ..)| rule.matches(&subject))
                    .max_by_key(|(_, priority, name)| (*priority, Reverse(name)))
                    .map(|(_, _, name)| name);
                prop_assert_eq!(table.lookup(&subject), expected);
                let first = table.explain(&subject).into_iter().find(|router| router.explained.matched);
                prop_assert_eq!(first.map(|router| router.target), expected);
            }
        }
    }
}
