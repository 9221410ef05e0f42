//! What a change of the configuration would take from under living flows.

use std::collections::HashMap;

use super::Agent;
use crate::api::BackendPath;
use crate::compile::{id_of, key_of};
use crate::plural::{counted, either};
use crate::state::Desired;

impl Agent {
    /// A warning for each backend and each service that would go while it may have flows.
    pub(super) fn departures(&self, next: &Desired) -> Vec<String> {
        let mut warnings = Vec::new();
        let after = next.services();
        let after: HashMap<_, _> = after.iter().map(|service| (key_of(service), service)).collect();
        for service in self.desired.services() {
            let key = key_of(&service);
            let Some(index) = self.publisher.registry.service_index(&key) else { continue };
            let Some(then) = after.get(&key) else {
                warnings.push(format!(
                    "{} goes: its flows end at once, because the host gets their packets; to let them finish, set the state \
                     of its backends to drain, wait, and apply again",
                    service.name
                ));
                continue;
            };
            if ***then == *service {
                continue;
            }
            for pool in &service.pools {
                for backend in &pool.backends {
                    let mut stay = then.pools.iter().flat_map(|pool| &pool.backends);
                    if stay.any(|other| other.address == backend.address) {
                        continue;
                    }
                    let load = id_of(&service, backend.address, index, &self.publisher.registry)
                        .map(|id| self.swept.load(id))
                        .unwrap_or_default();
                    if load.flows == 0 && load.homes == 0 {
                        continue;
                    }
                    let path =
                        format!("{}/{}/{}", service.name, pool.name, BackendPath::name_of(backend.address));
                    warnings.push(format!(
                        "{path} goes while it may have flows: {} {} tracked, those of {} are in no table; it finishes them, and is \
                         gone when none are left",
                        load.flows,
                        either(load.flows, "is", "are"),
                        counted(load.homes.into(), "slot"),
                    ));
                }
            }
        }
        warnings
    }
}
