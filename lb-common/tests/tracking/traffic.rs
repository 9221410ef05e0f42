//! Clients: honest ones whose flows must not move, and others.

use lb_common::abi::{Address, FlowEntry, FlowKey, HalfOpen, Port, Service};
use lb_common::handshake;
use lb_common::parse::Kind;
use lb_common::pipeline::Tables as _;
use lb_common::select::{Choice, Why, select};
use std::net::Ipv4Addr;

use crate::world::{Fault, Incarnation, PATIENCE, SERVICE, World};

/// A flow, as its client and its server know it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub key: FlowKey,
    pub backend: Incarnation,
    pub state: State,
    /// When it last talked.
    pub seen: u32,
    /// The operator has taken its backend away.
    pub excused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// A SYN is on its way since `seen`.
    Opening { sequence: u32, end: u32 },
    /// Established, with the next sequence number.
    Open { next: u32 },
    /// UDP.
    Datagrams,
}

impl World {
    /// So many packets of anybody.
    pub fn traffic(&self, packets: usize) {
        for _ in 0..packets {
            let live = self.live.borrow().len();
            match self.rng.below(100) {
                0..40 if live < 60 => self.begin(),
                0..82 if live > 0 => self.talk(self.rng.below(live)),
                82..86 if live > 0 => self.end(self.rng.below(live)),
                86..95 if live > 0 => self.spoof(self.rng.below(live)),
                95..100 => self.flood(),
                _ => {}
            }
        }
    }

    /// Whoever has been silent for almost too long talks now.
    pub fn talk_in_time(&self) {
        let now = self.now();
        let overdue: Vec<FlowKey> = (self.live.borrow().iter())
            .filter(|flow| {
                let silent = now - flow.seen;
                match flow.state {
                    State::Opening { end, .. } => now >= end,
                    State::Open { .. } => silent > PATIENCE.drain - 15,
                    State::Datagrams => silent > PATIENCE.udp_idle - 10,
                }
            })
            .map(|flow| flow.key)
            .collect();
        for key in overdue {
            let at = self.live.borrow().iter().position(|flow| flow.key == key);
            if let Some(at) = at {
                self.talk(at);
            }
        }
    }

    fn key(&self) -> FlowKey {
        FlowKey {
            client: Address::from(Ipv4Addr::new(198, 51, 100, self.rng.below(30) as u8)),
            client_port: Port::new(40_000 + self.rng.below(3) as u16),
            port: Port::new(443),
            owner: SERVICE,
        }
    }

    fn begin(&self) {
        let key = self.key();
        // A UDP flow that is over may be known for a while; for a server it is the same one until then.
        let busy =
            self.live.borrow().iter().any(|flow| flow.key == key) || self.setup.udp && self.is_known(&key);
        if busy {
            return;
        }
        let now = self.now();
        let sequence = self.rng.next() as u32;
        let (kind, state) = if self.setup.udp {
            (Kind::Udp, State::Datagrams)
        } else {
            (Kind::Syn(sequence), State::Opening { sequence, end: now + 1 + self.rng.below(50) as u32 })
        };
        self.was_evicted(&key);
        let Some((backend, _)) = self.send(&key, kind) else { return };
        self.live.borrow_mut().push(Flow { key, backend, state, seen: now, excused: false });
    }

    fn is_known(&self, key: &FlowKey) -> bool {
        let tables = self.tables.borrow();
        let young = |entry: &FlowEntry| tables.ticks() - entry.seen <= PATIENCE.udp_idle;
        tables.udp_flows.borrow().peek(key).is_some_and(young)
    }

