//! What a change did, for people.

use std::io;

use super::human::{counted, percent};
use super::screen::{Format, Screen};
use super::table::{Table, Tone, cells, column};
use crate::api::{Applied, Change};

/// Shows what was done, or would be.
pub(super) fn show(applied: &Applied, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(applied);
    }
    let Applied { revision, service_revision, changed, dry_run, changes, moved, warnings, .. } = applied;
    for warning in warnings {
        screen.remark(&format!("warning: {warning}"))?;
    }
    if !changed {
        return screen.say(&format!("nothing to change at revision {revision}\n"));
    }
    screen.table(&table(changes), "")?;
    let move_ = if *dry_run { "would move" } else { "move" };
    for moved in moved {
        screen.say(&format!(
            "{}: {} of the slots and {} of the clients {move_}\n",
            moved.service,
            percent(moved.slots_moved_percent),
            percent(moved.clients_moved_percent),
        ))?;
    }
    let made = counted(changes.len() as u64, "change");
    screen.say(&match dry_run {
        true => format!("{made} would be made; nothing was done, still at revision {revision}\n"),
        false => match service_revision {
            None => format!("{made} made, now at revision {revision}\n"),
            Some(own) => format!("{made} made, now at revision {revision}, the service's own is {own}\n"),
        },
    })
}

/// Every change by its path.
pub(super) fn table(changes: &[Change]) -> Table {
    let mut table = Table::new([column("CHANGE"), column("FROM"), column("TO")]);
    for change in changes {
        let cell = |value: &Option<String>, tone: Tone| match value {
            Some(value) => tone.cell(value.clone()),
            None => Tone::Faint.cell("-"),
        };
        let (from, to) = match change {
            Change { from: None, .. } => (Tone::Plain, Tone::Good),
            Change { to: None, .. } => (Tone::Bad, Tone::Plain),
            Change { .. } => (Tone::Faint, Tone::Plain),
        };
        let path = change.path.clone();
        table.row(path.clone(), cells![path, cell(&change.from, from), cell(&change.to, to)]);
    }
    table
}

/// On one line: `weight of … 100 -> 50`.
pub(super) fn in_words(change: &Change) -> String {
    match change {
        Change { path, from: Some(from), to: Some(to) } => format!("{path} {from} -> {to}"),
        Change { path, from: None, to: Some(to) } => format!("{path} new: {to}"),
        Change { path, from: Some(_), to: None } => format!("{path} gone"),
        Change { path, from: None, to: None } => path.clone(),
    }
}
