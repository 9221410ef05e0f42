//! Rollouts, driven: looks at each one that is under way, asks the engine what comes next, and does it.
//!
//! A step is journaled before it is set. Going back is set first: it does not wait for the disk.

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use lb_common::abi::Traffic;
use lb_common::measure::{BUCKETS, Measure, Outcome, PoolMeasure, cap_interval, counter};
use tokio::sync::oneshot;

use super::{Agent, Request};
use crate::api::{
    Api, ApiError, ClientCount, ErrorCode, MetricStatus, Observation, Observed, PoolTelemetry, Quantiles,
    QueryStatus, RolloutStatus, StartRollout, VerdictWord,
};
use crate::clock;
use crate::compile::key_of;
use crate::config::{PoolName, Protocol, ServiceName};
use crate::dataplane::maps;
use crate::events::Occurrence;
use crate::plural::counted;
use crate::publish::split::{self, Flows};
use crate::rollout::analysis::{Count, SUSPICIOUS, Watch};
use crate::rollout::engine::{self, Answer, Facts, Order, Phase, Rollout, Verdict};
use crate::rollout::evidence::Boundary;
use crate::rollout::gate;
use crate::rollout::metric::{Judge, Reading};
use crate::rollout::plan;
use crate::rollout::prometheus::{Asking, Subject};
use crate::state::{Author, Change, Intent};

/// How often rollouts are looked at.
pub(super) const PERIOD: Duration = Duration::from_millis(200);

/// What the agent remembers of a rollout that is under way, and can do without.
pub(super) struct Follow {
    watch: Watch,
    /// The step that was looked at last.
    at: (Phase, usize),
    /// When this agent began to look at it.
    begun: Instant,
    /// Traffic when it began: the canary's, and the stable pool's.
    before: [Traffic; 2],
    /// Somebody at the gate is being asked.
    asked: Option<oneshot::Receiver<Answer>>,
    answer: Answer,
    queries: Vec<Query>,
}

/// A figure of Prometheus under watch.
struct Query {
    judge: Judge,
    asking: Asking,
}

/// The pools of a rollout in the kernel's tables.
#[derive(Clone, Copy)]
pub(super) struct Pools {
    pub canary: u16,
    pub stable: u16,
    /// 0 where nothing is measured.
    pub measure: u16,
}

impl Agent {
    /// Brings every rollout that is under way one step further, if it is time.
    pub(super) fn follow_rollouts(&mut self) {
        for name in self.names() {
            if !self.desired.intents.get(&name).is_some_and(Intent::is_in_rollout) {
                self.unmeasured.remove(&name);
                self.stuck.remove(&name);
                if self.follows.contains_key(&name) {
                    self.end_measuring(&name);
                }
                continue;
            }
            self.follow_rollout(&name);
        }
    }

    fn follow_rollout(&mut self, name: &ServiceName) {
        self.wait_for_measure(name);
        self.look(name);
        // A step may be over as soon as it begins; each is journaled.
        while let Some(rollout) = self.rollout_of(name) {
            let begin = Instant::now();
            let facts = self.facts(name, &rollout);
            let Some(next) = engine::advance(&rollout, &facts, Timestamp::now()) else { break };
            let request = Request { author: Author::agent("rollout"), reason: None };
            if let Err(error) = self.move_rollout(name, next, &request, begin) {
                // Tried again at every look, and told once. Whatever is in its way, the agent is there.
                if self.stuck.insert(name.clone()) {
                    tracing::warn!(service = %name, "the rollout stays where it is: {}", error.message);
                }
                break;
            }
            self.stuck.remove(name);
        }
        self.keep_up(name);
    }

    /// Has a rollout that is about to begin get a measure as soon as one is free, and tells that it waits for one.
    fn wait_for_measure(&mut self, name: &ServiceName) {
        if self.lacks_measure(name) && self.publisher.registry.can_measure(self.publisher.maps.measures.len())
        {
            self.converge([name.clone()]);
        }
        if !self.lacks_measure(name) {
            self.unmeasured.remove(name);
        } else if self.unmeasured.insert(name.clone()) {
            self.log.push(Occurrence {
                code: "rollout_waits",
                severe: true,
                service: Some(name.as_str().to_owned()),
                message: format!("the rollout of {name} waits: {}", self.no_measure()),
                ..Occurrence::default()
            });
        }
    }

    /// Whether nothing can be counted of a rollout that is about to begin: neither analysis, nor tripwire, nor cap would work.
    fn lacks_measure(&self, name: &ServiceName) -> bool {
        let tcp =
            self.desired.service(name.as_str()).is_some_and(|service| service.protocol == Protocol::Tcp);
        tcp && self.rollout_of(name).is_some_and(|rollout| rollout.phase == Phase::Preparing)
            && self
                .index(name.as_str())
                .is_ok_and(|index| self.publisher.maps.services.read(index).measure == 0)
    }

    fn no_measure(&self) -> String {
        let most = self.publisher.maps.measures.len().saturating_sub(1);
        format!(
            "{most} services are measured already, which is as many as can be; it begins when another rollout has ended"
        )
    }

