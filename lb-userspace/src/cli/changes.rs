//! What a change did, for people.

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::human::{counted, percent};
use super::screen::{Format, Screen};
use super::table::{Table, Tone, cells, column};
use crate::api::{Applied, Change};

/// Shows what was done, or would be. Paths that name no service are of the one that is given.
pub(super) fn show(applied: &Applied, service: &str, screen: &mut Screen) -> io::Result<()> {
    if screen.format == Format::Json {
        return screen.json(applied);
    }
    let Applied { revision, service_revision, changed, dry_run, changes, moved, warnings, .. } = applied;
    for warning in warnings {
        screen.remark(&format!("warning: {warning}"))?;
    }
    if !changed {
        return screen.say(&format!("nothing to change at revision {revision}\n"));
    }
    let made = counted(list(changes, service, screen)?, "change");
    let move_ = if *dry_run { "would move" } else { "move" };
    for moved in moved {
        screen.say(&format!(
            "{}: {} of the slots and {} of the clients {move_}\n",
            moved.service,
            percent(moved.slots_moved_percent),
            percent(moved.clients_moved_percent),
        ))?;
    }
    screen.say(&match dry_run {
        true => format!("{made} would be made; nothing was done, still at revision {revision}\n"),
        false => match service_revision {
            None => format!("{made} made, now at revision {revision}\n"),
            Some(own) => format!("{made} made, now at revision {revision}, the service's own is {own}\n"),
        },
    })
}

/// Every change by what it is of; how many there are, each backend that comes or goes being one.
pub(super) fn list(changes: &[Change], service: &str, screen: &mut Screen) -> io::Result<u64> {
    let rows = rows(changes, service, screen.is_wide());
    let mut table = Table::new([column("OF"), column("VALUE"), column("FROM"), column("TO").text()]);
    for Row { of, value, from, to } in &rows {
        let cell = |value: &Option<String>, tone: Tone| match value {
            Some(value) => tone.cell(value.clone()),
            None => Tone::Faint.cell("-"),
        };
        let (before, after) = match (from, to) {
            (None, _) => (Tone::Plain, Tone::Good),
            (_, None) => (Tone::Bad, Tone::Plain),
            _ => (Tone::Faint, Tone::Plain),
        };
        table.row("", cells![of, value, cell(from, before), cell(to, after)]);
    }
    screen.table(&table, "")?;
    Ok(rows.len() as u64)
}

/// On one line: `web/v1/10.0.1.11:80 weight 100 -> 50`.
pub(super) fn in_words(change: &Change, service: &str) -> String {
    let Place { of, value, .. } = place(&change.path, service);
    match (&change.from, &change.to) {
        (Some(from), Some(to)) => format!("{of} {value} {from} -> {to}"),
        (None, Some(to)) => format!("{of} {value} new: {to}"),
        (Some(_), None) => format!("{of} {value} gone"),
        (None, None) => format!("{of} {value}"),
    }
}

#[derive(Debug, PartialEq)]
struct Row {
    of: String,
    value: String,
    from: Option<String>,
    to: Option<String>,
}

/// Values that come or go together are a row from so many on.
const MANY: usize = 3;

fn rows(changes: &[Change], service: &str, everything: bool) -> Vec<Row> {
    let placed: Vec<(Place, &Change)> =
        changes.iter().map(|change| (place(&change.path, service), change)).collect();
    let together = |(one, a): &(Place, &Change), (other, b): &(Place, &Change)| {
        comes(a).is_some() && comes(a) == comes(b) && one.of == other.of && one.part() == other.part()
    };
    let mut rows = Vec::new();
    for group in placed.chunk_by(together) {
        let Some((first, change)) = group.first() else { continue };
        let folded = comes(change).filter(|_| !everything).and_then(|comes| folded(first, group, comes));
        match folded {
            Some(row) => rows.push(row),
            None => rows.extend(group.iter().map(|(it, change)| Row {
                of: it.of.clone(),
                value: it.value.clone(),
                from: change.from.clone(),
                to: change.to.clone(),
            })),
        }
    }
    rows
}

/// Whether a value is new, or gone; `None` if it is another one.
const fn comes(change: &Change) -> Option<bool> {
    match (&change.from, &change.to) {
        (None, Some(_)) => Some(true),
        (Some(_), None) => Some(false),
        _ => None,
    }
}

/// One row for a backend that comes or goes, or for a section of which many values do.
fn folded(first: &Place, group: &[(Place, &Change)], comes: bool) -> Option<Row> {
    let word = if comes { "added" } else { "removed" };
    let (value, what) = if first.is_backend {
        group.iter().find(|(it, _)| it.value == "address")?;
        let weight = group.iter().find(|(it, _)| it.value == "weight");
        let weight = weight.and_then(|(_, change)| change.to.as_ref().or(change.from.as_ref()));
        let weight = weight.map_or_else(String::new, |weight| format!(", weight {weight}"));
        ("backend".to_owned(), format!("{word}{weight}"))
    } else if group.len() >= MANY {
        (first.part().to_owned(), format!("{} values {word}; -o wide lists them", group.len()))
    } else {
        return None;
    };
    let (from, to) = if comes { (None, Some(what)) } else { (Some(what), None) };
    Some(Row { of: first.of.clone(), value, from, to })
}

