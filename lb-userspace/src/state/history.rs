//! The revisions of a service, out of the journal.

use super::{Author, Change, Desired, Entry, Snapshot};

/// A service as it was from one of its changes on.
#[derive(Clone, Debug, PartialEq)]
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
    /// What held from then on.
    pub snapshot: Snapshot,
    /// Whether all changes before it were made one, so that nobody knows any more what it changed.
    pub is_base: bool,
}

/// The revisions of a service that the journal still has, the oldest first. There are none of a service that never was.
#[must_use]
pub fn revisions(entries: &[Entry], name: &str) -> Vec<Revision> {
    let mut revisions = Vec::new();
    let mut desired = None;
    let mut last = 0;
    for entry in entries {
        desired = Desired::after(desired, &entry.change);
        let Some(now) = &desired else { continue };
        let counted = now.revisions.iter().find(|(known, _)| known.as_str() == name);
        let Some((_, &number)) = counted else { continue };
        if number == last {
            continue;
        }
        last = number;
        revisions.push(Revision {
            number,
            sequence: entry.sequence,
            time: entry.time.clone(),
            author: entry.author.clone(),
            reason: entry.reason.clone(),
            summary: entry.summary.clone(),
            snapshot: now.snapshot(name),
            is_base: matches!(entry.change, Change::Base { .. }),
        });
    }
    revisions
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
        let web = revisions(&all, "web");
        assert_eq!(
            web.iter().map(|one| (one.number, one.sequence)).collect::<Vec<_>>(),
            [(1, 1), (2, 2), (3, 3)]
        );
        assert_eq!(web[1].snapshot, Snapshot::default(), "revision 2 is its removal");
        assert!(web[2].snapshot.service.is_some());
        assert!(revisions(&all, "mail").is_empty());
    }

    #[test]
    fn a_restored_service_is_what_it_was_and_the_others_are_untouched() {
        let applied = |services: &[&str]| Change::Config { config: config(services), file: None };
        let mut changes = vec![applied(&["web", "dns"]), applied(&["dns"])];
        let before = revisions(&entries(changes.clone()), "web")[0].snapshot.clone();
        let name = before.service.as_ref().expect("it was there").name.clone();
        let service = before.service.clone().map(Box::new);
        changes.push(Change::Restore { name, service, intent: before.intent.clone() });
        let all = entries(changes);
        let web = revisions(&all, "web");
        assert_eq!((web[2].number, &web[2].snapshot), (3, &before));
        assert_eq!(web[2].snapshot.hash(), web[0].snapshot.hash());
        let dns = revisions(&all, "dns");
        assert_eq!(
            dns.last().map(|one| one.sequence),
            Some(2),
            "dns changed its VIP in change 2, and not since"
        );
    }
}
