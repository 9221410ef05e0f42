//! The packet sockets that all probes along the data path share, and who is waiting at which port.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::{Context, Poll};

use lb_common::wire::{IPPROTO_TCP, IPPROTO_UDP};
use tokio::io::{Interest, unix::AsyncFd};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::health::probe::Trouble;
use crate::packet_socket::PacketSocket;

/// Packets that a probe may leave lying; more are lost, as in any receiver.
const BACKLOG: usize = 64;
/// GRO makes one of many, up to this length in bytes.
const LONGEST: usize = 65_536 + 40;
/// Packets that are read in one go, before other tasks get their turn.
const BATCH: usize = 64;

/// Where an answer is from and what it is for: the protocol, the VIP, and this host's port.
type Key = (u8, SocketAddr, u16);

/// The sockets.
#[derive(Debug)]
pub(super) struct Wire {
    sender: PacketSocket,
    ports: RangeInclusive<u16>,
    waiting: Mutex<Waiting>,
    reader: OnceLock<AbortHandle>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// The last port that was given away.
    last: u16,
    seats: HashMap<Key, mpsc::Sender<Vec<u8>>>,
}

/// A port, and what comes to it.
#[derive(Debug)]
pub(super) struct Seat {
    wire: Arc<Wire>,
    key: Key,
    source: IpAddr,
    answers: mpsc::Receiver<Vec<u8>>,
}

impl Wire {
    /// Opens both, and reads in a task of the runtime that it is called in.
    pub(super) fn open(ports: RangeInclusive<u16>) -> io::Result<Arc<Self>> {
        let sender = PacketSocket::sending()?;
        let receiver = PacketSocket::filtered(&filter(&ports))?;
        // SAFETY: the descriptor is owned by what keeps it, and closed with it.
        let receiver = unsafe { AsyncFd::register_with_interest(receiver, Interest::READABLE)? };
        let wire = Arc::new(Self { sender, ports, waiting: Mutex::default(), reader: OnceLock::new() });
        let reader = tokio::spawn(read(receiver, Arc::downgrade(&wire)));
        _ = wire.reader.set(reader.abort_handle());
        Ok(wire)
    }

    pub(super) const fn ports(&self) -> &RangeInclusive<u16> {
        &self.ports
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free port for a probe of `vip`. It goes round, so that a port rests for as long as may be.
    pub(super) fn sit_down(
        self: &Arc<Self>,
        protocol: u8,
        source: IpAddr,
        vip: SocketAddr,
    ) -> Result<Seat, Trouble> {
        let (sender, answers) = mpsc::channel(BACKLOG);
        let mut waiting = self.lock();
        let (first, last) = (*self.ports.start(), *self.ports.end());
        let next = if (first..last).contains(&waiting.last) { waiting.last + 1 } else { first };
        let free = (next..=last).chain(first..next).find(|&port| {
            // What goes to the very port that it is from would be its own answer.
            port != vip.port() && !waiting.seats.contains_key(&(protocol, vip, port))
        });
        let port = free.ok_or(Trouble::Connect(io::ErrorKind::AddrInUse))?;
        waiting.last = port;
        let key = (protocol, vip, port);
        waiting.seats.insert(key, sender);
        Ok(Seat { wire: Arc::clone(self), key, source, answers })
    }

    /// Gives a packet to whoever waits for it.
    fn deliver(&self, packet: &[u8]) {
        let Some(key) = key_of(packet) else { return };
        if let Some(seat) = self.lock().seats.get(&key) {
            // Full: lost, as in any receiver.
            _ = seat.try_send(packet.to_vec());
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }
}

impl Seat {
    /// This host's end.
    pub(super) fn from(&self) -> SocketAddr {
        (self.source, self.key.2).into()
    }

    /// The other one.
    pub(super) const fn vip(&self) -> SocketAddr {
        self.key.1
    }

    /// Sends a frame.
    pub(super) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        self.wire.sender.send(ifindex, frame)
    }

    /// What has come, an IP packet.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Vec<u8>> {
        match self.answers.poll_recv(cx) {
            Poll::Ready(Some(packet)) => Poll::Ready(packet),
            // Its other end is kept for as long as this is.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.wire.lock().seats.remove(&self.key);
    }
}

async fn read(receiver: AsyncFd<PacketSocket>, wire: Weak<Wire>) {
    let mut buffer = vec![0; LONGEST];
    loop {
        let Ok(mut ready) = receiver.readable().await else { return };
        let Some(wire) = wire.upgrade() else { return };
        for _ in 0..BATCH {
            match ready.try_io(|socket| receive(socket.get_ref(), &mut buffer)) {
                Ok(Ok(length)) => wire.deliver(&buffer[..length]),
                // An interface that went down is told of once (ENETDOWN); the socket lives on.
                Ok(Err(_)) => break,
                Err(_would_block) => break,
            }
        }
        drop(wire);
        tokio::task::yield_now().await;
    }
}

fn receive(socket: &PacketSocket, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the buffer is ours, with the length that is passed.
    let length = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}

/// Who waits for an IP packet; `None` of what the filter should not have taken.
fn key_of(packet: &[u8]) -> Option<Key> {
    let (protocol, source, l4): (u8, IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let header = usize::from(packet[0] & 0xf) * 4;
            (*packet.get(9)?, (*packet.get(12..16)?.first_chunk::<4>()?).into(), packet.get(header..)?)
        }
        6 => (*packet.get(6)?, (*packet.get(8..24)?.first_chunk::<16>()?).into(), packet.get(40..)?),
        _ => return None,
    };
    let &[a, b, c, d] = l4.first_chunk::<4>()?;
    matches!(protocol, IPPROTO_TCP | IPPROTO_UDP).then_some(())?;
    Some((protocol, (source, u16::from_be_bytes([a, b])).into(), u16::from_be_bytes([c, d])))
}

