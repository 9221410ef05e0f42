//! How large the kernel programs are.

use anyhow::Result;
use serde::Serialize;

use crate::programs::{BUDGETS, Budget, KERNEL, LIMIT, sizes};
use crate::report::{Section, Table};

/// How large each program is, and may become.
#[derive(Debug, Serialize)]
pub struct Sizes {
    programs: Vec<Budget>,
    budgets: &'static [Budget],
}

/// Loads the programs and asks the kernel.
///
/// # Errors
/// If it refuses.
pub fn measure() -> Result<Sizes> {
    Ok(Sizes { programs: sizes()?, budgets: BUDGETS })
}

impl Section for Sizes {
    const TITLE: &'static str = "Size of the programs";

    fn text(&self) -> String {
        let mut table = Table::new(["program", "verified instructions", "translated", "machine code"]);
        let of = |value: u32, budget: u32| format!("{value} of {budget}");
        for (size, budget) in self.programs.iter().zip(self.budgets) {
            table.row(vec![
                size.program.to_owned(),
                of(size.verified_instructions, budget.verified_instructions),
                of(size.translated_bytes, budget.translated_bytes) + " bytes",
                of(size.jited_bytes, budget.jited_bytes) + " bytes",
            ]);
        }
        format!(
            "{table}\nEach of its committed budget for Linux {KERNEL}x (the test `budgets`); on no kernel more than {LIMIT} instructions.\n"
        )
    }
}
