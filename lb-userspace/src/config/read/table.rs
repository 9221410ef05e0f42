//! Tables: a list of keys, from which everything else is made.

use serde::Serializer;
use serde_json::{Value as Json, json};

use super::node::Entry;
use super::{Findings, Kind, Node, Place, Shape, escaped, nearest};
use crate::config::report::{Code, Diagnostic};

/// A table as it was written: some of its values may be lost to mistakes.
pub(in crate::config) trait Table: Sized {
    /// Its header, such as `[[service]]`; empty for the file itself.
    const NAME: &'static str;
    /// What it is for.
    const DOC: &'static str;
    /// Its keys, in the order in which they are written.
    const KEYS: &'static [Key];

    fn read(node: &Node, findings: &mut Findings) -> Option<Self>;

    /// For messages.
    fn title() -> String {
        if Self::NAME.is_empty() { "the file".to_owned() } else { format!("`{}`", Self::NAME) }
    }

    /// Its header's place, or its own if it has none.
    fn at(&self) -> &Place;

    /// As JSON Schema.
    fn schema() -> Json {
        let properties: serde_json::Map<String, Json> =
            Self::KEYS.iter().map(|key| (key.name.to_owned(), key.schema())).collect();
        let required: Vec<&str> =
            Self::KEYS.iter().filter(|key| key.is_required()).map(|key| key.name).collect();
        json!({
            "type": "object",
            "description": joined(Self::DOC),
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        })
    }
}

/// A key of a table.
pub(in crate::config) struct Key {
    pub name: &'static str,
    pub doc: &'static str,
    pub kind: fn() -> Json,
    /// What is taken where it is not written, if that can be written; `None` if the key is required.
    pub default: Option<fn() -> Option<Json>>,
}

impl Key {
    pub fn is_required(&self) -> bool {
        self.default.is_none()
    }

    fn schema(&self) -> Json {
        let mut schema = (self.kind)();
        // A table that is one value of a key has a text of its own; the key's is nearer to the point.
        schema["description"] = joined(self.doc).into();
        if let Some(default) = self.default.and_then(|default| default()) {
            schema["default"] = default;
        }
        schema
    }
}

/// A comment of several lines as one.
pub(in crate::config) fn joined(doc: &str) -> String {
    doc.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The value of a key.
#[derive(Debug)]
pub(in crate::config) struct Field<T> {
    /// `None` if it was lost to a mistake, which is noted already.
    pub value: Option<T>,
    /// Where it was written; the table's place if it was not.
    pub at: Place,
    /// Whether it was written, or is the default.
    pub written: bool,
}

/// A table under the reader's eyes.
pub(in crate::config) struct Entries<'a> {
    at: &'a Place,
    entries: &'a [Entry<'a>],
}

impl<'a> Entries<'a> {
    /// Notes keys that are unknown, and those that are missing.
    pub fn open<T: Table>(node: &'a Node<'a>, findings: &mut Findings) -> Option<Self> {
        let Shape::Table(entries) = &node.shape else {
            node.mistyped(&format!("the table {}", T::title()), None, findings);
            return None;
        };
        for entry in entries {
            if !T::KEYS.iter().any(|key| key.name == entry.key) {
                findings.add(unknown::<T>(entry));
            }
        }
        let written = |key: &Key| entries.iter().any(|entry| entry.key == key.name);
        let missing: Vec<String> = T::KEYS
            .iter()
            .filter(|key| key.is_required() && !written(key))
            .map(|key| format!("`{}`", key.name))
            .collect();
        if !missing.is_empty() && !findings.is_partial() {
            findings.add(lacking::<T>(&missing, &node.at));
        }
        Some(Self { at: &node.at, entries })
    }

    pub fn field<K: Kind>(
        &self,
        key: &str,
        absent: Option<fn() -> K::Draft>,
        findings: &mut Findings,
    ) -> Field<K::Draft> {
        match self.entries.iter().find(|entry| entry.key == key) {
            Some(Entry { node, .. }) => {
                Field { value: K::read(node, findings), at: node.at.clone(), written: true }
            }
            None => Field { value: absent.map(|absent| absent()), at: self.at.clone(), written: false },
        }
    }
}

fn unknown<T: Table>(entry: &Entry) -> Diagnostic {
    let key = escaped(&entry.key);
    let found = Diagnostic::new(Code::UnknownKey, format!("there is no key {key}"))
        .at(&entry.key_at, format!("not a key of {}", T::title()));
    let names = || T::KEYS.iter().map(|key| key.name);
    if let Some(meant) = nearest(&entry.key, names()) {
        return found.help(format!("did you mean `{meant}`?"));
    }
    if let Some(table) = crate::config::keys::table_with(&entry.key) {
        return found.help(format!("{key} belongs into `{table}`"));
    }
    found.help(format!("its keys are {}", names().collect::<Vec<_>>().join(", ")))
}

fn lacking<T: Table>(missing: &[String], at: &Place) -> Diagnostic {
    let (keys, are) = match missing {
        [one] => (one.clone(), "key is"),
        [init @ .., last] => (format!("{} and {last}", init.join(", ")), "keys are"),
        [] => (String::new(), "keys are"),
    };
    Diagnostic::new(Code::MissingKey, format!("{} lacks {keys}", T::title()))
        .at(at, format!("required {are} missing"))
}

/// A list of tables, each under a header of its own.
pub(in crate::config) struct Tables<K>(std::marker::PhantomData<K>);

