//! YAML text to a tree of nodes, each with its place.
//!
//! Reads the events of the parser below `serde_yaml` and keeps what serde would throw away: where
//! every key and value stands and how it was written. Bounded in depth, in values, and in what
//! aliases may expand to, so that a hostile file costs a problem and nothing else.
//! Never: files, types, meaning of keys.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_yaml::granit_parser::{self as yaml, ErrorKind, Event, Marker, ScalarStyle, Span};

use crate::common::problem::{ConfigPath, Place, Problem, Problems, Step};

/// Bytes of one file. The largest real ones (50,000 routers) have about 11 MB.
pub const MAX_BYTES: usize = 64 << 20;

/// Levels of nesting in a file. The deepest key that exists has 8.
pub const MAX_DEPTH: usize = 64;

/// Values in one file, aliases expanded. 50,000 routers and services have about 600,000.
pub const MAX_NODES: usize = 4_000_000;

/// Values that all aliases of one file may expand to; `&a`/`*a` bombs end here.
pub const MAX_ALIASED_NODES: usize = 100_000;

/// Where something stands in its file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Mark {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
    /// Characters on that line; at least 1.
    pub width: u32,
}

impl Mark {
    /// The place in `file`.
    pub fn place(self, file: &Arc<PathBuf>) -> Place {
        Place {
            file: file.clone(),
            line: self.line as usize,
            column: self.column as usize,
            width: self.width as usize,
        }
    }
}

/// One value of a file.
#[derive(Clone, Debug)]
pub struct Node {
    /// Where it begins.
    pub mark: Mark,
    /// What it is.
    pub value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Value {
    /// Text, number, bool or nothing.
    Scalar(Scalar),
    /// `[a, b]` or `- a`.
    List(Vec<Node>),
    /// `{a: b}` or `a: b`, in the order of the file, without duplicate keys, merge keys resolved.
    Map(Vec<Entry>),
}

/// A value without parts.
#[derive(Clone, Debug)]
pub struct Scalar {
    /// Escapes resolved, secrets replaced.
    pub text: Box<str>,
    /// Whether it may be something else than text.
    pub style: Style,
    /// Characters between the mark and the first one of `text`, where the file has `text` literally on one
    /// line; `None` where it does not (escapes, several lines, secrets).
    pub literal: Option<u8>,
    /// What the file says, when `text` holds a secret.
    pub written: Option<Box<str>>,
}

/// How a scalar was written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Style {
    /// Bare: `5`, `true`, `~`, `text`.
    Plain,
    /// In quotes or as a block: always text.
    Quoted,
}

/// One key with its value.
#[derive(Clone, Debug)]
pub struct Entry {
    /// As written.
    pub key: Box<str>,
    /// Where the key stands.
    pub mark: Mark,
    /// What it is set to.
    pub value: Node,
}

impl Node {
    /// Whether it is nothing at all: `~`, `null`, or no text after the colon.
    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar(scalar) => scalar.is_null(),
            Value::List(_) | Value::Map(_) => false,
        }
    }

    /// Its keys, if it is a map.
    pub fn entries(&self) -> Option<&[Entry]> {
        match &self.value {
            Value::Map(entries) => Some(entries),
            Value::Scalar(_) | Value::List(_) => None,
        }
    }

    /// The entry of `key`, spelled so or in another case.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        let entries = self.entries()?;
        entries
            .iter()
            .find(|entry| *entry.key == *key)
            .or_else(|| entries.iter().find(|entry| entry.key.eq_ignore_ascii_case(key)))
    }

    /// What it is, for "found ..." in messages.
    pub fn kind(&self) -> Cow<'static, str> {
        match &self.value {
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a map".into(),
            Value::Scalar(scalar) if scalar.is_null() => "nothing".into(),
            Value::Scalar(scalar) => format!("{:?}", excerpt(scalar.shown())).into(),
        }
    }

    /// The place of a path below this node, with the scalar if it is one.
    ///
    /// A key that is not there has the place of the nearest one above it that is; a map or a list that of
    /// its key. `own` is the place of this node's key; `index` is for whoever asks for many.
    pub fn locate<'a>(
        &'a self,
        steps: &[Step],
        own: Mark,
        index: &mut Index<'a>,
    ) -> (Mark, Option<&'a Scalar>) {
        let mut node = self;
        let mut mark = own;
        for step in steps {
            let next = match step {
                Step::Key(key) => index.entry(node, key).map(|entry| (entry.mark, &entry.value)),
                Step::Index(index) => match &node.value {
                    Value::List(items) => items.get(*index).map(|item| (item.mark, item)),
                    Value::Scalar(_) | Value::Map(_) => None,
                },
            };
            let Some((next_mark, next_node)) = next else { return (mark, None) };
            (mark, node) = (next_mark, next_node);
        }
        match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => (node.mark, Some(scalar)),
            Value::Scalar(_) | Value::List(_) | Value::Map(_) => (mark, None),
        }
    }
}