    fn rollout_of(&self, name: &ServiceName) -> Option<Rollout> {
        self.desired.intents.get(name)?.under_way().cloned()
    }

    /// The kernel has what the rollout asks for, and believes that somebody is there.
    fn keep_up(&mut self, name: &ServiceName) {
        let Some(rollout) = self.rollout_of(name) else { return };
        let Ok(index) = self.index(name.as_str()) else { return };
        self.set_lease(index, rollout.plan.lease);
        let now = self.publisher.maps.services.read(index).split();
        let share = word(&rollout);
        // An agent that died between journal and store left it behind. (At zero somebody has rolled back.)
        if now.new() != share && now.new() != 0 {
            self.store_split(name.as_str(), index, now, share);
        }
    }

    /// How long from now on the kernel believes that somebody is there; `None`: for ever.
    pub(super) fn set_lease(&self, index: u32, lease: Option<Duration>) {
        let now = clock::nanoseconds();
        let until = lease.map_or(0, |lease| now + lease.as_nanos() as u64);
        let word = self.publisher.maps.services.word(index, offset_of!(lb_common::abi::Service, lease_until));
        // One that has run out is for the sweep to find: changed before that, it would open the canary again.
        let held = word.load(Ordering::Acquire);
        let closed = self.publisher.maps.services.read(index).split().new() == 0;
        if closed || held == 0 || held > now {
            word.store(until, Ordering::Release);
        }
    }

    /// Only a rollout that is under way has a lease: the next one, or a split by hand, begins without what is left of an earlier
    /// one's.
    pub(super) fn end_leases(&self) {
        for service in &self.desired.config.services {
            let Some(index) = self.publisher.registry.service_index(&key_of(service)) else { continue };
            if self.rollout_of(&service.name).is_none() {
                self.set_lease(index, None);
            }
        }
    }

    /// Takes in what the kernel has counted since the last look.
    fn look(&mut self, name: &ServiceName) {
        let (Some(rollout), Some(pools)) = (self.rollout_of(name), self.pools_of(name)) else { return };
        let at = (rollout.phase, rollout.step);
        if self.follows.get(name).is_none_or(|follow| follow.at != at) {
            if self.is_taken_back(name, &rollout) {
                // What the kernel program knows of it is the reason that will be given.
                return;
            }
            self.begin_step(name, &rollout, pools);
        }
        let (canary, stable) = (self.count(pools, true), self.count(pools, false));
        let Some(follow) = self.follows.get_mut(name) else { return };
        follow.watch.look(canary, stable);
        for query in &mut follow.queries {
            for measured in query.asking.news() {
                query.judge.take(measured);
            }
        }
        if let Some(asked) = &mut follow.asked
            && let Ok(answer) = asked.try_recv()
        {
            follow.asked = None;
            follow.answer = answer;
        }
        self.ask_at_gate(name, &rollout);
    }

    fn begin_step(&mut self, name: &ServiceName, rollout: &Rollout, pools: Pools) {
        let first = !self.follows.contains_key(name);
        // What an earlier agent has left there is of this rollout, too.
        if !first || rollout.phase != Phase::Preparing {
            self.keep_handshakes(name, pools);
        }
        if pools.measure != 0 {
            self.set_cap(rollout, pools.measure);
            self.clear_measure(pools.measure);
        }
        let traffic =
            |pool: u16| maps::traffic(&self.publisher.maps.pool_traffic, pool.into()).unwrap_or_default();
        let before = [traffic(pools.canary), traffic(pools.stable)];
        let at = (rollout.phase, rollout.step);
        let subject = Subject {
            service: name.as_str().to_owned(),
            canary: rollout.to.as_str().to_owned(),
            stable: self
                .desired
                .intents
                .get(name)
                .map_or_else(String::new, |intent| intent.stable.to_string()),
        };
        let follow = self.follows.entry(name.clone()).or_insert_with(|| Follow {
            watch: Watch::new(&rollout.plan.analysis),
            at,
            begun: Instant::now(),
            before,
            asked: None,
            answer: Answer::None,
            queries: Vec::new(),
        });
        if first {
            let begin = |metric: &plan::Metric| Query {
                judge: Judge::new(metric.clone()),
                asking: Asking::begin(metric, &subject),
            };
            follow.queries = rollout.plan.metrics.iter().map(begin).collect();
        } else {
            for query in &mut follow.queries {
                // Asked anew: an answer under way is about the step before.
                query.asking = Asking::begin(query.judge.metric(), &subject);
                query.judge.next_step();
            }
        }
        follow.watch.next_step(rollout.share() >= 100.0);
        (follow.at, follow.begun, follow.before) = (at, Instant::now(), before);
        (follow.asked, follow.answer) = (None, Answer::None);
        self.set_tripwire(rollout, pools.measure);
    }

    /// The cap of new connections. It stays while the counters are cleared: there is no moment without it.
    fn set_cap(&self, rollout: &Rollout, measure: u16) {
        let capped = rollout.plan.cap.filter(|_| rollout.share() < 100.0);
        let interval = cap_interval(capped.unwrap_or_default());
        let offset = offset_of!(Measure, cap_interval);
        self.publisher.maps.measures.word(measure.into(), offset).store(interval, Ordering::Release);
    }

