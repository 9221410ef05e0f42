//! The verbs, a file each.

mod apply;
mod capture;
mod completions;
mod detach;
mod diff;
mod doctor;
mod explain;
mod fault;
mod get;
mod help;
mod history;
mod man;
mod rollback;
mod rollout;
mod set;
mod status;
mod sysdump;
mod top;
mod trace;
mod undo;
mod validate;

use clap::Subcommand;

use super::Context;
use super::failure::{Exit, Failure};

/// How a verb ends.
type Outcome = Result<Exit, Failure>;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    Validate(validate::Validate),
    Apply(apply::Apply),
    Status(status::Status),
    #[command(subcommand)]
    Get(get::Get),
    #[command(subcommand)]
    Set(set::Set),
    Rollback(rollback::Rollback),
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    History(history::History),
    Diff(diff::Diff),
    Undo(undo::Undo),
    Explain(explain::Explain),
    Top(top::Top),
    Doctor(doctor::Doctor),
    Sysdump(sysdump::Sysdump),
    Trace(trace::Trace),
    Capture(capture::Capture),
    #[command(subcommand)]
    Fault(fault::Fault),
    Detach(detach::Detach),
    Completions(completions::Completions),
    Man(man::Man),
    Help(help::Help),
}

impl Verb {
    /// What it does, for the sentence that says it failed: “cannot …”.
    pub fn doing(&self) -> String {
        match self {
            Self::Validate(verb) => format!("check {}", verb.file),
            Self::Apply(verb) => format!("apply {}", verb.file),
            Self::Status(_) => "show the status".to_owned(),
            Self::Get(verb) => verb.doing(),
            Self::Set(verb) => verb.doing(),
            Self::Rollback(verb) => format!("roll back {}", verb.service),
            Self::Rollout(verb) => verb.doing(),
            Self::History(verb) => format!("show the history of {}", verb.service),
            Self::Diff(verb) => format!("compare revisions of {}", verb.service),
            Self::Undo(verb) => format!("undo a change of {}", verb.service),
            Self::Explain(verb) => format!("explain {} -> {}", verb.from, verb.to),
            Self::Top(_) => "show it live".to_owned(),
            Self::Doctor(_) => "examine this host".to_owned(),
            Self::Sysdump(_) => "collect for a bug report".to_owned(),
            Self::Trace(_) => "trace packets".to_owned(),
            Self::Capture(verb) => format!("capture packets into {}", verb.file),
            Self::Fault(verb) => verb.doing(),
            Self::Detach(_) => "detach".to_owned(),
            Self::Completions(_) => "write the completions".to_owned(),
            Self::Man(_) => "write the manual".to_owned(),
            Self::Help(_) => "help".to_owned(),
        }
    }

    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        match self {
            Self::Validate(verb) => verb.run(context),
            Self::Apply(verb) => verb.run(context).await,
            Self::Status(verb) => verb.run(context).await,
            Self::Get(verb) => verb.run(context).await,
            Self::Set(verb) => verb.run(context).await,
            Self::Rollback(verb) => verb.run(context).await,
            Self::Rollout(verb) => verb.run(context).await,
            Self::History(verb) => verb.run(context).await,
            Self::Diff(verb) => verb.run(context).await,
            Self::Undo(verb) => verb.run(context).await,
            Self::Explain(verb) => verb.run(context).await,
            Self::Top(verb) => verb.run(context).await,
            Self::Doctor(verb) => verb.run(context).await,
            Self::Sysdump(verb) => verb.run(context).await,
            Self::Trace(verb) => verb.run(context).await,
            Self::Capture(verb) => verb.run(context).await,
            Self::Fault(verb) => verb.run(context).await,
            Self::Detach(verb) => verb.run(context).await,
            Self::Completions(verb) => verb.run(context),
            Self::Man(verb) => verb.run(context),
            Self::Help(verb) => verb.run(context),
        }
    }
}

/// A whole number, with a message for people.
fn whole<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number: u64 = text.parse().map_err(|_| "expected a whole number".to_owned())?;
    number.try_into().map_err(|_| "it is too large".to_owned())
}

/// The text of a file, or of standard input for `-`; with the name that messages call it.
fn read(file: &str) -> Result<(String, String), Failure> {
    let (text, name) = match file {
        "-" => (std::io::read_to_string(std::io::stdin()), "standard input"),
        path => (std::fs::read_to_string(path), path),
    };
    match text {
        Ok(text) => Ok((text, name.to_owned())),
        Err(error) => Err(Failure::file("read", name, &error)),
    }
}
