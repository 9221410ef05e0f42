//! The cost of a packet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::ProgramFd;
use lb_common::verdict::{Counters, Event};
use lb_tests::packets::verify;
use lb_tests::test_run::Action;
use serde::Serialize;

use crate::bed::{Bed, Spec};
use crate::driver::{Driver, Kind};
use crate::report::{Section, Table, nanoseconds};
use crate::rows::{Group, Row, Services, Shape};
use crate::{Effort, Other, report, sessions};

/// What packets cost.
#[derive(Debug, Serialize)]
pub struct Costs {
    rounds: u32,
    packets_a_round: u32,
    frame_bytes: usize,
    /// Of an empty program that makes room for an outer header.
    grow_head: Cost,
    rows: Vec<Line>,
    #[serde(skip)]
    others: Vec<String>,
}

/// A row, measured.
#[derive(Debug, Serialize)]
struct Line {
    packets: &'static str,
    group: Group,
    floor_nanoseconds: u64,
    lb: Cost,
    /// By the name given on the command line.
    others: BTreeMap<String, Cost>,
}

/// Nanoseconds over the floor.
#[derive(Clone, Debug, Serialize)]
struct Cost {
    /// The least of all rounds, which is the figure: everything else that runs only adds.
    nanoseconds: u64,
    /// The median of all rounds.
    median_nanoseconds: u64,
    /// What was done with the last packet.
    #[serde(serialize_with = "as_word")]
    action: Action,
}

/// What is changed settles as soon as it may, and not for the rest of the day.
const SETTLING: &str =
    "drain = \"1s\"\nsweep = \"1s\"\nudp_idle = \"1s\"\nsnat_ports = \"1024-65535\"\nsessions = 262144";
const LASTING: &str =
    "drain = \"1d\"\nsweep = \"1m\"\nudp_idle = \"1h\"\nsnat_ports = \"1024-65535\"\nsessions = 262144";

/// How long tables and splits take to settle at most: a handshake, a sweep, and some.
const PATIENCE: Duration = Duration::from_secs(100);

/// Services whose tables settle while something else is measured.
pub struct Settling {
    services: Services,
    bed: Bed,
}

impl Settling {
    /// Starts the agent.
    ///
    /// # Errors
    /// If anything of it does not come up.
    pub fn start(effort: Effort) -> Result<Self> {
        let services = Services::new();
        let bed = Bed::start(services.all(), SETTLING)?;
        if !effort.hasty {
            bed.lbctl(&["set", "split", services.canary.name, "10"])?;
            let measured = services.measured.name;
            bed.lbctl(&["rollout", "start", measured, "--to", "canary", "--steps", "10", "--hold", "1h"])?;
        }
        Ok(Self { services, bed })
    }

    /// Measures all rows with `wanted` in their names or headings: `lb`, and whatever else was named.
    ///
    /// # Errors
    /// If a packet does not end where it has to, or anything cannot be started.
    pub fn measure(self, effort: Effort, cpu: usize, others: &[Other], wanted: &str) -> Result<Costs> {
        let Self { services, mut bed } = self;
        wait_settled(&bed)?;
        for spec in [&services.full4, &services.full6] {
            sessions::fill(&bed, spec)?;
        }
        let mut driver = Driver::load(bed.stand(cpu))?;
        let candidates = candidates(&bed, &mut driver, others)?;
        let mut rows = services.rows(&bed);
        rows.retain(|row| row.name.contains(wanted) || row.group.title().contains(wanted));
        ensure!(!rows.is_empty(), "no row or heading has {wanted:?} in it");
        let grow = Candidate { name: "grow".to_owned(), program: driver.grow()?, kind: Kind::Frags };
        driver.set(&rows[0].template)?;
        let (_, grow_head) = race(&mut driver, &rows[0], &[grow], effort, |_, race| race())?;
        let mut lines: Vec<Line> = Vec::new();
        for row in &rows {
            if effort.hasty && matches!(row.group, Group::Canary | Group::Measured) {
                continue;
            }
            report::at_work(row.name);
            if row.group == Group::Unsettled && lines.last().is_none_or(|line| line.group != row.group) {
                unsettle(&mut bed, &services)?;
            }
            let line = line(&bed, &mut driver, row, &candidates, effort)
                .with_context(|| format!("{} ({})", row.name, row.group.title()))?;
            lines.push(line);
        }
        report::at_work("");
        Ok(Costs {
            rounds: effort.rounds,
            packets_a_round: effort.packets,
            frame_bytes: rows[0].template.frame.len(),
            grow_head: grow_head[0].clone(),
            rows: lines,
            others: others.iter().map(|other| other.name.clone()).collect(),
        })
    }
}

