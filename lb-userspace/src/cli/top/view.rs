//! How it looks.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row as Drawn, Sparkline, Table, TableState};

use super::app::{App, Level, Row};
use super::rates::Rate;
use crate::api::{Event, HealthState, PoolStatus, ServiceStatus, Severity};
use crate::cli::human::{age, bytes, count, percent, short_time, vip};
use crate::config::AdminState;

/// From here on, a terminal has room for columns that say less.
const WIDE: u16 = 110;

const KEYS: &str = "q quit  ? help  arrows move  enter/esc in/out  / filter  s sort  e events";

const HELP: &str = "\
 q, ctrl-c      end
 up/k, down/j   move; page up/down, g and G further
 enter, right   into a service, a pool
 esc, left      out again; takes a filter away first
 /              filter by name; enter keeps it, esc takes it away
 s              sort by name, connections, packets, bytes
 S, r           reverse the order
 e              what happened
 space          pause and go on
 ?              this

 Rates are of the last interval. SHARE is what the split says, SEEN what
 the new connections did. In the dsr modes replies go past the balancer.
 P50 and P99 are from a client's SYN to its answer, in this step of a
 rollout under way; LATENCY is a backend's average, with `steering`.";

/// Draws everything.
pub fn draw(app: &App, frame: &mut Frame<'_>) {
    let area = frame.area();
    let events = if area.height >= 20 && app.level != Level::Events { 6 } else { 0 };
    let findings = app.status.as_ref().map_or(0, |status| status.findings.len().min(3)) as u16;
    let [head, totals, trail, findings_at, body, events_at, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(if area.height >= 14 { findings } else { 0 }),
        Constraint::Min(3),
        Constraint::Length(events),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(self::head(app)), head);
    self::totals(app, frame, totals);
    frame.render_widget(Paragraph::new(self::trail(app)), trail);
    self::findings(app, frame, findings_at);
    match app.level {
        Level::Events => all_events(app, frame, body),
        Level::Services | Level::Pools { .. } | Level::Backends { .. } => rows(app, frame, body),
    }
    if events > 0 {
        let block = Block::new()
            .title(" events ".dim())
            .borders(ratatui::widgets::Borders::TOP)
            .border_style(Style::new().dim());
        let inner = block.inner(events_at);
        frame.render_widget(block, events_at);
        let newest = app.events.iter().rev().take(inner.height.into());
        let lines: Vec<Line<'_>> = newest.rev().map(event_line).collect();
        frame.render_widget(Paragraph::new(lines), inner);
    }
    frame.render_widget(Paragraph::new(KEYS.dim()), foot);
    if app.help {
        help(frame, area);
    }
}

fn head(app: &App) -> Line<'_> {
    let Some(status) = &app.status else { return Line::from("asking the agent") };
    let state = match (&app.away, status.degraded) {
        (Some(_), _) => " AGENT AWAY ".white().on_red(),
        (None, true) => " DEGRADED ".black().on_yellow(),
        (None, false) => " working ".black().on_green(),
    };
    let mut spans = vec![
        Span::from(format!(
            "lbd {}, up {}, revision {} ",
            status.version,
            age(status.uptime_seconds),
            status.revision
        ))
        .bold(),
        state,
    ];
    if app.paused {
        spans.push(" ".into());
        spans.push(" PAUSED ".black().on_cyan());
    }
    if let Some(why) = &app.away {
        spans.push(format!(" {why}").red());
    }
    Line::from(spans)
}

