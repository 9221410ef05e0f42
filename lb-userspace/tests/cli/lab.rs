//! A server on a socket of its own, and `lbctl` as a process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use lb_userspace::api::Server;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::agent::Agent;

pub struct Lab {
    pub agent: Arc<Agent>,
    directory: TempDir,
    runtime: Runtime,
    running: Option<Running>,
}

struct Running {
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<()>,
}

impl Lab {
    /// With the agent running.
    pub fn new() -> Self {
        let mut lab = Self::without_agent();
        lab.start();
        lab
    }

    pub fn without_agent() -> Self {
        Self {
            agent: Arc::new(Agent::new()),
            directory: tempfile::tempdir().unwrap(),
            runtime: Runtime::new().unwrap(),
            running: None,
        }
    }

    pub fn start(&mut self) {
        let (stop, stopped) = oneshot::channel();
        let server = self.runtime.block_on(async { Server::bind(self.socket()) }).unwrap();
        let agent = Arc::clone(&self.agent);
        let served = self.runtime.spawn(server.serve(agent, async {
            _ = stopped.await;
        }));
        self.running = Some(Running { stop, served });
    }

    /// Returns once the server has ended.
    pub fn stop(&mut self) {
        if let Some(Running { stop, served }) = self.running.take() {
            _ = stop.send(());
            self.runtime.block_on(served).unwrap();
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("lbd.sock")
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    /// `lbctl` with these arguments, in an environment without anything that would change it.
    pub fn lbctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lbctl"));
        command
            .env_clear()
            .env("LB_SOCKET", self.socket())
            .env("LB_PIN_DIR", self.directory.path().join("pins"))
            .env("LB_STATE_DIR", self.directory.path().join("state"))
            .current_dir(self.directory.path())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        self.lbctl(arguments).output().unwrap().into()
    }

    /// What was asked of the agent.
    pub fn calls(&self) -> Vec<String> {
        self.agent.calls.lock().unwrap().iter().map(|(_, what)| what.clone()).collect()
    }

    /// What people and programs see of a run, without what differs from run to run.
    pub fn transcript(&self, ran: &Ran) -> String {
        let mut text = ran.out.clone();
        if !ran.err.is_empty() {
            text += &format!("-- on standard error:\n{}", ran.err);
        }
        text += &format!("-- exit {}\n", ran.exit);
        text.replace(&self.directory.path().display().to_string(), "DIR")
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub exit: i32,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            exit: output.status.code().unwrap(),
        }
    }
}

/// Compares with what stands in the file, or writes it there if asked to.
pub fn expect(name: &str, actual: &str) -> Result<(), String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/expected").join(format!("{name}.txt"));
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(path, actual).unwrap();
        return Ok(());
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{}: expected\n{expected}\nbut got\n{actual}", path.display()))
}
