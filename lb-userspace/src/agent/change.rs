//! What operators ask for. Each change is in the journal, and on disk, before it is applied.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use lb_common::abi::{self, Split};
use lb_common::settle::Load;

use super::{Agent, Shared};
use crate::api::{ApiError, BackendPath, ErrorCode};
use crate::clock;
use crate::compile::{id_of, key_of};
use crate::config::{AdminState, Config, Mode, Service, ServiceName};
use crate::events::Occurrence;
use crate::publish::PublishError;
use crate::publish::split::{self, Flows};
use crate::rollout::engine::Phase;
use crate::state::{Author, Change, Deadline, Desired, Intent, JournalError, Override, Overrides};

/// A rollback, done.
#[derive(Clone, Copy, Debug)]
pub struct RollbackDone {
    /// The canary's share before, in percent.
    pub before: f64,
    /// How long the store took.
    pub store: Duration,
}

impl Shared {
    /// Sends no new flow to the canary of a service, from the next packet on. Does not wait for the agent.
    ///
    /// # Errors
    ///
    /// If there is no such service.
    pub fn roll_back(&self, service: &str, flows: Flows) -> Result<RollbackDone, ApiError> {
        let indexes = self.indexes.load();
        let index = *indexes
            .get(service)
            .ok_or_else(|| ApiError::no_service(service, indexes.keys().map(String::as_str)))?;
        // Counted before the store: whoever raises a split and does not see this one yet does not raise it.
        self.rollbacks.fetch_add(1, Ordering::AcqRel);
        let done = split::roll_back(&self.maps.services, &self.maps.backends, index, flows);
        Ok(RollbackDone { before: split::percent(done.before.new()), store: done.store })
    }
}

/// Who asks, and why.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who.
    pub author: Author,
    /// Why.
    pub reason: Option<String>,
}

/// What became of a rollback in the journal.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// The agent's revision that it made; `None`: it is not in the journal.
    pub revision: Option<u64>,
    /// The service's revision that it made, likewise.
    pub service_revision: Option<u64>,
    /// Established flows of the canary, if that is known.
    pub established: Option<u64>,
    /// Why it is not in the journal.
    pub warning: Option<String>,
}

/// A change that holds, and that could not be written into the journal.
#[derive(Clone, Debug)]
pub(super) struct Owed {
    /// When it was made (RFC 3339).
    time: String,
    /// By whom.
    request: Request,
    /// What, in a sentence.
    summary: String,
}

/// Why the maps do not hold a service as they should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unpublished {
    /// In a sentence.
    pub why: String,
    /// Its clients are where they should be, by the split that is left: the promotion that ends it waits.
    pub keeps_split: bool,
}

impl Unpublished {
    pub fn of(error: &PublishError) -> Self {
        Self { why: error.to_string(), keeps_split: matches!(error, PublishError::NotSettled { .. }) }
    }
}

/// A backend, as the command line names it.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its service.
    pub service: String,
    /// Its pool.
    pub pool: String,
    /// Its address.
    pub backend: SocketAddr,
}

