//! The agent behind its API.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{broadcast, mpsc};

use super::flows::find_flows;
use super::{Agent, Handle, Remembered, Request, Target, diff, history};
use crate::api::{
    AddFault, Answer, Api, ApiError, Applied, Apply, BackendPath, Call, Change, ClearFaults, Control,
    Detached, Diff, DiffQuery, ErrorCode, Event, Explain, Explanation, Faults, FlowQuery, Flows, HealthWord,
    History, KeepOrReset, Moved, OrderRollout, Rollback, RolledBack, RolloutStatus, ServiceQuery, Services,
    SetHealth, SetSplit, SetState, SetWeight, StartRollout, Status, Trace, Traced, Undo,
};
use crate::compile::{BackendView, Health, key_of};
use crate::config::Config;
use crate::publish::split;
use crate::rollout::engine::Order;
use crate::state::history::Revision;
use crate::state::{Author, Deadline};

impl Handle {
    /// Has the agent do something; an agent that has ended is an answer, too.
    pub(super) async fn ask<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Agent) -> Answer<R> + Send + 'static,
    ) -> Answer<R> {
        let ended = |_| {
            ApiError::new(ErrorCode::Stopping, "the agent is about to end")
                .remedy("start it again; the data path goes on")
        };
        self.call(f).await.map_err(ended)?
    }

    /// The revisions of a service, the oldest first; there is at least one.
    async fn recorded(&self, service: &str) -> Answer<Vec<Arc<Revision>>> {
        let service = service.to_owned();
        self.ask(move |agent| history::recorded(agent.journal.histories(), &service).map(<[_]>::to_vec)).await
    }

    async fn set<F>(&self, call: Call, path: BackendPath, reason: Option<String>, set: F) -> Answer<Applied>
    where
        F: FnOnce(&mut Agent, &Target, &Request) -> Answer<Change> + Send + 'static,
    {
        self.ask(move |agent| {
            let backend = path.address().ok_or_else(|| {
                ApiError::new(ErrorCode::InvalidValue, "a backend is named by its address and port")
                    .about(path.to_string())
            })?;
            let target = Target { service: path.service, pool: path.pool, backend };
            let change = set(agent, &target, &request(&call, reason))?;
            Ok(agent.applied(&target.service, vec![change]))
        })
        .await
    }
}

/// Does what takes long where nobody waits for it but whoever asked.
pub(super) async fn aside<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> Answer<R> {
    tokio::task::spawn_blocking(f).await.map_err(|error| {
        ApiError::new(ErrorCode::Internal, format!("the answer could not be made: {error}"))
            .remedy("this is a bug; the agent's log has the place")
    })
}

/// How long the answer to a rollback waits for the journal.
const PATIENCE: Duration = Duration::from_millis(250);

/// The deadline of a drain, as it is asked for.
fn deadline(asked: &SetState) -> Answer<Option<Deadline>> {
    let Some(seconds) = asked.deadline_seconds else { return Ok(None) };
    let far = || {
        let message = format!("a deadline in {seconds} seconds is beyond every calendar");
        ApiError::new(ErrorCode::InvalidValue, message).remedy("ask for days at most")
    };
    let left = i64::try_from(seconds).map_err(|_| far())?;
    let at = Timestamp::now().checked_add(SignedDuration::from_secs(left)).map_err(|_| far())?;
    Ok(Some(Deadline { at, reset: asked.then == KeepOrReset::Reset }))
}

/// A backend's state, with the deadline of its drain.
fn state_words(backend: &BackendView) -> String {
    match backend.drain {
        None => backend.state.to_string(),
        Some(drain) => {
            let then = if drain.reset { KeepOrReset::Reset } else { KeepOrReset::Keep };
            format!("{} until {:.0}, then {then}", backend.state, drain.deadline)
        }
    }
}

