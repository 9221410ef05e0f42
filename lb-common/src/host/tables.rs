use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, HashMap};
use std::mem::offset_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::Zeroable;

use super::{Frame, Lru};
use crate::abi::{
    Address, Backend, Device, FAULTS, FILTER_BITS, Fault, Filter, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, GuestKey, HalfOpen, LAYOUT, Life, Mode, NextHop, OnEmpty, Port, Replier, Service, Settings,
    Slot, Split, TCP_IDLE_TICKS, VipKey,
};
use crate::awaited;
use crate::guard::{self, Guard, Message, Rule, Source, SourceKey};
use crate::hash::{Keys, Purpose, Seed};
use crate::limit::{Limit, Open, Whose};
use crate::maglev::{self, Candidate};
use crate::measure::{Handshake, Measure};
use crate::parse::Network;
use crate::pipeline::{self, Route};
use crate::quic;
use crate::retry::Budget;
use crate::session::{Draft, Held, Session, SessionKey};
use crate::too_big;
use crate::verdict::Event;
use crate::vlan::Vlan;
use crate::watch::Word;
use crate::wire::{IPPROTO_TCP, IPPROTO_UDP, Mac};

/// The tables in memory. Fields are as in the maps; the agent's helpers are below.
pub struct Tables {
    /// `SETTINGS`.
    pub settings: Box<Settings>,
    /// `VIPS`.
    pub vips: HashMap<VipKey, u32>,
    /// `SERVICES`.
    pub services: Vec<Service>,
    /// `SLOTS`.
    pub slots: Vec<Cell<Slot>>,
    /// `BACKENDS`; the first is never used.
    pub backends: Vec<Backend>,
    /// `DEVICES`.
    pub devices: Vec<Device>,
    /// `REPLIES`.
    pub repliers: RefCell<HashMap<VipKey, Replier>>,
    /// `FLOWS`.
    pub flows: RefCell<Lru<FlowKey, FlowEntry>>,
    /// `UDP_FLOWS`.
    pub udp_flows: RefCell<Lru<FlowKey, FlowEntry>>,
    /// `HALF_OPEN`.
    pub half_open: RefCell<Lru<FlowKey, HalfOpen>>,
    /// `HANDSHAKES`.
    pub handshakes: RefCell<HashMap<FlowKey, Handshake>>,
    /// `AWAITED`.
    pub awaited: RefCell<Vec<u64>>,
    /// `MEASURES`, word by word.
    pub measures: RefCell<Vec<u64>>,
    /// `WATCHES`, by backend id and word.
    pub watches: RefCell<HashMap<(u16, usize), u64>>,
    /// `BUDGETS`, by service.
    pub budgets: RefCell<HashMap<u32, Budget>>,
    /// `LIMITS` and `POOL_LIMITS`.
    pub limits: RefCell<HashMap<Whose, Limit>>,
    /// `OPEN`.
    pub open: RefCell<HashMap<FlowKey, Open>>,
    /// Services whose canary was taken back by the tripwire; their split is as it was.
    pub tripped: RefCell<Vec<u32>>,
    /// `FRAGMENTS`.
    pub fragments: RefCell<Lru<FragmentKey, FragmentEntry>>,
    /// `MESSAGES`: the buckets of [`too_big::admit`].
    pub messages: [Cell<u64>; Message::COUNT],
    /// `GUESTS`.
    pub guests: Vec<GuestKey>,
    /// `QUIC_CONFIGS`.
    pub quic_configs: HashMap<quic::ConfigKey, quic::Config>,
    /// `QUIC_SERVERS`.
    pub quic_servers: HashMap<quic::ServerKey, quic::Server>,
    /// `FAULTS`.
    pub faults: [Fault; FAULTS],
    /// `DIRECT`.
    pub direct: RefCell<Lru<FlowKey, u32>>,
    /// `OPENING`.
    pub opening: RefCell<Lru<SessionKey, Session>>,
    /// `SESSIONS`.
    pub sessions: RefCell<BTreeMap<SessionKey, Session>>,
    /// Room in `SESSIONS`.
    pub session_room: usize,
    /// `VLANS`.
    pub vlans: HashMap<u32, Vlan>,
    /// Where packets for these addresses leave.
    pub routes: HashMap<Address, Route>,
    /// How long a packet may be for which the route is [`Route::TooBig`].
    pub path_mtu: u16,
    /// Where all others leave.
    pub default_route: Route,
    /// Who is asked instead, if anybody.
    pub router: Option<Router>,
    /// Monotonic nanoseconds.
    pub clock: Cell<u64>,
    /// How often each [`Event`] happened.
    pub events: [Cell<u64>; Event::COUNT],
    /// `GUARDS`, by service; what is due is in `dues`.
    pub guards: HashMap<u32, Guard>,
    /// What is due of each service.
    pub dues: RefCell<HashMap<u32, Source>>,
    /// `SOURCES`.
    pub sources: RefCell<Lru<SourceKey, Source>>,
    /// `RULES`.
    pub rules: HashMap<GuestKey, Rule>,
    /// `VIP_RULES`.
    pub vip_rules: HashMap<Address, u32>,
    seed: Seed,
}

