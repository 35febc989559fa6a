//! The generated files are what the types say, and every definition keeps the promises of the whole API.

use std::path::Path;

use kube::core::cel::compile_schema;
use serde_json::Value;

#[test]
fn generated_files_show_no_difference() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate has a parent folder");
    for (path, content) in peerage_crds::generate::files().expect("definitions are plain data") {
        let found = std::fs::read_to_string(top.join(&path)).unwrap_or_default();
        assert!(found == content, "{path} is out of date: run  cargo run -p peerage-crds --bin crdgen");
    }
}

#[test]
fn no_manifest_is_left_of_a_kind_that_is_gone() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate has a parent folder");
    let folder = std::fs::read_dir(top.join(peerage_crds::generate::MANIFESTS)).expect("the chart has manifests");
    assert_eq!(folder.count(), peerage_crds::all().len());
}

#[test]
fn the_reference_says_what_to_do_about_each_reason() {
    let reasons = peerage_crds::Reason::ALL.iter().map(|(reason, _)| reason.as_str());
    peerage_docs::Page::at("docs/troubleshooting.md").has_rows("Reasons of conditions", reasons);
}

/// Calls `see` with the path and the schema of every value below `schema`.
fn walk(path: &str, schema: &Value, see: &mut impl FnMut(&str, &Value)) {
    see(path, schema);
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), field, see);
    }
    for inner in ["items", "additionalProperties"] {
        if schema[inner].is_object() {
            walk(&format!("{path}.*"), &schema[inner], see);
        }
    }
}

fn each_schema(see: &mut impl FnMut(&str, &Value)) {
    for definition in peerage_crds::all() {
        let schema = definition.spec.versions[0].schema.clone().expect("a schema").open_api_v3_schema;
        let schema = serde_json::to_value(schema).expect("a schema is plain data");
        for part in ["spec", "status"] {
            walk(&format!("{}.{part}", definition.spec.names.kind), &schema["properties"][part], see);
        }
    }
}

#[test]
fn everything_has_an_end() {
    each_schema(&mut |path, schema| {
        let needs = match schema["type"].as_str() {
            Some("string") if schema["enum"].is_array() => return,
            Some("string") => "maxLength",
            Some("array") => "maxItems",
            Some("object") if schema["additionalProperties"].is_object() => "maxProperties",
            _ => return,
        };
        assert!(schema[needs].is_number(), "{path} has no {needs}");
    });
}

#[test]
fn every_field_says_what_it_means() {
    each_schema(&mut |path, schema| {
        let explained = schema["description"].as_str().is_some_and(|about| about.len() > 3);
        assert!(explained || path.ends_with(".*") || path.matches('.').count() == 1, "{path} has no description");
    });
}

#[test]
fn every_rule_compiles_and_has_a_message() {
    let mut rules = 0;
    for definition in peerage_crds::all() {
        let schema = definition.spec.versions[0].schema.clone().expect("a schema").open_api_v3_schema;
        let schema = serde_json::to_value(schema).expect("a schema is plain data");
        walk(&definition.spec.names.kind, &schema, &mut |path, schema| {
            let compiled = compile_schema(schema);
            assert!(!compiled.has_errors(), "{path}: {:?}", compiled.compilation_errors());
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].is_string(), "{path}: a rule without a message: {rule}");
                rules += 1;
            }
        });
    }
    assert!(rules >= 20, "only {rules} rules were found: is this looking in the right place?");
}

#[test]
fn kubectl_get_answers_whether_it_works_and_why_not() {
    for definition in peerage_crds::all() {
        let names = &definition.spec.names;
        let columns = definition.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
        let has = |name: &str| columns.iter().any(|column| column.name == name);
        assert!(has("Age") && ((has("Ready") && has("Reason")) || has("Answered")), "{}", names.kind);
        assert_eq!(names.categories.as_deref(), Some(&["peerage".to_owned()][..]), "{}", names.kind);
        assert_eq!(names.short_names.as_ref().map(Vec::len), Some(1), "{}", names.kind);
        assert!(definition.spec.versions[0].subresources.as_ref().is_some_and(|sub| sub.status.is_some()));
    }
}
