//! An interface as the kernel describes it.

use std::{collections::BTreeMap, io};

use lb_common::wire::ETHERTYPE_VLAN;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
};

use super::request::Requests;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's number for it. Another interface of the same name gets another one.
    pub index: u32,
    /// Its name now.
    pub name: String,
    /// Its address; `None` if it is not Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The longest IP packet that it takes, in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and there is a carrier.
    pub running: bool,
    /// How often the carrier came. A link that went and came back between two looks is known by it.
    pub carrier_ups: u32,
    /// It needs MAC addresses of its neighbours: Ethernet with ARP on.
    pub resolves: bool,
    /// `veth`, `vlan`, `bond` …; `None` for plain devices.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it belongs to.
    pub controller: Option<u32>,
    /// What a VLAN device is on, if that is in this network namespace.
    pub vlan: Option<VlanOn>,
}

/// What a VLAN device is on, and its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlanOn {
    /// The interface below.
    pub parent: u32,
    /// EtherType of the tag: of 802.1Q or 802.1ad.
    pub ether_type: u16,
    /// VLAN id.
    pub id: u16,
}

/// By which interfaces frames come in, in the eyes of an interface's XDP program. A bond hands its program to its ports, which
/// run it as their own; in generic mode only they are the bond's.
pub(crate) fn arrivals(links: &BTreeMap<u32, Link>, ifindex: u32) -> Vec<u32> {
    let is_bond = links.get(&ifindex).is_some_and(|link| link.kind.as_deref() == Some("bond"));
    let ports = links.values().filter(|link| is_bond && link.controller == Some(ifindex));
    ports.map(|port| port.index).chain([ifindex]).collect()
}

pub(super) fn dump(requests: &mut Requests) -> io::Result<BTreeMap<u32, Link>> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let links = requests.dump(&question)?.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(message) => parse(message),
        _ => None,
    });
    Ok(links.map(|link| (link.index, link)).collect())
}

fn parse(message: LinkMessage) -> Option<Link> {
    // The same type of message, with another family, tells what a bridge knows of its port.
    if message.header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let flags = message.header.flags;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags.contains(LinkFlags::Up),
        running: flags.contains(LinkFlags::Up | LinkFlags::Running),
        carrier_ups: 0,
        resolves: ethernet && !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
        kind: None,
        controller: None,
        vlan: None,
    };
    let (mut below, mut elsewhere, mut tag) = (None, false, None);
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::CarrierUpCount(count) => link.carrier_ups = count,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::Link(index) => below = Some(index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => link.kind = Some(kind.to_string()),
                        LinkInfo::Data(InfoData::Vlan(parts)) => tag = tag_of(&parts),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if let (Some(parent), false, Some((ether_type, id))) = (below, elsewhere, tag) {
        link.vlan = Some(VlanOn { parent, ether_type, id });
    }
    Some(link)
}

fn tag_of(parts: &[InfoVlan]) -> Option<(u16, u16)> {
    let id = parts.iter().find_map(|part| match part {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })?;
    let protocol = parts.iter().find_map(|part| match part {
        InfoVlan::Protocol(protocol) => Some(u16::from(*protocol)),
        _ => None,
    });
    Some((protocol.unwrap_or(ETHERTYPE_VLAN), id))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{InfoKind, VlanProtocol};

    use super::*;

    fn vlan(attributes: Vec<LinkAttribute>) -> Option<VlanOn> {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = LinkLayerType::Ether;
        let parts = vec![InfoVlan::Id(100), InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)];
        let infos = vec![LinkInfo::Kind(InfoKind::Vlan), LinkInfo::Data(InfoData::Vlan(parts))];
        message.attributes = attributes;
        message.attributes.push(LinkAttribute::LinkInfo(infos));
        let link = parse(message).expect("a link");
        assert_eq!(link.kind.as_deref(), Some("vlan"));
        link.vlan
    }

    #[test]
    fn frames_of_a_bond_come_in_by_its_ports() {
        let link = |index: u32, kind: InfoKind, controller: Option<u32>| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])];
            message.attributes.extend(controller.map(LinkAttribute::Controller));
            (index, parse(message).expect("a link"))
        };
        let links = BTreeMap::from([
            link(2, InfoKind::Veth, Some(4)),
            link(3, InfoKind::Veth, Some(4)),
            link(4, InfoKind::Bond, None),
            link(5, InfoKind::Veth, Some(6)),
            link(6, InfoKind::Bridge, None),
        ]);
        assert_eq!(arrivals(&links, 4), [2, 3, 4]);
        assert_eq!(arrivals(&links, 2), [2]);
        assert_eq!(arrivals(&links, 6), [6], "the ports of a bridge have programs of their own");
        assert_eq!(arrivals(&links, 9), [9]);
    }

    #[test]
    fn a_vlan_device_names_what_it_is_on() {
        let on = VlanOn { parent: 7, ether_type: 0x88a8, id: 100 };
        assert_eq!(vlan(vec![LinkAttribute::Link(7)]), Some(on));
        let elsewhere = vec![LinkAttribute::Link(7), LinkAttribute::LinkNetNsId(0)];
        assert_eq!(vlan(elsewhere), None, "what is below is in another namespace");
        assert_eq!(vlan(vec![]), None);
        assert_eq!(tag_of(&[InfoVlan::Id(5)]), Some((0x8100, 5)), "802.1Q unless it says otherwise");
    }
}
