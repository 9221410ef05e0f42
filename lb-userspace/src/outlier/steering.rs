//! Least response time: backends that answer sooner than their peers get more new connections, within bounds.
//!
//! What is known of a backend is the mean time of its connections to their answer or first byte, where old ones weigh less and
//! less. Its weight is multiplied by the pool's mean over its own, between `least_percent` and `most_percent`. The mean is over
//! backends, not connections: otherwise whoever gets many would pull it to himself, and lose what made him get them.
//!
//! A backend that gets more becomes slower, and so the loop must be slow, or it swings: decisions are made once an `interval`,
//! each goes half of the way, and what is less than a tenth away is left alone. So nobody's slots move for noise.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::Steering as Rules;

/// Percent of its weight that a backend has that nobody steers.
pub const NEUTRAL: u16 = 100;

/// Connections of a backend that were timed since the last look.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Which one.
    pub address: SocketAddr,
    /// How many.
    pub count: u64,
    /// How long they took together.
    pub time: Duration,
}

/// The backends of a pool.
#[derive(Clone, Debug, Default)]
pub struct Steering {
    backends: HashMap<SocketAddr, Track>,
    /// When connections were last weighed.
    at: Duration,
    /// When it was last decided.
    decided: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Track {
    count: f64,
    seconds: f64,
    percent: u16,
}

impl Track {
    /// The mean time in seconds, if enough connections are known.
    fn mean(&self, rules: &Rules) -> Option<f64> {
        (self.count >= f64::from(rules.min_volume) && self.seconds > 0.0).then(|| self.seconds / self.count)
    }
}

impl Steering {
    /// Percent of its weight that a backend has.
    #[must_use]
    pub fn percent(&self, address: SocketAddr) -> u16 {
        self.backends.get(&address).map_or(NEUTRAL, |track| track.percent)
    }

    /// The mean time of a backend's connections, if enough are known.
    #[must_use]
    pub fn mean(&self, rules: &Rules, address: SocketAddr) -> Option<Duration> {
        self.backends.get(&address)?.mean(rules).map(Duration::from_secs_f64)
    }

    /// Takes in the connections of the pool's backends since the last look. Returns whether weights change.
    pub fn look(&mut self, rules: &Rules, now: Duration, pool: &[Timed]) -> bool {
        let passed = now.saturating_sub(self.at).as_secs_f64() / rules.half_life.as_secs_f64();
        let decay = 0.5f64.powf(passed);
        self.at = now;
        let mut before = std::mem::take(&mut self.backends);
        for timed in pool {
            let fresh = Track { count: 0.0, seconds: 0.0, percent: NEUTRAL };
            let mut track = before.remove(&timed.address).unwrap_or(fresh);
            track.count = track.count * decay + timed.count as f64;
            track.seconds = track.seconds * decay + timed.time.as_secs_f64();
            self.backends.insert(timed.address, track);
        }
        if now.saturating_sub(self.decided) < rules.interval {
            return false;
        }
        self.decided = now;
        self.decide(rules)
    }