/// Says where a packet leaves, by the index of the interface that it came in by and by its addresses.
pub type Router = Box<dyn Fn(u32, &Network) -> Route + Send + Sync>;

/// Whose next are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dues {
    /// All clients of a service.
    Service(u32),
    /// A source.
    Source(SourceKey),
}

/// What a service is made from.
#[derive(Clone, Copy, Debug)]
pub struct ServiceSpec {
    /// The address that clients talk to.
    pub vip: IpAddr,
    /// The port that clients talk to; 0: all.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: u8,
    /// How packets get to the backends.
    pub mode: Mode,
    /// What a new flow gets when no backend may take it.
    pub on_empty: OnEmpty,
    /// Flags of [`Service`].
    pub flags: u16,
    /// Slots in a table.
    pub table_size: u32,
}

impl ServiceSpec {
    /// A TCP service; everything else can be set afterwards.
    #[must_use]
    pub const fn tcp(vip: IpAddr, port: u16, mode: Mode) -> Self {
        Self { vip, port, protocol: IPPROTO_TCP, mode, on_empty: OnEmpty::Reset, flags: 0, table_size: 101 }
    }

    /// A UDP service whose flows are tracked.
    #[must_use]
    pub const fn udp(vip: IpAddr, port: u16, mode: Mode) -> Self {
        Self { protocol: IPPROTO_UDP, flags: Service::TRACK_UDP, ..Self::tcp(vip, port, mode) }
    }
}

