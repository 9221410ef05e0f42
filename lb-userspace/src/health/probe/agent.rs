//! The agent-check: a line of words.

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

use super::{
    To,
    failure::{Failure, Miss},
    socket,
};
use crate::health::advice::Words;

/// A line may be this long, in bytes.
const MAX_LINE: usize = 1024;

pub(super) async fn probe(to: &To, deadline: Instant) -> Result<Words, Miss> {
    let stream = socket::connect(to, deadline).await?;
    let line = timeout_at(deadline, line(stream)).await.map_err(|_| Failure::Timeout)??;
    let words = String::from_utf8_lossy(&line).parse();
    words.map_err(|_| Failure::Protocol.into())
}

/// Up to its end, or that of the connection.
async fn line(mut stream: impl AsyncRead + Unpin) -> Result<Vec<u8>, Failure> {
    let mut read = Vec::with_capacity(MAX_LINE);
    loop {
        if let Some(end) = read.iter().position(|&byte| byte == b'\n') {
            read.truncate(end);
            return Ok(read);
        }
        if read.len() >= MAX_LINE {
            return Err(Failure::Protocol);
        }
        match stream.read_buf(&mut read).await {
            Ok(0) if read.is_empty() => return Err(Failure::Closed),
            Ok(0) => return Ok(read),
            Ok(_) => {}
            Err(error) => return Err(socket::why_broken(&error)),
        }
    }
}
