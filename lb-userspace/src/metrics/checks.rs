//! What came of health checks.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::health::{Counters, FailureKind, TargetId};

/// Failed checks, by [`FailureKind`].
pub(super) type Failures = [u64; FailureKind::ALL.len()];

/// Counts of checks. Those of a backend begin with its target; those of a pool go on while its backends come and go.
#[derive(Clone, Debug, Default)]
pub struct Checks {
    seen: HashMap<TargetId, Counters>,
    checks: BTreeMap<(String, String), u64>,
    failures: BTreeMap<(String, String), Failures>,
}

impl Checks {
    /// Takes in what a target has counted so far.
    pub fn note(&mut self, service: &str, pool: &str, backend: &str, id: TargetId, now: &Counters) {
        let before = self.seen.insert(id, now.clone()).unwrap_or_default();
        *self.checks.entry((service.to_owned(), backend.to_owned())).or_default() +=
            now.checks.saturating_sub(before.checks);
        let failures = self.failures.entry((service.to_owned(), pool.to_owned())).or_default();
        for (sum, kind) in failures.iter_mut().zip(FailureKind::ALL) {
            *sum += now.failures(kind).saturating_sub(before.failures(kind));
        }
    }

    /// Forgets targets that are not there any more.
    pub fn forget_others(&mut self, known: &HashSet<TargetId>) {
        self.seen.retain(|id, _| known.contains(id));
    }

    /// Checks of a backend that have ended.
    pub(super) fn of_backend(&self, service: &str, backend: &str) -> u64 {
        self.checks.get(&(service.to_owned(), backend.to_owned())).copied().unwrap_or_default()
    }

    /// Failed checks of a pool's backends.
    pub(super) fn of_pool(&self, service: &str, pool: &str) -> Failures {
        self.failures.get(&(service.to_owned(), pool.to_owned())).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_failures_outlive_its_backends() {
        let mut checks = Checks::default();
        let counted = |checks| Counters { checks, ..Counters::default() };
        checks.note("web", "v1", "10.0.0.1:80", TargetId(1), &counted(5));
        checks.note("web", "v1", "10.0.0.1:80", TargetId(1), &counted(7));
        assert_eq!(checks.of_backend("web", "10.0.0.1:80"), 7);
        // The same backend as another target.
        checks.forget_others(&HashSet::from([TargetId(2)]));
        checks.note("web", "v1", "10.0.0.1:80", TargetId(2), &counted(1));
        assert_eq!(checks.of_backend("web", "10.0.0.1:80"), 8);
        assert_eq!(checks.of_backend("web", "10.0.0.2:80"), 0);
        assert_eq!(checks.of_pool("web", "v2"), Failures::default());
    }
}