    fn set_tripwire(&self, rollout: &Rollout, measure: u16) {
        if measure == 0 {
            return;
        }
        let line = rollout
            .tripwire()
            .and_then(|ratio| Boundary::new(ratio / 4.0, ratio, rollout.plan.analysis.alpha / 10.0));
        let fixed = |value: f64| (value * 65_536.0).round() as u64;
        let (start, slope) = line.map_or((0, 0), |line| (fixed(line.start).max(1), fixed(line.slope)));
        let mut words = [(offset_of!(Measure, trip_slope), slope), (offset_of!(Measure, trip_start), start)];
        // A line without a slope would be crossed too early: it comes first, and goes last.
        if start == 0 {
            words.reverse();
        }
        for (offset, value) in words {
            self.publisher.maps.measures.word(measure.into(), offset).store(value, Ordering::Release);
        }
    }

    /// Keeps what was counted, as long as the pools have the roles that they were measured in. Nobody has a lease any more.
    pub(super) fn end_measuring(&mut self, name: &ServiceName) {
        if let Ok(index) = self.index(name.as_str()) {
            self.set_lease(index, None);
        }
        if self.follows.contains_key(name)
            && let Some(pools) = self.pools_of(name)
        {
            self.keep_handshakes(name, pools);
            if pools.measure != 0 {
                self.clear_measure(pools.measure);
            }
        }
        self.follows.remove(name);
    }

    fn clear_measure(&self, measure: u16) {
        let kept = [offset_of!(Measure, cap_interval), offset_of!(Measure, cap_next)];
        for (index, word) in self.publisher.maps.measures.words(measure.into()).iter().enumerate() {
            if !kept.contains(&(index * 8)) {
                word.store(0, Ordering::Release);
            }
        }
    }

    fn count(&self, pools: Pools, canary: bool) -> Count {
        let (outcomes, _, first_byte) = self.measured(pools, canary);
        Count::of(&outcomes, &first_byte)
    }

    /// Outcomes, handshakes, first bytes: what the kernel has counted of a pool since the step began.
    pub(super) fn measured(
        &self,
        pools: Pools,
        canary: bool,
    ) -> ([u64; Outcome::COUNT], [u64; BUCKETS], [u64; BUCKETS]) {
        let measures = &self.publisher.maps.measures;
        let word = |offset: usize| measures.word(pools.measure.into(), offset).load(Ordering::Acquire);
        let first = counter(canary, Outcome::ClientTried);
        let histogram = |offset: usize| std::array::from_fn(|i| word(first + offset + i * 8));
        let outcomes = std::array::from_fn(|i| word(first + i * 8));
        (
            outcomes,
            histogram(offset_of!(PoolMeasure, handshake)),
            histogram(offset_of!(PoolMeasure, first_byte)),
        )
    }

    pub(super) fn pools_of(&self, name: &ServiceName) -> Option<Pools> {
        let service = self.index(name.as_str()).ok()?;
        let in_kernel = self.publisher.maps.services.read(service);
        let (canary, stable, measure) = (in_kernel.canary_pool, in_kernel.stable_pool, in_kernel.measure);
        let is_counted = measure != 0 || self.not_measured(name).is_some();
        (canary != 0 && is_counted).then_some(Pools { canary, stable, measure })
    }

    fn ask_at_gate(&mut self, name: &ServiceName, rollout: &Rollout) {
        let Some(follow) = self.follows.get_mut(name) else { return };
        if rollout.phase != Phase::Gate || follow.asked.is_some() || follow.answer != Answer::None {
            return;
        }
        let question = rollout.plan.steps.get(rollout.step).and_then(|step| step.gate.as_ref());
        if let Some(question) = question {
            follow.asked = gate::ask(&question.what, name.as_str(), rollout.to.as_str(), rollout.share());
        }
    }

    /// What keeps the pool from taking clients: of all of it to begin with, of any of it to go on.
    fn not_ready(&self, name: &ServiceName, rollout: &Rollout) -> Option<String> {
        let preparing = rollout.phase == Phase::Preparing;
        let pools = self.compiled.get(name).map(|compiled| &compiled.pools);
        let Some(pool) = pools.and_then(|pools| pools.iter().find(|pool| pool.name == rollout.to.as_str()))
        else {
            return Some("it is not there".to_owned());
        };
        let not_ready = pool.not_ready(preparing);
        if !preparing || not_ready.is_some() {
            return not_ready;
        }
        let in_kernel = self.index(name.as_str()).map(|index| self.publisher.maps.services.read(index));
        let canary = in_kernel.unwrap_or_default().canary_pool;
        if self.publisher.registry.pool_name(canary) != Some(rollout.to.as_str()) {
            return Some("the kernel does not have it as the canary yet".to_owned());
        }
        if self.lacks_measure(name) {
            return Some(self.no_measure());
        }
        self.crowded(name, rollout, rollout.first_share())
    }

