//! The agent: one task owns the desired state and everything that is derived from it.
//!
//! Whatever happens (a request, a check's result, a neighbour that moved, time that has passed) becomes a call on
//! [`Agent`], one after the other. Each call changes the desired state or the agent's view of the world, compiles what is
//! affected, and publishes the difference. Only a rollback does not wait in this line: its store is made by whoever asks
//! ([`crate::publish::split`]), and the agent is told afterwards.

mod change;
mod control;
mod departures;
mod diff;
mod discovery;
mod explain;
mod fault;
mod findings;
mod flows;
mod history;
mod interfaces;
mod measured;
mod meters;
mod outlier;
mod overrides;
mod preview;
mod rates;
mod reload;
mod roads;
mod rollout;
mod scrape;
mod start;
mod trace;
mod undo;
mod view;
mod vlans;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use lb_common::hash::Seed;
use lb_common::settle::SweepReport;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, info, warn};

use crate::compile::{Compiled, Compiler};
use crate::config::{Mode, ServiceName};
use crate::dataplane::{Attached, Capacities};
use crate::events::{EventLog, Occurrence};
use crate::health::{HealthEvent, Scheduler, TargetId};
use crate::netlink::{Links, NextHop, NextHopEvent, NextHops, Resolver, Unreachable, Vips};
use crate::publish::{PublishError, Publisher};
use crate::sessions::{self, Sessions};
use crate::state::journal::Folded;
use crate::state::{Desired, Journal, JournalError};
use crate::sweep;

pub use change::{Remembered, Request, RollbackDone, Target};
pub use start::{Places, start};

/// Owner of the desired state.
pub struct Agent {
    places: Places,
    desired: Desired,
    /// Fingerprint of the configuration file as it was last read.
    file: Option<String>,
    journal: Journal,
    /// Makes what the journal holds shorter.
    compaction: Option<std::thread::JoinHandle<Result<Option<Folded>, JournalError>>>,
    /// Services that the maps do not hold as they should.
    unpublished: BTreeMap<ServiceName, change::Unpublished>,
    /// Services whose last change the journal could not take.
    owed: BTreeMap<ServiceName, change::Owed>,
    /// Rollbacks that were heard of.
    rollbacks: u64,
    publisher: Publisher,
    compiler: Compiler,
    compiled: BTreeMap<ServiceName, Compiled>,
    seed: Seed,
    kernel: KernelFacts,
    targets: Targets,
    hops: HashMap<IpAddr, Result<NextHop, Unreachable>>,
    /// As an earlier agent left them; good until the kernel's own tables have been read.
    adopted_hops: HashMap<IpAddr, lb_common::abi::NextHop>,
    devices: HashMap<u32, u16>,
    links: Links,
    troubles: interfaces::Troubles,
    next_hops: NextHops,
    vips: Vips,
    resolver: Resolver,
    scheduler: Scheduler,
    /// What probes along the data path go by.
    probed: Arc<roads::Probed>,
    discoveries: discovery::Discoveries,
    swept: SweepReport,
    /// What the last sweep over the sessions found.
    sessions: Sessions,
    follows: rollout::Follows,
    previews: preview::Previews,
    /// Services whose rollouts wait for a measure.
    unmeasured: std::collections::BTreeSet<ServiceName>,
    /// Services whose rollouts cannot go on.
    stuck: std::collections::BTreeSet<ServiceName>,
    tracing: Option<trace::Tracing>,
    /// Of the kernel program.
    log_level: u8,
    /// Traces that were begun.
    traces: u64,
    measured: measured::Measured,
    checks: crate::metrics::Checks,
    passive: outlier::Passive,
    /// How long the last rollback of a rollout took: from the look at what was counted, or an order, to the store.
    went_back: HashMap<ServiceName, std::time::Duration>,
    /// Services that faults are injected into.
    faulted: std::collections::BTreeSet<ServiceName>,
    rates: rates::Rates,
    books: sweep::Books,
    rooms: sweep::Rooms,
    log: Arc<EventLog>,
    shared: Arc<Shared>,
}

