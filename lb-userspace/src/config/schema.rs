//! The configuration's JSON Schema, for editors and other programs.

use serde_json::{Value as Json, json};

use super::keys::ConfigDraft;
use super::read::Table;

/// The JSON Schema (draft 2020-12) of the file, and of the JSON form of a [`Config`](super::Config).
///
/// It knows names, types, ranges and defaults; what must hold between values is checked by [`parse`](super::parse).
pub fn json_schema() -> Json {
    let mut schema = ConfigDraft::schema();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("lb.toml");
    schema
}