/// Entries of large maps by their keys: to look for each of a hundred thousand in turn takes minutes.
#[derive(Debug, Default)]
pub struct Index<'a>(HashMap<*const Node, HashMap<&'a str, &'a Entry>>);

/// Smaller maps are looked through.
const INDEXED: usize = 64;

impl<'a> Index<'a> {
    /// Like [`Node::entry`].
    fn entry(&mut self, node: &'a Node, key: &str) -> Option<&'a Entry> {
        let entries = node.entries()?;
        if entries.len() < INDEXED {
            return node.entry(key);
        }
        let by_key = self
            .0
            .entry(std::ptr::from_ref(node))
            .or_insert_with(|| entries.iter().map(|entry| (&*entry.key, entry)).collect());
        by_key.get(key).copied().or_else(|| node.entry(key))
    }
}

impl Scalar {
    /// Whether it is nothing at all.
    pub fn is_null(&self) -> bool {
        self.style == Style::Plain && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// What may be shown of it: never a secret.
    pub fn shown(&self) -> &str {
        self.written.as_deref().unwrap_or(&self.text)
    }
}

/// The beginning of a text, short enough for a message.
pub fn excerpt(text: &str) -> Cow<'_, str> {
    const MAX_CHARS: usize = 60;
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]).into(),
        None => text.into(),
    }
}

/// Reads one file's bytes. `None` when they are no YAML map; there is an error in `problems` then.
///
/// Other errors (a key given twice) leave a tree without the part in question.
pub fn parse(file: &Arc<PathBuf>, bytes: &[u8], problems: &mut Problems) -> Option<Node> {
    match text(file, bytes) {
        Ok(text) => Builder::new(file, text, problems).run(),
        Err(problem) => {
            problems.push(*problem);
            None
        }
    }
}

/// The text of a file, without a byte order mark.
fn text<'b>(file: &Arc<PathBuf>, bytes: &'b [u8]) -> Result<&'b str, Box<Problem>> {
    let at = |offset: usize| {
        let before = &bytes[..offset];
        let line_start = memchr::memrchr(b'\n', before).map_or(0, |position| position + 1);
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        let column = String::from_utf8_lossy(&bytes[line_start..offset]).chars().count() + 1;
        Place { file: file.clone(), line, column, width: 1 }
    };
    let problem = |message: String, offset: usize, hint: Option<&str>| {
        let mut problem = Problem::error(&ConfigPath::root(), message);
        problem.place = Some(at(offset));
        problem.hint = hint.map(str::to_owned);
        Box::new(problem)
    };
    if bytes.len() > MAX_BYTES {
        let message = format!("file is too large: {} bytes, at most {MAX_BYTES}", bytes.len());
        return Err(problem(message, 0, Some("spread it over several files with providers.file.directory")));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(problem("file is UTF-16, not UTF-8".to_owned(), 0, Some("save it as UTF-8")));
    }
    let bytes_after_mark = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let skipped = bytes.len() - bytes_after_mark.len();
    let text = std::str::from_utf8(bytes_after_mark).map_err(|error| {
        problem("file is not UTF-8".to_owned(), skipped + error.valid_up_to(), Some("save it as UTF-8"))
    })?;
    if let Some(offset) = memchr::memchr(0, bytes_after_mark) {
        return Err(problem("file has a NUL byte".to_owned(), skipped + offset, None));
    }
    Ok(text)
}

struct Builder<'t, 'p> {
    file: &'t Arc<PathBuf>,
    text: &'t str,
    problems: &'p mut Problems,
    stack: Vec<Frame>,
    root: Option<Node>,
    anchors: HashMap<usize, Anchor>,
    nodes: usize,
    aliased: usize,
}

