//! What came of health checks.

use std::collections::{HashMap, HashSet};

use crate::health::{Counters, FailureKind, TargetId};

/// Failed checks, by [`FailureKind`].
pub(super) type Failures = [u64; FailureKind::ALL.len()];

/// Counts of checks. Those of a backend begin with its target; those of a pool go on while its backends come and go.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    seen: HashMap<TargetId, Counters>,
    /// By the names of service and backend.
    checks: HashMap<String, HashMap<String, u64>>,
    /// By the names of service and pool.
    failures: HashMap<String, HashMap<String, Failures>>,
}

impl Checks {
    /// Takes in what a target has counted so far; `backend` makes its name.
    pub fn note(
        &mut self,
        service: &str,
        pool: &str,
        backend: impl FnOnce() -> String,
        id: TargetId,
        now: &Counters,
    ) {
        let before = self.seen.entry(id).or_default();
        if before == now {
            return;
        }
        let checks = now.checks.saturating_sub(before.checks);
        *of(of(&mut self.checks, service), &backend()) += checks;
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
    pub fn forget_backends(&mut self, known: impl Fn(&str, &str) -> bool) {
        for (service, backends) in &mut self.checks {
            backends.retain(|backend, _| known(service, backend));
        }
        self.checks.retain(|_, backends| !backends.is_empty());
    }

    /// Checks that have ended, by the names of a service's backends.
    pub(super) fn of_service(&self, service: &str) -> Option<&HashMap<String, u64>> {
        self.checks.get(service)
    }

    /// Failed checks of a pool's backends.
    pub(super) fn of_pool(&self, service: &str, pool: &str) -> Failures {
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
        let name = || "10.0.0.1:80".to_owned();
        let of_backend =
            |checks: &Checks, name: &str| checks.of_service("web").and_then(|of| of.get(name)).copied();
        checks.note("web", "v1", name, TargetId(1), &counted(5));
        checks.note("web", "v1", name, TargetId(1), &counted(7));
        assert_eq!(of_backend(&checks, "10.0.0.1:80"), Some(7));
        // The same backend as another target.
        checks.forget_others(&HashSet::from([TargetId(2)]));
        checks.note("web", "v1", name, TargetId(2), &counted(1));
        assert_eq!(of_backend(&checks, "10.0.0.1:80"), Some(8));
        assert_eq!(of_backend(&checks, "10.0.0.2:80"), None);
        assert_eq!(checks.of_pool("web", "v2"), Failures::default());
    }

    #[test]
    fn backends_that_come_and_go_leave_no_names_behind() {
        let mut checks = Checks::default();
        let failed = Counters { checks: 1, failures: [1; FailureKind::ALL.len()], ..Counters::default() };
        for last in 0..100 {
            let name = format!("10.0.0.{last}:80");
            checks.note("web", "v1", || name.clone(), TargetId(last), &failed);
            checks.forget_others(&HashSet::from([TargetId(last)]));
            checks.forget_backends(|service, backend| service == "web" && backend == name);
            assert_eq!((checks.targets(), checks.backends()), (1, 1));
        }
        assert_eq!(checks.of_pool("web", "v1"), [100; FailureKind::ALL.len()], "the pool's count goes on");
        checks.forget_backends(|_, _| false);
        assert!(checks.backends() == 0 && checks.of_service("web").is_none());
    }
}