impl Tables {
    /// How many services can be measured.
    pub const MEASURES: usize = 2;
    /// Interface index of the one device.
    pub const IFINDEX: u32 = 2;
    /// Its hardware address.
    pub const MAC: Mac = [0x02, 0, 0, 0, 0, 0x01];
    /// The address that stands for clients of IPv4 backends (`full-nat`).
    pub const SOURCE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 255, 1));
    /// The address that stands for clients of IPv6 backends.
    pub const SOURCE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0xffff, 1));
    /// Where backends of `dsr-gue` take tunnels.
    pub const GUE_PORT: Port = Port::new(6080);
    /// The hardware address of the router to the clients.
    pub const ROUTER: Mac = [0x02, 0, 0, 0, 0, 0xfe];

    /// Tables with one device of 1500 bytes and no service.
    #[must_use]
    pub fn new() -> Self {
        let mut settings = Box::new(Settings::zeroed());
        settings.layout = LAYOUT;
        settings.udp_idle = 30;
        settings.tcp_idle = TCP_IDLE_TICKS;
        settings.source_ports = [1024, 32_767];
        settings.cpus = 1;
        settings.tunnel_v4 = [172, 16, 0, 0];
        settings.tunnel_v6 = [0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        Self {
            settings,
            vips: HashMap::new(),
            services: Vec::new(),
            slots: Vec::new(),
            backends: vec![Backend::zeroed()],
            devices: vec![Device { ifindex: Self::IFINDEX, mtu: 1500, mac: Self::MAC, pad: 0 }],
            repliers: RefCell::default(),
            flows: RefCell::new(Lru::new(1 << 20)),
            udp_flows: RefCell::new(Lru::new(1 << 20)),
            half_open: RefCell::new(Lru::new(1 << 20)),
            handshakes: RefCell::default(),
            awaited: RefCell::new(vec![0; awaited::PLACES as usize]),
            watches: RefCell::default(),
            budgets: RefCell::default(),
            limits: RefCell::default(),
            open: RefCell::default(),
            tripped: RefCell::default(),
            measures: RefCell::new(vec![0; Self::MEASURES * size_of::<Measure>() / 8]),
            fragments: RefCell::new(Lru::new(1 << 14)),
            messages: Default::default(),
            guests: Vec::new(),
            quic_configs: HashMap::new(),
            quic_servers: HashMap::new(),
            faults: [Fault::default(); FAULTS],
            direct: RefCell::new(Lru::new(1 << 16)),
            opening: RefCell::new(Lru::new(1 << 20)),
            sessions: RefCell::default(),
            session_room: usize::MAX,
            vlans: HashMap::new(),
            routes: HashMap::new(),
            path_mtu: 1280,
            default_route: Route::Out {
                ifindex: Self::IFINDEX,
                source: Self::MAC,
                destination: Self::ROUTER,
            },
            router: None,
            clock: Cell::new(1_000_000_000_000),
            events: Default::default(),
            guards: HashMap::new(),
            dues: RefCell::default(),
            sources: RefCell::new(Lru::new(1 << 16)),
            rules: HashMap::new(),
            vip_rules: HashMap::new(),
            seed: *b"a seed of tables",
        }
    }

    /// Adds a service without backends, and returns its index.
    pub fn add_service(&mut self, spec: &ServiceSpec) -> u32 {
        let key = VipKey::new(spec.vip, spec.port, spec.protocol);
        let index = self.services.len() as u32;
        let service = Service {
            table_size: spec.table_size,
            mode: spec.mode as u8,
            on_empty: spec.on_empty as u8,
            flags: spec.flags | if spec.mode == Mode::FullNat { Service::SESSIONS } else { 0 },
            protocol: spec.protocol,
            backend_keys: Keys::derive(&self.seed, &key, Purpose::Backend),
            split_keys: Keys::derive(&self.seed, &key, Purpose::Split { salt: 0 }),
            split_mask: [u32::MAX; 4],
            vip: key.address,
            port: key.port,
            stable_slots: self.add_table(spec.table_size),
            canary_slots: self.add_table(spec.table_size),
            stable_pool: index as u16 * 2 + 1,
            canary_pool: index as u16 * 2 + 2,
            ..Service::zeroed()
        };
        self.services.push(service);
        self.vips.insert(key, index);
        self.vip_rules.entry(key.address).or_insert(0);
        put(&mut self.settings.vips, key.address);
        index
    }

    /// Adds a table of empty slots, and returns the first.
    pub fn add_table(&mut self, size: u32) -> u32 {
        let first = self.slots.len();
        self.slots.resize(first + size as usize, Cell::new(Slot::default()));
        first as u32
    }

    /// Gives a service's canary or stable pool these backends, as if it always had them, and returns their ids.
    pub fn add_pool(&mut self, service: u32, canary: bool, backends: &[(SocketAddr, u16)]) -> Vec<u16> {
        let of = self.services[service as usize];
        let (first, pool) =
            if canary { (of.canary_slots, of.canary_pool) } else { (of.stable_slots, of.stable_pool) };
        let ids: Vec<u16> =
            backends.iter().map(|(address, _)| self.add_backend(service, pool, *address)).collect();
        let key = VipKey { address: of.vip, port: of.port, protocol: of.protocol, pad: 0 };
        let keys = Keys::derive(&self.seed, &key, Purpose::Table);
        let candidates: Vec<Candidate> = backends
            .iter()
            .map(|(at, weight)| Candidate {
                hash: keys.backend(at.ip().into(), at.port()),
                weight: u32::from(*weight),
            })
            .collect();
        for (slot, index) in
            self.slots[first as usize..].iter().zip(maglev::table(&candidates, of.table_size))
        {
            let id = ids[usize::from(index)];
            slot.set(Slot::of(id, id, 0));
        }
        ids
    }

    /// Lets connection ids name backends of a service, and turns that on.
    ///
    /// # Panics
    ///
    /// If no id could be read so, or a server id has another length.
    pub fn add_quic(
        &mut self,
        service: u32,
        codec: &quic::Codec,
        tells_length: bool,
        servers: &[(&[u8], u16)],
    ) {
        self.services[service as usize].flags |= Service::QUIC;
        let config = u32::from(codec.config);
        let reader = codec.reader(tells_length).expect("a codec");
        self.quic_configs.insert(quic::ConfigKey { service, config }, reader);
        for &(id, backend) in servers {
            assert_eq!(id.len(), usize::from(codec.server_id_length), "a server id");
            let server = quic::Codec::server_id(id).expect("a server id");
            let generation = self.backends[usize::from(backend)].life().generation();
            let target = quic::Server { backend, pad: 0, generation };
            self.quic_servers.insert(quic::ServerKey { service, config, server }, target);
        }
    }

    /// Adds a backend of one pool of a service, and returns its id.
    pub fn add_backend(&mut self, service: u32, pool: u16, at: SocketAddr) -> u16 {
        let id = self.backends.len() as u16;
        let [high, low] = id.to_be_bytes();
        self.backends.push(Backend {
            life: Life::of(1, true).0,
            next_hop: NextHop::of([0x02, 0, 0, 0x01, high, low], 0).0,
            address: at.ip().into(),
            port: Port::new(at.port()),
            pool,
            service,
            gue_port: if self.services[service as usize].mode == Mode::DsrGue as u8 {
                Self::GUE_PORT
            } else {
                Port::ANY
            },
            ..Backend::zeroed()
        });
        let of = &self.services[service as usize];
        if of.mode == Mode::FullNat as u8 {
            let source = if at.is_ipv4() { Self::SOURCE_V4 } else { Self::SOURCE_V6 };
            self.backends[usize::from(id)].source = source.into();
            put(&mut self.settings.stand_ins, source.into());
        }
        if of.mode == Mode::Nat as u8 {
            let key = VipKey::new(at.ip(), at.port(), of.protocol);
            self.repliers.get_mut().insert(key, Replier { service, backend: id, pad: 0, direct: 0 });
            put(&mut self.settings.repliers, key.address);
        }
        id
    }

    /// Sets a service's split as if it had always been so.
    pub fn set_split(&mut self, service: u32, share: u32) {
        let service = &mut self.services[service as usize];
        service.split = Split::of(share, 0).0;
        service.split_home = share.into();
    }

    /// Lets [`ticks`](crate::abi::ticks) of time pass.
    pub fn advance(&self, ticks: u32) {
        self.clock.set(self.clock.get() + (u64::from(ticks) << 30));
    }

    /// How often an event happened.
    #[must_use]
    pub fn count(&self, event: Event) -> u64 {
        self.events[event as usize].get()
    }

    /// A word of a backend's watch.
    #[must_use]
    pub fn watched(&self, backend: u16, word: Word) -> u64 {
        self.watches.borrow().get(&(backend, word as usize)).copied().unwrap_or_default()
    }

    fn table(&self, udp: bool) -> &RefCell<Lru<FlowKey, FlowEntry>> {
        if udp { &self.udp_flows } else { &self.flows }
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self::new()
    }
}

