//! Servers and clients count what happens.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use lb_tests::{
    Family, Lab, Sources, Topology, claim,
    traffic::{Behaviour, Load, LoadSpec, Pool, PoolSpec, Server, ServerSpec, Tally},
};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("client and server count the same", both_sides_agree),
        claim("flow n comes from source n", homes_follow_sources),
        claim("HTTP connections are kept alive and counted", http_keeps_alive),
        claim("the health of a server is switched at run time", health_is_switched),
        claim("datagrams are answered from the address they were sent to", udp),
        claim("each way of misbehaving is told apart", misbehaviour_is_told_apart),
        claim("a behaviour is in force when the call returns", behaviour_is_in_force),
        claim("a load keeps its rate, and tells about new flows only", load_keeps_its_rate),
        claim("10 000 connections are held, and a dead server breaks its own only", big_pool),
        claim("a pool sees a connection that its server stops answering", pool_sees_silence),
    ]
}

fn both_sides_agree() -> Result<()> {
    let lab = Lab::builder().topology(Topology::Routed).build()?;
    for family in Family::ALL {
        let backend = lab.backend(0);
        let server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
        let target = (backend.ip(family), 7000).into();
        let spec = LoadSpec::lines(target).from(Sources::crowd(500)).flows(1_500);
        let tally = Load::run(lab.client(0), spec)?;
        ensure!((tally.flows, tally.answers, tally.answered_by("b0")) == (1_500, 1_500, 1_500));
        let counts = server.counts()?;
        ensure!((counts.accepted, counts.answers, counts.clients) == (1_500, 1_500, 500));
        ensure!(counts.bytes_in == 1_500 * "hello\n".len() as u64, "{counts:?}");
        ensure!(counts.bytes_out == 1_500 * "b0 hello\n".len() as u64, "{counts:?}");
        ensure!(tally.latency.median <= tally.latency.p99);
        ensure!(tally.latency.max > Duration::ZERO);
    }
    Ok(())
}

fn homes_follow_sources() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let spec = LoadSpec::lines((backend.v4(), 7000).into()).from(Sources::crowd(300)).flows(300);
    let tally = Load::run(lab.client(0), spec)?;
    ensure!((0..300).all(|number| tally.home_of(number) == Some("b0")));
    ensure!(tally.home_of(300).is_none());
    ensure!(server.counts()?.clients == 300);
    Ok(())
}

fn http_keeps_alive() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::http("b0", 8080))?;
    let spec = LoadSpec::http((backend.v6(), 8080).into(), "/any").requests_per_connection(10);
    let tally = Load::run(lab.client(0), spec.flows(50))?;
    ensure!((tally.answered_by("b0"), tally.answers) == (50, 500), "{tally:?}");
    let counts = server.counts()?;
    ensure!((counts.accepted, counts.answers, counts.health_checks) == (50, 500, 0));
    Ok(())
}

fn health_is_switched() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::http("b0", 8080))?;
    let check = || -> Result<Tally> {
        let spec = LoadSpec::http((backend.v4(), 8080).into(), "/healthz");
        Load::run(lab.client(0), spec.flows(5))
    };
    ensure!(check()?.answered_by("b0") == 5);
    server.set_health(503)?;
    ensure!(check()?.failed.get("status 503") == Some(&5));
    server.set_health(204)?;
    ensure!(check()?.answered_by("b0") == 5);
    ensure!(server.counts()?.health_checks == 15);
    Ok(())
}

fn udp() -> Result<()> {
    let lab = Lab::builder().build()?;
    lab.reply_directly()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::udp("b0", 5300))?;
    let mut sent = 0;
    for family in Family::ALL {
        let vip = lab.vip(0, family);
        backend.hold_vip(vip)?;
        lab.client(0).route(ipnet::IpNet::from(vip), backend.ip(family))?;
        for address in [backend.ip(family), vip] {
            let spec = LoadSpec::udp((address, 5300).into()).from(Sources::crowd(200)).flows(400);
            let tally = Load::run(lab.client(0), spec)?;
            ensure!(tally.answered_by("b0") == 400, "{address}: {tally:?}");
            sent += 400;
        }
    }
    let counts = server.counts()?;
    ensure!((counts.answers, counts.clients) == (sent, 400), "{counts:?}");
    Ok(())
}

fn misbehaviour_is_told_apart() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let lines = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let http = Server::start(backend, ServerSpec::http("b0", 8080))?;
    for (behaviour, words) in [
        (Behaviour::Refuse, "refused"),
        (Behaviour::Reset, "reset"),
        (Behaviour::Close, "closed"),
        (Behaviour::Hang, "timeout"),
    ] {
        lines.behave(behaviour)?;
        http.behave(behaviour)?;
        for spec in
            [LoadSpec::lines((backend.v4(), 7000).into()), LoadSpec::http((backend.v6(), 8080).into(), "/")]
        {
            let spec = spec.timeout(Duration::from_millis(300)).flows(20);
            let tally = Load::run(lab.client(0), spec)?;
            // A server that closes with the request unread resets; both are right for "close".
            let seen = match behaviour {
                Behaviour::Close => tally.failed(),
                _ => tally.failed.get(words).copied().unwrap_or(0),
            };
            ensure!(seen == 20 && tally.answered() == 0, "{behaviour:?}: {tally:?}");
        }
    }
    Ok(())
}

