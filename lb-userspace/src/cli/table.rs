//! Tables as kubectl has them: aligned columns, no borders.
//!
//! In less room than all columns need, long text is broken in its column; where that is too narrow, it stands below its row.
//! Then columns that say least are left out. `-o wide` leaves nothing out.

use std::collections::HashMap;

use comfy_table::{Attribute, CellAlignment, Color, ColumnConstraint, ContentArrangement, Width, presets};

/// Between columns.
const GAP: usize = 2;
/// Broken text is not made narrower than this: it goes below its row.
const NARROWEST: usize = 24;
/// How far text below its row is set in.
const INDENT: usize = 4;

/// A table and what stands in it.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    key: String,
    cells: Vec<Cell>,
}

/// A column.
#[derive(Clone, Debug)]
pub(super) struct Column {
    title: &'static str,
    right: bool,
    text: bool,
    shown: Shown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    /// Left out first where the number is highest.
    IfRoom(u8),
    Always,
    /// Only if every column is wanted.
    Wide,
}

/// A column that is always shown.
pub(super) const fn column(title: &'static str) -> Column {
    Column { title, right: false, text: false, shown: Shown::Always }
}

impl Column {
    /// Of numbers.
    pub const fn right(self) -> Self {
        Self { right: true, ..self }
    }

    /// Of sentences, which may be broken. At most one, and the last.
    pub const fn text(self) -> Self {
        Self { text: true, ..self }
    }

    /// Only with `-o wide`.
    pub const fn wide(self) -> Self {
        Self { shown: Shown::Wide, ..self }
    }

    /// Left out where there is no room; those with a higher number first.
    pub const fn if_room(self, rank: u8) -> Self {
        Self { shown: Shown::IfRoom(rank), ..self }
    }
}

/// A value, and what to think of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

/// What to think of a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// Nothing.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// To be looked at.
    Doubtful,
    /// Not as it should be.
    Bad,
    /// Of little interest.
    Faint,
}

impl Tone {
    /// A value with this tone.
    pub fn cell(self, text: impl Into<String>) -> Cell {
        Cell { text: text.into(), tone: self }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Tone::Plain.cell(text.to_string())
    }
}

/// A row of whatever can be a cell.
macro_rules! cells {
    ($($cell:expr),+ $(,)?) => { vec![$($crate::cli::table::Cell::from($cell)),+] };
}
pub(super) use cells;

impl Table {
    /// Without rows.
    pub fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row; the key says which one is meant when it changes.
    pub fn row(&mut self, key: impl Into<String>, cells: Vec<Cell>) {
        debug_assert_eq!(cells.len(), self.columns.len(), "{cells:?}");
        self.rows.push(Row { key: key.into(), cells });
    }

    /// Whether there is nothing to show.
    pub const fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Without the rows of `before` that are the same.
    pub fn without_known(mut self, before: &Self) -> Self {
        let known: HashMap<&str, &[Cell]> =
            before.rows.iter().map(|row| (row.key.as_str(), row.cells.as_slice())).collect();
        self.rows.retain(|row| known.get(row.key.as_str()).is_none_or(|old| **old != row.cells));
        self
    }

    /// As lines, each with its end.
    pub fn render(&self, width: Option<usize>, wide: bool) -> String {
        self.render_with(width, wide, true, &mut Vec::new())
    }

