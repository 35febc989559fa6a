//! An API server's judgement of one object, in process: defaults, then the schema, then the rules in CEL.
//!
//! The schema half knows exactly the keywords that our definitions use and panics on any other, so that a new keyword
//! cannot go unchecked. The CEL half is kube-cel. `./scripts/kube` brings the real server, which has the last word.

use kube::core::cel::Validator;
use regex::Regex;
use serde_json::Value;

/// The OpenAPI schema of `kind`.
pub fn schema_of(kind: &str) -> Value {
    let definition = peerage_crds::all().into_iter().find(|crd| crd.spec.names.kind == kind).expect("a kind of ours");
    let version = definition.spec.versions.into_iter().next().expect("it has one version");
    serde_json::to_value(version.schema.expect("it has a schema").open_api_v3_schema).expect("a schema is plain data")
}

/// Everything that is wrong with `object`, and with changing `old` into it.
pub fn refusals(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema_of(object["kind"].as_str().expect("an object has a kind"));
    let defaulted = kube::core::cel::apply_defaults(&schema, object);
    let old = old.map(|old| kube::core::cel::apply_defaults(&schema, old));
    let mut found = vec![];
    check(&mut found, "", &schema, &defaulted);
    if let Err(errors) = Validator::new().validate(&schema, &defaulted, old.as_ref()) {
        found.extend(errors.into_vec().into_iter().map(|error| error.to_string()));
    }
    found
}

/// Each object of a YAML stream.
pub fn objects(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).expect("it is YAML")
}

fn check(found: &mut Vec<String>, path: &str, schema: &Value, value: &Value) {
    if value.is_null() && schema["nullable"] == true {
        return;
    }
    for (keyword, wanted) in schema.as_object().expect("a schema is an object") {
        let holds = match keyword.as_str() {
            "type" => has_type(wanted.as_str().expect("one type"), value),
            "enum" => wanted.as_array().expect("a list").contains(value),
            "pattern" => Regex::new(wanted.as_str().expect("text")).expect("a pattern").is_match(text(value)),
            "maxLength" => text(value).chars().count() as u64 <= number(wanted),
            "minLength" => text(value).chars().count() as u64 >= number(wanted),
            "maxItems" => length(value) <= number(wanted),
            "minItems" => length(value) >= number(wanted),
            "maxProperties" => length(value) <= number(wanted),
            "minProperties" => length(value) >= number(wanted),
            "maximum" => value.as_f64() <= wanted.as_f64(),
            "minimum" => value.as_f64() >= wanted.as_f64(),
            "required" => wanted.as_array().expect("a list").iter().all(|name| value.get(text(name)).is_some()),
            "x-kubernetes-list-type" => list_type(wanted, schema, value),
            "properties" | "items" | "additionalProperties" => true, // below
            "format" => matches!(text(wanted), "date-time" | "int32" | "int64"),
            "description"
            | "title"
            | "default"
            | "nullable"
            | "x-kubernetes-validations"
            | "x-kubernetes-list-map-keys" => true,
            other => panic!("{path}: keyword {other} is not known to this test"),
        };
        if !holds {
            found.push(format!("{path}: {keyword} {wanted}"));
        }
    }
    descend(found, path, schema, value);
}

fn descend(found: &mut Vec<String>, path: &str, schema: &Value, value: &Value) {
    for (name, member) in value.as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema)) => check(found, &path, schema, member),
            // The server's own fields of an object, and the content of its metadata.
            (None, None) if matches!(path.as_str(), ".apiVersion" | ".kind" | ".metadata") => {}
            (None, None) if path.starts_with(".metadata.") => {}
            (None, None) => found.push(format!("{path}: unknown field")),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        check(found, &format!("{path}[{index}]"), &schema["items"], item);
    }
}

fn list_type(wanted: &Value, schema: &Value, value: &Value) -> bool {
    let items = value.as_array().into_iter().flatten();
    let keys: Vec<Value> = match text(wanted) {
        "set" => items.cloned().collect(),
        "map" => {
            let names = schema["x-kubernetes-list-map-keys"].as_array().expect("a map list has keys");
            items.map(|item| names.iter().map(|name| item[text(name)].clone()).collect()).collect()
        }
        other => panic!("list type {other} is not known to this test"),
    };
    keys.iter().enumerate().all(|(at, key)| !keys[..at].contains(key))
}

fn has_type(wanted: &str, value: &Value) -> bool {
    match wanted {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("type {other} is not known to this test"),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn number(value: &Value) -> u64 {
    value.as_u64().expect("a limit is a whole number")
}

fn length(value: &Value) -> u64 {
    value.as_array().map(Vec::len).or_else(|| value.as_object().map(serde_json::Map::len)).unwrap_or_default() as u64
}
