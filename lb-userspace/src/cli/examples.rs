//! Examples for `--help`, a few for each verb.

use clap::Command;

/// Verb, and what people use it for.
const EXAMPLES: &[(&str, &[&str])] = &[
    ("validate", &["lbctl validate /etc/lb/lb.toml", "lbctl validate -o json /etc/lb/lb.toml"]),
    (
        "apply",
        &[
            "lbctl apply -f /etc/lb/lb.toml --dry-run",
            "lbctl apply -f /etc/lb/lb.toml --expect-revision 17 --reason 'add v42'",
        ],
    ),
    (
        "status",
        &[
            "lbctl status",
            "lbctl status --wait --timeout 2m",
            "lbctl status --wait=settled --timeout 20m",
            "lbctl status -o json",
        ],
    ),
    ("get", &["lbctl get backends checkout", "lbctl get events -w"]),
    ("get services", &["lbctl get services", "lbctl get services -w -o wide"]),
    ("get backends", &["lbctl get backends checkout", "lbctl get backends -w -o json"]),
    ("get flows", &["lbctl get flows checkout --limit 20", "lbctl get flows -w"]),
    ("get events", &["lbctl get events checkout -w", "lbctl get events --after 1763697600000000 -o json"]),
    ("set", &["lbctl set split checkout 10", "lbctl set state checkout/10.0.1.11 drain"]),
    (
        "set weight",
        &[
            "lbctl set weight checkout/v41/10.0.1.11:8443 50",
            "lbctl set weight checkout/10.0.1.11 0 --reason disk",
        ],
    ),
    ("set split", &["lbctl set split checkout 10", "lbctl set split checkout 0.5"]),
    (
        "set state",
        &[
            "lbctl set state checkout/10.0.1.11 drain --deadline 10m --then reset",
            "lbctl set state checkout/10.0.1.11 ready",
        ],
    ),
    ("set health", &["lbctl set health checkout/10.0.1.11 down", "lbctl set health checkout/10.0.1.11 auto"]),
    ("rollback", &["lbctl rollback checkout", "lbctl rollback checkout --flows reset --reason '5xx'"]),
    ("rollout", &["lbctl rollout start checkout --to v42", "lbctl rollout status checkout --watch"]),
    (
        "rollout start",
        &[
            "lbctl rollout start checkout --to v42",
            "lbctl rollout start checkout --to v42 --steps 1,10,50 --hold 10m",
        ],
    ),
    (
        "rollout status",
        &["lbctl rollout status checkout", "lbctl rollout status checkout --watch --timeout 1h"],
    ),
    ("rollout pause", &["lbctl rollout pause checkout"]),
    ("rollout resume", &["lbctl rollout resume checkout"]),
    ("rollout promote", &["lbctl rollout promote checkout", "lbctl rollout promote checkout --full --force"]),
    ("rollout abort", &["lbctl rollout abort checkout"]),
    ("rollout retry", &["lbctl rollout retry checkout"]),
    ("rollout approve", &["lbctl rollout approve checkout"]),
    ("history", &["lbctl history checkout", "lbctl history checkout -o wide"]),
    ("diff", &["lbctl diff checkout 15 17"]),
    ("undo", &["lbctl undo checkout", "lbctl undo checkout --to 15 --reason '5xx'"]),
    (
        "explain",
        &[
            "lbctl explain --from 198.51.100.7:40000 --to 203.0.113.10:443",
            "lbctl explain --from 198.51.100.7:40000 --to 203.0.113.10:53 --protocol udp -o wide",
        ],
    ),
    ("fault", &["lbctl fault add checkout --reset 5 --pool v42 --for 1m", "lbctl fault list"]),
    (
        "fault add",
        &[
            "lbctl fault add checkout --reset 5 --pool v42 --for 1m",
            "lbctl fault add checkout --drop 100 --backend 10.0.1.11:8443 --from 10.1.0.0/16 --for 30s",
        ],
    ),
    ("fault list", &["lbctl fault list"]),
    ("fault clear", &["lbctl fault clear", "lbctl fault clear 2"]),
    ("top", &["lbctl top", "lbctl top checkout -d 500ms"]),
    (
        "doctor",
        &["lbctl doctor", "lbctl doctor -c ./lb.toml", "nsenter --net=/run/netns/edge lbctl doctor -o json"],
    ),
    ("sysdump", &["lbctl sysdump", "lbctl sysdump -f /tmp/lb.tar.gz"]),
    ("detach", &["lbctl detach"]),
    (
        "completions",
        &["lbctl completions bash > /etc/bash_completion.d/lbctl", "source <(lbctl completions zsh)"],
    ),
    ("man", &["lbctl man | man -l -", "lbctl man --to /usr/local/share/man/man1"]),
    ("help", &["lbctl help LB0503", "lbctl help backend_down", "lbctl help set split"]),
];

/// With the examples of each verb at the end of its help.
pub(super) fn add(mut command: Command) -> Command {
    for (path, lines) in EXAMPLES {
        let mut at = Some(&mut command);
        for word in path.split(' ') {
            at = at.and_then(|command| command.find_subcommand_mut(word));
        }
        let Some(at) = at else { continue };
        let before = at.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
        let text = format!("{before}Examples:\n  {}", lines.join("\n  "));
        *at = std::mem::take(at).after_help(text);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::super::{command, understands};
    use super::*;

    /// Every verb, with what its help ends with.
    fn verbs(command: &Command, path: &str, found: &mut Vec<(String, String)>) {
        for verb in command.get_subcommands() {
            let path = format!("{path} {}", verb.get_name()).trim().to_owned();
            verbs(verb, &path, found);
            found.push((path, verb.get_after_help().map(ToString::to_string).unwrap_or_default()));
        }
    }

    #[test]
    fn every_verb_has_examples_and_understands_them() {
        let mut found = Vec::new();
        verbs(&command(), "", &mut found);
        for (path, help) in &found {
            let (_, lines) = help.split_once("Examples:").unwrap_or_else(|| panic!("{path} has no examples"));
            for line in lines.lines().filter(|line| line.contains("lbctl ")) {
                let words = line.split("lbctl ").nth(1).unwrap_or_default();
                let words = words.split(['|', '>', ')', '#', '&', ';']).next().unwrap_or_default();
                understands(words).unwrap_or_else(|why| panic!("{line}: {why}"));
            }
        }
        let unknown: Vec<_> =
            EXAMPLES.iter().filter(|(path, _)| !found.iter().any(|(verb, _)| verb == path)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
