//! The board that stays at the bottom of the terminal: who answers, how many ask.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anstyle::Style;

use crate::{
    clients::{Clients, RATE, Request},
    figures::{Share, count},
    stage::{CANARY, SERVERS, STABLE},
    text::{self, Line},
};

/// What the board has to show.
#[derive(Debug, Default)]
pub struct Board(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
    title: String,
    /// The share that the canary is to have, in percent.
    wanted: f64,
    clients: Option<Arc<Clients>>,
}

impl Board {
    /// Names the act.
    pub fn set_title(&self, title: &str) {
        title.clone_into(&mut self.content().title);
    }

    /// Sets the mark of the canary's share.
    pub fn want(&self, percent: f64) {
        self.content().wanted = percent;
    }

    /// Shows what these clients see.
    pub fn watch(&self, clients: Arc<Clients>) {
        self.content().clients = Some(clients);
    }

    /// Shows nothing any more.
    pub fn forget(&self) {
        *self.content() = Content::default();
    }

    /// The rows, for a terminal of this width; none before there are clients.
    #[must_use]
    pub fn lines(&self, width: usize, elapsed: Duration) -> Vec<Line> {
        let content = self.content();
        let Some(clients) = &content.clients else {
            return Vec::new();
        };
        let seen = Glance::at(clients);
        let share = |part| seen.share(part).percent();
        let canary = seen.by[CANARY].latest;
        let cells = width.saturating_sub(22).clamp(10, 64);
        let bars = [
            ("v41", text::STABLE, share(seen.stable()), 100.0 - content.wanted),
            ("v42", text::CANARY, share(canary), content.wanted),
            ("failed", text::BAD, share(seen.failed.latest), 0.0),
        ];
        let bars = bars.map(|(name, style, percent, wanted)| {
            let line = Line::from("  ").styled(style, name).padded(10);
            line.append(bar(style, percent, wanted, cells)).strong(format!("  {percent:>5.1} %"))
        });
        let mut lines = vec![Line::new(), rule(&content.title, elapsed, width - 1)];
        lines.extend(bars);
        lines.extend((0..SERVERS.len()).map(|i| seen.server(i)));
        lines.push(seen.all());
        lines
    }

