//! The journal on a disk that fails and on a machine that dies, at every step.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::config;
use crate::state::Snapshot;

/// A disk with the two names that a journal uses. What was written is lost in a crash, or a part of it, until it is synced.
#[derive(Clone, Debug, Default)]
struct Disk {
    /// What the system shows.
    shown: Names,
    /// What is on the disk for certain.
    safe: Names,
    /// Steps until the machine dies; `None`: it does not.
    dies_in: Option<usize>,
    /// Whether it has.
    dead: bool,
    /// The numbers of the steps, from now on, that fail.
    fails: Vec<usize>,
    steps: usize,
    /// Files that were kept under other names.
    kept: Vec<(String, Vec<u8>)>,
    /// What part of something that fails or dies half-way is done, in 256ths.
    part: u8,
}

/// The file in its place, and the one that is prepared. Both are numbers of files.
#[derive(Clone, Debug, Default)]
struct Names {
    file: Vec<u8>,
    prepared: Option<Vec<u8>>,
    /// The file that had the place before, while it is not on the disk that it lost it.
    replaced: Option<Vec<u8>>,
}

impl Disk {
    /// Takes a step. `Err` with a part: only so much of it is done.
    fn step(&mut self) -> Result<(), u8> {
        self.steps += 1;
        if self.dead {
            return Err(0);
        }
        if let Some(left) = &mut self.dies_in {
            if *left == 0 {
                self.dead = true;
                return Err(self.part);
            }
            *left -= 1;
        }
        if self.fails.contains(&self.steps) { Err(self.part) } else { Ok(()) }
    }

    /// What the next start finds. What was not synced is there in part.
    fn after_crash(&self) -> Self {
        let file = match (&self.shown.replaced, self.part % 2) {
            // Which file has the name was not synced: either may have it.
            (Some(replaced), 0) => replaced.clone(),
            _ => torn(&self.safe.file, &self.shown.file, self.part),
        };
        let names = Names { file, prepared: None, replaced: None };
        Self {
            shown: names.clone(),
            safe: names,
            kept: self.kept.clone(),
            part: self.part,
            ..Self::default()
        }
    }
}

/// Between what is on the disk and what was written: any part of what was appended, and a cut that may not have happened.
fn torn(safe: &[u8], shown: &[u8], part: u8) -> Vec<u8> {
    let same = safe.iter().zip(shown).take_while(|(a, b)| a == b).count();
    let longer = if shown.len() > same { shown } else { safe };
    longer[..same + share(longer.len() - same, part)].to_vec()
}

fn share(length: usize, part: u8) -> usize {
    length * usize::from(part) / 255
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

impl Storage for Disk {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        self.step().map_err(|_| broken())?;
        Ok(self.shown.file.clone())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let done = self.step();
        let length = done.map_or_else(|part| share(bytes.len(), part), |()| bytes.len());
        self.shown.file.extend_from_slice(&bytes[..length]);
        done.map_err(|_| broken())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.step().map_err(|_| broken())?;
        self.shown.file.truncate(length as usize);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let done = self.step();
        self.safe.file = match done {
            Ok(()) => self.shown.file.clone(),
            Err(part) => torn(&self.safe.file, &self.shown.file, part),
        };
        done.map_err(|_| broken())
    }

    fn prepare(&mut self, bytes: &[u8]) -> io::Result<()> {
        let done = self.step();
        self.shown.prepared = done.ok().map(|()| bytes.to_vec());
        done.map_err(|_| broken())
    }

    fn exchange(&mut self) -> io::Result<()> {
        self.step().map_err(|_| broken())?;
        let prepared = self.shown.prepared.take().expect("something is prepared");
        self.shown.replaced = Some(std::mem::replace(&mut self.safe.file, prepared.clone()));
        self.shown.file = prepared;
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.step().map_err(|_| broken())?;
        self.shown.replaced = None;
        Ok(())
    }

    fn keep(&mut self, name: &str) -> io::Result<PathBuf> {
        self.step().map_err(|_| broken())?;
        self.kept.push((name.to_owned(), self.shown.file.clone()));
        Ok(name.into())
    }
}

