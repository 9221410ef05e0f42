//! Paths that take less than the interfaces: large transfers find out, and large datagrams arrive in pieces.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use lb_common::verdict::Reason;
use lb_tests::scene::{PORT, Plan, Scene};
use lb_tests::{Family, Host, Lab, Mac, Namespace, Topology, VethEnd, claim, private_dir};
use lb_userspace::dataplane::maps::{Maps, directory};
use libtest_mimic::Trial;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMetric};

pub fn claims() -> Vec<Trial> {
    use Family::{V4, V6};
    let mut claims = Vec::new();
    for (mode, family, inner) in [
        ("nat", V4, V4),
        ("nat", V6, V6),
        ("dsr-l2", V4, V4),
        ("dsr-ipip", V6, V4),
        ("dsr-gue", V4, V6),
        ("full-nat", V4, V4),
        ("full-nat", V6, V6),
    ] {
        let name = format!("megabytes go both ways over a {family:?} path of 1300 bytes in {mode}");
        claims.push(claim(&name, move || far_away(mode, family, inner)));
    }
    for (mode, family) in [("nat", V4), ("nat", V6), ("full-nat", V4), ("full-nat", V6)] {
        let name =
            format!("{mode} replies leave by an interface that lbd is not attached to, over {family:?}");
        claims.push(claim(&name, move || aside(mode, family)));
    }
    for (mode, family, inner) in
        [("dsr-ipip", V4, V4), ("dsr-ipip", V6, V6), ("dsr-gue", V4, V6), ("dsr-gue", V6, V4)]
    {
        let name = format!("a client learns what fits a {mode} tunnel of {inner:?} with {family:?} inside");
        claims.push(claim(&name, move || tunnel(mode, family, inner)));
    }
    for family in [V4, V6] {
        for mode in ["nat", "full-nat"] {
            let name = format!("a {mode} backend learns what fits the balancer's way to {family:?} clients");
            claims.push(claim(&name, move || narrow_front(mode, family)));
            let name = format!("with clamp_mss nobody has to learn, over {family:?} in {mode}");
            claims.push(claim(&name, move || clamped(mode, family)));
        }
        let name = format!("a client learns what fits the {family:?} path to a full-nat backend");
        claims.push(claim(&name, move || deep(family, false)));
        let name = format!("the same where the backend is told of its {family:?} client");
        claims.push(claim(&name, move || deep(family, true)));
        let name = format!("a client hears at once that nobody serves a full-nat backend's {family:?} port");
        claims.push(claim(&name, move || unserved(family)));
    }
    for (mode, family, inner) in [
        ("nat", V4, V4),
        ("nat", V6, V6),
        ("dsr-l2", V6, V6),
        ("dsr-ipip", V4, V4),
        ("dsr-gue", V6, V6),
        ("full-nat", V4, V4),
        ("full-nat", V6, V6),
    ] {
        let name = format!("a large {family:?} datagram and its answer arrive in {mode}");
        claims.push(claim(&name, move || fragments(mode, family, inner)));
    }
    claims.push(claim("a VIP answers pings, large ones too", pings));
    claims
}

/// Bytes each way.
const MUCH: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(15);

fn scene(
    mode: &'static str,
    family: Family,
    inner: Family,
    more: &Plan,
    builder: lb_tests::LabBuilder,
) -> Result<Scene> {
    let mut scene =
        Scene::start_in(builder, Plan { mode, family, inner, stable: 1, canary: 0, ..more.clone() })?;
    // Its port is ours from here on.
    scene.servers.clear();
    Ok(scene)
}

/// Serves one connection on the backend: takes as much as the client sends, and sends as much.
fn exchange(scene: &Scene, client: &Namespace) -> Result<()> {
    exchange_with(scene, client, scene.lab.backend(0).namespace())
}

