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

use std::process::ExitCode;

fn main() -> ExitCode {
    let claims = [
        cases::claims(),
        differential::claims(),
        full::claims(),
        writing::claims(),
        tripwire::claims(),
        guard::claims(),
    ];
    lb_tests::run(claims.into_iter().flatten().collect())
}
