//! Words everybody shares: names, units, problems of a document, the coarse clock, importance, timers, boxed futures, values that are replaced
//! whole. No I/O.

pub mod boxed;
pub mod clock;
pub mod figures;
pub mod importance;
pub mod jitter;
pub mod live;
pub mod names;
pub mod problem;
pub mod timer;
pub mod units;