    /// The same, with the header or without it, and with columns at least as wide as those of the tables before.
    pub fn render_with(
        &self,
        width: Option<usize>,
        wide: bool,
        header: bool,
        widths: &mut Vec<usize>,
    ) -> String {
        let natural = self.widths();
        widths.resize(natural.len().max(widths.len()), 0);
        for (width, natural) in widths.iter_mut().zip(natural) {
            *width = natural.max(*width);
        }
        let (chosen, below) = self.chosen(widths, width, wide);
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).enforce_styling().style_text_only();
        if header {
            table.set_header(
                chosen
                    .iter()
                    .map(|&at| comfy_table::Cell::new(self.columns[at].title).add_attribute(Attribute::Bold)),
            );
        }
        for row in &self.rows {
            table.add_row(chosen.iter().map(|&at| styled(&row.cells[at])));
        }
        self.arrange(&mut table, &chosen, widths, width);
        // Colours end before the padding, so that trimming finds it.
        let text = table.trim_fmt();
        let (Some(below), Some(width)) = (below, width) else { return text + "\n" };
        // Nothing is broken in these rows: each is a line.
        let mut lines = text.lines();
        let mut text = String::new();
        let header = lines.by_ref().take(usize::from(header)).map(|line| (line, None)).collect::<Vec<_>>();
        let rows = lines.zip(self.rows.iter().map(|row| Some(&row.cells[below])));
        for (line, under) in header.into_iter().chain(rows) {
            text += line;
            text.push('\n');
            text += &under.map(|cell| indented(&cell.text, width)).unwrap_or_default();
        }
        text
    }

    fn arrange(
        &self,
        table: &mut comfy_table::Table,
        chosen: &[usize],
        widths: &[usize],
        width: Option<usize>,
    ) {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        // Nothing is broken unless a constraint below says so.
        table.set_width(u16::MAX);
        let fixed: usize =
            chosen.iter().filter(|&&at| !self.columns[at].text).map(|&at| widths[at] + GAP).sum();
        for (nth, &at) in chosen.iter().enumerate() {
            let Some(shown) = table.column_mut(nth) else { continue };
            let (column, last) = (&self.columns[at], nth + 1 == chosen.len());
            let gap = if last { 0 } else { GAP };
            shown.set_padding((0, fit(gap)));
            if column.right {
                shown.set_cell_alignment(CellAlignment::Right);
            }
            let room = match width {
                Some(width) if column.text => width.saturating_sub(fixed).max(NARROWEST),
                _ => widths[at],
            };
            let exact = room.min(widths[at]) + gap;
            shown.set_constraint(ColumnConstraint::Absolute(Width::Fixed(fit(exact))));
        }
    }

    /// Which columns are shown, and the one of text if that stands below its row. What is in the text makes no difference to
    /// the other columns.
    fn chosen(&self, widths: &[usize], width: Option<usize>, wide: bool) -> (Vec<usize>, Option<usize>) {
        let shown = |&at: &usize| wide || self.columns[at].shown != Shown::Wide;
        let mut chosen: Vec<usize> = (0..self.columns.len()).filter(shown).collect();
        let Some(width) = width else {
            return (chosen, None);
        };
        let needs = |chosen: &[usize]| -> usize {
            let need = |&at: &usize| match self.columns[at].text {
                true => widths[at].min(NARROWEST) + GAP,
                false => widths[at] + GAP,
            };
            chosen.iter().map(need).sum::<usize>().saturating_sub(GAP)
        };
        let mut below = None;
        if needs(&chosen) > width {
            below = chosen.iter().copied().find(|&at| self.columns[at].text);
            chosen.retain(|&at| Some(at) != below);
        }
        while needs(&chosen) > width {
            let rank = |&at: &usize| match self.columns[at].shown {
                Shown::IfRoom(rank) => Some((rank, at)),
                Shown::Always | Shown::Wide => None,
            };
            let Some((_, least)) = chosen.iter().filter_map(rank).max() else { break };
            chosen.retain(|&at| at != least);
        }
        (chosen, below)
    }

    /// What each column needs.
    fn widths(&self) -> Vec<usize> {
        let mut table = comfy_table::Table::new();
        table.set_header(self.columns.iter().map(|column| column.title));
        for row in &self.rows {
            table.add_row(row.cells.iter().map(|cell| cell.text.as_str()));
        }
        table.column_max_content_widths().into_iter().map(usize::from).collect()
    }
}

