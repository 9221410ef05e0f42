//! What is known, what is looked at, and what keys do.

use std::collections::VecDeque;
use std::time::Instant;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::rates::{Rate, Rates};
use crate::api::{BackendStatus, Event, PoolStatus, ServiceStatus, Status};

/// What a key leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    Go,
    End,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Level {
    Services,
    Pools { service: String },
    Backends { service: String, pool: String },
    Events,
}

/// What rows are in order of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Name,
    Connections,
    Packets,
    Bytes,
}

impl Sort {
    const ALL: [Self; 4] = [Self::Name, Self::Connections, Self::Packets, Self::Bytes];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Connections => "connections",
            Self::Packets => "packets",
            Self::Bytes => "bytes",
        }
    }
}

/// A row, and what belongs to it.
#[derive(Debug)]
pub enum Row<'a> {
    Service(&'a ServiceStatus),
    Pool(&'a ServiceStatus, &'a PoolStatus),
    Backend(&'a ServiceStatus, &'a PoolStatus, &'a BackendStatus),
}

impl Row<'_> {
    /// What it is found by.
    pub fn name(&self) -> &str {
        match self {
            Self::Service(service) => &service.name,
            Self::Pool(_, pool) => &pool.name,
            Self::Backend(_, _, backend) => &backend.name,
        }
    }

    fn key(&self) -> String {
        match self {
            Self::Service(service) => service.name.clone(),
            Self::Pool(service, pool) => format!("{}/{}", service.name, pool.name),
            Self::Backend(service, pool, backend) => {
                format!("{}/{}/{}", service.name, pool.name, backend.name)
            }
        }
    }
}

/// As many events as are remembered.
const EVENTS: usize = 500;

/// Everything but clock and terminal.
#[derive(Debug)]
pub struct App {
    pub status: Option<Status>,
    pub level: Level,
    pub sort: Sort,
    pub descending: bool,
    pub filter: String,
    /// Whether the filter is being written.
    pub filtering: bool,
    pub paused: bool,
    pub help: bool,
    /// Why the agent cannot be reached.
    pub away: Option<String>,
    pub events: VecDeque<Event>,
    pub rates: Rates,
    /// Name of the row that is marked; rows come and go above it.
    marked: Option<String>,
    /// How far events are scrolled back.
    pub back: usize,
}

impl App {
    /// Looking at all services, or at one.
    pub fn new(service: Option<String>) -> Self {
        Self {
            status: None,
            level: service.map_or(Level::Services, |service| Level::Pools { service }),
            sort: Sort::Name,
            descending: false,
            filter: String::new(),
            filtering: false,
            paused: false,
            help: false,
            away: None,
            events: VecDeque::new(),
            rates: Rates::default(),
            marked: None,
            back: 0,
        }
    }

    /// The agent's answer.
    pub fn take(&mut self, status: Status, at: Instant) {
        self.rates.take(&status.services, at);
        self.status = Some(status);
        self.away = None;
    }

    /// It does not answer; what it said last stays.
    pub fn is_away(&mut self, why: String) {
        self.away = Some(why);
    }

    /// What has happened since.
    pub fn happened(&mut self, events: Vec<Event>) {
        self.events.extend(events);
        while self.events.len() > EVENTS {
            self.events.pop_front();
        }
    }

