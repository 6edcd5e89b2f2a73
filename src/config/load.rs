//! Files to a document: the main file, those that `providers.file` names, one merged whole.
//!
//! A provider file that cannot be read as configuration keeps its last good version (a new one is left out), so that
//! one bad file never holds the others up. What is wrong with the main file, or with any file on a cold start, is
//! for the caller to refuse ([`Loaded::refused`]).
//! Never: watching, compiling, logging.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::document::{DocumentConfig, HttpConfig, OnProblem};
use super::expand::{self, Env, Found};
use super::tls::{self, TlsConfig};
use super::tree::{self, Entry, Index, MAX_BYTES, Mark, Node};
use super::{check, de};
use crate::common::names::{EntryPointName, MiddlewareName, RouterName, ServiceName};
use crate::common::problem::{ConfigPath, Place, Problem, Problems, Severity, Step};

/// Files in `providers.file.directory`, all levels together.
const MAX_FILES: usize = 10_000;

/// Levels of directories below `providers.file.directory`.
const MAX_DIRECTORY_DEPTH: usize = 16;

/// Blocks that stand in the main file only.
const STATIC_BLOCKS: [&str; 15] = [
    "entryPoints",
    "serversTransport",
    "log",
    "accessLog",
    "metrics",
    "admin",
    "api",
    "ping",
    "providers",
    "global",
    "core",
    "onProblem",
    "overload",
    "workers",
    "zone",
];

/// Blocks that stand in any file.
const DYNAMIC_BLOCKS: [&str; 2] = ["http", "tls"];

/// Keys of `http`; each holds items by name.
const HTTP_BLOCKS: [&str; 4] = ["routers", "services", "middlewares", "serversTransports"];

/// Keys of `tls`.
const TLS_BLOCKS: [&str; 3] = ["certificates", "options", "stores"];

/// Texts of files by their shown name, for whoever shows problems.
pub type Texts = HashMap<PathBuf, Arc<[u8]>>;

/// Reads a document again and again, and remembers what was good.
pub struct Loader {
    main: PathBuf,
    env: Env,
    /// In place of what the main file holds on disk.
    text: Option<Arc<[u8]>>,
    good: BTreeMap<PathBuf, Arc<[u8]>>,
    /// A document is in use.
    running: bool,
}

/// What one reading gave.
#[derive(Debug)]
pub struct Loaded {
    /// The document, even where items of it could not be read; absent when the main file is no YAML map.
    pub document: Option<Document>,
    /// Everything that is wrong with the document, places filled in.
    pub problems: Problems,
    /// Provider files that are not in the document as they stand, and why.
    pub stale: Vec<Stale>,
    /// Files and directories whose change may change the document, secret files included.
    pub watch: BTreeSet<PathBuf>,
    /// What was read, for frames around problems.
    pub texts: Texts,
    /// Identifies what the files say: 16 hexadecimal digits, without secrets, so that it may be shown.
    pub hash: String,
    /// Changes with every change of files or secrets; not to be shown.
    pub fingerprint: u64,
    /// Provider files as they went into the document.
    used: BTreeMap<PathBuf, Arc<[u8]>>,
}

/// A provider file that is not in use as it stands.
#[derive(Clone, Debug)]
pub struct Stale {
    /// The file.
    pub file: PathBuf,
    /// What is wrong with it.
    pub problems: Problems,
    /// What is in use in its place.
    pub instead: Instead,
}

/// What is in use in place of a provider file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Instead {
    /// What it said before.
    LastGood,
    /// It was not there before.
    Nothing,
}

/// The document with what is needed to say where each key stands.
#[derive(Debug)]
pub struct Document {
    /// What it says. Items in `broken` are not in it.
    pub config: DocumentConfig,
    /// Items that have an error.
    pub broken: Vec<ConfigPath>,
    /// The main file first.
    sources: Vec<Source>,
    /// Which source an item is from.
    items: HashMap<ConfigPath, usize>,
    /// Which source a certificate is from, and where it stands in the list there.
    certificates: Vec<(usize, usize)>,
    secrets: BTreeSet<String>,
}

#[derive(Debug)]
struct Source {
    /// As shown.
    file: Arc<PathBuf>,
    root: Node,
}

/// What one file says.
struct Part {
    source: Source,
    config: DocumentConfig,
    items: Vec<(ConfigPath, Mark)>,
}

impl Loader {
    /// A loader of `main` and what it names, with the environment of the process.
    pub fn new(main: &Path) -> Self {
        Self::with_env(main, Arc::new(|name| std::env::var(name).ok()))
    }

    /// A loader that looks variables up with `env`.
    pub fn with_env(main: &Path, env: Env) -> Self {
        Self { main: main.to_owned(), env, text: None, good: BTreeMap::new(), running: false }
    }

    /// A loader of a main file that is given instead of read, such as an embedded one; without variables.
    pub fn of_text(shown: &Path, text: &[u8]) -> Self {
        let loader = Self::with_env(shown, Arc::new(|_| None));
        Self { text: Some(text.into()), ..loader }
    }

    /// The main file.
    pub fn main(&self) -> &Path {
        &self.main
    }

    /// Reads everything. Where the errors are all in provider files that were good before, those stay as they
    /// were.
    pub fn load(&self) -> Loaded {
        let loaded = self.load_without(BTreeMap::new());
        match self.fall_back(&loaded, &loaded.problems) {
            Some(other) if loaded.refused() && !other.refused() => other,
            Some(_) | None => loaded,
        }
    }

    /// Remembers the files of a document that came into use.
    pub fn accept(&mut self, loaded: &Loaded) {
        self.good = loaded.used.clone();
        self.running = true;
    }

    /// Reads everything again, with the last good version of every provider file that one of the errors in
    /// `problems` (found by the compiler, places filled in) points into. A file that had none is left out, where a
    /// document without it is in use.
    ///
    /// `None` when that would change nothing: the fault is in the main file, or in files as they were.
    pub fn fall_back(&self, loaded: &Loaded, problems: &Problems) -> Option<Loaded> {
        let mut bad: BTreeMap<PathBuf, Problems> = BTreeMap::new();
        for problem in problems.iter().filter(|problem| problem.severity == Severity::Error) {
            let file = problem.place.as_ref().map(|place| (*place.file).clone())?;
            let used = loaded.used.get(&file)?;
            if !self.running || self.good.get(&file) == Some(used) {
                return None;
            }
            bad.entry(file).or_default().push(problem.clone());
        }
        (!bad.is_empty()).then(|| self.load_without(bad))
    }

