//! What is asked on the wire, from a packet socket: who else answers for a VIP, and whether a backend answers *as* the VIP.
//!
//! A backend of the dsr modes is asked as the data path would ask it: a SYN for the VIP goes to its MAC, or through its tunnel (IP in IP, or
//! GUE).
//! Whatever comes back with the VIP as its source (SYN-ACK or RST) shows that it takes such packets. A connection that was
//! opened is reset the same way.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use etherparse::{
    EtherPayloadSlice, EtherType, IpNumber, PacketBuilder, SlicedPacket, TransportSlice, UdpHeader,
};

use super::Answer;
use crate::packet_socket::PacketSocket;

/// How long answers are waited for, and after what time who was silent is asked again.
const PATIENCE: Duration = Duration::from_millis(900);
const AGAIN: Duration = Duration::from_millis(300);

/// A question.
#[derive(Clone, Debug)]
pub(super) enum Question {
    /// Who has this address?
    WhoHas { vip: IpAddr, ifindex: u32, mac: [u8; 6] },
    /// Do you take connections to the VIP?
    Syn(Syn),
}

#[derive(Clone, Debug)]
pub(super) struct Syn {
    pub ifindex: u32,
    /// From this MAC to that one.
    pub macs: ([u8; 6], [u8; 6]),
    pub from: SocketAddr,
    /// The VIP.
    pub to: SocketAddr,
    /// The tunnel, if there is one.
    pub tunnel: Option<Tunnel>,
}

/// The ends of a tunnel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel {
    pub from: IpAddr,
    pub to: IpAddr,
    /// Of GUE: where its UDP goes.
    pub gue_port: Option<u16>,
}

/// What came back of each question: who answered, and how.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    pub macs: BTreeSet<[u8; 6]>,
    pub answer: Option<Answer>,
}

/// Asks all questions at once.
///
/// # Errors
/// Without CAP_NET_RAW.
pub(super) fn ask(questions: &[Question]) -> io::Result<Vec<Heard>> {
    let socket = PacketSocket::listening()?;
    let mut heard = vec![Heard::default(); questions.len()];
    let start = Instant::now();
    let (mut again, mut buffer) = (start, [0; 2048]);
    while start.elapsed() < PATIENCE {
        if Instant::now() >= again {
            again += AGAIN;
            for (question, _) in questions.iter().zip(&heard).filter(|(_, heard)| heard.answer.is_none()) {
                // An interface that is down is a finding of another rule.
                _ = question.send(&socket, false);
            }
        }
        let Some(length) = socket.receive(&mut buffer, Duration::from_millis(20))? else { continue };
        let Ok(packet) = SlicedPacket::from_ethernet(&buffer[..length]) else { continue };
        for (question, heard) in questions.iter().zip(&mut heard) {
            question.hear(&packet, heard);
        }
        let done = |(question, heard): (&Question, &Heard)| match question {
            // More than one host may answer.
            Question::WhoHas { .. } => false,
            Question::Syn(_) => heard.answer.is_some(),
        };
        if questions.iter().zip(&heard).all(done) {
            break;
        }
    }
    for (question, heard) in questions.iter().zip(&heard) {
        if heard.answer == Some(Answer::Taken) {
            _ = question.send(&socket, true);
        }
    }
    Ok(heard)
}

/// The number that our SYNs begin with.
const SEQUENCE: u32 = 0x6c62_0001;

impl Question {
    fn send(&self, socket: &PacketSocket, reset: bool) -> io::Result<()> {
        let (ifindex, frame) = match self {
            Self::WhoHas { vip, ifindex, mac } => (*ifindex, who_has(*vip, *mac)),
            Self::Syn(syn) => (syn.ifindex, syn.frame(reset)),
        };
        socket.send(ifindex, &frame)
    }

    fn hear(&self, packet: &SlicedPacket<'_>, heard: &mut Heard) {
        match self {
            Self::WhoHas { vip, .. } => heard.macs.extend(who_says_so(packet, *vip)),
            Self::Syn(syn) => {
                if let Some(answer) = syn.answered(packet) {
                    heard.answer = Some(answer);
                }
            }
        }
    }
}

