//! The agent: one task owns the desired state and everything that is derived from it.
//!
//! Whatever happens (a request, a check's result, a neighbour that moved, time that has passed) becomes a call on
//! [`Agent`], one after the other. Each call changes the desired state or the agent's view of the world, compiles what is
//! affected, and publishes the difference. Only a rollback does not wait in this line: its store is made by whoever asks
//! ([`crate::publish::split`]), and the agent is told afterwards.

mod change;
mod control;
mod diff;
mod explain;
mod start;
mod view;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context;
use lb_common::hash::Seed;
use lb_common::settle::SweepReport;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tracing::{error, info, warn};

use crate::compile::{Compiled, Compiler};
use crate::config::ServiceName;
use crate::dataplane::{Attached, Capacities};
use crate::events::EventLog;
use crate::health::{HealthEvent, Scheduler, TargetId};
use crate::netlink::{Links, NextHop, NextHopEvent, NextHops, Resolver, Unreachable, Vips};
use crate::publish::Publisher;
use crate::state::{Desired, Journal};
use crate::sweep;

pub use change::{Request, RollbackDone, Target};
pub use start::{Places, start};

/// Owner of the desired state.
pub struct Agent {
    places: Places,
    desired: Desired,
    journal: Journal,
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
    next_hops: NextHops,
    vips: Vips,
    resolver: Resolver,
    scheduler: Scheduler,
    swept: SweepReport,
    log: Arc<EventLog>,
    shared: Arc<Shared>,
}

/// What is known of the program since it was loaded.
struct KernelFacts {
    attached: Vec<Attached>,
    capacities: Capacities,
    verified_instructions: Option<u32>,
    program_id: u32,
    started: jiff::Timestamp,
}

/// What those need who do not wait for the agent.
pub struct Shared {
    /// The maps.
    pub maps: Arc<crate::dataplane::Maps>,
    /// The services' indexes by name.
    pub indexes: arc_swap::ArcSwap<BTreeMap<String, u32>>,
}

/// Which check belongs to which backend.
#[derive(Default)]
struct Targets {
    next: u64,
    ids: HashMap<(ServiceName, SocketAddr), TargetId>,
    backends: HashMap<TargetId, (ServiceName, SocketAddr)>,
    /// Backends that took flows before this agent started are taken for healthy until their first check is over.
    presumed_up: std::collections::HashSet<(ServiceName, SocketAddr)>,
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
    wanted: crate::wanted::Wanted,
}

impl Agent {
    /// Runs until every handle is gone.
    async fn run(mut self, mut inbox: Inbox) {
        let mut sweep = tokio::time::interval(self.desired.config.dataplane.sweep);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut links = self.links.subscribe();
        loop {
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
                Ok(()) = links.changed() => self.links_changed(),
                neighbours = inbox.wanted.next() => self.neighbours_wanted(neighbours),
                _ = sweep.tick() => self.sweep(),
            }
        }
    }

    /// Closes what changes have opened.
    fn sweep(&mut self) {
        let patience = sweep::patience(&self.desired.config.dataplane);
        match tokio::task::block_in_place(|| sweep::sweep(&mut self.publisher, &patience)) {
            Ok(report) => {
                self.swept = report;
                self.free_what_nobody_uses();
            }
            Err(error) => error!("the sweep failed: {error}"),
        }
    }

    /// Brings the maps to what should be, for services by name.
    fn converge(
        &mut self,
        names: impl IntoIterator<Item = ServiceName>,
    ) -> Vec<(ServiceName, crate::publish::PublishError)> {
        let mut failures = Vec::new();
        for name in names {
            if let Err(error) = self.converge_one(&name) {
                warn!(service = %name, "not published: {error}");
                failures.push((name, error));
            }
        }
        self.share_indexes();
        failures
    }

    fn converge_one(&mut self, name: &ServiceName) -> Result<(), crate::publish::PublishError> {
        let Some(service) = self.desired.config.services.iter().find(|service| service.name == *name) else {
            return Ok(());
        };
        let Some(intent) = self.desired.intents.get(name) else { return Ok(()) };
        let mut compiler = std::mem::take(&mut self.compiler);
        let compiled = compiler.compile(service, intent, &self.seed, &self.world());
        self.compiler = compiler;
        let published = self.publisher.publish(&compiled.plan, &self.seed, crate::clock::ticks())?;
        if published.changed {
            info!(service = %name, slots = published.slots, "published");
        }
        self.compiled.insert(name.clone(), compiled);
        Ok(())
    }

    /// What is known beside what is configured.
    fn world(&self) -> world::View<'_> {
        world::View {
            hops: &self.hops,
            adopted_hops: &self.adopted_hops,
            devices: &self.devices,
            targets: &self.targets,
            scheduler: &self.scheduler,
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
