//! Just enough of an HTTP client (RFC 9112): who answers, or why nobody does.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::timeout,
};

/// How long connecting, or an answer, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// A RST instead of a handshake.
    Refused,
    /// A RST later.
    Reset,
    /// The end before the answer.
    Closed,
    /// Nothing in time.
    Timeout,
    /// An answer, but none of success.
    Status,
    /// Another server than before on the same connection.
    Moved,
    /// Whatever else the system or the protocol can come up with.
    Other,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Timeout => "timed out",
            Self::Status => "answered by an error",
            Self::Moved => "answered by another server",
            Self::Other => "failed otherwise",
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset,
            io::ErrorKind::UnexpectedEof => Self::Closed,
            io::ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Other,
        }
    }
}

/// A connection to the service.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects from an address, with any port.
    pub async fn open(from: IpAddr, to: SocketAddr) -> Result<Self, Failure> {
        let connected = within(async {
            let socket = TcpSocket::new_v4()?;
            // The port is chosen for the pair of addresses, so that each client has all of them.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind((from, 0).into())?;
            let stream = socket.connect(to).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        Ok(Self { stream: connected.await?, buffer: Vec::with_capacity(512) })
    }

    /// Asks once, and gives the name of the server that answered.
    pub async fn ask(&mut self, keep: bool) -> Result<String, Failure> {
        let connection = if keep { "keep-alive" } else { "close" };
        let request = format!("GET / HTTP/1.1\r\nhost: checkout\r\nconnection: {connection}\r\n\r\n");
        self.buffer.clear();
        within(async {
            self.stream.write_all(request.as_bytes()).await?;
            loop {
                if let Some(answer) = Answer::parse(&self.buffer) {
                    return Ok(answer);
                }
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        })
        .await?
        .server()
    }
}

async fn within<T>(future: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    Ok(timeout(PATIENCE, future).await.map_err(|_| Failure::Timeout)??)
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    server: Option<String>,
}

impl Answer {
    /// Of a whole response, or `None` as long as there is more to come.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]);
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let mut server = None;
        let mut length = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            if name.eq_ignore_ascii_case("x-server") {
                server = Some(value.trim().to_owned());
            } else if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        (bytes.len() >= end + 4 + length).then_some(Self { status, server })
    }

    fn server(self) -> Result<String, Failure> {
        match self {
            Self { status: 200..400, server: Some(server) } => Ok(server),
            _ => Err(Failure::Status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_once_its_body_is() {
        let whole = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nX-Server: v41-a\r\n\r\nabc";
        for length in 0..whole.len() {
            assert_eq!(Answer::parse(&whole[..length]), None);
        }
        let answer = Answer::parse(whole).unwrap();
        assert_eq!(answer.server(), Ok("v41-a".to_owned()));
    }

    #[test]
    fn an_error_or_a_stranger_is_no_success() {
        let of = |bytes: &[u8]| Answer::parse(bytes).unwrap().server();
        assert_eq!(of(b"HTTP/1.1 503 Unavailable\r\nx-server: v42-a\r\n\r\n"), Err(Failure::Status));
        assert_eq!(of(b"HTTP/1.1 200 OK\r\n\r\n"), Err(Failure::Status));
        assert_eq!(of(b"nonsense\r\n\r\n"), Err(Failure::Status));
    }
}