fn configured(weight: u16) -> Change {
    let text = format!(
        "schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"web\"\nvip = \"203.0.113.10\"\nport = 80\n\
         [[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\nweight = {weight}\n\
         [[service.pool]]\nname = \"b\"\n[[service.pool.backend]]\naddress = \"10.0.1.1:80\"\n"
    );
    let config = config::parse(&text, "test").expect("a good configuration").config;
    Change::Config { config: Box::new(config), file: Some(format!("file {weight}")) }
}

fn split(percent: usize) -> Change {
    let intent = serde_json::json!({"stable": "a", "canary": "b", "split": percent as f64, "salt": 0});
    Change::Service {
        name: serde_json::from_value("web".into()).expect("a name"),
        intent: serde_json::from_value(intent).expect("an intent"),
    }
}

fn append<S: Storage>(journal: &mut Journal<S>, change: Change) -> Result<Entry, JournalError> {
    journal.append(String::new(), Author::agent("test"), None, String::new(), change)
}

fn open(disk: Disk, limits: Limits) -> Result<(Journal<Disk>, Vec<Entry>), JournalError> {
    Journal::on(disk, "journal.jsonl".into(), limits)
}

/// A journal of a configuration and so many changes of the split.
fn with(count: usize) -> Journal<Disk> {
    let (mut journal, _) = open(Disk::default(), Limits::default()).expect("a journal");
    append(&mut journal, configured(100)).expect("appended");
    for percent in 1..count {
        append(&mut journal, split(percent)).expect("appended");
    }
    journal
}

fn bytes_of(count: usize) -> Vec<u8> {
    with(count).storage.shown.file
}

fn on_disk(file: Vec<u8>) -> Disk {
    let names = Names { file, ..Names::default() };
    Disk { shown: names.clone(), safe: names, ..Disk::default() }
}

#[test]
fn what_was_appended_is_read_back_from_a_real_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("state");
    let (mut journal, entries) = Journal::open(&place).expect("a journal");
    assert!(entries.is_empty());
    for percent in 0..3 {
        append(&mut journal, split(percent)).expect("appended");
    }
    assert!(
        matches!(Journal::open(&place), Err(JournalError::InUse { .. })),
        "two agents do not write one journal"
    );
    assert_eq!(Journal::read(&place).expect("whoever only reads may").len(), 3);
    drop(journal);
    let (journal, entries) = Journal::open(&place).expect("a journal");
    assert_eq!(journal.last(), 3);
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(entries[2].change, split(2));
}

#[test]
fn a_real_file_is_compacted_in_place_and_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let limits = Limits { bytes: 8_192, records: 5 };
    let storage = Directory::open(directory.path()).expect("a directory");
    let (mut journal, _) = Journal::on(storage, directory.path().join(FILE), limits).expect("a journal");
    append(&mut journal, configured(100)).expect("appended");
    let mut folded = None;
    let mut percent = 0;
    while folded.is_none() {
        percent += 1;
        append(&mut journal, split(percent)).expect("appended");
        folded = journal.compact().expect("compacted");
    }
    append(&mut journal, split(99)).expect("appended to the new file");
    drop(journal);
    let names: Vec<_> = fs::read_dir(directory.path()).expect("a directory").flatten().collect();
    assert_eq!(names.len(), 1, "nothing is left beside it: {names:?}");
    let mode = names[0].metadata().expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "URLs in it may hold secrets");
    let entries = Journal::read(directory.path()).expect("good");
    assert_eq!(entries.len(), 1 + 5 + 1);
    assert!(matches!(entries[0].change, Change::Base { .. }));
    assert_eq!(
        entries.last().map(|entry| (entry.sequence, &entry.change)),
        Some((percent as u64 + 2, &split(99)))
    );
    assert_eq!(file_of_journal(&entries).as_deref(), Some("file 100"));
}

fn file_of_journal(entries: &[Entry]) -> Option<String> {
    crate::state::file_of(entries).map(str::to_owned)
}

