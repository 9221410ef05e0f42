//! What publishing writes into the maps, where only the maps show it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use lb_common::abi::{Mode, NextHop, OnEmpty, Port, Service, VipKey};
use lb_common::guard::{Guard, HOST, Rate, Rule};
use lb_common::wire::IPPROTO_TCP;
use lb_tests::claim;
use lb_userspace::dataplane::Capacities;
use lb_userspace::publish::{Member, PoolPlan, Protection, PublishError, Publisher, ServicePlan};
use libtest_mimic::Trial;

use crate::kernel::{Kernel, ROOM};

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a service without a canary points at no slots but its own", own_slots),
        claim("as many backends fit as the configuration says", backends_fit),
        claim("two pools fit for each service that the configuration says", pools_fit),
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
        table_size: SLOTS,
        stable,
        canary,
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

fn pools_fit() -> Result<()> {
    let mut publisher = publisher(Capacities { services: 2, ..ROOM })?;
    for service in [1, 2] {
        let (stable, canary) = (pool("stable", &[service]), pool("canary", &[service + 10]));
        publisher.publish(&plan(service, stable, Some(canary)), SEED, 0)?;
    }
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
    kernel.maps.guards.word(index, 0).store(7, std::sync::atomic::Ordering::Release);
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
