//! `tcp`: the target accepts a connection.

use tokio::time::Instant;

use super::{To, failure::Miss, socket};

pub(super) async fn probe(to: &To, deadline: Instant) -> Result<(), Miss> {
    socket::connect(to, deadline).await.map(drop)
}