fn totals(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let Some(status) = &app.status else { return };
    let all = status.services.iter().map(|service| app.rates.of(&service.name));
    let all = all.fold(Rate::default(), |sum, rate| Rate {
        connections: sum.connections + rate.connections,
        packets: sum.packets + rate.packets,
        bytes: sum.bytes + rate.bytes,
        replies: sum.replies + rate.replies,
    });
    let at = &status.dataplane;
    let text = format!(
        "{} conn/s  {} pkt/s  {}/s  flows {}  settling {}  drops {}",
        few(all.connections),
        few(all.packets),
        bytes(all.bytes as u64),
        count(at.flows.used + at.udp_flows.used),
        count(at.slots.unsettled),
        count(at.drops.values().sum()),
    );
    let [left, right] =
        Layout::horizontal([Constraint::Length(text.len() as u16 + 2), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(text), left);
    let history = app.rates.history(right.width.into());
    frame.render_widget(Sparkline::default().data(&history).style(Style::new().fg(Color::Cyan)), right);
}

/// Where one is, and what is chosen.
fn trail(app: &App) -> Line<'_> {
    let place = match &app.level {
        Level::Services => "services".to_owned(),
        Level::Pools { service } => format!("services > {service}"),
        Level::Backends { service, pool } => format!("services > {service} > {pool}"),
        Level::Events => "events".to_owned(),
    };
    let mut spans = vec![place.bold()];
    if app.level != Level::Events {
        let way = if app.descending { ", reversed" } else { "" };
        spans.push(format!("   by {}{way}", app.sort.as_str()).dim());
    }
    if app.filtering || !app.filter.is_empty() {
        let cursor = if app.filtering { "_" } else { "" };
        spans.push(format!("   /{}{cursor}", app.filter).yellow());
    }
    Line::from(spans)
}

fn findings(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let Some(status) = &app.status else { return };
    let lines: Vec<Line<'_>> = status
        .findings
        .iter()
        .take(area.height.into())
        .map(|found| {
            let text = format!("{} {}: {}", found.code, found.subject, found.message);
            Line::from(text).style(tone(found.severity))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
}

const fn tone(severity: Severity) -> Style {
    match severity {
        Severity::Info => Style::new(),
        Severity::Warning => Style::new().fg(Color::Yellow),
        Severity::Error => Style::new().fg(Color::Red),
    }
}

fn event_line(event: &Event) -> Line<'_> {
    // The time of the day, of RFC 3339.
    let time = event.time.get(11..19).unwrap_or(&event.time);
    Line::from(vec![
        time.to_owned().dim(),
        " ".into(),
        Span::styled(event.code.as_str(), tone(event.severity)),
        format!(" {}", event.message).into(),
    ])
}

fn all_events(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let shown = app.events.iter().rev().skip(app.back).take(area.height.into());
    let lines: Vec<Line<'_>> = shown.map(event_line).collect();
    let lines: Vec<Line<'_>> = lines.into_iter().rev().collect();
    frame.render_widget(Paragraph::new(lines), area);
}

/// A column: its title, its width, and what stands in it.
type Column = (&'static str, Constraint, fn(&App, &Row<'_>) -> Cell<'static>);

fn rows(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let rows = app.rows();
    if rows.is_empty() {
        let why = match (&app.filter.is_empty(), &app.level) {
            (false, _) => "nothing has a name like this (esc takes the filter away)",
            (true, Level::Services) => "there are no services: `lbctl apply -f /etc/lb/lb.toml`",
            (true, _) => "it is gone (esc leads back)",
        };
        frame.render_widget(Paragraph::new(why.dim()), area);
        return;
    }
    let columns: Vec<&Column> = match app.level {
        Level::Services | Level::Events => chosen(SERVICES, SERVICES_WIDE, area.width),
        Level::Pools { .. } => chosen(POOLS, POOLS_WIDE, area.width),
        Level::Backends { .. } => chosen(BACKENDS, BACKENDS_WIDE, area.width),
    };
    let header = Drawn::new(columns.iter().map(|(title, ..)| Cell::from(*title).bold()));
    let widths: Vec<Constraint> = columns.iter().map(|(_, width, _)| *width).collect();
    let drawn = rows.iter().map(|row| Drawn::new(columns.iter().map(|(.., cell)| cell(app, row))));
    let table = Table::new(drawn, widths)
        .header(header)
        .column_spacing(1)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(Some(app.at()));
    frame.render_stateful_widget(table, area, &mut state);
}

fn chosen<'a>(columns: &'a [Column], more: &'a [Column], width: u16) -> Vec<&'a Column> {
    if width >= WIDE { columns.iter().chain(more).collect() } else { columns.iter().collect() }
}

const fn wide_as(width: u16) -> Constraint {
    Constraint::Length(width)
}

fn rate_cell(of: f64) -> Cell<'static> {
    right(few(of))
}

