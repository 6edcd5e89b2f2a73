//! Rate limiting core: exact token buckets in a table of fixed memory, and counts of what is in flight.
//!
//! A [`Limit`] is plain data: windows that a request must pass all together. [`KeyBytes`] say what it
//! counts by, and a [`Decision`] what became of a request. Whoever keeps the buckets answers
//! `decide(now, key, limit, cost)`; in memory that is [`LocalLimit::decide`].
//!
//! Pure but for the stores' locks, each of which is held for one look-up. Never: the clock, sockets,
//! tasks, configuration.

mod decision;
mod in_flight;
mod key;
mod local;
mod pace;
mod pauses;
mod quota;
pub mod redis;
mod registry;
mod table;
mod top;

pub use decision::{Decision, Limit, MAX_WINDOWS, Taken, Window};
pub use in_flight::{InFlight, InFlightGuard};
pub use key::{KeyBytes, LimitKey, Part};
pub use local::{BYTES_PER_BUCKET, Bound, Counts, DEFAULT_MAX_KEYS, LocalLimit, Store};
pub use pace::{Granted, Pace, PaceScope, Turn};
pub use pauses::Pauses;
pub use quota::{MAX_DELAY, Nanos, Quota, nanos};
pub use registry::{StoreName, Stores};
pub use top::{Show, TopKey};
