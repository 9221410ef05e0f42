//! A rollout that is followed: on a terminal, in a pipe, by a program.

use std::process::{Command, Stdio};

use lb_userspace::api::{Observation, RolloutStatus};
use lb_userspace::rollout::engine::Phase;

use crate::agent::rollout;
use crate::lab::{Lab, Ran};

/// A rollout at 1 %, at 5 %, and at its end.
fn lab(end: Phase) -> Lab {
    let lab = Lab::new();
    let at = |phase, step, percent, reason: &str| RolloutStatus {
        step,
        desired_percent: percent,
        reason: reason.to_owned(),
        left_seconds: Some(59.0),
        ..rollout("checkout", phase)
    };
    let mut second = at(Phase::Holding, 2, 5.0, "1 % passed");
    second.observed.connections = Observation::of(50, 1_000);
    let looks = [at(Phase::Holding, 1, 1.0, "the pool is ready"), second, at(end, 4, 100.0, "it is over")];
    lab.agent.rollouts.lock().unwrap().extend(looks);
    lab
}

const WATCH: [&str; 4] = ["rollout", "status", "checkout", "--watch"];

/// The same on a terminal of 100 columns, which util-linux' `script` makes.
fn on_a_terminal(lab: &Lab) -> Ran {
    let lbctl = lab.lbctl(&WATCH);
    let words: Vec<String> = std::iter::once(lbctl.get_program())
        .chain(lbctl.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &words.join(" "), "/dev/null"]);
    script.stdin(Stdio::null()).env("COLUMNS", "100").env("TERM", "xterm").env("NO_COLOR", "1");
    script.envs(lbctl.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.output().unwrap().into()
}

#[test]
fn on_a_terminal_it_is_drawn_in_place() {
    let lab = lab(Phase::Promoted);
    let ran = on_a_terminal(&lab);
    assert_eq!(ran.exit, 0, "{ran:?}");
    let pictures: Vec<&str> = ran.out.split("\u{1b}[J").collect();
    assert_eq!(pictures.len(), 3, "three looks, drawn over each other: {ran:?}");
    for (picture, shown) in
        pictures.iter().zip(["step 1 of 4, 1 %, 59s left", "step 2 of 4, 5 %", "promoted"])
    {
        assert!(picture.contains(shown), "{picture}");
    }
    // Each goes up by as many lines as the one before had.
    for pair in pictures.windows(2) {
        let (lines, up) =
            (pair[0].rsplit_once("\u{1b}[").map_or(pair[0], |(text, _)| text).lines().count(), pair[0]);
        assert!(up.ends_with(&format!("\u{1b}[{lines}A")), "{lines} lines: {up:?}");
    }
    assert!(pictures[1].contains("new connections   5 % (3.81 to 6.53) of 1000"), "{}", pictures[1]);
    assert!(pictures[1].contains("[==>"), "a bar: {}", pictures[1]);
}

#[test]
fn in_a_pipe_it_is_a_line_for_each_thing_that_is_new() {
    let ran = lab(Phase::RolledBack).run(&WATCH);
    assert_eq!(ran.exit, 3, "{ran:?}");
    let expected = "\
checkout: v41 -> v42   step 1 of 4, 1 %, 59s left: the pool is ready
checkout: v41 -> v42   step 2 of 4, 5 %, 59s left, seen 5 % (3.81 to 6.53) of 1000: 1 % passed
checkout: v41 -> v42   rolled back, 59s left: it is over
";
    assert_eq!(ran.out, expected);
}

#[test]
fn for_a_program_it_is_a_line_of_json_each() {
    let lab = lab(Phase::Promoted);
    let ran = lab.run(&[&WATCH[..], &["-o", "json"]].concat());
    assert_eq!(ran.exit, 0, "{ran:?}");
    let phases: Vec<String> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["phase"].to_string())
        .collect();
    assert_eq!(phases, ["\"holding\"", "\"holding\"", "\"promoted\""]);
}

#[test]
fn whoever_is_late_is_told_so() {
    let lab = Lab::new();
    lab.agent.rollouts.lock().unwrap().push_back(rollout("checkout", Phase::Holding));
    let ran = lab.run(&[&WATCH[..], &["--timeout", "1s"]].concat());
    assert_eq!(ran.exit, 4, "{ran:?}");
    assert!(ran.err.contains("LB0611") && ran.err.contains("lbctl rollout abort"), "{ran:?}");
}