struct Anchor {
    node: Node,
    size: usize,
    height: usize,
}

struct Frame {
    mark: Mark,
    anchor: usize,
    parts: Parts,
}

enum Parts {
    List(Vec<Node>),
    Map { entries: Vec<Entry>, key: Option<Key>, seen: HashMap<Box<str>, u32> },
}

/// A key that waits for its value.
struct Key {
    text: Box<str>,
    mark: Mark,
    /// Whether the value is kept: not for a duplicate key, nor for one that is no scalar.
    keep: bool,
}

impl<'t, 'p> Builder<'t, 'p> {
    fn new(file: &'t Arc<PathBuf>, text: &'t str, problems: &'p mut Problems) -> Self {
        Self {
            file,
            text,
            problems,
            stack: Vec::new(),
            root: None,
            anchors: HashMap::new(),
            nodes: 0,
            aliased: 0,
        }
    }

    fn run(mut self) -> Option<Node> {
        let options = yaml::options! {
            emit_comments: false,
            flow_nesting_limit: MAX_DEPTH,
            block_nesting_limit: MAX_DEPTH,
        };
        let mut documents = 0;
        for event in yaml::Parser::new_from_str_with_options(self.text, options) {
            let (event, span) = match event {
                Ok(event) => event,
                Err(error) => {
                    let marker = *error.marker();
                    self.syntax_error(error.kind(), marker);
                    return None;
                }
            };
            if let Event::DocumentStart(..) = event {
                documents += 1;
                if documents > 1 {
                    self.error(self.mark(&span), "there is more than one document in the file");
                    return None;
                }
                continue;
            }
            self.event(event, &span)?;
        }
        let root = match self.root.take() {
            Some(root) if !root.is_null() => root,
            Some(_) | None => {
                self.error(Mark { line: 1, column: 1, width: 1 }, "file is empty");
                return None;
            }
        };
        if let Value::Scalar(_) | Value::List(_) = root.value {
            self.error(root.mark, format!("expected a map of keys, found {}", root.kind()));
            return None;
        }
        Some(root)
    }

    /// `None` ends the reading.
    fn event(&mut self, event: Event<'_>, span: &Span) -> Option<()> {
        let mark = self.mark(span);
        if let Some(tag) = event.tag()
            && !tag.is_yaml_core_schema()
        {
            self.error(mark, format!("YAML tags such as {} are not supported", excerpt(&tag.original())));
        }
        let parts = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tagged_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let scalar = self.scalar(&text, style, tagged_text, span);
                return self.finish(Node { mark, value: Value::Scalar(scalar) }, anchor);
            }
            Event::Alias(anchor) => return self.alias(anchor, mark),
            Event::SequenceStart(_, anchor, _) => (anchor, Parts::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                (anchor, Parts::Map { entries: Vec::new(), key: None, seen: HashMap::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else { return Some(()) };
                let value = match frame.parts {
                    Parts::List(items) => Value::List(items),
                    Parts::Map { entries, .. } => Value::Map(self.merge(entries)),
                };
                return self.finish(Node { mark: frame.mark, value }, frame.anchor);
            }
            _ => return Some(()),
        };
        if self.stack.len() >= MAX_DEPTH {
            self.too_deep(mark);
            return None;
        }
        self.stack.push(Frame { mark, anchor: parts.0, parts: parts.1 });
        Some(())
    }

    fn scalar(&self, text: &str, style: ScalarStyle, tagged_text: bool, span: &Span) -> Scalar {
        let source = span.slice(self.text).unwrap_or("");
        let literal = match style {
            ScalarStyle::Plain => (source == text).then_some(0),
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => {
                (source.len() == text.len() + 2 && source.get(1..source.len() - 1) == Some(text)).then_some(1)
            }
            ScalarStyle::Literal | ScalarStyle::Folded => None,
        };
        let style = match style {
            ScalarStyle::Plain if !tagged_text => Style::Plain,
            _ => Style::Quoted,
        };
        Scalar { text: text.into(), style, literal: literal.filter(|_| !text.contains('\n')), written: None }
    }

