//! Keeps the imports one way: each module uses only what stands below it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the bottom to the top. Those of one line do not know each other.
const LAYERS: [&[&str]; 15] = [
    &["common"],
    &["http"],
    &["telemetry"],
    &["endpoint", "limit", "matcher", "tls"],
    &["balance", "upstream"],
    &["discovery", "health", "middleware"],
    &["config"],
    &["snapshot"],
    &["provider", "proxy"],
    &["admin", "server"],
    &["status"],
    &["reload"],
    &["app"],
    &["demo"],
    &["cli"],
];

/// Modules that must know no others than these, although they stand high.
const ALONE: [(&str, &[&str]); 2] = [("demo", &["common"]), ("provider", &["common"])];

/// Where bytes of clients and pods pass: nothing that is read from a file.
const DATA_PATH: [&str; 8] =
    ["http", "endpoint", "limit", "matcher", "balance", "upstream", "snapshot", "proxy"];

#[test]
fn imports_go_downwards() {
    let height: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(height, layer)| layer.iter().map(move |module| (*module, height)))
        .collect();
    let mut wrong = Vec::new();
    for (module, file, text) in sources() {
        let Some(own) = height.get(module.as_str()) else {
            assert!(matches!(module.as_str(), "lib" | "main" | "layers"), "{module} has no layer yet");
            continue;
        };
        for other in imports(&text).filter(|other| *other != module) {
            let below = height.get(other).is_some_and(|other| other < own);
            let known = ALONE.iter().find(|(alone, _)| *alone == module);
            if !below || known.is_some_and(|(_, known)| !known.contains(&other)) {
                wrong.push(format!("{}: crate::{other}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that do not go downwards:\n{}", wrong.join("\n"));
}

#[test]
fn the_data_path_reads_no_types_of_the_file() {
    for (module, file, text) in sources() {
        if DATA_PATH.contains(&module.as_str()) {
            let read = text.lines().find(|line| line.contains("Deserialize") && !is_comment(line));
            assert_eq!(read, None, "{}", file.display());
        }
    }
}

/// Every source file, with the module at the top that it belongs to.
fn sources() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut dirs, mut found) = (vec![root.clone()], Vec::new());
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(&root).expect("it is below").to_owned();
                let first = relative.iter().next().expect("a name").to_string_lossy();
                let module = first.trim_end_matches(".rs").to_owned();
                found.push((module, relative, std::fs::read_to_string(&path).expect("a source file")));
            }
        }
    }
    assert!(found.len() > 50, "there are more files than {}", found.len());
    found
}

/// The modules at the top that a file names.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    let code = text.lines().filter(|line| !is_comment(line));
    code.flat_map(|line| line.split("crate::").skip(1)).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with("//")
}
