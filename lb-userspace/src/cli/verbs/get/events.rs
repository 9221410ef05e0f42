//! `lbctl get events`

use std::time::Duration;

use clap::Args;
use jiff::Timestamp;

use super::Which;
use crate::api::{Client, ClientError, Event, EventQuery, Severity};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::second;
use crate::cli::screen::{Format, Screen};
use crate::cli::table::{Table, Tone, cells, column};
use crate::cli::verbs::history::FEW;
use crate::cli::verbs::{Outcome, whole};
use crate::cli::watch::PERIOD;

#[derive(Debug, Args)]
pub(in crate::cli) struct Events {
    #[command(flatten)]
    pub which: Which,
    /// Only events with a greater number.
    #[arg(long, value_name = "SEQ", value_parser = whole::<u64>)]
    after: Option<u64>,
    /// Only events of the last such time, such as 10m.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// The newest so many; 0 is all that the agent remembers. Without it a table has 50.
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    limit: Option<usize>,
}

impl Events {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Context { client, screen, .. } = context;
        let mut query = EventQuery { after: self.after, service: self.which.service, follow: false };
        let mut past = read(client, &query).await?;
        query.after = past.last().map(|event| event.seq).or(query.after);
        if let Some(since) = self.since {
            let begin = Timestamp::now().checked_sub(since).unwrap_or(Timestamp::MIN);
            past.retain(|event| event.time.parse::<Timestamp>().is_ok_and(|time| time >= begin));
        }
        let limit = match self.limit {
            None if screen.format == Format::Json || self.after.is_some() || self.since.is_some() => 0,
            limit => limit.unwrap_or(FEW),
        };
        let older = if limit == 0 { 0 } else { past.len().saturating_sub(limit) };
        past.drain(..older);
        let mut list = List { widths: Vec::new(), header: true };
        if past.is_empty() && !self.which.watch {
            screen.remark("nothing happened yet")?;
        }
        list.show(&past, screen)?;
        if older > 0 {
            screen.remark(&format!("{older} older ones are not shown: --limit 0 shows all"))?;
        }
        if !self.which.watch {
            return Ok(Exit::Done);
        }
        query.follow = true;
        loop {
            let broken = follow(client, &mut query, &mut list, screen).await?;
            screen.remark(&format!("{broken}; waiting for the agent to come back"))?;
            wait_for(client).await;
        }
    }
}

async fn read(client: &Client, query: &EventQuery) -> Result<Vec<Event>, ClientError> {
    let mut stream = client.events(query).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await? {
        events.push(event);
    }
    Ok(events)
}

/// Shows events as they come, until the stream breaks; why it did. `query` is moved on past what was shown.
async fn follow(
    client: &Client,
    query: &mut EventQuery,
    list: &mut List,
    screen: &mut Screen,
) -> Result<String, Failure> {
    let mut stream = match client.events(query).await {
        Ok(stream) => stream,
        Err(ClientError::Refused(error)) => return Err(error.into()),
        Err(error) => return Ok(error.to_string()),
    };
    loop {
        match stream.next().await {
            Ok(Some(event)) => {
                query.after = Some(event.seq);
                list.show(&[event], screen)?;
            }
            Ok(None) => return Ok("the agent ended the stream".to_owned()),
            Err(error) => return Ok(error.to_string()),
        }
    }
}

async fn wait_for(client: &Client) {
    loop {
        tokio::time::sleep(PERIOD).await;
        if client.status().await.is_ok() {
            return;
        }
    }
}

/// Events under one header, however they come.
struct List {
    widths: Vec<usize>,
    header: bool,
}

impl List {
    fn show(&mut self, events: &[Event], screen: &mut Screen) -> Result<(), Failure> {
        if events.is_empty() {
            return Ok(());
        }
        if screen.format == Format::Json {
            for event in events {
                screen.json_line(event)?;
            }
            return Ok(());
        }
        let table = table(events);
        let header = std::mem::take(&mut self.header);
        let text = table.render_with(screen.width(), screen.is_wide(), header, &mut self.widths);
        screen.say(&text)?;
        Ok(screen.flush()?)
    }
}

fn table(events: &[Event]) -> Table {
    let mut table = Table::new([
        column("SEQ").right().wide(),
        column("TIME"),
        column("SEVERITY").wide(),
        column("CODE"),
        column("SUBJECT"),
        column("BY").wide(),
        column("REVISION").right().wide(),
        column("MESSAGE").text(),
    ]);
    for event in events {
        let severity = match event.severity {
            Severity::Info => Tone::Plain,
            Severity::Warning => Tone::Doubtful,
            Severity::Error => Tone::Bad,
        };
        let subject = event.subject();
        let revision = event.revision.map_or("-".to_owned(), |revision| revision.to_string());
        table.row(
            event.seq.to_string(),
            cells![
                event.seq,
                when(&event.time, &Timestamp::now()),
                severity.cell(event.severity.as_str()),
                severity.cell(&event.code),
                &subject,
                event.actor.as_deref().unwrap_or("-"),
                revision,
                message(event, &subject),
            ],
        );
    }
    table
}

/// Of today the time alone, in UTC.
fn when(time: &str, now: &Timestamp) -> String {
    let (full, today) = (second(time), now.to_string());
    match full.split_once('T') {
        Some((day, of_day)) if today.starts_with(day) => of_day.to_owned(),
        _ => full,
    }
}

/// What happened, without what it happened to.
fn message<'a>(event: &'a Event, subject: &str) -> &'a str {
    event.message.strip_prefix(subject).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(&event.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn today_needs_no_date() {
        let now = "2026-11-30T12:00:00Z".parse().expect("a time");
        assert_eq!(when("2026-11-30T02:15:09.27472259Z", &now), "02:15:09Z");
        assert_eq!(when("2026-11-29T23:59:59.9Z", &now), "2026-11-29T23:59:59Z");
    }
}
