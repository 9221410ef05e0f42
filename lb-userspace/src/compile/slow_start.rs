//! Slow start: a backend that comes up, or is added while others serve, gets its share little by little.
//!
//! Its weight is multiplied by `max(floor, (time / window)^(1 / aggression))`, as Envoy does ("Slow start mode" in its
//! documentation). Weights are relative, so there is something to be slow against only where another backend of the priority
//! is warm. Those that come up while nobody is (after an outage of all, or when the agent starts with nothing known) share one
//! beginning, and with it the same factor: their shares are what they would be without slow start.
//!
//! What takes flows when the agent first sees its pool is warm: an agent that starts makes nobody slow.
//!
//! A table is not compiled anew for every packet: the factor goes up in steps, so many that a step moves about one percent of
//! the pool's slots at most, unless the window is so short, or its beginning so steep, that they would follow each other
//! faster than [`SHORTEST`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::config::SlowStart;

/// Slots that one step may move.
const STEP: f64 = 0.01;
/// Between two steps.
const SHORTEST: Duration = Duration::from_millis(100);
/// Steps in a window at least, so that nobody waits long for his share where few slots move.
const FEWEST: f64 = 10.0;
/// A factor of 1, in the weights of the table.
pub(super) const WHOLE: u32 = 1 << 16;

/// Whether a backend serves, as far as slow start cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It takes new flows.
    Serves,
    /// It does not, for a reason that leaves it as warm as it is: its weight, or a neighbour that is not resolved.
    Idle,
    /// It does not: it is down, not checked yet, or was taken out by an operator.
    Out,
}

/// A backend, as slow start sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// The backend.
    pub address: SocketAddr,
    /// Its priority, as an index of the levels.
    pub level: usize,
    /// Its whole weight.
    pub weight: u16,
    /// Whether it serves.
    pub presence: Presence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Out,
    Warming(Instant),
    Warm,
}

/// How warm the backends of a pool are.
#[derive(Clone, Debug, Default)]
pub(super) struct Warmth {
    /// `None` until the pool is seen for the first time.
    stages: Option<HashMap<SocketAddr, Stage>>,
}

/// What slow start makes of the weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Factors {
    /// For each backend, in 65536ths.
    pub factors: Vec<u32>,
    /// When one of them changes.
    pub next: Option<Instant>,
}

impl Warmth {
    /// Notes who serves at `now`, and says which part of its weight each one has. `shares` are the levels' parts of the table,
    /// from 0 to 1.
    pub fn observe(
        &mut self,
        slow: Option<&SlowStart>,
        backends: &[Seen],
        shares: &[f64],
        now: Instant,
    ) -> Factors {
        let stages = self.stages(slow, backends, shares.len(), now);
        let stage = |seen: &Seen| stages.get(&seen.address).copied().unwrap_or(Stage::Warm);
        let mut weights = vec![Weights::default(); shares.len()];
        for seen in backends.iter().filter(|seen| seen.presence == Presence::Serves) {
            let Some(level) = weights.get_mut(seen.level) else { continue };
            match stage(seen) {
                Stage::Warming(_) => level.warming += f64::from(seen.weight),
                Stage::Out | Stage::Warm => level.warm += f64::from(seen.weight),
            }
        }
        let mut all = Factors { factors: Vec::with_capacity(backends.len()), next: None };
        for seen in backends {
            let (Some(slow), Stage::Warming(since)) = (slow, stage(seen)) else {
                all.factors.push(WHOLE);
                continue;
            };
            let share = shares.get(seen.level).copied().unwrap_or(0.0);
            let weights = weights.get(seen.level).copied().unwrap_or_default();
            let (factor, next) = Ramp::new(slow, share, weights).at(now.saturating_duration_since(since));
            all.factors.push((factor * f64::from(WHOLE)).round() as u32);
            let next = since + next;
            all.next = Some(all.next.map_or(next, |earlier| earlier.min(next)));
        }
        self.stages = Some(stages);
        all
    }

