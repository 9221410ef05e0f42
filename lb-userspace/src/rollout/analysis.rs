//! Analysis: from what the kernel counted to a verdict.

use lb_common::measure::{BUCKETS, Outcome, PoolMeasure};

use super::engine::Verdict;
use super::evidence::{Absolute, MOST, Relative, Sample};
use super::plan;

/// What was counted of one pool since the step began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Clients that tried, and those of them that were refused, left waiting, or reset before they got a byte.
    pub clients: Sample,
    /// First bytes by how long their client waited: one for each client.
    pub waits: [u64; BUCKETS],
}

impl Default for Count {
    fn default() -> Self {
        Self { clients: Sample::default(), waits: [0; BUCKETS] }
    }
}

impl Count {
    /// From the kernel's counters, or what is left of them: histogram and clients, not the sets.
    #[must_use]
    pub fn of(outcomes: &[u64; Outcome::COUNT], first_byte: &[u64; BUCKETS]) -> Self {
        let tried = outcomes[Outcome::ClientTried as usize];
        // Counters are read one after the other, while they run.
        let bad = outcomes[Outcome::ClientBad as usize].min(tried);
        Self { clients: Sample { tried, bad }, waits: *first_byte }
    }

    /// From an element of `MEASURES`.
    #[must_use]
    pub fn of_pool(pool: &PoolMeasure) -> Self {
        Self::of(&pool.outcomes, &pool.first_byte)
    }

    fn waiting(&self) -> u64 {
        self.waits.iter().sum()
    }

    fn waiting_from(&self, bucket: usize) -> u64 {
        self.waits.iter().skip(bucket).sum()
    }
}

/// A figure, and what it says.
#[derive(Clone, Debug, PartialEq)]
pub struct Metric {
    /// Which, in words.
    pub name: &'static str,
    /// Of the canary's clients.
    pub canary: Sample,
    /// Of the stable pool's.
    pub stable: Sample,
    /// What a bet of 1 on "the canary is worse" has become.
    pub evidence: f64,
}

/// The memory of an analysis.
#[derive(Clone, Debug)]
pub struct Watch {
    plan: plan::Analysis,
    failing: Relative,
    slow: Relative,
    /// By the tests of earlier steps; the one of this step is made from its counts.
    beyond_before: f64,
    /// Likewise.
    alone_before: f64,
    /// The canary has everybody: there is nobody to compare with at the same time.
    alone: bool,
    /// Clients of the stable pool in the steps before.
    past: Sample,
    /// The counts at the last look.
    canary: Count,
    stable: Count,
    /// From which bucket on a wait is a long one: what was the stable pool's slowest twentieth at the last look.
    long: Option<usize>,
    slow_canary: Sample,
    slow_stable: Sample,
}

/// Evidence that is worth waiting for more, as a multiple of the stake.
pub const SUSPICIOUS: f64 = 10.0;
/// Waits of the stable pool that must be known before any is called long.
const ENOUGH_WAITS: u64 = 50;

impl Watch {
    /// Of a rollout that begins.
    #[must_use]
    pub fn new(plan: &plan::Analysis) -> Self {
        Self {
            plan: plan.clone(),
            failing: Relative::new(plan.tolerance),
            slow: Relative::new(plan.tolerance),
            beyond_before: 1.0,
            alone_before: 1.0,
            alone: false,
            past: Sample::default(),
            canary: Count::default(),
            stable: Count::default(),
            long: None,
            slow_canary: Sample::default(),
            slow_stable: Sample::default(),
        }
    }

    /// Another step begins, and the counters with it; the canary may be `alone` in it. The bets go on: the promise is one for
    /// the whole rollout.
    pub fn next_step(&mut self, alone: bool) {
        self.beyond_before = self.beyond().unwrap_or(1.0);
        self.alone_before = self.alone();
        self.past = self.past.plus(self.stable.clients);
        self.alone = alone;
        (self.canary, self.stable) = Default::default();
        (self.slow_canary, self.slow_stable) = Default::default();
        self.long = None;
    }

