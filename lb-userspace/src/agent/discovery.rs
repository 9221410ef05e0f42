//! What sources say of the backends of pools: what is news goes into the journal, as theirs, and then into the tables.
//!
//! A source that fails, or says what cannot be, changes nothing: the last backends stay for as long as it takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;

use super::{Agent, Request};
use crate::api::{Finding, Severity};
use crate::clock;
use crate::config::{Backend, Discovery, Pool, PoolName, Service, ServiceName, WhenEmpty};
use crate::discovery::{Answer, Place, Sources, Wanted};
use crate::events::{EventLog, Occurrence};
use crate::state::{Author, Change, Desired, Journal};

/// The sources, and what is wrong with them.
pub(super) struct Discoveries {
    sources: Sources,
    troubles: BTreeMap<Place, Trouble>,
}

/// Why the last answer of a source does not count.
struct Trouble {
    since: Timestamp,
    why: String,
    /// What it said, if it is the agent that could not do it: the source has no reason to say it again.
    refused: Option<Answer>,
}

impl Discoveries {
    pub fn new(sources: Sources) -> Self {
        Self { sources, troubles: BTreeMap::new() }
    }

    /// Asks those that the configuration names.
    pub fn follow(&mut self, services: &[Service]) {
        let pools = services.iter().flat_map(|service| service.pools.iter().map(move |pool| (service, pool)));
        let wanted: BTreeMap<Place, Wanted> = pools
            .filter_map(|(service, pool)| {
                Some(((service.name.clone(), pool.name.clone()), Wanted::of(service, pool)?))
            })
            .collect();
        self.troubles.retain(|place, _| wanted.contains_key(place));
        self.sources.follow(wanted);
    }
}

impl Agent {
    /// A source has said who serves, or that it cannot say so.
    pub(super) fn source_answered(&mut self, answer: Answer) {
        if !self.discoveries.sources.is_current(&answer) {
            return;
        }
        let (service, pool) = &answer.place;
        let Some(discovery) = self.discovery_of(service, pool).cloned() else { return };
        let taken = answer.backends.clone().and_then(|backends| {
            let known = self.desired.discovered(service, pool);
            match backends.is_empty() && discovery.on_empty == WhenEmpty::Keep {
                true => Err("its answer is empty (on_empty = \"keep\")".to_owned()),
                // What could not be done then is tried again.
                false if backends == known => match self.discoveries.troubles.contains_key(&answer.place) {
                    true => self.publish_discovered(service),
                    false => Ok(()),
                },
                false => self.discover(&answer.place, &discovery, backends),
            }
        });
        match taken {
            Ok(()) => self.source_is_well(&answer.place, &discovery),
            Err(why) => self.source_fails(answer, &discovery, why),
        }
    }

    /// Tries again what sources said, and what could not be done then.
    pub(super) fn retry_refused(&mut self) {
        let refused = self.discoveries.troubles.values().filter_map(|trouble| trouble.refused.clone());
        for answer in refused.collect::<Vec<_>>() {
            self.source_answered(answer);
        }
    }

    fn discovery_of(&self, service: &ServiceName, pool: &PoolName) -> Option<&Discovery> {
        let service = self.desired.service(service.as_str())?;
        service.pools.iter().find(|known| known.name == *pool)?.discovery.as_ref()
    }

    /// Other backends than before.
    fn discover(
        &mut self,
        place: &Place,
        discovery: &Discovery,
        backends: Vec<Backend>,
    ) -> Result<(), String> {
        let (service, pool) = place;
        self.desired.discovering(service, pool, backends.clone()).goes_together()?;
        let summary = summary(place, self.desired.discovered(service, pool), &backends);
        let request = Request { author: author(discovery), reason: None };
        let change =
            Change::Discovered { name: service.clone(), pool: pool.clone(), backends: backends.clone() };
        self.record(&request, summary.clone(), change).map_err(|error| error.message)?;
        self.desired = self.desired.discovering(service, pool, backends);
        self.follow_config();
        let published = self.publish_discovered(service);
        self.log.push(Occurrence {
            code: "discovered",
            service: Some(service.as_str().to_owned()),
            pool: Some(pool.as_str().to_owned()),
            message: summary,
            actor: Some(request.author.name),
            revision: Some(self.newest_revision()),
            ..Occurrence::default()
        });
        published
    }

    fn publish_discovered(&mut self, service: &ServiceName) -> Result<(), String> {
        match self.converge([service.clone()]).pop() {
            None => Ok(()),
            Some((_, error)) => Err(format!("what it says is not in the tables: {error}")),
        }
    }

    fn source_is_well(&mut self, place: &Place, discovery: &Discovery) {
        if self.discoveries.troubles.remove(place).is_some() {
            self.tell(place, discovery, "discovery_recovered", false, "it answers again".to_owned());
        }
    }

    /// Told once, and again when it fails in another way.
    fn source_fails(&mut self, answer: Answer, discovery: &Discovery, why: String) {
        let place = answer.place.clone();
        let known = self.discoveries.troubles.get(&place);
        if known.is_none_or(|trouble| trouble.why != why) {
            self.tell(&place, discovery, "discovery_failed", true, why.clone());
        }
        let since = known.map_or_else(Timestamp::now, |trouble| trouble.since);
        let refused = answer.backends.is_ok().then_some(answer);
        self.discoveries.troubles.insert(place, Trouble { since, why, refused });
    }

    fn tell(&self, place: &Place, discovery: &Discovery, code: &'static str, severe: bool, what: String) {
        let (service, pool) = place;
        self.log.push(Occurrence {
            code,
            severe,
            service: Some(service.as_str().to_owned()),
            pool: Some(pool.as_str().to_owned()),
            message: format!("{}: {what}", discovery.source),
            actor: Some(author(discovery).name),
            ..Occurrence::default()
        });
    }

