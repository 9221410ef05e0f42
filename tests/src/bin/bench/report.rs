//! Tables for people, which are Markdown too; the JSON is the same values.

use std::fmt::{self, Display, Formatter};
use std::io::{self, IsTerminal as _};
use std::time::Duration;

/// Says on a terminal what is being done, in place of what was said before.
pub fn at_work(what: &str) {
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K{what}");
    }
}

/// A part of the report.
pub trait Section {
    /// Its heading.
    const TITLE: &'static str;

    /// For people.
    fn text(&self) -> String;
}

/// A table of text, the first column flush left and the others flush right.
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these headings.
    pub fn new<T: Into<String>>(headings: impl IntoIterator<Item = T>) -> Self {
        Self { headings: headings.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// One more row, as wide as the headings.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.headings.len());
        self.rows.push(cells);
    }

    /// A row that says what the next ones are about.
    pub fn heading(&mut self, title: &str) {
        let mut cells = vec![format!("**{title}**")];
        cells.resize(self.headings.len(), String::new());
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let all = || std::iter::once(&self.headings).chain(&self.rows);
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0).max(3))
            .collect();
        for (number, row) in all().enumerate() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if column == 0 {
                    write!(f, "| {cell:<width$} ")?;
                } else {
                    write!(f, "| {cell:>width$} ")?;
                }
            }
            writeln!(f, "|")?;
            if number == 0 {
                for (column, width) in widths.iter().enumerate() {
                    let dashes = "-".repeat(width - 1);
                    write!(
                        f,
                        "| {}{dashes}{} ",
                        if column == 0 { "-" } else { "" },
                        if column == 0 { "" } else { ":" }
                    )?;
                }
                writeln!(f, "|")?;
            }
        }
        Ok(())
    }
}

/// With its unit.
pub fn nanoseconds(value: u64) -> String {
    format!("{value} ns")
}

/// A time with three digits and its unit.
pub fn time(duration: Duration) -> String {
    let nanoseconds = duration.as_nanos() as f64;
    let (value, unit) = match nanoseconds {
        n if n < 1e3 => return format!("{n} ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    let digits = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.digits$} {unit}")
}

/// The middle value; of an even number of them the greater of the two.
pub fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len() / 2).copied()
}

/// The least value.
pub fn least<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    values.iter().copied().reduce(|a, b| if b < a { b } else { a })
}

/// A duration in JSON: whole nanoseconds.
pub fn as_nanoseconds<S: serde::Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_markdown() {
        let mut table = Table::new(["what", "ns"]);
        table.row(vec!["a packet".to_owned(), "95".to_owned()]);
        assert_eq!(table.to_string(), "| what     |  ns |\n| -------- | --: |\n| a packet |  95 |\n");
    }

    #[test]
    fn times_have_three_digits() {
        for (nanoseconds, text) in [
            (7, "7 ns"),
            (1_234, "1.23 µs"),
            (45_600_000, "45.6 ms"),
            (999_000, "999 µs"),
            (2_000_000_000, "2.00 s"),
        ] {
            assert_eq!(time(Duration::from_nanos(nanoseconds)), text);
        }
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3, 1, 2]), Some(2));
        assert_eq!(least(&[3.5, 1.5]), Some(1.5));
        assert_eq!(median::<u32>(&[]), None);
    }
}