    fn load_without(&self, bad: BTreeMap<PathBuf, Problems>) -> Loaded {
        let mut reading = Reading {
            loader: self,
            bad,
            base: self.main.parent().unwrap_or(Path::new("")).to_owned(),
            found: Found::default(),
            loaded: Loaded {
                document: None,
                problems: Problems::new(),
                stale: Vec::new(),
                watch: BTreeSet::from([self.main.clone()]),
                texts: Texts::new(),
                hash: String::new(),
                fingerprint: 0,
                used: BTreeMap::new(),
            },
            digest: Digest::new(),
            drops_items: false,
        };
        reading.run();
        reading.finish()
    }
}

impl Loaded {
    /// Whether the document must not come into use, as far as reading can tell.
    pub fn refused(&self) -> bool {
        self.document.as_ref().is_none_or(|document| document.refuses(&self.problems))
    }
}

impl Document {
    /// Whether these problems refuse the document: any error does, unless `onProblem: dropItem` and it is
    /// about one item or one provider file.
    pub fn refuses(&self, problems: &Problems) -> bool {
        problems.iter().filter(|problem| problem.severity == Severity::Error).any(|problem| {
            let main = self.sources.first().map(|source| &source.file);
            let elsewhere = problem.place.as_ref().is_some_and(|place| Some(&place.file) != main);
            match self.config.on_problem {
                OnProblem::Refuse => true,
                OnProblem::DropItem => item_of(&problem.path).is_none() && !elsewhere,
            }
        })
    }

    /// The place of a key; of the nearest one above it when it is not written.
    pub fn locate(&self, path: &ConfigPath) -> Option<Place> {
        let (source, mark, _) = self.look_up(path, &mut Index::default())?;
        Some(mark.place(&source.file))
    }

    /// What `${env:..}` and `${file:..}` stood for; longest first, so that no secret that holds another is left in
    /// part by who takes them out one by one.
    pub fn secrets(&self) -> Vec<String> {
        let mut secrets: Vec<_> = self.secrets.iter().filter(|secret| !secret.is_empty()).cloned().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }

    /// Fills in places that are missing and takes secrets out of the words.
    pub fn place(&self, problems: &mut Problems) {
        let mut secrets = self.secrets();
        secrets.retain(|secret| secret.len() > 2);
        let mut index = Index::default();
        for problem in problems.iter_mut() {
            hide(&secrets, problem);
            if problem.place.is_some() {
                continue;
            }
            let Some((source, mark, scalar)) = self.look_up(&problem.path, &mut index) else { continue };
            let mut place = mark.place(&source.file);
            if let Some(within) = &problem.within
                && let Some(scalar) = scalar
                && let Some(offset) = scalar.literal
                && let (Some(before), Some(meant)) =
                    (scalar.text.get(..within.start), scalar.text.get(within.clone()))
            {
                place.column += usize::from(offset) + before.chars().count();
                place.width = meant.chars().count().max(1);
            }
            problem.place = Some(place);
        }
    }

    fn look_up<'a>(
        &'a self,
        path: &ConfigPath,
        index: &mut Index<'a>,
    ) -> Option<(&'a Source, Mark, Option<&'a tree::Scalar>)> {
        if let Some((source, own)) = self.own_certificate(path) {
            let (mark, scalar) = source.root.locate(&own, Mark { line: 1, column: 1, width: 1 }, index);
            return Some((source, mark, scalar));
        }
        let number = item_of(path).and_then(|item| self.items.get(&item).copied()).unwrap_or(0);
        let source = self.sources.get(number)?;
        let (mark, scalar) = source.root.locate(path.steps(), Mark { line: 1, column: 1, width: 1 }, index);
        Some((source, mark, scalar))
    }

    /// Certificates of all files are one list; a path into it leads to the list of one file.
    fn own_certificate(&self, path: &ConfigPath) -> Option<(&Source, Vec<Step>)> {
        let [Step::Key(block), Step::Key(list), Step::Index(index), ..] = path.steps() else { return None };
        if &**block != "tls" || &**list != "certificates" {
            return None;
        }
        let (source, own) = *self.certificates.get(*index)?;
        let mut steps = path.steps().to_vec();
        steps[2] = Step::Index(own);
        Some((self.sources.get(source)?, steps))
    }
}

/// Takes secrets out of what is said.
fn hide(secrets: &[String], problem: &mut Problem) {
    for secret in secrets {
        let escaped = format!("{secret:?}");
        let escaped = escaped.trim_matches('"');
        for text in std::iter::once(&mut problem.message).chain(problem.hint.as_mut()) {
            if text.contains(secret.as_str()) || text.contains(escaped) {
                *text = text.replace(secret.as_str(), "***").replace(escaped, "***");
            }
        }
    }
}

/// The item that a path leads into, under its usual spelling: a router, service, middleware, transport, entry
/// point, set of TLS options, store or certificate.
pub fn item_of(path: &ConfigPath) -> Option<ConfigPath> {
    let key = |index: usize| match path.steps().get(index) {
        Some(Step::Key(key)) => Some(&**key),
        Some(Step::Index(_)) | None => None,
    };
    if key(0)?.eq_ignore_ascii_case("entryPoints") {
        return Some(ConfigPath::of(&["entryPoints", key(1)?]));
    }
    if key(0)?.eq_ignore_ascii_case("tls") {
        let kind = key(1)?;
        let kind = TLS_BLOCKS.iter().find(|known| known.eq_ignore_ascii_case(kind))?;
        let block = ConfigPath::of(&["tls", kind]);
        return match path.steps().get(2)? {
            Step::Key(name) => Some(block.key(name)),
            Step::Index(index) => Some(block.index(*index)),
        };
    }
    if !key(0)?.eq_ignore_ascii_case("http") {
        return None;
    }
    let kind = key(1)?;
    let kind = HTTP_BLOCKS.iter().find(|known| known.eq_ignore_ascii_case(kind))?;
    Some(ConfigPath::of(&["http", kind, key(2)?]))
}

