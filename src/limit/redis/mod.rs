//! Limits that replicas share through Redis.
//!
//! [`SharedLimit`] is what requests meet; [`Backend`] is a Redis with its connections, which several limits may
//! use. The buckets are in Redis and are filled by Redis's clock; a script takes from them, many in one call,
//! with the same arithmetic as in memory. Each replica keeps a bounded view of what it knows, and decides by
//! that within a lease, and by its share of the limit while Redis is away.
//!
//! No request waits longer than `timeout` for Redis, and none at all once it is known to be away.
//!
//! # How far a lease is off
//!
//! With R replicas and leases of L tokens, no more than `burst + rate * time + R * L` requests pass in any
//! time. A replica gives away at most L tokens between two words of Redis, and after a word it gives away none
//! before its bucket, as Redis had it, has a token again. What is held for requests that are not answered yet counts as
//! given away. Take the last such word that any replica acted
//! upon while the bucket was overdrawn: until then time has paid the debt of that moment, and since then each
//! replica has given away at most L.

mod backend;
mod connect;
mod courier;
mod driver;
mod registry;
mod remedy;
mod replica;
mod script;
mod settings;
mod shared;
mod state;
mod terms;
mod views;

pub use backend::Backend;
pub use courier::{Trouble, deliver};
pub use registry::Registry;
pub use script::{Answer, By, CODE, Kind, Question, Shape, Spent, call, read};
pub use settings::{Address, Secret, Settings, Tls, Topology, Verify};
pub use shared::{Begun, Hold, Mode, OnFailure, Pending, Receipt, Settled, SharedLimit, Use};
pub use state::{Figures, Health};
pub use terms::Terms;
pub use views::{GivesBack, Tally, Views};
