//! Maps as bytes, whatever their keys and values are: those of another layout.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use bytemuck::Zeroable;

use super::bpf::{Batch, Command, ElementAttr, address, bpf, found, info, look_up_batch, open_pin};

/// Kinds of maps (`enum bpf_map_type`) that are copied in their own ways; all others are hash maps of some sort.
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const TRIE: u32 = 11;
/// Those with a value for each CPU.
const PER_CPU: [u32; 3] = [5, PER_CPU_ARRAY, 10];

/// A map by its pin.
pub(super) struct Raw {
    fd: OwnedFd,
    kind: u32,
    key: usize,
    value: usize,
    /// Entries that it has room for.
    pub room: u32,
    /// How many values an entry has.
    pub values: usize,
}

/// Whether an entry may be there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Put {
    /// It is overwritten then.
    Any = 0,
    /// It stays then.
    New = 1,
}

impl Raw {
    /// Opens what is pinned at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let fd = open_pin(path)?;
        let info = info(fd.as_fd())?;
        let values = match PER_CPU.contains(&info.kind) {
            true => aya::util::nr_cpus().map_err(|(_, error)| error)?,
            false => 1,
        };
        let (key, value) = (info.key_size as usize, info.value_size as usize);
        Ok(Self { fd, kind: info.kind, key, value, room: info.max_entries, values })
    }

    /// Bytes of a key and of a value.
    pub const fn sizes(&self) -> [usize; 2] {
        [self.key, self.value]
    }

    /// Whether every entry is always there.
    pub const fn is_array(&self) -> bool {
        matches!(self.kind, ARRAY | PER_CPU_ARRAY)
    }

    /// Bytes from one value of an entry to the next, if it has several.
    pub const fn stride(&self) -> usize {
        if self.values == 1 { self.value } else { self.value.next_multiple_of(8) }
    }

    fn element(&self, key: &[u8], value: u64, flags: u64) -> ElementAttr {
        let map_fd = self.fd.as_raw_fd() as u32;
        ElementAttr { map_fd, key: address(key), value, flags, ..ElementAttr::zeroed() }
    }

    /// The value of a key, or its values one behind the other.
    pub fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        assert_eq!(key.len(), self.key, "keys have one length");
        let mut value = vec![0; self.stride() * self.values];
        let mut attr = self.element(key, value.as_mut_ptr() as u64, 0);
        found(bpf(Command::Lookup, &mut attr)).map(|there| there.then_some(value))
    }

    /// Writes an entry. `false`: it was there, and was to stay.
    pub fn put(&self, key: &[u8], value: &[u8], put: Put) -> io::Result<bool> {
        assert_eq!((key.len(), value.len()), (self.key, self.stride() * self.values), "as it is in the map");
        match bpf(Command::Update, &mut self.element(key, address(value), put as u64)) {
            Ok(_) => Ok(true),
            Err(error) if put == Put::New && error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Calls `each` for every entry, with its value or its values one behind the other.
    pub fn for_each(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        if self.kind == TRIE {
            return self.one_by_one(each);
        }
        let size = self.stride() * self.values;
        let mut room = 4096.min(self.room.max(1)) as usize;
        // Where the kernel goes on: in an array behind this index, in a hash map whatever it has said.
        let (mut position, mut started) = (0u32, false);
        loop {
            let (mut keys, mut values) = (vec![0u8; self.key * room], vec![0u8; size * room]);
            let start = started.then_some(position);
            let Batch { count, next, last } =
                match look_up_batch(&self.fd, start, &mut keys, &mut values, room as u32)? {
                    Some(batch) => batch,
                    None => {
                        room *= 2;
                        continue;
                    }
                };
            let entries = keys.chunks_exact(self.key).zip(values.chunks_exact(size));
            for (key, value) in entries.take(count as usize) {
                each(key, value)?;
            }
            if last || count == 0 {
                return Ok(());
            }
            position = match self.is_array() {
                true => position + count - u32::from(!started),
                false => next,
            };
            started = true;
        }
    }

    fn one_by_one(&self, mut each: impl FnMut(&[u8], &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut before: Option<Vec<u8>> = None;
        loop {
            let mut key = vec![0u8; self.key];
            let mut attr = ElementAttr {
                map_fd: self.fd.as_raw_fd() as u32,
                key: before.as_deref().map_or(0, address),
                value: key.as_mut_ptr() as u64,
                ..ElementAttr::zeroed()
            };
            if !found(bpf(Command::NextKey, &mut attr))? {
                return Ok(());
            }
            if let Some(value) = self.get(&key)? {
                each(&key, &value)?;
            }
            before = Some(key);
        }
    }

    /// The beginning of an element of an array that can be mapped.
    pub fn words(&self, index: u32) -> io::Result<Words> {
        if self.kind != ARRAY || index >= self.room || self.value < size_of::<[u64; 2]>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no array of such elements"));
        }
        // SAFETY: no arguments that point anywhere.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) }.max(4096) as usize;
        let start = index as usize * self.value.next_multiple_of(8);
        let (first, within) = (start - start % page, start % page);
        let length = within + size_of::<[u64; 2]>();
        // SAFETY: a new mapping at a place of the kernel's choice.
        let memory = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            let fd = self.fd.as_raw_fd();
            libc::mmap(std::ptr::null_mut(), length, access, libc::MAP_SHARED, fd, first as libc::off_t)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Words { memory, within, length })
    }
}

/// The first two words of an element, as memory.
pub(super) struct Words {
    memory: NonNull<u8>,
    /// Bytes from the beginning of the mapping to the element.
    within: usize,
    length: usize,
}

impl Words {
    pub fn get(&self) -> &[AtomicU64; 2] {
        // SAFETY: the mapping is as long, elements are aligned to words, and atomics may be shared with the kernel.
        unsafe { &*self.memory.as_ptr().add(self.within).cast() }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: our mapping, whose last user we are.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.length) };
    }
}
