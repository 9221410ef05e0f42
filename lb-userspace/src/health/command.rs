//! Commands of the operator: checks of type `exec`, what is run when a backend goes down, and gates of rollouts.

use std::{io, path::PathBuf, process::Stdio};

use tokio::process::{Child, ChildStderr, ChildStdout};

/// Where commands find others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program, its arguments and its environment. There is no shell, and nothing of the agent's own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// An absolute path; that of a gate may also be a name that `PATH` finds.
    pub program: PathBuf,
    /// What follows it.
    pub arguments: Vec<String>,
    /// All of the environment but `PATH`.
    pub environment: Vec<(&'static str, String)>,
}

/// What becomes of what a command prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Nobody reads it.
    Discarded,
    /// [`Running::output`] reads it.
    Piped,
}

/// A command that runs, as the leader of a process group of its own. Dropping it before its end kills the whole group.
#[derive(Debug)]
pub struct Running(Child);

impl Command {
    /// Starts it with an empty input.
    ///
    /// # Errors
    ///
    /// If there is no such program, or it cannot be run.
    pub fn start(&self, output: Output) -> io::Result<Running> {
        let stdio = || match output {
            Output::Discarded => Stdio::null(),
            Output::Piped => Stdio::piped(),
        };
        let child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            .env_clear()
            .env("PATH", PATH)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(stdio())
            .stderr(stdio())
            .spawn()?;
        Ok(Running(child))
    }
}

impl Running {
    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// If it cannot be waited for.
    pub async fn wait(&mut self) -> io::Result<std::process::ExitStatus> {
        self.0.wait().await
    }

    /// What it prints, if it was [`Output::Piped`] and nobody has asked before.
    pub(super) fn output(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.0.stdout.take(), self.0.stderr.take())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only a child that was not waited for has an id: nobody else can have got it.
        let Some(group) = self.0.id().and_then(|id| libc::pid_t::try_from(id).ok()) else {
            return;
        };
        // SAFETY: `kill` takes any numbers. The group is that of our own child, which still is in it.
        unsafe { libc::kill(-group, libc::SIGKILL) };
    }
}
