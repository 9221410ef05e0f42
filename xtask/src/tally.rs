//! Counts what test programs report.

use std::{
    fmt, mem,
    ops::AddAssign,
    time::{Duration, Instant},
};

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
    /// What took seconds, and how long.
    pub slow: Vec<(Duration, String)>,
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
            ..Self::default()
        })
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.failures.extend(other.failures);
        self.slow.extend(other.slow);
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

/// Reads along while test programs run.
#[derive(Debug)]
pub struct Reader {
    tally: Tally,
    failures: Failures,
    /// The test whose end was not told yet, and since when it may have run: programs of claims run one after the other.
    test: String,
    since: Instant,
}

impl Reader {
    /// From how long on a test is slow.
    const SLOW: Duration = Duration::from_secs(5);

    pub fn new() -> Self {
        Self {
            tally: Tally::default(),
            failures: Failures::default(),
            test: String::new(),
            since: Instant::now(),
        }
    }

    /// Takes the next line, which was printed now.
    pub fn read(&mut self, line: &str) {
        self.failures.read(line);
        self.time(line.trim(), Instant::now());
        if let Some(counts) = Tally::parse(line) {
            self.tally += counts;
        }
    }

    fn time(&mut self, line: &str, now: Instant) {
        if let Some((name, end)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            name.trim_end().clone_into(&mut self.test);
            // What it prints itself stands between its name and its end.
            if !["ok", "FAILED"].contains(&end) && !end.starts_with("ignored") {
                return;
            }
        } else if !["ok", "FAILED"].contains(&line) {
            if line.starts_with("running ") {
                self.since = now;
            }
            return;
        }
        let took = now - mem::replace(&mut self.since, now);
        if took >= Self::SLOW {
            self.tally.slow.push((took, mem::take(&mut self.test)));
        }
    }

    /// What all of them said.
    pub fn finish(mut self) -> Tally {
        self.tally.failures = self.failures.found;
        self.tally
    }
}

/// Reads what a test program says of its failures: a block a test, headed `---- name stdout ----` by libtest, and
/// `---- name ----` by libtest-mimic; the list of names that follows ends the last one.
#[derive(Debug, Default)]
struct Failures {
    /// Heading and text of each.
    found: Vec<String>,
    inside: bool,
}

impl Failures {
    fn read(&mut self, line: &str) {
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
        Tally { passed, failed, skipped, failures: Vec::new(), slow: Vec::new() }
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
    fn slow_tests_are_named_with_their_time() {
        let mut reader = Reader::new();
        let begin = reader.since;
        let mut say = |second, line| reader.time(line, begin + Duration::from_secs(second));
        say(60, "running 4 tests");
        say(61, "test a quick one                ... ok");
        say(71, "test it says ... what it found  ... 30 frames in 9 s");
        say(72, "ok");
        say(80, "test a failure                  ... FAILED");
        say(95, "test another ... ok");
        let seconds: Vec<_> =
            reader.finish().slow.into_iter().map(|(took, name)| (took.as_secs(), name)).collect();
        let expected = [(11, "it says ... what it found"), (8, "a failure"), (15, "another")];
        assert_eq!(seconds, expected.map(|(took, name)| (took, name.to_owned())));
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
