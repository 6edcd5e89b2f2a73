//! The working copy of the demo's configuration: written where the user stands, never over an edit.
//!
//! Its first line carries a checksum of the rest. A file whose sum is right is our own and may be
//! written anew; any other was edited, and the next free name is taken. A lock on the open file keeps
//! a second demo in the same directory from pulling it away under the first.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::DemoError;

/// A file of ours, locked while the demo runs.
#[derive(Debug)]
pub(super) struct WorkFile {
    path: PathBuf,
    kept: Option<PathBuf>,
    _lock: File,
}

impl WorkFile {
    /// Writes `body` under the first name in `dir` that is free or holds an unedited older copy.
    pub(super) fn write(dir: &Path, body: &str) -> Result<Self, DemoError> {
        let mut kept = None;
        for number in 1..=MAX_NAMES {
            let name = match number {
                1 => "sluicegate-demo.yaml".to_owned(),
                n => format!("sluicegate-demo-{n}.yaml"),
            };
            let path = dir.join(name);
            match take(&path, body) {
                Ok(Some(lock)) => return Ok(Self { path, kept, _lock: lock }),
                Ok(None) => kept = Some(path),
                Err(cause) => {
                    let what = format!("cannot write {}", path.display());
                    return Err(DemoError::Io { what, cause });
                }
            }
        }
        Err(DemoError::NoFileName { dir: dir.to_owned() })
    }

    /// Where it was written.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file that had the name before this one and was left as it is.
    pub(super) fn kept(&self) -> Option<&Path> {
        self.kept.as_deref()
    }
}

/// Writes the file if it is ours to write; `None` if it was edited or belongs to a running demo.
fn take(path: &Path, body: &str) -> io::Result<Option<File>> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    if file.try_lock().is_err() {
        return Ok(None);
    }
    // One byte over the limit is enough to know that it is not ours.
    let mut old = Vec::new();
    Read::by_ref(&mut file).take(MAX_BYTES + 1).read_to_end(&mut old)?;
    if !old.is_empty() && !is_unedited(&old) {
        return Ok(None);
    }
    let text = format!("{MARK}{:016x}\n{body}", sum(body.as_bytes()));
    file.set_len(0)?;
    io::Seek::rewind(&mut file)?;
    file.write_all(text.as_bytes())?;
    Ok(Some(file))
}

fn is_unedited(text: &[u8]) -> bool {
    let Some(rest) = text.strip_prefix(MARK.as_bytes()) else { return false };
    let Some((digits, body)) = rest.split_at_checked(16) else { return false };
    let Some(body) = body.strip_prefix(b"\n") else { return false };
    digits == format!("{:016x}", sum(body)).as_bytes()
}

/// FNV-1a: it tells an edit from none; nobody forges a demo file.
fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

const MARK: &str = "# Written by `sluicegate demo`, and written anew by it until you edit it. ";

/// Edited copies that one directory may hold before the demo asks to tidy up.
const MAX_NAMES: u32 = 50;

/// Our template has a few kilobytes; what is longer was not written by us.
const MAX_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_edited_file_is_left_alone_and_named() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = WorkFile::write(dir.path(), "a: 1\n").expect("written").path().to_owned();
        let mut text = std::fs::read_to_string(&first).expect("readable");
        text.push_str("b: 2\n");
        std::fs::write(&first, &text).expect("edited");

        let second = WorkFile::write(dir.path(), "a: 3\n").expect("written");

        assert_eq!(std::fs::read_to_string(&first).expect("readable"), text);
        assert_eq!(second.kept(), Some(first.as_path()));
        assert_eq!(names(dir.path()), ["sluicegate-demo-2.yaml", "sluicegate-demo.yaml"]);
    }

    #[test]
    fn an_unedited_file_is_written_anew() {
        let dir = tempfile::tempdir().expect("a directory");
        drop(WorkFile::write(dir.path(), "a: 1\nlonger: than the next one\n").expect("written"));
        let file = WorkFile::write(dir.path(), "a: 2\n").expect("written");
        let text = std::fs::read_to_string(file.path()).expect("readable");
        assert!(text.ends_with("\na: 2\n"), "{text}");
        assert_eq!(names(dir.path()), ["sluicegate-demo.yaml"]);
    }

    #[test]
    fn a_second_demo_in_the_same_directory_takes_another_name() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = WorkFile::write(dir.path(), "a: 1\n").expect("written");
        let second = WorkFile::write(dir.path(), "a: 2\n").expect("written");
        assert_ne!(first.path(), second.path());
        assert!(std::fs::read_to_string(first.path()).expect("readable").ends_with("a: 1\n"));
    }

    #[test]
    fn somebody_elses_file_of_that_name_is_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let theirs = dir.path().join("sluicegate-demo.yaml");
        for text in ["x", MARK, &format!("{MARK}0123456789abcdef"), &"y".repeat(100_000)] {
            std::fs::write(&theirs, text).expect("written");
            let file = WorkFile::write(dir.path(), "a: 1\n").expect("written");
            assert_ne!(file.path(), theirs);
            assert_eq!(std::fs::read_to_string(&theirs).expect("readable"), *text);
        }
    }

    #[test]
    fn a_directory_full_of_edited_files_is_an_error() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("sluicegate-demo.yaml"), "x").expect("written");
        for number in 2..=MAX_NAMES {
            std::fs::write(dir.path().join(format!("sluicegate-demo-{number}.yaml")), "x").expect("written");
        }
        let error = WorkFile::write(dir.path(), "a: 1\n").expect_err("no name is left");
        assert!(matches!(error, DemoError::NoFileName { .. }), "{error}");
    }
}
