//! The kernel programs stay as small as they are meant to be.

use std::fs;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use lb_common::stage::Stage;
use lb_tests::claim;

#[path = "../src/bin/bench/programs.rs"]
mod programs;

use programs::{BUDGETS, KERNEL, LIMIT, sizes};

fn main() -> ExitCode {
    lb_tests::run(vec![
        claim("each program keeps to its budgets", within_budgets),
        claim("each stage has a budget", complete),
    ])
}

fn complete() -> Result<()> {
    for name in Stage::ALL.iter().map(|stage| stage.program()) {
        ensure!(BUDGETS.iter().any(|budget| budget.program == name), "{name} has none");
    }
    Ok(())
}

fn within_budgets() -> Result<()> {
    let mut beyond = String::new();
    // Another kernel's verifier goes other ways.
    let measured = fs::read_to_string("/proc/sys/kernel/osrelease")?.starts_with(KERNEL);
    for (size, budget) in sizes()?.iter().zip(BUDGETS) {
        println!("{size:?}");
        let mut check = |what: &str, is: u32, may: u32| {
            let may = if measured { may } else { may.max(LIMIT) };
            if is > may {
                beyond += &format!("{}: {is} {what}, but its budget is {may}\n", budget.program);
            }
        };
        check("verified instructions", size.verified_instructions, budget.verified_instructions);
        check("bytes translated", size.translated_bytes, budget.translated_bytes);
        if cfg!(target_arch = "x86_64") {
            check("bytes of machine code", size.jited_bytes, budget.jited_bytes);
        }
    }
    ensure!(beyond.is_empty(), "{beyond}a change that needs more says what for, and raises BUDGETS");
    Ok(())
}
