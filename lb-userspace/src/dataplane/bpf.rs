//! Maps as the agent uses them: typed, by their pins, over `bpf(2)` itself.
//!
//! aya loads and links the programs. What it does not offer is what the agent lives on: arrays as memory, whole tables in
//! batches, take-and-see deletion.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::ops::{ControlFlow, Range};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use bytemuck::{AnyBitPattern, NoUninit, Pod, Zeroable};

/// Commands of `bpf(2)`.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(super) enum Command {
    Lookup = 1,
    Update = 2,
    Delete = 3,
    NextKey = 4,
    ObjectPin = 6,
    ObjectGet = 7,
    TestRun = 10,
    Info = 15,
    LookupAndDelete = 21,
    LookupBatch = 24,
    LinkDetach = 34,
}

/// `union bpf_attr` for commands on one element.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct ElementAttr {
    pub map_fd: u32,
    pub pad: u32,
    pub key: u64,
    pub value: u64,
    pub flags: u64,
}

/// `union bpf_attr` for commands on many.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct BatchAttr {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub element_flags: u64,
    pub flags: u64,
}

/// `union bpf_attr` for pins.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

/// `union bpf_attr` for test runs.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct TestRunAttr {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    /// The kernel wants zeroes after `batch_size`.
    pad: u32,
}

/// `struct xdp_md`, where `data` and `data_end` are offsets.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ifindex: u32,
    queue: u32,
    egress_ifindex: u32,
}

/// `union bpf_attr` for questions.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
pub(super) struct MapInfo {
    pub kind: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    flags: u32,
}

pub(super) fn bpf<A: NoUninit + AnyBitPattern>(command: Command, attr: &mut A) -> io::Result<i32> {
    // SAFETY: `attr` is one of the structures above, whose pointers its maker keeps alive; the kernel reads no more than it
    // is told the length of.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, &raw mut *attr, size_of::<A>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

pub(super) fn address<T: ?Sized>(value: &T) -> u64 {
    (&raw const *value).cast::<u8>() as u64
}

/// Opens what is pinned at `path`.
///
/// # Errors
///
/// `NotFound`, `PermissionDenied`, or whatever else the kernel says.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: address(path.as_bytes_with_nul()), ..ObjectAttr::zeroed() };
    let fd = bpf(Command::ObjectGet, &mut attr)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a map, a program or a link at `path`; it may be pinned elsewhere, too.
///
/// # Errors
///
/// `AlreadyExists`, `PermissionDenied`, or whatever else the kernel says.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = fd.as_raw_fd() as u32;
    let mut attr = ObjectAttr { path: address(path.as_bytes_with_nul()), fd, ..ObjectAttr::zeroed() };
    bpf(Command::ObjectPin, &mut attr).map(drop)
}

/// Runs an XDP program on a frame that is said to have come in by `ifindex`. Returns what it returned, and the frame as it
/// left it.
///
/// # Errors
///
/// Whatever the kernel says.
pub fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> io::Result<(u32, Vec<u8>)> {
    // No program adds more than the headroom that XDP gives.
    let mut output = vec![0_u8; frame.len() + 256];
    let context = XdpContext { data_end: frame.len() as u32, ifindex, ..XdpContext::zeroed() };
    let mut attr = TestRunAttr {
        program: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_in: address(frame),
        data_size_out: output.len() as u32,
        data_out: output.as_mut_ptr() as u64,
        repeat: 1,
        context_size_in: size_of::<XdpContext>() as u32,
        context_in: address(&context),
        ..TestRunAttr::zeroed()
    };
    bpf(Command::TestRun, &mut attr)?;
    output.truncate(attr.data_size_out as usize);
    Ok((attr.retval, output))
}

pub(super) fn info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut info = MapInfo::zeroed();
    let mut attr = InfoAttr {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<MapInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(Command::Info, &mut attr)?;
    Ok(info)
}

/// The beginning of `struct bpf_link_info`, for XDP.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    ifindex: u32,
    end: u32,
}

/// The interface that an XDP link is on; 0 once that is gone.
///
/// # Errors
///
/// Whatever the kernel says.
pub fn link_ifindex(fd: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(fd).map(|info| info.ifindex)
}

/// The number of the program that a link runs.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn link_program(fd: BorrowedFd<'_>) -> io::Result<u32> {
    link_info(fd).map(|info| info.program)
}

fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::zeroed();
    let mut attr = InfoAttr {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<LinkInfo>() as u32,
        info: (&raw mut info) as u64,
    };
    bpf(Command::Info, &mut attr)?;
    Ok(info)
}

