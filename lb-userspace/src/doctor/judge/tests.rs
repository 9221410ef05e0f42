//! Each rule on a host that is as it should be but for one thing.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::super::{Address, Agent, Answer, Claim, Kernel, Link, Pins, Probe, Way, Wire, Xdp};
use super::*;
use crate::api::XdpMode;
use crate::config::Mode;

const CONFIG: &str = r#"schema = 1
[dataplane]
interfaces = ["eth0", "eth1"]
[[service]]
name = "web"
vip = "203.0.113.10"
port = 80
mode = "nat"
health = { type = "none" }
[[service.pool]]
name = "v1"
[[service.pool.backend]]
address = "10.0.1.11:80"
"#;

const BACKEND: &str = "10.0.1.11:80";
const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0x11];

/// A host without an agent, ready for one, with a service of this mode.
fn sound(mode: Mode) -> Facts {
    let text = CONFIG.replace("\"nat\"", &format!("\"{mode}\""));
    let config = crate::config::parse(&text, "lb.toml").unwrap().config;
    let link = |index: u8| Link {
        index: index.into(),
        up: true,
        running: true,
        mtu: 1500,
        mac: Some([2, 0, 0, 0, 0, index]),
        driver: Some("ixgbe".to_owned()),
        native: Some(true),
        lro: Some(false),
        queues: Some((2, 8)),
        interrupts: [(40, "0".to_owned()), (41, "1".to_owned())].into(),
        ..Link::default()
    };
    let address = |interface: &str, ip: &str| Address {
        interface: interface.to_owned(),
        ip: ip.parse().unwrap(),
        prefix: 24,
    };
    let backend: SocketAddr = BACKEND.parse().unwrap();
    let vip = "203.0.113.10".parse().unwrap();
    let way = Way::Known { interface: "eth1".to_owned(), gateway: None, mac: Some(ROUTER), mtu: 1500 };
    Facts {
        config_path: "/etc/lb/lb.toml".into(),
        config: Ok(config),
        kernel: Kernel { too_old: None, btf: true },
        missing_capabilities: Vec::new(),
        jit: Some(1),
        pins: Pins { directory: "/sys/fs/bpf/lb".into(), on_bpffs: true, program: None },
        agent: Agent {
            socket: "/run/lb/lbd.sock".into(),
            status: Err("nobody listens".to_owned()),
            pid: None,
        },
        cpus: 2,
        links: [("eth0".to_owned(), link(1)), ("eth1".to_owned(), link(2))].into(),
        addresses: vec![address("eth0", "203.0.113.2"), address("eth1", "10.0.1.2")],
        ways: [(backend.ip(), way)].into(),
        sysctl: BTreeMap::new(),
        wire: Wire {
            unasked: None,
            claims: Vec::new(),
            probes: vec![Probe { service: "web".to_owned(), mode, vip, backend, answer: Answer::Taken }],
        },
        clock_synchronised: Some(true),
        open_files: Some(262_144),
    }
}

/// What a report says of the check with this code.
fn of<'a>(report: &'a Report, code: &str) -> &'a Check {
    report.checks.iter().find(|check| check.code == code).unwrap()
}

/// After one thing is broken, one rule sees it, and has the remedy.
fn finds(mode: Mode, code: &str, outcome: Outcome, remedy: &str, breaks: impl Fn(&mut Facts)) {
    let mut facts = sound(mode);
    breaks(&mut facts);
    let report = judge(&facts);
    let check = of(&report, code);
    assert_eq!(check.outcome, outcome, "{check:#?}");
    let remedies: Vec<&str> = check.found.iter().filter_map(|found| found.remedy.as_deref()).collect();
    assert!(remedies.iter().any(|shown| shown.contains(remedy)), "{code}: {remedy:?} is not in {remedies:?}");
    assert_eq!(report.wrong, outcome == Outcome::Error, "{report:#?}");
    for other in report.checks.iter().filter(|other| other.code != code && other.code != "LB1106") {
        assert!(
            matches!(other.outcome, Outcome::Ok | Outcome::Skipped),
            "{code} is not the only one: {other:#?}"
        );
    }
}

#[test]
fn a_sound_host_has_nothing_wrong_and_says_that_no_agent_is_there() {
    for mode in [Mode::Nat, Mode::DsrL2] {
        let report = judge(&sound(mode));
        assert!(!report.wrong, "{report:#?}");
        assert_eq!(of(&report, "LB1106").outcome, Outcome::Warning);
        assert!(report.checks.iter().all(|check| !check.found.is_empty() && !check.why.is_empty()));
    }
}

