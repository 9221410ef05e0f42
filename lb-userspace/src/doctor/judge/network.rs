//! The way to the backends, and the VIPs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::super::{Answer, Found, Probe, Way};
use super::{
    Facts, Verdict, amiss_or, backends, configured, configured_links, counted, error, mac_text, warning,
};
use crate::api::Severity;
use crate::compile::GUE_PORT;
use crate::config::{self, Config, Mode, Protocol};
use crate::plural::either;

pub(super) fn tunnel_mtu(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let smallest = configured_links(facts, config).map(|(_, link)| link.mtu).min();
    let Some(clients) = smallest.map(|mtu| mtu.min(FROM_AFAR)) else {
        return Verdict::Skipped("no interface (LB1107)".to_owned());
    };
    let (mut found, mut tunnels) = (BTreeMap::new(), 0);
    for (service, backend) in backends(config).filter(|(service, _)| is_tunnel(service.mode)) {
        tunnels += 1;
        let Some(Way::Known { interface, mtu, .. }) = facts.ways.get(&backend.ip()) else { continue };
        let outer = outer_header(service.mode, backend.ip());
        let needed = clients + outer;
        if *mtu >= needed {
            continue;
        }
        let room = mtu.saturating_sub(outer);
        found.entry((service.name.as_str(), interface)).or_insert_with(|| {
            error(
                service.name.as_str(),
                format!(
                    "clients' packets of up to {clients} bytes get {outer} more on their way to {}, where {mtu} fit",
                    backend.ip(),
                ),
                format!(
                    "ip link set dev {interface} mtu {needed} (and so on the switches and backends); where that cannot be, on \
                     the backends: ip route change default … advmss {}",
                    room.saturating_sub(tcp_headers(service.vip)),
                ),
            )
        });
    }
    match tunnels {
        0 => Verdict::Skipped("no service uses a tunnel".to_owned()),
        _ => amiss_or(found.into_values().collect(), || "outer headers fit".to_owned()),
    }
}

/// What comes from other networks is no longer than this (RFC 894), however long the frames of this segment may be.
const FROM_AFAR: u32 = 1500;

const fn is_tunnel(mode: Mode) -> bool {
    matches!(mode, Mode::DsrIpip | Mode::DsrGue)
}

/// What a tunnel adds, in bytes.
const fn outer_header(mode: Mode, backend: IpAddr) -> u32 {
    // GUE is one more header, UDP's: variant 1 has none of its own.
    let udp = if matches!(mode, Mode::DsrGue) { 8 } else { 0 };
    udp + if backend.is_ipv4() { 20 } else { 40 }
}

const fn tcp_headers(vip: IpAddr) -> u32 {
    if vip.is_ipv4() { 40 } else { 60 }
}

pub(super) fn forwarding(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let routed: Vec<&config::Service> = config.services.iter().filter(|it| it.mode == Mode::Nat).collect();
    if routed.is_empty() {
        return Verdict::Skipped("no service of mode nat".to_owned());
    }
    let mut found = BTreeMap::new();
    for service in routed {
        for (name, _) in configured_links(facts, config) {
            let key = forwarding_key(name, service.vip);
            if facts.sysctl.get(&key).is_none_or(|value| value != "0") {
                continue;
            }
            let (family, switch) = match service.vip {
                IpAddr::V4(_) => ("IPv4", "net.ipv4.ip_forward"),
                IpAddr::V6(_) => ("IPv6", "net.ipv6.conf.all.forwarding"),
            };
            found.entry(key).or_insert_with(|| {
                error(
                    name,
                    format!("{family} forwarding is off, which {} needs", service.name),
                    format!("sysctl -w {switch}=1 (and in /etc/sysctl.d/lb.conf, to stay)"),
                )
            });
        }
    }
    amiss_or(found.into_values().collect(), || "on".to_owned())
}

/// As [`Facts::sysctl`] names it.
pub(in crate::doctor) fn forwarding_key(interface: &str, vip: IpAddr) -> String {
    let family = if vip.is_ipv4() { "ipv4" } else { "ipv6" };
    format!("net/{family}/conf/{interface}/forwarding")
}

/// As [`Facts::sysctl`] names it.
pub(in crate::doctor) fn rp_filter_key(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/rp_filter")
}

pub(super) fn rp_filter(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    if !config.services.iter().any(|service| service.vip.is_ipv4()) {
        return Verdict::Skipped("it is for IPv4, and no VIP is".to_owned());
    }
    let value = |name: &str| facts.sysctl.get(&rp_filter_key(name)).and_then(|text| text.parse::<u8>().ok());
    let everywhere = value("all").unwrap_or(0);
    let mut found = Vec::new();
    for (name, _) in configured_links(facts, config) {
        // The higher one counts: 0 off, 1 strict, 2 loose.
        if value(name).unwrap_or(0).max(everywhere) == 1 {
            found.push(warning(
                name,
                "rp_filter is strict",
                format!("sysctl -w net.ipv4.conf.{name}.rp_filter=2 (loose)"),
            ));
        }
    }
    amiss_or(found, || "off or loose".to_owned())
}

