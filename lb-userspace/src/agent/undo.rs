//! Undo: a service becomes again what it was at an earlier revision. That is a revision of its own.
//!
//! Where it gives the canary fewer clients, that is one store and comes first, as with a rollback; everything else goes the way
//! of every change: refused as a whole if any of it cannot be, then on disk, then applied. Where it gives the canary more, a
//! rollback that comes in between wins, as with `set split`.

use std::sync::Arc;

use jiff::Timestamp;
use lb_common::abi::Split;

use super::{Agent, Request, diff, history};
use crate::api::{Answer, ApiError, Applied, ErrorCode};
use crate::clock;
use crate::compile::key_of;
use crate::config::ServiceName;
use crate::publish::split;
use crate::state::history::Revision;
use crate::state::{Change, Desired, Snapshot};

impl Agent {
    /// Makes a service what it was at revision `to`, or at the one before the newest.
    pub fn undo(&mut self, service: &str, to: Option<u64>, request: &Request) -> Answer<Applied> {
        let recorded = history::recorded(self.journal.histories(), service)?;
        let newest = recorded.last().map_or(0, |revision| revision.number);
        let to = to.unwrap_or_else(|| before_last(recorded));
        if to == 0 {
            let message =
                format!("revision {newest} of `{service}` is its first one: there is nothing before it");
            return Err(ApiError::new(ErrorCode::NoRevision, message)
                .about(service)
                .remedy("to take the service away, apply a configuration without it"));
        }
        let mut wanted = history::find(recorded, service, to)?.snapshot();
        // A rollout is not taken up again in its middle.
        if let Ok((_, now)) = self.intent(service) {
            self.not_in_rollout(service, &now)?;
            if let Some(intent) = &mut wanted.intent {
                intent.rollout.clone_from(&now.rollout);
                // The clients of a canary are looked for by the salt that they came by.
                intent.salt = now.salt;
            }
        } else {
            wanted
                .intent
                .iter_mut()
                .filter(|it| it.is_in_rollout())
                .for_each(|it| it.roll_back(Timestamp::now()));
        }
        let name = self.desired.revisions.keys().find(|name| name.as_str() == service).cloned();
        let name = name.ok_or_else(|| ApiError::no_service(service, std::iter::empty()))?;
        let before = self.desired.snapshot(service);
        let next = self.desired.with(&name, wanted);
        // Overrides of backends that are not there any more are not restored.
        let wanted = next.snapshot(service);
        let changes = diff::between(&before.values(), &wanted.values());
        if changes.is_empty() {
            return Ok(self.applied(service, changes));
        }
        goes_together(&next, service, to)?;
        self.may_apply(&next)?;
        let mut moved = self.would_move(&next);
        moved.retain(|moved| moved.service == service);
        self.restore(
            &name,
            &before,
            wanted,
            next,
            &format!("undo of {service}: as at its revision {to}"),
            request,
        )?;
        Ok(Applied { moved, ..self.applied(service, changes) })
    }

    fn restore(
        &mut self,
        name: &ServiceName,
        before: &Snapshot,
        wanted: Snapshot,
        next: Desired,
        summary: &str,
        request: &Request,
    ) -> Answer<()> {
        let index = self.place_of(before, &wanted);
        let percent = wanted.intent.as_ref().map_or(0.0, |intent| intent.split);
        let target = split::share(percent);
        if let Some(index) = index {
            self.may_raise(name.as_str(), self.publisher.maps.services.read(index).split(), target)?;
        }
        let seen = index.map(|index| (index, self.lower(index, target)));
        if let (Some((_, seen)), Some(intent)) = (seen, self.desired.intents.get_mut(name)) {
            intent.split = intent.split.min(split::percent(seen.new()));
        }

        let service = wanted.service.map(Box::new);
        let change = Change::Restore { name: name.clone(), service, intent: wanted.intent };
        if let Err(error) = self.record(request, summary.to_owned(), change) {
            let lowered = before.intent != self.desired.snapshot(name.as_str()).intent;
            if !lowered {
                return Err(error);
            }
            let kept = format!("undo of {name}: its split is {percent} %, the rest was not undone");
            self.owe(name, request, kept);
            let message =
                format!("the split is {percent} % again, but nothing else was undone: {}", error.message);
            return Err(ApiError { message, ..error });
        }
        self.desired = next;
        let failures = self.follow_desired();
        self.note("undone", Some(name), request, summary.to_owned());
        if let Some((name, error)) = failures.into_iter().next() {
            return Err(ApiError::new(ErrorCode::Dataplane, error.to_string()).about(name.as_str()));
        }
        if self.desired.service(name.as_str()).is_none() {
            return Ok(());
        }
        let (index, expected) = match seen {
            Some(seen) => seen,
            None => {
                let index = self.index(name.as_str())?;
                (index, self.publisher.maps.services.read(index).split())
            }
        };
        if target > expected.new() && !self.store_split(name.as_str(), index, expected, target) {
            return self.rolled_back_meanwhile(name.as_str(), name, request).map(drop);
        }
        Ok(())
    }

    /// Where the service is in the kernel, if it is there already and its pools keep their roles: then its split goes on from
    /// where it is. Otherwise it starts at 0 %.
    fn place_of(&self, before: &Snapshot, wanted: &Snapshot) -> Option<u32> {
        let (now, then) = (before.service.as_ref()?, wanted.service.as_ref()?);
        let stays = before.intent.as_ref()?.stable == wanted.intent.as_ref()?.stable;
        if key_of(now) == key_of(then) && stays { self.index(now.name.as_str()).ok() } else { None }
    }

    /// Gives the canary no more than `target` of the clients, from the next packet on. Returns the split that holds now; it is
    /// smaller if somebody rolled back.
    pub(super) fn lower(&mut self, index: u32, target: u32) -> Split {
        loop {
            let now = self.publisher.maps.services.read(index).split();
            if now.new() <= target {
                return now;
            }
            // Whoever else changed it lowered it, too: only this task ever raises a split.
            self.publisher.set_split(index, now, target, clock::ticks());
        }
    }
}

/// The newest revision that is not as the last one.
fn before_last(recorded: &[Arc<Revision>]) -> u64 {
    let Some((last, earlier)) = recorded.split_last() else { return 0 };
    let other = earlier.iter().rev().find(|revision| revision.hash() != last.hash());
    other.map_or(last.number.saturating_sub(1), |revision| revision.number)
}

/// Whether a service of another time goes together with the others as they are now.
fn goes_together(next: &Desired, service: &str, to: u64) -> Answer<()> {
    next.goes_together().map_err(|error| {
        let message = format!("revision {to} does not go together with what holds now: {error}");
        ApiError::new(ErrorCode::InvalidConfig, message)
            .about(service)
            .remedy("nothing was changed; write what is wanted of it into a configuration, and apply that")
    })
}
