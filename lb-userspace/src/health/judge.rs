//! The state machine of one target: results of checks in, transitions out.

use std::{num::NonZeroU32, time::Instant};

use super::probe::Failure;

/// What the checks of a target say about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    /// No check has ended yet.
    Unknown,
    /// It passes its checks.
    Up,
    /// It fails its checks.
    Down,
}

impl Health {
    /// The name in metrics and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// How many results in a row turn a target over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thresholds {
    /// Passed checks in a row that bring a target up.
    pub healthy: NonZeroU32,
    /// Failed checks in a row that take a target down.
    pub unhealthy: NonZeroU32,
}

/// A target changed its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub previous: Health,
    /// The state now.
    pub state: Health,
    /// What the deciding check met; `None` if it passed.
    pub reason: Option<Failure>,
    /// Results in a row, of the kind that decided.
    pub consecutive: u32,
    /// When the deciding result came.
    pub at: Instant,
}

/// The memory of one target.
#[derive(Clone, Debug)]
pub struct Judge {
    state: Health,
    since: Option<Instant>,
    /// The kind of the last result, and how many of it came in a row.
    passing: bool,
    streak: u32,
}

impl Judge {
    /// A target that was never checked.
    pub const fn new() -> Self {
        Self { state: Health::Unknown, since: None, passing: false, streak: 0 }
    }

    /// What the results so far amount to.
    pub const fn state(&self) -> Health {
        self.state
    }

    /// When the target entered its state; `None` as long as it is unknown.
    pub const fn since(&self) -> Option<Instant> {
        self.since
    }

    /// How many of the last results were of one kind.
    pub const fn streak(&self) -> u32 {
        self.streak
    }

    /// If the last results contradict the state, but are too few to change it.
    pub(super) fn is_pending(&self) -> bool {
        match self.state {
            Health::Unknown => false,
            Health::Up => !self.passing,
            Health::Down => self.passing,
        }
    }

    /// Takes one result in. The first ever decides alone; later ones need to come `healthy` or `unhealthy` times in a
    /// row, and a single result of the other kind starts the count again.
    pub fn observe(
        &mut self,
        result: Result<(), &Failure>,
        thresholds: Thresholds,
        now: Instant,
    ) -> Option<Transition> {
        let passed = result.is_ok();
        self.streak = if passed == self.passing { self.streak.saturating_add(1) } else { 1 };
        self.passing = passed;

        let (state, threshold) = match passed {
            true => (Health::Up, thresholds.healthy),
            false => (Health::Down, thresholds.unhealthy),
        };
        let enough = self.state == Health::Unknown || self.streak >= threshold.get();
        if self.state == state || !enough {
            return None;
        }
        let previous = std::mem::replace(&mut self.state, state);
        self.since = Some(now);
        Some(Transition { previous, state, reason: result.err().cloned(), consecutive: self.streak, at: now })
    }
}

impl Default for Judge {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn thresholds(healthy: u32, unhealthy: u32) -> Thresholds {
        let count = |n| NonZeroU32::new(n).expect("thresholds of the tests are positive");
        Thresholds { healthy: count(healthy), unhealthy: count(unhealthy) }
    }

    fn run(results: &[bool], thresholds: Thresholds) -> (Judge, Vec<Option<Transition>>) {
        let now = Instant::now();
        let mut judge = Judge::new();
        let transitions = results
            .iter()
            .map(|&passed| {
                let failure = Failure::ConnectRefused;
                judge.observe(if passed { Ok(()) } else { Err(&failure) }, thresholds, now)
            })
            .collect();
        (judge, transitions)
    }

    /// The rule said differently: the first result decides; after that the state is what the last `threshold` results
    /// agree on, and if they do not agree, what it was before.
    fn oracle(results: &[bool], thresholds: Thresholds) -> Health {
        let Some((_, before)) = results.split_last() else {
            return Health::Unknown;
        };
        if before.is_empty() {
            return if results[0] { Health::Up } else { Health::Down };
        }
        let last = |n: NonZeroU32, passed| {
            results.iter().rev().take_while(|&&r| r == passed).count() >= n.get() as usize
        };
        if last(thresholds.healthy, true) {
            Health::Up
        } else if last(thresholds.unhealthy, false) {
            Health::Down
        } else {
            oracle(before, thresholds)
        }
    }

    #[test]
    fn the_first_check_decides() {
        assert_eq!(run(&[true], thresholds(5, 5)).0.state(), Health::Up);
        assert_eq!(run(&[false], thresholds(5, 5)).0.state(), Health::Down);
    }

    #[test]
    fn failures_that_are_not_in_a_row_take_nothing_down() {
        let results = [true, false, false, true, false, false, true, false, false];
        assert_eq!(run(&results, thresholds(1, 3)).0.state(), Health::Up);
    }

    #[test]
    fn a_transition_says_what_decided_and_how_often_it_came() {
        let (_, transitions) = run(&[true, false, false], thresholds(2, 2));
        let last = transitions[2].as_ref().expect("two failures in a row take it down");
        assert_eq!((last.previous, last.state), (Health::Up, Health::Down));
        assert_eq!((last.consecutive, &last.reason), (2, &Some(Failure::ConnectRefused)));
    }

    proptest! {
        #[test]
        fn the_state_is_what_the_oracle_says(
            results in prop::collection::vec(any::<bool>(), 0..40),
            healthy in 1u32..6,
            unhealthy in 1u32..6,
        ) {
            let thresholds = thresholds(healthy, unhealthy);
            let (_, transitions) = run(&results, thresholds);
            let mut before = Health::Unknown;
            for (n, transition) in transitions.iter().enumerate() {
                let now = oracle(&results[..=n], thresholds);
                let told = transition.as_ref().map(|t| (t.previous, t.state));
                prop_assert_eq!(told, (before != now).then_some((before, now)));
                before = now;
            }
        }

        #[test]
        fn a_transition_is_pending_while_the_last_result_contradicts_the_state(
            results in prop::collection::vec(any::<bool>(), 0..40),
            healthy in 1u32..6,
            unhealthy in 1u32..6,
        ) {
            let (judge, _) = run(&results, thresholds(healthy, unhealthy));
            let last = match results.last() {
                None => Health::Unknown,
                Some(true) => Health::Up,
                Some(false) => Health::Down,
            };
            prop_assert_eq!(judge.is_pending(), last != judge.state());
        }
    }
}