    /// Takes in what was counted since the step began.
    pub fn look(&mut self, canary: Count, stable: Count) {
        let fresh = |now: Count, before: Count| Sample {
            tried: now.clients.tried,
            bad: now.clients.bad.saturating_sub(before.clients.bad),
        };
        if !self.alone {
            self.failing.add(fresh(canary, self.canary), fresh(stable, self.stable));
        }
        if let Some(long) = self.long {
            let waits = |now: &Count, before: &Count| Sample {
                tried: now.waiting().saturating_sub(before.waiting()),
                bad: now.waiting_from(long).saturating_sub(before.waiting_from(long)),
            };
            let (ours, theirs) = (waits(&canary, &self.canary), waits(&stable, &self.stable));
            self.slow.add(ours, theirs);
            (self.slow_canary, self.slow_stable) =
                (self.slow_canary.plus(ours), self.slow_stable.plus(theirs));
        }
        // What is long must be known before it is looked for.
        self.long = slowest_twentieth(&stable);
        (self.canary, self.stable) = (canary, stable);
    }

    fn beyond(&self) -> Option<f64> {
        let limit = self.plan.max_failure_ratio?;
        let mut test = Absolute::new(limit);
        test.add(self.canary.clients);
        Some((self.beyond_before * test.value()).min(MOST))
    }

    /// Alone, the canary is compared with what the stable pool's clients met before, with room for chance.
    fn alone(&self) -> f64 {
        if !self.alone || self.past.tried == 0 {
            return self.alone_before;
        }
        let mut test = Absolute::new(self.failing.tolerance * self.past.at_most());
        test.add(self.canary.clients);
        (self.alone_before * test.value()).min(MOST)
    }

    /// How much evidence it takes. The chance of a mistake is divided among the tests.
    #[must_use]
    pub fn limit(&self) -> f64 {
        let tests = if self.plan.max_failure_ratio.is_some() { 3.0 } else { 2.0 };
        tests / self.plan.alpha
    }

    /// What was seen.
    #[must_use]
    pub fn metrics(&self) -> Vec<Metric> {
        let canary = self.canary.clients;
        let stable = if self.alone { self.past } else { self.stable.clients };
        // One bet: it is made with the one test until the canary is alone, and then with the other.
        let failing = (self.failing.value() * self.alone()).min(MOST);
        let mut metrics = vec![
            Metric { name: "clients that fared badly", canary, stable, evidence: failing },
            Metric {
                name: "clients that waited long",
                canary: self.slow_canary,
                stable: self.slow_stable,
                evidence: self.slow.value(),
            },
        ];
        if let Some(evidence) = self.beyond() {
            metrics.push(Metric { name: "clients beyond the limit", canary, stable, evidence });
        }
        metrics
    }

    /// What is to be thought of it.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let limit = self.limit();
        let metrics = self.metrics();
        let Some(worst) = metrics.iter().max_by(|a, b| a.evidence.total_cmp(&b.evidence)) else {
            return self.no_data("nothing is measured".to_owned());
        };
        let in_words = |metric: &Metric| {
            format!(
                "{}: {:.2} % of {} in the canary, {:.2} % of {} in the stable pool",
                metric.name,
                100.0 * metric.canary.ratio(),
                metric.canary.tried,
                100.0 * metric.stable.ratio(),
                metric.stable.tried
            )
        };
        if worst.evidence >= limit {
            return Verdict::Worse(in_words(worst));
        }
        let seen = self.canary.clients.tried;
        if seen < self.plan.min_clients {
            return self.no_data(format!("{seen} of {} clients in the canary", self.plan.min_clients));
        }
        if worst.evidence >= SUSPICIOUS {
            return Verdict::Unsure(in_words(worst));
        }
        if self.alone && self.past.tried < self.plan.min_clients && self.plan.max_failure_ratio.is_none() {
            return self.no_data(format!(
                "{} of {} clients of the stable pool to compare with",
                self.past.tried, self.plan.min_clients
            ));
        }
        Verdict::Fine
    }

    const fn no_data(&self, why: String) -> Verdict {
        Verdict::NoData { why, then: self.plan.on_no_data }
    }
}

