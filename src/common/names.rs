//! Names of configured things, so that a router's name is never taken for a service's.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

macro_rules! name {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Takes the name as it was written.
            pub fn new(name: &str) -> Self {
                Self(name.into())
            }

            /// Gives the name as it was written.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// Key of an entry under `entryPoints`.
    EntryPointName
}
name! {
    /// Key of an entry under `http.routers`, with `@provider` only for those the proxy makes itself.
    RouterName
}
name! {
    /// Key of an entry under `http.services`.
    ServiceName
}
name! {
    /// Key of an entry under `http.middlewares`.
    MiddlewareName
}
