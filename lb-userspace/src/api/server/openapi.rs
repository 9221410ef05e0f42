//! The table of routes, as a router and as an OpenAPI 3.1 document: neither can have what the other has not.

use axum::Router;
use axum::handler::Handler;
use axum::routing::{self, MethodRouter};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::super::ApiError;

/// One path and method: who answers, and what goes in and out.
pub(super) struct Route<S> {
    path: &'static str,
    method: &'static str,
    summary: &'static str,
    handler: MethodRouter<S>,
    query: Option<MakeSchema>,
    body: Option<MakeSchema>,
    /// What the answer is made of, and its media type.
    answer: (MakeSchema, &'static str),
}

type MakeSchema = fn(&mut SchemaGenerator) -> Schema;

/// One JSON value.
const JSON: &str = "application/json";
/// One JSON value a line.
pub(super) const JSON_LINES: &str = "application/jsonl";

impl<S: Clone + Send + Sync + 'static> Route<S> {
    /// Answers GET with an `A`.
    pub(super) fn get<A: JsonSchema, T: 'static>(
        path: &'static str,
        summary: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        Self::of::<A>("get", path, summary, routing::get(handler))
    }

    /// Answers PUT of a `B` with an `A`.
    pub(super) fn put<B: JsonSchema, A: JsonSchema, T: 'static>(
        path: &'static str,
        summary: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        let route = Self::of::<A>("put", path, summary, routing::put(handler));
        Self { body: Some(SchemaGenerator::subschema_for::<B>), ..route }
    }

    /// Answers POST of a `B` with an `A`.
    pub(super) fn post<B: JsonSchema, A: JsonSchema, T: 'static>(
        path: &'static str,
        summary: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        let route = Self::of::<A>("post", path, summary, routing::post(handler));
        Self { body: Some(SchemaGenerator::subschema_for::<B>), ..route }
    }

    /// Answers POST of nothing with an `A`.
    pub(super) fn trigger<A: JsonSchema, T: 'static>(
        path: &'static str,
        summary: &'static str,
        handler: impl Handler<T, S>,
    ) -> Self {
        Self::of::<A>("post", path, summary, routing::post(handler))
    }

    /// With the parameters of a `Q`.
    pub(super) fn asks<Q: JsonSchema>(self) -> Self {
        Self { query: Some(Q::json_schema), ..self }
    }

    /// With an answer that is a line for each value.
    pub(super) fn lines(self) -> Self {
        Self { answer: (self.answer.0, JSON_LINES), ..self }
    }

    fn of<A: JsonSchema>(
        method: &'static str,
        path: &'static str,
        summary: &'static str,
        handler: MethodRouter<S>,
    ) -> Self {
        let answer: (MakeSchema, _) = (SchemaGenerator::subschema_for::<A>, JSON);
        Self { path, method, summary, handler, query: None, body: None, answer }
    }

    fn operation(&self, generator: &mut SchemaGenerator) -> Value {
        let mut operation = json!({
            "operationId": self.id(),
            "summary": self.summary,
            "responses": {
                "200": { "description": "Done.", "content": { self.answer.1: { "schema": (self.answer.0)(generator) } } },
                "default": {
                    "description": "Refused or failed; the status is that of the error's code.",
                    "content": { JSON: { "schema": generator.subschema_for::<ApiError>() } },
                },
            },
        });
        let parameters: Vec<Value> = parts(self.path).map(in_path).chain(self.in_query(generator)).collect();
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        if let Some(body) = self.body {
            operation["requestBody"] = json!({ "content": { JSON: { "schema": body(generator) } } });
        }
        operation
    }

    fn in_query(&self, generator: &mut SchemaGenerator) -> Vec<Value> {
        let Some(query) = self.query else { return Vec::new() };
        let schema = query(generator).to_value();
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let properties = schema["properties"].as_object().cloned().unwrap_or_default();
        let parameter = |(name, mut schema): (String, Value)| {
            let about = schema.as_object_mut().and_then(|schema| schema.remove("description"));
            json!({
                "name": name,
                "in": "query",
                "required": required.contains(&json!(name)),
                "description": about,
                "schema": schema,
            })
        };
        properties.into_iter().map(parameter).collect()
    }

    /// The method and the words of the path: `put_services_split`.
    fn id(&self) -> String {
        let words = self.path.split('/').skip(2);
        let last = self.path.rsplit('/').next().unwrap_or_default();
        words
            .filter(|word| !word.starts_with('{') || *word == last)
            .fold(self.method.to_owned(), |id, word| {
                id + "_" + word.trim_matches(['{', '}']).trim_end_matches(".json")
            })
    }
}

/// The names in braces.
fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}'))
}

fn in_path(name: &str) -> Value {
    json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
}

/// The document of a table.
pub(super) fn document<S: Clone + Send + Sync + 'static>(routes: &[Route<S>]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    for route in routes {
        let operation = route.operation(&mut generator);
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method] = operation;
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "lbd",
            "version": "v1",
            "description": "The agent's API, on its Unix socket. Members are only ever added to answers; requests with \
                            members that are not known are refused. A body may be left out where none of its members is \
                            required.",
            "license": { "name": "MIT OR Apache-2.0" },
        },
        "servers": [{ "url": "http://lbd", "description": "curl --unix-socket /run/lb/lbd.sock" }],
        "paths": paths,
        "components": { "schemas": generator.take_definitions(true) },
    })
}

/// The router of a table.
pub(super) fn router<S: Clone + Send + Sync + 'static>(routes: Vec<Route<S>>) -> Router<S> {
    routes.into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}