/// Neighbours that are found after the start change slots, and a changed slot waits for handshakes under way.
fn wait_settled(bed: &Bed) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !bed.is_settled()? {
        let left = (deadline - Instant::now()).as_secs();
        report::at_work(&format!("waiting for tables and splits to settle: at most {left} s"));
        std::thread::sleep(Duration::from_millis(200));
        ensure!(Instant::now() < deadline, "they do not settle\n{}", bed.agent.log());
    }
    Ok(())
}

/// From here on nothing settles, and services are as their rows want them.
fn unsettle(bed: &mut Bed, services: &Services) -> Result<()> {
    bed.reconfigure(LASTING)?;
    for spec in [&services.moved, &services.moved_udp, &services.marked] {
        swap(bed, spec, 0..10, 10..20)?;
    }
    swap(bed, &services.marked, 10..20, 0..10)
}

/// Gives the weight of some backends of a pool to others.
fn swap(bed: &Bed, spec: &Spec, from: std::ops::Range<usize>, to: std::ops::Range<usize>) -> Result<()> {
    for (places, weight) in [(to, "100"), (from, "0")] {
        for (number, _) in &spec.pools[0][places] {
            bed.lbctl(&["set", "weight", &Bed::path(spec, "stable", *number), weight])?;
        }
    }
    Ok(())
}

fn candidates(bed: &Bed, driver: &mut Driver, others: &[Other]) -> Result<Vec<Candidate>> {
    let lb = Candidate { name: "lb".to_owned(), program: bed.program()?, kind: Kind::Frags };
    let mut all = vec![lb];
    for other in others {
        let program = other.program.try_clone()?;
        let kind = driver.kind(&program).with_context(|| format!("--with {}", other.name))?;
        all.push(Candidate { name: other.name.clone(), program, kind });
    }
    Ok(all)
}

struct Candidate {
    name: String,
    program: ProgramFd,
    kind: Kind,
}

fn line(bed: &Bed, driver: &mut Driver, row: &Row, candidates: &[Candidate], effort: Effort) -> Result<Line> {
    driver.set(&row.template)?;
    check_frame(driver, row, &candidates[0])?;
    let (floor, mut costs) = race(driver, row, candidates, effort, |candidate, run| {
        let before = bed.maps.counters()?;
        let outcome = run()?;
        if candidate == 0 {
            check_counters(&before, &bed.maps.counters()?, row, effort.packets)?;
        }
        Ok(outcome)
    })?;
    let lb = costs.remove(0);
    let names = candidates[1..].iter().map(|candidate| candidate.name.clone());
    Ok(Line {
        packets: row.name,
        group: row.group,
        floor_nanoseconds: floor,
        lb,
        others: names.zip(costs).collect(),
    })
}

type Run<'a> = dyn FnMut() -> Result<lb_tests::test_run::Outcome> + 'a;

