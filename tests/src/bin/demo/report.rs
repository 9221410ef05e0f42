//! What was promised, what was measured.

use crate::text::{BAD, Line};

/// The lines of the closing table.
#[derive(Debug, Default)]
pub struct Report {
    rows: Vec<Row>,
    broken: bool,
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    /// Whether it is as promised; nothing was promised about a mere figure.
    kept: Option<bool>,
}

impl Report {
    /// A promise, and whether it was kept.
    pub fn promise(&mut self, what: impl Into<String>, measured: impl Into<String>, kept: bool) {
        self.observe(kept);
        self.rows.push(Row { what: what.into(), measured: measured.into(), kept: Some(kept) });
    }

    /// A figure.
    pub fn figure(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        self.rows.push(Row { what: what.into(), measured: measured.into(), kept: None });
    }

    /// Whether something is as promised, which the table has no line for.
    pub fn observe(&mut self, kept: bool) {
        self.broken |= !kept;
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn all_kept(&self) -> bool {
        !self.broken
    }

    /// As a table.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        let wide = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        let line = |row: &Row| {
            let mark = match row.kept {
                None => Line::from("  "),
                Some(true) => Line::good("✓ "),
                Some(false) => Line::new().styled(BAD, "✗ "),
            };
            mark.plain(&row.what).padded(wide + 4).strong(&row.measured)
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_marks_what_was_kept_and_what_was_broken() {
        let mut report = Report::default();
        report.figure("requests", "12");
        report.promise("failed", "0 of 12", true);
        assert!(report.all_kept());
        report.promise("lost", "1", false);
        assert!(!report.all_kept());
        let lines: Vec<_> = report.lines().iter().map(|line| line.render(false, None)).collect();
        assert_eq!(lines, ["  requests  12", "✓ failed    0 of 12", "✗ lost      1"]);
    }
}
