//! Pauses at random.

use std::time::Duration;

/// Anything from nothing to `longest`, so that those who failed together do not come back together. `random` is
/// evenly distributed over all of `u64`.
pub fn full_jitter(longest: Duration, random: u64) -> Duration {
    // 53 random bits, all that a float can hold.
    longest.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}
