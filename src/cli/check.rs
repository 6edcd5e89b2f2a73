//! `sluicegate check`: everything that a run would find wrong, without running.

use std::io;
use std::process::ExitCode;

use super::{Check, Format, colour, print};
use crate::common::problem::{Problems, Severity};
use crate::config::load::{Loader, Texts};
use crate::config::render;
use crate::snapshot::compile::{Remarks, compile};
use crate::telemetry::metrics::{Metrics, MetricsSettings};

pub(super) fn run(args: &Check) -> Result<ExitCode, String> {
    let mut all = Problems::new();
    let mut texts = Texts::new();
    let mut refused = false;
    for file in &args.files {
        let mut loaded = Loader::new(file).load();
        let mut problems = std::mem::take(&mut loaded.problems);
        match &loaded.document {
            Some(document) => {
                let metrics = Metrics::new(MetricsSettings::default(), env!("CARGO_PKG_VERSION"));
                compile(&document.config, None, &metrics, Remarks::All, &mut problems);
                document.place(&mut problems);
                refused |= document.refuses(&problems);
            }
            None => refused = true,
        }
        for problem in problems.into_vec() {
            all.push(problem);
        }
        texts.extend(loaded.texts);
    }
    match args.format {
        Format::Json => print(&render::json(&all))?,
        Format::Text => print(&text(&all, &texts, args.files.len()))?,
    };
    Ok(if refused { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(problems: &Problems, texts: &Texts, files: usize) -> String {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let warnings = problems.len() - errors;
    let plural = |count: usize, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    let summary =
        format!("{}: {}, {}", plural(files, "file"), plural(errors, "error"), plural(warnings, "warning"));
    format!("{}{summary}\n", render::text(problems, texts, colour(&io::stdout())))
}
