//! The journal: every change, appended and on disk before it is applied.
//!
//! One file, a JSON object a line, each with a checksum of its own. A line that was torn off by a crash (the last one,
//! without its newline) was never acted upon and is cut off. Anything else that does not fit is corruption: the journal is
//! refused, with the place, and nothing is lost. [`Journal::recover`] is the way out: it keeps the file aside, and goes on
//! with the good records before that place.
//!
//! **What a crash leaves.** A change that was acknowledged is in the journal; one that was refused, or that was under way,
//! may be there as a whole or not at all. After an append that failed nobody knows what the disk holds: before the next one
//! the file is cut back to its last acknowledged record, and the change is refused until that has worked.
//!
//! **Compaction.** A file that has grown large is written anew: one record ([`Change::Base`]) with what the oldest changes
//! had come to, then the newest ones as they are. The new file is complete and on disk before it takes the old one's name,
//! and no change is acknowledged before that name is on disk, too.

mod record;
mod storage;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::history::Histories;
use super::{Author, Desired};
use record::{Contents, encode, legible};

pub use record::{Change, Entry};
pub use storage::{Directory, Storage};

/// The file in the state directory.
pub const FILE: &str = "journal.jsonl";

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
    /// Another process writes it.
    #[error(
        "the journal {} is in use by another lbd; stop that one, or give this one another place (--state-dir or LB_STATE_DIR)",
        path.display()
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// A record is not what was written.
    #[error(
        "the journal {} is corrupt in line {line} (byte {offset}): {problem}; nothing was changed. `lbd --recover` keeps the \
         file under another name, goes on with the {good} good records before that line, and says what is lost",
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
        /// Records before it.
        good: usize,
    },
}

/// How large a journal may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A file of more bytes is compacted. At most half as many are kept of it.
    pub bytes: u64,
    /// So many of the newest records are kept as they are, if they are not too large.
    pub records: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 << 20, records: 1_000 }
    }
}

/// The file, open for appending.
pub struct Journal<S = Directory> {
    path: PathBuf,
    storage: S,
    limits: Limits,
    next: u64,
    /// The newest change that somebody has decided, and no source of backends has brought about.
    decided: u64,
    /// Bytes of acknowledged records.
    length: u64,
    /// Whether the file may hold something else behind them, or may not have its name on disk.
    suspect: bool,
    /// The length above which it is worth compacting.
    compact_above: u64,
    /// What the acknowledged records say of each service.
    histories: Histories,
}

/// What a recovery could not keep.
#[derive(Debug, PartialEq)]
pub struct Lost {
    /// Where the corrupt file is now.
    pub kept_as: PathBuf,
    /// The line that is corrupt; counts from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
    /// Bytes from there to the end of the file.
    pub bytes: u64,
    /// The last good record before it; 0: there is none.
    pub last_good: u64,
    /// Changes behind it that can still be read, and are not applied, since it is not known what they built upon.
    pub legible: Vec<Entry>,
}

impl Journal {
    /// Opens the journal of a state directory, and makes it where there is none. Returns what is in it.
    ///
    /// # Errors
    ///
    /// If a record is corrupt, another process has the journal, or the system does not let us.
    pub fn open(state_dir: &Path) -> Result<(Self, Vec<Entry>), JournalError> {
        Self::on(Directory::open(state_dir)?, state_dir.join(FILE), Limits::default())
    }

    /// The same; a corrupt file is kept under another name, which ends in `time`, and the good records before the corrupt one
    /// are gone on with.
    ///
    /// # Errors
    ///
    /// If another process has the journal, or the system does not let us.
    pub fn recover(state_dir: &Path, time: &str) -> Result<(Self, Vec<Entry>, Option<Lost>), JournalError> {
        Self::recovered(Directory::open(state_dir)?, state_dir.join(FILE), Limits::default(), time)
    }

    /// Whether no other process has the journal of a state directory. Changes nothing.
    ///
    /// # Errors
    ///
    /// If one has.
    pub fn is_free(state_dir: &Path) -> Result<(), JournalError> {
        match storage::lock(state_dir) {
            Err(error @ JournalError::InUse { .. }) => Err(error),
            // Whatever else may be wrong with it shows when it is opened.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// What is in the journal of a state directory, and why there is no more if it is corrupt. Changes nothing.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn survey(state_dir: &Path) -> Result<(Vec<Entry>, Option<JournalError>), JournalError> {
        let path = state_dir.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) => return Err(JournalError::Io { what: "read", path, source }),
        };
        let contents = Contents::of(&bytes);
        let fault = corrupt(&contents, &path);
        Ok((contents.entries, fault))
    }

    /// What is in the journal of a state directory. Changes nothing.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is corrupt.
    pub fn read(state_dir: &Path) -> Result<Vec<Entry>, JournalError> {
        match Self::survey(state_dir)? {
            (entries, None) => Ok(entries),
            (_, Some(fault)) => Err(fault),
        }
    }
}

