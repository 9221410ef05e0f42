//! `lbctl doctor`

use std::io;
use std::path::PathBuf;

use anstyle::{AnsiColor, Style};
use clap::Args;

use super::Outcome;
use crate::api::Severity;
use crate::cli::Context;
use crate::cli::failure::Exit;
use crate::cli::human::counted;
use crate::cli::screen::{Format, Screen};
use crate::cli::table::{Table, Tone, cells, column};
use crate::doctor::{self, Check, Report};

/// Checks the host, with or without an agent: what was found, why it matters, and the command that mends it; exits with 3 if
/// something does not work.
#[derive(Debug, Args)]
#[command(after_help = "\
It looks at the network namespace that it is called in, asks neighbours and backends, and changes nothing. As root it sees most.")]
pub(in crate::cli) struct Doctor {
    /// The configuration: the same as --config.
    #[arg(short = 'c', id = "configuration", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Exits with 3 for warnings as well.
    #[arg(long)]
    strict: bool,
}

impl Doctor {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let places = doctor::Places {
            config: self.config.unwrap_or_else(|| context.places.config.clone()),
            socket: context.places.socket.clone(),
            pins: context.places.pin_dir.clone(),
        };
        let report = doctor::judge(&doctor::collect(&places).await);
        show(&report, &mut context.screen)?;
        let warned = report.checks.iter().any(|check| check.outcome == doctor::Outcome::Warning);
        Ok(if report.wrong || (self.strict && warned) { Exit::Degraded } else { Exit::Done })
    }
}

fn show(report: &Report, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(report);
    }
    let mut table = Table::new([
        column("#").right(),
        column("CHECK"),
        column("CODE").if_room(1),
        column("STATE"),
        column("FOUND").text(),
    ]);
    for check in &report.checks {
        let found: Vec<String> = check.found.iter().map(words).collect();
        let state = state(check.outcome);
        table.row("", cells![check.number, &check.title, &check.code, state, found.join("\n")]);
    }
    screen.table(&table, "")?;
    let amiss = |check: &&Check| matches!(check.outcome, doctor::Outcome::Warning | doctor::Outcome::Error);
    for check in report.checks.iter().filter(amiss) {
        explain(check, screen)?;
    }
    let count = |outcome| report.checks.iter().filter(|check| check.outcome == outcome).count() as u64;
    let (errors, warnings) = (count(doctor::Outcome::Error), count(doctor::Outcome::Warning));
    screen.say(&match (errors, warnings) {
        (0, 0) => "\nnothing is amiss\n".to_owned(),
        _ => format!(
            "\n{}, {}; `lbctl help CODE` says more\n",
            counted(errors, "error"),
            counted(warnings, "warning")
        ),
    })
}

fn state(outcome: doctor::Outcome) -> crate::cli::table::Cell {
    match outcome {
        doctor::Outcome::Ok => Tone::Good.cell("ok"),
        doctor::Outcome::Skipped => Tone::Faint.cell("skipped"),
        doctor::Outcome::Warning => Tone::Doubtful.cell("warning"),
        doctor::Outcome::Error => Tone::Bad.cell("error"),
    }
}

/// Below the table, where a command can stand on a line of its own and be copied.
fn explain(check: &Check, screen: &mut Screen) -> io::Result<()> {
    let bold = Style::new().bold();
    for found in check.found.iter().filter(|found| found.severity != Severity::Info) {
        let (word, colour) = match found.severity {
            Severity::Error => ("error", AnsiColor::Red),
            Severity::Warning | Severity::Info => ("warning", AnsiColor::Yellow),
        };
        let style = bold.fg_color(Some(colour.into()));
        let code = &check.code;
        screen.say(&format!("\n{style}{word}[{code}]{style:#}{bold}: {}{bold:#}\n", words(found)))?;
        screen.say(&format!("  {bold}why:{bold:#}  {}\n", check.why))?;
        if let Some(remedy) = &found.remedy {
            screen.say(&format!("  {bold}mend:{bold:#} {remedy}\n"))?;
        }
    }
    Ok(())
}

fn words(found: &doctor::Found) -> String {
    match found.subject.as_str() {
        "" => found.message.clone(),
        subject => format!("{subject}: {}", found.message),
    }
}
