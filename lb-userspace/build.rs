//! Builds the kernel programs, and gives the crate the path of their object as `LB_EBPF_OBJECT`.

use std::process::ExitCode;

#[path = "../xtask/src/object.rs"]
mod object;

fn main() -> ExitCode {
    object::export("lb", "LB_EBPF_OBJECT")
}
