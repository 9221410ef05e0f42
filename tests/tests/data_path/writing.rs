//! What publishing writes into the maps, where only the maps show it.

use std::collections::BTreeMap;
use std::mem::offset_of;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Address, Mode, NextHop, OnEmpty, Port, Service, Slot, Split, VipKey};
use lb_common::guard::{Guard, HOST, Rate, Rule};
use lb_common::quic::{Codec, Server, ServerKey};
use lb_common::vlan::{Tags, Vlan};
use lb_common::wire::{ETHERTYPE_VLAN, IPPROTO_TCP};
use lb_tests::claim;
use lb_userspace::dataplane::Capacities;
use lb_userspace::publish::split::{self, Flows};
use lb_userspace::publish::{
    IdlePool, Member, PoolPlan, Protection, PublishError, Publisher, QuicPlan, ServicePlan,
};
use libtest_mimic::Trial;

use crate::kernel::{Kernel, ROOM};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a service without a canary points at no slots but its own", own_slots),
        claim("as many backends fit as the configuration says", backends_fit),
        claim("ids of a canary whose flows were reset stay void until it is open again", reset_names),
        claim("ids name who is configured, and nobody who is gone", names_follow),
        claim("frames leave by what VLAN devices are on, and never by themselves", vlans),
        claim("what the kernel took out of the interfaces that frames leave by is put back", put_back),
        claim("interfaces that are gone make room for others, once no backend is behind them", devices_fit),
        claim("two pools fit for each service that the configuration says", pools_fit),
        claim("pools that come and go make room for others", pools_come_and_go),
        claim("a backend of a pool without a role is switched off, and led to where it is", idle),
        claim("a canary with other backends than an agent before knew is the canary", canary_renewed),
        claim("a promotion that an agent died in is ended by the next one", half_promoted),
        claim("a promotion ends no split that somebody has rolled back", rolled_back_before),
        claim(
            "a service's networks are in the maps, with its VIP's, and nothing of a removed one stays",
            protected,
        ),
    ]
}

const SLOTS: u32 = 101;
const SEED: &[u8; 16] = b"a seed of claims";

fn publisher(capacities: Capacities) -> Result<Publisher> {
    let kernel = Kernel::load(capacities)?;
    Ok(Publisher::adopt(Arc::clone(&kernel.maps), 0)?)
}

fn pool(name: &str, backends: &[u8]) -> PoolPlan {
    let at = |n: &u8| SocketAddr::from(([10, 0, 0, *n], 8080));
    let member = |n: &u8| Member {
        address: at(n).ip().into(),
        port: Port::new(at(n).port()),
        usable: true,
        next_hop: NextHop::of([2, 0, 0, 0, 0, *n], 0),
        source: None,
        server_ids: Vec::new(),
    };
    let members: Vec<Member> = backends.iter().map(member).collect();
    let takers: Vec<_> = members.iter().map(|member| (member.address, member.port)).collect();
    let table = (0..SLOTS).map(|slot| slot as u16 % takers.len() as u16).collect();
    PoolPlan { name: name.to_owned(), members, table, takers }
}

fn plan(vip: u8, stable: PoolPlan, canary: Option<PoolPlan>) -> ServicePlan {
    ServicePlan {
        key: VipKey::new([203, 0, 113, vip].into(), 80, IPPROTO_TCP),
        mode: Mode::Nat,
        on_empty: OnEmpty::Reset,
        flags: 0,
        gue_port: Port::ANY,
        clamp_mss: 0,
        guests: Vec::new(),
        split_mask: [u32::MAX; 4],
        salt: 0,
        limits: Default::default(),
        budget: None,
        protection: Default::default(),
        quic: Default::default(),
        table_size: SLOTS,
        stable,
        canary,
        idle: Vec::new(),
    }
}

fn written(publisher: &Publisher, plan: &ServicePlan) -> Result<Service> {
    let index = publisher.registry.service_index(&plan.key).context("the service has an index")?;
    Ok(publisher.maps.services.read(index))
}