fn put(filter: &mut Filter, address: Address) {
    let bit = address.filter_bit() & (FILTER_BITS - 1);
    filter[(bit / 64) as usize] |= 1 << (bit % 64);
}

impl pipeline::Tables for Tables {
    type Packet = Frame;

    fn settings(&self) -> Option<&Settings> {
        Some(&self.settings)
    }

    fn vip(&self, key: &VipKey) -> Option<u32> {
        self.vips.get(key).copied()
    }

    fn service(&self, index: u32) -> Option<&Service> {
        self.services.get(index as usize)
    }

    fn slot(&self, index: u32) -> Option<Slot> {
        self.slots.get(index as usize).map(Cell::get)
    }

    fn mark(&self, index: u32) {
        if let Some(slot) = self.slots.get(index as usize) {
            slot.set(Slot(slot.get().0.wrapping_add(Slot::EXCEPTION)));
        }
    }

    fn backend(&self, id: u16) -> Option<&Backend> {
        self.backends.get(usize::from(id))
    }

    fn device(&self, index: u16) -> Option<&Device> {
        self.devices.get(usize::from(index))
    }

    fn flow(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry> {
        let now = self.ticks();
        self.table(udp).borrow_mut().get(key).map(|entry| {
            let found = *entry;
            entry.seen = now;
            found
        })
    }

    fn flow_as_it_is(&self, key: &FlowKey, udp: bool) -> Option<FlowEntry> {
        self.table(udp).borrow().peek(key).copied()
    }

    fn keep_flow(&self, key: &FlowKey, udp: bool, backend: u16, generation: u32) -> bool {
        let entry = FlowEntry::of(backend, generation, self.ticks());
        self.table(udp).borrow_mut().insert(*key, entry)
    }

    fn half_open(&self, key: &FlowKey) -> Option<HalfOpen> {
        self.half_open.borrow_mut().get(key).copied()
    }

    fn note_half_open(&self, key: &FlowKey, note: &HalfOpen) {
        let noted = self.half_open.borrow_mut().insert(*key, *note);
        self.event(if noted { Event::HandshakeNoted } else { Event::TrackFailed });
    }

    fn forget_half_open(&self, key: &FlowKey) {
        self.half_open.borrow_mut().remove(key);
    }

    fn quic_config(&self, key: &quic::ConfigKey) -> Option<&quic::Config> {
        self.quic_configs.get(key)
    }

    fn quic_server(&self, key: &quic::ServerKey) -> Option<quic::Server> {
        self.quic_servers.get(key).copied()
    }

    fn fragments(&self, key: &FragmentKey) -> Option<FragmentEntry> {
        self.fragments.borrow_mut().get(key).copied()
    }

    fn note_fragments(&self, key: &FragmentKey, entry: &FragmentEntry) {
        let noted = self.fragments.borrow_mut().insert(*key, *entry);
        self.event(if noted { Event::FragmentsNoted } else { Event::TrackFailed });
    }

    fn admits_message(&self, message: Message, interval: u32) -> bool {
        let bucket = &self.messages[message as usize];
        let next = too_big::admit(bucket.get(), self.clock.get(), interval);
        bucket.set(next.unwrap_or(bucket.get()));
        next.is_some()
    }

    fn guard(&self, service: u32) -> Option<&Guard> {
        self.guards.get(&service)
    }

    fn rule(&self, client: &GuestKey) -> Option<Rule> {
        // The longest prefix first.
        (32..=client.bits).rev().find_map(|bits| self.rules.get(&prefix(client, bits)).copied())
    }

    fn vip_rules(&self, vip: &Address) -> Option<u32> {
        self.vip_rules.get(vip).copied()
    }

    type Dues<'a> = Dues;

    fn dues(&self, service: u32) -> Option<Dues> {
        Some(Dues::Service(service))
    }

    fn source(&self, key: &SourceKey) -> Option<Dues> {
        let mut sources = self.sources.borrow_mut();
        if sources.get(key).is_none() && !sources.insert(*key, Source::default()) {
            return None;
        }
        Some(Dues::Source(*key))
    }

    fn due(&self, dues: Dues, word: guard::Word) -> u64 {
        let found = match dues {
            Dues::Service(index) => self.dues.borrow().get(&index).copied(),
            Dues::Source(key) => self.sources.borrow().peek(&key).copied(),
        };
        found.unwrap_or_default().word(word)
    }

    fn swap_due(&self, dues: Dues, word: guard::Word, old: u64, new: u64) -> bool {
        let set = |due: &mut u64| {
            let same = *due == old;
            if same {
                *due = new;
            }
            same
        };
        match dues {
            Dues::Service(index) => set(self.dues.borrow_mut().entry(index).or_default().word_mut(word)),
            Dues::Source(key) => {
                self.sources.borrow_mut().get(&key).is_some_and(|source| set(source.word_mut(word)))
            }
        }
    }

    fn replier(&self, key: &VipKey) -> Option<Replier> {
        self.repliers.borrow().get(key).copied()
    }

    fn direct(&self, key: &FlowKey) -> Option<u32> {
        self.direct.borrow_mut().get(key).copied()
    }

    fn note_direct(&self, key: &FlowKey, backend: &VipKey) {
        let now = self.ticks();
        self.direct.borrow_mut().insert(*key, now);
        if let Some(replier) = self.repliers.borrow_mut().get_mut(backend) {
            replier.direct = now.max(1);
        }
    }

    fn forget_direct(&self, key: &FlowKey) {
        self.direct.borrow_mut().remove(key);
    }

    type Entry<'a> = Box<Session>;

    fn session(&self, held: Held, key: &SessionKey) -> Option<Box<Session>> {
        let found = match held {
            Held::Opening => self.opening.borrow_mut().get(key).copied(),
            Held::Established => self.sessions.borrow().get(key).copied(),
        };
        found.map(Box::new)
    }

    type EntryMut<'a> = RefMut<'a, Session>;

    fn session_mut(&self, held: Held, key: &SessionKey) -> Option<RefMut<'_, Session>> {
        match held {
            Held::Opening => RefMut::filter_map(self.opening.borrow_mut(), |opening| opening.get(key)).ok(),
            Held::Established => {
                RefMut::filter_map(self.sessions.borrow_mut(), |sessions| sessions.get_mut(key)).ok()
            }
        }
    }

