//! Health: which backends may take new flows, and which pools have too few of them.

use super::{BackendView, Drain, Health, Now, WhyNot, World};
use crate::config::{AdminState, Backend, OnDown, Pool, Protocol, Service};
use crate::health::Wish;
use crate::outlier::{Gate, NEUTRAL};
use crate::state::Overrides;

/// What holds of a backend by itself.
pub(super) fn judge(
    service: &Service,
    backend: &Backend,
    overrides: Option<&Overrides>,
    world: &impl World,
    now: Now,
) -> BackendView {
    let advice = world.advice(service, backend.address);
    let set = overrides.and_then(|o| o.weight.as_ref()).map_or(backend.weight.get(), |weight| weight.value);
    let weight = advice.scale(set);
    let state = overrides.and_then(|o| o.state.as_ref()).map_or(backend.state, |state| state.value);
    let forced = overrides.and_then(|o| o.health.as_ref()).map(|health| health.value);
    let health = match forced {
        Some(true) => Health::Up,
        Some(false) => Health::Down,
        None => world.health(service, backend.address),
    };
    let deadline = overrides.and_then(|o| o.deadline.as_ref()).filter(|_| state == AdminState::Drain);
    let drain = deadline.map(|deadline| Drain {
        deadline: deadline.at,
        reset: deadline.reset,
        over: deadline.at <= now.wall,
    });
    let next_hop = world.next_hop(backend.address);
    let ejected = service.outlier.is_some() && world.is_ejected(service, backend.address);
    // One that was open when the scope changed, and that nobody looks at any more, would be open without end.
    let has_breaker = service.breaker.as_ref().is_some_and(|breaker| breaker.scope.has_backends());
    let gate = if has_breaker { world.gate(service, backend.address) } else { Gate::Closed };
    let why_not = match (state, health) {
        (AdminState::Maint, _) => Some(WhyNot::Maint),
        (AdminState::Drain, _) => Some(WhyNot::Drain),
        (AdminState::Ready, _) if advice.wish == Wish::Maint => Some(WhyNot::AgentMaint),
        (AdminState::Ready, _) if advice.wish == Wish::Drain => Some(WhyNot::AgentDrain),
        (AdminState::Ready, Health::Down) => Some(WhyNot::Down),
        (AdminState::Ready, Health::Unknown) => Some(WhyNot::Unchecked),
        (AdminState::Ready, Health::Up | Health::Unchecked) if set == 0 => Some(WhyNot::Weight),
        (AdminState::Ready, Health::Up | Health::Unchecked) if weight == 0 => Some(WhyNot::AgentWeight),
        (AdminState::Ready, Health::Up | Health::Unchecked) if ejected => Some(WhyNot::Ejected),
        (AdminState::Ready, Health::Up | Health::Unchecked) if matches!(gate, Gate::Open(_)) => {
            Some(WhyNot::BreakerOpen)
        }
        (AdminState::Ready, Health::Up | Health::Unchecked) if next_hop.mac().is_none() => {
            Some(WhyNot::Unreachable)
        }
        (AdminState::Ready, Health::Up | Health::Unchecked) => None,
    };
    // A UDP flow has nothing to keep on a backend that is dead, and nothing that would tell its client.
    let evicts = service.on_down == OnDown::Reset || service.protocol == Protocol::Udp;
    let evicted = drain.is_some_and(|drain| drain.over && drain.reset);
    let usable = state != AdminState::Maint && !evicted && !(health == Health::Down && evicts);
    BackendView {
        address: backend.address,
        priority: backend.priority,
        weight,
        state,
        drain,
        health,
        health_is_forced: forced.is_some(),
        advice,
        slow_start: None,
        ejected,
        gate,
        steer: if service.steering.is_some() { world.steer(service, backend.address) } else { NEUTRAL },
        why_not,
        usable,
        next_hop,
        source: world.source(backend.address),
        server_ids: backend.server_ids.clone().unwrap_or_default(),
    }
}

/// Whether a backend is meant to take flows. One that somebody has said is down is not.
pub(super) fn is_wanted(backend: &BackendView) -> bool {
    backend.state == AdminState::Ready
        && backend.advice.wish == Wish::Ready
        && backend.weight > 0
        && !backend.is_said_to_be_down()
}

/// Whether a backend counts when the healthy ones are counted: it is meant to take flows, and has been checked.
pub(super) fn counts(backend: &BackendView) -> bool {
    is_wanted(backend) && backend.health != Health::Unknown
}

/// Whether so few backends are healthy that health is ignored. Whether they can be reached is another question.
pub(super) fn panics(service: &Service, backends: &[BackendView]) -> bool {
    let counted = backends.iter().filter(|backend| counts(backend)).count();
    let is_healthy = |backend: &&BackendView| backend.health != Health::Down && !backend.ejected;
    let healthy = backends.iter().filter(|backend| counts(backend)).filter(is_healthy).count();
    counted > 0 && healthy * 100 < counted * usize::from(service.panic_threshold.get())
}

/// Whether a pool has enough healthy backends, with a memory: it takes more to come back than to stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Standing {
    /// It never had enough since the agent first saw it: `min_healthy` of them will do.
    #[default]
    Rising,
    /// It has enough.
    Stands,
    /// It had enough, and fell: it comes back with `min_healthy_recover`.
    Fell,
}

impl Standing {
    /// The standing of a pool with `fit` backends that can take flows, of `checked` that should; with those whose first check
    /// is not over, `wanted` should.
    pub fn after(self, pool: &Pool, fit: u32, checked: u32, wanted: u32) -> Self {
        let Some(least) = pool.min_healthy else { return Self::Stands };
        let needed = match self {
            // A part of those whose checks happen to be over first says nothing of the pool.
            Self::Rising => least.of(wanted),
            Self::Stands => least.of(checked),
            Self::Fell => pool.min_healthy_recover.unwrap_or(least).of(checked),
        };
        match self {
            _ if fit >= needed => Self::Stands,
            Self::Rising => Self::Rising,
            Self::Stands | Self::Fell => Self::Fell,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn pool(keys: &str) -> Pool {
        let text = format!(
            "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
             [[service.pool]]\nname = \"a\"\n{keys}\nbackend = [{}]\n",
            (1..=10).map(|i| format!("{{ address = \"10.0.0.{i}\" }}")).collect::<Vec<_>>().join(", ")
        );
        config::parse(&text, "test").expect("a good configuration").config.services[0].pools[0].clone()
    }

    fn standings(pool: &Pool, fits: &[u32]) -> Vec<bool> {
        let mut standing = Standing::default();
        let mut after = |&fit| {
            standing = standing.after(pool, fit, 10, 10);
            standing == Standing::Stands
        };
        fits.iter().map(&mut after).collect()
    }

    #[test]
    fn a_pool_falls_below_one_number_and_comes_back_at_another() {
        let pool = pool("min_healthy = 4\nmin_healthy_recover = \"60%\"");
        let seen = standings(&pool, &[3, 4, 3, 4, 5, 6, 5, 4, 3]);
        assert_eq!(seen, [false, true, false, false, false, true, true, true, false]);
    }

    #[test]
    fn a_pool_that_says_nothing_always_stands() {
        assert_eq!(standings(&pool(""), &[0, 10]), [true, true]);
    }
}