/// What was said of a backend's health by hand.
fn health_words(backend: &BackendView) -> HealthWord {
    match (backend.health_is_forced, backend.health) {
        (false, _) => HealthWord::Auto,
        (true, Health::Down) => HealthWord::Down,
        (true, _) => HealthWord::Up,
    }
}

fn unremembered(why: String) -> Remembered {
    let warning = Some(format!("the rollback is in force, but not in the journal yet: {why}"));
    Remembered { revision: None, service_revision: None, established: None, warning }
}

fn request(call: &Call, reason: Option<String>) -> Request {
    Request { author: Author { name: call.actor.name(), pid: call.actor.pid }, reason }
}

impl Control for Handle {
    async fn status(&self, query: ServiceQuery) -> Answer<Status> {
        self.ask(move |agent| agent.status_page(&query)).await
    }

    async fn services(&self, query: ServiceQuery) -> Answer<Services> {
        self.ask(move |agent| agent.services(&query)).await
    }

    async fn flows(&self, query: FlowQuery) -> Answer<Flows> {
        let FlowQuery { service, limit } = query;
        let (only, tracked) = self
            .ask(move |agent| {
                let only = service.map(|name| agent.known(&name).and_then(|_| agent.index(&name)));
                Ok((only.transpose()?, !agent.has_no_tracked_flows()))
            })
            .await?;
        let maps = Arc::clone(&self.shared.maps);
        let found = aside(move || find_flows(&maps, only, limit, tracked)).await?;
        let (found, truncated) = found
            .map_err(|error| ApiError::new(ErrorCode::Dataplane, format!("flows cannot be read: {error}")))?;
        self.ask(move |agent| Ok(Flows { api: Api::V1, flows: agent.named(found), truncated })).await
    }

    fn events(&self, after: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.log.follow(after)
    }

    async fn history(&self, service: String) -> Answer<History> {
        let recorded = self.recorded(&service).await?;
        aside(move || history::history(&recorded, service)).await
    }

    async fn diff(&self, service: String, query: DiffQuery) -> Answer<Diff> {
        let recorded = self.recorded(&service).await?;
        aside(move || history::difference(&recorded, service, query)).await?
    }

    async fn undo(&self, call: Call, service: String, body: Undo) -> Answer<Applied> {
        self.ask(move |agent| agent.undo(&service, body.to, &request(&call, body.reason))).await
    }

    async fn apply(&self, call: Call, config: Config, body: Apply) -> Answer<Applied> {
        self.ask(move |agent| {
            let newest = agent.newest_revision();
            if let Some(expected) = body.expect_revision
                && !agent.journal.is_current(expected)
            {
                let message = format!("revision {expected} was expected, but the newest is {newest}");
                return Err(ApiError::new(ErrorCode::RevisionConflict, message)
                    .remedy("look at what has changed (`lbctl history`), and apply on top of it"));
            }
            let to_apply = (!body.dry_run).then(|| config.clone());
            let next = agent.desired.under(config);
            let changes = diff::changes(&agent.desired, &next);
            let moved = agent.would_move(&next);
            let warnings = agent.departures(&next);
            agent.may_apply(&next)?;
            if let Some(config) = to_apply {
                agent.apply(config, None, &request(&call, body.reason))?;
            }
            Ok(Applied {
                revision: agent.newest_revision(),
                changed: !changes.is_empty(),
                dry_run: body.dry_run,
                changes,
                moved,
                warnings,
                ..Applied::default()
            })
        })
        .await
    }

    async fn set_split(&self, call: Call, service: String, body: SetSplit) -> Answer<Applied> {
        self.ask(move |agent| {
            let before = agent.set_split(&service, body.percent.percent(), &request(&call, body.reason))?;
            let change = Change {
                path: format!("service.{service}.split"),
                from: Some(format!("{before} %")),
                to: Some(format!("{} %", body.percent.percent())),
            };
            Ok(agent.applied(&service, vec![change]))
        })
        .await
    }