    /// What the limits of the canary have no room for, if it gets a share of the connections that there are.
    fn crowded(&self, name: &ServiceName, rollout: &Rollout, share: f64) -> Option<String> {
        let service = self.desired.service(name.as_str())?;
        let limits = service.limits.as_ref().filter(|_| service.protocol == Protocol::Tcp)?;
        let pools = self.compiled.get(name).map(|compiled| &compiled.pools)?;
        let takers = pools.iter().find(|pool| pool.name == rollout.to.as_str())?.takers();
        let of_all = limits.max_connections.map(|each| u64::from(each) * takers);
        let room = of_all.into_iter().chain(limits.pool_max_connections.map(u64::from)).min()?;
        let in_kernel = self.publisher.maps.services.read(self.index(name.as_str()).ok()?);
        let open = |pool: u16| self.publisher.maps.pool_limits.read(pool.into()).open;
        let open = open(in_kernel.stable_pool) + open(in_kernel.canary_pool);
        let wanted = (open as f64 * share / 100.0).round() as u64;
        (wanted > room).then(|| {
            let connections = counted(room, "connection");
            format!("its limits have room for {connections}, and {share} % of the {open} that are open are {wanted}")
        })
    }

    fn facts(&self, name: &ServiceName, rollout: &Rollout) -> Facts {
        let compiled = self.compiled.get(name);
        let pool = |wanted: &str| compiled.and_then(|c| c.pools.iter().find(|pool| pool.name == wanted));
        let stable = self.desired.intents.get(name).map(|intent| intent.stable.clone());
        let not_ready = self.not_ready(name, rollout);
        let index = self.index(name.as_str()).ok();
        let in_kernel = index.map(|index| self.publisher.maps.services.read(index)).unwrap_or_default();
        let lease = in_kernel.lease();
        let follow = self.follows.get(name).filter(|follow| follow.at == (rollout.phase, rollout.step));
        Facts {
            watched: follow.map_or_else(|| self.age(), |follow| follow.begun.elapsed()),
            not_ready,
            stable_takes: stable
                .and_then(|stable| pool(stable.as_str()))
                .is_some_and(|pool| pool.takes_new()),
            taken_back: self.is_taken_back(name, rollout).then(|| self.taken_back(name)),
            settled: split::is_settled_at_all(&in_kernel)
                && (lease == 0 || lease > clock::nanoseconds())
                && index.is_some_and(|index| self.publisher.registry.is_closed(index)),
            verdict: self.verdict(name, rollout),
            answer: follow.map_or(Answer::None, |follow| follow.answer.clone()),
        }
    }

    /// How long this agent has been there.
    fn age(&self) -> Duration {
        Duration::try_from(Timestamp::now().duration_since(self.kernel.started)).unwrap_or_default()
    }

    fn verdict(&self, name: &ServiceName, rollout: &Rollout) -> Verdict {
        let begun = self.follows.get(name).filter(|follow| follow.at == (rollout.phase, rollout.step));
        let Some(follow) = begun else {
            let none = if rollout.phase.is_over() { "it is over" } else { "the step has just begun" };
            let why = self.not_measured(name).unwrap_or(none);
            return Verdict::NoData { why: why.to_owned(), then: rollout.plan.analysis.on_no_data };
        };
        let counted = follow.queries.iter().filter(|query| !query.judge.metric().shadow);
        let queries = counted.map(|query| query.judge.verdict());
        match self.not_measured(name) {
            // Prometheus may know what the kernel program cannot.
            Some(_) if !follow.queries.is_empty() => Verdict::gravest(queries),
            Some(why) => Verdict::NoData { why: why.to_owned(), then: rollout.plan.analysis.on_no_data },
            None => {
                let next = rollout.next_share().and_then(|share| self.crowded(name, rollout, share));
                let crowded = next.map(Verdict::Unsure);
                Verdict::gravest([follow.watch.verdict()].into_iter().chain(queries).chain(crowded))
            }
        }
    }

