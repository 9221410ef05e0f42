//! Circuit breakers: a failure ratio that decays, two marks, and a way back.
//!
//! ```text
//!            ratio > low              ratio >= high
//!   closed ---------------> shedding ---------------> open
//!      ^  <---------------     |  ^                    |  `open` is over
//!      |      ratio <= low     |  |                    v
//!      +-----------------------+--+---------------- half open
//!             `trials` connections succeed            |  one fails: open again
//! ```
//!
//! While it sheds, a backend keeps `(high - ratio) / (high - low)` of its new connections, in eighths, so that the table is
//! not compiled anew for every connection. Half open it keeps an eighth of its slots, and the kernel program lets as many through there
//! as are still to be tried, and not one more ([`Breaker::trials`]).

use std::time::Duration;

use super::counts::Sample;
use crate::config;

/// What a breaker lets through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Gate {
    /// Everything.
    #[default]
    Closed,
    /// So many eighths, 1 to 7.
    Shedding(u8),
    /// Nothing, until then (monotonic time).
    Open(Duration),
    /// Trials: so many have ended well.
    HalfOpen(u64),
}

impl Gate {
    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Shedding(_) => "shedding",
            Self::Open(_) => "open",
            Self::HalfOpen(_) => "half_open",
        }
    }

    /// Which part of its new connections are let through, in eighths; `None`: all of them.
    #[must_use]
    pub const fn eighths(self) -> Option<u8> {
        match self {
            Self::Closed => None,
            Self::Shedding(eighths) => Some(eighths),
            Self::Open(_) => Some(0),
            Self::HalfOpen(_) => Some(1),
        }
    }
}

/// A breaker's state has changed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// From.
    pub from: Gate,
    /// To.
    pub to: Gate,
    /// The failure ratio that it looked at.
    pub ratio: f64,
}

/// A breaker of one backend, or of one pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Breaker {
    gate: Gate,
    /// Connections, the older the less they weigh.
    bad: f64,
    good: f64,
    /// When they were weighed last.
    at: Duration,
    /// When connections were last let through on trial, since it is half open.
    tried: Option<Duration>,
}

impl Breaker {
    /// What it lets through.
    #[must_use]
    pub const fn gate(&self) -> Gate {
        self.gate
    }

    /// The part of the connections that failed, from 0 to 1; `None` while too few are known.
    #[must_use]
    pub fn ratio(&self, rules: &config::Breaker) -> Option<f64> {
        let all = self.bad + self.good;
        (all >= f64::from(rules.min_volume)).then(|| self.bad / all)
    }

    /// How many connections are to be let through on trial from now on, if a round of trials begins now: the first one when it is half
    /// open, and another one when nothing was heard of some of the last one's for as long as it would be open.
    pub fn trials(&mut self, rules: &config::Breaker, now: Duration) -> Option<u32> {
        let Gate::HalfOpen(good) = self.gate else {
            self.tried = None;
            return None;
        };
        if self.tried.is_some_and(|tried| now < tried + rules.open) {
            return None;
        }
        self.tried = Some(now);
        Some(u64::from(rules.trials).saturating_sub(good) as u32)
    }

    /// Takes in what became of connections since the last look.
    pub fn look(&mut self, rules: &config::Breaker, now: Duration, sample: Sample) -> Option<Move> {
        let from = self.gate;
        let passed = now.saturating_sub(self.at).as_secs_f64() / rules.half_life.as_secs_f64();
        let decay = 0.5f64.powf(passed);
        self.at = now;
        // What was under way when it opened says nothing new; what is under way when trials begin is taken for one of them.
        if !matches!(from, Gate::Open(_)) {
            self.bad = self.bad * decay + sample.bad as f64;
            self.good = self.good * decay + sample.good as f64;
        }
        let ratio = self.ratio(rules).unwrap_or(0.0);
        self.gate = match from {
            Gate::Open(until) if now < until => from,
            Gate::Open(_) => Gate::HalfOpen(0),
            Gate::HalfOpen(_) if sample.bad > 0 => Gate::Open(now + rules.open),
            Gate::HalfOpen(good) if good + sample.good >= rules.trials.into() => Gate::Closed,
            Gate::HalfOpen(good) => Gate::HalfOpen(good + sample.good),
            Gate::Closed | Gate::Shedding(_) => weigh(rules, now, from, ratio),
        };
        let moved = std::mem::discriminant(&from) != std::mem::discriminant(&self.gate);
        if moved && matches!(from, Gate::Open(_) | Gate::HalfOpen(_)) {
            (self.bad, self.good) = (0.0, 0.0);
        }
        (from != self.gate).then_some(Move { from, to: self.gate, ratio })
    }
}

fn weigh(rules: &config::Breaker, now: Duration, from: Gate, ratio: f64) -> Gate {
    let percent = |percent: config::Percent| f64::from(percent.get()) / 100.0;
    let (high, low) = (percent(rules.high), percent(rules.low));
    if ratio >= high {
        return Gate::Open(now + rules.open);
    }
    if ratio <= low {
        return Gate::Closed;
    }
    let kept = (high - ratio) / (high - low) * 8.0;
    let current = match from {
        Gate::Shedding(eighths) => f64::from(eighths),
        _ => 8.0,
    };
    // A whole eighth away, or it stays: a ratio that trembles moves no slots.
    if (kept - current).abs() < 1.0 {
        return from;
    }
    Gate::Shedding(kept.round().clamp(1.0, 7.0) as u8)
}

#[cfg(test)]
mod tests;
