//! Why a flow goes where it goes: the very rule of the kernel program, over a copy of its tables.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use lb_common::abi::{self, FlowKey, GuestKey, Port, Service, Split, VipKey};
use lb_common::guard::{self, Rule, Source, SourceKey};
use lb_common::host::Tables;
use lb_common::parse::{Family, Kind, Network};
use lb_common::select::{Choice, Why, select};
use lb_common::session::{Session, SessionKey};
use lb_common::verdict::Reason;

mod quic;
mod run;

use super::Agent;
use crate::api::{ApiError, Explain, Explanation, Step};
use crate::clock;
use crate::config::Protocol;
use crate::craft::Content;
use crate::publish::{Publisher, split};

impl Agent {
    /// Says where a flow goes, and why.
    pub fn explain(&self, request: &Explain) -> Result<Explanation, ApiError> {
        let protocol = match request.protocol {
            Protocol::Tcp => lb_common::wire::IPPROTO_TCP,
            Protocol::Udp => lb_common::wire::IPPROTO_UDP,
        };
        let mut steps = Vec::new();
        let found = [request.to.port(), 0].into_iter().find_map(|port| {
            let key = VipKey::new(request.to.ip(), port, protocol);
            self.publisher.registry.service_index(&key).map(|index| (key, index))
        });
        let Some((key, index)) = found else {
            return Ok(Explanation {
                steps: vec![step(
                    "service",
                    format!("no service is at {} ({})", request.to, request.protocol),
                    &[],
                )],
                verdict: "pass".to_owned(),
                reason: Reason::NotOurs.name().to_owned(),
                ..Explanation::default()
            });
        };
        let name = self
            .desired
            .config
            .services
            .iter()
            .find(|s| crate::compile::key_of(s) == key)
            .map(|s| s.name.to_string());
        let previewed = self.previewed(&key).map(ToString::to_string);
        let what = match (&name, &previewed) {
            (Some(name), _) => name.clone(),
            (None, Some(of)) => format!("the preview of {of}"),
            (None, None) => "a service".to_owned(),
        };
        let name = name.or(previewed);
        let service = self.publisher.maps.services.read(index);
        steps.push(step("service", format!("{} is {what}", request.to), &[("index", index.to_string())]));

        let flow = FlowKey {
            client: request.from.ip().into(),
            client_port: Port::new(request.from.port()),
            port: Port::new(request.to.port()),
            owner: index,
        };
        let mut tables = self.copy(&service, &flow, protocol);
        let (guard, kept_away) = guard_step(&self.publisher, &service, &flow, request);
        steps.extend(guard);
        if let Some(reason) = kept_away {
            steps.extend(self.run_step(&key, tables, request, run::content(protocol)));
            return Ok(Explanation {
                steps,
                verdict: "drop".to_owned(),
                reason: reason.name().to_owned(),
                service: name,
                ..Explanation::default()
            });
        }
        let named = request.quic_id.as_ref().map(|id| self.named_by_id(&service, index, id, &mut tables));
        if service.has(Service::QUIC) && named.is_none() {
            let text = "a connection id that names a backend counts before all that follows: see --quic-id";
            steps.push(step("quic", text.to_owned(), &[]));
        }
        let by_id = named.as_ref().map_or(0, |named| named.backend);
        steps.extend(named.map(|named| named.step));
        if by_id != 0 {
            let content = request.quic_id.as_ref().map(|id| Content::Quic(quic::padded(id)));
            steps.extend(content.and_then(|content| self.run_step(&key, tables, request, content)));
            return Ok(self.placed(steps, name, by_id));
        }
        let membership = service.attended_membership(&tables, &flow);
        let guest = service.has(Service::GUESTS) && !tables.guests.is_empty();
        steps.push(self.split_step(&service, &flow, membership.new, guest));

        let hash = service.backend_hash(&flow);
        let slot_index = service.slot(membership.new, hash);
        let slot = lb_common::pipeline::Tables::slot(&tables, local(&service, slot_index, membership.new))
            .unwrap_or_default();
        let settled = slot.is_settled() && membership.settled;
        steps.push(step(
            "slot",
            format!(
                "the backend hash {:#010x} points to slot {} of {}: new flows go to backend {}, old ones to {}; {}",
                hash >> 32,
                slot_index - service.slot(membership.new, 0),
                service.table_size,
                slot.new(),
                slot.home(),
                if settled { "settled, so no table is looked up" } else { "not settled, so tables are looked up first" },
            ),
            &[("slot", slot_index.to_string()), ("exceptions", slot.exceptions().to_string())],
        ));

        let of = tables.services.first().copied().unwrap_or_default();
        let tracked =
            lb_common::pipeline::Tables::flow(&tables, &flow, protocol == lb_common::wire::IPPROTO_UDP);
        let begins = if protocol == lb_common::wire::IPPROTO_TCP { Kind::Syn(1) } else { Kind::Udp };
        let full_nat = of.mode == abi::Mode::FullNat as u8;
        let outcomes: &[(&str, Kind)] = if full_nat {
            &[("a new flow", begins)]
        } else if protocol == lb_common::wire::IPPROTO_TCP {
            &[("a new flow", begins), ("an established flow", Kind::Tcp(1 << 30))]
        } else {
            &[("a datagram", begins)]
        };
        if let Some(entry) = tracked {
            steps.push(step("track", format!("the flow is tracked, on backend {}", entry.backend), &[]));
        }
        let mut last = Choice { backend: 0, why: Why::Settled, hash };
        for (what, kind) in outcomes.iter().rev() {
            // The flow's own table entry is in the copy; nothing that is noted here reaches the kernel.
            last = select(&tables, &of, &flow, *kind).map_err(|reason| {
                ApiError::new(crate::api::ErrorCode::Dataplane, reason.meaning().trim().to_owned())
            })?;
            steps.push(step(
                "choose",
                format!("{what} goes to {}: {}", self.name_of(last.backend), words(last.why)),
                &[],
            ));
        }
        if full_nat {
            let (found, text) = self.session_of(request, protocol);
            steps.push(step("session", text, &[]));
            if let Some(session) = found {
                last.backend = session.backend;
            }
        }
        // A datagram of a flow that is not tracked yet would be, and that would be news.
        let is_udp = protocol == lb_common::wire::IPPROTO_UDP;
        if service.has(Service::SESSIONS) {
            // A packet begins a session, and a RST ends one.
            steps.push(step("program", "not run: it would change the flow's session".to_owned(), &[]));
        } else if !is_udp || settled || tracked.is_some() || !service.has(Service::TRACK_UDP) {
            let tables = self.copy(&service, &flow, protocol);
            steps.extend(self.run_step(&key, tables, request, run::content(protocol)));
        }
        Ok(self.placed(steps, name, last.backend))
    }

