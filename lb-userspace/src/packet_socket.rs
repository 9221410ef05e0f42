//! Packet sockets (packet(7)): whole frames, past the kernel's stack. They need CAP_NET_RAW.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// One to send by: its protocol is 0, so that it receives nothing.
pub(crate) fn sender() -> io::Result<OwnedFd> {
    open(libc::SOCK_RAW, 0)
}

/// One that receives every frame of this network namespace, link header first.
pub(crate) fn of_all_frames() -> io::Result<OwnedFd> {
    open(libc::SOCK_RAW, libc::ETH_P_ALL as u16)
}

/// One that receives what `filter` takes of all that comes in, from the IP header on.
///
/// The filter stands before the first packet comes.
pub(crate) fn of_packets(filter: &[libc::sock_filter]) -> io::Result<OwnedFd> {
    // Bound to no protocol, it receives nothing yet.
    let socket = open(libc::SOCK_DGRAM, 0)?;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    set(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1)?;
    let all = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is there, with the length that is passed, until the call returns.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const all).cast(), size_of_val(&all) as libc::socklen_t)
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

fn open(kind: i32, protocol: u16) -> io::Result<OwnedFd> {
    let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: it takes integers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be())) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value is there, with the length that is passed, until the call returns; so is what it points to.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends an Ethernet frame by an interface.
pub(crate) fn send(socket: &OwnedFd, ifindex: u32, frame: &[u8]) -> io::Result<()> {
    let (Some(to), Some(kind)) = (frame.first_chunk::<6>(), frame.get(12..14)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let &[a, b, c, d, e, f] = to;
    let to = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: u16::from_ne_bytes([kind[0], kind[1]]),
        sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [a, b, c, d, e, f, 0, 0],
    };
    // SAFETY: `frame` and `to` are there, with the lengths that are passed, until the call returns.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const to).cast(),
            size_of_val(&to) as libc::socklen_t,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
