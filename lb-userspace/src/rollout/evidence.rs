//! Evidence: is the canary worse than the stable pool, and how sure is that?
//!
//! The figures are looked at again and again while they grow. A test that is made for one look (a p-value, an interval)
//! finds something sooner or later, whatever is true; here each test is a *test martingale* instead: a bet against "the
//! canary is not worse" that starts with 1 and cannot be expected to grow while that holds. By Ville's inequality (1939)
//! it ever reaches 1/α with a probability of at most α, however often and whenever anybody looks.
//!
//! **Relative.** If both pools fail equally often, the next client who fails is one of the canary's with the probability of
//! its share of clients, whatever the common ratio is: there is nothing to estimate. If the canary fails `r` times as
//! often, it is one of the canary's with another probability, and the bet wins by the ratio of the two. (Given how many
//! fail in all, the canary's part is hypergeometric, which is less than binomial in convex order (Hoeffding 1963), so that
//! the bet is at most fair.) Nobody knows `r`: the stake is divided among several.
//!
//! **Absolute.** The same with the probability itself: a client fails with at most `limit`, or with a multiple of it.
//!
//! What counts is *clients*, not connections: ten thousand connections from three addresses are three samples.

use serde::{Deserialize, Serialize};

/// What was seen of one pool in a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Clients that tried.
    pub tried: u64,
    /// Of these, clients that fared badly; at most `tried`.
    pub bad: u64,
}

impl Sample {
    /// The part that fared badly; 0 where nobody tried.
    #[must_use]
    pub fn ratio(self) -> f64 {
        if self.tried == 0 { 0.0 } else { self.bad as f64 / self.tried as f64 }
    }

    /// What that part is at most where so many were seen, in 999 of 1000 cases (Wilson 1927); everything where nobody tried.
    #[must_use]
    pub fn at_most(self) -> f64 {
        const Z: f64 = 3.090_232;
        if self.tried == 0 {
            return 1.0;
        }
        let (n, p) = (self.tried as f64, self.ratio());
        let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        ((p + Z * Z / (2.0 * n) + half) / (1.0 + Z * Z / n)).min(1.0)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { tried: self.tried + other.tried, bad: self.bad + other.bad }
    }
}

/// Multiples that the stake is divided among: from half as bad again to hopeless.
const MULTIPLES: [f64; 6] = [1.5, 2.0, 4.0, 8.0, 32.0, 128.0];

/// What a bet can become. More would say no more, and JSON has no infinity.
pub const MOST: f64 = 1e300;

/// A bet that is divided among alternatives: the logarithm of what each part has become.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Stakes([f64; MULTIPLES.len()]);

impl Stakes {
    /// What the whole stake of 1 has become.
    fn value(&self) -> f64 {
        let sum: f64 = self.0.iter().map(|log| log.exp()).sum();
        (sum / self.0.len() as f64).min(MOST)
    }
}

/// Whether the canary's clients fare worse than those of the stable pool at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Relative {
    /// How many times as often as the stable pool's clients the canary's may fare badly; at least 1.
    pub tolerance: f64,
    stakes: Stakes,
}

impl Relative {
    /// Nothing seen yet.
    #[must_use]
    pub fn new(tolerance: f64) -> Self {
        Self { tolerance: tolerance.max(1.0), stakes: Stakes::default() }
    }

    /// Takes in what was seen of both pools in the same while. Each while should be short against the steps of a rollout:
    /// the shares of clients are taken for constant in it.
    pub fn add(&mut self, canary: Sample, stable: Sample) {
        if canary.tried == 0 || stable.tried == 0 {
            return;
        }
        let (ours, theirs) = (canary.tried as f64, stable.tried as f64);
        let share = |multiple: f64| ours * multiple / (ours * multiple + theirs);
        let fair = share(self.tolerance);
        for (log, multiple) in self.stakes.0.iter_mut().zip(MULTIPLES) {
            let bet = share(self.tolerance * multiple);
            *log +=
                canary.bad as f64 * (bet / fair).ln() + stable.bad as f64 * ((1.0 - bet) / (1.0 - fair)).ln();
        }
    }

