//! How long handshakes took since the agent started. The kernel's own counts begin anew with each step of a rollout; what they
//! had come to is kept here.

use std::collections::HashMap;

use super::Agent;
use super::rollout::Pools;
use crate::config::ServiceName;
use crate::metrics::Handshakes;

/// By the names of service and pool.
pub(super) type Measured = HashMap<(String, String), Handshakes>;

impl Agent {
    /// Keeps what was counted of a service, before its measure begins anew or is another's.
    pub(super) fn keep_handshakes(&mut self, name: &ServiceName, pools: Pools) {
        for (pool, counts) in self.handshakes_of(pools) {
            *self.measured.entry((name.as_str().to_owned(), pool)).or_default() += &counts;
        }
    }

    /// All that was counted of every pool, by service and pool.
    pub(super) fn all_handshakes(&self) -> HashMap<String, HashMap<String, Handshakes>> {
        let mut all: HashMap<String, HashMap<String, Handshakes>> = HashMap::new();
        for ((service, pool), sum) in &self.measured {
            all.entry(service.clone()).or_default().insert(pool.clone(), *sum);
        }
        for name in self.follows.keys() {
            let Some(pools) = self.pools_of(name) else { continue };
            for (pool, counts) in self.handshakes_of(pools) {
                *all.entry(name.as_str().to_owned()).or_default().entry(pool).or_default() += &counts;
            }
        }
        all
    }

    fn handshakes_of(&self, pools: Pools) -> Vec<(String, Handshakes)> {
        let name = |pool: u16| self.publisher.registry.pool_name(pool).map(str::to_owned);
        let each = [(pools.stable, false), (pools.canary, true)].into_iter().filter(|_| pools.measure != 0);
        each.filter_map(|(pool, canary)| {
            let (_, answered, first_byte) = self.measured(pools, canary);
            Some((name(pool)?, Handshakes { answered, first_byte }))
        })
        .collect()
    }
}