    fn decide(&mut self, rules: &Rules) -> bool {
        let means: Vec<f64> = self.backends.values().filter_map(|track| track.mean(rules)).collect();
        let pool = means.iter().sum::<f64>() / means.len().max(1) as f64;
        let bounds = (f64::from(rules.least_percent), f64::from(rules.most_percent));
        let mut changed = false;
        for track in self.backends.values_mut() {
            // Whom nobody knows, or nobody can be compared with, is steered by nothing.
            let wanted = match track.mean(rules) {
                Some(own) if means.len() > 1 => pool / own * 100.0,
                _ => f64::from(NEUTRAL),
            };
            let wanted = wanted.clamp(bounds.0, bounds.1);
            let now = f64::from(track.percent);
            if (wanted - now).abs() * 10.0 < now {
                continue;
            }
            track.percent = (now + (wanted - now) / 2.0).round() as u16;
            changed = true;
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config;

    fn rules(keys: &str) -> Rules {
        let text = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
             [service.steering]\n{keys}\n[[service.pool]]\nname = \"a\"\nbackend = [{{ address = \"10.0.0.1\" }}]\n"
        );
        let loaded = config::parse(&text, "test").unwrap_or_else(|found| panic!("{found}"));
        loaded.config.services[0].steering.clone().expect("rules")
    }

    fn at(n: usize) -> SocketAddr {
        ([10, 0, 0, n as u8], 80).into()
    }

    /// A pool whose backends are slower the more they have to do: `idle / (1 - load)` seconds.
    struct Pool {
        rules: Rules,
        steering: Steering,
        now: Duration,
        /// Seconds that each takes when it has nothing else to do, and connections a second that it can take.
        backends: Vec<(f64, f64)>,
        changes: usize,
    }

    impl Pool {
        fn new(backends: &[(f64, f64)]) -> Self {
            let now = Duration::from_secs(1000);
            Self {
                rules: rules(""),
                steering: Steering::default(),
                now,
                backends: backends.into(),
                changes: 0,
            }
        }

        fn shares(&self) -> Vec<f64> {
            let percent: Vec<f64> =
                (0..self.backends.len()).map(|n| f64::from(self.steering.percent(at(n)))).collect();
            let sum: f64 = percent.iter().sum();
            percent.iter().map(|percent| percent / sum).collect()
        }

        fn run(&mut self, seconds: usize, per_second: f64) {
            for _ in 0..seconds {
                self.now += Duration::from_secs(1);
                let timed: Vec<Timed> = (self.backends.iter().zip(self.shares()).enumerate())
                    .map(|(n, (&(idle, room), share))| {
                        let count = per_second * share;
                        let each = idle / (1.0 - (count / room).min(0.99));
                        Timed {
                            address: at(n),
                            count: count as u64,
                            time: Duration::from_secs_f64(each * count.floor()),
                        }
                    })
                    .collect();
                self.changes += usize::from(self.steering.look(&self.rules, self.now, &timed));
            }
        }
    }

    #[test]
    fn who_answers_sooner_gets_more_and_no_more_than_the_bound() {
        let mut pool = Pool::new(&[(0.010, 1e6), (0.010, 1e6), (0.030, 1e6)]);
        pool.run(300, 300.0);
        let percent: Vec<u16> = (0..3).map(|n| pool.steering.percent(at(n))).collect();
        assert!(percent[0] == percent[1] && (150..=167).contains(&percent[0]), "{percent:?}");
        assert!((50..=61).contains(&percent[2]), "{percent:?}");
        let mut extreme = Pool::new(&[(0.001, 1e6), (1.0, 1e6)]);
        extreme.run(600, 300.0);
        assert!(extreme.steering.percent(at(0)) <= 200 && extreme.steering.percent(at(1)) >= 50);
    }

    #[test]
    fn the_loop_comes_to_rest_although_load_makes_slow() {
        // The second one can take half as much: at even shares it is at 75 % of what it can, the other at 37 %.
        let mut pool = Pool::new(&[(0.010, 400.0), (0.010, 200.0)]);
        pool.run(300, 300.0);
        let settled = pool.shares();
        assert!((0.55..0.75).contains(&settled[0]), "{settled:?}");
        pool.changes = 0;
        pool.run(600, 300.0);
        assert!(pool.changes <= 2, "{} changes in ten minutes", pool.changes);
    }

    #[test]
    fn few_connections_and_backends_alone_are_left_as_they_are() {
        let mut few = Pool::new(&[(0.010, 1e6), (0.100, 1e6)]);
        few.run(120, 1.0);
        assert_eq!(few.shares(), [0.5, 0.5]);
        let mut alone = Pool::new(&[(0.010, 1e6)]);
        alone.run(120, 1000.0);
        assert_eq!(alone.steering.percent(at(0)), NEUTRAL);
    }

    #[test]
    fn a_backend_that_recovers_gets_its_share_back() {
        let mut pool = Pool::new(&[(0.010, 1e6), (0.040, 1e6)]);
        pool.run(300, 300.0);
        assert!(pool.shares()[1] < 0.35, "{:?}", pool.shares());
        pool.backends[1].0 = 0.010;
        pool.run(600, 300.0);
        assert!((0.44..0.56).contains(&pool.shares()[1]), "{:?}", pool.shares());
    }

    proptest! {
        #[test]
        fn weights_stay_within_the_bounds(
            looks in prop::collection::vec(prop::collection::vec((0..500u64, 0..5_000_000u64), 4), 1..60),
        ) {
            let rules = rules("least_percent = 70\nmost_percent = 130");
            let mut steering = Steering::default();
            for (second, looks) in (1..).zip(looks) {
                let pool: Vec<Timed> = (looks.iter().enumerate())
                    .map(|(n, &(count, micros))| Timed { address: at(n), count, time: Duration::from_micros(micros) })
                    .collect();
                steering.look(&rules, Duration::from_secs(second * 7), &pool);
                for n in 0..4 {
                    prop_assert!((70..=130).contains(&steering.percent(at(n))));
                }
            }
        }
    }
}