/// Takes TCP and UDP to these ports, whole or from the first fragment on; in IPv6 without extension headers.
fn filter(ports: &RangeInclusive<u16>) -> Vec<libc::sock_filter> {
    const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
    const LOAD_HALF: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_ABS;
    const LOAD_HALF_BEHIND: u32 = libc::BPF_LD | libc::BPF_H | libc::BPF_IND;
    /// X becomes the length of the IPv4 header.
    const LOAD_HEADER: u32 = libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH;
    const SHIFT: u32 = libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const ANY_BIT: u32 = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const MORE: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
    const JUMP: u32 = libc::BPF_JMP | libc::BPF_JA;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let (tcp, udp) = (u32::from(IPPROTO_TCP), u32::from(IPPROTO_UDP));
    let (first, last) = (u32::from(*ports.start()), u32::from(*ports.end()));
    let step =
        |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
    vec![
        /*  0 */ step(LOAD_BYTE, 0, 0, 0),
        /*  1 */ step(SHIFT, 4, 0, 0),
        /*  2 */ step(EQUAL, 4, 0, 8),
        /*  3 */ step(LOAD_HALF, 6, 0, 0),
        /*  4 */ step(ANY_BIT, 0x1fff, 14, 0),
        /*  5 */ step(LOAD_BYTE, 9, 0, 0),
        /*  6 */ step(EQUAL, tcp, 1, 0),
        /*  7 */ step(EQUAL, udp, 0, 11),
        /*  8 */ step(LOAD_HEADER, 0, 0, 0),
        /*  9 */ step(LOAD_HALF_BEHIND, 2, 0, 0),
        /* 10 */ step(JUMP, 5, 0, 0),
        /* 11 */ step(EQUAL, 6, 0, 7),
        /* 12 */ step(LOAD_BYTE, 6, 0, 0),
        /* 13 */ step(EQUAL, tcp, 1, 0),
        /* 14 */ step(EQUAL, udp, 0, 4),
        /* 15 */ step(LOAD_HALF, 42, 0, 0),
        /* 16 */ step(AT_LEAST, first, 0, 2),
        /* 17 */ step(MORE, last, 1, 0),
        /* 18 */ step(RETURN, u32::MAX, 0, 0),
        /* 19 */ step(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::PacketBuilder;

    use super::*;

    /// What the filter says of a packet, by an interpreter of what it uses (net/core/filter.c).
    fn takes(filter: &[libc::sock_filter], packet: &[u8]) -> bool {
        let (mut pc, mut a, mut x) = (0_usize, 0_u32, 0_u32);
        let load = |at: u32, length: usize| {
            let bytes = packet.get(at as usize..at as usize + length)?;
            Some(bytes.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte)))
        };
        loop {
            let libc::sock_filter { code, jt, jf, k } = filter[pc];
            pc += 1;
            let code = u32::from(code);
            let holds = match (code & 0x07, code & 0xf0) {
                (0x00, _) => {
                    let length = if code & 0x18 == libc::BPF_H { 2 } else { 1 };
                    let at = if code & 0xe0 == libc::BPF_IND { x + k } else { k };
                    let Some(value) = load(at, length) else { return false };
                    a = value;
                    continue;
                }
                (0x01, _) => {
                    let Some(value) = load(k, 1) else { return false };
                    x = (value & 0xf) * 4;
                    continue;
                }
                (0x04, libc::BPF_RSH) => {
                    a >>= k;
                    continue;
                }
                (0x05, libc::BPF_JA) => {
                    pc += k as usize;
                    continue;
                }
                (0x05, libc::BPF_JEQ) => a == k,
                (0x05, libc::BPF_JGT) => a > k,
                (0x05, libc::BPF_JGE) => a >= k,
                (0x05, libc::BPF_JSET) => a & k != 0,
                (0x06, _) => return k != 0,
                other => panic!("{other:?}"),
            };
            pc += usize::from(if holds { jt } else { jf });
        }
    }

    fn packet(v6: bool, udp: bool, to: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ip = if v6 {
            PacketBuilder::ipv6([1; 16], [2; 16], 64)
        } else {
            PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        if udp {
            ip.udp(80, to).write(&mut bytes, b"x").unwrap();
        } else {
            ip.tcp(80, to, 1, 1).write(&mut bytes, b"x").unwrap();
        }
        bytes
    }

    #[test]
    fn only_tcp_and_udp_to_the_ports_is_taken() {
        let filter = filter(&(63_000..=64_000));
        for (v6, udp) in [(false, false), (false, true), (true, false), (true, true)] {
            for (port, wanted) in [(62_999, false), (63_000, true), (64_000, true), (64_001, false)] {
                assert_eq!(takes(&filter, &packet(v6, udp, port)), wanted, "{v6} {udp} {port}");
            }
            let mut other = packet(v6, udp, 63_000);
            other[if v6 { 6 } else { 9 }] = 47;
            assert!(!takes(&filter, &other), "GRE");
            other[0] = 0x50;
            assert!(!takes(&filter, &other), "no version of IP");
        }
        let mut fragment = packet(false, false, 63_000);
        fragment[7] = 1;
        assert!(!takes(&filter, &fragment), "what is in its place is no port");
        // Options move the ports.
        let mut options = packet(false, false, 63_000);
        options[0] = 0x46;
        options.splice(20..20, [1, 1, 1, 1]);
        assert!(takes(&filter, &options));
        assert!(!takes(&filter, &options[..20]), "too short");
    }

    #[test]
    fn an_answer_is_known_by_protocol_vip_and_port() {
        for (v6, vip) in [(false, "10.0.0.1:80"), (true, "[101:101:101:101:101:101:101:101]:80")] {
            for (udp, protocol) in [(false, 6), (true, 17)] {
                let key = (protocol, vip.parse().unwrap(), 63_001);
                assert_eq!(key_of(&packet(v6, udp, 63_001)), Some(key));
            }
        }
        for length in 0..24 {
            _ = key_of(&packet(false, false, 63_001)[..length]);
            _ = key_of(&packet(true, false, 63_001)[..length]);
        }
    }

    /// Needs CAP_NET_RAW.
    #[tokio::test]
    async fn every_probe_of_a_vip_has_a_port_of_its_own() {
        let wire = match Wire::open(63_000..=63_003) {
            Ok(wire) => wire,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let (source, vip) = ([127, 0, 0, 1].into(), "10.0.0.1:63001".parse().unwrap());
        let port = |seat: &Seat| seat.from().port();
        let seats: Vec<Seat> = (0..3).map(|_| wire.sit_down(6, source, vip).unwrap()).collect();
        assert_eq!(seats.iter().map(port).collect::<Vec<_>>(), [63_000, 63_002, 63_003], "but for the VIP's");
        let none = wire.sit_down(6, source, vip).unwrap_err();
        assert_eq!(none, Trouble::Connect(io::ErrorKind::AddrInUse));
        assert_eq!(port(&wire.sit_down(17, source, vip).unwrap()), 63_000, "UDP has ports of its own");
        drop(seats);
        let mut seat = wire.sit_down(6, source, vip).unwrap();
        let answered = packet(false, false, port(&seat));
        wire.deliver(&answered);
        let patience = Duration::from_millis(1);
        let none = tokio::time::timeout(patience, std::future::poll_fn(|cx| seat.poll_answer(cx))).await;
        assert!(none.is_err(), "it is not from the VIP's port");
        let mut answered = answered;
        answered[20..22].copy_from_slice(&63_001_u16.to_be_bytes());
        wire.deliver(&answered);
        assert_eq!(std::future::poll_fn(|cx| seat.poll_answer(cx)).await, answered);
    }
}