/// The same on another host.
fn exchange_with(scene: &Scene, client: &Namespace, backend: &Namespace) -> Result<()> {
    let port = if scene.plan.mode.starts_with("dsr") { PORT } else { scene.plan.port };
    let any: IpAddr = match scene.plan.family {
        Family::V4 => [0; 4].into(),
        Family::V6 => [0; 16].into(),
    };
    let listener = backend.run(|| TcpListener::bind((any, port)))?;
    let target = scene.target();
    thread::scope(|scope| {
        let server = scope.spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let mut taken = vec![0; MUCH];
            stream.read_exact(&mut taken).context("the server reads")?;
            stream.write_all(&taken).context("the server writes")
        });
        let result = client.run(|| -> Result<()> {
            let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            let sent: Vec<u8> = (0..MUCH).map(|i| (i / 7) as u8).collect();
            stream.write_all(&sent).context("the client writes")?;
            let mut back = vec![0; MUCH];
            stream.read_exact(&mut back).context("the client reads")?;
            ensure!(back == sent, "what came back is not what was sent");
            Ok(())
        });
        // A server that nobody has reached would wait for ever.
        if result.is_err() {
            drop(backend.run(|| TcpStream::connect((any, port))));
        }
        result.and(server.join().expect("the server does not panic"))
    })
    .with_context(|| format!("{:?}", counts(scene)))
}

/// How often each reason was the end of a road.
fn counts(scene: &Scene) -> Result<Vec<(&'static str, u64)>> {
    let maps = Maps::open(&directory(&scene.agent.places().pins))?;
    let counters = maps.counters()?;
    let counted = Reason::ALL.iter().map(|reason| (reason.name(), counters.reasons[*reason as usize]));
    Ok(counted.filter(|(_, count)| *count > 0).collect())
}

fn count(scene: &Scene, reason: Reason) -> Result<u64> {
    Ok(counts(scene)?.iter().find(|(name, _)| *name == reason.name()).map_or(0, |(_, count)| *count))
}

/// Where the host behind another one is.
const fn far_address(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.9.0.2",
        Family::V6 => "fd09::2",
    }
}

/// A host behind another one, which sends it no packet of more than 1300 bytes.
fn behind(lab: &Lab, router: &Host) -> Result<Namespace> {
    let far = Namespace::new("far")?;
    let down = VethEnd { namespace: router.namespace(), name: "down", mac: Mac([2, 0xfa, 0, 0, 0, 1]) };
    far.connect("up", Mac([2, 0xfa, 0, 0, 0, 2]), down, 1500)?;
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        router.sysctl(name, 1)?;
    }
    for (net, all, near, own) in [
        ("10.9.0.0/24", "0.0.0.0/0", "10.9.0.1", far_address(Family::V4)),
        ("fd09::/64", "::/0", "fd09::1", far_address(Family::V6)),
    ] {
        let (net, all): (IpNet, IpNet) = (net.parse()?, all.parse()?);
        let (near, own): (IpAddr, IpAddr) = (near.parse()?, own.parse()?);
        router.add_address("down", near, net.prefix_len())?;
        far.add_address("up", own, net.prefix_len())?;
        far.route(all, near)?;
        narrow_route(router.namespace(), router.index("down")?, own)?;
        lab.balancer().route(net, router.ip(near.into()))?;
    }
    Ok(far)
}

fn far_away(mode: &'static str, family: Family, inner: Family) -> Result<()> {
    let scene = scene(mode, family, inner, &Plan::default(), Lab::builder())?;
    let far = behind(&scene.lab, scene.lab.client(0))?;
    // A `full-nat` backend knows no way there.
    for net in ["10.9.0.0/24", "fd09::/64"] {
        if mode == "full-nat" {
            continue;
        }
        let net: IpNet = net.parse()?;
        let family = net.addr().into();
        let next: IpAddr =
            if mode == "nat" { scene.lab.balancer().ip(family) } else { scene.lab.client(0).ip(family) };
        scene.lab.backend(0).route(net, next)?;
    }
    exchange(&scene, &far)?;
    // The backend cannot know but from the router.
    ensure!(count(&scene, Reason::ErrorForwarded)? > 0, "{:?}", counts(&scene)?);
    Ok(())
}