    fn keep_session(&self, held: Held, key: &SessionKey, session: &Session, only_new: bool) -> bool {
        match held {
            Held::Opening => {
                let mut opening = self.opening.borrow_mut();
                (!only_new || opening.peek(key).is_none()) && opening.insert(*key, *session)
            }
            Held::Established => {
                let mut sessions = self.sessions.borrow_mut();
                let known = sessions.contains_key(key);
                let kept = if known { !only_new } else { sessions.len() < self.session_room };
                if kept {
                    sessions.insert(*key, *session);
                }
                kept
            }
        }
    }

    fn drop_session(&self, held: Held, key: &SessionKey) {
        match held {
            Held::Opening => drop(self.opening.borrow_mut().remove(key)),
            Held::Established => drop(self.sessions.borrow_mut().remove(key)),
        }
    }

    fn with_draft<R>(&self, act: impl FnOnce(&mut Draft) -> R) -> Option<R> {
        Some(act(&mut Draft::zeroed()))
    }

    fn cpu(&self) -> u32 {
        0
    }

    fn route(&self, packet: &Frame, network: &Network) -> Route {
        if let Some(router) = &self.router {
            return router(pipeline::Packet::ifindex(packet), network);
        }
        *self.routes.get(&network.destination).unwrap_or(&self.default_route)
    }

