//! What holds of a service at one time, and what differs between two of them.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Intent, Overrides};
use crate::config::{ContentHash, Service};

/// All that holds of a service: its configuration and what was decided at run time. Both are absent where there is no such
/// service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// As configured.
    pub service: Option<Service>,
    /// What was decided at run time.
    pub intent: Option<Intent>,
}

/// A value that is not the same in two snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Which, as in [`Snapshot::values`].
    pub path: String,
    /// What it was; `None`: it was not there.
    pub from: Option<String>,
    /// What it is; `None`: it is gone.
    pub to: Option<String>,
}

/// Values by their paths.
pub type Values = BTreeMap<String, String>;

impl Snapshot {
    /// Every value by its path: `pool.v41.backend.10.0.1.11:8443.weight` as configured, the same with `.override` as it was set
    /// at run time, `split`, `stable`, `canary`. Who set it and when is not among them.
    #[must_use]
    pub fn values(&self) -> Values {
        values(self.service.as_ref(), self.intent.as_ref())
    }

    /// SHA-256 of the values: two snapshots have the same one if and only if nothing differs between them.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        hash_of(&self.values())
    }
}

/// As [`Snapshot::hash`], of values that are known.
pub(super) fn hash_of(values: &Values) -> ContentHash {
    // A map of text has a form in JSON, always the same one: its keys are sorted.
    ContentHash(Sha256::digest(serde_json::to_vec(values).unwrap_or_default()).into())
}

/// As [`Snapshot::values`], of its parts.
pub(super) fn values(service: Option<&Service>, intent: Option<&Intent>) -> Values {
    let mut values = service.map(configured).unwrap_or_default();
    values.extend(intent.map(|intent| decided(service, intent)).unwrap_or_default());
    values
}

/// Those among the values that were decided at run time.
pub(super) fn decided(service: Option<&Service>, intent: &Intent) -> Values {
    let mut values = Values::new();
    let mut add = |path: &str, value: String| drop(values.insert(path.to_owned(), value));
    add("stable", intent.stable.as_str().to_owned());
    if let Some(canary) = &intent.canary {
        add("canary", canary.as_str().to_owned());
    }
    add("split", format!("{} %", intent.split));
    add("salt", intent.salt.to_string());
    for (address, overrides) in &intent.backends {
        let pools = service.iter().flat_map(|service| &service.pools);
        let mut of = pools.filter(|pool| pool.backends.iter().any(|backend| backend.address == *address));
        let owner = of.next().map(|pool| format!("pool.{}.", pool.name.as_str())).unwrap_or_default();
        for (what, value) in overridden(overrides) {
            add(&format!("{owner}backend.{address}.{what}.override"), value);
        }
    }
    values
}

fn overridden(overrides: &Overrides) -> impl Iterator<Item = (&'static str, String)> {
    let weight = overrides.weight.as_ref().map(|weight| ("weight", weight.value.to_string()));
    let state = overrides.state.as_ref().map(|state| ("state", state.value.to_string()));
    let word = |up| if up { "up" } else { "down" };
    let health = overrides.health.as_ref().map(|health| ("health", word(health.value).to_owned()));
    [weight, state, health].into_iter().flatten()
}

/// Every value that differs, by its path.
#[must_use]
pub fn differences(before: &Values, after: &Values) -> Vec<Difference> {
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let differs = |path: &String| {
        let (from, to) = (before.get(path).cloned(), after.get(path).cloned());
        (from != to).then(|| Difference { path: path.clone(), from, to })
    };
    paths.into_iter().filter_map(differs).collect()
}

/// Every value of a part of the configuration, by its path.
pub fn configured(part: &impl serde::Serialize) -> Values {
    let mut values = Values::new();
    // Every part of a configuration has a form in JSON; one that had none would have no values.
    if let Ok(json) = serde_json::to_value(part) {
        flatten(String::new(), &json, &mut values);
    }
    values
}

