//! Builds the driver that measures XDP programs, and gives the crate the path of its object as `LB_DRIVER_OBJECT`.

use std::process::ExitCode;

#[path = "../xtask/src/object.rs"]
mod object;

fn main() -> ExitCode {
    object::export("driver", "LB_DRIVER_OBJECT")
}
