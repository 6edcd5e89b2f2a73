//! Tells when configuration files have changed, however that was done, once things have settled.
//!
//! Reads the file system's notices and, because not every mount sends them, the state of the files
//! themselves every few seconds. Never reads what is in the files: whoever is told compares the
//! content, so that telling too often costs little; not telling must not happen.
//!
//! What is watched are directories, one by one: that of each file, that of each symbolic link on the
//! way to it (such as `..data` of a mounted ConfigMap), and for a directory of files all that is below
//! it. A watch on a file itself would stay with the old file when a new one takes its name. Whether
//! those directories are still the same is looked at every second; directories above them are not
//! watched, because others open files in `/etc` all the time.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::{Condvar, Mutex};
use tokio::sync::Notify;
use tracing::warn;

/// What decides when a change is told.
#[derive(Clone, Copy, Debug)]
struct Timing {
    /// So long nothing must happen before a change counts as settled.
    quiet: Duration,
    /// A file that is empty or missing, and was not, is waited for so long after the first notice: most
    /// likely it is being written, and one wait is better than one error.
    half_way: Duration,
    /// So long after the first notice a change is told even if writing goes on.
    latest: Duration,
    /// From one look at all files to the next.
    look: Duration,
    /// From one look at the watched directories to the next; or at all files, while the system gives no
    /// notices.
    glance: Duration,
}

const TIMING: Timing = Timing {
    quiet: Duration::from_millis(100),
    half_way: Duration::from_millis(500),
    latest: Duration::from_secs(1),
    look: Duration::from_secs(5),
    glance: Duration::from_secs(1),
};

/// All files are looked at again so long after a change was told: a directory that was removed and made
/// again may have lost its watch meanwhile.
const SECOND_LOOK: Duration = Duration::from_millis(500);

/// Entries looked at, over all watched directories: enough for 10,000 files of routes.
const MAX_ENTRIES: usize = 10_000;

/// Depth of directories below a watched one.
const MAX_DEPTH: usize = 32;

/// Symbolic links on the way to one file; Linux itself gives up after 40.
const MAX_LINKS: usize = 40;

/// Looks again when files and directories are replaced while they are looked at, at most so many times
/// in a row. The next look sees the rest.
const MAX_LOOKS: usize = 4;

/// Where notices come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Notices {
    System,
    #[cfg(test)]
    None,
}

/// Watches files and directories of files.
///
/// Its work is done by a thread of its own, because looking at a file may block (a dead network mount);
/// dropping the watcher ends the thread as soon as it looks up.
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    settled: Notify,
}

#[derive(Debug, Default)]
struct State {
    pending: Option<Pending>,
    /// To be watched from now on.
    paths: Option<Vec<PathBuf>>,
    interest: Interest,
    stopped: bool,
}

/// A change that has not been told yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    first: Instant,
    last: Instant,
    source: Source,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    /// The system said so, and will say if there is more.
    Notice,
    /// The files looked different; whether more is coming shows only in looking again.
    Look,
}

/// Which notices matter: paths without symbolic links.
#[derive(Debug, Default, Eq, PartialEq)]
struct Interest {
    /// These very names.
    names: HashSet<PathBuf>,
    /// Everything in these directories.
    whole: HashSet<PathBuf>,
}

impl Interest {
    fn includes(&self, path: &Path) -> bool {
        self.names.contains(path) || path.parent().is_some_and(|parent| self.whole.contains(parent))
    }
}

impl Watcher {
    /// Watches `paths`: files, directories (with all below them), and what does not exist yet.
    ///
    /// [`changed`](Self::changed) completes once soon after, so that a change before the watch began is
    /// not missed. Fails only if no thread can be started: without notices from the system the files
    /// are looked at every second.
    pub fn new(paths: Vec<PathBuf>) -> io::Result<Self> {
        Self::with(paths, TIMING, Notices::System)
    }