    fn alias(&mut self, id: usize, mark: Mark) -> Option<()> {
        let Some(anchor) = self.anchors.get(&id) else {
            self.error(mark, "an alias must not stand inside what it names");
            return None;
        };
        self.aliased += anchor.size;
        self.nodes += anchor.size;
        if self.aliased > MAX_ALIASED_NODES {
            self.error(mark, format!("aliases expand to more than {MAX_ALIASED_NODES} values"));
            return None;
        }
        if self.stack.len() + anchor.height > MAX_DEPTH {
            self.too_deep(mark);
            return None;
        }
        let node = anchor.node.clone();
        self.finish(node, 0)
    }

    /// Puts a complete node where it belongs.
    fn finish(&mut self, node: Node, anchor: usize) -> Option<()> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            self.error(node.mark, format!("file has more than {MAX_NODES} values"));
            return None;
        }
        if anchor != 0 {
            let (size, height) = measure(&node);
            // Copies for anchors count, too: anchors within anchors would multiply.
            self.aliased += size;
            if self.aliased > MAX_ALIASED_NODES {
                self.error(
                    node.mark,
                    format!("anchors and aliases stand for more than {MAX_ALIASED_NODES} values"),
                );
                return None;
            }
            self.anchors.insert(anchor, Anchor { node: node.clone(), size, height });
        }
        match self.stack.last_mut().map(|frame| &mut frame.parts) {
            None => self.root = Some(node),
            Some(Parts::List(items)) => items.push(node),
            Some(Parts::Map { entries, key: key @ Some(_), .. }) => {
                if let Some(Key { text, mark, keep: true }) = key.take() {
                    entries.push(Entry { key: text, mark, value: node });
                }
            }
            Some(Parts::Map { key: None, .. }) => self.key(node),
        }
        Some(())
    }

    fn key(&mut self, node: Node) {
        let mark = node.mark;
        let template = matches!(node.value, Value::Map(_))
            && template_line(self.text, mark.line as usize) == Some(mark.line as usize);
        let text = match node.value {
            Value::Scalar(scalar) => Some(scalar.text),
            Value::List(_) | Value::Map(_) => None,
        };
        let message = match &text {
            None => Some("a key must be text, not a list or a map".to_owned()),
            Some(text) => self
                .first_line_of(text)
                .map(|line| format!("key {:?} is given twice; the first is in line {line}", excerpt(text))),
        };
        let keep = message.is_none();
        let text = text.unwrap_or_default();
        if let Some(Parts::Map { key, seen, .. }) = self.stack.last_mut().map(|frame| &mut frame.parts) {
            if keep {
                seen.insert(text.clone(), mark.line);
            }
            *key = Some(Key { text, mark, keep });
        }
        match message {
            Some(_) if template => {
                self.error_with_hint(mark, "Go templates are not supported", TEMPLATE_HINT);
            }
            Some(message) => self.error(mark, message),
            None => {}
        }
    }

    fn first_line_of(&self, key: &str) -> Option<u32> {
        match &self.stack.last()?.parts {
            Parts::Map { seen, .. } => seen.get(key).copied(),
            Parts::List(_) => None,
        }
    }

    /// Resolves `<<`: what the map itself says goes before what it takes over.
    fn merge(&mut self, entries: Vec<Entry>) -> Vec<Entry> {
        if !entries.iter().any(|entry| &*entry.key == "<<") {
            return entries;
        }
        let (merges, mut own): (Vec<_>, Vec<_>) = entries.into_iter().partition(|entry| &*entry.key == "<<");
        for merge in merges {
            let sources = match merge.value.value {
                Value::List(items) => items,
                Value::Scalar(_) | Value::Map(_) => vec![merge.value],
            };
            for source in sources {
                match source.value {
                    Value::Map(entries) => {
                        for entry in entries {
                            if !own.iter().any(|known| known.key == entry.key) {
                                own.push(entry);
                            }
                        }
                    }
                    Value::Scalar(_) | Value::List(_) => {
                        self.error(merge.mark, "\"<<\" takes a map or a list of maps");
                    }
                }
            }
        }
        own
    }

    fn syntax_error(&mut self, kind: &ErrorKind, marker: Marker) {
        let mark = Mark { line: number(marker.line().max(1)), column: number(marker.col() + 1), width: 1 };
        if *kind == ErrorKind::RecursionLimitExceeded {
            return self.too_deep(mark);
        }
        if let Some(line) = template_line(self.text, mark.line as usize) {
            let mark = Mark { line: number(line), column: 1, width: 1 };
            return self.error_with_hint(mark, "Go templates are not supported", TEMPLATE_HINT);
        }
        let hint = match kind {
            ErrorKind::TabNotAllowed
            | ErrorKind::TabInBlockIndentation
            | ErrorKind::TabInIndentation
            | ErrorKind::TabAtBlockScalarStart => Some("indent with spaces"),
            ErrorKind::UnclosedQuotedScalar => Some("the quote that opens here is never closed"),
            ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => {
                Some("text with \": \" in it must be in quotes")
            }
            ErrorKind::UnexpectedCharacter { .. } => Some("text that begins with this must be in quotes"),
            _ => None,
        };
        let message = format!("not valid YAML: {kind}");
        match hint {
            Some(hint) => self.error_with_hint(mark, message, hint),
            None => self.error(mark, message),
        }
    }

    fn too_deep(&mut self, mark: Mark) {
        self.error(mark, format!("nested deeper than {MAX_DEPTH} levels"));
    }

    fn error(&mut self, mark: Mark, message: impl Into<String>) {
        let mut problem = Problem::error(&self.path(), message);
        problem.place = Some(mark.place(self.file));
        self.problems.push(problem);
    }

    fn error_with_hint(&mut self, mark: Mark, message: impl Into<String>, hint: &str) {
        let mut problem = Problem::error(&self.path(), message).hint(hint);
        problem.place = Some(mark.place(self.file));
        self.problems.push(problem);
    }

    fn path(&self) -> ConfigPath {
        self.stack.iter().fold(ConfigPath::root(), |path, frame| match &frame.parts {
            Parts::List(items) => path.index(items.len()),
            Parts::Map { key: Some(key), .. } => path.key(&key.text),
            Parts::Map { key: None, .. } => path,
        })
    }

    fn mark(&self, span: &Span) -> Mark {
        let (start, end) = (span.start, span.end);
        let width = if start.line() == end.line() {
            end.col().saturating_sub(start.col())
        } else {
            let rest = start.byte_offset().and_then(|offset| self.text.get(offset..)).unwrap_or("");
            rest.lines().next().unwrap_or("").chars().count()
        };
        Mark {
            line: number(start.line().max(1)),
            column: number(start.col() + 1),
            width: number(width.max(1)),
        }
    }
}

