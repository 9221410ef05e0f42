//! The revisions of every service, out of the journal.
//!
//! They are noted as changes are read or made, so that whoever asks need not read the journal again. Revisions between which the
//! configuration of their service stays as it is share it.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use super::snapshot::{self, Values};
use super::{Author, Change, Desired, Entry, Intent, Snapshot};
use crate::config::{ContentHash, Service, ServiceName};

/// A service as it was from one of its changes on.
#[derive(Clone, Debug)]
pub struct Revision {
    /// Counts the changes of the service.
    pub number: u64,
    /// The change of the journal that made it.
    pub sequence: u64,
    /// When it was made (RFC 3339).
    pub time: String,
    /// By whom.
    pub author: Author,
    /// Why, in the author's words.
    pub reason: Option<String>,
    /// What was done, in a sentence.
    pub summary: String,
    /// What was configured from then on; `None`: there was no such service.
    pub service: Option<Arc<Service>>,
    /// What was decided at run time.
    pub intent: Option<Intent>,
    /// Whether all changes before it were made one, so that nobody knows any more what it changed.
    pub is_base: bool,
    hash: OnceLock<ContentHash>,
}

impl Revision {
    /// What held from then on.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot { service: self.service.as_deref().cloned(), intent: self.intent.clone() }
    }

    /// As [`Snapshot::values`].
    #[must_use]
    pub fn values(&self) -> Values {
        snapshot::values(self.service.as_deref(), self.intent.as_ref())
    }

    /// As [`Snapshot::hash`]; found out when it is first asked for.
    #[must_use]
    pub fn hash(&self) -> ContentHash {
        *self.hash.get_or_init(|| snapshot::hash_of(&self.values()))
    }

    /// The values of this revision and of another one, but for those of a configuration that both share.
    #[must_use]
    pub fn values_beside(&self, other: &Self) -> [Values; 2] {
        match (&self.service, &other.service) {
            (Some(one), Some(another)) if Arc::ptr_eq(one, another) => [self, other].map(|revision| {
                let decided = |intent| snapshot::decided(Some(one), intent);
                revision.intent.as_ref().map(decided).unwrap_or_default()
            }),
            _ => [self.values(), other.values()],
        }
    }
}

/// The revisions that the journal still has.
#[derive(Debug, Default)]
pub struct Histories {
    /// What the journal comes to.
    desired: Option<Desired>,
    /// By service, the oldest first.
    services: HashMap<ServiceName, Vec<Arc<Revision>>>,
}

impl Histories {
    /// Of some changes, the oldest first.
    #[must_use]
    pub fn of(entries: &[Entry]) -> Self {
        let mut histories = Self::default();
        entries.iter().for_each(|entry| histories.note(entry));
        histories
    }

    /// The revisions of a service, the oldest first. There are none of a service that never was.
    #[must_use]
    pub fn revisions(&self, name: &str) -> &[Arc<Revision>] {
        self.services.get(name).map_or(&[], Vec::as_slice)
    }

    /// The services that have revisions, those that were removed among them; in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Takes a change that comes after all the others.
    pub fn note(&mut self, entry: &Entry) {
        self.desired = Desired::after(self.desired.take(), &entry.change);
        let Some(now) = &self.desired else { return };
        match &entry.change {
            Change::Service { name, .. } | Change::Restore { name, .. } => {
                let service = now.service(name.as_str());
                let intent = service.and_then(|_| now.intents.get(name));
                note(&mut self.services, now, entry, name, (service, intent));
            }
            Change::Config { .. } | Change::Base { .. } => {
                let parts = now.by_name();
                for name in now.revisions.keys() {
                    let part =
                        parts.get(name).map_or((None, None), |&(service, intent)| (Some(service), intent));
                    note(&mut self.services, now, entry, name, part);
                }
            }
            // Nobody has decided anything.
            Change::Discovered { .. } => {}
        }
    }

    /// Takes note that the changes up to `base` were made one, which it is.
    pub fn fold(&mut self, base: &Entry) {
        let mut folded = Self::of(std::slice::from_ref(base));
        for (name, revisions) in std::mem::take(&mut self.services) {
            let newer = revisions.into_iter().filter(|revision| revision.sequence > base.sequence);
            folded.services.entry(name).or_default().extend(newer);
        }
        folded.services.retain(|_, revisions| !revisions.is_empty());
        self.services = folded.services;
    }
}