pub(super) fn ways(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let mut found = BTreeMap::new();
    for (service, backend) in backends(config) {
        let ip = backend.ip();
        let trouble = match facts.ways.get(&ip) {
            None => continue,
            Some(Way::None { why }) => {
                error(ip.to_string(), why, format!("ip route add {ip} via ROUTER (see `ip route get {ip}`)"))
            }
            Some(Way::Silent { interface, neighbour }) if *neighbour == ip => error(
                ip.to_string(),
                format!("nobody answers for it on {interface}"),
                format!("is it up, and in this segment? ping -c1 -I {interface} {ip}; ip neigh show {ip}"),
            ),
            Some(Way::Silent { interface, neighbour }) => error(
                ip.to_string(),
                format!("its router {neighbour} does not answer on {interface}"),
                format!("ping -c1 -I {interface} {neighbour}; ip route get {ip}"),
            ),
            Some(Way::Known { gateway: Some(gateway), .. }) if service.mode == Mode::DsrL2 => error(
                ip.to_string(),
                format!(
                    "{} is of mode dsr-l2, but the backend is behind the router {gateway}: it would get the VIP's packets",
                    service.name
                ),
                format!(
                    "mode = \"dsr-ipip\" for {} (lbctl apply -f {})",
                    service.name,
                    facts.config_path.display()
                ),
            ),
            Some(Way::Known { .. }) => continue,
        };
        found.entry(ip).or_insert(trouble);
    }
    amiss_or(found.into_values().collect(), || {
        format!("{} can be reached", counted(facts.ways.len(), "host"))
    })
}

pub(super) fn vips(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let agent = facts.agent.status.is_ok();
    let held = config.dataplane.hold_vips;
    let (mut found, mut here) = (Vec::new(), 0);
    for vip in vips_of(config) {
        let holder = facts.addresses.iter().find(|address| address.ip == vip);
        here += usize::from(holder.is_some());
        if holder.is_none() && agent && held {
            let first = config.dataplane.interfaces.first().map_or("eth0", config::InterfaceName::as_str);
            found.push(error(
                vip.to_string(),
                "this host does not have it, though lbd runs: somebody took it away",
                format!("systemctl restart lbd (or: ip addr add {} dev {first})", host_prefix(vip)),
            ));
        }
        let on_link = facts.addresses.iter().any(|address| {
            address.ip != vip
                && config.dataplane.interfaces.iter().any(|name| name.as_str() == address.interface)
                && contains(address.ip, address.prefix, vip)
        });
        if !on_link {
            found.push(Found {
                severity: Severity::Info,
                ..error(
                    vip.to_string(),
                    "it is in no network of the configured interfaces: clients reach it only if routers send it here",
                    format!("on the router: ip route add {} via THIS-HOST", host_prefix(vip)),
                )
            });
        }
    }
    amiss_or(found, || match agent {
        _ if !held => format!("{here} on this host; somebody else moves them (hold_vips = false)"),
        true => format!("{here} held"),
        false => format!("{here} held; lbd adds the others"),
    })
}

fn vips_of(config: &Config) -> BTreeSet<IpAddr> {
    config.services.iter().map(|service| service.vip).collect()
}