/// Where a value is: of a backend as `lbctl set` takes it, of a service, or of `dataplane`.
#[derive(Debug, PartialEq)]
struct Place {
    of: String,
    value: String,
    is_backend: bool,
}

impl Place {
    /// The section that a value is in; of a backend all is one.
    fn part(&self) -> &str {
        if self.is_backend {
            return "";
        }
        let depth = if self.value.starts_with("pool.") { 2 } else { 1 };
        let end = self.value.match_indices('.').nth(depth - 1).map_or(self.value.len(), |(at, _)| at);
        &self.value[..end]
    }
}

fn place(path: &str, service: &str) -> Place {
    let plain =
        |of: &str, value: &str| Place { of: of.to_owned(), value: value.to_owned(), is_backend: false };
    if let Some(rest) = path.strip_prefix("dataplane.") {
        return plain("dataplane", rest);
    }
    let (owner, value) = match path.strip_prefix("service.") {
        None => (service, path),
        Some(rest) => {
            let known = rest.strip_prefix(service).and_then(|rest| rest.strip_prefix('.'));
            match known.filter(|_| !service.is_empty()) {
                Some(value) => (service, value),
                // A name may have dots in it; what follows it is a pool, or has none before it.
                None => match rest.find(".pool.").or_else(|| rest.find('.')) {
                    Some(at) => (&rest[..at], &rest[at + 1..]),
                    None => (rest, ""),
                },
            }
        }
    };
    let backend = value.strip_prefix("pool.").and_then(|rest| {
        let (pool, rest) = rest.split_once(".backend.")?;
        let ends = rest.match_indices('.').map(|(at, _)| at);
        let end = ends.into_iter().find(|&at| is_address(&rest[..at]))?;
        Some((format!("{owner}/{pool}/{}", &rest[..end]), &rest[end + 1..]))
    });
    match backend {
        Some((of, value)) => {
            let value = match value.strip_suffix(".override") {
                Some(value) => format!("{value} (override)"),
                None => value.to_owned(),
            };
            Place { of, value, is_backend: true }
        }
        None => plain(owner, value),
    }
}

fn is_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok() || text.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &str, from: Option<&str>, to: Option<&str>) -> Change {
        Change { path: path.to_owned(), from: from.map(str::to_owned), to: to.map(str::to_owned) }
    }

    #[test]
    fn a_backend_has_the_name_that_set_takes_whoever_tells_of_it() {
        for (path, shown) in [
            ("service.web.pool.v1.backend.203.0.113.11:80.weight", "web/v1/203.0.113.11:80 weight"),
            ("pool.v1.backend.[2001:db8::1]:80.weight.override", "web/v1/[2001:db8::1]:80 weight (override)"),
            ("service.dns.pool.a.b.backend.10.0.0.1.state", "dns/a.b/10.0.0.1 state"),
            ("service.web.split", "web split"),
            ("split", "web split"),
            ("pool.v1.min_healthy", "web pool.v1.min_healthy"),
            ("dataplane.flows", "dataplane flows"),
        ] {
            assert_eq!(in_words(&change(path, None, None), "web"), shown);
        }
        assert_eq!(place("service.a.eu.split", "a.eu").of, "a.eu");
        let unknown = place("service.web.eu.pool.v1.backend.10.0.0.1:80.weight", "");
        assert_eq!((unknown.of.as_str(), unknown.value.as_str()), ("web.eu/v1/10.0.0.1:80", "weight"));
    }

    #[test]
    fn a_backend_that_comes_or_goes_is_one_change_and_so_are_the_defaults_of_a_section() {
        let at = |key: &str| format!("service.web.pool.v1.backend.10.0.0.1:80.{key}");
        let changes = [
            change(&at("address"), Some("10.0.0.1:80"), None),
            change(&at("priority"), Some("0"), None),
            change(&at("weight"), Some("100"), None),
            change("service.web.pool.v1.backend.10.0.0.2:80.weight", Some("1"), Some("2")),
            change("service.web.rollout.hold", None, Some("5m")),
            change("service.web.rollout.max", None, Some("1")),
            change("service.web.rollout.min", None, Some("0")),
            change("service.web.split", Some("0 %"), Some("1 %")),
        ];
        let shown: Vec<String> = rows(&changes, "", false)
            .iter()
            .map(|Row { of, value, from, to }| {
                let text = |it: &Option<String>| it.clone().unwrap_or_else(|| "-".to_owned());
                format!("{of} {value}: {} -> {}", text(from), text(to))
            })
            .collect();
        assert_eq!(
            shown,
            [
                "web/v1/10.0.0.1:80 backend: removed, weight 100 -> -",
                "web/v1/10.0.0.2:80 weight: 1 -> 2",
                "web rollout: - -> 3 values added; -o wide lists them",
                "web split: 0 % -> 1 %",
            ]
        );
        assert_eq!(rows(&changes, "", true).len(), changes.len());
    }
}
