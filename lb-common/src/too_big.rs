//! "Fragmentation needed" (RFC 1191) and "packet too big" (RFC 8201): what the sender of a packet gets that does not fit
//! where it would leave.
//!
//! A tunnel takes 20 to 48 bytes of the link's MTU, so a client that fills the link with every segment would never get one
//! through if nobody told it. The message goes to the sender at once, from the address that it talks to: that of a router in
//! between may not get back through what is before us. It is sent whether "don't fragment" is set or not (RFC 791 would have
//! the packet cut up): the packet is lost either way, and most senders take the hint.
//!
//! Nobody can make us shout: a message is never longer than the packet that it answers, at most one goes out for each, and
//! all of a CPU's keep to a rate ([`admit`]). Beyond that, packets are dropped in silence.

use crate::abi::{FlowKey, Service, Settings};
use crate::checksum;
use crate::fragment;
use crate::guard::{self, Message};
use crate::icmp::{FRAGMENTATION_NEEDED, PACKET_TOO_BIG, UNREACHABLE};
use crate::parse::{self, Family, Network, Transport};
use crate::pipeline::{Packet, Step, Tables, Target, contains, find_service, stands_in};
use crate::reply::replier;
use crate::rewrite::{self, End};
use crate::session::{self, Session, SessionKey};
use crate::verdict::{Account, Reason, Verdict};
use crate::wire::{
    Chunk, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, IPPROTO_ICMP, IPPROTO_ICMPV6, Icmp, Ipv4, Ipv6, Ports,
    Wire,
};

/// Time to live of the messages.
const TTL: u8 = 64;
/// "Internetwork control", as routers' messages have (RFC 1812, section 4.3.2.5).
const TOS: u8 = 0xc0;
/// What a message may quote: with its headers 576 bytes at most (RFC 1812, section 4.3.2.3), in whole chunks.
const QUOTE_V4: usize = (576 - Ipv4::SIZE - Icmp::SIZE) / Chunk::SIZE * Chunk::SIZE;
/// The same in IPv6: the least MTU (RFC 4443, section 3.2).
const QUOTE_V6: usize = (MTU_V6 - Ipv6::SIZE - Icmp::SIZE) / Chunk::SIZE * Chunk::SIZE;
/// Where most of a frame is out of sight, it quotes so much,
const SOME: usize = 128;
/// or this: enough for the headers of nearly every packet.
const FEW: usize = 64;
/// Nobody need send less than this at once in IPv6 (RFC 8200, section 5), nor believe that he must (RFC 8201, section 4).
const MTU_V6: usize = 1280;

/// How many messages may go out at once after a silence.
pub const BURST: u64 = 50;

/// A bucket of [`BURST`] messages that gets one every `interval` nanoseconds; 0: it is never empty. The bucket is the time at
/// which it is full again. Returns the bucket after one message, or `None` if it must not be sent.
#[must_use]
#[inline(always)]
pub const fn admit(full_at: u64, now: u64, interval: u32) -> Option<u64> {
    let full_at = if full_at > now { full_at } else { now };
    let interval = interval as u64;
    if full_at - now > (BURST - 1) * interval { None } else { Some(full_at + interval) }
}

/// [`Stage::TooBig`](crate::stage::Stage::TooBig): a packet that did not fit where another stage sent it.
///
/// # Errors
///
/// Why its sender is not told: [`Reason::TooBig`], or what has changed meanwhile.
#[inline(always)]
pub fn too_big<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Step, Reason> {
    road(packet, tables).map(Step::End)
}

#[inline(always)]
fn road<T: Tables>(packet: &mut T::Packet, tables: &T) -> Result<Verdict, Reason> {
    let network = parse::network(packet)?;
    let settings = tables.settings().ok_or(Reason::NoTable)?;
    let transport = fragment::leading(packet, &network)?;
    let index = match contains(&settings.vips, network.destination) {
        true => find_service(tables, &network, &transport),
        false => None,
    };
    let service = match index {
        Some(index) => Some((index, tables.service(index).ok_or(Reason::NoTable)?)),
        None => None,
    };
    let mtu = match service {
        Some((index, service)) if !service.has(Service::SESSIONS) => {
            to_backend(tables, &network, &transport, index, service)?
        }
        None if !stands_in(settings, network.destination, transport.destination) => {
            to_client(packet, tables, settings, &network, &transport)?
        }
        _ => in_session(packet, tables, &network, &transport)?,
    };
    let length = network.end - network.l3;
    if length <= mtu
        || guard::can_be_answered(packet, &network).is_err()
        || !tables.admits_message(Message::TooBig, settings.message_interval)
    {
        return Err(Reason::TooBig);
    }
    let ifindex = packet.ifindex();
    tell(packet, &network, &transport, mtu)?;
    Ok(Verdict { reason: Reason::TooBigTold, ifindex, account: Account::NONE })
}