    async fn set_weight(&self, call: Call, backend: BackendPath, body: SetWeight) -> Answer<Applied> {
        self.set(call, backend, body.reason, move |agent, target, request| {
            let from = agent.held(target, |backend| backend.weight.to_string());
            agent.set_weight(target, body.weight.get(), request)?;
            Ok(agent.change(target, "weight", from, body.weight.get().to_string()))
        })
        .await
    }

    async fn set_state(&self, call: Call, backend: BackendPath, body: SetState) -> Answer<Applied> {
        let (state, deadline) = (body.state, deadline(&body)?);
        self.set(call, backend, body.reason, move |agent, target, request| {
            let from = agent.held(target, state_words);
            agent.set_state(target, state, deadline, request)?;
            let to = agent.held(target, state_words).unwrap_or_default();
            Ok(agent.change(target, "state", from, to))
        })
        .await
    }

    async fn set_health(&self, call: Call, backend: BackendPath, body: SetHealth) -> Answer<Applied> {
        self.set(call, backend, body.reason, move |agent, target, request| {
            let up = match body.health {
                HealthWord::Up => Some(true),
                HealthWord::Down => Some(false),
                HealthWord::Auto => None,
            };
            let from = agent.held(target, |backend| health_words(backend).to_string());
            agent.set_health(target, up, request)?;
            Ok(agent.change(target, "health", from, body.health.to_string()))
        })
        .await
    }

    /// The store first, by whoever asks; then the agent is told.
    async fn rollback(&self, call: Call, service: String, body: Rollback) -> Answer<RolledBack> {
        let flows = match body.flows {
            KeepOrReset::Keep => split::Flows::Keep,
            KeepOrReset::Reset => split::Flows::Reset,
        };
        let done = self.shared.roll_back(&service, flows)?;
        let total = Instant::now().duration_since(call.arrived);
        self.log.tally(|tally| tally.rollback_took(&service, total.as_secs_f64()));
        let (handle, name) = (self.clone(), service.clone());
        // A task of its own: the agent is told even if nobody waits for it any more.
        let told = tokio::spawn(async move {
            handle.ask(move |agent| agent.rolled_back(&name, done, flows, &request(&call, body.reason))).await
        });
        let remembered = match tokio::time::timeout(PATIENCE, told).await {
            Ok(Ok(Ok(remembered))) => remembered,
            Ok(Ok(Err(error))) => unremembered(error.to_string()),
            Ok(Err(error)) => unremembered(error.to_string()),
            Err(_) => unremembered(format!(
                "the agent is busy, or its disk slow: not done after {} ms; it follows as soon as that is over",
                PATIENCE.as_millis()
            )),
        };
        Ok(RolledBack {
            service,
            split_before_percent: done.before,
            flows: body.flows,
            established: remembered.established,
            store_seconds: done.store.as_secs_f64(),
            total_seconds: total.as_secs_f64(),
            revision: remembered.revision,
            service_revision: remembered.service_revision,
            by_agent: true,
            warnings: remembered.warning.into_iter().collect(),
            ..RolledBack::default()
        })
    }

    async fn trace(&self, call: Call, body: Trace) -> Answer<mpsc::Receiver<Traced>> {
        let request = request(&call, None);
        self.begin_trace(body, request).await
    }

    async fn start_rollout(&self, call: Call, service: String, body: StartRollout) -> Answer<RolloutStatus> {
        self.ask(move |agent| {
            let request = request(&call, body.reason.clone());
            agent.start_rollout(&service, &body, &request)
        })
        .await
    }

    async fn rollout(&self, service: String) -> Answer<RolloutStatus> {
        self.ask(move |agent| agent.rollout_status(&service)).await
    }

    async fn order_rollout(
        &self,
        call: Call,
        service: String,
        order: Order,
        body: OrderRollout,
    ) -> Answer<RolloutStatus> {
        self.ask(move |agent| agent.order_rollout(&service, order, &request(&call, body.reason))).await
    }

