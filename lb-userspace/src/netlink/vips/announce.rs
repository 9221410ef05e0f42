//! Gratuitous ARP and unsolicited neighbour advertisements, from a packet socket.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet_socket::PacketSocket;

const BROADCAST: [u8; 6] = [0xff; 6];
/// All nodes on the link: ff02::1, and its MAC (RFC 2464, 7).
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Sends announcements, if it may.
#[derive(Debug)]
pub(super) struct Announcer {
    socket: Option<PacketSocket>,
}

impl Announcer {
    pub(super) fn new() -> Self {
        match PacketSocket::sending() {
            Ok(socket) => Self { socket: Some(socket) },
            Err(error) => {
                tracing::warn!(
                    %error,
                    "VIPs are not announced (it needs CAP_NET_RAW): neighbours learn of them when their own entries expire"
                );
                Self { socket: None }
            }
        }
    }

    /// Tells the link that this address is here.
    pub(super) fn announce(&self, ifindex: u32, mac: [u8; 6], address: IpAddr) {
        let Some(socket) = &self.socket else { return };
        let result = match address {
            IpAddr::V4(ip) => socket.send(ifindex, &gratuitous_arp(mac, ip)),
            IpAddr::V6(ip) => socket.send(ifindex, &advertisement(mac, ip)),
        };
        if let Err(error) = result {
            tracing::debug!(%address, ifindex, %error, "a VIP was not announced");
        }
    }
}

/// An ARP announcement (RFC 5227, 2.3): a request whose sender and target are the address.
fn gratuitous_arp(mac: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
    let ip = ip.octets();
    [
        &BROADCAST[..],
        &mac,
        &[0x08, 0x06],
        // Ethernet, IPv4, 6 and 4 bytes, request.
        &[0, 1, 0x08, 0x00, 6, 4, 0, 1],
        &mac,
        &ip,
        &[0; 6],
        &ip,
    ]
    .concat()
}

/// A neighbour advertisement that nobody asked for, with the override flag (RFC 4861, 4.4 and 7.2.6).
fn advertisement(mac: [u8; 6], ip: Ipv6Addr) -> Vec<u8> {
    const ICMPV6: u8 = 58;
    const OVERRIDE: u8 = 0x20;
    let (source, all_nodes) = (ip.octets(), ALL_NODES.octets());
    let body = |checksum: [u8; 2]| {
        // Type 136, code 0; option 2: target link-layer address, one unit of 8 bytes.
        [&[136, 0], &checksum[..], &[OVERRIDE, 0, 0, 0], &source, &[2, 1], &mac].concat()
    };
    let unsummed = body([0; 2]);
    let length = (unsummed.len() as u16).to_be_bytes();
    let pseudo = [&source[..], &all_nodes, &[0, 0], &length, &[0, 0, 0, ICMPV6], &unsummed].concat();
    [
        &ALL_NODES_MAC[..],
        &mac,
        &[0x86, 0xdd],
        // Version 6; a hop limit of 255 shows that no router passed it on.
        &[0x60, 0, 0, 0],
        &length,
        &[ICMPV6, 255],
        &source,
        &all_nodes,
        &body(checksum(&pseudo).to_be_bytes()),
    ]
    .concat()
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks().0.iter().map(|pair| u32::from(u16::from_be_bytes(*pair)));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !(((folded & 0xffff) + (folded >> 16)) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];

    #[test]
    fn a_gratuitous_arp_is_a_request_for_oneself() {
        let expected = [
            "ffffffffffff",
            "02000000000a",
            "0806",
            "0001",
            "0800",
            "06",
            "04",
            "0001",
            "02000000000a",
            "cb00710a",
            "000000000000",
            "cb00710a",
        ];
        assert_eq!(hex(&gratuitous_arp(MAC, Ipv4Addr::new(203, 0, 113, 10))), expected.concat());
    }

    #[test]
    fn an_advertisement_overrides_and_its_checksum_is_right() {
        let ip: Ipv6Addr = "2001:db8::10".parse().expect("an address");
        let frame = advertisement(MAC, ip);
        let expected = [
            "333300000001",
            "02000000000a",
            "86dd",
            "60000000",
            "0020",
            "3a",
            "ff",
            "20010db8000000000000000000000010",
            "ff020000000000000000000000000001",
            "8800",
        ];
        let (head, rest) = frame.split_at(56);
        assert_eq!(hex(head), expected.concat());
        let (sum, rest) = rest.split_at(2);
        assert_ne!(sum, [0, 0]);
        assert_eq!(
            hex(rest),
            ["20000000", "20010db8000000000000000000000010", "0201", "02000000000a"].concat()
        );
        let pseudo = [&frame[22..54], &[0, 0, 0, 32, 0, 0, 0, 58], &frame[54..]].concat();
        assert_eq!(checksum(&pseudo), 0, "a sum over a right checksum is zero");
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
