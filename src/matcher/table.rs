//! The routers of one entry point, and the one that takes a request.

use super::{Explained, Rule, Subject};

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
}

#[derive(Debug)]
struct Entry<T> {
    rule: Rule,
    priority: i64,
    name: String,
    target: T,
}

impl<T> RouterTable<T> {
    /// Builds the table from rule, priority (0: the length of the rule's text in bytes), name and target.
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
        Self { entries }
    }

    /// The matching router of the highest priority; of several, the first by name.
    pub fn lookup(&self, subject: &Subject<'_>) -> Option<&T> {
        self.entries.iter().find(|entry| entry.rule.matches(subject)).map(|entry| &entry.target)
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
