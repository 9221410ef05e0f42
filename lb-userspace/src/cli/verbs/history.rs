//! `lbctl history`

use clap::Args;

use super::Outcome;
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
}

impl History {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let history = context.client.history(&self.service).await?;
        let screen = &mut context.screen;
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
                    listed(&revision.changes),
                ],
            );
        }
        screen.table(&table, "there are no revisions")?;
        Ok(Exit::Done)
    }
}

/// The first changes in words, a line each: a service that begins changes all its values.
fn listed(changes: &[Change]) -> String {
    const FEW: usize = 8;
    let mut lines: Vec<String> = changes.iter().take(FEW).map(in_words).collect();
    if changes.len() > FEW {
        lines.push(format!("and {} more, see `lbctl diff`", changes.len() - FEW));
    }
    lines.join("\n")
}
