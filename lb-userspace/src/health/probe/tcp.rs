//! `tcp`: the target accepts a connection.

use std::net::SocketAddr;

use tokio::time::Instant;

use super::{failure::Miss, socket};

pub(super) async fn probe(address: SocketAddr, mark: Option<u32>, deadline: Instant) -> Result<(), Miss> {
    socket::connect(address, mark, deadline).await.map(drop)
}
