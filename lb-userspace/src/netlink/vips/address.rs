//! Addresses in the kernel.

use std::{io, net::IpAddr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, AddressScope, CacheInfo},
};

use super::{Vip, VipError};
use crate::netlink::{OUR_PROTOCOL, request::Requests};

/// An address that an interface has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Present {
    pub vip: Vip,
    /// It carries our mark.
    pub ours: bool,
}

pub(super) fn dump(requests: &mut Requests) -> io::Result<Vec<Present>> {
    let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let answers = requests.dump(&question)?.into_iter();
    Ok(answers
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewAddress(message) => parse(&message),
            _ => None,
        })
        .collect())
}

fn parse(message: &AddressMessage) -> Option<Present> {
    let (mut local, mut address, mut ours) = (None, None, false);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            // The peer's on point-to-point links, which have a local one too; the same otherwise.
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Protocol(AddressProtocol::Other(protocol)) => ours = *protocol == OUR_PROTOCOL,
            _ => {}
        }
    }
    Some(Present { vip: Vip { ifindex: message.header.index, address: local.or(address)? }, ours })
}

pub(super) fn add(requests: &mut Requests, vip: Vip) -> Result<(), VipError> {
    let mut message = message(vip);
    let mut lifetime = CacheInfo::default();
    // Deprecated from the start, and valid for ever.
    (lifetime.ifa_preferred, lifetime.ifa_valid) = (0, u32::MAX);
    message.attributes.extend([
        AddressAttribute::Flags(AddressFlags::Nodad | AddressFlags::Noprefixroute),
        AddressAttribute::CacheInfo(lifetime),
        AddressAttribute::Protocol(AddressProtocol::Other(OUR_PROTOCOL)),
    ]);
    let result = requests.change(RouteNetlinkMessage::NewAddress(message), NLM_F_CREATE | NLM_F_EXCL);
    match result.as_ref().map_err(io::Error::raw_os_error) {
        Ok(()) | Err(Some(libc::EEXIST)) => Ok(()),
        Err(Some(libc::ENODEV | libc::ENXIO)) => Err(VipError::NoInterface),
        Err(Some(libc::EACCES)) => Err(VipError::Ipv6Disabled),
        Err(Some(libc::EPERM)) => Err(VipError::Permission),
        Err(errno) => Err(VipError::Refused(errno.unwrap_or(libc::EIO))),
    }
}

/// One that is gone is fine too.
pub(super) fn remove(requests: &mut Requests, vip: Vip) -> io::Result<()> {
    match requests.change(RouteNetlinkMessage::DelAddress(message(vip)), 0) {
        Err(error)
            if matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::ENODEV | libc::ENXIO)) =>
        {
            Ok(())
        }
        result => result,
    }
}

pub(super) fn remove_ours(requests: &mut Requests) -> io::Result<usize> {
    let ours: Vec<Present> = dump(requests)?.into_iter().filter(|present| present.ours).collect();
    for present in &ours {
        remove(requests, present.vip)?;
    }
    Ok(ours.len())
}

fn message(vip: Vip) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = vip.ifindex;
    (message.header.family, message.header.prefix_len, message.header.scope) = match vip.address {
        IpAddr::V4(_) => (AddressFamily::Inet, 32, AddressScope::Host),
        // The kernel derives the scope of an IPv6 address from the address.
        IpAddr::V6(_) => (AddressFamily::Inet6, 128, AddressScope::Universe),
    };
    message.attributes = vec![AddressAttribute::Local(vip.address), AddressAttribute::Address(vip.address)];
    message
}
