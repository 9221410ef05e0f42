//! What a journal is kept on: files, or in the tests a disk that fails.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{FILE, JournalError};

/// A file, and another one that is made ready beside it to take its place.
///
/// What was written is on the disk only after the `sync` that belongs to it; until then a crash leaves any part of it.
pub trait Storage {
    /// The whole file.
    ///
    /// # Errors
    /// What the system says; so in all of these.
    fn read(&mut self) -> io::Result<Vec<u8>>;

    /// Writes behind what is there. After an error a part of it may be.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file off after so many bytes.
    fn truncate(&mut self, length: u64) -> io::Result<()>;

    /// Returns when all that was appended or cut off is on the disk.
    fn sync(&mut self) -> io::Result<()>;

    /// Writes the other file, on the disk when this returns; one that was there is overwritten.
    fn prepare(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Puts the prepared file in the place of the file, all at once.
    fn exchange(&mut self) -> io::Result<()>;

    /// Returns when it is on the disk which file is in its place.
    fn sync_names(&mut self) -> io::Result<()>;

    /// Gives the file another name beside its own, which stays with what it holds now when another takes its place. Returns
    /// where that is.
    fn keep(&mut self, name: &str) -> io::Result<PathBuf>;
}

/// The directory of a journal, which nobody else changes while this lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// Of the directory itself: locked, and synced for its names.
    handle: File,
    file: File,
    prepared: Option<File>,
}

impl Directory {
    /// Takes a state directory, and makes it and the file where there is none.
    ///
    /// # Errors
    ///
    /// If another process has it, or the system does not let us.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let file_path = path.join(FILE);
        let failed = |what| {
            let path = file_path.clone();
            move |source| JournalError::Io { what, path, source }
        };
        fs::create_dir_all(path).map_err(failed("make the directory of"))?;
        let handle = lock(path)?;
        let file = private().create(true).open(&file_path).map_err(failed("open"))?;
        Ok(Self { path: path.to_owned(), handle, file, prepared: None })
    }

    fn aside(&self) -> PathBuf {
        self.path.join(format!("{FILE}.next"))
    }
}

/// Takes a state directory, for as long as what is returned is open.
pub(super) fn lock(path: &Path) -> Result<File, JournalError> {
    let file_path = path.join(FILE);
    let failed = |what| {
        let path = file_path.clone();
        move |source| JournalError::Io { what, path, source }
    };
    let handle = File::open(path).map_err(failed("open the directory of"))?;
    match handle.try_lock() {
        Ok(()) => Ok(handle),
        Err(TryLockError::WouldBlock) => Err(JournalError::InUse { path: file_path }),
        Err(TryLockError::Error(source)) => Err(failed("lock")(source)),
    }
}

/// For reading and appending; what is made is its owner's alone: URLs of gates and of discoveries may hold secrets.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options
}

impl Storage for Directory {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        // At the end wherever the last reader was: the file is open for appending.
        self.file.write_all(bytes)
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn prepare(&mut self, bytes: &[u8]) -> io::Result<()> {
        let path = self.aside();
        let write = || {
            // Without what an interrupted run has left: appending would add to it.
            if let Err(error) = fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
            let mut file = private().create_new(true).open(&path)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            Ok(file)
        };
        match write() {
            Ok(file) => {
                self.prepared = Some(file);
                Ok(())
            }
            Err(error) => {
                // On a full disk every byte counts; whoever comes next would overwrite it.
                let _ = fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn exchange(&mut self) -> io::Result<()> {
        let Some(file) = self.prepared.take() else {
            return Err(io::Error::other("there is no prepared file"));
        };
        fs::rename(self.aside(), self.path.join(FILE))?;
        self.file = file;
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn keep(&mut self, name: &str) -> io::Result<PathBuf> {
        let path = self.path.join(name);
        // A link, not a copy: it works on a full disk.
        fs::hard_link(self.path.join(FILE), &path)?;
        self.handle.sync_all()?;
        Ok(path)
    }
}
