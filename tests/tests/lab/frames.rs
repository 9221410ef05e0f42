//! Frames by hand, test runs, and the generator.

use std::{
    collections::HashSet,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_tests::{
    Family, Host, Lab, Sources, Topology,
    bpf::{XdpMode, attach_xdp},
    claim,
    decapsulator::Decapsulator,
    packets::{Frame, RawSocket, Received, Tcp, Udp, verify},
    programs::{self, Spray},
    test_run::{Action, LiveFrames, TestRun},
    traffic::{Load, LoadSpec, Server, ServerSpec},
};
use libtest_mimic::Trial;

pub fn claims() -> Vec<Trial> {
    vec![
        claim("what a host sends has right checksums on the wire", wire_has_checksums),
        claim("a frame arrives as it was sent, tags included", frames_arrive_unchanged),
        claim("a test run returns verdict, frame and time", test_run),
        claim("a test run can say where a frame came in", test_run_arrival),
        claim("a program that does not verify is refused with the verifier's words", refused),
        claim("a frame that XDP transmits on a veth gets back", xdp_transmits),
        claim("live frames reach the other side", live_frames),
        claim("sprayed frames are different flows with right checksums", sprayed),
        claim("tunnels are taken apart in every mix of families", tunnels),
    ]
}

const SOON: Duration = Duration::from_secs(2);

fn wire_has_checksums() -> Result<()> {
    let lab = Lab::builder().topology(Topology::Routed).build()?;
    let backend = lab.backend(0);
    let _tcp = Server::start(backend, ServerSpec::lines("b0", 7000))?;
    let _udp = Server::start(backend, ServerSpec::udp("b0", 7000))?;
    let balancer = lab.balancer();
    let sockets = [balancer.port(), balancer.back_port()].map(|port| RawSocket::open(balancer, &port.name));
    for family in Family::ALL {
        let target = (backend.ip(family), 7000).into();
        for spec in [LoadSpec::lines(target), LoadSpec::udp(target)] {
            let tally = Load::run(lab.client(0), spec.from(Sources::crowd(20)).flows(20))?;
            ensure!(tally.answered_by("b0") == 20, "{tally:?}");
        }
    }
    for socket in sockets {
        let (socket, mut tcp, mut udp) = (socket?, 0, 0);
        while let Some(seen) = socket.receive(Duration::from_millis(200), |_| true)? {
            ensure!(!seen.partial_checksum, "{seen:?}");
            let verified = verify(&seen.frame).with_context(|| format!("{:02x?}", seen.frame))?;
            tcp += verified.tcp;
            udp += verified.udp;
        }
        // Both families: 20 handshakes of at least 6 segments, and 20 exchanges.
        ensure!(tcp >= 2 * 20 * 6 && udp == 2 * 20 * 2, "only {tcp} segments, {udp} datagrams");
    }
    Ok(())
}

fn datagram(from: &Host, to: &Host, family: Family) -> Frame {
    Frame::ethernet(from.mac(), to.mac())
        .ip(from.ip(family), to.ip(family))
        .udp(Udp::new(1000, 2000))
        .payload(b"by hand!")
}

fn frames_arrive_unchanged() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (client, backend) = (lab.client(0), lab.backend(0));
    let sender = RawSocket::open(client, "eth0")?;
    let receiver = RawSocket::open(backend, "eth0")?;
    let base = Frame::ethernet(client.mac(), backend.mac());
    for outside in [base.clone(), base.clone().vlan(7), base.service_vlan(5).vlan(7)] {
        for family in Family::ALL {
            let frame = outside
                .clone()
                .ip(client.ip(family), backend.ip(family))
                .udp(Udp::new(1000, 2000))
                .payload(b"by hand!")
                .build();
            sender.send(&frame)?;
            let arrived = receiver.receive(SOON, |seen| seen.frame == frame)?;
            ensure!(arrived.is_some_and(|seen| !seen.outgoing), "lost: {frame:02x?}");
        }
    }
    ensure!(receiver.receive(Duration::from_millis(50), |seen| seen.frame.is_empty())?.is_none());
    Ok(())
}

fn test_run() -> Result<()> {
    let lab = Lab::builder().build()?;
    let frame = datagram(lab.client(0), lab.backend(0), Family::V4).build();
    for (number, action) in [(0, Action::Aborted), (2, Action::Pass), (3, Action::Transmit)] {
        let program = programs::returning(number)?;
        let outcome = TestRun::new(program.as_fd(), &frame).repeat(100_000).run()?;
        ensure!(outcome.action == action, "{:?}", outcome.action);
        ensure!(outcome.frame == frame);
        ensure!(outcome.duration < Duration::from_micros(100), "of one, not of all: {:?}", outcome.duration);
    }
    let odd = programs::returning(77)?;
    ensure!(TestRun::new(odd.as_fd(), &frame).run()?.action == Action::Unknown(77));
    ensure!(TestRun::new(odd.as_fd(), &frame[..13]).run().is_err(), "no Ethernet header fits");
    Ok(())
}

fn test_run_arrival() -> Result<()> {
    let lab = Lab::builder().build()?;
    let balancer = lab.balancer();
    let interface = balancer.port().index;
    let program = programs::reporting_interface()?;
    let _link = attach_xdp(balancer, interface, &program, XdpMode::Native)?;
    let frame = datagram(lab.client(0), lab.backend(0), Family::V6).build();
    let run = TestRun::new(program.as_fd(), &frame).arriving_on(interface, 0);
    let outcome = balancer.run(|| run.run())?;
    ensure!(outcome.action == Action::from(interface), "{:?}", outcome.action);
    Ok(())
}