/// What is known of the program since it was loaded.
struct KernelFacts {
    attached: Vec<Attached>,
    capacities: Capacities,
    verified_instructions: Option<u32>,
    jited: bool,
    program_id: u32,
    started: jiff::Timestamp,
}

/// What those need who do not wait for the agent.
pub struct Shared {
    /// The maps.
    pub maps: Arc<crate::dataplane::Maps>,
    /// The services' indexes by name.
    pub indexes: arc_swap::ArcSwap<BTreeMap<String, u32>>,
    /// Rollbacks that were begun. The agent hears of each after its store.
    pub rollbacks: AtomicU64,
}

/// Which check belongs to which backend.
#[derive(Default)]
struct Targets {
    next: u64,
    ids: HashMap<(ServiceName, SocketAddr), TargetId>,
    /// Of agent checks.
    agents: HashMap<(ServiceName, SocketAddr), TargetId>,
    backends: HashMap<TargetId, (ServiceName, SocketAddr)>,
    /// Backends that took flows before they were checked are taken for healthy until their first check is over.
    presumed_up: std::collections::HashSet<(ServiceName, SocketAddr)>,
    /// What runs when health has taken a backend out.
    hooks: crate::health::Hooks,
}

type Call = Box<dyn FnOnce(&mut Agent) + Send>;

/// The way to the agent.
#[derive(Clone)]
pub struct Handle {
    calls: mpsc::Sender<Call>,
    /// For those who do not wait.
    pub shared: Arc<Shared>,
    /// What has happened.
    pub log: Arc<EventLog>,
    /// Rung when the agent should end.
    pub stop: Arc<Notify>,
}

impl Handle {
    /// Has the agent do something, and waits for what comes of it.
    ///
    /// # Errors
    ///
    /// If the agent has ended.
    pub async fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Agent) -> R + Send + 'static,
    ) -> anyhow::Result<R> {
        let (answer, receiver) = oneshot::channel();
        let call: Call = Box::new(move |agent| {
            // Nobody waits any more: the call was made all the same.
            let _ = answer.send(f(agent));
        });
        self.calls.send(call).await.ok().context("the agent has ended")?;
        receiver.await.context("the agent has ended")
    }
}

/// What the agent listens to.
struct Inbox {
    calls: mpsc::Receiver<Call>,
    health: mpsc::Receiver<HealthEvent>,
    hops: mpsc::Receiver<NextHopEvent>,
    sources: mpsc::Receiver<crate::discovery::Answer>,
    wanted: crate::wanted::Wanted,
}

impl Agent {
    /// Runs until every handle is gone.
    async fn run(mut self, mut inbox: Inbox) {
        let mut sweep = tokio::time::interval(self.desired.config.dataplane.sweep);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut rollouts = tokio::time::interval(rollout::PERIOD);
        rollouts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looks = tokio::time::interval(outlier::PERIOD);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut links = self.links.subscribe();
        loop {
            let next = self.next_step();
            tokio::select! {
                call = inbox.calls.recv() => match call {
                    Some(call) => call(&mut self),
                    None => return,
                },
                Some(event) = inbox.health.recv() => self.health_changed(event),
                Some(event) = inbox.hops.recv() => {
                    // Neighbours come in crowds: what is there is taken before tables are built.
                    let mut events = vec![event];
                    while let Ok(event) = inbox.hops.try_recv() {
                        events.push(event);
                    }
                    self.hops_changed(events);
                }
                Some(answer) = inbox.sources.recv() => self.source_answered(answer),
                Ok(()) = links.changed() => self.links_changed(),
                neighbours = inbox.wanted.next() => self.neighbours_wanted(neighbours),
                _ = sweep.tick() => self.sweep(),
                _ = rollouts.tick() => {
                    self.follow_rollouts();
                    self.forget_faults();
                }
                _ = looks.tick() => self.look_at_backends(),
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.step(),
            }
        }
    }