fn right(text: String) -> Cell<'static> {
    Cell::from(Line::from(text).right_aligned())
}

const CONNECTIONS: Column = ("  CONN/S", wide_as(8), |app, row| rate_cell(app.rate(row).connections));
const PACKETS: Column = ("   PKT/S", wide_as(8), |app, row| rate_cell(app.rate(row).packets));
const BYTES: Column = ("   BYTES/S", wide_as(10), |app, row| right(bytes(app.rate(row).bytes as u64)));
const REPLIES: Column = (" REPLY/S", wide_as(8), |app, row| rate_cell(app.rate(row).replies));

const SERVICES: &[Column] = &[
    ("SERVICE", Constraint::Fill(1), |_, row| Cell::from(row.name().to_owned()).bold()),
    ("VIP", wide_as(24), |_, row| Cell::from(vip(service(row)))),
    ("  SPLIT", wide_as(7), |_, row| {
        let service = service(row);
        let text = if service.canary.is_some() { percent(service.split.percent) } else { "-".to_owned() };
        let cell = right(text);
        if service.split.settled { cell } else { cell.yellow() }
    }),
    (" READY", wide_as(6), |_, row| ready(&service(row).pools)),
    CONNECTIONS,
    PACKETS,
    BYTES,
];

const SERVICES_WIDE: &[Column] = &[
    REPLIES,
    ("MODE", wide_as(9), |_, row| Cell::from(service(row).mode.to_string())),
    ("STABLE > CANARY", Constraint::Fill(1), |_, row| {
        let service = service(row);
        Cell::from(match &service.canary {
            Some(canary) => format!("{} > {canary}", service.stable),
            None => service.stable.clone(),
        })
    }),
];

fn latency(of: Option<f64>) -> Cell<'static> {
    right(of.map_or("-".to_owned(), |seconds| short_time(Duration::from_secs_f64(seconds))))
}

const POOLS: &[Column] = &[
    ("POOL", Constraint::Fill(1), |_, row| Cell::from(row.name().to_owned()).bold()),
    ("ROLE", wide_as(7), |_, row| {
        Cell::from(pool(row).map_or_else(String::new, |pool| pool.role.to_string()))
    }),
    ("  SHARE", wide_as(7), |_, row| {
        right(pool(row).map_or_else(String::new, |pool| percent(pool.share_percent)))
    }),
    ("   SEEN", wide_as(7), |app, row| {
        let all = app.rates.of(&service(row).name).connections;
        let own = app.rate(row).connections;
        right(if all > 0.0 { percent((own / all * 1_000.0).round() / 10.0) } else { "-".to_owned() })
    }),
    (" READY", wide_as(6), |_, row| ready(pool(row).map_or(&[], std::slice::from_ref))),
    CONNECTIONS,
    PACKETS,
    ("    P50", wide_as(7), |_, row| latency(pool(row).and_then(|pool| Some(pool.handshake?.p50)))),
    ("    P99", wide_as(7), |_, row| latency(pool(row).and_then(|pool| Some(pool.handshake?.p99)))),
];

const POOLS_WIDE: &[Column] = &[
    BYTES,
    REPLIES,
    ("   FLOWS", wide_as(8), |_, row| {
        let backends = pool(row).map_or(&[][..], |pool| &pool.backends);
        right(count(backends.iter().map(|backend| backend.tracked_flows).sum()))
    }),
    ("NOTE", Constraint::Fill(2), |_, row| {
        let Some(pool) = pool(row) else { return Cell::default() };
        let notes = [
            pool.panic.then(|| "panic: health is ignored".to_owned()),
            pool.failed.then(|| "failed: too few are healthy".to_owned()),
            pool.spills_to.as_ref().map(|other| format!("its new flows go to {other}")),
        ];
        Cell::from(notes.into_iter().flatten().collect::<Vec<_>>().join("; ")).red()
    }),
];