struct Reading<'l> {
    loader: &'l Loader,
    bad: BTreeMap<PathBuf, Problems>,
    base: PathBuf,
    found: Found,
    loaded: Loaded,
    digest: Digest,
    /// `onProblem: dropItem`.
    drops_items: bool,
}

impl Reading<'_> {
    fn run(&mut self) {
        let main = self.loader.main.clone();
        let shown = Arc::new(main.clone());
        let mut problems = std::mem::take(&mut self.loaded.problems);
        let given = self.loader.text.clone().map(Ok);
        let part = match given.unwrap_or_else(|| read_file(&main, &shown)) {
            Ok(bytes) => {
                self.digest.add(&main, &bytes);
                self.loaded.texts.insert(main.clone(), bytes.clone());
                self.part(&shown, &bytes, FileKind::Main, &mut problems)
            }
            Err(problem) => {
                problems.push(*problem);
                None
            }
        };
        self.loaded.problems = problems;
        let Some(part) = part else { return };
        let mut document = Document {
            config: DocumentConfig::default(),
            broken: Vec::new(),
            sources: Vec::new(),
            items: HashMap::new(),
            certificates: Vec::new(),
            secrets: BTreeSet::new(),
        };
        let providers = part.config.providers.clone();
        self.drops_items = part.config.on_problem == OnProblem::DropItem;
        document.config =
            DocumentConfig { http: HttpConfig::default(), tls: TlsConfig::default(), ..part.config.clone() };
        self.merge(&mut document, part);
        if let Some(file) = &providers.file {
            let mut files = BTreeSet::new();
            if let Some(name) = file.filename.as_deref().filter(|name| !name.is_empty()) {
                files.insert(self.base.join(name));
            }
            if let Some(name) = file.directory.as_deref().filter(|name| !name.is_empty()) {
                let directory = self.base.join(name);
                self.list(&directory, &mut files);
                // What is gone between the listing and now was removed; when the directory itself is
                // gone, that is for `list` to judge. A link that leads nowhere is there, and broken.
                if directory.is_dir() {
                    files.retain(|file| {
                        !file.starts_with(&directory) || std::fs::symlink_metadata(file).is_ok()
                    });
                }
            }
            let main = std::fs::canonicalize(&self.loader.main).ok();
            files.retain(|file| main.is_none() || std::fs::canonicalize(file).ok() != main);
            if file.watch {
                self.loaded.watch.extend(files.iter().cloned());
            } else {
                self.loaded.watch = BTreeSet::from([self.loader.main.clone()]);
            }
            for file in files {
                if let Some(part) = self.provider_file(&file) {
                    self.merge(&mut document, part);
                }
            }
        }
        // A certificate that changes is a document that changes.
        self.found.files.extend(tls::resolve(&mut document.config, &self.base));
        check::check(&document.config, &mut self.loaded.problems);
        document.secrets = std::mem::take(&mut self.found.secrets);
        document.place(&mut self.loaded.problems);
        for stale in &mut self.loaded.stale {
            document.place(&mut stale.problems);
        }
        drop_broken(&mut document, &self.loaded.problems);
        self.loaded.document = Some(document);
    }

    fn finish(mut self) -> Loaded {
        self.loaded.hash = format!("{:016x}", self.digest.value());
        for file in &self.found.files {
            if let Ok(bytes) = read_file(file, &Arc::new(file.clone())) {
                self.digest.add(file, &bytes);
            }
        }
        if let Some(document) = &self.loaded.document {
            for secret in &document.secrets {
                self.digest.add(Path::new(""), secret.as_bytes());
            }
        }
        self.loaded.fingerprint = self.digest.value();
        self.loaded.watch.append(&mut self.found.files);
        self.loaded
    }

    /// One provider file: as it is, or in its last good version.
    fn provider_file(&mut self, file: &Path) -> Option<Part> {
        let shown = Arc::new(file.to_owned());
        let mut problems = Problems::new();
        let part = match self.bad.remove(file) {
            Some(known) => {
                problems = known;
                if let Ok(bytes) = read_file(file, &shown) {
                    self.loaded.texts.insert(file.to_owned(), bytes);
                }
                None
            }
            None => match read_file(file, &shown) {
                Ok(bytes) => {
                    self.loaded.texts.insert(file.to_owned(), bytes.clone());
                    let part = self.part(&shown, &bytes, FileKind::Provider, &mut problems);
                    part.map(|part| (part, bytes))
                }
                Err(problem) => {
                    problems.push(*problem);
                    None
                }
            },
        };
        if !problems.has_errors()
            && let Some((part, bytes)) = part
        {
            self.take_problems(problems);
            self.digest.add(file, &bytes);
            self.loaded.used.insert(file.to_owned(), bytes);
            return Some(part);
        }
        let Some(good) = self.loader.good.get(file).cloned() else {
            if self.loader.running && (!self.drops_items || part.is_none()) {
                self.loaded.stale.push(Stale { file: file.to_owned(), problems, instead: Instead::Nothing });
                return None;
            }
            self.take_problems(problems);
            return part.map(|(part, bytes)| {
                self.digest.add(file, &bytes);
                self.loaded.used.insert(file.to_owned(), bytes);
                part
            });
        };
        self.loaded.stale.push(Stale { file: file.to_owned(), problems, instead: Instead::LastGood });
        let shown = PathBuf::from(format!("{} (last good version)", file.display()));
        self.loaded.texts.insert(shown.clone(), good.clone());
        let mut problems = Problems::new();
        let part = self.part(&Arc::new(shown), &good, FileKind::Provider, &mut problems);
        self.take_problems(problems);
        self.digest.add(file, &good);
        self.loaded.used.insert(file.to_owned(), good);
        part
    }

    fn take_problems(&mut self, problems: Problems) {
        for problem in problems.into_vec() {
            self.loaded.problems.push(problem);
        }
    }

    /// Adds the YAML files under a directory. One that cannot be listed keeps the files that it had.
    fn list(&mut self, directory: &Path, files: &mut BTreeSet<PathBuf>) {
        let mut problems = Problems::new();
        self.list_level(directory, files, 0, &mut problems);
        if !problems.has_errors() {
            return;
        }
        let known = self.loader.good.keys().filter(|file| file.starts_with(directory));
        let known: BTreeSet<PathBuf> = known.cloned().collect();
        if known.is_empty() {
            self.take_problems(problems);
        } else {
            files.extend(known);
            self.loaded.stale.push(Stale {
                file: directory.to_owned(),
                problems,
                instead: Instead::LastGood,
            });
        }
    }

    fn list_level(
        &mut self,
        directory: &Path,
        files: &mut BTreeSet<PathBuf>,
        depth: usize,
        problems: &mut Problems,
    ) {
        self.loaded.watch.insert(directory.to_owned());
        let problem =
            |message: String| Problem::error(&ConfigPath::of(&["providers", "file", "directory"]), message);
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            // It was there a moment ago, and its files go with it.
            Err(error) if depth > 0 && error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => {
                let message = format!("cannot read directory {}: {error}", directory.display());
                problems.push(problem(message));
                return;
            }
        };
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            // `..data` and its like, by which Kubernetes swaps a ConfigMap, and editors' files.
            if path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b".")) {
                continue;
            }
            let is_link = path.is_symlink();
            if path.is_dir() {
                // Links to directories could lead in circles.
                if !is_link && depth < MAX_DIRECTORY_DEPTH {
                    self.list_level(&path, files, depth + 1, problems);
                }
                continue;
            }
            let extension = path.extension().map(|extension| extension.to_ascii_lowercase());
            match extension.as_ref().and_then(|extension| extension.to_str()) {
                Some("yml" | "yaml") if files.len() >= MAX_FILES => {
                    let message = format!("{} has more than {MAX_FILES} files", directory.display());
                    problems.push(problem(message));
                    return;
                }
                Some("yml" | "yaml") => {
                    files.insert(path);
                }
                Some("toml") => {
                    files.insert(path);
                }
                Some(_) | None => {}
            }
        }
    }

    /// Reads what one file says.
    fn part(
        &mut self,
        file: &Arc<PathBuf>,
        bytes: &[u8],
        kind: FileKind,
        problems: &mut Problems,
    ) -> Option<Part> {
        let mut root = tree::parse(file, bytes, problems)?;
        expand::expand(&mut root, file, &self.base, &self.loader.env, &mut self.found, problems);
        let mut part = Part {
            source: Source { file: file.clone(), root },
            config: DocumentConfig::default(),
            items: Vec::new(),
        };
        let known: Vec<&'static str> = match kind {
            FileKind::Main => DYNAMIC_BLOCKS.into_iter().chain(STATIC_BLOCKS).collect(),
            FileKind::Provider => DYNAMIC_BLOCKS.to_vec(),
        };
        let elsewhere: &[&str] = match kind {
            FileKind::Main => &[],
            FileKind::Provider => &STATIC_BLOCKS,
        };
        let own = Mark { line: 1, column: 1, width: 1 };
        let Part { source, config, items } = &mut part;
        let mut blocks = Blocks { file, items, problems };
        let entries =
            de::entries(&source.root, &known, elsewhere, &ConfigPath::root(), own, file, blocks.problems);
        for (key, entry) in entries {
            match key {
                "http" => blocks.http(entry, &mut config.http),
                "tls" => blocks.tls(entry, &mut config.tls),
                "entryPoints" => {
                    config.entry_points = blocks.items(entry, &["entryPoints"], EntryPointName::new);
                }
                "serversTransport" => blocks.block(key, entry, &mut config.servers_transport),
                "log" => blocks.block(key, entry, &mut config.log),
                "accessLog" => blocks.block(key, entry, &mut config.access_log),
                "metrics" => blocks.block(key, entry, &mut config.metrics),
                "admin" => blocks.block(key, entry, &mut config.admin),
                "api" => blocks.block(key, entry, &mut config.api),
                "ping" => blocks.block(key, entry, &mut config.ping),
                "providers" => blocks.block(key, entry, &mut config.providers),
                "global" => blocks.block(key, entry, &mut config.global),
                "core" => blocks.block(key, entry, &mut config.core),
                "onProblem" => blocks.block(key, entry, &mut config.on_problem),
                "overload" => blocks.block(key, entry, &mut config.overload),
                "workers" => blocks.block(key, entry, &mut config.workers),
                "zone" => blocks.block(key, entry, &mut config.zone),
                other => {
                    let path = ConfigPath::root().key(other);
                    blocks.problems.push(Problem::error(&path, format!("unknown key {other:?}")));
                }
            }
        }
        Some(part)
    }

    /// Adds the items of a file; a name that is there already is a problem.
    fn merge(&mut self, document: &mut Document, part: Part) {
        let Part { source, config, items, .. } = part;
        let index = document.sources.len();
        let mut known = Index::default();
        for (path, mark) in items {
            let Some(first) = document.items.get(&path).copied() else {
                document.items.insert(path, index);
                continue;
            };
            let at = document.sources.get(first).map(|first| {
                let (mark, _) = first.root.locate(path.steps(), Mark::default(), &mut known);
                format!("{}:{}", first.file.display(), mark.line)
            });
            let name = match path.steps().last() {
                Some(Step::Key(name)) => name.to_string(),
                Some(Step::Index(_)) | None => String::new(),
            };
            let message =
                format!("{name:?} is defined twice; the first is at {}", at.as_deref().unwrap_or("?"));
            let mut problem = Problem::error(&path, message);
            problem.place = Some(mark.place(&source.file));
            self.loaded.problems.push(problem);
        }
        let http = &mut document.config.http;
        add(&mut http.routers, config.http.routers);
        add(&mut http.services, config.http.services);
        add(&mut http.middlewares, config.http.middlewares);
        add(&mut http.servers_transports, config.http.servers_transports);
        add(&mut document.config.tls.options, config.tls.options);
        add(&mut document.config.tls.stores, config.tls.stores);
        let certificates = config.tls.certificates;
        document.certificates.extend((0..certificates.len()).map(|own| (index, own)));
        document.config.tls.certificates.extend(certificates);
        document.sources.push(source);
    }
}

