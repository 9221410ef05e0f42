//! Desired state: what the operator wants, as configuration and as changes made at run time; and what was discovered.

mod discovered;
pub mod history;
pub mod journal;
pub mod snapshot;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::compile::key_of;
use crate::config::{AdminState, Backend, Config, Pool, PoolName, Service, ServiceName};
use crate::publish::split;
use crate::rollout::engine::{self, Order, Rollout};

pub use discovered::Discovered;
pub use journal::{Change, Entry, Journal, JournalError};
pub use snapshot::Snapshot;

/// Who asked for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Author {
    /// A user's name or number, or a part of the agent.
    pub name: String,
    /// The process that asked.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pid: Option<i32>,
}

impl Author {
    /// A part of the agent.
    #[must_use]
    pub fn agent(part: &str) -> Self {
        Self { name: format!("lbd/{part}"), pid: None }
    }
}

/// What the operator wants.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// As configured.
    pub config: Config,
    /// What was changed at run time, for each service.
    pub intents: BTreeMap<ServiceName, Intent>,
    /// The backends that were discovered beside the configured ones. Finding others changes no service: nobody has decided
    /// anything.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub discovered: Discovered,
    /// How often each service has changed, its removal included. A removed service keeps its count.
    pub revisions: BTreeMap<ServiceName, u64>,
}

/// What was decided at run time about one service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// The pool of most clients.
    pub stable: PoolName,
    /// The pool of some.
    pub canary: Option<PoolName>,
    /// The canary's share in percent.
    pub split: f64,
    /// Makes another set of clients the first of the canary.
    pub salt: u64,
    /// The rollout that is under way, or the last one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rollout: Option<Rollout>,
    /// By backend.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub backends: BTreeMap<SocketAddr, Overrides>,
}

/// What was changed of one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overrides {
    /// Its weight.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<Override<u16>>,
    /// Its administrative state.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<Override<AdminState>>,
    /// Its health: `true` is up, whatever the checks say.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub health: Option<Override<bool>>,
    /// How long it may drain; there only while it drains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub deadline: Option<Deadline>,
}

/// How long a backend may drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deadline {
    /// Until when.
    pub at: Timestamp,
    /// Whether the flows that are left then are reset.
    pub reset: bool,
}

impl Overrides {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether both say the same, by whomever and whenever it was said.
    #[must_use]
    pub fn say_the_same(&self, other: &Self) -> bool {
        fn said<T>(it: &Option<Override<T>>) -> Option<(&T, &Option<T>)> {
            it.as_ref().map(|it| (&it.value, &it.configured))
        }
        said(&self.weight) == said(&other.weight)
            && said(&self.state) == said(&other.state)
            && said(&self.health) == said(&other.health)
            && self.deadline == other.deadline
    }
}

/// A value that stands in for a configured one, until the configuration changes *that* value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override<T> {
    /// What holds now.
    pub value: T,
    /// What the configuration said when it was set; `None` where it says nothing about it.
    pub configured: Option<T>,
    /// When it was set (RFC 3339).
    pub since: String,
    /// By whom.
    pub author: Author,
}

impl Intent {
    /// The canary's share in units of 2^-32. What a rollout opens to guests only is open by the least there is.
    #[must_use]
    pub fn share(&self) -> u32 {
        let open = self.rollout.as_ref().is_some_and(Rollout::is_open);
        split::share(self.split).max(u32::from(open))
    }

    /// What holds of a service that nobody has touched: the first pool is stable, the second one the canary, at 0 %.
    #[must_use]
    pub fn of(service: &Service) -> Option<Self> {
        let mut pools = service.pools.iter().map(|pool| pool.name.clone());
        Some(Self {
            stable: pools.next()?,
            canary: pools.next(),
            split: 0.0,
            salt: 0,
            rollout: None,
            backends: BTreeMap::new(),
        })
    }

    /// The rollout that is under way.
    #[must_use]
    pub fn under_way(&self) -> Option<&Rollout> {
        self.rollout.as_ref().filter(|rollout| !rollout.phase.is_over())
    }

