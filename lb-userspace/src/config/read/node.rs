//! A document as a tree whose every value knows its place.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Findings, Place};
use crate::config::report::{Code, Diagnostic};

/// A value as it was written.
#[derive(Debug)]
pub(in crate::config) struct Node<'a> {
    pub at: Place,
    pub shape: Shape<'a>,
}

#[derive(Debug)]
pub(in crate::config) enum Shape<'a> {
    Text(Cow<'a, str>),
    /// Saturated: no key takes a number anywhere near the limits.
    Whole(i128),
    Fraction(f64),
    Truth(bool),
    Time,
    Null,
    List(Vec<Node<'a>>),
    /// In the order of the text.
    Table(Vec<Entry<'a>>),
}

/// A key and its value.
#[derive(Debug)]
pub(in crate::config) struct Entry<'a> {
    pub key: Cow<'a, str>,
    /// Where the key itself stands.
    pub key_at: Place,
    pub node: Node<'a>,
}

impl<'a> Node<'a> {
    /// Reads TOML 1.1. What is not TOML is noted, and what could be understood is still given.
    pub fn of_toml(text: &'a str, findings: &mut Findings) -> Self {
        let (root, errors) = DeTable::parse_recoverable(text);
        let root = Self::table(root.into_inner(), Place::default());
        for error in errors {
            findings.add(syntax(&error, text, &root));
        }
        root
    }

    /// From JSON, which has no places but paths.
    pub fn of_json(value: serde_json::Value, at: Place) -> Self {
        use serde_json::Value;
        let shape = match value {
            Value::Null => Shape::Null,
            Value::Bool(truth) => Shape::Truth(truth),
            Value::String(text) => Shape::Text(text.into()),
            Value::Number(number) => match number.as_i128() {
                Some(whole) => Shape::Whole(whole),
                None => Shape::Fraction(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::Array(list) => {
                let nodes = list.into_iter().enumerate();
                Shape::List(nodes.map(|(index, value)| Self::of_json(value, at.index(index, 0..0))).collect())
            }
            Value::Object(map) => {
                let entry = |(key, value): (String, Value)| {
                    let key_at = at.key(&key, 0..0);
                    Entry { node: Self::of_json(value, key_at.clone()), key: key.into(), key_at }
                };
                Shape::Table(map.into_iter().map(entry).collect())
            }
        };
        Self { at, shape }
    }

    /// What it is, in words.
    pub fn what(&self) -> &'static str {
        match self.shape {
            Shape::Text(_) => "text",
            Shape::Whole(_) => "a whole number",
            Shape::Fraction(_) => "a fraction",
            Shape::Truth(_) => "true or false",
            Shape::Time => "a date or time",
            Shape::Null => "null",
            Shape::List(_) => "a list",
            Shape::Table(_) => "a table",
        }
    }

    /// (By value: what is read goes, and a large file is not there twice.)
    fn value(value: DeValue<'a>, at: Place) -> Self {
        let shape = match value {
            DeValue::String(text) => Shape::Text(text),
            DeValue::Integer(digits) => {
                let whole = i128::from_str_radix(digits.as_str(), digits.radix());
                let limit = if digits.as_str().starts_with('-') { i128::MIN } else { i128::MAX };
                Shape::Whole(whole.unwrap_or(limit))
            }
            DeValue::Float(number) => Shape::Fraction(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(truth) => Shape::Truth(truth),
            DeValue::Datetime(_) => Shape::Time,
            DeValue::Array(list) => {
                let node = |(index, node): (usize, Spanned<DeValue<'a>>)| {
                    let at = at.index(index, node.span());
                    Self::value(node.into_inner(), at)
                };
                Shape::List(list.into_iter().enumerate().map(node).collect())
            }
            DeValue::Table(table) => return Self::table(table, at),
        };
        Self { at, shape }
    }

    fn table(table: DeTable<'a>, at: Place) -> Self {
        let mut entries: Vec<Entry<'a>> = table
            .into_iter()
            .map(|(key, value)| {
                let key_span = key.span();
                let key = key.into_inner();
                let at = at.key(&key, value.span());
                Entry { key_at: at.spanning(key_span), key, node: Self::value(value.into_inner(), at) }
            })
            .collect();
        entries.sort_by_key(|entry| entry.key_at.span.start);
        Self { at, shape: Shape::Table(entries) }
    }

    /// The last place before `offset` where a key of this name stands.
    fn key_before(&self, name: &str, offset: usize) -> Option<&Place> {
        match &self.shape {
            Shape::List(nodes) => {
                nodes.iter().filter_map(|node| node.key_before(name, offset)).max_by_key(|at| at.span.start)
            }
            Shape::Table(entries) => entries
                .iter()
                .flat_map(|entry| {
                    let here =
                        (entry.key == name && entry.key_at.span.end <= offset).then_some(&entry.key_at);
                    here.into_iter().chain(entry.node.key_before(name, offset))
                })
                .max_by_key(|at| at.span.start),
            _ => None,
        }
    }
}

fn syntax(error: &toml::de::Error, text: &str, root: &Node<'_>) -> Diagnostic {
    let span = error.span().unwrap_or(text.len()..text.len());
    let at = Place::of_text(span.clone());
    if error.message() == "duplicate key" {
        let name = text.get(span.clone()).unwrap_or_default().trim_matches(['"', '\'']);
        let found =
            Diagnostic::new(Code::Syntax, format!("the key `{}` is there twice", name.escape_debug()))
                .at(&at, "again here");
        return match root.key_before(name, span.start) {
            Some(first) => found.at(first, "first here"),
            None => found,
        };
    }
    // The parser takes whatever it cannot understand for text without quotes.
    let (message, label) = match error.message().split_once(", expected ") {
        Some(("string values must be quoted", _)) if span.is_empty() => {
            ("there is no value", "expected a value".to_owned())
        }
        Some(("string values must be quoted", _)) => ("this is no value", "text stands in quotes".to_owned()),
        Some((message, expected)) => (message, format!("expected {expected}")),
        None => (error.message(), "here".to_owned()),
    };
    Diagnostic::new(Code::Syntax, message).at(&at, label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries<'a>(node: &'a Node<'a>) -> &'a [Entry<'a>] {
        let Shape::Table(entries) = &node.shape else { panic!("{node:?}") };
        entries
    }

    #[test]
    fn values_stand_where_they_were_written() {
        let text = "b = 1\n[[a]]\nc = [\"x\"]\n";
        let mut findings = Findings::default();
        let root = Node::of_toml(text, &mut findings);
        assert!(findings.list.is_empty());
        let [b, a] = entries(&root) else { panic!("{root:?}") };
        assert_eq!((&text[b.key_at.span.clone()], &text[b.node.at.span.clone()]), ("b", "1"));
        let Shape::List(tables) = &a.node.shape else { panic!("{a:?}") };
        assert_eq!(&text[tables[0].at.span.clone()], "[[a]]");
        let Shape::List(list) = &entries(&tables[0])[0].node.shape else { panic!("{tables:?}") };
        assert_eq!((list[0].at.path(), &text[list[0].at.span.clone()]), ("a[0].c[0]".to_owned(), "\"x\""));
    }

    #[test]
    fn numbers_too_large_for_anything_stay_too_large() {
        let text = format!("a = {0}\nb = -{0}\nc = 0xff", "9".repeat(50));
        let root = Node::of_toml(&text, &mut Findings::default());
        let shapes = entries(&root).iter().map(|entry| &entry.node.shape);
        let wholes: Vec<i128> =
            shapes.map(|shape| if let Shape::Whole(n) = shape { *n } else { 0 }).collect();
        assert_eq!(wholes, [i128::MAX, i128::MIN, 255]);
    }

    #[test]
    fn a_key_written_twice_points_at_both() {
        let mut findings = Findings::default();
        Node::of_toml("[a]\nx = 1\n[b]\nx = 2\ny = 3\nx = 4\n", &mut findings);
        let spans: Vec<_> = findings.list[0].labels.iter().map(|label| label.span.start).collect();
        assert_eq!(spans, [26, 14]);
    }
}
