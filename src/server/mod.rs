//! Sockets in: listeners, cores, connections, drain.
//!
//! One acceptor a listener, on the control runtime, hands each socket to the core with the fewest live
//! connections; from then on a connection and all it needs stay on that core.

#[cfg(test)]
mod allocations;
pub mod connection;
pub mod cores;
pub mod h2;
pub mod listener;
mod secure;
