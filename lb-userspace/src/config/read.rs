//! A reader that finds every mistake, not the first only.
//!
//! A text becomes a tree of [`Node`]s that know their place. Each way to write a value is a [`Kind`], each table a
//! [`Table`]: a list of keys with their kinds, defaults and documentation. Reading, writing, the JSON Schema and the
//! suggestions for mistyped names are all made from that list. What is wrong goes to [`Findings`], and reading goes on.

mod kind;
mod nearest;
mod node;
mod place;
mod table;
mod word;

pub use kind::Invalid;
pub(in crate::config) use kind::{As, Kind, List, Maybe, Scalar, escaped};
pub(in crate::config) use nearest::nearest;
pub(in crate::config) use node::{Node, Shape};
pub(in crate::config) use place::Place;
pub(in crate::config) use table::{
    Entries, Field, Key, Table, Tables, absent, draft, joined, key, shown, table,
};
pub(in crate::config) use word::words;

use super::report::{Code, Diagnostic, Severity};

/// What was found so far.
#[derive(Debug, Default)]
pub(in crate::config) struct Findings {
    pub list: Vec<Diagnostic>,
}

impl Findings {
    /// What stands where the text was not understood is not looked at twice.
    pub fn add(&mut self, found: Diagnostic) {
        let span = |found: &Diagnostic| found.labels.first().map(|label| label.span.clone());
        let place = span(&found).filter(|_| found.code != Code::Syntax);
        let syntax = self.list.iter().take_while(|known| known.code == Code::Syntax).filter_map(span);
        let known =
            place.is_some_and(|at| syntax.into_iter().any(|it| it.start <= at.end && at.start <= it.end));
        if !known {
            self.list.push(found);
        }
    }

    pub fn any_error(&self) -> bool {
        self.list.iter().any(|found| found.severity() == Severity::Error)
    }

    /// Whether parts of the text were not understood, so that what seems to be missing may well be there.
    pub fn is_partial(&self) -> bool {
        self.list.iter().any(|found| found.code == Code::Syntax)
    }
}