    /// Whether one is.
    #[must_use]
    pub fn is_in_rollout(&self) -> bool {
        self.under_way().is_some()
    }

    /// Somebody has taken the canary back: its share, and the rollout that gave it one.
    pub fn roll_back(&mut self, now: Timestamp) {
        self.split = 0.0;
        self.end_rollout(now, "rolled back by hand");
    }

    fn end_rollout(&mut self, now: Timestamp, why: &str) {
        if let Some(rollout) = &mut self.rollout
            && let Ok(ended) = engine::obey(rollout, Order::Abort, now)
        {
            *rollout = Rollout { reason: why.to_owned(), ..ended };
        }
    }

    /// Has other clients be the first of `canary` than were the first last time. All that this goes by is known to every
    /// balancer of a fleet: they agree on the clients.
    pub fn begin_with_others(&mut self, canary: &Pool) {
        let mut text = format!("{} -> {}", self.stable, canary.name);
        let addresses: BTreeSet<SocketAddr> = canary.backends.iter().map(|backend| backend.address).collect();
        text.extend(addresses.iter().map(|address| format!(" {address}")));
        let salt_of = |text: &str| {
            Sha256::digest(text).iter().take(8).fold(0, |salt, &byte| salt << 8 | u64::from(byte))
        };
        let salt = salt_of(&text);
        self.salt = if salt == self.salt { salt_of(&format!("{text}, once more")) } else { salt };
    }

    /// What is left of this when the configuration changes.
    ///
    /// Pools that are gone leave their roles; an override goes if its backend does, or if the value that it replaced was
    /// changed: then the configuration wins.
    #[must_use]
    pub fn under(mut self, service: &Service) -> Option<Self> {
        let fresh = Self::of(service)?;
        let exists = |name: &PoolName| service.pools.iter().any(|pool| pool.name == *name);
        if !exists(&self.stable) {
            // With the canary at 100 % it is what clients use; else the first pool that there is.
            self.stable = match &self.canary {
                Some(canary) if exists(canary) && self.split >= 100.0 => canary.clone(),
                _ => fresh.stable.clone(),
            };
        }
        let lost = self.canary.as_ref().is_none_or(|canary| !exists(canary) || *canary == self.stable);
        if lost {
            self.split = 0.0;
            // A journal says the same whenever it is read: the time is the rollout's own.
            if let Some(since) = self.rollout.as_ref().map(|rollout| rollout.since) {
                self.end_rollout(since, "its pool was taken out of the configuration");
            }
            self.canary =
                service.pools.iter().map(|pool| &pool.name).find(|name| **name != self.stable).cloned();
        }
        self.forget_overrides(service);
        Some(self)
    }

    /// Overrides of backends that are gone, or that stood in for a value that is another one now.
    fn forget_overrides(&mut self, service: &Service) {
        if self.backends.is_empty() {
            return;
        }
        let all = service.pools.iter().flat_map(|pool| &pool.backends);
        let all: HashMap<SocketAddr, &Backend> = all.map(|backend| (backend.address, backend)).collect();
        self.backends.retain(|address, overrides| {
            let Some(backend) = all.get(address) else { return false };
            overrides.weight.take_if(|weight| weight.configured != Some(backend.weight.get()));
            overrides.state.take_if(|state| state.configured != Some(backend.state));
            let state = overrides.state.as_ref().map_or(backend.state, |state| state.value);
            overrides.deadline.take_if(|_| state != AdminState::Drain);
            !overrides.is_empty()
        });
    }
}

impl Desired {
    /// A configuration that nobody has touched.
    #[must_use]
    pub fn of(config: Config) -> Self {
        let intents = config.services.iter().filter_map(|s| Some((s.name.clone(), Intent::of(s)?))).collect();
        let revisions = config.services.iter().map(|s| (s.name.clone(), 1)).collect();
        Self { config, intents, discovered: Discovered::new(), revisions }
    }

