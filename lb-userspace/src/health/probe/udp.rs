//! `udp`: the target answers a datagram, with one that contains what is expected.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use lb_common::wire::IPPROTO_UDP;
use socket2::SockRef;
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    To, Way,
    failure::{Failure, Miss, Trouble},
    http::contains,
    socket,
};
use crate::health::{check::UdpCheck, vip};

/// So much of an answer is looked at, in bytes.
const MAX_ANSWER: usize = 4096;

pub(super) async fn probe(to: &To, check: &UdpCheck, deadline: Instant) -> Result<(), Miss> {
    let answer = match &to.way {
        Way::Host(mark) => exchange_by_host(to.address, check, *mark, deadline).await?,
        Way::Along(along, via) => {
            let road = along.road(via, to.address, IPPROTO_UDP, deadline).await?;
            vip::exchange(road, &check.send, deadline).await?
        }
    };
    let looked_at = &answer[..answer.len().min(MAX_ANSWER)];
    match check.expect.as_ref().is_none_or(|expected| contains(looked_at, expected)) {
        true => Ok(()),
        false => Err(Failure::BadAnswer.into()),
    }
}

async fn exchange_by_host(
    address: SocketAddr,
    check: &UdpCheck,
    mark: Option<u32>,
    deadline: Instant,
) -> Result<Vec<u8>, Miss> {
    let any = match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // A port of its own for each probe: an answer that is late is not taken for that of the next one.
    let socket: UdpSocket =
        UdpSocket::bind::<SocketAddr>(any).await.map_err(|error| Trouble::Socket(error.kind()))?;
    if let Some(mark) = mark {
        SockRef::from(&socket).set_mark(mark).map_err(|_| Trouble::Mark)?;
    }
    // Connected, so that an ICMP error is told, and nobody else can answer.
    socket.connect(address).await.map_err(|error| socket::why_not_connected(&error))?;
    let answer = timeout_at(deadline, exchange(&socket, &check.send));
    answer.await.map_err(|_| Failure::Timeout)?.map_err(|error| socket::why_not_connected(&error))
}

async fn exchange(socket: &UdpSocket, datagram: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(datagram).await?;
    let mut answer = vec![0; MAX_ANSWER];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}
