//! The ways in which values are written.

use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::{Findings, Node, Shape, nearest};
use crate::config::report::{Code, Diagnostic};

/// A way to write a value, and what it becomes.
pub(in crate::config) trait Kind {
    /// What reading gives: complete but for what other keys decide.
    type Draft;
    /// What it becomes.
    type Value;

    /// Notes what is wrong, and gives `None` if nothing can be made of it.
    fn read(node: &Node, findings: &mut Findings) -> Option<Self::Draft>;

    /// `None` if a part of it was lost to a mistake.
    fn finish(draft: Self::Draft) -> Option<Self::Value>;

    /// In the one canonical way.
    fn write<S: Serializer>(value: &Self::Value, to: S) -> Result<S::Ok, S::Error>;

    /// Whether there is anything to write.
    fn is_written(_value: &Self::Value) -> bool {
        true
    }

    /// What may be written, as JSON Schema.
    fn schema() -> Json;
}

/// A [`Kind`] without parts: read at once or not at all.
pub(in crate::config) trait Scalar {
    type Value;

    fn parse(node: &Node) -> Result<Self::Value, Invalid>;
    fn write<S: Serializer>(value: &Self::Value, to: S) -> Result<S::Ok, S::Error>;
    fn schema() -> Json;
}

impl<T: Scalar> Kind for T {
    type Draft = T::Value;
    type Value = T::Value;

    fn read(node: &Node, findings: &mut Findings) -> Option<T::Value> {
        node.noted(T::parse(node), findings)
    }

    fn finish(draft: T::Value) -> Option<T::Value> {
        Some(draft)
    }

    fn write<S: Serializer>(value: &T::Value, to: S) -> Result<S::Ok, S::Error> {
        T::write(value, to)
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// Why a single value cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}: {label}{}", help.as_ref().map(|help| format!(" ({help})")).unwrap_or_default())]
pub struct Invalid {
    /// What kind of mistake it is.
    pub code: Code,
    /// What is wrong.
    pub message: String,
    /// What was expected.
    pub label: String,
    /// What to do about it.
    pub help: Option<String>,
}

impl Invalid {
    pub(in crate::config) fn new(code: Code, message: impl Into<String>, label: impl Into<String>) -> Self {
        Self { code, message: message.into(), label: label.into(), help: None }
    }

    pub(in crate::config) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// One of a fixed set of words was expected.
    pub(in crate::config) fn word(what: &str, text: &str, words: &'static [&'static str]) -> Self {
        let invalid = Self::new(Code::UnknownWord, format!("{} is not {what}", escaped(text)), one_of(words));
        match nearest(text, words.iter().copied()) {
            Some(meant) => invalid.help(format!("did you mean `{meant}`?")),
            None => invalid,
        }
    }

    fn at(self, node: &Node) -> Diagnostic {
        let found = Diagnostic::new(self.code, self.message).at(&node.at, self.label);
        match self.help {
            Some(help) => found.help(help),
            None => found,
        }
    }
}

impl Node<'_> {
    /// The text that it is, where text like `expected` belongs.
    pub fn text(&self, expected: &str) -> Result<&str, Invalid> {
        match &self.shape {
            Shape::Text(text) => Ok(text),
            Shape::Whole(n) => Err(self.wrong(expected).help(format!("text stands in quotes: \"{n}\""))),
            _ => Err(self.wrong(expected)),
        }
    }

    /// The number that it is, where a whole number from `least` to `most` belongs.
    pub fn whole(&self, least: u64, most: u64) -> Result<u64, Invalid> {
        let expected = format!("a whole number from {least} to {most}");
        let n = match &self.shape {
            Shape::Whole(n) => *n,
            Shape::Text(text) if text.parse::<u64>().is_ok() => {
                return Err(self.wrong(&expected).help(format!("numbers stand without quotes: {text}")));
            }
            _ => return Err(self.wrong(&expected)),
        };
        match u64::try_from(n) {
            Ok(n) if (least..=most).contains(&n) => Ok(n),
            _ => {
                let size = if n < i128::from(least) { "small" } else { "large" };
                Err(Invalid::new(
                    Code::OutOfRange,
                    format!("the number is too {size}"),
                    format!("expected {expected}"),
                ))
            }
        }
    }