#[derive(Clone, Copy)]
enum FileKind {
    Main,
    Provider,
}

/// Keeps what is there: the second of two with one name is reported and dropped.
fn add<K: Ord, V>(to: &mut BTreeMap<K, V>, from: BTreeMap<K, V>) {
    for (key, value) in from {
        to.entry(key).or_insert(value);
    }
}

/// Reads the blocks of one file.
struct Blocks<'b> {
    file: &'b Arc<PathBuf>,
    items: &'b mut Vec<(ConfigPath, Mark)>,
    problems: &'b mut Problems,
}

impl Blocks<'_> {
    /// Leaves the default where the block cannot be read.
    fn block<T: for<'de> Deserialize<'de>>(&mut self, key: &str, entry: &Entry, to: &mut T) {
        let path = ConfigPath::root().key(key);
        if let Some(value) = de::read(&entry.value, &path, entry.mark, self.file, self.problems) {
            *to = value;
        }
    }

    fn http(&mut self, entry: &Entry, http: &mut HttpConfig) {
        let path = ConfigPath::of(&["http"]);
        let entries =
            de::entries(&entry.value, &HTTP_BLOCKS, &[], &path, entry.mark, self.file, self.problems);
        for (key, entry) in entries {
            match key {
                "routers" => http.routers = self.items(entry, &["http", key], RouterName::new),
                "services" => http.services = self.items(entry, &["http", key], ServiceName::new),
                "middlewares" => http.middlewares = self.items(entry, &["http", key], MiddlewareName::new),
                _ => http.servers_transports = self.items(entry, &["http", key], str::to_owned),
            }
        }
    }

    fn tls(&mut self, entry: &Entry, tls: &mut TlsConfig) {
        let path = ConfigPath::of(&["tls"]);
        let entries =
            de::entries(&entry.value, &TLS_BLOCKS, &[], &path, entry.mark, self.file, self.problems);
        for (key, entry) in entries {
            match key {
                "options" => tls.options = self.items(entry, &["tls", key], str::to_owned),
                "stores" => tls.stores = self.items(entry, &["tls", key], str::to_owned),
                _ => {
                    let path = path.key(key);
                    if let Some(list) = de::read(&entry.value, &path, entry.mark, self.file, self.problems) {
                        tls.certificates = list;
                    }
                }
            }
        }
    }

    /// Reads each item on its own, so that one that fails does not hide the others' mistakes.
    fn items<N: Ord, T: for<'de> Deserialize<'de>>(
        &mut self,
        block: &Entry,
        keys: &[&str],
        name: impl Fn(&str) -> N,
    ) -> BTreeMap<N, T> {
        let path = ConfigPath::of(keys);
        let Some(entries) = block.value.entries() else {
            let message = format!("expected a map of names, found {}", block.value.kind());
            let mut problem = Problem::error(&path, message);
            problem.place = Some(block.mark.place(self.file));
            self.problems.push(problem);
            return BTreeMap::new();
        };
        let mut items = BTreeMap::new();
        for entry in entries {
            let path = path.key(&entry.key);
            if entry.key.is_empty() || entry.key.contains('@') {
                let mut problem = Problem::error(&path, "a name must not be empty, nor have \"@\" in it");
                problem.place = Some(entry.mark.place(self.file));
                self.problems.push(problem);
            }
            self.items.push((path.clone(), entry.mark));
            if let Some(item) = de::read(&entry.value, &path, entry.mark, self.file, self.problems) {
                items.insert(name(&entry.key), item);
            }
        }
        items
    }
}