    /// The stages at `now`.
    fn stages(
        &self,
        slow: Option<&SlowStart>,
        backends: &[Seen],
        levels: usize,
        now: Instant,
    ) -> HashMap<SocketAddr, Stage> {
        let before = |seen: &Seen| match &self.stages {
            Some(stages) => stages.get(&seen.address).copied().unwrap_or(Stage::Out),
            None if seen.presence == Presence::Out => Stage::Out,
            None => Stage::Warm,
        };
        // In each level: whether somebody warm serves, and else since when the first one warms up.
        let mut company: Vec<(bool, Option<Instant>)> = vec![(false, None); levels];
        for seen in backends.iter().filter(|seen| seen.presence == Presence::Serves) {
            let Some((warm, first)) = company.get_mut(seen.level) else { continue };
            match before(seen) {
                Stage::Out => {}
                Stage::Warm => *warm = true,
                Stage::Warming(since) => *first = Some(first.map_or(since, |earlier| earlier.min(since))),
            }
        }
        let is_over =
            |since: Instant| slow.is_none_or(|slow| now.saturating_duration_since(since) >= slow.window);
        let begun = |seen: &Seen| match company.get(seen.level) {
            Some((false, Some(first))) => *first,
            _ => now,
        };
        backends
            .iter()
            .map(|seen| {
                let stage = match (before(seen), seen.presence) {
                    (_, Presence::Out) => Stage::Out,
                    (Stage::Out, Presence::Serves) => Stage::Warming(begun(seen)),
                    (stage, Presence::Serves | Presence::Idle) => stage,
                };
                let stage = match stage {
                    Stage::Warming(since) if is_over(since) => Stage::Warm,
                    stage => stage,
                };
                (seen.address, stage)
            })
            .collect()
    }
}

/// The whole weights of those of a level that serve.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    warming: f64,
    warm: f64,
}

/// The steps on which a factor goes up.
#[derive(Clone, Copy, Debug)]
struct Ramp {
    window: f64,
    aggression: f64,
    floor: f64,
    steps: f64,
}

impl Ramp {
    /// For the backends that warm up in a level that has `share` of the table.
    fn new(slow: &SlowStart, share: f64, Weights { warming, warm }: Weights) -> Self {
        let window = slow.window.as_secs_f64();
        let floor = f64::from(slow.floor) / 100.0;
        // With a factor f they have f*warming / (warm + f*warming) of the level. That grows fastest at the floor.
        let least = warm + floor * warming;
        let steepest = if least > 0.0 { warming * warm / (least * least) } else { 0.0 };
        let wanted = (share * steepest * (1.0 - floor) / STEP).ceil();
        Self { window, aggression: slow.aggression.get(), floor, steps: wanted.max(FEWEST) }
    }

    /// The factor of a backend that has served for `time`, and when it has the next one, counted from the same moment.
    fn at(&self, time: Duration) -> (f64, Duration) {
        let way = (time.as_secs_f64() / self.window).min(1.0).powf(1.0 / self.aggression).max(self.floor);
        // What is reached but for a rounding error is reached.
        let step = ((way - self.floor) / (1.0 - self.floor) * self.steps + 1e-6).floor().min(self.steps);
        let factor = |step: f64| self.floor + (1.0 - self.floor) * step / self.steps;
        let next = factor((step + 1.0).min(self.steps)).powf(self.aggression) * self.window;
        (factor(step), Duration::from_secs_f64(next).max(time + SHORTEST))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{self, SlowStart};

    fn slow(window: &str, aggression: f64, floor: u32) -> SlowStart {
        let text = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
             [service.slow_start]\nwindow = \"{window}\"\naggression = {aggression}\nfloor = {floor}\n\
             [[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\n"
        );
        let config = config::parse(&text, "test").expect("a good configuration").config;
        config.services[0].slow_start.clone().expect("a slow start")
    }

    fn pool(presences: &[Presence]) -> Vec<Seen> {
        (1..)
            .zip(presences)
            .map(|(i, &presence)| Seen {
                address: ([10, 0, 0, i], 80).into(),
                level: 0,
                weight: 100,
                presence,
            })
            .collect()
    }

    use Presence::{Idle, Out, Serves};

    #[test]
    fn whoever_serves_when_the_agent_starts_is_warm() {
        let (slow, now) = (slow("30s", 1.0, 10), Instant::now());
        let mut warmth = Warmth::default();
        let seen = warmth.observe(Some(&slow), &pool(&[Serves, Serves, Idle]), &[1.0], now);
        assert_eq!(seen, Factors { factors: vec![WHOLE; 3], next: None });
        let later = warmth.observe(Some(&slow), &pool(&[Serves, Serves, Serves]), &[1.0], now);
        assert_eq!(later.factors, [WHOLE; 3], "it was only unreachable");
    }

