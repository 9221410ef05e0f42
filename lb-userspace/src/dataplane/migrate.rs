//! From the maps of one layout to those of the next, while packets are forwarded.
//!
//! The old maps are in `v<N>/`, with the links; the new ones are made beside them, in `v<N+1>/`:
//!
//! 1. maps that are the same in both layouts are shared: pinned there, too. Those that are not ([`layouts`](super::layouts)) are made
//!    anew, as large as they were, and the programs loaded and pinned;
//! 2. the entries of the latter are copied, each turned into what it is now; those that the kernel program writes, twice: the
//!    second time it is little that has changed;
//! 3. each link gets the new program by one update: from then on its packets meet the new maps. Then its pin moves;
//! 4. what the old program has written since it was last copied is copied once more;
//! 5. the old directory goes, with the programs in it.
//!
//! Whoever dies before 3 leaves the old data path as it was: the next agent clears what there is of the new one, and begins
//! again (an agent of the old version goes on with the old one). Whoever dies later leaves the new one whole, and the next agent goes
//! on with 3. Which of both it is follows from the links alone: where they are pinned, and whose program they run.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use aya::programs::Xdp;
use lb_common::abi::{LAYOUT, Split};
use lb_common::settle::divided;
use tracing::{info, warn};

use super::layouts::{Changed, Late, Step, step_from};
use super::load::{LoadError, PROGRAM, give};
use super::raw::{Put, Raw};
use super::{bpf, maps};

/// The directory of a layout, and its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Number of the layout.
    pub layout: u32,
    /// Where its maps are pinned.
    pub directory: PathBuf,
}

impl Place {
    /// Those that have maps or links in them, the oldest first.
    fn all(base: &Path) -> Vec<Self> {
        let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
        let mut places: Vec<Self> = entries
            .flatten()
            .filter_map(|entry| {
                let layout = entry.file_name().to_str()?.strip_prefix('v')?.parse().ok()?;
                Some(Self { layout, directory: entry.path() })
            })
            .filter(|place| place.has_maps() || !place.links().is_empty())
            .collect();
        places.sort_by_key(|place| place.layout);
        places
    }

    fn has_maps(&self) -> bool {
        self.directory.join("SETTINGS").exists()
    }

    /// The pins of its links.
    fn links(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let paths = entries.flatten().map(|entry| entry.path());
        paths
            .filter(|path| path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"link-")))
            .collect()
    }

    /// The number of the program that is pinned there.
    fn program(&self) -> Option<u32> {
        bpf::program_id(bpf::open_pin(&self.directory.join(PROGRAM)).ok()?.as_fd()).ok()
    }

    /// Removes what says that there are maps: whatever else is there is rubbish from then on.
    fn give_up(&self) -> Result<(), LoadError> {
        let path = self.directory.join("SETTINGS");
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done.map_err(|source| LoadError::Pin { what: "remove", path, source }),
        }
    }

    /// Removes everything that is pinned there.
    fn clear(&self) -> Result<(), LoadError> {
        self.give_up()?;
        let failed = |what, path: &Path, source| LoadError::Pin { what, path: path.to_owned(), source };
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|source| failed("read", &self.directory, source))?,
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            fs::remove_file(&path).map_err(|source| failed("remove", &path, source))?;
        }
        fs::remove_dir(&self.directory).map_err(|source| failed("remove", &self.directory, source))
    }
}

/// The program that a link runs; `None` where that cannot be told.
fn program_of(link: &Path) -> Option<u32> {
    bpf::link_program(bpf::open_pin(link).ok()?.as_fd()).ok()
}

/// The directories whose maps packets meet: one, or two while an agent moves from one to the other. Where there is no link at all,
/// every one that has maps.
pub(crate) fn live(base: &Path) -> Vec<Place> {
    let places = Place::all(base);
    let programs: Vec<Option<u32>> = places.iter().map(Place::program).collect();
    let mut met = vec![false; places.len()];
    for (at, place) in places.iter().enumerate() {
        for link in place.links() {
            let runs = program_of(&link);
            // One that traces, or is about to be pinned, is of the maps where the link is.
            let owner =
                programs.iter().position(|program| program.is_some() && *program == runs).unwrap_or(at);
            met[owner] = true;
        }
    }
    let none = !met.contains(&true);
    places.into_iter().zip(met).filter(|(_, met)| *met || none).map(|(place, _)| place).collect()
}

/// All directories of layouts, and what is left of some.
pub(super) fn directories(base: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(base) else { return Vec::new() };
    let is_layout = |name: &str| name.strip_prefix('v').is_some_and(|number| number.parse::<u32>().is_ok());
    let named = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_layout);
    let mut all: Vec<PathBuf> = entries.flatten().filter(named).map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// A move that is under way.
pub(super) struct Move {
    old: Place,
    new: Place,
    step: &'static Step,
    /// What was copied, for each map that is not the same: a key, and a fingerprint of its value.
    copied: Vec<HashMap<Vec<u8>, u64>>,
}