fn refused() -> Result<()> {
    const EXIT: u64 = 0x95;
    let error = lb_tests::bpf::load_xdp("unset", &[EXIT]).unwrap_err().to_string();
    ensure!(error.contains("R0 !read_ok"), "{error}");
    Ok(())
}

fn xdp_transmits() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (client, balancer) = (lab.client(0), lab.balancer());
    let program = programs::returning(3)?;
    let _link = attach_xdp(balancer, balancer.port().index, &program, XdpMode::Native)?;
    let socket = RawSocket::open(client, "eth0")?;
    // For everybody, so that the bridge sends it back to where it came from as well.
    let mut frame = datagram(client, balancer, Family::V4).build();
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&lab.backend(0).mac().0);
    socket.send(&frame)?;
    let back = socket.receive(SOON, |seen| seen.frame == frame && !seen.outgoing)?;
    ensure!(back.is_some(), "the frame did not come back");
    Ok(())
}

/// Live frames leave the client's interface, as if the client had sent them.
fn live_frames() -> Result<()> {
    const COUNT: u32 = 200_000;
    let lab = Lab::builder().build()?;
    let (client, balancer) = (lab.client(0), lab.balancer());
    let dropping = programs::returning(1)?;
    let _link = attach_xdp(balancer, balancer.port().index, &dropping, XdpMode::Native)?;
    let program = programs::redirecting(client.port().index)?;
    let frame = datagram(client, balancer, Family::V4).build();
    let before = balancer.received_frames("eth0")?;
    let begun = Instant::now();
    client.run(|| LiveFrames::new(program.as_fd(), &frame, COUNT).send())?;
    let took = begun.elapsed();
    let arrived = || -> Result<u64> { Ok(balancer.received_frames("eth0")? - before) };
    let deadline = Instant::now() + SOON;
    while arrived()? < u64::from(COUNT) / 2 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let arrived = arrived()?;
    // Rings of 256 overflow on a machine with few cores; most have to get across.
    ensure!(arrived >= u64::from(COUNT) / 2, "only {arrived} of {COUNT} in {took:?}");
    Ok(())
}

fn sprayed() -> Result<()> {
    let lab = Lab::builder().build()?;
    let (client, balancer) = (lab.client(0), lab.balancer());
    let source = client.crowd().member(0, Family::V4);
    let base = Frame::ethernet(client.mac(), balancer.mac()).ip(source, balancer.v4().into());
    for (spray, frame) in [
        (Spray::Tcp, base.clone().tcp(Tcp::new(0, 7001).syn())),
        (Spray::Udp, base.udp(Udp::new(0, 7001)).payload(b"0123456789")),
    ] {
        let mut frame = frame.build();
        programs::spray_template(spray, &mut frame);
        verify(&frame)?;
        let program = programs::spraying(spray, client.port().index)?;
        let receiver = RawSocket::open(balancer, "eth0")?;
        client.run(|| LiveFrames::new(program.as_fd(), &frame, 500).batch(50).send())?;
        let wanted = |seen: &Received| !seen.outgoing && seen.frame.get(36..38) == Some(&[0x1b, 0x59]);
        let (mut flows, mut frames) = (HashSet::new(), 0);
        while let Some(seen) = receiver.receive(Duration::from_millis(200), wanted)? {
            let verified = verify(&seen.frame).with_context(|| format!("{:02x?}", seen.frame))?;
            ensure!(verified.tcp + verified.udp == 1);
            let port = u16::from_be_bytes([seen.frame[34], seen.frame[35]]);
            ensure!(port >= 1024, "port {port}");
            flows.insert(seen.frame[28..36].to_vec());
            frames += 1;
        }
        ensure!(frames >= 400, "{spray:?}: only {frames} frames arrived");
        ensure!(flows.len() + 3 >= frames, "{} flows in {frames} frames", flows.len());
    }
    Ok(())
}

fn tunnels() -> Result<()> {
    let lab = Lab::builder().build()?;
    lab.reply_directly()?;
    let (client, backend) = (lab.client(0), lab.backend(0));
    let tunnel = Decapsulator::start(backend)?;
    let _server = Server::start(backend, ServerSpec::udp("b0", 7000))?;
    let socket = RawSocket::open(client, "eth0")?;
    for inner in Family::ALL {
        let vip = lab.vip(0, inner);
        backend.hold_vip(vip)?;
        for (port, outer) in [(4001, Family::V4), (4002, Family::V6)] {
            let frame = Frame::ethernet(client.mac(), backend.mac())
                .ip(lab.balancer().ip(outer), backend.ip(outer))
                .ip(client.ip(inner), vip)
                .udp(Udp::new(port, 7000))
                .payload(b"hello")
                .build();
            socket.send(&frame)?;
            let answer = socket.receive(SOON, |seen| !seen.outgoing && seen.frame.ends_with(b"b0 hello"))?;
            let answer = answer.with_context(|| format!("{inner:?} in {outer:?}: no answer"))?;
            ensure!(verify(&answer.frame)?.udp == 1);
        }
    }
    ensure!(tunnel.packets() == 4, "{} packets", tunnel.packets());
    Ok(())
}