    fn with(paths: Vec<PathBuf>, timing: Timing, notices: Notices) -> io::Result<Self> {
        let state = State { paths: Some(paths), ..State::default() };
        let shared =
            Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), settled: Notify::new() });
        let lookout = Lookout::new(Arc::clone(&shared), timing, notices);
        thread::Builder::new().name("watch-files".into()).spawn(|| lookout.run())?;
        Ok(Self { shared })
    }

    /// Watches `paths` from now on, instead of those before.
    ///
    /// If they differ, [`changed`](Self::changed) completes once soon after; if not, nothing happens.
    pub fn set_paths(&self, paths: Vec<PathBuf>) {
        self.shared.state.lock().paths = Some(paths);
        self.shared.wake.notify_one();
    }

    /// Completes when something has changed and settled since it last completed.
    ///
    /// 100 ms after the last sign of a change; half a second after the first one when a file is gone or
    /// empty; one second after the first one at the latest. Cancel safe; for one waiter at a time.
    pub async fn changed(&self) {
        self.shared.settled.notified().await;
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.state.lock().stopped = true;
        self.shared.wake.notify_one();
    }
}

impl Shared {
    /// Takes a notice of the system; called on its own thread.
    fn notice(&self, event: notify::Result<Event>) {
        let mut state = self.state.lock();
        let matters = match &event {
            // Opening and reading are no changes: the reader of the files does that itself.
            Ok(event) if event.need_rescan() => true,
            Ok(event) => match event.kind {
                EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                    event.paths.iter().any(|path| state.interest.includes(path))
                }
                EventKind::Access(_) => false,
                EventKind::Any
                | EventKind::Create(_)
                | EventKind::Modify(_)
                | EventKind::Remove(_)
                | EventKind::Other => event.paths.iter().any(|path| state.interest.includes(path)),
            },
            Err(_) => true,
        };
        if matters {
            state.touch(Source::Notice);
            self.wake.notify_one();
        }
    }
}

impl State {
    fn touch(&mut self, source: Source) {
        let now = Instant::now();
        let first = self.pending.map_or(now, |pending| pending.first);
        self.pending = Some(Pending { first, last: now, source });
    }
}

/// The thread's own.
struct Lookout {
    shared: Arc<Shared>,
    timing: Timing,
    notices: Option<RecommendedWatcher>,
    paths: Vec<PathBuf>,
    /// Directories with a watch, and which directory had that name then.
    watched: HashMap<PathBuf, (u64, u64)>,
    /// The files as last seen, and as last told.
    seen: Files,
    told: Files,
    /// Whether notices may be missing.
    blind: bool,
    warned: bool,
}

type Files = BTreeMap<PathBuf, Option<Stamp>>;

/// What tells one state of a file from another. The change time cannot be set back, unlike the others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: inode(metadata),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// What the thread does next.
enum Task {
    Stop,
    Watch(Vec<PathBuf>),
    /// A change may have settled.
    Settle(Pending),
    Poll,
}

impl Lookout {
    fn new(shared: Arc<Shared>, timing: Timing, notices: Notices) -> Self {
        let listener = Arc::downgrade(&shared);
        let notices = match notices {
            Notices::System => notify::recommended_watcher(move |event| {
                if let Some(shared) = listener.upgrade() {
                    shared.notice(event);
                }
            })
            .inspect_err(|error| {
                warn!(%error, "the system gives no notice of changed files; they are looked at every second");
            })
            .ok(),
            #[cfg(test)]
            Notices::None => None,
        };
        let blind = notices.is_none();
        Self {
            shared,
            timing,
            notices,
            paths: Vec::new(),
            watched: HashMap::new(),
            seen: Files::new(),
            told: Files::new(),
            blind,
            warned: blind,
        }
    }

    fn run(mut self) {
        let mut next_look = Instant::now() + self.timing.look;
        loop {
            let next_glance = Instant::now() + self.timing.glance;
            match self.next_task(next_look.min(next_glance)) {
                Task::Stop => return,
                Task::Watch(paths) => {
                    let paths: Vec<PathBuf> =
                        paths.iter().map(|path| std::path::absolute(path).unwrap_or(path.clone())).collect();
                    if paths != self.paths {
                        self.paths = paths;
                        self.look();
                        self.tell();
                    }
                }
                Task::Settle(pending) => {
                    if self.settles(pending) {
                        self.tell();
                        next_look = next_look.min(Instant::now() + SECOND_LOOK);
                    }
                }
                Task::Poll => {
                    let is_due = self.blind || Instant::now() >= next_look;
                    if is_due || self.has_lost_a_directory() {
                        next_look = Instant::now() + self.timing.look;
                        if self.look() {
                            self.shared.state.lock().touch(Source::Look);
                        }
                    }
                }
            }
        }
    }

