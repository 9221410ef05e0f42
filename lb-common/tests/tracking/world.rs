//! What there is, and what may be broken.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::mem::offset_of;
use std::net::{Ipv4Addr, SocketAddr};

use lb_common::abi::{Address, FlowEntry, FlowKey, GuestKey, Life, Mode, Service};
use lb_common::host::{Lru, ServiceSpec, Tables};
use lb_common::measure::Measure;
use lb_common::pipeline::Tables as _;
use lb_common::retry::{Budget, ONE};
use lb_common::settle::Patience;
use lb_common::verdict::Event;

use crate::agent::Agent;
use crate::rng::Rng;
use crate::traffic::Flow;

/// Slots in a table: few, so that flows meet.
pub const SIZE: u32 = 7;
/// The service.
pub const SERVICE: u32 = 0;
/// In ticks.
pub const PATIENCE: Patience = Patience { drain: 100, tcp_idle: 150, udp_idle: 30 };

/// What a history is about.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub udp: bool,
    pub tracked: bool,
    pub affinity: bool,
    pub split_by_ports: bool,
    /// A SYN that comes again goes elsewhere.
    pub retried: bool,
    /// Some clients are guests of the canary.
    pub guests: bool,
    /// The canary takes a new flow every few ticks only.
    pub capped: bool,
    /// Room in `FLOWS`, `UDP_FLOWS`.
    pub flows: usize,
    /// Room in `HALF_OPEN`.
    pub half_open: usize,
    pub fault: Option<Fault>,
}

impl Setup {
    pub const fn tcp() -> Self {
        Self {
            udp: false,
            tracked: false,
            affinity: false,
            split_by_ports: false,
            retried: false,
            guests: false,
            capped: false,
            flows: 1 << 20,
            half_open: 1 << 20,
            fault: None,
        }
    }

    pub const fn udp() -> Self {
        Self { udp: true, tracked: true, ..Self::tcp() }
    }
}

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Whatever comes after a SYN ends its handshake.
    AnySequence,
    /// Changed slots are not marked.
    UnmarkedChanges,
    /// The sweep does not mark the slots of what it keeps.
    UnmarkedSlots,
    /// The sweep takes the split for settled, and forgets what agrees with one level only.
    ForgetUnsettled,
    /// Exceptions are cleared while handshakes may be under way, and nobody looks for those.
    ClearInHandshake,
    /// Entries are deleted although they have changed since they were read.
    DeleteChanged,
    /// Slots settle as soon as a handshake may be over.
    NoDrain,
    /// A changed split tracks nothing.
    ForgetTracked,
    /// A lapsed lease is renewed as if nothing had been.
    RenewLapsed,
    /// A backend that is switched off keeps its generation, and its id is given away at once.
    SameGeneration,
    /// An id is given to another backend while slots may name it.
    ReuseAtOnce,
    /// A reset sets `tracked` to 0, too.
    ResetTracked,
    /// The canary is promoted when split and home say so, whatever is tracked.
    PromoteEarly,
    /// The sweep forgets what goes where its hash says in UDP as in TCP.
    UdpLikeTcp,
    /// The sweep does not look for handshakes that were sent elsewhere.
    ForgetRetries,
}

impl Fault {
    pub const fn is_about_udp(self) -> bool {
        matches!(self, Self::UdpLikeTcp)
    }

    /// Whether the sweep sees no handshakes.
    pub const fn hides_handshakes(self) -> bool {
        matches!(self, Self::ClearInHandshake | Self::ForgetRetries)
    }

    pub const fn is_about_retries(self) -> bool {
        matches!(self, Self::ForgetRetries)
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    pub settled: u64,
    pub slow: u64,
    pub captured: u64,
    pub moved: u64,
    pub evictions: u64,
    pub promotions: u64,
    pub reused: u64,
    pub lapses: u64,
    pub sweeps: u64,
    pub closed: u64,
    pub retried: u64,
    pub rests: u64,
    pub capped: u64,
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, other: Self) {
        self.settled += other.settled;
        self.slow += other.slow;
        self.captured += other.captured;
        self.moved += other.moved;
        self.evictions += other.evictions;
        self.promotions += other.promotions;
        self.reused += other.reused;
        self.lapses += other.lapses;
        self.sweeps += other.sweeps;
        self.closed += other.closed;
        self.retried += other.retried;
        self.rests += other.rests;
        self.capped += other.capped;
    }
}

/// An invariant that does not hold.
#[derive(Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who sits behind an id at some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incarnation {
    pub id: u16,
    pub life: u32,
}

/// The balancer, its operator and its clients.
pub struct World {
    pub rng: Rng,
    pub setup: Setup,
    /// Tell every decision.
    pub trace: bool,
    /// The operator does something once in so many steps.
    pub calm: usize,
    pub tables: RefCell<Tables>,
    pub agent: RefCell<Agent>,
    pub live: RefCell<Vec<Flow>>,
    /// By backend id, how often it was given away: what only the model knows.
    pub incarnations: RefCell<Vec<u32>>,
    /// Entries that a packet under way has marked, and not inserted yet.
    pub stalled: RefCell<Vec<(FlowKey, FlowEntry)>>,
    /// The agent is at it.
    pub sweeping: Cell<bool>,
    /// The canary was emptied, and has not been opened since.
    pub emptied: Cell<bool>,
    pub counts: RefCell<Stats>,
    pub violation: RefCell<Option<Violation>>,
}

