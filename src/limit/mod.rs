//! Rate limiting core: token buckets in a bounded, sharded store, and counts of what is in flight.
//!
//! Reads a [`LimitKey`], a [`Quota`] and the time; says a [`Verdict`]. Pure but for the stores'
//! locks, each of which is held for one look-up. Never: the clock, sockets, tasks, configuration.

mod in_flight;
mod key;
mod quota;
mod registry;
mod store;

pub use in_flight::{InFlight, InFlightGuard};
pub use key::{LimitKey, Part};
pub use quota::{Bucket, Nanos, Quota, Verdict, nanos};
pub use registry::{StoreName, Stores};
pub use store::{Counts, DEFAULT_MAX_KEYS, Store};
