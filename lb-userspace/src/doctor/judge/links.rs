//! The interfaces.

use super::{Facts, Verdict, amiss_or, configured, configured_links, counted, error, warning};
use crate::api::XdpMode;
use crate::config;
use crate::doctor::Link;
use crate::plural::either;

pub(super) fn interfaces(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let mut found = Vec::new();
    for name in config.dataplane.interfaces.iter().map(config::InterfaceName::as_str) {
        match facts.links.get(name) {
            None => found.push(error(
                name,
                missing(name, facts),
                format!(
                    "name the right one in {}, under [dataplane] interfaces",
                    facts.config_path.display()
                ),
            )),
            Some(link) if !link.up => {
                found.push(error(name, "it is down", format!("ip link set dev {name} up")));
            }
            Some(link) if !link.running => found.push(error(
                name,
                "it has no carrier",
                format!("look at the cable and its other end (`ethtool {name}`, `ip link show {name}`)"),
            )),
            Some(_) => {}
        }
    }
    amiss_or(found, || {
        let names: Vec<&str> =
            config.dataplane.interfaces.iter().map(config::InterfaceName::as_str).collect();
        format!("{} up", names.join(", "))
    })
}

fn missing(name: &str, facts: &Facts) -> String {
    let mut names: Vec<&str> = facts.links.keys().map(String::as_str).collect();
    names.sort_by_key(|other| strsim::osa_distance(name, other));
    match names.first() {
        Some(near) if strsim::osa_distance(name, near) <= 2 => {
            format!("there is no such interface; did you mean {near}?")
        }
        _ => format!("there is no such interface; there are {}", names.join(", ")),
    }
}

pub(super) fn others(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let mut found = Vec::new();
    for (name, link) in configured_links(facts, config) {
        let Some(xdp) = &link.xdp else { continue };
        let ours = match (facts.pins.program, &facts.agent.status) {
            (_, Ok(status)) => status.dataplane.interfaces.iter().any(|it| it.ifindex == link.index),
            (Some(0), _) => true,
            (pinned, _) => pinned == Some(xdp.program),
        };
        if !ours {
            let called = xdp.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
            let how = match xdp.mode {
                XdpMode::Native => "xdpdrv",
                XdpMode::Generic => "xdpgeneric",
            };
            found.push(error(
                name,
                format!("the XDP program {}{called} is on it, and is not ours", xdp.program),
                format!(
                    "ip link set dev {name} {how} off (a link: end the program that holds it; `bpftool link`)"
                ),
            ));
        }
    }
    amiss_or(found, || "none".to_owned())
}

pub(super) fn native(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let (mut found, mut fine) = (Vec::new(), Vec::new());
    for (name, link) in configured_links(facts, config) {
        let driver = link.driver.as_deref().unwrap_or("unknown");
        let mode = link.xdp.as_ref().map(|xdp| xdp.mode);
        match (mode, link.native) {
            (Some(XdpMode::Native), _) => fine.push(format!("{name} native ({driver})")),
            (Some(XdpMode::Generic), Some(false)) | (None, Some(false)) => found.push(warning(
                name,
                format!("generic: its driver ({driver}) has no XDP"),
                "use an interface whose driver has it (`ethtool -i`); for a bridge name its ports, for a VLAN device what it is on",
            )),
            (Some(XdpMode::Generic), _) if config.dataplane.xdp_mode == config::XdpMode::Generic => {
                found.push(warning(
                    name,
                    "generic, because the configuration says so (xdp_mode = \"generic\")",
                    format!("set xdp_mode = \"auto\" in {}, then: lbctl detach && systemctl restart lbd", facts.config_path.display()),
                ));
            }
            (Some(XdpMode::Generic), _) => found.push(warning(
                name,
                format!("generic, though its driver ({driver}) may have XDP: the link was made when it was configured so, or it refused (MTU {}, LRO on, or too few queues)", link.mtu),
                format!("journalctl -u lbd -g {name}; then for example: ethtool -K {name} lro off && lbctl detach && systemctl restart lbd"),
            )),
            (None, Some(true)) => fine.push(format!("{name} can be native ({driver})")),
            (None, None) => fine.push(format!("{name}: its driver is {driver}")),
        }
    }
    amiss_or(found, || fine.join(", "))
}

