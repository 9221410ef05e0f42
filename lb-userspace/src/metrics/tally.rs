//! What the agent counts itself, since it has started.

use std::collections::{BTreeMap, HashMap};

use super::checks::of;
use crate::api::BackendPath;
use crate::events::Occurrence;
use crate::outlier::Detector;
use crate::state::Author;

/// Why a canary was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Somebody said so.
    Manual,
    /// A rollout did it by itself; its event says why.
    Rollout,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Manual, Self::Rollout];

    /// Its name in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Rollout => "rollout",
        }
    }
}

/// Counts of events. Whoever is not in it has 0.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// By service and backend: how often it came up, and how often it went down.
    transitions: HashMap<String, HashMap<String, [u64; 2]>>,
    rollbacks: BTreeMap<(String, Cause), u64>,
    /// By service: how long its last rollback took, in seconds.
    applied: BTreeMap<String, f64>,
    /// By service, pool and detector.
    ejections: BTreeMap<(String, String, Detector), u64>,
    /// When a configuration was last taken, in seconds since 1970.
    pub configured: f64,
    /// Changes that the kernel refused.
    pub refused: u64,
}

impl Tally {
    /// Takes an event into account.
    pub fn note(&mut self, what: &Occurrence) {
        let service = what.service.clone().unwrap_or_default();
        match what.code {
            "agent_started" | "applied" => self.configured = now(),
            "backend_up" | "backend_down" => {
                let backend = what.backend.as_deref().and_then(|backend| backend.parse().ok());
                let backend = backend.map(BackendPath::name_of).unwrap_or_default();
                let both = of(of(&mut self.transitions, &service), &backend);
                both[usize::from(what.code == "backend_down")] += 1;
            }
            "rollout_rolled_back" => {
                let by_itself = what.actor.as_ref() == Some(&Author::agent("rollout").name);
                let cause = if by_itself { Cause::Rollout } else { Cause::Manual };
                self.taken_back(service, cause);
            }
            _ => {}
        }
    }

    /// Somebody took a canary back that had a share of the clients.
    pub fn rolled_back(&mut self, service: &str) {
        self.taken_back(service.to_owned(), Cause::Manual);
    }

    fn taken_back(&mut self, service: String, cause: Cause) {
        *self.rollbacks.entry((service, cause)).or_default() += 1;
    }

    /// How often each of a service's backends came up, and how often it went down.
    pub(super) fn of_service(&self, service: &str) -> Option<&HashMap<String, [u64; 2]>> {
        self.transitions.get(service)
    }

    /// Of how many backends it knows.
    #[must_use]
    pub fn backends(&self) -> usize {
        self.transitions.values().map(HashMap::len).sum()
    }

    /// How often a service's canary was taken back.
    #[must_use]
    pub fn rollbacks(&self, service: &str, cause: Cause) -> u64 {
        self.rollbacks.get(&(service.to_owned(), cause)).copied().unwrap_or_default()
    }

    /// A rollback is in force, so many seconds after it was asked for or decided.
    pub fn rollback_took(&mut self, service: &str, seconds: f64) {
        self.applied.insert(service.to_owned(), seconds);
    }

    /// How long the last rollback of a service took, in seconds.
    #[must_use]
    pub fn rollback_seconds(&self, service: &str) -> f64 {
        self.applied.get(service).copied().unwrap_or_default()
    }

    /// A backend is an outlier, and gets no new flows for a while.
    pub fn ejected(&mut self, service: &str, pool: &str, detector: Detector) {
        *self.ejections.entry((service.to_owned(), pool.to_owned(), detector)).or_default() += 1;
    }

    /// How often backends of a pool were ejected.
    #[must_use]
    pub fn ejections(&self, service: &str, pool: &str, detector: Detector) -> u64 {
        self.ejections.get(&(service.to_owned(), pool.to_owned(), detector)).copied().unwrap_or_default()
    }

    /// Forgets backends that are not there any more, as `known` says of service and backend.
    pub fn forget_others(&mut self, known: impl Fn(&str, &str) -> bool) {
        for (service, backends) in &mut self.transitions {
            backends.retain(|backend, _| known(service, backend));
        }
        self.transitions.retain(|_, backends| !backends.is_empty());
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    jiff::Timestamp::now().as_microsecond() as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(code: &'static str, backend: Option<&str>, actor: Option<&str>) -> Occurrence {
        Occurrence {
            code,
            service: Some("web".to_owned()),
            backend: backend.map(str::to_owned),
            actor: actor.map(str::to_owned),
            ..Occurrence::default()
        }
    }

    #[test]
    fn events_are_counted_where_they_belong() {
        let mut tally = Tally::default();
        let transitions =
            |tally: &Tally| tally.of_service("web").and_then(|of| of.get("10.0.0.1:80")).copied();
        assert_eq!((transitions(&tally), tally.rollbacks("web", Cause::Manual)), (None, 0));
        let engine = Author::agent("rollout").name;
        for event in [
            what("backend_up", Some("10.0.0.1:80"), None),
            what("backend_down", Some("10.0.0.1:80"), None),
            what("backend_up", Some("10.0.0.1:80"), None),
            // There may have been nothing to take back.
            what("rolled_back", None, Some("root")),
            what("rollout_rolled_back", None, Some("root")),
            what("rollout_rolled_back", None, Some(&engine)),
        ] {
            tally.note(&event);
        }
        tally.rolled_back("web");
        assert_eq!((transitions(&tally), tally.backends()), (Some([2, 1]), 1));
        assert_eq!(Cause::ALL.map(|cause| tally.rollbacks("web", cause)), [2, 1]);
        tally.ejected("web", "v1", Detector::FailureRatio);
        assert_eq!(Detector::ALL.map(|detector| tally.ejections("web", "v1", detector)), [0, 1, 0]);
        tally.rollback_took("web", 25e-6);
        assert_eq!((tally.rollback_seconds("web"), tally.rollback_seconds("api")), (25e-6, 0.0));
        assert_eq!(tally.configured, 0.0);
        tally.note(&what("applied", None, None));
        assert!(tally.configured > 1.7e9);
        tally.forget_others(|_, backend| backend == "10.0.0.2:80");
        assert_eq!((transitions(&tally), tally.backends()), (None, 0));
    }
}