/// What a client sends comes in by a router; what it gets leaves by a link of its own.
fn aside(mode: &'static str, family: Family) -> Result<()> {
    let scene = scene(mode, family, family, &Plan::default(), Lab::builder())?;
    let balancer = scene.lab.balancer();
    let far = behind(&scene.lab, scene.lab.client(0))?;
    let side = VethEnd { namespace: balancer.namespace(), name: "side", mac: Mac([2, 0xfa, 0, 0, 1, 1]) };
    far.connect("back", Mac([2, 0xfa, 0, 0, 1, 2]), side, 1500)?;
    let (near, own, length) = match family {
        Family::V4 => ("10.8.0.1", "10.8.0.2", 32),
        Family::V6 => ("fd08::1", "fd08::2", 128),
    };
    let (near, own): (IpAddr, IpAddr) = (near.parse()?, own.parse()?);
    balancer.add_address("side", near, length - 8)?;
    far.add_address("back", own, length - 8)?;
    balancer.route(IpNet::new(far_address(family).parse()?, length)?, own)?;
    if mode == "nat" {
        let all = IpNet::new(far_address(family).parse()?, length)?;
        scene.lab.backend(0).route(all, balancer.ip(family))?;
    }
    exchange(&scene, &far)?;
    ensure!(count(&scene, Reason::Replied)? > 0, "{:?}", counts(&scene)?);
    Ok(())
}

fn tunnel(mode: &'static str, family: Family, inner: Family) -> Result<()> {
    let scene = scene(mode, family, inner, &Plan::default(), Lab::builder())?;
    exchange(&scene, scene.lab.client(0).namespace())?;
    ensure!(count(&scene, Reason::TooBigTold)? > 0, "{:?}", counts(&scene)?);
    Ok(())
}

/// A backend at the end of a path that takes 1300 bytes, behind another one.
fn deep(family: Family, toa: bool) -> Result<()> {
    let service = if toa { "toa = true".to_owned() } else { String::new() };
    let scene = scene("full-nat", family, family, &Plan { service, ..Plan::default() }, Lab::builder())?;
    let router = scene.lab.backend(0);
    let deep = behind(&scene.lab, router)?;
    let at = |ip: IpAddr| SocketAddr::from((ip, scene.plan.port)).to_string();
    let (near, far) = (at(router.ip(family)), at(far_address(family).parse()?));
    let path = private_dir("paths")?.join("lb.toml");
    fs::write(&path, scene.plan.config(&scene.lab).replace(&near, &far))?;
    scene.lbctl(&["apply", "-f", &path.to_string_lossy()])?;
    scene.wait_taking(1, PATIENCE)?;
    exchange_with(&scene, scene.lab.client(0).namespace(), &deep)?;
    // The client cannot know but from the router before the backend.
    ensure!(count(&scene, Reason::ErrorReplied)? > 0, "{:?}", counts(&scene)?);
    Ok(())
}

/// A datagram to a port that nobody has.
fn unserved(family: Family) -> Result<()> {
    let more = Plan { protocol: "udp", ..Plan::default() };
    let scene = scene("full-nat", family, family, &more, Lab::builder())?;
    let client = scene.lab.client(0);
    let socket = client.run(|| UdpSocket::bind((client.ip(family), 0)))?;
    socket.connect(scene.target())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"is anybody there?")?;
    let error = socket.recv(&mut [0; 64]).expect_err("nobody answers");
    ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}: {:?}", counts(&scene)?);
    Ok(())
}

fn narrow_front(mode: &'static str, family: Family) -> Result<()> {
    let scene = narrow(mode, family, String::new())?;
    exchange(&scene, scene.lab.client(0).namespace())?;
    ensure!(count(&scene, Reason::TooBigTold)? > 0, "{:?}", counts(&scene)?);
    Ok(())
}

fn clamped(mode: &'static str, family: Family) -> Result<()> {
    let scene = narrow(mode, family, "clamp_mss = 1200".to_owned())?;
    exchange(&scene, scene.lab.client(0).namespace())?;
    ensure!(count(&scene, Reason::TooBigTold)? == 0, "{:?}", counts(&scene)?);
    Ok(())
}

