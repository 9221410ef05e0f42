//! Network namespaces without names.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    panic,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
    thread,
};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};

use crate::{enter::ensure_entered, process::Process};

/// A network namespace that lives as long as a clone of this value, or a process in it.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: Arc<str>,
    fd: Arc<OwnedFd>,
}

impl Namespace {
    /// Makes a namespace with its loopback up. The name is for messages only.
    ///
    /// # Errors
    /// Before [`enter`](crate::enter), or where the kernel refuses.
    pub fn new(name: &str) -> Result<Self> {
        ensure_entered()?;
        let fd = thread::scope(|scope| {
            scope
                .spawn(|| -> Result<OwnedFd> {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    Ok(File::open("/proc/thread-self/ns/net")?.into())
                })
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
        .with_context(|| format!("cannot make the network namespace {name}"))?;
        let namespace = Self { name: name.into(), fd: Arc::new(fd) };
        namespace.set_up("lo")?;
        Ok(namespace)
    }

    /// A namespace that somebody else made.
    #[must_use]
    pub fn adopt(name: &str, fd: OwnedFd) -> Self {
        Self { name: name.into(), fd: Arc::new(fd) }
    }

    /// What messages call it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path for `nsenter --net=`, good while this value lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd()).into()
    }

    /// Runs `body` on a thread inside the namespace. Sockets that it makes stay in there.
    ///
    /// # Panics
    /// If `body` does, or if the kernel refuses entry (which it does not to root).
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self, CloneFlags::CLONE_NEWNET)
                        .unwrap_or_else(|error| panic!("cannot enter {}: {error}", self.name));
                    body()
                })
                .join()
                .unwrap_or_else(|panic| panic::resume_unwind(panic))
        })
    }

    /// Starts a process inside the namespace. It ends with the returned value.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn spawn(&self, command: Command) -> Result<Process> {
        Process::spawn(self.inside(command))
    }

    pub(crate) fn spawn_with_input(&self, command: Command, input: Stdio) -> Result<Process> {
        Process::spawn_with_input(self.inside(command), input)
    }

    /// Runs a program inside the namespace to its end, and returns what it printed.
    ///
    /// # Errors
    /// If the program cannot be started; not if it fails.
    pub fn output(&self, command: Command) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.inside(command).output().with_context(|| format!("cannot start {program}"))
    }

    /// Writes a setting of this namespace, named by its path below `/proc/sys`, for example
    /// `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// If there is no such setting, or the value is refused.
    pub fn sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        let value = value.to_string();
        // The kernel shows each thread the settings of its own namespace.
        self.run(|| fs::write(&path, &value))
            .with_context(|| format!("cannot set {key} to {value} in {}", self.name))
    }

    fn inside(&self, mut command: Command) -> Command {
        let namespace = self.clone();
        let enter = move || {
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: setns is one system call; nothing is allocated or locked between fork and exec.
        unsafe { command.pre_exec(enter) };
        command
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