impl World {
    pub fn new(seed: u64, setup: &Setup) -> Self {
        let rng = Rng::new(seed);
        let mut tables = Tables::new();
        let vip = Ipv4Addr::new(203, 0, 113, 10).into();
        let mut spec = if setup.udp {
            ServiceSpec::udp(vip, 443, Mode::DsrL2)
        } else {
            ServiceSpec::tcp(vip, 443, Mode::DsrL2)
        };
        spec.table_size = SIZE;
        let flags = [
            (setup.udp && setup.tracked, Service::TRACK_UDP),
            (setup.affinity, Service::AFFINITY),
            (setup.split_by_ports, Service::SPLIT_BY_PORTS),
            (setup.retried, Service::RETRIED),
            (setup.guests, Service::GUESTS),
            (setup.capped, Service::CAPPED),
        ];
        spec.flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        tables.add_service(&spec);
        // What a retry costs is another test's subject.
        let budget = Budget { earned: ONE, most: u64::MAX >> 1, left: u64::MAX >> 2, reserved: 0 };
        tables.budgets.get_mut().insert(SERVICE, budget);
        // Half of all clients.
        tables.guests = vec![GuestKey::network(SERVICE, Address::v4([198, 51, 100, 0]), 96 + 28)];
        let interval = offset_of!(Measure, cap_interval) / 8;
        tables.measures.get_mut()[interval] = 3 << 30;
        tables.settings.udp_idle = PATIENCE.udp_idle;
        tables.flows = RefCell::new(Lru::remembering(setup.flows));
        tables.udp_flows = RefCell::new(Lru::remembering(setup.flows));
        tables.half_open = RefCell::new(Lru::remembering(setup.half_open));
        let agent = Agent::new(&mut tables);
        let incarnations = vec![0; tables.backends.len()];
        Self {
            calm: 1 + rng.below(10),
            rng,
            setup: *setup,
            trace: std::env::var_os("LB_MODEL_TRACE").is_some(),
            tables: RefCell::new(tables),
            agent: RefCell::new(agent),
            live: RefCell::default(),
            incarnations: RefCell::new(incarnations),
            stalled: RefCell::default(),
            sweeping: Cell::new(false),
            emptied: Cell::new(false),
            counts: RefCell::default(),
            violation: RefCell::default(),
        }
    }

    /// Lets a few ticks pass, the operator do something, and packets come.
    pub fn step(&mut self) -> Result<(), Violation> {
        self.tables.borrow().advance(1 + self.rng.below(6) as u32);
        self.flush_stalled();
        self.talk_in_time();
        self.operate();
        self.traffic(6);
        match self.violation.take() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    pub fn stats(&self) -> Stats {
        let capped = self.tables.borrow().count(Event::Capped);
        Stats { evictions: self.evictions(), capped, ..*self.counts.borrow() }
    }

    fn evictions(&self) -> u64 {
        let tables = self.tables.borrow();
        let (flows, udp_flows, half_open) = (&tables.flows, &tables.udp_flows, &tables.half_open);
        flows.borrow().evictions() + udp_flows.borrow().evictions() + half_open.borrow().evictions()
    }

    pub fn has(&self, fault: Fault) -> bool {
        self.setup.fault == Some(fault)
    }

    pub fn now(&self) -> u32 {
        self.tables.borrow().ticks()
    }

    pub fn service(&self) -> Service {
        self.tables.borrow().services[SERVICE as usize]
    }

    pub fn life(&self, backend: u16) -> Life {
        self.tables.borrow().backend(backend).map(|b| b.life()).unwrap_or_default()
    }

    pub fn pool_of(&self, backend: u16) -> u16 {
        self.tables.borrow().backends[usize::from(backend)].pool
    }

    pub fn incarnation(&self, id: u16) -> Incarnation {
        Incarnation { id, life: self.incarnations.borrow()[usize::from(id)] }
    }

    /// An established flow lost its backend. Only a table that was too small is an excuse, and only for the flow it forgot.
    pub fn moved(&self, key: &FlowKey, what: String) {
        self.counts.borrow_mut().moved += 1;
        if !self.was_evicted(key) {
            self.violate(what);
        }
    }

    /// Whether a table had to forget this flow since this was last asked.
    pub fn was_evicted(&self, key: &FlowKey) -> bool {
        let tables = self.tables.borrow();
        let table = if self.setup.udp { &tables.udp_flows } else { &tables.flows };
        let (flow, handshake) =
            (table.borrow_mut().take_evicted(key), tables.half_open.borrow_mut().take_evicted(key));
        flow || handshake
    }

    pub fn violate(&self, what: String) {
        self.violation.borrow_mut().get_or_insert(Violation(what));
    }
}

/// The address of the `n`th backend.
pub fn address(n: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 0, (n >> 8) as u8, n as u8), 8443).into()
}
