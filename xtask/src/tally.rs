//! Counts what test programs report.

use std::{fmt, ops::AddAssign};

/// How many tests ended how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u32,
    /// Tests that failed, and test programs that did not get to their end.
    pub failed: u32,
    /// Tests that were not run though the filter allows them.
    pub skipped: u32,
    /// What failed, in the words of its test program.
    pub failures: Vec<String>,
}

impl Tally {
    /// What a test program's closing line says, libtest's or libtest-mimic's; none for any other line.
    pub fn parse(line: &str) -> Option<Self> {
        // Before the numbers stands "ok" or "FAILED", possibly in colour.
        let counts = line.trim().strip_prefix("test result: ")?;
        let words: Vec<_> =
            counts.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let count = |label| {
            let pair = words.windows(2).find(|pair| pair[1] == label)?;
            pair[0].parse().ok()
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
            failures: Vec::new(),
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Reads what a test program says of its failures: a block a test, headed `---- name stdout ----` by libtest, and
/// `---- name ----` by libtest-mimic; the list of names that follows ends the last one.
#[derive(Debug, Default)]
pub struct Failures {
    /// Heading and text of each.
    pub found: Vec<String>,
    inside: bool,
}

impl Failures {
    /// Takes the next line.
    pub fn read(&mut self, line: &str) {
        let plain = line.trim();
        if plain.starts_with("---- ") && plain.ends_with(" ----") {
            self.found.push(plain.to_owned());
            self.inside = true;
        } else if plain == "failures:" || Tally::parse(line).is_some() {
            self.inside = false;
        } else if self.inside
            && let Some(last) = self.found.last_mut()
        {
            last.push('\n');
            last.push_str(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn tally(passed: u32, failed: u32, skipped: u32) -> Tally {
        Tally { passed, failed, skipped, failures: Vec::new() }
    }

    #[test]
    fn failures_of_both_harnesses_are_kept_with_their_text() {
        let output = "test a ... ok\n\nfailures:\n\n---- rollout::it_goes_back stdout ----\nassertion failed\nat x.rs:3\n\n\n\
                      failures:\n    rollout::it_goes_back\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored;\n\
                      failures:\n\n---- a drain ends ----\nnot after 5 s\n\nfailures:\n    a drain ends\n";
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.read(line));
        let found: Vec<_> = failures.found.iter().map(|text| text.trim_end()).collect();
        assert_eq!(
            found,
            [
                "---- rollout::it_goes_back stdout ----\nassertion failed\nat x.rs:3",
                "---- a drain ends ----\nnot after 5 s"
            ]
        );
    }

    #[test]
    fn libtest_closes_with_counts() {
        let line =
            "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.42s";
        assert_eq!(Tally::parse(line), Some(tally(12, 0, 1)));
    }

    #[test]
    fn libtest_mimic_closes_with_the_same_counts() {
        let line = "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s";
        assert_eq!(Tally::parse(line), Some(tally(1, 2, 0)));
    }

    #[test]
    fn colours_do_not_hide_counts() {
        let line =
            "test result: \u{1b}[32mok\u{1b}[m. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Tally::parse(line), Some(tally(7, 0, 0)));
    }

    #[test]
    fn other_lines_count_nothing() {
        for line in [
            "running 3 tests",
            "test tests::one_passed ... ok",
            "3 passed; 0 failed; 0 ignored",
            "test result: ok.",
            "test result: ok. many passed; 0 failed; 0 ignored",
        ] {
            assert_eq!(Tally::parse(line), None, "{line}");
        }
    }

    #[test]
    fn the_closing_line_names_skipped_tests_only_if_there_are_any() {
        assert_eq!(tally(3, 0, 0).to_string(), "3 passed, 0 failed");
        assert_eq!(tally(3, 1, 2).to_string(), "3 passed, 1 failed, 2 skipped");
    }
}