    fn next_task(&self, next_poll: Instant) -> Task {
        let mut state = self.shared.state.lock();
        loop {
            if state.stopped {
                return Task::Stop;
            }
            if let Some(paths) = state.paths.take() {
                return Task::Watch(paths);
            }
            let due = state.pending.map_or(next_poll, |pending| {
                (pending.last + self.timing.quiet).min(pending.first + self.timing.latest)
            });
            if Instant::now() >= due {
                return match state.pending.take() {
                    Some(pending) => Task::Settle(pending),
                    None => Task::Poll,
                };
            }
            self.shared.wake.wait_until(&mut state, due);
        }
    }

    /// Whether a watched directory is not the one any more that had its name.
    fn has_lost_a_directory(&self) -> bool {
        let is_same = |(path, known): (&PathBuf, &(u64, u64))| {
            fs::metadata(path).is_ok_and(|metadata| inode(&metadata) == *known)
        };
        !self.watched.iter().all(is_same)
    }

    /// Whether a change is over, as far as anybody can tell; if not, it is put back to wait longer.
    fn settles(&mut self, pending: Pending) -> bool {
        let moved = self.look();
        let age = pending.first.elapsed();
        let unfinished = (pending.source == Source::Look && moved && age < self.timing.latest)
            || (self.is_half_way() && age < self.timing.half_way);
        if unfinished {
            let mut state = self.shared.state.lock();
            state.touch(pending.source);
            state.pending = state.pending.map(|newer| Pending { first: pending.first, ..newer });
        }
        !unfinished
    }

    /// Whether a file is gone or empty that was there, and not empty, when a change was last told.
    fn is_half_way(&self) -> bool {
        let size =
            |files: &Files, path| files.get(path).copied().flatten().map_or(0, |stamp: Stamp| stamp.size);
        self.told.keys().any(|path| size(&self.told, path) > 0 && size(&self.seen, path) == 0)
    }

    fn tell(&mut self) {
        self.told = self.seen.clone();
        self.shared.settled.notify_one();
    }

    /// Looks at everything, and sees to it that everything is watched. Gives whether any file has changed.
    fn look(&mut self) -> bool {
        let mut moved = false;
        for _ in 0..MAX_LOOKS {
            let view = View::of(&self.paths);
            if view.is_cut && !self.warned {
                self.warned = true;
                warn!(limit = MAX_ENTRIES, "too many files to watch all of them");
            }
            moved |= view.files != self.seen;
            self.seen = view.files;
            let is_new = {
                let mut state = self.shared.state.lock();
                let is_new = state.interest != view.interest;
                state.interest = view.interest;
                is_new
            };
            // What changed before the new watches were there gave no notice: look again.
            if !(self.watch(&view.directories) || is_new) {
                break;
            }
        }
        moved
    }

    /// Watches these directories and no others. Gives whether one of them was not watched before.
    fn watch(&mut self, directories: &BTreeSet<PathBuf>) -> bool {
        let Some(notices) = &mut self.notices else { return false };
        let mut is_new = false;
        let gone: Vec<PathBuf> =
            self.watched.keys().filter(|path| !directories.contains(*path)).cloned().collect();
        for path in gone {
            self.watched.remove(&path);
            // Fails when the directory itself is gone, and the watch with it.
            let _ = notices.unwatch(&path);
        }
        self.blind = false;
        for path in directories {
            let Ok(metadata) = fs::metadata(path) else { continue };
            match self.watched.insert(path.clone(), inode(&metadata)) {
                Some(before) if before == inode(&metadata) => {}
                Some(_) => {
                    // Another directory has taken the name.
                    let _ = notices.unwatch(path);
                    is_new = true;
                }
                None => is_new = true,
            }
            // Also when it is watched already: that costs little, and the inode of a directory that was
            // removed may be that of its successor.
            if let Err(error) = notices.watch(path, RecursiveMode::NonRecursive) {
                self.watched.remove(path);
                if path.is_dir() {
                    self.blind = true;
                    if !self.warned {
                        self.warned = true;
                        warn!(directory = %path.display(), %error,
                            "a directory cannot be watched; its files are looked at every second");
                    }
                }
            }
        }
        is_new
    }
}

/// What is there at one moment. All paths but the keys of `files` are without symbolic links.
#[derive(Debug, Default)]
struct View {
    files: Files,
    directories: BTreeSet<PathBuf>,
    interest: Interest,
    visited: BTreeSet<PathBuf>,
    entries: usize,
    is_cut: bool,
}

impl View {
    fn of(paths: &[PathBuf]) -> Self {
        let mut view = Self::default();
        for path in paths {
            view.add(path, 0);
        }
        view
    }

