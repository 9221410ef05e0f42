//! Servers and clients that count.
//!
//! Each runs as a process of its own inside its host's namespace: that gives every one of them its
//! own limit of open files, and a crash takes nothing else along. A process is a copy of the
//! running program, asked by lines of JSON (see `worker.rs`).

mod load;
mod pool;
mod server;
mod tally;
pub(crate) mod worker;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::Result;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    net::{TcpSocket, TcpStream},
};

pub use load::{Load, LoadSpec};
pub use pool::{Broken, Pool, PoolReport, PoolSpec};
pub use server::{Behaviour, Counts, Server, ServerSpec};
pub use tally::{Latency, Tally};

use crate::{Client, Crowd, Family};

/// Which of a client's addresses connections come from, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sources {
    /// Its address on the LAN.
    Own,
    /// Members of its [`Crowd`].
    Crowd {
        /// The first of them.
        first: u32,
        /// How many.
        count: u32,
    },
}

impl Sources {
    /// The first `count` members of the crowd.
    #[must_use]
    pub const fn crowd(count: u32) -> Self {
        Self::Crowd { first: 0, count }
    }

    fn of(self, client: &Client, family: Family) -> SourceRange {
        match self {
            Self::Own => SourceRange { first: client.ip(family), count: 1 },
            Self::Crowd { first, count } => {
                let last = first.saturating_add(count.max(1) - 1);
                assert!(last < Crowd::SIZE, "a crowd has {} members", Crowd::SIZE);
                SourceRange { first: client.crowd().member(first, family), count: count.max(1) }
            }
        }
    }
}

/// Neighbouring addresses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct SourceRange {
    first: IpAddr,
    count: u32,
}

impl SourceRange {
    /// The source of flow `number`, with any port.
    fn address(self, number: u64) -> SocketAddr {
        let offset = (number % u64::from(self.count)) as u32;
        let address = match self.first {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits() + offset).into()),
            IpAddr::V6(first) => IpAddr::V6((first.to_bits() + u128::from(offset)).into()),
        };
        SocketAddr::new(address, 0)
    }
}

/// Connects from a given address. The port is chosen for the pair of addresses, so that each
/// source has all of them for each target.
async fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    setsockopt(&socket, IpBindAddressNoPort, &true)?;
    socket.bind(from)?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The next line without its end.
async fn read_line(reader: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    match line.pop() {
        Some('\n') => Ok(line),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// What `future` gives, or a timeout.
async fn within<T>(limit: Duration, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// A failure in one word, for counting.
fn word_for(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "reset".to_owned(),
        io::ErrorKind::TimedOut => "timeout".to_owned(),
        io::ErrorKind::UnexpectedEof => "closed".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        _ => error.to_string(),
    }
}

/// Families of target and source have to agree.
fn family_of(target: SocketAddr) -> Family {
    target.ip().into()
}

/// Results of a worker's role.
type Outcome = Result<()>;
