//! What was found in a configuration, for people and for programs.
//!
//! The rules say what is wrong and where; [`render`] alone knows how that looks on a terminal.

mod code;
mod lines;
mod render;

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::read::Place;
pub use code::{Code, Severity, UnknownCode};
use lines::Lines;

/// Everything that was found in one text, in the order of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostics {
    name: Arc<str>,
    text: Arc<str>,
    list: Vec<Diagnostic>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// What kind of mistake it is.
    pub code: Code,
    /// What is wrong, in one line.
    pub message: String,
    /// Where; the first place is the one to mend, the others explain it.
    pub labels: Vec<Label>,
    /// What to do about it.
    pub help: Vec<String>,
}

/// A place in the text, and what is to be said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// Bytes of the text; empty where there is no text.
    pub span: Range<usize>,
    /// Keys from the root, such as `service[0].pool[1].name`.
    pub path: String,
    /// What is to be said about it.
    pub text: String,
}

/// Whether to colour what is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Letters only.
    Plain,
    /// With ANSI escapes for a terminal.
    Coloured,
}

/// A finding as the API sends it. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The stable code, such as `LB0103`.
    pub code: Code,
    /// Whether it keeps the configuration from being used.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub message: String,
    /// The name of the text.
    pub file: String,
    /// The place to mend.
    #[serde(flatten)]
    pub at: Spot,
    /// Places that explain it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Spot>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub help: Vec<String>,
}

/// A [`Label`] in lines and columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spot {
    /// Line where it begins.
    pub line: usize,
    /// Column where it begins.
    pub column: usize,
    /// Where it ends: the first character after it.
    pub end: Position,
    /// Keys from the root, such as `service[0].pool[1].name`.
    pub path: String,
    /// What is to be said about it.
    pub label: String,
}

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Diagnostics {
    pub(super) fn new(name: &str, text: &str, mut list: Vec<Diagnostic>) -> Self {
        list.sort_by_key(|found| found.labels.first().map_or(0, |label| label.span.start));
        Self { name: name.into(), text: text.into(), list }
    }

    /// How many keep the configuration from being used.
    pub fn errors(&self) -> usize {
        self.list.iter().filter(|found| found.severity() == Severity::Error).count()
    }

    /// How many do not.
    pub fn warnings(&self) -> usize {
        self.list.len() - self.errors()
    }

    /// As a compiler shows it: file, line, column, the line itself, what was expected. Ends with a count.
    pub fn render(&self, style: Style) -> String {
        render::all(&self.name, &self.text, self, style)
    }

    /// For programs.
    pub fn reports(&self) -> Vec<Report> {
        let lines = Lines::of(&self.text);
        self.list.iter().map(|found| found.report(&self.name, &lines)).collect()
    }
}

impl Deref for Diagnostics {
    type Target = [Diagnostic];

    fn deref(&self) -> &[Diagnostic] {
        &self.list
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.render(Style::Plain))
    }
}

impl std::error::Error for Diagnostics {}

impl Diagnostic {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), labels: Vec::new(), help: Vec::new() }
    }

    /// Adds a place; the first one is the one to mend.
    pub(super) fn at(mut self, place: &Place, text: impl Into<String>) -> Self {
        self.labels.push(Label { span: place.span.clone(), path: place.path(), text: text.into() });
        self
    }

    pub(super) fn help(mut self, text: impl Into<String>) -> Self {
        self.help.push(text.into());
        self
    }

    /// Whether it keeps the configuration from being used.
    pub fn severity(&self) -> Severity {
        self.code.severity()
    }

    fn report(&self, file: &str, lines: &Lines<'_>) -> Report {
        let mut spots = self.labels.iter().map(|label| lines.spot(label));
        let at = spots
            .next()
            .unwrap_or_else(|| lines.spot(&Label { span: 0..0, path: String::new(), text: String::new() }));
        Report {
            code: self.code,
            severity: self.severity(),
            message: self.message.clone(),
            file: file.to_owned(),
            at,
            related: spots.collect(),
            help: self.help.clone(),
        }
    }
}

/// In one line, for values that came without a text.
impl fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.code, self.message)?;
        for label in &self.labels {
            let path = if label.path.is_empty() { "the root" } else { &label.path };
            write!(out, "; {path}: {}", label.text)?;
        }
        self.help.iter().try_for_each(|help| write!(out, "; {help}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_flat_and_survives_json() {
        let found = Diagnostic::new(Code::OutOfRange, "too large")
            .at(&Place::of_text(8..13), "at most 65535")
            .help("take less");
        let all = Diagnostics::new("lb.toml", "weight = 70000\n", vec![found]);
        let json = serde_json::to_value(all.reports()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([{
                "code": "LB0203", "severity": "error", "message": "too large", "file": "lb.toml",
                "line": 1, "column": 9, "end": {"line": 1, "column": 14}, "path": "", "label": "at most 65535",
                "help": ["take less"],
            }])
        );
        assert_eq!(serde_json::from_value::<Vec<Report>>(json).unwrap(), all.reports());
    }
}
