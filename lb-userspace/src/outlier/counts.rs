//! What the kernel has counted of a backend's connections.

use std::time::Duration;

use lb_common::watch::Watch;

use crate::config::SteerBy;

/// Connections of one backend, since its entry was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Those that began.
    pub tried: u64,
    /// Whose SYN was answered.
    pub answered: u64,
    /// Whose SYN was answered with a RST.
    pub refused: u64,
    /// Whose client had to ask again.
    pub unanswered: u64,
    /// Reset by the backend before it had sent a byte.
    pub reset_early: u64,
    /// How long those took that were answered in time.
    pub handshakes: Duration,
    /// Whose first byte came.
    pub served: u64,
    /// How long those took.
    pub first_bytes: Duration,
    /// Failures since the last success; the longer of two rows: those that nobody accepted, those that were cut off.
    pub in_a_row: u64,
    /// Whether replies are seen at all. If not, `answered`, `refused` and `reset_early` stay zero.
    pub both_ways: bool,
}

impl Counts {
    /// What a backend's entry says; `both_ways` if its replies come back through the balancer.
    #[must_use]
    pub fn of(watch: &Watch, both_ways: bool) -> Self {
        Self {
            tried: watch.tried,
            answered: watch.answered,
            refused: watch.refused,
            unanswered: watch.unanswered,
            reset_early: watch.reset_early,
            handshakes: Duration::from_nanos(watch.handshake_ns),
            served: watch.served,
            first_bytes: Duration::from_nanos(watch.first_byte_ns),
            // Without answers nothing ends a row.
            in_a_row: if both_ways { watch.unaccepted_in_a_row.max(watch.reset_in_a_row) } else { 0 },
            both_ways,
        }
    }

    /// How many connections were timed since `before`, and how long they took together.
    #[must_use]
    pub fn times(&self, by: SteerBy, before: &Self) -> (u64, Duration) {
        let (count, time, count_before, time_before) = match by {
            SteerBy::Handshake => (self.answered, self.handshakes, before.answered, before.handshakes),
            SteerBy::FirstByte => (self.served, self.first_bytes, before.served, before.first_bytes),
        };
        if self.tried < before.tried {
            return (count, time);
        }
        (count.saturating_sub(count_before), time.saturating_sub(time_before))
    }

    /// Connections that failed and that succeeded since `before`. (An entry that was made anew counts from zero.)
    #[must_use]
    pub fn since(&self, before: &Self) -> Sample {
        let anew = self.tried < before.tried;
        let new = |now: u64, then: u64| if anew { now } else { now.saturating_sub(then) };
        let unaccepted = new(self.refused, before.refused) + new(self.unanswered, before.unanswered);
        let reset = new(self.reset_early, before.reset_early);
        let good = if self.both_ways {
            new(self.answered, before.answered).saturating_sub(reset)
        } else {
            new(self.tried, before.tried).saturating_sub(unaccepted)
        };
        Sample { bad: unaccepted + reset, good }
    }
}

/// What became of some connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Those that failed.
    pub bad: u64,
    /// Those that did not.
    pub good: u64,
}

impl Sample {
    /// Both.
    #[must_use]
    pub const fn all(self) -> u64 {
        self.bad + self.good
    }

    /// The part that failed, from 0 to 1; 0 of nothing.
    #[must_use]
    pub fn failure_ratio(self) -> f64 {
        if self.all() == 0 { 0.0 } else { self.bad as f64 / self.all() as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_was_answered_and_then_reset_failed() {
        let now = Counts {
            tried: 10,
            answered: 8,
            refused: 2,
            reset_early: 3,
            both_ways: true,
            ..Counts::default()
        };
        assert_eq!(now.since(&Counts::default()), Sample { bad: 5, good: 5 });
    }

    #[test]
    fn where_replies_are_not_seen_whoever_does_not_ask_again_was_served() {
        let before = Counts { tried: 10, ..Counts::default() };
        let now = Counts { tried: 30, unanswered: 5, ..Counts::default() };
        assert_eq!(now.since(&before), Sample { bad: 5, good: 15 });
    }

    #[test]
    fn an_entry_that_was_made_anew_counts_from_zero() {
        let before = Counts { tried: 1000, answered: 1000, both_ways: true, ..Counts::default() };
        let now = Counts { tried: 4, answered: 3, refused: 1, both_ways: true, ..Counts::default() };
        assert_eq!(now.since(&before), Sample { bad: 1, good: 3 });
    }
}
