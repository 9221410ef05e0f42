//! What the journal says of a service.

use std::path::Path;

use super::diff;
use crate::api::{Answer, Api, ApiError, Diff, DiffQuery, ErrorCode, History, Revision};
use crate::state::history::{self, Revision as Recorded};
use crate::state::{Author, Journal, Snapshot};

/// A service's revisions, the oldest first; there is at least one.
///
/// # Errors
///
/// If the journal cannot be read, or never had such a service.
pub(super) fn recorded(state_dir: &Path, service: &str) -> Answer<Vec<Recorded>> {
    let entries = Journal::read(state_dir).map_err(|error| {
        ApiError::new(ErrorCode::Journal, error.to_string()).about("journal").remedy(
            "forwarding and changes go on; see whether the state directory can be read (--state-dir or LB_STATE_DIR)",
        )
    })?;
    let revisions = history::revisions(&entries, service);
    if revisions.is_empty() {
        let known = crate::state::Desired::replayed(&entries);
        let known = known.iter().flat_map(|desired| desired.revisions.keys());
        return Err(ApiError::no_service(service, known.map(|name| name.as_str())));
    }
    Ok(revisions)
}

/// One of a service's revisions.
///
/// # Errors
///
/// If it is not among them.
pub(super) fn find<'a>(revisions: &'a [Recorded], service: &str, number: u64) -> Answer<&'a Recorded> {
    revisions.iter().find(|revision| revision.number == number).ok_or_else(|| {
        let numbers = || revisions.iter().map(|revision| revision.number);
        let (first, last) = (numbers().min().unwrap_or_default(), numbers().max().unwrap_or_default());
        let message =
            format!("service `{service}` has no revision {number}: the journal has {first} to {last}");
        ApiError::new(ErrorCode::NoRevision, message)
            .about(service)
            .remedy(format!("`lbctl history {service}` shows what each of them is"))
    })
}

/// Answer to `GET /v1/services/{s}/history`.
pub(super) fn history(state_dir: &Path, service: String) -> Answer<History> {
    let recorded = recorded(state_dir, &service)?;
    let mut revisions = Vec::new();
    let absent = Snapshot::default().values();
    let mut before = None;
    for revision in recorded {
        let values = revision.snapshot.values();
        let changes = match &before {
            None if revision.is_base => Vec::new(),
            None => diff::between(&absent, &values),
            Some(before) => diff::between(before, &values),
        };
        revisions.push(Revision {
            revision: revision.number,
            agent_revision: revision.sequence,
            time: revision.time,
            actor: author(&revision.author),
            reason: revision.reason,
            summary: revision.summary,
            hash: revision.snapshot.hash().to_string(),
            changes,
        });
        before = Some(values);
    }
    revisions.reverse();
    Ok(History { api: Api::V1, service, revisions })
}

/// Answer to `GET /v1/services/{s}/diff`.
pub(super) fn difference(state_dir: &Path, service: String, query: DiffQuery) -> Answer<Diff> {
    let recorded = recorded(state_dir, &service)?;
    let values = |number| find(&recorded, &service, number).map(|revision| revision.snapshot.values());
    let changes = diff::between(&values(query.from)?, &values(query.to)?);
    Ok(Diff { api: Api::V1, service, from: query.from, to: query.to, changes })
}

fn author(author: &Author) -> String {
    match author.pid {
        Some(pid) => format!("{} (pid {pid})", author.name),
        None => author.name.clone(),
    }
}
