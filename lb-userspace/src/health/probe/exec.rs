//! `exec`: a command exits with 0. At the deadline it is killed, with its process group.

use std::os::unix::process::ExitStatusExt;

use tokio::time::{Instant, timeout_at};

use super::failure::{Failure, Miss, Trouble};
use crate::health::command::{Command, Output};

pub(super) async fn probe(command: &Command, deadline: Instant) -> Result<(), Miss> {
    let cannot = |error: std::io::Error| Trouble::Command(error.kind());
    let mut running = command.start(Output::Discarded).map_err(cannot)?;
    let status = timeout_at(deadline, running.wait()).await.map_err(|_| Failure::Timeout)?.map_err(cannot)?;
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Failure::Exit(code).into()),
        (None, signal) => Err(Failure::Signal(signal.unwrap_or_default()).into()),
    }
}
