//! What has happened: a bounded memory of events, and a stream of those to come.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::broadcast;

use crate::api::{Event, Severity};
use crate::clock;

/// How many events are remembered.
const MEMORY: usize = 10_000;

/// Something that happened.
#[derive(Clone, Debug, Default)]
pub struct Occurrence {
    /// A stable name.
    pub code: &'static str,
    /// Whether somebody should look at it.
    pub severe: bool,
    /// Where.
    pub service: Option<String>,
    /// Where.
    pub pool: Option<String>,
    /// Where.
    pub backend: Option<String>,
    /// In a sentence.
    pub message: String,
    /// Who did it.
    pub actor: Option<String>,
    /// The agent's revision that it made.
    pub revision: Option<u64>,
    /// The service's revision that it made.
    pub service_revision: Option<u64>,
}

/// The memory.
pub struct EventLog {
    inner: Mutex<Inner>,
    stream: broadcast::Sender<Event>,
}

struct Inner {
    next: u64,
    events: VecDeque<Event>,
}

impl Default for EventLog {
    fn default() -> Self {
        let inner = Inner { next: 1, events: VecDeque::new() };
        Self { inner: Mutex::new(inner), stream: broadcast::Sender::new(1024) }
    }
}

impl EventLog {
    /// Remembers an event, and tells those who follow.
    pub fn push(&self, what: Occurrence) {
        let severity = if what.severe { Severity::Warning } else { Severity::Info };
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let event = Event {
            seq: inner.next,
            time: clock::timestamp(),
            code: what.code.to_owned(),
            severity,
            service: what.service,
            pool: what.pool,
            backend: what.backend,
            message: what.message,
            actor: what.actor,
            revision: what.revision,
            service_revision: what.service_revision,
        };
        match event.severity {
            Severity::Warning => tracing::warn!(code = event.code, "{}", event.message),
            _ => tracing::info!(code = event.code, "{}", event.message),
        }
        inner.next += 1;
        inner.events.push_back(event.clone());
        if inner.events.len() > MEMORY {
            inner.events.pop_front();
        }
        // Nobody may be listening. Sent under the lock, so that nobody misses one between reading and following.
        let _ = self.stream.send(event);
    }

    /// Those after number `after`, and the stream of those that follow them.
    pub fn follow(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let past = inner.events.iter().filter(|event| event.seq > after).cloned().collect();
        (past, self.stream.subscribe())
    }
}
