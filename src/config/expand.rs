//! `${env:NAME}` and `${file:/path}` in scalars: replaced before anything is typed.
//!
//! The replaced text never comes back in a message: a scalar keeps what the file says beside it.
//! `$1`, `${name}` and other dollars stay as they are. Go templates are refused here, too, because they
//! would otherwise be taken for text.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::tree::{Entry, Mark, Node, Scalar, Style, TEMPLATE_HINT, Value, excerpt};
use crate::common::problem::{ConfigPath, Problem, Problems};

/// Bytes of one secret file; keys and passwords are far smaller.
const MAX_SECRET_BYTES: u64 = 1 << 20;

/// Looks up an environment variable.
pub type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What replacing has found so far, over all files.
#[derive(Debug, Default)]
pub struct Found {
    /// Texts that must not be shown.
    pub secrets: BTreeSet<String>,
    /// Files to watch.
    pub files: BTreeSet<PathBuf>,
}

/// Replaces in every scalar under `node`; `base` is what relative secret files start at.
pub fn expand(
    node: &mut Node,
    file: &Arc<PathBuf>,
    base: &Path,
    env: &Env,
    found: &mut Found,
    problems: &mut Problems,
) {
    Expander { file, base, env, found, problems }.walk(node, None);
}

/// The way to a node; made into a [`ConfigPath`] only when there is something to report.
struct Trail<'t> {
    parent: Option<&'t Trail<'t>>,
    step: TrailStep<'t>,
}

#[derive(Clone, Copy)]
enum TrailStep<'t> {
    Key(&'t str),
    Index(usize),
}

fn path_of(trail: Option<&Trail<'_>>) -> ConfigPath {
    let Some(trail) = trail else { return ConfigPath::root() };
    let above = path_of(trail.parent);
    match trail.step {
        TrailStep::Key(key) => above.key(key),
        TrailStep::Index(index) => above.index(index),
    }
}

struct Expander<'x> {
    file: &'x Arc<PathBuf>,
    base: &'x Path,
    env: &'x Env,
    found: &'x mut Found,
    problems: &'x mut Problems,
}

