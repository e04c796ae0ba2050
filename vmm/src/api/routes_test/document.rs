//! The OpenAPI document, the routes and the handlers say the same.

use std::collections::BTreeSet;

use super::*;

fn document() -> Value {
    willing().json("GET", "/openapi.json", "")
}

/// The documented operations: method, path, and what is documented of it.
fn operations(document: &Value) -> Vec<(String, String, Value)> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            all.push((method.clone(), path.clone(), operation.clone()));
        }
    }
    all
}

#[test]
fn every_route_is_documented_and_every_documented_path_is_a_route() {
    let documented: BTreeSet<(String, String)> = operations(&document())
        .into_iter()
        .map(|(method, path, _)| (method, path))
        .collect();
    let served: BTreeSet<(String, String)> = SERVED
        .iter()
        .copied()
        .chain(KINDS.iter().map(|kind| ("put", kind.path())))
        .map(|(method, path)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(documented, served);
    // And the table of routes is what the router does.
    let api = willing();
    for (method, path) in served {
        let path = path.replace("{drive_id}", "a").replace("{iface_id}", "a");
        let (_, _, answer) = api.send(&method.to_uppercase(), &path, "");
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(
            !text.contains("Invalid request method"),
            "{method} {path}: {text}"
        );
    }
}

/// The schema behind a reference, a list of one, or the schema itself.
fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/components/schemas/").unwrap();
        let found = &document["components"]["schemas"][name];
        assert!(found.is_object(), "{name} is referred to and not there");
        return found;
    }
    let choices = schema["oneOf"].as_array().into_iter().flatten();
    for choice in choices {
        if choice["$ref"].is_string() {
            return resolve(document, choice);
        }
    }
    schema
}

fn body_schema<'a>(document: &'a Value, operation: &'a Value) -> Option<&'a Value> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    schema.is_object().then(|| resolve(document, schema))
}

#[test]
fn a_handler_takes_every_documented_field_and_no_other_and_needs_the_required_ones() {
    let document = document();
    let api = willing();
    let mut looked_at = 0;
    for (method, path, operation) in operations(&document) {
        let Some(schema) = body_schema(&document, &operation) else {
            assert_eq!(method, "get", "{path} has no documented body");
            continue;
        };
        let path = path.replace("{drive_id}", "a").replace("{iface_id}", "a");
        let ask = |body: String| {
            let (status, _, answer) = api.send(&method.to_uppercase(), &path, body);
            (status, String::from_utf8_lossy(&answer).into_owned())
        };
        let (_, said) = ask(r#"{"no_such_field":1}"#.to_owned());
        let unknown = said.contains("unknown field") || said.contains("missing field");
        assert!(unknown, "{method} {path}: {said}");
        for field in schema["properties"].as_object().into_iter().flatten() {
            // A list where none is expected, or one in a list: a known field complains of its type, if at all.
            let (_, said) = ask(format!("{{\"{}\":[[[]]]}}", field.0));
            assert!(
                !said.contains("unknown field"),
                "{method} {path} {}: {said}",
                field.0
            );
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            let (status, said) = ask("{}".to_owned());
            assert_eq!(status, 400, "{method} {path} needs {required}: {said}");
        }
        if schema["required"].as_array().is_none_or(Vec::is_empty) {
            let (status, said) = ask("{}".to_owned());
            assert!(
                status < 300 || said.contains("changes nothing"),
                "{method} {path}: {said}"
            );
        }
        looked_at += 1;
    }
    assert!(looked_at > 12, "{looked_at}");
}

#[test]
fn the_answers_have_the_documented_fields() {
    let document = document();
    let api = willing();
    for path in [
        "/",
        "/version",
        "/vm/config",
        "/machine-config",
        "/generation",
        "/instance-data",
    ] {
        let answer = api.json("GET", path, "");
        let schema = &document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        let schema = resolve(&document, schema);
        for field in answer.as_object().unwrap().keys() {
            assert!(
                schema["properties"][field].is_object(),
                "{path} answers with {field}"
            );
        }
        for required in schema["required"].as_array().unwrap() {
            let field = required.as_str().unwrap();
            assert!(!answer[field].is_null(), "{path} answers without {field}");
        }
    }
}

/// `docs/openapi.json` is what GET `/openapi.json` answers, so that a change of the API is seen in its diff. With `VMGENIE_UPDATE=1` in the
/// environment it is written.
#[test]
fn the_committed_document_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    let served = format!("{:#}\n", document());
    if std::env::var_os("VMGENIE_UPDATE").is_some() {
        std::fs::write(path, &served).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == served,
        "docs/openapi.json is not current: VMGENIE_UPDATE=1 cargo test -p vmgenie the_committed_document"
    );
}
