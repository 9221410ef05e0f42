//! Where output and errors go.

use std::io::{self, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice, adapter::strip_str};
use clap::ValueEnum;
use serde::Serialize;

use super::table::Table;

/// How answers are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people, as wide as the terminal.
    #[default]
    Table,
    /// For people, with every column.
    Wide,
    /// For programs.
    Json,
}

/// Output and errors. What is written may be coloured; colours go no further than to a terminal that takes them.
pub struct Screen {
    out: Side,
    err: Side,
    /// How answers are shown.
    pub(super) format: Format,
    /// In characters, if anything says how wide it is.
    width: Option<usize>,
    terminal: bool,
}

impl Screen {
    /// The process's own. `COLUMNS` says how wide it is, else the terminal; a pipe has no width.
    pub fn of_process() -> Self {
        let terminal = io::stdout().is_terminal();
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let size = || terminal.then(terminal_size::terminal_size).flatten();
        let width = columns.filter(|&columns| columns > 0);
        let (out, err) = (io::stdout(), io::stderr());
        let coloured = |choice| choice != ColorChoice::Never;
        Self {
            out: Side { coloured: coloured(AutoStream::choice(&out)), to: Box::new(io::BufWriter::new(out)) },
            err: Side { coloured: coloured(AutoStream::choice(&err)), to: Box::new(err) },
            format: Format::default(),
            width: width.or_else(|| size().map(|(width, _)| width.0.into())),
            terminal,
        }
    }

    /// Of two writers, without colours.
    pub fn plain(out: impl Write + 'static, err: impl Write + 'static) -> Self {
        Self {
            out: Side { to: Box::new(out), coloured: false },
            err: Side { to: Box::new(err), coloured: false },
            format: Format::default(),
            width: None,
            terminal: false,
        }
    }

    /// Whether somebody looks on.
    pub(super) const fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether every column is wanted.
    pub(super) fn is_wide(&self) -> bool {
        self.format == Format::Wide
    }

    /// How wide tables may be.
    pub(super) fn width(&self) -> Option<usize> {
        if self.is_wide() { None } else { self.width }
    }

    /// Columns and lines of the terminal.
    pub(super) fn size(&self) -> Option<(usize, usize)> {
        let size = self.terminal.then(terminal_size::terminal_size).flatten();
        size.map(|(width, height)| (width.0.into(), height.0.into()))
    }

    /// Text as it is.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.out.write(text)
    }

    /// Goes up so many lines on the terminal and clears what stands there (ECMA-48: CUU, ED). This is no colour.
    pub(super) fn back(&mut self, lines: usize) -> io::Result<()> {
        if lines == 0 || !self.terminal {
            return Ok(());
        }
        write!(self.out.to, "\u{1b}[{lines}A\u{1b}[J")
    }

    /// A table; of an empty one only `empty`, which is not output but a remark.
    pub(super) fn table(&mut self, table: &Table, empty: &str) -> io::Result<()> {
        if table.is_empty() {
            return self.remark(empty);
        }
        let text = table.render(self.width(), self.is_wide());
        self.say(&text)
    }

    /// A document for programs: indented, because people look at it as well.
    pub(super) fn json(&mut self, document: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string_pretty(document).map_err(io::Error::other)?;
        self.say(&text)?;
        self.say("\n")
    }

    /// A document on a line of its own, one of several.
    pub(super) fn json_line(&mut self, document: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(document).map_err(io::Error::other)?;
        self.say(&text)?;
        self.say("\n")?;
        self.flush()
    }

    /// Something worth knowing that is not part of the answer.
    pub(super) fn remark(&mut self, text: &str) -> io::Result<()> {
        if self.format == Format::Json {
            return Ok(());
        }
        self.complain(&format!("{text}\n"))
    }

    /// On the errors' side, after what was output before.
    pub(super) fn complain(&mut self, text: &str) -> io::Result<()> {
        self.flush()?;
        self.err.write(text)?;
        self.err.to.flush()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.to.flush()
    }
}

/// One of the two.
struct Side {
    to: Box<dyn Write>,
    coloured: bool,
}

impl Side {
    fn write(&mut self, text: &str) -> io::Result<()> {
        match self.coloured {
            true => self.to.write_all(text.as_bytes()),
            false => write!(self.to, "{}", strip_str(text)),
        }
    }
}
