//! Where something stands: bytes of a text for people, a path of keys for programs.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

/// Cheap to clone; the path is put into words only when somebody asks.
#[derive(Debug, Clone, Default)]
pub(in crate::config) struct Place {
    /// Empty where there is no text.
    pub span: Range<usize>,
    step: Option<Arc<Step>>,
}

#[derive(Debug)]
struct Step {
    parent: Option<Arc<Step>>,
    name: Name,
}

#[derive(Debug)]
enum Name {
    Key(String),
    Index(usize),
}

impl Place {
    /// In a text whose structure is not known.
    pub fn of_text(span: Range<usize>) -> Self {
        Self { span, step: None }
    }

    /// The value of a key of the table at this place.
    pub fn key(&self, key: &str, span: Range<usize>) -> Self {
        self.step(Name::Key(key.to_owned()), span)
    }

    /// An element of the list at this place.
    pub fn index(&self, index: usize, span: Range<usize>) -> Self {
        self.step(Name::Index(index), span)
    }

    /// What has the same path, elsewhere in the text.
    pub fn spanning(&self, span: Range<usize>) -> Self {
        Self { span, step: self.step.clone() }
    }

    /// Keys from the root, such as `service[0].pool[1].name`.
    pub fn path(&self) -> String {
        let mut out = String::new();
        write(self.step.as_deref(), &mut out);
        out
    }

    fn step(&self, name: Name, span: Range<usize>) -> Self {
        let parent = self.step.clone();
        Self { span, step: Some(Arc::new(Step { parent, name })) }
    }
}

fn write(step: Option<&Step>, out: &mut String) {
    let Some(step) = step else { return };
    write(step.parent.as_deref(), out);
    match &step.name {
        Name::Key(key) => {
            if !out.is_empty() {
                out.push('.');
            }
            out.extend(key.escape_debug());
        }
        Name::Index(index) => {
            let _ = write!(out, "[{index}]");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_keys_and_indices_from_the_root() {
        let pool = Place::default().key("service", 0..0).index(0, 0..0).key("pool", 0..0).index(1, 3..9);
        assert_eq!(pool.path(), "service[0].pool[1]");
        assert_eq!(pool.span, 3..9);
        assert_eq!(Place::default().path(), "");
    }
}