#[test]
fn checks_are_numbered_and_their_codes_are_in_order() {
    let report = judge(&sound(Mode::Nat));
    let codes: Vec<&str> = RULES.iter().map(|rule| rule.code).collect();
    assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
    for (index, check) in report.checks.iter().enumerate() {
        assert_eq!((check.number, check.code.as_str()), (index + 1, codes[index]));
    }
}

#[test]
fn the_host_is_judged() {
    use Outcome::{Error, Warning};
    let nat = Mode::Nat;
    finds(nat, "LB1102", Error, "6.1", |facts| facts.kernel.too_old = Some("this kernel is 5.10".to_owned()));
    finds(nat, "LB1102", Error, "CONFIG_DEBUG_INFO_BTF", |facts| facts.kernel.btf = false);
    finds(nat, "LB1103", Error, "sudo lbctl doctor", |facts| facts.missing_capabilities.push("CAP_BPF"));
    finds(nat, "LB1104", Error, "mount -t bpf bpf /sys/fs/bpf", |facts| facts.pins.on_bpffs = false);
    finds(nat, "LB1105", Warning, "net.core.bpf_jit_enable=1", |facts| facts.jit = Some(0));
    finds(nat, "LB1106", Error, "systemctl start lbd", |facts| facts.pins.program = Some(7));
    finds(nat, "LB1121", Warning, "timedatectl set-ntp true", |facts| facts.clock_synchronised = Some(false));
    finds(nat, "LB1122", Error, "LimitNOFILE", |facts| facts.open_files = Some(256));
}

#[test]
fn a_configuration_that_cannot_be_used_leaves_the_host_to_be_judged() {
    finds(Mode::Nat, "LB1101", Outcome::Error, "lbctl validate /etc/lb/lb.toml", |facts| {
        facts.config = Err("lb.toml: there is no key `prot`\n  and more".to_owned());
    });
}

#[test]
fn the_interfaces_are_judged() {
    use Outcome::{Error, Warning};
    let nat = Mode::Nat;
    finds(nat, "LB1107", Error, "ip link set dev eth1 up", |facts| {
        facts.links.get_mut("eth1").unwrap().up = false;
    });
    finds(nat, "LB1107", Error, "ethtool eth1", |facts| facts.links.get_mut("eth1").unwrap().running = false);
    finds(nat, "LB1107", Error, "/etc/lb/lb.toml", |facts| {
        let link = facts.links.remove("eth1").unwrap();
        facts.links.insert("eth2".to_owned(), link);
    });
    let xdp = |mode| Some(Xdp { program: 40, name: Some("xdpdump".to_owned()), mode });
    finds(nat, "LB1108", Error, "ip link set dev eth0 xdpdrv off", |facts| {
        facts.links.get_mut("eth0").unwrap().xdp = xdp(XdpMode::Native);
    });
    finds(nat, "LB1109", Warning, "ethtool -i", |facts| {
        facts.links.get_mut("eth0").unwrap().native = Some(false);
    });
    finds(nat, "LB1123", Warning, "name eth9 in its place", |facts| {
        let link = facts.links.get_mut("eth0").unwrap();
        (link.kind, link.vlan_of) = (Some("vlan".to_owned()), Some("eth9".to_owned()));
    });
    finds(nat, "LB1123", Warning, "name bond0 in its place", |facts| {
        facts.links.get_mut("eth1").unwrap().bond = Some("bond0".to_owned());
    });
    finds(nat, "LB1123", Error, "ethtool -K eth1 rxvlan off", |facts| {
        facts.links.get_mut("eth1").unwrap().takes_tags_off = Some(true);
        let on = |parent: &str| Link { vlan_of: Some(parent.to_owned()), ..Link::default() };
        facts.links.insert("inner".to_owned(), on("outer"));
        facts.links.insert("outer".to_owned(), on("eth1"));
    });
    finds(nat, "LB1110", Error, "ethtool -K eth0 lro off", |facts| {
        facts.links.get_mut("eth0").unwrap().lro = Some(true);
    });
    finds(nat, "LB1111", Warning, "ethtool -L eth0 combined 2", |facts| {
        facts.links.get_mut("eth0").unwrap().queues = Some((1, 8));
    });
    finds(nat, "LB1111", Warning, "irqbalance", |facts| {
        facts.links.get_mut("eth1").unwrap().interrupts = [(40, "0".to_owned()), (41, "0".to_owned())].into();
    });
}