impl Agent {
    /// Converges on another configuration. `file` is the fingerprint of the configuration file, if that is what it says.
    pub fn apply(&mut self, config: Config, file: Option<String>, request: &Request) -> Result<(), ApiError> {
        let next = self.desired.under(config.clone());
        let unread = file.is_some() && file != self.file;
        if next == self.desired && !unread {
            // The files that it names may be others by now.
            self.follow_config();
            return Ok(());
        }
        self.may_apply(&next)?;
        let summary = match &file {
            Some(_) => "the configuration file was read",
            None => "a configuration was applied",
        };
        let change = Change::Config { config: Box::new(config), file: file.clone() };
        self.record(request, summary.to_owned(), change)?;
        self.file = file.or_else(|| self.file.take());
        let in_rollout = self.desired.intents.iter().filter(|(_, intent)| intent.is_in_rollout());
        let in_rollout: Vec<ServiceName> = in_rollout.map(|(name, _)| name.clone()).collect();
        self.passive.rename(&self.desired.renamed(&next.config));
        self.desired = next;
        let failures = self.follow_desired();
        self.note("applied", None, request, summary.to_owned());
        for name in in_rollout {
            self.tell_ended(&name, request);
        }
        match failures.into_iter().next() {
            None => Ok(()),
            Some((name, error)) => {
                Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(name.as_str()))
            }
        }
    }

    /// Has everything follow what is desired now.
    pub(super) fn follow_desired(&mut self) -> Vec<(ServiceName, PublishError)> {
        self.end_previews();
        self.remove_services_that_are_gone();
        self.forget_who_is_gone();
        let mut keys: HashSet<_> = self.desired.config.services.iter().map(key_of).collect();
        keys.extend(self.preview_keys());
        self.compiler.keep(&keys);
        self.follow_config();
        let known = self.known_keys();
        let failures = self.converge(self.names());
        self.raise_splits_except(&known);
        self.share_indexes();
        self.lower_splits();
        self.retry_refused();
        failures
    }

    fn forget_who_is_gone(&mut self) {
        let stays = |name: &ServiceName| self.desired.intents.contains_key(name);
        self.compiled.retain(|name, _| stays(name));
        self.unpublished.retain(|name, _| stays(name));
        self.follows.retain(|name, _| stays(name));
        self.went_back.retain(|name, _| stays(name));
        self.unmeasured.retain(stays);
        self.stuck.retain(stays);
        let names: HashSet<&str> = self.desired.intents.keys().map(ServiceName::as_str).collect();
        self.measured.retain(|(service, _), _| names.contains(service.as_str()));
    }

    /// Tells of a rollout that was under way and, by another configuration, is not any more.
    fn tell_ended(&self, name: &ServiceName, request: &Request) {
        let (phase, message) = match self.desired.intents.get(name).map(|intent| &intent.rollout) {
            None => {
                (Phase::RolledBack, format!("rollout of {name}: there is no service of that name any more"))
            }
            Some(Some(rollout)) if rollout.phase.is_over() => {
                (rollout.phase, super::rollout::summary(name, rollout))
            }
            Some(_) => return,
        };
        self.log.push(Occurrence {
            code: super::rollout::code(phase),
            severe: true,
            service: Some(name.as_str().to_owned()),
            message,
            actor: Some(request.author.name.clone()),
            revision: Some(self.newest_revision()),
            ..Occurrence::default()
        });
    }

    /// What a running agent cannot change.
    pub fn may_apply(&self, next: &Desired) -> Result<(), ApiError> {
        let (now, then) = (&self.desired.config.dataplane, &next.config.dataplane);
        let fixed = |what: &str, how: &str| {
            Err(ApiError::new(ErrorCode::NeedsRestart, format!("{what} cannot change while lbd runs"))
                .about("[dataplane]")
                .remedy(format!("write it into the configuration file and restart lbd; {how}")))
        };
        if now.xdp_mode != then.xdp_mode {
            return fixed(
                "xdp_mode",
                "that interrupts traffic. With auto an interface keeps the mode that it has: `lbctl detach` before the restart",
            );
        }
        if now.interfaces != then.interfaces {
            return fixed("interfaces", "traffic goes on meanwhile");
        }
        if now.hash_seed != then.hash_seed {
            return fixed("hash_seed", "traffic goes on meanwhile, and flows move");
        }
        // Without it, the configuration has been checked already.
        if !next.discovered.is_empty() {
            next.goes_together().map_err(|why| {
                ApiError::new(
                    ErrorCode::InvalidConfig,
                    format!("it does not go with what was discovered: {why}"),
                )
                .remedy("`lbctl get backends` shows what was discovered, and by whom")
            })?;
        }
        // The flows are those of the address, whatever the service is called.
        let by_key: HashMap<_, _> = self.desired.config.services.iter().map(|it| (key_of(it), it)).collect();
        for service in next.services() {
            let key = key_of(&service);
            let (Some(now), Some(index)) = (by_key.get(&key), self.publisher.registry.service_index(&key))
            else {
                continue;
            };
            self.roles_may_change(next, now, &service, index)?;
            self.hashes_may_change(now, &service, index)?;
        }
        Ok(())
    }

    /// Whether a service's pools may take the roles that they would have.
    fn roles_may_change(
        &self,
        next: &Desired,
        now: &Service,
        service: &Service,
        index: u32,
    ) -> Result<(), ApiError> {
        let (now, then) = (self.desired.intents.get(&now.name), next.intents.get(&service.name));
        let (Some(now), Some(then)) = (now, then) else { return Ok(()) };
        if now.stable != then.stable && !self.has_settled(index, split::is_settled_at_all) {
            return refused(
                service,
                format!(
                    "{} cannot become its stable pool before its split has settled at 100 %",
                    then.stable
                ),
                "make it the canary, `set split` to 100, wait for the drain time (`status` shows it), and try again",
            );
        }
        if (&now.stable, &now.canary) == (&then.stable, &then.canary) {
            return Ok(());
        }
        let mut compiler = self.compiler.knowing([key_of(service)]);
        let compiled = compiler.compile(service, then, &self.seed, &self.world());
        match self.publisher.check(index, &compiled.plan) {
            Ok(()) => Ok(()),
            Err(error) => refused(
                service,
                error.to_string(),
                "`status` shows when the split has settled; try again then",
            ),
        }
    }

    /// Whether a service's split has settled, and where `there` says.
    fn has_settled(&self, index: u32, there: fn(&abi::Service) -> bool) -> bool {
        there(&self.publisher.maps.services.read(index)) && self.publisher.registry.is_closed(index)
    }

    /// Whether established flows would still be found by the hashes that a service would have.
    fn hashes_may_change(&self, now: &Service, then: &Service, index: u32) -> Result<(), ApiError> {
        let refused = |what: &str, why: &str, remedy: &str| {
            refused(then, format!("{what} cannot change while the service has flows: {why}"), remedy)
        };
        let anew = "remove the service, apply, and add it again";
        if now.table_size != then.table_size {
            return refused("table_size", "each would be looked for in another slot", anew);
        }
        if now.backend_key != then.backend_key {
            return refused("backend_key", "each would be looked for in another slot", anew);
        }
        if now.mode != then.mode && [now.mode, then.mode].contains(&Mode::FullNat) {
            return refused("a mode from or to full-nat", "none would be found where it is kept", anew);
        }
        if now.split_key != then.split_key && !self.has_settled(index, split::is_settled_at_zero) {
            return refused(
                "split_key",
                "some may be in the canary, and would be looked for in the other pool",
                "`lbctl rollback`, wait until the split has settled (`status` shows it), and apply again",
            );
        }
        Ok(())
    }

    /// Changes a backend's weight until the configuration changes it.
    pub fn set_weight(&mut self, target: &Target, weight: u16, request: &Request) -> Result<(), ApiError> {
        let configured = self.configured(target)?.0;
        self.set_override(target, request, format!("weight {weight}"), |overrides, author, since| {
            let held = Override { value: weight, configured: Some(configured), since, author };
            overrides.weight = (weight != configured).then_some(held);
        })
    }

    /// Changes a backend's administrative state until the configuration changes it. A drain may have a `deadline`.
    pub fn set_state(
        &mut self,
        target: &Target,
        state: AdminState,
        deadline: Option<Deadline>,
        request: &Request,
    ) -> Result<(), ApiError> {
        let configured = self.configured(target)?.1;
        if deadline.is_some() && state != AdminState::Drain {
            let message = format!("only a drain has a deadline, not the state {state}");
            return Err(ApiError::new(ErrorCode::InvalidValue, message)
                .about(&target.service)
                .remedy("leave the deadline out, or set the state to drain"));
        }
        let words = match &deadline {
            None => format!("state {state}"),
            Some(Deadline { at, reset }) => {
                let then = if *reset { "reset" } else { "keep" };
                format!("state {state} until {at:.0}, then {then} its flows")
            }
        };
        self.set_override(target, request, words, |overrides, author, since| {
            let held = Override { value: state, configured: Some(configured), since, author };
            overrides.state = (state != configured).then_some(held);
            overrides.deadline = deadline;
        })
    }

    /// Says what a backend's health is, whatever its checks say; `None`: ask the checks again.
    pub fn set_health(
        &mut self,
        target: &Target,
        up: Option<bool>,
        request: &Request,
    ) -> Result<(), ApiError> {
        let words = match up {
            Some(true) => "health up",
            Some(false) => "health down",
            None => "health as checked",
        };
        self.set_override(target, request, words.to_owned(), |overrides, author, since| {
            overrides.health = up.map(|value| Override { value, configured: None, since, author });
        })
    }

    /// Moves the canary's share of clients, in percent. Returns the share before.
    pub fn set_split(&mut self, service: &str, percent: f64, request: &Request) -> Result<f64, ApiError> {
        if !(0.0..=100.0).contains(&percent) {
            let message = format!("a split is between 0 and 100 percent, not {percent}");
            return Err(ApiError::new(ErrorCode::InvalidValue, message).about(service));
        }
        let (name, mut intent) = self.intent(service)?;
        self.not_in_rollout(service, &intent)?;
        if intent.canary.is_none() && percent > 0.0 {
            return Err(ApiError::new(
                ErrorCode::NoCanary,
                "it has one pool only, so there is no canary to split to",
            )
            .about(service)
            .remedy("add a second [[service.pool]] and apply"));
        }
        // Read before the journal is written: a rollback that comes in between wins.
        let index = self.index(service)?;
        let expected = self.publisher.maps.services.read(index).split();
        let share = split::share(percent);
        self.may_raise(service, expected, share)?;
        if let Some(unpublished) = self.unpublished.get(&name)
            && share > expected.new()
        {
            let message = format!("its tables are not as they should be: {}", unpublished.why);
            return Err(ApiError::new(ErrorCode::Dataplane, message)
                .about(service)
                .remedy("it is tried again by itself; `lbctl status` shows when that has worked"));
        }
        let before = split::percent(expected.new());
        if (intent.split, expected.new()) == (percent, share) {
            return Ok(before);
        }
        intent.split = percent;
        let summary = format!("split of {service}: {before} % -> {percent} %");
        self.record(
            request,
            summary.clone(),
            Change::Service { name: name.clone(), intent: intent.clone() },
        )?;
        self.settle_intent(&name, intent);
        if !self.store_split(service, index, expected, share) {
            return self.rolled_back_meanwhile(service, &name, request);
        }
        self.follow_split(&name);
        self.note("split", Some(&name), request, summary);
        Ok(before)
    }

    /// A stable pool without backends uses the canary only while that has a share.
    fn follow_split(&mut self, name: &ServiceName) {
        if self.desired.service(name.as_str()).is_some_and(|service| service.spill_to_canary) {
            self.converge([name.clone()]);
        }
    }

    /// A split is not raised while the agent has yet to hear of a rollback.
    pub(super) fn may_raise(&self, service: &str, now: Split, share: u32) -> Result<(), ApiError> {
        if share <= now.new() || self.shared.rollbacks.load(Ordering::Acquire) == self.rollbacks {
            return Ok(());
        }
        Err(ApiError::new(ErrorCode::RevisionConflict, "a rollback is under way, and stands")
            .about(service)
            .remedy("look at what happened (`lbctl history`), and set it again if it is still wanted"))
    }

    /// Stores a split, unless somebody has rolled back since `expected` was read. Asked again, as a disk may be slow: a rollback
    /// of a split of 0 changes nothing that the store would see.
    pub(super) fn store_split(&mut self, service: &str, index: u32, expected: Split, share: u32) -> bool {
        self.may_raise(service, expected, share).is_ok()
            && self.publisher.set_split(index, expected, share, clock::ticks())
    }

    pub(super) fn rolled_back_meanwhile(
        &mut self,
        service: &str,
        name: &ServiceName,
        request: &Request,
    ) -> Result<f64, ApiError> {
        let message = "it was rolled back while the split was being set; the rollback stands";
        let (_, mut intent) = self.intent(service)?;
        intent.split = 0.0;
        self.record(
            request,
            message.to_owned(),
            Change::Service { name: name.clone(), intent: intent.clone() },
        )?;
        self.settle_intent(name, intent);
        Err(ApiError::new(ErrorCode::RevisionConflict, message).about(service))
    }

    /// Remembers a rollback whose store was made already. A journal that cannot be written does not undo it: the record is
    /// owed then.
    pub fn rolled_back(
        &mut self,
        service: &str,
        done: RollbackDone,
        flows: Flows,
        request: &Request,
    ) -> Result<Remembered, ApiError> {
        self.rollbacks += 1;
        let (name, mut intent) = self.intent(service)?;
        if done.before == 0.0 && flows == Flows::Keep && intent.split == 0.0 && !intent.is_in_rollout() {
            return Ok(Remembered {
                revision: Some(self.newest_revision()),
                service_revision: self.desired.revisions.get(&name).copied(),
                established: self.tracked_in_canary(service),
                warning: None,
            });
        }
        let index = self.index(service)?;
        self.publisher.split_changed(index, clock::ticks());
        // Whoever asked for more at the same moment, and was heard first, loses.
        self.lower(index, 0);
        self.end_measuring(&name);
        let measured = intent.is_in_rollout();
        intent.roll_back(Timestamp::now());
        self.desired.intents.insert(name.clone(), intent.clone());
        let kept = match flows {
            Flows::Keep => "established flows finish where they are",
            Flows::Reset => "established flows are reset",
        };
        let summary = format!("rollback of {service}: {} % -> 0 %; {kept}", done.before);
        let change = Change::Service { name: name.clone(), intent };
        let written = self.record(request, summary.clone(), change);
        if written.is_ok() {
            self.desired.count(&name);
        } else {
            self.owe(&name, request, summary.clone());
        }
        self.note("rolled_back", Some(&name), request, summary);
        if measured {
            self.tell_ended(&name, request);
        } else if done.before > 0.0 {
            self.log.tally(|tally| tally.rolled_back(service));
        }
        if measured {
            // Nothing is measured or capped any more.
            self.converge([name.clone()]);
        } else {
            self.follow_split(&name);
        }
        let established = self.tracked_in_canary(service);
        Ok(match written {
            Ok(()) => Remembered {
                revision: Some(self.newest_revision()),
                service_revision: self.desired.revisions.get(&name).copied(),
                established,
                warning: None,
            },
            Err(error) => Remembered {
                revision: None,
                service_revision: None,
                established,
                warning: Some(format!(
                    "the rollback is in force, but not in the journal yet: {}; it is written as soon as that works",
                    error.message
                )),
            },
        })
    }

    /// Gives the pools their old roles back, where the journal has a promotion that a rollback came before. Returns whether
    /// that is so.
    pub(super) fn take_promotion_back(&mut self, name: &ServiceName) -> bool {
        let (Ok((_, mut intent)), Ok(index)) = (self.intent(name.as_str()), self.index(name.as_str())) else {
            return false;
        };
        let rolled_back = self.publisher.maps.services.read(index).split().new() != Split::ALL;
        let Some(rollout) = intent
            .rollout
            .as_mut()
            .filter(|it| rolled_back && it.phase == Phase::Promoted && it.to == intent.stable)
        else {
            return false;
        };
        let Some(before) = intent.canary.take() else { return false };
        rollout.phase = Phase::RolledBack;
        rollout.reason = "rolled back by hand when it was about to be promoted".to_owned();
        let summary = super::rollout::summary(name, rollout);
        intent.canary = Some(std::mem::replace(&mut intent.stable, before));
        intent.split = 0.0;
        let request = Request { author: Author::agent("rollout"), reason: None };
        let change = Change::Service { name: name.clone(), intent: intent.clone() };
        match self.record(&request, summary.clone(), change) {
            Ok(()) => self.desired.count(name),
            Err(_) => self.owe(name, &request, summary.clone()),
        }
        self.desired.intents.insert(name.clone(), intent);
        self.log.push(Occurrence {
            code: "split_adopted",
            severe: true,
            service: Some(name.as_str().to_owned()),
            message: summary,
            ..Occurrence::default()
        });
        true
    }

    /// Remembers that the journal lacks what holds of a service now.
    pub(super) fn owe(&mut self, name: &ServiceName, request: &Request, summary: String) {
        let owed = Owed { time: clock::timestamp(), request: request.clone(), summary };
        self.owed.entry(name.clone()).or_insert(owed);
    }

    /// Writes what the journal lacks.
    pub(super) fn pay(&mut self) -> Result<(), JournalError> {
        while let Some((name, owed)) = self.owed.first_key_value() {
            let name = name.clone();
            if let Some(intent) = self.desired.intents.get(&name) {
                let Owed { time, request, summary } = owed.clone();
                let change = Change::Service { name: name.clone(), intent: intent.clone() };
                self.journal.append(time, request.author, request.reason, summary, change)?;
                self.desired.count(&name);
            }
            self.owed.remove(&name);
        }
        Ok(())
    }

    /// What the journal needs now and then.
    pub(super) fn tend_journal(&mut self) {
        // Those who asked were told; the next change says what is wrong with the disk.
        let _ = self.pay();
        match self.compact_journal() {
            Ok(None) => {}
            Ok(Some(folded)) => tracing::info!(changes = folded, "compacted the journal"),
            Err(error) => tracing::warn!("{error}"),
        }
    }

    /// Makes the journal shorter, if it has become long. What takes time is done by a thread of its own, and looked for at the
    /// next sweep.
    fn compact_journal(&mut self) -> Result<Option<usize>, JournalError> {
        match self.compaction.take() {
            Some(thread) if !thread.is_finished() => {
                self.compaction = Some(thread);
                Ok(None)
            }
            Some(thread) => match thread.join() {
                Ok(folded) => self.journal.finish_compaction(folded),
                // Its panic is in the log, and the journal as it was.
                Err(_) => Ok(None),
            },
            None => {
                let Some(compaction) = self.journal.begin_compaction()? else { return Ok(None) };
                let thread = std::thread::Builder::new().name("compaction".to_owned());
                match thread.spawn(|| compaction.fold()) {
                    Ok(thread) => self.compaction = Some(thread),
                    Err(error) => tracing::warn!("no thread to compact the journal: {error}"),
                }
                Ok(None)
            }
        }
    }

    fn set_override(
        &mut self,
        target: &Target,
        request: &Request,
        words: String,
        change: impl FnOnce(&mut Overrides, Author, String),
    ) -> Result<(), ApiError> {
        let (name, mut intent) = self.intent(&target.service)?;
        let overrides = intent.backends.entry(target.backend).or_default();
        let before = overrides.clone();
        change(overrides, request.author.clone(), clock::timestamp());
        if overrides.say_the_same(&before) {
            return Ok(());
        }
        if *overrides == Overrides::default() {
            intent.backends.remove(&target.backend);
        }
        let summary = format!("{}/{}/{}: {words}", target.service, target.pool, target.backend);
        self.record(
            request,
            summary.clone(),
            Change::Service { name: name.clone(), intent: intent.clone() },
        )?;
        self.settle_intent(&name, intent);
        let failures = self.converge([name.clone()]);
        self.log.push(Occurrence {
            code: "backend_set",
            service: Some(target.service.clone()),
            pool: Some(target.pool.clone()),
            backend: Some(target.backend.to_string()),
            message: summary,
            actor: Some(request.author.name.clone()),
            revision: Some(self.newest_revision()),
            service_revision: self.desired.revisions.get(&name).copied(),
            ..Occurrence::default()
        });
        match failures.into_iter().next() {
            None => Ok(()),
            Some((_, error)) => {
                Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(&target.service))
            }
        }
    }

    /// Lowers splits that are higher in the kernel than they should be.
    pub(super) fn lower_splits(&mut self) {
        for service in self.desired.config.services.clone() {
            let Some(intent) = self.desired.intents.get(&service.name) else { continue };
            let Some(index) = self.publisher.registry.service_index(&key_of(&service)) else { continue };
            if self.unpublished.get(&service.name).is_some_and(|unpublished| unpublished.keeps_split) {
                continue;
            }
            let now: Split = self.publisher.maps.services.read(index).split();
            let wanted = intent.share();
            // Only ever down: what raises a split is `set split`, and nothing else.
            if wanted < now.new() {
                self.publisher.set_split(index, now, wanted, clock::ticks());
            }
        }
    }

    fn configured(&self, target: &Target) -> Result<(u16, AdminState), ApiError> {
        let service = self.desired.effective(&target.service).ok_or_else(|| {
            ApiError::no_service(
                &target.service,
                self.desired.config.services.iter().map(|s| s.name.as_str()),
            )
        })?;
        let pool = service.pools.iter().find(|pool| pool.name.as_str() == target.pool).ok_or_else(|| {
            ApiError::no_pool(
                &target.service,
                &target.pool,
                service.pools.iter().map(|pool| pool.name.as_str()),
            )
        })?;
        let backend =
            pool.backends.iter().find(|backend| backend.address == target.backend).ok_or_else(|| {
                let names: Vec<String> =
                    pool.backends.iter().map(|backend| BackendPath::name_of(backend.address)).collect();
                let owner = format!("{}/{}", target.service, target.pool);
                ApiError::no_backend(
                    &owner,
                    &BackendPath::name_of(target.backend),
                    names.iter().map(String::as_str),
                )
            })?;
        Ok((backend.weight.get(), backend.state))
    }

    pub(super) fn intent(&self, service: &str) -> Result<(ServiceName, Intent), ApiError> {
        let found = self
            .desired
            .service(service)
            .and_then(|s| Some((s.name.clone(), self.desired.intents.get(&s.name)?.clone())));
        found.ok_or_else(|| {
            ApiError::no_service(service, self.desired.config.services.iter().map(|s| s.name.as_str()))
        })
    }

    pub(super) fn index(&self, service: &str) -> Result<u32, ApiError> {
        let found =
            self.desired.service(service).and_then(|s| self.publisher.registry.service_index(&key_of(s)));
        found.ok_or_else(|| ApiError::new(ErrorCode::Starting, "it is not in the kernel yet").about(service))
    }

    pub(super) fn settle_intent(&mut self, name: &ServiceName, intent: Intent) {
        self.desired.intents.insert(name.clone(), intent);
        self.desired.count(name);
    }

    /// Writes a change into the journal. It is on disk when this returns; what was owed before is, too.
    pub(super) fn record(
        &mut self,
        request: &Request,
        summary: String,
        change: Change,
    ) -> Result<(), ApiError> {
        // A disk may be slow: others go on meanwhile.
        let written = tokio::task::block_in_place(|| {
            self.pay()?;
            let Request { author, reason } = request.clone();
            self.journal.append(clock::timestamp(), author, reason, summary, change)
        });
        written.map(drop).map_err(|error| {
            ApiError::new(ErrorCode::Journal, format!("nothing was changed: {error}"))
                .about("journal")
                .remedy("free some space or mend the disk; forwarding and rollback go on meanwhile")
        })
    }

    pub(super) fn note(
        &self,
        code: &'static str,
        name: Option<&ServiceName>,
        request: &Request,
        message: String,
    ) {
        self.log.push(Occurrence {
            code,
            service: name.map(|name| name.as_str().to_owned()),
            message,
            actor: Some(request.author.name.clone()),
            revision: Some(self.newest_revision()),
            service_revision: name.and_then(|name| self.desired.revisions.get(name).copied()),
            ..Occurrence::default()
        });
    }

    /// Ids of backends that are neither configured nor discovered any more, and that no slot and no flow refers to.
    pub(super) fn free_what_nobody_uses(&mut self) {
        let mut wanted = HashSet::new();
        let previews =
            super::preview::wanted(&self.desired).into_iter().map(|(preview, _)| Cow::Owned(preview));
        for service in self.desired.services().chain(previews) {
            let Some(index) = self.publisher.registry.service_index(&key_of(&service)) else { continue };
            for backend in service.pools.iter().flat_map(|pool| &pool.backends) {
                wanted.extend(id_of(&service, backend.address, index, &self.publisher.registry));
            }
        }
        let unused = |id: &u16| !wanted.contains(id) && self.swept.load(*id) == Load::default();
        let unused: Vec<u16> = self.publisher.registry.backend_ids().filter(unused).collect();
        if let Err(error) = tokio::task::block_in_place(|| self.publisher.free_backends(&unused)) {
            tracing::warn!(ids = ?unused, "cannot free backends: {error}");
            return;
        }
        if !unused.is_empty() {
            self.follow_ways();
            self.forget_hops();
        }
        for id in unused {
            self.log.push(Occurrence {
                code: "backend_gone",
                message: format!("a removed backend has no flows left; id {id} is free"),
                ..Occurrence::default()
            });
        }
    }
}

/// What cannot be while the service has flows.
fn refused(service: &Service, message: String, remedy: &str) -> Result<(), ApiError> {
    Err(ApiError::new(ErrorCode::NeedsRestart, message).about(service.name.as_str()).remedy(remedy))
}