fn own_slots() -> Result<()> {
    let mut publisher = publisher(ROOM)?;
    // So that slot 0 is another service's.
    publisher.publish(&plan(1, pool("stable", &[1]), None), SEED, 0)?;
    let alone = plan(2, pool("stable", &[2]), None);
    publisher.publish(&alone, SEED, 0)?;
    let service = written(&publisher, &alone)?;
    ensure!(service.stable_slots == SLOTS && service.canary_slots == SLOTS, "{service:?}");

    let both = plan(2, pool("stable", &[2]), Some(pool("canary", &[3])));
    publisher.publish(&both, SEED, 0)?;
    let service = written(&publisher, &both)?;
    ensure!(service.stable_slots == SLOTS && service.canary_slots == 2 * SLOTS, "{service:?}");

    // The canary's slots are anybody's from here on.
    publisher.publish(&alone, SEED, 0)?;
    let service = written(&publisher, &alone)?;
    ensure!(service.stable_slots == SLOTS && service.canary_slots == SLOTS, "{service:?}");
    ensure!(service.canary_pool == 0, "{service:?}");
    Ok(())
}

/// A service whose split has settled with everything in the canary, and the plan that promotes it.
fn all_in_the_canary() -> Result<(Publisher, u32, ServicePlan)> {
    let mut publisher = publisher(ROOM)?;
    let before = plan(1, pool("stable", &[1]), Some(pool("canary", &[2])));
    publisher.publish(&before, SEED, 0)?;
    let index = publisher.registry.service_index(&before.key).context("the service has an index")?;
    let word = |offset| publisher.maps.services.word(index, offset);
    word(offset_of!(Service, split)).store(Split::of(Split::ALL, 0).0, Ordering::Release);
    word(offset_of!(Service, split_home)).store(Split::ALL.into(), Ordering::Release);
    let after = ServicePlan { stable: pool("canary", &[2]), canary: Some(pool("stable", &[1])), ..before };
    Ok((publisher, index, after))
}

/// The roles are the new ones, and no two tables share slots.
fn is_promoted(publisher: &mut Publisher, index: u32, after: &ServicePlan) -> Result<()> {
    publisher.publish(after, SEED, 0)?;
    let other = plan(2, pool("stable", &[3]), None);
    publisher.publish(&other, SEED, 0)?;
    let (service, other) = (publisher.maps.services.read(index), written(publisher, &other)?);
    ensure!(service.split == 0 && service.split_home == 0, "{service:?}");
    let mut first = [service.stable_slots, service.canary_slots, other.stable_slots];
    first.sort_unstable();
    ensure!(first == [0, SLOTS, 2 * SLOTS], "{first:?}");
    let backend = publisher.registry.backend_id(index, after.stable.takers[0].0, after.stable.takers[0].1);
    let slot = Slot(publisher.maps.slots.read(service.stable_slots));
    ensure!(Some(slot.home()) == backend, "{slot:?}");
    Ok(())
}

fn half_promoted() -> Result<()> {
    // Before the roles were exchanged, and in the middle of it.
    for half in [false, true] {
        let (publisher, index, after) = all_in_the_canary()?;
        let service = publisher.maps.services.read(index);
        if half {
            let begun =
                Service { stable_slots: service.canary_slots, stable_pool: service.canary_pool, ..service };
            publisher.maps.services.write_from(index, offset_of!(Service, stable_slots), &begun);
        }
        let mut next = Publisher::adopt(Arc::clone(&publisher.maps), 0)?;
        is_promoted(&mut next, index, &after)?;
    }
    Ok(())
}

fn rolled_back_before() -> Result<()> {
    let (publisher, index, after) = all_in_the_canary()?;
    let before = publisher.maps.services.read(index);
    split::roll_back(&publisher.maps.services, &publisher.maps.backends, index, Flows::Keep);
    ensure!(!split::promote(&publisher.maps.services, index), "it ended the rollback");
    let mut next = Publisher::adopt(Arc::clone(&publisher.maps), 0)?;
    match next.publish(&after, SEED, 0) {
        Err(PublishError::NotSettled { pool }) if pool == "canary" => {}
        other => anyhow::bail!("{other:?}"),
    }
    let service = next.maps.services.read(index);
    ensure!((service.stable_pool, service.canary_pool) == (before.stable_pool, before.canary_pool));
    ensure!(service.split().new() == 0 && service.stable_slots == before.stable_slots, "{service:?}");
    Ok(())
}