/// A balancer whose way to the clients takes less than theirs to it.
fn narrow(mode: &'static str, family: Family, service: String) -> Result<Scene> {
    let more = Plan { service, ..Plan::default() };
    let scene = scene(mode, family, family, &more, Lab::builder().topology(Topology::Routed))?;
    let (balancer, client) = (scene.lab.balancer(), scene.lab.client(0));
    narrow_route(balancer.namespace(), balancer.port().index, client.ip(family))?;
    Ok(scene)
}

/// Lets the way to an address take 1300 bytes, by an interface that takes more: so that whoever is there does not know.
fn narrow_route(namespace: &Namespace, ifindex: u32, to: IpAddr) -> Result<()> {
    let prefix = if to.is_ipv4() { 32 } else { 128 };
    let mut route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, prefix)?
        .output_interface(ifindex)
        .build();
    // Locked, so that it counts for what is forwarded, too.
    route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Lock(1 << 2), RouteMetric::Mtu(1300)]));
    namespace.netlink(async |handle| handle.route().add(route).execute().await)
}

fn fragments(mode: &'static str, family: Family, inner: Family) -> Result<()> {
    let more = Plan { protocol: "udp", ..Plan::default() };
    let scene = scene(mode, family, inner, &more, Lab::builder())?;
    let backend = scene.lab.backend(0);
    let target = scene.target();
    // In the `dsr` modes the answer has to come from the VIP.
    let dsr = mode.starts_with("dsr");
    let at: SocketAddr =
        if dsr { (target.ip(), PORT).into() } else { (backend.ip(family), scene.plan.port).into() };
    let server = backend.run(|| UdpSocket::bind(at))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let client = scene.lab.client(0);
    let socket = client.run(|| UdpSocket::bind((client.ip(family), 0)))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    let sent: Vec<u8> = (0..5000_usize).map(|i| (i / 3) as u8).collect();
    let result = thread::scope(|scope| {
        let answering = scope.spawn(|| -> Result<()> {
            let mut buffer = vec![0; 65_536];
            loop {
                let (length, from) = server.recv_from(&mut buffer)?;
                if length == 1 {
                    return Ok(());
                }
                server.send_to(&buffer[..length], from)?;
            }
        });
        // The first ones may be lost to a tunnel that the client does not know yet.
        let mut buffer = vec![0; 65_536];
        let arrived = (0..8).any(|_| {
            socket.send(&sent).is_ok()
                && socket.recv(&mut buffer).is_ok_and(|length| buffer[..length] == sent[..])
        });
        backend.run(|| UdpSocket::bind((at.ip(), 0)).and_then(|socket| socket.send_to(&[0], at)))?;
        answering.join().expect("the server does not panic")?;
        Ok::<_, anyhow::Error>(arrived)
    })?;
    ensure!(result, "5000 bytes did not come back: {:?}", counts(&scene)?);
    ensure!(count(&scene, Reason::FragmentForwarded)? >= 4, "{:?}", counts(&scene)?);
    if !dsr {
        ensure!(count(&scene, Reason::FragmentReplied)? >= 4, "{:?}", counts(&scene)?);
    }
    Ok(())
}

fn pings() -> Result<()> {
    use socket2::{Domain, Protocol, Socket, Type};
    let scene = Scene::start(Plan::default())?;
    let client = scene.lab.client(0);
    let target: SocketAddr = (scene.target().ip(), 0).into();
    let socket = client.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for length in [56_usize, 4000] {
        let mut message = vec![8, 0, 0, 0, 0x1b, 0x2c, 0, 1];
        message.extend((0..length).map(|i| i as u8));
        let sum = lb_tests::packets::checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        socket.send_to(&message, &target.into())?;
        let mut buffer = vec![0; 65_536];
        loop {
            let length = std::io::Read::read(&mut &socket, &mut buffer)?;
            // Behind an IPv4 header; other ICMP is not for us.
            if buffer[20] == 0 && buffer[24..28] == message[4..8] {
                ensure!(buffer[28..length] == message[8..], "another answer of {length} bytes");
                break;
            }
        }
    }
    Ok(())
}