    /// What a bet of 1 on "the canary is worse" has become.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.stakes.value()
    }
}

/// Whether the canary's clients fare badly more often than they may, whatever the stable pool does.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Absolute {
    /// The part of clients that may fare badly; between 0 and 1, both excluded.
    pub limit: f64,
    stakes: Stakes,
}

impl Absolute {
    /// Nothing seen yet. A limit of 0 would be broken by the first accident; it is taken for a millionth.
    #[must_use]
    pub fn new(limit: f64) -> Self {
        Self { limit: limit.clamp(1e-6, 0.99), stakes: Stakes::default() }
    }

    /// Takes in what was seen.
    pub fn add(&mut self, canary: Sample) {
        let good = (canary.tried - canary.bad.min(canary.tried)) as f64;
        for (log, multiple) in self.stakes.0.iter_mut().zip(MULTIPLES) {
            // As far beyond the limit as there is room.
            let odds = self.limit / (1.0 - self.limit) * multiple;
            let bet = odds / (1.0 + odds);
            *log +=
                canary.bad as f64 * (bet / self.limit).ln() + good * ((1.0 - bet) / (1.0 - self.limit)).ln();
        }
    }

    /// What a bet of 1 on "beyond the limit" has become.
    #[must_use]
    pub fn value(&self) -> f64 {
        self.stakes.value()
    }
}

/// A straight line that failures must stay below: Wald's sequential probability ratio test (1945), in a form that needs two
/// counters and a multiplication, for the kernel program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Boundary {
    /// Failures at no attempt at all.
    pub start: f64,
    /// Failures more for each attempt.
    pub slope: f64,
}

impl Boundary {
    /// The line that tells a failure ratio of `good` from one of `bad`, and that is crossed with a probability of at most
    /// `alpha` while it is `good`. `None` unless 0 < good < bad < 1 and 0 < alpha < 1.
    #[must_use]
    pub fn new(good: f64, bad: f64, alpha: f64) -> Option<Self> {
        if !(0.0 < good && good < bad && bad < 1.0 && 0.0 < alpha && alpha < 1.0) {
            return None;
        }
        let win = (bad / good).ln();
        let loss = ((1.0 - good) / (1.0 - bad)).ln();
        Some(Self { start: (1.0 / alpha).ln() / (win + loss), slope: loss / (win + loss) })
    }