    async fn faults(&self) -> Answer<Faults> {
        self.ask(|agent| Ok(agent.fault_list())).await
    }

    async fn add_fault(&self, call: Call, service: String, body: AddFault) -> Answer<Faults> {
        self.ask(move |agent| agent.add_fault(&service, &body, &request(&call, body.reason.clone()))).await
    }

    async fn clear_faults(&self, call: Call, body: ClearFaults) -> Answer<Faults> {
        self.ask(move |agent| agent.clear_faults(&body, &request(&call, body.reason.clone()))).await
    }

    async fn explain(&self, body: Explain) -> Answer<Explanation> {
        self.ask(move |agent| agent.explain(&body)).await
    }

    async fn detach(&self, _: Call) -> Answer<Detached> {
        let answer = self
            .ask(|agent| {
                // Whoever keeps things where they are lets go of them first.
                agent.vips.set(BTreeSet::new());
                agent.next_hops.set_targets(BTreeSet::new());
                let removed = crate::offline::detach(&agent.places.pin_dir, &agent.places.state_dir)
                    .map_err(|error| ApiError::new(ErrorCode::Dataplane, crate::chain(&error)))?;
                Ok(Detached { removed, ..Detached::default() })
            })
            .await?;
        // The answer goes out first; then there is nothing left to do.
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            stop.notify_one();
        });
        Ok(answer)
    }
}

impl Agent {
    /// The answer to a change of a service, made.
    pub(super) fn applied(&self, service: &str, changes: Vec<Change>) -> Applied {
        let mut counted = self.desired.revisions.iter();
        Applied {
            revision: self.newest_revision(),
            service_revision: counted.find(|(name, _)| name.as_str() == service).map(|(_, &count)| count),
            changed: changes.iter().any(|change| change.from != change.to),
            changes,
            ..Applied::default()
        }
    }

    fn change(&self, target: &Target, what: &str, from: Option<String>, to: String) -> Change {
        let backend = BackendPath::name_of(target.backend);
        let path = format!("service.{}.pool.{}.backend.{backend}.{what}", target.service, target.pool);
        Change { path, from, to: Some(to) }
    }

    /// What holds of a backend now.
    fn held(&self, target: &Target, what: impl Fn(&BackendView) -> String) -> Option<String> {
        let service = self.desired.service(&target.service)?;
        let pools = &self.compiled.get(&service.name)?.pools;
        let mut backends = pools.iter().flat_map(|pool| &pool.backends);
        backends.find(|backend| backend.address == target.backend).map(what)
    }

    /// How much of each service another desired state would move.
    pub(super) fn would_move(&self, next: &crate::state::Desired) -> Vec<Moved> {
        let world = self.world();
        let mut moved = Vec::new();
        // Nobody moves in the others.
        for name in next.changed_since(&self.desired) {
            let Some(service) = next.effective(name.as_str()) else { continue };
            let Some(intent) = next.intents.get(&name) else { continue };
            let mut compiler = self.compiler.knowing([key_of(&service)]);
            let compiled = compiler.compile(&service, intent, &self.seed, &world);
            if self.compiled.get(&service.name).is_some_and(|now| now.plan == compiled.plan) {
                continue;
            }
            let Some(index) = self.publisher.registry.service_index(&compiled.plan.key) else { continue };
            let slots = self.publisher.slots_that_differ(index, &compiled.plan);
            let share = intent.split / 100.0;
            let clients = slots.0 * (1.0 - share) + slots.1 * share;
            let both = if compiled.plan.canary.is_some() { (slots.0 + slots.1) / 2.0 } else { slots.0 };
            if both > 0.0 {
                moved.push(Moved {
                    service: service.name.as_str().to_owned(),
                    slots_moved_percent: both * 100.0,
                    clients_moved_percent: clients * 100.0,
                });
            }
        }
        moved
    }
}
