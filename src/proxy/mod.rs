//! The life of one request: [`serve::serve`] is the whole path, read top to bottom.

pub mod core;
pub mod exchange;
mod forward;
mod limit;
pub mod outcome;
mod pace;
pub mod respond;
mod retry;
pub mod serve;
pub mod tunnel;
