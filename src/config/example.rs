//! Proves that `config.example.yaml` names every key, and that every line of it works.

use std::path::Path;

use serde_json::Value as Json;

use super::load::{Loaded, Loader};
use super::render::{self, Colour};
use super::schema;
use super::tree::{Node, Value};
use crate::common::problem::Problems;

const EXAMPLE: &str = include_str!("../../config.example.yaml");

/// Whether a line is a key that is commented out: `#key:` or `#- key:`, where words have a space after `#`.
fn is_commented_key(line: &str) -> bool {
    line.trim_start()
        .strip_prefix('#')
        .map(|rest| rest.strip_prefix("- ").unwrap_or(rest))
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic()))
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The example with the keys in some lines switched on.
fn with(lines: impl Fn(usize) -> bool) -> String {
    EXAMPLE
        .lines()
        .enumerate()
        .map(|(index, line)| {
            if is_commented_key(line) && lines(index) {
                line.replacen('#', "", 1) + "\n"
            } else {
                line.to_owned() + "\n"
            }
        })
        .collect()
}

/// A key that is commented out, those that it stands under, and those that these require (`# Required.`).
fn with_parents(chosen: usize) -> Vec<usize> {
    let lines: Vec<&str> = EXAMPLE.lines().collect();
    let mut on = vec![chosen];
    while let Some(parent) = on.last().and_then(|child| parent(&lines, *child)) {
        on.push(parent);
    }
    let required = (1..lines.len()).filter(|index| lines[index - 1].trim_end().ends_with("Required."));
    let required: Vec<usize> =
        required.filter(|index| parent(&lines, *index).is_some_and(|parent| on.contains(&parent))).collect();
    on.extend(required);
    on
}

/// The key that the one in line `child` stands under.
fn parent(lines: &[&str], child: usize) -> Option<usize> {
    let is_key = |line: &str| is_commented_key(line) || !line.trim_start().starts_with('#');
    (0..child).rev().find(|index| {
        let line = lines[*index];
        !line.trim().is_empty() && is_key(line) && indent(line) < indent(lines[child])
    })
}

fn load(text: &str) -> Loaded {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("config.example.yaml");
    std::fs::write(&file, text).expect("written");
    Loader::new(&file).load()
}

fn assert_clean(text: &str, what: &str) {
    let loaded = load(text);
    assert!(
        loaded.problems.is_empty(),
        "{what}:\n{}",
        render::text(&loaded.problems, &loaded.texts, Colour::Off)
    );
}

#[test]
fn the_example_loads_as_it_stands() {
    assert_clean(EXAMPLE, "as it stands");
}

#[test]
fn the_example_loads_with_each_key_switched_on_in_turn() {
    for (index, line) in EXAMPLE.lines().enumerate() {
        if is_commented_key(line) {
            let on = with_parents(index);
            assert_clean(&with(|index| on.contains(&index)), line);
        }
    }
}

#[test]
fn the_example_loads_with_every_key_switched_on() {
    assert_clean(&with(|_| true), "everything");
}

#[test]
fn the_example_names_every_key_of_the_schema() {
    let mut problems = Problems::new();
    let file = std::sync::Arc::new(Path::new("config.example.yaml").to_owned());
    let tree = super::tree::parse(&file, with(|_| true).as_bytes(), &mut problems).expect("is YAML");
    let schema = schema::schema();
    let mut missing = Vec::new();
    walk(schema.as_value(), schema.as_value(), &[&tree], "", &mut missing);
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Compares a schema with all nodes that stand where it holds.
fn walk(root: &Json, schema: &Json, nodes: &[&Node], path: &str, missing: &mut Vec<String>) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/$defs/");
        // Shown in full once, under `rateLimit` and `loadBalancer`.
        let elsewhere = (name == "SourceCriterionConfig" && !path.contains("rateLimit"))
            || (name == "StickyCookieConfig" && path.contains("weighted"));
        // Likewise, under `rateLimit.key`.
        let elsewhere = elsewhere || (name == "KeyPartConfig" && !path.contains("rateLimit.key"));
        if name != "NotYet" && !elsewhere {
            walk(root, &root["$defs"][name], nodes, path, missing);
        }
    }
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        for alternative in schema[alternatives].as_array().into_iter().flatten() {
            walk(root, alternative, nodes, path, missing);
        }
    }
    for (key, property) in schema["properties"].as_object().into_iter().flatten() {
        let below: Vec<&Node> = nodes
            .iter()
            .filter_map(|node| node.entries()?.iter().find(|entry| *entry.key == **key))
            .map(|entry| &entry.value)
            .collect();
        let path = format!("{path}.{key}");
        let not_yet = property["$ref"] == "#/$defs/NotYet"
            || property["anyOf"]
                .as_array()
                .is_some_and(|any| any.iter().any(|one| one["$ref"] == "#/$defs/NotYet"));
        let alias = path.contains("ipWhiteList.");
        if below.is_empty() && !not_yet && !alias {
            missing.push(path);
        } else {
            walk(root, property, &below, &path, missing);
        }
    }
    if schema["additionalProperties"].is_object() {
        let below: Vec<&Node> =
            nodes.iter().filter_map(|node| node.entries()).flatten().map(|entry| &entry.value).collect();
        walk(root, &schema["additionalProperties"], &below, &format!("{path}.*"), missing);
    }
    if schema["items"].is_object() {
        let below: Vec<&Node> = nodes
            .iter()
            .filter_map(|node| match &node.value {
                Value::List(items) => Some(items),
                Value::Scalar(_) | Value::Map(_) => None,
            })
            .flatten()
            .collect();
        walk(root, &schema["items"], &below, &format!("{path}[]"), missing);
    }
}
