//! Health of one endpoint, as a pure state machine.
//!
//! Reads results of checks; [`step`] returns the new state.
//! Never: sockets, timers, locks. The tasks in `crate::health` own those.

use std::num::NonZeroU32;

/// Whether an endpoint gets requests.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum Status {
    /// It gets requests. So it begins, before anything is known.
    #[default]
    Up,
    /// It gets none.
    Down,
}

impl Status {
    /// The word that Traefik's API has for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "UP",
            Self::Down => "DOWN",
        }
    }
}

/// What one check found.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CheckResult {
    /// The endpoint answered as it should.
    Pass,
    /// It did not answer, or otherwise.
    Fail,
}

/// How many results in a row change the status.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Thresholds {
    /// Passes in a row that bring an endpoint up. Default 1, as in Traefik.
    pub rise: NonZeroU32,
    /// Failures in a row that take it down. Default 1, as in Traefik.
    pub fall: NonZeroU32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { rise: NonZeroU32::MIN, fall: NonZeroU32::MIN }
    }
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Health {
    status: Status,
    /// Results in a row that speak against `status`; less than the threshold that would change it.
    against: u32,
}

impl Health {
    /// Begins with `status`.
    pub fn starting(status: Status) -> Self {
        Self { status, against: 0 }
    }

    /// Whether the endpoint gets requests.
    pub fn status(self) -> Status {
        self.status
    }
}

/// Takes one result into account.
///
/// One that agrees with the status ends the row of those that do not.
#[must_use]
pub fn step(health: Health, result: CheckResult, thresholds: Thresholds) -> Health {
    let (agrees, threshold, other) = match (health.status, result) {
        (Status::Up, CheckResult::Pass) | (Status::Down, CheckResult::Fail) => {
            (true, NonZeroU32::MIN, health.status)
        }
        (Status::Up, CheckResult::Fail) => (false, thresholds.fall, Status::Down),
        (Status::Down, CheckResult::Pass) => (false, thresholds.rise, Status::Up),
    };
    if agrees {
        return Health::starting(health.status);
    }
    let against = health.against.saturating_add(1);
    if against >= threshold.get() {
        Health::starting(other)
    } else {
        Health { status: health.status, against }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use CheckResult::{Fail, Pass};

    fn run(thresholds: Thresholds, results: &[CheckResult]) -> Vec<Status> {
        let mut health = Health::default();
        let step = |result: &CheckResult| {
            health = step(health, *result, thresholds);
            health.status()
        };
        results.iter().map(step).collect()
    }

    #[test]
    fn one_failure_takes_it_down_and_one_pass_brings_it_up_by_default() {
        assert_eq!(Health::default().status(), Status::Up);
        assert_eq!(
            run(Thresholds::default(), &[Pass, Fail, Fail, Pass, Fail]),
            [Status::Up, Status::Down, Status::Down, Status::Up, Status::Down]
        );
    }

    #[test]
    fn only_results_in_a_row_reach_a_threshold() {
        let number = |number| NonZeroU32::new(number).expect("not zero");
        let thresholds = Thresholds { rise: number(2), fall: number(3) };
        use Status::{Down, Up};
        assert_eq!(
            run(thresholds, &[Fail, Fail, Pass, Fail, Fail, Fail, Pass, Fail, Pass, Pass]),
            [Up, Up, Up, Up, Up, Down, Down, Down, Down, Up]
        );
    }
}
