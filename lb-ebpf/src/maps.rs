//! The maps. Sizes are defaults: the agent sets those that the configuration names before it loads the program.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, bpf_fib_lookup as FibLookup};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use lb_common::abi::{
    Address, Backend, Device, Fault, FlowEntry, FlowKey, FragmentEntry, FragmentKey, HalfOpen, Replier,
    Service, Settings, Traffic, VipKey,
};
use lb_common::decap;
use lb_common::guard;
use lb_common::limit::{Limit, Open};
use lb_common::measure::{Handshake, Measure};
use lb_common::quic;
use lb_common::retry::Budget;
use lb_common::session::{Draft, Session, SessionKey};
use lb_common::stage::Stage;
use lb_common::trace;
use lb_common::verdict::Counters;
use lb_common::vlan::Vlan;
use lb_common::watch::Watch;

#[map]
pub static SETTINGS: Array<Settings> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static VIPS: HashMap<VipKey, u32> = HashMap::with_max_entries(4096, 0);

#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(4096, BPF_F_MMAPABLE);

#[map]
pub static SLOTS: Array<u64> = Array::with_max_entries(1 << 22, BPF_F_MMAPABLE);

#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

#[map]
pub static DEVICES: Array<Device> = Array::with_max_entries(lb_common::abi::DEVICES, BPF_F_MMAPABLE);

#[map]
pub static EGRESS: DevMapHash = DevMapHash::with_max_entries(256, 0);

/// With which tags frames leave by which interface; empty on a host without VLAN devices.
#[map]
pub static VLANS: HashMap<u32, Vlan> = HashMap::with_max_entries(4096, 0);

#[map]
pub static REPLIES: HashMap<VipKey, Replier> = HashMap::with_max_entries(16_384, 0);

#[map]
pub static DIRECT: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(65_536, 0);

#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry> = LruHashMap::with_max_entries(16_384, 0);

/// The buckets of `too_big::admit`.
#[map]
pub static MESSAGES: PerCpuArray<u64> = PerCpuArray::with_max_entries(guard::Message::COUNT as u32, 0);

#[map]
pub static FLOWS: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(1 << 20, 0);

#[map]
pub static UDP_FLOWS: LruHashMap<FlowKey, FlowEntry> = LruHashMap::with_max_entries(1 << 18, 0);

#[map]
pub static HALF_OPEN: LruHashMap<FlowKey, HalfOpen> = LruHashMap::with_max_entries(1 << 17, 0);

#[map]
pub static HANDSHAKES: LruHashMap<FlowKey, Handshake> = LruHashMap::with_max_entries(1 << 16, 0);

/// Whether anything of `HANDSHAKES` is about a flow.
#[map]
pub static AWAITED: Array<u64> = Array::with_max_entries(lb_common::awaited::PLACES, BPF_F_MMAPABLE);

#[map]
pub static MEASURES: Array<Measure> = Array::with_max_entries(64, BPF_F_MMAPABLE);

/// Sessions of `full-nat` that have yet to prove themselves.
#[map]
pub static OPENING: LruHashMap<SessionKey, Session> = LruHashMap::with_max_entries(1 << 18, 0);

/// Those that have.
#[map]
pub static SESSIONS: HashMap<SessionKey, Session> = HashMap::with_max_entries(1 << 18, 0);

/// What routes are asked with: programs have no room for it on their stacks.
#[map]
pub static QUERIES: PerCpuArray<FibLookup> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static DRAFTS: PerCpuArray<Draft> = PerCpuArray::with_max_entries(1, 0);

#[map]
pub static WATCHES: Array<Watch> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

#[map]
pub static BUDGETS: Array<Budget> = Array::with_max_entries(4096, BPF_F_MMAPABLE);

#[map]
pub static LIMITS: Array<Limit> = Array::with_max_entries(16_384, BPF_F_MMAPABLE);

#[map]
pub static POOL_LIMITS: Array<Limit> = Array::with_max_entries(8192, BPF_F_MMAPABLE);

#[map]
pub static OPEN: LruHashMap<FlowKey, Open> = LruHashMap::with_max_entries(1 << 18, 0);

#[map]
pub static GUESTS: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(1024, 0);

// Few services have any: memory comes with the entries, which the agent alone makes.
#[map]
pub static QUIC_CONFIGS: HashMap<quic::ConfigKey, quic::Config> =
    HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);

#[map]
pub static QUIC_SERVERS: HashMap<quic::ServerKey, quic::Server> =
    HashMap::with_max_entries(65_536, BPF_F_NO_PREALLOC);

#[map]
pub static FAULTS: Array<[Fault; lb_common::abi::FAULTS]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
pub static GUARDS: Array<guard::Guard> = Array::with_max_entries(4096, BPF_F_MMAPABLE);

#[map]
pub static RULES: LpmTrie<[u32; 5], u32> = LpmTrie::with_max_entries(16_384, 0);

#[map]
pub static VIP_RULES: HashMap<Address, u32> = HashMap::with_max_entries(4096, 0);

#[map]
pub static SOURCES: LruHashMap<guard::SourceKey, guard::Source> = LruHashMap::with_max_entries(1 << 16, 0);

#[map]
pub static WANTED: RingBuf = RingBuf::with_byte_size(16_384, 0);

/// Not shared between versions: each loading of the programs has an array of its own.
#[map]
pub static STAGES: ProgramArray = ProgramArray::with_max_entries(Stage::COUNT as u32, 0);

#[map]
pub static COUNTERS: PerCpuArray<Counters> = PerCpuArray::with_max_entries(Counters::PLACES, 0);

#[map]
pub static POOL_TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(8192, 0);

#[map]
pub static BACKEND_TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(16_384, 0);

#[map]
pub static DECAP: Array<decap::Allowed> = Array::with_max_entries(1, 0);

#[map]
pub static DECAP_COUNTERS: PerCpuArray<[u64; decap::Decapsulated::COUNT]> =
    PerCpuArray::with_max_entries(1, 0);

#[map]
pub static TRACE_FILTER: Array<trace::Filter> = Array::with_max_entries(1, 0);

#[map]
pub static TRACE_STATE: PerCpuArray<trace::State> = PerCpuArray::with_max_entries(1, 0);

// The agent gives it room when it loads the program that traces.
#[map]
pub static TRACED: RingBuf = RingBuf::with_byte_size(4096, 0);
