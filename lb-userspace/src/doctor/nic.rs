//! What a network card's driver says of itself: by ethtool(8)'s ioctls and the kernel's `netdev` family.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_GENERIC};

/// Asks drivers, in the network namespace of the thread that made it.
pub(super) struct Nics {
    socket: OwnedFd,
    netdev: Option<Netdev>,
}

// linux/ethtool.h
const GDRVINFO: u32 = 0x3;
const GFLAGS: u32 = 0x25;
const GCHANNELS: u32 = 0x3c;
const FLAG_RXVLAN: u32 = 1 << 8;
const FLAG_LRO: u32 = 1 << 15;
/// Bytes of `struct ethtool_drvinfo`, and where the driver's name is.
const DRVINFO: (usize, std::ops::Range<usize>) = (196, 4..36);

impl Nics {
    pub fn new() -> io::Result<Self> {
        // Any socket will do for these ioctls.
        Ok(Self { socket: UnixDatagram::unbound()?.into(), netdev: Netdev::new().ok() })
    }

    /// The driver's name.
    pub fn driver(&self, name: &str) -> Option<String> {
        let mut reply = [0; DRVINFO.0];
        self.ask(name, GDRVINFO, &mut reply)?;
        let text = reply[DRVINFO.1].split(|byte| *byte == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned()).filter(|text| !text.is_empty())
    }

    /// Whether large receive offload is on.
    pub fn lro(&self, name: &str) -> Option<bool> {
        let mut reply = [0; 8];
        self.ask(name, GFLAGS, &mut reply)?;
        Some(word(&reply, 1) & FLAG_LRO != 0)
    }

    /// Whether the card takes VLAN tags off what it receives.
    pub fn takes_tags_off(&self, name: &str) -> Option<bool> {
        let mut reply = [0; 8];
        self.ask(name, GFLAGS, &mut reply)?;
        Some(word(&reply, 1) & FLAG_RXVLAN != 0)
    }

    /// Receive queues in use, and how many there could be.
    pub fn queues(&self, name: &str) -> Option<(u32, u32)> {
        // cmd, then at most rx, tx, other, combined, then the same as they are.
        let mut reply = [0; 36];
        self.ask(name, GCHANNELS, &mut reply)?;
        let at = |index| word(&reply, index);
        let (most, now) = (at(1) + at(4), at(5) + at(8));
        (now > 0).then_some((now, most))
    }

    /// Whether the driver has XDP with its basic actions.
    pub fn native_xdp(&mut self, index: u32) -> Option<bool> {
        self.netdev.as_mut()?.native_xdp(index).ok()
    }

    fn ask(&self, name: &str, command: u32, reply: &mut [u8]) -> Option<()> {
        const SIOCETHTOOL: libc::c_ulong = 0x8946;
        reply[..4].copy_from_slice(&command.to_ne_bytes());
        // SAFETY: an all-zero structure of integers and pointers is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(room)) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = reply.as_mut_ptr().cast();
        // SAFETY: `reply` is as long as the command's structure, and both live until the call returns.
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
        (result >= 0).then_some(())
    }
}

/// A word of a structure of words.
fn word(bytes: &[u8], index: usize) -> u32 {
    bytes[index * 4..].first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

/// The `netdev` family of generic netlink (Documentation/netlink/specs/netdev.yaml).
struct Netdev {
    socket: Socket,
    family: u16,
}

const NETLINK_HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
const ATTRIBUTES: usize = NETLINK_HEADER + GENERIC_HEADER;

impl Netdev {
    fn new() -> io::Result<Self> {
        const GENL_ID_CTRL: u16 = 16;
        const CTRL_CMD_GETFAMILY: u8 = 3;
        const CTRL_ATTR_FAMILY_ID: u16 = 1;
        const CTRL_ATTR_FAMILY_NAME: u16 = 2;
        let mut socket = Socket::new(NETLINK_GENERIC)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut this = Self { socket, family: GENL_ID_CTRL };
        let answer = this.ask(CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME, b"netdev\0")?;
        let id = attribute(&answer, CTRL_ATTR_FAMILY_ID).and_then(|value| value.first_chunk().copied());
        this.family = u16::from_ne_bytes(id.ok_or(io::ErrorKind::InvalidData)?);
        Ok(this)
    }

    fn native_xdp(&mut self, index: u32) -> io::Result<bool> {
        const NETDEV_CMD_DEV_GET: u8 = 1;
        const NETDEV_A_DEV_IFINDEX: u16 = 1;
        const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
        /// NETDEV_XDP_ACT_BASIC: XDP_ABORTED, XDP_DROP, XDP_PASS and XDP_TX.
        const BASIC: u64 = 1;
        let answer = self.ask(NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX, &index.to_ne_bytes())?;
        let features =
            attribute(&answer, NETDEV_A_DEV_XDP_FEATURES).and_then(|value| value.first_chunk().copied());
        Ok(u64::from_ne_bytes(features.ok_or(io::ErrorKind::InvalidData)?) & BASIC != 0)
    }

    /// A question with one attribute, and the answer's attributes.
    fn ask(&mut self, command: u8, kind: u16, value: &[u8]) -> io::Result<Vec<u8>> {
        const NLM_F_REQUEST: u16 = 1;
        const NLMSG_ERROR: u16 = 2;
        let padded = value.len().next_multiple_of(4);
        let length = ATTRIBUTES + 4 + padded;
        let mut message = Vec::with_capacity(length);
        message.extend((length as u32).to_ne_bytes());
        message.extend(self.family.to_ne_bytes());
        message.extend(NLM_F_REQUEST.to_ne_bytes());
        // Sequence number and port; the kernel fills in what counts.
        message.extend([0; 8]);
        message.extend([command, 1, 0, 0]);
        message.extend((4 + value.len() as u16).to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(value);
        message.resize(length, 0);
        self.socket.send(&message, 0)?;
        let (mut answer, _) = self.socket.recv_from_full()?;
        let answered = answer.get(4..6).and_then(|kind| kind.first_chunk().copied()).map(u16::from_ne_bytes);
        if answered == Some(NLMSG_ERROR) || answer.len() < ATTRIBUTES {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(answer.split_off(ATTRIBUTES))
    }
}

/// The value of the first attribute of a kind.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    const KIND_MASK: u16 = 0x3fff;
    while let Some(&[l0, l1, k0, k1]) = attributes.first_chunk() {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let kind = u16::from_ne_bytes([k0, k1]) & KIND_MASK;
        let value = attributes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_behind_others_of_odd_lengths() {
        let bytes = [5, 0, 2, 0, 9, 0, 0, 0, 6, 0, 1, 0x80, 7, 8, 0, 0];
        assert_eq!(attribute(&bytes, 1), Some(&[7, 8][..]));
        assert_eq!(attribute(&bytes, 2), Some(&[9][..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&bytes[..14], 3), None, "a torn one ends the search");
    }

    #[test]
    fn the_loopback_has_neither_lro_nor_queues() {
        let mut nics = Nics::new().unwrap();
        assert_ne!(nics.lro("lo"), Some(true));
        assert_eq!(nics.queues("lo"), None);
        assert_ne!(nics.native_xdp(1), Some(true));
    }
}
