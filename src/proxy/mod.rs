//! The life of one request: [`serve::serve`] is the whole path, read top to bottom.

pub mod admit;
mod breaker;
pub mod core;
pub mod exchange;
mod forward;
pub mod guard;
mod hedge;
mod limit;
pub mod outcome;
mod pace;
pub mod respond;
mod retry;
pub mod serve;
pub mod tunnel;
