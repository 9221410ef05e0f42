//! From nothing, or from what an earlier agent left, to a running agent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use lb_common::abi;
use lb_common::hash::Seed;
use lb_common::settle::SweepReport;
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{Agent, Handle, Inbox, KernelFacts, Shared, Targets, discovery};
use crate::clock;
use crate::compile::{Compiler, key_of};
use crate::config::{Config, Dataplane, XdpMode};
use crate::dataplane::{self, Capacities, Native, Options, maps};
use crate::discovery::Sources;
use crate::events::{EventLog, Occurrence};
use crate::health::Scheduler;
use crate::netlink::{Links, NextHops, Resolver, Vips};
use crate::publish::{Publisher, split};
use crate::sessions::Sessions;
use crate::state::journal::Lost;
use crate::state::{Author, Change, Desired, Entry, Journal, JournalError, file_of, fingerprint};
use crate::sweep::{Books, Rooms};
use crate::wanted::Wanted;

/// Where things are.
#[derive(Clone, Debug)]
pub struct Places {
    /// The configuration file.
    pub config: PathBuf,
    /// The admin socket.
    pub socket: PathBuf,
    /// The journal's directory.
    pub state_dir: PathBuf,
    /// The pins' directory, without the layout.
    pub pin_dir: PathBuf,
}

/// Room for events that the agent has not looked at yet.
const BACKLOG: usize = 4096;

/// Starts the agent, as a task of the runtime that this is called in. It ends when the last handle is dropped; the data
/// path goes on.
///
/// `text` is the configuration file as `config` was read from it. `log_level` is for the kernel program: 0 is silence. With
/// `recover` a corrupt journal is kept aside, and its good records are gone on with.
///
/// # Errors
///
/// Says what is in the way. What an earlier agent left in the kernel goes on working.
pub async fn start(
    places: Places,
    config: Config,
    text: &str,
    log_level: u8,
    recover: bool,
) -> anyhow::Result<Handle> {
    let log = Arc::new(EventLog::default());
    let (mut journal, entries) = match recover {
        true => recovered(&places.state_dir, &log)?,
        false => Journal::open(&places.state_dir)?,
    };
    let desired = recall(&mut journal, &entries, config, text)?;
    drop(entries);
    let mut desired = discovery::drop_misfits(desired, &mut journal, &log)?;
    let seed = seed(&desired.config.dataplane, &places.state_dir)?;

    let options = options(&places, &desired.config.dataplane, log_level);
    let mut loaded = tokio::task::block_in_place(|| dataplane::load(&options))?;
    if log_level > 0 {
        log_packets(&mut loaded.object);
    }
    let directory = maps::directory(&places.pin_dir);
    let maps = Arc::new(loaded.maps);
    let publisher =
        Publisher::adopt(Arc::clone(&maps), clock::ticks()).context("cannot read the pinned maps")?;
    adopt_splits(&mut desired, &publisher, &mut journal, &log)?;

    let (calls_sender, calls) = mpsc::channel(BACKLOG);
    let (health_sender, health) = mpsc::channel(BACKLOG);
    let (hops_sender, hops) = mpsc::channel(BACKLOG);
    let (sources_sender, sources) = mpsc::channel(BACKLOG);
    let shared =
        Arc::new(Shared { maps, indexes: arc_swap::ArcSwap::default(), rollbacks: AtomicU64::new(0) });
    let probed = Arc::new(super::roads::Probed::new(Arc::clone(&shared.maps)));
    let mut agent = Agent {
        targets: Targets::default(),
        adopted_hops: adopted_hops(&publisher),
        hops: HashMap::new(),
        devices: HashMap::new(),
        links: Links::follow()?,
        troubles: super::interfaces::Troubles::default(),
        next_hops: NextHops::follow(hops_sender)?,
        vips: Vips::follow()?,
        resolver: Resolver::new()?,
        scheduler: Scheduler::along(health_sender, Arc::clone(&probed) as _),
        probed,
        discoveries: discovery::Discoveries::new(Sources::new(sources_sender)),
        swept: SweepReport::default(),
        sessions: Sessions::default(),
        follows: HashMap::new(),
        previews: BTreeMap::new(),
        unmeasured: std::collections::BTreeSet::new(),
        stuck: std::collections::BTreeSet::new(),
        tracing: None,
        traces: 0,
        log_level,
        measured: HashMap::new(),
        checks: crate::metrics::Checks::default(),
        passive: super::outlier::Passive::default(),
        went_back: HashMap::new(),
        faulted: std::collections::BTreeSet::new(),
        rates: super::rates::Rates::default(),
        books: Books::default(),
        rooms: Rooms::default(),
        compiler: Compiler::default(),
        compiled: BTreeMap::new(),
        kernel: KernelFacts {
            attached: loaded.attached,
            capacities: options.capacities,
            verified_instructions: loaded.verified_instructions,
            jited: loaded.jited,
            program_id: loaded.program_id,
            started: jiff::Timestamp::now(),
        },
        log: Arc::clone(&log),
        shared: Arc::clone(&shared),
        places,
        desired,
        // Whatever it was before: `recall` has seen to it that it is in the journal.
        file: Some(fingerprint(text)),
        journal,
        compaction: None,
        unpublished: BTreeMap::new(),
        owed: BTreeMap::new(),
        rollbacks: 0,
        publisher,
        seed,
    };
    agent.begin(loaded.adopted);
    let inbox = Inbox { calls, health, hops, sources, wanted: Wanted::open(&directory)? };
    // Keeps the object, whose programs and maps live by their pins, out of the way of the task.
    drop(loaded.object);
    tokio::spawn(agent.run(inbox));
    Ok(Handle { calls: calls_sender, shared, log, stop: Arc::default() })
}