#[test]
fn a_record_torn_at_any_byte_is_cut_off() {
    let (whole, first) = (bytes_of(2), bytes_of(1).len());
    for end in first..whole.len() {
        let (mut journal, entries) =
            open(on_disk(whole[..end].to_vec()), Limits::default()).expect("repaired");
        assert_eq!(entries.len(), 1, "torn at {end}");
        let entry = append(&mut journal, split(9)).expect("appended");
        assert_eq!(entry.sequence, 2);
        let (_, entries) = open(journal.storage.after_crash(), Limits::default()).expect("a journal");
        assert_eq!(entries.last().map(|entry| &entry.change), Some(&split(9)));
    }
}

#[test]
fn a_changed_byte_anywhere_is_refused_with_its_line_and_recovered_from() {
    let whole = bytes_of(3);
    let lines: Vec<usize> =
        whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    // A file that loses its last byte is a torn one.
    for at in 0..whole.len() - 1 {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x01;
        let before = lines.iter().filter(|&&end| end < at).count();
        match open(on_disk(bytes.clone()), Limits::default()).map(|_| ()) {
            Err(JournalError::Corrupt { line, good, .. }) => assert_eq!((line, good), (before + 1, before)),
            other => panic!("byte {at} was changed and nobody noticed: {other:?}"),
        }
        let recovered = Journal::recovered(on_disk(bytes.clone()), FILE.into(), Limits::default(), "now");
        let (journal, entries, lost) = recovered.expect("recovered");
        let lost = lost.expect("something was lost");
        assert_eq!((entries.len(), lost.line, lost.last_good), (before, before + 1, before as u64));
        // A line end that is gone makes two lines one.
        let readable = if lines.contains(&at) { 3 - before - 2 } else { 3 - before - 1 };
        assert_eq!(lost.legible.len(), readable, "byte {at}");
        assert_eq!(journal.storage.kept, [("journal.jsonl.corrupt-now".to_owned(), bytes)]);
        assert_eq!(journal.storage.shown.file, whole[..whole.len() - lost.bytes as usize]);
    }
}

#[test]
fn a_machine_that_dies_while_it_recovers_can_recover_again() {
    let whole = bytes_of(3);
    let mut bytes = whole.clone();
    let at = bytes_of(2).len() - 10;
    bytes[at] ^= 0x01;
    for dies_in in 0..8 {
        for part in [0, 1, 128, 255] {
            let disk = Disk { dies_in: Some(dies_in), part, ..on_disk(bytes.clone()) };
            let mut dying = disk;
            let _ = Journal::recovered(&mut dying, FILE.into(), Limits::default(), "first");
            let next = dying.after_crash();
            let (_, entries, lost) =
                Journal::recovered(next, FILE.into(), Limits::default(), "second").expect("recovered");
            assert_eq!(entries.len(), 1, "died in step {dies_in}");
            assert!(lost.is_some() || dying.kept == [(format!("{FILE}.corrupt-first"), bytes.clone())]);
        }
    }
}

/// So that a journal can be watched from outside while it works.
impl Storage for &mut Disk {
    fn read(&mut self) -> io::Result<Vec<u8>> {
        (**self).read()
    }
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).append(bytes)
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        (**self).truncate(length)
    }
    fn sync(&mut self) -> io::Result<()> {
        (**self).sync()
    }
    fn prepare(&mut self, bytes: &[u8]) -> io::Result<()> {
        (**self).prepare(bytes)
    }
    fn exchange(&mut self) -> io::Result<()> {
        (**self).exchange()
    }
    fn sync_names(&mut self) -> io::Result<()> {
        (**self).sync_names()
    }
    fn keep(&mut self, name: &str) -> io::Result<PathBuf> {
        (**self).keep(name)
    }
}

/// What the agent does with a journal.
#[derive(Clone, Debug)]
enum Act {
    Split(usize),
    Configure(u16),
    Compact,
}

