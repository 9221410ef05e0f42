//! `lbctl top`: services, their pools and their backends, live.
//!
//! [`App`] is what is known and what is looked at; it has neither clock nor terminal. [`view`] draws it. What is left is the
//! loop here: ask the agent, take keys, draw.

mod app;
mod rates;
#[cfg(test)]
mod tests;
mod view;

use std::io;
use std::thread;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event as Input, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::failure::{Exit, Failure};
use crate::api::{Client, ClientError, Event, EventQuery};
use app::{App, Next};

/// Runs until somebody ends it.
pub(super) async fn run(client: &Client, period: Duration, service: Option<String>) -> Result<Exit, Failure> {
    let mut app = App::new(service);
    // Whoever cannot be reached at all is told so on the usual screen.
    app.take(client.status().await?, Instant::now().into_std());
    let mut terminal = ratatui::try_init().map_err(|error| terminal_failed(&error))?;
    let outcome = follow(client, period, &mut app, &mut terminal).await;
    ratatui::restore();
    outcome.map(|()| Exit::Done)
}

fn terminal_failed(error: &io::Error) -> Failure {
    Failure::of("LB0612", format!("this terminal cannot be drawn on: {error}"))
        .remedy("`lbctl get backends -w` follows the same in any terminal or pipe")
}

async fn follow(
    client: &Client,
    period: Duration,
    app: &mut App,
    terminal: &mut ratatui::DefaultTerminal,
) -> Result<(), Failure> {
    let mut inputs = inputs();
    let mut ended = signal(SignalKind::terminate())?;
    let mut hung_up = signal(SignalKind::hangup())?;
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        terminal.draw(|frame| view::draw(app, frame)).map_err(|error| terminal_failed(&error))?;
        tokio::select! {
            input = inputs.recv() => match input {
                Some(Input::Key(key)) if key.kind != KeyEventKind::Release => {
                    if app.key(key) == Next::End {
                        return Ok(());
                    }
                }
                // Another size is drawn to; a terminal that is gone has no more inputs.
                Some(_) => {}
                None => return Ok(()),
            },
            _ = ticks.tick() => ask(client, app).await,
            _ = ended.recv() => return Ok(()),
            _ = hung_up.recv() => return Ok(()),
        }
    }
}

/// What people press, read in a thread that ends with the process: reading waits.
fn inputs() -> mpsc::UnboundedReceiver<Input> {
    let (sender, receiver) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(input) = event::read() {
            if sender.send(input).is_err() {
                return;
            }
        }
    });
    receiver
}

async fn ask(client: &Client, app: &mut App) {
    const PATIENCE: Duration = Duration::from_secs(2);
    if app.is_paused() {
        return;
    }
    let client = client.with_patience(PATIENCE);
    match client.status().await {
        Ok(status) => app.take(status, Instant::now().into_std()),
        Err(error) => return app.is_away(error.to_string()),
    }
    if let Ok(events) = read_events(&client, app.last_event()).await {
        app.happened(events);
    }
}

async fn read_events(client: &Client, after: Option<u64>) -> Result<Vec<Event>, ClientError> {
    let mut stream = client.events(&EventQuery { after, service: None, follow: false }).await?;
    let mut events = Vec::new();
    while let Some(event) = stream.next().await? {
        events.push(event);
    }
    Ok(events)
}