/// The candidates take turns, with the floor before each; `around` is called for each turn.
fn race(
    driver: &mut Driver,
    row: &Row,
    candidates: &[Candidate],
    effort: Effort,
    mut around: impl FnMut(usize, &mut Run<'_>) -> Result<lb_tests::test_run::Outcome>,
) -> Result<(u64, Vec<Cost>)> {
    let frame = &row.template.frame;
    let mut floors: BTreeMap<bool, Vec<u64>> = BTreeMap::new();
    let mut times = vec![Vec::new(); candidates.len()];
    let mut actions = vec![Action::Aborted; candidates.len()];
    for _ in 0..effort.rounds {
        for (number, Candidate { program, kind, .. }) in candidates.iter().enumerate() {
            let floor = driver.floor(*kind, frame, effort.packets)?;
            floors.entry(*kind == Kind::Linear).or_default().push(whole(floor));
            let outcome = around(number, &mut || driver.run(program, *kind, frame, effort.packets))?;
            times[number].push(whole(outcome.duration));
            actions[number] = outcome.action;
        }
    }
    let least = |times: &[u64]| times.iter().copied().min().unwrap_or_default();
    let floor_of = |kind: Kind| floors.get(&(kind == Kind::Linear)).map_or(0, |times| least(times));
    let costs = candidates.iter().zip(&mut times).zip(actions).map(|((candidate, times), action)| {
        times.sort_unstable();
        let floor = floor_of(candidate.kind);
        Cost {
            nanoseconds: least(times).saturating_sub(floor),
            median_nanoseconds: times[times.len() / 2].saturating_sub(floor),
            action,
        }
    });
    Ok((floor_of(Kind::Frags), costs.collect()))
}

fn whole(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The packet of flow 0 has right checksums before and after, and has become what it has to.
fn check_frame(driver: &mut Driver, row: &Row, lb: &Candidate) -> Result<()> {
    let frame = &row.template.frame;
    verify(frame).context("the frame itself is wrong")?;
    let outcome = driver.run(&lb.program, lb.kind, frame, 1)?;
    let shape = row.expect.shape;
    ensure!(outcome.action == shape.action(), "{:?} instead of {:?}", outcome.action, shape.action());
    let made = &outcome.frame;
    verify(made).with_context(|| format!("it left as {made:02x?}"))?;
    let right = match shape {
        Shape::Tunnel(header) => made.len() == frame.len() + header && made[14 + header..] == frame[14..],
        Shape::Translated => made.len() == frame.len() && made[14..] != frame[14..],
        Shape::Link => made.len() == frame.len() && made[14..] == frame[14..] && made[..6] != frame[..6],
        Shape::Untouched | Shape::Dropped => made == frame,
    };
    ensure!(right, "it left as {made:02x?}, which is not {shape:?}");
    Ok(())
}

/// Every packet of a run came to the end that the row is about, and by the road that it is about.
fn check_counters(before: &Counters, after: &Counters, row: &Row, packets: u32) -> Result<()> {
    let packets = u64::from(packets);
    let reason = row.expect.reason;
    let ended = after.reasons[reason as usize] - before.reasons[reason as usize];
    // The lab's own frames are counted too; they are few, and ours to nobody.
    if ended < packets {
        bail!("only {ended} of {packets} packets ended as {}", reason.name());
    }
    let slow = after.events[Event::SlowPath as usize] - before.events[Event::SlowPath as usize];
    let expected = if row.expect.slow { packets } else { 0 };
    ensure!(slow == expected, "{slow} of {packets} packets needed more than a hash instead of {expected}");
    Ok(())
}

impl Section for Costs {
    const TITLE: &'static str = "Cost of a packet";

    fn text(&self) -> String {
        let mut headings = vec!["packets", "lb"];
        headings.extend(self.others.iter().map(String::as_str));
        headings.push("floor");
        let mut text = format!(
            "Nanoseconds over the floor, {}-byte frames; the least of {} rounds of {} packets.\n\n",
            self.frame_bytes, self.rounds, self.packets_a_round
        );
        let mut table = Table::new(headings);
        let mut group = None;
        for line in &self.rows {
            if group.replace(line.group) != Some(line.group) {
                table.heading(line.group.title());
            }
            let wanted = line.lb.action;
            let mut cells = vec![line.packets.to_owned(), nanoseconds(line.lb.nanoseconds)];
            cells.extend(self.others.iter().map(|name| match line.others.get(name) {
                Some(cost) if cost.action == wanted => nanoseconds(cost.nanoseconds),
                Some(cost) => format!("{} ({})", nanoseconds(cost.nanoseconds), word(cost.action)),
                None => String::new(),
            }));
            cells.push(nanoseconds(line.floor_nanoseconds));
            table.row(cells);
        }
        text += &table.to_string();
        text += &format!(
            "\nOf every tunnel's figure about {} are the kernel's: an empty program that only makes room for an outer\n\
             header costs as much, with taking it away again before the next packet.\n\
             `--with NAME=PIN` measures another pinned XDP program on the same packets in the same run.\n",
            nanoseconds(self.grow_head.nanoseconds)
        );
        text
    }
}

fn word(action: Action) -> &'static str {
    match action {
        Action::Aborted => "aborts",
        Action::Drop => "drops",
        Action::Pass => "passes",
        Action::Transmit => "transmits",
        Action::Redirect => "redirects",
        Action::Unknown(_) => "no action",
    }
}

fn as_word<S: serde::Serializer>(action: &Action, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(word(*action))
}
