//! One flow.

use std::{
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpStream, UdpSocket},
};

use super::{Answered, LoadSpec, Probe};
use crate::traffic::{connect, read_line, within};

/// Why a flow failed, and what it had got before.
pub(super) struct Failure {
    pub why: String,
    pub answers: u64,
}

pub(super) async fn run(spec: &LoadSpec, from: SocketAddr) -> Result<Answered, Failure> {
    let begun = Instant::now();
    match &spec.probe {
        Probe::Lines => {
            let mut stream = BufReader::new(open(spec, from).await?);
            let answer = within(spec.timeout, async {
                stream.write_all(b"hello\n").await?;
                read_line(&mut stream).await
            });
            Ok(once(name_in(&answer.await?)?, begun))
        }
        Probe::Udp => Ok(once(name_in(&exchange(spec, from).await?)?, begun)),
        Probe::Http { path, requests } => {
            let mut stream = BufReader::new(open(spec, from).await?);
            let mut answered: Option<Answered> = None;
            for number in 1..=*requests {
                let request = format!(
                    "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: {}\r\n\r\n",
                    spec.target,
                    if number == *requests { "close" } else { "keep-alive" }
                );
                let before = answered.as_ref().map_or(0, |answered| answered.answers);
                let server = request_once(&mut stream, &request, spec.timeout)
                    .await
                    .map_err(|why| Failure { why, answers: before })?;
                match &mut answered {
                    None => answered = Some(once(server, begun)),
                    Some(earlier) if earlier.server == server => earlier.answers += 1,
                    Some(_) => {
                        return Err(Failure { why: "changed server".to_owned(), answers: before });
                    }
                }
            }
            answered.ok_or_else(|| Failure { why: "nothing asked".to_owned(), answers: 0 })
        }
    }
}

async fn open(spec: &LoadSpec, from: SocketAddr) -> io::Result<TcpStream> {
    within(spec.timeout, connect(from, spec.target)).await
}

fn once(server: String, begun: Instant) -> Answered {
    Answered { server, latency: begun.elapsed(), answers: 1 }
}

/// A name, a space, and what was sent.
fn name_in(answer: &str) -> Result<String, Failure> {
    match answer.split_once(' ') {
        Some((name, "hello")) => Ok(name.to_owned()),
        _ => Err(Failure { why: format!("answered {answer:?}"), answers: 0 }),
    }
}

async fn exchange(spec: &LoadSpec, from: SocketAddr) -> io::Result<String> {
    let socket = UdpSocket::bind(from).await?;
    socket.connect(spec.target).await?;
    socket.send(b"hello").await?;
    let mut buffer = [0; 512];
    let length = within(spec.timeout, socket.recv(&mut buffer)).await?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Who answered a request, or why nobody did, in a few words.
async fn request_once(
    stream: &mut BufReader<TcpStream>,
    request: &str,
    timeout: Duration,
) -> Result<String, String> {
    let answer = within(timeout, async {
        stream.write_all(request.as_bytes()).await?;
        read_response(stream).await
    });
    let response = answer.await.map_err(|error| crate::traffic::word_for(&error))?;
    if (200..400).contains(&response.status) {
        Ok(response.server)
    } else {
        Err(format!("status {}", response.status))
    }
}

struct Response {
    status: u16,
    server: String,
}

async fn read_response(stream: &mut BufReader<TcpStream>) -> io::Result<Response> {
    let status_line = read_line(stream).await?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other(format!("answered {status_line:?}")))?;
    let (mut server, mut length) = (None, 0);
    loop {
        let line = read_line(stream).await?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("x-server") {
            server = Some(value.trim().to_owned());
        } else if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let server = server.unwrap_or_else(|| String::from_utf8_lossy(&body).trim().to_owned());
    Ok(Response { status, server })
}
