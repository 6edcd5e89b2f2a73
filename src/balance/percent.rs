//! A share of all requests, exact over each hundred of them.

use crate::balance::Turn;

/// Takes so many of each hundred, spread evenly, over all cores together.
#[derive(Debug)]
pub struct Percent {
    percent: u64,
    turn: Turn,
}

impl Percent {
    /// Takes `percent` of 100; more than 100 is all.
    pub fn new(percent: u8) -> Self {
        Self { percent: u64::from(percent).min(100), turn: Turn::new(0) }
    }

    /// How many of a hundred.
    pub fn get(&self) -> u64 {
        self.percent
    }

    /// Whether this one is taken; the first is, if any.
    pub fn takes(&self) -> bool {
        let place = self.turn.take(1) % 100;
        let taken_before = |place: u64| (place * self.percent).div_ceil(100);
        taken_before(place + 1) > taken_before(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_exact_and_spread() {
        for percent in 0..=100 {
            let share = Percent::new(percent);
            let taken: Vec<bool> = (0..200).map(|_| share.takes()).collect();
            assert_eq!(taken.iter().filter(|taken| **taken).count(), 2 * usize::from(percent));
        }
        let quarter = Percent::new(25);
        let taken: Vec<usize> = (0..16).filter(|_| quarter.takes()).collect();
        assert_eq!(taken, [0, 4, 8, 12]);
    }
}