impl Syn {
    fn frame(&self, reset: bool) -> Vec<u8> {
        let (from, to) = (self.from, self.to);
        let sequence = if reset { SEQUENCE + 1 } else { SEQUENCE };
        let mut inner = Vec::new();
        let inner_builder = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), 64),
            _ => return inner,
        };
        let tcp = inner_builder.tcp(from.port(), to.port(), sequence, 1024);
        let tcp = if reset { tcp.rst() } else { tcp.syn() };
        // Writing to memory fails for lengths only that no SYN has.
        _ = tcp.write(&mut inner, &[]);
        let kind = if to.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let Some(Tunnel { from: source, to: destination, gue_port }) = self.tunnel else {
            return framed(self.macs, kind, &inner);
        };
        let mut number = if to.is_ipv4() { IpNumber::IPV4 } else { IpNumber::IPV6 };
        if let Some(port) = gue_port {
            // Variant 1 of GUE: the packet right behind UDP, whose checksum is left out, as the data path does.
            let length = (UdpHeader::LEN + inner.len()) as u16;
            let udp =
                UdpHeader { source_port: self.from.port(), destination_port: port, length, checksum: 0 };
            inner = [&udp.to_bytes()[..], &inner].concat();
            number = IpNumber::UDP;
        }
        let mut outer = Vec::new();
        let (kind, builder) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (EtherType::IPV4, PacketBuilder::ipv4(source.octets(), destination.octets(), 64))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (EtherType::IPV6, PacketBuilder::ipv6(source.octets(), destination.octets(), 64))
            }
            _ => return outer,
        };
        _ = builder.write(&mut outer, number, &inner);
        framed(self.macs, kind, &outer)
    }

    fn answered(&self, packet: &SlicedPacket<'_>) -> Option<Answer> {
        let (from, to) = addresses(packet)?;
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { return None };
        let ports = (tcp.source_port(), tcp.destination_port());
        if (from, to) != (self.to.ip(), self.from.ip()) || ports != (self.to.port(), self.from.port()) {
            return None;
        }
        match (tcp.rst(), tcp.syn() && tcp.ack()) {
            (true, _) => Some(Answer::Refused),
            (false, true) => Some(Answer::Taken),
            (false, false) => None,
        }
    }
}

fn addresses(packet: &SlicedPacket<'_>) -> Option<(IpAddr, IpAddr)> {
    use etherparse::NetSlice;
    match packet.net.as_ref()? {
        NetSlice::Ipv4(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header();
            Some((header.source_addr().into(), header.destination_addr().into()))
        }
        NetSlice::Arp(_) => None,
    }
}

fn framed((from, to): ([u8; 6], [u8; 6]), kind: EtherType, payload: &[u8]) -> Vec<u8> {
    [&to[..], &from, &kind.0.to_be_bytes(), payload].concat()
}

/// An ARP probe (RFC 5227, 2.1.1), or the neighbour solicitation of duplicate address detection (RFC 4862, 5.4.2): neither
/// has a sender's address, so that nobody's table is changed by it.
fn who_has(vip: IpAddr, mac: [u8; 6]) -> Vec<u8> {
    const BROADCAST: [u8; 6] = [0xff; 6];
    match vip {
        IpAddr::V4(vip) => {
            // Ethernet, IPv4, 6 and 4 bytes, request.
            let head = [0, 1, 0x08, 0x00, 6, 4, 0, 1];
            let body = [&head[..], &mac, &[0; 4], &[0; 6], &vip.octets()].concat();
            framed((mac, BROADCAST), EtherType::ARP, &body)
        }
        IpAddr::V6(vip) => {
            let [.., a, b, c] = vip.octets();
            let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c];
            let mut packet = Vec::new();
            let solicitation = PacketBuilder::ipv6([0; 16], group, 255).icmpv6_raw(135, 0, [0; 4]);
            _ = solicitation.write(&mut packet, &vip.octets());
            framed((mac, [0x33, 0x33, 0xff, a, b, c]), EtherType::IPV6, &packet)
        }
    }
}