    /// When time alone changes what the tables should hold.
    fn next_step(&self) -> Option<Instant> {
        self.compiled.values().filter_map(|compiled| compiled.next).min().map(Instant::from_std)
    }

    /// Does what time has brought about: the next step of a slow start, the end of a drain.
    fn step(&mut self) {
        let now = std::time::Instant::now();
        let mut due = Vec::new();
        for (name, compiled) in &mut self.compiled {
            // Once: what cannot be published now is tried again when something else changes.
            if compiled.next.take_if(|next| *next <= now).is_some() {
                due.push(name.clone());
            }
        }
        self.converge(due);
    }

    /// Closes what changes have opened.
    fn sweep(&mut self) {
        let patience = sweep::patience(&self.desired.config.dataplane);
        match tokio::task::block_in_place(|| sweep::sweep(&mut self.publisher, &patience, &mut self.books)) {
            Ok(report) => {
                if self.books.lately() > 0 {
                    warn!(flows = self.books.lately(), "forgotten for want of room: see `lbctl status`");
                }
                self.swept = report;
                // Their splits are zero now.
                self.swept.lapsed.iter().for_each(|&index| self.set_lease(index, None));
                let counted = self.sweep_sessions();
                self.rooms = tokio::task::block_in_place(|| sweep::rooms(&self.publisher.maps, &self.books));
                self.measure();
                // Who has sessions is not known where they could not be counted.
                if counted {
                    self.free_what_nobody_uses();
                }
            }
            Err(error) => error!("the sweep failed: {error}"),
        }
        let services = self.publisher.registry.services.keys().copied();
        if let Err(error) =
            tokio::task::block_in_place(|| sweep::recount(&self.publisher.maps, services, &patience))
        {
            error!("connections cannot be counted: {error}");
        }
        let services = self.publisher.registry.services.keys().copied();
        if let Err(error) =
            tokio::task::block_in_place(|| sweep::clear_awaited(&self.publisher.maps, services))
        {
            error!("handshakes cannot be read: {error}");
        }
        // What was in their way may have settled.
        self.converge(self.unpublished.keys().cloned().collect::<Vec<_>>());
        tokio::task::block_in_place(|| self.tend_journal());
        // The journal's disk may be mended, and what was in the way of a set of backends gone.
        self.retry_refused();
        // What could not be attached when it came may be free by now.
        self.attach_missing();
    }

    /// Forgets sessions that are over, and counts the others. Returns whether they could be counted.
    fn sweep_sessions(&mut self) -> bool {
        let wanted = self.desired.config.services.iter().any(|service| service.mode == Mode::FullNat);
        if !wanted && self.previews.is_empty() && self.sessions.established == 0 {
            return true;
        }
        match tokio::task::block_in_place(|| sessions::sweep(&self.publisher.maps)) {
            Ok(found) => {
                for (&backend, &count) in &found.by_backend {
                    self.swept.add_flows(backend, count);
                }
                self.sessions = found;
                true
            }
            Err(error) => {
                error!("the sweep over the sessions failed: {error}");
                false
            }
        }
    }

    /// Notes how fast packets go through the backends.
    fn measure(&mut self) {
        let meters = meters::Meters::of_all(&self.publisher);
        let ids = self.publisher.registry.backend_ids();
        self.rates.observe(std::time::Instant::now(), ids.map(|id| (id, meters.backend(id))));
    }

