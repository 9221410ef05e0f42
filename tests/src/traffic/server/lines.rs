//! A line in, the name and the line out.

use std::io;

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{State, add};

pub(super) async fn converse(stream: &mut TcpStream, state: &State) -> io::Result<()> {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::with_capacity(256, reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        add(&state.bytes_in, line.len());
        state.before_answer().await;
        let answer = [state.name.as_bytes(), b" ", &line].concat();
        writer.write_all(&answer).await?;
        add(&state.bytes_out, answer.len());
        add(&state.answers, 1);
    }
}
