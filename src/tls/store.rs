//! Which certificate a client gets: exact name, then wildcard, then the default.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::pair::Pair;

/// All certificates by name.
#[derive(Debug)]
pub struct CertStore {
    exact: HashMap<Box<str>, Arc<CertifiedKey>, RandomState>,
    /// By what follows the first label.
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>, RandomState>,
    default: Arc<CertifiedKey>,
}

impl CertStore {
    /// Files `pairs` under their names. Of two for one name the one whose list of names sorts last counts, as in
    /// Traefik, so that every build of the same certificates answers the same.
    pub fn new(pairs: &[Arc<Pair>], default: &Pair) -> Self {
        let mut sorted: Vec<_> = pairs.iter().collect();
        sorted.sort_by_key(|pair| pair.facts.names.join(","));
        let mut exact = HashMap::default();
        let mut wildcard = HashMap::default();
        for pair in sorted {
            for name in &pair.facts.names {
                match name.strip_prefix("*.") {
                    Some(parent) => wildcard.insert(parent.into(), Arc::clone(&pair.key)),
                    None => exact.insert(name.as_str().into(), Arc::clone(&pair.key)),
                };
            }
        }
        Self { exact, wildcard, default: Arc::clone(&default.key) }
    }

    /// The certificate for a name in lower case; `None` when only the default is left.
    pub fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.strip_suffix('.').unwrap_or(name);
        self.exact.get(name).or_else(|| {
            let (_, parent) = name.split_once('.')?;
            self.wildcard.get(parent)
        })
    }

    /// For clients that ask for no name we have.
    pub fn default(&self) -> &Arc<CertifiedKey> {
        &self.default
    }
}

/// What is done about clients that ask for no name we have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unknown {
    /// They get the default certificate.
    Default,
    /// Their handshake fails (`sniStrict`).
    Refuse,
}

/// The store as rustls asks it.
#[derive(Debug)]
pub struct Resolver {
    /// The certificates.
    pub store: Arc<CertStore>,
    /// For all other names.
    pub unknown: Unknown,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = hello.server_name().and_then(|name| self.store.find(name));
        match (found, self.unknown) {
            (Some(found), _) => Some(Arc::clone(found)),
            (None, Unknown::Default) => Some(Arc::clone(self.store.default())),
            (None, Unknown::Refuse) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::pair::tests::pem;

    fn pair(names: &[&str]) -> Arc<Pair> {
        let (chain, key) = pem(names);
        Arc::new(Pair::from_pem(chain.as_bytes(), key.as_bytes(), None).expect("a pair"))
    }

    #[test]
    fn an_exact_name_comes_before_a_wildcard_and_both_before_the_default() {
        let (wild, exact, default) = (pair(&["*.a.test"]), pair(&["b.a.test"]), pair(&["x"]));
        let store = CertStore::new(&[Arc::clone(&exact), Arc::clone(&wild)], &default);
        let found = |name: &str| store.find(name);
        assert!(found("b.a.test").is_some_and(|key| Arc::ptr_eq(key, &exact.key)));
        assert!(found("b.a.test.").is_some_and(|key| Arc::ptr_eq(key, &exact.key)));
        assert!(found("c.a.test").is_some_and(|key| Arc::ptr_eq(key, &wild.key)));
        assert!(found("a.test").is_none());
        assert!(found("d.c.a.test").is_none(), "a wildcard is one label");
        assert!(Arc::ptr_eq(store.default(), &default.key));
    }
}
