//! The machine we run on, and commands on it.

use std::{
    env, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::toolchain;

/// The workspace's root directory.
pub fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// Cargo in the workspace, the one that started us. It does not learn that: build scripts (ring's) look at which package is at work,
/// and would run, and have all that follows built, once more for each.
pub fn cargo() -> Command {
    let mut cargo = Command::new(toolchain::host_cargo());
    cargo.current_dir(workspace());
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// Cargo's target directory: this program lies in one of its profiles' directories.
pub fn target_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program lies")?;
    let directory = program.ancestors().nth(2);
    Ok(directory.with_context(|| format!("{} lies in no target directory", program.display()))?.to_owned())
}

/// Whether we have root's user id. (The kernel gives `/proc/self` to our effective user.)
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// Whether a program of this name would be found, also where only root's `PATH` would find it.
pub fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(name).is_file())
}

/// Shows a command and runs it, its output going where ours goes.
pub fn run(command: &mut Command) -> Result<()> {
    println!("      $ {}", shown(command));
    let status = command.status();
    expect_success(command, status.with_context(|| cannot_start(command))?)
}

/// As [`run`], but the command is killed when it takes longer than `limit`. For single processes: their children are
/// not killed.
pub fn run_within(limit: Duration, command: &mut Command) -> Result<()> {
    println!("      $ {}", shown(command));
    let mut child = command.spawn().with_context(|| cannot_start(command))?;
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return expect_success(command, status);
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            bail!("`{}` took more than {limit:?}", shown(command));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// "cannot start `program`", for a context.
pub fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", command.get_program().display())
}

fn expect_success(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// A command as a user would type it: without the directories of its program.
fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words = program.file_name().into_iter().chain(command.get_args()).map(|word| word.to_string_lossy());
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_hangs_is_killed() {
        let begin = Instant::now();
        let limit = Duration::from_millis(100);
        let error = run_within(limit, Command::new("sleep").arg("60")).expect_err("it takes a minute");
        assert_eq!(error.to_string(), "`sleep 60` took more than 100ms");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_command_that_fails_says_how() {
        let error = run(Command::new("/bin/sh").args(["-c", "exit 3"])).expect_err("it exits with 3");
        assert_eq!(error.to_string(), "`sh -c exit 3` failed (exit status: 3)");
    }
}
