//! What was set by hand, as it is shown.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use crate::api::{BackendPath, KeepOrReset, Override};
use crate::config::{self, Service};
use crate::state::{Author, Overrides};

/// What differs from the configuration, backend by backend.
pub(super) fn overrides(service: &Service, backends: &BTreeMap<SocketAddr, Overrides>) -> Vec<Override> {
    let mut list = Vec::new();
    for (address, held) in backends {
        let pool = pool_of(service, *address);
        let mut add = |what: &str, configured: String, now: String, since: &str, by: &Author| {
            list.push(Override {
                path: format!("pool.{pool}.backend.{}.{what}", BackendPath::name_of(*address)),
                configured,
                now,
                since: since.to_owned(),
                actor: by.name.clone(),
            });
        };
        if let Some(weight) = &held.weight {
            add(
                "weight",
                weight.configured.map(|w| w.to_string()).unwrap_or_default(),
                weight.value.to_string(),
                &weight.since,
                &weight.author,
            );
        }
        if let Some(state) = &held.state {
            add(
                "state",
                state.configured.map(|s| s.to_string()).unwrap_or_default(),
                state.value.to_string(),
                &state.since,
                &state.author,
            );
        }
        if let (Some(deadline), Some(state)) = (&held.deadline, &held.state) {
            let then = if deadline.reset { "reset" } else { "keep" };
            let words = format!("{:.0}, then {then}", deadline.at);
            add("drain_deadline", "none".to_owned(), words, &state.since, &state.author);
        }
        if let Some(health) = &held.health {
            let now = if health.value { "up" } else { "down" };
            add("health", "as checked".to_owned(), now.to_owned(), &health.since, &health.author);
        }
    }
    list
}

/// What was set of a backend, in words, with since when and by whom; and what `lbctl set` takes it back, `{}` being the
/// backend.
pub(super) fn by_hand(held: &Overrides) -> Vec<(String, &String, &Author, String)> {
    let mut list = Vec::new();
    if let Some(weight) = &held.weight {
        let configured = weight.configured.unwrap_or_default();
        let words = format!("its weight is {}, not {configured} as configured", weight.value);
        list.push((words, &weight.since, &weight.author, format!("weight {{}} {configured}")));
    }
    if let Some(state) = &held.state {
        let words = match (&held.deadline, state.value) {
            (Some(deadline), _) => {
                let then = if deadline.reset { KeepOrReset::Reset } else { KeepOrReset::Keep };
                format!("it drains until {:.0}, then {then}", deadline.at)
            }
            (None, config::AdminState::Drain) => "it drains".to_owned(),
            (None, value) => format!("its state is {value}"),
        };
        let configured = state.configured.unwrap_or(config::AdminState::Ready);
        list.push((words, &state.since, &state.author, format!("state {{}} {configured}")));
    }
    if let Some(health) = &held.health {
        let words = format!("its health is forced {}", if health.value { "up" } else { "down" });
        list.push((words, &health.since, &health.author, "health {} auto".to_owned()));
    }
    list
}

/// The pool that has a backend.
pub(super) fn pool_of(service: &Service, address: SocketAddr) -> &str {
    let pool = service.pools.iter().find(|pool| pool.backends.iter().any(|b| b.address == address));
    pool.map_or("?", |pool| pool.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::Override as Set;

    /// What the tests of `lbctl` show.
    const SHOWN: &str = include_str!("../../tests/cli/expected/status_json.txt");

    #[test]
    fn what_is_set_by_hand_is_told_as_the_tests_of_the_command_line_show_it() {
        let file = "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"checkout\"\nvip = \"203.0.113.10\"\n\
                    port = 443\n[[service.pool]]\nname = \"v41\"\n[[service.pool.backend]]\naddress = \"10.0.1.12:8443\"\n";
        let config = config::parse(file, "test").expect("a good configuration").config;
        let author = Author { name: "alice".to_owned(), pid: None };
        let since = "2026-11-21T03:58:00.5Z".to_owned();
        let weight = Set { value: 50, configured: Some(100), since: since.clone(), author: author.clone() };
        let mut held = Overrides { weight: Some(weight), ..Overrides::default() };
        let address = "10.0.1.12:8443".parse().expect("an address");
        let list = overrides(&config.services[0], &BTreeMap::from([(address, held.clone())]));
        let [weight] = &list[..] else { panic!("{list:?}") };
        assert!(SHOWN.contains(&format!("\"path\": \"{}\"", weight.path)), "{}", weight.path);
        let (words, _, _, back) = &by_hand(&held)[0];
        assert!(SHOWN.contains(&format!("{words}, by alice since 2026-11-21T03:58:00Z")), "{words}");
        let back = back.replace("{}", "checkout/v41/10.0.1.12:8443");
        assert!(SHOWN.contains(&format!("`lbctl set {back}` takes it back")), "{back}");

        // A drain with its deadline is one thing.
        let state = Set {
            value: config::AdminState::Drain,
            configured: None,
            since: since.clone(),
            author: author.clone(),
        };
        let at = "2026-11-30T02:16:09.5Z".parse().expect("a time");
        let deadline = Some(crate::state::Deadline { at, reset: true });
        held = Overrides { state: Some(state), deadline, ..Overrides::default() };
        held.health = Some(Set { value: false, configured: None, since, author });
        let words: Vec<String> = by_hand(&held).into_iter().map(|(words, ..)| words).collect();
        assert_eq!(words, ["it drains until 2026-11-30T02:16:09Z, then reset", "its health is forced down"]);
    }
}