    fn add(&mut self, path: &Path, depth: usize) {
        match self.trace(path) {
            Some(place) if place.is_dir() => self.walk(&place, depth),
            Some(place) => {
                let stamp = fs::metadata(&place).ok().map(|metadata| Stamp::of(&metadata));
                self.files.insert(path.to_owned(), stamp);
            }
            None => {
                self.files.insert(path.to_owned(), None);
            }
        }
    }

    /// Goes the way to `path` step by step, through symbolic links, and remembers each step.
    ///
    /// Gives where it ends; `None` when nothing is there.
    fn trace(&mut self, path: &Path) -> Option<PathBuf> {
        let mut here = PathBuf::from("/");
        let mut ahead = steps(path);
        let mut links = 0;
        while let Some(step) = ahead.pop() {
            if step == ".." {
                here.pop();
                continue;
            }
            let next = here.join(&step);
            self.interest.names.insert(next.clone());
            let found = fs::symlink_metadata(&next);
            let is_on_the_way = found.as_ref().is_ok_and(|found| !found.is_symlink()) && !ahead.is_empty();
            if !is_on_the_way {
                self.directories.insert(here.clone());
            }
            if found.ok()?.is_symlink() {
                links += 1;
                let target = fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS)?;
                if target.is_absolute() {
                    here = PathBuf::from("/");
                }
                ahead.extend(steps(&target));
            } else {
                here = next;
            }
        }
        Some(here)
    }

    /// Takes all that is below a directory.
    fn walk(&mut self, directory: &Path, depth: usize) {
        if depth > MAX_DEPTH || !self.visited.insert(directory.to_owned()) {
            return;
        }
        self.directories.insert(directory.to_owned());
        self.interest.whole.insert(directory.to_owned());
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                self.is_cut = true;
                return;
            }
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_symlink() => self.add(&path, depth + 1),
                Ok(kind) if kind.is_dir() => self.walk(&path, depth + 1),
                Ok(_) => {
                    let stamp = fs::metadata(&path).ok().map(|metadata| Stamp::of(&metadata));
                    self.files.insert(path, stamp);
                }
                Err(_) => {}
            }
        }
    }
}