/// The MAC of whoever says that the VIP is its own.
fn who_says_so(packet: &SlicedPacket<'_>, vip: IpAddr) -> Option<[u8; 6]> {
    let EtherPayloadSlice { ether_type, payload, .. } = packet.ether_payload()?;
    match (vip, ether_type) {
        (IpAddr::V4(vip), EtherType::ARP) => {
            let (operation, sender) = (payload.get(6..8)?, payload.get(14..18)?);
            let is_reply = operation == [0, 2];
            (is_reply && sender == vip.octets()).then_some(())?;
            payload.get(8..14)?.first_chunk().copied()
        }
        (IpAddr::V6(vip), EtherType::IPV6) => {
            const ADVERTISEMENT: u8 = 136;
            const ICMPV6: u8 = 58;
            let is_one = payload.get(6) == Some(&ICMPV6) && payload.get(40) == Some(&ADVERTISEMENT);
            (is_one && payload.get(48..64)? == vip.octets()).then_some(())?;
            match packet.link.as_ref()? {
                etherparse::LinkSlice::Ethernet2(ethernet) => Some(ethernet.source()),
                _ => None,
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const THEIRS: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn syn(vip: &str, tunnel: Option<(&str, &str)>) -> Syn {
        let from = if vip.starts_with('[') { "[2001:db8::1]:40000" } else { "10.0.0.1:40000" };
        let ip = |text: &str| text.parse().unwrap();
        Syn {
            ifindex: 2,
            macs: (OURS, THEIRS),
            from: from.parse().unwrap(),
            to: vip.parse().unwrap(),
            tunnel: tunnel.map(|(from, to)| Tunnel { from: ip(from), to: ip(to), gue_port: None }),
        }
    }

    /// Frame with the ends of a connection exchanged, as an answer with these flags.
    fn reply(to: &Syn, rst: bool, ack: bool) -> Vec<u8> {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(THEIRS, OURS);
        let ip = match (to.to.ip(), to.from.ip()) {
            (IpAddr::V4(vip), IpAddr::V4(us)) => builder.ipv4(vip.octets(), us.octets(), 64),
            (IpAddr::V6(vip), IpAddr::V6(us)) => builder.ipv6(vip.octets(), us.octets(), 64),
            _ => unreachable!(),
        };
        let tcp = ip.tcp(to.to.port(), to.from.port(), 7, 1024);
        let tcp = if rst { tcp.rst() } else { tcp.syn() };
        let tcp = if ack { tcp.ack(SEQUENCE + 1) } else { tcp };
        tcp.write(&mut frame, &[]).unwrap();
        frame
    }

    #[test]
    fn an_answer_has_the_vip_as_its_source() {
        for vip in ["203.0.113.10:80", "[2001:db8:10::53]:53"] {
            let asked = syn(vip, None);
            let heard = |frame: &[u8]| asked.answered(&SlicedPacket::from_ethernet(frame).unwrap());
            assert_eq!(heard(&reply(&asked, false, true)), Some(Answer::Taken));
            assert_eq!(heard(&reply(&asked, true, true)), Some(Answer::Refused));
            assert_eq!(heard(&reply(&asked, false, false)), None, "a SYN is no answer");
            assert_eq!(heard(&asked.frame(false)), None, "nor is our own");
        }
    }

    #[test]
    fn a_tunnel_has_the_syn_for_the_vip_within() {
        const V4: (&str, &str) = ("10.0.0.1", "10.0.0.11");
        const V6: (&str, &str) = ("2001:db8::1", "2001:db8::11");
        for (vip, tunnel, gue_port, outer) in [
            ("203.0.113.10:80", V4, None, 20),
            ("203.0.113.10:80", V6, None, 40),
            ("[2001:db8:10::53]:53", V4, None, 20),
            ("203.0.113.10:80", V4, Some(6080), 28),
            ("[2001:db8:10::53]:53", V6, Some(6635), 48),
        ] {
            let mut asked = syn(vip, Some(tunnel));
            asked.tunnel = asked.tunnel.map(|tunnel| Tunnel { gue_port, ..tunnel });
            let frame = asked.frame(false);
            let around = SlicedPacket::from_ethernet(&frame).unwrap();
            match (&around.transport, gue_port) {
                (Some(TransportSlice::Udp(udp)), Some(port)) => {
                    let of = (udp.source_port(), udp.destination_port(), udp.checksum());
                    assert_eq!(of, (asked.from.port(), port, 0));
                    assert_eq!(usize::from(udp.length()), frame.len() - 14 - (outer - 8));
                }
                (None, None) => {}
                (transport, _) => panic!("{transport:?}"),
            }
            let inner = framed(
                (OURS, THEIRS),
                EtherType(if vip.starts_with('[') { 0x86dd } else { 0x800 }),
                &frame[14 + outer..],
            );
            let packet = SlicedPacket::from_ethernet(&inner).unwrap();
            assert_eq!(addresses(&packet).unwrap().1, vip.parse::<SocketAddr>().unwrap().ip());
            assert!(matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn() && !tcp.ack()));
        }
    }

    #[test]
    fn who_answers_for_a_vip_is_told_by_its_mac() {
        let vip: IpAddr = "203.0.113.10".parse().unwrap();
        let mut frame = who_has(vip, OURS);
        assert_eq!(who_says_so(&SlicedPacket::from_ethernet(&frame).unwrap(), vip), None, "a question");
        frame[21] = 2;
        frame[22..28].copy_from_slice(&THEIRS);
        frame[28..32].copy_from_slice(&[203, 0, 113, 10]);
        assert_eq!(who_says_so(&SlicedPacket::from_ethernet(&frame).unwrap(), vip), Some(THEIRS));
        assert_eq!(
            who_says_so(&SlicedPacket::from_ethernet(&frame).unwrap(), [203, 0, 113, 11].into()),
            None
        );

        let vip: std::net::Ipv6Addr = "2001:db8:10::53".parse().unwrap();
        let asked = who_has(vip.into(), OURS);
        assert_eq!(&asked[..6], &[0x33, 0x33, 0xff, 0, 0, 0x53]);
        let mut frame = Vec::new();
        let advertisement = PacketBuilder::ethernet2(THEIRS, [0x33, 0x33, 0, 0, 0, 1])
            .ipv6(vip.octets(), [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 255)
            .icmpv6_raw(136, 0, [0x20, 0, 0, 0]);
        advertisement.write(&mut frame, &vip.octets()).unwrap();
        assert_eq!(who_says_so(&SlicedPacket::from_ethernet(&frame).unwrap(), vip.into()), Some(THEIRS));
    }
}