/// Finds out whether there are maps of another layout that packets meet, and begins to move from there.
///
/// # Errors
///
/// If this version does not know the way from there.
pub(super) fn begin(base: &Path) -> Result<Option<Move>, LoadError> {
    let new = Place { layout: LAYOUT, directory: maps::directory(base) };
    // What is left of one that was moved from.
    for directory in directories(base) {
        let place = Place { layout: 0, directory };
        if place.directory != new.directory && !place.has_maps() && place.links().is_empty() {
            place.clear()?;
        }
    }
    let mut others = Place::all(base);
    others.retain(|place| *place != new);
    let Some(old) = others.pop() else { return Ok(None) };
    let ours = new.program();
    let runs_ours = |link: &PathBuf| ours.is_some() && program_of(link) == ours;
    let Some(step) = step_from(old.layout) else {
        // Another version has begun to move from our maps to its own, and has not got as far as the links.
        if new.has_maps() && old.links().is_empty() && live(base) == [new] {
            info!(layout = old.layout, "cleared what another version had begun to make beside the maps");
            old.clear()?;
            return Ok(None);
        }
        return Err(LoadError::Layout { found: old.layout, path: old.directory });
    };
    let begun = !new.links().is_empty() || old.links().iter().any(runs_ours);
    if begun {
        info!(from = old.layout, to = LAYOUT, "goes on with the move to another layout of the maps");
        for link in old.links().iter().filter(|link| runs_ours(link)) {
            move_pin(link, &new.directory)?;
        }
    } else {
        info!(from = old.layout, to = LAYOUT, "the maps have another layout: moving to a new one");
        new.clear()?;
        fs::create_dir_all(&new.directory).map_err(|source| LoadError::Pin {
            what: "create",
            path: new.directory.clone(),
            source,
        })?;
        share(&old, &new, step)?;
    }
    die_at("shared");
    let copied = step.changed.iter().map(|_| HashMap::new()).collect();
    Ok(Some(Move { old, new, step, copied }))
}

/// Pins what is the same in both layouts in the new one's directory as well.
fn share(old: &Place, new: &Place, step: &Step) -> Result<(), LoadError> {
    for name in maps::NAMES.iter().filter(|name| step.changed.iter().all(|changed| changed.name != **name)) {
        let path = new.directory.join(name);
        let shared = match bpf::open_pin(&old.directory.join(name)) {
            // It is new.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            fd => fd.and_then(|fd| bpf::pin(fd.as_fd(), &path)),
        };
        shared.map_err(|source| LoadError::Pin { what: "share", path, source })?;
    }
    Ok(())
}

fn move_pin(link: &Path, to: &Path) -> Result<(), LoadError> {
    let path = to.join(link.file_name().unwrap_or_default());
    fs::rename(link, &path).map_err(|source| LoadError::Pin { what: "move the link to", path, source })
}

impl Move {
    /// How large the maps were that are made anew: what is shared refers to their entries.
    pub fn rooms(&self) -> Vec<(&'static str, u32)> {
        let room = |changed: &Changed| {
            let map = Raw::open(&self.old.directory.join(changed.name)).ok()?;
            Some((changed.name, map.room))
        };
        self.step.changed.iter().filter_map(room).collect()
    }

    /// Moves everything to the new maps, which are there, and to `program`, which is pinned.
    ///
    /// # Errors
    ///
    /// If an entry or a link cannot be moved. The old data path is as it was, unless one of its links was moved already.
    pub fn make(mut self, program: &mut Xdp) -> Result<(), LoadError> {
        die_at("loaded");
        // What was copied before an agent died in the midst of it is not copied over what was written since.
        let fresh = self.new.links().is_empty();
        if fresh {
            let mut entries = 0;
            for late in [false, true] {
                for at in 0..self.step.changed.len() {
                    let changed = &self.step.changed[at];
                    if !late || changed.late != Late::Nothing {
                        entries += self.copy(at)?;
                    }
                }
            }
            info!(entries, "copied what has another form");
        }
        die_at("copied");
        for link in self.old.links() {
            if bpf::open_pin(&link)
                .and_then(|fd| bpf::link_ifindex(fd.as_fd()))
                .is_ok_and(|ifindex| ifindex == 0)
            {
                // Its interface is gone.
                fs::remove_file(&link).map_err(|source| LoadError::Pin {
                    what: "remove",
                    path: link,
                    source,
                })?;
                continue;
            }
            give(program, &link)?;
            die_at("swapped");
            move_pin(&link, &self.new.directory)?;
            die_at("moved");
        }
        let mut late = 0;
        for at in 0..self.step.changed.len() {
            late += self.copy_late(at)?;
        }
        die_at("late");
        info!(late, "packets meet the new maps");
        self.old.give_up()?;
        die_at("clearing");
        self.old.clear()
    }