fn backends_fit() -> Result<()> {
    let mut publisher = publisher(Capacities { backends: 3, ..ROOM })?;
    ensure!(publisher.maps.backend_room() == 3, "room for {}", publisher.maps.backend_room());
    publisher.publish(&plan(1, pool("stable", &[1, 2, 3]), None), SEED, 0)?;
    // Another agent finds all of them.
    let mut publisher = Publisher::adopt(Arc::clone(&publisher.maps), 0)?;
    ensure!(publisher.registry.backend_count() == 3, "{} adopted", publisher.registry.backend_count());
    match publisher.publish(&plan(2, pool("stable", &[4]), None), SEED, 0) {
        Err(PublishError::Full(full)) => {
            let text = full.to_string();
            ensure!(text.contains("no room for more backends") && text.contains("is 3;"), "{text}");
            Ok(())
        }
        other => anyhow::bail!("a fourth backend found room: {other:?}"),
    }
}

fn vlans() -> Result<()> {
    /// A card that is there, and a VLAN device on it that is not.
    const CARD: u32 = 1;
    const DEVICE: u32 = 4000;
    let mut publisher = publisher(ROOM)?;
    let maps = Arc::clone(&publisher.maps);
    // As an agent would have left it that knew nothing of VLANs.
    maps.egress.insert(&DEVICE, &[CARD, 0])?;
    let index = publisher.device(DEVICE, [2, 0, 0, 0, 0, 9], 1400, false)?;
    publisher.device(CARD, [2, 0, 0, 0, 0, 1], 1500, true)?;
    let device = maps.devices.read(index.into());
    ensure!((device.ifindex, device.mtu, device.mac[5]) == (DEVICE, 1400, 9), "{device:?}");
    let tagged =
        |id| Vlan { ifindex: CARD, tags: Tags::NONE.with(ETHERTYPE_VLAN, id).expect("there is room").0 };
    let own = (CARD, Vlan { ifindex: CARD, tags: 0 });
    for wanted in [
        BTreeMap::from([own, (DEVICE, tagged(100))]),
        BTreeMap::from([own, (DEVICE, tagged(200)), (DEVICE + 1, tagged(100))]),
        BTreeMap::from([own, (DEVICE + 1, tagged(100))]),
        BTreeMap::new(),
    ] {
        publisher.vlans(&wanted)?;
        let written: BTreeMap<u32, Vlan> = maps.vlans.entries()?.into_iter().collect();
        ensure!(written == wanted, "{written:?} instead of {wanted:?}");
        ensure!(maps.egress.get(&DEVICE)?.is_none() && maps.egress.get(&CARD)?.is_some(), "EGRESS");
    }
    Ok(())
}

fn put_back() -> Result<()> {
    const CARD: u32 = 1;
    let mut publisher = publisher(ROOM)?;
    let maps = Arc::clone(&publisher.maps);
    let index = publisher.device(CARD, [2, 0, 0, 0, 0, 1], 1500, true)?;
    // As an agent leaves it that ends between the two, and the kernel when the interface leaves the namespace.
    maps.egress.remove(&CARD)?;
    for mut publisher in [Publisher::adopt(Arc::clone(&maps), 0)?, publisher] {
        ensure!(publisher.device(CARD, [2, 0, 0, 0, 0, 1], 1500, true)? == index);
        ensure!(maps.egress.get(&CARD)?.is_some(), "frames still leave by it");
        maps.egress.remove(&CARD)?;
    }
    Ok(())
}

fn devices_fit() -> Result<()> {
    const FIRST: u32 = 4000;
    let mut publisher = publisher(ROOM)?;
    let maps = Arc::clone(&publisher.maps);
    let room = maps.devices.len();
    for ifindex in FIRST..FIRST + room {
        publisher.device(ifindex, [2, 0, 0, 0, 0, 1], 1500, false)?;
    }
    let one = plan(1, pool("stable", &[1]), None);
    // By the element with index 0.
    let named = maps.devices.read(0).ifindex;
    publisher.publish(&one, SEED, 0)?;
    publisher.forget_devices(|_| true);
    let more = publisher.device(FIRST + room, [2; 6], 1500, false);
    ensure!(matches!(more, Err(PublishError::Devices(full)) if full == room), "{more:?}");

    // All are gone but one: its element and the backend's stay.
    let there = FIRST + 7;
    publisher.forget_devices(|ifindex| ifindex == there);
    let kept: Vec<u32> =
        (0..room).map(|index| maps.devices.read(index).ifindex).filter(|&it| it != 0).collect();
    ensure!(kept == [named, there], "{kept:?}");
    // Another agent finds the room.
    let mut publisher = Publisher::adopt(Arc::clone(&maps), 0)?;
    for ifindex in FIRST + room..FIRST + 2 * room - 2 {
        publisher.device(ifindex, [2; 6], 1500, false)?;
    }
    ensure!(publisher.device(FIRST, [2; 6], 1500, false).is_ok() == (named == FIRST));
    publisher.remove(&one.key)?;
    Ok(())
}