/// Text below its row, broken between words.
fn indented(text: &str, width: usize) -> String {
    let room = width.saturating_sub(INDENT);
    let mut lines = Vec::new();
    for part in text.lines() {
        let mut line = String::new();
        for word in part.split(' ') {
            if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        lines.push(line);
    }
    lines.iter().map(|line| format!("{:INDENT$}{line}\n", "")).collect()
}

fn styled(cell: &Cell) -> comfy_table::Cell {
    let shown = comfy_table::Cell::new(&cell.text);
    match cell.tone {
        Tone::Plain => shown,
        Tone::Good => shown.fg(Color::Green),
        Tone::Doubtful => shown.fg(Color::Yellow),
        Tone::Bad => shown.fg(Color::Red),
        Tone::Faint => shown.add_attribute(Attribute::Dim),
    }
}

/// No column is wider than the library can count.
fn fit(width: usize) -> u16 {
    u16::try_from(width).unwrap_or(u16::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new([
            column("NAME"),
            column("SIZE").right().if_room(1),
            column("ID").wide(),
            column("COLOUR").if_room(2),
            column("NOTE").text(),
        ]);
        table.row("a", cells!["apple", 7, 1, Tone::Good.cell("green"), "sour"]);
        table
            .row("b", cells!["banana", 12_345, 2, "yellow", "sweet, and soft once it is ripe enough to eat"]);
        table
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn columns_are_aligned_and_lines_end_where_they_end() {
        let expected = "\
NAME     SIZE  COLOUR  NOTE
apple       7  green   sour
banana  12345  yellow  sweet, and soft once it is ripe enough to eat
";
        assert_eq!(plain(&table().render(None, false)), expected);
        assert_eq!(plain(&table().render(Some(200), false)), expected);
    }

    #[test]
    fn text_is_broken_then_goes_below_and_then_columns_are_left_out_by_rank() {
        let narrow = "\
NAME     SIZE  COLOUR  NOTE
apple       7  green   sour
banana  12345  yellow  sweet, and soft once it is
                       ripe enough to eat
";
        assert_eq!(plain(&table().render(Some(50), false)), narrow);
        let narrower = "\
NAME     SIZE  COLOUR
apple       7  green
    sour
banana  12345  yellow
    sweet, and soft once it is ripe
    enough to eat
";
        assert_eq!(plain(&table().render(Some(35), false)), narrower);
        assert!(
            plain(&table().render(Some(20), false)).starts_with("NAME     SIZE\napple       7\n    sour\n")
        );
        assert!(plain(&table().render(Some(10), false)).starts_with("NAME\napple\n    sour\n"));
    }

    #[test]
    fn what_a_note_says_makes_no_difference_to_the_columns() {
        let mut short = table();
        short.rows[1].cells[4] = "sweet".into();
        let columns = |table: &Table| plain(&table.render(Some(40), false)).lines().next().map(str::to_owned);
        assert_eq!(columns(&short), Some("NAME     SIZE  COLOUR  NOTE".to_owned()));
        assert_eq!(columns(&table()), Some("NAME     SIZE  COLOUR".to_owned()));
        short.rows[1].cells[4] = "".into();
        assert_eq!(columns(&short), Some("NAME     SIZE  COLOUR  NOTE".to_owned()));
    }

    #[test]
    fn wide_shows_every_column() {
        let wide = plain(&table().render(None, true));
        assert!(wide.starts_with("NAME     SIZE  ID  COLOUR  NOTE\n"), "{wide}");
    }

    #[test]
    fn appended_rows_stand_under_those_before() {
        let mut widths = Vec::new();
        let before = table();
        before.render_with(None, false, true, &mut widths);
        let mut after = table();
        after.rows[0].cells[1] = 8.into();
        let changed = after.without_known(&before);
        let line = plain(&changed.render_with(None, false, false, &mut widths));
        assert_eq!(line, "apple       8  green   sour\n");
    }

    #[test]
    fn colours_are_there_for_those_who_do_not_strip_them() {
        assert!(table().render(None, false).contains("\u{1b}[38;5;10mgreen"));
    }
}