    /// The same in one line of words.
    #[must_use]
    pub fn in_words(&self) -> Option<Line> {
        let content = self.content();
        let seen = Glance::at(content.clients.as_ref()?);
        let share = |part| seen.share(part).percent();
        Some(Line::from(format!(
            "    ... {}/s: v41 {:.1} %, v42 {:.1} %, failed {:.1} %; {} of {} connections held",
            seen.latest(),
            share(seen.stable()),
            share(seen.by[CANARY].latest),
            share(seen.failed.latest),
            seen.alive(),
            seen.holders,
        )))
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last moments of the clients.
struct Glance {
    /// Answers, by server.
    by: [Beats; SERVERS.len()],
    failed: Beats,
    /// Long-lived connections that are alive, by server.
    held: [usize; SERVERS.len()],
    /// All of them, with those that are no more.
    holders: usize,
    /// Requests ever, and failed ones.
    totals: (u64, u64),
}

/// How many of something there were.
#[derive(Clone, Copy, Default)]
struct Beats {
    /// In the last [`LATEST`].
    latest: u64,
    /// In each [`BEAT`], the latest last.
    each: [u64; BEATS],
}

const LATEST: Duration = Duration::from_secs(1);
const BEAT: Duration = Duration::from_millis(500);
const BEATS: usize = 20;

impl Glance {
    fn at(clients: &Clients) -> Self {
        let now = Instant::now();
        let connections = clients.held();
        let mut seen = Self {
            by: Default::default(),
            failed: Beats::default(),
            held: Default::default(),
            holders: connections.len(),
            totals: clients.totals(),
        };
        for server in connections.iter().filter(|held| held.broken.is_none()).filter_map(|held| held.server) {
            seen.held[server] += 1;
        }
        let first = now.checked_sub(BEAT * BEATS as u32).unwrap_or(now);
        clients.look(first, |requests| {
            for request in requests {
                seen.note(request, now);
            }
        });
        seen
    }

    fn note(&mut self, request: &Request, now: Instant) {
        let beats = match request.answer {
            Ok(server) => &mut self.by[server],
            Err(_) => &mut self.failed,
        };
        let age = now.saturating_duration_since(request.ended);
        beats.latest += u64::from(age <= LATEST);
        let back = (age.as_secs_f64() / BEAT.as_secs_f64()) as usize;
        if let Some(index) = (BEATS - 1).checked_sub(back) {
            beats.each[index] += 1;
        }
    }

    fn stable(&self) -> u64 {
        self.by[STABLE].iter().map(|beats| beats.latest).sum()
    }

    fn latest(&self) -> u64 {
        self.by.iter().map(|beats| beats.latest).sum::<u64>() + self.failed.latest
    }

    fn share(&self, part: u64) -> Share {
        Share { part, whole: self.latest() }
    }

    fn alive(&self) -> usize {
        self.held.iter().sum()
    }

    fn server(&self, server: usize) -> Line {
        let style = if STABLE.contains(&server) { text::STABLE } else { text::CANARY };
        let beats = &self.by[server];
        let line = Line::from("  ").styled(style, SERVERS[server]).padded(10);
        let line = beats.each.iter().fold(line, |line, beat| line.styled(style, step(*beat)));
        line.plain(format!("{:>6}/s", beats.latest)).dim(format!("{:>6} held", self.held[server]))
    }

    fn all(&self) -> Line {
        let mut line = Line::from("  all").padded(10);
        for (beat, failed) in self.failed.each.iter().enumerate() {
            let style = if *failed == 0 { text::GOOD } else { text::BAD };
            let answered: u64 = self.by.iter().map(|beats| beats.each[beat]).sum();
            line = line.styled(style, step(answered + failed));
        }
        let (requests, failed) = self.totals;
        let style = if failed == 0 { text::GOOD } else { text::BAD };
        line.plain(format!("{:>6}/s", self.latest()))
            .dim(format!("{:>6} held", self.alive()))
            .plain(format!("  {} asked, ", count(requests)))
            .styled(style, format!("{} failed", count(failed)))
    }
}

/// How many requests a beat had, against the full rate.
fn step(beat: u64) -> &'static str {
    const STEPS: [&str; 9] = [" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"];
    let eighths = (8.0 * beat as f64 / (RATE * BEAT.as_secs_f64())).round() as usize;
    let least = usize::from(beat > 0);
    STEPS[eighths.clamp(least, 8)]
}

/// A rule of this width with the act and the time in it.
fn rule(title: &str, elapsed: Duration, width: usize) -> Line {
    let time = format!(" {}:{:02} ", elapsed.as_secs() / 60, elapsed.as_secs() % 60);
    let line = Line::new().dim("── ").strong(title).plain(" ");
    let rest = width.saturating_sub(line.width() + time.len() + 2);
    line.dim("─".repeat(rest)).plain(time).dim("──")
}

/// A bar in steps of an eighth of a cell, with a mark where it should end.
fn bar(style: Style, percent: f64, wanted: f64, cells: usize) -> Line {
    const PARTS: [&str; 9] = ["·", "▏", "▎", "▍", "▌", "▋", "▊", "▉", "█"];
    let eighths = (percent / 100.0 * 8.0 * cells as f64).round() as usize;
    let mark = (wanted > 0.0).then(|| ((wanted / 100.0 * cells as f64) as usize).min(cells - 1));
    (0..cells).fold(Line::new(), |line, cell| match eighths.saturating_sub(8 * cell).min(8) {
        _ if mark == Some(cell) => line.strong("┃"),
        0 => line.dim(PARTS[0]),
        part => line.styled(style, PARTS[part]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_ends_at_its_share_and_is_marked_at_the_wanted_one() {
        let shown = |percent, wanted| bar(text::GOOD, percent, wanted, 10).render(false, None);
        assert_eq!(shown(0.0, 0.0), "··········");
        assert_eq!(shown(100.0, 0.0), "██████████");
        assert_eq!(shown(25.0, 0.0), "██▌·······");
        assert_eq!(shown(25.0, 50.0), "██▌··┃····");
        assert_eq!(shown(100.0, 100.0), "█████████┃");
    }

    #[test]
    fn a_beat_is_seen_from_its_first_request_and_full_at_the_rate() {
        let full = (RATE * BEAT.as_secs_f64()) as u64;
        assert_eq!([0, 1, full / 2, full, 3 * full].map(step), [" ", "▁", "▄", "█", "█"]);
    }

    #[test]
    fn a_rule_is_as_wide_as_it_should_be() {
        let rule = rule("1  An act", Duration::from_secs(65), 60);
        assert_eq!(rule.width(), 60);
        assert!(rule.render(false, None).ends_with(" 1:05 ──"));
    }
}
