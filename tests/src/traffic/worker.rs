//! A worker is a copy of the running program that plays one role, in a namespace.
//!
//! Its standard input is a socket to the process that started it: the role comes in one line of
//! JSON, then requests, each answered by one line. When that socket closes, the worker ends.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::{
        fd::{FromRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    process::{self, Command},
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, Lines},
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    runtime,
};

use super::{Outcome, load, pool, server};
use crate::{Namespace, Process, enter::own_program};

/// What a worker can be.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Role {
    Server(server::ServerSpec),
    Pool(pool::Work),
    Load(load::Work),
}

/// The starter's side.
#[derive(Debug)]
pub(super) struct Worker {
    process: Mutex<Process>,
    control: Mutex<BufReader<UnixStream>>,
}

impl Worker {
    /// Starts a worker and waits until it is ready.
    pub fn start(namespace: &Namespace, role: &Role) -> Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(own_program()?);
        command.env(MARK, "1");
        let process = namespace.spawn_with_input(command, OwnedFd::from(theirs).into())?;
        let worker = Self { process: Mutex::new(process), control: Mutex::new(BufReader::new(ours)) };
        worker.ask::<()>(role)?;
        Ok(worker)
    }

    /// Sends a request and waits for its answer.
    pub fn ask<T: DeserializeOwned>(&self, request: &impl Serialize) -> Result<T> {
        let mut control = self.control.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let answered = control.get_mut().write_all(line.as_bytes()).and_then(|()| {
            line.clear();
            control.read_line(&mut line)
        });
        match answered {
            Ok(length) if length > 0 => {}
            _ => bail!("a worker has died\n{}", self.log()),
        }
        let answer: Result<T, String> = serde_json::from_str(&line)
            .with_context(|| format!("a worker answered in other words than expected: {line}"))?;
        answer.map_err(|why| anyhow!(why))
    }

    /// Ends the worker and what it has open. Connections are reset or closed by its kernel.
    pub fn kill9(&self) {
        self.process.lock().unwrap_or_else(|poison| poison.into_inner()).kill9();
    }

    fn log(&self) -> String {
        let mut process = self.process.lock().unwrap_or_else(|poison| poison.into_inner());
        let end = process.wait(Duration::from_millis(100));
        format!("{end:?}\n{}", process.log())
    }
}

/// The worker's side of the socket.
pub(super) struct Control {
    requests: Lines<tokio::io::BufReader<OwnedReadHalf>>,
    answers: OwnedWriteHalf,
}

impl Control {
    /// The next request, or `None` when nobody will ask any more.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let Some(line) = self.requests.next_line().await? else {
            return Ok(None);
        };
        Ok(Some(serde_json::from_str(&line)?))
    }

    pub async fn answer(&mut self, answer: Result<impl Serialize>) -> Result<()> {
        let mut line = serde_json::to_vec(&answer.map_err(|error| format!("{error:#}")))?;
        line.push(b'\n');
        Ok(self.answers.write_all(&line).await?)
    }
}

/// Becomes a worker, and never returns, if this process was started as one.
pub(crate) fn divert() {
    if env::var_os(MARK).is_none() {
        return;
    }
    // SAFETY: a worker is started with a socket as its standard input, which nothing else uses.
    let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(0) });
    match work(socket) {
        Ok(()) => process::exit(0),
        Err(error) => {
            eprintln!("worker: {error:#}");
            process::exit(1)
        }
    }
}

const MARK: &str = "LB_TESTS_WORKER";

fn work(socket: UnixStream) -> Outcome {
    socket.set_nonblocking(true)?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (requests, answers) = tokio::net::UnixStream::from_std(socket)?.into_split();
        let requests = tokio::io::BufReader::new(requests).lines();
        let mut control = Control { requests, answers };
        match control.next::<Role>().await? {
            None => Ok(()),
            Some(Role::Server(spec)) => server::work(spec, control).await,
            Some(Role::Pool(work)) => pool::work(work, control).await,
            Some(Role::Load(work)) => load::work(work, control).await,
        }
    })
}