    /// Why nothing is counted, where nothing is.
    fn not_measured(&self, name: &ServiceName) -> Option<&'static str> {
        let service = self.desired.service(name.as_str())?;
        (service.protocol == Protocol::Udp).then_some("UDP has no handshakes that could be counted")
    }

    fn is_taken_back(&self, name: &ServiceName, rollout: &Rollout) -> bool {
        let split = |index: u32| self.publisher.maps.services.read(index).split();
        // A rollback that the agent has yet to hear of is told by whoever made it.
        let heard = self.shared.rollbacks.load(Ordering::Acquire) == self.rollbacks;
        heard && rollout.is_open() && self.index(name.as_str()).is_ok_and(|index| split(index).new() == 0)
    }

    /// Why the kernel's split is zero although the rollout's is not.
    fn taken_back(&self, name: &ServiceName) -> String {
        let tripped = self.pools_of(name).filter(|pools| {
            let word = self.publisher.maps.measures.word(pools.measure.into(), offset_of!(Measure, tripped));
            word.load(Ordering::Acquire) != 0
        });
        let lapsed = self.index(name.as_str()).is_ok_and(|index| self.swept.lapsed.contains(&index));
        match (tripped, lapsed) {
            (Some(pools), _) => {
                let clients = self.count(pools, true).clients;
                format!(
                    "the tripwire: {} of {} clients of the canary fared badly",
                    clients.bad, clients.tried
                )
            }
            (None, true) => "the lease ran out: the agent was away for too long".to_owned(),
            (None, false) if !self.follows.contains_key(name) => {
                "it was rolled back while there was no agent, or the last one died before it had opened it"
                    .to_owned()
            }
            (None, false) => "rolled back by hand".to_owned(),
        }
    }

    /// Writes down what a rollout becomes, and does it.
    fn move_rollout(
        &mut self,
        name: &ServiceName,
        next: Rollout,
        request: &Request,
        begin: Instant,
    ) -> Result<(), ApiError> {
        let (_, mut intent) = self.intent(name.as_str())?;
        let index = self.index(name.as_str())?;
        let share = next.share();
        let moved =
            intent.rollout.as_ref().is_none_or(|now| (now.phase, now.step) != (next.phase, next.step));
        let ordered = intent.rollout.as_ref().filter(|_| !moved).map(|now| ordered(now, &next));
        let summary = ordered
            .map_or_else(|| summary(name, &next), |what| format!("rollout of {name} to {}: {what}", next.to));
        if next.phase == Phase::RolledBack {
            // Before anything is written: from the verdict to the next packet is one store.
            let done = split::roll_back(
                &self.publisher.maps.services,
                &self.publisher.maps.backends,
                index,
                Flows::Keep,
            );
            let took = begin.elapsed();
            self.went_back.insert(name.clone(), took);
            self.publisher.split_changed(index, clock::ticks());
            self.log.tally(|tally| tally.rollback_took(name.as_str(), took.as_secs_f64()));
            tracing::info!(service = %name, store = ?done.store, ?took, "rolled back");
        }
        intent.split = share;
        if next.phase == Phase::Promoted {
            intent.canary = Some(std::mem::replace(&mut intent.stable, next.to.clone()));
            intent.split = 0.0;
        }
        let before = intent.rollout.replace(next.clone()).map_or(0, |rollout| word(&rollout));
        let wanted = word(&next);
        let expected = self.publisher.maps.services.read(index).split();
        if wanted > before {
            self.may_raise(name.as_str(), expected, wanted)?;
        }
        let change = Change::Service { name: name.clone(), intent: intent.clone() };
        let written = self.record(request, summary.clone(), change);
        if next.phase != Phase::RolledBack {
            written?;
        } else if let Err(error) = written {
            // What is taken back stays so, also after a reboot.
            tracing::error!(service = %name, "the rollback is in force and not in the journal: {}", error.message);
            self.owe(name, request, summary.clone());
        }
        if next.phase.is_over() {
            self.end_measuring(name);
        }
        self.settle_intent(name, intent);
        if !next.phase.is_over()
            && let Some(pools) = self.pools_of(name)
        {
            if moved {
                // Before the first new client comes.
                self.begin_step(name, &next, pools);
            } else {
                self.set_tripwire(&next, pools.measure);
            }
        }
        if next.phase == Phase::Promoted {
            if let Some((_, error)) = self.converge([name.clone()]).into_iter().next() {
                return Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(name.as_str()));
            }
        } else if next.phase != Phase::RolledBack && wanted != before {
            self.set_lease(index, next.plan.lease);
            self.store_split(name.as_str(), index, expected, wanted);
        }
        if next.phase.is_over() {
            self.converge([name.clone()]);
        }
        if self.desired.intents.get(name).is_some_and(|it| it.rollout.as_ref() == Some(&next)) {
            self.log.push(Occurrence {
                code: if moved { code(next.phase) } else { "rollout_order" },
                severe: matches!(next.phase, Phase::RolledBack | Phase::Failed),
                service: Some(name.as_str().to_owned()),
                pool: Some(next.to.as_str().to_owned()),
                message: summary,
                actor: Some(request.author.name.clone()),
                service_revision: self.desired.revisions.get(name).copied(),
                ..Occurrence::default()
            });
        }
        Ok(())
    }

    /// Begins a rollout, as configured.
    pub(super) fn start_rollout(
        &mut self,
        service: &str,
        body: &StartRollout,
        request: &Request,
    ) -> Result<RolloutStatus, ApiError> {
        let refused = |why: String| ApiError::new(ErrorCode::InvalidValue, why).about(service);
        self.intent(service)?;
        let hold = body.hold_seconds.map(Duration::try_from_secs_f64).transpose();
        let hold = hold.map_err(|error| refused(format!("hold_seconds: {error}")))?;
        let shares = body.shares.as_deref();
        if shares.is_some_and(<[_]>::is_empty) {
            return Err(refused("shares: a rollout has a step".to_owned())
                .remedy("name the shares, 100 for everybody at once, or leave `shares` out"));
        }
        let configured = self.desired.service(service).and_then(|service| service.rollout.clone());
        let plan = configured.unwrap_or_default().plan(shares, hold);
        if !plan.steps.is_sorted_by(|a, b| a.weight < b.weight) {
            return Err(refused("each step gives the canary more than the one before".to_owned()));
        }
        self.begin_rollout(service, &body.to, plan, body.supersede, request)
    }

    /// Begins a rollout, unless something is in its way.
    fn begin_rollout(
        &mut self,
        service: &str,
        to: &str,
        plan: plan::Plan,
        supersede: bool,
        request: &Request,
    ) -> Result<RolloutStatus, ApiError> {
        let (name, mut intent) = self.intent(service)?;
        let found = self.desired.service(service).cloned().ok_or_else(|| {
            ApiError::new(ErrorCode::Internal, "a service without a configuration").about(service)
        })?;
        let pools = || found.pools.iter().map(|pool| pool.name.as_str());
        let to: PoolName = found
            .pools
            .iter()
            .map(|pool| &pool.name)
            .find(|pool| pool.as_str() == to)
            .cloned()
            .ok_or_else(|| ApiError::no_pool(service, to, pools()))?;
        if to == intent.stable {
            return Err(ApiError::new(ErrorCode::InvalidValue, format!("{to} is the stable pool already"))
                .about(service));
        }
        let superseded = intent.is_in_rollout();
        if superseded && !supersede {
            return Err(under_way(service).remedy(
                "wait for it (`lbctl rollout status --watch`), abort it, or take its place with --supersede",
            ));
        }
        if !superseded && intent.split > 0.0 {
            let message = format!("the canary has {} % of the clients already", intent.split);
            return Err(ApiError::new(ErrorCode::RolloutOrder, message)
                .about(service)
                .remedy("a rollout begins at 0 %: `lbctl rollback` first"));
        }
        let analyzed = plan.steps.iter().any(|step| step.analyze) && plan.metrics.is_empty();
        if analyzed && found.protocol == Protocol::Udp {
            return Err(ApiError::new(ErrorCode::InvalidValue, "UDP has no handshakes to analyse")
                .about(service)
                .remedy("add a [[service.rollout.metric]], or say analysis = \"off\" in [service.rollout]"));
        }
        if plan.cap.is_some() && found.protocol == Protocol::Udp {
            return Err(ApiError::new(
                ErrorCode::InvalidValue,
                "UDP has no connections that could be counted",
            )
            .about(service)
            .remedy("leave max_new_connections out of [service.rollout]"));
        }
        if let Some(preview) = plan.preview
            && let Some((other, _)) = self
                .previews
                .iter()
                .find(|(other, known)| **other != name && known.is_at(preview, found.protocol))
        {
            let message = format!("{preview} is the preview of {other}, whose rollout is under way");
            return Err(ApiError::new(ErrorCode::InvalidValue, message)
                .about(service)
                .remedy("give each rollout a preview of its own"));
        }
        let index = self.index(service)?;
        let in_kernel = self.publisher.maps.services.read(index);
        let last = self.publisher.registry.pool_name(in_kernel.canary_pool);
        // What is superseded has no new flows in a moment; those that the hash alone explains are there for longer.
        let busy = in_kernel.home() != 0 || (!superseded && in_kernel.split().new() != 0);
        if busy && last != Some(to.as_str()) {
            let last = last.unwrap_or("another pool");
            let message = format!("{to} cannot become the canary: {last} is, and may have flows");
            return Err(ApiError::new(ErrorCode::RolloutOrder, message)
                .about(service)
                .remedy("`lbctl rollback`, then wait until they are over (`lbctl status --wait=settled`)"));
        }
        if superseded {
            self.order_rollout(service, Order::Abort, request)?;
            (_, intent) = self.intent(service)?;
        }
        // Not the same clients first each time. Flows that are still tracked were placed by the old salt.
        if self.publisher.registry.is_closed(index) {
            found.pools.iter().filter(|pool| pool.name == to).for_each(|pool| intent.begin_with_others(pool));
        }
        intent.canary = Some(to.clone());
        self.follows.remove(&name);
        self.went_back.remove(&name);
        let rollout = Rollout::begin(to, plan, Timestamp::now());
        intent.rollout = Some(rollout.clone());
        let summary = summary(&name, &rollout);
        self.record(
            request,
            summary.clone(),
            Change::Service { name: name.clone(), intent: intent.clone() },
        )?;
        self.settle_intent(&name, intent);
        if let Some((_, error)) = self.converge([name.clone()]).into_iter().next() {
            let message = format!("the rollout waits: {error}");
            tracing::warn!(service = %name, "{message}");
        }
        self.note("rollout_started", Some(&name), request, summary);
        self.follow_rollout(&name);
        self.rollout_status(service)
    }

    /// Has a say in a rollout.
    pub(super) fn order_rollout(
        &mut self,
        service: &str,
        order: Order,
        request: &Request,
    ) -> Result<RolloutStatus, ApiError> {
        let begin = Instant::now();
        let (name, intent) = self.intent(service)?;
        let rollout = intent.rollout.ok_or_else(|| no_rollout(service))?;
        let next = engine::obey(&rollout, order, Timestamp::now()).map_err(|why| {
            ApiError::new(ErrorCode::RolloutOrder, format!("cannot {}: {why}", order.as_str())).about(service)
        })?;
        if order == Order::Retry {
            return self.begin_rollout(service, next.to.as_str(), next.plan, false, request);
        }
        self.move_rollout(&name, next, request, begin)?;
        self.follow_rollout(&name);
        self.rollout_status(service)
    }

    /// Refuses what a rollout under way decides itself.
    pub(super) fn not_in_rollout(&self, service: &str, intent: &Intent) -> Result<(), ApiError> {
        if intent.is_in_rollout() {
            return Err(under_way(service).remedy(format!(
                "`lbctl rollout pause`, `promote` or `abort {service}` decides it; `lbctl rollback {service}` takes it back"
            )));
        }
        Ok(())
    }

    /// Where a rollout stands.
    pub(super) fn rollout_status(&self, service: &str) -> Result<RolloutStatus, ApiError> {
        let (name, intent) = self.intent(service)?;
        let rollout = intent.rollout.as_ref().ok_or_else(|| no_rollout(service))?;
        let now = Timestamp::now();
        let follow = self.follows.get(&name);
        let elapsed = rollout.elapsed(now);
        let lasts = match rollout.phase {
            Phase::Preparing => None,
            Phase::Holding => rollout.plan.steps.get(rollout.step).map(|step| step.hold),
            Phase::Gate => None,
            Phase::Soaking => Some(rollout.soak()),
            Phase::Promoted | Phase::RolledBack | Phase::Failed => None,
        };
        let waits_for = (rollout.phase == Phase::Preparing).then(|| self.not_ready(&name, rollout)).flatten();
        let (verdict, verdict_reason) = match waits_for {
            Some(why) => (VerdictWord::NoData, Some(why)),
            None => in_words(self.verdict(&name, rollout)),
        };
        let verdict_reason =
            verdict_reason.unwrap_or_else(|| format!("clients of {} fare no worse", rollout.to));
        let queries = follow.map_or(Vec::new(), |follow| follow.queries.iter().map(query_status).collect());
        let inferred = self.desired.service(service).is_some_and(|service| service.mode.is_dsr());
        let measured = follow.filter(|_| self.not_measured(&name).is_none());
        let metrics = measured.map_or(Vec::new(), |follow| {
            let limit = follow.watch.limit();
            let clients = |sample: crate::rollout::evidence::Sample| ClientCount {
                tried: sample.tried,
                bad: sample.bad,
            };
            let metric = |metric: crate::rollout::analysis::Metric| MetricStatus {
                name: metric.name.to_owned(),
                canary: clients(metric.canary),
                stable: clients(metric.stable),
                evidence: metric.evidence,
                limit,
                verdict: match metric.evidence {
                    evidence if evidence >= limit => VerdictWord::Worse,
                    evidence if evidence >= SUSPICIOUS => VerdictWord::Unsure,
                    _ if metric.canary.tried == 0 => VerdictWord::NoData,
                    _ => VerdictWord::Fine,
                },
                inferred,
            };
            follow.watch.metrics().into_iter().map(metric).collect()
        });
        let from =
            if rollout.phase == Phase::Promoted { intent.canary.as_ref() } else { Some(&intent.stable) };
        Ok(RolloutStatus {
            api: Api::V1,
            service: service.to_owned(),
            from: from.map_or_else(String::new, |pool| pool.as_str().to_owned()),
            to: rollout.to.as_str().to_owned(),
            phase: rollout.phase,
            paused: rollout.paused.is_some(),
            ended_in: rollout.ended_in,
            step: match rollout.ended_in.unwrap_or(rollout.phase) {
                Phase::Preparing => 0,
                _ => rollout.step + 1,
            },
            plan: rollout.plan.shown(),
            reason: rollout.reason.clone(),
            began: rollout.began.to_string(),
            elapsed_seconds: elapsed.as_secs_f64(),
            left_seconds: lasts.map(|lasts| lasts.saturating_sub(elapsed).as_secs_f64()),
            desired_percent: rollout.share(),
            took_back_seconds: self
                .went_back
                .get(&name)
                .filter(|_| rollout.phase == Phase::RolledBack)
                .map(|took| took.as_secs_f64()),
            observed: self.observed(&name, follow),
            telemetry: self.telemetry(&name, rollout, inferred),
            verdict,
            verdict_reason,
            metrics,
            queries,
            preview: self.preview_status(&name),
        })
    }

    fn telemetry(&self, name: &ServiceName, rollout: &Rollout, inferred: bool) -> Vec<PoolTelemetry> {
        let pools = self.pools_of(name).filter(|pools| pools.measure != 0);
        let (Some(follow), Some(pools)) = (self.follows.get(name), pools) else { return Vec::new() };
        let stable =
            self.desired.intents.get(name).map_or_else(String::new, |intent| intent.stable.to_string());
        let of = |canary: bool| {
            let (pool, name, before) = if canary {
                (pools.canary, rollout.to.to_string(), follow.before[0])
            } else {
                (pools.stable, stable.clone(), follow.before[1])
            };
            let (outcomes, handshake, first_byte) = self.measured(pools, canary);
            let now = maps::traffic(&self.publisher.maps.pool_traffic, pool.into()).unwrap_or_default();
            let count = |outcome: Outcome| outcomes[outcome as usize];
            PoolTelemetry {
                pool: name,
                tried: count(Outcome::Tried),
                answered: count(Outcome::Answered),
                refused: count(Outcome::Refused),
                repeated: count(Outcome::Repeated),
                reset_early: count(Outcome::ResetEarly),
                served: count(Outcome::Served),
                bytes: now.bytes.saturating_sub(before.bytes),
                reply_bytes: now.reply_bytes.saturating_sub(before.reply_bytes),
                tracked: self.tracked(pool),
                handshake: Quantiles::of(&handshake),
                first_byte: Quantiles::of(&first_byte),
                inferred,
            }
        };
        vec![of(true), of(false)]
    }

    /// Flows of a pool's backends that tables know, at the last sweep.
    fn tracked(&self, pool: u16) -> u64 {
        let backends = &self.publisher.maps.backends;
        let loads = self.swept.loads.iter().enumerate().skip(1);
        loads.filter(|(id, _)| backends.read(*id as u32).pool == pool).map(|(_, load)| load.flows).sum()
    }

    fn observed(&self, name: &ServiceName, follow: Option<&Follow>) -> Observed {
        let (Some(follow), Some(pools)) = (follow, self.pools_of(name)) else { return Observed::default() };
        let since = |pool: u16, before: &Traffic| {
            let now = maps::traffic(&self.publisher.maps.pool_traffic, pool.into()).unwrap_or_default();
            (now.connections.saturating_sub(before.connections), now.bytes.saturating_sub(before.bytes))
        };
        let [canary, stable] =
            [(pools.canary, 0), (pools.stable, 1)].map(|(pool, i)| since(pool, &follow.before[i]));
        let bytes = canary.1 + stable.1;
        Observed {
            connections: Observation::of(canary.0, canary.0 + stable.0),
            bytes_percent: (bytes > 0).then(|| 100.0 * canary.1 as f64 / bytes as f64),
        }
    }
}