/// What to write instead of a Go template.
pub const TEMPLATE_HINT: &str =
    "write the values out, or take them from ${env:NAME} or ${file:/path} where they are secret";

/// The first line up to the one after `last` that opens a Go template outside of a comment.
fn template_line(text: &str, last: usize) -> Option<usize> {
    text.lines()
        .take(last + 1)
        .enumerate()
        .find(|(_, line)| line.split('#').next().unwrap_or("").contains("{{"))
        .map(|(index, _)| index + 1)
}

/// How many nodes and how many levels.
fn measure(node: &Node) -> (usize, usize) {
    let children: Vec<(usize, usize)> = match &node.value {
        Value::Scalar(_) => return (1, 0),
        Value::List(items) => items.iter().map(measure).collect(),
        Value::Map(entries) => entries.iter().map(|entry| measure(&entry.value)).collect(),
    };
    children.iter().fold((1, 1), |(size, height), (more, deeper)| (size + more, height.max(deeper + 1)))
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Option<Node>, Vec<String>) {
        read_bytes(text.as_bytes())
    }

    fn read_bytes(bytes: &[u8]) -> (Option<Node>, Vec<String>) {
        let mut problems = Problems::new();
        let node = parse(&Arc::new("t.yaml".into()), bytes, &mut problems);
        let lines = problems
            .iter()
            .map(|problem| {
                let place = problem.place.as_ref().expect("has a place");
                format!(
                    "{}:{}+{} [{}] {}",
                    place.line, place.column, place.width, problem.path, problem.message
                )
            })
            .collect();
        (node, lines)
    }

    fn refused(text: &str) -> String {
        let (node, problems) = read(text);
        assert!(node.is_none(), "{text:?} was read");
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.into_iter().next().expect("has one")
    }

    fn good(text: &str) -> Node {
        let (node, problems) = read(text);
        assert_eq!(problems, Vec::<String>::new());
        node.expect("was read")
    }

    fn place(node: &Node, path: &ConfigPath) -> (u32, u32, u32) {
        let (mark, _) = node.locate(path.steps(), Mark::default(), &mut Index::default());
        (mark.line, mark.column, mark.width)
    }

    #[test]
    fn keys_of_large_maps_are_found_as_those_of_small_ones() {
        for count in [INDEXED - 1, INDEXED, 3 * INDEXED] {
            let text: String = (0..count).map(|n| format!("Key{n}: {{ x: {n} }}\n")).collect();
            let node = good(&text);
            let mut index = Index::default();
            for (key, line) in [("Key0", 1), ("Key7", 8), ("key9", 10), ("none", 77)] {
                let path = ConfigPath::root().key(key).key("x");
                let (mark, scalar) =
                    node.locate(path.steps(), Mark { line: 77, column: 1, width: 1 }, &mut index);
                assert_eq!(mark.line, line, "{key} of {count}");
                assert_eq!(scalar.is_some(), key != "none");
            }
        }
    }

    #[test]
    fn an_empty_file_is_an_error_and_no_configuration() {
        for text in ["", "\n\n", "# nothing\n", "---\n", "---\n...\n", "~", "null\n"] {
            assert_eq!(refused(text), "1:1+1 [] file is empty", "{text:?}");
        }
    }

    #[test]
    fn a_file_must_be_a_map() {
        assert_eq!(refused("- a\n- b\n"), "1:1+1 [] expected a map of keys, found a list");
        assert_eq!(refused("hello\n"), "1:1+5 [] expected a map of keys, found \"hello\"");
    }

    #[test]
    fn a_key_given_twice_names_the_line_of_the_first() {
        let (node, problems) = read("http:\n  routers:\n    api: {}\n    web: {}\n    api: {rule: x}\n");
        assert_eq!(problems, ["5:5+3 [http.routers.api] key \"api\" is given twice; the first is in line 3"]);
        let node = node.expect("the rest is read");
        let routers =
            &node.entry("http").and_then(|http| http.value.entry("routers")).expect("is there").value;
        assert_eq!(routers.entries().map(<[Entry]>::len), Some(2));
    }

    #[test]
    fn every_duplicate_is_reported() {
        let (_, problems) = read("a: 1\na: 2\nb: {c: 1, c: 2}\na: 3\n");
        assert_eq!(problems.len(), 3, "{problems:?}");
    }

    #[test]
    fn text_that_is_no_text_is_refused_at_its_byte() {
        let (_, problems) = read_bytes(b"a: 1\nb: \xff\n");
        assert_eq!(problems, ["2:4+1 [] file is not UTF-8"]);
        let (_, problems) = read_bytes(b"a: 1\nb: x\0y\n");
        assert_eq!(problems, ["2:5+1 [] file has a NUL byte"]);
        let (_, problems) = read_bytes(b"\xff\xfea\0:\0");
        assert_eq!(problems, ["1:1+1 [] file is UTF-16, not UTF-8"]);
    }

    #[test]
    fn a_byte_order_mark_is_skipped_and_moves_no_column() {
        let node = good("\u{feff}a: b\n");
        assert_eq!(place(&node, &ConfigPath::of(&["a"])), (1, 4, 1));
    }

    #[test]
    fn a_file_too_large_is_refused_unread() {
        let (_, problems) = read_bytes(&vec![b'#'; MAX_BYTES + 1]);
        assert_eq!(
            problems,
            [format!("1:1+1 [] file is too large: {} bytes, at most 67108864", MAX_BYTES + 1)]
        );
    }

    #[test]
    fn tabs_open_quotes_and_brackets_are_refused_at_their_place() {
        assert!(
            refused("a:\n\tb: 1\n").starts_with("2:2+1 [a] not valid YAML: tab"),
            "{}",
            refused("a:\n\tb: 1\n")
        );
        assert_eq!(refused("a: 1\nb: \"open\n"), "2:4+1 [b] not valid YAML: unclosed quote");
        assert_eq!(refused("a: [1, 2\n"), "1:4+1 [a[1]] not valid YAML: unclosed bracket '['");
        assert!(refused("a: b: c\n").contains("mapping values are not allowed"));
        assert!(refused("a: *nowhere\n").contains("unknown anchor"));
    }

    #[test]
    fn a_second_document_is_refused() {
        assert_eq!(refused("a: 1\n---\nb: 2\n"), "2:1+3 [] there is more than one document in the file");
    }

    #[test]
    fn an_alias_bomb_is_refused_in_no_time() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            text.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        assert!(refused(&text).contains("for more than 100000 values"), "{}", refused(&text));
    }

    #[test]
    fn an_alias_inside_what_it_names_is_refused() {
        assert!(refused("a: &a [*a]\n").contains("must not stand inside"));
    }

    #[test]
    fn deep_nesting_is_refused_however_it_is_made() {
        let flow = format!("a: {}", "[".repeat(5000));
        let maps = format!("a: {}", "{b: ".repeat(5000));
        let block = (0..500).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
        let dashes = format!("a:\n  {}x\n", "- ".repeat(500));
        let mut aliases = "a0: &a0 [x]\n".to_owned();
        for level in 1..100 {
            aliases.push_str(&format!("a{level}: &a{level} [*a{}]\n", level - 1));
        }
        for text in [flow, maps, block, dashes, aliases] {
            assert!(refused(&text).ends_with("nested deeper than 64 levels"), "{}", refused(&text));
        }
    }

    #[test]
    fn merge_keys_take_over_what_the_map_does_not_say_itself() {
        let node =
            good("base: &base {a: 1, b: 2}\nmore: &more {c: 3, a: 9}\nx:\n  <<: [*base, *more]\n  b: 5\n");
        let x = &node.entry("x").expect("is there").value;
        let pairs: Vec<(&str, &str)> = x
            .entries()
            .expect("is a map")
            .iter()
            .map(|entry| match &entry.value.value {
                Value::Scalar(scalar) => (&*entry.key, &*scalar.text),
                _ => (&*entry.key, "?"),
            })
            .collect();
        assert_eq!(pairs, [("b", "5"), ("a", "1"), ("c", "3")]);
    }

    #[test]
    fn a_merge_key_must_be_given_a_map() {
        let (_, problems) = read("a:\n  <<: text\n");
        assert_eq!(problems, ["2:3+2 [a] \"<<\" takes a map or a list of maps"]);
    }

    #[test]
    fn tags_and_keys_that_are_no_text_are_refused() {
        let (_, problems) = read("a: !secret x\n");
        assert_eq!(problems, ["1:12+1 [a] YAML tags such as !secret are not supported"]);
        let (_, problems) = read("? [a, b]\n: c\n");
        assert_eq!(problems, ["1:3+1 [] a key must be text, not a list or a map"]);
    }

    #[test]
    fn a_go_template_is_called_by_its_name() {
        let text =
            "http:\n  routers:\n{{ range $i, $e := until 3 }}\n    r{{ $i }}:\n      rule: x\n{{ end }}\n";
        assert_eq!(refused(text), "3:1+1 [] Go templates are not supported");
    }

    #[test]
    fn places_are_exact_in_characters() {
        let node = good("é: {k: [1, 'x y', \"zz\"]}\nblock: |\n  foo\nempty:\n");
        assert_eq!(place(&node, &ConfigPath::of(&["é"])), (1, 1, 1));
        assert_eq!(place(&node, &ConfigPath::of(&["é", "k"])), (1, 5, 1));
        assert_eq!(place(&node, &ConfigPath::of(&["é", "k"]).index(1)), (1, 12, 5));
        assert_eq!(place(&node, &ConfigPath::of(&["é", "K"]).index(2)), (1, 19, 4));
        assert_eq!(place(&node, &ConfigPath::of(&["empty"])), (4, 1, 5));
        assert_eq!(place(&node, &ConfigPath::of(&["empty", "not", "there"])), (4, 1, 5));
        assert_eq!(place(&node, &ConfigPath::of(&["block"])), (3, 3, 3));
    }

    #[test]
    fn a_literal_scalar_knows_where_its_text_begins() {
        let node = good("a: plain\nb: 'it''s'\nc: \"quoted\"\nd: \"a\\n\"\ne: two\n  lines\n");
        let literal = |key: &str| match &node.entry(key).expect("is there").value.value {
            Value::Scalar(scalar) => scalar.literal,
            _ => None,
        };
        assert_eq!(["a", "b", "c", "d", "e"].map(literal), [Some(0), None, Some(1), None, None]);
    }
}