impl<S: Storage> Journal<S> {
    /// Opens a journal on some storage; `path` is what messages call it.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`].
    pub fn on(mut storage: S, path: PathBuf, limits: Limits) -> Result<(Self, Vec<Entry>), JournalError> {
        let bytes = storage.read().map_err(failed("read", &path))?;
        let contents = Contents::of(&bytes);
        match corrupt(&contents, &path) {
            Some(fault) => Err(fault),
            None => Self::with(storage, path, limits, contents, bytes.len()),
        }
    }

    /// Opens a journal on some storage, and recovers it if it is corrupt.
    ///
    /// # Errors
    ///
    /// As [`Journal::recover`].
    pub fn recovered(
        mut storage: S,
        path: PathBuf,
        limits: Limits,
        time: &str,
    ) -> Result<(Self, Vec<Entry>, Option<Lost>), JournalError> {
        let bytes = storage.read().map_err(failed("read", &path))?;
        let mut contents = Contents::of(&bytes);
        let good = contents.good();
        let Some(fault) = contents.fault.take() else {
            let (journal, entries) = Self::with(storage, path, limits, contents, bytes.len())?;
            return Ok((journal, entries, None));
        };
        let kept_as = storage
            .keep(&format!("{FILE}.corrupt-{time}"))
            .map_err(failed("keep a corrupt copy of", &path))?;
        let written = storage.prepare(&bytes[..good]).and_then(|()| storage.exchange());
        written.map_err(failed("recover", &path))?;
        let lost = Lost {
            kept_as,
            line: fault.line,
            problem: fault.problem,
            bytes: (bytes.len() - good) as u64,
            last_good: contents.entries.last().map_or(0, |entry| entry.sequence),
            legible: legible(&bytes[good..]),
        };
        let (journal, entries) = Self::with(storage, path, limits, contents, good)?;
        Ok((journal, entries, Some(lost)))
    }

    /// With contents that are not corrupt, of a file of so many bytes.
    fn with(
        storage: S,
        path: PathBuf,
        limits: Limits,
        contents: Contents,
        bytes: usize,
    ) -> Result<(Self, Vec<Entry>), JournalError> {
        let good = contents.good();
        if good < bytes {
            tracing::warn!(journal = %path.display(), bytes = bytes - good, "cut off a record that a crash had torn");
        }
        let next = contents.entries.last().map_or(1, |entry| entry.sequence + 1);
        let decided = contents.entries.iter().rev().find(|entry| entry.change.is_decided());
        let decided = decided.map_or(0, |entry| entry.sequence);
        let mut journal = Self {
            path,
            storage,
            limits,
            next,
            decided,
            length: good as u64,
            suspect: true,
            compact_above: limits.bytes,
            histories: Histories::of(&contents.entries),
        };
        journal.repair(good < bytes)?;
        Ok((journal, contents.entries))
    }

    /// Appends a change, and returns when it is on the disk.
    ///
    /// # Errors
    ///
    /// If it may not be. The change then does not count: it is taken out again before another one is written. (Only if the
    /// machine ends before that has worked may it be found by the next start.)
    pub fn append(
        &mut self,
        time: String,
        author: Author,
        reason: Option<String>,
        summary: String,
        change: Change,
    ) -> Result<Entry, JournalError> {
        let entry = Entry { sequence: self.next, time, author, reason, summary, change };
        let line = line(&entry, &self.path)?;
        if self.suspect {
            self.repair(true)?;
        }
        self.suspect = true;
        let written = self.storage.append(line.as_bytes()).and_then(|()| self.storage.sync());
        if let Err(source) = written {
            // Where even that fails, the next append tries again.
            let _ = self.repair(true);
            return Err(failed("append to", &self.path)(source));
        }
        self.suspect = false;
        self.length += line.len() as u64;
        self.next += 1;
        if entry.change.is_decided() {
            self.decided = entry.sequence;
        }
        self.histories.note(&entry);
        Ok(entry)
    }

    /// Writes the file anew if it has become too large. Returns how many changes became one.
    ///
    /// # Errors
    ///
    /// If the system does not let us: the old file is still good then, and it is tried again once it has grown further.
    pub fn compact(&mut self) -> Result<Option<usize>, JournalError> {
        let Some(compaction) = self.begin_compaction()? else { return Ok(None) };
        let folded = compaction.fold();
        self.finish_compaction(folded)
    }

    /// What there is to be made shorter, if the file has become too large. It takes long to do so, and changes may be appended
    /// meanwhile: [`Journal::finish_compaction`] keeps them.
    ///
    /// # Errors
    ///
    /// As [`Journal::compact`].
    pub fn begin_compaction(&mut self) -> Result<Option<Compaction>, JournalError> {
        if self.length <= self.compact_above {
            return Ok(None);
        }
        // Where it comes to nothing, not before it has grown.
        self.compact_above = self.length + self.limits.bytes / 4;
        if self.suspect {
            self.repair(true)?;
        }
        let bytes = self.storage.read().map_err(failed("read", &self.path))?;
        Ok(Some(Compaction { bytes, limits: self.limits, path: self.path.clone() }))
    }