impl<K: Kind<Draft: Table>> Kind for Tables<K> {
    type Draft = Vec<K::Draft>;
    type Value = Vec<K::Value>;

    fn read(node: &Node, findings: &mut Findings) -> Option<Self::Draft> {
        let Shape::List(nodes) = &node.shape else {
            let name = K::Draft::NAME;
            let help = format!("each one begins with a header in double brackets: {name}");
            node.mistyped(&format!("a list of tables `{name}`"), Some(help), findings);
            return None;
        };
        // What is left of the list is still checked; the mistake that is noted keeps it from being used. (Drafts are large: a list
        // that grew would be copied.)
        let mut drafts = Vec::with_capacity(nodes.len());
        drafts.extend(nodes.iter().filter_map(|node| K::read(node, findings)));
        Some(drafts)
    }

    fn finish(draft: Self::Draft) -> Option<Self::Value> {
        draft.into_iter().map(K::finish).collect()
    }

    fn write<S: Serializer>(value: &Self::Value, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(value.iter().map(super::As::<K>))
    }

    fn schema() -> Json {
        json!({ "type": "array", "items": K::schema() })
    }
}

/// A default as it would be written.
pub(in crate::config) fn shown<K: Kind>(draft: K::Draft) -> Option<Json> {
    let value = K::finish(draft)?;
    if !K::is_written(&value) {
        return None;
    }
    serde_json::to_value(super::As::<K>(&value)).ok()
}

/// Makes the draft of a table from the list of its keys: `name @ "key": Kind = default`.
macro_rules! draft {
    (
        $(#[doc = $about:literal])+
        $draft:ident $header:literal {
            $( $(#[doc = $doc:literal])+ $field:ident $(@ $key:literal)? : $kind:ty $(= $default:expr)? ),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug)]
        pub(in crate::config) struct $draft {
            at: $crate::config::read::Place,
            $( pub $field: $crate::config::read::Field<<$kind as $crate::config::read::Kind>::Draft>, )+
        }

        impl $crate::config::read::Table for $draft {
            const NAME: &'static str = $header;
            const DOC: &'static str = concat!($($about, "\n"),+);
            const KEYS: &'static [$crate::config::read::Key] = &[$(
                $crate::config::read::Key {
                    name: $crate::config::read::key!($field $($key)?),
                    doc: concat!($($doc, "\n"),+),
                    kind: <$kind as $crate::config::read::Kind>::schema,
                    default: $crate::config::read::absent!($($crate::config::read::shown::<$kind>($default))?),
                }
            ),+];

            fn at(&self) -> &$crate::config::read::Place {
                &self.at
            }

            fn read(
                node: &$crate::config::read::Node,
                findings: &mut $crate::config::read::Findings,
            ) -> Option<Self> {
                let table = $crate::config::read::Entries::open::<Self>(node, findings)?;
                Some(Self {
                    at: node.at.clone(),
                    $( $field: table.field::<$kind>(
                        $crate::config::read::key!($field $($key)?),
                        $crate::config::read::absent!($($default)?),
                        findings,
                    ), )+
                })
            }
        }
    };
}

/// Makes a table from the list of its keys, `name @ "key": Type as Kind = default`: the type that it becomes, the draft,
/// the reader, the writer and the schema. The function after `then` completes the draft once it is read.
macro_rules! table {
    (
        $(#[doc = $about:literal])+
        $model:ident from $draft:ident $header:literal $(then $hook:path)? {
            $( $(#[doc = $doc:literal])+ $field:ident $(@ $key:literal)? : $value:ty as $kind:ty $(= $default:expr)? ),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $model {
            $( $(#[doc = $doc])+ pub $field: $value, )+
        }

        $crate::config::read::draft! {
            $(#[doc = $about])+
            $draft $header { $( $(#[doc = $doc])+ $field $(@ $key)? : $kind $(= $default)? ),+ }
        }

        impl $crate::config::read::Kind for $model {
            type Draft = $draft;
            type Value = Self;

            fn read(
                node: &$crate::config::read::Node,
                findings: &mut $crate::config::read::Findings,
            ) -> Option<$draft> {
                let draft = <$draft as $crate::config::read::Table>::read(node, findings);
                $( let draft = draft.map($hook); )?
                draft
            }

            fn finish(draft: $draft) -> Option<Self> {
                Some(Self { $( $field: <$kind as $crate::config::read::Kind>::finish(draft.$field.value?)?, )+ })
            }

            fn write<S: serde::Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
                serde::Serialize::serialize(value, to)
            }

            fn schema() -> serde_json::Value {
                <$draft as $crate::config::read::Table>::schema()
            }
        }

        impl serde::Serialize for $model {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                use $crate::config::read::{As, Kind, key};

                let written = 0 $( + usize::from(<$kind as Kind>::is_written(&self.$field)) )+;
                let mut out = to.serialize_struct(stringify!($model), written)?;
                $( if <$kind as Kind>::is_written(&self.$field) {
                    out.serialize_field(key!($field $($key)?), &As::<$kind>(&self.$field))?;
                } )+
                out.end()
            }
        }
    };
}

/// The key of a field: its own name unless another one is given.
macro_rules! key {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident $key:literal) => {
        $key
    };
}

/// What stands for a key that is not written: `None` where it must be.
macro_rules! absent {
    () => {
        None
    };
    ($default:expr) => {
        Some(|| $default)
    };
}

pub(in crate::config) use {absent, draft, key, table};