#[test]
fn a_card_may_take_tags_off_that_nobody_looks_for() {
    let mut facts = sound(Mode::Nat);
    facts.links.get_mut("eth1").unwrap().takes_tags_off = Some(true);
    assert_eq!(of(&judge(&facts), "LB1123").outcome, Outcome::Ok);
    facts.links.insert("lan".to_owned(), Link { vlan_of: Some("eth7".to_owned()), ..Link::default() });
    assert_eq!(of(&judge(&facts), "LB1123").found[0].message, "none", "on a card that is not ours");
}

#[test]
fn the_ports_of_a_bond_take_tags_off_and_the_other_end_of_a_veth_keeps_them() {
    let mut facts = sound(Mode::Nat);
    let bond = facts.links.get_mut("eth1").unwrap();
    (bond.kind, bond.takes_tags_off) = (Some("bond".to_owned()), Some(true));
    let port = |takes| Link { bond: Some("eth1".to_owned()), takes_tags_off: Some(takes), ..Link::default() };
    facts.links.insert("port0".to_owned(), port(false));
    facts.links.insert("eth1.7".to_owned(), Link { vlan_of: Some("eth1".to_owned()), ..Link::default() });
    assert_eq!(
        of(&judge(&facts), "LB1123").outcome,
        Outcome::Ok,
        "what a bond says of itself does not count"
    );
    facts.links.insert("port1".to_owned(), port(true));
    let verdicts = judge(&facts);
    let found = &of(&verdicts, "LB1123").found[0];
    assert_eq!(found.remedy.as_deref(), Some("ethtool -K port1 rxvlan off"));

    facts.links.get_mut("port1").unwrap().kind = Some("veth".to_owned());
    let verdicts = judge(&facts);
    let found = &of(&verdicts, "LB1123").found[0];
    assert!(found.message.contains("if the other ends of port1 put them in"), "{}", found.message);
}

#[test]
fn our_own_program_is_not_another_one() {
    let mut facts = sound(Mode::Nat);
    facts.pins.program = Some(40);
    let ours = Xdp { program: 40, name: None, mode: XdpMode::Native };
    facts.links.get_mut("eth0").unwrap().xdp = Some(ours);
    assert_eq!(of(&judge(&facts), "LB1108").outcome, Outcome::Ok);
    facts.links.get_mut("eth0").unwrap().xdp.as_mut().unwrap().program = 41;
    assert_eq!(of(&judge(&facts), "LB1108").outcome, Outcome::Error);
}

#[test]
fn generic_mode_says_why() {
    let generic = Some(Xdp { program: 40, name: None, mode: XdpMode::Generic });
    let why = |native, asked_for: bool| {
        let mut facts = sound(Mode::Nat);
        facts.pins.program = Some(40);
        if asked_for {
            let text = CONFIG.replace("[dataplane]", "[dataplane]\nxdp_mode = \"generic\"");
            facts.config = Ok(crate::config::parse(&text, "lb.toml").unwrap().config);
        }
        let link = facts.links.get_mut("eth0").unwrap();
        (link.xdp, link.native) = (generic.clone(), native);
        of(&judge(&facts), "LB1109").found[0].message.clone()
    };
    assert_eq!(why(Some(false), false), "generic: its driver (ixgbe) has no XDP");
    assert_eq!(why(Some(true), true), "generic, because the configuration says so (xdp_mode = \"generic\")");
    let left = why(Some(true), false);
    assert!(left.contains("the link was made when it was configured so, or it refused (MTU 1500"), "{left}");
}

