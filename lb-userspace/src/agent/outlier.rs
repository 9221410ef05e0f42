//! Outliers and breakers, driven: reads what the kernel has counted, asks [`crate::outlier`], and has the tables follow.
//!
//! Ejections are written beside the kernel's counters, in a map that is pinned: the next agent goes on where this one stopped,
//! so that an agent that restarts lets nobody in. (They are in monotonic time, which a reboot ends, and so it does the map.)
//! Breakers are learned anew: whoever fails trips one within seconds.

use std::collections::{BTreeMap, HashMap};
use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lb_common::limit::{Limit, Whose};
use lb_common::watch::Watch;

use super::Agent;
use crate::clock;
use crate::compile::{self, WhyNot, key_of};
use crate::config::{OnTrip, PoolName, Service, ServiceName};
use crate::events::Occurrence;
use crate::outlier::{
    Breaker, Counts, Ejection, Finding, Gate, Move, NEUTRAL, Population, Sample, Seen, Steering, Timed,
};

/// How often backends are looked at.
pub(super) const PERIOD: Duration = Duration::from_millis(200);

/// What is known of the services that are watched.
#[derive(Default)]
pub(super) struct Passive {
    services: BTreeMap<ServiceName, BTreeMap<String, Pool>>,
    /// For `enforce`.
    dice: u64,
}

#[derive(Default)]
struct Pool {
    population: Population,
    breaker: Breaker,
    steering: Steering,
    backends: HashMap<SocketAddr, Backend>,
}

#[derive(Clone, Copy, Default)]
struct Backend {
    breaker: Breaker,
    /// At the last look.
    before: Counts,
}

impl Passive {
    /// The ejection of a backend.
    pub fn ejection(&self, service: &ServiceName, backend: SocketAddr) -> Option<Ejection> {
        let now = Duration::from_nanos(clock::nanoseconds());
        let mut pools = self.services.get(service)?.values();
        // One whose time is over is none, whoever has yet to say so.
        pools.find_map(|pool| pool.population.ejection(backend).filter(|ejection| ejection.until > now))
    }

    /// What a backend's breaker lets through.
    pub fn gate(&self, service: &ServiceName, backend: SocketAddr) -> Gate {
        let mut pools = self.services.get(service).into_iter().flat_map(BTreeMap::values);
        pools.find_map(|pool| pool.backends.get(&backend)).map_or(Gate::Closed, |it| it.breaker.gate())
    }

    /// Percent of its weight that a backend has for the time that it takes to answer.
    pub fn steer(&self, service: &ServiceName, backend: SocketAddr) -> u16 {
        let mut pools = self.services.get(service).into_iter().flat_map(BTreeMap::values);
        let pool = pools.find(|pool| pool.backends.contains_key(&backend));
        pool.map_or(NEUTRAL, |pool| pool.steering.percent(backend))
    }

    /// How long a backend takes to answer, if it is steered by that and enough is known.
    pub fn takes(&self, service: &Service, backend: SocketAddr) -> Option<Duration> {
        let rules = service.steering.as_ref()?;
        let mut pools = self.services.get(&service.name)?.values();
        pools.find_map(|pool| pool.steering.mean(rules, backend))
    }

    /// What a pool's breaker lets through.
    pub fn pool_gate(&self, service: &ServiceName, pool: &PoolName) -> Gate {
        let pool = self.services.get(service).and_then(|pools| pools.get(pool.as_str()));
        pool.map_or(Gate::Closed, |pool| pool.breaker.gate())
    }

    /// Services that have another name now, with the one that they had: they are the same, and what is known of them, too.
    pub fn rename(&mut self, renamed: &BTreeMap<ServiceName, ServiceName>) {
        let known = renamed.iter().filter_map(|(name, before)| Some((name, self.services.remove(before)?)));
        let known: Vec<_> = known.map(|(name, pools)| (name.clone(), pools)).collect();
        self.services.extend(known);
    }