/// The number of a program.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // The beginning of `struct bpf_prog_info`: its type, and its number.
    let mut info = [0u32; 2];
    let mut attr = InfoAttr {
        fd: fd.as_raw_fd() as u32,
        length: size_of_val(&info) as u32,
        info: (&raw mut info) as u64,
    };
    bpf(Command::Info, &mut attr)?;
    Ok(info[1])
}

/// `union bpf_attr` for links.
#[repr(C)]
#[derive(Clone, Copy, Default, Pod, Zeroable)]
struct LinkAttr {
    fd: u32,
}

/// Takes the program of a link off its interface, now: a link that is merely closed is taken off by the kernel some time later.
///
/// # Errors
///
/// Whatever the kernel says.
pub fn detach_link(fd: BorrowedFd<'_>) -> io::Result<()> {
    bpf(Command::LinkDetach, &mut LinkAttr { fd: fd.as_raw_fd() as u32 }).map(drop)
}

/// Opens a pinned map whose values have the size that we think they have.
fn open_map(path: &Path, key_size: usize, value_size: usize) -> io::Result<(OwnedFd, MapInfo)> {
    let fd = open_pin(path)?;
    let info = info(fd.as_fd())?;
    if info.key_size as usize != key_size || info.value_size as usize != value_size {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!(
                "keys of {} and values of {} bytes, but this version uses {key_size} and {value_size}",
                info.key_size, info.value_size
            ),
        ));
    }
    Ok((fd, info))
}

/// An array map as memory: what is stored here, the next packet sees.
///
/// Values are whole words; each word is read and written atomically, a value of several words is not.
///
/// The kernel puts every page of an array into a mapping as it is made, so that large arrays are mapped as far as they are used:
/// the address space of all of it is kept, and each [`WINDOW`] of it is mapped when something in it is asked for.
pub struct Mapped<T> {
    fd: OwnedFd,
    words: NonNull<AtomicU64>,
    length: u32,
    windows: Box<[OnceLock<()>]>,
    value: PhantomData<T>,
}

/// Bytes that are mapped at a time: whole pages, of every size that pages have.
const WINDOW: usize = 1 << 20;

// SAFETY: the memory is shared with the kernel anyway; all access is by atomic words.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T: Pod> Mapped<T> {
    const WORDS: usize = {
        assert!(size_of::<T>().is_multiple_of(8), "values are whole words");
        size_of::<T>() / 8
    };

    /// Maps the array that is pinned at `path`.
    ///
    /// # Errors
    ///
    /// If it is not there, not ours, or has another layout.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (fd, info) = open_map(path, 4, size_of::<T>())?;
        let bytes = info.max_entries as usize * size_of::<T>();
        // SAFETY: a new mapping of nothing, at a place of the kernel's choice.
        let memory = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0)
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(memory.cast()).ok_or(io::ErrorKind::InvalidData)?;
        let windows = vec![OnceLock::new(); bytes.div_ceil(WINDOW)].into();
        let mapped = Self { fd, words, length: info.max_entries, windows, value: PhantomData };
        // What cannot be mapped at all is said now.
        mapped.map_window(0)?;
        Ok(mapped)
    }

    fn map_window(&self, window: usize) -> io::Result<()> {
        let (start, all) = (window * WINDOW, self.length as usize * size_of::<T>());
        let bytes = WINDOW.min(all - start);
        // SAFETY: a part of our own address space, which nobody uses before its window says that it is there.
        let memory = unsafe {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_FIXED);
            let place = self.words.as_ptr().byte_add(start).cast();
            libc::mmap(place, bytes, access, flags, self.fd.as_raw_fd(), start as libc::off_t)
        };
        if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// How many elements there are.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are none. (Never: the kernel makes no empty arrays.)
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The words of an element.
    ///
    /// # Panics
    ///
    /// If there is no such element, or the kernel has no memory for the tables that show a process its pages.
    #[must_use]
    pub fn words(&self, index: u32) -> &[AtomicU64] {
        assert!(index < self.length, "element {index} of {}", self.length);
        let start = index as usize * size_of::<T>();
        for window in start / WINDOW..=(start + size_of::<T>() - 1) / WINDOW {
            self.windows[window].get_or_init(|| {
                self.map_window(window).unwrap_or_else(|error| panic!("cannot map an array: {error}"));
            });
        }
        // SAFETY: in bounds of the mapping, which lives as long as `self` and is there in this part; atomics may be shared with
        // the kernel.
        unsafe {
            std::slice::from_raw_parts(self.words.as_ptr().add(index as usize * Self::WORDS), Self::WORDS)
        }
    }

    /// The word of an element that has its field at `offset` (in bytes).
    #[must_use]
    pub fn word(&self, index: u32, offset: usize) -> &AtomicU64 {
        &self.words(index)[offset / 8]
    }

    /// Reads an element, word by word.
    #[must_use]
    pub fn read(&self, index: u32) -> T {
        let mut value = T::zeroed();
        let words = self.words(index);
        for (bytes, word) in bytemuck::bytes_of_mut(&mut value).chunks_exact_mut(8).zip(words) {
            bytes.copy_from_slice(&word.load(Ordering::Acquire).to_ne_bytes());
        }
        value
    }

    /// Writes an element, word by word, and only the words that differ. Returns whether any did.
    pub fn write(&self, index: u32, value: &T) -> bool {
        self.write_from(index, 0, value)
    }

    /// The same for the words from `offset` (in bytes) on.
    pub fn write_from(&self, index: u32, offset: usize, value: &T) -> bool {
        let mut changed = false;
        let words = bytemuck::bytes_of(value).chunks_exact(8).zip(self.words(index));
        for (bytes, word) in words.skip(offset / 8) {
            let new = u64::from_ne_bytes(bytes.try_into().expect("chunks of 8"));
            if word.load(Ordering::Relaxed) != new {
                word.store(new, Ordering::Release);
                changed = true;
            }
        }
        changed
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `open`, whose last user we are.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.length as usize * size_of::<T>()) };
    }
}

