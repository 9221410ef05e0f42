//! A rollout, drawn.
//!
//! ```text
//! checkout: v41 -> v42   step 2 of 4, 5 %, 3m of 5m
//! [=====>                                                  ] 5 %
//!   v  1 %    5m
//!   >  5 %    5m   clients of v42 fare no worse
//!      25 %   5m
//!      50 %   5m   gate: approve
//!     100 %  10m   soak
//!   new connections   4.93 % (4.61 to 5.26) of 17 204
//!   bytes             5.02 %
//!   v42   803 connections, 0 SYNs repeated, 0 refused, 0 reset early, 12 tracked
//!         1.2 MiB in, 9.8 MiB out, handshake 410 µs (p99 1.0 ms), first byte 1.6 ms (p99 8.2 ms)
//!   v41   15.4k connections, ...
//!   clients that fared badly   v42 0 of 803   v41 2 of 15 380   evidence 0.6 of 100   fine
//! ```

use std::io;

use crate::api::{
    MetricStatus, Observation, PoolTelemetry, Quantiles, QueryStatus, RolloutStatus, VerdictWord,
};
use crate::cli::human::{self, age, count, percent};
use crate::cli::screen::{Format, Screen};
use crate::rollout::engine::Phase;
use crate::rollout::plan::{Gate, Step};

/// In characters.
const BAR: usize = 56;

/// All of it.
pub(super) fn draw(status: &RolloutStatus) -> String {
    let mut text = format!("{}\n{}\n", headline(status), bar(status.desired_percent));
    for (index, step) in status.plan.steps.iter().enumerate() {
        text += &line(status, index, step);
    }
    let soaking = match status.phase {
        Phase::Promoted => "v",
        _ if place_of(status) == Phase::Soaking => here(status),
        _ => " ",
    };
    text += &row(soaking, 100.0, status.plan.soak.as_secs(), "soak");
    if let Some(preview) = &status.preview {
        let reaches = match &preview.why_not {
            None => format!("reaches {}", status.to),
            Some(why) => format!("reaches nobody: {why}"),
        };
        text += &format!("  preview   {} {reaches}\n", preview.address);
    }
    if let Some(seen) = status.observed.connections {
        text += &format!("  new connections   {}\n", share(seen));
    }
    if let Some(bytes) = status.observed.bytes_percent {
        text += &format!("  bytes             {}\n", percent(bytes));
    }
    for pool in &status.telemetry {
        text += &telemetry(pool);
    }
    for metric in &status.metrics {
        text += &format!("  {}\n", figure(status, metric));
    }
    for query in &status.queries {
        text += &format!("  {}\n", queried(status, query));
    }
    if status.verdict != VerdictWord::Fine && !status.phase.is_over() {
        text += &format!("  {}: {}\n", status.verdict.as_str(), status.verdict_reason);
    }
    text += &format!("  {}\n", status.reason);
    if let Some(took) = status.took_back_seconds {
        text += &format!("  rolled back {} after the verdict\n", short(took));
    }
    text
}

/// The next picture of one that is followed: drawn in place on a terminal, a line for what is new in a pipe. Returns how
/// many lines stand on the terminal.
pub(super) fn follow(
    now: &RolloutStatus,
    before: Option<&RolloutStatus>,
    lines: usize,
    screen: &mut Screen,
) -> io::Result<usize> {
    if screen.format == Format::Json {
        if before.is_none_or(|before| before != now) {
            screen.json_line(now)?;
        }
        screen.flush()?;
        return Ok(0);
    }
    if screen.is_terminal() {
        let text = draw(now);
        screen.back(lines)?;
        screen.say(&text)?;
        screen.flush()?;
        return Ok(text.lines().count());
    }
    let known = before.is_some_and(|before| {
        (before.phase, before.step, before.paused, before.verdict)
            == (now.phase, now.step, now.paused, now.verdict)
    });
    if !known {
        let seen = now.observed.connections.map_or(String::new(), |seen| format!(", seen {}", share(seen)));
        screen.say(&format!("{}{seen}: {}\n", headline(now), now.reason))?;
        screen.flush()?;
    }
    Ok(0)
}

fn headline(status: &RolloutStatus) -> String {
    let RolloutStatus { service, from, to, phase, step, plan, .. } = status;
    let place = match phase {
        Phase::Holding | Phase::Gate => {
            format!("step {step} of {}, {}", plan.steps.len(), percent(status.desired_percent))
        }
        _ => phase.name().replace('-', " "),
    };
    let at_gate = if *phase == Phase::Gate { ", at the gate" } else { "" };
    let paused = if status.paused { ", paused" } else { "" };
    let time = match status.left_seconds {
        Some(left) if left >= 1.0 => format!(", {} left", age(left as u64)),
        _ => String::new(),
    };
    format!("{service}: {from} -> {to}   {place}{at_gate}{paused}{time}")
}