    /// A service by name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.config.services.iter().find(|service| service.name.as_str() == name)
    }

    /// What is left of this under another configuration. Services that differ, are new or are gone get a new revision.
    #[must_use]
    pub fn under(&self, config: Config) -> Self {
        let (revisions, discovered) = (self.revisions.clone(), self.discovered.clone());
        let mut next = Self { revisions, discovered, ..Self::of(config) };
        let renamed = self.renamed(&next.config);
        for (name, before) in &renamed {
            if let Some(found) = next.discovered.remove(before) {
                next.discovered.insert(name.clone(), found);
            }
        }
        next.forget_what_nobody_discovers();
        let intents = next.services().filter_map(|service| {
            let before = renamed.get(&service.name).unwrap_or(&service.name);
            let intent = self.intents.get(before).cloned()?;
            Some((service.name.clone(), intent.under(&service)?))
        });
        let intents: Vec<(ServiceName, Intent)> = intents.collect();
        next.intents.extend(intents);
        for name in self.differing(&next) {
            next.count(&name);
        }
        next
    }

    /// The names that services have in `config` and did not have here, and those that they had: whoever is at the same
    /// address is the same service.
    pub(crate) fn renamed(&self, config: &Config) -> BTreeMap<ServiceName, ServiceName> {
        let new = config.services.iter().filter(|service| !self.intents.contains_key(&service.name));
        let new: HashMap<_, _> = new.map(|service| (key_of(service), &service.name)).collect();
        if new.is_empty() {
            return BTreeMap::new();
        }
        let stay: HashSet<_> = config.services.iter().map(|service| &service.name).collect();
        let gone = self.config.services.iter().filter(|service| !stay.contains(&service.name));
        gone.filter_map(|before| Some(((*new.get(&key_of(before))?).clone(), before.name.clone()))).collect()
    }

    /// Every service by its name, with what was decided about it.
    #[must_use]
    pub fn by_name(&self) -> BTreeMap<&ServiceName, (&Service, Option<&Intent>)> {
        let services = self.config.services.iter();
        services.map(|service| (&service.name, (service, self.intents.get(&service.name)))).collect()
    }

    /// Services that count other changes than in `before`, which this came of: all that may be another one now, by name.
    #[must_use]
    pub fn changed_since(&self, before: &Self) -> Vec<ServiceName> {
        let counts =
            self.revisions.iter().filter(|(name, count)| before.revisions.get(*name) != Some(*count));
        counts.map(|(name, _)| name.clone()).collect()
    }

    /// The services that are not the same in `other`: new there, gone, changed, or decided about in another way; by name.
    fn differing(&self, other: &Self) -> Vec<ServiceName> {
        let (before, after) = (self.by_name(), other.by_name());
        let gone = before.keys().filter(|name| !after.contains_key(**name));
        let mut names: Vec<ServiceName> = after
            .iter()
            .filter(|(name, now)| before.get(**name) != Some(*now))
            .map(|(name, _)| *name)
            .chain(gone.copied())
            .cloned()
            .collect();
        names.sort();
        names
    }

    /// All that holds of a service.
    #[must_use]
    pub fn snapshot(&self, name: &str) -> Snapshot {
        let service = self.service(name).cloned();
        let intent = service.as_ref().and_then(|service| self.intents.get(&service.name).cloned());
        Snapshot { service, intent }
    }

    /// With a service as it was at another time. That is a new revision of it.
    #[must_use]
    pub fn with(&self, name: &ServiceName, snapshot: Snapshot) -> Self {
        let mut next = self.clone();
        let place = next.config.services.iter().position(|service| service.name == *name);
        match (place, snapshot.service) {
            (Some(place), Some(service)) => next.config.services[place] = service,
            (None, Some(service)) => next.config.services.push(service),
            (Some(place), None) => drop(next.config.services.remove(place)),
            (None, None) => {}
        }
        match snapshot.intent {
            Some(intent) => drop(next.intents.insert(name.clone(), intent)),
            None => drop(next.intents.remove(name)),
        }
        next.forget_what_nobody_discovers();
        next.forget_overrides(name);
        next.count(name);
        next
    }

    /// Counts a change of a service.
    pub fn count(&mut self, name: &ServiceName) {
        *self.revisions.entry(name.clone()).or_default() += 1;
    }

    /// Applies what the journal says.
    pub fn replay(&mut self, change: &Change) {
        match change {
            Change::Config { config, .. } => *self = self.under((**config).clone()),
            Change::Service { name, intent } => {
                self.intents.insert(name.clone(), intent.clone());
                self.count(name);
            }
            Change::Restore { name, service, intent } => {
                let service = service.as_deref().cloned();
                *self = self.with(name, Snapshot { service, intent: intent.clone() });
            }
            Change::Discovered { name, pool, backends } => {
                *self = self.discovering(name, pool, backends.clone())
            }
            Change::Base { desired, .. } => *self = (**desired).clone(),
        }
    }

    /// What a change makes of what was there before. A change of a service that no configuration has is left out.
    #[must_use]
    pub fn after(before: Option<Self>, change: &Change) -> Option<Self> {
        match (before, change) {
            (Some(mut desired), change) => {
                desired.replay(change);
                Some(desired)
            }
            (None, Change::Config { config, .. }) => Some(Self::of((**config).clone())),
            (None, Change::Base { desired, .. }) => Some((**desired).clone()),
            (None, Change::Service { .. } | Change::Restore { .. } | Change::Discovered { .. }) => None,
        }
    }

    /// What a journal comes to; `None` if it has no configuration.
    #[must_use]
    pub fn replayed(entries: &[Entry]) -> Option<Self> {
        entries.iter().fold(None, |desired, entry| Self::after(desired, &entry.change))
    }
}

