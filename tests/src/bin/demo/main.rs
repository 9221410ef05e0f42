//! The main job on real traffic: a canary grows, a server dies, the canary goes bad and is rolled
//! back, the agent is killed, a rollout watches itself. Every figure that is shown was measured in this run.
//!
//! The process that is started stays outside of the lab. It waits for a copy of itself that runs
//! the show, and then looks whether anything is left of it.

mod board;
mod clients;
mod figures;
mod http;
mod outside;
mod report;
mod screen;
mod script;
mod stage;
mod text;
mod wire;

use std::{env, process::ExitCode};

const HELP: &str = "\
Usage: demo [--plain]

Shows lb at work in network namespaces of its own, in little more than a minute: a canary that grows, a server
that dies, a canary that goes bad and is rolled back, an agent that is killed, and a rollout that
watches itself. Needs root.

  --plain  plain lines, as in a pipe, on a terminal too

Exit codes: 0 every promise was kept, 1 one was not, 2 usage.";

fn main() -> ExitCode {
    if env::var_os(outside::MARK).is_some() {
        return outside::report(inside());
    }
    let arguments: Vec<_> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["--plain"] => outside::report(outside::supervise(&arguments)),
        ["-h" | "--help"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("error: the demo does not take {}\n\n{HELP}", arguments.join(" "));
            ExitCode::from(2)
        }
    }
}

/// The show itself; true if every promise was kept.
fn inside() -> anyhow::Result<bool> {
    lb_tests::enter()?;
    let plain = env::args().any(|argument| argument == "--plain");
    script::play(plain)
}
