//! Frames as they are, to and from interfaces: packet(7).

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

/// A packet socket of this network namespace. It needs CAP_NET_RAW.
#[derive(Debug)]
pub(crate) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Sends only: its protocol is 0, which nothing is received by.
    pub(crate) fn sending() -> io::Result<Self> {
        Self::of(0)
    }

    /// Receives every frame of every interface, too.
    pub(crate) fn listening() -> io::Result<Self> {
        Self::of((libc::ETH_P_ALL as u16).to_be())
    }

    fn of(protocol: u16) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: it takes integers only.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(protocol)) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new, and nobody else's.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a frame that begins with its Ethernet header.
    pub(crate) fn send(&self, ifindex: u32, frame: &[u8]) -> io::Result<()> {
        let Some((&[to_0, to_1, to_2, to_3, to_4, to_5, .., kind_high, kind_low], _)) =
            frame.split_first_chunk::<14>()
        else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let to = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: u16::from_ne_bytes([kind_high, kind_low]),
            sll_ifindex: i32::try_from(ifindex).map_err(io::Error::other)?,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [to_0, to_1, to_2, to_3, to_4, to_5, 0, 0],
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
