//! Questions to the kernel, and their answers.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// The kernel sends no more than this in one datagram.
const DATAGRAM: usize = 64 * 1024;
/// How often a dump is begun again because something changed under it.
const DUMP_ATTEMPTS: usize = 8;

/// A socket for requests. They are answered one at a time, and without waiting.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    pub(super) fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(DATAGRAM) })
    }

    /// A question with one answer.
    pub(super) fn ask(&mut self, question: RouteNetlinkMessage) -> io::Result<RouteNetlinkMessage> {
        self.send(question, NLM_F_REQUEST)?;
        loop {
            for message in self.receive()? {
                match message?.1 {
                    NetlinkPayload::InnerMessage(answer) => return Ok(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    _ => {}
                }
            }
        }
    }

    /// A change, with `NLM_F_` flags that say what may exist before.
    pub(super) fn change(&mut self, change: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.send(change, NLM_F_REQUEST | NLM_F_ACK | flags)?;
        loop {
            for message in self.receive()? {
                match message?.1 {
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(()),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    /// Everything of a kind, as it was at one moment.
    pub(super) fn dump(&mut self, question: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        for _ in 0..DUMP_ATTEMPTS {
            self.send(question.clone(), NLM_F_REQUEST | NLM_F_DUMP)?;
            if let Some(answers) = self.receive_dump()? {
                return Ok(answers);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "it changed each time that it was read"))
    }

    /// `None` if something changed meanwhile.
    fn receive_dump(&mut self) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let (mut answers, mut consistent) = (vec![], true);
        loop {
            for message in self.receive()? {
                let (header, payload) = match message {
                    Ok(message) => message,
                    // One entry that we do not understand must not hide the others.
                    Err(error) => {
                        tracing::debug!(%error, "a netlink message is not understood");
                        continue;
                    }
                };
                consistent &= header.flags & NLM_F_DUMP_INTR == 0;
                match payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(answers)),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// One datagram's messages that answer the last request.
    fn receive(
        &mut self,
    ) -> io::Result<impl Iterator<Item = io::Result<(NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>)>>>
    {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let sequence = self.sequence;
        Ok(messages(&self.buffer).filter(move |bytes| sequence_of(bytes) == Some(sequence)).map(|bytes| {
            NetlinkMessage::deserialize(bytes)
                .map(NetlinkMessage::into_parts)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
        }))
    }
}

/// The messages in a datagram: each starts with its length and is padded to four bytes.
pub(super) fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (length, _) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
        if length < HEADER {
            return None;
        }
        let message = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// `struct nlmsghdr`: length, type, flags, sequence, port.
const HEADER: usize = 16;

pub(super) fn type_of(message: &[u8]) -> Option<u16> {
    message.get(4..).and_then(<[u8]>::first_chunk).map(|bytes| u16::from_ne_bytes(*bytes))
}

fn sequence_of(message: &[u8]) -> Option<u32> {
    message.get(8..).and_then(<[u8]>::first_chunk).map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(length: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([0; HEADER - 4]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut datagram = message(17, &[1, 0, 0, 0]);
        datagram.extend(message(18, &[2, 2]));
        let lengths: Vec<_> = messages(&datagram).map(<[u8]>::len).collect();
        assert_eq!(lengths, [17, 18]);
    }

    #[test]
    fn a_damaged_datagram_ends_where_it_is_damaged() {
        for wrong in [message(15, &[]), message(17, &[]), message(u32::MAX, &[0; 32]), vec![16, 0]] {
            assert_eq!(messages(&wrong).count(), 0, "{wrong:?}");
        }
    }
}