fn pools_fit() -> Result<()> {
    let mut publisher = publisher(Capacities { services: 2, ..ROOM })?;
    for service in [1, 2] {
        let (stable, canary) = (pool("stable", &[service]), pool("canary", &[service + 10]));
        publisher.publish(&plan(service, stable, Some(canary)), SEED, 0)?;
    }
    Ok(())
}

fn pools_come_and_go() -> Result<()> {
    let mut publisher = publisher(Capacities { services: 1, ..ROOM })?;
    let mut stable = pool("v0", &[1]);
    for release in 1..=20 {
        let canary = pool(&format!("v{release}"), &[release + 1]);
        publisher.publish(&plan(1, stable.clone(), Some(canary.clone())), SEED, 0)?;
        publisher.publish(&plan(1, stable, None), SEED, 0)?;
        publisher
            .free_backends(&publisher.registry.backends_of(0).filter(|id| *id > 1).collect::<Vec<_>>())?;
        stable = pool("v0", &[1]);
    }
    Ok(())
}

fn idle() -> Result<()> {
    let mut publisher = publisher(ROOM)?;
    let before = plan(1, pool("stable", &[1]), Some(pool("canary", &[2])));
    publisher.publish(&before, SEED, 0)?;
    let mut members = pool("canary", &[2, 9]).members;
    let mut after = ServicePlan { canary: Some(pool("other", &[3])), ..before };
    members[0].next_hop = NextHop::of([2, 0, 0, 0, 0, 77], 0);
    after.idle = vec![IdlePool { name: "canary".to_owned(), members }];
    publisher.publish(&after, SEED, 0)?;
    let id = |publisher: &Publisher, n| {
        publisher.registry.backend_id(0, Address::v4([10, 0, 0, n]), Port::new(8080))
    };
    let old = id(&publisher, 2).context("it may have flows")?;
    ensure!(id(&publisher, 9).is_none(), "who never had any needs no id");
    let backend = publisher.maps.backends.read(old.into());
    ensure!(
        backend.life().is_usable() && backend.next_hop().mac() == Some([2, 0, 0, 0, 0, 77]),
        "{backend:?}"
    );

    after.idle[0].members[0].usable = false;
    publisher.publish(&after, SEED, 0)?;
    let backend = publisher.maps.backends.read(old.into());
    ensure!(!backend.life().is_usable(), "in maintenance it gets no packet at all: {backend:?}");
    Ok(())
}

fn canary_renewed() -> Result<()> {
    let mut publisher = publisher(ROOM)?;
    let before = plan(1, pool("stable", &[1]), Some(pool("canary", &[2])));
    publisher.publish(&before, SEED, 0)?;
    let canary = publisher.maps.services.read(0).canary_pool;
    let split = publisher.maps.services.word(0, offset_of!(Service, split));
    split.store(Split::of(Split::ALL / 10, 0).0, Ordering::Release);
    let busy = ServicePlan { canary: Some(pool("other", &[4])), ..before.clone() };
    ensure!(publisher.publish(&busy, SEED, 0).is_err(), "another pool has to wait");

    let mut next = Publisher::adopt(Arc::clone(&publisher.maps), 0)?;
    let renewed = ServicePlan { canary: Some(pool("canary", &[3])), ..before };
    next.publish(&renewed, SEED, 0)?;
    let service = next.maps.services.read(0);
    ensure!(service.canary_pool == canary && Split(service.split).new() == Split::ALL / 10, "{service:?}");
    let backend =
        next.registry.backend_id(0, Address::v4([10, 0, 0, 3]), Port::new(8080)).context("an id")?;
    let slot = Slot(next.maps.slots.read(service.canary_slots));
    ensure!(slot.new() == backend, "its slots lead to whom it has now: {slot:?}");
    Ok(())
}