    fn vlan(&self, ifindex: u32) -> Option<Vlan> {
        self.vlans.get(&ifindex).copied()
    }

    fn path_mtu(&self, packet: &Frame, network: &Network) -> u16 {
        if self.route(packet, network) == Route::TooBig { self.path_mtu } else { 0 }
    }

    fn handshake(&self, key: &FlowKey) -> Option<Handshake> {
        self.handshakes.borrow().get(key).copied()
    }

    fn keep_handshake(&self, key: &FlowKey, handshake: &Handshake) {
        self.handshakes.borrow_mut().insert(*key, *handshake);
    }

    fn note_state(&self, key: &FlowKey, state: u8) {
        if let Some(handshake) = self.handshakes.borrow_mut().get_mut(key) {
            handshake.state = state;
        }
    }

    fn note_drawn(&self, key: &FlowKey, drawn: u32) {
        if let Some(handshake) = self.handshakes.borrow_mut().get_mut(key) {
            handshake.drawn = drawn;
        }
    }

    fn forget_handshake(&self, key: &FlowKey) {
        self.handshakes.borrow_mut().remove(key);
    }

    fn awaited(&self, place: u32) -> u64 {
        self.awaited.borrow()[place as usize]
    }

    fn swap_awaited(&self, place: u32, old: u64, new: u64) -> bool {
        let word = &mut self.awaited.borrow_mut()[place as usize];
        let same = *word == old;
        if same {
            *word = new;
        }
        same
    }

    fn share_awaited(&self, place: u32) {
        let word = &mut self.awaited.borrow_mut()[place as usize];
        *word = (*word | awaited::SHARED) + 1;
    }

    fn count(&self, measure: u32, offset: usize) {
        self.measures.borrow_mut()[word_of(measure, offset)] += 1;
    }

    fn set(&self, measure: u32, offset: usize, bits: u64) -> bool {
        let word = &mut self.measures.borrow_mut()[word_of(measure, offset)];
        let before = *word;
        *word |= bits;
        before & bits == bits
    }

    fn swap(&self, measure: u32, offset: usize, old: u64, new: u64) -> bool {
        let word = &mut self.measures.borrow_mut()[word_of(measure, offset)];
        let same = *word == old;
        if same {
            *word = new;
        }
        same
    }