impl Agent {
    /// What the program was loaded with.
    pub(super) fn options(&self) -> Options {
        options(&self.places, &self.desired.config.dataplane, self.log_level)
    }

    fn begin(&mut self, adopted: bool) {
        let dataplane = &self.desired.config.dataplane;
        let udp_idle = clock::in_ticks(dataplane.udp_idle);
        let (v4, v6) =
            (dataplane.tunnel_source_v4.network().octets(), dataplane.tunnel_source_v6.network().octets());
        self.publisher.settings(udp_idle, v4, v6);
        self.note_state();
        self.register_devices();
        self.end_adopted_previews();
        self.remove_services_that_are_gone();
        self.follow_config();
        self.adopt_ejections();
        let known = self.known_keys();
        self.adopt_faults();
        // What cannot be published now is a finding, and is tried again with each sweep.
        self.converge(self.names());
        self.end_leases();
        // An agent that died between the record of a lower split and its store has left the higher one.
        self.lower_splits();
        self.raise_splits_except(&known);
        self.log.push(Occurrence {
            code: "agent_started",
            message: format!(
                "lbd {} runs with {}{}",
                env!("CARGO_PKG_VERSION"),
                crate::plural::counted(self.desired.config.services.len() as u64, "service"),
                if adopted { "; the data path of an earlier agent was adopted" } else { "" }
            ),
            ..Occurrence::default()
        });
    }

    /// Where the kernel has services.
    pub(super) fn known_keys(&self) -> HashSet<abi::VipKey> {
        self.publisher.registry.services.values().map(|record| record.key).collect()
    }

    /// Services that are new in the kernel get the split that they had before: after a reboot, or at another address.
    pub(super) fn raise_splits_except(&mut self, known: &HashSet<abi::VipKey>) {
        for service in self.desired.config.services.clone() {
            let key = key_of(&service);
            let (Some(intent), Some(index)) =
                (self.desired.intents.get(&service.name), self.publisher.registry.service_index(&key))
            else {
                continue;
            };
            let (now, share) = (self.publisher.maps.services.read(index).split(), intent.share());
            if share > 0 && !known.contains(&key) {
                self.store_split(service.name.as_str(), index, now, share);
            }
        }
    }

    pub(super) fn remove_services_that_are_gone(&mut self) {
        let mut wanted: HashSet<_> = self.desired.config.services.iter().map(key_of).collect();
        wanted.extend(self.preview_keys());
        let gone: Vec<_> = self
            .publisher
            .registry
            .services
            .values()
            .map(|record| record.key)
            .filter(|key| !wanted.contains(key))
            .collect();
        for key in gone {
            if let Err(error) = self.publisher.remove(&key) {
                warn!("a service that is not configured any more cannot be removed: {error}");
            }
        }
    }
}

/// The journal, without what was corrupt in it. What that was goes into the log.
fn recovered(state_dir: &Path, log: &EventLog) -> Result<(Journal, Vec<Entry>), JournalError> {
    let time = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%S.%6fZ").to_string();
    let (journal, entries, lost) = Journal::recover(state_dir, &time)?;
    let Some(Lost { kept_as, line, problem, bytes, last_good, legible }) = lost else {
        info!("the journal is good: there was nothing to recover");
        return Ok((journal, entries));
    };
    let mut message = format!(
        "the journal was corrupt in line {line} ({problem}); it is kept as {}, and revision {last_good} is the last one that \
         holds: {bytes} bytes behind it are lost",
        kept_as.display()
    );
    for entry in legible {
        let Entry { sequence, time, author, summary, .. } = entry;
        message += &format!("\nlost: revision {sequence} by {} at {time}: {summary}", author.name);
    }
    log.push(Occurrence { code: "journal_recovered", severe: true, message, ..Occurrence::default() });
    Ok((journal, entries))
}

/// What was desired when the last agent ended, under the file as it is now.
///
/// What was applied stands until the file itself changes: then the file wins.
fn recall(journal: &mut Journal, entries: &[Entry], config: Config, text: &str) -> anyhow::Result<Desired> {
    let file = fingerprint(text);
    let before = Desired::replayed(entries);
    if let Some(desired) = &before
        && file_of(entries) == Some(&file)
    {
        return Ok(desired.clone());
    }
    let next = before.map_or_else(|| Desired::of(config.clone()), |before| before.under(config.clone()));
    journal.append(
        clock::timestamp(),
        Author::agent("start"),
        None,
        "the configuration file was read".to_owned(),
        Change::Config { config: Box::new(config), file: Some(file) },
    )?;
    Ok(next)
}