    /// What becomes of a packet that goes to this backend; 0: to none.
    fn placed(&self, steps: Vec<Step>, service: Option<String>, id: u16) -> Explanation {
        let backend = self.publisher.maps.backends.read(id.into());
        let pool = self.publisher.registry.pool_name(backend.pool).map(str::to_owned);
        let (verdict, reason) = if id == 0 {
            ("drop", Reason::NoBackend)
        } else if !backend.life().is_usable() {
            ("drop", Reason::BackendGone)
        } else if backend.next_hop().mac().is_none() {
            ("drop", Reason::NoNeighbour)
        } else {
            ("transmit", Reason::Forwarded)
        };
        Explanation {
            steps,
            verdict: verdict.to_owned(),
            reason: reason.name().to_owned(),
            service,
            pool: if id == 0 { None } else { pool },
            backend: (id != 0).then(|| self.name_of(id)),
            ..Explanation::default()
        }
    }

    /// The session of a flow, and what there is to say about it.
    fn session_of(&self, request: &Explain, protocol: u8) -> (Option<Session>, String) {
        let maps = &self.publisher.maps;
        let key = SessionKey {
            source: request.from.ip().into(),
            destination: request.to.ip().into(),
            source_port: Port::new(request.from.port()),
            destination_port: Port::new(request.to.port()),
            protocol: protocol.into(),
        };
        for (table, what) in [
            (&maps.sessions, "an established session"),
            (&maps.opening, "a session that has yet to prove itself"),
        ] {
            let Ok(Some(session)) = table.get(&key) else { continue };
            let life = maps.backends.read(session.backend.into()).life();
            if !life.is_usable() || life.generation() != session.generation {
                return (None, format!("the flow had {what}, which its backend's end has made void"));
            }
            let source = SocketAddr::new(session.source.into(), session.source_port.number());
            let text = format!(
                "the flow has {what}: {source} stands for it at backend {}",
                self.name_of(session.backend)
            );
            return (Some(session), text);
        }
        (None, "the flow has no session: unless it begins now, it is refused".to_owned())
    }

