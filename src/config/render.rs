//! Problems as text with the offending lines, and as JSON.
//!
//! What stands in a file may hold anything: control characters never reach the terminal, and a line of a
//! megabyte is shown in part.

use std::fmt::Write;
use std::path::Path;

use serde_json::json;

use super::load::Texts;
use crate::common::problem::{Place, Problem, Problems, Severity};

/// Characters of a line that are shown.
const MAX_LINE: usize = 120;

/// Whether the output has colours.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Colour {
    /// Escape sequences, for a terminal.
    On,
    /// Plain text.
    Off,
}

/// All problems as text, in the order of files and lines, with the lines that are meant.
pub fn text(problems: &Problems, texts: &Texts, colour: Colour) -> String {
    let paint = Paint(colour);
    let mut out = String::new();
    let mut lines = Lines::default();
    for problem in in_order(problems) {
        let (name, code) = match problem.severity {
            Severity::Error => ("error", "1;31"),
            Severity::Warning => ("warning", "1;33"),
        };
        let message = clean(&problem.message);
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{}{}", paint.with(code, name), paint.with("1", &format!(": {message}")));
        let margin = match &problem.place {
            Some(place) => frame(&mut out, place, texts, &mut lines, paint, code),
            None => 1,
        };
        let indent = " ".repeat(margin);
        if !problem.path.steps().is_empty() {
            let _ =
                writeln!(out, "{indent}{} at: {}", paint.with("1;34", "="), clean(&problem.path.to_string()));
        }
        if let Some(hint) = &problem.hint {
            let _ = writeln!(out, "{indent}{} help: {}", paint.with("1;34", "="), clean(hint));
        }
        out.push('\n');
    }
    out
}

/// All problems as one JSON array.
pub fn json(problems: &Problems) -> String {
    let items: Vec<serde_json::Value> = in_order(problems)
        .into_iter()
        .map(|problem| {
            let place = problem.place.as_ref();
            json!({
                "severity": match problem.severity {
                    Severity::Error => "error",
                    Severity::Warning => "warning",
                },
                "file": place.map(|place| place.file.display().to_string()),
                "line": place.map(|place| place.line),
                "column": place.map(|place| place.column),
                "path": problem.path.to_string(),
                "message": problem.message,
                "hint": problem.hint,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(items))
}

/// One problem in one line, for logs: `edge.yaml:5:7: unknown key "servcie" at http.routers.api.servcie (did you mean
/// "service"?)`.
pub fn line(problem: &Problem) -> String {
    let mut out = String::new();
    if let Some(place) = &problem.place {
        let _ = write!(out, "{}:{}:{}: ", place.file.display(), place.line, place.column);
    }
    out.push_str(&problem.message);
    if !problem.path.steps().is_empty() {
        let _ = write!(out, " at {}", problem.path);
    }
    if let Some(hint) = &problem.hint {
        let _ = write!(out, " ({hint})");
    }
    clean(&out)
}

fn in_order(problems: &Problems) -> Vec<&Problem> {
    let mut all: Vec<&Problem> = problems.iter().collect();
    all.sort_by_key(|problem| problem.place.as_ref().map(|place| (&place.file, place.line, place.column)));
    all
}

/// Writes the place and the lines around it; gives the width of the margin.
fn frame<'a>(
    out: &mut String,
    place: &'a Place,
    texts: &'a Texts,
    lines: &mut Lines<'a>,
    paint: Paint,
    code: &str,
) -> usize {
    let bytes = texts.get(&*place.file).map_or(&[][..], |bytes| bytes);
    let first = place.line.saturating_sub(2).max(1);
    let margin = place.line.to_string().len() + 1;
    let indent = " ".repeat(margin - 1);
    let bar = paint.with("1;34", "|");
    let file = clean(&place.file.display().to_string());
    let _ = writeln!(out, "{indent}{} {file}:{}:{}", paint.with("1;34", "-->"), place.line, place.column);
    let lines: Vec<&[u8]> = lines
        .from(&place.file, bytes, first)
        .split(|byte| *byte == b'\n')
        .take(place.line - first + 1)
        .collect();
    if lines.len() != place.line - first + 1 || bytes.is_empty() {
        return margin;
    }
    let _ = writeln!(out, "{indent} {bar}");
    // The window of columns that is shown, the same for all lines.
    let skip = if place.column + place.width.min(MAX_LINE / 2) > MAX_LINE {
        place.column.saturating_sub(MAX_LINE / 2)
    } else {
        0
    };
    for (offset, line) in lines.iter().enumerate() {
        let number = first + offset;
        let text = String::from_utf8_lossy(line);
        let text = text.strip_prefix('\u{feff}').unwrap_or(&text).trim_end();
        let shown: String = text.chars().skip(skip).take(MAX_LINE).map(visible).collect();
        let head = paint.with("1;34", &format!("{number:>width$} |", width = margin - 1));
        let _ = writeln!(out, "{}", format!("{head} {shown}").trim_end());
    }
    let column = place.column.saturating_sub(skip).saturating_sub(1);
    let width = place.width.min(MAX_LINE.saturating_sub(column)).max(1);
    let marker = paint.with(code, &"^".repeat(width));
    let _ = writeln!(out, "{indent} {bar} {}{marker}", " ".repeat(column));
    margin
}

/// Goes through a file once, however many of its lines are asked for, as long as they are asked for in order.
#[derive(Default)]
struct Lines<'a> {
    file: Option<&'a Path>,
    line: usize,
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    /// What `file` holds from `line` on; nothing if it has fewer.
    fn from(&mut self, file: &'a Path, bytes: &'a [u8], line: usize) -> &'a [u8] {
        if self.file != Some(file) || line < self.line {
            *self = Self { file: Some(file), line: 1, rest: bytes };
        }
        while self.line < line {
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            self.rest = end.map_or(&[], |end| &self.rest[end + 1..]);
            self.line += 1;
        }
        self.rest
    }
}

/// Without control characters, which could command a terminal.
fn clean(text: &str) -> String {
    text.chars().map(visible).collect()
}

fn visible(character: char) -> char {
    match character {
        '\t' => ' ',
        // Overrides of direction make a line read other than it is.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ if character.is_control() => '\u{fffd}',
        _ => character,
    }
}

#[derive(Clone, Copy)]
struct Paint(Colour);

impl Paint {
    fn with(self, code: &str, text: &str) -> String {
        match self.0 {
            Colour::On => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            Colour::Off => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_in_order_out_of_order_and_in_another_file() {
        let (a, b) = (Path::new("a"), Path::new("b"));
        let mut lines = Lines::default();
        let mut first = |file, bytes, line| {
            let rest = lines.from(file, bytes, line);
            String::from_utf8_lossy(rest.split(|byte| *byte == b'\n').next().unwrap_or_default()).into_owned()
        };
        let one = b"1\n2\n3\n4".as_slice();
        assert_eq!(first(a, one, 2), "2");
        assert_eq!(first(a, one, 2), "2");
        assert_eq!(first(a, one, 4), "4");
        assert_eq!(first(a, one, 9), "");
        assert_eq!(first(a, one, 1), "1");
        assert_eq!(first(b, b"x\ny", 2), "y");
        assert_eq!(first(a, one, 3), "3");
    }
}