    /// Brings the maps to what should be, for services by name.
    fn converge(&mut self, names: impl IntoIterator<Item = ServiceName>) -> Vec<(ServiceName, PublishError)> {
        let mut failures = Vec::new();
        for name in names {
            let mut done = self.converge_one(&name);
            if matches!(done, Err(PublishError::NotSettled { .. })) && self.take_promotion_back(&name) {
                done = self.converge_one(&name);
            }
            self.follow_preview(&name);
            let Err(error) = done else {
                self.unpublished.remove(&name);
                continue;
            };
            // It is tried again and again, and told once.
            let why = change::Unpublished::of(&error);
            if self.unpublished.get(&name) != Some(&why) {
                warn!(service = %name, "not published: {error}");
                self.log.tally(|tally| tally.refused += 1);
                self.unpublished.insert(name.clone(), why);
            }
            failures.push((name, error));
        }
        // Who has which index changes only where services come, go or get another name.
        if self.shared.indexes.load().len() != self.publisher.registry.services.len() {
            self.share_indexes();
        }
        self.place_probed();
        failures
    }

    fn converge_one(&mut self, name: &ServiceName) -> Result<(), PublishError> {
        let Some(service) = self.desired.effective(name.as_str()) else { return Ok(()) };
        let Some(intent) = self.desired.intents.get(name) else { return Ok(()) };
        let mut compiler = std::mem::take(&mut self.compiler);
        let compiled = compiler.compile(&service, intent, &self.seed, &self.world());
        self.compiler = compiler;
        let published = self.publisher.publish(&compiled.plan, &self.seed, crate::clock::ticks())?;
        if published.changed {
            info!(service = %name, slots = published.slots, "published");
        }
        let before = self.compiled.insert(name.clone(), compiled);
        self.note_drains(name, before.as_ref());
        self.run_down_commands(name, before.as_ref());
        Ok(())
    }

    /// Tells of drains whose time has come to an end since `before`.
    fn note_drains(&self, name: &ServiceName, before: Option<&Compiled>) {
        let over = |compiled: &Compiled| -> Vec<(String, SocketAddr, bool)> {
            let backends =
                compiled.pools.iter().flat_map(|pool| pool.backends.iter().map(move |b| (pool, b)));
            backends
                .filter_map(|(pool, backend)| {
                    let drain = backend.drain.filter(|drain| drain.over)?;
                    Some((pool.name.clone(), backend.address, drain.reset))
                })
                .collect()
        };
        let known = before.map(over).unwrap_or_default();
        let now = self.compiled.get(name).map(over).unwrap_or_default();
        for (pool, address, reset) in now.into_iter().filter(|one| !known.contains(one)) {
            let service = self.desired.service(name.as_str());
            let flows = service
                .and_then(|service| {
                    let index = self.publisher.registry.service_index(&crate::compile::key_of(service))?;
                    crate::compile::id_of(service, address, index, &self.publisher.registry)
                })
                .map_or(0, |id| self.swept.load(id).flows);
            let done = if reset { "what was left of its flows is reset" } else { "its flows may stay" };
            self.log.push(Occurrence {
                code: "drain_over",
                service: Some(name.as_str().to_owned()),
                pool: Some(pool),
                backend: Some(address.to_string()),
                message: format!(
                    "the time that {address} had to drain is over with {}: {done}",
                    crate::plural::counted(flows, "tracked flow")
                ),
                ..Occurrence::default()
            });
        }
    }

    /// What is known beside what is configured.
    fn world(&self) -> world::View<'_> {
        world::View {
            hops: &self.hops,
            adopted_hops: &self.adopted_hops,
            devices: &self.devices,
            targets: &self.targets,
            scheduler: &self.scheduler,
            passive: &self.passive,
            faulted: &self.faulted,
        }
    }

    fn share_indexes(&self) {
        let indexes = self
            .desired
            .config
            .services
            .iter()
            .filter_map(|service| {
                let index = self.publisher.registry.service_index(&crate::compile::key_of(service))?;
                Some((service.name.as_str().to_owned(), index))
            })
            .collect();
        self.shared.indexes.store(Arc::new(indexes));
    }

    /// Names of all services.
    fn names(&self) -> Vec<ServiceName> {
        self.desired.config.services.iter().map(|service| service.name.clone()).collect()
    }
}
