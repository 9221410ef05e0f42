//! Connections of probes.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use lb_common::wire::IPPROTO_TCP;
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    time::{Instant, timeout_at},
};

use super::{
    To, Way,
    failure::{Failure, Miss, Trouble},
};
use crate::health::vip;

/// A connection, by either way.
pub(super) enum Stream {
    Host(TcpStream),
    Along(Box<vip::Stream>),
}

/// Connects.
pub(super) async fn connect(to: &To, deadline: Instant) -> Result<Stream, Miss> {
    match &to.way {
        Way::Host(mark) => connect_by_host(to.address, *mark, deadline).await.map(Stream::Host),
        Way::Along(along, via) => {
            let road = along.road(via, to.address, IPPROTO_TCP, deadline).await?;
            Ok(Stream::Along(Box::new(vip::Stream::connect(road, deadline).await?)))
        }
    }
}

/// By the kernel. The connection ends with a RST when it is dropped: probes of ten thousand targets would otherwise leave
/// a hundred thousand sockets in TIME_WAIT.
async fn connect_by_host(
    address: SocketAddr,
    mark: Option<u32>,
    deadline: Instant,
) -> Result<TcpStream, Miss> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
    .map_err(|error| Trouble::Socket(error.kind()))?;
    socket.set_zero_linger().map_err(|error| Trouble::Socket(error.kind()))?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark).map_err(|_| Trouble::Mark)?;
    }

    let stream = timeout_at(deadline, socket.connect(address))
        .await
        .map_err(|_| Failure::ConnectTimeout)?
        .map_err(|error| why_not_connected(&error))?;
    // A connection from a port of this host to that same port meets itself (RFC 9293, 3.5, simultaneous open), and
    // would pass where nothing listens.
    match stream.local_addr() {
        Ok(local) if local == address => Err(Failure::ConnectRefused.into()),
        _ => Ok(stream),
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Along(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_write(cx, data),
            Self::Along(stream) => Pin::new(stream).poll_write(cx, data),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_flush(cx),
            Self::Along(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Host(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Along(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

pub(super) fn why_not_connected(error: &io::Error) -> Miss {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::ConnectRefused.into(),
        io::ErrorKind::ConnectionReset => Failure::Reset.into(),
        io::ErrorKind::TimedOut => Failure::ConnectTimeout.into(),
        kind @ (io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::AddrInUse
        | io::ErrorKind::OutOfMemory
        | io::ErrorKind::WouldBlock) => Trouble::Connect(kind).into(),
        kind if error.raw_os_error() == Some(libc::ENOBUFS) => Trouble::Connect(kind).into(),
        // EHOSTUNREACH, ENETUNREACH, and what routes and filters of this host answer (EACCES, EPERM, EINVAL).
        _ => Failure::Unreachable.into(),
    }
}

/// Why a connection that stood did not carry the answer.
pub(super) fn why_broken(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::TimedOut => Failure::Timeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Failure::Unreachable,
        _ => Failure::Closed,
    }
}