    /// Sources that do not say who serves.
    pub(super) fn discovery_findings(&self) -> Vec<Finding> {
        let finding = |(place, trouble): (&Place, &Trouble)| {
            let (service, pool) = place;
            let source = &self.discovery_of(service, pool)?.source;
            let Trouble { since, why, .. } = trouble;
            let (severity, left) = match self.desired.discovered(service, pool).len() {
                0 => (Severity::Error, "it has named no backend so far".to_owned()),
                1 => (Severity::Warning, "the one backend that it named last stays".to_owned()),
                count => (Severity::Warning, format!("the {count} backends that it named last stay")),
            };
            Some(Finding {
                severity,
                code: "LB1014".to_owned(),
                subject: format!("{service}/{pool}"),
                message: format!("{source} does not say who serves since {since:.0}: {why}; {left}"),
                remedy: Some(
                    "mend the source, which is asked again; or write the backends into the configuration"
                        .to_owned(),
                ),
            })
        };
        self.discoveries.troubles.iter().filter_map(finding).collect()
    }

    /// The source of a backend that is discovered, and not configured.
    pub(super) fn source_of(&self, service: &Service, backend: SocketAddr) -> Option<String> {
        if service.pools.iter().all(|pool| pool.discovery.is_none()) {
            return None;
        }
        let service = self.desired.service(service.name.as_str())?;
        let mut configured = service.pools.iter().flat_map(|pool| &pool.backends);
        if configured.any(|known| known.address == backend) {
            return None;
        }
        let has = |pool: &&Pool| {
            let found = self.desired.discovered(&service.name, &pool.name);
            found.binary_search_by_key(&backend, |known| known.address).is_ok()
        };
        let pool = service.pools.iter().find(has)?;
        Some(pool.discovery.as_ref()?.source.to_string())
    }
}

/// Lets go of what was discovered before the configuration file said what it says now, and does not go together with it.
///
/// # Errors
///
/// If that cannot be written down.
pub(super) fn drop_misfits(
    mut desired: Desired,
    journal: &mut Journal,
    log: &EventLog,
) -> anyhow::Result<Desired> {
    for (service, pool, why) in desired.misfits() {
        let message =
            format!("what was discovered for {service}/{pool} does not go with the configuration: {why}");
        let change = Change::Discovered { name: service.clone(), pool: pool.clone(), backends: Vec::new() };
        journal.append(clock::timestamp(), Author::agent("start"), None, message.clone(), change)?;
        desired = desired.discovering(&service, &pool, Vec::new());
        log.push(Occurrence {
            code: "discovery_dropped",
            severe: true,
            service: Some(service.as_str().to_owned()),
            pool: Some(pool.as_str().to_owned()),
            message,
            ..Occurrence::default()
        });
    }
    Ok(desired)
}

fn author(discovery: &Discovery) -> Author {
    Author { name: format!("discovery/{}", discovery.source), pid: None }
}

/// What has changed, in a sentence.
fn summary((service, pool): &Place, before: &[Backend], after: &[Backend]) -> String {
    /// More names than that say less.
    const NAMED: usize = 3;
    let lacks = |all: &[Backend], one: &Backend| !all.iter().any(|other| other.address == one.address);
    let names = |list: Vec<&Backend>, sign: char| {
        let named =
            list.iter().take(NAMED).map(|backend| format!("{sign}{}", backend.address)).collect::<Vec<_>>();
        match list.len().saturating_sub(NAMED) {
            _ if list.is_empty() => None,
            0 => Some(named.join(" ")),
            more => Some(format!("{} and {more} more", named.join(" "))),
        }
    };
    let came = names(after.iter().filter(|backend| lacks(before, backend)).collect(), '+');
    let went = names(before.iter().filter(|backend| lacks(after, backend)).collect(), '-');
    let changed = [came, went].into_iter().flatten().collect::<Vec<_>>().join(", ");
    let changed = if changed.is_empty() { "other weights" } else { &changed };
    format!("{service}/{pool} has {} discovered backends: {changed}", after.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AdminState, Weight};

    fn backends(list: &[(&str, u16)]) -> Vec<Backend> {
        let backend = |&(address, weight): &(&str, u16)| Backend {
            address: address.parse().expect("an address"),
            weight: Weight(weight),
            state: AdminState::Ready,
            priority: 0,
            health_port: None,
            agent_port: None,
            server_ids: None,
        };
        list.iter().map(backend).collect()
    }

    #[test]
    fn a_summary_names_who_came_and_who_went() {
        let place = ("web".parse().expect("a name"), "v1".parse().expect("a name"));
        let one = backends(&[("10.0.0.1:80", 1)]);
        let other = backends(&[("10.0.0.2:80", 1)]);
        assert_eq!(
            summary(&place, &one, &other),
            "web/v1 has 1 discovered backends: +10.0.0.2:80, -10.0.0.1:80"
        );
        assert_eq!(
            summary(&place, &one, &backends(&[("10.0.0.1:80", 2)])),
            "web/v1 has 1 discovered backends: other weights"
        );
        let many =
            backends(&[("10.0.0.1:80", 1), ("10.0.0.2:80", 1), ("10.0.0.3:80", 1), ("10.0.0.4:80", 1)]);
        assert_eq!(
            summary(&place, &[], &many),
            "web/v1 has 4 discovered backends: +10.0.0.1:80 +10.0.0.2:80 +10.0.0.3:80 and 1 more"
        );
    }
}
