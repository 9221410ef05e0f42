//! What differs between two configurations, as paths that people can read.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::Change;
use crate::config::Config;

/// Every value that differs, by its path.
pub(super) fn changes(before: &Config, after: &Config) -> Vec<Change> {
    let (before, after) = (flat(before), flat(after));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let change = |path: &String| {
        let (from, to) = (before.get(path).cloned(), after.get(path).cloned());
        (from != to).then(|| Change { path: path.clone(), from, to })
    };
    paths.into_iter().filter_map(change).collect()
}

fn flat(config: &Config) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    // A configuration has a form in JSON; if it had none, nothing would differ.
    if let Ok(json) = serde_json::to_value(config) {
        flatten(String::new(), &json, &mut values);
    }
    values
}

fn flatten(path: String, value: &Value, into: &mut BTreeMap<String, String>) {
    let under = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| flatten(under(name), value, into)),
        Value::Array(elements) => {
            for (i, element) in elements.iter().enumerate() {
                // Services and pools go by their names, backends by their addresses: a list that is sorted anew is the same.
                let name = ["name", "address"].iter().find_map(|key| element.get(key)?.as_str());
                flatten(under(name.unwrap_or(&i.to_string())), element, into);
            }
        }
        Value::String(text) => drop(into.insert(path, text.clone())),
        other => drop(into.insert(path, other.to_string())),
    }
}
