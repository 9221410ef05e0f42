//! Builds the kernel programs, and gives the crate the path of their object as `LB_EBPF_OBJECT`; and says which commit this is.

use std::env;
use std::process::{Command, ExitCode};

#[path = "../xtask/src/object.rs"]
mod object;

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=LB_COMMIT");
    println!("cargo::rustc-env=LB_COMMIT={}", commit());
    object::export("lb", "LB_EBPF_OBJECT")
}

/// What `LB_COMMIT` says, so that a package can be built again from an archive, else what git says. Only of what is released:
/// everything would be compiled anew after each commit otherwise.
fn commit() -> String {
    if let Ok(commit) = env::var("LB_COMMIT") {
        return commit;
    }
    if env::var("PROFILE").as_deref() != Ok("release") {
        return "of a debug build".to_owned();
    }
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--path-format=absolute", "--git-path", file]) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
        .unwrap_or_else(|| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