    /// What was read here, or `None` after noting why it cannot be used.
    pub fn noted<T>(&self, read: Result<T, Invalid>, findings: &mut Findings) -> Option<T> {
        read.map_err(|invalid| findings.add(invalid.at(self))).ok()
    }

    /// Something of another type belongs here.
    pub fn wrong(&self, expected: &str) -> Invalid {
        Invalid::new(
            Code::WrongType,
            format!("{} where {expected} belongs", self.what()),
            format!("expected {expected}"),
        )
    }

    /// Notes that something of another type belongs here.
    pub fn mistyped(&self, expected: &str, help: Option<String>, findings: &mut Findings) {
        let mut invalid = self.wrong(expected);
        invalid.help = help;
        findings.add(invalid.at(self));
    }
}

fn one_of(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.as_slice() {
        [init @ .., last] if !init.is_empty() => format!("expected {} or {last}", init.join(", ")),
        _ => format!("expected {}", quoted.concat()),
    }
}

/// A quotation from the file: escaped, and not longer than a line can bear.
pub(in crate::config) fn escaped(text: &str) -> String {
    const LONGEST: usize = 64;
    if text.is_empty() {
        return "an empty text".to_owned();
    }
    let mut chars = text.chars();
    let head: String = chars.by_ref().take(LONGEST).flat_map(char::escape_debug).collect();
    let more = if chars.next().is_some() { "…" } else { "" };
    format!("`{head}{more}`")
}

/// A list of values.
pub(in crate::config) struct List<K>(std::marker::PhantomData<K>);

impl<K: Kind> Kind for List<K> {
    type Draft = Vec<(super::Place, K::Draft)>;
    type Value = Vec<K::Value>;

    fn read(node: &Node, findings: &mut Findings) -> Option<Self::Draft> {
        let Shape::List(nodes) = &node.shape else {
            let help = matches!(node.shape, Shape::Text(_))
                .then(|| "a list stands in brackets, even if it has one element".to_owned());
            node.mistyped("a list", help, findings);
            return None;
        };
        // One element lost is not the list lost: the others are still looked at.
        let read: Vec<_> =
            nodes.iter().map(|node| Some((node.at.clone(), K::read(node, findings)?))).collect();
        read.into_iter().collect()
    }

    fn finish(draft: Self::Draft) -> Option<Self::Value> {
        draft.into_iter().map(|(_, draft)| K::finish(draft)).collect()
    }

    fn write<S: Serializer>(value: &Self::Value, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(value.iter().map(As::<K>))
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": K::schema() })
    }
}

/// A value that need not be there.
pub(in crate::config) struct Maybe<K>(std::marker::PhantomData<K>);

impl<K: Kind> Kind for Maybe<K> {
    type Draft = Option<K::Draft>;
    type Value = Option<K::Value>;

    fn read(node: &Node, findings: &mut Findings) -> Option<Self::Draft> {
        K::read(node, findings).map(Some)
    }

    fn finish(draft: Self::Draft) -> Option<Self::Value> {
        match draft {
            Some(draft) => K::finish(draft).map(Some),
            None => Some(None),
        }
    }

    fn write<S: Serializer>(value: &Self::Value, to: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => K::write(value, to),
            None => to.serialize_none(),
        }
    }

    fn is_written(value: &Self::Value) -> bool {
        value.is_some()
    }

    fn schema() -> Json {
        K::schema()
    }
}

/// A value that is serialised as its kind writes it.
pub(in crate::config) struct As<'a, K: Kind>(pub &'a K::Value);

impl<K: Kind> Serialize for As<'_, K> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        K::write(self.0, to)
    }
}
