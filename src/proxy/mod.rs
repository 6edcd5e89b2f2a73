//! The life of one request: [`serve::serve`] is the whole path, read top to bottom.

pub mod admit;
pub mod bandwidth;
mod breaker;
pub mod core;
pub mod exchange;
mod failover;
mod forward;
pub mod grpc;
pub mod guard;
mod hedge;
mod limit;
mod mirror;
pub mod outcome;
mod pace;
mod rehearse;
mod resolve;
pub mod respond;
mod retry;
pub mod serve;
pub mod tunnel;
