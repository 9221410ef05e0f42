//! `lbctl trace`

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::Args;
use ipnet::IpNet;

use super::Outcome;
use super::set::one_of;
use super::whole;
use crate::api::{Trace as Body, TracePoint, Traced};
use crate::cli::Context;
use crate::cli::failure::Exit;
use crate::cli::human::{counted, either};
use crate::cli::screen::Format;
use crate::config::Protocol;

/// Which packets, and for how long: what `trace` and `capture` have in common.
#[derive(Debug, Args)]
pub(in crate::cli) struct Which {
    /// Only packets with this address, or one of this network, at one end (as they arrive).
    #[arg(long, value_name = "ADDRESS[/PREFIX]", value_parser = network)]
    pub host: Option<IpNet>,
    /// Only packets with this port at one end.
    #[arg(long, value_name = "PORT", value_parser = port)]
    pub port: Option<u16>,
    /// Only packets of this protocol.
    #[arg(long, value_name = "tcp|udp", value_parser = one_of(Protocol::ALL, Protocol::as_str))]
    pub protocol: Option<Protocol>,
    /// How long, 10 min at most.
    #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub lasts: Duration,
    /// Ends after so many packets.
    #[arg(short = 'c', long, value_name = "N", value_parser = whole::<u64>)]
    pub count: Option<u64>,
}

/// With or without the length of a prefix.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse().or_else(|_| address()).map_err(|_| format!("{text:?} is neither an address nor a network"))
}

fn port(text: &str) -> Result<u16, &'static str> {
    text.parse().ok().filter(|&port| port > 0).ok_or("a port is a number from 1 to 65535")
}

impl Which {
    pub fn body(&self, bytes: bool) -> Body {
        Body {
            address: self.host.map(|net| net.addr()),
            prefix: self.host.map(|net| net.prefix_len()),
            port: self.port,
            protocol: self.protocol,
            seconds: self.lasts.as_secs().max(1),
            bytes,
        }
    }
}

/// Follows packets through the balancer, and says of each what was decided, and why.
///
/// While it runs, a program that tells of packets takes the place of the one that does not, without losing a packet;
/// afterwards that one comes back. It ends after 30 seconds, unless told otherwise, and with Ctrl-C.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  lbctl trace --host 198.51.100.7 --for 1m
  lbctl trace --host 203.0.113.0/24 --port 443 --protocol tcp -c 20
  lbctl trace --dropped")]
pub(in crate::cli) struct Trace {
    #[command(flatten)]
    which: Which,
    /// Only packets that go nowhere.
    #[arg(long)]
    dropped: bool,
}

impl Trace {
    pub async fn run(self, context: &mut Context<'_>) -> Outcome {
        let Context { client, screen, .. } = context;
        let mut stream = client.trace(&self.which.body(false)).await?;
        screen.remark("tracing: what arrives after now is shown; Ctrl-C ends it")?;
        let mut shown = Lines { dropped: self.dropped, ..Lines::default() };
        let (mut lost, begun) = (0, Instant::now());
        while let Some(traced) = tokio::select! {
            next = stream.next() => next?,
            _ = tokio::signal::ctrl_c() => None,
        } {
            lost = lost.max(traced.lost);
            if screen.format == Format::Json {
                screen.json_line(&traced)?;
                shown.packets += u64::from(traced.point == TracePoint::Ends);
            } else if let Some(line) = shown.line(traced) {
                screen.say(&line)?;
                screen.flush()?;
            }
            if self.which.count.is_some_and(|count| shown.packets >= count) {
                break;
            }
        }
        if lost > 0 {
            screen.remark(&format!(
                "{} {} lost: packets came faster than they could be told of",
                counted(lost, "point"),
                either(lost, "was", "were")
            ))?;
        }
        if shown.packets == 0 {
            let whole = Duration::from_secs(begun.elapsed().as_secs_f64().round() as u64);
            screen.remark(&format!("no packet matched in {}", humantime::format_duration(whole)))?;
        }
        Ok(Exit::Done)
    }
}

/// A line for each packet: how it came, and what became of it.
#[derive(Default)]
struct Lines {
    dropped: bool,
    packets: u64,
    /// Packets whose road has not ended.
    open: HashMap<(u16, u64), (Traced, Vec<String>)>,
}

impl Lines {
    fn line(&mut self, traced: Traced) -> Option<String> {
        let key = (traced.cpu, traced.packet);
        match traced.point {
            TracePoint::Arrives => {
                // Whatever a CPU had in hand before has ended, or that was lost.
                self.open.retain(|(cpu, _), _| *cpu != traced.cpu);
                self.open.insert(key, (traced, Vec::new()));
                None
            }
            TracePoint::GoesOn => {
                let (_, stages) = self.open.get_mut(&key)?;
                stages.push(traced.stage.unwrap_or_default());
                None
            }
            TracePoint::Ends => {
                let (arrived, stages) = self.open.remove(&key)?;
                let action = traced.action.as_deref().unwrap_or("?");
                if self.dropped && action != "drop" {
                    return None;
                }
                self.packets += 1;
                Some(words(&arrived, &stages, &traced, action))
            }
        }
    }
}

