//! What operators ask for. Each change is in the journal, and on disk, before it is applied.

use std::net::SocketAddr;
use std::time::Duration;

use lb_common::abi::Split;
use lb_common::settle::Load;

use super::{Agent, Shared};
use crate::api::{ApiError, BackendPath, ErrorCode};
use crate::clock;
use crate::compile::key_of;
use crate::config::{AdminState, Config, ServiceName};
use crate::events::Occurrence;
use crate::publish::split::{self, Flows};
use crate::state::{Author, Change, Desired, Intent, Override, Overrides};

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
    /// Converges on another configuration. Returns what was desired before.
    pub fn apply(&mut self, config: Config, request: Request) -> Result<Desired, ApiError> {
        let next = self.desired.under(config.clone());
        if next == self.desired {
            return Ok(self.desired.clone());
        }
        self.may_apply(&next)?;
        let summary = "a configuration was applied".to_owned();
        self.record(&request, summary.clone(), Change::Config { config: Box::new(config), file: None })?;
        let before = std::mem::replace(&mut self.desired, next);
        self.remove_services_that_are_gone();
        self.compiled.retain(|name, _| self.desired.intents.contains_key(name));
        self.follow_config();
        let failures = self.converge(self.names());
        self.restore_splits();
        self.note("applied", None, &request, summary);
        match failures.into_iter().next() {
            None => Ok(before),
            Some((name, error)) => {
                Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(name.as_str()))
            }
        }
    }

    /// What a running agent cannot change.
    pub fn may_apply(&self, next: &Desired) -> Result<(), ApiError> {
        let (now, then) = (&self.desired.config.dataplane, &next.config.dataplane);
        let fixed = |what: &str| {
            Err(ApiError::new(ErrorCode::NeedsRestart, format!("{what} cannot change while lbd runs"))
                .about("[dataplane]")
                .remedy("write it into the configuration file and restart lbd; traffic goes on meanwhile"))
        };
        if now.interfaces != then.interfaces || now.xdp_mode != then.xdp_mode {
            return fixed("interfaces and xdp_mode");
        }
        if now.hash_seed != then.hash_seed {
            return fixed("hash_seed");
        }
        for (name, intent) in &next.intents {
            let promoted = self.desired.intents.get(name).is_some_and(|now| now.stable != intent.stable);
            let index = self.index(name.as_str());
            let settled = |index| {
                split::is_settled_at_all(&self.publisher.maps.services.read(index))
                    && self.publisher.registry.is_closed(index)
            };
            if promoted && index.is_ok_and(|index| !settled(index)) {
                let message = format!(
                    "{} cannot become its stable pool before its split has settled at 100 %",
                    intent.stable
                );
                return Err(ApiError::new(ErrorCode::NeedsRestart, message).about(name.as_str()).remedy(
                    "`set split` to 100, wait for the drain time (`status` shows it), and apply again",
                ));
            }
        }
        for service in &next.config.services {
            let same_key = self.desired.config.services.iter().find(|other| key_of(other) == key_of(service));
            if let Some(other) = same_key
                && other.table_size != service.table_size
            {
                let message = "table_size cannot change while the service has flows: each would be looked for in another slot";
                return Err(ApiError::new(ErrorCode::NeedsRestart, message)
                    .about(service.name.as_str())
                    .remedy("remove the service, apply, and add it again"));
            }
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

    /// Changes a backend's administrative state until the configuration changes it.
    pub fn set_state(
        &mut self,
        target: &Target,
        state: AdminState,
        request: &Request,
    ) -> Result<(), ApiError> {
        let configured = self.configured(target)?.1;
        self.set_override(target, request, format!("state {state}"), |overrides, author, since| {
            let held = Override { value: state, configured: Some(configured), since, author };
            overrides.state = (state != configured).then_some(held);
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
        let before = split::percent(expected.new());
        intent.split = percent;
        let summary = format!("split of {service}: {before} % -> {percent} %");
        self.record(
            request,
            summary.clone(),
            Change::Service { name: name.clone(), intent: intent.clone() },
        )?;
        self.settle_intent(&name, intent);
        if !self.publisher.set_split(index, expected, split::share(percent), clock::ticks()) {
            return self.rolled_back_meanwhile(service, &name, request);
        }
        self.note("split", Some(&name), request, summary);
        Ok(before)
    }

    fn rolled_back_meanwhile(
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

    /// Remembers a rollback whose store was made already.
    pub fn rolled_back(
        &mut self,
        service: &str,
        done: RollbackDone,
        flows: Flows,
        request: &Request,
    ) -> Result<u64, ApiError> {
        let (name, mut intent) = self.intent(service)?;
        let index = self.index(service)?;
        self.publisher.split_changed(index, clock::ticks());
        intent.split = 0.0;
        self.settle_intent(&name, intent.clone());
        let kept = match flows {
            Flows::Keep => "established flows finish where they are",
            Flows::Reset => "established flows are reset",
        };
        let summary = format!("rollback of {service}: {} % -> 0 %; {kept}", done.before);
        self.note("rolled_back", Some(&name), request, summary.clone());
        self.record(request, summary, Change::Service { name: name.clone(), intent })?;
        Ok(self.desired.revisions.get(&name).copied().unwrap_or_default())
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
        change(overrides, request.author.clone(), clock::timestamp());
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
            revision: self.desired.revisions.get(&name).copied(),
            ..Occurrence::default()
        });
        match failures.into_iter().next() {
            None => Ok(()),
            Some((_, error)) => {
                Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(&target.service))
            }
        }
    }

    /// Splits of services that were published anew.
    fn restore_splits(&mut self) {
        for service in self.desired.config.services.clone() {
            let Some(intent) = self.desired.intents.get(&service.name) else { continue };
            let Some(index) = self.publisher.registry.service_index(&key_of(&service)) else { continue };
            let now: Split = self.publisher.maps.services.read(index).split();
            let wanted = split::share(intent.split);
            // Only ever down: what raises a split is `set split`, and nothing else.
            if wanted < now.new() {
                self.publisher.set_split(index, now, wanted, clock::ticks());
            }
        }
    }

    fn configured(&self, target: &Target) -> Result<(u16, AdminState), ApiError> {
        let service = self.desired.service(&target.service).ok_or_else(|| {
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

    fn intent(&self, service: &str) -> Result<(ServiceName, Intent), ApiError> {
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

    fn settle_intent(&mut self, name: &ServiceName, intent: Intent) {
        self.desired.intents.insert(name.clone(), intent);
        *self.desired.revisions.entry(name.clone()).or_default() += 1;
    }

    fn record(&mut self, request: &Request, summary: String, change: Change) -> Result<(), ApiError> {
        let written = self.journal.append(
            clock::timestamp(),
            request.author.clone(),
            request.reason.clone(),
            summary,
            change,
        );
        written.map(drop).map_err(|error| {
            ApiError::new(ErrorCode::Journal, format!("nothing was changed: {error}"))
                .about("journal")
                .remedy("free some space; forwarding and rollback go on meanwhile")
        })
    }

    fn note(&self, code: &'static str, name: Option<&ServiceName>, request: &Request, message: String) {
        self.log.push(Occurrence {
            code,
            service: name.map(|name| name.as_str().to_owned()),
            message,
            actor: Some(request.author.name.clone()),
            revision: name.and_then(|name| self.desired.revisions.get(name).copied()),
            ..Occurrence::default()
        });
    }

    /// Ids of backends that are gone from the configuration, and that no slot and no flow refers to.
    pub(super) fn free_what_nobody_uses(&mut self) {
        let mut wanted = std::collections::HashSet::new();
        for service in &self.desired.config.services {
            let Some(index) = self.publisher.registry.service_index(&key_of(service)) else { continue };
            for backend in service.pools.iter().flat_map(|pool| &pool.backends) {
                let port = if service.port == 0 {
                    lb_common::abi::Port::ANY
                } else {
                    lb_common::abi::Port::new(backend.address.port())
                };
                wanted.extend(self.publisher.registry.backend_id(index, backend.address.ip().into(), port));
            }
        }
        let all: Vec<u16> = self
            .publisher
            .registry
            .services
            .keys()
            .flat_map(|&index| self.publisher.registry.backends_of(index))
            .collect();
        for id in all.into_iter().filter(|id| !wanted.contains(id) && self.swept.load(*id) == Load::default())
        {
            match self.publisher.free_backend(id) {
                Ok(()) => self.log.push(Occurrence {
                    code: "backend_gone",
                    message: format!("a removed backend has no flows left; id {id} is free"),
                    ..Occurrence::default()
                }),
                Err(error) => tracing::warn!(id, "cannot free a backend: {error}"),
            }
        }
    }
}
