//! Builds what it takes with optimisation, and becomes one of the programs of `tests/`.

use std::{os::unix::process::CommandExt as _, process::Command};

use anyhow::{Result, anyhow, bail};

use crate::{host, setup};

/// Becomes `program` (`demo` or `bench`). It finds the agent and its CLI beside itself.
///
/// # Errors
/// Only if it comes back: setup or build failed, or the program does not start.
pub fn exec(program: &str, arguments: &[String]) -> Result<()> {
    if !host::is_root() {
        bail!(
            "it makes network namespaces and loads programs into the kernel: run `cargo xtask {program}` as root"
        );
    }
    let purpose = if program == "demo" { setup::Purpose::Demo } else { setup::Purpose::Everything };
    setup::run(setup::Options { purpose, ..setup::Options::default() })?;
    let mut build = host::cargo();
    build.args(["build", "--release", "--package", "lb-userspace", "--package", "lb-tests"]);
    build.args(["--bin", "lbd", "--bin", "lbctl", "--bin", program]);
    host::run(&mut build)?;
    let path = host::target_dir()?.join("release").join(program);
    let error = Command::new(&path).args(arguments).current_dir(host::workspace()).exec();
    Err(anyhow!("cannot start {}: {error}", path.display()))
}
