//! What differs between two states, as paths that people can read.

use crate::api::Change;
use crate::state::Desired;
use crate::state::snapshot::{Values, configured, differences};

/// Every value that differs, by its path. What is the same as a whole is not taken apart.
pub(super) fn changes(before: &Desired, after: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    if before.config.dataplane != after.config.dataplane {
        let values = |desired: &Desired| under("dataplane", configured(&desired.config.dataplane));
        changes.extend(between(&values(before), &values(after)));
    }
    for name in before.differing(after) {
        let owner = format!("service.{name}");
        let values = |desired: &Desired| under(&owner, desired.snapshot(name.as_str()).values());
        changes.extend(between(&values(before), &values(after)));
    }
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    changes
}

/// The same of two sets of values.
pub(super) fn between(before: &Values, after: &Values) -> Vec<Change> {
    let change =
        |one: crate::state::snapshot::Difference| Change { path: one.path, from: one.from, to: one.to };
    differences(before, after).into_iter().map(change).collect()
}

fn under(owner: &str, values: Values) -> Values {
    values.into_iter().map(|(path, value)| (format!("{owner}.{path}"), value)).collect()
}
