//! Values that are one of a fixed set of words.

/// Makes an enum from its words.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident, $what:literal {
            $( $(#[doc = $doc:literal])+ $variant:ident = $word:literal ),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name {
            $( $(#[doc = $doc])+ $variant, )+
        }

        impl $name {
            /// Every one there is.
            pub const ALL: &'static [Self] = &[$( Self::$variant ),+];
            const WORDS: &'static [&'static str] = &[$( $word ),+];

            /// The word for it.
            pub const fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $word ),+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.pad(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::config::Invalid;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                use $crate::config::Invalid;
                match text {
                    $( $word => Ok(Self::$variant), )+
                    _ => Err(Invalid::word($what, text, Self::WORDS)),
                }
            }
        }

        impl $crate::config::read::Scalar for $name {
            type Value = Self;

            fn parse(node: &$crate::config::read::Node) -> Result<Self, $crate::config::Invalid> {
                node.text($what)?.parse()
            }

            fn write<S: serde::Serializer>(value: &Self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(value.as_str())
            }

            fn schema() -> serde_json::Value {
                let docs = [$( concat!($($doc, "\n"),+) ),+];
                let word = |(word, doc): (&&str, &str)| serde_json::json!({ "const": word, "description": $crate::config::read::joined(doc) });
                let words: Vec<serde_json::Value> = Self::WORDS.iter().zip(docs).map(word).collect();
                serde_json::json!({ "oneOf": words })
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                let schema = <Self as $crate::config::read::Scalar>::schema();
                schemars::Schema::try_from(schema).unwrap_or_default()
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(in crate::config) use words;