const CODEC: Codec = Codec { config: 4, server_id_length: 1, nonce_length: 7, key: Some([1; 16]) };

/// A plan in which every backend is named by its number.
fn named(stable: &[u8], canary: &[u8]) -> ServicePlan {
    let with_names = |name: &str, backends: &[u8]| {
        let mut pool = pool(name, backends);
        for (member, number) in pool.members.iter_mut().zip(backends) {
            member.server_ids = vec![Box::new([*number])];
        }
        pool
    };
    let canary = (!canary.is_empty()).then(|| with_names("canary", canary));
    let quic = QuicPlan { codecs: vec![CODEC], tells_length: false };
    ServicePlan { quic, flags: Service::QUIC, ..plan(1, with_names("stable", stable), canary) }
}

/// Whom an id with this number names, and whether it leads there.
fn name(publisher: &Publisher, number: u8) -> Result<Option<(u16, bool)>> {
    let server = Codec::server_id(&[number]).context("a server id")?;
    let key = ServerKey { service: 0, config: CODEC.config.into(), server };
    let found: Option<Server> = publisher.maps.quic_servers.get(&key)?;
    Ok(found.map(|server| {
        let life = publisher.maps.backends.read(server.backend.into()).life();
        (server.backend, life.is_usable() && life.generation() == server.generation)
    }))
}

fn reset_names() -> Result<()> {
    let mut publisher = publisher(ROOM)?;
    let plan = named(&[1], &[2]);
    publisher.publish(&plan, SEED, 0)?;
    ensure!(
        name(&publisher, 1)? == Some((1, true)) && name(&publisher, 2)?.is_none(),
        "nobody is in the canary"
    );
    let half = split::share(50.0);
    ensure!(publisher.set_split(0, Split::default(), half, 0));
    ensure!(name(&publisher, 2)? == Some((2, true)), "it is open");

    // Whoever keeps flows keeps ids.
    split::roll_back(&publisher.maps.services, &publisher.maps.backends, 0, Flows::Keep);
    publisher.publish(&plan, SEED, 0)?;
    ensure!(name(&publisher, 2)? == Some((2, true)));
    split::roll_back(&publisher.maps.services, &publisher.maps.backends, 0, Flows::Reset);
    ensure!(name(&publisher, 2)? == Some((2, false)) && name(&publisher, 1)? == Some((1, true)));
    publisher.publish(&plan, SEED, 0)?;
    // Another agent knows no more than the maps.
    let mut publisher = Publisher::adopt(Arc::clone(&publisher.maps), 0)?;
    publisher.publish(&plan, SEED, 0)?;
    ensure!(name(&publisher, 2)? == Some((2, false)), "a comparison of tables brought it back");

    let now = publisher.maps.services.read(0).split();
    ensure!(publisher.set_split(0, now, half, 0));
    ensure!(name(&publisher, 2)? == Some((2, true)), "it is open again");
    Ok(())
}

fn names_follow() -> Result<()> {
    let mut publisher = publisher(ROOM)?;
    publisher.publish(&named(&[1, 2], &[]), SEED, 0)?;
    ensure!(name(&publisher, 1)? == Some((1, true)) && name(&publisher, 2)? == Some((2, true)));
    // Out and in again: it is another life, and the same backend.
    let mut out = named(&[1, 2], &[]);
    out.stable.members[0].usable = false;
    publisher.publish(&out, SEED, 0)?;
    ensure!(name(&publisher, 1)? == Some((1, false)));
    publisher.publish(&named(&[1, 2], &[]), SEED, 0)?;
    ensure!(name(&publisher, 1)? == Some((1, true)));
    // Another name, and the one of before is free.
    let mut renamed = named(&[1, 2], &[]);
    renamed.stable.members[0].server_ids = vec![Box::new([9])];
    publisher.publish(&renamed, SEED, 0)?;
    ensure!(name(&publisher, 1)?.is_none() && name(&publisher, 9)? == Some((1, true)));
    // Who is no member any more keeps its connections for as long as it has its id.
    publisher.publish(&named(&[2], &[]), SEED, 0)?;
    ensure!(name(&publisher, 9)? == Some((1, true)));
    publisher.free_backends(&[1])?;
    ensure!(name(&publisher, 9)?.is_none());
    // A service that reads no ids, and one that is gone.
    publisher.publish(&plan(1, pool("stable", &[2]), None), SEED, 0)?;
    ensure!(publisher.maps.quic_servers.count()? + publisher.maps.quic_configs.count()? == 0);
    publisher.publish(&named(&[2], &[]), SEED, 0)?;
    ensure!(publisher.maps.quic_servers.count()? == 1 && publisher.maps.quic_configs.count()? == 1);
    publisher.remove(&named(&[2], &[]).key)?;
    ensure!(publisher.maps.quic_servers.count()? + publisher.maps.quic_configs.count()? == 0);
    Ok(())
}

