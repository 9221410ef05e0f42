//! The whole, with real servers and real connections.

mod health;
mod modes;
mod operator;
mod refusals;
mod split;
mod survival;

use std::process::ExitCode;

fn main() -> ExitCode {
    let claims = [
        modes::claims(),
        split::claims(),
        survival::claims(),
        health::claims(),
        operator::claims(),
        refusals::claims(),
    ];
    lb_tests::run(claims.into_iter().flatten().collect())
}