/// Follows by service.
pub(super) type Follows = HashMap<ServiceName, Follow>;

/// The canary's share in the kernel's units: what is open to guests only is open by the least there is.
fn word(rollout: &Rollout) -> u32 {
    split::share(rollout.share()).max(u32::from(rollout.is_open()))
}

fn in_words(verdict: Verdict) -> (VerdictWord, Option<String>) {
    match verdict {
        Verdict::Fine => (VerdictWord::Fine, None),
        Verdict::Worse(why) => (VerdictWord::Worse, Some(why)),
        Verdict::Unsure(why) => (VerdictWord::Unsure, Some(why)),
        Verdict::NoData { why, .. } => (VerdictWord::NoData, Some(why)),
    }
}

fn query_status(query: &Query) -> QueryStatus {
    let metric = query.judge.metric();
    let (verdict, why) = in_words(query.judge.verdict());
    let (canary, stable) = query.judge.last().map_or((None, None), |last| {
        // JSON has no infinity; the sentence has.
        let finite = |reading: &Reading| reading.as_ref().ok().copied().filter(|figure| figure.is_finite());
        (finite(&last.canary), last.stable.as_ref().and_then(finite))
    });
    QueryStatus {
        name: metric.name.clone(),
        canary,
        stable,
        bounds: metric.bounds,
        verdict,
        verdict_reason: why.unwrap_or_default(),
        shadow: metric.shadow,
    }
}

