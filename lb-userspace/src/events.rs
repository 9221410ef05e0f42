//! What has happened: a bounded memory of events, and a stream of those to come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use tokio::sync::broadcast;

use crate::api::{Api, Event, Severity};
use crate::clock;
use crate::metrics::Tally;
use crate::plural::{counted, either};

/// How many events are remembered.
const MEMORY: usize = 10_000;

macro_rules! codes {
    ($( $code:literal: $meaning:literal, )+) => {
        /// Every code that an event can have, and what it means. They are stable: scripts and people refer to them.
        ///
        /// | | |
        /// |---|---|
        $( #[doc = concat!("| `", $code, "` | ", $meaning, " |")] )+
        pub const CODES: &[(&str, &str)] = &[$( ($code, $meaning), )+];
    };
}

codes! {
    "agent_started": "An agent has taken over.",
    "applied": "A configuration was applied.",
    "config_rejected": "The configuration file could not be used; what was in force stays.",
    "journal_recovered": "A corrupt journal was cut off, as asked for.",
    "events_missed": "Events that were asked for are not remembered.",
    "split": "A split was set.",
    "split_adopted": "A split was found lower in the kernel than in the journal.",
    "rolled_back": "A rollback was made by hand.",
    "undone": "A service is what it was at an earlier revision.",
    "backend_set": "Weight, state or health of a backend was set by hand.",
    "backend_up": "A backend's checks succeed.",
    "backend_down": "A backend's checks fail.",
    "agent_check": "A backend says something else of itself.",
    "agent_check_failed": "A backend's agent check fails.",
    "backend_ejected": "A backend is an outlier, and gets no new connections for a while.",
    "backend_returned": "A backend that was ejected is let in again.",
    "ejection_spared": "A backend would have been ejected, but for `enforce`.",
    "ejection_withheld": "A backend should have been ejected, but for `max_ejected_percent`.",
    "breaker_shedding": "A breaker keeps a part of the new connections away.",
    "breaker_open": "A breaker keeps all new connections away.",
    "breaker_half_open": "A breaker lets a few connections try.",
    "breaker_closed": "A breaker lets everything through again.",
    "discovered": "Discovery found other backends for a pool.",
    "discovery_failed": "A source of backends does not answer, or cannot be used; what was found before stays.",
    "discovery_recovered": "A source of backends answers again.",
    "discovery_dropped": "Some of what a source of backends says cannot be used.",
    "trace_started": "Somebody follows packets: the program that tells is in the place of the other one.",
    "trace_ended": "Nobody follows packets any more.",
    "drain_over": "The time that a backend had to drain is over.",
    "backend_gone": "A removed backend has no flows left.",
    "rollout_started": "A rollout has begun.",
    "rollout_preparing": "A rollout waits for its pool to be ready.",
    "rollout_step": "A rollout is at its next share.",
    "rollout_gate": "A rollout waits for an answer at a gate.",
    "rollout_soaking": "A rollout is at 100 %, and watched.",
    "rollout_promoted": "A rollout has ended: its pool is the stable one.",
    "rollout_rolled_back": "A rollout was rolled back.",
    "rollout_failed": "A rollout has ended before anybody was let in.",
    "rollout_order": "Somebody has paused, resumed, approved or hurried a rollout.",
    "rollout_waits": "A rollout waits: nothing can be measured, as too many are under way.",
    "preview_open": "A rollout's preview reaches its pool.",
    "preview_closed": "A rollout's preview is gone.",
    "fault_added": "A fault is injected on purpose.",
    "fault_cleared": "A fault was taken away before its time.",
    "fault_over": "No fault is injected into a service any more.",
    "interface_lost": "An interface is gone: its packets are not balanced.",
    "interface_attached": "The program is on an interface that had been gone, or on another one of its name.",
    "interface_renamed": "An interface has another name than is configured (the program stays on it), or its own again.",
    "interface_down": "An interface is down, or has no carrier.",
    "interface_up": "An interface is up again.",
    "interface_refused": "An interface is there, but the program cannot be attached to it.",
}

/// The code of an event that stands for those that are not remembered.
pub const MISSED: &str = "events_missed";

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
    tally: Mutex<Arc<Tally>>,
    stream: broadcast::Sender<Event>,
}

struct Inner {
    /// Number of the first event of this agent.
    first: u64,
    next: u64,
    events: VecDeque<Event>,
}

/// Numbers begin with the time, in microseconds since 1970: they go on growing when the agent is started anew, so that nobody
/// takes one agent's events for another's. (They stay below 2^53 until the year 2255.)
impl Default for EventLog {
    fn default() -> Self {
        Self::from(jiff::Timestamp::now().as_microsecond().unsigned_abs())
    }
}

impl EventLog {
    fn from(first: u64) -> Self {
        let inner = Inner { first, next: first, events: VecDeque::new() };
        Self { inner: Mutex::new(inner), tally: Mutex::default(), stream: broadcast::Sender::new(1024) }
    }

