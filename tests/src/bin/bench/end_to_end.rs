//! Requests a second through namespaces: routed by the kernel (also past an empty XDP program), by nftables, by HAProxy, and by lb.

use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::Effort;
use crate::report::{self, Section, Table, median};
use servers::{CONNECTIONS, PORT, Way, Ways};

mod servers;

/// Requests a second, by each way.
#[derive(Debug, Serialize)]
pub struct Requests {
    rounds: u32,
    seconds_a_round: u32,
    connections: u32,
    ways: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    way: &'static str,
    /// Medians of all rounds.
    connection_a_request: f64,
    keep_alive: f64,
    /// Connections and requests that failed, of all rounds.
    errors: u64,
}

/// Fewer rounds than of packets: they are long.
const ROUNDS: u32 = 3;

/// What a client does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    ConnectionARequest,
    KeepAlive,
}

/// Has all ways take turns.
///
/// # Errors
/// If a program is missing, or a way does not carry a request.
pub fn measure(effort: Effort) -> Result<Requests> {
    let ways = Ways::build()?;
    let rounds = ROUNDS.min(effort.rounds);
    let mut seen: Vec<[Vec<f64>; 2]> = vec![Default::default(); ways.all().len()];
    let mut errors = vec![0; seen.len()];
    for _ in 0..rounds {
        for (place, style) in [Style::ConnectionARequest, Style::KeepAlive].into_iter().enumerate() {
            for (number, way) in ways.all().iter().enumerate() {
                report::at_work(way.name);
                let (rate, failed) =
                    drive(way, style, effort.seconds).with_context(|| way.name.to_owned())?;
                seen[number][place].push(rate);
                errors[number] += failed;
            }
        }
    }
    report::at_work("");
    let lines = ways.all().iter().zip(seen).zip(errors).map(|((way, rates), errors)| Line {
        way: way.name,
        connection_a_request: median(&rates[0]).unwrap_or_default(),
        keep_alive: median(&rates[1]).unwrap_or_default(),
        errors,
    });
    Ok(Requests { rounds, seconds_a_round: effort.seconds, connections: CONNECTIONS, ways: lines.collect() })
}

/// Two clients with half of the connections each: a router has two addresses, a balancer the same one twice.
fn drive(way: &Way, style: Style, seconds: u32) -> Result<(f64, u64)> {
    thread::scope(|scope| {
        let clients = way.targets.map(|target| scope.spawn(move || load(way, target, style, seconds)));
        let mut sum = (0.0, 0);
        for client in clients {
            let Ok(result) = client.join() else { bail!("a client died") };
            let (rate, errors) = result?;
            sum = (sum.0 + rate, sum.1 + errors);
        }
        ensure!(sum.0 > 0.0, "no request was answered");
        Ok(sum)
    })
}

fn load(way: &Way, target: std::net::IpAddr, style: Style, seconds: u32) -> Result<(f64, u64)> {
    let mut command = Command::new("wrk");
    command.args(["-t1", &format!("-c{}", CONNECTIONS / 2), &format!("-d{seconds}s"), "--timeout", "2s"]);
    if style == Style::ConnectionARequest {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{target}:{PORT}/"));
    let output = way.lab.client(0).output(command).context("wrk (Debian's package `wrk`)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr));
    parse(&text).with_context(|| format!("cannot read what wrk printed:\n{text}"))
}

/// Requests a second, and errors of all kinds.
fn parse(text: &str) -> Option<(f64, u64)> {
    let rate = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"))?.trim().parse().ok()?;
    // "  Socket errors: connect 0, read 5, write 0, timeout 0", and "  Non-2xx or 3xx responses: 7"
    let numbers =
        |line: &str| -> u64 { line.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum() };
    let bad = |line: &&str| line.contains("Socket errors:") || line.contains("Non-2xx");
    let errors = text.lines().filter(bad).map(|line| numbers(&line.replace("Non-2xx or 3xx", ""))).sum();
    Some((rate, errors))
}

impl Section for Requests {
    const TITLE: &'static str = "End to end";

    fn text(&self) -> String {
        let mut table = Table::new([
            "requests a second",
            "a connection each",
            "of routed",
            "keep-alive",
            "of routed",
            "errors",
        ]);
        let routed = (self.ways[0].connection_a_request, self.ways[0].keep_alive);
        for line in &self.ways {
            table.row(vec![
                line.way.to_owned(),
                format!("{:.0}", line.connection_a_request),
                format!("{:.2}", line.connection_a_request / routed.0),
                format!("{:.0}", line.keep_alive),
                format!("{:.2}", line.keep_alive / routed.1),
                line.errors.to_string(),
            ]);
        }
        format!(
            "{table}\nMedians of {} rounds of {} s in turns; wrk with {} connections, two nginx, all on the CPUs of one machine.\n",
            self.rounds, self.seconds_a_round, self.connections
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let text = "  2 threads\n  Socket errors: connect 1, read 5, write 0, timeout 2\n\
                    \x20 Non-2xx or 3xx responses: 7\nRequests/sec:   6614.25\nTransfer/sec:  1.0MB\n";
        assert_eq!(parse(text), Some((6614.25, 15)));
        assert_eq!(parse("unable to connect"), None);
    }
}
