//! A backend's end of an IPIP tunnel, for kernels without one.
//!
//! Raw sockets take what comes as IP in IP (protocols 4 and 41, over IPv4 and IPv6); the inner
//! packets enter the host's stack by a TUN device. Correct rather than fast.
//!
//! One packet is taken at a time: what GRO has put together has no checksum yet, only a note that it needs one, and no raw
//! socket hands that on. So GRO is off, and a program that does nothing keeps the interface's NAPI context in its place.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Host,
    bpf::{XdpMode, attach_xdp},
    ethtool::{self, Offload},
    programs,
};

/// Takes tunnels apart in a host for as long as it lives.
#[derive(Debug)]
pub struct Decapsulator {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    _program: OwnedFd,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    packets: AtomicU64,
}

impl Decapsulator {
    /// Starts taking tunnels apart in `host`.
    ///
    /// # Errors
    /// Without TUN devices (`/dev/net/tun`), or with an XDP program on the interface.
    pub fn start(host: &Host) -> Result<Self> {
        let program = programs::passing()?;
        let program = attach_xdp(host, host.port().index, &program, XdpMode::Native)?;
        ethtool::set(host, &host.port().name, Offload::Gro, false)?;
        let tun = Arc::new(host.run(open_tun).context("cannot make a TUN device")?);
        host.set_up(TUN)?;
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (outer, inner) in [
            (Domain::IPV4, Inner::V4),
            (Domain::IPV4, Inner::V6),
            (Domain::IPV6, Inner::V4),
            (Domain::IPV6, Inner::V6),
        ] {
            let socket = host.run(|| open_raw(outer, inner)).context("cannot open a raw socket")?;
            let (tun, shared) = (Arc::clone(&tun), Arc::clone(&shared));
            let over_ipv4 = outer == Domain::IPV4;
            threads.push(thread::spawn(move || pump(&socket, over_ipv4, &tun, &shared)));
        }
        Ok(Self { shared, threads, _program: program })
    }

    /// How many packets came out of tunnels.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.shared.packets.load(Ordering::Relaxed)
    }
}

impl Drop for Decapsulator {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

const TUN: &str = "decap";

#[derive(Clone, Copy)]
enum Inner {
    V4 = 4,
    V6 = 41,
}

fn open_raw(outer: Domain, inner: Inner) -> io::Result<Socket> {
    let socket = Socket::new(outer, Type::RAW, Some(Protocol::from(inner as i32)))?;
    // Beyond the sysctl's limit, which a burst overflows on a busy machine: every loss would cost TCP a timer.
    setsockopt(&socket, RcvBufForce, &(8 << 20))?;
    // So that a thread sees that it is to stop.
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    Ok(socket)
}

fn open_tun() -> io::Result<File> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(TUN.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives until the call returns.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(tun)
}

fn pump(socket: &Socket, over_ipv4: bool, tun: &File, shared: &Shared) {
    let mut buffer = vec![0_u8; 1 << 16];
    while !shared.stop.load(Ordering::Relaxed) {
        let mut reader = socket;
        let Ok(length) = reader.read(&mut buffer) else {
            continue;
        };
        // Raw IPv4 sockets give the outer header too; IPv6 ones do not.
        let skipped = if over_ipv4 { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
        let Some(inner) = buffer.get(skipped..length) else {
            continue;
        };
        shared.packets.fetch_add(1, Ordering::Relaxed);
        let mut writer = tun;
        if let Err(error) = writer.write_all(inner) {
            eprintln!("the stack does not take a packet out of a tunnel: {error}");
        }
    }
}
