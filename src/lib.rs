//! Sluicegate: a reverse proxy and edge rate limiter that makes unreliable pods look reliable.
//!
//! # The way of a request
//!
//! [`server`] accepts a socket and gives it to the core with the fewest connections; from then on its requests,
//! timers and connections to pods stay on that core. [`tls`] has the certificates. [`proxy::serve`] reads the whole way from top to bottom:
//! [`http`] reads the head and refuses what is malformed, the [`snapshot`] is loaded once, [`matcher`] finds the
//! router, the links of its chain ([`middleware`], [`limit`]) edit or answer, [`balance`] picks an [`endpoint`],
//! [`upstream`] has the connection, and the answer comes back through the same links. Whatever goes wrong is one
//! [`http::error::ProxyError`], which knows its status and whose fault it is; [`telemetry`] counts and logs it.
//!
//! # The way of a document
//!
//! [`provider`] sees that a file changed; [`reload`] has [`config`] read it, [`snapshot::compile`] make of it what
//! requests need, opens what is new, and swaps. Names carry over what runs: buckets of limits, health, pools, turns.
//! [`health`] checks endpoints, [`discovery`] finds them by name; [`status`] and [`admin`] tell operators; [`cli`] and [`app`] wire it up; [`demo`]
//! is what a newcomer tries first.
//!
//! # What always holds
//!
//! - **One request, one snapshot.** Loaded once, passed by reference.
//! - **A refused document changes nothing**: not the routes, not a listener, not a connection. The reason is in
//!   the log, in a metric and in the API, and readiness stays as it was.
//! - **An accepted reload drops nothing**: no request in flight, no established connection of an unchanged entry
//!   point, no bucket of a limit, no health state, no warm connection to a pod of an unchanged service.
//! - **The data path never sees a serde type.** What a snapshot reaches is not `Deserialize`.
//! - **No unbounded thing.** Buckets, queues, buffers, heads, connections, retries: each has a limit.
//! - **Never amplify.** Retries stay inside a budget; a body is sent again only while it is held whole; a request
//!   that may have had an effect is not repeated unless its method is idempotent or the operator says so.
//!
//! Imports go one way, downwards through the layers that the test in `layers.rs` lists.

pub mod admin;
pub mod app;
pub mod balance;
pub mod cli;
pub mod common;
pub mod config;
pub mod demo;
pub mod discovery;
pub mod endpoint;
pub mod health;
pub mod http;
pub mod limit;
pub mod matcher;
pub mod middleware;
pub mod provider;
pub mod proxy;
pub mod reload;
pub mod server;
pub mod snapshot;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod upstream;

#[cfg(test)]
mod layers;
