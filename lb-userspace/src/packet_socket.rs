//! Packet sockets (packet(7)): whole frames, past the kernel's stack. They need CAP_NET_RAW.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// A packet socket of this network namespace.
#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Sends only: its protocol is 0, which nothing is received by.
    pub(crate) fn sending() -> io::Result<Self> {
        Self::open(libc::SOCK_RAW, 0)
    }

    /// Receives every frame of every interface, too.
    pub(crate) fn listening() -> io::Result<Self> {
        Self::open(libc::SOCK_RAW, libc::ETH_P_ALL as u16)
    }

    /// Receives what `filter` takes of all that comes in, from the IP header on.
    ///
    /// The filter stands before the first packet comes.
    pub(crate) fn filtered(filter: &[libc::sock_filter]) -> io::Result<Self> {
        // Bound to no protocol, it receives nothing yet.
        let Self(socket) = Self::open(libc::SOCK_DGRAM, 0)?;
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
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(socket)) }
    }

    fn open(kind: i32, protocol: u16) -> io::Result<Self> {
        let kind = kind | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: it takes integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol.to_be())) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a frame that begins with its Ethernet header.
    pub(crate) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let (Some(&[a, b, c, d, e, f]), Some(kind)) = (frame.first_chunk::<6>(), frame.get(12..14)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
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
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of_val(&to) as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The length of one frame; `None` if there is none for so long.
    pub(crate) fn receive(&self, buffer: &mut [u8], patience: Duration) -> io::Result<Option<usize>> {
        let mut waiting = libc::pollfd { fd: self.0.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one structure, which lives until the call returns.
        if unsafe { libc::poll(&raw mut waiting, 1, millis) } <= 0 {
            return Ok(None);
        }
        // SAFETY: the buffer is ours, with the length that is passed.
        let length = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
        match usize::try_from(length) {
            Ok(length) => Ok(Some(length)),
            Err(_) => {
                let error = io::Error::last_os_error();
                // ENETDOWN: an interface went down meanwhile.
                let passing =
                    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENETDOWN);
                if passing { Ok(None) } else { Err(error) }
            }
        }
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
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