fn bar(share: f64) -> String {
    let full = (share / 100.0 * BAR as f64).round() as usize;
    let arrow = if full > 0 && full < BAR { ">" } else { "" };
    let done = "=".repeat(full.saturating_sub(arrow.len()));
    format!("[{:<BAR$}] {}", format!("{done}{arrow}"), percent(share))
}

fn line(status: &RolloutStatus, index: usize, step: &Step) -> String {
    let place = index + 1;
    let mark = match place_of(status) {
        Phase::Soaking | Phase::Promoted => "v",
        _ if place < status.step => "v",
        Phase::Holding | Phase::Gate if place == status.step => here(status),
        _ => " ",
    };
    let gate = match step.gate.as_ref().map(|gate| &gate.what) {
        None => String::new(),
        Some(Gate::Approve) => "gate: lbctl rollout approve".to_owned(),
        Some(Gate::Command(words)) => format!("gate: {}", words.join(" ")),
        Some(Gate::Http(url)) => format!("gate: {url}"),
        Some(Gate::File(path)) => format!("gate: {path}"),
    };
    row(mark, step.weight, step.hold.as_secs(), &gate)
}

/// The phase that it is in, or that it ended in.
fn place_of(status: &RolloutStatus) -> Phase {
    status.ended_in.unwrap_or(status.phase)
}

/// Marks that place.
fn here(status: &RolloutStatus) -> &'static str {
    if status.phase.is_over() { "x" } else { ">" }
}

fn row(mark: &str, weight: f64, seconds: u64, note: &str) -> String {
    let text = format!("  {mark} {:>7} {:>6}   {note}", percent(weight), age(seconds));
    format!("{}\n", text.trim_end())
}

fn share(seen: Observation) -> String {
    let Observation { percent: part, low, high, of } = seen;
    format!("{} ({low:.2} to {high:.2}) of {}", percent(part), count(of))
}

/// `1 connection`, `15.4k connections`.
fn shown(n: u64, what: &str) -> String {
    format!("{} {what}{}", count(n), human::either(n, "", "s"))
}

fn telemetry(pool: &PoolTelemetry) -> String {
    let PoolTelemetry { pool: name, tried, repeated, tracked, bytes, reply_bytes, .. } = pool;
    let mut parts = vec![shown(*tried, "connection"), format!("{} repeated", shown(*repeated, "SYN"))];
    if pool.inferred {
        parts.push("answers go past the balancer".to_owned());
    } else {
        parts.push(format!("{} refused", count(pool.refused)));
        parts.push(format!("{} reset early", count(pool.reset_early)));
    }
    parts.push(format!("{} tracked", count(*tracked)));
    let mut text = format!("  {name}   {}\n", parts.join(", "));
    let mut parts = vec![format!("{} in", human::bytes(*bytes))];
    if !pool.inferred {
        parts.push(format!("{} out", human::bytes(*reply_bytes)));
    }
    for (what, quantiles) in [("handshake", pool.handshake), ("first byte", pool.first_byte)] {
        if let Some(Quantiles { p50, p99, .. }) = quantiles {
            parts.push(format!("{what} {} (p99 {})", short(p50), short(p99)));
        }
    }
    text += &format!("  {:width$}   {}\n", "", parts.join(", "), width = name.len());
    text
}

/// A time in seconds, to two digits.
fn short(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s < 1e-3 => (s * 1e6, "µs"),
        s if s < 1.0 => (s * 1e3, "ms"),
        s => (s, "s"),
    };
    if value < 10.0 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

fn figure(status: &RolloutStatus, metric: &MetricStatus) -> String {
    let MetricStatus { name, canary, stable, evidence, limit, verdict, inferred } = metric;
    let source = if *inferred { " (inferred from clients' packets)" } else { "" };
    let evidence = if *evidence < 1e6 { format!("{evidence:.1}") } else { format!("{evidence:.0e}") };
    format!(
        "{name}{source}   {} {} of {}   {} {} of {}   evidence {evidence} of {limit:.0}   {}",
        status.to,
        count(canary.bad),
        count(canary.tried),
        status.from,
        count(stable.bad),
        count(stable.tried),
        verdict.as_str(),
    )
}

