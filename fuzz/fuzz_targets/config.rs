//! Any text is a configuration or a list of problems, and what loads compiles or says why not.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sluicegate::config::load::Loader;
use sluicegate::config::render::{self, Colour};
use sluicegate::snapshot::compile::{Remarks, compile};
use sluicegate::telemetry::metrics::{Metrics, MetricsSettings};

fuzz_target!(|text: &[u8]| {
    let mut loaded = Loader::of_text(Path::new("fuzz.yaml"), text).load();
    let mut problems = std::mem::take(&mut loaded.problems);
    match &loaded.document {
        Some(document) => {
            let metrics = Metrics::new(MetricsSettings::default(), "0");
            let _draft = compile(&document.config, None, &metrics, Remarks::All, &mut problems);
            document.place(&mut problems);
        }
        None => assert!(!problems.is_empty(), "refused without a word"),
    }
    let shown = render::text(&problems, &loaded.texts, Colour::Off);
    assert!(!shown.contains('\u{1b}'), "a control character reaches the terminal");
    serde_json::from_str::<serde_json::Value>(&render::json(&problems)).expect("problems are JSON");
});