    /// Whether so many failures in so many attempts are too many.
    #[must_use]
    pub fn is_crossed(self, failures: u64, attempts: u64) -> bool {
        failures as f64 >= self.start + self.slope * attempts as f64
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// SplitMix64: the same numbers in every run.
    pub(in crate::rollout) struct Random(pub u64);

    impl Random {
        pub fn next(&mut self) -> f64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            (lb_common::hash::mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
        }

        pub fn sample(&mut self, tried: u64, ratio: f64) -> Sample {
            Sample { tried, bad: (0..tried).filter(|_| self.next() < ratio).count() as u64 }
        }
    }

    const ALPHA: f64 = 0.01;

    /// The part of rollouts that the test throws away, looked at after every while.
    fn thrown_away(canary: f64, stable: f64, share: f64, tolerance: f64, runs: u64) -> f64 {
        let mut random = Random(1);
        let (clients, whiles) = (400.0, 150);
        let thrown = (0..runs).filter(|_| {
            let mut test = Relative::new(tolerance);
            (0..whiles).any(|_| {
                let ours = random.sample((clients * share) as u64, canary);
                let theirs = random.sample((clients * (1.0 - share)) as u64, stable);
                test.add(ours, theirs);
                test.value() >= 1.0 / ALPHA
            })
        });
        thrown.count() as f64 / runs as f64
    }

    #[test]
    fn a_good_canary_is_thrown_away_at_most_once_in_a_hundred() {
        for ratio in [0.001, 0.01, 0.1, 0.5] {
            for share in [0.01, 0.1, 0.5] {
                let thrown = thrown_away(ratio, ratio, share, 1.0, 300);
                // Two of 300 more than expected at most: 0.01 + 3 sigma.
                assert!(thrown <= 0.027, "ratio {ratio}, share {share}: {thrown}");
            }
        }
    }

    #[test]
    fn a_canary_within_the_tolerance_is_kept() {
        let thrown = thrown_away(0.015, 0.01, 0.1, 1.5, 300);
        assert!(thrown <= 0.027, "{thrown}");
    }

    /// How many clients of the canary it takes in 99 of 100 rollouts until a bad one is found.
    fn clients_until_found(canary: f64, stable: f64, share: f64) -> u64 {
        let mut random = Random(2);
        let mut took: Vec<u64> = (0..400)
            .map(|_| {
                let mut test = Relative::new(1.0);
                let mut seen = 0;
                while test.value() < 1.0 / ALPHA {
                    let ours = random.sample(10, canary);
                    let theirs = random.sample((10.0 * (1.0 - share) / share) as u64, stable);
                    seen += ours.tried;
                    test.add(ours, theirs);
                    assert!(seen < 100_000, "never found");
                }
                seen
            })
            .collect();
        took.sort_unstable();
        took[took.len() * 99 / 100]
    }

    #[test]
    fn a_canary_that_refuses_one_in_twenty_is_found_within_the_stated_number_of_clients() {
        for (share, clients) in [(0.01, 200), (0.1, 250), (0.5, 450)] {
            let took = clients_until_found(0.05, 0.001, share);
            assert!(took <= clients, "at {share}: {took} clients, {clients} stated");
        }
    }

    #[test]
    fn without_anybody_in_the_stable_pool_there_is_nothing_to_compare_with() {
        let mut test = Relative::new(1.0);
        test.add(Sample { tried: 100, bad: 100 }, Sample::default());
        assert_eq!(test.value(), 1.0);
    }

    #[test]
    fn evidence_stays_finite_however_bad_the_canary_is() {
        let (mut relative, mut absolute) = (Relative::new(1.0), Absolute::new(0.01));
        for _ in 0..1_000 {
            relative.add(Sample { tried: 100, bad: 100 }, Sample { tried: 9_900, bad: 0 });
            absolute.add(Sample { tried: 100, bad: 100 });
        }
        assert_eq!((relative.value(), absolute.value()), (MOST, MOST));
    }

    #[test]
    fn what_a_part_is_at_most_is_wilsons_upper_end() {
        assert_eq!(Sample::default().at_most(), 1.0);
        let none = Sample { tried: 1_000, bad: 0 }.at_most();
        assert!((none - 0.009_459).abs() < 1e-6, "{none}");
        let some = Sample { tried: 1_000, bad: 100 }.at_most();
        assert!((0.1..0.14).contains(&some), "{some}");
        assert!(Sample { tried: 1, bad: 1 }.at_most() <= 1.0);
    }

    #[test]
    fn the_absolute_limit_is_kept_to_at_most_one_mistake_in_a_hundred_and_found_out_beyond() {
        let broken = |ratio: f64, runs: u64| {
            let mut random = Random(3);
            let found = (0..runs).filter(|_| {
                let mut test = Absolute::new(0.01);
                (0..200).any(|_| {
                    test.add(random.sample(20, ratio));
                    test.value() >= 1.0 / ALPHA
                })
            });
            found.count() as f64 / runs as f64
        };
        assert!(broken(0.01, 500) <= 0.025);
        assert!(broken(0.05, 100) > 0.99);
    }

    #[test]
    fn the_line_is_crossed_early_by_a_bad_canary_and_rarely_by_a_good_one() {
        let line = Boundary::new(0.01, 0.2, 0.001).expect("a line");
        assert!(line.is_crossed(3, 3), "three refusals in a row");
        assert!(!line.is_crossed(2, 2));
        let mut random = Random(4);
        let crossed = (0..2_000).filter(|_| {
            let mut failures = 0;
            (1..=1_000).any(|attempts| {
                failures += u64::from(random.next() < 0.01);
                line.is_crossed(failures, attempts)
            })
        });
        assert!(crossed.count() <= 8, "at most one in a thousand");
        assert_eq!(Boundary::new(0.2, 0.1, 0.01), None);
    }
}