    /// The next packet of a flow.
    fn talk(&self, at: usize) {
        let now = self.now();
        let flow = self.live.borrow()[at].clone();
        let mut next = flow.clone();
        let kind = match flow.state {
            State::Opening { sequence, end } if now < end && self.rng.once_in(2) => {
                // The client repeats its SYN. Whoever answers last is who it talks to.
                match self.send(&flow.key, Kind::Syn(sequence)) {
                    Some((backend, _)) => next.backend = backend,
                    None => next.excused = true,
                }
                return self.replace(next);
            }
            State::Opening { sequence, .. } => {
                // The segment that ends the handshake may be lost; then data comes first.
                let ahead = 1 + if self.rng.once_in(3) { self.rng.below(10_000) as u32 } else { 0 };
                next.state = State::Open { next: sequence.wrapping_add(ahead) };
                Kind::Tcp(sequence.wrapping_add(ahead))
            }
            State::Open { next: sequence } => {
                let step = self.rng.pick(&[0, 1, 100, 20_000, 1_000_000]).unwrap_or(0);
                next.state = State::Open { next: sequence.wrapping_add(step) };
                Kind::Tcp(sequence)
            }
            State::Datagrams => Kind::Udp,
        };
        next.seen = now;
        if self.arrives(&flow, kind) {
            self.replace(next);
        }
    }

    /// A flow ends; nobody but its ends knows.
    fn end(&self, at: usize) {
        let flow = self.live.borrow()[at].clone();
        if matches!(flow.state, State::Open { .. }) && self.rng.once_in(2) {
            self.reset_untracked(&flow);
        }
        self.live.borrow_mut().retain(|other| other.key != flow.key);
    }

    /// Somebody pretends to be the client of a flow.
    fn spoof(&self, at: usize) {
        let flow = self.live.borrow()[at].clone();
        match flow.state {
            State::Open { .. } if self.rng.once_in(2) => self.reset_untracked(&flow),
            State::Open { next } => {
                let sequence = self.rng.next() as u32;
                // One in 2^18 hits the window, now or as the flow goes on; the model is about the others.
                if next.wrapping_sub(sequence) > 1 << 28 && sequence.wrapping_sub(next) > 1 << 28 {
                    self.send(&flow.key, Kind::Syn(sequence));
                }
            }
            // A spoofed SYN replaces the honest one in `HALF_OPEN`, as a second one does in any server's SYN queue.
            State::Opening { .. } => {}
            State::Datagrams => {}
        }
    }

    /// A RST goes where the flow is, and leaves no trace.
    fn reset_untracked(&self, flow: &Flow) {
        self.insert_stalled(|stalled| *stalled == flow.key);
        let before = self.tables.borrow().flows.borrow().len();
        if self.arrives(flow, Kind::Rst) && self.tables.borrow().flows.borrow().len() != before {
            self.violate(format!("a RST of {flow:?} was tracked"));
        }
    }

    /// Packets of nobody's flows.
    fn flood(&self) {
        let key = FlowKey { client_port: Port::new(50_000 + self.rng.below(1000) as u16), ..self.key() };
        let sequence = self.rng.next() as u32;
        let kind = if self.setup.udp {
            Kind::Udp
        } else {
            self.rng
                .pick(&[Kind::Syn(sequence), Kind::Syn(sequence), Kind::Tcp(sequence), Kind::Rst])
                .unwrap_or(Kind::Rst)
        };
        self.send(&key, kind);
    }

    fn replace(&self, flow: Flow) {
        if let Some(old) = self.live.borrow_mut().iter_mut().find(|old| old.key == flow.key) {
            *old = flow;
        }
    }

    /// Sends a packet of a flow that is established, or about to be; it must get to its backend.
    fn arrives(&self, flow: &Flow, kind: Kind) -> bool {
        let sent = self.send(&flow.key, kind);
        if sent.is_some_and(|(backend, _)| backend == flow.backend) && !flow.excused {
            return true;
        }
        self.live.borrow_mut().retain(|other| other.key != flow.key);
        if let Some((backend, Why::Tracked | Why::Handshake)) = sent
            && backend.id == flow.backend.id
            && backend.life != flow.backend.life
        {
            self.violate(format!("I2: {flow:?} was found to be {backend:?}'s"));
        }
        if !flow.excused && (!self.setup.udp || self.setup.tracked) {
            self.moved(&flow.key, format!("I1: {flow:?} was sent to {sent:?} at {} ({kind:?})", self.now()));
        }
        false
    }