/// The first bucket of the slowest twentieth, with room for the clock: never shorter than twice the median.
fn slowest_twentieth(count: &Count) -> Option<usize> {
    let all = count.waiting();
    if all < ENOUGH_WAITS {
        return None;
    }
    let bucket_of = |rank: u64| {
        let mut sum = 0;
        count.waits.iter().position(|&waits| {
            sum += waits;
            sum > rank
        })
    };
    // Two buckets are a factor of two.
    Some((bucket_of(all * 19 / 20)? + 1).max(bucket_of(all / 2)? + 2))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::rollout::evidence::tests::Random;
    use crate::rollout::plan::{Analysis, OnNoData};

    fn plan() -> Analysis {
        Analysis {
            enforce: true,
            min_clients: 100,
            tolerance: 1.5,
            max_failure_ratio: None,
            alpha: 0.01,
            patience: Duration::ZERO,
            on_no_data: OnNoData::Hold,
        }
    }

    fn count(tried: u64, bad: u64, waits: &[(usize, u64)]) -> Count {
        let mut count = Count { clients: Sample { tried, bad }, ..Count::default() };
        waits.iter().for_each(|&(bucket, n)| count.waits[bucket] = n);
        count
    }

    #[test]
    fn too_few_clients_are_no_data_and_enough_good_ones_are_fine() {
        let mut watch = Watch::new(&plan());
        watch.look(count(99, 0, &[]), count(1_000, 1, &[]));
        assert_eq!(
            watch.verdict(),
            Verdict::NoData { why: "99 of 100 clients in the canary".into(), then: OnNoData::Hold }
        );
        watch.look(count(100, 0, &[]), count(1_010, 1, &[]));
        assert_eq!(watch.verdict(), Verdict::Fine);
    }

    #[test]
    fn a_canary_that_refuses_its_clients_is_worse_long_before_enough_were_seen() {
        let mut watch = Watch::new(&plan());
        watch.look(count(10, 3, &[]), count(990, 0, &[]));
        let Verdict::Worse(why) = watch.verdict() else { panic!("{:?}", watch.verdict()) };
        assert_eq!(
            why,
            "clients that fared badly: 30.00 % of 10 in the canary, 0.00 % of 990 in the stable pool"
        );
    }

    #[test]
    fn a_failure_that_stays_is_counted_once() {
        let mut watch = Watch::new(&plan());
        for _ in 0..1_000 {
            watch.look(count(200, 1, &[]), count(1_800, 0, &[]));
        }
        assert_eq!(watch.verdict(), Verdict::Fine);
    }

    #[test]
    fn both_failing_alike_is_nobodys_fault() {
        let mut watch = Watch::new(&plan());
        for round in 1..=100 {
            watch.look(count(10 * round, 2 * round, &[]), count(90 * round, 18 * round, &[]));
        }
        assert_eq!(watch.verdict(), Verdict::Fine);
    }

    #[test]
    fn a_slow_canary_is_worse() {
        let mut watch = Watch::new(&plan());
        for round in 1..=20 {
            // Bucket 20 is about a millisecond, 32 about 67.
            watch.look(
                count(10 * round, 0, &[(32, 10 * round)]),
                count(90 * round, 0, &[(20, 80 * round), (21, 10 * round)]),
            );
        }
        let Verdict::Worse(why) = watch.verdict() else { panic!("{:?}", watch.verdict()) };
        assert!(why.starts_with("clients that waited long: 100.00 %"), "{why}");
    }

    #[test]
    fn a_canary_as_slow_as_the_others_is_fine() {
        let mut watch = Watch::new(&plan());
        for round in 1..=50 {
            let waits = |n: u64| [(20, 8 * n * round), (22, n * round), (26, n * round)];
            watch.look(count(10 * round, 0, &waits(1)), count(90 * round, 0, &waits(9)));
        }
        assert_eq!(watch.verdict(), Verdict::Fine);
    }

    #[test]
    fn the_limit_holds_where_there_is_nobody_to_compare_with() {
        let plan = Analysis { max_failure_ratio: Some(0.02), ..plan() };
        let mut watch = Watch::new(&plan);
        watch.look(count(100, 20, &[]), count(0, 0, &[]));
        let Verdict::Worse(why) = watch.verdict() else { panic!("{:?}", watch.verdict()) };
        assert!(why.starts_with("clients beyond the limit: 20.00 %"), "{why}");
        let mut watch = Watch::new(&plan);
        watch.look(count(300, 6, &[]), count(0, 0, &[]));
        assert_eq!(watch.verdict(), Verdict::Fine);
    }

    #[test]
    fn a_step_begins_with_new_counts_and_the_old_bets() {
        let mut watch = Watch::new(&plan());
        watch.look(count(200, 2, &[]), count(1_800, 0, &[]));
        let before = watch.metrics()[0].evidence;
        assert!(before > 1.0);
        watch.next_step(false);
        watch.look(count(0, 0, &[]), count(0, 0, &[]));
        assert_eq!(watch.metrics()[0].evidence, before);
        assert!(matches!(watch.verdict(), Verdict::NoData { .. }));
    }

    #[test]
    fn alone_the_canary_is_compared_with_what_was_before() {
        // Blue/green: until it has everybody, nobody is in it.
        let switched = |bad: u64| {
            let mut watch = Watch::new(&plan());
            watch.look(count(0, 0, &[]), count(1_000, 2, &[]));
            watch.next_step(true);
            for round in 1..=10 {
                // A straggler or two are nobody to compare with.
                watch.look(count(50 * round, bad * round, &[]), count(2, 0, &[]));
            }
            watch.verdict()
        };
        assert_eq!(switched(0), Verdict::Fine);
        let Verdict::Worse(why) = switched(5) else { panic!("{:?}", switched(5)) };
        assert_eq!(
            why,
            "clients that fared badly: 10.00 % of 500 in the canary, 0.20 % of 1000 in the stable pool"
        );
    }

    #[test]
    fn alone_and_without_a_past_there_is_nobody_to_compare_with() {
        let alone = |plan: &Analysis| {
            let mut watch = Watch::new(plan);
            watch.next_step(true);
            watch.look(count(200, 2, &[]), count(0, 0, &[]));
            watch.verdict()
        };
        assert!(matches!(alone(&plan()), Verdict::NoData { .. }), "{:?}", alone(&plan()));
        assert_eq!(alone(&Analysis { max_failure_ratio: Some(0.05), ..plan() }), Verdict::Fine);
    }

    #[test]
    fn what_a_canary_did_alone_is_not_forgotten_by_the_next_step() {
        let mut watch = Watch::new(&plan());
        watch.look(count(0, 0, &[]), count(1_000, 2, &[]));
        watch.next_step(true);
        watch.look(count(100, 8, &[]), count(0, 0, &[]));
        let before = watch.metrics()[0].evidence;
        assert!(before > 1.0, "{before}");
        watch.next_step(true);
        assert!((watch.metrics()[0].evidence - before).abs() < 1e-9);
    }

    /// The part of rollouts in which a canary with the stable pool's figures is thrown away: all tests together, from 1 % to 100 %.
    fn thrown_away(plan: &Analysis, bad: f64, runs: u64) -> f64 {
        const LOOKS: u64 = 20;
        const CLIENTS: u64 = 100;
        let mut random = Random(5);
        // One of twenty waits for long.
        let more = |random: &mut Random, count: &mut Count, clients: u64| {
            let fresh = random.sample(clients, bad);
            count.clients = count.clients.plus(fresh);
            let long = random.sample(clients, 0.05).bad;
            (count.waits[20], count.waits[30]) = (count.waits[20] + clients - long, count.waits[30] + long);
        };
        let is_thrown = |random: &mut Random| {
            let mut watch = Watch::new(plan);
            [1u64, 10, 50, 100].into_iter().any(|share| {
                watch.next_step(share == 100);
                let (mut canary, mut stable) = (Count::default(), Count::default());
                (0..LOOKS).any(|_| {
                    more(random, &mut canary, CLIENTS * share / 100);
                    more(random, &mut stable, CLIENTS * (100 - share) / 100);
                    watch.look(canary, stable);
                    matches!(watch.verdict(), Verdict::Worse(_))
                })
            })
        };
        (0..runs).filter(|_| is_thrown(&mut random)).count() as f64 / runs as f64
    }

    #[test]
    fn a_whole_rollout_throws_a_good_canary_away_at_most_once_in_a_hundred() {
        // What is no worse than it may be is a good one; 1.0 leaves no room.
        let strict = Analysis { tolerance: 1.0, ..plan() };
        for bad in [0.002, 0.02, 0.2] {
            let limited = Analysis { max_failure_ratio: Some(bad), ..strict.clone() };
            for plan in [&strict, &limited] {
                let thrown = thrown_away(plan, bad, 500);
                // The promise, and three standard deviations of 500 rollouts.
                assert!(thrown <= 0.01 + 0.013_4, "ratio {bad}: {thrown}");
            }
        }
    }
}