fn under_way(service: &str) -> ApiError {
    ApiError::new(ErrorCode::RolloutUnderWay, "a rollout is under way").about(service)
}

fn no_rollout(service: &str) -> ApiError {
    ApiError::new(ErrorCode::NoRollout, "it has no rollout")
        .about(service)
        .remedy(format!("`lbctl rollout start {service} --to POOL` begins one"))
}

pub(super) fn summary(name: &ServiceName, rollout: &Rollout) -> String {
    let Rollout { to, phase, reason, .. } = rollout;
    match phase {
        Phase::Holding => format!("rollout of {name} to {to}: {} % ({reason})", rollout.share()),
        _ => format!("rollout of {name} to {to}: {} ({reason})", phase.name()),
    }
}

/// What an order has changed of a rollout that stays where it is.
fn ordered(now: &Rollout, next: &Rollout) -> String {
    let share = next.share();
    match () {
        () if next.paused.is_some() && now.paused.is_none() => format!("paused at {share} %"),
        () if next.paused.is_none() && now.paused.is_some() => format!("resumed at {share} %"),
        () if next.approved && !now.approved => format!("approved at {share} %"),
        () => next.reason.clone(),
    }
}

pub(super) const fn code(phase: Phase) -> &'static str {
    match phase {
        Phase::Preparing => "rollout_preparing",
        Phase::Holding => "rollout_step",
        Phase::Gate => "rollout_gate",
        Phase::Soaking => "rollout_soaking",
        Phase::Promoted => "rollout_promoted",
        Phase::RolledBack => "rollout_rolled_back",
        Phase::Failed => "rollout_failed",
    }
}
