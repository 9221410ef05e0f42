//! Findings as a compiler shows them.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet, normalize_untrusted_str};

use super::{Diagnostic, Diagnostics, Label, Lines, Severity, Style};

pub(super) fn all(name: &str, text: &str, found: &Diagnostics, style: Style) -> String {
    let renderer = match style {
        Style::Plain => Renderer::plain(),
        Style::Coloured => Renderer::styled(),
    };
    let lines = Lines::of(text);
    let mut out = String::new();
    for one in found.iter() {
        out.push_str(&renderer.render(&[group(name, text, &lines, one)]));
        out.push_str("\n\n");
    }
    if !found.is_empty() {
        out.push_str(&renderer.render(&[summary(name, found)]));
        out.push('\n');
    }
    out
}

fn group<'a>(name: &'a str, text: &'a str, lines: &Lines<'_>, found: &'a Diagnostic) -> Group<'a> {
    let title = level(found.severity()).primary_title(found.message.as_str()).id(found.code.as_str());
    let mut group = Group::with_title(title);
    if !text.is_empty() && !found.labels.is_empty() {
        group = group.element(snippet(name, text, lines, &found.labels));
    }
    // The renderer takes messages for trusted text; ours quote what stands in the file.
    group.elements(found.help.iter().map(|help| Level::HELP.message(normalize_untrusted_str(help))))
}

/// Only the lines from the first label to the last one are handed over: the renderer's time grows with the text it is given.
fn snippet<'a>(
    name: &'a str,
    text: &'a str,
    lines: &Lines<'_>,
    labels: &'a [Label],
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let spans: Vec<Range<usize>> = labels.iter().map(|label| within(text, &label.span)).collect();
    let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let last = spans.iter().map(|span| span.end).max().unwrap_or(0);
    let (line, from) = lines.line(first);
    let to = text[last..].find('\n').map_or(text.len(), |newline| last + newline);

    let annotations = labels.iter().zip(spans).enumerate().map(|(at, (label, span))| {
        let kind = if at == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
        kind.span(span.start - from..span.end - from).label(normalize_untrusted_str(&label.text))
    });
    Snippet::source(&text[from..to]).line_start(line).path(name).annotations(annotations)
}

/// The span as the renderer can show it: inside the text, on the bounds of characters, and without the line's end.
fn within(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = text.floor_char_boundary(span.start);
    let end = text.ceil_char_boundary(span.end.max(start));
    let shown = text[start..end].trim_end_matches(['\r', '\n']);
    start..start + shown.len()
}

fn summary<'a>(name: &str, found: &Diagnostics) -> Group<'a> {
    let count = |n: usize, what: &str| match n {
        0 => None,
        1 => Some(format!("1 {what}")),
        n => Some(format!("{n} {what}s")),
    };
    let counts: Vec<String> =
        count(found.errors(), "mistake").into_iter().chain(count(found.warnings(), "warning")).collect();
    let counts = counts.join(" and ");
    let title = match found.errors() {
        0 => Level::WARNING.primary_title(format!("{name}: {counts}")),
        _ => Level::ERROR.primary_title(format!("{name} cannot be used: {counts}")),
    };
    Group::with_title(title)
}

fn level(severity: Severity) -> Level<'static> {
    match severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Code;
    use super::*;
    use crate::config::read::Place;

    fn shown(text: &str, span: Range<usize>) -> String {
        let found = Diagnostic::new(Code::Syntax, "wrong").at(&Place::of_text(span), "here");
        Diagnostics::new("lb.toml", text, vec![found]).render(Style::Plain)
    }

    #[test]
    fn spans_past_the_end_or_inside_a_character_are_shown_nearby() {
        assert!(shown("añb", 2..2).contains("lb.toml:1:2"));
        assert!(shown("a\n", 2..9).contains("lb.toml:2:1"));
        assert!(shown("a = 1\r\nb", 4..7).contains("lb.toml:1:5"));
    }

    #[test]
    fn lines_are_numbered_from_the_start_of_the_file() {
        assert!(shown("a\nb\nc\nd\n", 4..5).contains("3 | c"));
    }

    #[test]
    fn escapes_in_the_file_do_not_reach_the_terminal() {
        let found = Diagnostic::new(Code::Syntax, "wrong \u{1b}[2J")
            .at(&Place::of_text(0..1), "\u{1b}[2J")
            .help("\u{1b}[2J");
        let all = Diagnostics::new("lb.toml", "\u{1b}[2J", vec![found]);
        assert!(!all.render(Style::Plain).contains('\u{1b}'));
    }

    #[test]
    fn colour_changes_no_letter() {
        let found = Diagnostic::new(Code::Syntax, "wrong").at(&Place::of_text(0..1), "here").help("mend it");
        let all = Diagnostics::new("lb.toml", "a", vec![found]);
        let coloured = all.render(Style::Coloured);
        assert!(coloured.contains("\u{1b}["));
        let mut letters = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, escape)) = rest.split_once('\u{1b}') {
            letters.push_str(before);
            rest = escape.split_once('m').unwrap().1;
        }
        letters.push_str(rest);
        assert_eq!(letters, all.render(Style::Plain));
    }
}
