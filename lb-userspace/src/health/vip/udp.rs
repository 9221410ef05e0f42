//! A datagram along the data path, and what is answered.

use std::future::poll_fn;
use std::net::IpAddr;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use tokio::time::{Instant, timeout_at};

use super::Road;
use crate::health::probe::{Failure, Miss};

/// Time to live of what is sent, as of other packets that begin here.
const HOPS: u8 = 64;

/// Sends a datagram, and waits for another one.
///
/// # Errors
/// [`Failure::Timeout`]. (Who says by ICMP that nobody listens is not heard: that is for the kernel's sockets.)
pub(in crate::health) async fn exchange(
    mut road: Road,
    datagram: &[u8],
    deadline: Instant,
) -> Result<Vec<u8>, Miss> {
    road.send(&packet(&road, datagram));
    loop {
        let answer = timeout_at(deadline, poll_fn(|cx| road.seat.poll_answer(cx))).await;
        let answer = answer.map_err(|_| Failure::Timeout)?;
        if let Some(payload) = payload(&answer) {
            return Ok(payload.to_vec());
        }
    }
}

fn packet(road: &Road, datagram: &[u8]) -> Vec<u8> {
    let (from, vip) = road.ends();
    let ip = match (from.ip(), vip.ip()) {
        (IpAddr::V4(from), IpAddr::V4(vip)) => PacketBuilder::ipv4(from.octets(), vip.octets(), HOPS),
        (from, vip) => {
            let octets = |ip| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            PacketBuilder::ipv6(octets(from), octets(vip), HOPS)
        }
    };
    let mut packet = Vec::new();
    // Writing to memory fails for lengths only that no configuration allows.
    _ = ip.udp(from.port(), vip.port()).write(&mut packet, datagram);
    packet
}

fn payload(packet: &[u8]) -> Option<&[u8]> {
    match SlicedPacket::from_ip(packet).ok()?.transport? {
        TransportSlice::Udp(udp) => Some(udp.payload()),
        _ => None,
    }
}