fn words(arrived: &Traced, stages: &[String], ended: &Traced, action: &str) -> String {
    let time = arrived.time.split('T').nth(1).unwrap_or(&arrived.time).trim_end_matches('Z');
    let time = time.get(..15).unwrap_or(time);
    let ends = match (&arrived.from, &arrived.to) {
        (Some(from), Some(to)) => format!("{from} > {to} {}", arrived.kind),
        _ => arrived.kind.clone(),
    };
    let by = arrived.interface.as_deref().unwrap_or("?");
    let road: String = stages.iter().map(|stage| format!(" {stage}:")).collect();
    let reason = ended.reason.as_deref().unwrap_or("?");
    let whom = ended.backend.as_deref().map_or_else(String::new, |backend| {
        let new = if ended.begins { "new flow of " } else { "" };
        format!(", {new}{backend}")
    });
    let out = match &ended.interface {
        Some(out) => format!(" by {out}, {} bytes", ended.length),
        None => String::new(),
    };
    let why = match action {
        "transmit" => String::new(),
        _ => format!(": {}", in_a_line(ended.meaning.as_deref().unwrap_or_default())),
    };
    format!("{time} {by} {ends} {} bytes =>{road} {action}{out} ({reason}{whom}){why}\n", arrived.length)
}

/// A sentence as the end of a line: without its capital and its full stop.
fn in_a_line(sentence: &str) -> String {
    let sentence = sentence.trim_end_matches('.');
    match sentence.split_at_checked(1) {
        // An abbreviation stays as it is.
        Some((first, rest)) if !rest.starts_with(|next: char| next.is_uppercase()) => {
            first.to_lowercase() + rest
        }
        _ => sentence.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Api;

    fn point(point: TracePoint) -> Traced {
        Traced {
            api: Api::V1,
            time: "2026-11-29T15:00:01.123456789Z".to_owned(),
            cpu: 1,
            packet: 7,
            point,
            interface: Some("eth0".to_owned()),
            length: 74,
            from: Some("198.51.100.7:4000".to_owned()),
            to: Some("203.0.113.10:80".to_owned()),
            kind: "tcp syn".to_owned(),
            stage: (point == TracePoint::GoesOn).then(|| "lb_attend".to_owned()),
            action: (point == TracePoint::Ends).then(|| "transmit".to_owned()),
            reason: (point == TracePoint::Ends).then(|| "forwarded".to_owned()),
            meaning: None,
            backend: (point == TracePoint::Ends).then(|| "web/v2/10.0.2.1:80".to_owned()),
            begins: point == TracePoint::Ends,
            lost: 0,
            bytes: None,
        }
    }

    #[test]
    fn a_packet_is_one_line_with_its_whole_road() {
        let mut lines = Lines::default();
        assert_eq!(lines.line(point(TracePoint::Ends)), None, "it came before the trace began");
        for on_the_way in [TracePoint::Arrives, TracePoint::GoesOn] {
            assert_eq!(lines.line(point(on_the_way)), None);
        }
        let out = Traced { interface: Some("eth1".to_owned()), length: 94, ..point(TracePoint::Ends) };
        assert_eq!(
            lines.line(out).as_deref(),
            Some(
                "15:00:01.123456 eth0 198.51.100.7:4000 > 203.0.113.10:80 tcp syn 74 bytes => lb_attend: transmit by eth1, \
                 94 bytes (forwarded, new flow of web/v2/10.0.2.1:80)\n"
            )
        );
        assert_eq!((lines.packets, lines.open.len()), (1, 0));
        let mut lines = Lines { dropped: true, ..Lines::default() };
        lines.line(point(TracePoint::Arrives));
        assert_eq!(lines.line(point(TracePoint::Ends)), None, "it was not dropped");
    }

    #[test]
    fn why_it_goes_nowhere_is_the_end_of_the_line() {
        assert_eq!(in_a_line("From a backend to this host itself."), "from a backend to this host itself");
        assert_eq!(in_a_line("A RST to the client: a fault."), "a RST to the client: a fault");
        assert_eq!(in_a_line("ICMP of nobody."), "ICMP of nobody");
    }

    #[test]
    fn a_host_may_be_a_network() {
        assert_eq!(network("10.0.0.1").unwrap().prefix_len(), 32);
        assert_eq!(network("2001:db8::/32").unwrap().prefix_len(), 32);
        assert!(network("web.example").is_err());
    }
}
