//! Following a list as it changes.

use std::io;
use std::time::Duration;

use anstream::adapter::strip_str;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::screen::{Format, Screen};
use super::table::Table;
use crate::api::ClientError;

/// How often an agent is asked again.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Shows a list once, or again and again.
///
/// On a terminal the list is drawn anew in place. In a pipe, rows that are new or changed are appended, as `kubectl get -w`
/// does. As JSON each state that differs from the one before is a line. An agent that goes away meanwhile is waited for.
pub(super) async fn show<T: Serialize + PartialEq>(
    screen: &mut Screen,
    follow: bool,
    empty: &str,
    fetch: impl AsyncFn() -> Result<T, ClientError>,
    as_table: impl Fn(&T) -> Table,
) -> Result<Exit, Failure> {
    let mut before = fetch().await?;
    if !follow {
        match screen.format {
            Format::Json => screen.json(&before)?,
            Format::Table | Format::Wide => screen.table(&as_table(&before), empty)?,
        }
        return Ok(Exit::Done);
    }
    let mut view = View::default();
    view.show(screen, &before, None, &as_table)?;
    loop {
        tokio::time::sleep(PERIOD).await;
        let now = match fetch().await {
            Ok(now) => now,
            Err(ClientError::Refused(error)) => return Err(error.into()),
            Err(away) => {
                view.agent_is_away(screen, &away)?;
                continue;
            }
        };
        view.away = false;
        if now != before {
            view.show(screen, &now, Some(&before), &as_table)?;
            before = now;
        }
    }
}

#[derive(Default)]
struct View {
    /// Lines on the terminal that the next drawing replaces.
    lines: usize,
    widths: Vec<usize>,
    away: bool,
}

impl View {
    fn show<T: Serialize>(
        &mut self,
        screen: &mut Screen,
        now: &T,
        before: Option<&T>,
        as_table: &impl Fn(&T) -> Table,
    ) -> io::Result<()> {
        if screen.format == Format::Json {
            return screen.json_line(now);
        }
        let table = as_table(now);
        let (width, wide) = (screen.width(), screen.is_wide());
        if screen.is_terminal() {
            let text = table.render(width, wide);
            return self.draw(screen, &text);
        }
        let table = match before {
            Some(before) => table.without_known(&as_table(before)),
            None => table,
        };
        if before.is_none() || !table.is_empty() {
            let text = table.render_with(width, wide, before.is_none(), &mut self.widths);
            screen.say(&text)?;
        }
        screen.flush()
    }

    /// Over what was drawn before, as much as there is room for.
    fn draw(&mut self, screen: &mut Screen, text: &str) -> io::Result<()> {
        let (width, height) = screen.size().unwrap_or((usize::MAX, usize::MAX));
        screen.back(self.lines)?;
        self.lines = 0;
        let mut lines = text.lines();
        for line in lines.by_ref() {
            let rows = strip_str(line).map(|part| part.chars().count()).sum::<usize>().div_ceil(width);
            if self.lines + rows.max(1) + 2 > height {
                let left = 1 + lines.count();
                screen.say(&format!("… {left} more lines\n"))?;
                self.lines += 1;
                break;
            }
            screen.say(line)?;
            screen.say("\n")?;
            self.lines += rows.max(1);
        }
        screen.flush()
    }

    fn agent_is_away(&mut self, screen: &mut Screen, why: &ClientError) -> io::Result<()> {
        if self.away {
            return Ok(());
        }
        self.away = true;
        if screen.is_terminal() {
            // What stands on the screen stays there, and the next drawing goes below it.
            self.lines = 0;
        }
        screen.remark(&format!("{why}; waiting for it to come back"))
    }
}
