//! What arrives at a server, seen on its own interface: neither the balancer nor the server is
//! asked.

use std::{
    io::{self, IoSliceMut},
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};
use ipnet::Ipv4Net;
use lb_tests::Namespace;
use nix::sys::{
    socket::{
        ControlMessageOwned, MsgFlags, recvmsg, setsockopt,
        sockopt::{RcvBufForce, ReceiveTimestampns},
    },
    time::TimeSpec,
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

/// Notes every SYN from a network that comes into a namespace. Dropping it ends that.
#[derive(Debug)]
pub struct Wire {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A client that begins a connection.
#[derive(Clone, Copy, Debug)]
pub struct Syn {
    /// When the kernel saw it, however late it was read.
    pub at: Instant,
    /// Whose it is.
    pub source: Ipv4Addr,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Syn>>,
    stop: AtomicBool,
}

impl Wire {
    /// Listens in `host` for connections of `clients`.
    ///
    /// # Errors
    /// If the kernel has no packet sockets.
    pub fn tap(host: &Namespace, clients: Ipv4Net) -> Result<Self> {
        let socket = host.run(|| open(clients)).context("cannot open a packet socket")?;
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.listen(&socket)
        });
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Every SYN after a moment.
    #[must_use]
    pub fn since(&self, moment: Instant) -> Vec<Syn> {
        let seen = self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Seen on several processors, and so not quite in order.
        let mut seen: Vec<_> = seen.iter().filter(|syn| syn.at > moment).copied().collect();
        seen.sort_by_key(|syn| syn.at);
        seen
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there has been shown already.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn listen(&self, socket: &Socket) {
        while !self.stop.load(Ordering::Relaxed) {
            if let Some(syn) = receive(socket) {
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(syn);
            }
        }
    }
}

/// The next SYN, or `None` if there is none for a while.
fn receive(socket: &Socket) -> Option<Syn> {
    let mut packet = [0_u8; 20];
    let mut notes = nix::cmsg_space!(TimeSpec);
    let mut parts = [IoSliceMut::new(&mut packet)];
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut notes), MsgFlags::empty()).ok()?;
    let stamp = message.cmsgs().ok()?.find_map(|note| match note {
        ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
        _ => None,
    });
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let at = Instant::now().checked_sub(since_epoch.saturating_sub(stamp?))?;
    let [.., a, b, c, d] = packet[..16] else {
        return None;
    };
    Some(Syn { at, source: Ipv4Addr::new(a, b, c, d) })
}

fn open(clients: Ipv4Net) -> io::Result<Socket> {
    let protocol = (libc::ETH_P_IP as u16).to_be();
    // Without link-layer headers: packets begin with that of IP.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(protocol))))?;
    socket.attach_filter(&syns_from(clients))?;
    // Or else a machine too busy to read would lose some.
    setsockopt(&socket, RcvBufForce, &(8 << 20))?;
    setsockopt(&socket, ReceiveTimestampns, &true)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

/// Classic BPF: IPv4 from `clients`, no fragment but the first, TCP with SYN and without ACK.
fn syns_from(clients: Ipv4Net) -> [SockFilter; 13] {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_WORD: u16 = 0x20;
    const LOAD_BYTE_BEHIND_HEADER: u16 = 0x50;
    const HEADER_LENGTH: u16 = 0xb1;
    const AND: u16 = 0x54;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    const SYN: u32 = 0x02;
    const ACK: u32 = 0x10;
    let then = |code, value| SockFilter::new(code, 0, 0, value);
    // Jumps count from the next instruction; the last one returns 0, the one before the length.
    [
        then(LOAD_BYTE, 9),
        SockFilter::new(IF_EQUAL, 0, 10, libc::IPPROTO_TCP as u32),
        then(LOAD_HALF, 6),
        SockFilter::new(IF_ANY_BIT, 8, 0, 0x1fff),
        then(LOAD_WORD, 12),
        then(AND, clients.netmask().to_bits()),
        SockFilter::new(IF_EQUAL, 0, 5, clients.network().to_bits()),
        then(HEADER_LENGTH, 0),
        then(LOAD_BYTE_BEHIND_HEADER, 13),
        then(AND, SYN | ACK),
        SockFilter::new(IF_EQUAL, 0, 1, SYN),
        then(RETURN, 64),
        then(RETURN, 0),
    ]
}