    /// The balancer decides. Returns who got the packet, if anybody did.
    fn send(&self, key: &FlowKey, kind: Kind) -> Option<(Incarnation, Why)> {
        // Packets of one flow are in order: one that is under way comes first.
        self.insert_stalled(|stalled| stalled == key);
        if self.has(Fault::AnySequence)
            && let Kind::Tcp(sequence) = kind
        {
            self.pretend_noted(key, sequence);
        }
        let before = self.entry(key);
        let tables = self.tables.borrow();
        let service = &tables.services[SERVICE as usize];
        let Ok(choice) = select(&*tables, service, key, kind) else {
            self.violate(format!("no table for {key:?}"));
            return None;
        };
        let Choice { mut backend, why, .. } = choice;
        if let Kind::Syn(sequence) = kind
            && service.has(Service::RETRIED)
            && backend != 0
        {
            backend = handshake::begins(&*tables, service, key, sequence, choice.into()).backend;
            self.counts.borrow_mut().retried += u64::from(backend != choice.backend);
        }
        self.count(why);
        if self.trace {
            let hash = service.backend_hash(key);
            let word = |canary| tables.slot(service.slot(canary, hash));
            println!(
                "{} {key:?} {kind:?} -> {backend} {why:?}; split hash {:#x}, {:?}, {:?}, home {:#x}; entry {before:?}; slots {:?} {:?}",
                tables.ticks(),
                service.split_hash(key),
                service.attended_membership(&*tables, key),
                service.split(),
                service.home(),
                word(false),
                word(true),
            );
        }
        drop(tables);
        self.stall(key, before);

        if !self.life(backend).is_usable() {
            return None;
        }
        self.check_pool(key, kind, backend, why);
        Some((self.incarnation(backend), why))
    }

    fn check_pool(&self, key: &FlowKey, kind: Kind, backend: u16, why: Why) {
        let service = self.service();
        let in_canary = service.canary_pool != 0 && self.pool_of(backend) == service.canary_pool;
        if !in_canary {
            return;
        }
        let opens = match kind {
            Kind::Syn(_) => true,
            Kind::Udp => why != Why::Tracked,
            Kind::Tcp(_) | Kind::Rst => false,
        };
        let lapsed = service.lease() != 0 && self.tables.borrow().now() >= service.lease();
        if opens && (service.split().new() == 0 || lapsed) {
            self.violate(format!("I4: {key:?} ({kind:?}, {why:?}) entered the canary at {}", self.now()));
        }
        if self.emptied.get() {
            self.violate(format!("after a reset {key:?} ({kind:?}, {why:?}) went to the canary"));
        }
    }

    fn count(&self, why: Why) {
        let mut counts = self.counts.borrow_mut();
        if why == Why::Settled || why == Why::New {
            counts.settled += 1;
        } else {
            counts.slow += 1;
        }
        counts.captured += u64::from(why == Why::Captured);
    }

    fn pretend_noted(&self, key: &FlowKey, sequence: u32) {
        let tables = self.tables.borrow();
        let mut half_open = tables.half_open.borrow_mut();
        if let Some(note) = half_open.get(key) {
            *note = HalfOpen { sequence: sequence.wrapping_sub(1), ..*note };
        }
    }

    fn entry(&self, key: &FlowKey) -> Option<FlowEntry> {
        let tables = self.tables.borrow();
        let table = if self.setup.udp { &tables.udp_flows } else { &tables.flows };
        table.borrow().peek(key).copied()
    }

    /// A packet that was under way when it inserted an entry may take a little longer: its mark is there, the entry not yet.
    fn stall(&self, key: &FlowKey, before: Option<FlowEntry>) {
        let Some(after) = self.entry(key) else { return };
        if self.setup.udp || before.is_some() || !self.sweeping.get() || !self.rng.once_in(2) {
            return;
        }
        self.tables.borrow().flows.borrow_mut().remove(key);
        self.stalled.borrow_mut().push((*key, after));
    }

    /// Packets under way arrive.
    pub fn flush_stalled(&self) {
        self.insert_stalled(|_| true);
    }

    fn insert_stalled(&self, which: impl Fn(&FlowKey) -> bool) {
        let tables = self.tables.borrow();
        self.stalled.borrow_mut().retain(|(key, entry)| {
            let now = which(key);
            if now {
                tables.flows.borrow_mut().insert(*key, *entry);
            }
            !now
        });
    }
}