fn host_prefix(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

fn contains(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    ipnet::IpNet::new(network, prefix).is_ok_and(|network| network.contains(&ip))
}

pub(super) fn conflicts(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    if !config.dataplane.hold_vips {
        return Verdict::Skipped("whoever moves the VIPs sees to it (hold_vips = false)".to_owned());
    }
    if let Some(why) = &facts.wire.unasked {
        return Verdict::Skipped(why.clone());
    }
    let found = facts.wire.claims.iter().map(|claim| {
        let backend = facts.ways.iter().find_map(|(ip, way)| match way {
            Way::Known { mac: Some(mac), gateway: None, .. } if *mac == claim.mac => Some(ip),
            _ => None,
        });
        let mac = mac_text(claim.mac);
        match backend {
            Some(backend) => error(
                claim.vip.to_string(),
                format!("backend {backend} ({mac}) answers for it on {}", claim.interface),
                format!("on {backend}: sysctl -w net.ipv4.conf.all.arp_ignore=1 net.ipv4.conf.all.arp_announce=2, and the VIP on lo only"),
            ),
            None => error(
                claim.vip.to_string(),
                format!("another host ({mac}) answers for it on {}", claim.interface),
                format!("on that host: ip addr del {} dev …; or choose another VIP", host_prefix(claim.vip)),
            ),
        }
    });
    amiss_or(found.collect(), || format!("nobody else answers for {}", counted(vips_of(config).len(), "VIP")))
}

pub(super) fn loopback(facts: &Facts) -> Verdict {
    unanswered(facts, &[Mode::DsrL2], |Probe { backend, vip, .. }, _| {
        let backend = backend.ip();
        (
            format!(
                "it does not answer as {vip}: either it does not have the VIP, or a firewall drops the probe"
            ),
            format!("on {backend}: ip addr add {} dev lo", host_prefix(*vip)),
        )
    })
}

pub(super) fn tunnels(facts: &Facts) -> Verdict {
    unanswered(facts, &[Mode::DsrIpip, Mode::DsrGue], |Probe { mode, backend, vip, .. }, service| {
        let backend = backend.ip();
        let device = match (backend, vip) {
            (IpAddr::V4(_), IpAddr::V4(_)) => "ip link add lb0 type ipip external",
            (IpAddr::V4(_), IpAddr::V6(_)) => "ip link add lb0 type sit external",
            (IpAddr::V6(_), _) => "ip link add lb0 type ip6tnl external",
        };
        // Of GUE the kernel takes UDP off, and a tunnel device the packet that is left.
        let (udp, decap) = if *mode == Mode::DsrGue {
            let port = service.gue_port.unwrap_or(GUE_PORT);
            let family = if backend.is_ipv6() { " -6" } else { "" };
            (format!("ip fou add port {port} gue{family} && "), format!(" --gue-port {port}"))
        } else {
            Default::default()
        };
        (
            format!(
                "it does not answer as {vip} through the tunnel: no tunnel device, no VIP on its loopback, or rp_filter"
            ),
            format!(
                "on {backend}: {udp}{device} && ip link set lb0 up && ip addr add {} dev lo && sysctl -w \
                 net.ipv4.conf.lb0.rp_filter=0; or: lbd decap --interface eth0{decap}",
                host_prefix(*vip)
            ),
        )
    })
}

/// Backends of these modes that say nothing when they are asked as the data path would ask them.
fn unanswered(
    facts: &Facts,
    modes: &[Mode],
    words: impl Fn(&Probe, &config::Service) -> (String, String),
) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    if !config.services.iter().any(|service| modes.contains(&service.mode)) {
        let modes: Vec<String> = modes.iter().map(ToString::to_string).collect();
        return Verdict::Skipped(format!("no service of mode {}", modes.join(" or ")));
    }
    if let Some(why) = &facts.wire.unasked {
        return Verdict::Skipped(why.clone());
    }
    let asked: Vec<_> = facts.wire.probes.iter().filter(|probe| modes.contains(&probe.mode)).collect();
    let silent = asked.iter().filter(|probe| probe.answer == Answer::Silence);
    let found = silent.filter_map(|probe| {
        let service = config.services.iter().find(|service| service.name.as_str() == probe.service)?;
        let (message, remedy) = words(probe, service);
        Some(error(format!("{}/{}", probe.service, probe.backend), message, remedy))
    });
    amiss_or(found.collect(), || {
        format!(
            "{} {} as the VIP",
            counted(asked.len(), "backend"),
            either(asked.len() as u64, "answers", "answer")
        )
    })
}

fn refusal(answer: Answer) -> Option<&'static str> {
    match answer {
        Answer::Taken => None,
        Answer::Refused => Some("it refuses connections: nothing listens on that port"),
        Answer::Silence => Some("it does not answer: it is down, or a firewall drops the packets"),
    }
}

/// Whether they take connections, as far as that can be told by asking.
pub(super) fn backends_answer(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let tcp: BTreeSet<&str> = config
        .services
        .iter()
        .filter(|service| service.protocol == Protocol::Tcp && service.port != 0)
        .map(|service| service.name.as_str())
        .collect();
    let asked: Vec<_> =
        facts.wire.probes.iter().filter(|probe| tcp.contains(probe.service.as_str())).collect();
    if asked.is_empty() {
        return Verdict::Skipped("none could be asked (UDP has no handshake)".to_owned());
    }
    let mut found = Vec::new();
    for probe in &asked {
        // Silence of the dsr modes is told by the rules for them.
        if probe.mode.is_dsr() && probe.answer == Answer::Silence {
            continue;
        }
        if let Some(message) = refusal(probe.answer) {
            let port = probe.backend.port();
            let ip = probe.backend.ip();
            found.push(error(
                format!("{}/{}", probe.service, probe.backend),
                message,
                format!("on {ip}: ss -ltn 'sport = :{port}' (does it listen, and on which address?); nft list ruleset"),
            ));
        }
    }
    amiss_or(found, || {
        format!(
            "{} {} connections",
            counted(asked.len(), "backend"),
            either(asked.len() as u64, "takes", "take")
        )
    })
}
