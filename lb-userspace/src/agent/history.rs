//! What the journal says of a service.

use std::sync::Arc;

use super::diff;
use crate::api::{Answer, Api, ApiError, Diff, DiffQuery, ErrorCode, History, Revision};
use crate::state::Author;
use crate::state::history::{Histories, Revision as Recorded};
use crate::state::snapshot::Values;

/// A service's revisions, the oldest first; there is at least one.
///
/// # Errors
///
/// If the journal never had such a service.
pub(super) fn recorded<'a>(histories: &'a Histories, service: &str) -> Answer<&'a [Arc<Recorded>]> {
    let revisions = histories.revisions(service);
    if revisions.is_empty() {
        let mut known: Vec<&str> = histories.services().map(|name| name.as_str()).collect();
        known.sort_unstable();
        return Err(ApiError::no_service(service, known));
    }
    Ok(revisions)
}

/// One of a service's revisions.
///
/// # Errors
///
/// If it is not among them.
pub(super) fn find<'a>(revisions: &'a [Arc<Recorded>], service: &str, number: u64) -> Answer<&'a Recorded> {
    revisions.iter().map(|revision| &**revision).find(|revision| revision.number == number).ok_or_else(|| {
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
pub(super) fn history(recorded: &[Arc<Recorded>], service: String) -> History {
    let mut revisions = Vec::new();
    let mut before: Option<&Recorded> = None;
    for revision in recorded {
        let changes = match before {
            None if revision.is_base => Vec::new(),
            None => diff::between(&Values::new(), &revision.values()),
            Some(before) => {
                let [then, now] = before.values_beside(revision);
                diff::between(&then, &now)
            }
        };
        revisions.push(Revision {
            revision: revision.number,
            agent_revision: revision.sequence,
            time: revision.time.clone(),
            actor: author(&revision.author),
            reason: revision.reason.clone(),
            summary: revision.summary.clone(),
            hash: revision.hash().to_string(),
            changes,
        });
        before = Some(revision);
    }
    revisions.reverse();
    History { api: Api::V1, service, revisions }
}

/// Answer to `GET /v1/services/{s}/diff`.
///
/// # Errors
///
/// If one of the revisions is not there.
pub(super) fn difference(recorded: &[Arc<Recorded>], service: String, query: DiffQuery) -> Answer<Diff> {
    let [from, to] = [find(recorded, &service, query.from)?, find(recorded, &service, query.to)?];
    let [before, after] = from.values_beside(to);
    Ok(Diff {
        api: Api::V1,
        service,
        from: query.from,
        to: query.to,
        changes: diff::between(&before, &after),
    })
}

fn author(author: &Author) -> String {
    match author.pid {
        Some(pid) => format!("{} (pid {pid})", author.name),
        None => author.name.clone(),
    }
}
