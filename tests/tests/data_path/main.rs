//! The loaded program on crafted frames: that it decides as the same code does on the host, and what it does when tables
//! are full.

mod cases;
mod differential;
mod frames;
mod full;
mod guard;
mod kernel;
mod network;
mod rng;
mod tables;
mod tripwire;
mod writing;

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    // What another kernel may do otherwise with the programs. All else is about maps and userspace: where the processor is
    // emulated (`cargo xtask vm`), it would take minutes.
    let mut claims = vec![cases::claims(), differential::claims()];
    if env::var_os("LB_PROGRAMS_ONLY").is_none() {
        claims.extend([full::claims(), writing::claims(), tripwire::claims(), guard::claims()]);
    }
    lb_tests::run(claims.into_iter().flatten().collect())
}