/// SHA-256 of a configuration file's text.
#[must_use]
pub fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The fingerprint of the configuration file when it was last read.
#[must_use]
pub fn file_of(entries: &[Entry]) -> Option<&str> {
    entries.iter().rev().find_map(|entry| match &entry.change {
        Change::Config { file, .. } | Change::Base { file, .. } => file.as_deref(),
        Change::Service { .. } | Change::Restore { .. } | Change::Discovered { .. } => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn config(weight: u16, pools: &[&str]) -> Config {
        let mut text = String::from(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n",
        );
        for (i, pool) in pools.iter().enumerate() {
            text += &format!(
                "[[service.pool]]\nname = \"{pool}\"\n[[service.pool.backend]]\naddress = \"10.0.{i}.1:80\"\nweight = {weight}\n"
            );
        }
        config::parse(&text, "test").expect("a good configuration").config
    }

    fn with_weight(desired: &mut Desired, value: u16, configured: u16) {
        let name = desired.config.services[0].name.clone();
        let intent = desired.intents.get_mut(&name).expect("there");
        intent.backends.entry("10.0.0.1:80".parse().expect("an address")).or_default().weight =
            Some(Override {
                value,
                configured: Some(configured),
                since: String::new(),
                author: Author::agent("test"),
            });
    }

    #[test]
    fn an_override_outlives_a_reload_that_says_the_same() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        with_weight(&mut desired, 7, 100);
        let after = desired.under(config(100, &["a", "b"]));
        assert_eq!(after, desired, "nothing changed, not even a revision");
    }

    #[test]
    fn a_changed_value_in_the_file_wins_over_an_override() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        with_weight(&mut desired, 7, 100);
        let after = desired.under(config(50, &["a", "b"]));
        let name = &after.config.services[0].name;
        assert!(after.intents[name].backends.is_empty());
        assert_eq!(after.revisions[name], 2);
        assert_eq!(after.changed_since(&desired), std::slice::from_ref(name));
    }

    #[test]
    fn a_canary_at_100_percent_becomes_stable_when_the_old_pool_goes() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        let name = desired.config.services[0].name.clone();
        desired.intents.get_mut(&name).expect("there").split = 100.0;
        let after = desired.under(config(100, &["b"]));
        let intent = &after.intents[&name];
        assert_eq!((intent.stable.as_str(), intent.canary.as_ref(), intent.split), ("b", None, 0.0));
    }

    #[test]
    fn a_canary_that_goes_takes_its_split_with_it() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        let name = desired.config.services[0].name.clone();
        desired.intents.get_mut(&name).expect("there").split = 10.0;
        let after = desired.under(config(100, &["a", "c"]));
        let intent = &after.intents[&name];
        assert_eq!((intent.stable.as_str(), intent.split), ("a", 0.0));
        assert_eq!(intent.canary.as_ref().map(PoolName::as_str), Some("c"));
    }

    #[test]
    fn a_service_with_another_name_keeps_what_was_decided_about_it() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        with_weight(&mut desired, 7, 100);
        let name = desired.config.services[0].name.clone();
        let intent = desired.intents.get_mut(&name).expect("there");
        (intent.stable, intent.canary, intent.split) =
            ("b".parse().expect("a name"), Some("a".parse().expect("a name")), 10.0);
        let before = intent.clone();
        let mut renamed = desired.config.clone();
        renamed.services[0].name = "shop".parse().expect("a name");
        let after = desired.under(renamed.clone());
        assert_eq!(after.intents[&renamed.services[0].name], before);
        assert_eq!(after.changed_since(&desired).len(), 2, "one is gone, one is new");
        // At another address it is another service.
        renamed.services[0].port = 81;
        assert_eq!(desired.under(renamed).intents.into_values().next().expect("there").split, 0.0);
    }

    #[test]
    fn every_balancer_has_the_same_clients_first_and_others_the_next_time() {
        let pools = |text: &[&str]| Desired::of(config(100, text)).config.services[0].pools.clone();
        let fresh = Intent::of(&config(100, &["a", "b"]).services[0]).expect("an intent");
        let begun = |intent: &Intent, pool: &Pool| {
            let mut next = intent.clone();
            next.begin_with_others(pool);
            next
        };
        let [a, b] = pools(&["a", "b"]).try_into().expect("two pools");
        let first = begun(&fresh, &b);
        assert_eq!(first.salt, begun(&Intent { split: 1.0, ..fresh.clone() }, &b).salt);
        assert_ne!(first.salt, fresh.salt);
        assert_ne!(begun(&first, &b).salt, first.salt, "the same pool once more");
        let back = Intent { stable: b.name.clone(), ..first.clone() };
        assert_ne!(begun(&back, &a).salt, first.salt);
        let mut other = b.clone();
        other.backends[0].address = "10.0.9.9:80".parse().expect("an address");
        assert_ne!(begun(&fresh, &other).salt, first.salt, "another release");
    }

    #[test]
    fn a_rollout_whose_pool_goes_is_over_and_says_why() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        let name = desired.config.services[0].name.clone();
        let plan = config::Rollout::default().plan(None, None);
        let rollout = Rollout::begin("b".parse().expect("a name"), plan, Timestamp::UNIX_EPOCH);
        desired.intents.get_mut(&name).expect("there").rollout = Some(rollout);
        let after = desired.under(config(100, &["a", "c"]));
        let rollout = after.intents[&name].rollout.as_ref().expect("it is remembered");
        assert_eq!(rollout.phase, engine::Phase::Failed, "nobody was let in yet");
        assert_eq!(rollout.reason, "its pool was taken out of the configuration");
    }

    #[test]
    fn what_is_said_twice_is_said_once() {
        let mut desired = Desired::of(config(100, &["a", "b"]));
        with_weight(&mut desired, 7, 100);
        let overrides =
            desired.intents.values().next().expect("there").backends.values().next().expect("one").clone();
        let mut later = overrides.clone();
        let weight = later.weight.as_mut().expect("set");
        (weight.since, weight.author) = ("later".to_owned(), Author::agent("somebody else"));
        assert!(overrides.say_the_same(&later) && overrides != later);
        later.weight.as_mut().expect("set").value = 8;
        assert!(!overrides.say_the_same(&later));
    }
}