    /// Both maps of one that has changed; `None` if the old one is not there (any more).
    fn pair(&self, at: usize) -> Result<Option<(Raw, Raw)>, LoadError> {
        let Changed { name, was, is, .. } = &self.step.changed[at];
        let open = |place: &Place, sizes: &[usize; 2]| {
            let path = place.directory.join(name);
            let map = Raw::open(&path).and_then(|map| match map.sizes() == *sizes {
                true => Ok(map),
                false => Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("keys and values of {:?} bytes, not {sizes:?}", map.sizes()),
                )),
            });
            map.map_err(|source| LoadError::Pin { what: "move", path, source })
        };
        if !self.old.directory.join(name).exists() {
            return Ok(None);
        }
        Ok(Some((open(&self.old, was)?, open(&self.new, is)?)))
    }

    /// Copies the entries of a map that are not what they were when they were last copied. Returns how many.
    fn copy(&mut self, at: usize) -> Result<usize, LoadError> {
        let Some((old, new)) = self.pair(at)? else { return Ok(0) };
        let (changed, copied) = (&self.step.changed[at], &mut self.copied[at]);
        let mut count = 0;
        let done = old.for_each(|key, value| {
            let seen = fingerprint(changed.late, value);
            if copied.get(key) == Some(&seen) {
                return Ok(());
            }
            copied.insert(key.to_vec(), seen);
            if let Some((key, value)) = converted(changed, &old, &new, key, value) {
                count += 1;
                new.put(&key, &value, Put::Any)?;
            }
            Ok(())
        });
        done.map(|()| count).map_err(|source| self.failed(at, source))
    }

    /// The same, when packets meet the new map already.
    fn copy_late(&self, at: usize) -> Result<usize, LoadError> {
        let changed = &self.step.changed[at];
        if changed.late == Late::Nothing {
            return Ok(0);
        }
        let Some((old, new)) = self.pair(at)? else { return Ok(0) };
        let mut count = 0;
        let done = old.for_each(|key, value| {
            let before = self.copied[at].get(key);
            if before == Some(&fingerprint(changed.late, value)) {
                return Ok(());
            }
            count += 1;
            if changed.late == Late::Split {
                return lower(&new, key, value);
            }
            let Some((key, value)) = converted(changed, &old, &new, key, value) else { return Ok(()) };
            // What the old program has changed since is where the flow is; what is not known, as after a crash, may be older than
            // what is there.
            new.put(&key, &value, if before.is_some() { Put::Any } else { Put::New }).map(drop)
        });
        done.map(|()| count).map_err(|source| self.failed(at, source))
    }

    fn failed(&self, at: usize, source: io::Error) -> LoadError {
        let path = self.old.directory.join(self.step.changed[at].name);
        LoadError::Pin { what: "move", path, source }
    }
}

/// An entry as it is now, with as many values as it has.
fn converted(
    changed: &Changed,
    old: &Raw,
    new: &Raw,
    key: &[u8],
    value: &[u8],
) -> Option<(Vec<u8>, Vec<u8>)> {
    let [_, size] = changed.was;
    let (mut keys, mut all) = (key.to_vec(), Vec::with_capacity(new.stride() * new.values));
    for value in value.chunks_exact(old.stride()) {
        let (key, value) = (changed.convert)(key, &value[..size])?;
        keys = key;
        all.extend_from_slice(&value);
        all.resize(all.len().next_multiple_of(new.stride()), 0);
    }
    Some((keys, all))
}

/// Tells one value from another. Of a service that is its split, and its home.
fn fingerprint(late: Late, value: &[u8]) -> u64 {
    let counts = if late == Late::Split { &value[..16] } else { value };
    let mut hasher = DefaultHasher::new();
    counts.hash(&mut hasher);
    hasher.finish()
}

/// Gives a service a split as it was, if that is less than it has.
fn lower(services: &Raw, key: &[u8], was: &[u8]) -> io::Result<()> {
    let index = u32::from_ne_bytes(key.try_into().map_err(|_| io::ErrorKind::InvalidData)?);
    let word = |at: usize| was[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or_default();
    let (split, words) = (Split(word(0)), services.words(index)?);
    let [now, _] = words.get();
    if split.new() < Split(now.load(Ordering::Acquire)).new() {
        warn!(service = index, "its split was lowered while the maps were moved");
        lower_to(&words, split.new());
    }
    Ok(())
}

/// Gives a service's canary no more than `share`, from the next packet on. Returns the split before.
fn lower_to(words: &super::raw::Words, share: u32) -> Split {
    let [split, home] = words.get();
    let lowered = split.update(Ordering::AcqRel, Ordering::Acquire, |word| {
        let now = Split(word);
        if now.new() <= share { word } else { divided(now, home.load(Ordering::Acquire) as u32, share).0 }
    });
    Split(lowered)
}

/// Sends no new flow to the canary of a service, in whatever layout the maps are. Returns the split before.
///
/// # Errors
///
/// If there is no such map, or it is something else.
pub(crate) fn roll_back(place: &Place, index: u32) -> io::Result<Split> {
    let words = Raw::open(&place.directory.join("SERVICES"))?.words(index)?;
    Ok(lower_to(&words, 0))
}

/// Where tests have the agent die.
#[cfg(feature = "next-layout")]
fn die_at(step: &str) {
    if std::env::var("LB_DIE_AT").is_ok_and(|at| at == step) {
        eprintln!("dies at {step}, as it was told to");
        std::process::abort();
    }
}

#[cfg(not(feature = "next-layout"))]
const fn die_at(_step: &str) {}