    #[test]
    fn whoever_comes_up_beside_others_begins_at_the_floor_and_ends_whole() {
        let (slow, now) = (slow("30s", 1.0, 10), Instant::now());
        let mut warmth = Warmth::default();
        warmth.observe(Some(&slow), &pool(&[Serves, Serves, Out]), &[1.0], now);
        let all = pool(&[Serves, Serves, Serves]);
        let first = warmth.observe(Some(&slow), &all, &[1.0], now);
        assert_eq!(first.factors, [WHOLE, WHOLE, (0.1 * f64::from(WHOLE)).round() as u32]);
        let half = warmth.observe(Some(&slow), &all, &[1.0], now + Duration::from_secs(15));
        let part = f64::from(half.factors[2]) / f64::from(WHOLE);
        assert!((0.47..=0.5).contains(&part), "{part} at half of the time");
        let over = warmth.observe(Some(&slow), &all, &[1.0], now + Duration::from_secs(30));
        assert_eq!(over, Factors { factors: vec![WHOLE; 3], next: None });
        let down =
            warmth.observe(Some(&slow), &pool(&[Serves, Serves, Out]), &[1.0], now + Duration::from_secs(31));
        assert_eq!(down.next, None);
        let again = warmth.observe(Some(&slow), &all, &[1.0], now + Duration::from_secs(32));
        assert!(again.factors[2] < WHOLE / 5, "it begins anew");
    }

    #[test]
    fn a_backend_that_is_added_begins_at_the_floor() {
        let (slow, now) = (slow("30s", 1.0, 20), Instant::now());
        let mut warmth = Warmth::default();
        warmth.observe(Some(&slow), &pool(&[Serves]), &[1.0], now);
        let grown = warmth.observe(Some(&slow), &pool(&[Serves, Serves]), &[1.0], now);
        assert_eq!(grown.factors, [WHOLE, (0.2 * f64::from(WHOLE)).round() as u32]);
    }

    #[test]
    fn those_that_come_up_while_nobody_is_warm_have_the_same_factor() {
        let (slow, start) = (slow("60s", 1.0, 10), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut warmth = Warmth::default();
        warmth.observe(Some(&slow), &pool(&[Out, Out, Out]), &[1.0], at(0));
        warmth.observe(Some(&slow), &pool(&[Serves, Out, Out]), &[1.0], at(1));
        warmth.observe(Some(&slow), &pool(&[Serves, Serves, Out]), &[1.0], at(6));
        let all = warmth.observe(Some(&slow), &pool(&[Serves, Serves, Serves]), &[1.0], at(30));
        assert!(all.factors.iter().all(|&factor| factor == all.factors[0]), "{all:?}");
        let warm = warmth.observe(Some(&slow), &pool(&[Serves, Serves, Serves]), &[1.0], at(61));
        assert_eq!(warm.factors, [WHOLE; 3]);
    }

    #[test]
    fn without_slow_start_everybody_is_whole_and_stays_so_when_it_is_turned_on() {
        let now = Instant::now();
        let mut warmth = Warmth::default();
        warmth.observe(None, &pool(&[Serves, Out]), &[1.0], now);
        let up = warmth.observe(None, &pool(&[Serves, Serves]), &[1.0], now);
        assert_eq!(up, Factors { factors: vec![WHOLE; 2], next: None });
        let slow = slow("30s", 1.0, 10);
        assert_eq!(warmth.observe(Some(&slow), &pool(&[Serves, Serves]), &[1.0], now).factors, [WHOLE; 2]);
    }

    proptest! {
        #[test]
        fn a_factor_only_grows_in_steps_of_a_percent_of_the_slots(
            window in 10..600u64, aggression in 1..40u32, floor in 1..99u32,
            warming in 1..20u32, warm in 0..20u32,
        ) {
            let slow = slow(&format!("{window}s"), f64::from(aggression) / 10.0 + 0.1, floor);
            let (warming, warm) = (f64::from(warming), f64::from(warm));
            let ramp = Ramp::new(&slow, 1.0, Weights { warming, warm });
            let share = |factor: f64| factor * warming / (warm + factor * warming);
            let (mut time, mut steps) = (Duration::ZERO, 0);
            let (mut factor, mut next) = ramp.at(time);
            prop_assert!((factor - f64::from(floor) / 100.0).abs() < 1e-9);
            while next < slow.window {
                let hurried = next == time + SHORTEST;
                time = next;
                let (then, after) = ramp.at(time);
                prop_assert!(then >= factor && after >= time + SHORTEST);
                prop_assert!(hurried || share(then) - share(factor) <= STEP + 1e-9, "{} -> {}", factor, then);
                (factor, next) = (then, after);
                steps += 1;
                prop_assert!(steps <= 10_000);
            }
            prop_assert!((ramp.at(slow.window).0 - 1.0).abs() < 1e-9);
        }
    }
}