/// How long a client's packet may be.
#[inline(always)]
fn to_backend<T: Tables>(
    tables: &T,
    network: &Network,
    transport: &Transport,
    index: u32,
    service: &Service,
) -> Result<usize, Reason> {
    let place = tables.peek(service, &FlowKey::of_request(network, transport, index))?;
    let target = Target::of(tables, &place)?;
    Ok(told(network, usize::from(target.device.mtu).saturating_sub(target.overhead(service))))
}

/// How long a packet of a session may be.
#[inline(always)]
fn in_session<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    network: &Network,
    transport: &Transport,
) -> Result<usize, Reason> {
    let session = session::held(tables, &SessionKey::of(network, transport)).ok_or(Reason::NoSession)?;
    if session.has(Session::REPLY) {
        let towards = Network { source: session.source, destination: session.destination, ..*network };
        return on_path(packet, tables, &towards);
    }
    Ok(told(network, session::target(tables, &session)?.device.mtu.into()))
}

/// What the sender is told of an interface that takes `mtu` bytes.
#[inline(always)]
const fn told(network: &Network, mtu: usize) -> usize {
    if matches!(network.family, Family::V6) && mtu < MTU_V6 { MTU_V6 } else { mtu }
}

/// How long a `nat` backend's packet may be.
#[inline(always)]
fn to_client<T: Tables>(
    packet: &T::Packet,
    tables: &T,
    settings: &Settings,
    network: &Network,
    transport: &Transport,
) -> Result<usize, Reason> {
    if !contains(&settings.repliers, network.source) {
        return Err(Reason::NotOurs);
    }
    replier(tables, network.source, transport, End::Source).ok_or(Reason::NotOurs)?;
    on_path(packet, tables, network)
}

/// How long a packet may be on its route.
#[inline(always)]
fn on_path<T: Tables>(packet: &T::Packet, tables: &T, network: &Network) -> Result<usize, Reason> {
    match tables.path_mtu(packet, network) {
        0 => Err(Reason::TooBig),
        mtu => Ok(mtu.into()),
    }
}

