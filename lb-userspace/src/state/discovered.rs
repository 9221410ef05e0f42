//! What was discovered beside what is configured, and the services that both make.
//!
//! A set of backends belongs to a pool that has a `[service.pool.discovery]`, and goes with it. It is the last one that its
//! source has given: it outlives restarts and sources that fall silent. [`Desired::services`] puts it beside what is
//! configured; whoever wants to know the backends asks there, and need not know where they come from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use super::Desired;
use crate::config::{Backend, Config, PoolName, Service, ServiceName};

/// Backends by service and pool, sorted by address. None of the sets is empty.
pub type Discovered = BTreeMap<ServiceName, BTreeMap<PoolName, Vec<Backend>>>;

impl Desired {
    /// Every service, as configured and with what was discovered. (One after the other: a list of a thousand has megabytes.)
    pub fn services(&self) -> impl Iterator<Item = Cow<'_, Service>> {
        self.config.services.iter().map(|service| self.completed(service))
    }

    /// A service by name, as configured and with what was discovered.
    #[must_use]
    pub fn effective(&self, name: &str) -> Option<Cow<'_, Service>> {
        self.service(name).map(|service| self.completed(service))
    }

    /// What was discovered for a pool, whether or not somebody else has the same addresses.
    #[must_use]
    pub fn discovered(&self, service: &ServiceName, pool: &PoolName) -> &[Backend] {
        self.discovered.get(service).and_then(|pools| pools.get(pool)).map_or(&[], Vec::as_slice)
    }

    /// The same with another set of backends for a pool. Overrides of those that are gone go, too.
    ///
    /// A pool that discovers nothing has none: the configuration may have changed since the source was asked.
    #[must_use]
    pub fn discovering(&self, service: &ServiceName, pool: &PoolName, backends: Vec<Backend>) -> Self {
        let mut next = self.clone();
        let sets = next.discovered.entry(service.clone()).or_default();
        if backends.is_empty() {
            sets.remove(pool);
        } else {
            sets.insert(pool.clone(), backends);
        }
        next.forget_what_nobody_discovers();
        next.forget_overrides(service);
        next
    }

    /// Whether configured and discovered backends go together: the rules that a file has to keep.
    ///
    /// # Errors
    ///
    /// The first mistakes, as the configuration's reader words them.
    pub fn goes_together(&self) -> Result<(), String> {
        let services = self.services().map(Cow::into_owned).collect();
        let config =
            Config { schema: self.config.schema, dataplane: self.config.dataplane.clone(), services };
        // The JSON form of a configuration is checked like a file.
        let checked = serde_json::to_value(config).and_then(serde_json::from_value::<Config>);
        checked.map(drop).map_err(|error| error.to_string())
    }

    /// The sets that do not go together with what is configured or with those before them, and why not.
    #[must_use]
    pub fn misfits(&self) -> Vec<(ServiceName, PoolName, String)> {
        if self.discovered.is_empty() || self.goes_together().is_ok() {
            return Vec::new();
        }
        let mut fitting = Self { discovered: Discovered::new(), ..self.clone() };
        let mut misfits = Vec::new();
        for (service, pools) in &self.discovered {
            for (pool, backends) in pools {
                let next = fitting.discovering(service, pool, backends.clone());
                match next.goes_together() {
                    Ok(()) => fitting = next,
                    Err(why) => misfits.push((service.clone(), pool.clone(), why)),
                }
            }
        }
        misfits
    }

    /// Sets whose pools are gone, or have no discovery any more.
    pub(super) fn forget_what_nobody_discovers(&mut self) {
        let services = &self.config.services;
        self.discovered.retain(|name, sets| {
            let service = services.iter().find(|service| service.name == *name);
            let pools = || service.into_iter().flat_map(|service| &service.pools);
            sets.retain(|name, _| pools().any(|pool| pool.name == *name && pool.discovery.is_some()));
            !sets.is_empty()
        });
    }

    /// Overrides of a service's backends that are gone, or that stood in for a value that is another one now.
    pub(super) fn forget_overrides(&mut self, name: &ServiceName) {
        let Some(mut intent) = self.intents.remove(name) else { return };
        if let Some(service) = self.effective(name.as_str()) {
            intent.forget_overrides(&service);
        }
        self.intents.insert(name.clone(), intent);
    }

    /// Of those that have the same address a configured one counts, and then the one of the first pool.
    #[must_use]
    pub fn completed<'a>(&self, service: &'a Service) -> Cow<'a, Service> {
        let Some(sets) = self.discovered.get(&service.name) else { return Cow::Borrowed(service) };
        let configured = service.pools.iter().flat_map(|pool| &pool.backends);
        let mut taken: HashSet<_> = configured.map(|backend| backend.address).collect();
        let mut service = service.clone();
        for pool in &mut service.pools {
            let found = sets.get(&pool.name).into_iter().flatten();
            pool.backends.extend(found.filter(|backend| taken.insert(backend.address)).cloned());
        }
        Cow::Owned(service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, AdminState, Weight};
    use crate::state::{Author, Change, Override, Overrides, Snapshot};

    const DISCOVERING: &str = "[service.pool.discovery]\ntype = \"dns\"\nname = \"web.example\"\n";

    fn config(of_b: &str) -> Config {
        let text = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
             [[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\n\
             [[service.pool]]\nname = \"b\"\n{of_b}"
        );
        config::parse(&text, "test").expect("a good configuration").config
    }

    fn backend(address: &str, weight: u16) -> Backend {
        Backend {
            address: address.parse().expect("an address"),
            weight: Weight(weight),
            state: AdminState::Ready,
            priority: 0,
            health_port: None,
            agent_port: None,
            server_ids: None,
        }
    }

    fn names() -> (ServiceName, PoolName) {
        ("web".parse().expect("a name"), "b".parse().expect("a name"))
    }

    fn discovering(backends: &[Backend]) -> Desired {
        let (service, pool) = names();
        Desired::of(config(DISCOVERING)).discovering(&service, &pool, backends.to_vec())
    }

    fn addresses(desired: &Desired) -> Vec<String> {
        let service = desired.effective("web").expect("a service");
        let backends = service.pools.iter().flat_map(|pool| pool.backends.iter().map(move |b| (pool, b)));
        backends.map(|(pool, b)| format!("{}/{} {}", pool.name, b.address, b.weight)).collect()
    }

    fn with_weight(desired: &mut Desired, address: &str, configured: u16) {
        let intent = desired.intents.get_mut(&names().0).expect("there");
        let weight = Override {
            value: 7,
            configured: Some(configured),
            since: String::new(),
            author: Author::agent("test"),
        };
        let overrides = Overrides { weight: Some(weight), ..Overrides::default() };
        intent.backends.insert(address.parse().expect("an address"), overrides);
    }

    #[test]
    fn discovered_backends_stand_beside_configured_ones_which_win() {
        let desired = discovering(&[backend("10.0.0.1:80", 9), backend("10.0.0.2:80", 9)]);
        assert_eq!(addresses(&desired), ["a/10.0.0.1:80 100", "b/10.0.0.2:80 9"]);
        assert_eq!(
            desired.service("web"),
            Some(&config(DISCOVERING).services[0]),
            "the configuration is as it was"
        );
        assert_eq!(
            desired.revisions,
            Desired::of(config(DISCOVERING)).revisions,
            "nobody has decided anything"
        );
    }

    #[test]
    fn what_was_discovered_outlives_a_reload_and_goes_with_its_discovery() {
        let desired = discovering(&[backend("10.0.0.2:80", 9)]);
        assert_eq!(desired.under(config(DISCOVERING)), desired);
        let other = DISCOVERING.replace("web.example", "shop.example");
        assert_eq!(
            desired.under(config(&other)).discovered,
            desired.discovered,
            "until the other source answers"
        );
        assert!(desired.under(config("")).discovered.is_empty());
    }

    #[test]
    fn an_override_of_a_discovered_backend_goes_with_it() {
        let found = [backend("10.0.0.2:80", 9), backend("10.0.0.3:80", 9)];
        let mut desired = discovering(&found);
        with_weight(&mut desired, "10.0.0.2:80", 9);
        with_weight(&mut desired, "10.0.0.1:80", 100);
        let (service, pool) = names();
        assert_eq!(desired.under(config(DISCOVERING)), desired, "a reload leaves it");
        assert_eq!(desired.discovering(&service, &pool, found.to_vec()), desired);
        let left = |next: Desired| {
            next.intents[&service].backends.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(left(desired.discovering(&service, &pool, found[1..].to_vec())), ["10.0.0.1:80"]);
        let heavier = vec![backend("10.0.0.2:80", 10)];
        assert_eq!(
            left(desired.discovering(&service, &pool, heavier)),
            ["10.0.0.1:80"],
            "its source changed it"
        );
    }

    #[test]
    fn a_restored_service_keeps_what_was_discovered_since() {
        let mut before = discovering(&[backend("10.0.0.2:80", 9)]);
        with_weight(&mut before, "10.0.0.2:80", 9);
        let then = before.snapshot("web");
        let (service, pool) = names();
        let now = before.discovering(&service, &pool, vec![backend("10.0.0.3:80", 9)]);
        let restored = now.with(&service, then);
        assert_eq!(restored.discovered, now.discovered);
        assert!(restored.intents[&service].backends.is_empty(), "the override's backend is gone");
        let gone = now.with(&service, Snapshot::default());
        assert!(gone.discovered.is_empty());
    }

    #[test]
    fn a_journal_brings_back_the_last_set_and_its_base_too() {
        let (name, pool) = names();
        let found = vec![backend("10.0.0.2:80", 9), backend("[2001:db8::2]:80", 1)];
        let mut desired = Desired::of(config(DISCOVERING));
        desired.replay(&Change::Discovered { name, pool, backends: found.clone() });
        assert_eq!(desired, discovering(&found));
        let text = serde_json::to_string(&desired).expect("JSON");
        assert_eq!(serde_json::from_str::<Desired>(&text).expect("the same"), desired);
        let old = serde_json::to_value(Desired::of(config(""))).expect("JSON");
        assert!(old.get("discovered").is_none(), "journals of before can be read");
        assert!(serde_json::from_value::<Desired>(old).is_ok());
    }

    #[test]
    fn what_breaks_a_rule_of_the_file_does_not_go_together() {
        assert_eq!(discovering(&[backend("10.0.0.2:80", 9)]).goes_together(), Ok(()));
        let loops = discovering(&[backend("203.0.113.10:80", 9)]);
        let why = loops.goes_together().expect_err("a backend that is a VIP");
        assert!(why.starts_with("LB0404: "), "{why}");
        let misfits = loops.misfits();
        assert_eq!(misfits.len(), 1);
        assert_eq!((&misfits[0].0, &misfits[0].1), (&names().0, &names().1));
        let other_family = discovering(&[backend("[2001:db8::2]:80", 9)]);
        assert!(other_family.goes_together().is_err_and(|why| why.starts_with("LB0304: ")));
    }
}