    /// Remembers an event, and tells those who follow.
    pub fn push(&self, what: Occurrence) {
        debug_assert!(CODES.iter().any(|(code, _)| *code == what.code), "{} is not in CODES", what.code);
        self.tally(|tally| tally.note(&what));
        let severity = if what.severe { Severity::Warning } else { Severity::Info };
        let mut inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let event = Event {
            api: Api::V1,
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

    /// Those after number `after`, and the stream of those that follow them. What lies between `after` and the oldest that is
    /// remembered is stood for by one event of the code [`MISSED`]; its number is that of the last one that is missing. 0 asks
    /// for whatever is remembered.
    pub fn follow(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let oldest = inner.events.front().map_or(inner.next, |event| event.seq);
        // A number that is still to come is of an agent whose clock was ahead.
        let missed = after != 0 && (after.saturating_add(1) < oldest || after >= inner.next);
        let marker = missed.then(|| inner.marker(after, oldest));
        let from = if missed { 0 } else { after };
        let past = inner.events.iter().filter(|event| event.seq > from).cloned();
        (marker.into_iter().chain(past).collect(), self.stream.subscribe())
    }

    /// The newest ones, the oldest first.
    pub fn newest(&self, count: usize) -> Vec<Event> {
        let inner = self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        inner.events.iter().skip(inner.events.len().saturating_sub(count)).cloned().collect()
    }

    /// What was counted. (It is copied only while somebody still looks at [`Self::counted`].)
    pub fn tally<R>(&self, f: impl FnOnce(&mut Tally) -> R) -> R {
        f(Arc::make_mut(&mut self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)))
    }

    /// What was counted so far.
    pub fn counted(&self) -> Arc<Tally> {
        Arc::clone(&self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Inner {
    fn marker(&self, after: u64, oldest: u64) -> Event {
        let message = if (self.first..self.next).contains(&after) {
            let missing = oldest - after - 1;
            let are = either(missing, "is", "are");
            format!("{} after number {after} {are} not remembered any more", counted(missing, "event"))
        } else {
            format!("number {after} is another agent's: what happened after it is not known")
        };
        Event {
            api: Api::V1,
            seq: oldest - 1,
            time: clock::timestamp(),
            code: MISSED.to_owned(),
            severity: Severity::Warning,
            service: None,
            pool: None,
            backend: None,
            message,
            actor: None,
            revision: None,
            service_revision: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(log: &EventLog, after: u64) -> Vec<(u64, String)> {
        log.follow(after).0.into_iter().map(|event| (event.seq, event.code)).collect()
    }

    fn happens(log: &EventLog, times: usize) {
        for _ in 0..times {
            log.push(Occurrence { code: "split", ..Occurrence::default() });
        }
    }

    #[test]
    fn codes_are_words_of_their_own() {
        for (i, (code, meaning)) in CODES.iter().enumerate() {
            assert!(code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{code}");
            assert!(CODES[..i].iter().all(|(other, _)| other != code), "{code} twice");
            assert!(meaning.ends_with('.'), "{code}");
        }
        assert!(CODES.iter().any(|(code, _)| *code == MISSED));
    }

    #[test]
    fn who_asks_for_what_is_forgotten_is_told() {
        let log = EventLog::from(100);
        assert_eq!(seen(&log, 0), []);
        assert_eq!(seen(&log, 99), [], "nothing has happened since the last number before");
        happens(&log, MEMORY + 2);
        let oldest = 102;
        assert_eq!(seen(&log, 0)[0], (oldest, "split".to_owned()), "whoever asks for all misses nothing");
        assert_eq!(seen(&log, oldest - 1)[0], (oldest, "split".to_owned()), "there is no gap before it");
        let late = log.follow(100).0;
        assert_eq!((late[0].seq, late[0].code.as_str(), late.len()), (oldest - 1, MISSED, MEMORY + 1));
        assert!(late[0].message.starts_with("1 event after number 100 is not"), "{}", late[0].message);
        let newest = seen(&log, 0)[MEMORY - 1].0;
        assert_eq!(seen(&log, newest), [], "whoever has seen all of it gets nothing again");
    }

    #[test]
    fn a_number_of_another_agent_is_told_from_ones_own() {
        let log = EventLog::from(100);
        happens(&log, 3);
        for (after, first) in [(7, (99, MISSED)), (103, (99, MISSED)), (102, (0, "")), (101, (102, "split"))]
        {
            let events = seen(&log, after);
            let found = events.first().map_or((0, ""), |(seq, code)| (*seq, code.as_str()));
            assert_eq!(found, first, "after {after}: {events:?}");
        }
        let (past, _) = log.follow(7);
        assert!(past[0].message.contains("another agent's") && past.len() == 4, "{past:?}");
        let next = EventLog::default();
        assert!(next.follow(103).0[0].seq > 103, "a later agent's numbers are greater");
    }
}
