//! Child processes that end with the value that stands for them.

use std::{
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use crate::{case::watch_log, enter::private_dir};

/// A running process and its log. Dropping it kills its process group and reaps it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    program: String,
    log: PathBuf,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    /// It exited with this code.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl Process {
    /// Starts `command` as the leader of a process group of its own, with an empty input. What it
    /// prints goes to a log that a failing [`claim`](crate::claim) shows.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(command: Command) -> Result<Self> {
        Self::spawn_with_input(command, Stdio::null())
    }

    pub(crate) fn spawn_with_input(mut command: Command, input: Stdio) -> Result<Self> {
        let program =
            Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = private_dir(&program)?.join(format!("{program}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot create {}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        watch_log(&log);
        Ok(Self { child, program, log })
    }

    /// The process id, as seen inside the run.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with everything it printed.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Everything it has printed so far.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends a signal to the process itself (not to its group).
    ///
    /// # Errors
    /// If it has been waited for already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("cannot send {signal} to {}", self.program))
    }

    /// Kills the process group with `SIGKILL` and waits until the process is gone.
    pub fn kill9(&mut self) {
        // A child that was not waited for keeps its id, so the group cannot be somebody else's.
        if let Ok(None) = self.child.try_wait() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }

    /// How it ended, or `None` while it runs.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn finished(&mut self) -> Result<Option<Finished>> {
        Ok(self.child.try_wait()?.map(Finished::from))
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// If it still runs after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<Finished> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(end) = self.finished()? {
                return Ok(end);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {timeout:?}", self.program);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl From<ExitStatus> for Finished {
    fn from(status: ExitStatus) -> Self {
        status.code().map_or_else(|| Self::Killed(status.signal().unwrap_or(0)), Self::Exited)
    }
}