/// The steps of a path, the first one last.
fn steps(path: &Path) -> Vec<OsString> {
    let step = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    };
    path.components().rev().filter_map(step).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A directory with a file, and a watcher on some path in it that has told its first change.
    struct Scene {
        dir: TempDir,
        watcher: Watcher,
    }

    impl Scene {
        async fn new(prepare: impl FnOnce(&Path) -> PathBuf) -> Self {
            Self::with(TIMING, Notices::System, prepare).await
        }

        async fn with(timing: Timing, notices: Notices, prepare: impl FnOnce(&Path) -> PathBuf) -> Self {
            let dir = TempDir::new().expect("a directory");
            let watched = prepare(dir.path());
            let watcher = Watcher::with(vec![watched], timing, notices).expect("a thread");
            let scene = Self { dir, watcher };
            scene.is_told("the beginning").await;
            scene
        }

        /// Notices are told within about a second; looking at all files alone would take five.
        async fn is_told(&self, what: &str) {
            let told = tokio::time::timeout(Duration::from_secs(4), self.watcher.changed()).await;
            assert!(told.is_ok(), "not told: {what}");
        }

        async fn is_not_told(&self, what: &str) {
            let told = tokio::time::timeout(Duration::from_millis(400), self.watcher.changed()).await;
            assert!(told.is_err(), "told: {what}");
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn write(&self, name: &str, text: &str) {
            write(&self.path(name), text);
        }
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("written");
    }

    fn one_file(dir: &Path) -> PathBuf {
        write(&dir.join("a.yaml"), "one");
        dir.join("a.yaml")
    }

    #[tokio::test]
    async fn a_file_written_in_place_is_told_each_time() {
        let scene = Scene::new(one_file).await;
        for text in ["two", "six", "ten", "longer"] {
            scene.write("a.yaml", text);
            scene.is_told(text).await;
        }
    }

    #[tokio::test]
    async fn truncate_then_write_with_a_pause_is_told_once_it_is_whole() {
        // However long a busy machine makes the pause, the file counts as being written.
        let timing =
            Timing { half_way: Duration::from_secs(600), latest: Duration::from_secs(600), ..TIMING };
        let scene = Scene::with(timing, Notices::System, one_file).await;
        scene.write("a.yaml", "");
        scene.is_not_told("the empty file").await;
        scene.write("a.yaml", "whole");
        scene.is_told("the whole file").await;
    }

    #[tokio::test]
    async fn a_file_that_stays_empty_is_told_too() {
        let scene = Scene::new(one_file).await;
        scene.write("a.yaml", "");
        scene.is_told("the empty file").await;
    }

    #[tokio::test]
    async fn a_rename_over_the_file_is_told_again_and_again() {
        let scene = Scene::new(one_file).await;
        for text in ["two", "three", "four"] {
            scene.write(".a.yaml.tmp", text);
            fs::rename(scene.path(".a.yaml.tmp"), scene.path("a.yaml")).expect("renamed");
            scene.is_told(text).await;
        }
    }

    #[tokio::test]
    async fn a_file_removed_and_back_is_told_twice() {
        let scene = Scene::new(one_file).await;
        fs::remove_file(scene.path("a.yaml")).expect("removed");
        scene.is_told("the removal").await;
        scene.write("a.yaml", "two");
        scene.is_told("the return").await;
    }

    #[tokio::test]
    async fn a_file_that_does_not_exist_yet_nor_its_directory_is_told_when_it_comes() {
        let scene = Scene::new(|dir| dir.join("later/still/a.yaml")).await;
        fs::create_dir_all(scene.path("later/still")).expect("created");
        scene.write("later/still/a.yaml", "one");
        scene.is_told("the file").await;
        scene.write("later/still/a.yaml", "three");
        scene.is_told("its change").await;
    }

    /// As the kubelet mounts a ConfigMap.
    fn config_map(dir: &Path) -> PathBuf {
        fs::create_dir(dir.join("..v1")).expect("created");
        write(&dir.join("..v1/a.yaml"), "one");
        symlink("..v1", dir.join("..data")).expect("linked");
        symlink("..data/a.yaml", dir.join("a.yaml")).expect("linked");
        dir.join("a.yaml")
    }

    fn swap_config_map(dir: &Path, from: &str, to: &str) {
        fs::create_dir(dir.join(to)).expect("created");
        write(&dir.join(to).join("a.yaml"), to);
        symlink(to, dir.join("..data_tmp")).expect("linked");
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).expect("renamed");
        fs::remove_dir_all(dir.join(from)).expect("removed");
    }

    #[tokio::test]
    async fn a_config_map_swap_is_told_every_time() {
        let scene = Scene::new(config_map).await;
        for (from, to) in [("..v1", "..v2"), ("..v2", "..v3"), ("..v3", "..v4")] {
            swap_config_map(scene.dir.path(), from, to);
            scene.is_told(to).await;
        }
    }

    #[tokio::test]
    async fn a_config_map_swap_is_told_to_the_watcher_of_its_directory() {
        let scene = Scene::new(|dir| config_map(dir).parent().expect("a parent").to_owned()).await;
        for (from, to) in [("..v1", "..v2"), ("..v2", "..v3")] {
            swap_config_map(scene.dir.path(), from, to);
            scene.is_told(to).await;
        }
    }

    #[tokio::test]
    async fn a_symlinked_file_is_told_when_its_target_changes_and_when_the_link_does() {
        let scene = Scene::new(|dir| {
            for name in ["real", "links"] {
                fs::create_dir(dir.join(name)).expect("created");
            }
            write(&dir.join("real/a.yaml"), "one");
            write(&dir.join("real/b.yaml"), "one");
            symlink("../real/a.yaml", dir.join("links/a.yaml")).expect("linked");
            dir.join("links/a.yaml")
        })
        .await;
        scene.write("real/a.yaml", "two");
        scene.is_told("the target").await;
        symlink(scene.path("real/b.yaml"), scene.path("links/new")).expect("linked");
        fs::rename(scene.path("links/new"), scene.path("links/a.yaml")).expect("renamed");
        scene.is_told("the link").await;
        scene.write("real/b.yaml", "two");
        scene.is_told("the new target").await;
    }

    #[tokio::test]
    async fn a_directory_of_files_is_told_of_new_changed_and_removed_ones_at_any_depth() {
        let scene = Scene::new(|dir| {
            fs::create_dir(dir.join("conf.d")).expect("created");
            dir.join("conf.d")
        })
        .await;
        scene.write("conf.d/a.yaml", "one");
        scene.is_told("a new file").await;
        scene.write("conf.d/a.yaml", "two");
        scene.is_told("a changed file").await;
        fs::create_dir_all(scene.path("conf.d/team/east")).expect("created");
        scene.write("conf.d/team/east/b.yaml", "one");
        scene.is_told("a new file in new directories").await;
        scene.write("conf.d/team/east/b.yaml", "three");
        scene.is_told("a changed file in them").await;
        fs::remove_dir_all(scene.path("conf.d/team")).expect("removed");
        scene.is_told("their removal").await;
    }

    #[tokio::test]
    async fn a_directory_that_is_swapped_for_another_is_still_watched() {
        let scene = Scene::new(|dir| {
            fs::create_dir_all(dir.join("etc/conf")).expect("created");
            write(&dir.join("etc/conf/a.yaml"), "one");
            dir.join("etc/conf/a.yaml")
        })
        .await;
        // The parent's parent is renamed: no watched directory gives notice of that.
        fs::create_dir_all(scene.path("new/conf")).expect("created");
        scene.write("new/conf/a.yaml", "two");
        fs::rename(scene.path("etc"), scene.path("old")).expect("renamed");
        fs::rename(scene.path("new"), scene.path("etc")).expect("renamed");
        scene.is_told("the swap").await;
        scene.write("etc/conf/a.yaml", "three");
        scene.is_told("a change after it").await;
    }

    #[tokio::test]
    async fn constant_writing_delays_a_change_by_about_a_second_only() {
        let scene = Scene::new(one_file).await;
        let path = scene.path("a.yaml");
        let writer = thread::spawn(move || {
            let end = Instant::now() + Duration::from_secs(3);
            for round in 0.. {
                if Instant::now() > end {
                    return;
                }
                write(&path, &format!("round {round}"));
                thread::sleep(Duration::from_millis(10));
            }
        });
        scene.is_told("the first second").await;
        assert!(!writer.is_finished(), "told only after the writing ended");
        scene.is_told("the next second").await;
        assert!(!writer.is_finished(), "told only after the writing ended");
        writer.join().expect("written");
        scene.is_told("the last round").await;
    }

    #[tokio::test]
    async fn reading_the_files_and_changes_beside_them_are_not_told() {
        let scene = Scene::new(one_file).await;
        fs::read_to_string(scene.path("a.yaml")).expect("read");
        scene.write("other.txt", "noise");
        scene.watcher.set_paths(vec![scene.path("a.yaml")]);
        scene.is_not_told("reading, a stranger, and the same paths").await;
    }

    #[tokio::test]
    async fn other_paths_are_told_once_and_then_watched_instead() {
        let scene = Scene::new(one_file).await;
        scene.write("b.yaml", "one");
        scene.watcher.set_paths(vec![scene.path("b.yaml")]);
        scene.is_told("the new path").await;
        scene.write("b.yaml", "two");
        scene.is_told("its change").await;
        scene.write("a.yaml", "two");
        scene.is_not_told("the old path").await;
    }

    #[tokio::test]
    async fn a_mount_that_sends_no_notices_is_looked_at() {
        let timing = Timing { glance: Duration::from_millis(50), ..TIMING };
        let scene = Scene::with(timing, Notices::None, one_file).await;
        scene.write("a.yaml", "six");
        scene.is_told("the same size").await;
        fs::remove_file(scene.path("a.yaml")).expect("removed");
        scene.is_told("the removal").await;
    }

    #[tokio::test]
    async fn links_in_a_circle_end() {
        let scene = Scene::new(|dir| {
            symlink("b", dir.join("a")).expect("linked");
            symlink("a", dir.join("b")).expect("linked");
            fs::create_dir(dir.join("conf.d")).expect("created");
            symlink("..", dir.join("conf.d/up")).expect("linked");
            symlink(".", dir.join("conf.d/here")).expect("linked");
            dir.to_owned()
        })
        .await;
        scene.write("conf.d/a.yaml", "one");
        scene.is_told("a file beside the circles").await;
    }

    #[test]
    fn a_dropped_watcher_ends_its_thread() {
        let watcher = Watcher::new(vec!["/nowhere/at/all".into()]).expect("a thread");
        let shared = Arc::downgrade(&watcher.shared);
        drop(watcher);
        let end = Instant::now() + Duration::from_secs(5);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < end, "the thread lives on");
            thread::sleep(Duration::from_millis(5));
        }
    }
}
