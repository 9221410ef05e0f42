//! How fast counters grow.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use crate::api::{ServiceStatus, Traffic};

/// What goes through something in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    pub connections: f64,
    pub packets: f64,
    pub bytes: f64,
    pub replies: f64,
}

/// Counters as they were, and how they have grown.
#[derive(Debug, Default)]
pub struct Rates {
    before: Option<(Instant, HashMap<String, Traffic>)>,
    now: HashMap<String, Rate>,
    /// Connections a second of everything, the newest last.
    history: VecDeque<u64>,
}

/// As many as a wide terminal has columns for.
const HISTORY: usize = 256;

impl Rates {
    /// Takes the counters of everything, as they are at this time.
    pub fn take(&mut self, services: &[ServiceStatus], at: Instant) {
        let counters = counters(services);
        if let Some((before, old)) = &self.before {
            let seconds = at.saturating_duration_since(*before).as_secs_f64();
            // Twice within a moment says nothing.
            if seconds < 0.01 {
                return;
            }
            self.now = counters
                .iter()
                .filter_map(|(key, new)| Some((key.clone(), rate(old.get(key)?, new, seconds))))
                .collect();
            let all: f64 = services.iter().map(|service| self.of(&service.name).connections).sum();
            self.history.push_back(all.round() as u64);
            if self.history.len() > HISTORY {
                self.history.pop_front();
            }
        }
        self.before = Some((at, counters));
    }

    /// Of `SERVICE`, `SERVICE/POOL` or `SERVICE/POOL/BACKEND`.
    pub fn of(&self, key: &str) -> Rate {
        self.now.get(key).copied().unwrap_or_default()
    }

    /// Connections a second of everything: the newest last, at most so many.
    pub fn history(&self, most: usize) -> Vec<u64> {
        let skipped = self.history.len().saturating_sub(most);
        self.history.iter().skip(skipped).copied().collect()
    }
}

fn counters(services: &[ServiceStatus]) -> HashMap<String, Traffic> {
    let mut counters = HashMap::new();
    for service in services {
        let mut sum = Traffic::default();
        for pool in &service.pools {
            let of = pool.traffic;
            sum.packets += of.packets;
            sum.bytes += of.bytes;
            sum.connections += of.connections;
            sum.reply_packets += of.reply_packets;
            sum.reply_bytes += of.reply_bytes;
            counters.insert(format!("{}/{}", service.name, pool.name), of);
            for backend in &pool.backends {
                counters.insert(format!("{}/{}/{}", service.name, pool.name, backend.name), backend.traffic);
            }
        }
        counters.insert(service.name.clone(), sum);
    }
    counters
}

/// A counter that has become smaller began anew.
fn rate(old: &Traffic, new: &Traffic, seconds: f64) -> Rate {
    let grown = |old: u64, new: u64| if new >= old { (new - old) as f64 / seconds } else { 0.0 };
    Rate {
        connections: grown(old.connections, new.connections),
        packets: grown(old.packets, new.packets),
        bytes: grown(old.bytes + old.reply_bytes, new.bytes + new.reply_bytes),
        replies: grown(old.reply_packets, new.reply_packets),
    }
}