#[test]
fn the_network_is_judged() {
    use Outcome::{Error, Warning};
    let (nat, l2, ipip) = (Mode::Nat, Mode::DsrL2, Mode::DsrIpip);
    let backend: SocketAddr = BACKEND.parse().unwrap();
    let jumbo = |facts: &mut Facts| {
        if let Some(Way::Known { mtu, .. }) = facts.ways.get_mut(&backend.ip()) {
            *mtu = 1528;
        }
    };
    finds(ipip, "LB1112", Error, "ip link set dev eth1 mtu 1520", |_| {});
    finds(Mode::DsrGue, "LB1112", Error, "ip link set dev eth1 mtu 1528", |_| {});
    finds(nat, "LB1113", Error, "sysctl -w net.ipv4.ip_forward=1", |facts| {
        facts.sysctl.insert("net/ipv4/conf/eth0/forwarding".to_owned(), "0".to_owned());
    });
    finds(nat, "LB1114", Warning, "net.ipv4.conf.eth0.rp_filter=2", |facts| {
        facts.sysctl.insert("net/ipv4/conf/eth0/rp_filter".to_owned(), "1".to_owned());
    });
    finds(nat, "LB1115", Error, "ip route add 10.0.1.11", |facts| {
        facts.ways.insert(backend.ip(), Way::None { why: "no route leads there".to_owned() });
    });
    finds(nat, "LB1115", Error, "ping -c1 -I eth1 10.0.1.11", |facts| {
        let silent = Way::Silent { interface: "eth1".to_owned(), neighbour: backend.ip() };
        facts.ways.insert(backend.ip(), silent);
    });
    finds(l2, "LB1115", Error, "dsr-ipip", |facts| {
        if let Some(Way::Known { gateway, .. }) = facts.ways.get_mut(&backend.ip()) {
            *gateway = Some([10, 0, 1, 1].into());
        }
    });
    let claim = |mac| Claim { vip: [203, 0, 113, 10].into(), interface: "eth0".to_owned(), mac };
    finds(nat, "LB1117", Error, "ip addr del 203.0.113.10/32", |facts| {
        facts.wire.claims = vec![claim([2, 0, 0, 0, 0, 0x77])];
    });
    finds(l2, "LB1117", Error, "arp_ignore=1", |facts| facts.wire.claims = vec![claim(ROUTER)]);
    finds(l2, "LB1118", Error, "ip addr add 203.0.113.10/32 dev lo", |facts| {
        facts.wire.probes[0].answer = Answer::Silence;
    });
    finds(ipip, "LB1119", Error, "ip link add lb0 type ipip external", |facts| {
        jumbo(facts);
        facts.wire.probes[0].answer = Answer::Silence;
    });
    finds(
        Mode::DsrGue,
        "LB1119",
        Error,
        "ip fou add port 6080 gue && ip link add lb0 type ipip external",
        |facts| {
            jumbo(facts);
            facts.wire.probes[0].answer = Answer::Silence;
        },
    );
    finds(nat, "LB1120", Error, "ss -ltn 'sport = :80'", |facts| {
        facts.wire.probes[0].answer = Answer::Refused;
    });
}

#[test]
fn the_higher_of_two_reverse_path_filters_counts() {
    for (all, own, outcome) in [
        ("0", "1", Outcome::Warning),
        ("1", "0", Outcome::Warning),
        ("2", "1", Outcome::Ok),
        ("1", "2", Outcome::Ok),
    ] {
        let mut facts = sound(Mode::Nat);
        facts.sysctl.insert("net/ipv4/conf/all/rp_filter".to_owned(), all.to_owned());
        for name in ["eth0", "eth1"] {
            facts.sysctl.insert(format!("net/ipv4/conf/{name}/rp_filter"), own.to_owned());
        }
        assert_eq!(of(&judge(&facts), "LB1114").outcome, outcome, "all = {all}, its own = {own}");
    }
}

#[test]
fn a_vip_of_no_network_here_is_worth_knowing_and_no_more() {
    let mut facts = sound(Mode::Nat);
    facts.addresses.retain(|address| address.interface != "eth0");
    let report = judge(&facts);
    let check = of(&report, "LB1116");
    assert_eq!((check.outcome, check.found[0].severity), (Outcome::Ok, Severity::Info));
    assert!(check.found[0].remedy.as_ref().unwrap().contains("ip route add 203.0.113.10/32"));
}

#[test]
fn vips_that_others_move_may_be_elsewhere() {
    let mut facts = sound(Mode::Nat);
    facts.config.as_mut().unwrap().dataplane.hold_vips = false;
    let vip = [203, 0, 113, 10].into();
    facts.wire.claims = vec![Claim { vip, interface: "eth0".to_owned(), mac: [2, 0, 0, 0, 0, 0x77] }];
    let report = judge(&facts);
    assert_eq!(of(&report, "LB1116").outcome, Outcome::Ok);
    assert_eq!(of(&report, "LB1117").outcome, Outcome::Skipped);
    assert!(!report.wrong, "{report:#?}");
}

#[test]
fn what_could_not_be_asked_is_said_to_be_so() {
    let mut facts = sound(Mode::DsrL2);
    facts.wire = Wire { unasked: Some("it needs CAP_NET_RAW".to_owned()), ..Wire::default() };
    let report = judge(&facts);
    for code in ["LB1117", "LB1118"] {
        assert_eq!(of(&report, code).outcome, Outcome::Skipped);
    }
}
