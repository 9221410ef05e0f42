//! The journal: every change, appended and on disk before it is applied.
//!
//! One file, a JSON object a line, each with a checksum of its own. A line that was torn off by a crash (the last one,
//! without its newline or without its checksum) was never acted upon and is cut off. Anything else that does not fit is
//! corruption: the journal is refused, with the place, and nothing is lost.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::{Author, Intent};
use crate::config::{Config, ServiceName};

/// The file in the state directory.
pub const FILE: &str = "journal.jsonl";

/// A change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts from 1.
    pub sequence: u64,
    /// When (RFC 3339).
    pub time: String,
    /// By whom.
    pub author: Author,
    /// Why, in the author's words.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// What, in a sentence.
    pub summary: String,
    /// What.
    pub change: Change,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// Another configuration.
    Config {
        /// All of it.
        config: Box<Config>,
        /// SHA-256 of the configuration file, if this is what it said. Until the file changes, what was applied since
        /// stands.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        file: Option<String>,
    },
    /// Something at run time.
    Service {
        /// The service.
        name: ServiceName,
        /// All that holds of it from now on.
        intent: Intent,
    },
}

/// A line of the file.
#[derive(Serialize, Deserialize)]
struct Line<E> {
    sum: String,
    entry: E,
}

/// Why the journal cannot be used.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The system says so.
    #[error("cannot {what} the journal {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A record is not what was written.
    #[error(
        "the journal {} is corrupt in line {line} (byte {offset}): {problem}; nothing was changed. Keep a copy of the file, cut \
         it before that line to go back to the change before, and start again",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// Counts from 1.
        line: usize,
        /// Where the line begins.
        offset: u64,
        /// What is wrong.
        problem: String,
    },
}

/// The file, open for appending.
pub struct Journal {
    path: PathBuf,
    file: File,
    next: u64,
}

impl Journal {
    /// Opens the journal of a state directory, and makes it where there is none. Returns what is in it.
    ///
    /// # Errors
    ///
    /// If a record is corrupt, or the system does not let us.
    pub fn open(state_dir: &Path) -> Result<(Self, Vec<Entry>), JournalError> {
        let path = state_dir.join(FILE);
        let failed = |what, source| JournalError::Io { what, path: path.clone(), source };
        fs::create_dir_all(state_dir).map_err(|source| failed("make the directory of", source))?;
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|source| failed("open", source))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(|source| failed("read", source))?;
        let (entries, good) = read(&bytes, &path)?;
        if good < bytes.len() {
            tracing::warn!(journal = %path.display(), bytes = bytes.len() - good, "cut off a record that a crash had torn");
            file.set_len(good as u64).map_err(|source| failed("repair", source))?;
            file.seek(SeekFrom::End(0)).map_err(|source| failed("repair", source))?;
            file.sync_all().map_err(|source| failed("repair", source))?;
        }
        let next = entries.last().map_or(1, |entry| entry.sequence + 1);
        Ok((Self { path, file, next }, entries))
    }

    /// What is in the journal of a state directory.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub fn read(state_dir: &Path) -> Result<Vec<Entry>, JournalError> {
        let path = state_dir.join(FILE);
        let bytes = fs::read(&path).map_err(|source| JournalError::Io {
            what: "read",
            path: path.clone(),
            source,
        })?;
        read(&bytes, &path).map(|(entries, _)| entries)
    }

    /// Appends a change, and returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// If it is not; then the file is as it was before.
    pub fn append(
        &mut self,
        time: String,
        author: Author,
        reason: Option<String>,
        summary: String,
        change: Change,
    ) -> Result<Entry, JournalError> {
        let entry = Entry { sequence: self.next, time, author, reason, summary, change };
        let failed = |what, source| JournalError::Io { what, path: self.path.clone(), source };
        let line = encode(&entry).map_err(|error| failed("write", io::Error::other(error)))?;
        let before = self.file.metadata().map_err(|source| failed("measure", source))?.len();
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // Half a record on a full disk; if even that cannot be undone, the next start cuts it off.
            let _ = self.file.set_len(before);
            return Err(failed("append to", source));
        }
        self.next += 1;
        Ok(entry)
    }

    /// The number of the last change.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.next - 1
    }
}

