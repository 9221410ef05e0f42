//! The walls around a run.
//!
//! What makes the lab leave nothing behind is that nobody has to clean it up. The run has a PID
//! namespace with a small first process: when the run ends, however it ends, so does that, and the
//! kernel kills everything else in there, daemons of daemons too. Mounts are private, so pins and
//! state go with the last process; network namespaces have no name, so they go with the last file
//! descriptor.

use std::{
    env, fs,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    fcntl::OFlag,
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        prctl::set_pdeathsig,
        resource::{Resource, getrlimit, setrlimit},
        signal::Signal,
        wait::{WaitStatus, wait},
    },
    unistd::{ForkResult, Pid, Uid, fork, pipe2},
};

use crate::traffic::worker;

/// Moves the process into mount, network and PID namespaces of its own.
///
/// To be called first in `main`, before any thread exists. The process that called it waits outside
/// and ends with the status of the run; the call returns in a child. There, `/sys/fs/bpf` is a new
/// bpffs, `/run` an empty tmpfs, `/proc` shows the run's own processes, and the network is empty.
///
/// # Errors
/// Without root, with other threads running, or where the kernel refuses namespaces or mounts.
pub fn enter() -> Result<()> {
    worker::divert();
    ensure!(
        Uid::effective().is_root(),
        "the lab needs root: it makes network namespaces and loads BPF programs. \
         Run it as root (for example `sudo -E cargo xtask test`)"
    );
    ensure!(ENTERED.get().is_none(), "lb_tests::enter was called twice");
    let threads = fs::read_dir("/proc/self/task").context("cannot read /proc/self/task")?.count();
    ensure!(threads == 1, "lb_tests::enter has to come first in main: {threads} threads are running already");
    raise_open_files()?;
    own_process_ids()?;
    private_mounts()?;
    unshare(CloneFlags::CLONE_NEWNET).context("cannot leave the host's network")?;
    ENTERED.set(()).expect("set nowhere else");
    Ok(())
}

/// A new empty directory that nobody else in the run has, on the run's own tmpfs.
///
/// # Errors
/// Before [`enter`].
pub fn private_dir(name: &str) -> Result<PathBuf> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    ensure_entered()?;
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = PathBuf::from(format!("/run/lab/{number}-{name}"));
    fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok(path)
}

/// Fails unless [`enter`] has returned.
pub(crate) fn ensure_entered() -> Result<()> {
    ensure!(ENTERED.get().is_some(), "lb_tests::enter has to be called first in main");
    Ok(())
}

static ENTERED: OnceLock<()> = OnceLock::new();

/// Forks into a new PID namespace, twice: the first process there only buries the dead, as orphans
/// fall to it, and the second is the run. Neither the caller nor the first process returns.
fn own_process_ids() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a PID namespace")?;
    fork_and_wait()?;
    fork_and_wait()
}

/// Forks, and returns in the child, which dies when its parent does. The parent waits for it, and
/// for whatever else becomes its child, and ends as it did.
fn fork_and_wait() -> Result<()> {
    let (alive_reader, alive_writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the process has one thread, as `enter` checked, so the child may do anything.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => {
            drop(alive_reader);
            let code = wait_for(child);
            drop(alive_writer);
            process::exit(code)
        }
        ForkResult::Child => {
            drop(alive_writer);
            die_with_parent(&alive_reader)
        }
    }
}

fn wait_for(child: Pid) -> i32 {
    loop {
        match wait() {
            Ok(WaitStatus::Exited(ended, code)) if ended == child => return code,
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == child => {
                return 128 + signal as i32;
            }
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => {
                eprintln!("cannot wait for the run: {error}");
                return 1;
            }
        }
    }
}

/// `parent` is the reading end of a pipe that only the parent holds the other end of.
fn die_with_parent(parent: &OwnedFd) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    // A parent that died before the call above sends no signal any more.
    let mut fds = [PollFd::new(parent.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut fds, PollTimeout::ZERO)? == 0, "the parent process is gone");
    Ok(())
}

fn private_mounts() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)
        .context("cannot make the mounts private")?;
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (kind, place, options) in [
        ("proc", "/proc", None),
        ("bpf", "/sys/fs/bpf", Some("mode=0700")),
        ("tmpfs", "/run", Some("mode=0755")),
    ] {
        mount(Some(kind), place, Some(kind), hardened, options)
            .with_context(|| format!("cannot mount {kind} on {place}"))?;
    }
    Ok(())
}

/// Ten thousand connections need more descriptors than the usual soft limit of 1024.
fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of open files")
}

/// The path of the running program, for starting copies of it.
pub(crate) fn own_program() -> Result<PathBuf> {
    env::current_exe().context("cannot tell which program is running")
}
