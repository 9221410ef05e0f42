//! Frames in and out of an interface, past the stack.

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// A packet socket on one interface. It sees what the stack sees: on an interface with XDP, what
/// the program passed.
#[derive(Debug)]
pub struct RawSocket {
    socket: Socket,
}

/// A frame that came by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The frame, with its outer VLAN tag where it had one.
    pub frame: Vec<u8>,
    /// The sender's stack left the checksum to a device that never came.
    pub partial_checksum: bool,
    /// Sent by this host, rather than received.
    pub outgoing: bool,
}

impl RawSocket {
    /// Opens a socket for all frames of an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let index = namespace.index(interface)?;
        namespace
            .run(|| Self::bind(index))
            .with_context(|| format!("cannot open a packet socket on {interface}"))
    }

    /// Sends a frame as it is.
    ///
    /// # Errors
    /// If the interface is down, or the frame longer than its MTU allows.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        loop {
            match self.socket.send(frame) {
                Ok(_) => return Ok(()),
                // The interface has a full queue, and sends.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
                Err(error) => return Err(error).context("cannot send the frame"),
            }
        }
    }

    /// The next frame that `wanted` takes, or `None` if there is none within `timeout`.
    ///
    /// # Errors
    /// If the interface went away.
    pub fn receive(
        &self,
        timeout: Duration,
        mut wanted: impl FnMut(&Received) -> bool,
    ) -> Result<Option<Received>> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
                if left.is_zero() {
                    return Ok(None);
                }
                continue;
            }
            let received = self.take()?;
            if wanted(&received) {
                return Ok(Some(received));
            }
        }
    }

    fn bind(index: u32) -> io::Result<Self> {
        let all = u16::to_be(libc::ETH_P_ALL as u16);
        // With a protocol from the start it would take frames of every interface until bound.
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        let on = 1_i32;
        // SAFETY: the option is an int, and its size is stated.
        check(unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_AUXDATA,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        })?;
        socket.set_recv_buffer_size(4 << 20)?;
        // SAFETY: plain data, for which zeroes are a valid value.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index.cast_signed();
        // SAFETY: the address is a sockaddr_ll, and its size is stated.
        check(unsafe {
            libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        })?;
        Ok(Self { socket })
    }

    fn take(&self) -> io::Result<Received> {
        let mut frame = vec![0_u8; 1 << 16];
        let mut control = Control([0; 64]);
        let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
        // SAFETY: plain data, for which zeroes are a valid value.
        let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
        // SAFETY: as above; null pointers with zero lengths are what recvmsg takes for none.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw mut from).cast();
        message.msg_namelen = size_of_val(&from) as u32;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        // SAFETY: every pointer is to a live buffer of the size stated beside it.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        frame.truncate(usize::try_from(length).map_err(|_| io::Error::last_os_error())?);
        // SAFETY: recvmsg has filled the message in.
        let notes = unsafe { notes_of(&message) };
        if let Some(notes) = notes
            && notes.tp_status & libc::TP_STATUS_VLAN_VALID != 0
        {
            // The kernel has taken the tag off and tells it beside the frame.
            let tag = [notes.tp_vlan_tpid.to_be_bytes(), notes.tp_vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        Ok(Received {
            frame,
            partial_checksum: notes.is_some_and(|notes| notes.tp_status & libc::TP_STATUS_CSUMNOTREADY != 0),
            outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
        })
    }
}

/// Room for control messages, aligned as `cmsghdr` wants it.
#[repr(C, align(8))]
struct Control([u8; 64]);

/// # Safety
/// `message` has to be as recvmsg left it, with its control buffer alive.
unsafe fn notes_of(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: the macros walk the control buffer within the length that the kernel has set.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_PACKET && found.cmsg_type == libc::PACKET_AUXDATA {
                let data = libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>();
                return Some(ptr::read_unaligned(data));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
