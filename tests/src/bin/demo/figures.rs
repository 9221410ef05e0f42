//! Shares with their error bars, and figures in words.

use std::{fmt, time::Duration};

/// How many of how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Those that count.
    pub part: u64,
    /// All.
    pub whole: u64,
}

impl Share {
    /// In percent; nothing of nothing is nothing.
    #[must_use]
    pub fn percent(self) -> f64 {
        100.0 * self.fraction()
    }

    /// Where the true share lies in 95 of 100 cases, in percent (Wilson 1927, the score interval of
    /// a binomial proportion).
    #[must_use]
    pub fn interval(self) -> Interval {
        const Z: f64 = 1.959_964;
        if self.whole == 0 {
            return Interval { low: 0.0, high: 100.0 };
        }
        let (n, p) = (self.whole as f64, self.fraction());
        let scale = 1.0 + Z * Z / n;
        let middle = (p + Z * Z / (2.0 * n)) / scale;
        let half = Z / scale * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        Interval { low: 100.0 * (middle - half).max(0.0), high: 100.0 * (middle + half).min(1.0) }
    }

    /// How far from a wanted share, in standard deviations of the binomial distribution.
    #[must_use]
    pub fn sigmas_from(self, wanted_percent: f64) -> f64 {
        let p = wanted_percent / 100.0;
        let sigma = (p * (1.0 - p) / self.whole.max(1) as f64).sqrt();
        (self.fraction() - p).abs() / sigma.max(f64::MIN_POSITIVE)
    }

    fn fraction(self) -> f64 {
        self.part as f64 / self.whole.max(1) as f64
    }
}

/// `3 of 12 034`
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", count(self.part), count(self.whole))
    }
}

/// In percent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a share in percent lies in it.
    #[must_use]
    pub fn holds(self, percent: f64) -> bool {
        (self.low..=self.high).contains(&percent)
    }

    /// The length of the error bar to one side.
    #[must_use]
    pub fn half(self) -> f64 {
        (self.high - self.low) / 2.0
    }
}

/// `12 034`, as in running text.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// `1 request`, `2 requests`.
#[must_use]
pub fn counted(n: u64, what: &str) -> String {
    let plural = if n == 1 { "" } else { "s" };
    format!("{} {what}{plural}", count(n))
}

/// A time with three digits that count: `840 ns`, `41.3 us`, `5.21 ms`, `1.50 s`.
#[derive(Clone, Copy, Debug)]
pub struct Short(pub Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = self.0.as_nanos();
        let (value, unit) = match ns {
            0..1_000 => return write!(f, "{ns} ns"),
            1_000..1_000_000 => (ns as f64 / 1e3, "us"),
            1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
            _ => (ns as f64 / 1e9, "s"),
        };
        let places = match value {
            0.0..10.0 => 2,
            10.0..100.0 => 1,
            _ => 0,
        };
        write!(f, "{value:.places$} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_wilsons() {
        // Agresti and Coull 1998 have 0 of 10 as 0 to 0.278, and 1 of 10 as 0.018 to 0.404.
        let of_ten = |part| Share { part, whole: 10 }.interval();
        let near = |a: f64, b: f64| assert!((a - b).abs() < 0.06, "{a} and {b}");
        near(of_ten(0).low, 0.0);
        near(of_ten(0).high, 27.8);
        near(of_ten(1).low, 1.8);
        near(of_ten(1).high, 40.4);
        assert!(of_ten(1).holds(10.0) && !of_ten(1).holds(41.0));
        assert_eq!(Share { part: 0, whole: 0 }.interval(), Interval { low: 0.0, high: 100.0 });
    }

    #[test]
    fn distance_is_counted_in_standard_deviations() {
        // 100 of 10 000 at 1 %: a deviation is 9.95 clients.
        let share = Share { part: 130, whole: 10_000 };
        assert!((share.sigmas_from(1.0) - 3.015).abs() < 0.001);
        assert!(Share { part: 1, whole: 10 }.sigmas_from(0.0) > 1e9, "none was allowed");
        assert_eq!(Share { part: 0, whole: 10 }.sigmas_from(0.0), 0.0);
    }

    #[test]
    fn figures_are_short() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1 000", "1 234 567"]);
        assert_eq!([1, 2].map(|n| counted(n, "request")), ["1 request", "2 requests"]);
        let times = [840, 41_300, 5_210_000, 123_000_000, 1_500_000_000];
        let shown = times.map(|ns| Short(Duration::from_nanos(ns)).to_string());
        assert_eq!(shown, ["840 ns", "41.3 us", "5.21 ms", "123 ms", "1.50 s"]);
    }
}
