//! `lbctl get events`

use clap::Args;

use super::Which;
use crate::api::{Client, ClientError, Event, EventQuery, Severity};
use crate::cli::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::human::second;
use crate::cli::screen::{Format, Screen};
use crate::cli::table::{Table, Tone, cells, column};
use crate::cli::verbs::Outcome;
use crate::cli::watch::PERIOD;

#[derive(Debug, Args)]
pub(in crate::cli) struct Events {
    #[command(flatten)]
    pub which: Which,
    /// Only events with a greater number.
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
}

impl Events {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Context { client, screen, .. } = context;
        let mut query = EventQuery { after: self.after, service: self.which.service, follow: false };
        let past = read(client, &query).await?;
        let mut list = List { widths: Vec::new(), header: true };
        if past.is_empty() && !self.which.watch {
            screen.remark("nothing happened yet")?;
        }
        list.show(&past, screen)?;
        if !self.which.watch {
            return Ok(Exit::Done);
        }
        query.after = past.last().map(|event| event.seq).or(query.after);
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
        column("SEVERITY").if_room(1),
        column("CODE").if_room(2),
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
        let revision = event.revision.map_or("-".to_owned(), |revision| revision.to_string());
        table.row(
            event.seq.to_string(),
            cells![
                event.seq,
                second(&event.time),
                severity.cell(event.severity.as_str()),
                &event.code,
                event.subject(),
                event.actor.as_deref().unwrap_or("-"),
                revision,
                &event.message,
            ],
        );
    }
    table
}