    /// What the loaded program does with the flow, beside what the rule says.
    fn run_step(
        &self,
        key: &VipKey,
        mut tables: Tables,
        request: &Explain,
        content: Content,
    ) -> Option<Step> {
        // Here only nobody's packets are asked for it.
        tables.vip_rules.insert(key.address, 0);
        let ifindex = self.kernel.attached.first()?.ifindex;
        tables.vips.insert(*key, 0);
        let directory = crate::dataplane::maps::directory(&self.places.pin_dir);
        let ran = crate::dataplane::bpf::open_pin(&directory.join(crate::dataplane::PROGRAM))
            .and_then(|program| run::run(program, &tables, ifindex, request.from, request.to, content));
        Some(match ran {
            Ok(ran) => step("program", ran.text, &[("agrees", ran.agree.to_string())]),
            Err(error) => step("program", format!("the loaded program cannot be run: {error}"), &[]),
        })
    }

    fn split_step(&self, service: &Service, flow: &FlowKey, canary: bool, guest: bool) -> Step {
        let now: Split = service.split();
        let joins = if guest { 0.0 } else { split::percent(service.split_hash(flow)) };
        let pool = |index: u16| self.publisher.registry.pool_name(index).unwrap_or("?").to_owned();
        let text = if service.canary_pool == 0 {
            format!("there is one pool, {}", pool(service.stable_pool))
        } else {
            let joins = if guest {
                format!(
                    "the client is a guest of the canary {}, and joins it with the first",
                    pool(service.canary_pool)
                )
            } else {
                format!("the client joins the canary {} at {joins:.4} %", pool(service.canary_pool))
            };
            format!(
                "{joins}; the split is {:.4} %, so its new flows go to {}",
                split::percent(now.new()),
                pool(if canary { service.canary_pool } else { service.stable_pool }),
            )
        };
        step(
            "split",
            text,
            &[
                ("joins_percent", format!("{joins:.6}")),
                ("split_percent", format!("{:.6}", split::percent(now.new()))),
            ],
        )
    }

    pub(super) fn name_of(&self, id: u16) -> String {
        if id == 0 {
            return "nobody".to_owned();
        }
        let backend = self.publisher.maps.backends.read(id.into());
        let ip: IpAddr = backend.address.into();
        crate::api::BackendPath::name_of((ip, backend.port.number()).into())
    }

    /// What guards the one service of a copy, as far as a flow meets it.
    fn copy_guard(&self, flow: &FlowKey, tables: &mut Tables) {
        let maps = &self.publisher.maps;
        let guard = maps.guards.read(flow.owner);
        if let Some((_, rule)) = self.publisher.rule_of(flow.owner, flow.client) {
            tables.rules.insert(GuestKey::client(0, flow.client), rule);
        }
        let due = Source { connections_due: guard.connections_due, packets_due: guard.packets_due };
        tables.dues.borrow_mut().insert(0, due);
        let source = guard.source(flow.owner, flow.client);
        if let Ok(Some(due)) = maps.sources.get(&source) {
            tables.sources.borrow_mut().insert(SourceKey { service: 0, ..source }, due);
        }
        tables.guards.insert(0, guard);
    }

    /// The tables of one service and what they hold of one flow, in memory.
    fn copy(&self, service: &Service, flow: &FlowKey, protocol: u8) -> Tables {
        let maps = &self.publisher.maps;
        let mut tables = Tables::new();
        let size = service.table_size;
        let read =
            |first: u32| (first..first + size).map(|i| std::cell::Cell::new(abi::Slot(maps.slots.read(i))));
        tables.slots = read(service.stable_slots).collect();
        tables.slots.extend(if service.canary_pool == 0 {
            read(service.stable_slots)
        } else {
            read(service.canary_slots)
        });
        tables.services = vec![Service { stable_slots: 0, canary_slots: size, ..*service }];
        // Its slots lead to its own.
        let ids: Vec<u16> = self.publisher.registry.backends_of(flow.owner).collect();
        tables.backends = bytemuck::zeroed_vec(ids.iter().max().map_or(1, |&last| usize::from(last) + 1));
        for id in ids {
            tables.backends[usize::from(id)] = maps.backends.read(id.into());
        }
        tables.clock.set(clock::nanoseconds());
        *tables.settings = maps.settings.read(0);
        tables.vlans = maps.vlans.entries().unwrap_or_default().into_iter().collect();
        tables.devices = (0..maps.devices.len()).map(|index| maps.devices.read(index)).collect();
        if service.has(Service::GUESTS) {
            let client = GuestKey::client(flow.owner, flow.client);
            if maps.guests.get(&client).ok().flatten().is_some() {
                tables.guests.push(client);
            }
        }
        if service.has(Service::GUARDED) {
            self.copy_guard(flow, &mut tables);
        }
        if service.has(Service::CAPPED) {
            // As if there were room: whether there is, a new flow finds out when it comes.
            tables.services[0].measure = 0;
        }
        let (from, into) = if protocol == lb_common::wire::IPPROTO_UDP {
            (&maps.udp_flows, &tables.udp_flows)
        } else {
            (&maps.flows, &tables.flows)
        };
        if let Ok(Some(entry)) = from.get(flow) {
            into.borrow_mut().insert(*flow, entry);
            // In the copy there is one service.
            into.borrow_mut().insert(FlowKey { owner: 0, ..*flow }, entry);
        }
        tables
    }
}