    /// Puts the shorter file in the place of the longer one, with what was appended since. Returns how many changes became one.
    ///
    /// # Errors
    ///
    /// As [`Journal::compact`].
    pub fn finish_compaction(
        &mut self,
        folded: Result<Option<Folded>, JournalError>,
    ) -> Result<Option<usize>, JournalError> {
        let folded = folded?;
        // What cannot become smaller is left alone until it has doubled.
        let compacted = match folded {
            Some(Folded { base, mut bytes, upto, count }) => {
                if self.suspect {
                    self.repair(true)?;
                }
                let whole = self.storage.read().map_err(failed("read", &self.path))?;
                bytes.extend_from_slice(whole.get(upto..).unwrap_or_default());
                let compacting = |source| failed("compact", &self.path)(source);
                self.storage.prepare(&bytes).map_err(compacting)?;
                self.storage.exchange().map_err(compacting)?;
                self.length = bytes.len() as u64;
                self.suspect = true;
                self.histories.fold(&base);
                self.repair(false)?;
                Some(count)
            }
            None => None,
        };
        self.compact_above = self.limits.bytes.max(2 * self.length);
        Ok(compacted)
    }

    /// Brings the file back to what was acknowledged.
    fn repair(&mut self, cut: bool) -> Result<(), JournalError> {
        let repairing = |source| failed("repair", &self.path)(source);
        if cut {
            self.storage.truncate(self.length).map_err(repairing)?;
            self.storage.sync().map_err(repairing)?;
        }
        self.storage.sync_names().map_err(repairing)?;
        self.suspect = false;
        Ok(())
    }

    /// What the acknowledged records say of each service.
    #[must_use]
    pub const fn histories(&self) -> &Histories {
        &self.histories
    }

    /// The number of the last change: the agent's revision.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.next - 1
    }

    /// Whether nothing was decided since revision `known`, which there was: at most, sources have found other backends.
    #[must_use]
    pub const fn is_current(&self, known: u64) -> bool {
        self.decided <= known && known <= self.last()
    }
}

/// The contents of a file that has become too large.
pub struct Compaction {
    bytes: Vec<u8>,
    limits: Limits,
    path: PathBuf,
}

/// What a shorter file begins with.
pub struct Folded {
    /// What the oldest changes have come to.
    base: Entry,
    /// The record of it, and those that stay as they are.
    bytes: Vec<u8>,
    /// How much of the file that stands for.
    upto: usize,
    /// How many changes became one.
    count: usize,
}

impl Compaction {
    /// Makes the oldest changes one. `None`: that would not make the file shorter. Touches no file, and takes long.
    ///
    /// # Errors
    ///
    /// If the file is corrupt.
    pub fn fold(self) -> Result<Option<Folded>, JournalError> {
        let Self { bytes, limits, path } = self;
        let contents = Contents::of(&bytes);
        if let Some(fault) = corrupt(&contents, &path) {
            return Err(fault);
        }
        let Contents { entries, ends, .. } = &contents;
        let count = folded(limits, entries.len(), ends);
        let Some(last) = count.checked_sub(1).and_then(|last| entries.get(last)) else { return Ok(None) };
        let Some(desired) = Desired::replayed(&entries[..count]) else { return Ok(None) };
        if count == 1 {
            return Ok(None);
        }
        let base = Entry {
            sequence: last.sequence,
            time: last.time.clone(),
            author: Author::agent("journal"),
            reason: None,
            summary: "what the changes up to here had come to".to_owned(),
            change: Change::Base {
                desired: Box::new(desired),
                file: super::file_of(&entries[..count]).map(str::to_owned),
            },
        };
        let mut next = line(&base, &path)?.into_bytes();
        next.extend_from_slice(&bytes[ends[count - 1]..contents.good()]);
        Ok(Some(Folded { base, bytes: next, upto: contents.good(), count }))
    }
}

/// How many of the oldest records become one.
fn folded(limits: Limits, count: usize, ends: &[usize]) -> usize {
    let end = ends.last().copied().unwrap_or(0);
    let room = (limits.bytes / 2) as usize;
    let by_size = ends.partition_point(|&begin| end - begin > room);
    // The record that ends where the room begins is the last that does not fit.
    by_size.saturating_add(1).min(count).max(count.saturating_sub(limits.records))
}

fn line(entry: &Entry, path: &Path) -> Result<String, JournalError> {
    encode(entry).map_err(|error| failed("write", path)(io::Error::other(error)))
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> JournalError {
    let path = path.to_owned();
    move |source| JournalError::Io { what, path: path.clone(), source }
}

fn corrupt(contents: &Contents, path: &Path) -> Option<JournalError> {
    contents.fault.as_ref().map(|fault| JournalError::Corrupt {
        path: path.to_owned(),
        line: fault.line,
        offset: contents.good() as u64,
        problem: fault.problem.clone(),
        good: contents.entries.len(),
    })
}