fn protected() -> Result<()> {
    let nets = |list: &[&str]| -> Result<Vec<_>> { list.iter().map(|text| Ok(text.parse()?)).collect() };
    let kernel = Kernel::load(ROOM)?;
    let mut publisher = Publisher::adopt(Arc::clone(&kernel.maps), 0)?;
    let rates = Guard { packets: Rate::per_second(1000, 10), ..Guard::default() };
    let mut one = plan(1, pool("stable", &[1]), None);
    one.protection = Protection { allow: nets(&["10.0.0.0/8"])?, deny: nets(&["10.9.0.0/16"])?, rates };
    publisher.publish(&one, SEED, 0)?;
    let index = publisher.registry.service_index(&one.key).context("the service has an index")?;
    let service = written(&publisher, &one)?;
    let guard = kernel.maps.guards.read(index);
    ensure!(service.has(Service::GUARDED) && guard.rules == 1 && guard.packets == rates.packets, "{guard:?}");
    let vip = one.key.address;
    let owner = |expected: Option<u32>| -> Result<()> {
        let owner = kernel.maps.vip_rules.get(&vip)?;
        ensure!(owner == expected, "{owner:?} instead of {expected:?}");
        Ok(())
    };
    // All others, two networks; and the same for the host.
    owner(Some(HOST | index))?;
    ensure!(kernel.maps.rules.keys()?.len() == 6, "{:?}", kernel.maps.rules.keys()?);
    let client = |address: [u8; 4]| std::net::IpAddr::from(address).into();
    for (address, rule) in
        [([10, 1, 1, 1], Rule::Allowed), ([10, 9, 1, 1], Rule::Denied), ([192, 0, 2, 1], Rule::NotAllowed)]
    {
        let found = publisher.rule_of(index, client(address));
        ensure!(found.is_some_and(|(_, found)| found == rule), "{address:?}: {found:?}");
    }

    // What packets have counted stays, and so does what does not change.
    kernel.maps.guards.word(index, 0).store(7, Ordering::Release);
    let mut publisher = Publisher::adopt(Arc::clone(&kernel.maps), 0)?;
    ensure!(!publisher.publish(&one, SEED, 0)?.changed, "nothing has changed");
    ensure!(kernel.maps.guards.read(index).connections_due == 7);

    // Another service of the same VIP that everybody may talk to.
    let mut other = plan(1, pool("stable", &[2]), None);
    other.key.port = Port::new(443);
    publisher.publish(&other, SEED, 0)?;
    owner(Some(0))?;
    ensure!(kernel.maps.rules.keys()?.len() == 3, "{:?}", kernel.maps.rules.keys()?);
    publisher.remove(&other.key)?;
    owner(Some(HOST | index))?;

    one.protection = Protection::default();
    publisher.publish(&one, SEED, 0)?;
    ensure!(!written(&publisher, &one)?.has(Service::GUARDED) && kernel.maps.rules.keys()?.is_empty());
    owner(Some(0))?;
    one.protection.deny = nets(&["10.9.0.0/16"])?;
    publisher.publish(&one, SEED, 0)?;
    publisher.remove(&one.key)?;
    owner(None)?;
    ensure!(kernel.maps.rules.keys()?.is_empty() && kernel.maps.guards.read(index).rules == 0);
    Ok(())
}