/// The secret of the hashes: configured, or made once and kept.
fn seed(dataplane: &Dataplane, state_dir: &Path) -> anyhow::Result<Seed> {
    if let Some(seed) = &dataplane.hash_seed {
        return Ok(seed.0);
    }
    let path = state_dir.join("seed");
    let failed = || format!("cannot keep the hash seed in {}", path.display());
    match fs::read(&path) {
        Ok(bytes) => {
            let len = bytes.len();
            bytes.try_into().ok().with_context(|| {
                format!(
                    "{} has {len} bytes, not 16; remove it to get another seed (which moves flows)",
                    path.display()
                )
            })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut seed = Seed::default();
            random(&mut seed).context("no random numbers for the hash seed")?;
            write_secret(&path, &seed).with_context(failed)?;
            Ok(seed)
        }
        Err(error) => Err(error).with_context(failed),
    }
}

/// From the kernel itself: where the programs are all that there is, nobody has made /dev/urandom.
fn random(seed: &mut Seed) -> io::Result<()> {
    // SAFETY: the memory is ours, with the length that is passed.
    let length = unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    // Of less than 256 bytes all come at once (getrandom(2)).
    if usize::try_from(length) == Ok(seed.len()) { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let aside = path.with_extension("next");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(aside, path)
}

fn options(places: &Places, dataplane: &Dataplane, log_level: u8) -> Options {
    Options {
        pin_dir: places.pin_dir.clone(),
        interfaces: dataplane.interfaces.iter().map(|name| name.as_str().to_owned()).collect(),
        mode: native(dataplane.xdp_mode),
        capacities: Capacities {
            flows: dataplane.flows,
            udp_flows: dataplane.udp_flows,
            half_open: dataplane.half_open,
            sessions: dataplane.sessions,
            slots: dataplane.slots,
            backends: dataplane.backends,
            services: dataplane.services,
            prefixes: dataplane.prefixes,
            sources: dataplane.rate_limited_sources,
        },
        log_level,
    }
}

/// Where the program is wanted; `None` is wherever it can be.
pub(super) const fn native(mode: XdpMode) -> Option<Native> {
    match mode {
        XdpMode::Auto => None,
        XdpMode::Native => Some(Native::Native),
        XdpMode::Generic => Some(Native::Generic),
    }
}

/// Forwards what the kernel program logs to our own log.
fn log_packets(object: &mut aya::Ebpf) {
    let logger = match aya_log::EbpfLogger::init(object) {
        Ok(logger) => logger,
        Err(error) => return warn!("the kernel program's log cannot be read: {error}"),
    };
    // SAFETY: the logger keeps its ring's one descriptor open for as long as it lives.
    match unsafe { tokio::io::unix::AsyncFd::register(logger) } {
        Ok(mut logger) => drop(tokio::spawn(async move {
            while let Ok(mut guard) = logger.readable_mut().await {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
        })),
        Err(error) => warn!("the kernel program's log cannot be read: {error}"),
    }
}

/// Where kernel and journal differ about a split, the smaller one holds: somebody may have rolled back while there was no
/// agent, and an agent that raised the split again would undo it.
fn adopt_splits(
    desired: &mut Desired,
    publisher: &Publisher,
    journal: &mut Journal,
    log: &EventLog,
) -> anyhow::Result<()> {
    for service in desired.config.services.clone() {
        let Some(intent) = desired.intents.get_mut(&service.name) else { continue };
        // A rollout that is under way raises it again, or finds that it was rolled back.
        if intent.is_in_rollout() {
            continue;
        }
        let wanted = intent.share();
        let Some(index) = publisher.registry.service_index(&key_of(&service)) else { continue };
        let kernel = publisher.maps.services.read(index).split().new();
        if kernel < wanted {
            let (before, now) = (intent.split, split::percent(kernel));
            intent.split = now;
            let message = format!(
                "the split of {} is {now} %, not {before} %: it was taken back while there was no agent, or the last one \
                 died before it had raised it",
                service.name
            );
            let change = Change::Service { name: service.name.clone(), intent: intent.clone() };
            journal.append(clock::timestamp(), Author::agent("start"), None, message.clone(), change)?;
            desired.count(&service.name);
            log.push(Occurrence {
                code: "split_adopted",
                severe: true,
                service: Some(service.name.as_str().to_owned()),
                message,
                ..Occurrence::default()
            });
        }
    }
    Ok(())
}

/// The next hops that the maps hold: good until the kernel's tables have been read.
fn adopted_hops(publisher: &Publisher) -> HashMap<IpAddr, abi::NextHop> {
    let mut hops = HashMap::new();
    for &index in publisher.registry.services.keys() {
        for id in publisher.registry.backends_of(index) {
            let backend = publisher.maps.backends.read(id.into());
            hops.insert(backend.address.into(), backend.next_hop());
        }
    }
    hops
}