fn encode(entry: &Entry) -> serde_json::Result<String> {
    let entry = serde_json::to_string(entry)?;
    let sum = checksum(entry.as_bytes());
    Ok(format!("{{\"sum\":\"{sum}\",\"entry\":{entry}}}\n"))
}

/// The first 64 bits of SHA-256, in hexadecimal.
fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The records, and how many bytes of the file they take.
fn read(bytes: &[u8], path: &Path) -> Result<(Vec<Entry>, usize), JournalError> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut offset = 0;
    for (number, line) in bytes.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let is_last = offset + line.len() == bytes.len();
        match decode(line) {
            Ok(entry) => {
                let expected = entries.last().map_or(entry.sequence, |last| last.sequence + 1);
                if entry.sequence != expected {
                    let problem = format!("record {} follows record {}", entry.sequence, expected - 1);
                    return Err(JournalError::Corrupt {
                        path: path.to_owned(),
                        line: number + 1,
                        offset: offset as u64,
                        problem,
                    });
                }
                entries.push(entry);
            }
            Err(_) if is_last && !line.ends_with(b"\n") => return Ok((entries, offset)),
            Err(problem) => {
                return Err(JournalError::Corrupt {
                    path: path.to_owned(),
                    line: number + 1,
                    offset: offset as u64,
                    problem,
                });
            }
        }
        offset += line.len();
    }
    Ok((entries, offset))
}

fn decode(line: &[u8]) -> Result<Entry, String> {
    let Some(line) = line.strip_suffix(b"\n") else { return Err("the line does not end".to_owned()) };
    let line: Line<Box<serde_json::value::RawValue>> =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if checksum(line.entry.get().as_bytes()) != line.sum {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(line.entry.get()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Directory(PathBuf);

    impl Directory {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!("lb-journal-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join(FILE)
        }

        fn with(count: usize) -> Self {
            let directory = Self::new();
            let (mut journal, _) = Journal::open(&directory.0).expect("a journal");
            for split in 0..count {
                journal
                    .append(String::new(), Author::agent("test"), None, String::new(), change(split))
                    .expect("appended");
            }
            directory
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn change(split: usize) -> Change {
        let intent = serde_json::json!({"stable": "a", "canary": "b", "split": split as f64, "salt": 0});
        Change::Service {
            name: serde_json::from_value("web".into()).expect("a name"),
            intent: serde_json::from_value(intent).expect("an intent"),
        }
    }

    #[test]
    fn what_was_appended_is_read_back() {
        let directory = Directory::with(3);
        let (journal, entries) = Journal::open(&directory.0).expect("a journal");
        assert_eq!(journal.last(), 3);
        assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(entries[2].change, change(2));
    }

    #[test]
    fn a_record_torn_at_any_byte_is_cut_off() {
        let directory = Directory::with(2);
        let whole = fs::read(directory.file()).expect("a file");
        let second = whole.iter().position(|&byte| byte == b'\n').expect("a line") + 1;
        for end in second..whole.len() {
            fs::write(directory.file(), &whole[..end]).expect("written");
            let (mut journal, entries) = Journal::open(&directory.0).expect("repaired");
            assert_eq!(entries.len(), 1, "torn at {end}");
            let entry = journal
                .append(String::new(), Author::agent("test"), None, String::new(), change(9))
                .expect("appended");
            assert_eq!(entry.sequence, 2);
            let (_, entries) = Journal::open(&directory.0).expect("a journal");
            assert_eq!(entries.last().map(|entry| &entry.change), Some(&change(9)));
        }
    }

    #[test]
    fn a_changed_byte_anywhere_is_refused_with_its_line() {
        let directory = Directory::with(3);
        let whole = fs::read(directory.file()).expect("a file");
        let lines: Vec<usize> =
            whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0x01;
            // A line that loses its end becomes one with the next, or, at the end of the file, a torn one.
            if at == whole.len() - 1 {
                continue;
            }
            fs::write(directory.file(), &broken).expect("written");
            let line = 1 + lines.iter().filter(|&&end| end < at).count();
            match Journal::open(&directory.0) {
                Err(JournalError::Corrupt { line: found, .. }) => assert_eq!(found, line, "byte {at}"),
                Err(error) => panic!("byte {at}: {error}"),
                Ok(_) => panic!("byte {at} was changed and nobody noticed"),
            }
        }
    }
}
