//! A datagram in, the name and the datagram out, from the address it came to.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv6Addr, SocketAddr},
    os::fd::{AsFd as _, AsRawFd as _},
    sync::Arc,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn6, recvmsg, sendmsg, setsockopt,
        sockopt::Ipv6RecvPacketInfo,
    },
};
use socket2::{Domain, Socket, Type};
use tokio::{io::Interest, net::UdpSocket, sync::watch};

use super::{Applied, Behaviour, State, add};

/// Starts answering; the receiver tells which behaviour is in force.
pub(super) fn start(port: u16, state: Arc<State>) -> watch::Receiver<Option<Applied>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut behaviour = state.behaviour.subscribe();
        loop {
            let mut now = *behaviour.borrow_and_update();
            if now == Behaviour::Refuse {
                sender.send_replace(Some(Ok(now)));
                let _ = behaviour.changed().await;
                continue;
            }
            let socket = match open(port) {
                Ok(socket) => Arc::new(socket),
                Err(error) => {
                    sender.send_replace(Some(Err(format!("cannot open port {port}: {error}"))));
                    return;
                }
            };
            while now != Behaviour::Refuse {
                sender.send_replace(Some(Ok(now)));
                tokio::select! {
                    _ = behaviour.changed() => now = *behaviour.borrow_and_update(),
                    received = receive(&socket) => match received {
                        Ok(datagram) => take(datagram, now, &socket, &state).await,
                        Err(error) => eprintln!("receive: {error}"),
                    }
                }
            }
        }
    });
    receiver
}

async fn take(datagram: Datagram, now: Behaviour, socket: &Arc<UdpSocket>, state: &Arc<State>) {
    state.met(SocketAddr::from((datagram.from.ip(), datagram.from.port())));
    add(&state.accepted, 1);
    add(&state.bytes_in, datagram.bytes.len());
    match now {
        Behaviour::Serve => answer(datagram, socket, state).await,
        Behaviour::Delay(by) => {
            let (socket, state) = (Arc::clone(socket), Arc::clone(state));
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                answer(datagram, &socket, &state).await;
            });
        }
        Behaviour::Hang | Behaviour::Close | Behaviour::Reset | Behaviour::Refuse => {}
    }
}

async fn answer(datagram: Datagram, socket: &UdpSocket, state: &State) {
    let bytes = [state.name.as_bytes(), b" ", &datagram.bytes].concat();
    match send(socket, &bytes, &datagram).await {
        Ok(()) => {
            add(&state.bytes_out, bytes.len());
            add(&state.answers, 1);
        }
        Err(error) => eprintln!("send: {error}"),
    }
}

struct Datagram {
    bytes: Vec<u8>,
    from: SockaddrIn6,
    /// The address it was sent to, which a wildcard socket would forget.
    to: libc::in6_pktinfo,
}

fn open(port: u16) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::DGRAM.nonblocking(), None)?;
    socket.set_only_v6(false)?;
    socket.set_recv_buffer_size(4 << 20)?;
    setsockopt(&socket, Ipv6RecvPacketInfo, &true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    UdpSocket::from_std(socket.into())
}

async fn receive(socket: &UdpSocket) -> io::Result<Datagram> {
    socket
        .async_io(Interest::READABLE, || {
            let mut bytes = vec![0; 1 << 16];
            let mut control = cmsg_space!(libc::in6_pktinfo);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let message = recvmsg::<SockaddrIn6>(
                socket.as_fd().as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            )?;
            let to = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv6PacketInfo(information) => Some(information),
                _ => None,
            });
            let (Some(mut to), Some(from)) = (to, message.address) else {
                return Err(io::ErrorKind::InvalidData.into());
            };
            // The road back may be another interface, which this would pin.
            to.ipi6_ifindex = 0;
            let length = message.bytes;
            bytes.truncate(length);
            Ok(Datagram { bytes, from, to })
        })
        .await
}

async fn send(socket: &UdpSocket, bytes: &[u8], answered: &Datagram) -> io::Result<()> {
    socket
        .async_io(Interest::WRITABLE, || {
            sendmsg(
                socket.as_fd().as_raw_fd(),
                &[IoSlice::new(bytes)],
                &[ControlMessage::Ipv6PacketInfo(&answered.to)],
                MsgFlags::empty(),
                Some(&answered.from),
            )?;
            Ok(())
        })
        .await
}
