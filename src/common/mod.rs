//! Words everybody shares: names, units, problems of a document, the coarse clock. No I/O.

pub mod clock;
pub mod names;
pub mod problem;
pub mod timer;
pub mod units;