/// What stands before a service, and why it keeps a client away if it does.
fn guard_step(
    publisher: &Publisher,
    service: &Service,
    flow: &FlowKey,
    request: &Explain,
) -> (Option<Step>, Option<Reason>) {
    let from = request.from.ip();
    let network = Network {
        family: if from.is_ipv4() { Family::V4 } else { Family::V6 },
        l3: 0,
        next: 0,
        end: 0,
        protocol: 0,
        fragment: false,
        source: flow.client,
        destination: request.to.ip().into(),
    };
    if let Err(reason) = guard::sender(&network) {
        let text = match reason {
            Reason::Land => format!("{from} is the VIP itself, which sends nothing: its packets are dropped"),
            _ => format!("no host has the address {from}: its packets are dropped"),
        };
        return (Some(step("guard", text, &[])), Some(reason));
    }
    if !service.has(Service::GUARDED) {
        return (None, None);
    }
    let found = publisher.rule_of(flow.owner, flow.client);
    let (lists, denied) = match found {
        None if publisher.maps.guards.read(flow.owner).rules == 0 => {
            ("everybody may talk to it".to_owned(), false)
        }
        None => (format!("no network of `deny` has {from}, so it may talk to it"), false),
        Some((network, Rule::Allowed)) => (format!("{from} is in {network}, which is allowed"), false),
        Some((network, Rule::Denied)) => {
            (format!("{from} is in {network}, which is denied: its packets are dropped"), true)
        }
        Some((_, Rule::NotAllowed)) => {
            (format!("no network of `allow` has {from}, and no others may: its packets are dropped"), true)
        }
    };
    let rates = if denied { String::new() } else { rates(publisher, flow) };
    let step = step("guard", format!("{lists}{rates}"), &[]);
    (Some(step), denied.then_some(Reason::Denied))
}

/// The rates that hold for a client, and whether there is room now.
fn rates(publisher: &Publisher, flow: &FlowKey) -> String {
    let maps = &publisher.maps;
    let guard = maps.guards.read(flow.owner);
    let source = maps.sources.get(&guard.source(flow.owner, flow.client)).ok().flatten().unwrap_or_default();
    let now = clock::nanoseconds();
    let rates = [
        ("new connections of the service", guard.connections, guard.connections_due),
        ("packets of the service", guard.packets, guard.packets_due),
        ("new connections of its source", guard.source_connections, source.connections_due),
        ("packets of its source", guard.source_packets, source.packets_due),
    ];
    let of = |(what, rate, due): (&str, guard::Rate, u64)| {
        (rate.interval != 0).then(|| {
            let room = if rate.after(due, now).is_some() {
                "there is room"
            } else {
                "there is no room now: they are dropped"
            };
            format!("; {what} have a rate, and {room}")
        })
    };
    rates.into_iter().filter_map(of).collect()
}

/// The index that a slot of the kernel has in the copy.
fn local(service: &Service, index: u32, canary: bool) -> u32 {
    if canary { index - service.canary_slots + service.table_size } else { index - service.stable_slots }
}

const fn words(why: Why) -> &'static str {
    match why {
        Why::Settled => "the slot is settled",
        Why::New => "it begins now",
        Why::SynAgain => "its SYN was sent before",
        Why::Handshake => "its handshake went there",
        Why::Tracked => "it is tracked",
        Why::Home => "it is the home of flows that are in no table",
        Why::Capped => "it begins now, and the canary has as many new connections as it may",
        Why::Captured => "it is the home of flows that were there before the last change",
    }
}

fn step(title: &str, text: String, values: &[(&str, String)]) -> Step {
    let values: BTreeMap<String, String> =
        values.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Step { title: title.to_owned(), text, values }
}
