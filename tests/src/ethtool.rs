//! Offloads of an interface, by the ethtool ioctl.

use std::{ffi::CString, io, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::Namespace;

/// Makes a veth end a good neighbour of an XDP program.
///
/// With transmit checksum offload on, the program would see partial checksums. Without GRO (or a
/// program of its own), an end has no NAPI context, and drops what XDP redirects to its peer.
///
/// # Errors
/// If there is no such interface, or it refuses.
pub fn prepare_for_xdp(namespace: &Namespace, interface: &str) -> Result<()> {
    set(namespace, interface, Offload::TransmitChecksum, false)?;
    set(namespace, interface, Offload::Gro, true)
}

/// What the lab switches.
#[derive(Clone, Copy, Debug)]
pub enum Offload {
    /// Checksums of what is sent (`tx` in ethtool's words). TSO goes with it.
    TransmitChecksum,
    /// Generic receive offload (`gro`).
    Gro,
}

impl Offload {
    /// `ETHTOOL_G*` and `ETHTOOL_S*` of `linux/ethtool.h`.
    const fn commands(self) -> (u32, u32) {
        match self {
            Self::TransmitChecksum => (0x16, 0x17),
            Self::Gro => (0x2b, 0x2c),
        }
    }
}

/// Switches an offload and checks that it stays so.
///
/// # Errors
/// If there is no such interface, or it refuses.
pub fn set(namespace: &Namespace, interface: &str, offload: Offload, on: bool) -> Result<()> {
    let (get, set) = offload.commands();
    namespace.run(|| {
        call(interface, set, on.into())
            .and_then(|_| call(interface, get, 0))
            .with_context(|| format!("cannot set {offload:?} of {interface} to {on}"))
            .and_then(|now| {
                ensure!((now != 0) == on, "{offload:?} of {interface} does not go to {on}");
                Ok(())
            })
    })
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

fn call(interface: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = Value { command, data };
    // SAFETY: an ifreq is plain data, for which zeroes are a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let name = CString::new(interface)?;
    let name = name.to_bytes_with_nul();
    if name.len() > request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request points to a value of the shape that these commands read and write, and
    // both live until the call returns.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(value.data) }
}