pub(super) fn stacked(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let file = facts.config_path.display();
    let (mut found, mut vlans, mut veths) = (Vec::new(), 0, Vec::new());
    for (name, link) in configured_links(facts, config) {
        if link.kind.as_deref() == Some("vlan") {
            vlans += 1;
            let (parent, remedy) = match &link.vlan_of {
                Some(parent) => (
                    parent.as_str(),
                    format!(
                        "name {parent} in its place in {file}, under [dataplane] interfaces: tags are taken care of"
                    ),
                ),
                None => ("another namespace", format!("run lbd where the card is, and name that in {file}")),
            };
            found.push(warning(
                name,
                format!("it is a VLAN device (of {parent}), where XDP has generic mode only"),
                remedy,
            ));
        }
        if let Some(bond) = &link.bond {
            found.push(warning(
                name,
                format!("it is a port of {bond}: routes and neighbours are those of the bond, which takes its frames"),
                format!("name {bond} in its place in {file}, under [dataplane] interfaces (native in the modes balance-rr, active-backup, balance-xor and 802.3ad)"),
            ));
        }
        let on = facts.links.iter().filter(|(_, other)| leads_to(facts, other, name));
        let on: Vec<&str> = on.map(|(other, _)| other.as_str()).collect();
        vlans += on.len();
        if on.is_empty() {
            continue;
        }
        for (card, card_link) in cards(facts, name, link) {
            if card_link.kind.as_deref() == Some("veth") {
                veths.push(card);
            } else if card_link.takes_tags_off == Some(true) {
                found.push(error(
                    card,
                    format!(
                        "the card takes VLAN tags off before XDP sees them, so that nothing tells {} from {name} itself",
                        on.join(", ")
                    ),
                    format!("ethtool -K {card} rxvlan off"),
                ));
            }
        }
    }
    amiss_or(found, || match (vlans, veths.as_slice()) {
        (0, _) => "none".to_owned(),
        (_, []) => format!("{} on them, whose tags XDP sees", counted(vlans, "VLAN device")),
        (_, veths) => format!(
            "{} on them, whose tags XDP sees if the other ends of {} put them in (`ethtool -K … txvlan off` there)",
            counted(vlans, "VLAN device"),
            veths.join(", ")
        ),
    })
}

/// The cards below an interface: a bond's ports, which it gets frames from as they leave them; else itself.
fn cards<'a>(facts: &'a Facts, name: &'a str, link: &'a Link) -> Vec<(&'a str, &'a Link)> {
    let ports = facts.links.iter().filter(|(_, port)| port.bond.as_deref() == Some(name));
    let ports: Vec<_> = ports.map(|(port, link)| (port.as_str(), link)).collect();
    if ports.is_empty() { vec![(name, link)] } else { ports }
}

/// Whether a VLAN device is on that interface, perhaps on another VLAN device.
fn leads_to(facts: &Facts, link: &Link, name: &str) -> bool {
    let mut below = link.vlan_of.as_deref();
    // No more than the kernel stacks.
    for _ in 0..8 {
        match below {
            Some(parent) if parent == name => return true,
            Some(parent) => below = facts.links.get(parent).and_then(|link| link.vlan_of.as_deref()),
            None => return false,
        }
    }
    false
}

pub(super) fn lro(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let on = configured_links(facts, config).filter(|(_, link)| link.lro == Some(true));
    let found = on.map(|(name, _)| error(name, "LRO is on", format!("ethtool -K {name} lro off")));
    amiss_or(found.collect(), || "off".to_owned())
}

pub(super) fn queues(facts: &Facts) -> Verdict {
    let config = match configured(facts) {
        Ok(config) => config,
        Err(verdict) => return verdict,
    };
    let (mut found, mut fine) = (Vec::new(), Vec::new());
    for (name, link) in configured_links(facts, config) {
        if let Some((now, most)) = link.queues {
            let wanted = most.min(facts.cpus);
            if now < wanted {
                found.push(warning(
                    name,
                    format!(
                        "{now} of {most} receive queues {} in use, for {} processors",
                        either(now.into(), "is", "are"),
                        facts.cpus
                    ),
                    format!("ethtool -L {name} combined {wanted}"),
                ));
            }
            fine.push(format!("{name}: {now} of {most} queues"));
        }
        let mut places: Vec<&String> = link.interrupts.values().collect();
        places.sort();
        places.dedup();
        if link.interrupts.len() > 1 && facts.cpus > 1 && places.len() == 1 && is_one(places[0]) {
            let first = link.interrupts.keys().next().copied().unwrap_or_default();
            found.push(warning(
                name,
                format!("all of its {} interrupts go to processor {}", link.interrupts.len(), places[0]),
                format!("systemctl enable --now irqbalance; or by hand for each: echo 1 > /proc/irq/{first}/smp_affinity_list"),
            ));
        }
    }
    match (found.is_empty(), fine.is_empty()) {
        (true, true) => Verdict::Skipped("the drivers do not say".to_owned()),
        _ => amiss_or(found, || fine.join(", ")),
    }
}

/// A list of processors with one in it.
fn is_one(list: &str) -> bool {
    list.bytes().all(|byte| byte.is_ascii_digit())
}