impl<T> AsFd for Mapped<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a look at a part of a map has found.
pub(super) struct Batch {
    /// Entries.
    pub count: u32,
    /// Where the next part begins, in a hash map.
    pub next: u32,
    /// There is no next part.
    pub last: bool,
}

/// Reads entries from a position on (`None`: from the first one), for which keys and values have room for `room` of them. `None`: a
/// bucket is longer than that.
///
/// # Errors
///
/// Whatever the kernel says.
pub(super) fn look_up_batch<K: Pod, V: Pod>(
    fd: &OwnedFd,
    start: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
    room: u32,
) -> io::Result<Option<Batch>> {
    let mut next = 0u32;
    let mut attr = BatchAttr {
        in_batch: start.as_ref().map_or(0, address),
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room,
        map_fd: fd.as_raw_fd() as u32,
        ..BatchAttr::zeroed()
    };
    let last = match bpf(Command::LookupBatch, &mut attr) {
        Ok(_) => false,
        // The end; what there was of it is filled in.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        // Nothing was filled in beyond the position.
        Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(Batch { count: attr.count, next, last }))
}

/// A hash map.
pub struct Hash<K, V> {
    fd: OwnedFd,
    capacity: u32,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Hash<K, V> {
    /// Opens the map that is pinned at `path`.
    ///
    /// # Errors
    ///
    /// If it is not there, not ours, or has another layout.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (fd, info) = open_map(path, size_of::<K>(), size_of::<V>())?;
        Ok(Self { fd, capacity: info.max_entries, types: PhantomData })
    }

    /// How many entries it has room for.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        self.capacity
    }

    fn element(&self, key: &K, value: u64) -> ElementAttr {
        ElementAttr { map_fd: self.fd.as_raw_fd() as u32, key: address(key), value, ..ElementAttr::zeroed() }
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, but for "not found".
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        found(bpf(Command::Lookup, &mut self.element(key, (&raw mut value) as u64)))
            .map(|there| there.then_some(value))
    }

    /// Sets the value of `key`.
    ///
    /// # Errors
    ///
    /// `E2BIG` if the map is full.
    pub fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        bpf(Command::Update, &mut self.element(key, address(value))).map(drop)
    }

    /// Deletes `key`; returns whether it was there.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, but for "not found".
    pub fn remove(&self, key: &K) -> io::Result<bool> {
        found(bpf(Command::Delete, &mut self.element(key, 0)))
    }

    /// Deletes `key` and returns what its value was at that moment.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says, but for "not found".
    pub fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::zeroed();
        let mut attr = self.element(key, (&raw mut value) as u64);
        found(bpf(Command::LookupAndDelete, &mut attr)).map(|there| there.then_some(value))
    }

    /// Calls `each` for every entry. Entries that are there all the time are seen exactly once.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn for_each(&self, mut each: impl FnMut(&K, &V)) -> io::Result<()> {
        self.try_for_each(|key, value| {
            each(key, value);
            ControlFlow::Continue(())
        })
    }

    /// The same, until `each` has seen enough.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn try_for_each(&self, mut each: impl FnMut(&K, &V) -> ControlFlow<()>) -> io::Result<()> {
        let mut room = 4096.min(self.capacity.max(1)) as usize;
        let mut position = 0u32;
        let mut started = false;
        loop {
            let mut keys = vec![K::zeroed(); room];
            let mut values = vec![V::zeroed(); room];
            let start = started.then_some(position);
            let Batch { count, next, last } =
                match look_up_batch(&self.fd, start, &mut keys, &mut values, room as u32)? {
                    Some(batch) => batch,
                    None => {
                        room *= 2;
                        continue;
                    }
                };
            let count = count as usize;
            let enough =
                keys[..count].iter().zip(&values[..count]).try_for_each(|(key, value)| each(key, value));
            if last || enough.is_break() {
                return Ok(());
            }
            (position, started) = (next, true);
        }
    }

    /// All keys, one by one: also of a trie, which cannot be read in batches like a hash map. Nobody else may change it
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::zeroed();
            let mut attr = ElementAttr {
                map_fd: self.fd.as_raw_fd() as u32,
                key: keys.last().map_or(0, address),
                value: (&raw mut next) as u64,
                ..ElementAttr::zeroed()
            };
            if !found(bpf(Command::NextKey, &mut attr))? {
                return Ok(keys);
            }
            keys.push(next);
        }
    }

    /// How many entries there are.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn count(&self) -> io::Result<usize> {
        let mut count = 0;
        self.for_each(|_, _| count += 1)?;
        Ok(count)
    }

    /// All entries.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.for_each(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }
}

