//! Entries of the kernel's neighbour table (ARP and ND).

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
    route::RouteProtocol,
};

use super::{NetlinkError, OUR_PROTOCOL, request::Requests};

/// An address on a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub ifindex: u32,
    pub address: IpAddr,
}

/// What the kernel says of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub key: Key,
    pub resolution: Resolution,
    /// The kernel keeps it resolved (NTF_EXT_MANAGED, Linux 5.16).
    pub managed: bool,
    /// It carries our mark.
    pub ours: bool,
}

/// How far the kernel got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// It asks, or has no reason to.
    Pending,
    /// Nobody answered.
    Failed,
    /// It has an address; `permanent` if somebody set it by hand.
    Resolved { mac: [u8; 6], permanent: bool },
}

pub(super) fn dump(requests: &mut Requests) -> io::Result<Vec<Neighbour>> {
    let question = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let answers = requests.dump(&question)?.into_iter();
    Ok(answers
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewNeighbour(message) => parse(&message),
            _ => None,
        })
        .collect())
}

/// `None` if the kernel has no such entry.
pub(super) fn get(requests: &mut Requests, key: Key) -> io::Result<Option<Neighbour>> {
    let mut question = NeighbourMessage::default();
    question.header.family = family(key.address);
    question.header.ifindex = key.ifindex;
    question.attributes = vec![NeighbourAttribute::Destination(key.address.into())];
    match requests.ask(RouteNetlinkMessage::GetNeighbour(question)) {
        Ok(RouteNetlinkMessage::NewNeighbour(message)) => Ok(parse(&message)),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is not a neighbour")),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `None` for what is not a neighbour in this sense: entries of bridges, of proxies.
pub(super) fn parse(message: &NeighbourMessage) -> Option<Neighbour> {
    let header = &message.header;
    if header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let (mut address, mut mac, mut managed, mut ours) = (None, None, false, false);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => address = Some((*ip).into()),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            NeighbourAttribute::Protocol(protocol) => ours = u8::from(*protocol) == OUR_PROTOCOL,
            _ => {}
        }
    }
    let permanent = matches!(header.state, NeighbourState::Permanent | NeighbourState::Noarp);
    let resolution = match (header.state, mac) {
        (NeighbourState::Failed, _) => Resolution::Failed,
        (
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp,
            Some(mac),
        ) => Resolution::Resolved { mac, permanent },
        _ => Resolution::Pending,
    };
    let key = Key { ifindex: header.ifindex, address: address? };
    Some(Neighbour { key, resolution, managed, ours })
}

/// Has the kernel resolve a neighbour and keep it resolved, until [`release`].
pub(super) fn keep_resolved(requests: &mut Requests, key: Key) -> io::Result<()> {
    let mut message = message(key);
    message.attributes.push(NeighbourAttribute::ExtFlags(NeighbourExtFlags::Managed));
    requests.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Has the kernel resolve a neighbour once.
pub(super) fn resolve_once(requests: &mut Requests, key: Key) -> io::Result<()> {
    let mut message = message(key);
    message.header.flags = NeighbourFlags::Use;
    requests.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Leaves a neighbour to the kernel's usual care. One that is gone is fine too.
pub(super) fn release(requests: &mut Requests, key: Key) -> io::Result<()> {
    let mut message = message(key);
    message.header.flags = NeighbourFlags::Use;
    match requests.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_REPLACE) {
        Err(error) if is_gone(&error) => Ok(()),
        result => result,
    }
}

/// The entry or its interface is not there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO))
}

fn message(key: Key) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(key.address);
    message.header.ifindex = key.ifindex;
    message.attributes = vec![
        NeighbourAttribute::Destination(key.address.into()),
        NeighbourAttribute::Protocol(RouteProtocol::from(OUR_PROTOCOL)),
    ];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Leaves all neighbours that any agent of ours had kept resolved to the kernel's usual care, and says how many they
/// were. It is for taking everything off a host whose agent is gone.
///
/// # Errors
/// No answer from the kernel, or no privilege.
pub fn release_neighbours() -> Result<usize, NetlinkError> {
    let doing = "release neighbours";
    let mut requests = Requests::new().map_err(NetlinkError::new(doing))?;
    release_except(&mut requests, |_| false).map_err(NetlinkError::new(doing))
}

/// Releases ours but for those that are still wanted.
pub(super) fn release_except(requests: &mut Requests, wanted: impl Fn(Key) -> bool) -> io::Result<usize> {
    let left_over: Vec<Neighbour> = dump(requests)?
        .into_iter()
        .filter(|neighbour| neighbour.ours && neighbour.managed && !wanted(neighbour.key))
        .collect();
    for neighbour in &left_over {
        release(requests, neighbour.key)?;
    }
    Ok(left_over.len())
}
