//! Hosts reach each other as the kernel routes.

use std::{process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    Crowd, Family, Lab, Sources, Topology, claim,
    packets::{Frame, RawSocket, Udp, verify},
    traffic::{Load, LoadSpec, Server, ServerSpec},
};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("a client reaches every backend in each topology and family", everyone_is_reached),
        claim("replies to clients pass the balancer", replies_pass_the_balancer),
        claim("replies go directly when told to", replies_go_directly),
        claim("a VIP on the loopback is served and not answered for", vip_is_served_silently),
        claim("a pulled cable silences a host, and a replugged one brings it back", cable),
        claim("a crowd's members are all different", crowd_members_differ),
        claim("two labs with the same addresses do not see each other", two_labs),
        claim("jumbo frames cross a lab that has room for them", jumbo_frames),
    ]
}

fn everyone_is_reached() -> Result<()> {
    for topology in [Topology::OneLan, Topology::Routed] {
        let builder = Lab::builder().topology(topology).clients(2).backends(3);
        for builder in [builder, builder.without_xdp()] {
            reach_everyone(&builder.build()?).with_context(|| format!("{builder:?}"))?;
        }
    }
    Ok(())
}

fn reach_everyone(lab: &Lab) -> Result<()> {
    for (number, backend) in lab.backends().iter().enumerate() {
        let name = format!("b{number}");
        let _server = Server::start(backend, ServerSpec::lines(&name, 7000))?;
        for family in Family::ALL {
            let target = (backend.ip(family), 7000).into();
            for client in lab.clients() {
                for sources in [Sources::Own, Sources::crowd(20)] {
                    let spec = LoadSpec::lines(target).from(sources).flows(20);
                    let tally = Load::run(client, spec)?;
                    ensure!(tally.answered_by(&name) == 20, "{sources:?}: {tally:?}");
                }
            }
        }
    }
    Ok(())
}

fn forwarded(lab: &Lab, family: Family) -> Result<u64> {
    let backend = lab.backend(0);
    let _server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let counter = |lab: &Lab| -> Result<u64> {
        let mut command = Command::new("cat");
        command.args(["/proc/thread-self/net/snmp", "/proc/thread-self/net/snmp6"]);
        let text = String::from_utf8(lab.balancer().output(command)?.stdout)?;
        Ok(match family {
            Family::V4 => forwarded_v4(&text),
            Family::V6 => forwarded_v6(&text),
        })
    };
    let before = counter(lab)?;
    for sources in [Sources::Own, Sources::crowd(10)] {
        let target = (backend.ip(family), 7000).into();
        let tally = Load::run(lab.client(0), LoadSpec::lines(target).from(sources).flows(10))?;
        ensure!(tally.answered_by("b0") == 10, "{tally:?}");
    }
    Ok(counter(lab)? - before)
}

/// The third field of the `Ip:` line is `ForwDatagrams`' column, found by its name.
fn forwarded_v4(text: &str) -> u64 {
    let mut lines = text.lines().filter(|line| line.starts_with("Ip:"));
    let (Some(names), Some(values)) = (lines.next(), lines.next()) else {
        return 0;
    };
    let column = names.split_whitespace().position(|name| name == "ForwDatagrams");
    column.and_then(|at| values.split_whitespace().nth(at)?.parse().ok()).unwrap_or(0)
}

fn forwarded_v6(text: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix("Ip6OutForwDatagrams"))
        .and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

fn replies_pass_the_balancer() -> Result<()> {
    for family in Family::ALL {
        let lab = Lab::builder().build()?;
        let packets = forwarded(&lab, family)?;
        // A SYN-ACK, an answer and a FIN for each of 20 flows at least.
        ensure!(packets >= 60, "{family:?}: only {packets} packets were forwarded");
    }
    Ok(())
}

fn replies_go_directly() -> Result<()> {
    for family in Family::ALL {
        let lab = Lab::builder().build()?;
        lab.reply_directly()?;
        ensure!(forwarded(&lab, family)? == 0, "{family:?}: the balancer forwarded something");
        // Requests pass it all the same where it is a router: a SYN-ACK, an answer and a FIN for each of 20 flows do not.
        let routed = || Lab::builder().topology(Topology::Routed).build();
        let all = forwarded(&routed()?, family)?;
        let lab = routed()?;
        lab.reply_directly()?;
        let requests = forwarded(&lab, family)?;
        ensure!(requests > 0 && requests + 60 <= all, "{family:?}: {requests} of {all} packets");
    }
    let two = Lab::builder().topology(Topology::Routed).clients(2).build()?;
    ensure!(two.reply_directly().is_err(), "a cable leads to one client");
    Ok(())
}