/// Takes items with an error out of the configuration and lists them.
fn drop_broken(document: &mut Document, problems: &Problems) {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
    let mut broken: Vec<ConfigPath> = errors.filter_map(|problem| item_of(&problem.path)).collect();
    broken.sort_by_cached_key(ConfigPath::to_string);
    broken.dedup();
    let config = &mut document.config;
    for path in &broken {
        match path.steps() {
            [_, Step::Key(name)] => {
                config.entry_points.remove(&**name);
            }
            [_, Step::Key(kind), Step::Key(name)] => match &**kind {
                "options" => drop(config.tls.options.remove(&**name)),
                "stores" => drop(config.tls.stores.remove(&**name)),
                "routers" => drop(config.http.routers.remove(&**name)),
                "services" => drop(config.http.services.remove(&**name)),
                "middlewares" => drop(config.http.middlewares.remove(&**name)),
                _ => drop(config.http.servers_transports.remove(&**name)),
            },
            _ => {}
        }
    }
    document.broken = broken;
}

/// The bytes of a file, or why there are none.
fn read_file(path: &Path, shown: &Arc<PathBuf>) -> Result<Arc<[u8]>, Box<Problem>> {
    let problem = |message: String, hint: Option<&str>| {
        let mut problem = Problem::error(&ConfigPath::root(), message);
        problem.place = Some(whole(shown));
        problem.hint = hint.map(str::to_owned);
        Box::new(problem)
    };
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml")) {
        return Err(problem("TOML is not supported".to_owned(), Some("write it as YAML")));
    }
    let bad = |error: std::io::Error| problem(format!("cannot read file: {error}"), None);
    // Opening a pipe would wait for a writer.
    if !std::fs::metadata(path).map_err(bad)?.is_file() {
        return Err(problem("cannot read file: it is not a regular file".to_owned(), None));
    }
    let mut bytes = Vec::new();
    let limit = MAX_BYTES as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(bad)?;
    Ok(bytes.into())
}

/// A file as a whole.
fn whole(file: &Arc<PathBuf>) -> Place {
    Place { file: file.clone(), line: 1, column: 1, width: 1 }
}

/// FNV-1a with 64 bits: the same on every machine and in every version.
struct Digest(u64);