pub(super) fn found(result: io::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A per-CPU array.
pub struct PerCpu<T> {
    fd: OwnedFd,
    length: u32,
    cpus: usize,
    value: PhantomData<T>,
}

impl<T: Pod> PerCpu<T> {
    /// Opens the map that is pinned at `path`.
    ///
    /// # Errors
    ///
    /// If it is not there, not ours, or has another layout.
    pub fn open(path: &Path) -> io::Result<Self> {
        let (fd, info) = open_map(path, 4, size_of::<T>())?;
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
        Ok(Self { fd, length: info.max_entries, cpus, value: PhantomData })
    }

    /// How many elements there are.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.length
    }

    /// Whether there are none. (Never: the kernel makes no empty arrays.)
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn stride() -> usize {
        size_of::<T>().next_multiple_of(8)
    }

    /// The element's value on each CPU.
    ///
    /// # Errors
    ///
    /// If there is no such element.
    pub fn read(&self, index: u32) -> io::Result<Vec<T>> {
        let mut values = vec![0u8; Self::stride() * self.cpus];
        let mut attr = ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: address(&index),
            value: values.as_mut_ptr() as u64,
            ..ElementAttr::zeroed()
        };
        bpf(Command::Lookup, &mut attr)?;
        Ok(values
            .chunks_exact(Self::stride())
            .map(|bytes| bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]))
            .collect())
    }

    /// The values of some elements, as far as there are any, each summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Whatever the kernel says.
    pub fn sums(&self, elements: Range<u32>) -> io::Result<Vec<T>>
    where
        T: std::ops::AddAssign,
    {
        const AT_ONCE: u32 = 1024;
        let (end, stride) = (elements.end.min(self.length), Self::stride() * self.cpus);
        let count = end.saturating_sub(elements.start);
        let mut sums: Vec<T> = Vec::with_capacity(count as usize);
        let mut keys = vec![0u32; AT_ONCE.min(count) as usize];
        let mut values = vec![0u8; stride * AT_ONCE.min(count) as usize];
        while (sums.len() as u32) < count {
            let done = elements.start + sums.len() as u32;
            let room = AT_ONCE.min(end - done);
            let count = match look_up_batch(&self.fd, done.checked_sub(1), &mut keys, &mut values, room)? {
                Some(batch) if batch.count > 0 => batch.count,
                _ => return Err(io::Error::from_raw_os_error(libc::ENOENT)),
            };
            for element in values[..stride * count as usize].chunks_exact(stride) {
                let mut sum = T::zeroed();
                for bytes in element.chunks_exact(Self::stride()) {
                    sum += bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]);
                }
                sums.push(sum);
            }
        }
        Ok(sums)
    }

    /// Sets the element to zero on each CPU.
    ///
    /// # Errors
    ///
    /// If there is no such element.
    pub fn clear(&self, index: u32) -> io::Result<()> {
        let values = vec![0u8; Self::stride() * self.cpus];
        let mut attr = ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            key: address(&index),
            value: values.as_ptr() as u64,
            ..ElementAttr::zeroed()
        };
        bpf(Command::Update, &mut attr).map(drop)
    }
}
