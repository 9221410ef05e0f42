//! `cargo xtask bench`: what a packet, a change and a rollback cost.
//!
//! `rows` says which packets; `packets`, `publish`, `rollback`, `programs`, `health`, `control` and `end_to_end` measure one
//! thing each; `report` shows it.

mod bed;
mod control;
mod driver;
mod end_to_end;
mod health;
mod packets;
mod programs;
mod publish;
mod report;
mod rollback;
mod rows;
mod sessions;
mod sizes;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use aya::programs::{ProgramFd, ProgramInfo};
use clap::{Parser, ValueEnum};
use serde::Serialize;

use report::Section;

/// Measures what a packet, a change and a rollback cost.
#[derive(Parser)]
#[command(
    name = "bench",
    bin_name = "cargo xtask bench",
    after_help = "Only ratios from one run mean anything. Compare on an idle machine, and let it repeat."
)]
struct Arguments {
    /// Fewer rounds of fewer packets, and no wait for a canary to settle: for trying out, not for figures.
    #[arg(long)]
    quick: bool,
    /// JSON instead of tables.
    #[arg(long)]
    json: bool,
    /// Measures another pinned XDP program on the same packets, in the same run. (Its tables are its owner's business: the
    /// services are 10.1.9.1:80 and fd00:1::9:1:80.)
    #[arg(long = "with", value_name = "NAME=PIN", value_parser = named_pin)]
    others: Vec<(String, String)>,
    /// Also measures requests a second: routed by the kernel, by nftables, by HAProxy and by lb.
    #[arg(long)]
    end_to_end: bool,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Of the cost of a packet, only rows with this in their names or headings.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    rows: String,
    /// The CPU that packets are measured on; the last one unless said otherwise.
    #[arg(long)]
    cpu: Option<usize>,
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Programs,
    Packets,
    Publish,
    Rollback,
    Health,
    Control,
    EndToEnd,
}

/// How often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds, in which candidates take turns.
    rounds: u32,
    /// Packets of each candidate in a round.
    packets: u32,
    /// Seconds of requests of each candidate in a round.
    seconds: u32,
    /// Leaves out what has to be waited for.
    hasty: bool,
}

impl Effort {
    const FULL: Self = Self { rounds: 9, packets: 1_000_000, seconds: 5, hasty: false };
    const QUICK: Self = Self { rounds: 3, packets: 100_000, seconds: 1, hasty: true };
}

/// Somebody else's program.
pub struct Other {
    name: String,
    program: ProgramFd,
}

/// Everything that was measured.
#[derive(Serialize)]
struct Report {
    version: u32,
    machine: Machine,
    #[serde(skip_serializing_if = "Option::is_none")]
    programs: Option<sizes::Sizes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets: Option<packets::Costs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish: Option<publish::Publishes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rollback: Option<rollback::Rollbacks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    health: Option<health::Checks>,
    #[serde(skip_serializing_if = "Option::is_none")]
    control: Option<control::Control>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_to_end: Option<end_to_end::Requests>,
}

/// Where it was measured.
#[derive(Serialize)]
struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
    /// Processes that wanted to run in the minute before.
    load: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse();
    // Before the lab, which has a bpffs of its own.
    let others = arguments.others.iter().map(Other::open).collect::<Result<Vec<_>>>()?;
    lb_tests::enter()?;
    let machine = Machine::this()?;
    if machine.load > 0.5 {
        eprintln!(
            "warning: the load average is {}: something else runs here, and figures will be too high",
            machine.load
        );
    }
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let cpu = arguments.cpu.unwrap_or(machine.cpus - 1);
    ensure!(cpu < machine.cpus, "CPU {cpu} of {}", machine.cpus);
    let wants = |part| match arguments.only.as_slice() {
        [] => part != Part::EndToEnd || arguments.end_to_end,
        only => only.contains(&part) || part == Part::EndToEnd && arguments.end_to_end,
    };

    let mut report = Report {
        version: 1,
        machine,
        programs: None,
        packets: None,
        publish: None,
        rollback: None,
        health: None,
        control: None,
        end_to_end: None,
    };
    let show = |section: &dyn Fn() -> String| {
        if !arguments.json {
            println!("{}", section());
        }
    };
    show(&|| report.machine.text());
    if wants(Part::Programs) {
        let sizes = report.programs.insert(sizes::measure()?);
        show(&|| titled(sizes));
    }
    let settling = wants(Part::Packets).then(|| packets::Settling::start(effort)).transpose()?;
    if wants(Part::Publish) {
        let publishes = publish::measure(effort).context("time to publish")?;
        show(&|| titled(&publishes));
        report.publish = Some(publishes);
    }
    if wants(Part::Rollback) {
        let rollbacks = rollback::measure(effort, cpu).context("time to roll back")?;
        show(&|| titled(&rollbacks));
        report.rollback = Some(rollbacks);
    }
    if wants(Part::Health) {
        let checks = health::measure(effort).context("cost of health checks")?;
        show(&|| titled(&checks));
        report.health = Some(checks);
    }
    if wants(Part::Control) {
        let control = control::measure(effort).context("cost of an agent")?;
        show(&|| titled(&control));
        report.control = Some(control);
    }
    if let Some(settling) = settling {
        let costs = settling.measure(effort, cpu, &others, &arguments.rows).context("cost of a packet")?;
        show(&|| titled(&costs));
        report.packets = Some(costs);
    }
    if wants(Part::EndToEnd) {
        let requests = end_to_end::measure(effort).context("end to end")?;
        show(&|| titled(&requests));
        report.end_to_end = Some(requests);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

fn titled<S: Section>(section: &S) -> String {
    format!("## {}\n\n{}", S::TITLE, section.text())
}

fn named_pin(argument: &str) -> Result<(String, String), String> {
    match argument.split_once('=') {
        Some((name, pin)) if !name.is_empty() && name != "lb" && pin.starts_with('/') => {
            Ok((name.to_owned(), pin.to_owned()))
        }
        _ => {
            Err("NAME=PIN, with any name but `lb`, and the absolute path of a pinned XDP program".to_owned())
        }
    }
}

impl Other {
    fn open((name, pin): &(String, String)) -> Result<Self> {
        let open = || ProgramInfo::from_pin(Path::new(pin))?.fd();
        let program = open().with_context(|| format!("cannot open {pin} (--with {name})"))?;
        Ok(Self { name: name.clone(), program })
    }
}

impl Machine {
    fn this() -> Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let cpus = read("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let load = read("/proc/loadavg")?;
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            cpus: std::thread::available_parallelism()?.get(),
            load: load.split_whitespace().next().unwrap_or_default().parse()?,
        })
    }

    fn text(&self) -> String {
        let Self { kernel, cpu, cpus, load } = self;
        format!("Linux {kernel}, {cpus} CPUs ({cpu}), load average {load}\n")
    }
}