const BACKENDS: &[Column] = &[
    ("BACKEND", Constraint::Fill(1), |_, row| Cell::from(row.name().to_owned()).bold()),
    ("STATE", wide_as(7), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        match backend.state {
            _ if backend.terminating => Cell::from("leaving").yellow(),
            AdminState::Ready => Cell::from("ready"),
            state => Cell::from(state.to_string()).yellow(),
        }
    }),
    ("HEALTH", wide_as(9), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        let cell = Cell::from(backend.health.status.to_string());
        match backend.health.status {
            HealthState::Up => cell.green(),
            HealthState::Down => cell.red(),
            HealthState::Unknown => cell.yellow(),
            HealthState::Unchecked => cell.dim(),
        }
    }),
    ("  CHECK", wide_as(7), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        right(backend.health.last_duration_seconds.map_or("-".to_owned(), |it| format!("{:.1}ms", it * 1e3)))
    }),
    ("WEIGHT", wide_as(6), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        let cell = right(backend.weight.to_string());
        if backend.weight == backend.configured_weight { cell } else { cell.yellow() }
    }),
    CONNECTIONS,
    PACKETS,
    ("  FLOWS", wide_as(7), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        right(count(backend.tracked_flows))
    }),
];

const BACKENDS_WIDE: &[Column] = &[
    ("LATENCY", wide_as(7), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        latency(backend.steering.and_then(|steering| steering.latency_seconds))
    }),
    BYTES,
    REPLIES,
    (" SHARE", wide_as(7), |_, row| {
        let Row::Backend(_, pool, backend) = row else { return Cell::default() };
        let all: u32 = pool.backends.iter().map(|backend| backend.slots).sum();
        let share = if all == 0 { 0.0 } else { f64::from(backend.slots) / f64::from(all) * 100.0 };
        right(percent((share * 10.0).round() / 10.0))
    }),
    ("NOTE", Constraint::Fill(1), |_, row| {
        let Row::Backend(_, _, backend) = row else { return Cell::default() };
        let why = backend.why_not.clone().or_else(|| backend.health.reason.clone());
        Cell::from(why.unwrap_or_default()).yellow()
    }),
];

const fn service<'a>(row: &'a Row<'_>) -> &'a ServiceStatus {
    match row {
        Row::Service(service) | Row::Pool(service, _) | Row::Backend(service, ..) => service,
    }
}

const fn pool<'a>(row: &'a Row<'_>) -> Option<&'a PoolStatus> {
    match row {
        Row::Pool(_, pool) | Row::Backend(_, pool, _) => Some(pool),
        Row::Service(_) => None,
    }
}

fn ready(pools: &[PoolStatus]) -> Cell<'static> {
    let backends = pools.iter().flat_map(|pool| &pool.backends).filter(|backend| !backend.terminating);
    let (ready, all) = backends.fold((0, 0), |(ready, all), backend| {
        (ready + u32::from(backend.takes_new || backend.standby), all + 1)
    });
    let cell = right(format!("{ready}/{all}"));
    match ready {
        _ if ready == all => cell.green(),
        0 => cell.red(),
        _ => cell.yellow(),
    }
}

/// Below ten, a decimal counts.
fn few(of: f64) -> String {
    match of {
        0.0 => "0".to_owned(),
        few if few < 9.95 => format!("{few:.1}"),
        many => count(many.round() as u64),
    }
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let (width, height) = (76.min(area.width), (HELP.lines().count() as u16 + 2).min(area.height));
    let at = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, at);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" lbctl top ")), at);
}
