//! TLS on a connection of a probe.

use std::{io, net::IpAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, timeout_at},
};
use tokio_rustls::{client::TlsStream, rustls};

use super::{
    failure::{Failure, Miss},
    socket,
};
use crate::health::check::Tls;

pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    tls: &Tls,
    address: IpAddr,
    deadline: Instant,
) -> Result<TlsStream<S>, Miss> {
    let (connector, name) = tls.towards(address)?;
    let stream = timeout_at(deadline, connector.connect(name, stream)).await.map_err(|_| Failure::Timeout)?;
    stream.map_err(|error| why(&error).into())
}

fn why(error: &io::Error) -> Failure {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(error) => Failure::Tls(error.to_string().into()),
        None => socket::why_broken(error),
    }
}