fn vip_is_served_silently() -> Result<()> {
    for family in Family::ALL {
        let lab = Lab::builder().build()?;
        let (client, backend, vip) = (lab.client(0), lab.backend(0), lab.vip(0, family));
        backend.hold_vip(vip)?;
        lab.reply_directly()?;
        let _server = Server::start(backend, ServerSpec::lines("b0", 7000))?;
        let spec = LoadSpec::lines((vip, 7000).into()).timeout(Duration::from_millis(300)).flows(1);
        let unanswered = Load::run(client, spec.clone())?;
        ensure!(unanswered.failed() == 1, "somebody answered for the VIP: {unanswered:?}");

        // The packets that DSR would bring: for the VIP, to this backend's hardware address.
        client.route(ipnet::IpNet::from(vip), backend.ip(family))?;
        let answered = Load::run(client, spec.clone())?;
        ensure!(answered.answered_by("b0") == 1, "{family:?}: {answered:?}");

        backend.release_vip(vip)?;
        let gone = Load::run(client, spec)?;
        ensure!(gone.failed() == 1, "{family:?}: {gone:?}");
    }
    Ok(())
}

fn cable() -> Result<()> {
    let lab = Lab::builder().topology(Topology::Routed).build()?;
    let backend = lab.backend(0);
    let _server = Server::start(backend, ServerSpec::http("b0", 8080))?;
    for family in Family::ALL {
        let target = (backend.ip(family), 8080).into();
        let spec = LoadSpec::http(target, "/").timeout(Duration::from_millis(500)).flows(2);
        let reached =
            || Load::run(lab.client(0), spec.clone()).is_ok_and(|tally| tally.answered_by("b0") == 2);
        // Neighbours that were given up on are asked for again after a moment.
        let eventually_reached = || {
            (0..50).any(|_| {
                thread::sleep(Duration::from_millis(50));
                reached()
            })
        };
        ensure!(reached(), "{family:?}: the host was not there");
        backend.pull_cable()?;
        ensure!(!reached(), "{family:?}: the host is still there");
        backend.replug_cable()?;
        ensure!(eventually_reached(), "{family:?}: the host did not come back");
    }
    Ok(())
}

fn crowd_members_differ() -> Result<()> {
    let lab = Lab::builder().clients(2).backends(0).build()?;
    let (one, other) = (lab.client(0).crowd(), lab.client(1).crowd());
    for family in Family::ALL {
        let last = one.member(Crowd::SIZE - 1, family);
        ensure!(last < other.member(0, family), "the crowds overlap");
        ensure!(one.member(0, family) != one.member(1, family));
    }
    Ok(())
}

fn two_labs() -> Result<()> {
    let one_lab = |name: &'static str| -> Result<()> {
        let lab = Lab::builder().backends(1).build()?;
        let backend = lab.backend(0);
        let server = Server::start(backend, ServerSpec::lines(name, 7000))?;
        let spec = LoadSpec::lines((backend.v4(), 7000).into()).from(Sources::crowd(2_000));
        let tally = Load::run(lab.client(0), spec.flows(2_000))?;
        ensure!(tally.answered_by(name) == 2_000, "{tally:?}");
        ensure!(server.counts()?.accepted == 2_000);
        Ok(())
    };
    thread::scope(|scope| {
        let labs = ["one", "two"].map(|name| scope.spawn(move || one_lab(name)));
        labs.into_iter()
            .try_for_each(|lab| lab.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn jumbo_frames() -> Result<()> {
    const MTU: usize = 9_000;
    let lab = Lab::builder().topology(Topology::Routed).mtu(MTU as u32).build()?;
    let (client, backend) = (lab.client(0), lab.backend(0));
    let receiver = RawSocket::open(backend, "eth0")?;
    let sender = RawSocket::open(client, "eth0")?;
    for (family, headers) in [(Family::V4, 28), (Family::V6, 48)] {
        let payload: Vec<u8> = (0..MTU - headers).map(|byte| byte as u8).collect();
        // The balancer routes it.
        let frame = Frame::ethernet(client.mac(), lab.balancer().mac())
            .ip(client.ip(family), backend.ip(family))
            .udp(Udp::new(1, 2))
            .payload(&payload)
            .build();
        sender.send(&frame)?;
        let arrived = receiver.receive(Duration::from_secs(2), |seen| seen.frame.ends_with(&payload))?;
        let arrived = arrived.with_context(|| format!("{family:?}: lost"))?;
        ensure!(verify(&arrived.frame)?.udp == 1);
    }
    Ok(())
}
