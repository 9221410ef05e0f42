//! What differs between two states, as paths that people can read.

use crate::api::Change;
use crate::state::Desired;
use crate::state::snapshot::{Values, configured, differences};

/// Every value that differs, by its path.
pub(super) fn changes(before: &Desired, after: &Desired) -> Vec<Change> {
    between(&values(before), &values(after))
}

/// The same of two sets of values.
pub(super) fn between(before: &Values, after: &Values) -> Vec<Change> {
    let change =
        |one: crate::state::snapshot::Difference| Change { path: one.path, from: one.from, to: one.to };
    differences(before, after).into_iter().map(change).collect()
}

fn values(desired: &Desired) -> Values {
    let under = |owner: String| move |(path, value)| (format!("{owner}.{path}"), value);
    let mut values: Values =
        configured(&desired.config.dataplane).into_iter().map(under("dataplane".to_owned())).collect();
    for service in &desired.config.services {
        let of_service = desired.snapshot(service.name.as_str()).values();
        values.extend(of_service.into_iter().map(under(format!("service.{}", service.name))));
    }
    values
}
