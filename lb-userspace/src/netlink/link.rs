//! An interface as the kernel describes it.

use std::{collections::BTreeMap, io};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
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
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(mac) if ethernet => link.mac = mac.try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::CarrierUpCount(count) => link.carrier_ups = count,
            LinkAttribute::Controller(index) => link.controller = Some(index),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}
