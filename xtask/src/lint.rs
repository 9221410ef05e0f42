//! Formatting, and all code with warnings as errors.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{
    host, setup,
    toolchain::{self, Toolchain},
};

/// Runs all checks, also after one has failed.
///
/// # Errors
/// Names the checks that failed; what they found is on the terminal.
pub fn run() -> Result<()> {
    setup::run(setup::Options { purpose: setup::Purpose::Build, ..setup::Options::default() })?;

    let mut checks = vec![("formatting", cargo(&["fmt", "--all", "--check"]))];
    for (name, manifest) in
        [("formatting of lb-ebpf", "lb-ebpf/Cargo.toml"), ("formatting of fuzz", "fuzz/Cargo.toml")]
    {
        checks.push((name, cargo(&["fmt", "--manifest-path", manifest, "--check"])));
    }
    checks.push(("Clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"])));
    checks.push(("lb-ebpf", kernel_programs()?));

    let mut failed = Vec::new();
    for (name, mut command) in checks {
        println!("== {name} ==");
        if let Err(error) = host::run(&mut command) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    println!("lint: clean\n");
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = host::cargo();
    cargo.args(arguments);
    cargo
}

fn kernel_programs() -> Result<Command> {
    let toolchain = Toolchain::find()?;
    if toolchain.rust.clippy.is_none() {
        println!("lb-ebpf is checked without Clippy: {} has none", toolchain.rust.origin);
    }
    let endian = if cfg!(target_endian = "big") { "big" } else { "little" };
    Ok(toolchain.lint(
        &host::workspace().join("lb-ebpf"),
        toolchain::triple(endian),
        &host::target_dir()?.join("bpf"),
    ))
}