    fn look_at_pool(&mut self, service: &Service, name: &str, seen: &[Seen], now: Duration) -> News {
        let Self { services, dice } = self;
        let pool = services.entry(service.name.clone()).or_default().entry(name.to_owned()).or_default();
        let mut news = News::default();
        match &service.outlier {
            Some(rules) => {
                news.findings = pool.population.look(rules, now, seen, || Self::roll(dice));
            }
            None => {
                let returned = pool.population.clear().into_iter();
                news.findings = returned.map(|address| (address, Finding::Returned)).collect();
            }
        }
        let mut before = std::mem::take(&mut pool.backends);
        let mut together = Sample::default();
        let mut timed = Vec::new();
        for Seen { address, counts, .. } in seen {
            let fresh = Backend { before: *counts, ..Backend::default() };
            let mut backend = before.remove(address).unwrap_or(fresh);
            let sample = counts.since(&backend.before);
            together.bad += sample.bad;
            together.good += sample.good;
            timed.extend(service.steering.as_ref().map(|rules| {
                let (count, time) = counts.times(rules.by, &backend.before);
                Timed { address: *address, count, time }
            }));
            backend.before = *counts;
            match &service.breaker {
                Some(rules) if rules.scope.has_backends() => {
                    let moved = backend.breaker.look(rules, now, sample);
                    news.backends.extend(moved.map(|moved| (*address, moved)));
                    let spills = rules.on_trip == OnTrip::Spill;
                    let trials = backend.breaker.trials(rules, now);
                    news.trials.push((*address, Trials::of(backend.breaker.gate(), trials, spills)));
                }
                _ => {
                    backend.breaker = Breaker::default();
                    news.trials.push((*address, Trials::None));
                }
            }
            pool.backends.insert(*address, backend);
        }
        match &service.steering {
            Some(rules) => news.steered = pool.steering.look(rules, now, &timed),
            None => pool.steering = Steering::default(),
        }
        match &service.breaker {
            Some(rules) if rules.scope.has_pools() => {
                news.pool = pool.breaker.look(rules, now, together);
                // What spills from a pool goes by its table: there is nobody in it to send it to.
                let trials = pool.breaker.trials(rules, now).filter(|_| rules.on_trip != OnTrip::Spill);
                news.pool_trials = Trials::of(pool.breaker.gate(), trials, false);
            }
            _ => pool.breaker = Breaker::default(),
        }
        news
    }

    /// A number below 100. (A linear congruential generator: Knuth's MMIX.)
    fn roll(dice: &mut u64) -> u8 {
        *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((*dice >> 33) % 100) as u8
    }
}

/// What has happened in one pool.
#[derive(Default)]
struct News {
    findings: Vec<(SocketAddr, Finding)>,
    backends: Vec<(SocketAddr, Move)>,
    pool: Option<Move>,
    steered: bool,
    /// For each backend that was looked at.
    trials: Vec<(SocketAddr, Trials)>,
    pool_trials: Trials,
}

/// What becomes of the trials of a backend or pool in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Trials {
    /// It is not on trial.
    #[default]
    None,
    /// They go on.
    GoOn,
    /// A round begins: [`Limit::trials`].
    Begin(u64),
}

impl Trials {
    fn of(gate: Gate, trials: Option<u32>, spills: bool) -> Self {
        match (gate, trials) {
            (Gate::HalfOpen(_), Some(trials)) => Self::Begin(Limit::on_trial(trials, spills)),
            (Gate::HalfOpen(_), None) => Self::GoOn,
            _ => Self::None,
        }
    }

    /// Begins a round. Returns whether there is nothing to try any more, but the kernel still counts.
    fn begin(self, word: &AtomicU64) -> bool {
        if let Self::Begin(trials) = self {
            word.store(trials, Ordering::Release);
        }
        self == Self::None && word.load(Ordering::Acquire) != 0
    }
}

impl News {
    fn moves_somebody(&self) -> bool {
        let ejects = |(_, finding): &(SocketAddr, Finding)| {
            matches!(finding, Finding::Ejected(..) | Finding::Returned)
        };
        self.findings.iter().any(ejects) || !self.backends.is_empty() || self.pool.is_some() || self.steered
    }
}