    fn guest(&self, client: &GuestKey) -> bool {
        let bits = |key: &GuestKey| u128::from_be_bytes(bytemuck::cast(key.network));
        self.guests.iter().any(|guest| {
            let beyond = 160 - guest.bits;
            let differ = bits(guest) ^ bits(client);
            guest.service == client.service && differ.checked_shr(beyond).unwrap_or(0) == 0
        })
    }

    fn faults(&self) -> Option<&[Fault; FAULTS]> {
        Some(&self.faults)
    }

    fn word(&self, measure: u32, offset: usize) -> u64 {
        self.measures.borrow()[word_of(measure, offset)]
    }

    fn tally(&self, backend: u16, word: Word, by: u64) {
        let mut watches = self.watches.borrow_mut();
        let word = watches.entry((backend, word as usize)).or_default();
        *word = word.wrapping_add(by);
    }

    fn end_row(&self, backend: u16, word: Word) {
        self.watches.borrow_mut().remove(&(backend, word as usize));
    }

    fn budget(&self, service: u32) -> Option<Budget> {
        self.budgets.borrow().get(&service).copied()
    }

    fn pay(&self, service: u32, amount: u64) {
        if let Some(budget) = self.budgets.borrow_mut().get_mut(&service) {
            budget.left = budget.left.wrapping_add(amount);
        }
    }

    fn limit(&self, whose: Whose) -> Option<Limit> {
        self.limits.borrow().get(&whose).copied()
    }

    fn swap_trials(&self, whose: Whose, old: u64, new: u64) -> bool {
        let mut limits = self.limits.borrow_mut();
        let limit = limits.entry(whose).or_default();
        let same = limit.trials == old;
        if same {
            limit.trials = new;
        }
        same
    }

    fn set_due(&self, whose: Whose, due: u64) {
        self.limits.borrow_mut().entry(whose).or_default().due = due;
    }

    fn count_open(&self, whose: Whose, by: u64) {
        let mut limits = self.limits.borrow_mut();
        let limit = limits.entry(whose).or_default();
        limit.open = limit.open.wrapping_add(by);
    }

    fn keep_away(&self, whose: Whose) {
        self.limits.borrow_mut().entry(whose).or_default().kept_away += 1;
    }

    fn open(&self, key: &FlowKey) -> Option<Open> {
        let now = self.ticks();
        self.open.borrow_mut().get_mut(key).map(|open| {
            let found = *open;
            if found.is_counted() {
                open.seen = now;
            }
            found
        })
    }

    fn keep_open(&self, key: &FlowKey, open: &Open) {
        self.open.borrow_mut().insert(*key, *open);
    }

    fn forget_open(&self, key: &FlowKey) {
        self.open.borrow_mut().remove(key);
    }

    fn trip(&self, service: u32, measure: u32) {
        self.tripped.borrow_mut().push(service);
        self.measures.borrow_mut()[word_of(measure, offset_of!(Measure, tripped))] = self.clock.get();
    }

    fn clock(&self) -> u64 {
        self.clock.get()
    }

    fn now(&self) -> u64 {
        self.clock.get()
    }

    fn event(&self, event: Event) {
        let count = &self.events[event as usize];
        count.set(count.get() + 1);
    }
}

/// The first `bits` of a key.
fn prefix(key: &GuestKey, bits: u32) -> GuestKey {
    let all: [u8; 20] = {
        let mut all = [0; 20];
        all[..4].copy_from_slice(&key.service.to_ne_bytes());
        all[4..].copy_from_slice(&bytemuck::cast::<Address, [u8; 16]>(key.network));
        all
    };
    let mut kept = [0; 20];
    for (at, (to, from)) in kept.iter_mut().zip(all).enumerate() {
        let rest = bits.saturating_sub(at as u32 * 8).min(8);
        *to = from & !(0xff_u16 >> rest) as u8;
    }
    let [a, b, c, d, network @ ..] = kept;
    GuestKey { bits, service: u32::from_ne_bytes([a, b, c, d]), network: bytemuck::cast(network) }
}

/// Where a word of a measure lies.
fn word_of(measure: u32, offset: usize) -> usize {
    (measure as usize * size_of::<Measure>() + offset) / 8
}