fn queried(status: &RolloutStatus, query: &QueryStatus) -> String {
    let QueryStatus { name, canary, stable, bounds, verdict, shadow, .. } = query;
    let figure = |figure: &Option<f64>| figure.map_or("?".to_owned(), |figure| format!("{figure:.4}"));
    let mut text = format!("{name}   {} {}", status.to, figure(canary));
    if bounds.are_relative() {
        text += &format!("   {} {}", status.from, figure(stable));
    }
    let shadow = if *shadow { " (shadow)" } else { "" };
    text + &format!("   {}{shadow}", verdict.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Api, ClientCount, Observed, PreviewStatus};
    use crate::config::Rollout;
    use crate::rollout::plan::Bounds;

    fn telemetry_of(pool: &str, tried: u64, first_byte: Option<Quantiles>) -> PoolTelemetry {
        PoolTelemetry {
            pool: pool.into(),
            tried,
            answered: tried - 1,
            refused: 1,
            repeated: 2,
            reset_early: 0,
            served: tried - 1,
            bytes: 12_000,
            reply_bytes: 34_000,
            tracked: 3,
            handshake: None,
            first_byte,
            inferred: false,
        }
    }

    fn status(phase: Phase, step: usize) -> RolloutStatus {
        RolloutStatus {
            api: Api::V1,
            service: "checkout".into(),
            from: "v41".into(),
            to: "v42".into(),
            phase,
            ended_in: None,
            paused: false,
            step,
            plan: Rollout::default().plan(None, None),
            reason: "1 % passed".into(),
            began: "2026-01-01T00:00:00Z".into(),
            elapsed_seconds: 120.0,
            left_seconds: Some(180.0),
            desired_percent: 5.0,
            took_back_seconds: None,
            observed: Observed { connections: Observation::of(50, 1_000), bytes_percent: Some(5.02) },
            telemetry: vec![
                telemetry_of("v42", 50, Some(Quantiles { p50: 0.000_4, p95: 0.001, p99: 0.012, of: 50 })),
                PoolTelemetry { inferred: true, ..telemetry_of("v41", 950, None) },
            ],
            verdict: VerdictWord::Fine,
            verdict_reason: String::new(),
            metrics: vec![MetricStatus {
                name: "clients that fared badly".into(),
                canary: ClientCount { tried: 803, bad: 0 },
                stable: ClientCount { tried: 15_380, bad: 2 },
                evidence: 0.61,
                limit: 100.0,
                verdict: VerdictWord::Fine,
                inferred: false,
            }],
            queries: vec![
                QueryStatus {
                    name: "errors".into(),
                    canary: Some(0.25),
                    stable: None,
                    bounds: Bounds { max_ratio: Some(1.5), ..Bounds::default() },
                    verdict: VerdictWord::NoData,
                    verdict_reason: "errors: of the stable pool: no series".into(),
                    shadow: true,
                },
                QueryStatus {
                    name: "latency".into(),
                    canary: Some(0.012),
                    stable: None,
                    bounds: Bounds { max: Some(0.1), ..Bounds::default() },
                    verdict: VerdictWord::Fine,
                    verdict_reason: String::new(),
                    shadow: false,
                },
            ],
            preview: Some(PreviewStatus { address: "203.0.113.11:443".into(), open: true, why_not: None }),
        }
    }

    #[test]
    fn a_rollout_is_seen_at_a_glance() {
        let picture = draw(&status(Phase::Holding, 2));
        let expected = "\
checkout: v41 -> v42   step 2 of 4, 5 %, 3m left
[==>                                                     ] 5 %
  v     1 %     5m
  >     5 %     5m
       25 %     5m
       50 %     5m
      100 %    10m   soak
  preview   203.0.113.11:443 reaches v42
  new connections   5 % (3.81 to 6.53) of 1000
  bytes             5.02 %
  v42   50 connections, 2 SYNs repeated, 1 refused, 0 reset early, 3 tracked
        11.7 KiB in, 33.2 KiB out, first byte 400 µs (p99 12 ms)
  v41   950 connections, 2 SYNs repeated, answers go past the balancer, 3 tracked
        11.7 KiB in
  clients that fared badly   v42 0 of 803   v41 2 of 15.4k   evidence 0.6 of 100   fine
  errors   v42 0.2500   v41 ?   no data (shadow)
  latency   v42 0.0120   fine
  1 % passed
";
        assert_eq!(picture, expected);
    }

    #[test]
    fn a_rollout_that_went_back_is_marked_where_it_ended() {
        let marks = |ended_in, step| {
            let picture =
                draw(&RolloutStatus { ended_in: Some(ended_in), ..status(Phase::RolledBack, step) });
            let rows = picture.lines().skip(2).take(5);
            rows.map(|row| row.chars().nth(2).unwrap_or(' ')).collect::<String>()
        };
        assert_eq!(marks(Phase::Preparing, 0), "     ");
        assert_eq!(marks(Phase::Holding, 2), "vx   ");
        assert_eq!(marks(Phase::Gate, 4), "vvvx ");
        assert_eq!(marks(Phase::Soaking, 1), "vvvvx");
        assert!(draw(&status(Phase::RolledBack, 1)).starts_with("checkout: v41 -> v42   rolled back"));
    }

    #[test]
    fn evidence_without_end_stays_on_its_line() {
        let mut status = status(Phase::Holding, 1);
        status.metrics[0].evidence = 1e300;
        assert!(draw(&status).contains("evidence 1e300 of 100   fine"), "{}", draw(&status));
    }

    #[test]
    fn the_bar_ends_at_its_share() {
        assert_eq!(bar(0.0), format!("[{}] 0 %", " ".repeat(BAR)));
        assert_eq!(bar(100.0), format!("[{}] 100 %", "=".repeat(BAR)));
        assert!(bar(50.0).starts_with("[===========================>  "));
    }
}