impl Digest {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn add(&mut self, file: &Path, bytes: &[u8]) {
        let name = file.as_os_str().as_encoded_bytes();
        // Lengths first, so that no two sequences of files look alike.
        for part in [&(name.len() as u64).to_le_bytes(), name, &(bytes.len() as u64).to_le_bytes(), bytes] {
            for byte in part {
                self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    fn value(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::config::render::{self, Colour};

    /// A directory with files and a loader of `main.yaml` in it.
    struct Case {
        dir: TempDir,
        loader: Loader,
    }

    fn case(files: &[(&str, &str)]) -> Case {
        let dir = tempfile::tempdir().expect("a directory");
        let env: Env = Arc::new(|name| (name == "PASSWORD").then(|| "hunter2".to_owned()));
        let loader = Loader::with_env(&dir.path().join("main.yaml"), env);
        let case = Case { dir, loader };
        for (name, text) in files {
            case.write(name, text);
        }
        case
    }

    impl Case {
        fn write(&self, name: &str, text: &str) {
            let path = self.dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("has one")).expect("made");
            std::fs::write(path, text).expect("written");
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn shown(&self, problems: &Problems, texts: &Texts) -> String {
            let dir = format!("{}/", self.dir.path().display());
            render::text(problems, texts, Colour::Off).replace(&dir, "")
        }

        fn report(&self) -> String {
            let loaded = self.loader.load();
            self.shown(&loaded.problems, &loaded.texts)
        }

        fn good(&self) -> Loaded {
            let loaded = self.loader.load();
            assert!(!loaded.refused(), "{}", self.shown(&loaded.problems, &loaded.texts));
            loaded
        }
    }

    fn report(text: &str) -> String {
        case(&[("main.yaml", text)]).report()
    }

    fn routers(loaded: &Loaded) -> Vec<&str> {
        let document = loaded.document.as_ref().expect("a document");
        document.config.http.routers.keys().map(RouterName::as_str).collect()
    }

    const ROUTER: &str = "{rule: Host(`a.test`), service: s}";

    fn with_router(name: &str) -> String {
        format!("http: {{routers: {{{name}: {ROUTER}}}}}\n")
    }

    const DIRECTORY: &str = "providers: {file: {directory: dyn}}\n";

    #[test]
    fn problems_show_the_lines_the_key_and_a_hint() {
        let text = "http:\n  routers:\n    api:\n      rule: Host(`a.test`)\n      servcie: api\n      service: api\n";
        assert_eq!(
            report(text),
            "error: unknown key \"servcie\"\n --> main.yaml:5:7\n  |\n3 |     api:\n4 |       rule: Host(`a.test`)\n5 |       servcie: api\n  |       ^^^^^^^\n  = at: http.routers.api.servcie\n  = help: did you mean \"service\"?\n\n"
        );
    }

    #[test]
    fn one_run_reports_a_problem_of_every_item() {
        let text = "http:\n  routers:\n    a: {rule: x}\n    b: {service: x}\n    c: text\n  services:\n    d: {loadBalancer: {servers: [{url: 'ftp://a'}]}}\n    e: {}\n  middlewares:\n    f: {nope: {}}\n  serversTransports:\n    g: {maxIdleConnsPerHost: many}\nentryPoints:\n  h: {address: x}\nlog: {level: LOUD}\nmetrics: [1]\nworkers: 2000\ntracing: {}\nping: {terminatingStatusCode: 42}\n";
        let loaded = case(&[("main.yaml", text)]).loader.load();
        let lines: Vec<String> =
            loaded.problems.iter().map(|problem| format!("{} {}", problem.path, problem.message)).collect();
        for expected in [
            "http.routers.a.service \"service\" is missing",
            "http.routers.b.rule \"rule\" is missing",
            "http.routers.c expected a map of keys, found \"text\"",
            "http.services.d.loadBalancer.servers[0].url server url must begin with http://, https:// or h2c://",
            "http.services.e service has no kind",
            "http.middlewares.f.nope unknown key \"nope\"",
            "http.serversTransports.g.maxIdleConnsPerHost expected a whole number, found \"many\"",
            "log.level expected TRACE, DEBUG, INFO, WARN, ERROR, FATAL or PANIC, found \"LOUD\"",
            "metrics expected a map of keys, found a list",
            "workers must be at most 1024",
            "tracing tracing is not supported yet",
            "ping.terminatingStatusCode must be a status from 100 to 599",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {lines:#?}");
        }
        assert!(lines.iter().any(|line| line.starts_with("entryPoints.h.address bad address")), "{lines:#?}");
        assert!(loaded.problems.iter().all(|problem| problem.place.is_some()));
        assert!(loaded.refused());
    }

    #[test]
    fn a_narrowed_problem_marks_only_what_is_meant() {
        let text = "http:\n  services:\n    é: {loadBalancer: {servers: [{url: \"ftp://a\"}]}}\n";
        assert!(report(text).contains("3:41\n"), "{}", report(text));
        assert!(
            report(text).contains("|                                         ^^^^^^\n"),
            "{}",
            report(text)
        );
    }

    #[test]
    fn a_file_that_is_empty_or_away_is_a_problem_and_no_document() {
        assert_eq!(report(""), "error: file is empty\n --> main.yaml:1:1\n\n");
        let away = case(&[]);
        assert_eq!(
            away.report(),
            "error: cannot read file: No such file or directory (os error 2)\n --> main.yaml:1:1\n\n"
        );
        assert!(away.loader.load().document.is_none());
        assert!(away.loader.load().refused());
    }

    #[test]
    fn provider_files_are_merged_into_one_document() {
        let case = case(&[
            (
                "main.yaml",
                "providers: {file: {filename: one.yaml, directory: dyn}}\nhttp: {routers: {m: {rule: r, service: s}}}\n",
            ),
            ("one.yaml", &with_router("one")),
            ("dyn/a.yaml", &with_router("a")),
            ("dyn/deep/b.YML", &with_router("b")),
            ("dyn/..data/c.yaml", &with_router("c")),
            ("dyn/notes.txt", "not read"),
        ]);
        let loaded = case.good();
        assert_eq!(routers(&loaded), ["a", "b", "m", "one"]);
        for watched in ["main.yaml", "one.yaml", "dyn", "dyn/deep", "dyn/a.yaml", "dyn/deep/b.YML"] {
            assert!(loaded.watch.contains(&case.path(watched)), "{watched}");
        }
        let document = loaded.document.expect("a document");
        let place = document.locate(&ConfigPath::of(&["http", "routers", "b", "rule"])).expect("is there");
        assert_eq!((&*place.file, place.line, place.column), (&case.path("dyn/deep/b.YML"), 1, 28));
    }

    #[test]
    fn files_that_are_not_watched_are_read_all_the_same() {
        let case = case(&[
            ("main.yaml", "providers: {file: {directory: dyn, watch: false}}\n"),
            ("dyn/a.yaml", &with_router("a")),
        ]);
        let loaded = case.good();
        assert_eq!(routers(&loaded), ["a"]);
        assert_eq!(loaded.watch.iter().collect::<Vec<_>>(), [&case.path("main.yaml")]);
    }

    #[test]
    fn an_error_that_only_checking_finds_leaves_a_provider_file_at_its_last_good_version_too() {
        let mut case = case(&[("main.yaml", DIRECTORY), ("dyn/a.yaml", &with_router("a"))]);
        let first = case.good();
        case.loader.accept(&first);
        case.write("dyn/a.yaml", "http: {services: {s: {loadBalancer: {servers: [{url: 'ftp://a'}]}}}}\n");
        let second = case.good();
        assert_eq!(routers(&second), ["a"]);
        assert_eq!(second.stale.len(), 1);
    }

    #[test]
    fn the_main_file_inside_the_directory_is_not_read_twice() {
        let text = format!("providers: {{file: {{directory: .}}}}\n{}", with_router("a"));
        assert_eq!(routers(&case(&[("main.yaml", &text)]).good()), ["a"]);
    }

    #[test]
    fn a_name_defined_twice_names_both_places() {
        let case = case(&[
            ("main.yaml", DIRECTORY),
            ("dyn/a.yaml", &with_router("a")),
            ("dyn/b.yaml", &with_router("a")),
        ]);
        let report = case.report();
        assert!(
            report.starts_with(
                "error: \"a\" is defined twice; the first is at dyn/a.yaml:1\n --> dyn/b.yaml:1:18\n"
            ),
            "{report}"
        );
    }

    #[test]
    fn a_provider_file_has_dynamic_keys_only() {
        let case = case(&[
            ("main.yaml", DIRECTORY),
            ("dyn/a.yaml", "entryPoints: {}\ntcp: {routers: {}}\nudp: {}\nhtpp: {}\n"),
        ]);
        let loaded = case.loader.load();
        let lines: Vec<&str> = loaded.problems.iter().map(|problem| &*problem.message).collect();
        assert_eq!(
            lines,
            ["entryPoints belongs in the main file", "tcp is not supported yet", "unknown key \"htpp\""]
        );
    }

    #[test]
    fn toml_and_templates_are_refused_by_name() {
        let case = case(&[
            ("main.yaml", DIRECTORY),
            ("dyn/a.toml", "[http]"),
            ("dyn/b.yaml", "http:\n  routers:\n    {{ range . }}\n"),
            ("dyn/c.yaml", "http: {routers: {c: {rule: 'Host(`{{ env \"H\" }}`)', service: s}}}\n"),
        ]);
        let report = case.report();
        assert!(report.contains("error: TOML is not supported\n --> dyn/a.toml:1:1\n"), "{report}");
        assert!(report.contains("error: Go templates are not supported\n --> dyn/b.yaml:3:"), "{report}");
        assert!(report.contains("error: Go templates are not supported\n --> dyn/c.yaml:1:28\n"), "{report}");
    }

    #[test]
    fn a_bad_provider_file_keeps_its_last_good_version_and_holds_nobody_up() {
        let mut case = case(&[
            ("main.yaml", DIRECTORY),
            ("dyn/a.yaml", &with_router("a")),
            ("dyn/b.yaml", &with_router("b")),
        ]);
        let first = case.good();
        case.loader.accept(&first);

        case.write("dyn/a.yaml", "http: {routers: {a: {rool: x}}}\n");
        case.write("dyn/b.yaml", &with_router("b2"));

        let second = case.good();
        assert_eq!(routers(&second), ["a", "b2"]);
        assert_eq!(second.stale.len(), 1);
        assert_eq!(second.stale[0].file, case.path("dyn/a.yaml"));
        let why = case.shown(&second.stale[0].problems, &second.texts);
        assert!(why.contains(" --> dyn/a.yaml:1:22\n  |\n1 | http: {routers: {a: {rool: x}}}\n"), "{why}");

        case.write("dyn/a.yaml", "");
        assert_eq!(routers(&case.good()), ["a", "b2"]);
        std::fs::remove_file(case.path("dyn/a.yaml")).expect("removed");
        assert_eq!(routers(&case.good()), ["b2"]);
    }

    #[test]
    fn a_new_provider_file_that_is_bad_is_left_out_and_holds_nobody_up() {
        let mut case = case(&[("main.yaml", DIRECTORY), ("dyn/b.yaml", &with_router("b"))]);
        let first = case.good();
        case.loader.accept(&first);
        for bad in ["http: [", "http: {routers: {a: {rool: x}}}\n"] {
            case.write("dyn/a.yaml", bad);
            case.write("dyn/b.yaml", &with_router("b2"));
            let second = case.good();
            assert_eq!(routers(&second), ["b2"], "{bad}");
            assert_eq!(second.stale.len(), 1, "{bad}");
            assert_eq!(second.stale[0].file, case.path("dyn/a.yaml"), "{bad}");
            assert_eq!(second.stale[0].instead, Instead::Nothing, "{bad}");
        }
        case.write("dyn/a.yaml", &with_router("a"));
        assert_eq!(routers(&case.good()), ["a", "b2"]);
    }

    #[test]
    fn on_a_cold_start_a_bad_provider_file_refuses_the_document() {
        let case =
            case(&[("main.yaml", DIRECTORY), ("dyn/a.yaml", "http: ["), ("dyn/b.yaml", &with_router("b"))]);
        let loaded = case.loader.load();
        assert!(loaded.refused());
        assert!(loaded.stale.is_empty());
    }

    #[test]
    fn a_named_file_or_a_directory_that_went_away_keeps_its_last_good_version() {
        let mut case = case(&[
            ("main.yaml", "providers: {file: {filename: one.yaml, directory: dyn}}\n"),
            ("one.yaml", &with_router("one")),
            ("dyn/a.yaml", &with_router("a")),
        ]);
        let first = case.good();
        case.loader.accept(&first);
        std::fs::remove_file(case.path("one.yaml")).expect("removed");
        std::fs::remove_dir_all(case.path("dyn")).expect("removed");
        let second = case.good();
        assert_eq!(routers(&second), ["a", "one"]);
        assert_eq!(second.stale.len(), 3, "{:?}", second.stale);
    }

    #[test]
    fn a_compile_error_in_a_provider_file_falls_back_to_its_last_good_version() {
        let mut case = case(&[
            ("main.yaml", DIRECTORY),
            ("dyn/a.yaml", &with_router("a")),
            ("dyn/b.yaml", &with_router("b")),
        ]);
        let first = case.good();
        case.loader.accept(&first);
        case.write("dyn/a.yaml", &with_router("broken"));
        let second = case.good();
        let mut found = Problems::new();
        found.error(&ConfigPath::of(&["http", "routers", "broken", "rule"]), "bad rule");
        second.document.as_ref().expect("a document").place(&mut found);

        let third = case.loader.fall_back(&second, &found).expect("there is another version");
        assert!(!third.refused());
        assert_eq!(routers(&third), ["a", "b"]);
        assert_eq!(third.stale.len(), 1);
        assert!(case.loader.fall_back(&third, &found).is_none());
    }

    #[test]
    fn drop_item_goes_on_without_what_is_broken() {
        let text = format!(
            "onProblem: dropItem\n{}",
            "http: {routers: {a: {rule: x}, b: {rule: Host(`b`), service: s}}}\n"
        );
        let loaded = case(&[("main.yaml", &text)]).loader.load();
        assert!(!loaded.refused());
        assert_eq!(routers(&loaded), ["b"]);
        let document = loaded.document.expect("a document");
        assert_eq!(document.broken, [ConfigPath::of(&["http", "routers", "a"])]);

        let loaded = case(&[("main.yaml", "onProblem: dropItem\nlog: {level: LOUD}\n")]).loader.load();
        assert!(loaded.refused(), "a bad static block is no item");
    }

    #[test]
    fn a_secret_is_used_and_never_shown() {
        let case = case(&[(
            "main.yaml",
            "log: {filePath: '${env:PASSWORD}', level: '${env:PASSWORD}'}\nworkers: '${env:PASSWORD}'\naccessLog: {filePath: '${env:PASSWORD}'}\nproviders: {providersThrottleDuration: '${env:PASSWORD}'}\nhttp: {routers: {a: {rule: '${env:PASSWORD}', service: s}}}\n",
        )]);
        let loaded = case.loader.load();
        let shown = case.shown(&loaded.problems, &loaded.texts);
        assert!(!shown.contains("hunter2"), "{shown}");
        assert_eq!(loaded.problems.len(), 3, "{shown}");
        let document = loaded.document.expect("a document");
        let access_log = document.config.access_log.as_ref().expect("is on");
        assert_eq!(access_log.file_path.as_deref(), Some("hunter2"));
        let mut found = Problems::new();
        found.error(&ConfigPath::of(&["http", "routers", "a", "rule"]), "bad rule \"hunter2\"");
        document.place(&mut found);
        assert_eq!(found.iter().next().map(|problem| &*problem.message), Some("bad rule \"***\""));
    }

    #[test]
    fn the_hash_follows_files_and_the_fingerprint_secrets_too() {
        let case = case(&[("main.yaml", "log: {filePath: '${file:secret}'}\n"), ("secret", "one")]);
        let first = case.good();
        assert_eq!(first.hash.len(), 16);
        assert_eq!(case.good().fingerprint, first.fingerprint);
        assert!(first.watch.contains(&case.path("secret")));
        case.write("secret", "two");
        let second = case.good();
        assert_eq!(second.hash, first.hash);
        assert_ne!(second.fingerprint, first.fingerprint);
        case.write("main.yaml", "log: {filePath: 'x${file:secret}'}\n");
        assert_ne!(case.good().hash, first.hash);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_reading_panic(text in "[a-z:{}\\[\\],&*<>!|'\"#\\-\\t\\n \\$~0-9é]{0,200}") {
            let loaded = Loader::of_text(Path::new("t.yaml"), text.as_bytes()).load();
            let shown = render::text(&loaded.problems, &loaded.texts, Colour::Off);
            proptest::prop_assert!(loaded.document.is_some() || shown.contains("error: "));
        }

        #[test]
        fn no_change_of_a_good_file_makes_reading_panic(at in 0_usize..20_000, byte: u8, cut in 0_usize..40) {
            let mut bytes = include_bytes!("../../config.example.yaml").to_vec();
            let at = at % bytes.len();
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, [byte]);
            let loaded = Loader::of_text(Path::new("t.yaml"), &bytes).load();
            render::text(&loaded.problems, &loaded.texts, Colour::On);
        }
    }

    #[test]
    fn ten_thousand_routers_are_read() {
        let mut text = "http:\n  routers:\n".to_owned();
        for index in 0..10_000 {
            text.push_str(&format!("    r{index}:\n      rule: Host(`h{index}.test`)\n      service: s\n"));
        }
        assert_eq!(routers(&case(&[("main.yaml", &text)]).good()).len(), 10_000);
    }

    #[test]
    fn problems_as_json_have_every_part() {
        let case = case(&[("main.yaml", "lgo: {}\n")]);
        let value: serde_json::Value =
            serde_json::from_str(&render::json(&case.loader.load().problems)).expect("is JSON");
        assert_eq!(value[0]["severity"], "error");
        assert_eq!(value[0]["line"], 1);
        assert_eq!(value[0]["path"], "lgo");
        assert_eq!(value[0]["hint"], "did you mean \"log\"?");
    }

    #[test]
    fn control_characters_of_a_file_never_reach_the_terminal() {
        let mut problems = Problems::new();
        problems.error(&ConfigPath::of(&["a\u{1b}[2J"]), "bad \u{1b}[31m \u{202e}");
        let shown = render::text(&problems, &Texts::new(), Colour::Off);
        assert!(!shown.contains(['\u{1b}', '\u{202e}']), "{shown:?}");
    }

    #[test]
    fn a_line_of_a_megabyte_is_shown_in_part() {
        let text = format!("lgo: '{}'\n", "x".repeat(1 << 20));
        assert!(report(&text).len() < 500);
        let text = format!("log: {{filePath: '{}', lvel: x}}\n", "x".repeat(1 << 20));
        let shown = report(&text);
        assert!(shown.len() < 800 && shown.contains("lvel: x}\n"), "{shown}");
    }
}
