//! Just enough HTTP/1.1 (RFC 9112) for probes and load generators.

use std::{io, sync::atomic::Ordering};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{State, add};

const MAX_HEAD: usize = 16 << 10;

pub(super) async fn converse(stream: &mut TcpStream, state: &State) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let Some(head_length) = read_head(stream, &mut buffer).await? else {
            return Ok(());
        };
        let head = Head::parse(&buffer[..head_length]);
        buffer.drain(..head_length);
        add(&state.bytes_in, head_length);
        discard(stream, &mut buffer, head.content_length).await?;
        add(&state.bytes_in, head.content_length);
        state.before_answer().await;
        let health_check = head.path == "/healthz";
        let status = if health_check { state.health.load(Ordering::Relaxed) } else { 200 };
        let answer = response(status, &state.name, head.keep_alive, head.only_head);
        stream.write_all(answer.as_bytes()).await?;
        add(&state.bytes_out, answer.len());
        add(if health_check { &state.health_checks } else { &state.answers }, 1);
        if !head.keep_alive {
            return stream.shutdown().await;
        }
    }
}

/// The length of the head that `buffer` starts with, or `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            return Ok(Some(end + 4));
        }
        if buffer.len() > MAX_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn discard(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> io::Result<()> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    buffer.drain(..length);
    Ok(())
}

struct Head {
    path: String,
    only_head: bool,
    keep_alive: bool,
    content_length: usize,
}

impl Head {
    fn parse(head: &[u8]) -> Self {
        let text = String::from_utf8_lossy(head);
        let mut lines = text.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let only_head = words.next() == Some("HEAD");
        let path = words.next().unwrap_or_default().to_owned();
        let mut keep_alive = words.next() == Some("HTTP/1.1");
        let mut content_length = 0;
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            if name.eq_ignore_ascii_case("connection") {
                keep_alive = if keep_alive {
                    !value.eq_ignore_ascii_case("close")
                } else {
                    value.eq_ignore_ascii_case("keep-alive")
                };
            } else if name.eq_ignore_ascii_case("content-length") {
                content_length = value.parse().unwrap_or(0);
            }
        }
        Self { path, only_head, keep_alive, content_length }
    }
}

fn response(status: u16, name: &str, keep_alive: bool, only_head: bool) -> String {
    let reason = if status < 400 { "OK" } else { "Unavailable" };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let body = if only_head { String::new() } else { format!("{name}\n") };
    format!(
        "HTTP/1.1 {status} {reason}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: {connection}\r\nx-server: {name}\r\n\r\n{body}",
        name.len() + 1
    )
}
