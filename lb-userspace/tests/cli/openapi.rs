//! The OpenAPI document: shipped, current, and true.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use crate::lab::Lab;

/// Status and body.
fn ask(lab: &Lab, method: &str, path: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(lab.socket()).unwrap();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_default())
}

fn document(lab: &Lab) -> Value {
    let (status, document) = ask(lab, "GET", "/v1/openapi.json");
    assert_eq!(status, 200);
    document
}

#[test]
fn the_shipped_document_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/openapi.json");
    let document = document(&Lab::new());
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        fs::write(&path, serde_json::to_string_pretty(&document).unwrap() + "\n").unwrap();
    }
    let shipped: Value =
        serde_json::from_str(&fs::read_to_string(&path).unwrap_or_default()).unwrap_or_default();
    assert!(shipped == document, "{} is not current: UPDATE_EXPECT=1 writes it anew", path.display());
}

#[test]
fn every_route_is_described_and_every_description_is_a_route() {
    let lab = Lab::new();
    let document = document(&lab);
    let mut ids = Vec::new();
    let mut routes = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let concrete = path
            .replace("{service}", "checkout")
            .replace("{pool}", "v41")
            .replace("{backend}", "10.0.1.11:8443")
            .replace("{order}", "pause");
        for (method, operation) in operations.as_object().unwrap() {
            routes += 1;
            let (status, error) = ask(&lab, &method.to_uppercase(), &concrete);
            let code = error["code"].as_str().unwrap_or_default();
            assert!(code != "LB0502" && code != "LB0506", "{method} {path}: {status} {error}");
            let id = operation["operationId"].as_str().unwrap().to_owned();
            assert!(!ids.contains(&id), "{id} twice");
            ids.push(id);
            let named: Vec<&str> =
                path.split('/').filter_map(|word| word.strip_prefix('{')?.strip_suffix('}')).collect();
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let in_path: Vec<&str> = parameters
                .iter()
                .filter(|it| it["in"] == "path")
                .map(|it| it["name"].as_str().unwrap())
                .collect();
            assert_eq!(named, in_path, "{method} {path}");
        }
        let other = if operations.get("delete").is_none() { "DELETE" } else { "PATCH" };
        assert_eq!(ask(&lab, other, &concrete).0, 405, "{path} does not take {other}");
    }
    assert_eq!(routes, 25, "a route was added or taken away: say so in the changelog, and here");
}

#[test]
fn every_reference_leads_somewhere_and_requests_refuse_what_they_do_not_know() {
    let document = document(&Lab::new());
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 50, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    for name in ["SetSplit", "SetWeight", "Apply", "Rollback", "StartRollout"] {
        assert_eq!(document["components"]["schemas"][name]["additionalProperties"], false, "{name}");
    }
    let events = &document["paths"]["/v1/events"]["get"];
    assert!(events["responses"]["200"]["content"].get("application/jsonl").is_some(), "{events:#}");
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            references.extend(members.get("$ref").and_then(Value::as_str).map(str::to_owned));
            members.values().for_each(|value| collect(value, references));
        }
        Value::Array(elements) => elements.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}

/// What the agent answers is what the document says it answers.
#[test]
fn answers_are_as_their_schemas_say() {
    let lab = Lab::new();
    let document = document(&lab);
    for path in ["/v1/status", "/v1/services", "/v1/backends", "/v1/flows", "/v1/services/checkout/history"] {
        let (status, answer) = ask(&lab, "GET", path);
        assert_eq!(status, 200, "{path}: {answer}");
        let template = path.replace("checkout", "{service}");
        let at = format!(
            "/paths/{}/get/responses/200/content/application~1json/schema",
            template.replace('/', "~1")
        );
        let reference = document.pointer(&at).unwrap()["$ref"].as_str().unwrap().to_owned();
        let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
        compiler.add_resource("http://lbd/openapi.json", document.clone()).unwrap();
        let schema = compiler.compile(&format!("http://lbd/openapi.json{reference}"), &mut schemas).unwrap();
        schemas.validate(&answer, schema).unwrap_or_else(|error| panic!("{path}: {error:#}"));
    }
}
