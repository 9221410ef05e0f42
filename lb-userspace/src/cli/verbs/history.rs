//! `lbctl history`

use clap::Args;

use super::{Outcome, whole};
use crate::api::Change;
use crate::cli::Context;
use crate::cli::changes::in_words;
use crate::cli::failure::Exit;
use crate::cli::human::second;
use crate::cli::screen::Format;
use crate::cli::table::{Table, cells, column};

/// Shows a service's revisions, the newest first.
#[derive(Debug, Args)]
pub(in crate::cli) struct History {
    /// The service.
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// At most so many; 0 is all of them. Without it a table has 50.
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    limit: Option<usize>,
}

/// How many a table has if nothing is said.
pub(super) const FEW: usize = 50;

impl History {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let mut history = context.client.history(&self.service).await?;
        let screen = &mut context.screen;
        let limit = match self.limit {
            None if screen.format == Format::Json => 0,
            limit => limit.unwrap_or(FEW),
        };
        let older = match limit {
            0 => 0,
            limit => history.revisions.drain(limit.min(history.revisions.len())..).count(),
        };
        if screen.format == Format::Json {
            screen.json(&history)?;
            return Ok(Exit::Done);
        }
        let mut table = Table::new([
            column("REVISION").right(),
            column("TIME"),
            column("BY"),
            column("HASH").wide(),
            column("REASON").if_room(1),
            column("WHAT").text(),
            column("CHANGES").wide().text(),
        ]);
        for revision in &history.revisions {
            let short = revision.hash.get(..12).unwrap_or(&revision.hash);
            table.row(
                "",
                cells![
                    revision.revision,
                    second(&revision.time),
                    &revision.actor,
                    short,
                    revision.reason.as_deref().unwrap_or("-"),
                    &revision.summary,
                    listed(&revision.changes, &self.service),
                ],
            );
        }
        screen.table(&table, "there are no revisions")?;
        if older > 0 {
            screen.remark(&format!("{older} older ones are not shown: --limit 0 shows all"))?;
        }
        Ok(Exit::Done)
    }
}

/// The first changes in words, a line each: a service that begins changes all its values.
fn listed(changes: &[Change], service: &str) -> String {
    const FEW: usize = 8;
    let mut lines: Vec<String> = changes.iter().take(FEW).map(|change| in_words(change, service)).collect();
    if changes.len() > FEW {
        lines.push(format!("and {} more, see `lbctl diff`", changes.len() - FEW));
    }
    lines.join("\n")
}