/// Notes a service as it is `now`, if that is a revision that is not known.
fn note(
    services: &mut HashMap<ServiceName, Vec<Arc<Revision>>>,
    now: &Desired,
    entry: &Entry,
    name: &ServiceName,
    (service, intent): (Option<&Service>, Option<&Intent>),
) {
    let Some(&number) = now.revisions.get(name) else { return };
    let before = services.get(name).and_then(|revisions| revisions.last());
    if before.is_some_and(|before| before.number == number) {
        return;
    }
    let shared = before.and_then(|before| before.service.as_ref());
    let service = service.map(|service| match shared {
        Some(shared) if **shared == *service => Arc::clone(shared),
        _ => Arc::new(service.clone()),
    });
    let revision = Revision {
        number,
        sequence: entry.sequence,
        time: entry.time.clone(),
        author: entry.author.clone(),
        reason: entry.reason.clone(),
        summary: entry.summary.clone(),
        service,
        intent: intent.cloned(),
        is_base: matches!(entry.change, Change::Base { .. }),
        hash: OnceLock::new(),
    };
    services.entry(name.clone()).or_default().push(Arc::new(revision));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Config};

    fn config(services: &[&str]) -> Box<Config> {
        let mut text = String::from("schema = 1\n[dataplane]\ninterfaces = [\"eth0\"]\n");
        for (i, name) in services.iter().enumerate() {
            text += &format!("[[service]]\nname = \"{name}\"\nvip = \"203.0.113.{i}\"\nport = 80\n");
            text += "[[service.pool]]\nname = \"a\"\n[[service.pool.backend]]\naddress = \"10.0.0.1:80\"\n";
        }
        let text = if services.len() > 1 { text.replacen("10.0.0.1", "10.0.0.2", 1) } else { text };
        Box::new(config::parse(&text, "test").expect("a good configuration").config)
    }

    fn entries(changes: impl IntoIterator<Item = Change>) -> Vec<Entry> {
        let entry = |(i, change)| Entry {
            sequence: i as u64 + 1,
            time: String::new(),
            author: Author::agent("test"),
            reason: None,
            summary: format!("change {}", i + 1),
            change,
        };
        changes.into_iter().enumerate().map(entry).collect()
    }

    #[test]
    fn a_service_that_is_removed_and_comes_back_goes_on_counting() {
        let applied = |services: &[&str]| Change::Config { config: config(services), file: None };
        let all = entries([applied(&["web"]), applied(&["dns"]), applied(&["web", "dns"])]);
        let histories = Histories::of(&all);
        let web = histories.revisions("web");
        assert_eq!(
            web.iter().map(|one| (one.number, one.sequence)).collect::<Vec<_>>(),
            [(1, 1), (2, 2), (3, 3)]
        );
        assert_eq!(web[1].snapshot(), Snapshot::default(), "revision 2 is its removal");
        assert!(web[2].service.is_some());
        assert!(histories.revisions("mail").is_empty());
    }

    fn split(percent: f64) -> Change {
        let desired = Desired::of(*config(&["web"]));
        let (name, mut intent) = desired.intents.into_iter().next().expect("an intent");
        intent.split = percent;
        Change::Service { name, intent }
    }

    #[test]
    fn what_is_noted_by_and_by_is_what_a_reading_of_the_whole_finds() {
        let applied = |services: &[&str]| Change::Config { config: config(services), file: None };
        let all =
            entries([applied(&["web", "dns"]), split(5.0), applied(&["dns"]), applied(&["web"]), split(7.0)]);
        let says = |histories: &Histories| {
            ["web", "dns"].map(|name| {
                let revisions = histories.revisions(name).iter();
                revisions
                    .map(|one| (one.number, one.sequence, one.is_base, one.snapshot()))
                    .collect::<Vec<_>>()
            })
        };
        for folded in 0..all.len() {
            let mut noted = Histories::of(&all);
            let mut journal = all.clone();
            if let Some(last) = folded.checked_sub(1) {
                let desired = Desired::replayed(&all[..folded]).expect("a configuration");
                let base = Entry {
                    change: Change::Base { desired: Box::new(desired), file: None },
                    ..all[last].clone()
                };
                journal.splice(..folded, [base.clone()]);
                noted.fold(&base);
            }
            assert_eq!(says(&noted), says(&Histories::of(&journal)), "{folded} changes made one");
        }
    }

    #[test]
    fn revisions_share_a_configuration_that_stays_and_differ_in_the_rest() {
        let applied = |services: &[&str]| Change::Config { config: config(services), file: None };
        let histories = Histories::of(&entries([applied(&["web"]), split(5.0), applied(&["web", "dns"])]));
        let [first, second, third] = histories.revisions("web") else { panic!("three revisions") };
        let shared = |one: &Revision, other: &Revision| {
            Arc::ptr_eq(one.service.as_ref().expect("there"), other.service.as_ref().expect("there"))
        };
        assert!(shared(first, second) && !shared(second, third));
        for (one, other) in [(first, second), (second, third), (first, third)] {
            let [before, after] = one.values_beside(other);
            let (all_before, all_after) = (one.values(), other.values());
            let differences = snapshot::differences(&all_before, &all_after);
            assert_eq!(snapshot::differences(&before, &after), differences);
            assert_eq!(one.hash() == other.hash(), differences.is_empty());
            assert_eq!(one.hash(), one.snapshot().hash());
        }
    }

    #[test]
    fn a_restored_service_is_what_it_was_and_the_others_are_untouched() {
        let applied = |services: &[&str]| Change::Config { config: config(services), file: None };
        let mut changes = vec![applied(&["web", "dns"]), applied(&["dns"])];
        let before = Histories::of(&entries(changes.clone())).revisions("web")[0].snapshot();
        let name = before.service.as_ref().expect("it was there").name.clone();
        let service = before.service.clone().map(Box::new);
        changes.push(Change::Restore { name, service, intent: before.intent.clone() });
        let all = entries(changes);
        let histories = Histories::of(&all);
        let web = histories.revisions("web");
        assert_eq!((web[2].number, web[2].snapshot()), (3, before));
        assert_eq!(web[2].hash(), web[0].hash());
        let dns = histories.revisions("dns");
        assert_eq!(
            dns.last().map(|one| one.sequence),
            Some(2),
            "dns changed its VIP in change 2, and not since"
        );
    }
}
