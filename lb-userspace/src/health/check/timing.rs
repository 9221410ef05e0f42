//! How often, how long, how many times.

use std::{fmt, num::NonZeroU32, time::Duration};

use crate::health::judge::{Health, Judge, Thresholds};

/// No target is checked more often than this.
pub const MIN_INTERVAL: Duration = Duration::from_millis(10);

/// How often, how long, how many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    interval: Duration,
    fast: Duration,
    down: Duration,
    timeout: Duration,
    thresholds: Thresholds,
}

impl Timing {
    /// `interval` from the start of one check to the start of the next, `timeout` for all of one check; results in a
    /// row that bring a target up (`healthy`) and take it down (`unhealthy`).
    ///
    /// # Errors
    /// An interval below [`MIN_INTERVAL`]; a timeout of zero or above the interval (checks of a target do not
    /// overlap, so that it would silently be the interval); a threshold of zero.
    pub fn new(
        interval: Duration,
        timeout: Duration,
        healthy: u32,
        unhealthy: u32,
    ) -> Result<Self, TimingError> {
        if interval < MIN_INTERVAL {
            return Err(TimingError::IntervalTooShort);
        }
        if timeout.is_zero() {
            return Err(TimingError::ZeroTimeout);
        }
        if timeout > interval {
            return Err(TimingError::TimeoutAboveInterval);
        }
        let threshold = |n| NonZeroU32::new(n).ok_or(TimingError::ZeroThreshold);
        let thresholds = Thresholds { healthy: threshold(healthy)?, unhealthy: threshold(unhealthy)? };
        Ok(Self { interval, fast: interval, down: interval, timeout, thresholds })
    }

    /// With another interval while the last results contradict the state but do not suffice to change it (`fast`), and
    /// another one while a target is down (`down`).
    ///
    /// # Errors
    /// An interval below [`MIN_INTERVAL`] or below the timeout; a `fast` above the interval.
    pub fn with_intervals(self, fast: Option<Duration>, down: Option<Duration>) -> Result<Self, TimingError> {
        let timing =
            Self { fast: fast.unwrap_or(self.interval), down: down.unwrap_or(self.interval), ..self };
        if timing.shortest() < MIN_INTERVAL {
            return Err(TimingError::IntervalTooShort);
        }
        if timing.timeout > timing.shortest() {
            return Err(TimingError::TimeoutAboveInterval);
        }
        if timing.fast > timing.interval {
            return Err(TimingError::FastAboveInterval);
        }
        Ok(timing)
    }

    /// From the start of one check to the start of the next, at most, while a target is up and passes.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// The same for a target in the state that `judge` has come to.
    pub(in crate::health) fn interval_after(&self, judge: &Judge) -> Duration {
        match judge.state() {
            _ if judge.is_pending() => self.fast,
            Health::Down => self.down,
            Health::Up | Health::Unknown => self.interval,
        }
    }

    /// The shortest of its intervals.
    pub(in crate::health) fn shortest(&self) -> Duration {
        self.interval.min(self.fast).min(self.down)
    }

    /// Results in a row that turn a target over.
    pub const fn thresholds(&self) -> Thresholds {
        self.thresholds
    }

    /// How long one check may take. A timeout as long as the shortest interval is cut by a sixteenth, so that the next
    /// check starts on time.
    pub fn timeout(&self) -> Duration {
        let shortest = self.shortest();
        self.timeout.min(shortest - shortest / 16)
    }

    /// No later than this after a target stopped answering it is reported down: `interval` until the first check that
    /// fails starts, the fast interval between that one and the others, and the timeout of the last.
    pub fn detection_bound(&self) -> Duration {
        let others = self.fast.saturating_mul(self.thresholds.unhealthy.get() - 1);
        self.interval.saturating_add(others).saturating_add(self.timeout)
    }
}

/// Why a [`Timing`] cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimingError {
    /// See [`MIN_INTERVAL`].
    IntervalTooShort,
    /// Nothing answers in no time.
    ZeroTimeout,
    /// Checks of one target do not overlap.
    TimeoutAboveInterval,
    /// What is pending is to be known sooner, not later.
    FastAboveInterval,
    /// No result at all cannot decide.
    ZeroThreshold,
}

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IntervalTooShort => "the interval is shorter than 10 ms",
            Self::ZeroTimeout => "the timeout is zero",
            Self::TimeoutAboveInterval => "the timeout is longer than an interval",
            Self::FastAboveInterval => "the fast interval is longer than the interval",
            Self::ZeroThreshold => "a threshold is zero; it counts results in a row, so 1 or more",
        })
    }
}

impl std::error::Error for TimingError {}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_timing_that_cannot_be_kept_is_refused() {
        let refused = |interval, timeout, healthy, unhealthy| {
            Timing::new(interval, timeout, healthy, unhealthy).expect_err("it cannot be kept")
        };
        let short = MIN_INTERVAL - Duration::from_nanos(1);
        assert_eq!(refused(short, short, 1, 1), TimingError::IntervalTooShort);
        assert_eq!(refused(SECOND, Duration::ZERO, 1, 1), TimingError::ZeroTimeout);
        assert_eq!(refused(SECOND, 2 * SECOND, 1, 1), TimingError::TimeoutAboveInterval);
        assert_eq!(refused(SECOND, SECOND, 0, 1), TimingError::ZeroThreshold);
        assert_eq!(refused(SECOND, SECOND, 1, 0), TimingError::ZeroThreshold);
    }

    #[test]
    fn a_check_ends_before_the_next_one_starts() {
        let timing = Timing::new(SECOND, SECOND, 1, 3).expect("a timeout may be the interval");
        assert!(timing.timeout() < timing.interval());
        assert_eq!(timing.detection_bound(), 4 * SECOND);
    }

    #[test]
    fn other_intervals_can_be_kept_too() {
        let timing = Timing::new(4 * SECOND, SECOND, 2, 3).expect("it can be kept");
        let with = |fast, down| timing.with_intervals(fast, down);
        assert_eq!(with(Some(SECOND / 2), None), Err(TimingError::TimeoutAboveInterval));
        assert_eq!(with(None, Some(SECOND / 2)), Err(TimingError::TimeoutAboveInterval));
        assert_eq!(with(Some(MIN_INTERVAL / 2), None), Err(TimingError::IntervalTooShort));
        assert_eq!(with(Some(5 * SECOND), None), Err(TimingError::FastAboveInterval));

        let timing = with(Some(SECOND), Some(60 * SECOND)).expect("down may be as long as one likes");
        assert!(timing.timeout() < SECOND);
        assert_eq!(timing.detection_bound(), (4 + 2 + 1) * SECOND);
    }
}