fn behaviour_is_in_force() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    for (server, spec) in [
        (ServerSpec::lines("b0", 7000), LoadSpec::lines as fn(SocketAddr) -> LoadSpec),
        (ServerSpec::udp("b0", 7000), LoadSpec::udp),
    ] {
        let server = Server::start(backend, server.behaving(Behaviour::Refuse))?;
        let once = || -> Result<Tally> {
            let spec = spec((backend.v4(), 7000).into());
            Load::run(lab.client(0), spec.timeout(Duration::from_millis(500)).flows(1))
        };
        for _ in 0..5 {
            let refused = once()?;
            ensure!(refused.failed.get("refused") == Some(&1), "{refused:?}");
            server.behave(Behaviour::Serve)?;
            ensure!(once()?.answered_by("b0") == 1);
            server.behave(Behaviour::Delay(Duration::from_millis(50)))?;
            ensure!(once()?.latency.max >= Duration::from_millis(50));
            server.behave(Behaviour::Refuse)?;
        }
    }
    Ok(())
}

fn load_keeps_its_rate() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let spec = LoadSpec::lines((backend.v4(), 7000).into()).from(Sources::crowd(100)).rate(500.0);
    let load = Load::start(lab.client(0), spec)?;
    std::thread::sleep(Duration::from_millis(500));
    let first = load.tally()?;
    std::thread::sleep(Duration::from_secs(1));
    let both = load.tally()?;
    // What a stall has held up may be caught up on, so the rate counts from the start.
    ensure!((250.0..=510.0).contains(&both.rate()), "{} flows a second", both.rate());
    let second = both.since(&first);
    ensure!(second.flows == both.flows - first.flows && second.flows > 0);
    server.behave(Behaviour::Refuse)?;
    let before = load.tally()?;
    std::thread::sleep(Duration::from_millis(200));
    let after = load.stop()?.since(&before);
    ensure!(after.failed() >= 50 && after.answered() <= 64, "{after:?}");
    Ok(())
}

fn big_pool() -> Result<()> {
    let lab = Lab::builder().topology(Topology::Routed).clients(1).backends(2).build()?;
    let servers = [0, 1]
        .map(|number| Server::start(lab.backend(number), ServerSpec::lines(&format!("b{number}"), 7000)));
    let [large, small] = servers;
    let (large, small) = (large?, small?);
    let begun = Instant::now();
    let open = |number: usize, connections| {
        let spec = PoolSpec::new((lab.backend(number).v4(), 7000).into(), connections);
        Pool::open(lab.client(0), spec.from(Sources::crowd(1_000)))
    };
    let (big, other) = (open(0, 10_000)?, open(1, 100)?);
    let report = big.check()?;
    ensure!(report.alive_on("b0") == 10_000 && report.broken.is_empty(), "{:?}", report.alive);
    // The first line, and that of the check.
    ensure!(report.answers >= 20_000);
    let counts = large.counts()?;
    ensure!((counts.accepted, counts.open, counts.clients) == (10_000, 10_000, 1_000));
    let checked = begun.elapsed();
    ensure!(checked < Duration::from_secs(60), "that took {checked:?}");

    small.kill9();
    let broken = other.check()?;
    ensure!((broken.alive(), broken.broken.len()) == (0, 100), "{broken:?}");
    ensure!(broken.broken.iter().all(|one| one.server.as_deref() == Some("b1")));
    let intact = big.check()?;
    ensure!(intact.alive() == 10_000, "{} are left", intact.alive());
    Ok(())
}

fn pool_sees_silence() -> Result<()> {
    let lab = Lab::builder().build()?;
    let backend = lab.backend(0);
    let server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let spec = PoolSpec::new((backend.v6(), 7000).into(), 10)
        .interval(Duration::from_millis(50))
        .timeout(Duration::from_secs(2));
    let pool = Pool::open(lab.client(0), spec)?;
    let report = pool.check()?;
    ensure!(report.alive_on("b0") == 10, "{report:?}");
    server.behave(Behaviour::Hang)?;
    let report = pool.check()?;
    ensure!(report.alive() == 0);
    ensure!(report.broken.iter().all(|one| one.why == "timeout"), "{report:?}");
    ensure!(report.broken.iter().all(|one| one.source.is_some()));
    // The report stays after the last connection is gone.
    ensure!(pool.report()?.broken.len() == 10);
    Ok(())
}