impl Expander<'_> {
    fn walk(&mut self, node: &mut Node, at: Option<&Trail<'_>>) {
        let mark = node.mark;
        match &mut node.value {
            Value::Scalar(scalar) => self.scalar(scalar, mark, at),
            Value::List(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    self.walk(item, Some(&Trail { parent: at, step: TrailStep::Index(index) }));
                }
            }
            Value::Map(entries) => {
                for Entry { key, value, .. } in entries {
                    self.walk(value, Some(&Trail { parent: at, step: TrailStep::Key(key) }));
                }
            }
        }
    }

    fn scalar(&mut self, scalar: &mut Scalar, mark: Mark, at: Option<&Trail<'_>>) {
        if scalar.text.split_once("{{").is_some_and(|(_, rest)| rest.contains("}}")) {
            self.problem(mark, at, "Go templates are not supported".to_owned(), Some(TEMPLATE_HINT));
            return;
        }
        if !scalar.text.contains("${env:") && !scalar.text.contains("${file:") {
            return;
        }
        match self.replaced(&scalar.text) {
            Ok(text) => {
                scalar.written = Some(std::mem::replace(&mut scalar.text, text.into()));
                scalar.literal = None;
                // Never null, whatever the secret says.
                scalar.style = Style::Quoted;
            }
            Err(message) => self.problem(mark, at, message, None),
        }
    }

    fn replaced(&mut self, text: &str) -> Result<String, String> {
        let mut result = String::new();
        let mut rest = text;
        while let Some(start) = rest.find("${") {
            result.push_str(&rest[..start]);
            rest = &rest[start..];
            let (kind, after) = if let Some(after) = rest.strip_prefix("${env:") {
                (Self::variable as fn(&mut Self, &str) -> Result<String, String>, after)
            } else if let Some(after) = rest.strip_prefix("${file:") {
                (Self::content as fn(&mut Self, &str) -> Result<String, String>, after)
            } else {
                result.push_str("${");
                rest = &rest[2..];
                continue;
            };
            let end = after.find('}').ok_or_else(|| format!("{:?} has no closing brace", excerpt(rest)))?;
            let secret = kind(self, &after[..end])?;
            result.push_str(&secret);
            if !secret.is_empty() {
                self.found.secrets.insert(secret);
            }
            rest = &after[end + 1..];
        }
        result.push_str(rest);
        Ok(result)
    }

    fn variable(&mut self, name: &str) -> Result<String, String> {
        (self.env)(name).ok_or_else(|| format!("environment variable {name:?} is not set"))
    }

    fn content(&mut self, name: &str) -> Result<String, String> {
        let path = self.base.join(name);
        let bad = |why: &dyn std::fmt::Display| format!("cannot read secret file {}: {why}", path.display());
        self.found.files.insert(path.clone());
        let metadata = std::fs::metadata(&path).map_err(|error| bad(&error))?;
        if !metadata.is_file() {
            return Err(bad(&"it is not a file"));
        }
        let mut bytes = Vec::new();
        File::open(&path)
            .and_then(|file| file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| bad(&error))?;
        if bytes.len() as u64 > MAX_SECRET_BYTES {
            return Err(bad(&"it is larger than 1 MiB"));
        }
        let text = String::from_utf8(bytes).map_err(|_| bad(&"it is not UTF-8"))?;
        Ok(text.trim_end_matches(['\n', '\r']).to_owned())
    }

    fn problem(&mut self, mark: Mark, at: Option<&Trail<'_>>, message: String, hint: Option<&str>) {
        let mut problem = Problem::error(&path_of(at), message);
        problem.place = Some(mark.place(self.file));
        problem.hint = hint.map(str::to_owned);
        self.problems.push(problem);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree;

    /// What a scalar became, and what was written if that is something else.
    type Expanded = (String, Option<String>);

    fn expanded(text: &str, base: &Path) -> (Vec<Expanded>, Vec<String>, Found) {
        let file = Arc::new("t.yaml".into());
        let mut problems = Problems::new();
        let mut node = tree::parse(&file, text.as_bytes(), &mut problems).expect("is YAML");
        let env: Env = Arc::new(|name| match name {
            "USER" => Some("ann".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        });
        let mut found = Found::default();
        expand(&mut node, &file, base, &env, &mut found, &mut problems);
        let scalars = node.entries().expect("is a map").iter().map(|entry| match &entry.value.value {
            Value::Scalar(scalar) => (scalar.text.to_string(), scalar.written.as_deref().map(str::to_owned)),
            _ => (String::new(), None),
        });
        let problems = problems.iter().map(|p| format!("[{}] {}", p.path, p.message)).collect();
        (scalars.collect(), problems, found)
    }

    #[test]
    fn variables_and_files_are_replaced_within_a_text() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("pw"), "hunter2\n").expect("written");
        let (scalars, problems, found) =
            expanded("a: x-${env:USER}-${file:pw}-${env:USER}\nb: '${env:EMPTY}'\n", dir.path());
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(scalars[0].0, "x-ann-hunter2-ann");
        assert_eq!(scalars[0].1.as_deref(), Some("x-${env:USER}-${file:pw}-${env:USER}"));
        assert_eq!(scalars[1].0, "");
        assert_eq!(found.secrets.iter().collect::<Vec<_>>(), ["ann", "hunter2"]);
        assert_eq!(found.files.iter().collect::<Vec<_>>(), [&dir.path().join("pw")]);
    }

    #[test]
    fn other_dollars_stay_as_they_are() {
        let (scalars, problems, _) = expanded("a: 'https://${host}/$1 $$ ${'\n", Path::new("."));
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(scalars, [("https://${host}/$1 $$ ${".to_owned(), None)]);
    }

    #[test]
    fn a_missing_secret_is_a_problem_at_its_key() {
        let (_, problems, _) = expanded(
            "a: ${env:NOT_THERE}\nb: ${file:/no/such/file}\nc: '${env:OPEN'\nd: ${file:/}\n",
            Path::new("."),
        );
        assert_eq!(
            problems,
            [
                "[a] environment variable \"NOT_THERE\" is not set",
                "[b] cannot read secret file /no/such/file: No such file or directory (os error 2)",
                "[c] \"${env:OPEN\" has no closing brace",
                "[d] cannot read secret file /: it is not a file",
            ]
        );
    }

    #[test]
    fn a_go_template_in_a_text_is_refused() {
        let (_, problems, _) = expanded("a: 'Host(`{{ env \"X\" }}`)'\nb: '[a-z]{{'\n", Path::new("."));
        assert_eq!(problems, ["[a] Go templates are not supported"]);
    }
}