impl Agent {
    /// Takes over who was ejected by an earlier agent. To be called before the tables are compiled for the first time.
    pub(super) fn adopt_ejections(&mut self) {
        self.passive.dice = clock::nanoseconds();
        let services: Vec<u32> = self.publisher.registry.services.keys().copied().collect();
        services.into_iter().for_each(|service| self.forget_trials(service));
        let now = clock::nanoseconds();
        let mut adopted = Vec::new();
        for service in self.desired.services().filter(|service| service.outlier.is_some()) {
            let Some(index) = self.publisher.registry.service_index(&key_of(&service)) else { continue };
            for (pool, backend) in
                service.pools.iter().flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)))
            {
                let id = compile::id_of(&service, backend.address, index, &self.publisher.registry);
                let Some(watch) = id.map(|id| self.publisher.maps.watches.read(id.into())) else { continue };
                if watch.ejected_until > now {
                    let until = Duration::from_nanos(watch.ejected_until);
                    let ejection = Ejection { until, times: watch.ejections.try_into().unwrap_or(u32::MAX) };
                    adopted.push((
                        service.name.clone(),
                        pool.name.as_str().to_owned(),
                        backend.address,
                        ejection,
                    ));
                }
            }
        }
        for (service, pool, backend, ejection) in adopted {
            tracing::info!(%service, %backend, "ejected by an earlier agent");
            let pool = self.passive.services.entry(service).or_default().entry(pool).or_default();
            pool.population.adopt(backend, ejection);
        }
    }

    /// Looks at every backend that is watched.
    pub(super) fn look_at_backends(&mut self) {
        let mut passive = std::mem::take(&mut self.passive);
        let watched =
            |name: &ServiceName| self.desired.service(name.as_str()).is_some_and(Service::is_watched);
        for (name, pools) in passive.services.iter().filter(|(name, _)| !watched(name)) {
            let Some(service) = self.desired.service(name.as_str()) else { continue };
            for backend in pools.values().flat_map(|pool| pool.backends.keys()) {
                self.note_ejection(service, *backend, None);
            }
            if let Ok(index) = self.index(name.as_str()) {
                self.forget_trials(index);
            }
        }
        passive.services.retain(|name, _| watched(name));
        let mut moved = self.forget_pools(&mut passive);
        let services = self.desired.config.services.iter().filter(|service| service.is_watched());
        let now = Duration::from_nanos(clock::nanoseconds());
        let mut over = Vec::new();
        for service in services {
            let mut moves = false;
            for (pool, seen) in self.seen(service) {
                let news = passive.look_at_pool(service, &pool, &seen, now);
                over.extend(self.begin_trials(service, &pool, &news));
                moves |= news.moves_somebody();
                self.tell_news(service, &pool, news, now);
            }
            if moves && !moved.contains(&service.name) {
                moved.push(service.name.clone());
            }
        }
        self.passive = passive;
        if !moved.is_empty() {
            self.converge(moved);
        }
        // Not before slots lead past those whose breaker is open again: until then they get no more than their trials.
        for whose in over {
            self.trials(whose).store(0, Ordering::Release);
        }
    }

    /// Forgets pools that are gone, and whom they kept out. Returns their services, whose tables have yet to follow.
    fn forget_pools(&self, passive: &mut Passive) -> Vec<ServiceName> {
        let mut moved = Vec::new();
        for (name, pools) in &mut passive.services {
            // One that is not compiled yet says nothing of its pools.
            let (Some(compiled), Some(service)) =
                (self.compiled.get(name), self.desired.service(name.as_str()))
            else {
                continue;
            };
            let is_there = |pool: &str| compiled.pools.iter().any(|view| view.name == pool);
            if pools.keys().all(|pool| is_there(pool.as_str())) {
                continue;
            }
            let gone = pools.iter().filter(|(pool, _)| !is_there(pool.as_str()));
            let gone: Vec<SocketAddr> = gone.flat_map(|(_, pool)| pool.backends.keys().copied()).collect();
            pools.retain(|pool, _| is_there(pool.as_str()));
            for backend in gone {
                // It may be in another pool by now, and kept out there.
                if pools.values().all(|pool| pool.population.ejection(backend).is_none()) {
                    self.note_ejection(service, backend, None);
                }
            }
            moved.push(name.clone());
        }
        moved
    }

    /// Every backend of every pool that is compiled.
    fn seen(&self, service: &Service) -> Vec<(String, Vec<Seen>)> {
        let (Some(compiled), Ok(index)) =
            (self.compiled.get(&service.name), self.index(service.name.as_str()))
        else {
            return Vec::new();
        };
        let registry = &self.publisher.registry;
        let seen = |view: &compile::BackendView| {
            let id = compile::id_of(service, view.address, index, registry)?;
            let watch = self.publisher.maps.watches.read(id.into());
            let serves = matches!(view.why_not, None | Some(WhyNot::Ejected));
            Some(Seen { address: view.address, serves, counts: Counts::of(&watch, !service.mode.is_dsr()) })
        };
        let pools = compiled.pools.iter();
        pools.map(|pool| (pool.name.clone(), pool.backends.iter().filter_map(seen).collect())).collect()
    }

    /// Writes down and tells what has happened.
    fn tell_news(&self, service: &Service, pool: &str, news: News, now: Duration) {
        let inferred = if service.mode.is_dsr() { " (inferred from SYNs that clients repeated)" } else { "" };
        for (address, finding) in news.findings {
            let (code, severe, message, counted) = match finding {
                Finding::Ejected(found, ejection) => {
                    self.note_ejection(service, address, Some(ejection));
                    let left = humantime::format_duration(Duration::from_millis(
                        ejection.until.saturating_sub(now).as_millis() as u64,
                    ));
                    let message = format!("{address} is ejected for {left}: {found}{inferred}");
                    ("backend_ejected", true, message, Some(found.detector))
                }
                Finding::Spared(found) => (
                    "ejection_spared",
                    false,
                    format!("{address} would be ejected, but for `enforce`: {found}{inferred}"),
                    None,
                ),
                Finding::Withheld(found) => (
                    "ejection_withheld",
                    true,
                    format!("{address} should be ejected, but for `max_ejected_percent`: {found}{inferred}"),
                    None,
                ),
                Finding::Returned => {
                    self.note_ejection(service, address, None);
                    ("backend_returned", false, format!("{address} is not ejected any more"), None)
                }
            };
            if let Some(detector) = counted {
                self.log.tally(|tally| tally.ejected(service.name.as_str(), pool, detector));
            }
            self.tell_of(service, pool, Some(address), code, severe, message);
        }
        let backends = news.backends.into_iter().map(|(address, moved)| (Some(address), moved));
        for (address, moved) in backends.chain(news.pool.map(|moved| (None, moved))) {
            let who = address.map_or_else(|| format!("pool {pool}"), |address| address.to_string());
            let (code, severe, does) = match moved.to {
                Gate::Closed => ("breaker_closed", false, "is closed"),
                // More or less of it is no news.
                Gate::Shedding(_) if matches!(moved.from, Gate::Shedding(_)) => continue,
                Gate::Shedding(_) => ("breaker_shedding", true, "sheds a part of the new connections"),
                Gate::Open(_) => ("breaker_open", true, "is open"),
                Gate::HalfOpen(0) => ("breaker_half_open", false, "is half open"),
                Gate::HalfOpen(_) => continue,
            };
            let percent = moved.ratio * 100.0;
            let message =
                format!("the breaker of {who} {does}: {percent:.1} % of its connections failed{inferred}");
            self.tell_of(service, pool, address, code, severe, message);
        }
    }

    fn tell_of(
        &self,
        service: &Service,
        pool: &str,
        backend: Option<SocketAddr>,
        code: &'static str,
        severe: bool,
        message: String,
    ) {
        self.log.push(Occurrence {
            code,
            severe,
            service: Some(service.name.as_str().to_owned()),
            pool: Some(pool.to_owned()),
            backend: backend.map(|backend| backend.to_string()),
            message,
            ..Occurrence::default()
        });
    }

    /// Lets the kernel program know who is on trial, before slots lead there again. Returns who is not any more.
    fn begin_trials(&self, service: &Service, pool: &str, news: &News) -> Vec<Whose> {
        let Ok(index) = self.index(service.name.as_str()) else { return Vec::new() };
        let registry = &self.publisher.registry;
        let backends = news.trials.iter().filter_map(|(address, of)| {
            Some((Whose::Backend(compile::id_of(service, *address, index, registry)?), of))
        });
        let pool = registry.pool_index(index, pool).map(|pool| (Whose::Pool(pool), &news.pool_trials));
        let all = backends.chain(pool);
        all.filter(|(whose, of)| of.begin(self.trials(*whose))).map(|(whose, _)| whose).collect()
    }

    /// Where the kernel counts somebody's trials ([`Limit::trials`]).
    fn trials(&self, whose: Whose) -> &AtomicU64 {
        let (map, index) = match whose {
            Whose::Backend(id) => (&self.publisher.maps.limits, id),
            Whose::Pool(pool) => (&self.publisher.maps.pool_limits, pool),
        };
        map.word(index.into(), offset_of!(Limit, trials))
    }

    /// Nobody is on trial: of breakers an agent that starts knows nothing, and neither does one of a service without.
    fn forget_trials(&self, service: u32) {
        let registry = &self.publisher.registry;
        let backends = registry.backends_of(service).map(Whose::Backend);
        for whose in backends.chain(registry.pools_of(service).map(Whose::Pool)) {
            let word = self.trials(whose);
            if word.load(Ordering::Acquire) != 0 {
                word.store(0, Ordering::Release);
            }
        }
    }

    /// For the next agent.
    fn note_ejection(&self, service: &Service, address: SocketAddr, ejection: Option<Ejection>) {
        let Ok(index) = self.index(service.name.as_str()) else { return };
        let Some(id) = compile::id_of(service, address, index, &self.publisher.registry) else { return };
        let word = |offset| self.publisher.maps.watches.word(id.into(), offset);
        let (until, times) = ejection.map_or((0, 0), |it| (it.until.as_nanos() as u64, it.times));
        if ejection.is_some() {
            word(offset_of!(Watch, ejections)).store(times.into(), Ordering::Release);
        }
        word(offset_of!(Watch, ejected_until)).store(until, Ordering::Release);
    }
}