fn flatten(path: String, value: &Value, into: &mut Values) {
    let under =
        |name: &dyn fmt::Display| if path.is_empty() { name.to_string() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| flatten(under(name), value, into)),
        Value::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                // Services and pools go by their names, backends by their addresses: a list that is sorted anew is the same.
                let name = ["name", "address"].iter().find_map(|key| element.get(key)?.as_str());
                match name {
                    Some(name) => flatten(under(&name), element, into),
                    None => flatten(under(&i), element, into),
                }
            }
        }
        // The key that connection ids are encrypted with: that it is another one is seen, not which.
        Value::String(text) if path.contains("quic.config.") && path.ends_with(".key") => {
            let digest = Sha256::digest(text);
            let digits: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            drop(into.insert(path, format!("secret (SHA-256 {digits}…)")));
        }
        Value::String(text) => drop(into.insert(path, text.clone())),
        other => drop(into.insert(path, other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};
    use crate::state::{Author, Desired, Override};

    fn config(pools: &str) -> Config {
        let head = "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n";
        config::parse(&format!("{head}{pools}"), "test").expect("a good configuration").config
    }

    const A: &str = "[[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\n";
    const B: &str =
        "[[service.pool]]\nname = \"b\"\n[[service.pool.backend]]\naddress = \"10.0.1.1:80\"\nweight = 7\n";

    fn overridden(value: u16, since: &str) -> Snapshot {
        let mut snapshot = Desired::of(config(&format!("{A}{B}"))).snapshot("web");
        let weight =
            Override { value, configured: Some(100), since: since.to_owned(), author: Author::agent("test") };
        let intent = snapshot.intent.as_mut().expect("an intent");
        intent.backends.entry("10.0.0.1:80".parse().expect("an address")).or_default().weight = Some(weight);
        snapshot
    }

    fn shown(before: &Snapshot, after: &Snapshot) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
        differences(&before.values(), &after.values())
            .iter()
            .map(|one| format!("{}: {} -> {}", one.path, text(&one.from), text(&one.to)))
            .collect()
    }

    #[test]
    fn a_difference_names_configured_values_overrides_and_the_split() {
        let plain = Desired::of(config(&format!("{A}{B}"))).snapshot("web");
        let mut after = overridden(7, "today");
        after.intent.as_mut().expect("an intent").split = 12.5;
        after.service.as_mut().expect("a service").pools[1].backends[0].weight = config::Weight(9);
        assert_eq!(
            shown(&plain, &after),
            [
                "pool.a.backend.10.0.0.1:80.weight.override: - -> 7",
                "pool.b.backend.10.0.1.1:80.weight: 7 -> 9",
                "split: 0 % -> 12.5 %",
            ]
        );
    }

    #[test]
    fn a_service_that_comes_or_goes_differs_in_all_its_values() {
        let there = Desired::of(config(A)).snapshot("web");
        let absent = Snapshot::default();
        let (came, went) = (shown(&absent, &there), shown(&there, &absent));
        assert_eq!((came.len(), went.len()), (there.values().len(), there.values().len()));
        assert!(came.contains(&"vip: - -> 203.0.113.10".to_owned()), "{came:#?}");
        assert!(went.contains(&"vip: 203.0.113.10 -> -".to_owned()), "{went:#?}");
    }

    #[test]
    fn the_key_of_connection_ids_is_not_shown() {
        let with = |digit: char| {
            let key = digit.to_string().repeat(32);
            let quic = format!(
                "protocol = \"udp\"\n[service.quic]\n[[service.quic.config]]\nid = 0\nserver_id_length = 1\nnonce_length = 7\nkey = \"{key}\"\n"
            );
            Desired::of(config(&format!("{quic}{A}server_ids = [\"01\"]\n"))).snapshot("web")
        };
        let shown = shown(&with('a'), &with('b'));
        assert!(
            matches!(&shown[..], [one] if one.starts_with("quic.config.0.key: secret (SHA-256 ")),
            "{shown:?}"
        );
        assert!(!shown[0].contains("aaaa") && !shown[0].contains("bbbb"), "{shown:?}");
    }

    #[test]
    fn the_hash_is_the_same_if_and_only_if_nothing_differs() {
        let snapshots = [
            Snapshot::default(),
            Desired::of(config(A)).snapshot("web"),
            Desired::of(config(&format!("{A}{B}"))).snapshot("web"),
            Desired::of(config(&format!("{B}{A}"))).snapshot("web"),
            overridden(7, "today"),
            overridden(7, "tomorrow"),
            overridden(8, "today"),
        ];
        for one in &snapshots {
            for other in &snapshots {
                assert_eq!(one.hash() == other.hash(), shown(one, other).is_empty(), "{one:?} {other:?}");
            }
        }
        assert_eq!(snapshots[4].hash(), snapshots[5].hash(), "who set it and when is not what holds");
    }
}
