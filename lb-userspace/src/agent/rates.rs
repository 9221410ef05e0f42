//! What goes through each backend in a second.
//!
//! Flows of settled slots are in no table, so that nobody can count those that live. What begins and what moves can be counted:
//! a backend that drains is idle when no packet goes there any more.

use std::collections::HashMap;
use std::time::Instant;

use lb_common::abi::Traffic;

use crate::api::Rate;

/// Rates between the last two sweeps.
#[derive(Default)]
pub(super) struct Rates {
    at: Option<Instant>,
    /// By backend id: what has gone through it since it has that id, and how fast it went lately.
    backends: HashMap<u16, (Traffic, Rate)>,
}

impl Rates {
    /// Notes the counters as they are at `now`.
    pub fn observe(&mut self, now: Instant, counters: impl IntoIterator<Item = (u16, Traffic)>) {
        let seconds = self.at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let mut before = std::mem::take(&mut self.backends);
        for (id, traffic) in counters {
            let rate = match (before.remove(&id), seconds) {
                (Some((then, _)), Some(seconds)) if seconds > 0.0 => {
                    // Counters begin anew where an id gets another owner.
                    let rate = |now: u64, then: u64| now.saturating_sub(then) as f64 / seconds;
                    Rate {
                        connections_per_second: rate(traffic.connections, then.connections),
                        packets_per_second: rate(traffic.packets, then.packets),
                    }
                }
                _ => Rate::default(),
            };
            self.backends.insert(id, (traffic, rate));
        }
        self.at = Some(now);
    }

    /// How fast it goes through a backend.
    pub fn of(&self, id: u16) -> Rate {
        self.backends.get(&id).map(|(_, rate)| *rate).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rates_are_differences_by_time_and_never_below_zero() {
        let traffic = |packets, connections| Traffic { packets, connections, ..Traffic::default() };
        let (mut rates, start) = (Rates::default(), Instant::now());
        rates.observe(start, [(1, traffic(1_000, 10)), (2, traffic(50, 5))]);
        assert_eq!(rates.of(1), Rate::default());
        rates.observe(start + Duration::from_secs(2), [(1, traffic(1_500, 11)), (2, traffic(0, 0))]);
        assert_eq!(rates.of(1), Rate { connections_per_second: 0.5, packets_per_second: 250.0 });
        assert_eq!(rates.of(2), Rate::default(), "another owner of the id");
        rates.observe(start + Duration::from_secs(4), []);
        assert_eq!(rates.of(1), Rate::default());
    }
}
