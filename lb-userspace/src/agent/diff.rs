//! What differs between two states, as paths that people can read.

use crate::api::Change;
use crate::state::Desired;
use crate::state::snapshot::{Difference, Values, configured, differences};
use crate::web;

/// Every value that differs from what was there before, by its path. What is the same as a whole is not taken apart.
pub(super) fn changes(before: &Desired, after: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    if before.config.dataplane != after.config.dataplane {
        let values = |desired: &Desired| under("dataplane", configured(&desired.config.dataplane));
        changes.extend(between(&values(before), &values(after)));
    }
    for name in after.changed_since(before) {
        let owner = format!("service.{name}");
        let values = |desired: &Desired| under(&owner, desired.snapshot(name.as_str()).values());
        changes.extend(between(&values(before), &values(after)));
    }
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    changes
}

/// The same of two sets of values.
pub(super) fn between(before: &Values, after: &Values) -> Vec<Change> {
    differences(before, after).into_iter().map(told).collect()
}

/// A difference as it may be told: of addresses of the web without what may be a secret in them.
fn told(Difference { path, from, to }: Difference) -> Change {
    let is_url = matches!(path.rsplit('.').next(), Some("url" | "prometheus"));
    if !is_url {
        return Change { path, from, to };
    }
    let [from, mut to] = [from, to].map(|url| url.map(|url| web::shown(&url)));
    if let Some(url) = to.as_mut().filter(|url| from.as_ref() == Some(*url)) {
        *url += " (with another query)";
    }
    Change { path, from, to }
}

fn under(owner: &str, values: Values) -> Values {
    values.into_iter().map(|(path, value)| (format!("{owner}.{path}"), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_told_without_its_secrets_and_still_differs() {
        let values =
            |url: &str| Values::from([("service.web.rollout.step.0.url".to_owned(), url.to_owned())]);
        let differ = |a: &str, b: &str| {
            let changes = between(&values(a), &values(b));
            (changes[0].from.clone().unwrap(), changes[0].to.clone().unwrap())
        };
        let (from, to) = differ("https://a.example/go?token=old", "https://b.example/go?token=new");
        assert_eq!((from.as_str(), to.as_str()), ("https://a.example/go", "https://b.example/go"));
        let (from, to) = differ("https://a.example/go?token=old", "https://a.example/go?token=new");
        assert_eq!(
            (from.as_str(), to.as_str()),
            ("https://a.example/go", "https://a.example/go (with another query)")
        );
    }
}