/// Turns the packet into the message, back to where it came from.
#[inline(always)]
fn tell<P: Packet>(
    packet: &mut P,
    network: &Network,
    transport: &Transport,
    mtu: usize,
) -> Result<(), Reason> {
    let (headers, ether_type, longest) = match network.family {
        Family::V4 => (Ipv4::SIZE + Icmp::SIZE, ETHERTYPE_IPV4, QUOTE_V4),
        Family::V6 => (Ipv6::SIZE + Icmp::SIZE, ETHERTYPE_IPV6, QUOTE_V6),
    };
    let length = network.end - network.l3;
    let whole = if length < longest { length / Chunk::SIZE * Chunk::SIZE } else { longest };
    let quoted = viewable(packet, network.l3, whole);
    // What a receiver needs to find the flow.
    if network.l3 + quoted < transport.l4 + Ports::SIZE {
        return Err(Reason::TooBig);
    }
    let ethernet: Ethernet = *packet.view(0).ok_or(Reason::Malformed)?;
    packet.grow_head(headers).ok_or(Reason::NoHeadroom)?;
    rewrite::move_link(packet, headers, network.l3, ether_type, ethernet.destination, ethernet.source)?;

    let message = quoted + Icmp::SIZE;
    let mut icmp = match network.family {
        Family::V4 => {
            let [high, low] = (mtu as u16).to_be_bytes();
            Icmp { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, checksum: [0; 2], rest: [0, 0, high, low] }
        }
        Family::V6 => {
            Icmp { kind: PACKET_TOO_BIG, code: 0, checksum: [0; 2], rest: (mtu as u32).to_be_bytes() }
        }
    };
    let mut sum = packet.sum(network.l3 + headers, quoted)?;
    if network.family == Family::V6 {
        sum += checksum::of_address(network.source) + checksum::of_address(network.destination);
        sum += u64::from((message as u32).to_be()) + u64::from(u32::from(IPPROTO_ICMPV6).to_be());
    }
    icmp.checksum = checksum::of_words::<2>(bytemuck::cast_ref(&icmp), sum);

    let at = match network.family {
        Family::V4 => {
            let mut header = Ipv4 {
                version_ihl: 0x45,
                tos: TOS,
                total_length: ((Ipv4::SIZE + message) as u16).to_be_bytes(),
                id: [0; 2],
                fragment: [Ipv4::DONT_FRAGMENT, 0],
                ttl: TTL,
                protocol: IPPROTO_ICMP,
                checksum: [0; 2],
                source: network.destination.v4_octets(),
                destination: network.source.v4_octets(),
            };
            header.checksum = checksum::ipv4_header(&header);
            *packet.view_mut(network.l3).ok_or(Reason::Malformed)? = header;
            network.l3 + Ipv4::SIZE
        }
        Family::V6 => {
            let header: &mut Ipv6 = packet.view_mut(network.l3).ok_or(Reason::Malformed)?;
            header.version_class_label = [0x60 | TOS >> 4, TOS << 4, 0, 0];
            header.payload_length = (message as u16).to_be_bytes();
            header.next_header = IPPROTO_ICMPV6;
            header.hop_limit = TTL;
            header.source = network.destination.v6_octets();
            header.destination = network.source.v6_octets();
            network.l3 + Ipv6::SIZE
        }
    };
    *packet.view_mut(at).ok_or(Reason::Malformed)? = icmp;
    packet.truncate(at + message).ok_or(Reason::Malformed)
}

/// So many bytes of a packet, or fewer: a driver may have left most of a long frame in other buffers, where nothing can be read.
#[inline(always)]
fn viewable<P: Packet>(packet: &P, start: usize, length: usize) -> usize {
    let reaches =
        |length: usize| packet.view::<Chunk>(packet.bounded(start + length - Chunk::SIZE)).is_some();
    if length < FEW || reaches(length) {
        length
    } else if reaches(SOME) {
        SOME
    } else {
        FEW
    }
}

/// The sum of the words in `length` bytes from `start` on, in whole chunks, as long as a message may be at most.
///
/// # Errors
///
/// If the frame is shorter.
#[inline(always)]
pub fn sum<P: Packet>(packet: &P, start: usize, length: usize) -> Result<u64, Reason> {
    let mut sum = 0_u64;
    let mut at = 0;
    while at < QUOTE_V6 && at < length {
        let Chunk(words) = packet.view(start + at).ok_or(Reason::TooBig)?;
        for word in words {
            sum += u64::from(u32::from_ne_bytes(*word));
        }
        at += Chunk::SIZE;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_burst_and_then_keeps_the_rate() {
        const INTERVAL: u32 = 1_000_000;
        let now = 5_000_000_000;
        let mut bucket = 0;
        let mut sent = 0;
        while let Some(next) = admit(bucket, now, INTERVAL) {
            (bucket, sent) = (next, sent + 1);
        }
        assert_eq!(sent, BURST);
        // One more for each interval, and no more than a burst after any silence.
        assert_eq!(admit(bucket, now + u64::from(INTERVAL) - 1, INTERVAL), None);
        let bucket = admit(bucket, now + u64::from(INTERVAL), INTERVAL).unwrap();
        assert_eq!(admit(bucket, now + u64::from(INTERVAL), INTERVAL), None);
        let later = now + 3_600_000_000_000;
        let after: Vec<u64> =
            std::iter::successors(Some(bucket), |bucket| admit(*bucket, later, INTERVAL)).skip(1).collect();
        assert_eq!(after.len() as u64, BURST);
    }

    #[test]
    fn without_an_interval_a_bucket_is_never_empty() {
        assert!((0..1000).try_fold(0, |bucket, _| admit(bucket, 7, 0)).is_some());
    }
}
