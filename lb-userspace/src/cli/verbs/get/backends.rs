//! `lbctl get backends`

use clap::Args;

use super::Which;
use crate::api::{self, BackendStatus, HealthState, KeepOrReset, NextHop};
use crate::cli::human::{age, bytes, count, second};
use crate::cli::table::{Cell, Table, Tone, cells, column};
use crate::cli::verbs::Outcome;
use crate::cli::{Context, watch};
use crate::config::AdminState;

#[derive(Debug, Args)]
pub(in crate::cli) struct Backends {
    #[command(flatten)]
    pub which: Which,
}

impl Backends {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let query = self.which.query();
        let (client, screen) = (&context.client, &mut context.screen);
        let fetch = async || client.backends(&query).await;
        watch::show(screen, self.which.watch, "there are no backends", fetch, table).await
    }
}

fn table(answer: &api::Backends) -> Table {
    let mut table = Table::new([
        column("SERVICE"),
        column("POOL"),
        column("ROLE").wide(),
        column("BACKEND"),
        column("PRIO").right().wide(),
        column("WEIGHT").right(),
        column("STATE"),
        column("HEALTH"),
        column("SINCE").right().wide(),
        column("CHECK").right().wide(),
        column("SLOTS").right().if_room(2),
        column("FLOWS").right().if_room(1),
        column("ID").right().wide(),
        column("NEXT HOP").wide(),
        column("CONN/S").right().wide(),
        column("PKT/S").right().wide(),
        column("CONNECTIONS").right().wide(),
        column("PACKETS").right().wide(),
        column("BYTES").right().wide(),
        column("REPLIES").right().wide(),
        column("FAILED").right().wide(),
        column("NOTE").text(),
    ]);
    for row in &answer.backends {
        let backend = &row.backend;
        let (health, traffic) = (&backend.health, &backend.traffic);
        let check = health.last_duration_seconds.map_or("-".to_owned(), |it| format!("{:.1} ms", it * 1e3));
        table.row(
            format!("{}/{}/{}", row.service, row.pool, backend.name),
            cells![
                &row.service,
                &row.pool,
                row.role,
                &backend.name,
                backend.priority,
                weight(backend),
                state(backend),
                self::health(health.status),
                age(health.since_seconds),
                check,
                backend.slots,
                count(backend.tracked_flows),
                backend.id,
                next_hop(&backend.next_hop),
                rate(backend.rate.connections_per_second),
                rate(backend.rate.packets_per_second),
                count(traffic.connections),
                count(traffic.packets),
                bytes(traffic.bytes),
                count(traffic.reply_packets),
                failed(backend),
                note(backend),
            ],
        );
    }
    table
}

fn weight(backend: &BackendStatus) -> Cell {
    match (backend.weight, backend.configured_weight) {
        (now, configured) if now == configured => now.into(),
        (now, configured) => Tone::Doubtful.cell(format!("{now} ({configured})")),
    }
}

fn state(backend: &BackendStatus) -> Cell {
    match backend.state {
        _ if backend.terminating => Tone::Doubtful.cell("leaving"),
        AdminState::Ready => AdminState::Ready.into(),
        state @ (AdminState::Drain | AdminState::Maint) => Tone::Doubtful.cell(state.as_str()),
    }
}

fn health(health: HealthState) -> Cell {
    let tone = match health {
        HealthState::Up => Tone::Good,
        HealthState::Down => Tone::Bad,
        HealthState::Unknown => Tone::Doubtful,
        HealthState::Unchecked => Tone::Faint,
    };
    tone.cell(health.as_str())
}

fn next_hop(next_hop: &NextHop) -> String {
    match next_hop {
        NextHop::Known { interface, mac } => format!("{mac} on {interface}"),
        NextHop::Unreachable { .. } => "-".to_owned(),
    }
}

/// Connections that failed, where somebody looks; `~` where that is inferred.
fn failed(backend: &BackendStatus) -> String {
    let Some(seen) = &backend.outcomes else { return "-".to_owned() };
    let sure = if seen.inferred { "~" } else { "" };
    format!("{sure}{}", count(seen.refused + seen.unanswered + seen.reset_early))
}

/// Below ten a second, a decimal counts.
fn rate(per_second: f64) -> String {
    match per_second {
        0.0 => "0".to_owned(),
        few if few < 9.95 => format!("{few:.1}"),
        many => count(many.round() as u64),
    }
}

/// Why it takes no new flows, or else what is odd about it, and who has discovered it.
fn note(backend: &BackendStatus) -> String {
    let unreachable = match &backend.next_hop {
        NextHop::Known { .. } => None,
        NextHop::Unreachable { unreachable } => Some(format!("unreachable: {unreachable}")),
    };
    let is_down = backend.health.status == HealthState::Down;
    let unwell = is_down.then_some(()).and(backend.health.reason.as_ref()).map(|why| match why.as_str() {
        "set by hand" => "down by hand".to_owned(),
        why => format!("checks fail: {why}"),
    });
    let panics = (is_down && backend.takes_new).then(|| "takes flows all the same: panic".to_owned());
    // Whatever says more stands for it.
    let why_not = backend.why_not.clone().filter(|why| match why.as_str() {
        "its health checks fail" => unwell.is_none(),
        "it drains" => backend.drain.is_none(),
        _ => true,
    });
    let drain = backend.drain.as_ref().map(|drain| match (drain.over, drain.then) {
        (false, then) => format!("drains until {}, then {then}", second(&drain.deadline)),
        (true, KeepOrReset::Keep) => format!("its time to drain was over at {}", second(&drain.deadline)),
        (true, KeepOrReset::Reset) => format!("its flows were reset at {}", second(&drain.deadline)),
    });
    let slow = backend.slow_start_percent.map(|part| format!("slow start: {part:.0} % of its weight"));
    let ejection = backend.ejection.map(|ejection| match ejection.times {
        0 | 1 => format!("let in again in {} s", ejection.left_seconds),
        times => format!("for the {times}. time; let in again in {} s", ejection.left_seconds),
    });
    let breaker = backend.breaker.as_ref().filter(|breaker| breaker.passes_percent > 0.0);
    let breaker = breaker.map(|breaker| {
        format!("its breaker is {}: {:.0} % pass", breaker.state.replace('_', " "), breaker.passes_percent)
    });
    let steered = backend.steering.filter(|steering| steering.weight_percent != 100);
    let steered = steered.map(|steering| {
        let takes = steering.latency_seconds.map(|it| format!(" at {:.1} ms", it * 1e3)).unwrap_or_default();
        format!("steered: {} % of its weight{takes}", steering.weight_percent)
    });
    let found = backend.source.as_ref().map(|source| format!("discovered by {source}"));
    let notes = [why_not, unwell, panics, ejection, breaker, steered, drain, slow, unreachable, found];
    let mut notes: Vec<String> = notes.into_iter().flatten().collect();
    notes.dedup();
    notes.join("; ")
}
