//! The Redis servers and views that one snapshot uses, and how they pass to the next one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::backend::Backend;
use super::settings::Settings;
use super::views::Views;

/// Everything of Redis that a snapshot uses.
#[derive(Debug, Default)]
pub struct Registry {
    used: Table,
    offered: Table,
}

#[derive(Clone, Debug, Default)]
struct Table {
    backends: Vec<Arc<Backend>>,
    views: BTreeMap<(String, String), Arc<Views>>,
}

impl Registry {
    /// Nothing yet, but what `previous` uses is carried over when it is asked for.
    #[must_use]
    pub fn after(previous: &Self) -> Self {
        Self { used: Table::default(), offered: previous.used.clone() }
    }

    /// Lets go of what was not asked for: its connections end with the snapshot that had them.
    #[must_use]
    pub fn settle(self) -> Self {
        Self { used: self.used, offered: Table::default() }
    }

    /// The Redis with these settings; the same settings share their connections.
    pub fn backend(&mut self, settings: &Settings) -> Arc<Backend> {
        let of_it = |backend: &&Arc<Backend>| backend.settings() == settings;
        if let Some(backend) = self.used.backends.iter().find(of_it) {
            return Arc::clone(backend);
        }
        let carried = self.offered.backends.iter().find(of_it).cloned();
        let backend = carried.unwrap_or_else(|| Arc::new(Backend::new(settings.clone())));
        self.used.backends.push(Arc::clone(&backend));
        backend
    }

    /// The views of the limit of this name with these windows, in words: what is known under other windows is not
    /// carried over, because Redis knows it.
    pub fn views(&mut self, name: &str, windows: &str) -> Arc<Views> {
        let key = (name.to_owned(), windows.to_owned());
        if let Some(views) = self.used.views.get(&key) {
            return Arc::clone(views);
        }
        let views = self.offered.views.get(&key).cloned().unwrap_or_default();
        self.used.views.insert(key, Arc::clone(&views));
        views
    }

    /// Every Redis in use.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.used.backends
    }

    /// Every limit's views, by name; a limit with several plans has several.
    pub fn all_views(&self) -> impl Iterator<Item = (&str, &Arc<Views>)> {
        self.used.views.iter().map(|((name, _), views)| (name.as_str(), views))
    }
}