/// Begins to compact, or ends what was begun: others may happen in between.
fn compact<S: Storage>(
    journal: &mut Journal<S>,
    under_way: Option<Compaction>,
) -> Result<Option<Compaction>, JournalError> {
    match under_way {
        None => journal.begin_compaction(),
        Some(compaction) => journal.finish_compaction(compaction.fold()).map(|_| None),
    }
}

/// Number, change, and what held from then on.
fn revisions(histories: &Histories) -> Vec<(u64, u64, bool, Snapshot)> {
    let all = histories.revisions("web").iter();
    all.map(|one| (one.number, one.sequence, one.is_base, one.snapshot())).collect()
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0usize..100).prop_map(Act::Split),
        1 => (1u16..100).prop_map(Act::Configure),
        2 => Just(Act::Compact),
    ];
    prop::collection::vec(act, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Whatever fails, and whenever the machine dies: what was acknowledged holds, and of what was not acknowledged since
    /// then at most one change does, as a whole: the machine may have died before that was cut off.
    #[test]
    fn after_any_failures_and_a_crash_it_is_the_old_state_or_the_new_one(
        acts in acts(),
        dies_in in prop::option::of(0usize..200),
        fails in prop::collection::vec(3usize..200, 0..12),
        part in any::<u8>(),
    ) {
        let limits = Limits { bytes: 3_000, records: 4 };
        let mut disk = Disk { dies_in, fails, part, ..Disk::default() };
        let mut state: Option<Desired> = None;
        let mut attempted = Vec::new();
        let mut acknowledged = 0;
        if let Ok((mut journal, _)) = Journal::on(&mut disk, FILE.into(), limits) {
            let mut under_way = None;
            for act in acts {
                let change = match act {
                    Act::Split(percent) => split(percent),
                    Act::Configure(weight) => configured(weight),
                    Act::Compact => {
                        under_way = compact(&mut journal, under_way).unwrap_or_default();
                        continue;
                    }
                };
                let next = Desired::after(state.clone(), &change);
                match append(&mut journal, change) {
                    Ok(entry) => {
                        prop_assert_eq!(entry.sequence, acknowledged + 1);
                        (state, acknowledged) = (next, entry.sequence);
                        attempted.clear();
                    }
                    Err(_) => attempted.push(next),
                }
            }
        }
        let (journal, entries) = open(disk.after_crash(), limits).expect("a crash does not corrupt a journal");
        let found = Desired::replayed(&entries);
        let is_old = found == state && journal.last() == acknowledged;
        let is_new = attempted.contains(&found) && journal.last() == acknowledged + 1;
        prop_assert!(is_old || is_new, "{found:#?}\nis neither\n{state:#?}\nnor one of\n{attempted:#?}");
    }

    /// What is kept after compaction says the same as the whole would.
    #[test]
    fn a_compacted_journal_comes_to_the_same(acts in acts()) {
        let limits = Limits { bytes: 3_000, records: 4 };
        let (mut compacted, _) = open(Disk::default(), limits).expect("a journal");
        let (mut whole, _) = open(Disk::default(), Limits::default()).expect("a journal");
        let mut under_way = None;
        for act in acts {
            let change = match act {
                Act::Split(percent) => split(percent),
                Act::Configure(weight) => configured(weight),
                Act::Compact => {
                    under_way = compact(&mut compacted, under_way).expect("compacted");
                    continue;
                }
            };
            append(&mut compacted, change.clone()).expect("appended");
            append(&mut whole, change).expect("appended");
        }
        let noted = revisions(compacted.histories());
        let (_, short) = open(compacted.storage.after_crash(), limits).expect("good");
        prop_assert_eq!(noted, revisions(&Histories::of(&short)));
        let (_, long) = open(whole.storage.after_crash(), limits).expect("good");
        prop_assert_eq!(Desired::replayed(&short), Desired::replayed(&long));
        prop_assert_eq!(file_of_journal(&short), file_of_journal(&long));
        let skip = long.len() - (short.len() - usize::from(short.len() < long.len()));
        prop_assert_eq!(&short[short.len() - (long.len() - skip)..], &long[skip..]);
    }
}