    pub fn last_event(&self) -> Option<u64> {
        self.events.back().map(|event| event.seq)
    }

    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// The rows of this level that pass the filter, in order.
    pub fn rows(&self) -> Vec<Row<'_>> {
        let services: &[ServiceStatus] = self.status.as_ref().map_or(&[], |status| &status.services);
        let of = |name: &str| services.iter().find(|service| service.name == name);
        let mut rows: Vec<Row<'_>> = match &self.level {
            Level::Services => services.iter().map(Row::Service).collect(),
            Level::Pools { service } => {
                let pools =
                    of(service).into_iter().flat_map(|it| it.pools.iter().map(move |pool| (it, pool)));
                pools.map(|(service, pool)| Row::Pool(service, pool)).collect()
            }
            Level::Backends { service, pool } => {
                let found =
                    of(service).and_then(|it| Some((it, it.pools.iter().find(|it| it.name == *pool)?)));
                found.map(|(service, pool)| backends_of(service, pool)).unwrap_or_default()
            }
            Level::Events => Vec::new(),
        };
        let filter = self.filter.to_lowercase();
        rows.retain(|row| row.name().to_lowercase().contains(&filter));
        let number = |rate: Rate| match self.sort {
            Sort::Name => 0.0,
            Sort::Connections => rate.connections,
            Sort::Packets => rate.packets,
            Sort::Bytes => rate.bytes,
        };
        match self.sort {
            // Stable before canary is an order of its own.
            Sort::Name if matches!(self.level, Level::Pools { .. }) => {}
            Sort::Name => rows.sort_by(|a, b| a.name().cmp(b.name())),
            _ => rows.sort_by(|a, b| number(self.rate(b)).total_cmp(&number(self.rate(a)))),
        }
        if self.descending {
            rows.reverse();
        }
        rows
    }

    pub fn rate(&self, row: &Row<'_>) -> Rate {
        self.rates.of(&row.key())
    }

    /// Which row is marked.
    pub fn at(&self) -> usize {
        let rows = self.rows();
        let marked = self.marked.as_deref();
        rows.iter().position(|row| Some(row.name()) == marked).unwrap_or(0)
    }

    /// What a key does.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Next::End;
        }
        if self.filtering {
            self.write_filter(key.code);
            return Next::Go;
        }
        if self.help {
            self.help = false;
            return Next::Go;
        }
        match key.code {
            KeyCode::Char('q') => return Next::End,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.filtering = true,
            KeyCode::Char('s') => self.next_sort(),
            KeyCode::Char('S' | 'r') => self.descending = !self.descending,
            KeyCode::Char('e') => self.go(Level::Events),
            KeyCode::Char('j') | KeyCode::Down => self.step(1),
            KeyCode::Char('k') | KeyCode::Up => self.step(-1),
            KeyCode::PageDown => self.step(10),
            KeyCode::PageUp => self.step(-10),
            KeyCode::Char('g') | KeyCode::Home => self.step(isize::MIN / 2),
            KeyCode::Char('G') | KeyCode::End => self.step(isize::MAX / 2),
            KeyCode::Enter | KeyCode::Right | KeyCode::Char('l') => self.enter(),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.leave(),
            _ => {}
        }
        Next::Go
    }

    fn write_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.filtering = false,
            KeyCode::Esc => {
                self.filtering = false;
                self.filter.clear();
            }
            KeyCode::Backspace => _ = self.filter.pop(),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn next_sort(&mut self) {
        let at = Sort::ALL.iter().position(|sort| *sort == self.sort).unwrap_or(0);
        self.sort = Sort::ALL[(at + 1) % Sort::ALL.len()];
        self.descending = false;
    }

    fn step(&mut self, by: isize) {
        if self.level == Level::Events {
            let most = self.events.len().saturating_sub(1);
            // Down is towards what is newer.
            self.back = self.back.saturating_add_signed(-by).min(most);
            return;
        }
        let at = self.at();
        let rows = self.rows();
        let to = at.saturating_add_signed(by).min(rows.len().saturating_sub(1));
        self.marked = rows.get(to).map(|row| row.name().to_owned());
    }

    fn enter(&mut self) {
        let at = self.at();
        let below = match self.rows().get(at) {
            Some(Row::Service(service)) => Level::Pools { service: service.name.clone() },
            Some(Row::Pool(service, pool)) => {
                Level::Backends { service: service.name.clone(), pool: pool.name.clone() }
            }
            Some(Row::Backend(..)) | None => return,
        };
        self.go(below);
    }

    /// A level up; first, a filter is taken away.
    fn leave(&mut self) {
        if !self.filter.is_empty() {
            self.filter.clear();
            return;
        }
        let (above, marked) = match &self.level {
            Level::Services => return,
            Level::Events => (Level::Services, None),
            Level::Pools { service } => (Level::Services, Some(service.clone())),
            Level::Backends { service, pool } => {
                (Level::Pools { service: service.clone() }, Some(pool.clone()))
            }
        };
        self.go(above);
        self.marked = marked;
    }

    fn go(&mut self, to: Level) {
        self.level = to;
        self.marked = None;
        self.back = 0;
        self.filter.clear();
    }
}

fn backends_of<'a>(service: &'a ServiceStatus, pool: &'a PoolStatus) -> Vec<Row<'a>> {
    pool.backends.iter().map(|backend| Row::Backend(service, pool, backend)).collect()
}
