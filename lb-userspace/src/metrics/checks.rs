//! What came of health checks.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use crate::health::{Counters, FailureKind, TargetId};

/// Failed checks, by [`FailureKind`].
pub type Failures = [u64; FailureKind::ALL.len()];

/// Counts of checks. Those of a backend begin with its target; those of a pool go on while its backends come and go.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    seen: HashMap<TargetId, Counters>,
    /// By service and backend.
    checks: HashMap<String, HashMap<SocketAddr, u64>>,
    /// By service and pool.
    failures: HashMap<String, HashMap<String, Failures>>,
}

impl Checks {
    /// Takes in what a target has counted so far.
    pub fn note(&mut self, service: &str, pool: &str, backend: SocketAddr, id: TargetId, now: &Counters) {
        let before = self.seen.entry(id).or_default();
        if before == now {
            return;
        }
        let checks = now.checks.saturating_sub(before.checks);
        *of(&mut self.checks, service).entry(backend).or_default() += checks;
        let failures = of(of(&mut self.failures, service), pool);
        for (sum, kind) in failures.iter_mut().zip(FailureKind::ALL) {
            *sum += now.failures(kind).saturating_sub(before.failures(kind));
        }
        before.clone_from(now);
    }

    /// How many targets are remembered.
    pub fn targets(&self) -> usize {
        self.seen.len()
    }

    /// Forgets targets that are not there any more.
    pub fn forget_others(&mut self, known: &HashSet<TargetId>) {
        self.seen.retain(|id, _| known.contains(id));
    }

    /// Of how many backends it knows.
    pub fn backends(&self) -> usize {
        self.checks.values().map(HashMap::len).sum()
    }

    /// Forgets backends that are not there any more, as `known` says of service and backend.
    pub fn forget_backends(&mut self, known: impl Fn(&str, SocketAddr) -> bool) {
        for (service, backends) in &mut self.checks {
            backends.retain(|backend, _| known(service, *backend));
        }
        self.checks.retain(|_, backends| !backends.is_empty());
    }

    /// Checks of a backend that have ended.
    #[must_use]
    pub fn of_backend(&self, service: &str, backend: SocketAddr) -> u64 {
        self.checks.get(service).and_then(|backends| backends.get(&backend)).copied().unwrap_or_default()
    }

    /// Failed checks of a pool's backends.
    #[must_use]
    pub fn of_pool(&self, service: &str, pool: &str) -> Failures {
        self.failures.get(service).and_then(|pools| pools.get(pool)).copied().unwrap_or_default()
    }
}

/// What is at a name; only if nothing is, the name is copied.
pub(super) fn of<'a, V: Default>(map: &'a mut HashMap<String, V>, name: &str) -> &'a mut V {
    if !map.contains_key(name) {
        return map.entry(name.to_owned()).or_default();
    }
    map.get_mut(name).expect("it is there")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_failures_outlive_its_backends() {
        let mut checks = Checks::default();
        let counted = |checks| Counters { checks, ..Counters::default() };
        let [one, other] = ["10.0.0.1:80", "10.0.0.2:80"].map(|address| address.parse().unwrap());
        checks.note("web", "v1", one, TargetId(1), &counted(5));
        checks.note("web", "v1", one, TargetId(1), &counted(7));
        assert_eq!(checks.of_backend("web", one), 7);
        // The same backend as another target.
        checks.forget_others(&HashSet::from([TargetId(2)]));
        checks.note("web", "v1", one, TargetId(2), &counted(1));
        assert_eq!((checks.of_backend("web", one), checks.of_backend("web", other)), (8, 0));
        assert_eq!(checks.of_pool("web", "v2"), Failures::default());
    }

    #[test]
    fn backends_that_come_and_go_leave_no_names_behind() {
        let mut checks = Checks::default();
        let failed = Counters { checks: 1, failures: [1; FailureKind::ALL.len()], ..Counters::default() };
        for last in 0..100 {
            let it = SocketAddr::from(([10, 0, 0, last], 80));
            checks.note("web", "v1", it, TargetId(last.into()), &failed);
            checks.forget_others(&HashSet::from([TargetId(last.into())]));
            checks.forget_backends(|service, backend| service == "web" && backend == it);
            assert_eq!((checks.targets(), checks.backends()), (1, 1));
        }
        assert_eq!(checks.of_pool("web", "v1"), [100; FailureKind::ALL.len()], "the pool's count goes on");
        checks.forget_backends(|_, _| false);
        assert_eq!(checks.backends(), 0);
    }
}
