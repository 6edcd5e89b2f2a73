//! The running configuration as the API shows it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::admin::redact;

/// Whether an item of the document is used.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum ItemState {
    /// It is.
    #[default]
    Enabled,
    /// It is, with warnings.
    Warning,
    /// It was left out because of its problems.
    Disabled,
}

impl ItemState {
    /// Traefik's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Warning => "warning",
            Self::Disabled => "disabled",
        }
    }
}

/// An item of the document: its keys as written (with defaults), without secrets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiItem {
    pub(super) config: Map<String, Value>,
    pub(super) state: ItemState,
    pub(super) errors: Vec<String>,
    pub(super) used: Vec<String>,
}

impl ApiItem {
    /// Takes an item's keys, with secrets taken out (`secrets` are those that stood elsewhere than in the file,
    /// longest first); what is no map is shown as none.
    ///
    /// A service is `{"loadBalancer": {...}}`, a middleware `{"addPrefix": {...}}`: its one key is its type.
    pub fn new(mut config: Value, secrets: &[String]) -> Self {
        redact(&mut config, secrets);
        let config = match config {
            Value::Object(config) => config,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Map::new()
            }
        };
        Self { config, ..Self::default() }
    }

    /// Says whether it is used and what is wrong with it; the errors are shown as they are.
    #[must_use]
    pub fn state(mut self, state: ItemState, errors: Vec<String>) -> Self {
        self.state = state;
        self.errors = errors;
        self
    }

    /// For a router, the entry points it is reached by (`using`); for a service or middleware, the
    /// qualified routers that use it (`usedBy`).
    #[must_use]
    pub fn used(mut self, names: Vec<String>) -> Self {
        self.used = names;
        self
    }
}

/// The running configuration; names are qualified (`api@file`) but those of entry points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ApiModel {
    /// `entryPoints`
    pub entry_points: BTreeMap<String, ApiItem>,
    /// `http.routers`
    pub routers: BTreeMap<String, ApiItem>,
    /// `http.services`
    pub services: BTreeMap<String, ApiItem>,
    /// `http.middlewares`
    pub middlewares: BTreeMap<String, ApiItem>,
}
