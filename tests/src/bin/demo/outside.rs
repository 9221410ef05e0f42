//! The process outside of the lab: it starts the show, and looks what is left afterwards.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Write as _},
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_tests::bpf::program_exists;
use libc::c_int;
use nix::{
    errno::Errno,
    sys::{
        prctl::{set_child_subreaper, set_pdeathsig},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
        wait::{WaitPidFlag, waitpid},
    },
};

use crate::{screen, text::Line};

/// Set in the copies that run inside.
pub const MARK: &str = "LB_DEMO_INSIDE";

/// Runs the show in a copy of this program, and verifies that nothing of it is left. True if the
/// show says so, and nothing is.
///
/// # Errors
/// If the copy cannot be started, was killed, or something is left.
pub fn supervise(arguments: &[String]) -> Result<bool> {
    outlive_interrupts()?;
    // Whatever outlives its parents becomes a child of this process, and is seen.
    set_child_subreaper(true).context("cannot become the one who inherits orphans")?;
    let (told, teller) = io::pipe()?;
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments).env(MARK, "1").stdin(teller);
    // SAFETY: prctl is one system call; nothing is allocated or locked between fork and exec.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    let mut show = command.spawn().context("cannot start the show")?;
    // The command holds the other end open, so that the lines below would not come to an end.
    drop(command);
    let programs = BufReader::new(told)
        .lines()
        .map(|line| Ok(line?.parse::<u32>()?))
        .collect::<Result<Vec<_>>>()
        .context("the show tells something else than programs")?;
    let end = show.wait()?;
    no_process_is_left()?;
    no_program_is_left(&programs)?;
    let interrupted = end.signal() == Some(Signal::SIGINT as i32);
    // A show that did not begin left nothing to clean up, and has said why.
    if interrupted || !programs.is_empty() {
        let line = Line::good("cleaned up: nothing left on this host")
            .dim(" (no process, no program in the kernel)");
        screen::emit(&format!("{}\n", line.render(screen::takes_colours(), None)));
    }
    match end.signal() {
        Some(_) if interrupted => bail!("interrupted"),
        Some(signal) => bail!("the show was killed by signal {signal}"),
        None => Ok(end.success()),
    }
}

/// Tells the process outside of a program that was loaded.
///
/// # Errors
/// If that process is gone.
pub fn tell_program(id: u32) -> Result<()> {
    let mut teller = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(writeln!(teller, "{id}")?)
}

/// The exit code for an outcome; errors are shown.
pub fn report(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C reaches the show too, and ends it. Who looks for its remains has to be there then.
fn outlive_interrupts() -> Result<()> {
    extern "C" fn nothing(_signal: c_int) {}
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::SA_RESTART, SigSet::empty());
    // SAFETY: the handler does nothing. Unlike an ignored signal it is not handed down by exec.
    unsafe { sigaction(Signal::SIGINT, &action) }?;
    Ok(())
}

/// The lab's processes live in a PID namespace, whose first process only ends after all others.
fn no_process_is_left() -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error).context("cannot tell whether a process is left"),
            Ok(_) if Instant::now() >= deadline => {
                bail!("left on this host: a process of the lab, {PATIENCE:?} after the end")
            }
            Ok(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The kernel frees programs once nothing can run them any more, which takes a moment.
fn no_program_is_left(programs: &[u32]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for &id in programs {
        while program_exists(id)? {
            if Instant::now() >= deadline {
                bail!("left on this host: the XDP program {id}, {PATIENCE:?} after the end");
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

/// What the kernel may take to clean up.
const PATIENCE: Duration = Duration::from_secs(10);
